"""The table and the picture that are made of results."""
from __future__ import annotations

import csv
import re

import numpy as np
import pytest

from graphs.facts import Facts
from Results import draw as draw_script
from Results import draw_images as draw
from Results import report, table
from Results.tables import (
    ACCURACY_COLUMNS,
    LATENCY_COLUMNS,
    MEMORY_COLUMNS,
    RESULTS,
    append_rows,
    cpu_name,
    timing_doubt,
)
from utils import ROOT, UserError


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


def test_table_tells_apart_what_is_not_the_same_measurement(tmp_path, capsys):
    append_rows(tmp_path / "latency.csv", LATENCY_COLUMNS, [
        row(run_id="1", precision="fp32", cuda_graph="yes", latency_ms_median="11.11"),
        row(run_id="1", precision="fp32", cuda_graph="no", latency_ms_median="22.22"),
        row(run_id="1", precision="fp16", cuda_graph="yes", latency_ms_median="33.33")])
    append_rows(tmp_path / "accuracy.csv", ACCURACY_COLUMNS, [
        {**dict.fromkeys(ACCURACY_COLUMNS, ""), "model": "m", "gpu": cpu_name(), "runner": "onnx", "file": "m.onnx",
         "precision": "fp32", "batch": batch, "top1": "0.9", "agreement": share, "max_abs_err": "1e-3"}
        for batch, share in (("1", "0.8"), ("8", "0.7"))])
    table.main(["m", "--markdown", "--results", str(tmp_path)])
    shown = capsys.readouterr().out
    for batch, share in (("1", "80.00%"), ("8", "70.00%")):
        assert f"| onnx | m.onnx | fp32 | {batch} | 90.00% | {share} | 1.0e-03 | - |" in shown
    assert all(ms in shown for ms in ("11.11", "22.22", "33.33"))


@pytest.mark.parametrize("quartiles, load, doubt", [
    (("10", "10.9"), "1.4", ""), (("10", "11.1"), "1.4", "busy machine? quartiles 11% of the median apart"),
    (("10", "10"), "1.6", "busy machine? load 1.6 a processor"), (("", ""), "", ""),
    (("9", "12"), "3", "busy machine? quartiles 30% of the median apart, load 3.0 a processor"),
])
def test_a_time_of_a_busy_machine_is_told(tmp_path, capsys, quartiles, load, doubt):
    measured = row(run_id="1", latency_ms_median="10", latency_ms_p25=quartiles[0], latency_ms_p75=quartiles[1],
                   load=load, images="24")
    assert timing_doubt(measured) == doubt
    append_rows(tmp_path / "latency.csv", LATENCY_COLUMNS, [measured])
    table.main(["m", "--results", str(tmp_path)])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith(doubt or "-") and "  24  " in line


def test_table_shows_recorded_and_local_rows_together(results, capsys):
    """What was measured here is the newer, whatever its run is called; other machines' rows stay what they are."""
    with (results / "latency.csv").open(newline="") as file:
        recorded = list(csv.DictReader(file))
    (mine,) = [row for row in recorded if (row["gpu"], row["model"]) == (cpu_name(), "m")][-1:]
    append_rows(results / "local" / "latency.csv", LATENCY_COLUMNS, [{**mine, "latency_ms_median": "4321.5"}])
    table.main(["m", "--all", "--results", str(results)])
    told = capsys.readouterr().out
    assert "4321.50" in told
    assert all(f"GPU: {row['gpu']}" in told for row in recorded if row["model"] == "m")


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


# --- README's section ----------------------------------------------------------------------------------------


