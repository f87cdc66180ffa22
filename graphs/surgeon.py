"""What every surgery script does around its own replacement: load, tidy, count, check against the unpatched, save.

A script gives `run_surgery` its steps. A step takes a tidied onnx_graphsurgeon graph, replaces in place, and gives back
a Report. Nothing is written unless something was replaced and the patched graph computes the same.
"""
from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from data.photo_crops import crops
from graphs.facts import carried_over, precision_of
from graphs.files import PLUGIN_DOMAIN, is_large, load_onnx, onnx_target, save_onnx
from graphs.outputs import Figures, Runner, classifiers, compared, refuse_unsound
from graphs.patterns import attention_softmaxes
from graphs.pictures import Picture, add_input_arguments, picture, sized
from graphs.tidy import (
    LAST_OPSET_OF_TENSORRT_8,
    drop_idle,
    exported,
    images_of_tokens,
    imported,
    leave_sizes_open,
    opset_of,
    tidy,
)
from utils import ROOT, UserError, about, shown

CHECKED_BATCHES, CHECKED_BATCHES_OF_LARGE_IMAGES = (1, 3), (2,)  # large ones are taken apart at batch 1
SAME_LABELS = 0.5  # of a whole-numbered output's elements, where its scores are the same
TOLERANCE = 1e-5  # of the largest logit: both graphs compute in FP32, in a different order


@dataclass
class Report:
    """What one step did: `replaced` of `found` places that hold `what`, and why the others were left.

    `essential`: the steps that it belongs to make no sense where it replaced nothing.
    """

    what: str
    replaced: int = 0
    essential: bool = False
    details: str = ""  # of those replaced
    left: list[str] = field(default_factory=list)

    @property
    def found(self) -> int:
        return self.replaced + len(self.left)

    def lines(self) -> list[str]:
        if not self.found:
            return [f"no {self.what} to replace"]
        details = f": {self.details}" if self.details else ""
        return [f"replaced {self.replaced} of {self.found} {self.what}{details}",
                *(f"  left {why}" for why in self.left)]


Step = Callable[[gs.Graph], Report]


# --- plugin nodes --------------------------------------------------------------------------------------------


def plugin_node(graph: gs.Graph, op: str, name: str, inputs: list, outputs: list[gs.Variable],
                **attributes: float | int) -> None:
    """Append a plugin node that makes `outputs` from now on; arrays among the inputs become FP32 constants."""
    for output in outputs:
        output.inputs.clear()
    tensors = [value if isinstance(value, gs.Tensor)
               else gs.Constant(f"{name}/{op}_input_{i}", np.ascontiguousarray(value, np.float32))
               for i, value in enumerate(inputs)]
    attrs = {**attributes, "plugin_version": "1", "plugin_namespace": PLUGIN_DOMAIN}
    graph.nodes.append(gs.Node(op, f"{name}/{op}", attrs, tensors, outputs, domain=PLUGIN_DOMAIN))


def plugin_counts(model: onnx.ModelProto) -> Counter:
    """Number of plugin nodes of each type."""
    return Counter(node.op_type for node in model.graph.node if node.domain == PLUGIN_DOMAIN)


# --- a whole run ---------------------------------------------------------------------------------------------


def patch(model: onnx.ModelProto, steps: list[Step]) -> tuple[onnx.ModelProto, list[Report]]:
    """A patched copy of an FP32 model, and what each step did.

    Raises:
        UserError: the model is not in FP32, is no image classifier, or no step found anything to replace.
    """
    precision = precision_of(model)
    if precision != "fp32":
        raise UserError(f"is in {precision.upper()}; patch the FP32 graph, and convert the patched one")
    graph = tidy(model)
    reports = []
    for step in steps:
        reports.append(step(graph))
        drop_idle(graph.cleanup().toposort())
        images_of_tokens(graph)  # what a step brought to [B, H, W, C] may have neighbours that can follow
        drop_idle(graph)
    for report in reports:
        _refuse_without(report, graph)
    if not any(report.replaced for report in reports):
        reasons = [why for report in reports for why in report.left]
        present = ", ".join(f"{count} {op}" for op, count in plugin_counts(model).items())
        what = " or ".join(report.what for report in reports)
        if reasons:
            raise UserError(f"none of {len(reasons)} {what} could be replaced; the first: {reasons[0]}")
        if present:
            raise UserError(f"already patched: it holds {present} and no {what} besides; start from the unpatched file")
        raise UserError(f"has no {what} to replace; give the graph of a Swin Transformer that has")
    leave_sizes_open(graph)
    patched = exported(graph)
    patched.producer_name, patched.producer_version = model.producer_name, model.producer_version
    if not is_large(patched):  # the checker takes no more than 2 GiB
        onnx.checker.check_model(patched)
    return patched, reports


