"""Where an engine's time goes: per layer, grouped by what the network does, against what the GPU could do.

    python TensorRT/profile_engine.py --plan TensorRT/TRT_Engine/swinv1_attention_fp16.plan --batch 1,32,128 \\
        --peak-tflops 790 --peak-gbps 4300

Runs in the Python that has TensorRT. Prints a table per engine and batch and adds a row per group, and one of all, to
profile.csv, which Results/draw.py profile draws; --layers also writes every layer to a file. Times are
TensorRT's own, layer by layer, so the gaps between layers that a CUDA graph closes are not in them, and a very short
layer reads longer than it is in a graph.

TFLOP/s and GB/s of a group are the work of swin_work.py over its time. The peaks are those that
TensorRT/Plugins/benchmark.py measures; where they are not given, its figures in Results/environment/ are taken, of the
same $RUN_ID if it ran with that, else of the last run on such a GPU: FP16's, for an engine in any precision. An INT8
engine's bytes are counted as FP16's.
"""
from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from graphs.facts import Facts
from Results.tables import (
    LOCAL,
    RESULTS,
    append_rows,
    file_columns,
    git_commit,
    gpu_name,
    new_run_id,
    tensorrt_backend,
    write_environment,
)
from TensorRT.backend import add_backend_argument, add_plugins_argument
from TensorRT.swin_work import WHOLE_BRANCH, WHOLE_MLP, Work, read_swin, work_of, yaml_of
from utils import UserError, batch_sizes, existing_file, file_to_write, folder_to_write, run_script, shown, whole_file

COLUMNS = ("run_id", "commit", "gpu", "backend", "model", "precision", "patched", "file", "batch", "group",
           "layers", "time_ms_median", "share", "gflop", "mb",
           "tflop_per_s", "arithmetic_fraction", "gb_per_s", "bandwidth_fraction", "int8_layers")

FUSED = "fused by TensorRT"  # a region of many layers that its compiler made one of: not told apart
# What a layer's name says about it; the first that matches. TensorRT joins the names of the ONNX nodes that it fused
# into a layer, so a group is looked for in the order of what dominates such a layer. A plugin node has the name of the
# node that it stands for.
GROUPS = (
    (FUSED, r"^\{?ForeignNode|^__my"),
    ("copies and reformats", r"^Reformatting CopyNode|^reshape_|_cast_to_|_cast\d+|SwinQuantize"),
    (WHOLE_MLP, r"SwinMlp"),
    (WHOLE_BRANCH, r"SwinAttentionBranch"),
    ("patch embed", r"patch_embed"),
    ("patch merging", r"downsample|PatchMerge"),
    ("qkv", r"attn/qkv"),
    ("fc1 + GELU", r"mlp/fc1|mlp/act|Gelu|Erf"),
    ("fc2", r"mlp/fc2"),
    ("LayerNorm and residual", r"norm\d?/|LayerNorm|LayerNormalization"),
    ("proj", r"attn/proj"),
    ("attention", r"attn|Attention|Softmax"),
    ("head", r"head|ReduceMean|logits|/norm"),
    ("LayerNorm and residual", r"/Add"),
)
INT8_NODE = "Int8"  # in the names of the plugin nodes that add_int8.py puts in: SwinLinearInt8 and its like
RUNS = 20


def group_of(layer: str) -> str:
    """The group of a layer by its name."""
    return next((group for group, words in GROUPS if re.search(words, layer)), "other")


def blocks_of(group: str, layers: list[str]) -> set[tuple[int, int]]:
    """(stage, block) of each layer of a group that is of a block."""
    found = (re.search(r"layers\.(\d+)/blocks\.(\d+)/", layer) for layer in layers if group_of(layer) == group)
    return {(int(place[1]), int(place[2])) for place in found if place}


