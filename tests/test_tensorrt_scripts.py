"""The scripts around TensorRT as far as a machine without TensorRT or a GPU can test them."""
from __future__ import annotations

import csv
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import TRT_test
from data.batches import Batch, load_batch, save_batch
from graphs.facts import Facts, Parent, of_plan
from Results.tables import LATENCY_COLUMNS, latency_rows, read_rows
from TensorRT import build_engine
from TensorRT.INT8 import calibration_cache
from utils import ROOT, UserError

WRAPPERS = sorted(path.name for path in (ROOT / "TensorRT").glob("build_*.sh"))
without_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")


def shell(*command: str | Path, path: Path | None = None) -> subprocess.CompletedProcess:
    """Run a command from another folder than the repository, `path` before everything else on the PATH."""
    folders = [*([str(path)] if path else []), str(Path(sys.executable).parent), os.environ["PATH"]]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd="/",
                          env={**os.environ, "PATH": ":".join(folders), "TRT_PYTHON": sys.executable})


def one_line_error(done: subprocess.CompletedProcess, status: int = 1) -> str:
    """The error that a script ended with; fails unless it is one line and the status says failure."""
    assert done.returncode == status, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


# --- build.sh and its wrappers -------------------------------------------------------------------------------


def test_all_wrappers_are_there():
    assert [name[6:-3] for name in WRAPPERS] == [
        "swinv1", "swinv1_attention_fp16", "swinv1_fp16", "swinv1_int8", "swinv1_layernorm_fp16",
        "swinv2", "swinv2_attention_fp16", "swinv2_fp16", "swinv2_int8", "swinv2_layernorm"]


