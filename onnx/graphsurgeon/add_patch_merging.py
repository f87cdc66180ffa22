"""Replace the gather of each patch merging, in V1 with the LayerNorm after it, by one plugin node.

    python onnx/graphsurgeon/add_patch_merging.py --onnx onnx/swinv1.onnx --output onnx/swinv1_patch_merging.onnx

Patch merging puts 2 x 2 neighbouring tokens side by side in the channels. V1 normalises them and then halves the
channels: SwinPatchMergeLayerNorm. V2 halves first: SwinPatchMerge is only the gather. What gathers may be Slice and
Concat or Reshape and Transpose: it is run on the numbers of its elements, and their order afterwards decides.
"""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from graphs.patterns import Unmatched, is_linear, layer_norms, moved_tokens, positions, sources
from graphs.surgeon import Report, plugin_node, run_surgery
from graphs.tidy import PROBED_BATCHES, add_node, reshape_target, shape_at
from utils import run_script

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1.onnx"
SUFFIX = "_patch_merging"


def add_patch_merging(graph: gs.Graph) -> Report:
    """Replace in place each gather of 2 x 2 tokens that a LayerNorm or a linear layer reads."""
    report = Report("patch merging")
    order = positions(graph)
    for norm in layer_norms(graph):
        merge = _merge(graph, order, norm.x) if norm.gamma is not None else None
        if merge is not None:
            tokens, size = merge
            plugin_node(graph, "SwinPatchMergeLayerNorm", norm.name, [tokens, norm.gamma, norm.beta], [norm.y],
                        epsilon=norm.epsilon, **size)
            report.replaced += 1
    for linear in [node for node in graph.nodes if is_linear(node)]:
        merge = _merge(graph, order, linear.inputs[0])
        if merge is not None:
            tokens, size = merge
            merged = linear.inputs[0]
            plugin_node(graph, "SwinPatchMerge", linear.name, [tokens], [merged], **size)
            report.replaced += 1
    return report


def _merge(graph: gs.Graph, order: dict[int, int], merged: gs.Tensor) -> tuple[gs.Tensor, dict[str, int]] | None:
    """Where `merged` [B, H/2*W/2, 4C] is a gather of 2 x 2 tokens: the tokens [B, H*W, C], height and width."""
    if merged.shape is None or len(merged.shape) != 3 or None in merged.shape or merged.shape[-1] % 4:
        return None
    channels, found = merged.shape[-1] // 4, None
    for source in sources(order, merged):
        if source is merged or source.shape is None or None in source.shape or source.shape[-1] != channels:
            continue
        size = _size(graph, source, merged)
        if size is not None:
            found = source, size  # the farthest: what only reshapes on the way goes too
    if found is None:
        return None
    source, size = found
    shape = [merged.shape[0], size["height"] * size["width"], channels]
    if source.shape != shape:
        source = add_node(graph, "Reshape", [source, reshape_target(shape)], f"{merged.name}/tokens", shape)
    return source, size


def _size(graph: gs.Graph, source: gs.Tensor, merged: gs.Tensor) -> dict[str, int] | None:
    """Height and width of the image of tokens, if `merged` is the official gather of `source`."""
    batch = PROBED_BATCHES[0]
    shape, (images, quarter, _) = shape_at(source, batch), shape_at(merged, batch)
    try:
        moved = moved_tokens(graph, source, shape, merged)
    except Unmatched:
        return None
    width = int(moved[1])  # the first token's neighbour below
    if width < 2 or quarter * 4 % width:
        return None
    height = quarter * 4 // width
    image = np.arange(images * height * width).reshape(images, height, width)
    quarters = [image[:, row::2, col::2] for row, col in ((0, 0), (1, 0), (0, 1), (1, 1))]
    if height % 2 or width % 2 or not np.array_equal(moved, np.stack(quarters, axis=-1).ravel()):
        return None
    return {"height": height, "width": width}


def main() -> None:
    run_surgery([add_patch_merging], ONNX_FILE, SUFFIX, __doc__)


if __name__ == "__main__":
    run_script(main)