def work_of_groups(facts: Facts, layers: list[str], batch: int, img_size: int, classes: int) -> dict[str, Work]:
    """The work of each group of an engine's layers, and of "all"; nothing for an engine of an unknown model.

    What has no layer of its own is in the region that TensorRT fused.
    """
    path = yaml_of(facts)
    if path is None:
        return {}
    swin = read_swin(path)._replace(img_size=img_size, classes=classes)
    element = 4 if facts.precision == "fp32" else 2
    joined = " ".join(layers)
    whole, branches = (blocks_of(group, layers) for group in (WHOLE_MLP, WHOLE_BRANCH))
    # The MLP's name does not tell; a proj that has no layer of its own, and is not in the attention branch's, is in it.
    with_proj = whole - blocks_of("proj", layers) - branches
    work = work_of(swin, batch, element,
                   swin.type == "swinv1" and "SwinLinear" in joined and "SwinAddLayerNorm" not in joined,
                   *(Counter(stage for stage, _ in blocks) for blocks in (whole, with_proj, branches)))
    total = Work(*map(sum, zip(*work.values())))
    present = {group_of(layer) for layer in layers}
    fused = [work[group] for group in work if group not in present]
    if FUSED in present and fused:
        work[FUSED] = Work(*map(sum, zip(*fused)))
    return {**work, "all": total}


def work_columns(time_ms: float, work: Work | None, peak_tflops: float | None,
                 peak_gbps: float | None) -> dict[str, str]:
    """The columns of profile.csv about the work of a group; empty where it or a peak is not known."""
    columns = dict.fromkeys(COLUMNS[COLUMNS.index("gflop"):COLUMNS.index("int8_layers")], "")
    if work is None:
        return columns
    tflops, gbps = work.operations / time_ms / 1e9, work.bytes / time_ms / 1e6
    columns.update(gflop=f"{work.operations / 1e9:.3f}", mb=f"{work.bytes / 1e6:.2f}", tflop_per_s=f"{tflops:.2f}",
                   gb_per_s=f"{gbps:.1f}")
    if peak_tflops:
        columns["arithmetic_fraction"] = f"{tflops / peak_tflops:.4f}"
    if peak_gbps:
        columns["bandwidth_fraction"] = f"{gbps / peak_gbps:.4f}"
    return columns


def measured_peak(results: Path, run_id: str, gpu: str, name: str) -> float | None:
    """A peak that benchmark.py wrote, last, to the environment of this run, else of the last run on such a GPU; None
    where it wrote none.
    """
    older = sorted((path for folder in {results, RESULTS} for path in (folder / "environment").glob("*.txt")),
                   key=lambda path: path.name, reverse=True)
    for path in (results / "environment" / f"{run_id}.txt", *older):
        text = path.read_text() if path.exists() else ""
        found = re.findall(rf"^{name}: ([\d.]+)$", text, re.MULTILINE)
        if found and f"gpu: {gpu}" in text.splitlines():
            return float(found[-1])
    return None


def layer_times_ms(context, batch: int) -> dict[str, float]:
    """Median time of every layer at a batch, in milliseconds, in the order in which they run.

    Layers that take none (constants, reshapes that move nothing) are left out.
    """
    from TensorRT.trt_runtime import trt

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = defaultdict(list)

        def report_layer_time(self, layer: str, time_ms: float) -> None:
            self.times[layer].append(time_ms)

    context.set_batch(batch)
    context.upload(np.random.default_rng(0).standard_normal(context.shapes[context.engine.input], np.float32))
    for _ in range(5):
        context.run()
    context.synchronize()
    profiler = Profiler()
    context.context.profiler = profiler
    for _ in range(RUNS):
        context.run()
        context.synchronize()
    medians = {layer: float(np.median(times)) for layer, times in profiler.times.items()}
    return {layer: time_ms for layer, time_ms in medians.items() if time_ms > 0}


def group_rows(facts: Facts, plan: Path, batch: int, times: dict[str, float], img_size: int, classes: int,
               peak_tflops: float | None, peak_gbps: float | None) -> list[dict]:
    """The rows of profile.csv, but for the columns that name the run: of each group, longest first, and of all.

    Args:
        times: milliseconds of each layer, as `layer_times_ms` gives them.
    """
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for layer, time_ms in times.items():
        groups[group_of(layer)][layer] = time_ms
    work, total = work_of_groups(facts, list(times), batch, img_size, classes), sum(times.values())
    ordered = sorted(groups.items(), key=lambda item: -sum(item[1].values()))
    rows = []
    for group, measured in [*ordered, ("all", times)]:
        time_ms = sum(measured.values())
        rows.append({**file_columns(facts, plan), "batch": batch, "group": group, "layers": len(measured),
                     "int8_layers": sum(INT8_NODE in layer for layer in measured), "time_ms_median": f"{time_ms:.4f}",
                     "share": f"{time_ms / total:.4f}",
                     **work_columns(time_ms, work.get(group), peak_tflops, peak_gbps)})
    return rows


