"""Training: what the model sees, how the steps are made, what is written."""
from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch.nn import functional as F

from config import get_config
from data.photo_crops import CLASSES, held_out_batch, tiles
from models import train
from models.build import build_model, load_checkpoint, load_model
from models.train import TrainCrops, learning_rate_share, make_optimizer, resize_matrix
from utils import ROOT, UserError

CPU = torch.device("cpu")
TINY = ["DATA.IMG_SIZE", "32", "MODEL.SWIN.WINDOW_SIZE", "4", "MODEL.SWIN.EMBED_DIM", "16",
        "MODEL.SWIN.DEPTHS", "[1,2]", "MODEL.SWIN.NUM_HEADS", "[1,2]", "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[0,0]"]


@pytest.mark.parametrize(("start", "length", "target"), [(0, 40, 40), (3, 30, 64), (5, 33, 12), (11, 29, 28)])
def test_resize_matrix_equals_pillow(start, length, target):
    """Along both axes, up and down. Pillow rounds to whole levels after each axis; the second axis amplifies the first
    rounding by the sum of its weights' magnitudes, which is below 1.3."""
    pixels = np.random.default_rng(length).integers(60, 200, (40, 40), dtype=np.uint8)
    cut = Image.fromarray(pixels[start:start + length, start:start + length])
    expected = np.asarray(cut.resize((target, target), Image.Resampling.BICUBIC)).astype(float)
    matrix = resize_matrix(torch.tensor([float(start)]), torch.tensor([float(length)]), 40, target)[0]
    ours = (matrix @ torch.from_numpy(pixels).float() @ matrix.T).numpy()
    assert np.abs(ours - expected).max() <= 0.5 + 0.5 * 1.3
    outside = torch.ones(40, dtype=bool)
    outside[start:start + length] = False
    assert torch.all(matrix[:, outside] == 0)


def test_no_test_pixel_reaches_a_training_crop(monkeypatch):
    """Photographs that are black where training tiles are and white elsewhere: every training crop must be black."""
    def painted(name: str) -> np.ndarray:
        pixels = np.full((300, 400 + 7 * CLASSES.index(name), 3), 255, np.uint8)
        for left, top, width, height in tiles(pixels.shape[1], pixels.shape[0], "train"):
            pixels[top:top + height, left:left + width] = 0
        return pixels

    monkeypatch.setattr(train, "photo", painted)
    images, _ = TrainCrops(32, CPU, 0).batch(500)
    black = (0 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(images, black[:, None, None].expand_as(images))


def test_labels_belong_to_the_crops(monkeypatch):
    """Each photograph in a grey of its own, no jitter: the grey tells the class."""
    monkeypatch.setattr(train, "photo", lambda name: np.full((300, 400, 3), 10 * CLASSES.index(name), np.uint8))
    monkeypatch.setattr(train, "JITTER", 0.0)
    images, labels = TrainCrops(32, CPU, 0).batch(500)
    grey = images[:, 0] * 0.229 + 0.485
    torch.testing.assert_close(grey, (10 * labels / 255)[:, None, None].expand_as(grey))
    assert set(labels.tolist()) == set(range(len(CLASSES)))


def test_batches_are_augmented_and_fixed_by_the_seed():
    crops = TrainCrops(32, CPU, 0)
    first, second = crops.batch(16), crops.batch(16)
    again = TrainCrops(32, CPU, 0).batch(16)
    assert first[0].shape == (16, 3, 32, 32) and first[0].dtype == torch.float32
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(TrainCrops(32, CPU, 1).batch(16)[0], first[0])


def test_half_the_crops_are_mirrored(monkeypatch):
    """Photographs that grow brighter to the right."""
    ramp = np.linspace(0, 255, 400).astype(np.uint8)[None, :, None].repeat(300, 0).repeat(3, 2)
    monkeypatch.setattr(train, "photo", lambda name: ramp)
    images, _ = TrainCrops(32, CPU, 0).batch(1000)
    mirrored = (images[..., :16].mean(dim=(1, 2, 3)) > images[..., 16:].mean(dim=(1, 2, 3))).float().mean().item()
    assert abs(mirrored - 0.5) < 4 * math.sqrt(0.25 / 1000)


def test_learning_rate_warms_up_and_falls_to_almost_nothing():
    shares = [learning_rate_share(step, 200) for step in range(200)]
    assert shares[0] == pytest.approx(1 / 20) and shares[19] == 1 and max(shares) == 1
    assert shares[20 + 90] == pytest.approx(0.5) and 0 < shares[-1] < 1e-3
    assert np.all(np.diff(shares[:20]) > 0) and np.all(np.diff(shares[20:]) < 0)
    assert learning_rate_share(0, 1) == 1


@pytest.mark.parametrize("cfg", ["swin_micro.yaml", "swinv2_micro.yaml"])
def test_weight_decay_is_for_matrices(cfg):
    model = build_model(get_config(ROOT / "models" / cfg))
    decayed, free = make_optimizer(model, 1e-3).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] > 0 == free["weight_decay"]
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    for name in (names[id(p)] for p in decayed["params"]):
        assert name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight", "reduction.weight",
                              "head.weight")), name
    for name in (names[id(p)] for p in free["params"]):
        assert name.endswith(("bias", "logit_scale", "bias_table")) or "norm" in name or "cpb_mlp" in name, name


