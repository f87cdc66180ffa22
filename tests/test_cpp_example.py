"""examples/cpp compiles against TensorRT's headers without a warning, links, and says what is wrong in one line.

    TENSORRT_ROOT=/path/to/TensorRT python -m pytest tests/test_cpp_example.py     # its headers are enough

That it gives an engine's logits bit for bit is for test_engines_gpu.py.
"""
from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from TensorRT import backend
from utils import ROOT

HEADERS = Path(os.environ.get("TENSORRT_ROOT", "/nonexistent")) / "include" / "NvInfer.h"
CUDA_HOME = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
compiles = pytest.mark.skipif(
    not HEADERS.exists() or not (CUDA_HOME / "include" / "cuda_runtime_api.h").exists() or shutil.which("g++") is None,
    reason="it takes g++, the CUDA toolkit, and TensorRT's headers in TENSORRT_ROOT")


def make(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", "-C", "examples/cpp", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """run_engine, linked with TensorRT-RTX where that can stand for the headers' version, else with an empty stand-in:
    what is looked for in it is then never found, and never called here."""
    folder = tmp_path_factory.mktemp("cpp")
    for name in ("Makefile", "run_engine.cpp"):
        shutil.copy(ROOT / "examples" / "cpp" / name, folder)
    provider = importlib.util.find_spec(backend.RTX_PROVIDER)
    if provider is not None:
        library = Path(provider.submodule_search_locations[0]) / backend.SONAME_RTX
    else:
        library, source = folder / "libnvinfer.so", folder / "stand_in.cpp"
        source.write_text("extern \"C\" { void* createInferRuntime_INTERNAL(void*, int) { return nullptr; }\n"
                          "int getInferLibVersion() { return 0; } }\n")
        subprocess.run(["g++", "-shared", "-fPIC", source, "-o", library], check=True)
    done = subprocess.run(["make", "-C", folder, f"TENSORRT_LIB={library}",
                           "CXXFLAGS=-O1 -Wall -Wextra -Werror -Wno-deprecated-declarations"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "run_engine"


@compiles
@pytest.mark.parametrize(("arguments", "problem"), [
    ([], "usage: run_engine PLAN IMAGES"),
    (["a.plan"], "usage: run_engine PLAN IMAGES"),
    (["a.plan", "a.f32", "--batch", "0"], "--batch: needs a whole number above zero"),
    (["a.plan", "a.f32", "--batch", "x"], "--batch: needs a whole number above zero"),
    (["a.plan", "a.f32", "--batch"], "--batch: needs a value"),
    (["a.plan", "a.f32", "--size", "7"], "--size: unknown; there are --plugins, --batch and --output"),
    (["nowhere.plan", "a.f32"], "nowhere.plan: cannot be read, or is empty; give an existing file"),
    (["a.plan", "nowhere.f32"], "nowhere.f32: cannot be read, or is empty"),
    (["a.plan", "empty"], "empty: cannot be read, or is empty"),
])
def test_what_is_wrong_is_one_line(program, tmp_path, arguments, problem):
    for name in ("a.plan", "a.f32"):
        (tmp_path / name).write_bytes(b"vtrt")
    (tmp_path / "empty").touch()
    done = subprocess.run([program, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("run_engine: error: "), done.stderr
    assert problem in done.stderr


def test_the_source_can_be_read_in_one_sitting():
    assert len((ROOT / "examples" / "cpp" / "run_engine.cpp").read_text().splitlines()) <= 200


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(("setting", "problem"), [
    ("TENSORRT_ROOT=/nonexistent", "set TENSORRT_ROOT to the folder whose include/ has it")])
def test_a_missing_setting_says_what_to_set(setting, problem):
    done = make(setting)
    assert done.returncode != 0 and problem in done.stderr
