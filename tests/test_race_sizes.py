"""race_sizes.py without a GPU: what it makes and runs, what it measures again, and its table."""
from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from graphs.sessions import session
from Results.tables import append_rows, read_rows
from TensorRT import race_sizes
from utils import UserError, image_sizes

CELLS = {cell.name: cell for cell in race_sizes.CELLS}
FIGURES = {"latency_ms_median": "2.0", "latency_ms_p25": "2", "latency_ms_p75": "2", "latency_ms_p99": "2",
           "images_per_s": "500", "load": "0.5", "memory_used_mib": "100", "max_share_err": "1.0e-03",
           "backend": "PyTorch 2", "precision": "fp16", "profile": ""}


@pytest.fixture
def calls(monkeypatch) -> list[list[str]]:
    """The commands that would be run; each writes what it is to write, a measurement its figures."""
    known: list[list[str]] = []

    def call(command: list, timeout_s: float, log: Path) -> None:
        words = [str(word) for word in command]
        known.append(words)
        if "--step" in words and words[words.index("--step") + 1] in race_sizes.RUNNERS:
            if words[words.index("--step") + 1] == "torch-compile-max":
                raise UserError("out of memory")
            log.write_text(f"some words\n{json.dumps(FIGURES)}\n")
            return
        folder = Path(words[words.index("--files") + 1]) if "--files" in words else None
        if folder is None:
            Path(words[words.index("--output") + 1]).touch()
            return
        cell = CELLS[words[-1]]
        files = race_sizes.Files(folder, cell)
        plain = files.graph(True).with_name(files.graph(True).name.replace("_attention_fp16", ""))
        written = {"data": [files.data], "export": [files.graph(False)] + [plain] * (not cell.opened),
                   "export-open": [plain]}
        for path in written[words[-2]]:
            path.touch()

    monkeypatch.setattr(race_sizes, "call", call)
    monkeypatch.setattr(race_sizes, "tensorrt_8", lambda: True)
    return known


def run(monkeypatch, tmp_path, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["race_sizes.py", "--files", str(tmp_path / "files"), "--results", str(tmp_path),
                                      *flags])
    race_sizes.main()


def test_what_was_measured_is_not_measured_again(calls, tmp_path, monkeypatch, capsys):
    flags = ("--cell", "swin_t_800x1344_b8", "--runner", "torch-eager,torch-compile-max", "--run-id", "1")
    with pytest.raises(UserError, match="1 of 2 failed: swin_t_800x1344_b8 torch-compile-max"):
        run(monkeypatch, tmp_path, *flags)
    assert "FAILED: out of memory" in capsys.readouterr().out
    (row,) = read_rows(tmp_path / race_sizes.TABLE)
    assert (row["runner"], row["image"], row["batch"], row["latency_ms_median"]) == (
        "torch-eager", "800x1344", "8", "2.0")
    calls.clear()
    with pytest.raises(UserError, match="1 of 1 failed"):
        run(monkeypatch, tmp_path, *flags)
    assert len(calls) == 1 and calls[0][calls[0].index("--step") + 1] == "torch-compile-max"  # the data is there
    run(monkeypatch, tmp_path, *flags[:3], "torch-eager", "--run-id", "2")
    assert len(read_rows(tmp_path / race_sizes.TABLE)) == 2


def test_what_is_compiled_ahead_leaves_no_row(calls, tmp_path, monkeypatch):
    run(monkeypatch, tmp_path, "--cell", "swinir_256x256_b1", "--runner", "torch-compile,torch-eager", "--prepare")
    (step,) = [call for call in calls if call[-1] != "swinir_256x256_b1"]  # PyTorch as it is has nothing to compile
    assert step[step.index("--step") + 1:] == ["torch-compile", "swinir_256x256_b1", "--min-seconds", "0",
                                               "--min-runs", "1"]
    assert not (tmp_path / race_sizes.TABLE).exists()


def test_engines_are_built_for_one_size_and_for_several(calls, tmp_path, monkeypatch):
    run(monkeypatch, tmp_path, "--cell", "swin_t_800x1344_b1,swin_t_800x1344_b8", "--runner",
        "trt,trt-plugins,trt-open", "--run-id", "1")
    builds = [call for call in calls if call[1].endswith("build.sh")]
    flags = {Path(call[call.index("--output") + 1]).name: " ".join(call[5:]) for call in builds}
    assert flags == {
        "swin_t_800x1344_b1_trt-plugins.plan": "--min 1 --opt 1 --max 1 --size 800x1344 --plugins",
        "swin_t_800x1344_attention_fp16_open.plan":
            "--sizes 800x1344,224x224,200x333,1024x1024 --opt 1 --max 8 --plugins",
        "swin_t_800x1344_b1_trt.plan": "--min 1 --opt 1 --max 1 --fp16",
        "swin_t_800x1344_b8_trt-plugins.plan": "--min 8 --opt 8 --max 8 --size 800x1344 --plugins",
        "swin_t_800x1344_b8_trt.plan": "--min 8 --opt 8 --max 8 --fp16"}
    assert sum("add_all.py" in " ".join(call) for call in calls) == 1  # one patched graph for all of them
    assert {call[call.index("--step") + 1] for call in calls if "--step" in call} == {
        "data", "export", "export-open", "trt", "trt-plugins", "trt-open"}


