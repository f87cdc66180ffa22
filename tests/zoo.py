"""The zoo: a small model of every kind of Swin Transformer that people have, with weights that let a mistake show.

    python tests/zoo.py                  # lists them

From timm, transformers and torchvision, and from other_sources.py for those that other repositories define. Each takes
images of three sizes: one that its windows divide, one that needs padding on both sides at every stage, and one that is
not square. works_with.py measures them all and writes docs/works_with.md; test_zoo.py takes some of them.
"""
from __future__ import annotations

import io
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx
import torch
from torch import nn

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
sys.path.insert(2, str(Path(__file__).resolve().parents[1] / "onnx"))

import other_sources as own
from export_timm import make_torchvision_importable

Size = tuple[int, int]

SIZES = ((64, 64), (76, 88), (64, 128))  # of patches of 4 and windows of 4: divided, padded at every stage, not square
DEPTHS, HEADS, WIDTH, WINDOW = (2, 2, 2), (1, 2, 4), 32, 4
OPSET = 17
EXPORTERS = ("torchscript", "dynamo")


class Case(NamedTuple):
    """One row of the table.

    Attributes:
        name: short.
        what: the model, in words.
        build: of an image size, the module; its weights are put in by `model_of`.
        attentions, embeddings, mergings: how many of each it has.
        linears: linear layers of tokens: qkv, proj, fc1 and fc2 of each attention and a reduction of each merging, and
            what it has besides.
        mlps: blocks of at most 192 channels, whose MLP is one kernel; that of wider ones is two linear layers.
        sizes: of the images, height and width.
        channels: of the images.
        fixed_batch: its code makes a number of the batch, so that it is exported for one batch at a time.
        exporters: those that export it.
    """

    name: str
    what: str
    build: Callable[[Size], nn.Module]
    attentions: int = sum(DEPTHS)
    embeddings: int = 1
    mergings: int = len(DEPTHS) - 1
    linears: int = 4 * sum(DEPTHS) + len(DEPTHS) - 1
    mlps: int = sum(DEPTHS)
    sizes: tuple[Size, ...] = SIZES
    channels: int = 3
    fixed_batch: bool = False
    exporters: tuple[str, ...] = EXPORTERS


class Outputs(nn.Module):
    """A model whose outputs are picked from what it gives."""

    def __init__(self, model: nn.Module, pick: Callable[[nn.Module, torch.Tensor], object]) -> None:
        super().__init__()
        self.model, self.pick = model, pick

    def forward(self, image: torch.Tensor) -> object:
        return self.pick(self.model, image)


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with weights by which every part of it contributes to its outputs.

    Usual initial weights hide mistakes: attention is all but uniform, biases are zero, V2's blocks are the identity.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                parameter.normal_(generator=generator)
                if isinstance(module, norms):
                    parameter.mul_(0.2).add_(1) if name == "weight" else parameter.mul_(0.1)
                elif name.endswith("logit_scale"):
                    parameter.mul_(1.5).add_(3)  # some beyond the clamp, ln(100) = 4.6
                elif "bias_table" in name:
                    pass
                elif parameter.ndim == 1:
                    parameter.mul_(0.3)
                else:
                    parameter.mul_(1.3 / math.sqrt(parameter[0].numel()))
    return model.eval()


def model_of(case: Case, size: Size) -> nn.Module:
    """The case's module for images of a size, always with the same weights."""
    make_torchvision_importable()  # before timm is imported
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return randomized(case.build(size))


