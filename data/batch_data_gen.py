"""Write batches of real images with the logits that the ONNX model gives for them: what TRT_test.py compares with.

    python data/batch_data_gen.py --onnx onnx/swinv2.onnx --images ~/imagenet/val --batch 1,4,8,16

Writes data/<model>-b<N>.npz for each batch size N, <model> being the ONNX file's name without .onnx:

    input   [N, 3, H, W] as the graph reads it: float32, normalised, unless the graph does that itself
    logits  float32 [N, num_classes], the output of the FP32 ONNX model on the CPU
    model   the model's name
    facts   of the ONNX file, as graphs/facts.py prints them: by its digest TRT_test.py finds the data of an engine

of a graph with several outputs, such as feature maps, each of them as well; and of a graph that leaves height and width
open data/<model>-<H>x<W>-b<N>.npz for the size that --size gives.

The Q/DQ graph, which is FP32 with rounding in it, gets its data in the same way: from them TRT_test.py takes the error
that an INT8 engine may have.

The same images and model give the same files. A smaller batch is the beginning of the largest one, whose images are
evenly spaced over the folder (or are the first held-out crops of the packaged photographs).
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from data.batches import real_pixels, save_batch
from graphs.facts import of_onnx
from graphs.files import load_onnx
from graphs.outputs import Runner
from graphs.pictures import add_input_arguments
from graphs.surgeon import with_picture
from utils import ROOT, UserError, about, batch_sizes, folder_to_write, run_script, shown


def rounds(model: onnx.ModelProto) -> bool:
    """Whether a graph that multiplies in FP32 holds FP16 or BF16 somewhere, so that its outputs are not FP32's."""
    half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    casts = (attribute.i for node in model.graph.node if node.op_type == "Cast" for attribute in node.attribute
             if attribute.name == "to")
    return any(kind in half for kind in (*casts, *(tensor.data_type for tensor in model.graph.initializer)))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onnx", "--model", dest="model", type=Path, required=True, metavar="FILE",
                        help="FP32 ONNX file, from onnx/export_onnx.py; or the Q/DQ graph, from TensorRT/INT8/quant.py")
    parser.add_argument("--images", type=Path, metavar="FOLDER",
                        help="folder of images, in class folders or flat (default: held-out crops of the packaged "
                             "photographs)")
    parser.add_argument("--batch", "--batches", dest="batches", type=batch_sizes, default=[1, 4, 8, 16], metavar="N,N",
                        help="batch sizes (default: 1,4,8,16)")
    parser.add_argument("--output", type=folder_to_write, default=str(ROOT / "data"), metavar="FOLDER",
                        help="folder to write to (default: data/)")
    add_input_arguments(parser)
    args = parser.parse_args(arguments)

    model, facts = load_onnx(args.model), of_onnx(args.model)
    precision = "fp16 in part" if facts.precision == "fp32" and rounds(model) else facts.precision
    if precision != "fp32" and (precision != "int8" or facts.patched):
        raise UserError(f"{shown(args.model)}: computes in {precision}, and expected outputs come from FP32; "
                        "give the file that onnx/export_onnx.py wrote")
    with about(args.model):
        model, wanted = with_picture(model, args)
        if wanted.batch and set(args.batches) != {wanted.batch}:
            raise UserError(f"takes only batches of {wanted.batch}; give --batches {wanted.batch}")
        run = Runner(model)
    images = wanted.of(real_pixels(max(args.batches), wanted.size, args.images))
    print(f"read   {shown(args.model)} and {len(images)} images from {args.images or 'the held-out crops'}", flush=True)

    # All are computed before the first is written: no new file stands beside an old one if one fails.
    batches: dict[int, tuple[np.ndarray, dict[str, np.ndarray], float]] = {}
    for batch in sorted(set(args.batches)):
        start = time.perf_counter()
        with about(args.model):
            outputs = {name: output for name, output in run(images[:batch]).items() if output.dtype.kind == "f"}
            logits = next(iter(outputs.values()), None)
            if logits is None:
                raise UserError("gives only whole numbers, from which no error can be told; export it with its logits")
        if not all(np.isfinite(output).all() for output in outputs.values()):
            raise UserError(f"{shown(args.model)}: gives NaN or infinity at batch {batch}; "
                            "check its weights with onnx/onnx_test.py")
        batches[batch] = logits, outputs, time.perf_counter() - start
    size = f"-{wanted.height}x{wanted.width}" if None in (facts.height, facts.width) else ""
    for batch, (logits, outputs, seconds) in batches.items():
        path = args.output / f"{args.model.stem}{size}-b{batch}.npz"
        save_batch(path, images[:batch], logits, facts.model_of(args.model), facts, outputs)
        print(f"wrote  {shown(path)}: input {'x'.join(map(str, images[:batch].shape))}, logits "
              f"{'x'.join(map(str, logits.shape))}, largest |logit| {np.abs(logits).max():.3f}, {seconds:.2f} s")


if __name__ == "__main__":
    run_script(main)
