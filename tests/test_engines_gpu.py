"""Engines on a GPU: built by build.sh, correct, independent of each other, and clear about what they refuse.

    python -m pytest --noconftest -m gpu tests/test_engines_gpu.py

Runs in the Python that has TensorRT or TensorRT-RTX (3.9 or newer, with numpy, cuda-python and pytest; conftest.py
wants torch); $TRT_BACKEND chooses where it has both. `-k swinv1` and `-k "not swinv1"` are two halves of it. Takes the
micro models' graphs from onnx/, their data from data/ and the plugin library, all made by run_all.sh; what is missing
is skipped. Takes run_all.sh's engines too, where they are newer than their graphs; those that are not there are built
first, side by side, in .cache/test_engines/. $BUILD_FLAGS goes to build.sh, e.g. "--builderOptimizationLevel=1
--tacticSources=-CUBLAS,-CUBLAS_LT,-CUDNN": a low level is enough here.
"""
from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import TRT_test
from data.batches import save_batch
from TensorRT import backend
from utils import ROOT, UserError

pytestmark = pytest.mark.gpu
try:
    trt = backend.load()
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)

V1 = ("swinv1_micro", "swinv1_micro_fp16", "swinv1_micro_layernorm_fp16", "swinv1_micro_attention_fp16",
      "swinv1_micro_attention_int8")
V2 = ("swinv2_micro", "swinv2_micro_fp16", "swinv2_micro_layernorm", "swinv2_micro_attention_fp16",
      "swinv2_micro_attention_int8")
# FP32 with the classifier as a plugin too (add_all.py --classifier; make onnx/<model>_attention_fp32.onnx).
ALL_PLUGINS_FP32 = ("swinv1_micro_attention_fp32", "swinv2_micro_attention_fp32")
PATCHED = ("swinv1_micro_attention_fp16", "swinv2_micro_attention_fp16", "swinv1_micro_attention_int8",
           "swinv2_micro_attention_int8")
# Engines of these graphs that were built otherwise, and the graphs' names there.
SOURCES = {"carried": PATCHED[0], "a": "swinv1_micro", "x_int8": "swinv1_micro_attention_fp16",
           "swinv2_fp16": "swinv1_micro_attention_int8"}
RENAMED = {"a": "plate_fp16.onnx", "x_int8": "half.onnx", "swinv2_fp16": "swinv2.onnx"}
RUNS = 10_000
ENGINES = ROOT / "TensorRT" / "TRT_Engine"
OWN_ENGINES = ROOT / ".cache" / "test_engines"


def command(*parts: str | Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in parts], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "TRT_PYTHON": sys.executable, **environment})


def build(name: str, *flags: str | Path, graph: str | Path | None = None) -> subprocess.CompletedProcess:
    """Build an engine of onnx/<name>.onnx, or of `graph`, which is the same under another name."""
    precision = [] if "_fp16" in name or "_int8" in name else ["--noTF32"]
    return command("bash", "TensorRT/build.sh", graph or f"onnx/{name}.onnx", *precision, *flags,
                   *os.environ.get("BUILD_FLAGS", "").split())


def one_line_error(done: subprocess.CompletedProcess) -> str:
    """The error that a script ended with; fails unless it is one line and the status says failure."""
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def usable_runtime():
    """The module trt_runtime; skips where there is no GPU."""
    from TensorRT import trt_runtime

    try:
        trt_runtime.require_gpu()
    except UserError as error:
        pytest.skip(str(error))
    return trt_runtime


@pytest.fixture(scope="module")
def runtime():
    return usable_runtime()


def answers_wrongly(name: str) -> bool:
    """TensorRT-RTX 1.6.1 from batch 2 on, where attention is no plugin and computes in FP16 (TensorRT/VERSIONS.md)."""
    return (backend.is_rtx(trt) and trt.__version__.startswith("1.6.1.") and name.endswith("_fp16")
            and "attention" not in name)


