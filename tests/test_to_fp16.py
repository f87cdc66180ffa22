"""The FP16 graph without a GPU: which tensors are FP16, where a Cast stands, and that it computes the same."""
from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext

import add_all
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import to_fp16 as script
import torch
from export_onnx import export
from onnx import TensorProto, helper, numpy_helper
from to_fp16 import ISLANDS, to_fp16

from config import get_config
from data.photo_crops import held_out_batch
from graphs.reference import element_types
from graphs.sessions import session
from graphs.surgeon import patch, plugin_counts
from models.build import build_model
from utils import ROOT, UserError


@pytest.fixture(scope="module")
def graphs(randomize) -> Callable[[int, int, bool], onnx.ModelProto]:
    """graphs(version, opset, patched): an FP32 graph of two stages of two blocks, made once."""
    cache = {}

    def cached(version: int, opset: int, patched: bool) -> onnx.ModelProto:
        if (version, opset) not in cache:
            cache[version, opset] = export(small(version, randomize), opset, f"v{version}")
        if (version, opset, patched) not in cache:
            cache[version, opset, patched] = (patch(cache[version, opset], add_all.STEPS)[0] if patched
                                              else cache[version, opset])
        return cache[version, opset, patched]

    return cached


def small(version: int, randomize: Callable) -> torch.nn.Module:
    opts = ["DATA.IMG_SIZE", str({1: 56, 2: 64}[version]), "MODEL.SWIN.DEPTHS", "[2, 2]", "MODEL.SWIN.NUM_HEADS",
            "[1, 2]", "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[0, 0]"]
    config = get_config(ROOT / "models" / {1: "swin_micro.yaml", 2: "swinv2_micro.yaml"}[version], opts)
    return randomize(build_model(config)).eval()


