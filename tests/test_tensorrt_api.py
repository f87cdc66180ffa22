"""Every name of TensorRT's Python API that the scripts use is one that TensorRT 11 has.

The names are collected from the sources. They are compared with a committed list, tensorrt_11_names.txt, whose names
were found in the bindings of TensorRT 11.4 (its head says how), and with TensorRT-RTX where that is installed. A new
name in a script fails here until it has been looked up in 11.4's bindings and added to the list.
"""
from __future__ import annotations

import ast

import pytest

from TensorRT import backend
from utils import ROOT, UserError

LIST = ROOT / "tests" / "tensorrt_11_names.txt"
BUILDER = {"builder": "Builder", "config": "IBuilderConfig", "network": "INetworkDefinition", "parser": "OnnxParser",
           "profile": "IOptimizationProfile", "layer": "ILayer", "tensor": "ITensor", "engine": "ICudaEngine"}
# For each part of a source (a class, or "" for all of it): the classes of the variables that hold TensorRT's objects.
SOURCES = {
    "engine": {"Engine": {"self.runtime": "Runtime", "self.engine": "ICudaEngine", "context": "IExecutionContext"},
               "Context": {"engine.engine": "ICudaEngine", "self.context": "IExecutionContext"}},
    "engine_builder": {"": BUILDER}, "profile_engine": {"": {"context.context": "IExecutionContext"}},
    "trt_runtime": {"": {}},
}
# Which class these methods give.
RESULTS = {"create_engine_inspector": "EngineInspector", "get_error": "ParserError", "get_timing_cache": "ITimingCache",
           "get_input": "ITensor", "get_output": "ITensor", "get_layer": "ILayer"}
# Read only where `hasattr` has found something that came or went with them.
ONLY_OLD = {
    "BuilderFlag.FP16", "BuilderFlag.INT8", "BuilderFlag.PREFER_PRECISION_CONSTRAINTS", "IInt8EntropyCalibrator2",
    "IInt8EntropyCalibrator2.__init__", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    "IInt8Calibrator", "PreviewFeature.PROFILE_SHARING_0806", "ILayer.precision", "ILayer.set_output_type",
    "IBuilderConfig.int8_calibrator", "IBuilderConfig.set_calibration_profile", "ICudaEngine.device_memory_size",
}
# TensorRT-RTX's own, read only where `hasattr` has found it.
ONLY_RTX = {"DynamicShapesKernelSpecializationStrategy", "DynamicShapesKernelSpecializationStrategy.EAGER"}


def chain(node: ast.AST) -> str | None:
    """"a.b.c" of nested attributes of a name; None of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = chain(node.value)
        return None if inner is None else f"{inner}.{node.attr}"
    return None


def names_used(source: str, parts: dict[str, dict[str, str]]) -> set[str]:
    """The names of TensorRT's API in a source: Class.attribute, or a name of the module."""
    found = set()
    for part, classes in parts.items():
        for tree in ast.walk(ast.parse(source)):
            if isinstance(tree, ast.ClassDef if part else ast.Module) and getattr(tree, "name", "") == part:
                found |= names_in(tree, dict(classes))
    return found


def names_in(tree: ast.AST, classes: dict[str, str]) -> set[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):  # kind = trt.SomeEnum
            target = chain(node.value) or ""
            if target.startswith("trt."):
                classes[node.targets[0].id] = target[len("trt."):]
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
            owner = RESULTS.get(node.value.func.attr)
        else:
            owner = classes.get(chain(node.value) or "")
        if owner:
            found.add(f"{owner}.{node.attr}")
        name = chain(node) or ""
        if name.startswith("trt.") and not name.startswith("trt.__"):
            found.add(".".join(name.split(".")[1:3]))
    return found


def used() -> dict[str, str]:
    """Each name with the script that uses it."""
    return {name: f"TensorRT/{source}.py" for source, parts in SOURCES.items()
            for name in names_used((ROOT / "TensorRT" / f"{source}.py").read_text(), {"": {}, **parts})}


@pytest.fixture(scope="module")
def listed() -> set[str]:
    return {line for line in LIST.read_text().splitlines() if line and not line.startswith("#")}


def test_names_are_found_in_a_source():
    source = """
kind = trt.NetworkDefinitionCreationFlag
network = builder.create_network(1 << int(kind.STRONGLY_TYPED))
class Monitor(trt.IProgressMonitor): pass
severity = trt.ILogger.Severity.ERROR
self.engine.get_tensor_name(0)
self.engine.create_engine_inspector().get_engine_information()
other.builder.nothing()
print(trt.__version__)
"""
    assert names_used(source, {"": {"builder": "Builder", "self.engine": "ICudaEngine"}}) == {
        "NetworkDefinitionCreationFlag", "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "Builder.create_network",
        "IProgressMonitor", "ILogger", "ILogger.Severity", "ICudaEngine.get_tensor_name",
        "ICudaEngine.create_engine_inspector",
        "EngineInspector.get_engine_information"}


def test_tensorrt_11_has_every_name(listed):
    lacking = {name: source for name, source in used().items() if name not in listed | ONLY_OLD | ONLY_RTX}
    assert not lacking


def test_the_list_holds_no_more_than_is_used(listed):
    assert sorted(listed - set(used())) == []
    assert not listed & (ONLY_OLD | ONLY_RTX)


def test_the_installed_tensorrt_has_every_name():
    try:
        trt = backend.load()
    except UserError as error:
        pytest.skip(str(error))
    if not backend.strongly_typed(trt):
        pytest.skip(f"{backend.described(trt)} has the names of before 9.1")
    lacking = []
    for name in set(used()) - ONLY_OLD - (set() if backend.is_rtx(trt) else ONLY_RTX):
        owner = trt
        for part in name.split("."):
            owner = getattr(owner, part, None)
        if owner is None:
            lacking.append(name)
    assert lacking == []
