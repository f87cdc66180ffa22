"""fuse(): a Swin Transformer of timm, Hugging Face, torchvision or this project, made to run on the kernels.

    model = timm.create_model("swin_small_patch4_window7_224", pretrained=True).eval().cuda()
    fuse(model, torch.float16)                       # in place; says the error against the original
    with torch.inference_mode():
        logits = model(images)                       # images and logits float32 as before, float16 inside
    run = CudaGraph(model, images)                   # where launches cost more than the work: small batches
    logits = run(images)

Blocks, patch merging, patch embedding and the last LayerNorm are replaced by modules that have the parameters of the
originals under the same names: the state dict stays as it is. What the kernels read besides (the bias of every pair of
tokens, weights in another type) is computed once, and anew after load_state_dict, .to() and the like.

Shapes in comments: B images, H x W tokens, C channels, nH heads, N tokens of a window.
"""
from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import operators, reference
from .c_interface import TYPES

# The MLP of a wider block is two products: swin_mlp's one kernel has no registers for rows of more channels. The graph
# surgery has the same number (graphs/patterns.py).
MOST_MLP_CHANNELS = 192
MAX_LOGIT_SCALE = math.log(1 / 0.01)  # of V2, before the exponential
# Between image and logits a block rounds about eight times.
ROUNDINGS_PER_BLOCK = 8
LEAST_TOLERANCE = 1e-5  # what sums in another order may cost in FP32, relative to the largest output


class Unfit(Exception):
    """Why a module is left as it is."""


# --- what all fused modules share ------------------------------------------------------------------------------------

