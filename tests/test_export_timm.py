"""onnx/export_timm.py: timm's model with this project's weights, the batch fixed; nothing is written that differs."""
from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import export_timm
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from config import get_config
from models.build import build_model
from utils import ROOT, UserError

CFG = {"swinv1": ROOT / "models" / "swin_micro.yaml", "swinv2": ROOT / "models" / "swinv2_micro.yaml"}
# The micro models cut down to two stages of two windows and of one; V2 with another pre-training window.
OPTS = {kind: ["MODEL.SWIN.DEPTHS", "[2, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2]", "DATA.IMG_SIZE", img_size,
               "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", windows]
        for kind, img_size, windows in (("swinv1", "56", "[0, 0]"), ("swinv2", "64", "[6, 4]"))}


@pytest.mark.parametrize("kind", CFG)
def test_the_file_is_timms_graph_of_a_fixed_batch_and_computes_the_same(kind, randomize, tmp_path, capsys):
    model = randomize(build_model(get_config(CFG[kind], [*OPTS[kind], "MODEL.NUM_CLASSES", "7"])))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    path = tmp_path / "m_timm_b3.onnx"
    export_timm.main(["--cfg", str(CFG[kind]), "--resume", str(tmp_path / "model.safetensors"), "--batch", "3",
                      "--output", str(path), "--opts", *OPTS[kind]])
    graph = onnx.load(str(path))
    sizes = {tensor.name: [axis.dim_value for axis in tensor.type.tensor_type.shape.dim]
             for tensor in (*graph.graph.input, *graph.graph.output)}
    assert sizes["input"] == [3, 3, model.img_size, model.img_size] and list(sizes) == ["input", "logits"]
    assert graph.opset_import[0].version == 17
    assert {tensor.data_type for tensor in graph.graph.initializer} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert Counter(node.op_type for node in graph.graph.node)["Softmax"] == 3  # a block each: attention is not fused

    images = np.random.default_rng(0).standard_normal((3, 3, model.img_size, model.img_size), np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    logits = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"input": images})[0]
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    told = capsys.readouterr().out
    assert "batch 3 fixed" in told and "max abs error" in told


def test_another_output_is_not_written(randomize, tmp_path, monkeypatch):
    opts = OPTS["swinv1"]
    model = randomize(build_model(get_config(CFG["swinv1"], opts)))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    real = export_timm.timm_model

    def off_by_a_little(config, model):
        theirs = real(config, model)
        with torch.no_grad():
            theirs.head.fc.bias[0] += 1e-3 * 20
        return theirs

    monkeypatch.setattr(export_timm, "timm_model", off_by_a_little)
    with pytest.raises(UserError, match=r"m\.onnx: not written: timm's model is off by"):
        export_timm.main(["--cfg", str(CFG["swinv1"]), "--resume", str(tmp_path / "model.safetensors"),
                          "--output", str(tmp_path / "m.onnx"), "--opts", *opts])
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_no_timm_is_one_line(tmp_path):
    (tmp_path / "timm.py").write_text("raise ImportError('no timm here')")
    done = subprocess.run([sys.executable, ROOT / "onnx/export_timm.py", "--cfg", CFG["swinv1"], "--output",
                           tmp_path / "m.onnx"], capture_output=True, text=True, cwd=ROOT,
                          env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "no timm here" in done.stderr and "requirements-test.txt" in done.stderr
    assert not list(Path(tmp_path).glob("*.onnx"))


@pytest.mark.parametrize("flags, words", [(["--batch", "0"], "number"), (["--output", "m.plan"], "end with .onnx")])
def test_bad_flags_are_refused(flags, words):
    with pytest.raises(UserError, match=words):
        export_timm.main(["--cfg", str(CFG["swinv1"]), *flags])
