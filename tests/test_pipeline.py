"""The Makefile and once.py: what is made, made again and not made again.

make runs on the real Makefile with stand-ins for the scripts: each makes its file at once, of the contents of the files
that it was given.
"""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import once
from utils import ROOT

# Stands in for python3, bash TensorRT/build.sh and make -C: notes the call, and makes what it is asked for.
STAND_IN = f"""#!/usr/bin/env bash
set -eu
case $1 in
    once.py) exec {sys.executable} "$@" ;;
    models/facts.py) [[ "$*" != *absent* ]] || {{ echo "absent: no such model" >&2; exit 1; }}
        echo "m_micro ${{TYPE:-swinv2}} 256 ${{WEIGHTS_OF_MODEL:-weights.pth}}"; exit ;;
    -c) cat tensorrt-version; exit ;;
esac
echo "$*" >> calls
inputs=() outputs=() batches='' model='' words=("$@")
while (($#)); do
    case $1 in
        --output | --cache) outputs+=("$2") ;;
        --onnx | --cfg | --resume) inputs+=("$2"); model=$(basename "$2" .onnx) ;;
        --batch) batches=$2 ;;
        --plugins=*) inputs+=("${{1#*=}}") ;;
        *.onnx) if [[ $1 == "${{words[1]}}" ]]; then inputs+=("$1"); fi ;;
    esac
    shift
done
if [[ -d ${{outputs[0]}} ]]; then
    folder=${{outputs[0]}} outputs=()
    for batch in ${{batches//,/ }}; do outputs+=("$folder/$model-b$batch.npz"); done
fi
contents=$(echo "${{words[@]}}"; cat "${{inputs[@]}}" /dev/null | sha256sum)
for output in "${{outputs[@]}}"; do
    echo "$contents" > "$output"
    [[ ! -s broken || "${{words[*]}}" != *"$(< broken)"* ]] || {{ echo half > "$output"; echo "it is broken"; exit 3; }}
    echo "wrote $output"
done
"""
BASH = """#!/bin/sh
if [ "$1" = TensorRT/build.sh ]; then exec python3 "$@"; fi
exec /bin/bash "$@"
"""


