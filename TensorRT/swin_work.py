"""How much a Swin Transformer has to compute and to move, by the groups that profile_engine.py tells apart.

    python TensorRT/swin_work.py --cfg models/swin.yaml --batch 32      # prints the table

Operations are those of the matrix products, two for a multiply-add. Bytes count every matrix product, attention,
normalisation and residual Add as if it read its inputs and wrote its outputs once; small vectors (biases, gamma, beta,
relative position bias) are left out. It is what the network asks for, whatever an engine does: copies, reformats and a
GELU by itself add time and no work.

Needs only the standard library, because the Python that has TensorRT has no yaml.
"""
from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from graphs.facts import Facts
from utils import ROOT, UserError, existing_file, from_one, run_script

PATCH, CHANNELS_IN, MLP_RATIO = 4, 3, 4  # of every variant
WHOLE_MLP = "MLP in one kernel"  # the group
WHOLE_BRANCH = "attention branch in one node"  # likewise; of a small batch that node is several kernels
FP32_BYTES = 4  # the input image, and the head, which stays in FP32


class Swin(NamedTuple):
    """What the work depends on."""

    type: str  # swinv1 or swinv2
    embed_dim: int  # channels of the first stage
    depths: tuple[int, ...]  # blocks of each stage
    window: int  # tokens along a side
    img_size: int  # pixels
    classes: int = 1000


class Work(NamedTuple):
    """Of one group: operations, and bytes read and written."""

    operations: float
    bytes: float


def read_swin(path: Path) -> Swin:
    """The sizes in one of models/*.yaml, which write each key on a line of its own."""
    values = dict(re.findall(r"^ *([A-Z_]+): +([^#\n]+?) *(?:#.*)?$", path.read_text(errors="replace"), re.MULTILINE))
    try:
        return Swin(values["TYPE"], int(values["EMBED_DIM"]), tuple(ast.literal_eval(values["DEPTHS"])),
                    int(values["WINDOW_SIZE"]), int(values["IMG_SIZE"]), int(values.get("NUM_CLASSES", 1000)))
    except KeyError as error:
        raise UserError(f"{path}: has no line {error.args[0]}: ..., which the work of its layers depends on") from None
    except (ValueError, SyntaxError) as error:
        raise UserError(f"{path}: a size in it is not written as one: {error}") from None


def yaml_of(facts: Facts) -> Path | None:
    """The yaml of models/ that a file's model was made by; None where it does not say, or there is none."""
    path = ROOT / "models" / f"{facts.variant}.yaml"
    return path if facts.variant and path.is_file() else None


