"""INT8 without a GPU: the calibration cache, the Q/DQ graph, the patched INT8 graph, and what is refused."""
from __future__ import annotations

import math
import re
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import add_int8
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from add_all import STEPS
from export_onnx import export
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from to_fp16 import to_fp16

from config import get_config
from data.images import IMAGENET_MEAN, IMAGENET_STD, load_image, normalise, preprocess
from data.photo_crops import crops, held_out_batch
from graphs.attention_branch_int8 import add_attention_branch
from graphs.compare import top1_agreement
from graphs.facts import precision_of
from graphs.patterns import made_by
from graphs.pictures import Picture
from graphs.reference_int8 import packed, unpacked
from graphs.sessions import session
from graphs.surgeon import patch, plugin_counts
from graphs.tidy import exported, producer, tidy, values
from models.build import build_model, load_model
from TensorRT.INT8 import calibration, quant, sensitivity, smooth
from TensorRT.INT8.calibration import collect, session_with_outputs
from TensorRT.INT8.calibration_cache import Cache, cache_text, read_cache, write_cache
from TensorRT.INT8.qdq import all_parts, blocks_of, faster_in_fp16, quantised, quantised_tensors
from utils import ROOT, UserError

INT8 = ROOT / "TensorRT" / "INT8"
CPU = "CPUExecutionProvider"
BATCHES, BATCH_SIZE = 2, 8


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    """version -> folder with <name>.onnx of a shipped micro model, and the .cache and _int8.onnx that quant.py made."""
    made = {}

    def folder(version: int) -> Path:
        if version not in made:
            made[version] = tmp_path_factory.mktemp(f"v{version}")
            name = {1: "swin_micro.yaml", 2: "swinv2_micro.yaml"}[version]
            onnx.save(export(load_model(get_config(ROOT / "models" / name)), 17, "micro"), made[version] / "m.onnx")
            quantise(made[version], "--method", "minmax")
        return made[version]

    return folder


@pytest.fixture(scope="module")
def small(randomize, tmp_path_factory):
    """version -> folder with m.onnx, two stages of two blocks with random weights, images of 56 or 64 pixels."""
    made = {}

    def folder(version: int) -> Path:
        if version not in made:
            made[version] = tmp_path_factory.mktemp(f"small{version}")
            opts = ["DATA.IMG_SIZE", str({1: 56, 2: 64}[version]), "MODEL.SWIN.DEPTHS", "[2, 2]",
                    "MODEL.SWIN.NUM_HEADS", "[1, 2]", "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[0, 0]"]
            config = get_config(ROOT / "models" / {1: "swin_micro.yaml", 2: "swinv2_micro.yaml"}[version], opts)
            onnx.save(export(randomize(build_model(config)).eval(), 17, "small"), made[version] / "m.onnx")
            quantise(made[version], "--method", "minmax")
        return made[version]

    return folder


def quantise(folder: Path, *flags: str, narrow: bool = True) -> None:
    """Write m_int8.onnx; with --narrow, as models of few channels would be left in FP16 all but whole."""
    quant.main(["--onnx", str(folder / "m.onnx"), "--cache", str(folder / "m.cache"), "--batches", str(BATCHES),
                "--batch-size", str(BATCH_SIZE), "--no-check", *(["--narrow"] if narrow else []), *flags])


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    return session(model).run(None, {model.graph.input[0].name: images})[0]


# --- ranges --------------------------------------------------------------------------------------------------


def numbers(count: int = 200_000) -> np.ndarray:
    """Normal numbers and, one in 20,000, some thirty times as large; [N, 1, 1, 1]."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(count).astype(np.float32)
    x[::20_000] *= 30
    return x.reshape(-1, 1, 1, 1)


def passed_on() -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, 1, 1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "passed_on", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_ranges_are_what_the_methods_say():
    """Percentile within two bins of NumPy's; entropy gives up the outliers, not the normal numbers."""
    x = numbers()
    parts = np.split(x, 4)

    def amax(method: str, percentile: float = 99.9) -> float:
        return float(collect(passed_on(), ["y"], iter(parts), len(parts), method, percentile, CPU)["y"])

    largest = float(np.abs(x).max())
    assert amax("minmax") == largest
    bin_width = 2 * largest / calibration.BINS["percentile"]
    expected = max(abs(np.percentile(x, [0.05, 99.95])))
    assert abs(amax("percentile") - expected) < 2 * bin_width
    assert 3 < amax("entropy") < 0.7 * largest
    assert amax("percentile", 100) == largest


def test_activations_that_are_no_numbers_are_refused():
    x = numbers(64)
    x[3] = np.nan
    with pytest.raises(UserError, match="y holds NaN or infinity on calibration images"):
        collect(passed_on(), ["y"], iter([x]), 1, "minmax", 99, CPU)


# --- the cache -----------------------------------------------------------------------------------------------


def test_the_cache_is_tensorrts_text_format(micro):
    """Parsed here as trtexec does it: after the last colon and a space, 8 hexadecimal digits of a float32."""
    folder = micro(1)
    header, *lines = (folder / "m.cache").read_text().splitlines()
    assert header == "TRT-8600-EntropyCalibration2"
    found = {}
    for line in lines:
        colon = line.rindex(":")
        found[line[:colon]] = struct.unpack("f", struct.pack("I", int(line[colon + 2:colon + 10], 16)))[0]
    model = onnx.load(folder / "m.onnx")
    names = {name for node in model.graph.node for name in node.output}
    scales = {name: scale for name, scale in found.items() if not name.startswith("swin_int8/minmax/16_images/")}
    assert len(scales) == len(found) - 1 == 7 * 5 and set(scales) <= names

    # The scale is amax / 127, of the crops that it says.
    images = normalise(crops("train", BATCHES * BATCH_SIZE, 224)[0])
    chosen = list(scales)[::8]
    arrays = session_with_outputs(model, chosen, CPU).run(None, {"input": images})
    for name, array in zip(chosen, arrays):
        assert scales[name] == pytest.approx(np.abs(array).max() / 127, rel=1e-5)
    assert read_cache(folder / "m.cache").scales == {name: np.float32(scale) for name, scale in scales.items()}


def test_the_cache_round_trips(tmp_path):
    """Every bit of a float32 comes back, and names with colons and spaces."""
    rng = np.random.default_rng(0)
    scales = {f"/a b: c/{i}": np.float32(10**exponent) for i, exponent in enumerate(rng.uniform(-37, 37, 200))}
    scales["one"] = np.float32(1)
    written = Cache("entropy", 512, "0123456789abcdef" * 2, scales)
    write_cache(tmp_path / "c", written)
    assert read_cache(tmp_path / "c") == written
    assert "\none: 3f800000\n" in (tmp_path / "c").read_text()


def test_a_cache_is_given_to_tensorrt_under_its_own_version(tmp_path):
    """The numbers of NvInferVersion.h, as TensorRT writes them; the scales stay."""
    cache = Cache("entropy", 512, "0" * 32, {"x": np.float32(0.1)})
    write_cache(tmp_path / "c", cache)
    for version, number in (("8.6.0", 8600), ("8.6.1", 8601), ("8.4.1.5", 8401)):
        first, rest = cache_text(cache, version).split("\n", 1)
        assert first == f"TRT-{number}-EntropyCalibration2"
        assert rest == (tmp_path / "c").read_text().split("\n", 1)[1]


def test_a_cache_is_read_instead_of_calibrating(small, tmp_path, monkeypatch, capsys):
    folder = small(1)
    text = (folder / "m.cache").read_text()
    monkeypatch.setattr(quant, "collect", None)  # calling it would be an error
    quantise(folder, "--output", str(tmp_path / "again.onnx"))
    assert "20 scales, minmax over 16 images" in capsys.readouterr().out
    assert (folder / "m.cache").read_text() == text
    assert (tmp_path / "again.onnx").read_bytes() == (folder / "m_int8.onnx").read_bytes()


