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

from data.photo_crops import held_out_batch
from graphs.compare import max_abs_err
from graphs.facts import carried_over, precision_of
from graphs.files import PLUGIN_DOMAIN, load_onnx, onnx_refusals, onnx_target
from graphs.sessions import session
from graphs.tidy import LAST_OPSET_OF_TENSORRT_8, drop_idle, exported, image_input, opset_of, tidy
from utils import ROOT, UserError, about, first_line, shown, whole_file

CHECKED_BATCHES = (1, 3)
TOLERANCE = 1e-5  # of the largest logit: both graphs compute in FP32, in a different order


@dataclass
class Report:
    """What one step did: `replaced` of `found` places that hold `what`, and why the others were left."""

    what: str
    replaced: int = 0
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
    attributes.update(plugin_version="1", plugin_namespace=PLUGIN_DOMAIN)
    graph.nodes.append(gs.Node(op, f"{name}/{op}", attributes, tensors, outputs, domain=PLUGIN_DOMAIN))


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
    if not any(report.replaced for report in reports):
        reasons = [why for report in reports for why in report.left]
        present = ", ".join(f"{count} {op}" for op, count in plugin_counts(model).items())
        what = " or ".join(report.what for report in reports)
        if reasons:
            raise UserError(f"none of {len(reasons)} {what} could be replaced; the first: {reasons[0]}")
        if present:
            raise UserError(f"already patched: it holds {present} and no {what} besides; start from the unpatched file")
        raise UserError(f"has no {what} to replace; give the graph of a Swin Transformer that has")
    patched = exported(graph)
    patched.producer_name, patched.producer_version = model.producer_name, model.producer_version
    onnx.checker.check_model(patched)
    return patched, reports


def check(model: onnx.ModelProto, patched: onnx.ModelProto, tolerance: float = TOLERANCE) -> list[str]:
    """Run both on held-out images by onnxruntime on the CPU; one line of figures for each batch size.

    The figures are of the logits, the first output; every other output is compared, too.

    Raises:
        UserError: all logits are zero; an output is not finite, or differs by more than `tolerance` times its largest
            number; one of whole numbers differs at all.
    """
    name, dims = image_input(model)
    if dims[1] != 3 or dims[2] != dims[3]:
        raise UserError(f"takes images {dims[1:]}; there are only square colour images to check with, use --no-check")
    lines = []
    try:
        expected_by, actual_by = session(model), session(patched)
    except onnx_refusals() as error:
        raise UserError(f"onnxruntime refuses it: {first_line(error)}") from error
    for batch in CHECKED_BATCHES if dims[0] is None else (dims[0],):
        images = {name: held_out_batch(batch, dims[2])[0]}
        try:
            expected, *others = expected_by.run(None, images)
            actual, *actual_others = actual_by.run(None, images)
        except onnx_refusals() as error:
            raise UserError(f"onnxruntime does not run it at batch {batch}: {first_line(error)}") from error
        error, largest = max_abs_err(actual, expected), float(np.abs(expected).max())
        if not largest:
            raise UserError("its logits are all zero, so there is nothing to compare; give trained weights, or "
                            "--no-check")
        line = f"batch {batch}: max abs err {error:.2e}, {error / largest:.1e} of the largest logit {largest:.3g}"
        if not error <= tolerance * largest:  # also where it is NaN
            raise UserError(f"the patched graph differs at {line}; more than {tolerance:.0e}, so nothing was written")
        for output, before, after in zip(model.graph.output[1:], others, actual_others):
            if not _same(after, before, tolerance):
                raise UserError(f"the patched graph's output {output.name} differs at batch {batch}, "
                                "so nothing was written")
        lines.append(f"check, {line}")
    return lines


def _same(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    if expected.dtype.kind != "f":
        return np.array_equal(actual, expected)
    return max_abs_err(actual, expected) <= tolerance * float(np.abs(expected).max())


def add_file_arguments(parser: argparse.ArgumentParser, onnx_file: str, suffix: str) -> None:
    """The flags of every script here: --onnx, --output, --no-check. `onnx_file` is relative to the repository."""
    parser.add_argument("--onnx", type=Path, default=ROOT / onnx_file, metavar="FILE",
                        help=f"graph to change, in FP32 (default: {onnx_file})")
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help=f"graph to write (default: beside the first, with {suffix} appended to its name)")
    parser.add_argument("--no-check", action="store_true",
                        help="do not compare the two graphs on held-out images before writing")


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


def read(path: Path) -> onnx.ModelProto:
    """The model in a file; says what was read."""
    model = load_onnx(path)
    print(f"read {shown(path)}: {len(model.graph.node)} nodes, opset {opset_of(model)}")
    return model


def patch_and_check(model: onnx.ModelProto, steps: list[Step], checked: bool) -> onnx.ModelProto:
    """`patch`, and `check` if asked for; prints what both found."""
    patched, reports = patch(model, steps)
    print("\n".join(line for report in reports for line in report.lines()))
    if checked:
        print("\n".join(check(model, patched)))
    return patched


def save(model: onnx.ModelProto, path: Path, source: Path) -> None:
    """Write a model whole with the facts of the file that it was made from, and say so."""
    carried_over(model, source)
    with whole_file(path) as partial:
        onnx.save(model, str(partial))
    plugins = ", ".join(f"{count} {op}" for op, count in plugin_counts(model).items())
    print(f"wrote {shown(path)}: {len(model.graph.node)} nodes" + (f", of them {plugins}" if plugins else ""))
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
    model = read(args.onnx)
    with about(args.onnx):
        patched = patch_and_check(model, steps, not args.no_check)
    save(patched, target, args.onnx)
