"""Reading a file: what training scripts put beside weights, containers, prefixes, and tensors that are no weights."""
from __future__ import annotations

import argparse
import collections
import datetime
import functools
import io
import pathlib
import pickle
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from config import get_config
from models.build import build_model, load_checkpoint, load_model
from models.checkpoint import read_checkpoint
from utils import ROOT, UserError

TINY = ["DATA.IMG_SIZE", "32", "MODEL.SWIN.WINDOW_SIZE", "4", "MODEL.SWIN.EMBED_DIM", "16",
        "MODEL.SWIN.DEPTHS", "[1,2]", "MODEL.SWIN.NUM_HEADS", "[1,2]", "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[0,0]"]
CFG = {1: ROOT / "models" / "swin_micro.yaml", 2: ROOT / "models" / "swinv2_micro.yaml"}
CONFIG = get_config(CFG[1], TINY)


@pytest.fixture(scope="module")
def weights(randomize) -> dict[str, Tensor]:
    return dict(randomize(build_model(CONFIG)).state_dict())


@pytest.fixture(scope="module")
def averaged(weights) -> dict[str, Tensor]:
    """Other weights for the same model."""
    return {key: value + 1 for key, value in weights.items()}


def saved(content: object, path: Path, **keywords) -> Path:
    torch.save(content, path, **keywords)
    return path


def assert_loads(path: Path, expected: dict[str, Tensor], *opts: str) -> None:
    loaded = load_checkpoint(path, get_config(CFG[1], [*TINY, *opts]))
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[key], expected[key]) for key in expected)


def error_of(path: Path, *opts: str, version: int = 1) -> str:
    with pytest.raises(UserError) as caught:
        load_model(get_config(CFG[version], [*TINY, *opts]), path)
    message = str(caught.value)
    assert "\n" not in message and path.name in message and "weights_only=True" not in message
    return message


# --- beside the weights --------------------------------------------------------------------------------------


class Settings:
    """A class of a training script, with state of each kind that pickle has."""

    __slots__ = ("__dict__", "slot")

    def __init__(self) -> None:
        self.slot, self.path = 1, pathlib.PurePosixPath("a")


class Registry(dict):
    """A dictionary of a training script, pickled key by key."""


class Queue(list):
    """The same for a list."""


