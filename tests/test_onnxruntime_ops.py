"""The kernels as onnxruntime's custom operators: the adapter (TensorRT/Plugins/common/onnxruntime) on a CPU.

    ORT_INCLUDE=.../onnxruntime-linux-x64-1.31.1/include pytest tests/test_onnxruntime_ops.py   # needs nvcc

The library is built as for a GPU, and loaded and asked by onnxruntime. A second one is built for onnxruntime's CPU
provider, with Python functions in the kernels' place (custom_ops_on_cpu.cpp): they compute by swin_kernels/reference.py
from what the adapter hands to the C functions, and the result is compared with PyTorch's operators on the same tensors.
"""
from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from kernels_on_cpu import compute
from onnx import TensorProto, helper
from test_plugins_build import BUILD, NVCC, PLUGINS, built, make
from torch import Tensor

from data.batches import real_images
from graphs.sessions import onnx_logits, onnx_session
from TensorRT.Plugins import swin_kernels
from TensorRT.Plugins.swin_kernels import c_interface
from utils import ROOT, alone_in

ORT_INCLUDE = os.environ.get("ORT_INCLUDE", "")
needs_headers = pytest.mark.skipif(
    not ORT_INCLUDE or NVCC is None,
    reason="set ORT_INCLUDE to include/ of a release archive of onnxruntime; needs nvcc")

ELEMENTS = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}
NUMPY = {torch.float32: np.float32, torch.float16: np.float16}


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def node_graph(op: str, inputs: list[Tensor | None], outputs: list[torch.dtype], **attributes) -> bytes:
    """A graph of one node, as the surgery scripts write it."""
    names = ["" if value is None else f"input_{i}" for i, value in enumerate(inputs)]
    given = [helper.make_tensor_value_info(name, ELEMENTS[value.dtype], [None] * value.ndim)
             for name, value in zip(names, inputs) if value is not None]
    results = [helper.make_tensor_value_info(f"output_{i}", ELEMENTS[dtype], None) for i, dtype in enumerate(outputs)]
    node = helper.make_node(op, names, [value.name for value in results], name="node", domain="swin",
                            plugin_version="1", plugin_namespace="swin", **attributes)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("swin", 1)]
    return helper.make_model(helper.make_graph([node], "graph", given, results), opset_imports=opsets,
                             ir_version=8).SerializeToString()