def graph(path: Path, precision: str = "fp32", plugins: bool = False, name: str = "input",
          shape: tuple[int | str, ...] = ("batch", 3, 224, 224)) -> Path:
    """Write a small graph that multiplies images, [B, 3, H, W] or [B, H, W, 3], by a matrix over their channels."""
    kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    nodes, image = [], name
    if precision == "fp16":
        nodes, image = [helper.make_node("Cast", [name], ["half"], to=kind)], "half"
    if precision == "int8":
        nodes = [helper.make_node("QuantizeLinear", [name, "scale"], ["quantised"]),
                 helper.make_node("DequantizeLinear", ["quantised", "scale"], ["restored"])]
        image = "restored"
    if plugins:
        nodes.append(helper.make_node("SwinFNorm", [image], ["normed"], domain="swin", fp16=int(precision == "fp16")))
        image = "normed"
    if shape[1] == 3:
        nodes.append(helper.make_node("Conv", [image, "w"], ["logits"]))
    else:
        nodes.append(helper.make_node("MatMul", [image, "w"], ["logits"]))
    weights = np.ones((5, 3, 1, 1) if shape[1] == 3 else (3, 5), helper.tensor_dtype_to_np_dtype(kind))
    made = helper.make_graph(
        nodes, "m", [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", kind, None)],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.float32(0.1), "scale")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("swin", 1)]
    onnx.save(helper.make_model(made, opset_imports=opsets), path)
    return path


def dry_run(path: Path, *flags: str | Path, script: Path = ROOT / "TensorRT/build.sh") -> dict[str, str]:
    """The flags of the builder that a dry run of build.sh prints."""
    done = shell(script, path, *flags, "--dry-run")
    assert done.returncode == 0, done.stderr
    return dict(part.partition("=")[::2] for part in shlex.split(done.stdout) if part.startswith("--"))


def shapes(flags: dict[str, str]) -> list[str]:
    """Of the optimization profile: smallest, usual, largest."""
    return [flags[f"--{which}Shapes"] for which in ("min", "opt", "max")]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapper_name_precision_and_flags_agree(tmp_path, wrapper):
    """In a copy of the repository that has a small graph of each name."""
    name = wrapper[len("build_"):-len(".sh")].replace("_int8", "_attention_int8")
    for part in ("TensorRT", "graphs", "utils.py"):
        (tmp_path / part).symlink_to(ROOT / part)
    (tmp_path / "onnx").mkdir()
    precision = name.rpartition("_")[2] if name.endswith(("_fp16", "_int8")) else "fp32"
    graph(tmp_path / f"onnx/{name}.onnx", precision, "layernorm" in name or "attention" in name)
    done = shell(tmp_path / "TensorRT" / wrapper, "--dry-run", "--verbose")
    assert done.returncode == 0, done.stderr
    flags = dict(part.partition("=")[::2] for part in done.stdout.split())
    assert flags["--onnx"] == f"onnx/{name}.onnx"
    assert flags["--saveEngine"] == f"TensorRT/TRT_Engine/{name}.plan"
    assert flags["--exportLayerInfo"] == f"TensorRT/TRT_Engine/{name}.layers.json"
    assert shapes(flags) == [f"input:{batch}x3x224x224" for batch in (1, 32, 128)]
    assert flags.get("--maxAuxStreams") == ("0" if "--staticPlugins" in flags else None)
    assert ("--fp16" in flags) == (precision != "fp32")
    assert ("--noTF32" in flags) == (precision == "fp32")
    assert ("--staticPlugins" in flags) == ("layernorm" in name or "attention" in name)
    assert "--verbose" in flags  # what is added to a wrapper goes through


def test_wrappers_are_one_line():
    for wrapper in WRAPPERS:
        lines = (ROOT / "TensorRT" / wrapper).read_text().splitlines()
        assert len([line for line in lines if not line.startswith("#")]) == 1, wrapper


def test_build_flags_go_through(tmp_path):
    done = shell(ROOT / "TensorRT/build.sh", graph(tmp_path / "m.onnx", plugins=True), "--fp16", "--max", "16",
                 "--plugins=/some where/lib.so", "--memPoolSize=workspace:100", "--maxAuxStreams=2", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "--saveEngine=TensorRT/TRT_Engine/m_fp16.plan" in done.stdout
    assert r"--staticPlugins=/some\ where/lib.so" in done.stdout
    for flag in ("--memPoolSize", "--maxAuxStreams"):
        assert done.stdout.count(flag) == 1  # trtexec refuses a flag that comes twice


def test_input_and_size_are_the_graphs(tmp_path):
    """Neither comes from a file's name."""
    images = graph(tmp_path / "swinv2_micro.onnx", name="pixels", shape=("N", 3, 96, 160))
    assert shapes(dry_run(images)) == [f"pixels:{batch}x3x96x160" for batch in (1, 32, 128)]
    channels_last = graph(tmp_path / "m.onnx", name="x", shape=("N", 96, 160, 3))
    assert shapes(dry_run(channels_last, "--max", "4")) == [f"x:{batch}x96x160x3" for batch in (1, 4, 4)]


def test_an_open_size_is_asked_for(tmp_path):
    path = graph(tmp_path / "m.onnx", shape=("N", 3, "H", "W"))
    assert shapes(dry_run(path, "--size", "64x96", "--max", "1")) == ["input:1x3x64x96"] * 3
    assert shapes(dry_run(path, "--size", "64", "--max", "1")) == ["input:1x3x64x64"] * 3
    assert "open; give --size" in one_line_error(shell(ROOT / "TensorRT/build.sh", path, "--dry-run"))


@pytest.mark.parametrize(("flags", "sizes"), [
    (["--sizes", "800x1344,1024x1024,224"], ("224x224", "800x1344", "1024x1344")),  # chosen for the first
    (["--min-size", "200x333", "--opt-size", "800x1344", "--max-size", "1024x1344"],
     ("200x333", "800x1344", "1024x1344")),
    (["--min-size", "64", "--max-size", "96x128"], ("64x64", "96x128", "96x128"))])
def test_a_profile_over_sizes(tmp_path, flags, sizes):
    for shape, wanted in ((("N", 3, "H", "W"), "{}x3x{}"), (("N", 4, "H", "W"), "{}x4x{}"),
                          (("N", "H", "W", 1), "{}x{}x1")):
        path = graph(tmp_path / "m.onnx", name="x", shape=shape)
        batches = zip((1, 2, 8), sizes)
        assert shapes(dry_run(path, *flags, "--opt", "2", "--max", "8")) == [
            "x:" + wanted.format(batch, size) for batch, size in batches]


def test_sizes_of_a_graph_with_a_fixed_batch(tmp_path):
    path = graph(tmp_path / "m.onnx", shape=(4, 3, "H", "W"))
    assert shapes(dry_run(path, "--sizes", "64x96,32x32")) == [
        "input:4x3x32x32", "input:4x3x64x96", "input:4x3x64x96"]


@pytest.mark.parametrize(("flags", "words"), [
    (["--sizes", "800x1344,0x64"], "--sizes needs HxW,HxW, not '800x1344,0x64'"),
    (["--sizes"], "--sizes needs HxW,HxW"),
    (["--sizes", "64", "--size", "64"], "leave --size, --min-size"),
    (["--min-size", "64"], "has --min-size and --max-size"),
    (["--min-size", "64x128", "--max-size", "128x64"],
     "--min-size 64x128, --opt-size 128x64, --max-size 128x64 are not in this order"),
    (["--max-size", "0x5"], "--max-size needs pixels, or HxW, not '0x5'")])
def test_sizes_that_are_none(tmp_path, flags, words):
    path = graph(tmp_path / "m.onnx", shape=("N", 3, "H", "W"))
    assert words in one_line_error(shell(ROOT / "TensorRT/build.sh", path, "--dry-run", *flags))


def test_sizes_of_a_graph_that_has_one(tmp_path):
    error = one_line_error(shell(ROOT / "TensorRT/build.sh", graph(tmp_path / "m.onnx"), "--dry-run", "--sizes",
                                 "224,256"))
    assert "the images of" in error and "are 224x224" in error


def test_a_graph_of_a_fixed_batch_gets_no_profile(tmp_path):
    """trtexec refuses shapes for it."""
    flags = dry_run(graph(tmp_path / "m.onnx", shape=(8, 3, 32, 32)), "--fp16")
    assert flags["--saveEngine"] == "TensorRT/TRT_Engine/m_fp16.plan"
    assert not [flag for flag in flags if "Shapes" in flag]


@pytest.mark.parametrize(("precision", "plugins", "fp16"), [
    ("fp32", False, False), ("fp16", False, True), ("int8", False, False), ("int8", True, True)])
def test_fp16_is_permitted_where_the_graph_has_it(tmp_path, precision, plugins, fp16):
    """Whatever the graph's name says. What is not INT8 in a graph of INT8 plugin nodes is FP16."""
    name = {"fp32": "plate_fp16", "fp16": "half", "int8": "m"}[precision]
    path = graph(tmp_path / f"{name}.onnx", precision, plugins)
    flags = dry_run(path, *["--plugins"] * plugins)
    assert ("--fp16" in flags) == fp16 and flags["--saveEngine"] == f"TensorRT/TRT_Engine/{name}.plan"


def test_a_plan_can_carry_its_plugins(tmp_path):
    flags = dry_run(graph(tmp_path / "m.onnx", plugins=True), "--plugins=lib.so", "--carry-plugins")
    assert flags["--staticPlugins"] == flags["--setPluginsToSerialize"] == "lib.so"


def test_a_backend_is_handed_to_the_builder(tmp_path):
    fake_trtexec(tmp_path, 110100, status=0)  # which has a backend of its own
    done = shell(ROOT / "TensorRT/build.sh", graph(tmp_path / "m.onnx"), "--backend", "tensorrt_rtx", "--dry-run",
                 path=tmp_path)
    assert done.stdout.split()[:4] == [sys.executable, "TensorRT/build_engine.py", "--backend", "tensorrt_rtx"]


@pytest.mark.parametrize(("flags", "batches"), [
    ([], (1, 32, 128)), (["--max", "16"], (1, 16, 16)), (["--min", "64"], (64, 64, 128)),
    (["--min", "2", "--opt", "4", "--max", "8"], (2, 4, 8))])
def test_the_usual_batch_lies_between_the_smallest_and_the_largest(tmp_path, flags, batches):
    assert shapes(dry_run(graph(tmp_path / "m.onnx"), *flags)) == [f"input:{batch}x3x224x224" for batch in batches]


def test_builders_have_the_memory_that_the_help_says(tmp_path, monkeypatch):
    script = ROOT / "TensorRT/build.sh"
    (mib,) = re.findall(r"--memPoolSize=workspace:MIB \(default (\d+)\)", shell(script, "--help").stdout)
    assert dry_run(graph(tmp_path / "m.onnx"))["--memPoolSize"] == f"workspace:{mib}"
    monkeypatch.setattr(sys, "argv", ["build_engine.py", "--onnx=m.onnx", "--saveEngine=m.plan"])
    assert build_engine.parse_arguments().memPoolSize == float(mib)


@pytest.mark.parametrize(("arguments", "words"), [
    (["onnx/absent.onnx"], "onnx/absent.onnx: no such file; make it with: make onnx/absent.onnx"),
    (["a.onnx", "b.onnx"], "two graphs"),
    (["a.onnx", "--max", "0"], "--max needs a positive whole number, not '0'"),
    (["a.onnx", "--min", "8", "--opt", "4"], "not in this order"),
    (["a.onnx", "--output"], "--output needs a path"),
    (["a.onnx", "--size", "0"], "--size needs pixels, or HxW, not '0'"),
    (["a.onnx", "--backend", "trt"], "--backend needs tensorrt or tensorrt_rtx, not 'trt'"),
    (["a.onnx", "--carry-plugins"], "--carry-plugins: says nothing without --plugins"),
])
def test_build_refuses(arguments, words):
    assert words in one_line_error(shell(ROOT / "TensorRT/build.sh", *arguments))


def test_build_refuses_what_the_graph_contradicts(tmp_path):
    path = graph(tmp_path / "m.onnx", plugins=True)
    script = ROOT / "TensorRT/build.sh"
    assert "holds plugin nodes; add --plugins" in one_line_error(shell(script, path, "--dry-run"))
    error = one_line_error(shell(script, path, "--plugins", "--size", "192", "--dry-run"))
    assert "--size 192x192: the images of" in error and "are 224x224" in error
    path.write_bytes(b"no graph")
    assert "m.onnx" in one_line_error(shell(script, path, "--dry-run"))


def test_a_library_that_is_missing_is_said_before_the_build(tmp_path):
    (tmp_path / "m.onnx").touch()
    done = shell(ROOT / "TensorRT/build.sh", tmp_path / "m.onnx", f"--plugins={tmp_path}/absent.so")
    assert "absent.so: no such file; make it with: make -C TensorRT/Plugins" in one_line_error(done)


def test_the_builder_runs_in_the_python_that_has_tensorrt(tmp_path):
    done = shell(ROOT / "TensorRT/build.sh", graph(tmp_path / "m.onnx"), "--dry-run")  # TRT_PYTHON is this one here
    words = done.stdout.split()
    assert words[:2] == [sys.executable, "TensorRT/build_engine.py"]


def fake_trtexec(folder: Path, version: int, status: int) -> None:
    """A trtexec that knows its version and, asked to build, writes its arguments to the plan and exits."""
    script = folder / "trtexec"
    script.write_text(f"""#!/bin/bash
        if [[ $1 == --help ]]; then echo "&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # --help"; exit; fi
        for flag; do [[ $flag != --saveEngine=* ]] || plan=${{flag#*=}}; done
        echo building; echo "$@" > "$plan"; exit {status}
        """)
    script.chmod(0o755)


def test_a_preview_that_was_asked_for_stands_alone(tmp_path):
    """trtexec refuses a flag that comes twice."""
    fake_trtexec(tmp_path, 8600, status=0)
    graph(tmp_path / "m.onnx")
    done = shell(ROOT / "TensorRT/build.sh", tmp_path / "m.onnx", "--preview=-profileSharing0806", "--output",
                 tmp_path / "m.plan", path=tmp_path)
    assert done.returncode == 0, done.stderr
    flags = (tmp_path / "m.plan").read_text().split()
    assert [flag for flag in flags if flag.startswith("--preview")] == ["--preview=-profileSharing0806"]


@pytest.mark.parametrize(("version", "wanted", "unwanted"), [
    (8600, ["--fp16", "--preview=+profileSharing0806"], ["--stronglyTyped"]),
    (100000, ["--stronglyTyped"], ["--fp16", "--preview=+profileSharing0806"]),
    (101600, ["--stronglyTyped"], ["--fp16", "--preview=+profileSharing0806"]),
    (110100, ["--stronglyTyped"], ["--fp16", "--preview=+profileSharing0806"])])
def test_trtexec_is_preferred_and_gets_the_flags_of_its_version(tmp_path, version, wanted, unwanted):
    fake_trtexec(tmp_path, version, status=0)
    graph(tmp_path / "m_fp16.onnx", "fp16")
    plan = tmp_path / "m_fp16.plan"
    done = shell(ROOT / "TensorRT/build.sh", tmp_path / "m_fp16.onnx", "--fp16", "--output", plan, path=tmp_path)
    assert done.returncode == 0, done.stderr
    flags = plan.read_text().split()
    assert {*wanted, "--skipInference"} <= set(flags) and not set(unwanted) & set(flags)
    assert "building" in plan.with_suffix(".log").read_text()
    assert of_plan(plan).batches == (1, 128)


def test_from_tensorrt_10_on_fp16_is_refused_of_a_graph_that_has_none(tmp_path):
    """Its types are binding there: the engine would be FP32, and its name say FP16."""
    graph(tmp_path / "m.onnx")
    for version, status in ((8600, 0), (100000, 1)):
        fake_trtexec(tmp_path, version, status=0)
        done = shell(ROOT / "TensorRT/build.sh", tmp_path / "m.onnx", "--fp16", "--output", tmp_path / "m_fp16.plan",
                     path=tmp_path)
        assert done.returncode == status, done.stderr
    assert f"python onnx/graphsurgeon/to_fp16.py --onnx {tmp_path / 'm.onnx'}" in one_line_error(done)


def test_failed_trtexec_leaves_no_plan(tmp_path):
    fake_trtexec(tmp_path, 8600, status=3)
    graph(tmp_path / "m.onnx")
    done = shell(ROOT / "TensorRT/build.sh", tmp_path / "m.onnx", "--output", tmp_path / "m.plan", path=tmp_path)
    assert "trtexec failed; its messages are in" in one_line_error(done)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.log", "m.onnx", "trtexec"]


# --- without TensorRT ----------------------------------------------------------------------------------------


@without_tensorrt
@pytest.mark.parametrize("command", [
    ["TensorRT/build_engine.py", "--onnx", "{file}", "--saveEngine", "{folder}/x.plan"],
    ["TensorRT/run_engine.py", "--plan", "{file}", "--input", "{images}", "--output", "{folder}/out.npy"],
    ["TensorRT/compare_layers.py", "run", "--plan", "{file}", "--reference", "{layers}"],
    ["TensorRT/profile_engine.py", "--plan", "{file}"],
    ["TRT_test.py", "--plan", "{file}"],
])
def test_no_tensorrt_is_one_line(tmp_path, command):
    (tmp_path / "file").touch()
    np.save(tmp_path / "images.npy", np.zeros((1, 3, 8, 8), np.float32))
    np.savez(tmp_path / "layers.npz", input=np.zeros(1))
    names = {"file": tmp_path / "file", "folder": tmp_path, "images": tmp_path / "images.npy",
             "layers": tmp_path / "layers.npz"}
    script, *arguments = (part.format(**names) for part in command)
    error = one_line_error(shell(sys.executable, ROOT / script, *arguments, "--backend", "tensorrt"))
    assert "cannot import tensorrt (not installed)" in error and "TRT_PYTHON" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "images.npy", "layers.npz"]


@pytest.mark.parametrize("script", ["TensorRT/build_engine.py", "TensorRT/run_engine.py", "TensorRT/compare_layers.py",
                                    "TRT_test.py"])
def test_help_and_unknown_flags_need_no_tensorrt(script):
    assert shell(sys.executable, ROOT / script, "--help").returncode == 0
    assert shell(sys.executable, ROOT / script, "--no-such-flag").returncode == 2


@pytest.mark.parametrize("flag", ["--minShapes=1x3x224x224", "--memPoolSize=4096", "--tacticSources=CUBLAS",
                                  "--builderOptimizationLevel=6", "--profilingVerbosity=loud"])
def test_build_engine_refuses_malformed_flags(flag):
    done = shell(sys.executable, ROOT / "TensorRT/build_engine.py", "--onnx=x", "--saveEngine=y", flag)
    assert done.returncode == 2 and flag.split("=")[0] in done.stderr


def test_an_engine_tells_its_plugins_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["build_engine.py", "--onnx=x", "--saveEngine=y"])
    assert build_engine.parse_arguments().profilingVerbosity == "detailed"  # what of_engine needs


@pytest.mark.parametrize(("array", "words"), [
    (np.zeros((2, 3, 8), np.float32), "not an array of images"),
    (np.zeros((0, 3, 8, 8), np.float32), "not an array of images"),
    (np.full((2, 3, 8, 8), np.nan, np.float32), "image 0 has a NaN"),
])
def test_run_engine_refuses_its_input(tmp_path, array, words):
    np.save(tmp_path / "x.npy", array)
    done = shell(sys.executable, ROOT / "TensorRT/run_engine.py", "--plan", "p", "--input", tmp_path / "x.npy",
                 "--output", tmp_path / "y.npy")
    assert words in one_line_error(done)


# --- engine_builder.py ---------------------------------------------------------------------------------------


def fake_network(*names: str) -> SimpleNamespace:
    """A network of one input, `input`, and a layer for each further tensor."""
    layers = [SimpleNamespace(num_outputs=1, get_output=lambda _, name=name: SimpleNamespace(name=name))
              for name in names]
    return SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__, num_inputs=1,
                           get_input=lambda _: SimpleNamespace(name="input"))


