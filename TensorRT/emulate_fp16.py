"""Where would FP16 go wrong? Every tensor of an FP32 graph rounded to FP16, on the CPU, compared with FP32.

    python TensorRT/emulate_fp16.py --onnx onnx/swinv2_micro.onnx --input data/swinv2_micro-b1.npz

Writes layers_<graph>_emulated.csv, the table that compare_layers.py run writes of an engine, for its plot. It
is what an engine would give that computes each operator in FP32 and stores each result in FP16: the least that FP16
costs if nothing is fused and nothing kept in FP32. ReduceL2 is taken apart first, as TensorRT's parser does: square,
sum, root. LayerNormalization stays one operator, and so do the plugin nodes of a patched graph.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from graphs import sessions
from graphs.facts import of_onnx, precision_of
from graphs.files import PLUGIN_DOMAIN, load_onnx, onnx_refusals
from graphs.reference import OPERANDS, element_types, expand
from Results.tables import LOCAL
from TensorRT.compare_layers import live_tensors, load_input, mark, report, row_of, session_of, write_table
from utils import UserError, about, file_to_write, first_line, from_one, from_zero, run_script, shown


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """The FP32 tensors of an FP32 model; shape inference does not know what a plugin node makes."""
    made = {name for node in model.graph.node if node.domain == PLUGIN_DOMAIN for name in node.output}
    return made | {name for name, kind in element_types(model).items() if kind == TensorProto.FLOAT}


def take_norms_apart(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which each ReduceL2 is Mul, ReduceSum and Sqrt; opset 13 to 17, like this project's exports, or 12."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    apart = onnx.ModelProto()
    apart.CopyFrom(model)
    del apart.graph.node[:]
    for node in model.graph.node:
        if node.op_type != "ReduceL2":
            apart.graph.node.append(node)
            continue
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        axes = attributes.pop("axes")
        squares, total = f"{node.output[0]}/squares", f"{node.output[0]}/sum"
        inputs = [squares]
        if opset < 13:
            attributes["axes"] = axes
        else:  # ReduceSum takes its axes as an input from 13 on, ReduceL2 from 18
            inputs.append(f"{total}/axes")
            apart.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), inputs[1]))
        apart.graph.node.extend([
            helper.make_node("Mul", [node.input[0], node.input[0]], [squares]),
            helper.make_node("ReduceSum", inputs, [total], **attributes),
            helper.make_node("Sqrt", [total], [node.output[0]])])
    return apart


def round_tensors(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which the input, the weights and the result of every node are rounded to FP16, and are FP32 tensors.

    A number beyond 65504 becomes infinite, one below 3e-8 zero.
    """
    floats = float_tensors(model)
    parameters = {name for node in model.graph.node if node.domain == PLUGIN_DOMAIN
                  for i, name in enumerate(node.input) if i not in OPERANDS.get(node.op_type, ())}  # FP32 by contract
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    del rounded.graph.node[:], rounded.graph.initializer[:]
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in parameters:
            with np.errstate(over="ignore"):
                array = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor = numpy_helper.from_array(array, tensor.name)
        rounded.graph.initializer.append(tensor)

    def add_rounding(exact: str, name: str) -> None:
        rounded.graph.node.extend([helper.make_node("Cast", [exact], [f"{exact}/half"], to=TensorProto.FLOAT16),
                                   helper.make_node("Cast", [f"{exact}/half"], [name], to=TensorProto.FLOAT)])

    source = model.graph.input[0].name
    add_rounding(source, f"{source}/rounded")
    for node in model.graph.node:
        copy = rounded.graph.node.add()
        copy.CopyFrom(node)
        copy.input[:] = [f"{source}/rounded" if name == source else name for name in node.input]
        for index, name in enumerate(node.output):
            if name in floats:
                copy.output[index] = f"{name}/exact"
                add_rounding(copy.output[index], name)
    return rounded


def emulated(model: onnx.ModelProto, names: list[str], images: np.ndarray) -> list[np.ndarray]:
    """The tensors `names` of a model whose every tensor is rounded to FP16, for images [B, 3, S, S]."""
    marked = mark(expand(round_tensors(model)), names)
    session = sessions.session_of(marked, as_it_is=True)  # else Casts may cancel out
    return session.run(names, {session.get_inputs()[0].name: images})


def compare_all(model: onnx.ModelProto, images: np.ndarray, every: int = 1) -> list[dict[str, str]]:
    """The rows of compare_layers.py's table, in the graph's order: each tensor as FP16 stores it, against FP32.

    Raises:
        UserError: the model is not FP32, or onnxruntime refuses it.
    """
    precision = precision_of(model)
    if precision != "fp32":
        raise UserError(f"is in {precision.upper()}; give the FP32 graph that it was made from")
    model = take_norms_apart(model)
    floats, operators = float_tensors(model), live_tensors(model.graph)
    ends = [value.name for value in model.graph.output]
    inside = [name for name in operators if name in floats and name not in ends]
    names = [*inside[::every], *ends]
    try:
        session = session_of(model, names)
        references = session.run(names, {session.get_inputs()[0].name: images})
        outputs = emulated(model, names, images)
    except onnx_refusals() as error:
        raise UserError(f"onnxruntime refuses it: {first_line(error)}") from error
    depth = {name: index for index, name in enumerate(operators)}
    return [row_of(depth[name], name, operators[name], output, reference)
            for name, output, reference in zip(names, outputs, references)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", required=True, metavar="FILE", help="an FP32 graph, patched or not")
    parser.add_argument("--input", metavar="NPZ",
                        help="its array `input` is run; default the smallest of its model in data/")
    parser.add_argument("--count", type=from_one, default=1, metavar="N", help="images of it; default 1")
    parser.add_argument("--every", type=from_one, default=1, metavar="N", help="every n-th tensor; default 1, all")
    parser.add_argument("--tolerance", type=from_zero, default=0.01, metavar="SHARE",
                        help="error of a tensor that is an offence, as a share of its largest element; default 0.01")
    parser.add_argument("--output", type=file_to_write, metavar="CSV",
                        help="default Results/local/layers_<graph>_emulated.csv")
    arguments = parser.parse_args()
    path = Path(arguments.onnx)
    model = load_onnx(path)
    images = load_input(arguments.input, path, of_onnx(path), arguments.count)
    with about(path):
        rows = compare_all(model, images, arguments.every)
    table = Path(arguments.output or LOCAL / f"layers_{path.stem}_emulated.csv")
    write_table(table, rows)
    print(report(rows, arguments.tolerance))
    print(f"wrote {shown(table)}; compare_layers.py plot draws it")


if __name__ == "__main__":
    run_script(main)
