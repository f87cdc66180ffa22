"""Which TensorRT the scripts take, and what they say where there is none, half of one, or a plan that it refuses.

TensorRT-RTX comes with requirements.txt. Without a GPU it loads no engine, but looks at a plan's first bytes before it
asks for one. What it says of a whole plan (another version, another GPU, plugins that are missing) needs a GPU:
tests/test_engines_gpu.py.
"""
from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from graphs.facts import of_engine
from TensorRT import backend
from TensorRT.alias_library import load_alias
from utils import ROOT, UserError

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None or importlib.util.find_spec(backend.RTX_PROVIDER) is None,
    reason="TensorRT-RTX is not installed (requirements.txt, Linux on x86-64)")
BROKEN_BINDINGS = 'raise ImportError("{}: cannot open shared object file: No such file or directory")'


def load_in_a_process(**environment: str) -> str:
    """What `load` gives in a fresh process: name, version of the bindings and version of the library, or its error."""
    code = """
from TensorRT import backend
from utils import UserError
try:
    trt = backend.load()
    print(trt.__name__, trt.__version__, ".".join(map(str, backend.library_version(trt))))
except UserError as error:
    print(error)
"""
    clean = {name: value for name, value in os.environ.items() if name not in ("LD_LIBRARY_PATH", "TRT_BACKEND")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          env={**clean, **environment}, check=True)
    return done.stdout.strip()


def package(folder: Path, name: str, code: str) -> str:
    """A package of this name; returns the PYTHONPATH that leads to it."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    return str(folder)


# --- which one -----------------------------------------------------------------------------------------------


@needs_rtx
@pytest.mark.parametrize("wanted", ["", "tensorrt_rtx"])
def test_rtx_is_found_inside_its_package(wanted):
    """No LD_LIBRARY_PATH leads to the library; and it is of the bindings' version."""
    if not wanted and importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed and goes first")
    name, bindings, library = load_in_a_process(TRT_BACKEND=wanted).split()
    assert name == "tensorrt_rtx_bindings" and bindings.startswith(library + ".")


@needs_rtx
def test_bindings_without_library_are_passed_over_or_named(tmp_path):
    path = package(tmp_path, "tensorrt", BROKEN_BINDINGS.format("libnvinfer.so.11"))
    assert load_in_a_process(PYTHONPATH=path).startswith("tensorrt_rtx_bindings ")
    error = load_in_a_process(PYTHONPATH=path, TRT_BACKEND="tensorrt")
    assert "cannot import tensorrt (its bindings are there, libnvinfer.so.11 is not" in error
    assert "\n" not in error and "TRT_PYTHON" in error


def test_rtx_bindings_without_library_are_named(tmp_path):
    """The bindings package without the provider package, which a module path of its own hides."""
    path = package(tmp_path, "tensorrt_rtx_bindings", BROKEN_BINDINGS.format("libtensorrt_rtx.so.1"))
    package(tmp_path, backend.RTX_PROVIDER, "")
    error = load_in_a_process(PYTHONPATH=path, TRT_BACKEND="tensorrt_rtx")
    assert "cannot import tensorrt_rtx (its bindings are there, libtensorrt_rtx.so.1 is not" in error


def test_an_unknown_backend_is_refused():
    assert load_in_a_process(TRT_BACKEND="tensorflow") == "TRT_BACKEND=tensorflow: must be tensorrt or tensorrt_rtx"


@pytest.mark.parametrize(("library", "refused"), [((1, 6, 1), True), ((1, 7, 0), True), ((1, 7, 1), False),
                                                  (None, False)])
def test_bindings_and_library_must_be_of_one_version(monkeypatch, library, refused):
    monkeypatch.setattr(backend, "library_version", lambda trt: library)
    bindings = SimpleNamespace(__name__="tensorrt_rtx_bindings", __version__="1.7.1.116")
    if refused:
        with pytest.raises(UserError, match=r"1\.7\.1\.116: its library is of version 1\."):
            backend._check_versions(bindings)
    else:
        backend._check_versions(bindings)


