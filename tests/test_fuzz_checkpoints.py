"""Whatever a checkpoint, a yaml or --opts holds: it is read, or one line says why not. Never a traceback, never a hang.

The examples are always the same ones (derandomize), so that a failure is one for everybody; cases of kinds that once
failed stand as @example. FUZZ=N makes N times as many (.ci/run: a minute of them), FUZZ_RANDOM=1 new ones each time.
"""
from __future__ import annotations

import argparse
import io
import os
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from config import get_config
from models.build import build_model, load_model
from utils import ROOT, UserError

TINY = ["DATA.IMG_SIZE", "16", "MODEL.SWIN.WINDOW_SIZE", "4", "MODEL.SWIN.EMBED_DIM", "8",
        "MODEL.SWIN.DEPTHS", "[1]", "MODEL.SWIN.NUM_HEADS", "[1]", "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[0]"]
CONFIG = get_config(ROOT / "models" / "swin_micro.yaml", TINY)
WEIGHTS = {key: value.detach() for key, value in build_model(CONFIG).state_dict().items()}

TIMES = int(os.environ.get("FUZZ", "1"))
same_every_time = settings(derandomize="FUZZ_RANDOM" not in os.environ, deadline=None, max_examples=60 * TIMES,
                           database=None,
                           suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": WEIGHTS, "args": argparse.Namespace(lr=0.1), "epoch": 3}, buffer)
    return buffer.getvalue()


FILES = {"a.pth": pickled(), "a.safetensors": save(WEIGHTS)}
# Where a .pth names its classes and sizes: a change elsewhere is one of a number, which nothing can notice.
with zipfile.ZipFile(io.BytesIO(FILES["a.pth"])) as archive:
    NAME = next(name for name in archive.namelist() if name.endswith("data.pkl"))
    PICKLE = archive.read(NAME)


def read_or_refused(path: Path) -> str:
    """Load a file into the model: "" if it was read, all finite; else the one line that refuses it."""
    try:
        model = load_model(CONFIG, path, outputs=("logits", "features", "maps"))
    except UserError as error:
        assert "\n" not in str(error) and path.name in str(error) and len(str(error)) < 3000
        return str(error)
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in model.state_dict().values())
    return ""


@pytest.mark.parametrize("name", FILES)
@same_every_time
@given(start=st.integers(0, 2**20), change=st.binary(min_size=1, max_size=8))
def test_bytes_of_a_file_changed(name, start, change, tmp_path):
    content = bytearray(FILES[name])
    start %= len(content)
    content[start:start + len(change)] = change
    (tmp_path / name).write_bytes(content)
    read_or_refused(tmp_path / name)


@pytest.mark.parametrize("name", FILES)
@same_every_time
@given(length=st.integers(0, 2**20))
@example(length=0)
@example(length=8)
def test_a_file_cut_off(name, length, tmp_path):
    (tmp_path / name).write_bytes(FILES[name][:length % len(FILES[name])])
    assert read_or_refused(tmp_path / name)


@same_every_time
@given(start=st.integers(0, 2**16), change=st.binary(min_size=1, max_size=4), insert=st.booleans())
def test_the_pickle_inside_changed(start, change, insert, tmp_path):
    """The archive whole, its pickle not: what is seldom reached through the checksum of a changed file."""
    start %= len(PICKLE)
    changed = PICKLE[:start] + change + PICKLE[start + (0 if insert else len(change)):]
    with zipfile.ZipFile(io.BytesIO(FILES["a.pth"])) as source, zipfile.ZipFile(tmp_path / "a.pth", "w") as target:
        for item in source.namelist():
            target.writestr(item, changed if item == NAME else source.read(item))
    read_or_refused(tmp_path / "a.pth")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
    | st.sampled_from([torch.zeros(2), torch.zeros(0), torch.tensor(1), torch.zeros(1, 1, dtype=torch.bool)]),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(
        st.text(max_size=8) | st.integers() | st.sampled_from(["model", "state_dict", "ema", "config", "MODEL"]),
        inner, max_size=4), max_leaves=8)
names = st.sampled_from(sorted(WEIGHTS)) | st.from_regex(
    r"\A(module\.|backbone\.|swin\.)?(layers|stages|features|encoder\.layers)\.[0-9]{1,5}\.(blocks\.)?[0-9]{1,5}\."
    r"(attn|attn\.w_msa|attention\.self|downsample)\.(qkv|query|logit_scale|norm|reduction)(\.weight|\.bias)?\Z")
