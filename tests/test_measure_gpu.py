"""Results/measure_gpu.mk as far as a machine without a GPU shows it: what would be run, in which order, and where."""
from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from race import PRECISIONS, RUNNERS
from utils import ROOT

TIMED, OTHER = "5", "6"  # no GPUs of a usual number, so that a default would show


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(["make", "-f", "Results/measure_gpu.mk", "V1=a.pth", "V2=b.pth", f"TIMED={TIMED}",
                           f"OTHER={OTHER}", *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def commands() -> dict[str, tuple[str, str]]:
    """name of each step: (its GPU, its command), in the order in which one job at a time runs them."""
    done = make("-n", "RUN_ID=test")
    assert done.returncode == 0, done.stderr
    steps = re.findall(r'echo "\$\(date \+%T\) (\S+)"; if \(export CUDA_VISIBLE_DEVICES=(\d*); (.*?)\) > \.cache',
                       done.stdout.replace("\\\n", " "))
    return {name: (gpu, command) for name, gpu, command in steps}


def test_a_dry_run_leaves_nothing(commands):
    assert not (ROOT / ".cache/measure_gpu/test").exists()


def test_every_runner_is_raced_in_its_precisions(commands):
    raced = {(runner, precision) for _, command in commands.values() if "race.py" in command
             for runner in re.search(r"--runner (\S+)", command)[1].split(",")
             for precision in re.search(r"--precision (\S+)", command)[1].split(",")}
    # One is a CPU's, timm's is a peer in FP16 alone, and INT8 is ours alone.
    wanted = {(runner, precision) for runner in RUNNERS for precision in PRECISIONS if runner != "ort-cpu"
              and precision != "int8"} - {("trt-timm", "fp32")} | {("trt-plugins", "int8")}
    assert raced == wanted


def test_the_timed_gpu_has_one_thing_to_do_at_a_time(commands):
    """But for engines, which are built there several at a time, and for training, before all else."""
    recipes = make("-n", "RUN_ID=test").stdout.replace("\\\n", " ").splitlines()
    for name, (gpu, _) in commands.items():
        recipe, = (line for line in recipes if f' {name}"; if ' in line)
        lock = re.search(r"flock (-\w) 9;", recipe)
        wanted = None if gpu != TIMED or name.endswith(".pth") else "-s" if name.endswith(".plan") else "-x"
        assert (lock and lock[1]) == wanted, name


def test_fp32_comes_after_all_of_fp16():
    done = make("-n", "RUN_ID=test", "race-torch-fp32").stdout
    for precision in PRECISIONS:
        assert (f'race-ort-{precision}"; if ' in done) == (precision == "fp16")


def test_what_is_timed_is_built_before(commands):
    order = list(commands)
    for name, (_, command) in commands.items():
        for plan in re.findall(r"--plan (.*)", command):
            for path in re.findall(r"TRT_Engine/(\S+\.plan)", plan):
                assert path in order[:order.index(name)], f"{name} needs {path}"
    for plan in ("swinv1_timm_b1_fp16.plan", "swinv2_timm_b128_fp16.plan", "swinv1_fp16.plan"):
        assert order.index(plan) < order.index("race-trt-fp16")


def test_memory_is_measured_when_the_other_gpu_has_nothing_else_to_do(commands):
    order = list(commands)
    behind = [name for name in order[order.index("memory") + 1:] if commands[name][0] == OTHER]
    assert behind == ["memory-tests", "memcheck", "racecheck", "compiled-max-autotune-fp32"]  # each waits
    memory = make("-n", "RUN_ID=test", "memory").stdout
    for name, (gpu, _) in commands.items():
        if gpu == OTHER and name not in ("memory", *behind):
            assert f' {name}"; if ' in memory, f"memory does not wait for {name}"


@pytest.fixture
def checkout(tmp_path):
    """This checkout, with a folder onnx/ and a .cache/ of its own."""
    for path in ROOT.iterdir():
        if path.name not in ("onnx", ".cache", ".git"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "onnx").mkdir()
    for path in ROOT.glob("onnx/*.py"):
        (tmp_path / "onnx" / path.name).symlink_to(path)
    return tmp_path


def test_a_step_that_fails_is_named_and_the_status_says_so(checkout):
    """A checkpoint that cannot be read, and what would be made of it; what was made before of another goes."""
    broken, old = checkout / "broken.pth", checkout / "onnx/swinv1.onnx"
    broken.write_text("no checkpoint")
    old.write_text("of another checkpoint")
    os.utime(old, (0, 0))
    for target in ("all", "race-plugins-fp16"):
        done = make("RUN_ID=test", f"V1={broken}", f"V2={broken}", "-o", "report", ".cache/measure_gpu/data1", target,
                    cwd=checkout)
        assert done.returncode == 2, target
        assert re.search(r"swinv1\.onnx FAILED: .*broken\.pth", done.stdout), done.stdout + done.stderr
        assert "data1 FAILED" in done.stdout and not (checkout / ".cache/measure_gpu/data1").exists()
        assert not old.exists()