def images(case: Case, batch: int, size: Size, seed: int = 1) -> torch.Tensor:
    """float32 [batch, channels, H, W], each image another one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, case.channels, *size, generator=generator)


def tensors_of(found: object) -> list[torch.Tensor]:
    """The tensors that a model gives, in order."""
    return [found] if isinstance(found, torch.Tensor) else [tensor for part in found for tensor in tensors_of(part)]


def export(model: nn.Module, image: torch.Tensor, exporter: str, open_batch: bool, open_sizes: bool = False
           ) -> onnx.ModelProto:
    """The ONNX graph of a model, its input called `input`.

    Args:
        image: an example.
        exporter: "torchscript" or "dynamo".
        open_batch, open_sizes: leave the batch, or height and width, open.
    """
    axes = {axis: name for axis, name, wanted in (
        (0, "batch", open_batch), (2, "height", open_sizes), (3, "width", open_sizes)) if wanted}
    with torch.no_grad():
        count = len(tensors_of(model(image)))
    names, file = [f"output_{i}" for i in range(count)], io.BytesIO()
    if exporter == "dynamo" and axes:
        shapes = [{axis: torch.export.Dim.DYNAMIC for axis in axes}]
        axes_of = {"dynamic_shapes": shapes}
    elif axes:
        axes_of = {"dynamic_axes": {"input": axes, **{name: {0: "batch"} if open_batch else {} for name in names}}}
    else:
        axes_of = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            program = torch.onnx.export(model, (image,), dynamo=True, opset_version=18, input_names=["input"],
                                        output_names=names, verbose=False, **axes_of)
            return program.model_proto
        torch.onnx.export(model, (image,), file, dynamo=False, opset_version=OPSET, input_names=["input"],
                          output_names=names, **axes_of)
    return onnx.load_from_string(file.getvalue())


# --- timm ----------------------------------------------------------------------------------------------------

TIMM_V1, TIMM_V2 = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"


def of_timm(name: str, **changes: object) -> Callable[[Size], nn.Module]:
    def build(size: Size) -> nn.Module:
        import timm

        settings = {"depths": DEPTHS, "embed_dim": WIDTH, "num_heads": HEADS, "window_size": WINDOW, "num_classes": 10,
                    **changes}
        return timm.create_model(name, pretrained=False, img_size=size, **settings)

    return build


def tanh_gelu(size: Size) -> nn.Module:
    """As models whose weights come from JAX have it."""
    model = of_timm(TIMM_V1)(size)
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"
    return model


def feature_maps(model: nn.Module, image: torch.Tensor) -> object:
    return model.forward_intermediates(image, intermediates_only=True, output_fmt="NCHW", norm=False)


def timm_features(name: str) -> Callable[[Size], nn.Module]:
    return lambda size: Outputs(of_timm(name)(size), feature_maps)


# --- torchvision ---------------------------------------------------------------------------------------------


def torchvision_v1(size: Size) -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], WIDTH, list(DEPTHS), list(HEADS), [WINDOW, WINDOW], num_classes=10)


def torchvision_v2(size: Size) -> nn.Module:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    return SwinTransformer([4, 4], WIDTH, list(DEPTHS), list(HEADS), [WINDOW, WINDOW], num_classes=10,
                           block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)


# --- transformers --------------------------------------------------------------------------------------------


def hugging_face(prefix: str, kind: str, pick: Callable[[nn.Module, torch.Tensor], object], **changes: object
                 ) -> Callable[[Size], nn.Module]:
    """A model of transformers with a Swin of its own configuration."""
    def build(size: Size) -> nn.Module:
        import transformers

        settings = {"image_size": size, "patch_size": 4, "window_size": WINDOW, "embed_dim": WIDTH,
                    "depths": list(DEPTHS), "num_heads": list(HEADS), "num_labels": 10,
                    "attn_implementation": "eager", **changes}
        if prefix == "DonutSwin":
            settings.pop("num_labels")
        config = getattr(transformers, f"{prefix}Config")(**settings)
        return Outputs(getattr(transformers, kind)(config), pick)

    return build


STAGES = [f"stage{i + 1}" for i in range(len(DEPTHS))]


def logits(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=image).logits


def tokens(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=image).last_hidden_state


def maps(model: nn.Module, image: torch.Tensor) -> object:
    return model(pixel_values=image).feature_maps


def reconstruction(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=image).reconstruction


def swin_2_sr(size: Size) -> nn.Module:
    import transformers

    config = transformers.Swin2SRConfig(image_size=size, embed_dim=60, depths=[2, 2], num_heads=[2, 2], window_size=8,
                                        upscale=2, attn_implementation="eager")
    return Outputs(transformers.Swin2SRForImageSuperResolution(config), reconstruction)


def clap(size: Size) -> nn.Module:
    """CLAP's audio encoder: a mel spectrogram [B, 1, time, mel bins] becomes a square image of 4 times the bins."""
    import transformers

    config = transformers.ClapAudioConfig(
        window_size=WINDOW, num_mel_bins=size[1], spec_size=4 * size[1], patch_size=4, patch_stride=[4, 4],
        patch_embeds_hidden_size=48, depths=list(DEPTHS), num_attention_heads=[2, 4, 8], hidden_size=192,
        enable_fusion=False, num_classes=10, attn_implementation="eager")
    return Outputs(transformers.ClapAudioModel(config),
                   lambda model, image: model(input_features=image).last_hidden_state)


