"""Latency of ONNX files under onnxruntime, on the CPU and by CUDA, with the error of the same runs beside it.

    python Onnx_Latency.py --onnx onnx/swinv2.onnx onnx/swinv2_fp16.onnx --runner ort-cpu,ort-cuda

One row per file, runner and batch goes to latency.csv (ort-cuda: two, launched kernel by kernel and as one CUDA
graph). The precision is what the graph computes in. Input and output stay on the device (IO binding), the batch is
fixed; FP32 is without TF32. Plugin nodes (of a patched graph) run as the standard operators they stand for.

ort-cuda runs as onnxruntime documents it: on its own stream, timed by the clock from the call until the stream is done.
A CUDA error spoils the process that it happens in: race.py gives every batch and --variant one of its own.

Errors are against the FP32 output on the same input: data/<model>-b<N>.npz, else the FP32 export itself on held-out
crops. For an FP32 file of onnx/export_onnx.py that is the file itself; for onnx/swinv2_attention_fp16.onnx it is the
file that the patches were made on, found by the digest that it carries, or given by --reference.
"""
from __future__ import annotations

# --- edit here; a flag of the same name overrides each line ---
ONNX = ["onnx/swinv1.onnx"]  # files to measure; each path is from the repository's root
BATCH = "1,32,128"           # batch sizes
RUNNER = ""                  # e.g. "ort-cpu,ort-cuda"; "": those that the installed onnxruntime has
REFERENCE = ""               # FP32 file that errors are taken against; "": the export that a file was made from
# --------------------------------------------------------------

import argparse
import importlib.util
import time
from functools import partial
from pathlib import Path

import numpy as np

from data.batches import reference_batch
from graphs.facts import Facts, of_onnx, plain_parent
from graphs.files import onnx_refusals
from graphs.sessions import onnx_img_size, onnx_logits, onnx_session
from Results.tables import (
    cpu_name,
    error_figures,
    file_columns,
    git_commit,
    gpu_name,
    graph_columns,
    new_run_id,
    package_versions,
)
from Results.timing import Measurements, add_measuring_arguments, latency_figures, timed_runs, timing_of
from utils import ROOT, UserError, choices, run_script, shown

RUNNERS = ("ort-cpu", "ort-cuda")
CUDA_VARIANTS = ("no CUDA graph", "CUDA graph")  # of ort-cuda; the column cuda_graph says which


def reference_path(path: Path, facts: Facts, given: Path | None) -> Path:
    """The FP32 export that a file's errors are taken against.

    Raises:
        UserError: the file is no such export itself, and the one that it was made from is not there.
    """
    found = given or plain_parent(path, facts)
    if found is None:
        made_from = f" ({', '.join(parent.name for parent in facts.parents)})" if facts.parents else ""
        raise UserError(f"{shown(path)}: the FP32 export that it was made from{made_from} is neither beside it nor in "
                        "onnx/, or was changed since; give --reference FILE")
    return found


def available_runners() -> list[str]:
    """The runners that the installed onnxruntime has."""
    import onnxruntime

    return ["ort-cpu", "ort-cuda"] if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else ["ort-cpu"]


def onnxruntime_version() -> str:
    import onnxruntime

    return onnxruntime.__version__


def load_cuda_libraries() -> None:
    """Load the CUDA libraries that onnxruntime needs from where pip put them: torch's, or packages of their own."""
    if importlib.util.find_spec("torch") is not None:
        import torch  # noqa: F401
    else:
        import onnxruntime

        onnxruntime.preload_dlls()


