"""The models against timm's, their state dict against the official names, and what folding and tracing must keep."""
from __future__ import annotations

import pytest
import timm
import torch
from timm.models import swin_transformer, swin_transformer_v2
from torch import Tensor, nn

from config import get_config
from models.build import build_model, load_model
from models.swin import relative_position_index, shift_mask
from models.swin_v2 import l2_normalize
from utils import ROOT

MICRO = {"embed_dim": 32, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 4, 8), "num_classes": 18}
# Base's third stage has 18 blocks; two are enough here: its number of parameters is tested below.
SHALLOW = {"depths": (2, 2, 2, 2)}
# yaml: timm's name and arguments for the same architecture. The micro variants are tiny models of other sizes.
TIMM = {
    "swin_micro": ("swin_tiny_patch4_window7_224", MICRO),
    "swin_tiny_patch4_window7_224": ("swin_tiny_patch4_window7_224", {}),
    "swin": ("swin_small_patch4_window7_224", {}),
    "swin_base_patch4_window12_384": ("swin_base_patch4_window12_384", SHALLOW),
    "swinv2_micro": ("swinv2_tiny_window8_256", MICRO),
    "swinv2_tiny_patch4_window8_256": ("swinv2_tiny_window8_256", {}),
    "swinv2_small_patch4_window16_256": ("swinv2_small_window16_256", {}),
    "swinv2_base_patch4_window12_192_22k": ("swinv2_base_window12_192",
                                            {"num_classes": 21841, **SHALLOW}),
    "swinv2_base_patch4_window12to24_192to384_22kto1k_ft": ("swinv2_base_window12to24_192to384", SHALLOW),
}
MICROS = ["swin_micro", "swinv2_micro"]


def config_of(stem: str, *opts: str):
    return get_config(ROOT / "models" / f"{stem}.yaml", opts)


def images(count: int, img_size: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, img_size, img_size, generator=torch.Generator().manual_seed(seed))


def timm_model(stem: str, official: dict[str, Tensor]) -> nn.Module:
    """timm's model with weights that have official names, which timm's own function renames."""
    name, arguments = TIMM[stem]
    model = timm.create_model(name, **arguments).eval()
    library = swin_transformer_v2 if "swinv2" in name else swin_transformer
    model.load_state_dict(library.checkpoint_filter_fn(official, model))  # strict
    return model


@pytest.mark.parametrize("stem", TIMM)
@torch.no_grad()
def test_equals_timm(stem, randomize, tmp_path):
    """Official keys -> timm by timm's own conversion: equal logits. timm's keys -> here: the same weights again."""
    depths = TIMM[stem][1].get("depths")
    config = config_of(stem, *([] if depths is None else ["MODEL.SWIN.DEPTHS", str(list(depths))]))
    model = randomize(build_model(config))
    official = dict(model.state_dict())
    theirs = timm_model(stem, official)

    x = images(1, model.img_size)
    logits, expected = model(x), theirs(x)
    assert expected.abs().max() > 1  # a difference of 1e-4 is a small one
    assert expected.std() > 0.3
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)

    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    back = load_model(config, tmp_path / "timm.pth").state_dict()
    assert back.keys() == official.keys()
    assert all(torch.equal(back[key], official[key]) for key in official)


def official_names(model_type: str, depths: list[int]) -> set[str]:
    """Names in an official file, buffers left out, written down from swin_small_patch4_window7_224.pth's layout
    (github.com/microsoft/Swin-Transformer) and swinv2_small_patch4_window8_256.pth's."""
    def both(name):
        return {f"{name}.weight", f"{name}.bias"}

    names = both("patch_embed.proj") | both("patch_embed.norm") | both("norm") | both("head")
    for stage, depth in enumerate(depths):
        for block in range(depth):
            at = f"layers.{stage}.blocks.{block}"
            for layer in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"):
                names |= both(f"{at}.{layer}")
            if model_type == "swinv1":
                names |= both(f"{at}.attn.qkv") | {f"{at}.attn.relative_position_bias_table"}
            else:
                names |= both(f"{at}.attn.cpb_mlp.0")
                names |= {f"{at}.attn.{name}" for name in
                          ("qkv.weight", "q_bias", "v_bias", "logit_scale", "cpb_mlp.2.weight")}
        if stage < len(depths) - 1:
            names |= both(f"layers.{stage}.downsample.norm") | {f"layers.{stage}.downsample.reduction.weight"}
    return names


@pytest.mark.parametrize("stem", ["swin", "swinv2"])
def test_state_dict_has_official_names(stem):
    with torch.device("meta"):
        model = build_model(config_of(stem))
    assert set(model.state_dict()) == official_names(config_of(stem).MODEL.TYPE, [2, 2, 18, 2])


