"""Where the error of an engine starts: compare_layers.py as far as a machine without TensorRT can test it."""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphs.facts import built_from, carried_over, of_onnx, write_beside
from TensorRT import compare_layers
from utils import ROOT, UserError


def shell(*command: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd="/")


def one_line_error(done: subprocess.CompletedProcess) -> str:
    """The error that a script ended with; fails unless it is one line and the status says failure."""
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def small_graph(tmp_path):
    """y = relu(x W) W, one integer branch, the FP32 file and an FP16 one whose cast stands at the end of the list."""
    weights = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)

    def save(name: str, element: int, nodes: list) -> Path:
        values = numpy_helper.from_array(weights.astype(helper.tensor_dtype_to_np_dtype(element)), "W")
        ports = [[helper.make_tensor_value_info(port, TensorProto.FLOAT, ["batch", 8])] for port in ("input", "logits")]
        model = helper.make_model(helper.make_graph(nodes, "g", *ports, [values]),
                                  opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = tmp_path / name
        onnx.save(model, str(path))
        return path

    def node(op: str, inputs: list[str], output: str, **attributes):
        return helper.make_node(op, inputs, [output], **attributes)

    body = [node("Shape", ["h"], "shape"), node("Relu", ["h"], "r")]
    save("m.onnx", TensorProto.FLOAT, [node("MatMul", ["input", "W"], "h"), *body, node("MatMul", ["r", "W"], "z"),
                                       node("Identity", ["z"], "logits")])
    save("m_fp16.onnx", TensorProto.FLOAT16, [
        node("MatMul", ["half", "W"], "h"), *body, node("MatMul", ["r", "W"], "z"),
        node("Cast", ["z"], "logits", to=TensorProto.FLOAT), node("Cast", ["input"], "half", to=TensorProto.FLOAT16)])
    model = onnx.load(str(tmp_path / "m_fp16.onnx"))
    onnx.save(carried_over(model, tmp_path / "m.onnx"), str(tmp_path / "m_fp16.onnx"))
    np.savez(tmp_path / "x.npz", input=np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32))
    return tmp_path, weights


def prepare(folder: Path, graph: str, *flags: str) -> subprocess.CompletedProcess:
    return shell(sys.executable, ROOT / "TensorRT/compare_layers.py", "prepare", "--onnx", folder / graph,
                 "--input", folder / "x.npz", "--output", folder, *flags)


@pytest.mark.parametrize("graph", ["m", "m_fp16"])
def test_prepare_stores_what_the_tensors_are_in_fp32(small_graph, graph):
    folder, weights = small_graph
    done = prepare(folder, f"{graph}.onnx", "--count", "2")
    assert done.returncode == 0, done.stderr
    with np.load(folder / f"{graph}_layers.npz") as file:
        stored = dict(file)
    x = stored["input"]
    assert len(x) == 2 and list(stored["names"]) == ["h", "r", "z", "logits"]  # these always, and last
    last = "Cast" if graph.endswith("fp16") else "Identity"
    assert list(stored["operators"]) == ["MatMul", "Relu", "MatMul", last]
    assert list(stored["depths"]) == [0, 2, 3, 4]
    y = np.maximum(x @ weights, 0) @ weights
    for index, expected in enumerate((x @ weights, np.maximum(x @ weights, 0), y, y)):
        np.testing.assert_allclose(stored[f"tensor_{index}"], expected, atol=1e-5)
    outputs = onnx.load(str(folder / f"{graph}_layers.onnx")).graph.output
    element = TensorProto.FLOAT16 if graph.endswith("fp16") else TensorProto.FLOAT
    assert [(value.name, value.type.tensor_type.elem_type) for value in outputs] == [
        ("logits", TensorProto.FLOAT), ("h", element), ("r", element), ("z", element)]


