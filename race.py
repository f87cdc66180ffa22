"""The race: latency and error of every runner side by side, in one run, with the plot and the table of speed-ups.

    python race.py --resume swin_small_patch4_window7_224.pth swinv2_small_patch4_window8_256.pth

It asks make for the files that are missing or out of date (the Makefile says which is made from which), measures each
runner with the script that measures it, and draws. All rows go to latency.csv in Results/local/ under one run_id;
latency.png and speedup.md are made from them. TensorRT is run by $TRT_PYTHON (default: this Python), and
$BUILD_FLAGS go to TensorRT/build.sh.

What is stopped goes on with --run-id: what has its rows is not measured again. A step that fails does not stop the
others; the last lines tell which failed and why, and the exit status is then 1. Without a GPU: the runners of a CPU, in
FP32.

    python race.py --cfg models/swin_micro.yaml models/swinv2_micro.yaml --runner torch-eager,ort-cpu --batch 1,8

trt-timm is TensorRT on timm's model, exported and built for one batch at a time; its rows stand in the table under the
runner trt, and the column export tells them apart. Only trt-plugins runs INT8, calibrated as TensorRT/INT8/quant.py
does it by default, and compared with FP16.

On a host with several GPUs of one kind, races with different --runner, --mode, --cfg, --precision or --batch and the
same --run-id may run at once, each with its own $CUDA_VISIBLE_DEVICES. With --prepare a race measures nothing: it makes
the files, or fills $TORCHINDUCTOR_CACHE_DIR (default .cache/inductor) with what torch.compile compiles, while another
measures, which then finds both. Where files were copied from elsewhere, --take-files takes those that are there as they
are, whatever made them.
"""
from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

from config import get_config
from models.build import checkpoint_path
from Results.tables import LOCAL, how_measured, latency_rows, new_run_id, row_problem
from Results.timing import add_timing_arguments
from utils import ROOT, UserError, batch_sizes, choices, folder_to_write, run_script, shown

PYTHON, TRT_PYTHON = sys.executable, os.environ.get("TRT_PYTHON", sys.executable)


class Entrant(NamedTuple):
    """Who takes part: a runner as in latency.csv and, where a runner has several, which of them: the mode of
    torch.compile, the variant of ort-cuda, whose export TensorRT's engine was made from."""

    runner: str
    mode: str = ""

    def __str__(self) -> str:
        return self.name if self == TIMM else f"{self.runner} {self.mode}".strip()

    @property
    def name(self) -> str:
        """What --runner calls it."""
        return "trt-timm" if self == TIMM else self.runner


TIMM = Entrant("trt", "timm's export, batch fixed")
CUDA_GRAPH = {"yes": "CUDA graph", "no": "no CUDA graph"}  # column cuda_graph -> Onnx_Latency.py --variant
# max-autotune, which compiles for minutes, comes last: whoever stops the race early has the rest.
ENTRANTS = (
    Entrant("trt-plugins"), Entrant("trt"), TIMM, Entrant("ort-cuda", "no CUDA graph"),
    Entrant("ort-cuda", "CUDA graph"), Entrant("ort-cpu"), Entrant("torch-eager"), Entrant("torch-script"),
    Entrant("torch-compile", "reduce-overhead"), Entrant("torch-compile", "max-autotune"),
)
RUNNERS = tuple(dict.fromkeys(entrant.name for entrant in ENTRANTS))
MODES = tuple(entrant.mode for entrant in ENTRANTS if entrant.runner == "torch-compile")
CPU_RUNNERS = ("ort-cpu", "torch-eager", "torch-script")
# An engine of timm's export has one batch, and a CUDA error in onnxruntime takes with it all that its process would do.
ONE_BATCH_A_PROCESS = ("trt-timm", "ort-cuda")
PRECISIONS = ("fp32", "fp16", "int8")
# Under load a GPU at its power limit lowers its clock within this time: what is compared is what each does for long.
WARMUP_S = 5.0
# Guesses at the seconds that one batch takes, which only the estimate of what is left depends on.
SECONDS_A_BATCH = {"reduce-overhead": 60, "max-autotune": 200}
SECONDS_A_FILE = {".plan": 150, ".onnx": 60, ".npz": 15}  # that is not there yet


