"""The meaning of every plugin node in standard ONNX operators, so that onnxruntime on a CPU runs a patched graph.

`expand(model)` replaces each node of the domain `swin` by standard operators of the model's own opset (12 and later).
It is written from the nodes' contract (README.md beside this file), not from the graphs they were found in: LayerNorm
and GELU by their formulas, attention by roll, partition, mask, softmax and reverse. It is slow and obvious on purpose:
the patched graphs and the CUDA kernels are both held against it.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import reference_int8
from onnx import TensorProto, helper, numpy_helper

from utils import PLUGIN_DOMAIN, UserError, has_plugins

LAST_OPSET_OF_AXES_ATTRIBUTE = 17  # from 18 on ReduceMean and ReduceL2 take their axes as an input


class Operators:
    """Emits standard operators for one plugin node, with fresh tensor names under the node's own name."""

    def __init__(self, prefix: str, opset: int):
        self.prefix, self.opset = prefix, opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, values: object, dtype: type = np.float32) -> str:
        name = f"{self.prefix}/constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        output = f"{self.prefix}/{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output

    def reduce(self, op_type: str, x: str) -> str:
        """ReduceMean or ReduceL2 over the last axis, which is kept as 1."""
        if self.opset <= LAST_OPSET_OF_AXES_ATTRIBUTE:
            return self.op(op_type, x, axes=[-1], keepdims=1)
        return self.op(op_type, x, self.constant([-1], np.int64), keepdims=1)

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.constant(shape, np.int64))

    def slice(self, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
        return self.op("Slice", x, *(self.constant([value], np.int64) for value in (start, end, axis, step)))

    def roll(self, x: str, axis: int, shift: int, size: int) -> str:
        """torch.roll(x, shift, axis) of an axis of `size` elements."""
        cut = -shift % size
        if cut == 0:
            return x
        return self.op("Concat", self.slice(x, axis, cut, size), self.slice(x, axis, 0, cut), axis=axis)

    def unit(self, x: str, epsilon: float) -> str:
        """x / max(||x||_2, epsilon) over the last axis."""
        return self.op("Div", x, self.op("Max", self.reduce("ReduceL2", x), self.constant(epsilon)))

    def normalised(self, x: str, epsilon: float) -> str:
        """(x - mean) / sqrt(variance + epsilon) over the last axis; biased variance, in two passes."""
        centred = self.op("Sub", x, self.reduce("ReduceMean", x))
        variance = self.reduce("ReduceMean", self.op("Mul", centred, centred))
        return self.op("Div", centred, self.op("Sqrt", self.op("Add", variance, self.constant(epsilon))))

    def layer_norm(self, x: str, gamma: str, beta: str, epsilon: float) -> str:
        return self.op("Add", self.op("Mul", self.normalised(x, epsilon), gamma), beta)

    def gelu(self, x: str) -> str:
        """x * Phi(x) = x / 2 * (1 + erf(x / sqrt(2)))."""
        erf = self.op("Erf", self.op("Mul", x, self.constant(np.sqrt(0.5))))
        return self.op("Mul", self.op("Mul", x, self.constant(0.5)), self.op("Add", erf, self.constant(1)))

    def merge_patches(self, x: str, height: int, width: int) -> str:
        """[B, H*W, C] -> [B, (H/2)*(W/2), 4C]: the four neighbours (row, col) = (0,0), (1,0), (0,1), (1,1)."""
        image = self.op("Reshape", x, self.constant([0, height, width, -1], np.int64))
        quarters = [self.slice(self.slice(image, 1, row, height, 2), 2, col, width, 2)
                    for row, col in ((0, 0), (1, 0), (0, 1), (1, 1))]
        merged = self.op("Concat", *quarters, axis=3)
        # 0 keeps the batch; the last axis has to be inferred, so the tokens are given by their number.
        return self.op("Reshape", merged, self.constant([0, (height // 2) * (width // 2), -1], np.int64))


def shift_mask(height: int, width: int, window: int, shift: int, value: float) -> np.ndarray:
    """The additive mask [nW, N, N] of shifted windows: `value` between tokens of different regions of the rolled image.

    Rolling by -shift brings the image's first rows and columns to its end, into windows with tokens that are no
    neighbours of theirs. Three bands of rows and three of columns make nine regions (Liu et al. 2021, figure 4).
    """
    def band(size: int) -> np.ndarray:
        index = np.arange(size)
        return (index >= size - window).astype(int) + (index >= size - shift)

    region = 3 * band(height)[:, None] + band(width)[None, :]
    windows = region.reshape(height // window, window, width // window, window).transpose(0, 2, 1, 3)
    windows = windows.reshape(-1, window * window)
    return np.where(windows[:, :, None] != windows[:, None, :], np.float32(value), np.float32(0))


def attention(ops: Operators, attributes: dict, qkv: str, bias: str, logit_scale: str | None = None) -> str:
    height, width, window = attributes["height"], attributes["width"], attributes["window_size"]
    heads, shift = attributes["num_heads"], attributes["shift_size"]
    tokens, rows, cols = window * window, height // window, width // window

    image = ops.op("Reshape", qkv, ops.constant([0, height, width, -1], np.int64))
    image = ops.roll(ops.roll(image, 1, -shift, height), 2, -shift, width)
    # Partition into windows, with the channels told apart: (B, H/w, w, W/w, w, 3, nH, d) needs d, which qkv's own
    # shape gives only together with the batch. So the channels are split first, while the batch stays 0 (= as it is).
    image = ops.op("Reshape", image, ops.constant([0, height * width, 3 * heads, -1], np.int64))  # (B, HW, 3nH, d)
    parts = []
    for part in range(3):
        x = ops.slice(image, 2, part * heads, (part + 1) * heads)                                # (B, HW, nH, d)
        x = ops.op("Reshape", x, ops.constant([0, rows, window, cols, window * heads, -1], np.int64))
        x = ops.op("Transpose", x, perm=[0, 1, 3, 2, 4, 5])                                      # (B, r, c, w, w*nH, d)
        x = ops.op("Reshape", x, ops.constant([0, rows * cols, tokens, heads, -1], np.int64))    # (B, nW, N, nH, d)
        parts.append(ops.op("Transpose", x, perm=[0, 1, 3, 2, 4]))                               # (B, nW, nH, N, d)
    q, k, v = parts

    if logit_scale is None:
        q = ops.op("Mul", q, ops.constant(attributes["scale"]))
    else:
        q, k = ops.unit(q, 1e-12), ops.unit(k, 1e-12)
    scores = ops.op("MatMul", q, ops.op("Transpose", k, perm=[0, 1, 2, 4, 3]))                   # (B, nW, nH, N, N)
    if logit_scale is not None:
        scores = ops.op("Mul", scores, ops.reshape(logit_scale, heads, 1, 1))
    scores = ops.op("Add", scores, ops.slice(bias, 2, 0, tokens))
    if shift > 0:
        mask = shift_mask(height, width, window, shift, attributes["mask_value"])
        scores = ops.op("Add", scores, ops.constant(mask[:, None]))
    x = ops.op("MatMul", ops.op("Softmax", scores, axis=-1), v)                                  # (B, nW, nH, N, d)

    x = ops.op("Transpose", x, perm=[0, 1, 3, 2, 4])                                             # (B, nW, N, nH, d)
    x = ops.op("Reshape", x, ops.constant([0, rows, cols, window, window * heads, -1], np.int64))
    x = ops.op("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
    x = ops.op("Reshape", x, ops.constant([0, height, width, heads, -1], np.int64))
    x = ops.roll(ops.roll(x, 1, shift, height), 2, shift, width)
    x = ops.op("Reshape", x, ops.constant([0, height * width, heads, -1], np.int64))
    return _join_heads(ops, x)


def _join_heads(ops: Operators, x: str) -> str:
    """[B, L, nH, d] -> [B, L, nH*d]: the batch and the tokens stay as they are."""
    return ops.op("Reshape", x, ops.constant([0, 0, -1], np.int64))


def _add_layer_norm(ops: Operators, attributes: dict, x: str, residual: str, gamma: str, beta: str) -> list[str]:
    total = ops.op("Add", x, residual)  # normalised as it is: y does not see the rounding of the output `sum`
    return [total, ops.layer_norm(total, gamma, beta, attributes["epsilon"])]


def _linear(ops: Operators, attributes: dict, x: str, weight: str, bias: str, residual: str | None = None) -> str:
    y = ops.op("Add", ops.op("MatMul", x, ops.op("Transpose", weight, perm=[1, 0])), bias)
    y = ops.gelu(y) if attributes["gelu"] else y
    return y if residual is None else ops.op("Add", y, residual)


def _patch_embed(ops: Operators, attributes: dict, x: str, weight: str, bias: str, gamma: str, beta: str) -> str:
    """[B, Ci, H, W] -> [B, (H/P)*(W/P), C]"""
    size = attributes["patch_size"]
    image = ops.op("Conv", x, weight, bias, kernel_shape=[size, size], strides=[size, size])
    tokens = ops.op("Transpose", ops.reshape(image, 0, 0, -1), perm=[0, 2, 1])
    return ops.layer_norm(tokens, gamma, beta, attributes["epsilon"])


def _mlp(ops: Operators, attributes: dict, x: str, gamma: str, beta: str, weight1: str, bias1: str, weight2: str,
         bias2: str, *attention_end: str) -> str:
    def norm(tensor: str) -> str:
        return ops.layer_norm(tensor, gamma, beta, attributes["epsilon"])

    if attention_end:
        attention, proj_weight, proj_bias, *proj_norm = attention_end  # gamma and beta, if not norm_first
        branch = _linear(ops, {"gelu": 0}, attention, proj_weight, proj_bias)
        if not attributes["norm_first"]:
            branch = ops.layer_norm(branch, *proj_norm, attributes["epsilon"])
        x = ops.op("Add", x, branch)
    hidden = _linear(ops, {"gelu": 1}, norm(x) if attributes["norm_first"] else x, weight1, bias1)
    y = _linear(ops, {"gelu": 0}, hidden, weight2, bias2)
    return ops.op("Add", x, y if attributes["norm_first"] else norm(y))


# What each node computes, from the names of its FP32 inputs to those of its FP32 outputs.
EXPANSIONS = {
    "SwinLayerNorm": lambda ops, a, x: [ops.normalised(x, a["epsilon"])],
    "SwinLayerNormWithParams": lambda ops, a, x, gamma, beta: [ops.layer_norm(x, gamma, beta, a["epsilon"])],
    "SwinAddLayerNorm": lambda ops, a, x, residual, gamma, beta: _add_layer_norm(ops, a, x, residual, gamma, beta),
    "SwinLayerNormAdd": lambda ops, a, x, residual, gamma, beta: [
        ops.op("Add", residual, ops.layer_norm(x, gamma, beta, a["epsilon"]))],
    "SwinPatchMergeLayerNorm": lambda ops, a, x, gamma, beta: [
        ops.layer_norm(ops.merge_patches(x, a["height"], a["width"]), gamma, beta, a["epsilon"])],
    "SwinPatchMerge": lambda ops, a, x: [ops.merge_patches(x, a["height"], a["width"])],
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
