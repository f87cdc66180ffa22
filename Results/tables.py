"""Tables of results: their columns, how rows are added and read, and what a run was measured on.

Adding a row needs numpy and the standard library only: the Python that has TensorRT adds rows too.
"""
from __future__ import annotations

import csv
import io
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import numpy as np

from graphs.compare import max_abs_err, median_rel_err, top1_agreement
from graphs.facts import Facts
from utils import ROOT, UserError, alone_in, shown, whole_file

RESULTS = ROOT / "Results"  # the recorded tables: what README and the pages show
LOCAL = RESULTS / "local"  # where measurements and their pictures go unless a flag says else; git ignores it
IMAGES = ROOT / "Images"  # pictures that pages show
# A column is one fact; one that is not known, or says nothing of a row, is empty. In all tables: gpu is the machine's,
# "none (its processor)" where it has none; backend is the software that ran, with its version; file is the name of the
# graph or the plan; patched says what plugin nodes replace (no, layernorm, attention, other).
# Of latency.csv:
#   device          cuda or cpu, whichever computed
#   export          whose model was exported: swin, this project's, or timm
#   batch_axis      open, or fixed when the graph was made
#   cuda_graph      yes or no; empty for torch.compile, whose modes decide it
#   mode            of torch.compile
#   timed_by        events on the stream, or the clock
#   load            of the machine when the row was begun: processes that want to run, over processors
#   images          that the errors are over
#   errors_against  the file or the runner whose FP32 logits are the truth
#   check           what TRT_test.py says of the error: good, bad, NaN in output
LATENCY_COLUMNS = (
    "run_id", "commit", "gpu", "device", "backend", "runner", "model", "precision", "file", "export", "batch_axis",
    "patched", "cuda_graph", "mode", "timed_by", "batch", "latency_ms_median", "latency_ms_p25", "latency_ms_p75",
    "latency_ms_p99", "images_per_s", "load", "images", "errors_against", "max_abs_err", "median_rel_err",
    "top1_agreement", "check",
)
SIZES_COLUMNS = (*LATENCY_COLUMNS, "image")  # of sizes.csv, for engines that take several; image: HxW in pixels
ACCURACY_COLUMNS = (
    "run_id", "commit", "gpu", "device", "backend", "model", "weights", "runner", "precision", "file", "patched",
    "batch", "images", "max_abs_err", "median_rel_err", "torch_max_abs_err", "top1", "top1_torch", "agreement",
)
MEMORY_COLUMNS = (
    "run_id", "commit", "gpu", "backend", "model", "precision", "patched", "file", "batch", "device_memory_mib",
    "free_memory_used_mib",
)


def new_run_id() -> str:
    """Name of one measuring run, shared by all rows made in it: $RUN_ID where it is set, else UTC date and time."""
    return os.environ.get("RUN_ID") or time.strftime("%Y%m%d-%H%M%S", time.gmtime())


def git_commit() -> str:
    """Short hash of the checked-out commit; 'unknown' where there is no git or no repository.

    $COMMIT goes before it: for a copy of the files whose history is elsewhere.
    """
    if "COMMIT" in os.environ:
        return os.environ["COMMIT"]
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    with suppress(FileNotFoundError):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
    return "unknown"


def cpu_name() -> str:
    """What stands in the column gpu for a row measured on a CPU: "none", the processor and its count of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"none ({models[0] if models else platform.machine() + ' CPU'}; {os.cpu_count()} cores)"


def on_gpu(row: dict[str, str]) -> bool:
    """Whether a row of a table was measured on a GPU."""
    return not row["gpu"].startswith("none")  # as cpu_name's


def gpu_name() -> str:
    """The GPU as nvidia-smi names it; cpu_name() on a machine without one."""
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                              capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.splitlines()[0].strip()
    except FileNotFoundError:
        pass
    return cpu_name()


def file_columns(facts: Facts, path: Path) -> dict[str, str]:
    """What the tables say of an ONNX file or a plan: model, precision, patched, file."""
    return {"model": facts.model_of(path), "precision": facts.precision, "patched": facts.patches, "file": path.name}


def graph_columns(facts: Facts) -> dict[str, str]:
    """What latency.csv says of the graph besides: export and batch_axis."""
    return {"export": facts.export, "batch_axis": "open" if facts.batch is None else "fixed"}


def tensorrt_backend(versions: dict[str, str]) -> str:
    """The column backend of an engine's row, from what trt_runtime.versions() tells."""
    if "tensorrt-rtx" in versions:
        return f"TensorRT-RTX {versions['tensorrt-rtx']}"
    return f"TensorRT {versions.get('tensorrt', '')}".strip()


def machine_load() -> str:
    """Processes that run or want to, a mean over the last minute, over the number of processors; the column load."""
    return f"{os.getloadavg()[0] / (os.cpu_count() or 1):.2f}"


