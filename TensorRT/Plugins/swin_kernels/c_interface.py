"""The CUDA kernels called from PyTorch through ctypes: libswin_kernels.so, without TensorRT.

Every function takes contiguous CUDA tensors, passes them as they are to the C function of the same name and raises
RuntimeError where that refuses them. C interfaces: TensorRT/Plugins/*/*_kernel.h, whose
structures ARGUMENTS repeats field by field (tests/test_plugins_build.py compares them). operators.py makes operators of
them that check what they are given.
"""
from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
PLUGINS = HERE.parent  # in the source tree: the kernels and their Makefile

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

LINEAR_WORKSPACE_BYTES = 32 << 20  # SWIN_LINEAR_WORKSPACE_BYTES
MLP_WORKSPACE_BYTES = LINEAR_WORKSPACE_BYTES + (64 << 20)  # SWIN_MLP_WORKSPACE_BYTES
ATTENTION_BRANCH_WORKSPACE_BYTES = 64 << 20  # SWIN_ATTENTION_BRANCH_WORKSPACE_BYTES

NOT_FOR_THIS_GPU = (98, 209)  # cudaErrorInvalidDeviceFunction, cudaErrorNoKernelImageForDevice

_KINDS = {"pointer": ctypes.c_void_p, "int": ctypes.c_int, "long": ctypes.c_longlong, "float": ctypes.c_float,
          "size": ctypes.c_size_t}


def _structure(name: str, *groups: str) -> type[ctypes.Structure]:
    """A C structure; each group is a kind of _KINDS and the names of neighbouring fields of that kind."""
    fields = [(field, _KINDS[group.split()[0]]) for group in groups for field in group.split()[1:]]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_ATTENTION = ("int batch height width channels num_heads",
              "int window_height window_width shift_height shift_width roll_first shift_if_covered")
_WORKSPACE = ("pointer workspace", "size workspace_bytes")
ARGUMENTS: dict[str, type[ctypes.Structure]] = {  # of each C function
    "swin_layernorm": _structure(
        "SwinLayerNorm", "pointer x gamma beta y", "long rows", "int type width", "float epsilon"),
    "swin_add_layernorm": _structure(
        "SwinAddLayerNorm", "pointer x residual gamma beta sum y", "long rows", "int type width", "float epsilon"),
    "swin_layernorm_add": _structure(
        "SwinLayerNormAdd", "pointer x residual gamma beta y", "long rows", "int type width", "float epsilon"),
    "swin_patch_merge": _structure(
        "SwinPatchMerge", "pointer x gamma beta y", "int type batch height width channels", "float epsilon"),
    "swin_patch_embed": _structure(
        "SwinPatchEmbed", "pointer x weight bias gamma beta y",
        "int y_type batch in_channels height width patch_height patch_width ceil channels", "float epsilon"),
    "swin_fnorm": _structure("SwinFNorm", "pointer x y", "long rows", "int type width", "float epsilon"),
    "swin_attention": _structure(
        "SwinAttention", "pointer qkv bias padding logit_scale y", "int type", *_ATTENTION, "float scale mask_value",
        "int plain_fp32"),
    "swin_linear": _structure(
        "SwinLinear", "pointer x weight bias residual y", "long rows", "int type in_features out_features gelu",
        *_WORKSPACE, "int tile plain_fp32"),
    "swin_mlp": _structure(
        "SwinMlp", "pointer x gamma beta weight1 bias1 weight2 bias2",
        "pointer attention proj_weight proj_bias proj_gamma proj_beta y",
        "long rows", "int type width hidden norm_first gelu", "float epsilon", *_WORKSPACE, "int plain_fp32"),
    "swin_linear_int8": _structure(
        "SwinLinearInt8", "pointer x weight scale bias residual y", "long rows", "int in_features out_features gelu",
        "float y_scale", "int tile"),
    "swin_layernorm_int8": _structure(
        "SwinLayerNormInt8", "pointer x gamma beta y_q", "long rows", "int width", "float epsilon y_scale"),
    "swin_layernorm_add_int8": _structure(
        "SwinLayerNormAddInt8", "pointer x residual gamma beta y y_q", "long rows", "int width",
        "float epsilon x_scale y_scale"),
    "swin_quantize": _structure("SwinQuantize", "pointer x y_q", "long count", "float y_scale"),
    "swin_attention_int8": _structure(
        "SwinAttentionInt8", "pointer qkv bias padding logit_scale y", *_ATTENTION,
        "float scale mask_value qkv_scale y_scale"),
    "swin_attention_branch_int8": _structure(
        "SwinAttentionBranchInt8",
        "pointer x_q x qkv_weight qkv_factor qkv_bias proj_weight proj_factor proj_bias",
        "pointer bias gamma beta logit_scale y y_q",
        "int batch height width num_heads",
        "int window_height window_width shift_height shift_width roll_first shift_if_covered norm_first",
        "float scale mask_value qkv_scale attention_scale proj_scale epsilon y_scale", *_WORKSPACE),
}


