"""TensorRT and CUDA as every script here uses them: imported with a clear error, every return code checked.

Importing this module needs a Python that has a TensorRT (backend.py says which); scripts import it after they have
parsed their arguments, so that --help works everywhere. It needs no GPU, and no cuda-python until something is run:
`require_gpu()` says what is lacking.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from TensorRT import backend
from utils import UserError

try:
    from cuda.bindings import runtime as cudart
except ImportError:
    try:
        from cuda import cudart  # the module's name before cuda-python 12.8
    except ImportError:
        cudart = None  # require_gpu says so

trt = backend.load()


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
        return in_one_line(self.errors[0]) if self.errors else "TensorRT gave no reason"


def in_one_line(message: str, longest: int = 300) -> str:
    """A message of TensorRT's without line breaks, cut in the middle to at most `longest` characters.

    TensorRT 11 answers a graph whose plugins are missing with a sentence for each node: thousands of characters.
    """
    text = " ".join(message.split())
    if len(text) <= longest:
        return text
    half = (longest - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


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


def _error_text(status: Any) -> str:
    return f"{cudart.cudaGetErrorString(status)[1].decode()} (CUDA error {int(status)})"


def require_gpu() -> None:
    """UserError where no GPU can be used. TensorRT 8.6 itself crashes without one."""
    problem = gpu_problem()
    if problem:
        raise UserError(problem)


def gpu_problem() -> str:
    """Why no GPU can be used here, in words for a user; "" where one can."""
    if cudart is None:
        return f"{sys.executable}: cannot import cuda-python; python -m pip install cuda-python"
    status, count = cudart.cudaGetDeviceCount()
    if status != cudart.cudaError_t.cudaSuccess:
        return f"no GPU can be used here: {_error_text(status)}; run this on a machine with an NVIDIA GPU"
    if count == 0:
        return "no GPU can be used here: CUDA finds none; run this on a machine with an NVIDIA GPU"
    return ""


def free_memory() -> int:
    """Free device memory in bytes, all processes counted."""
    free, _total = cuda(cudart.cudaMemGetInfo)
    return free


def versions() -> dict[str, str]:
    """TensorRT's and CUDA's versions for Results/environment."""
    runtime = cuda(cudart.cudaRuntimeGetVersion)
    name = "tensorrt-rtx" if backend.is_rtx(trt) else "tensorrt"
    return {name: trt.__version__, "cuda runtime": f"{runtime // 1000}.{runtime % 1000 // 10}"}
