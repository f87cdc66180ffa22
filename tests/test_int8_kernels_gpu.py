"""The INT8 kernels against FP64 arithmetic on the same integers.

    pytest -m gpu tests/test_int8_kernels_gpu.py

An INT8 output must be the rounding of a value that lies within `slack` of the exact one, an FP16 output within `slack`
and its own rounding. `slack` bounds what the kernel's FP32 (and, for attention, FP16) arithmetic loses; each test says
how. So an INT8 differs from the exact value's by one step at most, and only next to a tie. Every kernel runs twice, on
outputs poisoned differently and with guards on both sides: what it does not write, or should not have written, shows.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch", reason="the kernels are compared with PyTorch")

from test_kernels_gpu import (  # noqa: E402, imports torch
    ATTENTION_CASES,
    AWKWARD_ATTENTIONS,
    Attention,
    draw,
    guarded,
    misalign,
    padded_bias,
    parameters,
    square,
    window_attention,
)

from TensorRT.Plugins.swin_kernels import c_interface as kernels  # noqa: E402, imports torch

F = torch.nn.functional
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the kernels run on an NVIDIA GPU only"),
]
DEVICE = "cuda"
EPSILON = 1e-5
FP32 = 2.0**-24  # relative error of one rounding
FP16 = 2.0**-11
GUARD = 256  # elements before and after an output
POISONS = (77, -78)


# --- inputs, outputs, judgement --------------------------------------------------------------------------------------

def random_int8(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Every value of INT8, -128 too, equally often."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=generator, device=DEVICE, dtype=torch.int8)


def random_float(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE)


def outputs_of(kernel: Callable, *shapes_and_types: tuple[tuple[int, ...], torch.dtype], offset: int = 0) -> list:
    """What kernel(*outputs) writes: the same whatever was there, and nothing around it."""
    runs = []
    for poison in POISONS:
        buffers = [torch.full((math.prod(shape) + 2 * GUARD + offset,), poison, dtype=dtype, device=DEVICE)
                   for shape, dtype in shapes_and_types]
        outputs = [buffer[GUARD + offset:-GUARD].view(shape)
                   for buffer, (shape, _) in zip(buffers, shapes_and_types, strict=True)]
        kernel(*outputs)
        for buffer in buffers:
            assert (buffer[:GUARD + offset] == poison).all(), "written before the output"
            assert (buffer[-GUARD:] == poison).all(), "written past the output"
        runs.append(outputs)
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second), "not all of the output is written"
    return runs[0]


def judge_without_pauses(run: Callable[[Callable[[], None]], list[torch.Tensor]]) -> None:
    """Kernels that read what the one before wrote: each time the bits that they give with a pause after each.

    run(done) calls done() after each kernel and gives all that they wrote.
    """
    expected = run(torch.cuda.synchronize)
    assert all(output.any() for output in expected)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(run(lambda: None), expected, strict=True))


def judge_int8(case: object, y: torch.Tensor, exact: torch.Tensor, scale: float, slack: torch.Tensor | float) -> None:
    """y is saturate(round((exact + e) / scale)) for some |e| <= slack; `exact` is FP64."""
    scale = torch.tensor(scale, dtype=torch.float32, device=DEVICE).double()  # as the kernel gets it
    steps = (exact / scale).clamp(-128, 127)
    excess = (y.double() - steps).abs() - 0.5 - slack / scale - 255 * 4 * FP32  # 1 / scale and two FMA with it
    assert excess.max() <= 0, f"{case}: {excess.max():.3g} steps too far off"


def judge_fp16(case: object, y: torch.Tensor, exact: torch.Tensor, slack: torch.Tensor | float) -> None:
    excess = (y.double() - exact).abs() - FP16 * exact.abs() - 2.0**-25 - (1 + FP16) * slack
    assert excess.max() <= 0, f"{case}: {excess.max():.3g} too far off"


# --- Linear ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Linear:
    """One call: y [rows, out_features] of x [rows, in_features]."""

    rows: int
    in_features: int
    out_features: int


LINEAR_CASES = [
    *(Linear(side * side, k * c, n * c) for side, c in ((56, 96), (28, 192), (14, 384), (7, 768))
      for k, n in ((1, 3), (1, 1), (1, 4), (4, 1))),  # Small at batch 1
    Linear(32 * 196, 384, 1536), Linear(128 * 196, 384, 1152), Linear(128 * 49, 3072, 768), Linear(16 * 4096, 96, 288),
    Linear(1, 16, 16), Linear(3, 32, 48), Linear(63, 112, 80), Linear(70, 144, 112), Linear(129, 208, 272),
    Linear(1000, 80, 16), Linear(257, 16, 208),
    # On Hopper: part of a tile, in each kind of tile and epilogue.
    Linear(1, 16, 32), Linear(33, 48, 32), Linear(129, 208, 160), Linear(3137, 16, 352), Linear(3137, 48, 544),
    Linear(9001, 16, 352), Linear(3137, 400, 608), Linear(3137, 400, 896), Linear(6273, 16, 416), Linear(9001, 16, 608),
    Linear(12545, 16, 224), Linear(25089, 16, 160), Linear(30001, 16, 160),
]
EPILOGUES = ["", "gelu", "residual"]


def exact_linear(x, weight, scale, bias, residual, gelu: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """y in FP64, and what FP32 may lose of it.

    The sum becomes FP32 (half a unit in the last place), the fused product and sum with bias rounds once, GELU (whose
    slope is at most 1.13) errs by 1e-6 of its own and rounds, the residual's sum rounds.
    """
    product = (x.double() @ weight.double().T) * scale.double()  # sums stay below 2^53
    y = product + bias.double()
    slack = FP32 * (product.abs() + y.abs())
    if gelu:
        slack = 1.13 * slack + 1e-6 + 4 * FP32 * y.abs()
        y = y * 0.5 * torch.special.erfc(-y / 2**0.5)
    if residual is not None:
        y = y + residual.double()
        slack = slack + FP32 * y.abs()
    return y, slack


def gelu_slack(x, weight, scale, bias, exact, y_scale: float) -> torch.Tensor:
    """What FP16 may lose of GELU before INT8 (common/gelu.cuh, quantize.cuh).

    Its argument, itself and its result are rounded, and so are 1 / scale and the place between -128 and 127 steps.
    """
    before = (x.double() @ weight.double().T) * scale.double() + bias.double()
    return 1.13 * FP16 * before.abs() + 4.2e-4 + 2 * FP16 * exact.abs() + (255 * FP16 / 2 + 0.002) * y_scale


def check_linear(case: Linear, x, weight, epilogue: str, quantised: bool, y_scale: float | None = None) -> None:
    gelu = epilogue == "gelu"
    scale = (0.5 + random_float((case.out_features,), 3).abs()) / (6e3 * case.in_features**0.5)
    bias = random_float((case.out_features,), 4)
    residual = random_float((case.rows, case.out_features), 5).half() if epilogue == "residual" else None
    exact, slack = exact_linear(x, weight, scale, bias, residual, gelu)
    if not quantised:
        y_scale = 0.0
    elif y_scale is None:
        y_scale = exact.abs().max().item() / 100  # some values saturate
    y, = outputs_of(lambda out: kernels.linear_int8(x, weight, scale, bias, residual, out, int(gelu), y_scale),
                    ((case.rows, case.out_features), torch.int8 if quantised else torch.float16))
    if quantised and gelu:
        slack = slack + gelu_slack(x, weight, scale, bias, exact, y_scale)
    if quantised:
        judge_int8((case, epilogue), y, exact, y_scale, slack)
    else:
        judge_fp16((case, epilogue), y, exact, slack)


@pytest.mark.parametrize("quantised", [False, True], ids=["FP16", "INT8"])
@pytest.mark.parametrize("epilogue", EPILOGUES, ids=["bias", "GELU", "residual"])
def test_linear(epilogue, quantised):
    for case in LINEAR_CASES:
        x = random_int8((case.rows, case.in_features), 1)
        weight = random_int8((case.out_features, case.in_features), 2)
        check_linear(case, x, weight, epilogue, quantised)


@pytest.mark.parametrize("quantised", [False, True], ids=["FP16", "INT8"])
def test_linear_with_gelus_tanh_form(quantised):
    """Its slope is at most 1.13 too; what FP32 loses of it is less than of the other, for which exact_linear allows."""
    for case in LINEAR_CASES:
        x, weight = random_int8((case.rows, case.in_features), 1), random_int8((case.out_features, case.in_features), 2)
        scale = (0.5 + random_float((case.out_features,), 3).abs()) / (6e3 * case.in_features**0.5)
        bias = random_float((case.out_features,), 4)
        before, slack = exact_linear(x, weight, scale, bias, None, False)
        exact = F.gelu(before, approximate="tanh")
        slack = 1.13 * slack + 1e-6 + 4 * FP32 * exact.abs()
        y_scale = exact.abs().max().item() / 100 if quantised else 0.0
        y, = outputs_of(lambda out, of=(x, weight, scale, bias), step=y_scale: kernels.linear_int8(
                            *of, None, out, 2, step),
                        ((case.rows, case.out_features), torch.int8 if quantised else torch.float16))
        if quantised:
            judge_int8(case, y, exact, y_scale, slack)
        else:
            judge_fp16(case, y, exact, slack)


@pytest.mark.parametrize("y_scale", [1e-4, 1 / 256, 64.0, 1e3, 3e5])
def test_gelu_before_int8_at_any_scale(y_scale):
    """Also where FP16 would not hold its argument or its steps: sums of 128 * 128 * K, scaled to some 100 steps."""
    case = Linear(300, 96, 384)
    x, weight = random_int8((case.rows, case.in_features), 1), random_int8((case.out_features, case.in_features), 2)
    scale = torch.full((case.out_features,), 100 * y_scale / (5e3 * 3 * case.in_features**0.5), device=DEVICE)
    bias = torch.zeros(case.out_features, device=DEVICE)
    exact, slack = exact_linear(x, weight, scale, bias, None, True)
    y, = outputs_of(lambda out: kernels.linear_int8(x, weight, scale, bias, None, out, 1, y_scale),
                    ((case.rows, case.out_features), torch.int8))
    if 1 / 256 <= y_scale <= 64:
        slack = slack + gelu_slack(x, weight, scale, bias, exact, y_scale)
    judge_int8((case, y_scale), y, exact, y_scale, slack)


@pytest.mark.parametrize("rows", [196, 6272])
def test_kernels_one_after_the_other(rows):
    """V2's fc1, fc2 and LayerNorm read what the one before wrote, with nothing between: bits of calls with a pause."""
    width, layers = 384, 4
    x_q, x = random_int8((rows, width), 1), random_float((rows, width), 2).half()
    gamma, beta = parameters(width, torch.float16, 3)

    def product(in_features: int, out_features: int, seed: int) -> tuple[torch.Tensor, ...]:
        weight = random_int8((out_features, in_features), seed)
        scale = (0.5 + random_float((out_features,), seed + 1).abs()) / (6e3 * in_features**0.5)
        return weight, scale, random_float((out_features,), seed + 2)

    products = [(product(width, 4 * width, 10 * i), product(4 * width, width, 10 * i + 5)) for i in range(layers)]

    def run(done: Callable[[], None]) -> list[torch.Tensor]:
        shapes = [((rows, 4 * width), torch.int8), ((rows, width), torch.int8), ((rows, width), torch.float16),
                  ((rows, width), torch.int8)] * layers
        outputs = [torch.zeros(shape, dtype=dtype, device=DEVICE) for shape, dtype in shapes]
        torch.cuda.synchronize()
        tokens, stream = x_q, x
        for i, (fc1, fc2) in enumerate(products):
            hidden, sums, y, y_q = outputs[4 * i:4 * i + 4]
            kernels.linear_int8(tokens, *fc1, None, hidden, 1, 0.05)
            done()
            kernels.linear_int8(hidden, *fc2, None, sums, 0, 0.05)
            done()
            kernels.layernorm_add_int8(sums, stream, gamma, beta, y, y_q, EPSILON, 0.05, 0.03)
            done()
            tokens, stream = y_q, y
        return outputs

    judge_without_pauses(run)


