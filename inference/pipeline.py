"""Classify many image files: decoding, copies and execution at the same time, results in the files' order.

    for path, logits in by_pillow(classifier, paths, batch=32):
        ...

Threads decode into buffers of a whole batch. Each of the classifier's lanes takes the next full buffer. Pillow, NumPy,
onnxruntime, PyTorch and CUDA all let other threads run while they work.
"""
from __future__ import annotations

import os
import queue
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from data.images import load_image, resize_and_crop
from inference.classifiers import Classifier
from utils import UserError

# What comes out for a file: its logits, float32 [classes], or in words why there are none.
Result = "np.ndarray | str"


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def by_pillow(classifier: Classifier, paths: Sequence[Path], batch: int,
              threads: int | None = None) -> Iterator[tuple[Path, np.ndarray | str]]:
    """The files and their results, in order; decoded and resized by Pillow on the CPU.

    A file that cannot be read has the reason as its result, and the others go on.

    Args:
        paths: image files.
        batch: how many are run at a time; the last may be fewer.
        threads: that decode; None for one on each core.
    Raises:
        UserError: the model does not run.
    """
    classifier.prepare(batch)
    lanes: queue.SimpleQueue = queue.SimpleQueue()
    for lane in classifier.lanes:
        lanes.put(lane)
    buffers: queue.SimpleQueue = queue.SimpleQueue()
    for _ in range(len(classifier.lanes) + 2):  # one in each lane, one full, one being filled
        buffers.put(classifier.buffer(batch))
    pending: deque[Future] = deque()

    def run(part: Sequence[Path], buffer: np.ndarray, decoded: list[Future]) -> list[tuple[Path, np.ndarray | str]]:
        try:
            problems = [future.result() for future in decoded]
            lane = lanes.get()
            try:
                logits = lane(buffer if classifier.same_size else buffer[:max(len(part), classifier.batches[0])])
            finally:
                lanes.put(lane)
        finally:
            buffers.put(buffer)
        return [(path, problem or row) for path, problem, row in zip(part, problems, logits)]

    with ThreadPoolExecutor(threads or cores()) as decoders, ThreadPoolExecutor(len(classifier.lanes)) as runners:
        try:
            for start in range(0, len(paths), batch):
                part = paths[start:start + batch]
                buffer = buffers.get()
                decoded = [decoders.submit(partial(decode_into, buffer, i, path, classifier))
                           for i, path in enumerate(part)]
                pending.append(runners.submit(run, part, buffer, decoded))
                while pending and pending[0].done():
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:  # after an error, or where the caller stops: nothing new is begun
            for pool in (runners, decoders):
                pool.shutdown(wait=False, cancel_futures=True)


def decode_into(buffer: np.ndarray, index: int, path: Path, classifier: Classifier) -> str:
    """Put an image file into a batch; gives "", or why it cannot be read, and then the image is black."""
    wanted = classifier.picture
    try:
        pixels, problem = resize_and_crop(load_image(path), wanted.size), ""
    except UserError as error:
        pixels, problem = np.zeros((*wanted.size, 3), np.uint8), str(error)
    except OSError as error:
        pixels, problem = np.zeros((*wanted.size, 3), np.uint8), f"{path}: cannot be read ({error.strerror or error})"
    buffer[index] = wanted.of(pixels)
    return problem
