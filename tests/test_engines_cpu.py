"""Engines that TensorRT-RTX builds on the CPU, looked at layer by layer: is what is built what the graph says?

Engines of both micro models, FP32, FP16 and INT8, patched and unpatched, and of every kind of plugin node. Nothing runs
them here. TensorRT's inspector needs a loaded engine, and so a GPU; the builder logs the same descriptions
(TensorRT/layers.py). Patched graphs are built with stand-ins for the plugins, which state what the graph says of their
outputs (engine_worker.py), and with the real library as well where it can be had: nvcc, CUTLASS and, in $TENSORRT_ROOT,
TensorRT's headers of 10 or later.
"""
from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import add_all
import numpy as np
import onnx
import pytest
import test_plugins_build
from onnx import TensorProto, helper, numpy_helper
from test_open_sizes import exported, timm_maps

from graphs.facts import of_engine, of_onnx, of_plan
from graphs.files import PLUGIN_DOMAIN
from graphs.open_sizes import patched_at_sizes, shapes_of
from graphs.pictures import sized
from graphs.reference import expand
from graphs.reference_int8 import packed
from graphs.surgeon import patch
from TensorRT import backend
from TensorRT.layers import LISTS, layers_of
from utils import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None or importlib.util.find_spec(backend.RTX_PROVIDER) is None,
    reason="TensorRT-RTX is not installed (requirements.txt, Linux on x86-64)")

MODELS = {"swinv1_micro": "models/swin_micro.yaml", "swinv2_micro": "models/swinv2_micro.yaml"}
UNPATCHED = ("", "_fp16", "_int8")
PATCHED = ("_attention", "_attention_fp16", "_attention_int8")
CLASSIFIER = "_attention_fp32"  # the classifier is a plugin too
# How the builder calls ONNX's types; INT8 tensors of plugin nodes are INT32 tensors with a quarter of the last axis.
DATATYPES = {TensorProto.FLOAT: "Float", TensorProto.FLOAT16: "Half", TensorProto.INT8: "Int32"}
# A layer's name is its node's and a number: /layers.0/blocks.0/norm1/SwinLayerNorm_myl0_2.
SUFFIX = re.compile(r"_myl\d+_\d+$")

Layers = list[dict]


def in_a_process(*command: str | Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT,
                          env={**environment, "TRT_BACKEND": "tensorrt_rtx"}, check=False)


def built(folder: Path, plugins: str | Path, graphs: list[Path]) -> dict[str, Layers]:
    """The layers of an engine of each graph, by the graph's name."""
    folder.mkdir(exist_ok=True)
    done = in_a_process("tests/engine_worker.py", plugins, folder, *graphs)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = dict(re.findall(r"^(\S+): (.*)$", done.stdout, re.MULTILINE))
    assert {name: outcomes.get(name) for name in (graph.stem for graph in graphs)} == {
        graph.stem: "built" for graph in graphs}
    return {graph.stem: json.loads((folder / f"{graph.stem}.layers.json").read_text())["Layers"] for graph in graphs}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds all graphs of both micro models."""
    path = tmp_path_factory.mktemp("engines")
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda yaml: in_a_process("tests/micro_graphs.py", yaml, path), MODELS.values()))
    for done in made:
        assert done.returncode == 0, done.stdout + done.stderr
    return path


def engines(folder: Path, plugins: str | Path, suffixes: tuple[str, ...]) -> dict[str, Layers]:
    """The layers of the engines of both models."""
    with ThreadPoolExecutor(2) as pool:
        both = pool.map(lambda model: built(folder / f"{model}-{Path(plugins).stem}", plugins,
                                            [folder / f"{model}{suffix}.onnx" for suffix in suffixes]), MODELS)
        return {name: layers for layers_by_name in both for name, layers in layers_by_name.items()}


@pytest.fixture(scope="module")
def unpatched(folder) -> dict[str, Layers]:
    return engines(folder, "none", UNPATCHED)


@pytest.fixture(scope="module")
def stand_ins(folder) -> dict[str, Layers]:
    return engines(folder, "stand-in", (*PATCHED, CLASSIFIER))


@pytest.fixture(scope="module")
def library() -> Path:
    """This project's plugin library for TensorRT 11's API: $SWIN_PLUGINS, or built; skips where it cannot be."""
    if "SWIN_PLUGINS" in os.environ:
        return Path(os.environ["SWIN_PLUGINS"])
    headers = Path(os.environ.get("TENSORRT_ROOT", "/nonexistent")) / "include" / "NvInferVersion.h"
    if test_plugins_build.NVCC is None or not headers.exists():
        pytest.skip("no plugin library: it takes nvcc and, in TENSORRT_ROOT, TensorRT's headers")
    if "TRT_MAJOR_ENTERPRISE 11" not in headers.read_text():
        pytest.skip(f"TensorRT-RTX has TensorRT 11's API, and {headers} is of another version")
    test_plugins_build.built(test_plugins_build.make("plugins"))
    return test_plugins_build.BUILD / "libswin_plugins.so"


@pytest.fixture(scope="module")
def real(folder, library) -> dict[str, Layers]:
    return engines(folder, library, PATCHED)


# --- what the graph says, and whether the engine has it ------------------------------------------------------


def of_the_graph(model: onnx.ModelProto) -> dict[str, list[tuple[str, list[int]]]]:
    """Type and shape of each output of each plugin node, by the node's name, as an engine should have them."""
    inferred = onnx.shape_inference.infer_shapes(expand(model)).graph
    known = {value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.output)}
    _, _, *size = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    shapes = shapes_of(model, size, (2, 3))  # inference gives up on the shapes that INT8 nodes compute
    expected = {}
    for node in model.graph.node:
        if node.domain == PLUGIN_DOMAIN:
            expected[node.name] = []
            for name in node.output:
                sizes = [side if side == other else -1 for side, other in zip(*shapes[name])]
                if known[name].elem_type == TensorProto.INT8:
                    sizes[-1] //= 4
                expected[node.name].append((DATATYPES[known[name].elem_type], sizes))
    return expected


