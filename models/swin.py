"""Swin Transformer for inference: images in, logits out; state dict keys are those of the official checkpoints.

    python -c "from config import get_config; from models.build import build_model; \
               print(build_model(get_config('models/swin.yaml')))"

Paper: Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, ICCV 2021
(https://arxiv.org/abs/2103.14030). Checkpoints: https://github.com/microsoft/Swin-Transformer.

Shapes in comments: B images, a stage of H x W tokens with C channels, nH heads of d channels, windows of w x w = N
tokens, nW windows per image. Window attention takes qkv in image order, [B, H*W, 3C], and gives [B, H*W, C]: what lies
between the two Linear layers is one region of the exported graph, which one plugin can replace. Only the batch is
written as -1 in a reshape, so that an exported graph takes any batch.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Added to the logits between tokens that only the cyclic shift brought together. The official value; weaker than -inf
# where logits differ by as much, so it must not be replaced by that.
MASK_VALUE = -100.0

# MODEL.SWIN.ACT -> what F.gelu calls it. The exact GELU is what the official models have; the other is wrong by up to
# 5e-4 of a hidden value where the weights were trained with the first, and the other way round.
ACTIVATIONS = {"gelu": "none", "gelu_tanh": "tanh"}


def shift_mask(resolution: int, window_size: int, shift_size: int) -> Tensor:
    """The mask of SW-MSA: float32 [nW, 1, N, N], 0 between tokens of one region and MASK_VALUE between others.

    The cyclic shift brings tokens of up to four regions of the image into one window. Along an axis the regions of the
    shifted image are: all windows but the last, and the two parts of the last, apart where the image wrapped around.
    """
    position = torch.arange(resolution)
    band = (position >= resolution - window_size).int() + (position >= resolution - shift_size).int()  # [H], 0 to 2
    region = 3 * band[:, None] + band[None, :]  # [H, W]
    side = resolution // window_size
    region = region.reshape(side, window_size, side, window_size).transpose(1, 2)
    region = region.reshape(side * side, 1, window_size * window_size)  # [nW, 1, N]
    return (region[..., :, None] != region[..., None, :]) * MASK_VALUE


def relative_position_index(window_size: int) -> Tensor:
    """int64 [N, N]: the row of the (2w-1)^2 relative positions that the pair (query, key) has."""
    axis = torch.arange(window_size)
    row, column = axis.repeat_interleave(window_size), axis.repeat(window_size)  # [N]
    down = row[:, None] - row[None, :] + window_size - 1  # 0 to 2w-2
    right = column[:, None] - column[None, :] + window_size - 1
    return down * (2 * window_size - 1) + right


class WindowAttentionBase(nn.Module):
    """Multi-head self-attention inside (shifted) windows, W-MSA and SW-MSA: what V1 and V2 share.

    Args:
        dim: C.
        resolution: H = W, in tokens.
        num_heads: nH, a divisor of C.
        window_size: w, a divisor of H.
        shift_size: rows and columns that the windows are shifted by, 0 to w-1.
        qkv_bias: whether the Linear layer that makes q, k and v holds their bias.
    """

    def __init__(self, dim: int, resolution: int, num_heads: int, window_size: int, shift_size: int, *,
                 qkv_bias: bool) -> None:
        super().__init__()
        self.dim = dim
        self.resolution = resolution
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.window_size = window_size
        self.shift_size = shift_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        # Buffers follow from the configuration, or from the weights once folded: none is in the state dict.
        self.register_buffer("relative_position_index", relative_position_index(window_size), persistent=False)
        mask = shift_mask(resolution, window_size, shift_size) if shift_size else None
        self.register_buffer("attn_mask", mask, persistent=False)
        self.register_buffer("relative_position_bias", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H*W, C] -> [B, H*W, C]"""
        qkv = self._split_windows(self._qkv(x))
        bias = self._bias() if self.relative_position_bias is None else self.relative_position_bias
        logits = self._similarity(qkv) + bias  # (B, nW, nH, N, N)
        if self.attn_mask is not None:
            logits = logits + self.attn_mask  # mask (nW, 1, N, N)
        y = F.softmax(logits, dim=-1) @ qkv[2]  # (B, nW, nH, N, d)
        return self.proj(self._merge_windows(y))

    def fold_constants(self) -> None:
        """Replace what depends only on the weights by constants; the weights they came from are gone afterwards."""
        self.relative_position_bias = self._bias().detach()
        self.relative_position_index = None

    def _qkv(self, x: Tensor) -> Tensor:
        """[B, H*W, C] -> [B, H*W, 3C], channels ordered (q|k|v, head, d)"""
        return self.qkv(x)

    def _similarity(self, qkv: Tensor) -> Tensor:
        """Attention logits before bias and mask, [B, nW, nH, N, N], of q and k in [3, B, nW, nH, N, d]."""
        raise NotImplementedError

    def _bias(self) -> Tensor:
        """Relative position bias computed from the weights, [nH, N, N]."""
        raise NotImplementedError

    def _split_windows(self, qkv: Tensor) -> Tensor:
        """[B, H*W, 3C] -> [3, B, nW, nH, N, d]"""
        size, side, tokens = self.window_size, self.resolution // self.window_size, self.window_size**2
        if self.shift_size:
            qkv = qkv.reshape(-1, self.resolution, self.resolution, 3 * self.dim)
            qkv = torch.roll(qkv, shifts=(-self.shift_size, -self.shift_size), dims=(1, 2))
        qkv = qkv.reshape(-1, side, size, side, size, 3, self.num_heads, self.head_dim)
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7)  # (3, B, side, side, nH, w, w, d)
        return qkv.reshape(3, -1, side * side, self.num_heads, tokens, self.head_dim)

    def _merge_windows(self, y: Tensor) -> Tensor:
        """[B, nW, nH, N, d] -> [B, H*W, C], tokens back where they were in the image"""
        size, side = self.window_size, self.resolution // self.window_size
        y = y.reshape(-1, side, side, self.num_heads, size, size, self.head_dim)
        y = y.permute(0, 1, 4, 2, 5, 3, 6)  # (B, side, w, side, w, nH, d)
        if self.shift_size:
            y = y.reshape(-1, self.resolution, self.resolution, self.dim)
            y = torch.roll(y, shifts=(self.shift_size, self.shift_size), dims=(1, 2))
        return y.reshape(-1, self.resolution**2, self.dim)


