"""ONNX files: read one, name one.

Imports onnx only where it is needed: what touches TensorRT imports this module without it.
"""
from __future__ import annotations

from pathlib import Path

from utils import UserError, check_writable, existing_file, first_line, shown, whole_file

PLUGIN_DOMAIN = "swin"  # of the nodes that the TensorRT plugins implement
FP32_LAYER = "/fp32"  # ends the names of nodes that stay FP32 in an FP16 graph by choice


LARGEST_MODEL = 2**31 - 2**24  # bytes of weights that one protobuf message, of at most 2 GiB, is sure to hold


def load_onnx(path: str | Path):
    """The onnx.ModelProto in a file.

    Raises:
        UserError: no such file, not an ONNX file, its weights lie in another file that is missing or does not fit, or
            one of its names or weights is none.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = existing_file(path, "an ONNX file (onnx/export_onnx.py writes one)")
    remedy = "write it again with onnx/export_onnx.py"
    try:
        model = onnx.load(str(path), format="protobuf")
    except DecodeError as error:
        raise UserError(f"{shown(path)}: is not an ONNX file, or a truncated one; {remedy}") from error
    except (onnx.checker.ValidationError, FileNotFoundError, ValueError) as error:
        raise UserError(f"{shown(path)}: its external weights cannot be read ({first_line(error)}); {remedy}"
                        ) from error
    # Protobuf reads an empty file, and some files of other kinds, as a model without content.
    if not model.graph.node or not model.graph.input or not model.opset_import:
        raise UserError(f"{shown(path)}: is not an ONNX file: no graph in it; {remedy}")
    problem = _broken(model)
    if problem:
        raise UserError(f"{shown(path)}: {problem}; {remedy}")
    refuse_old_nodes(model, path)
    return model


# What a plugin node had before activations were [B, H, W, C], when it said itself how large the image is; and what it
# has had since.
OLD_ATTRIBUTES = {"height", "width", "window_size", "shift_size", "patch_size"}
NEW_ATTRIBUTES = {"SwinMlp": "gelu"}


def refuse_old_nodes(model, path: str | Path) -> None:
    """Raises UserError if the graph of an onnx.ModelProto holds plugin nodes of an earlier version of this project."""
    for node in model.graph.node:
        names = {attribute.name for attribute in node.attribute} if node.domain == PLUGIN_DOMAIN else set()
        if names & OLD_ATTRIBUTES or (names and NEW_ATTRIBUTES.get(node.op_type, "") not in {"", *names}):
            raise UserError(f"{shown(path)}: its node {node.name or node.op_type} is one of an earlier version of this "
                            "project; patch the FP32 graph again (onnx/graphsurgeon/add_all.py)")


def _broken(model) -> str:
    """What is wrong with names and weights that protobuf lets pass, in words; "" where nothing is."""
    from onnx import numpy_helper

    graph = model.graph
    for node in graph.node:
        if not node.output:
            return f"its node {node.name or node.op_type} has no output"
        for name in (node.name, node.op_type, node.domain, *node.input, *node.output):
            if not _is_text(name):
                return f"the name {name!r} of a node or tensor is not UTF-8"
    for value in (*graph.input, *graph.output, *graph.initializer):
        if not _is_text(value.name):
            return f"the name {value.name!r} of an input, output or weight is not UTF-8"
    names = [tensor.name for tensor in graph.initializer]
    if len(set(names)) < len(names):
        return f"two of its weights are called {next(name for name in names if names.count(name) > 1)}"
    constants = [attribute.t for node in graph.node if node.op_type == "Constant" for attribute in node.attribute
                 if attribute.name == "value"]
    for tensor in (*graph.initializer, *constants):
        what = f"its weight {tensor.name}" if tensor.name else "one of its constants"
        if min(tensor.dims, default=0) < 0:
            return f"{what} has an axis of {min(tensor.dims)}"
        try:
            numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError, OverflowError, AttributeError, MemoryError) as error:
            return f"{what} cannot be read ({first_line(error)})"
    return ""


def _is_text(name: str | bytes) -> bool:
    if isinstance(name, bytes):
        return False
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_large(model) -> bool:
    """Whether an onnx.ModelProto is more than one protobuf message can hold."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST_MODEL


def save_onnx(model, path: Path) -> None:
    """Write an onnx.ModelProto whole; what one file cannot hold has its weights beside it, in <name>.onnx.data.

    Raises:
        UserError: what whole_file raises.
    """
    import onnx

    if not is_large(model):
        with whole_file(path) as partial:
            onnx.save(model, str(partial))
        return
    weights = path.with_name(f"{path.name}.data")
    with whole_file(path) as partial, whole_file(weights) as partial_weights:
        partial_weights.unlink()  # onnx appends to a file that is there
        onnx.save(model, str(partial), save_as_external_data=True, location=partial_weights.name)
        written = onnx.load(str(partial), load_external_data=False)
        for tensor in written.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = weights.name
        onnx.save(written, str(partial))
    print(f"wrote {shown(weights)}: the weights, which one ONNX file cannot hold; keep it beside {path.name}")


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
