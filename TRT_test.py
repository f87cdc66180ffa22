"""Error and latency of TensorRT engines against the outputs of the FP32 ONNX model, batch by batch.

    python TRT_test.py --plan TensorRT/TRT_Engine/swinv1_attention_fp16.plan

Runs in the Python that has TensorRT. The .json beside an engine says what the engine is; without one, the engine itself
is asked. Its name says nothing. data/batch_data_gen.py wrote the inputs and expected logits, with the FP32 graph that
the engine was made from; they are found by the digest of that graph. Prints a table, writes it to encoderScore.txt, and
adds a row per batch to latency.csv, both in Results/local/; to sizes.csv, with the images' size, for an engine that
takes several. Of several outputs a row shows the one that is furthest off. Exits with status 1 if a check fails.

    python TRT_test.py --memory --plan TensorRT/TRT_Engine/swinv1_fp16.plan \\
        TensorRT/TRT_Engine/swinv1_attention_fp16.plan

measures the device memory of engines instead, adds it to memory.csv, and says PASS where a patched engine needs
no more than the unpatched one, else FAIL. Nothing else may run on the GPU meanwhile.
"""
from __future__ import annotations

# --- edit here; a flag of the same name overrides each line ---
PLAN = ["TensorRT/TRT_Engine/swinv1.plan"]  # engines to test; each path is from the repository's root
DATA = "data"                               # folder of the data files, or one of them
BATCH = ""                                  # e.g. "1,32"; "": all that there is data of
TOLERANCE = ""                              # largest error of a logit, e.g. "0.05"; "": see FP32_TOLERANCE and so on
RESULTS = "Results/local"                   # where the tables go
# --------------------------------------------------------------

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.batches import Batch, data_of, load_batch
from graphs.compare import max_abs_err, median_rel_err
from graphs.facts import Facts
from Results.tables import (
    LATENCY_COLUMNS,
    MEMORY_COLUMNS,
    SIZES_COLUMNS,
    append_rows,
    error_figures,
    file_columns,
    git_commit,
    gpu_name,
    graph_columns,
    machine_load,
    new_run_id,
    tensorrt_backend,
    write_environment,
)
from Results.timing import add_timing_arguments, latency_figures, timed_runs, timing_of
from TensorRT.backend import add_backend_argument, add_plugins_argument
from utils import (
    ROOT,
    UserError,
    batch_sizes,
    existing_file,
    folder_to_write,
    from_zero,
    image_sizes,
    run_script,
    shown,
    whole_file,
)

# Largest absolute error that passes. FP32 without TF32: the requirement on this project's engines. FP16, as a share
# of the largest |logit|: a value is rounded by at most 2^-11 of itself, some hundred roundings lie between image and
# logit, and their errors add up like a random walk, 2^-11 * sqrt(400) = 1 %. Whether an FP16 engine is as good as
# PyTorch in FP16 is for test_swinV2.py to say. INT8, as a multiple of what quantisation itself does, which is the error
# of the Q/DQ graph that the engine was made from: that once, and another 1.5 times by which add_int8.py lets the graph
# of INT8 nodes differ from it.
FP32_TOLERANCE = 1e-4
FP16_TOLERANCE_SHARE = 0.01
INT8_TOLERANCE_MULTIPLE = 2.5

TF32_NOTE = ("TensorRT-RTX 1.6.1 multiplies FP32 in TF32, with --noTF32 as well: errors of up to {limit} can come of "
             "that (TensorRT/VERSIONS.md)")
TABLE_HEAD = """\
bs: batch size; graph: run as a CUDA graph; lt: latency, median, ms; tp: throughput, images/s;
a0: maximum absolute error of the logits; r0: median relative error; check: a0 at most {tolerance}
----+------+---------+----------+----------+----------+------
  bs| graph|       lt|        tp|        a0|        r0| check
----+------+---------+----------+----------+----------+------"""


class Row(NamedTuple):
    """One line of the table."""

    batch: int
    graph: bool
    times_ms: np.ndarray
    output: np.ndarray
    expected: np.ndarray
    check: str
    size: str = ""  # of the images, HxW


