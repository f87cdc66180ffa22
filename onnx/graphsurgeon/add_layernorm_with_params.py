"""Replace each LayerNorm, with its weight and bias, by the plugin node SwinLayerNormWithParams.

    python onnx/graphsurgeon/add_layernorm_with_params.py --onnx onnx/swinv1.onnx \
        --output onnx/swinv1_layernorm_params.onnx

Takes the same LayerNorms as add_layernorm.py, and also those that it has replaced already.
"""
from __future__ import annotations

import sys
from pathlib import Path

import onnx_graphsurgeon as gs

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from graphs.patterns import layer_norms
from graphs.surgeon import Report, plugin_node, run_surgery
from utils import run_script

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1.onnx"
SUFFIX = "_layernorm_params"


def add_layernorm_with_params(graph: gs.Graph) -> Report:
    """Replace in place each LayerNorm that is not one node with its parameters yet."""
    report = Report("LayerNorm")
    for norm in layer_norms(graph):
        if norm.plugin == "SwinLayerNormWithParams":
            continue
        if norm.gamma is None:
            report.left.append(f"{norm.name}: no weight and bias follow it")
            continue
        plugin_node(graph, "SwinLayerNormWithParams", norm.name, [norm.x, norm.gamma, norm.beta], [norm.y],
                    epsilon=norm.epsilon)
        report.replaced += 1
    return report


def main() -> None:
    run_surgery([add_layernorm_with_params], ONNX_FILE, SUFFIX, __doc__)


if __name__ == "__main__":
    run_script(main)