@pytest.mark.parametrize("rows", [49, 6272])
def test_linear_with_the_largest_sums(rows):
    """-128 everywhere: sums of 128 * 128 * K, and y far outside of what INT8 holds."""
    case = Linear(rows, 3072, 768)
    x = torch.full((case.rows, case.in_features), -128, dtype=torch.int8, device=DEVICE)
    weight = torch.full((case.out_features, case.in_features), -128, dtype=torch.int8, device=DEVICE)
    weight[::2] = 127
    for quantised in (False, True):
        check_linear(case, x, weight, "", quantised, y_scale=1e-9)


def test_linear_past_2_to_the_31_elements():
    case = Linear(1_900_000, 16, 1152)
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    x, weight = random_int8((case.rows, case.in_features), 1), random_int8((case.out_features, case.in_features), 2)
    scale, bias = torch.full((case.out_features,), 1e-4, device=DEVICE), torch.zeros(case.out_features, device=DEVICE)
    y = torch.full((case.rows, case.out_features), 77, dtype=torch.int8, device=DEVICE)
    kernels.linear_int8(x, weight, scale, bias, None, y, 0, 0.05)
    for rows in (slice(0, 1000), slice(-1000, None)):
        exact, slack = exact_linear(x[rows], weight, scale, bias, None, False)
        judge_int8(case, y[rows], exact, 0.05, slack)


