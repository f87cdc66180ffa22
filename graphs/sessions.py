"""onnxruntime sessions: every graph here is run by one that is made in this module."""
from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from graphs.files import has_plugins, is_large, load_onnx, onnx_refusals
from graphs.pictures import inputs_of, is_large_image
from graphs.reference import expand
from utils import UserError, first_line, shown

CPU = ("CPUExecutionProvider",)


def session_of(source: onnx.ModelProto | str | Path, providers: Sequence[str | tuple[str, dict]] = CPU, *,
               as_it_is: bool = False, fixed: Mapping[str, int] | None = None):
    """The onnxruntime.InferenceSession on a graph of standard operators: the one place where one is made.

    Args:
        source: the model, or its file, which may keep weights in others beside it.
        providers: onnxruntime's execution providers, best first, each a name or (name, options).
        as_it_is: run every operator, where onnxruntime would leave out what it can tell without running.
        fixed: sizes for dimensions that the graph leaves open, by their names.
    Raises:
        onnx_refusals(): onnxruntime refuses the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Errors arrive as exceptions; but which library CUDA lacks is only in a message of level 3.
    options.log_severity_level = 4 if tuple(providers) == CPU else 3
    # PyTorch follows this variable; onnxruntime of itself does not, and takes every core.
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if threads.isdecimal():
        options.intra_op_num_threads = int(threads)
    if as_it_is:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Q/DQ pairs in FP32 as they are written: INT8 products saturate at 16 bits on x86 processors without VNNI.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    for name, size in (fixed or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    if isinstance(source, onnx.ModelProto) and any(
            is_large_image([dim.dim_value for dim in value.type.tensor_type.shape.dim]) for value in inputs_of(source)):
        # Its arena grows by powers of two and keeps what it has: three times what the tensors take.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        # Shape operators run as soon as they can, so that tensors of which only that is asked for are freed.
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if isinstance(source, onnx.ModelProto) and is_large(source):
        with tempfile.TemporaryDirectory() as folder:
            copy, path = onnx.ModelProto(), str(Path(folder) / "model.onnx")
            copy.CopyFrom(source)  # saving takes the weights out
            onnx.save(copy, path, save_as_external_data=True, location="weights")
            return onnxruntime.InferenceSession(path, options, providers=list(providers))
    graph = str(source) if isinstance(source, (str, Path)) else source.SerializeToString()
    return onnxruntime.InferenceSession(graph, options, providers=list(providers))


def session(model: onnx.ModelProto, *, as_it_is: bool = False):
    """`session_of` a model in memory, on the CPU, plugin nodes by their reference meaning."""
    return session_of(expand(model), as_it_is=as_it_is)


def onnx_session(path: str | Path, providers: Sequence[str | tuple[str, dict]] = CPU,
                 batch: int | None = None):
    """An onnxruntime.InferenceSession on an ONNX file; plugin nodes run as the standard operators that they stand for.

    Args:
        path: the file.
        providers: onnxruntime's execution providers, best first, each a name or (name, options). All must be there:
            onnxruntime itself would go on without.
        batch: fixes a batch that the file leaves open, so that what is computed of shapes becomes constant.
    Raises:
        UserError: what load_onnx raises; a provider that this machine lacks; a graph that onnxruntime refuses.
    """
    model = load_onnx(path)
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("onnxruntime is not installed; pip install -r requirements.txt") from error
    names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
    available = onnxruntime.get_available_providers()
    for name in names:
        if name not in available:
            raise UserError(f"{name} is not in the installed onnxruntime {onnxruntime.__version__}, which has "
                            f"{', '.join(available)}; for CUDA, replace it by onnxruntime-gpu")
    first_axis = model.graph.input[0].type.tensor_type.shape.dim[:1]
    fixed = {first_axis[0].dim_param: batch} if batch is not None and first_axis and first_axis[0].dim_param else {}
    try:
        session = session_of(expand(model) if has_plugins(model) else path, providers, fixed=fixed)
    except onnx_refusals() as error:
        raise UserError(f"{shown(path)}: onnxruntime refuses it: {first_line(error)}") from error
    if session.get_providers()[:len(names)] != names:
        raise UserError(f"{names[0]} is installed but does not start (it runs {', '.join(session.get_providers())}); "
                        "the CUDA and cuDNN libraries it needs are missing, or there is no GPU")
    return session


def onnx_img_size(session, path: str | Path) -> int:
    """Side S in pixels of the images that a session takes, its input being [batch, 3, S, S].

    Raises:
        UserError: the input has another shape, or its size is not fixed.
    """
    shape = session.get_inputs()[0].shape
    if len(shape) != 4 or shape[1] != 3 or not isinstance(shape[2], int) or shape[2] != shape[3]:
        raise UserError(f"{shown(path)}: takes input {shape}, not images [batch, 3, S, S] of a fixed size S; "
                        "give a classification model from onnx/export_onnx.py")
    return shape[2]


def onnx_logits(session, images: np.ndarray, path: str | Path) -> np.ndarray:
    """The first output, [N, num_classes], of a session for images [N, 3, S, S], both float32.

    Raises:
        UserError: the images do not fit the session's input, or onnxruntime does not run the graph at this batch.
    """
    wanted = session.get_inputs()[0]
    if len(wanted.shape) != images.ndim or any(isinstance(size, int) and size != actual
                                               for size, actual in zip(wanted.shape, images.shape)):
        raise UserError(f"{shown(path)}: takes input {wanted.shape}, which {list(images.shape)} does not fit; "
                        "export it again with the right --cfg and a dynamic batch")
    try:
        return session.run(None, {wanted.name: images})[0]
    except onnx_refusals() as error:
        raise UserError(f"{shown(path)}: onnxruntime does not run it at batch {len(images)}: "
                        f"{first_line(error)}") from error
