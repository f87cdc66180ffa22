"""The attention branch of a block whose parts are INT8 nodes, as one node: add_int8.py's last step.

SwinAttentionBranchInt8 stands for qkv, attention, proj with the residual, and the LayerNorm after it:

    V1    SwinLinearInt8, SwinAttentionInt8, SwinLinearInt8, SwinLayerNormInt8        y = x + proj, y_q = LayerNorm(y)
    V2    SwinLinearInt8, SwinAttentionInt8, SwinLinearInt8, SwinLayerNormAddInt8     y = y_q = x + LayerNorm(proj)

so that qkv, its largest tensor, and attention's result need not be written to memory.
"""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphs.patterns import Unmatched, made_by, only_reader
from graphs.surgeon import Report, plugin_node
from graphs.tidy import values

# The kernel keeps the rows of a window, their qkv and their result in shared memory, beside the stages through which
# the weights come. It is made for these numbers of channels, and of tokens along a window's side; more have no room
# there.
WIDTHS = (384,)
WINDOWS = (7, 8)

HEAD_DIM = 32


@dataclass
class Branch:
    """What a SwinAttentionBranchInt8 node needs to stand for the four."""

    qkv: gs.Node
    attention: gs.Node
    proj: gs.Node
    norm: gs.Node
    x: gs.Tensor
    y: gs.Variable
    norm_first: bool

    def inputs(self) -> list[gs.Tensor]:
        bias, _, *logit_scale = self.attention.inputs[1:]  # nothing is padded
        gamma_and_beta = self.norm.inputs[-2:]
        return [self.qkv.inputs[0], self.x, *self.qkv.inputs[1:4], *self.proj.inputs[1:4], bias, *gamma_and_beta,
                *logit_scale]

    def attributes(self) -> dict[str, float | int]:
        of_attention = {name: self.attention.attrs[name] for name in (
            "num_heads", "window_height", "window_width", "shift_height", "shift_width", "roll_first",
            "shift_if_covered", "scale", "mask_value", "qkv_scale")}
        return {**of_attention, "norm_first": int(self.norm_first), "attention_scale": self.attention.attrs["y_scale"],
                "proj_scale": self.proj.attrs["y_scale"], "epsilon": self.norm.attrs["epsilon"],
                "y_scale": self.norm.attrs["y_scale"]}


def add_attention_branch(graph: gs.Graph, widths: Collection[int] = WIDTHS) -> Report:
    """Replace in place each attention branch of INT8 nodes that has one of these widths, heads of HEAD_DIM channels and
    a square window of WINDOWS that divides its image.

    Args:
        graph: of INT8 nodes whose quantisers are part of the nodes before them.
        widths: numbers of channels.
    """
    report = Report("attention branch")
    for attention in [node for node in graph.nodes if node.op == "SwinAttentionInt8"]:
        window = attention.attrs["window_height"]
        if (HEAD_DIM * attention.attrs["num_heads"] not in widths or window not in WINDOWS
                or attention.attrs["window_width"] != window):
            continue
        try:
            branch = find(graph, attention)
            _refuse_padding(branch, window)
        except Unmatched as reason:
            report.left.append(f"{attention.name}: {reason}")
            continue
        plugin_node(graph, "SwinAttentionBranchInt8", branch.qkv.name.removesuffix("/SwinLinearInt8"), branch.inputs(),
                    [branch.y, branch.norm.outputs[-1]], **branch.attributes())
        report.replaced += 1
    return report


def _refuse_padding(branch: Branch, window: int) -> None:
    """Raises Unmatched where the kernel has other heads, or an image that is not known to hold whole windows."""
    if branch.qkv.inputs[2].shape[0] != 3 * HEAD_DIM * branch.attention.attrs["num_heads"]:
        raise Unmatched(f"its heads are not {HEAD_DIM} channels wide")
    shape = branch.y.shape
    if shape is None or len(shape) != 4 or any(not isinstance(size, int) or size % window for size in shape[1:3]):
        raise Unmatched(f"its image {shape} is not known to hold whole windows of {window} x {window} tokens")


def find(graph: gs.Graph, attention: gs.Node) -> Branch:
    """The branch around a SwinAttentionInt8.

    Raises:
        Unmatched: other nodes stand around it, something else reads what lies inside, or its bias is not one of the
            relative position, which is all that the kernel keeps of it.
    """
    qkv = made_by(attention.inputs[0], "SwinLinearInt8")
    if qkv is None:
        raise Unmatched("no SwinLinearInt8 makes its input")
    only_reader(graph, qkv.outputs[0], "SwinAttentionInt8")
    proj = only_reader(graph, attention.outputs[0], "SwinLinearInt8")
    cosine, residual = len(attention.inputs) > 3, proj.inputs[4:]
    if qkv.attrs["gelu"] or qkv.inputs[4:] or proj.attrs["gelu"]:
        raise Unmatched("the products around it are not qkv and proj")
    y = proj.outputs[0]
    if residual:
        norms = [node for node in y.outputs if node.op == "SwinLayerNormInt8"]
        if len(norms) != 1 or cosine or proj.attrs["y_scale"]:
            raise Unmatched(f"{proj.name} and what reads it are not a V1 block's")
        branch = Branch(qkv, attention, proj, norms[0], residual[0], y, True)
    else:
        norm = only_reader(graph, y, "SwinLayerNormAddInt8")
        if norm.inputs[0] is not y or not cosine or not proj.attrs["y_scale"] == norm.attrs["x_scale"] > 0:
            raise Unmatched(f"{proj.name} and {norm.name} are not a V2 block's")
        branch = Branch(qkv, attention, proj, norm, norm.inputs[1], norm.outputs[0], False)
    bias = values(attention.inputs[1])
    if bias is None or not is_relative(bias, attention.attrs["window_height"]):
        raise Unmatched("its bias depends on more than the relative position")
    return branch


def is_relative(bias: np.ndarray, window: int) -> bool:
    """Whether bias [nH, N, Np] between tokens of a window, but for its padding, is that of their relative position."""
    row, column = np.divmod(np.arange(window**2), window)
    side = 2 * window - 1
    place = (row[:, None] - row + window - 1) * side + column[:, None] - column + window - 1  # [N, N]
    of_tokens = bias[:, :, :window**2]
    table = np.zeros((len(bias), side**2), bias.dtype)
    table[:, place] = of_tokens  # of tokens that differ, one stays
    return np.array_equal(table[:, place], of_tokens)
