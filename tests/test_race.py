"""The race and its drawing: what is left to do, what is done after a failure, the table and the plot.

The scripts that measure and make files are replaced by ones that write rows and files at once.
"""
from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import race
import TRT_test
from graphs.facts import Facts
from race import TIMM, Entrant, Model, Step
from Results import draw_latency
from Results.latency_tables import best_of_both, best_rows, race_and_int8, runner_table
from Results.tables import LATENCY_COLUMNS, append_rows, cpu_name, latency_rows, row_problem
from utils import ROOT, UserError


def row(runner: str, batch: int, ms: float, how: str = "", **values: str) -> dict[str, str]:
    """A row of latency.csv; `how` it was measured in words, with `; ` between: CUDA graph, mode MODE, good, timm."""
    words = how.split("; ")
    mode = [word.removeprefix("mode ") for word in words if word.startswith("mode ")]
    return {**dict.fromkeys(LATENCY_COLUMNS, ""), "run_id": "1", "commit": "abc", "gpu": "A GPU", "model": "m",
            "precision": "fp16", "runner": runner, "batch": str(batch), "latency_ms_median": str(ms),
            "images_per_s": str(1000 * batch / ms), "max_abs_err": "1.000e-03",
            "cuda_graph": "yes" if "CUDA graph" in words else "no" if "no CUDA graph" in words else "",
            "mode": "".join(mode), "export": "timm" if "timm" in words else "swin",
            "check": "".join(word for word in words if word in ("good", "bad")), **values}


# --- what is left to do --------------------------------------------------------------------------------------

M = Model(Path("m.yaml"), Path("m.pth"), "m", "swinv1")
TIMM_ROWS = [row("trt", 1, 1, f"timm; {graph}; good") for graph in ("no CUDA graph", "CUDA graph")]


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


# Makes every file at once, and notes it; what has "broken" in its name fails as once.py tells it.
MAKEFILE = """
%:
\t@echo $@ $(BATCHES) $$TAKE_FILES >> made
\t@case $@ in *broken*) echo "  all plugins                 FAILED  no weights"; exit 1;; esac
\t@mkdir -p $(@D); touch $@
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository root that has a checkpoint, a yaml and a Makefile."""
    monkeypatch.setattr(race, "ROOT", tmp_path)
    (tmp_path / "Makefile").write_text(MAKEFILE)
    for name in ("m.yaml", "m.pth"):
        (tmp_path / name).touch()
    return tmp_path


def made(root: Path) -> list[str]:
    return (root / "made").read_text().replace(f"{root}/", "").splitlines() if (root / "made").exists() else []


def arguments(root: Path, **values) -> SimpleNamespace:
    return SimpleNamespace(**{"results": root / "Results", "run_id": "1", "runner": ["trt", "torch-eager"],
                              "precision": ["fp16"], "batch": [1, 8], "min_seconds": 2.0, "min_runs": 100,
                              "warmup_seconds": 5.0,
                              "take_files": False, "prepare": False, "mode": race.MODES, **values})


def plan(root: Path, **values) -> list[Step]:
    model = Model(root / "m.yaml", root / "m.pth", "m", "swinv1")
    return race.plan_race([model], arguments(root, **values), True)


def names(steps: list[Step]) -> list[str]:
    return list(map(str, steps))


def files(root: Path, steps: list[Step]) -> set[str]:
    return {str(path.relative_to(root)) for step in steps for path in step.files}


