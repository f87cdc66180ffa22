"""The configuration of a model: defaults, plus one yaml per variant, plus `--opts KEY VALUE`.

    python -c "from config import get_config; print(get_config('models/swinv2.yaml'))"

Only keys that something reads exist; any other key is an error.
"""
from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from yacs.config import CfgNode

from utils import ROOT, UserError, existing_file

ACTIVATIONS = ("gelu", "gelu_tanh")  # what MODEL.SWIN.ACT may be: the keys of models.swin.ACTIVATIONS

# --type -> the yaml that stands for it: the Small variant.
DEFAULT_CFG = {"swinv1": ROOT / "models" / "swin.yaml", "swinv2": ROOT / "models" / "swinv2.yaml"}

_DEFAULTS = CfgNode({
    "MODEL": {
        "TYPE": "",  # swinv1 or swinv2
        "NAME": "",  # names the files made from the model; the yaml's stem where it is empty
        "NUM_CLASSES": 1000,  # of a model with random weights; a checkpoint brings its own number
        "PRETRAINED": "",  # URL of the official checkpoint; empty: the file models/checkpoints/NAME.safetensors
        # Which weights of a file that holds several, e.g. model and model_ema: a part of their name; empty: not the EMA
        "WEIGHTS": "",
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
            "ACT": "gelu",  # of the MLPs: gelu, or gelu_tanh, its approximation by tanh
            "QK_SCALE": 0.0,  # V1: what q is multiplied by; 0 = 1 / sqrt(channels of a head)
            "NORM_EPS": 1e-5,  # epsilon of every LayerNorm
        },
    },
    "DATA": {"IMG_SIZE": 224},  # pixels along one side of the square input
    "OPTS": [],  # the keys that --opts set; get_config() fills it
})

MAX_YAML_BYTES = 65536  # the longest here has 600
# Beyond these no Swin Transformer was published, and building one takes more memory than machines have.
LARGEST = {"IMG_SIZE": 8192, "NUM_CLASSES": 1_000_000, "PATCH_SIZE": 64, "EMBED_DIM": 4096, "WINDOW_SIZE": 256,
           "MLP_RATIO": 64, "DEPTHS": 512, "NUM_HEADS": 1024, "PRETRAINED_WINDOW_SIZES": 256, "stages": 8}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # a file's name and no path, in any file system
