"""Where does the error of an engine start? Compares the tensors inside a graph with those of the FP32 ONNX model.

    python TensorRT/compare_layers.py prepare --onnx onnx/swinv2_fp16.onnx --every 4  # the Python that has torch
    TensorRT/build.sh onnx/swinv2_fp16_layers.onnx --fp16 --max 1 --opt 1             # the one that has TensorRT
    $TRT_PYTHON TensorRT/compare_layers.py run --plan TensorRT/TRT_Engine/swinv2_fp16_layers.plan
    python TensorRT/compare_layers.py plot Results/local/layers_swinv2_fp16.csv

`prepare` marks tensors as further outputs and stores what they are in FP32 on the CPU. A marked tensor is a border
that TensorRT does not fuse across: the layers engine is slower than the real one, and not always wrong where that is.
Its logits are therefore compared as well, always, as the last row: they say whether it is as wrong as the real one.
Where it is not, mark less (--every, --match). emulate_fp16.py writes the same table without a GPU.
"""
from __future__ import annotations

import argparse
import csv
import math
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from data.batches import data_facts, data_of, load_arrays
from graphs.facts import Facts, beside, carried_over, fp32_parent, of_onnx, of_plan
from graphs.files import load_onnx
from Results.tables import LOCAL, read_rows
from TensorRT.backend import add_backend_argument, add_plugins_argument
from utils import (
    ROOT,
    UserError,
    existing_file,
    file_to_write,
    folder_to_write,
    from_one,
    from_zero,
    image_size,
    picture_target,
    run_script,
    shown,
    whole_file,
)

COLUMNS = ("depth", "tensor", "op", "shape", "max_abs_ref", "max_abs_err", "rel_err", "nan", "inf")


# --- prepare -------------------------------------------------------------------------------------------------


def live_tensors(graph) -> dict[str, str]:
    """The tensors that depend on the graph's input, in the graph's order, each with the operator it comes from."""
    live = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    known = 0
    while known < len(live):  # more than one pass where a converter has appended its casts at the end
        known = len(live)
        for node in graph.node:
            if live.intersection(node.input):
                live.update(node.output)
    return {name: node.op_type for node in graph.node if live.intersection(node.input)
            for name in node.output if name}


def mark(model, names: list[str], types: dict[str, int] | None = None):
    """A copy of a model in which tensors are further outputs; without `types` onnxruntime finds their types itself."""
    import onnx

    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    ends = {value.name for value in model.graph.output}
    for name in (name for name in names if name not in ends):
        marked.graph.output.append(onnx.helper.make_tensor_value_info(name, types[name], None) if types
                                   else onnx.ValueInfoProto(name=name))
    return marked


def session_of(model, names: list[str]):
    """An onnxruntime session on a model, plugin nodes by their reference meaning, with tensors as further outputs."""
    from graphs import sessions
    from graphs.reference import expand

    return sessions.session_of(mark(expand(model), names))  # expand() needs the types that the model gives its tensors



def reference_of(path: Path, facts: Facts) -> Path:
    """The FP32 graph that a graph is compared with: itself, or for one in FP16 or INT8 the one that it was made from.

    Raises:
        UserError: that is not there.
    """
    found = fp32_parent(path, facts)
    if found is None:
        raise UserError(f"{shown(path)}: is in {facts.precision}, and the FP32 graph that it was made from is neither "
                        "beside it nor in onnx/; give it with --reference")
    return found


