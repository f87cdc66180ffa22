"""examples/triton: its config.pbtxt as Triton's own protobuf reads it, its decoding model, bad input. No server is run.

tritonclient brings the protobuf. Only that module of it is loaded: the rest wants gRPC.
"""
from __future__ import annotations

import importlib.util
import io
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from data.images import resize_and_crop
from data.photo_crops import photo
from graphs.facts import Facts, built_from, of_onnx, with_facts, write_beside
from graphs.pictures import picture_of
from utils import ROOT, UserError

LABELS = ("cat", "dog", 'a "quoted" bird')


def module_of(path: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_repository = module_of(ROOT / "examples" / "triton" / "make_repository.py", "make_repository")
PROTO = module_of(Path(importlib.util.find_spec("tritonclient").submodule_search_locations[0]) / "grpc" /
                  "model_config_pb2.py", "model_config_pb2")


def graph(folder: Path, name: str = "m.onnx", batch: int | str = "batch", op: str = "", kind: int = TensorProto.FLOAT
          ) -> Path:
    """An ONNX file that classifies images of 64 x 96; `op` adds a plugin node."""
    weight = numpy_helper.from_array(np.ones((3 * 64 * 96, 3), helper.tensor_dtype_to_np_dtype(kind)), "w")
    nodes = [helper.make_node("Flatten", ["pixels"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    nodes.append(helper.make_node(op, ["y"], ["scores"], domain="swin") if op else
                 helper.make_node("Identity", ["y"], ["scores"]))
    model = helper.make_model(helper.make_graph(
        nodes, "m", [helper.make_tensor_value_info("pixels", kind, [batch, 3, 64, 96])],
        [helper.make_tensor_value_info("scores", kind, [batch, 3])], [weight]),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("swin", 1)], ir_version=8)
    onnx.save(with_facts(model, Facts(labels=LABELS, input_range="normalised")), folder / name)
    return folder / name


def engine(folder: Path, op: str = "", batches: tuple[int, ...] = (), name: str = "mine.plan") -> Path:
    """A file that begins as a plan does, with the .json that the builder writes beside one."""
    source, plan = graph(folder, "source.onnx", op=op), folder / name
    plan.write_bytes(b"ftrt" + bytes(28))
    write_beside(plan, built_from(of_onnx(source), source.name), batches=batches)
    return plan


def config(folder: Path):
    return text_format.Parse((folder / "config.pbtxt").read_text(), PROTO.ModelConfig())


def test_an_engine_with_plugins(tmp_path, capsys):
    library = tmp_path / "libswin_plugins.so"
    library.write_bytes(b"ELF")
    make_repository.main([str(engine(tmp_path, "SwinFNorm")), "--output", str(tmp_path / "models"), "--max-batch", "16",
                          "--plugins", str(library), "--preferred", "4,8,32"])
    made = tmp_path / "models" / "mine"
    assert (made / "1" / "model.plan").read_bytes() == (tmp_path / "mine.plan").read_bytes()
    assert (made / "labels.txt").read_text().splitlines() == list(LABELS)
    read = config(made)
    assert (read.name, read.backend, read.max_batch_size) == ("mine", "tensorrt", 16)
    assert [(each.name, each.data_type, list(each.dims)) for each in read.input] == [
        ("pixels", PROTO.TYPE_FP32, [3, 64, 96])]
    assert [(each.name, each.data_type, list(each.dims), each.label_filename) for each in read.output] == [
        ("scores", PROTO.TYPE_FP32, [3], "labels.txt")]
    assert list(read.dynamic_batching.preferred_batch_size) == [4, 8]  # none beyond the largest batch
    assert read.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(group.count, group.kind) for group in read.instance_group] == [(2, PROTO.ModelInstanceGroup.KIND_GPU)]
    start = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("start "))
    _, program, repository, plugins = shlex.split(start)
    assert program == "tritonserver" and repository == f"--model-repository={tmp_path / 'models'}"
    flag, _, path = plugins.rpartition("=")
    assert flag == "--backend-config=tensorrt,plugins" and Path(path).read_bytes() == b"ELF"
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["mine"]


@pytest.mark.parametrize(("op", "flags", "expected"), [
    ("", [], []), ("SwinFNorm", ["--plugins", "carried"], ["--backend-config=tensorrt,version-compatible=true"])])
def test_an_engine_without_a_library(tmp_path, capsys, op, flags, expected):
    make_repository.main([str(engine(tmp_path, op)), "--output", str(tmp_path / "models"), *flags])
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[3:] == expected
    assert not list((tmp_path / "models").rglob("*.so"))


@pytest.mark.parametrize(("kind", "precision", "data_type"), [
    (TensorProto.FLOAT, "FP32", PROTO.TYPE_FP32), (TensorProto.FLOAT16, "FP16", PROTO.TYPE_FP16)])
def test_an_onnx_file_by_onnxruntimes_tensorrt_provider(tmp_path, kind, precision, data_type):
    make_repository.main([str(graph(tmp_path, kind=kind)), "--output", str(tmp_path / "models"), "--name", "a"])
    read = config(tmp_path / "models" / "a")
    assert read.backend == "onnxruntime" and read.input[0].data_type == read.output[0].data_type == data_type
    (accelerator,) = read.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt" and accelerator.parameters["precision_mode"] == precision
    assert [accelerator.parameters[f"trt_profile_{which}_shapes"] for which in ("min", "opt", "max")] == [
        "pixels:1x3x64x96", "pixels:32x3x64x96", "pixels:128x3x64x96"]
    assert (tmp_path / "models" / "a" / "1" / "model.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


def test_an_ensemble_is_wired_through(tmp_path):
    make_repository.main([str(graph(tmp_path)), "--output", str(tmp_path / "models"), "--images"])
    classifier, decoder, both = (config(tmp_path / "models" / name) for name in ("m", "m_preprocess", "m_images"))
    assert both.platform == "ensemble" and both.input[0].data_type == PROTO.TYPE_STRING
    first, second = both.ensemble_scheduling.step
    assert (first.model_name, second.model_name) == (decoder.name, classifier.name)
    assert {both.input[0].name} == set(first.input_map.values()) and set(first.input_map) == {decoder.input[0].name}
    assert set(first.output_map) == {decoder.output[0].name}
    assert set(first.output_map.values()) == set(second.input_map.values())
    assert set(second.input_map) == {classifier.input[0].name} and set(second.output_map) == {classifier.output[0].name}
    assert set(second.output_map.values()) == {both.output[0].name}
    assert (decoder.output[0].data_type, list(decoder.output[0].dims)) == (
        classifier.input[0].data_type, list(classifier.input[0].dims))
    assert (tmp_path / "models" / "m_images" / "1").is_dir()  # a server wants a version of every model


# Stands in for the server: its module triton_python_backend_utils, and a request of three files.
SERVER = """
import sys, types, numpy as np
utils = types.ModuleType("triton_python_backend_utils")
class Tensor:
    def __init__(self, name, array): self.name, self.array = name, array
    def as_numpy(self): return self.array
class Response:
    def __init__(self, output_tensors=(), error=None): self.output_tensors, self.error = output_tensors, error
utils.Tensor, utils.InferenceResponse, utils.TritonError = Tensor, Response, str
utils.get_input_tensor_by_name = lambda request, name: {"IMAGE": request}[name]
sys.modules["triton_python_backend_utils"] = utils
sys.path[:0] = [sys.argv[1]]
import model
files = [open(path, "rb").read() for path in sys.argv[3:]]
loaded = model.TritonPythonModel()
loaded.initialize({})
good, bad = loaded.execute([Tensor("IMAGE", np.array([[file] for file in part], object)) for part in (
    files[:2], [files[0], b"no image"])])
loaded.finalize()
assert not good.error and not bad.output_tensors
print(good.output_tensors[0].name, bad.error)
np.save(sys.argv[2], good.output_tensors[0].array)
"""


def test_the_decoding_model_gives_what_the_classifier_reads(tmp_path):
    """Run from the repository that was written, without this project on the path."""
    make_repository.main([str(graph(tmp_path)), "--output", str(tmp_path / "models"), "--images"])
    paths, pixels = [], []
    for name in ("china", "rocket"):
        image = Image.fromarray(photo(name))
        image.save(tmp_path / f"{name}.png")
        paths.append(str(tmp_path / f"{name}.png"))
        pixels.append(resize_and_crop(Image.open(io.BytesIO((tmp_path / f"{name}.png").read_bytes())), (64, 96)))
    done = subprocess.run([sys.executable, "-c", SERVER, str(tmp_path / "models" / "m_preprocess" / "1"),
                           str(tmp_path / "made.npy"), *paths], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PIXELS image 1 of the request: cannot be read as an image")
    wanted = picture_of(of_onnx(tmp_path / "m.onnx"), "m").of(np.stack(pixels))
    assert np.array_equal(np.load(tmp_path / "made.npy"), wanted)


@pytest.mark.parametrize(("batches", "flags", "largest"), [((), [], 128), ((1, 16), [], 16), (
    (1, 16), ["--max-batch", "8"], 8)])
def test_the_largest_batch_is_the_engines(tmp_path, batches, flags, largest):
    make_repository.main([str(engine(tmp_path, batches=batches)), "--output", str(tmp_path / "models"), *flags])
    written = config(tmp_path / "models" / "mine")
    assert written.max_batch_size == largest
    assert all(batch <= largest for batch in written.dynamic_batching.preferred_batch_size)


@pytest.mark.parametrize(("arguments", "problem"), [
    (["nowhere.plan"], "nowhere.plan: no such file"),
    (["alone.plan"], "alone.plan: is a plan without its facts"),
    (["patched.onnx"], "holds plugin nodes, which onnxruntime's TensorRT provider does not look for"),
    (["fixed.onnx"], "takes only batches of 4"),
    (["mine.plan"], "no such file; give the path of the plugin library"),
    (["to16.plan", "--max-batch", "17"], "--max-batch 17: .*to16.plan takes batches of up to 16; build.sh --max"),
    (["from8.plan"], "from8.plan: takes batches from 8 on, and a request may come alone"),
    (["m.onnx", "--labels", "two.txt"], "names 2 classes, the model has 3"),
    (["m.onnx", "--name", "a/b"], "--name a/b: not a name for a model"),
    (["m.onnx", "--name", "taken"], "taken: is there already; remove it"),
    (["m.onnx", "--size", "64"], "takes images of 64x96"),
    (["two.txt"], "two.txt: is not an ONNX file"),
])
def test_bad_inputs_are_one_line(tmp_path, monkeypatch, arguments, problem):
    monkeypatch.setattr(make_repository, "PLUGIN_LIBRARY", tmp_path / "libswin_plugins.so")
    monkeypatch.chdir(tmp_path)
    engine(tmp_path, "SwinFNorm")
    engine(tmp_path, batches=(1, 16), name="to16.plan")
    engine(tmp_path, batches=(8, 16), name="from8.plan")
    graph(tmp_path)
    graph(tmp_path, "patched.onnx", op="SwinFNorm")
    graph(tmp_path, "fixed.onnx", batch=4)
    (tmp_path / "alone.plan").write_bytes(b"ftrt")
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    (tmp_path / "models" / "taken").mkdir(parents=True)
    with pytest.raises(UserError, match=problem) as raised:
        make_repository.main([*arguments, "--output", "models"])
    assert "\n" not in str(raised.value)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["taken"]


def test_an_open_size_is_fixed_in_the_repository(tmp_path):
    path = engine(tmp_path)
    facts = replace(of_onnx(tmp_path / "source.onnx"), input_shape=(None, 3, None, None))
    write_beside(path, facts)
    with pytest.raises(UserError, match="leaves the height and width of its images open; give --size"):
        make_repository.main([str(path), "--output", str(tmp_path / "models")])
    make_repository.main([str(path), "--output", str(tmp_path / "models"), "--size", "32x48"])
    assert list(config(tmp_path / "models" / "mine").input[0].dims) == [3, 32, 48]