class Model(NamedTuple):
    """One variant and its weights."""

    cfg: Path
    checkpoint: Path
    name: str  # MODEL.NAME
    type: str  # MODEL.TYPE

    def onnx(self, suffix: str = "") -> Path:
        return ROOT / "onnx" / f"{self.name}{suffix}.onnx"

    def plan(self, suffix: str = "") -> Path:
        return ROOT / "TensorRT" / "TRT_Engine" / f"{self.name}{suffix}.plan"

    def data(self, batch: int, suffix: str = "") -> Path:
        return ROOT / "data" / f"{self.name}{suffix}-b{batch}.npz"


class Step(NamedTuple):
    """What is measured of one model on one runner in one precision, or compiled, or what is only prepared for that."""

    measures: tuple[Model, Entrant, str, tuple[int, ...]]  # the str: precision; the numbers: batches
    files: list[Path]  # that make makes before
    command: list[str | Path]  # none, where only the files are made
    compiles: bool = False  # what it would measure, and leaves no row

    @property
    def line(self) -> str:
        return shlex.join(map(str, self.command))

    @property
    def seconds(self) -> float:
        """A guess at how long it takes."""
        _, entrant, _, batches = self.measures
        making = sum(SECONDS_A_FILE[path.suffix] for path in self.files if not path.exists())
        return making + (15 + SECONDS_A_BATCH.get(entrant.mode, 8) * len(batches) if self.command else 1)

    def __str__(self) -> str:
        model, entrant, precision, batches = self.measures
        doing = "compiling " if self.compiles else "" if self.command else "files of "
        return f"{doing}{model.name} {precision} {entrant} b{','.join(map(str, batches))}"


# --- files ---------------------------------------------------------------------------------------------------


def make_command(model: Model, files: list[Path], batches: list[int]) -> list[str]:
    """The command that makes files of one model, with data of these batches."""
    options = shlex.join(["--cfg", str(model.cfg), "--resume", str(model.checkpoint)])
    settings = {"MODEL": options, "FACTS": f"{model.name} {model.type} - {model.checkpoint}",
                "BATCHES": " ".join(map(str, batches))}
    # make reads a dollar as its own.
    return ["make", "-s", "--no-print-directory", *(f"{name}={value.replace('$', '$$')}" for name, value in
                                                    settings.items()), *(shown(path) for path in files)]


def making_environment(take_files: bool) -> dict[str, str]:
    """What make runs in: this Python first on the PATH, as python3."""
    return {**os.environ, "PATH": f"{Path(PYTHON).parent}:{os.environ.get('PATH', '')}", "TRT_PYTHON": TRT_PYTHON,
            **({"TAKE_FILES": "yes"} if take_files else {})}


# --- measurements --------------------------------------------------------------------------------------------


def left_out(on_gpu: bool, runners: list[str], precisions: list[str]) -> dict[str, str]:
    """Which of the chosen runners and precisions this machine does not run, and why."""
    if not on_gpu:
        missing = {runner: "it needs a GPU, and torch finds none" for runner in RUNNERS if runner not in CPU_RUNNERS}
        missing["fp16"] = "a CPU computes it by way of FP32"
    else:
        missing = {"ort-cpu": "ort-cuda takes its place on a GPU"}
        found = subprocess.run([TRT_PYTHON, ROOT / "TensorRT" / "check.py"], capture_output=True, text=True)
        if found.returncode:
            why = f"{TRT_PYTHON} cannot run engines: {(found.stdout + found.stderr).strip()}"
            missing |= {"trt": why, "trt-plugins": why, "trt-timm": why}
        elif not found.stdout.startswith("TensorRT 8."):
            version = found.stdout.partition(" builds ")[0]
            missing["trt-timm"] = f"{version} takes the types from the graph, and timm's is FP32"
        elif importlib.util.find_spec("timm") is None:
            missing["trt-timm"] = f"{PYTHON} has no timm; pip install -r requirements-test.txt"
        if not onnxruntime_has_cuda():
            missing["ort-cuda"] = f"{PYTHON} has no onnxruntime with CUDA; pip install onnxruntime-gpu"
    if "trt-plugins" in missing or "trt-plugins" not in runners:
        missing["int8"] = "only trt-plugins runs it"
    return {name: why for name, why in missing.items() if name in (*runners, *precisions)}


def onnxruntime_has_cuda() -> bool:
    """Whether this Python's onnxruntime was built for CUDA."""
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def is_of(row: dict[str, str], entrant: Entrant) -> bool:
    """Whether a row of latency.csv is one that this entrant leaves."""
    if row["runner"] == "ort-cuda":
        mode = CUDA_GRAPH[row["cuda_graph"]]
    else:
        mode = TIMM.mode if row["export"] == "timm" else row["mode"]
    return (row["runner"], mode) == (entrant.runner, entrant.mode)


