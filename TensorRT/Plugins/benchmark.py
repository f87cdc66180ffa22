"""Every kernel by itself, at the shapes of Small V1 and V2, beside PyTorch's way to do the same work.

    python TensorRT/Plugins/benchmark.py --minutes 6         # needs a GPU; appends to Results/local/kernels.csv
    python TensorRT/Plugins/benchmark.py --list              # what there is to measure, without a GPU
    python TensorRT/Plugins/benchmark.py --kernel 'SwinLinear*,SwinMlp' --batch 32

kernel_table.py holds the table of kernels. Each runner of a kernel (swin-plugins, and its peers in PyTorch) is first
compared with the kernel's formula in FP64 on the same input, then timed with CUDA events around CUDA graphs of many
runs. Copies of the tensors are taken in turn, so that together they are three times as large as the L2 cache and no run
finds its input there (in a network, it finds there what the kernel before has written: layers are a little faster). At
the batches of --power-batch (128) swin-plugins runs for half a second besides, and nvidia-smi says the power and the
clock meanwhile. torch.compile, which takes seconds a shape, is measured at the batches of --compile-batch (32), last.

A runner that does a part of the work only says so in the column `part`; PyTorch's attentions are given q, k and v in
windows already, and in V2 normalised (`input_layout`), so their times leave out copies that ours does not need.

A row counts each input read once and each output written once, and the operations of matrix products; fractions are of
what this card reaches in the same run: a large copy, and a large product in the type (PyTorch's). The error is the
largest absolute one of all outputs, of INT8 ones in what they stand for, so half a step and more.

A run that stopped, or that --minutes has ended, goes on where it was: RUN_ID=<its id> and the same command.
"""
from __future__ import annotations

import argparse
import fnmatch
import math
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from Results.tables import LOCAL, append_rows, git_commit, gpu_name, new_run_id, read_rows, write_environment
from TensorRT.Plugins.kernel_table import (
    KERNELS,
    OURS,
    Case,
    Kernel,
    Outputs,
    Peer,
    Tensors,
    cases,
    converted,
    draw,
    read_network,
)
from TensorRT.Plugins.swin_kernels import c_interface as kernels
from utils import ROOT, Progress, UserError, batch_sizes, existing_file, from_zero, run_script, shown

COLUMNS = (
    "run_id", "commit", "gpu", "kernel", "layer", "model", "stage", "batch", "side", "in_features", "out_features",
    "window_size", "shift_size", "precision", "runner", "part", "input_layout", "input_sets", "time_us_median",
    "sustained_us", "power_w", "clock_mhz", "bytes", "operations", "gb_per_s", "bandwidth_fraction", "tflop_per_s",
    "arithmetic_fraction", "max_abs_err",
)
KEY = ("kernel", "layer", "model", "stage", "batch", "precision", "runner")  # of a row within its run

BEYOND_L2 = 3  # times its size: all sets of tensors together
MOST_SETS = 64
GRAPH_US, MEASURE_US = 2e3, 3e4  # of runs in a CUDA graph, and of its replays
SUSTAIN_S, SETTLE_S, SAMPLE_S = 0.5, 0.2, 0.05
START_S = 5  # that nvidia-smi may take to begin
# An error that is a mistake, as a share of the largest number; tests/test_kernels_gpu.py and test_int8_kernels_gpu.py
# are stricter. INT8 rounds up to three times on the way (qkv, attention's result, y), each by a step at most where the
# FP64 formula rounds the other way. Errors grow through 24 blocks; INT8's come of quantisation.
WRONG, WRONG_BLOCKS, WRONG_STEPS = ({"fp32": 2.0**-18, "fp16": 2.0**-7, "int8": 2.0**-7},
                                    {"fp16": 2.0**-4, "int8": 1.0}, 3.0)

# FP32 is held against products of TF32, of which it takes three on tensor cores: a third is all there is.
PEAKS = {"copy": "copy_gb_per_s", "fp32": "tf32_product_tflop_per_s", "fp16": "fp16_product_tflop_per_s",
         "int8": "int8_product_tflop_per_s"}


class Timing(NamedTuple):
    """Median time of one run in microseconds; while it went on for long its time, the power and the clock, or None."""

    us: float
    sustained_us: float | None = None
    power_w: float | None = None
    clock_mhz: float | None = None


# --- the GPU ---------------------------------------------------------------------------------------------------------

