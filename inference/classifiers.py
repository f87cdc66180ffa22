"""A classifier of any kind, engine, ONNX file or checkpoint, as one thing that turns images into logits.

    with open_classifier("onnx/mine.onnx") as classifier:
        logits = classifier.lanes[0](images)

What reads engines imports only NumPy, TensorRT and cuda-python, as everything here that runs beside TensorRT.
"""
from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from data.labels import check_labels
from graphs.facts import Facts, of_onnx
from graphs.pictures import Picture, picture_of
from utils import UserError, existing_file, from_one, shown

ENGINE_BATCH, OTHER_BATCH = 128, 32  # images at a time, where nothing is asked for and the file allows it
LANES = 2  # contexts of an engine: the copies of one run beside the execution of the other


class Classifier(AbstractContextManager):
    """Turns batches of images into logits.

    Attributes:
        path: the file.
        facts: what it is.
        picture: what it reads.
        classes: number of classes.
        labels: their names; () where nobody named them.
        batches: smallest and largest batch; None for no limit.
        usual_batch: images at a time, where nothing is asked for.
        what: what computes, in words.
        lanes: functions that take images as `picture` makes them, [N, ...] in its type, and give the logits as float32
            [N, classes]. Each may run in a thread of its own beside the others.
        same_size: whether a smaller last batch is to be filled up, because each size of batch has to be prepared.
    """

    same_size = False
    usual_batch = OTHER_BATCH
    batches: tuple[int, int | None] = (1, None)
    what = ""

    def __init__(self, path: Path, facts: Facts, picture: Picture, labels: tuple[str, ...]) -> None:
        self.path, self.facts, self.picture = path, facts, picture
        self.output = scores(facts, shown(path))
        self.classes = next(output.shape[1] for output in facts.outputs if output.name == self.output)
        check_labels(labels, self.classes, shown(path))
        self.labels = labels
        self.lanes: list[Callable[[np.ndarray], np.ndarray]] = []
        if picture.batch:
            self.batches = (picture.batch, picture.batch)

    def __exit__(self, *_: object) -> None:
        """Free what it holds."""

    def prepare(self, batch: int) -> None:
        """Make every lane ready for batches of this size. Called once, before the first batch."""

    def buffer(self, batch: int) -> np.ndarray:
        """An array for a batch of images, from which the lanes copy fast."""
        return np.zeros(self.shape(batch), self.picture.type)

    def shape(self, batch: int) -> tuple[int, ...]:
        """Of a batch of images as the model reads them."""
        sizes = {"N": batch, "C": self.picture.channels, "H": self.picture.height, "W": self.picture.width}
        return tuple(sizes[axis] for axis in self.picture.layout)

    def batch_for(self, asked: int | None, images: int | None = None) -> int:
        """How many images to run at a time.

        Args:
            asked: --batch; None for the usual one.
            images: how many there are, where that is known.
        Raises:
            UserError: the model does not run what is asked for.
        """
        smallest, largest = self.batches
        if asked is not None and not smallest <= asked <= (asked if largest is None else largest):
            only = f"batches of {smallest}" if smallest == largest else f"batches from {smallest} to {largest}"
            raise UserError(f"{shown(self.path)}: --batch {asked}: runs {only} only; give another --batch, or build it "
                            "with others (TensorRT/build.sh --min --max)")
        batch = asked or min(self.usual_batch, largest or self.usual_batch)
        return max(smallest, batch if images is None else min(batch, images))


def scores(facts: Facts, name: str) -> str:
    """The name of the output that holds a score for each class: the first [batch, classes] of floating numbers.

    Raises:
        UserError: there is none, as in a backbone.
    """
    for output in facts.outputs:
        if len(output.shape) == 2 and output.shape[1] and "float" in output.type and output.name != "features":
            return output.name
    gives = ", ".join(f"{output.name} {list(output.shape)}" for output in facts.outputs)
    raise UserError(f"{name}: has no output of scores [batch, classes], but {gives}; give a classifier")


