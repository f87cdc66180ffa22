#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0.
#
# Behaviour: Swinv2SelfAttention.forward adds the mask of shifted windows (-100 between tokens that only the shift brought
# together) to the scores, and then a second time. The official code adds it once. It makes no difference where scores are
# small; logit_scale of a trained Swin V2 goes up to 100, so that scores differ by up to 200.
#
# Output seen:
#   probability of a masked token whose score is 150 above: with one mask 1.000, by Swinv2SelfAttention 0.000
#
# Exits non-zero if that changes. Needs Python 3.11 and a package index.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cat > "$work/show.py" <<'PYTHON'
import sys

import torch
from transformers import Swinv2Config
from transformers.models.swinv2.modeling_swinv2 import Swinv2SelfAttention

torch.manual_seed(0)
attention = Swinv2SelfAttention(Swinv2Config(), dim=2, num_heads=1, window_size=(1, 2), pretrained_window_size=[0, 0]).eval()
with torch.no_grad():
    for layer in (attention.query, attention.key, attention.value):
        layer.weight.copy_(torch.eye(2))
        if layer.bias is not None:
            layer.bias.zero_()
    attention.logit_scale.fill_(10.0)  # clamped: cosines times 100
    attention.key.weight.copy_(-torch.eye(2))
    tokens = torch.tensor([[[1.0, 0.0], [-0.5, 0.75**0.5]]])  # cosines of query 0 with the keys: -1, and 0.5
    mask = torch.tensor([[[0.0, -100.0], [-100.0, 0.0]]])
    seen = attention(tokens, mask, output_attentions=True)[1][0, 0, 0, 1].item()
    once = torch.softmax(100 * torch.tensor([-1.0, 0.5]) + mask[0, 0], 0)[1].item()
print(f"probability of a masked token whose score is 150 above: with one mask {once:.3f}, by Swinv2SelfAttention {seen:.3f}")
sys.exit(0 if once > 0.99 and seen < 0.01 else 1)
PYTHON
"$work/venv/bin/python" "$work/show.py"
