"""fuse() (TensorRT/Plugins/swin_kernels/fused.py) on small models of timm, Hugging Face, torchvision and this project,
on the CPU: the originals are the reference. With a GPU (-m gpu) the same on the kernels.
"""
from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from config import get_config
from models.build import build_model
from TensorRT.Plugins import swin_kernels
from TensorRT.Plugins.swin_kernels import fused

SMALL = {"embed_dim": 40, "depths": (2, 2), "num_heads": (4, 2)}  # heads of 10, which are padded, and of 40 channels
WIDE = {"embed_dim": 104, "depths": (2, 2), "num_heads": (2, 4)}  # 208 channels: the MLP is two products


def timm_v1(**changes) -> nn.Module:
    import timm
    options = {**SMALL, "img_size": (44, 60), "window_size": (4, 3), "num_classes": 5, **changes}
    return timm.create_model("swin_tiny_patch4_window7_224", **options)


def timm_v2(**changes) -> nn.Module:
    import timm
    options = {**SMALL, "img_size": (44, 60), "window_size": 4, "num_classes": 5, **changes}
    return timm.create_model("swinv2_tiny_window8_256", **options)


def torchvision_v1() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer
    return SwinTransformer([4, 4], 40, [2, 2], [4, 2], [4, 8], num_classes=5)  # 8 wide: covers the second stage's width


def torchvision_v2() -> nn.Module:
    from torchvision.models import swin_transformer as library
    return library.SwinTransformer([4, 4], 40, [2, 2], [4, 2], [4, 8], num_classes=5,
                                   block=library.SwinTransformerBlockV2, downsample_layer=library.PatchMergingV2)


def hugging_face_config() -> dict:
    return {"image_size": (42, 60), "embed_dim": 40, "depths": [2, 2], "num_heads": [4, 2], "window_size": 4,
            "num_labels": 5}


def hugging_face_v1() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification
    return SwinForImageClassification(SwinConfig(**hugging_face_config()))


def hugging_face_v2() -> nn.Module:
    from transformers import Swinv2Config, Swinv2ForImageClassification
    return Swinv2ForImageClassification(Swinv2Config(**hugging_face_config()))


def own(name: str, **changes) -> nn.Module:
    options = {"DATA.IMG_SIZE": 64, "MODEL.SWIN.EMBED_DIM": 40, "MODEL.SWIN.DEPTHS": [2, 2],
               "MODEL.SWIN.NUM_HEADS": [4, 2], "MODEL.SWIN.WINDOW_SIZE": 4, "MODEL.NUM_CLASSES": 5, **changes}
    if name == "swinv2":
        options["MODEL.SWIN.PRETRAINED_WINDOW_SIZES"] = [0, 0]
    config = get_config(f"models/{name}.yaml", [part for pair in options.items() for part in pair])
    return build_model(config)


MODELS = {
    "timm v1": timm_v1, "timm v2": timm_v2, "timm v1 wide": lambda: timm_v1(**WIDE),
    "timm v2 wide": lambda: timm_v2(**WIDE), "timm v1 always shifted": lambda: timm_v1(always_partition=True),
    "timm v1 of many sizes": lambda: timm_v1(strict_img_size=False),
    "torchvision v1": torchvision_v1, "torchvision v2": torchvision_v2,
    "hugging face v1": hugging_face_v1, "hugging face v2": hugging_face_v2,
    "own v1": lambda: own("swin"), "own v1 folded": lambda: own("swin").fold_constants(),
    "own v2": lambda: own("swinv2"), "own v1 with tanh": lambda: own("swin", **{"MODEL.SWIN.ACT": "gelu_tanh"}),
}
V2 = "own v2"


@pytest.fixture
def model(request, randomize) -> nn.Module:
    """A model of MODELS with weights that let a mistake show."""
    torch.manual_seed(0)
    return randomize(MODELS[request.param]()).eval()


def images_of(model: nn.Module, batch: int = 3) -> Tensor:
    name = type(model).__module__
    size = (64, 64) if name.startswith("models") else (42, 60) if "transformers" in name else (44, 60)
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(7))


