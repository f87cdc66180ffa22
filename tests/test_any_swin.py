"""Graphs of Swins from anywhere: ways of padding and shifting, windows, heads, mergings and embeddings, all replaced.

The models are small ones of our own that compute as the libraries do which the cases name; PyTorch itself is the
reference.
"""
from __future__ import annotations

import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field

import add_all
import add_int8
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from to_fp16 import TOLERANCE as FP16_TOLERANCE
from to_fp16 import to_fp16
from torch import nn
from torch.nn import functional as F

from graphs.files import load_onnx
from graphs.sessions import session
from graphs.surgeon import check, patch, patch_and_check, plugin_counts, save
from graphs.swin_attention import Windows, wider_heads
from TensorRT.INT8 import quant
from utils import UserError

PLACEMENT = {"Pad", "Slice", "Concat", "Gather", "Where", "Softmax", "Split", "Shape"}  # what a node makes superfluous


@dataclass
class Way:
    """How a model does it.

    Attributes:
        size: height and width of the image.
        window, shift: rows and columns.
        roll_first: timm; else padded first, as all others do.
        shift_if_covered: "yes" (official detection, mmdetection), "axis" (torchvision), "image" (Hugging Face).
        heads, head_dim: of the first stage.
        patch: height and width; ceil: whether zeros continue the image.
        merging: "official", "rows" (row by row) or "unfold" (OpenMMLab 3).
        cosine: V2's attention and order of norms; gelu: PyTorch's name of the form.
    """

    size: tuple[int, int] = (32, 32)
    window: tuple[int, int] = (4, 4)
    shift: tuple[int, int] = (2, 2)
    roll_first: bool = False
    shift_if_covered: str = "yes"
    heads: int = 2
    head_dim: int = 8
    patch: tuple[int, int] = (4, 4)
    ceil: bool = False
    merging: str = "official"
    flat: bool = False  # the merged tokens are [B, L, 4C] for the norm and the linear layer (official, Hugging Face)
    cosine: bool = False
    gelu: str = "none"
    mask_by_where: bool = False
    mask_of_batch: bool = False  # expanded by the batch of the image, as dynamo exports Hugging Face's
    expected: dict = field(default_factory=dict)  # attributes of the second SwinAttention


