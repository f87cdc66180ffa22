"""Measures the zoo: what is replaced in each model, what is left and why, and the error in FP32, FP16 and INT8.

    python tests/works_with.py                        # all: hours; goes on where it was stopped
    python tests/works_with.py --only timm_v1 hat     # these, again
    python tests/works_with.py --write                # docs/works_with.md from Results/works_with.csv

Each model (zoo.py) is exported at three image sizes by each exporter, patched as add_all.py does it, and compared with
PyTorch at batch 1 and 3, on a CPU, by onnxruntime, plugin nodes by their reference meaning. A row of
Results/works_with.csv is one model by one exporter at one size.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import torch

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
sys.path.insert(2, str(Path(__file__).resolve().parents[1] / "onnx"))
sys.path.insert(3, str(Path(__file__).resolve().parents[1] / "onnx" / "graphsurgeon"))

import add_all
import add_int8
import zoo
from to_fp16 import to_fp16

from graphs.sessions import session
from graphs.surgeon import Report, patch
from Results.tables import append_rows, git_commit, read_rows
from TensorRT.INT8 import quant
from utils import ROOT, UserError, choices, first_line, run_script, shown, whole_file

TABLE, PAGE = ROOT / "Results" / "works_with.csv", ROOT / "docs" / "works_with.md"
KINDS = {"attention": "window attention", "embedding": "patch embedding", "merging": "patch merging",
         "linear": "linear layer", "mlp": "MLP"}
# Of one model at one image size: `<kind>` replaced, `<kind>_of` there are; largest errors over batches 1 and 3 and all
# outputs, as a share of an output's largest number, against PyTorch in FP32. fp16_torch is PyTorch's own in half
# precision; int8 against the FP32 graph. `left` and `problem` in words.
COLUMNS = ("commit", "name", "exporter", "height", "width",
           *(f"{kind}{of}" for kind in KINDS for of in ("", "_of")),
           "fp32_err", "fp16_err", "fp16_torch_err", "int8_err", "left", "problem", "seconds")


def worst(actual: Iterable[np.ndarray], expected: Iterable[torch.Tensor]) -> float:
    """The largest error of some outputs, each as a share of its largest number; NaN where one is NaN."""
    shares = []
    for output, wanted in zip(actual, expected, strict=True):
        reference = wanted.float().numpy()
        if output.shape != reference.shape:
            return float("nan")
        shares.append(float(np.abs(output.astype(np.float64) - reference).max() / np.abs(reference).max()))
    return float(np.max(shares))


def error_of(graph: onnx.ModelProto, case: zoo.Case, size: zoo.Size, expected: dict[int, list[torch.Tensor]]) -> float:
    """The largest error of a graph over the batches that `expected` has."""
    runner, found = session(graph), []
    for batch, outputs in expected.items():
        images = zoo.images(case, batch, size).numpy()
        found.append(worst(runner.run(None, {runner.get_inputs()[0].name: images}), outputs))
    return float(np.max(found))


@torch.no_grad()
def of_torch(model: torch.nn.Module, case: zoo.Case, size: zoo.Size, batches: Iterable[int], half: bool = False
             ) -> dict[int, list[torch.Tensor]]:
    """What PyTorch gives at each batch."""
    kind = torch.float16 if half else torch.float32
    return {batch: zoo.tensors_of(model(zoo.images(case, batch, size).to(kind))) for batch in batches}


def counted(case: zoo.Case, reports: list[Report]) -> dict[str, str]:
    """The columns of what was replaced. There are as many as the zoo says, or more where the graph shows more."""
    by_name = {report.what: report for report in reports}
    known = {"attention": case.attentions, "embedding": case.embeddings, "merging": case.mergings,
             "linear": case.linears, "mlp": case.mlps}
    columns = {}
    for kind, what in KINDS.items():
        report = by_name[what]
        columns |= {kind: str(report.replaced), f"{kind}_of": str(max(known[kind], report.replaced))}
    return columns


def reasons(reports: list[Report]) -> str:
    """Why parts were left, each reason once, without the nodes' names."""
    found = [f"{report.what}: {re.sub(r'^[^ ]*: ', '', why)}" for report in reports for why in report.left]
    return "; ".join(dict.fromkeys(found))