def logits_of(output) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def run(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return logits_of(model(images))


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_a_fused_model_gives_what_it_gave(model, capsys):
    images, state = images_of(model), {name: value.clone() for name, value in model.state_dict().items()}
    expected = run(copy.deepcopy(model), images)
    assert swin_kernels.fuse(model, images=images[:1]) is model
    assert (run(model, images) - expected).abs().max() <= 1e-5 * expected.abs().max()
    now = model.state_dict()
    assert list(now) == list(state) and all(torch.equal(now[name], value) for name, value in state.items())
    assert "fused 4 blocks, 1 patch mergings, 2 others" in capsys.readouterr().out  # the two: embedding, last LayerNorm
    assert sum(isinstance(module, fused.Fused) for module in model.modules()) == 7


@pytest.mark.parametrize("model", ["timm v1", "hugging face v2", "own v2"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_inside_and_fp32_outside(model, dtype):
    images, original = images_of(model), copy.deepcopy(model)
    swin_kernels.fuse(model, dtype)
    logits, expected = run(model, images), run(original, images)
    assert logits.dtype == torch.float32 and next(model.parameters()).dtype == torch.float32
    rounding = torch.finfo(dtype).eps / 2 * math.sqrt(8 * 4)  # eight in each of four blocks, at random
    assert 0 < (logits - expected).abs().max() <= 4 * rounding * expected.abs().max()


@pytest.mark.parametrize("model", ["own v1", V2], indirect=True)
def test_a_model_in_half_stays_one(model):
    images, expected = images_of(model), run(model, images_of(model))
    swin_kernels.fuse(model.half(), tolerance=0.3)
    logits = run(model, images.half())
    assert logits.dtype == torch.float16
    assert (logits - expected).abs().max() <= 0.1 * expected.abs().max()


@pytest.mark.parametrize("model", ["own v1", "timm v2"], indirect=True)
def test_weights_may_change_afterwards(model, randomize):
    """Loaded ones, and those that .half() has rounded: constants follow."""
    images, other = images_of(model), randomize(copy.deepcopy(model), 1)
    expected = run(other, images)
    swin_kernels.fuse(model)
    before = run(model, images)
    model.load_state_dict(other.state_dict())
    assert (run(model, images) - expected).abs().max() <= 1e-5 * expected.abs().max() < (before - expected).abs().max()
    model.half()
    assert next(module for module in model.modules() if isinstance(module, fused.Fused)).dtype == torch.float16
    run(model, images.half())
    model.float()
    assert run(copy.deepcopy(model), images).dtype == torch.float32


def test_images_of_other_sizes_and_odd_ones(randomize):
    model = randomize(torchvision_v1()).eval()
    original = copy.deepcopy(model)
    swin_kernels.fuse(model, images=torch.randn(1, 3, 64, 64))
    for size in ((32, 32), (52, 100)):
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        expected = run(original, images)
        assert (run(model, images) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_hugging_face_layers_keep_their_shift(randomize):
    """transformers' own layers lose it for good at the first image that is one window high or wide."""
    model = randomize(hugging_face_v1()).eval()
    large, small = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.randn(2, 3, 32, 32)
    expected = run(copy.deepcopy(model), large)
    swin_kernels.fuse(model, images=large)
    run(model, small)
    assert (run(model, large) - expected).abs().max() <= 1e-5 * expected.abs().max()
    with pytest.raises(ValueError, match="an image of 3 x 8 tokens, which is smaller than the window of 4"):
        run(model, torch.randn(1, 3, 12, 32))


def test_hugging_face_v2_masks_twice(randomize):
    """Its attention adds the mask of -100 twice. That shows where heads of one channel make every cosine 1 or -1, times
    100: a query that points away from its whole region weighs what lies beyond as much, with one mask only that.
    """
    from transformers import Swinv2Config, Swinv2ForImageClassification
    changes = {"embed_dim": 8, "num_heads": [8, 16]}
    model = randomize(Swinv2ForImageClassification(Swinv2Config(**{**hugging_face_config(), **changes}))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("logit_scale"):
                parameter.fill_(5.0)  # beyond the clamp
    images = images_of(model)
    expected = run(copy.deepcopy(model), images)
    swin_kernels.fuse(model)
    assert (run(model, images) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("model", ["hugging face v1"], indirect=True)
def test_exports(model):
    images = images_of(model)
    swin_kernels.fuse(model)
    with torch.no_grad():
        program = torch.export.export(model, (images,))
        torch.testing.assert_close(logits_of(program.module()(images)), run(model, images))


@pytest.mark.parametrize("model", ["timm v2"], indirect=True)
def test_compiles_whole(model):
    images = images_of(model)
    swin_kernels.fuse(model)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(images), run(model, images))


# --- refusals --------------------------------------------------------------------------------------------------------

def test_what_is_off_is_refused_and_undone(randomize, monkeypatch):
    model = randomize(own("swin"))
    images, kinds = images_of(model), [type(module) for module in model.modules()]
    expected = run(model, images)
    with monkeypatch.context() as broken:
        broken.setattr(fused.OwnBlock, "mask_value", 0.0)  # the images' edges meet
        with pytest.raises(ValueError, match=r"fuse: the outputs are off by .* is allowed .*; the model is as it was"):
            swin_kernels.fuse(model)
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(run(model, images), expected)
    model.head.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="fuse: the outputs are off by nan"):
        swin_kernels.fuse(model)
    model.head.bias.data[0] = 0.0
    swin_kernels.fuse(model)
    with pytest.raises(ValueError, match="fuse: the model is fused already"):
        swin_kernels.fuse(model)


def test_inference_only():
    model = own("swin")
    with pytest.raises(RuntimeError, match=r"fuse: the model is in training mode"):
        swin_kernels.fuse(model.train())
    swin_kernels.fuse(model.eval())
    images = images_of(model)
    with pytest.raises(RuntimeError, match=r"for inference only: run it under torch\.inference_mode\(\)"):
        model(images)
    with pytest.raises(RuntimeError, match=r"for inference only: call model\.eval\(\)"), torch.no_grad():
        model.train()(images)
    model.eval().requires_grad_(False)(images)
    with pytest.raises(RuntimeError, match="for inference only"):
        model(images.requires_grad_())


def test_bad_images_are_one_line():
    model = swin_kernels.fuse(timm_v1().eval())
    for images, error, message in (
        (torch.randn(1, 3, 48, 60), ValueError, "images of 48 x 60; the model takes 44 x 60"),
        (torch.randn(1, 4, 44, 60), ValueError, "patch_embed: images of 4 channels; the weight takes 3"),
        (torch.zeros(1, 3, 44, 60, dtype=torch.uint8), TypeError, "images of torch.uint8; the model takes normalised"),
    ):
        with pytest.raises(error, match=message):
            run(model, images)
    with pytest.raises(ValueError, match="a fused model has no attention weights"), torch.inference_mode():
        swin_kernels.fuse(hugging_face_v2().eval())(torch.randn(1, 3, 42, 60), output_attentions=True)


@pytest.mark.parametrize(("make", "options", "error", "message"), [
    (lambda: nn.Sequential(nn.Linear(2, 2)), {}, ValueError, "Sequential has no block that is known here; known are"),
    (lambda: own("swin").double(), {}, TypeError, r"fuse: torch\.float64; the kernels take float32"),
    (lambda: own("swin"), {"dtype": torch.int8}, TypeError, r"fuse: torch\.int8; the kernels take float32"),
    (lambda: nn.Identity(), {}, TypeError, "fuse: no parameters"),
    (lambda: own("swin", **{"MODEL.SWIN.EMBED_DIM": 72, "MODEL.SWIN.NUM_HEADS": [1, 2]}), {}, ValueError,
     r"layers\.0\.blocks\.0: heads of 72 channels; the kernel takes up to 64"),
    (lambda: nn.Sequential(*own("swin").layers), {}, ValueError, "tells the size of the images: give images="),
])
def test_what_cannot_be_fused_is_one_line(make, options, error, message):
    with pytest.raises(error, match=message) as caught:
        swin_kernels.fuse(make().eval(), **options)
    assert "\n" not in str(caught.value)


def test_a_cuda_graph_needs_images_on_the_gpu():
    with pytest.raises(ValueError, match="CudaGraph: images are on cpu"):
        swin_kernels.CudaGraph(nn.Identity(), torch.zeros(1))


# --- on a GPU --------------------------------------------------------------------------------------------------------

@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_the_kernels_give_what_the_cpu_gives(model, dtype):
    images, on_cpu = images_of(model), copy.deepcopy(model)
    expected = run(model, images)
    swin_kernels.fuse(on_cpu, dtype, images, tolerance=0.5)
    theirs = (run(on_cpu, images) - expected).abs().max()
    swin_kernels.fuse(model.cuda(), dtype, images.cuda(), tolerance=0.5)
    logits = run(model, images.cuda())
    assert (logits.cpu() - expected).abs().max() <= 2 * theirs + 1e-5 * expected.abs().max()
    graph = swin_kernels.CudaGraph(model, images.cuda())
    other = images.flip(0).cuda()
    assert torch.equal(logits_of(graph(other)), run(model, other))
    with pytest.raises(ValueError, match=r"CudaGraph: images \[1, 3, "):
        graph(other[:1])
