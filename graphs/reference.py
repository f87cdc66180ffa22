"""The meaning of every plugin node in standard ONNX operators, so that onnxruntime on a CPU runs a patched graph.

`expand(model)` replaces each node of the domain `swin` by standard operators of the model's own opset (12 and later).
It is written from the nodes' contract (README.md beside this file), not from the graphs they were found in: LayerNorm
and GELU by their formulas, attention by the index arithmetic that its contract states. It is slow and obvious on
purpose: the patched graphs and the CUDA kernels are both held against it.

Height and width are those that a tensor has when it is run: the operators read them off with Shape. So an expanded
graph takes every image size that the patched one takes, open sizes too.
"""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from graphs import reference_int8
from graphs.files import PLUGIN_DOMAIN, has_plugins
from graphs.operators import Operators, attention
from utils import UserError


def _add_layer_norm(ops: Operators, attributes: dict, x: str, residual: str, gamma: str, beta: str) -> list[str]:
    total = ops.op("Add", x, residual)  # normalised as it is: y does not see the rounding of the output `sum`
    return [total, ops.layer_norm(total, gamma, beta, attributes["epsilon"])]


def _linear(ops: Operators, attributes: dict, x: str, weight: str, bias: str, residual: str | None = None) -> str:
    y = ops.op("Add", ops.op("MatMul", x, ops.op("Transpose", weight, perm=[1, 0])), bias)
    y = ops.activation(y, attributes["gelu"])
    return y if residual is None else ops.op("Add", y, residual)


def _patch_embed(ops: Operators, attributes: dict, x: str, weight: str, bias: str, gamma: str, beta: str) -> str:
    """[B, Ci, H, W] -> [B, h, w, C], the image continued by zeros at the bottom and the right where `ceil` says so."""
    patch = [attributes["patch_height"], attributes["patch_width"]]
    if attributes["ceil"]:
        missing = [ops.reshape(ops.op("Sub", ops.rounded_up(size, side), size), 1)
                   for size, side in zip(ops.sizes(x, 2, 3), patch)]
        x = ops.op("Pad", x, ops.op("Concat", ops.constant([0] * 6, np.int64), *missing, axis=0))
    image = ops.op("Conv", x, weight, bias, kernel_shape=patch, strides=patch)
    return ops.layer_norm(ops.op("Transpose", image, perm=[0, 2, 3, 1]), gamma, beta, attributes["epsilon"])


def _mlp(ops: Operators, attributes: dict, x: str, gamma: str, beta: str, weight1: str, bias1: str, weight2: str,
         bias2: str, *attention_end: str) -> str:
    def norm(tensor: str) -> str:
        return ops.layer_norm(tensor, gamma, beta, attributes["epsilon"])

    if attention_end:
        attention, proj_weight, proj_bias, *proj_norm = attention_end  # gamma and beta if not norm_first
        branch = _linear(ops, {"gelu": 0}, attention, proj_weight, proj_bias)
        if not attributes["norm_first"]:
            proj_gamma, proj_beta = proj_norm
            branch = ops.layer_norm(branch, proj_gamma, proj_beta, attributes["epsilon"])
        x = ops.op("Add", x, branch)
    hidden = _linear(ops, {"gelu": attributes["gelu"]}, norm(x) if attributes["norm_first"] else x, weight1, bias1)
    y = _linear(ops, {"gelu": 0}, hidden, weight2, bias2)
    return ops.op("Add", x, y if attributes["norm_first"] else norm(y))


