"""Where a Swin Transformer is quantised, and the explicit Q/DQ graph.

A block has five parts that can be INT8, each with the tensors that get a QuantizeLinear and a DequantizeLinear:

    qkv        its input (V1: LayerNorm's output; V2: the tokens) and its weight
    attention  qkv's output, that attention reads
    proj       its input, that attention writes, and its weight
    fc1        its input and its weight
    fc2        its input (GELU's output) and its weight

Activations have one scale, weights one for each output channel; all are symmetric. In V2 qkv's and fc1's input is the
residual stream: the pair stands only on the branch to the product, and the residual Add reads what is not rounded.
There proj and fc2 hand their output to a LayerNorm, and it has a pair, too, of no part of its own (`norm_inputs`).
Patch embedding, patch merging, LayerNorm, residual Add and head stay as they are. What else does by default, because it
is faster in FP16, is in `faster_in_fp16`.

The pairs are put in by onnxruntime.quantization (QDQQuantizer); here is chosen where.
"""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import TensorsData

from graphs.patterns import MOST_CHANNELS, attention_softmaxes, is_linear, linear_output
from graphs.tidy import add_node, drop_idle, exported
from utils import UserError

PARTS = ("qkv", "attention", "proj", "fc1", "fc2")
FEATURES_MULTIPLE = 16  # of K and N of SwinLinearInt8, whose rows are read and written 16 bytes at a time
OLDEST_OPSET = 13  # of DequantizeLinear with a scale for each channel


@dataclass
class Block:
    """The linear layers of one Swin block, each a MatMul node of a tidied graph."""

    qkv: gs.Node
    proj: gs.Node
    fc1: gs.Node
    fc2: gs.Node

    def tensor(self, part: str) -> gs.Variable:
        """The activation that is quantised for a part."""
        return linear_output(self.qkv) if part == "attention" else getattr(self, part).inputs[0]

    @property
    def channels(self) -> int:
        return self.fc1.inputs[1].shape[0]

    @property
    def norm_first(self) -> bool:
        """V1: a LayerNorm makes fc1's input, only for fc1. In V2 it is the residual stream, that an Add reads too."""
        return len(self.fc1.inputs[0].outputs) == 1


def blocks_of(graph: gs.Graph) -> list[Block]:
    """The blocks in order: around each Softmax the linear layers before it, after it, and the two of the MLP.

    Raises:
        UserError: there is none, or one whose layers do not have the sizes of a Swin block.
    """
    attentions = {id(node) for node in attention_softmaxes(graph)}
    order = [node for node in graph.nodes if is_linear(node) or id(node) in attentions]
    found = []
    for i, node in enumerate(order):
        if id(node) not in attentions:
            continue
        around = [*order[max(i - 1, 0):i], *order[i + 1:i + 4]]
        sizes = [tuple(linear.inputs[1].shape) if is_linear(linear) else () for linear in around]
        channels = sizes[0][0] if len(sizes) == 4 and sizes[0] else 0
        hidden = sizes[2][1] if len(sizes) == 4 and sizes[2] else 0
        if sizes != [(channels, 3 * channels), (channels, channels), (channels, hidden), (hidden, channels)]:
            raise UserError(f"the linear layers around {node.name} are {sizes}, not qkv, proj, fc1 and fc2 of a block")
        found.append(Block(*around))
    if not found:
        raise UserError("has no Swin block to quantise; give the graph of a Swin Transformer")
    return found


def all_parts(blocks: list[Block]) -> list[str]:
    """Names of all parts, block0.qkv to block<n-1>.fc2, in the graph's order."""
    return [f"block{i}.{part}" for i in range(len(blocks)) for part in PARTS]


def faster_in_fp16(blocks: list[Block]) -> set[str]:
    """The parts of narrow blocks that are faster in FP16 (README.md has the figures).

    An MLP of at most MOST_CHANNELS is one kernel in FP16, SwinMlp, and three in INT8; that one takes in an FP16 proj,
    too. In V1 the LayerNorm before qkv writes INT8, so that qkv and attention gain from it there. In V2 SwinMlp is what
    comes before qkv, and a pass that quantises its output by itself costs what qkv would gain: the whole block is kept.
    """
    return {f"block{i}.{part}" for i, block in enumerate(blocks) if block.channels <= MOST_CHANNELS
            for part in (("proj", "fc1", "fc2") if block.norm_first else PARTS)}


def not_multiples(blocks: list[Block]) -> set[str]:
    """The parts whose product INT8 plugin nodes do not take: input or output channels are no multiple of
    FEATURES_MULTIPLE. SwinIR's 180 channels are such."""
    return with_attention({f"block{i}.{part}" for i, block in enumerate(blocks) for part in PARTS
                           if part != "attention" and any(
                               size % FEATURES_MULTIPLE for size in getattr(block, part).inputs[1].shape)})


