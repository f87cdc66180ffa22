"""Batches of images: real ones, and those of .npz files with the outputs expected of them."""
from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data.images import list_images, load_image, preprocess
from data.photo_crops import held_out_batch
from graphs.compare import max_abs_err
from utils import ROOT, UserError, existing_file, shown


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
        return held_out_batch(count, img_size)[0]
    paths = list_images(folder)
    if len(paths) < count:
        raise UserError(f"{folder}: holds {len(paths)} images, {count} are needed; add images or ask for fewer")
    return np.stack([preprocess(load_image(paths[i * len(paths) // count]), img_size) for i in range(count)])


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
