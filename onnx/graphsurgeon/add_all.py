"""Apply all plugins at once: what the engines build_*_attention_fp16.sh are built from.

    python onnx/graphsurgeon/add_all.py --onnx onnx/swinv1.onnx --fp16  # writes onnx/swinv1_attention_fp16.onnx

It does the same as running these scripts one after the other: attention, patch embedding, patch merging, linear layers,
residual Add + LayerNorm, the LayerNorms that are left, and the MLPs of narrow blocks, which take in the nodes between
attention and the MLP; with --fp16, to_fp16.py comes last. An Add goes with the first step that takes it, so that in V1
the linear layers have them all.

TensorRT-RTX 1.6.1 multiplies FP32 in TF32, whatever it is told (TensorRT/VERSIONS.md). The classifier is the one
product that is left to it; with --classifier it is a plugin node too, so that a graph that stays FP32 is computed in
FP32.

A graph that leaves height and width open is patched once for every size: at three, --probe-sizes, which must agree
(graphs/open_sizes.py), and compared at others, --check-sizes. --size gives a graph of one size.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import onnx

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from add_attention import add_attention
from add_layernorm_with_params import add_layernorm_with_params
from add_linear import add_classifier, add_linear
from add_mlp import add_mlp
from add_patch_embedding import add_patch_embedding
from add_patch_merging import add_patch_merging
from add_residual_layernorm import add_residual_layernorm
from to_fp16 import (
    ON_A_CPU,
    TOLERANCE,
    add_precision_arguments,
    convert_and_check,
    converted,
    islands,
    peak_of,
    to_fp16,
)

from graphs.files import load_onnx
from graphs.open_sizes import (
    CHECKED,
    PROBED,
    add_size_arguments,
    check_at,
    leaves_size_open,
    patched_at_sizes,
    picture_at,
    refuse_other_than_expected,
    refuse_unsound_at,
    sizes_in_pixels,
)
from graphs.pictures import sized
from graphs.surgeon import Step, add_file_arguments, patch, patch_and_check, read, save, target_of
from graphs.tidy import opset_of
from utils import UserError, about, run_script, shown

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1.onnx"
SUFFIX = "_attention"

STEPS = [add_attention, add_patch_embedding, add_patch_merging, add_linear, add_residual_layernorm,
         add_layernorm_with_params, add_mlp]


def steps_of(args: argparse.Namespace) -> list[Step]:
    return [*STEPS, add_classifier] if args.classifier else STEPS


def patch_open(model: onnx.ModelProto, args: argparse.Namespace, fp32: list[str]) -> onnx.ModelProto:
    """The patched graph of a model that leaves height and width open, which it leaves open, too; prints what was done.

    Args:
        args: with what `add_file_arguments` and `add_size_arguments` add, and --fp16.
        fp32: what stays FP32 in an FP16 graph.
    Raises:
        UserError: what patching at a size raises, with the size; the sizes do not agree; a check fails.
    """
    probed = args.probe_sizes or sizes_in_pixels(model, PROBED)
    pictures = [picture_at(model, size, args.input_range, args.layout)
                for size in args.check_sizes or sizes_in_pixels(model, CHECKED)]
    refuse_unsound_at(model, pictures)
    for line in refuse_other_than_expected(model, args.expected):
        print(line, flush=True)
    known: list[str] = []

    def patched_at(fixed: onnx.ModelProto) -> onnx.ModelProto:
        made, reports = patch(fixed, steps_of(args))
        lines = [line for report in reports for line in report.lines()]
        if lines != known:  # at the first size, and where another says something else
            height, width = (dim.dim_value for dim in fixed.graph.input[0].type.tensor_type.shape.dim[2:])
            print("\n".join([f"at {height}x{width}:", *lines]), flush=True)
            known[:] = lines
        return made

    patched = patched_at_sizes(model, probed, args.layout, patched_at)
    sizes = ", ".join(f"{height}x{width}" for height, width in probed)
    print(f"the graphs patched at {sizes} are one graph, with height and width open", flush=True)
    if not args.no_check:
        print("\n".join(check_at(model, patched, pictures)), flush=True)
    if not args.fp16:
        return patched
    half = patched_at_sizes(patched, probed, args.layout, lambda fixed: to_fp16(fixed, fp32))
    if not args.no_check:
        print("\n".join(check_at(patched, half, pictures, TOLERANCE, ON_A_CPU)), flush=True)
        at_one_size = sized(patched, pictures[0].size, args.layout)
        print(peak_of(converted(at_one_size, fp32), pictures[0]), flush=True)
    return half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_file_arguments(parser, ONNX_FILE, f"{SUFFIX} or {SUFFIX}_fp16")
    parser.add_argument("--fp16", action="store_true", help="convert the patched graph to FP16")
    parser.add_argument("--classifier", action="store_true", help="the classifier too, in a graph that stays FP32")
    add_precision_arguments(parser)
    add_size_arguments(parser)
    args = parser.parse_args()
    if args.fp32 != parser.get_default("fp32") and not args.fp16:
        raise UserError(f"--fp32 {args.fp32}: chooses what stays FP32 in an FP16 graph; add --fp16")
    if args.classifier and args.fp16:
        raise UserError("--classifier: is for graphs that stay FP32; leave it out with --fp16")
    target, fp32 = target_of(args, f"{SUFFIX}_fp16" if args.fp16 else SUFFIX), islands(args.fp32)
    model = load_onnx(args.onnx)
    with about(args.onnx):
        if args.size is None and leaves_size_open(model, args.layout):
            print(f"read {shown(args.onnx)}: {len(model.graph.node)} nodes, opset {opset_of(model)}, height and width "
                  "open", flush=True)
            save(patch_open(model, args, fp32), target, args)
            return
    if args.probe_sizes or args.check_sizes or args.expected:
        raise UserError(f"{shown(args.onnx)}: is of one image size; --probe-sizes, --check-sizes and --expected are of "
                        "graphs that leave it open")
    model, wanted = read(args)
    with about(args.onnx):
        patched = patch_and_check(model, steps_of(args), not args.no_check, wanted)
        if args.fp16:
            patched = convert_and_check(patched, fp32, not args.no_check, wanted)
    save(patched, target, args)


if __name__ == "__main__":
    run_script(main)
