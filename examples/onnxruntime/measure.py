"""Latency and error of a patched graph by onnxruntime's custom operators, beside the plain one by its CUDA provider.

    make -C TensorRT/Plugins onnxruntime ORT_INCLUDE=onnxruntime-linux-x64-VERSION/include
    python examples/onnxruntime/measure.py --onnx onnx/swinv1_fp16.onnx --patched onnx/swinv1_attention_fp16.onnx

Needs an NVIDIA GPU and onnxruntime-gpu. Each graph is run launch by launch and as one CUDA graph, input and output on
the GPU, both graphs in turn in one process; rows go to <results>/ort_custom.csv. Errors are against the FP32 export
that both were made from, on held-out crops, on the CPU.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from data.batches import reference_batch
from graphs.facts import of_onnx, plain_parent
from graphs.files import onnx_refusals
from graphs.sessions import onnx_logits, onnx_session
from Results.tables import LOCAL, append_rows, error_figures, git_commit, gpu_name, new_run_id
from Results.timing import add_timing_arguments, latency_figures, timed_runs, timing_of
from utils import ROOT, UserError, batch_sizes, existing_file, first_line, folder_to_write, run_script, shown

COLUMNS = ("run_id", "commit", "gpu", "backend", "runner", "file", "cuda_graph", "batch", "latency_ms_median",
           "latency_ms_p25", "latency_ms_p75", "latency_ms_p99", "images_per_s", "max_abs_err", "median_rel_err",
           "top1_agreement", "errors_against")
LIBRARY = ROOT / "TensorRT" / "Plugins" / "build" / "libswin_onnxruntime.so"


def cuda_session(path: Path, batch: int, library: Path | None, cuda_graph: bool):
    """A session on the GPU with an input of fixed batch; with a library, its custom operators.

    Raises:
        UserError: onnxruntime refuses the library or the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    providers = [("CUDAExecutionProvider", {"use_tf32": "0", "enable_cuda_graph": "1" if cuda_graph else "0"}),
                 "CPUExecutionProvider"]
    try:
        if library is not None:
            options.register_custom_ops_library(str(library))
        model = onnxruntime.InferenceSession(str(path), options, providers=providers)
        name = model.get_inputs()[0].shape[0]
        if isinstance(name, str):
            options.add_free_dimension_override_by_name(name, batch)
            model = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except onnx_refusals() as problem:
        raise UserError(f"{shown(path)}: {first_line(problem)}") from problem
    if model.get_providers()[0] != "CUDAExecutionProvider":
        raise UserError("onnxruntime has no CUDA here: install onnxruntime-gpu in the place of onnxruntime, and cuDNN")
    return model


def measure(path: Path, images: np.ndarray, library: Path | None, cuda_graph: bool,
            **timing: float) -> tuple[np.ndarray, np.ndarray]:
    """float32 logits of the last run, and times in ms."""
    import onnxruntime

    session = cuda_session(path, len(images), library, cuda_graph)
    output = session.get_outputs()[0]
    x = onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda")
    y = onnxruntime.OrtValue.ortvalue_from_shape_and_type([len(images), output.shape[-1]], np.float32, "cuda")
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, x)
    binding.bind_ortvalue_output(output.name, y)
    uncaptured = onnxruntime.RunOptions()
    uncaptured.add_run_config_entry("gpu_graph_id", "-1")
    for _ in range(3):  # memory and algorithms are chosen in the first runs, which no graph may capture
        session.run_with_iobinding(binding, uncaptured if cuda_graph else None)

    def once() -> float:
        start = time.perf_counter()
        session.run_with_iobinding(binding)  # returns when the stream is done
        return 1000 * (time.perf_counter() - start)

    times = timed_runs(once, **timing)
    return y.numpy().copy(), times


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onnx", type=Path, required=True, metavar="FILE", help="the unpatched graph")
    parser.add_argument("--patched", type=Path, required=True, metavar="FILE", help="the same with plugin nodes")
    parser.add_argument("--library", type=Path, default=LIBRARY, metavar="FILE",
                        help=f"libswin_onnxruntime.so (default: {shown(LIBRARY)})")
    parser.add_argument("--batch", type=batch_sizes, default="32", metavar="N,N", help="batch sizes (default: 32)")
    parser.add_argument("--results", type=folder_to_write, default=str(LOCAL), metavar="FOLDER",
                        help="folder of ort_custom.csv (default: Results/local/)")
    add_timing_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    for path, what in ((args.onnx, "an ONNX file"), (args.patched, "an ONNX file"),
                       (args.library, "libswin_onnxruntime.so (make -C TensorRT/Plugins onnxruntime)")):
        existing_file(path, what)
    facts = of_onnx(args.patched)
    parent = plain_parent(args.patched, facts)
    if parent is None:
        raise UserError(f"{shown(args.patched)}: the FP32 export that it was made from is neither beside it nor in "
                        "onnx/")
    import onnxruntime
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise UserError(f"onnxruntime {onnxruntime.__version__} has no CUDA: install onnxruntime-gpu in its place")
    import torch  # noqa: F401, brings the CUDA libraries that onnxruntime needs

    reference = onnx_session(parent)
    common = {"run_id": new_run_id(), "commit": git_commit(), "gpu": gpu_name(),
              "backend": f"onnxruntime {onnxruntime.__version__}", "errors_against": parent.name}
    for batch in args.batch:
        images, expected = reference_batch(of_onnx(parent), batch, lambda x: onnx_logits(reference, x, parent),
                                           ROOT / "data")
        medians: dict[tuple[str, bool], float] = {}
        for runner, path, library in (("cuda", args.onnx, None), ("custom-ops", args.patched, args.library)):
            for cuda_graph in (False, True):
                logits, times = measure(path, images, library, cuda_graph, **timing_of(args))
                medians[runner, cuda_graph] = float(np.median(times))
                row = {**common, "runner": runner, "file": path.name, "cuda_graph": "yes" if cuda_graph else "no",
                       "batch": batch, **latency_figures(times, batch), **error_figures(logits, expected)}
                append_rows(args.results / "ort_custom.csv", COLUMNS, [row])
                print(f"b{batch} {runner:10} {path.name:32} CUDA graph {row['cuda_graph']:3} "
                      f"{row['latency_ms_median']:>9} ms, error {row['max_abs_err']}", flush=True)
        best = {runner: min(value for (name, _), value in medians.items() if name == runner)
                for runner in ("cuda", "custom-ops")}
        print(f"b{batch}: {best['cuda'] / best['custom-ops']:.2f} times as fast by custom operators")


if __name__ == "__main__":
    run_script(main)