# --- the Q/DQ graph ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_the_quantised_graph_keeps_the_accuracy(version, micro):
    """Top-1 on held-out crops within 2 points of FP32, and an error that 8 bits explain.

    Rounding to steps of s makes an error of s / sqrt(12). A range of four standard deviations, s being a 127th of it,
    gives 1 % of the numbers' rms at each of 9 tensors a block, 11 in V2; that of the logits must be a few times as much
    at most.
    """
    folder = micro(version)
    fp32, int8 = onnx.load(folder / "m.onnx"), onnx.load(folder / "m_int8.onnx")
    images, labels = held_out_batch(54, fp32.graph.input[0].type.tensor_type.shape.dim[2].dim_value)
    expected, actual = logits(fp32, images), logits(int8, images)
    assert abs(np.mean(actual.argmax(1) == labels) - np.mean(expected.argmax(1) == labels)) <= 0.02
    assert top1_agreement(actual, expected) >= 0.98
    assert 1e-4 < calibration.relative_rms(actual, expected) < 0.03


def paired(node: gs.Node, i: int) -> gs.Node | None:
    """The QuantizeLinear behind operand i of a node, where a Q/DQ pair stands there."""
    dequantize = made_by(node.inputs[i], "DequantizeLinear")
    return None if dequantize is None else made_by(dequantize.inputs[0], "QuantizeLinear")


@pytest.mark.parametrize("version", [1, 2])
def test_every_product_of_the_blocks_has_pairs_and_nothing_else(version, micro):
    graph = gs.import_onnx(onnx.load(micro(version) / "m_int8.onnx"))
    products = [node for node in graph.nodes if node.op == "MatMul"]
    full = [node for node in products if paired(node, 0) and paired(node, 1)]
    assert len(full) == 7 * 4
    for node in full:
        activation, weight = paired(node, 0), paired(node, 1)
        assert values(activation.inputs[1]).shape == ()
        assert values(weight.inputs[1]).shape == (values(weight.inputs[0]).shape[1],) and weight.attrs["axis"] == 1
        assert not values(activation.inputs[2]).any() and not values(weight.inputs[2]).any()
        amax = np.abs(values(weight.inputs[0])).max(axis=0)
        np.testing.assert_allclose(values(weight.inputs[1]), amax / 127, rtol=1e-6)
    names = {name for node in full for name in (node.name.split("/")[-2],)}
    assert names == {"qkv", "proj", "fc1", "fc2"}
    # Head and patch merging have none; attention reads a pair, and in V2 so does LayerNorm, but behind the last MLP of
    # each stage; residual Adds read no rounded numbers.
    norms = {1: 0, 2: 7 + 3}[version]
    assert sum(node.op == "QuantizeLinear" for node in graph.nodes) == 7 * (4 * 2 + 1) + norms
    rounded = {id(tensor) for node in graph.nodes if node.op == "DequantizeLinear" for tensor in node.outputs}
    readers = Counter(node.op for node in graph.nodes if any(id(tensor) in rounded for tensor in node.inputs))
    # Of the seven attentions three are shifted: two Slices roll what they read.
    assert readers == Counter(MatMul=28, Reshape=4, Slice=3 * 2, LayerNormalization=norms)
    assert paired_norms(graph) == ([] if version == 1 else [
        "0.0.proj", "0.0.fc2", "0.1.proj", "1.0.proj", "1.0.fc2", "1.1.proj", "2.0.proj", "2.0.fc2", "2.1.proj",
        "3.0.proj"])


def paired_norms(graph: gs.Graph) -> list[str]:
    """<stage>.<block>.<product> of the products that stand before a LayerNorm, with a pair between them."""
    found = [paired(node, 0).inputs[0].name for node in graph.nodes
             if node.op == "LayerNormalization" and paired(node, 0)]
    return sorted((re.sub(r".*layers.(\d)/blocks.(\d)/\w+/(\w+)/.*", r"\1.\2.\3", name) for name in found),
                  key=lambda name: (name[:3], name[4:] != "proj"))


def test_the_graphs_scales_are_the_caches(small):
    folder = small(1)
    scales = read_cache(folder / "m.cache").scales
    graph = gs.import_onnx(onnx.load(folder / "m_int8.onnx"))
    found = {node.inputs[0].name: float(values(node.inputs[1])) for node in graph.nodes
             if node.op == "QuantizeLinear" and values(node.inputs[0]) is None}
    assert found.keys() == scales.keys()
    for name, scale in found.items():
        assert scale == pytest.approx(float(scales[name]), rel=2**-22), name


def test_the_check_of_quant_is_that_of_its_logits(small):
    folder = small(1)
    fp32, int8 = onnx.load(folder / "m.onnx"), onnx.load(folder / "m_int8.onnx")
    images = held_out_batch(64, 56)[0]
    expected, actual = logits(fp32, images), logits(int8, images)
    (line,) = quant.check(fp32, int8)
    assert f"agreement with FP32 {np.mean(actual.argmax(1) == expected.argmax(1)):.2%}" in line
    assert float(re.search(r"max abs err (\S+),", line)[1]) == pytest.approx(np.abs(actual - expected).max(), rel=1e-2)
    bias = next(tensor for tensor in int8.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(bias), np.nan), bias.name))
    with pytest.raises(UserError, match="gives NaN or infinity"):
        quant.check(fp32, int8)


def test_logits_that_no_image_changes_are_refused(small):
    """With weights of zero and biases that are not, both graphs give the biases and agree to the last bit."""
    graph = onnx.load(small(1) / "m.onnx")
    for tensor in graph.graph.initializer:
        if len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    with pytest.raises(UserError, match="is the same for every image"):
        quant.check(graph, graph)


def test_kept_parts_have_no_pairs(small):
    folder = small(2)
    graph = tidy(onnx.load(folder / "m.onnx"))
    scales, parts = read_cache(folder / "m.cache").scales, all_parts(blocks_of(graph))
    kept = quant.kept_parts("block1.proj,block2.qkv,*.fc2", parts)
    assert kept == {"block1.proj", "block2.qkv", "block2.attention", *(f"block{i}.fc2" for i in range(4))}
    result = gs.import_onnx(quantised(graph, scales, kept))
    without = [node.name for node in result.nodes if node.op == "MatMul" and "blocks" in node.name
               and not paired(node, 1) and values(node.inputs[1]) is not None]
    assert [re.sub(r".*blocks.(\d)/\w+/(\w+)/.*", r"\1 \2", name) for name in without] == [
        "0 fc2", "1 proj", "1 fc2", "0 qkv", "0 fc2", "1 fc2"]
    attentions = [node.inputs[0].name for node in result.nodes if node.op == "DequantizeLinear" and any(
        reader.op in ("Reshape", "Slice") for reader in node.outputs[0].outputs)]
    assert len(attentions) == 3  # that of block 1 too
    assert paired_norms(result) == ["0.0.proj", "1.0.proj", "1.1.proj"]
    assert not any(node.op == "QuantizeLinear" for node in gs.import_onnx(quantised(graph, scales, set(parts))).nodes)


