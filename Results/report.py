"""Write the results of the Small models on a GPU as Markdown: all of them for docs/results.md, a summary for README.md,
and TensorRT's versions beside each other for TensorRT/VERSIONS.md.

    python Results/report.py            # prints all three
    python Results/report.py --write    # puts each between the two marks in its page

It reads latency.csv, profile.csv, accuracy.csv, memory.csv and kernels.csv in Results/ and takes the newest rows that
were measured on a GPU: one run of latency.csv (and one more for INT8 where that was measured by itself later), and the
last row of everything in the other tables, for accuracy.csv and memory.csv on whatever GPU that was. No figure between
the marks is typed by hand: tests/test_results.py compares the pages with what this script makes of the tables. A run of
latency.csv with two versions of TensorRT is for VERSIONS.md, and for no other page.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from Results import tables
from Results.draw_profile import profile_rows
from Results.latency_tables import (
    OURS,
    OURS_FP16,
    best_of_both,
    markdown_table,
    race_and_int8,
    runner_table,
    speedup_table,
    what_counts,
)
from Results.tables import IMAGES, RESULTS, read_table
from utils import ROOT, UserError, existing_file, run_script, shown, whole_file

BEGIN, END = "<!-- GPU results, by Results/report.py: begin -->", "<!-- GPU results: end -->"
MODELS = {"swinv1": "V1", "swinv2": "V2"}  # the Small ones
KERNEL_BATCH = "32"  # of the table of kernels
AGAIN_SPEED = "python race.py --resume V1.pth V2.pth"
IMAGES_FROM_DOCS = "../Images"
RUNNERS = {OURS: "TensorRT with plugins", OURS_FP16: "TensorRT with plugins, FP16", "trt": "TensorRT",
           "torch-compile": "torch.compile", "torch-script": "TorchScript", "torch-eager": "PyTorch eager",
           "ort-cuda": "onnxruntime CUDA"}

PLUGINS_OF = {"attention": "all plugins", "layernorm": "LayerNorm plugins", "no": "no plugins"}

Row = dict[str, str]


def gpu_rows(path: Path) -> list[Row]:
    """The rows of a table that were measured on a GPU; none where there is no table."""
    table = read_table(path, ("run_id", "commit", "gpu"))
    return table[~table["gpu"].str.startswith("none")].to_dict("records")  # as on_gpu


def last_gpu_rows(path: Path) -> list[Row]:
    """Those measured on the GPU that the last of them was, for figures that are compared with each other."""
    rows = gpu_rows(path)
    return [row for row in rows if row["gpu"] == rows[-1]["gpu"]]


def newest(rows: list[Row], *key: str) -> list[Row]:
    """Of rows that measured the same, the last one, in the order of the first."""
    return tables.newest(pandas.DataFrame(rows), key).to_dict("records") if rows else []


def measured_by(rows: list[Row], command: str) -> list[str]:
    """A line that tells where the figures come from and what makes them again."""
    def all_of(column: str, gpu: str) -> str:
        return ", ".join(dict.fromkeys(row[column] for row in rows if row["gpu"] == gpu))

    where = "; ".join(f"{gpu}, run {all_of('run_id', gpu)}, commit {all_of('commit', gpu)}"
                      for gpu in dict.fromkeys(row["gpu"] for row in rows))
    return [f"{where}. Again: `{command}`", ""]


def small_latency(results: Path) -> tuple[list[Row], list[Row]]:
    """The rows of the race and those of INT8, as race_and_int8 gives them, with the models called V1 and V2."""
    rows = gpu_rows(results / "latency.csv")
    comparing = runs_of_versions(rows)
    return race_and_int8([{**row, "model": MODELS[row["model"]]} for row in rows
                          if row["model"] in MODELS and row["run_id"] not in comparing])


def speed(results: Path, pictures: Path) -> list[str]:
    """Latency of every runner, the speed-up with the errors, and the plot."""
    race, int8 = small_latency(results)
    if not race and not int8:
        return []
    best = best_of_both(race, int8)
    again = AGAIN_SPEED
    text = ["## Speed", "", *measured_by(race or int8, again),
            f"Median of a batch. {what_counts(race or int8)}; input and output stay on the device.", ""]
    for precision in ("fp16", "fp32", "int8"):
        if any(cell[1] == precision for cell in best):
            text += [f"{precision.upper()}:", ""]
            if precision == "int8" and race and {row["run_id"] for row in int8} != {race[0]["run_id"]}:
                text += measured_by(int8, f"{again} --runner {OURS} --precision fp16,int8 && "
                                          "python Results/draw.py latency")
            if precision == "int8":
                text += ["Calibrated before, by `python TensorRT/INT8/quant.py --onnx onnx/swinv1.onnx --batches 8`, "
                         "V2 likewise. race.py by itself calibrates on more; with `--take-files` it takes what is "
                         "there.", ""]
            text += [*markdown_table(runner_table(best, precision, RUNNERS)), ""]
    text += ["The same with the largest error of a logit, against the FP32 ONNX model on the same images:", "",
             *markdown_table(speedup_table(best)), ""]
    if (pictures / "latency.png").exists():
        text += [f"![Images per second over batch, for every runner]({IMAGES_FROM_DOCS}/latency.png)", ""]
    return text


def profile(results: Path, pictures: Path) -> list[str]:
    """The picture of where the time goes."""
    if not (pictures / "profile.png").exists() or not gpu_rows(results / "profile.csv"):
        return []
    rows = profile_rows(results)
    patched = {row["patched"] != "no" for row in rows}
    beside = ", unpatched beside patched" if len(patched) == 2 else ""
    return ["## Where the time goes", "",
            *measured_by(rows, "$TRT_PYTHON TensorRT/profile_engine.py --plan "
                               "TensorRT/TRT_Engine/swinv{1,2}_{fp16,attention_fp16,attention_int8}.plan && "
                               "python Results/draw.py profile"),
            "Percentages are of the GPU's peaks as benchmark.py measured them, a copy's bandwidth or an FP16 product's "
            "arithmetic, whichever is nearer: what lies in the L2 cache, and INT8, can go beyond.", "",
            f"![Time of each group of layers{beside}, with the fraction of the GPU's peak]"
            f"({IMAGES_FROM_DOCS}/profile.png)", ""]


def engine_rows(path: Path) -> list[Row]:
    """The last row of each engine of Small at each batch, of accuracy.csv or memory.csv."""
    return newest([row for row in gpu_rows(path) if row["model"] in MODELS and row.get("runner", "engine") == "engine"],
                  "file", "batch")


def accuracy(results: Path) -> list[str]:
    """One line for each engine: the worst of its batches."""
    rows = engine_rows(results / "accuracy.csv")
    if not rows:
        return []
    table = [["engine", "precision", "run", "batches", "max abs err", "PyTorch's own", "worst ratio", "top-1",
              "top-1 of PyTorch FP32", "same top-1"]]
    for file in sorted({row["file"] for row in rows}, key=stem):
        own = sorted((row for row in rows if row["file"] == file), key=lambda row: int(row["batch"]))
        errors = [(float(row["max_abs_err"]), float(row["torch_max_abs_err"] or "nan")) for row in own]
        torch_error = max(error for _, error in errors)
        ratios = [error / torch_error for error, torch_error in errors if torch_error > 0]
        table.append([
            stem(file), own[0]["precision"], ", ".join(dict.fromkeys(row["run_id"] for row in own)),
            ", ".join(row["batch"] for row in own),
            f"{max(error for error, _ in errors):.2e}", f"{torch_error:.2e}" if torch_error > 0 else "-",
            f"{max(ratios):.2f}" if ratios else "-", shares(own, "top1"), shares(own, "top1_torch"),
            shares(own, "agreement")])
    return ["## Accuracy", "",
            *measured_by(rows, "python test_swinV2.py --cfg models/swin.yaml --resume V1.pth --count 2000 "
                               "--batch 1,4,8,16,32,128 --plan "
                               "TensorRT/TRT_Engine/swinv1{,_fp16,_layernorm_fp16,_attention_fp16}.plan"),
            "The worst of all batch sizes, against PyTorch in FP32, over all images: Results/environment/ says for "
            "each run how many; of INT8 it is more, `--count 5000`. The worst ratio is the largest error at one batch "
            "size over PyTorch's own in the same precision. V2 likewise, with its yaml, checkpoint and engines.", "",
            *markdown_table(table), ""]


def stem(file: str) -> str:
    """The name of an engine as the table shows it: without .plan."""
    return Path(file).stem


def shares(rows: list[Row], column: str) -> str:
    """The smallest of a column of shares, in percent; a dash where it is not known."""
    return min((f"{float(row[column]):.2%}" for row in rows if row[column]), key=lambda text: float(text[:-1]),
               default="-")


def memory(results: Path) -> list[str]:
    """Device memory of each engine at each batch."""
    rows = engine_rows(results / "memory.csv")
    if not rows:
        return []
    batches = sorted({int(row["batch"]) for row in rows})
    table = [["MiB", "run", *(f"b{batch}" for batch in batches)]]
    for file in sorted({row["file"] for row in rows}, key=stem):
        own = {int(row["batch"]): row for row in rows if row["file"] == file}
        table.append([stem(file), ", ".join(dict.fromkeys(row["run_id"] for row in own.values())),
                      *(own[batch]["free_memory_used_mib"] if batch in own else "-" for batch in batches)])
    return ["## Device memory", "",
            *measured_by(rows, "$TRT_PYTHON TRT_test.py --memory --plan TensorRT/TRT_Engine/"
                               "swinv1{,_fp16,_layernorm_fp16,_attention_fp16,_attention_int8}.plan "
                               "TensorRT/TRT_Engine/swinv2{,_fp16,_layernorm,_attention_fp16,_attention_int8}.plan"),
            "Weights, activations, input and output together. TensorRT 8.6 plans the activations for the largest batch "
            "of the profile, 128, whatever the batch.", "", *markdown_table(table), ""]


def kernels(results: Path) -> list[str]:
    """The kernels by themselves, a network's stages together, against the fastest that PyTorch has for all of it."""
    case = ("kernel", "layer", "model", "precision")
    rows = [row for row in last_gpu_rows(results / "kernels.csv") if row["batch"] == KERNEL_BATCH]
    rows = newest(rows, *case, "stage", "runner")
    table = [["kernel", "layer", "model", "stages", "us", "of bandwidth", "of arithmetic", "max abs err",
              "best of PyTorch", "us", "max abs err", "times as fast"]]
    for key in dict.fromkeys(tuple(row[name] for name in case) for row in rows):
        runners: dict[str, list[Row]] = {}
        for row in rows:
            if tuple(row[name] for name in case) == key and not row["part"]:
                runners.setdefault(row["runner"], []).append(row)
        ours = runners.pop("swin-plugins", [])
        others = {name: own for name, own in runners.items() if not name.startswith("swin") and len(own) == len(ours)}
        if not ours:
            continue
        line = [*key[:2], MODELS.get(key[2], key[2]), ", ".join(row["stage"] for row in ours), f"{total_us(ours):.1f}",
                *(f"{sum(float(row[name]) * float(row['time_us_median']) for row in ours) / total_us(ours):.0%}"
                  for name in ("bandwidth_fraction", "arithmetic_fraction")), largest_error(ours)]
        if not others:
            table.append([*line, "-", "-", "-", "-"])
            continue
        best = min(others, key=lambda name: total_us(others[name]))
        table.append([*line, best, f"{total_us(others[best]):.1f}", largest_error(others[best]),
                      f"{total_us(others[best]) / total_us(ours):.2f}"])
    if len(table) == 1:
        return []
    return ["## Kernels by themselves", "", *measured_by(rows, "python TensorRT/Plugins/benchmark.py"),
            f"At batch {KERNEL_BATCH}, one layer of each stage; fractions are of the card's own measured peaks.", "",
            *markdown_table(table), ""]


