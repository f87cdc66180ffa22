"""Replace the normalisation of each LayerNorm by the plugin node SwinLayerNorm; weight and bias stay Mul and Add.

    python onnx/graphsurgeon/add_layernorm.py --onnx onnx/swinv1.onnx --output onnx/swinv1_layernorm_alone.onnx

SwinLayerNorm gives (x - mean) / sqrt(variance + epsilon) over the last axis. Finds opset 17's LayerNormalization and
the ReduceMean, Sub, Pow, ... that exporters write below it.
"""
from __future__ import annotations

import sys
from pathlib import Path

import onnx_graphsurgeon as gs

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from graphs.patterns import LayerNorm, layer_norms
from graphs.surgeon import Report, plugin_node, run_surgery
from graphs.tidy import add_node
from utils import run_script

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1.onnx"
SUFFIX = "_layernorm_alone"


def add_layernorm(graph: gs.Graph) -> Report:
    """Replace in place each LayerNorm that no plugin node computes yet."""
    report = Report("LayerNorm")
    for norm in layer_norms(graph):
        if norm.plugin is None:
            plugin_node(graph, "SwinLayerNorm", norm.name, [norm.x], [_normalised(graph, norm)], epsilon=norm.epsilon)
            report.replaced += 1
    return report


def _normalised(graph: gs.Graph, norm: LayerNorm) -> gs.Variable:
    """The tensor before weight and bias, made where the graph has only LayerNormalization."""
    if norm.normalised is not None:
        return norm.normalised
    normalised = gs.Variable(f"{norm.name}/normalised", norm.y.dtype, norm.y.shape)
    norm.y.inputs.clear()
    scaled = add_node(graph, "Mul", [normalised, norm.gamma], f"{norm.name}/scaled", norm.y.shape)
    add_node(graph, "Add", [scaled, norm.beta], norm.y)
    return normalised


def main() -> None:
    run_surgery([add_layernorm], ONNX_FILE, SUFFIX, __doc__)


if __name__ == "__main__":
    run_script(main)