def plugin_layers(layers: Layers) -> dict[str, dict]:
    """The plugin layers by the names of their nodes."""
    return {SUFFIX.sub("", layer["Name"]): layer for layer in layers if layer["LayerType"] == "custom_layer"}


def check_plugins(model: onnx.ModelProto, layers: Layers) -> None:
    """Every plugin node is one layer with the graph's types and shapes, and nothing stands between two of them."""
    expected, found = of_the_graph(model), plugin_layers(layers)
    assert list(found) == list(expected)  # in the graph's order
    for name, outputs in expected.items():
        actual = [(tensor["Datatype"], tensor["Dimensions"]) for tensor in found[name]["Outputs"]
                  if not tensor["Name"].endswith("_wksp.1_myl0")]  # the workspace is an output, too
        assert actual[:len(outputs)] == outputs, name
        assert all("Linear" in tensor["Format"] for tensor in found[name]["Outputs"]), name
    made_by = {tensor["Name"]: layer for layer in layers for tensor in layer["Outputs"]}
    for name, layer in found.items():
        for tensor in layer["Inputs"]:
            source = made_by.get(tensor["Name"])
            assert source is None or source["LayerType"] == "custom_layer", f"{name}: {source['Name']} before it"


@pytest.mark.parametrize("suffix", PATCHED)
@pytest.mark.parametrize("model", MODELS)
def test_a_patched_engine_is_its_graph(folder, stand_ins, model, suffix):
    name = f"{model}{suffix}"
    check_plugins(onnx.load(folder / f"{name}.onnx"), stand_ins[name])


@pytest.mark.parametrize("suffix", PATCHED)
@pytest.mark.parametrize("model", MODELS)
def test_a_patched_engine_with_the_library_is_its_graph(folder, real, stand_ins, model, suffix):
    """And the stand-ins led TensorRT to the same engine."""
    name = f"{model}{suffix}"
    check_plugins(onnx.load(folder / f"{name}.onnx"), real[name])
    assert list(plugin_layers(real[name])) == list(plugin_layers(stand_ins[name]))
    assert [layer["LayerType"] for layer in real[name]] == [layer["LayerType"] for layer in stand_ins[name]]


