"""The configuration: what a yaml and --opts may say, and the one line that follows where they may not."""
from __future__ import annotations

import argparse
import re

import pytest

import config
from config import add_model_arguments, get_config
from models import swin
from utils import ROOT, UserError

MODELS = ROOT / "models"
RELEASES = r"https://github\.com/SwinTransformer/storage/releases/download/v(?:[12]\.0\.0|1\.0\.5)/"


def error_of(*arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        get_config(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_type_alone_means_small():
    for model_type, window, official in (("swinv1", 7, "swin_small_patch4_window7_224"),
                                         ("swinv2", 8, "swinv2_small_patch4_window8_256")):
        config = get_config(None, model_type=model_type)
        assert model_type == config.MODEL.NAME
        assert config.MODEL.SWIN.DEPTHS == [2, 2, 18, 2]
        assert window == config.MODEL.SWIN.WINDOW_SIZE
        assert config.MODEL.PRETRAINED.endswith(f"/{official}.pth")
        assert config.is_frozen()


def test_official_names_say_what_the_yaml_holds():
    official = [path for path in MODELS.glob("*.yaml") if "patch" in path.stem]
    assert len(official) == 17
    for path in official:
        config = get_config(path)
        assert path.stem == config.MODEL.NAME
        assert re.fullmatch(RELEASES + re.escape(path.stem) + r"\.pth", config.MODEL.PRETRAINED)
        transferred = re.search(r"window(\d+)to(\d+)_(\d+)to(\d+)", path.stem)
        assert (21841 if path.stem.endswith("_22k") else 1000) == config.MODEL.NUM_CLASSES
        named = transferred.group(2, 4) if transferred else re.search(r"window(\d+)_(\d+)", path.stem).groups()
        assert tuple(map(int, named)) == (config.MODEL.SWIN.WINDOW_SIZE, config.DATA.IMG_SIZE)
        assert ([12, 12, 12, 6] if transferred else [0, 0, 0, 0]) == config.MODEL.SWIN.PRETRAINED_WINDOW_SIZES
        assert ("swinv2" if "swinv2" in path.stem else "swinv1") == config.MODEL.TYPE


def test_opts_override_the_yaml():
    config = get_config(MODELS / "swin.yaml", ["DATA.IMG_SIZE", "448", "MODEL.SWIN.DEPTHS", "[1, 1, 1, 1]"])
    assert config.DATA.IMG_SIZE == 448
    assert config.MODEL.SWIN.DEPTHS == [1, 1, 1, 1]


def test_v1_needs_no_pretrained_window_sizes():
    config = get_config(MODELS / "swin.yaml", ["MODEL.SWIN.DEPTHS", "[2, 2]", "MODEL.SWIN.NUM_HEADS", "[3, 6]"])
    assert config.MODEL.SWIN.NUM_HEADS == [3, 6]


def test_configs_do_not_share_state():
    get_config(MODELS / "swin.yaml", ["DATA.IMG_SIZE", "448"])
    assert get_config(MODELS / "swin.yaml").DATA.IMG_SIZE == 224


def test_a_yaml_without_a_name_is_named_after_its_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("MODEL: {TYPE: swinv1}\n")
    assert get_config(tmp_path / "mine.yaml").MODEL.NAME == "mine"


@pytest.mark.parametrize(("text", "expected"), [
    ("MODEL: {TYPE: swinv1, DROP_RATE: 0.1}", "MODEL.DROP_RATE"),
    ("TRAIN: {EPOCHS: 300}", "TRAIN"),
    ("MODEL: {TYPE: swinv1, NUM_CLASSES: many}", "MODEL.NUM_CLASSES"),
    ("MODEL: swinv1", "MODEL"),
    ("MODEL: {TYPE: swin}", "one of swinv1, swinv2"),
    ("DATA: {IMG_SIZE: 224}", "MODEL.TYPE"),
    ("MODEL: {TYPE: swinv1, SWIN: {WINDOW_SIZE: }}", "MODEL.SWIN.WINDOW_SIZE has no value"),
    ("MODEL: {1: 2}", "int"),
    ("MODEL: [", "not a yaml file"),
    ("just text", "not a yaml file"),
    ("", "not a yaml file"),
    ("MODEL: {TYPE: swinv1, SWIN: {DEPTHS: [2, 2]}}", "one number per stage"),
    ("MODEL: {TYPE: swinv1, SWIN: {DEPTHS: [2, 2, two, 2]}}", "MODEL.SWIN.DEPTHS"),
    ("MODEL: {TYPE: swinv1, SWIN: {NUM_HEADS: [5, 6, 12, 24]}}", "96 channels of stage 1"),
    ("MODEL: {TYPE: swinv1, SWIN: {PRETRAINED_WINDOW_SIZES: [12, 12, 12, 6]}}", "only by swinv2"),
    ("MODEL: {TYPE: swinv2, SWIN: {WINDOW_SIZE: 7, PRETRAINED_WINDOW_SIZES: [0, 0, 0]}}", "one number per stage"),
    ("MODEL: {TYPE: swinv2, SWIN: {WINDOW_SIZE: 7, PRETRAINED_WINDOW_SIZES: [0, 0, -8, 0]}}", "none may be below zero"),
    ("MODEL: {TYPE: swinv1, SWIN: {MLP_RATIO: 0.01}}", "MLP_RATIO 0.01 leaves"),
    ("MODEL: {TYPE: swinv1, SWIN: {IN_CHANS: 1}}", "IN_CHANS is 1; it must be 3"),
    ("MODEL: {TYPE: swinv1, SWIN: {WINDOW_SIZE: 0}}", "above zero"),
    ("MODEL: {TYPE: swinv1, SWIN: {WINDOW_SIZE: 8}}", "windows of 8 x 8"),
    ("MODEL: {TYPE: swinv1}\nDATA: {IMG_SIZE: 225}", "PATCH_SIZE"),
    ("MODEL: {TYPE: swinv1}\nDATA: {IMG_SIZE: 252}", "not even"),
])
def test_a_yaml_that_describes_no_model(tmp_path, text, expected):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    message = error_of(path)
    assert str(path) in message
    assert expected in message


@pytest.mark.parametrize(("text", "expected"), [
    ("MODEL: {TYPE: swinv1, NAME: ../../outside}", "MODEL.NAME is '../../outside'; files are named by it"),
    ("MODEL: {TYPE: swinv1, NAME: /etc/x}", "no path"),
    ("MODEL: {TYPE: swinv1, NAME: '-rf'}", "no path"),
    ("MODEL: {TYPE: swinv1, NAME: 'a b'}", "no path"),
    ('MODEL: {TYPE: swinv1, NAME: "a\\nb"}', "no path"),
    (f"MODEL: {{TYPE: swinv1, NAME: {'a' * 129}}}", "no path"),
    ("MODEL: {TYPE: swinv1, PRETRAINED: ../../a.pth}", "must be the URL of a file"),
    ("MODEL: {TYPE: swinv1, PRETRAINED: 'https://a.b/..'}", "must be the URL of a file"),
    ("MODEL: {TYPE: swinv1, SWIN: {MLP_RATIO: .inf}}", "MLP_RATIO is inf; at most 64"),
    ("MODEL: {TYPE: swinv1, SWIN: {MLP_RATIO: .nan}}", "MLP_RATIO is nan; at most 64"),
    ("MODEL: {TYPE: swinv1, SWIN: {MLP_RATIO: 1.0e+999}}", "MLP_RATIO is inf; at most 64"),
    ("MODEL: {TYPE: swinv1, SWIN: {MLP_RATIO: -.inf}}", "above zero"),
    (f"MODEL: {{TYPE: swinv1, SWIN: {{EMBED_DIM: {'9' * 5000}}}}}", "not a model's yaml"),
    (f"MODEL: {{TYPE: swinv1, SWIN: {{EMBED_DIM: 0x{'f' * 5000}}}}}", "EMBED_DIM is a number of thousands of digits"),
    ("MODEL: {TYPE: swinv1, SWIN: {EMBED_DIM: 4000000000}}", "EMBED_DIM is 4000000000; at most 4096"),
    ("MODEL: {TYPE: swinv1, SWIN: {DEPTHS: [true, 2, 6, 2]}}", "a list of whole numbers"),
    ("MODEL: {TYPE: swinv1, SWIN: {DEPTHS: [.nan, 2, 6, 2]}}", "a list of whole numbers"),
    ("MODEL: {TYPE: swinv1, SWIN: {DEPTHS: [2, 2, 100000000, 2]}}", "DEPTHS is 100000000; at most 512"),
    ("MODEL: {TYPE: swinv1, SWIN: {WINDOW_SIZE: true}}", "WINDOW_SIZE"),
    ("MODEL: {TYPE: swinv1, NUM_CLASSES: 2001-13-45}", "not a model's yaml"),
    ("MODEL: &m {TYPE: swinv1, SWIN: *m}", "an alias"),
    ("a: &a [*a]", "an alias"),
    ("[" * 20000, "not a"),
    ("{a: " * 3000, "not a"),
    ("x" * 70000, "at most 65536"),
    ("MODEL: {TYPE: swinv1}\nOPTS: [MODEL.TYPE]", "OPTS is filled from --opts"),
    ("MODEL: {TYPE: swinv1, SWIN: {ACT: relu}}", "one of gelu, gelu_tanh"),
    ("MODEL: {TYPE: swinv2, SWIN: {WINDOW_SIZE: 7, QK_SCALE: 0.5}}", "read only by swinv1"),
    ("MODEL: {TYPE: swinv1, SWIN: {QK_SCALE: -1.0}}", "above zero"),
    ("MODEL: {TYPE: swinv1, SWIN: {NORM_EPS: 0.0}}", "between 0 and 1"),
    ("MODEL: !!python/object/apply:os.getcwd []", "not a yaml file"),
])
def test_a_yaml_that_means_harm_or_nothing(tmp_path, text, expected):
    (tmp_path / "wrong.yaml").write_text(text)
    message = error_of(tmp_path / "wrong.yaml")
    assert "wrong.yaml" in message and expected in message and len(message) < 700


def test_activations_are_those_of_the_models():
    assert list(config.ACTIVATIONS) == list(swin.ACTIVATIONS)


def test_a_yaml_that_is_not_text(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    assert "not a yaml file" in error_of(path)


@pytest.mark.parametrize(("opts", "expected"), [
    (["DATA.IMG_SIZE"], "odd length"),
    (["DATA.SIZE", "224"], "DATA.SIZE"),
    (["DATA.IMG_SIZE", "big"], "DATA.IMG_SIZE"),
    (["DATA.IMG_SIZE", "100"], "IMG_SIZE 100"),
    (["DATA.IMG_SIZE", "9" * 5000], "DATA.IMG_SIZE"),
    (["DATA.IMG_SIZE", "[" * 5000], "DATA.IMG_SIZE"),
    (["MODEL.SWIN.MLP_RATIO", "1e999"], "MLP_RATIO is inf"),
    (["MODEL.NAME", "../x"], "no path"),
    (["MODEL", "{}"], "MODEL is no single value"),
    (["MODEL.SWIN", "{}"], "MODEL.SWIN is no single value"),
    (["DATA", "1"], "DATA is no single value"),
    (["OPTS", "[1]"], "OPTS is filled from --opts"),
])
def test_wrong_opts(opts, expected):
    message = error_of(MODELS / "swin.yaml", opts)
    assert expected in message and len(message) < 1000
    assert "--opts" in message


def test_type_that_contradicts_cfg():
    message = error_of(MODELS / "swinv2.yaml", model_type="swinv1")
    assert "contradicts --type swinv1" in message
    assert "swinv2.yaml" in message


def test_nothing_chosen_and_nothing_there(tmp_path):
    assert "--type" in error_of(None)
    assert "swinv3" in error_of(None, model_type="swinv3")
    assert "no such file" in error_of(tmp_path / "none.yaml")
    assert "folder" in error_of(tmp_path)


def test_model_arguments(capsys):
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    arguments = parser.parse_args(["--cfg", "models/swin.yaml", "--resume", "a.pth", "--opts", "DATA.IMG_SIZE", "448"])
    assert (arguments.type, arguments.pretrained) == (None, False)
    assert get_config(MODELS / "swin.yaml", arguments.opts, arguments.type).DATA.IMG_SIZE == 448
    arguments = parser.parse_args(["--cfg", "x", "--weights", "ema", "--opts", "DATA.IMG_SIZE", "448"])
    assert get_config(MODELS / "swin.yaml", arguments.opts).MODEL.WEIGHTS == "ema"
    arguments = parser.parse_args(["--opts", "DATA.IMG_SIZE", "448", "--weights", "ema"])
    config = get_config(MODELS / "swin.yaml", arguments.opts)
    assert (config.MODEL.WEIGHTS, config.DATA.IMG_SIZE) == ("ema", 448)
    assert config.OPTS == ["DATA.IMG_SIZE", "MODEL.WEIGHTS"]
    for wrong in (["--type", "swin"], ["--config", "x.yaml"]):
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(wrong)
        assert caught.value.code == 2
