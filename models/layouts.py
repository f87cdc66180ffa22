"""Names and orders of weights in the checkpoints of other libraries, turned into the official ones.

    python -c "from models.layouts import LAYOUTS; print(*LAYOUTS, sep='\\n')"

| layout | whose | what differs from the official names |
|---|---|---|
| official | microsoft/Swin-Transformer, SimMIM, models/train.py | nothing; SimMIM: no head, V2's cpb_mlp is rpe_mlp |
| timm | timm, its features_only too (no head, no last norm) | patch merging begins the stage that follows; head.fc |
| huggingface | transformers: Swin, Swinv2, with or without classifier | query, key and value are three layers |
| torchvision | swin_t to swin_v2_b | one list of stages and mergings; V2's q and v bias lie in that of qkv |
| mmdetection | OpenMMLab's mmdetection, mmsegmentation, mmpretrain | channels of patch merging in the order of unfold |

Read, and described in words of our own, from these libraries' sources: see the links at each function.
"""
from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# Buffers that many files hold beside the weights. The models here compute their own.
DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask")

# A name that only this layout has, after a prefix.
LAYOUTS = {
    "official": re.compile(r"(.*?)layers[._]\d+\.blocks\.\d+\.attn\.(?:qkv\.weight|relative_position_bias_table"
                           r"|logit_scale)"),
    "huggingface": re.compile(r"(.*?)encoder\.layers\.\d+\.blocks\.\d+\.attention\..+"),
    "torchvision": re.compile(r"(.*?)features\.\d+\.\d+\.attn\.qkv\.weight"),
    "mmdetection": re.compile(r"(.*?)stages\.\d+\.blocks\.\d+\.attn\.w_msa\..+"),
}
# What the classifier is called where it stands outside the prefix, beside the backbone.
_OUTSIDE_HEADS = ("classifier", "head.fc", "head", "fc")


@dataclass
class Official:
    """Weights with official names.

    Attributes:
        state: the weights, and the buffers that tell of windows (DERIVED).
        layout: whose names they had.
        left_out: names of the file that are no part of this model: of a neck, a decoder, an optimizer.
        notes: what was done that is no renaming, in words.
    """

    state: dict[str, Tensor]
    layout: str
    left_out: list[str]
    notes: list[str]


def find(names: Iterable[str]) -> list[tuple[str, str]]:
    """The Swin Transformers in a state dict by its names: (prefix, layout) of each, e.g. ("module.", "official")."""
    found = {}
    for name in names:
        for layout, pattern in LAYOUTS.items():
            match = pattern.fullmatch(name)
            if match and (not match[1] or match[1].endswith(".")):
                found[match[1], layout] = None
    return list(found)


def to_official(tensors: dict[str, Tensor], prefix: str, layout: str) -> Official:
    """The weights under a prefix with official names and orders. What cannot be turned keeps its name."""
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    left_out = [name for name in tensors if not name.startswith(prefix)]
    state, notes = {"official": _from_official, "huggingface": _from_huggingface, "torchvision": _from_torchvision,
                    "mmdetection": _from_mmdetection}[layout](inside)
    if layout == "official" and _is_timm(inside):
        layout = "timm"
    width = state["patch_embed.proj.weight"].shape[0] if _matrix(state, "patch_embed.proj.weight", 4) else 0
    if not any(name.startswith("head.") for name in state):
        notes += _take_head(tensors, prefix, state, left_out, width * 2 ** (len(_depths(state)) - 1))
    backbone = {name: match for name in left_out
                if (match := re.fullmatch(r"(?:.*\.)?hidden_states_norms\.stage(\d)\.(weight|bias)", name))}
    if layout == "huggingface" and backbone:
        state = {name: value for name, value in state.items() if not name.startswith("norm.")}
        state |= {f"norm{int(match[1]) - 1}.{match[2]}": tensors[name] for name, match in backbone.items()}
        left_out = [name for name in left_out if name not in backbone]
    masks = [name for name in state if name in ("mask_token", "embeddings.mask_token")]
    for name in masks:  # of masked-image pre-training; no image without a mask needs it
        left_out.append(prefix + name)
        del state[name]
    _one_norm(state)
    _no_qkv_bias(state, notes)
    if _matrix(state, "head.weight", 2) and "head.bias" not in state:
        state["head.bias"] = torch.zeros(state["head.weight"].shape[0])
        notes.append("no bias of the classifier: zeros")
    return Official(state, layout, left_out, notes)