class Attention(nn.Module):
    def __init__(self, way: Way, heads: int, shifted: bool) -> None:
        super().__init__()
        self.way, self.heads, self.shifted = way, heads, shifted
        channels, tokens = heads * way.head_dim, way.window[0] * way.window[1]
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros(heads, tokens, tokens))
        self.logit_scale = nn.Parameter(torch.zeros(heads, 1, 1)) if way.cosine else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, W, C] -> the same"""
        _, height, width, channels = x.shape
        window = self.way.window
        below, beside = -height % window[0], -width % window[1]
        padded = (height + below, width + beside)
        shift = list(self.way.shift) if self.shifted else [0, 0]
        covered = [side <= size for side, size in zip(padded, window)]
        if self.way.shift_if_covered == "axis":
            shift = [0 if here else step for step, here in zip(shift, covered)]
        elif self.way.shift_if_covered == "image" and any(covered):
            shift = [0, 0]
        back, forth = (shift[0], shift[1]), (-shift[0], -shift[1])
        if self.way.roll_first:
            x = F.pad(torch.roll(x, forth, (1, 2)), (0, 0, 0, beside, 0, below))
        else:
            x = torch.roll(F.pad(x, (0, 0, 0, beside, 0, below)), forth, (1, 2))
        rows, cols = padded[0] // window[0], padded[1] // window[1]
        x = x.view(-1, rows, window[0], cols, window[1], channels).transpose(2, 3)
        x = x.reshape(-1, window[0] * window[1], channels)
        qkv = self.qkv(x).reshape(-1, window[0] * window[1], 3, self.heads, channels // self.heads)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.logit_scale is None:
            scores = (q * self.way.head_dim**-0.5) @ k.transpose(-1, -2)
        else:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2)
            scores = scores * self.logit_scale.clamp(max=4.6).exp()
        scores = scores + self.bias
        if any(shift):
            number = torch.zeros(1, rows * window[0], cols * window[1], 1)
            index = 0
            for row in (slice(0, -window[0]), slice(-window[0], -shift[0]), slice(-shift[0], None)):
                for col in (slice(0, -window[1]), slice(-window[1], -shift[1]), slice(-shift[1], None)):
                    number[:, row, col] = index
                    index += 1
            number = number.view(rows, window[0], cols, window[1]).transpose(1, 2).reshape(rows * cols, -1)
            apart = number[:, None, :] != number[:, :, None]
            if self.way.mask_by_where:
                tokens, area = rows * cols, window[0] * window[1]
                scores = scores.view(-1, tokens, self.heads, area, area)
                scores = torch.where(apart[:, None], scores - 100, scores).view(-1, self.heads, area, area)
            else:
                mask = torch.zeros(apart.shape).masked_fill(apart, -100.0)
                mask = mask[None, :, None]
                if self.way.mask_of_batch:
                    mask = mask.expand(self.batch, -1, -1, -1, -1)
                scores = scores.view(-1, rows * cols, *scores.shape[1:]) + mask
                scores = scores.view(-1, *scores.shape[2:])
        x = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, window[0] * window[1], channels))
        x = x.view(-1, rows, cols, window[0], window[1], channels).transpose(2, 3).reshape(-1, *padded, channels)
        if self.way.roll_first:
            return torch.roll(x[:, :height, :width], back, (1, 2))
        return torch.roll(x, back, (1, 2))[:, :height, :width].contiguous()


class Block(nn.Module):
    def __init__(self, way: Way, heads: int, shifted: bool) -> None:
        super().__init__()
        channels = heads * way.head_dim
        self.cosine, self.gelu = way.cosine, way.gelu
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = Attention(way, heads, shifted)
        self.fc1, self.fc2 = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.gelu))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.cosine:
            x = x + self.norm1(self.attn(x))
            return x + self.norm2(self.mlp(x))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    def __init__(self, way: Way, channels: int) -> None:
        super().__init__()
        self.order, self.cosine, self.flat = way.merging, way.cosine, way.flat
        self.norm = nn.LayerNorm(2 * channels if way.cosine else 4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, W, C] -> [B, ceil(H/2), ceil(W/2), 2C]"""
        _, height, width, channels = x.shape
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        rows, cols = (height + 1) // 2, (width + 1) // 2
        if self.order == "unfold":
            x = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2).reshape(-1, rows, cols, 4 * channels)
        else:
            places = ((0, 0), (1, 0), (0, 1), (1, 1)) if self.order == "official" else ((0, 0), (0, 1), (1, 0), (1, 1))
            x = torch.cat([x[:, row::2, col::2] for row, col in places], -1)
        x = x.reshape(-1, rows * cols, 4 * channels) if self.flat else x
        x = self.norm(self.reduction(x)) if self.cosine else self.reduction(self.norm(x))
        return x.reshape(-1, rows, cols, 2 * channels)