@pytest.mark.parametrize(("kept", "left"), [
    ("", "0.0.proj 0.0.fc2 0.1.proj 1.0.proj 1.0.fc2 1.1.proj"),
    ("block0.proj,block1.fc1", "0.0.fc2 1.0.proj 1.0.fc2 1.1.proj"),
    ("block1.qkv,block2.fc2", "0.0.proj 0.1.proj 1.0.proj 1.1.proj"),
    ("block0.qkv,block1.proj,block1.fc2,block2.qkv", "0.0.proj 0.0.fc2 1.0.proj 1.0.fc2 1.1.proj"),
])
def test_a_norm_reads_int8_where_its_product_and_its_reader_are_quantised(kept, left, small, tmp_path, monkeypatch):
    """The Q/DQ graph's pairs, and in the patched graph the scale of each, of the product and of LayerNorm alike."""
    monkeypatch.setattr(sys, "argv", ["a test"])
    for name in ("m.onnx", "m.cache"):
        (tmp_path / name).write_bytes((small(2) / name).read_bytes())
    quantise(tmp_path, "--keep", kept)
    assert paired_norms(gs.import_onnx(onnx.load(tmp_path / "m_int8.onnx"))) == left.split()
    graph = gs.import_onnx(run_add_int8(tmp_path, tmp_path / "patched.onnx"))
    scales = read_cache(tmp_path / "m.cache").scales
    with_scale = 0
    for norm in graph.nodes:
        if norm.op == "SwinLayerNormAddInt8":
            product = producer(norm.inputs[0])
            assert product.attrs.get("y_scale", 0) == norm.attrs["x_scale"]
            if norm.attrs["x_scale"]:
                assert product.op == "SwinLinearInt8" and norm.inputs[0].dtype is None
                name = norm.inputs[0].name.removesuffix("/int8")
                assert norm.attrs["x_scale"] == pytest.approx(float(scales[name]), rel=2**-22)
                with_scale += 1
    assert with_scale == len(left.split())
    assert all("x_scale" not in item.attrs for item in graph.nodes if item.op == "SwinLayerNormAdd")


def test_a_norm_that_reads_int8_and_writes_none_is_refused(small):
    """A pair before a LayerNorm whose sum no INT8 product reads: quant.py makes none."""
    bare, scales = add_int8.without_pairs(onnx.load(small(2) / "m_int8.onnx"))
    last = next(name for name in scales.inputs if "layers.1/blocks.1/mlp/fc2" in name)
    scales.tensors[last.replace("MatMul", "Add_output_0")] = 0.1
    fp32 = patch(bare, add_int8.steps_for(scales))[0]
    with pytest.raises(UserError, match=r"blocks.1/mlp/fc2/.* reads INT8 and writes none"):
        add_int8.to_int8(fp32, scales, fp32)


@pytest.fixture(scope="module")
def widening(randomize, tmp_path_factory):
    """version -> folder with m.onnx: two blocks of 192 channels, the most of a SwinMlp, and one of 384."""
    made = {}

    def folder(version: int) -> Path:
        if version not in made:
            made[version] = tmp_path_factory.mktemp(f"widening{version}")
            opts = ["DATA.IMG_SIZE", str({1: 56, 2: 64}[version]), "MODEL.SWIN.EMBED_DIM", "192", "MODEL.SWIN.DEPTHS",
                    "[2, 1]", "MODEL.SWIN.NUM_HEADS", "[6, 12]", "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[0, 0]"]
            config = get_config(ROOT / "models" / {1: "swin_micro.yaml", 2: "swinv2_micro.yaml"}[version], opts)
            model = randomize(build_model(config)).eval()
            for name, opset in (("m.onnx", 17), ("old.onnx", 13)):
                onnx.save(export(model, opset, "widening"), made[version] / name)
        return made[version]

    return folder


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_what_is_faster_in_fp16_is_kept(version, narrow, widening, tmp_path, monkeypatch, capsys):
    """proj and MLP of the narrow blocks (V1), or all of these (V2), so that proj is of the MLP's node and attention
    writes FP16 for it; --narrow quantises them. The same at another opset."""
    monkeypatch.setattr(sys, "argv", ["a test"])
    folder = widening(version)
    (tmp_path / "m.onnx").write_bytes((folder / "m.onnx").read_bytes())
    quantise(tmp_path, narrow=narrow)
    printed = capsys.readouterr().out
    kept = [] if narrow else {1: ["proj", "fc1", "fc2"], 2: ["qkv", "proj", "fc1", "fc2"]}[version]
    attentions = 0 if narrow or version == 1 else 2
    assert (f"INT8: {12 - 2 * len(kept)} products and {3 - attentions} attentions, of 12 products and 3 attentions"
            in printed)
    line = (f"kept: {2 * len(kept)} products and {attentions} attentions, faster in FP16: proj and the MLP of up to "
            "192 channels")
    assert (line in printed) != narrow and ("faster in FP16" in printed) != narrow

    graph = gs.import_onnx(onnx.load(tmp_path / "m_int8.onnx"))
    pairs = Counter(re.sub(r".*layers.(\d)/blocks.\d/\w+/(\w+)/MatMul", r"\1 \2", node.name)
                    for node in graph.nodes if node.op == "MatMul" and paired(node, 0) and paired(node, 1))
    assert pairs == {f"{stage} {part}": count for stage, count in ((0, 2), (1, 1))
                     for part in ("qkv", "proj", "fc1", "fc2") if stage or part not in kept}

    model = run_add_int8(tmp_path, tmp_path / "patched.onnx")
    counts = plugin_counts(model)
    expected = {(1, False): (2, 4, 1, 2, 0, 0), (2, False): (2, 2, 3, 0, 2, 1),
                (1, True): (0, 10, 1, 2, 0, 0), (2, True): (0, 10, 1, 2, 0, 2)}[version, narrow]
    assert tuple(counts[op] for op in ("SwinMlp", "SwinLinearInt8", "SwinLinear", "SwinAttentionInt8", "SwinAttention",
                                       "SwinQuantize")) == expected
    # The attention branch of the block of 384 channels: two of SwinLinearInt8, one of SwinAttentionInt8 less.
    assert counts["SwinAttentionBranchInt8"] == 1
    assert "replaced 1 of 1 attention branch\n" in capsys.readouterr().out
    # SwinMlp reads what attention wrote, INT8 attention in V1.
    mlps = [item for item in model.graph.node if item.op_type == "SwinMlp"]
    assert [len(item.input) for item in mlps] == ([] if narrow else [{1: 10, 2: 12}[version]] * 2)
    makers = {name: item for item in model.graph.node for name in item.output}
    assert {makers[item.input[7]].op_type for item in mlps} <= {{1: "SwinAttentionInt8", 2: "SwinAttention"}[version]}
    assert fp16_outputs(model) == ([True, True] if (version, narrow) == (1, False) else
                                   [False] * counts["SwinAttentionInt8"])

    old, new = (faster_in_fp16(blocks_of(tidy(onnx.load(folder / name)))) for name in ("old.onnx", "m.onnx"))
    assert old == new and len(new) == {1: 6, 2: 10}[version]


def fp16_outputs(model: onnx.ModelProto) -> list[bool]:
    """Of each SwinAttentionInt8 of an FP16 graph whether its y is FP16: as y_scale says it, and the declared type."""
    declared = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    found = []
    for item in model.graph.node:
        if item.op_type == "SwinAttentionInt8":
            scale = next(attribute.f for attribute in item.attribute if attribute.name == "y_scale")
            assert declared.get(item.output[0]) == (None if scale else TensorProto.FLOAT16)
            found.append(scale == 0)
    return found


# --- what INT8 nodes mean ------------------------------------------------------------------------------------


def rounded(x: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(np.rint(x.astype(np.float32) / np.float32(scale)), -128, 127).astype(np.int8)


def run_nodes(nodes: list[onnx.NodeProto], x: np.ndarray, constants: dict[str, np.ndarray], *outputs: str) -> list:
    """Outputs of plugin nodes that read the computed tensor x, float16; INT8 those that end in _q, FP32 in _32."""
    types = {name: TensorProto.INT8 if name.endswith("_q") else TensorProto.FLOAT if name.endswith("_32")
             else TensorProto.FLOAT16 for name in outputs}
    graph = helper.make_graph(nodes, "nodes", [helper.make_tensor_value_info("x", TensorProto.FLOAT16, x.shape)],
                              [helper.make_tensor_value_info(name, kind, None) for name, kind in types.items()],
                              [numpy_helper.from_array(array, name) for name, array in constants.items()])
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("swin", 1)]
    return session(helper.make_model(graph, opset_imports=domains, ir_version=8)).run(None, {"x": x})


