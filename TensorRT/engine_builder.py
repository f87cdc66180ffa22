"""From an ONNX file to a plan by TensorRT's Python API: the work behind build_engine.py."""
from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from argparse import Namespace
from pathlib import Path

from graphs.facts import Facts, beside, built_from, of_json, of_onnx, write_beside
from graphs.files import FP32_LAYER
from TensorRT import backend
from TensorRT.build_log import BuildLog
from TensorRT.INT8.calibration_cache import cache_text, read_cache
from TensorRT.layers import layers_of
from TensorRT.trt_runtime import LOGGER, gpu_problem, in_one_line, require_gpu, trt
from utils import UserError, shown, whole_file

# Batches of the optimization profile where no shapes are given. A graph whose batch is fixed needs no profile.
DEFAULT_BATCHES = {"minShapes": 1, "optShapes": 32, "maxShapes": 128}
LARGEST_TENSOR = 2**31 - 1  # elements


def build(arguments: Namespace) -> None:
    """Build the engine that build_engine.py's arguments describe; write plan, log, layer information and, where a file
    is named for it, the timing cache.

    Raises:
        UserError: no GPU where this TensorRT needs one to build, or TensorRT refuses the graph, the shapes or the
            flags. No plan is left behind.
    """
    onnx, plan = Path(arguments.onnx), Path(arguments.saveEngine)
    facts = graph_facts(onnx, arguments.facts)
    if not backend.builds_without_gpu(trt):
        require_gpu()
    backend.load_plugins(arguments.staticPlugins)
    print(f"building {shown(plan)} from {shown(onnx)} with {backend.described(trt)}", flush=True)
    with BuildLog(plan.with_suffix(".log"), arguments.verbose) as log:
        LOGGER.clear()
        LOGGER.listener = log.message
        try:
            builder = trt.Builder(LOGGER)
            network, _parser = _parse(onnx, builder)  # the parser owns memory that the network uses
            calibrator = None
            if arguments.calib and not backend.strongly_typed(trt):
                calibrator = _calibrator(Path(arguments.calib), network)
            config = _configure(builder, network, arguments, log, calibrator)
            serialized = builder.build_serialized_network(network, config)
            if calibrator is not None and calibrator.asked:
                raise UserError(f"{shown(arguments.calib)}: {backend.described(trt)} does not take its scales and "
                                f"asked for images to calibrate on: {LOGGER.complaint()}")
            if serialized is None:
                raise UserError(f"{shown(onnx)}: TensorRT cannot build it: {LOGGER.complaint()}; "
                                f"all of its messages are in {shown(log.path)}")
            layers = _describe_layers(serialized, arguments.exportLayerInfo, log)
            _save_timing_cache(config, arguments.timingCacheFile)
            beside(plan).unlink(missing_ok=True)  # what it says is of the plan before
            with whole_file(plan) as partial:
                partial.write_bytes(serialized)
            if facts is not None:
                tool = "tensorrt-rtx" if backend.is_rtx(trt) else "tensorrt"
                write_beside(plan, built_from(facts, onnx.name), precision=built_precision(facts, arguments),
                             tools={**facts.tools, tool: trt.__version__}, batches=_batches(network, arguments))
        finally:
            LOGGER.listener = None
    if calibrator is not None:
        print(f"TensorRT took the scales of {shown(arguments.calib)} and calibrated nothing")
    print(f"wrote {shown(plan)}: {plan.stat().st_size / 2**20:.1f} MiB, {layers} layers, built in {log.seconds:.0f} s")


def graph_facts(onnx: Path, given: Path | None) -> Facts | None:
    """The facts of the graph to build; None where nothing here can read it, which is said."""
    if given is not None:
        return of_json(given)
    if importlib.util.find_spec("onnx") is None:
        print(f"{sys.executable} has no onnx: no facts of {shown(onnx)} are written beside the plan; --facts gives "
              "them", file=sys.stderr)
        return None
    return of_onnx(onnx)


def built_precision(facts: Facts, arguments: Namespace) -> str:
    """What an engine computes in: as its graph does, or lower where a flag permits that and 8.6 so chooses."""
    if not backend.strongly_typed(trt) and facts.precision == "fp32":
        return "int8" if arguments.int8 and arguments.calib else "fp16" if arguments.fp16 else "fp32"
    return facts.precision


