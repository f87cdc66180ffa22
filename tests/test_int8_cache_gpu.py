"""TensorRT takes the calibration cache that quant.py writes: it calibrates nothing, and the scales are the cache's.

    python -m pytest --noconftest -m gpu tests/test_int8_cache_gpu.py

Runs in the Python that has TensorRT 8.6 (3.9 or newer, with numpy, cuda-python and pytest). The micro models' graphs
and caches are those of run_all.sh; where they are missing, their tests are skipped. $BUILD_FLAGS goes to build.sh.
"""
from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from test_engines_gpu import command, usable_runtime

import TRT_test
from graphs.compare import top1_agreement
from TensorRT import backend
from TensorRT.INT8.calibration_cache import Cache, read_cache, write_cache
from utils import ROOT

pytestmark = pytest.mark.gpu

MICRO = ("swinv1_micro", "swinv2_micro")
# A line of TensorRT's verbose log for each tensor that has a scale, with six digits of it.
LOGGED = re.compile(r"zero-points?: (.+) scale and zero-point Quantization\(scale: \{([0-9.e+-]+)")


@pytest.fixture(scope="module")
def runtime():
    """The module trt_runtime, where there is a GPU and TensorRT 8."""
    trt_runtime = usable_runtime()
    if backend.strongly_typed(trt_runtime.trt):
        pytest.skip("from TensorRT 10 on this project builds no engine from a calibration cache")
    return trt_runtime


def logged_scales(text: str) -> dict[str, float]:
    """The scales in a verbose log, by tensor; skips where TensorRT does not log them."""
    found = {name: float(scale) for name, scale in LOGGED.findall(text)}
    if not found:
        pytest.skip("this TensorRT's verbose log has no line with the scale of a tensor")
    return found


# --- the micro models' caches --------------------------------------------------------------------------------


def build(onnx: Path, plan: Path, cache: Path) -> subprocess.CompletedProcess:
    """build.sh, which takes build_engine.py: that knows whether TensorRT asked for images."""
    if shutil.which("trtexec"):
        pytest.skip("build.sh takes trtexec, which does not say whether it calibrated anew")
    return command("bash", "TensorRT/build.sh", onnx, "--int8", f"--calib={cache}", "--noTF32", "--verbose",
                   "--opt", "8", "--max", "16", "--output", plan, *os.environ.get("BUILD_FLAGS", "").split())


@pytest.fixture(scope="module")
def built(runtime, tmp_path_factory):
    """built(model): the plan of a micro model's FP32 graph and cache, and what the build said. Both are built at once,
    in the first call."""
    folder = tmp_path_factory.mktemp("engines")
    files = {model: (ROOT / f"onnx/{model}.onnx", folder / f"{model}_int8.plan", ROOT / f"TensorRT/INT8/{model}.cache")
             for model in MICRO}
    ready = [model for model in MICRO if files[model][0].exists() and files[model][2].exists()]
    with ThreadPoolExecutor() as pool:
        builds = dict(zip(ready, pool.map(lambda model: build(*files[model]), ready)))

    def of(model: str) -> tuple[Path, subprocess.CompletedProcess]:
        if model not in builds:
            pytest.skip(f"{files[model][0]} or {files[model][2]} is missing; run_all.sh makes them")
        return files[model][1], builds[model]

    return of


@pytest.mark.parametrize("model", MICRO)
def test_a_build_with_the_cache_calibrates_nothing(built, model):
    plan, done = built(model)
    assert done.returncode == 0, done.stdout + done.stderr
    count = len(read_cache(ROOT / f"TensorRT/INT8/{model}.cache").scales)
    assert f"{count} of {count} scales are of tensors of the graph" in done.stdout
    assert f"TensorRT took the scales of TensorRT/INT8/{model}.cache and calibrated nothing" in done.stdout
    assert plan.exists() and "does not match" not in plan.with_suffix(".log").read_text()


@pytest.mark.parametrize("model", MICRO)
def test_the_scales_in_the_log_are_the_caches(built, model):
    plan, done = built(model)
    assert done.returncode == 0, done.stdout + done.stderr
    scales = read_cache(ROOT / f"TensorRT/INT8/{model}.cache").scales
    logged = logged_scales(plan.with_suffix(".log").read_text())
    found = sorted(set(logged) & set(scales))
    print(f"{len(found)} of the {len(scales)} scales are in the log")
    assert found
    for name in found:
        assert logged[name] == pytest.approx(float(scales[name]), rel=1e-5), name