def node(op: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"{op}_{outputs}", domain="swin", **attributes)


def test_weights_are_packed_with_the_first_column_lowest():
    weight = np.random.default_rng(0).integers(-128, 128, (3, 8)).astype(np.int8)
    assert packed(np.array([[1, 2, 3, -1]], np.int8))[0, 0] == struct.unpack("<i", bytes([1, 2, 3, 255]))[0]
    assert packed(weight).dtype == np.int32 and packed(weight).shape == (3, 2)
    np.testing.assert_array_equal(unpacked(packed(weight)), weight)


def test_quantize_rounds_half_to_even_and_saturates():
    x = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 300, -127.5, -128.5, -300]], np.float16)
    (y,) = run_nodes([node("SwinQuantize", "x", "y_q", y_scale=1.0)], x, {}, "y_q")
    assert y.dtype == np.int8 and y.tolist() == [[0, 2, 2, 0, -2, 126, 127, 127, -128, -128, -128]]


@pytest.mark.parametrize("gelu", [0, 1])
@pytest.mark.parametrize("y_scale", [0.0, 0.02])
def test_linear_int8_against_numpy(gelu, y_scale):
    """In FP64; the INT8 output may differ by one step where a value lies within FP32's rounding of a middle."""
    rng = np.random.default_rng(1)
    x, residual = rng.standard_normal((2, 2, 5, 96)).astype(np.float16)
    weight = rng.integers(-127, 128, (40, 96)).astype(np.int8)
    scale, bias = (rng.uniform(1e-4, 4e-4, 40).astype(np.float32), rng.standard_normal(40).astype(np.float32))
    constants = {"weight": packed(weight), "scale": scale, "bias": bias, "other": residual[..., :40]}
    (y,) = run_nodes([node("SwinQuantize", "x", "x_q", y_scale=0.03),
                      node("SwinLinearInt8", f"x_q weight scale bias{'' if gelu else ' other'}",
                           "y_q" if y_scale else "y", gelu=gelu, y_scale=y_scale)],
                     x, constants, "y_q" if y_scale else "y")
    expected = (rounded(x, 0.03).astype(np.int64) @ weight.T.astype(np.int64)) * scale.astype(float) + bias
    expected = expected * (1 + np.vectorize(math.erf)(expected / 2**0.5)) / 2 if gelu else expected + residual[..., :40]
    if y_scale:
        difference = np.abs(y.astype(int) - rounded(expected, y_scale))
        assert difference.max() <= 1 and difference.mean() < 1e-2
    else:
        assert y.dtype == np.float16
        np.testing.assert_allclose(y, expected, rtol=2**-10, atol=2**-10)


def test_norm_and_attention_int8_are_their_fp16_forms_quantised():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 7, 9, 96)).astype(np.float16)
    gamma, beta = rng.standard_normal((2, 96)).astype(np.float32)
    parameters, epsilon = {"gamma": gamma, "beta": beta}, {"epsilon": 1e-5}
    y, y_q, other, other_q, alone, of_steps, of_steps_q, step_sum = run_nodes(
        [node("SwinLayerNormWithParams", "x gamma beta", "y", **epsilon),
         node("SwinLayerNormInt8", "x gamma beta", "y_q", y_scale=0.03, **epsilon),
         node("SwinLayerNormAdd", "x x gamma beta", "other", **epsilon),
         node("SwinLayerNormAddInt8", "x x gamma beta", "sum other_q", x_scale=0.0, y_scale=0.05, **epsilon),
         node("SwinQuantize", "x", "x_q", y_scale=0.03),
         node("SwinLayerNormAdd", "rounded x gamma beta", "of_steps_32", **epsilon),
         node("SwinLayerNormAddInt8", "x_q x gamma beta", "step_sum of_steps_q", x_scale=0.03, y_scale=0.05,
              **epsilon)],
        x, {**parameters, "rounded": rounded(x, 0.03) * np.float32(0.03)},
        "y", "y_q", "other", "other_q", "sum", "of_steps_32", "of_steps_q", "step_sum")
    np.testing.assert_array_equal(other, alone)
    np.testing.assert_array_equal(of_steps.astype(np.float16), step_sum)
    for real, steps, scale in ((y, y_q, 0.03), (other, other_q, 0.05), (of_steps, of_steps_q, 0.05)):
        # The plain form is rounded to FP16 here, by 2^-11 of at most 7, which is 0.1 steps of 0.03.
        assert np.abs(steps - np.clip(real.astype(float) / scale, -128, 127)).max() < 0.5 + 0.12

    geometry = {"num_heads": 1, "window_height": 4, "window_width": 4, "shift_height": 2, "shift_width": 2,
                "roll_first": 0, "shift_if_covered": 1, "scale": 0.2, "mask_value": -100.0}
    bias, padding = rng.standard_normal((1, 16, 16)).astype(np.float32), rng.standard_normal(96).astype(np.float32)
    steps, plain, half, real = run_nodes(
        [node("SwinQuantize", "x", "x_q", y_scale=0.03),
         node("SwinAttentionInt8", "x_q bias padding", "y_q", qkv_scale=0.03, y_scale=0.02, **geometry),
         *(node("SwinAttentionInt8", "x_q bias padding", name, qkv_scale=0.03, y_scale=0.0, **geometry)
           for name in ("plain_32", "half")),
         node("SwinAttention", "rounded bias rounded_padding", "y_32", **geometry)],
        x, {"bias": bias, "padding": padding, "rounded": (rounded(x, 0.03) * np.float32(0.03)).astype(np.float32),
            "rounded_padding": (rounded(padding, 0.03) * np.float32(0.03)).astype(np.float32)},
        "y_q", "plain_32", "half", "y_32")
    assert np.abs(steps - np.clip(real / 0.02, -128, 127)).max() < 0.501
    assert half.dtype == np.float16
    np.testing.assert_allclose(plain, real, rtol=1e-6, atol=1e-6)  # not quantised, and rounded to FP16 where y is that
    np.testing.assert_array_equal(half, plain.astype(np.float16))


# --- the patched INT8 graph ----------------------------------------------------------------------------------


def run_add_int8(folder: Path, output: Path, *flags: str) -> onnx.ModelProto:
    sys.argv = ["add_int8.py", "--onnx", str(folder / "m_int8.onnx"), "--output", str(output), *flags]
    add_int8.main()
    return onnx.load(output)


