"""The CUDA kernels against FP64, with PyTorch in the same precision as the yardstick.

    pytest -m gpu tests/test_kernels_gpu.py

In every case the largest error against FP64 may be at most twice PyTorch's on the same input, and on average over the
cases of a kernel and type not more than PyTorch's (errors in units of the largest reference value). Outputs are
poisoned with NaN and have guards on both sides; padding that must not be used holds NaN too.
"""
from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch", reason="the kernels are compared with PyTorch")

from TensorRT.Plugins.swin_kernels import c_interface as kernels  # noqa: E402, imports torch

F = torch.nn.functional
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the kernels run on an NVIDIA GPU only"),
]
DEVICE = "cuda"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPSILON = 1e-5
GUARD = 256  # elements before and after an output
CAPABILITY = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
on_tensor_cores = pytest.mark.skipif(CAPABILITY < (8, 0), reason="needs sm_80: tensor cores before have no TF32")


# --- inputs, outputs, errors -----------------------------------------------------------------------------------------

def draw(shape: tuple[int, ...], dtype: torch.dtype, data: str, seed: int) -> torch.Tensor:
    """Random activations [..., C]; `data` says what is hard about them."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    x = torch.randn(shape, generator=generator, device=DEVICE)
    if data == "mean 1e4":
        x = 1e4 + x * max(1.0, 1e5 * torch.finfo(dtype).eps)  # wide enough for the values to differ in `dtype`
    elif data == "huge":
        x = (x * 1e4).clamp(-3e4, 3e4) if dtype == torch.float16 else x * 1e15
    elif data == "zero rows":
        rows = x.view(-1, shape[-1])
        rows[::3] = 0
        rows[1::5] = 7.3  # constant rows have no variance either
    else:
        assert data == "normal"
    return x.to(dtype)


def parameters(width: int, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """FP32 gamma and beta [width] whose values `dtype` holds exactly, so that PyTorch loses nothing by casting them."""
    gamma, beta = draw((2, width), dtype, "normal", seed).float()
    return (1 + 0.25 * gamma).to(dtype).float(), beta.clone()


def misalign(x: torch.Tensor) -> torch.Tensor:
    """The same values one element past an aligned address."""
    buffer = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    view = buffer[1:].view(x.shape)
    view.copy_(x)
    return view


def guarded(x: torch.Tensor) -> torch.Tensor:
    """The same values with NaN on both sides: a sum that reads past the tensor shows it."""
    buffer = torch.full((x.numel() + 2 * GUARD,), math.nan, dtype=x.dtype, device=x.device)
    view = buffer[GUARD:-GUARD].view(x.shape)
    view.copy_(x)
    return view


class Output:
    """A NaN-filled tensor with NaN guards on both sides; `offset` elements past an aligned address."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0) -> None:
        count = math.prod(shape)
        self.buffer = torch.full((count + 2 * GUARD,), math.nan, dtype=dtype, device=DEVICE)
        self.first, self.last = GUARD + offset, GUARD + offset + count
        self.tensor = self.buffer[self.first:self.last].view(shape)

    def checked(self) -> torch.Tensor:
        """The output, once every element of it and nothing else is known to have been written."""
        assert self.buffer[:self.first].isnan().all(), "written before the output"
        assert self.buffer[self.last:].isnan().all(), "written past the output"
        assert self.tensor.isfinite().all(), "NaN or infinity in the output"
        return self.tensor


@dataclass
class Error:
    """Largest errors of one case against FP64, in units of the largest reference value."""

    case: str
    kernel: float
    pytorch: float
    dtype: torch.dtype


def error_of(case: str, outputs: list, pytorch: list, reference: list) -> Error:
    """Outputs of a kernel and of PyTorch against FP64, each a list of tensors of which the worst counts."""
    def worst(results: list[torch.Tensor]) -> float:
        errors = []
        for result, exact in zip(results, reference, strict=True):
            difference = (result.double() - exact).abs()
            # PyTorch itself may have no answer (F.normalize of a zero row in FP16); where it has none it sets no bound.
            largest = difference.nan_to_num(nan=0.0, posinf=0.0).max().item()
            errors.append(largest / max(exact.abs().max().item(), 1e-30))
        return max(errors)
    return Error(case, worst(outputs), worst(pytorch), outputs[0].dtype)


def judge(errors: list[Error], slack: float | None = None, floor: float = 0.0) -> None:
    """At most twice PyTorch's error in every case, at most PyTorch's error plus `slack` on average.

    In a short row PyTorch may be luckier than arithmetic allows anybody to count on. What any result may be off by
    there: half a unit in the last place, and in FP32, where a row's scale and the value that it gives are rounded
    likewise, three halves. `slack` is by default what that FP32 arithmetic may add to the rounding of a 16-bit result,
    which both have in common: 2^-24. `floor` is what a case may be off by where PyTorch is luckier still.
    """
    def allowed(e: Error) -> float:
        return max(floor, 2 * e.pytorch, (1.5 if e.dtype == torch.float32 else 0.5) * torch.finfo(e.dtype).eps)

    bad = [e for e in errors if e.kernel > allowed(e)]
    assert not bad, "\n".join(f"{e.case}: error {e.kernel:.3g}, PyTorch's {e.pytorch:.3g}" for e in bad)
    kernel = sum(e.kernel for e in errors) / len(errors)
    pytorch = sum(e.pytorch for e in errors) / len(errors)
    print(f"{len(errors)} cases: mean error {kernel:.4g}, PyTorch's {pytorch:.4g}; "
          f"worst ratio {max(e.kernel / max(e.pytorch, 1e-30) for e in errors):.2f}")
    if slack is None:
        slack = 0.0 if errors[0].dtype == torch.float32 else 2**-24
    assert kernel <= pytorch + slack, f"mean error {kernel:.6g}, PyTorch's {pytorch:.6g}"


# --- kernels over rows -----------------------------------------------------------------------------------------------

# Widths that fill vectors and lanes and widths that divide by nothing; warps, blocks and the widest row; few rows and
# all of a batch of 128. Few elements say little about an error, so small cases are drawn several times.
ROW_SHAPES = [
    (1, 32), (5, 33), (2, 48), (7, 64), (17, 95), (3136, 96), (33, 97), (29, 100), (65, 128), (784, 192), (3, 193),
    (50, 255), (196, 384), (31, 511), (1, 768), (49, 768), (13, 1000), (6, 1001), (9, 1024), (49, 1536), (5, 1537),
    (11, 2047), (10, 2048), (8, 3071), (8, 3072), (3, 8191), (3, 8192), (128 * 3136, 96), (128 * 49, 768),
]
DATA = ["normal", "mean 1e4", "zero rows", "huge"]
MINIMUM_ELEMENTS = 4096


