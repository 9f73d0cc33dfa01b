"""What a reader is ready to spend on a file, checked before anything is allocated (FORMAT.md section 9)."""

from __future__ import annotations

from dataclasses import dataclass

from bitstream.errors import LimitError
from bitstream.grid import Rect, tile_side

MAX_SIDE = 2**24
PADDING = 64  # sides are coded in multiples of this
SMALL_PIXELS = 2**20  # what padding may always grow to
PICTURE_BYTES = 8  # of memory for a pixel of the picture that is decoded: its array, and Pillow's copy
TILE_BYTES = 72  # of memory for a pixel of a tile while its symbols are decoded; measured up to 60
BASE_BYTES = 2**29  # of libraries and weights


@dataclass(frozen=True)
class Limits:
    """The largest picture in pixels, file in bytes, and memory in bytes that decoding may take, by an estimate."""

    max_pixels: int = 2**28
    max_bytes: int = 2**30
    max_memory: int = 2**32

    def check_bytes(self, n_bytes: int) -> None:
        """Raise LimitError for too large a file."""
        if n_bytes > self.max_bytes:
            raise LimitError(f"the file has {n_bytes} bytes, the limit is {self.max_bytes}: raise max_bytes if you trust it")

    def check_size(self, width: int, height: int) -> None:
        """Raise LimitError if a picture, or a large one with its sides rounded up to 64 as it is coded, has too many pixels."""
        coded_width, coded_height = (-(-side // PADDING) * PADDING for side in (width, height))
        if width * height > self.max_pixels:
            found = f"{width}×{height} pixels"
        elif coded_width * coded_height > max(self.max_pixels, SMALL_PIXELS):
            found = f"{width}×{height} pixels, coded in steps of {PADDING} as {coded_width}×{coded_height}"
        else:
            return
        raise LimitError(
            f"the picture has {found}, the limit is {self.max_pixels}: raise it with --max-pixels, or cut the picture"
        )

    def check_memory(self, area: Rect, tile: int, width: int, height: int) -> None:
        """Raise LimitError if decoding an area of a picture may take too much memory; ``tile`` is the field of the header."""
        side = tile_side(tile, width, height)
        of_tile = min(side, width) * min(side, height)
        estimate = BASE_BYTES + PICTURE_BYTES * area.width * area.height + TILE_BYTES * of_tile
        if estimate > self.max_memory:
            raise LimitError(
                f"decoding {area.width}×{area.height} pixels may take {estimate / 2**30:.1f} GiB of memory, the limit is "
                f"{self.max_memory / 2**30:.1f}: raise it with --max-memory, or decode less (--crop, --scale)"
            )


NO_LIMITS = Limits(2 * MAX_SIDE**2, 2**62, 2**62)  # for those who decode nothing
