"""Draw where the time of engines goes, unpatched beside patched, with the fraction of the GPU's peak of every group.

    python Results/draw.py profile

Reads only Results/profile.csv, which TensorRT/profile_engine.py fills, and takes each engine's newest run; writes
Images/profile.png: a row of panels for each model and precision, a panel for each batch, a bar for each engine. The
percentage inside a segment is how much of the GPU the group uses: the larger of the fractions of its arithmetic peak
and of its bandwidth peak, for the operations and bytes that the network asks for. What it does not ask for, such as a
copy, has none.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from Results.tables import IMAGES, RESULTS, newest, read_table
from utils import UserError, folder_to_write, shown, whole_file

# group of profile.csv: colour. In the order in which they are stacked, products below, what moves data above.
COLOURS = {
    "qkv": "#0072B2", "proj": "#56B4E9", "fc1 + GELU": "#D55E00", "fc2": "#E69F00", "MLP in one kernel": "#8c4a00",
    "attention": "#009E73", "attention branch in one node": "#005c44", "LayerNorm and residual": "#CC79A7",
    "patch embed": "#8c6bb1", "patch merging": "#b8a1d9", "head": "#7f7f7f", "copies and reformats": "#1f2328",
    "fused by TensorRT": "#d0d7de", "other": "#a8a29e",
}
DARK = {"copies and reformats", "qkv", "MLP in one kernel", "attention branch in one node"}  # white text on these
LEAST_SHARE = 0.035  # of the tallest bar in a panel: a segment below it has no room for its percentage
PANEL = 3.6, 4.4  # inches

Row = dict[str, str]  # of profile.csv


# By the column patched, in the order of the bars.
BAR_NAMES = {"no": "unpatched", "layernorm": "LayerNorm patched", "other": "partly patched", "attention": "patched"}


def used(row: Row) -> float | None:
    """The fraction of the GPU's peak that a group reaches; None where it has no work or no peak is known."""
    fractions = [float(row[column]) for column in ("arithmetic_fraction", "bandwidth_fraction") if row[column]]
    return max(fractions, default=None)


def draw(rows: list[Row], title: str) -> plt.Figure:
    """Stacked times of every engine: a row of panels for each family, a column for each batch."""
    families = list(dict.fromkeys((row["model"], row["precision"]) for row in rows))
    batches = sorted({int(row["batch"]) for row in rows})
    figure, axes = plt.subplots(len(families), len(batches), squeeze=False, layout="constrained",
                                figsize=(PANEL[0] * max(2, len(batches)), PANEL[1] * len(families) + 1.2))
    figure.suptitle(title, fontsize=11)
    handles = {}
    for line, (model, precision) in enumerate(families):
        for column, batch in enumerate(batches):
            axis = axes[line][column]
            cell = [row for row in rows if (row["model"], row["precision"]) == (model, precision)
                    and int(row["batch"]) == batch]
            totals = {row["file"]: row for row in cell if row["group"] == "all"}
            engines = sorted(totals, key=lambda file: (list(BAR_NAMES).index(totals[file]["patched"]), file))
            tallest = max((float(row["time_ms_median"]) for row in totals.values()), default=0)
            for x, engine in enumerate(engines):
                height = 0.0
                groups = {row["group"]: row for row in cell if row["file"] == engine}
                for group, colour in COLOURS.items():
                    if group not in groups:
                        continue
                    time_ms, fraction = float(groups[group]["time_ms_median"]), used(groups[group])
                    handles[group] = axis.bar(x, time_ms, bottom=height, color=colour, width=0.62, edgecolor="white",
                                              linewidth=0.5)
                    if fraction is not None and time_ms > LEAST_SHARE * tallest:
                        axis.text(x, height + time_ms / 2, f"{fraction:.0%}", ha="center", va="center", fontsize=8,
                                  color="white" if group in DARK else "black")
                    height += time_ms
                fraction = used(totals[engine])
                axis.text(x, height, f"{height:.2f} ms" + (f"\n{fraction:.0%}" if fraction is not None else ""),
                          ha="center", va="bottom", fontsize=9)
            axis.set_title(f"{model}, {precision.upper()}, batch {batch}", fontsize=10)
            axis.set_xticks(range(len(engines)), [BAR_NAMES[totals[engine]["patched"]] for engine in engines])
            axis.set_xlim(-0.6, len(engines) - 0.4)
            axis.set_ylim(0, 1.2 * tallest or 1)
            axis.spines[["top", "right"]].set_visible(False)
        axes[line][0].set_ylabel("ms, sum of layers")
    figure.legend([handles[group] for group in COLOURS if group in handles],
                  [group for group in COLOURS if group in handles], loc="outside lower center", ncols=5, fontsize=9,
                  frameon=False, title="percentages: of the GPU's measured peak, arithmetic or bandwidth, whichever is "
                                       "nearer", title_fontsize=9)
    return figure


def profile_rows(results: Path, run_id: str | None = None) -> list[Row]:
    """The rows of one run of profile.csv; by default of each engine's newest on the GPU that was profiled last.

    Raises:
        UserError: there are none.
    """
    path = results / "profile.csv"
    table = read_table(path, ("run_id", "gpu", "file", "batch", "group"))
    if run_id:
        table = table[table["run_id"] == run_id]
    if table.empty:
        raise UserError(f"{shown(path)}: no rows of {f'run {run_id}' if run_id else 'any run'}; "
                        "TensorRT/profile_engine.py measures them")
    table = table[table["gpu"] == table["gpu"].iloc[-1]]
    table = table[table["run_id"] == table.groupby("file")["run_id"].transform("last")]
    # Of an engine that was profiled twice in a run, the last time counts.
    return newest(table, ("file", "batch", "group")).to_dict("records")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="draw.py profile", description=__doc__.splitlines()[0])
    parser.add_argument("--run", metavar="RUN_ID", help="default: of each engine the newest")
    parser.add_argument("--results", type=folder_to_write, default=str(RESULTS), metavar="FOLDER",
                        help="of profile.csv (default: Results/)")
    parser.add_argument("--pictures", type=folder_to_write, default=str(IMAGES), metavar="FOLDER",
                        help="where the picture goes (default: Images/)")
    args = parser.parse_args(arguments)
    rows = profile_rows(args.results, args.run)
    figure = draw(rows, f"Where the time goes on {', '.join(dict.fromkeys(row['gpu'] for row in rows))}")
    with whole_file(args.pictures / "profile.png") as partial:
        # Without the version of matplotlib in it, the same rows give the same file.
        figure.savefig(partial, dpi=110, metadata={"Software": None})
    print(f"wrote {shown(args.results / 'profile.png')}: {len(rows)} rows of run "
          f"{', '.join(dict.fromkeys(row['run_id'] for row in rows))}")
