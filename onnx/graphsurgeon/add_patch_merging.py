"""Replace the gather of each patch merging, in V1 with the LayerNorm after it, by one plugin node.

    python onnx/graphsurgeon/add_patch_merging.py --onnx onnx/swinv1.onnx --output onnx/swinv1_patch_merging.onnx

Patch merging puts 2 x 2 neighbouring tokens side by side in the channels. V1 normalises them and then halves the
channels: SwinPatchMergeLayerNorm. V2 halves first: SwinPatchMerge is only the gather. What gathers may be Slice and
Concat, Reshape and Transpose, or an unfold: it is run on the numbers of its elements, and their order afterwards
decides. Zeros below and beside an odd side go with it. Where the channels come in another order than the official one
(OpenMMLab's unfold), gamma, beta and the columns of the linear layer are put in that order.
"""
from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from graphs.patterns import PADDING, Unmatched, is_linear, layer_norms, moved_elements, positions, sources
from graphs.surgeon import Report, plugin_node, run_surgery
from graphs.tidy import add_node, is_output, probed_batches, reshape_target, shape_at, values
from utils import run_script

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1.onnx"
SUFFIX = "_patch_merging"


@dataclass
class Merge:
    """A gather of 2 x 2 tokens.

    Attributes:
        tokens: [B, H, W, C], or [B, H*W, C] of an image of `size`.
        size: H and W.
        order: [4C]: channel i of the gather is channel order[i] of the official one.
    """

    tokens: gs.Tensor
    size: tuple[int, int]
    order: np.ndarray

    @property
    def official(self) -> bool:
        return np.array_equal(self.order, np.arange(len(self.order)))

    def reordered(self, parameter: np.ndarray) -> np.ndarray:
        """What stands for a parameter [4C, ...] of the gather's channels, where they come in the official order."""
        result = np.empty_like(parameter)
        result[self.order] = parameter
        return result


def add_patch_merging(graph: gs.Graph) -> Report:
    """Replace in place each gather of 2 x 2 tokens that a LayerNorm or a linear layer reads."""
    report = Report("patch merging")
    order = positions(graph)
    for norm in layer_norms(graph):
        merge = _merge(graph, order, norm.x) if norm.gamma is not None else None
        if merge is None:
            continue
        reductions = list(norm.y.outputs)
        if not merge.official and (is_output(graph, norm.y) or not all(
                is_linear(node) and node.inputs[0] is norm.y for node in reductions)):
            report.left.append(f"{norm.name}: its channels are in another order, and others than linear layers read it")
            continue
        _replace(graph, "SwinPatchMergeLayerNorm", norm.name, merge, norm.y,
                 [merge.reordered(norm.gamma), merge.reordered(norm.beta)], epsilon=norm.epsilon)
        _reorder_columns(reductions, merge)
        report.replaced += 1
    for linear in [node for node in graph.nodes if is_linear(node)]:
        merged = linear.inputs[0]
        merge = _merge(graph, order, merged)
        if merge is None:
            continue
        if not merge.official and (is_output(graph, merged) or len(merged.outputs) > 1):
            report.left.append(f"{linear.name}: its channels are in another order, and something else reads them")
            continue
        _replace(graph, "SwinPatchMerge", linear.name, merge, merged, [])
        _reorder_columns([linear], merge)
        report.replaced += 1
    return report


def _replace(graph: gs.Graph, op: str, name: str, merge: Merge, y: gs.Variable, parameters: list[np.ndarray],
             **attributes: float) -> None:
    batch, (height, width), channels = graph.inputs[0].shape[0], merge.size, merge.tokens.shape[-1]
    shape, merged = [batch, height, width, channels], [batch, -(-height // 2), -(-width // 2), 4 * channels]
    tokens = merge.tokens
    if tokens.shape != shape:
        tokens = add_node(graph, "Reshape", [tokens, reshape_target(shape)], f"{name}/tokens", shape)
    if y.shape == merged:
        plugin_node(graph, op, name, [tokens, *parameters], [y], **attributes)
        return
    image = gs.Variable(f"{y.name}/merged", y.dtype, merged)
    plugin_node(graph, op, name, [tokens, *parameters], [image], **attributes)
    y.inputs.clear()
    add_node(graph, "Reshape", [image, reshape_target(y.shape)], y)


def _reorder_columns(linears: list[gs.Node], merge: Merge) -> None:
    """Let linear layers read the official order. Their weights may have other readers."""
    for linear in linears if not merge.official else []:
        weight = values(linear.inputs[1])
        weight = merge.reordered(weight.T).T if linear.op == "SwinLinear" else merge.reordered(weight)
        linear.inputs[1] = gs.Constant(f"{linear.name}/reordered", np.ascontiguousarray(weight))


def _merge(graph: gs.Graph, order: dict[int, int], merged: gs.Tensor) -> Merge | None:
    """The gather of 2 x 2 tokens that `merged` [B, (H/2)*(W/2), 4C] or [B, H/2, W/2, 4C] is; None where it is none."""
    if merged.shape is None or len(merged.shape) not in (3, 4) or None in merged.shape or merged.shape[-1] % 4:
        return None
    channels, found = merged.shape[-1] // 4, None
    for source in sources(order, merged):
        shape = source.shape
        if source is merged or shape is None or None in shape or len(shape) not in (3, 4) or shape[-1] != channels:
            continue
        found = _gathered(graph, source, merged) or found  # the farthest: what only reshapes on the way goes too
    return found


def _gathered(graph: gs.Graph, source: gs.Tensor, merged: gs.Tensor) -> Merge | None:
    """`merged`, if it is a gather of the tokens `source` in any order of the channels."""
    batch = probed_batches(graph.inputs[0].shape)[0]
    shape, (images, *quarter, _) = shape_at(source, batch), shape_at(merged, batch)
    if shape[0] != images:
        return None
    try:
        moved = moved_elements(graph, source, shape, merged)
    except Unmatched:
        return None
    area, quarters = int(np.prod(shape[1:-1])), int(np.prod(quarter))
    moved = moved.reshape(images, quarters, -1)
    for height, width in [shape[1:3]] if len(shape) == 4 else [
            (height, area // height) for height in range(2, area) if area % height == 0]:
        rows, cols = -(-height // 2), -(-width // 2)
        if rows * cols != quarters or (len(quarter) == 2 and [rows, cols] != quarter) or min(height, width) < 2:
            continue
        image = np.arange(images * height * width * shape[-1]).reshape(images, height, width, -1)
        image = np.pad(image, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), constant_values=PADDING)
        official = np.concatenate([image[:, row::2, col::2] for row, col in ((0, 0), (1, 0), (0, 1), (1, 1))], axis=-1)
        official = official.reshape(images, quarters, -1)
        channel = np.argsort(official[0, 0])  # of the first 2 x 2 tokens, which hold no padding
        place = np.minimum(np.searchsorted(official[0, 0], moved[0, 0], sorter=channel), len(channel) - 1)
        order = channel[place]
        if len(set(order)) == len(order) and np.array_equal(official[..., order], moved):
            return Merge(source, (height, width), order)
    return None


def main() -> None:
    run_surgery([add_patch_merging], ONNX_FILE, SUFFIX, __doc__)


if __name__ == "__main__":
    run_script(main)