def test_a_measurement_asks_for_the_files_that_it_reads(root):
    data = {"data/m-b1.npz", "data/m-b8.npz"}
    for runner, precision, graph in (
            ("trt", "fp16", "TensorRT/TRT_Engine/m_fp16.plan"), ("trt", "fp32", "TensorRT/TRT_Engine/m.plan"),
            ("trt-plugins", "fp16", "TensorRT/TRT_Engine/m_attention_fp16.plan"),
            ("torch-eager", "fp16", "onnx/m.onnx"), ("ort-cuda", "fp16", "onnx/m_fp16.onnx")):
        assert files(root, plan(root, runner=[runner], precision=[precision])) == {"onnx/m.onnx", graph, *data}, runner
    assert files(root, plan(root, runner=["trt-plugins"], precision=["int8"])) == {
        "onnx/m.onnx", "TensorRT/TRT_Engine/m_attention_int8.plan", *data, "data/m_int8-b1.npz", "data/m_int8-b8.npz"}
    for batch, step in zip((1, 8), plan(root, runner=["trt-timm"])):
        assert files(root, [step]) == {"onnx/m.onnx", f"TensorRT/TRT_Engine/m_timm_b{batch}_fp16.plan",
                                       f"data/m-b{batch}.npz"}


def test_what_is_measured_is_left_out_and_the_rest_goes_to_its_script(root):
    append_rows(root / "Results/latency.csv", LATENCY_COLUMNS, [
        row("torch-eager", batch, 1, how) for batch in (1, 8) for how in ("no CUDA graph", "CUDA graph")])
    assert names(plan(root)) == ["m fp16 trt b1,8"]
    assert plan(root, runner=["torch-eager"]) == []  # and nothing is made for it
    assert names(plan(root, runner=["torch-eager"], run_id="2")) == ["m fp16 torch-eager b1,8"]
    commands = {runner: " ".join(map(str, race.measuring_step(M, Entrant(runner, mode), "fp16", (1, 8), []).command))
                for runner, mode in (("trt-plugins", ""), ("torch-compile", "max-autotune"),
                                     ("ort-cuda", "CUDA graph"))}
    assert "TRT_test.py --plan" in commands["trt-plugins"] and "m_attention_fp16.plan" in commands["trt-plugins"]
    assert "--runner torch-compile --precision fp16 --mode max-autotune --onnx" in commands["torch-compile"]
    assert "m_fp16.onnx --runner ort-cuda" in commands["ort-cuda"]


def test_timms_export_is_measured_one_batch_at_a_time(root):
    append_rows(root / "Results/latency.csv", LATENCY_COLUMNS, TIMM_ROWS)
    (step,) = plan(root, runner=["trt-timm"])
    assert str(step) == "m fp16 trt-timm b8"
    assert step.command[1:6] == ["TRT_test.py", "--plan", root / "TensorRT/TRT_Engine/m_timm_b8_fp16.plan", "--batch",
                                 "8"]


def test_int8_is_measured_with_the_plugins_alone(root):
    assert names(plan(root, runner=["trt-plugins", "trt", "torch-eager"], precision=["int8"])) == [
        "m int8 trt-plugins b1,8"]


def test_onnxruntime_gets_a_process_for_each_batch_and_variant(root):
    assert names(plan(root, runner=["ort-cuda"])) == [
        "m fp16 ort-cuda no CUDA graph b1", "m fp16 ort-cuda no CUDA graph b8", "m fp16 ort-cuda CUDA graph b1",
        "m fp16 ort-cuda CUDA graph b8"]
    command = race.measuring_step(M, Entrant("ort-cuda", "CUDA graph"), "fp16", (8,), []).command
    assert command[-4:] == ["--variant", "CUDA graph", "--batch", "8"]


def test_preparing_makes_files_and_compiles_and_measures_nothing(root):
    (step,) = plan(root, runner=["trt"], prepare=True)
    assert str(step) == "files of m fp16 trt b1,8" and not step.command
    assert race.run_steps([step], arguments(root), on_gpu=True) == []
    assert {line.split()[0] for line in made(root)} == files(root, [step])
    compiling = ["compiling m fp16 torch-compile reduce-overhead b1,8",
                 "compiling m fp16 torch-compile max-autotune b1,8"]
    steps = plan(root, runner=["torch-compile"], prepare=True)
    assert names(steps) == compiling and not any(step.files for step in steps)  # another may be making them
    assert names(plan(root, runner=["torch-compile"], mode=["max-autotune"], prepare=True)) == compiling[1:]
    assert names(plan(root, runner=["torch-compile"], mode=["max-autotune"])) == [
        "m fp16 torch-compile max-autotune b1,8"]
    command = race.compiling_step(M, Entrant("torch-compile", "max-autotune"), "fp16", (1, 8)).command
    assert " ".join(map(str, command[2:])) == ("--cfg m.yaml --resume m.pth --runner torch-compile --precision fp16 "
                                               "--mode max-autotune --compile-only --batch 1,8")


