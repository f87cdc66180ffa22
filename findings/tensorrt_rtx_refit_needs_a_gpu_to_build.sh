#!/usr/bin/env bash
# TensorRT-RTX 1.7.1: bindings 1.7.1.116, library of onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0. On a machine without an
# NVIDIA GPU, where this version builds engines.
#
# Behaviour: an engine whose weights can be refitted is not built there. A network of one product is refused with an
# internal error of the compiler, which names neither refitting nor the GPU. So it is with the flags REFIT,
# REFIT_IDENTICAL and STRIP_PLAN, and with REFIT_INDIVIDUAL as soon as one tensor of weights is marked.
#
# Output seen:
#   TensorRT-RTX 1.7.1.116
#   no flag: built
#   REFIT: refused: ... MyelinCheckException: graph_jit.cpp:278: CHECK(status == CUDA_SUCCESS) failed. ...
#   REFIT_IDENTICAL: refused: ... (the same)
#   STRIP_PLAN: refused: ... (the same)
#
# Needs no GPU to be there, Python 3.11 or 3.12 and a package index.
# Exit status: 0 as seen; 1 changed, or a step failed; 77 nothing can be said here, where there is a GPU.
set -euo pipefail
if nvidia-smi -L &> /dev/null; then
    echo "${0##*/}: is about machines without a GPU, and here is one; nothing was run" >&2
    exit 77
fi
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check tensorrt-rtx-cu13-bindings==1.7.1.116 numpy==2.3.5
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps --target "$work/provider" \
    onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0
mkdir "$work/lib"
ln -s "$work"/provider/*/libtensorrt_rtx.so.1.7.1 "$work/lib/libtensorrt_rtx.so.1"
ln -s "$work"/provider/*/libtensorrt_onnxparser_rtx.so.1.7.1 "$work/lib/libtensorrt_onnxparser_rtx.so.1"
cat > "$work/show.py" <<'PYTHON'
import sys

import numpy as np
import tensorrt_rtx_bindings as trt


class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []

    def log(self, severity, message):
        if severity <= trt.ILogger.ERROR:
            self.errors.append(" ".join(message.split()))


print(f"TensorRT-RTX {trt.__version__}")
weight, logger, seen = np.ones((64, 64), np.float32), Logger(), {}
for flag in ("", "REFIT", "REFIT_IDENTICAL", "STRIP_PLAN"):
    logger.errors.clear()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    x = network.add_input("x", trt.float32, (8, 64))
    product = network.add_matrix_multiply(x, trt.MatrixOperation.NONE, network.add_constant((64, 64), weight).get_output(0),
                                          trt.MatrixOperation.NONE)
    network.mark_output(product.get_output(0))
    config = builder.create_builder_config()
    if flag:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    plan = builder.build_serialized_network(network, config)
    told = "; ".join(logger.errors)
    seen[flag] = "built" if plan is not None else "CUDA" if "CHECK(status == CUDA_SUCCESS) failed" in told else "other"
    print(f"{flag or 'no flag'}: {'built' if plan is not None else f'refused: {told[:300]}'}")
if seen != {"": "built", "REFIT": "CUDA", "REFIT_IDENTICAL": "CUDA", "STRIP_PLAN": "CUDA"}:
    sys.exit("changed: not what this script's head says")
PYTHON
LD_LIBRARY_PATH=$work/lib "$work/venv/bin/python" "$work/show.py"
