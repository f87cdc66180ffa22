"""All blocks of a Swin Transformer by the plugins' kernels, as the FP16 and the INT8 engine run them, without TensorRT.

From the tokens after patch embedding to those before the last LayerNorm, patch merging among them. Weights are random.
INT8 is where TensorRT/INT8/quant.py puts it by default, with scales from the largest numbers that 8 random images give.
For benchmark.py.
"""
from __future__ import annotations

import functools
import math

import torch
from torch import nn
from torch.nn import functional as F

from models.swin import MASK_VALUE, PatchMerging, SwinTransformer, SwinTransformerBlock, WindowAttentionBase
from models.swin_v2 import SwinTransformerV2
from TensorRT.Plugins.swin_kernels import c_interface as kernels
from TensorRT.swin_work import CHANNELS_IN, MLP_RATIO, PATCH, Swin

NARROW = 192  # blocks up to so many channels have their MLP in one FP16 kernel: MOST_CHANNELS of graphs/patterns.py
BRANCH_WIDTHS = (384,)  # of INT8 blocks whose attention branch is one kernel: WIDTHS of attention_branch_int8.py
EPSILON = 1e-5
HEAD_DIM = 32
CALIBRATION_IMAGES = 8


# --- the network in PyTorch ------------------------------------------------------------------------------------------

