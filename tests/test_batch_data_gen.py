"""data/batch_data_gen.py: the files hold the images and the model's logits, always the same; bad input writes none."""
from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import export_onnx
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file

from config import get_config
from data import batch_data_gen
from data.batches import data_of
from data.images import load_image, preprocess
from data.photo_crops import crops, held_out_batch
from graphs.facts import carried_over, of_onnx
from models.build import build_model
from utils import ROOT, UserError

CFG = ROOT / "models" / "swinv2_micro.yaml"
# The micro model cut down to two stages, at 64 x 64 pixels.
OPTS = ["MODEL.SWIN.DEPTHS", "[2, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2]",
        "MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[0, 0]", "DATA.IMG_SIZE", "64"]


@pytest.fixture(scope="module")
def model(randomize) -> torch.nn.Module:
    return randomize(build_model(get_config(CFG, OPTS)))


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    save_file(model.state_dict(), folder / "model.safetensors")
    export_onnx.main(["--cfg", str(CFG), "--resume", str(folder / "model.safetensors"),
                      "--output", str(folder / "small_v2.onnx"), "--opts", *OPTS])
    return folder / "small_v2.onnx"


def generate(onnx_file: Path, output: Path, *more: str) -> dict[str, dict[str, np.ndarray]]:
    """Run the script; what it wrote, by file name."""
    batch_data_gen.main(["--model", str(onnx_file), "--output", str(output), *more])
    return {path.name: dict(np.load(path)) for path in output.iterdir()}


def test_files_hold_images_and_logits(model, onnx_file, tmp_path, capsys):
    files = generate(onnx_file, tmp_path)
    assert sorted(files) == [f"small_v2-b{batch}.npz" for batch in (1, 16, 4, 8)]
    images = held_out_batch(16, 64)[0]
    with torch.inference_mode():
        logits = model(torch.from_numpy(images)).numpy()
    for batch in (1, 4, 8, 16):
        arrays = files[f"small_v2-b{batch}.npz"]
        assert sorted(arrays) == ["facts", "input", "logits", "model"]
        assert arrays["input"].dtype == arrays["logits"].dtype == np.float32
        assert np.array_equal(arrays["input"], images[:batch])
        assert arrays["logits"].shape == (batch, 18)
        assert np.abs(arrays["logits"] - logits[:batch]).max() <= 1e-5 * np.abs(logits).max()
        assert str(arrays["model"]) == "swinv2_micro"  # as the ONNX file says, whatever its name
        assert json.loads(str(arrays["facts"]))["digest"] == hashlib.sha256(onnx_file.read_bytes()).hexdigest()
    assert capsys.readouterr().out.count("wrote") == 4