def load_input(path: str | None, onnx_path: Path, facts: Facts, images: int, size: tuple[int, int] | None = None
               ) -> np.ndarray:
    """The first images of a data file's `input`; by default of the smallest one in data/ of the graph's model, of
    images of `size`, height and width, where a graph that takes several has data of several.

    Raises:
        UserError: no such file, or its images are not of the size that the graph takes.
    """
    if path:
        source = Path(path)
        found = load_arrays(source, ("input",), "batch data", "write it with data/batch_data_gen.py")["input"]
    else:
        batches = [batch for batch in data_of(facts) if size in (None, batch.size)]
        if not batches and size:
            raise UserError(f"{shown(onnx_path)}: no data of its model in data/ with images of {size[0]}x{size[1]}; "
                            f"data/batch_data_gen.py --size {size[0]}x{size[1]} writes it")
        if not batches:
            raise UserError(f"{shown(onnx_path)}: no data of its model in data/; give an .npz with --data")
        source, found = batches[0].path, batches[0].input
    if found.ndim != len(facts.input_shape) or any(
            side not in (None, given) for side, given in zip(facts.input_shape[1:], found.shape[1:])):
        raise UserError(f"{shown(source)}: holds images {list(found.shape[1:])}, and {shown(onnx_path)} takes "
                        f"{list(facts.input_shape[1:])}; give another --data")
    return found[:images]


def prepare(arguments: argparse.Namespace) -> None:
    """Write the graph with marked tensors and the FP32 values of these tensors."""
    path = Path(arguments.onnx)
    model = load_onnx(path)
    facts = of_onnx(path)
    reference_path = Path(arguments.reference) if arguments.reference else reference_of(path, facts)
    reference = load_onnx(reference_path)
    images = load_input(arguments.input, path, facts, arguments.count, arguments.size)

    depth = {name: index for index, name in enumerate(live_tensors(reference.graph))}
    operators = {name: op for name, op in live_tensors(model.graph).items() if name in depth}
    typed = session_of(model, list(operators)).get_outputs()
    kinds = {"tensor(float)": 1, "tensor(float16)": 10}  # onnxruntime's names: onnx.TensorProto.FLOAT and FLOAT16
    types = {tensor.name: kinds[tensor.type] for tensor in typed if tensor.name in operators and tensor.type in kinds}
    ends = [value.name for value in model.graph.output if value.name in types]
    try:
        matches = re.compile(arguments.match).search
    except re.error as error:
        raise UserError(f"--match '{arguments.match}': is no regular expression: {error}") from error
    names = sorted((name for name in types if matches(name) and name not in ends),
                   key=depth.__getitem__)[::arguments.every]
    if not names:
        raise UserError(f"{shown(path)}: no tensor to compare: none that matches '{arguments.match}' is in "
                        f"{shown(reference_path)} too; --reference names the FP32 graph")
    names += ends

    session = session_of(reference, names)
    print(f"running {shown(reference_path)} on {len(images)} images for {len(names)} tensors", flush=True)
    arrays = session.run(names, {session.get_inputs()[0].name: images})
    layers = Path(arguments.output) / f"{path.stem}_layers.onnx"
    with whole_file(layers) as partial:
        partial.write_bytes(carried_over(mark(model, names, types), path).SerializeToString())
    with whole_file(layers.with_suffix(".npz")) as partial, partial.open("wb") as file:
        np.savez(file, input=images, facts=np.array(of_onnx(layers).to_json()), names=np.array(names),
                 operators=np.array([operators[name] for name in names]),
                 depths=np.array([depth[name] for name in names]),
                 **{f"tensor_{index}": array for index, array in enumerate(arrays)})
    size = layers.with_suffix(".npz").stat().st_size / 2**20
    print(f"wrote {shown(layers)} and {shown(layers.with_suffix('.npz'))} ({size:.0f} MiB)\n"
          f"next: TensorRT/build.sh {shown(layers)} --opt {len(images)} --max {len(images)} "
          "and the flags that the real engine was built with")


# --- run -----------------------------------------------------------------------------------------------------


def compare(output: np.ndarray, reference: np.ndarray) -> dict[str, str]:
    """The figures of one tensor. Errors are of the finite elements; rel_err is max_abs_err over max_abs_ref."""
    output, reference = output.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    finite = np.isfinite(output)
    size = float(np.abs(reference).max())
    error = float(np.abs(output - reference)[finite].max()) if finite.any() else float("inf")
    return {"max_abs_ref": f"{size:.6g}", "max_abs_err": f"{error:.6g}",
            "rel_err": f"{error / size if size else error:.6g}",
            "nan": str(int(np.isnan(output).sum())), "inf": str(int(np.isinf(output).sum()))}


