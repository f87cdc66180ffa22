"""Builds engines of several graphs in one process, for test_engines_cpu.py: a library that aborts takes no test along.

    python tests/engine_worker.py PLUGINS FOLDER GRAPH[=SMALLEST,USUAL,LARGEST]...

Behind a graph may stand the shapes of its input, such as 1x3x64x64. PLUGINS is a plugin library, `none`, or `stand-in`.
Stand-ins are plugins in Python that only state the shapes and types which the graph itself gives to the outputs of its
plugin nodes, found by ONNX's shape inference over what the nodes stand for, and, of sides that are open, by the nodes'
contract. TensorRT's parser and builder so see the structure of a patched graph where no plugin library can be built.
Writes FOLDER/<graph>.plan and .layers.json, and prints a line for each graph: its name, and `built` or the error.
"""
from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from unittest import mock

import onnx
from onnx import TensorProto

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from graphs.files import PLUGIN_DOMAIN
from graphs.reference import expand
from TensorRT import backend, build_engine
from utils import UserError

trt = backend.load()

TYPES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.INT8: "int32"}
INT8_PER_ELEMENT = 4  # an INT8 tensor of this project's nodes is an INT32 tensor with a quarter of the last axis

Output = tuple  # (element type of ONNX, dimensions, each a size or, where it is open, None)


def outputs_of_nodes(model: onnx.ModelProto) -> dict[str, list[Output]]:
    """Types and shapes of the outputs of each plugin node, by the node's name."""
    inferred = onnx.shape_inference.infer_shapes(expand(model)).graph
    known = {value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.output)}
    return {node.name: [(known[name].elem_type, [dim.dim_value or None for dim in known[name].shape.dim])
                        for name in node.output]
            for node in model.graph.node if node.domain == PLUGIN_DOMAIN}


def open_side(node: onnx.NodeProto, axis: int, x: trt.DimsExprs, builder: trt.IExprBuilder) -> trt.IDimensionExpr:
    """A side of what a node gives for x that inference does not know, by its contract (TensorRT/Plugins/README.md)."""
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    divide = trt.DimensionOperation
    if node.op_type.startswith("SwinPatchMerge"):
        return builder.operation(divide.CEIL_DIV, x[axis], builder.constant(2))
    if node.op_type == "SwinPatchEmbed":
        patch = attributes["patch_height" if axis == 1 else "patch_width"]
        return builder.operation(divide.CEIL_DIV if attributes["ceil"] else divide.FLOOR_DIV, x[axis + 1],
                                 builder.constant(patch))
    if "Attention" in node.op_type and axis == len(x) - 1:  # q, k and v become one
        return builder.operation(divide.FLOOR_DIV, x[axis], builder.constant(3))
    return x[axis]


