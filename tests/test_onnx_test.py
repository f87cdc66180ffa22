"""onnx/onnx_test.py: passes what is equal, fails what is not, and names what does not belong together."""
from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import export_onnx
import numpy as np
import onnx
import onnx_test
import pytest
from onnx import helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file

from config import get_config
from graphs.sessions import onnx_logits, onnx_session
from models.build import build_model
from utils import ROOT, UserError

CFG = ROOT / "models" / "swin_micro.yaml"
# The micro model cut down to two stages, at 56 x 56 pixels.
OPTS = ["MODEL.SWIN.DEPTHS", "[2, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2]",
        "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[0, 0]", "DATA.IMG_SIZE", "56"]


class Pair(NamedTuple):
    """A checkpoint, its export, and the flags that choose the model and the checkpoint."""

    checkpoint: Path
    onnx: Path
    flags: list[str]


@pytest.fixture(scope="module")
def pair(randomize, tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    checkpoint, path = folder / "model.safetensors", folder / "model.onnx"
    model = randomize(build_model(get_config(CFG, OPTS)))
    save_file(model.state_dict(), checkpoint)
    flags = ["--cfg", str(CFG), "--resume", str(checkpoint), "--opts", *OPTS]
    export_onnx.main(["--output", str(path), *flags])
    return Pair(checkpoint, path, flags)


def changed(pair: Pair, path: Path, name: str, change) -> Path:
    """Save the export to `path` with the weight `name` changed by the function `change`."""
    model = onnx.load(pair.onnx)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    onnx.save(model, path)
    return path


def verdict(capsys, path: Path, pair: Pair, *more: str) -> tuple[int, str]:
    """Exit status and output of the script on an ONNX file."""
    try:
        onnx_test.main(["--onnx", str(path), *more, *pair.flags])
        status = 0
    except SystemExit as stopped:
        status = stopped.code
    return status, capsys.readouterr().out


def test_an_export_passes_at_every_batch(capsys, pair):
    status, out = verdict(capsys, pair.onnx, pair)
    assert status == 0
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d", line)]
    assert [row[0] for row in rows] == ["1", "3", "8"]
    assert all(0 < float(row[1]) <= float(row[2]) and row[4] == "100.0%" for row in rows)
    assert out.splitlines()[-1].startswith("PASS")


@pytest.mark.parametrize("name, change", [
    ("layers.0.blocks.1.attn.qkv.weight.T", lambda weight: weight * np.float32(1.001)),
    ("layers.0.blocks.1.attn.attn_mask", np.zeros_like),
    ("norm.bias", lambda bias: bias + np.float32(1e-3)),
    ("head.bias", lambda bias: bias * np.float32(np.nan)),
])
def test_an_altered_weight_fails(capsys, tmp_path, pair, name, change):
    status, out = verdict(capsys, changed(pair, tmp_path / "altered.onnx", name, change), pair)
    assert status == 1
    assert out.splitlines()[-1].startswith("FAIL")


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "much"])
def test_a_tolerance_is_a_finite_number_from_zero_up(pair, value):
    with pytest.raises(UserError, match=f"'{value}': not a finite number from zero up"):
        onnx_test.main(["--onnx", str(pair.onnx), f"--tolerance={value}", *pair.flags])


def test_tolerance_is_a_share_of_the_largest_logit(capsys, tmp_path, pair):
    # One logit of every image is larger by 0.01, which the tolerance allows if the largest |logit| is above 0.5.
    more = np.float32(0.01) * np.eye(18, dtype=np.float32)[0]
    path = changed(pair, tmp_path / "altered.onnx", "head.bias", lambda bias: bias + more)
    assert verdict(capsys, path, pair)[0] == 1
    assert verdict(capsys, path, pair, "--tolerance", "0.02")[0] == 0
    assert verdict(capsys, path, pair, "--tolerance", "0.0001")[0] == 1


@pytest.mark.parametrize("errors, passes", [
    ([1.0, 2.0], True), ([1.1, 2.0], False), ([1.0, 2.1], False), ([1.0, np.nan], False), ([np.nan, 1.0], False)])
def test_every_batch_must_be_within_its_limit(errors, passes):
    assert onnx_test.within(errors, [1.0, 2.5], 2.0) == passes


def test_an_fp16_file_is_held_to_the_error_of_pytorch_in_fp16(capsys, tmp_path, pair, as_fp16):
    status, out = verdict(capsys, as_fp16(pair.onnx, tmp_path / "model_fp16.onnx"), pair)
    assert status == 0 and "(fp16" in out
    altered = changed(pair, tmp_path / "altered.onnx", "norm.bias", lambda bias: bias + np.float32(0.02))
    assert verdict(capsys, as_fp16(altered, tmp_path / "altered_fp16.onnx"), pair)[0] == 1


def test_an_int8_file_needs_a_tolerance(capsys, tmp_path, pair):
    model, path = onnx.load(pair.onnx), tmp_path / "model_int8.onnx"
    scale, zero = np.float32(0.02), np.int8(0)  # the input is within [-2.2, 2.7]
    model.graph.initializer.extend([numpy_helper.from_array(scale, "s"), numpy_helper.from_array(zero, "z")])
    for node in model.graph.node:
        node.input[:] = ["rounded" if name == "input" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["input", "s", "z"], ["quantized"]))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["quantized", "s", "z"], ["rounded"]))
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"int8.*--tolerance"):
        onnx_test.main(["--onnx", str(path), *pair.flags])
    assert verdict(capsys, path, pair, "--tolerance", "0.5")[0] == 0


