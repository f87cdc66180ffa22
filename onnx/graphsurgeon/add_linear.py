"""Replace each linear layer, with what is done to its output next, by the plugin node SwinLinear.

    python onnx/graphsurgeon/add_linear.py --onnx onnx/swinv1.onnx --output onnx/swinv1_linear.onnx

SwinLinear gives act(x weight^T + bias) + residual. Taken are qkv, proj, fc1, fc2 and patch merging's reduction, whose
bias is zero; with fc1 the GELU after it, and in V1 with proj and fc2 the Add of the residual. The classifier is left:
it takes no time, and is FP32 in an FP16 graph. `add_classifier` takes it (add_all.py --classifier).
"""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from graphs.patterns import Gelu, gelus, head, is_linear, is_residual, linear_bias, reader
from graphs.surgeon import Report, plugin_node, run_surgery
from graphs.tidy import is_output, values
from utils import run_script

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1.onnx"
SUFFIX = "_linear"


def add_linear(graph: gs.Graph) -> Report:
    """Replace in place each product of tokens with a constant matrix, but the classifier's."""
    classifier = head(graph)
    return _replace(graph, "linear layer", [node for node in _linears(graph.nodes)
                                            if not any(node is other for other in classifier)])


def add_classifier(graph: gs.Graph) -> Report:
    """Replace in place the products of the head: for a TensorRT that would compute them in TF32 in an FP32 graph."""
    return _replace(graph, "classifier", _linears(head(graph)))


def _linears(nodes: list[gs.Node]) -> list[gs.Node]:
    return [node for node in nodes if node.op == "MatMul" and is_linear(node)]


def _replace(graph: gs.Graph, what: str, linears: list[gs.Node]) -> Report:
    report, activations = Report(what), gelus(graph)
    with_gelu = with_residual = 0
    for matmul in linears:
        y, bias = _biased(graph, matmul)
        gelu = next((gelu for gelu in activations if _is_all_of(graph, y, gelu)), None)
        add = reader(y) if gelu is None and not is_output(graph, y) else None
        residual = []
        if gelu is not None:
            y = gelu.y
            with_gelu += 1
        elif is_residual(add):
            residual = [tensor for tensor in add.inputs if tensor is not y]
            y = add.outputs[0]
            with_residual += 1
        plugin_node(graph, "SwinLinear", matmul.name,
                    [matmul.inputs[0], values(matmul.inputs[1]).T, bias, *residual], [y],
                    gelu=gelu.form if gelu is not None else 0)
        report.replaced += 1
    report.details = f"{with_gelu} with GELU, {with_residual} with the residual Add"
    return report


def _biased(graph: gs.Graph, matmul: gs.Node) -> tuple[gs.Variable, np.ndarray]:
    """The output of the linear layer and its bias, zeros where it has none."""
    product = matmul.outputs[0]
    bias, y = linear_bias(matmul)
    if bias is None or is_output(graph, product):
        return product, np.zeros(matmul.inputs[1].shape[1], np.float32)
    return y, bias


def _is_all_of(graph: gs.Graph, y: gs.Variable, gelu: Gelu) -> bool:
    """Whether `y` goes into this GELU and nowhere else."""
    inside = {id(node) for node in gelu.nodes}
    return gelu.x is y and not is_output(graph, y) and all(id(node) in inside for node in y.outputs)


def main() -> None:
    run_surgery([add_linear], ONNX_FILE, SUFFIX, __doc__)


if __name__ == "__main__":
    run_script(main)