@pytest.mark.parametrize("suffix", PATCHED)
@pytest.mark.parametrize("model", MODELS)
def test_a_patched_engine_tells_what_it_is(folder, stand_ins, model, suffix):
    """Precision and plugins by its layers, as a plan without its .json does, are those of the graph."""
    graph = of_onnx(folder / f"{model}{suffix}.onnx")
    engine = of_engine([], json.dumps({"Layers": stand_ins[f"{model}{suffix}"]}))
    assert (engine.precision, engine.patched) == (graph.precision, graph.patched)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_no_plugin_comes_last(stand_ins, model):
    """The head: a mean and a product, in at most three layers, and before it nothing but plugins."""
    for suffix in PATCHED:
        kinds = [layer["LayerType"] for layer in stand_ins[f"{model}{suffix}"] if layer["LayerType"] != "shape_call"]
        first = next(i for i, kind in enumerate(kinds) if kind != "custom_layer")
        assert "custom_layer" not in kinds[first:] and 1 <= len(kinds) - first <= 3, kinds


@pytest.mark.parametrize("model", MODELS)
def test_with_the_classifier_no_product_is_left_to_tensorrt(folder, stand_ins, model):
    """What TensorRT-RTX would multiply in TF32. Its products are layers of other types than the mean is."""
    def types_of_the_rest(suffix: str) -> set[str]:
        return {layer["LayerType"] for layer in stand_ins[f"{model}{suffix}"]} - {"custom_layer", "shape_call"}

    layers = stand_ins[f"{model}{CLASSIFIER}"]
    assert list(plugin_layers(layers)) == list(of_the_graph(onnx.load(folder / f"{model}{CLASSIFIER}.onnx")))
    assert types_of_the_rest(CLASSIFIER) == {"kgen"} < types_of_the_rest("_attention")
    assert datatypes(layers) <= {"Float", "Int64", "Int32"}


def datatypes(layers: Layers) -> set[str]:
    return {tensor["Datatype"] for layer in layers for kind in ("Inputs", "Outputs") for tensor in layer[kind]}


@pytest.mark.parametrize(("suffix", "has", "lacks"), [
    ("", {"Float"}, {"Half", "Int8", "BFloat16"}), ("_fp16", {"Half"}, {"Int8", "BFloat16"}),
    ("_int8", {"Int8"}, {"Half", "BFloat16"})])
@pytest.mark.parametrize("model", MODELS)
def test_an_unpatched_engine_has_the_graphs_types(unpatched, model, suffix, has, lacks):
    """Nothing is made smaller than the graph says, and FP16 and INT8 reach the engine."""
    layers = unpatched[f"{model}{suffix}"]
    found = datatypes(layers)
    assert has <= found and not lacks & found
    assert not plugin_layers(layers)


def test_plans_and_logs_lie_beside(folder, unpatched):
    """A plan of TensorRT-RTX begins with its tag and holds its own size."""
    for name in unpatched:
        plan = folder / f"{name[:12]}-none" / f"{name}.plan"
        whole = plan.read_bytes()
        assert whole[:4] == b"vtrt" and int.from_bytes(whole[16:24], "little") == len(whole)
        assert plan.with_suffix(".log").read_text().rstrip().splitlines()[-1].startswith("built in ")


# --- images of any size --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_sizes(tmp_path_factory) -> Path:
    """A patched graph with height and width open, whose outputs are feature maps."""
    path = tmp_path_factory.mktemp("open") / "m.onnx"
    model = onnx.load(exported(timm_maps(pads=True), path.with_name("plain.onnx"), (37, 54)))
    onnx.save(patched_at_sizes(model, [(30, 57), (49, 78), (14, 22)], None,
                               lambda fixed: patch(fixed, add_all.STEPS)[0]), path)
    return path


def test_an_engine_for_images_of_any_size(open_sizes, tmp_path):
    """Batch, height and width are open in every plugin layer, and nothing but plugins and the maps' Transpose is left.
    """
    done = in_a_process("tests/engine_worker.py", "stand-in", tmp_path,
                        f"{open_sizes}=1x3x24x24,2x3x40x72,4x3x96x128")
    assert "m: built" in done.stdout, done.stdout + done.stderr
    assert of_plan(tmp_path / "m.plan").batches == (1, 4)
    layers = json.loads((tmp_path / "m.layers.json").read_text())["Layers"]
    model = onnx.load(open_sizes)
    nodes = {node.name: node.output[0] for node in model.graph.node if node.domain == PLUGIN_DOMAIN}
    shapes, found = shapes_of(sized(model, (40, 72)), (40, 72), [2]), plugin_layers(layers)
    assert list(found) == list(nodes)
    for name, layer in found.items():
        assert layer["Outputs"][0]["Dimensions"] == [-1, -1, -1, shapes[nodes[name]][0][-1]], name
    others = [layer for layer in layers if layer["LayerType"] not in ("custom_layer", "shape_call")]
    maps = sum(node.op_type == "Transpose" for node in model.graph.node)
    assert maps == len(model.graph.output) == 2 and len(others) <= maps


