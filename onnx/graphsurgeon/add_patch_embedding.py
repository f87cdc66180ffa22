"""Replace the patch embedding, a convolution and the LayerNorm after it, by the plugin node SwinPatchEmbed.

    python onnx/graphsurgeon/add_patch_embedding.py --onnx onnx/swinv1.onnx \
        --output onnx/swinv1_patch_embedding.onnx

The convolution's kernel is as large as its stride: it cuts the image into patches, and each becomes a token. How the
[B, C, H, W] that it gives becomes [B, H*W, C] differs between exporters, so that it is run on the numbers of its
elements, and their order afterwards decides.
"""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from graphs.patterns import Unmatched, layer_norms, made_by, positions, run_between, sources
from graphs.surgeon import Report, plugin_node, run_surgery
from graphs.tidy import PROBED_BATCHES, shape_at, values
from utils import run_script

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1.onnx"
SUFFIX = "_patch_embedding"
FP32 = 0  # y_type: FP32 here, which to_fp16.py changes; the image that the node reads is FP32 in every graph


def add_patch_embedding(graph: gs.Graph) -> Report:
    """Replace in place each LayerNorm of tokens that a convolution made, and that convolution."""
    report = Report("patch embedding")
    order = positions(graph)
    for norm in layer_norms(graph):
        made = (made_by(tensor, "Conv") for tensor in sources(order, norm.x))
        conv = next((node for node in made if node is not None), None)
        if conv is None:
            continue
        try:
            patch_size = _patch_size(conv)
            if norm.gamma is None:
                raise Unmatched("no weight and bias follow its LayerNorm")
            _refuse_other_order(graph, conv.outputs[0], norm.x)
        except Unmatched as reason:
            report.left.append(f"{conv.name}: {reason}")
            continue
        weight = values(conv.inputs[1])
        bias = values(conv.inputs[2]) if len(conv.inputs) > 2 else np.zeros(len(weight))
        plugin_node(graph, "SwinPatchEmbed", norm.name, [conv.inputs[0], weight, bias, norm.gamma, norm.beta],
                    [norm.y], epsilon=norm.epsilon, patch_size=patch_size, y_type=FP32)
        report.replaced += 1
    return report


def _patch_size(conv: gs.Node) -> int:
    """Side of the patches that a convolution makes tokens of.

    Raises:
        Unmatched: they overlap, have gaps, are not square, or do not fill the image.
    """
    if any(values(tensor) is None for tensor in conv.inputs[1:]):
        raise Unmatched("its weight is computed")
    *_, rows, cols = values(conv.inputs[1]).shape
    image, made = conv.inputs[0].shape, conv.outputs[0].shape
    if (rows != cols or list(conv.attrs.get("strides", [1, 1])) != [rows, rows]
            or any(conv.attrs.get("pads", [0])) or conv.attrs.get("group", 1) != 1):
        raise Unmatched("its kernel does not cut the image into square patches")
    if image is None or made is None or image[2:] != [rows * size for size in made[2:]]:  # nor with a dilated kernel
        raise Unmatched(f"its patches of {rows} x {rows} do not fill the image {image}")
    return rows


def _refuse_other_order(graph: gs.Graph, made: gs.Tensor, tokens: gs.Tensor) -> None:
    """Raises Unmatched unless `tokens` is `made` [B, C, H, W] as [B, H*W, C]."""
    batch, channels, height, width = shape = shape_at(made, PROBED_BATCHES[0])
    numbers = np.arange(np.prod(shape)).reshape(shape)
    (moved,) = run_between(graph, made, numbers, tokens)
    expected = numbers.reshape(batch, channels, height * width).transpose(0, 2, 1)
    if not np.array_equal(moved, expected):
        raise Unmatched("its output does not become tokens in the image's order")


def main() -> None:
    run_surgery([add_patch_embedding], ONNX_FILE, SUFFIX, __doc__)


if __name__ == "__main__":
    run_script(main)