class Average:
    """Weights in an attribute, as classes that average them have."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.decay, self.shadow = 0.9, state


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, data=pathlib.Path("/data"), start=datetime.datetime(2026, 1, 2)),
    "simple namespace": types.SimpleNamespace(a=1),
    "numpy scalar": np.float64(81.2),
    "numpy array": np.arange(3),
    "numpy generator": np.random.default_rng(0),
    "paths": [pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("c:/d")],
    "default dictionary": collections.defaultdict(list, {"loss": [1.0]}),
    "deque": collections.deque([1, 2], maxlen=3),
    "counter": collections.Counter("abca"),
    "partial": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
    "class": Settings(),
    "dictionary class": Registry(a=1),
    "list class": Queue([1, 2]),
    "several classes": [Queue([1]), Registry(a=Queue([2])), Settings(), collections.UserDict(a=1)],
    "set": {1, frozenset({2})},
    "scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), 3),
    "model": nn.Sequential(nn.Linear(2, 2), nn.GELU()),
    "dtype": [torch.float16, np.dtype("f4"), torch.device("cpu"), torch.Size([1])],
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
@pytest.mark.parametrize("kind", BESIDE)
def test_what_lies_beside_the_weights_does_not_matter(kind, zipped, weights, tmp_path, monkeypatch):
    for cls in (Settings, Registry, Queue, Average):  # as in a script
        monkeypatch.setattr(cls, "__module__", "__main__")
        monkeypatch.setattr(sys.modules["__main__"], cls.__name__, cls, raising=False)
    content = {"args": BESIDE[kind], "epoch": 9, "state_dict": weights, "last": BESIDE[kind]}
    if kind == "model" and not zipped:  # more than stand-ins can do: the reason is said
        with pytest.raises(UserError, match=r"Only persistent_load.*save only the weights: python"):
            load_model(CONFIG, saved(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped))
        return
    assert_loads(saved(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped), weights)


def test_a_whole_pickled_model(randomize, tmp_path, capsys):
    """Its tensors are found by the attributes that torch gives every module; none of its code is run."""
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=(1, 2),
                              num_heads=(1, 2), num_classes=5)
    model = randomize(model).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for content in (model, {"model": model, "epoch": 3}, nn.DataParallel(model)):
        loaded = load_model(CONFIG, saved(content, tmp_path / "whole.pth"))
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=1e-4)


HOLDERS = {
    "dictionary class": lambda state: {"model": Registry(state)},
    "wrapped dictionary": lambda state: {"model": collections.UserDict(state)},
    "average": lambda state: {"ema": Average(state)},
    "list": lambda state: [{"epoch": 1}, state],
    "numpy arrays": lambda state: {"model": {key: value.numpy() for key, value in state.items()}},
    "numpy arrays of other orders": lambda state: {
        key: np.asfortranarray(value.numpy().astype(">f8")) for key, value in state.items()},
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_weights_are_found_in_what_holds_them(holder, weights, tmp_path, monkeypatch):
    for cls in (Registry, Average):
        monkeypatch.setattr(cls, "__module__", "__main__")
        monkeypatch.setattr(sys.modules["__main__"], cls.__name__, cls, raising=False)
    assert_loads(saved(HOLDERS[holder](weights), tmp_path / "a.pth"), weights)


def test_a_classifier_without_a_bias(weights, tmp_path, capsys):
    unbiased = {key: value for key, value in weights.items() if key != "head.bias"}
    assert_loads(saved(unbiased, tmp_path / "a.pth"), unbiased | {"head.bias": torch.zeros_like(weights["head.bias"])})
    load_model(CONFIG, tmp_path / "a.pth")
    assert "no bias of the classifier: zeros" in capsys.readouterr().out


def test_the_line_that_saves_the_weights_works(weights, tmp_path):
    """Where torch cannot read a file with stand-ins, its error gives a command; run where the classes are, it helps."""
    (tmp_path / "script.py").write_text("class Registry(dict): pass\n")
    make = ("import sys, torch, script; torch.save({'state_dict': torch.load(sys.argv[1]), 'r': script.Registry(a=1)}, "
            "'odd.pth', pickle_protocol=4)")
    subprocess.run([sys.executable, "-c", make, saved(weights, tmp_path / "w.pth")], cwd=tmp_path, check=True)
    message = error_of(tmp_path / "odd.pth")
    command = message.partition("python -c ")[2].strip('"').replace("FILE", "odd.pth")
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    assert_loads(tmp_path / "weights.pth", weights)


def test_no_code_of_a_file_is_run(weights, tmp_path):
    class Attack:
        def __init__(self, function, *arguments) -> None:
            self.reduced = function, arguments

        def __reduce__(self):
            return self.reduced

    ran = tmp_path / "ran"
    # Harmless here, had they run: each would only make a file of that name.
    for index, attack in enumerate((Attack(Path.touch, ran), Attack(eval, f"open({str(ran)!r}, 'w')"),
                                    Attack(subprocess.call, ["touch", str(ran)]), Attack(np.save, str(ran), [1]))):
        path = saved({"state_dict": weights, "x": attack}, tmp_path / f"{index}.pth")
        if index < 3:
            assert "has no use for" in error_of(path)
        else:
            assert_loads(path, weights)  # numpy.save became a stand-in
    assert not ran.exists() and not ran.with_suffix(".npy").exists()


@pytest.mark.parametrize(("content", "words"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    (b"<!DOCTYPE html><html>", "web page"),
    (b"\x89HDF\r\n\x1a\n" + bytes(40), "Keras"),
    (b"\x1f\x8b" + bytes(40), "gzip"), (b"BZh9" + bytes(40), "bzip2"), (bytes(257) + b"ustar", "tar archive"),
    (pickle.dumps({"a.b": 1}), "pickle that torch.save did not write"),
    (b'{"weight_map": {}}', "JSON"),
])
def test_files_that_are_taken_for_checkpoints(content, words, tmp_path):
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        assert words in error_of(tmp_path / name)


def test_other_files_of_torch_and_numpy(weights, tmp_path):
    np.savez(tmp_path / "a.npz", **{"patch_embed": np.zeros(1)})
    assert ".npz" in error_of(tmp_path / "a.npz")
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "a.pt")
    assert "torch.jit.load" in error_of(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("run/model.pth", "")
    assert "zip archive that torch.save did not write: it holds run/model.pth" in error_of(tmp_path / "a.zip")


def test_a_newer_pickle_protocol(weights, tmp_path):
    """What torch's safe reader cannot read is refused with the reason, and the command helps."""
    assert "Unsupported operand" in error_of(saved(weights, tmp_path / "b.pth", pickle_protocol=4))


