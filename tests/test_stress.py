"""Stressed weights: the function that was trained, through numbers that FP16 arithmetic written out cannot hold."""
from __future__ import annotations

import copy

import add_all
import pytest
import torch
from export_onnx import export
from torch import nn

from config import get_config
from data.photo_crops import held_out_batch
from graphs.surgeon import patch
from models import stress
from models.build import build_model, load_model
from models.swin_v2 import SwinTransformerV2
from TensorRT import compare_layers, emulate_fp16
from utils import ROOT, UserError

MICRO = {1: ROOT / "models" / "swin_micro.yaml", 2: ROOT / "models" / "swinv2_micro.yaml"}
SMALL = {1: "swinv1", 2: "swinv2"}


@pytest.fixture(scope="module")
def trained():
    """trained(version): the micro model that ships, and two held-out crops; copies, so that they can be changed."""
    def loaded(version: int) -> tuple[nn.Module, torch.Tensor]:
        model = load_model(get_config(MICRO[version]))
        return model, torch.from_numpy(held_out_batch(2, model.img_size)[0])

    return loaded


def small(version: int, randomize) -> tuple[nn.Module, torch.Tensor]:
    """Small with weights of which every one counts, and one crop."""
    model = randomize(build_model(get_config(None, ["MODEL.NUM_CLASSES", "18"], SMALL[version])))
    return model, torch.from_numpy(held_out_batch(1, model.img_size)[0])


@torch.no_grad()
def in_fp64(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return copy.deepcopy(model).double()(images.double())


@torch.no_grad()
def in_fp32(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(images)


def largest(x: torch.Tensor) -> float:
    return float(x.abs().max())


def scale_epsilons(model: nn.Module, factor: float) -> None:
    """What LayerNorm's epsilons would have to be for scale_norm_inputs to change nothing at all."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and not (isinstance(model, SwinTransformerV2) and name == "norm"):
            module.eps *= factor**2


@pytest.mark.parametrize("size", ["micro", "small"])
@pytest.mark.parametrize("version", [1, 2])
def test_scaled_norm_inputs_leave_the_function_but_for_the_epsilons(version, size, trained, randomize):
    model, images = trained(version) if size == "micro" else small(version, randomize)
    before = in_fp64(model, images)
    rounding = largest(in_fp32(model, images) - before)
    stress.scale_norm_inputs(model, 1024)
    # A power of two rounds nothing, in FP32 as in FP64: the stressed model is as far from exact as the trained one, but
    # for kernels that add in another order.
    assert largest(in_fp32(model, images) - in_fp64(model, images)) <= 3 * rounding < 1e-4 * largest(before)
    scale_epsilons(model, 1024)  # all that is left between the two functions
    assert largest(in_fp64(model, images) - before) < 1e-12 * largest(before)


@pytest.mark.parametrize(("size", "factor"), [("micro", 2.0**10), ("micro", 2.0**-13), ("small", 2.0**10)])
def test_scaled_q_and_k_leave_the_function(size, factor, trained, randomize):
    model, images = trained(2) if size == "micro" else small(2, randomize)
    before, weight = in_fp32(model, images), model.layers[0].blocks[0].attn.qkv.weight.detach().clone()
    stress.scale_qk(model, factor)
    weight[:2 * model.patch_embed.embed_dim] *= factor  # q and k, not v
    torch.testing.assert_close(model.layers[0].blocks[0].attn.qkv.weight.detach(), weight, rtol=0, atol=0)
    # Every product, sum and quotient is that of before times a power of two; kernels may add in another order.
    assert largest(in_fp32(model, images) - before) <= 1e-5 * largest(before)


@pytest.mark.parametrize("version", [1, 2])
def test_every_norm_input_is_scaled(version, trained):
    """Each LayerNorm reads 1024 times what it read; V2's last, behind the residual stream, what it read."""
    model, images = trained(version)

    def norm_inputs() -> dict[str, torch.Tensor]:
        seen = {}
        probe = copy.deepcopy(model).double()
        for name, module in probe.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].std()}))
        with torch.no_grad():
            probe(images.double())
        return seen

    before = norm_inputs()
    stress.scale_norm_inputs(model, 1024)
    scale_epsilons(model, 1024)
    for name, after in norm_inputs().items():
        factor = 1 if version == 2 and name == "norm" else 1024
        torch.testing.assert_close(after, factor * before[name], rtol=1e-9, atol=0)


def test_saturated_attention_is_at_the_clamp(trained):
    model, images = trained(2)
    before = in_fp32(model, images)
    stress.saturate(model)
    scales = [module.scale for module in model.fold_constants().modules() if hasattr(module, "scale")]
    assert len(scales) == 7
    for scale in scales:
        torch.testing.assert_close(scale, torch.full_like(scale, 100))
    assert largest(in_fp32(model, images) - before) > 1e-3 * largest(before)


