"""Apply all plugins at once: what the engines build_*_attention_fp16.sh are built from.

    python onnx/graphsurgeon/add_all.py --onnx onnx/swinv1.onnx --fp16  # writes onnx/swinv1_attention_fp16.onnx

It does the same as running these scripts one after the other: attention, patch embedding, patch merging, linear layers,
residual Add + LayerNorm, the LayerNorms that are left, and the MLPs of narrow blocks, which take in the nodes between
attention and the MLP; with --fp16, to_fp16.py comes last. An Add goes with the first step that takes it, so that in V1
the linear layers have them all.

TensorRT-RTX 1.6.1 multiplies FP32 in TF32, whatever it is told (TensorRT/VERSIONS.md). The classifier is the one
product that is left to it; with --classifier it is a plugin node too, so that a graph that stays FP32 is computed in
FP32.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from add_attention import add_attention
from add_layernorm_with_params import add_layernorm_with_params
from add_linear import add_classifier, add_linear
from add_mlp import add_mlp
from add_patch_embedding import add_patch_embedding
from add_patch_merging import add_patch_merging
from add_residual_layernorm import add_residual_layernorm
from to_fp16 import add_precision_arguments, convert_and_check, islands

from graphs.surgeon import add_file_arguments, patch_and_check, read, save, target_of
from utils import UserError, about, run_script

# Edit here, or give --onnx and --output.
ONNX_FILE = "onnx/swinv1.onnx"
SUFFIX = "_attention"

STEPS = [add_attention, add_patch_embedding, add_patch_merging, add_linear, add_residual_layernorm,
         add_layernorm_with_params, add_mlp]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_file_arguments(parser, ONNX_FILE, f"{SUFFIX} or {SUFFIX}_fp16")
    parser.add_argument("--fp16", action="store_true", help="convert the patched graph to FP16")
    parser.add_argument("--classifier", action="store_true", help="the classifier too, in a graph that stays FP32")
    add_precision_arguments(parser)
    args = parser.parse_args()
    if args.fp32 != parser.get_default("fp32") and not args.fp16:
        raise UserError(f"--fp32 {args.fp32}: chooses what stays FP32 in an FP16 graph; add --fp16")
    if args.classifier and args.fp16:
        raise UserError("--classifier: is for graphs that stay FP32; leave it out with --fp16")
    target, fp32 = target_of(args, f"{SUFFIX}_fp16" if args.fp16 else SUFFIX), islands(args.fp32)
    model, wanted = read(args)
    with about(args.onnx):
        patched = patch_and_check(model, [*STEPS, *[add_classifier] * args.classifier], not args.no_check, wanted)
        if args.fp16:
            patched = convert_and_check(patched, fp32, not args.no_check, wanted)
    save(patched, target, args)


if __name__ == "__main__":
    run_script(main)