@pytest.fixture
def known_fault(request):
    """A test of the answers, which must fail where they are wrong: else what is known of that version has changed."""
    if answers_wrongly(request.getfixturevalue("name")):
        request.applymarker(pytest.mark.xfail(strict=True, reason="TensorRT-RTX 1.6.1: wrong FP16 answers"))


@pytest.fixture
def known_fault_of_runs(request):
    """A test that compares runs with each other: two wrong answers may be alike or not."""
    if answers_wrongly(request.getfixturevalue("name")):
        request.applymarker(pytest.mark.xfail(strict=False, reason="TensorRT-RTX 1.6.1: wrong FP16 answers"))


def is_patched(name: str) -> bool:
    return "layernorm" in name or "attention" in name


@pytest.fixture(scope="module")
def plan(runtime, request):
    """plan(name): path of an up-to-date engine of onnx/<name>.onnx, or of SOURCES; skips where something to build it is
    missing.

    The engines that the chosen tests name are built at once, before the first of them.
    """
    def needed(name: str) -> list[Path]:
        source = SOURCES.get(name, name)
        return [ROOT / f"onnx/{source}.onnx", ROOT / "TensorRT/engine_builder.py",
                *[backend.PLUGIN_LIBRARY] * is_patched(source)]

    def up_to_date(name: str) -> Path | None:
        newest = max(file.stat().st_mtime for file in needed(name))
        paths = [folder / f"{name}.plan" for folder in ((OWN_ENGINES,) if name in SOURCES else (ENGINES, OWN_ENGINES))]
        return next((path for path in paths if path.exists() and path.stat().st_mtime >= newest), None)

    def built(name: str) -> subprocess.CompletedProcess:
        source, graph = SOURCES.get(name, name), None
        if name in RENAMED:
            OWN_ENGINES.mkdir(parents=True, exist_ok=True)
            graph = shutil.copy(ROOT / f"onnx/{source}.onnx", OWN_ENGINES / RENAMED[name])
        return build(source, *["--plugins"] * is_patched(source), *["--carry-plugins"] * (name == "carried"),
                     *["--max", "1"] * name.endswith("_layers"), "--output", OWN_ENGINES / f"{name}.plan", graph=graph)

    parameters = [item.callspec.params for item in request.session.items
                  if item.path == request.path and hasattr(item, "callspec")]
    named = {values["name"] for values in parameters if "name" in values}
    missing = sorted(name for name in {*named, "swinv1_micro", "swinv2_micro"}
                     if all(file.exists() for file in needed(name)) and not up_to_date(name))
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        builds = dict(zip(missing, pool.map(built, missing)))

    def path_of(name: str) -> Path:
        for file in needed(name):
            if not file.exists():
                pytest.skip(f"{file} is missing; run_all.sh makes it")
        if not up_to_date(name) and name not in builds:
            builds[name] = built(name)
        if name in builds:
            assert builds[name].returncode == 0, builds[name].stdout + builds[name].stderr
        return up_to_date(name)

    return path_of


@pytest.fixture(scope="module")
def load(plan):
    """load(name): the Engine of a micro model, loaded once."""
    from TensorRT.engine import Engine

    engines: dict[str, Engine] = {}

    def loaded(name: str) -> Engine:
        if name not in engines:
            engines[name] = Engine(plan(name))
        return engines[name]

    return loaded


def batches(engine) -> list[TRT_test.Batch]:
    """The data of an engine's model; skips where there is none."""
    if not any((ROOT / "data").glob(f"{engine.plan.stem.partition('_micro')[0]}_micro-b*.npz")):
        pytest.skip("no data/<model>-b<N>.npz of its model; run_all.sh makes them")
    return TRT_test.find_batches(engine.plan, engine.facts(), None)