class WindowAttention(WindowAttentionBase):
    """V1: scaled dot product, and a learned bias for each relative position.

    Args:
        qk_scale: what q is multiplied by; 0 = 1 / sqrt(d). The others as in the base class.
    """

    def __init__(self, dim: int, resolution: int, num_heads: int, window_size: int, shift_size: int, *,
                 qk_scale: float = 0.0) -> None:
        super().__init__(dim, resolution, num_heads, window_size, shift_size, qkv_bias=True)
        self.scale = qk_scale or self.head_dim**-0.5
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def fold_constants(self) -> None:
        super().fold_constants()
        self.relative_position_bias_table = None

    def _similarity(self, qkv: Tensor) -> Tensor:
        return (qkv[0] * self.scale) @ qkv[1].transpose(-2, -1)

    def _bias(self) -> Tensor:
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1).contiguous()


class Mlp(nn.Module):
    """Linear, GELU, Linear.

    Args:
        dim: C.
        hidden_dim: channels between the two.
        act: a key of ACTIVATIONS.
    """

    def __init__(self, dim: int, hidden_dim: int, act: str = "gelu") -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.approximate = ACTIVATIONS[act]

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]"""
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class SwinTransformerBlock(nn.Module):
    """Attention and MLP, each with LayerNorm before it and a residual around both.

    Args:
        attention: the block's (shifted) window attention.
        mlp_ratio: hidden channels of the MLP, as a multiple of C.
        act: the MLP's activation, a key of ACTIVATIONS.
    """

    def __init__(self, attention: WindowAttention, mlp_ratio: float, act: str = "gelu") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(attention.dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(attention.dim)
        self.mlp = Mlp(attention.dim, int(attention.dim * mlp_ratio), act)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H*W, C] -> [B, H*W, C]"""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Each 2 x 2 tokens become one of twice the channels: LayerNorm, then Linear.

    Args:
        dim: C.
        resolution: H = W, in tokens; even.
    """

    def __init__(self, dim: int, resolution: int) -> None:
        super().__init__()
        self.dim = dim
        self.resolution = resolution
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H*W, C] -> [B, H/2*W/2, 2C]"""
        return self.reduction(self.norm(self._gather(x)))

    def _gather(self, x: Tensor) -> Tensor:
        """[B, H*W, C] -> [B, H/2*W/2, 4C]; (row, column) of the four in official order: (0,0), (1,0), (0,1), (1,1)."""
        half = self.resolution // 2
        x = x.reshape(-1, half, 2, half, 2, self.dim).permute(0, 1, 3, 4, 2, 5)
        return x.reshape(-1, half * half, 4 * self.dim)


class PatchEmbed(nn.Module):
    """Image to tokens: one Linear per patch, written as a convolution, then LayerNorm."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.tokens = (img_size // patch_size) ** 2
        self.embed_dim = embed_dim
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, S, S] -> [B, H*W, C]"""
        return self.norm(self.proj(x).reshape(-1, self.embed_dim, self.tokens).transpose(1, 2))


