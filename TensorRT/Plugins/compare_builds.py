"""Two builds of the kernel library on one GPU: the same bits? the same time?

    python TensorRT/Plugins/compare_builds.py --base A/libswin_kernels.so --new B/libswin_kernels.so   # needs a GPU

Every kernel runs with both, on the same seeded inputs, over the shapes of Small V1 and V2 at each of --batches. Outputs
are compared bit by bit. Times are of CUDA graphs of many runs, the two builds in turn, after a warm-up: the median over
the turns. Exits with 1 where bits differ; times are to be read.

A build whose C interface is another one needs the c_interface.py of its commit:

    git show COMMIT:TensorRT/Plugins/swin_kernels/c_interface.py > build/base_kernels.py
    ... --base-module build/base_kernels.py
"""
from __future__ import annotations

import argparse
import importlib.util
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from utils import UserError, existing_file, from_one, run_script

DEVICE = "cuda"
EPSILON = 1e-5
STEP = 0.05  # of INT8 tensors
STAGES = {  # (side in tokens, channels, heads) of each stage
    "swinv1": (7, [(56, 96, 3), (28, 192, 6), (14, 384, 12), (7, 768, 24)]),
    "swinv2": (8, [(64, 96, 3), (32, 192, 6), (16, 384, 12), (8, 768, 24)]),
}
TURNS = 9  # of each build
SHORTEST_MS = 0.5  # of a CUDA graph


@dataclass
class Case:
    """One call: run(kernels, *outputs) with the outputs' shapes and types."""

    kernel: str
    what: str
    run: Callable[..., None]
    outputs: list[tuple[tuple[int, ...], torch.dtype]]


def load(name: str, module: Path, library: Path) -> ModuleType:
    """The c_interface module in file `module`, bound to `library`.

    Raises:
        UserError: a file is missing or is not what it should be.
    """
    existing_file(module, "a c_interface.py")
    existing_file(library, "libswin_kernels.so")
    spec = importlib.util.spec_from_file_location(name, module)
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    os.environ["SWIN_KERNELS"] = str(library.resolve())  # read when the library is loaded, below
    try:
        kernels.library()
    except (OSError, AttributeError, RuntimeError) as problem:  # LibraryError is the module's own RuntimeError
        raise UserError(f"{library}: does not fit {module}: {problem}") from problem
    return kernels


# --- inputs ----------------------------------------------------------------------------------------------------------

