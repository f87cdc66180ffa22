"""How every runner is timed: one protocol, its flags, and the figures of a row."""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from Results.tables import LOCAL
from utils import ROOT, batch_sizes, folder_to_write, from_zero


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


def add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the latency scripts: --batch --data --results, and those of add_timing_arguments."""
    parser.add_argument("--batch", type=batch_sizes, default=[1, 32, 128], metavar="N,N",
                        help="batch sizes (default: 1,32,128)")
    parser.add_argument("--data", type=Path, default=ROOT / "data", metavar="DIR",
                        help="folder of <model>-b<N>.npz files; where there is none for a batch, held-out crops are "
                             "used (default: data/)")
    parser.add_argument("--results", type=folder_to_write, default=str(LOCAL), metavar="DIR",
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


def latency_figures(times_ms: np.ndarray, batch: int) -> dict[str, str]:
    """The latency columns of Results/latency.csv: median, quartiles and p99 in ms, and images/s at the median."""
    median = float(np.median(times_ms))
    return {
        "latency_ms_median": f"{median:.4f}",
        **{f"latency_ms_p{share}": f"{float(np.percentile(times_ms, share)):.4f}" for share in (25, 75, 99)},
        "images_per_s": f"{1000 * batch / median:.1f}",
    }
