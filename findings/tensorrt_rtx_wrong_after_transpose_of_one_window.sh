#!/usr/bin/env bash
# TensorRT-RTX 1.6.1: bindings 1.6.1.120, library of onnxruntime-ep-nv-tensorrt-rtx-cu13 0.4.0, parser 1.7.1 of that
# package's 0.5.0. On an NVIDIA H200, whose compute capability 9.0 is not on its list of GPUs; it says nothing of that.
#
# Behaviour: an engine of six nodes answers wrongly from batch 2 on, in every image, in FP16 and in FP32, at every
# optimization level, with an open batch and with a fixed one:
#   MatMul                p v of attention: [B, 1, 8, 49, 49] x [B, 1, 8, 49, 32]
#   Reshape               [B, 1, 1, 8, 7, 7, 32]: rank 7, two axes of length 1 (one window)
#   Transpose             perm 0 1 4 2 5 3 6: heads go behind the tokens
#   Reshape               [B, 49, 256]
#   MatMul, Add           proj, with its bias
# It is right at batch 1, and right with the same transpose written with rank 4, with one head, with two windows, and
# without the product before or the one behind.
#
# Output seen (largest error over the largest value; FP16 and TF32 round by far less than 1 %):
#   NVIDIA H200, TensorRT-RTX 1.6.1.120
#   FP16, rank 7: batch 1 6.0e-04, batch 2 5.6e-01, batch 8 7.1e-01
#   FP32, rank 7: batch 1 1.1e-04, batch 2 5.6e-01, batch 8 7.1e-01
#   FP16, rank 4: batch 1 6.0e-04, batch 2 5.7e-04, batch 8 7.2e-04
# These are figures of the program that this graph was found with, which builds it from the same numbers. The script
# itself has built the three engines, and has not run on a GPU yet.
#
# Needs a GPU of compute capability 9.0 (H100, H200), Python 3.11 or 3.12 and a package index.
# Exit status: 0 as seen; 1 changed, or a step failed, and the last line says which; 77 nothing can be said on this
# machine, which has no such GPU.
#   BUILD_ONLY=1          builds the engines, which takes no GPU, runs none, and ends with 77
#   PACKAGES=installed    takes the packages that $PYTHON has, for a host without a package index: these bindings,
#                         cuda-bindings, onnx and numpy, with LD_LIBRARY_PATH leading to libtensorrt_rtx.so.1 and
#                         libtensorrt_onnxparser_rtx.so.1
set -euo pipefail
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 || true)
if [[ ${BUILD_ONLY:-} != 1 && $capability != 9.0 ]]; then
    echo "${0##*/}: needs an H100 or H200 (compute capability 9.0), here is ${capability:-no NVIDIA GPU}; nothing was" \
        "run, and nothing is known to have changed" >&2
    exit 77
fi
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
if [[ ${PACKAGES:-} != installed ]]; then
    "$python" -m venv "$work/venv"
    python=$work/venv/bin/python
    "$python" -m pip install -q --disable-pip-version-check tensorrt-rtx-cu13-bindings==1.6.1.120 \
        cuda-bindings==13.4.4 onnx==1.20.1 numpy==2.3.5
    for version in 0.4.0 0.5.0; do  # both packages have the same files: each goes into a folder of its own
        "$python" -m pip install -q --disable-pip-version-check --no-deps --target "$work/$version" \
            "onnxruntime-ep-nv-tensorrt-rtx-cu13==$version"
    done
    # The loader asks for names that the packages have no links of.
    mkdir "$work/lib"
    ln -s "$work"/0.4.0/*/libtensorrt_rtx.so.1.6.1 "$work/lib/libtensorrt_rtx.so.1"
    ln -s "$work"/0.5.0/*/libtensorrt_onnxparser_rtx.so.1.7.1 "$work/lib/libtensorrt_onnxparser_rtx.so.1"
    export LD_LIBRARY_PATH=$work/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
cat > "$work/show.py" <<'PYTHON'
import subprocess
import sys

import numpy as np
import tensorrt_rtx_bindings as trt
from onnx import TensorProto, checker, helper, numpy_helper

HEADS, SIDE, WIDTH = 8, 7, 32
TOKENS, CHANNELS = SIDE * SIDE, HEADS * WIDTH
BATCHES = (1, 2, 8)
LIMIT = 0.01
random = np.random.default_rng(0)
WEIGHT = (random.standard_normal((CHANNELS, CHANNELS)) / CHANNELS**0.5).astype(np.float16)
BIAS = (random.standard_normal(CHANNELS) / 2).astype(np.float16)
INPUTS = {"p": (1, HEADS, TOKENS, TOKENS), "v": (1, HEADS, TOKENS, WIDTH)}
WINDOW = {7: ([0, 1, 1, HEADS, SIDE, SIDE, WIDTH], [0, 1, 4, 2, 5, 3, 6]), 4: ([0, HEADS, TOKENS, WIDTH], [0, 2, 1, 3])}


