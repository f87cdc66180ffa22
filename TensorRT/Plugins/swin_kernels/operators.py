"""The kernels as PyTorch operators, torch.ops.swin_kernels.*: they check what they are given, allocate what they return
and run under torch.compile, torch.export and CUDA graphs.

On the GPU they call libswin_kernels.so through ctypes on PyTorch's current stream; on the CPU they compute the same in
plain PyTorch (reference.py). Tensors that are not contiguous are copied. Inference only: where autograd would need a
backward pass they raise. The linear layers and the MLP use 32 and 96 MiB of workspace from PyTorch's allocator, which
has it back when the call returns; the first call of a shape must be outside of a CUDA graph's capture.

Activations are float32, float16 or bfloat16, all of one call the same; gamma, beta, attention's bias, padding and
logit_scale are float32. Everything else raises TypeError or ValueError, with the operator's name and what is wrong.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import c_interface, reference

# Of each copy of this package its own, so that two of them, or two versions, can be in one process.
NAMESPACE = __package__.replace(".", "_")

WIDEST_ROW = 8192  # SWIN_MAX_WIDTH
LARGEST_PATCH = 4096  # SWIN_MAX_PATCH
WIDEST_HEAD = 64
LARGEST_WINDOW = 32  # a side


# --- checks ----------------------------------------------------------------------------------------------------------

def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_type(operator: str, dtype: torch.dtype) -> None:
    if dtype not in c_interface.TYPES:
        raise TypeError(f"{operator}: activations of {_name(dtype)}; the kernels take float32, float16 and bfloat16")


def _check(operator: str, device: torch.device, dtype: torch.dtype,
           tensors: dict[str, tuple[Tensor | None, Sequence[int] | None]]) -> None:
    """Each tensor that is there has this device, this type and its shape (None: any)."""
    for name, (tensor, shape) in tensors.items():
        if tensor is None:
            continue
        if tensor.device != device:
            raise ValueError(f"{operator}: {name} is on {tensor.device}, the first tensor on {device}")
        if tensor.dtype != dtype:
            raise TypeError(f"{operator}: {name} is {_name(tensor.dtype)}; it must be {_name(dtype)}")
        if shape is not None and tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{operator}: {name} is {list(tensor.shape)}; it must be {list(shape)}")


def _check_row(operator: str, x: Tensor, width: int) -> None:
    if x.ndim < 1 or not 1 <= width <= WIDEST_ROW:
        raise ValueError(f"{operator}: rows of {width} elements; the kernels take 1 to {WIDEST_ROW}")


def _check_rank(operator: str, name: str, tensor: Tensor, axes: str) -> None:
    if tensor.ndim != len(axes.split()):
        raise ValueError(f"{operator}: {name} is {list(tensor.shape)}; it must be [{', '.join(axes.split())}]")


# --- what each operator returns: checked and allocated, also for fake tensors ----------------------------------------

def _layer_norm(x: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float) -> Tensor:
    _check_type("layer_norm", x.dtype)
    _check_row("layer_norm", x, x.shape[-1] if x.ndim else 0)
    if (gamma is None) != (beta is None):
        raise ValueError("layer_norm: gamma and beta come together, or not at all")
    _check("layer_norm", x.device, torch.float32, {"gamma": (gamma, x.shape[-1:]), "beta": (beta, x.shape[-1:])})
    return x.new_empty(x.shape)


def _residual_norm(operator: str, x: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    _check_type(operator, x.dtype)
    _check_row(operator, x, x.shape[-1] if x.ndim else 0)
    _check(operator, x.device, x.dtype, {"residual": (residual, x.shape)})
    _check(operator, x.device, torch.float32, {"gamma": (gamma, x.shape[-1:]), "beta": (beta, x.shape[-1:])})
    return x.new_empty(x.shape)


def _add_layer_norm(x: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    return _residual_norm("add_layer_norm", x, residual, gamma, beta), x.new_empty(x.shape)


def _layer_norm_add(x: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
    return _residual_norm("layer_norm_add", x, residual, gamma, beta)


def _patch_embed(x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, epsilon: float,
                 dtype: torch.dtype, ceil: bool = False) -> Tensor:
    operator = "patch_embed"
    _check_type(operator, dtype)
    _check_rank(operator, "x", x, "B Ci H W")
    _check_rank(operator, "weight", weight, "C Ci height width")
    channels, of_image, height, width = weight.shape
    if x.shape[1] != of_image:
        raise ValueError(f"{operator}: images of {x.shape[1]} channels; the weight takes {of_image}")
    if of_image * height * width > LARGEST_PATCH:
        raise ValueError(f"{operator}: patches of {of_image * height * width} elements; the kernel takes "
                         f"{LARGEST_PATCH}")
    _check_row(operator, x, channels)
    _check(operator, x.device, torch.float32, {
        "x": (x, None), "weight": (weight, None), "bias": (bias, [channels]), "gamma": (gamma, [channels]),
        "beta": (beta, [channels])})
    more = (height - 1, width - 1) if ceil else (0, 0)
    return x.new_empty((x.shape[0], (x.shape[2] + more[0]) // height, (x.shape[3] + more[1]) // width, channels),
                       dtype=dtype)


def _patch_merge(x: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float) -> Tensor:
    operator = "patch_merge"
    _check_type(operator, x.dtype)
    _check_rank(operator, "x", x, "B H W C")
    batch, height, width, channels = x.shape
    _check_row(operator, x, 4 * channels)
    if (gamma is None) != (beta is None):
        raise ValueError(f"{operator}: gamma and beta come together, or not at all")
    _check(operator, x.device, torch.float32, {"gamma": (gamma, [4 * channels]), "beta": (beta, [4 * channels])})
    return x.new_empty((batch, (height + 1) // 2, (width + 1) // 2, 4 * channels))


def _attention(qkv: Tensor, bias: Tensor, padding: Tensor, logit_scale: Tensor | None, num_heads: int,
               window: Sequence[int], shift: Sequence[int], scale: float, mask_value: float = -100.0,
               roll_first: bool = False, shift_if_covered: bool = True) -> Tensor:
    operator = "attention"
    _check_type(operator, qkv.dtype)
    _check_rank(operator, "qkv", qkv, "B H W 3C")
    batch, height, width, features = qkv.shape
    if 0 in (batch, height, width):
        raise ValueError(f"{operator}: qkv is {list(qkv.shape)}; it holds no token")
    if num_heads < 1 or features % (3 * num_heads):
        raise ValueError(f"{operator}: qkv has {features} channels, which are not q, k and v of {num_heads} heads")
    head = features // (3 * num_heads)
    if head % 8 or not 8 <= head <= WIDEST_HEAD:
        raise ValueError(f"{operator}: heads of {head} channels; the kernel takes multiples of 8 up to {WIDEST_HEAD} "
                         "(pad the weights of qkv and proj with zeros)")
    if len(window) != 2 or len(shift) != 2 or not all(1 <= side <= LARGEST_WINDOW for side in window):
        raise ValueError(f"{operator}: windows of {list(window)} tokens; the kernel takes [height, width] of 1 to "
                         f"{LARGEST_WINDOW} each")
    if not all(0 <= step < side for step, side in zip(shift, window)):
        raise ValueError(f"{operator}: a shift of {list(shift)} in windows of {list(window)}; it must be smaller")
    tokens = window[0] * window[1]
    _check(operator, qkv.device, torch.float32, {
        "bias": (bias, [num_heads, tokens, (tokens + 7) // 8 * 8]), "padding": (padding, [features]),
        "logit_scale": (logit_scale, [num_heads])})
    return qkv.new_empty((batch, height, width, features // 3))


def _linear(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, gelu: int = 0) -> Tensor:
    operator = "linear"
    _check_type(operator, x.dtype)
    _check_rank(operator, "weight", weight, "out in")
    out_features, in_features = weight.shape
    if x.ndim < 1 or x.shape[-1] != in_features:
        raise ValueError(f"{operator}: x is {list(x.shape)}; its last axis must be the weight's {in_features}")
    if gelu not in (0, *reference.GELU_FORMS):
        raise ValueError(f"{operator}: gelu is {gelu}; it must be 0 (none), 1 (GELU) or 2 (its tanh form)")
    if gelu and residual is not None:
        raise ValueError(f"{operator}: gelu and a residual; the kernel does one of them")
    shape = (*x.shape[:-1], out_features)
    _check(operator, x.device, x.dtype, {
        "weight": (weight, None), "bias": (bias, [out_features]), "residual": (residual, shape)})
    return x.new_empty(shape)


def _mlp(x: Tensor, gamma: Tensor, beta: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
         norm_first: bool, epsilon: float, attention: Tensor | None = None, proj_weight: Tensor | None = None,
         proj_bias: Tensor | None = None, proj_gamma: Tensor | None = None, proj_beta: Tensor | None = None,
         gelu: int = 1) -> Tensor:
    operator = "mlp"
    _check_type(operator, x.dtype)
    if gelu not in reference.GELU_FORMS:
        raise ValueError(f"{operator}: gelu is {gelu}; it must be 1 (GELU) or 2 (its tanh form)")
    _check_rank(operator, "weight1", weight1, "hidden C")
    width, hidden = x.shape[-1] if x.ndim else 0, weight1.shape[0]
    _check_row(operator, x, width)
    ends = {"proj_weight": proj_weight, "proj_bias": proj_bias}
    norms = {"proj_gamma": proj_gamma, "proj_beta": proj_beta}
    ends_given = {name for name, tensor in (ends | norms).items() if tensor is not None}
    needed = set() if attention is None else set(ends) if norm_first else set(ends) | set(norms)
    if ends_given != needed:
        raise ValueError(f"{operator}: with norm_first {norm_first} and {'no ' if attention is None else ''}attention "
                         f"it takes {', '.join(sorted(needed)) or 'no proj_*'}; got "
                         f"{', '.join(sorted(ends_given)) or 'none'}")
    _check(operator, x.device, x.dtype, {
        "weight1": (weight1, [hidden, width]), "bias1": (bias1, [hidden]), "weight2": (weight2, [width, hidden]),
        "bias2": (bias2, [width]), "attention": (attention, x.shape), "proj_weight": (proj_weight, [width, width]),
        "proj_bias": (proj_bias, [width])})
    _check(operator, x.device, torch.float32, {
        name: (tensor, [width]) for name, tensor in ({"gamma": gamma, "beta": beta} | norms).items()})
    return x.new_empty(x.shape)


# --- on the GPU: the kernels -----------------------------------------------------------------------------------------

def _run_layer_norm(y: Tensor, x, gamma, beta, epsilon) -> None:
    c_interface.layernorm(x, gamma, beta, y, epsilon)


def _run_add_layer_norm(outputs: tuple[Tensor, Tensor], x, residual, gamma, beta, epsilon) -> None:
    c_interface.add_layernorm(x, residual, gamma, beta, *outputs, epsilon)


def _run_layer_norm_add(y: Tensor, x, residual, gamma, beta, epsilon) -> None:
    c_interface.layernorm_add(x, residual, gamma, beta, y, epsilon)


def _run_patch_embed(y: Tensor, x, weight, bias, gamma, beta, epsilon, dtype, ceil=False) -> None:
    c_interface.patch_embed(x, weight, bias, gamma, beta, y, epsilon, ceil)


def _run_patch_merge(y: Tensor, x, gamma, beta, epsilon) -> None:
    c_interface.patch_merge(x, gamma, beta, y, epsilon)


def _run_attention(y: Tensor, qkv, bias, padding, logit_scale, num_heads, window, shift, scale, mask_value=-100.0,
                   roll_first=False, shift_if_covered=True) -> None:
    c_interface.attention(qkv, bias, padding, logit_scale, y, num_heads, window, shift, scale, mask_value, roll_first,
                          shift_if_covered)


def _run_linear(y: Tensor, x, weight, bias, residual=None, gelu=0) -> None:
    c_interface.linear(x, weight, bias, residual, y, gelu)


def _run_mlp(y: Tensor, x, gamma, beta, weight1, bias1, weight2, bias2, norm_first, epsilon, attention=None,
             proj_weight=None, proj_bias=None, proj_gamma=None, proj_beta=None, gelu=1) -> None:
    c_interface.mlp(x, gamma, beta, weight1, bias1, weight2, bias2, y, norm_first, epsilon, attention, proj_weight,
                    proj_bias, proj_gamma, proj_beta, gelu=gelu)


# --- on the CPU: what they mean --------------------------------------------------------------------------------------

def _mean_patch_embed(x, weight, bias, gamma, beta, epsilon, dtype, ceil=False) -> Tensor:
    return reference.patch_embed(x, weight, bias, gamma, beta, epsilon, ceil)


def _mean_attention(qkv, bias, padding, logit_scale, num_heads, window, shift, scale, mask_value=-100.0,
                    roll_first=False, shift_if_covered=True) -> Tensor:
    return reference.attention(qkv, bias, padding, logit_scale, num_heads, window, shift, scale, mask_value, roll_first,
                               shift_if_covered)


def _mean_linear(x, weight, bias, residual=None, gelu=0) -> Tensor:
    return reference.linear(x, weight, bias, residual, gelu)


def _mean_mlp(x, gamma, beta, weight1, bias1, weight2, bias2, norm_first, epsilon, attention=None, proj_weight=None,
              proj_bias=None, proj_gamma=None, proj_beta=None, gelu=1) -> Tensor:
    return reference.mlp(x, gamma, beta, weight1, bias1, weight2, bias2, norm_first, epsilon, attention, proj_weight,
                         proj_bias, proj_gamma, proj_beta, gelu)


# --- registration ----------------------------------------------------------------------------------------------------

def _each(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _no_backward(ctx: object, inputs: tuple, output: object) -> None:
    """Called by autograd before it would record a call."""
    raise RuntimeError("swin_kernels is for inference and has no backward pass: run under torch.inference_mode() or "
                       "torch.no_grad(), or train the model before it is fused")


def _register(name: str, schema: str, allocate: Callable, run: Callable, mean: Callable) -> None:
    """Define the operator `name`: `allocate` checks and gives empty outputs, `run` fills them on the GPU, `mean` says
    on the CPU what is in them.
    """
    def on_cpu(*arguments):
        outputs = allocate(*arguments)
        for output, value in zip(_each(outputs), _each(mean(*arguments))):
            output.copy_(value)
        return outputs

    def on_gpu(*arguments):
        outputs = allocate(*arguments)
        first = _each(outputs)[0]
        if first.numel():
            arguments = [value.contiguous() if isinstance(value, Tensor) else value for value in arguments]
            if first.device.index == torch.cuda.current_device():
                run(outputs, *arguments)
            else:
                with torch.cuda.device(first.device):
                    run(outputs, *arguments)
        return outputs

    operator = f"{NAMESPACE}::{name}"
    torch.library.define(operator, schema)
    torch.library.impl(operator, "CPU", on_cpu)
    torch.library.impl(operator, "CUDA", on_gpu)
    torch.library.register_fake(operator, allocate)
    torch.library.register_autograd(operator, lambda ctx, *grads: None, setup_context=_no_backward)


_register("layer_norm", "(Tensor x, Tensor? gamma, Tensor? beta, float epsilon) -> Tensor",
          _layer_norm, _run_layer_norm, reference.layer_norm)
_register("add_layer_norm",
          "(Tensor x, Tensor residual, Tensor gamma, Tensor beta, float epsilon) -> (Tensor, Tensor)",
          _add_layer_norm, _run_add_layer_norm, reference.add_layer_norm)
_register("layer_norm_add", "(Tensor x, Tensor residual, Tensor gamma, Tensor beta, float epsilon) -> Tensor",
          _layer_norm_add, _run_layer_norm_add, reference.layer_norm_add)
_register("patch_embed",
          "(Tensor x, Tensor weight, Tensor bias, Tensor gamma, Tensor beta, float epsilon, ScalarType dtype, "
          "bool ceil=False) -> Tensor",
          _patch_embed, _run_patch_embed, _mean_patch_embed)
_register("patch_merge", "(Tensor x, Tensor? gamma, Tensor? beta, float epsilon) -> Tensor",
          _patch_merge, _run_patch_merge, reference.patch_merge)
_register("attention",
          "(Tensor qkv, Tensor bias, Tensor padding, Tensor? logit_scale, int num_heads, int[] window, int[] shift, "
          "float scale, float mask_value=-100.0, bool roll_first=False, bool shift_if_covered=True) -> Tensor",
          _attention, _run_attention, _mean_attention)
_register("linear", "(Tensor x, Tensor weight, Tensor bias, Tensor? residual=None, int gelu=0) -> Tensor",
          _linear, _run_linear, _mean_linear)
_register("mlp",
          "(Tensor x, Tensor gamma, Tensor beta, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, "
          "bool norm_first, float epsilon, Tensor? attention=None, Tensor? proj_weight=None, Tensor? proj_bias=None, "
          "Tensor? proj_gamma=None, Tensor? proj_beta=None, int gelu=1) -> Tensor",
          _mlp, _run_mlp, _mean_mlp)

_OPS = getattr(torch.ops, NAMESPACE)


# --- as Python functions ---------------------------------------------------------------------------------------------

def layer_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """LN(x) [* gamma + beta] over the last axis, of 1 to 8192 elements. gamma and beta [C] float32, or both None."""
    return _OPS.layer_norm(x, gamma, beta, epsilon)


def add_layer_norm(x: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor,
                   epsilon: float = 1e-5) -> tuple[Tensor, Tensor]:
    """x + residual, and its LayerNorm, which is taken of the sum before that is rounded. x and residual [..., C]."""
    return _OPS.add_layer_norm(x, residual, gamma, beta, epsilon)


def layer_norm_add(x: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, epsilon: float = 1e-5) -> Tensor:
    """residual + LN(x) * gamma + beta. x and residual [..., C]."""
    return _OPS.layer_norm_add(x, residual, gamma, beta, epsilon)


def patch_embed(x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, epsilon: float = 1e-5,
                dtype: torch.dtype = torch.float16, ceil: bool = False) -> Tensor:
    """LN(conv(x, weight, stride = its size) + bias) * gamma + beta: images [B, Ci, H, W] -> tokens [B, h, w, C].

    Args:
        weight: [C, Ci, height, width] of a patch; all inputs are float32.
        dtype: what the result is rounded to.
        ceil: a side that patches do not divide is padded with zeros; else what is left over is not read.
    """
    return _OPS.patch_embed(x, weight, bias, gamma, beta, epsilon, dtype, ceil)


def patch_merge(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """The four tokens of each 2 x 2 side by side, [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), 4C], in the order (row,
    column) = (0,0), (1,0), (0,1), (1,1), zeros where an odd side has none; then their LayerNorm where gamma and beta
    [4C] are given.
    """
    return _OPS.patch_merge(x, gamma, beta, epsilon)


def attention(qkv: Tensor, bias: Tensor, padding: Tensor, logit_scale: Tensor | None, num_heads: int,
              window: Sequence[int], shift: Sequence[int], scale: float, mask_value: float = -100.0,
              roll_first: bool = False, shift_if_covered: bool = True) -> Tensor:
    """(Shifted-)window attention, W-MSA and SW-MSA, of an image of tokens: [B, H, W, 3C] -> [B, H, W, C].

    Args:
        qkv: channels in the order q, k or v; head; d = C / num_heads, a multiple of 8 up to 64.
        bias: relative position bias, float32 [num_heads, N, Np]: N tokens of a window, Np is N rounded up to a
            multiple of 8; the columns from N on are not read.
        padding: float32 [3C], q, k and v of a padded token, which is the bias of the qkv layer.
        logit_scale: float32 [num_heads], clamped and exponentiated: cosine attention (Swin V2). None: dot product (V1).
        window, shift: (height, width) in tokens; windows of 1 to 32 a side, shift less than the window.
        scale: of q k^T in V1.
        mask_value: added between tokens that only the shift brought together.
        roll_first: where windows do not divide H or W, the image is shifted and then padded (timm), else padded and
            then shifted (all others).
        shift_if_covered: whether an axis of a single window is shifted too.
    """
    return _OPS.attention(qkv, bias, padding, logit_scale, num_heads, window, shift, scale, mask_value, roll_first,
                          shift_if_covered)


def linear(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, gelu: int = 0) -> Tensor:
    """x weight^T + bias [+ residual]; GELU of it with `gelu` 1, GELU's tanh form with 2. All tensors of x's type."""
    return _OPS.linear(x, weight, bias, residual, gelu)


def mlp(x: Tensor, gamma: Tensor, beta: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
        norm_first: bool, epsilon: float = 1e-5, attention: Tensor | None = None, proj_weight: Tensor | None = None,
        proj_bias: Tensor | None = None, proj_gamma: Tensor | None = None, proj_beta: Tensor | None = None,
        gelu: int = 1) -> Tensor:
    """x + fc2(GELU(fc1(LN(x)))) where `norm_first` (V1), else x + LN(fc2(GELU(fc1(x)))) (V2), of x [..., C].

    Given `attention` [..., C], x + proj(attention) (V1) or x + LN(proj(attention)) (V2, with proj_gamma and proj_beta)
    takes the place of x. Weights as nn.Linear has them, of x's type; gamma and beta float32. `gelu` 2: its tanh form.
    """
    return _OPS.mlp(x, gamma, beta, weight1, bias1, weight2, bias2, norm_first, epsilon, attention, proj_weight,
                    proj_bias, proj_gamma, proj_beta, gelu)
