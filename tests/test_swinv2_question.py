"""The SwinV2 question: FP16 emulated tensor by tensor, the table, and the script that asks it of engines."""
from __future__ import annotations

import csv
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from TensorRT import compare_layers, emulate_fp16, swinv2_table
from utils import ROOT, UserError


def graph(nodes: list, weights: dict[str, np.ndarray], opset: int = 17) -> onnx.ModelProto:
    """A model from `input` [B, 4] to `logits`, both float32."""
    ports = [[helper.make_tensor_value_info(port, TensorProto.FLOAT, ["batch", None])] for port in ("input", "logits")]
    ports[0][0].type.tensor_type.shape.dim[1].dim_value = 4
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("swin", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", *ports, constants), opset_imports=domains, ir_version=8)


# --- emulate_fp16.py -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [12, 13, 17])
def test_every_tensor_is_rounded_to_fp16(opset):
    """Against NumPy: weights, input, and the result of every operator; the operator itself in FP32; L2 taken apart."""
    random = np.random.default_rng(0)
    w = random.standard_normal((4, 4)).astype(np.float32)
    x = (random.standard_normal((5, 4)) * [[1], [10], [10], [300], [300]]).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["input", "w"], ["h"]),
             helper.make_node("ReduceL2", ["h"], ["n"], axes=[-1], keepdims=1),
             helper.make_node("Shape", ["h"], ["shape"]),
             helper.make_node("Div", ["h", "n"], ["logits"])]
    rows = emulate_fp16.compare_all(graph(nodes, {"w": w}, opset), x)
    assert [row["tensor"] for row in rows] == ["h", "n/squares", "n/sum", "n", "logits"]

    def half(values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)

    h = half(half(x) @ half(w))
    squares = half(h * h)
    total = half(squares.sum(axis=-1, keepdims=True))
    norm = half(np.sqrt(total))
    exact = x @ w
    norms = np.linalg.norm(exact, axis=-1, keepdims=True)
    assert np.isinf(squares).any() and np.isfinite(total).any()
    pairs = ((h, exact), (squares, exact**2), (total, norms**2), (norm, norms), (half(h / norm), exact / norms))
    for row, (rounded, reference) in zip(rows, pairs):
        expected = compare_layers.compare(rounded, reference)
        assert (row["nan"], row["inf"]) == (expected["nan"], expected["inf"]), row
        # Sums in another order may round to the FP16 number beside: 2^-10 of it.
        assert abs(float(row["rel_err"]) - float(expected["rel_err"])) < 2e-3, row


def test_plugin_nodes_compute_in_fp32_with_fp32_parameters():
    """x = 300: its squares are beyond FP16, and gamma is not an FP16 number."""
    gamma, x = np.full(4, 1 + 2**-12, np.float32), np.array([[300, -300, 300, -300]], np.float32)
    nodes = [helper.make_node("SwinLayerNormWithParams", ["input", "gamma", "beta"], ["y"], domain="swin",
                              epsilon=1e-5, plugin_version="1", plugin_namespace="swin"),
             helper.make_node("Mul", ["y", "large"], ["logits"])]
    rows = emulate_fp16.compare_all(
        graph(nodes, {"gamma": gamma, "beta": np.zeros(4, np.float32), "large": np.float32([4096])}), x)
    assert [row["tensor"] for row in rows] == ["y", "logits"]
    assert float(rows[0]["max_abs_err"]) == pytest.approx(2**-12, rel=1e-2)  # the rounding of y alone: gamma's is not
    assert all(row["inf"] == row["nan"] == "0" for row in rows)


def test_linear_weights_of_plugin_nodes_are_rounded():
    weight = np.full((4, 4), 1 + 2**-12, np.float32)
    node = helper.make_node("SwinLinear", ["input", "w", "b"], ["logits"], domain="swin", gelu=0, plugin_version="1",
                            plugin_namespace="swin")
    (row,) = emulate_fp16.compare_all(graph([node], {"w": weight, "b": np.zeros(4, np.float32)}),
                                      np.ones((1, 4), np.float32))
    assert float(row["max_abs_err"]) == pytest.approx(4 * 2**-12, rel=1e-2)


