"""Which TensorRT is here, and can it build engines and run them on this machine?

    $TRT_PYTHON TensorRT/check.py      # TensorRT-RTX 1.7.1.116 builds engines here; it cannot run them: no GPU ...

Exit status 0: it builds and runs them; 3: it only builds them; 1: neither, and why. run_all.sh and race.py ask it.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from TensorRT import backend
from utils import UserError, run_script

BUILDS_ONLY = 3


def rtx_problem() -> str:
    """Why TensorRT-RTX cannot run engines on this GPU; "" if it can. It refuses some, but only when it loads an engine.

    Builds and loads an engine of one identity layer, in a tenth of a second.
    """
    from TensorRT.engine import refusal
    from TensorRT.trt_runtime import LOGGER, trt

    LOGGER.clear()
    builder = trt.Builder(LOGGER)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    tensor = network.add_input("x", trt.float32, (1,))
    network.mark_output(network.add_identity(tensor).get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        return LOGGER.complaint()
    return "" if trt.Runtime(LOGGER).deserialize_cuda_engine(plan) else f"its engine {refusal(LOGGER.errors, b'')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    backend.add_backend_argument(parser)
    parser.parse_args()
    trt = backend.load()
    from TensorRT.trt_runtime import gpu_problem

    name, problem = backend.described(trt), gpu_problem()
    if problem and not backend.builds_without_gpu(trt):
        raise UserError(f"{name} is here; {problem}")
    problem = problem or (rtx_problem() if backend.is_rtx(trt) else "")
    if problem:
        print(f"{name} builds engines here; it cannot run them: {problem}")
        sys.exit(BUILDS_ONLY)
    print(f"{name} builds and runs engines here")


if __name__ == "__main__":
    run_script(main)
