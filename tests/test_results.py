"""The table and the picture that are made of results."""
from __future__ import annotations

import sys

import numpy as np
import pytest

from utils import LATENCY_COLUMNS, ROOT, UserError, append_rows, cpu_name

sys.path.insert(1, str(ROOT / "Results"))
import draw
import table


def row(**values: str) -> dict[str, str]:
    return {**dict.fromkeys(LATENCY_COLUMNS, ""), "model": "m", "gpu": cpu_name(), "runner": "ort-cpu",
            "precision": "fp32", "batch": "1", "images_per_s": "10", **values}


@pytest.fixture
def results(tmp_path):
    append_rows(tmp_path / "latency.csv", LATENCY_COLUMNS, [
        row(run_id="1", latency_ms_median="11.111"), row(run_id="1", batch="8", latency_ms_median="88.888"),
        row(run_id="2", latency_ms_median="22.222", max_abs_err="0.000123"),
        row(run_id="3", gpu="another GPU", latency_ms_median="33.333"),
        row(run_id="3", model="other", latency_ms_median="44.444")])
    return tmp_path


def test_table_shows_the_newest_of_what_this_machine_measured(results, capsys):
    table.main(["m", "--results", str(results)])
    shown = capsys.readouterr().out
    assert "22.22" in shown and "88.89" in shown and "1.2e-04" in shown
    assert not any(hidden in shown for hidden in ("11.11", "33.33", "44.44"))


@pytest.mark.parametrize("arguments, numbers", [
    (["--all"], {"22.22", "88.89", "33.33", "44.44"}),
    (["--run", "1"], {"11.11", "88.89"}),
    (["--run", "3", "m"], {"33.33"}),
])
def test_table_of_all_machines_or_of_one_run(results, capsys, arguments, numbers):
    table.main([*arguments, "--markdown", "--results", str(results)])
    cells = {cell.strip() for cell in capsys.readouterr().out.replace("\n", "|").split("|")}
    assert {cell for cell in cells if "." in cell and cell[0].isdigit() and "e" not in cell} == numbers


def test_table_without_rows_says_so(tmp_path):
    with pytest.raises(UserError, match=r"no rows of m of run 7; run_all\.sh measures them"):
        table.main(["m", "--run", "7", "--results", str(tmp_path)])


def test_answer_is_the_class_and_its_probability():
    names = ["cat", "dog", "owl"]
    assert draw.answer(np.log(np.array([0.1, 0.7, 0.2])) + 1000, names) == "dog 70 %"
    assert draw.answer(np.array([0.1, np.nan, 0.2]), names) == "NaN or infinity"


def test_picture_shows_the_images_and_colours_mistakes():
    images, labels = np.zeros((2, 3, 8, 8), np.float32), np.array([0, 1])
    torch_logits = np.array([[5.0, 0.0], [0.0, 5.0]])
    figure = draw.draw(images, labels, {"PyTorch": torch_logits, "ONNX": torch_logits[::-1]}, ["cat", "dog"], "title")
    first, second = figure.axes[:2]
    assert np.allclose(first.images[0].get_array(), np.array([0.485, 0.456, 0.406]))  # zero is ImageNet's mean
    assert first.get_title(loc="left") == "label: cat"
    told = [(text.get_text().split(), text.get_color()) for text in (*first.texts, *second.texts)]
    assert told == [(["PyTorch", "cat", "99", "%"], draw.RIGHT), (["ONNX", "dog", "99", "%", "5e+00"], draw.WRONG),
                    (["PyTorch", "dog", "99", "%"], draw.RIGHT), (["ONNX", "cat", "99", "%", "5e+00"], draw.WRONG)]
