"""Batches of images: real ones, and those of .npz files with the outputs expected of them."""
from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from data.images import list_images, load_image, normalise, resize_and_crop
from data.photo_crops import crops
from graphs.compare import max_abs_err
from graphs.facts import Facts, of_text
from utils import ROOT, UserError, existing_file, shown, whole_file

# What numpy and zipfile raise for files that are no archives of arrays, or broken ones.
NOT_AN_NPZ = (ValueError, zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError, EOFError, AttributeError,
              TypeError, NotImplementedError, RuntimeError, OverflowError, MemoryError, struct.error)


OUTPUT = "output:"  # begins the names of arrays that are outputs of their own


def load_arrays(path: str | Path, names: Sequence[str], what: str, remedy: str) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by their names; all where `names` is empty.

    Raises:
        UserError: no file is there, or it is not one, or truncated, or lacks an array; ends in `remedy`.
    """
    with _archive(path, what, remedy) as arrays:
        found = {name: arrays[name] for name in names or arrays.files}
    for name, array in found.items():
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of what is no array
            raise UserError(f"{shown(path)}: its {name} is no array; {remedy}")
    return found


@contextmanager
def _archive(path: str | Path, what: str, remedy: str) -> Iterator[np.lib.npyio.NpzFile]:
    """An .npz file that is open for reading; what numpy and zipfile raise inside becomes a UserError."""
    try:
        with np.load(existing_file(path, f"{what} ({remedy})")) as arrays:
            yield arrays
    except KeyError as error:
        raise UserError(f"{shown(path)}: lacks an array ({error.args[0]}); {remedy}") from error
    except (*NOT_AN_NPZ, OSError) as error:
        if isinstance(error, OSError) and error.filename:
            raise  # the file cannot be read at all; zipfile's seek to a place before its beginning names none
        raise UserError(f"{shown(path)}: is not {what}, or a truncated one; {remedy}") from error


def real_pixels(count: int, img_size: int | tuple[int, int], folder: str | Path | None = None) -> np.ndarray:
    """`count` real images of that size: uint8 RGB [count, H, W, 3]. Deterministic.

    Args:
        count: how many.
        img_size: side in pixels, or height and width.
        folder: take them from here, evenly spaced over its files in order, so that all classes of an ImageNet layout
            have their share; None takes held-out crops of the packaged photographs.
    Raises:
        UserError: no such folder, fewer images in it than `count`, or one that cannot be read.
    """
    if folder is None:
        return crops("test", count, img_size)[0]
    paths = list_images(folder)
    if len(paths) < count:
        raise UserError(f"{folder}: holds {len(paths)} images, {count} are needed; add images or ask for fewer")
    return np.stack([resize_and_crop(load_image(paths[i * len(paths) // count]), img_size) for i in range(count)])


def real_images(count: int, img_size: int | tuple[int, int], folder: str | Path | None = None) -> np.ndarray:
    """`real_pixels` as this project's models read them: float32 [count, 3, H, W], normalised."""
    return normalise(real_pixels(count, img_size, folder))


# --- data files ----------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """One data file: input [N, 3, H, W] FP32, the logits [N, classes] that are expected of it, and what made them.

    `outputs` are all outputs by their names where there are several, such as feature maps, of which `logits` is the
    first.
    """

    path: Path
    facts: Facts  # of the ONNX file that gave the logits
    input: np.ndarray
    logits: np.ndarray
    outputs: Mapping[str, np.ndarray] = MappingProxyType({})

    @property
    def size(self) -> tuple[int, ...]:
        """The images' sides."""
        shape = self.input.shape[1:]
        return shape[:2] if shape[-1] in (1, 3) and shape[0] not in (1, 3) else shape[1:]


def save_batch(path: Path, images: np.ndarray, logits: np.ndarray, model: str, facts: Facts,
               outputs: Mapping[str, np.ndarray] = MappingProxyType({})) -> None:
    """Write a data file.

    Args:
        path: ends in .npz.
        images: float32 [N, 3, S, S].
        logits: float32 [N, classes].
        model: the model's name, for people and older scripts.
        facts: of the ONNX file that gave the logits, with its digest.
        outputs: all outputs by their names, where there are several.
    """
    arrays = {f"{OUTPUT}{name}": array for name, array in outputs.items()} if len(outputs) > 1 else {}
    arrays |= {"input": images, "logits": logits, "model": np.array(model), "facts": np.array(facts.to_json())}
    with whole_file(path) as partial:
        np.savez(partial, **arrays)  # type: ignore[arg-type]  # its stub takes them for flags


