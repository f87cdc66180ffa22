"""The two commands: their arguments, the plan that --dry-run prints, and what is done again and what is not."""
from __future__ import annotations

import os
import re
import shlex
import shutil
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
    names = [line.partition(";")[0].strip() for line in lines]
    loose = {name for name in names if not re.fullmatch(r"[A-Za-z0-9_-]+==[0-9.]+", name)}
    # A CUDA build of torch pins the first itself; the second goes with the driver.
    assert lines and loose <= {"nvidia-cublas>=13", "cuda-bindings>=12.8"}


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
    lines = commands(done)
    assert [words[words.index("--count") + 1] for words in lines if "--count" in words] == ["40", "40"]
    assert [words[words.index("--calibration-batches") + 1] for words in lines
            if "TensorRT/INT8/quant.py" in words] == ["2", "2"]
    for flags, words in ((("--images", tmp_path, "--count", "41"), "--count 41: "), (
            ("--labels", tmp_path / "labels.txt"), "--labels needs --images")):
        done = bash("run_all.sh", *flags, "--dry-run")
        assert done.returncode == 1 and words in done.stderr and "python3" not in done.stdout.split()
    for i in range(25):
        (tmp_path / f"{i}.png").unlink()
    done = bash("run_all.sh", "--images", tmp_path, "--dry-run")
    assert done.returncode == 1 and "holds 15 images; INT8 is calibrated on 16 or more" in done.stderr


# --- the plan ------------------------------------------------------------------------------------------------


def commands(dry_run: subprocess.CompletedProcess) -> list[list[str]]:
    """The commands that --dry-run printed, as words."""
    lines = map(shlex.split, dry_run.stdout.replace("\\\n", " ").splitlines())
    return [words for words in lines if words and words[0] in ("python3", "bash", "env", "trt-python")]


@pytest.fixture(scope="module")
def plan() -> list[list[str]]:
    """The commands of `run_all.sh --dry-run`, as words."""
    done = bash("run_all.sh", "--dry-run")
    assert done.returncode == 0, done.stderr
    return commands(done)


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
        made = {words[words.index("--output") + 1]} & graphs if "--output" in words else set()
        assert graphs - made <= written, words
        written |= made


def test_plan_quantises_narrow_blocks_of_the_micro_models_alone(plan, tmp_path):
    (tmp_path / "weights.pth").touch()
    small = bash("run_all.sh", "--cfg", "models/swinv2.yaml", "--resume", tmp_path / "weights.pth", "--dry-run")
    assert small.returncode == 0, small.stderr
    of_small = [words for words in commands(small) if "TensorRT/INT8/quant.py" in words]
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
    lines = commands(done)
    assert ["make", "--no-print-directory", "-C", "TensorRT/Plugins"] in [words[3:] for words in lines]
    builds = [words for words in lines if words[:2] == ["bash", "TensorRT/build.sh"]]
    assert {Path(words[2]).stem for words in builds} == {
        "swinv1_micro", "swinv1_micro_fp16", "swinv1_micro_layernorm_fp16", "swinv1_micro_attention_fp16",
        "swinv1_micro_attention_int8", "swinv2_micro", "swinv2_micro_fp16", "swinv2_micro_layernorm",
        "swinv2_micro_attention_fp16", "swinv2_micro_attention_int8"}
    for words in builds:
        graph = Path(words[2]).stem
        assert ("--noTF32" in words) == (not graph.endswith(("_fp16", "_int8")))
        assert any(word.startswith("--plugins=") for word in words) == ("layernorm" in graph or "attention" in graph)
        assert "--memPoolSize=workspace:512" in words
    plans = [f"TensorRT/TRT_Engine/{Path(words[2]).stem}.plan" for words in builds]
    test, memory = lines[-2:]
    assert test[:3] == ["trt-python", "TRT_test.py", "--plan"] and set(test[3:13]) == set(plans)
    assert memory[:13] == test[:13] and "--memory" in memory


# --- a run ---------------------------------------------------------------------------------------------------

# Stands in for python3: make's commands and the measuring scripts write their file, or a row, at once.
STAND_IN = f"""#!/usr/bin/env bash
set -eu
case $1 in
    once.py) exec {sys.executable} "$@" ;;
    models/facts.py) name=$(basename "$3" .yaml); echo "$name ${{name%_*}} 256 weights.pth"; exit ;;
    TensorRT/check.py) cat tensorrt; exit "$(sed -n 's/^exit //p' tensorrt)" ;;
    -c | Results/table.py) exit ;;
esac
echo "$*" >> calls
script=$1 words=$*
if [[ -f broken && $words == *"$(< broken)"* ]]; then echo reason; exit 3; fi
while (($#)); do
    case $1 in
        --output | --cache) [[ -d $2 ]] || echo "$words" > "$2"; echo "wrote $2" ;;
        --model | --onnx) model=$(basename "$2" .onnx) ;;
        --results) table=$2/latency.csv; [[ $script != test_swinV2.py ]] || table=$2/accuracy.csv
            mkdir -p "$2"; echo "$RUN_ID,$words" >> "$table"; echo "added 1 row to $table" ;;
    esac
    shift
done
if [[ $script == data/* ]]; then for batch in 1 4 8 16; do echo "$words" > "data/$model-b$batch.npz"; done; fi
"""


