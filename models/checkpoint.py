"""Read the tensors of a checkpoint file, whoever saved it, without running code that is in the file.

    python -c "from models.checkpoint import read_checkpoint; print(read_checkpoint('FILE').weights.keys())"

A .pth file is a pickle: it names Python classes and functions, and reading it plainly would call them. Here it is read
by torch.load(weights_only=True), which calls nothing but torch's own constructors. Whatever else a training script put
beside the weights (argparse.Namespace, numpy scalars, paths, configurations, a whole pickled model) becomes an empty
stand-in that only keeps its attributes. Modules that can run commands are refused by name.
"""
from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from data.labels import labels_in
from utils import UserError, existing_file, shown

# What reading a file raises that is damaged or something else: found by truncating and corrupting files.
_DAMAGED = (safetensors.SafetensorError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, OSError, EOFError,
            RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError, OverflowError,
            MemoryError, RecursionError)

# A file of weights has no use for these; one that names them is refused rather than read with a stand-in.
_COMMANDS = re.compile(r"(os|posix|nt|sys|subprocess|shutil|importlib|runpy|pty|socket|_?ctypes|_?pickle|builtins|"
                       r"__builtin__|commands|webbrowser)(\.|$)")  # commands: subprocess, as pickle's protocol 2 says
_HARMLESS = {f"builtins.{name}" for name in ("set", "frozenset", "slice", "range", "list", "dict", "tuple", "int",
                                             "float", "str", "bool", "bytes", "complex", "object", "type")}
_ARRAYS = re.compile(r"numpy\.(core|_core)\.(multiarray|numeric)\.(_reconstruct|_frombuffer)")
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7-Zip", b"\x28\xb5\x2f\xfd": "zstd"}
_NUMBERS = ("f2", "f4", "f8", "i4", "i8")  # as numpy writes the types of weights and of index buffers
_SAVED_BEFORE_1_6 = bytes.fromhex("6cfc9c46f9206aa85019")  # torch.save's magic number, in the first pickle of a file
_DEPTH = 4  # of nesting, in which weights are looked for: {"ema": {"module": {"model": {...}}}} has three
_LONGEST_LIST = 8  # of [weights, epoch] and the like, which may hold weights
LONGEST = 2500  # characters of a message
_LONGEST_HEADER = 2**27  # bytes of a .safetensors file's header; the library itself reads up to 100 million
_MOST_CLASSES = 500  # that a file names: a pickled model has dozens


class StandIn:
    """What stands for an object of a class that is not read: its attributes, and none of its code."""

    def __new__(cls, *arguments, **keywords):
        return super().__new__(cls)

    def __init__(self, *arguments, **keywords) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update({key: value for key, value in part.items() if isinstance(key, str)})

    def __call__(self, *arguments, **keywords) -> StandIn:
        return self


class DictStandIn:
    """The same for a class that is a dictionary and pickled key by key, which torch allows of plain ones only."""

    def __new__(cls, *arguments, **keywords):
        return OrderedDict()


class ListStandIn:
    """The same for a class that is a list."""

    def __new__(cls, *arguments, **keywords):
        return []


class ArrayStandIn:
    """A numpy array as it is pickled, until `tensor` makes the tensor of its bytes."""

    tensor: Tensor | None = None

    def __new__(cls, *arguments, **keywords):
        return super().__new__(cls)

    def __init__(self, *arguments, **keywords) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """state: (version, shape, dtype, whether it is in Fortran's order, bytes), as ndarray.__reduce__ gives it."""
        shape, kind, fortran, data = state[-4:]
        if isinstance(kind, DtypeStandIn) and kind.text in _NUMBERS and isinstance(data, bytes):
            shape = shape[::-1] if fortran else shape
            array = np.frombuffer(data, np.dtype(kind.text).newbyteorder(kind.order)).reshape(shape)
            array = (array.T if fortran else array).astype(kind.text)
            self.tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


class DtypeStandIn:
    """The same for the type of its numbers."""

    order = "="

    def __new__(cls, *arguments, **keywords):
        return super().__new__(cls)

    def __init__(self, text: object = "", *arguments, **keywords) -> None:
        self.text = text

    def __setstate__(self, state: object) -> None:
        self.order = "<" if state[1] == "<" else ">" if state[1] == ">" else "="


