"""What the shell scripts ask of a model, in one line: MODEL.NAME, MODEL.TYPE, image size, weights.

    python models/facts.py --cfg models/swinv2_micro.yaml

Weights come last, because a path may have spaces.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from config import add_model_arguments, get_config
from models.build import checkpoint_path
from utils import run_script, shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    args = parser.parse_args()
    config = get_config(args.cfg, args.opts, args.type)
    weights = checkpoint_path(config, args.resume, args.pretrained)
    print(config.MODEL.NAME, config.MODEL.TYPE, config.DATA.IMG_SIZE, shown(weights))


if __name__ == "__main__":
    run_script(main)
