"""Replace each residual Add with the LayerNorm beside it by one plugin node.

    python onnx/graphsurgeon/add_residual_layernorm.py --onnx onnx/swinv1.onnx \
        --output onnx/swinv1_residual.onnx

V1 adds, then normalises the sum, which the next Add reads too: SwinAddLayerNorm gives both. V2 normalises a branch,
then adds it: SwinLayerNormAdd. LayerNorms that add_layernorm.py or add_layernorm_with_params.py has replaced are taken
as well; those without an Add beside them (patch embedding, patch merging) are left to them.
"""
from __future__ import annotations

import sys
from pathlib import Path

import onnx_graphsurgeon as gs

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from graphs.patterns import LayerNorm, is_residual, layer_norms, made_by, reader
from graphs.surgeon import Report, plugin_node, run_surgery
from graphs.tidy import is_output
from utils import run_script

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1.onnx"
SUFFIX = "_residual"


def add_residual_layernorm(graph: gs.Graph) -> Report:
    """Replace in place. An Add that could go with the LayerNorm before or after it goes with the one before."""
    report = Report("residual Add + LayerNorm")
    norms = [norm for norm in layer_norms(graph) if norm.gamma is not None]
    for norm in norms:
        add = reader(norm.y)
        if is_residual(add) and not is_output(graph, norm.y):
            residual = next(tensor for tensor in add.inputs if tensor is not norm.y)
            _replace(graph, "SwinLayerNormAdd", norm, norm.x, residual, [add.outputs[0]])
            report.replaced += 1
    for norm in norms:
        add = made_by(norm.x, "Add")
        if is_residual(add):
            x, residual = add.inputs
            _replace(graph, "SwinAddLayerNorm", norm, x, residual, [norm.x, norm.y])
            report.replaced += 1
    return report


def _replace(graph: gs.Graph, op: str, norm: LayerNorm, x: gs.Tensor, residual: gs.Tensor,
             outputs: list[gs.Variable]) -> None:
    plugin_node(graph, op, norm.name, [x, residual, norm.gamma, norm.beta], outputs, epsilon=norm.epsilon)


def main() -> None:
    run_surgery([add_residual_layernorm], ONNX_FILE, SUFFIX, __doc__)


if __name__ == "__main__":
    run_script(main)
