"""Graphs as others export them: what follows the classifier, several outputs, preprocessing inside, unsound ones, ones
that onnxruntime has optimised, and ones too large for one file."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import add_all
import add_int8
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from to_fp16 import convert_and_check, converted, to_fp16
from torch import nn

from config import get_config
from data.images import IMAGENET_MEAN, IMAGENET_STD
from data.photo_crops import crops, held_out_batch
from graphs import files
from graphs.files import load_onnx, save_onnx
from graphs.outputs import classifiers, compared, derived, refuse_unsound
from graphs.patterns import head
from graphs.pictures import image_input, picture, sized
from graphs.sessions import session
from graphs.standard import standard
from graphs.surgeon import check, patch
from graphs.tidy import tidy
from models.build import build_model
from Results.timing import Measurements
from TensorRT.INT8 import quant
from TensorRT.INT8.qdq import all_parts, blocks_of, quantised, quantised_tensors
from utils import ROOT, UserError

SIZE = 56
MEAN, STD = (torch.tensor(numbers).view(3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))


@pytest.fixture(scope="module")
def swin(randomize) -> nn.Module:
    """Two stages of two blocks of V1 with random weights."""
    opts = ["DATA.IMG_SIZE", str(SIZE), "MODEL.SWIN.DEPTHS", "[2, 2]", "MODEL.SWIN.NUM_HEADS", "[1, 2]"]
    opts += ["MODEL.SWIN.PRETRAINED_WINDOW_SIZES", "[0, 0]"]
    return randomize(build_model(get_config(ROOT / "models" / "swin_micro.yaml", opts))).fold_constants().eval()


class Wrapped(nn.Module):
    """before(image) -> model -> after(logits)"""

    def __init__(self, model: nn.Module, before: Callable = lambda x: x, after: Callable = lambda y: y) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x: torch.Tensor):
        return self.after(self.model(self.before(x)))


def traced(model: nn.Module, folder: Path, outputs: tuple[str, ...] = ("logits",), example: torch.Tensor | None = None,
           fixed: bool = False) -> onnx.ModelProto:
    path = folder / "traced.onnx"
    example = torch.zeros(2, 3, SIZE, SIZE) if example is None else example
    torch.onnx.export(model.eval(), (example,), str(path), dynamo=False, opset_version=17, input_names=["input"],
                      output_names=list(outputs),
                      dynamic_axes=None if fixed else {name: {0: "batch"} for name in ("input", *outputs)})
    return onnx.load(path)


# --- what follows the classifier -----------------------------------------------------------------------------

TAILS = {
    "softmax": (lambda y: y.softmax(-1), ("p",)), "sigmoid": (lambda y: y.sigmoid(), ("p",)),
    "label": (lambda y: (y.argmax(-1), y), ("label", "logits")), "top5": (lambda y: y.topk(5), ("scores", "labels")),
    "scores in 256 steps": (lambda y: (y.softmax(-1) * 255).round().to(torch.uint8), ("p",)),
    "scores in FP16": (lambda y: y.softmax(-1).half(), ("p",)),
    "label alone": (lambda y: y.argmax(-1), ("label",)),
}


@pytest.mark.parametrize("tail", TAILS)
def test_the_same_islands_and_products_whatever_follows_the_classifier(tail, swin, tmp_path):
    after, outputs = TAILS[tail]
    plain, model = traced(Wrapped(swin), tmp_path), traced(Wrapped(swin, after=after), tmp_path, outputs)
    assert len(classifiers(model)) == 1
    assert derived(model, classifiers(model)) >= set(outputs) - {"logits"}
    ops = [node.op for node in head(tidy(plain))]
    assert [node.op for node in head(tidy(model))][:len(ops)] == ops == ["ReduceMean", "MatMul", "Add"]
    patched, _ = patch(model, add_all.STEPS)
    fp16 = convert_and_check(patched, ["head"], checked=True)
    bound = [node.op_type for node in fp16.graph.node if node.name.endswith("/fp32")]
    assert bound[:3] == ops
    assert not {"ArgMax", "TopK"} & set(bound)  # TensorRT binds only layers of floating numbers
    check(model, patched)
    assert all_parts(blocks_of(tidy(model))) == all_parts(blocks_of(tidy(plain)))


def test_agreement_is_of_classes_not_of_sorted_ranks(swin, tmp_path):
    """Scores that TopK has sorted are largest at place 0 whatever the classes are."""
    model = traced(Wrapped(swin, after=lambda y: y.topk(5)), tmp_path, ("scores", "labels"))
    graph = tidy(model)
    ruined = quantised(graph, dict.fromkeys(quantised_tensors(blocks_of(graph)), np.float32(1e-4)), set())
    with pytest.raises(UserError, match="too far from FP32"):
        quant.check(model, ruined)
    images = {"input": held_out_batch(16, SIZE)[0]}
    same = np.mean(session(model).run(None, images)[1][:, 0] == session(ruined).run(None, images)[1][:, 0])
    assert same < 0.9


def test_every_output_is_compared_with_its_own_numbers():
    original = {"logits": np.array([[1.0, 2.0]]), "features": np.array([[100.0, 200.0]])}
    for name, changed in (("features", {**original, "features": original["features"] * 1.5}),
                          ("logits", {**original, "logits": np.array([[1.0, np.nan]])})):
        figures = {figure.name: figure for figure in compared(original, changed, ["logits"])}
        assert [name for name, figure in figures.items() if not figure.within(0.01)] == [name]
    assert compared(original, original, ["logits"])[0].agreement == 1


# --- what the graph reads ------------------------------------------------------------------------------------

FORMS = {
    "0..255": (lambda x: (x / 255 - MEAN) / STD, lambda pixels: pixels.transpose(0, 3, 1, 2).astype(np.float32)),
    "0..255 at once": (lambda x: (x - 255 * MEAN) / (255 * STD),
                       lambda pixels: pixels.transpose(0, 3, 1, 2).astype(np.float32)),
    "0..1": (lambda x: (x - MEAN) / STD, lambda pixels: pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255),
    "BGR": (lambda x: (x.flip(1) / 255 - MEAN) / STD,
            lambda pixels: pixels[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)),
    "NHWC": (lambda x: (x.permute(0, 3, 1, 2) / 255 - MEAN) / STD, lambda pixels: pixels.astype(np.float32)),
    "uint8, NHWC, BGR": (lambda x: (x.permute(0, 3, 1, 2).flip(1).float() / 255 - MEAN) / STD,
                         lambda pixels: pixels[..., ::-1]),
    "uint8": (lambda x: (x.float() / 255 - MEAN) / STD, lambda pixels: pixels.transpose(0, 3, 1, 2)),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_are_fed_as_the_graph_reads_them(form, swin, tmp_path):
    before, expected = FORMS[form]
    pixels = crops("test", 2, SIZE)[0]
    example = torch.from_numpy(np.ascontiguousarray(expected(pixels)))
    model = traced(Wrapped(swin, before), tmp_path, example=example)
    fed = picture(model).of(pixels)
    np.testing.assert_allclose(fed, expected(pixels), rtol=1e-6, strict=True)
    with torch.inference_mode():
        logits = swin(torch.from_numpy(held_out_batch(2, SIZE)[0])).numpy()
    np.testing.assert_allclose(session(model).run(None, {"input": fed})[0], logits, atol=1e-4)
    fp16 = converted(model, ["head"])
    first = next(node for node in fp16.model.graph.node if node.op_type == "Cast" and node.attribute[0].i == 10)
    assert fp16.tidied.graph.input[0].name not in first.input, "the image stays FP32 until it is normalised"


def test_a_size_that_is_open_is_asked_for():
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "c", "h", "w"]) for name in "xy"]
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:]))
    with pytest.raises(UserError, match="give the size with --size"):
        sized(model)
    assert image_input(sized(model, (32, 48)))[1] == [None, 3, 32, 48]


# --- unsound graphs ------------------------------------------------------------------------------------------


class Frozen(nn.Module):
    """window_reverse as the official code writes it: int() of a shape becomes a constant in the trace."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = x.reshape(x.shape[0], 3, 2, SIZE // 2, 2, SIZE // 2).permute(0, 2, 4, 1, 3, 5)
        windows = windows.reshape(-1, 3, SIZE // 2, SIZE // 2)
        batch = int(windows.shape[0] / 4)
        return windows.reshape(batch, -1, 3, SIZE, SIZE // 4).mean((1, 3, 4))


def test_a_frozen_batch_is_refused_with_the_reason_and_taken_where_it_is_fixed(tmp_path, swin):
    model = traced(Frozen(), tmp_path)
    with pytest.raises(UserError, match=r"frozen when it was exported.*export it with a fixed batch"):
        refuse_unsound(model)
    fixed = traced(Wrapped(swin), tmp_path, fixed=True)
    refuse_unsound(fixed)
    assert picture(fixed).batch == 2


def test_random_nodes_and_nan_are_refused_with_their_names(swin, tmp_path):
    noisy = traced(Wrapped(swin, lambda x: x + torch.rand_like(x)), tmp_path)
    with pytest.raises(UserError, match=r"RandomUniformLike\) gives something else at each run"):
        refuse_unsound(noisy)
    model = traced(Wrapped(swin), tmp_path)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
    weight.CopyFrom(numpy_helper.from_array(np.full(weight.dims, np.nan, np.float32), weight.name))
    with pytest.raises(UserError, match=f"gives NaN or infinity in logits.*its weight .*{weight.name} holds NaN"):
        refuse_unsound(model)


# --- other tools' operators ----------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [13, 17])
def test_what_onnxruntime_has_optimised_is_patched_as_the_plain_graph(opset, swin, tmp_path):
    plain, path = tmp_path / "plain.onnx", tmp_path / "optimised.onnx"
    torch.onnx.export(swin, (torch.zeros(2, 3, SIZE, SIZE),), str(plain), dynamo=False, opset_version=opset,
                      input_names=["input"], output_names=["logits"],
                      dynamic_axes={name: {0: "batch"} for name in ("input", "logits")})
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(path), 4
    onnxruntime.InferenceSession(str(plain), options, ["CPUExecutionProvider"])
    model = onnx.load(path)
    assert any(node.domain == "com.microsoft" for node in model.graph.node)
    patched, reports = patch(model, add_all.STEPS)
    _, expected = patch(onnx.load(plain), add_all.STEPS)
    found, wanted = ({report.what: report.lines() for report in made} for made in (reports, expected))
    if opset < 17:  # there onnxruntime moves a Transpose into the embedding's LayerNorm, which stays in operators
        for what in ("patch embedding", "LayerNorm"):
            found.pop(what), wanted.pop(what)
    assert found == wanted
    assert {node.domain for node in patched.graph.node} <= {"", "swin"}
    check(model, patched)


def contrib(op: str, shapes: list[list[int]], **attributes: object) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(len(shapes))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], op, domain="com.microsoft", **attributes)], "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip(names, shapes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17),
                                                                 helper.make_opsetid("com.microsoft", 1)])


