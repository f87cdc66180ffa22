"""Build a TensorRT engine from an ONNX file, with trtexec's flags. For machines that have no trtexec.

    python TensorRT/build_engine.py --onnx=onnx/swinv1.onnx --saveEngine=TensorRT/TRT_Engine/swinv1.plan --noTF32

TensorRT/build.sh calls it. From TensorRT 10 on, and with TensorRT-RTX, the network is strongly typed: the precision of
a layer is what the ONNX graph says. In 8.6 --fp16 permits FP16, and TensorRT chooses layer by layer. TensorRT-RTX needs
no GPU to build.
"""
from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from TensorRT.backend import add_backend_argument
from utils import UserError, existing_file, run_script


def input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """"input:1x3x224x224" -> ("input", (1, 3, 224, 224))."""
    found = re.fullmatch(r"(.+):(\d+(?:x\d+)*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is not like input:1x3x224x224")
    return found[1], tuple(int(size) for size in found[2].split("x"))


def workspace_mib(text: str) -> float:
    """"workspace:4096" -> 4096.0."""
    found = re.fullmatch(r"workspace:(\d+(?:\.\d+)?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is not like workspace:4096 (MiB)")
    return float(found[1])


def tactic_sources(text: str) -> list[tuple[bool, str]]:
    """"-CUBLAS,+CUDNN" -> [(False, "CUBLAS"), (True, "CUDNN")]."""
    sources = [source for source in text.split(",") if source]
    if any(source[0] not in "+-" for source in sources):
        raise argparse.ArgumentTypeError(f"'{text}': each source begins with + or -, as in -CUBLAS,-CUDNN")
    return [(source[0] == "+", source[1:].upper()) for source in sources]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--onnx", required=True, metavar="FILE", help="the graph")
    parser.add_argument("--saveEngine", required=True, metavar="PLAN",
                        help="engine to write; TensorRT's messages go to the .log file beside it")
    for flag, batch in (("--minShapes", 1), ("--optShapes", 32), ("--maxShapes", 128)):
        parser.add_argument(flag, metavar="NAME:BxCxHxW", type=input_shape,
                            help=f"e.g. input:{batch}x3x224x224; default: batch {batch} of the graph's own size")
    parser.add_argument("--facts", type=Path, metavar="JSON",
                        help="the graph's facts, as graphs/facts.py prints them; default: read from the graph, where "
                             "this Python has onnx")
    parser.add_argument("--fp16", action="store_true", help="permit FP16 (8.6; from TensorRT 10 on the graph decides)")
    parser.add_argument("--int8", action="store_true", help="permit INT8 (8.6): of Q/DQ pairs, or with --calib")
    parser.add_argument("--calib", metavar="FILE", help="calibration cache, as TensorRT/INT8/quant.py writes it")
    parser.add_argument("--stronglyTyped", action="store_true", help="types as in the graph; always so from 10 on")
    parser.add_argument("--noTF32", action="store_true", help="multiply FP32 in full precision, not in TF32")
    parser.add_argument("--staticPlugins", "--plugins", metavar="LIB", default="none", help="plugin library to load")
    parser.add_argument("--setPluginsToSerialize", metavar="LIB", action="append", default=[],
                        help="plugin library to put into the plan, which then needs no other file; goes with "
                             "--staticPlugins")
    parser.add_argument("--memPoolSize", metavar="workspace:MIB", type=workspace_mib, default="workspace:4096",
                        help="limit of the scratch memory in MiB; default 4096")
    parser.add_argument("--workspace", metavar="MIB", type=float, dest="memPoolSize", help="the same, by its old flag")
    parser.add_argument("--maxAuxStreams", metavar="N", type=int,
                        help="streams beside the main one, at most; default: TensorRT's own choice")
    parser.add_argument("--timingCacheFile", metavar="FILE", help="kernel timings to reuse and extend")
    parser.add_argument("--builderOptimizationLevel", metavar="0-5", type=int, choices=range(6),
                        help="how long to search; default: TensorRT's own, 3")
    parser.add_argument("--tacticSources", metavar="-A,+B", type=tactic_sources, default="",
                        help="kernel libraries to switch off or on: --tacticSources=-CUBLAS,-CUBLAS_LT,-CUDNN (8.6 and "
                             "10; 11 has none of these)")
    parser.add_argument("--profilingVerbosity", default="detailed", choices=("layer_names_only", "detailed", "none"),
                        help="what the engine knows of its layers; default detailed, by which TRT_test.py knows if "
                             "there are plugins in it")
    parser.add_argument("--exportLayerInfo", metavar="JSON", help="write the description of every layer there")
    parser.add_argument("--verbose", action="store_true", help="write TensorRT's verbose messages to the log as well")
    add_backend_argument(parser)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    existing_file(arguments.onnx, "an ONNX graph (--onnx)")
    if arguments.calib and not arguments.int8:
        raise UserError(f"--calib {arguments.calib}: does nothing by itself; add --int8")
    from TensorRT.engine_builder import build

    build(arguments)


if __name__ == "__main__":
    run_script(main)