def int8_error(graph: onnx.ModelProto, case: zoo.Case, size: zoo.Size, batches: tuple[int, ...]) -> float:
    """The largest error of the graph of INT8 plugin nodes, made by the scripts as a user does, against the FP32 graph.
    """
    together = batches[0] if case.fixed_batch else 6
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "m.onnx"
        onnx.save(graph, path)
        quant.main(["--onnx", str(path), "--narrow", "--method", "minmax", "--batches", str(12 // together),
                    "--batch-size", str(together), "--cache", f"{folder}/m.cache", "--output",
                    f"{folder}/m_int8.onnx", "--max-rms", "1", "--min-agreement", "0"])
        before, sys.argv = sys.argv, ["add_int8.py", "--onnx", f"{folder}/m_int8.onnx", "--output",
                                      f"{folder}/m_attention_int8.onnx"]
        try:
            add_int8.main()
        finally:
            sys.argv = before
        int8, plain, found = session(onnx.load(f"{folder}/m_attention_int8.onnx")), session(graph), []
        for batch in batches:
            images = {plain.get_inputs()[0].name: zoo.images(case, batch, size).numpy()}
            expected = [torch.from_numpy(output) for output in plain.run(None, images)]
            found.append(worst(int8.run(None, images), expected))
        return float(np.max(found))


def measured(case: zoo.Case, exporter: str, size: zoo.Size, int8: bool = True) -> dict[str, str]:
    """The row of one model by one exporter at one image size."""
    begun = time.monotonic()
    row = {**dict.fromkeys(COLUMNS, ""), "commit": git_commit(), "name": case.name, "exporter": exporter,
           "height": str(size[0]), "width": str(size[1])}
    model = zoo.model_of(case, size)
    problems, errors = [], {"fp32": [], "fp16": [], "fp16_torch": [], "int8": []}
    expected = of_torch(model, case, size, (1, 3))
    for batches in ((1,), (3,)) if case.fixed_batch else ((1, 3),):
        wanted = {batch: expected[batch] for batch in batches}
        example = zoo.images(case, batches[0] if case.fixed_batch else 2, size)
        try:
            graph = zoo.export(model, example, exporter, not case.fixed_batch)
        except (RuntimeError, ValueError, TypeError, torch.onnx.OnnxExporterError) as error:
            row["problem"] = f"not exported: {first_line(error)[:160]}"
            break
        try:
            patched, reports = patch(graph, add_all.STEPS)
        except UserError as error:
            row["problem"] = f"not patched: {error}"
            break
        row |= counted(case, reports)
        row["left"] = reasons(reports)
        errors["fp32"].append(error_of(patched, case, size, wanted))
        for name, measure in (("fp16", lambda: error_of(to_fp16(patched, ["head"]), case, size, wanted)),  # noqa: B023
                              ("int8", lambda: int8_error(graph, case, size, batches))):  # noqa: B023
            if name == "int8" and not int8:
                continue
            try:
                errors[name].append(measure())
            except UserError as error:
                problems.append(f"{name.upper()}: {error}")
    try:
        half = of_torch(model.half(), case, size, (1, 3), half=True)
        errors["fp16_torch"].append(max(worst([tensor.float().numpy() for tensor in half[batch]], expected[batch])
                                        for batch in half))
    except RuntimeError as error:
        problems.append(f"PyTorch in FP16: {first_line(error)[:80]}")
    for name, found in errors.items():
        if found:
            row[f"{name}_err"] = f"{float(np.max(found)):.1e}"
    row["problem"] = row["problem"] or re.sub(r"/\S*/\w+\.onnx: ", "", "; ".join(dict.fromkeys(problems)))
    row["seconds"] = f"{time.monotonic() - begun:.0f}"
    return row


# --- the page ------------------------------------------------------------------------------------------------

HEAD = """\
# Works with

What was tried, on a CPU, with small models of random weights in the structure of each kind; the code is in
[tests/zoo.py](../tests/zoo.py) and [tests/other_sources.py](../tests/other_sources.py). Each model is exported by
torch's TorchScript exporter and by its dynamo exporter, and patched with `onnx/graphsurgeon/add_all.py` at three image
sizes: one that its windows divide, one that needs padding on both sides at every stage, one that is not square; the
column says which were measured so far, padded ones first. A row is the least that was replaced, and the largest error,
over these sizes and batches 1 and 3; "-" is not measured.

Errors are shares of an output's largest number, over all outputs. FP32 and FP16 are against PyTorch in FP32, and INT8
is against the FP32 graph. onnxruntime runs the plugin nodes by their reference meaning; the FP16 column shows rounded
weights only ([checks.md](checks.md#fp16-on-a-cpu)), and beside it is PyTorch's own error in half precision. The INT8
column is of models with random weights, which quantise worse than trained ones.

`python tests/works_with.py` measures all again into [Results/works_with.csv](../Results/works_with.csv), and
`python tests/works_with.py --write` writes this page.

"""


def lowest(rows: list[dict[str, str]], kind: str) -> str:
    """"replaced of all" where the least was replaced; empty where there is none."""
    found = [(int(row[kind]), int(row[f"{kind}_of"])) for row in rows if row[kind]]
    if not found:
        return "-"
    done, there = min(found, key=lambda pair: pair[0] / pair[1] if pair[1] else 1)
    return f"{done} of {there}" if there else "none"


def largest(rows: list[dict[str, str]], column: str) -> str:
    found = [float(row[column]) for row in rows if row[column]]
    return f"{max(found):.0e}" if found and not np.isnan(found).any() else "NaN" if found else "-"


def page(rows: list[dict[str, str]]) -> str:
    """docs/works_with.md: a row for each model, and below what was left."""
    newest = {(row["name"], row["exporter"], row["height"], row["width"]): row for row in rows}
    lines = [HEAD + "| model | exporter | sizes | attention | patch embedding | patch merging | linear layers | MLPs "
             "| FP32 | FP16 (PyTorch's) | INT8 |", "|---|---|---|---|---|---|---|---|---|---|---|"]
    notes = []
    for case in zoo.CASES:
        for exporter in zoo.EXPORTERS:
            found = [row for (name, by, height, width), row in newest.items()
                     if (name, by) == (case.name, exporter) and (int(height), int(width)) in case.sizes]
            if not found:
                continue
            sizes = ", ".join(f"{row['height']}x{row['width']}" for row in found)
            cells = [case.what, exporter, sizes, *(lowest(found, kind) for kind in KINDS), largest(found, "fp32_err"),
                     f"{largest(found, 'fp16_err')} ({largest(found, 'fp16_torch_err')})", largest(found, "int8_err")]
            lines.append(f"| {' | '.join(cells)} |")
            said = dict.fromkeys(part for row in found for part in (row["left"], row["problem"]) if part)
            notes += [f"- {case.what}, {exporter}: {part.replace('|', '/')}." for part in said]
    if notes:
        lines += ["", "Left as it is, and what did not work:", "", *dict.fromkeys(notes)]
    return "\n".join(lines) + "\n"


def write() -> None:
    with whole_file(PAGE) as partial:
        partial.write_text(page(read_rows(TABLE, COLUMNS)))
    print(f"wrote {shown(PAGE)}")


# --- all -----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models, whether measured before or not")
    parser.add_argument("--exporter", type=lambda text: choices(text, zoo.EXPORTERS), default=list(zoo.EXPORTERS),
                        metavar="NAME,NAME", help="torchscript, dynamo or both; default both")
    parser.add_argument("--quick", action="store_true",
                        help="without INT8; what was measured so is measured again without --quick")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at once; default 1")
    parser.add_argument("--table", type=Path, default=TABLE, metavar="CSV", help=f"default {shown(TABLE)}")
    parser.add_argument("--write", action="store_true", help="only write the page from the table")
    parser.add_argument("--one", nargs=3, metavar=("NAME", "EXPORTER", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write()
        return
    known = {case.name: case for case in zoo.CASES}
    if args.one:
        name, exporter, place = args.one
        torch.set_num_threads(1)
        case = known[name]
        append_rows(args.table, COLUMNS, [measured(case, exporter, case.sizes[int(place)], not args.quick)])
        return
    for name in args.only or []:
        if name not in known:
            raise UserError(f"{name}: not in the zoo; python tests/zoo.py lists what is")
    done = {(row["name"], row["exporter"], row["height"], row["width"]) for row in read_rows(args.table)
            if args.quick or row["int8_err"] or row["problem"]}
    # Sizes that need padding first: they show the most, if the rest is never measured.
    todo = [(case, exporter, place) for exporter in args.exporter for place in (1, 2, 0) for case in zoo.CASES
            if exporter in case.exporters and (args.only is None or case.name in args.only)
            and (args.only or (case.name, exporter, *map(str, case.sizes[place])) not in done)]

    def run(job: tuple[int, tuple[zoo.Case, str, int]]) -> str:
        """One row in a process of its own: what an exporter leaves behind in one does not slow the others."""
        number, (case, exporter, place) = job
        command = [sys.executable, __file__, "--table", str(args.table), "--one", case.name, exporter, str(place),
                   *(["--quick"] if args.quick else [])]
        finished = subprocess.run(command, capture_output=True, text=True)
        height, width = case.sizes[place]
        last = (finished.stderr.strip().splitlines() or ["?"])[-1]
        outcome = "measured" if finished.returncode == 0 else f"failed: {last}"
        print(f"[{number}/{len(todo)}] {case.name} {exporter} {height}x{width}: {outcome}", flush=True)
        return "" if finished.returncode == 0 else case.name

    with ThreadPoolExecutor(args.jobs) as pool:
        failed = list(filter(None, pool.map(run, enumerate(todo, start=1))))
    write()
    if failed:
        raise UserError(f"{len(failed)} of {len(todo)} rows failed: {', '.join(dict.fromkeys(failed))}")


if __name__ == "__main__":
    run_script(main)
