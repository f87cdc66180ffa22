"""What two scripts or more share: one-line errors, whole files, preprocessing, error figures, timing, CSV rows.

Imports the standard library and numpy alone at module level, and runs on Python 3.9, because the Python that
has TensorRT is often not the one that has torch.
"""
from __future__ import annotations

import argparse
import csv
import fcntl
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "Results"

LATENCY_COLUMNS = (
    "run_id", "commit", "gpu", "runner", "model", "precision", "batch", "latency_ms_median", "latency_ms_p99",
    "images_per_s", "max_abs_err", "median_rel_err", "top1_agreement", "notes",
)
ACCURACY_COLUMNS = (
    "run_id", "commit", "gpu", "model", "weights", "engine", "precision", "batch", "max_abs_err", "median_rel_err",
    "torch_max_abs_err", "top1", "top1_torch", "agreement",
)


class UserError(Exception):
    """A mistake of the user's or of a file: one line that names the file, the problem and the remedy."""


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main(): a UserError or an OSError becomes one line on stderr and exit status 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"{Path(sys.argv[0]).name}: error: {where}{error.strerror or error}")


@contextmanager
def about(path: str | Path) -> Iterator[None]:
    """Puts the path of a file in front of a UserError that is raised inside and does not name it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from error


def existing_file(path: str | Path, what: str) -> Path:
    """The path, if a file is there; UserError that names `what` was looked for otherwise."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not {what}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of {what}")
    return path


def load_arrays(path: str | Path, names: Sequence[str], what: str, remedy: str) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by their names; all where `names` is empty.

    Raises:
        UserError: no file is there, or it is not one, or truncated, or lacks an array; ends in `remedy`.
    """
    try:
        with np.load(existing_file(path, f"{what} ({remedy})")) as arrays:
            return {name: arrays[name] for name in names or arrays.files}
    except KeyError as error:
        raise UserError(f"{shown(path)}: lacks an array ({error.args[0]}); {remedy}") from error
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise UserError(f"{shown(path)}: is not {what}, or a truncated one; {remedy}") from error


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the name `path` only if the block succeeds.

    A reader never sees half a file, and an old file survives a failed write.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be written there ({error.strerror}); give another place") from error
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        if error.filename not in (None, name):
            raise  # about another file, which the block was reading
        raise UserError(f"{shown(path)}: could not be written ({error.strerror}); nothing was left behind") from error
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Find out before long work whether whole_file could write `path` after it. Leaves nothing behind.

    Raises:
        UserError: a folder of that name is there, or the folder that it would lie in cannot be written to or made.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{shown(path)}: is a folder, not a file; give another place")
    there = next(folder for folder in path.resolve().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be written there ({error.strerror}); give another place") from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside this for the same folder: for files that several add to at once."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # and with it the lock


def batch_sizes(text: str) -> list[int]:
    """What a --batch flag takes: whole numbers above zero with commas between them, e.g. "1,32,128".

    Raises:
        UserError: the text is anything else.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{text!r}: not a list of batch sizes; give whole numbers above zero, such as 1,32,128")
    return [int(part) for part in parts]


def from_one(text: str) -> int:
    """What a flag takes that is a number of things: a whole number above zero.

    Raises:
        UserError: the text is anything else.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise UserError(f"{text!r}: not a whole number above zero; give one such as 8")
    return int(text)


def from_zero(text: str) -> float:
    """What a flag takes that is a limit or a time: a finite number that is not below zero.

    Raises:
        UserError: the text is anything else.
    """
    with suppress(ValueError):
        if 0 <= float(text) < math.inf:  # not so of NaN
            return float(text)
    raise UserError(f"{text!r}: not a finite number from zero up; give one such as 0.5")


def choices(text: str, allowed: tuple[str, ...]) -> list[str]:
    """What a flag takes that names some of `allowed`, with commas between them.

    Raises:
        UserError: one of them is not allowed.
    """
    for part in text.split(","):
        if part not in allowed:
            raise UserError(f"{part!r}: unknown; choose from {','.join(allowed)}")
    return text.split(",")


def shown(path: str | Path) -> str:
    """The path as it is printed: relative to the repository where it lies inside it."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