def test_versions_are_asked_what_they_can():
    """TensorRT 8.6, 11 and RTX by what they have; none by its number."""
    class Old:
        EXPLICIT_BATCH = 0

    class Typed:
        STRONGLY_TYPED = 0

    class RtxConfig:
        set_compute_capability = None

    old = SimpleNamespace(__name__="tensorrt", __version__="8.6.1", NetworkDefinitionCreationFlag=Old,
                          IBuilderConfig=Old)
    new = SimpleNamespace(__name__="tensorrt", __version__="11.4.0", NetworkDefinitionCreationFlag=Typed,
                          IBuilderConfig=Old)
    rtx = SimpleNamespace(__name__="tensorrt_rtx", __version__="1.7.1", NetworkDefinitionCreationFlag=Typed,
                          IBuilderConfig=RtxConfig)
    assert [backend.strongly_typed(trt) for trt in (old, new, rtx)] == [False, True, True]
    assert [backend.builds_without_gpu(trt) for trt in (old, new, rtx)] == [False, False, True]
    assert [backend.library_name(trt) for trt in (old, new, rtx)] == [
        "libnvinfer.so.8", "libnvinfer.so.11", "libtensorrt_rtx.so.1"]


# --- a library under another name ----------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="shared libraries are ELF on Linux")
def test_an_alias_leads_to_a_loaded_library():
    """The loader takes the name, and finds the other library's functions behind it."""
    with pytest.raises(OSError, match="cannot open shared object file"):
        ctypes.CDLL("libswin_alias_of_c.so.7")
    load_alias("libswin_alias_of_c.so.7", "libc.so.6")
    assert ctypes.CDLL("libswin_alias_of_c.so.7").getpid() == os.getpid()


def test_an_alias_of_nothing_is_refused():
    with pytest.raises(OSError, match="libswin_no_such_library"):
        load_alias("libswin_alias_of_nothing.so.7", "libswin_no_such_library.so")


# --- contexts ------------------------------------------------------------------------------------------------


class Engine:
    """Takes notes of the contexts that it is asked for."""

    def __init__(self) -> None:
        self.config, self.asked = SimpleNamespace(), []

    def create_runtime_config(self) -> SimpleNamespace:
        return self.config

    def create_execution_context(self, *arguments: object) -> str:
        self.asked.append(arguments)
        return "context"


@needs_rtx
def test_rtx_compiles_kernels_for_a_shape_before_they_are_needed(engine_module):
    """Not beside the first runs, which would compute otherwise than later ones."""
    if not backend.is_rtx(backend.load()):
        pytest.skip("TensorRT is installed and goes first")
    engine, eager = Engine(), backend.load().DynamicShapesKernelSpecializationStrategy.EAGER
    assert engine_module.create_execution_context(engine) == "context"
    assert engine.asked == [(engine.config,)]
    assert engine.config.dynamic_shapes_kernel_specialization_strategy == eager


def test_tensorrt_itself_compiles_nothing_for_a_shape(engine_module, monkeypatch):
    monkeypatch.setattr(engine_module, "trt", SimpleNamespace(__name__="tensorrt"))
    engine = Engine()
    assert engine_module.create_execution_context(engine) == "context"
    assert engine.asked == [()]


# --- plans that TensorRT refuses -----------------------------------------------------------------------------


@pytest.fixture
def engine_module(monkeypatch):
    """The module engine over whatever TensorRT is here, as if there were a GPU."""
    try:
        backend.load()
    except UserError as error:
        pytest.skip(str(error))
    from TensorRT import engine

    monkeypatch.setattr(engine, "require_gpu", lambda: None)
    return engine


@needs_rtx
@pytest.mark.parametrize(("content", "words"), [
    (b"", "is empty"),
    (b"# a Python script\n" * 50, "is not a TensorRT plan"),
    # A plan begins with a tag and, from byte 16 on, its size: here of TensorRT-RTX 1.7.1, and of 8.6.
    (b"vtrt\0\0\0\0\2\0\0\0\0\0\0\0" + (2**20).to_bytes(8, "little") + bytes(1000), "is truncated"),
    (b"ftrt" + bytes(1000), "was built by another version of TensorRT"),
])
def test_a_plan_is_refused_in_one_line(engine_module, tmp_path, content, words):
    if not backend.is_rtx(backend.load()):
        pytest.skip("the plans are for TensorRT-RTX; TensorRT is installed and goes first")
    (tmp_path / "x.plan").write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.plan: {words}.*\(TensorRT: .+\)$") as refused:
        engine_module.Engine(tmp_path / "x.plan", "none")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