@pytest.mark.parametrize("version", [1, 2])
def test_the_patched_graph_equals_the_quantised_one(version, micro, tmp_path, monkeypatch, capsys):
    """All nodes there; no type declared for INT8 tensors; the script's own check; the first block by its integers."""
    monkeypatch.setattr(sys, "argv", ["a test"])
    folder = micro(version)
    model = run_add_int8(folder, tmp_path / "patched.onnx")
    printed = capsys.readouterr().out
    ratios = [float(x) for x in re.findall(r"against the Q/DQ graph, ([\d.]+) of what", printed)]
    assert len(ratios) == 2 and ratios[0] < 0.5 and ratios[1] < 1
    common = Counter(SwinPatchEmbed=1, SwinLinearInt8=28, SwinAttentionInt8=7, SwinLinear=3)
    assert plugin_counts(model) == common + {
        1: Counter(SwinLayerNormInt8=14, SwinPatchMergeLayerNorm=3, SwinLayerNormWithParams=1),
        2: Counter(SwinLayerNormAddInt8=10, SwinLayerNormAdd=4, SwinQuantize=4, SwinPatchMerge=3,
                   SwinLayerNormWithParams=4)}[version]
    assert precision_of(model) == "int8"
    declared = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for item in model.graph.node:
        if item.op_type == "SwinLinearInt8":
            assert item.input[0] not in declared
            assert [types[name] for name in item.input[1:4]] == [TensorProto.INT32] + 2 * [TensorProto.FLOAT]
            assert all(declared[name] == TensorProto.FLOAT16 for name in item.input[4:])

    # In FP32 the first attention's input and output are the same integers, but for those near the middle of two steps.
    pairs = onnx.load(folder / "m_int8.onnx")
    bare, scales = add_int8.without_pairs(pairs)
    fp32 = patch(bare, add_int8.steps_for(scales))[0]
    images = held_out_batch(4, pairs.graph.input[0].type.tensor_type.shape.dim[2].dim_value)[0]
    int8, _ = add_int8.to_int8(fp32, scales, fp32)
    attention = next(item for item in int8.graph.node if item.op_type == "SwinAttentionInt8")
    quantizers = {item.input[0]: item.output[0] for item in pairs.graph.node if item.op_type == "QuantizeLinear"}
    qkv = quantizers[attention.input[0].removesuffix("/int8")]
    proj = next(item for item in gs.import_onnx(pairs).toposort().nodes
                if item.op == "MatMul" and item.name.endswith("proj/MatMul"))
    for ours, theirs in ((attention.input[0], qkv), (attention.output[0], producer(proj.inputs[0]).inputs[0].name)):
        actual, expected = (probed(model, name, TensorProto.INT8, images)
                            for model, name in ((int8, ours), (pairs, theirs)))
        difference = np.abs(actual.astype(int).ravel() - expected.astype(int).ravel())
        assert actual.std() > 10 and difference.max() <= 1 and difference.mean() < 1e-3


@pytest.mark.parametrize("version", [1, 2])
def test_nodes_of_a_quantised_graph_need_no_names(version, small, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["a test"])
    pairs = onnx.load(small(version) / "m_int8.onnx")
    for item in pairs.graph.node:
        item.ClearField("name")
    onnx.save(pairs, tmp_path / "m_int8.onnx")
    expected, actual = (run_add_int8(folder, tmp_path / "patched.onnx") for folder in (small(version), tmp_path))
    assert plugin_counts(actual) == plugin_counts(expected)
    images = held_out_batch(4, pairs.graph.input[0].type.tensor_type.shape.dim[2].dim_value)[0]
    np.testing.assert_array_equal(*(session(model).run(None, {"input": images})[0] for model in (actual, expected)))


def probed(model: onnx.ModelProto, tensor: str, kind: int, images: np.ndarray) -> np.ndarray:
    """A tensor of a graph, of this TensorProto type."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    extended.graph.node.append(helper.make_node("Identity", [tensor], ["probed"]))
    extended.graph.output.insert(0, helper.make_tensor_value_info("probed", kind, None))
    return session(extended).run(["probed"], {"input": images})[0]


@pytest.mark.parametrize("version", [1, 2])
def test_attention_before_a_kept_proj_writes_what_the_quantised_graph_has_there(version, small, tmp_path, monkeypatch,
                                                                                capsys):
    """No pair stands before proj there, so that nothing is rounded: the first block in FP32, where INT8's steps would
    differ by 0.29 of one; and the whole in the script's own check."""
    monkeypatch.setattr(sys, "argv", ["a test"])
    for name in ("m.onnx", "m.cache"):
        (tmp_path / name).write_bytes((small(version) / name).read_bytes())
    quantise(tmp_path, "--keep", "*.proj,*.fc1,*.fc2")
    pairs = onnx.load(tmp_path / "m_int8.onnx")
    assert sum(item.op_type == "DequantizeLinear" for item in pairs.graph.node) == 4 * 3  # of qkv, and attention's
    capsys.readouterr()
    assert fp16_outputs(run_add_int8(tmp_path, tmp_path / "patched.onnx")) == [True] * 4
    ratios = [float(x) for x in re.findall(r"against the Q/DQ graph, ([\d.]+) of what", capsys.readouterr().out)]
    assert len(ratios) == 2 and ratios[0] < 0.1

    bare, scales = add_int8.without_pairs(pairs)
    fp32 = patch(bare, add_int8.steps_for(scales))[0]
    int8, _ = add_int8.to_int8(fp32, scales, fp32)
    images = held_out_batch(4, pairs.graph.input[0].type.tensor_type.shape.dim[2].dim_value)[0]
    attention = next(item for item in int8.graph.node if item.op_type == "SwinAttentionInt8")
    proj = next(item for item in gs.import_onnx(pairs).toposort().nodes
                if item.op == "MatMul" and item.name.endswith("proj/MatMul"))
    actual, expected = (probed(model, name, TensorProto.FLOAT, images).ravel()
                        for model, name in ((int8, attention.output[0]), (pairs, proj.inputs[0].name)))
    steps = (actual - expected) / read_cache(tmp_path / "m.cache").scales[proj.inputs[0].name]
    assert actual.std() > 1 and np.sqrt(np.mean(steps**2)) < 0.03  # not zero, as some of qkv lies near a middle


@pytest.mark.parametrize("version", [1, 2])
def test_kept_parts_are_fp16_nodes(version, small, tmp_path, monkeypatch):
    """qkv and fc1 of one block, fc2 of another and proj of a third kept: FP16 in, FP16 out, SwinQuantize where INT8
    begins again, and an attention that reads INT8 and writes FP16."""
    monkeypatch.setattr(sys, "argv", ["a test"])
    folder = small(version)
    (tmp_path / "m.onnx").write_bytes((folder / "m.onnx").read_bytes())
    (tmp_path / "m.cache").write_bytes((folder / "m.cache").read_bytes())
    quantise(tmp_path, "--keep", "block0.qkv,block0.fc1,block2.fc2,block3.proj")
    model = run_add_int8(tmp_path, tmp_path / "patched.onnx")
    counts = plugin_counts(model)
    assert (counts["SwinLinearInt8"], counts["SwinLinear"]) == (16 - 4, 1 + 4)  # and patch merging's
    assert (counts["SwinAttentionInt8"], counts["SwinAttention"]) == (3, 1)
    assert fp16_outputs(model) == [False, False, True]
    # Before proj and fc2 of block 0, which FP16 nodes make the input of; in V2 also where the second stage begins.
    assert counts["SwinQuantize"] == {1: 2, 2: 3}[version]


# --- the attention branch as one node ------------------------------------------------------------------------


SMALL_WIDTHS = (32, 64)


def int8_graph(folder: Path, fp16: bool = True) -> onnx.ModelProto:
    """The INT8 form of a folder's m_int8.onnx, whose widths are none of the attention branch's."""
    bare, scales = add_int8.without_pairs(onnx.load(folder / "m_int8.onnx"))
    fp32 = patch(bare, add_int8.steps_for(scales))[0]
    model, report = add_int8.to_int8(to_fp16(fp32, add_int8.FP32_ISLANDS) if fp16 else fp32, scales, fp32)
    assert report.found == 0
    return model