@pytest.fixture
def engine_builder(monkeypatch):
    """The module, over a TensorRT 8.6.1 that has a class of calibrators and no more."""
    class Calibrator:
        pass

    trt = SimpleNamespace(__name__="tensorrt", __version__="8.6.1", IInt8EntropyCalibrator2=Calibrator)
    monkeypatch.delitem(sys.modules, "TensorRT.engine_builder", raising=False)
    monkeypatch.setitem(sys.modules, "TensorRT.trt_runtime", SimpleNamespace(
        LOGGER=None, gpu_problem=None, in_one_line=None, require_gpu=None, trt=trt))
    yield importlib.import_module("TensorRT.engine_builder")
    sys.modules.pop("TensorRT.engine_builder")


def test_a_calibrator_has_the_cache_and_no_images(engine_builder, tmp_path, capsys):
    cache = calibration_cache.Cache("minmax", 8, "0" * 32, {"input": np.float32(0.3), "a": np.float32(0.7),
                                                            "gone": np.float32(1)})
    calibration_cache.write_cache(tmp_path / "m.cache", cache)
    calibrator = engine_builder._calibrator(tmp_path / "m.cache", fake_network("a", "b"))
    assert "m.cache: 2 of 3 scales are of tensors of the graph" in capsys.readouterr().out
    text = (tmp_path / "m.cache").read_text()
    assert text.startswith("TRT-8600-EntropyCalibration2\n")
    # TensorRT takes a cache of its own version.
    assert calibrator.read_calibration_cache() == text.replace("8600", "8601", 1).encode()
    assert calibrator.get_batch_size() == 1 and not calibrator.asked
    assert calibrator.get_batch(["input"]) is None and calibrator.asked
    calibrator.write_calibration_cache(memoryview(b"text"))
    assert calibrator.given_back == b"text" and (tmp_path / "m.cache").read_text() == text