def with_plugin_nodes(pair: Pair, path: Path, epsilon: float) -> Path:
    """The export with each LayerNormalization as the plugin node of the same meaning."""
    model = onnx.load(pair.onnx)
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            plugin = helper.make_node("SwinLayerNormWithParams", node.input, node.output, node.name, domain="swin",
                                      epsilon=epsilon, plugin_version="1", plugin_namespace="swin")
            node.CopyFrom(plugin)
    model.opset_import.append(helper.make_opsetid("swin", 1))
    onnx.save(model, path)
    return path


def test_plugin_nodes_run_by_their_reference_meaning(capsys, tmp_path, pair):
    status, out = verdict(capsys, with_plugin_nodes(pair, tmp_path / "patched.onnx", 1e-5), pair)
    assert status == 0 and "plugin nodes as standard operators" in out
    # That they are computed at all: another epsilon is another model.
    assert verdict(capsys, with_plugin_nodes(pair, tmp_path / "wrong.onnx", 1e-2), pair)[0] == 1


def test_takes_images_of_a_folder(capsys, tmp_path, pair):
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    status, out = verdict(capsys, pair.onnx, pair, "--images", str(tmp_path), "--batches", "1,3")
    assert status == 0 and str(tmp_path) in out
    with pytest.raises(UserError, match="holds 4 images, 12 are needed"):
        onnx_test.main(["--onnx", str(pair.onnx), "--images", str(tmp_path), *pair.flags])
    (tmp_path / "2.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"2\.png"):
        onnx_test.main(["--onnx", str(pair.onnx), "--images", str(tmp_path), "--batches", "4", *pair.flags])


@pytest.mark.parametrize("content", (b"", b"these are words\n" * 100, None), ids=("empty", "text", "truncated"))
def test_a_file_that_is_not_onnx_is_named(tmp_path, pair, content):
    path = tmp_path / "file.onnx"
    path.write_bytes(pair.onnx.read_bytes()[:100_000] if content is None else content)
    with pytest.raises(UserError, match=r"file\.onnx: is not an ONNX file"):
        onnx_test.main(["--onnx", str(path), *pair.flags])


def test_a_missing_file_is_named(tmp_path, pair):
    with pytest.raises(UserError, match=r"none\.onnx: no such file"):
        onnx_test.main(["--onnx", str(tmp_path / "none.onnx"), *pair.flags])


def test_a_graph_that_onnxruntime_refuses_is_named(tmp_path, pair):
    model, path = onnx.load(pair.onnx), tmp_path / "broken.onnx"
    model.graph.node[3].op_type = "NoSuchOperator"
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"broken\.onnx: onnxruntime refuses it: .*NoSuchOperator"):
        onnx_session(path)


def test_a_graph_that_runs_at_one_batch_alone_is_named(tmp_path, pair):
    """Its input says that any batch fits, but 1 is written into a Reshape."""
    model, path = onnx.load(pair.onnx), tmp_path / "frozen.onnx"
    targets = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    for tensor in model.graph.initializer:
        target = numpy_helper.to_array(tensor)
        if tensor.name in targets and target[0] == -1:
            tensor.CopyFrom(numpy_helper.from_array(np.array([1, *target[1:]]), tensor.name))
            break
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"frozen\.onnx: onnxruntime does not run it at batch 2: .*Reshape"):
        onnx_logits(onnx_session(path), np.zeros((2, 3, 56, 56), np.float32), path)


def test_another_input_size_is_said(pair):
    with pytest.raises(UserError, match=r"takes images of 56 x 56, .* takes 112 x 112"):
        onnx_test.main(["--onnx", str(pair.onnx), *pair.flags[:-1], "112"])


def test_another_number_of_classes_is_said(tmp_path, pair, randomize):
    checkpoint = tmp_path / "five.safetensors"
    save_file(randomize(build_model(get_config(CFG, [*OPTS, "MODEL.NUM_CLASSES", "5"]))).state_dict(), checkpoint)
    with pytest.raises(UserError, match=r"gives 18 classes, .*five\.safetensors has 5"):
        onnx_test.main(["--onnx", str(pair.onnx), "--cfg", str(CFG), "--resume", str(checkpoint), "--opts", *OPTS])


def test_exit_status_and_one_line(tmp_path, pair, as_a_script):
    """As a person runs it: 0 and PASS, 1 and FAIL, 1 and one line on stderr."""
    def run(path: Path) -> subprocess.CompletedProcess:
        return as_a_script(onnx_test, "--onnx", path, *pair.flags)

    command = [sys.executable, str(ROOT / "onnx" / "onnx_test.py"), "--onnx", str(pair.onnx), *pair.flags]
    passed = subprocess.run(command, capture_output=True, text=True)
    assert passed.returncode == 0 and "PASS" in passed.stdout and passed.stderr == ""
    failed = run(changed(pair, tmp_path / "altered.onnx", "norm.weight", lambda weight: -weight))
    assert failed.returncode == 1 and "FAIL" in failed.stdout and failed.stderr == ""
    text = shutil.copy(CFG, tmp_path / "yaml.onnx")
    refused = run(text)
    assert refused.returncode == 1 and refused.stdout == ""
    assert len(refused.stderr.splitlines()) == 1 and refused.stderr.startswith("onnx_test.py: error: ")