def segmenter(size: Size) -> nn.Module:
    import transformers

    backbone = transformers.SwinConfig(image_size=size, window_size=WINDOW, embed_dim=WIDTH, depths=[2, 2, 2, 2],
                                       num_heads=[1, 2, 4, 8], out_features=["stage1", "stage2", "stage3", "stage4"],
                                       attn_implementation="eager")
    config = transformers.UperNetConfig(backbone_config=backbone, hidden_size=32, num_labels=5,
                                        use_auxiliary_head=False, auxiliary_in_channels=128)
    return Outputs(transformers.UperNetForSemanticSegmentation(config), logits)


def masked(size: Size) -> nn.Module:
    import transformers

    config = transformers.SwinConfig(image_size=size, window_size=WINDOW, embed_dim=WIDTH, depths=list(DEPTHS),
                                     num_heads=list(HEADS), encoder_stride=16, attn_implementation="eager")
    return Outputs(transformers.SwinForMaskedImageModeling(config), reconstruction)


def mask_former(size: Size) -> nn.Module:
    import transformers

    config = transformers.SwinConfig(image_size=size, window_size=WINDOW, embed_dim=WIDTH, depths=list(DEPTHS),
                                     num_heads=list(HEADS), out_features=STAGES, attn_implementation="eager")
    return Outputs(transformers.MaskFormerSwinBackbone(config), maps)


# --- all -----------------------------------------------------------------------------------------------------

SUPER_SIZES = ((48, 48), (52, 44), (48, 64))  # of windows of 8 pixels
SUPER = {"attentions": 4, "embeddings": 0, "mergings": 0, "linears": 16, "mlps": 4, "sizes": SUPER_SIZES}
TAGGER_SIZES = ((112, 112), (132, 124), (112, 224))  # of windows of 7

