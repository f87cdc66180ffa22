"""The scripts that a person edits at the top: each constant there counts, and a flag of its name goes before it."""
from __future__ import annotations

from pathlib import Path

import pytest

import Onnx_Latency
import test_swinV2
import Torch_Latency
import TRT_test
from utils import ROOT, UserError

FILES = ["a.onnx", "b/c.onnx"]


@pytest.mark.parametrize("script, constant, value, expected, flag, given, overridden", [
    (Onnx_Latency, "ONNX", FILES, [ROOT / file for file in FILES], "--onnx", "x.onnx", [Path("x.onnx")]),
    (Onnx_Latency, "ONNX", FILES, [ROOT / file for file in FILES], "--model", "x.onnx", [Path("x.onnx")]),
    (Onnx_Latency, "BATCH", "2,3", [2, 3], "--batch", "5", [5]),
    (Onnx_Latency, "RUNNER", "ort-cpu", ["ort-cpu"], "--runner", "ort-cpu", ["ort-cpu"]),
    (Onnx_Latency, "REFERENCE", "a.onnx", ROOT / "a.onnx", "--reference", "x.onnx", Path("x.onnx")),
    (Torch_Latency, "CFG", "models/swinv2.yaml", ROOT / "models/swinv2.yaml", "--cfg", "x.yaml", Path("x.yaml")),
    (Torch_Latency, "RESUME", "a.pth", ROOT / "a.pth", "--resume", "x.pth", Path("x.pth")),
    (Torch_Latency, "ONNX", "a.onnx", ROOT / "a.onnx", "--onnx", "x.onnx", Path("x.onnx")),
    (Torch_Latency, "BATCH", "2", [2], "--batch", "5,6", [5, 6]),
    (Torch_Latency, "RUNNER", "torch-eager", ["torch-eager"], "--runner", "torch-script", ["torch-script"]),
    (Torch_Latency, "PRECISION", "fp16", ["fp16"], "--precision", "fp32", ["fp32"]),
    (Torch_Latency, "MODE", "default", ["default"], "--mode", "max-autotune", ["max-autotune"]),
    (TRT_test, "PLAN", ["a.plan"], [ROOT / "a.plan"], "--plan", "x.plan", ["x.plan"]),
    (TRT_test, "BATCH", "2", [2], "--batch", "5", [5]),
    (TRT_test, "TOLERANCE", "0.5", 0.5, "--tolerance", "0.25", 0.25),
    (TRT_test, "RESULTS", "Results/other", ROOT / "Results/other", "--results", "x", Path("x")),
    (test_swinV2, "CFG", "models/swinv2.yaml", ROOT / "models/swinv2.yaml", "--cfg", "x.yaml", Path("x.yaml")),
    (test_swinV2, "RESUME", "a.pth", ROOT / "a.pth", "--resume", "x.pth", Path("x.pth")),
    (test_swinV2, "ONNX", FILES, [ROOT / file for file in FILES], "--onnx", "x.onnx", [Path("x.onnx")]),
    (test_swinV2, "PLAN", ["a.plan"], [ROOT / "a.plan"], "--plan", "x.plan", [Path("x.plan")]),
    (test_swinV2, "IMAGES", "photos", ROOT / "photos", "--images", "x", Path("x")),
    (test_swinV2, "BATCH", "2,3", [2, 3], "--batch", "5", [5]),
    (test_swinV2, "DEVICE", "cpu", "cpu", "--device", "cuda", "cuda"),
])
def test_a_constant_at_the_top_is_the_default_of_its_flag(script, constant, value, expected, flag, given, overridden,
                                                         monkeypatch):
    name = "onnx" if flag == "--model" else flag.removeprefix("--")
    monkeypatch.setattr(script, constant, value)
    assert getattr(script.parse([]), name) == expected
    assert getattr(script.parse([flag, given]), name) == overridden


def test_data_at_the_top_is_where_engines_find_theirs(tmp_path, monkeypatch):
    monkeypatch.setattr(TRT_test, "DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        TRT_test.find_batches(Path("a.plan"), TRT_test.Facts(), TRT_test.parse([]).data)


@pytest.mark.parametrize("script", [Onnx_Latency, Torch_Latency, TRT_test, test_swinV2])
def test_a_constant_that_is_wrong_is_one_line(script, monkeypatch):
    monkeypatch.setattr(script, "BATCH", "eight")
    with pytest.raises(UserError, match="'eight': not a list of batch sizes"):
        script.parse([])