class LibraryError(RuntimeError):
    """libswin_kernels.so is not there, is another one, or could not be made."""


@functools.cache
def library() -> ctypes.CDLL:
    """libswin_kernels.so: the file that $SWIN_KERNELS names, else the one beside this file, as pip installs it, else in
    the source tree one made here for this machine's GPU.

    Raises:
        LibraryError: as its name says.
    """
    path = Path(os.environ.get("SWIN_KERNELS") or HERE / "libswin_kernels.so")
    if "SWIN_KERNELS" not in os.environ and not path.is_file():
        path = _made_here()
    try:
        lib = ctypes.CDLL(str(path))
        for name, structure in ARGUMENTS.items():
            getattr(lib, name).argtypes = [ctypes.POINTER(structure), ctypes.c_void_p]
            getattr(lib, name).restype = ctypes.c_int
    except (OSError, AttributeError) as problem:
        raise LibraryError(f"{path}: is not the kernels of this version ({problem}); make them again: "
                           "make -C TensorRT/Plugins kernels, or pip install TensorRT/Plugins") from problem
    return lib


def _made_here() -> Path:
    """libswin_kernels.so by the Makefile of the source tree, for the GPU of this machine."""
    if not (PLUGINS / "Makefile").is_file():
        raise LibraryError(f"{HERE}: has no libswin_kernels.so; install the package again where nvcc is, or set "
                           "SWIN_KERNELS to the file")
    if not torch.cuda.is_available():
        raise LibraryError("no GPU that PyTorch can use, so no kernels for it; set SWIN_KERNELS to libswin_kernels.so, "
                           "or make it with the architectures in ARCHS")
    major, minor = torch.cuda.get_device_capability()
    build = f"build/sm_{major}{minor}"
    command = ["make", "-C", str(PLUGINS), "kernels", f"ARCHS={major}{minor}", f"BUILD={build}"]
    if subprocess.run(command).returncode:
        raise LibraryError(f"the kernels were not built, for the reason above; again with: {' '.join(command)}")
    return PLUGINS / build / "libswin_kernels.so"


def filled(name: str, **fields) -> ctypes.Structure:
    """The argument of C function `name`; a tensor goes as its address, None as a null pointer.

    Raises:
        TypeError: a field is missing, or there is no such field.
    """
    structure = ARGUMENTS[name]
    expected = [field for field, _ in structure._fields_]
    if fields.keys() != set(expected):
        raise TypeError(f"{name} takes {', '.join(expected)}; got {', '.join(fields)}")
    return structure(**{
        field: value.data_ptr() if isinstance(value, torch.Tensor) else value for field, value in fields.items()})