def test_a_cache_of_another_graph_is_refused(engine_builder, tmp_path):
    calibration_cache.write_cache(tmp_path / "m.cache", calibration_cache.Cache("minmax", 8, "0" * 32,
                                                                                {"gone": np.float32(1)}))
    with pytest.raises(UserError, match=r"m\.cache: was made for another graph"):
        engine_builder._calibrator(tmp_path / "m.cache", fake_network("a"))


def test_tactic_sources_are_switched_on_and_off(engine_builder, monkeypatch):
    """One that is off already stays off; one that this TensorRT does not know cannot be switched on."""
    monkeypatch.setattr(engine_builder.trt, "TacticSource", SimpleNamespace(CUBLAS=0, CUBLAS_LT=1, CUDNN=2),
                        raising=False)
    for before, changes, after in ((0b111, "-CUBLAS,-CUDNN", 0b010), (0b010, "-CUBLAS,+CUDNN", 0b110),
                                   (0b001, "-EDGE_MASK,+CUBLAS", 0b001)):
        assert engine_builder._tactic_mask(before, build_engine.tactic_sources(changes)) == after
    with pytest.raises(UserError, match=r"\+EDGE_MASK: TensorRT 8\.6\.1 has no such source"):
        engine_builder._tactic_mask(0, [(True, "EDGE_MASK")])


