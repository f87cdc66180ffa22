"""A shared library that is nothing but another name of one that is loaded already.

The loader finds a loaded library by the one name that is written in it (soname). TensorRT-RTX is asked for by two more:
a plugin library that was built with TensorRT 11's headers needs libnvinfer.so.11, and TensorRT-RTX's own ONNX parser
opens libtensorrt_rtx.so, a link that its packages on the index lack, when it meets a plugin node (1.7.1 ends the
process where it finds none). LD_LIBRARY_PATH could lead to links of those names, but is read when a process starts.

What is written here is what `gcc -shared -Wl,-soname=NAME -Wl,-no-as-needed -ltarget` makes of no source, without a
compiler: an ELF file (man 5 elf) with an empty symbol table and two entries in its dynamic section.
"""
from __future__ import annotations

import ctypes
import struct
import sys
import tempfile
from pathlib import Path

ELF_HEADER, PROGRAM_HEADER, SYMBOL = 64, 56, 24  # bytes, of 64-bit ELF
ET_DYN = 3  # a shared library
PT_LOAD, PT_DYNAMIC, PT_GNU_STACK = 1, 2, 0x6474E551
READ_WRITE = 6  # the loader writes addresses into the dynamic section
DT_NULL, DT_NEEDED, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_SONAME = 0, 1, 4, 5, 6, 10, 11, 14


def load_alias(name: str, target: str) -> None:
    """Let this process find the loaded library `target` by `name` too.

    Args:
        name: the further name, e.g. libnvinfer.so.11.
        target: soname of a library that this process has loaded.

    Raises:
        OSError: the loader refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        with open(sys.executable, "rb") as file:  # for the same processor
            path.write_bytes(alias_elf(name, target, file.read(20)))
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)  # stays mapped when the file is gone


def alias_elf(name: str, target: str, start: bytes) -> bytes:
    """The bytes of a 64-bit little-endian ELF library called `name` that needs `target` and defines nothing.

    start: the first 20 bytes of a program for the same processor: magic number, class, byte order, type, machine.
    """
    names = b"\0" + name.encode() + b"\0" + target.encode() + b"\0"
    names += bytes(-len(names) % 8)
    table = ELF_HEADER + 3 * PROGRAM_HEADER  # offsets in the file are addresses too
    symbols = table + len(names)
    hashes = symbols + SYMBOL
    dynamic = hashes + 16
    entries = [(DT_SONAME, 1), (DT_NEEDED, 2 + len(name.encode())), (DT_HASH, hashes), (DT_STRTAB, table),
               (DT_SYMTAB, symbols), (DT_STRSZ, len(names)), (DT_SYMENT, SYMBOL), (DT_NULL, 0)]
    size = dynamic + 16 * len(entries)

    def segment(kind: int, offset: int, length: int, align: int) -> bytes:
        return struct.pack("<IIQQQQQQ", kind, READ_WRITE, offset, offset, offset, length, length, align)

    header = start[:16] + struct.pack("<H", ET_DYN) + start[18:] + struct.pack(
        "<IQQQIHHHHHH", 1, 0, ELF_HEADER, 0, 0, ELF_HEADER, PROGRAM_HEADER, 3, 0, 0, 0)
    return b"".join([
        header, segment(PT_LOAD, 0, size, 0x10000), segment(PT_DYNAMIC, dynamic, size - dynamic, 8),
        segment(PT_GNU_STACK, 0, 0, 16),  # without it the loader would make stacks executable
        names, bytes(SYMBOL), struct.pack("<IIII", 1, 1, 0, 0),  # no symbol but the undefined one, and its hash table
        *(struct.pack("<QQ", *entry) for entry in entries)])