def _parse(onnx: Path, builder: trt.Builder) -> tuple[trt.INetworkDefinition, trt.OnnxParser]:
    kind = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(
        1 << int(kind.STRONGLY_TYPED if backend.strongly_typed(trt) else kind.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, LOGGER)
    if not parser.parse_from_file(str(onnx)):
        raise UserError(f"{shown(onnx)}: {_parser_refusal(parser)}")
    if network.num_inputs != 1:
        raise UserError(f"{shown(onnx)}: has {network.num_inputs} inputs; this project's graphs have one")
    return network, parser


def _parser_refusal(parser: trt.OnnxParser) -> str:
    """Why the parser refuses a graph, in one line: the plugins that are missing, or its first error."""
    reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)] or [LOGGER.complaint()]
    nodes = [message.split("While parsing ")[1] for message in LOGGER.errors if "While parsing node" in message]
    if any("Plugin not found" in reason for reason in reasons):
        # 8.6 stops at the first one; 10 and later go on and name them all.
        operators = dict.fromkeys(re.findall(r"\[(\w+) -> ", " ".join(nodes)))
        return (f"no loaded library implements {', '.join(operators) or 'its plugin nodes'}; give the library of its "
                "plugins with --plugins (make -C TensorRT/Plugins builds it)")
    first = LOGGER.complaint()  # a plugin's own words come before the parser's
    reason = " ".join([*nodes[:1], reasons[0]]) if "ModelImporter" in first or not LOGGER.errors else first
    return f"TensorRT cannot parse it: {in_one_line(reason)}"


def _configure(builder: trt.Builder, network: trt.INetworkDefinition, arguments: Namespace, log: BuildLog,
               calibrator: trt.IInt8Calibrator | None) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    if -1 in network.get_input(0).shape or any(getattr(arguments, flag) for flag in DEFAULT_BATCHES):
        config.add_optimization_profile(_optimization_profile(builder, network.get_input(0), arguments))
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(arguments.memPoolSize * 2**20))
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, arguments.profilingVerbosity.upper())
    if arguments.setPluginsToSerialize:
        config.plugins_to_serialize = [str(Path(library).resolve()) for library in arguments.setPluginsToSerialize]
    if hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"):
        # Else 8.6 leaves the profile to the first context, and no second one can run beside it. From 9 on always so.
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    if arguments.builderOptimizationLevel is not None:
        config.builder_optimization_level = arguments.builderOptimizationLevel
    if arguments.maxAuxStreams is not None:
        config.max_aux_streams = arguments.maxAuxStreams
    if arguments.tacticSources:
        config.set_tactic_sources(_tactic_mask(config.get_tactic_sources(), arguments.tacticSources))
    if arguments.noTF32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if not backend.strongly_typed(trt):
        if arguments.stronglyTyped:
            raise UserError(f"--stronglyTyped: {backend.described(trt)} has no strongly typed networks; use --fp16")
        if arguments.fp16:
            # A permission: before the build 8.6 knows every tensor between layers as FP32, so layers cannot be bound to
            # the graph's types here (binding them ran the FP16 graph's products in FP32). Names tell it what to leave.
            config.set_flag(trt.BuilderFlag.FP16)
            config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
            _keep_fp32(network)
        if arguments.int8:
            config.set_flag(trt.BuilderFlag.INT8)
        if calibrator is not None:
            config.int8_calibrator = calibrator
            # Asked for wherever the batch is open; its smallest and largest batch are ignored.
            config.set_calibration_profile(_optimization_profile(builder, network.get_input(0), arguments))
    elif arguments.int8:
        raise UserError(f"--int8: networks are strongly typed with {backend.described(trt)}, and a graph with Q/DQ "
                        "pairs or INT8 plugin nodes needs no flag; build that one")
    elif arguments.fp16 and not _computes_in_fp16(network):
        raise UserError(f"{arguments.onnx}: networks are strongly typed with {backend.described(trt)}, and --fp16 "
                        "makes no FP16 of an FP32 graph; build the one that onnx/graphsurgeon/to_fp16.py makes of it")
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _progress_monitor(log)
    if arguments.timingCacheFile:
        _load_timing_cache(config, Path(arguments.timingCacheFile))
    return config


def _calibrator(path: Path, network: trt.INetworkDefinition) -> trt.IInt8EntropyCalibrator2:
    """A calibrator that has nothing but a cache, of the class that trtexec reads caches with.

    Its attribute `asked` is True after a build in which TensorRT wanted to calibrate, `given_back` the cache that
    TensorRT handed over to be kept, None where it handed over none.

    Raises:
        UserError: the cache is not one of quant.py's, or none of its scales is of a tensor of the network.
    """
    cache = read_cache(path)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    tensors = {layer.get_output(i).name for layer in layers for i in range(layer.num_outputs)}
    tensors |= {network.get_input(i).name for i in range(network.num_inputs)}
    found = sum(name in tensors for name in cache.scales)
    print(f"read {shown(path)}: {found} of {len(cache.scales)} scales are of tensors of the graph", flush=True)
    if not found:
        raise UserError(f"{shown(path)}: was made for another graph; TensorRT/INT8/quant.py makes one for this")

    class FromCache(trt.IInt8EntropyCalibrator2):
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)
            self.asked = False
            self.given_back: bytes | None = None

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:
            self.asked = True
            return None  # no images

        def read_calibration_cache(self) -> bytes:
            return cache_text(cache, trt.__version__).encode()

        def write_calibration_cache(self, cache: bytes) -> None:
            self.given_back = bytes(cache)  # the file stays as it is

    return FromCache()


