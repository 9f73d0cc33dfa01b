"""Where the bits of a file with networks of its own (``overfit``) are: what ``codec.inspection`` finds for the other models."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitstream.container import TileSource
from bitstream.engines import Engine
from bitstream.grid import padded
from bitstream.laplace import FRACTIONS, SCALES
from bitstream.recording import RecordingReader, StreamCost
from models.overfit.configs import GRIDS
from models.overfit.entropy import EDGES, grid_shape, steps_of
from models.overfit.runtime import OverfitModel, check_claim
from models.runtime import STRIDE_Y, check_symbols

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Part:
    """A part of a file. Streams have a cost, in bytes, symbols and ideal bits; other parts have bytes only."""

    name: str
    n_bytes: int
    cost: StreamCost = StreamCost()


@dataclass(frozen=True)
class PartsOfBits:
    """The parts of one tile; ideal bits by position (h, w) and by channel (M,) of y; how many zeros each channel has (M,).

    Of a file with networks of its own: by grid, and the share of zeros.
    """

    parts: list[Part]
    position_bits: FloatArray
    channel_bits: FloatArray
    channel_zeros: FloatArray


def inspect_fit(model: OverfitModel, engine: Engine, source: TileSource) -> PartsOfBits:
    """Decode the symbols of a file and count their bits. Raises FormatError, SymbolError or DesyncError."""
    header, tile = source.header, source.tile(0)
    h, w = header.height, header.width
    check_claim(h, w)
    reader = RecordingReader(engine, tile.payloads)
    decoded = model.walk(reader, header.level, h, w, None, None)
    check_symbols(reader.crc, tile.symbol_crc)
    segments = [group for group in reader.groups if group.length_bytes]
    networks = StreamCost()
    for group in reader.groups:
        if not group.length_bytes:
            networks = sum(group.measure()[0], networks)
    costs, bits_of_steps = zip(*(group.measure() for group in segments), strict=True) if segments else ((), ())
    parts = [Part("networks", networks.n_bytes, networks)]
    for band, (low, high) in enumerate(pairwise((0, *EDGES, SCALES * FRACTIONS))):
        cost = sum((streams[band] for streams in costs), StreamCost())
        parts.append(Part(f"grids, scales {low // FRACTIONS}-{high // FRACTIONS - 1}", cost.n_bytes, cost))
    parts.append(Part("grids, lengths of streams", sum(group.length_bytes for group in segments)))
    of_grids = [np.zeros(grid_shape(h, w, grid)) for grid in range(GRIDS)]
    bits = [part for steps in bits_of_steps for part in steps]
    for (grid, positions), part in zip(steps_of(h, w, decoded.finest), bits, strict=True):
        of_grids[grid].reshape(-1)[positions] = part
    position_bits = np.zeros((padded(h) // STRIDE_Y, padded(w) // STRIDE_Y))
    for grid, plane in enumerate(of_grids):
        position_bits += _at_positions(plane, 2**grid)
    zeros = np.array([float((values == 0).mean()) for values in decoded.grids])
    return PartsOfBits(parts, position_bits, np.array([plane.sum() for plane in of_grids]), zeros)


def _at_positions(plane: FloatArray, pixels: int) -> FloatArray:
    """Return sums over 16×16 pixels of a plane whose values stand for so many pixels squared; those of more are spread."""
    if pixels > STRIDE_Y:
        times = pixels // STRIDE_Y
        spread: FloatArray = plane.repeat(times, axis=0).repeat(times, axis=1) / times**2
        return spread
    each = STRIDE_Y // pixels
    sums: FloatArray = plane.reshape(plane.shape[0] // each, each, plane.shape[1] // each, each).sum(axis=(1, 3))
    return sums
