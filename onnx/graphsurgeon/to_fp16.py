"""Make the FP16 graph: FP16 weights and activations with FP32 islands, FP32 input and output.

    python onnx/graphsurgeon/to_fp16.py --onnx onnx/swinv1.onnx --output onnx/swinv1_fp16.onnx

Patch first, convert last: the other scripts take FP32 graphs only. What stays FP32:
  - LayerNorm and F.normalize where they are written out in operators, because their squares overflow and an epsilon of
    1e-12 is zero in FP16 (one LayerNormalization node is FP16: what runs it accumulates in FP32);
  - the image and what is done to it before the first product (type, range, mean and deviation), whose rounding would be
    most of an FP16 model's error, and so the image that SwinPatchEmbed reads: only its y is FP16;
  - the parameters of plugin nodes (gamma, beta, bias, logit_scale, the patch embedding's weight), as their contract
    says; weights and biases of SwinLinear and SwinMlp become FP16;
  - what --fp32 names: `head` (pooling, classifier and what follows it, a few microseconds; without it each logit is
    rounded to FP16), `gelu`, `softmax` (scores, bias and mask too), or `none`.

To TensorRT 8.6 types are no more than hints. So the attribute fp16 of a plugin node binds it to FP16, and the names of
the nodes that --fp32 chose end in /fp32, which binds them to FP32 in build_engine.py.

The conversion is onnxruntime's convert_float_to_float16. This script chooses the nodes that stay as they are, and
removes the pairs of Cast that it puts between two of them. A weight beyond FP16's range is an error, not clamped, and
so is an activation: FP32's range of every tensor that becomes FP16 is looked at over held-out crops. onnxruntime's CPU
provider does not round FP16 tensors between operators, so that the errors it shows are those of rounding the weights.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from data.photo_crops import crops
from graphs.facts import precision_of
from graphs.files import FP32_LAYER, PLUGIN_DOMAIN, is_large
from graphs.patterns import gelu_nodes, head, preprocessing, reader, softmaxes, written_out_normalisations
from graphs.pictures import Picture, picture
from graphs.reference import OPERANDS, element_types, expand
from graphs.sessions import session
from graphs.surgeon import add_file_arguments, check, read, save, target_of
from graphs.tidy import exported, is_output, producer, replace_uses, tidy, values
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
# A crop that makes a tensor overflow gives NaN on a GPU, and a CPU does not show it: FP32's range is looked at over as
# many crops as the largest batch that is measured.
CROPS, CROPS_AT_ONCE = 128, 8
CROPS_OF_LARGE_IMAGES, LARGE_IMAGES_AT_ONCE = 4, 1  # one takes seconds and GiB
INSIDE = "/expanded_"  # in the names that graphs/reference.py gives inside a plugin node
ON_A_CPU = "weights in FP16 (activations are not rounded on a CPU), "


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
    return converted(model, fp32).model


@dataclass
class Converted:
    """An FP16 model.

    Attributes:
        model: it.
        tidied: the FP32 model that it was made of, whose tensors have the same names.
        islands: number of nodes of each part that stayed FP32 by choice.
    """

    model: onnx.ModelProto
    tidied: onnx.ModelProto
    islands: dict[str, int]


def converted(model: onnx.ModelProto, fp32: list[str]) -> Converted:
    """`to_fp16`, with what is needed to check it."""
    precision = precision_of(model)
    if precision != "fp32":
        raise UserError(f"is in {precision.upper()} already; give the FP32 graph")
    graph = tidy(model)
    tidied = exported(graph)
    embeddings = {node.name for node in graph.nodes if node.op == "SwinPatchEmbed"}
    found = {name: ISLANDS[name](graph) for name in fp32}
    chosen = {node.name: node for nodes in found.values() for node in nodes}
    # TensorRT binds only floating layers to a precision; TopK's second output is whole numbers.
    bound = {name for name, node in chosen.items() if all(_is_float(tensor) for tensor in node.outputs)}
    kept = embeddings | set(chosen) | {
        node.name for node in (*written_out_normalisations(graph), *preprocessing(graph))}
    parameters = _parameters(graph)
    _refuse_overflow(graph, kept, parameters)
    _own_constants(graph, kept)
    half = convert_float_to_float16(exported(graph), keep_io_types=True, disable_shape_infer=True, op_block_list=[],
                                    node_block_list=sorted(kept))
    fp16 = gs.import_onnx(_one_cast_each(half)).toposort()
    for tensor in fp16.tensors().values():
        if tensor.name in parameters:
            tensor.values = parameters[tensor.name]
    _drop_casts(fp16, {name for node in tidied.graph.node for name in node.output})
    for node in [node for node in fp16.nodes if node.name in embeddings]:
        _give_fp16(fp16, node)
    for node in fp16.nodes:
        if node.domain == PLUGIN_DOMAIN and node.name not in kept:
            node.attrs["fp16"] = 1
        if node.name in bound:
            node.name += FP32_LAYER
    result = exported(fp16.cleanup().toposort())
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    if not is_large(result):  # the checker takes no more than 2 GiB
        onnx.checker.check_model(result)
    return Converted(result, tidied, {name: len(nodes) for name, nodes in found.items()})


def _is_float(tensor: gs.Tensor) -> bool:
    return tensor.dtype is not None and np.dtype(tensor.dtype).kind == "f"


def _one_cast_each(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, in place, with each tensor made once and each node named once.

    onnxruntime's converter of 1.25 to 1.31 writes the Cast of a tensor that feeds two nodes that stay FP32 twice, under
    one name; its converters leave the nodes unsorted besides, which gs sorts.
    """
    made: dict[str, onnx.NodeProto] = {}
    nodes = []
    for node in model.graph.node:
        same = made.setdefault(node.output[0], node)
        if same is not node and (node.op_type, list(node.input)) != (same.op_type, list(same.input)):
            raise UserError(f"onnxruntime's converter makes the tensor {node.output[0]} twice; use another onnxruntime")
        if same is node:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


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