@functools.lru_cache(maxsize=8)
def network(swin: Swin, device: str, dtype: torch.dtype) -> SwinTransformer:
    """With random weights that FP16 holds exactly, constants folded in FP32: in every type the same network.

    Under the usual initial weights attention is all but uniform and V2's blocks are the identity.
    """
    sizes = {"img_size": swin.img_size, "patch_size": PATCH, "in_chans": CHANNELS_IN, "num_classes": 1,
             "embed_dim": swin.embed_dim, "depths": swin.depths, "window_size": swin.window, "mlp_ratio": MLP_RATIO,
             "num_heads": [swin.embed_dim * 2**stage // HEAD_DIM for stage in range(len(swin.depths))]}
    with torch.device(device):
        model = (SwinTransformerV2(pretrained_window_sizes=[0] * len(swin.depths), **sizes) if swin.type == "swinv2"
                 else SwinTransformer(**sizes))
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            if name.endswith("logit_scale"):
                parameter.mul_(0.5).add_(2.3)
            elif "norm" in name and name.endswith("weight"):
                parameter.mul_(0.2).add_(1)
            elif parameter.ndim == 1:
                parameter.mul_(0.1)
            elif not name.endswith("relative_position_bias_table"):
                parameter.mul_(parameter[0].numel() ** -0.5)
            parameter.copy_(parameter.half())
    return model.eval().requires_grad_(False).fold_constants().to(dtype)


def by_pytorch(swin: Swin, x: torch.Tensor) -> torch.Tensor:
    """[B, H*W, C] -> [B, H/8*W/8, 8C] in the type of x: the reference where that is FP64."""
    for layer in network(swin, str(x.device), x.dtype).layers:
        x = layer(x)
    return x


def weight_bytes(swin: Swin, precision: str) -> int:
    """Of all weight matrices, as they are read."""
    total = 0
    for stage, depth in enumerate(swin.depths):
        size = (swin.embed_dim * 2**stage) ** 2
        parts = {"qkv": 3, "proj": 1, "mlp": 2 * MLP_RATIO}  # in C^2
        quantised = set(parts) if size > NARROW**2 else set() if swin.type == "swinv2" else {"qkv"}
        for part, count in parts.items():
            total += depth * count * size * (1 if precision == "int8" and part in quantised else 2)
        total += 8 * size * 2 if stage + 1 < len(swin.depths) else 0  # patch merging
    return total


# --- the same by the kernels -----------------------------------------------------------------------------------------

class Linear:
    """A linear layer in FP16, and in INT8 with one scale for each output feature.

    Attributes:
        x_step, y_step: what a step of its INT8 input and output stands for.
    """

    def __init__(self, module: nn.Linear, amax: dict[nn.Module, tuple[float, float]]) -> None:
        bias = torch.zeros_like(module.weight[:, 0]) if module.bias is None else module.bias
        self.weight, self.bias = module.weight.half(), bias.half()
        self.x_step, self.y_step = (largest / 127 for largest in amax[module])
        steps = module.weight.abs().amax(1) / 127
        self.weight_q = (module.weight / steps[:, None]).round().to(torch.int8)
        self.factor, self.bias_q = steps * self.x_step, bias.float()

    def __call__(self, x: torch.Tensor, gelu: bool = False, residual: torch.Tensor | None = None) -> torch.Tensor:
        y = x.new_empty(*x.shape[:-1], len(self.weight))
        kernels.linear(x, self.weight, self.bias, residual, y, gelu)
        return y

    def int8(self, x_q: torch.Tensor, *, gelu: bool = False, residual: torch.Tensor | None = None,
             y_step: float = 0.0) -> torch.Tensor:
        """y is FP16 with y_step 0."""
        y = x_q.new_empty(*x_q.shape[:-1], len(self.weight), dtype=torch.int8 if y_step else torch.half)
        kernels.linear_int8(x_q, self.weight_q, self.factor, self.bias_q, residual, y, int(gelu), y_step)
        return y


class Norm:
    """A LayerNorm and its fused forms."""

    def __init__(self, module: nn.LayerNorm) -> None:
        self.parameters = (module.weight.float(), module.bias.float())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        kernels.layernorm(x, *self.parameters, y, EPSILON)
        return y

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(residual)
        kernels.layernorm_add(x, residual, *self.parameters, y, EPSILON)
        return y

    def int8(self, x: torch.Tensor, step: float) -> torch.Tensor:
        y_q = torch.empty_like(x, dtype=torch.int8)
        kernels.layernorm_int8(x, *self.parameters, y_q, EPSILON, step)
        return y_q

    def add_int8(self, x_q: torch.Tensor, residual: torch.Tensor, x_step: float,
                 step: float) -> tuple[torch.Tensor, torch.Tensor]:
        y, y_q = torch.empty_like(residual), torch.empty_like(x_q)
        kernels.layernorm_add_int8(x_q, residual, *self.parameters, y, y_q, EPSILON, x_step, step)
        return y, y_q


class Block:
    """One Swin block; x is [B, H, W, C]."""

    def __init__(self, module: SwinTransformerBlock, v2: bool, amax: dict[nn.Module, tuple[float, float]]) -> None:
        attention: WindowAttentionBase = module.attn
        self.v2, self.channels = v2, attention.dim
        self.narrow, self.branched = attention.dim <= NARROW, attention.dim in BRANCH_WIDTHS
        self.qkv, self.proj = Linear(attention.qkv, amax), Linear(attention.proj, amax)
        self.fc1, self.fc2 = Linear(module.mlp.fc1, amax), Linear(module.mlp.fc2, amax)
        self.norm1, self.norm2 = Norm(module.norm1), Norm(module.norm2)
        bias = attention.relative_position_bias.float()
        self.bias = F.pad(bias, (0, -bias.shape[-1] % 8)).contiguous()
        self.logit_scale = attention.scale.float().flatten() if v2 else None
        scale = 1.0 if v2 else attention.scale
        window, shift = attention.window_size, attention.shift_size
        self.windows = (attention.num_heads, (window, window), (shift, shift))
        self.numbers = (scale, MASK_VALUE)

    def fp16(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x if self.v2 else self.norm1(x))
        attention = torch.empty_like(x)
        kernels.attention(qkv, self.bias, None, self.logit_scale, attention, *self.windows, *self.numbers)
        if self.narrow:
            return self.mlp(x, attention)
        if self.v2:
            x = self.norm1.add(self.proj(attention), x)
            return self.norm2.add(self.fc2(self.fc1(x, gelu=True)), x)
        x = self.proj(attention, residual=x)
        return self.fc2(self.fc1(self.norm2(x), gelu=True), residual=x)

    def mlp(self, x: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """All of the block after attention."""
        y = torch.empty_like(x)
        proj_norm = dict(zip(("proj_gamma", "proj_beta"), self.norm1.parameters)) if self.v2 else {}
        kernels.mlp(x, *self.norm2.parameters, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, y,
                    norm_first=not self.v2, epsilon=EPSILON, attention=attention, proj_weight=self.proj.weight,
                    proj_bias=self.proj.bias, **proj_norm)
        return y

    def int8(self, x: torch.Tensor, x_q: torch.Tensor | None,
             following: Block | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x and, where the block before could write it, x in INT8 -> the same for the next block of the stage."""
        if self.v2 and self.narrow:
            return self.fp16(x), None
        if not self.v2:
            x_q = self.norm1.int8(x, self.qkv.x_step)
        elif x_q is None:
            x_q = torch.empty_like(x, dtype=torch.int8)
            kernels.quantize(x, x_q, self.qkv.x_step)
        if self.narrow:
            return self.mlp(x, self.attention_int8(x_q, torch.half)), None
        x, x_q = self.branch(x, x_q) if self.branched else self.parts(x, x_q)
        hidden = self.fc1.int8(x_q, gelu=True, y_step=self.fc2.x_step)
        if not self.v2:
            return self.fc2.int8(hidden, residual=x), None
        if following is None:
            return self.norm2.add(self.fc2.int8(hidden), x), None
        y_q = self.fc2.int8(hidden, y_step=self.fc2.y_step)
        return self.norm2.add_int8(y_q, x, self.fc2.y_step, following.qkv.x_step)

    def attention_int8(self, x_q: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        qkv = self.qkv.int8(x_q, y_step=self.qkv.y_step)
        y = torch.empty_like(x_q, dtype=dtype)
        kernels.attention_int8(qkv, self.bias, None, self.logit_scale, y, *self.windows, *self.numbers,
                               self.qkv.y_step, self.proj.x_step if dtype == torch.int8 else 0.0)
        return y

    def parts(self, x: torch.Tensor, x_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The attention branch with its residual: x, and what fc1 reads in INT8."""
        attention = self.attention_int8(x_q, torch.int8)
        if self.v2:
            projected = self.proj.int8(attention, y_step=self.proj.y_step)
            return self.norm1.add_int8(projected, x, self.proj.y_step, self.fc1.x_step)
        x = self.proj.int8(attention, residual=x)
        return x, self.norm2.int8(x, self.fc1.x_step)

    def branch(self, x: torch.Tensor, x_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same in one node."""
        y, y_q = torch.empty_like(x), torch.empty_like(x_q)
        norm = self.norm1 if self.v2 else self.norm2
        kernels.attention_branch_int8(
            x_q, x, self.qkv.weight_q, self.qkv.factor, self.qkv.bias_q, self.proj.weight_q, self.proj.factor,
            self.proj.bias_q, self.bias, *norm.parameters, self.logit_scale, y, y_q, *self.windows, not self.v2,
            *self.numbers, self.qkv.y_step, self.proj.x_step, self.proj.y_step if self.v2 else 0.0, EPSILON,
            self.fc1.x_step)
        return y, y_q


class Merging:
    """Patch merging, always in FP16."""

    def __init__(self, module: PatchMerging, v2: bool, amax: dict[nn.Module, tuple[float, float]]) -> None:
        self.v2, self.reduction, self.norm = v2, Linear(module.reduction, amax), Norm(module.norm)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = x.shape
        y = x.new_empty(batch, height // 2, width // 2, 4 * channels)
        kernels.patch_merge(x, *((None, None) if self.v2 else self.norm.parameters), y, EPSILON)
        y = self.reduction(y)
        return self.norm(y) if self.v2 else y


def largest_numbers(swin: Swin, device: str) -> dict[nn.Module, tuple[float, float]]:
    """Largest absolute input and output of every linear layer of `network`, of random images."""
    model, found = network(swin, device, torch.float32), {}

    def look(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        found[module] = (inputs[0].abs().max().item(), output.abs().max().item())

    hooks = [module.register_forward_hook(look) for module in model.layers.modules() if isinstance(module, nn.Linear)]
    try:
        generator = torch.Generator(device).manual_seed(1)
        by_pytorch(swin, torch.randn(CALIBRATION_IMAGES, (swin.img_size // PATCH) ** 2, swin.embed_dim,
                                     generator=generator, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return found


@functools.lru_cache(maxsize=4)
def stages(swin: Swin, device: str) -> list[tuple[list[Block], Merging | None]]:
    """The network of `network` as the kernels take it."""
    v2, amax = swin.type == "swinv2", largest_numbers(swin, device)
    return [([Block(block, v2, amax) for block in layer.blocks],
             None if layer.downsample is None else Merging(layer.downsample, v2, amax))
            for layer in network(swin, device, torch.float32).layers]


def by_kernels(swin: Swin, precision: str, x: torch.Tensor) -> torch.Tensor:
    """What by_pytorch gives; x is FP16."""
    x = x.unflatten(1, (math.isqrt(x.shape[1]), -1))
    for blocks, merging in stages(swin, str(x.device)):
        x_q = None
        for i, block in enumerate(blocks):
            if precision == "fp16":
                x = block.fp16(x)
            else:
                x, x_q = block.int8(x, x_q, blocks[i + 1] if i + 1 < len(blocks) else None)
        x = x if merging is None else merging(x)
    return x.flatten(1, 2)
