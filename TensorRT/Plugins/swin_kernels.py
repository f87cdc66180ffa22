"""The CUDA kernels called from PyTorch through ctypes: libswin_kernels.so, without TensorRT.

Every function takes CUDA tensors, passes them as they are (no copy, no check but the kernel's own) to the C function
of the same name and raises RuntimeError where that refuses them. C interfaces: TensorRT/Plugins/*/*_kernel.h.
"""
from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from pathlib import Path

import torch

from utils import UserError

PLUGINS = Path(__file__).resolve().parent

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

LINEAR_WORKSPACE_BYTES = 32 << 20  # SWIN_LINEAR_WORKSPACE_BYTES
MLP_WORKSPACE_BYTES = LINEAR_WORKSPACE_BYTES + (64 << 20)  # SWIN_MLP_WORKSPACE_BYTES
ATTENTION_BRANCH_WORKSPACE_BYTES = 64 << 20  # SWIN_ATTENTION_BRANCH_WORKSPACE_BYTES

_pointer, _int, _long, _float = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong, ctypes.c_float
ARGUMENTS = {
    "swin_layernorm": [_pointer] * 4 + [_int, _long, _int, _float, _pointer],
    "swin_add_layernorm": [_pointer] * 6 + [_int, _long, _int, _float, _pointer],
    "swin_layernorm_add": [_pointer] * 5 + [_int, _long, _int, _float, _pointer],
    "swin_patch_merge": [_pointer] * 4 + [_int] * 5 + [_float, _pointer],
    "swin_patch_embed": [_pointer] * 6 + [_int] * 7 + [_float, _pointer],
    "swin_fnorm": [_pointer] * 2 + [_int, _long, _int, _float, _pointer],
    "swin_attention": [_pointer] * 4 + [_int] * 8 + [_float, _float, _pointer],
    "swin_linear": [_pointer] * 5 + [_int, _long, _int, _int, _int, _pointer, ctypes.c_size_t, _pointer],
    "swin_mlp": [_pointer] * 13 + [_int, _long, _int, _int, _int, _float, _pointer, ctypes.c_size_t, _pointer],
    "swin_linear_int8": [_pointer] * 6 + [_long, _int, _int, _int, _float, _pointer],
    "swin_layernorm_int8": [_pointer] * 4 + [_long, _int, _float, _float, _pointer],
    "swin_layernorm_add_int8": [_pointer] * 6 + [_long, _int, _float, _float, _float, _pointer],
    "swin_quantize": [_pointer] * 2 + [_long, _float, _pointer],
    "swin_attention_int8": [_pointer] * 4 + [_int] * 7 + [_float] * 4 + [_pointer],
    "swin_attention_branch_int8": [_pointer] * 14 + [_int] * 7 + [_float] * 7 + [_pointer, ctypes.c_size_t, _pointer],
}


@functools.cache
def library() -> ctypes.CDLL:
    """libswin_kernels.so: the file that $SWIN_KERNELS names, else one made here for this machine's GPU.

    Raises:
        UserError: it could not be made.
    """
    path = os.environ.get("SWIN_KERNELS")
    if not path:
        major, minor = torch.cuda.get_device_capability()
        build = f"build/sm_{major}{minor}"
        command = ["make", "-C", str(PLUGINS), "kernels", f"ARCHS={major}{minor}", f"BUILD={build}"]
        if subprocess.run(command).returncode:
            raise UserError(f"the kernels were not built, for the reason above; again with: {' '.join(command)}")
        path = str(PLUGINS / build / "libswin_kernels.so")
    lib = ctypes.CDLL(path)
    for name, types in ARGUMENTS.items():
        getattr(lib, name).argtypes = types
        getattr(lib, name).restype = _int
    return lib


