#!/usr/bin/env bash
# torch 2.13.0 (CPU), torch.onnx.export(dynamo=False) with an open dimension.
#
# Behaviour: n // 2 of a size is exported as ONNX's Div of integers, which rounds towards zero, where Python rounds down.
# For a negative number that is one more: -(-n // 2), a usual way to round n / 2 up, gives (n - 1) / 2 in the graph where
# n is odd. Nothing is said, and a network that halves odd sides so (patch merging) is wrong or does not run.
#
# Output seen:
#   4 columns: PyTorch 2, ONNX 2
#   5 columns: PyTorch 3, ONNX 2
#   7 columns: PyTorch 4, ONNX 3
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

import onnxruntime
import torch

warnings.filterwarnings("ignore")


class HalfOfTheColumns(torch.nn.Module):
    def forward(self, x):
        return x[:, : -(-x.shape[1] // 2)]


model = HalfOfTheColumns()
torch.onnx.export(model, (torch.zeros(1, 5),), sys.argv[1], dynamo=False, opset_version=17, input_names=["x"],
                  dynamic_axes={"x": {1: "columns"}})
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
found = {}
for columns in (4, 5, 7):
    x = torch.zeros(1, columns)
    found[columns] = model(x).shape[1], session.run(None, {"x": x.numpy()})[0].shape[1]
    print(f"{columns} columns: PyTorch {found[columns][0]}, ONNX {found[columns][1]}")
sys.exit(found != {4: (2, 2), 5: (3, 2), 7: (4, 3)})
PYTHON
"$work/venv/bin/python" "$work/show.py" "$work/model.onnx"