@pytest.fixture
def checkout(tmp_path):
    """run(*flags): run_all.sh in a folder of its own, over a python3 that pretends; what it printed, and the calls."""
    for folder in ("models", "onnx/graphsurgeon", "data", "TensorRT/Plugins", "TensorRT/INT8", "TensorRT/TRT_Engine",
                   "Results", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("run_all.sh", "setup.sh", "Makefile", "once.py", "TensorRT/swinv2_question.mk"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("requirements.txt", "config.py", "utils.py", "models/build.py", "models/swin.yaml", "weights.pth"):
        (tmp_path / name).write_text(name)
    (tmp_path / "tensorrt").write_text("TensorRT cannot be imported\nexit 1\n")
    build = """echo "build.sh $*" >> calls; until [[ $1 == --output ]]; do shift; done; echo built > "$2"\n"""
    (tmp_path / "TensorRT/build.sh").write_text(build)
    for name, text in (("python3", STAND_IN), ("nvidia-smi", "#!/bin/sh\nexit 9\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(*flags: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        (tmp_path / "calls").unlink(missing_ok=True)
        done = bash("-c", 'PATH=$STAND_INS:$PATH exec bash run_all.sh "$@"', "_", *flags, cwd=tmp_path,
                    STAND_INS=str(tmp_path / "bin"))
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return done, [call.split()[0] for call in calls]

    return run


MEASURED = ["onnx/onnx_test.py", "test_swinV2.py", "Torch_Latency.py", "Onnx_Latency.py", "Results/draw.py"]


def test_a_run_makes_files_then_measures_and_does_nothing_twice(checkout, tmp_path):
    done, calls = checkout("--cfg", "models/swin.yaml")
    assert done.returncode == 0, done.stderr
    assert calls[-len(MEASURED):] == MEASURED and len(calls) == 10 + len(MEASURED)
    assert re.search(r"^  accuracy +\d+ s  added 1 row to Results/local/accuracy.csv$", done.stdout, re.MULTILINE)
    again, calls = checkout("--cfg", "models/swin.yaml")
    assert again.returncode == 0 and calls == []
    assert re.search(r"^  FP16 layernorm +as before  wrote onnx/swin_layernorm_fp16.onnx$", again.stdout, re.MULTILINE)
    assert again.stdout.count("as before") == 15
    assert {path.parent.name for path in tmp_path.rglob("*.csv")} == {"local"}  # no recorded table was touched


def test_what_is_measured_is_measured_again_with_other_files_or_without_its_rows(checkout, tmp_path):
    checkout("--cfg", "models/swin.yaml")
    rows = (tmp_path / "Results/local/latency.csv").read_text().splitlines()
    (tmp_path / "Results/local/latency.csv").write_text(rows[1] + "\n")  # those of PyTorch are gone
    assert checkout("--cfg", "models/swin.yaml")[1] == ["Torch_Latency.py"]
    (tmp_path / "onnx/swin_attention_fp16.onnx").write_text("truncated")
    assert checkout("--cfg", "models/swin.yaml")[1] == ["onnx/graphsurgeon/to_fp16.py"]  # of the same contents again
    assert checkout("--cfg", "models/swin.yaml", "--count", "7")[1] == ["test_swinV2.py"]
    (tmp_path / "weights.pth").write_text("trained longer")
    assert set(checkout("--cfg", "models/swin.yaml", "--count", "7")[1]) >= {"onnx/export_onnx.py", *MEASURED[:2]}


@pytest.mark.parametrize("broken, what, log", [
    ("add_int8.py", "INT8 attention", "onnx-swin_attention_int8.onnx"), ("Onnx_Latency.py", "latency of onnxruntime",
                                                                         "swin-latency-of-onnxruntime")])
def test_a_failure_stops_and_is_tried_again(checkout, tmp_path, broken, what, log):
    (tmp_path / "broken").write_text(broken)
    for _ in range(2):
        done, calls = checkout("--cfg", "models/swin.yaml")
        assert done.returncode != 0 and "Results/draw.py" not in calls
        assert re.search(rf"^  {what} +FAILED  reason$", done.stdout, re.MULTILINE)
        assert f"error: {what} failed; all of its output is in .cache/logs/{log}.log" in done.stderr
    (tmp_path / "broken").unlink()
    done, calls = checkout("--cfg", "models/swin.yaml")
    assert done.returncode == 0 and "Results/draw.py" in calls and "onnx/export_onnx.py" not in calls


def test_engines_are_built_where_they_cannot_be_run(checkout, tmp_path):
    done, calls = checkout("--cfg", "models/swin.yaml")
    assert "Not done: TensorRT engines.\n  - TensorRT cannot be imported" in done.stdout and "build.sh" not in calls
    (tmp_path / "tensorrt").write_text("TensorRT builds engines here; it cannot run them: no GPU\nexit 3\n")
    done, calls = checkout("--cfg", "models/swin.yaml")
    assert done.returncode == 0, done.stderr
    assert calls == ["build.sh", "build.sh"]
    assert all((tmp_path / f"TensorRT/TRT_Engine/swin{kind}.plan").exists() for kind in ("", "_fp16"))
    assert re.search(r"^Built, and not run: .* A GPU is needed to run them\.\n  - TensorRT builds engines here; it",
                     done.stdout, re.MULTILINE)


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
