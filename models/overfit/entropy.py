"""The grids as symbols: their entropy networks in exact integers, block by block in wavefronts (FORMAT.md section 10).

Blocks of 64×64 positions of a grid do not see each other's symbols of the same grid, so all of them decode at once: a picture
of any size takes at most 253 steps for each grid. One walk for both directions, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bitstream.coder import SymbolCoder
from bitstream.grid import padded
from bitstream.laplace import FRACTION_BITS, FRACTIONS, laplace_master, laplace_rows
from bitstream.segments import TableRows
from bitstream.tables import POW2_BITS, SYMBOL_MAX, pow2_fixed
from models.overfit.configs import BLOCK, GRIDS, PHASES, TAPS
from models.overfit.networks import Parameters
from models.overfit.weights import UNITS

SEGMENT = 2**15  # positions of a segment, about
EDGES = (11 * FRACTIONS, 24 * FRACTIONS)  # bands: rows of scales below 0.3, below 2, the rest
VALUE_MAX = 2047  # of a latent
WHOLE_MAX = VALUE_MAX - SYMBOL_MAX  # of the whole part of a location
ACTIVATION_BITS = 8
ACTIVATION_MAX = 2**17 - 1
WEIGHT_MAX = 2**28  # of a weight with its gain
OUT_MAX = 2**26  # of an output in 2^-16

IntArray = NDArray[np.int64]
Grid = NDArray[np.int16]


def grid_shape(height: int, width: int, grid: int) -> tuple[int, int]:
    """Return rows and columns of a grid of a picture."""
    return padded(height) >> grid, padded(width) >> grid


def _rshift(value: IntArray, bits: int) -> IntArray:
    return value + (1 << bits - 1) >> bits


@dataclass(frozen=True)
class IntegerNetwork:
    """The entropy network of one grid in integers: weights transposed as float64, biases as int64."""

    context: NDArray[np.float64]  # (12, H), in 2^-16
    coarse: NDArray[np.float64] | None  # (9, 4H)
    bias_1: IntArray
    hidden: NDArray[np.float64]  # (H, H)
    bias_2: IntArray
    out: NDArray[np.float64]  # (H, 2)
    bias_3: IntArray
    gain: int  # 1/256 octave

    @classmethod
    def of(cls, parameters: Parameters, gains: Tensor, grid: int) -> IntegerNetwork:
        """Take the parameters of a picture in 2^-16, and the gains of its level in 1/256 octave."""

        def own(name: str) -> IntArray:
            return parameters[f"grid_{grid}.{name}"].numpy()

        def inputs(name: str, gain: int) -> NDArray[np.float64]:
            factor = int(pow2_fixed(np.array([-gain]))[0])
            return np.clip(_rshift(own(name) * factor, POW2_BITS), -WEIGHT_MAX, WEIGHT_MAX).T.astype(np.float64)

        coarse = inputs("coarse", int(gains[grid + 1])) if grid < GRIDS - 1 else None
        shifted = [own(name) << ACTIVATION_BITS for name in ("bias_2", "bias_3")]
        floats = [own(name).T.astype(np.float64) for name in ("hidden", "out")]
        gain = int(gains[grid])
        return cls(inputs("context", gain), coarse, own("bias_1"), floats[0], shifted[0], floats[1], shifted[1], gain)

    def __call__(
        self, context: NDArray[np.float64], coarse: NDArray[np.float64] | None, phase: NDArray[np.int64]
    ) -> tuple[IntArray, IntArray]:
        """Return log2 scales (P,) in 1/256 octave and locations (P,) in 1/16 of what neighbours (P, 12) and (P, 9) say.

        Every product is below 2^53: float64 is exact.
        """
        total = context @ self.context
        if coarse is not None and self.coarse is not None:
            every = (coarse @ self.coarse).reshape(len(total), -1, PHASES)
            total += every[np.arange(len(total)), :, phase]
        a = self._activations(total, self.bias_1, UNITS - ACTIVATION_BITS)
        a = self._activations(a @ self.hidden, self.bias_2, UNITS)
        out = _rshift((a @ self.out).astype(np.int64) + self.bias_3, ACTIVATION_BITS).clip(-OUT_MAX, OUT_MAX)
        factor = int(pow2_fixed(np.array([self.gain]))[0])
        location = _rshift(out[:, 0] * factor, POW2_BITS + UNITS - FRACTION_BITS)
        reach = WHOLE_MAX << FRACTION_BITS
        return _rshift(out[:, 1], UNITS - 8) + self.gain, location.clip(-reach, reach)

    @staticmethod
    def _activations(total: NDArray[np.float64], bias: IntArray, shift: int) -> NDArray[np.float64]:
        return _rshift(total.astype(np.int64) + bias, shift).clip(0, ACTIVATION_MAX).astype(np.float64)


class _Blocks:
    """The symbols of a grid in blocks with borders of zeros, and where the positions of each step lie."""

    def __init__(self, h: int, w: int) -> None:
        self.h, self.w = h, w
        across, rows, columns = -(-w // BLOCK), min(h, BLOCK) + 2, min(w, BLOCK) + 4
        y, x = (index.reshape(-1) for index in np.indices((h, w), dtype=np.int32))
        block = (y // BLOCK) * across + x // BLOCK
        y_in, x_in = y % BLOCK, x % BLOCK
        wave = x_in + 3 * y_in
        order = np.argsort(wave, kind="stable")
        self._ends = np.cumsum(np.bincount(wave))
        self._place = ((block * rows + y_in + 2) * columns + x_in + 2)[order]
        self._coarse_place = ((y >> 1) * ((w >> 1) + 2) + (x >> 1))[order]
        self._phase = ((y & 1) * 2 + (x & 1))[order]
        self._order = order
        self._plane = np.zeros(-(-h // BLOCK) * across * rows * columns, np.int16)
        self._taps = np.array([dy * columns + dx for dy, dx in TAPS])
        self._ring = np.array([i * ((w >> 1) + 2) + j for i in range(3) for j in range(3)])

    def steps(self) -> Iterator[slice]:
        """Yield the positions of each step: those of equal column + 3·row in their blocks, in raster order."""
        start = 0
        for end in self._ends.tolist():
            if end > start:
                yield slice(start, end)
            start = end

    def neighbours(self, step: slice) -> NDArray[np.float64]:
        """Return the causal neighbours (P, 12)."""
        return self._plane[self._place[step, None] + self._taps].astype(np.float64)

    def coarser(self, step: slice, ringed: NDArray[np.int16]) -> NDArray[np.float64]:
        """Return the 3×3 of the coarser grid (P, 9), of its flat values with a ring of zeros."""
        return ringed[self._coarse_place[step, None] + self._ring].astype(np.float64)

    def phase(self, step: slice) -> NDArray[np.int64]:
        """Return which position (P,) of a 2×2 cell each is."""
        return self._phase[step]

    def positions(self, step: slice) -> NDArray[np.intp]:
        """Return the flat positions (P,) in the grid."""
        return self._order[step]

    def of(self, grid: Grid, step: slice) -> NDArray[np.int64]:
        """Return the values (P,) of a grid."""
        return grid.reshape(-1)[self._order[step]].astype(np.int64)

    def set(self, step: slice, values: NDArray[np.int64]) -> None:
        """Set the values (P,) of a step."""
        self._plane[self._place[step]] = values

    def grid(self) -> Grid:
        """Return the grid (h, w)."""
        out = np.empty(self.h * self.w, np.int16)
        out[self._order] = self._plane[self._place]
        return out.reshape(self.h, self.w)


class _Segments:
    """Opens a segment for about so many positions, of whatever grid they are."""

    def __init__(self, coder: SymbolCoder) -> None:
        self._coder, self._count = coder, SEGMENT
        self._open = ExitStack()

    def code(self, symbols: NDArray[np.int16] | None, source: TableRows) -> NDArray[np.int16]:
        if self._count >= SEGMENT:
            self.close()
            self._code, self._count = self._open.enter_context(self._coder.segment(len(EDGES) + 1)), 0
        self._count += len(source)
        return self._code(symbols, source)

    def close(self) -> None:
        self._open.close()


def steps_of(height: int, width: int, finest: int) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield the grid and the flat positions (P,) of each step that ``code_grids`` codes."""
    for grid in range(GRIDS - 1, finest - 1, -1):
        blocks = _Blocks(*grid_shape(height, width, grid))
        for step in blocks.steps():
            yield grid, blocks.positions(step)