def run(model: onnx.ModelProto, batch: int) -> np.ndarray:
    size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    x = np.random.default_rng(batch).standard_normal((batch, 3, size, size)).astype(np.float32)
    return session(model).run(None, {model.graph.input[0].name: x})[0]


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def casts(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """(op type of the maker, op types of the readers) of each Cast; the graph's input and output by those names."""
    maker = {name: node.op_type for node in model.graph.node for name in node.output}
    readers: dict[str, list[str]] = {value.name: ["output"] for value in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    return [(maker.get(node.input[0], "input"), "+".join(sorted(readers[node.output[0]])))
            for node in model.graph.node if node.op_type == "Cast"]


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("version", [1, 2])
def test_a_patched_graph_is_fp16_between_its_ends(version, opset, graphs):
    """One Cast, before the pooling; SwinPatchEmbed reads the FP32 image. Constants of plugin nodes are FP32 and
    unchanged, but FP16 the operands of SwinLinear and SwinMlp. What binds TensorRT 8.6 to these types: y_type, fp16,
    the names of the head."""
    fp32 = graphs(version, opset, True)
    fp16 = to_fp16(fp32, ["head"])
    onnx.checker.check_model(fp16)
    assert casts(fp16) == [("SwinLayerNormWithParams", "ReduceMean")]
    assert plugin_counts(fp16) == plugin_counts(fp32)
    assert not any(attribute.name == "fp16" for node in fp32.graph.node for attribute in node.attribute)

    types = element_types(fp16)
    before = {tensor.name: tensor for tensor in fp32.graph.initializer}
    after = {tensor.name: tensor for tensor in fp16.graph.initializer}
    for node in fp16.graph.node:
        activations = [name for name in (*node.input, *node.output) if name not in after]
        if node.domain == "swin":
            attributes = {attribute.name: attribute.i for attribute in node.attribute}
            assert {name: attributes[name] for name in ("y_type", "fp16") if name in attributes} == (
                {"y_type": 1} if node.op_type == "SwinPatchEmbed" else {"fp16": 1})
            read = {TensorProto.FLOAT} if node.op_type == "SwinPatchEmbed" else {TensorProto.FLOAT16}
            assert {types[name] for name in activations if name in node.input} == read
            assert {types[name] for name in node.output} == {TensorProto.FLOAT16}
            for i, name in enumerate(node.input):
                if name in after:
                    expected = numpy_helper.to_array(before[name])
                    norm = node.op_type == "SwinMlp" and i in (1, 2, 10, 11)  # gamma and beta
                    if node.op_type in ("SwinLinear", "SwinMlp") and not norm:
                        expected = expected.astype(np.float16)
                    np.testing.assert_array_equal(numpy_helper.to_array(after[name]), expected, strict=True)
        elif node.op_type != "Cast":
            used = {types[name] for name in (*node.input, *node.output)} - {TensorProto.INT64}
            assert len(used) == 1, f"{node.name} mixes types"
            assert node.name.endswith("/fp32")
    assert [types[value.name] for value in (*fp16.graph.input, *fp16.graph.output)] == [TensorProto.FLOAT] * 2
    for batch in (1, 3):
        # FP16 rounds by 2^-11 = 5e-4; some thirty roundings follow each other, most of them of smaller terms.
        assert relative_error(run(fp16, batch), run(fp32, batch)) < 5e-3


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("version", [1, 2])
def test_an_unpatched_graph_keeps_its_norms_in_fp32(version, opset, graphs):
    fp32 = graphs(version, opset, False)
    fp16 = to_fp16(fp32, ["head"])
    onnx.checker.check_model(fp16)
    types = element_types(fp16)
    fp32_ops = {"Sqrt", "Pow", "ReduceMean", "ReduceL2", "Clip"}
    for node in fp16.graph.node:
        if node.op_type in fp32_ops:
            assert {types[name] for name in node.output} == {TensorProto.FLOAT}, node.name
        if node.op_type in ("Softmax", "Erf", "LayerNormalization"):
            assert {types[name] for name in node.output} == {TensorProto.FLOAT16}, node.name
    # One Cast into each LayerNorm and each F.normalize and one out of it; none inside.
    norms = (11 if opset < 17 else 0) + (8 if version == 2 else 0)
    assert len(casts(fp16)) <= 2 * norms + 2
    for batch in (1, 3):
        assert relative_error(run(fp16, batch), run(fp32, batch)) < 5e-3


def test_written_out_norms_survive_what_overflows_fp16(graphs, monkeypatch, capsys):
    """Patch embeddings of 1e3: their squares, in the first LayerNorm, are beyond 65504. Without its island: refused."""
    large = onnx.ModelProto()
    large.CopyFrom(graphs(1, 12, False))
    weight = next(tensor for tensor in large.graph.initializer if list(tensor.dims) == [32, 3, 4, 4])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1e3), weight.name))

    script.convert_and_check(large, [], True)
    printed = capsys.readouterr().out.splitlines()
    line = next(line for line in printed if line.startswith("check, largest FP16 activation"))
    assert "in /patch_embed/" in line
    assert 1e3 < float(line.split()[4]) < 65504

    monkeypatch.setattr(script, "written_out_normalisations", lambda graph: [])
    with pytest.raises(UserError, match=r"norm/Pow_output_0 reaches \S+ on a held-out image, beyond FP16's 65504"):
        script.convert_and_check(large, [], True)


def test_the_epsilon_of_a_norm_is_not_rounded_to_fp16(graphs):
    """F.normalize's 1e-12 is zero in FP16, and 0 / 0 is no number; LayerNorm's 1e-5 loses two digits there."""
    def shared_with_an_fp16_node(model: onnx.ModelProto, epsilon: str) -> onnx.ModelProto:
        graph = gs.import_onnx(model)
        x = next(node for node in graph.nodes if node.op == "Conv").outputs[0]
        shifted = gs.Variable("shifted", np.float32)
        for reader in list(x.outputs):
            reader.inputs = [shifted if tensor is x else tensor for tensor in reader.inputs]
        graph.nodes.append(gs.Node("Add", "shift", inputs=[x, graph.tensors()[epsilon]], outputs=[shifted]))
        return gs.export_onnx(graph.toposort())

    for opset, version, epsilon, op in ((12, 1, 1e-5, "Add"), (17, 2, 1e-12, "Clip")):
        model = graphs(version, opset, False)
        small = {tensor.name for tensor in model.graph.initializer
                 if not tensor.dims and 0 < numpy_helper.to_array(tensor) < 1e-3}
        name = next(name for node in model.graph.node if node.op_type == op for name in node.input if name in small)
        fp16 = to_fp16(shared_with_an_fp16_node(model, name), [])
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in fp16.graph.initializer}
        found = [constants[name] for node in fp16.graph.node if node.op_type == op
                 for name in node.input if name in constants and constants[name].size == 1 and node.name != "shift"]
        epsilons = [array for array in found if array < 1e-3]
        assert len(epsilons) == (11 if version == 1 else 4)
        assert all(array.dtype == np.float32 and array == np.float32(epsilon) for array in epsilons)