def layers_reference(plan: Path) -> Path:
    """The .npz in onnx/ that `prepare` wrote with the graph that a plan was built from.

    Raises:
        UserError: the plan does not say what it was built from, or there is no such file.
    """
    facts = of_plan(existing_file(plan, "the engine of <graph>_layers.onnx (--plan)"))
    if facts is None:
        raise UserError(f"{shown(plan)}: does not say what it was built from ({shown(beside(plan))} is not there); "
                        "give --reference")
    for path in sorted((ROOT / "onnx").glob("*.npz")):
        theirs = data_facts(path)
        if theirs is not None and theirs.digest in facts.family:
            return path
    raise UserError(f"{shown(plan)}: onnx/ has no .npz of the graph that it was built from; `compare_layers.py "
                    "prepare` writes one, or give --reference")


def run(arguments: argparse.Namespace) -> None:
    """Run the layers engine and write the table of its tensors."""
    plan = Path(arguments.plan)
    reference_path = Path(arguments.reference) if arguments.reference else layers_reference(plan)
    stored = load_arrays(reference_path, (), "what `compare_layers.py prepare` wrote", "give it with --reference")
    from TensorRT.engine import Engine

    with Engine(plan, arguments.plugins) as engine, engine.context() as context:
        outputs = context.infer_all(stored["input"])
    rows = []
    for index, name in enumerate(map(str, stored["names"])):
        output, reference = outputs.get(name), stored[f"tensor_{index}"]
        if output is None or output.size != reference.size:
            raise UserError(f"{shown(plan)}: has no output {name} {list(reference.shape)}; it was not built from the "
                            f"graph that {shown(reference_path)} was written with")
        rows.append(row_of(stored["depths"][index], name, stored["operators"][index], output, reference))
    table = Path(arguments.output or LOCAL / f"layers_{plan.stem.removesuffix('_layers')}.csv")
    write_table(table, rows)
    print(report(rows, arguments.tolerance))
    print(f"wrote {shown(table)}; compare_layers.py plot draws it")


def row_of(depth: int, tensor: str, op: str, output: np.ndarray, reference: np.ndarray) -> dict[str, str]:
    """The row of one tensor."""
    return {"depth": str(depth), "tensor": tensor, "op": str(op), "shape": "x".join(map(str, reference.shape)),
            **compare(output, reference)}


def write_table(table: Path, rows: list[dict[str, str]]) -> None:
    with whole_file(table) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_table(table: Path) -> list[dict[str, str]]:
    """The rows that `write_table` wrote; UserError if the file is something else."""
    rows = read_rows(existing_file(table, "a table that `compare_layers.py run` wrote"))
    if not rows or tuple(rows[0]) != COLUMNS:
        raise UserError(f"{shown(table)}: is not a table of compare_layers.py run")
    return rows


def broken(row: dict[str, str]) -> bool:
    """Whether a tensor holds NaN or infinity."""
    return row["nan"] != "0" or row["inf"] != "0"


def first_offender(rows: list[dict[str, str]], tolerance: float) -> dict[str, str] | None:
    """The first tensor, in the graph's order, with NaN or infinity or an error above `tolerance` of its largest."""
    return next((row for row in rows if broken(row) or float(row["rel_err"]) > tolerance), None)


def worst(rows: list[dict[str, str]], count: int) -> list[dict[str, str]]:
    """The tensors with the largest relative errors, those with NaN or infinity before all others."""
    return sorted(rows, key=lambda row: (not broken(row), -float(row["rel_err"])))[:count]


def report(rows: list[dict[str, str]], tolerance: float) -> str:
    """The first offender and the five worst tensors in words."""
    def line(row: dict[str, str]) -> str:
        return (f"  {row['depth']:>5}  {row['op']:<20} rel_err {float(row['rel_err']):9.2e}  of {row['max_abs_ref']:>9}"
                f"  NaN {row['nan']}  Inf {row['inf']}  {row['tensor']}")

    first = first_offender(rows, tolerance)
    head = f"{len(rows)} tensors compared, {sum(map(broken, rows))} with NaN or infinity"
    end = ["worst:", *map(line, worst(rows, 5)), "last:", line(rows[-1])]
    if first is None:
        return "\n".join([f"{head}; none is off by more than {tolerance:g} of its largest element", *end])
    return "\n".join([head, f"first with NaN, infinity or an error above {tolerance:g} of its largest element:",
                      line(first), *end])