def _refuse_without(report: Report, graph: gs.Graph) -> None:
    """Raises UserError where an essential step replaced nothing and nothing had been replaced before."""
    if not report.essential or report.replaced or any(node.op.startswith("SwinAttention") for node in graph.nodes):
        return
    if report.left:
        raise UserError(f"none of {len(report.left)} {report.what} could be replaced; the first: {report.left[0]}")
    raise UserError(f"has no {report.what} to replace; give the graph of a Swin Transformer that has")


def _what_stays(model: onnx.ModelProto) -> str:
    """Which attentions of a graph with SwinAttention nodes are standard operators still, in a line; "" if none are."""
    counts = plugin_counts(model)
    replaced = sum(count for op, count in counts.items() if op.startswith("SwinAttention"))
    left = [node.name for node in attention_softmaxes(imported(model))] if replaced else []
    if not left:
        return ""
    names = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
    return (f"{len(left)} of {len(left) + replaced} attentions stay standard operators, which TensorRT runs by itself: "
            f"{names}")


def held_out(wanted: Picture, count: int) -> np.ndarray:
    """The first `count` held-out crops as a graph reads them."""
    return wanted.of(crops("test", count, wanted.size)[0])


def check(model: onnx.ModelProto, patched: onnx.ModelProto, tolerance: float = TOLERANCE,
          wanted: Picture | None = None, what: str = "", runners: tuple[Runner, Runner] | None = None) -> list[str]:
    """Run both on held-out images by onnxruntime on the CPU; lines of figures for each batch size.

    Every output is compared, each with its own largest number, and the classifier's whether it is an output or not.

    Args:
        wanted: what the model reads, if it does not say so itself.
        what: what the figures are of, put in front of them.
        runners: of the two, where they are there already.
    Raises:
        UserError: all outputs are zero; one is not finite, or differs by more than `tolerance` times its largest
            number; one of whole numbers differs where nothing else can be compared.
    """
    wanted = wanted or picture(model)
    classifying = classifiers(model)
    expected_by, actual_by = runners or (None, None)
    # One after the other, so that not both hold their weights at once.
    expected = _at_batches(expected_by or Runner(model, classifying), wanted)
    actual = _at_batches(actual_by or Runner(patched, classifying), wanted)
    lines = []
    for batch in expected:
        figures = compared(expected[batch], actual[batch], classifying)
        lines += [f"check, {what}batch {batch}: {line}" for line in _judged(figures, tolerance, batch, classifying)]
    return lines


def _at_batches(run: Runner, wanted: Picture) -> dict[int, dict[str, np.ndarray]]:
    return {batch: run(held_out(wanted, batch)) for batch in checked_batches(wanted)}


def checked_batches(wanted: Picture) -> tuple[int, ...]:
    """The batches that graphs are compared at."""
    if wanted.batch is not None:
        return (wanted.batch,)
    return CHECKED_BATCHES_OF_LARGE_IMAGES if wanted.large else CHECKED_BATCHES


def _judged(figures: list[Figures], tolerance: float, batch: int, classifying: list[str]) -> list[str]:
    """A line for each output; UserError where one is beyond the tolerance."""
    numbers = [figure for figure in figures if not figure.whole]
    if numbers and not any(figure.largest for figure in numbers):
        raise UserError(f"its {'logits' if classifying else 'outputs'} are all zero, so there is nothing to compare; "
                        "give trained weights, or --no-check")
    lines = []
    for figure in figures:
        if figure.whole:
            # Equal scores may change places; and FP16 may turn a label, which the scores then bear out.
            least = 1 if not numbers else SAME_LABELS if tolerance == TOLERANCE else 0
            if not figure.equal >= least:
                raise UserError(f"the patched graph's output {figure.name} differs at batch {batch}, so nothing was "
                                "written")
            lines.append(f"{figure.equal:.1%} of {figure.name} are equal")
            continue
        which = "logit" if figure.classes else f"number of {figure.name}"
        share = f", {figure.error / figure.largest:.1e} of the largest {which} {figure.largest:.3g}" if (
            figure.largest) else f" of {figure.name}, which is zero throughout"
        line = f"max abs err {figure.error:.2e}{share}"
        if not figure.within(tolerance):  # also where it is NaN
            where = "" if figure.classes else f" in its output {figure.name}"
            raise UserError(f"the patched graph differs{where} at batch {batch}: {line}; more than {tolerance:.0e}, so "
                            "nothing was written")
        lines.append(line)
    return lines