def session(graph: bytes, library: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run(graph: bytes, library: Path, inputs: list[Tensor | None]) -> list[Tensor]:
    feeds = {f"input_{i}": value.numpy() for i, value in enumerate(inputs) if value is not None}
    return [torch.from_numpy(value) for value in session(graph, library).run(None, feeds)]


# --- Python in the kernels' place -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def on_cpu() -> Path:
    """The custom operators for onnxruntime's CPU provider, with `compute` in the kernels' place."""
    library, folder = BUILD / "libswin_onnxruntime_cpu.so", BUILD / "onnxruntime_cpu"
    sources = [PLUGINS / "common" / "operator.cpp", PLUGINS / "common" / "onnxruntime" / "ops.cpp",
               *sorted(path for path in PLUGINS.glob("*/*_plugin.cpp") if path.parent.name != "Int8"),
               Path(__file__).parent / "custom_ops_on_cpu.cpp"]
    with alone_in(folder):
        done = subprocess.run(
            [NVCC, "-std=c++17", "-O0", "-Xcompiler", "-Wall,-Wextra,-fPIC", "-shared", "-cudart", "none",
             "-DSWIN_ONNXRUNTIME", '-DSWIN_PROVIDER="CPUExecutionProvider"', f"-I{PLUGINS}", "-isystem", ORT_INCLUDE,
             *sources, "-o", library], capture_output=True, text=True, check=False)
    built(done)
    return library


@pytest.fixture
def refused(on_cpu) -> list[str]:
    """Sets the kernels; what went wrong in them."""
    problems = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    def callback(name, address):
        try:
            compute(name.decode(), c_interface.ARGUMENTS[name.decode()].from_address(address))
        except (AssertionError, RuntimeError, ValueError, TypeError) as problem:  # ctypes would print and go on
            problems.append(repr(problem))
            return 1
        return 0

    place = ctypes.c_void_p.in_dll(ctypes.CDLL(str(on_cpu)), "swin_callback")
    place.value = ctypes.cast(callback, ctypes.c_void_p).value
    yield problems
    assert not problems


C, HIDDEN = 48, 104


def cases(dtype: torch.dtype) -> dict[str, tuple[str, list[Tensor | None], dict, object]]:
    """Of each node type: op, inputs, attributes, and what PyTorch's operator gives for them."""
    x, residual = draw(2, 5, 6, C, dtype=dtype), draw(2, 5, 6, C, dtype=dtype, seed=1)
    gamma, beta = draw(C), draw(C, seed=1)
    shapes = (HIDDEN, C), (HIDDEN,), (C, HIDDEN), (C,), (C, C), (C,)
    weights = [(draw(*shape, seed=2) / 7).to(dtype) for shape in shapes]
    attended = draw(2, 5, 6, C, dtype=dtype, seed=3)
    qkv, bias, padding, scale = draw(2, 5, 6, 3 * C, dtype=dtype), draw(3, 12, 16), draw(3 * C), draw(3).exp()
    windows = {"num_heads": 3, "window_height": 3, "window_width": 4, "shift_height": 1, "shift_width": 2,
               "scale": 0.25, "mask_value": -100.0}
    images, patch = draw(2, 3, 10, 9), draw(C, 3, 4, 3) / 6
    ops = swin_kernels
    attention = [ops.attention(qkv, bias, padding, logits, 3, (3, 4), (1, 2), 0.25, -100.0, first, covered)
                 for logits, first, covered in ((None, True, False), (scale, False, True))]
    return {
        "layer_norm": ("SwinLayerNorm", [x], {"epsilon": 1e-5}, ops.layer_norm(x)),
        "with_params": ("SwinLayerNormWithParams", [x, gamma, beta], {"epsilon": 1e-3},
                        ops.layer_norm(x, gamma, beta, 1e-3)),
        "add_norm": ("SwinAddLayerNorm", [x, residual, gamma, beta], {"epsilon": 1e-5},
                     ops.add_layer_norm(x, residual, gamma, beta)),
        "norm_add": ("SwinLayerNormAdd", [x, residual, gamma, beta], {"epsilon": 1e-5},
                     ops.layer_norm_add(x, residual, gamma, beta)),
        "merge": ("SwinPatchMerge", [x], {}, ops.patch_merge(x)),
        "merge_norm": ("SwinPatchMergeLayerNorm", [x, draw(4 * C), draw(4 * C, seed=1)], {"epsilon": 1e-5},
                       ops.patch_merge(x, draw(4 * C), draw(4 * C, seed=1))),
        "fnorm": ("SwinFNorm", [x], {"epsilon": 1e-12}, torch.nn.functional.normalize(x.float(), dim=-1).to(dtype)),
        "attention": ("SwinAttention", [qkv, bias, padding],
                      {**windows, "roll_first": 1, "shift_if_covered": 0}, attention[0]),
        "attention_v2": ("SwinAttention", [qkv, bias, padding, scale],
                         {**windows, "roll_first": 0, "shift_if_covered": 1}, attention[1]),
        "linear": ("SwinLinear", [x, *weights[:2]], {"gelu": 1}, ops.linear(x, *weights[:2], None, 1)),
        "linear_residual": ("SwinLinear", [x, *weights[4:], residual], {"gelu": 0, "plain_fp32": 1},
                            ops.linear(x, *weights[4:], residual)),
        "mlp": ("SwinMlp", [x, gamma, beta, *weights[:4]], {"norm_first": 1, "epsilon": 1e-5, "gelu": 1},
                ops.mlp(x, gamma, beta, *weights[:4], True)),
        "mlp_v2": ("SwinMlp", [x, gamma, beta, *weights[:4], attended, *weights[4:], gamma, beta],
                   {"norm_first": 0, "epsilon": 1e-5, "gelu": 2},
                   ops.mlp(x, gamma, beta, *weights[:4], False, 1e-5, attended, *weights[4:], gamma, beta, 2)),
        "embed": ("SwinPatchEmbed", [images, patch, draw(C), gamma, beta],
                  {"epsilon": 1e-5, "patch_height": 4, "patch_width": 3, "ceil": 1, "y_type": c_interface.TYPES[dtype]},
                  ops.patch_embed(images, patch, draw(C), gamma, beta, 1e-5, dtype, True)),
    }


@needs_headers
@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("case", cases(torch.float32))
def test_nodes_reach_the_kernels_as_they_are(case, dtype, on_cpu, refused):
    """Attributes, shapes, types, optional inputs and workspaces: the kernels are called with what the node says."""
    op, inputs, attributes, expected = cases(dtype)[case]
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    graph = node_graph(op, inputs, [value.dtype for value in expected], **attributes)
    for y, value in zip(run(graph, on_cpu, inputs), expected):
        assert y.dtype == value.dtype and torch.equal(y, value)


@needs_headers
@pytest.mark.parametrize("name", ["swin_micro", "swinv2_micro"])
def test_a_patched_fp16_graph_runs_whole(name, tmp_path, on_cpu, refused):
    """All nodes of a model, beside their reference meaning in standard operators (graphs/reference.py)."""
    graph, patched = tmp_path / "graph.onnx", tmp_path / "graph_attention_fp16.onnx"
    for script, *arguments in (("onnx/export_onnx.py", "--cfg", f"models/{name}.yaml", "--output", graph),
                               ("onnx/graphsurgeon/add_all.py", "--onnx", graph, "--fp16", "--no-check")):
        done = subprocess.run([sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True,
                              check=False)
        assert done.returncode == 0, done.stderr
    images = real_images(2, 224 if name == "swin_micro" else 256)
    (logits,) = session(patched.read_bytes(), on_cpu).run(None, {"input": images})
    expected, exact = (onnx_logits(onnx_session(path), images, path) for path in (patched, graph))
    # Two ways of rounding 16-bit tensors: as far from each other as from FP32 at most.
    assert np.abs(logits - expected).max() <= 2 * max(np.abs(expected - exact).max(), 1e-3 * np.abs(exact).max())


@needs_headers
@pytest.mark.parametrize(("case", "change", "message"), [
    ("attention", {"height": 5}, "SwinAttention: attribute height: the node was made by an earlier version"),
    ("attention", {"window_width": 0}, "SwinAttention: window"),
    ("linear", {"gelu": 3}, "SwinLinear: gelu is 3"),
    ("mlp", {"norm_first": 0.5}, "SwinMlp: attribute norm_first is missing, or of another type"),
    ("embed", {"y_type": 7}, "SwinPatchEmbed: y_type is 7"),
])
def test_what_the_kernels_cannot_do_is_refused(case, change, message, on_cpu, refused):
    op, inputs, attributes, _ = cases(torch.float32)[case]
    graph = node_graph(op, inputs, [torch.float32], **{**attributes, **change})
    with pytest.raises(Exception, match=message):  # onnxruntime's own classes derive from Exception only
        run(graph, on_cpu, inputs)


@needs_headers
def test_the_library_for_gpus_builds_and_loads():
    """onnxruntime on a CPU takes it, checks the types of a node, and has no kernel to run it."""
    built(make("onnxruntime", TENSORRT_ROOT="/nonexistent"))
    library = BUILD / "libswin_onnxruntime.so"
    for case, (op, inputs, attributes, _) in cases(torch.float16).items():
        count = 2 if case == "add_norm" else 1
        graph = node_graph(op, inputs, [torch.float16] * count, **attributes)
        with pytest.raises(Exception, match=f"kernel for swin.{op}|implementation for {op}"):
            session(graph, library)
    graph = onnx.load_from_string(node_graph("SwinLayerNorm", [draw(2, 8)], [torch.float32], epsilon=1e-5))
    graph.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(Exception, match=r"Type 'tensor\(double\)' of input parameter .* is invalid"):
        session(graph.SerializeToString(), library)


@pytest.mark.skipif(NVCC is None or shutil.which("make") is None, reason="no nvcc or no make here")
def test_missing_headers_say_what_to_set():
    done = make("onnxruntime", ORT_INCLUDE="/nonexistent")
    assert done.returncode != 0
    assert 'ORT_INCLUDE "/nonexistent": no onnxruntime_c_api.h there; set it to include/' in done.stderr