def find_batches(plan: Path, facts: Facts, data: str | Path | None = None) -> list[Batch]:
    """The data files for an engine, smallest batch first.

    Args:
        plan: the engine.
        facts: what it is.
        data: a folder, relative to the repository's root or absolute, of which those files count that were made with
            the FP32 graph that the engine was made from, or with another export of the same weights; or one file;
            None for DATA.

    Raises:
        UserError: there are none, or the file was made with another graph.
    """
    data = ROOT / DATA if data is None else Path(data) if Path(data).exists() else ROOT / data
    if not data.exists():
        raise UserError(f"{shown(data)}: no such file or folder; data/batch_data_gen.py writes data/<model>-b<N>.npz")
    if not data.is_file():
        batches = data_of(facts, data)
        if not batches:
            made_from = facts.parents[-1].name if facts.parents else "the FP32 graph that it was made from"
            unknown = "" if facts.family[1:] or facts.weights else (
                "; nothing says what that was: build the engine with TensorRT/build.sh, or give --data")
            raise UserError(f"{shown(plan)}: {shown(data)} has no data of its model; data/batch_data_gen.py --onnx "
                            f"FILE makes it with {made_from}{unknown}")
        return batches
    batch = load_batch(data)
    if facts.weights and batch.facts.weights and not (
            facts.made_from(batch.facts) or facts.of_same_weights(batch.facts)):
        raise UserError(f"{shown(data)}: was made with another graph than {shown(plan)}, of model "
                        f"{batch.facts.model_of(data)}; give the data of {facts.model_of(plan)} with --data")
    return [batch]


def chosen_batches(plan: Path, facts: Facts, arguments: argparse.Namespace) -> list[Batch]:
    """The data files for an engine that --data and --batch choose; UserError if a batch is missing.

    An engine of a fixed batch takes that, unless --batch says otherwise.
    """
    batches = find_batches(plan, facts, arguments.data)
    asked = arguments.batch or ([facts.batch] if facts.batch else None)
    if arguments.sizes:
        missing_sizes = set(arguments.sizes) - {batch.size for batch in batches}
        if missing_sizes:
            height, width = min(missing_sizes)
            raise UserError(f"{shown(plan)}: no data of images of {height}x{width}; data/batch_data_gen.py --size "
                            f"{height}x{width} writes it")
        batches = [batch for batch in batches if batch.size in arguments.sizes]
    if asked is None:
        return batches
    missing = set(asked) - {len(batch.input) for batch in batches}
    if missing:
        raise UserError(f"{shown(plan)}: no data of batch {min(missing)}; data/batch_data_gen.py --batch "
                        f"{min(missing)} writes it")
    return [batch for batch in batches if len(batch.input) in asked]


def tolerance(plan: Path, facts: Facts, given: float | None, batches: list[Batch]) -> float:
    """Largest absolute error that passes for this plan."""
    if given is not None:
        return given
    if facts.precision == "fp32":
        return FP32_TOLERANCE
    if facts.precision == "fp16":
        return limit_of_11_bits(batches)
    if facts.precision == "int8":
        return INT8_TOLERANCE_MULTIPLE * int8_error(plan, facts, batches)
    raise UserError(f"{shown(plan)}: no default tolerance for {facts.precision}; give --tolerance")


def limit_of_11_bits(batches: list[Batch]) -> float:
    """Largest absolute error of a logit that rounding to 11 significant bits may make: FP16 has so many, and TF32."""
    return FP16_TOLERANCE_SHARE * max(float(np.abs(batch.logits).max()) for batch in batches)


def int8_error(plan: Path, facts: Facts, batches: list[Batch]) -> float:
    """Largest error of a logit that quantisation makes: the Q/DQ graph's against the FP32 graph's, on the same images.

    Args:
        plan, facts: the engine.
        batches: data of the FP32 graph.
    Raises:
        UserError: there is no data of the Q/DQ graph that the engine was made from.
    """
    exact = {batch.input.shape: batch for batch in [*batches, *data_of(facts, ROOT / "data")]}
    errors = [max_abs_err(batch.logits, exact[batch.input.shape].logits)
              for batch in data_of(facts, ROOT / "data", "int8")
              if batch.input.shape in exact and np.array_equal(batch.input, exact[batch.input.shape].input)]
    if not errors:
        graphs = ", ".join(parent.name for parent in facts.parents) or "it was made from"
        raise UserError(f"{shown(plan)}: what error INT8 may have is known by data of its Q/DQ graph; write it with "
                        f"data/batch_data_gen.py --onnx FILE, of {graphs} the one with Q/DQ pairs, or give "
                        "--tolerance")
    return max(errors)


