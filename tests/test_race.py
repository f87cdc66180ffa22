"""The race and its drawing: what is left to do, what is done after a failure, the table and the plot.

The scripts that measure and make files are replaced by ones that write rows and files at once.
"""
from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import race
import TRT_test
from race import TIMM, Entrant, Model, Step
from Results import draw_latency
from Results.latency_tables import best_of_both, best_rows, race_and_int8, runner_table
from Results.tables import LATENCY_COLUMNS, append_rows, cpu_name, latency_rows, row_problem
from utils import ROOT, UserError


def row(runner: str, batch: int, ms: float, notes: str = "", **values: str) -> dict[str, str]:
    return {**dict.fromkeys(LATENCY_COLUMNS, ""), "run_id": "1", "commit": "abc", "gpu": "A GPU", "model": "m",
            "precision": "fp16", "runner": runner, "batch": str(batch), "latency_ms_median": str(ms),
            "images_per_s": str(1000 * batch / ms), "max_abs_err": "1.000e-03", "notes": notes, **values}


# --- what is left to do --------------------------------------------------------------------------------------

M = Model(Path("m.yaml"), Path("m.pth"), "m", 224)
# As TRT_test.py writes them.
TIMM_ROWS = [row("trt", 1, 1, f"m_timm_b1_fp16; {TRT_test.origin(Path('m_timm_b1_fp16.plan'))}{graph}; good")
             for graph in ("no CUDA graph", "CUDA graph")]