@pytest.mark.parametrize("names", [[], ["gelu"], ["softmax"], ["head", "gelu", "softmax"]])
def test_chosen_islands(names, graphs):
    fp32 = graphs(1, 17, False)
    fp16 = to_fp16(fp32, names)
    types = element_types(fp16)
    kinds = {"gelu": "Erf", "softmax": "Softmax", "head": "ReduceMean"}
    assert set(kinds) == set(ISLANDS)
    for name, op in kinds.items():
        expected = TensorProto.FLOAT if name in names else TensorProto.FLOAT16
        found = {types[node.output[0]] for node in fp16.graph.node if node.op_type == op}
        assert found == {expected}, op
    # A Cast into each island and one out of it; the one behind the input, and before the output unless that is FP32.
    islands = 4 * ("gelu" in names) + 4 * ("softmax" in names)
    assert len(casts(fp16)) == 2 * islands + 2
    assert not any(maker == "Cast" or "Cast" in readers for maker, readers in casts(fp16))
    assert relative_error(run(fp16, 1), run(fp32, 1)) < 5e-3


@pytest.mark.parametrize("alone", [False, True])
def test_tokens_that_are_an_output_stay_fp32(alone, graphs):
    """Of the patch embedding, beside the logits or in their stead, with nothing that reads them."""
    graph = gs.import_onnx(graphs(1, 17, True))
    (tokens,) = next(node for node in graph.nodes if node.op == "SwinPatchEmbed").outputs
    graph.outputs = [tokens] if alone else [*graph.outputs, tokens]
    fp32 = gs.export_onnx(graph.cleanup())
    fp16 = to_fp16(fp32, [])
    assert fp16.graph.output[-1].type.tensor_type.elem_type == TensorProto.FLOAT
    x = {"input": np.random.default_rng(0).standard_normal((2, 3, 56, 56)).astype(np.float32)}
    actual, expected = (session(model).run(None, x) for model in (fp16, fp32))
    np.testing.assert_array_equal(actual[-1], expected[-1], strict=True)
    assert relative_error(actual[0], expected[0]) < 5e-3


def test_refusals(graphs):
    fp32 = graphs(1, 17, True)
    with pytest.raises(UserError, match="is in FP16 already"):
        to_fp16(to_fp16(fp32, []), [])
    with pytest.raises(UserError, match="is in FP16; patch the FP32 graph"):
        patch(to_fp16(graphs(1, 17, False), []), add_all.STEPS)
    with pytest.raises(UserError, match="unknown; choose from head,gelu,softmax"):
        script.islands("head,body")


@pytest.mark.parametrize(("patched", "shape", "refused"), [
    (False, [32, 96], True), (True, [96, 32], True), (True, [96], True),  # qkv's weight as MatMul's and SwinLinear's
    (False, [32, 3, 4, 4], True), (True, [32, 3, 4, 4], False),           # the patch embedding's stays FP32
])
def test_a_weight_beyond_fp16_is_refused(patched, shape, refused, graphs):
    huge = onnx.ModelProto()
    huge.CopyFrom(graphs(1, 17, patched))
    weight = next(tensor for tensor in huge.graph.initializer if list(tensor.dims) == shape)
    weight.CopyFrom(numpy_helper.from_array(np.full(shape, -1e5, np.float32), weight.name))
    if refused:
        with pytest.raises(UserError, match=r"holds 1e\+05, beyond FP16's 65504"):
            to_fp16(huge, [])
    else:
        to_fp16(huge, [])