def with_attention(kept: set[str]) -> set[str]:
    """The kept parts, and the attention of blocks whose qkv is among them: only an INT8 product writes INT8 for it."""
    return kept | {f"{part.split('.')[0]}.attention" for part in kept if part.endswith(".qkv")}


def norm_inputs(blocks: list[Block], kept: Collection[str] = ()) -> list[gs.Variable]:
    """V2: outputs of proj and fc2, with their bias, that are quantised for the LayerNorm behind them.

    Those of a quantised product whose LayerNorm writes INT8, for fc1 or for the next block's qkv: only that one reads
    INT8, and behind the last block of a stage none writes it.

    Args:
        kept: names of the parts (all_parts) that are not quantised.
    """
    found = []
    for i, (block, following) in enumerate(zip(blocks, [*blocks[1:], None])):
        if block.norm_first:
            continue
        if not {f"block{i}.proj", f"block{i}.fc1"} & set(kept):
            found.append(linear_output(block.proj))
        same_stage = following is not None and following.channels == block.channels
        if same_stage and not {f"block{i}.fc2", f"block{i + 1}.qkv"} & set(kept):
            found.append(linear_output(block.fc2))
    return found


def quantised_tensors(blocks: list[Block], kept: Collection[str] = ()) -> list[str]:
    """Names of the activations that get a scale, each once: the parts' in the graph's order, then `norm_inputs`.

    Args:
        kept: names of the parts (all_parts) that are not quantised.
    """
    tensors = [block.tensor(part) for i, block in enumerate(blocks) for part in PARTS if f"block{i}.{part}" not in kept]
    return list(dict.fromkeys(tensor.name for tensor in tensors + norm_inputs(blocks, kept)))


def without_scale(blocks: list[Block], scales: Collection[str]) -> set[str]:
    """The parts whose activation has no scale: those that were left out when they were written."""
    return {f"block{i}.{part}" for i, block in enumerate(blocks) for part in PARTS
            if block.tensor(part).name not in scales}


def quantised(graph: gs.Graph, scales: dict[str, np.float32], kept: set[str]) -> onnx.ModelProto:
    """The Q/DQ form of a tidied FP32 graph, which is left as it is.

    Args:
        scales: of each tensor of `quantised_tensors`.
        kept: names of the parts (all_parts) that get no pairs.
    Raises:
        UserError: the opset is too old.
    """
    if graph.opset < OLDEST_OPSET:
        raise UserError(f"has opset {graph.opset}, and scales for each channel need {OLDEST_OPSET}; export it again "
                        f"with --opset 17")
    graph = graph.copy()
    blocks, ranges, chosen = blocks_of(graph), {}, []

    def marked(tensor: gs.Variable, part: str) -> gs.Variable:
        # QDQQuantizer gives one pair to all readers of a tensor. Behind an Identity are only those of one part.
        passed = add_node(graph, "Identity", [tensor], f"{tensor.name}/{part}", tensor.shape)
        amax = np.float32(scales[tensor.name]) * np.float32(127)
        ranges[passed.name] = (-amax, amax)
        return passed

    def quantise_for_all_readers(tensor: gs.Variable, part: str) -> None:
        readers = list(tensor.outputs)
        name = f"{tensor.name}/{part}/passed"
        passed = add_node(graph, "Identity", [marked(tensor, part)], name, tensor.shape)
        for reader in readers:
            reader.inputs = [passed if item is tensor else item for item in reader.inputs]
        chosen.append(name)

    for tensor in norm_inputs(blocks, kept):
        quantise_for_all_readers(tensor, "norm")
    for i, block in enumerate(blocks):
        for part in PARTS:
            if f"block{i}.{part}" in kept:
                continue
            if part == "attention":
                quantise_for_all_readers(block.tensor(part), part)
            else:
                product = getattr(block, part)
                product.inputs[0] = marked(product.inputs[0], part)
                chosen.append(product.name)
    graph.toposort()
    # An empty list would mean all nodes.
    model = exported(graph)
    if chosen:
        model = QDQQuantizer(
            model, per_channel=True, reduce_range=False, weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8, tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
            nodes_to_quantize=chosen, nodes_to_exclude=[], op_types_to_quantize=["MatMul", "Identity"],
            extra_options={
                "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Identity"],
                "AddQDQPairToWeight": True,  # TensorRT 8.6 wants FP32 weights before the pair
            }).quantize_model()
    result = gs.import_onnx(model).toposort()
    drop_idle(result)
    return exported(result)
