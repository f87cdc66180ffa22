#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU execution provider, every graph optimisation off.
#
# Behaviour: between two FP16 operators the CPU provider does not round to FP16: it computes in FP32 and removes the Casts
# between. A product of 180,000, which no FP16 can hold, goes on into the next operator as 180,000; only what leaves the
# graph is rounded. So a graph that overflows on every GPU gives finite, plausible numbers on the CPU, and an FP16 graph
# cannot be checked for overflow there.
#
# Output seen:
#   as the graph says:            inf
#   onnxruntime, optimised:       1800.0
#   onnxruntime, not optimised:   1800.0
#   the tensor between as output: inf
#
# Exits non-zero if that changes. Needs Python 3.11 and a package index.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cat > "$work/show.py" <<'PYTHON'
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

up = np.full((1, 1), 600, np.float16)
down = np.full((1, 1), 0.01, np.float16)
x = np.full((1, 1), 300, np.float16)


def run(level, outputs):
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "up"], ["h"]), helper.make_node("MatMul", ["h", "down"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 1]) for name in outputs],
        [numpy_helper.from_array(up, "up"), numpy_helper.from_array(down, "down")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [float(value[0, 0]) for value in session.run(outputs, {"x": x})]


level = onnxruntime.GraphOptimizationLevel
with np.errstate(over="ignore"):
    said = float(((x @ up) @ down)[0, 0])
optimised, plain = run(level.ORT_ENABLE_ALL, ["y"])[0], run(level.ORT_DISABLE_ALL, ["y"])[0]
between = run(level.ORT_DISABLE_ALL, ["h", "y"])[0]
print("as the graph says:           ", said)
print("onnxruntime, optimised:      ", optimised)
print("onnxruntime, not optimised:  ", plain)
print("the tensor between as output:", between)
finite = all(np.isfinite(value) for value in (optimised, plain))
sys.exit(0 if np.isinf(said) and finite and np.isinf(between) else 1)
PYTHON
"$work/venv/bin/python" "$work/show.py"
