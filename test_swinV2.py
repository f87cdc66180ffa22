"""Accuracy of a Swin model, V1 as well as V2, in PyTorch, as an ONNX file, and as a TensorRT engine.

    python test_swinV2.py --cfg models/swinv2_micro.yaml

runs over held-out crops of the packaged photographs; --images FOLDER runs over a folder instead (ImageNet layout: one
folder per class, or flat with --labels FILE). For every runner: top-1, top-5, how often its top-1 is PyTorch FP32's,
and the error of its logits against PyTorch FP32's, beside the error that PyTorch itself makes in that precision.
The reference is computed once, at the largest batch: only rounding makes an image's logits depend on the batch.

Rows are added to accuracy.csv, and lines PASS or FAIL say of each ONNX file and engine whether it is finite,
has PyTorch's top-1, and is as exact as asked (FP32: to 1e-4; FP16 and BF16: as PyTorch in it; see `judge`). The exit
status is 1 if anything in FP32 or a patched engine fails, or anything gives NaN or infinity.

On a GPU, PyTorch runs as a CUDA graph, and the engines meanwhile in processes of their own.
"""
from __future__ import annotations

# --- edit here; a flag of the same name overrides each line ---
CFG = ""          # yaml of the model; "": as --type says, else Small V1
RESUME = ""       # its checkpoint; "": the one that ships with a micro variant
ONNX = []         # ONNX files, patched or not; none: onnx/<MODEL.NAME>.onnx where it is there
PLAN = []         # TensorRT engines, e.g. "TensorRT/TRT_Engine/swinv2_fp16.plan"
IMAGES = ""       # folder of images; "": crops of the packaged photographs
LABELS = ""       # their labels, lines `path-in-the-folder class-index`; "": by class folders
BATCH = "8"       # batch sizes, e.g. "1,8,32"; every size runs over all images
DEVICE = "auto"   # of PyTorch and onnxruntime: auto, cpu or cuda
# All paths are from the repository's root.
# --------------------------------------------------------------

import argparse
import importlib.util
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from config import add_model_arguments, get_config
from data.images import list_images, load_image, normalise, preprocess
from data.photo_crops import CLASSES, crops
from graphs.compare import max_abs_err, median_rel_err, top1_agreement
from graphs.facts import Facts, of_onnx, of_plan, of_text
from graphs.sessions import onnx_img_size, onnx_logits, onnx_session
from models.build import checkpoint_path, load_model
from Results.tables import (
    ACCURACY_COLUMNS,
    LOCAL,
    append_rows,
    cpu_name,
    git_commit,
    gpu_name,
    new_run_id,
    package_versions,
    tensorrt_backend,
    write_environment,
)
from TensorRT.backend import add_backend_argument, add_plugins_argument
from utils import (
    ROOT,
    Progress,
    UserError,
    batch_sizes,
    check_writable,
    choices,
    existing_file,
    folder_to_write,
    from_one,
    run_script,
    shown,
)

TORCH_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
RUNNERS = ("torch-fp32", "torch-fp16", "torch-bf16", "onnx", "engine")
# Images read, and held in memory, at a time; the last batch of each chunk may be a smaller one. An engine is loaded
# anew for each, so there are few on a GPU; on a CPU, where each takes longer, more of them show more progress.
CHUNK = {"cpu": 512, "cuda": 4096}

# What is asked of an ONNX file or an engine.
FP32_LIMIT = 1e-4  # largest absolute error of a logit, without TF32
TORCH_RATIO = 1.25  # largest error at one batch size, over that of PyTorch in the same precision
AGREEMENT = 0.999  # share of images whose top-1 is that of PyTorch in FP32


