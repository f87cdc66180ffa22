"""Decode and resize images on the GPU by NVIDIA DALI, beside the engine that classifies them. An extra:

    pip install nvidia-dali-cuda130         # for CUDA 13; nvidia-dali-cuda120 for CUDA 12

DALI and not nvImageCodec by itself: DALI decodes by nvImageCodec, and resizes, crops, normalises and reads ahead as
well; nvImageCodec has no resizing. Image files go from the disk to the GPU as they are, and the engine reads what DALI
has made where it lies.

Sizes and crops are those of data/images.py to the pixel. Numbers are not: nvJPEG decodes JPEG otherwise than
libjpeg-turbo, and DALI resizes in FP32. What that does to the logits, and how fast it is, examples/classify_rates.py
measures.

Documentation: https://docs.nvidia.com/deeplearning/dali/user-guide/docs/
"""
from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphs.pictures import Picture
from inference.classifiers import Classifier, EngineClassifier
from utils import UserError, first_line, shown

# Share of JPEG images that go to the GPU's JPEG engines, the rest being decoded by CUDA kernels. DALI's own default.
HARDWARE_SHARE = 0.65
REMEDY = "pip install nvidia-dali-cuda130 (CUDA 13) or nvidia-dali-cuda120 (CUDA 12)"
SQUEEZED_FROM = 384  # pixels; see data.images.resize_and_crop


def installed() -> bool:
    """Whether this Python has DALI."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def described() -> str:
    """How images are decoded, in words.

    Raises:
        UserError: this Python has no DALI, or it does not load.
    """
    if not installed():
        raise UserError(f"{sys.executable}: has no NVIDIA DALI; {REMEDY}, or give --decoder pillow")
    try:
        from nvidia import dali
    except (ImportError, OSError) as error:
        raise UserError(f"{sys.executable}: cannot load NVIDIA DALI ({first_line(error)}); install the one for this "
                        "CUDA, or give --decoder pillow") from error
    return f"decoded and resized on the GPU by DALI {dali.__version__}"


def pipeline(files: Sequence[Path], picture: Picture, batch: int, device_id: int | None, threads: int) -> Any:
    """A DALI pipeline that gives batches of images as a model reads them, and the numbers of their files.

    Args:
        files: images, in the order in which they come out; the last batch is filled up with the last of them.
        picture: what the model reads.
        device_id: the GPU; None to do all of it on the CPU.
        threads: CPU threads.
    Raises:
        UserError: the model reads grey images.
    """
    from nvidia.dali import fn, math, pipeline_def, types

    if picture.channels != 3:
        raise UserError("this model reads grey images; give --decoder pillow")
    high, wide = picture.size
    unit = {"normalised": (255 * np.array(picture.mean), 255 * np.array(picture.std)),
            "0..1": (np.zeros(3), np.full(3, 255.0)), "0..255": (np.zeros(3), np.ones(3))}
    mean, std = unit[picture.range]
    kinds = {"float32": types.FLOAT, "float16": types.FLOAT16, "uint8": types.UINT8}

    @pipeline_def(batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=2)
    def images():
        encoded, number = fn.readers.file(files=[str(path) for path in files], pad_last_batch=True, name="files")
        decoded = fn.decoders.image(
            encoded, device="cpu" if device_id is None else "mixed", hw_decoder_load=HARDWARE_SHARE,
            output_type=types.RGB if picture.colour == "RGB" else types.BGR,
            adjust_orientation=False, jpeg_fancy_upsampling=True)  # both as Pillow does it
        shape = fn.peek_image_shape(encoded, adjust_orientation=False)
        # Integers of 64 bits: // rounds down, as int() of a quotient does in data.images.resize_and_crop.
        tall, broad = fn.cast(shape[0], dtype=types.INT64), fn.cast(shape[1], dtype=types.INT64)
        if min(high, wide) >= SQUEEZED_FROM:
            to_x, to_y, at_x, at_y = wide, high, 0.0, 0.0
        else:
            least_y, least_x = int(256 / 224 * high), int(256 / 224 * wide)
            new_y = math.max(least_x * tall // broad, least_y)
            new_x = math.max(least_y * broad // tall, least_x)
            to_x, to_y = fn.cast(new_x, dtype=types.FLOAT), fn.cast(new_y, dtype=types.FLOAT)
            at_x, at_y = _crop_position(math, new_x, wide), _crop_position(math, new_y, high)
        resized = fn.resize(decoded, resize_x=to_x, resize_y=to_y, interp_type=types.INTERP_CUBIC, antialias=True)
        made = fn.crop_mirror_normalize(
            resized, crop=(high, wide), crop_pos_x=at_x, crop_pos_y=at_y, mean=list(mean), std=list(std),
            dtype=kinds[picture.type.name], output_layout="HWC" if picture.layout == "NHWC" else "CHW")
        return made, number

    return images()


def _crop_position(math: Any, size: Any, crop: int) -> Any:
    """Where DALI begins to crop, as a share of what is cropped off: round(off / 2), halves to the even side."""
    off = size - crop
    start = off // 2 + (off - off // 4 * 4) // 3  # of remainder 3 the half lies above an odd number
    return start / math.max(off, 1)


def by_dali(classifier: Classifier, paths: Sequence[Path], batch: int) -> Iterator[tuple[Path, np.ndarray]]:
    """The files and their logits, in order; decoded and resized on the engine's GPU.

    Args:
        classifier: an engine's.
        paths: image files.
        batch: how many are run at a time.
    Raises:
        UserError: the model is no engine; DALI cannot decode one of the files, or has no GPU.
    """
    if not isinstance(classifier, EngineClassifier):
        raise UserError(f"--decoder dali: goes with an engine, which {shown(classifier.path)} is not")
    from inference.pipeline import cores
    from TensorRT.trt_runtime import cuda, cudart

    classifier.prepare(batch)
    try:
        pipe = pipeline(paths, classifier.picture, batch, cuda(cudart.cudaGetDevice), cores())
        pipe.build()
        before: tuple[Any, Sequence[Path]] | None = None  # runs while the next batch is decoded
        for index, start in enumerate(range(0, len(paths), batch)):
            context = classifier.contexts[index % len(classifier.contexts)]
            images, _ = pipe.run()
            images.as_tensor().copy_to_external(
                ctypes.c_void_p(int(context.buffers[classifier.engine.input])),
                cuda_stream=ctypes.c_void_p(int(context.stream)), non_blocking=False)
            context.run()
            if before:
                yield from zip(before[1], classifier.logits(before[0]))
            before = context, paths[start:start + batch]
        if before:
            yield from zip(before[1], classifier.logits(before[0]))
    except RuntimeError as error:  # DALI's errors have no class of their own, and some name the file
        raise UserError(f"DALI: {' '.join(str(error).split())[:400]}; --decoder pillow names each file that is no "
                        "image and goes on") from error
