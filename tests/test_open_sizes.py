"""Graphs that leave height and width open: one patched graph, right at every size, or a line that says why not."""
from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import add_all
import add_int8
import numpy as np
import onnx
import pytest
import torch
import zoo
from onnx import TensorProto, helper, numpy_helper

from graphs.files import PLUGIN_DOMAIN
from graphs.open_sizes import leaves_size_open, patched_at_sizes, sizes_in_pixels
from graphs.pictures import sized
from graphs.sessions import session
from graphs.surgeon import TOLERANCE, plugin_counts
from TensorRT.INT8 import quant
from utils import UserError

LARGEST_RMS = 0.2  # of INT8 with random weights and random images
SIZES = [(6, 10), (8, 14), (12, 4)]


# --- from graphs of one size to one of all -------------------------------------------------------------------


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], channels: int = 4,
             size: tuple[int | str, int | str] = ("h", "w"), batch: int | str = "n") -> onnx.ModelProto:
    """x [n, channels, h, w] -> y"""
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels, *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()])
    return helper.make_model(graph, ir_version=8, opset_imports=[
        helper.make_opsetid("", 17), helper.make_opsetid(PLUGIN_DOMAIN, 1)])


IDENTITY = model_of([helper.make_node("Identity", ["x"], ["y"])], {})  # what is asked of it is only what is open


def size_of(model: onnx.ModelProto) -> tuple[int, int]:
    return tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[2:])


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    (found,) = session(model).run(None, {"x": x})
    return found


def moved(fixed: onnx.ModelProto) -> onnx.ModelProto:
    """Tokens, and an image again without its last two columns, by numbers that are right at one size."""
    height, width = size_of(fixed)
    node = helper.make_node
    return model_of([
        node("Reshape", ["x", "flat"], ["tokens"]), node("Transpose", ["tokens"], ["last"], perm=[0, 2, 1]),
        node("Relu", ["last"], ["kept"]), node("Reshape", ["kept", "image"], ["unrolled"]),
        node("Slice", ["unrolled", "from", "to", "axis"], ["cut"]), node("Transpose", ["cut"], ["turned"],
                                                                         perm=[0, 3, 1, 2]),
        node("Resize", ["turned", "", "scales"], ["large"], mode="nearest", nearest_mode="floor",
             coordinate_transformation_mode="asymmetric"),
        node("Reshape", ["large", "doubled"], ["y"])],
        {"flat": np.array([-1, 4, height * width]), "image": np.array([-1, height, width, 4]),
         "from": np.array([0]), "to": np.array([width - 2]), "axis": np.array([2]),
         "scales": np.array([1, 1, 2, 2], np.float32),
         "doubled": np.array([-1, 4, 2 * height * 2 * (width - 2)])}, size=(height, width))


