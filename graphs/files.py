"""ONNX files: read one, name one.

Imports onnx only where it is needed: what touches TensorRT imports this module without it.
"""
from __future__ import annotations

from pathlib import Path

from utils import UserError, check_writable, existing_file, shown

PLUGIN_DOMAIN = "swin"  # of the nodes that the TensorRT plugins implement
FP32_LAYER = "/fp32"  # ends the names of nodes that stay FP32 in an FP16 graph by choice


def load_onnx(path: str | Path):
    """The onnx.ModelProto in a file.

    Raises:
        UserError: no such file, not an ONNX file, or its weights lie in another file that is missing.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = existing_file(path, "an ONNX file (onnx/export_onnx.py writes one)")
    remedy = "write it again with onnx/export_onnx.py"
    try:
        model = onnx.load(str(path), format="protobuf")
    except DecodeError as error:
        raise UserError(f"{shown(path)}: is not an ONNX file, or a truncated one; {remedy}") from error
    except (onnx.checker.ValidationError, FileNotFoundError) as error:
        raise UserError(f"{shown(path)}: its external weights cannot be read ({error}); {remedy}") from error
    # Protobuf reads an empty file, and some files of other kinds, as a model without content.
    if not model.graph.node or not model.graph.input or not model.opset_import:
        raise UserError(f"{shown(path)}: is not an ONNX file: no graph in it; {remedy}")
    return model


def onnx_target(path: Path) -> Path:
    """The path to write a graph to, as --output gives it or by default; known before the work to be one that can be.

    Raises:
        UserError: it is not the name of an ONNX file, or what check_writable raises.
    """
    if path.suffix != ".onnx" or path.is_dir():
        raise UserError(f"{shown(path)}: not the name of an ONNX file; let --output end with .onnx")
    check_writable(path)
    return path


def has_plugins(model) -> bool:
    """Whether the graph of an onnx.ModelProto holds nodes that only this project's TensorRT plugins implement."""
    return any(node.domain == PLUGIN_DOMAIN for node in model.graph.node)


def onnx_refusals() -> tuple[type[Exception], ...]:
    """What onnxruntime raises for a model that it cannot load or run."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented,
            state.RuntimeException, state.EPFail)
