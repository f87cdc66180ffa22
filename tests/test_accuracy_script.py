"""test_swinV2.py: every figure against one computed another way, folders and labels, runners, bad input."""
from __future__ import annotations

import csv
import math
import subprocess
import sys
import warnings
from contextlib import nullcontext
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import top_k_accuracy_score

import test_swinV2 as script
from config import get_config
from data.images import load_image, preprocess
from data.photo_crops import CLASSES, held_out_batch
from graphs.facts import Facts, write_beside
from models.build import build_model
from utils import ROOT, UserError

TINY = ["DATA.IMG_SIZE", "32", "MODEL.SWIN.WINDOW_SIZE", "4", "MODEL.SWIN.EMBED_DIM", "16",
        "MODEL.SWIN.DEPTHS", "[1,2]", "MODEL.SWIN.NUM_HEADS", "[1,2]", "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[0,0]"]
CFG = {"swinv1": ROOT / "models" / "swin_micro.yaml", "swinv2": ROOT / "models" / "swinv2_micro.yaml"}


@pytest.fixture
def tiny(tmp_path, randomize):
    """tiny(type, classes): a tiny model with every part at work, and the flags that make the script load it."""
    def make(model_type: str = "swinv2", classes: int = len(CLASSES)):
        config = get_config(CFG[model_type], [*TINY, "MODEL.NUM_CLASSES", str(classes)])
        model = randomize(build_model(config), 3)
        path = tmp_path / f"{model_type}-{classes}.safetensors"
        save_file(model.state_dict(), path)
        flags = ["--cfg", str(CFG[model_type]), "--resume", str(path), "--device", "cpu",
                 "--results", str(tmp_path / "Results"), "--opts", *TINY]
        return model, flags
    return make


@pytest.fixture
def results(tmp_path):
    """The folder that the flags of `tiny` name."""
    return tmp_path / "Results"


def export(model: torch.nn.Module, path) -> None:
    images = torch.zeros(2, 3, model.img_size, model.img_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(model, (images,), str(path), dynamo=False, input_names=["input"], output_names=["logits"],
                          dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}})


def rows_of(results) -> list[dict[str, str]]:
    with (results / "accuracy.csv").open() as file:
        return list(csv.DictReader(file))


def logits_of(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("model_type", ["swinv1", "swinv2"])
def test_figures_are_those_of_the_logits(tmp_path, results, tiny, capsys, model_type):
    """The ONNX file holds slightly other weights than the checkpoint, so that every figure has something to say."""
    model, flags = tiny(model_type)
    images, labels = held_out_batch(90, 32)
    reference = logits_of(model, images)
    with torch.no_grad():
        model.head.weight.mul_(1 + 0.3 * torch.randn(model.head.weight.shape, generator=torch.Generator()))
    other = logits_of(model, images)
    export(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match=r"^other\.onnx: top-1 is .*; other\.onnx: max abs error .* at most 1e-04$"):
        script.main([*flags, "--onnx", str(tmp_path / "other.onnx"), "--count", "90", "--batch", "1,8,128"])
    rows = rows_of(results)
    assert [(row["runner"], row["file"], row["precision"], row["batch"], row["images"]) for row in rows] == [
        (runner, file, "fp32", batch, "90") for runner, file in (("torch", ""), ("onnx", "other.onnx"))
        for batch in ("1", "8", "90")]
    assert [row["backend"].split()[0] for row in rows] == ["PyTorch"] * 3 + ["onnxruntime"] * 3
    assert {row["device"] for row in rows} == {"cpu"}
    for row in rows:
        logits = reference if row["runner"] == "torch" else other
        share = dict(abs=1e-5)
        assert float(row["top1"]) == pytest.approx((logits.argmax(1) == labels).mean(), **share)
        assert float(row["top1_torch"]) == pytest.approx((reference.argmax(1) == labels).mean(), **share)
        assert float(row["agreement"]) == pytest.approx((logits.argmax(1) == reference.argmax(1)).mean(), **share)
        error = np.abs(logits - reference)
        # The folded model and onnxruntime round in another order than the model here; the changed weights err more.
        assert float(row["max_abs_err"]) == pytest.approx(error.max(), rel=1e-3, abs=1e-4)
        assert float(row["median_rel_err"]) == pytest.approx(np.median(error / np.abs(reference)), rel=1e-2, abs=1e-5)
        assert float(row["torch_max_abs_err"]) == 0
    assert 0 < float(rows[-1]["agreement"]) < 1
    printed = capsys.readouterr().out
    top5 = top_k_accuracy_score(labels, other, k=5, labels=range(len(CLASSES)))
    assert f"{100 * top5:.2f} %" in printed.splitlines()[-5]
    assert [line[:4] for line in printed.splitlines()[-4:-1]] == ["PASS", "FAIL", "FAIL"]  # NaN, top-1, error
    for left_out in ("torch-fp16: left out", "torch-bf16: left out", "engine: left out"):
        assert left_out in printed
    run_id = rows[0]["run_id"]
    # As pip names it: PyTorch's own name may have the CUDA it was built for behind it, 2.13.0+cu130.
    assert f"torch: {metadata.version('torch')}\n" in (results / "environment" / f"{run_id}.txt").read_text()


def test_low_precision_is_measured_against_fp32(results, tiny):
    _, flags = tiny()
    script.main([*flags, "--count", "18", "--batch", "18", "--runner", "torch-fp32,torch-fp16,torch-bf16"])
    fp32, fp16, bf16 = (float(row["max_abs_err"]) for row in rows_of(results))
    assert fp32 == 0 < fp16 < bf16
    assert all(row["torch_max_abs_err"] == row["max_abs_err"] for row in rows_of(results))


def test_top_k_equals_scikit_learn():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((400, 12)).astype(np.float32), rng.integers(0, 12, 400)
    for k in (1, 5, 11):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=range(12))
        assert script.top_k(logits, labels, k) == pytest.approx(expected)
    assert script.top_k(logits[:, :3], labels % 3, 5) == 1
    logits[:, 0] = np.nan
    assert script.top_k(logits, labels, 5) == 0