class Fused(nn.Module):
    """A module in the place of another one: with the other's attributes, children, parameters and buffers.

    Args:
        original: what is replaced; it is not changed.
        dtype: type of the activations; None: that of the parameters.
    """

    def __init__(self, original: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        for name, value in vars(original).items():
            self.__dict__[name] = copy.copy(value) if isinstance(value, (dict, set)) else value
        self.fused_dtype = dtype
        self.fused_from = f"{type(original).__module__}.{type(original).__name__}"
        self.fused_names: list[str] = []
        self.register_load_state_dict_post_hook(_prepare_again)
        self.prepare()

    def constants(self) -> dict[str, Tensor | None]:
        """What the kernels read, computed from the parameters: tensors by name.

        Raises:
            Unfit: the kernels cannot do what this module does.
        """
        raise NotImplementedError

    @torch.no_grad()
    def prepare(self) -> None:
        """Compute the constants; call it after changing a parameter by hand."""
        for name in self.fused_names:
            del self._buffers[name]
        self.fused_names = []
        for name, value in self.constants().items():
            self.register_buffer(f"fused_{name}", value, persistent=False)
            self.fused_names.append(f"fused_{name}")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations."""
        return self.fused_dtype or next(self.parameters()).dtype

    def operand(self, tensor: Tensor) -> Tensor:
        """A weight or bias of a product."""
        return tensor.detach().to(self.dtype).contiguous()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fused:
        """.to(), .half(), .cuda() ...: the constants follow the parameters."""
        for name in self.fused_names:
            del self._buffers[name]
        self.fused_names = []
        super()._apply(fn, recurse)
        self.prepare()
        return self

    def check_inference(self, x: Tensor) -> None:
        """Raise a RuntimeError in training mode, and where autograd would want a backward pass."""
        if self.training:
            raise RuntimeError("a fused model is for inference only: call model.eval(); train the model before fuse()")
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters())):
            raise RuntimeError("a fused model is for inference only: run it under torch.inference_mode() or "
                               "torch.no_grad(), or call model.requires_grad_(False)")

    def extra_repr(self) -> str:
        return f"fused from {self.fused_from}, {self.dtype}"


def _prepare_again(module: Fused, incompatible_keys: object) -> None:
    module.prepare()


def _fp32(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous()


def _bias_of(layer: nn.Linear | nn.Conv2d) -> Tensor:
    if layer.bias is not None:
        return layer.bias
    return layer.weight.new_zeros(layer.weight.shape[0])


def _norm(norm: nn.Module, width: int) -> tuple[Tensor, Tensor]:
    """gamma and beta of a LayerNorm over the last axis."""
    if not isinstance(norm, nn.LayerNorm) or tuple(norm.normalized_shape) != (width,):
        raise Unfit(f"{type(norm).__name__} where the kernels have a LayerNorm over {width} channels")
    if norm.weight is None:
        parameter = next(iter(norm.parameters()), torch.empty(0))
        return parameter.new_ones(width, dtype=torch.float32), parameter.new_zeros(width, dtype=torch.float32)
    gamma = _fp32(norm.weight)
    return gamma, torch.zeros_like(gamma) if norm.bias is None else _fp32(norm.bias)


# --- blocks ----------------------------------------------------------------------------------------------------------

@dataclass
class Parts:
    """What a block of any library is made of.

    Attributes:
        qkv_weight, qkv_bias: [3 * nH * d, C] and [3 * nH * d].
        bias: relative position bias, [nH, N, N].
        logit_scale: V2, [nH], exponentiated.
        activation: between fc1 and fc2.
    """

    qkv_weight: Tensor
    qkv_bias: Tensor
    bias: Tensor
    logit_scale: Tensor | None
    proj: nn.Linear
    norm1: nn.Module
    norm2: nn.Module
    fc1: nn.Linear
    fc2: nn.Linear
    activation: Callable[[Tensor], Tensor]


def _table_bias(table: Tensor, index: Tensor, heads: int) -> Tensor:
    """V1: [nH, N, N] of a table [relative positions, nH] and the index of each pair of tokens."""
    tokens = math.isqrt(index.numel())
    return table.detach().float()[index.flatten()].reshape(tokens, tokens, heads).permute(2, 0, 1)


def _continuous_bias(mlp: nn.Module, coords: Tensor, index: Tensor, heads: int) -> Tensor:
    """V2: the same of an MLP over log-spaced coordinates, in FP32."""
    table = copy.deepcopy(mlp).float()(coords.detach().float()).reshape(-1, heads)
    return 16 * torch.sigmoid(_table_bias(table, index, heads))


def _exp_logit_scale(logit_scale: Tensor) -> Tensor:
    return logit_scale.detach().float().clamp(max=MAX_LOGIT_SCALE).exp().flatten()


class FusedBlock(Fused):
    """Attention and MLP of [B, H, W, C]. A subclass says where a library has its parts, and how it calls a block."""

    norm_first = True   # V1: LayerNorm before attention and MLP; V2: after them
    roll_first = False  # padded, then shifted
    shift_if_covered = True
    mask_value = -100.0

    def parts(self) -> Parts:
        raise NotImplementedError

    def heads(self) -> int:
        raise NotImplementedError

    def scale(self) -> float:
        """V1: what q k^T is multiplied by."""
        return 1.0

    def constants(self) -> dict[str, Tensor | None]:
        parts, heads = self.parts(), self.heads()
        channels = parts.qkv_weight.shape[1]
        head = parts.qkv_weight.shape[0] // (3 * heads)
        more = -head % 8  # zeros, up to a width that the kernel has: they add nothing to q k^T, and proj's drop v's
        if head + more > operators.WIDEST_HEAD:
            raise Unfit(f"heads of {head} channels; the kernel takes up to {operators.WIDEST_HEAD}")
        qkv_weight, qkv_bias = parts.qkv_weight.detach(), parts.qkv_bias.detach()
        proj_weight = parts.proj.weight.detach()
        if more:
            qkv_weight = F.pad(qkv_weight.reshape(3, heads, head, channels), (0, 0, 0, more)).flatten(0, 2)
            qkv_bias = F.pad(qkv_bias.reshape(3, heads, head), (0, more)).flatten()
            proj_weight = F.pad(proj_weight.reshape(channels, heads, head), (0, more)).flatten(1)
        gamma1, beta1 = _norm(parts.norm1, channels)
        gamma2, beta2 = _norm(parts.norm2, channels)
        if not self.fused_names and "fused_activation" not in self.__dict__:
            steps = torch.linspace(-6, 6, 97)  # numbers decide: the two forms of GELU differ by 5e-4
            forms = [form for form, name in reference.GELU_FORMS.items()
                     if torch.allclose(parts.activation(steps), F.gelu(steps, approximate=name), rtol=0, atol=1e-6)]
            self.fused_gelu = forms[0] if forms else 0
            # Not by setattr, which would make it a child under a second name.
            self.__dict__["fused_activation"] = None if forms else parts.activation
        self.fused_epsilons = parts.norm1.eps, parts.norm2.eps
        self.fused_in_one = (channels <= MOST_MLP_CHANNELS and self.fused_activation is None
                             and proj_weight.shape[1] == channels
                             and (self.norm_first or parts.norm1.eps == parts.norm2.eps))  # swin_mlp takes one
        tokens = parts.bias.shape[-1]
        return {
            "qkv_weight": self.operand(qkv_weight), "qkv_bias": self.operand(qkv_bias), "padding": _fp32(qkv_bias),
            "bias": F.pad(_fp32(parts.bias), (0, -tokens % 8)),
            "logit_scale": None if parts.logit_scale is None else _fp32(parts.logit_scale),
            "proj_weight": self.operand(proj_weight), "proj_bias": self.operand(_bias_of(parts.proj)),
            "gamma1": gamma1, "beta1": beta1, "gamma2": gamma2, "beta2": beta2,
            "weight1": self.operand(parts.fc1.weight), "bias1": self.operand(_bias_of(parts.fc1)),
            "weight2": self.operand(parts.fc2.weight), "bias2": self.operand(_bias_of(parts.fc2)),
        }

    def run(self, x: Tensor, window: list[int], shift: list[int]) -> Tensor:
        """[B, H, W, C] -> [B, H, W, C], by windows and with a shift of (height, width) tokens."""
        self.check_inference(x)
        x = x.to(self.dtype)
        eps1, eps2 = self.fused_epsilons
        y = operators.layer_norm(x, self.fused_gamma1, self.fused_beta1, eps1) if self.norm_first else x
        y = operators.attention(
            operators.linear(y, self.fused_qkv_weight, self.fused_qkv_bias), self.fused_bias, self.fused_padding,
            self.fused_logit_scale, self.heads(), window, shift, self.scale(), self.mask_value, self.roll_first,
            self.shift_if_covered)
        if self.fused_in_one:
            norm = (None, None) if self.norm_first else (self.fused_gamma1, self.fused_beta1)
            return operators.mlp(x, self.fused_gamma2, self.fused_beta2, self.fused_weight1, self.fused_bias1,
                                 self.fused_weight2, self.fused_bias2, self.norm_first, eps2, y,
                                 self.fused_proj_weight, self.fused_proj_bias, *norm, self.fused_gelu)
        if self.norm_first:
            x = operators.linear(y, self.fused_proj_weight, self.fused_proj_bias, x)
            y = self._hidden(operators.layer_norm(x, self.fused_gamma2, self.fused_beta2, eps2))
            return operators.linear(y, self.fused_weight2, self.fused_bias2, x)
        y = operators.linear(y, self.fused_proj_weight, self.fused_proj_bias)
        x = operators.layer_norm_add(y, x, self.fused_gamma1, self.fused_beta1, eps1)
        y = operators.linear(self._hidden(x), self.fused_weight2, self.fused_bias2)
        return operators.layer_norm_add(y, x, self.fused_gamma2, self.fused_beta2, eps2)

    def _hidden(self, x: Tensor) -> Tensor:
        y = operators.linear(x, self.fused_weight1, self.fused_bias1, None, self.fused_gelu)
        return y if self.fused_activation is None else self.fused_activation(y)


class TimmBlock(FusedBlock):
    """timm.models.swin_transformer.SwinTransformerBlock"""

    roll_first = True

    def heads(self) -> int:
        return self.attn.num_heads

    def scale(self) -> float:
        return self.attn.scale

    def parts(self) -> Parts:
        attn = self.attn
        bias = _table_bias(attn.relative_position_bias_table, attn.relative_position_index, attn.num_heads)
        return Parts(attn.qkv.weight, _bias_of(attn.qkv), bias, None, attn.proj, self.norm1, self.norm2, self.mlp.fc1,
                     self.mlp.fc2, self.mlp.act)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H, W, C]"""
        return self.run(x, list(self.window_size), list(self.shift_size))


class TimmBlockV2(TimmBlock):
    """timm.models.swin_transformer_v2.SwinTransformerV2Block"""

    norm_first = False

    def scale(self) -> float:
        return 1.0

    def parts(self) -> Parts:
        attn = self.attn
        bias = _continuous_bias(attn.cpb_mlp, attn.relative_coords_table, attn.relative_position_index, attn.num_heads)
        qkv_bias = (_bias_of(attn.qkv) if attn.q_bias is None else
                    torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias)))
        return Parts(attn.qkv.weight, qkv_bias, bias, _exp_logit_scale(attn.logit_scale), attn.proj, self.norm1,
                     self.norm2, self.mlp.fc1, self.mlp.fc2, self.mlp.act)


