"""The tables that are made of latency.csv, as draw_latency.py and report.py use them."""
from __future__ import annotations

from Results.tables import row_problem

OURS = "trt-plugins"
OURS_FP16 = "trt-plugins fp16"  # what INT8 has for another runner: ours in FP16, which is there to be picked

Row = dict[str, str]  # of latency.csv
Cell = tuple[str, str, int]  # model, precision, batch


def best_rows(rows: list[Row]) -> dict[Cell, dict[str, Row]]:
    """Of one run, the fastest row of each runner, among those whose output is right, for every cell in the order of the
    table.
    """
    best: dict[Cell, dict[str, Row]] = {}
    for row in rows:
        runners = best.setdefault((row["model"], row["precision"], int(row["batch"])), {})
        if not row_problem(row) and (row["runner"] not in runners or latency_ms(row) < latency_ms(
                runners[row["runner"]])):
            runners[row["runner"]] = row
    for (model, precision, batch), runners in best.items():
        fp16 = best.get((model, "fp16", batch), {})
        if precision == "int8" and OURS in fp16:
            runners[OURS_FP16] = fp16[OURS]
    return dict(sorted(best.items()))


def race_and_int8(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """What is shown together: the race and INT8, which may be of another run.

    Returns:
        The rows, but for INT8, of the newest run that has other runners beside ours (of the newest of ours, where none
        has). The INT8 rows, and ours in FP16 of the same run, for each of those models of the newest run that has its
        INT8 on that GPU. Either may be empty.
    """
    others = {row["run_id"] for row in rows if row["runner"] != OURS}
    ours = [row["run_id"] for row in rows if row["runner"] == OURS]
    run = next((run for run in reversed(ours) if run in others), ours[-1] if ours else max(others, default=None))
    race = [row for row in rows if row["run_id"] == run and row["precision"] != "int8"]
    race = [row for row in race if row["gpu"] == race[-1]["gpu"]]
    places = {(row["model"], row["gpu"]) for row in race}
    int8_runs = {row["model"]: row["run_id"] for row in rows
                 if row["precision"] == "int8" and (not race or (row["model"], row["gpu"]) in places)}
    return race, [row for row in rows if int8_runs.get(row["model"]) == row["run_id"]
                  and (row["precision"] == "int8" or (row["precision"], row["runner"]) == ("fp16", OURS))]


def best_of_both(race: list[Row], int8: list[Row]) -> dict[Cell, dict[str, Row]]:
    """`best_rows` of the race, and of INT8 those of its own run, as ours in FP16 beside them is."""
    of_int8 = {cell: runners for cell, runners in best_rows(int8).items() if cell[1] == "int8"}
    return dict(sorted({**best_rows(race), **of_int8}.items()))


def latency_ms(row: Row) -> float:
    return float(row["latency_ms_median"])


def how(row: Row) -> str:
    """How a row was measured, in words: whose export, CUDA graph, the mode of torch.compile."""
    return ", ".join(filter(None, ("timm's export, batch fixed" if row["export"] == "timm" else "",
                                   "CUDA graph" if row["cuda_graph"] == "yes" else "",
                                   f"mode {row['mode']}" if row["mode"] else "")))


def what_counts(rows: list[Row]) -> str:
    """In words, from what the fastest row of each runner is chosen."""
    timm = ", TensorRT on this project's export or timm's" if any(row["export"] == "timm" for row in rows) else ""
    return f"The fastest row of each runner counts: with or without a CUDA graph, any mode of torch.compile{timm}"


def speedup_table(best: dict[Cell, dict[str, Row]]) -> list[list[str]]:
    """Heading and a line for each cell: ours, the fastest of the others, and the ratio of their medians."""
    table = [["model", "precision", "batch", "ours, ms", "max abs err", "best other", "ms", "max abs err",
              "times as fast"]]
    for (model, precision, batch), runners in best.items():
        ours = runners.get(OURS)
        other = min((row for runner, row in runners.items() if runner != OURS), key=latency_ms, default=None)
        line = [model, precision, str(batch)]
        line += [f"{latency_ms(ours):.3f}", ours["max_abs_err"]] if ours else ["-", "-"]
        if other:
            name = other["runner"] if other["precision"] == precision else f"{other['runner']} {other['precision']}"
            line += [", ".join(filter(None, (name, how(other)))), f"{latency_ms(other):.3f}", other["max_abs_err"]]
        else:
            line += ["-", "-", "-"]
        table.append([*line, f"{latency_ms(other) / latency_ms(ours):.2f}" if ours and other else "-"])
    return table


def runner_table(best: dict[Cell, dict[str, Row]], precision: str, names: dict[str, str]) -> list[list[str]]:
    """Heading, a line for each runner with its median in ms for every model and batch, and one of the ratios.

    Args:
        names: runner -> what it is called, in the order of the lines.
    """
    cells = [cell for cell in best if cell[1] == precision]
    table = [["ms", *(f"{model} b{batch}" for model, _, batch in cells)]]
    table += [[name, *(f"{latency_ms(best[cell][runner]):.3f}" if runner in best[cell] else "-" for cell in cells)]
              for runner, name in names.items() if any(runner in best[cell] for cell in cells)]
    ratios = [line[-1] for line in speedup_table(best)[1:] if line[1] == precision]
    other = "the best other or FP16 with plugins" if precision == "int8" else "the best other"
    return [*table, [f"plugins, times as fast as {other}", *ratios]]


def markdown_table(table: list[list[str]]) -> list[str]:
    """The lines of a table, heading first, in Markdown."""
    head, *lines = table
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]
