"""Writes standard ONNX operators for one plugin node; reference.py and reference_int8.py say which."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
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

    def integer(self, value: int) -> str:
        """A whole number, INT64 without axes."""
        return self.constant(value, np.int64)

    def sizes(self, x: str, *axes: int) -> list[str]:
        """Sizes of these axes of a tensor as it is run, each INT64 without axes."""
        shape = self.op("Shape", x)
        return [self.op("Gather", shape, self.integer(axis)) for axis in axes]

    def reshape_to(self, x: str, *shape: int | str) -> str:
        """Reshape to sizes that are numbers (0: as it is, -1: what is left) or tensors of `sizes`."""
        one = self.constant([1], np.int64)
        parts = [self.op("Reshape", size, one) if isinstance(size, str) else self.constant([size], np.int64)
                 for size in shape]
        return self.op("Reshape", x, self.op("Concat", *parts, axis=0))

    def count(self, size: str) -> str:
        """0, 1, ... size - 1, INT64."""
        return self.op("Range", self.integer(0), size, self.integer(1))

    def rounded_up(self, size: str, step: int) -> str:
        """The next multiple of `step`."""
        return self.op("Mul", self.op("Div", self.op("Add", size, self.integer(step - 1)), self.integer(step)),
                       self.integer(step))

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
        return self._gated(x, self.op("Erf", self.op("Mul", x, self.constant(np.sqrt(0.5)))))

    def gelu_tanh(self, x: str) -> str:
        """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))."""
        cube = self.op("Mul", self.op("Mul", x, x), x)
        inner = self.op("Add", x, self.op("Mul", cube, self.constant(0.044715)))
        return self._gated(x, self.op("Tanh", self.op("Mul", inner, self.constant(np.sqrt(2 / np.pi)))))

    def _gated(self, x: str, gate: str) -> str:
        return self.op("Mul", self.op("Mul", x, self.constant(0.5)), self.op("Add", gate, self.constant(1)))

    def activation(self, x: str, gelu: int) -> str:
        """What the attribute gelu of SwinLinear and SwinMlp means: 0 nothing, 1 GELU, 2 its tanh form."""
        return (lambda y: y, self.gelu, self.gelu_tanh)[gelu](x)

    def merge_patches(self, x: str) -> str:
        """[B, H, W, C] -> [B, ceil(H/2), ceil(W/2), 4C]: the neighbours (row, col) = (0,0), (1,0), (0,1), (1,1).

        An odd side is continued by zeros.
        """
        odd = [self.op("Mod", size, self.integer(2)) for size in self.sizes(x, 1, 2)]
        one, nothing = self.constant([1], np.int64), self.constant([0], np.int64)
        down, right = (self.op("Reshape", size, one) for size in odd)
        pads = self.op("Concat", *[nothing] * 5, down, right, nothing, axis=0)
        x = self.op("Pad", x, pads)
        end = np.iinfo(np.int64).max
        quarters = [self.slice(self.slice(x, 1, row, end, 2), 2, col, end, 2)
                    for row, col in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self.op("Concat", *quarters, axis=3)


@dataclass
class _Axis:
    """Rows (or columns) of the padded, rolled image that windows cut up; the names of INT64 tensors."""

    windows: str  # number of windows
    source: str   # [Hp]: the row of the image at each place
    inside: str   # BOOL [Hp]: whether it is one, no padding
    region: str   # [Hp]: number of the region that it belongs to
    back: str     # [H]: at which place each row of the image is


def _axis(ops: Operators, size: str, window: int, shift: int, *, roll_first: int, shift_if_covered: int) -> _Axis:
    """What the contract of SwinAttention says of one axis of `size` tokens."""
    padded = ops.rounded_up(size, window)
    offset = ops.integer(shift)
    if not shift_if_covered:
        offset = ops.op("Where", ops.op("Greater", padded, ops.integer(window)), offset, ops.integer(0))
    place, rolled = ops.count(padded), size if roll_first else padded
    source = ops.op("Mod", ops.op("Add", place, offset), rolled)
    inside = ops.op("Less", place if roll_first else source, size)
    # Only in the last window do tokens meet that are no neighbours: those before and from window - shift on.
    last = ops.op("Less", place, ops.op("Sub", padded, ops.integer(window)))
    wrapped = ops.op("Less", place, ops.op("Sub", padded, offset))
    region = ops.op("Add", *(ops.op("Cast", flag, to=TensorProto.INT64) for flag in (last, wrapped)))
    # Mod of INT64 takes the sign of the divisor.
    back = ops.op("Mod", ops.op("Sub", ops.count(size), offset), rolled)
    return _Axis(ops.op("Div", padded, ops.integer(window)), source, inside, region, back)


def attention(ops: Operators, attributes: dict, qkv: str, bias: str, padding: str, logit_scale: str | None = None
              ) -> str:
    """qkv [B, H, W, 3C] -> [B, H, W, C], by index arithmetic on the sizes that the tensor has when it is run."""
    heads, tall, wide = (attributes[name] for name in ("num_heads", "window_height", "window_width"))
    order = {name: attributes[name] for name in ("roll_first", "shift_if_covered")}
    tokens = tall * wide
    height, width = ops.sizes(qkv, 1, 2)
    rows = _axis(ops, height, tall, attributes["shift_height"], **order)
    cols = _axis(ops, width, wide, attributes["shift_width"], **order)

    def pairs(op: str, of_rows: str, of_cols: str) -> str:
        """[Hp], [Wp] -> [Hp, Wp]"""
        return ops.op(op, ops.reshape(of_rows, -1, 1), ops.reshape(of_cols, 1, -1))

    def windows(x: str) -> str:
        """[Hp, Wp] -> [nW, N]"""
        x = ops.reshape_to(x, rows.windows, tall, cols.windows, wide)
        return ops.reshape(ops.op("Transpose", x, perm=[0, 2, 1, 3]), -1, tokens)

    # Which token of the image stands at each place; the one behind the last is a token of padding.
    area = ops.op("Mul", height, width)
    token = ops.op("Where", pairs("And", rows.inside, cols.inside),
                   pairs("Add", ops.op("Mul", rows.source, width), cols.source), area)
    batch = ops.slice(ops.op("Shape", qkv), 0, 0, 1)
    one_each = ops.op("Expand", ops.reshape(padding, 1, 1, -1),
                      ops.op("Concat", batch, ops.constant([1, 1], np.int64), axis=0))
    image = ops.op("Concat", ops.reshape_to(qkv, 0, area, -1), one_each, axis=1)
    x = ops.op("Gather", image, windows(token), axis=1)                                          # (B, nW, N, 3C)
    x = ops.reshape_to(x, 0, ops.op("Mul", rows.windows, cols.windows), tokens, 3 * heads, -1)   # (B, nW, N, 3nH, d)
    q, k, v = (ops.op("Transpose", ops.slice(x, 3, part * heads, (part + 1) * heads), perm=[0, 1, 3, 2, 4])
               for part in range(3))                                                             # (B, nW, nH, N, d)

    if logit_scale is None:
        q = ops.op("Mul", q, ops.constant(attributes["scale"]))
    else:
        q, k = ops.unit(q, 1e-12), ops.unit(k, 1e-12)
    scores = ops.op("MatMul", q, ops.op("Transpose", k, perm=[0, 1, 2, 4, 3]))                   # (B, nW, nH, N, N)
    if logit_scale is not None:
        scores = ops.op("Mul", scores, ops.reshape(logit_scale, heads, 1, 1))
    scores = ops.op("Add", scores, ops.slice(bias, 2, 0, tokens))
    if attributes["shift_height"] or attributes["shift_width"]:
        region = windows(pairs("Add", ops.op("Mul", rows.region, ops.integer(3)), cols.region))  # (nW, N)
        same = ops.op("Equal", ops.reshape(region, -1, 1, tokens, 1), ops.reshape(region, -1, 1, 1, tokens))
        scores = ops.op("Add", scores, ops.op("Where", same, ops.constant(0), ops.constant(attributes["mask_value"])))
    x = ops.op("MatMul", ops.op("Softmax", scores, axis=-1), v)                                  # (B, nW, nH, N, d)

    x = ops.op("Transpose", x, perm=[0, 1, 3, 2, 4])                                             # (B, nW, N, nH, d)
    x = ops.reshape_to(x, 0, rows.windows, cols.windows, tall, wide, -1)
    x = ops.op("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
    padded_width = ops.op("Mul", cols.windows, ops.integer(wide))
    x = ops.reshape_to(x, 0, ops.op("Mul", ops.op("Mul", rows.windows, ops.integer(tall)), padded_width), -1)
    back = pairs("Add", ops.op("Mul", rows.back, padded_width), cols.back)                       # (H, W)
    return ops.op("Gather", x, back, axis=1)