def code_grids(
    coder: SymbolCoder,
    parameters: Parameters,
    gains: Tensor,
    height: int,
    width: int,
    finest: int,
    grids: Sequence[Grid] | None,
) -> list[Grid]:
    """Code the chunk GRIDS of a picture, from the coarsest grid to ``finest``; return all seven, as a decoder has them.

    Latents are clamped to ±2047 and, encoding, to ±1023 around the whole part of their location.
    """
    out = [np.zeros(grid_shape(height, width, grid), np.int16) for grid in range(GRIDS)]
    segments = _Segments(coder)
    for number in range(GRIDS - 1, finest - 1, -1):
        network = IntegerNetwork.of(parameters, gains, number)
        blocks = _Blocks(*out[number].shape)
        ringed = np.pad(out[number + 1], 1).reshape(-1) if number < GRIDS - 1 else None
        for step in blocks.steps():
            coarse = None if ringed is None else blocks.coarser(step, ringed)
            log2_scale, location = network(blocks.neighbours(step), coarse, blocks.phase(step))
            rows, whole = laplace_rows(log2_scale, location)
            symbols = None
            if grids is not None:
                values = blocks.of(grids[number], step).clip(-VALUE_MAX, VALUE_MAX)
                symbols = (values - whole).clip(-SYMBOL_MAX, SYMBOL_MAX).astype(np.int16)
            coded = segments.code(symbols, TableRows(laplace_master(), rows, EDGES))
            blocks.set(step, coded + whole)
        out[number] = blocks.grid()
    segments.close()
    coder.end_chunk()
    return out
