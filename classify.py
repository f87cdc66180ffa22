"""Classify images by an engine, an ONNX file or a checkpoint: names of classes and probabilities.

    python classify.py onnx/mine.onnx photos/ cat.jpg
    $TRT_PYTHON classify.py TensorRT/TRT_Engine/mine_attention_fp16.plan photos/ --csv answers.csv

The model's file says what it reads (size, range, mean) and what its classes are called (--labels where it does not). An
image is resized as everywhere in this project. Decoding, copies and execution go on at the same time, decoding on all
cores, or on the GPU where NVIDIA DALI is installed and the model is an engine.

A file that is no image is named, the others are classified, and the exit status is 1.
"""
from __future__ import annotations

import argparse
import csv
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from data.images import list_images
from inference.classifiers import Classifier, EngineClassifier, add_classifier_arguments, open_classifier
from inference.pipeline import by_pillow, cores
from utils import Progress, UserError, existing_file, file_to_write, from_one, run_script, shown, whole_file

COLUMNS = ("file", "rank", "class", "name", "probability", "problem")


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


def results(classifier: Classifier, files: list[Path], batch: int, arguments: argparse.Namespace
            ) -> tuple[str, Iterator[tuple[Path, np.ndarray | str]]]:
    """How images are decoded, in words, and the files with what came out."""
    from inference import dali

    wanted = arguments.decoder
    if wanted == "dali" or (wanted == "auto" and isinstance(classifier, EngineClassifier) and dali.installed()):
        return dali.described(), dali.by_dali(classifier, files, batch)
    if importlib.util.find_spec("PIL") is None:
        raise UserError(f"{sys.executable}: has no Pillow, which reads images; python -m pip install pillow")
    return (f"decoded by Pillow in {arguments.threads} threads",
            by_pillow(classifier, files, batch, arguments.threads))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help="an engine (.plan), an ONNX file or a checkpoint")
    parser.add_argument("images", type=Path, nargs="*", metavar="IMAGE", help="image files, and folders of them")
    parser.add_argument("--list", type=Path, action="append", default=[], metavar="FILE",
                        help="text file of image files, one a line; - for the standard input")
    parser.add_argument("--top-k", type=from_one, default=5, metavar="K", help="classes for each image (default: 5)")
    parser.add_argument("--csv", type=file_to_write, metavar="FILE",
                        help=f"write the answers there, a row for each of an image's classes: {','.join(COLUMNS)}")
    parser.add_argument("--logits", type=file_to_write, metavar="NPY",
                        help="write the logits there: float32 [images, classes], NaN for what is no image")
    parser.add_argument("--decoder", choices=("auto", "pillow", "dali"), default="auto",
                        help="what reads and resizes images; default: dali for an engine where it is installed")
    parser.add_argument("--threads", type=from_one, default=cores(), metavar="N",
                        help="that decode by Pillow (default: one for each core, %(default)s)")
    add_classifier_arguments(parser)
    args = parser.parse_args(arguments)

    files = files_of(args)
    with open_classifier(args.model, args) as classifier:
        batch = classifier.batch_for(args.batch, len(files))
        decoding, answers = results(classifier, files, batch, args)
        print(f"{shown(args.model)}: {classifier.facts.precision}, {classifier.classes} classes, {classifier.what}, "
              f"batch {batch}; images of {classifier.picture.height} x {classifier.picture.width}, {decoding}",
              file=sys.stderr, flush=True)
        problems = write(classifier, files, answers, args)
    if problems:
        raise UserError(f"{len(problems)} of {len(files)} files have no answer; the first: {problems[0]}")


def write(classifier: Classifier, files: list[Path], answers: Iterator[tuple[Path, np.ndarray | str]],
          args: argparse.Namespace) -> list[str]:
    """Print or write the answers as they come; gives what is wrong with the files that have none."""
    problems: list[str] = []
    logits = np.full((len(files), classifier.classes), np.nan, np.float32) if args.logits else None
    progress = Progress(len(files), "images")
    with ExitStack() as stack:
        table = None
        if args.csv:
            partial = stack.enter_context(whole_file(args.csv))
            table = csv.writer(stack.enter_context(partial.open("w", newline="", encoding="utf-8")))
            table.writerow(COLUMNS)
        for index, (path, result) in enumerate(answers):
            problem, best = answer(result, classifier.labels, args.top_k, path)
            if problem:
                problems.append(problem)
                print(f"warning: {problem}", file=sys.stderr)
            elif logits is not None:
                logits[index] = result
            if table:
                table.writerows([(path, rank, number, name, f"{share:.6f}", "")
                                 for rank, (number, name, share) in enumerate(best, 1)] or
                                [(path, "", "", "", "", problem)])
            elif best:
                print(f"{path}  {'  '.join(f'{name} {share:.1%}' for _, name, share in best)}", flush=True)
            if progress.is_due() and args.csv:
                print(f"  {progress}", flush=True)
        seconds = progress.seconds
    if logits is not None:
        with whole_file(args.logits) as partial, partial.open("wb") as file:
            np.save(file, logits)
    print(f"{len(files)} images in {seconds:.2f} s, {len(files) / seconds:.0f} images/s", file=sys.stderr)
    for path in filter(None, (args.csv, args.logits)):
        print(f"wrote {shown(path)}")
    return problems


if __name__ == "__main__":
    run_script(main)