class Pipeline:
    """A folder with the real Makefile in it, and empty scripts."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "TensorRT").mkdir()
        for name in ("Makefile", "once.py", "TensorRT/swinv2_question.mk"):
            shutil.copy(ROOT / name, folder / name)
        scripts = ["config.py", "utils.py", "TensorRT/build.sh", "TensorRT/build_engine.py", "models/stress.py"]
        for pattern in ("onnx/*.py", "onnx/graphsurgeon/*.py", "TensorRT/INT8/*.py", "models/*.py", "data/*.py"):
            scripts += [str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)]
        for name in (*scripts, "requirements.txt", "weights.pth", "m.yaml", "tensorrt-version", "nvidia-smi"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        for name in ("TensorRT/TRT_Engine", "TensorRT/Plugins/LayerNorm", "bin"):
            (folder / name).mkdir(parents=True)
        (folder / "TensorRT/Plugins/Makefile").write_text(
            "build/libswin_plugins.so: LayerNorm/k.cu ; mkdir -p build; cp $< $@\n")
        (folder / "TensorRT/Plugins/LayerNorm/k.cu").write_text("kernel")
        for name, text in (("python3", STAND_IN), ("bash", BASH), ("nvidia-smi", "#!/bin/sh\ncat nvidia-smi\n")):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def start(self, *targets: str, **environment: str) -> subprocess.Popen:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "TRT_PYTHON")}
        return subprocess.Popen(["make", "-s", "MODEL=--cfg m.yaml --resume weights.pth", *targets], cwd=self.folder,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**kept, "PATH": path, **environment})

    def make(self, *targets: str, status: int = 0, **environment: str) -> list[str]:
        """Run make; what was called, as far as a name tells it."""
        (self.folder / "calls").unlink(missing_ok=True)
        running = self.start(*targets, **environment)
        self.out, self.err = running.communicate()
        assert running.returncode == status, self.out + self.err
        return self.calls()

    def calls(self) -> list[str]:
        """The outputs of the calls, in their order, without folder."""
        calls = self.folder / "calls"
        lines = [line.split() for line in calls.read_text().splitlines()] if calls.exists() else []
        return [Path(words[words.index("--output") + 1]).name if "data/batch_data_gen.py" not in words
                else f"data of {Path(words[words.index('--onnx') + 1]).stem}" for words in lines]

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()


@pytest.fixture
def pipeline(tmp_path):
    return Pipeline(tmp_path)


EXPORT, INT8, PATCHED_INT8 = "m_micro.onnx", "m_micro_int8.onnx", "m_micro_attention_int8.onnx"
LAYERNORM, PATCHED = "m_micro_layernorm.onnx", "m_micro_attention.onnx"
FP16 = {f"m_micro{kind}_fp16.onnx" for kind in ("", "_layernorm", "_attention")}
DATA = {"data of m_micro", "data of m_micro_int8"}
SURGERY = {LAYERNORM, PATCHED, *FP16, INT8, PATCHED_INT8}
ALL = {EXPORT, *SURGERY, *DATA}


def test_all_is_made_once_and_in_order(pipeline, jobs="-j8"):
    made = pipeline.make(jobs)
    assert sorted(made) == sorted(ALL)
    for later, earlier in ((PATCHED, EXPORT), ("m_micro_attention_fp16.onnx", PATCHED), (PATCHED_INT8, INT8),
                           ("data of m_micro_int8", INT8)):
        assert made.index(earlier) < made.index(later)
    assert {path.name for path in (pipeline.folder / "data").glob("*.npz")} == {
        f"m_micro{kind}-b{batch}.npz" for kind in ("", "_int8") for batch in (1, 4, 8, 16)}
    assert "--narrow" in pipeline.text("calls")
    assert pipeline.make(jobs) == []
    assert pipeline.out.count("as before") == len(ALL)


def test_what_nobody_asks_for_is_not_made(pipeline):
    assert pipeline.make("onnx/m_micro_attention_fp16.onnx") == [EXPORT, PATCHED, "m_micro_attention_fp16.onnx"]


def test_a_changed_input_makes_anew_what_reads_it(pipeline):
    """The stand-ins make the same with another script, so that only what reads the script is made again."""
    pipeline.make("all", "engines")
    plans = {f"m_micro{kind}.plan" for kind in ("", "_fp16", "_layernorm", "_attention_fp16", "_attention_int8")}
    for changed, again in (
            ("models/swin.py", {EXPORT}), ("utils.py", ALL), ("onnx/graphsurgeon/tidy.py", SURGERY),
            ("TensorRT/INT8/qdq.py", {INT8}), ("data/batch_data_gen.py", ALL), ("TensorRT/build.sh", plans),
            ("weights.pth", ALL | plans), ("m.yaml", ALL | plans)):
        (pipeline.folder / changed).write_text("another")
        assert set(pipeline.make("all", "engines")) == again, changed
    assert pipeline.make("all", "engines") == []


def test_weights_that_the_model_brings_are_an_input_too(pipeline):
    settings = ("onnx/m_micro.onnx", "MODEL=--cfg m.yaml")
    pipeline.make(*settings)
    (pipeline.folder / "weights.pth").write_text("trained longer")
    assert pipeline.make(*settings) == [EXPORT]
    assert pipeline.make(*settings) == []


def test_a_newer_time_alone_makes_nothing(pipeline):
    pipeline.make()
    for path in pipeline.folder.rglob("*"):
        if path.is_file() and ".cache" not in path.parts:
            path.touch()
    assert pipeline.make() == []


@pytest.mark.parametrize("spoil", [
    lambda path: path.unlink(),
    lambda path: path.write_bytes(path.read_bytes()[:5]),
    lambda path: (path.write_text("another's"), os.utime(path, (0, 0))),
])
def test_an_output_that_is_gone_or_truncated_or_replaced_is_made_again(pipeline, spoil):
    targets = ("onnx/m_micro_attention_int8.onnx", "data/m_micro-b1.npz")
    pipeline.make(*targets)
    for name, again in (("onnx/m_micro.onnx", EXPORT), ("TensorRT/INT8/m_micro.cache", INT8),
                        ("onnx/m_micro_attention_int8.onnx", PATCHED_INT8), ("data/m_micro-b8.npz", "data of m_micro")):
        right = pipeline.text(name)
        spoil(pipeline.folder / name)
        assert pipeline.make(*targets) == [again], name  # what is made of it is of the same contents
        assert pipeline.text(name) == right


def test_other_flags_make_anew(pipeline):
    (pipeline.folder / "pictures").mkdir()
    targets = ("onnx/m_micro_int8.onnx", "data")
    pipeline.make(*targets)
    for settings, again in (("MODEL=--cfg m.yaml --resume weights.pth --opts A B", EXPORT),
                            ("INT8_FLAGS=--keep head", INT8), ("BATCHES=1 2", "data of m_micro")):
        assert pipeline.make(*targets, settings)[0] == again, settings
        assert pipeline.make(*targets, settings) == [], settings
        assert pipeline.make(*targets)[0] == again, settings  # and back


def test_a_folder_of_other_images_makes_anew(pipeline):
    (pipeline.folder / "pictures").mkdir()
    pipeline.make("data", "IMAGES=pictures")
    (pipeline.folder / "pictures" / "one.png").write_text("image")
    assert set(pipeline.make("data", "IMAGES=pictures")) == {INT8, *DATA}
    assert pipeline.make("data", "IMAGES=pictures") == []


def test_a_failure_leaves_nothing_half_written_and_is_tried_again(pipeline):
    (pipeline.folder / "broken").write_text("m_micro_int8.onnx")
    made = pipeline.make("-k", status=2)
    assert set(made) == ALL - {PATCHED_INT8, "data of m_micro_int8"}  # what does not need it is made
    assert not (pipeline.folder / "onnx/m_micro_int8.onnx").exists()
    assert "INT8" in pipeline.out and "FAILED" in pipeline.out and "it is broken" in pipeline.out
    assert "all of its output is in .cache/logs/onnx-m_micro_int8.onnx.log" in pipeline.err
    (pipeline.folder / "broken").write_text("")
    assert pipeline.make() == [INT8, PATCHED_INT8, "data of m_micro_int8"]


def test_a_dry_run_prints_the_commands_and_leaves_nothing(pipeline):
    assert pipeline.make("-n", "all", "engines") == []
    lines = pipeline.out.replace("\\\n", " ").splitlines()
    assert lines[0].split()[:2] == ["python3", "onnx/export_onnx.py"] and "once" not in pipeline.out
    assert sum("TensorRT/build.sh" in line for line in lines) == 5
    assert not (pipeline.folder / ".cache").exists() and not list(pipeline.folder.rglob("*.so"))


def test_two_at_once_make_each_file_once(pipeline):
    running = [pipeline.start("-j4") for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    for process in running:
        process.communicate()
    assert sorted(pipeline.calls()) == sorted(ALL)


def test_files_are_taken_as_they_are_on_request(pipeline):
    (pipeline.folder / "onnx/m_micro.onnx").write_text("from elsewhere")
    assert pipeline.make("onnx/m_micro_fp16.onnx", TAKE_FILES="yes") == ["m_micro_fp16.onnx"]
    assert pipeline.text("onnx/m_micro.onnx") == "from elsewhere"
    assert pipeline.make("onnx/m_micro_fp16.onnx") == [EXPORT, "m_micro_fp16.onnx"]


def test_ones_own_graph_is_patched_and_never_overwritten(pipeline):
    (pipeline.folder / "mine").mkdir()
    (pipeline.folder / "mine/a_fp16.onnx").write_text("mine")  # whatever its name
    made = pipeline.make("GRAPH=mine/a_fp16.onnx")
    assert EXPORT not in made and {"a_fp16_attention_fp16.onnx", "a_fp16_attention_int8.onnx"} < set(made)
    assert pipeline.text("mine/a_fp16.onnx") == "mine"
    assert pipeline.make("GRAPH=mine/none.onnx", status=2) == []


def test_a_model_that_is_not_there_is_told(pipeline):
    pipeline.make("MODEL=--cfg absent", status=2)
    assert pipeline.err.splitlines()[0] == "absent: no such model"


def test_a_path_may_have_spaces_and_dollars(pipeline):
    odd = "my $HOME file.pth"
    (pipeline.folder / odd).write_text("odd")
    settings = ["MODEL=--cfg m.yaml --resume 'my $$HOME file.pth'"]
    pipeline.make("onnx/m_micro.onnx", *settings)
    assert f"--resume {odd} --output" in pipeline.text("calls")
    (pipeline.folder / odd).write_text("another")
    assert pipeline.make("onnx/m_micro.onnx", *settings) == [EXPORT]


# --- engines -------------------------------------------------------------------------------------------------


def test_engines_are_built_with_what_their_graphs_need(pipeline):
    made = pipeline.make("engines", TYPE="swinv1", BUILD_FLAGS="--memPoolSize=workspace:512")
    lines = {words[words.index("--output") + 1]: words for words in map(str.split, pipeline.text("calls").splitlines())
             if words[0] == "TensorRT/build.sh"}
    assert {Path(plan).stem.removeprefix("m_micro") for plan in lines} == {
        "", "_fp16", "_layernorm_fp16", "_attention_fp16", "_attention_int8"}
    for plan, words in lines.items():
        assert words[1] == f"onnx/{Path(plan).stem}.onnx" and "--memPoolSize=workspace:512" in words
        assert ("--noTF32" in words) == (not plan.endswith(("_fp16.plan", "_int8.plan")))
        assert ("--plugins=TensorRT/Plugins/build/libswin_plugins.so" in words) == (
            "layernorm" in plan or "attention" in plan)
    assert made and pipeline.make("engines", TYPE="swinv1", BUILD_FLAGS="--memPoolSize=workspace:512") == []


def test_in_fp32_the_classifier_is_a_plugin_too(pipeline):
    assert pipeline.make("TensorRT/TRT_Engine/m_micro_attention_fp32.plan")[-1] == "m_micro_attention_fp32.plan"
    *_, patch, build = pipeline.text("calls").splitlines()
    assert "add_all.py --onnx onnx/m_micro.onnx --classifier --output onnx/m_micro_attention_fp32.onnx" in patch
    assert "onnx/m_micro_attention_fp32.onnx" in build and "--plugins=" in build and "--noTF32" in build


def test_engines_are_built_again_for_other_kernels_another_gpu_or_tensorrt(pipeline):
    plans = [f"TensorRT/TRT_Engine/m_micro{kind}.plan" for kind in ("", "_attention_fp16")]
    pipeline.make(*plans)
    os.utime(pipeline.folder / "TensorRT/Plugins/build/libswin_plugins.so", (1, 1))
    for changed, again in (("TensorRT/Plugins/LayerNorm/k.cu", plans[1:]), ("nvidia-smi", plans),
                           ("tensorrt-version", plans)):
        (pipeline.folder / changed).write_text("another")
        assert pipeline.make(*plans) == [Path(plan).name for plan in again]
        assert pipeline.make(*plans) == []


def test_an_engine_of_timms_export_is_of_one_batch(pipeline):
    plans = [f"TensorRT/TRT_Engine/m_micro_timm_b8{kind}.plan" for kind in ("", "_fp16")]
    assert pipeline.make(*plans) == ["m_micro_timm_b8.onnx", "m_micro_timm_b8.plan", "m_micro_timm_b8_fp16.plan"]
    export, fp32, fp16 = pipeline.text("calls").splitlines()
    assert "export_timm.py --cfg m.yaml --resume weights.pth --batch 8" in export
    assert "--noTF32" in fp32 and "--fp16" not in fp32 and "--fp16" in fp16 and "--noTF32" not in fp16
    assert all("onnx/m_micro_timm_b8.onnx" in line for line in (fp32, fp16))


def test_a_library_that_nothing_can_build_is_used_where_it_is(pipeline):
    (pipeline.folder / "TensorRT/Plugins/Makefile").write_text("$(error nvcc: not found)\n")
    pipeline.make("TensorRT/TRT_Engine/m_micro_attention_fp16.plan", status=2)
    assert "nvcc: not found" in pipeline.out
    (pipeline.folder / "TensorRT/Plugins/build").mkdir()
    (pipeline.folder / "TensorRT/Plugins/build/libswin_plugins.so").write_text("from elsewhere")
    assert pipeline.make("TensorRT/TRT_Engine/m_micro_attention_fp16.plan")[-1] == "m_micro_attention_fp16.plan"


# --- once.py: tables and large files ---------------------------------------------------------------------------


def do(folder: Path, *arguments: str, command: str) -> str:
    """Run once.py on a line of shell; the first two columns of what it printed."""
    done = subprocess.run([sys.executable, str(ROOT / "once.py"), "--what", "w", *arguments, "--", "sh", "-c", command],
                          cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout[2:39].split(maxsplit=1)[1]


def test_a_step_whose_rows_are_gone_from_a_table_is_done_again(tmp_path):
    (tmp_path / "t.csv").write_text("head\nold,1\n")

    def measure(row: str) -> str:
        return do(tmp_path, "--name", row, "--rows", "t.csv", command=f"echo {row},$RANDOM >> t.csv")

    assert [measure("a"), measure("b")] == ["0 s", "0 s"]
    assert [measure("a"), measure("b")] == ["as before"] * 2  # the other's rows do not matter
    lines = (tmp_path / "t.csv").read_text().splitlines()
    (tmp_path / "t.csv").write_text("\n".join([*lines[:2], lines[3], ""]))  # without a's
    assert [measure("a"), measure("b")] == ["0 s", "as before"]
    (tmp_path / "t.csv").unlink()
    assert [measure("a"), measure("b")] == ["0 s", "0 s"]


def test_large_files_are_read_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "large"
    path.write_bytes(bytes(2**20 + 1))
    first = once.digest(path)
    record, = (tmp_path / ".cache/once/digests").iterdir()
    record.write_text(record.read_text().replace(first, "remembered"))
    assert once.digest(path) == "remembered"
    path.write_bytes(bytes(2**20) + b"x")
    assert once.digest(path) not in (first, "remembered")


def heed_interrupts() -> None:
    """Tests that a shell started in the background ignore them, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_what_is_recorded_is_whole_when_a_command_is_stopped(tmp_path):
    do(tmp_path, "--output", "o", command="echo o > o")
    (record,) = (tmp_path / ".cache/once").glob("*.json")
    assert json.loads(record.read_text())["outputs"] == {"o": once.digest(tmp_path / "o")}
    stopped = subprocess.run([sys.executable, str(ROOT / "once.py"), "--what", "w", "--output", "o", "--", "sh", "-c",
                              "echo half > o; kill -INT $PPID; sleep 9"], cwd=tmp_path, capture_output=True, text=True,
                             preexec_fn=heed_interrupts)
    assert stopped.returncode == 130 and "Traceback" not in stopped.stderr
    assert not record.exists()  # so that o is made again
