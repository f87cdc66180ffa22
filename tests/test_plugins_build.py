"""The kernels and plugins compile, and the plugins keep their contract with TensorRT; no GPU and no TensorRT needed.

    pytest tests/test_plugins_build.py  # needs nvcc and cuBLAS; with TensorRT's headers (TENSORRT_ROOT) the plugins too

Builds into TensorRT/Plugins/build/tests, so that a second run compiles only what changed.
"""
from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from TensorRT.Plugins.swin_kernels import c_interface
from utils import alone_in

PLUGINS = Path(__file__).resolve().parents[1] / "TensorRT" / "Plugins"
BUILD = PLUGINS / "build" / "tests"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
pytestmark = pytest.mark.skipif(NVCC is None or shutil.which("make") is None, reason="no nvcc or no make here")


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """make in TensorRT/Plugins with these arguments and environment variables; one process at a time.

    For sm_75 and sm_90, by default: between them they compile both sides of every condition on the architecture. No
    kernel of this build is run: those of tests/test_kernels_gpu.py are compiled in full.
    """
    command = ["make", "-C", str(PLUGINS), f"BUILD={BUILD}", "ARCHS=75 90", "QUICK_BUILD=yes", *arguments]
    with alone_in(BUILD):
        return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def built(done: subprocess.CompletedProcess) -> None:
    """Assert that make succeeded and no compiler warned."""
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr


def needs_tensorrt_headers() -> None:
    probe = make("-n", "plugins")
    if probe.returncode != 0 and "NvInfer.h" in probe.stderr:
        pytest.skip("no TensorRT headers: set TENSORRT_ROOT to the folder whose include/ has NvInfer.h")


def test_kernels_compile_without_tensorrt():
    built(make("kernels", TENSORRT_ROOT="/nonexistent"))
    library = ctypes.CDLL(str(BUILD / "libswin_kernels.so"))
    for name in c_interface.ARGUMENTS:
        assert hasattr(library, name), name


def test_python_and_c_have_the_same_structures(tmp_path):
    """Every field at the same place and of the same kind, so that a call from Python hands over what it names."""
    kinds = {ctypes.c_void_p: "std::is_pointer_v<{0}>", ctypes.c_int: "std::is_same_v<{0}, int>",
             ctypes.c_longlong: "std::is_same_v<{0}, long long>", ctypes.c_float: "std::is_same_v<{0}, float>",
             ctypes.c_size_t: "std::is_same_v<{0}, size_t>"}
    lines = [f'#include "{header.relative_to(PLUGINS)}"' for header in sorted(PLUGINS.glob("*/*_kernel.h"))]
    lines += ["#include <cstddef>", "#include <type_traits>"]
    for structure in c_interface.ARGUMENTS.values():
        name = structure.__name__
        lines.append(f"static_assert(sizeof({name}) == {ctypes.sizeof(structure)});")
        for field, kind in structure._fields_:
            lines.append(f"static_assert(offsetof({name}, {field}) == {getattr(structure, field).offset});")
            lines.append(f"static_assert({kinds[kind].format(f'decltype({name}::{field})')});")
    source = tmp_path / "structures.cpp"
    source.write_text("\n".join(lines) + "\n")
    done = subprocess.run([NVCC, "-std=c++17", f"-I{PLUGINS}", "-c", source, "-o", tmp_path / "structures.o"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_or_unknown_field_is_an_error():
    fields = {"x": None, "y": None, "rows": 1, "type": 0, "width": 8, "epsilon": 1e-5}
    assert c_interface.filled("swin_fnorm", **fields).width == 8
    with pytest.raises(TypeError, match="swin_fnorm takes x, y, rows"):
        c_interface.filled("swin_fnorm", **fields, gamma=None)
    del fields["width"]
    with pytest.raises(TypeError, match="swin_fnorm takes x, y, rows"):
        c_interface.filled("swin_fnorm", **fields)


def test_plugin_library_builds():
    needs_tensorrt_headers()
    built(make("plugins"))
    assert (BUILD / "libswin_plugins.so").is_file()


def test_plugins_keep_their_contract():
    """Output shapes, formats, serialisation, and a refusal with its reason for each unsupported shape."""
    needs_tensorrt_headers()
    built(make("contract"))
    done = subprocess.run([BUILD / "plugin_contract"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("arguments", "environment", "message"), [
    (["kernels"], {"CUDA_HOME": "/nonexistent"}, "set CUDA_HOME to the CUDA toolkit"),
    (["kernels", "ARCHS=12"], {}, 'does not know ARCHS "12"; set ARCHS to some of'),
    (["kernels"], {"CUBLAS_ROOT": "/nonexistent"}, "set CUBLAS_ROOT to the folder whose include/ has it"),
    (["plugins"], {"TENSORRT_ROOT": "/nonexistent"}, "set TENSORRT_ROOT to the folder whose include/"),
])
def test_a_missing_setting_says_what_to_set(arguments, environment, message):
    done = make(*arguments, **environment)
    assert done.returncode != 0
    assert message in done.stderr