class Samples:
    """Power in W and clock of the multiprocessors in MHz, by nvidia-smi, every SAMPLE_S from the first use on."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float, float]] = []  # when, power, clock
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid).removeprefix("GPU-")
        try:
            self.process = subprocess.Popen(
                ["nvidia-smi", "-i", f"GPU-{uuid}", "--query-gpu=power.draw.instant,clocks.sm",
                 "--format=csv,noheader,nounits", "-lms", str(round(1000 * SAMPLE_S))],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except FileNotFoundError:
            print("no nvidia-smi: power and clock stay empty")
            self.process = None
            return
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            figures = re.fullmatch(r"([\d.]+), ([\d.]+)\n", line)
            if figures:  # not [N/A]
                self.found.append((time.perf_counter(), *map(float, figures.groups())))

    def wait(self) -> None:
        """Until the first sample is there, for some seconds at most."""
        begin = time.perf_counter()
        while self.process is not None and not self.found and time.perf_counter() - begin < START_S:
            time.sleep(SAMPLE_S)

    def since(self, begin: float) -> tuple[float | None, float | None]:
        """Medians of what was sampled since then, None where nothing was."""
        found = [sample[1:] for sample in self.found if sample[0] >= begin]
        return tuple(map(statistics.median, zip(*found))) if found else (None, None)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


class Gpu:
    """Times what runs on the current GPU."""

    device = "cuda"

    def __init__(self) -> None:
        self.cache_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self.samples: Samples | None = None

    def time(self, runs: list[Callable[[], object]], sustain: bool = False) -> Timing:
        """The time of one of `runs`, which do the same on tensors of their own."""
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):  # not captured: modules are loaded, algorithms are chosen
            for run in [*runs[:2], *runs]:
                run()
            side.synchronize()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for run in runs:
                run()
            end.record()
        end.synchronize()
        rough_us = max(1000 * begin.elapsed_time(end) / len(runs), 1.0)
        rounds = math.ceil(min(GRAPH_US / rough_us, 200) / len(runs))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                for run in runs:
                    run()
        count = rounds * len(runs)
        times = self._replays(graph, max(5, min(50, int(MEASURE_US / (rough_us * count)))))
        us = statistics.median(times[2:]) / count
        if not sustain:
            return Timing(us)
        if self.samples is None:
            self.samples = Samples()
            self.samples.wait()
        started, times = time.perf_counter(), []
        while time.perf_counter() - started < SETTLE_S:
            self._replays(graph, max(1, int(MEASURE_US / (us * count))))
        settled = time.perf_counter()
        while time.perf_counter() - started < SUSTAIN_S:
            times += self._replays(graph, max(1, int(MEASURE_US / (us * count))))
        return Timing(us, statistics.median(times) / count, *self.samples.since(settled))

    @staticmethod
    def _replays(graph: torch.cuda.CUDAGraph, count: int) -> list[float]:
        """Microseconds of each of so many replays, asked for in one go."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            graph.replay()
            event.record()
        events[-1].synchronize()
        return [1000 * begin.elapsed_time(end) for begin, end in zip(events, events[1:])]

    def measured_peaks(self) -> dict[str, float]:
        """GB/s of a kernel that copies, read and written; TFLOP/s of products of 8192^3 random numbers by type.

        Not Tensor.copy_: in a CUDA graph that is a memory copy node, which was a third slower than a kernel on an H200.
        """
        source = torch.randn(2**30, device=self.device, dtype=torch.half)
        target = torch.empty_like(source)
        copy = self.time([lambda: torch.neg(source, out=target)]).us
        a, b = (torch.randn(8192, 8192, device=self.device, dtype=torch.half) for _ in range(2))
        out = torch.empty_like(a)
        fp16 = self.time([lambda: torch.mm(a, b, out=out)]).us
        a_32, b_32, out_32 = a.float(), b.float(), out.float()
        torch.backends.cuda.matmul.allow_tf32 = True
        tf32 = self.time([lambda: torch.mm(a_32, b_32, out=out_32)]).us
        torch.backends.cuda.matmul.allow_tf32 = False
        a_q, b_q = ((32 * x).round().clamp(-127, 127).to(torch.int8) for x in (a, b))
        int8 = self.time([lambda: torch._int_mm(a_q, b_q.T)]).us
        products = {"fp32": tf32, "fp16": fp16, "int8": int8}
        return {"copy": 4 * source.numel() / copy / 1e3,
                **{precision: 2 * 8192**3 / us / 1e6 for precision, us in products.items()}}

    def stop(self) -> None:
        if self.samples is not None:
            self.samples.stop()


# --- one case --------------------------------------------------------------------------------------------------------

