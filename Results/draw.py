"""Draw the pictures that the pages show.

    python Results/draw.py images --cfg models/swin_micro.yaml --onnx onnx/swinv1_micro.onnx
    python Results/draw.py latency          # of the newest race; and the table of speed-ups
    python Results/draw.py profile          # where the time of engines goes

Each has its own flags: python Results/draw.py latency --help. Without a word it draws images.
"""
from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from utils import run_script

PICTURES = ("images", "latency", "profile")


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0].startswith("--") and arguments[0] != "--help":
        arguments = ["images", *arguments]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=PICTURES)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="of that picture")
    args = parser.parse_args(arguments)
    importlib.import_module(f"Results.draw_{args.picture}").main(args.flags)  # one imports torch, the others need not


if __name__ == "__main__":
    run_script(main)