def row_cases():
    """(name, rows, width, data, misaligned, seeds) of every case."""
    for rows, width in ROW_SHAPES:
        seeds = range(max(1, MINIMUM_ELEMENTS // (rows * width)))
        for data in DATA:
            yield f"[{rows}, {width}] {data}", rows, width, data, False, seeds
    for rows, width in [(3136, 96), (13, 1000), (49, 768), (8, 3072)]:
        yield f"[{rows}, {width}] misaligned", rows, width, "normal", True, range(1)


def row_errors(dtype, kernel, formula, tensors: int, outputs: int) -> list[Error]:
    """Errors of a row kernel over all cases.

    kernel(inputs, gamma, beta, outputs) fills the outputs; formula(inputs, gamma, beta) gives the same list of outputs
    by PyTorch in the precision of its arguments. inputs: `tensors` activations [rows, width].
    """
    errors = []
    for name, rows, width, data, misaligned, seeds in row_cases():
        got, same, exact = [], [], []
        for seed in seeds:
            x = [draw((rows, width), dtype, data, 3 * seed + i) for i in range(tensors)]
            gamma, beta = parameters(width, dtype, seed)
            out = [Output((rows, width), dtype, int(misaligned)) for _ in range(outputs)]
            given = [misalign(t) if misaligned else t for t in x]
            kernel(given, *(misalign(p) if misaligned else p for p in (gamma, beta)), [o.tensor for o in out])
            got.append([o.checked() for o in out])
            same.append(formula(x, gamma.to(dtype), beta.to(dtype)))
            exact.append(formula([t.double() for t in x], gamma.double(), beta.double()))
        errors.append(error_of(name, *([torch.cat(parts) for parts in zip(*lists, strict=True)]
                                       for lists in (got, same, exact))))
    return errors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layernorm(dtype):
    judge(row_errors(dtype, lambda x, gamma, beta, y: kernels.layernorm(x[0], None, None, y[0], EPSILON),
                     lambda x, gamma, beta: [F.layer_norm(x[0], x[0].shape[-1:], eps=EPSILON)], 1, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layernorm_with_parameters(dtype):
    judge(row_errors(dtype, lambda x, gamma, beta, y: kernels.layernorm(x[0], gamma, beta, y[0], EPSILON),
                     lambda x, gamma, beta: [F.layer_norm(x[0], gamma.shape, gamma, beta, EPSILON)], 1, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_layernorm(dtype):
    def formula(x, gamma, beta):
        total = x[0] + x[1]
        return [total, F.layer_norm(total, gamma.shape, gamma, beta, EPSILON)]

    def kernel(x, gamma, beta, y):
        kernels.add_layernorm(*x, gamma, beta, *y, EPSILON)

    judge(row_errors(dtype, kernel, formula, 2, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layernorm_add(dtype):
    judge(row_errors(dtype, lambda x, gamma, beta, y: kernels.layernorm_add(*x, gamma, beta, y[0], EPSILON),
                     lambda x, gamma, beta: [x[1] + F.layer_norm(x[0], gamma.shape, gamma, beta, EPSILON)], 2, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fnorm(dtype):
    judge(row_errors(dtype, lambda x, gamma, beta, y: kernels.fnorm(x[0], y[0], 1e-12),
                     lambda x, gamma, beta: [F.normalize(x[0], dim=-1, eps=1e-12)], 1, 1))


# --- patch merging ---------------------------------------------------------------------------------------------------

MERGE_SHAPES = [  # batch, height, width, channels
    (1, 2, 2, 96), (2, 4, 6, 33), (1, 56, 56, 96), (3, 28, 28, 192), (2, 14, 14, 384), (5, 6, 10, 100), (1, 8, 8, 768),
    (2, 16, 4, 2048), (128, 56, 56, 96),
    (3, 57, 57, 96), (2, 7, 10, 192), (2, 10, 7, 33), (3, 1, 1, 384), (2, 1, 9, 100), (2, 5, 1, 768), (1, 3, 3, 2048),
]


def merged(x: torch.Tensor) -> torch.Tensor:
    """Official PatchMerging's concatenation, odd sides padded: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), 4C]."""
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    return torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_patch_merge(dtype):
    errors = []
    for batch, height, width, channels in MERGE_SHAPES:
        for data in DATA:
            for misaligned in (False, True):
                if misaligned and data != "normal":
                    continue
                x = draw((batch, height, width, channels), dtype, data, seed=batch)
                gamma, beta = parameters(4 * channels, dtype, seed=1)
                gathered = merged(x)
                given = misalign(x) if misaligned else guarded(x)
                name = f"[{batch}, {height}x{width}, {channels}] {data}{' misaligned' if misaligned else ''}"

                alone = Output(gathered.shape, dtype, int(misaligned))
                kernels.patch_merge(given, None, None, alone.tensor, EPSILON)
                assert torch.equal(alone.checked(), gathered), f"gather of {name}"

                out = Output(gathered.shape, dtype, int(misaligned))
                kernels.patch_merge(given, gamma, beta, out.tensor, EPSILON)
                pytorch = F.layer_norm(gathered, gamma.shape, gamma.to(dtype), beta.to(dtype), EPSILON)
                exact = F.layer_norm(gathered.double(), gamma.shape, gamma.double(), beta.double(), EPSILON)
                errors.append(error_of(name, [out.checked()], [pytorch], [exact]))
    judge(errors)


# --- patch embedding -------------------------------------------------------------------------------------------------

PATCH_SHAPES = [  # batch, in_channels, height, width, (patch_height, patch_width), channels
    (1, 3, 224, 224, (4, 4), 96), (2, 3, 256, 256, (4, 4), 96), (1, 3, 224, 224, (4, 4), 128),
    (1, 3, 64, 64, (4, 4), 192), (2, 3, 32, 64, (4, 4), 32), (1, 3, 20, 40, (4, 4), 64), (3, 3, 8, 8, (4, 4), 96),
    (5, 3, 12, 8, (4, 4), 96), (2, 3, 12, 20, (4, 4), 96), (1, 3, 64, 64, (4, 4), 100), (2, 1, 16, 16, (4, 4), 96),
    (1, 3, 32, 32, (2, 2), 48), (2, 3, 15, 25, (5, 5), 33), (1, 3, 64, 32, (16, 16), 768), (1, 2, 6, 6, (3, 3), 1000),
    (128, 3, 224, 224, (4, 4), 96),
    # What is left over, or padded: rows only, on tensor cores too, columns only, both; less than a patch where padded.
    (2, 3, 227, 224, (4, 4), 96), (3, 3, 33, 64, (4, 4), 128), (2, 3, 224, 225, (4, 4), 96),
    (2, 3, 201, 334, (4, 4), 96), (3, 3, 29, 30, (4, 4), 192), (1, 3, 2, 8, (4, 4), 96), (2, 1, 3, 1, (4, 4), 48),
    (2, 1, 64, 1001, (4, 16), 96), (1, 3, 17, 18, (2, 3), 50), (2, 4, 9, 20, (1, 8), 64), (1, 1, 1024, 64, (4, 4), 96),
    # FP32's tensor cores with patches other than RGB of 4 x 4, and with weights that do not fit in shared memory.
    (2, 3, 15, 25, (5, 5), 96), (3, 3, 63, 62, (2, 2), 64), (2, 3, 13, 17, (6, 6), 32), (1, 1, 40, 40, (1, 1), 128),
    (2, 4, 37, 50, (4, 4), 192), (1, 3, 64, 64, (16, 16), 96),
]


def patch_tokens(x, weight, bias, gamma, beta, ceil: bool) -> torch.Tensor:
    """Swin's PatchEmbed in the precision of its arguments: [B, Ci, H, W] -> [B, h, w, C]."""
    if ceil:
        x = F.pad(x, (0, -x.shape[3] % weight.shape[3], 0, -x.shape[2] % weight.shape[2]))
    tokens = F.conv2d(x, weight, bias, stride=weight.shape[2:]).permute(0, 2, 3, 1)
    return F.layer_norm(tokens, gamma.shape, gamma, beta, EPSILON)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_patch_embed(dtype, monkeypatch):
    """FP32 tensors in, `dtype` out: against PyTorch that does all of it in FP32 and then rounds the result to `dtype`.

    A 16-bit result's factors are sums of two numbers of that type, 22 (FP16) or 16 (BF16) bits in all. What that loses
    is at most 2^-9 of what rounding the result to `dtype` does; LayerNorm's differences enlarge it, four times here.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # FP32 convolutions are to be FP32
    errors = []
    for batch, in_channels, height, width, patch, channels in PATCH_SHAPES:
        whole = height % patch[0] == 0 and width % patch[1] == 0
        smaller = height < patch[0] or width < patch[1]
        orders = [False] if whole else [True] if smaller else [False, True]
        for data, ceil in itertools.product(("normal", "constant", "misaligned"), orders):
            x = draw((batch, in_channels, height, width), torch.float32, "normal", seed=height)
            if data == "constant":  # tokens all alike, and a large mean in front of the bias
                x = torch.full_like(x, 7.3)
            weight = draw((channels, in_channels, *patch), torch.float32, "normal", seed=1)
            bias = draw((channels,), torch.float32, "normal", seed=2)
            parts = (weight, bias, *parameters(channels, torch.float32, seed=3))
            pytorch = patch_tokens(x, *parts, ceil).to(dtype)
            misaligned = data == "misaligned"
            out = Output(pytorch.shape, dtype, int(misaligned))
            kernels.patch_embed(misalign(x) if misaligned else guarded(x), *map(guarded, parts), out.tensor, EPSILON,
                                ceil)
            name = f"[{batch}, {in_channels}, {height}x{width}] patch {patch}, {channels} channels, {data}, ceil {ceil}"
            exact = patch_tokens(x.double(), *(part.double() for part in parts), ceil)
            errors.append(error_of(name, [out.checked()], [pytorch], [exact]))
    judge(errors, slack=0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 256)


@pytest.mark.parametrize("width", [64, 61])  # rows that are whole pairs of tokens, and rows that are not
@pytest.mark.parametrize(("x_scale", "weight_scale"), [(1e30, 1e-30), (1e-30, 1e30), (1e12, 1.0), (1.0, 1e-30)])
def test_fp32_patch_embed_of_tiny_and_huge_numbers(x_scale, weight_scale, width, monkeypatch):
    """What makes a number as exact as FP32 is its parts, which have FP32's exponents."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    errors = []
    for seed, data in enumerate(("normal", "mean 1e4")):
        x = draw((2, 3, 32, width), torch.float32, data, seed) * x_scale
        weight = draw((96, 3, 4, 4), torch.float32, "normal", seed + 10) * weight_scale
        bias = draw((96,), torch.float32, "normal", seed + 20) * x_scale * weight_scale
        parts = (weight, bias, *parameters(96, torch.float32, seed=3))
        pytorch = patch_tokens(x, *parts, True)
        exact = patch_tokens(x.double(), *(part.double() for part in parts), True)
        out = Output(pytorch.shape, torch.float32)
        kernels.patch_embed(x, *parts, out.tensor, EPSILON, True)
        errors.append(error_of(data, [out.checked()], [pytorch], [exact]))
    judge(errors, slack=2**-24)


@pytest.mark.parametrize("width", [64, 61])
def test_fp32_patch_embed_of_numbers_that_are_not_finite(width, monkeypatch):
    """A token with an infinity or NaN among its pixels is NaN, as LayerNorm makes it, and no other is."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    x = draw((2, 3, 32, width), torch.float32, "normal", seed=0)
    x[0, 0, 0, 5], x[0, 1, 9, 30], x[1, 2, 31, 60] = math.inf, -math.inf, math.nan
    bits = x.view(torch.int32)
    bits[1, 0, 3, 20] = 0x7F800001  # NaN whose bits are all among those that TF32 lacks
    bits[1, 1, 12, 41], bits[1, 2, 13, 50] = -1, 0x7FFFFFFF  # and NaN that a carry would make 0
    weight = draw((96, 3, 4, 4), torch.float32, "normal", seed=1)
    parts = (weight, draw((96,), torch.float32, "normal", seed=2), *parameters(96, torch.float32, seed=3))
    pytorch = patch_tokens(x, *parts, True)
    y = torch.zeros_like(pytorch)
    kernels.patch_embed(x, *parts, y, EPSILON, True)
    assert torch.equal(y.isnan(), pytorch.isnan()) and y.isnan().all(-1).sum() == 6
    finite = pytorch.isfinite()
    assert torch.equal(y.isfinite(), finite)
    exact = patch_tokens(x.double(), *(part.double() for part in parts), True)[finite]
    error, limit = ((result[finite].double() - exact).abs().max().item() for result in (y, pytorch))
    assert error <= 2 * limit


# --- attention -------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Attention:
    """One call: image of height x width tokens, its windows and heads; window and shift are (height, width)."""

    batch: int
    height: int
    width: int
    num_heads: int
    window: tuple[int, int]
    shift: tuple[int, int]
    data: str = "normal"
    misaligned: bool = False
    head_width: int = 32
    roll_first: bool = False
    shift_if_covered: bool = True

    @property
    def channels(self) -> int:
        return self.num_heads * self.head_width

    @property
    def positions(self) -> int:
        return self.window[0] * self.window[1]

    @property
    def grid(self) -> tuple[int, int]:
        """The image's sides with the padding to whole windows."""
        return self.height + -self.height % self.window[0], self.width + -self.width % self.window[1]

    @property
    def rolled(self) -> tuple[int, int]:
        """By how much the image is rolled along each axis."""
        def of(axis: int) -> int:
            covered = self.grid[axis] == self.window[axis]
            return 0 if covered and not self.shift_if_covered else self.shift[axis]
        return of(0), of(1)


def square(batch: int, height: int, width: int, num_heads: int, window: int, shift: int, *more, **fields) -> Attention:
    """The same on both axes, as in the models of this project."""
    return Attention(batch, height, width, num_heads, (window, window), (shift, shift), *more, **fields)


ATTENTION_CASES = [
    square(1, 56, 56, 3, 7, 0), square(1, 56, 56, 3, 7, 3), square(2, 28, 28, 6, 7, 3),
    square(3, 14, 14, 12, 7, 3), square(4, 7, 7, 24, 7, 0), square(128, 56, 56, 3, 7, 3),
    square(128, 7, 7, 24, 7, 0), square(2, 14, 21, 3, 7, 1), square(5, 21, 7, 1, 7, 6),
    square(1, 64, 64, 3, 8, 4), square(2, 32, 32, 6, 8, 0), square(3, 16, 16, 12, 8, 4),
    square(16, 8, 8, 24, 8, 0), square(1, 24, 16, 2, 8, 3),
    square(1, 48, 48, 4, 12, 6), square(2, 24, 24, 8, 12, 0), square(3, 12, 12, 16, 12, 0),
    square(2, 24, 36, 3, 12, 5),
    square(1, 64, 64, 3, 16, 8), square(2, 32, 32, 6, 16, 8), square(3, 16, 16, 12, 16, 0),
    square(1, 48, 48, 4, 24, 12), square(2, 24, 24, 6, 24, 0),
    square(2, 20, 30, 3, 10, 5), square(1, 64, 32, 2, 32, 16), square(3, 8, 8, 2, 4, 2),
    square(2, 28, 28, 6, 7, 3, "zero rows"), square(2, 32, 32, 6, 8, 4, "zero rows"),
    square(2, 28, 28, 6, 7, 3, "large"), square(2, 32, 32, 6, 8, 4, "large"),
    square(1, 48, 48, 4, 24, 12, "large"), square(2, 28, 28, 6, 7, 3, misaligned=True),
    square(1, 24, 24, 4, 12, 6, misaligned=True),
    # Detectors' feature maps, whose windows need padding on both sides.
    square(1, 200, 333, 3, 7, 3), square(2, 50, 84, 12, 12, 6), square(1, 64, 64, 3, 7, 3, roll_first=True),
]

WINDOWS = [(1, 1), (7, 7), (8, 8), (12, 12), (8, 6), (7, 14), (8, 32), (16, 16), (32, 32)]
HEAD_WIDTHS = [8, 16, 24, 32, 48, 64]


def awkward_attentions():
    """Every window with every head width and padding, none to almost a window on each side. The rest goes round: both
    orders, with and without a shift of covered axes, shifts of both axes, one and none, one to three windows a side.
    """
    number = 0
    for window in WINDOWS:
        height, width = window
        shifts = [(height // 2, width // 2), (height // 2, 0), (0, width // 2), (height - 1, width - 1), (0, 0)]
        for head_width in HEAD_WIDTHS:
            for pads in sorted({(0, 0), (height // 3, width // 2), (height - 1, width - 1), (min(1, height - 1), 0)}):
                sides = ((1 + number % 3) * height - pads[0], (1 + number // 3 % 3) * width - pads[1])
                yield Attention(1 + number % 2, *sides, 1 + number % 3, window, shifts[number % 5],
                                misaligned=number % 11 == 10, head_width=head_width, roll_first=number // 2 % 2 == 1,
                                shift_if_covered=number // 4 % 2 == 1)
                number += 1
    for head_width in (32, 48):  # an image smaller than its shift
        for roll_first in (False, True):
            yield Attention(2, 3, 2, 2, (8, 8), (4, 4), head_width=head_width, roll_first=roll_first)
            yield Attention(2, 9, 2, 2, (8, 8), (4, 4), "zero rows", head_width=head_width, roll_first=roll_first)
            yield Attention(1, 15, 20, 2, (7, 7), (3, 3), "large", head_width=head_width, roll_first=roll_first)


AWKWARD_ATTENTIONS = list(awkward_attentions())


def partitioned(grid: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """[B, Hp, Wp, ...] -> [B, windows, N, ...]"""
    batch, height, width, *rest = grid.shape
    grid = grid.reshape(batch, height // window[0], window[0], width // window[1], window[1], *rest)
    return grid.transpose(2, 3).reshape(batch, -1, window[0] * window[1], *rest)


def shift_mask(case: Attention) -> torch.Tensor:
    """The official SW-MSA mask [windows, N, N]: -100 between tokens of different regions of the rolled grid."""
    def bands(side: int, window: int, shift: int) -> torch.Tensor:
        band = torch.zeros(side, device=DEVICE)
        if shift:
            band[side - window:] = 1
            band[side - shift:] = 2
        return band

    rows, columns = (bands(*axis) for axis in zip(case.grid, case.window, case.rolled, strict=True))
    region = partitioned((3 * rows[:, None] + columns)[None], case.window)[0]
    return (region[:, None, :] != region[:, :, None]) * -100.0


def unit(x: torch.Tensor) -> torch.Tensor:
    """F.normalize over the last axis, but with an epsilon that FP16 has: 1e-12 is zero there, and a zero row NaN."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(max(1e-12, torch.finfo(x.dtype).tiny))


def window_attention(qkv, bias, padding, logit_scale, case: Attention) -> torch.Tensor:
    """The official formulation in the precision of qkv, step by step: [B, H, W, 3C] -> [B, H, W, C]; bias [nH, N, N].

    padding [3C], of qkv's type, is what a padded token has; None where the windows divide the image.
    """
    grid_height, grid_width = case.grid
    back = case.rolled
    there = (-back[0], -back[1])
    if case.grid == (case.height, case.width):
        grid = qkv.roll(there, (1, 2))
    else:
        grid = padding.repeat(case.batch, grid_height, grid_width, 1)
        grid[:, :case.height, :case.width] = qkv.roll(there, (1, 2)) if case.roll_first else qkv
        if not case.roll_first:
            grid = grid.roll(there, (1, 2))

    windows = partitioned(grid, case.window)  # (B, windows, N, 3C)
    heads, width = case.num_heads, case.head_width
    q, k, v = windows.reshape(*windows.shape[:3], 3, heads, width).permute(3, 0, 1, 4, 2, 5)  # (B, windows, nH, N, d)
    if logit_scale is None:
        scores = (q * width**-0.5) @ k.transpose(-2, -1)
    else:
        scores = unit(q) @ unit(k).transpose(-2, -1) * logit_scale[:, None, None]
    scores = scores + bias
    if any(case.rolled):
        scores = scores + shift_mask(case).to(qkv.dtype)[:, None]
    out = scores.softmax(-1) @ v

    rows, columns = grid_height // case.window[0], grid_width // case.window[1]
    out = out.transpose(2, 3).reshape(case.batch, rows, columns, *case.window, case.channels)
    out = out.transpose(2, 3).reshape(case.batch, grid_height, grid_width, case.channels)
    if case.roll_first:
        return out[:, :case.height, :case.width].roll(back, (1, 2))
    return out.roll(back, (1, 2))[:, :case.height, :case.width]


def attention_inputs(case: Attention, dtype, cosine: bool, clamped: bool):
    """qkv, bias [nH, N, N], padding [3C] and logit_scale [nH] or None; all but qkv FP32 with values that `dtype` holds.

    V2's key has no bias, so a padded token's k is zero there.
    """
    generator = torch.Generator(DEVICE).manual_seed(case.batch + 7 * sum(case.window) + sum(case.shift))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE)

    qkv = normal(case.batch, case.height, case.width, 3 * case.channels)
    padding = normal(3 * case.channels)
    if case.data == "zero rows":
        qkv.flatten(1, 2)[:, ::3] = 0
    elif case.data == "large":
        qkv *= 8
    bias = normal(case.num_heads, case.positions, case.positions)
    logit_scale = None
    if cosine:
        padding[case.channels:2 * case.channels] = 0
        bias = 16 * torch.sigmoid(bias)
        logit_scale = torch.rand(case.num_heads, generator=generator, device=DEVICE) * 90 + 10
        logit_scale = torch.full_like(logit_scale, 100.0) if clamped else logit_scale.to(dtype).float()
    return qkv.to(dtype), bias.to(dtype).float(), padding.to(dtype).float(), logit_scale


def padded_bias(bias: torch.Tensor) -> torch.Tensor:
    """[nH, N, N] -> [nH, N, Np]; what pads must not be used, so it is NaN here."""
    columns = -bias.shape[-1] % 8
    return F.pad(bias, (0, columns), value=math.nan).contiguous()


def run_attention(qkv, bias, padding, logit_scale, y, case: Attention, plain_fp32: int = -1) -> None:
    scale = case.head_width**-0.5 if logit_scale is None else 1.0
    kernels.attention(qkv, bias, padding, logit_scale, y, case.num_heads, case.window, case.shift, scale, -100.0,
                      case.roll_first, case.shift_if_covered, plain_fp32)


def attention_errors(cases: list[Attention], variant: str, dtype, plain_fp32: int = -1) -> list[Error]:
    errors = []
    for case in cases:
        tensors = attention_inputs(case, dtype, variant != "V1", variant == "V2 at the clamp")
        qkv, bias, padding, logit_scale = tensors
        out = Output((*qkv.shape[:3], case.channels), dtype, int(case.misaligned))
        given = misalign(qkv) if case.misaligned else guarded(qkv)
        run_attention(given, guarded(padded_bias(bias)), guarded(padding), logit_scale, out.tensor, case,
                      plain_fp32)
        pytorch, exact = (window_attention(*(None if t is None else t.to(kind) for t in tensors), case)
                          for kind in (dtype, torch.float64))
        errors.append(error_of(str(case), [out.checked()], [pytorch], [exact]))
    return errors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", ["V1", "V2", "V2 at the clamp"])
def test_attention(variant, dtype):
    judge(attention_errors(ATTENTION_CASES, variant, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", ["V1", "V2"])
def test_attention_of_awkward_windows_heads_and_paddings(variant, dtype):
    """V2's logits reach 32 to 64 (logit_scale 10 to 100, cosines of few channels), where half a unit in the last place
    of FP32 is 2^-19: an error of a probability, which does not average out where most keys are one padded token.
    """
    judge(attention_errors(AWKWARD_ATTENTIONS, variant, dtype), floor=2**-19 if variant == "V2" else 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_width", [10, 30])
def test_attention_of_heads_padded_with_zeros(head_width, dtype):
    """Heads of 10 and 30 are heads of 16 and 32 whose last features are zeros: the same results, and zeros.

    Products and sums see no zeros, so the bits do not depend on how many there are.
    """
    case = Attention(2, 15, 20, 3, (8, 8), (4, 4), head_width=head_width)
    for cosine in (False, True):
        qkv, bias, padding, logit_scale = attention_inputs(case, dtype, cosine, False)

        def with_zeros(x: torch.Tensor, width: int) -> torch.Tensor:
            """[..., 3 * nH * d] -> [..., 3 * nH * width]"""
            return F.pad(x.unflatten(-1, (-1, head_width)), (0, width - head_width)).flatten(-2)

        scale, results = 1.0 if cosine else head_width**-0.5, []
        for width in (head_width + -head_width % 8, 32):
            out = Output((2, 15, 20, 3 * width), dtype)
            kernels.attention(with_zeros(qkv, width), padded_bias(bias), with_zeros(padding, width), logit_scale,
                              out.tensor, 3, case.window, case.shift, scale, -100.0)
            heads = out.checked().unflatten(-1, (3, width))
            assert not heads[..., head_width:].any()
            results.append(heads[..., :head_width].flatten(-2))
        assert torch.equal(*results)
        pytorch, exact = (
            window_attention(qkv.to(t), bias.to(t), padding.to(t), None if logit_scale is None else logit_scale.to(t),
                             case) for t in (dtype, torch.float64))
        judge([error_of(str(case), [results[0]], [pytorch], [exact])], slack=torch.finfo(dtype).eps)


# One tile of keys and several, heads of all kinds of kernels, with padding and without.
FP32_ATTENTIONS = [
    square(2, 28, 28, 6, 7, 3), square(2, 32, 32, 6, 8, 4), square(1, 48, 48, 4, 24, 12), square(1, 24, 24, 4, 12, 6),
    square(2, 15, 20, 3, 7, 3, head_width=8), square(2, 15, 20, 3, 8, 4, head_width=64),
    square(1, 30, 40, 2, 16, 8, head_width=48),
]


@on_tensor_cores
@pytest.mark.parametrize("variant", ["V1", "V2"])
def test_plain_fp32_attention(variant):
    """On CUDA cores, as asked for: FP32's errors, and not the bits of tensor cores."""
    judge(attention_errors(ATTENTION_CASES, variant, torch.float32, plain_fp32=1))
    case = FP32_ATTENTIONS[0]
    qkv, bias, padding, logit_scale = attention_inputs(case, torch.float32, variant == "V2", False)
    plain, on_cores = (torch.empty(2, 28, 28, case.channels, device=DEVICE) for _ in range(2))
    for y, plainly in ((plain, 1), (on_cores, -1)):
        run_attention(qkv, padded_bias(bias), padding, logit_scale, y, case, plainly)
    assert not torch.equal(plain, on_cores)


def scaled_inputs(case: Attention, cosine: bool, q: float, k: float, v: float, mean: float = 0.0):
    """attention_inputs with q, k and v times these factors, after `mean` was added to them."""
    qkv, bias, padding, logit_scale = attention_inputs(case, torch.float32, cosine, False)
    factors = torch.tensor([q, k, v], device=DEVICE).repeat_interleave(case.channels)
    return (qkv + mean) * factors, bias, (padding + mean) * factors, logit_scale


@pytest.mark.parametrize(("cosine", "q", "k", "v", "mean"), [
    (False, 1e-30, 1e30, 1.0, 0.0), (False, 1e30, 1e-30, 1.0, 0.0), (False, 1.0, 1.0, 1e-30, 0.0),
    (False, 1.0, 1.0, 1e30, 0.0), (False, 1e-3, 1e-3, 1.0, 1e4), (True, 1e-11, 1e15, 1.0, 0.0),
    (True, 1e15, 1e-14, 1e30, 0.0), (True, 1.0, 1.0, 1e-30, 0.0), (True, 1.0, 1.0, 1.0, 1e4),
])
def test_fp32_attention_of_tiny_and_huge_numbers(cosine, q, k, v, mean):
    """What makes a number as exact as FP32 is its parts, which have FP32's exponents.

    Cosines of rows with a mean of 1e4 differ by 1e-8 at most, and q k of 0.001 times such numbers is some 3000: FP32's
    logits are then off by many units in the last place of a probability, PyTorch's as well.
    """
    errors = []
    for case in FP32_ATTENTIONS:
        tensors = scaled_inputs(case, cosine, q, k, v, mean)
        out = Output((*tensors[0].shape[:3], case.channels), torch.float32)
        run_attention(tensors[0], padded_bias(tensors[1]), *tensors[2:], out.tensor, case)
        pytorch, exact = (window_attention(*(None if t is None else t.to(kind) for t in tensors), case)
                          for kind in (torch.float32, torch.float64))
        errors.append(error_of(str(case), [out.checked()], [pytorch], [exact]))
    judge(errors, slack=2**-24, floor=2**-19)


def test_fp32_attention_of_the_smallest_values():
    """A value loses what is below 2^-136 of it; probabilities add up to 1."""
    for case in FP32_ATTENTIONS:
        tensors = scaled_inputs(case, False, 1.0, 1.0, 1e-40)
        out = Output((*tensors[0].shape[:3], case.channels), torch.float32)
        run_attention(tensors[0], padded_bias(tensors[1]), *tensors[2:], out.tensor, case)
        exact = window_attention(*(None if t is None else t.double() for t in tensors), case)
        limit = 2**-136 + case.positions * 2**-148 + 2**-20 * exact.abs().max()
        assert ((out.checked().double() - exact).abs() <= limit).all(), case


@pytest.mark.parametrize("cosine", [False, True], ids=["V1", "V2"])
@pytest.mark.parametrize("case", [
    square(2, 14, 14, 3, 7, 0), square(2, 16, 16, 3, 8, 0), square(1, 24, 24, 3, 12, 0),
    square(1, 32, 32, 2, 16, 0, head_width=64), square(2, 14, 14, 3, 7, 0, head_width=24),
], ids=str)
def test_fp32_attention_of_numbers_that_are_not_finite(case, cosine):
    """Infinities and NaN where FP32 has them and nowhere else; parts of them would make NaN of infinities.

    Where q k is minus infinity, a key takes no part: most rows of that window stay finite in V1.
    """
    qkv, bias, padding, logit_scale = attention_inputs(case, torch.float32, cosine, False)
    bias, logit_scale = bias / 4, logit_scale if logit_scale is None else logit_scale / 10  # no probability is 0
    q, k, v = qkv.unflatten(-1, (3, -1)).unbind(-2)
    last = -1  # in another window than the first tokens
    k[0, 0, 1, 3] = math.inf
    q[0, 2, 2, 8], v[0, 1, last, 5], v[0, 2, last, 9] = math.inf, math.inf, math.nan
    v[0, 3, last, 13], v[0, 3, last, 14] = -math.inf, torch.finfo(torch.float32).max  # infinite, rounded to TF32
    bits = qkv.view(torch.int32).unflatten(-1, (3, -1))
    bits[0, last, 0, 0, 7] = 0x7F800001  # NaN whose bits are all among those that TF32 lacks
    bits[0, last, 1, 2, 12], bits[0, last, 2, 2, 20] = -1, 0x7FFFFFFF  # and NaN that a carry would make 0
    y = torch.zeros((*qkv.shape[:3], case.channels), device=DEVICE)
    run_attention(qkv, padded_bias(bias), padding, logit_scale, y, case)
    tensors = (qkv, bias, padding, logit_scale)
    pytorch, exact = (window_attention(*(None if t is None else t.to(kind) for t in tensors), case)
                      for kind in (torch.float32, torch.float64))
    for same in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(same(y), same(pytorch)), same.__name__
    finite = pytorch.isfinite()
    scale = exact[finite].abs().clamp(min=1.0)
    error, limit = (((result[finite].double() - exact[finite]).abs() / scale).max().item() for result in (y, pytorch))
    assert error <= 2 * limit


# --- Linear ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Linear:
    """One call: y [rows, out_features] of x [rows, in_features], plain or with one of GELU and residual."""

    rows: int
    in_features: int
    out_features: int
    epilogue: str  # "", "gelu", "tanh gelu" or "residual"
    misaligned: bool = False


def small_linears():
    """Every product of Small at batch 1 and 3: (tokens of the image, V1 or V2) and channels of each stage."""
    for batch in (1, 3):
        for side in (56, 64):  # V1 at 224, V2 at 256
            for stage in range(4):
                rows, channels = batch * (side >> stage) ** 2, 96 << stage
                yield Linear(rows, channels, 3 * channels, "")  # qkv
                yield Linear(rows, channels, channels, "residual" if side == 56 else "")  # proj
                yield Linear(rows, channels, 4 * channels, "gelu")  # fc1
                yield Linear(rows, 4 * channels, channels, "residual" if side == 56 else "")  # fc2
                if stage < 3:
                    yield Linear(rows // 4, 4 * channels, 2 * channels, "")  # patch merging's reduction


AWKWARD_LINEARS = [
    Linear(rows, in_features, out_features, epilogue)
    for rows, in_features, out_features in [
        (1, 96, 96), (2, 33, 97), (3, 97, 33), (17, 95, 101), (5, 1, 64), (64, 50, 1), (7, 1001, 13),
        (129, 100, 36), (4, 8, 8), (1, 3072, 768), (1000, 31, 511),
    ]
    for epilogue in ("", "gelu", "residual")
] + [Linear(33, width, 2 * width, epilogue, True) for width in (96, 97) for epilogue in ("", "gelu", "residual")] + [
    # On Hopper: part of a tile of 128 x 192 and of 128 x 128, and more tiles than blocks.
    Linear(6272, 1536, 352, "residual"), Linear(4001, 712, 544, ""), Linear(6272, 384, 1152, ""),
    Linear(1568, 768, 3072, "gelu"),
] + [  # and of each of CUTLASS's large tiles: 96, 128 and 192 features
    Linear(rows, 16, out_features, epilogue)
    for rows, out_features in [(9001, 72), (9001, 104), (6273, 136)] for epilogue in ("", "gelu", "residual")
]


TANH_LINEARS = [
    Linear(rows, in_features, out_features, "tanh gelu", misaligned)
    for rows, in_features, out_features, misaligned in [
        (1, 96, 96, False), (17, 95, 101, False), (64, 50, 1, False), (129, 100, 36, False), (784, 192, 768, False),
        (3136, 96, 384, False), (1568, 768, 3072, False), (33, 96, 192, True), (33, 97, 194, True),
    ]
]
GELUS = {"gelu": 1, "tanh gelu": 2}


def linear_inputs(case: Linear, dtype, seed: int):
    """x, weight, bias and residual or None, of `dtype`; weights scaled so that y is about as large as x."""
    x = draw((case.rows, case.in_features), dtype, "normal", seed)
    weight = draw((case.out_features, case.in_features), torch.float32, "normal", seed + 1) / case.in_features**0.5
    bias = draw((case.out_features,), dtype, "normal", seed + 2)
    shape = (case.rows, case.out_features)
    return x, weight.to(dtype), bias, draw(shape, dtype, "normal", seed + 3) if case.epilogue == "residual" else None


def linear_formula(x, weight, bias, residual, epilogue: str) -> torch.Tensor:
    """PyTorch's, in the precision of the arguments."""
    y = F.linear(x, weight, bias)
    if "gelu" in epilogue:
        return F.gelu(y, approximate="tanh" if epilogue == "tanh gelu" else "none")
    return y if residual is None else y + residual


def linear_errors(cases, dtype, **more) -> list[Error]:
    errors = []
    for case in cases:
        got, same, exact = [], [], []
        for seed in range(max(1, MINIMUM_ELEMENTS // (case.rows * case.out_features))):
            tensors = linear_inputs(case, dtype, 4 * seed)
            given = [misalign(t) if case.misaligned and t is not None else t for t in tensors]
            out = Output((case.rows, case.out_features), dtype, int(case.misaligned))
            kernels.linear(*given, out.tensor, GELUS.get(case.epilogue, 0), **more)
            got.append(out.checked())
            same.append(linear_formula(*given, case.epilogue))  # misaligned, PyTorch's product is another one too
            exact.append(linear_formula(*(None if t is None else t.double() for t in tensors), case.epilogue))
        errors.append(error_of(str(case), *([torch.cat(parts)] for parts in (got, same, exact))))
    return errors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_of_small(dtype):
    judge(linear_errors(small_linears(), dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_of_awkward_sizes(dtype):
    """Products that PyTorch and cuBLASLt sum in another order, or whose pointers only the plain kernel takes.

    The order by itself moves an FP32 sum by about half a unit in the last place: that is the slack.
    """
    judge(linear_errors(AWKWARD_LINEARS, dtype), slack=2**-24)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_with_gelus_tanh_form(dtype):
    """GELU takes y rounded to the type, as PyTorch's does. A sum between two such numbers falls to either by the order
    that it was summed in: one case in all may be worse by half a unit.
    """
    judge(linear_errors(TANH_LINEARS, dtype), slack=max(2**-24, torch.finfo(dtype).eps / 2 / len(TANH_LINEARS)))


# --- Linear in FP32 on tensor cores ----------------------------------------------------------------------------------

on_hopper = pytest.mark.skipif(CAPABILITY != (9, 0), reason="needs compute capability 9.0, which has these tiles only")
# By number: ten of Linear/linear_fp32_kernel.cu, three of linear_fp32_sm90_kernel.cu.
FP32_TILES = [pytest.param(tile, marks=on_tensor_cores if tile < 11 else on_hopper) for tile in range(1, 14)]
FP32_PARTS = {4: 2, 5: 4, 6: 8, 8: 2, 9: 4, 10: 8}  # of K, by tile; the others do not split it

# One and several tiles, steps of K, and groups of features, whole and in part; more tiles than blocks.
FP32_LINEARS = [
    Linear(rows, in_features, out_features, epilogue)
    for rows, in_features, out_features in [
        (64, 96, 64), (1, 96, 96), (129, 100, 48), (784, 768, 192), (3136, 96, 288), (49, 3072, 768), (20001, 192, 144),
        (50, 1540, 100), (196, 384, 1152),
    ]
    for epilogue in ("", "gelu", "residual")
]


def takes(tile: int, case: Linear) -> bool:
    """Whether K has as many pieces of 32 as the tile has parts, and their sums fit in the workspace."""
    parts = FP32_PARTS.get(tile, 1)
    sums = 4 * parts * case.rows * case.out_features
    return parts == 1 or (parts <= -(-case.in_features // 32) and sums <= kernels.LINEAR_WORKSPACE_BYTES)


@pytest.mark.parametrize("tile", FP32_TILES)
def test_fp32_linear_in_every_tile(tile):
    judge(linear_errors([case for case in FP32_LINEARS if takes(tile, case)], torch.float32, tile=tile), slack=2**-24)


@on_tensor_cores
@pytest.mark.parametrize("tile", FP32_PARTS)
@pytest.mark.parametrize("epilogue", ["", "gelu", "residual"])
def test_fp32_linear_with_k_in_parts_gives_the_same_bits_always(epilogue, tile):
    """Also where it is replayed from a CUDA graph."""
    case = Linear(49, 3072, 768, epilogue)
    tensors = linear_inputs(case, torch.float32, seed=0)
    gelu = epilogue == "gelu"
    expected, y = (torch.full((case.rows, case.out_features), math.nan, device=DEVICE) for _ in range(2))
    kernels.linear(*tensors, expected, gelu, tile=tile)
    assert expected.isfinite().all()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.linear(*tensors, y, gelu, tile=tile)
    for _ in range(20):
        y.fill_(math.nan)
        graph.replay()
        assert torch.equal(y, expected)


@on_tensor_cores
def test_fp32_tiles_that_a_product_cannot_take_are_refused():
    x, weight, bias, y = (torch.zeros(shape, device=DEVICE) for shape in ((64, 96), (64, 96), (64,), (64, 64)))
    for tile in (5, 6, 9, 10, 14):  # three pieces of 32 in four or eight parts; no such tile
        with pytest.raises(RuntimeError, match=r"CUDA error 1$"):
            kernels.linear(x, weight, bias, None, y, False, tile=tile)


@pytest.mark.parametrize("tile", FP32_TILES)
@pytest.mark.parametrize("in_features", [4, 32, 36, 64])
def test_fp32_linear_of_a_short_k(in_features, tile):
    """Which is chosen for no such product: PyTorch's error is a few roundings here, so arithmetic sets the limit.

    Relative to the sum of |x w|: what the parts leave out of a product, 2^-23 of x, 2^-23 of w and low low', 2^-22, are
    2^-21. Tensor cores add 12 products of 8 numbers to a step's sum, each with a truncation of at most 2^-22; each of
    two steps, and the bias, is a rounding of 2^-24.
    """
    for seed in range(8):
        x, weight, bias, _ = linear_inputs(Linear(200, in_features, 100, ""), torch.float32, seed)
        out = Output((200, 100), torch.float32)
        if not takes(tile, Linear(200, in_features, 100, "")):
            with pytest.raises(RuntimeError, match=r"CUDA error 1$"):
                kernels.linear(x, weight, bias, None, out.tensor, False, tile=tile)
            continue
        kernels.linear(x, weight, bias, None, out.tensor, False, tile=tile)
        exact = F.linear(x.double(), weight.double(), bias.double())
        size = F.linear(x.double().abs(), weight.double().abs(), bias.double().abs())
        assert ((out.checked().double() - exact).abs() <= (2**-21 + 12 * 2**-22 + 3 * 2**-24) * size).all()
        chosen = Output((200, 100), torch.float32)
        kernels.linear(x, weight, bias, None, chosen.tensor, False)
        plain = Output((200, 100), torch.float32)
        kernels.linear(x, weight, bias, None, plain.tensor, False, plain_fp32=True)
        assert torch.equal(chosen.checked(), plain.checked())


@pytest.mark.parametrize("tile", FP32_TILES)
@pytest.mark.parametrize("x_scale", [1e-36, 1e-40])
def test_fp32_linear_of_the_smallest_numbers(x_scale, tile):
    """Numbers lose what is below 2^-136 of them, so a result is off by that for each weight, and FP32's own error."""
    x = draw((500, 384), torch.float32, "normal", 0) * x_scale
    weight = draw((384, 384), torch.float32, "normal", 10) / 384**0.5
    bias = torch.zeros(384, device=DEVICE)
    out = Output((500, 384), torch.float32)
    kernels.linear(x, weight, bias, None, out.tensor, False, tile=tile)
    exact = F.linear(x.double(), weight.double())
    allowed = (2**-136 + 2**-149) * weight.double().abs().sum(1) + 384 * 2**-149
    allowed = allowed + 2**-20 * F.linear(x.double().abs(), weight.double().abs())
    assert ((out.checked().double() - exact).abs() <= allowed).all()


@on_tensor_cores
def test_plain_fp32_linear():
    """On CUDA cores, as asked for: the bits of other runs of it, and not those of tensor cores."""
    judge(linear_errors(FP32_LINEARS, torch.float32, plain_fp32=True), slack=2**-24)
    case = Linear(784, 384, 384, "")
    tensors = linear_inputs(case, torch.float32, seed=0)
    tiled, plain = (torch.empty(case.rows, case.out_features, device=DEVICE) for _ in range(2))
    kernels.linear(*tensors, tiled, False, tile=1)
    kernels.linear(*tensors, plain, False, plain_fp32=True)
    assert not torch.equal(tiled, plain)


@pytest.mark.parametrize("tile", FP32_TILES)
@pytest.mark.parametrize(("x_scale", "weight_scale"), [(1e-30, 1.0), (1e30, 1.0), (1e30, 1e-30), (1.0, 1e-30)])
def test_fp32_linear_of_tiny_and_huge_numbers(x_scale, weight_scale, tile):
    """What makes a number as exact as FP32 is its parts, which have FP32's exponents."""
    errors = []
    for seed, data in enumerate(("normal", "mean 1e4")):
        x = draw((500, 384), torch.float32, data, seed) * x_scale
        weight = draw((384, 384), torch.float32, "normal", seed + 10) * weight_scale / 384**0.5
        bias = draw((384,), torch.float32, "normal", seed + 20) * x_scale * weight_scale
        out = Output((500, 384), torch.float32)
        kernels.linear(x, weight, bias, None, out.tensor, False, tile=tile)
        exact = F.linear(x.double(), weight.double(), bias.double())
        errors.append(error_of(data, [out.checked()], [F.linear(x, weight, bias)], [exact]))
    judge(errors, slack=2**-24)


@pytest.mark.parametrize("tile", FP32_TILES)
@pytest.mark.parametrize("epilogue", ["", "gelu", "residual"])
def test_fp32_linear_of_numbers_that_are_not_finite(epilogue, tile):
    """Infinities and NaN where FP32 has them and nowhere else; parts of them would make NaN of infinities."""
    x, weight, bias, residual = linear_inputs(Linear(300, 256, 192, epilogue), torch.float32, seed=0)
    x[3, 5], x[17, 100], x[40, 7] = math.inf, -math.inf, math.nan
    x[60, 0], x[60, 1] = math.inf, -math.inf
    x[50, 1] = torch.finfo(torch.float32).max  # would be infinite, rounded to TF32
    x.view(torch.int32)[80, 4] = 0x7F800001  # NaN whose bits are all among those that TF32 lacks
    x.view(torch.int32)[81, 4] = -1  # and NaN that a carry would make 0, as it would the GPU's own
    x.view(torch.int32)[82, 4] = 0x7FFFFFFF
    weight[9, 5] = 0.0  # infinity times 0
    weight[100, 3] = math.inf
    y = torch.zeros(300, 192, device=DEVICE)
    kernels.linear(x, weight, bias, residual, y, epilogue == "gelu", tile=tile)
    expected = linear_formula(x, weight, bias, residual, epilogue)
    for same in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(same(y), same(expected)), same.__name__
    finite = expected.isfinite()
    exact = linear_formula(*(None if t is None else t.double() for t in (x, weight, bias, residual)), epilogue)[finite]
    scale = exact.abs().clamp(min=1.0)
    error, pytorch = (((result[finite].double() - exact).abs() / scale).max().item() for result in (y, expected))
    assert error <= 2 * pytorch


@pytest.mark.parametrize("tile", FP32_TILES)
def test_fp32_linear_reads_nothing_else(tile):
    """NaN on both sides of every operand, whose tiles reach beyond the last row, feature and column."""
    case = Linear(197, 260, 48, "residual")
    tensors = linear_inputs(case, torch.float32, seed=0)
    given = []
    for tensor in tensors:
        guarded = Output(tuple(tensor.shape), torch.float32)
        guarded.tensor.copy_(tensor)
        given.append(guarded.tensor)
    plain, out = (Output((case.rows, case.out_features), torch.float32) for _ in range(2))
    kernels.linear(*tensors, plain.tensor, False, tile=tile)
    kernels.linear(*given, out.tensor, False, tile=tile)
    assert torch.equal(out.checked(), plain.checked())


@pytest.mark.parametrize("epilogue", ["", "gelu", "residual"])
def test_linear_in_a_cuda_graph(epilogue):
    """A captured call computes, from new values in the same tensors, the bits of a call outside of the graph."""
    case = Linear(196, 384, 1536, epilogue)
    tensors = linear_inputs(case, torch.float16, seed=0)
    y = torch.empty(case.rows, case.out_features, dtype=torch.float16, device=DEVICE)
    kernels.linear(*tensors, y, epilogue == "gelu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.linear(*tensors, y, epilogue == "gelu")
    for captured, fresh in zip(tensors, linear_inputs(case, torch.float16, seed=10), strict=True):
        if captured is not None:
            captured.copy_(fresh)
    expected = torch.empty_like(y)
    kernels.linear(*tensors, expected, epilogue == "gelu")
    y.fill_(math.nan)
    graph.replay()
    assert torch.equal(y, expected)


def test_linear_on_two_streams_at_once():
    """Two threads, a stream each, both with shapes that nobody has used before: the bits of calls one by one."""
    def products(stream: torch.cuda.Stream, inputs: list, outputs: list) -> None:
        with torch.cuda.stream(stream):
            for _ in range(20):
                for tensors, y in zip(inputs, outputs, strict=True):
                    kernels.linear(*tensors, y, 0)

    cases = [Linear(rows, 4 * width, width, "residual") for rows in (51, 1237) for width in (96, 384, 768)]
    inputs = [[linear_inputs(case, torch.float16, seed) for case in cases] for seed in (0, 100)]
    outputs = [[torch.full((c.rows, c.out_features), math.nan, dtype=torch.half, device=DEVICE) for c in cases]
               for _ in inputs]
    torch.cuda.synchronize()
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(products, torch.cuda.Stream(), *both) for both in zip(inputs, outputs, strict=True)]:
            future.result()
    torch.cuda.synchronize()
    for tensors, y in zip([*inputs[0], *inputs[1]], [*outputs[0], *outputs[1]], strict=True):
        alone = torch.empty_like(y)
        kernels.linear(*tensors, alone, 0)
        assert torch.equal(y, alone)


# --- MLP -------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Mlp:
    """One call: x [rows, width], V1 (norm_first) or V2, with the end of the attention branch or without."""

    rows: int
    width: int
    hidden: int
    norm_first: bool
    data: str = "normal"
    misaligned: bool = False
    attention: bool = False


def mlp_cases(norm_first: bool):
    """Widths of the kernel for Hopper and others; rows around a tile's, Small's at batch 1 and 8, the last with a rest.

    1e4 would overflow FP16 in V2's products, where no LayerNorm stands before them. With attention, fewer cases: among
    them are rows that the kernel for Hopper takes of width 192, from 2048 on, and several tiles of rows a block.
    """
    for width in (32, 96, 128, 192, 100):
        for rows in (1, 49, 63, 65, 129, 3136, 25088 + 7):
            for hidden in (4 * width, 64, 320):
                yield Mlp(rows, width, hidden, norm_first)
            for data in ("mean 1e4", "zero rows") if norm_first else ("zero rows",):
                yield Mlp(rows, width, 4 * width, norm_first, data)
        for rows in (1, 49, 65, 2049, 3 * 25088 + 7):
            yield Mlp(rows, width, 4 * width, norm_first, attention=True)
        for rows in (63, 2049, 3 * 25088 + 7):
            yield Mlp(rows, width, 320, norm_first, attention=True)
        yield Mlp(2049, width, 4 * width, norm_first, "mean 1e4" if norm_first else "zero rows", attention=True)
        for attention in (False, True):
            yield Mlp(129, width, 4 * width, norm_first, misaligned=True, attention=attention)


def mlp_inputs(case: Mlp, dtype, seed: int) -> list[torch.Tensor]:
    """x, gamma, beta, weight1, bias1, weight2, bias2: gamma and beta FP32, the others of `dtype`. With attention more:
    attention, proj_weight, proj_bias, and in V2 proj_gamma and proj_beta, FP32.
    """
    x = draw((case.rows, case.width), dtype, case.data, seed)
    weight1, bias1 = linear_inputs(Linear(1, case.width, case.hidden, ""), dtype, seed + 1)[1:3]
    weight2, bias2 = linear_inputs(Linear(1, case.hidden, case.width, ""), dtype, seed + 5)[1:3]
    tensors = [x, *parameters(case.width, dtype, seed + 9), weight1, bias1, weight2, bias2]
    if case.attention:
        tensors += linear_inputs(Linear(case.rows, case.width, case.width, ""), dtype, seed + 11)[:3]
    if case.attention and not case.norm_first:
        tensors += parameters(case.width, dtype, seed + 14)
    return tensors


def run_mlp(tensors: list[torch.Tensor], y: torch.Tensor, norm_first: bool, **more) -> None:
    """The kernel on what mlp_inputs gives."""
    kernels.mlp(*tensors[:7], y, norm_first, EPSILON, *tensors[7:], **more)


def mlp_formula(tensors: list[torch.Tensor], norm_first: bool, gelu: int = 1) -> torch.Tensor:
    """PyTorch's on what mlp_inputs gives, in the precision of the tensors."""
    def norm(tensor: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(tensor, gamma.shape, gamma, beta, EPSILON)

    x, gamma, beta, weight1, bias1, weight2, bias2, *attention = tensors
    if attention:
        projected, proj_norm = F.linear(*attention[:3]), attention[3:]
        x = x + (norm(projected, *proj_norm) if proj_norm else projected)
    hidden = F.linear(norm(x, gamma, beta) if norm_first else x, weight1, bias1)
    branch = F.linear(F.gelu(hidden, approximate="tanh" if gelu == 2 else "none"), weight2, bias2)
    return x + (branch if norm_first else norm(branch, gamma, beta))


def mlp_errors(cases, dtype, gelu: int = 1, **more) -> list[Error]:
    errors = []
    for case in cases:
        got, same, exact = [], [], []
        for seed in range(max(1, MINIMUM_ELEMENTS // (case.rows * case.width))):
            tensors = mlp_inputs(case, dtype, 20 * seed)
            out = Output((case.rows, case.width), dtype, int(case.misaligned))
            given = [misalign(t) if case.misaligned else t for t in tensors]
            run_mlp(given, out.tensor, case.norm_first, gelu=gelu, **more)
            got.append(out.checked())
            same.append(mlp_formula([(misalign if case.misaligned else torch.clone)(t.to(dtype)) for t in tensors],
                                    case.norm_first, gelu))
            exact.append(mlp_formula([t.double() for t in tensors], case.norm_first, gelu))
        errors.append(error_of(str(case), *([torch.cat(parts)] for parts in (got, same, exact))))
    return errors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm_first", [True, False], ids=["V1", "V2"])
def test_mlp(norm_first, dtype):
    """FP32 sums in another order than PyTorch's are up to half a unit in the last place off: that is the slack."""
    judge(mlp_errors(mlp_cases(norm_first), dtype), slack=2**-24)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm_first", [True, False], ids=["V1", "V2"])
def test_mlp_with_gelus_tanh_form(norm_first, dtype):
    cases = [Mlp(rows, width, 4 * width, norm_first, attention=attention)
             for rows, width in [(784, 96), (196, 384), (33, 50)] for attention in (False, True)]
    judge(mlp_errors(cases, dtype, gelu=2), slack=2**-24)


@pytest.mark.parametrize("norm_first", [True, False], ids=["V1", "V2"])
def test_mlp_with_one_tensor_misaligned(norm_first):
    """Each in its turn: the kernel for Hopper takes none of them so. The parts do, each with products of its own.

    The slack is test_mlp_in_slices's.
    """
    case, dtype, errors = Mlp(129, 96, 384, norm_first, attention=True), torch.float16, []
    count = len(mlp_inputs(case, dtype, 0))
    for index in range(count + 1):  # the last is y
        tensors = mlp_inputs(case, dtype, 20 * index)
        given = [misalign(t) if i == index else t for i, t in enumerate(tensors)]
        out = Output((case.rows, case.width), dtype, int(index == count))
        run_mlp(given, out.tensor, norm_first)
        same, exact = (mlp_formula([t.to(kind) for t in tensors], norm_first) for kind in (dtype, torch.float64))
        errors.append(error_of(f"tensor {index} misaligned", [out.checked()], [same], [exact]))
    judge(errors, slack=torch.finfo(dtype).eps / 32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("attention", [False, True], ids=["alone", "with attention"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["V1", "V2"])
def test_mlp_in_slices(norm_first, attention, dtype):
    """Where the workspace holds what 300 rows have between the parts, 7, or 1; width 100 has no kernel of its own.

    The parts round as PyTorch does, so neither is better. A case's error is the largest of 1e4 and more roundings,
    which scatters by 1.28 / (2 ln 1e4), 7 % of itself; the mean over these 11 cases, of two such, by 3 %, which is
    eps / 64. Twice that is the slack.
    """
    width, hidden, errors = 100, 400, []
    for rows_that_fit, counts in ((300, (299, 300, 301, 900, 901, 3136)), (7, (7, 8, 129)), (1, (1, 17))):
        cases = [Mlp(rows, width, hidden, norm_first, attention=attention) for rows in counts]
        row = hidden + width if attention else hidden
        room = rows_that_fit * row * torch.empty((), dtype=dtype).element_size()
        errors += mlp_errors(cases, dtype, workspace_bytes=kernels.LINEAR_WORKSPACE_BYTES + room)
    judge(errors, slack=max(2**-24, torch.finfo(dtype).eps / 32))


@pytest.mark.parametrize("width", [96, 128, 192, 100])
@pytest.mark.parametrize("attention", [False, True], ids=["alone", "with attention"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["V1", "V2"])
def test_mlp_in_a_cuda_graph(norm_first, attention, width):
    """A captured call computes, from new values in the same tensors, the bits of a call outside of the graph."""
    case = Mlp(3136, width, 4 * width, norm_first, attention=attention)
    tensors = mlp_inputs(case, torch.float16, seed=0)
    y = torch.empty_like(tensors[0])
    run_mlp(tensors, y, norm_first)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run_mlp(tensors, y, norm_first)
    for captured, fresh in zip(tensors, mlp_inputs(case, torch.float16, seed=50), strict=True):
        captured.copy_(fresh)
    expected = torch.empty_like(y)
    run_mlp(tensors, expected, norm_first)
    y.fill_(math.nan)
    graph.replay()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("attention", [False, True], ids=["alone", "with attention"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["V1", "V2"])
def test_mlps_one_after_the_other(norm_first, attention):
    """Each reads what the one before wrote, with nothing between them: the bits of calls with a pause after each.

    With attention, that is its attention, and x is what the one before that wrote.
    """
    blocks = [mlp_inputs(Mlp(3136, 96, 384, norm_first, attention=attention), torch.float16, 50 * i)
              for i in range(8)]

    def run(pause: bool) -> list[torch.Tensor]:
        tokens = [t.clone() for t in blocks[0][:1] + blocks[0][7:8]]  # x, and attention where there is any
        outputs = [torch.full_like(tokens[0], math.nan) for _ in blocks]
        torch.cuda.synchronize()
        for block, y in zip(blocks, outputs, strict=True):
            given = [tokens[-1], *block[1:]]
            if attention:
                given[0], given[7] = tokens[-2:]
            run_mlp(given, y, norm_first)
            tokens.append(y)
            if pause:
                torch.cuda.synchronize()
        return outputs

    expected = run(True)
    assert all(y.isfinite().all() for y in expected)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(run(False), expected, strict=True))


# --- sizes past 2^31 elements, bad arguments -------------------------------------------------------------------------

def enough_memory(gibibytes: int) -> None:
    if torch.cuda.mem_get_info()[0] < gibibytes << 30:
        pytest.skip(f"needs {gibibytes} GiB of free GPU memory")


def test_layernorm_past_2_to_the_31_elements():
    """The last rows of a large tensor get the same bits as when they are alone, and so do the first."""
    enough_memory(24)
    width, tail = 96, 1000
    rows = 2**31 // width + 2 * tail
    x = torch.zeros(rows, width, dtype=torch.float16, device=DEVICE)
    x[-tail:] = draw((tail, width), x.dtype, "normal", 0)
    x[:tail] = draw((tail, width), x.dtype, "normal", 1)
    gamma, beta = parameters(width, x.dtype, 0)
    y = torch.empty_like(x)
    for kernel in (lambda x, y: kernels.layernorm(x, gamma, beta, y, EPSILON), lambda x, y: kernels.fnorm(x, y, 1e-12)):
        y.fill_(math.nan)
        kernel(x, y)
        assert y.isfinite().all()
        for part in (slice(0, tail), slice(rows - tail, rows)):
            alone = torch.empty(tail, width, dtype=x.dtype, device=DEVICE)
            kernel(x[part], alone)
            assert torch.equal(y[part], alone)


@pytest.mark.parametrize("side", [64, 63])
def test_patch_merge_past_2_to_the_31_elements(side):
    enough_memory(24)
    batch, channels = 2**31 // (side * side * 96) + 2, 96
    x = torch.zeros(batch, side, side, channels, dtype=torch.float16, device=DEVICE)
    x[-1] = draw(x[-1].shape, x.dtype, "normal", 0)
    gamma, beta = parameters(4 * channels, x.dtype, 0)
    y = torch.empty(batch, 32, 32, 4 * channels, dtype=x.dtype, device=DEVICE)
    for norm in ((gamma, beta), (None, None)):
        y.fill_(math.nan)
        kernels.patch_merge(x, *norm, y, EPSILON)
        alone = torch.empty_like(y[-1:])
        kernels.patch_merge(x[-1:], *norm, alone, EPSILON)
        assert y.isfinite().all()
        assert torch.equal(y[-1:], alone)


@pytest.mark.parametrize(("height", "width"), [(56, 56), (50, 55)])
def test_attention_past_2_to_the_31_elements(height, width):
    enough_memory(24)
    case, one = (square(batch, height, width, 3, 7, 3) for batch in (2**31 // (height * width * 288) + 2, 1))
    last, bias, padding, _ = attention_inputs(one, torch.float16, False, False)
    qkv = torch.zeros(case.batch, height, width, 288, dtype=torch.float16, device=DEVICE)
    qkv[-1:] = last
    y = torch.full((case.batch, height, width, 96), math.nan, dtype=torch.float16, device=DEVICE)
    run_attention(qkv, padded_bias(bias), padding, None, y, case)
    alone = torch.empty_like(y[-1:])
    run_attention(last, padded_bias(bias), padding, None, alone, one)
    assert y.isfinite().all()
    assert torch.equal(y[-1:], alone)


@pytest.mark.parametrize("attention", [False, True], ids=["alone", "with attention"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["V1", "V2"])
def test_mlp_past_2_to_the_31_elements(norm_first, attention):
    """The first and the last rows of a large tensor against FP64; other sizes may take other products, so no bits."""
    enough_memory(32 if attention else 24)
    tail, dtype = 1000, torch.float16
    rows = 2**31 // 96 + 2 * tail
    tensors = mlp_inputs(Mlp(tail, 96, 384, norm_first, attention=attention), dtype, 0)
    for index in [0, 7] if attention else [0]:  # x, attention
        large = torch.zeros(rows, 96, dtype=dtype, device=DEVICE)
        large[:tail], large[-tail:] = tensors[index], draw((tail, 96), dtype, "normal", 100 + index)
        tensors[index] = large
    y = torch.full_like(tensors[0], math.nan)
    run_mlp(tensors, y, norm_first)
    assert y.isfinite().all()
    errors = []
    for part in (slice(0, tail), slice(rows - tail, rows)):
        ends = [t[part] if len(t) == rows else t for t in tensors]
        same, exact = (mlp_formula([t.to(kind) for t in ends], norm_first) for kind in (dtype, torch.float64))
        errors.append(error_of(f"rows {part.start} on", [y[part]], [same], [exact]))
    judge(errors)


def test_empty_input_is_nothing_to_do():
    x = torch.empty(0, 96, device=DEVICE)
    kernels.layernorm(x, None, None, x, EPSILON)
    kernels.fnorm(x, x, 1e-12)
    kernels.linear(x, torch.empty(96, 96, device=DEVICE), torch.empty(96, device=DEVICE), None, x, 0)
    channel, weight = torch.empty(96, device=DEVICE), torch.empty(96, 96, device=DEVICE)
    kernels.mlp(x, channel, channel, weight, channel, weight, channel, x, True, EPSILON)


def test_arguments_outside_the_contract_are_refused():
    x = torch.zeros(4, 16, 96, device=DEVICE)
    wide = torch.zeros(1, 8193, device=DEVICE)
    qkv, bias = torch.zeros(1, 14, 14, 288, device=DEVICE), torch.zeros(3, 49, 56, device=DEVICE)
    weight = torch.zeros(96, 96, device=DEVICE)
    image, patch = torch.zeros(1, 3, 16, 16, device=DEVICE), torch.zeros(96, 3, 4, 4, device=DEVICE)
    tokens = torch.zeros(1, 2, 2, 2049, device=DEVICE)

    def attention(given=qkv, heads=3, window=(7, 7), shift=(3, 3), padding=None, **flags):
        y = torch.zeros(*given.shape[:3], given.shape[3] // 3, device=DEVICE)
        kernels.attention(given, bias, padding, None, y, heads, window, shift, 1.0, -100.0, **flags)

    channel, y = torch.zeros(96, device=DEVICE), torch.zeros_like(x)
    mlp = (x, channel, channel, weight, channel, weight, channel, y)
    norm = {"x": x, "gamma": None, "beta": None, "y": x, "rows": 64, "type": 0, "width": 96, "epsilon": EPSILON}
    workspace = torch.empty(kernels.MLP_WORKSPACE_BYTES, dtype=torch.uint8, device=DEVICE)
    mlp_fields = {
        **dict(zip(("x", "gamma", "beta", "weight1", "bias1", "weight2", "bias2", "y"), mlp, strict=True)),
        **dict.fromkeys(("attention", "proj_weight", "proj_bias", "proj_gamma", "proj_beta")),
        "rows": 64, "type": 0, "width": 96, "hidden": 96, "norm_first": 1, "gelu": 1, "epsilon": EPSILON,
        "workspace": workspace, "workspace_bytes": kernels.MLP_WORKSPACE_BYTES, "plain_fp32": 0,
    }
    refused = [
        lambda: kernels.layernorm(wide, None, None, wide, EPSILON),
        lambda: kernels.layernorm(x, torch.ones(96, device=DEVICE), None, x, EPSILON),
        lambda: kernels.layernorm(x, None, None, None, EPSILON),
        lambda: kernels.call("swin_layernorm", **norm | {"type": 3}),
        lambda: kernels.call("swin_layernorm", **norm | {"rows": -1}),
        lambda: kernels.add_layernorm(x, None, None, None, x, x, EPSILON),
        lambda: kernels.layernorm_add(x, None, None, None, x, EPSILON),
        lambda: kernels.fnorm(wide, wide, 1e-12),
        lambda: kernels.patch_merge(tokens, None, None, x, EPSILON),  # 4 * 2049 channels
        lambda: kernels.patch_merge(x.view(1, 4, 16, 96)[:, :0], None, None, x, EPSILON),
        lambda: kernels.patch_embed(image[..., :3].contiguous(), patch, channel, channel, channel, x, EPSILON),
        lambda: kernels.patch_embed(image, patch, None, channel, channel, x, EPSILON),
        lambda: kernels.patch_embed(image, patch, channel, channel, channel, x, EPSILON, 2),
        lambda: attention(heads=8),  # heads of 12
        lambda: attention(heads=1),  # of 96
        lambda: attention(heads=0),
        lambda: attention(heads=5),  # 5 does not divide 96
        lambda: attention(window=(5, 7), shift=(2, 3)),  # 5 does not divide 14, and there is no padding
        lambda: attention(window=(33, 7), padding=qkv[0, 0, 0]),
        lambda: attention(window=(7, 33), padding=qkv[0, 0, 0]),
        lambda: attention(window=(0, 7), shift=(0, 0), padding=qkv[0, 0, 0]),
        lambda: attention(shift=(7, 3)),
        lambda: attention(shift=(3, 7)),
        lambda: attention(shift=(-1, 0)),
        lambda: attention(roll_first=2),
        lambda: attention(shift_if_covered=-1),
        lambda: attention(given=qkv[:, :0]),
        lambda: kernels.linear(x, weight, None, None, x, 0),
        lambda: kernels.linear(x, weight, weight[0], x, x, 1),  # GELU and residual
        lambda: kernels.linear(x, weight, weight[0], x, x, 2),
        lambda: kernels.linear(x, weight, weight[0], None, x, 3),
        lambda: kernels.mlp(x, channel, None, weight, channel, weight, channel, y, True, EPSILON),
        lambda: kernels.mlp(x, channel, channel, weight, channel, weight, None, y, False, EPSILON),
        lambda: kernels.mlp(*mlp, 2, EPSILON),
        lambda: kernels.mlp(*mlp, True, EPSILON, gelu=0),
        lambda: kernels.mlp(*mlp, True, EPSILON, gelu=3),
        lambda: kernels.mlp(*mlp, True, EPSILON,  # no row of hidden activations fits
                            workspace_bytes=kernels.LINEAR_WORKSPACE_BYTES + 4 * 96 - 1),
        lambda: kernels.call("swin_mlp", **mlp_fields | {"type": 3}),
        lambda: kernels.call("swin_mlp", **mlp_fields | {"workspace": None, "workspace_bytes": 0}),
        lambda: kernels.mlp(*mlp, True, EPSILON, x, None, channel),  # attention without all of proj
        lambda: kernels.mlp(*mlp, True, EPSILON, x, weight, None),
        lambda: kernels.mlp(*mlp, True, EPSILON, None, weight, None),  # proj without attention
        lambda: kernels.mlp(*mlp, True, EPSILON, None, None, channel),
        lambda: kernels.mlp(*mlp, False, EPSILON, None, None, None, channel, channel),
        lambda: kernels.mlp(*mlp, True, EPSILON, x, weight, channel, channel, channel),  # a LayerNorm of proj in V1
        lambda: kernels.mlp(*mlp, True, EPSILON, x, weight, channel, None, channel),
        lambda: kernels.mlp(*mlp, False, EPSILON, x, weight, channel),  # and not all of it in V2
        lambda: kernels.mlp(*mlp, False, EPSILON, x, weight, channel, channel, None),
        lambda: kernels.mlp(*mlp, False, EPSILON, x, weight, channel, None, channel),
        lambda: kernels.mlp(*mlp, True, EPSILON, x, weight, channel,  # no row of hidden activations and sums fits
                            workspace_bytes=kernels.LINEAR_WORKSPACE_BYTES + 4 * (96 + 96) - 1),
    ]
    for index, call in enumerate(refused):
        with pytest.raises(RuntimeError, match=r"CUDA error 1$"):
            call()
            pytest.fail(f"call {index} was accepted")