def run_train(*arguments: str) -> None:
    train.main(["--device", "cpu", *arguments])


@pytest.mark.parametrize("cfg", ["models/swin_micro.yaml", "models/swinv2_micro.yaml"])
def test_a_tiny_model_learns_and_its_file_loads(tmp_path, capsys, monkeypatch, cfg):
    tested = {}

    def spy(model, count, device, original=train.held_out_top1):
        tested.update({key: value.clone() for key, value in model.state_dict().items()})
        return original(model, count, device)

    monkeypatch.setattr(train, "held_out_top1", spy)
    output = tmp_path / "tiny.safetensors"
    run_train("--cfg", str(ROOT / cfg), "--opts", *TINY, "--steps", "60", "--batch-size", "32",
              "--count", "180", "--half", "--output", str(output))
    printed = capsys.readouterr().out
    assert "step    60/60" in printed and "s left" in printed
    config = get_config(ROOT / cfg, TINY)
    for key, value in load_checkpoint(output, config).items():
        assert value.dtype == torch.float32 and torch.equal(value, tested[key]), "tested is not what was written"
    with safe_open(output, "pt") as file:
        metadata = file.metadata()
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
    assert metadata["classes"].split(",") == CLASSES and metadata["steps"] == "60" and metadata["lr"] == "0.002"
    # The figure in the file is that of the weights in the file, and far from guessing (1 in 18, +- 2 %).
    images, labels = held_out_batch(180, 32)
    model = load_model(config, output)
    with torch.inference_mode():
        right = (model(torch.from_numpy(images)).argmax(dim=1).numpy() == labels).mean()
    assert float(metadata["held_out_top1"]) == pytest.approx(right, abs=1e-4)
    assert right > 0.2
    assert f"{100 * right:.2f} %" in printed


