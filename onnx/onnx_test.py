"""Compare an ONNX file with the PyTorch model that it was exported from, on real images at several batches.

    python onnx/onnx_test.py --onnx onnx/swinv2.onnx --type swinv2 --resume models/checkpoints/swinv2_small.pth

Prints a table and PASS or FAIL, and exits with status 0 or 1. Both run on the CPU; PyTorch computes in FP32, with the
weights as they are in the checkpoint (not folded), so that what the export folded is checked too.

An FP32 file may be off by 1e-5 of the batch's largest |logit| at any element. An FP16 file may be off by what PyTorch
in FP16 is off on the same images, over all of them, and by 1.25 times that in a single batch. For any other file, and
to judge otherwise, give --tolerance. Plugin nodes (of a patched graph) run as the standard operators they stand for.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from config import add_model_arguments, get_config
from data.batches import real_images
from graphs.compare import max_abs_err, median_rel_err, top1_agreement
from graphs.facts import precision_of
from graphs.files import has_plugins, load_onnx
from graphs.sessions import onnx_img_size, onnx_logits, onnx_session
from models.build import checkpoint_path, load_model
from utils import ROOT, UserError, batch_sizes, from_zero, run_script, shown

FP32_TOLERANCE = 1e-5  # of the largest |logit|
FP16_SINGLE_BATCH = 1.25  # times PyTorch FP16's own error in that batch


def torch_logits(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """float32 [N, num_classes] for float32 [N, 3, S, S], computed in the dtype of the model's weights."""
    with torch.inference_mode():
        return model(torch.from_numpy(images).to(next(model.parameters()).dtype)).float().numpy()


def allowed_errors(model: torch.nn.Module, batches: list[np.ndarray], references: list[np.ndarray], precision: str,
                   tolerance: float | None) -> tuple[list[float], float]:
    """What the largest error may be in each batch, and over all of them. May leave the model folded and in FP16."""
    if tolerance is None and precision == "fp16":
        half = model.fold_constants().half()
        errors = [max_abs_err(torch_logits(half, images), reference)
                  for images, reference in zip(batches, references, strict=True)]
        return [FP16_SINGLE_BATCH * error for error in errors], max(errors)
    share = FP32_TOLERANCE if tolerance is None else tolerance
    each = [share * float(np.abs(reference).max()) for reference in references]
    return each, max(each)


def within(errors: list[float], each: list[float], overall: float) -> bool:
    """Whether every batch's error is at most what it may be, and at most what all may be. NaN never is."""
    return all(error <= allowed and error <= overall for error, allowed in zip(errors, each, strict=True))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="the file to test (default: onnx/<MODEL.NAME>.onnx)")
    add_model_arguments(parser)
    parser.add_argument("--images", type=Path, metavar="FOLDER",
                        help="folder of images (default: held-out crops of the packaged photographs)")
    parser.add_argument("--batch", "--batches", dest="batches", type=batch_sizes, default=[1, 3, 8], metavar="N,N",
                        help="batch sizes, each on images of its own (default: 1,3,8)")
    parser.add_argument("--tolerance", type=from_zero, metavar="SHARE",
                        help="allowed largest error as a share of the largest |logit| (default: 1e-5 for an FP32 file, "
                             "PyTorch FP16's own error for an FP16 file)")
    args = parser.parse_args(arguments)
    config = get_config(args.cfg, args.opts, args.type)
    path = args.onnx or ROOT / "onnx" / f"{config.MODEL.NAME}.onnx"

    graph = load_onnx(path)
    precision, plugins = precision_of(graph), has_plugins(graph)
    if precision not in ("fp32", "fp16") and args.tolerance is None:
        raise UserError(f"{shown(path)}: computes in {precision}, for which no limit is set; give --tolerance, a share "
                        "of the largest |logit|")
    session = onnx_session(path)
    img_size = onnx_img_size(session, path)
    if img_size != config.DATA.IMG_SIZE:
        raise UserError(f"{shown(path)}: takes images of {img_size} x {img_size}, {config.MODEL.NAME} takes "
                        f"{config.DATA.IMG_SIZE} x {config.DATA.IMG_SIZE}; choose the --cfg that it was exported from")
    checkpoint = checkpoint_path(config, args.resume, args.pretrained)
    model = load_model(config, checkpoint)
    num_classes = session.get_outputs()[0].shape[-1]
    if num_classes != model.num_classes:
        raise UserError(f"{shown(path)}: gives {num_classes} classes, {shown(checkpoint)} has {model.num_classes}; "
                        "give the checkpoint that it was exported from")
    images = real_images(sum(args.batches), img_size, args.images)
    batches = np.split(images, np.cumsum(args.batches)[:-1])
    print(f"{shown(path)} ({precision}{', plugin nodes as standard operators' if plugins else ''}; onnxruntime, CPU) "
          f"against PyTorch FP32 with {shown(checkpoint)},\n{len(images)} images from "
          f"{args.images or 'the held-out crops'}", flush=True)

    start = time.perf_counter()
    references = [torch_logits(model, batch) for batch in batches]
    each, overall = allowed_errors(model, batches, references, precision, args.tolerance)
    print(f"{'batch':>5}  {'max abs error':>13}  {'allowed':>9}  {'median rel error':>16}  {'top-1 agreement':>15}")
    errors = []
    for batch, reference, allowed in zip(batches, references, each, strict=True):
        logits = onnx_logits(session, batch, path)
        errors.append(max_abs_err(logits, reference))
        print(f"{len(batch):>5}  {errors[-1]:>13.2e}  {allowed:>9.2e}  {median_rel_err(logits, reference):>16.2e}  "
              f"{top1_agreement(logits, reference):>15.1%}", flush=True)
    passed = within(errors, each, overall)
    largest = max(float(np.abs(reference).max()) for reference in references)
    print(f"{'PASS' if passed else 'FAIL'}: max abs error {max(errors):.2e}, at most {overall:.2e} allowed; largest "
          f"|logit| {largest:.2f}; {time.perf_counter() - start:.1f} s")
    if not passed:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