def cells_of(text: str, *words: str) -> list[str]:
    """The cells of the first line of a Markdown table that holds all the words."""
    line = next(line for line in text.splitlines() if line.startswith("|") and all(word in line for word in words))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def measured(tmp_path):
    """Results of Small on a GPU, invented, among rows that do not count: of a CPU, another GPU, an older run, micro."""
    def latency(runner: str, ms: str, **values: str) -> dict[str, str]:
        return row(**{"gpu": "A GPU", "run_id": "2", "commit": "abc", "model": "swinv1", "precision": "fp16",
                      "runner": runner, "batch": "32", "latency_ms_median": ms, "max_abs_err": "1e-3",
                      "check": "good" if runner.startswith("trt") else "", **values})

    append_rows(tmp_path / "latency.csv", LATENCY_COLUMNS, [
        latency("trt-plugins", "0.1", gpu="Old GPU"), latency("trt-plugins", "0.2", run_id="1"),
        latency("trt-plugins", "2.0", cuda_graph="yes"), latency("trt", "6.0", cuda_graph="yes"),
        latency("torch-compile", "5.0", mode="max-autotune"), latency("torch-eager", "9.0", cuda_graph="no"),
        latency("trt-plugins", "4.0", cuda_graph="yes", model="swinv2", batch="1"),
        latency("trt-plugins", "0.3", model="swinv1_micro"), latency("ort-cpu", "1.0", gpu=cpu_name())])

    def accuracy(engine: str, batch: int, error: str, torch_error: str, agreement: str, run: str = "3",
                 gpu: str = "A GPU") -> dict[str, str]:
        return {**dict.fromkeys(ACCURACY_COLUMNS, ""), "run_id": run, "commit": "abc", "gpu": gpu,
                "model": "swinv1", "runner": "engine" if engine.endswith(".plan") else engine,
                "file": engine if engine.endswith(".plan") else "", "precision": "fp16", "batch": str(batch),
                "max_abs_err": error, "torch_max_abs_err": torch_error, "agreement": agreement, "top1": "0.9",
                "top1_torch": "0.91"}

    append_rows(tmp_path / "accuracy.csv", ACCURACY_COLUMNS, [
        accuracy("swinv1_fp16.plan", 1, "5e-2", "4e-2", "0.98", run="1", gpu="Another GPU"),
        accuracy("swinv1_attention_fp16.plan", 1, "9e-1", "1e-2", "0.5", run="2"),  # measured again
        accuracy("swinv1_attention_fp16.plan", 1, "3e-2", "4e-2", "1.0"),
        accuracy("swinv1_attention_fp16.plan", 8, "2e-2", "2.5e-2", "0.9995"),
        accuracy("torch", 8, "5e-1", "5e-1", "0.5")])
    append_rows(tmp_path / "memory.csv", MEMORY_COLUMNS, [
        {**dict.fromkeys(MEMORY_COLUMNS, ""), "run_id": "4", "commit": "abc", "gpu": "A GPU", "model": model,
         "file": f"{engine}.plan", "batch": batch, "free_memory_used_mib": used} for model, engine, batch, used in
        [("swinv1", "swinv1_fp16", 128, "900.0"), ("swinv1", "swinv1_attention_fp16", 1, "500.5"),
         ("swinv1_micro", "swinv1_micro_fp16", 1, "7.0")]])
    columns = ("run_id", "commit", "gpu", "kernel", "layer", "model", "stage", "batch", "precision", "runner", "part",
               "time_us_median", "bandwidth_fraction", "arithmetic_fraction", "max_abs_err")
    append_rows(tmp_path / "kernels.csv", columns, [
        dict(zip(columns, ("5", "abc", "A GPU", "SwinAttention", "W-MSA", "swinv1", stage, batch, "fp16", runner, part,
                           us, bandwidth, "0.25", error)))
        for stage, batch, runner, part, us, bandwidth, error in [
            ("1", "32", "sdpa", "", "20.0", "0.5", "1e-3"), ("1", "32", "swin-plugins", "", "6.0", "0.8", "1e-3"),
            ("1", "32", "flex", "", "7.0", "0.5", "1e-3"), ("2", "32", "sdpa", "", "4.0", "0.5", "3e-3"),
            ("2", "32", "swin-plugins", "", "2.0", "0.4", "2e-3"), ("2", "32", "flex", "", "5.0", "0.5", "2e-3"),
            ("1", "32", "swin-parts", "", "1.0", "0.5", "0"), ("2", "32", "swin-parts", "", "1.0", "0.5", "0"),
            ("1", "32", "torch", "product", "1.0", "0.5", "0"), ("2", "32", "torch", "product", "1.0", "0.5", "0"),
            ("1", "32", "one stage", "", "1.0", "0.5", "0"), ("1", "8", "swin-plugins", "", "1.0", "0.5", "0")]])
    return tmp_path


def test_section_is_made_of_the_newest_rows(measured):
    """Of the last GPU, where rows are compared with each other; of accuracy and memory on any, with the run."""
    text = report.section(measured, measured)
    assert cells_of(text, "TensorRT with plugins") == ["TensorRT with plugins", "2.000", "4.000"]
    assert cells_of(text, "torch.compile") == ["torch.compile", "5.000", "-"]
    assert cells_of(text, "times as fast as") == ["plugins, times as fast as the best other", "2.50", "-"]
    assert cells_of(text, "V1", "fp16", "32")[5:] == ["torch-compile, mode max-autotune", "5.000", "1e-3", "2.50"]
    assert cells_of(text, "swinv1_attention_fp16", "1, 8") == [
        "swinv1_attention_fp16", "fp16", "3", "1, 8", "3.00e-02", "4.00e-02", "0.80", "90.00%", "91.00%", "99.95%"]
    assert cells_of(text, "swinv1_fp16", "5.00e-02")[2:4] == ["1", "1"]
    assert cells_of(text, "MiB") == ["MiB", "run", "b1", "b128"]
    assert cells_of(text, "swinv1_attention_fp16", "500.5")[2:] == ["500.5", "-"]
    assert cells_of(text, "SwinAttention")[1:] == [  # stages together; its peers are PyTorch's, with all of the work
        "W-MSA", "V1", "1, 2", "8.0", "70%", "25%", "2e-3", "flex", "12.0", "2e-3", "1.50"]
    assert not any(hidden in text for hidden in ("micro", "Old GPU", "0.100", "0.200", "9e-01", "png"))
    assert text.count("Again: `") == 4 and "run 2, commit abc" in text