def tolerance(engine, data: list[TRT_test.Batch]) -> float:
    """What an engine's logits may be off by; skips where there is nothing to derive it from.

    TensorRT-RTX 1.6.1 multiplies FP32 in TF32 although --noTF32 clears that flag (TensorRT/VERSIONS.md): where products
    are left to it.
    """
    if backend.is_rtx(trt) and engine.facts().precision == "fp32" and engine.plan.stem not in ALL_PLUGINS_FP32:
        return TRT_test.limit_of_11_bits(data)
    try:
        return TRT_test.tolerance(engine.plan, engine.facts(), None, data)
    except UserError as error:
        pytest.skip(str(error))


def assert_same(engine, data: TRT_test.Batch, logits: np.ndarray, expected: np.ndarray) -> None:
    """The logits of another program that runs the engine: bit for bit, where the same kernels compute them.

    A program that leaves TensorRT-RTX its strategy LAZY runs general kernels until those for the batch are compiled:
    then its run equals ours up to the precision. Our contexts have EAGER.
    """
    limit = tolerance(engine, [data]) if backend.is_rtx(trt) else 0
    np.testing.assert_allclose(logits, expected, rtol=0, atol=limit)


# --- what the engines compute --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*V1, *V2, *ALL_PLUGINS_FP32])
@pytest.mark.usefixtures("known_fault")
def test_engine_equals_the_onnx_model(load, name):
    engine = load(name)
    data = batches(engine)
    allowed = tolerance(engine, data)
    with engine.context() as context:
        for batch in data:
            assert TRT_test.check(batch, context.infer(batch.input), allowed) == "good", len(batch.input)


@pytest.mark.parametrize("name", ["swinv1_micro_overflow", "swinv2_micro_overflow", "swinv2_micro_underflow"])
def test_a_patched_engine_bears_stressed_weights(runtime, name):
    """Engines that swinv2_question.sh has built; unpatched ones give NaN or wrong logits there."""
    from TensorRT.engine import Engine

    work = ROOT / ".cache" / "swinv2_question"
    path = work / f"{name}_attention_fp16.plan"
    if not path.exists():
        pytest.skip(f"{path} is missing; TensorRT/swinv2_question.sh makes it")
    data = TRT_test.load_batch(work / f"{name}-b16.npz")
    with Engine(path) as engine, engine.context() as context:
        allowed = TRT_test.tolerance(path, engine.facts(), None, [data])
        assert TRT_test.check(data, context.infer(data.input), allowed) == "good"


@pytest.mark.parametrize("name", [*V1, *V2])
@pytest.mark.usefixtures("known_fault")
def test_the_largest_batch_equals_its_parts(load, name):
    """Up to the precision: TensorRT may choose other kernels for another batch."""
    engine = load(name)
    data = batches(engine)[-1]
    count = engine.batches[1]
    images = np.resize(data.input, (count, *data.input.shape[1:]))
    allowed = tolerance(engine, [data])
    with engine.context() as context:
        logits = context.infer(images)
    assert np.abs(logits - np.resize(data.logits, logits.shape)).max() <= allowed


@pytest.mark.parametrize("name", [*V1, *V2])
def test_plugins_are_recognised(load, name):
    assert bool(load(name).facts().patched) == is_patched(name)


@pytest.mark.parametrize("name", RENAMED)
def test_names_say_nothing(load, plan, tmp_path, name):
    """A graph and a plan under other names are built, judged and recorded as they are, with and without the .json."""
    source, engine = SOURCES[name], f"{name}.plan"
    original = load(source)  # skips where something to build it is missing
    judged = ["--tolerance", str(tolerance(original, batches(original)))] * backend.is_rtx(trt)  # of FP32: TF32's
    for suffix in (".plan", ".json"):
        shutil.copy(plan(name).with_suffix(suffix), tmp_path)
    precision = next((word for word in ("fp16", "int8") if source.endswith(word)), "fp32")

    def recorded(*flags: str) -> list[tuple[str, ...]]:
        results = tmp_path / f"results{len(flags)}"
        done = trt_test(tmp_path / engine, results, *flags)
        assert done.returncode == 0, done.stdout + done.stderr
        with (results / "latency.csv").open(newline="") as file:
            return sorted({(row["model"], row["precision"], row["patched"] != "no", row["check"])
                           for row in csv.DictReader(file)})

    assert recorded(*judged) == [("swinv1_micro", precision, is_patched(source), "good")]
    (tmp_path / engine).with_suffix(".json").unlink()  # as trtexec by itself leaves a plan
    (_, *told), = recorded("--data", str(batches(original)[0].path), "--tolerance", "1")
    assert told == [precision, is_patched(source), "good"]