def test_the_same_call_gives_the_same_bytes(onnx_file, tmp_path):
    for folder in ("first", "second"):
        generate(onnx_file, tmp_path / folder, "--batches", "2,3")
    for name in ("small_v2-b2.npz", "small_v2-b3.npz"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six pictures in three class folders."""
    rng = np.random.default_rng(0)
    for i in range(6):
        path = tmp_path / "images" / f"class{i // 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 100, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def test_images_come_from_all_classes_of_a_folder(onnx_file, folder, tmp_path):
    files = generate(onnx_file, tmp_path / "out", "--images", str(folder), "--batches", "3")
    expected = [preprocess(load_image(folder / name), 64) for name in ("class0/0.png", "class1/2.png", "class2/4.png")]
    assert np.array_equal(files["small_v2-b3.npz"]["input"], np.stack(expected))


def refuses(match: str, onnx_file: Path, output: Path, *more: str) -> None:
    with pytest.raises(UserError, match=match):
        batch_data_gen.main(["--model", str(onnx_file), "--output", str(output), *more])
    assert not output.exists()


def test_too_few_images(onnx_file, folder, tmp_path):
    refuses("holds 6 images, 8 are needed", onnx_file, tmp_path / "out", "--images", str(folder), "--batches", "1,8")


def test_an_empty_a_missing_folder_and_a_broken_image(onnx_file, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    refuses("empty: holds no image", onnx_file, tmp_path / "out", "--images", str(tmp_path / "empty"))
    refuses("none: no such folder", onnx_file, tmp_path / "out", "--images", str(tmp_path / "none"))
    broken = folder / "class1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    refuses(r"3\.png", onnx_file, tmp_path / "out", "--images", str(folder), "--batches", "6")


@pytest.mark.parametrize("batches", ("0", "4,-1", "", "four", "1;4"))
def test_batches_are_whole_numbers(onnx_file, tmp_path, batches):
    refuses("not a list of batch sizes", onnx_file, tmp_path / "out", f"--batches={batches}")


def with_input_shape(onnx_file: Path, path: Path, shape: list[int | str]) -> Path:
    model = onnx.load(onnx_file)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("input", TensorProto.FLOAT, shape))
    onnx.save(model, path)
    return path


def test_a_fixed_batch_that_does_not_fit(onnx_file, tmp_path):
    path = with_input_shape(onnx_file, tmp_path / "fixed.onnx", [2, 3, 64, 64])
    refuses(r"fixed\.onnx: takes only batches of 2; give --batches 2", path, tmp_path / "out", "--batches", "2,4")
    assert generate(path, tmp_path / "two", "--batches", "2")["fixed-b2.npz"]["input"].shape == (2, 3, 64, 64)


def identity(path: Path, shape: list[int | str]) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "logits")]
    graph = helper.make_graph([helper.make_node("Relu", ["input"], ["logits"])], "identity", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("shape", (["batch", 3, "height", "width"], [1, 8]))
def test_a_model_that_takes_no_images_of_a_fixed_size(tmp_path, shape):
    refuses(r"odd\.onnx: its input input is", identity(tmp_path / "odd.onnx", shape), tmp_path / "out")


@pytest.mark.parametrize("shape", [(3, 64, 32), (64, 32, 3), (1, 64, 64)])
def test_images_have_the_graphs_own_shape(tmp_path, shape):
    files = generate(identity(tmp_path / "odd.onnx", ["batch", *shape]), tmp_path / "out", "--batches", "2")
    assert files["odd-b2.npz"]["input"].shape == (2, *shape)


def test_a_size_that_the_graph_leaves_open(tmp_path):
    path = identity(tmp_path / "open.onnx", ["batch", "channels", "height", "width"])
    files = generate(path, tmp_path / "out", "--batches", "1", "--size", "48x32")
    assert files["open-48x32-b1.npz"]["input"].shape == (1, 3, 48, 32)


def test_pixels_are_in_the_range_that_is_said(onnx_file, tmp_path):
    """0 to 255, not normalised: the same crops, as PIL gave them."""
    files = generate(onnx_file, tmp_path, "--batches", "2", "--input-range", "0..255")
    assert np.array_equal(files["small_v2-b2.npz"]["input"], crops("test", 2, 64)[0].transpose(0, 3, 1, 2))


def test_nan_in_the_output_is_not_written(onnx_file, tmp_path):
    model, path = onnx.load(onnx_file), tmp_path / "nan.onnx"
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "head.bias"]
    bias.CopyFrom(numpy_helper.from_array(np.full(18, np.nan, np.float32), "head.bias"))
    onnx.save(model, path)
    refuses("gives NaN or infinity in logits.*: its weight head.bias holds NaN", path, tmp_path / "out")


def test_expected_outputs_come_from_fp32(onnx_file, tmp_path, as_fp16):
    refuses(r"whole\.onnx: computes in fp16", as_fp16(onnx_file, tmp_path / "whole.onnx"), tmp_path / "out")
    path = tmp_path / "plate_fp16.onnx"
    path.write_bytes(onnx_file.read_bytes())
    assert list(generate(path, tmp_path / "out", "--batches", "1")) == ["plate_fp16-b1.npz"]


def test_data_is_found_by_what_made_it(onnx_file, tmp_path, as_fp16):
    """Of an FP16 graph the data of the FP32 one, whatever the names; also data of another export of the weights."""
    half = of_onnx(as_fp16(onnx_file, tmp_path / "half.onnx"))
    out = tmp_path / "out"
    generate(onnx_file, out, "--batches", "2,1")
    (out / "small_v2-b2.npz").rename(out / "anything.npz")
    np.savez(out / "foreign.npz", x=np.zeros(1))
    found = data_of(half, out)
    assert [(batch.path.name, len(batch.input)) for batch in found] == [("small_v2-b1.npz", 1), ("anything.npz", 2)]
    again = replace(of_onnx(onnx_file), digest="0" * 64, parents=())  # another file of the same weights
    assert [len(batch.input) for batch in data_of(again, out)] == [1, 2]
    assert data_of(replace(again, weights="0" * 64), out) == []
    assert data_of(half, out, "int8") == []
    (out / "broken.npz").write_bytes((out / "anything.npz").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"broken\.npz: is not batch data, or a truncated one"):
        data_of(half, out)


def test_a_quantised_graph_gives_what_int8_may_be_off(onnx_file, tmp_path):
    """The Q/DQ graph, whatever its name; not one with INT8 plugin nodes."""
    model = onnx.load(onnx_file)
    output = model.graph.output[0].name
    next(node for node in model.graph.node if output in node.output).output[:] = ["exact"]
    model.graph.initializer.extend([numpy_helper.from_array(np.float32(0.5), "step"),
                                    numpy_helper.from_array(np.int8(0), "zero")])
    model.graph.node.extend([helper.make_node("QuantizeLinear", ["exact", "step", "zero"], ["steps"]),
                             helper.make_node("DequantizeLinear", ["steps", "step", "zero"], [output])])
    onnx.save(carried_over(model, onnx_file), tmp_path / "m.onnx")
    batch_data_gen.main(["--model", str(tmp_path / "m.onnx"), "--output", str(tmp_path), "--batches", "2"])
    with np.load(tmp_path / "m-b2.npz") as data:
        assert not (2 * data["logits"] % 1).any()
    assert [batch.path.name for batch in data_of(of_onnx(tmp_path / "m.onnx"), tmp_path, "int8")] == ["m-b2.npz"]
    model.graph.node.append(helper.make_node("SwinQuantize", [output], ["q"], domain="swin"))
    onnx.save(model, tmp_path / "patched.onnx")
    refuses(r"patched\.onnx: computes in int8", tmp_path / "patched.onnx", tmp_path / "out")


def test_a_file_that_is_not_onnx_and_an_unwritable_folder(onnx_file, tmp_path):
    refuses("is not an ONNX file", CFG, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file, not a folder"):
        batch_data_gen.main(["--model", str(onnx_file), "--output", str(tmp_path / "file"), "--batches", "1"])