def test_an_fp16_graph_is_refused():
    nodes = [helper.make_node("Cast", ["input"], ["half"], to=TensorProto.FLOAT16),
             helper.make_node("MatMul", ["half", "w"], ["product"]),
             helper.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT)]
    with pytest.raises(UserError, match="is in FP16; give the FP32 graph"):
        emulate_fp16.compare_all(graph(nodes, {"w": np.ones((4, 4), np.float16)}), np.ones((1, 4), np.float32))


# --- swinv2_table.py -----------------------------------------------------------------------------------------


def layer_row(tensor: str, rel_err: float, nan: int = 0) -> dict[str, str]:
    return {"depth": "0", "tensor": tensor, "op": "Op", "shape": "1x2", "max_abs_ref": "4",
            "max_abs_err": str(4 * rel_err), "rel_err": str(rel_err), "nan": str(nan), "inf": "0"}


def table(tmp_path: Path, monkeypatch) -> list[dict[str, str]]:
    output = tmp_path / "question.csv"
    files = [str(path) for pattern in ("m_*.npy", "layers_m_*.csv") for path in tmp_path.glob(pattern)]
    monkeypatch.setattr(sys, "argv", ["swinv2_table.py", "--model", "m", "--output", str(output), *files])
    swinv2_table.main()
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_row_for_each_engine_and_batch(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUN_ID", "first")
    expected = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
    np.savez(tmp_path / "m_trained-b16.npz", logits=expected)
    found = np.stack([expected + 0.25, expected])
    found[1, 5] = np.nan
    np.save(tmp_path / "m_trained_attention_fp16-b1,16.npy", found)
    compare_layers.write_table(tmp_path / "layers_m_trained_attention_fp16.csv",
                               [layer_row("a", 0.01), layer_row("b", 0.2), layer_row("logits", 0.02)])
    compare_layers.write_table(tmp_path / "layers_m_underflow_opset12_fp16_emulated.csv",
                               [layer_row("a", 0.01), layer_row("logits", 0.5, nan=3)])
    np.save(tmp_path / "m_trained_fp32-b4.npy", expected)  # of one batch size
    rows = table(tmp_path, monkeypatch)
    assert [(row["weights"], row["engine"], row["batch"]) for row in rows] == [
        ("trained", "attention_fp16", "1"), ("trained", "attention_fp16", "16"), ("trained", "fp32", "4"),
        ("underflow", "opset12_fp16 emulated", "1")]
    one, sixteen, four, emulated = rows
    assert float(four["max_abs_err"]) == 0 and four["first_tensor"] == ""
    assert float(one["max_abs_err"]) == pytest.approx(0.25) and one["images_nan_or_inf"] == "0"
    assert sixteen["max_abs_err"] == "nan" and sixteen["images_nan_or_inf"] == "1" and sixteen["images"] == "16"
    assert one["largest_logit"] == f"{np.abs(expected).max():.4g}"
    assert (one["first_tensor"], one["tensors"], one["tensors_nan_or_inf"]) == ("b", "3", "0")
    assert float(one["layers_max_abs_err"]) == pytest.approx(0.08)
    assert (emulated["first_tensor"], emulated["max_abs_err"], emulated["images_nan_or_inf"]) == ("logits", "nan", "1")
    assert "| trained | attention_fp16 | 1 | 0 of 16 | 2.5e-01 |" in capsys.readouterr().out

    # The same again: rows and environment stay those of the run that measured.
    monkeypatch.setenv("RUN_ID", "later")
    assert table(tmp_path, monkeypatch) == rows
    assert [file.stem for file in (tmp_path / "environment").iterdir()] == ["first"]

    # Measured again: the row is replaced. What is not measured again stays.
    np.save(tmp_path / "m_trained_attention_fp16-b1,16.npy", np.stack([expected, expected]))
    (tmp_path / "layers_m_underflow_opset12_fp16_emulated.csv").unlink()
    again = table(tmp_path, monkeypatch)
    assert [float(row["max_abs_err"]) for row in again[:3]] == [0, 0, 0] and again[2:] == rows[2:]
    assert [row["run_id"] for row in again] == ["later", "later", "first", "first"]
    assert (tmp_path / "environment/later.txt").exists()


def test_the_table_refuses_logits_of_other_data(tmp_path, monkeypatch):
    np.savez(tmp_path / "m_trained-b16.npz", logits=np.zeros((16, 3), np.float32))
    np.save(tmp_path / "m_trained_fp32-b1.npy", np.zeros((1, 8, 3), np.float32))
    with pytest.raises(UserError, match="are not those of"):
        table(tmp_path, monkeypatch)
    (tmp_path / "m_trained_fp32-b1.npy").unlink()
    compare_layers.write_table(tmp_path / "layers_m_trained_fp16.csv", [layer_row("logits", 0.5)])
    with pytest.raises(UserError, match="no logits and no emulation"):
        table(tmp_path, monkeypatch)


# --- swinv2_question.sh --------------------------------------------------------------------------------------

# Stands in for python3 and build.sh: writes down how it was called, and makes the file that it was asked for.
FAKE = f"""#!/usr/bin/env bash
set -eu
if [[ ${{1:-}} == once.py ]]; then exec {sys.executable} "$@"; fi
if [[ ${{1:-}} == -c ]]; then echo 8.6.0; exit; fi
if [[ ${{1:-}} == models/facts.py ]]; then echo m swinv2 256 weights.pth; exit; fi
echo "$(basename "$0") $*" >> calls
if [[ "$*" == *"$(cat broken)"* ]]; then echo "it is broken"; exit 1; fi
while (($#)); do
    case $1 in
        --output) output=$2 ;;
        --onnx | --model) model=$(basename "$2" .onnx) ;;
        --batch) ending=-b$2.npz ;;
    esac
    shift
done
if [[ -d ${{output:-}} ]]; then
    output+=/$model${{ending:-_layers.npz}}
    if [[ -z ${{ending:-}} ]]; then echo made > "${{output%.npz}}.onnx"; fi
fi
if [[ -n ${{output:-}} ]]; then echo made > "$output"; fi
"""


@pytest.fixture
def ask(tmp_path):
    """ask(*flags, broken=WORD): the script run in a folder of its own, over a python3 and a builder that pretend; a
    command with WORD in it fails. Gives what it printed, and the calls."""
    (tmp_path / "TensorRT/Plugins/build").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in ("TensorRT/swinv2_question.sh", "TensorRT/swinv2_question.mk", "Makefile", "once.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "requirements.txt").touch()
    (tmp_path / "TensorRT/Plugins/Makefile").write_text("build/libswin_plugins.so: ;\n")
    (tmp_path / "Results/local").mkdir(parents=True)
    (tmp_path / "Images").mkdir()
    for name in ("bin/python3", "bin/nvidia-smi", "TensorRT/build.sh"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    for name in ("config.py", "utils.py", *(f"{folder}/*.{ending}" for ending in ("py", "yaml") for folder in (
            "data", "graphs", "models", "onnx", "onnx/graphsurgeon", "Results", "TensorRT"))):
        for source in ROOT.glob(name):
            target = tmp_path / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    for name in ("m.yaml", "weights.pth", "TensorRT/Plugins/build/libswin_plugins.so"):
        (tmp_path / name).touch()

    def asked(*flags: str, broken: str = "no such word") -> tuple[subprocess.CompletedProcess, list[str]]:
        (tmp_path / "broken").write_text(broken)
        (tmp_path / "calls").unlink(missing_ok=True)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(["bash", "TensorRT/swinv2_question.sh", "--cfg", "m.yaml", *flags], cwd=tmp_path,
                              capture_output=True, text=True, env={**os.environ, "PATH": path, "TRT_PYTHON": "python3"})
        calls = tmp_path / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done, [line for line in lines if not line.startswith("nvidia-smi")]

    return asked


def test_question_makes_all_once(ask, tmp_path):
    done, calls = ask("--jobs", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    # 4 weights, of them 3 stressed; 5 engines each, and 2 with marked tensors.
    expected = {"stress.py": 3, "export_onnx": 8, "batch_data_gen": 4, "to_fp16.py": 8, "add_all": 4, "build.sh": 28,
                "run_engine": 20, " run --plan": 8, " prepare ": 8}
    assert {word: sum(word in call for call in calls) for word in expected} == expected
    built = next(call for call in calls if "m_underflow_attention_fp16.plan" in call and "build.sh" in call)
    assert "m_underflow_attention_fp16.onnx" in built and "--plugins=TensorRT/Plugins" in built and "--max 16" in built
    marked = next(call for call in calls if "m_underflow_attention_fp16_layers.plan" in call and "build.sh" in call)
    assert "--max 1 " in marked and "--builderOptimizationLevel=1" in marked
    assert "--builderOptimizationLevel" not in built
    stressed = next(call for call in calls if "stress.py" in call and "underflow" in call)
    assert "--resume weights.pth --qk 1e-3" in stressed
    exported = next(call for call in calls if "export_onnx" in call and "underflow_opset12" in call)
    assert "--resume .cache/swinv2_question/m_underflow.safetensors --" in exported and exported.endswith("--opset 12")

    done, calls = ask()
    assert done.returncode == 0 and not re.search(r" \d+ s  ", done.stdout)
    assert [call.split()[1] for call in calls if "swinv2_table" in call or "plot" in call] == [
        "TensorRT/swinv2_table.py", "TensorRT/compare_layers.py"]
    assert len(calls) == 2

    (tmp_path / ".cache/swinv2_question/m_trained_fp16.plan").unlink()
    (tmp_path / "weights.pth").touch()  # newer, and the same
    _, calls = ask()
    (built,) = (call for call in calls if "build.sh" in call)
    assert "--output .cache/swinv2_question/m_trained_fp16.plan" in built

    _, calls = ask("--every", "4", "--weights", "trained")
    assert {word: sum(word in call for call in calls) for word in (" prepare ", "build.sh")} == {
        " prepare ": 2, "build.sh": 0}  # the fake one makes the same of it


def told(calls: list[str]) -> set[str]:
    """The files that the table was made of."""
    (call,) = (call for call in calls if "swinv2_table.py" in call)
    return {Path(word).name for word in call.split() if word.startswith(".cache")}


def test_question_tells_nothing_of_another_checkpoint(ask, tmp_path):
    ask("--weights", "trained,overflow")
    (tmp_path / "weights.pth").write_text("trained longer")
    _, calls = ask("--weights", "overflow", "--engines", "fp16", "--layers", "none")
    assert calls[0].split()[1] == "models/stress.py"
    assert told(calls) == {"m_overflow_fp16-b1,16.npy"}


def test_question_tells_nothing_of_an_engine_that_failed_or_of_other_batches(ask, tmp_path):
    flags = ("--weights", "trained", "--engines", "fp16,attention_fp16")
    _, calls = ask(*flags)
    assert told(calls) == {"m_trained_fp16-b1,16.npy", "m_trained_attention_fp16-b1,16.npy",
                           "layers_m_trained_attention_fp16.csv"}
    (tmp_path / "TensorRT/Plugins/build/libswin_plugins.so").write_text("another")
    done, calls = ask(*flags, "--batches", "2", broken="m_trained_attention_fp16")
    assert done.returncode == 1 and told(calls) == {"m_trained_fp16-b2.npy"}


def test_question_is_asked_again_of_another_gpu(ask, tmp_path):
    flags = ("--weights", "trained", "--engines", "fp16", "--layers", "none")
    ask(*flags)
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\necho GPU 0: another\n")
    _, calls = ask(*flags)
    assert [sum(word in call for call in calls) for word in ("export_onnx", "build.sh", "run_engine")] == [0, 1, 1]


def test_question_takes_paths_from_where_it_is_called(ask, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(["bash", "../TensorRT/swinv2_question.sh", "--cfg", "../m.yaml", "--resume", "../weights.pth",
                           "--dry-run", "--weights", "trained"], cwd=tmp_path / "elsewhere", capture_output=True,
                          text=True, env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    assert done.returncode == 0 and "--cfg m.yaml --resume weights.pth" in done.stdout, done.stderr


def test_question_makes_again_what_other_scripts_made(ask, tmp_path):
    flags = ("--weights", "trained", "--engines", "fp16", "--layers", "none")
    ask(*flags)
    words = ("export_onnx", "to_fp16", "build.sh", "run_engine")
    for changed, again in (("graphs/tidy.py", [1, 1, 0, 0]), ("TensorRT/build_engine.py", [0, 0, 1, 0]),
                           ("TensorRT/engine.py", [0, 0, 0, 1]), ("TensorRT/swinv2_table.py", [0, 0, 0, 0])):
        with (tmp_path / changed).open("a") as file:
            file.write("# changed\n")
        _, calls = ask(*flags)
        assert [sum(word in call for call in calls) for word in words] == again, changed


def test_question_goes_on_after_a_failure_and_ends_with_it(ask, tmp_path):
    broken = "m_trained_opset12_fp16.plan"
    done, calls = ask("--weights", "trained", broken=broken)
    assert done.returncode == 1
    assert re.search(r"^  engine trained opset12 fp16 +FAILED  it is broken$", done.stdout, re.MULTILINE)
    assert ("could not be made: .cache/swinv2_question/m_trained_opset12_fp16-b1,16.npy; their logs are in "
            ".cache/logs/") in done.stderr
    assert any("m_trained_attention_fp16-b1,16.npy" in call for call in calls)
    assert any("swinv2_table.py" in call for call in calls)
    done, calls = ask("--weights", "trained")
    assert done.returncode == 0 and sum("build.sh" in call for call in calls) == 1


def test_question_on_a_cpu_builds_nothing(ask):
    done, calls = ask("--emulate", "--weights", "overflow")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not any("build.sh" in call or "run_engine" in call for call in calls)
    graphs = [call.split()[3] for call in calls if "emulate_fp16.py" in call]
    assert {Path(name).name for name in graphs} == {"m_overflow_opset12.onnx", "m_overflow.onnx",
                                                    "m_overflow_attention.onnx"}


def test_question_makes_only_the_graphs_that_it_builds(ask):
    done, calls = ask("--weights", "trained", "--engines", "opset17_fp16", "--layers", "none", "--batches", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not any("graphsurgeon" in call or "prepare" in call for call in calls)
    assert sum("export_onnx" in call for call in calls) == sum("build.sh" in call for call in calls) == 1


def test_question_takes_the_weights_before_the_model(ask):
    flags = ["--resume", "weights.pth", "--cfg", "m.yaml", "--dry-run", "--weights", "underflow", "--engines", "fp32"]
    (done, _), (again, _) = ask(*flags), ask(*flags[2:])
    assert done.returncode == 0 and done.stdout == again.stdout
    assert "export_onnx.py --cfg m.yaml --resume .cache/swinv2_question/m_underflow.safetensors" in done.stdout


def test_question_dry_run_only_prints(ask, tmp_path):
    done, calls = ask("--dry-run", "--weights", "trained", "--engines", "fp32", "--layers", "none")
    assert done.returncode == 0 and not calls
    assert re.search(r"build.sh .cache/swinv2_question/m_trained.onnx +--max 16 .*--noTF32", done.stdout)
    assert not (tmp_path / ".cache").exists()


@pytest.mark.parametrize(("flags", "words"), [
    (["--weights", "tired"], "--weights tired: choose from trained,overflow,underflow,saturated"),
    (["--engines", "fp32,warp"], "--engines warp: choose from fp32,opset12_fp16"),
    (["--layers", "fp32"], "--layers fp32: choose from opset12_fp16"),
    (["--batches", "x", "--dry-run"], "--batches x: needs positive whole numbers"),
    (["--batches", "1,,16"], "--batches 1,,16: needs positive whole numbers"),
    (["--batches", "1,32"], "--batches 1,32: there are 16 images"),
    (["--emulate", "--batches", "1"], "--batches is of engines"),
    (["--emulate", "--match", "x"], "--match is of engines"),
    (["--emulate", "--layers", "none"], "--layers is of engines"),
    (["--jobs", "0"], "--jobs 0: needs a positive whole number"),
    (["--every", "0"], "--every 0: needs a positive whole number"),
    (["--resume", "absent.pth"], "--resume absent.pth: no such file"),
    (["--fast"], "--fast: unknown option"),
])
def test_question_refuses(ask, flags, words):
    done, _ = ask(*flags)
    assert done.returncode == 1 and words in done.stderr


@pytest.mark.parametrize(("hidden", "words"), [
    ("bin/nvidia-smi", "a GPU that nvidia-smi knows"), ("bin/python3", "tensorrt in python3 (set TRT_PYTHON)"),
    ("TensorRT/Plugins/build/libswin_plugins.so", "libswin_plugins.so (make -C TensorRT/Plugins)")])
def test_question_says_first_what_engines_need(ask, tmp_path, hidden, words):
    if hidden == "bin/python3":
        (tmp_path / hidden).write_text(FAKE.replace("echo 8.6.0; exit", "exit 1"))
    else:
        (tmp_path / hidden).unlink()
        if hidden == "bin/nvidia-smi":  # where the machine has one
            (tmp_path / hidden).write_text("#!/bin/sh\nexit 9\n")
            (tmp_path / hidden).chmod(0o755)
    done, calls = ask("--weights", "trained")
    assert done.returncode == 1 and not calls and not (tmp_path / ".cache").exists()
    assert words in done.stderr and "--emulate" in done.stderr and len(done.stderr.splitlines()) == 1
    assert ask("--weights", "trained", "--emulate")[0].returncode == 0
    if "Plugins" in hidden:
        assert ask("--weights", "trained", "--engines", "fp32", "--layers", "none")[0].returncode == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_question_ends_its_jobs_when_it_is_ended(ask, tmp_path, how):
    """A step that would take minutes, in a process of a process of a process, is gone with the script.

    All of them hold the writing end of a pipe: it gives a line as each begins, and its end when the last is gone.
    """
    told, tell = os.pipe()
    step = "#!/usr/bin/env bash\nif [[ $1 == models/facts.py ]]; then echo m swinv2 256 weights.pth; exit; fi\n"
    (tmp_path / "bin/python3").write_text(f"{step}echo begun >&{tell}\nsleep 300\n")
    command = ["bash", "TensorRT/swinv2_question.sh", "--cfg", "m.yaml", "--emulate", "--jobs", "8"]
    script = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, pass_fds=[tell],
                              # A shell in the background has its children ignore SIGINT, and that is inherited.
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                              env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    try:
        os.close(tell)
        for _ in range(4):
            assert os.read(told, len("begun\n")) == b"begun\n"
        script.send_signal(how)
        assert script.wait(10) != 0
        while (ready := select.select([told], [], [], 10)[0]) and os.read(told, 99):
            pass
        assert ready, "ten seconds later a step still runs"
    finally:
        script.kill()
        os.close(told)