def test_numbers_that_are_sizes_are_taken_from_the_tensors():
    opened = patched_at_sizes(IDENTITY, SIZES, None, moved)
    onnx.checker.check_model(opened)
    dims = [dim.dim_param or dim.dim_value for dim in opened.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["n", 4, "h", "w"] and leaves_size_open(opened)
    x = np.random.default_rng(0).standard_normal((3, 4, 5, 7)).astype(np.float32)
    expected = np.maximum(x, 0)[..., :5].repeat(2, 2).repeat(2, 3).reshape(3, 4, -1)
    np.testing.assert_array_equal(run(opened, x), expected)


@pytest.mark.parametrize(("constant", "words"), [
    (lambda height, width: np.full(4, height + 0.5, np.float32).reshape(4, 1, 1),
     "Add_0: its constant c is another at 6x10 than at 8x14"),
    (lambda height, width: np.zeros((height, width), np.float32), "another at 6x10 than at 8x14")])
def test_a_constant_that_depends_on_the_size_is_named(constant, words):
    def made(fixed: onnx.ModelProto) -> onnx.ModelProto:
        return model_of([helper.make_node("Add", ["x", "c"], ["y"], name="Add_0")], {"c": constant(*size_of(fixed))},
                        size=size_of(fixed))

    with pytest.raises(UserError, match=words):
        patched_at_sizes(IDENTITY, SIZES, None, made)


def test_rounding_of_what_surgery_computes_is_no_difference():
    def made(fixed: onnx.ModelProto) -> onnx.ModelProto:
        scale = np.full((4, 1, 1), 0.25 * (1 + 1e-7 * size_of(fixed)[0]), np.float32)
        return model_of([helper.make_node("Mul", ["x", "c"], ["y"])], {"c": scale}, size=size_of(fixed))

    x = np.ones((1, 4, 3, 3), np.float32)
    np.testing.assert_allclose(run(patched_at_sizes(IDENTITY, SIZES, None, made), x), 0.25, rtol=1e-5)


def test_a_number_that_is_no_size_is_named():
    def made(fixed: onnx.ModelProto) -> onnx.ModelProto:
        pads = np.array([0, 0, 0, 0, 0, 0, -size_of(fixed)[0] % 7, 0])
        return model_of([helper.make_node("Pad", ["x", "pads"], ["y"], name="Pad_3")], {"pads": pads},
                        size=size_of(fixed))

    with pytest.raises(UserError, match=r"Pad_3: its constant \[1, 6, 2\] at 6x10, 8x14, 12x4 is the size of nothing"):
        patched_at_sizes(IDENTITY, SIZES, None, made)


def test_other_nodes_at_another_size_are_named():
    def made(fixed: onnx.ModelProto) -> onnx.ModelProto:
        op = "Relu" if size_of(fixed)[0] < 12 else "Neg"
        return model_of([helper.make_node(op, ["x"], ["y"], name="it")], {}, size=size_of(fixed))

    with pytest.raises(UserError, match="it is Relu at 6x10 and Neg at 12x4; so it cannot serve every size"):
        patched_at_sizes(IDENTITY, SIZES, None, made)
    with pytest.raises(UserError, match="cannot be told from one size"):
        patched_at_sizes(IDENTITY, SIZES[:1], None, made)


def attention_at(shown: Callable[[int, int], dict[str, int]]) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """Makes a graph of one SwinAttention with windows of 4, whose attributes are what surgery saw at a size."""
    def made(fixed: onnx.ModelProto) -> onnx.ModelProto:
        height, width = size_of(fixed)
        attributes = {"num_heads": 1, "window_height": 4, "window_width": 4, "scale": 0.5, "mask_value": -100.0,
                      **shown(height, width)}
        node = helper.make_node("SwinAttention", ["qkv", "bias", "padding"], ["z"], name="attn", domain=PLUGIN_DOMAIN,
                                **attributes)
        rng = np.random.default_rng(0)
        constants = {"bias": rng.standard_normal((1, 16, 16)).astype(np.float32),
                     "padding": rng.standard_normal(24).astype(np.float32)}
        return model_of([helper.make_node("Transpose", ["x"], ["qkv"], perm=[0, 2, 3, 1]), node,
                         helper.make_node("Relu", ["z"], ["y"])], constants, channels=24, size=(height, width))

    return made


OPEN_QKV = model_of([helper.make_node("Identity", ["x"], ["y"])], {}, channels=24)


def seen(height_shift: int, width_shift: int, covered: int, roll_first: int) -> dict[str, int]:
    return {"shift_height": height_shift, "shift_width": width_shift, "shift_if_covered": covered,
            "roll_first": roll_first}


@pytest.mark.parametrize(("shown", "rule"), [
    # At 12x4 a window covers the width.
    (lambda h, w: seen(2, 2 if w > 4 else 0, 0, int(w != 4)), seen(2, 2, 0, 1)),
    (lambda h, w: seen(2, 2, int(w <= 4), 0), seen(2, 2, 1, 0)),
    (lambda h, w: seen(0, 0, 0, 0), seen(0, 0, 0, 0)),
    (lambda h, w: seen(2, 0, 0, 1), seen(2, 0, 0, 1))], ids=["covered: none", "covered: shifted", "none", "one axis"])
def test_one_rule_for_what_attention_shows_at_each_size(shown, rule):
    opened = patched_at_sizes(OPEN_QKV, [(6, 10), (9, 5), (12, 4)], None, attention_at(shown))
    (node,) = [node for node in opened.graph.node if node.op_type == "SwinAttention"]
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert {name: found[name] for name in rule} == rule


def test_a_graph_that_was_opened_is_opened_again():
    """As with --fp16. A window covers the first size, so that the bias is another one's; each name stands once."""
    sizes = [(12, 4), (6, 10), (9, 5)]
    once = patched_at_sizes(OPEN_QKV, sizes, None, attention_at(lambda h, w: seen(2, 2 if w > 4 else 0, 0, 0)))
    twice = patched_at_sizes(once, sizes, None, lambda fixed: fixed)
    names = [tensor.name for tensor in twice.graph.initializer]
    assert len(names) == len(set(names))
    x = np.random.default_rng(1).standard_normal((1, 24, 7, 9)).astype(np.float32)
    np.testing.assert_array_equal(run(twice, x), run(once, x))


@pytest.mark.parametrize(("shown", "words"), [
    (lambda h, w: seen(2 if h == 6 else 1, 2, 0, 1), r"attn: its shift is \[\(1, 2\), \(2, 2\)\] at sizes 6x10"),
    (lambda h, w: seen(2, 2, 0, int(h == 6)), "attn: it rolls before it pads at one of 6x10, 9x5, 12x4, and not"),
    (lambda h, w: {**seen(2, 2, 0, 1), "num_heads": 1 + (h == 9)}, "attn: its num_heads is 1 at 6x10 and 2 at 9x5")])
def test_attention_that_has_no_one_rule(shown, words):
    with pytest.raises(UserError, match=words):
        patched_at_sizes(OPEN_QKV, [(6, 10), (9, 5), (12, 4)], None, attention_at(shown))


def test_windows_that_cover_every_size_show_no_shift():
    with pytest.raises(UserError, match=r"attn: its windows of 4x4 cover an axis .* larger --probe-sizes"):
        patched_at_sizes(OPEN_QKV, [(6, 4), (9, 3)], None, attention_at(lambda h, w: seen(2, 0, 0, 0)))


# --- whole models --------------------------------------------------------------------------------------------


def timm_maps(pads: bool) -> torch.nn.Module:
    """Two stages of timm's Swin, for images of any size; with `pads` of any side, too."""
    zoo.make_torchvision_importable()
    torch.manual_seed(0)
    model = zoo.of_timm(zoo.TIMM_V1, depths=(2, 2), num_heads=(1, 2), dynamic_img_size=True)((128, 128))
    model.patch_embed.dynamic_img_pad = pads
    return zoo.randomized(zoo.Outputs(model, zoo.feature_maps))


def exported(model: torch.nn.Module, path: Path, size: tuple[int, int]) -> Path:
    onnx.save(zoo.export(model, torch.zeros(2, 3, *size), "torchscript", open_batch=True, open_sizes=True), path)
    return path


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    model = timm_maps(pads=True)
    return model, exported(model, tmp_path_factory.mktemp("open") / "m.onnx", (37, 54))


def add_all_of(path: Path, monkeypatch, *flags: str) -> Path:
    output = path.with_name("patched.onnx")
    monkeypatch.setattr(sys, "argv", ["add_all.py", "--onnx", str(path), "--output", str(output), *flags])
    add_all.main()
    return output


@torch.no_grad()
def assert_equals_pytorch(path: Path, model: torch.nn.Module, tolerance: float) -> None:
    """At sizes that it was not probed at: divided by windows, padded on both sides, covered by a window, and odd."""
    runner = session(onnx.load(path))
    for batch, height, width in ((1, 64, 64), (2, 61, 101), (1, 12, 75), (2, 99, 10)):
        x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))
        for actual, expected in zip(runner.run(None, {"input": x.numpy()}), model(x), strict=True):
            assert actual.shape == tuple(expected.shape)
            assert np.abs(actual - expected.numpy()).max() <= tolerance * float(expected.abs().max()), (height, width)