class TorchvisionBlock(FusedBlock):
    """torchvision.models.swin_transformer.SwinTransformerBlock, with dot-product attention"""

    shift_if_covered = False

    def heads(self) -> int:
        return self.attn.num_heads

    def scale(self) -> float:
        return (self.attn.qkv.in_features // self.attn.num_heads) ** -0.5

    def parts(self) -> Parts:
        attn = self.attn
        if type(attn).__name__ != "ShiftedWindowAttention":
            raise Unfit(f"{type(attn).__name__} as its attention")
        bias = _table_bias(attn.relative_position_bias_table, attn.relative_position_index, attn.num_heads)
        return Parts(attn.qkv.weight, _bias_of(attn.qkv), bias, None, attn.proj, self.norm1, self.norm2, self.mlp[0],
                     self.mlp[3], self.mlp[1])

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H, W, C]"""
        return self.run(x, list(self.attn.window_size), list(self.attn.shift_size))


class TorchvisionBlockV2(TorchvisionBlock):
    """torchvision.models.swin_transformer.SwinTransformerBlockV2, with cosine attention"""

    norm_first = False

    def scale(self) -> float:
        return 1.0

    def parts(self) -> Parts:
        attn = self.attn
        if type(attn).__name__ != "ShiftedWindowAttentionV2":
            raise Unfit(f"{type(attn).__name__} as its attention")
        bias = _continuous_bias(attn.cpb_mlp, attn.relative_coords_table, attn.relative_position_index, attn.num_heads)
        q_bias, _, v_bias = _bias_of(attn.qkv).chunk(3)  # torchvision sets k's to zero in each forward
        qkv_bias = torch.cat((q_bias, torch.zeros_like(q_bias), v_bias))
        return Parts(attn.qkv.weight, qkv_bias, bias, _exp_logit_scale(attn.logit_scale), attn.proj, self.norm1,
                     self.norm2, self.mlp[0], self.mlp[3], self.mlp[1])


class HuggingFaceBlock(FusedBlock):
    """transformers.models.swin.modeling_swin.SwinLayer"""

    def heads(self) -> int:
        return self.attention.num_attention_heads

    def scale(self) -> float:
        return self.attention.scaling

    def parts(self) -> Parts:
        attention, bias = self.attention, self.attention.relative_position_bias
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        return Parts(
            torch.cat([layer.weight for layer in projections]), torch.cat([_bias_of(layer) for layer in projections]),
            _table_bias(bias.relative_position_bias_table, bias.relative_position_index, self.heads()), None,
            attention.o_proj, self.layernorm_before, self.layernorm_after, self.mlp.fc1, self.mlp.fc2,
            self.mlp.activation_fn)

    def forward(self, hidden_states: Tensor, input_dimensions: tuple[int, int], always_partition: bool = False,
                output_attentions: bool = False, **kwargs: object) -> tuple[Tensor, None]:
        """[B, H*W, C] and (H, W) -> [B, H*W, C], and None for the attention weights."""
        window, shift, shorter = self.window_size, self.shift_size, min(input_dimensions)
        if shorter < window:
            raise ValueError(f"an image of {input_dimensions[0]} x {input_dimensions[1]} tokens, which is smaller than "
                             f"the window of {window}")
        if shorter == window and not always_partition:
            shift = 0
        return self.run_tokens(hidden_states, input_dimensions, window, shift, output_attentions), None

    def run_tokens(self, hidden_states: Tensor, input_dimensions: tuple[int, int], window: int, shift: int,
                   output_attentions: bool) -> Tensor:
        if output_attentions:
            raise ValueError("a fused model has no attention weights to give: they never leave the chip; ask for them "
                             "before fuse()")
        x = hidden_states.unflatten(1, input_dimensions)
        return self.run(x, [window, window], [shift, shift]).flatten(1, 2)


class HuggingFaceBlockV2(HuggingFaceBlock):
    """transformers.models.swinv2.modeling_swinv2.Swinv2Layer"""

    norm_first = False
    mask_value = -200.0  # Swinv2SelfAttention adds the mask of -100 twice

    def heads(self) -> int:
        return self.attention.self.num_attention_heads

    def scale(self) -> float:
        return 1.0

    def parts(self) -> Parts:
        attention = self.attention.self
        projections = (attention.query, attention.key, attention.value)
        return Parts(
            torch.cat([layer.weight for layer in projections]), torch.cat([_bias_of(layer) for layer in projections]),
            _continuous_bias(attention.continuous_position_bias_mlp, attention.relative_coords_table,
                             attention.relative_position_index, self.heads()),
            _exp_logit_scale(attention.logit_scale), self.attention.output.dense, self.layernorm_before,
            self.layernorm_after, self.intermediate.dense, self.output.dense, self.intermediate.intermediate_act_fn)

    def forward(self, hidden_states: Tensor, input_dimensions: tuple[int, int],
                output_attentions: bool = False) -> tuple[Tensor]:
        """[B, H*W, C] and (H, W) -> [B, H*W, C]"""
        return (self.run_tokens(hidden_states, input_dimensions, self.window_size, self.shift_size, output_attentions),)


class OwnBlock(FusedBlock):
    """SwinTransformerBlock of models/swin.py, folded or not"""

    def heads(self) -> int:
        return self.attn.num_heads

    def scale(self) -> float:
        return self.attn.scale

    def attention_parts(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """qkv's bias, relative position bias and logit_scale."""
        attn = self.attn
        bias = attn.relative_position_bias
        if bias is None:
            bias = _table_bias(attn.relative_position_bias_table, attn.relative_position_index, attn.num_heads)
        return _bias_of(attn.qkv), bias, None

    def parts(self) -> Parts:
        qkv_bias, bias, logit_scale = self.attention_parts()
        approximate = self.mlp.approximate
        return Parts(self.attn.qkv.weight, qkv_bias, bias, logit_scale, self.attn.proj, self.norm1, self.norm2,
                     self.mlp.fc1, self.mlp.fc2, nn.GELU(approximate))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H*W, C] -> [B, H*W, C]"""
        side, window, shift = self.attn.resolution, self.attn.window_size, self.attn.shift_size
        return self.run(x.unflatten(1, (side, side)), [window, window], [shift, shift]).flatten(1, 2)


class OwnBlockV2(OwnBlock):
    """SwinTransformerBlockV2 of models/swin_v2.py, folded or not"""

    norm_first = False

    def scale(self) -> float:
        return 1.0

    def attention_parts(self) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.attn
        if attn.relative_position_bias is not None:
            return _bias_of(attn.qkv), attn.relative_position_bias, attn.scale.flatten()
        bias = _continuous_bias(attn.cpb_mlp, attn.relative_coords_table, attn.relative_position_index, attn.num_heads)
        qkv_bias = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
        return qkv_bias, bias, _exp_logit_scale(attn.logit_scale)


# --- patch merging ---------------------------------------------------------------------------------------------------

class FusedMerging(Fused):
    """Patch merging of [B, H, W, C], as timm and torchvision have it."""

    norm_first = True  # V1: LayerNorm, then Linear; V2: Linear, then LayerNorm

    def constants(self) -> dict[str, Tensor | None]:
        out_features, in_features = self.reduction.weight.shape
        gamma, beta = _norm(self.norm, in_features if self.norm_first else out_features)
        return {"weight": self.operand(self.reduction.weight), "bias": self.operand(_bias_of(self.reduction)),
                "gamma": gamma, "beta": beta}

    def run(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, ceil(H/2), ceil(W/2), 2C]"""
        self.check_inference(x)
        x, epsilon = x.to(self.dtype), self.norm.eps
        norm = self.fused_gamma, self.fused_beta
        if self.norm_first:
            return operators.linear(operators.patch_merge(x, *norm, epsilon), self.fused_weight, self.fused_bias)
        y = operators.linear(operators.patch_merge(x, None, None, epsilon), self.fused_weight, self.fused_bias)
        return operators.layer_norm(y, *norm, epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class FusedMergingV2(FusedMerging):
    norm_first = False


class HuggingFaceMerging(FusedMerging):
    """transformers' SwinPatchMerging"""

    def forward(self, input_feature: Tensor, input_dimensions: tuple[int, int]) -> Tensor:
        """[B, H*W, C] and (H, W) -> [B, ceil(H/2)*ceil(W/2), 2C]"""
        return self.run(input_feature.unflatten(1, input_dimensions)).flatten(1, 2)


class HuggingFaceMergingV2(HuggingFaceMerging):
    norm_first = False


class OwnMerging(FusedMerging):
    """PatchMerging of models/swin.py"""

    def forward(self, x: Tensor) -> Tensor:
        """[B, H*W, C] -> [B, H/2*W/2, 2C]"""
        return self.run(x.unflatten(1, (self.resolution, self.resolution))).flatten(1, 2)


class OwnMergingV2(OwnMerging):
    norm_first = False


# --- patch embedding, the last LayerNorm -----------------------------------------------------------------------------

class FusedEmbedding(Fused):
    """Images to tokens. A subclass says where a library has its convolution and LayerNorm."""

    ceil = False

    def layers(self) -> tuple[nn.Conv2d, nn.Module]:
        raise NotImplementedError

    def image_size(self) -> tuple[int, int] | None:
        """Height and width that the model was made for, None for any."""
        return None

    def constants(self) -> dict[str, Tensor | None]:
        conv, norm = self.layers()
        if conv.stride != conv.kernel_size or conv.padding != (0, 0) or conv.dilation != (1, 1) or conv.groups != 1:
            raise Unfit("patches that overlap, or a grouped convolution")
        if conv.weight[0].numel() > operators.LARGEST_PATCH:
            raise Unfit(f"patches of {conv.weight[0].numel()} elements; the kernel takes {operators.LARGEST_PATCH}")
        gamma, beta = _norm(norm, conv.out_channels)
        return {"weight": _fp32(conv.weight), "bias": _fp32(_bias_of(conv)), "gamma": gamma, "beta": beta}

    def run(self, x: Tensor) -> Tensor:
        """[B, Ci, S, T] -> [B, H, W, C]"""
        self.check_inference(x)
        if not x.is_floating_point():
            raise TypeError(f"images of {x.dtype}; the model takes normalised floating-point images")
        return operators.patch_embed(x.float(), self.fused_weight, self.fused_bias, self.fused_gamma, self.fused_beta,
                                     self.layers()[1].eps, self.dtype, self.ceil)


class TimmEmbedding(FusedEmbedding):
    """timm.layers.PatchEmbed"""

    @property
    def ceil(self) -> bool:
        return self.dynamic_img_pad

    def layers(self) -> tuple[nn.Conv2d, nn.Module]:
        return self.proj, self.norm

    def image_size(self) -> tuple[int, int] | None:
        return self.img_size

    def forward(self, x: Tensor) -> Tensor:
        """[B, Ci, S, T] -> [B, H, W, C]"""
        size = tuple(x.shape[-2:])
        if self.img_size is not None and self.strict_img_size and size != tuple(self.img_size):
            raise ValueError(f"images of {size[0]} x {size[1]}; the model takes {self.img_size[0]} x "
                             f"{self.img_size[1]}")
        if not self.ceil and (size[0] % self.patch_size[0] or size[1] % self.patch_size[1]):
            raise ValueError(f"images of {size[0]} x {size[1]}; patches of {self.patch_size[0]} x {self.patch_size[1]} "
                             "do not divide them")
        return self.run(x)


class TorchvisionEmbedding(FusedEmbedding):
    """features[0] of torchvision's: Conv2d, Permute, LayerNorm"""

    def layers(self) -> tuple[nn.Conv2d, nn.Module]:
        return self._modules["0"], self._modules["2"]

    def forward(self, x: Tensor) -> Tensor:
        """[B, Ci, S, T] -> [B, H, W, C]"""
        return self.run(x)


class HuggingFaceEmbedding(FusedEmbedding):
    """transformers' SwinEmbeddings, Swinv2Embeddings"""

    ceil = True

    def layers(self) -> tuple[nn.Conv2d, nn.Module]:
        if self.position_embeddings is not None:
            raise Unfit("absolute position embeddings")
        return self.patch_embeddings.projection, self.norm

    def image_size(self) -> tuple[int, int]:
        size = self.config.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def forward(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None,
                interpolate_pos_encoding: bool = False) -> tuple[Tensor, tuple[int, int]]:
        """[B, Ci, S, T] -> [B, H*W, C] and (H, W)"""
        if bool_masked_pos is not None:
            raise ValueError("bool_masked_pos: a fused model takes whole images; mask before fuse()")
        x = self.run(pixel_values)
        return x.flatten(1, 2), (x.shape[1], x.shape[2])


class OwnEmbedding(FusedEmbedding):
    """PatchEmbed of models/swin.py"""

    def layers(self) -> tuple[nn.Conv2d, nn.Module]:
        return self.proj, self.norm

    def image_size(self) -> tuple[int, int]:
        side = math.isqrt(self.tokens) * self.proj.kernel_size[0]
        return side, side

    def forward(self, x: Tensor) -> Tensor:
        """[B, Ci, S, S] -> [B, H*W, C]"""
        return self.run(x).flatten(1, 2)


class FusedNorm(Fused):
    """The last LayerNorm: what comes out has the type of the parameters again, for the head."""

    def constants(self) -> dict[str, Tensor | None]:
        gamma, beta = _norm(self._original_norm(), self.normalized_shape[0])
        return {"gamma": gamma, "beta": beta}

    def _original_norm(self) -> nn.LayerNorm:
        norm = nn.LayerNorm(self.normalized_shape, eps=self.eps, elementwise_affine=False)
        norm.weight, norm.bias = self.weight, self.bias
        return norm

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]"""
        self.check_inference(x)
        return operators.layer_norm(x, self.fused_gamma, self.fused_beta, self.eps).to(self.weight.dtype)


# --- which module becomes which: by the names of classes, so that no library has to be there -------------------------

TIMM, TIMM_V2 = "timm.models.swin_transformer", "timm.models.swin_transformer_v2"
TORCHVISION = "torchvision.models.swin_transformer"
SWIN, SWIN_V2 = "transformers.models.swin.modeling_swin", "transformers.models.swinv2.modeling_swinv2"

BLOCKS: dict[str, type[Fused]] = {
    f"{TIMM}.SwinTransformerBlock": TimmBlock, f"{TIMM_V2}.SwinTransformerV2Block": TimmBlockV2,
    f"{TORCHVISION}.SwinTransformerBlock": TorchvisionBlock,
    f"{TORCHVISION}.SwinTransformerBlockV2": TorchvisionBlockV2,
    f"{SWIN}.SwinLayer": HuggingFaceBlock, f"{SWIN_V2}.Swinv2Layer": HuggingFaceBlockV2,
    "models.swin.SwinTransformerBlock": OwnBlock, "models.swin_v2.SwinTransformerBlockV2": OwnBlockV2,
}
MERGINGS: dict[str, type[Fused]] = {
    f"{TIMM}.PatchMerging": FusedMerging, f"{TIMM_V2}.PatchMerging": FusedMergingV2,
    f"{TORCHVISION}.PatchMerging": FusedMerging, f"{TORCHVISION}.PatchMergingV2": FusedMergingV2,
    f"{SWIN}.SwinPatchMerging": HuggingFaceMerging, f"{SWIN_V2}.Swinv2PatchMerging": HuggingFaceMergingV2,
    "models.swin.PatchMerging": OwnMerging, "models.swin_v2.PatchMergingV2": OwnMergingV2,
}
# Of a whole model of this class, modules by their path in it.
_TIMM_ENDS = {"patch_embed": TimmEmbedding, "norm": FusedNorm}
_HUGGING_FACE_ENDS = {"embeddings": HuggingFaceEmbedding, "layernorm": FusedNorm, "hidden_states_norms.*": FusedNorm}
_OWN_ENDS = {"patch_embed": OwnEmbedding, "norm": FusedNorm, "norm[0-9]": FusedNorm}
ENDS: dict[str, dict[str, type[Fused]]] = {
    f"{TIMM}.SwinTransformer": _TIMM_ENDS, f"{TIMM_V2}.SwinTransformerV2": _TIMM_ENDS,
    f"{TORCHVISION}.SwinTransformer": {"features.0": TorchvisionEmbedding, "norm": FusedNorm},
    f"{SWIN}.SwinModel": _HUGGING_FACE_ENDS, f"{SWIN}.SwinBackbone": _HUGGING_FACE_ENDS,
    f"{SWIN_V2}.Swinv2Model": _HUGGING_FACE_ENDS, f"{SWIN_V2}.Swinv2Backbone": _HUGGING_FACE_ENDS,
    "models.swin.SwinTransformer": _OWN_ENDS, "models.swin_v2.SwinTransformerV2": _OWN_ENDS,
}
KNOWN = "timm (Swin V1, V2), transformers (Swin, Swinv2), torchvision (V1, V2) and this project"


def _class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"


@dataclass
class Place:
    """A child of a module, and what takes its place."""

    parent: nn.Module
    name: str
    path: str
    original: nn.Module
    kind: type[Fused]
    fused: Fused | None = None

    def put(self, module: nn.Module) -> None:
        self.parent._modules[self.name] = module


def _places(model: nn.Module) -> Iterator[Place]:
    """The modules of a model that can be fused."""
    ends: dict[nn.Module, type[Fused]] = {}
    for root in model.modules():
        for path, module in root.named_modules() if _class(root) in ENDS else ():
            for pattern, kind in ENDS[_class(root)].items():
                if module is not root and fnmatch.fnmatchcase(path, pattern):
                    ends[module] = kind
    for path, parent in model.named_modules():
        for name, child in parent.named_children():
            kind = BLOCKS.get(_class(child)) or MERGINGS.get(_class(child)) or ends.get(child)
            if kind is not None:
                yield Place(parent, name, f"{path}.{name}".lstrip("."), child, kind)


# --- fuse() ----------------------------------------------------------------------------------------------------------

def fuse(model: nn.Module, dtype: torch.dtype | None = None, images: Tensor | None = None,
         tolerance: float | None = None) -> nn.Module:
    """Make a Swin Transformer run on the kernels, in place, and compare it with what it was.

    What goes in and comes out keeps its type, as do parameters and state dict; hidden states and feature maps that have
    no LayerNorm of their own are of type `dtype`. Inference only. Prints what was replaced, and the error.

    Args:
        model: of timm, transformers, torchvision or this project, whole or inside another module, in eval mode.
        dtype: type of the activations, float32, float16 or bfloat16; by default that of the parameters.
        images: what the two are compared on; by default two random images of the model's own size.
        tolerance: largest error, as a part of the largest output of the original in float32. By default what rounding
            to `dtype` explains: four times its unit roundoff times the square root of the number of roundings between
            image and output, at least 1e-5.

    Returns:
        The model.

    Raises:
        TypeError: a type that the kernels do not have.
        ValueError: no module that is known, one that the kernels cannot replace, or an error larger than the tolerance
            (or NaN); the model is as it was then.
        RuntimeError: the model is in training mode.
        LibraryError: on a GPU, no libswin_kernels.so.
    """
    parameter = next(model.parameters(), None)
    own = None if parameter is None else parameter.dtype
    if own not in TYPES or (dtype or own) not in TYPES:
        wrong = own if own not in TYPES else dtype
        raise TypeError(f"fuse: {'no parameters' if own is None else wrong}; the kernels take float32, float16 and "
                        "bfloat16")
    if model.training:
        raise RuntimeError("fuse: the model is in training mode, and the kernels have no backward pass: model.eval()")
    if any(isinstance(module, Fused) for module in model.modules()):
        raise ValueError("fuse: the model is fused already")
    places, left = _replacements(model, dtype)
    # Before the original runs: Hugging Face's layers change their windows as they do.
    counts = {what: sum(place.kind in kinds for place in places) for what, kinds in (
        ("blocks", BLOCKS.values()), ("patch mergings", MERGINGS.values()))}
    counts["others"] = len(places) - sum(counts.values())
    if images is None:
        images = _random_images(places, parameter)
    with torch.no_grad():
        expected = _outputs_in_fp32(model, images)
        for place in places:
            place.put(place.fused)
        try:
            error, largest = _error(_tensors(model(images)), expected)
            unit = torch.finfo(dtype or own).eps / 2
            roundings = ROUNDINGS_PER_BLOCK * (counts["blocks"] + 1)
            allowed = max(4 * unit * math.sqrt(roundings), LEAST_TOLERANCE) if tolerance is None else tolerance
            if not error <= allowed * largest:
                raise ValueError(f"fuse: the outputs are off by {error:.2e}, where {allowed * largest:.2e} is allowed "
                                 f"(largest {largest:.3g}); the model is as it was")
        except BaseException:
            for place in places:
                place.put(place.original)
            raise
    print(f"fused {', '.join(f'{count} {what}' for what, count in counts.items() if count)} of {type(model).__name__}, "
          f"{operators._name(dtype or own)}: max abs err {error:.2e}, at most {allowed * largest:.2e} allowed; largest "
          f"output {largest:.3g}{''.join(f'; left {path}: {reason}' for path, reason in left.items())}")
    return model


def _replacements(model: nn.Module, dtype: torch.dtype | None) -> tuple[list[Place], dict[str, str]]:
    """The places with their fused modules, not yet put in, and why others are left.

    Raises:
        ValueError: there is no block, or one that cannot be replaced.
    """
    places, left = [], {}
    for place in _places(model):
        try:
            place.fused = place.kind(place.original, dtype)
        except Unfit as reason:
            if place.kind in BLOCKS.values() or place.kind in MERGINGS.values():
                raise ValueError(f"fuse: {place.path}: {reason}") from reason
            left[place.path] = str(reason)  # it gives its own type, which the block after it converts
        except AttributeError as missing:
            raise ValueError(f"fuse: {place.path}: {missing}; a version of its library that is not known "
                             "here") from missing
        else:
            places.append(place)
    if not any(place.kind in BLOCKS.values() for place in places):
        raise ValueError(f"fuse: {_class(model)} has no block that is known here; known are those of {KNOWN}")
    return places, left


def _random_images(places: list[Place], parameter: Tensor) -> Tensor:
    """Two images of the model's own size, of the type and on the device of its parameters."""
    embedding = next((place.fused for place in places if isinstance(place.fused, FusedEmbedding)), None)
    if embedding is None:
        raise ValueError("fuse: no patch embedding that is known here tells the size of the images: give images=")
    size = embedding.image_size() or (224, 224)
    channels = embedding.layers()[0].in_channels
    images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    return images.to(device=parameter.device, dtype=parameter.dtype)