@pytest.mark.parametrize(("shapes", "found"), [
    ({}, [(1, 3, 64, 64), (32, 3, 64, 64), (128, 3, 64, 64)]),
    ({"optShapes": ("input", (8, 3, 64, 64)), "maxShapes": ("input", (8, 3, 64, 64))}, [
        (1, 3, 64, 64), (8, 3, 64, 64), (8, 3, 64, 64)]),
    ({"maxShapes": ("input", (16, 3, 64, 64))}, r"batch \[1, 32, 16\] are not in this order"),
    ({"minShapes": ("input", (0, 3, 64, 64))}, r"batch \[0, 32, 128\] are not in this order"),
    ({"minShapes": ("input", (1, 3, 64, 32))}, "--minShapes=input:1x3x64x32: the input of m.onnx is input"),
    ({"minShapes": ("input", (1, 3, 64))}, "--minShapes=input:1x3x64: the input of m.onnx is input"),
    ({"minShapes": ("image", (1, 3, 64, 64))}, "--minShapes=image:1x3x64x64: the input of m.onnx is input"),
])
def test_a_profile_has_the_graphs_shape_and_batches_in_order(engine_builder, shapes, found):
    told = []
    builder = SimpleNamespace(create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *a: told.extend(a)))
    arguments = SimpleNamespace(onnx="m.onnx", **{**dict.fromkeys(engine_builder.DEFAULT_BATCHES), **shapes})
    refused = pytest.raises(UserError, match=found) if isinstance(found, str) else nullcontext()
    with refused:
        engine_builder._optimization_profile(builder, SimpleNamespace(name="input", shape=(-1, 3, 64, 64)), arguments)
    assert told == ([] if isinstance(found, str) else ["input", *found])


# --- TRT_test.py ---------------------------------------------------------------------------------------------


class FakeContext:
    """Stands where engine.Context does: gives the logits it was made with, plain or of a graph; a run takes 1 ms."""

    def __init__(self, logits: np.ndarray, of_graph: np.ndarray | None = None) -> None:
        self.logits, self.of_graph, self.graph = logits, logits if of_graph is None else of_graph, False

    def infer(self, images: np.ndarray) -> np.ndarray:
        self.run()
        return self.download()["logits"]

    def capture(self) -> None:
        self.graph = True

    def release_graph(self) -> None:
        self.graph = False

    def run(self) -> None:
        self.output = self.of_graph if self.graph else self.logits

    def download(self) -> dict[str, np.ndarray]:
        return {"logits": self.output}

    def timed_run_ms(self) -> float:
        return 1.0


# Of the FP32 graph, of what was made of it, and of engines.
MADE = Facts(model="m", precision="fp32", digest="1" * 64, weights="2" * 64, input_shape=(None, 3, 8, 8), export="swin")
HALF = replace(MADE, precision="fp16", digest="3" * 64, parents=(Parent(MADE.digest, "x.onnx"),),
               patched={"SwinAttention": 1})
INT8 = replace(HALF, precision="int8")


def batch_of(count: int = 4, classes: int = 20) -> Batch:
    random = np.random.default_rng(0)
    return Batch(Path(f"m-b{count}.npz"), MADE, random.standard_normal((count, 3, 8, 8), np.float32),
                          random.standard_normal((count, classes), np.float32))


@pytest.mark.parametrize(("offset", "verdict"), [(0.0, "good"), (9e-5, "good"), (2e-4, "bad"),
                                                 (np.nan, "NaN in output"), (np.inf, "NaN in output")])
@pytest.mark.parametrize("graph", [False, True])
def test_measure_judges_the_output(offset, verdict, graph):
    batch = batch_of()
    logits = batch.logits.copy()
    logits[2, 7] += offset
    row = TRT_test.measure(FakeContext(logits), batch, 1e-4, graph, warmup_s=0, min_s=0)
    assert row.check == verdict and row.batch == 4 and row.graph is graph


def test_measure_judges_what_the_graph_gave():
    """And leaves no graph behind for the next, plain measurement."""
    batch = batch_of()
    context = FakeContext(batch.logits, batch.logits + 1)
    assert [TRT_test.measure(context, batch, 1e-4, graph, warmup_s=0, min_s=0).check
            for graph in (False, True, False)] == ["good", "bad", "good"]


class MapsContext(FakeContext):
    """Gives several outputs by their names."""

    engine = SimpleNamespace(plan=Path("m.plan"))

    def infer_all(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self.run()
        return self.output

    def download(self) -> dict[str, np.ndarray]:
        return self.output


@pytest.mark.parametrize(("changed", "verdict"), [
    ({}, "good"), ({"b": 0.9}, "good"), ({"b": 1.1}, "bad"), ({"a": 0.02}, "bad"), ({"b": np.nan}, "NaN in output"),
    ({"a": np.nan}, "NaN in output")])
def test_of_several_outputs_the_worst_counts(changed, verdict):
    """Each with the share of its own largest number that the first may be off by: 0.01 of 1, and 1 of 100."""
    maps = {"a": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 2, 2),
            "b": np.linspace(-100, 100, 12, dtype=np.float32).reshape(2, 6, 1, 1)}
    batch = batch_of(2)._replace(logits=maps["a"], outputs=maps)
    given = {name: array.copy() for name, array in maps.items()}
    for name, offset in changed.items():
        given[name].ravel()[3] += offset
    row = TRT_test.measure(MapsContext(given), batch, 0.01, True, warmup_s=0, min_s=0)
    assert row.check == verdict and row.size == "8x8"
    given["b"] = given["b"][:1]
    with pytest.raises(UserError, match=r"expects b \[2, 6, 1, 1\], m\.plan gives \[1, 6, 1, 1\]"):
        TRT_test.measure(MapsContext(given), batch, 0.01, False, warmup_s=0, min_s=0)