PROBES = ("--probe-sizes", "30x57,49x78,14x22", "--check-sizes", "32x32,41x50")


def test_one_patched_graph_is_right_at_every_size(maps, monkeypatch, capsys):
    model, path = maps
    patched = add_all_of(path, monkeypatch, *PROBES)
    said = capsys.readouterr().out
    assert "replaced 4 of 4 window attention" in said and "are one graph, with height and width open" in said
    assert "check, 41x50, batch 3" in said
    counts = plugin_counts(onnx.load(patched))
    assert counts["SwinAttention"] == counts["SwinMlp"] == 4 and counts["SwinPatchEmbed"] == 1
    assert not {"Pad", "Slice", "Concat", "Shape"} & {node.op_type for node in onnx.load(patched).graph.node}
    assert_equals_pytorch(patched, model, TOLERANCE)


def test_in_fp16(maps, monkeypatch):
    """The limit is the script's own for FP16."""
    model, path = maps
    assert_equals_pytorch(add_all_of(path, monkeypatch, "--fp16", *PROBES), model, add_all.TOLERANCE)


@torch.no_grad()
def test_in_int8(maps, tmp_path, monkeypatch, capsys):
    """Calibrated at two sizes, the graph of INT8 nodes is close to PyTorch at these and at others."""
    model, path = maps
    cache, output = tmp_path / "m.cache", tmp_path / "m_int8.onnx"
    flags = ["--onnx", str(path), "--cache", str(cache)]
    quant.main([*flags, "--sizes", "48x64,61x101", "--narrow", "--method", "minmax", "--batches", "2", "--batch-size",
                "4", "--max-rms", "1"])
    said = capsys.readouterr().out
    assert "on 8 images of 48x64" in said and "on 8 images of 61x101" in said and "20 scales" in said
    monkeypatch.setattr(sys, "argv", ["add_int8.py", *flags, "--output", str(output), *PROBES])
    add_int8.main()
    assert "check, 41x50, in FP16: rms error" in capsys.readouterr().out
    int8 = onnx.load(output)
    counts = plugin_counts(int8)
    assert counts["SwinAttentionInt8"] == 4 and counts["SwinLinearInt8"] == 16
    assert [dim.dim_param for dim in int8.graph.input[0].type.tensor_type.shape.dim] == ["batch", "", "height", "width"]
    runner = session(int8)
    for height, width in ((61, 101), (99, 34)):
        x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))
        for actual, expected in zip(runner.run(None, {"input": x.numpy()}), model(x), strict=True):
            assert actual.shape == tuple(expected.shape)
            share = np.sqrt(np.mean((actual - expected.numpy()) ** 2) / float((expected**2).mean()))
            assert share < LARGEST_RMS, (height, width)
    with pytest.raises(UserError, match=r"m\.cache: was made for another graph; give the one that quant\.py read"):
        monkeypatch.setattr(sys, "argv", ["add_int8.py", *flags, "--input-range", "0..1", "--output", str(output)])
        add_int8.main()