def call(name: str, *arguments) -> None:
    """Call a C function on PyTorch's current stream; a tensor goes as its address, None as a null pointer."""
    plain = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
    status = getattr(library(), name)(*plain, torch.cuda.current_stream().cuda_stream)
    if status != 0:
        raise RuntimeError(f"{name}: CUDA error {status}")


def layernorm(x, gamma, beta, y, epsilon: float) -> None:
    """y = LN(x) [* gamma + beta] over the last axis; gamma and beta FP32 or None."""
    call("swin_layernorm", x, gamma, beta, y, TYPES[x.dtype], x.numel() // x.shape[-1], x.shape[-1], epsilon)


def add_layernorm(x, residual, gamma, beta, total, y, epsilon: float) -> None:
    """total = x + residual; y = LN(total) * gamma + beta, with total in FP32 there."""
    rows = x.numel() // x.shape[-1]
    call("swin_add_layernorm", x, residual, gamma, beta, total, y, TYPES[x.dtype], rows, x.shape[-1], epsilon)


def layernorm_add(x, residual, gamma, beta, y, epsilon: float) -> None:
    """y = residual + LN(x) * gamma + beta."""
    rows = x.numel() // x.shape[-1]
    call("swin_layernorm_add", x, residual, gamma, beta, y, TYPES[x.dtype], rows, x.shape[-1], epsilon)


def patch_merge(x, gamma, beta, y, height: int, width: int, epsilon: float) -> None:
    """x [B, height*width, C] -> y [B, height/2 * width/2, 4C], with LN where gamma and beta are given."""
    batch, _, channels = x.shape
    call("swin_patch_merge", x, gamma, beta, y, TYPES[x.dtype], batch, height, width, channels, epsilon)


def patch_embed(x, weight, bias, gamma, beta, y, epsilon: float) -> None:
    """x [B, Ci, H, W] -> y [B, H/P * W/P, C] = LN(conv(x, weight, stride P) + bias); all but y FP32."""
    batch, in_channels, height, width = x.shape
    call("swin_patch_embed", x, weight, bias, gamma, beta, y, TYPES[y.dtype], batch, in_channels, height, width,
         weight.shape[-1], weight.shape[0], epsilon)


def fnorm(x, y, epsilon: float) -> None:
    """y = x / max(|x|_2, epsilon) over the last axis."""
    call("swin_fnorm", x, y, TYPES[x.dtype], x.numel() // x.shape[-1], x.shape[-1], epsilon)


def attention(qkv, bias, logit_scale, y, height: int, width: int, num_heads: int, window_size: int, shift_size: int,
              scale: float, mask_value: float) -> None:
    """Window attention of qkv [B, height*width, 3C] into y [B, height*width, C]; bias is padded to [nH, N, Np]."""
    channels = qkv.shape[-1] // 3
    call("swin_attention", qkv, bias, logit_scale, y, TYPES[qkv.dtype], qkv.shape[0], height, width, channels,
         num_heads, window_size, shift_size, scale, mask_value)


def linear(x, weight, bias, residual, y, gelu: bool) -> None:
    """y = act(x weight^T + bias) [+ residual] over the last axis; act is the exact GELU where `gelu`.

    The workspace comes from PyTorch's allocator, so calls on other streams have others.
    """
    workspace = torch.empty(LINEAR_WORKSPACE_BYTES, dtype=torch.uint8, device=x.device)
    out_features, in_features = weight.shape
    call("swin_linear", x, weight, bias, residual, y, TYPES[x.dtype], x.numel() // in_features, in_features,
         out_features, int(gelu), workspace, LINEAR_WORKSPACE_BYTES)


def mlp(x, gamma, beta, weight1, bias1, weight2, bias2, y, norm_first: bool, epsilon: float, attention=None,
        proj_weight=None, proj_bias=None, proj_gamma=None, proj_beta=None,
        workspace_bytes: int = MLP_WORKSPACE_BYTES) -> None:
    """y = x + fc2(GELU(fc1(LN(x)))) where `norm_first`, else x + LN(fc2(GELU(fc1(x)))); weights as `linear`'s.

    With attention [..., C], x + proj(attention) or x + LN(proj(attention)) takes the place of x.
    """
    workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=x.device)
    hidden, width = weight1.shape
    call("swin_mlp", x, gamma, beta, weight1, bias1, weight2, bias2, attention, proj_weight, proj_bias, proj_gamma,
         proj_beta, y, TYPES[x.dtype], x.numel() // width, width, hidden, int(norm_first), epsilon, workspace,
         workspace_bytes)


def linear_int8(x, weight, scale, bias, residual, y, gelu: int, y_scale: float) -> None:
    """y = act((x weight^T) * scale + bias) [+ residual]; x and weight INT8; y FP16 with y_scale 0, else INT8."""
    out_features, in_features = weight.shape
    call("swin_linear_int8", x, weight, scale, bias, residual, y, x.numel() // in_features, in_features, out_features,
         gelu, y_scale)


def layernorm_int8(x, gamma, beta, y_q, epsilon: float, y_scale: float) -> None:
    """y_q = LN(x) * gamma + beta as INT8; x FP16."""
    rows = x.numel() // x.shape[-1]
    call("swin_layernorm_int8", x, gamma, beta, y_q, rows, x.shape[-1], epsilon, y_scale)


def layernorm_add_int8(x, residual, gamma, beta, y, y_q, epsilon: float, x_scale: float, y_scale: float) -> None:
    """y = residual + LN(x) * gamma + beta in FP16, and y_q the same as INT8; x FP16 with x_scale 0, else INT8."""
    rows = x.numel() // x.shape[-1]
    call("swin_layernorm_add_int8", x, residual, gamma, beta, y, y_q, rows, x.shape[-1], epsilon, x_scale, y_scale)


def quantize(x, y_q, y_scale: float) -> None:
    """y_q = x as INT8; x FP16."""
    call("swin_quantize", x, y_q, x.numel(), y_scale)


def attention_int8(qkv, bias, logit_scale, y, height: int, width: int, num_heads: int, window_size: int,
                   shift_size: int, scale: float, mask_value: float, qkv_scale: float, y_scale: float) -> None:
    """`attention` of qkv * qkv_scale; qkv INT8; y FP16 with y_scale 0, else INT8."""
    call("swin_attention_int8", qkv, bias, logit_scale, y, qkv.shape[0], height, width, qkv.shape[-1] // 3, num_heads,
         window_size, shift_size, scale, mask_value, qkv_scale, y_scale)


def attention_branch_int8(x_q, x, qkv_weight, qkv_factor, qkv_bias, proj_weight, proj_factor, proj_bias, bias, gamma,
                          beta, logit_scale, y, y_q, height: int, width: int, num_heads: int, window_size: int,
                          shift_size: int, norm_first: bool, scale: float, mask_value: float, qkv_scale: float,
                          attention_scale: float, proj_scale: float, epsilon: float, y_scale: float,
                          workspace_bytes: int = ATTENTION_BRANCH_WORKSPACE_BYTES) -> None:
    """y = x + proj(attention(qkv(x_q))) and y_q = LN(y) where `norm_first`, else y = x + LN(proj(...)) and y_q = y.

    x_q [B, height*width, C] and weights INT8, x and y FP16, y_q INT8; as `linear_int8`, `attention_int8` and the
    LayerNorms. proj_scale is 0 and logit_scale None where `norm_first`.
    """
    workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=x.device)
    call("swin_attention_branch_int8", x_q, x, qkv_weight, qkv_factor, qkv_bias, proj_weight, proj_factor, proj_bias,
         bias, gamma, beta, logit_scale, y, y_q, x.shape[0], height, width, num_heads, window_size, shift_size,
         int(norm_first), scale, mask_value, qkv_scale, attention_scale, proj_scale, epsilon, y_scale, workspace,
         workspace_bytes)
