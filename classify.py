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
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from inference.answers import add_image_arguments, answer, files_of, results
from inference.classifiers import Classifier, add_classifier_arguments, open_classifier
from utils import Progress, UserError, file_to_write, run_script, shown, whole_file

COLUMNS = ("file", "rank", "class", "name", "probability", "problem")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help="an engine (.plan), an ONNX file or a checkpoint")
    add_image_arguments(parser)
    parser.add_argument("--csv", type=file_to_write, metavar="FILE",
                        help=f"write the answers there, a row for each of an image's classes: {','.join(COLUMNS)}")
    parser.add_argument("--logits", type=file_to_write, metavar="NPY",
                        help="write the logits there: float32 [images, classes], NaN for what is no image")
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