def test_add_all_writes_the_fp16_graph(graphs, tmp_path, monkeypatch, capsys):
    onnx.save(graphs(2, 17, False), tmp_path / "swinv2.onnx")
    monkeypatch.setattr(sys, "argv", ["add_all.py", "--onnx", str(tmp_path / "swinv2.onnx"), "--fp16"])
    add_all.main()
    printed = capsys.readouterr().out
    assert "replaced 4 of 4 window attention" in printed
    assert printed.count("check, batch") == printed.count("check, weights in FP16") == 2  # each at two batches
    fp16 = onnx.load(tmp_path / "swinv2_attention_fp16.onnx")
    assert plugin_counts(fp16) == Counter(SwinPatchEmbed=1, SwinAttention=4, SwinPatchMerge=1, SwinLinear=5,
                                          SwinMlp=4, SwinLayerNormWithParams=2)
    types = {tensor.data_type for tensor in fp16.graph.initializer if list(tensor.dims) == [128, 32]}
    assert types == {TensorProto.FLOAT16}
    assert helper.get_attribute_value(fp16.graph.node[0].attribute[0]) is not None


@pytest.mark.parametrize("version", [1, 2])
def test_the_classifier_is_a_node_on_demand_and_stays_fp32(version, graphs):
    """No product is left to TensorRT then. The node has the classifier's own weights, also where the rest is FP16."""
    plain = graphs(version, 17, False)
    fp32, reports = patch(plain, [*add_all.STEPS, add_all.add_classifier])
    assert (reports[-1].what, reports[-1].replaced, reports[-1].left) == ("classifier", 1, [])
    assert {node.op_type for node in fp32.graph.node if not node.domain} == {"ReduceMean"}
    fp16 = to_fp16(fp32, ["head"])
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in plain.graph.initializer}
    for model, name in ((fp32, "SwinLinear"), (fp16, "SwinLinear/fp32")):
        node, constants = model.graph.node[-1], {item.name: item for item in model.graph.initializer}
        assert node.op_type == "SwinLinear" and node.name.endswith(f"/{name}") and node.output == ["logits"]
        assert "fp16" not in {attribute.name for attribute in node.attribute}
        for found, expected in zip(node.input[1:], (weights["head.weight"], weights["head.bias"])):
            np.testing.assert_array_equal(numpy_helper.to_array(constants[found]), expected, strict=True)
    # FP32 sums in another order; FP16 as without the classifier.
    assert relative_error(run(fp32, 3), run(plain, 3)) < 1e-5
    assert relative_error(run(fp16, 3), run(to_fp16(graphs(version, 17, True), ["head"]), 3)) < 1e-5


def test_add_all_takes_the_classifier_where_the_graph_stays_fp32(graphs, tmp_path, monkeypatch, capsys):
    onnx.save(graphs(1, 17, False), tmp_path / "swinv1.onnx")
    command = ["add_all.py", "--onnx", str(tmp_path / "swinv1.onnx"), "--classifier"]
    monkeypatch.setattr(sys, "argv", [*command, "--fp16"])
    with pytest.raises(UserError, match="--classifier: is for graphs that stay FP32"):
        add_all.main()
    assert [path.name for path in tmp_path.iterdir()] == ["swinv1.onnx"]
    monkeypatch.setattr(sys, "argv", command)
    add_all.main()
    assert "replaced 1 of 1 classifier" in capsys.readouterr().out
    assert plugin_counts(onnx.load(tmp_path / "swinv1_attention.onnx"))["SwinLinear"] == 6


@pytest.mark.parametrize(("magnitude", "refused"), [(65504.0, False), (65536.0, True), (np.inf, True), (np.nan, True)])
def test_an_activation_beyond_fp16_is_refused(magnitude, refused, graphs, monkeypatch):
    monkeypatch.setattr(script, "peak", lambda *_: script.Peak("x", magnitude, 8))
    refusal = pytest.raises(UserError, match=r"x reaches .* on a held-out image.*crops 8 to 15")
    with refusal if refused else nullcontext():
        script.convert_and_check(graphs(1, 17, False), ["head"], True)


