"""The configuration of a model: defaults, plus one yaml per variant, plus `--opts KEY VALUE`.

    python -c "from config import get_config; print(get_config('models/swinv2.yaml'))"

Only keys that something reads exist; any other key is an error.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml
from yacs.config import CfgNode

from utils import ROOT, UserError, existing_file

# --type -> the yaml that stands for it: the Small variant.
DEFAULT_CFG = {"swinv1": ROOT / "models" / "swin.yaml", "swinv2": ROOT / "models" / "swinv2.yaml"}

_DEFAULTS = CfgNode({
    "MODEL": {
        "TYPE": "",  # swinv1 or swinv2
        "NAME": "",  # names the files made from the model; the yaml's stem where it is empty
        "NUM_CLASSES": 1000,  # of a model with random weights; a checkpoint brings its own number
        "PRETRAINED": "",  # URL of the official checkpoint; empty: the file models/checkpoints/NAME.safetensors
        "SWIN": {
            "PATCH_SIZE": 4,  # pixels
            "IN_CHANS": 3,  # RGB, the only images there are here
            "EMBED_DIM": 96,  # channels of the first stage; they double from stage to stage
            "DEPTHS": [2, 2, 6, 2],  # blocks per stage
            "NUM_HEADS": [3, 6, 12, 24],  # attention heads per stage
            "WINDOW_SIZE": 7,  # tokens along one side of a window
            "MLP_RATIO": 4.0,
            # V2: per stage, the window that the relative positions were normalised by in pre-training; 0 = this model's
            "PRETRAINED_WINDOW_SIZES": [0, 0, 0, 0],
        },
    },
    "DATA": {"IMG_SIZE": 224},  # pixels along one side of the square input
})


def get_config(cfg: str | Path | None, opts: Sequence[str] = (), model_type: str | None = None) -> CfgNode:
    """The frozen configuration of one model.

    Args:
        cfg: yaml of the variant; None takes the Small variant of `model_type`.
        opts: "KEY", "VALUE" pairs that override the yaml, e.g. ("DATA.IMG_SIZE", "448").
        model_type: swinv1, swinv2, or None to take what the yaml says.

    Raises:
        UserError: no such file, no valid yaml, an unknown key, a value of the wrong type, sizes that do not fit
            together, or a `model_type` that contradicts the yaml.
    """
    if model_type is not None and model_type not in DEFAULT_CFG:
        raise UserError(f"--type {model_type}: unknown; choose from {', '.join(DEFAULT_CFG)}")
    if cfg is None and model_type is None:
        raise UserError(f"which model? give --type ({' or '.join(DEFAULT_CFG)}) or --cfg FILE")
    path = existing_file(DEFAULT_CFG[model_type] if cfg is None else cfg, "a model's yaml (--cfg)")
    config = _DEFAULTS.clone()
    try:
        config.merge_from_other_cfg(_read_yaml(path))
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{path}: {_one_line(error.args[0])}; the keys and their types stand in config.py") from error
    try:
        config.merge_from_list(list(opts))
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"--opts {' '.join(opts)}: {_one_line(error.args[0])}; the keys and their types stand in "
                        "config.py") from error
    config.MODEL.NAME = config.MODEL.NAME or path.stem
    if model_type not in (None, config.MODEL.TYPE):
        raise UserError(f"{path}: its MODEL.TYPE is {config.MODEL.TYPE!r}, which contradicts --type {model_type}; "
                        "leave one of the two out")
    problem = _problem(config)
    if problem:
        raise UserError(f"{path}{' with --opts' if opts else ''}: {problem}")
    config.freeze()
    return config


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose a model and its weights: --type --cfg --resume --pretrained --opts."""
    parser.add_argument("--type", choices=tuple(DEFAULT_CFG), help="model type; with no --cfg, its Small variant")
    parser.add_argument("--cfg", type=Path, metavar="YAML", help="the variant, e.g. models/swinv2_micro.yaml")
    parser.add_argument("--resume", type=Path, metavar="FILE",
                        help="checkpoint to load: official, timm or written here; .pth or .safetensors "
                             "(default: the one that ships with a micro variant)")
    parser.add_argument("--pretrained", action="store_true",
                        help="load the official checkpoint, downloaded to models/checkpoints/ the first time")
    parser.add_argument("--opts", nargs="+", default=[], metavar=("KEY", "VALUE"),
                        help="override configuration keys, e.g. --opts DATA.IMG_SIZE 448")


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _read_yaml(path: Path) -> CfgNode:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a yaml file ({_one_line(error)})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a yaml file of KEY: VALUE pairs")
    return CfgNode(loaded)