class Swin(nn.Module):
    """Two blocks, without and with shift, patch merging, one more with shift, a classifier."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        channels = way.heads * way.head_dim
        self.way = way
        self.embed, self.norm0 = nn.Conv2d(3, channels, way.patch, way.patch), nn.LayerNorm(channels)
        self.blocks = nn.ModuleList(Block(way, way.heads, shifted) for shifted in (False, True))
        self.merging, self.last = Merging(way, channels), Block(way, 2 * way.heads, True)
        self.norm, self.head = nn.LayerNorm(2 * channels), nn.Linear(2 * channels, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in (*self.blocks, self.last):
            block.attn.batch = x.shape[0]
        if self.way.ceil:
            x = F.pad(x, (0, -x.shape[3] % self.way.patch[1], 0, -x.shape[2] % self.way.patch[0]))
        x = self.norm0(self.embed(x).permute(0, 2, 3, 1))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(self.last(self.merging(x))).mean((1, 2)))


WAYS = {
    "detection": Way((36, 52), shift_if_covered="yes", ceil=True),
    "detection, shifted where one window covers": Way((20, 26), (8, 8), (4, 4), ceil=True),
    "torchvision": Way((24, 41), (8, 4), (4, 2), shift_if_covered="axis",
                       expected={"shift_height": 0, "shift_width": 2}),
    "Hugging Face": Way((30, 52), (4, 4), (2, 2), shift_if_covered="image", ceil=True),
    "timm": Way((36, 52), roll_first=True, expected={"roll_first": 1}),
    "timm, one axis": Way((28, 32), (7, 4), (3, 2), roll_first=True, shift_if_covered="axis", expected={
        "window_height": 7, "window_width": 4, "shift_height": 0, "shift_width": 2}),
    "timm, V2": Way((36, 44), (4, 3), (2, 1), roll_first=True, cosine=True, expected={"roll_first": 1}),
    "V2 padded first": Way((36, 52), (3, 5), (1, 2), cosine=True),
    "rectangular windows": Way((32, 64), (2, 8), (1, 4), expected={"window_height": 2, "window_width": 8}),
    "heads of 10": Way((36, 32), heads=2, head_dim=10, roll_first=True),
    "heads of 12": Way((36, 32), heads=2, head_dim=12),
    "heads of 30, V2": Way((32, 36), heads=1, head_dim=30, cosine=True),
    "heads of 64": Way(heads=1, head_dim=64),
    "flat tokens": Way((36, 52), flat=True),
    "unfold": Way((36, 36), merging="unfold"),
    "unfold, V2": Way((36, 36), merging="unfold", cosine=True),
    "merging row by row": Way(merging="rows"),
    "rectangular patches": Way((15, 31), patch=(2, 3), ceil=True),
    "patches that leave a rest": Way((34, 35)),
    "tanh GELU": Way(gelu="tanh"),
    "mask of the batch": Way((36, 52), mask_of_batch=True),
    "mask by Where": Way((36, 52), mask_by_where=True),
}


@pytest.fixture(scope="module")
def made(randomize, tmp_path_factory):
    """made(name, fixed): a model of WAYS, and its graph with that batch or an open one."""
    known: dict[tuple, tuple[nn.Module, onnx.ModelProto]] = {}

    def make(name: str, fixed: int | None = None) -> tuple[nn.Module, onnx.ModelProto]:
        if (name, fixed) not in known:
            model = randomize(Swin(WAYS[name])).eval()
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if key.endswith("attn.bias"):
                        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
                    elif key.endswith("logit_scale"):
                        parameter.fill_(2)  # a saturated one multiplies FP32's rounding by 100
            path = tmp_path_factory.mktemp("any") / "m.onnx"
            axes = None if fixed else {key: {0: "batch"} for key in ("input", "logits")}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about shapes that become constants
                torch.onnx.export(model, (torch.zeros(fixed or 2, 3, *WAYS[name].size),), str(path), dynamo=False,
                                  opset_version=17, input_names=["input"], output_names=["logits"], dynamic_axes=axes)
            known[name, fixed] = model, onnx.load(path)
        return known[name, fixed]

    return make


@torch.no_grad()
def assert_equals_pytorch(graph: onnx.ModelProto, model: nn.Module, batches: tuple[int, ...]) -> None:
    runner = session(graph)
    for batch in batches:
        image = torch.randn(batch, 3, *model.way.size, generator=torch.Generator().manual_seed(batch))
        expected = model(image).numpy()
        (actual,) = runner.run(None, {"input": image.numpy()})
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max(), batch


@pytest.mark.parametrize("name", WAYS)
def test_all_is_replaced_and_computes_what_pytorch_does(name, made):
    model, graph = made(name, 2 if name == "torchvision" else None)
    patched, reports = patch(graph, add_all.STEPS)
    assert [why for report in reports for why in report.left] == []
    counts = plugin_counts(patched)
    assert {op: counts[op] for op in ("SwinAttention", "SwinPatchEmbed", "SwinMlp")} == {
        "SwinAttention": 3, "SwinPatchEmbed": 1, "SwinMlp": 3}
    assert counts["SwinPatchMerge" if model.way.cosine else "SwinPatchMergeLayerNorm"] == 1
    # qkv of three blocks and the reduction: proj, fc1, fc2 and their residuals are in SwinMlp, but for a proj that
    # reads heads with zeros behind them.
    assert counts["SwinLinear"] == (4 if model.way.head_dim % 8 == 0 else 7)
    assert not PLACEMENT & {node.op_type for node in patched.graph.node}
    second = [node for node in patched.graph.node if node.op_type == "SwinAttention"][1]
    attributes = {item.name: helper.get_attribute_value(item) for item in second.attribute}
    assert attributes | model.way.expected == attributes
    assert_equals_pytorch(patched, model, (2,) if name == "torchvision" else (1, 3))


def test_tanh_gelu_is_told_from_the_exact_one(made):
    for name, form in (("tanh GELU", 2), ("heads of 64", 1)):
        patched, _ = patch(made(name)[1], add_all.STEPS)
        assert [item.i for node in patched.graph.node if node.op_type == "SwinMlp" for item in node.attribute
                if item.name == "gelu"] == [form] * 3


def test_nothing_but_shapes_says_the_size_of_the_image(made):
    """The graph of one size runs at another, as PyTorch does: no node and no Reshape holds height or width."""
    model, graph = made("timm")
    patched, _ = patch(graph, add_all.STEPS)
    for dim in patched.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = f"open_{dim.dim_value}"
    del patched.graph.value_info[:]
    image = torch.randn(2, 3, 64, 40)
    with torch.no_grad():
        expected = model(image).numpy()
    (actual,) = session(patched).run(None, {"input": image.numpy()})
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["heads of 12", "timm, V2", "torchvision"])
def test_fp16_and_int8(name, made, tmp_path, monkeypatch):
    """By the checks of the scripts, whose limits stand there. INT8 takes multiples of 16 channels: of heads of 12 the
    first stage has 24, and the second one 48."""
    fixed = 2 if name == "torchvision" else None
    attentions = 1 if name == "heads of 12" else 3
    _, graph = made(name, fixed)
    patched, _ = patch(graph, add_all.STEPS)
    check(patched, to_fp16(patched, ["head"]), tolerance=FP16_TOLERANCE)
    path, int8, output = (tmp_path / file for file in ("m.onnx", "m_int8.onnx", "m_attention_int8.onnx"))
    onnx.save(graph, path)
    keep = ["--keep", "*.fc2"] if name == "timm, V2" else []
    quant.main(["--onnx", str(path), "--narrow", "--cache", str(tmp_path / "m.cache"), "--output", str(int8),
                "--batches", "2", *([] if fixed else ["--batch-size", "8"]), *keep])
    monkeypatch.setattr(sys, "argv", ["add_int8.py", "--onnx", str(int8), "--output", str(output)])
    add_int8.main()
    assert plugin_counts(onnx.load(output))["SwinAttentionInt8"] == attentions


def test_channels_that_int8_does_not_take_are_an_error_where_there_are_no_others(made, tmp_path):
    onnx.save(made("heads of 10")[1], tmp_path / "m.onnx")
    with pytest.raises(UserError, match="none of its linear layers has channels that are multiples of 16"):
        quant.main(["--onnx", str(tmp_path / "m.onnx"), "--narrow", "--cache", str(tmp_path / "m.cache")])


def test_tokens_that_become_an_image_are_compared_as_they_were(made):
    """The check looks at the last linear layers before the outputs too, which are inside the graph here."""
    _, graph = made("flat tokens")
    tokens = onnx.ModelProto()
    tokens.CopyFrom(graph)
    merged = next(node for node in graph.graph.node if "merging/reduction" in node.name and node.op_type == "MatMul")
    tokens.graph.node.append(helper.make_node("Sigmoid", [merged.output[0]], ["squashed"]))
    tokens.graph.output.append(helper.make_tensor_value_info("squashed", TensorProto.FLOAT, None))
    patched, _ = patch(tokens, add_all.STEPS)
    assert any(merged.output[0] in node.output for node in patched.graph.node)
    assert any("squashed" in line for line in check(tokens, patched))


# --- what is refused -----------------------------------------------------------------------------------------


def with_plain_attention(model: onnx.ModelProto, alone: bool) -> onnx.ModelProto:
    """The logits attend to themselves, [batch, 7] as one head of seven tokens; `alone`: nothing else is left."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if alone:
        del copy.graph.node[:]
        copy.graph.node.extend([
            helper.make_node("ReduceMean", ["input"], ["means"], axes=[1, 3], keepdims=0),
            helper.make_node("Slice", ["means", "zero", "seven", "one"], ["logits"])])
        del copy.graph.initializer[:]
        copy.graph.initializer.extend([numpy_helper.from_array(np.array([number]), name)
                                       for name, number in (("zero", 0), ("seven", 7), ("one", 1))])
    for node in copy.graph.node:
        node.output[:] = ["tokens" if name == "logits" else name for name in node.output]
    copy.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 7, 1]), "heads"))
    copy.graph.initializer.append(numpy_helper.from_array(np.array([-1, 7]), "flat"))
    copy.graph.node.extend([
        helper.make_node("Reshape", ["tokens", "heads"], ["q"]),
        helper.make_node("Transpose", ["q"], ["k"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], name="plain/Softmax", axis=-1),
        helper.make_node("MatMul", ["weights", "q"], ["y"]),
        helper.make_node("Reshape", ["y", "flat"], ["logits"])])
    return copy