def judged(name: str, precision: str, *rows: tuple[float, float, float], broken: int = 0) -> list[bool]:
    """What `judge` says of rows (error, PyTorch's error, agreement) at batches 1, 2, ..."""
    runner = SimpleNamespace(name=name, precision=precision)
    return [met for met, _ in script.judge(runner, [
        {"max_abs_err": str(error), "torch_max_abs_err": str(torch_error), "agreement": str(agreement),
         "batch": str(batch)} for batch, (error, torch_error, agreement) in enumerate(rows, 1)], broken)]


def test_judge_asks_what_the_docstring_says():
    """The order is: finite, agreement, the error and, in low precision, the error at each batch size."""
    assert judged("m.plan", "fp32", (9e-5, 0, 1), (1e-4, 0, 0.999)) == [True, True, True]
    assert judged("m.plan", "fp32", (9e-5, 0, 1), (1.1e-4, 0, 0.998)) == [True, False, False]
    assert judged("m.plan", "fp16", (0.02, 0.02, 1), (0.024, 0.03, 1)) == [True, True, True, True]
    assert judged("m.plan", "fp16", (0.02, 0.02, 1), (0.031, 0.03, 1)) == [True, True, False, True]
    assert judged("m.plan", "fp16", (0.026, 0.02, 1), (0.024, 0.03, 1)) == [True, True, True, False]
    assert judged("m.plan", "fp16", (math.nan, 0.02, 0.9), (0.024, 0.03, 1), broken=3) == [False] * 4
    assert judged("m.plan", "fp16", (0, 0, 1), (0.02, 0.02, 1)) == [True, True, True, True]
    assert judged("m.plan", "fp16", (1e-6, 0, 1), (0.02, 0.02, 1)) == [True, True, True, False]
    assert judged("m.plan", "int8", (9, 0, 0)) == [True]
    for kind, precision, patched, bound in [("engine", "fp32", {}, True), ("engine", "fp16", {"SwinMlp": 1}, True),
                                            ("engine", "fp16", {}, False), ("onnx", "fp16", {"SwinMlp": 1}, False)]:
        runner = SimpleNamespace(name="m_attention.plan", kind=kind, precision=precision, facts=Facts(patched=patched))
        assert script.is_asked(runner) is bound


def test_a_patched_engine_that_is_less_exact_than_pytorch_fails(tmp_path, results, tiny, engine_python, capsys):
    _, flags = tiny()
    for stem, words, raised in (("swinv2_attention", "good fp16", False), ("a", "good fp16 SwinMlp", True)):
        (tmp_path / f"{stem}.plan").write_text(words)
        with pytest.raises(UserError, match="at most PyTorch's own") if raised else nullcontext():
            script.main([*flags, "--plan", str(tmp_path / f"{stem}.plan"), "--runner", "engine", "--count", "6"])
        assert f"FAIL {stem}.plan: max abs error" in (printed := capsys.readouterr().out)
        assert ("(not asked: not a patched engine)" in printed) is not raised
    assert len(rows_of(results)) == 2  # what fails is in the table too


