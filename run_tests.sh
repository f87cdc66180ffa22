#!/usr/bin/env bash
# Ruff, mypy, shellcheck, and every test that needs no GPU. Arguments go to pytest:
#
#   bash run_tests.sh                     # all
#   bash run_tests.sh tests/test_models.py -k folded
#
# GPU tests are skipped, with a count and the reason, where there is no GPU. Where there is one, everything runs in one
# process, as GPU tests share the GPU and what they build for it; else in two of one thread each. `-n 4` overrules that.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./setup.sh

use_packages requirements-test.txt
python3 -m ruff check .
python3 -m mypy  # what pyproject.toml names
find . -path './.*' -prune -o -name '*.sh' -print0 | xargs -0 shellcheck .ci/run
workers=2
if nvidia-smi -L &> /dev/null; then workers=0; else export OMP_NUM_THREADS=1; fi
# worksteal: each process takes neighbours, so that what a file prepares is seldom prepared twice.
python3 -m pytest -n "$workers" --dist worksteal "$@"