def test_int8_of_another_run_says_of_which(measured):
    """And the race before it stays."""
    def row_of(precision: str, ms: str) -> dict[str, str]:
        return row(gpu="A GPU", run_id="7", commit="abd", model="swinv1", precision=precision, runner="trt-plugins",
                   batch="32", latency_ms_median=ms, max_abs_err="1e-2", cuda_graph="yes", check="good")

    append_rows(measured / "latency.csv", LATENCY_COLUMNS, [row_of("fp16", "2.1"), row_of("int8", "1.4")])
    text = report.section(measured, measured)
    assert "run 2, commit abc" in text and "run 7, commit abd" in text
    assert cells_of(text, "TensorRT with plugins", "4.000") == ["TensorRT with plugins", "2.000", "4.000"]
    assert cells_of(text, "TensorRT with plugins, FP16") == ["TensorRT with plugins, FP16", "2.100"]
    assert cells_of(text, "V1", "int8")[2:] == [
        "32", "1.400", "1e-2", "trt-plugins fp16, CUDA graph", "2.100", "1e-2", "1.50"]


def test_kernels_are_compared_on_one_gpu(measured):
    """What only another GPU has a figure of is no rival, however fast."""
    with (measured / "kernels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (measured / "kernels.csv").unlink()
    elsewhere = {**rows[0], "gpu": "Another GPU", "runner": "flash", "time_us_median": "0.1"}
    append_rows(measured / "kernels.csv", tuple(rows[0]), [elsewhere, *rows])
    assert cells_of(report.section(measured, measured), "SwinAttention")[8:] == ["flex", "12.0", "2e-3", "1.50"]


def test_summary_has_the_same_figures(measured):
    text = report.summary(measured, measured)
    assert cells_of(text, "ms for one batch")[1:] == ["V1 b32", "V2 b1"]
    assert cells_of(text, "FP16, TensorRT with plugins")[1:] == ["2.000", "4.000"]
    assert cells_of(text, "FP16, best other")[1:] == ["5.000", "-"]
    assert cells_of(text, "times as fast")[1:] == ["2.50", "-"]
    assert cells_of(text, "swinv1_attention_fp16") == [
        "swinv1_attention_fp16", "fp16", "3.0e-02", "4.0e-02", "90.00%", "91.00%", "99.95%", "-"]
    assert cells_of(text, "swinv1_fp16")[-1] == "900.0"  # MiB at the largest batch, 128
    assert "the best of them is torch.compile" in text and "TensorRT, torch.compile, PyTorch eager" in text
    assert not any(hidden in text for hidden in ("micro", "Old GPU", "9e-01", "png", "FP32, ", "INT8, "))


def test_results_go_between_the_marks_and_nowhere_else(measured, tmp_path):
    readme, page, versions = (tmp_path / name for name in ("README.md", "results.md", "VERSIONS.md"))
    for path in (readme, page, versions):
        path.write_text(f"before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    arguments = ["--write", "--results", str(measured), "--pictures", str(measured), "--readme", str(readme), "--page",
                 str(page), "--versions", str(versions)]
    for _ in range(2):  # a second time changes nothing
        report.main(arguments)
        for path, made in ((readme, report.summary), (page, report.section)):
            text = path.read_text()
            assert text.startswith("before\n\n") and text.endswith("\n\nafter\n") and "old" not in text
            assert report.between_marks(path) == made(measured, measured)
        assert report.between_marks(versions) == report.versions(measured) == ""  # there is only one version
    readme.write_text(f"{report.BEGIN}{report.END}")
    page.write_text("no marks\n")
    with pytest.raises(UserError, match=r"results\.md: lacks the lines"):
        report.main(arguments)
    assert page.read_text() == "no marks\n" and readme.read_text() == f"{report.BEGIN}{report.END}"


def test_nothing_measured_on_a_gpu_is_no_section(results):
    append_rows(results / "latency.csv", LATENCY_COLUMNS, [
        row(model="swinv1", runner="trt-plugins", latency_ms_median="1.0")])  # of this CPU
    assert report.section(results) == ""
    with pytest.raises(UserError, match="no rows of a Small model on a GPU"):
        report.main(["--results", str(results)])


def test_pages_have_what_the_tables_give():
    """python Results/report.py --write, after every run on a GPU whose rows are kept."""
    assert report.between_marks(ROOT / "README.md") == report.summary(RESULTS)
    assert report.between_marks(ROOT / "docs" / "results.md") == report.section(RESULTS)
    assert report.between_marks(ROOT / "TensorRT" / "VERSIONS.md") == report.versions(RESULTS)


def test_versions_of_tensorrt_stand_beside_each_other_and_in_no_other_table(measured):
    """Of runs with two of them, CUDA graphs only; each line of the newest run that has it, and of no older one."""
    def timed(run: str, backend: str, batch: int, ms: str, **columns: str) -> dict[str, str]:
        return row(**{"run_id": run, "gpu": "A GPU", "model": "swinv1", "runner": "trt-plugins", "backend": backend,
                      "precision": "fp16", "patched": "attention", "cuda_graph": "yes", "batch": str(batch),
                      "latency_ms_median": ms, "max_abs_err": "1e-3", "check": "good", **columns})

    before = report.section(measured), report.summary(measured)
    append_rows(measured / "latency.csv", LATENCY_COLUMNS, [
        timed("20", "TensorRT 8.6.0", 1, "0.1"), timed("20", "TensorRT 8.6.0", 8, "0.8"),
        timed("20", "TensorRT-RTX 1.6.1", 1, "0.2", patched="no", runner="trt", max_abs_err="4.6", check="bad"),
        timed("21", "TensorRT 8.6.0", 1, "0.3"), timed("21", "TensorRT 8.6.0", 1, "0.9", cuda_graph="no"),
        timed("21", "PyTorch 2.11", 1, "0.7", patched="", runner="torch-eager", check=""),
        timed("21", "TensorRT-RTX 1.6.1", 1, "0.4", max_abs_err="2e-3")])
    assert (report.section(measured), report.summary(measured)) == before
    append_rows(measured / "latency.csv", LATENCY_COLUMNS, [timed("22", "TensorRT 8.6.0", 1, "0.5")])  # of one version
    text = report.versions(measured)
    assert "PyTorch" not in text
    assert cells_of(text, "engine") == ["engine", "TensorRT", "b1", "max abs err", "run"]
    assert cells_of(text, "V1 FP16, all plugins") == ["V1 FP16, all plugins", "8.6.0", "0.300", "1e-3", "21"]
    assert cells_of(text, "RTX 1.6.1", "0.400") == ["", "RTX 1.6.1", "0.400", "2e-3", "21"]
    assert cells_of(text, "V1 FP16, no plugins")[1:] == ["RTX 1.6.1", "0.200", "4.6 (bad)", "20"]


@pytest.mark.parametrize("page", sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.md")
                                        if not any(part.startswith(".") for part in path.parts[len(ROOT.parts):])),
                         ids=str)
