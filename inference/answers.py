"""What classify.py and the programs in examples/ share: which image files, which decoder, which answers."""
from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.images import list_images
from inference import dali
from inference.classifiers import Classifier, EngineClassifier
from inference.pipeline import by_pillow, cores
from utils import UserError, existing_file, from_one


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which images to read, and how: what `files_of` and `results` read."""
    parser.add_argument("images", type=Path, nargs="*", metavar="IMAGE", help="image files, and folders of them")
    parser.add_argument("--list", type=Path, action="append", default=[], metavar="FILE",
                        help="text file of image files, one a line; - for the standard input")
    parser.add_argument("--top-k", type=from_one, default=5, metavar="K", help="classes for each image (default: 5)")
    parser.add_argument("--decoder", choices=("auto", "pillow", "dali"), default="auto",
                        help="what reads and resizes images; default: dali for an engine where it is installed")
    parser.add_argument("--threads", type=from_one, metavar="N",
                        help=f"that decode by Pillow (default: one for each core, {cores()})")


def files_of(arguments: argparse.Namespace) -> list[Path]:
    """The image files that are asked for, in order.

    Raises:
        UserError: none is, or a file, a folder or a list is not there.
    """
    files: list[Path] = []
    for path in arguments.images:
        files += list_images(path) if path.is_dir() else [existing_file(path, "an image")]
    for path in arguments.list:
        try:
            lines = (sys.stdin if str(path) == "-" else existing_file(path, "a list of images (--list)").open(
                encoding="utf-8")).read().splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: is not a text file; give a list of image files, one a line") from error
        files += [Path(line.strip()) for line in lines if line.strip()]
    if not files:
        raise UserError("no images: give files, folders, or --list FILE")
    return files


def probabilities(scores: np.ndarray) -> np.ndarray:
    """float64 [classes] that sum to 1: the softmax of logits, or scores that are probabilities already."""
    scores = scores.astype(np.float64)
    if scores.min() >= 0 and abs(scores.sum() - 1) <= 1e-3:  # the graph ends in a Softmax
        return scores
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def answer(result: np.ndarray | str, labels: tuple[str, ...], count: int, path: Path
           ) -> tuple[str, list[tuple[int, str, float]]]:
    """What is wrong with a file's result, in words, or its best classes: index, name and probability, best first."""
    if isinstance(result, str):
        return result, []
    if not np.isfinite(result).all():
        return f"{path}: the model gives NaN or infinity for it; check the model with TRT_test.py or onnx_test.py", []
    shares = probabilities(result)
    best = np.argsort(-shares, kind="stable")[:count]
    return "", [(int(index), labels[index] if labels else f"class {index}", float(shares[index])) for index in best]


def results(classifier: Classifier, files: Sequence[Path], batch: int, arguments: argparse.Namespace
            ) -> tuple[str, Iterator[tuple[Path, np.ndarray | str]]]:
    """How images are decoded, in words, and the files with what came out."""
    wanted = arguments.decoder
    if wanted == "dali" or (wanted == "auto" and isinstance(classifier, EngineClassifier) and dali.installed()):
        return dali.described(), dali.by_dali(classifier, files, batch)
    if importlib.util.find_spec("PIL") is None:
        raise UserError(f"{sys.executable}: has no Pillow, which reads images; python -m pip install pillow")
    threads = arguments.threads or cores()
    return f"decoded by Pillow in {threads} threads", by_pillow(classifier, files, batch, threads)
