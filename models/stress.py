"""Write a stressed checkpoint: the same function in FP32, through numbers that break careless FP16 arithmetic.

    python models/stress.py --cfg models/swinv2_micro.yaml --qk 1e4 --norm-input 1e4 --saturate

Writes models/checkpoints/<MODEL.NAME>_stressed.safetensors, FP32. Trained weights of a small model are tame; those of a
large one need not be. Two rescalings do not change what the model computes:

  --qk SIZE          V2's cosine attention does not see the length of q and k: their rows of qkv (weight and bias) times
                     s. The squares in F.normalize overflow FP16 where SIZE is large, and vanish where it is small.
  --norm-input SIZE  LayerNorm does not see the scale of its input, but for its epsilon: everything that writes it times
                     s. In V1 (norm before each branch) that is the residual stream, written by the patch embedding's
                     norm, proj, fc2 and patch merging; in V2 (norm after it) the output of proj, fc2 and patch merging;
                     in both, the patch embedding's convolution.

SIZE is the largest magnitude to be reached on held-out crops; s is the power of two that comes nearest, so that scaling
rounds nothing. V2's residual stream is left as it is: no norm but the last reads it, and fc1 would need weights too
small for FP16. The third changes the function, and the stressed model's own FP32 logits are the ones to compare with:

  --saturate         V2: every logit_scale at its clamp, ln(100), the sharpest attention there can be.
"""
from __future__ import annotations

import argparse
import copy
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from config import add_model_arguments, get_config
from data.photo_crops import held_out_batch
from models.build import CHECKPOINTS, checkpoint_path, load_model
from models.swin import SwinTransformer
from models.swin_v2 import MAX_LOGIT_SCALE, SwinTransformerV2, WindowAttentionV2
from utils import UserError, file_to_write, run_script, shown, whole_file

IMAGES = 4  # held-out crops that sizes are measured on

# By how much the logits may move, as a share of the largest. Scaling by a power of two rounds nothing; what is left is
# LayerNorm's epsilon of 1e-5, which is up to a few per cent of its input's variance before and nothing of it after.
LARGEST_CHANGE = 0.05


def cosine_attentions(model: SwinTransformer) -> list[WindowAttentionV2]:
    """The attention modules of a V2 model.

    Raises:
        UserError: it is a V1 model, whose dot products see every factor.
    """
    found = [module for module in model.modules() if isinstance(module, WindowAttentionV2)]
    if not found:
        raise UserError("--qk and --saturate: they stress only cosine attention, and this is a V1 model; "
                        "give --norm-input")
    return found


@torch.no_grad()
def scale_qk(model: SwinTransformer, factor: float) -> None:
    """Multiply q and k of every block by `factor`, in place: V2 computes the same."""
    for attention in cosine_attentions(model):
        attention.qkv.weight[:2 * attention.dim] *= factor
        attention.q_bias *= factor  # k has none


@torch.no_grad()
def scale_norm_inputs(model: SwinTransformer, factor: float) -> None:
    """Multiply what every LayerNorm reads by `factor`, in place: the model computes the same but for the epsilons.

    The norm behind V2's last block is left out: it reads the residual stream.
    """
    writers: list[nn.Module] = [model.patch_embed.proj]
    if not isinstance(model, SwinTransformerV2):
        writers.append(model.patch_embed.norm)  # begins the residual stream
    for stage in model.layers:
        writers += [module for block in stage.blocks for module in (block.attn.proj, block.mlp.fc2)]
        if stage.downsample is not None:
            writers.append(stage.downsample.reduction)
    for writer in writers:
        for parameter in writer.parameters():
            parameter *= factor


@torch.no_grad()
def saturate(model: SwinTransformer) -> None:
    """Set every logit_scale to its clamp, in place."""
    for attention in cosine_attentions(model):
        attention.logit_scale.fill_(MAX_LOGIT_SCALE)