# --- names of engines ----------------------------------------------------------------------------------------


def engine_precision(name: str) -> str:
    """int8, fp16, bf16 or fp32: what build scripts put into an engine's name."""
    return next((precision for precision in ("int8", "fp16", "bf16") if f"_{precision}" in name), "fp32")


def unpatched_engine(name: str) -> str:
    """The name of the engine that a patched one is compared with; of an unpatched engine, its own name."""
    return name.replace("_attention", "").replace("_layernorm", "")


def belongs_to(name: str, model: str) -> bool:
    """Whether a graph or engine is of a model by its name: MODEL.NAME, or that and what was done to it.

    swinv1_attention_fp16 is of swinv1; swinv1_micro_fp16 and swinv1_base_patch4_window7_224 are other variants' names.
    """
    rest = name.removeprefix(model)
    variants = ("_micro", "_tiny", "_small", "_base", "_large")
    return name == model or (name.startswith(f"{model}_") and not rest.startswith(variants))


# --- images --------------------------------------------------------------------------------------------------

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def list_images(folder: str | Path) -> list[Path]:
    """The image files of a folder and of the folders in it (ImageNet layout, or flat), sorted by their path in it.

    A file is an image by its suffix (IMAGE_SUFFIXES, in any case). Hidden files and folders are left out.

    Raises:
        UserError: the folder is missing, is not one, or holds no image.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; give a folder of images")
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give a folder of images")
    inside = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    images = [folder / name for name in sorted(inside, key=lambda name: name.as_posix())
              if not any(part.startswith(".") for part in name.parts) and (folder / name).is_file()]
    if not images:
        raise UserError(f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)}); give a folder of images")
    return images


def load_image(path: str | Path):
    """Read an image file as an 8-bit RGB PIL.Image, as torchvision's loader does: Image.open(path).convert("RGB").

    So an EXIF rotation is not applied, transparency is dropped, grey becomes three equal channels, and CMYK and
    palette colours become RGB. Files of 16-bit grey differ on purpose: Pillow's conversion clips them at 255, which
    leaves a white picture; here 0..65535 becomes 0..255.

    Raises:
        UserError: no such file, not an image, truncated, or pixels without a fixed range (floats, 32-bit integers).
    """
    from PIL import Image

    path = existing_file(path, "an image")
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise UserError(f"{path}: has float pixels, whose range is unknown; save it with 8 or 16 bits")
            if image.mode != "I" and not image.mode.startswith("I;16"):
                return image.convert("RGB")
            grey = np.asarray(image).astype(np.int64)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error}); replace or remove it") from error
    if grey.min() < 0 or grey.max() > 65535:
        raise UserError(f"{path}: has 32-bit pixels, whose range is unknown; save it with 8 or 16 bits")
    return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")


def resize_and_crop(image, img_size: int) -> np.ndarray:
    """A PIL.Image to uint8 [img_size, img_size, 3], as the evaluation transform of the official code does it.

    Bicubic to 256/224 of the size on the shorter side, then the centre; the official configurations at 384 set
    TEST.CROP to False instead: the whole image, squeezed to the square. Source: data/build.py and configs/ of
    microsoft/Swin-Transformer; rounding as in torchvision's Resize and CenterCrop.
    """
    from PIL import Image

    if img_size >= 384:
        return np.asarray(image.resize((img_size, img_size), Image.Resampling.BICUBIC))
    short = int(256 / 224 * img_size)
    image = image.resize([int(short * side / min(image.size)) for side in image.size], Image.Resampling.BICUBIC)
    left, top = round((image.width - img_size) / 2), round((image.height - img_size) / 2)
    return np.asarray(image.crop((left, top, left + img_size, top + img_size)))


def normalise(pixels: np.ndarray) -> np.ndarray:
    """uint8 [..., S, S, 3] to float32 [..., 3, S, S]: divided by 255, ImageNet's mean taken off, over its std."""
    mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
    return np.ascontiguousarray(np.moveaxis((pixels.astype(np.float32) / np.float32(255) - mean) / std, -1, -3))