# --- LayerNorm forms and quantisation --------------------------------------------------------------------------------

ROW_CASES = [
    *((49, 96 << stage, data) for stage in range(4) for data in ("normal", "mean 1e4", "zero rows")),
    (3136, 96, "normal"), (1, 4, "normal"), (5, 100, "normal"), (7, 1000, "normal"), (3, 8192, "normal"),
    # One vector a thread, three and four of them, up to and past kEarlyElements.
    (50, 16, "normal"), (50_000, 96, "normal"), (3136, 128, "normal"), (40_000, 128, "normal"), (9, 512, "zero rows"),
]


def exact_layer_norm(x, gamma, beta) -> tuple[torch.Tensor, torch.Tensor]:
    """LN in FP64, and what FP32 may lose of it: 2^-20 (some 16 roundings) of each term, of the mean's share too."""
    x = x.double()
    y = F.layer_norm(x, x.shape[-1:], gamma.double(), beta.double(), EPSILON)
    deviation = (x.var(-1, correction=0, keepdim=True) + EPSILON).sqrt()
    lost = (x.abs() + x.mean(-1, keepdim=True).abs()) / deviation
    return y, 2.0**-20 * ((lost + 1) * gamma.double().abs() + beta.double().abs())


def check_layernorm(rows: int, width: int, data: str, offset: int) -> None:
    x = draw((rows, width), torch.float16, data, 1)
    gamma, beta = parameters(width, torch.float16, 2)
    exact, slack = exact_layer_norm(x, gamma, beta)
    y_q, = outputs_of(lambda out: kernels.layernorm_int8(x, gamma, beta, out, EPSILON, 0.03),
                      ((rows, width), torch.int8), offset=offset)
    judge_int8((rows, width, data), y_q, exact, 0.03, slack)


def check_layernorm_add(rows: int, width: int, data: str, offset: int) -> None:
    x, residual = draw((rows, width), torch.float16, data, 1), draw((rows, width), torch.float16, "normal", 3)
    gamma, beta = parameters(width, torch.float16, 2)
    exact, slack = exact_layer_norm(x, gamma, beta)
    exact = exact + residual.double()
    slack = slack + FP32 * exact.abs()
    y, y_q = outputs_of(lambda y, y_q: kernels.layernorm_add_int8(x, residual, gamma, beta, y, y_q, EPSILON, 0.0,
                                                                  0.03),
                        ((rows, width), torch.float16), ((rows, width), torch.int8), offset=offset)
    judge_int8((rows, width, data), y_q, exact, 0.03, slack)
    judge_fp16((rows, width, data), y, exact, slack)


def check_layernorm_add_of_int8(rows: int, width: int, data: str, offset: int, x_scale: float = 0.02) -> None:
    """x INT8: any value, all near 120 ("mean 1e4"), or some rows of equal numbers ("zero rows"), which lose nothing."""
    x = random_int8((rows, width), 1)
    if data == "mean 1e4":
        x = 120 + x % 8
    if data == "zero rows":
        x[::3] = 0
        x[1::3] = -77
    x = misalign(x) if offset else x
    residual, (gamma, beta) = draw((rows, width), torch.float16, "normal", 3), parameters(width, torch.float16, 2)
    exact, slack = exact_layer_norm(x.double() * torch.tensor(x_scale, device=DEVICE).double(), gamma, beta)
    equal = (x == x[:, :1]).all(-1, keepdim=True)
    exact, slack = torch.where(equal, beta.double(), exact), torch.where(equal, 0, slack)
    exact = exact + residual.double()
    slack = slack + FP32 * exact.abs()
    y, y_q = outputs_of(lambda y, y_q: kernels.layernorm_add_int8(x, residual, gamma, beta, y, y_q, EPSILON, x_scale,
                                                                  0.03),
                        ((rows, width), torch.float16), ((rows, width), torch.int8), offset=offset)
    judge_int8((rows, width, data, x_scale), y_q, exact, 0.03, slack)
    judge_fp16((rows, width, data, x_scale), y, exact, slack)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("check", [check_layernorm, check_layernorm_add, check_layernorm_add_of_int8])
