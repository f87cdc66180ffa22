"""What every script shares: one-line errors, whole files, types of flags.

Imports the standard library only, and nothing of this project. It runs on Python 3.9, because the Python that has
TensorRT is often not the one that has torch.
"""
from __future__ import annotations

import fcntl
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent


class UserError(Exception):
    """A mistake of the user's or of a file: one line that names the file, the problem and the remedy."""


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main(): a UserError or an OSError becomes one line on stderr and exit status 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"{Path(sys.argv[0]).name}: error: {where}{error.strerror or error}")


@contextmanager
def about(path: str | Path) -> Iterator[None]:
    """Puts the path of a file in front of a UserError that is raised inside and does not name it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from error


def first_line(error: BaseException) -> str:
    """The first line that says something of an error's message; the kind of error where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def shown(path: str | Path) -> str:
    """The path as it is printed: relative to the repository where it lies inside it."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def existing_file(path: str | Path, what: str) -> Path:
    """The path, if a file is there; UserError that names `what` was looked for otherwise."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not {what}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of {what}")
    return path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the name `path` only if the block succeeds.

    A reader never sees half a file, and an old file survives a failed write.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be written there ({error.strerror}); give another place") from error
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        if error.filename not in (None, name):
            raise  # about another file, which the block was reading
        raise UserError(f"{shown(path)}: could not be written ({error.strerror}); nothing was left behind") from error
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Find out before long work whether whole_file could write `path` after it. Leaves nothing behind.

    Raises:
        UserError: a folder of that name is there, or the folder that it would lie in cannot be written to or made.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{shown(path)}: is a folder, not a file; give another place")
    there = next(folder for folder in path.resolve().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be written there ({error.strerror}); give another place") from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside this for the same folder: for files that several add to at once."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # and with it the lock


def batch_sizes(text: str) -> list[int]:
    """What a --batch flag takes: whole numbers above zero with commas between them, e.g. "1,32,128".

    Raises:
        UserError: the text is anything else.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{text!r}: not a list of batch sizes; give whole numbers above zero, such as 1,32,128")
    return [int(part) for part in parts]


def from_one(text: str) -> int:
    """What a flag takes that is a number of things: a whole number above zero.

    Raises:
        UserError: the text is anything else.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise UserError(f"{text!r}: not a whole number above zero; give one such as 8")
    return int(text)


def from_zero(text: str) -> float:
    """What a flag takes that is a limit or a time: a finite number that is not below zero.

    Raises:
        UserError: the text is anything else.
    """
    with suppress(ValueError):
        if 0 <= float(text) < math.inf:  # not so of NaN
            return float(text)
    raise UserError(f"{text!r}: not a finite number from zero up; give one such as 0.5")


def choices(text: str, allowed: tuple[str, ...]) -> list[str]:
    """What a flag takes that names some of `allowed`, with commas between them.

    Raises:
        UserError: one of them is not allowed.
    """
    for part in text.split(","):
        if part not in allowed:
            raise UserError(f"{part!r}: unknown; choose from {','.join(allowed)}")
    return text.split(",")