@pytest.mark.parametrize("model", MICRO)
def test_the_engine_of_the_cache_says_the_same(built, model):
    """Whatever TensorRT computes in INT8 of it: no NaN, and the class of the FP32 model for every image."""
    from TensorRT.engine import Engine

    plan, done = built(model)
    assert done.returncode == 0, done.stdout + done.stderr
    data = ROOT / f"data/{model}-b16.npz"
    if not data.exists():
        pytest.skip(f"{data} is missing; run_all.sh makes it")
    batch = TRT_test.load_batch(data)
    with Engine(plan) as engine, engine.context() as context:
        logits = context.infer(batch.input)
    assert np.isfinite(logits).all() and top1_agreement(logits, batch.logits) == 1


def test_a_cache_of_another_kind_of_calibrator_is_refused(runtime, tmp_path):
    """Before the build, which would begin by calibrating."""
    onnx = ROOT / "onnx/swinv1_micro.onnx"
    if not onnx.exists():
        pytest.skip(f"{onnx} is missing; run_all.sh makes it")
    write_cache(tmp_path / "x.cache", Cache("minmax", 8, "0" * 32, {"input": np.float32(0.1)}))
    text = (tmp_path / "x.cache").read_text()
    (tmp_path / "x.cache").write_text(text.replace("EntropyCalibration2", "MinMaxCalibration", 1))
    done = build(onnx, tmp_path / "x.plan", tmp_path / "x.cache")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stdout + done.stderr
    assert "'TRT-8600-MinMaxCalibration' is not the first line" in done.stderr
    assert not (tmp_path / "x.plan").exists()


# --- a network whose output shows its scales -----------------------------------------------------------------

# Of the input and of the tensor in the middle; both ways round, so that each is once the one that saturates. No two
# of their multiples meet: one is not a simple fraction of the other.
SCALES = [(np.float32(0.0123456), np.float32(0.0456789)), (np.float32(0.0456789), np.float32(0.0123456))]
CHANNELS, SIDE = 32, 16  # 32 channels are one vector of INT8 convolutions


class Identities:
    """Two 1x1 convolutions that change nothing, both in INT8: input -> middle -> output, [B, 32, 16, 16]; built from a
    cache with a scale for each tensor, output's like middle's.

    Attributes:
        plan: the serialized engine.
        calibrator: what engine_builder.py makes of the cache.
        messages: TensorRT's, verbose ones too.
    """

    def __init__(self, runtime, cache: Path, refit: bool = False) -> None:
        from TensorRT.engine_builder import _calibrator

        trt, logger = runtime.trt, runtime.LOGGER
        self.messages: list[str] = []
        logger.clear()
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
        tensor = network.add_input("input", trt.float32, (-1, CHANNELS, SIDE, SIDE))
        kernel = np.ascontiguousarray(np.eye(CHANNELS, dtype=np.float32).reshape(CHANNELS, CHANNELS, 1, 1))
        for name in ("middle", "output"):
            layer = network.add_convolution_nd(tensor, CHANNELS, (1, 1), trt.Weights(kernel))
            layer.precision = trt.int8
            tensor = layer.get_output(0)
            tensor.name = name
        network.get_layer(0).set_output_type(0, trt.int8)
        network.mark_output(tensor)
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 2**28)
        external = (trt.TacticSource.CUBLAS, trt.TacticSource.CUBLAS_LT, trt.TacticSource.CUDNN)
        config.set_tactic_sources(config.get_tactic_sources() & ~sum(1 << int(source) for source in external))
        for flag in (trt.BuilderFlag.INT8, trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS,
                     *[trt.BuilderFlag.REFIT] * refit):
            config.set_flag(flag)
        profile = builder.create_optimization_profile()
        profile.set_shape("input", *[(1, CHANNELS, SIDE, SIDE)] * 3)
        config.add_optimization_profile(profile)
        config.set_calibration_profile(profile)
        self.calibrator = _calibrator(cache, network)
        config.int8_calibrator = self.calibrator
        logger.listener = lambda _, message: self.messages.append(message)
        try:
            self.plan = builder.build_serialized_network(network, config)
        finally:
            logger.listener = None
        assert self.plan is not None, logger.complaint()