class Runner(Protocol):
    """What can be tested: something that turns images into logits.

    Attributes:
        name: as it stands in the table.
        precision: fp32, fp16, bf16 or int8.
        kind: torch, onnx or engine.
        device: cpu or cuda, whichever computes.
        backend: the software and its version.
        facts: of the file; None for PyTorch.
    """

    name: str
    precision: str
    kind: str
    device: str
    backend: str
    facts: Facts | None

    def __call__(self, images: np.ndarray, file: Path, batches: list[int]) -> np.ndarray:
        """Logits of some images, computed at several batch sizes.

        Args:
            images: float32 [N, 3, S, S], normalised.
            file: an .npy file that holds the same, for a runner in another process.
            batches: how many images at a time.
        Returns:
            float32 [len(batches), N, classes].
        """


class TorchRunner:
    """The PyTorch model, all of it in one precision, with constants folded."""

    def __init__(self, model: torch.nn.Module, precision: str, device: str) -> None:
        self.name, self.precision, self.device = "torch", precision, device
        self.kind, self.backend, self.facts = "torch", f"PyTorch {torch.__version__}", None
        self.model = model.fold_constants().to(device, TORCH_TYPES[precision])

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, file: Path, batches: list[int]) -> np.ndarray:
        x = torch.from_numpy(images).to(self.device)
        return np.stack([self.logits(x, batch) for batch in batches])

    def logits(self, x: torch.Tensor, batch: int) -> np.ndarray:
        """float32 [N, classes] of images on the device, `batch` at a time."""
        parts = [part.to(TORCH_TYPES[self.precision]) for part in x.split(batch)]
        run = self.model if self.device == "cpu" else self.cuda_graph(parts[0])
        logits = [run(part) if len(part) == len(parts[0]) else self.model(part) for part in parts]
        return torch.cat(logits).float().cpu().numpy()

    def cuda_graph(self, first: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """The model for inputs of the shape of `first`: the same kernels, started at once, not one by one."""
        x, side = first.clone(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # libraries choose their algorithms
                self.model(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = self.model(x)

        def run(part: torch.Tensor) -> torch.Tensor:
            x.copy_(part)
            graph.replay()
            return y.clone()

        return run


class OnnxRunner:
    """An ONNX file in onnxruntime; plugin nodes are replaced by the standard operators that they stand for."""

    def __init__(self, path: Path, img_size: int, device: str) -> None:
        import onnxruntime

        providers: list[str | tuple[str, dict]] = ["CPUExecutionProvider"]
        if device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
        self.path, self.name, self.facts = path, path.name, of_onnx(path)
        self.precision, self.kind = self.facts.precision, "onnx"
        self.device, self.backend = "cuda" if len(providers) > 1 else "cpu", f"onnxruntime {onnxruntime.__version__}"
        self.session = onnx_session(path, providers)
        if onnx_img_size(self.session, path) != img_size:
            raise UserError(f"{shown(path)}: takes images of {onnx_img_size(self.session, path)} pixels and the model "
                            f"{img_size}; give the --cfg that it was exported with")

    def __call__(self, images: np.ndarray, file: Path, batches: list[int]) -> np.ndarray:
        return np.stack([
            np.concatenate([onnx_logits(self.session, images[start:start + batch], self.path)
                            for start in range(0, len(images), batch)]).astype(np.float32) for batch in batches])


class EngineRunner:
    """A TensorRT engine, run by TensorRT/run_engine.py under the Python that imports tensorrt ($TRT_PYTHON)."""

    def __init__(self, path: Path, plugins: str | None) -> None:
        self.path, self.name = existing_file(path, "a TensorRT engine (--plan)"), path.name
        self.command = [os.environ.get("TRT_PYTHON", sys.executable), str(ROOT / "TensorRT" / "run_engine.py"),
                        "--plan", str(self.path), *(["--plugins", plugins] if plugins else [])]
        self.facts = of_plan(self.path) or self.ask()
        self.precision, self.kind = self.facts.precision, "engine"
        self.device, self.backend = "cuda", tensorrt_backend(self.facts.tools)

    def ask(self) -> Facts:
        """What the engine says of itself: a plan that has no .json beside it."""
        done = subprocess.run([*self.command, "--facts"], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise UserError(f"{self.path}: nothing says what the engine is: {reason}")
        return of_text(done.stdout, f"{self.path}: what TensorRT/run_engine.py --facts says of it")

    def __call__(self, images: np.ndarray, file: Path, batches: list[int]) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "output.npy"
            command = [*self.command, "--input", str(file), "--output", str(output),
                       "--batch", ",".join(map(str, batches))]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode or not output.is_file():
                reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
                raise UserError(f"{self.path}: the engine did not run: {reason}")
            return np.load(output).reshape(len(batches), len(images), -1)


# --- images and labels ---------------------------------------------------------------------------------------


@dataclass
class ImageSet:
    """Images to test on.

    Attributes:
        what: in words, for the heading.
        count: how many.
        labels: int64 [count], or None where they are not known.
        read: (start, stop) -> float32 [stop - start, 3, S, S], normalised.
    """

    what: str
    count: int
    labels: np.ndarray | None
    read: Callable[[int, int], np.ndarray]


def packaged_images(count: int, img_size: int, classes: int) -> ImageSet:
    """Held-out crops of the packaged photographs; no labels for a model that was trained on other classes."""
    images, labels = crops("test", count, img_size)
    if classes == len(CLASSES):
        return ImageSet(f"{count} held-out crops of the packaged photographs", count, labels,
                        lambda start, stop: normalise(images[start:stop]))
    return ImageSet(f"{count} held-out crops of the packaged photographs (without labels: the model has {classes} "
                    f"classes, the photographs are {len(CLASSES)})", count, None,
                    lambda start, stop: normalise(images[start:stop]))


def folder_images(folder: Path, label_file: Path | None, count: int | None, img_size: int, classes: int) -> ImageSet:
    """Images of a folder, all of them or `count` spread evenly over the sorted list.

    Raises:
        UserError: no images, fewer than asked for, or labels that do not fit the images or the model.
    """
    files = list_images(folder)
    names = [path.relative_to(folder).as_posix() for path in files]
    labels = read_labels(label_file, names, classes) if label_file else folder_labels(folder, names, classes)
    if count is not None and count > len(files):
        raise UserError(f"{folder}: holds {len(files)} images, fewer than --count {count}")
    chosen = np.arange(count or len(files)) * len(files) // (count or len(files))
    what = f"{len(chosen)} of {len(files)} images in {folder}{'' if labels is not None else ' (without labels)'}"
    return ImageSet(what, len(chosen), None if labels is None else labels[chosen], lambda start, stop: np.stack(
        [preprocess(load_image(files[i]), img_size) for i in chosen[start:stop]]))


def folder_labels(folder: Path, names: list[str], classes: int) -> np.ndarray | None:
    """Labels of images in class folders: the index of the folder in their sorted list. None for a flat folder."""
    parents = [name.split("/")[0] if "/" in name else "" for name in names]
    if not any(parents):
        return None
    if not all(parents):
        raise UserError(f"{folder}: has images both in class folders and beside them ({names[parents.index('')]}); "
                        f"give --labels FILE, or move them")
    order = {name: index for index, name in enumerate(sorted(set(parents)))}
    if len(order) != classes:
        raise UserError(f"{folder}: has {len(order)} class folders and the model {classes} classes, so a folder's "
                        f"class cannot be told; give --labels FILE, or the folder with all classes")
    return np.array([order[parent] for parent in parents], np.int64)


def read_labels(path: Path, names: list[str], classes: int) -> np.ndarray:
    """Labels from a text file of lines "path-in-the-folder class-index", one for every image, int64 [images].

    Raises:
        UserError: a line of another form, an index that the model does not have, an image with two lines or none.
    """
    path = existing_file(path, "a label file (--labels)")
    found: dict[str, int] = {}
    lines_of: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file of lines `name index`") from error
    for number, line in enumerate(lines, start=1):
        name, _, index = line.strip().replace("\t", " ").rpartition(" ")
        name = name.strip()
        if not line.strip():
            continue
        if not name or not index.isdecimal() or len(index) > 9 or int(index) >= classes:
            raise UserError(f"{path}:{number}: {line[:80]!r} is not `name index` with an index from 0 to {classes - 1}")
        if name in found:
            raise UserError(f"{path}:{number}: {name} has a label on line {lines_of[name]} already; remove one of them")
        found[name], lines_of[name] = int(index), number
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{path}: has no label for {len(missing)} of {len(names)} images, such as {missing[0]}")
    return np.array([found[name] for name in names], np.int64)


# --- running and reporting -----------------------------------------------------------------------------------


def collect_logits(images: ImageSet, runs: dict[Runner, list[int]], chunk: int,
                   classes: int) -> dict[tuple[Runner, int], np.ndarray]:
    """Logits float32 [count, classes] over all images, of every runner at each of its batch sizes.

    Engines, which run in processes of their own, do so while the other runners do.

    Raises:
        UserError: a runner gives logits of another shape.
    """
    parts: dict[Runner, list[np.ndarray]] = {runner: [] for runner in runs}
    chunk = max([chunk, *(batch for batches in runs.values() for batch in batches)])
    steps = [(start, runner) for start in range(0, images.count, chunk) for runner in runs]
    progress = Progress(len(steps), "parts")
    elsewhere = [runner for runner in runs if isinstance(runner, EngineRunner)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max(1, len(elsewhere))) as pool:
        file = Path(folder) / "input.npy"
        for done, (start, runner) in enumerate(steps, start=1):
            if (done - 1) % len(runs) == 0:
                inputs = images.read(start, min(start + chunk, images.count))
                if elsewhere:
                    np.save(file, inputs)
                running = {each: pool.submit(each, inputs, file, runs[each]) for each in elsewhere}
            logits = running[runner].result() if runner in running else runner(inputs, file, runs[runner])
            if logits.shape != (len(runs[runner]), len(inputs), classes):
                raise UserError(f"{runner.name}: gives logits of {list(logits.shape[1:])} for {len(inputs)} images, "
                                f"and the model has {classes} classes; give the --cfg and weights that it was made "
                                "from")
            parts[runner].append(logits)
            if progress.is_due() and done < len(steps):
                print(f"  {runner.name} {runner.precision}: {start + len(inputs)} of {images.count} images, "
                      f"{progress.left}", flush=True)
    return {(runner, batch): logits for runner, batches in runs.items()
            for batch, logits in zip(batches, np.concatenate(parts[runner], axis=1))}


def top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of rows, 0 to 1, whose label is among the k largest logits. A row with a NaN never is right."""
    largest = np.argpartition(-logits, min(k, logits.shape[1]) - 1, axis=1)[:, :k]
    return float(np.mean((largest == labels[:, None]).any(axis=1) & np.isfinite(logits).all(axis=1)))


def choose_runners(args: argparse.Namespace, model_name: str, device: str) -> tuple[list[str], list[Path], list[str]]:
    """Runners to run, ONNX files for them, and what is left out and why.

    Raises:
        UserError: --runner names one that does not exist, or whose file is not given, or leaves out one whose file is.
    """
    default_onnx = ROOT / "onnx" / f"{model_name}.onnx"
    onnx_files = args.onnx or ([default_onnx] if default_onnx.exists() else [])
    missing = {}
    if importlib.util.find_spec("onnxruntime") is None:
        missing["onnx"] = "onnxruntime is not installed; pip install -r requirements.txt"
    elif not onnx_files:
        missing["onnx"] = f"{shown(default_onnx)} is not there; make it with onnx/export_onnx.py, or give --onnx FILE"
    if not args.plan:
        missing["engine"] = "no engine given; build one with TensorRT/build.sh and give --plan FILE"
    if args.runner:
        chosen = choices(args.runner, RUNNERS)
        for name in chosen:
            if name in missing:
                raise UserError(f"--runner {name}: {missing[name]}")
        for name, flag, given in (("onnx", "--onnx", args.onnx), ("engine", "--plan", args.plan)):
            if given and name not in chosen:
                raise UserError(f"{flag} {given[0]}: --runner {args.runner} would not run it; add {name} to --runner, "
                                f"or leave {flag} out")
        return chosen, onnx_files, []
    if device == "cpu":
        missing |= {name: "slow on a CPU; ask for it with --runner" for name in ("torch-fp16", "torch-bf16")}
    chosen = [name for name in RUNNERS if name not in missing]
    return chosen, onnx_files, [f"{name}: left out: {missing[name]}" for name in RUNNERS if name in missing]


def row_of(runner: Runner, batch: int, logits: np.ndarray, reference: np.ndarray, torch_same: np.ndarray | None,
           labels: np.ndarray | None) -> dict[str, str]:
    """The measured columns of one row of Results/accuracy.csv; shares from 0 to 1, empty where not known."""
    def share(of: np.ndarray, k: int = 1) -> str:
        return "" if labels is None else f"{top_k(of, labels, k):.5f}"

    return {
        "runner": runner.kind, "precision": runner.precision, "file": "" if runner.facts is None else runner.name,
        "patched": "" if runner.facts is None else runner.facts.patches, "device": runner.device,
        "backend": runner.backend, "batch": str(batch), "images": str(len(logits)),
        "max_abs_err": f"{max_abs_err(logits, reference):.3e}",
        "median_rel_err": f"{median_rel_err(logits, reference):.3e}",
        "torch_max_abs_err": "" if torch_same is None else f"{max_abs_err(torch_same, reference):.3e}",
        "top1": share(logits), "top5": share(logits, 5), "top1_torch": share(reference),
        "agreement": f"{top1_agreement(logits, reference):.5f}",
    }


def ratio_of(row: dict[str, str]) -> float:
    """A row's error over PyTorch's own, which is 0 where, for one, all logits are zero."""
    own, torch_own = float(row["max_abs_err"]), float(row["torch_max_abs_err"])
    if torch_own == 0:
        return 0.0 if own == 0 else math.inf
    return own / torch_own


def judge(runner: Runner, rows: list[dict[str, str]], broken: int) -> list[tuple[bool, str]]:
    """What is asked of an ONNX file or an engine, one line each: whether it is met, and the figures.

    FP32: the largest error of a logit, over all images and batch sizes, is at most FP32_LIMIT. FP16 and BF16: it is at
    most PyTorch's own in that precision, and at any one batch size at most TORCH_RATIO times that. INT8 is asked
    here only for finite logits.

    Args:
        rows: of this runner, one for each batch size, as in accuracy.csv.
        broken: images with a NaN or an infinity among their logits, counted at each batch size.
    """
    def largest(column: str) -> float:
        return float(np.max([float(row[column]) for row in rows]))

    asked = [(broken == 0, f"NaN or infinity in {broken} outputs")]
    if runner.precision == "int8":
        return asked
    agreement = min(float(row["agreement"]) for row in rows)
    asked.append((agreement >= AGREEMENT, f"top-1 is PyTorch FP32's for {agreement:.2%} of the images at least; "
                                          f"asked: {AGREEMENT:.1%}"))
    error = largest("max_abs_err")
    if runner.precision == "fp32":
        return [*asked, (error <= FP32_LIMIT, f"max abs error {error:.2e}; asked: at most {FP32_LIMIT:.0e}")]
    torch_error = largest("torch_max_abs_err")
    worst = max(rows, key=ratio_of)
    ratio = ratio_of(worst)
    return [*asked,
            (error <= torch_error, f"max abs error {error:.2e}; asked: at most PyTorch's own, {torch_error:.2e}"),
            (ratio <= TORCH_RATIO, f"max abs error {ratio:.2f} times PyTorch's at batch {worst['batch']}, the worst; "
                                   f"asked: at most {TORCH_RATIO}")]


def is_asked(runner: Runner) -> bool:
    """Whether `judge` binds: on everything in FP32, and on the engines that this project patched.

    An unpatched graph in FP16 is what it is, and an ONNX file in FP16 is run by onnxruntime, which rounds elsewhere.
    """
    return runner.precision == "fp32" or (runner.kind == "engine" and bool(runner.facts.patched))


def print_table(rows: list[dict[str, str]]) -> None:
    """The rows as a table, widths as needed."""
    rows = [{**row, "name": row["file"] or row["runner"]} for row in rows]
    heading = {"name": "runner", "precision": "precision", "batch": "batch", "top1": "top-1", "top5": "top-5",
               "agreement": "agreement", "max_abs_err": "max abs err", "median_rel_err": "median rel err",
               "torch_max_abs_err": "PyTorch's max"}
    shares = ("top1", "top5", "agreement")
    cells = [list(heading.values())] + [
        [f"{100 * float(row[key]):.2f} %" if key in shares and row[key] else row[key] or "-" for key in heading]
        for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heading))]
    for line in cells:
        print("  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                        for column, (cell, width) in enumerate(zip(line, widths))))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser, CFG, RESUME)
    parser.add_argument("--runner", metavar="A,B", help=f"of {','.join(RUNNERS)} (default: those this machine can run "
                        "at a fair speed; PyTorch FP32, the reference, always runs)")
    parser.add_argument("--onnx", type=Path, nargs="+", default=[ROOT / file for file in ONNX], metavar="FILE",
                        help="ONNX files, patched or not (default: onnx/<MODEL.NAME>.onnx if it is there)")
    parser.add_argument("--plan", type=Path, nargs="+", default=[ROOT / plan for plan in PLAN], metavar="FILE",
                        help="TensorRT engines")
    add_plugins_argument(parser)
    add_backend_argument(parser)
    parser.add_argument("--images", type=Path, default=ROOT / IMAGES if IMAGES else None, metavar="FOLDER",
                        help="images, one folder per class or flat (default: crops of the packaged photographs)")
    parser.add_argument("--labels", type=Path, default=ROOT / LABELS if LABELS else None, metavar="FILE",
                        help="text file of lines `path-in-the-folder class-index` for --images")
    parser.add_argument("--count", type=from_one, metavar="N",
                        help="number of images (default: all of --images, or 1000 crops)")
    parser.add_argument("--batch", type=batch_sizes, default=BATCH, metavar="N,M",
                        help="images at a time; every size runs over all images and gives its own row "
                             "(default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default=DEVICE,
                        help="of PyTorch and onnxruntime (default: the GPU if torch finds one)")
    parser.add_argument("--results", type=folder_to_write, default=str(LOCAL), metavar="FOLDER",
                        help="where accuracy.csv and environment/ are (default: Results/local/)")
    args = parser.parse_args(arguments)
    if args.labels and not args.images:
        parser.error("--labels needs --images")
    return args


def chosen_device(name: str) -> str:
    """cpu or cuda; UserError where cuda is asked for and torch finds none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; give --device cpu")
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def files_to_run(args: argparse.Namespace, chosen: list[str], onnx_files: list[Path], img_size: int,
                 device: str) -> list[Runner]:
    """The ONNX files and engines among the chosen runners."""
    others: list[Runner] = []
    if "onnx" in chosen:
        others += [OnnxRunner(path, img_size, device) for path in onnx_files]
    if "engine" in chosen:
        others += [EngineRunner(path, args.plugins) for path in args.plan]
    return others


def judged(runs: dict[Runner, list[int]], others: list[Runner], in_torch: dict[str, Runner],
           logits: dict[tuple[Runner, int], np.ndarray], expected: np.ndarray, labels: np.ndarray | None,
           ) -> tuple[list[dict[str, str]], list[tuple[Runner, bool, str]], list[str]]:
    """What came out of the runners, each at its batch sizes.

    Returns:
        The rows; for each of `others` what is asked of it, whether it is met, and the figures; and in words which
        runner gave NaN or infinity.
    """
    rows, verdicts, broken = [], [], []
    for runner, batches in runs.items():
        same, own_rows, own_broken = in_torch.get(runner.precision), [], 0
        for batch in batches:
            own = logits[runner, batch]
            torch_same = expected if same is in_torch["fp32"] else logits[same, batch] if same else None
            own_rows.append(row_of(runner, batch, own, expected, torch_same, labels))
            bad = len(own) - int(np.isfinite(own).all(axis=1).sum())
            own_broken += bad
            if bad:
                broken.append(f"{runner.name} {runner.precision} at batch {batch} gave NaN or infinity for {bad} of "
                              f"{len(own)} images")
        rows += own_rows
        if runner in others:
            verdicts += [(runner, *verdict) for verdict in judge(runner, own_rows, own_broken)]
    return rows, verdicts, broken


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    device, run_id = chosen_device(args.device), new_run_id()
    for path in (args.results / "accuracy.csv", args.results / "environment" / f"{run_id}.txt"):
        check_writable(path)  # said now, not after all is measured
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # FP32 is the reference

    config = get_config(args.cfg, args.opts, args.type)
    weights = checkpoint_path(config, args.resume, args.pretrained)
    chosen, onnx_files, left_out = choose_runners(args, config.MODEL.NAME, device)
    reference = TorchRunner(load_model(config, weights), "fp32", device)
    img_size, classes = reference.model.img_size, reference.model.num_classes
    others = files_to_run(args, chosen, onnx_files, img_size, device)
    wanted = [name.removeprefix("torch-") for name in chosen if name.startswith("torch-")]
    # PyTorch in each precision that is asked for or that an ONNX file or an engine has: what it is measured against.
    in_torch = {"fp32": reference} | {
        precision: TorchRunner(load_model(config, weights), precision, device) for precision in ("fp16", "bf16")
        if precision in wanted or any(runner.precision == precision for runner in others)}
    images = (folder_images(args.images, args.labels, args.count, img_size, classes) if args.images
              else packaged_images(args.count or 1000, img_size, classes))
    batches = sorted({min(batch, images.count) for batch in args.batch})
    machine = gpu_name() if device == "cuda" or "engine" in chosen else cpu_name()
    print(f"{config.MODEL.NAME}, {shown(weights)}, on {machine}; {images.what}", *left_out, sep="\n", flush=True)

    told = {runner: batches for runner in [*(in_torch[precision] for precision in wanted), *others]}
    runs = {runner: batches for runner in [*in_torch.values(), *others]}
    if reference not in told:
        runs[reference] = batches[-1:]
    logits = collect_logits(images, runs, CHUNK[device], classes)
    rows, verdicts, broken = judged(told, others, in_torch, logits, logits[reference, batches[-1]], images.labels)
    print_table(rows)
    for runner, met, text in verdicts:
        print(f"{'PASS' if met else 'FAIL'} {runner.name}: {text}"
              f"{'' if met or is_asked(runner) else ' (not asked: not a patched engine)'}")
    common = {"run_id": run_id, "commit": git_commit(), "gpu": machine, "model": config.MODEL.NAME,
              "weights": shown(weights)}
    append_rows(args.results / "accuracy.csv", ACCURACY_COLUMNS,
                [{**common, **{key: value for key, value in row.items() if key != "top5"}} for row in rows])
    write_environment(run_id, {**package_versions("torch", "onnxruntime", "onnxruntime-gpu"),
                               f"accuracy of {config.MODEL.NAME}": images.what}, args.results)
    print(f"added {len(rows)} rows to {shown(args.results / 'accuracy.csv')}, run {run_id}")
    failed = [f"{runner.name}: {text}" for runner, met, text in verdicts if not met and is_asked(runner)]
    if broken or failed:
        raise UserError("; ".join([*broken, *failed]))


if __name__ == "__main__":
    run_script(main)
