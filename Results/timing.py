"""How every runner is timed: one protocol, its flags, and the figures of a row."""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from Results.tables import LOCAL, machine_load, record_latency, write_environment
from utils import ROOT, UserError, batch_sizes, first_line, folder_to_write, from_zero, shown


def timed_runs(run_once_ms: Callable[[], float], *, warmup_runs: int = 10, warmup_s: float | None = None,
               min_runs: int = 100, min_s: float = 2.0) -> np.ndarray:
    """Times of single runs in milliseconds, under the one protocol that every runner here is measured with.

    Warms up, for `warmup_s` seconds or, where that is None, 0.5, but no more than is asked for measuring. Then measures
    until both `min_runs` runs and `min_s` seconds are done. A runner so slow that this would take longer than ten times
    `min_s` stops there, with at least 10 runs (fewer only if `min_runs` is). `run_once_ms` does one run and returns its
    time (CUDA events on a GPU, a clock on a CPU).
    """
    warmup_runs = min(warmup_runs, min_runs)
    warmup_s = min(0.5, min_s) if warmup_s is None else warmup_s
    start, runs = time.perf_counter(), 0
    while runs < warmup_runs or time.perf_counter() - start < warmup_s:
        run_once_ms()
        runs += 1
        if runs >= 3 and time.perf_counter() - start > max(4 * min_s, warmup_s):
            break
    times: list[float] = []
    start = time.perf_counter()
    while True:
        times.append(run_once_ms())
        seconds = time.perf_counter() - start
        if (len(times) >= min_runs and seconds >= min_s) or (seconds >= 10 * min_s and len(times) >= min(10, min_runs)):
            return np.array(times)


def add_measuring_arguments(parser: argparse.ArgumentParser, batch: str) -> None:
    """Add the flags of the latency scripts: --batch --data --results, and those of add_timing_arguments."""
    parser.add_argument("--batch", type=batch_sizes, default=batch, metavar="N,N",
                        help="batch sizes (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=ROOT / "data", metavar="FOLDER",
                        help="folder of <model>-b<N>.npz files; where there is none for a batch, held-out crops are "
                             "used (default: data/)")
    parser.add_argument("--results", type=folder_to_write, default=str(LOCAL), metavar="FOLDER",
                        help="folder of latency.csv and environment/ (default: Results/local/)")
    add_timing_arguments(parser)


def add_timing_arguments(parser: argparse.ArgumentParser, warmup_s: float | None = None) -> None:
    """Add how long is measured: --min-seconds --min-runs --warmup-seconds, of which `warmup_s` is the default."""
    parser.add_argument("--min-seconds", type=from_zero, default=2.0, metavar="S",
                        help="measure each row for at least this long (default: 2)")
    parser.add_argument("--min-runs", type=int, default=100, metavar="N",
                        help="and for at least this many runs, unless that takes ten times --min-seconds "
                             "(default: 100)")
    usual = "0.5, or --min-seconds where that is less" if warmup_s is None else f"{warmup_s:g}"
    parser.add_argument("--warmup-seconds", type=from_zero, default=warmup_s, metavar="S",
                        help=f"run each row for this long before it is measured (default: {usual})")


def timing_of(args: argparse.Namespace) -> dict[str, float | None]:
    """What add_timing_arguments' flags say, as arguments of timed_runs."""
    return {"min_runs": args.min_runs, "min_s": args.min_seconds, "warmup_s": args.warmup_seconds}


class Measurements:
    """The rows that a latency script adds in one run. What fails is told and counted, and the others go on."""

    def __init__(self, results: Path, run: dict[str, str], versions: dict[str, str],
                 failures: tuple[type[Exception], ...]) -> None:
        """Args: run: the columns that all rows share. versions: for the run's environment. failures: see `attempt`."""
        self.results, self.run, self.versions, self.failures = results, run, versions, failures
        self.written = 0
        self.failed: list[str] = []

    def attempt(self, what: str, measure: Callable[[], tuple[np.ndarray, np.ndarray]],
                ) -> tuple[np.ndarray, np.ndarray] | None:
        """The logits and times that `measure` gives; None and a line on stderr where it raises one of `failures`."""
        self.load = machine_load()
        try:
            return measure()
        except self.failures as error:
            self.failed.append(what)
            print(f"{what} failed: {first_line(error)}", file=sys.stderr, flush=True)
            return None

    def counts(self, what: str, output: np.ndarray) -> bool:
        """Whether a time counts: where the output is not finite it is told and counted as failed. Else the row says
        how far off it is."""
        if np.isfinite(output).all():
            return True
        self.failed.append(what)
        print(f"{what} gives NaN or infinity, so its time does not count", file=sys.stderr, flush=True)
        return False

    def record(self, row: dict[str, object]) -> None:
        """Add a row. A run without rows leaves nothing behind."""
        record_latency(self.results, {**self.run, "load": self.load, **row})
        if not self.written:
            write_environment(self.run["run_id"], self.versions, self.results)
        self.written += 1

    def end(self) -> None:
        """Say how many rows there are; UserError where something failed."""
        print(f"wrote {self.written} rows to {shown(self.results / 'latency.csv')}")
        if self.failed:
            raise UserError(f"{len(self.failed)} of {self.written + len(self.failed)} combinations failed: "
                            f"{', '.join(self.failed)}")


def latency_figures(times_ms: np.ndarray, batch: int) -> dict[str, str]:
    """The latency columns of Results/latency.csv: median, quartiles and p99 in ms, and images/s at the median."""
    median = float(np.median(times_ms))
    return {
        "latency_ms_median": f"{median:.4f}",
        **{f"latency_ms_p{share}": f"{float(np.percentile(times_ms, share)):.4f}" for share in (25, 75, 99)},
        "images_per_s": f"{1000 * batch / median:.1f}",
    }
