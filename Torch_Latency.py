"""Latency of the PyTorch model, eager, as TorchScript and by torch.compile, with the error of the same runs beside it.

    python Torch_Latency.py --type swinv2 --resume models/checkpoints/swinv2_small_patch4_window8_256.pth

On the GPU where torch has one, else on the CPU; the first line says which. One row per combination of runner,
precision and batch goes to latency.csv (on a GPU two for eager and TorchScript: launched kernel by kernel, and
as one CUDA graph; torch.compile's modes make CUDA graphs by themselves). Errors are against the FP32 ONNX output on the
same input: data/<model>-b<N>.npz, else --onnx on held-out crops; without an ONNX file, against PyTorch in FP32, which
the row then says.

The model is measured at its best: constants folded, weights and input in the row's precision, on the device
before the clock starts. FP32 is without TF32. A combination that fails is reported in one line; the others go on.

With --compile-only nothing is measured: what torch.compile makes is run once, and its code stays in
$TORCHINDUCTOR_CACHE_DIR. Another process on a GPU of the same name, with the same torch, finds it there, max-autotune's
choices included, and only traces the model again.
"""
from __future__ import annotations

# --- edit here; a flag of the same name overrides each line ---
CFG = ""                # yaml of the model; "": as --type says, else Small V1
RESUME = ""             # its checkpoint; "": the one that ships with a micro variant
ONNX = ""               # FP32 export that errors are taken against; "": onnx/<MODEL.NAME>.onnx where it is there
BATCH = "1,32,128"      # batch sizes
RUNNER = "torch-eager,torch-script,torch-compile"
PRECISION = "fp32,fp16,bf16"
MODE = "reduce-overhead"  # of torch.compile; others: max-autotune, default
# --------------------------------------------------------------

import argparse
import copy
import itertools
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from config import add_model_arguments, cfg_path, get_config
from data.batches import real_images, reference_batch
from graphs.compare import max_abs_err
from graphs.facts import of_model
from graphs.sessions import onnx_logits, onnx_session
from models.build import checkpoint_path, load_model
from Results.tables import (
    cpu_name,
    error_figures,
    git_commit,
    new_run_id,
    package_versions,
)
from Results.timing import Measurements, add_measuring_arguments, latency_figures, timed_runs, timing_of
from utils import ROOT, UserError, choices, first_line, run_script, shown

RUNNERS = ("torch-eager", "torch-script", "torch-compile")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MODES = ("reduce-overhead", "max-autotune", "default")  # of torch.compile

Run = Callable[[], Tensor]


def variants(runner: str, modes: list[str], device: torch.device) -> list[str]:
    """The ways in which a runner is measured."""
    if runner == "torch-compile":
        return [f"mode {mode}" for mode in modes]
    return ["no CUDA graph", "CUDA graph"] if device.type == "cuda" else ["CPU"]


def variant_columns(variant: str) -> dict[str, str]:
    """What the columns of latency.csv say of a variant."""
    if variant.startswith("mode "):
        return {"mode": variant.removeprefix("mode "), "cuda_graph": ""}  # the mode decides
    return {"mode": "", "cuda_graph": "yes" if variant == "CUDA graph" else "no"}


def prepare(runner: str, variant: str, model: nn.Module, x: Tensor) -> Run:
    """One run of the model on x, after whatever is done once: tracing, compiling, capturing. Returns its logits."""
    if runner == "torch-script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that TorchScript is the old way
            model = torch.jit.freeze(torch.jit.trace(model, x))
    if runner == "torch-compile":
        torch.compiler.reset()
        model = torch.compile(model, mode=variant.removeprefix("mode "), dynamic=False, fullgraph=True)
    if variant != "CUDA graph":
        return lambda: model(x)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(5):  # libraries choose their algorithms, TorchScript specialises itself
            model(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model(x)

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


def timer(run: Run, device: torch.device) -> Callable[[], float]:
    """One run and its time in ms: CUDA events on the stream, or the clock on a CPU."""
    def on_gpu() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def on_cpu() -> float:
        start = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - start)

    return on_gpu if device.type == "cuda" else on_cpu