@pytest.mark.parametrize(("op", "shapes", "attributes"), [
    ("Gelu", [[2, 5, 8]], {}), ("BiasGelu", [[2, 5, 8], [8]], {}), ("FastGelu", [[2, 5, 8], [8]], {}),
    ("FastGelu", [[2, 5, 8]], {}), ("QuickGelu", [[2, 5, 8]], {"alpha": 1.5}),
    ("SkipLayerNormalization", [[2, 5, 8], [2, 5, 8], [8], [8], [8]], {"epsilon": 1e-3}),
    ("FusedMatMul", [[2, 5, 8], [2, 6, 8]], {"transB": 1, "alpha": 0.5}),
    ("FusedMatMul", [[3, 8, 5], [3, 8, 6]], {"transA": 1}),
    ("FusedGemm", [[5, 8], [8, 6], [6]], {"activation": "Relu", "alpha": 2.0}),
    ("FusedConv", [[1, 3, 8, 8], [4, 3, 4, 4], [4]], {"activation": "Relu", "strides": [4, 4]}),
])
def test_a_fused_operator_means_what_onnxruntime_computes(op, shapes, attributes):
    model = contrib(op, shapes, **attributes)
    plain = standard(model)
    assert {node.domain for node in plain.graph.node} == {""}
    rng = np.random.default_rng(0)
    inputs = {f"x{i}": rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)}
    expected, actual = (session(form).run(None, inputs)[0] for form in (model, plain))
    # FastGelu's tanh is an approximation by itself in onnxruntime, some 1e-6 off.
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_an_operator_that_is_not_known_is_named():
    model = contrib("FusedMatMul", [[2, 5, 8], [2, 6, 8]], transBatchA=1)
    model.graph.node[0].op_type = "Attention"
    with pytest.raises(UserError, match=r"its node FusedMatMul \(com.microsoft:Attention: .* no standard operator"):
        standard(model)