def one_line(text: str) -> str:
    """A text with names from a file in it, as it can be printed: no line break and nothing else that moves a cursor."""
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST // 2]} ... {text[-LONGEST // 2:]}"


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Makes the text of a UserError printable, whatever names of a file it quotes."""
    try:
        yield
    except UserError as error:
        raise UserError(one_line(str(error))) from error


@dataclass
class Checkpoint:
    """What a file holds.

    Attributes:
        weights: state dicts with the names in the file, by the keys that lead to them ("state_dict_ema",
            "ema.module"; "" where the file is nothing but tensors).
        told: what the file says of the model beside its weights: keys of the configuration and their values.
    """

    weights: dict[str, dict[str, Tensor]]
    told: dict[str, object]


@errors_in_one_line()
def read_checkpoint(path: str | Path, source: str = "") -> Checkpoint:
    """The weights in a file, .pth or .safetensors whatever it is called.

    Args:
        path: the file.
        source: what it is called in errors; its path if empty.
    Raises:
        UserError: no such file, damaged, no checkpoint, or one that needs code to be run.
    """
    path = existing_file(path, "a checkpoint (--resume)")
    source = source or shown(path)
    loaded = _load(path, source)
    weights = dict(_weights_in(loaded))
    if not weights:
        raise UserError(f"{source}: holds no state dict of tensors: it is {_outline(loaded)}; give the file that has "
                        "the weights")
    return Checkpoint(weights, {**_told_by_official(loaded), **_told_by_huggingface(path)})


def labels_of(path: str | Path) -> tuple[str, ...]:
    """The names of the classes that a checkpoint brings: those that models/train.py puts into a .safetensors file, else
    those of the config.json that Hugging Face's library and timm write beside one; () where there are none.
    """
    path = existing_file(path, "a checkpoint (--resume)")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length <= min(path.stat().st_size - 8, _LONGEST_HEADER):
            with suppress(ValueError, RecursionError):
                header = json.loads(file.read(length))
                said = header.get("__metadata__") if isinstance(header, dict) else None
                if isinstance(said, dict) and said.get("made_by") == "models/train.py" and said.get("classes"):
                    return tuple(str(said["classes"]).split(","))
    return labels_in(_config_beside(path))


# --- files -------------------------------------------------------------------------------------------------------


def _load(path: Path, source: str) -> object:
    """What a file holds.

    Raises:
        UserError: damaged, something else, or a file that needs code to be run.
    """
    with path.open("rb") as file:
        start = file.read(512)
    kind = _kind(start)
    if kind:
        raise UserError(f"{source}: is {kind}")
    try:
        # The length of the header, then the header. First, as the length may begin as a pickle does, with 0x80.
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8:
            return safetensors.torch.load_file(path)
        if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
            return _load_pickle(path, source)
        if start[8:9] == b"{":
            raise safetensors.SafetensorError("its header goes beyond its end")
        raise pickle.UnpicklingError(f"it begins {start[:8]!r}" if start else "it is empty")
    except _DAMAGED as error:
        # torch's own text of an UnpicklingError advises weights_only=False, which would run code that is in the file.
        text = " ".join(str(error).split("\n")[0].split()).partition("In PyTorch 2.6")[0]
        reason = "" if "weights_only" in text or "WeightsUnpickler" in text else text
        raise UserError(f"{source}: truncated, or no PyTorch or safetensors checkpoint "
                        f"({(reason or type(error).__name__)[:200]}); get the file again") from error


def _kind(start: bytes) -> str:
    """What a file is by its first bytes that is often taken for a checkpoint; "" where it is none of these."""
    text = start.lstrip()[:64].lower()
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file it points to; run git lfs pull"
    if text.startswith((b"<!doctype", b"<html")):
        return "a web page, not a checkpoint; download the file itself"
    if start.startswith(b"\x89HDF\r\n"):
        return "an HDF5 file (Keras), not a PyTorch checkpoint; give the PyTorch or safetensors file of the same model"
    for begin, tool in _PACKED.items():
        if start.startswith(begin):
            return f"compressed by {tool}; unpack it first"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it first, and give the file in it that holds the weights"
    if text.startswith(b"{"):
        return "text (JSON), not a checkpoint; give the file that holds the weights"
    return ""


def _load_pickle(path: Path, source: str) -> object:
    """What torch.load reads, with stand-ins for all classes that it does not know.

    Raises:
        UserError: the file needs code to be run.
        Those of _DAMAGED: the file is damaged.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") or name == "constants.pkl" for name in names):
            raise UserError(f"{source}: is a TorchScript archive, which is a program; save only its weights: "
                            f"{_save_weights('torch.jit.load')}")
        if any(name.endswith(".npy") for name in names):
            raise UserError(f"{source}: is an .npz file of numpy, not a PyTorch or safetensors checkpoint")
        if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
            raise UserError(f"{source}: is a zip archive that torch.save did not write: it holds "
                            f"{', '.join(names[:3]) or 'nothing'}; give the file that holds the weights")
    else:
        with path.open("rb") as file:
            start = file.read(64)
            if start.startswith(b"PK"):
                raise zipfile.BadZipFile("its end is missing")
            if _SAVED_BEFORE_1_6 not in start:
                raise UserError(f"{source}: is a pickle that torch.save did not write; where it was made, let it write "
                                "the weights: python -c \"import pickle, torch; torch.save(pickle.load(open('FILE', "
                                "'rb')), 'weights.pth')\"")
    stand_ins: dict[str, type] = {}
    if zipfile.is_zipfile(path):
        with suppress(pickle.UnpicklingError):  # of a newer pickle protocol: torch.load says it again
            for name in torch.serialization.get_unsafe_globals_in_checkpoint(str(path)):
                stand_ins[name] = _stand_in(name, source)
    filled: dict[str, type] = {}  # classes that turn out to be dictionaries or lists, by the name of their stand-in
    while len(stand_ins) <= _MOST_CLASSES:
        try:
            allowed = torch.serialization.safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()])
            # By its name, torch would take a .safetensors for what it says. Its warnings are for who saves files.
            with allowed, path.open("rb") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            text = str(error)
            # Files from before torch 1.6 tell their classes one by one.
            unknown = re.search(r"GLOBAL (\S+) (was not an allowed|whose module)", text)
            if unknown:
                name = unknown[1] if "." in unknown[1] else f"builtins.{unknown[1]}"
                stand_in = _stand_in(name, source)
                if name not in stand_ins:
                    stand_ins[name] = stand_in
                    continue
            # A subclass of dict or list shows itself when it is filled, whatever it is called.
            unfilled = re.search(r"Can only (SETITEMS?|append|extend) .*<class '(.+)'>", text)
            name = next((name for name, stand_in in stand_ins.items() if unfilled and stand_in not in filled.values()
                         and f"{stand_in.__module__}.{stand_in.__qualname__}" == unfilled[2]), None)
            if name:
                kind = DictStandIn if unfilled[1].startswith("SETITEM") else ListStandIn
                stand_ins[name] = filled[name] = kind
                continue
            reason = re.search(r"Can only \w+[^\n]{0,60}|Trying to call reduce[^\n]{0,60}|Unsupported operand \d+|"
                               r"Only persistent_load[^\n]{0,60}|``torch[^\n]{0,80}", text)
            if reason:
                raise UserError(f"{source}: cannot be read without running code of its own, or is damaged "
                                f"({' '.join(reason[0].split())}); where it was made, save only the weights: "
                                f"{_save_weights('torch.load')}") from error
            raise
    raise UserError(f"{source}: names more than {_MOST_CLASSES} classes; where it was made, save only the weights: "
                    f"{_save_weights('torch.load')}")


