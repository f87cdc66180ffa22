"""A TensorRT engine loaded from its plan, and the contexts that run it.

    with Engine(Path("TensorRT/TRT_Engine/swinv1.plan")) as engine, engine.context() as context:
        logits = context.infer(images)  # [B, 3, S, S] -> [B, num_classes]

An Engine holds the weights. Each Context has its own stream, activations and buffers, so that several run at once.
Polygraphy's TrtRunner would do without CUDA graphs, and be one more package for the Python that has TensorRT.
"""
from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphs.facts import Facts, file_digest, of_engine, of_plan
from TensorRT.backend import CARRIED, load_plugins
from TensorRT.trt_runtime import LOGGER, cuda, cudart, in_one_line, require_gpu, trt
from utils import UserError, about, existing_file, shown

# INT64 and UINT8 tensors exist from TensorRT 10 on (8.6: UINT8 only). BF16, FP8 and FP4 are no types of NumPy's.
NUMPY_TYPES = {getattr(trt, name): np.dtype(numpy_name) for name, numpy_name in (
    ("float32", "float32"), ("float16", "float16"), ("int64", "int64"), ("int32", "int32"), ("int8", "int8"),
    ("uint8", "uint8"), ("bool", "bool")) if hasattr(trt, name)}

# What TensorRT (8.6 to 11, and RTX) says when it refuses a plan, and what that means. The first that fits counts.
OTHER_VERSION = "was built by another version of TensorRT; build it again with TensorRT/build.sh"
TRUNCATED = "is truncated; build it again with TensorRT/build.sh, or copy it again"
REFUSALS = (
    ("expecting library version", OTHER_VERSION),
    ("Version tag does not match", OTHER_VERSION),
    ("does not support this compute capability", "cannot run on this GPU with this TensorRT, nor can another be built "
     "for it; take another version, or tensorrt itself (--backend tensorrt)"),
    ("cannot run on this GPU", "was built for other GPUs; build it again with TensorRT/build.sh on this machine"),
    ("incompatible device", "was built for another GPU; build it again on this machine with TensorRT/build.sh"),
    ("current device is not compatible", "was built for another GPU; build it again here with TensorRT/build.sh"),
    ("could not find plugin", "needs a plugin library; build it with make -C TensorRT/Plugins, give it with --plugins"),
    ("Cannot find plugin", "needs a plugin library; build it with make -C TensorRT/Plugins, give it with --plugins"),
    ("getCreatorInternal", "needs a plugin library; give the one it was built with by --plugins"),  # RTX, a context
    ("Cannot deserialize plugin", "needs a plugin library; give the one it was built with by --plugins"),
    ("getEngineHostCodeAllowed", "carries code of its own; --plugins carried lets it run"),
    ("does not match archive size", TRUNCATED),  # 8.6
    ("header.size == blobSize", TRUNCATED),  # 10 and later
    ("empty memory buffer", "is empty; build it again with TensorRT/build.sh, or copy it again"),
    ("agic tag", "is not a TensorRT plan; build one with TensorRT/build.sh"),  # 8.6
    ("header.magicTag", "is not a TensorRT plan; build one with TensorRT/build.sh"),  # 10 and later
)


