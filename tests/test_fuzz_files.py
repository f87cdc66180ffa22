"""Files of others, fuzzed: data files, calibration caches, ONNX graphs and the facts in them, tables, yamls, labels.

    python -m pytest tests/test_fuzz_files.py

hypothesis changes good files and makes bad ones; whatever reads them gives a value or one UserError of one line, never
another exception. Every run tries the same examples; what was once found stands in @example. FUZZ=N makes N times as
many (.ci/run: a minute of them), FUZZ_RANDOM=1 new ones each time.
"""
from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import test_swinV2 as accuracy
from config import get_config
from data.batches import data_facts, load_arrays
from graphs.facts import FORMS, PREFIX, Facts, of_onnx
from graphs.files import load_onnx
from Results.tables import read_rows
from TensorRT.INT8.calibration_cache import Cache, cache_text, read_cache
from utils import ROOT, UserError

fuzzed = settings(max_examples=300 * int(os.environ.get("FUZZ", "1")), deadline=None, database=None,
                  derandomize="FUZZ_RANDOM" not in os.environ,
                  suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

# How a good file is broken: bytes that are overwritten, cut out and put in, each at a place from 0 to 1 of its length.
PLACE = st.floats(0, 1, exclude_max=True)
CHANGES = st.lists(st.tuples(PLACE, st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=4)


def broken(data: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    for place, cut, put in changes:
        at = int(place * len(data))
        data = data[:at] + put + data[at + cut:]
    return data


def reads(data: bytes, suffix: str, read: Callable[[Path], object]) -> object:
    """What reading a file with these bytes gives; None where it is refused in one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        path.write_bytes(data)
        try:
            return read(path)
        except UserError as error:
            assert str(error).strip()
            assert len(str(error).strip().splitlines()) == 1
            return None


def good_npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, input=np.ones((1, 3, 4, 4), np.float32), logits=np.ones((1, 5), np.float32), model=np.array("m"))
    return buffer.getvalue()


def good_cache() -> bytes:
    return cache_text(Cache("minmax", 16, "0" * 32, {"a": np.float32(1), "b/c": np.float32(2)})).encode()


def good_graph() -> onnx.ModelProto:
    shape = ["batch", 3, 8, 8]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Mul", ["input", "two"], ["output"], "double")], "graph", values[:1],
                              values[1:], [numpy_helper.from_array(np.full((3, 1, 1), 2, np.float32), "two")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


NPZ, CACHE, GRAPH = good_npz(), good_cache(), good_graph().SerializeToString()
TABLE = b"run_id,batch,latency_ms_median\n1,8,1.5\n2,8,1.6\n"
YAML = (ROOT / "models" / "swin_micro.yaml").read_bytes()
LABELS = b"a.png 1\nb/c.png 3\n"


@fuzzed
@given(CHANGES)
@example([(0.0, 0, b"\x93NUMPY")])
@example([(0.5, 1, b"")])  # OSError of zipfile
def test_npz(changes):
    found = reads(broken(NPZ, changes), ".npz", lambda path: load_arrays(path, ("input", "logits"), "data", "write it"))
    reads(broken(NPZ, changes), ".npz", data_facts)
    assert found is None or all(isinstance(array, np.ndarray) for array in found.values())


@fuzzed
@given(st.binary(max_size=400), st.sampled_from(["input.npy", "logits.npy"]))
@example(b"\x93NUMPY\1\0\x10\0{'descr': 'nope'}", "input.npy")  # tokenize.TokenError
@example(b"text", "input.npy")                                   # numpy gives bytes
def test_npz_with_other_arrays(content, name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for array in {"input.npy", "logits.npy"} - {name}:
            saved = io.BytesIO()
            np.save(saved, np.ones(3, np.float32))
            archive.writestr(array, saved.getvalue())
        archive.writestr(name, content)
    reads(buffer.getvalue(), ".npz", lambda path: load_arrays(path, ("input", "logits"), "data", "write it"))


@fuzzed
@given(CHANGES)
def test_calibration_cache(changes):
    cache = reads(broken(CACHE, changes), ".cache", read_cache)
    assert cache is None or all(np.isfinite(scale) and scale > 0 for scale in cache.scales.values())


@fuzzed
@given(st.text(max_size=200))
@example("TRT-8600-EntropyCalibration2\nswin_int8/minmax/" + "9" * 5000 + "_images/" + "0" * 32 + ": 3f800000")
def test_calibration_cache_of_any_text(text):
    reads(text.encode("utf-8", "surrogatepass"), ".cache", read_cache)


@fuzzed
@given(CHANGES)
def test_onnx(changes):
    data = broken(GRAPH, changes)
    reads(data, ".onnx", load_onnx)
    reads(data, ".onnx", of_onnx)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=8)


@fuzzed
@given(st.sampled_from(sorted(Facts.__dataclass_fields__)), JSON.map(json.dumps) | st.text(max_size=60))
@example("parents", "[" * 3000)
@example("classes", "9" * 5000)
@example("mean", "[NaN, 1, 1]")
@example("layout", "NHWC")
def test_facts_in_an_onnx_file(name, value):
    model = good_graph()
    model.metadata_props.add(key=PREFIX + name, value=value.encode("utf-8", "replace").decode())
    facts = reads(model.SerializeToString(), ".onnx", of_onnx)
    assert facts is None or (facts.input == "input" and facts.precision == "fp32"), "the graph counts"
    assert name in FORMS or facts is None or isinstance(getattr(facts, name), (str, tuple, dict, int, type(None)))


@fuzzed
@given(CHANGES)
@example([(0.0, 0, b'"')])
def test_tables(changes):
    rows = reads(broken(TABLE, changes), ".csv", lambda path: read_rows(path, ("run_id", "batch")))
    assert rows is None or all(row["batch"].isdecimal() for row in rows)


@fuzzed
@given(CHANGES)
def test_yamls(changes):
    reads(broken(YAML, changes), ".yaml", get_config)


@fuzzed
@given(CHANGES)
def test_labels(changes):
    labels = reads(broken(LABELS, changes), ".txt", lambda path: accuracy.read_labels(path, ["a.png", "b/c.png"], 5))
    assert labels is None or (labels.shape == (2,) and labels.min() >= 0 and labels.max() < 5)
