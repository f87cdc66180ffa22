"""Other people's Swin Transformers at the sizes that they are used at: the engine with plugins beside torch.compile,
eager, onnxruntime and TensorRT on the unpatched graph: time, error and device memory in one row, in FP16.

    python TensorRT/race_sizes.py                            # all; goes on where it was stopped, with --run-id
    python TensorRT/race_sizes.py --cell swin_t_800x1344_b1 --runner trt-plugins,trt-open,torch-compile
    python TensorRT/race_sizes.py --list                     # cells and runners
    python TensorRT/race_sizes.py --show                     # the table of speed-ups from what was measured

Models have random weights, the same ones in every runner. Each step is a process of its own: what fails is told, leaves
no row, and does not stop the others. Needs timm (requirements-test.txt) and, for engines, $TRT_PYTHON and the built
plugins. Rows go to any_swin.csv in Results/local/; errors are against PyTorch in FP32 without TF32, as a share of the
largest number of an output, the worst output counting. Memory is by how much the free memory of the GPU falls.

Runners: torch-eager; torch-compile (mode reduce-overhead) and torch-compile-max (max-autotune); trt, the unpatched
graph; ort-cuda, the same by onnxruntime; trt-plugins, an engine of the cell's size; trt-open, one for --sizes.
"""
from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from Results.tables import (
    LOCAL,
    append_rows,
    git_commit,
    gpu_name,
    machine_load,
    new_run_id,
    read_rows,
    tensorrt_backend,
    write_environment,
)
from Results.timing import add_timing_arguments, latency_figures, timed_runs, timing_of
from utils import ROOT, UserError, choices, folder_to_write, image_sizes, run_script, shown, whole_file

if TYPE_CHECKING:
    from torch import nn

PYTHON, TRT_PYTHON = sys.executable, os.environ.get("TRT_PYTHON", sys.executable)
TABLE = "any_swin.csv"
COLUMNS = ("run_id", "commit", "gpu", "backend", "runner", "cell", "model", "image", "batch", "precision",
           "profile", "latency_ms_median", "latency_ms_p25", "latency_ms_p75", "latency_ms_p99", "images_per_s", "load",
           "memory_used_mib", "max_share_err")
RUNNERS = ("trt-plugins", "trt-open", "torch-compile", "torch-eager", "trt", "ort-cuda", "torch-compile-max")
MODES = {"torch-compile": "reduce-overhead", "torch-compile-max": "max-autotune"}
# The sizes that a graph is patched at, where add_all.py's own do not do: windows of 14 cover the last stage at all of
# those.
PROBE_SIZES = {"swinv2_b": "202x330,402x490,486x558"}
OPEN_SIZES = [(224, 224), (200, 333), (800, 1344), (1024, 1024)]