def test_reference_is_computed_once_at_the_largest_batch(results, tiny, monkeypatch):
    seen = {}
    collect = script.collect_logits

    def recording(images, runs, *rest):
        seen.update({runner.precision: batches for runner, batches in runs.items()})
        return collect(images, runs, *rest)

    monkeypatch.setattr(script, "collect_logits", recording)
    script.main([*tiny()[1], "--count", "8", "--batch", "1,4,8", "--runner", "torch-fp16"])
    assert seen == {"fp32": [8], "fp16": [1, 4, 8]}
    assert [row["batch"] for row in rows_of(results)] == ["1", "4", "8"]


def test_an_error_stands_beside_pytorchs_at_the_same_batch_size(results, tiny, monkeypatch):
    collect = script.collect_logits
    monkeypatch.setattr(script, "collect_logits", lambda *given: {
        (runner, batch): logits + (runner.precision == "fp16") * batch
        for (runner, batch), logits in collect(*given).items()})
    script.main([*tiny()[1], "--count", "4", "--batch", "1,4", "--runner", "torch-fp16"])
    assert [round(float(row["torch_max_abs_err"])) for row in rows_of(results)] == [1, 4]


def test_chunks_join_to_the_whole():
    """Seven images in chunks of four, by two runners that tell which image and batch they were given."""
    class Echo:
        def __init__(self, name):
            self.name, self.precision = name, "fp32"

        def __call__(self, images, file, batches):
            return np.stack([np.stack([images[:, 0, 0, 0], np.full(len(images), batch)], axis=1) for batch in batches])

    first, second = Echo("first"), Echo("second")
    images = script.ImageSet("numbers", 7, None, lambda start, stop: np.arange(start, stop).reshape(-1, 1, 1, 1))
    logits = script.collect_logits(images, {first: [2, 3], second: [3]}, 4, 2)
    assert set(logits) == {(first, 2), (first, 3), (second, 3)}
    for (_, batch), given in logits.items():
        assert given.tolist() == [[i, batch] for i in range(7)]


ENGINE = """#!{python}
# Stands in for the Python that has TensorRT: takes run_engine.py's flags, and doubles the mean of each channel.
import argparse, json, sys, numpy as np
assert sys.argv[1].endswith("TensorRT/run_engine.py"), sys.argv
parser = argparse.ArgumentParser()
for flag in ("--plan", "--input", "--output", "--plugins", "--batch"):
    parser.add_argument(flag)
parser.add_argument("--facts", action="store_true")
args = parser.parse_args(sys.argv[2:])
plan, *facts = open(args.plan).read().split()  # what the engine does, and says of itself: precision, plugin nodes
if plan == "broken":
    sys.exit("run_engine.py: error: x.plan: built by another TensorRT; build it again")
if args.facts:
    print(json.dumps({{"precision": facts[0], "patched": dict.fromkeys(facts[1:], 1), "digest": ""}}))
    sys.exit()
images = np.load(args.input)
assert images.dtype == np.float32 and images.shape[1:] == (3, 32, 32)
batches = [int(batch) for batch in args.batch.split(",")]
logits = np.zeros((len(batches), len(images), 18), np.float32)
logits[..., :3] = 2 * images.mean(axis=(2, 3))
logits[..., 3] = np.array(batches)[:, None]
if plan == "nan":
    logits[:, 1, 0] = np.nan
np.save(args.output, logits if len(batches) > 1 else logits[0])
"""


