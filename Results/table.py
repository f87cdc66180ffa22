"""Print the newest figures of each model from accuracy.csv and latency.csv: those of this machine, or of all.

    python Results/table.py swinv1_micro swinv2_micro
    python Results/table.py --run 20261122-220600 --markdown  # of one run, on whatever machine, for README

What was recorded (Results/) and what was measured here (Results/local/) are shown together. The files keep every run.
Where several rows measured the same, the last one is shown.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from Results.tables import LOCAL, RESULTS, cpu_name, gpu_name, newest, read_table, timing_doubt
from utils import UserError, run_script, shown

# For each file: the columns that tell what was measured, and those shown, with heading and format.
TABLES = {
    "accuracy": (("runner", "file", "precision", "batch"), {
        "runner": ("runner", "{}"), "file": ("file", "{}"), "precision": ("precision", "{}"),
        "batch": ("batch", "{}"),
        "top1": ("top-1", "{:.2%}"), "agreement": ("same as PyTorch FP32", "{:.2%}"),
        "max_abs_err": ("max abs err", "{:.1e}"), "torch_max_abs_err": ("PyTorch's own", "{:.1e}"),
        "images": ("images", "{}"),
    }),
    "latency": (("runner", "file", "export", "cuda_graph", "mode", "precision", "batch"), {
        "runner": ("runner", "{}"), "file": ("file", "{}"), "precision": ("precision", "{}"),
        "batch": ("batch", "{}"),
        "latency_ms_median": ("median ms", "{:.2f}"), "latency_ms_p99": ("p99 ms", "{:.2f}"),
        "images_per_s": ("images/s", "{:.0f}"), "max_abs_err": ("max abs err", "{:.1e}"),
        "images": ("images", "{}"), "cuda_graph": ("CUDA graph", "{}"), "mode": ("mode", "{}"),
        "check": ("check", "{}"),
        "doubt": ("timing", "{}"),  # no column of the file: timing_doubt
    }),
}


def newest_rows(paths: list[Path], key: tuple[str, ...],
                run: str | None) -> dict[tuple[str, str], list[dict[str, str]]]:
    """(model, machine) -> the last row of every key, of one run or of all, in the order of the keys' first rows.

    Args:
        paths: tables that are shown as one, the older one first; those that are not there have no rows.
    """
    rows = pandas.concat([read_table(path, ("run_id", "model", "gpu", *key)) for path in paths], ignore_index=True)
    rows = newest(rows if run is None else rows[rows["run_id"] == run], ("model", "gpu", *key))
    return {where: group.to_dict("records") for where, group in rows.groupby(["model", "gpu"], sort=False)}


def cells(rows: list[dict[str, str]], columns: dict[str, tuple[str, str]]) -> list[list[str]]:
    """Heading and rows as text; a dash where a value is not known."""
    def text(value: str, layout: str) -> str:
        return "-" if not value else layout.format(value if layout == "{}" else float(value))

    return [[heading for heading, _ in columns.values()],
            *([text(row[column], layout) for column, (_, layout) in columns.items()] for row in rows)]


def print_cells(lines: list[list[str]], markdown: bool) -> None:
    if markdown:
        lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
        print("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="MODEL.NAME (default: all)")
    parser.add_argument("--all", action="store_true", help="of all machines, not only of this one")
    parser.add_argument("--run", metavar="RUN_ID", help="only of this run, on whatever machine it was")
    parser.add_argument("--markdown", action="store_true", help="as Markdown")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER",
                        help="with what is in its folder local/ (default: Results/)")
    args = parser.parse_args(arguments)
    here, shown_any = {gpu_name(), cpu_name()}, False
    for table, (key, columns) in TABLES.items():
        tables = [folder / f"{table}.csv" for folder in (args.results, args.results / LOCAL.name)]
        for (model, machine), rows in newest_rows(tables, key, args.run).items():
            if (args.models and model not in args.models) or (machine not in here and not (args.all or args.run)):
                continue
            print(f"\n{model}, {table}; GPU: {machine}\n")
            if table == "latency":
                rows = [{**row, "doubt": timing_doubt(row)} for row in rows]
            print_cells(cells(rows, columns), args.markdown)
            shown_any = True
    if not shown_any:
        which = f"run {args.run}" if args.run else "any machine" if args.all else "this machine (--all: of any)"
        raise UserError(f"{shown(args.results)}: no rows of {', '.join(args.models) or 'any model'} of {which}; "
                        "run_all.sh measures them")


if __name__ == "__main__":
    run_script(main)