# What each node computes, from the names of its FP32 inputs to those of its FP32 outputs.
EXPANSIONS: dict[str, Callable[..., list[str]]] = {
    "SwinLayerNorm": lambda ops, a, x: [ops.normalised(x, a["epsilon"])],
    "SwinLayerNormWithParams": lambda ops, a, x, gamma, beta: [ops.layer_norm(x, gamma, beta, a["epsilon"])],
    "SwinAddLayerNorm": lambda ops, a, x, residual, gamma, beta: _add_layer_norm(ops, a, x, residual, gamma, beta),
    "SwinLayerNormAdd": lambda ops, a, x, residual, gamma, beta: [
        ops.op("Add", residual, ops.layer_norm(x, gamma, beta, a["epsilon"]))],
    "SwinPatchMergeLayerNorm": lambda ops, a, x, gamma, beta: [
        ops.layer_norm(ops.merge_patches(x), gamma, beta, a["epsilon"])],
    "SwinPatchMerge": lambda ops, a, x: [ops.merge_patches(x)],
    "SwinFNorm": lambda ops, a, x: [ops.unit(x, a["epsilon"])],
    "SwinAttention": lambda ops, a, *inputs: [attention(ops, a, *inputs)],
    "SwinLinear": lambda ops, a, *inputs: [_linear(ops, a, *inputs)],
    "SwinMlp": lambda ops, a, *inputs: [_mlp(ops, a, *inputs)],
    "SwinPatchEmbed": lambda ops, a, *inputs: [_patch_embed(ops, a, *inputs)],
}

# Which inputs are operands of a product and have the activations' type; all other constants of plugin nodes are FP32.
OPERANDS = {"SwinLinear": (1, 2), "SwinMlp": (3, 4, 5, 6, 8, 9)}

LARGE_WEIGHT = 1024  # elements
Y_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)  # what SwinPatchEmbed's y_type stands for


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of each tensor, by name, where the model says it or shape inference can tell.

    Large weights are left out of the inference, for which only their types count: it would copy them several times.
    """
    graph = model.graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    outline = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    outline.graph.node.extend(graph.node)
    outline.graph.output.extend(graph.output)
    outline.graph.value_info.extend(graph.value_info)
    outline.graph.input.extend(value for value in graph.input if value.name not in weights)
    for tensor in graph.initializer:
        if np.prod(tensor.dims) > LARGE_WEIGHT:
            outline.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            outline.graph.initializer.append(tensor)
    inferred = onnx.shape_inference.infer_shapes(outline).graph
    types = {value.name: value.type.tensor_type.elem_type
             for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    return types | weights


def expand(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model in which each plugin node is replaced by standard operators; itself, where it has none.

    The operators compute in FP32; an FP16 node's input and output are cast. Tensor names outside the nodes stay.

    Raises:
        UserError: a node of the domain `swin` that has no reference meaning.
    """
    if not has_plugins(model):
        return model
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    types = element_types(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    expanded = onnx.ModelProto()
    expanded.CopyFrom(model)
    del expanded.graph.node[:]
    for index, node in enumerate(model.graph.node):
        if node.domain != PLUGIN_DOMAIN:
            expanded.graph.node.append(node)
            continue
        ops = Operators(f"{node.name or node.op_type}/expanded_{index}", opset)
        if node.op_type in reference_int8.EXPANSIONS:
            reference_int8.expand_node(ops, node, types, weights)
            expanded.graph.node.extend(ops.nodes)
            expanded.graph.initializer.extend(ops.initializers)
            continue
        if node.op_type not in EXPANSIONS:
            raise UserError(f"{node.name}: {node.op_type} has no reference meaning; add one to {Path(__file__).name}")
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        element_type = types.get(node.input[0]) or TensorProto.FLOAT
        if "y_type" in attributes:  # SwinPatchEmbed
            element_type = Y_TYPES[attributes["y_type"]]
        inputs = [name if types.get(name, element_type) == TensorProto.FLOAT
                  else ops.op("Cast", name, to=TensorProto.FLOAT) for name in node.input if name]
        for name, output in zip(EXPANSIONS[node.op_type](ops, attributes, *inputs), node.output):
            types[output] = element_type
            ops.nodes.append(helper.make_node("Cast", [name], [output], name=f"{output}/cast", to=element_type))
        expanded.graph.node.extend(ops.nodes)
        expanded.graph.initializer.extend(ops.initializers)
    domains = [entry for entry in expanded.opset_import if entry.domain != PLUGIN_DOMAIN]
    del expanded.opset_import[:]
    expanded.opset_import.extend(domains)
    return expanded
