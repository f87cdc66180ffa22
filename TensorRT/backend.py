"""The TensorRT that the scripts use: `tensorrt` (8.6, 10 or 11), or TensorRT-RTX, whose API is that of TensorRT 11.

    trt = load()

Which one: what --backend or $TRT_BACKEND names, else the first of both that can be imported. This module by itself
imports neither, so that --help works everywhere. What a version can do is asked of the version (hasattr), not of its
number: TensorRT-RTX counts from 1.0 and has what TensorRT 11 has.
"""
from __future__ import annotations

import argparse
import ctypes
import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from TensorRT.alias_library import load_alias
from utils import ROOT, UserError, existing_file, shown

# The modules that each may be installed as.
BACKENDS = {"tensorrt": ("tensorrt", "tensorrt_bindings"), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
# The bindings of TensorRT-RTX on the package index have no libraries; onnxruntime's provider for it brings them.
RTX_PROVIDER = "onnxruntime_ep_nv_tensorrt_rtx"
SONAME_RTX = "libtensorrt_rtx.so.1"
RTX_LIBRARIES = ("libtensorrt_rtx", "libtensorrt_onnxparser_rtx")
# Further names by which TensorRT-RTX is asked for: by its parser, and by libraries built with TensorRT 11's headers.
RTX_ALIASES = ("libtensorrt_rtx.so", "libnvinfer.so.11")

CARRIED = "carried"  # in the place of a plugin library: the one inside the plan (build.sh --carry-plugins)
PLUGIN_LIBRARY = ROOT / "TensorRT" / "Plugins" / "build" / "libswin_plugins.so"


# --- which one -----------------------------------------------------------------------------------------------


class _Choose(argparse.Action):
    """Puts the flag's value into the environment, where `load` and the scripts that this one starts read it."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        os.environ["TRT_BACKEND"] = values
        setattr(namespace, self.dest, values)


def add_plugins_argument(parser: argparse.ArgumentParser) -> None:
    """Add --plugins, which Engine and `load_plugins` take."""
    parser.add_argument("--plugins", metavar="LIB",
                        help="plugin library; default this project's where it is built; none for none; carried for the "
                             "one inside the plan, whose code then runs here: only plans that you trust")


def add_backend_argument(parser: argparse.ArgumentParser) -> None:
    """Add --backend, which `load` obeys once the arguments are parsed."""
    parser.add_argument("--backend", choices=tuple(BACKENDS), action=_Choose,
                        help="which TensorRT; default $TRT_BACKEND, else the first that can be imported")


@functools.cache
def load() -> ModuleType:
    """The TensorRT module, imported.

    Raises:
        UserError: $TRT_BACKEND names none; none can be imported (says why each cannot); bindings and library are of
            different versions.
    """
    wanted = os.environ.get("TRT_BACKEND", "")
    if wanted and wanted not in BACKENDS:
        raise UserError(f"TRT_BACKEND={wanted}: must be {' or '.join(BACKENDS)}")
    reasons = []
    for backend in [wanted] if wanted else BACKENDS:
        try:
            return _import(backend)
        except (ImportError, OSError) as error:
            reasons.append(f"{backend} ({_reason(error)})")
    raise UserError(f"{sys.executable}: cannot import {' nor '.join(reasons)}; run this with the Python that has "
                    "TensorRT (scripts take it from $TRT_PYTHON), or pip install -r requirements.txt for TensorRT-RTX")


def _import(backend: str) -> ModuleType:
    """Import a backend; raises ImportError or OSError where that fails."""
    names = [name for name in BACKENDS[backend] if importlib.util.find_spec(name) is not None]
    if not names:
        raise ModuleNotFoundError("not installed")
    if backend == "tensorrt_rtx":
        _preload_rtx()
    trt = importlib.import_module(names[0])
    _check_versions(trt)
    return trt


def _reason(error: Exception) -> str:
    """Why an import failed, in a few words, with the remedy where one is known."""
    text = str(error).splitlines()[0]
    if "cannot open shared object file" in text:
        return f"its bindings are there, {text.partition(':')[0]} is not; LD_LIBRARY_PATH may name its folder"
    return text


def _preload_rtx() -> None:
    """Load TensorRT-RTX for the whole process, so that bindings, parser and plugin libraries find it by every name.

    Libraries that LD_LIBRARY_PATH leads to go first; else those inside the installed provider package, whose folder no
    loader searches. Does nothing where there are none: the import then fails and says so.
    """
    spec = importlib.util.find_spec(RTX_PROVIDER)
    folders = [Path(folder) for folder in ((spec.submodule_search_locations or []) if spec else [])]
    for library in RTX_LIBRARIES:
        if not _found(f"{library}.so.1"):
            for path in sorted(path for folder in folders for path in folder.glob(f"{library}.so.1.*"))[-1:]:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    if _found(SONAME_RTX):
        for name in RTX_ALIASES:
            if not _found(name):
                load_alias(name, SONAME_RTX)


def _found(library: str) -> bool:
    """Load a library only by its name, with global symbols; whether the loader finds it."""
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _check_versions(trt: ModuleType) -> None:
    """UserError where the bindings were made for another version than the library's: what they do then is undefined.

    TensorRT itself says nothing: bindings 1.7.1 make a builder of library 1.6.1.
    """
    found = library_version(trt)
    bindings = tuple(int(part) for part in trt.__version__.split(".")[:3])
    if found is not None and found != bindings:
        raise UserError(f"{trt.__name__} {trt.__version__}: its library is of version {'.'.join(map(str, found))}; "
                        "install bindings and library of one version")


def library_version(trt: ModuleType) -> tuple[int, ...] | None:
    """Version of the library that the bindings found, e.g. (1, 7, 1); None where it does not tell (before 10)."""
    try:
        library = ctypes.CDLL(library_name(trt))
        return tuple(getattr(library, f"getInferLib{part}Version")() for part in ("Major", "Minor", "Patch"))
    except (OSError, AttributeError):
        return None


def is_rtx(trt: ModuleType) -> bool:
    """Whether this is TensorRT-RTX."""
    return trt.__name__ in BACKENDS["tensorrt_rtx"]


def library_name(trt: ModuleType) -> str:
    """Name by which a process finds the library of the loaded bindings."""
    return SONAME_RTX if is_rtx(trt) else f"libnvinfer.so.{trt.__version__.split('.')[0]}"


# --- what it can ---------------------------------------------------------------------------------------------


def strongly_typed(trt: ModuleType) -> bool:
    """Whether networks are built with the graph's types: always where that can be had, from TensorRT 9.1 on."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def builds_without_gpu(trt: ModuleType) -> bool:
    """Whether an engine can be built where there is no GPU. TensorRT itself times kernels on one."""
    return hasattr(trt.IBuilderConfig, "set_compute_capability")


# --- plugin libraries ----------------------------------------------------------------------------------------


def load_plugins(library: str | Path | None = None) -> None:
    """Register the plugins of a shared library with TensorRT.

    Args:
        library: path of the library; None takes this project's own where it has been built; "none" takes none, nor does
            CARRIED, which leaves it to the plan.

    Raises:
        UserError: there is no such file, or it is not a library that this TensorRT can load.
    """
    if str(library) in ("none", CARRIED) or (library is None and not PLUGIN_LIBRARY.exists()):
        return
    path = existing_file(PLUGIN_LIBRARY if library is None else library, "a plugin library (--plugins)").resolve()
    trt = load()
    try:
        # For a library that does not link TensorRT's itself: Python has loaded that with local symbols only.
        ctypes.CDLL(library_name(trt), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be loaded as a plugin library of {described(trt)}: {error}") from None


def described(trt: ModuleType) -> str:
    """Name and version for messages."""
    return f"TensorRT{'-RTX' if is_rtx(trt) else ''} {trt.__version__}"