def drawn(case: Case, device: str, cache_bytes: int) -> list[Tensors]:
    """Sets of the tensors of a case with the same numbers in them, outputs poisoned."""
    generator = torch.Generator(device).manual_seed(0)
    first = {name: draw(spec, generator) for name, spec in case.tensors.items()}
    for name, spec in case.tensors.items():
        if spec.output:
            first[name].fill_(-77 if spec.dtype == torch.int8 else math.nan)
    count = math.ceil(BEYOND_L2 * cache_bytes / case.bytes) if case.kernel.rotate else 1
    return [first, *({name: x.clone() for name, x in first.items()} for _ in range(min(count, MOST_SETS) - 1))]


def outputs_of(case: Case, peer: Peer, prepared: Tensors) -> Outputs:
    """What a runner computes, as the kernel would give it."""
    given = peer.run(case.place, prepared)
    if given is None:
        given = tuple(prepared[name] for name, spec in case.tensors.items() if spec.output)
    return peer.restore(case.place, given) if peer.restore else given


def error_of(case: Case, outputs: Outputs, reference: Outputs, part: bool) -> tuple[float, float]:
    """Largest absolute error, and how much would be wrong. NaN in an output makes the error NaN.

    Args:
        part: the runner does a part of the work, whose result is compared as it is.
    """
    specs = [spec for spec in case.tensors.values() if spec.output]
    worst, limit = 0.0, 0.0
    step = max((spec.step for spec in specs if spec.dtype == torch.int8), default=0.0)
    for y, exact, spec in zip(outputs, reference, specs, strict=True):
        y = y.double()
        if spec.dtype == torch.int8 and not part:
            y, exact = y * spec.step, exact.clamp(-128 * spec.step, 127 * spec.step)
        error = (y.reshape(exact.shape) - exact).abs().max().item()
        worst = error if not error <= worst else worst
        share = (WRONG if case.kernel.rotate else WRONG_BLOCKS)[case.kernel.precision]
        limit = max(limit, share * exact.abs().max().item() + WRONG_STEPS * step)
    return worst, limit


def measure(case: Case, names: Iterable[str], gpu: Gpu, sustained: bool) -> Iterable[tuple[str, Timing, float, int]]:
    """Runner, timing, error and number of sets of each runner by these names that runs.

    Raises:
        UserError: our kernel's result is wrong.
    """
    place, references = case.place, {}
    sets = drawn(case, gpu.device, gpu.cache_bytes)
    exact = converted(sets[0], torch.double)
    label = label_of(case)
    for name in names:
        peer = case.runners[name]
        formula = peer.formula or case.kernel.formula
        if formula not in references:
            references[formula] = formula(place, exact)
        if peer.compiled:
            torch.compiler.reset()  # nothing is kept of the shapes before, nor counted against this one
            peer = replace(peer, run=torch.compile(peer.run, dynamic=False))
        try:
            prepared = [peer.prepare(place, t) for t in sets]
            error, limit = error_of(case, outputs_of(case, peer, prepared[0]), references[formula], bool(peer.part))
            if name == OURS and not error <= limit:
                raise UserError(f"{label}: the kernel's result is off by {error:.3g}, where {limit:.3g} would be wrong")
            timing = gpu.time([partial(peer.run, place, t) for t in prepared], sustained and name == OURS)
        except RuntimeError as problem:
            if name == OURS:
                raise
            print(f"{label} {name}: does not run: {str(problem).splitlines()[0]}", flush=True)
            continue
        yield name, timing, error, len(sets)


def label_of(case: Case) -> str:
    place = case.place
    return f"b{place.batch} {place.model} {case.kernel.id} [{place.side}x{place.side}, {place.channels}]"


# --- rows ------------------------------------------------------------------------------------------------------------

def row_of(case: Case, name: str, timing: Timing, error: float, sets: int, peaks: dict[str, float]) -> dict[str, str]:
    """The columns of a measurement but for run_id, commit and gpu."""
    place, kernel = case.place, case.kernel
    inputs, outputs = kernel.features(place)
    gb, tflop = case.bytes / timing.us / 1e3, case.operations / timing.us / 1e6

    def text(figure: float | None, form: str) -> str:
        return "" if figure is None else format(figure, form)

    return {
        "kernel": kernel.name, "layer": kernel.layer, "model": place.model,
        "stage": str(place.stage + 1) if kernel.rotate else "", "batch": str(place.batch), "side": str(place.side),
        "in_features": str(inputs), "out_features": str(outputs),
        "window_size": str(place.window) if kernel.windows else "",
        "shift_size": str(place.shift) if kernel.windows else "",
        "precision": kernel.precision, "runner": name, "part": case.runners[name].part,
        "input_layout": case.runners[name].input_layout,
        "input_sets": str(sets), "time_us_median": f"{timing.us:.2f}", "sustained_us": text(timing.sustained_us, ".2f"),
        "power_w": text(timing.power_w, ".0f"), "clock_mhz": text(timing.clock_mhz, ".0f"), "bytes": str(case.bytes),
        "operations": str(case.operations), "gb_per_s": f"{gb:.0f}", "bandwidth_fraction": f"{gb / peaks['copy']:.3f}",
        "tflop_per_s": f"{tflop:.1f}", "arithmetic_fraction": f"{tflop / peaks[kernel.precision]:.3f}",
        "max_abs_err": f"{error:.3g}",
    }