# --- what a state dict is of -------------------------------------------------------------------------------------


def described(state: dict[str, Tensor]) -> dict[str, object]:
    """What official weights are of, by the configuration's keys, as far as names and shapes tell.

    V1's window follows from its table, V2's from buffers that the official files have and timm's have not.
    """
    blocks = {name for name in state if name.startswith("layers.")}
    facts: dict[str, object] = {}
    if any(name.endswith(".attn.logit_scale") for name in blocks):
        facts["MODEL.TYPE"] = "swinv2"
    elif any(name.endswith(".attn.relative_position_bias_table") for name in blocks):
        facts["MODEL.TYPE"] = "swinv1"
    else:
        return facts
    depths = _depths(state)
    facts["MODEL.SWIN.DEPTHS"] = depths
    if _matrix(state, "patch_embed.proj.weight", 4):
        facts["MODEL.SWIN.EMBED_DIM"], _, facts["MODEL.SWIN.PATCH_SIZE"], _ = state["patch_embed.proj.weight"].shape
    v2 = facts["MODEL.TYPE"] == "swinv2"
    heads = []
    for stage in range(len(depths)):
        table = state.get(f"layers.{stage}.blocks.0.attn.{'logit_scale' if v2 else 'relative_position_bias_table'}")
        if table is not None and table.ndim:
            heads.append(table.shape[0] if v2 else table.shape[-1])
    facts["MODEL.SWIN.NUM_HEADS"] = heads
    window = window_of(state, "layers.0.blocks.0")
    if window:
        facts["MODEL.SWIN.WINDOW_SIZE"] = window
    if _matrix(state, "layers.0.blocks.0.mlp.fc1.weight", 2):
        hidden, width = state["layers.0.blocks.0.mlp.fc1.weight"].shape
        facts["MODEL.SWIN.MLP_RATIO"] = hidden / width if width else 0.0
    return facts


def window_of(state: dict[str, Tensor], block: str) -> int | None:
    """The window of a block, in tokens along one side, from its table or buffers; None where nothing tells it."""
    table = state.get(f"{block}.attn.relative_position_bias_table")
    if table is not None and table.ndim == 2:
        return (math.isqrt(table.shape[0]) + 1) // 2
    index = state.get(f"{block}.attn.relative_position_index")
    if index is not None:  # [N, N]; torchvision's is flat
        return math.isqrt(math.isqrt(index.numel()))
    table = state.get(f"{block}.attn.relative_coords_table")
    return (table.shape[1] + 1) // 2 if table is not None and table.ndim == 4 else None


def _depths(state: dict[str, Tensor]) -> list[int]:
    blocks = {(int(match[1]), int(match[2])) for name in state
              if (match := re.match(r"layers\.(\d{1,4})\.blocks\.(\d{1,4})\.", name))}
    stages = sorted({stage for stage, _ in blocks})
    return [sum(stage == of for of, _ in blocks) for stage in stages]


def _matrix(state: dict[str, Tensor], name: str, axes: int) -> bool:
    return name in state and state[name].ndim == axes


# --- what several layouts share ----------------------------------------------------------------------------------


def _renamed(state: dict[str, Tensor], *rules: tuple[str, str]) -> dict[str, Tensor]:
    """The first rule (pattern, replacement) that fits a name gives the new one."""
    new = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            official, count = re.subn(pattern, replacement, name)
            if count:
                name = official
                break
        new[name] = value
    return new