@pytest.mark.parametrize(("share", "refused"), [(0.04, False), (0.06, True)])
def test_the_check_allows_5_percent_of_the_largest_logit(share, refused, graphs, monkeypatch):
    def off(model: onnx.ModelProto, names: list[str]) -> script.Converted:
        made = converted(model, names)
        graph = gs.import_onnx(made.model)
        (logits,) = graph.outputs
        exact, factor = gs.Variable("exact", np.float32), gs.Constant("factor", np.array(1 + share, np.float32))
        logits.inputs[0].outputs = [exact]
        graph.nodes.append(gs.Node("Mul", "off", inputs=[exact, factor], outputs=[logits]))
        made.model = gs.export_onnx(graph)
        return made

    converted = script.converted
    monkeypatch.setattr(script, "converted", off)
    with pytest.raises(UserError, match="the patched graph differs at") if refused else nullcontext():
        script.convert_and_check(graphs(1, 17, False), ["head"], True)


def test_an_overflow_on_a_late_crop_between_two_products_is_found(graphs, monkeypatch):
    """fc2 as two products, the first of which gives more than 65504 for one crop alone, and the second divides it
    again: onnxruntime's CPU provider shows nothing of it in the logits."""
    model = onnx.ModelProto()
    model.CopyFrom(graphs(1, 17, False))
    graph = gs.import_onnx(model)
    product = [node for node in graph.nodes if node.op == "MatMul"][3]  # fc2 of the first block
    tensor, width = product.inputs[0], product.inputs[1].shape[0]
    images = held_out_batch(128, 56)[0]
    names = [tensor.name]
    probed = script.exported(graph)
    probed.graph.output.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, None))
    (found,) = session(probed).run(names, {"input": images})
    peaks = np.abs(found).reshape(128, -1).max(axis=1)
    late = int(np.argmax(peaks))
    second = float(np.sort(peaks)[-2])
    gain = np.float32(65504 / (peaks[late] * second) ** 0.5)  # only one crop is beyond
    large = gs.Variable("large", np.float32)
    product.inputs[0] = large
    graph.nodes.append(gs.Node("MatMul", "first", inputs=[
        tensor, gs.Constant("up", np.eye(width, dtype=np.float32) * gain)], outputs=[large]))
    product.inputs[1] = gs.Constant("down", product.inputs[1].values / gain)
    model = gs.export_onnx(graph.toposort())
    fp16 = to_fp16(model, ["head"])
    assert np.isfinite(session(fp16).run(None, {"input": images[late:late + 1]})[0]).all()  # the CPU shows nothing
    with pytest.raises(UserError, match=rf"large reaches \S+ on a held-out image, beyond FP16's 65504.*crops "
                                        rf"{late // 8 * 8} to {late // 8 * 8 + 7}"):
        script.convert_and_check(model, ["head"], True)


def test_what_a_plugin_node_hands_on_inside_is_looked_at(graphs):
    """SwinMlp's hidden tokens are FP16 between its two products, and no tensor of the graph."""
    made = script.converted(graphs(1, 17, True), ["head"])
    assert any("SwinMlp/expanded_" in name for name in script.fp16_tensors(made))


@pytest.mark.parametrize(("types", "left"), [
    ((np.float32, np.float16, np.float32), 0),  # the second undoes the first
    ((np.int64, np.float32, np.float16), 2),  # it does not
    ((np.float32, np.int64, np.float32), 2),  # nor here, where the first truncates
])
def test_casts_that_undo_each_other_go(types, left):
    x, middle, z = (gs.Variable(name, dtype, [4]) for name, dtype in zip("xmz", types))
    y = gs.Variable("y", types[-1])
    to = [int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype))) for dtype in types]
    nodes = [gs.Node("Cast", "a", {"to": to[1]}, [x], [middle]), gs.Node("Cast", "b", {"to": to[2]}, [middle], [z]),
             gs.Node("Neg", "c", {}, [z], [y])]
    graph = gs.Graph(nodes, [x], [y])
    script._drop_casts(graph)
    assert [node.op for node in graph.nodes] == ["Cast"] * left + ["Neg"]
