"""Draw what a model says of real images: the image, its label, top-1 of PyTorch and of ONNX files, and their errors.

    python Results/draw.py images --cfg models/swin_micro.yaml --onnx onnx/swinv1_micro.onnx

Writes Results/local/<MODEL.NAME>.png. The images are held-out crops of the packaged photographs, one of each, or from a
folder. An error is that of the worst logit against PyTorch in FP32.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from config import add_model_arguments, get_config
from data.batches import real_images
from data.images import IMAGENET_MEAN, IMAGENET_STD
from data.photo_crops import CLASSES, crops
from graphs.compare import max_abs_err
from graphs.facts import of_onnx
from graphs.sessions import onnx_logits, onnx_session
from models.build import checkpoint_path, load_model
from Results.tables import LOCAL
from utils import UserError, picture_target, shown, whole_file

COLUMNS, COUNT = 6, 18
WIDTH, HEIGHT, HEADING, FOOT = 2.6, 3.3, 0.7, 0.7  # inches, of an image with its text, and above and below all
RIGHT, WRONG, UNKNOWN = "#1a7f37", "#b42318", "#1f2328"


def pixels(image: np.ndarray) -> np.ndarray:
    """float32 [3, S, S] normalised -> [S, S, 3] from 0 to 1, to look at."""
    return np.clip(np.moveaxis(image, 0, -1) * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN), 0, 1)


def answer(logits: np.ndarray, names: list[str]) -> str:
    """Top-1 and its softmax probability of one image's logits [num_classes], e.g. "coffee 97 %"."""
    if not np.isfinite(logits).all():
        return "NaN or infinity"
    odds = np.exp(logits - logits.max())
    return f"{names[logits.argmax()]} {100 / odds.sum():.0f} %"


def draw(images: np.ndarray, labels: np.ndarray | None, logits: dict[str, np.ndarray], names: list[str],
         title: str) -> plt.Figure:
    """The picture: a grid of images [N, 3, S, S], under each what every runner says of it.

    Args:
        labels: int64 [N], or None where they are not known.
        logits: of every runner [N, num_classes]; the first one is the reference that errors are taken against.
        names: of the classes.
    """
    reference = next(iter(logits.values()))
    longest = max(map(len, logits))
    rows = -(-len(images) // COLUMNS)
    height = HEADING + HEIGHT * rows
    figure, axes = plt.subplots(rows, COLUMNS, squeeze=False, figsize=(WIDTH * COLUMNS, height))
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - HEADING / height, bottom=FOOT / height, wspace=0.08,
                           hspace=0.38)
    figure.suptitle(title, fontsize=11)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, axis in zip(range(len(images)), axes.flat):
        axis.imshow(pixels(images[i]), aspect="auto")
        if labels is not None:
            axis.set_title(f"label: {names[labels[i]]}", fontsize=9, loc="left", pad=3)
        for line, (runner, output) in enumerate(logits.items()):
            error = "" if line == 0 else f"  {max_abs_err(output[i], reference[i]):.0e}"
            axis.text(0, -0.04 - 0.08 * line, f"{runner:<{longest}}  {answer(output[i], names)}{error}", va="top",
                      fontsize=7.5, family="monospace", transform=axis.transAxes,
                      color=UNKNOWN if labels is None else RIGHT if output[i].argmax() == labels[i] else WRONG)
    return figure


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="draw.py images", description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    parser.add_argument("--onnx", type=Path, nargs="+", metavar="FILE", required=True,
                        help="ONNX files of the model, patched or not")
    parser.add_argument("--images", type=Path, metavar="FOLDER",
                        help="images to draw (default: held-out crops of the packaged photographs)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: Results/local/<MODEL.NAME>.png")
    args = parser.parse_args(arguments)
    config = get_config(args.cfg, args.opts, args.type)
    picture = picture_target(args.output or LOCAL / f"{config.MODEL.NAME}.png")  # refused now, not after the work
    weights = checkpoint_path(config, args.resume, args.pretrained)
    model = load_model(config, weights)
    name, classes = config.MODEL.NAME, model.num_classes
    images, labels = real_images(COUNT, model.img_size, args.images), None
    names = [f"class {index}" for index in range(classes)]
    if args.images is None and classes == len(CLASSES):
        names, labels = CLASSES, crops("test", COUNT, model.img_size)[1]

    with torch.inference_mode():
        logits = {"PyTorch": model(torch.from_numpy(images)).numpy()}
    for path in args.onnx:
        facts = of_onnx(path)
        runner = " ".join(word for word in (facts.patches, facts.precision) if word not in ("no", "fp32")) or "ONNX"
        logits[runner] = onnx_logits(onnx_session(path), images, path)
        if logits[runner].shape != logits["PyTorch"].shape:
            raise UserError(f"{shown(path)}: gives logits of {list(logits[runner].shape)}, and the model "
                            f"{list(logits['PyTorch'].shape)}; give the --cfg and weights that it was made from")
    errors = {runner: max_abs_err(output, logits["PyTorch"]) for runner, output in logits.items()}
    figure = draw(images, labels, logits, names, f"{name}: top-1 of PyTorch in FP32 and of ONNX files in onnxruntime, "
                  "its probability, and the error of the worst logit against PyTorch")
    with whole_file(picture) as partial:
        # Without the version of matplotlib in it, the same input gives the same PNG.
        figure.savefig(partial, dpi=80, metadata={"Software": None} if picture.suffix == ".png" else None)
    told = ", ".join(f"{runner} off by {error:.1e}" for runner, error in list(errors.items())[1:])
    print(f"wrote {shown(picture)}: {len(images)} images; {told}")
