"""From a configuration to a model, with random weights or with those of a checkpoint.

    python -c "from config import get_config; from models.build import load_model; \
               print(load_model(get_config('models/swin_micro.yaml')))"

Checkpoints of the official repository, of timm, and of models/train.py are read, .pth or .safetensors. What a file
holds must be exactly what the model needs; a difference is an error that lists it.
"""
from __future__ import annotations

import math
import pickle
import re
import struct
from collections import OrderedDict
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from models.swin import SwinTransformer, WindowAttentionBase
from models.swin_v2 import SwinTransformerV2, WindowAttentionV2
from utils import ROOT, UserError, existing_file, shown, whole_file

CHECKPOINTS = ROOT / "models" / "checkpoints"

# Buffers that official and older timm files hold beside the weights. The models here compute their own.
DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask")

# The configuration inside a file of the official training script is read as a plain dictionary: torch.load then needs
# to run no code of the file's choosing.
_SAFE_GLOBALS = [(OrderedDict, "yacs.config.CfgNode")]

# What reading a file raises that is damaged or something else: found by truncating and corrupting files.
_DAMAGED = (safetensors.SafetensorError, pickle.UnpicklingError, struct.error, OSError, EOFError, RuntimeError,
            LookupError, ValueError, TypeError, AttributeError, AssertionError, OverflowError)

LISTED = 10  # keys that an error names, of each kind


def build_model(config: CfgNode) -> SwinTransformer:
    """The model of a configuration, with random weights, FP32 on the CPU, in eval mode."""
    swin = config.MODEL.SWIN
    architecture = {
        "img_size": config.DATA.IMG_SIZE, "patch_size": swin.PATCH_SIZE, "in_chans": swin.IN_CHANS,
        "num_classes": config.MODEL.NUM_CLASSES, "embed_dim": swin.EMBED_DIM, "depths": swin.DEPTHS,
        "num_heads": swin.NUM_HEADS, "window_size": swin.WINDOW_SIZE, "mlp_ratio": swin.MLP_RATIO,
    }
    if config.MODEL.TYPE == "swinv2":
        model = SwinTransformerV2(pretrained_window_sizes=swin.PRETRAINED_WINDOW_SIZES, **architecture)
    else:
        model = SwinTransformer(**architecture)
    return model.eval()


def load_model(config: CfgNode, resume: str | Path | None = None, pretrained: bool = False) -> SwinTransformer:
    """The model with the weights of a checkpoint, FP32 on the CPU, in eval mode; as many classes as the file has.

    Args:
        config: from config.get_config.
        resume: checkpoint file; None takes the official one, or the one that ships with a micro variant.
        pretrained: take the official checkpoint, downloading it where it is not there yet.

    Raises:
        UserError: no such file, not a checkpoint, the checkpoint of another model, or a download that failed.
    """
    model, state = _model_and_state(checkpoint_path(config, resume, pretrained), config)
    model.load_state_dict(state)
    return model


def load_checkpoint(path: str | Path, config: CfgNode) -> dict[str, Tensor]:
    """The weights in a file: FP32 on the CPU, official keys, exactly those of the model that `config` describes.

    The number of classes alone may differ from the configuration's.

    Raises:
        UserError: no such file, not a checkpoint, or the checkpoint of another model.
    """
    return _model_and_state(Path(path), config)[1]


def checkpoint_path(config: CfgNode, resume: str | Path | None = None, pretrained: bool = False) -> Path:
    """The file that the weights come from; downloads the official one if `pretrained` and it is not there yet.

    Raises:
        UserError: no such file, no file that would be meant, or a download that failed.
    """
    name, url = config.MODEL.NAME, config.MODEL.PRETRAINED
    if resume is not None:
        if pretrained:
            raise UserError("--resume and --pretrained: two checkpoints for one model; leave one of the two out")
        return existing_file(resume, "a checkpoint (--resume)")
    if pretrained:
        if not url:
            raise UserError(f"--pretrained: there is no official checkpoint of {name}; give --resume FILE")
        path = CHECKPOINTS / url.rsplit("/", 1)[-1]
        if not path.exists():
            _download(url, path)
        return path
    if url:
        raise UserError(f"{name}: no weights chosen; give --resume FILE, or --pretrained for {url}")
    path = CHECKPOINTS / f"{name}.safetensors"
    if not path.exists():
        raise UserError(f"{shown(path)}: no such file; give --resume FILE, or make it with models/train.py")
    return path


def _download(url: str, path: Path) -> None:
    """Download a checkpoint to `path`, which appears only if the file is whole.

    Raises:
        UserError: the download failed, or brought something that is no checkpoint.
    """
    with whole_file(path) as partial:
        try:
            torch.hub.download_url_to_file(url, str(partial))
        except OSError as error:  # urllib's errors are among them
            raise UserError(f"{url}: download failed ({error}); or get the file by other means "
                            "and give --resume FILE") from error
        _read_state_dict(partial, url)


