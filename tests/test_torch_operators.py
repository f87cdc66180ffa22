"""The kernels as PyTorch operators (TensorRT/Plugins/swin_kernels), on the CPU: meaning, torch.compile, torch.export,
refusals. With a GPU (-m gpu) the kernels are compared with the same operators on the CPU.

What the operators mean is compared with whole models of four libraries in test_fuse.py; here are those that no model
uses and all kinds of arguments.
"""
from __future__ import annotations

import ctypes.util
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kernels_on_cpu import compute
from torch import Tensor
from torch.nn import functional as F

from graphs.patterns import MOST_CHANNELS
from TensorRT.Plugins import swin_kernels
from TensorRT.Plugins.swin_kernels import c_interface, fused, operators

OPS = getattr(torch.ops, operators.NAMESPACE)
HALVES = (torch.float16, torch.bfloat16)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def weight(out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
    return (draw(out_features, in_features) / math.sqrt(in_features)).to(dtype)


def arguments_of(dtype: torch.dtype) -> dict[str, list[tuple]]:
    """Arguments of each operator, sizes awkward, of activations of one type."""
    c, hidden = 48, 104
    x, residual = draw(2, 5, 6, c, dtype=dtype), draw(2, 5, 6, c, dtype=dtype, seed=1)
    gamma, beta = draw(c) * 0.2 + 1, draw(c, seed=1)
    bias = draw(3, 12, 16)
    mlp = (x, gamma, beta, weight(hidden, c, dtype), draw(hidden, dtype=dtype), weight(c, hidden, dtype),
           draw(c, dtype=dtype))
    attention = draw(2, 5, 6, c, dtype=dtype, seed=2)
    proj = (weight(c, c, dtype), draw(c, dtype=dtype, seed=3))
    qkv, padding = draw(2, 5, 6, 3 * c, dtype=dtype), draw(3 * c)
    return {
        "layer_norm": [(x, gamma, beta, 1e-5), (x, None, None, 1e-5)],
        "add_layer_norm": [(x, residual, gamma, beta, 1e-5)],
        "layer_norm_add": [(x, residual, gamma, beta, 1e-5)],
        "patch_embed": [(draw(2, 3, 10, 9), draw(c, 3, 4, 3) / 6, draw(c), gamma, beta, 1e-5, dtype, ceil)
                        for ceil in (False, True)],
        "patch_merge": [(x, draw(4 * c), draw(4 * c, seed=1), 1e-5), (x, None, None, 1e-5)],
        "attention": [(qkv, bias, padding, scale, 3, [3, 4], shift, 0.25, -100.0, roll_first, covered)
                      for scale in (None, draw(3).exp() * 5) for shift in ([0, 0], [1, 2])
                      for roll_first, covered in ((False, True), (True, True), (False, False))],
        "linear": [(x, weight(hidden, c, dtype), draw(hidden, dtype=dtype), None, gelu) for gelu in (0, 1, 2)]
                  + [(x, *proj, residual, 0)],
        "mlp": [(*mlp, True, 1e-5), (*mlp, False, 1e-5), (*mlp, True, 1e-5, attention, *proj),
                (*mlp, False, 1e-5, attention, *proj, gamma, beta, 2)],
    }


CASES = [pytest.param(name, i, id=f"{name}-{i}") for name, cases in arguments_of(torch.float32).items()
         for i in range(len(cases))]


def tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


# --- meaning ---------------------------------------------------------------------------------------------------------

def layer_norm64(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.layer_norm(x.double(), x.shape[-1:], gamma.double(), beta.double(), 1e-5)


def test_residual_norms_and_odd_merging_are_what_they_say():
    """In FP64 by other code: those that test_fuse.py's models do not have."""
    (x, residual, gamma, beta, _), = arguments_of(torch.float32)["add_layer_norm"]
    total, y = swin_kernels.add_layer_norm(x, residual, gamma, beta)
    torch.testing.assert_close(total, x + residual)
    exact = layer_norm64(x.double() + residual.double(), gamma, beta)
    torch.testing.assert_close(y.double(), exact, atol=1e-5, rtol=0)
    y = swin_kernels.layer_norm_add(x, residual, gamma, beta)
    torch.testing.assert_close(y.double(), residual.double() + layer_norm64(x, gamma, beta), atol=1e-5, rtol=0)
    merged = swin_kernels.patch_merge(x)
    assert merged.shape == (2, 3, 3, 4 * 48)
    torch.testing.assert_close(merged[0, 2, 1], torch.cat([x[0, 4, 2], torch.zeros(48), x[0, 4, 3], torch.zeros(48)]))


def test_a_sum_is_normalised_before_it_is_rounded():
    x, residual = torch.full((1, 8), 1000.0, dtype=torch.float16), draw(1, 8).half() / 8
    _, y = swin_kernels.add_layer_norm(x, residual, torch.ones(8), torch.zeros(8))
    exact = layer_norm64(x.double() + residual.double(), torch.ones(8), torch.zeros(8))
    assert (y.double() - exact).abs().max() <= 2**-10 * exact.abs().max()  # the sum in FP16 has steps of 0.5


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("name", "case"), CASES)
def test_halves_are_within_a_rounding_of_fp32(name, case, dtype):
    """As FP32 and in the narrower type: arithmetic is FP32, so that one rounding lies between the results."""
    narrow = arguments_of(dtype)[name][case]
    wide = [value.float() if isinstance(value, Tensor) else torch.float32 if value is dtype else value
            for value in narrow]
    if name == "attention":
        wide[2] = wide[2].to(dtype).float()  # padded tokens are rounded as qkv is
    for y, exact in zip(tensors(getattr(OPS, name)(*narrow)), tensors(getattr(OPS, name)(*wide))):
        assert y.dtype == dtype
        assert ((y.float() - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6).all()


def test_fused_mlp_goes_as_far_as_the_graph_surgery():
    assert fused.MOST_MLP_CHANNELS == MOST_CHANNELS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_on_the_gpu_the_kernels_are_called_with_what_the_operator_got(name, case, dtype, monkeypatch):
    """Every field of every structure, with Python functions in the kernels' place."""
    monkeypatch.setattr(c_interface, "call", lambda kernel, **fields: compute(
        kernel, c_interface.filled(kernel, **fields)))
    arguments = arguments_of(dtype)[name][case]
    expected = getattr(OPS, name)(*arguments)
    outputs = getattr(operators, f"_{name}")(*arguments)
    for output in tensors(outputs):
        output.fill_(float("nan"))
    getattr(operators, f"_run_{name}")(outputs, *arguments)
    for y, value in zip(tensors(outputs), tensors(expected)):
        assert torch.equal(y, value)


# --- torch.library, torch.compile, torch.export ----------------------------------------------------------------------

@pytest.mark.parametrize(("name", "case"), [case for case in CASES if case.id[-1] in "03" and len(case.id) < 15])
def test_opcheck(name, case):
    """Schema, fake implementation and dispatch under torch.compile agree with what the operator does."""
    torch.library.opcheck(getattr(OPS, name).default, arguments_of(torch.float16)[name][case],
                          test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.fixture(scope="module")
def block():
    """A module that calls four operators."""
    mlp, attention = arguments_of(torch.float32)["mlp"][2], arguments_of(torch.float32)["attention"][3]
    qkv_weight, qkv_bias = weight(144, 48, torch.float32), draw(144)

    class Block(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = swin_kernels.attention(swin_kernels.linear(x, qkv_weight, qkv_bias), *attention[1:])
            return swin_kernels.patch_merge(swin_kernels.mlp(x, *mlp[1:9], y, *mlp[10:]))

    return Block()


def test_compiles_without_a_break(block):
    x = draw(2, 5, 6, 48)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), block(x))


def test_exports_with_open_batch_and_sizes(block):
    dynamic = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        program = torch.export.export(block, (draw(2, 5, 6, 48),),
                                      dynamic_shapes=[{0: dynamic, 1: dynamic, 2: dynamic}])
        other = draw(3, 9, 7, 48)
        torch.testing.assert_close(program.module()(other), block(other))
    called = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert {OPS.attention.default, OPS.mlp.default, OPS.linear.default, OPS.patch_merge.default} <= called


# --- refusals --------------------------------------------------------------------------------------------------------

X = draw(2, 5, 6, 48)


@pytest.mark.parametrize(("name", "change", "error", "message"), [
    ("layer_norm", {0: X.double()}, TypeError, "layer_norm: activations of float64; the kernels take float32, float16"),
    ("layer_norm", {1: draw(48).half()}, TypeError, "layer_norm: gamma is float16; it must be float32"),
    ("layer_norm", {1: None}, ValueError, "layer_norm: gamma and beta come together"),
    ("layer_norm", {1: draw(47)}, ValueError, r"layer_norm: gamma is \[47\]; it must be \[48\]"),
    ("layer_norm", {1: draw(48).to("meta")}, ValueError, "layer_norm: gamma is on meta, the first tensor on cpu"),
    ("add_layer_norm", {1: X[:1]}, ValueError, r"residual is \[1, 5, 6, 48\]; it must be \[2, 5, 6, 48\]"),
    ("patch_embed", {0: draw(2, 4, 8, 8)}, ValueError, "patch_embed: images of 4 channels; the weight takes 3"),
    ("patch_embed", {0: draw(2, 3, 8, 8).half()}, TypeError, "patch_embed: x is float16; it must be float32"),
    ("patch_embed", {6: torch.float64}, TypeError, "patch_embed: activations of float64"),
    ("patch_merge", {0: X.flatten(1, 2)}, ValueError, r"x is \[2, 30, 48\]; it must be \[B, H, W, C\]"),
    ("attention", {0: draw(0, 5, 6, 144)}, ValueError, r"attention: qkv is \[0, 5, 6, 144\]; it holds no token"),
    ("attention", {4: 5}, ValueError, "attention: qkv has 144 channels, which are not q, k and v of 5 heads"),
    ("attention", {4: 4}, ValueError, "attention: heads of 12 channels; the kernel takes multiples of 8 up to 64"),
    ("attention", {5: [3, 33]}, ValueError, r"windows of \[3, 33\] tokens; the kernel takes \[height, width\] of 1 to"),
    ("attention", {6: [3, 0]}, ValueError, r"a shift of \[3, 0\] in windows of \[3, 4\]; it must be smaller"),
    ("attention", {1: draw(3, 12, 12)}, ValueError, r"bias is \[3, 12, 12\]; it must be \[3, 12, 16\]"),
    ("attention", {2: draw(48)}, ValueError, r"padding is \[48\]; it must be \[144\]"),
    ("linear", {0: X[..., :40]}, ValueError, "its last axis must be the weight's 48"),
    ("linear", {1: weight(104, 48, torch.float16)}, TypeError, "linear: weight is float16; it must be float32"),
    ("linear", {3: draw(2, 5, 6, 104), 4: 1}, ValueError, "linear: gelu and a residual"),
    ("linear", {4: 3}, ValueError, "linear: gelu is 3; it must be 0"),
    ("mlp", {9: X}, ValueError, "with norm_first True and attention it takes proj_bias, proj_weight; got none"),
])
def test_bad_arguments_are_one_line(name, change, error, message):
    arguments = list(arguments_of(torch.float32)[name][0])
    arguments += [None] * (1 + max(change) - len(arguments))
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(error, match=message) as caught:
        getattr(OPS, name)(*arguments)
    assert "\n" not in str(caught.value)


def test_strided_tensors_give_the_same():
    x, gamma, beta, epsilon = arguments_of(torch.float32)["layer_norm"][0]
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned.is_contiguous()
    y = swin_kernels.layer_norm(turned, gamma, beta, epsilon)
    assert torch.equal(y, swin_kernels.layer_norm(x, gamma, beta, epsilon)) and y.is_contiguous()


@pytest.mark.parametrize(("name", "case"), CASES[::2])
def test_autograd_is_refused(name, case):
    arguments = [value.clone().requires_grad_() if isinstance(value, Tensor) else value
                 for value in arguments_of(torch.float32)[name][case]]
    with pytest.raises(RuntimeError, match=r"for inference and has no backward pass: run under torch\.inference"):
        getattr(OPS, name)(*arguments)
    with torch.inference_mode():
        getattr(OPS, name)(*arguments)


def test_the_c_functions_refuse_what_they_cannot_read():
    with pytest.raises(ValueError, match="swin_layernorm: x is on cpu; the kernels take contiguous tensors on the GPU"):
        c_interface.layernorm(X, None, None, torch.empty_like(X), 1e-5)


@pytest.mark.parametrize(("status", "problem"), [
    (209, "swin_layernorm: the library has no code for this GPU, sm_75; make it again: make -C TensorRT/Plugins"),
    (98, "has no code for this GPU"), (1, "swin_layernorm: CUDA error 1"), (700, "swin_layernorm: CUDA error 700")])
def test_a_library_for_other_gpus_says_so(monkeypatch, status, problem):
    monkeypatch.setattr(c_interface, "library", lambda: SimpleNamespace(swin_layernorm=lambda *_: status))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(RuntimeError, match=problem) as raised:
        c_interface.call("swin_layernorm", x=None, gamma=None, beta=None, y=None, rows=1, type=0, width=8, epsilon=0)
    assert "\n" not in str(raised.value)


def test_a_missing_library_says_what_to_do(monkeypatch, tmp_path):
    c_interface.library.cache_clear()
    monkeypatch.setattr(c_interface, "HERE", tmp_path)
    monkeypatch.delenv("SWIN_KERNELS", raising=False)
    if not torch.cuda.is_available():
        with pytest.raises(swin_kernels.LibraryError, match="no GPU that PyTorch can use, so no kernels for it"):
            c_interface.library()
    monkeypatch.setattr(c_interface, "PLUGINS", tmp_path)
    with pytest.raises(swin_kernels.LibraryError, match=r"has no libswin_kernels\.so; install the package again"):
        c_interface.library()
    monkeypatch.setenv("SWIN_KERNELS", str(tmp_path / "none.so"))
    with pytest.raises(swin_kernels.LibraryError, match=r"none\.so: is not the kernels of this version"):
        c_interface.library()


def test_another_library_is_told_from_the_kernels(monkeypatch):
    c_interface.library.cache_clear()
    monkeypatch.setenv("SWIN_KERNELS", ctypes.util.find_library("c"))
    with pytest.raises(swin_kernels.LibraryError, match="is not the kernels of this version"):
        c_interface.library()


def test_two_copies_of_the_package_can_be_in_one_process(tmp_path):
    """As an installed one and this one, or two versions from the Hugging Face Hub."""
    package = Path(swin_kernels.__file__).parent
    for name in ("swin_kernels", "swin_kernels_2"):
        (tmp_path / name).symlink_to(package, target_is_directory=True)
    code = ("import torch, swin_kernels, swin_kernels_2; x = torch.ones(1, 8); "
            "print(torch.ops.swin_kernels.layer_norm(x, None, None, 1e-5).sum().item(), "
            "swin_kernels_2.layer_norm(x).sum().item())")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "0.0 0.0\n", done.stderr


# --- on a GPU --------------------------------------------------------------------------------------------------------

def on_gpu(arguments: tuple) -> list:
    return [value.cuda() if isinstance(value, Tensor) else value for value in arguments]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_kernels_give_what_the_cpu_gives(name, case, dtype):
    """Sums in another order, and in 16 bits one rounding more of the hidden activations and of softmax's result."""
    arguments = arguments_of(dtype)[name][case]
    for y, expected in zip(tensors(getattr(OPS, name)(*on_gpu(arguments))), tensors(getattr(OPS, name)(*arguments))):
        unit = torch.finfo(dtype).eps / 2
        limit = max(8 * unit, 1e-5) * max(expected.float().abs().max().item(), 1)
        error = (y.cpu().float() - expected.float()).abs().max().item()
        assert error <= limit, f"{error:.2e} of {limit:.2e}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")
def test_kernels_take_strided_tensors_streams_and_graphs():
    x, gamma, beta, _ = on_gpu(arguments_of(torch.float16)["layer_norm"][0])
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    expected = swin_kernels.layer_norm(x, gamma, beta)
    assert torch.equal(swin_kernels.layer_norm(turned, gamma, beta), expected)
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=side):
        y = swin_kernels.layer_norm(x, gamma, beta)
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, expected)
    with pytest.raises(ValueError, match="gamma is on cpu, the first tensor on cuda:0"):
        swin_kernels.layer_norm(x, gamma.cpu(), beta)
