"""Windows of a picture that a descent sees at a time, and what lies around them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

WINDOW = 256  # pixels
HALO = 2  # positions around a window that synthesis sees


class Window(NamedTuple):
    """An area of the picture in pixels, sides multiples of 64."""

    top: int
    bottom: int
    left: int
    right: int

    def at(self, grid: int) -> tuple[slice, slice]:
        """Return its positions in a grid."""
        return slice(self.top >> grid, self.bottom >> grid), slice(self.left >> grid, self.right >> grid)

    @property
    def area(self) -> int:
        """Return the number of pixels."""
        return (self.bottom - self.top) * (self.right - self.left)


class Halo(NamedTuple):
    """On which sides of a window there is more of the picture."""

    top: bool
    bottom: bool
    left: bool
    right: bool

    def span(self, part: slice, side: int, reach: int = HALO) -> tuple[int, int]:
        """Return start and stop of a slice, widened on its two sides: 0 of rows, 2 of columns."""
        return part.start - reach * self[side], part.stop + reach * self[side + 1]

    def around(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        """Return slices with the halo."""
        return slice(*self.span(rows, 0)), slice(*self.span(columns, 2))

    def inner(self, x: Tensor) -> Tensor:
        """Cut the halo of a plane or planes (…, h, w) off."""
        h, w = x.shape[-2:]
        return x[..., HALO * self.top : h - HALO * self.bottom, HALO * self.left : w - HALO * self.right]


def windows_of(height: int, width: int) -> list[Window]:
    """Return the windows of a picture with sides multiples of 64, in raster order."""
    rows, columns = ([(start, min(start + WINDOW, side)) for start in range(0, side, WINDOW)] for side in (height, width))
    return [Window(*row, *column) for row in rows for column in columns]