@pytest.mark.parametrize("name", [*V1, *V2])
@pytest.mark.usefixtures("known_fault_of_runs")
def test_a_cuda_graph_equals_the_plain_run(load, name):
    engine = load(name)
    data = batches(engine)[-1]
    with engine.context() as context:
        plain = context.infer(data.input)
        context.capture()
        context.upload(data.input[::-1])
        context.run()
        (reversed_logits,) = context.download().values()
        context.upload(data.input)
        context.run()
        (logits,) = context.download().values()
        context.release_graph()
        reversed_plain = context.infer(data.input[::-1])
    np.testing.assert_array_equal(logits, plain)
    np.testing.assert_array_equal(reversed_logits, reversed_plain)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", [*V1, *V2])
@pytest.mark.usefixtures("known_fault_of_runs")
def test_two_contexts_on_two_streams_equal_one(load, name, graph):
    engine = load(name)
    data = batches(engine)[-1]
    inputs = (data.input, data.input[::-1])
    with engine.context() as context:
        alone = [context.infer(images) for images in inputs]
    with engine.context() as first, engine.context() as second:
        for context, images in zip((first, second), inputs):
            context.set_batch(len(images))
            if graph:
                context.capture()
            context.upload(images)
        for _ in range(200):
            first.run()
            second.run()
        together = [next(iter(context.download().values())) for context in (first, second)]
    for expected, logits in zip(alone, together):
        np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", PATCHED)
def test_many_runs_leave_device_memory_where_it_was(load, runtime, name, graph):
    """Free memory of the whole GPU: nothing else may use it meanwhile.

    cudaMalloc aligns to 256 bytes (CUDA C++ Programming Guide, Device Memory Accesses) and takes 2 MiB from the GPU at
    a time: one allocation a run that stays takes 2.4 MiB, so at least one time 2 MiB. An nvidia-smi beside moves some
    64 KiB.
    """
    engine = load(name)
    data = batches(engine)[0]
    with engine.context() as context:
        context.infer(data.input)
        if graph:
            context.capture()
            context.run()  # the first launch of a graph uploads it
            context.synchronize()
        before = runtime.free_memory()
        for _ in range(RUNS):
            context.run()
        context.synchronize()
        assert before - runtime.free_memory() < 2 * 2**20


@pytest.mark.parametrize("name", PATCHED)
def test_closing_gives_all_memory_back(plan, runtime, name):
    from TensorRT.engine import Engine

    path, free = plan(name), []
    for _ in range(3):
        with Engine(path) as engine, engine.context() as context:
            context.set_batch(engine.batches[1])
            context.capture()
        free.append(runtime.free_memory())
    assert free[2] >= free[1]  # the first round loads kernels, which stay


# --- what they refuse ----------------------------------------------------------------------------------------


def test_a_batch_outside_the_profile_is_refused(load):
    engine = load("swinv1_micro")
    largest = engine.batches[1]
    with engine.context() as context:
        with pytest.raises(UserError, match=rf"batch {largest + 1} lies outside its optimization profile, 1 to"):
            context.infer(np.zeros((largest + 1, *engine.input_shape[1:]), np.float32))
        # TensorRT's own answer, which set_batch checks as well.
        assert not context.context.set_input_shape(engine.input, (largest + 1, *engine.input_shape[1:]))


