#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0.
#
# Behaviour: SwinLayer.forward stores the window and shift that it chose for the image at hand in the layer itself
# (set_shift_and_window_size). After one image that is a window high or wide in a stage, that stage's shifted blocks have
# no shift any more, for every image that comes later: what a model answers depends on the sizes it has seen. SwinModel and
# SwinForImageClassification call it so, only the backbone for detection (always_partition) does not.
#
# Output seen:
#   shifts before a small image: [0, 2], after: [0, 0]
#   the same image before and after: off by 2.6 of 3.34
#
# Exits non-zero if that changes. Needs Python 3.11 and a package index.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cat > "$work/show.py" <<'PYTHON'
import sys

import torch
from transformers import SwinConfig, SwinModel

torch.manual_seed(0)
model = SwinModel(SwinConfig(image_size=64, embed_dim=32, depths=[2], num_heads=[2], window_size=4,
                             initializer_range=0.5)).eval()
blocks = model.encoder.layers[0].blocks
large, small = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 16, 16)  # 16 x 16 and 4 x 4 tokens
with torch.no_grad():
    before, shifts = model(large).last_hidden_state, [block.shift_size for block in blocks]
    model(small)
    after, later = model(large).last_hidden_state, [block.shift_size for block in blocks]
error = (after - before).abs().max().item()
print(f"shifts before a small image: {shifts}, after: {later}")
print(f"the same image before and after: off by {error:.3g} of {before.abs().max().item():.3g}")
sys.exit(0 if shifts == [0, 2] and later == [0, 0] and error > 0.1 else 1)
PYTHON
"$work/venv/bin/python" "$work/show.py"