tensors = st.builds(lambda shape, dtype: torch.ones(shape).to(dtype), st.lists(st.integers(0, 5), max_size=4),
                    st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64]))


@same_every_time
@given(content=values)
@example(content={"\n": None, "\x1b[2J": 1, "\ud800": 2})
@example(content={"a\nb.c": torch.ones(1)})
@example(content={"model": {"config": {"MODEL": []}}})
@example(content={"config": {"MODEL": {"TYPE": "swin", "SWIN": {"WINDOW_SIZE": []}}}, "model": dict(WEIGHTS)})
@example(content={"config": {"MODEL": {"TYPE": "swin", "SWIN": {"QK_SCALE": "x"}}}, "model": dict(WEIGHTS)})
def test_anything_saved_by_torch(content, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    read_or_refused(tmp_path / "a.pth")


@same_every_time
@given(changes=st.dictionaries(names, tensors | st.none(), min_size=1, max_size=6), alone=st.booleans())
@example(changes={"norm3.weight": torch.ones(8)}, alone=False)
@example(changes={"layers.0.blocks.0.attn.relative_position_index": torch.tensor(3)}, alone=False)
@example(changes={"layers.99999.blocks.99999.attn.qkv.weight": torch.ones(0)}, alone=True)
@example(changes={"layers.0.blocks.0.attn.relative_position_bias_table": torch.ones(0)}, alone=True)
@example(changes={"patch_embed.proj.weight": torch.ones(0, 0, 0, 0)}, alone=False)
def test_weights_with_tensors_changed(changes: dict[str, Tensor | None], alone: bool, tmp_path):
    state = {**({} if alone else WEIGHTS), **changes}
    state = {key: value for key, value in state.items() if value is not None}
    torch.save(state, tmp_path / "a.pth")
    unsound = any(key in WEIGHTS and value is not None and not value.is_floating_point()
                  for key, value in changes.items())
    refused = read_or_refused(tmp_path / "a.pth")
    assert refused or not unsound


KEYS = ["MODEL", "TYPE", "NAME", "SWIN", "DATA", "IMG_SIZE", "WINDOW_SIZE", "DEPTHS", "NUM_HEADS", "MLP_RATIO", "ACT",
        "EMBED_DIM", "PATCH_SIZE", "NUM_CLASSES", "PRETRAINED", "OPTS", "WEIGHTS", "QK_SCALE"]
PLAIN = st.sampled_from(["swinv1", "swinv2", "1e999", ".nan", "-.inf", "0", "-1", "9" * 400, "9" * 5000, "[]", "{}",
                         "~", "[2, 2, 6, 2]", "../x", "&a [*a]", "!!python/none", "2001-13-45", "'", "\x00", "x: y",
                         "|", "@"])
YAML = st.recursive(PLAIN | st.text(max_size=6), lambda inner: st.lists(
    st.tuples(st.sampled_from(KEYS), inner), min_size=1, max_size=4).map(
        lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"), max_leaves=10)


def configured_or_refused(*arguments) -> None:
    try:
        config = get_config(*arguments)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 3000
        return
    with torch.device("meta"):
        build_model(config)
    assert not {"/", "\\", "\n"} & set(config.MODEL.NAME)


@settings(same_every_time, max_examples=150 * TIMES)
@given(text=YAML)
@example(text="MODEL: {TYPE: swinv1, SWIN: {EMBED_DIM: " + "9" * 5000 + "}}")
@example(text="[" * 20000)
@example(text="MODEL: {TYPE: swinv1, SWIN: {DEPTHS: [[[[1]]]]}}")
def test_any_yaml(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    configured_or_refused(tmp_path / "a.yaml")


@settings(same_every_time, max_examples=150 * TIMES)
@given(opts=st.lists(st.tuples(st.sampled_from(
    ["MODEL", "MODEL.SWIN", "DATA.IMG_SIZE", "MODEL.NAME", "MODEL.SWIN.DEPTHS", "MODEL.SWIN.MLP_RATIO", "OPTS", "", ".",
     "MODEL.SWIN.EMBED_DIM", "MODEL.SWIN.WINDOW_SIZE", "MODEL.PRETRAINED", "MODEL..", "MODEL.NAME.X"]),
    PLAIN | st.text(max_size=6)), max_size=3))
@example(opts=[("MODEL", "{}")])
@example(opts=[("DATA.IMG_SIZE", "\n")])
@example(opts=[("MODEL.NAME.X", "1")])
@example(opts=[("", "1")])
def test_any_opts(opts):
    configured_or_refused(ROOT / "models" / "swin_micro.yaml", [part for pair in opts for part in pair])