def how_measured(row: dict[str, str]) -> str:
    """The columns of a row of latency.csv that tell it from others of the same runner, in words."""
    graph = {"yes": "CUDA graph", "no": "no CUDA graph"}.get(row["cuda_graph"], "")
    return "; ".join(filter(None, (
        row["file"], "timm's export, batch fixed" if row["export"] == "timm" else "",
        f"mode {row['mode']}" if row["mode"] else "CPU" if row["device"] == "cpu" else graph,
        "timed by the clock" if (row["device"], row["timed_by"]) == ("cuda", "clock") else "",
        "plugin nodes as standard operators" if row["runner"].startswith("ort") and row["patched"] != "no" else "",
        f"errors against {row['errors_against']}" if "PyTorch" in row["errors_against"] else "", row["check"])))


SPREAD_LIMIT, LOAD_LIMIT = 0.1, 1.5  # one runner with a thread for each processor makes a load of 1 by itself


def timing_doubt(row: dict[str, str]) -> str:
    """Why a time in a row of latency.csv may be another on a quiet machine, in words; "" where nothing tells that.

    The middle half of the runs lies further apart than SPREAD_LIMIT of the median, or more wanted to run than there are
    processors. Rows without quartiles or load say nothing.
    """
    doubts = []
    if row["latency_ms_p25"] and row["latency_ms_p75"]:
        spread = (float(row["latency_ms_p75"]) - float(row["latency_ms_p25"])) / float(row["latency_ms_median"])
        doubts += [f"quartiles {spread:.0%} of the median apart"] if not spread <= SPREAD_LIMIT else []
    if row["load"] and not float(row["load"]) <= LOAD_LIMIT:
        doubts.append(f"load {float(row['load']):.1f} a processor")
    return f"busy machine? {', '.join(doubts)}" if doubts else ""


def error_figures(output: np.ndarray, reference: np.ndarray) -> dict[str, str]:
    """The error columns of Results/latency.csv."""
    return {
        "max_abs_err": f"{max_abs_err(output, reference):.3e}",
        "median_rel_err": f"{median_rel_err(output, reference):.3e}",
        "top1_agreement": f"{top1_agreement(output, reference):.4f}" if output.ndim == 2 else "",  # of a classifier
    }


def record_latency(results: Path, row: dict) -> None:
    """Append one row to <results>/latency.csv and print it; columns that it lacks are empty."""
    row = {**dict.fromkeys(LATENCY_COLUMNS, ""), **row}
    append_rows(results / "latency.csv", LATENCY_COLUMNS, [row])
    print(f"{row['runner']:<13} {row['model']} {row['precision']} b{row['batch']:<4} "
          f"{float(row['latency_ms_median']):>9.3f} ms  p99 {float(row['latency_ms_p99']):>9.3f} ms  "
          f"{float(row['images_per_s']):>9.1f} images/s  max abs err {row['max_abs_err']}  "
          f"median rel err {row['median_rel_err']}  top-1 {float(row['top1_agreement']):.1%}  "
          f"[{'; '.join(filter(None, (how_measured(row), timing_doubt(row))))}]", flush=True)


# Columns of numbers, in every table. One that is not known is empty, but for those that are always known.
WHOLE = re.compile("batch|images|layers|int8_layers|tensors|depth|nan|inf|(images|tensors)_nan_or_inf|rows"
                   "|(in|out)_features|(window|shift)_size|input_sets|multiprocessors")
NUMBER = re.compile(r".+_[mu]s_(median|p\d+)|.+_(err|mib|per_s|fraction)|.*agreement|top1|top1_torch|share|gflop|mb"
                    "|load|largest_logit|max_abs_ref|sustained_us|power_w|clock_mhz|bytes|operations")
KNOWN = re.compile(r"batch|.+_[mu]s_median")
MERGE_MARKS = ("<<<<<<<", "|||||||", "=======", ">>>>>>>")  # what git leaves where two versions did not fit together