def graph(dtype, rank):
    """The ONNX graph as bytes."""
    shape, order = WINDOW[rank]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("MatMul", ["p", "v"], ["context"]),
             helper.make_node("Reshape", ["context", "window"], ["apart"]),
             helper.make_node("Transpose", ["apart"], ["turned"], perm=order),
             helper.make_node("Reshape", ["turned", "rows"], ["tokens"]),
             helper.make_node("MatMul", ["tokens", "weight"], ["product"]),
             helper.make_node("Add", ["bias", "product"], ["y"])]
    constants = {"window": np.array(shape), "rows": np.array([0, TOKENS, CHANNELS]), "weight": WEIGHT.astype(dtype),
                 "bias": BIAS.astype(dtype)}
    made = helper.make_graph(
        nodes, "one_window",
        [helper.make_tensor_value_info(name, kind, ["batch", *shape]) for name, shape in INPUTS.items()],
        [helper.make_tensor_value_info("y", kind, ["batch", TOKENS, CHANNELS])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model.SerializeToString()


def build(model):
    """The serialised engine, for batches 1 to 16."""
    builder = trt.Builder(LOGGER)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, LOGGER)
    if not parser.parse(model):
        sys.exit(f"the parser refuses the graph: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, shape in INPUTS.items():
        profile.set_shape(name, *((batch, *shape) for batch in (1, 8, 16)))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return plan if plan is not None else sys.exit("no engine was built")


def checked(result):
    """What a CUDA call gives; ends the program where it failed."""
    status, *values = result
    if int(status):
        sys.exit(f"CUDA: {status}")
    return values[0] if values else None


def run(engine, feeds):
    """The output y for inputs by name."""
    from cuda.bindings import runtime as cuda

    context = engine.create_execution_context()
    arrays = {**feeds, "y": np.empty((len(feeds["p"]), TOKENS, CHANNELS), feeds["p"].dtype)}
    pointers = {name: checked(cuda.cudaMalloc(array.nbytes)) for name, array in arrays.items()}
    for name, array in feeds.items():
        context.set_input_shape(name, array.shape)
        checked(cuda.cudaMemcpy(pointers[name], array.ctypes.data, array.nbytes,
                                cuda.cudaMemcpyKind.cudaMemcpyHostToDevice))
    for name, pointer in pointers.items():
        context.set_tensor_address(name, pointer)
    stream = checked(cuda.cudaStreamCreate())
    if not context.execute_async_v3(int(stream)):
        sys.exit("the engine did not run")
    checked(cuda.cudaStreamSynchronize(stream))
    y = arrays["y"]
    checked(cuda.cudaMemcpy(y.ctypes.data, pointers["y"], y.nbytes, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost))
    for pointer in pointers.values():
        checked(cuda.cudaFree(pointer))
    checked(cuda.cudaStreamDestroy(stream))
    return y


def feeds_of(batch, dtype):
    """Attention probabilities and values, the same numbers in FP16 and FP32."""
    random = np.random.default_rng(batch)
    p = np.exp(random.standard_normal((batch, *INPUTS["p"])))
    v = random.standard_normal((batch, *INPUTS["v"]))
    p /= p.sum(-1, keepdims=True)
    return {name: array.astype(np.float16).astype(dtype) for name, array in (("p", p), ("v", v))}


def expected(feeds):
    """The same by NumPy, in FP64."""
    context = feeds["p"].astype(np.float64) @ feeds["v"].astype(np.float64)  # [B, 1, HEADS, TOKENS, WIDTH]
    tokens = context[:, 0].transpose(0, 2, 1, 3).reshape(-1, TOKENS, CHANNELS)
    return tokens @ WEIGHT.astype(np.float64) + BIAS


LOGGER = trt.Logger(trt.Logger.ERROR)
run_too = sys.argv[1] == "run"
gpu = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True,
                     text=True).stdout.splitlines()[0] if run_too else "no GPU asked for"
print(f"{gpu}, TensorRT-RTX {trt.__version__}")
if trt.__version__ != "1.6.1.120":
    sys.exit("these are not the bindings that this was seen with")
as_seen = True
for dtype, rank, right in ((np.float16, 7, (1,)), (np.float32, 7, (1,)), (np.float16, 4, BATCHES)):
    title = f"FP{8 * np.dtype(dtype).itemsize}, rank {rank}:"
    plan = build(graph(dtype, rank))
    if not run_too:
        print(title, f"built, {plan.nbytes} bytes")
        continue
    runtime = trt.Runtime(LOGGER)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        sys.exit("the engine cannot be loaded on this GPU")
    errors = {}
    for batch in BATCHES:
        feeds = feeds_of(batch, dtype)
        y = expected(feeds)
        errors[batch] = float(np.abs(run(engine, feeds) - y).max() / np.abs(y).max())
    print(title, ", ".join(f"batch {batch} {error:.1e}" for batch, error in errors.items()))
    as_seen = as_seen and all((error <= LIMIT) == (batch in right) for batch, error in errors.items())
if not run_too:
    print("built only; whether the answers are wrong takes a GPU of compute capability 9.0")
    sys.exit(77)
sys.exit(0 if as_seen else "changed: not what was seen with these versions")
PYTHON
"$python" "$work/show.py" "$([[ ${BUILD_ONLY:-} == 1 ]] && echo build || echo run)"
