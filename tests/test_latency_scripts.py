"""Torch_Latency.py, Onnx_Latency.py and Results/timing.py: protocol, rows, errors, and what happens on failure.

No test looks at how fast anything is.
"""
from __future__ import annotations

import copy
import csv
import itertools
import os
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import export_onnx
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from safetensors.torch import save_file

import Onnx_Latency
import Torch_Latency
from config import get_config
from data import batches
from data.photo_crops import held_out_batch
from graphs import sessions
from graphs.facts import of_onnx
from models.build import build_model
from Results import tables, timing
from Results.tables import LATENCY_COLUMNS
from utils import ROOT, UserError

CFG = ROOT / "models" / "swinv2_micro.yaml"
# The micro model cut down to one block, at 64 x 64 pixels, under a name of its own: torch.compile takes long.
OPTS = ["MODEL.SWIN.DEPTHS", "[1]", "MODEL.SWIN.NUM_HEADS", "[1]", "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[0]",
        "DATA.IMG_SIZE", "64", "MODEL.NAME", "cut_down"]
QUICK = ["--min-seconds", "0", "--min-runs", "2"]
COMPILE = ["--runner", "torch-compile", "--mode", "default", "--precision", "fp32", "--batch", "2"]


# --- the protocol --------------------------------------------------------------------------------------------


class Clock:
    """A clock that only runs while something is measured, and a run that takes `seconds` of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.now, self.seconds, self.runs = 0.0, seconds, 0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def run_once_ms(self) -> float:
        self.now += self.seconds
        self.runs += 1
        return float(self.runs)


@pytest.mark.parametrize("seconds, warmup, measured", [
    (0.001, 500, 2000),  # fast: 0.5 s and 2 s decide
    (0.1, 10, 100),  # 10 and 100 runs decide
    (1.0, 9, 20),  # 100 runs would take 100 s: stops after ten times 2 s; warming up, after four times 2 s
    (5.0, 3, 10),  # never fewer than 3 and 10
])
def test_timed_runs_warms_up_and_measures_long_enough(monkeypatch, seconds, warmup, measured):
    clock = Clock(monkeypatch, seconds)
    times_ms = timing.timed_runs(clock.run_once_ms)
    assert abs(len(times_ms) - measured) <= 1
    assert abs(clock.runs - len(times_ms) - warmup) <= 1
    assert times_ms[0] == clock.runs - len(times_ms) + 1  # no time of a warm-up run


def test_timed_runs_warms_up_for_as_long_as_asked(monkeypatch):
    clock = Clock(monkeypatch, 0.1)
    assert len(timing.timed_runs(clock.run_once_ms, warmup_s=5, min_runs=2, min_s=0)) == 2
    assert abs(clock.runs - 2 - 50) <= 1


def test_timed_runs_can_be_short(monkeypatch):
    clock = Clock(monkeypatch, 1.0)
    assert len(timing.timed_runs(clock.run_once_ms, min_runs=2, min_s=0)) == 2
    assert clock.runs == 4


def test_latency_figures():
    figures = timing.latency_figures(np.arange(1.0, 102.0), batch=8)  # 1 to 101 ms, median 51
    assert figures == {"latency_ms_median": "51.0000", "latency_ms_p25": "26.0000", "latency_ms_p75": "76.0000",
                       "latency_ms_p99": "100.0000", "images_per_s": "156.9"}


def test_error_figures():
    reference = np.array([[1.0, 2.0, 0.0], [4.0, -8.0, 1.0]], np.float32)
    output = np.array([[1.5, 2.0, 0.25], [4.0, -8.0, 5.0]], np.float32)
    # |differences| 0.5 0 0.25 0 0 4; relative, without the one of reference 0: 0.5 0 0 0 4
    assert tables.error_figures(output, reference) == {
        "max_abs_err": "4.000e+00", "median_rel_err": "0.000e+00", "top1_agreement": "0.5000"}


def test_error_figures_do_not_hide_nan():
    reference = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    output = np.array([[1.0, np.nan], [3.0, 4.0]], np.float32)
    figures = tables.error_figures(output, reference)
    assert figures["max_abs_err"] == "nan" and figures["top1_agreement"] == "0.5000"


def test_rows_are_added_to_the_table_and_other_tables_are_left_alone(tmp_path):
    path = tmp_path / "table.csv"
    tables.append_rows(path, ("a", "b"), [{"a": 1, "b": "x, y"}])
    tables.append_rows(path, ("a", "b"), [{"a": 2, "b": "z"}])
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": "x, y"}, {"a": "2", "b": "z"}]
    with pytest.raises(UserError, match="has other columns"):
        tables.append_rows(path, ("a", "c"), [{"a": 3, "c": 4}])


# --- the scripts ---------------------------------------------------------------------------------------------


class Files(NamedTuple):
    """A model, its checkpoint and its FP32 export, and the flags that choose it."""

    model: torch.nn.Module
    checkpoint: Path
    onnx: Path
    flags: list[str]


@pytest.fixture(scope="module")
def files(randomize, tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("model")
    model = randomize(build_model(get_config(CFG, OPTS)))
    save_file(model.state_dict(), folder / "model.safetensors")
    flags = ["--cfg", str(CFG), "--resume", str(folder / "model.safetensors"), "--opts", *OPTS]
    export_onnx.main(["--output", str(folder / "cut_down.onnx"), *flags])
    return Files(model, folder / "model.safetensors", folder / "cut_down.onnx", flags)


class Compiled(NamedTuple):
    """Of a run with --compile-only: inductor's cache, what was told, what inductor counted, and the results' folder."""

    cache: Path
    told: str
    found: dict[str, int]
    results: Path


@pytest.fixture(scope="module")
def compiled(files, tmp_path_factory) -> Compiled:
    """The model compiled into a cache of its own by --compile-only."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as told:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "cache"))
        torch._dynamo.utils.counters.clear()
        Torch_Latency.main(["--compile-only", *COMPILE, "--results", str(folder / "Results"), *files.flags])
        counted = torch._dynamo.utils.counters["inductor"]
        found = {name: counted[name] for name in ("fxgraph_cache_hit", "fxgraph_cache_miss") if counted[name]}
    return Compiled(folder / "cache", told.getvalue(), found, folder / "Results")


