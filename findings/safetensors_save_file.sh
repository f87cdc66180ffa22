#!/usr/bin/env bash
# safetensors 0.8.0: save_file() replaces what lies at the path instead of writing to it.
#
#   bash findings/safetensors_save_file.sh
#
# A symbolic link at the path becomes a file and its target stays as it was; the file's permissions become 600, whatever
# the umask is and whatever they were. open() for writing would follow the link and keep the permissions. Seen:
#
#   safetensors 0.8.0: link replaced by a file, target still empty; permissions 644 became 600, new file 600
#
# Exits with status 1 if that changes. Needs no GPU; about a minute, most of it pip.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet safetensors==0.8.0 numpy==2.4.6
umask 022
env/bin/python - <<'PYTHON'
import os
import stat
import sys

import numpy as np
import safetensors
from safetensors.numpy import save_file


def permissions(path):
    return f"{stat.S_IMODE(os.stat(path).st_mode):o}"


for name in ("target", "kept"):
    open(name, "w").close()
os.symlink("target", "link")
before = permissions("kept")
for name in ("link", "kept", "new"):
    save_file({"a": np.zeros(3, np.float32)}, name)
link = "link kept" if os.path.islink("link") else "link replaced by a file"
target = "target still empty" if os.path.getsize("target") == 0 else "target written"
print(f"safetensors {safetensors.__version__}: {link}, {target}; permissions {before} became {permissions('kept')}, "
      f"new file {permissions('new')}")
seen = (link, target, permissions("kept"), permissions("new"))
sys.exit(seen != ("link replaced by a file", "target still empty", "600", "600"))
PYTHON
