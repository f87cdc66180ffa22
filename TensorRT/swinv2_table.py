"""Collect what swinv2_question.sh found into Results/swinv2_question.csv, and print it; the script calls it.

    python TensorRT/swinv2_table.py --model swinv2_micro .cache/swinv2_question/layers_swinv2_micro_*.csv

Run it on the machine that ran the engines, which the rows name. Reads logits that run_engine.py wrote
(<model>_<weights>_<engine>-b<N,N>.npy) and tables of compare_layers.py (layers_<model>_<weights>_<engine>.csv) and
emulate_fp16.py (..._emulated.csv). A row is one engine, or
its emulation on a CPU, at one batch: the error of its logits, and the first tensor, in the graph's order, that is NaN
or infinite or off by more than --tolerance of its largest element. A row that is there already is replaced; where its
figures are the same it stays, and names the run that found them.
"""
from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from data.batches import load_arrays
from graphs.compare import max_abs_err, median_rel_err, top1_agreement
from Results.tables import (
    LOCAL,
    cpu_name,
    git_commit,
    gpu_name,
    new_run_id,
    package_versions,
    read_rows,
    write_environment,
)
from TensorRT.compare_layers import broken, first_offender, read_table
from utils import UserError, alone_in, file_to_write, from_zero, run_script, shown, whole_file

COLUMNS = ("run_id", "commit", "gpu", "model", "weights", "engine", "batch", "images", "images_nan_or_inf",
           "max_abs_err", "median_rel_err", "largest_logit", "top1_agreement", "layers_max_abs_err", "tensors",
           "tensors_nan_or_inf", "first_tensor", "first_op", "first_rel_err")
KEY = ("model", "weights", "engine", "batch")
RUN = ("run_id", "commit", "gpu")  # who found the figures; the other columns are the figures
WEIGHTS = ("trained", "overflow", "underflow", "saturated")  # as in swinv2_question.sh
IMAGES = 16  # as in swinv2_question.sh


def layers_columns(table: Path, tolerance: float) -> dict[str, str]:
    """What the layers table of an engine says."""
    rows = read_table(table)
    first = first_offender(rows, tolerance) or {"tensor": "none", "op": "", "rel_err": ""}
    return {"layers_max_abs_err": logit_error(rows), "tensors": str(len(rows)),
            "tensors_nan_or_inf": str(sum(map(broken, rows))), "first_tensor": first["tensor"],
            "first_op": first["op"], "first_rel_err": first["rel_err"]}


def logit_error(rows: list[dict[str, str]]) -> str:
    """The largest error of the logits, which are the last row of a layers table; nan where one is NaN or infinite."""
    return "nan" if broken(rows[-1]) else f"{float(rows[-1]['max_abs_err']):.3e}"


def engine_rows(files: list[Path], run: dict[str, str], tolerance: float) -> list[dict[str, str]]:
    """One row for each engine and batch that run_engine.py ran.

    Args:
        files: logits and tables of tensors.
        run: run_id, commit and model of the rows.
    Raises:
        UserError: logits without the data file that they were computed of, or of another number of images.
    """
    model, gpu, rows = run["model"], gpu_name(), []
    for path in sorted(path for path in files if path.suffix == ".npy"):
        stem, _, batches = path.stem.rpartition("-b")
        weights, _, engine = stem.removeprefix(f"{model}_").partition("_")
        layers = path.with_name(f"layers_{stem}.csv")
        source = path.with_name(f"{model}_{weights}-b{IMAGES}.npz")
        expected = load_arrays(source, ("logits",), "the data of swinv2_question.sh", "run that again")["logits"]
        logits = np.load(path)
        if "," not in batches:
            logits = logits[None]  # run_engine.py leaves the first axis out for one batch size
        if logits.shape != (len(batches.split(",")), *expected.shape):
            raise UserError(f"{shown(path)}: its logits {list(logits.shape)} are not those of {shown(source)}, "
                            f"{list(expected.shape)}; remove it, and run swinv2_question.sh again")
        for batch, found in zip(batches.split(","), logits):
            rows.append({
                **run, "gpu": gpu, "weights": weights, "engine": engine, "batch": batch, "images": str(len(found)),
                "images_nan_or_inf": str(int((~np.isfinite(found)).any(axis=1).sum())),
                "max_abs_err": f"{max_abs_err(found, expected):.3e}",
                "median_rel_err": f"{median_rel_err(found, expected):.3e}",
                "largest_logit": f"{np.abs(expected).max():.4g}",
                "top1_agreement": f"{top1_agreement(found, expected):.4f}",
                **(layers_columns(layers, tolerance) if layers in files else {})})
    return rows


