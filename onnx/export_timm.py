"""Export timm's model with the weights of a checkpoint to ONNX, the batch fixed: what a user could build instead.

    python onnx/export_timm.py --type swinv1 --resume swin_small_patch4_window7_224.pth --batch 32
    TensorRT/build.sh onnx/swinv1_timm_b32.onnx --fixed --fp16

The race measures it beside this project's own export: TensorRT 8.6 matches its fused attention in this graph, which a
batch left open keeps it from. Nothing is wrapped, folded or renamed: it is timm's module as torch's TorchScript
exporter writes it, FP32, input `input` [B, 3, S, S], output `logits` [B, num_classes]. The file appears only if
onnxruntime computes with it what this project's model computes, to 1e-4 of the largest |logit|.

FP16 is the builder's doing (--fp16), which TensorRT 8.6 and 9 have; from 10 on the graph's types are binding.
"""
from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from yacs.config import CfgNode

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from config import add_model_arguments, cfg_path, get_config
from data.batches import real_images
from graphs.compare import max_abs_err
from graphs.facts import of_model, with_facts
from graphs.files import load_onnx, onnx_target
from graphs.sessions import onnx_logits, onnx_session
from models.build import checkpoint_path, load_model
from models.swin import SwinTransformer
from utils import ROOT, UserError, from_one, run_script, shown, whole_file

OPSET = 17  # what TensorRT 8.6 parses
TOLERANCE = 1e-4  # of the largest |logit|


def make_torchvision_importable() -> None:
    """Stand in for two operators of torchvision's compiled part, where that part cannot be loaded.

    timm imports torchvision, and torchvision's import fails if its library of operators does not match the torch
    beside it, as with the PyPI wheel beside a CPU build of torch. No Swin Transformer calls these operators: that they
    are defined is enough.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def timm_model(config: CfgNode, model: SwinTransformer) -> nn.Module:
    """timm's model of the same architecture with the same weights, in eval mode.

    Raises:
        UserError: timm cannot be imported.
    """
    try:
        make_torchvision_importable()
        from timm.models import swin_transformer, swin_transformer_v2
    except ImportError as error:
        raise UserError(f"timm cannot be imported ({error}); pip install -r requirements-test.txt") from error
    swin = config.MODEL.SWIN
    architecture = {
        "img_size": config.DATA.IMG_SIZE, "patch_size": swin.PATCH_SIZE, "in_chans": swin.IN_CHANS,
        "num_classes": model.num_classes, "embed_dim": swin.EMBED_DIM, "depths": tuple(swin.DEPTHS),
        "num_heads": tuple(swin.NUM_HEADS), "window_size": swin.WINDOW_SIZE, "mlp_ratio": swin.MLP_RATIO,
    }
    if config.MODEL.TYPE == "swinv2":
        library = swin_transformer_v2
        theirs = library.SwinTransformerV2(pretrained_window_sizes=tuple(swin.PRETRAINED_WINDOW_SIZES), **architecture)
    else:
        library = swin_transformer
        theirs = library.SwinTransformer(**architecture)
    theirs.load_state_dict(library.checkpoint_filter_fn(dict(model.state_dict()), theirs))
    return theirs.eval()


def export(model: nn.Module, images: torch.Tensor, path: Path) -> None:
    """Write what torch's TorchScript exporter makes of a model for a batch of exactly these images' shape."""
    with warnings.catch_warnings():
        # That this exporter is the old one, and that timm checks shapes, which are fixed here, in Python.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(model, (images,), str(path), dynamo=False, opset_version=OPSET, input_names=["input"],
                          output_names=["logits"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    parser.add_argument("--fixed-batch", "--batch", dest="batch", type=from_one, default=1, metavar="N",
                        help="the batch that is fixed in the graph (default: 1)")
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="ONNX file to write (default: onnx/<MODEL.NAME>_timm_b<N>.onnx)")
    args = parser.parse_args(arguments)
    config = get_config(args.cfg, args.opts, args.type)
    output = onnx_target(args.output or ROOT / "onnx" / f"{config.MODEL.NAME}_timm_b{args.batch}.onnx")

    start = time.perf_counter()
    checkpoint = checkpoint_path(config, args.resume, args.pretrained)
    model = load_model(config, checkpoint, outputs=("logits",))
    print(f"read    {shown(checkpoint)}: {config.MODEL.NAME}, {model.num_classes} classes", flush=True)
    images = real_images(args.batch, model.img_size)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    with whole_file(output) as partial:
        export(timm_model(config, model), torch.from_numpy(images), partial)
        logits = onnx_logits(onnx_session(partial), images, output)
        error, largest = max_abs_err(logits, expected), float(np.abs(expected).max())
        if not error <= TOLERANCE * largest:  # NaN never is
            raise UserError(f"{shown(output)}: not written: timm's model is off by {error:.2e}, at most "
                            f"{TOLERANCE * largest:.2e} is allowed; is {shown(args.cfg or args.type)} the variant of "
                            f"{shown(checkpoint)}?")
        exported = with_facts(load_onnx(partial), replace(
            of_model(config, cfg_path(args.cfg, args.type), checkpoint, "timm"),
            tools={"torch": torch.__version__, "timm": metadata.version("timm")}))
        onnx.save(exported, str(partial))
        nodes = len(exported.graph.node)
    print(f"wrote   {shown(output)}: timm's model, opset {OPSET}, batch {args.batch} fixed, {nodes} nodes, "
          f"{output.stat().st_size / 2**20:.1f} MiB, in {time.perf_counter() - start:.1f} s")
    print(f"checked in onnxruntime against this project's model on {args.batch} images: max abs error {error:.2e}, at "
          f"most {TOLERANCE * largest:.2e} allowed; largest |logit| {largest:.2f}")


if __name__ == "__main__":
    run_script(main)