class Stage(nn.Module):
    """Blocks of one resolution, then patch merging (none after the last stage)."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """[B, H*W, C] -> [B, H/2*W/2, 2C], or [B, H*W, C] in the last stage"""
        x = self.run_blocks(x)
        return x if self.downsample is None else self.downsample(x)

    def run_blocks(self, x: Tensor) -> Tensor:
        """[B, H*W, C] -> [B, H*W, C]: what a feature map is taken from."""
        for block in self.blocks:
            x = block(x)
        return x


class SwinTransformer(nn.Module):
    """Swin Transformer. Gives logits; pooled features where it has no head; or feature maps of stages.

    Args:
        img_size: S, pixels along one side of the input; a multiple of patch_size such that each stage has a whole
            number of windows.
        patch_size: pixels along one side of a token.
        in_chans: channels of the input.
        num_classes: length of the logits; 0 = no head: the output is what a head would read, [B, C of the last stage].
        embed_dim: C of the first stage.
        depths: blocks per stage.
        num_heads: nH per stage.
        window_size: w. A stage of at most w x w tokens is one window of its own size, without shift.
        mlp_ratio: hidden channels of the MLPs, as a multiple of C.
        attentions: per stage, what makes the attention of its blocks; V1's where it is None.
        act: activation of the MLPs, a key of ACTIVATIONS.
        qk_scale: V1's factor of q; 0 = 1 / sqrt(d).
        norm_eps: epsilon of every LayerNorm.
        maps: stages whose feature map is an output, for a backbone; none: one output, logits or features.
        map_norms: those of `maps` that a LayerNorm of their own, norm<stage>, comes after.
        keep_shift: whether a stage of exactly one window shifts it too, as backbones for detection do.
    """

    # What V2 does otherwise.
    block, merging = SwinTransformerBlock, PatchMerging

    def __init__(self, *, img_size: int, patch_size: int, in_chans: int, num_classes: int, embed_dim: int,
                 depths: Sequence[int], num_heads: Sequence[int], window_size: int, mlp_ratio: float,
                 attentions: Sequence[Callable[..., WindowAttentionBase]] | None = None, act: str = "gelu",
                 qk_scale: float = 0.0, norm_eps: float = 1e-5, maps: Sequence[int] = (),
                 map_norms: Sequence[int] = (), keep_shift: bool = False) -> None:
        super().__init__()
        self.img_size = img_size
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.layers = nn.ModuleList()
        attentions = attentions or [partial(WindowAttention, qk_scale=qk_scale)] * len(depths)
        dim, resolution = embed_dim, img_size // patch_size
        for stage, depth in enumerate(depths):
            if stage:
                dim, resolution = 2 * dim, resolution // 2
            window = min(window_size, resolution)
            shift = window // 2 if resolution > window or keep_shift else 0
            blocks = [
                self.block(attentions[stage](dim, resolution, num_heads[stage], window, shift * (index % 2)), mlp_ratio,
                           act)
                for index in range(depth)
            ]
            last = stage == len(depths) - 1
            self.layers.append(Stage(blocks, None if last else self.merging(dim, resolution)))
        self.maps = tuple(maps)
        for stage in map_norms:
            setattr(self, f"norm{stage}", nn.LayerNorm(embed_dim * 2**stage))
        self.norm = None if maps else nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes and not maps else None
        self.num_classes = dim if self.head is None else num_classes  # length of what comes out for an image
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = norm_eps
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def output_names(self) -> list[str]:
        """What the outputs are called in an exported graph: logits, features, or stage0, stage1, ... for maps."""
        if self.maps:
            return [f"stage{stage}" for stage in self.maps]
        return ["features" if self.head is None else "logits"]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Images [B, in_chans, S, S], normalised -> logits [B, num_classes], or features [B, C] without a head, or for
        each stage of `maps` its map [B, C, H, W].

        Raises:
            ValueError: the images are of another size.
        """
        # Not in a trace, where it would be a comparison of constants: the graph's input has its size anyway.
        if not torch.jit.is_tracing() and x.shape[-2:] != (self.img_size, self.img_size):
            raise ValueError(f"images of {tuple(x.shape[-2:])}; the model takes {self.img_size} by {self.img_size}")
        x = self.patch_embed(x)
        if self.maps:
            return self._feature_maps(x)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x).mean(dim=1)
        return x if self.head is None else self.head(x)

    def _feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Tokens [B, H*W, C] -> a map [B, C, H, W] for each stage of `maps`, taken before patch merging."""
        outputs = []
        for stage, layer in enumerate(self.layers):
            x = layer.run_blocks(x)
            if stage in self.maps:
                norm = getattr(self, f"norm{stage}", None)
                side = layer.blocks[0].attn.resolution
                y = (x if norm is None else norm(x)).transpose(1, 2)
                outputs.append(y.reshape(-1, y.shape[1], side, side))
            if layer.downsample is not None:
                x = layer.downsample(x)
        return tuple(outputs)

    def fold_constants(self) -> SwinTransformer:
        """Turn what does not depend on the input into buffers, in place; the model computes the same afterwards.

        Call it after the weights are loaded and before .half() or .bfloat16(), so that the constants are computed in
        FP32. The folded weights leave the state dict: a folded model is for running and exporting, not for saving.
        Folding twice does nothing more.

        Returns:
            The model itself.
        """
        for module in self.modules():
            if isinstance(module, WindowAttentionBase) and module.relative_position_bias is None:
                module.fold_constants()
        return self