def test_images_of_another_size_are_refused(load):
    with load("swinv1_micro").context() as context, pytest.raises(UserError, match="data of another model"):
        context.infer(np.zeros((1, 3, 256, 256), np.float32))


@pytest.mark.parametrize("name", ["swinv1_micro", *PATCHED])
def test_nan_reaches_the_logits_of_its_own_image_alone(load, name):
    """Also through INT8, which has no NaN: the residual stream passes beside it."""
    engine = load(name)
    images = batches(engine)[-1].input.copy()
    images[1] = np.nan
    with engine.context() as context:
        finite = np.isfinite(context.infer(images)).all(axis=1)
    assert not finite[1] and finite[0] and finite[2:].all()


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_plan_is_refused(plan, tmp_path, share):
    from TensorRT.engine import Engine

    whole = plan("swinv1_micro").read_bytes()
    cut = tmp_path / "cut.plan"
    cut.write_bytes(whole[:int(len(whole) * share)])
    meant = r"cut\.plan: (is (truncated|empty|not a TensorRT plan)|cannot be loaded)"
    with pytest.raises(UserError, match=meant) as caught:
        Engine(cut)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_plan_is_refused(runtime):
    from TensorRT.engine import Engine

    with pytest.raises(UserError, match=r"utils\.py: (is not a TensorRT plan|cannot be loaded)"):
        Engine(ROOT / "utils.py")


def test_a_plan_of_another_version_is_refused(plan, tmp_path):
    """Bytes 60 to 67 of a plan of 8.6 are what TensorRT compares with its own, and names a wrong version by.

    Its bytes 24 to 27 are the version too (8, 6, 0 and the build), but 8.6 loads a plan whatever they are.
    """
    from TensorRT.engine import Engine

    if backend.strongly_typed(trt):
        pytest.skip("where a plan holds its version is known of 8.6 only")
    whole = bytearray(plan("swinv1_micro").read_bytes())
    whole[60] = (whole[60] + 1) % 256
    other = tmp_path / "other.plan"
    other.write_bytes(whole)
    with pytest.raises(UserError, match=r"other\.plan: was built by another version of TensorRT"):
        Engine(other)


def test_a_plan_of_another_generation_is_refused(plan, tmp_path):
    """A plan's first letters tell its generation: ftrt in 8.6, vtrt in TensorRT-RTX 1.6 and 1.7."""
    from TensorRT.engine import Engine

    whole = plan("swinv1_micro").read_bytes()
    assert whole[:4] in (b"ftrt", b"vtrt")
    other = tmp_path / "other.plan"
    other.write_bytes((b"vtrt" if whole[:4] == b"ftrt" else b"ftrt") + whole[4:])
    with pytest.raises(UserError, match=r"other\.plan: was built by another version of TensorRT"):
        Engine(other)


def test_a_plan_without_its_plugin_library_is_refused(plan, tmp_path):
    done = command(sys.executable, "TRT_test.py", "--plan", plan(PATCHED[0]), "--plugins", "none",
                   "--results", tmp_path)
    assert "needs a plugin library" in one_line_error(done)