def _model_and_state(path: Path, config: CfgNode) -> tuple[SwinTransformer, dict[str, Tensor]]:
    """A model with random weights, and the weights for it: official keys, FP32, checked to fit."""
    found = _official_keys(_read_state_dict(path, shown(path)))
    if "head.weight" in found and found["head.weight"].ndim == 2:
        config = config.clone()
        config.defrost()
        config.MODEL.NUM_CLASSES = found["head.weight"].shape[0]
    model = build_model(config)
    state = {key: value.float() for key, value in found.items() if not key.endswith(DERIVED)}
    problems = _differences(model, state) or _other_windows(model, found)
    if problems:
        raise UserError(f"{shown(path)}: does not fit {config.MODEL.NAME}: it holds {_described(found)}; choose its "
                        f"variant with --cfg or --type. {'; '.join(problems)}")
    return model, state


def _read_state_dict(path: Path, source: str) -> dict[str, Tensor]:
    """The tensors by name that a file holds; `source` names it in errors.

    Raises:
        UserError: no such file, truncated, or no checkpoint.
    """
    existing_file(path, "a checkpoint (--resume)")
    with path.open("rb") as file, torch.serialization.safe_globals(_SAFE_GLOBALS):
        try:
            if path.suffix == ".safetensors":
                found = safetensors.torch.load(file.read())
            else:
                found = torch.load(file, map_location="cpu", weights_only=True)
        except _DAMAGED as error:
            # torch's text of an UnpicklingError advises weights_only=False, which would run code that is in the file.
            text = "" if isinstance(error, pickle.UnpicklingError) else str(error).strip().split("\n")[0]
            reason = text or type(error).__name__
            raise UserError(f"{source}: truncated, or no PyTorch or safetensors checkpoint ({reason}); "
                            "get the file again") from error
    for key in ("model", "state_dict"):  # official files and training scripts nest the weights under one of these
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{source}: holds no state dict of tensors, neither by itself nor under 'model'")
    return found


def _official_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names turned into the official ones; a state dict that has official names comes back unchanged.

    timm calls the classifier head.fc, and puts patch merging at the beginning of the stage that follows.
    """
    shifted = any(key.startswith("layers.1.downsample.") for key in state) and not any(
        key.startswith("layers.0.downsample.") for key in state
    )

    def official(key: str) -> str:
        if shifted:
            key = re.sub(r"^layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) - 1}.downsample.", key)
        return re.sub(r"^head\.fc\.", "head.", key)

    return {official(key): value for key, value in state.items()}


def _differences(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """What is missing, unexpected or of another shape in a state dict, in words; empty if the model can load it."""
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    reshaped = [
        f"{key} {list(state[key].shape)} for {list(expected[key].shape)}"
        for key in expected if key in state and state[key].shape != expected[key].shape
    ]
    named = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return [
        f"{len(keys)} {what}: {', '.join(keys[:LISTED])}{', ...' if len(keys) > LISTED else ''}"
        for what, keys in named.items() if keys
    ]


def _other_windows(model: nn.Module, found: dict[str, Tensor]) -> list[str]:
    """Which buffers in a file say that its weights were trained with other windows than the model has.

    V2's weights have the same shapes for every window; only these buffers, where the file has them, can tell. The
    shift mask says nothing: it may be of another image size.
    """
    for name, module in model.named_modules():
        index = found.get(f"{name}.relative_position_index")
        if isinstance(module, WindowAttentionBase) and index is not None:
            trained, window = math.isqrt(len(index)), module.window_size
            if trained != window:
                return [f"{name} was trained with a window of {trained}, the model has one of {window}"]
        table = found.get(f"{name}.relative_coords_table")
        # FP16 and BF16 round these numbers, of at most 1.4, by up to 0.004; a pre-training window of one more or less
        # moves the largest by 0.019 at 24 tokens and by more at fewer.
        if isinstance(module, WindowAttentionV2) and table is not None and not torch.allclose(
                table.float(), module.relative_coords_table, rtol=0, atol=0.01):
            return [f"{name} was trained with other MODEL.SWIN.PRETRAINED_WINDOW_SIZES"]
    return []


def _described(found: dict[str, Tensor]) -> str:
    """What a state dict is of, as far as its names and shapes tell."""
    if any(key.endswith(".attn.logit_scale") for key in found):
        model_type = "swinv2"
    elif any(key.endswith(".attn.relative_position_bias_table") for key in found):
        model_type = "swinv1"
    else:
        return "no Swin Transformer"
    blocks = {tuple(match.groups()) for key in found if (match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", key))}
    stages = sorted({stage for stage, _ in blocks})
    depths = [sum(stage == of for of, _ in blocks) for stage in stages]
    embed_dim = found["patch_embed.proj.weight"].shape[0] if "patch_embed.proj.weight" in found else "unknown"
    return f"a {model_type} of EMBED_DIM {embed_dim}, DEPTHS {depths}"
