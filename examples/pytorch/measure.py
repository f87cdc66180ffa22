"""Latency of Swin models in PyTorch: as they are, by torch.compile, and fused (fuse()), with the error in the same row.

    RUN_ID=fused-1 python examples/pytorch/measure.py                       # Small V1 and V2 of timm and Hugging Face
    RUN_ID=fused-1 python examples/pytorch/measure.py --model own:models/swin.yaml --resume small_v1.pth \
        --plan TensorRT/TRT_Engine/swinv1_attention_fp16.plan

Needs an NVIDIA GPU and nvcc (or SWIN_KERNELS, the path of libswin_kernels.so). One row per model, runner and batch
goes to <results>/fused.csv; with the same RUN_ID rows that are there are not measured again, so that --minutes 9 does
it in parts. Runners: eager, eager as one CUDA graph, torch.compile in its modes reduce-overhead and max-autotune (both
make CUDA graphs), fused, fused as one CUDA graph, and, with --plan, an engine of the same weights as one CUDA graph.
All have input and output on the GPU. max-autotune compiles for minutes: with --take-turns several processes compile
at once and measure one after the other. Errors are against the same model and weights in FP32 without TF32; weights of
timm and Hugging Face are drawn, since a V2 with fresh ones is the identity.
"""
from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from config import get_config
from models.build import load_model
from Results.tables import LOCAL, append_rows, error_figures, git_commit, new_run_id, read_rows, write_environment
from Results.timing import add_timing_arguments, latency_figures, timed_runs, timing_of
from TensorRT.Plugins import swin_kernels
from Torch_Latency import timer
from utils import (
    Progress,
    UserError,
    alone_in,
    batch_sizes,
    choices,
    first_line,
    folder_to_write,
    from_zero,
    run_script,
)

COLUMNS = ("run_id", "commit", "gpu", "torch", "model", "precision", "runner", "batch", "latency_ms_median",
           "latency_ms_p25", "latency_ms_p75", "latency_ms_p99", "images_per_s", "max_abs_err", "median_rel_err",
           "top1_agreement", "largest_logit")
MODELS = ("timm:swin_small_patch4_window7_224", "timm:swinv2_small_window8_256", "transformers:swin",
          "transformers:swinv2")
RUNNERS = ("engine", "eager", "eager-graph", "compile-reduce-overhead", "compile-max-autotune", "fused", "fused-graph")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SMALL = {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]}
# Seconds that a row takes besides measuring, of a model of Small's size: to say how long all of it takes.
GUESSED_S = {"engine": 5, "eager": 2, "eager-graph": 2, "compile-reduce-overhead": 60, "compile-max-autotune": 240,
             "fused": 3, "fused-graph": 3}


