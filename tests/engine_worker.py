"""Builds engines of several graphs in one process, for test_engines_cpu.py: a library that aborts takes no test along.

    python tests/engine_worker.py PLUGINS FOLDER GRAPH...

PLUGINS is a plugin library, `none`, or `stand-in`. Stand-ins are plugins in Python that only state the shapes and types
which the graph itself gives to the outputs of its plugin nodes, found by ONNX's shape inference over what the nodes
stand for. TensorRT's parser and builder so see the structure of a patched graph where no plugin library can be built.
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

Output = tuple  # (element type of ONNX, dimensions, each a size or a name)


def outputs_of_nodes(model: onnx.ModelProto) -> dict[str, list[Output]]:
    """Types and shapes of the outputs of each plugin node, by the node's name."""
    inferred = onnx.shape_inference.infer_shapes(expand(model)).graph
    known = {value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.output)}
    return {node.name: [(known[name].elem_type, [dim.dim_param or dim.dim_value for dim in known[name].shape.dim])
                        for name in node.output]
            for node in model.graph.node if node.domain == PLUGIN_DOMAIN}


class StandIn(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
    """A plugin that computes nothing: it has the outputs that its node has in the graph."""

    def __init__(self, operator: str, outputs: list[Output]) -> None:
        trt.IPluginV3.__init__(self)
        trt.IPluginV3OneCore.__init__(self)
        trt.IPluginV3OneBuild.__init__(self)
        trt.IPluginV3OneRuntime.__init__(self)
        self.plugin_name, self.plugin_version, self.plugin_namespace = operator, "1", PLUGIN_DOMAIN
        self.outputs, self.num_outputs = outputs, len(outputs)
        self.types: list[trt.DataType] = []  # of the inputs

    def get_capability_interface(self, kind: trt.PluginCapabilityType) -> StandIn:
        return self

    def clone(self) -> StandIn:
        copy = StandIn(self.plugin_name, self.outputs)
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
                if isinstance(size, str):  # the batch
                    shape[axis] = inputs[0][0]
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
        self.nodes: dict[str, list[Output]] = {}  # of the graph that is being built

    def create_plugin(self, name: str, fields: trt.PluginFieldCollection, phase: trt.TensorRTPhase) -> StandIn:
        return StandIn(self.name, self.nodes[name])


CREATORS: dict[str, Creator] = {}


def stand_in_for(graph: Path) -> None:
    """Register stand-ins for the plugin nodes of a graph."""
    model = onnx.load(graph)
    outputs = outputs_of_nodes(model)
    for operator in {node.op_type for node in model.graph.node if node.domain == PLUGIN_DOMAIN}:
        if operator not in CREATORS:
            CREATORS[operator] = Creator(operator)
            trt.get_plugin_registry().register_creator(CREATORS[operator], PLUGIN_DOMAIN)
        CREATORS[operator].nodes = outputs


def build(graph: Path, plugins: str, folder: Path) -> None:
    from TensorRT.engine_builder import build as build_plan

    plan = folder / f"{graph.stem}.plan"
    with mock.patch.object(sys, "argv", [
            "build_engine.py", f"--onnx={graph}", f"--saveEngine={plan}", f"--staticPlugins={plugins}", "--noTF32",
            f"--exportLayerInfo={plan.with_suffix('.layers.json')}", "--builderOptimizationLevel=0"]):
        arguments: Namespace = build_engine.parse_arguments()
    build_plan(arguments)


def main() -> None:
    plugins, folder, *graphs = sys.argv[1:]
    for graph in map(Path, graphs):
        try:
            if plugins == "stand-in":
                stand_in_for(graph)
            build(graph, "none" if plugins == "stand-in" else plugins, Path(folder))
            print(f"{graph.stem}: built", flush=True)
        except UserError as error:
            print(f"{graph.stem}: {error}", flush=True)


if __name__ == "__main__":
    main()