@torch.no_grad()
def measured(model: SwinTransformer, images: Tensor) -> tuple[Tensor, float, float]:
    """Logits [B, num_classes]; the largest magnitude of q and k (0 in V1); the largest of what a LayerNorm reads.

    Args:
        images: [B, 3, S, S], normalised.
    """
    sizes = {"qk": 0.0, "norm": 0.0}

    def see(kind: str, x: Tensor) -> None:
        sizes[kind] = max(sizes[kind], float(x.abs().max()))

    probe = copy.deepcopy(model).fold_constants()  # folded, V2's qkv is a call that a hook sees
    for module in probe.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: see("norm", inputs[0]))
        elif isinstance(module, WindowAttentionV2):
            module.qkv.register_forward_hook(lambda _, __, qkv: see("qk", qkv[..., :qkv.shape[-1] // 3 * 2]))
    return probe(images), sizes["qk"], sizes["norm"]


def factor_for(size: float, now: float) -> float:
    """The power of two that brings `now` nearest to `size`, as a ratio."""
    return 2.0 ** round(math.log2(size / now))


def positive(text: str) -> float:
    """What --qk and --norm-input take.

    Raises:
        ValueError: not a number above zero (argparse says so).
    """
    size = float(text)
    if not 0 < size < math.inf:
        raise ValueError(text)
    return size


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--qk", type=positive, metavar="SIZE",
                        help="V2: largest magnitude of q and k, e.g. 1e4 or 1e-3")
    parser.add_argument("--norm-input", type=positive, metavar="SIZE",
                        help="largest magnitude that a LayerNorm reads, e.g. 1e4")
    parser.add_argument("--saturate", action="store_true", help="V2: every logit_scale at ln(100)")
    parser.add_argument("--output", type=file_to_write, metavar="FILE",
                        help=".safetensors; default models/checkpoints/<MODEL.NAME>_stressed.safetensors")
    args = parser.parse_args(arguments)
    if args.qk is None and args.norm_input is None and not args.saturate:
        raise UserError("nothing to do: give --qk, --norm-input or --saturate")
    config = get_config(args.cfg, args.opts, args.type)
    output = args.output or CHECKPOINTS / f"{config.MODEL.NAME}_stressed.safetensors"
    if output.suffix != ".safetensors":
        raise UserError(f"{shown(output)}: not the name of a .safetensors file; let --output end so")

    checkpoint = checkpoint_path(config, args.resume, args.pretrained)
    model = load_model(config, checkpoint)
    images = torch.from_numpy(held_out_batch(IMAGES, model.img_size)[0])
    before, qk, norm = measured(model, images)
    print(f"read   {shown(checkpoint)}", flush=True)
    if args.qk is not None:
        cosine_attentions(model)
        factor = factor_for(args.qk, qk)
        scale_qk(model, factor)
        print(f"q and k times {factor:g}: largest magnitude {qk:.3g} -> {qk * factor:.3g}")
    if args.norm_input is not None:
        factor = factor_for(args.norm_input, norm)
        scale_norm_inputs(model, factor)
        print(f"inputs of LayerNorm times {factor:g}")
    after, qk, norm = measured(model, images)
    change = float((after - before).abs().max() / before.abs().max())
    sizes = f"q and k up to {qk:.3g}, " if qk else ""
    print(f"now    {sizes}inputs of LayerNorm up to {norm:.3g}; logits moved by {change:.1e} of the largest")
    if not change < LARGEST_CHANGE:  # also where it is NaN
        raise UserError(f"{shown(checkpoint)}: the logits moved by {change:.2g} of the largest: FP32 itself does not "
                        "bear these sizes, so nothing was written; give sizes nearer to 1")
    if args.saturate:
        saturate(model)
        print(f"every logit_scale at {MAX_LOGIT_SCALE:.3f}: another function")

    settings = {"checkpoint": checkpoint.name, "qk": str(args.qk), "norm_input": str(args.norm_input),
                "saturate": str(args.saturate)}
    with whole_file(output) as partial:
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, str(partial), settings)
    print(f"wrote  {shown(output)}, {output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_script(main)