def measure(runner: str, variant: str, model: nn.Module, images: np.ndarray, device: torch.device, dtype: torch.dtype,
            **timing: float) -> tuple[np.ndarray, np.ndarray]:
    """float32 logits of one combination, and its times in ms by timed_runs(**timing).

    Raises:
        RuntimeError, MemoryError: it cannot be run: out of memory, no compiler, an operator that lacks the dtype.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    x = torch.from_numpy(images).to(device, dtype)
    with torch.inference_mode():
        run = prepare(runner, variant, copy.deepcopy(model).to(device, dtype), x)
        logits = run().float().cpu().numpy()
        return logits, timed_runs(timer(run, device), **timing)


def compile_all(args: argparse.Namespace, model: nn.Module, device: torch.device) -> None:
    """Compile and run once whatever is chosen; UserError if any of it fails."""
    failed = []
    combinations = list(itertools.product(args.batch, args.precision, variants("torch-compile", args.mode, device)))
    for batch, precision, variant in combinations:
        what = f"torch-compile {precision} b{batch} ({variant})"
        start = time.perf_counter()
        try:
            images = np.zeros((batch, 3, model.img_size, model.img_size), np.float32)
            measure("torch-compile", variant, model, images, device, PRECISIONS[precision], min_runs=1, min_s=0)
        except (RuntimeError, MemoryError) as error:
            failed.append(what)
            print(f"{what} failed: {first_line(error)}", file=sys.stderr, flush=True)
        else:
            print(f"{what} compiled in {time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(combinations)} combinations failed: {', '.join(failed)}")


def onnx_reference(path: Path, model: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """The FP32 logits of an ONNX file, as a function of the images.

    Raises:
        UserError: it is not an export of this model with these weights.
    """
    session = onnx_session(path)
    images = real_images(1, model.img_size)
    expected, found = torch_logits(model, images), onnx_logits(session, images, path)
    if found.shape != expected.shape or not max_abs_err(found, expected) <= 1e-3 * float(np.abs(expected).max()):
        raise UserError(f"{shown(path)}: its output is not that of the checkpoint; export it again, or give its "
                        "export with --onnx")
    return lambda images: onnx_logits(session, images, path)


def torch_logits(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """float32 [N, num_classes] of an FP32 model on the CPU."""
    with torch.inference_mode():
        return model(torch.from_numpy(images)).numpy()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser, CFG, RESUME)
    parser.add_argument("--runner", type=lambda text: choices(text, RUNNERS), default=RUNNER, metavar="R,R",
                        help=f"any of {','.join(RUNNERS)} (default: %(default)s)")
    parser.add_argument("--precision", type=lambda text: choices(text, tuple(PRECISIONS)), default=PRECISION,
                        metavar="P,P", help=f"any of {','.join(PRECISIONS)} (default: %(default)s)")
    parser.add_argument("--mode", type=lambda text: choices(text, MODES), default=MODE, metavar="M,M",
                        help=f"of torch.compile, any of {','.join(MODES)} (default: %(default)s)")
    parser.add_argument("--onnx", type=Path, default=ROOT / ONNX if ONNX else None, metavar="FILE",
                        help="FP32 export of the model, which errors are taken against "
                             "(default: onnx/<MODEL.NAME>.onnx where it is there)")
    parser.add_argument("--compile-only", action="store_true",
                        help="measure nothing; compile what torch-compile would measure")
    add_measuring_arguments(parser, BATCH)
    return parser.parse_args(arguments)


def versions_of(gpu: str) -> dict[str, str]:
    """What a run was measured with, for its environment."""
    return {**package_versions("torch", "triton", "numpy"), "torch device": gpu, "torch CUDA": str(torch.version.cuda),
            "torch cuDNN": str(torch.backends.cudnn.version()), "torch CPU threads": str(torch.get_num_threads())}


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    config = get_config(args.cfg, args.opts, args.type)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    torch.set_float32_matmul_precision("highest")  # FP32 is FP32: no TF32
    torch.backends.cudnn.allow_tf32 = False

    checkpoint = checkpoint_path(config, args.resume, args.pretrained)
    model = load_model(config, checkpoint).fold_constants()
    if args.compile_only:
        compile_all(args, model, device)
        return
    name = config.MODEL.NAME
    onnx_file = args.onnx or ROOT / "onnx" / f"{name}.onnx"
    if args.onnx or onnx_file.exists():
        fp32_logits, against = onnx_reference(onnx_file, model), shown(onnx_file)
    else:
        fp32_logits, against = (lambda images: torch_logits(model, images)), "PyTorch FP32"
    facts = of_model(config, cfg_path(args.cfg, args.type), checkpoint)
    run = {"run_id": new_run_id(), "commit": git_commit(), "gpu": gpu, "device": device.type, "model": name,
           "backend": f"PyTorch {torch.__version__}", "timed_by": "events" if device.type == "cuda" else "clock"}
    print(f"{name} with {shown(checkpoint)} on the {device.type.upper()}, gpu: {gpu}, run {run['run_id']}; "
          f"errors against {against}", flush=True)

    rows = Measurements(args.results, run, versions_of(gpu), (RuntimeError, MemoryError))  # torch's own among them
    for batch in args.batch:
        images, expected = reference_batch(facts, batch, fp32_logits, args.data)
        for precision, runner in itertools.product(args.precision, args.runner):
            for variant in variants(runner, args.mode, device):
                what = f"{runner} {precision} b{batch} ({variant})"
                measured = rows.attempt(what, partial(
                    measure, runner, variant, model, images, device, PRECISIONS[precision], **timing_of(args)))
                if measured is not None and rows.counts(what, measured[0]):
                    output, times_ms = measured
                    rows.record({"runner": runner, "precision": precision, "batch": batch, **variant_columns(variant),
                                 **latency_figures(times_ms, batch), **error_figures(output, expected),
                                 "images": batch, "errors_against": Path(against).name})
    rows.end()


if __name__ == "__main__":
    run_script(main)