def test_prepare_runs_plugin_nodes_by_their_meaning(small_graph):
    folder, weights = small_graph
    for name, element in (("p", TensorProto.FLOAT), ("p_fp16", TensorProto.FLOAT16)):
        model = onnx.load(str(folder / f"{name.replace('p', 'm', 1)}.onnx"))
        relu = next(node for node in model.graph.node if node.op_type == "Relu")
        relu.op_type, relu.domain = "SwinFNorm", "swin"
        relu.attribute.append(helper.make_attribute("epsilon", 1e-12))
        model.opset_import.append(helper.make_opsetid("swin", 1))
        model.graph.value_info.append(helper.make_tensor_value_info("h", element, ["batch", 8]))
        if name == "p_fp16":
            carried_over(model, folder / "p.onnx")
        onnx.save(model, str(folder / f"{name}.onnx"))
        done = prepare(folder, f"{name}.onnx")
        assert done.returncode == 0, done.stderr
        outputs = onnx.load(str(folder / f"{name}_layers.onnx")).graph.output
        assert {value.type.tensor_type.elem_type for value in outputs[1:]} == {element}
        with np.load(folder / f"{name}_layers.npz") as stored:
            h = stored["input"] @ weights
            assert list(stored["operators"])[:3] == ["MatMul", "SwinFNorm", "MatMul"]
            np.testing.assert_allclose(stored["tensor_1"], h / np.linalg.norm(h, axis=-1, keepdims=True), atol=1e-6)


def test_an_fp16_graph_without_its_fp32_graph_is_refused(small_graph):
    folder, _ = small_graph
    (folder / "m.onnx").unlink()
    assert "the FP32 graph that it was made from is neither beside it" in one_line_error(
        prepare(folder, "m_fp16.onnx"))


def test_the_reference_of_a_layers_engine_is_found_by_the_graph_that_it_was_built_from(small_graph, monkeypatch):
    folder, _ = small_graph
    (folder / "onnx").mkdir()
    for graph in ("m", "m_fp16"):
        assert prepare(folder, f"{graph}.onnx", "--output", folder / "onnx").returncode == 0
    monkeypatch.setattr(compare_layers, "ROOT", folder)
    (folder / "a.plan").write_bytes(b"ftrt")
    with pytest.raises(UserError, match=r"a\.plan: does not say what it was built from"):
        compare_layers.layers_reference(folder / "a.plan")
    write_beside(folder / "a.plan", built_from(of_onnx(folder / "onnx/m_fp16_layers.onnx"), "x.onnx"))
    assert compare_layers.layers_reference(folder / "a.plan") == folder / "onnx/m_fp16_layers.npz"


def test_prepare_chooses_tensors(small_graph):
    folder, _ = small_graph
    for flags, names in ((["--every", "2"], ["h", "z"]), (["--match", "r|z"], ["r", "z"])):
        assert prepare(folder, "m.onnx", *flags).returncode == 0
        with np.load(folder / "m_layers.npz") as file:
            assert list(file["names"]) == [*names, "logits"]
    assert "no tensor to compare" in one_line_error(prepare(folder, "m.onnx", "--match", "nothing"))
    assert "'0': not a whole number above zero" in one_line_error(prepare(folder, "m.onnx", "--every", "0"))
    for flag in ("--every", "--count"):
        done = shell(sys.executable, ROOT / "TensorRT/emulate_fp16.py", "--onnx", folder / "m.onnx", flag, "0")
        assert "'0': not a whole number above zero" in one_line_error(done)
    assert "--match '(': is no regular expression" in one_line_error(prepare(folder, "m.onnx", "--match", "("))


def test_images_of_another_size_are_refused(small_graph, tmp_path):
    folder, _ = small_graph
    np.savez(tmp_path / "other.npz", input=np.zeros((1, 3, 8, 8), np.float32))
    for script, *first in (("compare_layers.py", "prepare"), ("emulate_fp16.py",)):
        done = shell(sys.executable, ROOT / "TensorRT" / script, *first, "--onnx", folder / "m.onnx", "--input",
                     tmp_path / "other.npz")
        assert re.search(r"other\.npz: holds images \[3, 8, 8\], and .*m\.onnx takes \[", one_line_error(done))


