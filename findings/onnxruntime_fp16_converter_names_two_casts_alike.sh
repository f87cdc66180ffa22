#!/usr/bin/env bash
# onnxruntime 1.31.1, onnxruntime.transformers.float16.convert_float_to_float16 (seen from 1.25.1 to 1.31.1; 1.24.4 and
# 1.32.0 are right).
#
# Behaviour: where one FP32 tensor feeds two nodes that are to stay FP32, the converter puts a Cast before each of them and
# gives both Casts the same name. Names of nodes are meant to be unique, and onnxruntime's own tools look nodes up by name.
# It also appends the Casts at the end of the node list, although ONNX asks for nodes in topological order:
# onnx.checker refuses the result, without a word from the converter.
#
# Output seen:
#   Cast names: 2, different: 1
#   onnx.checker: Nodes in a graph must be topologically sorted ...
#
# Exits non-zero if that changes. Needs Python 3.11 and a package index.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check onnxruntime==1.31.1 onnx==1.20.1 numpy==2.3.5 sympy==1.14.0
cat > "$work/show.py" <<'PYTHON'
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "first"), helper.make_node("Exp", ["h"], ["e"], "exp"),
         helper.make_node("Sqrt", ["h"], ["s"], "sqrt"), helper.make_node("Add", ["e", "s"], ["y"], "add")]
graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
                          [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])], [weight])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model)
half = convert_float_to_float16(model, keep_io_types=True, node_block_list=["exp", "sqrt"])
up = [node.name for node in half.graph.node
      if node.op_type == "Cast" and node.input[0] == half.graph.node[[n.name for n in half.graph.node].index("first")].output[0]]
print(f"Cast names: {len(up)}, different: {len(set(up))}")
try:
    onnx.checker.check_model(half)
    print("onnx.checker: accepted")
    unsorted = False
except onnx.checker.ValidationError as error:
    print("onnx.checker:", str(error).splitlines()[0])
    unsorted = "topologically sorted" in str(error)
sys.exit(0 if len(up) == 2 and len(set(up)) == 1 and unsorted else 1)
PYTHON
"$work/venv/bin/python" "$work/show.py"
