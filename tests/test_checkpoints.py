"""Checkpoint files of every kind that is read, and the one line that follows where one cannot be."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from yacs.config import CfgNode

from config import get_config
from models import build
from models.build import build_model, checkpoint_path, load_checkpoint, load_model
from models.swin import WindowAttentionBase
from utils import ROOT, UserError

MICROS = ["swin_micro", "swinv2_micro"]


def config_of(stem: str, *opts: str) -> CfgNode:
    return get_config(ROOT / "models" / f"{stem}.yaml", opts)


@pytest.fixture(scope="module")
def weights(randomize) -> dict[str, dict[str, Tensor]]:
    """State dicts with official names, by yaml."""
    return {stem: dict(randomize(build_model(config_of(stem))).state_dict()) for stem in MICROS}


def official_buffers(config: CfgNode) -> dict[str, Tensor]:
    """The buffers that an official file of this configuration holds beside the weights."""
    buffers = {}
    for name, module in build_model(config).named_modules():
        if isinstance(module, WindowAttentionBase):
            buffers[f"{name}.relative_position_index"] = module.relative_position_index
            if config.MODEL.TYPE == "swinv2":
                buffers[f"{name}.relative_coords_table"] = module.relative_coords_table
            if module.attn_mask is not None:
                buffers[f"{name.removesuffix('.attn')}.attn_mask"] = module.attn_mask.squeeze(1)
    return buffers


def assert_same(loaded: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert loaded.keys() == expected.keys()
    for key, value in loaded.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[key]), key


def error_of(function, *arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- files that load -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffers", [True, False], ids=["buffers", "no-buffers"])
@pytest.mark.parametrize("nested", ["model", "state_dict", None])
@pytest.mark.parametrize("stem", MICROS)
def test_official_file(stem, nested, buffers, weights, tmp_path):
    state = {**weights[stem], **(official_buffers(config_of(stem)) if buffers else {})}
    torch.save({nested: state} if nested else state, tmp_path / "official.pth")
    assert_same(load_checkpoint(tmp_path / "official.pth", config_of(stem)), weights[stem])
    assert_same(load_model(config_of(stem), tmp_path / "official.pth").state_dict(), weights[stem])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_file_of_the_official_training_script(zipped, weights, tmp_path):
    """It holds a CfgNode, which torch.load(weights_only=True) refuses unless told how to read it."""
    config = CfgNode({"MODEL": {"DEPTHS": [2, 2]}, "LR": 0.1})
    config.freeze()
    saved = {"model": weights["swin_micro"], "optimizer": {"state": {0: {"step": 1}}}, "config": config, "epoch": 299,
             "max_accuracy": 99.5}
    torch.save(saved, tmp_path / "ckpt.pth", _use_new_zipfile_serialization=zipped)
    assert_same(load_checkpoint(tmp_path / "ckpt.pth", config_of("swin_micro")), weights["swin_micro"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("stem", "name"), [("swin_micro", "swin_tiny_patch4_window7_224"),
                                            ("swinv2_micro", "swinv2_tiny_window8_256")])
def test_timm_file(stem, name, suffix, tmp_path, randomize):
    model = randomize(timm.create_model(name, embed_dim=32, depths=(2, 2, 2, 1), num_heads=(1, 2, 4, 8), num_classes=5))
    path = tmp_path / f"timm{suffix}"
    save_file(model.state_dict(), path) if suffix == ".safetensors" else torch.save(model.state_dict(), path)
    loaded = load_model(config_of(stem), path)
    x = torch.randn(1, 3, loaded.img_size, loaded.img_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model.eval()(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("classes", [1, 3, 21841])
def test_number_of_classes_comes_from_the_file(classes, weights, tmp_path):
    state = {**weights["swin_micro"], "head.weight": torch.randn(classes, 256), "head.bias": torch.randn(classes)}
    torch.save(state, tmp_path / "tuned.pth")
    config = config_of("swin_micro")
    model = load_model(config, tmp_path / "tuned.pth")
    assert model.num_classes == classes
    assert model(torch.zeros(2, 3, 224, 224)).shape == (2, classes)
    assert config.MODEL.NUM_CLASSES == 18  # the caller's configuration stays as it is


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision_file_is_read_as_fp32(dtype, weights, tmp_path):
    state = {key: value.to(dtype) for key, value in weights["swinv2_micro"].items()}
    buffers = {key: value.to(dtype) if value.is_floating_point() else value
               for key, value in official_buffers(config_of("swinv2_micro")).items()}
    save_file({**state, **buffers}, tmp_path / "half.safetensors")
    loaded = load_checkpoint(tmp_path / "half.safetensors", config_of("swinv2_micro"))
    assert_same(loaded, {key: value.float() for key, value in state.items()})


def test_buffers_of_another_image_size_do_not_matter(weights, tmp_path):
    """The mask depends on the image size, the weights do not."""
    larger = config_of("swinv2_micro", "DATA.IMG_SIZE", "512")
    torch.save({**weights["swinv2_micro"], **official_buffers(config_of("swinv2_micro"))}, tmp_path / "256.pth")
    model = load_model(larger, tmp_path / "256.pth")
    assert model(torch.zeros(1, 3, 512, 512)).shape == (1, 18)


def test_loaded_model_is_ready_to_run(weights, tmp_path):
    torch.save(weights["swin_micro"], tmp_path / "plain.pth")
    model = load_model(config_of("swin_micro"), tmp_path / "plain.pth")
    assert not model.training
    assert (model.img_size, model.num_classes) == (224, 18)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


# --- files that do not ---------------------------------------------------------------------------------------


def test_the_other_model(weights, tmp_path):
    for stem, other in (MICROS, MICROS[::-1]):
        torch.save(weights[other], tmp_path / "other.pth")
        message = error_of(load_model, config_of(stem), tmp_path / "other.pth")
        assert f"it holds a {config_of(other).MODEL.TYPE} of" in message
        assert f"give --cfg models/{other}.yaml." in message


def test_another_variant(weights, tmp_path):
    torch.save(weights["swin_micro"], tmp_path / "micro.pth")
    message = error_of(load_model, config_of("swin_micro", "MODEL.SWIN.EMBED_DIM", "64"), tmp_path / "micro.pth")
    assert "EMBED_DIM 32, DEPTHS [2, 2, 2, 1]" in message
    assert "patch_embed.proj.weight [32, 3, 4, 4] for [64, 3, 4, 4]" in message


def test_missing_and_unexpected_names_are_listed(weights, tmp_path):
    state = dict(weights["swin_micro"])
    missing = [key for key in state if key.startswith("layers.1.blocks.")]
    for key in missing:
        del state[key]
    state["head_dist.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "partial.pth")
    message = error_of(load_model, config_of("swin_micro"), tmp_path / "partial.pth")
    assert f"{len(missing)} missing: {', '.join(missing[:10])}, ...;" in message
    assert missing[10] not in message
    assert message.endswith("1 unexpected: head_dist.weight")


def test_half_a_head(weights, tmp_path):
    torch.save({key: value for key, value in weights["swin_micro"].items() if key != "head.weight"}, tmp_path / "a.pth")
    assert "1 missing: head.weight" in error_of(load_model, config_of("swin_micro"), tmp_path / "a.pth")


def test_a_network_of_another_kind(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    assert "no Swin Transformer" in error_of(load_model, config_of("swin_micro"), tmp_path / "resnet.pth")


def test_v2_of_another_window(weights, tmp_path):
    """Its weights have the same shapes; the buffers tell."""
    torch.save({**weights["swinv2_micro"], **official_buffers(config_of("swinv2_micro"))}, tmp_path / "window8.pth")
    config = config_of("swinv2_micro", "MODEL.SWIN.WINDOW_SIZE", "16")
    message = error_of(load_model, config, tmp_path / "window8.pth")
    assert "trained with a window of 8, the model has one of 16" in message
    config = config_of("swinv2_micro", "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[6, 6, 6, 6]")
    message = error_of(load_model, config, tmp_path / "window8.pth")
    assert "other MODEL.SWIN.PRETRAINED_WINDOW_SIZES" in message


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_truncated_file(suffix, share, weights, tmp_path):
    path = tmp_path / f"whole{suffix}"
    save_file(weights["swin_micro"], path) if suffix == ".safetensors" else torch.save(weights["swin_micro"], path)
    whole = path.read_bytes()
    path.write_bytes(whole[:int(share * len(whole))])
    message = error_of(load_model, config_of("swin_micro"), path)
    assert str(path) in message
    assert "truncated" in message


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"<html>404</html>",
                                     b"\x80\x02}q\x00.", bytes(range(256)), b"PK\x03\x04" + bytes(60)])
def test_no_checkpoint(suffix, content, tmp_path):
    path = tmp_path / f"other{suffix}"
    path.write_bytes(content)
    message = error_of(load_model, config_of("swin_micro"), path)
    assert str(path) in message and "weights_only" not in message


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": {}}, {"a": 1}, {"model": torch.zeros(2)}, torch.zeros(3)],
                         ids=str)
def test_no_state_dict(content, tmp_path):
    torch.save(content, tmp_path / "odd.pth")
    error_of(load_model, config_of("swin_micro"), tmp_path / "odd.pth")


def test_code_in_a_file_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": Attack()}, tmp_path / "attack.pth")
    message = error_of(load_model, config_of("swin_micro"), tmp_path / "attack.pth")
    assert "calls builtins.getattr when it is read, which a file of weights has no use for: not read" in message
    assert not (tmp_path / "ran").exists()


def test_no_file(tmp_path):
    assert "no such file" in error_of(load_model, config_of("swin_micro"), tmp_path / "none.pth")
    assert "folder" in error_of(load_model, config_of("swin_micro"), tmp_path)


# --- which file ----------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path, monkeypatch) -> Path:
    """An empty folder in place of models/checkpoints."""
    folder = tmp_path / "checkpoints"
    monkeypatch.setattr(build, "CHECKPOINTS", folder)
    return folder


def test_micro_variants_take_the_file_that_ships(checkpoints, weights):
    config = config_of("swin_micro")
    assert "models/train.py" in error_of(checkpoint_path, config)
    checkpoints.mkdir()
    save_file({key: value.half() for key, value in weights["swin_micro"].items()},
              checkpoints / "swinv1_micro.safetensors")
    assert checkpoint_path(config) == checkpoints / "swinv1_micro.safetensors"
    assert_same(load_model(config).state_dict(), {key: v.half().float() for key, v in weights["swin_micro"].items()})


def test_no_weights_chosen(checkpoints):
    message = error_of(checkpoint_path, config_of("swin"))
    assert "--resume FILE" in message
    assert "--pretrained" in message


def test_two_checkpoints_or_none_that_is_official(tmp_path):
    assert "leave one" in error_of(checkpoint_path, config_of("swin"), resume=tmp_path / "a.pth", pretrained=True)
    assert "no official checkpoint" in error_of(checkpoint_path, config_of("swin_micro"), pretrained=True)


def official_at(url: str) -> CfgNode:
    return config_of("swin_micro", "MODEL.PRETRAINED", url)


def test_download_once(checkpoints, weights, tmp_path):
    source = tmp_path / "official.pth"
    torch.save({"model": weights["swin_micro"]}, source)
    config = official_at(source.as_uri())
    assert_same(load_model(config, pretrained=True).state_dict(), weights["swin_micro"])
    assert [path.name for path in checkpoints.iterdir()] == ["official.pth"]
    source.unlink()  # a second download would fail
    assert_same(load_model(config, pretrained=True).state_dict(), weights["swin_micro"])


@pytest.mark.parametrize("kept", [0, 1000], ids=["empty", "truncated"])
def test_download_of_less_than_a_checkpoint_leaves_nothing(kept, checkpoints, weights, tmp_path):
    source = tmp_path / "official.pth"
    torch.save({"model": weights["swin_micro"]}, source)
    source.write_bytes(source.read_bytes()[:kept])
    message = error_of(load_model, official_at(source.as_uri()), pretrained=True)
    assert re.match(re.escape(source.as_uri()) + ": truncated", message)
    assert list(checkpoints.iterdir()) == []


def test_download_without_a_network(checkpoints):
    # Port 1 of this machine: nothing listens there, so the connection is refused at once.
    message = error_of(load_model, official_at("http://127.0.0.1:1/swin.pth"), pretrained=True)
    assert "download failed" in message
    assert "--resume FILE" in message
    assert list(checkpoints.iterdir()) == []
