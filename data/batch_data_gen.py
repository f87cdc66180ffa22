"""Write batches of real images with the logits that the ONNX model gives for them: what TRT_test.py compares with.

    python data/batch_data_gen.py --onnx onnx/swinv2.onnx --images ~/imagenet/val --batch 1,4,8,16

Writes data/<model>-b<N>.npz for each batch size N, <model> being the ONNX file's name without .onnx:

    input   float32 [N, 3, S, S], preprocessed and normalised
    logits  float32 [N, num_classes], the output of the FP32 ONNX model on the CPU
    model   the model's name
    facts   of the ONNX file, as graphs/facts.py prints them: by its digest TRT_test.py finds the data of an engine

Of the Q/DQ graph, which is FP32 with rounding in it, it writes data in the same way: TRT_test.py takes from it what
error an INT8 engine may have.

The same images and model give the same files. A smaller batch is the beginning of the largest one, whose images are
evenly spaced over the folder (or are the first held-out crops of the packaged photographs).
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from data.batches import real_images, save_batch
from graphs.facts import of_onnx
from graphs.sessions import onnx_img_size, onnx_logits, onnx_session
from utils import ROOT, UserError, batch_sizes, folder_to_write, run_script, shown


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
    args = parser.parse_args(arguments)

    facts = of_onnx(args.model)
    if facts.precision != "fp32" and (facts.precision != "int8" or facts.patched):
        raise UserError(f"{shown(args.model)}: computes in {facts.precision}, and expected outputs come from FP32; "
                        "give the file that onnx/export_onnx.py wrote")
    session = onnx_session(args.model)
    images = real_images(max(args.batches), onnx_img_size(session, args.model), args.images)
    print(f"read   {shown(args.model)} and {len(images)} images from {args.images or 'the held-out crops'}", flush=True)

    # All are computed before the first is written: no new file stands beside an old one if one fails.
    batches = {}
    for batch in sorted(set(args.batches)):
        start = time.perf_counter()
        logits = onnx_logits(session, images[:batch], args.model)
        if not np.isfinite(logits).all():
            raise UserError(f"{shown(args.model)}: gives NaN or infinity at batch {batch}; "
                            "check its weights with onnx/onnx_test.py")
        batches[batch] = logits, time.perf_counter() - start
    for batch, (logits, seconds) in batches.items():
        path = args.output / f"{args.model.stem}-b{batch}.npz"
        save_batch(path, images[:batch], logits, facts.model_of(args.model), facts)
        print(f"wrote  {shown(path)}: input {'x'.join(map(str, images[:batch].shape))}, logits "
              f"{'x'.join(map(str, logits.shape))}, largest |logit| {np.abs(logits).max():.3f}, {seconds:.2f} s")


if __name__ == "__main__":
    run_script(main)
