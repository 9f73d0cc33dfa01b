"""The picture of a file: what synthesises it and what decodes its symbols, for every kind of model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bitstream.container import TileSource
from bitstream.engines import Engine
from codec.overfit.decoder import FittedDecoder
from codec.tiles import TileDecoder, tile_latents
from models.load import Model
from models.overfit.runtime import DecodedFit
from models.runtime import LoadedModel, check_symbols


def decoder_of(model: Model, engine: Engine, source: TileSource) -> tuple[TileDecoder | FittedDecoder, Callable[[int], Any]]:
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