def rows(results: Path) -> list[dict[str, str]]:
    """Results/latency.csv, its form checked."""
    with (results / "latency.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for row in table:
        assert tuple(row) == LATENCY_COLUMNS
        assert 0 < float(row["latency_ms_median"]) <= float(row["latency_ms_p99"])
        median = float(row["latency_ms_median"])
        speed = 1000 * int(row["batch"]) / median
        # Both are rounded: the latency to 4 places, the speed, which was worked out before that, to one.
        assert float(row["images_per_s"]) == pytest.approx(speed, abs=0.05 + speed * 0.00005 / median)
        environment = (results / "environment" / f"{row['run_id']}.txt").read_text()
        assert row["gpu"] in environment or row["gpu"].startswith("none")
        assert "numpy: " in environment
    return table


def ort(path: Path, images: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"input": images})[0]


def test_torch_latency_on_every_precision(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Torch_Latency.main(["--onnx", str(files.onnx), "--runner", "torch-eager", "--batch", "1,3", *QUICK,
                        "--results", str(tmp_path), "--data", str(tmp_path), *files.flags])
    table = rows(tmp_path)
    assert len({row["run_id"] for row in table}) == 1
    assert [(row["runner"], row["batch"], row["precision"]) for row in table] == [
        ("torch-eager", batch, precision) for batch in "13" for precision in ("fp32", "fp16", "bf16")]
    out = capsys.readouterr().out
    assert "on the CPU" in out and out.count("images/s") == len(table)
    for row in table:
        assert row["model"] == "cut_down" and row["gpu"].startswith("none (")
        assert (row["device"], row["cuda_graph"], row["timed_by"]) == ("cpu", "no", "clock")
        images = held_out_batch(int(row["batch"]), 64)[0]
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[row["precision"]]
        model = copy.deepcopy(files.model).fold_constants().to(dtype)
        with torch.inference_mode():
            logits = model(torch.from_numpy(images).to(dtype)).float().numpy()
        error = np.abs(logits - ort(files.onnx, images)).max()
        assert float(row["max_abs_err"]) == pytest.approx(error, rel=1e-3)
        assert float(row["max_abs_err"]) < {"fp32": 1e-5, "fp16": 0.02, "bf16": 0.2}[row["precision"]]


def test_torchscript_and_compile_and_what_the_error_is_against(files, compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled.cache))
    monkeypatch.setattr(Torch_Latency, "ROOT", tmp_path)  # where no onnx/cut_down.onnx is
    Torch_Latency.main(["--runner", "torch-script,torch-compile", "--precision", "fp32", "--batch", "2", *QUICK,
                        "--mode", "default", "--results", str(tmp_path), "--data", str(tmp_path), *files.flags])
    script, compiled = rows(tmp_path)
    assert (script["runner"], script["mode"], script["cuda_graph"]) == ("torch-script", "", "no")
    assert (compiled["runner"], compiled["mode"], compiled["cuda_graph"]) == ("torch-compile", "default", "")
    assert script["errors_against"] == compiled["errors_against"] == "PyTorch FP32"
    assert script["backend"] == f"PyTorch {torch.__version__}" and script["images"] == "2"
    assert float(script["load"]) >= 0
    for row in (script, compiled):
        assert float(row["max_abs_err"]) < 1e-5 and row["top1_agreement"] == "1.0000"