def test_compare_counts_what_is_not_finite_and_measures_the_rest():
    reference = np.array([[1.0, -4.0], [2.0, 0.5]], np.float32)
    output = np.array([1.5, -4.0, np.nan, np.inf], np.float16)
    assert compare_layers.compare(output, reference) == {
        "max_abs_ref": "4", "max_abs_err": "0.5", "rel_err": "0.125", "nan": "1", "inf": "1"}
    assert compare_layers.compare(np.full(4, np.nan), reference)["rel_err"] == "inf"


def layer_rows(errors: list[float], nan_from: int) -> list[dict[str, str]]:
    return [{"depth": str(3 * index), "tensor": f"/layers.{index}/MatMul_output_0", "op": "MatMul", "shape": "1x2",
             "max_abs_ref": "4", "max_abs_err": str(4 * error), "rel_err": str(error),
             "nan": str(int(index >= nan_from)), "inf": "0"} for index, error in enumerate(errors)]


def test_report_names_the_first_and_the_worst():
    rows = layer_rows([1e-4, 2e-2, 5e-2, 1e-3], nan_from=99)
    assert compare_layers.first_offender(rows, 0.01) is rows[1]
    assert compare_layers.worst(rows, 2) == [rows[2], rows[1]]
    assert compare_layers.first_offender(rows, 0.1) is None
    rows = layer_rows([1e-4, 2e-2, 5e-2, 1e-3], nan_from=3)
    assert compare_layers.worst(rows, 1) == [rows[3]]  # NaN is worse than any error
    assert "1 with NaN or infinity" in compare_layers.report(rows, 0.01)


def test_tensors_of_graphs_of_different_length_stand_side_by_side():
    def rows(*names: str) -> list[dict[str, str]]:
        return [{"tensor": name} for name in names]

    blocks, (x, y) = compare_layers.positions([
        rows("/patch_embed/proj/Conv", "/layers.0/blocks.0/a", "/layers.0/blocks.0/b", "/layers.0/downsample/a",
             "/layers.1/blocks.0/a", "/layers.1/blocks.10/a", "logits"),
        rows("/layers.0/blocks.0/b", "/layers.1/blocks.2/a", "/layers.1/blocks.10/b", "/head/Gemm")])
    assert blocks == ["patch embedding", "0.0", "0>", "1.0", "1.2", "1.10", "head"]
    np.testing.assert_allclose(x, [0.5, 1.25, 1.75, 2.5, 3.5, 5.5, 6.5])
    np.testing.assert_allclose(y, [1.5, 4.5, 5.5, 6.5])


def test_labels_are_what_tells_tables_apart():
    names = ["layers_m_trained_fp16", "layers_m_trained_attention_fp16"]
    assert compare_layers.labels([Path(f"{name}.csv") for name in names]) == ["fp16", "attention_fp16"]
    assert compare_layers.labels([Path("layers_m.csv"), Path("layers_m_fp16.csv")]) == ["m", "m_fp16"]
    assert compare_layers.labels([Path("layers_m.csv")]) == ["m"]


def test_plot_draws_tables_and_refuses_others(tmp_path):
    a, b = tmp_path / "layers_a.csv", tmp_path / "layers_b.csv"
    compare_layers.write_table(a, layer_rows([0.0, 1e-4, 2e-2], 2))
    compare_layers.write_table(b, layer_rows([1e-5], 9))
    script, picture = ROOT / "TensorRT/compare_layers.py", tmp_path / "out.png"
    for flags in ([a, b], ["--panel", "one", a, "--panel", "two", b, a]):
        picture.unlink(missing_ok=True)
        done = shell(sys.executable, script, "plot", *flags, "--output", picture)
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert picture.read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for other, problem in ((tmp_path / "other.csv", ": is not a table of compare_layers.py run"),
                           (picture, ":1: is not UTF-8 text")):
        assert f"{other.name}{problem}" in one_line_error(shell(sys.executable, script, "plot", other))
    assert "no table" in one_line_error(shell(sys.executable, script, "plot", "--panel", "title"))