def check(batch: Batch, output: np.ndarray, allowed: float, expected: np.ndarray | None = None) -> str:
    """"good", or what is wrong with an output; `expected` where it is another than the logits."""
    if not np.isfinite(batch.input).all():
        return "NaN in input"
    if not np.isfinite(output).all():
        return "NaN in output"
    return "good" if max_abs_err(output, batch.logits if expected is None else expected) <= allowed else "bad"


def worst_output(outputs: dict[str, np.ndarray], expected: dict[str, np.ndarray], batch: Batch, plan: Path
                 ) -> tuple[np.ndarray, np.ndarray]:
    """Of several outputs, such as feature maps, the one that is furthest off as a share of its largest number, and what
    is expected of it."""
    found = []
    for name, wanted in expected.items():
        output = outputs.get(name)
        if output is None or output.shape != wanted.shape:
            what = "none" if output is None else list(output.shape)
            raise UserError(f"{shown(batch.path)}: expects {name} {list(wanted.shape)}, {shown(plan)} gives {what}; "
                            "this is the data of another model")
        share = max_abs_err(output, wanted) / (float(np.abs(wanted).max()) or 1.0)
        found.append((not np.isfinite(share), share, output, wanted))  # NaN is the worst of all
    return max(found, key=lambda item: item[:2])[2:]


