"""Checkpoints of other libraries: loaded here, they give what the library's own model gives, to 1e-4.

mmdetection's is compared with a module written for this test after the published source (it cannot be installed beside
this torch): https://github.com/open-mmlab/mmdetection/blob/main/mmdet/models/backbones/swin.py.
"""
from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
import torchvision.models.swin_transformer as torchvision_swin
import transformers
from timm.models import swin_transformer, swin_transformer_v2
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from config import get_config
from models.build import build_model, load_model
from utils import ROOT, UserError

# Two stages of two blocks: 8 x 8 tokens in four windows, shifted, then 4 x 4 in one.
WIDTH, DEPTHS, HEADS, WINDOW, SIDE, CLASSES = 16, [2, 2], [1, 2], 4, 32, 5
OPTS = ["DATA.IMG_SIZE", str(SIDE), "MODEL.SWIN.WINDOW_SIZE", str(WINDOW), "MODEL.SWIN.EMBED_DIM", str(WIDTH),
        "MODEL.SWIN.DEPTHS", str(DEPTHS), "MODEL.SWIN.NUM_HEADS", str(HEADS), "MODEL.SWIN.PRETRAINED_WINDOW_SIZES",
        "[0,0]"]
VERSIONS = [1, 2]


def config_of(version: int, *opts: str) -> CfgNode:
    return get_config(ROOT / "models" / ("swin_micro.yaml" if version == 1 else "swinv2_micro.yaml"), [*OPTS, *opts])


def images(seed: int = 1) -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_same_outputs(state: dict[str, Tensor], expected: Tensor | list[Tensor], config: CfgNode, path: Path) -> None:
    """A file with these weights, loaded, gives the expected outputs; its every tensor matters, as they are random."""
    torch.save(state, path)
    model = load_model(config, path, outputs=("logits", "features", "maps"))
    outputs = model(images())
    outputs, expected = ([x] if isinstance(x, Tensor) else list(x) for x in (outputs, expected))
    assert len(outputs) == len(expected)
    for output, of_library in zip(outputs, expected):
        assert of_library.abs().max() > 0.5 and of_library.std() > 0.1
        torch.testing.assert_close(output, of_library, rtol=0, atol=1e-4)


# --- timm ----------------------------------------------------------------------------------------------------


def timm_model(version: int, randomize, **keywords) -> nn.Module:
    name = "swin_tiny_patch4_window7_224" if version == 1 else "swinv2_tiny_window8_256"
    model = timm.create_model(name, img_size=SIDE, window_size=WINDOW, embed_dim=WIDTH, depths=DEPTHS, num_heads=HEADS,
                              **keywords)
    return randomize(model).eval()


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_timm(version, randomize, tmp_path):
    model = timm_model(version, randomize, num_classes=CLASSES)
    assert_same_outputs(model.state_dict(), model(images()), config_of(version), tmp_path / "a.pth")
    assert_same_outputs({f"module.{key}": value for key, value in model.state_dict().items()}, model(images()),
                        config_of(version), tmp_path / "b.pth")


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_timm_without_a_head(version, randomize, tmp_path, capsys):
    model = timm_model(version, randomize, num_classes=0)
    assert_same_outputs(model.state_dict(), model(images()), config_of(version), tmp_path / "a.pth")
    assert "no classifier in the file: the model gives pooled features" in capsys.readouterr().out


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_timm_features_only(version, randomize, tmp_path):
    model = timm_model(version, randomize, features_only=True)
    assert any(key.startswith("layers_1.") for key in model.state_dict())
    maps = [y.permute(0, 3, 1, 2) for y in model(images())]
    assert_same_outputs(model.state_dict(), maps, config_of(version), tmp_path / "a.pth")


