"""Writes standard ONNX operators for one plugin node; reference.py and reference_int8.py say which."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

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
