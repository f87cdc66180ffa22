"""The two commands: their arguments, the plan that --dry-run prints, and what is done again and what is not."""
from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from utils import ROOT

SHELL_FILES = [*ROOT.glob("*.sh"), *(ROOT / "TensorRT").glob("*.sh"), ROOT / ".ci" / "run"]


def bash(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run bash with the tests' own Python first on the PATH."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(["bash", *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, "PATH": path, "VENV": "none", **environment})


@pytest.mark.parametrize("file", SHELL_FILES, ids=lambda file: file.name)
def test_shell_syntax(file):
    done = bash("-n", file)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-test.txt"])
def test_requirements_are_pinned(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith(("#", "-r "))]
    loose = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_-]+==[0-9.]+", line)]
    assert lines and loose in ([], ["nvidia-cublas>=13"])  # which a CUDA build of torch pins itself


# --- arguments -----------------------------------------------------------------------------------------------


def test_help():
    done = bash("run_all.sh", "--help")
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--cfg", "--resume", "--images", "--dry-run", "TRT_PYTHON"))


@pytest.mark.parametrize("arguments, problem", [
    (["--config", "x"], "--config: unknown option"),
    (["--cfg", "models/none.yaml"], "--cfg models/none.yaml: no such file"),
    (["--resume"], "--resume : no such file"),
    (["--count", "0"], "--count needs a positive whole number, not '0'"),
])
def test_wrong_arguments(arguments, problem):
    done = bash("run_all.sh", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"run_all.sh: error: {problem}")
    assert len(done.stderr.splitlines()) == 1