def _stand_in(name: str, source: str) -> type:
    """What stands for a class that a file names.

    Raises:
        UserError: it can run commands.
    """
    if _COMMANDS.match(name) and name not in _HARMLESS:
        raise _needs_code(source, name)
    if name.endswith(("Dict", "dict", "CfgNode")) and name != "collections.UserDict":
        return DictStandIn
    if _ARRAYS.fullmatch(name):
        return ArrayStandIn
    if name == "numpy.dtype":
        return DtypeStandIn
    # A class of its own, by which a message of torch's tells which it was.
    return ListStandIn if name == "collections.deque" else type("StandIn_" + re.sub(r"\W", "_", name), (StandIn,), {})


def _needs_code(source: str, name: str) -> UserError:
    return UserError(f"{source}: calls {name} when it is read, which a file of weights has no use for: not read; "
                     f"if you trust it, save only the weights where it was made: {_save_weights('torch.load')}")


def _save_weights(loader: str) -> str:
    """The one line that saves only the weights, for the machine that made the file and has its classes."""
    if loader == "torch.jit.load":
        return "python -c \"import torch; torch.save(torch.jit.load('FILE').state_dict(), 'weights.pth')\""
    return ("python -c \"import torch; c = torch.load('FILE', 'cpu', weights_only=False); c = c.get('state_dict', "
            "c.get('model', c)) if isinstance(c, dict) else c; torch.save(getattr(c, 'state_dict', lambda: c)(), "
            "'weights.pth')\"")