def _drop_casts(graph: gs.Graph, known: Collection[str] = ()) -> None:
    """Remove a Cast that undoes the Cast before it, which the converter leaves between two nodes that stay FP32.

    Args:
        known: names in the FP32 graph; a tensor between two such nodes, which the converter renames, has its own again.
    """
    renamed = []
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
            renamed.append((original, before.outputs[0].name))
    left = graph.cleanup().toposort().tensors()
    for tensor, name in renamed:
        if name in known and name not in left and tensor.name in left and tensor.name not in known:
            left[name] = tensor
            tensor.name = name


def _give_fp16(graph: gs.Graph, embedding: gs.Node) -> None:
    """Let a SwinPatchEmbed that stayed FP32 give FP16 itself, in the stead of the Cast after it."""
    (tokens,) = embedding.outputs
    cast = reader(tokens)
    if cast is None or cast.op != "Cast" or cast.attrs["to"] != TensorProto.FLOAT16 or is_output(graph, tokens):
        return  # something reads them in FP32
    embedding.attrs["y_type"] = FP16
    embedding.outputs = [cast.outputs[0]]
    cast.outputs.clear()


@dataclass
class Peak:
    """The tensor with the largest magnitude of those that become FP16."""

    name: str
    magnitude: float
    crop: int


def fp16_tensors(made: Converted) -> list[str]:
    """Names of the tensors of the FP32 graph that the FP16 graph rounds: those that are FP16 in it or cast to it, and
    what plugin nodes hand to a product inside."""
    types = element_types(made.model)
    known = {name for node in made.tidied.graph.node for name in node.output}
    names = []
    for node in made.model.graph.node:
        names += [name for name in node.output if types.get(name) == TensorProto.FLOAT16 and name in known]
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16:
            names += [name for name in node.input if name in known]
    names += [name for node in expand(made.tidied).graph.node if node.op_type == "MatMul" for name in node.input
              if INSIDE in name]
    return list(dict.fromkeys(names))


def looked_at(wanted: Picture) -> tuple[int, int]:
    """Number of held-out crops that FP32's range is looked at over, and how many of them are run at once."""
    count, at_once = (CROPS_OF_LARGE_IMAGES, LARGE_IMAGES_AT_ONCE) if wanted.large else (CROPS, CROPS_AT_ONCE)
    return count, wanted.batch or at_once


