"""Post-training quantisation of a Swin Transformer: calibrate, then write the explicit Q/DQ graph.

    python TensorRT/INT8/quant.py --onnx onnx/swinv1.onnx

reads the unpatched FP32 graph and writes

    TensorRT/INT8/swinv1.cache   scale of each quantised activation, in TensorRT's text format; where it is there
                                 already, it is read and nothing is calibrated
    onnx/swinv1_int8.onnx        the graph with Q/DQ pairs before the products of qkv, proj, fc1 and fc2, but for those
                                 of narrow blocks that are faster in FP16 (--narrow: these too)

onnx/graphsurgeon/add_int8.py makes the graph of INT8 plugin nodes from it. The check runs the Q/DQ graph, in FP32 by
onnxruntime, beside the unquantised one on held-out crops.
"""
from __future__ import annotations

import argparse
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import onnx

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from graphs.facts import carried_over
from graphs.files import save_onnx
from graphs.outputs import Figures, Runner, classifiers, compared, derived
from graphs.patterns import MOST_CHANNELS
from graphs.pictures import Picture, add_input_arguments, picture
from graphs.surgeon import held_out, said_of_images, target_of, with_picture
from graphs.tidy import exported, tidy
from TensorRT.INT8.calibration import (
    METHODS,
    add_provider_argument,
    batch_size_of,
    collect,
    execution_provider,
    fp32_model,
    image_batches,
    scale_of,
)
from TensorRT.INT8.calibration_cache import Cache, fingerprint, read_cache, write_cache
from TensorRT.INT8.qdq import (
    FEATURES_MULTIPLE,
    all_parts,
    blocks_of,
    faster_in_fp16,
    not_multiples,
    quantised,
    quantised_tensors,
    with_attention,
)
from utils import ROOT, UserError, file_to_write, from_one, from_zero, run_script, shown

# Edit here, or give the flag of the same name.
ONNX = "onnx/swinv1.onnx"
METHOD = "percentile"
PERCENTILE = 99.99
BATCHES, BATCH_SIZE = 32, 16  # 512 images

CHECKED_IMAGES, CHECKED_BATCH = 64, 8
# What the Q/DQ graph may differ by. Sound models differ by 0.3 to 1.4 % rms (README.md), with the same class on at
# least 97 % of the crops; ranges that cut the activations off, or weights that are none, by tens of percent.
LARGEST_RMS, LEAST_AGREEMENT = 0.1, 0.9


def kept_parts(text: str, parts: list[str]) -> set[str]:
    """What --keep takes: names of parts or patterns of them, with commas between.

    Raises:
        UserError: a name or pattern that no part has.
    """
    kept = set()
    for pattern in filter(None, text.split(",")):
        found = {part for part in parts if fnmatchcase(part, pattern.strip())}
        if not found:
            raise UserError(f"--keep {pattern}: is none of {parts[0]} ... {parts[-1]}, and no pattern such as "
                            f"block0.* or *.fc2")
        kept |= found
    return with_attention(kept)


def counted(parts: set[str]) -> str:
    """How many parts, in words: products on two INT8 operands, and attentions that read INT8."""
    attentions = sum(part.endswith(".attention") for part in parts)
    return f"{len(parts) - attentions} products and {attentions} attentions"