@pytest.mark.parametrize(("shapes", "words"), [
    ("1x3x24x24,2x3x20x72,4x3x96x128", "largest side 2 of the image [24, 20, 96] are not in this order"),
    ("1x3x0x24,2x3x20x72,4x3x96x128", "largest side 2 of the image [0, 20, 96] are not in this order, from 1 on"),
    ("1x3x24x24,2x3x40x72,400000x3x96x128", "holds more than 2147483647 numbers"),
    ("1x4x24x24,2x4x40x72,4x4x96x128", "the input of"), ("", "build.sh --size, or --sizes, sets height and width")])
def test_sizes_that_no_engine_has(open_sizes, tmp_path, shapes, words):
    graph = f"{open_sizes}={shapes}" if shapes else open_sizes
    done = in_a_process("tests/engine_worker.py", "stand-in", tmp_path, graph)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("m: ")]
    assert words in line and not (tmp_path / "m.plan").exists()


# --- every kind of plugin node -------------------------------------------------------------------------------

# Height, width, heads and window of the image that a node sees; the last image needs padding.
SIZES = ((7, 7, 1, 7), (14, 14, 3, 7), (8, 24, 2, 8), (9, 20, 2, 8))


class Small:
    """A graph of one input x, [batch, H, W, C] or images, in which a node is put."""

    def __init__(self, size: tuple[int, int, int, int], kind: int) -> None:
        self.height, self.width, self.heads, self.window = size
        self.kind, self.channels = kind, 32 * size[2]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.known: dict[str, onnx.ValueInfoProto] = {}
        self.shape: list[int | str] = ["batch", self.height, self.width, self.channels]
        self.x_kind = kind

    def constant(self, *shape: int, kind: int = TensorProto.FLOAT) -> str:
        name = f"constant_{len(self.constants)}"
        values = np.ones(shape, helper.tensor_dtype_to_np_dtype(kind))
        self.constants.append(numpy_helper.from_array(packed(values) if kind == TensorProto.INT8 else values, name))
        return name

    def node(self, operator: str, inputs: list[str], outputs: int = 1, **attributes: float) -> list[str]:
        names = [f"{operator}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, name=f"/{operator}", domain=PLUGIN_DOMAIN,
                                           plugin_version="1", plugin_namespace=PLUGIN_DOMAIN, **attributes))
        return names

    def of_image(self, names: list[str], height: int, width: int, channels: int,
                 kind: int | None = None) -> list[str]:
        """The only output of a node that counts H and W of its input: shape inference gives up there."""
        (name,) = names
        self.known[name] = helper.make_tensor_value_info(name, kind or self.kind, ["batch", height, width, channels])
        return names

    def model(self, outputs: list[str]) -> onnx.ModelProto:
        """The graph, whose output is the node's last one."""
        name = outputs[-1]
        graph = helper.make_graph(
            self.nodes, "small", [helper.make_tensor_value_info("x", self.x_kind, self.shape)],
            [self.known.get(name) or helper.make_empty_tensor_value_info(name)], self.constants)
        return helper.make_model(graph, ir_version=8, opset_imports=[
            helper.make_opsetid("", 17), helper.make_opsetid(PLUGIN_DOMAIN, 1)])


def layer_norm(small: Small, operator: str, inputs: list[str], outputs: int = 1, **attributes: float) -> list[str]:
    """A node that ends with gamma and beta."""
    return small.node(operator, [*inputs, small.constant(small.channels), small.constant(small.channels)], outputs,
                      epsilon=1e-5, **attributes)


