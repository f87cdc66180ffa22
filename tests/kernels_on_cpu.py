"""The C functions of the kernels in Python: `compute` does by reference.py what a function does with its structure.

For tests of what calls the kernels (PyTorch's operators, onnxruntime's), on memory of the CPU.
"""
from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from TensorRT.Plugins.swin_kernels import c_interface, reference

TYPES = {number: dtype for dtype, number in c_interface.TYPES.items()}


def at(address: int | None, dtype: torch.dtype, *shape: int) -> Tensor | None:
    """The tensor in memory at an address."""
    if not address:
        return None
    count = int(np.prod(shape))
    buffer = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)


def compute(name: str, a: ctypes.Structure) -> None:
    """What a C function does with its structure, by reference.py."""
    f32, dtype = torch.float32, TYPES[a.y_type if name == "swin_patch_embed" else a.type]
    if name in ("swin_layernorm", "swin_add_layernorm", "swin_layernorm_add", "swin_fnorm"):
        x, y = (at(address, dtype, a.rows, a.width) for address in (a.x, a.y))
        if name == "swin_fnorm":
            y.copy_(torch.nn.functional.normalize(x.float(), dim=-1, eps=a.epsilon))
            return
        norm = at(a.gamma, f32, a.width), at(a.beta, f32, a.width), a.epsilon
        if name == "swin_layernorm":
            y.copy_(reference.layer_norm(x, *norm))
        elif name == "swin_layernorm_add":
            y.copy_(reference.layer_norm_add(x, at(a.residual, dtype, a.rows, a.width), *norm))
        else:
            total, normed = reference.add_layer_norm(x, at(a.residual, dtype, a.rows, a.width), *norm)
            at(a.sum, dtype, a.rows, a.width).copy_(total)
            y.copy_(normed)
    elif name == "swin_patch_merge":
        size = a.batch, -(-a.height // 2), -(-a.width // 2), 4 * a.channels
        x = at(a.x, dtype, a.batch, a.height, a.width, a.channels)
        norm = at(a.gamma, f32, 4 * a.channels), at(a.beta, f32, 4 * a.channels), a.epsilon
        at(a.y, dtype, *size).copy_(reference.patch_merge(x, *norm))
    elif name == "swin_patch_embed":
        x = at(a.x, f32, a.batch, a.in_channels, a.height, a.width)
        weight = at(a.weight, f32, a.channels, a.in_channels, a.patch_height, a.patch_width)
        y = reference.patch_embed(x, weight, *(at(address, f32, a.channels) for address in (a.bias, a.gamma, a.beta)),
                                  a.epsilon, bool(a.ceil))
        at(a.y, dtype, *y.shape).copy_(y)
    elif name == "swin_attention":
        tokens = a.window_height * a.window_width
        y = reference.attention(
            at(a.qkv, dtype, a.batch, a.height, a.width, 3 * a.channels),
            at(a.bias, f32, a.num_heads, tokens, -(-tokens // 8) * 8), at(a.padding, f32, 3 * a.channels),
            at(a.logit_scale, f32, a.num_heads), a.num_heads, [a.window_height, a.window_width],
            [a.shift_height, a.shift_width], a.scale, a.mask_value, bool(a.roll_first), bool(a.shift_if_covered))
        at(a.y, dtype, *y.shape).copy_(y)
    elif name == "swin_linear":
        assert a.workspace and a.workspace_bytes == c_interface.LINEAR_WORKSPACE_BYTES and a.tile == 0
        y = reference.linear(
            at(a.x, dtype, a.rows, a.in_features), at(a.weight, dtype, a.out_features, a.in_features),
            at(a.bias, dtype, a.out_features), at(a.residual, dtype, a.rows, a.out_features), a.gelu)
        at(a.y, dtype, a.rows, a.out_features).copy_(y)
    else:
        assert a.workspace and a.workspace_bytes == c_interface.MLP_WORKSPACE_BYTES
        c = a.width
        y = reference.mlp(
            at(a.x, dtype, a.rows, c), at(a.gamma, f32, c), at(a.beta, f32, c), at(a.weight1, dtype, a.hidden, c),
            at(a.bias1, dtype, a.hidden), at(a.weight2, dtype, c, a.hidden), at(a.bias2, dtype, c),
            bool(a.norm_first), a.epsilon, at(a.attention, dtype, a.rows, c), at(a.proj_weight, dtype, c, c),
            at(a.proj_bias, dtype, c), at(a.proj_gamma, f32, c), at(a.proj_beta, f32, c), a.gelu)
        at(a.y, dtype, a.rows, c).copy_(y)