def scales_for(args: argparse.Namespace, model: onnx.ModelProto, tidied: onnx.ModelProto,
               tensors: list[str], wanted: Picture) -> tuple[Cache, bool]:
    """The scales, and whether they were calibrated now rather than read from the cache.

    Raises:
        UserError: the cache is of another graph or method; what calibrating raises.
    """
    graph = fingerprint(model, read_as(args))
    batch_size = batch_size_of(wanted, args.batch_size, BATCH_SIZE)
    batches = args.batches or -(-BATCHES * BATCH_SIZE // batch_size)
    count = batches * batch_size
    if args.recalibrate or not args.cache.exists():
        method = args.method or METHOD
        where = args.images or "the packaged photographs (training crops)"
        print(f"calibrating {len(tensors)} tensors on {count} images of {where}, method {method}", flush=True)
        images = image_batches(args.images, batches, batch_size, wanted)
        amax = collect(tidied, tensors, images, batches, method, args.percentile or PERCENTILE,
                       execution_provider(args.provider))
        return Cache(method, count, graph, {name: scale_of(value) for name, value in amax.items()}), True
    cache = read_cache(args.cache)
    remedy = "give another --cache, or --recalibrate"
    if cache.graph != graph or list(cache.scales) != tensors:
        raise UserError(f"{shown(args.cache)}: was made for another graph than {shown(args.onnx)}, or without all of "
                        f"its scales; {remedy}")
    if args.method not in (None, cache.method):
        raise UserError(f"{shown(args.cache)}: was calibrated with {cache.method}, not {args.method}; {remedy}")
    if (args.batches or (args.batch_size and wanted.batch is None)) and count != cache.images:
        raise UserError(f"{shown(args.cache)}: was calibrated on {cache.images} images, not {count}; {remedy}")
    if args.percentile:
        raise UserError(f"{shown(args.cache)}: is calibrated already, so --percentile changes nothing; {remedy}")
    print(f"read {shown(args.cache)}: {len(tensors)} scales, {cache.method} over {cache.images} images")
    return cache, False


def read_as(args: argparse.Namespace) -> str:
    """What flags say of the images, for `fingerprint`."""
    return f"{args.input_range or ''}{args.layout or ''}"


def check(model: onnx.ModelProto, quantised_model: onnx.ModelProto, wanted: Picture | None = None,
          largest_rms: float = LARGEST_RMS, least_agreement: float = LEAST_AGREEMENT) -> list[str]:
    """How each output of the Q/DQ graph, and its classifier's, compares with the FP32 graph's; prints a line for each.

    Raises:
        UserError: one is not finite, or differs by more than may be; what follows the classifier is not judged again.
    """
    wanted = wanted or picture(model)
    at_once = wanted.batch or CHECKED_BATCH
    images = held_out(wanted, -(-CHECKED_IMAGES // at_once) * at_once)
    classifying = classifiers(model)
    expected, actual = (Runner(graph, classifying).over(images, at_once) for graph in (model, quantised_model))
    figures = compared(expected, actual, classifying)
    after = derived(model, classifying)
    lines = [f"check, {len(images)} held-out crops: {described(figure)}" for figure in figures]
    print("\n".join(lines), flush=True)
    for figure in figures:
        if not figure.finite:
            raise UserError(f"the quantised graph gives NaN or infinity in {figure.name}, so nothing was written; "
                            "check the model's weights")
        if figure.whole or figure.name in after:
            continue
        if not figure.largest:
            raise UserError(f"its output {figure.name} is zero throughout, in FP32 too, so that there is nothing to "
                            "compare; give trained weights, or --no-check")
        if figure.classes and (expected[figure.name] == expected[figure.name][:1]).all():
            raise UserError(f"its output {figure.name} is the same for every image, in FP32 too, so that there is "
                            "nothing to compare; give trained weights, or --no-check")
        wrong = [f"{figure.rms:.1%} rms, and at most {largest_rms:.0%} are accepted (--max-rms)"] if (
            not figure.rms <= largest_rms) else []
        if figure.classes and not figure.agreement >= least_agreement:
            wrong.append(f"{figure.agreement:.1%} agreement, and at least {least_agreement:.0%} is accepted "
                         "(--min-agreement)")
        if wrong:
            raise UserError(f"the quantised graph is too far from FP32 in {figure.name}: {'; '.join(wrong)}; nothing "
                            "was written. Check the weights, calibrate on more images, or leave parts out with --keep")
    return lines


def described(figure: Figures) -> str:
    if figure.whole:
        return f"{figure.equal:.2%} of {figure.name} are FP32's"
    if figure.classes:
        return (f"agreement with FP32 {figure.agreement:.2%}, max abs err {figure.error:.3g}, {figure.rms:.2%} rms of "
                "the logits")
    return f"max abs err {figure.error:.3g}, {figure.rms:.2%} rms of {figure.name}"


def share(text: str) -> float:
    """What --max-rms and --min-agreement take: a number from 0 to 1.

    Raises:
        UserError: anything else.
    """
    value = from_zero(text)
    if value > 1:
        raise UserError(f"{text}: not a share from 0 to 1; give one such as 0.9")
    return value


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, default=ROOT / ONNX, metavar="FILE",
                        help=f"unpatched FP32 graph (default: {ONNX})")
    parser.add_argument("--images", type=Path, metavar="FOLDER",
                        help="images to calibrate on (default: training crops of the packaged photographs)")
    parser.add_argument("--method", choices=METHODS,
                        help=f"how a range is chosen (default: that of the cache if it is there, else {METHOD})")
    parser.add_argument("--percentile", type=float, metavar="P",
                        help=f"share of elements in percent within the range, for that method (default: {PERCENTILE})")
    parser.add_argument("--calibration-batches", "--batches", dest="batches", type=from_one, metavar="N",
                        help=f"how many batches to calibrate on (default: {BATCHES})")
    parser.add_argument("--batch-size", type=from_one, metavar="N",
                        help=f"images at a time; Small needs about 100 MiB for each (default: {BATCH_SIZE})")
    parser.add_argument("--cache", type=file_to_write, metavar="FILE",
                        help="calibration cache, read if it is there, else written "
                             "(default: TensorRT/INT8/<model>.cache)")
    parser.add_argument("--recalibrate", action="store_true", help="calibrate also where the cache is there already")
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="Q/DQ graph (default: beside the first, with _int8 appended to its name)")
    parser.add_argument("--keep", default="", metavar="PARTS",
                        help="parts that are not quantised, with commas between, such as block0.fc2,block3.*; "
                             "TensorRT/INT8/sensitivity.py says which cost most (default: none)")
    parser.add_argument("--narrow", action="store_true",
                        help=f"quantise also what is faster in FP16: of blocks of at most {MOST_CHANNELS} channels "
                             "proj and the MLP (V1) or all (V2)")
    add_provider_argument(parser)
    add_input_arguments(parser)
    parser.add_argument("--no-check", action="store_true", help="do not compare the two graphs on held-out crops")
    parser.add_argument("--max-rms", type=share, default=LARGEST_RMS, metavar="SHARE",
                        help="largest rms error of an output that is accepted, of its rms (default: %(default)s)")
    parser.add_argument("--min-agreement", type=share, default=LEAST_AGREEMENT, metavar="SHARE",
                        help="least share of crops with FP32's class that is accepted (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.percentile is not None and not 50 < args.percentile <= 100:
        raise UserError(f"--percentile {args.percentile:g}: must be above 50 and at most 100")
    args.cache = args.cache or Path(__file__).resolve().parent / f"{args.onnx.stem}.cache"
    args.output = target_of(args, "_int8")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    model = fp32_model(args.onnx)
    try:
        model, wanted = with_picture(model, args)
        graph = tidy(model)
        blocks = blocks_of(graph)
        parts = all_parts(blocks)
        unfit = not_multiples(blocks)
        narrow = (set() if args.narrow else faster_in_fp16(blocks)) - unfit
        asked = kept_parts(args.keep, parts) - narrow - unfit
        kept = narrow | asked | unfit
        if len(unfit) == len(parts):
            raise UserError(f"none of its linear layers has channels that are multiples of {FEATURES_MULTIPLE}, which "
                            "INT8 takes; convert it to FP16")
        if len(kept) == len(parts):
            raise UserError(f"nothing is left to quantise; --narrow quantises {counted(narrow)} of blocks of at most "
                            f"{MOST_CHANNELS} channels, and a shorter --keep the rest")
        print(f"read {shown(args.onnx)}: {len(blocks)} blocks")
        cache, calibrated = scales_for(args, model, exported(graph), quantised_tensors(blocks), wanted)
        result = quantised(graph, cache.scales, kept)
        print(f"INT8: {counted(set(parts) - kept)}, of {counted(set(parts))} of the blocks")
        if unfit:
            print(f"kept: {counted(unfit)}, whose channels are no multiples of {FEATURES_MULTIPLE}")
        if narrow:
            print(f"kept: {counted(narrow)}, faster in FP16: proj and the MLP of up to {MOST_CHANNELS} channels are "
                  "one kernel there (--narrow quantises them)")
        if asked:
            print(f"kept: {counted(asked)}, by --keep: {', '.join(part for part in parts if part in asked)}")
        print("kept: patch embedding, patch merging and head, always")
        if not args.no_check:
            check(model, result, wanted, args.max_rms, args.min_agreement)
    except UserError as error:
        named = str(error).startswith((shown(args.cache), str(args.images), "--"))
        raise error if named else UserError(f"{shown(args.onnx)}: {error}") from error
    if calibrated:
        write_cache(args.cache, cache)
        print(f"wrote {shown(args.cache)}: {len(cache.scales)} scales")
    carried_over(result, args.onnx, **said_of_images(args))
    save_onnx(result, args.output)
    pairs = sum(node.op_type == "DequantizeLinear" for node in result.graph.node)
    print(f"wrote {shown(args.output)}: {len(result.graph.node)} nodes, {pairs} Q/DQ pairs")


if __name__ == "__main__":
    run_script(main)