@pytest.mark.parametrize("problem", ["bad", "NaN in output"])
def test_a_failing_engine_fails_the_script(problem, tmp_path, monkeypatch):
    batch = batch_of()
    rows = [TRT_test.Row(4, graph, np.ones(3), batch.logits, batch.logits, check)
            for graph, check in ((False, "good"), (True, problem))]
    monkeypatch.setitem(sys.modules, "TensorRT.trt_runtime", SimpleNamespace(versions=dict))
    monkeypatch.setattr(TRT_test, "score_engine", lambda *_: (["the table"], rows))
    (tmp_path / "m.plan").touch()
    monkeypatch.setattr(sys, "argv", ["TRT_test.py", "--plan", str(tmp_path / "m.plan"), "--results", str(tmp_path)])
    with pytest.raises(UserError, match=f"1 of 2 checks failed, first at batch 4: {problem}"):
        TRT_test.main()
    assert "the table" in (tmp_path / "encoderScore.txt").read_text()


def test_nan_in_the_input_is_reported():
    batch = batch_of()
    batch.input[1, 0, 0, 0] = np.nan
    assert TRT_test.check(batch, batch.logits, 1e-4) == "NaN in input"


def test_logits_of_another_shape_are_another_models():
    with pytest.raises(UserError, match="data of another model"):
        TRT_test.measure(FakeContext(np.zeros((4, 1000), np.float32)), batch_of(), 1e-4, False)


def test_table_and_csv_rows():
    batch = batch_of()
    logits = batch.logits.copy()
    logits[0, 0] += 0.5
    row = TRT_test.measure(FakeContext(logits), batch, 1e-4, True, warmup_s=0, min_s=0)
    assert TRT_test.table_line(row) == "   4|   yes|    1.000|    4000.0| 5.000e-01| 0.000e+00| bad"
    head = TRT_test.TABLE_HEAD.splitlines()
    assert [len(cell) for cell in head[-2].split("|")][:-1] == [len(cell) for cell in
                                                               TRT_test.table_line(row).split("|")][:-1]
    columns = TRT_test.latency_row(row, Path("a.plan"), HALF, batch)
    assert columns["precision"] == "fp16" and columns["latency_ms_median"] == "1.0000"
    assert (columns["max_abs_err"], columns["cuda_graph"], columns["check"]) == ("5.000e-01", "yes", "bad")
    assert [columns[name] for name in ("runner", "model", "file", "patched", "export", "batch_axis", "images")] == [
        "trt-plugins", "m", "a.plan", "attention", "swin", "open", "4"]
    assert set(columns) | {"run_id", "commit", "gpu", "backend", "load"} == set(LATENCY_COLUMNS)
    of_timm = replace(MADE, precision="fp16", export="timm", input_shape=(4, 3, 8, 8))
    columns = TRT_test.latency_row(row, Path("m_attention_int8.plan"), of_timm, batch)
    assert [columns[name] for name in ("runner", "precision", "patched", "export", "batch_axis")] == [
        "trt", "fp16", "no", "timm", "fixed"]


def engine_of(made: Facts) -> type:
    """A class in the place of Engine, whose engines were made from this."""
    class FakeEngine:
        batches, open_sizes = (1, 8), False

        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def context(self):
            return self

        def facts(self):
            return made

    return FakeEngine


def test_rows_are_kept_one_by_one(tmp_path, monkeypatch):
    """What stops at a batch leaves the rows of those before it."""
    def measure(context, batch, allowed, graph, **timing):
        if len(batch.input) == 8 and graph:
            raise UserError("out of memory")
        return TRT_test.Row(len(batch.input), graph, np.ones(3), batch.logits, batch.logits, "good")

    monkeypatch.setitem(sys.modules, "TensorRT.engine", SimpleNamespace(Engine=engine_of(MADE)))
    monkeypatch.setattr(TRT_test, "find_batches", lambda plan, facts, pattern: [batch_of(1), batch_of(8)])
    monkeypatch.setattr(TRT_test, "measure", measure)
    given = SimpleNamespace(data=None, batch=None, sizes=[], tolerance=None, plugins=None, min_seconds=0, min_runs=1,
                            warmup_seconds=None, results=tmp_path)
    with pytest.raises(UserError, match="out of memory"):
        TRT_test.score_engine(tmp_path / "m.plan", given, {"run_id": "1", "commit": "c", "gpu": "A GPU"},
                              lambda: {"tensorrt": "9"})
    assert "tensorrt: 9" in (tmp_path / "environment/1.txt").read_text()
    assert {row["runner"] for row in latency_rows(tmp_path)} == {"trt"}
    assert [(row["batch"], row["cuda_graph"], row["check"], row["backend"]) for row in latency_rows(tmp_path)] == [
        ("1", "no", "good", "TensorRT 9"), ("1", "yes", "good", "TensorRT 9"), ("8", "no", "good", "TensorRT 9")]


@pytest.mark.parametrize(("tool", "facts", "noted"), [
    ("tensorrt-rtx", MADE, True), ("tensorrt-rtx", HALF, False), ("tensorrt", MADE, False)])
def test_fp32_with_tensorrt_rtx_is_judged_with_a_word_on_tf32(tmp_path, monkeypatch, capsys, tool, facts, noted):
    """The limit stays the project's; the line says what TF32 may do to logits of at most 9: 1 % of that."""
    def measure(context, batch, allowed, graph, **timing):
        return TRT_test.Row(len(batch.input), graph, np.ones(3), batch.logits, batch.logits, "good")

    batch = batch_of(1)
    batch = batch._replace(logits=batch.logits * (9 / np.abs(batch.logits).max()))
    monkeypatch.setitem(sys.modules, "TensorRT.engine", SimpleNamespace(Engine=engine_of(facts)))
    monkeypatch.setattr(TRT_test, "find_batches", lambda plan, facts, pattern: [batch])
    monkeypatch.setattr(TRT_test, "measure", measure)
    given = SimpleNamespace(data=None, batch=None, sizes=[], tolerance=None, plugins=None, min_seconds=0, min_runs=1,
                            warmup_seconds=None, results=tmp_path)
    TRT_test.score_engine(tmp_path / "m.plan", given, {"run_id": "1", "commit": "c", "gpu": "A GPU"},
                          lambda: {tool: "1.6.1"})
    said = capsys.readouterr().out
    assert ("in TF32, with --noTF32 as well: errors of up to 9.0e-02 can" in said) == noted
    assert ("a0 at most 1.0e-04" in said) == (facts is MADE)