class Draw:
    """Seeded random tensors: the same sequence for the same seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator(DEVICE).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(shape, generator=self.generator, device=DEVICE)).to(dtype)

    def weight(self, out_features: int, in_features: int, dtype: torch.dtype) -> torch.Tensor:
        return self.normal(out_features, in_features, dtype=dtype, scale=in_features**-0.5)

    def int8(self, *shape: int) -> torch.Tensor:
        return torch.randint(-128, 128, shape, generator=self.generator, device=DEVICE, dtype=torch.int8)


def relative_bias(draw: Draw, heads: int, window: int) -> torch.Tensor:
    """A bias [heads, N, Np] that is a function of the relative position, as in every Swin Transformer."""
    table = draw.normal(heads, (2 * window - 1)**2)
    place = torch.arange(window, device=DEVICE)
    row, column = (x.flatten() for x in torch.meshgrid(place, place, indexing="ij"))
    index = ((row[:, None] - row + window - 1) * (2 * window - 1) + column[:, None] - column + window - 1)
    tokens = window * window
    bias = torch.zeros(heads, tokens, (tokens + 7) // 8 * 8, device=DEVICE)
    bias[..., :tokens] = table[:, index]
    return bias


# --- cases -----------------------------------------------------------------------------------------------------------

def rows_cases(draw: Draw, rows: int, width: int, dtype: torch.dtype) -> Iterator[Case]:
    x, residual = draw.normal(rows, width, dtype=dtype), draw.normal(rows, width, dtype=dtype)
    gamma, beta = draw.normal(2, width)
    y = ((rows, width), dtype)
    shape = f"[{rows}, {width}]"
    yield Case("layernorm", shape, lambda k, y: k.layernorm(x, gamma, beta, y, EPSILON), [y])
    yield Case("layernorm", f"{shape} plain", lambda k, y: k.layernorm(x, None, None, y, EPSILON), [y])
    yield Case("add_layernorm", shape, lambda k, t, y: k.add_layernorm(x, residual, gamma, beta, t, y, EPSILON), [y, y])
    yield Case("layernorm_add", shape, lambda k, y: k.layernorm_add(x, residual, gamma, beta, y, EPSILON), [y])
    heads = x.view(-1, 32)
    yield Case("fnorm", f"[{len(heads)}, 32]", lambda k, y: k.fnorm(heads, y, 1e-12), [(tuple(heads.shape), dtype)])


def image_cases(draw: Draw, batch: int, side: int, width: int, dtype: torch.dtype) -> Iterator[Case]:
    if side % 2:
        return
    x = draw.normal(batch, side, side, width, dtype=dtype)
    gamma, beta = draw.normal(2, 4 * width)
    merged = ((batch, side // 2, side // 2, 4 * width), dtype)
    shape = f"[{batch}, {side}x{side}, {width}]"
    yield Case("patch_merge", shape, lambda k, y: k.patch_merge(x, gamma, beta, y, EPSILON), [merged])
    yield Case("patch_merge", f"{shape} gather", lambda k, y: k.patch_merge(x, None, None, y, EPSILON), [merged])


def patch_cases(draw: Draw, batch: int, side: int, width: int, dtype: torch.dtype) -> Iterator[Case]:
    image = draw.normal(batch, 3, 4 * side, 4 * side)
    weight = draw.normal(width, 3, 4, 4, scale=48**-0.5)
    bias, gamma, beta = draw.normal(3, width)
    yield Case("patch_embed", f"[{batch}, 3, {4 * side}, {4 * side}] to {width}",
               lambda k, y: k.patch_embed(image, weight, bias, gamma, beta, y, EPSILON),
               [((batch, side, side, width), dtype)])


def linear_cases(draw: Draw, rows: int, width: int, dtype: torch.dtype) -> Iterator[Case]:
    for name, k_in, n_out, gelu, add in (("qkv", width, 3 * width, False, False), ("proj", width, width, False, True),
                                         ("fc1", width, 4 * width, True, False), ("fc2", 4 * width, width, False, True),
                                         ("merge", 4 * width, 2 * width, False, False)):
        x, weight = draw.normal(rows, k_in, dtype=dtype), draw.weight(n_out, k_in, dtype)
        bias = draw.normal(n_out, dtype=dtype)
        residual = draw.normal(rows, n_out, dtype=dtype) if add else None
        yield Case("linear", f"{name} [{rows}, {k_in}] to {n_out}",
                   lambda k, y, x=x, weight=weight, bias=bias, residual=residual, gelu=gelu:
                       k.linear(x, weight, bias, residual, y, gelu), [((rows, n_out), dtype)])


def mlp_cases(draw: Draw, rows: int, width: int, norm_first: bool, dtype: torch.dtype) -> Iterator[Case]:
    x, attention = draw.normal(rows, width, dtype=dtype), draw.normal(rows, width, dtype=dtype)
    gamma, beta, proj_gamma, proj_beta = draw.normal(4, width)
    weight1, weight2 = draw.weight(4 * width, width, dtype), draw.weight(width, 4 * width, dtype)
    bias1, bias2 = draw.normal(4 * width, dtype=dtype), draw.normal(width, dtype=dtype)
    proj = (draw.weight(width, width, dtype), draw.normal(width, dtype=dtype))
    of_proj = (attention, *proj, *((None, None) if norm_first else (proj_gamma, proj_beta)))
    tensors = (x, gamma, beta, weight1, bias1, weight2, bias2)
    for name, more in (("", ()), (" with attention", of_proj)):
        yield Case("mlp", f"[{rows}, {width}]{name}",
                   lambda k, y, more=more: k.mlp(*tensors, y, norm_first, EPSILON, *more), [((rows, width), dtype)])


def attention_cases(draw: Draw, batch: int, side: int, heads: int, window: int, dtype: torch.dtype) -> Iterator[Case]:
    cosine = window == 8
    channels = 32 * heads
    qkv = draw.normal(batch, side, side, 3 * channels, dtype=dtype)
    bias = relative_bias(draw, heads, window)
    logit_scale = draw.normal(heads).abs() + 5 if cosine else None
    scale = 1.0 if cosine else 32**-0.5
    for shift in (0, window // 2) if side > window else (0,):
        yield Case("attention", f"[{batch}, {side}x{side}, {channels}] shift {shift}",
                   lambda k, y, shift=shift: k.attention(qkv, bias, None, logit_scale, y, heads, (window, window),
                                                         (shift, shift), scale, -100.0),
                   [((batch, side, side, channels), dtype)])


def int8_cases(draw: Draw, batch: int, side: int, heads: int, window: int) -> Iterator[Case]:
    norm_first, width = window == 7, 32 * heads
    rows = batch * side * side
    x, residual, x_q = draw.normal(rows, width).half(), draw.normal(rows, width).half(), draw.int8(rows, width)
    gamma, beta = draw.normal(2, width)
    half, byte = ((rows, width), torch.float16), ((rows, width), torch.int8)
    shape = f"[{rows}, {width}]"
    yield Case("quantize", shape, lambda k, y: k.quantize(x, y, STEP), [byte])
    yield Case("layernorm_int8", shape, lambda k, y: k.layernorm_int8(x, gamma, beta, y, EPSILON, STEP), [byte])
    for name, given, step in (("FP16", x, 0.0), ("INT8", x_q, STEP)):
        yield Case("layernorm_add_int8", f"{shape} {name}",
                   lambda k, y, y_q, given=given, step=step: k.layernorm_add_int8(
                       given, residual, gamma, beta, y, y_q, EPSILON, step, STEP), [half, byte])
    for name, k_in, n_out, gelu, add, step in (
            ("qkv", width, 3 * width, 0, False, STEP), ("proj", width, width, 0, True, 0.0),
            ("proj", width, width, 0, False, STEP), ("fc1", width, 4 * width, 1, False, STEP),
            ("fc2", 4 * width, width, 0, True, 0.0), ("fc2", 4 * width, width, 0, False, STEP),
            ("merge", 4 * width, 2 * width, 0, False, 0.0)):
        given, weight = draw.int8(rows, k_in), draw.int8(n_out, k_in)
        factor, bias = draw.normal(n_out).abs() * 2e-4 * k_in**-0.5, draw.normal(n_out)
        addend = draw.normal(rows, n_out).half() if add else None
        yield Case("linear_int8", f"{name} [{rows}, {k_in}] to {n_out} {'INT8' if step else 'FP16'}",
                   lambda k, y, tensors=(given, weight, factor, bias, addend), gelu=gelu, step=step:
                       k.linear_int8(*tensors, y, gelu, step),
                   [((rows, n_out), torch.int8 if step else torch.float16)])

    grid = (batch, side, side)
    qkv = draw.int8(*grid, 3 * width)
    bias = relative_bias(draw, heads, window)
    logit_scale = None if norm_first else draw.normal(heads).abs() + 5
    scale = 32**-0.5 if norm_first else 1.0
    weights = (draw.int8(3 * width, width), draw.normal(3 * width).abs() * 1e-5, draw.normal(3 * width),
               draw.int8(width, width), draw.normal(width).abs() * 1e-5, draw.normal(width))
    image = f"[{batch}, {side}x{side}, {width}]"
    for shift in (0, window // 2) if side > window else (0,):
        for step in (0.0, STEP):
            yield Case("attention_int8", f"{image} shift {shift} {'INT8' if step else 'FP16'}",
                       lambda k, y, shift=shift, step=step: k.attention_int8(
                           qkv, bias, None, logit_scale, y, heads, (window, window), (shift, shift), scale, -100.0,
                           STEP, step),
                       [((*grid, width), torch.int8 if step else torch.float16)])
        yield Case("attention_branch_int8", f"{image} shift {shift}",
                   lambda k, y, y_q, shift=shift: k.attention_branch_int8(
                       x_q.view(*grid, width), x.view(*grid, width), *weights, bias, gamma, beta, logit_scale, y, y_q,
                       heads, (window, window), (shift, shift), norm_first, scale, -100.0, STEP, STEP,
                       0.0 if norm_first else STEP, EPSILON, STEP),
                   [((*grid, width), torch.float16), ((*grid, width), torch.int8)])


def all_cases(batch: int) -> Iterator[tuple[str, str, Callable[[], Iterator[Case]]]]:
    """(model, precision, a generator of cases): FP16 and INT8 of every batch, FP32 and BF16 of batch 1 too."""
    for model, (window, stages) in STAGES.items():
        for stage, (side, width, heads) in enumerate(stages):
            rows = batch * side * side
            for dtype in (torch.float16, torch.bfloat16, torch.float32)[:3 if batch == 1 else 1]:
                def of_type(stage=stage, side=side, width=width, heads=heads, rows=rows, window=window, dtype=dtype):
                    draw = Draw(stage)
                    if stage == 0:
                        yield from patch_cases(draw, batch, side, width, dtype)
                    yield from rows_cases(draw, rows, width, dtype)
                    yield from image_cases(draw, batch, side, width, dtype)
                    yield from attention_cases(draw, batch, side, heads, window, dtype)
                    yield from linear_cases(draw, rows, width, dtype)
                    yield from mlp_cases(draw, rows, width, window == 7, dtype)
                yield model, str(dtype).removeprefix("torch."), of_type
            yield model, "int8", lambda side=side, heads=heads, window=window, stage=stage: int8_cases(
                Draw(stage), batch, side, heads, window)


# --- comparison ------------------------------------------------------------------------------------------------------

def outputs_of(case: Case, kernels: ModuleType) -> list[torch.Tensor]:
    """What the case writes, as bytes, over memory that is the same for every build."""
    outputs = [torch.full(shape, 77, dtype=dtype, device=DEVICE) for shape, dtype in case.outputs]
    case.run(kernels, *outputs)
    return [output.view(torch.uint8) for output in outputs]


def graph_of(case: Case, kernels: ModuleType, outputs: list[torch.Tensor], runs: int) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            case.run(kernels, *outputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(runs):
            case.run(kernels, *outputs)
    return graph


def replay_ms(graph: torch.cuda.CUDAGraph) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def times_us(case: Case, builds: list[ModuleType]) -> list[float]:
    """The median time of one run with each build, taken in turn and, each round, in the other order."""
    outputs = [torch.empty(shape, dtype=dtype, device=DEVICE) for shape, dtype in case.outputs]
    probe = graph_of(case, builds[0], outputs, 2)
    replay_ms(probe)
    runs = max(2, min(100, math.ceil(2 * SHORTEST_MS / replay_ms(probe))))
    graphs = [graph_of(case, kernels, outputs, runs) for kernels in builds]
    for graph in graphs * 2:
        replay_ms(graph)
    times: list[list[float]] = [[] for _ in graphs]
    for turn in range(TURNS):
        for i in range(len(graphs)) if turn % 2 else reversed(range(len(graphs))):
            times[i].append(1000 * replay_ms(graphs[i]) / runs)
    return [statistics.median(of_build) for of_build in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, metavar="LIBRARY", help="libswin_kernels.so of one build")
    parser.add_argument("--new", type=Path, required=True, metavar="LIBRARY", help="libswin_kernels.so of the other")
    here = Path(__file__).resolve().parent / "swin_kernels" / "c_interface.py"
    parser.add_argument("--base-module", type=Path, default=here, metavar="FILE",
                        help="the c_interface.py of --base's commit (default: this one's)")
    parser.add_argument("--batches", type=from_one, nargs="+", default=[1, 32, 128], help="images (default: 1 32 128)")
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="only these, as mlp or attention_int8")
    parser.add_argument("--no-times", action="store_true", help="compare bits only")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError("no GPU that PyTorch can use; run this on a GPU host")
    builds = [load("base_kernels", arguments.base_module, arguments.base), load("new_kernels", here, arguments.new)]

    print(f"{torch.cuda.get_device_name()}: base {arguments.base}, new {arguments.new}; times in us, new / base")
    compared, different, ratios = 0, [], {}
    for batch in arguments.batches:
        for model, precision, cases in all_cases(batch):
            for case in cases():
                if arguments.kernels and case.kernel not in arguments.kernels:
                    continue
                name = f"{case.kernel:22} {model} {precision:8} {case.what}"
                first, second = (outputs_of(case, kernels) for kernels in builds)
                compared += 1
                same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
                del first, second
                if not same:
                    different.append(name)
                times = ""
                if not arguments.no_times:
                    base, new = times_us(case, builds)
                    ratios.setdefault((case.kernel, model, precision, batch), []).append((base, new))
                    times = f"{base:9.2f} {new:9.2f} {new / base:6.3f}"
                print(f"{name:80} {'same' if same else 'DIFFERENT':9} {times}", flush=True)
    if not compared:
        raise UserError(f"no kernel is called {', '.join(arguments.kernels)}")
    if ratios:
        print("\nall shapes of a batch together, us:")
        for (kernel, model, precision, batch), pairs in sorted(ratios.items()):
            base, new = (sum(times) for times in zip(*pairs, strict=True))
            print(f"{kernel:22} {model} {precision:8} batch {batch:3} {base:9.2f} {new:9.2f} {new / base:6.3f}")
    print(f"\n{compared - len(different)} of {compared} cases have the same bits")
    if different:
        print("different:", *different, sep="\n  ")
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