def merged(small: Small, names: list[str]) -> list[str]:
    return small.of_image(names, -(-small.height // 2), -(-small.width // 2), 4 * small.channels)


def patch_merge_layer_norm(small: Small) -> list[str]:
    wide = [small.constant(4 * small.channels), small.constant(4 * small.channels)]
    return merged(small, small.node("SwinPatchMergeLayerNorm", ["x", *wide], epsilon=1e-5))


def patch_embed(small: Small) -> list[str]:
    small.shape, small.x_kind = ["batch", 3, 4 * small.height - 1, 4 * small.width], TensorProto.FLOAT
    c = small.channels
    names = small.node("SwinPatchEmbed", ["x", small.constant(c, 3, 4, 4), *(small.constant(c) for _ in range(3))],
                       epsilon=1e-5, patch_height=4, patch_width=4, ceil=1,
                       y_type=int(small.kind == TensorProto.FLOAT16))
    return small.of_image(names, small.height, small.width, c)


def windows(small: Small, shift: int) -> dict[str, float]:
    """What a node of attention says of its windows."""
    return {"num_heads": small.heads, "window_height": small.window, "window_width": small.window,
            "shift_height": shift, "shift_width": shift, "roll_first": 0, "shift_if_covered": 0, "scale": 32 ** -0.5,
            "mask_value": -100.0}


def attention(small: Small, operator: str, qkv: str, **attributes: float) -> list[str]:
    tokens = small.window ** 2
    bias = small.constant(small.heads, tokens, -(-tokens // 8) * 8)
    return small.node(operator, [qkv, bias, small.constant(3 * small.channels)], **windows(small, small.window // 2),
                      **attributes)


def plain_attention(small: Small) -> list[str]:
    small.shape[-1] = 3 * small.channels
    return small.of_image(attention(small, "SwinAttention", "x"), small.height, small.width, small.channels)


def linear(small: Small) -> list[str]:
    c = small.channels
    return small.node("SwinLinear", ["x", small.constant(4 * c, c, kind=small.kind),
                                     small.constant(4 * c, kind=small.kind)], gelu=1)


def mlp(small: Small) -> list[str]:
    c = small.channels
    weights = [small.constant(*shape, kind=small.kind) for shape in ((4 * c, c), (4 * c,), (c, 4 * c), (c,))]
    return small.node("SwinMlp", ["x", small.constant(c), small.constant(c), *weights], norm_first=1, gelu=1,
                      epsilon=1e-5)


def quantize(small: Small) -> list[str]:
    return small.node("SwinQuantize", ["x"], y_scale=0.1)


def linear_int8(small: Small) -> list[str]:
    c = small.channels
    return small.node("SwinLinearInt8", [*quantize(small), small.constant(4 * c, c, kind=TensorProto.INT8),
                                         small.constant(4 * c), small.constant(4 * c)], gelu=1, y_scale=0.1)


def attention_int8(small: Small) -> list[str]:
    small.shape[-1] = 3 * small.channels
    names = attention(small, "SwinAttentionInt8", *quantize(small), qkv_scale=0.1, y_scale=0.1)
    return small.of_image(names, small.height, small.width, small.channels, TensorProto.INT8)


def attention_branch_int8(small: Small) -> list[str]:
    c, tokens = small.channels, small.window ** 2
    inputs = [*quantize(small), "x", small.constant(3 * c, c, kind=TensorProto.INT8), small.constant(3 * c),
              small.constant(3 * c), small.constant(c, c, kind=TensorProto.INT8), small.constant(c), small.constant(c),
              small.constant(small.heads, tokens, -(-tokens // 8) * 8), small.constant(c), small.constant(c)]
    return small.node("SwinAttentionBranchInt8", inputs, 2, **windows(small, 0), norm_first=1, qkv_scale=0.1,
                      attention_scale=0.1, proj_scale=0.0, epsilon=1e-5, y_scale=0.1)


KINDS: dict[str, Callable[[Small], list[str]]] = {
    "SwinLayerNorm": lambda small: small.node("SwinLayerNorm", ["x"], epsilon=1e-5),
    "SwinLayerNormWithParams": lambda small: layer_norm(small, "SwinLayerNormWithParams", ["x"]),
    "SwinAddLayerNorm": lambda small: layer_norm(small, "SwinAddLayerNorm", ["x", "x"], 2),
    "SwinLayerNormAdd": lambda small: layer_norm(small, "SwinLayerNormAdd", ["x", "x"]),
    "SwinPatchMergeLayerNorm": patch_merge_layer_norm,
    "SwinPatchMerge": lambda small: merged(small, small.node("SwinPatchMerge", ["x"])),
    "SwinPatchEmbed": patch_embed,
    "SwinFNorm": lambda small: small.node("SwinFNorm", ["x"], epsilon=1e-12),
    "SwinAttention": plain_attention,
    "SwinLinear": linear,
    "SwinMlp": mlp,
}
INT8_KINDS: dict[str, Callable[[Small], list[str]]] = {
    "SwinQuantize": quantize,
    "SwinLayerNormInt8": lambda small: layer_norm(small, "SwinLayerNormInt8", ["x"], y_scale=0.1),
    "SwinLayerNormAddInt8": lambda small: layer_norm(small, "SwinLayerNormAddInt8", ["x", "x"], 2, x_scale=0.0,
                                                     y_scale=0.1),
    "SwinLinearInt8": linear_int8,
    "SwinAttentionInt8": attention_int8,
    "SwinAttentionBranchInt8": attention_branch_int8,
}


def typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the types and shapes of its outputs as TensorRT sees them, which its parser asks for."""
    of_nodes = dict(zip((name for node in model.graph.node for name in node.output),
                        (made for outputs in of_the_graph(model).values() for made in outputs)))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    for value in model.graph.output:
        datatype, sizes = of_nodes[value.name]
        kind = {"Float": TensorProto.FLOAT, "Half": TensorProto.FLOAT16, "Int32": TensorProto.INT32}[datatype]
        copy.graph.output.append(helper.make_tensor_value_info(
            value.name, kind, ["batch" if size == -1 else size for size in sizes]))
    return copy


@pytest.fixture(scope="module")
def kinds(tmp_path_factory, library) -> tuple[dict[str, onnx.ModelProto], dict[str, Layers]]:
    """A graph of each kind of node at each size and type, and its engine's layers, both by name."""
    folder, models = tmp_path_factory.mktemp("kinds"), {}
    for operators, types in ((KINDS, (TensorProto.FLOAT, TensorProto.FLOAT16)), (INT8_KINDS, (TensorProto.FLOAT16,))):
        for operator, put in operators.items():
            for size in SIZES:
                if "Branch" in operator and size[0] % size[3]:
                    continue  # it takes no padding
                for kind in types:
                    small = Small(size, kind)
                    name = f"{operator}-{'x'.join(map(str, size))}-{DATATYPES[kind]}"
                    models[name] = small.model(put(small))
                    onnx.save(typed(models[name]), folder / f"{name}.onnx")
    graphs = [folder / f"{name}.onnx" for name in models]
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda half: built(folder / str(half), library, graphs[half::2]), range(2)))
    return models, {**halves[0], **halves[1]}


def test_every_plugin_has_a_graph_here(library):
    """The kinds are those that the library registers."""
    done = in_a_process("-c", f"""
from TensorRT import backend
trt = backend.load()
backend.load_plugins({str(library)!r})
print(*sorted(creator.name for creator in trt.get_plugin_registry().all_creators
              if creator.plugin_namespace == {PLUGIN_DOMAIN!r}))""")
    assert done.stdout.split() == sorted({**KINDS, **INT8_KINDS}), done.stderr


@pytest.mark.parametrize("operator", {**KINDS, **INT8_KINDS})
def test_a_node_is_built_as_its_graph_says(kinds, operator):
    models, layers = kinds
    names = [name for name in models if name.startswith(f"{operator}-")]
    assert len(names) >= 2
    for name in names:
        found = layers[name]
        check_plugins(models[name], found)
        # What is neither a plugin nor the shapes' arithmetic would be a cast or a copy.
        assert {layer["LayerType"] for layer in found} <= {"custom_layer", "shape_call"}, name


def test_a_refused_shape_says_why(tmp_path, library):
    """What the plugin says of a shape that it does not take reaches the user in one line."""
    small = Small((7, 7, 1, 7), TensorProto.FLOAT16)
    onnx.save(small.model(small.node("SwinLinear", ["x", small.constant(32, 48, kind=TensorProto.FLOAT16),
                                                    small.constant(32, kind=TensorProto.FLOAT16)], gelu=0)),
              tmp_path / "m.onnx")
    done = in_a_process("TensorRT/build_engine.py", f"--onnx={tmp_path}/m.onnx", f"--saveEngine={tmp_path}/m.plan",
                        f"--staticPlugins={library}")
    assert done.returncode == 1 and "weight is [32, 48] instead of [32, 32]" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "m.plan").exists()


def test_a_graph_without_its_plugins_is_refused_in_one_line(folder, tmp_path):
    done = in_a_process("TensorRT/build_engine.py", f"--onnx={folder}/swinv1_micro_attention_fp16.onnx",
                        f"--saveEngine={tmp_path}/m.plan")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and len(done.stderr) < 400
    assert "no loaded library implements SwinPatchEmbed, SwinLayerNormWithParams, " in done.stderr
    assert "--plugins" in done.stderr and not (tmp_path / "m.plan").exists()


# What TensorRT does with the library of a plan that carries it, before or after the process has opened a copy of it.
LOAD_LIBRARY = """
import sys
from TensorRT import backend
trt = backend.load()
for copy in sys.argv[2:]:
    backend.load_plugins(copy)
registry = trt.get_plugin_registry()
assert registry.load_library(sys.argv[1]) is not None
print(sum(creator.plugin_namespace == "swin" for creator in registry.all_creators))
"""


@pytest.mark.parametrize("opened", [False, True])
def test_tensorrt_loads_the_library(tmp_path, library, opened):
    copy = shutil.copy(library, tmp_path / "copy.so")
    done = in_a_process("-c", LOAD_LIBRARY, library, *[copy] * opened)
    assert done.returncode == 0 and int(done.stdout) == len({**KINDS, **INT8_KINDS}), done.stdout + done.stderr


def test_a_plan_carries_its_plugins(folder, tmp_path, library):
    """The library's bytes are in the plan; that a process with only the plan runs it is for test_engines_gpu.py."""
    done = in_a_process("TensorRT/build_engine.py", f"--onnx={folder}/swinv1_micro_attention_fp16.onnx",
                        f"--saveEngine={tmp_path}/m.plan", f"--staticPlugins={library}",
                        f"--setPluginsToSerialize={library}")
    assert done.returncode == 0, done.stderr
    assert library.read_bytes() in (tmp_path / "m.plan").read_bytes()


OTHER_ENGINES = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
import engine_worker as worker
from TensorRT import engine_builder
graph = Path(sys.argv[1])
configure = engine_builder._configure
worker.stand_in_for(graph)
for flags, profiles in ((), 1), ((), 2), (("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"), 1):
    def configured(builder, network, *others):
        config, x = configure(builder, network, *others), network.get_input(0)
        for flag in flags:
            config.set_flag(getattr(worker.trt.BuilderFlag, flag))
        for number in range(1, profiles):
            profile = builder.create_optimization_profile()
            profile.set_shape(x.name, *[(1, *x.shape[1:])] * 3)
            assert config.add_optimization_profile(profile) == number
        return config
    engine_builder._configure = configured
    worker.build(graph, "none", graph.parent)
    print("bytes", graph.with_suffix(".plan").stat().st_size)
"""


def test_what_the_plugins_allow_besides(tmp_path):
    """A second optimization profile, which makes a larger plan, and a version-compatible engine: docs/deploy.md."""
    small = Small((7, 7, 1, 7), TensorProto.FLOAT16)
    onnx.save(typed(small.model(linear(small))), tmp_path / "m.onnx")
    done = in_a_process("-c", OTHER_ENGINES, tmp_path / "m.onnx")
    assert done.returncode == 0, done.stdout + done.stderr
    one, two, compatible = map(int, re.findall(r"^bytes (\d+)$", done.stdout, re.MULTILINE))
    assert two > one and compatible > 0


# --- what the builder logs -----------------------------------------------------------------------------------


def test_layers_are_read_from_the_builders_message():
    tensor = "{{ Name: {}, Dimensions: [{}], Strides: [1], StrideOrder: [0], Datatype: {}, Format: (Linear) Rows }}"
    message = "\n".join([
        "Layers:",
        "Name: __mye1_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: ",
        f"Name: /a, b/SwinX_myl0_1, LayerType: custom_layer, Inputs: [ {tensor.format('x', '-1,49,96', 'Half')}, "
        f"{tensor.format('r', '', 'Float')}], Constants: [], Outputs: [ {tensor.format('y', '2', 'Int32')}], "
        "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: /a, b/SwinX]"])
    first, second = layers_of(message)
    assert first == {"Name": "__mye1_0_myl0_0", "LayerType": "shape_call", **{name: [] for name in LISTS}}
    assert second["Name"] == "/a, b/SwinX_myl0_1" and second["LayerType"] == "custom_layer"
    assert [(made["Name"], made["Dimensions"], made["Datatype"]) for made in second["Inputs"]] == [
        ("x", [-1, 49, 96], "Half"), ("r", [], "Float")]
    assert second["Outputs"] == [{"Name": "y", "Dimensions": [2], "Datatype": "Int32", "Format": "(Linear) Rows"}]
    assert layers_of("") == []