# Loads a plan and runs it once, over zeros, with nothing but TensorRT and cuda-python; prints whether the logits are
# finite. For TensorRT-RTX, whose library and its other names this project finds, LD_LIBRARY_PATH must lead to them.
ONLY_THE_PLAN = """
import ctypes, importlib, sys
import numpy as np
try:
    from cuda.bindings import runtime as cudart
except ImportError:
    from cuda import cudart
trt = importlib.import_module(sys.argv[1])
logger = trt.Logger(trt.Logger.ERROR)
runtime = trt.Runtime(logger)
runtime.engine_host_code_allowed = True
engine = runtime.deserialize_cuda_engine(open(sys.argv[2], "rb").read())
context = engine.create_execution_context()
types = {trt.float32: np.float32, trt.float16: np.float16}
arrays = {}
for index in range(engine.num_io_tensors):
    name = engine.get_tensor_name(index)
    if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
        assert context.set_input_shape(name, (1, *engine.get_tensor_shape(name)[1:]))
    arrays[name] = np.zeros(tuple(context.get_tensor_shape(name)), types[engine.get_tensor_dtype(name)])
    status, pointer = cudart.cudaMalloc(arrays[name].nbytes)
    cudart.cudaMemset(pointer, 0, arrays[name].nbytes)
    context.set_tensor_address(name, pointer)
status, stream = cudart.cudaStreamCreate()
assert context.execute_async_v3(int(stream)) and int(cudart.cudaStreamSynchronize(stream)[0]) == 0
cudart.cudaMemcpy(arrays[name].ctypes.data, pointer, arrays[name].nbytes, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost)
print("finite" if np.isfinite(arrays[name]).all() and arrays[name].any() else arrays[name])
"""


@pytest.mark.parametrize("name", ["carried"])
def test_a_plan_that_carries_its_plugins_needs_no_other_file(runtime, plan, tmp_path, name):
    """In a process that imports TensorRT and nothing of this project, in an empty folder."""
    path = plan(name)
    assert backend.PLUGIN_LIBRARY.read_bytes() in path.read_bytes()
    done = subprocess.run([sys.executable, "-c", ONLY_THE_PLAN, trt.__name__, str(path)], capture_output=True,
                          text=True, cwd=tmp_path)
    assert done.stdout.strip().endswith("finite"), done.stdout + done.stderr


@pytest.mark.parametrize("name", ["carried"])
def test_a_carried_library_computes_the_same(load, plan, tmp_path, name):
    engine = load(SOURCES[name])
    data = batches(engine)[-1]
    np.save(tmp_path / "images.npy", data.input)
    done = command(sys.executable, "TensorRT/run_engine.py", "--plan", plan(name), "--plugins", "carried",
                   "--input", tmp_path / "images.npy", "--output", tmp_path / "logits.npy")
    assert done.returncode == 0, done.stdout + done.stderr
    assert TRT_test.check(data, np.load(tmp_path / "logits.npy"), tolerance(engine, [data])) == "good"


def test_a_graph_without_its_plugin_library_is_refused(plan, tmp_path):
    plan(PATCHED[0])
    done = build(PATCHED[0], "--output", tmp_path / "x.plan")
    assert "holds plugin nodes; add --plugins" in one_line_error(done)
    assert not (tmp_path / "x.plan").exists()


def test_a_graph_of_another_size_is_refused(plan, tmp_path):
    plan("swinv1_micro")
    error = one_line_error(build("swinv1_micro", "--size", "192", "--output", tmp_path / "x.plan"))
    assert "--size 192x192: the images of onnx/swinv1_micro.onnx are 224x224" in error


@pytest.mark.parametrize("script", [
    ["TRT_test.py", "--plan", "{plan}", "--results", "{folder}"],
    ["TensorRT/run_engine.py", "--plan", "{plan}", "--input", "{folder}/x.npy", "--output", "{folder}/y.npy"],
    ["TensorRT/profile_engine.py", "--plan", "{plan}"],
    ["TensorRT/build_engine.py", "--onnx=onnx/swinv1_micro.onnx", "--saveEngine={folder}/y.plan"],
])
def test_no_gpu_is_one_line(plan, tmp_path, script):
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 224, 224), np.float32))
    parts = [part.format(plan=plan("swinv1_micro"), folder=tmp_path) for part in script]
    if "build_engine" in parts[0] and backend.builds_without_gpu(trt):
        pytest.skip("this TensorRT needs no GPU to build")
    assert "no GPU can be used here" in one_line_error(command(sys.executable, *parts, CUDA_VISIBLE_DEVICES=""))
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


# --- the scripts ---------------------------------------------------------------------------------------------


