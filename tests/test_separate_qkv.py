"""Models whose q, k and v are three linear layers, Hugging Face's Swin and Swin V2: joined, then as any other."""
from __future__ import annotations

import sys

import add_all
import add_int8
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from to_fp16 import TOLERANCE as FP16_TOLERANCE
from to_fp16 import to_fp16
from torch import nn

from data.photo_crops import held_out_batch
from graphs.patterns import attention_softmaxes
from graphs.sessions import session
from graphs.surgeon import TOLERANCE, check, patch, plugin_counts
from graphs.tidy import exported, tidy
from TensorRT.INT8 import quant

SIDE, ATTENTIONS = 32, 3


class Logits(nn.Module):
    """image -> logits"""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=x).logits


@pytest.fixture(scope="module")
def models(randomize) -> dict[int, nn.Module]:
    """By version: a block without and one with shift, patch merging, and a block whose one window covers the image."""
    found = {}
    for version, prefix in ((1, "Swin"), (2, "Swinv2")):
        config = getattr(transformers, f"{prefix}Config")(
            image_size=SIDE, window_size=4, embed_dim=32, depths=[2, 1], num_heads=[1, 2], num_labels=10,
            attn_implementation="eager")
        model = randomize(getattr(transformers, f"{prefix}ForImageClassification")(config)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".attention." in name and name.endswith("weight") and parameter.ndim == 2:
                    parameter.mul_(2)  # attention far from uniform
        found[version] = Logits(model).eval()
    return found


@pytest.fixture(scope="module")
def graph_of(models, tmp_path_factory):
    """graph_of(version, fixed): the TorchScript exporter's graph, with that batch or an open one."""
    known: dict[tuple, onnx.ModelProto] = {}

    def graph(version: int, fixed: int | None = None) -> onnx.ModelProto:
        if (version, fixed) not in known:
            path = tmp_path_factory.mktemp("separate") / "m.onnx"
            axes = None if fixed else {name: {0: "batch"} for name in ("input", "logits")}
            torch.onnx.export(models[version], (torch.zeros(fixed or 2, 3, SIDE, SIDE),), str(path), dynamo=False,
                              opset_version=17, input_names=["input"], output_names=["logits"], dynamic_axes=axes)
            known[version, fixed] = onnx.load(path)
        return known[version, fixed]

    return graph


@torch.no_grad()
def assert_equals_pytorch(graph: onnx.ModelProto, model: nn.Module, batches: tuple[int, ...]) -> None:
    runner = session(graph)
    for batch in batches:
        images = held_out_batch(batch, SIDE)[0]
        expected = model(torch.from_numpy(images)).numpy()
        (actual,) = runner.run(None, {"input": images})
        assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max(), batch


@pytest.mark.parametrize(("version", "fixed"), [(1, None), (1, 3), (2, None), (2, 1)])
def test_every_attention_is_replaced_and_computes_what_pytorch_does(version, fixed, models, graph_of):
    patched, reports = patch(graph_of(version, fixed), add_all.STEPS)
    by_name = {report.what: report for report in reports}
    assert by_name["window attention"].lines() == [f"replaced {ATTENTIONS} of {ATTENTIONS} window attention"]
    assert not any(report.left for report in reports)
    # Each block: qkv, proj, fc1, fc2; and the patch merging's reduction. The head stays.
    assert by_name["linear layer"].replaced == 4 * ATTENTIONS + 1
    assert not {"Split", "Shape", "Softmax", "Expand"} & {node.op_type for node in patched.graph.node}
    assert_equals_pytorch(patched, models[version], (fixed,) if fixed else (1, 3))


@pytest.mark.parametrize("version", [1, 2])
def test_the_joined_graph_computes_what_pytorch_does_before_any_replacement(version, models, graph_of):
    graph = tidy(graph_of(version))
    assert sum(node.op == "Split" for node in graph.nodes) == ATTENTIONS == len(attention_softmaxes(graph))
    assert_equals_pytorch(exported(graph), models[version], (1, 3))


def test_keys_without_bias_get_zeros_where_the_others_have_one(graph_of):
    graph = tidy(graph_of(2))
    biases = [split.inputs[0].inputs[0].inputs[1].values for split in graph.nodes if split.op == "Split"]
    for bias in biases:
        q, k, v = np.split(bias, 3)
        assert np.all(k == 0) and np.any(q) and np.any(v)


def test_fp16_and_int8(graph_of, tmp_path, monkeypatch):
    """By the checks of the scripts, whose limits stand there."""
    patched, _ = patch(graph_of(1), add_all.STEPS)
    check(patched, to_fp16(patched, ["head"]), tolerance=FP16_TOLERANCE)
    path, int8, output = (tmp_path / name for name in ("m.onnx", "m_int8.onnx", "m_attention_int8.onnx"))
    onnx.save(graph_of(1), path)
    quant.main(["--onnx", str(path), "--narrow", "--cache", str(tmp_path / "m.cache"), "--output", str(int8),
                "--batches", "2", "--batch-size", "8"])
    monkeypatch.setattr(sys, "argv", ["add_int8.py", "--onnx", str(int8), "--output", str(output)])
    add_int8.main()
    counts = plugin_counts(onnx.load(output))
    assert sum(count for op, count in counts.items() if op.startswith("SwinAttention")) == ATTENTIONS


# --- what is left as it is -----------------------------------------------------------------------------------


def three_layers(v_shape: tuple[int, ...] = (2, 16, 2, 16), v_perm: tuple[int, ...] = (0, 2, 1, 3),
                 other_input: bool = False, read_elsewhere: bool = False, gemm: bool = False) -> onnx.ModelProto:
    """image [2, 3, 8, 8] -> q, k and v of 16 tokens with 2 heads of 16 channels, and their attention."""
    rng = np.random.default_rng(0)
    constants = {name: rng.standard_normal((32, 32)).astype(np.float32) / 8 for name in ("wq", "wk", "wv")}
    constants |= {name: rng.standard_normal(32).astype(np.float32) for name in ("bq", "bk", "bv")}
    constants |= {"w0": rng.standard_normal((12, 32)).astype(np.float32), "heads": np.array([2, 16, 2, 16]),
                  "tokens": np.array([32, 12] if gemm else [2, 16, 12]), "v_heads": np.array(v_shape)}
    node = helper.make_node
    nodes = [node("Reshape", ["image", "tokens"], ["patches"]), node("MatMul", ["patches", "w0"], ["x"]),
             node("Relu", ["x"], ["z"])]
    for name, shape, perm in (("q", "heads", (0, 2, 1, 3)), ("k", "heads", (0, 2, 3, 1)), ("v", "v_heads", v_perm)):
        inputs = ["z" if name == "v" and other_input else "x", f"w{name}"]
        nodes += [node("Gemm", [*inputs, f"b{name}"], [f"{name}1"], transB=1) if gemm else
                  node("MatMul", inputs, [f"{name}1"]),
                  node("Reshape", [f"{name}1", shape], [f"{name}2"]),
                  node("Transpose", [f"{name}2"], [name], perm=perm)]
    nodes += [node("MatMul", ["q", "k"], ["scores"]), node("Softmax", ["scores"], ["weights"], axis=-1),
              node("MatMul", ["weights", "v"], ["y"])]
    outputs = ["y", *(["k1"] if read_elsewhere else [])]
    graph = helper.make_graph(
        nodes, "three", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [2, 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def products(graph: gs.Graph) -> list[tuple[int, ...]]:
    return [tuple(node.inputs[1].values.shape) for node in graph.nodes
            if node.op == "MatMul" and isinstance(node.inputs[1], gs.Constant)]


@pytest.mark.parametrize(("changed", "joined"), [
    ({}, True), ({"gemm": True}, True), ({"other_input": True}, False), ({"read_elsewhere": True}, False),
    ({"v_shape": (2, 16, 1, 32)}, False), ({"v_perm": (0, 2, 3, 1)}, False)],
    ids=["alike", "Gemm", "another input", "an output", "reshaped otherwise", "transposed otherwise"])
def test_only_layers_that_are_alike_are_joined(changed, joined):
    model = three_layers(**changed)
    graph = tidy(model)
    assert products(graph)[1:] == ([(32, 96)] if joined else [(32, 32)] * 3)
    image = {"image": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    results = session(model).run(None, image), session(exported(graph)).run(None, image)
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