def run_script(tmp_path, *flags: str) -> nn.Module:
    """What the script writes, read as any other checkpoint."""
    version = 1 if "swin_micro" in flags[0] else 2
    stress.main(["--cfg", str(MICRO[version]), *flags[1:], "--output", str(tmp_path / "s.safetensors")])
    return load_model(get_config(MICRO[version]), tmp_path / "s.safetensors")


def test_the_script_reaches_the_sizes_that_are_asked_for(tmp_path, trained, capsys):
    _, images = trained(2)
    for flags, qk, norm in (
            (["swinv2_micro", "--qk", "1e4", "--norm-input", "1e4", "--saturate"], 1e4, 1e4),
            (["swinv2_micro", "--qk", "1e-3"], 1e-3, None)):
        _, found_qk, found_norm = stress.measured(run_script(tmp_path, *flags), images)
        # Within a factor of sqrt(2), and of what other images have: it was measured on more of them.
        assert 0.4 < found_qk / qk < 1.5
        assert norm is None or 0.4 < found_norm / norm < 1.5
    _, images = trained(1)
    _, _, found_norm = stress.measured(run_script(tmp_path, "swin_micro", "--norm-input", "1e4"), images)
    assert 0.4 < found_norm / 1e4 < 1.5
    assert "logits moved by" in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "words"), [
    (["swin_micro", "--qk", "10"], "this is a V1 model"),
    (["swin_micro", "--saturate"], "this is a V1 model"),
    (["swinv2_micro"], "nothing to do"),
    (["swinv2_micro", "--qk", "1e25"], "FP32 itself does not bear"),  # its squares overflow FP32
])
def test_the_script_refuses(flags, words, tmp_path):
    with pytest.raises(UserError, match=words):
        run_script(tmp_path, *flags)
    assert not list(tmp_path.iterdir())


def test_a_size_must_be_a_positive_number(tmp_path):
    for text in ("0", "-1", "nan", "inf", "big"):
        with pytest.raises(SystemExit) as caught:
            run_script(tmp_path, "swinv2_micro", "--qk", text)
        assert caught.value.code == 2


# --- what the stress does to FP16 ----------------------------------------------------------------------------


def layers(model: nn.Module, opset: int, patched: bool = False) -> list[dict[str, str]]:
    """The emulated tensors of a model's graph on one crop, as emulate_fp16.py compares them with FP32."""
    graph = export(copy.deepcopy(model), opset, "m")
    if patched:
        graph = patch(graph, add_all.STEPS)[0]
    return emulate_fp16.compare_all(graph, held_out_batch(1, model.img_size)[0])


def wrong(rows: list[dict[str, str]]) -> dict[str, str] | None:
    return compare_layers.first_offender(rows, 0.1)


def test_large_q_and_k_overflow_where_squares_are_written_out(trained):
    """Squares beyond 65504 are infinite, the norm is, and q and k become 0: logits are wrong, and no NaN tells."""
    model, _ = trained(2)
    stress.scale_qk(model, 1024)
    rows = layers(model, 17)
    first = wrong(rows)
    assert first["tensor"] == "/layers.0/blocks.0/attn/ReduceL2_output_0/squares"
    assert float(first["max_abs_ref"]) > 65504
    assert int(first["inf"]) > 0 and all(row["nan"] == "0" for row in rows)
    assert rows[-1]["tensor"] == "logits" and float(rows[-1]["rel_err"]) > 0.1
    assert wrong(layers(model, 17, patched=True)) is None


def test_small_q_and_k_vanish_where_squares_are_written_out(trained):
    """Squares below 3e-8 are 0, and so is F.normalize's epsilon of 1e-12: x / 0 is infinite, then NaN."""
    model, _ = trained(2)
    stress.scale_qk(model, 2.0**-13)
    rows = layers(model, 17)
    assert wrong(rows)["tensor"] == "/layers.0/blocks.0/attn/ReduceL2_output_0/squares"
    assert float(wrong(rows)["rel_err"]) == 1
    divided = next(row for row in rows if row["op"] == "Div")
    assert int(divided["nan"]) + int(divided["inf"]) > 0
    assert rows[-1]["nan"] == str(model.num_classes)
    assert wrong(layers(model, 17, patched=True)) is None


@pytest.mark.parametrize("version", [1, 2])
def test_large_norm_inputs_overflow_where_layernorm_is_written_out(version, trained):
    model, _ = trained(version)
    stress.scale_norm_inputs(model, 1024)
    rows = layers(model, 12)
    first = wrong(rows)
    assert first["tensor"] == "/patch_embed/norm/Pow_output_0" and int(first["inf"]) > 0
    assert float(rows[-1]["rel_err"]) > 0.1
    assert wrong(layers(model, 17)) is None  # LayerNormalization, which runs in FP32
    assert wrong(layers(model, 12, patched=True)) is None
