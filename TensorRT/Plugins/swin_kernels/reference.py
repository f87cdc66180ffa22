"""What each operator computes, in plain PyTorch: slow, FP32 inside, one statement a step. It runs where tensors are on
the CPU, and the kernels are compared with it.

Arguments as in operators.py. Results are FP32, the caller rounds them.
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GELU_FORMS = {1: "none", 2: "tanh"}  # of the argument gelu, as F.gelu calls them


def layer_norm(x: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], gamma, beta, epsilon)


def add_layer_norm(x: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    total = x.float() + residual.float()  # normalised as it is, before the caller rounds it
    return total, layer_norm(total, gamma, beta, epsilon)


def layer_norm_add(x: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
    return residual.float() + layer_norm(x, gamma, beta, epsilon)


def patch_embed(x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, epsilon: float,
                ceil: bool) -> Tensor:
    height, width = weight.shape[2:]
    if ceil:
        x = F.pad(x, (0, -x.shape[3] % width, 0, -x.shape[2] % height))
    return layer_norm(F.conv2d(x, weight, bias, stride=(height, width)).permute(0, 2, 3, 1), gamma, beta, epsilon)


def patch_merge(x: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float) -> Tensor:
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    four = torch.cat([x[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))], -1)
    return four if gamma is None else layer_norm(four, gamma, beta, epsilon)


def linear(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, gelu: int) -> Tensor:
    y = F.linear(x.float(), weight.float(), bias.float())
    y = F.gelu(y, approximate=GELU_FORMS[gelu]) if gelu else y
    return y if residual is None else y + residual.float()


def mlp(x: Tensor, gamma: Tensor, beta: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
        norm_first: bool, epsilon: float, attention: Tensor | None, proj_weight: Tensor | None,
        proj_bias: Tensor | None, proj_gamma: Tensor | None, proj_beta: Tensor | None, gelu: int) -> Tensor:
    x = x.float()
    if attention is not None:
        branch = linear(attention, proj_weight, proj_bias, None, 0)
        x = x + (branch if norm_first else layer_norm(branch, proj_gamma, proj_beta, epsilon))
    hidden = linear(layer_norm(x, gamma, beta, epsilon) if norm_first else x, weight1, bias1, None, gelu)
    branch = linear(hidden, weight2, bias2, None, 0)
    return x + (branch if norm_first else layer_norm(branch, gamma, beta, epsilon))


def _axis(size: int, window: int, shift: int, roll_first: bool, shift_if_covered: bool) -> tuple[Tensor, Tensor]:
    """Of an axis of `size` tokens, for each place of the padded and shifted axis: the token there (`size` where it is a
    padded one), and which of the regions that the shift brings together in the last window it belongs to.
    """
    padded = -(-size // window) * window
    if padded == window and not shift_if_covered:
        shift = 0
    place = torch.arange(padded)
    if roll_first:
        token = torch.where(place < size, (place + shift) % size, size)
    else:
        token = (place + shift) % padded
        token = token.clamp(max=size)
    return token, (place >= padded - shift).long()


def attention(qkv: Tensor, bias: Tensor, padding: Tensor, logit_scale: Tensor | None, num_heads: int,
              window: list[int], shift: list[int], scale: float, mask_value: float, roll_first: bool,
              shift_if_covered: bool) -> Tensor:
    batch, height, width, features = qkv.shape
    tokens = window[0] * window[1]
    row, row_region = _axis(height, window[0], shift[0], roll_first, shift_if_covered)
    column, column_region = _axis(width, window[1], shift[1], roll_first, shift_if_covered)

    def windows(grid: Tensor) -> Tensor:  # [Hp, Wp] -> [nW, N]
        grid = grid.reshape(len(row) // window[0], window[0], len(column) // window[1], window[1])
        return grid.transpose(1, 2).reshape(-1, tokens)

    outside = (row[:, None] == height) | (column[None, :] == width)
    source = windows(torch.where(outside, height * width, row[:, None] * width + column[None, :]))
    region = windows(2 * row_region[:, None] + column_region[None, :])

    flat = torch.cat([qkv.reshape(batch, -1, features), padding.to(qkv.dtype).expand(batch, 1, -1)], 1).float()
    parts = flat[:, source].reshape(batch, len(source), tokens, 3, num_heads, -1)  # (B, nW, N, 3, nH, d)
    q, k, v = parts.permute(3, 0, 1, 4, 2, 5)                                      # each (B, nW, nH, N, d)
    if logit_scale is None:
        scores = scale * q @ k.transpose(-2, -1)
    else:
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * logit_scale[:, None, None]
    scores = scores + bias[..., :tokens]
    scores = scores + mask_value * (region[:, None, :, None] != region[:, None, None, :])
    y = (scores.softmax(-1) @ v).transpose(2, 3).reshape(batch, -1, features // 3)  # (B, nW * N, C)
    inside = source.flatten() < height * width
    out = y.new_empty(batch, height * width, features // 3)
    out[:, source.flatten()[inside]] = y[:, inside]
    return out.reshape(batch, height, width, -1)