class Cell(NamedTuple):
    """One model at one image size and batch.

    Attributes:
        model: of MODELS.
        size: height and width of the images.
        opened: whether the model leaves the size open in an export.
    """

    name: str
    model: str
    size: tuple[int, int]
    batch: int
    opened: bool = True

    @property
    def image(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"


CELLS = [
    Cell("swin_l_1024x1024_b1", "swin_l", (1024, 1024), 1),
    Cell("swin_t_800x1344_b1", "swin_t", (800, 1344), 1),
    Cell("swin_t_800x1344_b8", "swin_t", (800, 1344), 8),
    Cell("swinv2_b_448x448_b1", "swinv2_b", (448, 448), 1),
    Cell("swinv2_b_448x448_b32", "swinv2_b", (448, 448), 32),
    Cell("swinir_256x256_b1", "swinir", (256, 256), 1, opened=False),
    # One engine for all of these.
    *(Cell(f"swin_t_open_{height}x{width}_b{batch}", "swin_t_open", (height, width), batch)
      for height, width in OPEN_SIZES for batch in (1, 2)),
]


# --- models --------------------------------------------------------------------------------------------------


def timm_maps(name: str, size: tuple[int, int], opened: bool, pads: bool = False, **settings: Any) -> nn.Module:
    """timm's backbone, which gives its four feature maps [B, C, h, w]."""
    sys.path.insert(1, str(ROOT / "tests"))
    import zoo

    zoo.make_torchvision_importable()
    import timm

    model: Any = timm.create_model(name, pretrained=False, img_size=size, num_classes=0, dynamic_img_size=opened,
                                   **settings)
    model.patch_embed.dynamic_img_pad = pads  # timm's own way to take sides that patches do not divide
    return zoo.Outputs(model, zoo.feature_maps)


def swinv2_tagger(size: tuple[int, int], opened: bool) -> nn.Module:
    """timm's Swin V2-B with windows of 14 and 9,083 classes, as taggers of pictures have it."""
    sys.path.insert(1, str(ROOT / "tests"))
    import zoo

    zoo.make_torchvision_importable()
    import timm

    return timm.create_model("swinv2_base_window8_256", pretrained=False, img_size=size, window_size=14,
                             num_classes=9083, dynamic_img_size=opened)


def swinir(size: tuple[int, int], opened: bool) -> nn.Module:
    """SwinIR classical x2: 36 blocks of 180 channels, heads of 30, windows of 8."""
    sys.path.insert(1, str(ROOT / "tests"))
    import other_sources

    return other_sources.Restorer(channels=180, heads=6, window=(8, 8), depths=(6,) * 6)


MODELS: dict[str, Callable[[tuple[int, int], bool], nn.Module]] = {
    "swin_l": lambda size, opened: timm_maps("swin_large_patch4_window12_384", size, opened),
    "swin_t": lambda size, opened: timm_maps("swin_tiny_patch4_window7_224", size, opened),
    # One model for every size: whether its last stage is shifted is settled by this one.
    "swin_t_open": lambda size, opened: timm_maps("swin_tiny_patch4_window7_224", (800, 1344), True, pads=True),
    "swinv2_b": swinv2_tagger,
    "swinir": swinir,
}


def model_of(cell: Cell, opened: bool = False) -> nn.Module:
    """The cell's model in FP32 on the CPU, always with the same weights: those of its size, or one that leaves it open.
    """
    import torch

    torch.manual_seed(0)
    model = MODELS[cell.model](cell.size, opened).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # as they are drawn for training, but no norm is zero (timm's V2) and no bias
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" in name:
                parameter.normal_(1 if name.endswith("weight") else 0, 0.1, generator=generator)
            elif parameter.ndim == 1 or "bias_table" in name:
                parameter.normal_(0, 0.05, generator=generator).add_(2.3 if name.endswith("logit_scale") else 0)
    return model


def images_of(cell: Cell) -> np.ndarray:
    """float32 [B, 3, H, W], each image another one: squares of 8 pixels with noise on them."""
    rng = np.random.default_rng(2)
    height, width = cell.size
    squares = rng.standard_normal((cell.batch, 3, -(-height // 8), -(-width // 8))).repeat(8, 2).repeat(8, 3)
    return (squares[:, :, :height, :width] + 0.1 * rng.standard_normal((cell.batch, 3, *cell.size))).astype(np.float32)


def outputs_of(found: Any) -> list:
    """The tensors that a model gives."""
    return [found] if hasattr(found, "shape") else [tensor for part in found for tensor in outputs_of(part)]


# --- files ---------------------------------------------------------------------------------------------------


class Files(NamedTuple):
    """Where the files of a cell lie."""

    folder: Path
    cell: Cell

    @property
    def data(self) -> Path:
        """`input` and PyTorch's outputs in FP32, in order."""
        return self.folder / f"{self.cell.name}.npz"

    def graph(self, patched: bool) -> Path:
        """The FP32 graph, of this batch and size for the unpatched engine; the patched FP16 one, of every size."""
        if not patched:
            return self.folder / f"{self.cell.name}.onnx"
        name = self.cell.model if self.cell.model == "swin_t_open" else f"{self.cell.model}_{self.cell.image}"
        return self.folder / f"{name}_attention_fp16.onnx"

    def plan(self, runner: str) -> Path:
        if runner == "trt-open":
            return self.folder / f"{self.graph(True).stem}_open.plan"
        return self.folder / f"{self.cell.name}_{runner}.plan"


def call(command: list, timeout_s: float, log: Path) -> None:
    """Run a command, its output into a log; UserError with its last line where it fails."""
    words = [str(word) for word in command]
    with log.open("a") as file:
        file.write(f"$ {shlex.join(words)}\n")
        file.flush()
        try:
            done = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, timeout=timeout_s, cwd=ROOT)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{Path(words[1]).name}: not done in {timeout_s:.0f} s; {shown(log)}") from error
    if done.returncode:
        last = (log.read_text(errors="replace").strip().splitlines() or ["?"])[-1]
        raise UserError(f"{last[:300]} (log: {shown(log)})")


def make(path: Path, command: list, timeout_s: float, log: Path) -> None:
    if not path.exists():
        call(command, timeout_s, log)
    if not path.exists():
        raise UserError(f"{shown(path)}: was not written; {shown(log)}")


def prepare(files: Files, runner: str, args: argparse.Namespace) -> None:
    """Make what a runner reads, where it is not there yet: data, graph, plan."""
    log = files.folder / f"{files.cell.name}_{runner}.log"
    here = [PYTHON, ROOT / "TensorRT" / "race_sizes.py", "--files", args.files]
    make(files.data, [*here, "--step", "data", files.cell.name], args.timeout, log)
    if runner.startswith("torch"):
        return
    patched = runner in ("trt-plugins", "trt-open")
    graph = files.graph(patched)
    if patched:
        plain = graph.with_name(graph.name.replace("_attention_fp16", ""))
        make(plain, [*here, "--step", "export-open" if files.cell.opened else "export", files.cell.name], args.timeout,
             log)
        # What is compared on images of the size itself is compared by this script, with the engine.
        probed = ["--probe-sizes", PROBE_SIZES[files.cell.model]] if files.cell.model in PROBE_SIZES else []
        make(graph, [PYTHON, ROOT / "onnx/graphsurgeon/add_all.py", "--onnx", plain, "--fp16", "--output", graph,
                     *probed, *(["--no-check"] if not args.check else [])], args.timeout, log)
    else:
        make(graph, [*here, "--step", "export", files.cell.name], args.timeout, log)
    if runner == "ort-cuda":
        return
    size, batch = files.cell.image, str(files.cell.batch)
    flags = ["--min", batch, "--opt", batch, "--max", batch]
    if runner == "trt-open":
        most = max(cell.batch for cell in CELLS if cell.model == files.cell.model)
        sizes = dict.fromkeys([files.cell.size, *args.sizes])
        flags = ["--sizes", ",".join(f"{height}x{width}" for height, width in sizes), "--opt", "1", "--max", str(most)]
    elif patched and files.cell.opened:
        flags += ["--size", size]
    if patched:
        flags.append("--plugins")
    elif tensorrt_8():
        flags.append("--fp16")
    else:  # types are the graph's
        half = graph.with_name(f"{graph.stem}_fp16.onnx")
        make(half, [PYTHON, ROOT / "onnx/graphsurgeon/to_fp16.py", "--onnx", graph, "--output", half, "--no-check"],
             args.timeout, log)
        graph = half
    make(files.plan(runner), ["bash", ROOT / "TensorRT/build.sh", graph, "--output", files.plan(runner), *flags],
         args.timeout, log)


def tensorrt_8() -> bool:
    """Whether $TRT_PYTHON has TensorRT 8, in which a flag permits FP16."""
    found = subprocess.run([TRT_PYTHON, ROOT / "TensorRT" / "check.py"], capture_output=True, text=True)
    return found.stdout.startswith("TensorRT 8.")


def write_data(cell: Cell, path: Path) -> None:
    """PyTorch's outputs in FP32 without TF32."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    images = images_of(cell)
    with torch.inference_mode():
        model = model_of(cell).to(device)
        found = outputs_of(model(torch.from_numpy(images).to(device)))
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, input=images, **{f"output_{i}": tensor.cpu().numpy() for i, tensor in enumerate(found)})


def write_graph(cell: Cell, path: Path, opened: bool) -> None:
    """The FP32 graph by the TorchScript exporter: of the cell's size and batch, or batch, height and width open."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model_of(cell, opened).to(device)
    # An open size: none that patches divide, so that padding to patches is in the trace.
    size = (331, 470) if cell.model == "swin_t_open" else (320, 448) if opened else cell.size
    example = torch.zeros(2 if opened else cell.batch, 3, *size, device=device)
    with torch.inference_mode():
        count = len(outputs_of(model(example)))
    names = [f"output_{i}" for i in range(count)]
    axes = {"input": {0: "batch", 2: "height", 3: "width"}, **{name: {0: "batch"} for name in names}} if opened else {}
    with whole_file(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the old one, and what it makes numbers of
        torch.onnx.export(model, (example,), str(partial), dynamo=False, opset_version=17, input_names=["input"],
                          output_names=names, dynamic_axes=axes or None)


# --- measuring -----------------------------------------------------------------------------------------------


def share_of(outputs: list[np.ndarray], data: dict[str, np.ndarray]) -> float:
    """The largest error of an output as a share of its largest number; NaN where one is NaN."""
    shares = []
    for i, output in enumerate(outputs):
        wanted = data[f"output_{i}"]
        if output.shape != wanted.shape:
            raise UserError(f"output {i} is {list(output.shape)} instead of {list(wanted.shape)}")
        shares.append(float(np.abs(output.astype(np.float32) - wanted).max() / np.abs(wanted).max()))
    return float(np.max(shares))


def by_torch(cell: Cell, runner: str, data: dict[str, np.ndarray], timing: dict) -> dict[str, str]:
    """Eager, or torch.compile, in half precision."""
    import torch

    sys.path.insert(1, str(ROOT))
    from Torch_Latency import timer

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda")
    torch.zeros(1, device=device)
    before = torch.cuda.mem_get_info()[0]
    with torch.inference_mode():
        model: Any = model_of(cell).half().to(device)
        x = torch.from_numpy(data["input"]).to(device, torch.float16)
        if runner in MODES:
            model = torch.compile(model, mode=MODES[runner], dynamic=False)
        for _ in range(3):
            outputs = [tensor.float().cpu().numpy() for tensor in outputs_of(model(x))]
        times = timed_runs(timer(lambda: model(x), device), **timing)
        used = before - torch.cuda.mem_get_info()[0]
    return {**latency_figures(times, cell.batch), "memory_used_mib": f"{used / 2**20:.1f}",
            "max_share_err": f"{share_of(outputs, data):.3e}", "backend": f"PyTorch {torch.__version__}",
            "precision": "fp16", "profile": ""}


def by_tensorrt(cell: Cell, plan: Path, data: dict[str, np.ndarray], timing: dict) -> dict[str, str]:
    """An engine as a CUDA graph, input and output on the device. Runs in the Python that has TensorRT."""
    from TensorRT.engine import Engine
    from TensorRT.trt_runtime import free_memory, require_gpu, versions

    require_gpu()
    before = free_memory()
    with Engine(plan) as engine, engine.context() as context:
        found = context.infer_all(data["input"])
        context.capture()
        context.run()
        found = context.download()
        times = timed_runs(context.timed_run_ms, **timing)
        used = before - free_memory()
        names = sorted(found, key=lambda name: (len(name), name))
        profile = " ".join("x".join(map(str, shape)) for shape in engine.profile)
        return {**latency_figures(times, cell.batch), "memory_used_mib": f"{used / 2**20:.1f}",
                "max_share_err": f"{share_of([found[name] for name in names], data):.3e}",
                "backend": tensorrt_backend(versions()), "precision": engine.facts().precision, "profile": profile}


def by_onnxruntime(cell: Cell, graph: Path, data: dict[str, np.ndarray], timing: dict) -> dict[str, str]:
    """The unpatched graph in FP16 by onnxruntime's CUDA provider, as a CUDA graph, bound to the device."""
    import onnx
    import onnxruntime
    import torch
    from onnxruntime.transformers.float16 import convert_float_to_float16

    from graphs.sessions import session_of
    from Torch_Latency import timer

    torch.zeros(1, device="cuda")
    before = torch.cuda.mem_get_info()[0]
    half = convert_float_to_float16(onnx.load(graph), keep_io_types=False)
    session = session_of(half, [("CUDAExecutionProvider", {"enable_cuda_graph": "1"})])
    binding = session.io_binding()
    value = onnxruntime.OrtValue.ortvalue_from_numpy(data["input"].astype(np.float16), "cuda", 0)
    binding.bind_ortvalue_input("input", value)
    names = [output.name for output in session.get_outputs()]
    for i, name in enumerate(names):
        binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            data[f"output_{i}"].shape, np.float16, "cuda", 0))
    device = torch.device("cuda")
    stream_is_theirs = timer(lambda: session.run_with_iobinding(binding), device)
    times = timed_runs(stream_is_theirs, **timing)
    used = before - torch.cuda.mem_get_info()[0]
    outputs = [value.numpy() for value in binding.get_outputs()]
    return {**latency_figures(times, cell.batch), "memory_used_mib": f"{used / 2**20:.1f}",
            "max_share_err": f"{share_of(outputs, data):.3e}", "backend": f"onnxruntime {onnxruntime.__version__}",
            "precision": "fp16", "profile": ""}


def measure_one(cell: Cell, runner: str, args: argparse.Namespace) -> None:
    """Measure one runner on one cell in this process, and print its figures as the last line, JSON."""
    files = Files(args.files, cell)
    with np.load(files.data) as arrays:
        data = dict(arrays)
    timing = timing_of(args)
    if runner.startswith("torch"):
        figures = by_torch(cell, runner, data, timing)
    elif runner == "ort-cuda":
        figures = by_onnxruntime(cell, files.graph(False), data, timing)
    else:
        figures = by_tensorrt(cell, files.plan(runner), data, timing)
    print(json.dumps({**figures, "load": machine_load()}))


def measure(cell: Cell, runner: str, args: argparse.Namespace) -> str:
    """Prepare and measure in a process of its own; adds the row, and gives back a line for people."""
    files = Files(args.files, cell)
    prepare(files, runner, args)
    if args.prepare and runner not in MODES:
        return "files are there"
    log = files.folder / f"{cell.name}_{runner}.measured"
    log.unlink(missing_ok=True)
    python = PYTHON if runner.startswith(("torch", "ort")) else TRT_PYTHON
    timing = ["--min-seconds", args.min_seconds, "--min-runs", args.min_runs]
    if args.warmup_seconds is not None:
        timing += ["--warmup-seconds", args.warmup_seconds]
    if args.prepare:
        timing = ["--min-seconds", 0, "--min-runs", 1]
    call([python, ROOT / "TensorRT" / "race_sizes.py", "--files", args.files, "--step", runner, cell.name, *timing],
         args.timeout, log)
    if args.prepare:
        return "is in PyTorch's cache"
    figures = json.loads(log.read_text().strip().splitlines()[-1])
    row = {**dict.fromkeys(COLUMNS, ""), "run_id": args.run_id, "commit": git_commit(), "gpu": gpu_name(),
           "runner": runner, "cell": cell.name, "model": cell.model, "image": cell.image, "batch": str(cell.batch),
           **{name: value for name, value in figures.items() if name in COLUMNS}}
    append_rows(args.results / TABLE, COLUMNS, [row])
    name, _, version = row["backend"].rpartition(" ")
    write_environment(args.run_id, {name: version}, args.results)
    return (f"{float(row['latency_ms_median']):.3f} ms, error {row['max_share_err']}, "
            f"{float(row['memory_used_mib']):.0f} MiB")


# --- the table -----------------------------------------------------------------------------------------------


def table_of(rows: list[dict[str, str]]) -> str:
    """Markdown: one row a cell, the newest measurement of each runner, and how many times as fast the engine with
    plugins is as the best of the others."""
    newest = {(row["cell"], row["runner"]): row for row in rows}
    lines = ["| cell | " + " | ".join(RUNNERS) + " | times as fast | memory | open sizes |",
             "|---|" + "---|" * (len(RUNNERS) + 3)]
    for cell in CELLS:
        found = {runner: newest[cell.name, runner] for runner in RUNNERS if (cell.name, runner) in newest}
        if not found:
            continue
        times = {runner: float(row["latency_ms_median"]) for runner, row in found.items()}
        cells = [f"{times[runner]:.3f} ms ({float(found[runner]['max_share_err']):.0e})" if runner in found else "-"
                 for runner in RUNNERS]
        others = [times[runner] for runner in times if runner not in ("trt-plugins", "trt-open")]
        mine = found.get("trt-plugins")
        fast = f"{min(others) / times['trt-plugins']:.2f}" if mine and others else "-"
        theirs = found.get("torch-compile")
        memory = f"{float(mine['memory_used_mib']) / float(theirs['memory_used_mib']):.0%}" if mine and theirs else "-"
        opened = f"{times['trt-open'] / times['trt-plugins'] - 1:+.1%}" if mine and "trt-open" in found else "-"
        lines.append(f"| {cell.name} | {' | '.join(cells)} | {fast} | {memory} | {opened} |")
    return "\n".join(lines)


def main() -> None:
    names = tuple(cell.name for cell in CELLS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", type=lambda text: choices(text, names), default=list(names), metavar="NAME,NAME",
                        help="default all; --list names them")
    parser.add_argument("--runner", type=lambda text: choices(text, RUNNERS), default=list(RUNNERS), metavar="R,R",
                        help=f"any of {','.join(RUNNERS)}; default all")
    parser.add_argument("--run-id", default=new_run_id(), metavar="ID",
                        help="of the rows; with that of an earlier run, what it measured is not measured again")
    parser.add_argument("--sizes", type=image_sizes, default=OPEN_SIZES, metavar="HxW,HxW",
                        help="that the engine for open sizes is built for; default 224x224,200x333,800x1344,1024x1024")
    parser.add_argument("--files", type=folder_to_write, default=str(ROOT / ".cache" / "race_sizes"), metavar="FOLDER",
                        help="of graphs, data, plans and logs; what is there is not made again (default "
                             ".cache/race_sizes)")
    parser.add_argument("--results", type=folder_to_write, default=str(LOCAL), metavar="FOLDER",
                        help=f"where {TABLE} goes (default: Results/local/)")
    parser.add_argument("--timeout", type=float, default=1800, metavar="S", help="of one step; default 1800")
    parser.add_argument("--stop-after", type=float, default=float("inf"), metavar="S",
                        help="begin nothing new after this time")
    parser.add_argument("--check", action="store_true",
                        help="also compare patched and unpatched graphs on a CPU, at other sizes, which takes minutes")
    parser.add_argument("--prepare", action="store_true",
                        help="measure nothing: make files, and compile for torch.compile, as several processes can")
    parser.add_argument("--list", action="store_true", help="name cells and runners")
    parser.add_argument("--show", action="store_true", help="print the table from what was measured, and do nothing")
    parser.add_argument("--step", nargs=2, metavar=("WHAT", "CELL"), help=argparse.SUPPRESS)
    add_timing_arguments(parser)
    args = parser.parse_args()
    by_name = {cell.name: cell for cell in CELLS}
    if args.list:
        print("\n".join(names), "\n" + ", ".join(RUNNERS))
        return
    if args.show:
        print(table_of(read_rows(args.results / TABLE)))
        return
    if args.step:
        what, name = args.step
        cell = by_name[name]
        files = Files(args.files, cell)
        if what == "data":
            write_data(cell, files.data)
        elif what == "export-open":
            path = files.graph(True)
            write_graph(cell, path.with_name(path.name.replace("_attention_fp16", "")), True)
        elif what == "export":
            path = files.graph(False) if cell.opened else files.graph(True).with_name(
                files.graph(True).name.replace("_attention_fp16", ""))
            write_graph(cell, path, False)
            if not cell.opened and not files.graph(False).exists():
                files.graph(False).write_bytes(path.read_bytes())
        else:
            measure_one(cell, what, args)
        return
    done = {(row["cell"], row["runner"]) for row in read_rows(args.results / TABLE) if row["run_id"] == args.run_id}
    todo = [(by_name[name], runner) for name in args.cell for runner in args.runner if (name, runner) not in done
            and not (name.startswith("swin_t_open") and runner in ("trt", "ort-cuda", "torch-compile-max"))
            and not (runner == "trt-open" and not by_name[name].opened)]
    begun, failed = time.monotonic(), []
    args.files.mkdir(parents=True, exist_ok=True)
    print(f"run {args.run_id}: {len(todo)} to measure", flush=True)
    for number, (cell, runner) in enumerate(todo, start=1):
        if time.monotonic() - begun > args.stop_after:
            print(f"stopped after {args.stop_after:.0f} s; go on with --run-id {args.run_id}")
            break
        print(f"[{number}/{len(todo)}] {cell.name} {runner}: ", end="", flush=True)
        try:
            print(measure(cell, runner, args), flush=True)
        except UserError as error:
            failed.append(f"{cell.name} {runner}")
            print(f"FAILED: {error}", flush=True)
    print(table_of(read_rows(args.results / TABLE)))
    if failed:
        raise UserError(f"{len(failed)} of {len(todo)} failed: {', '.join(failed)}")


if __name__ == "__main__":
    run_script(main)