URL = re.compile(r"(https?|file)://\S+/[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def get_config(cfg: str | Path | None, opts: Sequence[str] = (), model_type: str | None = None) -> CfgNode:
    """The frozen configuration of one model.

    Args:
        cfg: yaml of the variant; None takes the Small variant of `model_type`.
        opts: "KEY", "VALUE" pairs that override the yaml, e.g. ("DATA.IMG_SIZE", "448").
        model_type: swinv1, swinv2, or None to take what the yaml says.

    Raises:
        UserError: no such file, no valid yaml, an unknown key, a value of the wrong type or beyond what a model can
            have, a name that is a path, sizes that do not fit together, or a `model_type` that contradicts the yaml.
    """
    if model_type is not None and model_type not in DEFAULT_CFG:
        raise UserError(f"--type {model_type}: unknown; choose from {', '.join(DEFAULT_CFG)}")
    if cfg is None and model_type is None:
        raise UserError(f"which model? give --type ({' or '.join(DEFAULT_CFG)}) or --cfg FILE")
    path = existing_file(cfg_path(cfg, model_type), "a model's yaml (--cfg)")
    config = _DEFAULTS.clone()
    try:
        config.merge_from_other_cfg(_read_yaml(path))
    except _WRONG_VALUE as error:
        raise UserError(f"{path}: {_one_line(error)}; the keys and their types stand in config.py") from error
    try:
        for key in opts[::2]:
            if isinstance(_DEFAULTS.get(key, _DEFAULTS.MODEL.get(key.removeprefix("MODEL."))), CfgNode):
                raise ValueError(f"{key} is no single value")
        config.merge_from_list(list(opts))
    except _WRONG_VALUE as error:
        raise UserError(f"--opts {_short(' '.join(opts))}: {_one_line(error)}; the keys and their types stand in "
                        "config.py") from error
    if config.OPTS:
        raise UserError(f"{path}: OPTS is filled from --opts; leave it out")
    config.OPTS = sorted(set(opts[::2]))
    config.MODEL.NAME = config.MODEL.NAME or path.stem
    if model_type not in (None, config.MODEL.TYPE):
        raise UserError(f"{path}: its MODEL.TYPE is {config.MODEL.TYPE!r}, which contradicts --type {model_type}; "
                        "leave one of the two out")
    problem = _problem(config)
    if problem:
        raise UserError(f"{path}{' with --opts' if opts else ''}: {problem}")
    config.freeze()
    return config


def cfg_path(cfg: str | Path | None = None, model_type: str | None = None) -> Path:
    """The yaml that get_config reads for the same arguments."""
    return Path(DEFAULT_CFG[model_type or ""] if cfg is None else cfg)


def add_model_arguments(parser: argparse.ArgumentParser, cfg: str = "", resume: str = "") -> None:
    """Add the flags that choose a model and its weights: --type --cfg --resume --weights --pretrained --opts.

    Args:
        cfg, resume: defaults of these two flags, from the repository's root.
    """
    parser.add_argument("--type", choices=tuple(DEFAULT_CFG), help="model type; with no --cfg, its Small variant")
    parser.add_argument("--cfg", type=Path, default=ROOT / cfg if cfg else None, metavar="YAML",
                        help="the variant, e.g. models/swinv2_micro.yaml")
    parser.add_argument("--resume", type=Path, default=ROOT / resume if resume else None, metavar="FILE",
                        help="checkpoint to load: official, timm's, Hugging Face's, torchvision's, mmdetection's, "
                             "SimMIM's or written here; .pth or .safetensors (default: the one that ships with a micro "
                             "variant)")
    parser.add_argument("--weights", action=_ChooseWeights, metavar="NAME",
                        help="which weights of a checkpoint that holds several, by a part of their name, e.g. ema "
                             "(default: those that are no moving average)")
    parser.add_argument("--pretrained", action="store_true",
                        help="load the official checkpoint, downloaded to models/checkpoints/ the first time")
    parser.add_argument("--opts", nargs="+", action="extend", default=[], metavar=("KEY", "VALUE"),
                        help="override configuration keys, e.g. --opts DATA.IMG_SIZE 448")


class _ChooseWeights(argparse.Action):
    """--weights NAME, which is --opts MODEL.WEIGHTS NAME."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        namespace.opts = [*(namespace.opts or []), "MODEL.WEIGHTS", values]


# What yacs raises where a value is of another type, or a key unknown; and Python, where a value is nested too deeply.
_WRONG_VALUE = (KeyError, TypeError, ValueError, AssertionError, AttributeError, RecursionError, MemoryError)


def _one_line(error: BaseException) -> str:
    return _short(" ".join(str(error.args[0] if error.args else type(error).__name__).split()))


def _short(text: str, most: int = 300) -> str:
    """The text in one line of at most about `most` characters, whatever characters it has."""
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= most else f"{text[:most * 2 // 3]} ... {text[-most // 3:]}"


class _PlainLoader(yaml.SafeLoader):
    """yaml without aliases: a model needs none, and one that contains itself has no end."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"line {mark.line + 1}: an alias (*); write the value out")
        return super().compose_node(parent, index)


def _read_yaml(path: Path) -> CfgNode:
    if path.stat().st_size > MAX_YAML_BYTES:
        raise UserError(f"{path}: not a model's yaml: {path.stat().st_size} bytes, at most {MAX_YAML_BYTES} are read")
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a yaml file ({_short(' '.join(str(error).split()))})") from error
    except _WRONG_VALUE as error:  # a number of thousands of digits, a date that is none, brackets in brackets
        raise UserError(f"{path}: not a model's yaml ({_one_line(error)})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a yaml file of KEY: VALUE pairs")
    return CfgNode(loaded)


def _digits(value: float) -> str:
    """A number as text; Python refuses to write one of thousands of digits."""
    try:
        return str(value)
    except ValueError:
        return "a number of thousands of digits"


def _problem(config: CfgNode) -> str | None:
    """What keeps a model from being built with these values, in words; None where nothing does."""
    model, swin, img_size = config.MODEL, config.MODEL.SWIN, config.DATA.IMG_SIZE
    for name, node in (("MODEL", model), ("MODEL.SWIN", swin), ("DATA", config.DATA)):
        for key, value in node.items():
            if value is None:
                return f"{name}.{key} has no value"
    if model.TYPE not in DEFAULT_CFG:
        return f"MODEL.TYPE is {model.TYPE!r}; it must be one of {', '.join(DEFAULT_CFG)}"
    if not NAME.fullmatch(model.NAME):
        return (f"MODEL.NAME is {_short(repr(model.NAME))}; files are named by it: letters, digits, '.', '_' and '-', "
                "at most 128, and no path")
    if model.PRETRAINED and not URL.fullmatch(model.PRETRAINED):
        return f"MODEL.PRETRAINED is {_short(repr(model.PRETRAINED))}; it must be the URL of a file"
    v1 = model.TYPE == "swinv1"
    if swin.ACT not in ACTIVATIONS:
        return f"MODEL.SWIN.ACT is {_short(repr(swin.ACT))}; it must be one of {', '.join(ACTIVATIONS)}"
    if not v1 and swin.QK_SCALE:
        return "MODEL.SWIN.QK_SCALE is read only by swinv1; swinv2 learns a logit_scale"
    if not 0 <= swin.QK_SCALE < math.inf:
        return f"MODEL.SWIN.QK_SCALE is {swin.QK_SCALE}; it must be above zero, or 0 for 1 / sqrt(channels of a head)"
    if not 0 < swin.NORM_EPS < 1:
        return f"MODEL.SWIN.NORM_EPS is {swin.NORM_EPS}; it must lie between 0 and 1, as 1e-5 of the published models"
    if v1 and any(swin.PRETRAINED_WINDOW_SIZES):
        return "MODEL.SWIN.PRETRAINED_WINDOW_SIZES is read only by swinv2; swinv1 has no continuous position bias"
    lists = {key: swin[key] for key in ("DEPTHS", "NUM_HEADS", *(() if v1 else ("PRETRAINED_WINDOW_SIZES",)))}
    for key, values in lists.items():
        if not values or not all(type(value) is int for value in values):  # a bool is an int
            return f"MODEL.SWIN.{key} is {_short(str(values))}; it must be a list of whole numbers, one per stage"
    if len({len(values) for values in lists.values()}) != 1:
        return f"MODEL.SWIN.{', '.join(lists)} must have one number per stage each"
    if not v1 and min(swin.PRETRAINED_WINDOW_SIZES) < 0:
        return (f"MODEL.SWIN.PRETRAINED_WINDOW_SIZES is {swin.PRETRAINED_WINDOW_SIZES}; none may be below zero, and 0 "
                "means this model's window")
    if swin.IN_CHANS != 3:
        return f"MODEL.SWIN.IN_CHANS is {swin.IN_CHANS}; it must be 3, as all images here are RGB"
    limited = {**{key: [value] for key, value in swin.items() if type(value) in (int, float)}, **lists,
               "IMG_SIZE": [img_size], "NUM_CLASSES": [model.NUM_CLASSES], "stages": [len(swin.DEPTHS)]}
    for key, values in limited.items():
        if key in LARGEST and not max(values) <= LARGEST[key]:  # NaN never is
            return f"{key} is {_short(_digits(max(values)))}; at most {LARGEST[key]} can be"
    positive = (img_size, model.NUM_CLASSES, swin.PATCH_SIZE, swin.EMBED_DIM, swin.WINDOW_SIZE, swin.MLP_RATIO,
                *swin.DEPTHS, *swin.NUM_HEADS)
    if not min(positive) > 0 or any(type(value) is bool for value in positive):
        return "sizes, depths and counts must be numbers above zero"
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