def print_rows(plan: Path, rows: list[dict]) -> None:
    """The rows of one engine and batch as a table."""
    print(f"{shown(plan)}, batch {rows[0]['batch']}: {rows[-1]['time_ms_median']} ms in {rows[-1]['layers']} layers")
    for row in rows:
        figures = [f"{row[column] or '-':>8} {unit}" + (f" ({float(row[share]):4.0%})" if row[share] else "")
                   for column, unit, share in (("tflop_per_s", "TFLOP/s", "arithmetic_fraction"),
                                               ("gb_per_s", "GB/s", "bandwidth_fraction"))]
        print(f"  {row['time_ms_median']:>8} ms  {float(row['share']):6.1%}  {row['layers']:4} layers, "
              f"{row['int8_layers']:3} in INT8  "
              f"{row['group']:<30} {'  '.join(figures)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", required=True, nargs="+", metavar="FILE",
                        help="engines, built with detailed layer names")
    add_plugins_argument(parser)
    parser.add_argument("--batch", type=batch_sizes, default=[1, 32, 128], metavar="N,N",
                        help="batch sizes (default: 1,32,128)")
    parser.add_argument("--peak-tflops", type=float, metavar="TFLOP/S",
                        help="of a large FP16 matrix product on this GPU (default: what benchmark.py measured, see "
                             "above)")
    parser.add_argument("--peak-gbps", type=float, metavar="GB/S",
                        help="of a kernel that copies, read and written together (default: likewise)")
    parser.add_argument("--layers", type=file_to_write, metavar="FILE",
                        help="write the time of every layer to this file")
    parser.add_argument("--results", type=folder_to_write, default=str(LOCAL), metavar="FOLDER",
                        help="where profile.csv goes")
    add_backend_argument(parser)
    arguments = parser.parse_args()
    plans = [existing_file(plan, "an engine (TensorRT/build.sh builds one)") for plan in arguments.plan]
    from TensorRT.engine import Engine
    from TensorRT.trt_runtime import versions

    run_id = new_run_id()
    run = {"run_id": run_id, "commit": git_commit(), "gpu": gpu_name(), "backend": tensorrt_backend(versions())}
    peaks = (arguments.peak_tflops or measured_peak(arguments.results, run_id, run["gpu"], "fp16_product_tflop_per_s"),
             arguments.peak_gbps or measured_peak(arguments.results, run_id, run["gpu"], "copy_gb_per_s"))
    rows, lines = [], []
    for plan in plans:
        with Engine(plan, arguments.plugins) as engine:
            for batch in arguments.batch:
                with engine.context() as context:  # a profiler cannot be taken off a context again
                    times = layer_times_ms(context, batch)
                    classes = context.shapes[engine.outputs[0]][-1]
                if not times:
                    raise UserError(f"{shown(plan)}: TensorRT reports the time of no layer")
                lines += [f"{plan.stem}\t{batch}\t{time_ms:.4f}\t{group_of(layer)}\t{layer}"
                          for layer, time_ms in times.items()]
                measured = group_rows(engine.facts(), plan, batch, times, engine.input_shape[-1], classes, *peaks)
                print_rows(plan, measured)
                rows += measured
    append_rows(arguments.results / "profile.csv", COLUMNS, [{**run, **row} for row in rows])
    write_environment(run_id, versions(), arguments.results)
    if arguments.layers:
        with whole_file(arguments.layers) as partial:
            partial.write_text("engine\tbatch\tms\tgroup\tlayer\n" + "\n".join(lines) + "\n")
    print(f"added {len(rows)} rows to {shown(arguments.results / 'profile.csv')}, run {run_id}; "
          "Results/draw.py profile draws them")


if __name__ == "__main__":
    run_script(main)
