"""examples/ray_data: two workers of onnxruntime on the CPU; one is killed, a run breaks off: each file has one row.

Workers are killed by themselves, at a place that the test chooses; nothing is waited for.
"""
from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from data.images import IMAGENET_MEAN, IMAGENET_STD
from graphs.facts import Facts, with_facts
from utils import ROOT, UserError

ray = pytest.importorskip("ray.data", reason="Ray Data is an extra (requirements-ray.txt)")
PATH = ROOT / "examples" / "ray_data" / "classify_many.py"
spec = importlib.util.spec_from_file_location("classify_many", PATH)
classify_many = importlib.util.module_from_spec(spec)
sys.modules["classify_many"] = classify_many
spec.loader.exec_module(classify_many)

SIDE, CLASSES, COUNT = 32, 5, 21


class Marked(classify_many.Worker):
    """Leaves a file for each process that it runs in, and for each image that it is given."""

    def __init__(self, arguments) -> None:
        super().__init__(arguments)
        (arguments.marks / f"process-{os.getpid()}").touch()

    def __call__(self, rows):
        for file in rows["file"]:
            (self.arguments.marks / f"seen-{Path(file).name}").touch()
        return super().__call__(rows)


class KilledOnce(Marked):
    """The first of all its processes that has computed some rows dies before it gives them."""

    def __call__(self, rows):
        made = super().__call__(rows)
        try:
            (self.arguments.marks / "killed").open("x").close()
        except FileExistsError:
            return made
        os.kill(os.getpid(), signal.SIGKILL)


class Broken(Marked):
    """Its model does not run."""

    def __call__(self, rows):
        if any("0020" in file for file in rows["file"]):
            raise UserError("m.onnx: does not run")
        return super().__call__(rows)


@pytest.fixture(scope="module")
def running():
    """A Ray with two cores, whose workers find these classes."""
    import ray as core

    core.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    core.cloudpickle.register_pickle_by_value(classify_many)
    classify_many.start(num_cpus=2)
    yield
    core.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """m.onnx, a linear classifier, and photos/ with images of 32 x 32 and one file that is none."""
    path, rng = tmp_path_factory.mktemp("ray"), np.random.default_rng(0)
    weight = rng.standard_normal((3 * SIDE * SIDE, CLASSES)).astype(np.float32)
    model = helper.make_model(helper.make_graph(
        [helper.make_node("Flatten", ["pixels"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])], "m",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weight, "w")]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(with_facts(model, Facts(labels=tuple("abcde"))), path / "m.onnx")
    (path / "photos").mkdir()
    # The resize is by 256/224 and the crop takes the middle: images of 36 x 36 stay as they are.
    for index in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (36, 36, 3), np.uint8)).save(path / "photos" / f"{index:04}.png")
    (path / "photos" / "0003.png").write_text("no image")
    return path


def expected(folder: Path) -> dict[str, int | None]:
    """The class of each file; None for the one that is no image."""
    weight = numpy_helper.to_array(onnx.load(folder / "m.onnx").graph.initializer[0]).astype(np.float64)
    classes: dict[str, int | None] = {}
    for path in sorted((folder / "photos").iterdir()):
        if path.name == "0003.png":
            classes[str(path)] = None
            continue
        image = (np.asarray(Image.open(path))[2:34, 2:34] / 255 - IMAGENET_MEAN) / IMAGENET_STD
        classes[str(path)] = int((np.moveaxis(image, -1, 0).reshape(-1) @ weight).argmax())
    return classes


def run(folder: Path, output: Path, worker: type, *images: Path) -> None:
    args = classify_many.parse([str(folder / "m.onnx"), *map(str, images), "--output", str(output), "--workers", "2",
                                "--files", "4", "--threads", "1", "--top-k", "2", "--device", "cpu"])
    args.marks = output.parent / "marks"
    args.marks.mkdir(exist_ok=True)
    classify_many.classify(classify_many.files_of(args), args, worker)


def rows(output: Path) -> list[dict]:
    from pyarrow import dataset

    return dataset.dataset(str(output), format="parquet").to_table().to_pylist()


def check(folder: Path, output: Path) -> None:
    """Every file has one row, and the row is right."""
    found = sorted(rows(output), key=lambda row: row["file"])
    wanted = expected(folder)
    assert [row["file"] for row in found] == list(wanted)
    for row, best in zip(found, wanted.values()):
        if best is None:
            assert "cannot be read as an image" in row["problem"] and row["classes"] == row["probabilities"] == []
        else:
            assert row["problem"] == "" and row["classes"][0] == best and row["names"][0] == "abcde"[best]
            assert len(row["classes"]) == 2 and 1 >= row["probabilities"][0] >= row["probabilities"][1] >= 0


def test_a_killed_worker_loses_and_doubles_nothing(running, folder, tmp_path):
    """One file is named twice: its folder and itself."""
    run(folder, tmp_path / "answers", KilledOnce, folder / "photos", folder / "photos" / "0000.png")
    check(folder, tmp_path / "answers")
    marks = [path.name for path in (tmp_path / "marks").iterdir()]
    assert "killed" in marks and sum(name.startswith("process-") for name in marks) >= 3  # two, and one anew


def test_a_run_goes_on_where_another_broke_off(running, folder, tmp_path):
    files = sorted((folder / "photos").iterdir())
    run(folder, tmp_path / "answers", Marked, *files[:9])
    with pytest.raises(UserError, match=r"m\.onnx: does not run"):
        run(folder, tmp_path / "answers", Broken, *files)
    done = {Path(row["file"]).name for row in rows(tmp_path / "answers")}
    assert done >= {path.name for path in files[:9]}
    half = next((tmp_path / "answers").glob("*.parquet"))  # as a run that is killed leaves it
    lost = {Path(row["file"]).name for row in rows(half)}
    half.write_bytes(half.read_bytes()[:-20])
    for mark in (tmp_path / "marks").iterdir():
        mark.unlink()
    run(folder, tmp_path / "answers", Marked, folder / "photos")
    check(folder, tmp_path / "answers")
    seen = {path.name.removeprefix("seen-") for path in (tmp_path / "marks").glob("seen-*")}
    assert seen == {path.name for path in files} - done | lost


@pytest.mark.parametrize(("arguments", "problem"), [
    (["m.onnx", "photos", "--labels", "two.txt"], "names 2 classes, the model has 5"),
    (["engine.plan", "photos"], "--workers 1: Ray has 0 GPUs; give fewer workers, or add hosts"),
])
def test_what_a_worker_finds_wrong_is_one_line(running, folder, tmp_path, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    for name in ("m.onnx", "photos"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    (tmp_path / "engine.plan").write_bytes(b"vtrt")
    args = classify_many.parse([*arguments, "--output", "answers"])
    with pytest.raises(UserError, match=problem) as raised:
        classify_many.classify(classify_many.files_of(args), args)
    assert "\n" not in str(raised.value) and not list((tmp_path / "answers").glob("*.parquet"))


@pytest.mark.parametrize(("arguments", "problem"), [
    (["nowhere.onnx", "photos"], "nowhere.onnx: no such file"),
    (["m.onnx"], "no images: give files, folders, or --list FILE"),
    (["m.onnx", "nowhere"], "nowhere: no such file"),
])
def test_bad_inputs_are_told_before_ray_starts(folder, tmp_path, monkeypatch, arguments, problem):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(classify_many, "start", lambda *_: pytest.fail("started Ray"))
    with pytest.raises(UserError, match=problem):
        classify_many.main([*arguments, "--output", str(tmp_path / "answers")])
