#!/usr/bin/env bash
# torch 2.13.0 (CPU), torch.onnx.export(dynamo=True) with an open dimension.
#
# Behaviour: a module that branches in Python on an open size is exported with one side of the branch only. torch.export
# by itself refuses such a program (a constraint violation names the guard). torch.onnx.export retries in a mode that drops
# the guard, writes the graph and warns of nothing: the graph runs at every size and is wrong past the branch.
#
# Output seen:
#   torch.export: refused
#   ONNX, 8 columns (the size of the example): largest error 0
#   ONNX, 20 columns (past the branch):        largest error 2
#
# Exits non-zero if that changes. Needs Python 3.11 and a package index.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 \
    onnxruntime==1.32.0 numpy==2.4.6
cat > "$work/show.py" <<'PYTHON'
import sys
import warnings

import numpy as np
import onnxruntime
import torch

warnings.filterwarnings("ignore")


class Model(torch.nn.Module):
    def forward(self, x):
        if x.shape[1] > 16:
            return x * 3
        return x + 0


model, example, width = Model().eval(), torch.ones(2, 8), torch.export.Dim("width", min=2, max=64)
try:
    torch.export.export(model, (example,), dynamic_shapes=({1: width},), strict=False)
    refused = False
except Exception:  # torch raises several kinds for it
    refused = True
print("torch.export:", "refused" if refused else "accepted")
program = torch.onnx.export(model, (example,), dynamo=True, dynamic_shapes=({1: width},), verbose=False)
program.save(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
errors = []
for columns, where in ((8, "the size of the example"), (20, "past the branch")):
    x = torch.ones(2, columns)
    (said,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    errors.append(float(np.abs(said - model(x).numpy()).max()))
    print(f"{f'ONNX, {columns} columns ({where}):':<42} largest error {errors[-1]:g}")
sys.exit(0 if refused and errors == [0.0, 2.0] else 1)
PYTHON
"$work/venv/bin/python" "$work/show.py" "$work/model.onnx" 2> /dev/null