# --- plot ----------------------------------------------------------------------------------------------------


def place(tensor: str) -> str:
    """The block of the network that a tensor belongs to, by its name: "0.1" is block 1 of stage 0, "0>" the patch
    merging after it."""
    found = re.search(r"layers\.(\d+)/(?:blocks\.(\d+)/|downsample/)", tensor)
    if found is None:
        return "patch embedding" if "patch_embed" in tensor else "head" if "/layers" not in tensor else "other"
    return f"{found[1]}>" if found[2] is None else f"{found[1]}.{found[2]}"


def positions(tables: list[list[dict[str, str]]]) -> tuple[list[str], list[np.ndarray]]:
    """Where each row of each table stands along the network, so that graphs of different length lie on each other.

    Returns:
        The blocks in order; and for each table its rows' positions: the block's number plus the share of the block's
        rows that lie before this one.
    """
    def order(block: str) -> tuple[float, float]:
        if block[0].isdigit():
            stage, _, number = block.rstrip(">").partition(".")
            return int(stage), int(number) if number else math.inf
        return {"patch embedding": -1, "other": math.inf, "head": math.inf}[block], block == "head"

    blocks = sorted({place(row["tensor"]) for rows in tables for row in rows}, key=order)
    found = []
    for rows in tables:
        places = [place(row["tensor"]) for row in rows]
        seen = dict.fromkeys(blocks, 0)
        x = []
        for block in places:
            x.append(blocks.index(block) + (seen[block] + 0.5) / places.count(block))
            seen[block] += 1
        found.append(np.array(x))
    return blocks, found


def labels(paths: list[Path]) -> list[str]:
    """The tables' names without "layers_" and without the words that all of them begin with."""
    words = [path.stem.split("_")[path.stem.startswith("layers_"):] for path in paths]
    shared = 0
    while len(words) > 1 and all(len(word) > shared + 1 and word[shared] == words[0][shared] for word in words):
        shared += 1
    return ["_".join(word[shared:]) for word in words]