def _outputs_in_fp32(model: nn.Module, images: Tensor) -> list[Tensor]:
    """What the original gives in float32, TF32 off."""
    if next(model.parameters()).dtype != torch.float32:
        model, images = copy.deepcopy(model).float(), images.float()
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return _tensors(model(images))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _tensors(output: object) -> list[Tensor]:
    """The tensors in what a model gives: a tensor, a tuple, or Hugging Face's ModelOutput."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for value in values for tensor in _tensors(value)]


def _error(outputs: list[Tensor], expected: list[Tensor]) -> tuple[float, float]:
    """Largest difference, and largest number, of the output that is off most as a part of its largest number."""
    if not expected or len(outputs) != len(expected):
        raise ValueError(f"fuse: the model gives {len(outputs)} tensors, the original {len(expected)}; the model is as "
                         "it was")
    errors = [((one.float() - other.float()).abs().max().item(), other.abs().max().item())
              for one, other in zip(outputs, expected)]
    return max(errors, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0] / max(pair[1], 1e-30))


class CudaGraph:
    """A model at one shape of its input as a CUDA graph: output = graph(images).

    The output is overwritten by the next call; give each stream a graph of its own.

    Args:
        model: fused, or any other that can be captured.
        images: on the GPU, of the shape that will be run.

    Raises:
        ValueError: images that are not on a GPU; calls with another shape or type.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        if not images.is_cuda:
            raise ValueError(f"CudaGraph: images are on {images.device}; a CUDA graph needs them on the GPU")
        self.images = images.detach().clone()
        self.graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream(images.device)
        side.wait_stream(torch.cuda.current_stream(images.device))
        with torch.no_grad(), torch.cuda.device(images.device):
            with torch.cuda.stream(side):
                for _ in range(3):  # cuBLASLt is asked for an algorithm in the first call of a shape
                    model(self.images)
            torch.cuda.current_stream(images.device).wait_stream(side)
            with torch.cuda.graph(self.graph):
                self.output = model(self.images)

    def __call__(self, images: Tensor) -> object:
        if images.shape != self.images.shape or images.dtype != self.images.dtype:
            raise ValueError(f"CudaGraph: images {list(images.shape)} of {images.dtype}; captured with "
                             f"{list(self.images.shape)} of {self.images.dtype}")
        self.images.copy_(images)
        self.graph.replay()
        return self.output