class EngineClassifier(Classifier):
    """A TensorRT engine: a context for each lane, each with its own stream and its run as a CUDA graph."""

    same_size = True
    usual_batch = ENGINE_BATCH

    def __init__(self, path: Path, arguments: argparse.Namespace) -> None:
        from TensorRT.backend import described
        from TensorRT.engine import Engine
        from TensorRT.trt_runtime import trt

        self.open = ExitStack()
        with ExitStack() as unless_done:
            unless_done.enter_context(self.open)
            self.engine = self.open.enter_context(Engine(path, arguments.plugins))
            facts = self.engine.facts()
            super().__init__(path, facts, picture_of(facts, shown(path), **of_images(arguments)),
                             arguments.labels or facts.labels)
            self.batches, self.what = self.engine.batches, described(trt)
            self.contexts = [self.open.enter_context(self.engine.context()) for _ in range(LANES)]
            self.lanes = [self.lane(context) for context in self.contexts]
            unless_done.pop_all()

    def __exit__(self, *_: object) -> None:
        self.open.close()

    def prepare(self, batch: int) -> None:
        for context in self.contexts:
            context.set_batch(batch)
            context.capture()

    def buffer(self, batch: int) -> np.ndarray:
        """Page-locked, so that copies run beside the execution."""
        from TensorRT.trt_runtime import cuda, cudart

        shape = self.shape(batch)
        size = int(np.prod(shape)) * self.picture.type.itemsize
        pointer = cuda(cudart.cudaMallocHost, size)
        self.open.callback(cuda, cudart.cudaFreeHost, pointer)
        memory = (ctypes.c_ubyte * size).from_address(int(pointer))
        return np.ctypeslib.as_array(memory).view(self.picture.type).reshape(shape)

    def lane(self, context: Any) -> Callable[[np.ndarray], np.ndarray]:
        """What `lanes` holds, by one context."""
        def logits(images: np.ndarray) -> np.ndarray:
            context.upload(images)
            context.run()
            return self.logits(context)

        return logits

    def logits(self, context: Any) -> np.ndarray:
        """What a context's run gives, once it is done."""
        return context.download()[self.output].astype(np.float32)


class OnnxClassifier(Classifier):
    """An ONNX file in onnxruntime; plugin nodes run as the standard operators that they stand for."""

    def __init__(self, path: Path, arguments: argparse.Namespace) -> None:
        from graphs.files import onnx_refusals
        from graphs.sessions import CPU, onnx_session

        facts = of_onnx(path)
        super().__init__(path, facts, picture_of(facts, shown(path), **of_images(arguments)),
                         arguments.labels or facts.labels)
        import onnxruntime

        cuda = arguments.device == "cuda" or (
            arguments.device == "auto" and "CUDAExecutionProvider" in onnxruntime.get_available_providers())
        first: list[str | tuple[str, dict]] = [("CUDAExecutionProvider", {"use_tf32": "0"})]
        providers = [*first, *CPU] if cuda else CPU
        session = onnx_session(path, providers)
        self.what = f"onnxruntime {onnxruntime.__version__} on the {'GPU' if cuda else 'CPU'}"

        def logits(images: np.ndarray) -> np.ndarray:
            try:
                return session.run([self.output], {self.picture.name: images})[0].astype(np.float32)
            except onnx_refusals() as error:
                raise UserError(f"{shown(path)}: onnxruntime does not run it at batch {len(images)}: "
                                f"{' '.join(str(error).split())[:300]}") from error

        self.lanes = [logits]