def test_layernorm(check, offset):
    for case in ROW_CASES:
        check(*case, offset)


@pytest.mark.parametrize("x_scale", [1e-30, 1e-5, 2e-3, 1.0, 1e4, 1e30])
def test_layernorm_of_int8_at_any_scale(x_scale):
    """Also where epsilon is most of the variance, and where it is nothing beside it, in rows of equal numbers too."""
    for data in ("normal", "zero rows"):
        check_layernorm_add_of_int8(49, 384, data, 0, x_scale)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 2048, 100_003])
def test_quantize(count, offset):
    x = (random_float((count,), 1) * 3).half()
    x[::5] = 1.0 / 32  # half a step: ties go to even
    x[1::7] = 3.0 / 32
    y_q, = outputs_of(lambda out: kernels.quantize(x, out, 1 / 16), ((count,), torch.int8), offset=offset)
    assert torch.equal(y_q, (x.double() * 16).round().clamp(-128, 127).to(torch.int8))  # 1/16 loses nothing


# --- attention -------------------------------------------------------------------------------------------------------

def check_attention(case: Attention, variant: str, quantised: bool) -> None:
    qkv_scale, scale, logit_scale = 0.02, case.head_width**-0.5, None
    channels = case.channels
    qkv = random_int8((case.batch, case.height, case.width, 3 * channels), case.window[0])
    bias = random_float((case.num_heads, case.positions, case.positions), 2)
    padding = random_float((3 * channels,), 4)
    padding[::7] *= 4  # beyond 127 steps
    if variant == "V1":
        qkv = qkv // 2  # scores of about 2: no softmax of one token alone
    else:
        padding[channels:2 * channels] = 0  # V2's key has no bias
        scale, logit_scale = 1.0, random_float((case.num_heads,), 3).abs() * 20 + 1
        if variant == "V2 at the clamp":
            logit_scale = torch.full_like(logit_scale, 100.0)
    if case.data == "zero rows":
        qkv.flatten(1, 2)[:, ::3] = 0
    step = torch.tensor(qkv_scale, device=DEVICE)
    values = qkv.double() * step.double()
    # As QuantizeLinear: the quotient in FP32, half to even.
    of_padding = (padding / step).round().clamp(-128, 127).double() * step.double()
    exact = window_attention(values, bias.double(), of_padding,
                             None if logit_scale is None else logit_scale.double(), case)
    y_scale = exact.abs().max().item() / 110 if quantised else 0.0
    given, given_bias, given_padding = qkv, guarded(padded_bias(bias)), guarded(padding)
    if case.misaligned:
        given = misalign(qkv)
    y, = outputs_of(lambda out: kernels.attention_int8(
                        given, given_bias, given_padding, logit_scale, out, case.num_heads, case.window, case.shift,
                        scale, -100.0, qkv_scale, y_scale, case.roll_first, case.shift_if_covered),
                    (tuple(exact.shape), torch.int8 if quantised else torch.float16), offset=int(case.misaligned))
    # Scores of exact integer products lose a few FP32 roundings, 2^-20 of the largest, and probabilities as much of
    # themselves; these are rounded to FP16, and weighed and normalised as they are then: 2 * 2^-11 of the largest v.
    q, k, v = (torch.maximum(part.abs().max(), pad.abs().max()).item()
               for part, pad in zip(values.chunk(3, -1), of_padding.chunk(3), strict=True))
    largest = case.head_width**0.5 * q * k if variant == "V1" else logit_scale.max().item()
    slack = v * (2 * FP16 + 2.0**-20 * (largest + bias.abs().max().item() + 100))
    if quantised:
        judge_int8((case, variant), y, exact, y_scale, slack)
    else:
        judge_fp16((case, variant), y, exact, slack)


@pytest.mark.parametrize("quantised", [False, True], ids=["FP16", "INT8"])
@pytest.mark.parametrize("variant", ["V1", "V2", "V2 at the clamp"])
def test_attention(variant, quantised):
    for case in ATTENTION_CASES:
        check_attention(case, variant, quantised)


@pytest.mark.parametrize("quantised", [False, True], ids=["FP16", "INT8"])
@pytest.mark.parametrize("variant", ["V1", "V2"])
def test_attention_of_awkward_windows_heads_and_paddings(variant, quantised):
    for case in AWKWARD_ATTENTIONS:
        check_attention(case, variant, quantised)


@pytest.mark.parametrize(("height", "width"), [(56, 56), (55, 50)])
def test_attention_past_2_to_the_31_elements(height, width):
    batch = 2**31 // (height * width * 288) + 22
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    qkv = random_int8((batch, height, width, 288), 1)
    bias, padding = random_float((3, 49, 49), 2), random_float((288,), 3)
    y = torch.full((batch, height, width, 96), 77, dtype=torch.int8, device=DEVICE)

    def run(qkv: torch.Tensor, y: torch.Tensor) -> None:
        kernels.attention_int8(qkv, padded_bias(bias), padding, None, y, 3, (7, 7), (3, 3), 32**-0.5, -100.0, 0.01,
                               0.01)

    run(qkv, y)
    alone = torch.empty_like(y[-2:])
    run(qkv[-2:].clone(), alone)
    assert torch.equal(y[-2:], alone)