@torch.no_grad()
def test_activation_and_scale_of_the_yaml(randomize, tmp_path):
    """What no file tells: with the right key in the yaml it is right, without it is not."""
    model = timm_model(1, randomize, num_classes=CLASSES)
    for block in (block for stage in model.layers for block in stage.blocks):
        block.mlp.act = nn.GELU("tanh")
        block.attn.scale = 0.3
        block.attn.fused_attn = False
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3
    right = ("MODEL.SWIN.ACT", "gelu_tanh", "MODEL.SWIN.QK_SCALE", "0.3", "MODEL.SWIN.NORM_EPS", "1e-3")
    assert_same_outputs(model.state_dict(), model(images()), config_of(1, *right), tmp_path / "a.pth")
    for left_out in range(0, 6, 2):
        config = config_of(1, *right[:left_out], *right[left_out + 2:])
        error = (load_model(config, tmp_path / "a.pth")(images()) - model(images())).abs().max()
        assert error > 2e-4, right[left_out]


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_no_bias_of_q_k_and_v(version, randomize, tmp_path):
    model = timm_model(version, randomize, num_classes=CLASSES, qkv_bias=False)
    assert not [key for key in model.state_dict() if "qkv.bias" in key or "q_bias" in key]
    assert_same_outputs(model.state_dict(), model(images()), config_of(version), tmp_path / "a.pth")


# --- Hugging Face --------------------------------------------------------------------------------------------


def huggingface(version: int, kind: str, randomize, **keywords) -> nn.Module:
    prefix = "Swin" if version == 1 else "Swinv2"
    config = getattr(transformers, f"{prefix}Config")(
        image_size=SIDE, window_size=WINDOW, embed_dim=WIDTH, depths=DEPTHS, num_heads=HEADS, num_labels=CLASSES,
        attn_implementation="eager", **keywords)
    return randomize(getattr(transformers, prefix + kind)(config)).eval()


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_huggingface(version, randomize, tmp_path):
    model = huggingface(version, "ForImageClassification", randomize)
    logits = model(pixel_values=images()).logits
    assert_same_outputs(model.state_dict(), logits, config_of(version), tmp_path / "a.pth")
    model.save_pretrained(tmp_path / "saved")  # by its names in files
    loaded = load_model(config_of(version), tmp_path / "saved" / "model.safetensors")
    torch.testing.assert_close(loaded(images()), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_huggingface_without_a_classifier(version, randomize, tmp_path):
    model = huggingface(version, "Model", randomize)
    assert_same_outputs(model.state_dict(), model(pixel_values=images()).pooler_output, config_of(version),
                        tmp_path / "a.pth")


@torch.no_grad()
def test_huggingface_backbone(randomize, tmp_path):
    model = huggingface(1, "Backbone", randomize, out_features=["stage1", "stage2"])
    assert_same_outputs(model.state_dict(), model(pixel_values=images()).feature_maps, config_of(1), tmp_path / "a.pth")


def test_what_config_json_says_is_compared(randomize, tmp_path, capsys):
    model = huggingface(2, "ForImageClassification", randomize, hidden_act="gelu_new", layer_norm_eps=1e-6)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError) as caught:
        load_model(config_of(2), tmp_path / "model.safetensors")
    assert "the file says MODEL.SWIN.ACT gelu_tanh, the configuration gelu" in str(caught.value)
    assert "the file says MODEL.SWIN.NORM_EPS 1e-06, the configuration 1e-05" in str(caught.value)
    config = config_of(2, "MODEL.SWIN.ACT", "gelu_tanh", "MODEL.SWIN.NORM_EPS", "1e-6")
    loaded = load_model(config, tmp_path / "model.safetensors")
    assert "trusted" not in capsys.readouterr().out
    with torch.no_grad():
        torch.testing.assert_close(loaded(images()), model(pixel_values=images()).logits, rtol=0, atol=1e-4)


# --- torchvision ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_torchvision(version, randomize, tmp_path):
    v2 = {"block": torchvision_swin.SwinTransformerBlockV2, "downsample_layer": torchvision_swin.PatchMergingV2}
    model = randomize(torchvision_swin.SwinTransformer([4, 4], WIDTH, DEPTHS, HEADS, [WINDOW, WINDOW],
                                                       num_classes=CLASSES, **(v2 if version == 2 else {}))).eval()
    assert_same_outputs(model.state_dict(), model(images()), config_of(version), tmp_path / "a.pth")


