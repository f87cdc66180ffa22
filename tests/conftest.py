"""What the tests share: an importable timm, and weights that let a mistake show."""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from export_timm import make_torchvision_importable
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from graphs.facts import carried_over
from utils import run_script

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
    """as_fp16(source, path): the same graph with logits rounded to FP16, and an FP16 product that adds zero."""
    def rounded(source: Path, path: Path) -> Path:
        model = onnx.load(source)
        unique = str(len(model.graph.node))
        exact, half, full, zero, product, nothing = (f"{name}_{unique}" for name in (
            "exact", "half", "full", "zero", "product", "nothing"))
        for node in model.graph.node:
            node.output[:] = [exact if name == "logits" else name for name in node.output]
        classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        model.graph.initializer.append(numpy_helper.from_array(np.zeros((classes, classes), np.float16), zero))
        # The product adds zero and stands apart: onnxruntime on a CPU rounds nothing between it and its neighbours.
        model.graph.node.extend([
            helper.make_node("Cast", [exact], [half], to=TensorProto.FLOAT16),
            helper.make_node("Cast", [half], [full], to=TensorProto.FLOAT),
            helper.make_node("MatMul", [zero, zero], [product]),
            helper.make_node("Cast", [product], [nothing], to=TensorProto.FLOAT),
            helper.make_node("Slice", [nothing, f"{zero}_start", f"{zero}_end"], [f"{nothing}_row"]),
            helper.make_node("Add", [full, f"{nothing}_row"], ["logits"])])
        for name, value in (("start", 0), ("end", 1)):
            model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), f"{zero}_{name}"))
        onnx.save(carried_over(model, source), path)
        return path

    return rounded


@pytest.fixture
def as_a_script(capsys, monkeypatch) -> Callable[..., subprocess.CompletedProcess]:
    """as_a_script(module, *arguments): what running a script gives, without the seconds that a new Python takes."""
    def run(module: ModuleType, *arguments: str | Path) -> subprocess.CompletedProcess:
        command = [module.__file__, *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        status, message = 0, ""
        try:
            run_script(module.main)
        except SystemExit as end:  # as the interpreter does: an integer is the status, a text is printed
            status, message = (end.code, "") if isinstance(end.code, int) else (1, f"{end.code}\n")
        told = capsys.readouterr()
        return subprocess.CompletedProcess(command, status, told.out, told.err + message)

    return run
