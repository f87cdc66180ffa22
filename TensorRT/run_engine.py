"""Run a TensorRT engine over an array of images and store its logits: how a Python without TensorRT uses an engine.

    python TensorRT/run_engine.py --plan TensorRT/TRT_Engine/swinv1.plan --input images.npy --output logits.npy

Runs over all images once for every batch size, the engine loaded once. test_swinV2.py starts it in $TRT_PYTHON. NaN in
the input is an error; NaN in the output is stored and reported.
"""
from __future__ import annotations

import argparse
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from TensorRT.backend import add_backend_argument, add_plugins_argument
from utils import UserError, batch_sizes, existing_file, file_to_write, run_script, shown, whole_file


def load_images(path: str) -> np.ndarray:
    """Images [n, 3, S, S]: an .npy file, mapped, not read, or `input` of a data file. UserError if it is neither or
    holds a NaN."""
    try:
        images = np.load(existing_file(path, "an .npy array of images (--input)"), mmap_mode="r")
        if isinstance(images, np.lib.npyio.NpzFile):
            images = images["input"]
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{shown(path)}: is not an .npy array, or a truncated one") from error
    if not isinstance(images, np.ndarray) or images.ndim != 4 or len(images) == 0:
        raise UserError(f"{shown(path)}: is not an array of images [n, 3, S, S]")
    for i, image in enumerate(images):
        if not np.isfinite(image).all():
            raise UserError(f"{shown(path)}: image {i} has a NaN or an infinity in it")
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", required=True, metavar="FILE", help="the engine")
    parser.add_argument("--input", metavar="NPY",
                        help="images [n, 3, S, S], normalised, FP32; or data/<model>-b<N>.npz")
    parser.add_argument("--facts", action="store_true",
                        help="run nothing; print what the engine is, as JSON (graphs/facts.py says what is in it)")
    parser.add_argument("--output", type=file_to_write, metavar="NPY",
                        help="to write: logits [n, classes]; of several batch sizes [batch sizes, n, classes]")
    parser.add_argument("--batch", type=batch_sizes, default=[32], metavar="N,N",
                        help="images in one run, one size or several; default 32")
    add_plugins_argument(parser)
    add_backend_argument(parser)
    arguments = parser.parse_args()
    if arguments.facts:
        from TensorRT.engine import Engine

        with Engine(arguments.plan, arguments.plugins) as engine:
            print(engine.facts().to_json())
        return
    if arguments.input is None or arguments.output is None:
        parser.error("--input and --output are needed, or --facts")
    images = load_images(arguments.input)
    from TensorRT.engine import Engine

    start = time.perf_counter()
    with Engine(arguments.plan, arguments.plugins) as engine, engine.context() as context:
        logits = np.stack([np.concatenate([context.infer(images[i:i + batch]) for i in range(0, len(images), batch)])
                           for batch in arguments.batch]).astype(np.float32)
    if len(arguments.batch) == 1:
        logits = logits[0]
    with whole_file(arguments.output) as partial, partial.open("wb") as file:
        np.save(file, logits)
    broken = int((~np.isfinite(logits)).reshape(-1, *logits.shape[-2:]).any(axis=(0, 2)).sum())
    if broken:
        print(f"warning: {shown(arguments.output)}: NaN or infinity for {broken} of {len(images)} images",
              file=sys.stderr)
    print(f"wrote {shown(arguments.output)}: {len(images)} images in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    run_script(main)