@pytest.mark.parametrize("rows, entrant, on_gpu, left", [
    ([], Entrant("trt"), True, (1, 8)),
    ([row("trt", 1, 1, "m; no CUDA graph; good"), row("trt", 1, 1, "m; CUDA graph; good")], Entrant("trt"), True, (8,)),
    ([row("trt", 1, 1, "m; no CUDA graph; good")], Entrant("trt"), True, (1, 8)),  # stopped before its CUDA graph
    ([row("ort-cuda", 1, 1, "m; no CUDA graph")], Entrant("ort-cuda", "no CUDA graph"), True, (8,)),
    ([row("ort-cuda", 1, 1, "m; no CUDA graph; timed by the clock")], Entrant("ort-cuda", "CUDA graph"), True, (1, 8)),
    ([row("ort-cuda", 1, 1, "m; CUDA graph; timed by the clock")], Entrant("ort-cuda", "CUDA graph"), True, (8,)),
    (TIMM_ROWS, TIMM, True, (8,)),
    (TIMM_ROWS, Entrant("trt"), True, (1, 8)),  # one entrant's rows are not the other's, though the runner is the same
    ([row("trt", 1, 1, "m; no CUDA graph; good"), row("trt", 1, 1, "m; CUDA graph; good")], TIMM, True, (1, 8)),
    ([row("torch-eager", 1, 1, "CPU")], Entrant("torch-eager"), False, (8,)),
    ([row("torch-compile", 1, 1, "mode reduce-overhead")], Entrant("torch-compile", "reduce-overhead"), True, (8,)),
    ([row("torch-compile", 1, 1, "mode reduce-overhead")], Entrant("torch-compile", "max-autotune"), True, (1, 8)),
    ([row("torch-eager", 1, 1, "CPU", precision="fp32"), row("torch-eager", 1, 1, "CPU", model="m2"),
      row("torch-script", 1, 1, "CPU"), row("torch-eager", 4, 1, "CPU")], Entrant("torch-eager"), False, (1, 8)),
])
def test_a_batch_is_measured_until_it_has_all_its_rows(rows, entrant, on_gpu, left):
    assert race.unmeasured(rows, M, entrant, "fp16", [1, 8], on_gpu) == left


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository root that has a checkpoint, a yaml and what makes the plugins, and no file made of them."""
    monkeypatch.setattr(race, "ROOT", tmp_path)
    monkeypatch.setattr(race, "PLUGINS", tmp_path / "TensorRT/Plugins")
    monkeypatch.setattr(race, "LIBRARY", tmp_path / "TensorRT/Plugins/build/libswin_plugins.so")
    for name in ("m.yaml", "m.pth", "onnx/export_onnx.py", "TensorRT/Plugins/Makefile"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def arguments(root: Path, **values) -> SimpleNamespace:
    return SimpleNamespace(**{"results": root / "Results", "run_id": "1", "runner": ["trt", "torch-eager"],
                              "precision": ["fp16"], "batch": [1, 8], "min_seconds": 2.0, "min_runs": 100,
                              "warmup_seconds": 5.0,
                              "take_files": False, "prepare": False, "mode": race.MODES, **values})


def plan(root: Path, **values) -> list[str]:
    model = Model(root / "m.yaml", root / "m.pth", "m", 224)
    return [str(step).replace(f"{root}/", "") for step in race.plan_race([model], arguments(root, **values), True)]


def test_plan_makes_what_a_measurement_needs_once_and_before_it(root):
    assert plan(root) == ["onnx/m.onnx", "onnx/m_fp16.onnx", "TensorRT/TRT_Engine/m_fp16.plan", "data/m-b1.npz",
                          "data/m-b8.npz", "m fp16 trt b1,8", "m fp16 torch-eager b1,8"]
    assert plan(root, runner=["torch-eager"], batch=[8]) == ["onnx/m.onnx", "data/m-b8.npz", "m fp16 torch-eager b8"]
    assert "TensorRT/Plugins/build/libswin_plugins.so" in plan(root, runner=["trt-plugins"])


def test_plan_makes_again_what_is_older_than_its_sources(root):
    for age, name in enumerate(["m.pth", "m.yaml", "onnx/export_onnx.py", "onnx/m.onnx", "data/m-b1.npz",
                                "data/m-b8.npz", "onnx/m_fp16.onnx"]):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
        os.utime(root / name, (age, age))
    engine = ["TensorRT/TRT_Engine/m_fp16.plan", "m fp16 trt b1,8"]
    assert plan(root, runner=["trt"]) == engine
    os.utime(root / "m.pth", (9, 9))  # another checkpoint: everything is made again
    assert len(plan(root, runner=["trt"])) == 6
    assert plan(root, runner=["trt"], take_files=True) == engine  # what is missing is made all the same


def test_what_is_measured_is_left_out_and_the_rest_goes_to_its_script(root):
    append_rows(root / "Results/latency.csv", LATENCY_COLUMNS, [
        row("torch-eager", batch, 1, notes) for batch in (1, 8) for notes in ("no CUDA graph", "CUDA graph")])
    assert plan(root)[-1] == "m fp16 trt b1,8" and len(plan(root)) == 6
    assert plan(root, runner=["torch-eager"]) == []  # and nothing is made for it
    assert plan(root, runner=["torch-eager"], run_id="2")[-1] == "m fp16 torch-eager b1,8"
    commands = {runner: " ".join(map(str, race.measuring_step(M, Entrant(runner, mode), "fp16", (1, 8), []).command))
                for runner, mode in (("trt-plugins", ""), ("torch-compile", "max-autotune"),
                                     ("ort-cuda", "CUDA graph"))}
    assert "TRT_test.py --plan" in commands["trt-plugins"] and "m_attention_fp16.plan" in commands["trt-plugins"]
    assert "--runner torch-compile --precision fp16 --mode max-autotune --onnx" in commands["torch-compile"]
    assert "m_fp16.onnx --runner ort-cuda" in commands["ort-cuda"]


def test_int8_is_calibrated_built_and_measured_with_the_plugins_alone(root):
    assert plan(root, runner=["trt-plugins", "trt", "torch-eager"], precision=["int8"], batch=[8]) == [
        "onnx/m.onnx", "onnx/m_int8.onnx", "onnx/m_attention_int8.onnx", "TensorRT/Plugins/build/libswin_plugins.so",
        "TensorRT/TRT_Engine/m_attention_int8.plan", "data/m-b8.npz", "data/m_int8-b8.npz", "m int8 trt-plugins b8"]
    model = Model(root / "m.yaml", root / "m.pth", "m", 224)
    steps = race.file_steps(model, [8])
    commands = {path: " ".join(map(str, step.command[1:])).replace(f"{root}/", "") for path, step in steps.items()}
    assert commands[model.onnx("_int8")] == "TensorRT/INT8/quant.py --onnx onnx/m.onnx --recalibrate"
    assert commands[model.onnx("_attention_int8")] == "onnx/graphsurgeon/add_int8.py --onnx onnx/m_int8.onnx"
    assert commands[model.data(8, "_int8")].endswith("--model onnx/m_int8.onnx --batches 8")
    done = subprocess.run([*map(str, steps[model.plan("_attention_int8")].command), "--dry-run"], cwd=ROOT,
                          capture_output=True, text=True)
    assert "m_attention_int8.plan" in done.stdout and "--fp16" in done.stdout, done.stderr
    measuring = race.measuring_step(model, Entrant("trt-plugins"), "int8", (8,), [])
    assert measuring.command[1:] == ["TRT_test.py", "--plan", model.plan("_attention_int8"), "--batch", "8"]


def test_an_engine_of_timms_export_is_made_and_measured_for_each_batch_and_precision(root):
    (root / "onnx/export_timm.py").touch()
    assert plan(root, runner=["trt-timm"], precision=["fp32", "fp16"]) == [
        "onnx/m.onnx", "onnx/m_timm_b1.onnx", "TensorRT/TRT_Engine/m_timm_b1.plan", "data/m-b1.npz",
        "m fp32 trt-timm b1",
        "onnx/m_timm_b8.onnx", "TensorRT/TRT_Engine/m_timm_b8.plan", "data/m-b8.npz", "m fp32 trt-timm b8",
        "TensorRT/TRT_Engine/m_timm_b1_fp16.plan", "m fp16 trt-timm b1",
        "TensorRT/TRT_Engine/m_timm_b8_fp16.plan", "m fp16 trt-timm b8"]
    model = Model(root / "m.yaml", root / "m.pth", "m", 224)
    steps = race.file_steps(model, [8])
    for precision, flag in (("", "--noTF32"), ("_fp16", "--fp16")):
        engine = steps[model.plan(f"_timm_b8{precision}")]
        assert engine.inputs == [model.onnx("_timm_b8")] and {"--fixed", flag} < set(engine.command)
        done = subprocess.run([*map(str, engine.command), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
        assert f"m_timm_b8{precision}.plan" in done.stdout and "Shapes" not in done.stdout, done.stderr
        measuring = race.measuring_step(model, TIMM, "fp16" if precision else "fp32", (8,), []).command
        assert measuring[1:] == ["TRT_test.py", "--plan", model.plan(f"_timm_b8{precision}"), "--batch", "8"]
    export = steps[model.onnx("_timm_b8")].command
    assert export[1] == "onnx/export_timm.py" and export[-4:] == ["--batch", "8", "--output", model.onnx("_timm_b8")]
    append_rows(root / "Results/latency.csv", LATENCY_COLUMNS, TIMM_ROWS)
    assert plan(root, runner=["trt-timm"])[-1] == "m fp16 trt-timm b8" and len(plan(root, runner=["trt-timm"])) == 5


@pytest.mark.parametrize(("source", "outdated"), [
    ("m.yaml", "onnx/m.onnx onnx/m_timm_b8.onnx"),
    ("models/swin.py", "onnx/m.onnx onnx/m_timm_b8.onnx"),
    ("onnx/export_timm.py", "onnx/m_timm_b8.onnx"),
    ("graphs/tidy.py", "onnx/m_int8.onnx onnx/m_fp16.onnx onnx/m_attention.onnx onnx/m_attention_fp16.onnx "
                       "onnx/m_attention_int8.onnx"),
    ("TensorRT/INT8/qdq.py", "onnx/m_int8.onnx"),
    ("onnx/m_int8.onnx", "onnx/m_attention_int8.onnx data/m_int8-b8.npz"),
    *((f"TensorRT/Plugins/Linear/kernel.{suffix}", "TensorRT/Plugins/build/libswin_plugins.so")
      for suffix in ("cu", "cuh", "cpp", "h")),
    ("TensorRT/Plugins/build/libswin_plugins.so", "TensorRT/TRT_Engine/m_attention.plan "
     "TensorRT/TRT_Engine/m_attention_fp16.plan TensorRT/TRT_Engine/m_attention_int8.plan"),
])
def test_a_newer_source_makes_outdated_what_is_made_of_it(source, outdated, root):
    for path in (root / source, root / "onnx/export_timm.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    steps = race.file_steps(Model(root / "m.yaml", root / "m.pth", "m", 224), [8])
    for made in steps:
        made.parent.mkdir(parents=True, exist_ok=True)
        made.touch()
    for path in filter(Path.is_file, root.rglob("*")):
        os.utime(path, (1, 1))
    os.utime(root / source, (2, 2))
    found = {str(made.relative_to(root)) for made, step in steps.items() if race.is_outdated(step)}
    assert found == set(outdated.split())


def test_what_make_finds_up_to_date_is_not_outdated_again(root):
    """make looks at fewer sources, and writes nothing where these are older."""
    made, source = root / "library.so", root / "kernel.cu"
    for age, path in enumerate((made, source)):
        path.touch()
        os.utime(path, (age, age))
    step = Step(script("pass"), [source], 1, makes=made)
    assert race.is_outdated(step) and race.run_steps([step], arguments(root), on_gpu=True) == []
    assert not race.is_outdated(step)


@pytest.mark.parametrize("suffix", ["", "_fp16", "_attention", "_attention_fp16", "_attention_int8"])
def test_an_engine_takes_images_of_the_models_size(suffix, root):
    command = race.file_steps(M._replace(img_size=192), [8])[M.plan(suffix)].command
    done = subprocess.run([*map(str, command), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert "--optShapes=input:32x3x192x192" in done.stdout, done.stderr


def test_onnxruntime_gets_a_process_for_each_batch_and_variant(root):
    assert [step for step in plan(root, runner=["ort-cuda"]) if " " in step] == [
        "m fp16 ort-cuda no CUDA graph b1", "m fp16 ort-cuda no CUDA graph b8", "m fp16 ort-cuda CUDA graph b1",
        "m fp16 ort-cuda CUDA graph b8"]
    command = race.measuring_step(M, Entrant("ort-cuda", "CUDA graph"), "fp16", (8,), []).command
    assert command[-4:] == ["--variant", "CUDA graph", "--batch", "8"]


def test_preparing_makes_files_and_compiles_and_measures_nothing(root):
    assert plan(root, runner=["trt"], prepare=True) == plan(root, runner=["trt"])[:-1]
    compiling = ["compiling m fp16 torch-compile reduce-overhead b1,8",
                 "compiling m fp16 torch-compile max-autotune b1,8"]
    assert plan(root, runner=["torch-compile"], prepare=True) == compiling  # and no file, which another may be making
    assert plan(root, runner=["torch-compile"], mode=["max-autotune"], prepare=True) == compiling[1:]
    assert plan(root, runner=["torch-compile"], mode=["max-autotune"])[-1] == compiling[1].removeprefix("compiling ")
    command = race.compiling_step(M, Entrant("torch-compile", "max-autotune"), "fp16", (1, 8)).command
    assert " ".join(map(str, command[2:])) == ("--cfg m.yaml --resume m.pth --runner torch-compile --precision fp16 "
                                               "--mode max-autotune --compile-only --batch 1,8")


def test_commands_are_ones_that_the_scripts_take(tmp_path):
    """Every script's own parser accepts the flags: it fails later, at a checkpoint, an ONNX file or an engine."""
    model = Model(ROOT / "models/swin_micro.yaml", ROOT / "absent.pth", "absent", 192)
    flags = ["--results", tmp_path, "--min-seconds", "1", "--min-runs", "2"]
    for runner in ("trt", "ort-cpu", "torch-eager"):
        command = race.measuring_step(model, Entrant(runner), "fp16", (1, 8), flags).command
        done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and "no such file" in done.stderr, done.stderr


