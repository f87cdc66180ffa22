"""Makes the graphs of a micro model in one process, as run_all.sh does, without the scripts' own checks.

    python tests/micro_graphs.py models/swin_micro.yaml FOLDER   # FOLDER/swinv1_micro{,_fp16,_int8,_attention,...}.onnx
"""
from __future__ import annotations

import importlib
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]


def run(module: str, *arguments: str | Path) -> None:
    """Run a script's main() with these arguments."""
    with mock.patch.object(sys, "argv", [module, *map(str, arguments)]):
        importlib.import_module(module).main()


def main() -> None:
    yaml, folder = sys.argv[1], Path(sys.argv[2])
    sys.path[1:1] = [str(ROOT), str(ROOT / "onnx"), str(ROOT / "onnx" / "graphsurgeon")]
    graph = folder / f"{importlib.import_module('config').get_config(yaml).MODEL.NAME}.onnx"
    int8 = graph.with_name(f"{graph.stem}_int8.onnx")
    run("export_onnx", "--cfg", yaml, "--output", graph)
    run("add_all", "--onnx", graph, "--no-check")
    run("add_all", "--onnx", graph, "--fp16", "--no-check")
    run("add_all", "--onnx", graph, "--classifier", "--no-check", "--output",
        graph.with_name(f"{graph.stem}_attention_fp32.onnx"))
    run("to_fp16", "--onnx", graph, "--no-check")
    run("TensorRT.INT8.quant", "--onnx", graph, "--narrow", "--batches", "1", "--cache", graph.with_suffix(".cache"),
        "--no-check")
    run("add_int8", "--onnx", int8, "--no-check")


if __name__ == "__main__":
    main()
