"""Write what other tools put into a graph as standard operators, the only ones that TensorRT and the surgery know.

onnxruntime and optimum, when they optimise a graph, write operators of the domain com.microsoft into it, such as
BiasGelu and FusedMatMul; exporters may write functions that the model itself defines. `standard(model)` gives back the
same model without them. Sources: docs/ContribOperators.md of microsoft/onnxruntime, for each operator.
"""
from __future__ import annotations

import math
from collections.abc import Callable

import onnx
from onnx import helper, inliner

from graphs.files import PLUGIN_DOMAIN
from graphs.operators import Operators
from graphs.sessions import session_of
from utils import UserError

CONTRIB = "com.microsoft"
FIRST_OPSET_OF_LAYER_NORM = 17
ACTIVATIONS = ("Relu", "Sigmoid", "Tanh")


class Unknown(Exception):
    """Why a node is left as it is: a form of the operator that is not written out here."""


def _gelu_tanh(ops: Operators, x: str) -> str:
    """x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))"""
    cube = ops.op("Mul", ops.op("Mul", x, x), x)
    inner = ops.op("Add", x, ops.op("Mul", cube, ops.constant(0.044715)))
    gate = ops.op("Tanh", ops.op("Mul", inner, ops.constant(math.sqrt(2 / math.pi))))
    return ops.op("Mul", ops.op("Mul", x, ops.constant(0.5)), ops.op("Add", gate, ops.constant(1)))


def _sum(ops: Operators, *terms: str) -> str:
    total = terms[0]
    for term in filter(None, terms[1:]):
        total = ops.op("Add", total, term)
    return total


def _layer_norm(ops: Operators, attributes: dict, x: str, gamma: str, beta: str = "") -> str:
    epsilon = attributes.get("epsilon", 1e-5)
    if ops.opset >= FIRST_OPSET_OF_LAYER_NORM:
        return ops.op("LayerNormalization", x, gamma, *filter(None, [beta]), axis=attributes.get("axis", -1),
                      epsilon=epsilon)
    if attributes.get("axis", -1) != -1:
        raise Unknown("its axis is not the last one")
    scaled = ops.op("Mul", ops.normalised(x, epsilon), gamma)
    return _sum(ops, scaled, beta)


def _rms_norm(ops: Operators, attributes: dict, x: str, gamma: str) -> str:
    """x / sqrt(mean(x^2) + epsilon) * gamma, which onnxruntime also makes of the end of a written-out LayerNorm."""
    if attributes.get("axis", -1) != -1:
        raise Unknown("its axis is not the last one")
    mean = ops.reduce("ReduceMean", ops.op("Mul", x, x))
    root = ops.op("Sqrt", ops.op("Add", mean, ops.constant(attributes.get("epsilon", 1e-5))))
    return ops.op("Mul", ops.op("Div", x, root), gamma)


def _skip_layer_norm(ops: Operators, attributes: dict, x: str, skip: str, gamma: str, beta: str = "",
                     bias: str = "") -> list[str]:
    total = _sum(ops, x, skip, bias)
    return [_layer_norm(ops, attributes, total, gamma, beta), "", "", total]  # the two between are for training