def _problem(config: CfgNode) -> str | None:
    """What keeps a model from being built with these values, in words; None where nothing does."""
    model, swin, img_size = config.MODEL, config.MODEL.SWIN, config.DATA.IMG_SIZE
    for name, node in (("MODEL", model), ("MODEL.SWIN", swin), ("DATA", config.DATA)):
        for key, value in node.items():
            if value is None:
                return f"{name}.{key} has no value"
    if model.TYPE not in DEFAULT_CFG:
        return f"MODEL.TYPE is {model.TYPE!r}; it must be one of {', '.join(DEFAULT_CFG)}"
    v1 = model.TYPE == "swinv1"
    if v1 and any(swin.PRETRAINED_WINDOW_SIZES):
        return "MODEL.SWIN.PRETRAINED_WINDOW_SIZES is read by swinv2 alone; swinv1 has no continuous position bias"
    lists = {key: swin[key] for key in ("DEPTHS", "NUM_HEADS", *(() if v1 else ("PRETRAINED_WINDOW_SIZES",)))}
    for key, values in lists.items():
        if not values or not all(isinstance(value, int) for value in values):
            return f"MODEL.SWIN.{key} is {values}; it must be a list of whole numbers, one per stage"
    if len({len(values) for values in lists.values()}) != 1:
        return f"MODEL.SWIN.{', '.join(lists)} must have one number per stage each"
    if not v1 and min(swin.PRETRAINED_WINDOW_SIZES) < 0:
        return (f"MODEL.SWIN.PRETRAINED_WINDOW_SIZES is {swin.PRETRAINED_WINDOW_SIZES}; none may be below zero, and 0 "
                "means this model's window")
    if swin.IN_CHANS != 3:
        return f"MODEL.SWIN.IN_CHANS is {swin.IN_CHANS}; it must be 3, as all images here are RGB"
    positive = (img_size, model.NUM_CLASSES, swin.PATCH_SIZE, swin.EMBED_DIM, swin.WINDOW_SIZE, swin.MLP_RATIO,
                *swin.DEPTHS, *swin.NUM_HEADS)
    if min(positive) <= 0:
        return "sizes, depths and counts must be above zero"
    if int(swin.EMBED_DIM * swin.MLP_RATIO) < 1:
        return (f"MODEL.SWIN.MLP_RATIO {swin.MLP_RATIO} leaves the MLPs of {swin.EMBED_DIM} channels no hidden one; "
                "the published models have 4.0")
    if img_size % swin.PATCH_SIZE:
        return f"DATA.IMG_SIZE {img_size} is no multiple of MODEL.SWIN.PATCH_SIZE {swin.PATCH_SIZE}"
    resolution, channels = img_size // swin.PATCH_SIZE, swin.EMBED_DIM
    for stage, num_heads in enumerate(swin.NUM_HEADS):
        if stage:
            if resolution % 2:
                return f"DATA.IMG_SIZE {img_size} gives stage {stage} {resolution} x {resolution} tokens: not even"
            resolution, channels = resolution // 2, channels * 2
        if channels % num_heads:
            return f"the {channels} channels of stage {stage + 1} do not divide into {num_heads} heads"
        if resolution > swin.WINDOW_SIZE and resolution % swin.WINDOW_SIZE:
            return (f"DATA.IMG_SIZE {img_size} gives stage {stage + 1} {resolution} x {resolution} tokens: "
                    f"no whole number of windows of {swin.WINDOW_SIZE} x {swin.WINDOW_SIZE}")
    return None