def emulated_rows(files: list[Path], run: dict[str, str], tolerance: float) -> list[dict[str, str]]:
    """One row for each emulation, of one image; the arguments are those of engine_rows."""
    model, gpu, rows = run["model"], cpu_name(), []
    for table in sorted(path for path in files if path.name.endswith("_emulated.csv")):
        weights, _, engine = table.stem.removeprefix(f"layers_{model}_").partition("_")
        last = read_table(table)[-1]
        rows.append({**run, "gpu": gpu, "weights": weights, "engine": engine.replace("_emulated", " emulated"),
                     "batch": "1", "images": "1", "images_nan_or_inf": str(int(broken(last))),
                     "max_abs_err": logit_error([last]), "largest_logit": f"{float(last['max_abs_ref']):.4g}",
                     **layers_columns(table, tolerance)})
    return rows


def merged(table: Path, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of a table with new ones in place of those of the same KEY, sorted by model and weights.

    A row that the table has with the same figures stays: what was not made again is of an earlier run.

    Raises:
        UserError: the table has other columns, or a broken line.
    """
    old = read_rows(table, COLUMNS)
    if old and tuple(old[0]) != COLUMNS:
        raise UserError(f"{shown(table)}:1: has other columns than {','.join(COLUMNS)}; move it away")
    by_key = {tuple(row[column] for column in KEY): row for row in old}
    for row in rows:
        key = tuple(row[column] for column in KEY)
        same = key in by_key and all(row.get(column, "") == by_key[key][column] for column in COLUMNS
                                     if column not in RUN)
        if not same:
            by_key[key] = row
    return [by_key[key] for key in sorted(by_key, key=lambda key: (*key[:3], int(key[3])))]


def markdown(rows: list[dict[str, str]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| weights | engine | batch | images with NaN | max abs err | largest logit | first wrong tensor |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        first = row.get("first_tensor", "")
        cells = (row["weights"], row["engine"], row["batch"], f"{row['images_nan_or_inf']} of {row['images']}",
                 f"{float(row['max_abs_err']):.1e}", row["largest_logit"], first if first == "none" else f"`{first}`")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="NAME", help="MODEL.NAME, e.g. swinv2_micro")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="logits and tables of this model")
    parser.add_argument("--tolerance", type=from_zero, default=0.1, metavar="SHARE",
                        help="error of a tensor that is an offence, as a share of its largest element; default 0.1")
    parser.add_argument("--output", type=file_to_write, default=str(LOCAL / "swinv2_question.csv"), metavar="CSV",
                        help="default Results/local/swinv2_question.csv")
    parser.add_argument("--tensorrt", metavar="VERSION", help="TensorRT's version, for Results/environment")
    arguments = parser.parse_args()
    run = {"run_id": new_run_id(), "commit": git_commit(), "model": arguments.model}
    rows = [*engine_rows(arguments.files, run, arguments.tolerance),
            *emulated_rows(arguments.files, run, arguments.tolerance)]
    if not rows:
        raise UserError("no logits and no emulation among the files; swinv2_question.sh makes them")
    with alone_in(arguments.output.parent):  # another model's engines may be asked at the same time
        table = merged(arguments.output, rows)
        with whole_file(arguments.output) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    changed = sum(row in table for row in rows)
    if changed:
        versions = {"tensorrt": arguments.tensorrt} if arguments.tensorrt else {}
        write_environment(run["run_id"], {**versions, **package_versions("torch", "onnx", "onnxruntime")},
                          arguments.output.parent)
    print(markdown([row for row in table if row["model"] == arguments.model]))
    print(f"wrote {shown(arguments.output)}: {len(rows)} rows of {arguments.model}, {changed} of them new or changed")


if __name__ == "__main__":
    run_script(main)
