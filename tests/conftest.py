"""What the tests share: an importable timm, and weights that let a mistake show."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from export_timm import make_torchvision_importable
from onnx import TensorProto, helper
from torch import nn

make_torchvision_importable()  # before a test imports timm


@pytest.fixture(scope="session")
def randomize() -> Callable[[nn.Module, int], nn.Module]:
    """randomize(model, seed): give a model weights with which every part of it contributes to the logits.

    Under the usual initial weights a Swin Transformer hides mistakes: attention is all but uniform, biases are zero,
    and V2's blocks are the identity.
    """
    def fill(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(generator=generator)
                if name.endswith("logit_scale"):
                    parameter.mul_(1.5).add_(3)  # one in seven is beyond the clamp, ln(100) = 4.6
                elif name.endswith("relative_position_bias_table"):
                    pass
                elif "norm" in name and name.endswith("weight"):
                    parameter.mul_(0.2).add_(1)
                elif parameter.ndim == 1:
                    parameter.mul_(0.1)
                else:
                    gain = 2 if name.endswith("qkv.weight") else 1  # attention far from uniform
                    parameter.mul_(gain / parameter[0].numel() ** 0.5)
        return model

    return fill


@pytest.fixture(scope="session")
def as_fp16() -> Callable[[Path, Path], Path]:
    """as_fp16(source, path): write the same graph with its logits rounded to FP16."""
    def rounded(source: Path, path: Path) -> Path:
        model = onnx.load(source)
        for node in model.graph.node:
            node.output[:] = ["exact" if name == "logits" else name for name in node.output]
        model.graph.node.append(helper.make_node("Cast", ["exact"], ["half"], to=TensorProto.FLOAT16))
        model.graph.node.append(helper.make_node("Cast", ["half"], ["logits"], to=TensorProto.FLOAT))
        onnx.save(model, path)
        return path

    return rounded
