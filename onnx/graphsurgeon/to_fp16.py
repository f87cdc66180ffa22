"""Make the FP16 graph: FP16 weights and activations with FP32 islands, FP32 input and output.

    python onnx/graphsurgeon/to_fp16.py --onnx onnx/swinv1.onnx --output onnx/swinv1_fp16.onnx

Patch first, convert last: the other scripts take FP32 graphs only. What stays FP32:
  - LayerNorm and F.normalize where they are written out in operators, because their squares overflow and an epsilon of
    1e-12 is zero in FP16 (one LayerNormalization node is FP16: what runs it accumulates in FP32);
  - the image that SwinPatchEmbed reads, whose rounding would be most of an FP16 model's error: its y alone is FP16;
  - the parameters of plugin nodes (gamma, beta, bias, logit_scale, the patch embedding's weight), as their contract
    says; weights and biases of SwinLinear and SwinMlp become FP16;
  - what --fp32 names: `head` (pooling and classifier, a few microseconds; without it each logit is rounded to FP16),
    `gelu`, `softmax` (scores, bias and mask too), or `none`.

To TensorRT 8.6 types are no more than hints. So the attribute fp16 of a plugin node binds it to FP16, and the names of
the nodes that --fp32 chose end in /fp32, which binds them to FP32 in build_engine.py.

The conversion is onnxruntime's convert_float_to_float16. Here are chosen the nodes it leaves alone, and removed the
pairs of Cast that it puts between two of them. A weight beyond FP16's range is an error, not clamped.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from data.photo_crops import held_out_batch
from graphs.facts import precision_of
from graphs.files import FP32_LAYER, PLUGIN_DOMAIN
from graphs.patterns import gelu_nodes, head, reader, softmaxes, written_out_normalisations
from graphs.reference import OPERANDS, element_types, expand
from graphs.sessions import session
from graphs.surgeon import add_file_arguments, check, read, save, target_of
from graphs.tidy import exported, image_input, is_output, producer, replace_uses, tidy, values
from utils import UserError, about, choices, run_script

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1.onnx"
SUFFIX = "_fp16"

ISLANDS = {"head": head, "gelu": gelu_nodes, "softmax": softmaxes}
FP32_BY_DEFAULT = "head"
FP16 = 1  # y_type of SwinPatchEmbed
LARGEST = float(np.finfo(np.float16).max)
# Of the largest logit. FP16 rounds to 2^-11 = 5e-4 at each of about a hundred steps; a lost bias or an overflow costs
# far more than this.
TOLERANCE = 0.05


def add_precision_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fp32", default=FP32_BY_DEFAULT, metavar="WHAT",
                        help=f"with commas between them, of {', '.join(ISLANDS)}: what is to stay FP32 besides "
                             "written-out LayerNorm and F.normalize; or none (default: %(default)s)")


def islands(text: str) -> list[str]:
    """What --fp32 takes.

    Raises:
        UserError: an unknown name.
    """
    return [] if text == "none" else choices(text, tuple(ISLANDS))


def to_fp16(model: onnx.ModelProto, fp32: list[str]) -> onnx.ModelProto:
    """The FP16 form of an FP32 model, patched or not.

    Args:
        fp32: keys of ISLANDS that stay FP32.
    Raises:
        UserError: the model is not FP32, or a weight is beyond FP16's range.
    """
    precision = precision_of(model)
    if precision != "fp32":
        raise UserError(f"is in {precision.upper()} already; give the FP32 graph")
    graph = tidy(model)
    embeddings = {node.name for node in graph.nodes if node.op == "SwinPatchEmbed"}
    chosen = {node.name for name in fp32 for node in ISLANDS[name](graph)}
    kept = embeddings | chosen | {node.name for node in written_out_normalisations(graph)}
    parameters = _parameters(graph)
    _refuse_overflow(graph, kept, parameters)
    _own_constants(graph, kept)
    converted = convert_float_to_float16(exported(graph), keep_io_types=True, disable_shape_infer=True,
                                         op_block_list=[], node_block_list=sorted(kept))
    fp16 = gs.import_onnx(converted).toposort()
    for tensor in fp16.tensors().values():
        if tensor.name in parameters:
            tensor.values = parameters[tensor.name]
    _drop_casts(fp16)
    for node in [node for node in fp16.nodes if node.name in embeddings]:
        _give_fp16(fp16, node)
    for node in fp16.nodes:
        if node.name in chosen:
            node.name += FP32_LAYER
        if node.domain == PLUGIN_DOMAIN and node.name not in embeddings:
            node.attrs["fp16"] = 1
    result = exported(fp16.cleanup().toposort())
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    onnx.checker.check_model(result)
    return result


def _parameters(graph: gs.Graph) -> dict[str, np.ndarray]:
    """Constants that plugin nodes read and that are FP32 by contract, by name."""
    return {tensor.name: values(tensor) for node in graph.nodes if node.domain == PLUGIN_DOMAIN
            for i, tensor in enumerate(node.inputs)
            if values(tensor) is not None and i not in OPERANDS.get(node.op, ())}


def _refuse_overflow(graph: gs.Graph, kept: set[str], parameters: dict[str, np.ndarray]) -> None:
    for node in graph.nodes:
        for tensor in node.inputs if node.name not in kept else ():
            numbers = values(tensor)
            if numbers is None or numbers.dtype != np.float32 or tensor.name in parameters or not numbers.size:
                continue
            if np.abs(numbers).max() > LARGEST:
                raise UserError(f"the constant {tensor.name} of {node.name} holds {np.abs(numbers).max():.3g}, beyond "
                                f"FP16's {LARGEST:.0f}; keep the graph in FP32")


def _own_constants(graph: gs.Graph, kept: set[str]) -> None:
    """Give the nodes that stay FP32 constants of their own: one shared with an FP16 node would become FP16."""
    for node in [node for node in graph.nodes if node.name in kept]:
        for i, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant) and len(tensor.outputs) > 1:
                node.inputs[i] = gs.Constant(f"{node.name}/constant_{i}", tensor.values)


def _drop_casts(graph: gs.Graph) -> None:
    """Remove a Cast that undoes the Cast before it, which the converter leaves between two nodes that stay FP32."""
    for node in [node for node in graph.nodes if node.op == "Cast"]:
        before = producer(node.inputs[0])
        if before is None or before.op != "Cast" or before.attrs["to"] not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            continue
        original, output = before.inputs[0], node.outputs[0]
        if original.dtype is None or helper.np_dtype_to_tensor_dtype(np.dtype(original.dtype)) != node.attrs["to"]:
            continue
        if is_output(graph, output):
            maker = producer(original)
            if maker is None or len(original.outputs) > 1:
                continue
            maker.outputs[[tensor is original for tensor in maker.outputs].index(True)] = output
            node.outputs.clear()
            replace_uses(original, output)  # the first Cast may have other readers
        else:
            replace_uses(output, original)
    graph.cleanup().toposort()


def _give_fp16(graph: gs.Graph, embedding: gs.Node) -> None:
    """Let a SwinPatchEmbed that stayed FP32 give FP16 itself, in the stead of the Cast after it."""
    (tokens,) = embedding.outputs
    cast = reader(tokens)
    if cast is None or cast.op != "Cast" or cast.attrs["to"] != TensorProto.FLOAT16 or is_output(graph, tokens):
        return  # something reads them in FP32
    embedding.attrs["y_type"] = FP16
    embedding.outputs = [cast.outputs[0]]
    cast.outputs.clear()


def largest_activation(model: onnx.ModelProto, images: np.ndarray) -> tuple[str, float]:
    """The FP16 tensor with the largest magnitude for these images, and that magnitude.

    onnxruntime runs on a CPU in FP32 what it has no FP16 kernel for, so that an overflow need not reach the logits
    there; each tensor is looked at instead. Beyond LARGEST it is infinite on a GPU.
    """
    types = element_types(model)
    names = [name for node in model.graph.node for name in node.output if types.get(name) == TensorProto.FLOAT16]
    probed = onnx.ModelProto()
    probed.CopyFrom(expand(model))
    del probed.graph.output[:]
    for name in names:
        probed.graph.node.extend([
            helper.make_node("Cast", [name], [f"{name}/fp32"], to=TensorProto.FLOAT),
            helper.make_node("Abs", [f"{name}/fp32"], [f"{name}/magnitude"]),
            helper.make_node("ReduceMax", [f"{name}/magnitude"], [f"{name}/largest"], keepdims=0)])
        probed.graph.output.append(helper.make_tensor_value_info(f"{name}/largest", TensorProto.FLOAT, []))
    magnitudes = session(probed).run(None, {model.graph.input[0].name: images})
    largest = int(np.argmax(magnitudes))  # of a NaN, where there is one
    return names[largest], float(magnitudes[largest])


def convert_and_check(model: onnx.ModelProto, fp32: list[str], checked: bool) -> onnx.ModelProto:
    """`to_fp16`, and a comparison with the FP32 model if asked for; prints what both found.

    Raises:
        UserError: what `to_fp16` raises; the logits differ by more than TOLERANCE; an activation overflows.
    """
    converted = to_fp16(model, fp32)
    casts = sum(node.op_type == "Cast" for node in converted.graph.node)
    print(f"converted to FP16, with {casts} Cast; FP32 as chosen: {', '.join(fp32) or 'nothing'}")
    if checked:
        print("\n".join(check(model, converted, TOLERANCE)))
        _, dims = image_input(model)
        name, magnitude = largest_activation(converted, held_out_batch(dims[0] or 1, dims[2])[0])
        if not magnitude <= LARGEST:
            raise UserError(f"{name} reaches {magnitude:.3g} on a held-out image, beyond FP16's {LARGEST:.0f}, "
                            "so nothing was written; keep the graph in FP32")
        print(f"check, largest FP16 activation: {magnitude:.3g} of {LARGEST:.0f}, in {name}")
    return converted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_file_arguments(parser, ONNX_FILE, SUFFIX)
    add_precision_arguments(parser)
    args = parser.parse_args()
    target, fp32 = target_of(args, SUFFIX), islands(args.fp32)
    model = read(args.onnx)
    with about(args.onnx):
        converted = convert_and_check(model, fp32, not args.no_check)
    save(converted, target, args.onnx)


if __name__ == "__main__":
    run_script(main)
