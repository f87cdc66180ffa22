"""TensorRT's calibration cache: what quant.py writes and TensorRT/build_engine.py --int8 --calib reads.

A first line `TRT-8600-EntropyCalibration2`, then a line `tensor: scale` for each tensor. Imports nothing but NumPy,
because the Python that has TensorRT often has no onnx.
"""
from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphs.files import LARGEST_MODEL
from utils import UserError, existing_file, shown, whole_file

# The class of calibrator that may read the file, whatever its scales come from: trtexec 8.6 and 10 and build_engine.py
# read it with IInt8EntropyCalibrator2. TensorRT takes a cache of another class, or of a version that it does not
# accept, for none, and calibrates anew: samples/sampleINT8/README.md of NVIDIA/TensorRT 8.2.
ALGORITHM = "EntropyCalibration2"
TENSORRT = "8.6.0"  # the version in the first line
ORIGIN = re.compile(r"swin_int8/(?P<method>\w+)/(?P<images>[0-9]{1,12})_images/(?P<graph>[0-9a-f]{32})")


@dataclass
class Cache:
    """What a calibration cache holds.

    Attributes:
        method: how the ranges were chosen: minmax, percentile or entropy.
        images: how many were calibrated on.
        graph: `fingerprint` of the FP32 graph whose tensors these are.
        scales: float32 by name of tensor, above zero.
    """

    method: str
    images: int
    graph: str
    scales: dict[str, np.float32]


def fingerprint(model, read_as: str = "") -> str:
    """32 hexadecimal digits that change with the graph of an onnx.ModelProto: with its operators, names or weights.

    Args:
        read_as: what was said of its images besides (--input-range, --layout): they are read in another way then.
    """
    digest = hashlib.sha256()
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= LARGEST_MODEL:
        digest.update(model.graph.SerializeToString(deterministic=True))
    else:
        for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
            digest.update(part.SerializeToString(deterministic=True))
    digest.update(read_as.encode())
    return digest.hexdigest()[:32]


def header(version: str) -> str:
    """The first line under a version of TensorRT 8, "8.6.0": its number is that of NvInferVersion.h, 8600."""
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    return f"TRT-{1000 * major + 100 * minor + patch}-{ALGORITHM}"


def cache_text(cache: Cache, version: str = TENSORRT) -> str:
    """TensorRT's text format: a header, then `tensor: scale` with the float32 as 8 hexadecimal digits.

    Source: samples/sampleINT8/README.md and readScalesFromCalibrationCache in samples/common/sampleEngines.cpp of
    NVIDIA/TensorRT. What this project wants to know besides, method, number of images and graph, is in the name of a
    tensor that no network has; TensorRT takes from a cache the tensors that it looks for.
    """
    origin = f"swin_int8/{cache.method}/{cache.images}_images/{cache.graph}"
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in {origin: 1.0, **cache.scales}.items()]
    return "\n".join([header(version), *lines]) + "\n"


def write_cache(path: Path, cache: Cache) -> None:
    """Write a cache for TensorRT 8.6.0."""
    with whole_file(path) as partial:
        partial.write_text(cache_text(cache))


def read_cache(path: Path) -> Cache:
    """What write_cache wrote.

    Raises:
        UserError: no such file, a line that does not parse, or one that quant.py did not write.
    """
    path = existing_file(path, "a calibration cache")
    remedy = "quant.py --recalibrate writes it anew"
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)}: is not a text file; {remedy}") from error
    if not re.fullmatch(rf"TRT-\d+-{ALGORITHM}", first):
        raise UserError(f"{shown(path)}:1: {first[:60]!r} is not the first line of a calibration cache, "
                        f"{header(TENSORRT)!r}; {remedy}")
    origin, scales = None, {}
    for number, line in enumerate(lines, start=2):
        name, _, digits = line.rpartition(": ")
        scale = np.float32(struct.unpack(">f", bytes.fromhex(digits))[0]) if (
            re.fullmatch(r"[0-9a-fA-F]{8}", digits)) else np.float32(np.nan)
        if not name or name in scales or not (np.isfinite(scale) and scale > 0):
            raise UserError(f"{shown(path)}:{number}: {line[:80]!r} is not `tensor: scale` with a positive float32 in "
                            f"8 hexadecimal digits, each tensor once; {remedy}")
        match = ORIGIN.fullmatch(name)
        if match:
            origin = match
        else:
            scales[name] = scale
    if origin is None:
        raise UserError(f"{shown(path)}: does not say which graph it was made for (quant.py writes that); {remedy}")
    return Cache(origin["method"], int(origin["images"]), origin["graph"], scales)