def total_us(rows: list[Row]) -> float:
    return sum(float(row["time_us_median"]) for row in rows)


def largest_error(rows: list[Row]) -> str:
    return max((row["max_abs_err"] for row in rows), key=float)


def section(results: Path, pictures: Path = IMAGES) -> str:
    """All that was measured on a GPU; empty where nothing was. Pictures are shown that are in their folder."""
    return "\n".join([*speed(results, pictures), *profile(results, pictures), *accuracy(results), *memory(results),
                      *kernels(results)]).strip("\n")


# --- TensorRT's versions -------------------------------------------------------------------------------------


def runs_of_versions(rows: list[Row]) -> set[str]:
    """The runs of latency.csv in which Small was measured with two versions of TensorRT or more."""
    found: dict[str, set[str]] = {}
    for row in rows:
        if row["model"] in MODELS and row["backend"].startswith("TensorRT"):
            found.setdefault(row["run_id"], set()).add(row["backend"])
    return {run for run, backends in found.items() if len(backends) > 1}


def versions(results: Path) -> str:
    """The engines of Small with each version of TensorRT, as CUDA graphs; empty where no run has two versions.

    An engine's line is of the newest of those runs that has it with that version.
    """
    rows = gpu_rows(results / "latency.csv")
    comparing = runs_of_versions(rows)
    rows = [row for row in rows if row["run_id"] in comparing and row["model"] in MODELS and row["cuda_graph"] == "yes"
            and row["backend"].startswith("TensorRT")]
    key = ("precision", "patched", "model", "backend")
    newest_run = {tuple(row[name] for name in key): row["run_id"] for row in rows}
    rows = [row for row in rows if row["run_id"] == newest_run[tuple(row[name] for name in key)]]
    if not rows:
        return ""
    batches = sorted({int(row["batch"]) for row in rows})
    table = [["engine", "TensorRT", *(f"b{batch}" for batch in batches), "max abs err", "run"]]
    order = {word: place for place, word in enumerate(("fp16", "int8", "fp32", "attention", "layernorm", "no"))}
    before = ""
    for precision, patched, model, backend in sorted(newest_run, key=lambda line: (
            order.get(line[0], len(order)), order.get(line[1], len(order)), *line[2:])):
        own = {int(row["batch"]): row for row in rows
               if tuple(row[name] for name in key) == (precision, patched, model, backend)}
        engine = f"{MODELS[model]} {precision.upper()}, {PLUGINS_OF.get(patched, patched)}"
        wrong = any(row["check"] != "good" for row in own.values())
        table.append(["" if engine == before else engine, backend.removeprefix("TensorRT").lstrip(" -"),
                      *(f"{float(own[batch]['latency_ms_median']):.3f}" if batch in own else "-" for batch in batches),
                      largest_error(list(own.values())) + " (bad)" * wrong, next(iter(own.values()))["run_id"]])
        before = engine
    return "\n".join([*measured_by(rows, "python TRT_test.py --plan ... with each, under one RUN_ID"),
                      *markdown_table(table)])


