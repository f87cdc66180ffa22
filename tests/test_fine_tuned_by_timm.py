"""One's own fine-tuning: trained by timm's own loop parts, saved by its CheckpointSaver, to an INT8 graph by README's
commands.

timm's train.py is a script of its repository and not in its package; what it does is in the package and used here:
model, optimizer, scheduler, moving average of the weights, and the saver, which puts the script's argparse.Namespace
in the file.
"""
from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType

import add_all
import add_int8
import export_onnx
import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import timm.optim
import timm.scheduler
import timm.utils
import torch
from torch import nn

from data.images import normalise
from data.photo_crops import crops, held_out_batch
from TensorRT.INT8 import quant
from utils import ROOT

CLASSES = 37  # more than the photographs: the first 18 get images
SIDE = 56  # pixels: two stages, of four windows and of one
MICRO = {"embed_dim": 32, "depths": (2, 1), "num_heads": (1, 2), "img_size": SIDE}
OPTS = ("--opts", "DATA.IMG_SIZE", SIDE, "MODEL.SWIN.DEPTHS", "[2,1]", "MODEL.SWIN.NUM_HEADS", "[1,2]",
        "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[0,0]")
STEPS, BATCH = 6, 6


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, randomize) -> tuple[Path, nn.Module, nn.Module]:
    """The folder that timm's saver wrote to, the model, and the moving average of its weights."""
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    args = argparse.Namespace(model="swin_tiny_patch4_window7_224", model_kwargs=MICRO, num_classes=CLASSES, lr=1e-3,
                              opt="adamw", weight_decay=0.05, momentum=0.9, epochs=1, data_dir=Path("photographs"),
                              sched="cosine", aa="rand-m9-mstd0.5-inc1")
    model = timm.create_model(args.model, num_classes=CLASSES, **MICRO)
    # As if pre-trained: weights that let attention and every bias contribute, with small steps from there.
    randomize(model)
    optimizer = timm.optim.create_optimizer_v2(model, **timm.optim.optimizer_kwargs(args))
    scheduler = timm.scheduler.CosineLRScheduler(optimizer, t_initial=STEPS, t_in_epochs=False)
    average = timm.utils.ModelEmaV3(model, decay=0.5)
    saver = timm.utils.CheckpointSaver(model, optimizer, args=args, model_ema=average, checkpoint_dir=str(folder),
                                       recovery_dir=str(folder))
    pixels, labels = crops("train", STEPS * BATCH, SIDE)
    images, labels = torch.from_numpy(normalise(pixels)), torch.from_numpy(labels)
    model.train()
    losses = []
    for step in range(STEPS):
        part = slice(step * BATCH, (step + 1) * BATCH)
        loss = nn.functional.cross_entropy(model(images[part]), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model, step)
        scheduler.step_update(step)
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    saver.save_checkpoint(0, metric=1.0)
    return folder, model.eval(), average.module.eval()


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images})[0]


def test_from_timms_file_to_an_int8_graph(tuned, tmp_path, as_a_script):
    folder, model, average = tuned

    def run(script: ModuleType, *arguments: str | Path) -> str:
        """What a script of the project prints; it must end well."""
        done = as_a_script(script, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    saved = torch.load(folder / "model_best.pth.tar", weights_only=False)
    assert isinstance(saved["args"], argparse.Namespace) and {"state_dict", "state_dict_ema"} <= saved.keys()

    path = tmp_path / "tuned.onnx"
    export = (export_onnx, "--cfg", ROOT / "models" / "swin_micro.yaml", "--resume", folder / "model_best.pth.tar",
              *OPTS)
    told = run(*export, "--output", path)
    assert "taken under 'state_dict', not 'state_dict_ema' (--weights); layout of timm" in told
    assert f"{CLASSES} classes" in told
    images, _ = held_out_batch(2, SIDE)
    with torch.no_grad():
        expected, expected_of_average = (m(torch.from_numpy(images)).numpy() for m in (model, average))
    assert np.abs(expected - expected_of_average).max() > 1e-2
    assert np.abs(logits(path, images) - expected).max() <= 1e-4
    run(*export, "--weights", "ema", "--output", tmp_path / "average.onnx")
    assert np.abs(logits(tmp_path / "average.onnx", images) - expected_of_average).max() <= 1e-4

    told = run(add_all, "--onnx", path, "--fp16", "--output", tmp_path / "tuned_attention.onnx")
    assert "SwinAttention" in told
    run(quant, "--onnx", path, "--narrow", "--batches", "2", "--batch-size", "6", "--cache",
        tmp_path / "tuned.cache", "--output", tmp_path / "tuned_int8.onnx")
    run(add_int8, "--onnx", tmp_path / "tuned_int8.onnx", "--output",
        tmp_path / "tuned_attention_int8.onnx")
    graph = onnx.load(str(tmp_path / "tuned_attention_int8.onnx")).graph
    operators = {node.op_type for node in graph.node}
    assert any("Attention" in operator for operator in operators) and "Softmax" not in operators
    assert graph.output[0].type.tensor_type.shape.dim[1].dim_value == CLASSES