def key_of(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[column] for column in KEY)


def rows_of_run(path: Path, run_id: str) -> set[tuple[str, ...]]:
    """Keys of the rows that a run has in a table already."""
    return {key_of(row) for row in read_rows(path, KEY) if row["run_id"] == run_id}


def peaks_of_run(results: Path, run_id: str) -> dict[str, float] | None:
    """The peaks that an interrupted run has measured."""
    path = results / "environment" / f"{run_id}.txt"
    text = path.read_text() if path.exists() else ""
    found = {name: re.findall(rf"^{line}: ([\d.]+)$", text, re.MULTILINE) for name, line in PEAKS.items()}
    return {name: float(figures[-1]) for name, figures in found.items()} if all(found.values()) else None


# --- what is asked for -----------------------------------------------------------------------------------------------

class Task(NamedTuple):
    """Runners of a case that are measured after each other; those that torch.compile makes are tasks of their own."""

    case: Case
    runners: list[str]
    compiled: bool
    sustained: bool


def chosen_kernels(patterns: str) -> list[Kernel]:
    """The kernels whose name, or name/layer, one of the patterns with commas between matches.

    Raises:
        UserError: a pattern that matches none.
    """
    found = []
    for pattern in filter(None, patterns.split(",")):
        those = [kernel for kernel in KERNELS
                 if fnmatch.fnmatchcase(kernel.name, pattern) or fnmatch.fnmatchcase(kernel.id, pattern)]
        if not those:
            raise UserError(f"--kernel {pattern}: matches none of {', '.join(sorted({k.name for k in KERNELS}))}")
        found += those
    return [kernel for kernel in KERNELS if kernel in found]


def tasks_of(all_cases: Iterable[Case], runners: str, compile_batches: list[int], power_batches: list[int],
             done: set[tuple[str, ...]]) -> list[Task]:
    """What is left to measure: everything that needs no compilation first."""
    plain, compiled = [], []
    for case in all_cases:
        def is_left(name: str, case: Case = case) -> bool:
            row = row_of(case, name, Timing(1.0), 0.0, 1, dict.fromkeys(PEAKS, 1.0))
            return key_of(row) not in done and any(fnmatch.fnmatchcase(name, one) for one in runners.split(","))

        left = [name for name in case.runners if is_left(name)]
        slow = [name for name in left if case.runners[name].compiled]
        fast = [name for name in left if name not in slow]
        batch = case.place.batch
        if fast:
            plain.append(Task(case, fast, False, batch in power_batches and OURS in fast))
        if slow and batch in compile_batches:
            compiled.append(Task(case, slow, True, False))
    return plain + compiled