def trt_test(plan: Path, results: Path, *flags: str | Path) -> subprocess.CompletedProcess:
    return command(sys.executable, "TRT_test.py", "--plan", plan, "--results", results, "--min-seconds", "0.1", *flags)


def test_trt_test_writes_its_tables(plan, load, tmp_path):
    path = plan(PATCHED[0])
    count = len(batches(load(PATCHED[0])))
    done = trt_test(path, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| good") == 2 * count
    assert (tmp_path / "encoderScore.txt").read_text().count("| good") == 2 * count
    lines = (tmp_path / "latency.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * count and all("trt-plugins,swinv1_micro,fp16" in line for line in lines[1:])


def test_memory_of_a_patched_engine_is_not_larger(plan, load, tmp_path):
    unpatched, patched = plan("swinv1_micro_fp16"), plan(PATCHED[0])
    done = command(sys.executable, "TRT_test.py", "--plan", unpatched, patched, "--memory", "1,16", "--results",
                   tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"PASS {patched.stem}" in done.stdout and not (tmp_path / "latency.csv").exists()
    with (tmp_path / "memory.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["batch"]) for row in rows] == [(path.name, batch) for path in (unpatched, patched)
                                                             for batch in ("1", "16")]
    for row in rows:  # activations by themselves are no more than all together
        assert 0 < float(row["device_memory_mib"]) <= float(row["free_memory_used_mib"])


def test_nan_in_the_data_is_reported(plan, load, tmp_path):
    batch = batches(load("swinv1_micro"))[0]
    images = batch.input.copy()
    images[0, 0, 5, 5] = np.nan
    save_batch(tmp_path / "nan.npz", images, batch.logits, "swinv1_micro", batch.facts)
    done = trt_test(plan("swinv1_micro"), tmp_path, "--data", tmp_path / "nan.npz")
    assert done.stdout.count("| NaN in input") == 2
    assert "2 of 2 checks failed, first at batch 1: NaN in input" in one_line_error(done)


def test_data_of_the_other_model_is_refused(plan, load, tmp_path):
    other = batches(load("swinv2_micro"))[0]
    done = trt_test(plan("swinv1_micro"), tmp_path, "--data", other.path)
    assert "was made with another graph" in one_line_error(done) and "of model swinv2_micro" in done.stderr


def test_a_batch_outside_the_profile_fails_trt_test(plan, load, tmp_path):
    engine = load("swinv1_micro")
    batch, count = batches(engine)[0], engine.batches[1] + 1
    save_batch(tmp_path / "big.npz", np.resize(batch.input, (count, *batch.input.shape[1:])),
               np.resize(batch.logits, (count, batch.logits.shape[1])), "swinv1_micro", batch.facts)
    done = trt_test(plan("swinv1_micro"), tmp_path, "--data", tmp_path / "big.npz")
    assert "lies outside its optimization profile" in one_line_error(done)


def test_run_engine_runs_what_is_left_over_too(plan, load, tmp_path):
    engine = load("swinv1_micro")
    batch = batches(engine)[-1]
    allowed = tolerance(engine, [batch])
    images = batch.input[:7]
    np.save(tmp_path / "images.npy", images)
    done = command(sys.executable, "TensorRT/run_engine.py", "--plan", plan("swinv1_micro"), "--batch", "3,7",
                   "--input", tmp_path / "images.npy", "--output", tmp_path / "logits.npy")
    assert done.returncode == 0, done.stdout + done.stderr
    logits = np.load(tmp_path / "logits.npy")
    assert logits.dtype == np.float32 and logits.shape == (2, *batch.logits[:7].shape)
    for of_batch in logits:
        np.testing.assert_allclose(of_batch, batch.logits[:7], atol=allowed, rtol=0)


@pytest.mark.parametrize("name", PATCHED)
def test_classify_gives_the_engines_logits(plan, load, tmp_path, name):
    """Of image files, in two lanes and CUDA graphs, the last batch filled up; as `infer` does for the same batches."""
    pytest.importorskip("PIL", reason="needs Pillow in the Python that has TensorRT")
    from PIL import Image

    from data.images import load_image, resize_and_crop
    from graphs.pictures import picture_of

    rng, engine = np.random.default_rng(0), load(name)
    for index in range(29):
        squares = rng.integers(0, 256, (5, 7, 3), np.uint8).repeat(60, axis=0).repeat(60, axis=1)
        Image.fromarray(squares).save(tmp_path / f"{index:02}.png")
    picture = picture_of(engine.facts(), name)
    images = np.stack([resize_and_crop(load_image(path), picture.size) for path in sorted(tmp_path.glob("*.png"))])
    filled = picture.of(np.concatenate([images, images[:3]]))
    with engine.context() as context:
        expected = np.concatenate([context.infer(filled[start:start + 8]) for start in range(0, 32, 8)])[:29]
    done = command(sys.executable, "classify.py", plan(name), tmp_path, "--batch", "8", "--decoder", "pillow",
                   "--logits", tmp_path / "logits.npy")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), expected)


@pytest.mark.parametrize("name", ["swinv1_micro", *PATCHED])
def test_the_cpp_example_gives_the_engines_logits(plan, load, tmp_path, name):
    """examples/cpp, on two streams, in CUDA graphs, the last batch filled up."""
    if not (Path(os.environ.get("TENSORRT_ROOT", "/nonexistent")) / "include" / "NvInfer.h").exists():
        pytest.skip("it takes TensorRT's headers in TENSORRT_ROOT")
    engine = load(name)
    images = np.random.default_rng(0).standard_normal((27, *engine.input_shape[1:])).astype(np.float32)
    filled = np.concatenate([images, np.zeros((5, *images.shape[1:]), np.float32)])
    with engine.context() as context:
        expected = np.concatenate([context.infer(filled[start:start + 8]) for start in range(0, 32, 8)])[:27]
    images.tofile(tmp_path / "images.f32")
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    stem = backend.library_name(trt).partition(".so")[0]
    library = next(path for path in sorted(loaded) if Path(path).name.startswith(f"{stem}.so"))
    for link in ("libnvinfer.so.11", backend.SONAME_RTX) if backend.is_rtx(trt) else ():
        (tmp_path / link).symlink_to(library)
    for file in ("Makefile", "run_engine.cpp"):
        shutil.copy(ROOT / "examples" / "cpp" / file, tmp_path)
    made = command("make", "-C", tmp_path, f"TENSORRT_LIB={library}")
    assert made.returncode == 0, made.stderr
    plugins = ["--plugins", backend.PLUGIN_LIBRARY] if is_patched(name) else []
    folders = f"{tmp_path}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    done = command(tmp_path / "run_engine", plan(name), tmp_path / "images.f32", *plugins, "--output",
                   tmp_path / "logits.f32", LD_LIBRARY_PATH=folders)
    assert done.returncode == 0, done.stderr
    logits = np.fromfile(tmp_path / "logits.f32", np.float32).reshape(expected.shape)
    assert_same(engine, batches(engine)[-1], logits, expected)
    assert [float(number) for number in done.stdout.split("\n")[0].split()[:8]] == pytest.approx(
        expected[0, :8].tolist(), rel=1e-4)


@pytest.mark.parametrize("name", ["swinv1_micro_layers", "swinv2_micro_layers"])
def test_compare_layers_finds_no_offender_in_fp32(plan, tmp_path, name):
    share = TRT_test.FP16_TOLERANCE_SHARE if backend.is_rtx(trt) else 1e-3  # as in tolerance()
    done = command(sys.executable, "TensorRT/compare_layers.py", "run", "--plan", plan(name), "--tolerance", str(share),
                   "--output", tmp_path / "layers.csv")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"none is off by more than {share:g}" in done.stdout
    assert len((tmp_path / "layers.csv").read_text().splitlines()) > 10