@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_an_attention_branch_of_one_node_computes_what_its_four_do(version, fp16, small):
    """Bit for bit, shifted or not, in images of several windows and of one; y and y_q of each block, and the logits."""
    model = int8_graph(small(version), fp16)
    graph = gs.import_onnx(model)
    assert add_attention_branch(graph, SMALL_WIDTHS).lines() == ["replaced 4 of 4 attention branch"]
    whole = exported(graph.cleanup().toposort())
    before, after = plugin_counts(model), plugin_counts(whole)
    norm = {1: "SwinLayerNormInt8", 2: "SwinLayerNormAddInt8"}[version]
    assert before - after == Counter({"SwinLinearInt8": 8, "SwinAttentionInt8": 4, norm: 4})
    assert after - before == Counter(SwinAttentionBranchInt8=4)
    branches = [item for item in whole.graph.node if item.op_type == "SwinAttentionBranchInt8"]
    assert [re.sub(r".*layers.(\d)/blocks.(\d)/(.*)", r"\1 \2 \3", item.name) for item in branches] == [
        f"{stage} {block} attn/qkv/MatMul/SwinAttentionBranchInt8" for stage in (0, 1) for block in (0, 1)]
    shifts = [attribute.i for item in branches for attribute in item.attribute if attribute.name == "shift_height"]
    assert shifts == [0, {1: 3, 2: 4}[version], 0, 0]
    declared = {value.name: value.type.tensor_type.elem_type for value in whole.graph.value_info}
    real = TensorProto.FLOAT16 if fp16 else TensorProto.FLOAT
    images = held_out_batch(3, model.graph.input[0].type.tensor_type.shape.dim[2].dim_value)[0]
    for item in branches:
        y, y_q = item.output
        assert len(item.input) == {1: 11, 2: 12}[version] and declared[y] == declared[item.input[1]] == real
        assert declared.keys().isdisjoint({y_q, item.input[0]})
        for name, kind in ((y, real), (y_q, TensorProto.INT8)):
            expected, actual = (probed(either, name, kind, images) for either in (model, whole))
            assert expected.astype(np.float32).std() > 0.1
            np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(logits(whole, images), logits(model, images))


def shifted_blocks_attention(graph: gs.Graph) -> gs.Node:
    """That of block 1."""
    return [item for item in graph.nodes if item.op == "SwinAttentionInt8"][1]


def another_bias(graph: gs.Graph) -> None:
    shifted_blocks_attention(graph).inputs[1].values[0, 3, 5] += 1e-4


def a_bias_that_is_computed(graph: gs.Graph) -> None:
    attention = shifted_blocks_attention(graph)
    constant, attention.inputs[1] = attention.inputs[1], gs.Variable("bias")
    graph.nodes.append(gs.Node("Identity", "bias", inputs=[constant], outputs=[attention.inputs[1]]))


def a_reader_of_qkv(graph: gs.Graph) -> None:
    qkv = shifted_blocks_attention(graph).inputs[0]
    graph.nodes.append(gs.Node("Identity", "reader", inputs=[qkv], outputs=[gs.Variable("read")]))


def attention_as_an_output(graph: gs.Graph) -> None:
    graph.outputs.append(shifted_blocks_attention(graph).outputs[0])


def a_quantiser_before_attention(graph: gs.Graph) -> None:
    shifted_blocks_attention(graph).inputs[0].inputs[0].op = "SwinQuantize"


def gelu_after_proj(graph: gs.Graph) -> None:
    shifted_blocks_attention(graph).outputs[0].outputs[0].attrs["gelu"] = 1


def a_residual_of_qkv(graph: gs.Graph) -> None:
    qkv = shifted_blocks_attention(graph).inputs[0].inputs[0]
    qkv.inputs.append(gs.Variable("residual"))


def another_models_logit_scale(graph: gs.Graph) -> None:
    """V1 with one, V2 without."""
    attention = shifted_blocks_attention(graph)
    if len(attention.inputs) == 3:
        attention.inputs.append(gs.Constant("logit_scale", np.ones(attention.attrs["num_heads"], np.float32)))
    else:
        attention.inputs.pop()


def another_scale_of_proj(graph: gs.Graph) -> None:
    """V1's proj is FP16; V2's LayerNorm reads it with the scale that it was quantised with."""
    shifted_blocks_attention(graph).outputs[0].outputs[0].attrs["y_scale"] += 0.5


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("spoil", "words"), [
    (gelu_after_proj, "the products around it are not qkv and proj"),
    (a_residual_of_qkv, "the products around it are not qkv and proj"),
    (another_models_logit_scale, "block's"),
    (another_scale_of_proj, "block's"),
    (another_bias, "its bias depends on more than the relative position"),
    (a_bias_that_is_computed, "its bias depends on more than the relative position"),
    (a_reader_of_qkv, "inside it, is read elsewhere"),
    (attention_as_an_output, "inside it, is read elsewhere"),
    (a_quantiser_before_attention, "no SwinLinearInt8 makes its input"),
])
def test_an_attention_branch_that_the_node_does_not_compute_stays_four(version, spoil, words, small):
    graph = gs.import_onnx(int8_graph(small(version)))
    spoil(graph)
    report = add_attention_branch(graph, SMALL_WIDTHS)
    assert (report.replaced, len(report.left)) == (3, 1)
    assert "blocks.1/attn" in report.left[0] and report.left[0].endswith(words)


def test_other_widths_and_windows_keep_their_nodes(small):
    model = int8_graph(small(1))
    for widths, window, found in (((384,), 7, 0), ((64,), 7, 2), ((32, 64), 14, 3)):
        graph = gs.import_onnx(model)
        shifted_blocks_attention(graph).attrs["window_height"] = window
        report = add_attention_branch(graph, widths)
        assert (report.replaced, report.found) == (found, found)


def test_padding_of_the_bias_is_not_looked_at_and_outputs_may_be_read(small):
    graph = gs.import_onnx(int8_graph(small(1)))
    attention = shifted_blocks_attention(graph)
    attention.inputs[1].values[:, :, 49:] = np.arange(7)
    graph.outputs.append(attention.outputs[0].outputs[0].outputs[0])  # what proj writes, the branch's y
    assert add_attention_branch(graph, SMALL_WIDTHS).replaced == 4


