"""Make the graph of INT8 plugin nodes from a Q/DQ graph: what build_swinv1_int8.sh and build_swinv2_int8.sh build.

    python onnx/graphsurgeon/add_int8.py --onnx onnx/swinv1_int8.onnx  # writes onnx/swinv1_attention_int8.onnx

The steps: the pairs are taken out, and their scales are kept. The FP32 graph is patched as add_all.py does it, except
that no SwinMlp takes in a product that has scales, and is converted to FP16. Then each plugin node that reads a tensor
with a scale becomes an INT8 node. The node that makes such a tensor (LayerNorm, attention, a linear layer) quantises
it; where there is none, SwinQuantize does. An attention branch of 384 channels that is INT8 throughout becomes one
node, SwinAttentionBranchInt8. A tensor without a scale stays FP16, for example the output of attention before a proj
that is not quantised. Parts that quant.py left out become FP16 plugin nodes, as in swinv1_attention_fp16.onnx.

    python onnx/graphsurgeon/add_int8.py --onnx onnx/backbone.onnx --cache TensorRT/INT8/backbone.cache

makes it of an FP32 graph that leaves height and width open, and leaves them open, too: at --probe-sizes the pairs are
put in with the scales that quant.py --sizes wrote, and taken out as above; the graphs so made must agree
(graphs/open_sizes.py). At --check-sizes the result is compared with the Q/DQ graph of that size.
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from add_all import STEPS
from add_mlp import add_mlp, product_of
from to_fp16 import converted, peak_of

from graphs.attention_branch_int8 import add_attention_branch
from graphs.files import PLUGIN_DOMAIN, has_plugins, load_onnx
from graphs.open_sizes import (
    CHECKED,
    PROBED,
    add_size_arguments,
    leaves_size_open,
    patched_at_sizes,
    sizes_in_pixels,
)
from graphs.outputs import Runner, classifiers, compared, derived
from graphs.patterns import reader
from graphs.pictures import Picture, picture, sized
from graphs.reference_int8 import packed
from graphs.surgeon import Report, Step, add_file_arguments, held_out, patch, read, save, target_of
from graphs.swin_attention import wider_heads
from graphs.tidy import drop_idle, exported, imported, producer, replace_uses, tidy, values
from TensorRT.INT8.calibration_cache import fingerprint, read_cache
from TensorRT.INT8.qdq import FEATURES_MULTIPLE, all_parts, blocks_of, quantised, without_scale
from utils import UserError, about, run_script, shown

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1_int8.onnx"
SUFFIX = "_attention_int8"

FP32_ISLANDS = ["head"]
CHECKED_IMAGES = 8
# Of the error that quantisation makes. A number that lies near the middle of two steps may be rounded to the other one
# when it is computed in another order or in FP16; that moves later numbers over such a middle too, in the end as many
# as if all were rounded anew. Two independent roundings of the same numbers differ by sqrt(2) times the error of one.
TOLERANCE = 1.5
# An output that little or nothing INT8 leads to, such as the first stage's features, differs by how it is computed.
FLOOR = {"in FP32": 1e-5, "in FP16": 3e-3}
NOT_QUANTISED = 0.0  # x_scale or y_scale of an FP16 tensor; all outputs are that until _fuse finds their quantisation


@dataclass
class Scales:
    """What the pairs of a Q/DQ graph say.

    Attributes:
        inputs: scale of a product's first operand, by name of the MatMul.
        weights: INT8 [N, K] and FP32 scale [N] of its second, by the same name.
        tensors: scale of a tensor that is quantised for all that read it, by its name.
    """

    inputs: dict[str, float] = field(default_factory=dict)
    weights: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    tensors: dict[str, float] = field(default_factory=dict)


def without_pairs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Scales]:
    """The FP32 graph that a Q/DQ graph was made from, and its scales.

    Raises:
        UserError: it has no pairs, plugin nodes already, or pairs that quant.py does not make.
    """
    if has_plugins(model):
        raise UserError("holds plugin nodes already; give the Q/DQ graph that TensorRT/INT8/quant.py wrote")
    graph = imported(model)
    scales = Scales()
    pairs = [node for node in graph.nodes if node.op == "DequantizeLinear"]
    if not pairs:
        raise UserError("holds no Q/DQ pairs; give the graph that TensorRT/INT8/quant.py wrote")
    for node in pairs:
        quantizer, scale = producer(node.inputs[0]), values(node.inputs[1])
        if quantizer is None or quantizer.op != "QuantizeLinear" or scale is None or any(
                values(tensor).any() for tensor in (*quantizer.inputs[2:], *node.inputs[2:])):
            raise UserError(f"{node.name}: is not half of a symmetric Q/DQ pair as TensorRT/INT8/quant.py writes it")
        x, product = quantizer.inputs[0], reader(node.outputs[0])
        is_product = product is not None and product.op == "MatMul"
        if values(x) is not None and is_product:
            steps = np.rint(values(x) / scale)
            scales.weights[product.name] = np.clip(steps, -127, 127).astype(np.int8).T, scale.astype(np.float32)
        elif is_product:
            scales.inputs[product.name] = float(scale)
        else:
            scales.tensors[x.name] = float(scale)
        replace_uses(node.outputs[0], x)
    drop_idle(graph.cleanup())
    return exported(graph), scales


def steps_for(scales: Scales) -> list[Step]:
    """The steps of add_all.py, of which that of the MLPs takes only products that have no scales."""
    return [partial(add_mlp, kept=scales.inputs) if step is add_mlp else step for step in STEPS]


def to_int8(model: onnx.ModelProto, scales: Scales, fp32: onnx.ModelProto, branches: bool = True
            ) -> tuple[onnx.ModelProto, Report]:
    """The INT8 form of a patched graph, and which attention branches are one node in it.

    Args:
        model: patched with `steps_for`, in FP16; FP32 gives a graph to check with, not one for the plugins.
        scales: of the Q/DQ graph.
        fp32: the same graph in FP32, whose biases are taken.
        branches: whether an attention branch may be one node, which takes no image whose windows need padding.
    Raises:
        UserError: a part that has scales was not patched; a product's sizes are not those that SwinLinearInt8 takes.
    """
    graph = gs.import_onnx(model)
    biases = {node.name: values(node.inputs[2]) for node in gs.import_onnx(fp32).nodes if node.op == "SwinLinear"}
    linears = {product_of(node): node for node in graph.nodes if node.op == "SwinLinear"}
    readers = {node.inputs[0].name: node for node in graph.nodes if node.op in ("SwinAttention", "SwinLayerNormAdd")}
    for what, found, wanted in (("linear layer", linears, scales.inputs),
                                ("attention or LayerNorm", readers, scales.tensors)):
        missing = [name for name in wanted if name not in found]
        if missing:
            raise UserError(f"the {what} at {missing[0]} is quantised and was not replaced by a plugin node")
    for name, scale in scales.inputs.items():
        node = linears[name]
        weight, weight_scale = _with_wider_heads(node, *scales.weights[name])
        if any(size % FEATURES_MULTIPLE for size in weight.shape):
            raise UserError(f"the linear layer at {name} has {weight.shape[1]} input and {weight.shape[0]} output "
                            f"features, and INT8 takes multiples of {FEATURES_MULTIPLE}; leave it out with quant.py "
                            "--keep")
        bias = biases[node.name]
        _quantise_input(graph, node, scale)
        _rename(node, "SwinLinearInt8")
        node.attrs["y_scale"] = NOT_QUANTISED
        constants = {"weight": packed(weight), "scale": np.float32(scale) * weight_scale, "bias": bias}
        node.inputs = [node.inputs[0], *(gs.Constant(f"{node.name}/{key}", np.ascontiguousarray(array))
                                         for key, array in constants.items()), *node.inputs[3:]]
    for name, scale in scales.tensors.items():
        node = readers[name]
        _quantise_input(graph, node, scale)
        if node.op == "SwinAttention":
            _rename(node, "SwinAttentionInt8")
            node.attrs.update(qkv_scale=scale, y_scale=NOT_QUANTISED)
        else:
            node.attrs["x_scale"] = scale
    for node in [node for node in graph.nodes if node.op == "SwinQuantize"]:
        _fuse(node)
    for node in graph.nodes:
        if node.op == "SwinLayerNormAdd" and "x_scale" in node.attrs:
            raise UserError(f"the LayerNorm at {node.inputs[0].name} reads INT8 and writes none, which no plugin does")
    graph.cleanup().toposort()
    report = add_attention_branch(graph) if branches else Report("attention branch")
    result = exported(graph.cleanup().toposort())
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    return result, report


def _with_wider_heads(node: gs.Node, weight: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """INT8 [N, K] and scale [N] of a product, with the zeros that add_attention.py put behind heads of qkv or proj.

    A row of zeros has the scale 1.
    """
    after, before = reader(node.outputs[0]), producer(node.inputs[0])
    if after is not None and after.op == "SwinAttention":
        heads = 3 * after.attrs["num_heads"]
        real = wider_heads(np.ones(len(weight), bool), 0, heads)
        return wider_heads(weight, 0, heads), np.where(real, wider_heads(scale, 0, heads), np.float32(1))
    if before is not None and before.op == "SwinAttention":
        return wider_heads(weight, 1, before.attrs["num_heads"]), scale
    return weight, scale


def _rename(node: gs.Node, op: str) -> None:
    """Make it another plugin node: its type, and the end of its name, which is its type."""
    node.name, node.op = f"{node.name.removesuffix(node.op)}{op}", op


def _int8_of(x: gs.Tensor) -> gs.Variable:
    """A tensor for the INT8 form of x; without a type, so that the file declares none."""
    return gs.Variable(f"{x.name}/int8")


def _quantise_input(graph: gs.Graph, node: gs.Node, scale: float) -> None:
    x, attributes = node.inputs[0], {"plugin_version": "1", "plugin_namespace": PLUGIN_DOMAIN, "y_scale": scale}
    node.inputs[0] = _int8_of(x)
    graph.nodes.append(gs.Node("SwinQuantize", f"{x.name}/SwinQuantize", attributes, [x], [node.inputs[0]],
                               domain=PLUGIN_DOMAIN))


def _fuse(quantizer: gs.Node) -> None:
    """Let the node that makes the input of a SwinQuantize quantise it, where there is such a node."""
    x, y = quantizer.inputs[0], quantizer.outputs[0]
    maker = producer(x)
    alone = len(x.outputs) == 1
    if maker.op == "SwinLayerNormAdd":
        _rename(maker, "SwinLayerNormAddInt8")
        maker.attrs.setdefault("x_scale", NOT_QUANTISED)
        outputs = [x, y]
    elif maker.op == "SwinLayerNormWithParams" and alone:
        _rename(maker, "SwinLayerNormInt8")
        outputs = [y]
    elif maker.op in ("SwinLinearInt8", "SwinAttentionInt8") and alone:
        outputs = [y]
    else:
        return
    quantizer.inputs.clear()
    quantizer.outputs.clear()
    maker.attrs["y_scale"] = quantizer.attrs["y_scale"]
    maker.outputs = outputs


def check(pairs: onnx.ModelProto, fp32: onnx.ModelProto, int8: onnx.ModelProto, what: str,
          wanted: Picture | None = None, floor: float = FLOOR["in FP16"]) -> list[str]:
    """How each output of an INT8 graph, and its classifier's, compares with the Q/DQ graph's on held-out crops.

    Args:
        floor: error as a share of an output's rms that is accepted where quantisation makes less.
    Raises:
        UserError: one differs by more than TOLERANCE, or quantisation itself makes no difference to measure by.
    """
    wanted = wanted or picture(pairs)
    images = held_out(wanted, wanted.batch or CHECKED_IMAGES)
    classifying = classifiers(pairs)
    after = derived(pairs, classifying)
    simulated, exact, actual = (Runner(model, classifying)(images) for model in (pairs, fp32, int8))
    figures = {figure.name: figure for figure in compared(simulated, actual, classifying)}
    judged = [name for name, figure in figures.items() if not figure.whole and name not in after]

    def rms(one: np.ndarray, other: np.ndarray | float = 0.0) -> float:
        return float(np.sqrt(np.mean((one.astype(np.float64) - other)**2)))

    if not any(rms(exact[name], simulated[name]) for name in judged):
        raise UserError("its logits are exactly those of FP32, so that there is no error to compare with (under V2's "
                        "initial weights blocks are the identity); give a trained model, or --no-check")
    lines = []
    for name in judged:
        made, error = rms(exact[name], simulated[name]), rms(actual[name], simulated[name])
        share = f"{error / made:.2f} of what quantisation itself makes" if made else "quantisation itself makes none"
        agreement = (f"; agreement {figures[name].agreement:.1%} of {len(images)} crops" if figures[name].classes
                     else f"; in {name}")
        line = f"{what}: rms error {error:.2e} against the Q/DQ graph, {share}, {made:.2e}{agreement}"
        if not error <= max(TOLERANCE * made, floor * rms(exact[name])):  # also where it is NaN
            raise UserError(f"the INT8 graph differs: {line}; more than {TOLERANCE}, so nothing was written")
        lines.append(f"check, {line}")
    return lines


def with_pairs(fixed: onnx.ModelProto, scales: dict[str, np.float32]) -> onnx.ModelProto:
    """The Q/DQ form of an FP32 graph of one image size; parts whose activations have no scale get no pairs.

    Raises:
        UserError: none has one.
    """
    graph = tidy(fixed)
    blocks = blocks_of(graph)
    kept = without_scale(blocks, scales)
    if kept == set(all_parts(blocks)):
        raise UserError("has none of the tensors that the cache holds scales of; give the graph that quant.py read")
    return quantised(graph, scales, kept)


def int8_of_open(model: onnx.ModelProto, args: argparse.Namespace) -> onnx.ModelProto:
    """The INT8 graph, in FP16, of an FP32 graph that leaves height and width open, which it leaves open, too."""
    cache = read_cache(args.cache)
    if cache.graph != fingerprint(model, f"{args.input_range or ''}{args.layout or ''}"):
        raise UserError(f"{shown(args.cache)}: was made for another graph; give the one that quant.py read")

    def at_one_size(fixed: onnx.ModelProto) -> onnx.ModelProto:
        bare, scales = without_pairs(with_pairs(fixed, cache.scales))
        patched, reports = patch(bare, steps_for(scales))
        if not said:
            said.extend(line for report in reports for line in report.lines())
            print("\n".join(said), flush=True)
        return to_int8(converted(patched, FP32_ISLANDS).model, scales, patched, branches=False)[0]

    said: list[str] = []
    probed = args.probe_sizes or sizes_in_pixels(model, PROBED)
    int8 = patched_at_sizes(model, probed, args.layout, at_one_size)
    for size in (args.check_sizes or sizes_in_pixels(model, CHECKED)) if not args.no_check else ():
        fixed = sized(model, size, args.layout)
        wanted = picture(fixed, args.input_range, args.layout)
        pairs = with_pairs(fixed, cache.scales)
        what = f"{size[0]}x{size[1]}, in FP16"
        print("\n".join(check(pairs, fixed, sized(int8, size, args.layout), what, wanted)), flush=True)
    return int8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_file_arguments(parser, ONNX_FILE, SUFFIX)
    parser.add_argument("--cache", type=Path, metavar="FILE",
                        help="of a graph that leaves height and width open: the scales that quant.py --sizes wrote")
    add_size_arguments(parser, expected=False)
    args = parser.parse_args()
    if args.cache:
        model = load_onnx(args.onnx)
        with about(args.onnx):
            if args.size or not leaves_size_open(model, args.layout):
                raise UserError("is of one image size; --cache is of graphs that leave it open (the scales of others "
                                "are in the Q/DQ graph)")
            int8 = int8_of_open(model, args)
        save(int8, target_of(args, SUFFIX), args)
        return
    target = target_of(args, SUFFIX, replaced="_int8")
    model, wanted = read(args)
    with about(args.onnx):
        bare, scales = without_pairs(model)
        patched, reports = patch(bare, steps_for(scales))
        print("\n".join(line for report in reports for line in report.lines()))
        fp16 = converted(patched, FP32_ISLANDS)
        int8, branches = to_int8(fp16.model, scales, patched)
        print("\n".join(branches.lines()), flush=True)
        if not args.no_check:
            print(peak_of(fp16, wanted), flush=True)
            for what, form in (("in FP32", to_int8(patched, scales, patched)[0]), ("in FP16", int8)):
                print("\n".join(check(model, bare, form, what, wanted, FLOOR[what])), flush=True)
    save(int8, target, args)


if __name__ == "__main__":
    run_script(main)