# --- files and figures ---------------------------------------------------------------------------------------


def test_what_one_file_cannot_hold_has_its_weights_beside_it(swin, tmp_path, monkeypatch):
    """The limit, 2 GiB, lowered: read, run, patched, converted and quantised as if it were larger."""
    model = traced(Wrapped(swin), tmp_path)
    x = {"input": held_out_batch(2, SIZE)[0]}
    (expected,) = session(model).run(None, x)
    monkeypatch.setattr(files, "LARGEST_MODEL", 10_000)
    save_onnx(model, tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx").stat().st_size < (tmp_path / "large.onnx.data").stat().st_size
    large = load_onnx(tmp_path / "large.onnx")
    np.testing.assert_array_equal(session(large).run(None, x)[0], expected)
    patched, _ = patch(large, add_all.STEPS)
    check(large, patched)
    assert to_fp16(patched, ["head"]).graph.node


@pytest.mark.parametrize(("output", "counted"), [([1.0, 2.0], True), ([1.0, np.nan], False), ([np.inf, 1.0], False)])
def test_the_time_of_a_run_that_gives_no_numbers_does_not_count(output, counted, tmp_path):
    rows = Measurements(tmp_path, {"run_id": "x"}, {}, ())
    assert rows.counts("torch-eager fp16 b1", np.array(output)) == counted
    if counted:
        rows.end()
    else:
        with pytest.raises(UserError, match="1 of 1 combinations failed: torch-eager fp16 b1"):
            rows.end()


def test_several_outputs_of_an_int8_graph_are_judged_each(swin, tmp_path, monkeypatch):
    """A feature map that is wrong beside right logits is refused."""
    model = traced(Wrapped(swin), tmp_path)
    features = next(node for node in reversed(model.graph.node) if node.op_type == "LayerNormalization").output[0]
    model.graph.output.append(helper.make_tensor_value_info(features, TensorProto.FLOAT, None))
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    for node in wrong.graph.node:
        node.output[:] = ["right" if name == features else name for name in node.output]
        node.input[:] = ["right" if name == features else name for name in node.input]
    wrong.graph.initializer.append(numpy_helper.from_array(np.float32(1.64), "factor"))
    wrong.graph.node.append(helper.make_node("Mul", ["right", "factor"], [features]))
    with pytest.raises(UserError, match=r"too far from FP32 in .*64\.0% rms"):
        quant.check(model, wrong)
    monkeypatch.setattr(add_int8, "CHECKED_IMAGES", 2)
    graph = tidy(model)
    scales = dict.fromkeys(quantised_tensors(blocks_of(graph)), np.float32(0.05))
    with pytest.raises(UserError, match=r"the INT8 graph differs.*in .*LayerNorm"):
        add_int8.check(quantised(graph, scales, set()), model, wrong, "x")