def test_a_combination_that_fails_is_one_line_and_the_others_go_on(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/no/such/compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # where nothing is compiled yet
    with pytest.raises(UserError, match=r"1 of 2 combinations failed: torch-compile fp32 b1 \(mode reduce-overhead\)"):
        Torch_Latency.main(["--onnx", str(files.onnx), "--runner", "torch-compile,torch-eager", "--precision", "fp32",
                            "--batch", "1", *QUICK, "--results", str(tmp_path), "--data", str(tmp_path),
                            *files.flags])
    assert [row["runner"] for row in rows(tmp_path)] == ["torch-eager"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    assert len(lines) == 1 and "C++ compiler" in lines[0]


def test_torch_latency_refuses_an_export_of_another_checkpoint(files, tmp_path, randomize):
    other = randomize(build_model(get_config(CFG, OPTS)), 1)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"cut_down\.onnx: its output is not that of the checkpoint"):
        Torch_Latency.main(["--onnx", str(files.onnx), "--results", str(tmp_path), *QUICK, "--cfg", str(CFG),
                            "--resume", str(tmp_path / "other.safetensors"), "--opts", *OPTS])
    assert not (tmp_path / "latency.csv").exists()


@pytest.mark.parametrize("flag, value", [
    ("--runner", "torch-lazy"), ("--precision", "fp8"), ("--mode", "fastest"), ("--batch", "0"), ("--batch", "1,x"),
    ("--min-seconds", "-1"), ("--min-seconds", "inf"), ("--min-seconds", "soon")])
def test_torch_latency_refuses_unknown_values(files, flag, value):
    with pytest.raises(UserError, match=value.split(",")[-1]):
        Torch_Latency.main([flag, value, *files.flags])


def test_onnx_latency_takes_errors_against_the_fp32_export(files, tmp_path, capsys, as_fp16):
    exported = tmp_path / "plate.onnx"
    exported.write_bytes(files.onnx.read_bytes())
    patched = as_fp16(exported, tmp_path / "any.onnx")
    Onnx_Latency.main(["--model", str(exported), str(patched), "--runner", "ort-cpu", "--batch", "1,4", *QUICK,
                       "--results", str(tmp_path), "--data", str(tmp_path)])
    table = rows(tmp_path)
    assert [(row["model"], row["precision"], row["batch"]) for row in table] == [
        ("cut_down", precision, batch) for precision in ("fp32", "fp16") for batch in "14"]
    assert [row["file"] for row in table] == ["plate.onnx", "plate.onnx", "any.onnx", "any.onnx"]
    assert {row["errors_against"] for row in table} == {"plate.onnx"} and {row["patched"] for row in table} == {"no"}
    assert capsys.readouterr().out.count("images/s") == 4
    for row in table:
        images = held_out_batch(int(row["batch"]), 64)[0]
        expected = ort(files.onnx, images)
        error = np.abs(expected.astype(np.float16) - expected).max() if row["precision"] == "fp16" else 0
        assert float(row["max_abs_err"]) == pytest.approx(error, rel=0.01, abs=1e-6)


def test_a_session_of_a_fixed_batch_gives_the_same_logits(files, tmp_path):
    """Also of a graph that computes with its shapes."""
    images = held_out_batch(3, 64)[0]
    nodes = [helper.make_node("Shape", ["logits"], ["shape"]), helper.make_node("Reshape", ["logits", "shape"], ["y"])]
    model = onnx.load(str(files.onnx))
    model.graph.node.extend(nodes)
    model.graph.output[0].name = "y"
    onnx.save(model, str(tmp_path / "shapes.onnx"))
    session = sessions.onnx_session(tmp_path / "shapes.onnx", batch=3)
    assert session.get_inputs()[0].shape == [3, 3, 64, 64]
    np.testing.assert_allclose(session.run(None, {"input": images})[0], ort(files.onnx, images), atol=1e-5)
    assert sessions.onnx_session(tmp_path / "shapes.onnx").get_inputs()[0].shape[0] == "batch"


def test_reference_is_found_by_its_digest(files, tmp_path, as_fp16):
    def reference(path: Path, given: Path | None = None) -> Path:
        return Onnx_Latency.reference_path(path, of_onnx(path), given)

    exported = tmp_path / "plate_fp16.onnx"
    exported.write_bytes(files.onnx.read_bytes())
    half = as_fp16(exported, tmp_path / "half.onnx")
    assert reference(exported) == exported
    assert reference(half) == exported
    assert reference(half, files.onnx) == files.onnx
    twice = as_fp16(half, tmp_path / "plate.onnx")
    assert reference(twice) == exported  # not the FP16 file between them
    renamed = exported.rename(tmp_path / "zebra.onnx")
    assert reference(twice) == renamed
    model = onnx.load(str(renamed))
    model.doc_string = "changed since"
    onnx.save(model, str(renamed))
    with pytest.raises(UserError, match=r"half\.onnx: the FP32 export .* \(plate_fp16\.onnx\) .* --reference"):
        reference(half)


def test_cuda_asked_for_and_absent_is_one_line(files, tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UserError, match="ort-cuda: the installed onnxruntime has no CUDA"):
        Onnx_Latency.main(["--model", str(files.onnx), "--runner", "ort-cpu,ort-cuda", "--results", str(tmp_path)])
    assert not (tmp_path / "latency.csv").exists()
    with pytest.raises(UserError, match="CUDAExecutionProvider is not in the installed onnxruntime"):
        sessions.onnx_session(files.onnx, ["CUDAExecutionProvider"])


def test_onnx_latency_refuses_what_is_no_model(files, tmp_path):
    with pytest.raises(UserError, match="is not an ONNX file"):
        Onnx_Latency.main(["--model", str(CFG)])
    with pytest.raises(UserError, match=r"none\.onnx: no such file"):
        Onnx_Latency.main(["--model", str(tmp_path / "none.onnx")])


def test_reference_batch_reads_the_data_file_if_it_is_of_this_model(files, tmp_path):
    def logits(images: np.ndarray) -> np.ndarray:
        return ort(files.onnx, images)

    crops, facts = held_out_batch(2, 64)[0], of_onnx(files.onnx)
    images, expected = batches.reference_batch(facts, 2, logits, tmp_path)
    assert np.array_equal(images, crops) and np.array_equal(expected, logits(crops))

    other = crops[:, :, ::-1].copy()  # upside down: images that are not the crops
    path = tmp_path / "anything.npz"
    batches.save_batch(path, other, logits(other), "cut_down", facts)
    images, expected = batches.reference_batch(facts, 2, logits, tmp_path)
    assert np.array_equal(images, other) and np.array_equal(expected, logits(other))

    for wrong, made in ((other, logits(crops)), (other[..., :32, :32], logits(other)), (other, logits(other)[:, :5])):
        batches.save_batch(path, wrong, made, "cut_down", facts)
        with pytest.raises(UserError, match=r"anything\.npz: .* not those of the model"):
            batches.reference_batch(facts, 2, logits, tmp_path)


def test_a_run_without_rows_leaves_nothing_behind(files, tmp_path):
    (tmp_path / "cut_down-b1.npz").write_text("no arrays")
    common = ["--batch", "1", *QUICK, "--results", str(tmp_path / "Results"), "--data", str(tmp_path)]
    for call in (lambda: Onnx_Latency.main(["--model", str(files.onnx), "--runner", "ort-cpu", *common]),
                 lambda: Torch_Latency.main(["--onnx", str(files.onnx), *common, *files.flags])):
        with pytest.raises(UserError, match=r"cut_down-b1\.npz: is not batch data"):
            call()
    assert not (tmp_path / "Results").exists()


# --- compiling apart from measuring --------------------------------------------------------------------------


def test_compile_only_fills_the_cache_for_another_process_and_leaves_no_row(files, compiled, tmp_path):
    """The other process compiles nothing: it finds the graph as it was compiled."""
    assert "torch-compile fp32 b2 (mode default) compiled in" in compiled.told
    assert compiled.found == {"fxgraph_cache_miss": 1} and not compiled.results.exists()
    command = [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv.pop(1)); import Torch_Latency, torch\n"
               "torch.cuda.is_available = lambda: False\n"
               "Torch_Latency.main(sys.argv[1:])\n"
               "found = torch._dynamo.utils.counters['inductor']\n"
               "print('hit', found['fxgraph_cache_hit'], 'miss', found['fxgraph_cache_miss'])", str(ROOT), *COMPILE,
               *QUICK, "--onnx", str(files.onnx), "--results", str(tmp_path / "Results"), *files.flags]
    done = subprocess.run(command, capture_output=True, text=True, env={
        **os.environ, "TORCHINDUCTOR_CACHE_DIR": str(compiled.cache), "RUN_ID": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("hit 1 miss 0\n")
    assert [row["mode"] for row in rows(tmp_path / "Results")] == ["default"]


def test_what_does_not_compile_is_a_failure(files, tmp_path, capsys, monkeypatch):
    def measure(runner, variant, *_, **__):
        if variant == "mode max-autotune":
            raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(Torch_Latency, "measure", measure)
    with pytest.raises(UserError, match=r"1 of 2 combinations failed: torch-compile fp32 b1 \(mode max-autotune\)"):
        Torch_Latency.main(["--compile-only", "--precision", "fp32", "--mode", "max-autotune,reduce-overhead",
                            "--batch", "1", *files.flags])
    told = capsys.readouterr()
    assert told.err == "torch-compile fp32 b1 (mode max-autotune) failed: out of memory\n"
    assert "(mode reduce-overhead) compiled in" in told.out


# --- onnxruntime by CUDA, with a session that only takes notes -----------------------------------------------


class FakeSession:
    """What Onnx_Latency.py asks of an onnxruntime session on a GPU. The logits are the number of runs so far."""

    def __init__(self, options: dict, y: np.ndarray, fails: bool) -> None:
        self.options, self.y, self.fails, self.runs = options, y, fails, []

    def get_inputs(self):
        return [SimpleNamespace(name="input", shape=[len(self.y), 3, 64, 64])]

    def get_outputs(self):
        return [SimpleNamespace(name="logits", shape=list(self.y.shape))]

    def io_binding(self):
        return SimpleNamespace(bind_ortvalue_input=lambda *_: None, bind_ortvalue_output=lambda *_: None)

    def run_with_iobinding(self, binding, options=None):
        if self.fails:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
        self.runs.append(options and options.get_run_config_entry("gpu_graph_id"))
        self.y[:] = len(self.runs)


@pytest.fixture
def cuda_sessions(files, monkeypatch):
    """The sessions that were opened with CUDA, newest last; `failing` holds the variants that fail."""
    opened, failing = [], set()
    cpu_session, y = Onnx_Latency.onnx_session, {}

    def session(path, providers=("CPUExecutionProvider",), batch=None):
        if isinstance(providers[0], str):
            return cpu_session(path, providers, batch)
        options = providers[0][1]
        opened.append(FakeSession(options, y["y"], options["enable_cuda_graph"] in failing))
        y["y"] = opened[-1].y = np.zeros((batch, files.model.num_classes), np.float32)
        return opened[-1]

    def value(shape, *_):
        return SimpleNamespace(numpy=lambda: y["y"])

    y["y"] = np.zeros((1, 1), np.float32)
    monkeypatch.setattr(timing.time, "perf_counter", itertools.count(step=0.001).__next__)  # a run takes a millisecond
    monkeypatch.setattr(Onnx_Latency, "onnx_session", session)
    monkeypatch.setattr(Onnx_Latency, "available_runners", lambda: ["ort-cpu", "ort-cuda"])
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", lambda *_: None)
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", value)
    return SimpleNamespace(opened=opened, failing=failing)


def test_a_cuda_graph_is_captured_after_runs_that_are_not_and_judged_by_its_last(files, tmp_path, cuda_sessions):
    Onnx_Latency.main(["--model", str(files.onnx), "--runner", "ort-cuda", "--batch", "2", *QUICK,
                       "--results", str(tmp_path), "--data", str(tmp_path)])
    plain, graph = cuda_sessions.opened
    assert plain.options == {"use_tf32": "0", "enable_cuda_graph": "0"} and set(plain.runs) == {None}
    assert graph.options == {"use_tf32": "0", "enable_cuda_graph": "1"}
    assert graph.runs[:4] == ["-1", "-1", "-1", None] and set(graph.runs[3:]) == {None}
    table = rows(tmp_path)
    assert [(row["cuda_graph"], row["timed_by"], row["device"]) for row in table] == [
        ("no", "clock", "cuda"), ("yes", "clock", "cuda")]
    expected = ort(files.onnx, held_out_batch(2, 64)[0])
    for row, session in zip(table, (plain, graph)):
        assert float(row["max_abs_err"]) == pytest.approx(np.abs(len(session.runs) - expected).max(), rel=1e-3)


def test_a_variant_that_fails_is_one_line_and_the_other_goes_on(files, tmp_path, cuda_sessions, capsys):
    cuda_sessions.failing.add("0")
    command = ["--model", str(files.onnx), "--runner", "ort-cuda", "--batch", "2", *QUICK, "--results", str(tmp_path),
               "--data", str(tmp_path)]
    with pytest.raises(UserError, match=r"1 of 2 combinations failed: cut_down ort-cuda b2 \(no CUDA graph\)"):
        Onnx_Latency.main(command)
    assert "b2 (no CUDA graph) failed: CUDA failure 700" in capsys.readouterr().err
    Onnx_Latency.main([*command, "--variant", "CUDA graph"])
    assert [row["cuda_graph"] for row in rows(tmp_path)] == ["yes", "yes"]
    with pytest.raises(UserError, match="'graph': unknown"):
        Onnx_Latency.main([*command, "--variant", "graph"])
