"""What a person sees while TensorRT builds an engine, and what is left in the engine's .log file."""
from __future__ import annotations

import re
import sys
import threading
import time
from pathlib import Path

LEVELS = ("F", "E", "W", "I", "V")  # by TensorRT's severity: internal error, error, warning, info, verbose

# Words in TensorRT's messages that say what the builder is doing.
PHASES = (
    ("network tensors", "optimizing the graph"),
    ("Autotuning Reformat", "timing reformats"),
    ("Autotuning format combination", "timing layers"),
    ("Timing Runner", "timing layers"),
    ("Myelin graph compilation completed", "compiling fused regions"),
    ("Formats and tactics selection completed", "generating the engine"),
    ("Engine generation completed", "serializing"),
)


class BuildLog:
    """Writes TensorRT's messages to a file and, as a context manager, keeps a progress line on the terminal.

    Progress of utils.py counts steps, and of a build TensorRT 8.6 tells nobody how many are left: the estimate is the
    time that the same engine took when it was last built, read from the log that this one replaces.
    """

    def __init__(self, path: Path, verbose: bool = False) -> None:
        """Args: path: the .log file, replaced. verbose: also write TensorRT's verbose messages (tens of MB)."""
        self.phase = "parsing"
        self.layers = ""  # what TensorRT says of the engine's layers, see layers.py
        self.previous_s = _build_time_s(path)
        self.last_level = 4 if verbose else 3
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w")
        self.path = path
        self.start = time.perf_counter()
        self.stop = threading.Event()
        self.ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> BuildLog:
        self.ticker.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop.set()
        self.ticker.join()
        outcome = "built" if kind is None else "failed"
        self.file.write(f"{outcome} in {self.seconds:.1f} s\n")
        self.file.close()

    @property
    def seconds(self) -> float:
        """Time since the build began."""
        return time.perf_counter() - self.start

    def message(self, level: int, text: str) -> None:
        """TensorRT's logger calls this for every message."""
        if level <= self.last_level:
            self.file.write(f"{self.seconds:8.2f} [{LEVELS[level]}] {text}\n")
        if text.startswith("Layers:"):
            self.layers = text
        for words, phase in PHASES:
            if words in text:
                self.phase = phase

    def _tick(self) -> None:
        terminal = sys.stdout.isatty()
        while not self.stop.wait(0.5 if terminal else 15):
            left = f", about {max(self.previous_s - self.seconds, 0):.0f} s left" if self.previous_s else ""
            line = f"  {self.seconds:4.0f} s  {self.phase}{left}"
            print(f"\r{line:<90}" if terminal else line, end="" if terminal else "\n", flush=True)
        if terminal:
            print(f"\r{'':<90}\r", end="", flush=True)


def _build_time_s(path: Path) -> float | None:
    """Seconds that the build took whose log this is; None where there is no such log."""
    if not path.exists():
        return None
    lines = path.read_text(errors="replace").splitlines()
    found = re.fullmatch(r"built in ([0-9.]+) s", lines[-1]) if lines else None
    return float(found[1]) if found else None