# --- README's summary ----------------------------------------------------------------------------------------


def summary(results: Path, pictures: Path = IMAGES) -> str:
    """The same in two tables and a picture; empty where nothing was measured on a GPU."""
    text = [*speed_in_short(results), *accuracy_and_memory(results)]
    if text and (pictures / "latency.png").exists():
        text += ["![Images per second over batch, for every runner](Images/latency.png)", ""]
    return "\n".join(text).strip("\n")


def speed_in_short(results: Path) -> list[str]:
    """Ours, the fastest other runner and the ratio, for each precision."""
    race, int8 = small_latency(results)
    best = best_of_both(race, int8)
    if not best:
        return []
    columns = sorted({(model, batch) for model, _, batch in best})
    table = [["ms for one batch", *(f"{model} b{batch}" for model, batch in columns)]]
    winners: dict[str, None] = {}
    for precision, rival in (("fp16", "best other"), ("fp32", "best other"), ("int8", "FP16 with plugins beside it")):
        lines = {(line[0], int(line[2])): line for line in speedup_table(best)[1:] if line[1] == precision}
        if not lines:
            continue
        for name, place in ((f"{precision.upper()}, TensorRT with plugins", 3), (f"{precision.upper()}, {rival}", 6),
                            ("times as fast", 8)):
            table.append([name, *(lines[column][place] if column in lines else "-" for column in columns)])
        if precision != "int8":
            winners.update(dict.fromkeys(line[5].split(",")[0] for line in lines.values()))
    gpu = (race or int8)[0]["gpu"]
    runs = ", ".join(dict.fromkeys(row["run_id"] for row in [*race, *int8]))
    others = ", ".join(name for runner, name in RUNNERS.items() if any(
        row["runner"] == runner for row in race) and runner != OURS)
    fastest = " or ".join(RUNNERS.get(winner, winner) for winner in winners if winner != "-")
    return [f"Speed: median time of Small, input and output on the device ({gpu}, run {runs}). The others are "
            f"{others or 'none'}; the best of them is {fastest or 'none'}. INT8 is compared with FP16 with plugins.",
            "", *markdown_table(table), ""]