CASES = [
    Case("timm_v1", "timm: Swin", of_timm(TIMM_V1)),
    Case("timm_v1_window_7", "timm: Swin, windows of 7 x 7",
         of_timm(TIMM_V1, window_size=7), sizes=TAGGER_SIZES),
    Case("timm_v1_maps", "timm: Swin, feature maps", timm_features(TIMM_V1)),
    Case("timm_v1_4_channels", "timm: Swin, images of 4 channels", of_timm(TIMM_V1, in_chans=4), channels=4),
    Case("timm_v1_4x8", "timm: Swin, windows of 4 x 8", of_timm(TIMM_V1, window_size=(4, 8))),
    Case("timm_v1_heads_16", "timm: Swin, heads of 16", of_timm(TIMM_V1, num_heads=(2, 4, 8))),
    Case("timm_v1_heads_64", "timm: Swin, heads of 64", of_timm(TIMM_V1, embed_dim=64), mlps=4),
    Case("timm_v1_tanh", "timm: Swin, tanh GELU (JAX)", tanh_gelu),
    Case("timm_v2", "timm: Swin V2", of_timm(TIMM_V2)),
    Case("timm_v2_maps", "timm: Swin V2, feature maps", timm_features(TIMM_V2)),
    Case("timm_v2_tanh", "timm: Swin V2, tanh GELU (JAX taggers)", of_timm(TIMM_V2, act_layer="gelu_tanh")),
    Case("timm_v2_cr", "timm: Swin V2-CR", of_timm("swinv2_cr_tiny_224")),
    Case("timm_s3", "timm: S3", of_timm("swin_s3_tiny_224", window_size=(4, 4, 8))),
    Case("torchvision_v1", "torchvision: Swin", torchvision_v1),
    Case("torchvision_v2", "torchvision: Swin V2", torchvision_v2),
    Case("hf_swin", "transformers: Swin", hugging_face("Swin", "SwinForImageClassification", logits)),
    Case("hf_swinv2", "transformers: Swin V2", hugging_face("Swinv2", "Swinv2ForImageClassification", logits)),
    Case("hf_swin_backbone", "transformers: SwinBackbone (GroundingDINO, Mask2Former, OneFormer)",
         hugging_face("Swin", "SwinBackbone", maps, out_features=STAGES)),
    Case("hf_swinv2_backbone", "transformers: Swinv2Backbone",
         hugging_face("Swinv2", "Swinv2Backbone", maps, out_features=STAGES)),
    Case("hf_maskformer", "transformers: MaskFormer's Swin", mask_former),
    Case("hf_donut", "transformers: Donut's encoder", hugging_face("DonutSwin", "DonutSwinModel", tokens)),
    Case("hf_masked", "transformers: Swin for masked image modelling (takes square images only)", masked,
         sizes=((64, 64), (76, 76), (96, 96))),
    # Its head pools the last map to 1, 2, 3 and 6 cells a side, which ONNX can say where they divide that map: sides of
    # the image are multiples of 6 * 32 pixels.
    Case("hf_upernet", "transformers: UperNet (exports for one batch and for sides of multiples of 192)", segmenter,
         attentions=8, mergings=3, linears=4 * 8 + 3, mlps=6, fixed_batch=True, exporters=("torchscript",),
         sizes=((192, 192), (192, 384), (384, 192))),
    Case("hf_swin2sr", "transformers: Swin2SR, heads of 30 (its processor pads the image)", swin_2_sr,
         **{**SUPER, "sizes": ((48, 48), (56, 40), (48, 64))}),
    Case("hf_clap", "transformers: CLAP's audio encoder, heads of 24", clap, channels=1,
         sizes=((256, 16), (320, 20), (250, 16))),
    Case("detector", "official detection code, BiRefNet", lambda size: own.Detector(), fixed_batch=True),
    Case("detector_window_7x14", "the same, windows of 7 x 14", lambda size: own.Detector(window=(7, 14)),
         fixed_batch=True, sizes=((112, 112), (132, 124), (112, 224))),
    Case("mmdetection", "mmdetection 3: merging by unfold", lambda size: own.Detector(own.UnfoldMerging),
         fixed_batch=True),
    Case("swinir", "SwinIR, heads of 30", lambda size: own.Restorer(), fixed_batch=True, **SUPER),
    Case("swinir_light", "SwinIR light, heads of 10", lambda size: own.Restorer(heads=6), fixed_batch=True, **SUPER),
    Case("dat", "windows of 8 x 32 (DAT's)", lambda size: own.Restorer(window=(8, 32)), fixed_batch=True,
         **{**SUPER, "sizes": ((32, 64), (52, 44), (32, 96))}),
    Case("hat", "HAT: window, channel and overlapping attention", lambda size: own.Restorer(own.HybridBlock),
         fixed_batch=True, **{**SUPER, "attentions": 6, "linears": 24, "mlps": 6}),
    Case("swin_unet", "Swin-Unet", lambda size: own.Unet(), attentions=6, mergings=1, linears=6 * 4 + 3,
         fixed_batch=True, sizes=((64, 64), (96, 64), (64, 128))),
]


def main() -> None:
    for case in CASES:
        print(f"{case.name:<22} {case.what}; {case.attentions} attentions, images "
              f"{', '.join(f'{height}x{width}' for height, width in case.sizes)}")


if __name__ == "__main__":
    main()