class StandIn(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
    """A plugin that computes nothing: it has the outputs that its node has in the graph."""

    def __init__(self, node: onnx.NodeProto, outputs: list[Output]) -> None:
        trt.IPluginV3.__init__(self)
        trt.IPluginV3OneCore.__init__(self)
        trt.IPluginV3OneBuild.__init__(self)
        trt.IPluginV3OneRuntime.__init__(self)
        self.node, self.plugin_name, self.plugin_version, self.plugin_namespace = node, node.op_type, "1", PLUGIN_DOMAIN
        self.outputs, self.num_outputs = outputs, len(outputs)
        self.types: list[trt.DataType] = []  # of the inputs

    def get_capability_interface(self, kind: trt.PluginCapabilityType) -> StandIn:
        return self

    def clone(self) -> StandIn:
        copy = StandIn(self.node, self.outputs)
        copy.types = self.types
        return copy

    def get_output_data_types(self, types: list[trt.DataType]) -> list[trt.DataType]:
        self.types = list(types)
        return [getattr(trt, TYPES[kind]) for kind, _ in self.outputs]

    def get_output_shapes(self, inputs: list[trt.DimsExprs], shape_inputs: list, builder: trt.IExprBuilder) -> list:
        shapes = []
        for kind, sizes in self.outputs:
            shape = trt.DimsExprs(len(sizes))
            for axis, size in enumerate(sizes):
                if size is None:
                    shape[axis] = open_side(self.node, axis, inputs[0], builder) if axis else inputs[0][0]
                else:
                    packed = kind == TensorProto.INT8 and axis == len(sizes) - 1
                    shape[axis] = builder.constant(size // INT8_PER_ELEMENT if packed else size)
            shapes.append(shape)
        return shapes

    def supports_format_combination(self, position: int, tensors: list, inputs: int) -> bool:
        tensor = tensors[position].desc
        wanted = [*self.types, *(getattr(trt, TYPES[kind]) for kind, _ in self.outputs)][position]
        return tensor.format == trt.TensorFormat.LINEAR and tensor.type == wanted

    def configure_plugin(self, inputs: list, outputs: list) -> None:
        pass

    def on_shape_change(self, inputs: list, outputs: list) -> None:
        pass

    def get_fields_to_serialize(self) -> trt.PluginFieldCollection:
        return trt.PluginFieldCollection([])

    def attach_to_context(self, context: trt.IPluginResourceContext) -> StandIn:
        return self.clone()

    def enqueue(self, *_: object) -> None:
        raise NotImplementedError("a stand-in computes nothing")


class Creator(trt.IPluginCreatorV3One):
    """Makes the stand-ins of one operator."""

    def __init__(self, operator: str) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = operator, "1", PLUGIN_DOMAIN
        self.field_names = trt.PluginFieldCollection([])
        # Of the graph that is being built.
        self.outputs: dict[str, list[Output]] = {}
        self.nodes: dict[str, onnx.NodeProto] = {}

    def create_plugin(self, name: str, fields: trt.PluginFieldCollection, phase: trt.TensorRTPhase) -> StandIn:
        return StandIn(self.nodes[name], self.outputs[name])


CREATORS: dict[str, Creator] = {}


def stand_in_for(graph: Path) -> None:
    """Register stand-ins for the plugin nodes of a graph."""
    model = onnx.load(graph)
    outputs = outputs_of_nodes(model)
    for operator in {node.op_type for node in model.graph.node if node.domain == PLUGIN_DOMAIN}:
        if operator not in CREATORS:
            CREATORS[operator] = Creator(operator)
            trt.get_plugin_registry().register_creator(CREATORS[operator], PLUGIN_DOMAIN)
        CREATORS[operator].outputs, CREATORS[operator].nodes = outputs, {node.name: node for node in model.graph.node}


def build(graph: Path, plugins: str, folder: Path, shapes: str = "") -> None:
    from TensorRT.engine_builder import build as build_plan

    plan = folder / f"{graph.stem}.plan"
    profile = zip(("min", "opt", "max"), shapes.split(",") if shapes else [])
    with mock.patch.object(sys, "argv", [
            "build_engine.py", f"--onnx={graph}", f"--saveEngine={plan}", f"--staticPlugins={plugins}", "--noTF32",
            f"--exportLayerInfo={plan.with_suffix('.layers.json')}", "--builderOptimizationLevel=0",
            *(f"--{which}Shapes=input:{shape}" for which, shape in profile)]):
        arguments: Namespace = build_engine.parse_arguments()
    build_plan(arguments)


def main() -> None:
    plugins, folder, *graphs = sys.argv[1:]
    for argument in graphs:
        name, _, shapes = argument.partition("=")
        graph = Path(name)
        try:
            if plugins == "stand-in":
                stand_in_for(graph)
            build(graph, "none" if plugins == "stand-in" else plugins, Path(folder), shapes)
            print(f"{graph.stem}: built", flush=True)
        except UserError as error:
            print(f"{graph.stem}: {error}", flush=True)


if __name__ == "__main__":
    main()
