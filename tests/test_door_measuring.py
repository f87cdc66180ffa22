"""measure.py of examples/pytorch and of examples/onnxruntime without a GPU: what they build, and what they refuse."""
from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from examples.onnxruntime import measure as onnxruntime_measure
from examples.pytorch import measure
from utils import UserError


def test_a_fused_model_is_measured_on_what_it_is_compared_with(monkeypatch):
    """Runs and errors of one model, on the CPU: only the clock and the CUDA graph need a GPU."""
    monkeypatch.setattr(measure, "SMALL", {"embed_dim": 32, "depths": [1, 1], "num_heads": [1, 2]})
    model, size = measure.built("transformers:swinv2", None)
    assert size == 256
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = measure.expected_of(model, images)
        fused, eager = (measure.prepare(runner, model, images, torch.float16)().float().numpy()
                        for runner in ("fused", "eager"))
    assert expected.shape == (2, 1000) and abs(expected).max() > 1
    assert 0 < abs(fused - expected).max() <= 5e-3 * abs(expected).max()
    assert 0 < abs(eager - expected).max() <= 5e-2 * abs(expected).max()


def test_times_are_taken_within_the_turn(monkeypatch):
    """What comes before, such as compiling, is not: it may go on in several processes at once."""
    inside, seen = [], []

    @contextmanager
    def turn():
        inside.append(1)
        yield
        inside.clear()

    def run():
        seen.append(bool(inside))
        return torch.zeros(1, 2)

    monkeypatch.setattr(measure, "prepare", lambda *_: run)
    logits, times = measure.measure("eager", None, torch.zeros(1), torch.float16, turn(), min_runs=3, min_s=0)
    assert logits.shape == (1, 2) and len(times) == 3
    assert seen[0] is False and all(seen[1:]) and not inside


def test_an_engine_goes_with_one_model(capsys):
    assert measure.parse([]).runner == [name for name in measure.RUNNERS if name != "engine"]
    assert measure.parse(["--model", "own:a.yaml", "--plan", "a.plan"]).runner == list(measure.RUNNERS)
    for flags, message in ((["--plan", "a.plan"], "--plan is an engine of one --model"),
                           (["--runner", "engine"], "--runner engine takes --plan")):
        with pytest.raises(SystemExit):
            measure.parse(flags)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["timm:no_such_swin", "transformers:vit", "swin"])
def test_an_unknown_model_is_one_line(name):
    with pytest.raises(UserError, match=f"^{name}: "):
        measure.built(name, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_without_a_gpu_they_say_so(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no GPU that PyTorch can use"):
        measure.main(["--results", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_missing_library_says_how_to_make_it(tmp_path):
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"")
    with pytest.raises(UserError, match=r"none\.so: no such file; give the path of libswin_onnxruntime\.so \(make -C"):
        onnxruntime_measure.main(["--onnx", str(graph), "--patched", str(graph),
                                  "--library", str(tmp_path / "none.so")])
