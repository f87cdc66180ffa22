"""Replace the patch embedding, a convolution and the LayerNorm after it, by the plugin node SwinPatchEmbed.

    python onnx/graphsurgeon/add_patch_embedding.py --onnx onnx/swinv1.onnx \
        --output onnx/swinv1_patch_embedding.onnx

The convolution's kernel is as large as its stride: it cuts the image into patches, and each becomes a token. How the
[B, C, H, W] that it gives becomes tokens differs between exporters, so that it is run on the numbers of its elements,
and their order afterwards decides. Zeros that continue an image to whole patches go with it.
"""
from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from graphs.patterns import Unmatched, layer_norms, made_by, positions, run_between, sources
from graphs.surgeon import Report, plugin_node, run_surgery
from graphs.tidy import add_node, probed_batches, reshape_target, shape_at, values
from utils import run_script

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1.onnx"
SUFFIX = "_patch_embedding"
FP32 = 0  # y_type: FP32 here, which to_fp16.py changes; the image that the node reads is FP32 in every graph


@dataclass
class Patches:
    """How a convolution cuts an image: the image, height and width of a patch, and whether zeros continue the image."""

    image: gs.Tensor
    height: int
    width: int
    ceil: int


def add_patch_embedding(graph: gs.Graph) -> Report:
    """Replace in place each LayerNorm of tokens that a convolution made, and that convolution."""
    report = Report("patch embedding")
    order = positions(graph)
    for norm in layer_norms(graph):
        made = (made_by(tensor, "Conv") for tensor in sources(order, norm.x))
        conv = next((node for node in made if node is not None), None)
        if conv is None or _looks_around(conv):
            continue
        try:
            patches = _patches(conv)
            if norm.gamma is None:
                raise Unmatched("no weight and bias follow its LayerNorm")
            _refuse_other_order(graph, conv.outputs[0], norm.x)
        except Unmatched as reason:
            report.left.append(f"{conv.name}: {reason}")
            continue
        weight = values(conv.inputs[1])
        bias = values(conv.inputs[2]) if len(conv.inputs) > 2 else np.zeros(len(weight))
        batch, channels, height, width = conv.outputs[0].shape
        y = norm.y
        if y.shape != [batch, height, width, channels]:
            y = gs.Variable(f"{y.name}/patches", y.dtype, [batch, height, width, channels])
            norm.y.inputs.clear()
            add_node(graph, "Reshape", [y, reshape_target(norm.y.shape)], norm.y)
        plugin_node(graph, "SwinPatchEmbed", norm.name, [patches.image, weight, bias, norm.gamma, norm.beta], [y],
                    epsilon=norm.epsilon, patch_height=patches.height, patch_width=patches.width, ceil=patches.ceil,
                    y_type=FP32)
        report.replaced += 1
    return report


def _looks_around(conv: gs.Node) -> bool:
    """Whether a convolution gives a token for every pixel and reads its neighbours too, as restoration models begin."""
    return set(conv.attrs.get("strides", [1, 1])) == {1} and conv.inputs[1].shape[-2:] not in ((1, 1), [1, 1])


def _patches(conv: gs.Node) -> Patches:
    """The patches that a convolution makes tokens of.

    Where an image is as large as whole patches, `ceil` is 0; at that size both values mean the same.

    Raises:
        Unmatched: they overlap, have gaps, or what is around the image is not the zeros that the node puts there.
    """
    if any(values(tensor) is None for tensor in conv.inputs[1:]):
        raise Unmatched("its weight is computed")
    *_, rows, cols = values(conv.inputs[1]).shape
    image, made = conv.inputs[0], conv.outputs[0].shape
    pads = list(conv.attrs.get("pads", [0, 0, 0, 0]))
    if (list(conv.attrs.get("strides", [1, 1])) != [rows, cols] or conv.attrs.get("group", 1) != 1 or any(pads[:2])
            or conv.attrs.get("auto_pad", "NOTSET") != "NOTSET" or any(step != 1 for step in conv.attrs.get(
                "dilations", [1]))):
        raise Unmatched("its kernel does not cut the image into patches")
    below = np.array(pads[2:])
    pad = made_by(image, "Pad")
    if pad is not None and _is_zeros_behind(pad):
        below = below + values(pad.inputs[1])[6:]
        image = pad.inputs[0]
    if image.shape is None or made is None or None in image.shape[2:]:
        raise Unmatched(f"the size of its image {image.shape} is not known")
    sides = np.array(image.shape[2:])
    whole = -(-sides // (rows, cols))
    if not below.any():
        return Patches(image, rows, cols, 0)  # what is left over at the bottom and the right is not read
    if list(whole) != list(made[2:]) or np.any(sides + below < whole * (rows, cols)):
        raise Unmatched(f"its patches of {rows} x {cols} do not fill the image {image.shape} with {below} around it")
    return Patches(image, rows, cols, 1)


def _is_zeros_behind(pad: gs.Node) -> bool:
    """Whether a Pad only puts zeros below and beside an image [B, C, H, W]."""
    pads = values(pad.inputs[1]) if len(pad.inputs) > 1 else None
    constants = [values(tensor) for tensor in pad.inputs[2:3] if not tensor.is_empty()]
    return (pads is not None and len(pads) == 8 and not pads[:6].any() and bool((pads >= 0).all())
            and pad.attrs.get("mode", "constant") == "constant" and len(pad.inputs) < 4
            and all(constant is not None and not constant.any() for constant in constants))


def _refuse_other_order(graph: gs.Graph, made: gs.Tensor, tokens: gs.Tensor) -> None:
    """Raises Unmatched unless `tokens` is `made` [B, C, H, W] as [B, H*W, C] or [B, H, W, C]."""
    batch = probed_batches(graph.inputs[0].shape)[0]
    shape = shape_at(made, batch)
    numbers = np.arange(np.prod(shape)).reshape(shape)
    (moved,) = run_between(graph, made, numbers, tokens)
    expected = np.moveaxis(numbers, 1, -1)
    if len(moved) != len(expected) or moved.size != expected.size or moved.shape[-1] != expected.shape[-1] or (
            not np.array_equal(moved.ravel(), expected.ravel())):
        raise Unmatched("its output does not become tokens in the image's order")


def main() -> None:
    run_surgery([add_patch_embedding], ONNX_FILE, SUFFIX, __doc__)


if __name__ == "__main__":
    run_script(main)
