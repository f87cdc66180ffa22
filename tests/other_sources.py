"""Swin Transformers as other repositories write them, small: what they do differently, in modules of our own.

Each computes what the code that its docstring names computes, for any image size. Widths and depths are the caller's;
weights are whatever the caller puts in.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

MASKED = -100.0


def relative_positions(window: tuple[int, int]) -> torch.Tensor:
    """Row of the bias table for each pair of a window's tokens, int64 [N, N] (Liu et al. 2021, section 3.2)."""
    rows, cols = (torch.arange(side) for side in window)
    y, x = (axis.flatten() for axis in torch.meshgrid(rows, cols, indexing="ij"))
    dy = y[:, None] - y[None, :] + window[0] - 1
    dx = x[:, None] - x[None, :] + window[1] - 1
    return dy * (2 * window[1] - 1) + dx


def partition(x: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """[B, H, W, C] -> [B*nW, N, C]"""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window[0], window[0], width // window[1], window[1], channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window[0] * window[1], channels)


def reverse(windows: torch.Tensor, window: tuple[int, int], height: int, width: int) -> torch.Tensor:
    """[B*nW, N, C] -> [B, H, W, C]. The batch is a number of Python's, as in the official code: exporters freeze it."""
    batch = int(windows.shape[0] / (height * width / window[0] / window[1]))
    x = windows.view(batch, height // window[0], width // window[1], window[0], window[1], -1)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, -1)


def shift_mask(height: int, width: int, window: tuple[int, int], shift: tuple[int, int]) -> torch.Tensor:
    """The additive mask of shifted windows [nW, N, N]: MASKED between tokens of different regions."""
    regions, number = torch.zeros(1, height, width, 1), 0
    for rows in (slice(0, -window[0]), slice(-window[0], -shift[0]), slice(-shift[0], None)):
        for cols in (slice(0, -window[1]), slice(-window[1], -shift[1]), slice(-shift[1], None)):
            regions[:, rows, cols] = number
            number += 1
    of_windows = partition(regions, window).squeeze(-1)
    return torch.where(of_windows[:, None, :] != of_windows[:, :, None], MASKED, 0.0)


class WindowAttention(nn.Module):
    """softmax(q k^T / sqrt(d) + bias + mask) v of windows [B*nW, N, C]."""

    def __init__(self, channels: int, heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.tokens = heads, window[0] * window[1]
        self.scale = (channels // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window[0] - 1) * (2 * window[1] - 1), heads))
        self.register_buffer("index", relative_positions(window), persistent=False)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        windows, tokens, channels = x.shape
        q, k, v = self.qkv(x).reshape(windows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.index.view(-1)].view(tokens, tokens, -1).permute(2, 0, 1)
        scores = scores + bias.unsqueeze(0)
        if mask is not None:
            count = mask.shape[0]
            mask = mask[:, None].unsqueeze(0).to(scores.dtype)
            scores = scores.view(windows // count, count, self.heads, tokens, tokens) + mask
            scores = scores.view(-1, self.heads, tokens, tokens)
        x = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(windows, tokens, channels)
        return self.proj(x)


class Mlp(nn.Sequential):
    def __init__(self, channels: int, ratio: int = 4) -> None:
        super().__init__(nn.Linear(channels, ratio * channels), nn.GELU(), nn.Linear(ratio * channels, channels))


class PaddedBlock(nn.Module):
    """A block that pads the normalised tokens at the bottom and the right, then rolls them (official detection code,
    mmdetection). Padded tokens are zeros, and take part as keys."""

    def __init__(self, channels: int, heads: int, window: tuple[int, int], shifted: bool) -> None:
        super().__init__()
        self.window, self.shift = window, tuple(side // 2 if shifted else 0 for side in window)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn, self.mlp = WindowAttention(channels, heads, window), Mlp(channels)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        batch, tokens, channels = x.shape  # [B, H*W, C]
        image = self.norm1(x).view(batch, height, width, channels)
        image = F.pad(image, (0, 0, 0, -width % self.window[1], 0, -height % self.window[0]))
        _, rows, cols, _ = image.shape
        mask = None
        if any(self.shift):
            image = torch.roll(image, (-self.shift[0], -self.shift[1]), (1, 2))
            mask = shift_mask(rows, cols, self.window, self.shift)
        windows = self.attn(partition(image, self.window), mask)
        image = reverse(windows, self.window, rows, cols)
        if any(self.shift):
            image = torch.roll(image, self.shift, (1, 2))
        image = image[:, :height, :width].reshape(batch, tokens, channels)
        x = x + image
        return x + self.mlp(self.norm2(x))


class BlockMerging(nn.Module):
    """2 x 2 tokens side by side, (0,0) (1,0) (0,1) (1,1), an odd side padded; LayerNorm; half the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * channels), nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        batch, _, channels = x.shape
        x = x.view(batch, height, width, channels)
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduction(self.norm(x.view(batch, -1, 4 * channels)))


class UnfoldMerging(nn.Module):
    """The same by nn.Unfold, which puts a channel's four tokens side by side (mmdetection 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * channels), nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        batch, _, channels = x.shape
        image = x.view(batch, height, width, channels).permute(0, 3, 1, 2)
        if height % 2 or width % 2:
            image = F.pad(image, (0, width % 2, 0, height % 2))
        x = F.unfold(image, kernel_size=2, stride=2).transpose(1, 2)
        return self.reduction(self.norm(x))


class Detector(nn.Module):
    """A backbone [B, 3, H, W] -> a map [B, C, h, w] of each stage, each normalised: SwinTransformer-Object-Detection's
    (BiRefNet's, with window 12), or, with UnfoldMerging, mmdetection 3's. Shifted blocks are shifted whatever the
    size."""

    def __init__(self, merging: type[nn.Module] = BlockMerging, channels: int = 32, depths: Sequence[int] = (2, 2, 2),
                 heads: Sequence[int] = (1, 2, 4), window: tuple[int, int] = (4, 4), patch: int = 4) -> None:
        super().__init__()
        self.patch = patch
        self.embed, self.embed_norm = nn.Conv2d(3, channels, patch, patch), nn.LayerNorm(channels)
        widths = [channels * 2**i for i in range(len(depths))]
        self.stages = nn.ModuleList(
            nn.ModuleList(PaddedBlock(width, head, window, bool(i % 2)) for i in range(depth))
            for width, depth, head in zip(widths, depths, heads))
        self.merges = nn.ModuleList(merging(width) for width in widths[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        height, width = x.shape[2:]
        if height % self.patch or width % self.patch:
            x = F.pad(x, (0, -width % self.patch, 0, -height % self.patch))
        x = self.embed(x)
        height, width = x.shape[2:]
        x, maps = self.embed_norm(x.flatten(2).transpose(1, 2)), []
        for i, blocks in enumerate(self.stages):
            for block in blocks:
                x = block(x, height, width)
            maps.append(self.norms[i](x).view(-1, height, width, x.shape[-1]).permute(0, 3, 1, 2).contiguous())
            if i < len(self.merges):
                x = self.merges[i](x, height, width)
                height, width = (height + 1) // 2, (width + 1) // 2
        return tuple(maps)


# --- super-resolution ----------------------------------------------------------------------------------------


class RestorationBlock(nn.Module):
    """A block without padding: the image is padded to whole windows before the network (SwinIR, Liang et al. 2021)."""

    def __init__(self, channels: int, heads: int, window: tuple[int, int], shifted: bool, ratio: int = 2) -> None:
        super().__init__()
        self.window, self.shift = window, tuple(side // 2 if shifted else 0 for side in window)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn, self.mlp = WindowAttention(channels, heads, window), Mlp(channels, ratio)

    def attended(self, image: torch.Tensor) -> torch.Tensor:
        """[B, H, W, C] -> the same, after window attention."""
        _, height, width, _ = image.shape
        mask = None
        if any(self.shift):
            image = torch.roll(image, (-self.shift[0], -self.shift[1]), (1, 2))
            mask = shift_mask(height, width, self.window, self.shift)
        image = reverse(self.attn(partition(image, self.window), mask), self.window, height, width)
        return torch.roll(image, self.shift, (1, 2)) if any(self.shift) else image

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        batch, tokens, channels = x.shape
        image = self.attended(self.norm1(x).view(batch, height, width, channels))
        x = x + image.view(batch, tokens, channels)
        return x + self.mlp(self.norm2(x))


class ChannelAttention(nn.Module):
    """Two convolutions whose channels are weighted by what their means say (HAT's CAB, Chen et al. 2023)."""

    def __init__(self, channels: int, squeeze: int = 4) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(channels, channels // 3, 3, 1, 1), nn.GELU(),
                                   nn.Conv2d(channels // 3, channels, 3, 1, 1))
        self.weights = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels // squeeze, 1), nn.ReLU(),
                                     nn.Conv2d(channels // squeeze, channels, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convs(x)
        return x * self.weights(x)


class HybridBlock(RestorationBlock):
    """HAT's block: window attention and channel attention side by side."""

    def __init__(self, channels: int, heads: int, window: tuple[int, int], shifted: bool) -> None:
        super().__init__(channels, heads, window, shifted)
        self.conv_block = ChannelAttention(channels)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        batch, tokens, channels = x.shape
        image = self.norm1(x).view(batch, height, width, channels)
        beside = self.conv_block(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(batch, tokens, channels)
        x = x + self.attended(image).view(batch, tokens, channels) + 0.1 * beside
        return x + self.mlp(self.norm2(x))


class OverlappingAttention(nn.Module):
    """HAT's overlapping cross-attention: a window's queries, keys and values of half as wide a border around it."""

    def __init__(self, channels: int, heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.window, self.heads, self.scale = window, heads, (channels // heads) ** -0.5
        self.around = tuple(side + side // 2 for side in window)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(
            math.prod(inner + outer - 1 for inner, outer in zip(window, self.around)), heads))
        self.register_buffer("index", self._positions(), persistent=False)
        self.mlp = Mlp(channels, 2)

    def _positions(self) -> torch.Tensor:
        def places(size: tuple[int, int]) -> list[torch.Tensor]:
            return [axis.flatten() for axis in torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij")]

        (y, x), (key_y, key_x) = places(self.window), places(self.around)
        dy = key_y[None, :] - y[:, None] + self.window[0] - 1
        dx = key_x[None, :] - x[:, None] + self.window[1] - 1
        return dy * (self.window[1] + self.around[1] - 1) + dx

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        batch, tokens, channels = x.shape
        image = self.qkv(self.norm1(x)).view(batch, height, width, 3, channels).permute(3, 0, 4, 1, 2)
        queries = partition(image[0].permute(0, 2, 3, 1), self.window)                  # (B*nW, N, C)
        border = [(outer - inner) // 2 for inner, outer in zip(self.window, self.around)]
        pairs = F.unfold(torch.cat((image[1], image[2]), dim=1), self.around, stride=self.window, padding=border)
        count = math.prod(self.around)
        pairs = pairs.view(batch, 2, channels, count, -1).permute(1, 0, 4, 3, 2).reshape(2, -1, count, channels)
        q, k, v = (tensor.view(tensor.shape[0], -1, self.heads, channels // self.heads).transpose(1, 2)
                   for tensor in (queries, pairs[0], pairs[1]))
        bias = self.relative_position_bias_table[self.index.view(-1)].view(*self.index.shape, -1).permute(2, 0, 1)
        scores = (q * self.scale) @ k.transpose(-2, -1) + bias.unsqueeze(0)
        windows = (scores.softmax(-1) @ v).transpose(1, 2).reshape(queries.shape)
        x = x + self.proj(reverse(windows, self.window, height, width).view(batch, tokens, channels))
        return x + self.mlp(self.norm2(x))


class Restorer(nn.Module):
    """[B, 3, H, W] -> [B, 3, 2H, 2W]: SwinIR's classical network (heads of 30), its light one (heads of 10), or HAT's.

    The image is padded to whole windows by reflection, and what comes of the padding is cut off.
    """

    def __init__(self, block: type[RestorationBlock] = RestorationBlock, channels: int = 60, heads: int = 2,
                 window: tuple[int, int] = (8, 8), depths: Sequence[int] = (2, 2)) -> None:
        super().__init__()
        self.window = window
        self.first = nn.Conv2d(3, channels, 3, 1, 1)
        self.embed_norm, self.norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.groups = nn.ModuleList(
            nn.ModuleList(block(channels, heads, window, bool(i % 2)) for i in range(depth)) for depth in depths)
        self.overlapping = nn.ModuleList(
            OverlappingAttention(channels, heads, window) for _ in depths) if block is HybridBlock else None
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1) for _ in depths)
        self.after = nn.Conv2d(channels, channels, 3, 1, 1)
        self.upsample = nn.Sequential(nn.Conv2d(channels, 4 * 3, 3, 1, 1), nn.PixelShuffle(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        if height % self.window[0] or width % self.window[1]:
            x = F.pad(x, (0, -width % self.window[1], 0, -height % self.window[0]), mode="reflect")
        rows, cols = x.shape[2:]
        first = self.first(x)
        x = self.embed_norm(first.flatten(2).transpose(1, 2))
        for i, (blocks, conv) in enumerate(zip(self.groups, self.convs)):
            before = x
            for block in blocks:
                x = block(x, rows, cols)
            if self.overlapping is not None:
                x = self.overlapping[i](x, rows, cols)
            image = conv(x.transpose(1, 2).view(-1, x.shape[-1], rows, cols))
            x = before + image.flatten(2).transpose(1, 2)
        image = self.norm(x).transpose(1, 2).view(-1, x.shape[-1], rows, cols)
        image = self.upsample(self.after(image) + first)
        return image[:, :, :2 * height, :2 * width]


# --- segmentation of scans -----------------------------------------------------------------------------------


class PatchExpanding(nn.Module):
    """Twice the side, half the channels: Swin-Unet's way up (Cao et al. 2021)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand, self.norm = nn.Linear(channels, 2 * channels, bias=False), nn.LayerNorm(channels // 2)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        batch, _, channels = x.shape
        x = self.expand(x).view(batch, height, width, 2, 2, channels // 2)
        return self.norm(x.permute(0, 1, 3, 2, 4, 5).reshape(batch, -1, channels // 2))


class Unet(nn.Module):
    """[B, 3, H, W] -> [B, classes, H, W]: Swin-Unet with two stages down and up, on images that its windows divide."""

    def __init__(self, channels: int = 32, window: tuple[int, int] = (4, 4), classes: int = 5) -> None:
        super().__init__()
        self.embed, self.embed_norm = nn.Conv2d(3, channels, 4, 4), nn.LayerNorm(channels)
        self.down = nn.ModuleList(RestorationBlock(channels, 1, window, bool(i), 4) for i in range(2))
        self.merge = BlockMerging(channels)
        self.bottom = nn.ModuleList(RestorationBlock(2 * channels, 2, window, bool(i), 4) for i in range(2))
        self.expand, self.concat = PatchExpanding(2 * channels), nn.Linear(2 * channels, channels)
        self.up = nn.ModuleList(RestorationBlock(channels, 1, window, bool(i), 4) for i in range(2))
        self.norm, self.head = nn.LayerNorm(channels), nn.ConvTranspose2d(channels, classes, 4, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        rows, cols = x.shape[2:]
        x = self.embed_norm(x.flatten(2).transpose(1, 2))
        for block in self.down:
            x = block(x, rows, cols)
        skip, x = x, self.merge(x, rows, cols)
        for block in self.bottom:
            x = block(x, rows // 2, cols // 2)
        x = self.concat(torch.cat([self.expand(x, rows // 2, cols // 2), skip], -1))
        for block in self.up:
            x = block(x, rows, cols)
        return self.head(self.norm(x).transpose(1, 2).view(-1, x.shape[-1], rows, cols))