def test_a_file_is_told_by_its_contents(weights, tmp_path):
    save_file(weights, tmp_path / "a.pth")
    assert_loads(tmp_path / "a.pth", weights)
    assert_loads(saved(weights, tmp_path / "b.safetensors"), weights)


def test_a_safetensors_file_that_begins_as_a_pickle_does(weights, tmp_path):
    """A file begins with the length of its header, whose lowest byte may be 0x80, as a pickle's first one is."""
    path = tmp_path / "a.safetensors"
    for length in range(0, 264, 8):  # headers are padded to multiples of 8
        save_file(weights, path, metadata={"note": "x" * length})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert_loads(path, weights)


# --- containers and prefixes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.", "encoder.", "_orig_mod.", "module._orig_mod.",
                                    "model.module.net."])
def test_prefixes(prefix, weights, tmp_path, capsys):
    state = {prefix + key: value for key, value in weights.items()}
    path = saved({"state_dict": {**state, "criterion.weight": torch.zeros(3)}}, tmp_path / "a.pth")
    loaded = load_model(CONFIG, path)
    assert all(torch.equal(value, weights[key]) for key, value in loaded.state_dict().items())
    told = capsys.readouterr().out
    assert f"prefix '{prefix}' taken off" in told and "1 tensors of other parts left out: criterion" in told


@pytest.mark.parametrize("container", ["model", "state_dict", "state_dict_ema", "model_ema", "model_state_dict", "net",
                                       "ema.module", "anything"])
def test_containers(container, weights, tmp_path, capsys):
    content = weights
    for name in reversed(container.split(".")):
        content = {name: content}
    load_model(CONFIG, saved({**content, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}, tmp_path / "a.pth"))
    assert f"taken under '{container}'" in capsys.readouterr().out
    assert_loads(tmp_path / "a.pth", weights)


def test_weights_beside_their_moving_average(weights, averaged, tmp_path, capsys):
    path = saved({"model": weights, "model_ema": averaged}, tmp_path / "a.pth")
    assert_loads(path, weights)
    load_model(CONFIG, path)
    assert "taken under 'model', not 'model_ema' (--weights)" in capsys.readouterr().out
    assert_loads(path, averaged, "MODEL.WEIGHTS", "ema")
    assert "it holds 'model', 'model_ema'" in error_of(path, "MODEL.WEIGHTS", "swa")


def test_student_and_teacher(weights, averaged, tmp_path):
    state = {**{f"student.{key}": value for key, value in weights.items()},
             **{f"teacher.{key}": value for key, value in averaged.items()}}
    path = saved({"state_dict": state}, tmp_path / "a.pth")
    assert "'state_dict.student', 'state_dict.teacher'; choose one with --weights" in error_of(path)
    assert_loads(path, averaged, "MODEL.WEIGHTS", "teacher")


# --- tensors that are no weights -----------------------------------------------------------------------------

BAD = {
    "int32": (lambda x: x.int(), "holds int32"), "bool": (lambda x: x > 0, "holds bool"),
    "complex": (lambda x: x.to(torch.complex64), "holds complex64"),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), "holds float8_e4m3fn"),
    "sparse": (lambda x: x.to_sparse(), "is sparse"),
    "csr": (lambda x: x.to_sparse_csr() if x.ndim == 2 else x.to_sparse(), "is sparse"),
    "meta": (lambda x: x.to("meta"), "device meta"),
    "NaN": (lambda x: x * float("nan"), "NaN or infinite"),
    "a NaN": (lambda x: x.flatten().index_fill(0, torch.tensor([1]), float("nan")).reshape(x.shape), "has 1 of"),
    "infinite": (lambda x: x / 0, "NaN or infinite"),
    "beyond FP32": (lambda x: x.double() * 1e300, "beyond FP32"),
    "expanded": (lambda x: torch.zeros(()).expand(x.shape), "repeats a few numbers"),
    "quantised": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "holds qint8"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("name", ["layers.0.blocks.0.mlp.fc1.weight", "head.bias"])
@pytest.mark.parametrize("kind", BAD)
def test_a_tensor_that_is_no_weight_is_named(kind, name, weights, tmp_path):
    make, words = BAD[kind]
    message = error_of(saved({**weights, name: make(weights[name])}, tmp_path / "a.pth"))
    assert name in message and (words in message or kind == "quantised")


