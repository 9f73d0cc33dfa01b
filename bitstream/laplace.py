"""Laplace distributions as integer CDF rows (FORMAT.md section 5.4), for symbols relative to the whole part of a location.

All of it is integer arithmetic on the table of powers of two: ``constants_crc`` vouches for all that it takes from libm.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bitstream.tables import LOG2_UNITS, MASTER_BITS, POW2_BITS, SYMBOL_MAX, MasterTable, pow2_fixed

SCALES = 64
SCALE_STEP = 56  # of the logarithms of neighbouring scales, in 1/256 octave
SCALE_LOWEST = -1088  # 2^-4.25: the probability of a symbol other than 0 is below 2^-13 there
FRACTION_BITS = 4  # of a location
FRACTIONS = 1 << FRACTION_BITS
SPIKE_BITS = 5
SPIKES = 1 << SPIKE_BITS  # the parts that a share of additional zeros is counted in
LOG2_E = 94548  # log2(e) in 2^-16

IntArray = NDArray[np.int64]


def laplace_rows(log2_scale: IntArray, location: IntArray) -> tuple[NDArray[np.uint16], IntArray]:
    """Return rows, and whole parts c of the locations (n,), for scales in 1/256 octave and locations in 1/16.

    Symbols are relative to c.
    """
    index = np.clip((log2_scale - SCALE_LOWEST) * 1170 + (1 << 15) >> 16, 0, SCALES - 1)
    return (index * FRACTIONS + (location & (FRACTIONS - 1))).astype(np.uint16), location >> FRACTION_BITS


@lru_cache(maxsize=1)
def laplace_master() -> MasterTable:
    """Return the master rows of 64 scales × 16 fractions of the location, on −1023 … 1023 (FORMAT.md section 5.4)."""
    k = np.arange(-SYMBOL_MAX, SYMBOL_MAX + 2)
    scales = np.arange(SCALES) * SCALE_STEP + SCALE_LOWEST
    decay = pow2_fixed(-scales) * LOG2_E >> 12  # log2(e) / scale in 2^-24
    edges = FRACTIONS * k[None] - FRACTIONS // 2 - np.arange(FRACTIONS)[:, None]  # lower edges of symbols, in 1/16
    half = 1 << MASTER_BITS - 1
    rows = np.empty((SCALES, FRACTIONS, len(k)), np.int64)
    for row, slope in zip(rows, decay, strict=True):
        octaves = np.minimum(np.abs(edges) * slope >> 24 + FRACTION_BITS - 16, 2 * MASTER_BITS * LOG2_UNITS << 8)
        above, below = pow2_fixed(-(octaves >> 8)), pow2_fixed(-(octaves >> 8) - 1)
        # Interpolated: of wide scales 1/256 octave is more than a symbol
        tail = (above << MASTER_BITS - 1 - POW2_BITS) - ((above - below) * (octaves & 255) << MASTER_BITS - 9 - POW2_BITS)
        row[:] = np.where(edges < 0, tail, 2 * half - tail)
    rows += k + SYMBOL_MAX
    return MasterTable(-SYMBOL_MAX, rows.reshape(SCALES * FRACTIONS, -1))


@lru_cache(maxsize=64)
def spiked_master(scale: int, spike: int) -> MasterTable:
    """Return one master row: that of a scale at location 0, ``spike`` of 32 parts of it more zeros (FORMAT.md section 5.4)."""
    k = np.arange(-SYMBOL_MAX, SYMBOL_MAX + 2)
    total = 1 << MASTER_BITS
    below = laplace_master().cumulative[scale * FRACTIONS] - (k + SYMBOL_MAX)
    keep = SPIKES - spike
    row = np.where(k <= 0, below * keep >> SPIKE_BITS, total - ((total - below) * keep >> SPIKE_BITS))
    return MasterTable(-SYMBOL_MAX, (row + k + SYMBOL_MAX)[None])