def plot(arguments: argparse.Namespace) -> None:
    """Draw the relative error of every tensor along the network, one line per table, one panel per --panel."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [(panel[0], list(map(Path, panel[1:]))) for panel in arguments.panel]
    if arguments.tables:
        panels.insert(0, (arguments.title, list(map(Path, arguments.tables))))
    if not panels or not all(paths for _, paths in panels):
        raise UserError("plot: no table; give what `compare_layers.py run` wrote, or --panel TITLE TABLE...")
    picture = picture_target(Path(arguments.output or LOCAL / f"{panels[0][1][0].stem}.png"))
    figure, all_axes = pyplot.subplots(len(panels), figsize=(14, 0.5 + 3.5 * len(panels)), layout="constrained",
                                       squeeze=False)
    for (title, paths), axes in zip(panels, all_axes[:, 0]):
        tables = [read_table(path) for path in paths]
        blocks, found = positions(tables)
        for index, (rows, x, label) in enumerate(zip(tables, found, labels(paths))):
            draw(axes, rows, x, index, label, arguments.tolerance)
        axes.set(yscale="log", xlim=(0, len(blocks)), title=title,
                 ylabel="max |error| / max |reference|")
        axes.set_xticks(np.arange(len(blocks)) + 0.5, blocks, fontsize=8, rotation=90 if len(blocks) > 16 else 0)
        axes.tick_params(axis="x", length=0)
        axes.vlines(np.arange(1, len(blocks)), 0, 1, transform=axes.get_xaxis_transform(), color="grey", alpha=0.2,
                    linewidth=0.6)
        axes.axhline(arguments.tolerance, color="grey", linewidth=0.8, linestyle=":")
        axes.margins(y=0.25)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    all_axes[-1, 0].set_xlabel("stage.block, > patch merging")
    with whole_file(picture) as partial:
        figure.savefig(partial, dpi=130)
    pyplot.close(figure)
    print(f"wrote {shown(picture)}")


def draw(axes, rows: list[dict[str, str]], x: np.ndarray, index: int, label: str, tolerance: float) -> None:
    """One table's line; its tensors with NaN or infinity as crosses along the top; a ring around the first offender."""
    colour = f"C{index}"
    bad = np.array([broken(row) for row in rows])
    error = np.array([float(row["rel_err"]) for row in rows])
    height = np.where(bad, np.nan, np.maximum(error, 1e-9))  # 0 has no place on a logarithmic axis
    along_top = {"transform": axes.get_xaxis_transform(), "linestyle": "", "color": colour}  # y in shares of the axes
    top = 0.97 - 0.04 * index  # apart from other tables' crosses
    first = first_offender(rows, tolerance)
    words = [label]
    if first is not None:
        at = rows.index(first)
        words.append(f"first: {first['tensor'].strip('/').removesuffix('_output_0').removeprefix('layers.')}")
        ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none"}
        if bad[at]:
            axes.plot(x[at], top, **ring, **along_top)
        else:
            axes.plot(x[at], height[at], **ring, color=colour)
    if bad.any():
        words.append(f"NaN or infinity in {bad.sum()} of {len(rows)}")
        axes.plot(x[bad], np.full(bad.sum(), top), marker="x", markersize=4, **along_top)
    axes.plot(x, height, ".-", color=colour, markersize=3, linewidth=0.8, label="\n".join(words))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="prepare | run | plot")

    command = commands.add_parser("prepare", help="mark tensors, store their FP32 values (needs onnx, onnxruntime)")
    command.add_argument("--onnx", required=True, metavar="FILE", help="the graph to examine")
    command.add_argument("--reference", metavar="FILE",
                         help="FP32 graph; default the graph itself, for one in FP16 the one that it was made from")
    command.add_argument("--input", metavar="NPZ",
                         help="its array `input` is run; default the smallest of its model in data/")
    command.add_argument("--size", type=image_size, metavar="HxW",
                         help="with images of this size, where a graph that leaves it open has data of several")
    command.add_argument("--count", type=from_one, default=1, metavar="N", help="images of it; default 1")
    command.add_argument("--every", type=from_one, default=1, metavar="N",
                         help="mark every n-th tensor; default 1, all")
    command.add_argument("--match", default="", metavar="REGEX", help="of the tensors whose name matches; default all")
    command.add_argument("--output", type=folder_to_write, default=str(ROOT / "onnx"), metavar="FOLDER",
                         help="default onnx/")
    command.set_defaults(command=prepare)

    command = commands.add_parser("run", help="compare the engine built from the marked graph (needs TensorRT)")
    command.add_argument("--plan", required=True, metavar="FILE", help="the engine of <graph>_layers.onnx")
    command.add_argument("--reference", metavar="NPZ", help="default: that of the graph in onnx/")
    add_plugins_argument(command)
    command.add_argument("--tolerance", type=from_zero, default=0.01, metavar="SHARE",
                         help="error of a tensor that is an offence, as a share of its largest element; default 0.01")
    command.add_argument("--output", type=file_to_write, metavar="CSV", help="default Results/local/layers_<graph>.csv")
    add_backend_argument(command)
    command.set_defaults(command=run)

    command = commands.add_parser("plot", help="draw one or more tables (needs matplotlib)")
    command.add_argument("tables", nargs="*", metavar="CSV", help="tables that `run` wrote, for one panel")
    command.add_argument("--panel", nargs="+", action="append", default=[], metavar=("TITLE", "CSV"),
                         help="a panel with its own tables; may be given several times")
    command.add_argument("--tolerance", type=from_zero, default=0.01, metavar="SHARE", help="as for run; default 0.01")
    command.add_argument("--title", default="Error of the engine's tensors against FP32 on the CPU")
    command.add_argument("--output", metavar="PNG", help="default Results/local/<first table>.png")
    command.set_defaults(command=plot)

    arguments = parser.parse_args()
    arguments.command(arguments)


if __name__ == "__main__":
    run_script(main)
