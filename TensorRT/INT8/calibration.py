"""Ranges of activations: collected over images with onnxruntime; calibration_cache.py keeps them.

The scale of a tensor is amax / 127, amax being the magnitude that its INT8 form reaches: the largest seen (minmax), the
one below which a share of all elements lies (percentile), or the one at which the clipped and rounded distribution
differs least from the original (entropy; Migacz, 8-bit inference with TensorRT, GTC 2017). Histograms and the search
in them are onnxruntime.quantization's. Batches are collected one by one, so that memory holds the quantised tensors of
one batch.
"""
from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.quantization.calibrate import HistogramCollector

from data.images import list_images, load_image, resize_and_crop
from data.photo_crops import crops
from graphs.facts import precision_of
from graphs.files import has_plugins, load_onnx, onnx_refusals
from graphs.pictures import Picture
from graphs.sessions import session_of
from utils import Progress, UserError, first_line, shown

METHODS = ("entropy", "minmax", "percentile")
LEVELS = 127             # INT8 magnitudes above zero: -128 is left out, as TensorRT does
# Of a histogram's first batch; later ones that reach further add to them. The search of entropy takes their square.
BINS = {"entropy": 1024, "percentile": 8192}


def fp32_model(path: Path) -> onnx.ModelProto:
    """The model to quantise.

    Raises:
        UserError: it is quantised, patched or not in FP32.
    """
    model = load_onnx(path)
    precision = precision_of(model)
    if precision == "int8":
        raise UserError(f"{shown(path)}: is quantised already; give the FP32 graph that it was made from")
    if has_plugins(model):
        raise UserError(f"{shown(path)}: holds plugin nodes; give the unpatched graph (add_int8.py patches it later)")
    if precision != "fp32":
        raise UserError(f"{shown(path)}: is in {precision.upper()}; give the FP32 graph")
    return model


# --- images --------------------------------------------------------------------------------------------------


def image_batches(folder: Path | None, batches: int, batch_size: int, wanted: Picture) -> Iterator[np.ndarray]:
    """`batches` arrays of `batch_size` images as a graph reads them: training crops of the packaged photographs, or
    images of a folder, evenly spaced over it.

    Raises:
        UserError: no such folder, fewer images in it than asked for, one that cannot be read, or one of one colour.
    """
    count = batches * batch_size
    if folder is None:
        pixels = crops("train", count, wanted.size)[0]
        for start in range(0, count, batch_size):
            yield wanted.of(pixels[start:start + batch_size])
        return
    paths = list_images(folder)
    if len(paths) < count:
        raise UserError(f"{folder}: holds {len(paths)} images, {batches} batches of {batch_size} need {count}; "
                        "add images, or lower --calibration-batches")
    chosen = [paths[i * len(paths) // count] for i in range(count)]
    for start in range(0, count, batch_size):
        yield wanted.of(np.stack([_calibration_image(path, wanted) for path in chosen[start:start + batch_size]]))


def _calibration_image(path: Path, wanted: Picture) -> np.ndarray:
    """uint8 [H, W, 3]"""
    pixels = resize_and_crop(load_image(path), wanted.size)
    if not np.ptp(pixels, axis=(0, 1)).any():
        raise UserError(f"{path}: is of one colour, which says nothing about the model's activations; remove it")
    return pixels


def batch_size_of(wanted: Picture, asked: int | None, usual: int) -> int:
    """Images at a time: --batch-size, or the usual number; what the graph takes where its batch is fixed.

    Raises:
        UserError: another batch is asked for than the graph takes.
    """
    if wanted.batch is None:
        return asked or usual
    if asked not in (None, wanted.batch):
        raise UserError(f"takes batches of {wanted.batch} alone, not of --batch-size {asked}; leave that out")
    return wanted.batch


def add_provider_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--provider", choices=("auto", "cpu", "cuda"), default="auto",
                        help="what onnxruntime runs on (default: the GPU where it can)")


def execution_provider(name: str) -> str:
    """onnxruntime's name of cpu or cuda; auto takes CUDA where it is installed."""
    cuda = "CUDAExecutionProvider"
    if name == "auto":
        name = "cuda" if cuda in onnxruntime.get_available_providers() else "cpu"
    return cuda if name == "cuda" else "CPUExecutionProvider"


def relative_rms(actual: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference, as a share of that of `expected`."""
    difference = actual.astype(np.float64) - expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(np.square(expected, dtype=np.float64))))


# --- collecting ----------------------------------------------------------------------------------------------


def session_with_outputs(model: onnx.ModelProto, tensors: list[str], provider: str) -> onnxruntime.InferenceSession:
    """A session whose outputs are these float32 tensors of the graph.

    Raises:
        UserError: onnxruntime refuses the graph, or does not have the provider.
    """
    if provider not in onnxruntime.get_available_providers():
        raise UserError(f"{provider} is not in the installed onnxruntime {onnxruntime.__version__}; for CUDA, replace "
                        "it by onnxruntime-gpu")
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    probed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    try:
        return session_of(probed, [provider])
    except onnx_refusals() as error:
        raise UserError(f"onnxruntime refuses it: {first_line(error)}") from error


def collect(model: onnx.ModelProto, tensors: list[str], images: Iterator[np.ndarray], batches: int, method: str,
            percentile: float, provider: str) -> dict[str, np.float32]:
    """amax of each tensor over `batches` batches of images; prints how far it is.

    Args:
        model: FP32 graph.
        tensors: names of float32 tensors in it.
        images: the batches, as the graph reads them.
        batches: how many they are.
        method: of METHODS.
        percentile: share of elements in percent, above 50, that stays below amax; only for that method.
        provider: of onnxruntime.
    Raises:
        UserError: an activation is not finite; what the images raise.
    """
    session = session_with_outputs(model, tensors, provider)
    name = session.get_inputs()[0].name
    collector = HistogramCollector(method, symmetric=False, num_bins=BINS.get(method, 1),
                                   num_quantized_bins=2 * LEVELS + 1, percentile=percentile, scenario="same")
    largest = dict.fromkeys(tensors, np.float32(0))
    progress = Progress(batches, "batches")
    for batch in images:
        arrays = dict(zip(tensors, session.run(None, {name: batch})))
        for tensor, array in arrays.items():
            magnitude = np.maximum(array.max(), -array.min())
            if not np.isfinite(magnitude):
                raise UserError(f"{tensor} holds NaN or infinity on calibration images; check the model's weights")
            largest[tensor] = max(largest[tensor], magnitude)
        if method != "minmax":
            with redirect_stdout(io.StringIO()):  # it prints a line for each batch
                collector.collect({tensor: array for tensor, array in arrays.items() if largest[tensor] > 0})
        progress.done()
    if method == "minmax":
        return largest
    amax = dict(largest)
    progress = Progress(len(collector.histogram_dict), "thresholds")
    for tensor, histogram in collector.histogram_dict.items():
        one = HistogramCollector(method, False, 1, collector.num_quantized_bins, percentile, "same")
        one.histogram_dict = {tensor: histogram}
        with redirect_stdout(io.StringIO()):
            low, high, *_ = one.compute_collection_result()[tensor]
        amax[tensor] = np.float32(min(largest[tensor], max(abs(low), abs(high))))  # symmetric, and no more than seen
        progress.done()
    return amax


def scale_of(amax: np.float32) -> np.float32:
    """amax / 127; 1 for a tensor that was zero throughout."""
    return np.float32(amax / np.float32(LEVELS)) if amax > 0 else np.float32(1)
