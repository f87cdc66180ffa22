"""TensorRT/measure_gpu.sh over stand-ins: what is run, in which order, on which GPU, and what is done again."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from race import PRECISIONS, RUNNERS
from utils import ROOT

STAND_IN = f"""#!/bin/sh
if [ "$1" = once.py ]; then exec {sys.executable} "$@"; fi
echo "$CUDA_VISIBLE_DEVICES $(basename $0) $*" >> calls
case "$*" in
    *"$(cat broken)"*) echo reason; exit 3 ;;
    *--collect-only*) printf "tests/test_kernels_gpu.py::test_%s\\n" one two ;;
esac
"""
ALONE = ["memory", "memory-tests", "memcheck", "racecheck"]


@pytest.fixture
def measure(tmp_path):
    """measure(*steps, **environment): the script in a folder of its own; what it printed, and the calls."""
    (tmp_path / "TensorRT").mkdir()
    for name in ("once.py", "TensorRT/measure_gpu.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for name in ("bin/python3", "bin/make", "bin/env", "TensorRT/swinv2_question.sh"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    for name in ("v1.pth", "v2.pth"):
        (tmp_path / name).touch()

    def run(*steps: str, broken: str = "no such word", **environment: str):
        (tmp_path / "broken").write_text(broken)
        (tmp_path / "calls").unlink(missing_ok=True)
        done = subprocess.run(["/bin/bash", "TensorRT/measure_gpu.sh", "v1.pth", "v2.pth", *steps], cwd=tmp_path,
                              capture_output=True, text=True, env={
                                  **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "RUN_ID": "r",
                                  "TIMED": "5", **environment})
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return done, calls

    return run


def steps(done: subprocess.CompletedProcess) -> list[str]:
    return re.findall(r"^  (\S+) +(?:\d+ s|FAILED)  ", done.stdout, re.MULTILINE)


def test_every_runner_is_raced_in_its_precisions_and_fp32_comes_last(measure):
    done, calls = measure()
    assert done.returncode == 0, done.stdout + done.stderr
    raced = [(runner, re.search(r"--precision (\S+)", call)[1]) for call in calls if "race.py" in call
             and "--prepare" not in call for runner in re.search(r"--runner (\S+)", call)[1].split(",")]
    # One is a CPU's, timm's is a peer only in FP16, and only ours has INT8.
    assert set(raced) == {(runner, precision) for runner in RUNNERS for precision in PRECISIONS if runner != "ort-cpu"
                          and precision != "int8"} - {("trt-timm", "fp32")} | {("trt-plugins", "int8")}
    precisions = [precision for _, precision in raced]
    assert precisions == sorted(precisions, key=lambda precision: precision == "fp32")
    assert all("--run-id r " in call for call in calls if "race.py" in call)


def test_one_gpu_makes_files_then_times_then_does_the_rest(measure):
    done, calls = measure()
    order = steps(done)
    assert order.index("engines-v2") < order.index("race-plugins-fp16") < order.index("race-autotune-fp32") < (
        order.index("accuracy-v1"))
    assert order[-5:] == [*ALONE, "draw"]
    assert {call.split()[0] for call in calls[:-3]} == {"5"}


def test_of_two_gpus_one_only_times(measure):
    done, calls = measure(OTHER="6")
    assert done.returncode == 0, done.stdout + done.stderr
    on_timed = [call for call in calls if call.startswith("5 ") and "Results/d" not in call and "report" not in call]
    assert len(on_timed) == 15
    assert all(any(word in call for word in ("race.py", "benchmark", "profile")) for call in on_timed)
    assert not any("--prepare" in call for call in on_timed)
    assert [name for name in steps(done) if name in ALONE] == ALONE


def test_a_failure_stops_nothing_and_is_tried_again(measure):
    done, _ = measure(broken="race.py --resume v1.pth v2.pth --run-id r --batch 1,8,32,128 --results Results "
                                 "--runner trt --")
    assert done.returncode == 1 and "failed: race-trt-fp16; RUN_ID=r goes on" in done.stderr
    assert re.search(r"^  race-trt-fp16 +FAILED  reason$", done.stdout, re.MULTILINE) and "draw" in steps(done)
    again, _ = measure()
    assert again.returncode == 0 and steps(again) == ["race-trt-fp16"]
    other, _ = measure(RUN_ID="another")
    assert len(steps(other)) > 30


def test_a_sanitizer_has_a_process_for_each_test(measure):
    _, calls = measure("memcheck", SANITIZER="mine")  # three at a time, in any order
    assert sorted(call.split()[-1] for call in calls if "env" in call.split()[1]) == [
        "tests/test_kernels_gpu.py::test_one", "tests/test_kernels_gpu.py::test_two"]
    assert all("mine --tool memcheck" in call for call in calls[1:])


def test_single_steps(measure):
    done, calls = measure("memory", "kernels", RESULTS="elsewhere")
    assert steps(done) == ["kernels", "memory"] and "--results elsewhere" in calls[1]


def test_a_checkpoint_that_is_not_there_is_trained(measure, tmp_path):
    (tmp_path / "v2.pth").unlink()
    _, calls = measure("train-v1", "train-v2")
    (call,) = calls
    assert "models/train.py --type swinv2" in call and call.endswith("--output v2.pth")
