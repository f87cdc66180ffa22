"""Puts libswin_kernels.so into the package swin_kernels: the Makefile makes it, or $SWIN_KERNELS names one.

    pip install --no-build-isolation TensorRT/Plugins              # for all architectures; needs nvcc
    ARCHS=90 pip install --no-build-isolation TensorRT/Plugins     # for one, in a sixth of the time

Without isolation the Makefile finds cuBLAS and CUTLASS where pip has put them beside PyTorch; its settings (CUDA_HOME,
CUBLAS_ROOT, CUTLASS_ROOT, ARCHS) are environment variables. What pyproject.toml can say stands there.
"""
from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


class WithLibrary(build_py):
    def run(self) -> None:
        super().run()
        library = Path(os.environ.get("SWIN_KERNELS") or made())
        if not library.is_file():
            sys.exit(f"SWIN_KERNELS={library}: no such file; give libswin_kernels.so, or unset it to make one")
        shutil.copy2(library, Path(self.build_lib) / "swin_kernels" / "libswin_kernels.so")


class ForThisPlatform(bdist_wheel):
    """The library is for one processor and operating system, and for every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", f"linux_{platform.machine()}"


class WithBinary(Distribution):
    def has_ext_modules(self) -> bool:
        return True


def made() -> Path:
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    if subprocess.run(["make", "-C", HERE, "kernels", "BUILD=build/pip"], env=environment).returncode:
        sys.exit("swin_kernels: libswin_kernels.so was not made, for the reason above")
    return HERE / "build" / "pip" / "libswin_kernels.so"


setup(cmdclass={"build_py": WithLibrary, "bdist_wheel": ForThisPlatform}, distclass=WithBinary)
