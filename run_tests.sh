#!/usr/bin/env bash
# Ruff, and every test that needs no GPU. Arguments go to pytest:
#
#   bash run_tests.sh                     # all
#   bash run_tests.sh tests/test_models.py -k folded
#
# GPU tests are skipped, with a count and the reason, where there is no GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./setup.sh

use_packages requirements-test.txt
python3 -m ruff check .
python3 -m pytest "$@"
