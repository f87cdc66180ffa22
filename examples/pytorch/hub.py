"""Write the package swin_kernels in the layout of the Hugging Face kernels hub.

    make -C TensorRT/Plugins kernels
    python examples/pytorch/hub.py --library TensorRT/Plugins/build/libswin_kernels.so --output swin_kernels_hub
    python -c "from pathlib import Path; import kernels; \
               swin_kernels = kernels.get_local_kernel(Path('swin_kernels_hub')); print(swin_kernels.fuse)"

One folder, build/<variant>, for the PyTorch that runs this script: its version, and CUDA's, or the CPU. The package
calls the library through ctypes, so the library itself depends on neither, but for cuBLAS's major version: run this in
each environment that is to be served, with the same library and output. A repository of this content is what a kernel
is on the hub (https://huggingface.co/docs/kernels, "Kernel requirements"). Nothing is uploaded.
"""
from __future__ import annotations

import argparse
import base64
import hashlib
import json
import platform
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from utils import ROOT, UserError, existing_file, folder_to_write, run_script, shown

PACKAGE = ROOT / "TensorRT" / "Plugins" / "swin_kernels"
NAME, VERSION = "swin-kernels", 1
ARCHS = "7.5 8.0 8.6 8.9 9.0+PTX"  # as the Makefile's
# Older versions of the package `kernels` look for a package of the kernel's name inside the variant.
SHIM = '''"""The package one folder up, for older versions of `kernels`."""
import sys
from importlib import util
from pathlib import Path

_path = Path(__file__).resolve().parent.parent / "__init__.py"
_spec = util.spec_from_file_location(f"{__name__}_{abs(hash(str(_path))):x}", _path)
_module = util.module_from_spec(_spec)
sys.modules[_spec.name] = _module
_spec.loader.exec_module(_module)
globals().update({name: getattr(_module, name) for name in _module.__all__})
__all__ = _module.__all__
'''


def variant() -> tuple[str, str]:
    """Name of the build variant of this PyTorch, and its backend."""
    cuda = torch.version.cuda
    backend = "cpu" if cuda is None else f"cu{cuda.replace('.', '')}"
    major, minor = torch.__version__.split(".")[:2]
    return f"torch{major}{minor}-cxx11-{backend}-{platform.machine()}-linux", "cpu" if cuda is None else "cuda"


def write(output: Path, library: Path | None, archs: list[str], license_id: str) -> Path:
    """Write the variant of this PyTorch under `output`; its folder. Without a library it runs on the CPU only.

    Raises:
        UserError: a build for CUDA without a library.
    """
    name, backend = variant()
    if backend == "cuda" and library is None:
        raise UserError("this PyTorch is for CUDA: give --library libswin_kernels.so")
    folder = output / "build" / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "swin_kernels").mkdir(parents=True)
    for source in sorted(PACKAGE.glob("*.py")):
        shutil.copyfile(source, folder / source.name)
    if library is not None:
        shutil.copyfile(library, folder / "libswin_kernels.so")
    (folder / "swin_kernels" / "__init__.py").write_text(SHIM)
    digests = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).digest()
               for path in sorted(folder.rglob("*")) if path.is_file()}
    # The operators are called torch.ops.<id>.*, so that two versions can be in one process.
    revision = hashlib.sha256(b"".join(digests.values())).hexdigest()[:7]
    metadata = {
        "name": NAME, "id": f"_swin_kernels_{backend}_{revision}", "version": VERSION, "license": license_id,
        "python-depends": [],
        "backend": {"type": backend, **({"archs": archs} if backend == "cuda" else {})},
        "digest": {"algorithm": "sha256",
                   "files": {name: base64.b64encode(digest).decode() for name, digest in digests.items()}},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    return folder


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, metavar="FILE",
                        help="libswin_kernels.so; may be left out where PyTorch has no CUDA")
    parser.add_argument("--archs", default=ARCHS, help=f"compute capabilities it was made for (default: {ARCHS})")
    parser.add_argument("--output", type=folder_to_write, required=True, metavar="FOLDER", help="the repository")
    parser.add_argument("--license", default="other", help="the hub's name of your licence (default: other)")
    args = parser.parse_args(arguments)
    library = args.library and existing_file(args.library, "libswin_kernels.so")
    folder = write(args.output, library, args.archs.split(), args.license)
    print(f"wrote {shown(folder)}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    run_script(main)
