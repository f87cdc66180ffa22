"""Post-training quantisation of a Swin Transformer: calibrate, then write the explicit Q/DQ graph.

    python TensorRT/INT8/quant.py --onnx onnx/swinv1.onnx

reads the unpatched FP32 graph and writes

    TensorRT/INT8/swinv1.cache   scale of each quantised activation, in TensorRT's text format; where it is there
                                 already, it is read and nothing is calibrated
    onnx/swinv1_int8.onnx        the graph with Q/DQ pairs before the products of qkv, proj, fc1 and fc2, but for those
                                 of narrow blocks that are faster in FP16 (--narrow: these too)

    python TensorRT/INT8/quant.py --onnx onnx/backbone.onnx --sizes 800x1344,1024x1024

reads one that leaves height and width open, and writes only the cache, of scales for all these sizes: Q/DQ pairs lie
between operators, and those of windows differ from size to size. add_int8.py --cache makes the INT8 graph of it.

onnx/graphsurgeon/add_int8.py makes the graph of INT8 plugin nodes from the Q/DQ graph. The check runs the Q/DQ graph,
in FP32 by onnxruntime, beside the unquantised one on held-out crops.
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import onnx

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from graphs.facts import carried_over
from graphs.files import save_onnx
from graphs.open_sizes import leaves_size_open
from graphs.outputs import Figures, Runner, classifiers, compared, derived
from graphs.patterns import MOST_CHANNELS
from graphs.pictures import Picture, add_input_arguments, picture, sized
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
    Block,
    all_parts,
    blocks_of,
    faster_in_fp16,
    not_multiples,
    quantised,
    quantised_tensors,
    with_attention,
)
from utils import ROOT, UserError, about, file_to_write, from_one, from_zero, image_sizes, run_script, shown

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
          largest_rms: float = LARGEST_RMS, least_agreement: float = LEAST_AGREEMENT, count: int = CHECKED_IMAGES
          ) -> list[str]:
    """How each output of the Q/DQ graph, and its classifier's, compares with the FP32 graph's; prints a line for each.

    Raises:
        UserError: one is not finite, or differs by more than may be; what follows the classifier is not judged again.
    """
    wanted = wanted or picture(model)
    at_once = wanted.batch or min(CHECKED_BATCH, count)
    images = held_out(wanted, -(-count // at_once) * at_once)
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


def shown_size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


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
    parser.add_argument("--sizes", type=image_sizes, metavar="HxW,HxW",
                        help="of a graph that leaves height and width open: the sizes that it is used at")
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


@dataclass
class Choice:
    """Which parts of a model are INT8, and why the others are not."""

    parts: list[str]
    unfit: set[str]
    narrow: set[str]
    asked: set[str]

    @property
    def kept(self) -> set[str]:
        return self.narrow | self.asked | self.unfit

    def lines(self) -> list[str]:
        lines = [f"INT8: {counted(set(self.parts) - self.kept)}, of {counted(set(self.parts))} of the blocks"]
        if self.unfit:
            lines.append(f"kept: {counted(self.unfit)}, whose channels are no multiples of {FEATURES_MULTIPLE}")
        if self.narrow:
            lines.append(f"kept: {counted(self.narrow)}, faster in FP16: proj and the MLP of up to {MOST_CHANNELS} "
                         "channels are one kernel there (--narrow quantises them)")
        if self.asked:
            named = ", ".join(part for part in self.parts if part in self.asked)
            lines.append(f"kept: {counted(self.asked)}, by --keep: {named}")
        return [*lines, "kept: patch embedding, patch merging and head, always"]


def choice_of(blocks: list[Block], args: argparse.Namespace) -> Choice:
    """Raises UserError where nothing is left to quantise."""
    parts, unfit = all_parts(blocks), not_multiples(blocks)
    narrow = (set() if args.narrow else faster_in_fp16(blocks)) - unfit
    choice = Choice(parts, unfit, narrow, kept_parts(args.keep, parts) - narrow - unfit)
    if len(unfit) == len(parts):
        raise UserError(f"none of its linear layers has channels that are multiples of {FEATURES_MULTIPLE}, which "
                        "INT8 takes; convert it to FP16")
    if len(choice.kept) == len(parts):
        raise UserError(f"nothing is left to quantise; --narrow quantises {counted(narrow)} of blocks of at most "
                        f"{MOST_CHANNELS} channels, and a shorter --keep the rest")
    return choice


def calibrate_open(model: onnx.ModelProto, args: argparse.Namespace) -> Cache:
    """The scales of a graph that leaves height and width open, of the parts that are to be INT8: the largest that the
    sizes ask for. Prints how the Q/DQ graph of each size compares with FP32.

    As many pixels are looked at as of 224 x 224 images, and at least one image of each size.
    """
    if not args.sizes:
        raise UserError("leaves height and width open; say with --sizes which sizes it is used at, such as "
                        "800x1344,1024x1024")
    method, amax, images, graphs = args.method or METHOD, {}, 0, []
    for size in args.sizes:
        fixed, wanted = with_picture(sized(model, size, args.layout), args)
        graph = tidy(fixed)
        blocks = blocks_of(graph)
        choice, tensors = choice_of(blocks, args), quantised_tensors(blocks)
        if amax and list(amax) != tensors:
            raise UserError(f"the graphs of {shown_size(args.sizes[0])} and {shown_size(size)} name their tensors "
                            "differently; calibrate for one size with --size")
        share = 224 * 224 / (size[0] * size[1])
        at_once = batch_size_of(wanted, args.batch_size, max(1, int(BATCH_SIZE * share)))
        batches = args.batches or -(-BATCHES // len(args.sizes))
        print(f"calibrating {len(tensors)} tensors on {batches * at_once} images of {shown_size(size)}, method "
              f"{method}", flush=True)
        found = collect(exported(graph), tensors, image_batches(args.images, batches, at_once, wanted), batches, method,
                        args.percentile or PERCENTILE, execution_provider(args.provider))
        amax = {name: max(value, amax.get(name, value)) for name, value in found.items()}
        images += batches * at_once
        graphs.append((fixed, wanted, graph, max(1, int(CHECKED_IMAGES * share))))
    print("\n".join(choice.lines()))
    scales = {name: scale_of(value) for name, value in amax.items()}
    for fixed, wanted, graph, count in graphs if not args.no_check else ():
        print(f"{shown_size(wanted.size)}:")
        check(fixed, quantised(graph, scales, choice.kept), wanted, args.max_rms, args.min_agreement, count)
    unkept = set(quantised_tensors(blocks, choice.kept))
    return Cache(method, images, fingerprint(model, read_as(args)),
                 {name: scale for name, scale in scales.items() if name in unkept})


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    model = fp32_model(args.onnx)
    if args.size is None and leaves_size_open(model, args.layout):
        with about(args.onnx):
            cache = calibrate_open(model, args)
        write_cache(args.cache, cache)
        print(f"wrote {shown(args.cache)}: {len(cache.scales)} scales; now add_int8.py --onnx {shown(args.onnx)} "
              f"--cache {shown(args.cache)}")
        return
    if args.sizes:
        raise UserError(f"{shown(args.onnx)}: is of one image size; --sizes is of graphs that leave it open")
    try:
        model, wanted = with_picture(model, args)
        graph = tidy(model)
        blocks = blocks_of(graph)
        choice = choice_of(blocks, args)
        print(f"read {shown(args.onnx)}: {len(blocks)} blocks")
        cache, calibrated = scales_for(args, model, exported(graph), quantised_tensors(blocks), wanted)
        result = quantised(graph, cache.scales, choice.kept)
        print("\n".join(choice.lines()))
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