def measure(path: Path, runner: str, variant: str, images: np.ndarray, **timing: float,
            ) -> tuple[np.ndarray, np.ndarray]:
    """float32 logits of one combination, those of its last run, and its times in ms by timed_runs(**timing).

    Raises:
        UserError: what onnx_session raises; a CUDA graph of a model that needs the CPU is among it.
        onnx_refusals(), RuntimeError: it cannot be run: out of memory, or another CUDA error.
    """
    import onnxruntime

    providers, device = ["CPUExecutionProvider"], "cpu"
    if runner == "ort-cuda":
        load_cuda_libraries()
        device = "cuda"
        providers.insert(0, ("CUDAExecutionProvider", {
            "use_tf32": "0", "enable_cuda_graph": "1" if variant == "CUDA graph" else "0"}))
    session = onnx_session(path, providers, len(images))
    output = session.get_outputs()[0]
    x = onnxruntime.OrtValue.ortvalue_from_numpy(images, device)
    y = onnxruntime.OrtValue.ortvalue_from_shape_and_type([len(images), output.shape[-1]], np.float32, device)
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, x)
    binding.bind_ortvalue_output(output.name, y)

    if variant == "CUDA graph":
        # Memory is allocated in the first runs, which must not happen while a graph is captured: they are kept apart
        # from the one that is. https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
        uncaptured = onnxruntime.RunOptions()
        uncaptured.add_run_config_entry("gpu_graph_id", "-1")
        for _ in range(3):
            session.run_with_iobinding(binding, uncaptured)

    def once() -> float:
        start = time.perf_counter()
        session.run_with_iobinding(binding)  # returns when the stream is done; with a CUDA graph, first captures it
        return 1000 * (time.perf_counter() - start)

    times_ms = timed_runs(once, **timing)
    return y.numpy().copy(), times_ms


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onnx", "--model", type=Path, nargs="+", default=[ROOT / file for file in ONNX],
                        metavar="FILE", help=f"ONNX files (default: {' '.join(ONNX)})")
    parser.add_argument("--runner", type=lambda text: choices(text, RUNNERS), default=RUNNER or None, metavar="R,R",
                        help=f"any of {','.join(RUNNERS)} (default: {RUNNER or 'those that onnxruntime here has'})")
    parser.add_argument("--variant", type=lambda text: choices(text, CUDA_VARIANTS), default=list(CUDA_VARIANTS),
                        metavar="V,V", help=f"of ort-cuda, any of '{','.join(CUDA_VARIANTS)}' (default: both)")
    parser.add_argument("--reference", type=Path, default=ROOT / REFERENCE if REFERENCE else None, metavar="FILE",
                        help="FP32 ONNX file that errors are taken against (default: the export that the file was "
                             "made from)")
    add_measuring_arguments(parser, BATCH)
    args = parser.parse_args(arguments)
    args.runner = args.runner or available_runners()
    for runner in args.runner:
        if runner not in available_runners():
            raise UserError(f"{runner}: the installed onnxruntime has no CUDA; replace it by onnxruntime-gpu, or leave "
                            "the runner out")
    return args


def measure_file(path: Path, facts: Facts, reference: Path, args: argparse.Namespace, rows: Measurements) -> None:
    """Add the rows of one file, its errors against `reference`.

    Raises:
        UserError: the two files' logits are of different shapes.
    """
    truth, session = of_onnx(reference), onnx_session(reference)
    onnx_img_size(session, reference)  # refuses what takes no images
    print(f"{shown(path)}: {facts.precision}, errors against {shown(reference)}, run {rows.run['run_id']}", flush=True)
    for batch in args.batch:
        images, expected = reference_batch(truth, batch, lambda images: onnx_logits(session, images, reference),
                                           args.data)
        for runner in args.runner:
            for variant in args.variant if runner == "ort-cuda" else ["CPU"]:
                what = f"{path.stem} {runner} b{batch} ({variant})"
                measured = rows.attempt(what, partial(measure, path, runner, variant, images, **timing_of(args)))
                if measured is None:
                    continue
                logits, times_ms = measured
                if logits.shape != expected.shape:
                    raise UserError(f"{shown(path)}: gives logits {list(logits.shape)}, {shown(reference)} gives "
                                    f"{list(expected.shape)}; give its own export with --reference")
                if not rows.counts(what, logits):
                    continue
                device = {"ort-cpu": ("cpu", cpu_name()), "ort-cuda": ("cuda", gpu_name())}[runner]
                rows.record({
                    "device": device[0], "gpu": device[1], "runner": runner, **file_columns(facts, path),
                    **graph_columns(facts), "model": truth.model_of(reference),
                    "cuda_graph": "yes" if variant == "CUDA graph" else "no", "timed_by": "clock", "batch": batch,
                    **latency_figures(times_ms, batch), "images": batch, "errors_against": reference.name,
                    **error_figures(logits, expected)})

def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    facts_of = {path: of_onnx(path) for path in args.onnx}
    references = [reference_path(path, facts_of[path], args.reference) for path in args.onnx]
    run = {"run_id": new_run_id(), "commit": git_commit(), "backend": f"onnxruntime {onnxruntime_version()}"}
    versions = {**package_versions("onnxruntime", "onnxruntime-gpu", "onnx", "numpy"),
                "onnxruntime on": ", ".join(args.runner)}
    rows = Measurements(args.results, run, versions, (UserError, RuntimeError, *onnx_refusals()))
    for path, reference in zip(args.onnx, references):
        measure_file(path, facts_of[path], reference, args, rows)
    rows.end()


if __name__ == "__main__":
    run_script(main)