def test_a_graph_of_which_half_is_swin_says_which_half(made, tmp_path, capsys):
    _, graph = made("heads of 64")
    source = tmp_path / "m.onnx"
    onnx.save(with_plain_attention(graph, alone=False), source)
    patched = patch_and_check(onnx.load(source), add_all.STEPS, checked=True)
    add_arguments = type("Arguments", (), {"onnx": source, "input_range": None})
    save(patched, tmp_path / "out.onnx", add_arguments)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("1 of 4 attentions stay standard operators") and last.endswith("plain/Softmax")


def test_an_attention_file_without_an_attention_is_an_error(made):
    _, graph = made("heads of 64")
    with pytest.raises(UserError, match=r"none of 1 window attention could be replaced; the first: plain/Softmax"):
        patch(with_plain_attention(graph, alone=True), add_all.STEPS)
    softmax = onnx.ModelProto()
    softmax.CopyFrom(graph)
    for node in softmax.graph.node:
        node.op_type = "Sigmoid" if node.op_type == "Softmax" else node.op_type
        if node.op_type == "Sigmoid":
            del node.attribute[:]
    with pytest.raises(UserError, match="has no window attention to replace"):
        patch(softmax, add_all.STEPS)


@pytest.mark.parametrize(("op", "attributes"), [
    ("SwinAttention", {"height": 4, "width": 4, "window_size": 4, "shift_size": 0}), ("SwinPatchEmbed", {
        "patch_size": 4}), ("SwinPatchMerge", {"height": 4, "width": 4}), ("SwinMlp", {"norm_first": 1})])
