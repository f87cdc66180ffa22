"""Replace each (shifted-)window attention, V1's and V2's, by the plugin node SwinAttention.

    python onnx/graphsurgeon/add_attention.py --onnx onnx/swinv1.onnx --output onnx/swinv1_attention_alone.onnx

One node stands for all that lies between the linear layers qkv and proj: roll, window partition, (cosine) scores,
relative position bias, mask, softmax, window reverse and roll back. Where an exporter put roll and partition before
qkv and after proj, they go too, and the two linear layers see the tokens in image order.

How this is written differs from exporter to exporter, so its operators are not compared with a pattern. From each
Softmax the two linear layers are found, and what lies between is run by itself on chosen inputs:
  - the numbers of qkv's elements, to see which token and channel arrives where: window, shift, height, width;
  - zeros: the scores that come out are bias + mask;
  - equal unit vectors as q and k, and random ones: the scale of the dot product, or each head's of the cosine.
The node so found must then give the same output on random qkv as the part it replaces; else that part stays.
"""
from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from graphs.files import PLUGIN_DOMAIN
from graphs.patterns import (
    Unmatched,
    attention_softmaxes,
    is_linear,
    linear_output,
    moved_tokens,
    nodes_between,
    positions,
    reader,
    results,
    run_between,
    sources,
)
from graphs.sessions import session
from graphs.surgeon import Report, plugin_node, run_surgery
from graphs.tidy import PROBED_BATCHES, add_node, is_output, producer, reshape_target, shape_at
from utils import run_script

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1.onnx"
SUFFIX = "_attention_alone"

TOLERANCE = 1e-4  # of the largest value; FP32 rounding is below 1e-5, a wrong bias, mask or scale far above
HEAD_DIM, LARGEST_WINDOW = 32, 32  # what the plugin computes, TensorRT/Plugins/Attention/README.md
BIAS_COLUMNS = 8  # the bias has its last axis padded to a multiple of this


@dataclass
class Geometry:
    """Where windows lie in the image of tokens, and heads in the channels."""

    height: int
    width: int
    window: int
    shift: int
    heads: int
    head_dim: int

    @property
    def tokens(self) -> int:
        return self.height * self.width

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim

    def window_tokens(self) -> np.ndarray:
        """Token of the image at each place of each window, int [nW, N]."""
        image = np.arange(self.tokens).reshape(self.height, self.width)
        image = np.roll(image, (-self.shift, -self.shift), (0, 1))
        rows, cols = self.height // self.window, self.width // self.window
        windows = image.reshape(rows, self.window, cols, self.window).transpose(0, 2, 1, 3)
        return windows.reshape(rows * cols, self.window**2)

    def separated(self) -> np.ndarray:
        """Which pairs of a window's tokens the mask separates: those that only the shift brought together.

        Tokens that lie in one window of the shifted grid are neighbours in the image unless the roll wrapped between
        them, so that their rows, or their columns, are further apart than the window is wide. bool [nW, N, N].
        """
        row, col = np.divmod(self.window_tokens(), self.width)
        apart = [np.abs(place[:, :, None] - place[:, None, :]) >= self.window for place in (row, col)]
        return apart[0] | apart[1]


@dataclass
class Attention:
    """One window attention of a graph: its place, and what a SwinAttention node needs to stand for it."""

    geometry: Geometry
    bias: np.ndarray                # [nH, N, N]
    logit_scale: np.ndarray | None  # [nH], of the cosine; None: dot product
    scale: float                    # of the dot product; 1 for the cosine
    mask_value: float
    source: gs.Tensor               # image order, before qkv
    qkv: gs.Node                    # MatMul
    proj: gs.Node                   # MatMul
    target: gs.Tensor               # image order, after proj

    def attributes(self) -> dict[str, float | int]:
        size = self.geometry
        return {"height": size.height, "width": size.width, "num_heads": size.heads, "window_size": size.window,
                "shift_size": size.shift, "scale": self.scale, "mask_value": self.mask_value}

    def constants(self) -> list[np.ndarray]:
        """The node's inputs after qkv: bias [nH, N, Np] with its padding, and logit_scale [nH] where it has one."""
        padding = -self.bias.shape[-1] % BIAS_COLUMNS
        bias = np.pad(self.bias, ((0, 0), (0, 0), (0, padding)))
        return [bias] if self.logit_scale is None else [bias, self.logit_scale]