@pytest.fixture
def engine_python(tmp_path, monkeypatch):
    path = tmp_path / "trt_python"
    path.write_text(ENGINE.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setenv("TRT_PYTHON", str(path))


def test_engine_runs_in_the_other_python(tmp_path, results, tiny, engine_python):
    model, flags = tiny()
    plan = tmp_path / "swinv2_int8.plan"
    plan.write_text("good fp32")  # the file beside it goes before what it says itself
    write_beside(plan, Facts(precision="fp16", tools={"tensorrt": "9.1"}))
    script.main([*flags, "--plan", str(plan), "--runner", "engine", "--count", "20", "--batch", "4,16"])
    images, _ = held_out_batch(20, 32)
    reference, logits = logits_of(model, images), np.zeros((20, 18), np.float32)
    logits[:, :3] = 2 * images.mean(axis=(2, 3))
    for row, batch in zip(rows_of(results), (4, 16)):
        logits[:, 3] = batch
        assert [row[name] for name in ("runner", "file", "precision", "patched", "backend", "batch")] == [
            "engine", "swinv2_int8.plan", "fp16", "no", "TensorRT 9.1", str(batch)]
        assert float(row["max_abs_err"]) == pytest.approx(np.abs(logits - reference).max(), rel=1e-3)
        # Beside it, what PyTorch does in the engine's precision: an error, but a small one.
        assert 0 < float(row["torch_max_abs_err"]) < 0.1 * float(row["max_abs_err"])


def test_flags_that_the_engine_runner_gives_exist():
    done = subprocess.run([sys.executable, str(ROOT / "TensorRT" / "run_engine.py"), "--help"],
                          capture_output=True, text=True)
    assert all(flag in done.stdout for flag in ("--plan", "--input", "--output", "--plugins", "--batch", "--facts"))


def test_nan_is_reported_in_the_rows_and_fails(tmp_path, results, tiny, engine_python, capsys):
    _, flags = tiny()
    (tmp_path / "swinv2.plan").write_text("nan fp32")
    with pytest.raises(UserError, match=r"swinv2\.plan fp32 at batch 4 gave NaN or infinity for 1 of 10 images"):
        script.main([*flags, "--plan", str(tmp_path / "swinv2.plan"), "--runner", "engine", "--count", "10",
                     "--batch", "4"])
    row, = rows_of(results)
    assert row["max_abs_err"] == "nan" and "nan" in capsys.readouterr().out
    assert float(row["agreement"]) <= 0.9 and float(row["top1"]) <= 0.9


def test_engine_that_does_not_run_is_one_line(tmp_path, results, tiny, engine_python):
    _, flags = tiny()
    (tmp_path / "swinv2.plan").write_text("broken")
    command = [*flags, "--plan", str(tmp_path / "swinv2.plan"), "--runner", "engine", "--count", "10"]
    with pytest.raises(UserError, match=r"swinv2\.plan: nothing says what the engine is: .*built by another TensorRT"):
        script.main(command)
    write_beside(tmp_path / "swinv2.plan", Facts(precision="fp32"))
    with pytest.raises(UserError, match=r"swinv2\.plan: the engine did not run: .*built by another TensorRT"):
        script.main(command)
    assert not results.exists()


# --- folders and labels --------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """ImageNet layout: three class folders, two images each, and what belongs to no class beside them."""
    folder = tmp_path / "val"
    for label, name in enumerate(("n01", "n02", "n10")):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng(10 * label + i).integers(0, 255, (50, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.JPEG")
    (folder / "README.txt").touch()
    return folder


def test_class_folders_in_sorted_order_are_the_labels(photos):
    images = script.folder_images(photos, None, None, 32, 3)
    assert images.count == 6 and images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    read = images.read(1, 4)
    assert read.shape == (3, 3, 32, 32) and read.dtype == np.float32
    expected = preprocess(load_image(photos / "n02" / "0.JPEG"), 32)
    np.testing.assert_array_equal(read[1], expected)
    some = script.folder_images(photos, None, 3, 32, 3)
    assert some.labels.tolist() == [0, 1, 2], "a count takes images from the whole folder, not from its beginning"


def test_label_file_names_the_classes(photos, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("n01/0.JPEG 700\nn01/1.JPEG\t3\n\nn02/0.JPEG 1\nn02/1.JPEG 2\nn10/0.JPEG 999\nn10/1.JPEG 0\n"
                      "not in the folder.jpg 5\n")
    for _ in range(2):
        assert script.folder_images(photos, labels, None, 32, 1000).labels.tolist() == [700, 3, 1, 2, 999, 0]
        labels.write_text("\ufeff" + labels.read_text())  # as some editors save it


def test_accuracy_over_a_folder(photos, results, tiny, capsys):
    model, flags = tiny(classes=3)
    script.main([*flags, "--images", str(photos), "--runner", "torch-fp32"])
    images = script.folder_images(photos, None, None, 32, 3)
    expected = (logits_of(model, images.read(0, 6)).argmax(axis=1) == images.labels).mean()
    row, = rows_of(results)
    assert float(row["top1"]) == pytest.approx(expected, abs=1e-5) and row["batch"] == "6"
    assert "6 of 6 images" in capsys.readouterr().out


def test_without_labels_there_is_agreement_alone(photos, results, tiny, capsys):
    _, flags = tiny(classes=3)
    script.main([*flags, "--images", str(photos / "n01"), "--runner", "torch-fp32"])
    script.main([*flags, "--count", "4", "--runner", "torch-fp32"])  # 18 photographs, 3 classes
    assert [(row["top1"], row["top1_torch"], row["agreement"]) for row in rows_of(results)] == [("", "", "1.00000")] * 2
    assert capsys.readouterr().out.count("without labels") == 2


@pytest.mark.parametrize(("break_it", "problem"), [
    (lambda folder, labels: labels.write_text("n01/0.JPEG 1\n"), "no label for 5 of 6 images, such as n01/1.JPEG"),
    (lambda folder, labels: labels.write_text("n01/0.JPEG 3\n"), r"labels\.txt:1: .* index from 0 to 2"),
    (lambda folder, labels: labels.write_text("n01/0.JPEG cat\n"), r"labels\.txt:1"),
    (lambda folder, labels: labels.write_bytes(b"\xff\xfe\x00"), "not a text file"),
    (lambda folder, labels: labels.write_text("n01/0.JPEG 1\nn01/1.JPEG 1\nn01/0.JPEG 2\n"),
     r"labels\.txt:3: n01/0\.JPEG has a label on line 1 already"),
    (lambda folder, labels: labels.write_text("n01/0.JPEG " + "1" * 5000), r"labels\.txt:1: .* index from 0 to 2"),
    (lambda folder, labels: labels.mkdir(), "is a folder, not a label file"),
    (lambda folder, labels: None, "no such file"),
])
def test_bad_label_files(photos, tmp_path, break_it, problem):
    break_it(photos, tmp_path / "labels.txt")
    with pytest.raises(UserError, match=problem):
        script.folder_images(photos, tmp_path / "labels.txt", None, 32, 3)


def test_bad_folders(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, count, classes, problem in [
        (tmp_path / "empty", None, 3, "holds no image"), (tmp_path / "missing", None, 3, "no such folder"),
        (photos, None, 1000, "has 3 class folders and the model 1000 classes"), (photos, 7, 3, "fewer than --count 7"),
    ]:
        with pytest.raises(UserError, match=problem):
            script.folder_images(folder, None, count, 32, classes)
    (photos / "n02" / "0.JPEG").write_text("no image")
    with pytest.raises(UserError, match=r"n02/0\.JPEG: cannot be read as an image"):
        script.folder_images(photos, None, None, 32, 3).read(0, 6)
    Image.new("RGB", (40, 40)).save(photos / "stray.png")
    with pytest.raises(UserError, match="both in class folders and beside them"):
        script.folder_images(photos, None, None, 32, 3)


def test_bad_flags_and_files_change_nothing(tmp_path, results, tiny):
    model, flags = tiny()
    (tmp_path / "text.onnx").write_text("not a model")
    export(tiny(classes=3)[0], tmp_path / "classes.onnx")
    for arguments, problem in [
        (["--runner", "torch-fp64"], "unknown; choose from"), (["--runner", "engine"], "give --plan FILE"),
        (["--runner", "onnx", "--onnx", str(tmp_path / "text.onnx")], "is not an ONNX file"),
        (["--runner", "onnx", "--onnx", str(tmp_path / "no.onnx")], "no such file"),
        (["--onnx", str(tmp_path / "classes.onnx"), "--count", "4"], r"logits of \[4, 3\] .* the model has 18 classes"),
        (["--runner", "engine", "--plan", str(tmp_path / "no.plan")], "no such file"),
        (["--runner", "torch-fp32", "--plan", "a.plan"], "--plan a.plan: .* would not run it; add engine to --runner"),
        (["--runner", "torch-fp32", "--onnx", "a.onnx"], "--onnx a.onnx: .* would not run it; add onnx to --runner"),
        (["--batch", "0"], "not a list of batch sizes"), (["--count", "0"], "not a whole number above zero"),
        (["--runner", "torch-fp32", "--images", str(tmp_path / "nowhere")], "no such folder"),
    ]:
        with pytest.raises(UserError, match=problem):
            script.main([*flags, *arguments])
    export(model, tmp_path / "tiny.onnx")
    with pytest.raises(UserError, match="takes images of 32 pixels and the model 224"):
        script.main(["--cfg", str(CFG["swinv1"]), "--onnx", str(tmp_path / "tiny.onnx")])
    with pytest.raises(SystemExit):
        script.main([*flags, "--labels", "x.txt"])
    assert not results.exists()


@pytest.mark.parametrize(("in_the_way", "named"), [
    ("Results", "Results: is a file, not a folder"), ("Results/environment", "environment/.*txt"),
    ("Results/accuracy.csv/x", "is a folder")])
def test_results_that_cannot_be_written_are_said_before_measuring(tmp_path, tiny, monkeypatch, in_the_way, named):
    monkeypatch.setattr(script, "collect_logits", None)
    (tmp_path / in_the_way).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / in_the_way).write_text("a file")
    with pytest.raises(UserError, match=f"{named}.*; give another place"):
        script.main([*tiny()[1], "--runner", "torch-fp32"])