# --- weights in what was read ------------------------------------------------------------------------------------


def _weights_in(found: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The state dicts in what a file holds, with the keys that lead to them: "model_ema.module"."""
    if isinstance(found, StandIn):
        state = dict(_module_state(found))
        if state:
            yield name, state
            return
        found = vars(found)  # an average of weights, or a class that wraps a dictionary
    if isinstance(found, (list, tuple)) and len(found) <= _LONGEST_LIST:
        found = {str(index): value for index, value in enumerate(found)}
    if not isinstance(found, dict) or depth > _DEPTH:
        return
    tensors = {key: value.tensor if isinstance(value, ArrayStandIn) else value for key, value in found.items()
               if isinstance(key, str) and isinstance(value, (Tensor, ArrayStandIn))}
    tensors = {key: value for key, value in tensors.items() if value is not None}
    if any("." in key for key in tensors):
        yield name, tensors
        return
    for key, value in found.items():
        if isinstance(key, str) and isinstance(value, (dict, list, tuple, StandIn)):
            yield from _weights_in(value, f"{name}.{key}" if name else key, depth + 1)


def _module_state(module: object, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The state dict of a pickled torch.nn.Module, from its attributes; nothing where it is something else."""
    attributes = vars(module) if isinstance(module, StandIn) else {}
    left_out = attributes.get("_non_persistent_buffers_set")
    left_out = left_out if isinstance(left_out, (set, list, tuple)) else ()
    for kind in ("_parameters", "_buffers"):
        values = attributes.get(kind)
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, Tensor) and (kind == "_parameters" or name not in left_out):
                yield f"{prefix}{name}", value.detach()
    modules = attributes.get("_modules")
    for name, child in modules.items() if isinstance(modules, dict) and depth < 32 else ():
        yield from _module_state(child, f"{prefix}{name}.", depth + 1)


def _outline(loaded: object) -> str:
    """What a file holds that has no weights, in words."""
    if isinstance(loaded, dict):
        keys = ", ".join(str(key)[:40] for key in list(loaded)[:8])
        return f"a dictionary of {keys}" if keys else "an empty dictionary"
    return f"a {type(loaded).__name__}" if not isinstance(loaded, StandIn) else "an object that is no model"


# --- what a file tells of its model ------------------------------------------------------------------------------


def _told_by_official(loaded: object) -> dict[str, object]:
    """From the configuration that the official training script saves under 'config'."""
    config = loaded.get("config") if isinstance(loaded, dict) else None
    model = config.get("MODEL") if isinstance(config, dict) else None
    told = {}
    for part in ("SWIN", "SWINV2"):
        swin = model.get(part) if isinstance(model, dict) else None
        if not isinstance(swin, dict) or str(model.get("TYPE")).upper() != part:
            continue
        for key in ("WINDOW_SIZE", "PRETRAINED_WINDOW_SIZES"):
            if isinstance(swin.get(key), (int, list)):
                told[f"MODEL.SWIN.{key}"] = swin[key]
        if "QK_SCALE" in swin:
            told["MODEL.SWIN.QK_SCALE"] = swin["QK_SCALE"] or 0.0
    return {**told, "MODEL.SWIN.ACT": "gelu", "MODEL.SWIN.NORM_EPS": 1e-5} if told else {}


def _told_by_huggingface(path: Path) -> dict[str, object]:
    """From the config.json that Hugging Face's library writes beside the weights, if they have its names."""
    config = _config_beside(path)
    if config.get("model_type") not in ("swin", "swinv2"):
        return {}
    told = {"MODEL.SWIN.WINDOW_SIZE": config.get("window_size"), "MODEL.SWIN.NORM_EPS": config.get("layer_norm_eps"),
            "DATA.IMG_SIZE": config.get("image_size")}
    if config["model_type"] == "swinv2":
        told["MODEL.SWIN.PRETRAINED_WINDOW_SIZES"] = config.get("pretrained_window_sizes")
    else:
        told["MODEL.SWIN.QK_SCALE"] = 0.0
    act = config.get("hidden_act")
    told["MODEL.SWIN.ACT"] = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}.get(str(act), act)
    return {key: value for key, value in told.items() if value is not None}


def _config_beside(path: Path) -> dict:
    """The config.json beside weights that have the name which Hugging Face's library and timm give them; else {}."""
    if path.name not in ("model.safetensors", "pytorch_model.bin"):
        return {}
    beside = path.with_name("config.json")
    try:
        config = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    except (ValueError, OSError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