def add_attention(graph: gs.Graph) -> Report:
    """Replace in place each window attention that can be recovered; the report says why others were left."""
    report = Report("window attention")
    for softmax in attention_softmaxes(graph):
        try:
            attention = recover(graph, softmax)
        except Unmatched as reason:
            report.left.append(f"{softmax.name}: {reason}")
            continue
        _replace(graph, softmax.name, attention)
        graph.cleanup().toposort()
        report.replaced += 1
    return report


def _replace(graph: gs.Graph, name: str, attention: Attention) -> None:
    size, batch = attention.geometry, graph.inputs[0].shape[0]
    shape = [batch, size.tokens, size.channels]
    tokens = attention.source
    if tokens.shape != shape:
        tokens = add_node(graph, "Reshape", [tokens, reshape_target(shape)], f"{name}/tokens", shape)
    qkv, proj = linear_output(attention.qkv), linear_output(attention.proj)
    attention.qkv.inputs[0] = tokens
    context = gs.Variable(f"{name}/context", qkv.dtype, shape)
    plugin_node(graph, "SwinAttention", name, [qkv, *attention.constants()], [context], **attention.attributes())
    attention.proj.inputs[0] = context
    for tensor in (attention.qkv.outputs[0], qkv):
        tensor.shape = [batch, size.tokens, 3 * size.channels]
    for tensor in (attention.proj.outputs[0], proj):
        tensor.shape = shape
    if attention.target is not proj:
        attention.target.inputs.clear()
        add_node(graph, "Reshape", [proj, reshape_target(attention.target.shape)], attention.target)


# --- recovering what a node would have to compute ------------------------------------------------------------


def recover(graph: gs.Graph, softmax: gs.Node) -> Attention:
    """What the window attention around a Softmax computes.

    Raises:
        Unmatched: it is none, or none that a SwinAttention node can stand for.
    """
    order = positions(graph)
    scores = softmax.inputs[0]
    if scores.shape is None or len(scores.shape) < 4 or None in scores.shape or scores.shape[-1] != scores.shape[-2]:
        raise Unmatched(f"its input {scores.shape} is not [..., heads, tokens, tokens]")
    if softmax.attrs.get("axis", -1) not in (-1, len(scores.shape) - 1):
        raise Unmatched("it is not over the last axis")
    weighted = reader(softmax.outputs[0])
    if weighted is None or weighted.op != "MatMul" or weighted.inputs[0] is not softmax.outputs[0]:
        raise Unmatched("its output is not multiplied with v")
    qkv, proj = _qkv_before(weighted), _proj_after(graph, order, weighted)
    probe = Probe(graph, scores, weighted.inputs[1], qkv, proj)

    refusal = Unmatched("qkv does not come from tokens in image order")
    found = None
    for source in sources(order, qkv.inputs[0]):
        geometry = probe.geometry(source)
        if geometry is not None:
            try:
                found = source, geometry, *probe.bias_and_mask(geometry)
            except Unmatched as reason:
                refusal = reason  # in rolled order the mask does not fit; it does before the roll
    if found is None:
        raise refusal
    source, geometry, bias, mask_value = found  # the farthest, so that nothing on the way to qkv is left behind
    scale, logit_scale = probe.similarity(geometry)
    attention = Attention(geometry, bias, logit_scale, scale, mask_value, source, qkv, proj, source)
    attention.target = probe.target(attention, results(graph, order, linear_output(proj)))
    _refuse_other_readers(graph, attention)
    return attention