@pytest.mark.parametrize("proj", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_an_mlp_without_scales_is_one_node(version, proj, small, tmp_path, monkeypatch, capsys):
    """fc1 and fc2 of block 0 kept, and only fc1 of block 1, which stays two products; the rest is INT8, that block's
    proj too, or kept and of the MLP's node."""
    monkeypatch.setattr(sys, "argv", ["a test"])
    folder = small(version)
    (tmp_path / "m.onnx").write_bytes((folder / "m.onnx").read_bytes())
    (tmp_path / "m.cache").write_bytes((folder / "m.cache").read_bytes())
    quantise(tmp_path, "--keep", "block0.fc1,block0.fc2,block1.fc1" + proj * ",block0.proj")
    capsys.readouterr()
    model = run_add_int8(tmp_path, tmp_path / "patched.onnx")
    assert "replaced 1 of 1 MLP\n" in capsys.readouterr().out
    counts = plugin_counts(model)
    assert (counts["SwinMlp"], counts["SwinLinearInt8"], counts["SwinLinear"]) == (1, 16 - 3 - proj, 1 + 1)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    mlp = next(item for item in model.graph.node if item.op_type == "SwinMlp")
    read = 2 * [TensorProto.FLOAT] + 4 * [TensorProto.FLOAT16]
    if proj:  # attention's output, proj's weight and bias, and in V2 its LayerNorm's parameters
        read += [None] + 2 * [TensorProto.FLOAT16] + (2 * [TensorProto.FLOAT] if version == 2 else [])
    assert [types.get(name) for name in mlp.input[1:]] == read
    assert fp16_outputs(model) == [proj, False, False, False]


def test_a_patched_graph_that_differs_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["a test"])
    without_pairs = add_int8.without_pairs

    def wrong(model):
        bare, scales = without_pairs(model)
        name = next(iter(scales.weights))
        weight, scale = scales.weights[name]
        scales.weights[name] = weight, 1.5 * scale
        return bare, scales

    monkeypatch.setattr(add_int8, "without_pairs", wrong)
    with pytest.raises(UserError, match="the INT8 graph differs: in FP32: rms error"):
        run_add_int8(small(1), tmp_path / "patched.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("error", "passes"), [(1.49, True), (1.51, False), (np.nan, False)])
def test_what_a_patched_graph_may_be_off_by(error, passes, small, monkeypatch):
    """1.5 of what quantisation itself makes, here from 0 to 1."""
    outputs = iter([0.0, 1.0, error])  # of the Q/DQ graph, the FP32 graph and the patched one

    class Runner:
        def __init__(self, *_: object) -> None:
            self.output = np.full((2, 3), next(outputs), np.float32)

        def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
            return {"logits": self.output}

    monkeypatch.setattr(add_int8, "Runner", Runner)
    model = onnx.load(small(1) / "m.onnx")
    if passes:
        (line,) = add_int8.check(model, model, model, "x")
        assert "1.49 of what quantisation itself makes" in line
    else:
        with pytest.raises(UserError, match="the INT8 graph differs"):
            add_int8.check(model, model, model, "x")


def test_widths_that_int8_does_not_take_are_kept(randomize, tmp_path, monkeypatch, capsys):
    """A hidden layer of int(1.1 * 32) = 35 features; of 64 channels, int(1.1 * 64) = 70."""
    monkeypatch.setattr(sys, "argv", ["a test"])
    opts = ["DATA.IMG_SIZE", "56", "MODEL.SWIN.DEPTHS", "[1, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2]",
            "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[0, 0]", "MODEL.SWIN.MLP_RATIO", "1.1"]
    model = randomize(build_model(get_config(ROOT / "models" / "swin_micro.yaml", opts))).eval()
    onnx.save(export(model, 17, "narrow"), tmp_path / "m.onnx")
    capsys.readouterr()
    quantise(tmp_path, "--method", "minmax")
    assert "kept: 4 products and 0 attentions, whose channels are no multiples of 16\n" in capsys.readouterr().out
    counts = plugin_counts(run_add_int8(tmp_path, tmp_path / "patched.onnx"))
    assert counts["SwinLinearInt8"] == 4
    monkeypatch.setattr(quant, "not_multiples", lambda blocks: set())  # a graph that an earlier quant.py wrote
    quantise(tmp_path)
    with pytest.raises(UserError, match=r"fc1/MatMul has 32 input and 35 output features, .* quant\.py --keep"):
        run_add_int8(tmp_path, tmp_path / "patched.onnx")


def test_a_model_that_quantisation_does_not_change_is_refused(small, tmp_path, monkeypatch):
    """V2 under its initial weights, where LayerNorm multiplies every branch by zero."""
    monkeypatch.setattr(sys, "argv", ["a test"])
    model = onnx.load(small(2) / "m.onnx")
    for i, tensor in enumerate(model.graph.initializer):
        if re.search(r"blocks.\d.norm[12]", tensor.name):
            zeros = numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name)
            model.graph.initializer[i].CopyFrom(zeros)
    onnx.save(model, tmp_path / "m.onnx")
    quantise(tmp_path, "--method", "minmax")
    with pytest.raises(UserError, match="its logits are exactly those of FP32"):
        run_add_int8(tmp_path, tmp_path / "patched.onnx")
    assert not (tmp_path / "patched.onnx").exists()


# --- the report, and smoothing -------------------------------------------------------------------------------


def test_sensitivity_report(small, tmp_path, capsys):
    """A row for each part; the errors of the parts, being independent, add up to that of all of them in squares."""
    folder = small(1)
    arguments = ["--onnx", str(folder / "m.onnx"), "--cache", str(folder / "m.cache"), "--count", "12", "--results",
                 str(tmp_path), "--pictures", str(tmp_path)]
    sensitivity.main([*arguments, "--agreement", "0"])
    rows = [line.split(",") for line in (tmp_path / "sensitivity.csv").read_text().splitlines()]
    header, fp32, together, *parts = [dict(zip(rows[0], row)) for row in rows]
    assert tuple(header) == sensitivity.COLUMNS and fp32["part"] == "fp32" and float(fp32["relative_rms_err"]) == 0
    assert [row["part"] for row in parts] == [f"block{i}.{part}" for i in range(4) for part in
                                              ("qkv", "attention", "proj", "fc1", "fc2")]
    squares = sum(float(row["relative_rms_err"])**2 for row in parts)
    assert 0.5 < squares**0.5 / float(together["relative_rms_err"]) < 2
    assert (tmp_path / "sensitivity_m.png").stat().st_size > 10_000
    assert "with --narrow and no --keep" in capsys.readouterr().out


def test_sensitivity_takes_out_the_worst_until_it_agrees(small, tmp_path, monkeypatch, capsys):
    folder = small(1)
    share = iter([1.0, 0.5, *[0.9] * 20, 0.6, 0.95])  # FP32, all, each part, without one, without two
    monkeypatch.setattr(sensitivity, "top1_agreement", lambda *_: next(share))
    sensitivity.main(["--onnx", str(folder / "m.onnx"), "--cache", str(folder / "m.cache"), "--count", "4", "--results",
                      str(tmp_path), "--pictures", str(tmp_path), "--agreement", "0.94"])
    last = capsys.readouterr().out.splitlines()[-1]
    kept = set(re.search(r"agreement 95.00% of at least 94.00% with --narrow --keep (\S+)", last)[1].split(","))
    rows = [line.split(",") for line in (tmp_path / "sensitivity.csv").read_text().splitlines()[3:23]]
    worst = sorted(rows, key=lambda row: -float(row[6]))[:2]
    assert kept == quant.with_attention({row[5] for row in worst})


def test_smoothing_computes_the_same_and_evens_out_the_ranges(small, tmp_path):
    folder = small(1)
    model = onnx.load(folder / "m.onnx")
    smooth.main(["--onnx", str(folder / "m.onnx"), "--batches", "1", "--alpha", "1", "--output",
                 str(tmp_path / "smooth.onnx")])
    smoothed = onnx.load(tmp_path / "smooth.onnx")
    images = normalise(crops("train", 16, 56)[0])  # those that it was made with
    np.testing.assert_allclose(logits(smoothed, images), logits(model, images), rtol=1e-4, atol=1e-4)
    name = tidy_input(smoothed)
    (x,) = session_with_outputs(smoothed, [name], CPU).run(None, {"input": images})
    # alpha 1: all of the range is in the weights
    np.testing.assert_allclose(np.abs(x).max(axis=(0, 1, 2)), 1, rtol=1e-4)
    with pytest.raises(UserError, match="no LayerNormalization feeds only qkv or fc1; this is for V1"):
        smooth.main(["--onnx", str(small(2) / "m.onnx")])


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_ranges_are_of_all_batches(method):
    batches = np.float32([[1, 2], [-9, 3], [4, 0]]).reshape(3, 2, 1, 1, 1)
    assert collect(passed_on(), ["y"], iter(batches), len(batches), method, 100, CPU) == {"y": 9}


def test_a_tensor_of_zeros_has_a_scale():
    """Not 0, which a cache cannot hold."""
    assert calibration.scale_of(np.float32(0)) == 1 and calibration.scale_of(np.float32(254)) == 2


def test_report_and_smoothing_say_which_file_has_no_block(tmp_path):
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 56, 56]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "r.onnx")
    write_cache(tmp_path / "r.cache", Cache("minmax", 8, "0" * 32, {"x": np.float32(1)}))
    for script, flags in ((smooth, []), (sensitivity, ["--cache", str(tmp_path / "r.cache")])):
        with pytest.raises(UserError, match=r"r\.onnx: has no Swin block"):
            script.main(["--onnx", str(tmp_path / "r.onnx"), *flags])


def tidy_input(model: onnx.ModelProto) -> str:
    """Name of the first block's qkv input."""
    return quantised_tensors(blocks_of(tidy(model)))[0]


# --- what is refused -----------------------------------------------------------------------------------------


