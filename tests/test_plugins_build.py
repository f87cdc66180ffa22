"""The kernels and plugins compile, and the plugins keep their contract with TensorRT; no GPU and no TensorRT needed.

    pytest tests/test_plugins_build.py  # needs nvcc and cuBLAS; with TensorRT's headers (TENSORRT_ROOT) the plugins too

Builds into TensorRT/Plugins/build/tests, so that a second run compiles what changed alone.
"""
from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[1] / "TensorRT" / "Plugins"
BUILD = PLUGINS / "build" / "tests"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
C_FUNCTIONS = ["swin_layernorm", "swin_add_layernorm", "swin_layernorm_add", "swin_patch_merge", "swin_fnorm",
               "swin_attention", "swin_linear", "swin_mlp", "swin_linear_int8", "swin_layernorm_int8",
               "swin_layernorm_add_int8", "swin_quantize", "swin_attention_int8",
               "swin_attention_branch_int8"]

pytestmark = pytest.mark.skipif(NVCC is None or shutil.which("make") is None, reason="no nvcc or no make here")


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """make in TensorRT/Plugins with these arguments and environment variables, for sm_80 and sm_90 by default."""
    command = ["make", "-C", str(PLUGINS), f"BUILD={BUILD}", "ARCHS=80 90", *arguments]
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
    for name in C_FUNCTIONS:
        assert hasattr(library, name), name


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