def test_links_of_pages_lead_somewhere(page):
    """Files and folders of this repository, and headings of its pages."""
    text = (ROOT / page).read_text()
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_draw_finds_the_picture_by_its_word_and_images_without_one(tmp_path, capsys):
    for arguments, usage in ((["latency", "--help"], "draw.py latency"), (["images", "--help"], "draw.py images"),
                             (["--onnx", "x.onnx", "--help"], "draw.py images"),
                             (["--help"], "{images,latency,profile}")):
        with pytest.raises(SystemExit) as ended:
            draw_script.main(arguments)
        assert ended.value.code == 0 and usage in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no rows of any run; race\.py measures them"):
        draw_script.main(["latency", "--results", str(tmp_path), "--pictures", str(tmp_path)])
    with pytest.raises(UserError, match=r"picture: not the name of a picture"):
        draw_script.main(["--cfg", str(ROOT / "models/swin_micro.yaml"), "--onnx", "x.onnx", "--output", "picture"])


def test_the_picture_of_images_is_written_where_it_was_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(draw, "of_onnx", lambda path: Facts(patched={}, precision="fp32"))
    monkeypatch.setattr(draw, "onnx_session", lambda path: None)
    monkeypatch.setattr(draw, "onnx_logits", lambda session, images, path: np.zeros((len(images), 18), np.float32))
    draw.main(["--cfg", str(ROOT / "models/swin_micro.yaml"), "--onnx", "a.onnx", "b.onnx", "--output",
               str(tmp_path / "picture.png")])
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert f"wrote {tmp_path}/picture.png: 18 images" in capsys.readouterr().out