def peak(tidied: onnx.ModelProto, names: list[str], wanted: Picture) -> Peak:
    """The largest magnitude of these tensors as FP32 computes them, over the first held-out crops.

    onnxruntime's CPU provider does not round FP16 tensors between operators, so that an overflow leaves no trace in
    what it gives for an FP16 graph. Beyond LARGEST a tensor is infinite on a GPU.
    """
    probed = onnx.ModelProto()
    probed.CopyFrom(expand(tidied))
    del probed.graph.output[:]
    for name in names:
        probed.graph.node.extend([
            helper.make_node("Cast", [name], [f"{name}/float"], to=TensorProto.FLOAT),  # an output may be FP16 already
            helper.make_node("Abs", [f"{name}/float"], [f"{name}/magnitude"]),
            helper.make_node("ReduceMax", [f"{name}/magnitude"], [f"{name}/largest"], keepdims=0)])
        probed.graph.output.append(helper.make_tensor_value_info(f"{name}/largest", TensorProto.FLOAT, []))
    runner = session(probed)
    count, at_once = looked_at(wanted)
    images = wanted.of(crops("test", -(-count // at_once) * at_once, wanted.size)[0])
    found = Peak(names[0], 0.0, 0)
    for start in range(0, len(images), at_once):
        magnitudes = runner.run(None, {wanted.name: images[start:start + at_once]})
        largest = int(np.argmax(magnitudes))  # of a NaN, where there is one
        if not float(magnitudes[largest]) <= found.magnitude:
            found = Peak(names[largest], float(magnitudes[largest]), start)
    return found


def peak_of(made: Converted, wanted: Picture) -> str:
    """The largest activation that FP16 has to hold, in a line.

    Raises:
        UserError: it is beyond FP16's range.
    """
    names = fp16_tensors(made)
    if not names:
        raise UserError("has no tensor that becomes FP16; there is nothing to convert")
    top, (count, at_once) = peak(made.tidied, names, wanted), looked_at(wanted)
    if not top.magnitude <= LARGEST:  # also where it is NaN
        last = top.crop + at_once - 1
        raise UserError(f"{top.name} reaches {top.magnitude:.3g} on a held-out image, beyond FP16's {LARGEST:.0f}, so "
                        f"nothing was written; keep the graph in FP32 (the image is of the crops {top.crop} to {last})")
    return (f"check, largest FP16 activation: {top.magnitude:.3g} of {LARGEST:.0f}, in {top.name} (as FP32 computes "
            f"it, over {count} held-out crops)")


def convert_and_check(model: onnx.ModelProto, fp32: list[str], checked: bool, wanted: Picture | None = None
                      ) -> onnx.ModelProto:
    """`to_fp16`, and a comparison with the FP32 model if asked for; prints what both found.

    Raises:
        UserError: what `to_fp16` raises; an activation is beyond FP16's range; an output differs by more than
            TOLERANCE.
    """
    made = converted(model, fp32)
    casts = sum(node.op_type == "Cast" for node in made.model.graph.node)
    chosen = [f"{name} ({size} nodes)" for name, size in made.islands.items() if size]
    missing = [name for name, size in made.islands.items() if not size]
    print(f"converted to FP16, with {casts} Cast; FP32 as chosen: {', '.join(chosen) or 'nothing'}"
          + (f"; there is no {' and no '.join(missing)} in this graph" if missing else ""), flush=True)
    if checked:
        wanted = wanted or picture(model)
        top = peak_of(made, wanted)
        print("\n".join([*check(model, made.model, TOLERANCE, wanted, ON_A_CPU), top]), flush=True)
    return made.model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_file_arguments(parser, ONNX_FILE, SUFFIX)
    add_precision_arguments(parser)
    args = parser.parse_args()
    target, fp32 = target_of(args, SUFFIX), islands(args.fp32)
    model, wanted = read(args)
    with about(args.onnx):
        converted = convert_and_check(model, fp32, not args.no_check, wanted)
    save(converted, target, args)


if __name__ == "__main__":
    run_script(main)