@pytest.mark.parametrize(("name", "stem"), [("swin_t", "swin_tiny_patch4_window7_224"), ("swin_s", "swin"),
                                            ("swin_b", "swin_base_patch4_window7_224"),
                                            ("swin_v2_t", "swinv2_tiny_patch4_window8_256")])
def test_published_torchvision_models_have_a_yaml(name, stem, tmp_path):
    """By shapes: the wrong yaml's error names the right one."""
    with torch.device("meta"):
        state = getattr(torchvision_swin, name)().state_dict()
    torch.save({key: torch.zeros(()).expand(value.shape) for key, value in state.items()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=f"give --cfg models/{stem}.yaml"):
        load_model(config_of(1), tmp_path / "a.pth")


# --- mmdetection, mmsegmentation -----------------------------------------------------------------------------


class UnfoldMerging(nn.Module):
    """Patch merging by torch's Unfold, with its order of channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 2C, H/2, W/2]"""
        merged = F.unfold(x, kernel_size=2, stride=2).transpose(1, 2)
        side = x.shape[-1] // 2
        return self.reduction(self.norm(merged)).transpose(1, 2).unflatten(2, (side, side))


class UnfoldAttention(nn.Module):
    """(Shifted) window attention of one block, window by window and in loops: slow, and easy to see through."""

    def __init__(self, dim: int, heads: int, shift: int, shifts_one_window: bool) -> None:
        super().__init__()
        self.heads, self.shift, self.shifts_one_window = heads, shift, shifts_one_window
        self.w_msa = nn.Module()
        self.w_msa.qkv = nn.Linear(dim, 3 * dim)
        self.w_msa.proj = nn.Linear(dim, dim)
        self.w_msa.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        place = torch.arange(WINDOW**2)
        row, column = place // WINDOW, place % WINDOW
        index = ((row[:, None] - row + WINDOW - 1) * (2 * WINDOW - 1) + column[:, None] - column + WINDOW - 1)
        self.w_msa.register_buffer("relative_position_index", index)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H, W, C]"""
        side, shift = x.shape[1], self.shift if x.shape[1] > WINDOW or self.shifts_one_window else 0
        # Which part of the image a token comes from: what the shift brought together does not see each other.
        axis = torch.arange(side)
        part = (axis + shift >= side).int() if shift else torch.zeros(side, dtype=torch.int)
        part = 2 * part[:, None] + part[None, :]
        x, out = x.roll((-shift, -shift), (1, 2)), torch.empty_like(x)
        bias = self.w_msa.relative_position_bias_table[self.w_msa.relative_position_index].permute(2, 0, 1)
        for top in range(0, side, WINDOW):
            for left in range(0, side, WINDOW):
                window = x[:, top:top + WINDOW, left:left + WINDOW].flatten(1, 2)
                q, k, v = self.w_msa.qkv(window).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
                label = part[top:top + WINDOW, left:left + WINDOW].flatten()
                mask = (label[:, None] != label) * -100.0
                scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + bias + mask
                y = self.w_msa.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
                out[:, top:top + WINDOW, left:left + WINDOW] = y.unflatten(1, (WINDOW, WINDOW))
        return out.roll((shift, shift), (1, 2))


class UnfoldSwin(nn.Module):
    """A backbone with mmdetection's names: a map of every stage, each behind a norm of its own.

    mmdetection and mmsegmentation shift where one window is the whole map too; mmpretrain does not (pad_small_map).
    """

    def __init__(self, shifts_one_window: bool = True) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.projection = nn.Conv2d(3, WIDTH, 4, 4)
        self.patch_embed.norm = nn.LayerNorm(WIDTH)
        self.stages = nn.ModuleList()
        for index, depth in enumerate(DEPTHS):
            dim, stage = WIDTH * 2**index, nn.Module()
            stage.blocks = nn.ModuleList()
            for number in range(depth):
                block = nn.Module()
                block.norm1, block.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
                block.attn = UnfoldAttention(dim, HEADS[index], WINDOW // 2 * (number % 2), shifts_one_window)
                first = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU())
                block.ffn = nn.Module()
                block.ffn.layers = nn.Sequential(first, nn.Linear(4 * dim, dim))
                stage.blocks.append(block)
            stage.downsample = UnfoldMerging(dim) if index + 1 < len(DEPTHS) else None
            self.stages.append(stage)
            self.add_module(f"norm{index}", nn.LayerNorm(dim))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embed.norm(self.patch_embed.projection(x).permute(0, 2, 3, 1))
        maps = []
        for index, stage in enumerate(self.stages):
            for block in stage.blocks:
                x = x + block.attn(block.norm1(x))
                x = x + block.ffn.layers(block.norm2(x))
            maps.append(getattr(self, f"norm{index}")(x).permute(0, 3, 1, 2))
            if stage.downsample is not None:
                x = stage.downsample(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return maps


@torch.no_grad()
def test_mmdetection(randomize, tmp_path, capsys):
    """As its runner saves it: the backbone beside a neck and heads, with meta (2) or a message hub (3)."""
    model = randomize(UnfoldSwin()).eval()
    state = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    state["neck.lateral_convs.0.conv.weight"] = torch.zeros(8, WIDTH, 1, 1)
    torch.save({"meta": {"mmdet_version": "2.28.2", "CLASSES": ("a", "b")}, "state_dict": state, "optimizer": {}},
               tmp_path / "epoch_12.pth")
    loaded = load_model(config_of(1), tmp_path / "epoch_12.pth", outputs=("maps",))
    assert loaded.output_names == ["stage0", "stage1"]
    for output, expected in zip(loaded(images()), model(images()), strict=True):
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
    told = capsys.readouterr().out
    assert "prefix 'backbone.' taken off" in told and "1 tensors of other parts left out: neck" in told
    with pytest.raises(UserError, match="gives maps; this needs logits or features"):
        load_model(config_of(1), tmp_path / "epoch_12.pth")


@torch.no_grad()
def test_mmpretrain_classifier(randomize, tmp_path):
    """Only the last stage has a norm, and the head stands beside the backbone."""
    model = randomize(UnfoldSwin(shifts_one_window=False)).eval()
    head = randomize(nn.Linear(2 * WIDTH, CLASSES), 3)
    state = {f"backbone.{key}": value for key, value in model.state_dict().items() if not key.startswith("norm0")}
    state |= {f"head.fc.{key}": value for key, value in head.state_dict().items()}
    assert_same_outputs({"state_dict": state}, head(model(images())[-1].mean((2, 3))), config_of(1), tmp_path / "a.pth")


# --- official: pre-training by SimMIM, detection -------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_simmim(version, randomize, tmp_path, capsys):
    """Against timm's model, to which timm's own function brings the official names."""
    encoder = dict(randomize(build_model(config_of(version), head=False)).state_dict())
    theirs = timm_model(version, randomize, num_classes=0)
    library = swin_transformer if version == 1 else swin_transformer_v2
    theirs.load_state_dict(library.checkpoint_filter_fn(encoder, theirs))
    state = {f"encoder.{key.replace('cpb_mlp', 'rpe_mlp')}": value for key, value in encoder.items()}
    state |= {"encoder.mask_token": torch.zeros(1, 1, WIDTH), "decoder.0.weight": torch.zeros(3072, 2 * WIDTH, 1, 1)}
    assert_same_outputs({"model": state}, theirs(images()), config_of(version), tmp_path / "a.pth")
    assert "2 tensors of other parts left out: decoder, encoder" in capsys.readouterr().out


@torch.no_grad()
def test_official_detection_backbone(randomize, tmp_path):
    """Official names and order of patch merging, with a norm for each map."""
    unfold = randomize(UnfoldSwin()).eval()
    torch.save(unfold.state_dict(), tmp_path / "unfold.pth")
    model = load_model(config_of(1), tmp_path / "unfold.pth", outputs=("maps",))
    assert_same_outputs({f"backbone.{key}": value for key, value in model.state_dict().items()}, unfold(images()),
                        config_of(1), tmp_path / "a.pth")
