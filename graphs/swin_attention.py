"""Where the windows of a SwinAttention node lie: its contract as index arithmetic in NumPy.

The surgery compares it with what a graph does. What the node computes is in operators.py, for which this is a second,
independent writing of the same words.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphs.patterns import PADDING

HEAD_STEP = 8  # the plugin takes heads of a multiple of so many channels


def wider_width(head_dim: int) -> int:
    """Channels of a head of the node, for one of `head_dim` channels."""
    return head_dim + -head_dim % HEAD_STEP


def wider_heads(array: np.ndarray, axis: int, heads: int) -> np.ndarray:
    """An array with zeros behind each of the `heads` equal parts of an axis, so that each is as wide as the node takes;
    the array itself, where it is."""
    width = array.shape[axis] // heads
    if wider_width(width) == width:
        return array
    parts = array.reshape(*array.shape[:axis], heads, width, *array.shape[axis + 1:])
    padding = [(0, 0)] * parts.ndim
    padding[axis + 1] = (0, wider_width(width) - width)
    return np.pad(parts, padding).reshape(*array.shape[:axis], -1, *array.shape[axis + 1:])


@dataclass(frozen=True)
class Windows:
    """The windows over an image of tokens.

    Attributes:
        height, width: of the image.
        window, shift: rows and columns.
        roll_first: whether the image is rolled first and padded then, as timm does; else the other way round.
    """

    height: int
    width: int
    window: tuple[int, int]
    shift: tuple[int, int]
    roll_first: bool = False

    @classmethod
    def found(cls, grid: np.ndarray, height: int, width: int) -> Windows | None:
        """The windows that give a grid, int [nW, N], of the image's tokens or PADDING; None where there are none.

        Where padding and shift do not meet, both orders give the same, and roll_first is False.
        """
        count, tokens = grid.shape
        for tall in range(1, tokens + 1):
            wide = tokens // tall
            if tall * wide != tokens or -(-height // tall) * -(-width // wide) != count:
                continue
            first = int(grid[0, 0])
            shifts = [(row, col) for row in range(tall) for col in range(wide)] if first == PADDING else [
                divmod(first, width)]
            for shift in shifts:
                for roll_first in (False, True):
                    windows = cls(height, width, (tall, wide), shift, roll_first)
                    if shift[0] < tall and shift[1] < wide and np.array_equal(windows.places(), grid):
                        return windows
        return None

    @classmethod
    def of_tokens(cls, grid: np.ndarray, tokens: int) -> Windows | None:
        """`found` where only the number of the image's tokens is known: of what fits, nearest to a square."""
        sides = sorted((height for height in range(1, tokens + 1) if tokens % height == 0),
                       key=lambda height: abs(height - tokens // height))
        fitting = (cls.found(grid, height, tokens // height) for height in sides)
        return next((windows for windows in fitting if windows is not None), None)

    def attributes(self) -> dict[str, int]:
        """Those of a SwinAttention node that concern windows, as they are at this size of the image."""
        return {"window_height": self.window[0], "window_width": self.window[1], "shift_height": self.shift[0],
                "shift_width": self.shift[1], "roll_first": int(self.roll_first), "shift_if_covered": 1}

    def places(self) -> np.ndarray:
        """Token of the image at each place of each window, int [nW, N]; PADDING where it is none."""
        (row, above), (col, left) = (self._axis(axis) for axis in (0, 1))
        return self._cut(np.where(above[:, None] & left, row[:, None] * self.width + col, PADDING))

    def separated(self) -> np.ndarray:
        """Which pairs of a window's tokens the mask separates: those that only the shift brought together.

        Along an axis these are the tokens of the last window before and from window - shift on. bool [nW, N, N].
        """
        bands = []
        for axis, size in enumerate(self.padded):
            place = np.arange(size)
            bands.append((place >= size - self.window[axis]).astype(int) + (place >= size - self.shift[axis]))
        region = self._cut(3 * bands[0][:, None] + bands[1])
        return region[:, :, None] != region[:, None, :]

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width, rounded up to whole windows."""
        high, wide = self.window
        return -(-self.height // high) * high, -(-self.width // wide) * wide

    def _axis(self, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Row (or column) of the image at each place of the padded, rolled one, and whether it is one of the image."""
        size, padded = (self.height, self.width)[axis], self.padded[axis]
        place = np.arange(padded)
        source = (place + self.shift[axis]) % (size if self.roll_first else padded)
        return source, (place if self.roll_first else source) < size

    def _cut(self, image: np.ndarray) -> np.ndarray:
        """[Hp, Wp] -> [nW, N]"""
        tall, wide = self.window
        rows, cols = image.shape[0] // tall, image.shape[1] // wide
        return image.reshape(rows, tall, cols, wide).transpose(0, 2, 1, 3).reshape(rows * cols, tall * wide)