def work_of(swin: Swin, batch: int, element: int, linear_adds_residual: bool = False,
            whole_mlps: Mapping[int, int] | None = None, with_proj: Mapping[int, int] | None = None,
            whole_branches: Mapping[int, int] | None = None) -> dict[str, Work]:
    """The work of each group for one batch.

    Args:
        element: bytes of an activation and of a weight: 4 in FP32, 2 in FP16.
        linear_adds_residual: V1's residual Adds are done by proj and fc2, not with the LayerNorm after them.
        whole_mlps: of a stage, counted from 0, in how many blocks fc1, fc2, their LayerNorm and their residual are one
            kernel; none where a stage is not there. In V1 linear_adds_residual holds then.
        with_proj: of a stage, in how many of these blocks that kernel does proj, too, in V2 with its LayerNorm, and the
            residual.
        whole_branches: of a stage, in how many blocks qkv, attention, proj, the LayerNorm after it and the residual are
            one kernel; in V1 linear_adds_residual holds then. None of these is in with_proj.
    """
    totals: dict[str, list[float]] = {}

    def add(group: str, operations: float, elements: float, fp32_bytes: float = 0) -> None:
        total = totals.setdefault(group, [0.0, 0.0])
        total[0] += operations
        total[1] += elements * element + fp32_bytes

    def linear(group: str, rows: float, inputs: float, outputs: float, times: int = 1, residual: bool = False) -> None:
        moved = rows * inputs + rows * outputs * (2 if residual else 1) + inputs * outputs
        add(group, times * 2 * rows * inputs * outputs, times * moved)

    v1, stages = swin.type == "swinv1", len(swin.depths)
    side, width = swin.img_size // PATCH, swin.embed_dim
    pixels = CHANNELS_IN * PATCH**2
    tokens = batch * side**2
    add("patch embed", 2 * tokens * pixels * width, tokens * width + pixels * width, FP32_BYTES * tokens * pixels)
    for stage, depth in enumerate(swin.depths):
        whole, projected, branches = ((blocks or {}).get(stage, 0)
                                      for blocks in (whole_mlps, with_proj, whole_branches))
        size = tokens * width  # elements of one activation
        window = min(swin.window, side)
        attention, apart = 4 * tokens * window**2 * width, depth - branches  # operations of one block
        if branches:  # x -> y; in V1 LayerNorm of x -> that of y besides
            weights = branches * 4 * width * width
            add(WHOLE_BRANCH, branches * attention + 2 * tokens * weights,
                branches * (4 if v1 else 2) * size + weights)
        if apart:
            linear("qkv", tokens, width, 3 * width, apart)
            add("attention", apart * attention, apart * 4 * size)
        if projected < apart:
            linear("proj", tokens, width, width, apart - projected, residual=linear_adds_residual)
        if whole:  # x -> y; with proj it reads attention's output besides
            weights = whole * 2 * MLP_RATIO * width * width + projected * width * width
            add(WHOLE_MLP, 2 * tokens * weights, (2 * whole + projected) * size + weights)
        if whole < depth:
            linear("fc1 + GELU", tokens, width, MLP_RATIO * width, depth - whole)
            linear("fc2", tokens, MLP_RATIO * width, width, depth - whole, residual=linear_adds_residual)
        last = stage == stages - 1
        if not v1:  # x, residual -> y after attention and after the MLP; the last norm alone
            tensors = 6 * depth - 3 * (whole + projected + branches) + 2 * last
        elif linear_adds_residual:  # x -> y twice a block, and the last norm
            tensors = 4 * depth - 2 * (whole + branches) + 2 * last
        else:
            # First norm1: x -> y. Then x, residual -> sum, y, but for the stage's last Add, which writes one of them:
            # the sum for patch merging, or what the last norm makes of it.
            tensors = 2 + 4 * (2 * depth - 1) + 3
        add("LayerNorm and residual", 0, tensors * size)
        if not last:
            add("patch merging", 0, 2 * size)  # gather, in V1 with its LayerNorm
            side, tokens, width = side // 2, tokens // 4, 2 * width
            linear("patch merging", tokens, 2 * width, width)
            if not v1:
                add("patch merging", 0, 2 * tokens * width)  # the LayerNorm comes after the product
    add("head", 2 * batch * width * swin.classes, tokens * width,
        FP32_BYTES * (2 * batch * width + width * swin.classes + batch * swin.classes))
    return {group: Work(*total) for group, total in totals.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cfg", type=Path, default=ROOT / "models" / "swin.yaml", metavar="YAML",
                        help="the variant (default: models/swin.yaml)")
    parser.add_argument("--batch", type=from_one, default=1, help="images (default: 1)")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp16", help="default: fp16")
    arguments = parser.parse_args()
    swin = read_swin(existing_file(arguments.cfg, "a model's yaml (--cfg)"))
    groups = work_of(swin, arguments.batch, {"fp32": 4, "fp16": 2}[arguments.precision])
    for group, work in [*groups.items(), ("all", Work(*map(sum, zip(*groups.values()))))]:
        print(f"{group:24} {work.operations / 1e9:12.3f} GFLOP {work.bytes / 1e6:12.1f} MB")


if __name__ == "__main__":
    run_script(main)
