#!/usr/bin/env bash
# Ray Data 2.60.0 (ray[data], pyarrow 26.0.1), on the CPU.
#
# Behaviour: with DataContext.checkpoint_config set, rows that an earlier run has written are left out of the next run, so
# that each is written once. That is so where a dataset is read (read_parquet). Where it comes from from_items, the names
# of the rows are recorded all the same, no row is left out, nothing is said, and every row is written twice.
# The filter is planned behind read operators only (ray/data/_internal/planner/checkpoint/plan_read_op.py).
#
# Output seen:
#   ray 2.60.0
#   read_parquet: 8 rows after the first run, 8 after the second
#   from_items: 8 rows after the first run, 16 after the second
#
# Needs Python 3.11 and a package index; takes some two minutes.
# Exit status: 0 as seen; 1 changed, or a step failed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check "ray[data]==2.60.0" pyarrow==26.0.1
cat > "$work/show.py" <<'PYTHON'
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data.checkpoint import CheckpointConfig

work = sys.argv[1]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
items = [{"file": f"{index}.jpg"} for index in range(8)]
pq.write_table(pa.Table.from_pylist(items), f"{work}/items.parquet")
sources = {"read_parquet": lambda: ray.data.read_parquet(f"{work}/items.parquet"),
           "from_items": lambda: ray.data.from_items(items)}
print(f"ray {ray.__version__}")
seen = {}
for name, source in sources.items():
    counts = []
    for _ in range(2):
        ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
            "file", f"{work}/{name}-done", delete_checkpoint_on_success=False)
        source().write_parquet(f"{work}/{name}")
        counts.append(sum(pq.read_metadata(info).num_rows for info in Path(
            f"{work}/{name}").glob("*.parquet")))
    seen[name] = counts
    print(f"{name}: {counts[0]} rows after the first run, {counts[1]} after the second")
if seen != {"read_parquet": [8, 8], "from_items": [8, 16]}:
    sys.exit("changed: not the figures in this script's head")
PYTHON
"$work/venv/bin/python" "$work/show.py" "$work" 2> "$work/log" || { tail -n 5 "$work/log" >&2; exit 1; }