@pytest.mark.parametrize(("message", "meaning"), [
    # TensorRT 8.6.0
    ("6: The engine plan file is not compatible with this version of TensorRT, expecting library version 8.6.0.12 got "
     "8.5.3.1, please rebuild.", "another version of TensorRT"),
    ("6: The engine plan file is generated on an incompatible device, expecting compute 9.0 got compute 8.0, please "
     "rebuild.", "another GPU"),
    ("3: getPluginCreator could not find plugin: SwinLayerNorm version: 1", "needs a plugin library"),
    # TensorRT-RTX 1.7.1
    ("The engine cannot run on this GPU, which has compute capability 9.0. Supported compute capabilities: 7.5, 8.0. "
     "TensorRT-RTX does not support this compute capability, so the engine cannot be rebuilt for it.",
     "cannot run on this GPU with this TensorRT"),
    ("The engine cannot run on this GPU, which has compute capability 8.9. Rebuild the engine for compute capability "
     "8.9 with IBuilderConfig::setComputeCapability", "was built for other GPUs"),
    ("Cannot find plugin: SwinLayerNorm, version: 1, namespace:swin.", "needs a plugin library"),
])
def test_what_tensorrt_says_is_explained(engine_module, message, meaning):
    assert meaning in engine_module.refusal(["1: Error Code 1: Serialization", message], b"ftrt")


@needs_rtx
def test_types_of_newer_versions_are_read(engine_module):
    """Labels of 10 and later are INT64; BF16 is no type of NumPy's."""
    trt = backend.load()
    assert engine_module.NUMPY_TYPES[trt.int64] == "int64" and engine_module.NUMPY_TYPES[trt.uint8] == "uint8"
    assert trt.bfloat16 not in engine_module.NUMPY_TYPES


def test_plugins_are_told_by_what_each_version_calls_them():
    """8.6 says PluginV2DynamicExt, 10 and 11 PluginV3, TensorRT-RTX custom_layer."""
    for kind, plugins in (("PluginV2DynamicExt", 1), ("PluginV3", 1), ("custom_layer", 1), ("kgen", 0)):
        engine = of_engine([("input", True, "float32", (-1, 3, 8, 8))],
                           f'{{"Layers": [{{"LayerType": "{kind}", "Name": "a/SwinLinear"}}]}}')
        assert engine.patched == ({"SwinLinear": plugins} if plugins else {}), kind


def test_a_long_message_is_cut(engine_module):
    from TensorRT.trt_runtime import in_one_line

    text = in_one_line("first\n  words " + "x" * 5000 + " last words")
    assert text.startswith("first words") and text.endswith("last words") and len(text) <= 300 and "\n" not in text


@needs_rtx
@pytest.mark.parametrize(("shape", "words"), [
    ((1, 3, 0, 224), "images of 0x224 lie outside its optimization profile, 64x64 to 512x512; build.sh --min-size"),
    ((1, 3, 224, 513), "images of 224x513 lie outside its optimization profile"),
    ((0, 3, 224, 224), "batch 0 lies outside its optimization profile, 1 to 8; build.sh --min and --max"),
    ((9, 3, 224, 224), "batch 9 lies outside its optimization profile"),
    ((1, 4, 224, 224), r"takes images \[3, any, any\], was given \[4, 224, 224\]; this is the data of another model"),
    ((1, 224, 224), "was given \\[224, 224\\]")])
def test_images_that_an_engine_does_not_take(shape, words):
    from TensorRT.engine import Context

    engine = SimpleNamespace(plan=ROOT / "m.plan", input_shape=(-1, 3, -1, -1), input="input", profile=(
        (1, 3, 64, 64), (1, 3, 224, 224), (8, 3, 512, 512)))
    with pytest.raises(UserError, match=words):
        Context.set_shape(SimpleNamespace(engine=engine, shapes={}), shape)
