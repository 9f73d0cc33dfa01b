"""The entropy path of ``factorized``: integer CDF rows of each channel's density at any gain (FORMAT.md section 5.3).

The checkpoint holds each channel's cumulative density on a grid of half steps of the highest rate; at another gain the edges of
the symbols fall between grid points and are interpolated, in integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitstream.coder import SymbolCoder
from bitstream.errors import CheckpointError
from bitstream.segments import TableRows
from bitstream.tables import LOG2_UNITS, POW2_BITS, SYMBOL_MAX, MasterTable, pow2_fixed
from models.integer import rshift
from models.latents import GainTable, Latents
from models.layout import EntropyLayout
from models.rounding import FIXED_BITS

GRID_REACH = 2 * (SYMBOL_MAX + 1)  # half steps on either side of the median
MEDIAN_BITS = 16  # medians are in 1/65536 of a standard deviation
SPREADS = (1, 7, 31)  # a channel is in the first band whose ± symbols hold all but 1/1024 of its mass


@dataclass
class FactorizedEntropy(GainTable):
    """Densities of one checkpoint."""

    layout: EntropyLayout
    grid: NDArray[np.int64]  # (M, 2·GRID_REACH + 1) cumulative density in 2^-30
    log2_grid: Tensor  # (M,) int64: the gain whose half steps the grid has
    offset: Tensor  # (M,) int64: medians in 1/65536 of a standard deviation

    def __post_init__(self) -> None:
        super().__post_init__()
        m = self.log2_gain.shape[1]
        found = self.grid.shape, tuple(self.log2_grid.shape), tuple(self.offset.shape)
        expected = (m, 2 * GRID_REACH + 1), (m,), (m,)
        if found != expected:
            raise CheckpointError(f"checkpoint: density tables are {found}, expected {expected}: damaged, export it again")
        if (np.diff(self.grid, axis=1) < 0).any() or self.grid.min() < 0 or self.grid.max() > 2**30:
            raise CheckpointError("checkpoint: a density falls or leaves 0 … 2^30: damaged, export it again")

    def fix_latents(self, y: Tensor, z: Tensor | None, level: int) -> Latents:
        """Round float y (1, M, h, w) to what the coder takes; there is no z.

        The rest of the medians below 1/256 is taken off here: it decides symbols, and only the encoder needs to know.
        """
        exact = (
            self.offset * ((self.gains(level) + self.log2_std).double() / LOG2_UNITS).exp2() / 2 ** (MEDIAN_BITS - FIXED_BITS)
        )
        rest = (exact - self.means(level)) / 2**FIXED_BITS  # of a symbol
        inverse = (-self.gains(level).double() / LOG2_UNITS).exp2()
        return Latents(self.fix_y(y.cpu() - (rest * inverse).float()[:, None, None], level))

    def means(self, level: int) -> Tensor:
        """Return what a symbol 0 stands for (M,) in 1/256, at a level in 1/256."""
        multiplier = torch.from_numpy(pow2_fixed((self.gains(level) + self.log2_std).numpy()))
        return rshift(self.offset * multiplier, POW2_BITS + MEDIAN_BITS - FIXED_BITS)

    def master(self, level: int) -> MasterTable:
        """Return the master rows of all channels at a level in 1/256."""
        ratio = pow2_fixed((self.log2_grid - self.gains(level)).numpy())[:, None]
        edges = (2 * np.arange(-SYMBOL_MAX, SYMBOL_MAX + 2) - 1) * ratio  # (M, symbols + 1) half steps of the grid, · 2^20
        edges = np.clip(edges, -GRID_REACH << POW2_BITS, (GRID_REACH << POW2_BITS) - 1)
        index, fraction = (edges >> POW2_BITS) + GRID_REACH, edges & ((1 << POW2_BITS) - 1)
        low, high = (np.take_along_axis(self.grid, index + i, axis=1) for i in (0, 1))
        return MasterTable(-SYMBOL_MAX, low + ((high - low) * fraction >> POW2_BITS) + np.arange(edges.shape[1]))

    @torch.inference_mode()
    def code_latents(self, coder: SymbolCoder, level: int, h: int, w: int, latents: Latents | None) -> Tensor:
        """Encode the latents, or decode them if None; return y_hat (h, w, M) int64 in 1/256.

        h and w are the sides of y. The chunk of z stays empty. Raises FormatError or SymbolError from the coder.
        """
        coder.end_chunk()
        table = self.master(level)
        band = _bands(table)
        order = np.argsort(band, kind="stable")
        rank = np.argsort(order, kind="stable").astype(np.uint16)
        edges = tuple(int((band <= i).sum()) for i in range(len(SPREADS)))
        means = self.means(level)
        source = TableRows(MasterTable(table.lo, table.cumulative[order]), np.tile(rank, h * w), edges)
        symbols = None
        if latents is not None:
            wanted = rshift(latents.y - means, FIXED_BITS).clamp(-SYMBOL_MAX, SYMBOL_MAX)
            symbols = wanted.reshape(-1).numpy().astype(np.int16)
        coded = torch.from_numpy(coder.code_source(symbols, source).astype(np.int64))
        coder.end_chunk()
        return ((coded.reshape(h * w, -1) << FIXED_BITS) + means).reshape(h, w, -1)


def _bands(table: MasterTable) -> NDArray[np.int64]:
    """Return the band (M,) of each channel: 0 … len(SPREADS), narrow to wide."""
    f, centre = table.cumulative, -table.lo
    total = f[:, -1] - f[:, 0]
    inside = [f[:, centre + k + 1] - f[:, centre - k] for k in SPREADS]
    return np.sum([(total - mass) << 10 >= total for mass in inside], axis=0)