def load_batch(path: str | Path) -> Batch:
    """Read a data file; UserError if it is not one."""
    remedy = "write it with data/batch_data_gen.py"
    arrays = load_arrays(path, ("input", "logits"), "batch data", remedy)
    with _archive(path, "batch data", remedy) as archive:
        names = [name for name in archive.files if name.startswith(OUTPUT)]
    outputs = load_arrays(path, names, "batch data", remedy) if names else {}
    return Batch(Path(path), data_facts(path) or Facts(), arrays["input"], arrays["logits"],
                 {name[len(OUTPUT):]: array for name, array in outputs.items()})


def data_facts(path: str | Path) -> Facts | None:
    """The facts in an .npz file; None where it has none: written by something else, or before there were facts.

    Raises:
        UserError: it is not one, or truncated, or its facts are none.
    """
    with _archive(path, "batch data", "write it with data/batch_data_gen.py, or remove it") as arrays:
        text = str(arrays["facts"]) if "facts" in arrays.files else ""
    return of_text(text, shown(path)) if text else None


def data_of(facts: Facts, folder: str | Path = ROOT / "data", precision: str = "fp32") -> list[Batch]:
    """The data files whose logits came from the graph that a file was made from, smallest batch first, each batch once
    for each size of the images.

    Made from it by digest; else, of the same model with the same weights. A plain graph goes before a patched one, and
    what all began with before what was made of it.

    Args:
        facts: of the file, an ONNX file or a plan.
        folder: where the data files lie.
        precision: of the graph that gave the logits; int8 for those of the Q/DQ graph.
    """
    found = []
    for path in sorted(Path(folder).glob("*.npz")):
        theirs = data_facts(path)
        if theirs is None or theirs.precision != precision or not (facts.made_from(theirs)
                                                                   or facts.of_same_weights(theirs)):
            continue
        place = facts.family.index(theirs.digest) if facts.made_from(theirs) else -1
        found.append((bool(theirs.patched), -place, path))
    batches: dict[tuple[int, ...], Batch] = {}
    for _, _, path in sorted(found):
        batch = load_batch(path)
        batches.setdefault(batch.input.shape, batch)
    return [batches[shape] for shape in sorted(batches)]


def reference_batch(facts: Facts, batch: int, fp32_logits: Callable[[np.ndarray], np.ndarray],
                    data: str | Path = ROOT / "data") -> tuple[np.ndarray, np.ndarray]:
    """What a latency is measured on, and compared with: images float32 [batch, 3, S, S] and their FP32 logits.

    They are those of a data file of the FP32 model in `data`, where there is one for this batch; else held-out crops
    and what `fp32_logits` says of them.

    Args:
        facts: of the FP32 model: an ONNX file, or `graphs.facts.of_model`.
        batch: number of images.
        fp32_logits: the FP32 model that is measured: images -> float32 [N, num_classes].
        data: folder of the data files.
    Raises:
        UserError: a data file is of another size, or its logits are not those of the model.
    """
    stored = next((stored for stored in data_of(facts, data) if len(stored.input) == batch), None)
    if stored is None:
        if facts.height is None or facts.width is None:
            raise UserError(f"{facts.model or 'the graph'} leaves the size of its images open; make its data with "
                            "data/batch_data_gen.py --size HxW")
        images = real_images(batch, (facts.height, facts.width))
        logits = fp32_logits(images)
        if not np.isfinite(logits).all():
            raise UserError("the FP32 model gives NaN or infinity, and nothing can be compared with it; check its "
                            "weights")
        return images, logits
    images, logits = stored.input, stored.logits
    first = fp32_logits(images[:1]) if images.shape == (batch, 3, facts.height, facts.width) else None
    # FP32 implementations differ by some 1e-6 of the largest logit; other weights by as much as the logits themselves.
    if first is None or first.shape != logits[:1].shape or not (
            max_abs_err(first, logits[:1]) <= 1e-3 * float(np.abs(logits).max())):
        raise UserError(f"{shown(stored.path)}: its input or logits are not those of the model measured; write it "
                        "again with data/batch_data_gen.py, or remove it")
    return images, logits