class Engine:
    """A plan on the current GPU, with one input and one optimization profile.

    Attributes:
        input: name of the input tensor; `input_shape` its shape, (-1, 3, S, S), or (B, 3, S, S) where B was fixed at
            export; height and width are -1, too, where they are open.
        outputs: names of the output tensors.
        profile: smallest, usual and largest input shape of the optimization profile; three times the same without one.
        batches: smallest and largest batch of the profile, or, both, the batch that was fixed.
    """

    def __init__(self, plan: str | Path, plugins: str | Path | None = None) -> None:
        """Load a plan.

        Args:
            plan: file made by TensorRT/build.sh.
            plugins: plugin library, see `load_plugins`. CARRIED lets TensorRT load and run the one inside the plan.

        Raises:
            UserError: no GPU, no such file, or TensorRT refuses it: truncated, of another version or GPU, or in need
                of a plugin that is not loaded.
        """
        self.plan = existing_file(plan, "an engine (TensorRT/build.sh builds one)")
        require_gpu()
        load_plugins(plugins)
        LOGGER.clear()
        self.runtime = trt.Runtime(LOGGER)
        # A plan that carries a library is a program: TensorRT refuses it unless told otherwise.
        self.runtime.engine_host_code_allowed = str(plugins) == CARRIED
        plan_bytes = self.plan.read_bytes()
        self.engine = self.runtime.deserialize_cuda_engine(plan_bytes)
        if self.engine is None:
            raise UserError(f"{shown(self.plan)}: {refusal(LOGGER.errors, plan_bytes)}")
        for warning in LOGGER.warnings:
            if "different models of devices" in warning:
                print(f"warning: {shown(self.plan)}: {warning}", file=sys.stderr)

        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        inputs = [name for name in names if self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if len(inputs) != 1 or self.engine.num_optimization_profiles != 1:
            raise UserError(f"{shown(self.plan)}: has {len(inputs)} inputs and {self.engine.num_optimization_profiles} "
                            "optimization profiles; this project's engines have one of each")
        self.input = inputs[0]
        self.input_shape = tuple(self.engine.get_tensor_shape(self.input))
        self.outputs = [name for name in names if name not in inputs]
        self.profile: tuple[tuple[int, ...], ...] = (self.input_shape,) * 3
        if -1 in self.input_shape:
            self.profile = tuple(tuple(shape) for shape in self.engine.get_tensor_profile_shape(self.input, 0))
        self.batches = (self.profile[0][0], self.profile[2][0])

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights. Every context must be closed before."""
        self.engine = None
        self.runtime = None

    def context(self) -> Context:
        """A new execution context with a stream of its own."""
        return Context(self)

    @property
    def open_sizes(self) -> bool:
        """Whether it takes images of several sizes."""
        return -1 in self.input_shape[1:]

    def dtype(self, tensor: str) -> np.dtype:
        """NumPy type of an input or output tensor; UserError for a type that NumPy lacks."""
        kind = self.engine.get_tensor_dtype(tensor)
        if kind not in NUMPY_TYPES:
            raise UserError(f"{shown(self.plan)}: {tensor} is {kind}, which NumPy does not have")
        return NUMPY_TYPES[kind]

    def layer_information(self) -> str:
        """JSON text with TensorRT's description of every layer (detailed where the plan was built so)."""
        return self.engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)

    def facts(self) -> Facts:
        """What the plan is: by the .json that the builder wrote beside it, else by what the engine itself says.

        Raises:
            UserError: there is no such file, and the plan was built without detailed descriptions of its layers.
        """
        known = of_plan(self.plan)
        if known is not None:
            return known
        tensors = [(name, name == self.input, self.dtype(name).name, tuple(self.engine.get_tensor_shape(name)))
                   for name in (self.input, *self.outputs)]
        with about(self.plan):
            return of_engine(tensors, self.layer_information(), file_digest(self.plan))

    def activation_bytes(self, batch: int) -> int:
        """Device memory that one context needs for activations, in bytes.

        TensorRT 10 and later know it for a batch, of images of the profile's usual size; 8.6 knows only that of the
        largest batch, and size, of the profile.
        """
        if not hasattr(trt, "ExecutionContextAllocationStrategy"):
            return self.engine.device_memory_size
        context = self.engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        context.set_input_shape(self.input, (batch, *self.profile[1][1:]))
        return context.update_device_memory_size_for_shapes()


def refusal(errors: list[str], plan: bytes,
            unknown: str = "cannot be loaded; build it again with TensorRT/build.sh") -> str:
    """Why TensorRT refuses a plan with these errors: what they mean, what to do, and the telling one of them; `unknown`
    and all of them, where it is none of REFUSALS."""
    for words, meaning in REFUSALS:
        for error in errors:
            if words in error:
                # Every plan begins with four letters that end in trt: ftrt in 8.6, vtrt in TensorRT-RTX.
                if "agic" in words and plan[1:4] == b"trt":
                    meaning = OTHER_VERSION
                return f"{meaning} (TensorRT: {in_one_line(error)})"
    reason = in_one_line("; ".join(errors)) or "no reason"
    return f"{unknown} (TensorRT: {reason})"


