"""Replace every LayerNorm by a plugin node, with the residual Add beside it where there is one: what the engines
build_*_layernorm*.sh are built from.

    python onnx/graphsurgeon/add_every_layernorm.py --onnx onnx/swinv2.onnx  # writes onnx/swinv2_layernorm.onnx

It does add_residual_layernorm.py, then add_layernorm_with_params.py for the LayerNorms that are left. With these nodes
V2's engine needs less memory than with its Adds by themselves, and less than the unpatched one
(docs/experiments/memory.md).
"""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from add_layernorm_with_params import add_layernorm_with_params
from add_residual_layernorm import add_residual_layernorm

from graphs.surgeon import run_surgery
from utils import run_script

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1.onnx"
SUFFIX = "_layernorm"


def main() -> None:
    run_surgery([add_residual_layernorm, add_layernorm_with_params], ONNX_FILE, SUFFIX, __doc__)


if __name__ == "__main__":
    run_script(main)