def test_sizes_to_calibrate_at_are_asked_for(maps, tmp_path):
    cache = tmp_path / "m.cache"
    with pytest.raises(UserError, match=r"m\.onnx: leaves height and width open; say with --sizes which sizes"):
        quant.main(["--onnx", str(maps[1]), "--cache", str(cache)])
    fixed = tmp_path / "fixed.onnx"
    onnx.save(sized(onnx.load(maps[1]), (32, 32)), fixed)
    with pytest.raises(UserError, match="is of one image size; --sizes is of graphs that leave it open"):
        quant.main(["--onnx", str(fixed), "--cache", str(cache), "--sizes", "32x32"])
    assert not cache.exists()


def test_what_an_exporter_froze_is_told_by_the_models_own_outputs(tmp_path, monkeypatch):
    """torchvision pads and shifts by branches on the size, of which the exporter follows one. The graph runs at every
    size, and patched it computes what it computed before; that this is wrong, only the model can tell."""
    torch.manual_seed(0)
    from torchvision.models.swin_transformer import SwinTransformer

    model = zoo.randomized(SwinTransformer([4, 4], 32, [2, 2], [1, 2], [4, 4], num_classes=10))
    path = exported(model, tmp_path / "m.onnx", (76, 88))
    probes = ("--probe-sizes", "44x60,76x52,28x36", "--check-sizes", "60x92")
    files = []
    for size in ((76, 88), (16, 48)):  # a window covers the second stage's height, which is then not shifted
        x = torch.randn(1, 3, *size)
        files.append(tmp_path / f"{size[0]}.npz")
        with torch.no_grad():
            np.savez(files[-1], input=x.numpy(), output_0=model(x).numpy())
    with pytest.raises(UserError, match=r"m\.onnx: its output output_0 differs by .* for the 1x3x16x48 images of "
                                        r".*16\.npz: its exporter froze what depends on the size"):
        add_all_of(path, monkeypatch, *probes, "--expected", *map(str, files))
    assert not (tmp_path / "patched.onnx").exists()
    add_all_of(path, monkeypatch, *probes, "--expected", str(files[0]))
    np.savez(files[0], image=np.zeros(3))
    with pytest.raises(UserError, match="holds image; it needs `input` and at least one of output_0"):
        add_all_of(path, monkeypatch, *probes, "--expected", str(files[0]))


def test_a_graph_that_runs_at_one_size_only(tmp_path, monkeypatch):
    """The official code makes numbers of the sizes in window_reverse."""
    import other_sources

    torch.manual_seed(0)
    model = zoo.randomized(other_sources.Detector(depths=(2,), heads=(1,)))
    path = exported(model, tmp_path / "m.onnx", (60, 76))
    with pytest.raises(UserError, match=r"with images of 36x44: .* froze a number that depends on the size") as refusal:
        add_all_of(path, monkeypatch, "--check-sizes", "36x44")
    assert "\n" not in str(refusal.value) and not (tmp_path / "patched.onnx").exists()


def test_flags_of_open_sizes_on_a_graph_of_one_size(maps, tmp_path, monkeypatch):
    fixed = tmp_path / "fixed.onnx"
    onnx.save(sized(onnx.load(maps[1]), (32, 32)), fixed)
    with pytest.raises(UserError, match="is of one image size; --probe-sizes, --check-sizes and --expected are of"):
        add_all_of(fixed, monkeypatch, *PROBES)


def test_default_sizes_are_of_the_graphs_own_patches(maps):
    """And no patch divides those that are probed, so that padding to patches shows."""
    assert sizes_in_pixels(onnx.load(maps[1]), [(51, 83), (56, 56)]) == [(202, 330), (224, 224)]
    assert sizes_in_pixels(IDENTITY, [(51, 83)]) == [(51, 83)]