def unmeasured(rows: list[dict[str, str]], model: Model, entrant: Entrant, precision: str, batches: list[int],
               on_gpu: bool) -> tuple[int, ...]:
    """The batches that lack rows. On a GPU eager, TorchScript and TensorRT have two: without and with a CUDA graph."""
    variants = 2 if on_gpu and entrant.runner not in ("torch-compile", "ort-cuda") else 1
    found: dict[int, set[str]] = {batch: set() for batch in batches}
    for row in rows:
        if ((row["model"], row["precision"]) == (model.name, precision) and is_of(row, entrant)
                and int(row["batch"]) in found):
            found[int(row["batch"])].add(row["cuda_graph"])
    return tuple(batch for batch in batches if len(found[batch]) < variants)


def measuring_step(model: Model, entrant: Entrant, precision: str, batches: tuple[int, ...],
                   flags: list[str]) -> Step:
    """The step that measures these batches by the script that measures the entrant; `flags` go to each script."""
    suffix = "_attention" if entrant.runner == "trt-plugins" else ""
    suffix += "" if precision == "fp32" else f"_{precision}"
    if entrant.runner.startswith("torch"):
        file = model.onnx()
        command = [*torch_command(model, entrant, precision), "--onnx", file]
    elif entrant.runner.startswith("ort"):
        file = model.onnx(suffix)
        command = [PYTHON, "Onnx_Latency.py", "--onnx", file, "--runner", entrant.runner,
                   "--reference", model.onnx()]
        command += ["--variant", entrant.mode] if entrant.mode else []
    else:
        file = model.plan(f"_timm_b{batches[0]}{suffix}" if entrant == TIMM else suffix)
        command = [TRT_PYTHON, "TRT_test.py", "--plan", file]
    graphs = ("", "_int8") if precision == "int8" else ("",)  # the Q/DQ graph says how far off INT8 may be
    data = [model.data(batch, graph) for graph, batch in itertools.product(graphs, batches)]
    return Step((model, entrant, precision, batches), list(dict.fromkeys([model.onnx(), file, *data])),
                [*command, "--batch", ",".join(map(str, batches)), *flags])


def compiling_step(model: Model, entrant: Entrant, precision: str, batches: tuple[int, ...]) -> Step:
    """The step that compiles what a later one measures. It reads no file that another process may be making."""
    return Step((model, entrant, precision, batches), [],
                [*torch_command(model, entrant, precision), "--compile-only", "--batch", ",".join(map(str, batches))],
                compiles=True)


def torch_command(model: Model, entrant: Entrant, precision: str) -> list[str | Path]:
    command = [PYTHON, "Torch_Latency.py", "--cfg", model.cfg, "--resume", model.checkpoint,
               "--runner", entrant.runner, "--precision", precision]
    return command + (["--mode", entrant.mode] if entrant.mode else [])


def why_failed(log: str, batch: int | None = None) -> str:
    """What a script's output says of its failure: of this batch where it names it, else of CUDA, else its last line."""
    named = re.findall(rf"\bb{batch} \(.*failed: (.*)", log)
    cuda = re.findall(r"CUDA failure \d+: [^;\n]*[^;\s]", named[0] if named else log)  # onnxruntime's, a long line
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return cuda[0] if cuda else named[0] if named else lines[-1] if lines else "no output"


def why_not_made(log: str) -> str:
    """What once.py says of the step of make's that failed; else what make says."""
    failed = re.findall(r"^  (.*?) +FAILED  (.*)$", log, re.MULTILINE)
    return ": ".join(failed[0]) if failed else why_failed(log)


# --- the race ------------------------------------------------------------------------------------------------