def test_a_model_without_weights_is_one_line():
    done = bash("run_all.sh", "--cfg", "models/swinv2.yaml", "--dry-run")
    assert done.returncode == 1
    assert "give --resume FILE" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_few_images_are_all_taken(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.png").touch()
    (tmp_path / "labels.txt").touch()
    done = bash("run_all.sh", "--images", tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [words[words.index("--count") + 1] for words in lines if "--count" in words] == ["40", "40"]
    assert [words[words.index("--batches") + 1] for words in lines if "TensorRT/INT8/quant.py" in words] == ["2", "2"]
    for flags, words in ((("--images", tmp_path, "--count", "41"), "--count 41: "), (
            ("--labels", tmp_path / "labels.txt"), "--labels needs --images")):
        done = bash("run_all.sh", *flags, "--dry-run")
        assert done.returncode == 1 and words in done.stderr and "python3" not in done.stdout.split()
    for i in range(25):
        (tmp_path / f"{i}.png").unlink()
    done = bash("run_all.sh", "--images", tmp_path, "--dry-run")
    assert done.returncode == 1 and "holds 15 images; INT8 is calibrated on 16 or more" in done.stderr


# --- the plan ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan() -> list[list[str]]:
    """The commands of `run_all.sh --dry-run`, as words."""
    done = bash("run_all.sh", "--dry-run")
    assert done.returncode == 0, done.stderr
    return [words for words in map(shlex.split, done.stdout.splitlines()) if words and words[0] in ("python3", "bash")]


def test_plan_takes_both_models_through_every_script(plan):
    scripts = [words[1] for words in plan]
    for script in ("onnx/export_onnx.py", "onnx/onnx_test.py", "data/batch_data_gen.py", "test_swinV2.py",
                   "onnx/graphsurgeon/add_all.py", "onnx/graphsurgeon/add_every_layernorm.py",
                   "onnx/graphsurgeon/to_fp16.py", "Torch_Latency.py", "Onnx_Latency.py", "Results/draw.py"):
        assert scripts.count(script) >= 2, script
    assert all((ROOT / script).is_file() for script in scripts)


def test_plan_reads_only_graphs_that_an_earlier_step_writes(plan):
    written = set()
    for words in plan:
        graphs = {word for word in words if word.endswith(".onnx")}
        if words[1].endswith("export_onnx.py"):
            written.add("swinv2_micro" if "models/swinv2_micro.yaml" in words else "swinv1_micro")
        assert {Path(graph).stem for graph in graphs} <= written, words
        suffix = {"add_all.py": "_attention", "add_every_layernorm.py": "_layernorm", "to_fp16.py": "_fp16",
                  "quant.py": "_int8", "add_int8.py": "_attention_int8"}.get(Path(words[1]).name)
        if suffix:
            written |= {Path(graph).stem.removesuffix("_int8") + suffix for graph in graphs}


def test_plan_quantises_narrow_blocks_of_the_micro_models_alone(plan, tmp_path):
    (tmp_path / "weights.pth").touch()
    small = bash("run_all.sh", "--cfg", "models/swinv2.yaml", "--resume", tmp_path / "weights.pth", "--dry-run")
    assert small.returncode == 0, small.stderr
    of_small = [words for words in map(shlex.split, small.stdout.splitlines()) if "TensorRT/INT8/quant.py" in words]
    of_micro = [words for words in plan if words[1] == "TensorRT/INT8/quant.py"]
    assert ["--narrow" in words for words in (*of_micro, *of_small)] == [True, True, False]


def test_plan_of_a_gpu_host_builds_and_measures_engines(tmp_path):
    (tmp_path / "include").mkdir()
    for header in ("NvInfer.h", "cublasLt.h"):
        (tmp_path / "include" / header).touch()
    for name in ("nvidia-smi", "trt-python", "nvcc"):
        (tmp_path / name).write_text("#!/bin/sh\n[ \"$1\" != --list-gpu-arch ] || echo compute_90\n")
        (tmp_path / name).chmod(0o755)
    done = bash("-c", 'PATH=$STAND_INS:$PATH exec bash run_all.sh --dry-run', STAND_INS=str(tmp_path), ARCHS="90",
                TRT_PYTHON="trt-python", TENSORRT_ROOT=str(tmp_path), CUBLAS_ROOT=str(tmp_path), CUDA_HOME="",
                BUILD_FLAGS="--memPoolSize=workspace:512")
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert ["make", "-C", "TensorRT/Plugins"] in lines
    builds = [words for words in lines if words[:2] == ["bash", "TensorRT/build.sh"]]
    assert {Path(words[2]).stem for words in builds} == {
        "swinv1_micro", "swinv1_micro_fp16", "swinv1_micro_layernorm_fp16", "swinv1_micro_attention_fp16",
        "swinv1_micro_attention_int8", "swinv2_micro", "swinv2_micro_fp16", "swinv2_micro_layernorm",
        "swinv2_micro_attention_fp16", "swinv2_micro_attention_int8"}
    for words in builds:
        graph, size = Path(words[2]).stem, words[words.index("--size") + 1]
        assert size == ("256" if "swinv2" in graph else "224")
        assert ("--fp16" in words) == graph.endswith(("_fp16", "_int8")) != ("--noTF32" in words)
        assert any(word.startswith("--plugins=") for word in words) == ("layernorm" in graph or "attention" in graph)
        assert words[-1] == "--memPoolSize=workspace:512"
    plans = [f"TensorRT/TRT_Engine/{Path(words[2]).stem}.plan" for words in builds]
    test = ["trt-python", "TRT_test.py", "--plan", *plans]
    assert lines[-2:] == [test, [*test, "--memory"]]


# --- steps ---------------------------------------------------------------------------------------------------


@pytest.fixture
def steps(tmp_path):
    """steps(script): run lines of `step ...` with run_all.sh's own functions; what was done is appended to `done`."""
    text = (ROOT / "run_all.sh").read_text()
    fail = next(line for line in text.splitlines() if line.startswith("fail() "))
    functions = text.split("# --- steps -")[1].split("# --- what this machine has -")[0].partition("\n")[2]
    (tmp_path / "input").write_text("one")

    def run(lines: str) -> subprocess.CompletedProcess:
        script = (f"set -euo pipefail\n{fail}\nmkdir -p .cache/logs .cache/stamps\n"
                  f"dry_run=no name=model key='' RUN_ID=1\n"
                  f"make() {{ echo \"$1\" >> done; touch \"$1.out\"; echo \"wrote $1\"; }}\n{functions}\n{lines}\n")
        return bash("-c", script, cwd=tmp_path)

    return run


TWO = 'step "first" a.out make a input; step "second" b.out make b'


def made(tmp_path: Path) -> list[str]:
    return (tmp_path / "done").read_text().split()


def test_steps_are_not_done_twice(steps, tmp_path):
    first, second = steps(TWO), steps(TWO)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert made(tmp_path) == ["a", "b"]
    assert re.search(r"first +\d+ s +wrote a", first.stdout)
    assert re.search(r"first +as before +wrote a", second.stdout)


@pytest.mark.parametrize("change, again", [
    (lambda folder: (folder / "input").write_text("two"), ["a", "b"]),
    (lambda folder: (folder / "b.out").unlink(), ["b"]),
    (lambda folder: (folder / "a.out").unlink(), ["a"]),
    (lambda folder: (folder / "input").touch(), []),
])
def test_a_change_is_done_again_with_what_follows_from_it(steps, tmp_path, change, again):
    steps(TWO)
    change(tmp_path)
    steps(TWO)
    assert made(tmp_path) == ["a", "b", *again]


def test_other_arguments_are_another_step(steps, tmp_path):
    steps(TWO)
    steps(TWO.replace("make a input", "make a input --more"))
    assert made(tmp_path) == ["a", "b", "a", "b"]


def test_a_file_behind_an_equals_sign_and_a_folder_are_inputs(steps, tmp_path):
    (tmp_path / "folder").mkdir()
    lines = 'step "one" a.out make a --library=input; key=""; step "two" b.out make b folder'
    steps(lines)
    (tmp_path / "input").write_text("two")
    steps(lines)
    (tmp_path / "folder" / "image").write_text("image")
    steps(lines)
    assert made(tmp_path) == ["a", "b", "a", "b"]


def test_a_table_without_rows_of_the_step_is_measured_again(steps, tmp_path):
    lines = """measure() { echo "$1" >> done; echo "$RUN_ID,commit,gpu,$name,7" >> table.csv; }
    step "first" table.csv measure first; name=other key=''; step "second" table.csv measure second"""
    steps(f"RUN_ID=1\n{lines}")
    steps(f"RUN_ID=2\n{lines}")
    assert made(tmp_path) == ["first", "second"]
    (tmp_path / "table.csv").unlink()
    steps(f"RUN_ID=3\n{lines}")
    steps(f"RUN_ID=4\n{lines}")
    assert made(tmp_path) == ["first", "second", "first", "second"]


def test_a_failure_stops_and_is_tried_again(steps, tmp_path):
    lines = 'step "first" a.out make a; step "broken" b.out sh -c "echo reason; exit 3"; step "third" c.out make c'
    for _ in range(2):
        done = steps(lines)
        assert done.returncode == 1
        assert done.stderr.splitlines() == [
            "reason", "run_all.sh: error: model: broken failed; all of its output is in .cache/logs/model-broken.log"]
    assert made(tmp_path) == ["a"]


# --- set-up --------------------------------------------------------------------------------------------------


@pytest.fixture
def set_up(tmp_path):
    """set_up(): run use_packages in an empty folder with a stand-in for Python that notes how it was called."""
    (tmp_path / "setup.sh").write_text((ROOT / "setup.sh").read_text())
    (tmp_path / "requirements.txt").write_text("numpy==2.4.6\n")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$*" >> calls\n[ ! -e broken ] || { echo no such package; exit 1; }\n'
                      'if [ "$2" = venv ]; then mkdir -p .venv/bin; cp "$0" .venv/bin/python3; fi\n')
    python.chmod(0o755)

    def run(**environment: str) -> subprocess.CompletedProcess:
        return bash("-c", "set -euo pipefail; . ./setup.sh; use_packages requirements.txt; echo ready", cwd=tmp_path,
                    **{"VENV": "", "PYTHON": str(python), **environment})

    return run


INSTALL = "-m pip install --disable-pip-version-check -r requirements.txt"


def test_packages_are_installed_once_and_again_when_the_requirements_change(set_up, tmp_path):
    for _ in range(2):
        assert set_up().stdout.endswith("ready\n")
    assert (tmp_path / "calls").read_text().splitlines() == ["-m venv .venv", INSTALL]
    (tmp_path / "requirements.txt").write_text("numpy==2.4.5\n")
    set_up()
    assert (tmp_path / "calls").read_text().splitlines() == ["-m venv .venv", INSTALL, INSTALL]


def test_a_failed_installation_is_told_and_tried_again(set_up, tmp_path):
    (tmp_path / "broken").touch()
    done = set_up()
    assert done.returncode == 1
    assert "no such package" in done.stderr and "ready" not in done.stdout
    (tmp_path / "broken").unlink()
    assert set_up().returncode == 0


def test_without_python_it_says_what_to_install(set_up):
    done = set_up(PYTHON="python3.11-that-is-not-there")
    assert done.returncode == 1
    assert done.stderr == ("set-up: error: python3.11-that-is-not-there: not found; install Python 3.11, or give "
                           "another with PYTHON=...\n")