def _activated(ops: Operators, attributes: dict, x: str) -> str:
    activation = _text(attributes.get("activation", ""))
    if activation and activation not in ACTIVATIONS:
        raise Unknown(f"its activation is {activation}")
    return ops.op(activation, x) if activation else x


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class _Ranks:
    """The ranks of tensors, as onnxruntime infers them when it loads the model; asked for only where they matter."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model

    def transposed(self, ops: Operators, x: str) -> str:
        """x with its last two axes exchanged."""
        rank = self.of(x)
        return ops.op("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2])

    def of(self, name: str) -> int:
        weights = {tensor.name: len(tensor.dims) for tensor in self.model.graph.initializer}
        if name in weights:
            return weights[name]
        probed = onnx.ModelProto()
        probed.CopyFrom(self.model)
        del probed.graph.output[:]
        probed.graph.output.append(onnx.ValueInfoProto(name=name))
        rank = len(session_of(probed, as_it_is=True).get_outputs()[0].shape)
        if rank < 2:
            raise Unknown(f"the rank of {name} is not known")
        return rank


def _fused_matmul(ops: Operators, attributes: dict, ranks: _Ranks, a: str, b: str) -> str:
    if attributes.get("transBatchA") or attributes.get("transBatchB"):
        raise Unknown("it transposes the batch")
    a = ranks.transposed(ops, a) if attributes.get("transA") else a
    b = ranks.transposed(ops, b) if attributes.get("transB") else b
    product, alpha = ops.op("MatMul", a, b), attributes.get("alpha", 1.0)
    return product if alpha == 1 else ops.op("Mul", product, ops.constant(alpha))


def _fused_gemm(ops: Operators, attributes: dict, a: str, b: str, c: str = "") -> str:
    kept = {key: attributes[key] for key in ("alpha", "beta", "transA", "transB") if key in attributes}
    return _activated(ops, attributes, ops.op("Gemm", a, b, *filter(None, [c]), **kept))


def _fused_conv(ops: Operators, attributes: dict, x: str, weight: str, bias: str = "", added: str = "") -> str:
    kept = {key: value for key, value in attributes.items() if not key.startswith("activation")}
    y = ops.op("Conv", x, weight, *filter(None, [bias]), **kept)
    return _activated(ops, attributes, _sum(ops, y, added))


# What each operator computes, from its inputs' names to those of its outputs; "" for one that nothing may read.
EXPANSIONS: dict[str, Callable] = {
    "Gelu": lambda ops, a, ranks, x: [ops.gelu(x)],
    "BiasGelu": lambda ops, a, ranks, x, bias: [ops.gelu(_sum(ops, x, bias))],
    "FastGelu": lambda ops, a, ranks, x, bias="": [_gelu_tanh(ops, _sum(ops, x, bias))],
    "QuickGelu": lambda ops, a, ranks, x: [
        ops.op("Mul", x, ops.op("Sigmoid", ops.op("Mul", x, ops.constant(a.get("alpha", 1.702)))))],
    "BiasAdd": lambda ops, a, ranks, x, bias, skip: [_sum(ops, x, bias, skip)],
    "LayerNormalization": lambda ops, a, ranks, x, gamma, beta="": [_layer_norm(ops, a, x, gamma, beta)],
    "SkipLayerNormalization": lambda ops, a, ranks, *inputs: _skip_layer_norm(ops, a, *inputs),
    "SimplifiedLayerNormalization": lambda ops, a, ranks, x, gamma: [_rms_norm(ops, a, x, gamma)],
    "FusedMatMul": lambda ops, a, ranks, x, y: [_fused_matmul(ops, a, ranks, x, y)],
    "TransposeMatMul": lambda ops, a, ranks, x, y: [_fused_matmul(ops, a, ranks, x, y)],
    "FusedGemm": lambda ops, a, ranks, *inputs: [_fused_gemm(ops, a, *inputs)],
    "FusedConv": lambda ops, a, ranks, *inputs: [_fused_conv(ops, a, *inputs)],
}


def _opset(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _is_standard(node: onnx.NodeProto, opset: int) -> bool:
    # onnxruntime writes some of its own under the standard domain's name, and LayerNormalization below opset 17.
    return node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type) and (
        node.op_type != "LayerNormalization" or opset >= FIRST_OPSET_OF_LAYER_NORM)


def standard(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in standard operators and this project's plugin nodes; itself, where it has no others.

    Raises:
        UserError: a node of another domain that is not written out here, with its name.
    """
    if model.functions:
        model = inliner.inline_local_functions(model)
    opset = _opset(model)
    foreign = [node for node in model.graph.node if not _is_standard(node, opset) and node.domain != PLUGIN_DOMAIN]
    if not foreign:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    ranks, left = _Ranks(model), []
    for index, node in enumerate(model.graph.node):
        if not any(node is other for other in foreign):
            result.graph.node.append(node)
            continue
        ops = Operators(f"{node.name or node.op_type}/standard_{index}", opset)
        try:
            outputs = _expanded(ops, node, ranks)
        except Unknown as reason:
            left.append(f"{node.name or node.output[0]} ({node.domain or 'ai.onnx'}:{node.op_type}: {reason})")
            continue
        renamed = {made: name for made, name in zip(outputs, node.output) if made and name}
        for made in ops.nodes:
            made.input[:] = [renamed.get(name, name) for name in made.input]
            made.output[:] = [renamed.get(name, name) for name in made.output]
        result.graph.node.extend(ops.nodes)
        result.graph.initializer.extend(ops.initializers)
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise UserError(f"its node {left[0]}{more} is no standard operator, and TensorRT knows only those; give the "
                        "graph as it was exported, before onnxruntime, optimum or another tool optimised it")
    imports = [entry for entry in result.opset_import if entry.domain in ("", "ai.onnx", PLUGIN_DOMAIN)]
    del result.opset_import[:]
    result.opset_import.extend(imports)
    return result


def _expanded(ops: Operators, node: onnx.NodeProto, ranks: _Ranks) -> list[str]:
    if node.domain not in (CONTRIB, "", "ai.onnx") or node.op_type not in EXPANSIONS:
        raise Unknown("an operator of another tool")
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    try:
        outputs = EXPANSIONS[node.op_type](ops, attributes, ranks, *node.input)
    except TypeError as error:
        raise Unknown(f"it has {len(node.input)} inputs") from error
    read = {name for other in ranks.model.graph.node for name in other.input}
    read |= {value.name for value in ranks.model.graph.output}
    for name, output in zip(node.output, [*outputs, *[""] * len(node.output)]):
        if name and not output and name in read:
            raise Unknown(f"its output {name} is read")
    return outputs