def measure(context, batch: Batch, allowed: float, graph: bool, **timing: float) -> Row:
    """Run one batch on an execution context: its output, the check, and its times by `timed_runs(**timing)`."""
    context.release_graph()
    plan = context.engine.plan if batch.outputs else Path()

    def checked(outputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return worst_output(outputs, dict(batch.outputs), batch, plan)

    if batch.outputs:
        output, expected = checked(context.infer_all(batch.input))
    else:
        output, expected = context.infer(batch.input), batch.logits
    if output.shape != expected.shape:
        raise UserError(f"{shown(batch.path)}: expects logits {list(batch.logits.shape)}, the engine gives "
                        f"{list(output.shape)}; this is the data of another model")
    if graph:
        context.capture()
        context.run()
        found = context.download()
        output, expected = checked(found) if batch.outputs else (*found.values(), expected)
    times_ms = timed_runs(context.timed_run_ms, **timing)
    # Feature maps are of different magnitude: each has the share that the first has.
    allowed *= float(np.abs(expected).max()) / float(np.abs(batch.logits).max()) if batch.outputs else 1
    return Row(len(batch.input), graph, times_ms, output, expected, check(batch, output, allowed, expected),
               "x".join(map(str, batch.size)))


def table_line(row: Row, sizes: bool = False) -> str:
    """One line of the table, as wide as TABLE_HEAD; with the images' size after it where there are several."""
    figures = latency_figures(row.times_ms, row.batch)
    size = f" {row.size}" if sizes else ""
    return (f"{row.batch:4}|{'yes' if row.graph else 'no':>6}|{float(figures['latency_ms_median']):9.3f}|"
            f"{float(figures['images_per_s']):10.1f}|{max_abs_err(row.output, row.expected):10.3e}|"
            f"{median_rel_err(row.output, row.expected):10.3e}| {row.check}{size}")


def latency_row(row: Row, plan: Path, facts: Facts, batch: Batch) -> dict[str, str]:
    """The row's columns of Results/latency.csv, but for those that name the run and the machine's load."""
    return {
        "device": "cuda", "runner": "trt-plugins" if facts.patched else "trt", **file_columns(facts, plan),
        **graph_columns(facts), "cuda_graph": "yes" if row.graph else "no", "mode": "", "timed_by": "events",
        "batch": str(row.batch), **latency_figures(row.times_ms, row.batch), "images": str(len(row.expected)),
        "errors_against": f"{batch.facts.model_of(batch.path)}.onnx", **error_figures(row.output, row.expected),
        "check": row.check,
    }


def score_engine(plan: Path, arguments: argparse.Namespace, run: dict[str, str],
                 versions: Callable[[], dict[str, str]]) -> tuple[list[str], list[Row]]:
    """Test one engine: prints its table, adds to Results/latency.csv. Returns the table's lines and its rows.

    What `versions` tells goes to the run's environment before the first row, which so has it whatever comes after.
    """
    from TensorRT.engine import Engine

    lines, rows = [], []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    with Engine(plan, arguments.plugins) as engine, engine.context() as context:
        facts = engine.facts()
        batches = chosen_batches(plan, facts, arguments)
        allowed = tolerance(plan, facts, arguments.tolerance, batches)
        smallest, largest = engine.batches
        sizes = ", images of " + " to ".join("x".join(map(str, shape[1:])) for shape in engine.profile[::2]) if (
            engine.open_sizes) else ""
        say(f"{shown(plan)}: {facts.precision}, {'trt-plugins' if facts.patched else 'trt'}, batches {smallest} to "
            f"{largest}{sizes}")
        if facts.precision == "fp32" and "tensorrt-rtx" in versions():
            say(TF32_NOTE.format(limit=f"{limit_of_11_bits(batches):.1e}"))
        say(TABLE_HEAD.format(tolerance=f"{allowed:.1e}"))
        write_environment(run["run_id"], versions(), arguments.results)
        run = {**run, "backend": tensorrt_backend(versions())}
        for batch in batches:
            for graph in (False, True):
                load = machine_load()
                rows.append(measure(context, batch, allowed, graph, **timing_of(arguments)))
                record = {**run, "load": load, **latency_row(rows[-1], plan, facts, batch)}
                if engine.open_sizes:
                    table, columns, record["image"] = "sizes.csv", SIZES_COLUMNS, rows[-1].size
                else:
                    table, columns = "latency.csv", LATENCY_COLUMNS
                append_rows(arguments.results / table, columns, [record])  # at once: what is stopped keeps it
                say(table_line(rows[-1], engine.open_sizes))
    return lines, rows


# --- device memory -------------------------------------------------------------------------------------------


def measure_memory(plan: Path, batches: list[int], plugins: str | None) -> list[dict[str, str]]:
    """Device memory of one engine at each batch: the measured columns of Results/memory.csv.

    device_memory_mib is what TensorRT plans for the activations of a context; TensorRT 8.6 plans for the largest batch
    of the profile whatever the batch. free_memory_used_mib is by how much the free memory of the GPU falls from before
    the plan is loaded until after a run: weights, activations, input and output together. Kernels' code, which CUDA
    loads in the first run of a process and keeps, is in neither.
    """
    from TensorRT.engine import Engine
    from TensorRT.trt_runtime import free_memory

    def run(engine: Engine, batch: int) -> int:
        """Free memory after a run in a context of its own, bytes."""
        with engine.context() as context:
            context.set_batch(batch)
            context.run()
            context.synchronize()
            return free_memory()

    with Engine(plan, plugins) as engine:
        for batch in batches:  # a kernel may serve one batch and not another
            run(engine, batch)
        facts = engine.facts()
    before = free_memory()
    with Engine(plan, plugins) as engine:
        return [{**file_columns(facts, plan), "batch": str(batch),
                 "device_memory_mib": f"{engine.activation_bytes(batch) / 2**20:.1f}",
                 "free_memory_used_mib": f"{(before - run(engine, batch)) / 2**20:.1f}"} for batch in batches]


def compare_memory(rows: list[dict[str, str]]) -> tuple[list[str], list[str]]:
    """A table of the rows, and for each patched engine a line PASS or FAIL where the unpatched one is there too.

    The unpatched one is of the same model in the same precision.

    Returns:
        The lines, and those of them that say FAIL.
    """
    def unpatched(row: dict[str, str]) -> float | None:
        """What the unpatched engine uses at this batch, MiB; None for an unpatched one, or where it is not there."""
        key = (row["model"], row["precision"], row["batch"])
        return None if row["patched"] == "no" else next(
            (float(other["free_memory_used_mib"]) for other in reversed(rows)
             if other["patched"] == "no" and (other["model"], other["precision"], other["batch"]) == key), None)

    width = max(len(row["file"]) for row in rows)
    lines = ["device memory, MiB", f"{'engine':<{width}}  batch  activations  all together  unpatched"]
    for row in rows:
        other = unpatched(row)
        lines.append(f"{row['file']:<{width}}  {row['batch']:>5}  {row['device_memory_mib']:>11}  "
                     f"{row['free_memory_used_mib']:>12}  {'-' if other is None else f'{other:.1f}':>9}")
    verdicts = []
    for file in dict.fromkeys(row["file"] for row in rows):
        pairs = [(row["batch"], float(row["free_memory_used_mib"]), unpatched(row)) for row in rows
                 if row["file"] == file and unpatched(row) is not None]
        if pairs:
            batch, mib, other = max(pairs, key=lambda pair: pair[1] - pair[2])
            verdicts.append(f"{'PASS' if mib <= other else 'FAIL'} {file}: {mib:.1f} MiB at batch {batch}, unpatched "
                            f"{other:.1f}; the worst of batches {','.join(pair[0] for pair in pairs)}")
    return [*lines, *verdicts], [line for line in verdicts if line.startswith("FAIL")]


def score_memory(plans: list[Path], arguments: argparse.Namespace, run: dict[str, str],
                 versions: Callable[[], dict[str, str]]) -> None:
    """Measure the memory of all engines, print it, add it to memory.csv; UserError if a patched one needs more."""
    write_environment(run["run_id"], versions(), arguments.results)
    run = {**run, "backend": tensorrt_backend(versions())}
    rows = []
    for plan in plans:
        found = measure_memory(plan, arguments.memory, arguments.plugins)
        append_rows(arguments.results / "memory.csv", MEMORY_COLUMNS, [{**run, **row} for row in found])
        rows += found
    lines, failed = compare_memory(rows)
    print("\n".join(lines))
    print(f"added {len(rows)} rows to {shown(arguments.results / 'memory.csv')}, run {run['run_id']}")
    if failed:
        raise UserError("; ".join(failed))


def score(plans: list[Path], arguments: argparse.Namespace, run: dict[str, str],
          versions: Callable[[], dict[str, str]]) -> None:
    """Test all engines, write encoderScore.txt; UserError if a check fails."""
    lines, rows = [], []
    for plan in plans:
        table, measured = score_engine(plan, arguments, run, versions)
        rows += measured
        lines += [*table, ""]
    with whole_file(arguments.results / "encoderScore.txt") as partial:
        partial.write_text("\n".join(lines))
    print(f"wrote {shown(arguments.results)}/encoderScore.txt and {len(rows)} rows of latency.csv there, "
          f"run {run['run_id']}")
    failed = [row for row in rows if row.check != "good"]
    if failed:
        raise UserError(f"{len(failed)} of {len(rows)} checks failed, first at batch {failed[0].batch}: "
                        f"{failed[0].check}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", nargs="+", default=[ROOT / plan for plan in PLAN], metavar="FILE",
                        help=f"engines; default {' '.join(PLAN)}")
    parser.add_argument("--data", metavar="FOLDER",
                        help="where data/batch_data_gen.py wrote the data of the engine's model; or one such file; "
                             f"default {DATA}")
    parser.add_argument("--batch", type=batch_sizes, default=BATCH or None, metavar="N,N",
                        help="of these, only the batches; default all")
    parser.add_argument("--sizes", type=image_sizes, default=[], metavar="HxW,HxW",
                        help="and only images of these sizes, of an engine that takes several; default all")
    add_plugins_argument(parser)
    parser.add_argument("--tolerance", type=from_zero, default=TOLERANCE or None, metavar="ERROR",
                        help="largest absolute error of a logit; default 1e-4 for FP32, 1%% of the largest for FP16, "
                             "2.5 times the Q/DQ graph's for INT8")
    parser.add_argument("--memory", type=batch_sizes, nargs="?", const=[1, 4, 16, 128], metavar="N,N",
                        help="measure device memory instead, at these batches, default 1,4,16,128")
    add_timing_arguments(parser)
    parser.add_argument("--results", type=folder_to_write, default=str(ROOT / RESULTS), metavar="FOLDER",
                        help="where the tables go")
    add_backend_argument(parser)
    args = parser.parse_args(arguments)
    if args.memory and (args.data or args.batch):
        raise UserError("--memory takes no data, and names its batches itself: --memory 1,128; "
                        "leave --data and --batch out")
    return args


def main() -> None:
    arguments = parse()
    plans = [existing_file(plan, "an engine (TensorRT/build.sh builds one)") for plan in arguments.plan]
    from TensorRT import trt_runtime

    run = {"run_id": new_run_id(), "commit": git_commit(), "gpu": gpu_name()}
    (score_memory if arguments.memory else score)(plans, arguments, run, trt_runtime.versions)


if __name__ == "__main__":
    run_script(main)
