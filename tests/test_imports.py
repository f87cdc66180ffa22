"""Which module imports which: no circle, and what touches TensorRT does without onnx, PyTorch and the rest."""
from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from utils import ROOT

# A script of these folders is imported by its bare name: onnx/ cannot be a package, pip's onnx would be hidden.
BARE = ("onnx", "onnx/graphsurgeon")
FOLDERS = ("", "models", "data", "graphs", "inference", "Results", "TensorRT", "TensorRT/INT8", "TensorRT/Plugins",
           *BARE)
MODULES = {path.stem if folder in ("", *BARE) else f"{folder.replace('/', '.')}.{path.stem}": path
           for folder in FOLDERS for path in (ROOT / folder).glob("*.py") if path.stem != "__init__"}


def imported_by(path: Path) -> set[str]:
    """The project's modules that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & set(MODULES)


def test_imports_make_no_circle_also_none_inside_functions():
    graph = {name: imported_by(path) for name, path in MODULES.items()}
    assert graph["graphs.sessions"] and graph["TRT_test"] and "add_attention" in graph["add_all"]  # names are found
    order = list(TopologicalSorter(graph).static_order())  # CycleError names a circle
    assert order.index("utils") < order.index("data.images") < order.index("data.photo_crops")


# Stands in for a Python that has numpy and TensorRT, and nothing else that this project uses.
NOTHING_ELSE = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"onnx", "onnxruntime", "onnx_graphsurgeon", "torch", "pandas", "PIL", "matplotlib",
                                  "yacs", "yaml", "safetensors", "skimage", "sklearn", "timm", "google"}:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv[1])
import importlib
importlib.import_module(sys.argv[2])
"""


@pytest.mark.parametrize("module", [
    "TRT_test", "classify", "inference.dali", "Results.tables", "Results.timing", "data.batches", "graphs.facts",
    "TensorRT.INT8.calibration_cache",
    *(f"TensorRT.{script}" for script in ("build_engine", "run_engine", "profile_engine", "compare_layers"))])
def test_what_touches_tensorrt_needs_numpy_only(module):
    done = subprocess.run([sys.executable, "-c", NOTHING_ELSE, str(ROOT), module], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
