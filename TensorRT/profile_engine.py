"""Where an engine's time goes: per layer, grouped by what the network does.

    python TensorRT/profile_engine.py --plan TensorRT/TRT_Engine/swinv1_attention_fp16.plan --batch 1,32,128

Runs in the Python that has TensorRT. Prints a table per batch and adds a row per group to Results/profile.csv; --layers
also writes every layer to a file. Times are TensorRT's own, layer by layer, so the gaps between layers that a CUDA
graph closes are not in them, and a very short layer reads longer than it is in a graph.
"""
from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from utils import (
    RESULTS,
    append_rows,
    batch_sizes,
    existing_file,
    git_commit,
    gpu_name,
    new_run_id,
    run_script,
    shown,
    whole_file,
    write_environment,
)

COLUMNS = ("run_id", "commit", "gpu", "engine", "batch", "group", "layers", "time_ms_median", "share")

# What a layer's name says about it; the first that matches. TensorRT joins the names of the ONNX nodes that it fused
# into a layer, so a group is looked for in the order of what dominates such a layer.
GROUPS = (
    ("copies and reformats", r"^Reformatting CopyNode|^reshape_"),
    ("patch embed", r"patch_embed"),
    ("patch merging", r"downsample|PatchMerge"),
    ("qkv", r"attn/qkv"),
    ("fc1 + GELU", r"mlp/fc1|mlp/act|Gelu|Erf"),
    ("fc2", r"mlp/fc2"),
    ("LayerNorm and residual", r"norm\d?/|LayerNorm|LayerNormalization"),
    ("proj", r"attn/proj"),
    ("attention", r"attn|Attention|Softmax"),
    ("head", r"head|ReduceMean|/norm"),
    ("residual", r"/Add"),
)
RUNS = 20


def group_of(layer: str) -> str:
    """The group of a layer by its name."""
    return next((group for group, words in GROUPS if re.search(words, layer)), "other")


def layer_times_ms(context, batch: int) -> dict[str, float]:
    """Median time of every layer at a batch, in milliseconds, in the order in which they run.

    Layers that take none (constants, reshapes that move nothing) are left out.
    """
    from trt_runtime import trt

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times = defaultdict(list)

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", required=True, metavar="FILE", help="engine, built with detailed layer names")
    parser.add_argument("--plugins", metavar="LIB", help="plugin library; default this project's where it is built")
    parser.add_argument("--batch", default="1,32,128", help="batch sizes (default: %(default)s)")
    parser.add_argument("--layers", type=Path, metavar="FILE", help="write the time of every layer to this file")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where profile.csv goes")
    arguments = parser.parse_args()
    plan = existing_file(arguments.plan, "an engine (TensorRT/build.sh builds one)")
    from engine import Engine
    from trt_runtime import versions

    run_id = new_run_id()
    run = {"run_id": run_id, "commit": git_commit(), "gpu": gpu_name(), "engine": plan.stem}
    rows, lines = [], []
    with Engine(plan, arguments.plugins) as engine:
        for batch in batch_sizes(arguments.batch):
            with engine.context() as context:  # a profiler cannot be taken off a context again
                times = layer_times_ms(context, batch)
            groups = defaultdict(list)
            for layer, time_ms in times.items():
                groups[group_of(layer)].append(time_ms)
                lines.append(f"{batch}\t{time_ms:.4f}\t{group_of(layer)}\t{layer}")
            total = sum(times.values())
            print(f"{shown(plan)}, batch {batch}: {total:.3f} ms in {len(times)} layers")
            for group, measured in sorted(groups.items(), key=lambda item: -sum(item[1])):
                print(f"  {sum(measured):8.3f} ms  {sum(measured) / total:5.1%}  {len(measured):4} layers  {group}")
                rows.append({**run, "batch": batch, "group": group, "layers": len(measured),
                             "time_ms_median": f"{sum(measured):.4f}", "share": f"{sum(measured) / total:.4f}"})
    append_rows(arguments.results / "profile.csv", COLUMNS, rows)
    write_environment(run_id, versions())
    if arguments.layers:
        with whole_file(arguments.layers) as partial:
            partial.write_text("batch\tms\tgroup\tlayer\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    run_script(main)