def accuracy_and_memory(results: Path) -> list[str]:
    """A line for each engine: the worst error of its batches, and the memory at the largest batch."""
    rows, used = engine_rows(results / "accuracy.csv"), engine_rows(results / "memory.csv")
    if not rows:
        return []
    largest = max((int(row["batch"]) for row in used), default=0)
    mib = {row["file"]: row["free_memory_used_mib"] for row in used if int(row["batch"]) == largest}
    table = [["engine", "precision", "largest error of a logit", "PyTorch's own", "top-1", "of PyTorch FP32",
              "same class", *([f"MiB at batch {largest}"] if used else [])]]
    for file in sorted({row["file"] for row in rows}, key=stem):
        own = [row for row in rows if row["file"] == file]
        torch_error = max(float(row["torch_max_abs_err"] or "nan") for row in own)
        table.append([stem(file), own[0]["precision"], f"{max(float(row['max_abs_err']) for row in own):.1e}",
                      f"{torch_error:.1e}" if torch_error > 0 else "-", shares(own, "top1"), shares(own, "top1_torch"),
                      shares(own, "agreement"), *([mib.get(file, "-")] if used else [])])
    runs = ", ".join(dict.fromkeys(row["run_id"] for row in [*rows, *used]))
    gpus = ", ".join(dict.fromkeys(row["gpu"] for row in [*rows, *used]))
    return ["Accuracy against PyTorch in FP32 on held-out crops, the worst of all batch sizes, and device memory "
            f"({gpus}, run {runs}). \"PyTorch's own\" is the error of PyTorch in the same precision.", "",
            *markdown_table(table), ""]