def test_bf16_trains_and_keeps_fp32_weights(tmp_path):
    run_train("--cfg", str(ROOT / "models/swinv2_micro.yaml"), "--opts", *TINY, "--steps", "2", "--batch-size", "4",
              "--count", "18", "--precision", "bf16", "--output", str(tmp_path / "tiny.safetensors"))
    with safe_open(tmp_path / "tiny.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float32}  # noqa: SIM118


def test_bad_input_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "file").touch()
    tiny = ["--cfg", str(ROOT / "models/swin_micro.yaml"), "--batch-size", "4", "--opts", *TINY]
    for arguments, problem in [
        ([*tiny, "--steps", "30", "--lr", "1e30", "--output", str(tmp_path / "out.safetensors")], "the loss is"),
        ([*tiny, "--steps", "1", "--output", str(tmp_path / "file" / "out.safetensors")], "cannot be written"),
        ([*tiny, "--steps", "1", "--output", str(tmp_path / "out.pth")], r"ends in \.safetensors"),
        (["--cfg", str(tmp_path / "no.yaml")], "no such file"),
        ([*tiny, "MODEL.NUM_CLASSES", "7"], "the photographs are of 18 classes"),
    ]:
        with pytest.raises(UserError, match=problem):
            run_train(*arguments)
    for arguments in (["--steps", "0"], ["--count", "17"], ["--lr", "inf"], ["--lr", "nan"], ["--lr", "0"]):
        with pytest.raises(SystemExit):
            run_train(*tiny, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_last_step_is_checked_too(tmp_path, monkeypatch):
    """The loss of a step is that of the weights before it: one that breaks them shows in the weights only."""
    class Breaks(torch.optim.SGD):
        def step(self):
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(math.nan)

    monkeypatch.setattr(train, "make_optimizer", lambda model, rate: Breaks(model.parameters(), rate))
    tiny = ["--cfg", str(ROOT / "models/swin_micro.yaml"), "--opts", *TINY, "--batch-size", "4", "--steps", "1",
            "--output", str(tmp_path / "out.safetensors")]
    with pytest.raises(UserError, match=r"1 tensors are no finite numbers after 1 steps, patch_embed\.proj\.weight"):
        run_train(*tiny)
    assert not list(tmp_path.iterdir())


def test_a_model_that_gives_no_numbers_is_not_written(tmp_path):
    tiny = ["--cfg", str(ROOT / "models/swin_micro.yaml"), "--opts", *TINY, "--batch-size", "4", "--steps", "1",
            "--output", str(tmp_path / "out.safetensors")]
    with pytest.raises(UserError, match=r"gives NaN or infinity|are no finite numbers"):
        run_train(*tiny, "--lr", "1e30")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   SafetensorError("No space left on device (os error 28)")], ids=["os", "safetensors"])
def test_a_full_disk_loses_no_training(error, tmp_path, monkeypatch):
    folders = {name: tmp_path / name for name in ("full", "here", "home")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.chdir(folders["here"])
    monkeypatch.setenv("HOME", str(folders["home"]))
    full = ["full", "here"]

    def save_file(weights, path, metadata):
        Path(path).write_bytes(b"half")
        if any(Path(path).is_relative_to(folders[name]) for name in full):
            raise error
        safetensors.torch.save_file(weights, path, metadata)

    monkeypatch.setattr(train, "save_file", save_file)
    weights = {"a": torch.arange(3.0)}
    with pytest.raises(UserError, match=r"full/out\.safetensors: could not be written .*No space.* lies in .*home"):
        train.save(weights, folders["full"] / "out.safetensors", {"made_by": "a test"})
    assert torch.equal(safetensors.torch.load_file(folders["home"] / "out.safetensors")["a"], weights["a"])
    assert [path.name for name in full for path in folders[name].iterdir()] == []


def test_missing_photographs_are_one_line_and_a_status(tmp_path):
    command = [sys.executable, str(ROOT / "models/train.py"), "--cfg", str(ROOT / "models/swin_micro.yaml"),
               "--opts", *TINY, "--device", "cpu", "--output", str(tmp_path / "out.safetensors")]
    done = subprocess.run(command, env={**os.environ, "PHOTO_DIR": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "no such photograph" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("cfg", ["swin_micro.yaml", "swinv2_micro.yaml"])
def test_shipped_checkpoints_are_small_and_know_the_held_out_crops(cfg):
    config = get_config(ROOT / "models" / cfg)
    path = ROOT / "models" / "checkpoints" / f"{config.MODEL.NAME}.safetensors"
    assert path.stat().st_size <= 4e6
    model = load_model(config)
    assert model.num_classes == len(CLASSES)
    images, labels = held_out_batch(180, model.img_size)
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in torch.from_numpy(images).split(20)])
    assert (logits.argmax(dim=1).numpy() == labels).mean() >= 0.9
    assert F.cross_entropy(logits, torch.from_numpy(labels)).item() < 1
