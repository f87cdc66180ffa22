"""Run a command, unless its outputs are those that this very command made of these very files.

    python once.py --what export --output onnx/a.onnx --from models/swin.py -- python3 onnx/export_onnx.py --cfg a.yaml

The Makefile and run_all.sh put this before a command. The command runs again if one of these has changed since its last
run: its words; a file among its words (also behind `--flag=`) or in --from; the text of --also; an output, if it is
missing, truncated or replaced. A file counts by its contents and not by its time, a folder by the names, sizes and
times of its files. The command adds rows to a table (--rows), and the table must still have them.

Prints one line: what was done, the seconds or "as before", and the last line of the command's output that says what it
wrote. The whole output goes to .cache/logs/, and a record of the run to .cache/once/. A failure is shown with the end
of the output, and the exit status is 1. Two commands with the same output wait for each other. Standard library only.

$TAKE_FILES: outputs that are there are taken as they are. $MADE: a file that outputs are added to that are as they
should be.
"""
from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

CACHE, LOGS = Path(".cache/once"), Path(".cache/logs")
TELLING = re.compile(r"wrote|PASS|added")  # begins the lines in which the scripts say what came out
LINES = 15  # of a failed command's output that are shown


def name_of(path: str | Path) -> str:
    """A path as the name of a file: onnx/a.onnx is onnx-a.onnx."""
    return re.sub(r"[^\w.,=-]+", "-", str(path)).strip("-")


def digest(path: str | Path) -> str:
    """SHA-256 of a file; of a folder, of the names, sizes and times in it; "" where there is neither."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listing = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.sha256(repr(listing).encode()).hexdigest()
    if not path.is_file():
        return ""
    stat = path.stat()
    known = CACHE / "digests" / name_of(path.resolve())
    if stat.st_size > 2**20:  # remembered with size, time and inode: graphs and engines have hundreds of megabytes
        seen = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino} "
        if known.exists() and known.read_text().startswith(seen):
            return known.read_text().removeprefix(seen)
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
    if stat.st_size > 2**20:
        write(known, seen + sha256.hexdigest())
    return sha256.hexdigest()


def write(path: Path, text: str) -> None:
    """Write a file that is whole at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


@contextmanager
def alone(record: Path):
    """Wait until no other process makes the same."""
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def key_of(command: list[str], sources: list[str], also: str, outputs: list[str]) -> str:
    """What the command is: its words and the contents of the files that it reads, `outputs` and their folders not."""
    written = {path.resolve() for output in map(Path, outputs) for path in (output, *output.parents)}
    words, inputs = [], {}
    for word in (*command, *sources):
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        path = Path(value).resolve()
        if value and (path in written or path.exists()):
            value = str(path)  # the same file by another path is the same
            if path not in written and value not in inputs:
                inputs[value] = digest(path)
        words.append(f"{flag}{equals}{value}")
    return hashlib.sha256(json.dumps([words, also, sorted(inputs.items())]).encode()).hexdigest()


def lines_of(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def still_there(record: dict, key: str, outputs: list[str]) -> bool:
    """Whether what is recorded was made by this command, and is there as it was made."""
    return (record.get("key") == key and set(record["outputs"]) == set(outputs)
            and all(digest(path) == made for path, made in record["outputs"].items())
            and all(set(rows) <= set(lines_of(table)) for table, rows in record["rows"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", required=True, help="what the line calls it")
    parser.add_argument("--output", nargs="+", default=[], metavar="FILE", help="files that the command makes")
    parser.add_argument("--rows", nargs="+", default=[], metavar="TABLE", help="tables that it adds rows to")
    parser.add_argument("--from", nargs="+", default=[], metavar="FILE", dest="sources",
                        help="files and folders that it reads, besides those among its words")
    parser.add_argument("--also", default="", metavar="TEXT", help="what else the outputs depend on")
    parser.add_argument("--name", help="of the log and the record (default: that of the first output)")
    if "--" not in sys.argv:
        parser.error("give the command behind --")
    border = sys.argv.index("--")
    args, command = parser.parse_args(sys.argv[1:border]), sys.argv[border + 1:]
    name = name_of(args.name or args.output[0])
    record_path, log = CACHE / f"{name}.json", LOGS / f"{name}.log"

    def say(how: str, told: str) -> None:
        if os.environ.get("MADE") and how != "FAILED":
            with open(os.environ["MADE"], "a") as file:
                file.write("".join(f"{path}\n" for path in args.output))
        # One write: make runs several commands at a time, and their lines must stay whole.
        print(f"  {args.what:<28}{how:>9}  {told}\n", end="", flush=True)

    with alone(record_path):
        key = key_of(command, args.sources, args.also, [*args.output, *args.rows])
        record = json.loads(record_path.read_text()) if record_path.exists() else {}
        if still_there(record, key, args.output):
            say("as before", record["told"])
            return
        if args.output and os.environ.get("TAKE_FILES") and all(map(os.path.exists, args.output)):
            say("taken", "as it is: " + " ".join(args.output))
            return
        record_path.unlink(missing_ok=True)
        before = {table: set(lines_of(table)) for table in args.rows}
        log.parent.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        with log.open("w") as file:
            status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
        output = log.read_text(errors="replace").splitlines()
        missing = [path for path in args.output if not Path(path).exists()]
        if status or missing:
            last = next((line for line in reversed(output) if line.strip()), "no output")
            say("FAILED", last if status else f"{missing[0]} was not written")
            print(*output[-LINES:], sep="\n", file=sys.stderr)
            sys.exit(f"error: {args.what} failed; all of its output is in {log}")
        told = next((line for line in reversed(output) if TELLING.match(line)), "")
        rows = {table: [line for line in lines_of(table) if line not in before[table]] for table in args.rows}
        write(record_path, json.dumps({"key": key, "outputs": {path: digest(path) for path in args.output},
                                       "rows": rows, "told": told}))
        say(f"{time.monotonic() - begun:.0f} s", told)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