def test_no_class(weights, tmp_path):
    none = {**weights, "head.weight": torch.zeros(0, 32), "head.bias": torch.zeros(0)}
    assert "head.weight is of [0, 32]: no class" in error_of(saved(none, tmp_path / "a.pth"))


def test_a_size_that_is_only_claimed_costs_no_memory(weights, tmp_path):
    many = torch.zeros(()).expand(10**12, 32)
    message = error_of(saved({**weights, "head.weight": many, "head.bias": many[:, 0]}, tmp_path / "a.pth"))
    assert "head.weight is a view that repeats a few numbers" in message


def test_number_of_classes_given_and_found(weights, tmp_path):
    path = saved(weights, tmp_path / "a.pth")
    assert load_model(get_config(CFG[1], [*TINY, "MODEL.NUM_CLASSES", "18"]), path).num_classes == 18
    assert "has 18 classes and --opts says 7" in error_of(path, "MODEL.NUM_CLASSES", "7")


# --- the yaml that fits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stem", "wrong", "buffers", "also"), [
    ("swin_base_patch4_window12_384", "swin_base_patch4_window7_224", False, ""),
    ("swin_tiny_c24_patch4_window8_256", "swin_tiny_patch4_window7_224", False, ""),
    ("swin_large_patch4_window7_224_22kto1k", "swin", False, ""),
    ("swinv2_tiny_patch4_window16_256", "swinv2", True, ""),
    ("swinv2_tiny_patch4_window16_256", "swinv2_tiny_patch4_window8_256", True, ""),
    ("swinv2_tiny_patch4_window16_256", "swinv2", False,
     " or models/swinv2_tiny_patch4_window8_256.yaml, whose windows nothing in the file tells apart"),
])
def test_the_yaml_that_fits_is_named(stem, wrong, buffers, also, tmp_path):
    right = get_config(ROOT / "models" / f"{stem}.yaml")
    with torch.device("meta"):
        model = build_model(right)
    state = {key: torch.zeros(()).expand(value.shape) for key, value in model.state_dict().items()}
    if buffers:  # as official V2 files have them; computed for real
        state = {key: value.contiguous() for key, value in state.items()}
        for name, module in build_model(right).named_modules():
            if hasattr(module, "relative_coords_table"):
                state[f"{name}.relative_coords_table"] = module.relative_coords_table
                state[f"{name}.relative_position_index"] = module.relative_position_index
    with pytest.raises(UserError) as caught:
        load_model(get_config(ROOT / "models" / f"{wrong}.yaml"), saved({"model": state}, tmp_path / "a.pth"))
    assert f"give --cfg models/{stem}.yaml{also}. " in str(caught.value)


def test_what_is_taken_on_trust_is_said(weights, tmp_path, capsys):
    load_model(CONFIG, saved(weights, tmp_path / "a.pth"))
    assert "nothing in it tells, swinv1_micro says ACT gelu, QK_SCALE 0.0, NORM_EPS 1e-05, IMG_SIZE 32" \
        in capsys.readouterr().out
    config = get_config(CFG[2], TINY)
    load_model(config, saved(build_model(config).state_dict(), tmp_path / "b.pth"))
    assert "WINDOW_SIZE 4, PRETRAINED_WINDOW_SIZES [0, 0]" in capsys.readouterr().out


def test_the_configuration_in_an_official_file_is_compared(weights, tmp_path):
    from yacs.config import CfgNode

    swin = {"WINDOW_SIZE": 4, "QK_SCALE": 0.5}
    content = {"model": weights, "config": CfgNode({"MODEL": {"TYPE": "swin", "SWIN": swin}})}
    message = error_of(saved(content, tmp_path / "a.pth"))
    assert "the file says MODEL.SWIN.QK_SCALE 0.5, the configuration 0.0" in message
    assert_loads(tmp_path / "a.pth", weights, "MODEL.SWIN.QK_SCALE", "0.5")


# --- damage --------------------------------------------------------------------------------------------------


def test_a_pickle_that_is_cut_or_garbled(weights, tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": 1}, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "a.pth").write_bytes(buffer.getvalue()[:-2])
    assert "truncated" in error_of(tmp_path / "a.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        read_checkpoint(saved({"model": {"lr": 0.1}}, tmp_path / "b.pth"))
