"""A picture as tiles: each is coded for itself, several at once; synthesis sees over their edges, so there are no seams.

Memory is that of the picture and of a few tiles at a time, whatever its size; only a search for a target keeps all of y.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitstream.container import Tile, TileSource
from bitstream.engines import Engine
from bitstream.errors import UsageError
from bitstream.grid import TILE_BITS, Rect, cut, padded, tile_side, touched
from codec.images import Pixels
from codec.workers import Workers, workers
from models import thumbnail
from models.refine import STEPS
from models.runtime import STRIDE_Y, LoadedModel, check_symbols
from models.thumbnail import Thumbnail
from models.windows import Span

SCALES = (1, 2, 4, 8)  # a picture may be decoded at 1/1 … 1/8 of its size
Latents = Callable[[int], Tensor]  # from the number of a tile


def to_pixels(x_hat: Tensor) -> Pixels:
    """Return x_hat (1, 3, H, W) as (H, W, 3) uint8."""
    return (x_hat[0] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()


@dataclass(frozen=True)
class CodedTile:
    """A tile's part of a file, the number of its symbols that had to be clamped, and its latents: empty if not kept."""

    tile: Tile
    clamped: int
    latents: Tensor


class TileEncoder:
    """Codes the tiles of one picture, at as many levels as one likes.

    x is (1, 3, H, W) uint8; ``bits`` is the tile field of the header. With ``keep`` g_a runs once for all levels.
    """

    def __init__(self, model: LoadedModel, engine: Engine, x: Tensor, bits: int, *, keep: bool) -> None:
        h, w = x.shape[-2:]
        self._model, self._engine, self._x = model, engine, x
        self.tiles = cut(Rect(0, 0, w, h), tile_side(bits, w, h))
        self._kept: dict[Rect, tuple[Tensor, Tensor | None]] | None = {} if keep else None

    def code(
        self, level: int, effort: int = 0, progress: Callable[[float], None] = lambda _: None, *, latents: bool = False
    ) -> list[CodedTile]:
        """Code all tiles at a level in 1/256; keep their latents if asked."""
        shares = dict.fromkeys(self.tiles, 0.0)

        def report(pool: Workers, tile: Rect, share: float) -> None:
            pool.check()
            shares[tile] = share
            progress(sum(shares.values()) / len(shares))

        def job(pool: Workers, tile: Rect) -> CodedTile:
            y, z = self._analyse(tile)
            if effort:
                y = self._model.refine(self._x, y, z, level, STEPS[effort], partial(report, pool, tile), tile)
            coded = self._model.code(y, z, level, self._engine)
            kept = self._model.latents(coded.y_hat, level) if latents else torch.empty(0)
            return CodedTile(Tile(coded.payloads, coded.crc), coded.clamped, kept)

        with workers(len(self.tiles)) as pool:
            return [future.result() for future in [pool.submit(partial(job, pool, tile)) for tile in self.tiles]]

    def _analyse(self, tile: Rect) -> tuple[Tensor, Tensor | None]:
        if self._kept is None:
            return self._model.analyse(self._x, tile)
        if tile not in self._kept:
            self._kept[tile] = self._model.analyse(self._x, tile)
        return self._kept[tile]


def tile_latents(model: LoadedModel, engine: Engine, source: TileSource, tiles: list[Rect]) -> Latents:
    """Return the function that decodes the symbols of a tile of a file. It raises FormatError or DesyncError."""

    def decode(number: int) -> Tensor:
        tile, rect, level = source.tile(number), tiles[number], source.header.level
        y_hat, crc = model.decode_latents(tile.payloads, level, rect.height, rect.width, engine)
        check_symbols(crc, tile.symbol_crc)
        return model.latents(y_hat, level)

    return decode


def check_area(crop: Iterable[int] | None, scale: int, width: int, height: int) -> Rect:
    """Return the area of a picture that a crop (left, top, width, height) names, or all. Raises UsageError."""
    if not isinstance(scale, Integral) or scale not in SCALES:
        raise UsageError(f"scale is 1/{scale}, expected one of {', '.join(f'1/{s}' for s in SCALES)}")
    if crop is None:
        return Rect(0, 0, width, height)
    numbers = tuple(crop) if isinstance(crop, Iterable) else ()
    if len(numbers) != 4 or not all(isinstance(number, Integral) for number in numbers):
        raise UsageError(f"crop is {crop!r}, expected four whole numbers: left, top, width, height")
    area = Rect(*map(int, numbers))
    if area.left < 0 or area.top < 0 or area.width < 1 or area.height < 1 or area.right > width or area.bottom > height:
        raise UsageError(
            f"crop is {area.width}×{area.height} from column {area.left}, row {area.top}; expected a part of the picture of "
            f"{width}×{height}"
        )
    return area


