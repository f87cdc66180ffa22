"""From a configuration to a model, with random weights or with those of a checkpoint.

    python -c "from config import get_config; from models.build import load_model; \
               print(load_model(get_config('models/swin_micro.yaml')))"

Checkpoints of the libraries in models/layouts.py are read, .pth or .safetensors. What a file holds must be exactly what
the model needs; a difference is an error that lists it and names the yaml that fits. What no file tells, and what was
done to read it, is printed.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from config import get_config
from models import layouts
from models.checkpoint import errors_in_one_line, one_line, read_checkpoint
from models.layouts import DERIVED
from models.swin import SwinTransformer, WindowAttentionBase
from models.swin_v2 import SwinTransformerV2, WindowAttentionV2, relative_coords_table
from utils import ROOT, UserError, existing_file, shown, whole_file

CHECKPOINTS = ROOT / "models" / "checkpoints"

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # what weights may have; they become FP32
LISTED = 10  # keys that an error names, of each kind
# What the weights' names and shapes never tell, and what the yaml says of it.
UNTOLD = ("MODEL.SWIN.ACT", "MODEL.SWIN.QK_SCALE", "MODEL.SWIN.NORM_EPS", "MODEL.SWIN.WINDOW_SIZE",
          "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "DATA.IMG_SIZE")


@dataclass
class Read:
    """Weights that fit a model.

    Attributes:
        model: with random weights, of the configuration and as many classes or maps as the file has.
        state: the weights, official names, FP32 on the CPU.
        said: what was done to read them, and what is taken on trust: lines for the user.
    """

    model: SwinTransformer
    state: dict[str, Tensor]
    said: list[str]


def build_model(config: CfgNode, *, head: bool = True, maps: Sequence[int] = (),
                map_norms: Sequence[int] = (), keep_shift: bool = False) -> SwinTransformer:
    """The model of a configuration, with random weights, FP32 on the CPU, in eval mode.

    Args:
        config: from config.get_config.
        head: without it the output is pooled features.
        maps, map_norms, keep_shift: as in SwinTransformer.
    """
    swin = config.MODEL.SWIN
    architecture = {
        "img_size": config.DATA.IMG_SIZE, "patch_size": swin.PATCH_SIZE, "in_chans": swin.IN_CHANS,
        "num_classes": config.MODEL.NUM_CLASSES if head else 0, "embed_dim": swin.EMBED_DIM, "depths": swin.DEPTHS,
        "num_heads": swin.NUM_HEADS, "window_size": swin.WINDOW_SIZE, "mlp_ratio": swin.MLP_RATIO, "act": swin.ACT,
        "norm_eps": swin.NORM_EPS, "maps": maps, "map_norms": map_norms, "keep_shift": keep_shift,
    }
    if config.MODEL.TYPE == "swinv2":
        model = SwinTransformerV2(pretrained_window_sizes=swin.PRETRAINED_WINDOW_SIZES, **architecture)
    else:
        model = SwinTransformer(qk_scale=swin.QK_SCALE, **architecture)
    return model.eval()


def load_model(config: CfgNode, resume: str | Path | None = None, pretrained: bool = False,
               outputs: Sequence[str] = ("logits", "features")) -> SwinTransformer:
    """The model with the weights of a checkpoint, FP32 on the CPU, in eval mode; as many classes as the file has.

    Prints what was done to read a file that is no plain official one, and what is taken on trust.

    Args:
        config: from config.get_config.
        resume: checkpoint file; None takes the official one, or the one that ships with a micro variant.
        pretrained: take the official checkpoint, downloading it where it is not there yet.
        outputs: what the caller can use: "logits", "features" (of a file without a head), "maps" (of a backbone).

    Raises:
        UserError: no such file, not a checkpoint, the checkpoint of another model or with other outputs, weights that
            are no finite numbers, or a download that failed.
    """
    path = checkpoint_path(config, resume, pretrained)
    read = _read(path, config)
    kind = "maps" if read.model.maps else read.model.output_names[0]
    if kind not in outputs:
        raise UserError(f"{shown(path)}: has no classifier and gives {kind}; this needs {' or '.join(outputs)}")
    read.model.load_state_dict(read.state)
    for line in read.said:
        _say(line)
    return read.model


@cache  # a script that loads a file twice says once how it did
def _say(line: str) -> None:
    print(line, flush=True)


def load_checkpoint(path: str | Path, config: CfgNode) -> dict[str, Tensor]:
    """The weights in a file: FP32 on the CPU, official keys, exactly those of the model that `config` describes.

    Only the number of classes may differ from the configuration's.

    Raises:
        UserError: as load_model.
    """
    return _read(Path(path), config).state


@errors_in_one_line()
def fitting_cfg(path: Path, weights: str = "") -> Path:
    """The yaml in models/ that fits a checkpoint, where only one does.

    Args:
        path: the checkpoint.
        weights: which weights of a file that holds several, --weights.
    Raises:
        UserError: no such file, no checkpoint of a Swin Transformer, or not one yaml fits; names those that do.
    """
    source = shown(path)
    _, _, official = _chosen(read_checkpoint(path).weights, weights, source)
    fitting = _fitting(official.state)
    if len(fitting) != 1:
        raise UserError(f"{source}: holds {_described(official.state)}; {_which_yaml(official.state)}")
    return fitting[0]


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
        read_checkpoint(partial, url)


@errors_in_one_line()
def _read(path: Path, config: CfgNode) -> Read:
    """The weights in a file, and a model that they were checked to fit."""
    source = shown(path)
    checkpoint = read_checkpoint(path)
    name, prefix, official = _chosen(checkpoint.weights, config.MODEL.WEIGHTS, source)
    state = official.state
    config = config.clone()
    config.defrost()
    shape = state["head.weight"].shape if "head.weight" in state else ()
    if len(shape) == 2 and shape[0] != config.MODEL.NUM_CLASSES:
        if "MODEL.NUM_CLASSES" in config.OPTS:
            raise UserError(f"{source}: has {shape[0]} classes and --opts says {config.MODEL.NUM_CLASSES}; leave "
                            "MODEL.NUM_CLASSES out: a checkpoint brings its own number")
        config.MODEL.NUM_CLASSES = shape[0]
    if len(shape) == 2 and not shape[0]:
        raise UserError(f"{source}: head.weight is of {list(shape)}: no class; give a checkpoint that has some")
    maps, map_norms = _maps(state)
    head = any(key.startswith("head.") for key in state)
    # Backbones for detection (mmdetection, the official one, Hugging Face's) shift in every stage; timm's do not.
    kind = {"head": head, "maps": maps, "map_norms": map_norms,
            "keep_shift": bool(map_norms) and config.MODEL.TYPE == "swinv1"}
    with torch.device("meta"):  # costs no memory, whatever sizes a file claims
        expected = build_model(config, **kind).state_dict()
    weights = {key: value for key, value in state.items() if not key.endswith(DERIVED)}
    problems = _differences(expected, weights)
    if problems:
        raise UserError(f"{source}: does not fit {config.MODEL.NAME}: it holds {_described(state)}; "
                        f"{_which_yaml(state)}. {'; '.join(problems)}")
    _check_sound(weights, source)
    smallest = config.DATA.IMG_SIZE // config.MODEL.SWIN.PATCH_SIZE // 2 ** (len(config.MODEL.SWIN.DEPTHS) - 1)
    if kind["keep_shift"] and smallest < config.MODEL.SWIN.WINDOW_SIZE:
        raise UserError(f"{source}: a backbone, which pads its last map of {smallest} x {smallest} tokens to a window "
                        f"of {config.MODEL.SWIN.WINDOW_SIZE}: no model here does; give a larger DATA.IMG_SIZE")
    model = build_model(config, **kind)
    problems = _other_windows(model, state) + _contradictions(config, checkpoint.told)
    if problems:
        raise UserError(f"{source}: does not fit {config.MODEL.NAME}: it holds {_described(state)}; "
                        f"{_which_yaml(state)}. {'; '.join(problems)}")
    weights = {key: value.detach().float().contiguous() for key, value in weights.items()}
    for key, value in weights.items():
        if not value.isfinite().all():
            raise UserError(f"{source}: {key} is beyond FP32 in places; give a checkpoint whose weights fit it")
    others = [other for other in checkpoint.weights if other != name]
    said = [*_how_read(source, name, prefix, official, others), *_on_trust(source, config, checkpoint.told, state)]
    if not head:
        outputs = f"maps of stages {', '.join(map(str, maps))}" if maps else "pooled features"
        said.append(f"output  {source}: no classifier in the file: the model gives {outputs}")
    return Read(model, weights, [one_line(line) for line in said])


def _chosen(weights: dict[str, dict[str, Tensor]], wanted: str,
            source: str) -> tuple[str, str, layouts.Official]:
    """The weights to take of those in a file: the keys that lead there, the prefix of names, and with official names.

    Raises:
        UserError: none is a Swin Transformer, none is called `wanted`, or nothing decides between several.
    """
    found = {f"{name}.{prefix}".strip("."): (name, prefix, layout)
             for name, tensors in weights.items() for prefix, layout in layouts.find(tensors)}
    if not found:
        names = [key for tensors in weights.values() for key in tensors]
        raise UserError(f"{source}: no Swin Transformer of a layout that is read ({', '.join(layouts.LAYOUTS)}, timm): "
                        f"its {len(names)} tensors are called {', '.join(names[:5])}{', ...' if names[5:] else ''}")

    def listed(labels: Sequence[str]) -> str:
        return ", ".join(f"'{label}'" if label else "weights without a name" for label in list(labels)[:LISTED])

    if wanted:
        labels = [label for label in found if label == wanted] or [label for label in found if wanted in label]
        if not labels:
            raise UserError(f"{source}: --weights {wanted}: it holds {listed(list(found))}; choose one of them")
    else:
        labels = [label for label in found if "ema" not in re.split(r"[._]", label.lower())] or list(found)
        for container in ("model", "state_dict", "model_state_dict", "module", "net"):
            if len(labels) > 1:
                labels = [label for label in labels if found[label][0] == container] or labels
    if len(labels) > 1:
        raise UserError(f"{source}: holds several models: {listed(labels)}; choose one with --weights NAME")
    name, prefix, layout = found[labels[0]]
    return name, prefix, layouts.to_official(weights[name], prefix, layout)


def _maps(state: dict[str, Tensor]) -> tuple[list[int], list[int]]:
    """The stages whose maps a backbone gives, and those that have a norm of their own; none of a classifier."""
    norms = sorted({int(match[1]) for key in state if (match := re.fullmatch(r"norm(\d)\.(?:weight|bias)", key))})
    if norms or "norm.weight" in state or "norm.bias" in state or "head.weight" in state:
        return norms, norms
    stages = {int(match[1]) for key in state if (match := re.match(r"layers\.(\d)\.blocks\.", key))}
    return sorted(stages), []


def _check_sound(weights: dict[str, Tensor], source: str) -> None:
    """Raise a UserError that names the first tensor that is no dense tensor of finite floating-point numbers."""
    for key, value in weights.items():
        problem = ""
        if value.is_meta:
            problem = "is on the device meta: it has a shape and no numbers"
        elif value.layout != torch.strided:
            problem = f"is sparse ({value.layout}); save it with .to_dense()"
        elif value.dtype not in DTYPES:
            problem = f"holds {str(value.dtype).removeprefix('torch.')}, not floating-point numbers"
        elif value.untyped_storage().nbytes() < value.numel() * value.element_size():
            problem = "is a view that repeats a few numbers; save it with .contiguous()"
        elif not (finite := value.isfinite()).all():
            problem = f"has {int((~finite).sum())} of {value.numel()} values that are NaN or infinite"
        if problem:
            raise UserError(f"{source}: {key} {problem}; give a checkpoint with whole weights")


def _how_read(source: str, name: str, prefix: str, official: layouts.Official, others: list[str]) -> list[str]:
    """What was done to read weights, in one line; none where the file is the official names and nothing else."""
    parts = []
    if name:
        parts.append(f"taken under '{name}'" + (f", not {', '.join(map(repr, others))} (--weights)" if others else ""))
    if prefix:
        parts.append(f"prefix '{prefix}' taken off")
    if official.layout != "official":
        parts.append(f"layout of {official.layout}")
    parts += official.notes
    if official.left_out:
        whose = sorted({key.split(".")[0] for key in official.left_out})
        parts.append(f"{len(official.left_out)} tensors of other parts left out: {', '.join(whose[:LISTED])}")
    return [f"weights {source}: {'; '.join(parts)}"] if parts else []


def _value(config: CfgNode, key: str) -> object:
    for part in key.split("."):
        config = config[part]
    return config


def _contradictions(config: CfgNode, told: dict[str, object]) -> list[str]:
    """Where a file says otherwise than the configuration. The image size may differ: the weights take any."""
    return [f"the file says {key} {value}, the configuration {_value(config, key)}" for key, value in told.items()
            if key in UNTOLD and key != "DATA.IMG_SIZE" and not _same(value, _value(config, key))]


def _same(value: object, ours: object) -> bool:
    if isinstance(ours, list):  # windows of the pre-training; Hugging Face's default has four, however many stages
        return isinstance(value, (list, tuple)) and list(value[:len(ours)]) == ours
    if isinstance(ours, float):
        return isinstance(value, (int, float)) and abs(value - ours) <= 1e-6 * max(abs(ours), 1e-9)
    return value == ours


def _on_trust(source: str, config: CfgNode, told: dict[str, object], state: dict[str, Tensor]) -> list[str]:
    """What nothing in the file tells and the configuration decides, in one line."""
    v2 = config.MODEL.TYPE == "swinv2"
    known = set(told)
    if layouts.window_of(state, "layers.0.blocks.0"):
        known.add("MODEL.SWIN.WINDOW_SIZE")
    if any(key.endswith("relative_coords_table") for key in state):
        known.add("MODEL.SWIN.PRETRAINED_WINDOW_SIZES")
    known.add("MODEL.SWIN.QK_SCALE" if v2 else "MODEL.SWIN.PRETRAINED_WINDOW_SIZES")
    values = [f"{key.rpartition('.')[2]} {_value(config, key)}" for key in UNTOLD if key not in known]
    return [f"trusted {source}: nothing in it tells, {config.MODEL.NAME} says {', '.join(values)}"] if values else []


def _differences(expected: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    """What is missing, unexpected or of another shape in a state dict, in words; empty if the model can load it."""
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
        if not isinstance(module, WindowAttentionBase):
            continue
        trained, window = layouts.window_of(found, name.removesuffix(".attn")), module.window_size
        if trained not in (None, window):
            return [f"{name} was trained with a window of {trained}, the model has one of {window}"]
        table = found.get(f"{name}.relative_coords_table")
        if (isinstance(module, WindowAttentionV2) and table is not None
                and not _same_table(table, module.relative_coords_table)):
            return [f"{name} was trained with other MODEL.SWIN.PRETRAINED_WINDOW_SIZES"]
    return []


def _same_table(table: Tensor, ours: Tensor) -> bool:
    """Whether a file's relative_coords_table is the model's.

    FP16 and BF16 round these numbers, of at most 1.4, by up to 0.004; a pre-training window of one more or less moves
    the largest by 0.019 at 24 tokens and by more at fewer.
    """
    return table.shape == ours.shape and torch.allclose(table.float(), ours, rtol=0, atol=0.01)


def _described(found: dict[str, Tensor]) -> str:
    """What a state dict is of, as far as its names and shapes tell."""
    facts = layouts.described(found)
    if "MODEL.TYPE" not in facts:
        return "no Swin Transformer"
    rest = [f"{key.rpartition('.')[2]} {facts.get(key, 'unknown')}"
            for key in ("MODEL.SWIN.EMBED_DIM", "MODEL.SWIN.DEPTHS", "MODEL.SWIN.NUM_HEADS", "MODEL.SWIN.WINDOW_SIZE")
            if key in facts or key.endswith("EMBED_DIM")]
    return f"a {facts['MODEL.TYPE']} of {', '.join(rest)}"


def _which_yaml(found: dict[str, Tensor]) -> str:
    """Which of models/*.yaml fits the names and shapes in a file, in words."""
    facts = layouts.described(found)
    if "MODEL.TYPE" not in facts:
        return "choose its variant with --cfg or --type"
    fitting = _fitting(found)
    if not fitting:
        return "no yaml in models/ fits: write one like them (keys: config.py), and give it with --cfg"
    untold = "" if "MODEL.SWIN.WINDOW_SIZE" in facts else ", whose windows nothing in the file tells apart"
    return f"give --cfg {' or '.join(shown(path) for path in fitting)}{untold if len(fitting) > 1 else ''}"


def _fitting(found: dict[str, Tensor]) -> list[Path]:
    """Which of models/*.yaml fit the names and shapes in a file."""
    facts = layouts.described(found)
    table = found.get("layers.0.blocks.0.attn.relative_coords_table")
    fitting = []
    for path in sorted((ROOT / "models").glob("*.yaml")):
        config = _yaml(path)
        if all(_value(config, key) == value for key, value in facts.items()):
            fitting.append(path)
    if table is not None and table.ndim == 4:  # tells the window of the pre-training too
        fitting = [path for path in fitting if _same_table(table, relative_coords_table(
            _yaml(path).MODEL.SWIN.WINDOW_SIZE, _yaml(path).MODEL.SWIN.PRETRAINED_WINDOW_SIZES[0]))] or fitting
    return fitting


@cache
def _yaml(path: Path) -> CfgNode:
    return get_config(path)