def plan_race(models: list[Model], args: argparse.Namespace, on_gpu: bool) -> list[Step]:
    """The steps that are left to do, in order."""
    rows = latency_rows(args.results, args.run_id)
    flags = ["--results", args.results, "--min-seconds", str(args.min_seconds), "--min-runs", str(args.min_runs),
             "--warmup-seconds", str(args.warmup_seconds)]
    planned: list[Step] = []
    entrants = [entrant for entrant in ENTRANTS if entrant.name in args.runner
                and (entrant.runner != "torch-compile" or entrant.mode in args.mode)]
    for entrant, model, precision in itertools.product(entrants, models, args.precision):
        if precision == "int8" and entrant.runner != "trt-plugins":
            continue
        left = unmeasured(rows, model, entrant, precision, args.batch, on_gpu)
        if left and args.prepare and entrant.runner == "torch-compile":
            planned.append(compiling_step(model, entrant, precision, left))
            continue
        for batches in [(batch,) for batch in left] if entrant.name in ONE_BATCH_A_PROCESS else [left] if left else []:
            step = measuring_step(model, entrant, precision, batches, flags)
            planned.append(step._replace(command=[]) if args.prepare else step)
    return planned


def run_steps(steps: list[Step], args: argparse.Namespace, on_gpu: bool) -> list[str]:
    """Do the steps, with progress. Returns what failed, a line each with its reason."""
    logs = ROOT / ".cache" / "logs" / f"race-{args.run_id}"
    logs.mkdir(parents=True, exist_ok=True)
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(ROOT / ".cache" / "inductor"), **os.environ,
                   "RUN_ID": args.run_id, "TRT_PYTHON": TRT_PYTHON}
    failed: list[str] = []
    begun, guessed_done, guessed_left = time.monotonic(), 0.0, sum(step.seconds for step in steps)
    for number, step in enumerate(steps, 1):
        print(f"[{number:{len(str(len(steps)))}}/{len(steps)}] {step!s:<58}", end="", flush=True)
        guessed_done, guessed_left = guessed_done + step.seconds, guessed_left - step.seconds
        model, entrant, precision, batches = step.measures
        log = logs / re.sub(r"[^\w.-]+", "-", f"{step}.log")

        log.unlink(missing_ok=True)
        problems = []
        if step.files and logged(
                make_command(model, step.files, args.batch), making_environment(args.take_files), log):
            problems = [why_not_made(log.read_text(errors="replace"))]
        elif step.command:
            status = logged(step.command, environment, log)
            text = log.read_text(errors="replace")
            if step.compiles:
                problems = [why_failed(text)] if status else []
            else:
                missing = unmeasured(latency_rows(args.results, args.run_id), model, entrant, precision, list(batches),
                                     on_gpu)
                problems = [f"b{batch}: {why_failed(text, batch)}" for batch in missing]
        if problems:
            problems[-1] += f" (log: {shown(log)})"
        failed += [f"{step}: {problem}" for problem in problems]
        left = guessed_left * (time.monotonic() - begun) / guessed_done
        print(f" {'FAILED' if problems else 'done':<6}  {clock(time.monotonic() - begun)}, about {clock(left)} left",
              flush=True)
    return failed


def logged(command: list[str | Path], environment: dict[str, str], log: Path) -> int:
    """Run a command, what it prints added to a file; its exit status."""
    with log.open("a") as file:
        return subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode


