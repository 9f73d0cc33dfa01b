"""Where the tiles of a picture lie, in pixels. Knows nothing of what is in them."""

from __future__ import annotations

from typing import NamedTuple

PADDING = 64  # sides are coded in multiples of this
TILE_BITS = 10  # tiles of 1024×1024 pixels, where a picture does not fit into one


def padded(side: int) -> int:
    """Return a side rounded up to what is coded: multiples of 64 pixels."""
    return -(-side // PADDING) * PADDING


class Rect(NamedTuple):
    """A part of a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """Return the first column behind it."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """Return the first row behind it."""
        return self.top + self.height


def tile_bits(width: int, height: int) -> int:
    """Return the tile field of a picture's header: 0 if it fits into one tile."""
    return TILE_BITS if max(width, height) > 1 << TILE_BITS else 0


def tile_side(bits: int, width: int, height: int) -> int:
    """Return the side of a tile: of a whole picture where the tile field is 0."""
    return 1 << bits if bits else max(width, height)


def count_tiles(bits: int, width: int, height: int) -> int:
    """Return the number of tiles of a picture."""
    side = tile_side(bits, width, height)
    return -(-width // side) * -(-height // side)


def touched(area: Rect, side: int, columns: int) -> list[int]:
    """Return the numbers, in raster order, of the squares that an area touches, of a picture cut into so many columns."""
    rows = range(area.top // side, (area.bottom - 1) // side + 1)
    return [row * columns + column for row in rows for column in range(area.left // side, (area.right - 1) // side + 1)]


def cut(area: Rect, side: int) -> list[Rect]:
    """Cut an area into squares of a side from its top left corner, in raster order; the last ones may be smaller."""
    return [
        Rect(left, top, min(side, area.right - left), min(side, area.bottom - top))
        for top in range(area.top, area.bottom, side)
        for left in range(area.left, area.right, side)
    ]