def test_images_are_taken_evenly_from_a_folder(tmp_path):
    """Not the first ones, which may be of one class."""
    folder = images_in(tmp_path / "six", 6)
    read = Picture("input", None, 32, 32, 3, "NCHW", np.dtype(np.float32), "normalised", IMAGENET_MEAN, IMAGENET_STD,
                   "RGB")
    found = list(calibration.image_batches(folder, 3, 1, read))
    wanted = [preprocess(load_image(folder / f"{number}.png"), 32) for number in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(found), np.stack(wanted))


def images_in(folder: Path, count: int, seed: int | None = 0) -> Path:
    """`count` images of noise; of one colour where there is no seed."""
    folder.mkdir()
    for i in range(count):
        pixels = np.full((64, 64, 3), 200, np.uint8) if seed is None else np.random.default_rng(seed + i).integers(
            0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda lines: ["TRT-8600", *lines[1:]], r"m.cache:1: 'TRT-8600' is not the first line of a calibration cache"),
    (lambda lines: ["TRT-8600-MinMaxCalibration", *lines[1:]],
     r"m.cache:1: 'TRT-8600-MinMaxCalibration' is not the first line .*, 'TRT-8600-EntropyCalibration2'"),
    (lambda lines: [*lines[:5], lines[5][:-1], *lines[6:]], r"m.cache:6: .* is not `tensor: scale`"),
    (lambda lines: [*lines[:5], "a tensor: 3f80000g"], r"m.cache:6: 'a tensor: 3f80000g' is not `tensor: scale`"),
    (lambda lines: [*lines, "zero: 00000000"], r"m.cache:23: 'zero: 00000000' is not"),
    (lambda lines: [*lines, "infinite: 7f800000"], r"m.cache:23: .* is not"),
    (lambda lines: [*lines, lines[-1]], r"m.cache:23: .* each tensor once"),
    (lambda lines: [lines[0], *lines[2:]], r"does not say which graph it was made for"),
    (lambda lines: lines[:-1], r"was made for another graph than .*m.onnx"),
    (lambda lines: [], r"m.cache:1: '' is not the first line"),
])
def test_bad_caches(small, tmp_path, spoil, words):
    folder = small(1)
    (tmp_path / "m.cache").write_text("\n".join(spoil((folder / "m.cache").read_text().splitlines())))
    with pytest.raises(UserError, match=words) as error:
        quant.main(["--onnx", str(folder / "m.onnx"), "--cache", str(tmp_path / "m.cache"), "--output",
                    str(tmp_path / "out.onnx")])
    assert "\n" not in str(error.value) and not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(("flags", "words"), [
    (["--images", "{}/absent"], r"absent: no such folder"),
    (["--images", "{}/empty"], r"empty: holds no image"),
    (["--images", "{}/few"], r"few: holds 3 images, 2 batches of 8 need 16; add images, or lower --calibration"),
    (["--images", "{}/plain"], r"plain/0.png: is of one colour"),
    (["--onnx", "{}/m_int8.onnx"], r"m_int8.onnx: is quantised already"),
    (["--onnx", "{}/patched.onnx"], r"patched.onnx: holds plugin nodes; give the unpatched graph"),
    (["--onnx", "{}/absent.onnx"], r"absent.onnx: no such file"),
    (["--keep", "*.qkv"], r"m.onnx: nothing is left to quantise; --narrow quantises 12 products and 0 attentions of"),
    (["--keep", "block9.qkv"], r"--keep block9.qkv: is none of block0.qkv ... block3.fc2"),
    (["--batches", "0"], r"'0': not a whole number above zero"), (["--batch-size", "-1"], "not a whole number above"),
    (["--percentile", "10"], r"--percentile 10: must be above 50"),
    (["--output", "{}/m.onnx"], r"m.onnx: is the graph to change"),
    (["--output", "{}/noext"], r"noext: "),
    (["--cache", "{}/m.cache", "--percentile", "99"], r"so --percentile changes nothing"),
    (["--cache", "{}/m.cache", "--batches", "3"], r"was calibrated on \d+ images, not 24"),
    (["--onnx", "{}/fixed.onnx"], r"fixed.onnx: "),
    (["--cache", "{}/m.cache", "--method", "entropy"], r"m.cache: was calibrated with minmax, not entropy"),
    (["--onnx", "{}/retrained.onnx", "--cache", "{}/m.cache"], r"m.cache: was made for another graph than"),
    (["--cache", "{}/other.cache"], r"other.cache: was made for another graph than .*m.onnx"),
])
def test_bad_input(small, tmp_path, flags, words):
    """One line that says what is wrong, and no file written."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "empty").mkdir()
    images_in(folder / "few", 3)
    images_in(folder / "plain", 16, seed=None)
    for name in ("m.onnx", "m.cache", "m_int8.onnx"):
        (folder / name).write_bytes((small(1) / name).read_bytes())
    (folder / "other.cache").write_bytes((small(2) / "m.cache").read_bytes())
    onnx.save(patch(onnx.load(folder / "m.onnx"), STEPS)[0], folder / "patched.onnx")
    retrained = onnx.load(folder / "m.onnx")  # the same tensors, another weight
    weight = next(tensor for tensor in retrained.graph.initializer if len(tensor.dims) == 2)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(retrained, folder / "retrained.onnx")
    fixed = onnx.load(folder / "m.onnx")
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(fixed, folder / "fixed.onnx")
    before = sorted(folder.rglob("*"))
    arguments = ["--onnx", str(folder / "m.onnx"), "--cache", str(folder / "new.cache"), "--output",
                 str(folder / "out.onnx"), "--batches", "2", "--batch-size", "8",
                 *(flag.format(folder) for flag in flags)]
    with pytest.raises(UserError, match=words) as error:
        quant.main(arguments)
    assert "\n" not in str(error.value)
    assert sorted(folder.rglob("*")) == before


def test_a_cache_without_the_scales_of_v2s_norms_is_refused(small, tmp_path):
    """As it was written before they were quantised."""
    folder = small(2)
    lines = (folder / "m.cache").read_text().splitlines()
    tensors = [block.tensor(part).name for block in blocks_of(tidy(onnx.load(folder / "m.onnx")))
               for part in ("qkv", "attention", "proj", "fc1", "fc2")]
    older = [*lines[:2], *(line for line in lines[2:] if line.rsplit(":", 1)[0] in tensors)]
    assert len(lines) - len(older) == 6
    (tmp_path / "m.cache").write_text("\n".join(older))
    flags = ["--onnx", str(folder / "m.onnx"), "--cache", str(tmp_path / "m.cache")]
    for script, output in ((quant.main, ["--narrow", "--output", str(tmp_path / "o.onnx")]), (sensitivity.main, [])):
        with pytest.raises(UserError, match=r"m.cache: was made for another graph than .*, or without all of its"):
            script([*flags, *output])


def test_scripts_end_with_one_line_and_status_1(small):
    folder = small(1)
    for command, words in (
            ([INT8 / "quant.py", "--onnx", folder / "m_int8.onnx"], "is quantised already"),
            ([INT8 / "sensitivity.py", "--onnx", folder / "m.onnx", "--cache", folder / "no.cache"], "no such file"),
            ([ROOT / "onnx/graphsurgeon/add_int8.py", "--onnx", folder / "m.onnx"], "holds no Q/DQ pairs"),
            ([ROOT / "onnx/graphsurgeon/add_int8.py", "--onnx", folder / "m_int8.onnx", "--output", folder / "noext"],
             "not the name of an ONNX file"),
            ([ROOT / "TensorRT/build_engine.py", "--onnx", folder / "m.onnx", "--saveEngine", folder / "m.plan",
              "--calib", folder / "m.cache"], "does nothing by itself; add --int8")):
        done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 1, done.stdout
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    with pytest.raises(UserError, match="holds plugin nodes already"):
        add_int8.without_pairs(patch(onnx.load(folder / "m.onnx"), STEPS)[0])