# --- pages ---------------------------------------------------------------------------------------------------


def between_marks(page: Path) -> str:
    """What stands between the two marks of a page.

    Raises:
        UserError: there is no such page, or the marks are not there.
    """
    text = existing_file(page, "a page with the two marks").read_text()
    if BEGIN not in text or END not in text:
        raise UserError(f"{shown(page)}: lacks the lines {BEGIN} and {END}; put them where the results belong")
    return text.split(BEGIN, 1)[1].split(END, 1)[0].strip("\n")


def put_between_marks(page: Path, results: str) -> None:
    text = page.read_text()
    with whole_file(page) as partial:
        partial.write_text(f"{text.split(BEGIN, 1)[0]}{BEGIN}\n\n{results}\n\n{END}{text.split(END, 1)[1]}")
    print(f"wrote {shown(page)}: {len(results.splitlines())} lines of results")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into both pages, between the two marks")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE",
                        help="where the summary goes; default: README.md")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md", metavar="FILE",
                        help="where all of it goes; default: docs/results.md")
    parser.add_argument("--versions", type=Path, default=ROOT / "TensorRT" / "VERSIONS.md", metavar="FILE",
                        help="where TensorRT's versions go; default: TensorRT/VERSIONS.md")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="default: Results/")
    parser.add_argument("--pictures", type=Path, default=IMAGES, metavar="FOLDER", help="default: Images/")
    args = parser.parse_args(arguments)
    whole, short = section(args.results, args.pictures), summary(args.results, args.pictures)
    if not whole:
        raise UserError(f"{shown(args.results)}: no rows of a Small model on a GPU; race.py and test_swinV2.py measure "
                        "them")
    if not args.write:
        print(f"{short}\n\n{whole}\n\n{versions(args.results)}")
        return
    pages = {args.readme: short, args.page: whole, args.versions: versions(args.results)}
    for page in pages:
        between_marks(page)  # refuses one without marks before the other is written
    for page, text in pages.items():
        put_between_marks(page, text)


if __name__ == "__main__":
    run_script(main)
