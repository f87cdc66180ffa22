#!/usr/bin/env bash
# torch 2.13.0 (CPU), torch.onnx.export(dynamo=False).
#
# Behaviour: a model in eval mode inside a wrapper that is itself in training mode (torch.nn.Module's default) is exported
# as asked, and afterwards is in training mode: dropout is active again in a model that was in eval mode before the call.
# The exporter remembers the mode of the outermost module only and sets all modules below it to that.
#
# Output seen:
#   before: wrapper training True, model training False
#   after:  wrapper training True, model training True
#
# Exits non-zero if that changes. Needs Python 3.11 and a package index.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 onnx==1.23.2 numpy==2.4.6
cat > "$work/show.py" <<'PYTHON'
import sys
import warnings

import torch

warnings.filterwarnings("ignore")


class Wrapper(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)).eval()
wrapper = Wrapper(model)
before = wrapper.training, model.training
torch.onnx.export(wrapper, (torch.ones(1, 4),), sys.argv[1], dynamo=False)
after = wrapper.training, model.training
print(f"before: wrapper training {before[0]}, model training {before[1]}")
print(f"after:  wrapper training {after[0]}, model training {after[1]}")
sys.exit(0 if before == (True, False) and after == (True, True) else 1)
PYTHON
"$work/venv/bin/python" "$work/show.py" "$work/model.onnx" 2> /dev/null