def test_commands_are_ones_that_the_scripts_take(tmp_path):
    """Every script's own parser accepts the flags: it fails later, at a checkpoint, an ONNX file or an engine."""
    model = Model(ROOT / "models/swin_micro.yaml", ROOT / "absent.pth", "absent", "swinv1")
    flags = ["--results", tmp_path, "--min-seconds", "1", "--min-runs", "2"]
    for runner in ("trt", "ort-cpu", "torch-eager"):
        command = race.measuring_step(model, Entrant(runner), "fp16", (1, 8), flags).command
        done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and "no such file" in done.stderr, done.stderr


def test_a_gpu_race_of_both_small_models(tmp_path, monkeypatch, capfd):
    """--dry-run of FP16 only: make knows how to make every file, and every runner has every batch."""
    (tmp_path / "trt-python").write_text("#!/bin/sh\necho TensorRT 8.6.0 builds and runs engines here\n")
    (tmp_path / "trt-python").chmod(0o755)
    (tmp_path / "v1.pth").touch(), (tmp_path / "v2.pth").touch()
    monkeypatch.setattr(race, "TRT_PYTHON", str(tmp_path / "trt-python"))
    monkeypatch.setattr(race.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(race, "onnxruntime_has_cuda", lambda: True)
    models = [str(ROOT / f"models/{name}.yaml") for name in ("swin", "swinv2")]
    command = ["--cfg", *models, "--resume", str(tmp_path / "v1.pth"), str(tmp_path / "v2.pth"), "--precision", "fp16",
               "--results", str(tmp_path / "Results"), "--run-id", "r", "--dry-run"]
    race.main(command)
    told = capfd.readouterr().out.replace(f"{tmp_path}/", "").replace(f"{ROOT}/", "").replace("\\\n", "")
    assert told.splitlines()[0] == "left out: ort-cpu: ort-cuda takes its place on a GPU"
    lines = [" ".join(line.split()[1:]) for line in told.splitlines()[1:]]
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
        for made in (f"export_onnx.py --cfg models/{name.replace('v1', '')}.yaml --resume {name[-2:]}.pth",
                     f"to_fp16.py --onnx onnx/{name}.onnx", f"add_all.py --onnx onnx/{name}.onnx",
                     f"build.sh onnx/{name}_fp16.onnx", f"build.sh onnx/{name}_attention_fp16.onnx",
                     f"--onnx onnx/{name}.onnx --batch 1,8,32,128",
                     *(f"--resume {name[-2:]}.pth --batch {batch} --output onnx/{name}_timm_b{batch}.onnx"
                       for batch in (1, 8, 32, 128)),
                     *(f"build.sh onnx/{name}_timm_b{batch}.onnx" for batch in (1, 8, 32, 128))):
            assert len([line for line in lines if made in line and line not in measured]) == 1, made
    race.main([*command, "--runner", "trt-timm,torch-compile", "--batch", "8", "--mode", "max-autotune", "--prepare"])
    told = capfd.readouterr().out.splitlines()
    assert [len([line for line in told if word in line]) for word in ("--compile-only", "build.sh", "TRT_test")] == [
        2, 2, 0]


@pytest.mark.parametrize("version, timm, why", [
    ("8.6.0", True, ""), ("10.16.1", True, "takes the types from the graph"), ("8.6.0", False, "has no timm")])
def test_timms_export_is_left_out_where_it_cannot_be_made_or_would_not_be_fp16(root, monkeypatch, version, timm, why):
    (root / "trt-python").write_text(f"#!/bin/sh\necho TensorRT {version} builds and runs engines here\n")
    (root / "trt-python").chmod(0o755)
    monkeypatch.setattr(race, "TRT_PYTHON", str(root / "trt-python"))
    monkeypatch.setattr(race, "onnxruntime_has_cuda", lambda: True)
    monkeypatch.setattr(race.importlib.util, "find_spec", lambda name: timm or None)
    out = race.left_out(True, list(race.RUNNERS), ["fp32", "fp16"])
    assert set(out) == {"ort-cpu"} | ({"trt-timm"} if why else set()) and why in out.get("trt-timm", "")


def test_compiled_code_is_kept_and_the_run_id_given_on(root, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    told = root / "told.txt"
    step = measures(root, "torch-compile", f"import os; open({str(told)!r}, 'w').write("
                    "os.environ['TORCHINDUCTOR_CACHE_DIR'] + ' ' + os.environ['RUN_ID'])")._replace(compiles=True)
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
    assert "only trt-plugins" in race.left_out(False, ["ort-cpu"], list(race.PRECISIONS))["int8"]


def test_trt_test_takes_some_of_the_batches(monkeypatch):
    batches = [SimpleNamespace(input=[0] * count) for count in (1, 8, 32)]
    monkeypatch.setattr(TRT_test, "find_batches", lambda plan, facts, pattern: batches)
    chosen = TRT_test.chosen_batches(Path("m.plan"), Facts(), SimpleNamespace(data=None, batch=[32, 1], sizes=None))
    assert [len(batch.input) for batch in chosen] == [1, 32]
    everything = SimpleNamespace(data=None, batch=None, sizes=None)
    assert TRT_test.chosen_batches(Path("m.plan"), Facts(), everything) == batches
    with pytest.raises(UserError, match="no data of batch 4"):
        TRT_test.chosen_batches(Path("m.plan"), Facts(), SimpleNamespace(data=None, batch=[1, 4], sizes=None))


# --- failures ------------------------------------------------------------------------------------------------


def script(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join([f"import sys; sys.path.insert(0, {str(ROOT)!r})", *lines])]


def measures(root: Path, runner: str, *lines: str, files: tuple[Path, ...] = ()) -> Step:
    return Step((M, Entrant(runner), "fp32", (1, 8)), list(files), script(*lines))


def writes_row(root: Path, runner: str, batch: int) -> str:
    values = row(runner, batch, 1, "CPU", precision="fp32")
    return "import os, pathlib; from Results import tables; " \
           f"tables.append_rows(pathlib.Path({str(root / 'Results/latency.csv')!r}), tables.LATENCY_COLUMNS, " \
           f"[{{**{values!r}, 'run_id': os.environ['RUN_ID']}}])"


def test_the_race_goes_on_after_a_failure_and_reports_it(root, capsys):
    failed = race.run_steps([
        measures(root, "ort-cpu", "open('must-not-run', 'w')", files=(root / "onnx/broken.onnx",)),
        measures(root, "torch-eager", writes_row(root, "torch-eager", 1),
                 "sys.exit('torch-eager fp32 b8 (CPU) failed: out of memory\\nerror: 1 of 2 combinations failed')"),
        measures(root, "torch-script", writes_row(root, "torch-script", 1), writes_row(root, "torch-script", 8),
                 files=(root / "onnx/m.onnx",)),
    ], arguments(root, run_id="7"), on_gpu=False)
    assert [line.split(" (log")[0] for line in failed] == [
        "m fp32 ort-cpu b1,8: all plugins: no weights", "m fp32 torch-eager b1,8: b8: out of memory"]
    assert not (root / "must-not-run").exists()
    assert [(found["runner"], found["batch"]) for found in latency_rows(root / "Results", "7")] == [
        ("torch-eager", "1"), ("torch-script", "1"), ("torch-script", "8")]
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("]")[0] for line in shown] == ["[1/3", "[2/3", "[3/3"]
    assert ["FAILED" in line for line in shown] == [True, True, False]
    assert shown[-1].endswith("about 0:00 left")


def test_a_compiling_step_leaves_no_row_and_fails_by_its_status(root):
    steps = [measures(root, "torch-compile", f"sys.exit({status})")._replace(compiles=True)
             for status in ("0", "'out of memory'")]
    failed = race.run_steps(steps, arguments(root), on_gpu=True)
    assert [line.split(" (log")[0] for line in failed] == ["compiling m fp32 torch-compile b1,8: out of memory"]


def test_make_is_told_the_model_the_batches_and_what_to_take(root):
    step = measures(root, "torch-eager", writes_row(root, "torch-eager", 1), writes_row(root, "torch-eager", 8),
                    files=(root / "data/m-b8.npz",))
    assert race.run_steps([step], arguments(root, run_id="1", take_files=True), on_gpu=False) == []
    assert made(root) == ["data/m-b8.npz 1 8 yes"]
    odd = M._replace(checkpoint=Path("my $HOME file.pth"))
    words = race.make_command(odd, [root / "onnx/m.onnx"], [1])
    assert "MODEL=--cfg m.yaml --resume 'my $$HOME file.pth'" in words
    assert "FACTS=m swinv1 - my $$HOME file.pth" in words


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
    race.main(["--draw-only", "--run-id", "1", "--results", str(tmp_path), "--pictures", str(tmp_path)])
    table = (tmp_path / "speedup.md").read_text()
    assert "| m | fp16 | 1 | 0.500 | 1.000e-03 | trt, CUDA graph | 1.200 | 1.000e-03 | 2.40 |" in table
    assert "Run 1 on A GPU, commit abc" in table and "77" not in table
    assert table.count("\n- m fp16") == 2 and "beyond the tolerance" in table and "NaN" in table
    first = (tmp_path / "latency.png").read_bytes()
    draw_latency.main(["--run", "1", "--results", str(tmp_path), "--pictures", str(tmp_path)])
    assert (tmp_path / "latency.png").read_bytes() == first
    # Run 2 has nothing of ours, run 4 was not on a GPU.
    draw_latency.main(["--results", str(tmp_path), "--pictures", str(tmp_path)])
    assert (tmp_path / "latency.png").read_bytes() == first
    draw_latency.main(["--run", "2", "--results", str(tmp_path), "--pictures", str(tmp_path)])
    assert "77.000" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no rows of run 3; race\.py measures them"):
        draw_latency.main(["--run", "3", "--results", str(tmp_path), "--pictures", str(tmp_path)])


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
    draw_latency.main(["--run", "2", "--results", str(tmp_path), "--pictures", str(tmp_path)])
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
    draw_latency.main(["--results", str(tmp_path), "--pictures", str(tmp_path)])
    table = (tmp_path / "speedup.md").read_text()
    assert "Run 1, 2 on A GPU" in table
    assert "| m | fp16 | 8 | 2.000 | 1.000e-03 | torch-compile, mode max-autotune | 2.500 | 1.000e-03 | 1.25 |" in table
    assert "| m | int8 | 8 | 1.200 | 1.000e-03 | trt-plugins fp16, CUDA graph | 1.800 | 1.000e-03 | 1.50 |" in table
    assert "wrote" in capsys.readouterr().out
    assert list(best_of_both(ROWS, later)) == [("m", "fp16", 1), ("m", "fp16", 8), ("m", "fp32", 1), ("m", "int8", 8)]


def test_without_other_runners_the_newest_run_of_ours_is_shown():
    older, newer = (row("trt-plugins", 8, 2.0, "good", run_id=run) for run in ("1", "2"))
    assert race_and_int8([older, newer]) == ([newer], [])
