"""Carries latency.csv, accuracy.csv, memory.csv and profile.csv over to one column a fact. Runs once.

    python Results/one_column_a_fact.py

What stood in the column `notes` and in the names of engines becomes columns; figures stay as they were written. The
version of the software is that of Results/environment/, where the run has one alone; what nobody wrote down (the spread
of a latency, the load of the machine) stays empty. Nothing is written unless every new row gives its old row back.
"""
from __future__ import annotations

import csv
import re
from pathlib import Path

RESULTS = Path(__file__).resolve().parent
LATENCY = (
    "run_id", "commit", "gpu", "device", "backend", "runner", "model", "precision", "file", "export", "batch_axis",
    "patched", "cuda_graph", "mode", "timed_by", "batch", "latency_ms_median", "latency_ms_p25", "latency_ms_p75",
    "latency_ms_p99", "images_per_s", "load", "images", "errors_against", "max_abs_err", "median_rel_err",
    "top1_agreement", "check",
)
ACCURACY = (
    "run_id", "commit", "gpu", "device", "backend", "model", "weights", "runner", "precision", "file", "patched",
    "batch", "images", "max_abs_err", "median_rel_err", "torch_max_abs_err", "top1", "top1_torch", "agreement",
)
MEMORY = ("run_id", "commit", "gpu", "backend", "model", "precision", "patched", "file", "batch", "device_memory_mib",
          "free_memory_used_mib")
PROFILE = ("run_id", "commit", "gpu", "backend", "model", "precision", "patched", "file", "batch", "group", "layers",
           "time_ms_median", "share", "gflop", "mb", "tflop_per_s", "arithmetic_fraction", "gb_per_s",
           "bandwidth_fraction", "int8_layers")
ENGINE = re.compile(r"(?P<model>swinv[12](_micro)?)(_timm_b\d+)?(_(?P<patched>attention|layernorm))?"
                    r"(_(?P<precision>fp16|int8))?")

Row = dict[str, str]


def environment(run_id: str, key: str) -> str:
    """What a run wrote down of a thing; "" where it wrote nothing, or more than one."""
    path = RESULTS / "environment" / f"{run_id}.txt"
    found = re.findall(rf"^{key}: (.*)$", path.read_text(), re.MULTILINE) if path.exists() else []
    # "2.11.0" and "2.11.0+cu130" are of one package, asked in two ways.
    longest = max(found, key=len, default="")
    return longest if all(longest.split("+")[0] == other.split("+")[0] for other in found) else ""


def backend(run_id: str, name: str, *packages: str) -> str:
    versions = [version for package in packages if (version := environment(run_id, package))]
    return f"{name} {versions[0]}" if versions else name


def facts_of(engine: str) -> Row:
    """model, precision and patched of an engine by the name that the build scripts gave it."""
    found = ENGINE.fullmatch(engine)
    return {"model": found["model"], "precision": found["precision"] or "fp32", "patched": found["patched"] or "no"}


def device(row: Row) -> str:
    return "cpu" if row["gpu"].startswith("none") else "cuda"


def latency(old: Row) -> Row:
    new = {**dict.fromkeys(LATENCY, ""), **{key: value for key, value in old.items() if key != "notes"},
           "device": device(old), "images": old["batch"], "errors_against": f"{old['model']}.onnx"}
    notes = old["notes"].split("; ")
    if old["runner"].startswith("torch"):
        new["backend"] = backend(old["run_id"], "PyTorch", "torch")
        new["mode"] = notes[0][len("mode "):] if notes[0].startswith("mode ") else ""
    else:
        file, *notes = notes
        new["file"] = file + (".onnx" if old["runner"].startswith("ort") else ".plan")
        new["patched"] = facts_of(file)["patched"]
        new["export"], new["batch_axis"] = ("timm", "fixed") if notes[0] == "timm's export, batch fixed" else (
            "swin", "open")
        gpu_first = ("onnxruntime-gpu", "onnxruntime") if old["runner"] == "ort-cuda" else ("onnxruntime",)
        new["backend"] = (backend(old["run_id"], "onnxruntime", *gpu_first) if old["runner"].startswith("ort")
                          else backend(old["run_id"], "TensorRT", "tensorrt"))
        new["check"] = notes[-1] if old["runner"].startswith("trt") else ""
    new["cuda_graph"] = ("" if old["runner"] == "torch-compile" else "yes" if "CUDA graph" in notes else "no")
    new["timed_by"] = "clock" if device(old) == "cpu" or old["runner"] == "ort-cuda" else "events"
    return new


def latency_back(new: Row) -> Row:
    graph = {"yes": "CUDA graph", "no": "no CUDA graph"}.get(new["cuda_graph"], "")
    variant = f"mode {new['mode']}" if new["mode"] else "CPU" if new["device"] == "cpu" else graph
    notes = [new["file"].rpartition(".")[0], "timm's export, batch fixed" if new["export"] == "timm" else "", variant,
             "timed by the clock" if (new["timed_by"], new["device"]) == ("clock", "cuda") else "", new["check"]]
    return {**new, "notes": "; ".join(filter(None, notes))}


def accuracy(old: Row) -> Row:
    new = {**dict.fromkeys(ACCURACY, ""), **{key: value for key, value in old.items() if key != "engine"},
           "device": device(old)}
    kind = old["engine"].rpartition(".")[2]
    new["runner"] = {"torch": "torch", "onnx": "onnx", "plan": "engine"}[kind]
    if kind == "torch":
        new["backend"] = backend(old["run_id"], "PyTorch", "torch")
    else:
        new.update(file=old["engine"], patched=facts_of(old["engine"].rpartition(".")[0])["patched"])
        new["backend"] = (backend(old["run_id"], "onnxruntime", "onnxruntime") if kind == "onnx"
                          else backend(old["run_id"], "TensorRT", "tensorrt"))
    new["images"] = environment(old["run_id"], f"accuracy of {old['model']}").split(" ")[0]
    return new


def accuracy_back(new: Row) -> Row:
    return {**new, "engine": new["file"] or new["runner"]}


def engine(columns: tuple[str, ...], old: Row) -> Row:
    return {**dict.fromkeys(columns, ""), **{key: value for key, value in old.items() if key != "engine"},
            **facts_of(old["engine"]), "file": f"{old['engine']}.plan",
            "backend": backend(old["run_id"], "TensorRT", "tensorrt")}


def engine_back(new: Row) -> Row:
    return {**new, "engine": new["file"].removesuffix(".plan")}


TABLES = (("latency", LATENCY, latency, latency_back), ("accuracy", ACCURACY, accuracy, accuracy_back),
          ("memory", MEMORY, lambda old: engine(MEMORY, old), engine_back),
          ("profile", PROFILE, lambda old: engine(PROFILE, old), engine_back))


def main() -> None:
    written = {}
    for name, columns, over, back in TABLES:
        path = RESULTS / f"{name}.csv"
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        new_rows = [over(row) for row in rows]
        for row, new in zip(rows, new_rows):
            assert tuple(new) == columns or set(new) == set(columns), set(new) ^ set(columns)
            again = {key: back(new)[key] for key in row}
            assert again == row, (row, again)
        written[path] = columns, new_rows
    for path, (columns, rows) in written.items():
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(f"wrote {path.name}: {len(rows)} rows, each of which gives its old row back")


if __name__ == "__main__":
    main()