class Logits(nn.Module):
    """A model of Hugging Face with only its logits as output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def drawn(model: nn.Module) -> nn.Module:
    """The model with random weights by which every part contributes to the logits."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("logit_scale"):
                continue
            parameter.normal_(generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.mul_(0.1).add_(1)
            else:
                parameter.mul_(0.1 if parameter.ndim == 1 else 1 / math.sqrt(parameter[0].numel()))
    return model


def built(name: str, resume: Path | None) -> tuple[nn.Module, int]:
    """A model in FP32 on the CPU, and the side of its images.

    Raises:
        UserError: no such model.
    """
    library, _, rest = name.partition(":")
    if library == "own":
        model = load_model(get_config(Path(rest)), resume)
        return model.eval(), model.img_size
    if library == "timm":
        import timm
        if not timm.is_model(rest):
            raise UserError(f"{name}: timm has no model of this name")
        model = timm.create_model(rest)
        return drawn(model).eval(), model.patch_embed.img_size[0]
    if library == "transformers" and rest in ("swin", "swinv2"):
        import transformers
        if rest == "swin":
            model = transformers.SwinForImageClassification(
                transformers.SwinConfig(image_size=224, window_size=7, num_labels=1000, **SMALL))
        else:
            model = transformers.Swinv2ForImageClassification(
                transformers.Swinv2Config(image_size=256, window_size=8, num_labels=1000, **SMALL))
        return Logits(drawn(model)).eval(), model.config.image_size
    raise UserError(f"{name}: give own:YAML, timm:NAME, transformers:swin or transformers:swinv2")


def prepare(runner: str, model: nn.Module, images: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """One run of a copy of the model on images (FP32, on the GPU), which returns its logits."""
    model = copy.deepcopy(model).to(images.device)
    if runner.startswith("fused"):
        swin_kernels.fuse(model, dtype, images[:2])
        x = images
    else:
        model, x = model.to(dtype), images.to(dtype)
    if runner.startswith("compile-"):
        torch.compiler.reset()
        model = torch.compile(model, mode=runner.removeprefix("compile-"), dynamic=False, fullgraph=True)
    if runner.endswith("-graph"):
        graph = swin_kernels.CudaGraph(model, x)

        def replay() -> Tensor:
            graph.graph.replay()
            return graph.output

        return replay
    return lambda: model(x)


def measure(runner: str, model: nn.Module, images: Tensor, dtype: torch.dtype, turn: AbstractContextManager,
            **timing: float) -> tuple[np.ndarray, np.ndarray]:
    """float32 logits of a runner, and its times in ms, taken within `turn`."""
    begun = time.perf_counter()
    run = prepare(runner, model, images, dtype)
    logits = run().float().cpu().numpy()
    print(f"{runner} b{len(images)}: ready after {time.perf_counter() - begun:.0f} s", flush=True)
    with turn:
        return logits, timed_runs(timer(run, images.device), **timing)


def measure_engine(plan: Path, images: Tensor, turn: AbstractContextManager,
                   **timing: float) -> tuple[np.ndarray, np.ndarray]:
    """The same of an engine.

    Raises:
        UserError: TensorRT refuses the plan or the images.
    """
    from TensorRT.engine import Engine

    with Engine(plan) as engine, engine.context() as context:
        context.infer(images.cpu().numpy())
        context.capture()
        context.run()
        logits = context.download()[engine.outputs[0]].astype(np.float32)
        with turn:
            return logits, timed_runs(context.timed_run_ms, **timing)


def expected_of(model: nn.Module, images: Tensor) -> np.ndarray:
    """The logits in FP32, a few images at a time."""
    model = copy.deepcopy(model).to(images.device)
    return torch.cat([model(part) for part in images.split(16)]).cpu().numpy()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=list(MODELS), metavar="MODEL",
                        help="own:YAML, timm:NAME, transformers:swin, transformers:swinv2 (default: "
                             f"{' '.join(MODELS)})")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="checkpoint of an own: model")
    parser.add_argument("--plan", type=Path, metavar="PLAN",
                        help="an engine of the one --model and its --resume: measured beside the others")
    parser.add_argument("--batch", type=batch_sizes, default="1,32,128", metavar="N,N", help="(default: 1,32,128)")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="fp16", help="(default: fp16)")
    parser.add_argument("--runner", type=lambda text: choices(text, RUNNERS), default=",".join(RUNNERS), metavar="R,R",
                        help=f"any of {','.join(RUNNERS)} (default: all)")
    parser.add_argument("--results", type=folder_to_write, default=str(LOCAL), metavar="FOLDER",
                        help="folder of fused.csv and environment/ (default: Results/local/)")
    parser.add_argument("--minutes", type=from_zero, default=math.inf, metavar="M",
                        help="begin nothing after so long; the run can go on later (default: no limit)")
    parser.add_argument("--take-turns", type=folder_to_write, metavar="FOLDER",
                        help="measure when no other process that was given this folder does")
    add_timing_arguments(parser)
    args = parser.parse_args(arguments)
    if args.plan and len(args.model) != 1:
        parser.error("--plan is an engine of one --model")
    if not args.plan:
        args.runner = [runner for runner in args.runner if runner != "engine"]
    if not args.runner:
        parser.error("--runner engine takes --plan")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if not torch.cuda.is_available():
        raise UserError("no GPU that PyTorch can use; run this on a GPU host")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    table, run_id, dtype = args.results / "fused.csv", new_run_id(), DTYPES[args.precision]
    there = {(row["model"], row["precision"], row["runner"], int(row["batch"])) for row in read_rows(table, COLUMNS)
             if row["run_id"] == run_id}
    todo = [(name, batch, runner) for name in args.model for batch in args.batch for runner in args.runner
            if (name, args.precision, runner, batch) not in there]
    common = {"run_id": run_id, "commit": git_commit(), "gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
              "precision": args.precision}
    print(f"run {run_id}, {common['gpu']}: {len(todo)} measurements, {len(there)} are there", flush=True)
    write_environment(run_id, {"torch": torch.__version__, "torch CUDA": str(torch.version.cuda)}, args.results)
    progress, failed, model_name, model, size = Progress(
        sum(GUESSED_S[runner] + args.min_seconds for _, _, runner in todo), "guessed seconds"), [], "", None, 0
    for number, (name, batch, runner) in enumerate(todo):
        if progress.seconds > 60 * args.minutes:
            print(f"the time is over: {number} of {len(todo)} done; for the rest: RUN_ID={run_id} and the same command")
            break
        if name != model_name:
            (model, size), model_name = built(name, args.resume), name
        images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch)).cuda()
        turn = alone_in(args.take_turns) if args.take_turns else nullcontext()
        try:
            with torch.inference_mode():
                expected = expected_of(model, images)
                logits, times = (measure_engine(args.plan, images, turn, **timing_of(args)) if runner == "engine" else
                                 measure(runner, model, images, dtype, turn, **timing_of(args)))
        except (UserError, RuntimeError, MemoryError, ValueError) as problem:
            failed.append(f"{name} {runner} b{batch}")
            print(f"{failed[-1]} failed: {first_line(problem)}", file=sys.stderr, flush=True)
            continue
        row = {**common, "model": name, "runner": runner, "batch": batch, **latency_figures(times, batch),
               **error_figures(logits, expected), "largest_logit": f"{np.abs(expected).max():.3g}"}
        append_rows(table, COLUMNS, [{column: row[column] for column in COLUMNS}])
        print(f"{time.strftime('%H:%M:%S')} {name} b{batch} {runner:24} {row['latency_ms_median']:>9} ms, error "
              f"{row['max_abs_err']} of {row['largest_logit']}", flush=True)
        torch.cuda.empty_cache()
        progress.done(GUESSED_S[runner] + args.min_seconds)
    if failed:
        raise UserError(f"{len(failed)} of {len(todo)} measurements failed: {', '.join(failed)}")


if __name__ == "__main__":
    run_script(main)