def preprocess(image, img_size: int) -> np.ndarray:
    """A PIL.Image in RGB to what the models read: float32 [3, img_size, img_size], normalised."""
    return normalise(resize_and_crop(image, img_size))


def real_images(count: int, img_size: int, folder: str | Path | None = None) -> np.ndarray:
    """`count` real images as a model reads them: float32 [count, 3, S, S] normalised. Deterministic.

    Args:
        count: how many.
        img_size: S, in pixels.
        folder: take them from here, evenly spaced over its files in order, so that all classes of an ImageNet layout
            have their share; None takes held-out crops of the packaged photographs.
    Raises:
        UserError: no such folder, fewer images in it than `count`, or one that cannot be read.
    """
    if folder is None:
        from data.photo_crops import held_out_batch

        return held_out_batch(count, img_size)[0]
    paths = list_images(folder)
    if len(paths) < count:
        raise UserError(f"{folder}: holds {len(paths)} images, {count} are needed; add images or ask for fewer")
    return np.stack([preprocess(load_image(paths[i * len(paths) // count]), img_size) for i in range(count)])


# --- errors against a reference ------------------------------------------------------------------------------


def max_abs_err(output: np.ndarray, reference: np.ndarray) -> float:
    """max |output - reference|; NaN if either holds a NaN."""
    return float(np.max(np.abs(output.astype(np.float64) - reference.astype(np.float64))))


def median_rel_err(output: np.ndarray, reference: np.ndarray) -> float:
    """Median over all elements of |output - reference| / |reference| (elements where the reference is 0 left out)."""
    output, reference = output.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    nonzero = reference != 0
    return float(np.median(np.abs(output - reference)[nonzero] / np.abs(reference[nonzero])))


def top1_agreement(output: np.ndarray, reference: np.ndarray) -> float:
    """Share of rows, 0 to 1, whose largest logit is the same class in both. A row with a NaN never agrees."""
    same = output.argmax(axis=-1) == reference.argmax(axis=-1)
    return float(np.mean(same & np.isfinite(output).all(axis=-1)))


def error_figures(output: np.ndarray, reference: np.ndarray) -> dict[str, str]:
    """The error columns of Results/latency.csv."""
    return {
        "max_abs_err": f"{max_abs_err(output, reference):.3e}",
        "median_rel_err": f"{median_rel_err(output, reference):.3e}",
        "top1_agreement": f"{top1_agreement(output, reference):.4f}",
    }


def reference_batch(model: str, batch: int, img_size: int, fp32_logits: Callable[[np.ndarray], np.ndarray],
                    data: str | Path = ROOT / "data") -> tuple[np.ndarray, np.ndarray]:
    """What a latency is measured on, and compared with: images float32 [batch, 3, S, S] and their FP32 logits.

    They are those of data/<model>-b<batch>.npz, where that file is there; else held-out crops and what `fp32_logits`
    says of them.

    Args:
        model: stem of the FP32 ONNX file.
        batch: number of images.
        img_size: S, in pixels.
        fp32_logits: the FP32 model that is measured: images -> float32 [N, num_classes].
        data: folder of the npz files.
    Raises:
        UserError: the npz file is of another model, size or checkpoint.
    """
    path = Path(data) / f"{model}-b{batch}.npz"
    if not path.exists():
        images = real_images(batch, img_size)
        return images, fp32_logits(images)
    stored = load_arrays(path, ("input", "logits"), "batch data", "write it with data/batch_data_gen.py, or remove it")
    images, logits = stored["input"], stored["logits"]
    first = fp32_logits(images[:1]) if images.shape == (batch, 3, img_size, img_size) else None
    # FP32 implementations differ by some 1e-6 of the largest logit; other weights by as much as the logits themselves.
    if first is None or first.shape != logits[:1].shape or (
            max_abs_err(first, logits[:1]) > 1e-3 * float(np.abs(logits).max())):
        raise UserError(f"{shown(path)}: its input or logits are not those of the model measured; write it again with "
                        "data/batch_data_gen.py, or remove it")
    return images, logits


# --- ONNX files ----------------------------------------------------------------------------------------------

PLUGIN_DOMAIN = "swin"  # of the nodes that the TensorRT plugins implement
FP32_LAYER = "/fp32"  # ends the names of nodes that stay FP32 in an FP16 graph by choice


def load_onnx(path: str | Path):
    """The onnx.ModelProto in a file.

    Raises:
        UserError: no such file, not an ONNX file, or its weights lie in another file that is missing.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = existing_file(path, "an ONNX file (onnx/export_onnx.py writes one)")
    remedy = "write it again with onnx/export_onnx.py"
    try:
        model = onnx.load(str(path), format="protobuf")
    except DecodeError as error:
        raise UserError(f"{shown(path)}: is not an ONNX file, or a truncated one; {remedy}") from error
    except (onnx.checker.ValidationError, FileNotFoundError) as error:
        raise UserError(f"{shown(path)}: its external weights cannot be read ({error}); {remedy}") from error
    # Protobuf reads an empty file, and some files of other kinds, as a model without content.
    if not model.graph.node or not model.graph.input or not model.opset_import:
        raise UserError(f"{shown(path)}: is not an ONNX file: no graph in it; {remedy}")
    return model


def onnx_target(path: Path) -> Path:
    """The path to write a graph to, as --output gives it or by default.

    Raises:
        UserError: it is not the name of an ONNX file.
    """
    if path.suffix != ".onnx" or path.is_dir():
        raise UserError(f"{shown(path)}: not the name of an ONNX file; let --output end with .onnx")
    return path


def onnx_precision(model) -> str:
    """What the graph of an onnx.ModelProto computes in: int8 (it quantizes), fp16, bf16 or fp32."""
    from onnx import TensorProto

    if any(node.op_type == "QuantizeLinear" or node.op_type.endswith("Int8") for node in model.graph.node):
        return "int8"
    types = {tensor.data_type for tensor in model.graph.initializer}
    types |= {attribute.i for node in model.graph.node if node.op_type == "Cast" for attribute in node.attribute
              if attribute.name == "to"}
    return "fp16" if TensorProto.FLOAT16 in types else "bf16" if TensorProto.BFLOAT16 in types else "fp32"


def has_plugins(model) -> bool:
    """Whether the graph of an onnx.ModelProto holds nodes that only this project's TensorRT plugins implement."""
    return any(node.domain == PLUGIN_DOMAIN for node in model.graph.node)


def onnx_refusals() -> tuple[type[Exception], ...]:
    """What onnxruntime raises for a model that it cannot load or run."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented,
            state.RuntimeException, state.EPFail)


def onnx_session(path: str | Path, providers: Sequence[str | tuple[str, dict]] = ("CPUExecutionProvider",),
                 batch: int | None = None):
    """An onnxruntime.InferenceSession on an ONNX file; plugin nodes run as the standard operators that they stand for.

    Args:
        path: the file.
        providers: onnxruntime's execution providers, best first, each a name or (name, options). All must be there:
            onnxruntime itself would go on without.
        batch: fixes a batch that the file leaves open, so that what is computed of shapes becomes constant.
    Raises:
        UserError: what load_onnx raises; a provider that this machine lacks; a graph that onnxruntime refuses.
    """
    model = load_onnx(path)
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("onnxruntime is not installed; pip install -r requirements.txt") from error
    names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
    available = onnxruntime.get_available_providers()
    for name in names:
        if name not in available:
            raise UserError(f"{name} is not in the installed onnxruntime {onnxruntime.__version__}, which has "
                            f"{', '.join(available)}; for CUDA, replace it by onnxruntime-gpu")
    source = str(path)
    if has_plugins(model):
        folder = str(ROOT / "onnx" / "graphsurgeon")
        if folder not in sys.path:
            sys.path.insert(1, folder)
        from reference import expand

        source = expand(model).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; warnings are about its own optimisations
    # Q/DQ pairs in FP32 as they are written: INT8 products saturate at 16 bits on x86 processors without VNNI.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    first_axis = model.graph.input[0].type.tensor_type.shape.dim[:1]
    if batch is not None and first_axis and first_axis[0].dim_param:
        options.add_free_dimension_override_by_name(first_axis[0].dim_param, batch)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=list(providers))
    except onnx_refusals() as error:
        raise UserError(f"{shown(path)}: onnxruntime refuses it: {first_line(error)}") from error
    if session.get_providers()[:len(names)] != names:
        raise UserError(f"{names[0]} is installed but does not start (it runs {', '.join(session.get_providers())}); "
                        "the CUDA and cuDNN libraries it needs are missing, or there is no GPU")
    return session


def onnx_img_size(session, path: str | Path) -> int:
    """Side S in pixels of the images that a session takes, its input being [batch, 3, S, S].

    Raises:
        UserError: the input has another shape, or its size is not fixed.
    """
    shape = session.get_inputs()[0].shape
    if len(shape) != 4 or shape[1] != 3 or not isinstance(shape[2], int) or shape[2] != shape[3]:
        raise UserError(f"{shown(path)}: takes input {shape}, not images [batch, 3, S, S] of a fixed size S; "
                        "give a classification model from onnx/export_onnx.py")
    return shape[2]


def onnx_logits(session, images: np.ndarray, path: str | Path) -> np.ndarray:
    """The first output, [N, num_classes], of a session for images [N, 3, S, S], both float32.

    Raises:
        UserError: the images do not fit the session's input, or onnxruntime does not run the graph at this batch.
    """
    wanted = session.get_inputs()[0]
    if len(wanted.shape) != images.ndim or any(isinstance(size, int) and size != actual
                                               for size, actual in zip(wanted.shape, images.shape)):
        raise UserError(f"{shown(path)}: takes input {wanted.shape}, which {list(images.shape)} does not fit; "
                        "export it again with the right --cfg and a dynamic batch")
    try:
        return session.run(None, {wanted.name: images})[0]
    except onnx_refusals() as error:
        raise UserError(f"{shown(path)}: onnxruntime does not run it at batch {len(images)}: "
                        f"{first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line that says something of an error's message; the kind of error where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# --- timing --------------------------------------------------------------------------------------------------


def timed_runs(run_once_ms: Callable[[], float], *, warmup_runs: int = 10, warmup_s: float | None = None,
               min_runs: int = 100, min_s: float = 2.0) -> np.ndarray:
    """Times of single runs in milliseconds, under the one protocol that every runner here is measured with.

    Warms up, for `warmup_s` seconds or, where that is None, 0.5, but no more than is asked for measuring. Then measures
    until both `min_runs` runs and `min_s` seconds are done. A runner so slow that this would take longer than ten times
    `min_s` stops there, with at least 10 runs (fewer only if `min_runs` is). `run_once_ms` does one run and returns its
    time (CUDA events on a GPU, a clock on a CPU).
    """
    warmup_runs = min(warmup_runs, min_runs)
    warmup_s = min(0.5, min_s) if warmup_s is None else warmup_s
    start, runs = time.perf_counter(), 0
    while runs < warmup_runs or time.perf_counter() - start < warmup_s:
        run_once_ms()
        runs += 1
        if runs >= 3 and time.perf_counter() - start > max(4 * min_s, warmup_s):
            break
    times: list[float] = []
    start = time.perf_counter()
    while True:
        times.append(run_once_ms())
        seconds = time.perf_counter() - start
        if (len(times) >= min_runs and seconds >= min_s) or (seconds >= 10 * min_s and len(times) >= min(10, min_runs)):
            return np.array(times)


def add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the latency scripts: --batch --data --results, and those of add_timing_arguments."""
    parser.add_argument("--batch", type=batch_sizes, default=[1, 32, 128], metavar="N,N",
                        help="batch sizes (default: 1,32,128)")
    parser.add_argument("--data", type=Path, default=ROOT / "data", metavar="DIR",
                        help="folder of <model>-b<N>.npz files; where there is none for a batch, held-out crops are "
                             "used (default: data/)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR",
                        help="folder of latency.csv and environment/ (default: Results/)")
    add_timing_arguments(parser)


def add_timing_arguments(parser: argparse.ArgumentParser, warmup_s: float | None = None) -> None:
    """Add how long is measured: --min-seconds --min-runs --warmup-seconds, of which `warmup_s` is the default."""
    parser.add_argument("--min-seconds", type=from_zero, default=2.0, metavar="S",
                        help="measure each row for at least this long (default: 2)")
    parser.add_argument("--min-runs", type=int, default=100, metavar="N",
                        help="and for at least this many runs, unless that takes ten times --min-seconds "
                             "(default: 100)")
    usual = "0.5, or --min-seconds where that is less" if warmup_s is None else f"{warmup_s:g}"
    parser.add_argument("--warmup-seconds", type=from_zero, default=warmup_s, metavar="S",
                        help=f"run each row for this long before it is measured (default: {usual})")


def timing_of(args: argparse.Namespace) -> dict[str, float | None]:
    """What add_timing_arguments' flags say, as arguments of timed_runs."""
    return {"min_runs": args.min_runs, "min_s": args.min_seconds, "warmup_s": args.warmup_seconds}


def latency_figures(times_ms: np.ndarray, batch: int) -> dict[str, str]:
    """The latency columns of Results/latency.csv: median and p99 in ms, and images/s at the median."""
    median = float(np.median(times_ms))
    return {
        "latency_ms_median": f"{median:.4f}",
        "latency_ms_p99": f"{float(np.percentile(times_ms, 99)):.4f}",
        "images_per_s": f"{1000 * batch / median:.1f}",
    }


# --- rows of Results/*.csv -----------------------------------------------------------------------------------


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


def record_latency(results: Path, row: dict) -> None:
    """Append one row to <results>/latency.csv and print it."""
    append_rows(results / "latency.csv", LATENCY_COLUMNS, [row])
    print(f"{row['runner']:<13} {row['model']} {row['precision']} b{row['batch']:<4} "
          f"{float(row['latency_ms_median']):>9.3f} ms  p99 {float(row['latency_ms_p99']):>9.3f} ms  "
          f"{float(row['images_per_s']):>9.1f} images/s  max abs err {row['max_abs_err']}  "
          f"median rel err {row['median_rel_err']}  top-1 {float(row['top1_agreement']):.1%}  [{row['notes']}]",
          flush=True)


def append_rows(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    """Append rows to a CSV table, writing its heading first where the file is new. Several processes may do so at once.

    Raises:
        UserError: the file there has other columns.
    """
    with alone_in(path.parent):
        old = path.read_text() if path.exists() else ""
        if old and tuple(old.splitlines()[0].split(",")) != columns:
            raise UserError(f"{shown(path)}: has other columns than {','.join(columns)}; move it away")
        with whole_file(path) as partial, partial.open("w", newline="") as file:
            file.write(old if not old or old.endswith("\n") else f"{old}\n")  # a last line edited by hand may lack it
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            if not old:
                writer.writeheader()
            writer.writerows(rows)


def latency_rows(results: Path, run_id: str | None = None) -> list[dict[str, str]]:
    """The rows of <results>/latency.csv, of one run or of all; none where there is no such file."""
    path = results / "latency.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if run_id in (None, row["run_id"])]


def row_problem(row: dict[str, str]) -> str:
    """Why the speed in a row of latency.csv does not count: its output is not right; "" where it does.

    Finite logits are asked of every runner, and of an engine with this project's plugins that its check was good.
    """
    if not math.isfinite(float(row["max_abs_err"])):
        return "NaN or infinity in the output"
    if row["runner"] == "trt-plugins" and not row["notes"].endswith("; good"):
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
