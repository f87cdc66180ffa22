"""Swin Transformer V2 for inference: images in, logits out; state dict keys are those of the official checkpoints.

    python -c "from config import get_config; from models.build import build_model; \
               print(build_model(get_config('models/swinv2.yaml')))"

Paper: Liu et al., Swin Transformer V2: Scaling Up Capacity and Resolution, CVPR 2022
(https://arxiv.org/abs/2111.09883). Against V1 (swin.py, where the letters in the shapes are explained): scaled cosine
attention, relative position bias from a small MLP over log-spaced coordinates, LayerNorm after attention and MLP
instead of before, and no bias for k.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.swin import PatchMerging, SwinTransformer, SwinTransformerBlock, WindowAttentionBase

MAX_LOGIT_SCALE = math.log(1 / 0.01)  # before the exponential: no cosine is scaled by more than 100
CPB_HIDDEN_DIM = 512


def relative_coords_table(window_size: int, pretrained_window_size: int) -> Tensor:
    """Log-spaced relative coordinates: float32 [1, 2w-1, 2w-1, 2], (down, right).

    Offsets are divided by the largest one of the pre-training window (0: this window), times 8, and compressed to
    sign(x) * log2(1 + |x|) / log2(8), so that a larger window extrapolates less.
    """
    largest = max((pretrained_window_size or window_size) - 1, 1)  # a window of one token has only the offset 0
    offset = torch.arange(1 - window_size, window_size, dtype=torch.float32) / largest * 8
    offset = offset.sign() * torch.log2(1 + offset.abs()) / math.log2(8)  # [2w-1]
    return torch.stack(torch.meshgrid(offset, offset, indexing="ij"), dim=-1)[None]


def l2_normalize(x: Tensor) -> Tensor:
    """x / max(|x|, eps) over the last axis.

    F.normalize without its expand, which an exported graph would have to compute the shape for. eps is 1e-12, or the
    smallest normal number where the dtype has no 1e-12: a row of zeros must give zeros in FP16 too, not NaN.
    """
    eps = max(1e-12, torch.finfo(x.dtype).tiny)
    return x / x.norm(dim=-1, keepdim=True).clamp_min(eps)


class WindowAttentionV2(WindowAttentionBase):
    """V2: scaled cosine attention and log-spaced continuous position bias.

    Args:
        pretrained_window_size: window that the relative coordinates are normalised by; 0 = this window.
        The others as in the base class.
    """

    def __init__(self, dim: int, resolution: int, num_heads: int, window_size: int, shift_size: int, *,
                 pretrained_window_size: int = 0) -> None:
        super().__init__(dim, resolution, num_heads, window_size, shift_size, qkv_bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, CPB_HIDDEN_DIM), nn.ReLU(), nn.Linear(CPB_HIDDEN_DIM, num_heads, bias=False)
        )
        table = relative_coords_table(window_size, pretrained_window_size)
        self.register_buffer("relative_coords_table", table, persistent=False)
        self.register_buffer("scale", None, persistent=False)

    def fold_constants(self) -> None:
        super().fold_constants()
        self.scale = self._scale().detach()
        self.qkv.bias = nn.Parameter(self._qkv_bias().detach(), requires_grad=False)
        self.q_bias = self.v_bias = self.logit_scale = self.cpb_mlp = self.relative_coords_table = None

    def _qkv(self, x: Tensor) -> Tensor:
        if self.qkv.bias is not None:
            return self.qkv(x)  # folded: a call of the module, so that its name is in an exported graph
        return F.linear(x, self.qkv.weight, self._qkv_bias())

    def _qkv_bias(self) -> Tensor:
        """[3C]; k has none."""
        return torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))

    def _scale(self) -> Tensor:
        """What the cosine is multiplied by, [nH, 1, 1]."""
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp() if self.scale is None else self.scale

    def _similarity(self, qkv: Tensor) -> Tensor:
        unit = l2_normalize(qkv[:2])  # q and k at once: half the nodes of an exported graph
        return unit[0] @ unit[1].transpose(-2, -1) * self._scale()

    def _bias(self) -> Tensor:
        table = 16 * torch.sigmoid(self.cpb_mlp(self.relative_coords_table))  # (1, 2w-1, 2w-1, nH)
        return table.reshape(-1, self.num_heads)[self.relative_position_index].permute(2, 0, 1).contiguous()


class SwinTransformerBlockV2(SwinTransformerBlock):
    """Attention and MLP, each with LayerNorm after it, before it joins the residual (res-post-norm)."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, H*W, C] -> [B, H*W, C]"""
        x = x + self.norm1(self.attn(x))
        return x + self.norm2(self.mlp(x))


class PatchMergingV2(PatchMerging):
    """Each 2 x 2 tokens become one of twice the channels: Linear, then LayerNorm. Arguments as in V1's."""

    def __init__(self, dim: int, resolution: int) -> None:
        super().__init__(dim, resolution)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H*W, C] -> [B, H/2*W/2, 2C]"""
        return self.norm(self.reduction(self._gather(x)))


class SwinTransformerV2(SwinTransformer):
    """Swin Transformer V2 with a classification head.

    Args:
        pretrained_window_sizes: per stage, the window of the pre-training that this model was fine-tuned from; 0 = its
            own. The others as in V1, but for qk_scale: cosine attention has a logit_scale instead.
    """

    block, merging = SwinTransformerBlockV2, PatchMergingV2

    def __init__(self, *, pretrained_window_sizes: Sequence[int], **architecture) -> None:
        attentions = [partial(WindowAttentionV2, pretrained_window_size=size) for size in pretrained_window_sizes]
        super().__init__(attentions=attentions, **architecture)
        # Blocks begin as the identity, as in the official initialisation: deep post-norm networks train from there.
        for module in self.modules():
            if isinstance(module, SwinTransformerBlockV2):
                nn.init.zeros_(module.norm1.weight)
                nn.init.zeros_(module.norm2.weight)