def test_nodes_of_earlier_versions_are_refused(op, attributes, tmp_path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8])
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], name="old", domain="swin", **attributes)], "old", [x],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("swin", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=8), tmp_path / "old.onnx")
    with pytest.raises(UserError, match=r"its node old is one of an earlier version of this project; patch the FP32"):
        load_onnx(tmp_path / "old.onnx")


# --- geometry ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roll_first", [False, True])
@pytest.mark.parametrize(("size", "window", "shift"), [
    ((8, 8), (4, 4), (2, 2)), ((7, 10), (4, 3), (2, 1)), ((5, 9), (8, 2), (0, 1)), ((3, 3), (5, 5), (2, 1)),
    ((6, 6), (1, 1), (0, 0)), ((12, 4), (3, 4), (1, 0)), ((2, 9), (3, 8), (1, 4))])
def test_windows_are_found_again(size, window, shift, roll_first):
    windows = Windows(*size, window, shift, roll_first)
    found = Windows.found(windows.places(), *size)
    assert found is not None and (found.window, found.shift) == (window, shift)
    assert np.array_equal(found.places(), windows.places())
    tokens = windows.places()
    assert sorted(tokens[tokens >= 0]) == list(range(size[0] * size[1]))


def test_a_grid_of_no_windows_is_none():
    grid = Windows(8, 8, (4, 4), (2, 2)).places()
    grid[0, [0, 1]] = grid[0, [1, 0]]
    assert Windows.found(grid, 8, 8) is None


def test_wider_heads_have_zeros_behind_each():
    array = np.arange(1, 41).reshape(2, 20)
    wider = wider_heads(array, 1, 2)
    assert wider.shape == (2, 32)
    assert np.array_equal(wider.reshape(2, 2, 16)[..., :10], array.reshape(2, 2, 10))
    assert not wider.reshape(2, 2, 16)[..., 10:].any()
    assert wider_heads(array, 0, 1).shape == (8, 20)
    assert wider_heads(wider, 1, 4) is wider
    assert Counter(wider.ravel())[0] == 24
