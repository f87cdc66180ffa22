"""The meaning of the INT8 plugin nodes in standard ONNX operators; `expand` of reference.py takes them from here.

INT8 activations are ONNX INT8 tensors, made by QuantizeLinear: saturate(round_half_even(x / scale)) to [-128, 127].
Products of INT8 numbers are added in FP32, exactly up to 2^24 and rounded to one part in 2^24 above. Other activations
have the type that the model declares for a node's output, FP16 where it declares none.

Weights of products lie in the file as INT32 [N, K/4], four INT8 in each, column 4j in the lowest byte.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphs.operators import Operators, attention


def packed(weight: np.ndarray) -> np.ndarray:
    """INT8 [N, K], K a multiple of 4 -> INT32 [N, K/4]."""
    return np.ascontiguousarray(weight, np.int8).view("<i4").astype(np.int32)


def unpacked(weight: np.ndarray) -> np.ndarray:
    """INT32 [N, K/4] -> INT8 [N, K]."""
    return np.ascontiguousarray(weight, "<i4").view(np.int8)


def quantise(ops: Operators, x: str, scale: float) -> str:
    return ops.op("QuantizeLinear", x, ops.constant(scale), ops.constant(0, np.int8))


def _linear(ops: Operators, a: dict, x: str, weight: str, scale: str, bias: str, residual: str | None = None) -> list:
    # x and weight hold whole numbers here
    total = ops.op("MatMul", x, ops.op("Transpose", weight, perm=[1, 0]))
    y = ops.op("Add", ops.op("Mul", total, scale), bias)
    y = ops.activation(y, a["gelu"])
    y = y if residual is None else ops.op("Add", y, residual)
    return [quantise(ops, y, a["y_scale"]) if a["y_scale"] else y]


def _layer_norm(ops: Operators, a: dict, x: str, gamma: str, beta: str) -> list:
    return [quantise(ops, ops.layer_norm(x, gamma, beta, a["epsilon"]), a["y_scale"])]


def _layer_norm_add(ops: Operators, a: dict, x: str, residual: str, gamma: str, beta: str) -> list:
    x = ops.op("Mul", x, ops.constant(a["x_scale"])) if a["x_scale"] else x
    y = ops.op("Add", residual, ops.layer_norm(x, gamma, beta, a["epsilon"]))
    return [y, quantise(ops, y, a["y_scale"])]


def _attention(ops: Operators, a: dict, qkv: str, bias: str, padding: str, *logit_scale: str) -> list:
    def real(quantised: str) -> str:
        return ops.op("Mul", quantised, ops.constant(a["qkv_scale"]))

    padding = ops.op("Cast", quantise(ops, padding, a["qkv_scale"]), to=TensorProto.FLOAT)  # as qkv is
    y = attention(ops, a, real(qkv), bias, real(padding), *logit_scale)
    return [quantise(ops, y, a["y_scale"]) if a["y_scale"] else y]


def _attention_branch(ops: Operators, a: dict, x_q: str, x: str, qkv_weight: str, qkv_factor: str, qkv_bias: str,
                      proj_weight: str, proj_factor: str, proj_bias: str, bias: str, gamma: str, beta: str,
                      *logit_scale: str) -> list:
    """What the four nodes are that it stands for, one after the other."""
    def fp32(tensor: str) -> str:
        return ops.op("Cast", tensor, to=TensorProto.FLOAT)

    (qkv,) = _linear(ops, {"gelu": 0, "y_scale": a["qkv_scale"]}, x_q, qkv_weight, qkv_factor, qkv_bias)
    # No window needs padding here, so that its value does not count.
    (y,) = _attention(ops, {**a, "y_scale": a["attention_scale"]}, fp32(qkv), bias, qkv_bias, *logit_scale)
    (y,) = _linear(ops, {"gelu": 0, "y_scale": a["proj_scale"]}, fp32(y), proj_weight, proj_factor, proj_bias,
                   *([x] if a["norm_first"] else []))
    if a["norm_first"]:
        y = ops.op("Cast", y, to=a["y_type"])  # LayerNorm reads the sum rounded
        return [y, *_layer_norm(ops, a, fp32(y), gamma, beta)]
    return _layer_norm_add(ops, {**a, "x_scale": a["proj_scale"]}, fp32(y), x, gamma, beta)


# From the names of a node's inputs, all FP32, to those of its outputs, INT8 or of another type, FP32 but for y_type.
EXPANSIONS: dict[str, Callable[..., list[str]]] = {
    "SwinLinearInt8": _linear,
    "SwinLayerNormInt8": _layer_norm,
    "SwinLayerNormAddInt8": _layer_norm_add,
    "SwinQuantize": lambda ops, a, x: [quantise(ops, x, a["y_scale"])],
    "SwinAttentionInt8": _attention,
    "SwinAttentionBranchInt8": _attention_branch,
}

# Which inputs are weights, packed in the file.
WEIGHTS = {"SwinLinearInt8": (1,), "SwinAttentionBranchInt8": (2, 5)}


def expand_node(ops: Operators, node: onnx.NodeProto, types: dict[str, int],
                weights: dict[str, onnx.TensorProto]) -> None:
    """Emit the operators that an INT8 node stands for, and note the types of its outputs.

    Args:
        ops: receives the operators; the last ones make the node's outputs.
        node: of one of EXPANSIONS.
        types: element type of each tensor by name, as far as known.
        weights: the model's constants by name.
    """
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    attributes["y_type"] = types.get(node.output[0], TensorProto.FLOAT16)  # of a first output that is not INT8
    inputs = []
    for i, name in enumerate(node.input):
        if i in WEIGHTS.get(node.op_type, ()):
            inputs.append(ops.constant(unpacked(numpy_helper.to_array(weights[name]))))
        elif types.get(name) == TensorProto.FLOAT:
            inputs.append(name)
        else:
            inputs.append(ops.op("Cast", name, to=TensorProto.FLOAT))
    for name, output in zip(EXPANSIONS[node.op_type](ops, attributes, *inputs), node.output):
        is_int8 = next(made.op_type for made in ops.nodes if name in made.output) == "QuantizeLinear"
        types[output] = TensorProto.INT8 if is_int8 else types.get(output, TensorProto.FLOAT16)
        ops.nodes.append(helper.make_node("Cast", [name], [output], name=f"{output}/cast", to=types[output]))
