"""The package swin_kernels as others get it: by pip from the source folder, and in the layout of the Hugging Face
kernels hub. Neither a GPU nor a compiler is needed: any file is packed as the library.
"""
from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from examples.pytorch import hub
from utils import ROOT, UserError

CHECK = ("import torch; y = package.layer_norm(torch.arange(8.0)[None]); assert abs(y.std(correction=0) - 1) < 1e-3; "
         "assert callable(package.fuse); print('works from', package.__file__)")


def python(code: str, folder: Path) -> str:
    """What Python prints for this code in a folder, without this repository on its path."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def library(tmp_path) -> Path:
    path = tmp_path / "libswin_kernels.so"
    path.write_bytes(b"not a library")
    return path


@pytest.fixture
def source(tmp_path) -> Path:
    """The source folder without the kernels: pip and setuptools write beside pyproject.toml."""
    plugins, copied = ROOT / "TensorRT" / "Plugins", tmp_path / "source"
    shutil.copytree(plugins / "swin_kernels", copied / "swin_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py"):
        shutil.copyfile(plugins / name, copied / name)
    return copied


def test_pip_makes_a_wheel_of_the_source_folder(tmp_path, library, source, monkeypatch):
    monkeypatch.setenv("SWIN_KERNELS", str(library))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wheel, = tmp_path.glob("*.whl")
    assert wheel.name.startswith("swin_kernels-1.0.0-py3-none-linux_")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    packed = {path.name for path in (tmp_path / "site" / "swin_kernels").iterdir()}
    modules = {path.name for path in (ROOT / "TensorRT" / "Plugins" / "swin_kernels").glob("*.py")}
    assert packed == modules | {"libswin_kernels.so"}
    assert "works from" in python(f"import swin_kernels as package; {CHECK}", tmp_path / "site")
    monkeypatch.delenv("SWIN_KERNELS")
    refusal = python("from swin_kernels import c_interface, LibraryError\ntry: c_interface.library()\n"
                     "except LibraryError as problem: print(problem)", tmp_path / "site")
    assert "libswin_kernels.so: is not the kernels of this version" in refusal


def test_a_missing_library_ends_the_build_in_one_line(source, tmp_path):
    done = subprocess.run([sys.executable, "setup.py", "build_py", "-d", tmp_path / "built"], cwd=source,
                          env={"PATH": "/usr/bin:/bin", "SWIN_KERNELS": str(tmp_path / "none.so")}, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"SWIN_KERNELS={tmp_path}/none.so: no such file")


def test_the_hubs_layout(tmp_path, library):
    folder = hub.write(tmp_path, library, ["9.0+PTX"], "other")
    major, minor = torch.__version__.split(".")[:2]
    assert folder.parent.name == "build" and folder.name.startswith(f"torch{major}{minor}-cxx11-")
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["name"] == "swin-kernels" and metadata["id"].isidentifier()
    for name, digest in metadata["digest"]["files"].items():
        assert base64.b64decode(digest) == hashlib.sha256((folder / name).read_bytes()).digest()
    assert len(metadata["digest"]["files"]) + 1 == sum(path.is_file() for path in folder.rglob("*"))
    # As the package `kernels` imports it: by its id, from a folder that is on no path.
    code = f"""
import sys
from importlib import util
for name, path in (({metadata['id']!r}, "__init__.py"), ("older", "swin_kernels/__init__.py")):
    spec = util.spec_from_file_location(name, {str(folder)!r} + "/" + path)
    package = sys.modules[name] = util.module_from_spec(spec)
    spec.loader.exec_module(package)
    {CHECK.replace("; ", f"{chr(10)}    ")}
print(torch.ops.{metadata['id']}.attention.default)
"""
    assert python(code, Path("/")).splitlines() == [
        f"works from {folder}/__init__.py", f"works from {folder}/swin_kernels/__init__.py",
        f"{metadata['id']}.attention.default"]


def test_a_build_for_cuda_needs_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert hub.variant()[0].split("-")[2] == "cu130"
    with pytest.raises(UserError, match=r"give --library libswin_kernels\.so"):
        hub.write(tmp_path, None, [], "other")