def read_rows(path: Path, needs: Iterable[str] = ()) -> list[dict[str, str]]:
    """The rows of a table, each the text of its columns by their names; none where no file is there or it is empty.

    Args:
        path: the CSV file.
        needs: columns that it must have.
    Raises:
        UserError: it is no such table, or broken: cut off, edited, or merged by halves. Names the line.
    """
    if not path.exists():
        return []

    def broken(line: int, problem: str) -> UserError:
        return UserError(f"{shown(path)}:{line}: {problem}")

    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise broken(1 + error.object.count(b"\n", 0, error.start),
                     "is not UTF-8 text; save it as that, or move the file away") from error
    if text.startswith("\ufeff"):
        raise broken(1, "begins with a byte order mark; save the file as UTF-8 without one")
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith(MERGE_MARKS):
            raise broken(number, f"{line[:7]} is left of a merge; keep the rows of both sides and remove the marks")
    if text and not text.endswith("\n"):
        raise broken(len(text.splitlines()), "the last line has no end and may be cut off; complete or remove it")
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[dict[str, str]] = []
    heading: list[str] = []
    try:
        for cells in lines:
            if not heading:
                heading = cells
                if len(cells) == 1 and ";" in cells[0]:
                    raise broken(1, "has semicolons between its columns; save it with commas")
                for column in needs:
                    if column not in heading:
                        raise broken(1, f"lacks the column {column}; move the file away, or give it the column")
            elif cells:
                if len(cells) != len(heading):
                    raise broken(lines.line_num, f"has {len(cells)} cells, the heading has {len(heading)}; "
                                                 "complete or remove it")
                row = dict(zip(heading, cells))
                for column, cell in row.items():
                    if problem := _cell_problem(column, cell):
                        raise broken(lines.line_num, f"{column} is {cell[:40]!r}, {problem}; correct the line")
                rows.append(row)
    except csv.Error as error:
        raise broken(lines.line_num, f"is not a line of a CSV table ({error}); correct or remove it") from error
    return rows


def read_table(path: Path, needs: Iterable[str] = ()):
    """`read_rows` as a pandas.DataFrame of text, to choose rows from.

    pandas is for the scripts in Results/: whoever adds rows does without it.
    """
    import pandas

    rows = read_rows(path, needs)
    return pandas.DataFrame(rows, columns=list(rows[0]) if rows else list(needs), dtype=str)


def newest(table, key: Iterable[str]):
    """Of rows that measured the same by the columns of `key`, the last one, in the order of the first."""
    return table.groupby(list(key), sort=False, as_index=False).last()


def _cell_problem(column: str, cell: str) -> str:
    """What is wrong with the text in a column; "" where nothing is."""
    if not cell:
        return "which is never empty" if KNOWN.fullmatch(column) else ""
    if WHOLE.fullmatch(column):
        return "" if cell.isascii() and cell.isdecimal() and len(cell) < 16 else "not a whole number"
    if NUMBER.fullmatch(column):
        with suppress(ValueError):
            float(cell)
            return "" if "_" not in cell else "not a number"
        return "not a number"
    return ""


def append_rows(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    """Append rows to a CSV table, writing its heading first where the file is new. Several processes may do so at once.

    Raises:
        UserError: the file there has other columns, or a line that is broken; nothing is then written behind it.
    """
    table = Path(os.path.realpath(path))  # all who write to it wait for the same lock, by whatever link they came
    with alone_in(table.parent):
        old = table.read_bytes().decode(errors="replace") if table.exists() else ""
        read_rows(path)
        if old and tuple(next(csv.reader(old.splitlines()))) != columns:
            raise UserError(f"{shown(path)}:1: has other columns than {','.join(columns)}; move it away")
        with whole_file(table) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            file.write(old)
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            if not old:
                writer.writeheader()
            writer.writerows(rows)


def latency_rows(results: Path, run_id: str | None = None) -> list[dict[str, str]]:
    """The rows of <results>/latency.csv, of one run or of all; none where there is no such file."""
    return [row for row in read_rows(results / "latency.csv", LATENCY_COLUMNS) if run_id in (None, row["run_id"])]


def row_problem(row: dict[str, str]) -> str:
    """Why the speed in a row of latency.csv does not count: its output is not right; "" where it does.

    Finite logits are asked of every runner, and of an engine with this project's plugins that its check was good.
    """
    if not math.isfinite(float(row["max_abs_err"])):
        return "NaN or infinity in the output"
    if row["runner"] == "trt-plugins" and row["check"] != "good":
        return f"the error {row['max_abs_err']} is beyond the tolerance of TRT_test.py"
    return ""


def package_versions(*names: str) -> dict[str, str]:
    """Version of each of these packages that is installed, for write_environment."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_environment(run_id: str, versions: dict[str, str], results: Path = RESULTS) -> None:
    """Add what a run was measured on to <results>/environment/<run_id>.txt: GPU, driver and `versions`, one a line."""
    path = results / "environment" / f"{run_id}.txt"
    lines = [f"gpu: {gpu_name()}", f"python: {platform.python_version()}", f"platform: {platform.platform()}"]
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                              capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip():
            lines.append(f"driver: {done.stdout.splitlines()[0].strip()}")
    except FileNotFoundError:
        pass
    lines += [f"{name}: {version}" for name, version in versions.items()]
    with alone_in(path.parent):
        known = path.read_text().splitlines() if path.exists() else []
        with whole_file(path) as partial:
            partial.write_text("\n".join([*known, *(line for line in lines if line not in known)]) + "\n")