def add_file_arguments(parser: argparse.ArgumentParser, onnx_file: str, suffix: str) -> None:
    """The flags of every script here: --onnx, --output, --no-check. `onnx_file` is relative to the repository."""
    parser.add_argument("--onnx", type=Path, default=ROOT / onnx_file, metavar="FILE",
                        help=f"graph to change, in FP32 (default: {onnx_file})")
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help=f"graph to write (default: beside the first, with {suffix} appended to its name)")
    parser.add_argument("--no-check", action="store_true",
                        help="do not compare the two graphs on held-out images before writing")
    add_input_arguments(parser)


def target_of(args: argparse.Namespace, suffix: str, replaced: str = "") -> Path:
    """The file to write.

    Args:
        args: with what `add_file_arguments` adds.
        suffix: for the default, appended to the stem of the file to read, in the stead of `replaced` where it ends so.
        replaced: see suffix.
    Raises:
        UserError: it is the file to read, or not the name of an ONNX file.
    """
    stem = args.onnx.stem.removesuffix(replaced)
    target = onnx_target(args.output or args.onnx.with_name(f"{stem}{suffix}.onnx"))
    if target.resolve() == args.onnx.resolve():
        raise UserError(f"{shown(target)}: is the graph to change; give another --output")
    return target


def read(args: argparse.Namespace) -> tuple[onnx.ModelProto, Picture]:
    """The model in the file --onnx and what it reads; says what was read.

    Args:
        args: with what `add_file_arguments` adds.
    Raises:
        UserError: it is no ONNX file, no image classifier, or unsound by itself (`refuse_unsound`).
    """
    model = load_onnx(args.onnx)
    print(f"read {shown(args.onnx)}: {len(model.graph.node)} nodes, opset {opset_of(model)}", flush=True)
    with about(args.onnx):
        return with_picture(model, args)


def with_picture(model: onnx.ModelProto, args: argparse.Namespace) -> tuple[onnx.ModelProto, Picture]:
    """The model with its image's size fixed, made sure to be sound, and what it reads.

    Args:
        args: with what `add_input_arguments` adds.
    """
    model = sized(model, args.size, args.layout)
    wanted = picture(model, args.input_range, args.layout)
    refuse_unsound(model, wanted)
    return model, wanted


def said_of_images(args: argparse.Namespace) -> dict[str, str]:
    """The facts that flags say of the images, for scripts that read the file later."""
    return {"input_range": args.input_range} if args.input_range else {}


def patch_and_check(model: onnx.ModelProto, steps: list[Step], checked: bool, wanted: Picture | None = None
                    ) -> onnx.ModelProto:
    """`patch`, and `check` if asked for; prints what both found."""
    patched, reports = patch(model, steps)
    print("\n".join(line for report in reports for line in report.lines()), flush=True)
    if checked:
        print("\n".join(check(model, patched, wanted=wanted)), flush=True)
    return patched


def save(model: onnx.ModelProto, path: Path, args: argparse.Namespace) -> None:
    """Write a model whole with the facts of the file --onnx that it was made from, and say so.

    Args:
        args: with what `add_file_arguments` adds; what it says of the images is written into the file.
    """
    carried_over(model, args.onnx, **said_of_images(args))
    save_onnx(model, path)
    plugins = ", ".join(f"{count} {op}" for op, count in plugin_counts(model).items())
    print(f"wrote {shown(path)}: {len(model.graph.node)} nodes" + (f", of them {plugins}" if plugins else ""))
    stays = _what_stays(model)
    if stays:
        print(stays)
    if opset_of(model) > LAST_OPSET_OF_TENSORRT_8:
        print(f"its opset {opset_of(model)} could not be lowered to {LAST_OPSET_OF_TENSORRT_8}: "
              "TensorRT 8.6 does not read it, 10 and later do")


def run_surgery(steps: list[Step], onnx_file: str, suffix: str, description: str) -> None:
    """The main() of a surgery script: parse its flags, patch, print the counts, check, save.

    Args:
        steps: what to replace, in order.
        onnx_file: default of --onnx, relative to the repository's root.
        suffix: appended to the input's stem for the default of --output.
        description: the script's docstring.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_file_arguments(parser, onnx_file, suffix)
    args = parser.parse_args()
    target = target_of(args, suffix)
    model, wanted = read(args)
    with about(args.onnx):
        patched = patch_and_check(model, steps, not args.no_check, wanted)
    save(patched, target, args)
