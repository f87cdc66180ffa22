"""Replace the MLP branch of each narrow Swin block, with its LayerNorm and residual, by the plugin node SwinMlp.

    python onnx/graphsurgeon/add_mlp.py --onnx onnx/swinv1_attention.onnx --output onnx/swinv1_mlp.onnx

Takes the nodes that add_linear.py and the LayerNorm scripts have put in; add_all.py does this last. SwinMlp gives
x + fc2(GELU(fc1(LayerNorm(x)))) (V1) or x + LayerNorm(fc2(GELU(fc1(x)))) (V2) and never writes the hidden activations,
the largest tensors of the network, to memory. Where nothing but the MLP reads its x, the node makes x itself from what
attention gives: proj, in V2 with its LayerNorm, and the residual. Wider blocks keep their nodes.
"""
from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import onnx_graphsurgeon as gs

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from graphs.patterns import MOST_CHANNELS, Unmatched, made_by, only_reader, reader
from graphs.surgeon import Report, plugin_node, run_surgery
from graphs.tidy import add_node, is_output
from utils import UserError, run_script

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1_attention.onnx"
SUFFIX = "_mlp"


@dataclass
class Mlp:
    """What a SwinMlp node needs to stand for fc1, fc2, their LayerNorm and the residual Add."""

    fc1: gs.Node
    fc2: gs.Node
    norm: gs.Node
    x: gs.Tensor
    y: gs.Variable
    norm_first: bool

    @property
    def channels(self) -> int:
        return self.fc1.inputs[1].shape[1]


def product_of(linear: gs.Node) -> str:
    """Name of the MatMul that a SwinLinear stands for."""
    return linear.name.removesuffix("/SwinLinear")


def add_mlp(graph: gs.Graph, kept: Collection[str] = (), wide_left: bool = False) -> Report:
    """Replace in place each MLP branch of at most MOST_CHANNELS.

    Args:
        kept: names of products (`product_of`) that stay nodes of their own.
        wide_left: report wider ones as left, rather than as none to replace.
    """
    report = Report("MLP")
    for fc1 in [node for node in graph.nodes if node.op == "SwinLinear" and node.attrs["gelu"]]:
        try:
            mlp = find(graph, fc1)
        except Unmatched as reason:
            report.left.append(f"{fc1.name}: {reason}")
            continue
        if mlp.channels > MOST_CHANNELS:
            if wide_left:
                report.left.append(f"{fc1.name}: its {mlp.channels} channels are more than {MOST_CHANNELS}")
        elif not {product_of(mlp.fc1), product_of(mlp.fc2)} & set(kept):
            _leave_sum(graph, mlp)
            x, *attention = attention_end(graph, mlp, kept) or [mlp.x]
            plugin_node(graph, "SwinMlp", product_of(fc1),
                        [x, *mlp.norm.inputs[-2:], *fc1.inputs[1:3], *mlp.fc2.inputs[1:3], *attention], [mlp.y],
                        norm_first=int(mlp.norm_first), gelu=fc1.attrs["gelu"], epsilon=mlp.norm.attrs["epsilon"])
            report.replaced += 1
    return report


def find(graph: gs.Graph, fc1: gs.Node) -> Mlp:
    """The MLP branch whose first product a SwinLinear with GELU is.

    Raises:
        Unmatched: something else stands around it, or reads what lies inside.
    """
    fc2 = only_reader(graph, fc1.outputs[0], "SwinLinear")
    if fc2.attrs["gelu"] or fc2.inputs[1].shape != fc1.inputs[1].shape[::-1]:
        raise Unmatched(f"{fc2.name} after it is not the second product of an MLP")
    y, residual = fc2.outputs[0], fc2.inputs[3:]
    if residual:
        norm = made_by(fc1.inputs[0], "SwinLayerNormWithParams") or made_by(fc1.inputs[0], "SwinAddLayerNorm")
        if norm is None:
            raise Unmatched("no LayerNorm with weight and bias makes its input")
        only_reader(graph, norm.outputs[-1], "SwinLinear")
        x = norm.outputs[0] if norm.op == "SwinAddLayerNorm" else norm.inputs[0]
        mlp = Mlp(fc1, fc2, norm, x, y, True)
    else:
        norm = only_reader(graph, y, "SwinLayerNormAdd")
        if norm.inputs[0] is not y:
            raise Unmatched(f"{norm.name} does not normalise it")
        residual = norm.inputs[1:2]
        mlp = Mlp(fc1, fc2, norm, fc1.inputs[0], norm.outputs[0], False)
    if residual[0] is not mlp.x:
        raise Unmatched(f"{residual[0].name} is added to it, not the input {mlp.x.name}")
    return mlp


def _leave_sum(graph: gs.Graph, mlp: Mlp) -> None:
    """Where a SwinAddLayerNorm also makes the MLP's x, let an Add make it: SwinMlp takes the LayerNorm only."""
    if mlp.norm.op == "SwinAddLayerNorm":
        mlp.x.inputs.clear()
        add_node(graph, "Add", mlp.norm.inputs[:2], mlp.x)


def attention_end(graph: gs.Graph, mlp: Mlp, kept: Collection[str]) -> list[gs.Tensor]:
    """What the x of an MLP is made of, where SwinMlp can make it: the residual, attention's output, proj's weight and
    bias, in V2 gamma and beta of the LayerNorm after it. Nothing where it cannot, or where something else reads that x.
    """
    if is_output(graph, mlp.x) or len(mlp.x.outputs) > 2:  # the MLP reads it twice, as its residual too
        return []
    projected, residual, parameters = mlp.x, [], []
    if not mlp.norm_first:
        norm = made_by(mlp.x, "SwinLayerNormAdd")
        if norm is None or norm.attrs["epsilon"] != mlp.norm.attrs["epsilon"]:  # the node has one for both
            return []
        projected, *residual = norm.inputs[:2]
        parameters = norm.inputs[2:]
        if is_output(graph, projected) or reader(projected) is not norm:
            return []
    proj = made_by(projected, "SwinLinear")
    if proj is None or proj.attrs["gelu"] or product_of(proj) in kept:
        return []
    features, channels = proj.inputs[1].shape
    residual += proj.inputs[3:]
    if features != channels or len(residual) != 1:  # in V1 it is proj's, in V2 the LayerNorm's
        return []
    return [*residual, *proj.inputs[:3], *parameters]


def add_mlp_alone(graph: gs.Graph) -> Report:
    """The step where it is the only one: nothing to replace is an error then, that says why.

    Raises:
        UserError: the scripts that this one comes after have not been run.
    """
    operators = {node.op for node in graph.nodes}
    if not operators & {"SwinLinear", "SwinMlp"}:
        raise UserError("holds no SwinLinear nodes; add_all.py does all that this step needs, and this step")
    return add_mlp(graph, wide_left="SwinMlp" not in operators)


def main() -> None:
    run_surgery([add_mlp_alone], ONNX_FILE, SUFFIX, __doc__)


if __name__ == "__main__":
    run_script(main)
