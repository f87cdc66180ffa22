"""TensorRT and CUDA as every script here uses them: imported with a clear error, every return code checked.

Importing this module needs the Python that has tensorrt and cuda-python; scripts import it after they have parsed
their arguments, so that --help works everywhere. It needs no GPU: `require_gpu()` says whether there is one.
"""
from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils import ROOT, UserError, existing_file, shown

try:
    import tensorrt as trt
except ImportError as error:
    raise UserError(f"{sys.executable}: cannot import tensorrt ({error}); "
                    "run this with the Python that has TensorRT (scripts take it from $TRT_PYTHON)") from None
try:
    from cuda.bindings import runtime as cudart
except ImportError:
    try:
        from cuda import cudart  # the module's name before cuda-python 12.8
    except ImportError as error:
        raise UserError(f"{sys.executable}: cannot import cuda-python ({error}); "
                        "python -m pip install cuda-python") from None

PLUGIN_LIBRARY = ROOT / "TensorRT" / "Plugins" / "build" / "libswin_plugins.so"
TRT_MAJOR = int(trt.__version__.split(".")[0])


class Logger(trt.ILogger):
    """Collects what TensorRT complains about, and hands every message to `listener` where one is set.

    TensorRT keeps the first logger that a process gives it, so there is one, `LOGGER`.
    """

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.listener: Callable[[int, str], None] | None = None

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        """Called by TensorRT. Severity 0 internal error, 1 error, 2 warning, 3 info, 4 verbose."""
        level = int(severity)
        if level <= int(trt.ILogger.ERROR):
            self.errors.append(message.strip())
        elif level == int(trt.ILogger.WARNING):
            self.warnings.append(message.strip())
        if self.listener is not None:
            self.listener(level, message.strip())

    def clear(self) -> None:
        """Forget what was collected: before an operation whose own complaints are wanted."""
        self.errors.clear()
        self.warnings.clear()

    def complaint(self) -> str:
        """The first error collected (the later ones follow from it), or a word that there was none."""
        return self.errors[0] if self.errors else "TensorRT gave no reason"


LOGGER = Logger()


def cuda(call: Callable[..., tuple], *arguments: Any) -> Any:
    """Make one call of the CUDA runtime and return what it returns, without the status.

    Raises:
        UserError: the call failed; names the call and CUDA's own words for the status.
    """
    status, *values = call(*arguments)
    if status != cudart.cudaError_t.cudaSuccess:
        raise UserError(f"{call.__name__}: {_error_text(status)}")
    return values[0] if len(values) == 1 else tuple(values)


def _error_text(status: cudart.cudaError_t) -> str:
    return f"{cudart.cudaGetErrorString(status)[1].decode()} (CUDA error {int(status)})"


def require_gpu() -> None:
    """UserError where CUDA finds no GPU. TensorRT 8.6 itself crashes there instead of saying so."""
    status, count = cudart.cudaGetDeviceCount()
    if status != cudart.cudaError_t.cudaSuccess:
        raise UserError(f"no GPU can be used here: {_error_text(status)}; run this on a machine with an NVIDIA GPU")
    if count == 0:
        raise UserError("no GPU can be used here: CUDA finds none; run this on a machine with an NVIDIA GPU")


def load_plugins(library: str | Path | None = None) -> None:
    """Register the plugins of a shared library with TensorRT.

    Args:
        library: path of the library; None takes this project's own where it has been built, and "none" takes none.

    Raises:
        UserError: there is no such file, or it is not a library that this TensorRT can load.
    """
    if str(library) == "none" or (library is None and not PLUGIN_LIBRARY.exists()):
        return
    path = existing_file(PLUGIN_LIBRARY if library is None else library, "a plugin library (--plugins)")
    try:
        # For a library that does not link libnvinfer itself: Python has loaded that with local symbols only.
        ctypes.CDLL(f"libnvinfer.so.{TRT_MAJOR}", mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(path.resolve()), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be loaded as a plugin library of TensorRT {trt.__version__}: "
                        f"{error}") from None


def free_memory() -> int:
    """Free device memory in bytes, all processes counted."""
    free, _total = cuda(cudart.cudaMemGetInfo)
    return free


def versions() -> dict[str, str]:
    """TensorRT's and CUDA's versions for Results/environment."""
    runtime = cuda(cudart.cudaRuntimeGetVersion)
    return {"tensorrt": trt.__version__, "cuda runtime": f"{runtime // 1000}.{runtime % 1000 // 10}"}