OTHER = replace(MADE, model="other", digest="5" * 64, weights="6" * 64, input_shape=(None, 3, 4, 4))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A repository root with data of two models, under names that say nothing."""
    monkeypatch.setattr(TRT_test, "ROOT", tmp_path)
    for model, (facts, size) in enumerate(((MADE, 8), (OTHER, 4))):
        for count in (16, 1, 4):
            save_batch(tmp_path / f"data/{model}{count}.npz", np.zeros((count, 3, size, size), np.float32),
                       np.ones((count, 5), np.float32), facts.model, facts)
    return tmp_path


@pytest.mark.parametrize("facts", [MADE, HALF, replace(MADE, digest="7" * 64, export="timm"), OTHER])
def test_data_is_found_by_what_made_it_and_sorted_by_batch(data, facts):
    batches = TRT_test.find_batches(Path("a.plan"), facts, None)
    assert [(batch.facts.model, len(batch.input)) for batch in batches] == [(facts.model, size) for size in (1, 4, 16)]


def test_an_engine_of_a_fixed_batch_takes_that(data):
    fixed = replace(HALF, input_shape=(4, 3, 8, 8))
    given = SimpleNamespace(data=None, batch=None, sizes=[])
    assert [len(batch.input) for batch in TRT_test.chosen_batches(Path("a.plan"), fixed, given)] == [4]
    assert [len(batch.input) for batch in TRT_test.chosen_batches(Path("a.plan"), HALF, given)] == [1, 4, 16]


def test_an_engine_of_several_sizes(tmp_path, monkeypatch):
    """Data of each size, whose rows say which."""
    opened = replace(HALF, input_shape=(None, 3, None, None))
    for height, width in ((8, 8), (16, 4)):
        for count in (1, 2):
            save_batch(tmp_path / f"m-{height}x{width}-b{count}.npz", np.zeros((count, 3, height, width), np.float32),
                       np.ones((count, 5), np.float32), "m", replace(MADE, input_shape=(None, 3, None, None)))

    class FakeEngine(FakeContext):
        batches, open_sizes, profile = (1, 8), True, ((1, 3, 4, 4), (1, 3, 8, 8), (8, 3, 16, 8))

        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def context(self):
            return self

        def facts(self):
            return opened

        def infer(self, images):
            self.logits = self.of_graph = np.ones((len(images), 5), np.float32)
            return super().infer(images)

    monkeypatch.setitem(sys.modules, "TensorRT.engine", SimpleNamespace(Engine=FakeEngine))
    given = SimpleNamespace(data=tmp_path, batch=[2], sizes=[(16, 4), (8, 8)], tolerance=None, plugins=None,
                            min_seconds=0, min_runs=1, warmup_seconds=0, results=tmp_path)
    run = {"run_id": "1", "commit": "c", "gpu": "A GPU"}
    lines, _ = TRT_test.score_engine(tmp_path / "m.plan", given, run, lambda: {"tensorrt": "9"})
    rows = read_rows(tmp_path / "sizes.csv")
    assert [(row["image"], row["batch"], row["cuda_graph"], row["check"]) for row in rows] == [
        ("8x8", "2", "no", "good"), ("8x8", "2", "yes", "good"), ("16x4", "2", "no", "good"),
        ("16x4", "2", "yes", "good")]
    assert "images of 3x4x4 to 3x16x8" in lines[0] and lines[-1].endswith("good 16x4")
    assert not latency_rows(tmp_path)
    given.sizes = [(16, 8)]
    with pytest.raises(UserError, match=r"no data of images of 16x8; data/batch_data_gen\.py --size 16x8 writes it"):
        TRT_test.score_engine(tmp_path / "m.plan", given, run, lambda: {"tensorrt": "9"})


def test_data_of_another_model_is_refused(data):
    with pytest.raises(UserError, match=r"data/14\.npz: was made with another graph than a\.plan, of model other"):
        TRT_test.find_batches(Path("a.plan"), HALF, "data/14.npz")
    unknown = Facts(precision="fp16")  # of an engine that has no .json beside it
    assert len(TRT_test.find_batches(Path("a.plan"), unknown, "data/14.npz")) == 1  # one takes the user's word
    with pytest.raises(UserError, match=r"a\.plan: .*/data has no data of its model; .* nothing says what that was"):
        TRT_test.find_batches(Path("a.plan"), unknown, None)
    stranger = replace(HALF, weights="8" * 64, parents=(Parent("9" * 64, "y.onnx"),))
    with pytest.raises(UserError, match=r"batch_data_gen\.py --onnx FILE makes it with y\.onnx"):
        TRT_test.find_batches(Path("a.plan"), stranger, None)
    with pytest.raises(UserError, match="no such file"):
        TRT_test.find_batches(Path("a.plan"), MADE, "data/nothing*.npz")


def test_broken_data_files_are_refused(tmp_path):
    whole = tmp_path / "whole-b1.npz"
    np.savez(whole, input=np.zeros((1, 3, 4, 4)), model="m")
    with pytest.raises(UserError, match="lacks an array"):
        load_batch(whole)
    cut = tmp_path / "cut-b1.npz"
    for size in (0, 30, whole.stat().st_size // 2):
        cut.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(UserError, match="truncated"):
            load_batch(cut)


def test_tolerances():
    """By what the engine is, under a name that says something else."""
    batch, plan = batch_of(), Path("m_int8.plan")
    assert TRT_test.tolerance(plan, MADE, None, [batch]) == 1e-4
    larger = batch_of()._replace(logits=-9 * np.abs(batch.logits))  # the largest logit of all is negative
    assert TRT_test.tolerance(plan, HALF, None, [batch, larger]) == pytest.approx(0.09 * np.abs(batch.logits).max())
    assert TRT_test.tolerance(plan, HALF, 0.5, [batch]) == 0.5
    with pytest.raises(UserError, match="no default tolerance for bf16; give --tolerance"):
        TRT_test.tolerance(plan, replace(MADE, precision="bf16"), None, [batch])


def test_int8_may_be_off_by_a_multiple_of_what_quantisation_makes(data):
    """Of the worst batch whose images are the same; and the Q/DQ graph's data is nobody's expected output."""
    pairs = replace(MADE, precision="int8", digest="4" * 64, parents=(Parent(MADE.digest, "x.onnx"),))
    engine = replace(INT8, parents=(Parent("0" * 64, "i.onnx"), Parent(pairs.digest, "q.onnx"), *pairs.parents))
    plan, batches = Path("a_fp16.plan"), TRT_test.find_batches(Path("a.plan"), engine, None)
    with pytest.raises(UserError, match=r"of i\.onnx, q\.onnx, x\.onnx the one with Q/DQ pairs, or give --tolerance"):
        TRT_test.tolerance(plan, engine, None, batches)
    for count, error, image in ((1, 0.25, 0), (4, 0.5, 0), (16, 8, 1)):
        save_batch(data / f"data/q{count}.npz", np.full((count, 3, 8, 8), image, np.float32),
                   np.full((count, 5), 1 + error, np.float32), "m", pairs)
    assert TRT_test.tolerance(plan, engine, None, batches) == 2.5 * 0.5
    for facts in (engine, pairs):
        assert [batch.facts for batch in TRT_test.find_batches(plan, facts, None)] == [MADE] * 3


def test_more_memory_fails_the_script(tmp_path, monkeypatch):
    mib = {"m_fp16": 100, "any": 101}
    monkeypatch.setattr(TRT_test, "measure_memory", lambda plan, batches, plugins: [
        memory_row(plan.name, batch, mib[plan.stem], "no" if plan.stem == "m_fp16" else "attention")
        for batch in batches])
    given = SimpleNamespace(memory=[1], plugins=None, results=tmp_path)
    with pytest.raises(UserError, match=r"^FAIL any\.plan: 101\.0 MiB at batch 1, unpatched 100\.0"):
        TRT_test.score_memory([Path(f"{name}.plan") for name in mib], given,
                              {"run_id": "1", "commit": "c", "gpu": "A GPU"}, lambda: {"tensorrt": "9"})
    assert "tensorrt: 9" in (tmp_path / "environment/1.txt").read_text()
    assert len((tmp_path / "memory.csv").read_text().splitlines()) == 3


def test_memory_of_engines_before_one_that_fails_is_kept(tmp_path, monkeypatch):
    def measured(plan, batches, plugins):
        if plan.stem == "broken":
            raise UserError("broken.plan: is truncated")
        return [memory_row(plan.name, batch, 100) for batch in batches]

    monkeypatch.setattr(TRT_test, "measure_memory", measured)
    given = SimpleNamespace(memory=[1, 4], plugins=None, results=tmp_path)
    with pytest.raises(UserError, match=r"broken\.plan: is truncated"):
        TRT_test.score_memory([Path("m.plan"), Path("broken.plan")], given,
                              {"run_id": "1", "commit": "c", "gpu": "A GPU"}, dict)
    with (tmp_path / "memory.csv").open(newline="") as file:
        assert [(row["file"], row["batch"]) for row in csv.DictReader(file)] == [("m.plan", "1"), ("m.plan", "4")]


def memory_row(file: str, batch: int, mib: float, patched: str = "no", precision: str = "fp16") -> dict[str, str]:
    return {"model": "m", "precision": precision, "patched": patched, "file": file, "batch": str(batch),
            "device_memory_mib": "1.0", "free_memory_used_mib": str(mib)}


def test_memory_is_compared_with_that_of_the_unpatched_engine_at_the_same_batch():
    rows = [memory_row("m.plan", 1, 100), memory_row("m.plan", 16, 120), memory_row("a.plan", 1, 100, "attention"),
            memory_row("a.plan", 16, 90, "attention"), memory_row("l.plan", 16, 121, "layernorm"),
            memory_row("f.plan", 1, 500, "attention", "fp32")]  # whose unpatched engine was not measured
    lines, failed = TRT_test.compare_memory(rows)
    assert len(lines) == 2 + len(rows) + 2 and lines[5].split() == ["a.plan", "16", "1.0", "90", "120.0"]
    assert lines[-2] == "PASS a.plan: 100.0 MiB at batch 1, unpatched 100.0; the worst of batches 1,16"
    assert failed == lines[-1:]
    assert failed[0].startswith("FAIL l.plan: 121.0 MiB at batch 16, unpatched 120.0")


class FakeGpu:
    """Stands where engine.py and trt_runtime.py do: a GPU whose memory, 10,000 MiB, engines and contexts take."""

    MIB = 2**20

    def __init__(self) -> None:
        self.used, self.code = 0, set()

    def free_memory(self) -> int:
        return (10_000 - self.used - 7 * len(self.code)) * self.MIB

    def module(self) -> SimpleNamespace:
        gpu = self

        class Holder:
            mib = 0

            def __enter__(self):
                gpu.used += self.mib
                return self

            def __exit__(self, *_):
                gpu.used -= self.mib

        class Engine(Holder):
            mib = 200  # weights

            def __init__(self, plan, plugins):
                pass

            def facts(self):
                return HALF

            def activation_bytes(self, batch):
                return 50 * gpu.MIB

            def context(self):
                return Context()

        class Context(Holder):
            mib = 50

            def set_batch(self, batch):
                self.batch = batch

            def run(self):
                gpu.code.add(self.batch)  # stays loaded
                gpu.used += self.batch
                self.mib += self.batch  # given back when the context is closed

            def synchronize(self):
                pass

        return SimpleNamespace(Engine=Engine)


def test_memory_holds_weights_activations_and_buffers_and_no_code(monkeypatch):
    gpu = FakeGpu()
    monkeypatch.setitem(sys.modules, "TensorRT.engine", gpu.module())
    monkeypatch.setitem(sys.modules, "TensorRT.trt_runtime", SimpleNamespace(free_memory=gpu.free_memory))
    rows = TRT_test.measure_memory(Path("m_fp16.plan"), [1, 16], None)
    assert rows == [{"model": "m", "precision": "fp16", "patched": "attention", "file": "m_fp16.plan",
                     "batch": str(batch), "device_memory_mib": "50.0",
                     "free_memory_used_mib": f"{200 + 50 + batch:.1f}"} for batch in (1, 16)]
    assert gpu.used == 0 and len(gpu.code) == 2


def test_a_python_of_tensorrt_that_is_not_there_is_named(tmp_path):
    done = subprocess.run(["bash", ROOT / "TensorRT/build.sh", graph(tmp_path / "m.onnx")], capture_output=True,
                          text=True, env={**os.environ, "TRT_PYTHON": str(tmp_path / "python")})
    assert done.returncode == 1
    assert done.stderr == (f"build.sh: error: TRT_PYTHON={tmp_path}/python: no such program; set it to the Python that "
                           "imports TensorRT or TensorRT-RTX\n")