def _qkv_before(weighted: gs.Node) -> gs.Node:
    """The one linear layer that q, k and v all come from."""
    found: dict[int, gs.Node] = {}
    seen: set[int] = set()
    waiting = list(weighted.inputs)
    while waiting:
        node = producer(waiting.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if is_linear(node):
            found[id(node)] = node
        else:
            waiting.extend(node.inputs)
    if len(found) != 1:
        raise Unmatched(f"{len(found)} linear layers feed it instead of one that makes q, k and v")
    (qkv,) = found.values()
    if linear_output(qkv).shape is None or linear_output(qkv).shape[-1] % 3:
        raise Unmatched(f"{qkv.name} does not make q, k and v")
    return qkv


def _proj_after(graph: gs.Graph, order: dict[int, int], weighted: gs.Node) -> gs.Node:
    """The linear layer that the heads' outputs go to."""
    for tensor in results(graph, order, weighted.outputs[0]):
        node = reader(tensor)
        if is_linear(node) and node.inputs[0] is tensor:
            return node
    raise Unmatched("no linear layer follows it")


def _refuse_other_readers(graph: gs.Graph, attention: Attention) -> None:
    """Raises Unmatched if a tensor that the replacement changes or removes is read from outside."""
    target, residual = attention.target, attention.proj.inputs[3:]  # a SwinLinear may have one
    nodes = nodes_between([attention.source, *residual], [target])
    inside = {id(node) for node in nodes}
    for tensor in (tensor for node in nodes for tensor in node.outputs if tensor is not target):
        if is_output(graph, tensor) or any(id(node) not in inside for node in tensor.outputs):
            raise Unmatched(f"{tensor.name}, inside it, is read elsewhere")


class Probe:
    """Runs what lies between qkv and proj of one attention on chosen inputs, at a small batch."""

    def __init__(self, graph: gs.Graph, scores: gs.Tensor, v: gs.Tensor, qkv: gs.Node, proj: gs.Node):
        self.graph, self.scores, self.qkv, self.proj = graph, scores, qkv, proj
        self.images = shape_at(graph.inputs[0], PROBED_BATCHES[0])[0]
        self.shape = shape_at(linear_output(qkv), PROBED_BATCHES[0])  # [..., 3C]
        self.heads, self.window_size = scores.shape[-3], math.isqrt(scores.shape[-1])
        if self.window_size**2 != scores.shape[-1]:
            raise Unmatched(f"its windows of {scores.shape[-1]} tokens are not square")
        if self.window_size == 1:
            raise Unmatched("its windows are single tokens, from which no geometry can be read off")
        if self.window_size > LARGEST_WINDOW:
            raise Unmatched(f"its windows are {self.window_size} tokens wide, and the plugin takes up to "
                            f"{LARGEST_WINDOW}")
        self.places = self._places(v)
        self.at_zero = self._scores(np.zeros(self.shape, np.float32))
        self.random = np.random.default_rng(0).standard_normal(self.shape).astype(np.float32)

    def _places(self, v: gs.Tensor) -> np.ndarray:
        """Token of qkv at each place of each window, int [windows, N], read off where v's elements go."""
        numbers = np.arange(np.prod(self.shape), dtype=np.int64).reshape(self.shape)
        (moved,) = run_between(self.graph, linear_output(self.qkv), numbers, v)
        channels = self.shape[-1] // 3
        if moved.size * 3 != numbers.size or moved.shape[-1] * self.heads != channels:
            raise Unmatched("v is not a third of qkv's channels, head by head")
        if moved.shape[-1] != HEAD_DIM:
            raise Unmatched(f"its heads have {moved.shape[-1]} channels, and the plugin takes {HEAD_DIM}")
        token, channel = np.divmod(moved.reshape(-1, self.heads, self.window_size**2, moved.shape[-1]), 3 * channels)
        expected = 2 * channels + np.arange(channels).reshape(self.heads, 1, -1)
        if np.any(channel != expected) or np.any(token != token[:, :1, :, :1]):
            raise Unmatched("qkv's channels are not ordered (q|k|v, head, d)")
        return token[:, 0, :, 0]

    def _scores(self, qkv: np.ndarray) -> np.ndarray:
        """Input of the softmax, [windows, nH, N, N]."""
        (scores,) = run_between(self.graph, linear_output(self.qkv), qkv, self.scores)
        return scores.reshape(-1, *scores.shape[-3:])

    def geometry(self, source: gs.Tensor) -> Geometry | None:
        """The windows, where `source` holds the tokens of an image in image order; None where it does not."""
        if source.shape is None or None in source.shape or source.shape[-1] * 3 != self.shape[-1]:
            return None
        shape = shape_at(source, PROBED_BATCHES[0])
        try:
            before = moved_tokens(self.graph, source, shape, self.qkv.inputs[0])
        except Unmatched:
            return None
        places = before[self.places]
        tokens, window = before.size // self.images, self.window_size
        width = int(places[0, window] - places[0, 0]) % tokens  # one row of a window down
        if width < window or width % window or tokens % (width * window):
            return None
        size = Geometry(tokens // width, width, window, int(places[0, 0]) % width, self.heads, shape[-1] // self.heads)
        first = np.arange(self.images)[:, None, None] * tokens
        return size if np.array_equal(places, (first + size.window_tokens()).reshape(places.shape)) else None

    def bias_and_mask(self, size: Geometry) -> tuple[np.ndarray, float]:
        """Bias [nH, N, N] and the mask's value: with q = k = 0 the scores are their sum."""
        scores = self.at_zero.reshape(self.images, -1, *self.at_zero.shape[1:])
        if not np.isfinite(scores).all():
            raise Unmatched("its mask or bias is not finite")
        bias = scores[0, 0]  # of the first window, which holds one region of the image only
        separated = size.separated() if size.shift else np.zeros((scores.shape[1], *bias.shape[1:]), bool)
        rest = scores - bias
        if np.any(rest.transpose(0, 2, 1, 3, 4)[:, :, ~separated]):
            raise Unmatched("its mask or bias differs between windows in another way than by the shift")
        if not separated.any():
            return bias, -100.0
        masked = rest.transpose(0, 2, 1, 3, 4)[:, :, separated]
        value = float(masked.mean(dtype=np.float64))
        rounding = 1e-6 * (abs(value) + np.abs(bias).max())
        if np.abs(masked - value).max() > rounding:
            raise Unmatched("its mask has not one value")
        return bias, float(round(value)) if abs(value - round(value)) < rounding else value

    def similarity(self, size: Geometry) -> tuple[float, np.ndarray | None]:
        """(scale, None) of scores = scale * q.k, or (1, logit_scale [nH]) of scores = logit_scale * cosine(q, k)."""
        ends = [0, -1]  # windows
        once, twice = (self._scores(factor * self.random)[ends] - self.at_zero[ends] for factor in (1, 2))
        q, k, _ = (self.random.reshape(-1, 3, size.heads, size.head_dim)[self.places[ends]]
                   .astype(np.float64).transpose(2, 0, 3, 1, 4))  # (window, nH, N, d)
        if _differs(twice, once) <= 1e-3:
            same = np.zeros(self.shape, np.float32).reshape(-1, 3, size.heads, size.head_dim)
            same[:, :2, :, 0] = 1  # q = k, of length 1: the cosine is 1
            gain = self._scores(same.reshape(self.shape))[ends].astype(np.float64) - self.at_zero[ends]
            logit_scale = gain.mean(axis=(0, 2, 3)).astype(np.float32)  # the mean undoes the rounding to FP32
            q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
            expected = logit_scale[:, None, None] * (q @ k.swapaxes(-1, -2))
            scale = 1.0
        elif _differs(twice, 4 * once) <= 1e-3:
            product = q @ k.swapaxes(-1, -2)
            scale, logit_scale = float((once * product).sum() / (product * product).sum()), None
            usual = size.head_dim**-0.5
            scale = usual if abs(scale - usual) < 1e-5 * usual else scale
            expected = scale * product
        else:
            raise Unmatched("its scores are neither a dot product nor a cosine of q and k")
        if _differs(once, expected) > TOLERANCE:
            raise Unmatched("its scores are no scaled dot product or cosine of q and k, head by head")
        return scale, logit_scale

    def target(self, attention: Attention, candidates: Iterator[gs.Tensor]) -> gs.Tensor:
        """The tensor after proj that is in image order again, once the node's output has been compared."""
        size, context = attention.geometry, self.proj.inputs[0]
        before = moved_tokens(self.graph, attention.source, shape_at(attention.source, PROBED_BATCHES[0]),
                              self.qkv.inputs[0])
        (actual,) = run_between(self.graph, linear_output(self.qkv), self.random, context)
        image = np.empty_like(self.random).reshape(-1, self.shape[-1])
        image[before] = self.random.reshape(image.shape)
        expected = reference_output(attention, image.reshape(self.images, size.tokens, -1))
        actual, expected = (x.reshape(-1, size.channels) for x in (actual, expected))
        after_proj, found = linear_output(self.proj), None
        for candidate in candidates:
            if candidate.shape is None or None in candidate.shape:
                continue
            try:
                after = moved_tokens(self.graph, after_proj, shape_at(after_proj, PROBED_BATCHES[0]), candidate)
            except Unmatched:
                continue
            if _differs(actual[after], expected) <= TOLERANCE:
                found = candidate  # the farthest, so that nothing on the way is left behind
        if found is None:
            raise Unmatched("its output on random qkv is not that of a SwinAttention node")
        return found


def _differs(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, as a share of the largest value of b."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def reference_output(attention: Attention, qkv: np.ndarray) -> np.ndarray:
    """What a SwinAttention node gives for qkv [B, L, 3C]: [B, L, C], by its reference meaning."""
    names = ["qkv", "bias", "logit_scale"][:1 + len(attention.constants())]
    node = helper.make_node("SwinAttention", names, ["y"], domain=PLUGIN_DOMAIN, **attention.attributes())
    graph = helper.make_graph(
        [node], "attention", [helper.make_tensor_value_info("qkv", TensorProto.FLOAT, qkv.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in zip(names[1:], attention.constants())])
    domains = [helper.make_opsetid("", 17), helper.make_opsetid(PLUGIN_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    return session(model).run(None, {"qkv": qkv})[0]


def main() -> None:
    run_surgery([add_attention], ONNX_FILE, SUFFIX, __doc__)


if __name__ == "__main__":
    run_script(main)