@pytest.fixture(scope="module")
def identities(runtime, tmp_path_factory):
    """identities(input's scale, middle's scale): the network, built once; and the cache that it was built from."""
    made = {}

    def of(first: np.float32, second: np.float32) -> tuple[Identities, Cache]:
        if (first, second) not in made:
            cache = Cache("minmax", 8, "0" * 32, {"input": first, "middle": second, "output": second})
            path = tmp_path_factory.mktemp("cache") / "identities.cache"
            write_cache(path, cache)
            made[first, second] = Identities(runtime, path), cache
        return made[first, second]

    return of


def quantised(x: np.ndarray, scale: np.float32) -> np.ndarray:
    """What INT8 with this scale makes of x, as TensorRT rounds: half to even, and no more than 127 steps."""
    return np.clip(np.rint(x / np.float64(scale)), -128, 127) * np.float64(scale)


@pytest.mark.parametrize(("first", "second"), SCALES)
def test_outputs_are_multiples_of_the_scales_and_saturate_at_127_of_them(identities, tmp_path, first, second):
    from TensorRT.engine import Engine

    network, _ = identities(first, second)
    assert not network.calibrator.asked
    (tmp_path / "identities.plan").write_bytes(network.plan)
    # Every step of the input's scale and beyond its ends, twice each, three tenths of a step off.
    steps = np.repeat(np.arange(-127, 200), 2) + np.tile([-0.3, 0.3], 327)
    x = np.resize(steps * np.float64(first), (1, CHANNELS, SIDE, SIDE)).astype(np.float32)
    with Engine(tmp_path / "identities.plan") as engine, engine.context() as context:
        output = context.infer(x).astype(np.float64)

    levels = output / second
    np.testing.assert_allclose(levels, np.rint(levels), atol=2e-3)
    largest = min(127, round(127 * float(first) / float(second)))
    assert np.rint(levels.max()) == largest and len(np.unique(np.rint(levels[levels > 0]))) > 30
    # All of it, but for numbers that lie between two steps of the second scale, or below its range.
    middle = quantised(x, first) / np.float64(second)
    clear = (np.abs(middle - np.floor(middle) - 0.5) > 1e-3) & (middle > -127)
    assert clear.mean() > 0.5
    np.testing.assert_allclose(output[clear], quantised(quantised(x, first), second)[clear], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("first", "second"), SCALES)
def test_the_log_has_the_networks_scales(identities, first, second):
    network, cache = identities(first, second)
    logged = logged_scales("\n".join(network.messages))
    for name in set(logged) & set(cache.scales):
        assert logged[name] == pytest.approx(float(cache.scales[name]), rel=1e-5), name
    assert set(logged) >= {"input", "middle"}


def test_a_cache_that_tensorrt_gives_back_has_the_same_scales(identities):
    network, cache = identities(*SCALES[0])
    if network.calibrator.given_back is None:
        pytest.skip("this TensorRT gives no cache back where it was given one")
    lines = [line.rpartition(": ") for line in network.calibrator.given_back.decode().splitlines()[1:]]
    returned = {name: np.float32(struct.unpack(">f", bytes.fromhex(digits.zfill(8)))[0]) for name, _, digits in lines}
    for name in set(returned) & set(cache.scales):
        assert float(returned[name]) == pytest.approx(float(cache.scales[name]), rel=1e-6), name
    assert set(returned) >= {"input", "middle"}


def test_a_refittable_engine_knows_the_same_ranges(runtime, tmp_path):
    """IRefitter gives the ranges that an engine was calibrated with, float32 by float32: 127 times the scale."""
    cache = Cache("minmax", 8, "0" * 32, {"input": SCALES[0][0], "middle": SCALES[0][1], "output": SCALES[0][1]})
    write_cache(tmp_path / "identities.cache", cache)
    network = Identities(runtime, tmp_path / "identities.cache", refit=True)
    trt = runtime.trt
    engine = trt.Runtime(runtime.LOGGER).deserialize_cuda_engine(network.plan)
    refitter = trt.Refitter(engine, runtime.LOGGER)
    names = set(refitter.get_tensors_with_dynamic_range()) & set(cache.scales)
    assert names
    for name in names:
        low, high = refitter.get_dynamic_range(name)
        assert high == pytest.approx(127 * float(cache.scales[name]), rel=1e-6), name
        assert low == pytest.approx(-high, rel=1e-6), name