def _keep_fp32(network: trt.INetworkDefinition) -> None:
    """Bind the layers to FP32 that to_fp16.py left in FP32 by choice: their names end in FP32_LAYER."""
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.name.endswith(FP32_LAYER) and layer.type not in (trt.LayerType.CONSTANT, trt.LayerType.SHAPE):
            layer.precision = trt.DataType.FLOAT
            for i in range(layer.num_outputs):
                layer.set_output_type(i, trt.DataType.FLOAT)


def _computes_in_fp16(network: trt.INetworkDefinition) -> bool:
    """Whether some layer of a strongly typed network gives FP16."""
    layers = map(network.get_layer, range(network.num_layers))
    return any(layer.get_output(i).dtype == trt.float16 for layer in layers for i in range(layer.num_outputs))


def _batches(network: trt.INetworkDefinition, arguments: Namespace) -> tuple[int, ...]:
    """Smallest and largest batch of the optimization profile; none where the batch is fixed."""
    if network.get_input(0).shape[0] != -1:
        return ()
    given = ((getattr(arguments, flag), DEFAULT_BATCHES[flag]) for flag in ("minShapes", "maxShapes"))
    return tuple(shapes[1][0] if shapes else batch for shapes, batch in given)


def _optimization_profile(builder: trt.Builder, tensor: trt.ITensor, arguments: Namespace) -> trt.IOptimizationProfile:
    graph_shape = tuple(tensor.shape)  # (-1, 3, S, S), height and width -1 where they are open
    shapes = []
    for flag, batch in DEFAULT_BATCHES.items():
        name, shape = getattr(arguments, flag) or (tensor.name, (batch, *graph_shape[1:]))
        fits = len(shape) == len(graph_shape) and all(a in (-1, b) for a, b in zip(graph_shape, shape))
        if name != tensor.name or not fits or -1 in shape:
            raise UserError(f"--{flag}={name}:{'x'.join(map(str, shape))}: the input of {shown(arguments.onnx)} is "
                            f"{tensor.name} {list(graph_shape)}; build.sh --size, or --sizes, sets height and width")
        shapes.append(shape)
    for axis, sides in enumerate(zip(*shapes)):
        if list(sides) != sorted(sides) or sides[0] < 1:
            what = "batch" if axis == 0 else f"side {axis} of the image"
            raise UserError(f"smallest, usual and largest {what} {list(sides)} are not in this order, from 1 on")
    if math.prod(shapes[2]) > LARGEST_TENSOR:
        raise UserError(f"--maxShapes={tensor.name}:{'x'.join(map(str, shapes[2]))}: holds more than {LARGEST_TENSOR} "
                        "numbers, which TensorRT counts in 31 bits; give a smaller batch or smaller images")
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, *shapes)
    return profile


def _tactic_mask(mask: int, changes: list[tuple[bool, str]]) -> int:
    """`mask` with kernel libraries switched on or off. One that this TensorRT does not know is off already."""
    for on, name in changes:
        source = getattr(trt.TacticSource, name, None)
        if source is not None:
            bit = 1 << int(source)
            mask = mask | bit if on else mask & ~bit
        elif on:
            raise UserError(f"--tacticSources=+{name}: {backend.described(trt)} has no such source")
    return mask


def _progress_monitor(log: BuildLog) -> object:
    """TensorRT 10 and later report their steps: put them on the progress line."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            log.phase = phase_name

        def step_complete(self, phase_name: str, step: int) -> bool:
            log.phase = f"{phase_name} {step + 1} of {self.steps[phase_name]}"
            return True  # False would cancel the build

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def _load_timing_cache(config: trt.IBuilderConfig, path: Path) -> None:
    """Start from the kernel timings of earlier builds. A cache of another GPU or TensorRT is begun anew."""
    if path.exists():
        cache = config.create_timing_cache(path.read_bytes())
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return
        print(f"{shown(path)}: was made by another GPU or TensorRT; starting a new one")
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _save_timing_cache(config: trt.IBuilderConfig, path: str | None) -> None:
    if path:
        with whole_file(path) as partial:
            partial.write_bytes(config.get_timing_cache().serialize())


def _describe_layers(serialized: trt.IHostMemory, path: str | None, log: BuildLog) -> int:
    """Write the description of every layer to a JSON file, if one is named. Returns the number of layers.

    TensorRT's inspector describes a loaded engine. Where there is no GPU no engine can be loaded, and what the builder
    logged of its layers takes its place.
    """
    if gpu_problem():
        layers = layers_of(log.layers)
        information, count = json.dumps({"Layers": layers}, indent=1), len(layers)
    else:
        engine = trt.Runtime(LOGGER).deserialize_cuda_engine(serialized)
        if engine is None:
            raise UserError(f"the engine that was built cannot be loaded: {LOGGER.complaint()}")
        information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        count = engine.num_layers
    if path:
        with whole_file(path) as partial:
            partial.write_text(information)
    return count
