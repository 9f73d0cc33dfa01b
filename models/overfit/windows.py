"""Windows of a picture that a descent sees at a time, and what of its grids they take."""

from __future__ import annotations

from types import EllipsisType
from typing import NamedTuple, TypeAlias

from models.overfit.configs import BLOCK

WINDOW = 256  # pixels

Index: TypeAlias = tuple[EllipsisType, slice, slice]


class Area(NamedTuple):
    """A rectangle of a picture or of a grid, in pixels or positions."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def whole(self) -> Index:
        """Return the index of it in planes (…, h, w)."""
        return ..., slice(self.top, self.bottom), slice(self.left, self.right)

    def inside(self, other: Area) -> Index:
        """Return the index of it in planes that hold another area, which contains it."""
        return Area(self.top - other.top, self.bottom - other.top, self.left - other.left, self.right - other.left).whole

    def coarser(self, octaves: int) -> Area:
        """Return the positions of a grid that is coarser by so many octaves."""
        return Area(*(side >> octaves for side in self))

    def finer(self) -> Area:
        """Return the positions of the next finer grid."""
        return Area(*(2 * side for side in self))

    def widened(self, reach: int, height: int, width: int) -> Area:
        """Return the area with what lies around it in a plane of this size."""
        rows, columns = (max(self.top - reach, 0), self.bottom + reach), (max(self.left - reach, 0), self.right + reach)
        return Area(rows[0], min(rows[1], height), columns[0], min(columns[1], width))

    def whole_blocks(self, height: int, width: int) -> Area:
        """Return the blocks of a grid of this size that the area touches."""
        return Area(
            self.top // BLOCK * BLOCK,
            min(-(-self.bottom // BLOCK) * BLOCK, height),
            self.left // BLOCK * BLOCK,
            min(-(-self.right // BLOCK) * BLOCK, width),
        )


def windows_of(height: int, width: int, side: int = WINDOW) -> list[Area]:
    """Return the windows of a picture with sides multiples of 64, in raster order, of ``side`` pixels squared at most."""
    rows, columns = ([(start, min(start + side, end)) for start in range(0, end, side)] for end in (height, width))
    return [Area(*row, *column) for row in rows for column in columns]