def call(name: str, **fields) -> None:
    """Call a C function on PyTorch's current stream with its structure's fields by name.

    Raises:
        ValueError: a tensor is not on a GPU, or not contiguous: the function would read something else.
        RuntimeError: the function refuses its argument, the library has no code for the GPU, or the launch failed.
    """
    for field, value in fields.items():
        if isinstance(value, torch.Tensor) and not (value.is_cuda and value.is_contiguous()):
            raise ValueError(f"{name}: {field} is {'not contiguous' if value.is_cuda else f'on {value.device}'}; the "
                             "kernels take contiguous tensors on the GPU")
    argument = filled(name, **fields)
    status = getattr(library(), name)(ctypes.byref(argument), torch.cuda.current_stream().cuda_stream)
    if status in NOT_FOR_THIS_GPU:
        arch = "{}{}".format(*torch.cuda.get_device_capability())
        raise RuntimeError(f"{name}: the library has no code for this GPU, sm_{arch}; make it again: make -C "
                           f"TensorRT/Plugins kernels ARCHS={arch}, or ARCHS={arch} pip install TensorRT/Plugins")
    if status != 0:
        raise RuntimeError(f"{name}: CUDA error {status}")


def _rows_of(x: torch.Tensor) -> dict[str, int]:
    """What the row kernels are told of x [..., width]."""
    return {"rows": x.numel() // x.shape[-1], "type": TYPES[x.dtype], "width": x.shape[-1]}


def layernorm(x, gamma, beta, y, epsilon: float) -> None:
    """y = LN(x) [* gamma + beta] over the last axis; gamma and beta FP32 or None."""
    call("swin_layernorm", x=x, gamma=gamma, beta=beta, y=y, **_rows_of(x), epsilon=epsilon)


def add_layernorm(x, residual, gamma, beta, total, y, epsilon: float) -> None:
    """total = x + residual; y = LN(total) * gamma + beta, with total in FP32 there."""
    call("swin_add_layernorm", x=x, residual=residual, gamma=gamma, beta=beta, sum=total, y=y, **_rows_of(x),
         epsilon=epsilon)


def layernorm_add(x, residual, gamma, beta, y, epsilon: float) -> None:
    """y = residual + LN(x) * gamma + beta."""
    call("swin_layernorm_add", x=x, residual=residual, gamma=gamma, beta=beta, y=y, **_rows_of(x), epsilon=epsilon)


def patch_merge(x, gamma, beta, y, epsilon: float) -> None:
    """x [B, H, W, C] -> y [B, ceil(H/2), ceil(W/2), 4C], odd sides padded with zeros; LN where gamma and beta are."""
    batch, height, width, channels = x.shape
    call("swin_patch_merge", x=x, gamma=gamma, beta=beta, y=y, type=TYPES[x.dtype], batch=batch, height=height,
         width=width, channels=channels, epsilon=epsilon)


def patch_embed(x, weight, bias, gamma, beta, y, epsilon: float, ceil: bool = False) -> None:
    """x [B, Ci, H, W] -> y [B, h, w, C] = LN(conv(x, weight, stride P) + bias); all but y FP32.

    P is weight's height and width. Where it does not divide H or W, what is left over is not read, or with `ceil`
    padded with zeros to a patch.
    """
    batch, in_channels, height, width = x.shape
    channels, _, patch_height, patch_width = weight.shape
    call("swin_patch_embed", x=x, weight=weight, bias=bias, gamma=gamma, beta=beta, y=y, y_type=TYPES[y.dtype],
         batch=batch, in_channels=in_channels, height=height, width=width, patch_height=patch_height,
         patch_width=patch_width, ceil=int(ceil), channels=channels, epsilon=epsilon)


def fnorm(x, y, epsilon: float) -> None:
    """y = x / max(|x|_2, epsilon) over the last axis."""
    call("swin_fnorm", x=x, y=y, **_rows_of(x), epsilon=epsilon)


def _windows_of(qkv: torch.Tensor, num_heads: int, window: tuple[int, int], shift: tuple[int, int], roll_first: bool,
                shift_if_covered: bool) -> dict[str, int]:
    """What the attention kernels are told of qkv [B, H, W, 3C] and its windows."""
    batch, height, width, features = qkv.shape
    return {"batch": batch, "height": height, "width": width, "channels": features // 3, "num_heads": num_heads,
            "window_height": window[0], "window_width": window[1], "shift_height": shift[0], "shift_width": shift[1],
            "roll_first": int(roll_first), "shift_if_covered": int(shift_if_covered)}


def attention(qkv, bias, padding, logit_scale, y, num_heads: int, window: tuple[int, int], shift: tuple[int, int],
              scale: float, mask_value: float, roll_first: bool = False, shift_if_covered: bool = True,
              plain_fp32: int = 0) -> None:
    """Window attention of qkv [B, H, W, 3C] into y [B, H, W, C].

    bias is padded to [nH, N, Np]; padding [3C] FP32 (None where windows divide H and W); logit_scale [nH] FP32 or
    None; window and shift are (height, width) in tokens. plain_fp32: of FP32, 1 for CUDA cores, -1 for tensor cores, 0
    for the default.
    """
    call("swin_attention", qkv=qkv, bias=bias, padding=padding, logit_scale=logit_scale, y=y, type=TYPES[qkv.dtype],
         **_windows_of(qkv, num_heads, window, shift, roll_first, shift_if_covered), scale=scale,
         mask_value=mask_value, plain_fp32=plain_fp32)


def linear(x, weight, bias, residual, y, gelu: int, tile: int = 0, plain_fp32: bool = False) -> None:
    """y = act(x weight^T + bias) [+ residual] over the last axis; act is GELU where `gelu` is 1, its tanh form with 2.

    The workspace comes from PyTorch's allocator, so calls on other streams have others.
    """
    workspace = torch.empty(LINEAR_WORKSPACE_BYTES, dtype=torch.uint8, device=x.device)
    out_features, in_features = weight.shape
    call("swin_linear", x=x, weight=weight, bias=bias, residual=residual, y=y, rows=x.numel() // in_features,
         type=TYPES[x.dtype], in_features=in_features, out_features=out_features, gelu=int(gelu), tile=tile,
         plain_fp32=int(plain_fp32), workspace=workspace, workspace_bytes=LINEAR_WORKSPACE_BYTES)


def mlp(x, gamma, beta, weight1, bias1, weight2, bias2, y, norm_first: bool, epsilon: float, attention=None,
        proj_weight=None, proj_bias=None, proj_gamma=None, proj_beta=None,
        workspace_bytes: int = MLP_WORKSPACE_BYTES, plain_fp32: bool = False, gelu: int = 1) -> None:
    """y = x + fc2(GELU(fc1(LN(x)))) where `norm_first`, else x + LN(fc2(GELU(fc1(x)))); weights as `linear`'s.

    gelu is 2 for GELU's tanh form. With attention [..., C], x + proj(attention) or x + LN(proj(attention)) takes the
    place of x.
    """
    workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=x.device)
    hidden, width = weight1.shape
    call("swin_mlp", x=x, gamma=gamma, beta=beta, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2,
         attention=attention, proj_weight=proj_weight, proj_bias=proj_bias, proj_gamma=proj_gamma, proj_beta=proj_beta,
         y=y, rows=x.numel() // width, type=TYPES[x.dtype], width=width, hidden=hidden, norm_first=int(norm_first),
         gelu=gelu, epsilon=epsilon, workspace=workspace, workspace_bytes=workspace_bytes, plain_fp32=int(plain_fp32))