# What the papers' tables and the official model zoo give, in millions.
PARAMETERS = {"tiny": 28, "small": 50, "base": 88, "large": 197}


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_variant_builds(path):
    config = get_config(path, ["MODEL.NUM_CLASSES", "18" if path.stem.endswith("_micro") else "1000"])
    with torch.device("meta"):
        model = build_model(config)
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    if path.stem.endswith("_micro"):
        assert 2e6 * parameters <= 4e6  # bytes in FP16: at most 4 MB
    else:
        size = next((size for size in PARAMETERS if size in path.stem), "small")
        assert round(parameters) == PARAMETERS[size]
    shifts = {module.shift_size for module in model.modules() if hasattr(module, "shift_size")}
    assert shifts == {0, config.MODEL.SWIN.WINDOW_SIZE // 2}
    heads = {module.head_dim for module in model.modules() if hasattr(module, "head_dim")}
    assert heads == {24 if "_c24_" in path.stem else 32}
    # A comparison of logits shows another epsilon only just.
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}


@pytest.mark.parametrize("stem", MICROS)
@torch.no_grad()
def test_folding_changes_nothing(stem, randomize):
    model = randomize(build_model(config_of(stem)))
    x = images(2, model.img_size)
    expected = model(x)
    assert model.fold_constants() is model
    model.fold_constants()  # once more does no harm
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
    left = [name for name, _ in model.named_parameters()]
    assert not [name for name in left if any(part in name for part in ("cpb_mlp", "logit_scale", "table", "q_bias"))]
    tokens = config_of(stem).MODEL.SWIN.WINDOW_SIZE ** 2
    biases = [module.relative_position_bias for module in model.modules() if hasattr(module, "relative_position_bias")]
    assert [tuple(bias.shape) for bias in biases] == [(heads, tokens, tokens) for heads in (1, 1, 2, 2, 4, 4, 8)]


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")  # the ONNX export of models/ is a trace
@pytest.mark.parametrize("stem", MICROS)
@torch.no_grad()
def test_traced_with_one_batch_runs_with_another(stem, randomize):
    model = randomize(build_model(config_of(stem)))
    traced = torch.jit.trace(model, images(2, model.img_size), check_trace=False)
    x = images(5, model.img_size)
    torch.testing.assert_close(traced(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("stem", MICROS)
@torch.no_grad()
def test_reduced_precision_errs_no_more_than_timm(stem, dtype, randomize):
    model = randomize(build_model(config_of(stem)))
    theirs = timm_model(stem, dict(model.state_dict())).to(dtype)
    x = images(4, model.img_size)
    expected = model(x)
    logits = model.fold_constants().to(dtype)(x.to(dtype))
    assert logits.dtype == dtype
    error, error_of_timm = ((output.float() - expected).abs().max() for output in (logits, theirs(x.to(dtype))))
    assert error <= 2 * error_of_timm  # both are a few roundings from the same sums in another order


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_l2_normalize_of_zeros_is_zero(dtype):
    x = torch.stack((torch.zeros(32), torch.full((32,), 3.0))).to(dtype)
    expected = torch.stack((torch.zeros(32), torch.full((32,), 32**-0.5)))
    torch.testing.assert_close(l2_normalize(x).float(), expected, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(("resolution", "window", "shift"), [(14, 7, 3), (8, 4, 2), (9, 3, 1)])
def test_shift_mask_separates_what_the_shift_brought_together(resolution, window, shift):
    """By the meaning of it: two tokens of a shifted window see each other if no image edge lies between them."""
    mask = shift_mask(resolution, window, shift)
    windows = resolution // window
    assert mask.shape == (windows**2, 1, window**2, window**2)
    for index in range(windows**2):
        top, left = divmod(index, windows)
        tokens = [(top * window + i + shift, left * window + j + shift) for i in range(window) for j in range(window)]
        for a, (row_a, column_a) in enumerate(tokens):
            for b, (row_b, column_b) in enumerate(tokens):
                wrapped = [(row_a >= resolution) == (row_b >= resolution),
                           (column_a >= resolution) == (column_b >= resolution)]
                assert mask[index, 0, a, b] == (0 if all(wrapped) else -100)


def test_relative_position_index_depends_on_the_offset_alone():
    window = 3
    index = relative_position_index(window)
    assert index.shape == (9, 9)
    seen = {}
    for a in range(9):
        for b in range(9):
            offset = (a // window - b // window, a % window - b % window)
            assert seen.setdefault(offset, int(index[a, b])) == int(index[a, b])
    assert sorted(seen.values()) == list(range(25))


@pytest.mark.parametrize("stem", MICROS)
def test_images_of_another_size_are_refused(stem):
    with pytest.raises(ValueError, match="the model takes"):
        build_model(config_of(stem))(images(1, 64))