def test_a_gpu_race_of_both_small_models(root, monkeypatch, capsys):
    """--dry-run of FP16 alone: what is made, once each and before it is read, and every runner with every batch."""
    (root / "trt-python").write_text("#!/bin/sh\n")
    (root / "trt-python").chmod(0o755)
    (root / "v1.pth").touch(), (root / "v2.pth").touch()
    monkeypatch.setattr(race, "TRT_PYTHON", str(root / "trt-python"))
    monkeypatch.setattr(race.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(race, "onnxruntime_has_cuda", lambda: True)
    models = [str(ROOT / f"models/{name}.yaml") for name in ("swin", "swinv2")]
    command = ["--cfg", *models, "--resume", str(root / "v1.pth"), str(root / "v2.pth"), "--precision", "fp16",
               "--results", str(root / "Results"), "--run-id", "r", "--dry-run"]
    race.main(command)
    told = capsys.readouterr().out.replace(f"{root}/", "").splitlines()
    assert told[0] == "left out: ort-cpu: ort-cuda takes its place on a GPU"
    lines = [" ".join(line.split()[1:]) for line in told[1:]]
    measured = [line for line in lines if "_Latency.py" in line or "TRT_test.py" in line]
    one_batch = [line for line in measured if "_timm_b" in line or "ort-cuda" in line]
    assert len(one_batch) == 2 * 4 * 3 and len(measured) == len(one_batch) + 2 * 6
    assert all(("--batch 1,8,32,128 " in line) != (line in one_batch) for line in measured)
    for name in ("swinv1", "swinv2"):
        own = [line for line in measured if f"onnx/{name}." in line or f"/{name}_" in line]
        own = [line for line in own if line not in one_batch or "--batch 8 " in line]
        words = [f"{name}_attention_fp16.plan", f"{name}_fp16.plan", f"{name}_timm_b8_fp16.plan",
                 "--variant 'no CUDA graph'", "--variant 'CUDA graph'", "torch-eager", "torch-script",
                 "reduce-overhead", "max-autotune"]
        assert [next(word for word in words if word in line) for line in own] == words
        for made in (f"export_onnx.py --cfg {ROOT}/models/{name.replace('v1', '')}.yaml --resume {name[-2:]}.pth",
                     f"to_fp16.py --onnx onnx/{name}.onnx", f"add_all.py --onnx onnx/{name}.onnx --fp16",
                     f"build.sh onnx/{name}_fp16.onnx", f"build.sh onnx/{name}_attention_fp16.onnx",
                     *(f"--resume {name[-2:]}.pth --batch {batch} --output onnx/{name}_timm_b{batch}.onnx"
                       for batch in (1, 8, 32, 128)),
                     *(f"build.sh onnx/{name}_timm_b{batch}.onnx --fixed --fp16" for batch in (1, 8, 32, 128))):
            assert len([line for line in lines if made in line and line not in measured]) == 1, made
        assert len([line for line in lines if f"--model onnx/{name}.onnx --batches" in line]) == 4
    # A slice of it, on files that are there.
    for line in lines:
        if line not in measured:
            continue
        for word in line.split():
            if word.endswith((".onnx", ".plan")):
                (root / word).parent.mkdir(parents=True, exist_ok=True), (root / word).touch()
    for name, batch in itertools.product(("swinv1", "swinv2"), (1, 8, 32, 128)):
        (root / "data").mkdir(exist_ok=True), (root / f"data/{name}-b{batch}.npz").touch()
    race.main([*command, "--runner", "trt,torch-compile", "--batch", "8,128", "--take-files"])
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 6 and all("--batch 8,128 " in line for line in told)
    race.main([*command, "--runner", "trt-timm,torch-compile", "--batch", "8", "--mode", "max-autotune", "--prepare"])
    told = capsys.readouterr().out.splitlines()
    assert [len([line for line in told if word in line]) for word in ("--compile-only", "--fixed", "TRT_test")] == [
        2, 2, 0]


@pytest.mark.parametrize("version, timm, why", [
    ("8.6.0", True, ""), ("10.16.1", True, "takes the types from the graph"), ("8.6.0", False, "has no timm")])
def test_timms_export_is_left_out_where_it_cannot_be_made_or_would_not_be_fp16(root, monkeypatch, version, timm, why):
    (root / "trt-python").write_text(f"#!/bin/sh\necho {version}\n")
    (root / "trt-python").chmod(0o755)
    monkeypatch.setattr(race, "TRT_PYTHON", str(root / "trt-python"))
    monkeypatch.setattr(race, "onnxruntime_has_cuda", lambda: True)
    monkeypatch.setattr(race.importlib.util, "find_spec", lambda name: timm or None)
    out = race.left_out(True, list(race.RUNNERS), ["fp32", "fp16"])
    assert set(out) == {"ort-cpu"} | ({"trt-timm"} if why else set()) and why in out.get("trt-timm", "")


def test_compiled_code_is_kept_and_the_run_id_given_on(root, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    told = root / "told.txt"
    step = Step(script(f"import os; open({str(told)!r}, 'w').write("
                       "os.environ['TORCHINDUCTOR_CACHE_DIR'] + ' ' + os.environ['RUN_ID'])"), [], 1, makes=told)
    assert race.run_steps([step], arguments(root, run_id="7"), on_gpu=True) == []
    assert told.read_text() == f"{root}/.cache/inductor 7"


def test_rows_of_processes_that_write_at_once_are_all_kept(tmp_path):
    one = ("import sys; sys.path.insert(0, sys.argv[1])\n"
           "from pathlib import Path; from Results.tables import append_rows\n"
           "for i in range(20): append_rows(Path(sys.argv[2]), ('who', 'i'), [{'who': sys.argv[3], 'i': i}])")
    running = [subprocess.Popen([sys.executable, "-c", one, str(ROOT), str(tmp_path / "t.csv"), str(who)])
               for who in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert sorted((tmp_path / "t.csv").read_text().splitlines()[1:]) == sorted(
        f"{who},{i}" for who in range(4) for i in range(20))


def test_no_gpu_leaves_a_cpu_subset_and_says_why():
    out = race.left_out(False, list(race.RUNNERS), ["fp32", "fp16"])
    assert set(race.RUNNERS) - set(out) == {"ort-cpu", "torch-eager", "torch-script"}
    assert "GPU" in out["trt"] and "fp16" in out and "fp32" not in out
    assert race.left_out(False, ["ort-cpu"], ["fp32"]) == {}
    assert "trt-plugins alone" in race.left_out(False, ["ort-cpu"], list(race.PRECISIONS))["int8"]


def test_trt_test_takes_some_of_the_batches(monkeypatch):
    batches = [SimpleNamespace(input=[0] * count) for count in (1, 8, 32)]
    monkeypatch.setattr(TRT_test, "find_batches", lambda plan, pattern: batches)
    chosen = TRT_test.chosen_batches(Path("m.plan"), SimpleNamespace(data=None, batch=[32, 1]))
    assert [len(batch.input) for batch in chosen] == [1, 32]
    assert TRT_test.chosen_batches(Path("m.plan"), SimpleNamespace(data=None, batch=None)) == batches
    with pytest.raises(UserError, match="no data of batch 4"):
        TRT_test.chosen_batches(Path("m.plan"), SimpleNamespace(data=None, batch=[1, 4]))


# --- failures ------------------------------------------------------------------------------------------------


def script(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join([f"import sys; sys.path.insert(0, {str(ROOT)!r})", *lines])]


def measures(root: Path, runner: str, *lines: str, inputs: tuple[Path, ...] = ()) -> Step:
    return Step(script(*lines), list(inputs), 1, measures=(M, Entrant(runner), "fp32", (1, 8)))


def writes_row(root: Path, runner: str, batch: int) -> str:
    values = row(runner, batch, 1, "CPU", precision="fp32")
    return "import os, pathlib; from Results import tables; " \
           f"tables.append_rows(pathlib.Path({str(root / 'Results/latency.csv')!r}), tables.LATENCY_COLUMNS, " \
           f"[{{**{values!r}, 'run_id': os.environ['RUN_ID']}}])"


def test_the_race_goes_on_after_a_failure_and_reports_it(root, capsys):
    broken = root / "onnx/broken.onnx"
    failed = race.run_steps([
        Step(script("sys.exit('export_onnx.py: error: no weights')"), [], 1, makes=broken),
        measures(root, "ort-cpu", "open('must-not-run', 'w')", inputs=(broken,)),
        measures(root, "torch-eager", writes_row(root, "torch-eager", 1),
                 "sys.exit('torch-eager fp32 b8 (CPU) failed: out of memory\\nerror: 1 of 2 combinations failed')"),
        measures(root, "torch-script", writes_row(root, "torch-script", 1), writes_row(root, "torch-script", 8)),
    ], arguments(root, run_id="7"), on_gpu=False)
    assert [line.split(" (log")[0].replace(f"{root}/", "") for line in failed] == [
        "onnx/broken.onnx: export_onnx.py: error: no weights",
        "m fp32 ort-cpu b1,8: onnx/broken.onnx could not be made",
        "m fp32 torch-eager b1,8: b8: out of memory"]
    assert not (root / "must-not-run").exists()
    assert [(found["runner"], found["batch"]) for found in latency_rows(root / "Results", "7")] == [
        ("torch-eager", "1"), ("torch-script", "1"), ("torch-script", "8")]
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("]")[0] for line in shown] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    assert ["FAILED" in line for line in shown] == [True, True, True, False]
    assert shown[-1].endswith("about 0:00 left")


def test_a_compiling_step_leaves_no_row_and_fails_by_its_status(root):
    steps = [measures(root, "torch-compile", f"sys.exit({status})")._replace(compiles=True)
             for status in ("0", "'out of memory'")]
    failed = race.run_steps(steps, arguments(root), on_gpu=True)
    assert [line.split(" (log")[0] for line in failed] == ["compiling m fp32 torch-compile b1,8: out of memory"]


def test_what_another_race_made_meanwhile_is_not_made_again(root):
    source, made = root / "onnx/m.onnx", root / "onnx/m_fp16.onnx"
    step = Step(script(f"open({str(made)!r}, 'a').write('made ')"), [source], 1, makes=made)
    source.touch()
    assert race.run_steps([step, step], arguments(root), on_gpu=True) == []
    assert made.read_text() == "made "
    os.utime(source, (made.stat().st_mtime + 1,) * 2)
    race.run_steps([step], arguments(root), on_gpu=True)
    assert made.read_text() == "made made "


def test_what_another_command_made_is_made_again(root):
    """Weights that were trained before the graph of others was made, or other flags: no date tells."""
    made = root / "onnx/m.onnx"
    steps = [Step(script(f"open({str(made)!r}, 'w').write({name!r})"), [], 1, makes=made) for name in ("a", "b", "b")]
    for step, outdated in zip(steps, (True, True, False)):
        assert race.is_outdated(step) == outdated
        assert race.run_steps([step], arguments(root), on_gpu=True) == []
    assert made.read_text() == "b"
    steps[-1].record.unlink()
    assert not race.is_outdated(steps[0]), "nothing is known of how it was made"


@pytest.mark.parametrize("log, why", [
    ("loading\nm ort-cuda b8 (CUDA graph) failed: [ONNXRuntimeError] : 1 : FAIL : cuda_call.cc:129 CUDA failure 700: "
     "an illegal memory access was encountered ; GPU=0 ; hostname=h ; expr=x\nOnnx_Latency.py: error: 1 of 1 failed",
     "CUDA failure 700: an illegal memory access was encountered"),
    ("terminate called after throwing an instance of 'onnxruntime::OnnxRuntimeException'\n  what():  cuda_call.cc:129 "
     "CUDA failure 2: out of memory ; GPU=0 ; expr=x\n\nAborted", "CUDA failure 2: out of memory"),
    ("m ort-cuda b8 (CUDA graph) failed: not partitioned to CUDA", "not partitioned to CUDA"),
    ("Traceback\nValueError: no", "ValueError: no"), ("", "no output"),
])
def test_why_a_batch_failed_is_one_line(log, why):
    assert race.why_failed(log, 8) == why


def test_a_failure_ends_in_one_line_and_status_1(root, monkeypatch, capsys):
    monkeypatch.setattr(race.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(race, "chosen_models", lambda args: [M])
    monkeypatch.setattr(race, "plan_race", lambda *_: [measures(root, "ort-cpu", "sys.exit('broken')")])
    with pytest.raises(UserError, match="2 failed; this command with --run-id 9 tries"):
        race.main(["--results", str(root / "Results"), "--run-id", "9"])
    told = capsys.readouterr()
    assert "left out: trt: it needs a GPU" in told.out and "b1: broken" in told.err


def test_a_race_without_anything_to_measure_is_refused(monkeypatch):
    monkeypatch.setattr(race.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="nothing is left to measure"):
        race.main(["--cfg", str(ROOT / "models/swin_micro.yaml"), "--runner", "trt"])
    with pytest.raises(UserError, match="1 checkpoints for 2 models"):
        race.main(["--resume", "one.pth"])


# --- table and plot ------------------------------------------------------------------------------------------

ROWS = [
    row("trt-plugins", 1, 0.8, "m_attention_fp16; no CUDA graph; good"),
    row("trt-plugins", 1, 0.5, "m_attention_fp16; CUDA graph; good"),
    row("trt-plugins", 8, 0.1, "m_attention_fp16; CUDA graph; bad"),  # fast and wrong
    row("trt-plugins", 8, 2.0, "m_attention_fp16; no CUDA graph; good"),
    row("trt", 1, 1.2, "m_fp16; CUDA graph; bad"),  # of another's error nothing but finite logits is asked
    row("torch-compile", 1, 1.5, "mode reduce-overhead"),
    row("torch-compile", 8, 3.0, "mode reduce-overhead"),
    row("torch-compile", 8, 2.5, "mode max-autotune"),
    row("torch-eager", 8, 0.2, "CUDA graph", max_abs_err="nan"),
    row("torch-eager", 1, 13.4, "no CUDA graph", precision="fp32"),
]


def test_speedup_is_our_best_against_the_best_other_that_is_right():
    assert draw_latency.speedup_table(best_rows(ROWS))[1:] == [
        ["m", "fp16", "1", "0.500", "1.000e-03", "trt, CUDA graph", "1.200", "1.000e-03", "2.40"],
        ["m", "fp16", "8", "2.000", "1.000e-03", "torch-compile, mode max-autotune", "2.500", "1.000e-03", "1.25"],
        ["m", "fp32", "1", "-", "-", "torch-eager", "13.400", "1.000e-03", "-"],
    ]
    assert [bool(row_problem(each)) for each in ROWS] == [False, False, True] + [False] * 5 + [True, False]


def test_int8_is_compared_with_our_fp16_too():
    int8 = row("trt-plugins", 8, 1.6, "m_attention_int8; CUDA graph; good", precision="int8")
    slower = row("trt", 8, 9.0, "m_int8; CUDA graph; good", precision="int8")
    best = best_rows([*ROWS, int8, slower])
    assert [line for line in draw_latency.speedup_table(best) if line[1] == "int8"] == [
        ["m", "int8", "8", "1.600", "1.000e-03", "trt-plugins fp16", "2.000", "1.000e-03", "1.25"]]
    names = {"trt-plugins": "ours", "trt": "theirs"}
    assert runner_table(best, "int8", names) == [
        ["ms", "m b8"], ["ours", "1.600"], ["theirs", "9.000"],
        ["plugins, times as fast as the best other or FP16 with plugins", "1.25"]]
    assert runner_table(best, "fp16", names)[-1] == ["plugins, times as fast as the best other", "2.40", "1.25"]


def test_the_fastest_trt_row_counts_and_says_that_it_is_of_timms_export():
    rows = [*ROWS, {**TIMM_ROWS[1], "latency_ms_median": "1.1"}]
    assert draw_latency.speedup_table(best_rows(rows))[1] == [
        "m", "fp16", "1", "0.500", "1.000e-03", "trt, timm's export, batch fixed, CUDA graph", "1.100", "1.000e-03",
        "2.20"]


def test_the_picture_and_the_table_are_drawn_from_the_rows_of_one_run(tmp_path, capsys):
    append_rows(tmp_path / "latency.csv", LATENCY_COLUMNS, [*ROWS, row("trt", 1, 77.0, run_id="2"),
                                                             row("ort-cpu", 1, 88.0, run_id="4", gpu=cpu_name())])
    race.main(["--draw-only", "--run-id", "1", "--results", str(tmp_path)])
    table = (tmp_path / "speedup.md").read_text()
    assert "| m | fp16 | 1 | 0.500 | 1.000e-03 | trt, CUDA graph | 1.200 | 1.000e-03 | 2.40 |" in table
    assert "Run 1 on A GPU, commit abc" in table and "77" not in table
    assert table.count("\n- m fp16") == 2 and "beyond the tolerance" in table and "NaN" in table
    first = (tmp_path / "latency.png").read_bytes()
    draw_latency.main(["--run", "1", "--results", str(tmp_path)])
    assert (tmp_path / "latency.png").read_bytes() == first
    draw_latency.main(["--results", str(tmp_path)])  # run 2 has nothing of ours, run 4 was not on a GPU
    assert (tmp_path / "latency.png").read_bytes() == first
    draw_latency.main(["--run", "2", "--results", str(tmp_path)])
    assert "77.000" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no rows of run 3; race\.py measures them"):
        draw_latency.main(["--run", "3", "--results", str(tmp_path)])


def test_plot_has_a_panel_for_each_model_and_precision_and_a_line_for_each_runner():
    figure = draw_latency.draw(ROWS, [], "title")
    fp32, fp16 = figure.axes
    assert fp32.get_title() == "m, FP32" and fp16.get_title() == "m, FP16"
    lines = {line.get_label(): line.get_xydata().tolist() for line in fp16.get_lines()}
    assert lines["TensorRT with this project's plugins"] == [[1, 2000], [8, 4000]]
    assert lines["torch.compile"] == [[1, pytest.approx(1000 / 1.5)], [8, 3200]]
    assert "PyTorch eager" not in lines and len(fp32.get_lines()) == 1
    assert fp16.get_xscale() == fp16.get_yscale() == "log"
    assert [label.get_text() for label in fp16.get_xticklabels()] == ["1", "8"]
    assert len({style[1] for style in draw_latency.STYLES.values()}) == len(draw_latency.STYLES)
    assert set(draw_latency.STYLES) == {entrant.runner for entrant in race.ENTRANTS}
    assert math.isfinite(fp16.get_ylim()[1])


def test_int8_has_the_last_panel_with_our_fp16_beside_it():
    int8 = row("trt-plugins", 8, 1.6, "m_attention_int8; CUDA graph; good", precision="int8")
    panel = draw_latency.draw(ROWS, [*ROWS, int8], "title").axes[-1]
    assert panel.get_title() == "m, INT8"
    assert {line.get_label(): line.get_xydata().tolist() for line in panel.get_lines()} == {
        "these plugins in FP16": [[8, 4000]], "TensorRT with this project's plugins": [[8, 5000]]}


def test_a_run_of_int8_alone_is_drawn(tmp_path):
    append_rows(tmp_path / "latency.csv", LATENCY_COLUMNS, [
        row("trt-plugins", 8, 1.2, "m_attention_int8; CUDA graph; good", precision="int8", run_id="2")])
    draw_latency.main(["--run", "2", "--results", str(tmp_path)])
    assert "| m | int8 | 8 | 1.200 | 1.000e-03 | - | - | - | - |" in (tmp_path / "speedup.md").read_text()
    (panel,) = draw_latency.draw([], [row("trt-plugins", 8, 1.2, "good", precision="int8")], "title").axes[:1]
    assert panel.get_title() == "m, INT8"


def test_int8_is_shown_of_the_models_and_the_gpu_of_the_race():
    def int8(run: str, **values: str) -> dict[str, str]:
        return row("trt-plugins", 8, 1.0, "good", precision="int8", run_id=run, **values)

    fp16 = row("trt-plugins", 8, 2.0, "good", run_id="3")
    race, shown = race_and_int8([*ROWS, int8("2"), int8("3"), fp16, int8("4", gpu="Another GPU"), int8("5", model="n")])
    assert race == ROWS and shown == [int8("3"), fp16]


def test_int8_of_a_later_run_is_compared_with_fp16_of_that_run(tmp_path, capsys):
    """The race is not run anew for INT8; what INT8 is compared with is."""
    later = [row("trt-plugins", 8, 1.8, "m_attention_fp16; CUDA graph; good", run_id="2"),
             row("trt-plugins", 8, 1.2, "m_attention_int8; CUDA graph; good", precision="int8", run_id="2")]
    older = row("trt-plugins", 8, 1.9, "m_attention_int8; CUDA graph; good", precision="int8")
    append_rows(tmp_path / "latency.csv", LATENCY_COLUMNS, [*ROWS, older, *later])
    draw_latency.main(["--results", str(tmp_path)])
    table = (tmp_path / "speedup.md").read_text()
    assert "Run 1, 2 on A GPU" in table
    assert "| m | fp16 | 8 | 2.000 | 1.000e-03 | torch-compile, mode max-autotune | 2.500 | 1.000e-03 | 1.25 |" in table
    assert "| m | int8 | 8 | 1.200 | 1.000e-03 | trt-plugins fp16, CUDA graph | 1.800 | 1.000e-03 | 1.50 |" in table
    assert "wrote" in capsys.readouterr().out
    assert list(best_of_both(ROWS, later)) == [("m", "fp16", 1), ("m", "fp16", 8), ("m", "fp32", 1), ("m", "int8", 8)]


def test_without_other_runners_the_newest_run_of_ours_is_shown():
    older, newer = (row("trt-plugins", 8, 2.0, "good", run_id=run) for run in ("1", "2"))
    assert race_and_int8([older, newer]) == ([newer], [])
