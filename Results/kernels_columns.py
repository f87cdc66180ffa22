"""Rewrite kernels.csv with a column a fact: what stood in `shape` and `notes`, and what was counted.

    python Results/kernels_columns.py        # once; run again it says that there is nothing to do
"""
from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from Results.tables import RESULTS
from TensorRT.Plugins.benchmark import COLUMNS
from utils import UserError, run_script, whole_file

SHAPE = re.compile(r"\[(\d+), (\d+)x\2, (\d+)\](?: w(\d+) s(\d+))?")
LAYERS = {"SwinAddLayerNorm": ("residual and norm", 4), "SwinLayerNormAdd": ("norm and residual", 3)}
PARTITIONED = "q, k, v partitioned beforehand"


def new_row(old: dict[str, str]) -> dict[str, str]:
    """A row as benchmark.py wrote it up to run 20261126-121613."""
    batch, side, channels, window, shift = (int(x) if x else 0 for x in SHAPE.fullmatch(old["shape"]).groups())
    tokens, operations = batch * side**2, 0
    if old["kernel"] == "SwinAttention":
        layer, tensors = "SW-MSA" if shift else "W-MSA", 4
        operations = 4 * tokens * window**2 * channels
    else:
        layer, tensors = LAYERS[old["kernel"]]
    if old["notes"] not in ("", PARTITIONED):
        raise UserError(f"{old['notes']}: no column for it")
    row = {name: old[name] for name in COLUMNS if name in old}
    row.update(
        layer=layer, part="", stage=(channels // 96).bit_length(), batch=batch, side=side,
        in_features=(3 if window else 1) * channels, out_features=channels, window_size=window or "",
        shift_size=shift if window else "", input_layout="windows" if old["notes"] else "", input_sets=1,
        sustained_us="", power_w="", clock_mhz="", bytes=2 * tensors * tokens * channels, operations=operations)
    for name, figure in (("gb_per_s", row["bytes"] / 1e3), ("tflop_per_s", operations / 1e6)):  # as it was counted
        again = figure / float(old["time_us_median"])
        if abs(again - float(old[name])) > 0.002 * again + 0.5:
            raise UserError(f"{old}: {name} would be {again}")
    return row


def main() -> None:
    path = RESULTS / "kernels.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if tuple(rows[0]) == COLUMNS:
        print("nothing to do")
        return
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(new_row, rows))
    print(f"{len(rows)} rows")


if __name__ == "__main__":
    run_script(main)