def linear_int8(x, weight, scale, bias, residual, y, gelu: int, y_scale: float, tile: int = 0) -> None:
    """y = act((x weight^T) * scale + bias) [+ residual]; x and weight INT8; y FP16 with y_scale 0, else INT8.

    gelu as `linear`'s.
    """
    out_features, in_features = weight.shape
    call("swin_linear_int8", x=x, weight=weight, scale=scale, bias=bias, residual=residual, y=y,
         rows=x.numel() // in_features, in_features=in_features, out_features=out_features, gelu=gelu, tile=tile,
         y_scale=y_scale)


def layernorm_int8(x, gamma, beta, y_q, epsilon: float, y_scale: float) -> None:
    """y_q = LN(x) * gamma + beta as INT8; x FP16."""
    call("swin_layernorm_int8", x=x, gamma=gamma, beta=beta, y_q=y_q, rows=x.numel() // x.shape[-1], width=x.shape[-1],
         epsilon=epsilon, y_scale=y_scale)


def layernorm_add_int8(x, residual, gamma, beta, y, y_q, epsilon: float, x_scale: float, y_scale: float) -> None:
    """y = residual + LN(x) * gamma + beta in FP16, and y_q the same as INT8; x FP16 with x_scale 0, else INT8."""
    call("swin_layernorm_add_int8", x=x, residual=residual, gamma=gamma, beta=beta, y=y, y_q=y_q,
         rows=x.numel() // x.shape[-1], width=x.shape[-1], epsilon=epsilon, x_scale=x_scale, y_scale=y_scale)


def quantize(x, y_q, y_scale: float) -> None:
    """y_q = x as INT8; x FP16."""
    call("swin_quantize", x=x, y_q=y_q, count=x.numel(), y_scale=y_scale)


def attention_int8(qkv, bias, padding, logit_scale, y, num_heads: int, window: tuple[int, int],
                   shift: tuple[int, int], scale: float, mask_value: float, qkv_scale: float, y_scale: float,
                   roll_first: bool = False, shift_if_covered: bool = True) -> None:
    """`attention` of qkv * qkv_scale; qkv INT8, padding FP32; y FP16 with y_scale 0, else INT8."""
    call("swin_attention_int8", qkv=qkv, bias=bias, padding=padding, logit_scale=logit_scale, y=y,
         **_windows_of(qkv, num_heads, window, shift, roll_first, shift_if_covered), scale=scale,
         mask_value=mask_value, qkv_scale=qkv_scale, y_scale=y_scale)


def attention_branch_int8(x_q, x, qkv_weight, qkv_factor, qkv_bias, proj_weight, proj_factor, proj_bias, bias, gamma,
                          beta, logit_scale, y, y_q, num_heads: int, window: tuple[int, int], shift: tuple[int, int],
                          norm_first: bool, scale: float, mask_value: float, qkv_scale: float,
                          attention_scale: float, proj_scale: float, epsilon: float, y_scale: float,
                          workspace_bytes: int = ATTENTION_BRANCH_WORKSPACE_BYTES) -> None:
    """y = x + proj(attention(qkv(x_q))) and y_q = LN(y) where `norm_first`, else y = x + LN(proj(...)) and y_q = y.

    x_q [B, H, W, C] and weights INT8, x and y FP16, y_q INT8; as `linear_int8`, `attention_int8` and the LayerNorms.
    Windows are squares that divide H and W. proj_scale is 0 and logit_scale None where `norm_first`.
    """
    workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=x.device)
    windows = _windows_of(x, num_heads, window, shift, roll_first=False, shift_if_covered=True)
    del windows["channels"]
    call("swin_attention_branch_int8", x_q=x_q, x=x, qkv_weight=qkv_weight, qkv_factor=qkv_factor, qkv_bias=qkv_bias,
         proj_weight=proj_weight, proj_factor=proj_factor, proj_bias=proj_bias, bias=bias, gamma=gamma, beta=beta,
         logit_scale=logit_scale, y=y, y_q=y_q, **windows, norm_first=int(norm_first), scale=scale,
         mask_value=mask_value, qkv_scale=qkv_scale, attention_scale=attention_scale, proj_scale=proj_scale,
         epsilon=epsilon, y_scale=y_scale, workspace=workspace, workspace_bytes=workspace_bytes)