class CheckpointClassifier(Classifier):
    """A checkpoint in PyTorch, FP32."""

    def __init__(self, path: Path, arguments: argparse.Namespace) -> None:
        from dataclasses import replace

        import torch

        from config import cfg_path, get_config
        from graphs.facts import Output, of_model
        from models.build import fitting_cfg, load_model
        from models.checkpoint import labels_of

        cfg = arguments.cfg
        if cfg is None and arguments.type is None:
            weights = dict(zip(arguments.opts[::2], arguments.opts[1::2])).get("MODEL.WEIGHTS", "")
            cfg = fitting_cfg(path, weights)
            print(f"{shown(path)}: of {shown(cfg)}, the only yaml that fits", flush=True)
        config = get_config(cfg, arguments.opts, arguments.type)
        model = load_model(config, path, outputs=("logits",)).fold_constants()
        labels = arguments.labels or labels_of(path)
        facts = replace(of_model(config, cfg_path(cfg, arguments.type), path), precision="fp32", input_type="float32",
                        outputs=(Output("logits", "float32", (None, model.num_classes)),))
        if not arguments.labels and len(labels) != model.num_classes:
            labels = ()
        super().__init__(path, facts, picture_of(facts, shown(path), **of_images(arguments)), labels)
        if arguments.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no GPU here; give --device cpu")
        device = "cuda" if arguments.device != "cpu" and torch.cuda.is_available() else "cpu"
        model.to(device)
        self.what = f"PyTorch {torch.__version__} on the {'GPU' if device == 'cuda' else 'CPU'}"

        def logits(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return model(torch.from_numpy(images).to(device)).float().cpu().numpy()

        self.lanes = [logits]


def of_images(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags of `add_input_arguments` say, as `picture_of` takes it."""
    return {"input_range": arguments.input_range, "layout": arguments.layout, "size": arguments.size}


def kind_of(path: str | Path) -> Callable[[Path, argparse.Namespace], Classifier]:
    """Which kind a file is, by its first bytes."""
    with existing_file(path, "an engine, an ONNX file or a checkpoint").open("rb") as file:
        start = file.read(9)
    if start[1:4] == b"trt":  # ftrt in TensorRT 8.6, vtrt in TensorRT-RTX
        return EngineClassifier
    # A zip archive or a pickle, as torch.save writes; or the length of a header, then the header: .safetensors.
    if start.startswith((b"PK\x03\x04", b"\x80")) or start[8:9] == b"{":
        return CheckpointClassifier
    return OnnxClassifier


def open_classifier(path: str | Path, arguments: argparse.Namespace) -> Classifier:
    """The classifier in a file.

    Args:
        path: an engine, an ONNX file or a checkpoint.
        arguments: as `add_classifier_arguments` gives them.
    Raises:
        UserError: no such file, or one that is none of these; a library or a GPU that it needs is missing; it is no
            classifier of images; the names of the classes are not as many as it has.
    """
    return kind_of(path)(Path(path), arguments)


def add_classifier_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `open_classifier` reads."""
    from data.labels import read_labels
    from graphs.pictures import add_input_arguments
    from TensorRT.backend import add_backend_argument, add_plugins_argument

    parser.add_argument("--labels", type=read_labels, metavar="FILE",
                        help="names of the classes: one a line, or JSON (default: those that the file brings)")
    parser.add_argument("--batch", type=from_one, metavar="N",
                        help=f"images at a time (default: {ENGINE_BATCH} for an engine, else {OTHER_BATCH}, within "
                             "what the file allows)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="of onnxruntime and PyTorch (default: the GPU if they find one)")
    add_input_arguments(parser)
    add_plugins_argument(parser)
    add_backend_argument(parser)
    group = parser.add_argument_group("for a checkpoint", "the variant is found by itself where only one yaml fits")
    group.add_argument("--type", choices=("swinv1", "swinv2"), help="model type; with no --cfg, its Small variant")
    group.add_argument("--cfg", type=Path, metavar="YAML", help="the variant, one of models/*.yaml")
    group.add_argument("--opts", nargs="+", action="extend", default=[], metavar=("KEY", "VALUE"),
                       help="override configuration keys, e.g. --opts DATA.IMG_SIZE 448, or MODEL.WEIGHTS ema")


