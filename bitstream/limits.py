"""What a reader is ready to spend on a file, checked before anything is allocated (FORMAT.md section 9)."""

from __future__ import annotations

from dataclasses import dataclass

from bitstream.errors import LimitError
from bitstream.grid import TILE_BITS, Rect, count_tiles, padded, tile_side

MAX_SIDE = 2**24
SMALL_PIXELS = 2**20  # what padding may always grow to
# Bytes of memory, by the peaks of scripts/bench_scale.py and of hostile files, rounded up.
BASE_BYTES = 2**30  # libraries and weights
PICTURE_BYTES = 8  # for a pixel of the result: its array, and Pillow's copy
LATENT_BYTES = 5  # for a pixel of tiles whose neighbours are not yet synthesised: those of two rows
TILE_BYTES = 80  # for a pixel of a tile while its symbols are decoded
BLOCK_BYTES = 256  # for a pixel that is synthesised at once: of tiles of 1024 or less


@dataclass(frozen=True)
class Limits:
    """The largest picture in pixels, and the memory in bytes that decoding may take, by an estimate; no file may be larger."""

    max_pixels: int = 2**28
    max_memory: int = 2**32

    def check_bytes(self, n_bytes: int) -> None:
        """Raise LimitError for too large a file."""
        if n_bytes > self.max_memory:
            raise LimitError(
                f"the file has {n_bytes} bytes, the limit is {self.max_memory}: "
                "raise it with --max-memory (Limits(max_memory=…))"
            )

    def check_size(self, width: int, height: int) -> None:
        """Raise LimitError if a picture, or a large one with its sides rounded up to 64 as it is coded, has too many pixels."""
        if width * height > self.max_pixels:
            found = f"{width}×{height} pixels"
        elif padded(width) * padded(height) > max(self.max_pixels, SMALL_PIXELS):
            found = f"{width}×{height} pixels, coded in steps of 64 as {padded(width)}×{padded(height)}"
        else:
            return
        cure = "raise it with --max-pixels (Limits(max_pixels=…)), or cut the picture"
        raise LimitError(f"the picture has {found}, the limit is {self.max_pixels}: {cure}")

    def count_workers(self, area: Rect, scale: int, tile: int, width: int, height: int, threads: int) -> int:
        """Return how many of the threads may decode tiles at once; ``tile`` is the field of the header.

        Raises LimitError if decoding an area of the picture may take too much memory with a single one.
        """
        side = tile_side(tile, width, height)
        tile_pixels = min(side, padded(width)) * min(side, padded(height)) if tile else padded(width) * padded(height)
        kept = LATENT_BYTES * min(2 * padded(width) * min(side, padded(height)), padded(width) * padded(height))
        block = min(1 << TILE_BITS, padded(width)) * min(1 << TILE_BITS, padded(height))
        fixed = BASE_BYTES + PICTURE_BYTES * area.width * area.height // scale**2 + kept
        each = TILE_BYTES * tile_pixels + BLOCK_BYTES * block
        if fixed + each > self.max_memory:
            raise LimitError(
                f"decoding {area.width}×{area.height} pixels may take {(fixed + each) / 2**30:.1f} GiB of memory, the limit is "
                f"{self.max_memory / 2**30:.1f}: raise it with --max-memory (Limits(max_memory=…)), "
                "or decode less (--crop, --scale)"
            )
        return min(threads, (self.max_memory - fixed) // each, max(count_tiles(tile, width, height), 1))


NO_LIMITS = Limits(2 * MAX_SIDE**2, 2**62)  # for those who decode nothing
