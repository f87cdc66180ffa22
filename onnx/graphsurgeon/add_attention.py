"""Replace each (shifted-)window attention, V1's and V2's, by the plugin node SwinAttention.

    python onnx/graphsurgeon/add_attention.py --onnx onnx/swinv1.onnx --output onnx/swinv1_attention_alone.onnx

One node stands for all that lies between the linear layers qkv and proj: roll, window partition, (cosine) scores,
relative position bias, mask, softmax, window reverse and roll back. Where an exporter put roll and partition before
qkv and after proj, they go too, and the two linear layers see the tokens in image order.

How this is written differs from exporter to exporter, so its operators are not compared with a pattern. From each
Softmax the two linear layers are found, and what lies between is run by itself on chosen inputs:
  - the numbers of qkv's elements, to see which token and channel arrives where: window, shift, padding, and which of
    roll and padding comes first;
  - zeros: the scores that come out are bias + mask;
  - equal unit vectors as q and k, and random ones: the scale of the dot product, or each head's of the cosine.
The node so found must then give the same output on random qkv as the part it replaces; else that part stays.

A padded token is zero before qkv, so that its q, k and v are qkv's bias: the node's input `padding`. qkv and proj see
the tokens of the image only. Heads of a width that is no multiple of 8 get zeros behind them in the weights of qkv and
proj, which change neither the scores nor the output.
"""
from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from graphs.files import PLUGIN_DOMAIN
from graphs.patterns import (
    PADDING,
    Unmatched,
    attention_softmaxes,
    is_linear,
    linear_bias,
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
from graphs.swin_attention import Windows, wider_heads, wider_width
from graphs.tidy import (
    add_node,
    is_output,
    probed_batches,
    producer,
    reshape_target,
    shape_at,
    tokens_as_read,
    values,
)
from utils import run_script

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1.onnx"
SUFFIX = "_attention_alone"

TOLERANCE = 1e-4  # of the largest value; FP32 rounding is below 1e-5, a wrong bias, mask or scale far above
WIDEST_HEAD, LARGEST_WINDOW = 64, 32  # what the plugin computes, TensorRT/Plugins/Attention/README.md
BIAS_COLUMNS = 8  # the bias has its last axis padded to a multiple of this
MASK_VALUE = -100.0  # where no pair of tokens tells it
STRONG_MASK = -1e4   # the sum of a score and a lower mask says nothing of the score
LOWEST_MASK = -1e9   # exp of it is zero, as of -inf; but it can be multiplied and added without becoming NaN


@dataclass
class Attention:
    """One window attention of a graph: its place, and what a SwinAttention node needs to stand for it."""

    windows: Windows
    heads: int
    head_dim: int                   # as it is in the graph
    bias: np.ndarray                # [nH, N, N]
    padding: np.ndarray             # [3C]: q, k and v of a padded token
    logit_scale: np.ndarray | None  # [nH], of the cosine; None: dot product
    scale: float                    # of the dot product; 1 for the cosine
    mask_value: float
    source: gs.Tensor               # image order, before qkv
    qkv: gs.Node                    # MatMul or SwinLinear
    proj: gs.Node                   # the same
    target: gs.Tensor               # image order, after proj

    def attributes(self) -> dict[str, float | int]:
        return {"num_heads": self.heads, **self.windows.attributes(), "scale": self.scale,
                "mask_value": self.mask_value}

    def of_qkv(self, array: np.ndarray, axis: int) -> np.ndarray:
        """An array whose axis has qkv's 3C channels, with heads as wide as the node's."""
        return wider_heads(array, axis, 3 * self.heads)

    def constants(self) -> list[np.ndarray]:
        """The node's inputs after qkv: bias [nH, N, Np], padding [3C], and logit_scale [nH] where it has one."""
        more = -self.bias.shape[-1] % BIAS_COLUMNS
        bias = np.pad(self.bias, ((0, 0), (0, 0), (0, more)))
        constants = [bias, self.of_qkv(self.padding, 0)]
        return constants if self.logit_scale is None else [*constants, self.logit_scale]


def add_attention(graph: gs.Graph) -> Report:
    """Replace in place each window attention that can be recovered; the report says why others were left."""
    report = Report("window attention", essential=True)
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
    size = attention.windows
    image: list = [graph.inputs[0].shape[0], size.height, size.width]
    channels = attention.heads * wider_width(attention.head_dim)

    def as_image(tokens: gs.Tensor, what: str) -> gs.Tensor:
        shape = [*image, tokens.shape[-1]]
        return tokens if tokens.shape == shape else add_node(
            graph, "Reshape", [tokens, reshape_target(shape)], f"{name}/{what}", shape)

    _widen(graph, attention.qkv, attention, outputs=True)
    _widen(graph, attention.proj, attention, outputs=False)
    qkv, proj = linear_output(attention.qkv), linear_output(attention.proj)
    attention.qkv.inputs[0] = as_image(attention.source, "tokens")
    for tensor in (attention.qkv.outputs[0], qkv):
        tensor.shape = [*image, 3 * channels]
    context = gs.Variable(f"{name}/context", qkv.dtype, [*image, channels])
    plugin_node(graph, "SwinAttention", name, [qkv, *attention.constants()], [context], **attention.attributes())
    attention.proj.inputs[0] = context
    for i, residual in enumerate(attention.proj.inputs[3:], 3):
        attention.proj.inputs[i] = as_image(residual, "residual")
    target, shape, before = attention.target, [*image, proj.shape[-1]], proj.shape
    for tensor in (attention.proj.outputs[0], proj):
        tensor.shape = shape
    if target is not proj:
        target.inputs.clear()
        add_node(graph, "Reshape", [proj, reshape_target(target.shape)], target)
    elif before != shape:  # proj's output keeps its name, by which add_int8.py knows its scale
        tokens_as_read(graph, proj, before)


def _widen(graph: gs.Graph, linear: gs.Node, attention: Attention, outputs: bool) -> None:
    """Put zeros behind each head in the weight of qkv, and its bias, or of proj; the weights may have other readers."""
    if wider_width(attention.head_dim) == attention.head_dim:
        return
    groups, fused = attention.heads * (3 if outputs else 1), linear.op == "SwinLinear"
    axis = int(outputs) if not fused else int(not outputs)
    bias, y = _bias_of(linear), linear_output(linear)
    weight = wider_heads(values(linear.inputs[1]), axis, groups)
    linear.inputs[1] = gs.Constant(f"{linear.name}/wider_heads", np.ascontiguousarray(weight))
    if not outputs or bias is None:
        return
    wider = gs.Constant(f"{linear.name}/wider_bias", wider_heads(np.array(bias), 0, groups))
    if fused:
        linear.inputs[2] = wider
    else:
        (add,) = y.inputs
        add.inputs = [linear.outputs[0], wider]


def _bias_of(linear: gs.Node) -> np.ndarray | None:
    """The bias of a linear layer, None where it has none."""
    return values(linear.inputs[2]) if linear.op == "SwinLinear" else linear_bias(linear)[0]


# --- recovering what a node would have to compute ------------------------------------------------------------


def recover(graph: gs.Graph, softmax: gs.Node) -> Attention:
    """What the window attention around a Softmax computes.

    Raises:
        Unmatched: it is none, or none that a SwinAttention node can stand for.
    """
    order = positions(graph)
    scores = softmax.inputs[0]
    if scores.shape is None or len(scores.shape) < 4 or None in scores.shape:
        raise Unmatched(f"its input {scores.shape} is not [..., heads, tokens, tokens]")
    if scores.shape[-1] != scores.shape[-2]:
        raise Unmatched(f"its windows of {scores.shape[-2]} tokens attend to {scores.shape[-1]}, and the plugin's to "
                        "themselves (HAT's overlapping attention is none)")
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
        windows = probe.windows(source)
        if windows is not None:
            try:
                found = source, windows, *probe.bias_and_mask(windows)
            except Unmatched as reason:
                refusal = reason  # in rolled order the mask does not fit; it does before the roll
    if found is None:
        raise refusal
    source, windows, bias, mask_value = found  # the farthest, so that nothing on the way to qkv is left behind
    if max(windows.window) > LARGEST_WINDOW:
        raise Unmatched(f"its windows are {windows.window[0]} x {windows.window[1]} tokens, and the plugin takes up to "
                        f"{LARGEST_WINDOW} a side")
    scale, logit_scale = probe.similarity()
    padding = _bias_of(qkv)
    padding = np.zeros(probe.shape[-1], np.float32) if padding is None else np.array(padding, np.float32)
    attention = Attention(windows, probe.heads, probe.head_dim, bias, padding, logit_scale, scale, mask_value, source,
                          qkv, proj, source)
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
    inside = {id(node) for node in nodes_between([attention.source, *residual], [target])}
    made = {id(attention.source), *map(id, residual)}  # what is only made of shapes stays for others
    for node in graph.nodes:
        if id(node) in inside and any(id(tensor) in made for tensor in node.inputs):
            made.update(id(tensor) for tensor in node.outputs)
    for tensor in (tensor for node in graph.nodes if id(node) in inside for tensor in node.outputs
                   if tensor is not target and id(tensor) in made):
        if is_output(graph, tensor) or any(id(node) not in inside for node in tensor.outputs):
            raise Unmatched(f"{tensor.name}, inside it, is read elsewhere")


class Probe:
    """Runs what lies between qkv and proj of one attention on chosen inputs, at a small batch."""

    def __init__(self, graph: gs.Graph, scores: gs.Tensor, v: gs.Tensor, qkv: gs.Node, proj: gs.Node):
        self.graph, self.scores, self.qkv, self.proj = graph, scores, qkv, proj
        self.batch = probed_batches(graph.inputs[0].shape)[0]
        self.images = shape_at(graph.inputs[0], self.batch)[0]
        self.shape = shape_at(linear_output(qkv), self.batch)  # [..., 3C]
        self.heads, self.tokens = scores.shape[-3], scores.shape[-1]
        self.head_dim = self.shape[-1] // (3 * self.heads)
        self.places = self._places(v)
        self.random = np.random.default_rng(0).standard_normal(self.shape, np.float32)
        self._at_zero: tuple[list[np.ndarray], list[int]] | None = None

    def _places(self, v: gs.Tensor) -> np.ndarray:
        """Row of qkv at each place of each window, int [windows, N], read off where v's elements go."""
        numbers = np.arange(np.prod(self.shape), dtype=np.int32).reshape(self.shape)
        (moved,) = run_between(self.graph, linear_output(self.qkv), numbers, v)
        channels = self.shape[-1] // 3
        if moved.size * 3 != numbers.size or moved.shape[-1] * self.heads != channels:
            raise Unmatched("v is not a third of qkv's channels, head by head")
        if moved.shape[-1] > WIDEST_HEAD:
            raise Unmatched(f"its heads have {moved.shape[-1]} channels, and the plugin takes up to {WIDEST_HEAD}")
        row, channel = np.divmod(moved.reshape(-1, self.heads, self.tokens, moved.shape[-1]), 3 * channels)
        expected = 2 * channels + np.arange(channels).reshape(self.heads, 1, -1)
        if np.any(channel != expected) or np.any(row != row[:, :1, :, :1]):
            raise Unmatched("qkv's channels are not ordered (q|k|v, head, d)")
        return row[:, 0, :, 0].copy()

    def _scores(self, qkv: np.ndarray) -> np.ndarray:
        """Input of the softmax, [windows, nH, N, N]."""
        (scores,) = run_between(self.graph, linear_output(self.qkv), qkv, self.scores)
        return scores.reshape(-1, *scores.shape[-3:])

    def at_zero(self) -> tuple[list[np.ndarray], list[int]]:
        """The scores where q = k = 0, which are the sum of bias and mask: those that differ, each [nH, N, N], and which
        of them each window has."""
        if self._at_zero is None:
            self._at_zero = _distinct(self._scores(np.zeros(self.shape, np.float32)))
        return self._at_zero

    def _rows(self, source: gs.Tensor) -> np.ndarray:
        """Which token of `source` each row of qkv is made of; PADDING where of zeros."""
        return moved_tokens(self.graph, source, shape_at(source, self.batch), self.qkv.inputs[0])

    def windows(self, source: gs.Tensor) -> Windows | None:
        """The windows, where `source` holds the tokens of an image in image order; None where it does not."""
        shape, channels = source.shape, self.qkv.inputs[0].shape[-1]
        if shape is None or None in shape or len(shape) not in (3, 4) or shape[-1] != channels:
            return None
        images, *sides, _ = shape_at(source, self.batch)
        if images != self.images:
            return None
        try:
            rows = self._rows(source)
        except Unmatched:
            return None
        grid = rows[self.places].reshape(self.images, -1, self.tokens)
        area = int(np.prod(sides))
        expected = grid[0] + area * np.arange(self.images)[:, None, None]
        if len(rows) != self.places.size or not np.array_equal(grid, np.where(grid[0] == PADDING, PADDING, expected)):
            return None
        return Windows.found(grid[0], *sides) if len(sides) == 2 else Windows.of_tokens(grid[0], area)

    def bias_and_mask(self, windows: Windows) -> tuple[np.ndarray, float]:
        """Bias [nH, N, N] and the mask's value, from the scores where q = k = 0."""
        scores, of_windows = self.at_zero()
        infinite = any(np.isneginf(window).any() for window in scores)
        masks, of_image = _distinct(windows.separated())
        pairs = [(scores[score], masks[mask]) for score, mask in dict.fromkeys(zip(of_windows, cycle(of_image)))]
        (first, apart), *_ = pairs
        bias, known = first.copy(), ~apart
        for window, separated in pairs:
            new = ~separated & ~known
            bias[:, new] = window[:, new]
            known |= new
        if infinite:  # what is masked by -inf says nothing of the bias, and may be masked by any number so low
            bias[:, ~known] = 0
            if not np.isfinite(bias).all() or not all(
                    np.array_equal(window, np.where(separated, -np.inf, bias)) for window, separated in pairs):
                raise Unmatched("its mask or bias is not finite, in another way than by the shift")
            return bias, LOWEST_MASK
        value = next((float((window - bias)[:, separated & known].mean(dtype=np.float64))
                      for window, separated in pairs if (separated & known).any()), MASK_VALUE)
        rounding = 1e-6 * (abs(value) + np.abs(bias).max())
        value = float(round(value)) if abs(value - round(value)) < rounding else value
        bias[:, ~known] -= np.float32(value)  # of tokens that are apart in every window
        for window, separated in pairs:
            rest = window - bias
            if np.any(rest[:, ~separated]):
                raise Unmatched("its mask or bias differs between windows in another way than by the shift")
            if separated.any() and np.abs(rest[:, separated] - value).max() > rounding:
                raise Unmatched("its mask has not one value")
        return bias, max(value, LOWEST_MASK)

    def similarity(self) -> tuple[float, np.ndarray | None]:
        """(scale, None) of scores = scale * q.k, or (1, logit_scale [nH]) of scores = logit_scale * cosine(q, k)."""
        ends = [0, -1]  # windows

        distinct, of_windows = self.at_zero()
        at_zero = np.stack([distinct[of_windows[end]] for end in ends]).astype(np.float64)
        seen = at_zero > STRONG_MASK

        def similar(qkv: np.ndarray) -> np.ndarray:
            """What q and k add to the scores; 0 where the mask hides it."""
            return np.where(seen, self._scores(qkv)[ends], 0) - np.where(seen, at_zero, 0)

        once, twice = similar(self.random), similar(2 * self.random)
        q, k, _ = (self.random.reshape(-1, 3, self.heads, self.head_dim)[self.places[ends]]
                   .astype(np.float64).transpose(2, 0, 3, 1, 4))  # (window, nH, N, d)
        if _differs(twice, once) <= 1e-3:
            same = np.zeros(self.shape, np.float32).reshape(-1, 3, self.heads, self.head_dim)
            same[:, :2, :, 0] = 1  # q = k, of length 1: the cosine is 1
            gain = similar(same.reshape(self.shape)).mean(axis=(0, 2, 3), where=seen)
            logit_scale = gain.astype(np.float32)  # the mean undoes the rounding to FP32
            q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
            expected = np.where(seen, logit_scale[:, None, None] * (q @ k.swapaxes(-1, -2)), 0)
            scale = 1.0
        elif _differs(twice, 4 * once) <= 1e-3:
            product = np.where(seen, q @ k.swapaxes(-1, -2), 0)
            scale, logit_scale = float((once * product).sum() / (product * product).sum()), None
            usual = self.head_dim**-0.5
            scale = usual if abs(scale - usual) < 1e-5 * usual else scale
            expected = scale * product
        else:
            raise Unmatched("its scores are neither a dot product nor a cosine of q and k")
        if _differs(once, expected) > TOLERANCE:
            raise Unmatched("its scores are no scaled dot product or cosine of q and k, head by head")
        return scale, logit_scale

    def target(self, attention: Attention, candidates: Iterator[gs.Tensor]) -> gs.Tensor:
        """The tensor after proj that is in image order again, once the node's output has been compared."""
        size, channels = attention.windows, self.heads * self.head_dim
        rows = self._rows(attention.source)
        qkv = self.random.reshape(-1, self.shape[-1])
        qkv[rows == PADDING] = attention.padding
        (actual,) = run_between(self.graph, linear_output(self.qkv), self.random, self.proj.inputs[0])
        image = np.empty((self.images * size.height * size.width, self.shape[-1]), np.float32)
        image[rows[rows != PADDING]] = qkv[rows != PADDING]
        expected = reference_output(attention, image.reshape(self.images, size.height, size.width, -1))
        actual, expected = (x.reshape(-1, channels) for x in (actual, expected))
        after_proj, found = linear_output(self.proj), None
        for candidate in candidates:
            if candidate.shape is None or None in candidate.shape:
                continue
            try:
                after = moved_tokens(self.graph, after_proj, shape_at(after_proj, self.batch), candidate)
            except Unmatched:
                continue
            if len(after) == len(expected) and PADDING not in after and (
                    _differs(actual[after], expected) <= TOLERANCE):
                found = candidate  # the farthest, so that nothing on the way is left behind
        if found is None:
            raise Unmatched("its output on random qkv is not that of a SwinAttention node")
        return found


def _distinct(arrays: np.ndarray) -> tuple[list[np.ndarray], list[int]]:
    """Those of the arrays along the first axis that differ, in the order in which they come, and which each one is."""
    places: dict[bytes, int] = {}
    which = [places.setdefault(array.tobytes(), len(places)) for array in arrays]
    return [arrays[which.index(place)].copy() for place in range(len(places))], which


def _differs(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, as a share of the largest value of b."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def reference_output(attention: Attention, qkv: np.ndarray) -> np.ndarray:
    """What a SwinAttention node gives for qkv [B, H, W, 3C]: [B, H, W, C], by its reference meaning."""
    names = ["qkv", "bias", "padding", "logit_scale"][:1 + len(attention.constants())]
    qkv = attention.of_qkv(qkv, 3)
    node = helper.make_node("SwinAttention", names, ["y"], domain=PLUGIN_DOMAIN, **attention.attributes())
    graph = helper.make_graph(
        [node], "attention", [helper.make_tensor_value_info("qkv", TensorProto.FLOAT, qkv.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in zip(names[1:], attention.constants())])
    domains = [helper.make_opsetid("", 17), helper.make_opsetid(PLUGIN_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    y = session(model).run(None, {"qkv": qkv})[0]
    heads = y.reshape(*y.shape[:3], attention.heads, -1)[..., :attention.head_dim]
    return heads.reshape(*y.shape[:3], -1)


def main() -> None:
    run_surgery([add_attention], ONNX_FILE, SUFFIX, __doc__)


if __name__ == "__main__":
    run_script(main)