class TileDecoder:
    """Synthesises areas of a picture of w × h pixels from the latents of its tiles; ``bits`` is the header's tile field."""

    def __init__(self, model: LoadedModel, w: int, h: int, bits: int) -> None:
        self._model = model
        self.side = tile_side(bits, w, h)
        self.tiles = cut(Rect(0, 0, w, h), self.side)
        self._columns = -(-w // self.side)
        self._size = padded(h) // STRIDE_Y, padded(w) // STRIDE_Y  # of y
        self._bits = bits

    def decode(self, latents_of: Latents, area: Rect, scale: int = 1, most: int | None = None) -> Pixels:
        """Return the pixels (H, W, 3) of an area, each the mean of scale × scale, fewer at its right and lower edge.

        An eighth from whole blocks is read from the latents where the checkpoint can: nearly the mean, without synthesis.
        At most ``most`` tiles are worked on at once.
        """
        whole_blocks = scale == thumbnail.SCALE and area.left % scale == area.top % scale == 0
        readout = self._model.thumbnail if whole_blocks else None
        margin = self._model.g_s.margin if readout is None else 1
        out = np.empty((-(-area.height // scale), -(-area.width // scale), 3), np.uint8)
        blocks = cut(area, 1 << min(self._bits or TILE_BITS, TILE_BITS))
        needs = [self._needed(block, margin) for block in blocks]
        last = {tile: number for number, need in enumerate(needs) for tile in need}
        latents: dict[int, Future[Tensor]] = {}
        running: deque[tuple[int, Future[None]]] = deque()

        def finish() -> None:
            number, future = running.popleft()
            future.result()
            for tile in [tile for tile in latents if last[tile] <= number]:
                del latents[tile]

        jobs = len(last) + len(blocks) - 1
        with workers(jobs, most) as pool:
            for number, (block, need) in enumerate(zip(blocks, needs, strict=True)):
                for tile in need:
                    if tile not in latents:
                        latents[tile] = pool.submit(partial(latents_of, tile))
                parts = {tile: latents[tile] for tile in need}
                job = partial(self._paint, out, area, block, scale, parts, readout, margin)
                running.append((number, pool.submit(job)))
                if len(running) > 2 * pool.threads:
                    finish()
            while running:
                finish()
        return out

    def _spans(self, block: Rect, margin: int) -> tuple[Span, Span]:
        """Return the rows and columns of y that an area of pixels takes."""
        ends = ((block.top, block.bottom), (block.left, block.right))
        rows, columns = (
            Span.around(start // STRIDE_Y, -(-stop // STRIDE_Y), size, margin)
            for (start, stop), size in zip(ends, self._size, strict=True)
        )
        return rows, columns

    def _needed(self, block: Rect, margin: int) -> list[int]:
        """Return the numbers of the tiles that an area takes."""
        if len(self.tiles) == 1:
            return [0]
        rows, columns = self._spans(block, margin)
        of_y = Rect(columns.low, rows.low, columns.high - columns.low, rows.high - rows.low)
        return touched(of_y, self.side // STRIDE_Y, self._columns)

    def _paint(
        self, out: Pixels, area: Rect, block: Rect, scale: int, parts: dict[int, Future[Tensor]],
        readout: Thumbnail | None, margin: int,
    ) -> None:  # fmt: skip
        """Synthesise a block of pixels, or read it out, into its place."""
        rows, columns = self._spans(block, margin)
        latents = self._window(rows, columns, {tile: part.result() for tile, part in parts.items()})
        top, left = block.top - STRIDE_Y * rows.start, block.left - STRIDE_Y * columns.start
        if readout is not None:
            (h, w), top, left = (-(-side // scale) for side in (block.height, block.width)), top // scale, left // scale
            first = [2 * (span.start - span.low) for span in (rows, columns)]
            x_hat = readout(latents)[..., first[0] + top :, first[1] + left :][..., :h, :w]
        else:
            x_hat = self._model.synthesise(latents, rows, columns)[..., top : top + block.height, left : left + block.width]
            if scale > 1:
                x_hat = F.avg_pool2d(x_hat.clamp(0, 1), scale, ceil_mode=True)
        pixels = to_pixels(x_hat)
        row, column = (block.top - area.top) // scale, (block.left - area.left) // scale
        out[row : row + pixels.shape[0], column : column + pixels.shape[1]] = pixels

    def _window(self, rows: Span, columns: Span, parts: dict[int, Tensor]) -> Tensor:
        """Return the latents (1, M, h, w) of the computed part of the spans."""
        if len(self.tiles) == 1:
            return parts[0][..., rows.low : rows.high, columns.low : columns.high]
        channels = next(iter(parts.values())).shape[1]
        size = rows.high - rows.low, columns.high - columns.low, channels
        window = torch.empty(size, dtype=torch.float32, device="cpu").permute(2, 0, 1)[None]
        for tile, part in parts.items():
            top, left = self.tiles[tile].top // STRIDE_Y, self.tiles[tile].left // STRIDE_Y
            y0, y1 = max(rows.low, top), min(rows.high, top + part.shape[-2])
            x0, x1 = max(columns.low, left), min(columns.high, left + part.shape[-1])
            window[..., y0 - rows.low : y1 - rows.low, x0 - columns.low : x1 - columns.low] = part[
                ..., y0 - top : y1 - top, x0 - left : x1 - left
            ]
        return window
