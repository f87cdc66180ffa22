"""SmoothQuant for Swin V1: move the range of LayerNorm's large channels into the weights of the next linear layer.

    python TensorRT/INT8/smooth.py --onnx onnx/swinv1.onnx --alpha 0.5  # writes onnx/swinv1_smooth.onnx

Channel j of what feeds qkv and fc1 is divided by s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), in gamma and beta of the
LayerNorm before it, and row j of the weight is multiplied by s_j: the FP32 graph computes the same, and quant.py takes
it as it takes the first one. V2 has no such place: there the residual stream feeds qkv and fc1, and is read by the
residual Add as well. Source: Xiao et al., SmoothQuant, ICML 2023. TensorRT/INT8/README.md says what it brought.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from graphs.pictures import add_input_arguments
from graphs.surgeon import check, save, target_of, with_picture
from graphs.tidy import exported, producer, tidy, values
from TensorRT.INT8.calibration import (
    add_provider_argument,
    batch_size_of,
    execution_provider,
    fp32_model,
    image_batches,
    session_with_outputs,
)
from TensorRT.INT8.qdq import blocks_of
from utils import ROOT, Progress, UserError, about, from_one, run_script, shown

# Edit here, or give the flag of the same name.
ONNX = "onnx/swinv1.onnx"
ALPHA = 0.5
BATCHES, BATCH_SIZE = 8, 16


def norm_before(product: gs.Node) -> gs.Node | None:
    """The LayerNormalization that makes a product's input and nothing else's, with its parameters."""
    x = product.inputs[0]
    norm = producer(x)
    alone = norm is not None and norm.op == "LayerNormalization" and len(norm.inputs) == 3 and len(x.outputs) == 1
    return norm if alone else None


def smooth(graph: gs.Graph, largest: dict[str, np.ndarray], alpha: float) -> int:
    """Move ranges in place, from the LayerNorms to the products after them; how many of them.

    Args:
        graph: a tidied FP32 graph.
        largest: max|x_j| of each channel of the products' inputs, [C], by name of the tensor.
        alpha: 0 leaves all of the range in the activations, 1 moves all of it.
    """
    moved = 0
    for block in blocks_of(graph):
        for product in (block.qkv, block.fc1):
            norm = norm_before(product)
            if norm is None:
                continue
            weight = values(product.inputs[1])
            x, w = largest[product.inputs[0].name], np.abs(weight).max(axis=1)
            # A channel that is never used, or that only zeros multiply, has no range to move.
            factor = np.where((x > 0) & (w > 0), x**alpha / np.where(w > 0, w, 1)**(1 - alpha), 1)
            for i in (1, 2):
                norm.inputs[i] = gs.Constant(f"{norm.name}/smooth_{i}", (values(norm.inputs[i]) / factor).astype(
                    np.float32))
            product.inputs[1] = gs.Constant(f"{product.name}/smooth", (weight * factor[:, None]).astype(np.float32))
            moved += 1
    return moved


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, default=ROOT / ONNX, metavar="FILE",
                        help=f"unpatched FP32 graph of opset 17 (default: {ONNX})")
    parser.add_argument("--alpha", type=float, default=ALPHA,
                        help="share of the range that is moved, 0 to 1 (default: %(default)s)")
    parser.add_argument("--images", type=Path, metavar="FOLDER",
                        help="images to find the ranges with (default: training crops of the packaged photographs)")
    parser.add_argument("--calibration-batches", "--batches", dest="batches", type=from_one, default=BATCHES,
                        metavar="N", help=f"how many batches of {BATCH_SIZE} images (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="graph to write (default: beside the first, with _smooth appended to its name)")
    add_provider_argument(parser)
    add_input_arguments(parser)
    args = parser.parse_args(arguments)
    if not 0 <= args.alpha <= 1:
        raise UserError(f"--alpha {args.alpha:g}: must be from 0 to 1")
    target = target_of(args, "_smooth")
    model = fp32_model(args.onnx)
    with about(args.onnx):
        model, wanted = with_picture(model, args)
        graph = tidy(model)
        blocks = blocks_of(graph)
    names = [product.inputs[0].name for block in blocks for product in (block.qkv, block.fc1)
             if norm_before(product) is not None]
    if not names:
        raise UserError(f"{shown(args.onnx)}: no LayerNormalization feeds only qkv or fc1; this is for V1 at opset 17")
    session = session_with_outputs(exported(graph), names, execution_provider(args.provider))
    largest: dict[str, np.ndarray] = {}
    progress = Progress(args.batches, "batches")
    for images in image_batches(args.images, args.batches, batch_size_of(wanted, None, BATCH_SIZE), wanted):
        for name, x in zip(names, session.run(None, {session.get_inputs()[0].name: images})):
            now = np.abs(x).reshape(-1, x.shape[-1]).max(axis=0)
            largest[name] = np.maximum(largest.get(name, now), now)
        progress.done()
    print(f"moved the range of {smooth(graph, largest, args.alpha)} LayerNorms, alpha {args.alpha:g}")
    smoothed = exported(graph)
    with about(args.onnx):
        print("\n".join(check(model, smoothed, wanted=wanted)))
    save(smoothed, target, args)


if __name__ == "__main__":
    run_script(main)
