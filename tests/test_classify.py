"""classify.py: answers beside torchvision's transforms and the model itself, order, batches, overlap, bad inputs."""
from __future__ import annotations

import csv
import ctypes
import importlib.util
import json
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import export_onnx
import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision import transforms

import classify
from config import get_config
from data.images import load_image, resize_and_crop
from data.labels import read_labels
from data.photo_crops import CLASSES, photo
from graphs.facts import carried_over, of_onnx
from graphs.pictures import picture_of
from graphs.sessions import onnx_session
from inference import dali
from inference.classifiers import Classifier, kind_of
from inference.pipeline import by_pillow
from models.build import load_model
from utils import ROOT, UserError

CFG, CHECKPOINT = "models/swin_micro.yaml", "models/checkpoints/swinv1_micro.safetensors"
SHOWN = ("china", "coffee", "rocket", "chelsea", "text", "flower", "astronaut")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """m.onnx, and photos/ with seven photographs of different sizes, one of them grey."""
    path = tmp_path_factory.mktemp("classify")
    export_onnx.main(["--cfg", str(ROOT / CFG), "--output", str(path / "m.onnx")])
    (path / "photos").mkdir()
    for index, name in enumerate(SHOWN):
        image = Image.fromarray(photo(name))
        (image.convert("L") if name == "text" else image).save(path / "photos" / f"{index}_{name}.png")
    return path


@pytest.fixture(scope="module")
def expected(folder) -> np.ndarray:
    """Logits [7, 18] by torchvision's transforms and this project's model in PyTorch."""
    transform = transforms.Compose([
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224),
        transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in sorted((folder / "photos").iterdir())])
    with torch.inference_mode():
        return load_model(get_config(ROOT / CFG), ROOT / CHECKPOINT)(images).numpy()


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("model", "batch"), [("m.onnx", None), ("m.onnx", "1"), ("m.onnx", "3"), ("checkpoint", "3")])
def test_answers_are_those_of_the_model(folder, expected, tmp_path, capsys, model, batch):
    path = ROOT / CHECKPOINT if model == "checkpoint" else folder / model
    classify.main([str(path), str(folder / "photos"), "--csv", str(tmp_path / "a.csv"), "--top-k", "3", "--logits",
                   str(tmp_path / "a.npy"), *(["--batch", batch] if batch else [])])
    logits = np.load(tmp_path / "a.npy")
    assert np.abs(logits - expected).max() <= 1e-4  # FP32, what test_swinV2.py asks for
    rows = rows_of(tmp_path / "a.csv")
    assert [Path(row["file"]).name[2:-4] for row in rows[::3]] == list(SHOWN)
    shares = torch.from_numpy(expected).double().softmax(1).numpy()
    for index, share in enumerate(shares):
        mine = rows[3 * index:3 * index + 3]
        best = np.argsort(-share)[:3]
        assert [int(row["class"]) for row in mine] == list(best) and [row["rank"] for row in mine] == ["1", "2", "3"]
        assert [row["name"] for row in mine] == [CLASSES[label] for label in best]
        assert np.allclose([float(row["probability"]) for row in mine], share[best], atol=1e-4)
    assert "7 of 7 images" in capsys.readouterr().out