def create_execution_context(engine: Any) -> Any:
    """A context whose first run at a batch computes what later ones do; None where TensorRT makes none.

    TensorRT-RTX compiles kernels for a shape on the GPU. By default (LAZY) it does so beside the first runs, which take
    general kernels meanwhile, whose sums may be in another order; EAGER compiles them first.
    """
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config)


def _by(shape: Sequence[int]) -> str:
    """The sides of an image: the axes after the batch but for the channels."""
    sides = shape[1:3] if shape[-1] in (1, 3) and shape[1] not in (1, 3) else shape[2:]
    return "x".join(map(str, sides))


class Context:
    """One execution context: runs an engine on its own stream, with its own activations and buffers.

    `infer` is all that most callers need. To measure, `set_batch` and `upload` once, `capture` for a CUDA graph, then
    `run` or `timed_run_ms` as often as wanted.
    """

    def __init__(self, engine: Engine) -> None:
        LOGGER.clear()
        self.engine = engine
        self.buffers: dict[str, int] = {}  # tensor -> device pointer
        self.shapes: dict[str, tuple[int, ...]] = {}  # tensor -> shape at the current batch
        self.graph = None
        self.context = create_execution_context(engine.engine)
        if self.context is None:
            raise UserError(f"{shown(engine.plan)}: {refusal(LOGGER.errors, b'', 'no execution context')}")
        # Non-blocking: a context on another stream never waits for this one.
        self.stream = cuda(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)
        self.events = (cuda(cudart.cudaEventCreate), cuda(cudart.cudaEventCreate))

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the activations, buffers, graph, events and stream."""
        self._free_buffers()
        for event in self.events:
            cuda(cudart.cudaEventDestroy, event)
        self.context = None
        cuda(cudart.cudaStreamDestroy, self.stream)

    def infer(self, images: np.ndarray) -> np.ndarray:
        """The engine's only output for a batch of images.

        Args:
            images: [B, 3, H, W], normalised.

        Raises:
            UserError: B, H or W lies outside the optimization profile, the shape is another one, or CUDA or TensorRT
                fails.
        """
        if len(self.engine.outputs) != 1:
            raise UserError(f"{shown(self.engine.plan)}: has {len(self.engine.outputs)} outputs, not one")
        return self.infer_all(images)[self.engine.outputs[0]]

    def infer_all(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every output by its name, otherwise as `infer`."""
        self.set_shape(images.shape)
        self.upload(images)
        self.run()
        return self.download()

    def set_batch(self, batch: int) -> None:
        """Prepare buffers for a batch of images of the profile's usual size; UserError as `set_shape`."""
        self.set_shape((batch, *self.engine.profile[1][1:]))

    def set_shape(self, shape: Sequence[int]) -> None:
        """Prepare buffers for images of a shape, [B, 3, H, W].

        Raises:
            UserError: it has another number of axes or channels, or lies outside the optimization profile.
        """
        shape, (smallest, _, largest) = tuple(shape), self.engine.profile
        fixed = zip(self.engine.input_shape[1:], shape[1:])
        if len(shape) != len(smallest) or any(side not in (-1, given) for side, given in fixed):
            sides = ["any" if side == -1 else side for side in self.engine.input_shape[1:]]
            raise UserError(f"{shown(self.engine.plan)}: takes images [{', '.join(map(str, sides))}], was given "
                            f"{list(shape[1:])}; this is the data of another model")
        if not smallest[0] <= shape[0] <= largest[0]:
            raise UserError(f"{shown(self.engine.plan)}: batch {shape[0]} lies outside its optimization profile, "
                            f"{smallest[0]} to {largest[0]}; build.sh --min and --max set the profile")
        if any(not low <= side <= high for low, side, high in zip(smallest[1:], shape[1:], largest[1:])):
            raise UserError(f"{shown(self.engine.plan)}: images of {_by(shape)} lie outside its optimization profile, "
                            f"{_by(smallest)} to {_by(largest)}; build.sh --min-size and --max-size set the profile")
        if self.shapes and self.shapes[self.engine.input] == shape:
            return
        self._free_buffers()
        LOGGER.clear()
        # A shape that is refused would leave the old one, and old output would be read back as if it were new.
        if not self.context.set_input_shape(self.engine.input, shape):
            raise UserError(f"{shown(self.engine.plan)}: {_by(shape)} images are refused: {LOGGER.complaint()}")
        for name in (self.engine.input, *self.engine.outputs):
            self.shapes[name] = tuple(self.context.get_tensor_shape(name))
            self.buffers[name] = cuda(cudart.cudaMalloc, max(self._bytes(name), 1))
            if not self.context.set_tensor_address(name, self.buffers[name]):
                raise UserError(f"{shown(self.engine.plan)}: {name}: address is refused: {LOGGER.complaint()}")

    def upload(self, images: np.ndarray) -> None:
        """Copy a batch to the device. The batch must be the one that is set."""
        images = np.ascontiguousarray(images, dtype=self.engine.dtype(self.engine.input))
        cuda(cudart.cudaMemcpyAsync, self.buffers[self.engine.input], images.ctypes.data, images.nbytes,
             cudart.cudaMemcpyKind.cudaMemcpyHostToDevice, self.stream)
        self.synchronize()

    def download(self) -> dict[str, np.ndarray]:
        """Wait for the stream and copy every output to the host."""
        outputs = {name: np.empty(self.shapes[name], self.engine.dtype(name)) for name in self.engine.outputs}
        for name, array in outputs.items():
            cuda(cudart.cudaMemcpyAsync, array.ctypes.data, self.buffers[name], array.nbytes,
                 cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost, self.stream)
        self.synchronize()
        return outputs

    def run(self) -> None:
        """Start one run on the stream: the captured graph if there is one, else TensorRT's own launch."""
        if self.graph is not None:
            cuda(cudart.cudaGraphLaunch, self.graph, self.stream)
        elif not self.context.execute_async_v3(int(self.stream)):
            raise UserError(f"{shown(self.engine.plan)}: run failed: {LOGGER.complaint()}")

    def capture(self) -> None:
        """Capture a run at the current batch into a CUDA graph, which `run` launches from now on."""
        self.release_graph()
        self.run()  # TensorRT finishes its work for a new shape in a run that must not be captured
        self.synchronize()
        cuda(cudart.cudaStreamBeginCapture, self.stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            self.run()
        except UserError:
            cudart.cudaStreamEndCapture(self.stream)  # fails too; the first error is the one to report
            raise
        graph = cuda(cudart.cudaStreamEndCapture, self.stream)
        self.graph = cuda(cudart.cudaGraphInstantiate, graph, 0)
        cuda(cudart.cudaGraphDestroy, graph)

    def release_graph(self) -> None:
        """Forget a captured graph: `run` launches through TensorRT again."""
        if self.graph is not None:
            cuda(cudart.cudaGraphExecDestroy, self.graph)
            self.graph = None

    def timed_run_ms(self) -> float:
        """One run by CUDA events on the stream, in milliseconds; input and output stay on the device."""
        start, end = self.events
        cuda(cudart.cudaEventRecord, start, self.stream)
        self.run()
        cuda(cudart.cudaEventRecord, end, self.stream)
        cuda(cudart.cudaEventSynchronize, end)
        return cuda(cudart.cudaEventElapsedTime, start, end)

    def synchronize(self) -> None:
        """Wait for everything on the stream."""
        cuda(cudart.cudaStreamSynchronize, self.stream)

    def _bytes(self, tensor: str) -> int:
        return int(np.prod(self.shapes[tensor], dtype=np.int64)) * self.engine.dtype(tensor).itemsize

    def _free_buffers(self) -> None:
        self.release_graph()
        for pointer in self.buffers.values():
            cuda(cudart.cudaFree, pointer)
        self.buffers.clear()
        self.shapes.clear()
