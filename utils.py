"""What every script shares: one-line errors, whole files, progress, types of flags.

Imports the standard library only, and nothing of this project. It runs on Python 3.9, because the Python that has
TensorRT is often not the one that has torch.
"""
from __future__ import annotations

import fcntl
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent


class UserError(Exception):
    """A mistake of the user's or of a file: one line that names the file, the problem and the remedy."""


# Words by which PyTorch and onnxruntime say that memory is short: they raise no class of their own for it.
# In lower case.
NO_MEMORY = ("out of memory", "can't allocate memory", "failed to allocate memory", "bad_alloc", "bad allocation")
INTERRUPTED = 130  # exit status after Ctrl-C, as a shell gives it


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main(). What the user or the machine is to blame for becomes one line on stderr.

    The exit status is then 1; after Ctrl-C it is 130. An error of the code itself keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        problem = str(error)
    except KeyboardInterrupt:
        print(f"\n{Path(sys.argv[0]).name}: stopped by Ctrl-C; nothing half-written is left", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:
        problem = f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}"
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error).lower() for words in NO_MEMORY):
            raise
        asked = first_line(error) if str(error) else "no figure is known"
        problem = f"not enough memory ({asked}); give fewer or smaller batches, or a larger machine"
    else:
        return
    sys.exit(f"{Path(sys.argv[0]).name}: error: {problem}")


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


PARTIAL = ".partial-"  # in the hidden names of files that are being written


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the name `path` only if the block succeeds.

    A reader never sees half a file, and an old file survives a failed write. A link stays one: the file that it points
    to is replaced. What a process that was killed has left of the same file is removed first.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target)
        handle, partial = _locked_beside(target)
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be written there ({error.strerror}); give another place") from error
    try:
        yield partial
        partial.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o644)
        partial.replace(target)
    except OSError as error:
        if error.filename not in (None, str(partial)):
            raise  # about another file, which the block was reading
        raise UserError(f"{shown(path)}: could not be written ({error.strerror}); nothing was left behind") from error
    finally:
        partial.unlink(missing_ok=True)
        os.close(handle)


def _locked_beside(target: Path) -> tuple[int, Path]:
    """A new hidden file beside `target`, and a handle that holds its lock for as long as it is being written."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}{PARTIAL}", suffix=target.suffix, dir=target.parent)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):  # not so if it was taken for an abandoned one before it was locked
            return handle, Path(name)
        os.close(handle)


def remove_abandoned(target: Path) -> None:
    """Remove the hidden files that whole_file began for `target` and whose process is gone: nobody holds their lock."""
    for path in target.parent.iterdir():
        if path.name.startswith(f".{target.name}{PARTIAL}"):
            with suppress(FileNotFoundError, PermissionError), path.open("rb") as file, suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def check_writable(path: str | Path) -> None:
    """Find out before long work whether whole_file could write `path` after it. Leaves nothing behind.

    Raises:
        UserError: a folder of that name is there, or the folder that it would lie in cannot be written to or made.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{shown(path)}: is a folder, not a file; give another place")
    _try_to_write(path, Path(os.path.realpath(path)).parent)


def _try_to_write(path: Path, folder: Path) -> None:
    """Whether a file can be written into a folder that may have to be made; UserError about `path` if not."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
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


def file_to_write(text: str) -> Path:
    """What a flag takes that names a file to write; refused before the work where it cannot be written."""
    check_writable(text)
    return Path(text)


def folder_to_write(text: str) -> Path:
    """What a flag takes that names a folder to write files into; refused before the work where none can be.

    Raises:
        UserError: it is a file, or no file can be written there.
    """
    folder = Path(text)
    if folder.is_file():
        raise UserError(f"{shown(folder)}: is a file, not a folder; give another place")
    _try_to_write(folder, Path(os.path.realpath(folder)))
    return folder


PICTURES = (".jpg", ".jpeg", ".pdf", ".png", ".svg", ".webp")


def picture_target(path: Path) -> Path:
    """The path to draw a picture to, known before the work to be one that can be drawn and written.

    Raises:
        UserError: its suffix is none of PICTURES, or what check_writable raises.
    """
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"{shown(path)}: not the name of a picture; let it end with one of {', '.join(PICTURES)}")
    check_writable(path)
    return path


class Progress:
    """How many of `count` steps are done, and how long the rest will take if it goes on like this.

    Lines rather than the bar of tqdm or rich: most output goes to a log, and the Python that has TensorRT has neither.
    """

    def __init__(self, count: float, what: str, every_s: float = 10) -> None:
        """Args: what: the steps, in the plural. every_s: seconds between two lines."""
        self.count, self.what, self.every_s = count, what, every_s
        self.steps = 0.0
        self.begun = self.told = time.perf_counter()

    def is_due(self, steps: float = 1) -> bool:
        """Count steps as done; whether a line is to be printed now: all are done, or the last one is long ago."""
        self.steps += steps
        now = time.perf_counter()
        if now - self.told < self.every_s and self.steps < self.count:
            return False
        self.told = now
        return True

    def done(self, steps: float = 1) -> None:
        """Count steps as done, and print a line where one is due."""
        if self.is_due(steps):
            print(f"  {self}", flush=True)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self.begun

    @property
    def left(self) -> str:
        """E.g. "about 40 s left"."""
        seconds = self.seconds / self.steps * (self.count - self.steps)
        return f"about {seconds:.0f} s left" if seconds < 100 else f"about {seconds / 60:.0f} min left"

    def __str__(self) -> str:
        return f"{self.steps:g} of {self.count:g} {self.what}, {self.seconds:.0f} s, {self.left}"


def batch_sizes(text: str) -> list[int]:
    """What a --batch flag takes: whole numbers above zero with commas between them, e.g. "1,32,128".

    Raises:
        UserError: the text is anything else.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{text!r}: not a list of batch sizes; give whole numbers above zero, such as 1,32,128")
    return [int(part) for part in parts]


def image_size(text: str) -> tuple[int, int]:
    """What --size takes: 224, or 192x256 for height x width.

    Raises:
        UserError: anything else.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and 0 < int(part) < 2**15 for part in parts):
        raise UserError(f"--size {text}: not the size of an image; give one such as 224, or 192x256 for height x width")
    return int(parts[0]), int(parts[-1])


def image_sizes(text: str) -> list[tuple[int, int]]:
    """What --sizes takes: 800x1344,1024x1024; UserError as `image_size`."""
    return [image_size(part.strip()) for part in text.split(",")]


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
