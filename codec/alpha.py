"""The alpha channel, without loss: tile by tile the value that all of it has, or a lossless WebP (FORMAT.md section 3.2).

Colours under it are coded as they come: nothing is multiplied, nothing cleared where it is transparent.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from bitstream.container import TileSource
from bitstream.errors import FormatError, LimitError
from bitstream.grid import Rect, tile_side, touched
from codec.images import Pixels
from codec.pillows_limit import pillows_limit
from codec.workers import workers

STRIP = 1024  # rows that are put together at once: a multiple of all scales
WEBP_HEAD = 16  # bytes: "RIFF", size, "WEBP", "VP8L"
WEBP_SIDE = 2**14 - 1  # libwebp's; the format has one more (RFC 9649, 3.4)
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError)  # what Pillow raises


def pack_alpha(alpha: Pixels) -> bytes:
    """Return the payload of ALPHA for the values (h, w) of a tile."""
    first = int(alpha[0, 0])
    if (alpha == first).all():
        return bytes([first])
    if max(alpha.shape) > WEBP_SIDE:
        h, w = alpha.shape
        raise LimitError(f"the alpha channel is {w}×{h} in one piece, at most {WEBP_SIDE} a side are stored: use another model")
    buffer = io.BytesIO()
    Image.fromarray(alpha).convert("RGB").save(buffer, "WEBP", lossless=True, method=4, quality=50)
    return buffer.getvalue()


def pack_tiles(alpha: Pixels | None, tiles: Sequence[Rect]) -> list[bytes]:
    """Return the payload of ALPHA for each tile of (H, W) values, empty ones if there are none."""
    if alpha is None:
        return [b""] * len(tiles)
    parts = [alpha[tile.top : tile.bottom, tile.left : tile.right] for tile in tiles]
    with workers(len(tiles)) as pool:
        return [future.result() for future in [pool.submit(partial(pack_alpha, part)) for part in parts]]


def unpack_alpha(payload: bytes, width: int, height: int) -> Pixels:
    """Return the values (height, width) of a tile. Raises FormatError if they are not just those of one."""
    if len(payload) == 1:
        return np.broadcast_to(np.uint8(payload[0]), (height, width))  # no memory of its own
    if payload[:4] + payload[8:WEBP_HEAD] != b"RIFFWEBPVP8L":
        raise FormatError(f"ALPHA begins with {payload[:WEBP_HEAD].hex()}, expected one byte or a lossless WebP: damaged file")
    bits = int.from_bytes(payload[WEBP_HEAD + 5 : WEBP_HEAD + 9], "little")  # behind length and signature (RFC 9649, 3.4)
    size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if size != (width, height):  # before anything is allocated
        raise FormatError(f"ALPHA has {size[0]}×{size[1]} pixels, expected {width}×{height}: the file is damaged")
    try:
        with pillows_limit.at(None), Image.open(io.BytesIO(payload), formats=["WEBP"]) as image:  # the size was checked
            return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, 1])
    except _DAMAGE as error:
        raise FormatError(f"ALPHA cannot be decoded ({error}): the file is damaged") from error


def decode_alpha(source: TileSource, tiles: Sequence[Rect], area: Rect, scale: int, most: int | None = None) -> Pixels | None:
    """Return the alpha of an area of a file, each value the mean of scale × scale, fewer at its right and lower edge.

    ``tiles`` are those of the picture; only those of the area are read, at most ``most`` at once, and those that a strip
    touches are kept. None if the file has no alpha.
    """
    header = source.header
    if not header.alpha:
        return None
    side = tile_side(header.tile, header.width, header.height)
    columns = -(-header.width // side)
    out = np.empty((-(-area.height // scale), -(-area.width // scale)), np.uint8)
    kept: dict[int, Future[Pixels]] = {}

    def decode(number: int) -> Pixels:
        return unpack_alpha(source.tile(number).alpha, tiles[number].width, tiles[number].height)

    with workers(len(touched(area, side, columns)), most) as pool:
        for top in range(area.top, area.bottom, STRIP):
            strip = Rect(area.left, top, area.width, min(STRIP, area.bottom - top))
            numbers = touched(strip, side, columns)
            kept = {number: kept[number] for number in numbers if number in kept}  # before there are new ones
            for number in numbers:
                if number not in kept:
                    kept[number] = pool.submit(partial(decode, number))
            values = np.empty((strip.height, strip.width), np.uint8)
            for number, part in kept.items():
                _paste(values, strip, part.result(), tiles[number])
            start = (strip.top - area.top) // scale
            out[start : start + -(-strip.height // scale)] = _means(values, scale)
    return out


def _paste(values: Pixels, strip: Rect, part: Pixels, tile: Rect) -> None:
    """Copy what a strip and a tile have in common."""
    top, bottom = max(strip.top, tile.top), min(strip.bottom, tile.bottom)
    left, right = max(strip.left, tile.left), min(strip.right, tile.right)
    place = values[top - strip.top : bottom - strip.top, left - strip.left : right - strip.left]
    place[:] = part[top - tile.top : bottom - tile.top, left - tile.left : right - tile.left]


def _means(values: Pixels, scale: int) -> Pixels:
    """Return the rounded means of cells of scale × scale, of what there is at the right and lower edge."""
    if scale == 1:
        return values
    x = torch.from_numpy(values)[None, None].float()
    return F.avg_pool2d(x, scale, ceil_mode=True)[0, 0].round().to(torch.uint8).numpy()