# --- the attention branch --------------------------------------------------------------------------------------------

# Images of a stage of 384 channels, which one kernel takes on Hopper where the batch is large enough, and others of
# more windows. One that no such kernel takes is the last.
BRANCH_IMAGES = {
    1: [(14, 14, 12, 7, 0), (14, 14, 12, 7, 3), (14, 35, 12, 7, 2), (7, 21, 3, 7, 2)],
    2: [(16, 16, 12, 8, 0), (16, 16, 12, 8, 4), (32, 32, 12, 8, 4), (24, 8, 12, 8, 3), (16, 8, 3, 8, 3)],
}
BRANCH_BATCHES = (1, 2, 9, 70)
WORSE_THAN_PARTS = 1.02  # rms error of one kernel, in that of the kernels of the parts
# The largest number in steps. With 110, a v of 32 would be 27.5 where -128 is the largest and one key takes all: an
# exact tie, which the one kernel and the parts round to different sides (quantize_but_for_ties), in thousands of
# places.
LARGEST_STEPS = 109.3


@dataclass
class Branch:
    """One call: the tensors and the numbers of kernels.attention_branch_int8, in its order, but for y and y_q."""

    case: Attention
    norm_first: bool
    tensors: list[torch.Tensor | None]
    qkv_scale: float = 0.03
    attention_scale: float = 0.0
    proj_scale: float = 0.0
    y_scale: float = 0.0

    @property
    def scale(self) -> float:
        return 32**-0.5 if self.norm_first else 1.0

    @property
    def outputs(self) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        shape = self.tensors[0].shape
        return (tuple(shape), torch.float16), (tuple(shape), torch.int8)

    def run(self, y: torch.Tensor, y_q: torch.Tensor, **workspace: int) -> None:
        c = self.case
        kernels.attention_branch_int8(*self.tensors, y, y_q, c.num_heads, c.window, c.shift, self.norm_first,
                                      self.scale, -100.0, self.qkv_scale, self.attention_scale, self.proj_scale,
                                      EPSILON, self.y_scale, **workspace)

    def run_parts(self, y: torch.Tensor, y_q: torch.Tensor) -> torch.Tensor:
        """The same by the kernels of the parts, one after the other; gives back attention's result in INT8."""
        c = self.case
        (x_q, x, qkv_weight, qkv_factor, qkv_bias, proj_weight, proj_factor, proj_bias, bias, gamma, beta,
         logit_scale) = self.tensors
        qkv = torch.empty(*x.shape[:-1], 3 * x.shape[-1], dtype=torch.int8, device=DEVICE)
        attention = torch.empty_like(x_q)
        kernels.linear_int8(x_q, qkv_weight, qkv_factor, qkv_bias, None, qkv, 0, self.qkv_scale)
        kernels.attention_int8(qkv, bias, None, logit_scale, attention, c.num_heads, c.window, c.shift, self.scale,
                               -100.0, self.qkv_scale, self.attention_scale)
        if self.norm_first:
            kernels.linear_int8(attention, proj_weight, proj_factor, proj_bias, x, y, 0, 0.0)
            kernels.layernorm_int8(y, gamma, beta, y_q, EPSILON, self.y_scale)
        else:
            proj = torch.empty_like(x_q)
            kernels.linear_int8(attention, proj_weight, proj_factor, proj_bias, None, proj, 0, self.proj_scale)
            kernels.layernorm_add_int8(proj, x, gamma, beta, y, y_q, EPSILON, self.proj_scale, self.y_scale)
        return attention


def relative_bias(heads: int, window: int, seed: int) -> torch.Tensor:
    """[nH, N, N], a function of only the relative position."""
    row = torch.arange(window**2, device=DEVICE) // window
    column = torch.arange(window**2, device=DEVICE) % window
    place = (row[:, None] - row + window - 1) * (2 * window - 1) + column[:, None] - column + window - 1
    return random_float((heads, (2 * window - 1)**2), seed)[:, place]


def steps_of(exact: torch.Tensor, scale: float) -> torch.Tensor:
    """FP64 -> the whole numbers of INT8, FP64."""
    scale = torch.tensor(scale, dtype=torch.float32, device=DEVICE).double()  # as the kernel gets it
    return (exact / scale).round().clamp(-128, 127)


