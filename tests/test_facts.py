"""graphs/facts.py: what a file is, by what is in it; the name says nothing."""
from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphs.facts import (
    Facts,
    Parent,
    beside,
    built_from,
    carried_over,
    of_engine,
    of_file,
    of_json,
    of_onnx,
    of_plan,
    with_facts,
    write_beside,
)
from utils import ROOT, UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def conv_model(nodes=(), constants=None, *, image="input", pixels="input", shape=("batch", 3, 8, 8),
               kind=TensorProto.FLOAT, weight=np.float32) -> onnx.ModelProto:
    """image -> nodes -> `pixels` -> Conv -> mean -> logits [batch, 4]."""
    tensors = {"weight": np.ones((4, 3, 8, 8), weight), "flat": np.array([0, 4], np.int64), **(constants or {})}
    graph = helper.make_graph(
        [*nodes, helper.make_node("Conv", [pixels, "weight"], ["map"]),
         helper.make_node("Reshape", ["map", "flat"], ["logits"])], "g",
        [helper.make_tensor_value_info(image, kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(path, model):
    onnx.save(model, str(path))
    return path


# --- what the graph says itself ------------------------------------------------------------------------------


def test_a_graph_without_facts_is_read_itself(tmp_path):
    path = saved(tmp_path / "plate_fp16_int8.onnx", conv_model(image="pixel_values", pixels="pixel_values",
                                                              shape=(2, 3, 8, 8)))
    facts = of_onnx(path)
    assert (facts.precision, facts.patched, facts.opset) == ("fp32", {}, 17)
    assert (facts.input, facts.input_type, facts.input_shape, facts.layout) == ("pixel_values", "float32", (2, 3, 8, 8),
                                                                              "NCHW")
    assert (facts.batch, facts.height, facts.width, facts.classes) == (2, 8, 8, 4)
    assert facts.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts.model == "" and facts.parents == ()


def cast(to, source, target):
    return helper.make_node("Cast", [source], [target], to=to)


@pytest.mark.parametrize("precision, model", [
    ("fp32", conv_model()),
    ("fp16", conv_model([cast(TensorProto.FLOAT16, "input", "half")], pixels="half", weight=np.float16)),
    # a tensor that is stored in FP16 and multiplied in FP32 does not make an FP16 graph
    ("fp32", conv_model([cast(TensorProto.FLOAT16, "input", "half"), cast(TensorProto.FLOAT, "half", "full")],
                        pixels="full")),
    ("bf16", conv_model([cast(TensorProto.BFLOAT16, "input", "half")], pixels="half")),
    ("int8", conv_model([helper.make_node("QuantizeLinear", ["input", "scale"], ["q"]),
                         helper.make_node("DequantizeLinear", ["q", "scale"], ["dq"])],
                        {"scale": np.float32(0.1)}, pixels="dq")),
    ("fp16", conv_model([helper.make_node("SwinLayerNorm", ["input"], ["y"], domain="swin", fp16=1)], pixels="y")),
    ("fp32", conv_model([helper.make_node("SwinLayerNorm", ["input"], ["y"], domain="swin")], pixels="y")),
    ("int8", conv_model([helper.make_node("SwinLinearInt8", ["input"], ["y"], domain="swin")], pixels="y")),
])
def test_precision_is_what_products_compute_in(precision, model):
    assert of_onnx(model).precision == precision


def test_weights_that_are_cast_to_fp16_make_an_fp16_graph():
    """As tools write that store FP32 weights and compute in FP16."""
    model = conv_model([cast(TensorProto.FLOAT16, "input", "half"), cast(TensorProto.FLOAT16, "stored", "weight16")],
                       {"stored": np.ones((4, 3, 8, 8), np.float32)}, pixels="half")
    model.graph.node[2].input[1] = "weight16"
    assert of_onnx(model).precision == "fp16"


def test_plugin_nodes_are_counted():
    nodes = [helper.make_node("SwinLayerNorm", [a], [b], domain="swin") for a, b in (("input", "x"), ("x", "y"))]
    assert of_onnx(conv_model(nodes, pixels="y")).patched == {"SwinLayerNorm": 2}


# --- what a graph does to the image --------------------------------------------------------------------------


def normalising(source, layout, scale, mean, std):
    """(source / scale - mean) / std -> "n", as nodes and constants."""
    shape = (1, 3, 1, 1) if layout == "NCHW" else (3,)
    constants = {"unit": np.float32(scale), "mean": np.float32(mean).reshape(shape),
                 "std": np.float32(std).reshape(shape)}
    return [helper.make_node("Div", [source, "unit"], ["u"]), helper.make_node("Sub", ["u", "mean"], ["m"]),
            helper.make_node("Div", ["m", "std"], ["n"])], constants


def test_a_graph_that_normalises_says_range_mean_and_std():
    nodes, constants = normalising("input", "NCHW", 1, MEAN, STD)
    facts = of_onnx(conv_model(nodes, constants, pixels="n"))
    assert (facts.input_range, facts.colour) == ("0..1", "RGB")
    assert facts.mean == pytest.approx(MEAN, abs=1e-3) and facts.std == pytest.approx(STD, abs=1e-3)


def test_a_graph_that_takes_0_to_255_by_one_multiplication_and_one_addition():
    """x * a + b with a = 1 / (255 std) and b = -mean / std, as optimisers fold it."""
    constants = {"a": (1 / 255 / np.array(STD, np.float32)).reshape(3, 1, 1),
                 "b": (-np.array(MEAN, np.float32) / np.array(STD, np.float32)).reshape(3, 1, 1)}
    facts = of_onnx(conv_model([helper.make_node("Mul", ["input", "a"], ["s"]),
                                helper.make_node("Add", ["s", "b"], ["n"])], constants, pixels="n"))
    assert facts.input_range == "0..255"
    assert facts.mean == pytest.approx(MEAN, abs=1e-3) and facts.std == pytest.approx(STD, abs=1e-3)


def test_uint8_nhwc_bgr():
    nodes, constants = normalising("float", "NHWC", 255, MEAN, STD)
    nodes = [helper.make_node("Gather", ["input", "order"], ["rgb"], axis=3), cast(TensorProto.FLOAT, "rgb", "float"),
             *nodes, helper.make_node("Transpose", ["n"], ["t"], perm=[0, 3, 1, 2])]
    facts = of_onnx(conv_model(nodes, {**constants, "order": np.array([2, 1, 0])}, pixels="t",
                               shape=("batch", 8, 12, 3), kind=TensorProto.UINT8))
    assert (facts.layout, facts.height, facts.width, facts.input_type) == ("NHWC", 8, 12, "uint8")
    assert (facts.input_range, facts.colour) == ("0..255", "BGR")
    assert facts.mean == pytest.approx(MEAN, abs=1e-3) and facts.std == pytest.approx(STD, abs=1e-3)


def test_only_a_mean_is_taken_off():
    """Caffe's way: x - (123.7, 116.3, 103.5), no division."""
    constants = {"mean": 255 * np.array(MEAN, np.float32).reshape(3, 1, 1)}
    facts = of_onnx(conv_model([helper.make_node("Sub", ["input", "mean"], ["n"])], constants, pixels="n"))
    assert facts.input_range == "0..255" and facts.mean == pytest.approx(MEAN, abs=1e-3)


def test_a_graph_that_does_nothing_to_the_image_takes_it_normalised():
    assert of_onnx(conv_model()).input_range == "normalised"
    assert of_onnx(conv_model([helper.make_node("Identity", ["input"], ["x"])], pixels="x")).input_range == "normalised"


def test_mixed_channels_are_not_taken_for_a_normalisation():
    model = conv_model([helper.make_node("Gather", ["input", "order"], ["x"], axis=1)], {"order": np.array([0, 0, 1])},
                       pixels="x")
    facts = of_onnx(model)
    assert (facts.colour, facts.mean) == ("", ())


# --- written and carried over --------------------------------------------------------------------------------


def full_facts() -> Facts:
    return Facts(model="tiny", variant="tiny", weights="ab" * 32, export="swin", mean=MEAN, std=STD,
                 resize="squeezed", labels=("cat", "ä"), classes=4, tools={"torch": "2.1"}, input_range="normalised",
                 colour="RGB")


def test_facts_travel_in_the_file_under_any_name(tmp_path):
    path = saved(tmp_path / "x.onnx", with_facts(conv_model(), full_facts()))
    facts = of_onnx(path)
    for name in ("model", "variant", "weights", "export", "mean", "std", "resize", "labels", "classes", "tools"):
        assert getattr(facts, name) == getattr(full_facts(), name), name
    assert {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}["swin.precision"] == "fp32"


def test_surgery_carries_them_over_with_the_digest_of_the_parent(tmp_path):
    model = conv_model()
    model.metadata_props.add(key="author", value="somebody")  # not of this project
    root = saved(tmp_path / "root.onnx", with_facts(model, full_facts()))
    half = conv_model([cast(TensorProto.FLOAT16, "input", "half")], pixels="half", weight=np.float16)
    child = saved(tmp_path / "child.onnx", carried_over(half, root))
    grandchild = saved(tmp_path / "grandchild.onnx", carried_over(onnx.load(str(child)), child, resize="other"))
    facts = of_onnx(grandchild)
    assert {entry.key: entry.value for entry in onnx.load(str(grandchild)).metadata_props}["author"] == "somebody"
    assert facts.precision == "fp16" and facts.model == "tiny" and facts.resize == "other"
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (child, root)]
    assert facts.parents == (Parent(digests[0], "child.onnx"), Parent(digests[1], "root.onnx"))
    assert facts.made_from(of_onnx(root)) and facts.made_from(of_onnx(child)) and facts.made_from(facts)
    assert not of_onnx(root).made_from(facts)


def test_the_graph_wins_over_its_metadata_and_the_contradiction_is_said(tmp_path, capsys):
    model = with_facts(conv_model(), full_facts())
    for entry in model.metadata_props:
        if entry.key == "swin.precision":
            entry.value = "fp16"
    path = saved(tmp_path / "x.onnx", model)
    assert of_onnx(path).precision == "fp32"
    assert "x.onnx: its metadata says precision fp16, and the graph fp32" in capsys.readouterr().err


def test_nothing_is_said_where_metadata_and_graph_agree(tmp_path, capsys):
    nodes, constants = normalising("input", "NCHW", 255, MEAN, STD)
    of_onnx(saved(tmp_path / "x.onnx", with_facts(conv_model(nodes, constants, pixels="n"), full_facts())))
    capsys.readouterr()
    of_onnx(tmp_path / "x.onnx")
    assert capsys.readouterr().err == ""


def test_weights_in_other_files_count_in_the_digest(tmp_path):
    model = conv_model()
    onnx.save(model, str(tmp_path / "x.onnx"), save_as_external_data=True, location="x.data", size_threshold=0)
    before = of_onnx(tmp_path / "x.onnx").digest
    data = bytearray((tmp_path / "x.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "x.data").write_bytes(data)
    assert of_onnx(tmp_path / "x.onnx").digest != before
    (tmp_path / "x.data").unlink()
    with pytest.raises(UserError, match=r"x\.data: no such file"):
        of_onnx(tmp_path / "x.onnx")


@pytest.mark.parametrize("key, value", [
    ("swin.parents", "[["), ("swin.parents", "[[1, 2]]"), ("swin.mean", "[NaN, 1, 1]"), ("swin.mean", "[1e999, 1, 1]"),
    ("swin.precision", "fp8"), ("swin.tools", "[]"), ("swin.std", "[0, 1, 1]"), ("swin.classes", "true"),
    ("swin.labels", "[" * 50000), ("swin.labels", '"' + "x" * 200000 + '"'), ("swin.input_shape", '["1"]'),
    ("swin.opset", str(10**30)), ("swin.layout", "CHWN"),
    ("swin.batches", "[1]"), ("swin.batches", "[1, null]"),
])
def test_metadata_that_cannot_be_is_one_line(tmp_path, key, value):
    model = conv_model()
    model.metadata_props.add(key=key, value=value)
    with pytest.raises(UserError) as error:
        of_onnx(saved(tmp_path / "x.onnx", model))
    assert "x.onnx" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_weights_outside_the_folder_are_not_followed(tmp_path):
    model = conv_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../outside.data")
    (tmp_path / "outside.data").write_bytes(b"\0" * 4096)
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="outside its folder"):
        of_onnx(saved(tmp_path / "in" / "x.onnx", model))


# --- plans ---------------------------------------------------------------------------------------------------


def test_a_plan_is_what_the_json_beside_it_says(tmp_path, capsys):
    graph = of_onnx(saved(tmp_path / "half.onnx", with_facts(conv_model(), full_facts())))
    plan = tmp_path / "a.plan"
    plan.write_bytes(b"ftrt and so on")
    assert of_plan(plan) is None
    write_beside(plan, built_from(graph, "half.onnx"), precision="fp16", batches=(1, 16))
    facts = of_plan(plan)
    assert (facts.model, facts.precision, facts.batches) == ("tiny", "fp16", (1, 16))
    assert facts.parents == (Parent(graph.digest, "half.onnx"),)
    assert facts.digest == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert of_file(plan) == facts
    plan.write_bytes(b"ftrt, another one")
    assert of_plan(plan) is None
    assert "a.json: is not of" in capsys.readouterr().err
    with pytest.raises(UserError, match="is a plan without its facts"):
        of_file(plan)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"digest": "x", "precision": "fp17"}', "\x00", "{" * 10000])
def test_a_broken_json_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json"):
        of_json(tmp_path / "a.json")


def layer(name, kind, *types):
    return {"Name": name, "LayerType": kind,
            "Inputs": [{"Name": "x", "Dimensions": [1], "Format/Datatype": text} for text in types]}


TENSORS = [("pixels", True, "float32", (-1, 3, 8, 12)), ("y", False, "float32", (-1, 7))]


@pytest.mark.parametrize("precision, layers", [
    ("fp32", [layer("a", "Convolution", "Row major linear FP32")]),
    ("fp16", [layer("a", "Convolution", "Row major linear FP32"), layer("b", "MatMul", "Row major linear FP16")]),
    ("fp16", [layer("a", "gemm", "Half")]),
    ("bf16", [layer("a", "gemm", "BFloat16", "Float")]),
    ("int8", [layer("a", "gemm", "Int8", "Half")]),
    ("int8", [layer("a", "PluginV2", "Row major linear Int8")]),
    ("int8", [layer("/layers.0/fc1/SwinLinearInt8_myl0_7", "custom_layer", "Int32", "Half")]),
    ("fp16", [layer("/layers.0/fc1/SwinLinear_myl0_7", "custom_layer", "Int32", "Half")]),
])
def test_an_engine_says_its_precision_by_its_layers(precision, layers):
    assert of_engine(TENSORS, json.dumps({"Layers": layers})).precision == precision


def test_an_engine_says_its_input_outputs_and_plugins():
    layers = [{"Name": "/layers.0/SwinAttention", "LayerType": "PluginV2", "PluginType": "SwinAttention"},
              {"Name": "/layers.1/SwinAttention_myl0_12", "LayerType": "custom_layer"},
              {"Name": "/layers.2/SwinAttention", "LayerType": "PluginV3"},  # 10 and 11
              {"Name": "conv", "LayerType": "Convolution"}]
    facts = of_engine(TENSORS, json.dumps({"Layers": layers}), "12")
    assert facts.patched == {"SwinAttention": 3}
    assert (facts.input, facts.input_shape, facts.height, facts.width, facts.classes, facts.digest) == (
        "pixels", (None, 3, 8, 12), 8, 12, 7, "12")


def test_an_engine_with_names_of_layers_alone_does_not_say_its_precision():
    with pytest.raises(UserError, match="profilingVerbosity"):
        of_engine(TENSORS, json.dumps({"Layers": ["conv", "gemm"]}))


# --- for shell scripts ---------------------------------------------------------------------------------------


def facts_script(*words):
    return subprocess.run([sys.executable, str(ROOT / "graphs" / "facts.py"), *map(str, words)], capture_output=True,
                          text=True)


def test_the_script_prints_json_or_single_facts(tmp_path):
    path = saved(tmp_path / "x.onnx", with_facts(conv_model(shape=(4, 3, 8, 12)), full_facts()))
    known = json.loads(facts_script(path).stdout)
    assert known["batch"] == 4 and known["width"] == 12 and known["model"] == "tiny"
    (tmp_path / "facts.json").write_text(facts_script(path).stdout)
    assert of_json(tmp_path / "facts.json") == of_onnx(path)
    assert facts_script(path, "precision", "input", "batch").stdout == "fp32\ninput\n4\n"


@pytest.mark.parametrize("content, word", [(b"", "not an ONNX file"), (b"no graph", "not an ONNX file"),
                                           (None, "no such file")])
def test_the_script_says_in_one_line_what_is_wrong(tmp_path, content, word):
    if content is not None:
        (tmp_path / "x.onnx").write_bytes(content)
    done = facts_script(tmp_path / "x.onnx")
    assert done.returncode == 1 and word in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_json_of_a_plan_lies_beside_it():
    assert beside("engines/a.plan").as_posix() == "engines/a.json"