def clock(seconds: float) -> str:
    """A duration as minutes and seconds, e.g. "12:05"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def chosen_models(args: argparse.Namespace) -> list[Model]:
    """The models of --cfg with the checkpoints of --resume, in their order."""
    if args.resume and len(args.resume) != len(args.cfg):
        raise UserError(f"--resume: {len(args.resume)} checkpoints for {len(args.cfg)} models; give one for each --cfg")
    models = []
    for cfg, resume in itertools.zip_longest(args.cfg, args.resume):
        config = get_config(cfg)
        checkpoint = checkpoint_path(config, resume, args.pretrained)
        models.append(Model(cfg.resolve(), checkpoint.resolve(), config.MODEL.NAME, config.MODEL.TYPE))
    return models


def draw(args: argparse.Namespace) -> None:
    """latency.png and speedup.md of the run."""
    run = ["--run", args.run_id] if args.run_id else []
    command = [PYTHON, ROOT / "Results" / "draw.py", "latency", "--results", args.results, "--pictures", args.pictures,
               *run]
    if subprocess.run(command).returncode:
        raise UserError("Results/draw.py could not draw; the reason stands above")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cfg", type=Path, nargs="+", metavar="YAML",
                        default=[ROOT / "models" / "swin.yaml", ROOT / "models" / "swinv2.yaml"],
                        help="the models (default: models/swin.yaml models/swinv2.yaml, both Small)")
    parser.add_argument("--resume", type=Path, nargs="+", metavar="FILE", default=[],
                        help="a checkpoint for each of them (default: the one that ships with a micro variant)")
    parser.add_argument("--pretrained", action="store_true", help="instead: the official checkpoints, downloaded once")
    parser.add_argument("--runner", type=lambda text: choices(text, RUNNERS), default=RUNNERS, metavar="R,R",
                        help=f"any of {','.join(RUNNERS)} (default: all that the machine can run)")
    parser.add_argument("--mode", type=lambda text: choices(text, MODES), default=MODES, metavar="M,M",
                        help=f"of torch.compile, any of {','.join(MODES)} (default: both)")
    parser.add_argument("--precision", type=lambda text: choices(text, PRECISIONS), default=PRECISIONS,
                        metavar="P,P",
                        help=f"any of {','.join(PRECISIONS)} (default: all); only trt-plugins has int8")
    parser.add_argument("--batch", type=batch_sizes, default=[1, 8, 32, 128], metavar="N,N",
                        help="batch sizes, up to 128 (default: 1,8,32,128)")
    parser.add_argument("--run-id", metavar="RUN_ID", help="go on with this run (default: a new one)")
    parser.add_argument("--draw-only", action="store_true",
                        help="measure nothing; draw the run of --run-id (default: as README has it, the newest race on "
                        "a GPU and INT8 of the newest run that has that)")
    parser.add_argument("--dry-run", action="store_true",
                        help="print the commands that are left, and run none (what --pretrained names is fetched)")
    parser.add_argument("--prepare", action="store_true",
                        help="measure nothing: make the files that the chosen runners need, and of torch-compile "
                             "compile what it measures")
    parser.add_argument("--take-files", action="store_true",
                        help="take files that are there as they are, whatever made them")
    add_timing_arguments(parser, warmup_s=WARMUP_S)
    parser.add_argument("--results", type=folder_to_write, default=str(LOCAL), metavar="FOLDER",
                        help="of latency.csv and speedup.md (default: Results/local/)")
    parser.add_argument("--pictures", type=folder_to_write, default=str(LOCAL), metavar="FOLDER",
                        help="where latency.png goes (default: Results/local/)")
    args = parser.parse_args(arguments)
    args.results, args.pictures = args.results.resolve(), args.pictures.resolve()
    if args.draw_only:
        draw(args)
        return
    args.run_id = args.run_id or new_run_id()
    models, on_gpu = chosen_models(args), torch.cuda.is_available()
    for name, why in left_out(on_gpu, args.runner, args.precision).items():
        print(f"left out: {name}: {why}")
        args.runner = [runner for runner in args.runner if runner != name]
        args.precision = [precision for precision in args.precision if precision != name]
    if not args.runner or not args.precision:
        raise UserError("nothing is left to measure on this machine; choose another --runner or --precision")

    steps = plan_race(models, args, on_gpu)
    if args.dry_run:
        for model in models:
            files = [path for step in steps if step.measures[0] == model for path in step.files]
            if files and subprocess.run([*make_command(model, list(dict.fromkeys(files)), args.batch), "-n"], cwd=ROOT,
                                        env=making_environment(args.take_files)).returncode:
                raise UserError("make cannot tell how the files are made; the reason stands above")
        print(*(step.line for step in steps if step.command), sep="\n", flush=True)
        return
    count = Counter("to compile" if step.compiles else "measurements" if step.command else "to prepare"
                    for step in steps)
    print(f"run {args.run_id}: {', '.join(f'{number} {what}' for what, number in count.items()) or 'all is there'}; "
          f"roughly {clock(sum(step.seconds for step in steps))} minutes", flush=True)
    try:
        failed = run_steps(steps, args, on_gpu)
    except KeyboardInterrupt:
        print(flush=True)  # ends the line of the step that was stopped
        raise UserError(f"stopped; the same command with --run-id {args.run_id} goes on from here") from None
    rows = latency_rows(args.results, args.run_id)
    failed += [f"{row['model']} {row['precision']} {row['runner']} b{row['batch']} ({how_measured(row)}): "
               f"{row_problem(row)}" for row in rows if row_problem(row)]
    if rows and not args.prepare:
        try:
            draw(args)
        except UserError as error:
            failed.append(f"the picture: {error}")
    if failed:
        print("failed:", *failed, sep="\n  ", file=sys.stderr)
        raise UserError(f"{len(failed)} failed; this command with --run-id {args.run_id} tries what has no row again")


if __name__ == "__main__":
    run_script(main)
