"""Where the attention kernels find a window's tokens and which of them see each other, against roll, pad and partition.

    pytest tests/test_windows.py  # needs nvcc; no GPU

The kernels' index arithmetic (TensorRT/Plugins/Attention/windows.cuh) is compiled for the host.
"""
from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parent
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc here")

FIELDS = ("batch", "height", "width", "window_height", "window_width", "shift_height", "shift_width", "roll_first",
          "shift_if_covered")


class Given(ctypes.Structure):
    """What tests/windows.cpp is given."""

    _fields_ = [(name, ctypes.c_int) for name in FIELDS]


class Counts(ctypes.Structure):
    """What it says of the windows."""

    _fields_ = [(name, ctypes.c_int) for name in ("windows", "positions", "padded")]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("windows") / "libwindows.so"
    subprocess.run([NVCC, "-std=c++17", "-Xcompiler", "-fPIC,-Wall,-Wextra,-Werror", "-shared",
                    f"-I{TESTS.parent / 'TensorRT' / 'Plugins'}", TESTS / "windows.cpp", "-o", path], check=True)
    return ctypes.CDLL(str(path))


def computed(library, *case: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Tokens [windows, N], -1 for padded ones; pairs that must not see each other [windows, N, N]; padded or not."""
    given, counts = Given(*case), Counts()
    assert library.count(ctypes.byref(given), ctypes.byref(counts)) == 1
    tokens = np.full((counts.windows, counts.positions), -2, dtype=np.int32)
    flags = np.zeros(counts.positions, dtype=np.int32)
    axes = np.zeros(counts.windows, dtype=np.int32)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (tokens, flags, axes)]
    library.fill(ctypes.byref(given), *pointers)
    masked = ((flags[:, None] ^ flags[None, :]) & axes[:, None, None]) != 0
    return tokens, masked, bool(counts.padded)


def partition(grid: np.ndarray, window_height: int, window_width: int) -> np.ndarray:
    """[B, Hp, Wp] -> [windows, N]."""
    batch, height, width = grid.shape
    grid = grid.reshape(batch, height // window_height, window_height, width // window_width, window_width)
    return grid.transpose(0, 1, 3, 2, 4).reshape(-1, window_height * window_width)


def regions_along(side: int, window: int, shift: int) -> np.ndarray:
    """The official bands of a rolled side: before the last window, its first part, and what came round."""
    bands = np.zeros(side, dtype=np.int64)
    if shift:
        bands[-window:] = 1
        bands[-shift:] = 2
    return bands


def expected(batch, height, width, window_height, window_width, shift_height, shift_width, roll_first,
             shift_if_covered) -> tuple[np.ndarray, np.ndarray]:
    """The same as `computed` from an image of token numbers."""
    pads = -height % window_height, -width % window_width
    if not shift_if_covered:
        shift_height = 0 if height + pads[0] == window_height else shift_height
        shift_width = 0 if width + pads[1] == window_width else shift_width
    image = np.arange(batch * height * width).reshape(batch, height, width)

    def roll(x):
        return np.roll(x, (-shift_height, -shift_width), (1, 2))

    def pad(x):
        return np.pad(x, ((0, 0), (0, pads[0]), (0, pads[1])), constant_values=-1)

    grid = pad(roll(image)) if roll_first else roll(pad(image))
    rows = regions_along(grid.shape[1], window_height, shift_height)
    columns = regions_along(grid.shape[2], window_width, shift_width)
    regions = partition(np.broadcast_to(3 * rows[:, None] + columns, grid.shape), window_height, window_width)
    return partition(grid, window_height, window_width), regions[:, :, None] != regions[:, None, :]


WINDOWS = [(1, 1), (7, 7), (8, 8), (12, 12), (8, 6), (7, 14), (8, 32), (16, 16), (32, 32), (2, 3), (31, 1), (1, 32)]


def sides(window: int) -> list[int]:
    """One window and several, whole, and padded by one token, by some and by almost a window; less than a shift."""
    return sorted({1, max(window // 3, 1), window, 2 * window - window // 3, 2 * window, 2 * window + 1,
                   3 * window - 1})


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_windows_are_those_of_roll_pad_and_partition(library, window):
    tried = set()
    for height, width in itertools.product(sides(window[0]), sides(window[1])):
        if height * width * max(window) ** 2 > 2_000_000 and height != width:
            continue  # the largest windows: squares only
        for shift in {(0, 0), (window[0] // 2, window[1] // 2), (window[0] // 2, 0), (0, window[1] // 2),
                      (window[0] - 1, max(window[1] // 3, 0))}:
            for order, covered in itertools.product((0, 1), (0, 1)):
                case = (2, height, width, *window, *shift, order, covered)
                tokens, masked, padded = computed(library, *case)
                expected_tokens, expected_masked = expected(*case)
                assert (tokens == expected_tokens).all(), case
                assert (masked == expected_masked).all(), case
                assert padded == bool((expected_tokens < 0).any()), case
                tried.add((padded, bool(masked.any())))
    assert (True, False) in tried or window == (1, 1)
    assert (True, True) in tried or window == (1, 1)


@pytest.mark.parametrize("changed", [
    {"batch": 0}, {"height": 0}, {"width": -1}, {"window_height": 0}, {"window_width": 33}, {"shift_height": 7},
    {"shift_width": -1}, {"roll_first": 2}, {"shift_if_covered": -1},
    {"batch": 2, "height": 46340, "width": 46340},  # more tokens than an int counts
    {"height": 2**31 - 1, "width": 1}, {"height": 1, "width": 2**31 - 1},
    {"height": 46338, "width": 46338, "window_height": 8, "window_width": 8},  # with the padding only
], ids=str)
def test_other_windows_are_refused(library, changed):
    valid = dict(zip(FIELDS, (1, 14, 21, 7, 7, 3, 3, 0, 1), strict=True))
    assert library.count(ctypes.byref(Given(**valid)), ctypes.byref(Counts())) == 1
    assert library.count(ctypes.byref(Given(**{**valid, **changed})), ctypes.byref(Counts())) == 0


def test_the_largest_image_is_taken(library):
    counts = Counts()
    assert library.count(ctypes.byref(Given(1, 46340, 46340, 7, 7, 3, 3, 0, 1)), ctypes.byref(counts)) == 1
    assert counts.windows == 6620**2
