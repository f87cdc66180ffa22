"""Draw throughput over batch for every runner of a measuring run, and write how much faster the plugins are.

    python Results/draw.py latency                         # the newest race on a GPU, INT8 of the newest run with it
    python Results/draw.py latency --run 20261122-220232   # that run

Reads only Results/latency.csv; writes Images/latency.png, a panel for each model and precision, and
Results/speedup.md, which it prints too. A runner has several rows for a batch: launched kernel by kernel, as a CUDA
graph, by the modes of torch.compile, TensorRT on this project's export and on timm's. The fastest one counts, for every
runner.
"""
from __future__ import annotations

import argparse
import itertools
import textwrap

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from Results.latency_tables import (
    OURS,
    OURS_FP16,
    Row,
    best_of_both,
    markdown_table,
    race_and_int8,
    speedup_table,
    what_counts,
)
from Results.tables import IMAGES, RESULTS, how_measured, latency_rows, on_gpu, row_problem
from utils import UserError, folder_to_write, shown, whole_file

# runner: its name in the legend, colour and marker. Colours that the colour-blind tell apart (Okabe and Ito, 2008).
STYLES = {
    OURS: ("TensorRT with this project's plugins", "#D55E00", "o"),
    "trt": ("TensorRT", "#0072B2", "s"),
    "torch-compile": ("torch.compile", "#009E73", "^"),
    "torch-script": ("TorchScript", "#CC79A7", "v"),
    "torch-eager": ("PyTorch eager", "#E69F00", "D"),
    "ort-cuda": ("onnxruntime CUDA", "#56B4E9", "P"),
    "ort-cpu": ("onnxruntime CPU", "#000000", "X"),
}
PANEL = 4.2, 3.3  # inches

def markdown(rows: list[Row], int8: list[Row]) -> str:
    """Results/speedup.md: what was measured where, the table, and the rows that do not count."""
    def all_of(column: str) -> str:
        return ", ".join(dict.fromkeys(row[column] for row in rows))

    best = best_of_both(rows, int8)
    rows = [*rows, *(row for row in int8 if row not in rows)]
    text = [f"Run {all_of('run_id')} on {all_of('gpu')}, commit {all_of('commit')}. Median latency of a batch; errors "
            f"are those of the same run, against the FP32 ONNX output. {what_counts(rows)}.", ""]
    text += markdown_table(speedup_table(best))
    dropped = [f"- {row['model']} {row['precision']} {row['runner']} b{row['batch']} ({how_measured(row)}): "
               f"{row_problem(row)}" for row in rows if row_problem(row)]
    if dropped:
        text += ["", "Measured, but not counted:", "", *dropped]
    return "\n".join(text) + "\n"


def draw(rows: list[Row], int8: list[Row], title: str) -> plt.Figure:
    """Images per second over batch: a row of panels for each model, a column for each precision, a line a runner.

    Beside INT8 stands ours in FP16.
    """
    best = best_of_both(rows, int8)
    models = list(dict.fromkeys(model for model, _, _ in best))
    precisions = sorted({precision for _, precision, _ in best}, key=["fp32", "bf16", "fp16", "int8"].index)
    batches = sorted({batch for _, _, batch in best})
    width, height = PANEL[0] * max(2, len(precisions)), PANEL[1] * len(models) + 1.3
    figure, axes = plt.subplots(len(models), len(precisions), squeeze=False, sharex=True, sharey=True,
                                figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    handles = {}

    def throughput(model: str, precision: str, runner: str) -> list[tuple[int, float]]:
        return [(batch, float(best[model, precision, batch][runner]["images_per_s"])) for batch in batches
                if runner in best.get((model, precision, batch), {})]

    for axis, (model, precision) in zip(axes.flat, itertools.product(models, precisions)):
        if precision == "int8" and (points := throughput(model, "int8", OURS_FP16)):
            (handles["fp16"],) = axis.plot(*zip(*points), color=STYLES[OURS][1], linestyle="--", linewidth=1.4,
                                           label="these plugins in FP16")
        for runner, (label, colour, marker) in reversed(STYLES.items()):  # ours last, on top
            if points := throughput(model, precision, runner):
                ours = runner == OURS
                (handles[runner],) = axis.plot(*zip(*points), color=colour, marker=marker, label=label,
                                               markersize=7 if ours else 5.5, linewidth=2.6 if ours else 1.4)
        axis.set_title(f"{model}, {precision.upper()}", fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xticks(batches, [str(batch) for batch in batches])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(color="#d0d7de", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("batch")
    for axis in axes[:, 0]:
        axis.set_ylabel("images per second")
    figure.legend(handles=[handles[line] for line in (*STYLES, "fp16") if line in handles], loc="outside lower center",
                  ncols=3, fontsize=9, frameon=False,
                  title=textwrap.fill(what_counts(rows or int8), 100), title_fontsize=9)
    return figure


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="draw.py latency", description=__doc__.splitlines()[0])
    parser.add_argument("--run", metavar="RUN_ID", help="default: of what was measured on a GPU, if there is that, the "
                        "newest run that has other runners beside ours; INT8 of the newest that has it")
    parser.add_argument("--results", type=folder_to_write, default=str(RESULTS), metavar="FOLDER",
                        help="of latency.csv, and where speedup.md goes (default: Results/)")
    parser.add_argument("--pictures", type=folder_to_write, default=str(IMAGES), metavar="FOLDER",
                        help="where the picture goes (default: Images/)")
    args = parser.parse_args(arguments)
    rows = latency_rows(args.results)
    if args.run:
        rows = [row for row in rows if row["run_id"] == args.run]
    elif any(map(on_gpu, rows)):
        rows = list(filter(on_gpu, rows))
    if not rows:
        of_run = f"run {args.run}" if args.run else "any run"
        raise UserError(f"{shown(args.results / 'latency.csv')}: no rows of {of_run}; race.py measures them")
    race, int8 = race_and_int8(rows)
    rows = race or int8
    table = markdown(race, int8)
    print(table)
    gpus = ", ".join(dict.fromkeys(row["gpu"] for row in rows)).removeprefix("none ").strip("()")
    figure = draw(race, int8, f"Throughput on {gpus}")
    # Both or neither. Without the version of matplotlib in it, the same rows give the same picture.
    with whole_file(args.results / "speedup.md") as text, whole_file(args.pictures / "latency.png") as picture:
        text.write_text(table)
        figure.savefig(picture, dpi=110, metadata={"Software": None})
    print(f"wrote {shown(args.results / 'latency.png')} and {shown(args.results / 'speedup.md')}: "
          f"{len(rows)} rows of run {rows[0]['run_id']}")
