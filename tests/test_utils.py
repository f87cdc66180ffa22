"""utils.py: whole files, scripts that are stopped or run out of memory, progress, names of pictures."""
from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import utils
from utils import (
    ROOT,
    Progress,
    UserError,
    check_writable,
    folder_to_write,
    picture_target,
    run_script,
    whole_file,
)


def script(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join(["import sys, time", "from pathlib import Path",
                                             f"sys.path.insert(0, {str(ROOT)!r})",
                                             "from utils import UserError, run_script, whole_file", *lines])]


WRITES = ("def main():", "    with whole_file(sys.argv[1]) as partial:", "        partial.write_text('half')",
          "        print('begun', flush=True)", "        sys.stdin.read()", "run_script(main)")


def begun(path: Path) -> subprocess.Popen:
    """A process that has begun to write a file, and waits for the end of its input."""
    process = subprocess.Popen([*script(*WRITES), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True,
                               # A shell's background processes ignore it.
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout.readline() == "begun\n"
    return process


# --- whole files ---------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    path.chmod(0o664)
    with pytest.raises(UserError, match="stop"), whole_file(path) as partial:
        partial.write_text("half")
        raise UserError("stop")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with whole_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o664 and list(tmp_path.iterdir()) == [path]


def test_ctrl_c_is_one_line_and_leaves_nothing_half_written(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    process = begun(path)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and err.strip() == "-c: stopped by Ctrl-C; nothing half-written is left"
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_live_one_writes_is_not(tmp_path):
    path = tmp_path / "file.txt"
    killed = begun(path)
    killed.kill()
    killed.communicate()
    assert len(list(tmp_path.iterdir())) == 1
    live = begun(path)  # removes it
    (theirs,) = tmp_path.iterdir()
    with whole_file(path) as partial:
        partial.write_text("ours")
        assert theirs.read_text() == "half" and partial != theirs
    assert path.read_text() == "ours" and theirs.exists()
    live.communicate("")
    assert live.returncode == 0 and path.read_text() == "half" and list(tmp_path.iterdir()) == [path]


def test_files_that_only_look_abandoned_stay(tmp_path):
    others = [tmp_path / name for name in (".file.txt-abc", ".other.txt.partial-abcdefgh.txt", ".file.partial-a.txt")]
    for other in others:
        other.touch()
    with whole_file(tmp_path / "file.txt") as partial:
        partial.write_text("text")
    assert all(other.exists() for other in others)


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target.txt", tmp_path / "link.txt"
    link.symlink_to(target)  # of a file that is not there yet
    for text in ("first", "second"):
        with whole_file(link) as partial:
            partial.write_text(text)
        assert link.is_symlink() and target.read_text() == text
    assert list((tmp_path / "folder").iterdir()) == [target]


def test_what_cannot_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "inside", Path("/proc/nothing/file")):
        with pytest.raises(UserError, match=r"is a folder|cannot be written there"):
            check_writable(path)
    check_writable(tmp_path / "new" / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_picture_needs_a_name_that_can_be_drawn(tmp_path):
    for name in ("picture", "picture.txt", "picture.png.tmp"):
        with pytest.raises(UserError, match=r"not the name of a picture; let it end with one of .*\.png"):
            picture_target(tmp_path / name)
    from matplotlib import pyplot

    figure = pyplot.figure()
    for suffix in utils.PICTURES:
        figure.savefig(picture_target(tmp_path / f"picture{suffix}"))
        assert (tmp_path / f"picture{suffix}").stat().st_size
    pyplot.close(figure)


# --- scripts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raised, status, told", [
    ("UserError('a.csv: is broken')", 1, "-c: error: a.csv: is broken"),
    ("MemoryError('Unable to allocate 8.00 TiB for an array')", 1,
     "-c: error: not enough memory (Unable to allocate 8.00 TiB for an array); give fewer or smaller batches, or a "
     "larger machine"),
    ("MemoryError()", 1, "-c: error: not enough memory (no figure is known); give fewer"),
    ("RuntimeError('CUDA out of memory. Tried to allocate 9.00 GiB.\\nMore')", 1,
     "not enough memory (CUDA out of memory. Tried to allocate 9.00 GiB.)"),
    ("PermissionError(13, 'Permission denied', 'x.txt')", 1, "-c: error: x.txt: Permission denied"),
    ("KeyboardInterrupt", 130, "-c: stopped by Ctrl-C; nothing half-written is left"),
])
def test_what_is_not_the_codes_fault_is_one_line(raised, status, told):
    done = subprocess.run(script("def main():", f"    raise {raised}", "run_script(main)"), capture_output=True,
                          text=True)
    assert done.returncode == status and told in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_real_shortages_of_memory_are_one_line():
    """As numpy, PyTorch and onnxruntime say it: more is asked for than any machine has."""
    for lines in (["import numpy", "numpy.ones(2**50)"], ["import torch", "torch.ones(2**50)"]):
        done = subprocess.run(script("def main():", *(f"    {line}" for line in lines), "run_script(main)"),
                              capture_output=True, text=True)
        assert done.returncode == 1 and "not enough memory (" in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_an_error_of_the_code_keeps_its_traceback():
    def main() -> None:
        raise RuntimeError("a shape is wrong")

    with pytest.raises(RuntimeError, match="a shape is wrong"):
        run_script(main)


# --- progress ------------------------------------------------------------------------------------------------


def test_progress_tells_from_time_to_time_and_at_the_end_how_long_the_rest_takes(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(utils.time, "perf_counter", lambda: now[0])
    progress = Progress(4, "parts", every_s=10)
    for now[0] in (6.0, 12.0, 300.0, 400.0):
        progress.done()
    assert capsys.readouterr().out.splitlines() == [
        "  2 of 4 parts, 12 s, about 12 s left", "  3 of 4 parts, 300 s, about 2 min left",
        "  4 of 4 parts, 400 s, about 0 s left"]


def test_a_folder_to_write_into_is_named_as_it_was_given(tmp_path):
    (tmp_path / "file").touch()
    for path, problem in ((tmp_path / "file", "is a file, not a folder"),
                          (tmp_path / "file" / "in", "cannot be written there"),
                          ("/proc/no", "cannot be written there")):
        with pytest.raises(UserError, match=rf"^{path}: {problem}"):
            folder_to_write(str(path))
    assert folder_to_write(str(tmp_path / "new")) == tmp_path / "new" and not (tmp_path / "new").exists()
