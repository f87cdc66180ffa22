"""Replace each F.normalize of Swin V2's cosine attention by the plugin node SwinFNorm.

    python onnx/graphsurgeon/add_Fnorm.py --onnx onnx/swinv2.onnx --output onnx/swinv2_fnorm.onnx

SwinFNorm gives x / max(||x||_2, epsilon) over the last axis: one in each block of this project's V2, for q and k as one
tensor; two in timm's, for q and for k. Not needed where add_attention.py is applied, whose node normalises by itself.
"""
from __future__ import annotations

import sys
from pathlib import Path

import onnx_graphsurgeon as gs

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from graphs.patterns import l2_normalisations
from graphs.surgeon import Report, plugin_node, run_surgery
from utils import run_script

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv2.onnx"
SUFFIX = "_fnorm"


def add_fnorm(graph: gs.Graph) -> Report:
    """Replace in place each written-out L2 normalisation over the last axis."""
    report = Report("F.normalize")
    for norm in l2_normalisations(graph):
        plugin_node(graph, "SwinFNorm", norm.name, [norm.x], [norm.y], epsilon=norm.epsilon)
        report.replaced += 1
    return report


def main() -> None:
    run_surgery([add_fnorm], ONNX_FILE, SUFFIX, __doc__)


if __name__ == "__main__":
    run_script(main)
