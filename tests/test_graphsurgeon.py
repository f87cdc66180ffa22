"""Graph surgery without a GPU: what plugin nodes mean, what is found in which exporter's graphs, what stays."""
from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import add_mlp
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch
from export_onnx import export
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.swin_transformer_v2 import SwinTransformerV2 as TimmSwinV2
from torch import nn
from torch.nn import functional as F

from config import get_config
from data.photo_crops import held_out_batch
from graphs import outputs, surgeon
from graphs.patterns import linear_bias
from graphs.reference import expand
from graphs.sessions import session
from graphs.surgeon import patch, plugin_counts
from graphs.tidy import tidy
from models.build import build_model
from models.swin import PatchMerging, WindowAttention
from models.swin_v2 import WindowAttentionV2
from utils import ROOT, UserError

SURGERY = ROOT / "onnx" / "graphsurgeon"
STEPS = {name: getattr(importlib.import_module(file), step) for name, file, step in (
    ("layernorm", "add_layernorm", "add_layernorm"),
    ("with_params", "add_layernorm_with_params", "add_layernorm_with_params"),
    ("fnorm", "add_Fnorm", "add_fnorm"),
    ("attention", "add_attention", "add_attention"),
    ("residual", "add_residual_layernorm", "add_residual_layernorm"),
    ("merging", "add_patch_merging", "add_patch_merging"),
    ("embedding", "add_patch_embedding", "add_patch_embedding"),
    ("linear", "add_linear", "add_linear"),
    ("mlp", "add_mlp", "add_mlp"),
)}
PARTS = ("attention", "embedding", "merging", "linear", "residual", "with_params")
ALL = (*PARTS, "mlp")  # as in add_all.py


# --- what plugin nodes mean ----------------------------------------------------------------------------------