def guessed_s(task: Task) -> float:
    """Seconds, roughly: what is left is told by how a run so far compares with this."""
    return 4.0 * len(task.runners) if task.compiled else 0.1 * len(task.runners) + (SUSTAIN_S if task.sustained else 0)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=batch_sizes, default=[1, 8, 32, 128], metavar="N,N",
                        help="batch sizes (default: 1,8,32,128)")
    parser.add_argument("--kernel", default="*", metavar="PATTERNS",
                        help="plugin nodes, or node/layer, with commas between; * stands for anything (default: all)")
    parser.add_argument("--runner", default="*", metavar="PATTERNS",
                        help=f"{OURS}, torch-eager ..., likewise (default: all)")
    parser.add_argument("--cfg", type=Path, nargs="+", metavar="YAML",
                        default=[ROOT / "models" / "swin.yaml", ROOT / "models" / "swinv2.yaml"],
                        help="networks whose shapes are measured (default: Small V1 and V2)")
    parser.add_argument("--compile-batch", type=batch_sizes, default=[32], metavar="N,N",
                        help="batch sizes at which torch.compile is measured as well (default: 32)")
    parser.add_argument("--power-batch", type=batch_sizes, default=[128], metavar="N,N",
                        help="batch sizes at which power and clock are measured (default: 128)")
    parser.add_argument("--minutes", type=from_zero, default=math.inf, metavar="M",
                        help="stop after so long; the run can go on later (default: no limit)")
    parser.add_argument("--results", type=Path, default=LOCAL, metavar="DIR",
                        help="folder of kernels.csv and environment/ (default: Results/local/)")
    parser.add_argument("--list", action="store_true", help="print what would be measured, and measure nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None, gpu: Gpu | None = None) -> None:
    begun = time.perf_counter()
    args, run_id = parsed(arguments), new_run_id()
    table = args.results / "kernels.csv"
    networks = [read_network(existing_file(path, "a model's yaml (--cfg)")) for path in args.cfg]
    tasks = tasks_of(cases(networks, args.batch, chosen_kernels(args.kernel)), args.runner, args.compile_batch,
                     args.power_batch, rows_of_run(table, run_id))
    if args.list:
        for task in tasks:
            print(f"{label_of(task.case)}: {task.case.bytes / 1e6:.2f} MB, {task.case.operations / 1e9:.3f} GFLOP, "
                  f"{task.case.kernel.precision}: {', '.join(task.runners)}")
        print(f"{sum(len(task.runners) for task in tasks)} measurements")
        return
    if not tasks:
        raise UserError(f"nothing to measure: run {run_id} has these rows in {shown(table)}, or no runner of that name")
    if gpu is None and not torch.cuda.is_available():
        raise UserError("no GPU that PyTorch can use; run this on a GPU host (--list needs none)")
    if gpu is None:
        load_kernels()
    gpu = gpu or Gpu()
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.no_grad():
        try:
            run_all(tasks, gpu, table, run_id, begun + 60 * args.minutes)
        finally:
            gpu.stop()


def load_kernels() -> None:
    """Load libswin_kernels.so, or make it.

    Raises:
        UserError: that went wrong.
    """
    try:
        kernels.library()
    except kernels.LibraryError as problem:
        raise UserError(str(problem)) from problem


def run_all(tasks: list[Task], gpu: Gpu, table: Path, run_id: str, until: float) -> None:
    """Measure the tasks in order, a case's rows written as soon as they are there."""
    results = table.parent
    peaks = peaks_of_run(results, run_id)
    if peaks is None:
        peaks = gpu.measured_peaks()
        write_environment(run_id, {"torch": torch.__version__, **{
            line: f"{peaks[name]:.0f}" for name, line in PEAKS.items()}}, results)
    common = {"run_id": run_id, "commit": git_commit(), "gpu": gpu_name()}
    print(f"run {run_id}, {common['gpu']}: copy {peaks['copy']:.0f} GB/s, product {peaks['fp16']:.0f} TFLOP/s in FP16, "
          f"{peaks['int8']:.0f} in INT8, {peaks['fp32']:.0f} in TF32", flush=True)
    progress = Progress(sum(map(guessed_s, tasks)), "guessed seconds")
    wrong, count = [], 0
    for done, task in enumerate(tasks):
        if time.perf_counter() > until:
            print(f"the time is over: {done} of {len(tasks)} cases done{f', {progress.left}' if done else ''}; for the "
                  f"rest: RUN_ID={run_id} and the same command")
            break
        rows = []
        try:
            for name, timing, error, sets in measure(task.case, task.runners, gpu, task.sustained):
                rows.append({**common, **row_of(task.case, name, timing, error, sets, peaks)})
                print(line_of(task.case, rows[-1]), flush=True)
        except UserError as problem:
            wrong.append(str(problem))
            print(problem, flush=True)
        append_rows(table, COLUMNS, rows)
        count += len(rows)
        progress.done(guessed_s(task))
    print(f"appended {count} rows to {shown(table)}")
    if wrong:
        raise UserError(f"{len(wrong)} results are wrong and have no rows: {'; '.join(wrong)}")


def line_of(case: Case, row: dict[str, str]) -> str:
    power = f"  {row['sustained_us']} us at {row['power_w']} W, {row['clock_mhz']} MHz" if row["sustained_us"] else ""
    return (f"{label_of(case):62} {row['runner']:18} {row['time_us_median']:>9} us  {row['gb_per_s']:>5} GB/s "
            f"({float(row['bandwidth_fraction']):4.0%})  {row['tflop_per_s']:>6} TFLOP/s "
            f"({float(row['arithmetic_fraction']):4.0%})  error {row['max_abs_err']}{power}")


if __name__ == "__main__":
    run_script(main)