def _earlier_merging(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Patch merging that begins a stage (timm, mmpretrain's V2) put at the end of the one before."""
    first = any(name.startswith("layers.0.downsample.") for name in state)
    if first or not any(name.startswith("layers.1.downsample.") for name in state):
        return state

    def earlier(match: re.Match) -> str:
        return f"layers.{int(match[1]) - 1}.downsample."

    return {re.sub(r"^layers\.(\d+)\.downsample\.", earlier, name): value for name, value in state.items()}


def _take_head(tensors: dict[str, Tensor], prefix: str, state: dict[str, Tensor], left_out: list[str],
               width: int) -> list[str]:
    """Take the classifier that stands beside the backbone, if its weight is [classes, width], in place; says which."""
    parents = [prefix]
    while parents[-1]:  # a.b. -> a. -> nothing
        parents.append(parents[-1][:-1].rpartition(".")[0])
        parents[-1] += "." if parents[-1] else ""
    for parent in parents:
        for head in _OUTSIDE_HEADS:
            weight, bias = f"{parent}{head}.weight", f"{parent}{head}.bias"
            if weight in tensors and tensors[weight].ndim == 2 and tensors[weight].shape[1] == width:
                state["head.weight"] = tensors[weight]
                if bias in tensors:
                    state["head.bias"] = tensors[bias]
                left_out[:] = [name for name in left_out if name not in (weight, bias)]
                if parent == prefix:
                    for name in (weight, bias):
                        state.pop(name.removeprefix(prefix), None)
                return [f"classifier {parent}{head}"]
    return []


def _one_norm(state: dict[str, Tensor]) -> None:
    """norm3 of a model whose only map is the last stage's is the norm before the head, in place."""
    stages = sorted({int(match[1]) for name in state if (match := re.fullmatch(r"norm(\d)\.(weight|bias)", name))})
    if stages == [len(_depths(state)) - 1] and "norm.weight" not in state:
        for part in ("weight", "bias"):
            if f"norm{stages[0]}.{part}" in state:
                state[f"norm.{part}"] = state.pop(f"norm{stages[0]}.{part}")


def _no_qkv_bias(state: dict[str, Tensor], notes: list[str]) -> None:
    """Zeros where a model has no bias of q, k and v at all (qkv_bias=False), in place: it computes the same."""
    weights = [name for name in state if name.endswith(".attn.qkv.weight") and state[name].ndim == 2]
    v2 = any(name.endswith(".attn.logit_scale") for name in state)
    parts = ("q_bias", "v_bias") if v2 else ("qkv.bias",)
    names = [name.removesuffix("qkv.weight") for name in weights]
    if not weights or any(f"{name}{part}" in state for name in names for part in parts):
        return
    for name in names:
        for part in parts:
            rows = state[f"{name}qkv.weight"].shape[0]
            state[f"{name}{part}"] = torch.zeros(rows if part == "qkv.bias" else rows // 3)
    notes.append("no bias of q, k and v: zeros")


# --- one layout each ---------------------------------------------------------------------------------------------


def _is_timm(inside: dict[str, Tensor]) -> bool:
    return (any(name.startswith(("head.fc.", "layers_")) for name in inside)
            or _earlier_merging(inside) is not inside)


def _from_official(inside: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Official names, and timm's: https://github.com/huggingface/pytorch-image-models, swin_transformer.py.

    features_only writes layers_0 for layers.0. SimMIM's first V2 files call the MLP of the position bias rpe_mlp.
    """
    state = _renamed(inside, (r"^layers_(\d+)\.", r"layers.\1."), (r"^head\.fc\.", "head."),
                     (r"^(.*\.attn\.)rpe_mlp\.", r"\1cpb_mlp."))
    return _earlier_merging(state), []


def _from_torchvision(inside: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """https://github.com/pytorch/vision, torchvision/models/swin_transformer.py.

    features.0 is the patch embedding, then stages (odd) and mergings (even) take turns. V2's qkv has a bias whose
    middle third, of k, is set to zero in every run.
    """
    new: dict[str, Tensor] = {}
    for name, value in inside.items():
        match = re.fullmatch(r"features\.(\d{1,3})\.(.+)", name)
        if not match:
            new[name] = value
            continue
        index, rest = int(match[1]), match[2]
        if index == 0:
            rest = re.sub(r"^0\.", "patch_embed.proj.", re.sub(r"^2\.", "patch_embed.norm.", rest))
            new[rest] = value
        elif index % 2:
            rest = re.sub(r"\.mlp\.0\.", ".mlp.fc1.", re.sub(r"\.mlp\.3\.", ".mlp.fc2.", rest))
            new[f"layers.{index // 2}.blocks.{rest}"] = value
        else:
            new[f"layers.{index // 2 - 1}.downsample.{rest}"] = value
    for name in [name for name in new if name.endswith(".attn.qkv.bias")]:
        attention = name.removesuffix("qkv.bias")
        if f"{attention}logit_scale" in new and new[name].ndim == 1 and len(new[name]) % 3 == 0:
            new[f"{attention}q_bias"], _, new[f"{attention}v_bias"] = new.pop(name).chunk(3)
    return new, []


def _from_huggingface(inside: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """https://github.com/huggingface/transformers, models/swin and models/swinv2: the names in files and, for V1, those
    of the modules since version 5. hidden_states_norms.stage1 of a SwinBackbone is the norm of the first stage's map.
    """
    block = r"^encoder\.layers\.(\d+)\.blocks\.(\d+)\."
    to = r"layers.\1.blocks.\2."
    state = _renamed(
        inside,
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.norm\.", "patch_embed.norm."),
        (block + r"layernorm_before\.", to + "norm1."),
        (block + r"layernorm_after\.", to + "norm2."),
        (block + r"attention\.(?:output\.dense|o_proj)\.", to + "attn.proj."),
        (block + r"(?:intermediate\.dense|mlp\.fc1)\.", to + "mlp.fc1."),
        (block + r"(?:output\.dense|mlp\.fc2)\.", to + "mlp.fc2."),
        (block + r"attention\.(?:self|relative_position_bias)\.(relative_|logit_scale)", to + r"attn.\3"),
        (block + r"attention\.self\.continuous_position_bias_mlp\.", to + "attn.cpb_mlp."),
        (block + r"attention\.(?:self\.query|q_proj)\.", to + "attn.q."),
        (block + r"attention\.(?:self\.key|k_proj)\.", to + "attn.k."),
        (block + r"attention\.(?:self\.value|v_proj)\.", to + "attn.v."),
        (r"^encoder\.layers\.(\d+)\.downsample\.", r"layers.\1.downsample."),
    )
    # A SwinBackbone has norms of its maps beside the prefix and a last norm that it does not use: see to_official.
    state = _renamed(state, (r"^layernorm\.", "norm."))
    for name in [name for name in state if name.endswith(".attn.q.weight")]:
        _stack_q_k_v(state, name.removesuffix("q.weight"))
    return state, []


def _stack_q_k_v(state: dict[str, Tensor], attention: str) -> None:
    """Three Linear layers to one, in place; V2's k has no bias, and V1 may have none at all."""
    weights, biases = ([f"{attention}{part}.{kind}" for part in "qkv"] for kind in ("weight", "bias"))
    if not all(name in state and state[name].ndim == 2 for name in weights):
        return
    if len({state[name].shape[1] for name in weights}) != 1:
        return
    state[f"{attention}qkv.weight"] = torch.cat([state.pop(name) for name in weights])
    if f"{attention}logit_scale" in state:
        for part in "qv":
            if f"{attention}{part}.bias" in state:
                state[f"{attention}{part}_bias"] = state.pop(f"{attention}{part}.bias")
    elif all(name in state and state[name].ndim == 1 for name in biases):
        state[f"{attention}qkv.bias"] = torch.cat([state.pop(name) for name in biases])


def _from_mmdetection(inside: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """https://github.com/open-mmlab/mmdetection (2 and 3), mmsegmentation and mmpretrain, models/backbones/swin.py.

    Their patch merging is torch's Unfold: channel c of the four tokens lies at 4 c to 4 c + 3, row by row. The official
    one puts the four tokens one after the other, column by column.
    """
    block = r"^stages\.(\d+)\.blocks\.(\d+)\."
    to = r"layers.\1.blocks.\2."
    state = _renamed(
        inside,
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (block + r"attn\.w_msa\.", to + "attn."),
        (block + r"ffn\.layers\.0\.0\.", to + "mlp.fc1."),
        (block + r"ffn\.layers\.1\.", to + "mlp.fc2."),
        (block, to),
        (r"^stages\.(\d+)\.", r"layers.\1."),
    )
    for name, value in state.items():
        width = value.shape[-1] if value.ndim else 0
        merged = re.fullmatch(r"layers\.\d+\.downsample\.(reduction\.weight|norm\.(?:weight|bias))", name)
        # V2's norm comes after the reduction, and has half as many channels, in no order of the four.
        reduction = state.get(name.rpartition("norm.")[0] + "reduction.weight") if merged and value.ndim == 1 else value
        if merged and width % 4 == 0 and reduction is not None and reduction.shape[-1] == width:
            state[name] = value.unflatten(-1, (width // 4, 4))[..., [0, 2, 1, 3]].transpose(-2, -1).flatten(-2)
    return _earlier_merging(state), ["patch merging turned from unfold's order"]