def run_node(op: str, inputs: list[np.ndarray], attributes: dict, opset: int = 17) -> list[np.ndarray]:
    """Outputs of one plugin node, expanded, by onnxruntime. The first input is computed, the others are constants."""
    names = [f"input_{i}" for i in range(len(inputs))]
    outputs = ["sum", "y"] if op == "SwinAddLayerNorm" else ["y"]
    element_type = helper.np_dtype_to_tensor_dtype(inputs[0].dtype)
    graph = helper.make_graph(
        [helper.make_node(op, names, outputs, domain="swin", **attributes)], "one_node",
        [helper.make_tensor_value_info(names[0], element_type, inputs[0].shape)],
        [helper.make_tensor_value_info(name, element_type, None) for name in outputs],
        [numpy_helper.from_array(array, name) for array, name in zip(inputs[1:], names[1:])])
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("swin", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    assert all(node.domain == "" for node in expand(model).graph.node)
    return session(model).run(None, {names[0]: inputs[0]})


def relative_error(actual: np.ndarray, expected: np.ndarray | torch.Tensor) -> float:
    expected = np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    """Random rows; the first has the mean 1e4, the second is zero."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    x[0, 0] += 1e4
    x[0, 1] = 0
    return x


@pytest.mark.parametrize("opset", [12, 14, 17, 18])
@pytest.mark.parametrize("width", [32, 97, 768])
def test_layernorm_nodes_mean_pytorchs_layer_norm(opset, width):
    """FP32 against F.layer_norm in FP64. The error of a mean of 1e4 in FP32 is about 1e4 * 2^-24 = 6e-4 of sigma."""
    x, residual = rows(2, 5, width), rows(2, 5, width, seed=1)
    residual[0, 0] = 0
    gamma, beta = np.random.default_rng(2).standard_normal((2, width)).astype(np.float32)

    def layer_norm(array, *parameters):
        tensors = [torch.tensor(item, dtype=torch.float64) for item in (array, *parameters)]
        return F.layer_norm(tensors[0], (width,), *tensors[1:], eps=1e-5).numpy()

    epsilon = {"epsilon": 1e-5}
    (y,) = run_node("SwinLayerNorm", [x], epsilon, opset)
    assert relative_error(y, layer_norm(x)) < 1e-3
    assert relative_error(y[1], layer_norm(x)[1]) < 1e-6  # rows with an ordinary mean
    (y,) = run_node("SwinLayerNormWithParams", [x, gamma, beta], epsilon, opset)
    assert relative_error(y[1], layer_norm(x, gamma, beta)[1]) < 1e-6
    total, y = run_node("SwinAddLayerNorm", [x, residual, gamma, beta], epsilon, opset)
    assert np.array_equal(total, x + residual)
    assert relative_error(y[1], layer_norm(x + residual, gamma, beta)[1]) < 1e-6
    (y,) = run_node("SwinLayerNormAdd", [x, residual, gamma, beta], epsilon, opset)
    assert relative_error(y[1], residual[1] + layer_norm(x, gamma, beta)[1]) < 1e-6


def test_fnorm_means_pytorchs_normalize():
    x = rows(2, 5, 32)
    x[1, 0] *= 1e-13  # below epsilon
    (y,) = run_node("SwinFNorm", [x], {"epsilon": 1e-12})
    assert relative_error(y, F.normalize(torch.tensor(x, dtype=torch.float64), dim=-1)) < 1e-6
    assert not y[0, 1].any()


@pytest.mark.parametrize("opset", [12, 18])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10), (5, 4), (4, 7), (3, 5), (1, 1)])
def test_patch_merge_means_the_official_order(height, width, opset):
    """x(0,0), x(1,0), x(0,1), x(1,1) side by side, (row, column); zeros below and beside an odd side."""
    x = np.random.default_rng(0).standard_normal((3, height, width, 5)).astype(np.float32)
    image = np.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    quarters = [image[:, 0::2, 0::2], image[:, 1::2, 0::2], image[:, 0::2, 1::2], image[:, 1::2, 1::2]]
    expected = np.concatenate(quarters, axis=-1)
    assert np.array_equal(run_node("SwinPatchMerge", [x], {}, opset)[0], expected)
    gamma, beta = np.random.default_rng(1).standard_normal((2, 20)).astype(np.float32)
    (y,) = run_node("SwinPatchMergeLayerNorm", [x, gamma, beta], {"epsilon": 1e-5}, opset)
    normalised = F.layer_norm(torch.tensor(expected), (20,), torch.tensor(gamma), torch.tensor(beta), 1e-5)
    assert relative_error(y, normalised) < 1e-6


def test_patch_merge_means_the_models_patch_merging():
    merging = PatchMerging(6, 8)
    x = torch.randn(2, 64, 6)
    (y,) = run_node("SwinPatchMerge", [x.reshape(2, 8, 8, 6).numpy()], {})
    assert np.array_equal(y.reshape(2, 16, 24), merging._gather(x).numpy())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("opset", [12, 17])
def test_linear_means_pytorchs_linear(opset, dtype):
    """Against F.linear and F.gelu in FP64 of the same numbers; where they are FP16, with one rounding, that of y."""
    rng = np.random.default_rng(0)
    x, weight, bias, residual = (rng.standard_normal(shape).astype(dtype)
                                 for shape in ((2, 5, 12), (7, 12), (7,), (2, 5, 7)))
    product = F.linear(*(torch.tensor(array, dtype=torch.float64) for array in (x, weight, bias)))
    total = product.numpy() + residual
    tolerance = 1e-6 if dtype == np.float32 else 2**-11
    for gelu, more, expected in ((0, [], product), (1, [], F.gelu(product)), (0, [residual], total),
                                 (2, [], F.gelu(product, approximate="tanh"))):
        (y,) = run_node("SwinLinear", [x, weight, bias, *more], {"gelu": gelu}, opset)
        assert y.dtype == dtype
        assert relative_error(y, expected) < tolerance


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("after_attention", [False, True])
@pytest.mark.parametrize("norm_first", [0, 1])
@pytest.mark.parametrize(("opset", "gelu"), [(12, 1), (17, 2), (18, 1)])
def test_mlp_means_pytorchs_mlp(opset, gelu, norm_first, after_attention, dtype):
    """V1 normalises before the products, V2 after them, and after proj. In FP64; with one rounding of FP16, that of y.

    Epsilon is not small beside the variances.
    """
    rng = np.random.default_rng(0)
    shapes = [(2, 5, 12), 12, 12, (40, 12), 40, (12, 40), 12]
    types = [dtype, np.float32, np.float32, *4 * [dtype]]
    if after_attention:
        shapes += [(2, 5, 12), (12, 12), 12, *([] if norm_first else [12, 12])]
        types += [*3 * [dtype], *([] if norm_first else [np.float32, np.float32])]
    inputs = [rng.standard_normal(shape).astype(kind) for shape, kind in zip(shapes, types, strict=True)]
    (y,) = run_node("SwinMlp", inputs, {"norm_first": norm_first, "gelu": gelu, "epsilon": 0.5}, opset)
    x, gamma, beta, weight1, bias1, weight2, bias2, *attention_end = (
        torch.tensor(array, dtype=torch.float64) for array in inputs)

    def norm(tensor: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(tensor, (12,), *(parameters or (gamma, beta)), 0.5)

    if after_attention:
        attention, weight, bias, *parameters = attention_end
        projected = F.linear(attention, weight, bias)
        x = x + (projected if norm_first else norm(projected, *parameters))
    hidden = F.linear(norm(x) if norm_first else x, weight1, bias1)
    branch = F.linear(F.gelu(hidden, approximate="tanh" if gelu == 2 else "none"), weight2, bias2)
    assert y.dtype == dtype
    assert relative_error(y, x + (branch if norm_first else norm(branch))) < (1e-6 if dtype == np.float32 else 2**-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("height", "width", "patch", "ceil"), [
    (12, 8, (4, 4), 0), (12, 8, (4, 4), 1), (6, 9, (3, 3), 0), (8, 12, (2, 4), 1), (7, 10, (4, 3), 0),
    (7, 10, (4, 3), 1), (9, 8, (4, 4), 1)])
def test_patch_embed_means_pytorchs_convolution_and_layer_norm(height, width, patch, ceil, dtype):
    """Tokens in the order of the image's rows; in FP64, of an image that is FP16 beside FP32 parameters or FP32."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 3, height, width)).astype(dtype)
    weight, bias, gamma, beta = parameters = [
        rng.standard_normal(shape).astype(np.float32) for shape in ((10, 3, *patch), 10, 10, 10)]
    (y,) = run_node("SwinPatchEmbed", [image, *parameters],
                    {"epsilon": 1e-5, "patch_height": patch[0], "patch_width": patch[1], "ceil": ceil})
    image, weight, bias, gamma, beta = (torch.tensor(array, dtype=torch.float64) for array in (image, *parameters))
    if ceil:
        image = F.pad(image, (0, -width % patch[1], 0, -height % patch[0]))
    tokens = F.conv2d(image, weight, bias, stride=patch).permute(0, 2, 3, 1)
    assert y.dtype == dtype
    assert relative_error(y, F.layer_norm(tokens, (10,), gamma, beta, 1e-5)) < (1e-6 if dtype == np.float32 else 2**-11)


@torch.no_grad()
@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize(("version", "resolution", "window", "shift"), [
    (1, 14, 7, 0), (1, 14, 7, 3), (1, 7, 7, 0), (2, 16, 8, 4), (2, 24, 12, 6), (2, 8, 8, 0), (1, 12, 4, 1)])
def test_attention_means_the_models_attention(version, resolution, window, shift, opset, randomize):
    """Against PyTorch's window attention (models/), both in FP32; V2's first head with a saturated logit_scale."""
    heads, channels = 3, 96
    attention = randomize((WindowAttention if version == 1 else WindowAttentionV2)(
        channels, resolution, heads, window, shift))
    attention.proj = nn.Identity()
    x = torch.randn(2, resolution**2, channels, generator=torch.Generator().manual_seed(1))
    bias = F.pad(attention._bias(), (0, -window**2 % 8)).numpy()
    qkv = attention._qkv(x).numpy().reshape(2, resolution, resolution, -1)
    inputs = [qkv, bias, np.full(3 * channels, np.nan, np.float32)]  # nothing is padded
    if version == 2:
        attention.logit_scale[0] = 10
        inputs.append(attention._scale().reshape(heads).numpy())
        assert inputs[-1][0] == pytest.approx(100)
    (y,) = run_node("SwinAttention", inputs, {
        **windows(heads, (window, window), (shift, shift)), "scale": 32**-0.5 if version == 1 else 1.0,
        "mask_value": -100.0}, opset)
    # FP32 rounding of a score of 116 is 4e-6 of a softmax weight's own size; sums of it over N terms.
    assert relative_error(y.reshape(2, resolution**2, channels), attention(x)) < (2e-6 if version == 1 else 5e-5)


def windows(heads: int, window: tuple[int, int], shift: tuple[int, int], roll_first: int = 0,
            shift_if_covered: int = 1) -> dict[str, int]:
    """Attributes of a SwinAttention node."""
    return {"num_heads": heads, "window_height": window[0], "window_width": window[1], "shift_height": shift[0],
            "shift_width": shift[1], "roll_first": roll_first, "shift_if_covered": shift_if_covered}


def attention_in_pytorch(qkv: np.ndarray, bias: np.ndarray, padding: np.ndarray, logit_scale: np.ndarray | None, *,
                         num_heads: int, window_height: int, window_width: int, shift_height: int, shift_width: int,
                         roll_first: int, shift_if_covered: int, scale: float, mask_value: float) -> torch.Tensor:
    """What models do, in FP64: pad and roll the image in their order, cut it, number the official slices, reverse."""
    qkv, bias, padding = (torch.tensor(array, dtype=torch.float64) for array in (qkv, bias, padding))
    batch, *sides, channels = qkv.shape
    window, shift = (window_height, window_width), [shift_height, shift_width]
    padded = [-(-side // size) * size for side, size in zip(sides, window)]
    if not shift_if_covered:
        shift = [step if side > size else 0 for step, side, size in zip(shift, padded, window)]

    def pad(x: torch.Tensor) -> torch.Tensor:
        filled = padding.expand(batch, *padded, channels).clone()
        filled[:, :sides[0], :sides[1]] = x
        return filled

    def roll(x: torch.Tensor, sign: int) -> torch.Tensor:
        return torch.roll(x, (sign * shift[0], sign * shift[1]), (1, 2))

    def cut(x: torch.Tensor) -> torch.Tensor:
        x = x.reshape(len(x), padded[0] // window[0], window[0], padded[1] // window[1], window[1], -1)
        return x.transpose(2, 3).reshape(-1, window[0] * window[1], x.shape[-1])

    image = pad(roll(qkv, -1)) if roll_first else roll(pad(qkv), -1)
    number = torch.zeros(1, *padded, 1, dtype=torch.float64)
    rows, cols = ([slice(0, -size), slice(-size, -step), slice(-step, None)] if step else [slice(None)]
                  for size, step in zip(window, shift))
    for index, (row, col) in enumerate((row, col) for row in rows for col in cols):
        number[:, row, col] = index
    region = cut(number)[..., 0]
    mask = torch.where(region[:, None, :] != region[:, :, None], mask_value, 0.0)[:, None]
    q, k, v = cut(image).reshape(-1, window[0] * window[1], 3, num_heads, channels // 3 // num_heads).permute(
        2, 0, 3, 1, 4)
    if logit_scale is None:
        scores = scale * q @ k.transpose(-1, -2)
    else:
        factor = torch.tensor(logit_scale, dtype=torch.float64)[:, None, None]
        scores = factor * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2)
    y = torch.softmax(scores + bias + mask.repeat(batch, 1, 1, 1), -1) @ v
    y = y.transpose(1, 2).reshape(batch, padded[0] // window[0], padded[1] // window[1], *window, -1)
    y = y.transpose(2, 3).reshape(batch, *padded, -1)
    if roll_first:
        return roll(y[:, :sides[0], :sides[1]], 1)
    return roll(y, 1)[:, :sides[0], :sides[1]]


SIZES = [  # height, width, window, shift
    (8, 12, (4, 4), (2, 2)), (6, 6, (6, 6), (0, 0)), (9, 6, (3, 3), (1, 1)), (8, 6, (4, 3), (0, 1)),
    (7, 10, (4, 3), (2, 1)), (5, 9, (4, 4), (3, 2)), (5, 9, (5, 4), (2, 2)), (3, 9, (5, 4), (2, 2)),
    (3, 3, (5, 5), (4, 2)), (2, 3, (1, 1), (0, 0)), (1, 7, (2, 3), (1, 0))]


@pytest.mark.parametrize(("cosine", "dtype", "opset"), [(False, np.float32, 12), (True, np.float32, 17),
                                                        (False, np.float16, 18), (True, np.float16, 17)])
@pytest.mark.parametrize("shift_if_covered", [0, 1])
@pytest.mark.parametrize("roll_first", [0, 1])
@pytest.mark.parametrize(("height", "width", "window", "shift"), SIZES)
def test_attention_means_its_definition(height, width, window, shift, roll_first, shift_if_covered, cosine, dtype,
                                        opset):
    """Any padding, either order, a mask other than -100, zero rows, FP16 tensors beside FP32 constants."""
    rng = np.random.default_rng(0)
    heads, size = 2, window[0] * window[1]
    qkv = rng.standard_normal((2, height, width, 3 * heads * 8)).astype(dtype)
    qkv[0, 0, 1] = 0
    bias = rng.standard_normal((heads, size, size)).astype(np.float32)
    padding = rng.standard_normal(3 * heads * 8).astype(np.float32)
    logit_scale = np.array([10, 100], np.float32) if cosine else None
    attributes = {**windows(heads, window, shift, roll_first, shift_if_covered), "scale": 0.25, "mask_value": -3.0}
    wider = np.pad(bias, ((0, 0), (0, 0), (0, -size % 8)), constant_values=1e9)  # that is not to be read
    constants = [wider, padding] if logit_scale is None else [wider, padding, logit_scale]
    (y,) = run_node("SwinAttention", [qkv, *constants], attributes, opset)
    assert y.dtype == dtype
    expected = attention_in_pytorch(qkv, bias, padding, logit_scale, **attributes)
    assert relative_error(y, expected) < (2e-5 if dtype == np.float32 else 2**-11)  # FP16: one rounding, of y


def test_an_expanded_node_takes_every_size():
    """One graph whose height and width are open, at sizes with and without padding."""
    rng = np.random.default_rng(0)
    bias, padding = rng.standard_normal((2, 12, 16)).astype(np.float32), rng.standard_normal(48).astype(np.float32)
    attributes = {**windows(2, (4, 3), (2, 1), 1, 0), "scale": 0.25, "mask_value": -3.0}
    node = helper.make_node("SwinAttention", ["qkv", "bias", "padding"], ["y"], domain="swin", **attributes)
    graph = helper.make_graph(
        [node], "open", [helper.make_tensor_value_info("qkv", TensorProto.FLOAT, ["batch", "height", "width", 48])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(bias, "bias"), numpy_helper.from_array(padding, "padding")])
    runner = session(helper.make_model(graph, ir_version=8, opset_imports=[
        helper.make_opsetid("", 17), helper.make_opsetid("swin", 1)]))
    for shape in ((1, 8, 6), (2, 4, 3), (3, 9, 11)):
        qkv = rng.standard_normal((*shape, 48)).astype(np.float32)
        expected = attention_in_pytorch(qkv, bias[..., :12], padding, None, **attributes)
        assert relative_error(runner.run(None, {"qkv": qkv})[0], expected) < 2e-5


def test_an_unknown_plugin_node_is_refused():
    with pytest.raises(UserError, match="SwinUnknown has no reference meaning"):
        run_node("SwinUnknown", [np.zeros((1, 2), np.float32)], {})


# --- exports -------------------------------------------------------------------------------------------------


class Exported:
    """An ONNX model, the PyTorch model that it came from, and what is in it."""

    def __init__(self, onnx_model: onnx.ModelProto, torch_model: nn.Module, img_size: int, batches: tuple[int, ...],
                 version: int):
        self.onnx, self.torch, self.img_size, self.batches, self.version = (
            onnx_model, torch_model, img_size, batches, version)

    def assert_equal(self, patched: onnx.ModelProto) -> None:
        """The patched graph gives PyTorch's logits, at each batch."""
        runner = session(patched)
        name = patched.graph.input[0].name
        for batch in self.batches:
            x = torch.randn(batch, 3, self.img_size, self.img_size, generator=torch.Generator().manual_seed(batch))
            with torch.no_grad():
                expected = self.torch(x).numpy()
            assert expected.std() > 0.1
            assert relative_error(runner.run(None, {name: x.numpy()})[0], expected) < 5e-5


def torch_export(model: nn.Module, img_size: int, folder: Path, *, dynamo: bool, opset: int,
                 batch: int | None = None) -> onnx.ModelProto:
    """What people have: timm's model by torch.onnx.export, with a dynamic batch or a fixed one."""
    file = folder / "model.onnx"
    x = torch.zeros(batch or 2, 3, img_size, img_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the old exporter, and about constants that timm computes from shapes
        if dynamo:
            shapes = None if batch else ({0: torch.export.Dim("batch")},)
            torch.onnx.export(model, (x,), file, dynamo=True, opset_version=opset, dynamic_shapes=shapes,
                              external_data=False, verbose=False)
        else:
            axes = None if batch else {"input": {0: "n"}, "output": {0: "n"}}
            torch.onnx.export(model, (x,), file, dynamo=False, opset_version=opset, input_names=["input"],
                              output_names=["output"], dynamic_axes=axes)
    return onnx.load(file)


def small(version: int, randomize: Callable, *more: str) -> nn.Module:
    """This project's model, two stages of two blocks: windows in two rows, then a single one."""
    opts = ["DATA.IMG_SIZE", str({1: 56, 2: 64}[version]), "MODEL.SWIN.DEPTHS", "[2, 2]",
            "MODEL.SWIN.NUM_HEADS", "[1, 2]", "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[0, 0]", *more]
    config = get_config(ROOT / "models" / {1: "swin_micro.yaml", 2: "swinv2_micro.yaml"}[version], opts)
    return randomize(build_model(config)).eval()


TIMM = {"embed_dim": 32, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 18}
PROJECT = [f"v{version}-{opset}" for version in (1, 2) for opset in (12, 14, 17)]
TIMMS = ["timm-v1-torchscript", "timm-v2-torchscript", "timm-v1-dynamo", "timm-v2-dynamo", "timm-v1-window12",
         "timm-v2-batch2", "timm-v1-dynamic-mask"]


@pytest.fixture(scope="session")
def exported(randomize, tmp_path_factory) -> Callable[[str], Exported]:
    """exported(kind): each kind is exported once."""
    cache: dict[str, Exported] = {}

    def make(kind: str) -> Exported:
        version = 1 if "v1" in kind else 2
        if kind in PROJECT:
            model = small(version, randomize)
            return Exported(export(model, int(kind[3:]), kind), model, model.img_size, (1, 3), version)
        img_size, arguments = {1: (56, {"window_size": 7}), 2: (64, {"window_size": 8})}[version]
        if kind.endswith("window12"):
            img_size, arguments = 96, {"window_size": 12}
        if kind.endswith("dynamic-mask"):
            arguments = {"window_size": 7, "dynamic_img_size": True}  # the mask is computed in the graph
        model = randomize((TimmSwin if version == 1 else TimmSwinV2)(img_size=img_size, **TIMM, **arguments)).eval()
        batch = 2 if kind.endswith("batch2") else None
        dynamo = "dynamo" in kind or batch is not None
        opset = 18 if dynamo else 13 if "dynamic-mask" in kind else 16 if version == 1 else 17
        if kind == "timm-v2-dynamo":
            opset = 20  # where GELU is one operator
        graph = torch_export(model, img_size, tmp_path_factory.mktemp(kind), dynamo=dynamo, opset=opset, batch=batch)
        return Exported(graph, model, img_size, (batch,) if batch else (1, 3), version)

    def cached(kind: str) -> Exported:
        if kind not in cache:
            cache[kind] = make(kind)
        return cache[kind]

    return cached


# Two stages of two blocks. LayerNorms: patch embedding, two a block, patch merging, the last one. Linear layers: four a
# block, and the reduction.
COUNTS = {
    1: {"layernorm": Counter(SwinLayerNorm=11), "with_params": Counter(SwinLayerNormWithParams=11),
        "attention": Counter(SwinAttention=4), "merging": Counter(SwinPatchMergeLayerNorm=1),
        # all but those of the patch embedding, the patch merging and the two blocks after them
        "residual": Counter(SwinAddLayerNorm=7), "embedding": Counter(SwinPatchEmbed=1),
        "linear": Counter(SwinLinear=17)},
    2: {"layernorm": Counter(SwinLayerNorm=11), "with_params": Counter(SwinLayerNormWithParams=11),
        "fnorm": Counter(SwinFNorm=8), "attention": Counter(SwinAttention=4), "merging": Counter(SwinPatchMerge=1),
        "residual": Counter(SwinLayerNormAdd=8), "embedding": Counter(SwinPatchEmbed=1),
        "linear": Counter(SwinLinear=17)},
}
PARTS_COUNTS = {
    1: Counter(SwinPatchEmbed=1, SwinAttention=4, SwinPatchMergeLayerNorm=1, SwinLinear=17, SwinLayerNormWithParams=9),
    2: Counter(SwinPatchEmbed=1, SwinAttention=4, SwinPatchMerge=1, SwinLinear=17, SwinLayerNormAdd=8,
               SwinLayerNormWithParams=2),
}
# In each of the four blocks proj, fc1, fc2 and a LayerNorm, in V2 both of them, become one node.
ALL_COUNTS = {
    1: PARTS_COUNTS[1] + Counter(SwinMlp=4) - Counter(SwinLinear=12, SwinLayerNormWithParams=4),
    2: PARTS_COUNTS[2] + Counter(SwinMlp=4) - Counter(SwinLinear=12, SwinLayerNormAdd=8),
}


@pytest.mark.parametrize("kind", ["v1-12", "v2-17", "timm-v1-dynamo", "timm-v2-torchscript", "timm-v2-batch2"])
def test_each_step_by_itself(kind, exported):
    model = exported(kind)
    for name, expected in COUNTS[model.version].items():
        if name == "fnorm" and kind in PROJECT:
            expected = Counter(SwinFNorm=4)  # the models here normalise q and k as one tensor
        patched, (report,) = patch(model.onnx, [STEPS[name]])
        assert (report.replaced, report.left) == (sum(expected.values()), [])
        assert plugin_counts(patched) == expected
        model.assert_equal(patched)


@pytest.mark.parametrize("kind", PROJECT + TIMMS)
def test_all_steps_leave_only_the_head(kind, exported):
    model = exported(kind)
    patched, reports = patch(model.onnx, [STEPS[name] for name in ALL])
    assert all(not report.left for report in reports)
    assert plugin_counts(patched) == ALL_COUNTS[model.version]
    others = Counter(node.op_type for node in patched.graph.node if node.domain == "")
    assert others.pop("Reshape", 0) <= 1  # timm's pooling wants an image
    assert others == Counter(ReduceMean=1, MatMul=1, Add=1)
    assert next(entry.version for entry in patched.opset_import if entry.domain == "swin") == 1
    model.assert_equal(patched)


@pytest.mark.parametrize("kind", ["v1-12", "timm-v1-torchscript", "v2-17", "timm-v2-dynamo"])
def test_steps_in_any_order_and_one_after_the_other(kind, exported):
    """Each step reads the file that the one before has written; plain LayerNorm nodes are taken up by later steps.

    V1's residual Adds are of the linear layers or of the LayerNorms, whichever come first; but the Add before a patch
    merging is of the linear layer always, and one that timm separates from proj by a roll is of the LayerNorm.
    """
    model = exported(kind)
    orders = [(("with_params", "residual", "merging", "embedding", "attention", "linear"), 7),
              (("layernorm", "attention", "merging", "residual", "linear", "with_params", "embedding"), 7),
              (("embedding", "with_params", "linear", "merging", "attention", "residual"), 4 if "timm" in kind else 0)]
    if model.version == 2:
        orders.append((("fnorm", "linear", "merging", "residual", "attention", "with_params", "embedding"), 0))
    for order, adds in orders:
        patched = model.onnx
        for name in order:
            try:
                patched, _ = patch(onnx.load_from_string(patched.SerializeToString()), [STEPS[name]])
            except UserError as error:
                assert name == "residual" and adds == 0 and "already patched" in str(error)
        expected = PARTS_COUNTS[model.version]
        if model.version == 1:
            expected = expected + Counter(SwinAddLayerNorm=adds) - Counter(SwinLayerNormWithParams=adds)
        assert plugin_counts(patched) == expected
        model.assert_equal(patched)


def nodes_of(model: onnx.ModelProto, op: str) -> list[tuple[dict[str, object], list[np.ndarray | None]]]:
    """Attributes and inputs (None for a computed one) of each node of this type, in order."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [({item.name: helper.get_attribute_value(item) for item in node.attribute},
             [constants.get(name) for name in node.input]) for node in model.graph.node if node.op_type == op]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["v1-17", "v2-12", "timm-v1-torchscript", "timm-v2-torchscript", "timm-v2-dynamo"])
def test_linear_and_patch_embed_nodes_hold_the_models_parameters(kind, exported):
    """PyTorch's own layouts, bit for bit; V2's qkv bias is that of q, zeros for k, and that of v."""
    model = exported(kind)
    patched, _ = patch(model.onnx, [STEPS[name] for name in PARTS])

    expected = []  # (weight, bias, gelu, with residual)
    for layer in model.torch.layers:
        merged = getattr(layer, "downsample", None)
        reduction = [(merged.reduction.weight, torch.zeros(len(merged.reduction.weight)), 0, False)] if (
            hasattr(merged, "reduction")) else []
        if "timm" in kind:  # before the blocks, in this project after them
            expected += reduction
        for block in layer.blocks:
            attention, residual = block.attn, model.version == 1
            bias = attention.qkv.bias
            if bias is None:
                bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
            expected += [(attention.qkv.weight, bias, 0, False),
                         (attention.proj.weight, attention.proj.bias, 0, residual),
                         (block.mlp.fc1.weight, block.mlp.fc1.bias, 1, False),
                         (block.mlp.fc2.weight, block.mlp.fc2.bias, 0, residual)]
        if "timm" not in kind:
            expected += reduction
    nodes = nodes_of(patched, "SwinLinear")
    assert len(nodes) == len(expected)
    for (attributes, inputs), (weight, bias, gelu, residual) in zip(nodes, expected):
        assert attributes == {"gelu": gelu, "plugin_version": b"1", "plugin_namespace": b"swin"}
        assert [array is None for array in inputs] == [True, False, False, True][:3 + residual]
        np.testing.assert_array_equal(inputs[1], weight.numpy(), strict=True)
        np.testing.assert_array_equal(inputs[2], bias.numpy(), strict=True)

    ((attributes, inputs),) = nodes_of(patched, "SwinPatchEmbed")
    assert attributes == {"epsilon": np.float32(1e-5), "patch_height": 4, "patch_width": 4, "ceil": 0, "y_type": 0,
                          "plugin_version": b"1", "plugin_namespace": b"swin"}
    embed = model.torch.patch_embed
    for array, parameter in zip(inputs[1:], (embed.proj.weight, embed.proj.bias, embed.norm.weight, embed.norm.bias),
                                strict=True):
        np.testing.assert_array_equal(array, parameter.numpy(), strict=True)


def mlps(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "SwinMlp"]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["v1-17", "v2-12", "timm-v1-torchscript", "timm-v2-dynamo"])
def test_mlp_nodes_hold_the_models_parameters(kind, exported):
    """Made of the file that the other steps wrote. PyTorch's own layouts, bit for bit, in the order of the contract."""
    model = exported(kind)
    parts, _ = patch(model.onnx, [STEPS[name] for name in PARTS])
    patched, (report,) = patch(onnx.load_from_string(parts.SerializeToString()), [STEPS["mlp"]])
    assert report.lines() == ["replaced 4 of 4 MLP"]
    assert plugin_counts(patched) == ALL_COUNTS[model.version]
    model.assert_equal(patched)
    made_by = {name: node for node in patched.graph.node for name in node.output}
    blocks = [block for layer in model.torch.layers for block in layer.blocks]
    for (attributes, inputs), block, node in zip(nodes_of(patched, "SwinMlp"), blocks, mlps(patched), strict=True):
        assert attributes == {"norm_first": int(model.version == 1), "gelu": 1, "epsilon": np.float32(1e-5),
                              "plugin_version": b"1", "plugin_namespace": b"swin"}
        attention = made_by[node.input[7]]
        assert attention.op_type == "SwinAttention"
        qkv = made_by[attention.input[0]]  # of x in V2; in V1 of its LayerNorm
        assert node.input[0] == (qkv if model.version == 2 else made_by[qkv.input[0]]).input[0]
        v2_norm = [block.norm1.weight, block.norm1.bias] if model.version == 2 else []
        expected = [None, block.norm2.weight, block.norm2.bias, block.mlp.fc1.weight, block.mlp.fc1.bias,
                    block.mlp.fc2.weight, block.mlp.fc2.bias, None, block.attn.proj.weight, block.attn.proj.bias,
                    *v2_norm]
        for array, parameter in zip(inputs, expected, strict=True):
            assert (array is None) == (parameter is None)
            if array is not None:
                np.testing.assert_array_equal(array, parameter.numpy(), strict=True)


def test_the_attention_node_says_what_the_model_is(exported):
    """Attributes and constants of the nodes against the PyTorch modules they stand for."""
    for kind in ("v1-17", "timm-v1-torchscript", "timm-v2-torchscript"):
        model = exported(kind)
        patched, _ = patch(model.onnx, [STEPS["attention"]])
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in patched.graph.initializer}
        shapes = {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
                  for value in patched.graph.value_info}
        nodes = [node for node in patched.graph.node if node.op_type == "SwinAttention"]
        window = 7 if model.version == 1 else 8
        stages = [(2 * window, 1), (2 * window, 1), (window, 2), (window, 2)]
        blocks = [block for layer in model.torch.layers for block in layer.blocks]
        for index, (node, (resolution, heads), block) in enumerate(zip(nodes, stages, blocks)):
            attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            shift = window // 2 if index == 1 else 0
            assert attributes == {
                **windows(heads, (window, window), (shift, shift)), "mask_value": -100.0,
                "scale": np.float32(32**-0.5) if model.version == 1 else 1.0,
                "plugin_version": b"1", "plugin_namespace": b"swin"}
            bias = constants[node.input[1]]
            assert bias.shape == (heads, window**2, (window**2 + 7) // 8 * 8)
            assert bias.dtype == np.float32
            assert not bias[:, :, window**2:].any()
            assert shapes[node.input[0]] == ["batch", resolution, resolution, 3 * 32 * heads]
            assert shapes[node.output[0]] == ["batch", resolution, resolution, 32 * heads]
            with torch.no_grad():
                padding = block.attn.qkv.bias
                if padding is None:
                    padding = torch.cat([block.attn.q_bias, torch.zeros(32 * heads), block.attn.v_bias])
                np.testing.assert_array_equal(constants[node.input[2]], padding.numpy(), strict=True)
                if kind == "timm-v1-torchscript":
                    assert np.array_equal(bias[:, :, :window**2], block.attn._get_rel_pos_bias()[0])
                if model.version == 2:
                    clamped = block.attn.logit_scale.clamp(max=np.log(100)).exp().reshape(-1)
                    np.testing.assert_allclose(constants[node.input[3]], clamped, rtol=2e-7)


def test_scale_after_the_product_and_other_scales(randomize, monkeypatch):
    """q may be scaled before or after q @ k^T, and by another number than d^-0.5."""
    monkeypatch.setattr(WindowAttention, "_similarity", lambda self, qkv: qkv[0] @ qkv[1].transpose(-2, -1) * 0.3)
    model = small(1, randomize)
    exported = Exported(export(model, 17, "scaled"), model, model.img_size, (1,), 1)
    patched, _ = patch(exported.onnx, [STEPS["attention"]])
    scales = [item.f for node in patched.graph.node for item in node.attribute if item.name == "scale"]
    np.testing.assert_allclose(scales, [0.3] * 4, rtol=1e-6)
    exported.assert_equal(patched)


# --- what must stay as it is ---------------------------------------------------------------------------------


def constants_of(model: onnx.ModelProto, shape: tuple[int, ...]) -> list[onnx.TensorProto]:
    return [tensor for tensor in model.graph.initializer if tuple(tensor.dims) == shape]


def edited(model: onnx.ModelProto, tensor: onnx.TensorProto, change: Callable[[np.ndarray], None]) -> onnx.ModelProto:
    """A copy of the model in which `change` was made to the array of one initializer."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    target = next(item for item in copy.graph.initializer if item.name == tensor.name)
    array = numpy_helper.to_array(target).copy()
    change(array)
    target.CopyFrom(numpy_helper.from_array(array, target.name))
    return copy


@pytest.mark.parametrize(("change", "reason"), [
    (lambda mask: mask.__setitem__((3, 0, 0, 48), 0), "has not one value"),           # a hole
    (lambda mask: mask.__setitem__((0, 0, 0, 1), -100), "differs between windows"),  # where there is no other region
    (lambda mask: np.copyto(mask, np.roll(mask, 1, axis=-1)), "differs between windows"),
    (lambda mask: mask.__setitem__((0, 0, 0, 1), -np.inf), "not finite"),  # hides a token of the same region
    (lambda mask: mask.__setitem__((3, 0, 0, 48), -np.inf), "not finite"),  # -100 elsewhere
])
def test_another_mask_is_left_alone(change, reason, exported):
    model = exported("v1-17").onnx
    (mask,) = constants_of(model, (4, 1, 49, 49))
    wrong = edited(model, mask, change)
    patched, (report,) = patch(wrong, [STEPS["attention"]])
    assert report.replaced == 3
    assert len(report.left) == 1
    assert reason in report.left[0]
    x = np.random.default_rng(0).standard_normal((2, 3, 56, 56)).astype(np.float32)
    (expected,), (actual,) = (session(graph).run(None, {"input": x}) for graph in (wrong, patched))
    assert relative_error(actual, expected) < 1e-5


def test_another_mask_value_is_taken_over(exported):
    model = exported("v1-17").onnx
    (mask,) = constants_of(model, (4, 1, 49, 49))
    patched, (report,) = patch(edited(model, mask, lambda array: np.copyto(array, array / 40)), [STEPS["attention"]])
    assert not report.left
    values = [item.f for node in patched.graph.node for item in node.attribute if item.name == "mask_value"]
    assert values == [-100.0, -2.5, -100.0, -100.0]


def with_node(model: onnx.ModelProto, change: Callable[[gs.Graph], None]) -> onnx.ModelProto:
    graph = gs.import_onnx(model)
    change(graph)
    return gs.export_onnx(graph.cleanup().toposort())


def test_attention_that_is_no_cosine_is_left_alone(exported):
    """q and k divided by their sum of absolute values instead of their length."""
    def l1(graph: gs.Graph) -> None:
        for node in graph.nodes:
            node.op = "ReduceL1" if node.op == "ReduceL2" else node.op

    with pytest.raises(UserError, match=r"none of 4 window attention could be replaced.*no scaled dot product or cosi"):
        patch(with_node(exported("v2-17").onnx, l1), [STEPS["attention"]])


def test_attention_whose_inside_is_read_elsewhere_is_left_alone(exported):
    """Softmax weights that are an output of the model."""
    def expose(graph: gs.Graph) -> None:
        weights = next(node for node in graph.nodes if node.op == "Softmax").outputs[0]
        weights.dtype = np.float32
        graph.outputs.append(weights)

    patched, (report,) = patch(with_node(exported("v1-17").onnx, expose), [STEPS["attention"]])
    assert report.replaced == 3
    assert "read elsewhere" in report.left[0]
    assert len(patched.graph.output) == 2


@pytest.mark.parametrize(("opts", "replaced", "reason"), [
    (["MODEL.SWIN.EMBED_DIM", "48", "MODEL.SWIN.NUM_HEADS", "[1, 1]", "MODEL.SWIN.DEPTHS", "[1, 1]"], 1,
     "its heads have 96 channels, and the plugin takes up to 64"),
    (["MODEL.SWIN.WINDOW_SIZE", "36", "DATA.IMG_SIZE", "144", "MODEL.SWIN.DEPTHS", "[1, 1]"], 1,
     "its windows are 36 x 36 tokens, and the plugin takes up to 32 a side"),
])
def test_attention_that_the_plugin_does_not_compute_is_left_alone(opts, replaced, reason, randomize):
    model = small(1, randomize, *opts)
    left = len([block for layer in model.layers for block in layer.blocks]) - replaced
    patched, (report, _) = patch(export(model, 17, "unusual"), [STEPS["attention"], STEPS["linear"]])
    assert (report.replaced, len(report.left)) == (replaced, left)
    assert all(reason in why for why in report.left)
    Exported(patched, model, model.img_size, (1,), 1).assert_equal(patched)


def test_other_norms_are_left_alone(exported):
    """The L1 norm is no F.normalize."""
    def l1(graph: gs.Graph) -> None:
        next(node for node in graph.nodes if node.op == "ReduceL2").op = "ReduceL1"

    _, (report,) = patch(with_node(exported("v2-17").onnx, l1), [STEPS["fnorm"]])
    assert report.replaced == 3


def linear_parts(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Counter]:
    """The model with its linear layers replaced, and how many have (gelu, residual)."""
    patched, (report,) = patch(model, [STEPS["linear"]])
    parts = Counter((attributes["gelu"], len(inputs) == 4) for attributes, inputs in nodes_of(patched, "SwinLinear"))
    assert report.replaced == 17
    assert f"{parts[1, False]} with GELU, {parts[0, True]} with the residual Add" in report.lines()[0]
    return patched, parts


def assert_same(actual: onnx.ModelProto, expected: onnx.ModelProto, img_size: int = 56) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, img_size, img_size)).astype(np.float32)
    for a, b in zip(*(session(model).run(None, {"input": x}) for model in (actual, expected)), strict=True):
        assert relative_error(a, b) < 1e-5


def test_gelu_in_other_forms(exported):
    """0.5 * x times (erf(x * 0.7071) + 1) is GELU; with another constant it is not, and stays behind the product."""
    def rewrite(inverse: float) -> Callable[[gs.Graph], None]:
        def other_order(graph: gs.Graph) -> None:
            erf = next(node for node in graph.nodes if node.op == "Erf")
            divide = erf.inputs[0].inputs[0]
            divide.op, divide.inputs = "Mul", [gs.Constant("inverse", np.array(inverse, np.float32)), divide.inputs[0]]
            add = erf.outputs[0].outputs[0]
            multiply = add.outputs[0].outputs[0]
            last = multiply.outputs[0].outputs[0]
            half = gs.Variable("half", np.float32)
            constant = next(tensor for tensor in last.inputs if isinstance(tensor, gs.Constant))
            graph.nodes.append(gs.Node("Mul", "half", inputs=[divide.inputs[1], constant], outputs=[half]))
            last.inputs = [add.outputs[0], half]
        return other_order

    for inverse, count in ((0.5**0.5, 4), (0.6, 3)):
        model = with_node(exported("v1-17").onnx, rewrite(inverse))
        patched, parts = linear_parts(model)
        assert parts == {(1, False): count, (0, True): 8, (0, False): 9 - count}
        assert sum(node.op_type == "Erf" for node in patched.graph.node) == 4 - count
        assert_same(patched, model)


def exposed(find: Callable[[gs.Graph], gs.Tensor], directly: bool) -> Callable[[gs.Graph], None]:
    """Make a tensor an output of the model, or let one be made of it."""
    def expose(graph: gs.Graph) -> None:
        tensor = find(graph)
        if not directly:
            negative = gs.Variable("negative")
            graph.nodes.append(gs.Node("Neg", "negative", inputs=[tensor], outputs=[negative]))
            tensor = negative
        tensor.dtype = np.float32
        graph.outputs.append(tensor)

    return expose


@pytest.mark.parametrize(("find", "parts"), [
    (lambda graph: next(node for node in graph.nodes if node.op == "Erf").inputs[0].inputs[0].inputs[0],
     {(1, False): 3, (0, True): 8, (0, False): 6}),                      # fc1's output
    (lambda graph: next(node for node in graph.nodes if node.op == "Erf").outputs[0],
     {(1, False): 3, (0, True): 8, (0, False): 6}),                      # inside GELU
    (lambda graph: next(node for node in graph.nodes if "proj/MatMul" in node.name).outputs[0],
     {(1, False): 4, (0, True): 7, (0, False): 6}),                      # a product before its bias
    (lambda graph: next(node for node in graph.nodes if "proj/Add" in node.name).outputs[0],
     {(1, False): 4, (0, True): 7, (0, False): 6}),                      # proj's output, before the residual
])
@pytest.mark.parametrize("directly", [True, False])
def test_what_is_read_elsewhere_stays(directly, find, parts, exported):
    """A tensor inside a linear layer that is an output of the model, or goes into one."""
    model = with_node(exported("v1-17").onnx, exposed(find, directly))
    patched, found = linear_parts(model)
    assert found == parts
    assert_same(patched, model)


def first(graph: gs.Graph, op: str) -> gs.Node:
    return next(node for node in graph.nodes if node.op == op)


def first_mlp(graph: gs.Graph) -> tuple[gs.Node, gs.Node]:
    """fc1 and fc2 of the first block."""
    fc1 = next(node for node in graph.nodes if node.op == "SwinLinear" and node.attrs["gelu"])
    return fc1, fc1.outputs[0].outputs[0]


def other_residual(graph: gs.Graph) -> None:
    """The block's input, not that of its MLP."""
    _, fc2 = first_mlp(graph)
    qkv = first(graph, "SwinLinear")
    if len(fc2.inputs) == 4:
        fc2.inputs[3] = qkv.inputs[0].inputs[0].inputs[0]
    else:
        fc2.outputs[0].outputs[0].inputs[1] = qkv.inputs[0]


def norm_of_the_residual(graph: gs.Graph) -> None:
    norm = first_mlp(graph)[1].outputs[0].outputs[0]
    x, residual, *parameters = norm.inputs
    norm.inputs = [residual, x, *parameters]


def gelu_twice(graph: gs.Graph) -> None:
    _, fc2 = first_mlp(graph)
    fc2.attrs["gelu"] = 1
    fc2.inputs = fc2.inputs[:3]


@pytest.mark.parametrize(("kind", "change", "reason"), [
    ("v1-17", other_residual, "is added to it, not the input"),
    ("v2-17", other_residual, "is added to it, not the input"),
    ("v2-17", norm_of_the_residual, "does not normalise it"),
    ("v1-17", gelu_twice, "is not the second product of an MLP"),
    *((kind, exposed(find, directly), "inside it, is read elsewhere") for kind, find in (
        ("v1-17", lambda graph: first_mlp(graph)[0].inputs[0]), ("v1-17", lambda graph: first_mlp(graph)[0].outputs[0]),
        ("v2-17", lambda graph: first_mlp(graph)[0].outputs[0]),
        ("v2-17", lambda graph: first_mlp(graph)[1].outputs[0])) for directly in (True, False)),
])
def test_another_mlp_is_left_alone(kind, change, reason, exported):
    model = exported(kind)
    parts = with_node(patch(model.onnx, [STEPS[name] for name in PARTS])[0], change)
    patched, (report,) = patch(parts, [STEPS["mlp"]])
    assert report.replaced == 3
    assert reason in report.left[0]
    assert_same(patched, parts, model.img_size)


def first_proj(graph: gs.Graph) -> gs.Node:
    return first(graph, "SwinAttention").outputs[0].outputs[0]


def mlp_input(graph: gs.Graph) -> gs.Variable:
    """x of the first MLP: of V1's proj with its residual, or of V2's LayerNorm with its."""
    y = first_proj(graph).outputs[0]
    return y if len(first_proj(graph).inputs) == 4 else y.outputs[0].outputs[0]


def assert_without_proj(parts: onnx.ModelProto, change: Callable[[gs.Graph], None], img_size: int) -> None:
    """All four MLPs are replaced, the first without the proj before it."""
    changed = with_node(parts, change)
    patched, (report,) = patch(changed, [STEPS["mlp"]])
    assert report.replaced == 4
    most = 10 if first_proj(gs.import_onnx(parts)).inputs[3:] else 12
    assert [len(node.input) for node in mlps(patched)] == [7, *3 * [most]]
    assert_same(patched, changed, img_size)


@pytest.mark.parametrize("directly", [True, False])
@pytest.mark.parametrize("kind", ["v1-17", "v2-17"])
def test_what_lies_between_proj_and_an_mlp_may_be_read_elsewhere(kind, directly, exported):
    """What the MLP reads, and in V2 what proj gives to the LayerNorm: then proj stays a node of its own."""
    model = exported(kind)
    parts, _ = patch(model.onnx, [STEPS[name] for name in PARTS])
    for find in (mlp_input, lambda graph: first_proj(graph).outputs[0]):
        assert_without_proj(parts, exposed(find, directly), model.img_size)


@pytest.mark.parametrize("directly", [True, False])
@pytest.mark.parametrize("kind", ["v1-17", "v2-17"])
def test_what_goes_into_proj_and_out_of_an_mlp_may_be_read_elsewhere(kind, directly, exported):
    """Attention's output and that of the MLP: all is one node."""
    model = exported(kind)
    parts, _ = patch(model.onnx, [STEPS[name] for name in PARTS])

    def mlp_output(graph: gs.Graph) -> gs.Variable:
        y = first_mlp(graph)[1].outputs[0]
        return y if model.version == 1 else y.outputs[0].outputs[0]

    for find in (lambda graph: first(graph, "SwinAttention").outputs[0], mlp_output):
        changed = with_node(parts, exposed(find, directly))
        patched, (report,) = patch(changed, [STEPS["mlp"]])
        assert (report.replaced, report.left) == (4, [])
        assert plugin_counts(patched) == ALL_COUNTS[model.version]
        assert_same(patched, changed, model.img_size)


def other_epsilon(graph: gs.Graph) -> None:
    first(graph, "SwinLayerNormAdd").attrs["epsilon"] = 0.1


def proj_with_gelu(graph: gs.Graph) -> None:
    first_proj(graph).attrs["gelu"] = 1


def proj_with_residual(graph: gs.Graph) -> None:
    """In V2, whose LayerNorm's residual is there already."""
    proj = first_proj(graph)
    proj.inputs.append(proj.outputs[0].outputs[0].inputs[1])


def proj_without_residual(graph: gs.Graph) -> None:
    del first_proj(graph).inputs[3]


def wider_proj(graph: gs.Graph) -> None:
    """Of qkv's channels, three times as many, with no attention between."""
    proj = first_proj(graph)
    _, weight, *others = proj.inputs
    wide = gs.Constant("wide", np.tile(weight.values, (1, 3)))
    proj.inputs = [first(graph, "SwinAttention").inputs[0], wide, *others]


def branches_changed_over(graph: gs.Graph) -> None:
    """V2's LayerNorm after proj normalises the residual, and adds what proj gives."""
    norm = first(graph, "SwinLayerNormAdd")
    projected, residual, *parameters = norm.inputs
    norm.inputs = [residual, projected, *parameters]


def added_without_a_norm(graph: gs.Graph) -> None:
    """V1's way before V2's MLP: proj adds the residual, and no LayerNorm stands between."""
    norm, proj = first(graph, "SwinLayerNormAdd"), first_proj(graph)
    proj.inputs.append(norm.inputs[1])
    proj.outputs = norm.outputs
    norm.outputs.clear()


@pytest.mark.parametrize(("kind", "change"), [
    ("v1-17", proj_without_residual), ("v1-17", wider_proj),
    ("v2-17", other_epsilon), ("v2-17", proj_with_gelu), ("v2-17", proj_with_residual), ("v2-17", wider_proj),
    ("v2-17", branches_changed_over), ("v2-17", added_without_a_norm),
])
def test_another_end_of_attention_stays_before_the_mlp(kind, change, exported):
    model = exported(kind)
    parts, _ = patch(model.onnx, [STEPS[name] for name in PARTS])
    assert_without_proj(parts, change, model.img_size)


@pytest.mark.parametrize("kind", ["v1-17", "v2-17"])
def test_kept_products_stay_nodes(kind, exported):
    """proj of the first block, fc2 of the second, and fc1 of the third with its proj, which no SwinMlp takes in."""
    model = exported(kind)
    parts, _ = patch(model.onnx, [STEPS[name] for name in PARTS])
    names = [node.name.removesuffix("/SwinLinear") for node in parts.graph.node if node.op_type == "SwinLinear"]
    projs, fc1s, fc2s = ([name for name in names if part in name] for part in ("attn/proj", "mlp/fc1", "mlp/fc2"))
    kept = [projs[0], fc2s[1], projs[2], fc1s[2]]
    patched, (report,) = patch(parts, [partial(add_mlp.add_mlp, kept=kept)])
    assert report.lines() == ["replaced 2 of 2 MLP"]
    assert [len(node.input) for node in mlps(patched)] == [7, 10 if model.version == 1 else 12]
    left = {node.name.removesuffix("/SwinLinear") for node in patched.graph.node if node.op_type == "SwinLinear"}
    assert left & {*projs, *fc1s, *fc2s} == {projs[0], projs[1], fc1s[1], fc2s[1], projs[2], fc1s[2], fc2s[2]}
    model.assert_equal(patched)


@pytest.mark.parametrize("kind", ["v1-17", "v2-17"])
def test_wide_blocks_keep_their_nodes(kind, exported, monkeypatch):
    """Up to 32 channels: only the first stage. Up to 16: none, an error of the script but not of the step."""
    model = exported(kind)
    monkeypatch.setattr(add_mlp, "MOST_CHANNELS", 32)
    patched, reports = patch(model.onnx, [STEPS[name] for name in ALL])
    assert reports[-1].lines() == ["replaced 2 of 2 MLP"]
    assert (plugin_counts(patched)["SwinMlp"], plugin_counts(patched)["SwinLinear"]) == (2, 11)
    model.assert_equal(patched)
    monkeypatch.setattr(add_mlp, "MOST_CHANNELS", 16)
    patched, reports = patch(model.onnx, [STEPS[name] for name in ALL])
    assert reports[-1].lines() == ["no MLP to replace"]
    assert plugin_counts(patched) == PARTS_COUNTS[model.version]
    with pytest.raises(UserError, match=r"none of 4 MLP could be replaced; the first: .*its 32 channels are more than"):
        patch(patched, [add_mlp.add_mlp_alone])


def test_linear_layers_written_as_gemm_or_with_a_transposed_weight(exported):
    """Reshape to [B*L, K], Gemm with [N, K], Reshape back; and MatMul with Transpose of [N, K]."""
    def products(graph: gs.Graph) -> list[gs.Node]:
        return [node for node in graph.nodes if node.op == "MatMul" and isinstance(node.inputs[1], gs.Constant)]

    def transposed(matmul: gs.Node) -> gs.Constant:
        return gs.Constant(f"{matmul.name}/transposed", np.ascontiguousarray(matmul.inputs[1].values.T))

    def as_gemm(graph: gs.Graph) -> None:
        for matmul in products(graph):
            x, product = matmul.inputs[0], matmul.outputs[0]
            add = product.outputs[0]
            if len(x.shape) != 3 or add.op != "Add":
                continue  # the head; the reduction, which has no bias
            (bias,) = (tensor for tensor in add.inputs if tensor is not product)
            (y,) = add.outputs
            add.outputs = []
            rows, made = (gs.Variable(f"{matmul.name}/{name}", np.float32) for name in ("rows", "made"))
            to_rows, back = (gs.Constant(f"{matmul.name}/{name}", np.array([-1, *shape]))
                             for name, shape in (("to_rows", x.shape[2:]), ("back", y.shape[1:])))
            graph.nodes += [
                gs.Node("Reshape", f"{matmul.name}/flatten", inputs=[x, to_rows], outputs=[rows]),
                gs.Node("Gemm", f"{matmul.name}/gemm", {"transB": 1}, [rows, transposed(matmul), bias], [made]),
                gs.Node("Reshape", f"{matmul.name}/restore", inputs=[made, back], outputs=[y])]

    def with_transpose(graph: gs.Graph) -> None:
        for matmul in products(graph):
            weight = gs.Variable(f"{matmul.name}/weight", np.float32)
            graph.nodes.append(gs.Node("Transpose", f"{matmul.name}/transpose", {"perm": [1, 0]}, [transposed(matmul)],
                                       [weight]))
            matmul.inputs[1] = weight

    original = exported("v1-17")
    tidied = gs.export_onnx(tidy(original.onnx))  # where shapes are recorded
    for change in (as_gemm, with_transpose):
        model = with_node(tidied, change)
        patched, parts = linear_parts(model)
        assert parts == {(1, False): 4, (0, True): 8, (0, False): 5}
        original.assert_equal(patched)
        patched, _ = patch(model, [STEPS[name] for name in ALL])
        assert plugin_counts(patched) == ALL_COUNTS[1]
        original.assert_equal(patched)


@pytest.mark.parametrize(("shape", "found"), [((4,), True), ((1, 1, 4), True), ((1,), True), ((), True),
                                              ((4, 1), False), ((2, 4), False)])
def test_what_is_a_bias(shape, found):
    """One number for each of four channels, or for all; not one for each of four tokens."""
    x, product, y = (gs.Variable(name, np.float32) for name in ("x", "product", "y"))
    bias = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    matmul = gs.Node("MatMul", inputs=[x, gs.Constant("weight", np.ones((3, 4), np.float32))], outputs=[product])
    gs.Node("Add", inputs=[gs.Constant("bias", bias), product], outputs=[y])
    given, output = linear_bias(matmul)
    if found:
        assert output is y
        np.testing.assert_array_equal(given, np.broadcast_to(bias.ravel(), 4), strict=True)
    else:
        assert given is None
        assert output is product


@pytest.mark.parametrize(("attributes", "cols", "reason"), [
    ({"strides": [4, 2]}, 4, "does not cut"), ({"strides": [2, 2]}, 4, "does not cut"),
    ({"pads": [1, 0, 0, 1]}, 4, "does not cut"), ({"pads": [0, 0, 4, 0]}, 4, "do not fill"),
    ({"kernel_shape": [4, 2]}, 2, "does not cut"), ({"dilations": [1, 2]}, 4, "does not cut"),
])
def test_another_convolution_is_no_patch_embedding(attributes, cols, reason, exported):
    """A convolution, tokens of its rows, LayerNorm; the rest of the model would not take other numbers of tokens."""
    def embedding_alone(graph: gs.Graph) -> None:
        conv, norm = (next(node for node in graph.nodes if node.op == op) for op in ("Conv", "LayerNormalization"))
        conv.attrs.update(attributes)
        conv.inputs[1].values = np.ascontiguousarray(conv.inputs[1].values[..., :cols])
        reshape = conv.outputs[0].outputs[0]
        reshape.inputs[1] = gs.Constant("rows", np.array([0, conv.inputs[1].shape[0], -1]))
        graph.outputs = [gs.Variable("tokens", np.float32)]
        norm.outputs = graph.outputs

    with pytest.raises(UserError, match=rf"none of 1 patch embedding .* {reason} the image"):
        patch(with_node(exported("v1-17").onnx, embedding_alone), [STEPS["embedding"]])


def test_tokens_in_another_order_are_no_patch_embedding(exported):
    """Tokens column by column."""
    def columns(graph: gs.Graph) -> None:
        conv = next(node for node in graph.nodes if node.op == "Conv")
        turned = gs.Variable("turned", np.float32)
        conv.outputs[0].outputs[0].inputs[0] = turned
        graph.nodes.append(gs.Node("Transpose", "turn", {"perm": [0, 1, 3, 2]}, [conv.outputs[0]], [turned]))

    with pytest.raises(UserError, match=r"none of 1 patch embedding .* not become tokens in the image's order"):
        patch(with_node(exported("v1-17").onnx, columns), [STEPS["embedding"]])


def test_a_frozen_batch_is_said(exported):
    """A graph that claims a dynamic batch but has 1 written into a Reshape."""
    def freeze(graph: gs.Graph) -> None:
        reshape = next(node for node in graph.nodes if node.op == "Reshape" and node.inputs[1].values[0] == -1)
        reshape.inputs[1].values = np.array([1, *reshape.inputs[1].values[1:]])

    with pytest.raises(UserError, match="does not run it at batch 2"):
        patch(with_node(exported("v1-17").onnx, freeze), [STEPS["layernorm"]])


def test_axes_counted_from_the_front(exported):
    """Exporters may write the last axis as 2 or 3 rather than -1."""
    def from_the_front(graph: gs.Graph) -> None:
        for node in graph.nodes:
            if node.op == "ReduceMean" and node.attrs.get("axes") == [-1]:
                node.attrs["axes"] = [2]
            if node.op == "LayerNormalization":
                node.attrs["axis"] = len(node.inputs[0].shape) - 1

    model = exported("v1-12")
    patched, (report,) = patch(with_node(model.onnx, from_the_front), [STEPS["residual"]])
    assert report.replaced == 7
    model.assert_equal(patched)
    model = exported("timm-v1-dynamo")  # where most are over axis 3
    patched, (report,) = patch(with_node(model.onnx, from_the_front), [STEPS["residual"]])
    assert report.replaced == 7
    assert not report.left
    model.assert_equal(patched)


def test_tidying_changes_nothing_but_the_form(exported):
    for kind in ("timm-v1-torchscript", "timm-v2-dynamo"):
        model = exported(kind)
        tidied = gs.export_onnx(tidy(model.onnx))
        model.assert_equal(tidied)
        assert len(tidied.graph.node) < 300
        assert not {"Shape", "ConstantOfShape", "Pad", "Squeeze", "Unsqueeze", "Gemm", "Gelu", "Expand", "Constant",
                    "Sigmoid"} & {node.op_type for node in tidied.graph.node}
        assert next(entry.version for entry in tidied.opset_import if entry.domain == "") <= 17


@pytest.mark.parametrize("kind", ["v1-12", "v2-17", "timm-v2-dynamo"])
def test_nodes_need_no_names(kind, exported):
    model = exported(kind)
    nameless = onnx.ModelProto()
    nameless.CopyFrom(model.onnx)
    for node in nameless.graph.node:
        node.ClearField("name")
    patched, reports = patch(nameless, [STEPS[name] for name in ALL])
    assert all(not report.left for report in reports)
    assert plugin_counts(patched) == ALL_COUNTS[model.version]
    model.assert_equal(patched)


@pytest.fixture
def two_outputs(exported) -> onnx.ModelProto:
    """A graph with a fixed batch, whose second output is the class of each image as int32."""
    def classes(graph: gs.Graph) -> None:
        (logits,) = graph.outputs
        largest, output = gs.Variable("largest", np.int64), gs.Variable("class", np.int32, [2])
        graph.nodes += [gs.Node("ArgMax", "argmax", {"axis": 1, "keepdims": 0}, [logits], [largest]),
                        gs.Node("Cast", "to_int32", {"to": TensorProto.INT32}, [largest], [output])]
        graph.inputs[0].shape, logits.shape = [2, *graph.inputs[0].shape[1:]], [2, logits.shape[1]]
        graph.outputs.append(output)

    return with_node(exported("v1-17").onnx, classes)


def test_whole_numbers_that_depend_on_the_image_are_no_constants(two_outputs):
    """With a fixed batch the graph runs once, and then every whole number looks like a constant."""
    patched, _ = patch(two_outputs, [STEPS["with_params"]])
    assert {"ArgMax", "Cast"} <= {node.op_type for node in patched.graph.node}
    found = set()
    for seed in range(4):
        x = np.random.default_rng(seed).standard_normal((2, 3, 56, 56)).astype(np.float32)
        logits, classes = session(patched).run(None, {"input": x})
        assert np.array_equal(classes, logits.argmax(axis=1))
        found.update(classes)
    assert len(found) > 1


def test_the_check_compares_every_output(two_outputs):
    patched, _ = patch(two_outputs, [STEPS["with_params"]])
    assert len(surgeon.check(two_outputs, patched)) == 2  # a line for each output
    argmax = next(node for node in patched.graph.node if node.op_type == "ArgMax")
    argmax.op_type = "ArgMin"
    with pytest.raises(UserError, match="output class differs at batch 2, so nothing was written"):
        surgeon.check(two_outputs, patched)


def test_logits_that_are_all_zero_cannot_be_compared(exported):
    model = exported("v1-17").onnx
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name.startswith("head.")]:
        model = edited(model, tensor, lambda array: array.fill(0))
    patched, _ = patch(model, [STEPS["with_params"]])
    with pytest.raises(UserError, match=r"its logits are all zero, .*; give trained weights, or --no-check"):
        surgeon.check(model, patched)


def test_what_keeps_the_shape_may_still_do_something():
    """A Pad that crops as much as it adds, a Slice backwards, a Transpose of equal axes."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 4, 4])
    integers = {"pads": [0, 0, 1, 0, 0, 0, -1, 0], "start": [-1], "end": [-5], "axis": [3], "step": [-1]}
    nodes = [helper.make_node("Pad", ["x", "pads"], ["padded"]),
             helper.make_node("Slice", ["padded", "start", "end", "axis", "step"], ["mirrored"]),
             helper.make_node("Transpose", ["mirrored"], ["turned"], perm=[0, 1, 3, 2]),
             helper.make_node("Relu", ["turned"], ["y"])]
    initializers = [numpy_helper.from_array(np.array(numbers), name) for name, numbers in integers.items()]
    model = helper.make_model(helper.make_graph(nodes, "moves", [x], [y], initializers),
                              opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    image = np.random.default_rng(0).random((2, 3, 4, 4)).astype(np.float32)
    expected = np.pad(image, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :4, ::-1].transpose(0, 1, 3, 2)
    assert np.array_equal(session(gs.export_onnx(tidy(model))).run(None, {"x": image})[0], expected)


# --- scripts -------------------------------------------------------------------------------------------------


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SURGERY / script), *map(str, arguments)], capture_output=True, text=True)


def test_a_script_counts_checks_and_saves(exported, tmp_path):
    onnx.save(exported("v1-17").onnx, tmp_path / "swin.onnx")
    done = run_script("add_layernorm_with_params.py", "--onnx", tmp_path / "swin.onnx")
    assert done.returncode == 0, done.stderr
    assert "replaced 11 of 11 LayerNorm" in done.stdout
    checks = [line for line in done.stdout.splitlines() if line.startswith("check, batch")]
    assert [line.split(":")[0] for line in checks] == ["check, batch 1", "check, batch 3"]
    patched = onnx.load(tmp_path / "swin_layernorm_params.onnx")
    assert plugin_counts(patched) == Counter(SwinLayerNormWithParams=11)

    again = run_script("add_layernorm_with_params.py", "--onnx", tmp_path / "swin_layernorm_params.onnx")
    assert_refused(again, "already patched: it holds 11 SwinLayerNormWithParams and no LayerNorm besides")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["swin.onnx", "swin_layernorm_params.onnx"]


@pytest.mark.parametrize(("kind", "counts"), [
    ("v1-17", Counter(SwinAddLayerNorm=7, SwinLayerNormWithParams=4)),
    ("v2-17", Counter(SwinLayerNormAdd=8, SwinLayerNormWithParams=3)),
])
def test_every_layernorm_takes_the_adds_beside_it(exported, tmp_path, kind, counts):
    onnx.save(exported(kind).onnx, tmp_path / "swin.onnx")
    done = run_script("add_every_layernorm.py", "--onnx", tmp_path / "swin.onnx")
    assert done.returncode == 0, done.stderr
    patched = onnx.load(tmp_path / "swin_layernorm.onnx")
    assert plugin_counts(patched) == counts
    again = run_script("add_every_layernorm.py", "--onnx", tmp_path / "swin_layernorm.onnx")
    assert_refused(again, "already patched: it holds")


@pytest.mark.parametrize(("script", "suffix", "printed", "refused"), [
    ("add_linear.py", "_linear", "replaced 17 of 17 linear layer: 4 with GELU, 8 with the residual Add",
     "already patched: it holds 17 SwinLinear and no linear layer besides"),
    ("add_patch_embedding.py", "_patch_embedding", "replaced 1 of 1 patch embedding",
     "already patched: it holds 1 SwinPatchEmbed and no patch embedding besides"),
])
def test_the_other_scripts_refuse_to_patch_twice(script, suffix, printed, refused, exported, tmp_path):
    onnx.save(exported("v1-12").onnx, tmp_path / "swin.onnx")
    done = run_script(script, "--onnx", tmp_path / "swin.onnx")
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
    assert_refused(run_script(script, "--onnx", tmp_path / f"swin{suffix}.onnx"), refused)


def test_the_mlp_script_comes_after_the_others(exported, tmp_path):
    onnx.save(exported("v2-17").onnx, tmp_path / "swin.onnx")
    done = run_script("add_mlp.py", "--onnx", tmp_path / "swin.onnx")
    assert_refused(done, "holds no SwinLinear nodes; add_all.py does all that this step needs")
    onnx.save(patch(exported("v2-17").onnx, [STEPS[name] for name in PARTS])[0], tmp_path / "swin_parts.onnx")
    done = run_script("add_mlp.py", "--onnx", tmp_path / "swin_parts.onnx")
    assert done.returncode == 0, done.stderr
    assert "replaced 4 of 4 MLP" in done.stdout
    assert done.stdout.count("check, batch") == 2
    assert plugin_counts(onnx.load(tmp_path / "swin_parts_mlp.onnx")) == ALL_COUNTS[2]
    done = run_script("add_mlp.py", "--onnx", tmp_path / "swin_parts_mlp.onnx")
    assert_refused(done, "4 SwinMlp")
    assert "and no MLP besides; start from the unpatched file" in done.stderr


def assert_refused(done: subprocess.CompletedProcess, message: str) -> None:
    """One line on stderr with the message, and exit status 1."""
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_bad_files_are_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("not a graph")
    (tmp_path / "empty.onnx").write_bytes(b"")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 8, 8]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    for name, opset in (("relu.onnx", 17), ("old.onnx", 11)):
        domains = [helper.make_opsetid("", opset)]
        onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=6), tmp_path / name)
    for name, message in (("text.onnx", "is not an ONNX file"), ("empty.onnx", "is not an ONNX file"),
                          ("absent.onnx", "no such file"), ("relu.onnx", "has no window attention to replace"),
                          ("old.onnx", "has opset 11; export it again with 12 to 17")):
        done = run_script("add_attention.py", "--onnx", tmp_path / name, "--output", tmp_path / "out.onnx")
        assert_refused(done, message)
        assert name in done.stderr
    done = run_script("add_attention.py", "--onnx", tmp_path / "relu.onnx", "--output", tmp_path / "relu.onnx")
    assert_refused(done, "is the graph to change")
    for name in ("noext", "folder/"):
        done = run_script("add_attention.py", "--onnx", tmp_path / "relu.onnx", "--output", f"{tmp_path}/{name}")
        assert_refused(done, "not the name of an ONNX file; let --output end with .onnx")
    assert not any((tmp_path / name).exists() for name in ("out.onnx", "noext", "folder"))


def test_whatever_onnxruntime_refuses_is_one_line(exported, monkeypatch):
    def refusing(*_: object, **__: object) -> None:
        raise onnxruntime_pybind11_state.InvalidProtobuf("of its reasons the first\nand more")

    monkeypatch.setattr(outputs, "session", refusing)
    with pytest.raises(UserError, match=r"onnxruntime refuses it: of its reasons the first$"):
        surgeon.check(exported("v1-17").onnx, exported("v1-17").onnx)


def test_a_wrong_patch_is_not_written(exported, tmp_path, monkeypatch, capsys):
    """The check holds the patched graph against the unpatched one: an epsilon of 1e-2 is found, and nothing saved."""
    import add_layernorm_with_params as script

    real = script.plugin_node
    monkeypatch.setattr(script, "plugin_node", lambda *args, epsilon, **more: real(*args, epsilon=1e-2, **more))
    onnx.save(exported("v1-17").onnx, tmp_path / "swin.onnx")
    monkeypatch.setattr(sys, "argv", ["script", "--onnx", str(tmp_path / "swin.onnx")])
    with pytest.raises(UserError, match="differs at batch 1"):
        script.main()
    assert [path.name for path in tmp_path.iterdir()] == ["swin.onnx"]
    monkeypatch.setattr(sys, "argv", ["script", "--onnx", str(tmp_path / "swin.onnx"), "--no-check"])
    script.main()
    assert (tmp_path / "swin_layernorm_params.onnx").exists()


@pytest.mark.parametrize(("share", "refused"), [(0.9e-5, False), (1.2e-5, True), (np.nan, True)])
def test_the_check_allows_1e_5_of_the_largest_logit(share, refused, exported):
    model = exported("v1-17").onnx
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    count = 3 if refused else 1  # the largest logit of the batch that has the larger, or the smaller one
    (logits,) = session(model).run(None, {"input": held_out_batch(count, 56)[0]})
    changed = edited(model, bias, lambda array: array.__iadd__(np.float32(share * np.abs(logits).max())))
    if refused:
        with pytest.raises(UserError, match="differs at batch 1"):
            surgeon.check(model, changed)
    else:
        assert len(surgeon.check(model, changed)) == 2


def test_a_layernorm_over_two_axes_is_left(exported):
    def over_all_tokens(graph):
        first(graph, "LayerNormalization").attrs["axis"] = 1

    model = with_node(exported("v1-17").onnx, over_all_tokens)
    patched, (report,) = patch(model, [STEPS["with_params"]])
    assert report.replaced == 10
    assert_same(patched, model)


def test_an_opset_that_cannot_be_lowered_is_said(exported, tmp_path, capsys):
    """Mish came with opset 18 and has no older form."""
    def mish(graph: gs.Graph) -> None:
        (logits,) = graph.outputs
        output = gs.Variable("mish", np.float32, logits.shape)
        graph.nodes.append(gs.Node("Mish", "mish", inputs=[logits], outputs=[output]))
        graph.outputs = [output]

    patched, _ = patch(with_node(exported("timm-v1-dynamo").onnx, mish), [STEPS["attention"]])
    patched, _ = patch(patched, [STEPS["with_params"]])
    parser = argparse.ArgumentParser()
    surgeon.add_file_arguments(parser, "", "")
    onnx.save(exported("timm-v1-dynamo").onnx, tmp_path / "swin.onnx")
    surgeon.save(patched, tmp_path / "mish.onnx", parser.parse_args(["--onnx", str(tmp_path / "swin.onnx")]))
    assert "TensorRT 8.6 does not read it" in capsys.readouterr().out