def test_answers_are_printed_and_files_are_found_in_every_way(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (tmp_path / "list.txt").write_text("photos/2_rocket.png\n\nphotos/1_coffee.png\n")
    classify.main(["m.onnx", "photos/0_china.png", "photos", "--list", str(tmp_path / "list.txt"), "--top-k", "1"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [Path(line[0]).name[2:-4] for line in lines] == ["china", *SHOWN, "rocket", "coffee"]
    assert lines[0][1] == "china" and lines[0][2].endswith("%")


def test_a_file_that_is_no_image_is_named_and_the_others_are_answered(folder, expected, tmp_path, capsys):
    for name in ("0_china.png", "2_rocket.png"):
        shutil.copy(folder / "photos" / name, tmp_path)
    (tmp_path / "1_text.png").write_text("no image")
    whole = (folder / "photos" / "1_coffee.png").read_bytes()
    (tmp_path / "3_half.png").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match=r"2 of 4 files have no answer; the first: .*1_text.png: cannot be read"):
        classify.main([str(folder / "m.onnx"), str(tmp_path), "--csv", str(tmp_path / "a.csv"), "--top-k", "1",
                       "--logits", str(tmp_path / "a.npy"), "--batch", "2"])
    rows = rows_of(tmp_path / "a.csv")
    assert [row["name"] for row in rows] == ["china", "", "rocket", ""]
    assert [bool(row["problem"]) for row in rows] == [False, True, False, True]
    logits = np.load(tmp_path / "a.npy")
    assert np.isnan(logits[[1, 3]]).all() and np.abs(logits[[0, 2]] - expected[[0, 2]]).max() <= 1e-4
    assert capsys.readouterr().err.count("warning: ") == 2


def with_nodes(source: Path, path: Path, change) -> Path:
    model = onnx.load(source)
    change(model)
    onnx.save(carried_over(model, source), path)
    return path


def test_a_fixed_batch_is_filled_up(folder, expected, tmp_path):
    def fix(model):
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 4
    model = with_nodes(folder / "m.onnx", tmp_path / "fixed.onnx", fix)
    classify.main([str(model), str(folder / "photos"), "--logits", str(tmp_path / "a.npy")])
    assert np.abs(np.load(tmp_path / "a.npy") - expected).max() <= 1e-4
    with pytest.raises(UserError, match=r"--batch 5: runs batches of 4 only"):
        classify.main([str(model), str(folder / "photos"), "--batch", "5"])


def test_a_softmax_in_the_graph_is_not_done_twice(folder, expected, tmp_path):
    def end_in_softmax(model):
        for node in model.graph.node:
            node.output[:] = ["scores" if name == "logits" else name for name in node.output]
        model.graph.node.append(helper.make_node("Softmax", ["scores"], ["logits"], axis=1))
    model = with_nodes(folder / "m.onnx", tmp_path / "softmax.onnx", end_in_softmax)
    classify.main([str(model), str(folder / "photos"), "--csv", str(tmp_path / "a.csv"), "--top-k", "1"])
    best = torch.from_numpy(expected).softmax(1).max(1).values.numpy()
    assert np.allclose([float(row["probability"]) for row in rows_of(tmp_path / "a.csv")], best, atol=1e-4)


def test_nan_is_no_answer(folder, tmp_path):
    def spoil(model):
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
        weight.CopyFrom(onnx.numpy_helper.from_array(np.full(18, np.nan, np.float32), weight.name))
    model = with_nodes(folder / "m.onnx", tmp_path / "nan.onnx", spoil)
    with pytest.raises(UserError, match=r"7 of 7 files have no answer; .*NaN or infinity"):
        classify.main([str(model), str(folder / "photos")])


# --- overlap -------------------------------------------------------------------------------------------------


class TwoLanes(Classifier):
    """Gives the first pixel of each image, only when both lanes run at the same time."""

    same_size = True

    def __init__(self, onnx_file: Path) -> None:
        facts = of_onnx(onnx_file)
        super().__init__(onnx_file, facts, picture_of(facts, "m"), ())
        self.together = threading.Barrier(2, timeout=60)
        self.sizes: list[int] = []
        self.lanes = [self.lane, self.lane]

    def lane(self, images: np.ndarray) -> np.ndarray:
        self.together.wait()
        self.sizes.append(len(images))
        return images[:, 0, 0, :18].copy()


def test_lanes_run_at_the_same_time_and_order_is_kept(folder):
    files = sorted((folder / "photos").iterdir()) * 4
    lanes = TwoLanes(folder / "m.onnx")
    found = list(by_pillow(lanes, files, 7, 3))
    assert [path for path, _ in found] == files and lanes.sizes == [7] * 4
    wanted = {path: lanes.picture.of(resize_and_crop(load_image(path), 224)[None])[0, 0, 0, :18] for path in files[:7]}
    for path, row in found:
        assert np.array_equal(row, wanted[path])


class EngineOnTheCpu:
    """Stands in for TensorRT.engine.Engine and its contexts: onnxruntime computes, and what is asked of it is kept."""

    def __init__(self, plan: Path, plugins: str | None) -> None:
        self.plan, self.batches, self.said = plan, (2, 8), []
        self.session = onnx_session(plan.with_suffix(".onnx"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.said.append("closed")

    def facts(self):
        return of_onnx(self.plan.with_suffix(".onnx"))

    context = lambda self: ContextOnTheCpu(self)  # noqa: E731


class ContextOnTheCpu:
    def __init__(self, engine: EngineOnTheCpu) -> None:
        self.engine, self.batch = engine, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        assert "closed" not in self.engine.said

    def set_batch(self, batch: int) -> None:
        self.batch = batch

    def capture(self) -> None:
        self.captured = self.batch

    def upload(self, images: np.ndarray) -> None:
        assert len(images) == self.batch == self.captured and images.flags.c_contiguous
        self.images = images.copy()

    def run(self) -> None:
        self.output = self.engine.session.run(["logits"], {"input": self.images})[0]

    def download(self) -> dict[str, np.ndarray]:
        return {"logits": self.output}


class PageLocked:
    """Stands in for cuda.bindings.runtime."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)

    def __init__(self) -> None:
        self.held: dict[int, object] = {}

    def cudaMallocHost(self, size: int) -> tuple[int, int]:
        memory = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(memory)] = memory
        return 0, ctypes.addressof(memory)

    def cudaFreeHost(self, pointer: int) -> tuple[int]:
        del self.held[pointer]
        return (0,)


@pytest.mark.parametrize(("count", "batch"), [(7, 2), (1, 2), (7, 8), (7, None)])
def test_an_engine_runs_full_batches_from_page_locked_memory(folder, expected, tmp_path, monkeypatch, count, batch):
    """What is not TensorRT's own; that engines give TRT_test.py's logits is for test_engines_gpu.py."""
    runtime = SimpleNamespace(cuda=lambda call, *given: (call(*given)[1:] or (None,))[0], cudart=PageLocked(),
                              trt=SimpleNamespace(__name__="tensorrt", __version__="0"))
    monkeypatch.setitem(sys.modules, "TensorRT.trt_runtime", runtime)
    monkeypatch.setitem(sys.modules, "TensorRT.engine", SimpleNamespace(Engine=EngineOnTheCpu))
    shutil.copy(folder / "m.onnx", tmp_path / "m.onnx")
    (tmp_path / "m.plan").write_bytes(b"ftrt")
    files = [str(path) for path in sorted((folder / "photos").iterdir())[:count]]
    classify.main([str(tmp_path / "m.plan"), *files, "--logits", str(tmp_path / "a.npy"), "--decoder", "pillow",
                   *(["--batch", str(batch)] if batch else [])])
    assert np.abs(np.load(tmp_path / "a.npy") - expected[:count]).max() <= 1e-4
    assert not runtime.cudart.held
    with pytest.raises(UserError, match=r"--batch 9: runs batches from 2 to 8 only"):
        classify.main([str(tmp_path / "m.plan"), *files, "--batch", "9"])


def test_an_error_of_the_model_ends_the_run(folder):
    lanes = TwoLanes(folder / "m.onnx")

    def fails(images: np.ndarray) -> np.ndarray:
        raise UserError("no more memory")
    lanes.lanes = [fails]
    with pytest.raises(UserError, match="no more memory"):
        list(by_pillow(lanes, sorted((folder / "photos").iterdir()) * 4, 2, 2))


@pytest.mark.skipif(not dali.installed(), reason="NVIDIA DALI is an extra (pip install nvidia-dali-cuda130)")
@pytest.mark.parametrize("size", [(224, 224), (384, 384), (400, 300)])
def test_dali_resizes_and_crops_as_pillow_does(folder, size):
    """Its CPU side; on the same pixels, as PNG keeps them. A crop moved by one pixel changes them by 3 on average."""
    picture = picture_of(of_onnx(folder / "m.onnx"), "m")
    picture = type(picture)(**{**vars(picture), "height": size[0], "width": size[1]})
    files = sorted((folder / "photos").iterdir())
    pipe = dali.pipeline(files, picture, 7, None, 1)
    pipe.build()
    images, numbers = pipe.run()
    assert numbers.as_array().ravel().tolist() == list(range(7))
    for path, made in zip(files, images.as_array()):
        error = np.abs(made - picture.of(resize_and_crop(load_image(path), size)[None])[0])
        assert error.mean() * 0.226 * 255 <= 0.3, path  # rounding to whole numbers once more is 0.25


# --- labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "labels"), [
    ("tench\ngoldfish\n", ("tench", "goldfish")),
    ('["tench", "goldfish"]', ("tench", "goldfish")),
    ('{"0": "tench", "1": "goldfish"}', ("tench", "goldfish")),
    ('{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}', ("tench", "goldfish")),
    ('{"model_type": "swin", "id2label": {"1": "goldfish", "0": "tench"}}', ("tench", "goldfish")),
    ('{"label_names": ["n0", "n1"], "label_descriptions": {"n0": "tench", "n1": "goldfish"}}', ("tench", "goldfish")),
])
def test_labels_of_every_form(tmp_path, text, labels):
    (tmp_path / "labels").write_text(text)
    assert read_labels(tmp_path / "labels") == labels


@pytest.mark.parametrize(("content", "problem"), [
    (b"", "names no classes"), (b"a\n\nb\n", "class 1 has no name"), (b"\xff\xfe\x00", "is not a text file"),
    (b"{", "is not JSON"), (b'{"0": "a", "2": "b"}', "names no classes"), (b"[1, 2]", "names no classes"),
    (b'{"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}', "names no classes")])
def test_labels_that_are_none(tmp_path, content, problem):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        read_labels(tmp_path / "labels")


def test_names_come_along_from_config_json(folder, tmp_path):
    """As in a folder that Hugging Face's library or timm saved; names given go before them. They reach the graph as
    those of the packaged model do."""
    names = tuple(f"thing {index}" for index in range(18))
    weights = tmp_path / "model.safetensors"
    save_file(load_file(ROOT / CHECKPOINT), weights)
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {str(i): name for i, name in enumerate(names)}}))
    assert export_onnx.chosen_labels(None, weights, 18) == names
    assert export_onnx.chosen_labels(names[::-1], weights, 18) == names[::-1]
    assert of_onnx(folder / "m.onnx").labels == tuple(CLASSES)
    classify.main([str(weights), str(folder / "photos"), "--csv", str(tmp_path / "a.csv")])
    assert {row["name"] for row in rows_of(tmp_path / "a.csv")} <= set(names)
    with pytest.raises(UserError, match="--labels: names 17 classes, the model has 18"):
        export_onnx.chosen_labels(names[1:], weights, 18)
    (tmp_path / "config.json").write_text(json.dumps({"label_names": names[:5]}))  # of another model
    assert export_onnx.chosen_labels(None, weights, 18) == ()


# --- bad inputs ----------------------------------------------------------------------------------------------


def backbone(model):
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["batch", 256]))
    model.graph.node.append(helper.make_node("Identity", [next(
        node.input[0] for node in model.graph.node if "logits" in node.output)], ["features"]))


@pytest.mark.parametrize(("arguments", "problem"), [
    (["nowhere.onnx", "photos"], r"nowhere.onnx: no such file; give the path of an engine, an ONNX file"),
    (["photos/0_china.png", "photos"], r"0_china.png: is not an ONNX file"),
    (["m.onnx"], "no images: give files, folders, or --list FILE"),
    (["m.onnx", "nowhere.jpg"], "nowhere.jpg: no such file"),
    (["m.onnx", "empty"], "empty: holds no image"),
    (["m.onnx", "--list", "m.onnx"], "m.onnx: is not a text file; give a list of image files"),
    (["m.onnx", "photos", "--labels", "two.txt"], r"m.onnx: names 2 classes, the model has 18"),
    (["m.onnx", "photos", "--size", "256"], r"takes images of 224x224 \(height x width\), not 256x256"),
    (["m.onnx", "photos", "--batch", "0"], "'0': not a whole number above zero"),
    (["m.onnx", "photos", "--device", "cuda"], "CUDAExecutionProvider is not in the installed onnxruntime"),
    (["m.onnx", "photos", "--csv", "two.txt/a.csv"], "a.csv: cannot be written there"),
    (["backbone.onnx", "photos"], r"has no output of scores \[batch, classes\], but features"),
    (["engine.plan", "photos"], "no GPU can be used here|cannot import"),
    (["half.safetensors", "photos"], "half.safetensors: truncated"),
])
def test_bad_inputs_are_one_line(folder, tmp_path, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    for name in ("m.onnx", "photos"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    (tmp_path / "engine.plan").write_bytes(b"vtrt" + bytes(60))
    (tmp_path / "half.safetensors").write_bytes((ROOT / CHECKPOINT).read_bytes()[:100_000])
    if "backbone.onnx" in arguments:
        with_nodes(folder / "m.onnx", tmp_path / "backbone.onnx", backbone)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=problem) as raised:
        classify.main(arguments)
    assert "\n" not in str(raised.value) and sorted(tmp_path.iterdir()) == before


def test_dali_without_dali_or_without_an_engine(folder):
    problem = "goes with an engine, which" if dali.installed() else "has no NVIDIA DALI; pip install"
    with pytest.raises(UserError, match=problem):
        classify.main([str(folder / "m.onnx"), str(folder / "photos"), "--decoder", "dali"])


def test_kinds_are_told_by_contents(folder, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.onnx")
    (tmp_path / "b").write_bytes(b"ftrt")
    files = (folder / "m.onnx", ROOT / CHECKPOINT, tmp_path / "a.onnx", tmp_path / "b")
    kinds = [kind_of(path).__name__ for path in files]
    assert kinds == ["OnnxClassifier", "CheckpointClassifier", "CheckpointClassifier", "EngineClassifier"]


def test_a_python_without_pillow_says_so(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="has no Pillow, which reads images; python -m pip install pillow"):
        classify.main([str(folder / "m.onnx"), str(folder / "photos")])
