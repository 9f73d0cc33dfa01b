"""Pictures of files that hold networks of their own (``overfit``): the same interface as ``codec.tiles`` has for the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

from bitstream.container import TileSource
from bitstream.engines import Engine
from bitstream.grid import Rect
from codec.images import Pixels
from codec.tiles import TileDecoder, tile_latents, to_pixels
from models.load import Model
from models.overfit.runtime import DecodedFit, OverfitModel
from models.runtime import LoadedModel, check_symbols


class FittedDecoder:
    """Synthesises areas of a picture of w × h pixels from its grids and networks: one tile, whatever its size."""

    def __init__(self, model: OverfitModel, w: int, h: int, level: int) -> None:
        self._model, self._level = model, level
        self.tiles = [Rect(0, 0, w, h)]

    def decode(self, latents_of: Callable[[int], DecodedFit], area: Rect, scale: int = 1, most: int | None = None) -> Pixels:
        """Return the pixels (H, W, 3) of an area, each the mean of scale × scale, fewer at its right and lower edge."""
        x_hat = self._model.synthesise(latents_of(0), self._level)[..., area.top : area.bottom, area.left : area.right]
        return to_pixels(F.avg_pool2d(x_hat.clamp(0, 1), scale, ceil_mode=True) if scale > 1 else x_hat)


def open_picture(model: Model, engine: Engine, source: TileSource) -> tuple[TileDecoder | FittedDecoder, Callable[[int], Any]]:
    """Return what synthesises the picture of a file, and the function that decodes the symbols of a tile for it.

    That raises FormatError or DesyncError.
    """
    header = source.header
    if isinstance(model, LoadedModel):
        decoder = TileDecoder(model, header.width, header.height, header.tile)
        return decoder, tile_latents(model, engine, source, decoder.tiles)

    def decode(number: int) -> DecodedFit:
        tile = source.tile(number)
        decoded, crc = model.decode(tile.payloads, header.level, header.height, header.width, engine)
        check_symbols(crc, tile.symbol_crc)
        return decoded

    return FittedDecoder(model, header.width, header.height, header.level), decode