def branch_of(case: Attention, version: int, seed: int = 1,
              largest_logit: float = 0.0) -> tuple[Branch, dict[str, torch.Tensor]]:
    """A call with scales that its numbers ask for, and what it gives in FP64 with the roundings of the contract:
    "attention" and "y_q" in steps, "y". largest_logit: of all heads in V2, instead of random ones.
    """
    channels = 32 * case.num_heads
    shape = (case.batch, case.height, case.width, channels)

    def product(out_features: int, offset: int) -> list[torch.Tensor]:
        weight = random_int8((out_features, channels), seed + offset)
        factor = (0.5 + random_float((out_features,), seed + offset + 1).abs()) / (6e3 * channels**0.5)
        return [weight, factor, 0.5 * random_float((out_features,), seed + offset + 2)]

    x_q, x = random_int8(shape, seed), random_float(shape, seed + 1).half()
    qkv, proj = product(3 * channels, 10), product(channels, 20)
    bias = relative_bias(case.num_heads, case.window[0], seed + 30)
    gamma, beta = parameters(channels, torch.float16, seed + 31)
    logit_scale = None if version == 1 else random_float((case.num_heads,), seed + 32).abs() * 20 + 1
    if largest_logit:
        logit_scale = torch.full_like(logit_scale, largest_logit)
    branch = Branch(case, version == 1, [x_q, x, *qkv, *proj, padded_bias(bias), gamma, beta, logit_scale])

    def fp32(scale: float) -> torch.Tensor:
        return torch.tensor(scale, dtype=torch.float32, device=DEVICE).double()

    def linear(steps: torch.Tensor, weight: torch.Tensor, factor: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        return (steps @ weight.double().T) * factor.double() + of.double()

    found = steps_of(linear(x_q.double(), *qkv), branch.qkv_scale) * fp32(branch.qkv_scale)
    found = window_attention(found, bias.double(), None, None if version == 1 else logit_scale.double(), case)
    branch.attention_scale = found.abs().max().item() / LARGEST_STEPS
    attention = steps_of(found, branch.attention_scale)
    found = linear(attention, *proj)
    if version == 1:
        y = (x.double() + found).half().double()
        normalised = exact_layer_norm(y, gamma, beta)[0]
    else:
        branch.proj_scale = found.abs().max().item() / LARGEST_STEPS
        steps = steps_of(found, branch.proj_scale)
        y = normalised = x.double() + exact_layer_norm(steps * fp32(branch.proj_scale), gamma, beta)[0]
    branch.y_scale = normalised.abs().max().item() / LARGEST_STEPS
    return branch, {"attention": attention, "y": y, "y_q": steps_of(normalised, branch.y_scale)}


def rms(x: torch.Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def check_branch(case: Attention, version: int, largest_logit: float = 0.0) -> None:
    """Not further from FP64 than the kernels of the parts, and hardly anywhere away from them.

    Where a number lies next to a tie, whoever adds in another order may round it to the other step, and so may FP16's
    probabilities take attention's result over one. Each such place moves all numbers of its row, by little: that is all
    the error there is, the parts' as well. Its square adds up over these places, `ties` of them, which are others for
    either: the rms error varies by 1 / (2 sqrt(ties)) of itself for each, and differs by sqrt(2) of that; four such are
    let pass. y_q may differ by a step, in V2 by another where proj's differs by one.
    """
    branch, exact = branch_of(case, version, largest_logit=largest_logit)
    y, y_q = outputs_of(branch.run, *branch.outputs)
    parts_y, parts_y_q = (torch.empty_like(output) for output in (y, y_q))
    attention = branch.run_parts(parts_y, parts_y_q)
    ties = (attention != exact["attention"]).sum().item()
    worst = WORSE_THAN_PARTS + 4 * 2**0.5 / (2 * max(ties, 8)**0.5)
    for name, actual, parts in (("y", y, parts_y), ("y_q", y_q, parts_y_q)):
        error, of_parts = rms(actual.double() - exact[name]), rms(parts.double() - exact[name])
        slack = FP16 / 100 * rms(exact[name])  # where there are hardly any ties
        assert error <= worst * of_parts + slack, f"{case}: {name} {error:.4g} off, the parts {of_parts:.4g}"
    most = 1 if version == 1 else 2
    differ = (y_q.int() - parts_y_q.int()).abs()
    assert differ.max() <= most, f"{case}: {differ.max()} steps from the parts' y_q"
    off = (parts_y_q.double() != exact["y_q"]).double().mean().item()
    assert (differ > 0).double().mean() <= (1 + worst**2) * off + 1e-4, f"{case}: y_q differs in too many places"
    assert (y.double() - parts_y.double()).abs().max() <= most * branch.y_scale, f"{case}: y is too far from the parts'"
    if case.num_heads == 3:  # it is the parts
        assert torch.equal(y, parts_y) and torch.equal(y_q, parts_y_q)


@pytest.mark.parametrize("batch", BRANCH_BATCHES)
@pytest.mark.parametrize("version", [1, 2])
def test_attention_branch(version, batch):
    for image in BRANCH_IMAGES[version]:
        check_branch(square(batch, *image), version)


def test_attention_branch_at_the_clamp_of_logit_scale():
    check_branch(square(70, *BRANCH_IMAGES[2][1]), 2, largest_logit=100.0)


@pytest.mark.parametrize("version", [1, 2])
def test_attention_branch_is_one_kernel_where_it_says_so(version):
    """That needs no workspace, and is what the other tests test at batch 70. A few windows are left to the parts."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the kernel is for compute capability 9.0")
    for image in BRANCH_IMAGES[version][:-1]:
        branch, _ = branch_of(square(70, *image), version)
        outputs_of(lambda *outputs, branch=branch: branch.run(*outputs, workspace_bytes=0), *branch.outputs)
    branch, _ = branch_of(square(1, *BRANCH_IMAGES[version][0]), version)
    with pytest.raises(RuntimeError, match="CUDA error 1"):
        branch.run(*(torch.empty(shape, dtype=dtype, device=DEVICE) for shape, dtype in branch.outputs),
                   workspace_bytes=0)


@pytest.mark.parametrize(("proj_bias", "proj_scale"), [(None, None), (0.25, None), (2500.0, 100.0)])
@pytest.mark.parametrize("version", [1, 2])
def test_attention_branch_of_zeros(version, proj_bias, proj_scale):
    """q, k and v are zero, and so are their norms; with one bias for all of proj, its rows have no variance, beside
    which V2's epsilon is 1e-9 in steps of 100. Attention's result is exact then: what differs from the parts lies next
    to a tie, as two orders of adding in FP32 are some 1e-6 steps apart. In V1 they differ by more: rows of x have a
    mean of 1000, or with proj's bias 3500, and a standard deviation of about 1. FP32 knows that mean to 2^-23 of it;
    what LayerNorm gives is off by `shift` steps, and as likely does a tie lie in between.
    """
    branch, _ = branch_of(square(70, *BRANCH_IMAGES[version][1]), version)
    branch.tensors[0].zero_()  # x_q
    branch.tensors[1] += 1000  # x
    branch.tensors[4].zero_()  # qkv_bias
    if proj_bias is not None:
        branch.tensors[7].fill_(proj_bias)
    if proj_scale is not None and version == 2:
        branch.proj_scale = proj_scale
    y, y_q = outputs_of(branch.run, *branch.outputs)
    parts_y, parts_y_q = (torch.empty_like(output) for output in (y, y_q))
    assert not branch.run_parts(parts_y, parts_y_q).any()
    shift = 0.0
    if version == 2:  # its y, too, is a sum of what LayerNorm gives
        assert (y.double() - parts_y.double()).abs().max() <= 1.0 and (y != parts_y).double().mean() <= 1e-3
    else:
        assert torch.equal(y, parts_y)
        rows, gamma = y.double(), branch.tensors[9].double()
        shift = (2**-23 * rows.mean() / rows.std(-1).mean() * gamma.abs().mean() / branch.y_scale).item()
    differ = (y_q.int() - parts_y_q.int()).abs()
    assert differ.max() <= 1 and (differ > 0).double().mean() <= 1e-3 + shift


@pytest.mark.parametrize("version", [1, 2])
def test_attention_branch_in_groups_of_images(version):
    """With room for two images and a half, 7 of them are 2, 2, 2 and 1; the bits do not depend on that."""
    image = BRANCH_IMAGES[version][-1]
    branch, _ = branch_of(square(7, *image), version)
    y, y_q = outputs_of(branch.run, *branch.outputs)
    height, width, heads = image[:3]
    of_image = 3 * height * width * 32 * heads
    again = outputs_of(lambda *outputs: branch.run(*outputs, workspace_bytes=5 * of_image // 2), *branch.outputs)
    assert torch.equal(again[0], y) and torch.equal(again[1], y_q)
    with pytest.raises(RuntimeError, match="CUDA error 1"):
        branch.run(y, y_q, workspace_bytes=of_image - 1)


@pytest.mark.parametrize("batch", BRANCH_BATCHES)
@pytest.mark.parametrize("version", [1, 2])
def test_attention_branch_leaves_other_images_alone(version, batch):
    """Outputs for more images than x has, and x for more than it is told of."""
    for image in BRANCH_IMAGES[version]:
        more, _ = branch_of(square(batch + 2, *image), version)
        fewer = Branch(square(batch, *image), more.norm_first,
                       [tensor[:batch] for tensor in more.tensors[:2]] + more.tensors[2:], more.qkv_scale,
                       more.attention_scale, more.proj_scale, more.y_scale)
        y, y_q = (torch.full(shape, 77, dtype=dtype, device=DEVICE) for shape, dtype in more.outputs)
        fewer.run(y, y_q)
        assert (y[batch:] == 77).all() and (y_q[batch:] == 77).all()
        alone = outputs_of(fewer.run, *fewer.outputs)
        assert torch.equal(y[:batch], alone[0]) and torch.equal(y_q[:batch], alone[1])


@pytest.mark.parametrize("version", [1, 2])
def test_attention_branch_takes_each_image_by_itself(version):
    """The same image gives the same bits, wherever in a batch it stands."""
    for image in BRANCH_IMAGES[version]:
        branch, _ = branch_of(square(70, *image), version)
        for tensor in branch.tensors[:2]:
            tensor[1:] = tensor[0].clone()
        y, y_q = outputs_of(branch.run, *branch.outputs)
        assert (y == y[:1]).all() and (y_q == y_q[:1]).all()


@pytest.mark.parametrize("batch", [2, 70])
@pytest.mark.parametrize("version", [1, 2])
def test_attention_branches_one_after_the_other(version, batch):
    """Each reads what the one before wrote, with fc1 between that reads it, too: bits of calls with a pause."""
    image, layers = BRANCH_IMAGES[version][1], 6
    branches = [branch_of(square(batch, *image), version, 100 * i + 1)[0] for i in range(layers)]
    channels = 32 * image[2]
    weight = random_int8((4 * channels, channels), 7)
    scale, bias = torch.full((4 * channels,), 1e-5, device=DEVICE), torch.zeros(4 * channels, device=DEVICE)
    inputs = branches[0].tensors[:2]

    def run(done: Callable[[], None]) -> list[torch.Tensor]:
        outputs = [torch.zeros(shape, dtype=dtype, device=DEVICE) for branch in branches
                   for shape, dtype in branch.outputs]
        hidden = [torch.zeros(*inputs[0].shape[:-1], 4 * channels, dtype=torch.int8, device=DEVICE) for _ in branches]
        torch.cuda.synchronize()
        x_q, x = inputs
        for i, branch in enumerate(branches):
            y, y_q = outputs[2 * i:2 * i + 2]
            branch.tensors[:2] = [x_q, x]
            branch.run(y, y_q)
            done()
            kernels.linear_int8(y_q, weight, scale, bias, None, hidden[i], 1, 0.05)
            done()
            x_q, x = y_q, y
        return outputs + hidden

    judge_without_pauses(run)


@pytest.mark.parametrize("version", [1, 2])
def test_attention_branch_on_two_streams_at_once(version):
    """Two threads, a stream each: the bits of calls one by one."""
    def branches(stream: torch.cuda.Stream, calls: list, outputs: list) -> None:
        with torch.cuda.stream(stream):
            for _ in range(20):
                for branch, tensors in zip(calls, outputs, strict=True):
                    branch.run(*tensors)

    image = BRANCH_IMAGES[version][1]
    calls = [[branch_of(square(batch, *image), version, seed)[0] for batch in (2, 70)] for seed in (1, 100)]
    outputs = [[[torch.full(shape, 77, dtype=dtype, device=DEVICE) for shape, dtype in branch.outputs]
                for branch in both] for both in calls]
    torch.cuda.synchronize()
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(branches, torch.cuda.Stream(), *both) for both in zip(calls, outputs, strict=True)]:
            future.result()
    torch.cuda.synchronize()
    for branch, tensors in zip([*calls[0], *calls[1]], [*outputs[0], *outputs[1]], strict=True):
        alone = outputs_of(branch.run, *branch.outputs)
        assert all(torch.equal(a, b) for a, b in zip(tensors, alone, strict=True))


def test_attention_branch_arguments_outside_the_contract_are_refused():
    v1, v2 = (branch_of(square(2, *BRANCH_IMAGES[version][1]), version)[0] for version in (1, 2))

    def refused(branch: Branch, tensors: dict | None = None, case: Attention | None = None, **numbers: float) -> None:
        changed = list(branch.tensors)
        for i, tensor in (tensors or {}).items():
            changed[i] = tensor
        kwargs = {name: getattr(branch, name) for name in ("norm_first", "qkv_scale", "attention_scale", "proj_scale",
                                                           "y_scale")}
        y, y_q = (torch.empty(shape, dtype=dtype, device=DEVICE) for shape, dtype in branch.outputs)
        call = Branch(case or branch.case, tensors=changed, **{**kwargs, **numbers})
        with pytest.raises(RuntimeError, match="CUDA error 1"):
            call.run(y, y_q)

    for branch in (v1, v2):
        for i in (0, *range(2, 11)):  # the shape is x's
            refused(branch, {i: None})
        for i in (2, 5):
            refused(branch, {i: misalign(branch.tensors[i])})
        for name in ("qkv_scale", "attention_scale", "y_scale"):
            for number in (0.0, -0.1, math.nan):
                refused(branch, **{name: number})
    refused(v1, proj_scale=0.1)
    refused(v1, {11: v2.tensors[11]})
    refused(v2, proj_scale=0.0)
    refused(v2, {11: None})
    refused(v1, norm_first=2)
    for image in ((14, 14, 0, 7, 3), (14, 14, 12, 5, 0), (14, 14, 12, 7, 7), (14, 14, 12, 7, -1)):
        refused(v1, case=square(2, *image))
    refused(v1, {1: v1.tensors[1][:, :0]})  # height and width are x's, as the batch
    refused(v1, {1: v1.tensors[1][:, :, :13].contiguous()})


# --- the contract's edges --------------------------------------------------------------------------------------------

def test_empty_input_is_nothing_to_do():
    nothing, parameter = torch.empty(0, 96, device=DEVICE), torch.ones(96, device=DEVICE)
    weight, y = random_int8((96, 96), 1), torch.empty(16, dtype=torch.int8, device=DEVICE)
    kernels.linear_int8(nothing.char(), weight, parameter, parameter, None, y, 0, 0.1)
    kernels.layernorm_int8(torch.empty(0, 96, device=DEVICE).half(), parameter, parameter, y, EPSILON, 0.1)
    none = torch.empty(0, 7, 7, 96, device=DEVICE)
    kernels.attention_branch_int8(none.char(), none.half(), *[parameter] * 9, None, y, y, 3, (7, 7), (0, 0), True, 1.0,
                                  -100.0, 0.1, 0.1, 0.0, EPSILON, 0.1)


def test_arguments_outside_the_contract_are_refused():
    x, weight, parameter = random_int8((4, 96), 1), random_int8((96, 96), 2), torch.ones(96, device=DEVICE)
    half, y = random_float((4, 96), 3).half(), torch.empty(4, 96, dtype=torch.int8, device=DEVICE)
    image = x.view(1, 2, 2, 96)
    refused = [
        lambda: kernels.linear_int8(x[:, :88].contiguous(), weight[:, :88].contiguous(), parameter, parameter, None, y,
                                    0, 0.1),
        lambda: kernels.linear_int8(x, weight[:88], parameter, parameter, None, y, 0, 0.1),
        lambda: kernels.linear_int8(x, weight, parameter, parameter, half, y, 1, 0.1),
        lambda: kernels.linear_int8(x, weight, parameter, parameter, half, y, 2, 0.1),
        lambda: kernels.linear_int8(x, weight, parameter, parameter, None, y, 3, 0.1),
        lambda: kernels.linear_int8(x, weight, parameter, parameter, None, y, 0, -0.1),
        lambda: kernels.linear_int8(x.view(-1)[1:97], weight, parameter, parameter, None, y, 0, 0.1),
        lambda: kernels.layernorm_int8(half, parameter, parameter, y, EPSILON, 0.0),
        lambda: kernels.layernorm_add_int8(half, None, parameter, parameter, half, y, EPSILON, 0.0, 0.1),
        lambda: kernels.layernorm_add_int8(x, half, parameter, parameter, half, y, EPSILON, -0.1, 0.1),
        lambda: kernels.layernorm_add_int8(x, half, parameter, parameter, half, y, EPSILON, math.nan, 0.1),
        lambda: kernels.layernorm_add_int8(x, half, parameter, parameter, half, y, EPSILON, 0.1, 0.0),
        lambda: kernels.quantize(half, y, math.nan),
        lambda: kernels.attention_int8(image, parameter, None, None, y, 1, (2, 2), (0, 0), 1.0, -100.0, 0.0, 0.1),
        lambda: kernels.attention_int8(image, parameter, None, None, y, 1, (2, 2), (0, 0), 1.0, -100.0, 0.1, -0.1),
        lambda: kernels.attention_int8(image, parameter, None, None, y, 1, (2, 3), (0, 0), 1.0, -100.0, 0.1, 0.1),
    ]
    for call in refused:
        with pytest.raises(RuntimeError, match="CUDA error 1"):
            call()