def test_windows_as_large_as_the_last_stage_are_patched_at_a_larger_size(calls, tmp_path, monkeypatch):
    run(monkeypatch, tmp_path, "--cell", "swinv2_b_448x448_b1", "--runner", "trt-plugins", "--run-id", "1")
    (patching,) = [call for call in calls if "add_all.py" in call[1]]
    sizes = image_sizes(patching[patching.index("--probe-sizes") + 1])
    assert any(min(size) // 32 > 14 for size in sizes) and len(sizes) == 3


def test_where_types_are_the_graphs_the_unpatched_one_becomes_fp16(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(race_sizes, "tensorrt_8", lambda: False)
    run(monkeypatch, tmp_path, "--cell", "swinir_256x256_b1", "--runner", "trt", "--run-id", "1")
    assert any("to_fp16.py" in " ".join(call) for call in calls)
    (build,) = [call for call in calls if call[1].endswith("build.sh")]
    assert build[2].endswith("swinir_256x256_b1_fp16.onnx") and "--fp16" not in build


def test_the_table(tmp_path):
    rows = []
    for cell, runner, time, memory in (("swin_l_1024x1024_b1", "trt-plugins", "4.0", "600"),
                                       ("swin_l_1024x1024_b1", "trt-open", "4.1", "700"),
                                       ("swin_l_1024x1024_b1", "torch-compile", "99", "1000"),
                                       ("swin_l_1024x1024_b1", "torch-compile", "12.0", "2000"),  # the newest counts
                                       ("swin_l_1024x1024_b1", "trt", "10.0", "900"),
                                       ("swinir_256x256_b1", "torch-eager", "50", "900")):
        rows.append({**dict.fromkeys(race_sizes.COLUMNS, ""), **FIGURES, "cell": cell, "runner": runner,
                     "latency_ms_median": time, "memory_used_mib": memory, "batch": "1"})
    append_rows(tmp_path / "t.csv", race_sizes.COLUMNS, rows)
    lines = race_sizes.table_of(read_rows(tmp_path / "t.csv")).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "swin_l_1024x1024_b1", "4.000 ms (1e-03)", "4.100 ms (1e-03)", "12.000 ms (1e-03)", "-", "10.000 ms (1e-03)",
        "-", "-", "2.50", "30%", "+2.5%"]
    assert lines[3].startswith("| swinir_256x256_b1 ") and len(lines) == 4


class Two(nn.Module):
    """Two feature maps of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.conv(x)
        return [x, x[:, :, ::2, ::2]]


def test_data_and_graphs_are_of_one_model(tmp_path, monkeypatch):
    monkeypatch.setitem(race_sizes.MODELS, "swin_t", lambda size, opened: Two())
    cell = CELLS["swin_t_800x1344_b1"]._replace(size=(40, 56), batch=2)
    race_sizes.write_data(cell, tmp_path / "d.npz")
    data = dict(np.load(tmp_path / "d.npz"))
    assert data["input"].shape == (2, 3, 40, 56) and not np.array_equal(*data["input"])
    for opened in (False, True):
        race_sizes.write_graph(cell, tmp_path / "m.onnx", opened)
        outputs = session(onnx.load(tmp_path / "m.onnx")).run(None, {"input": data["input"]})
        assert race_sizes.share_of(outputs, data) < 1e-5
        outputs[1][0, 0, 0, 0] += 0.5 * np.abs(data["output_1"]).max()
        assert race_sizes.share_of(outputs, data) == pytest.approx(0.5, rel=1e-4)
        outputs[0][1, 1, 1, 1] = np.nan
        assert not race_sizes.share_of(outputs, data) < 1


def test_cells_and_runners_that_are_none(tmp_path, monkeypatch):
    for flag, name in (("--cell", "swin_x"), ("--runner", "trt,tensorflow")):
        with pytest.raises(UserError, match="unknown; choose from"):
            run(monkeypatch, tmp_path, flag, name)
