"""CDF tables in integers (FORMAT.md sections 4.1, 5 and 7).

The only floating-point arithmetic is the one evaluation of the normal distribution and of powers of two, in double
precision through libm, rounded to a grid so coarse that two libms all but never differ; ``constants_crc`` catches the
rest, since each checkpoint stores the value it was made with.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitstream.errors import SymbolError

PRECISION = 16  # bits of a CDF row; torchac's
MASTER_BITS = 30
SYMBOL_MAX = 1023
SCALES = 64
SCALE_MIN, SCALE_MAX = 0.11, 256.0  # Ballé 2018
POW2_BITS = 20
LOG2_UNITS = 256  # logarithms are stored in 1/256 octave

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class MasterTable:
    """Strictly increasing master rows F (rows, hi − lo + 2) of symbols lo … hi."""

    lo: int
    cumulative: IntArray

    @property
    def hi(self) -> int:
        """Return the largest symbol."""
        return self.lo + self.cumulative.shape[1] - 2

    def rows(self, first: int, last: int) -> NDArray[np.uint16]:
        """Return the CDF rows (rows, last − first + 2) as uint16 for symbols restricted to [first, last].

        The closing 65536 is stored as 0. Raises SymbolError for a range outside of the table.
        """
        if not self.lo <= first <= last <= self.hi:
            raise SymbolError(f"symbol range is [{first}, {last}], the table holds [{self.lo}, {self.hi}]")
        n = last - first + 1
        part = self.cumulative[:, first - self.lo : last - self.lo + 2]
        part = part - part[:, :1]
        cdf = part * ((1 << PRECISION) - n) // part[:, -1:] + np.arange(n + 1)
        return (cdf & 0xFFFF).astype(np.uint16)


def master_from_pmf(pmf: NDArray[np.float64], lo: int) -> MasterTable:
    """Return the master table of probability rows (rows, symbols) that each sum to at most 1."""
    cumulative = np.concatenate([np.zeros((len(pmf), 1)), np.cumsum(pmf, axis=1)], axis=1)
    scaled = np.rint(cumulative * 2.0**MASTER_BITS).astype(np.int64)
    return MasterTable(lo, scaled + np.arange(scaled.shape[1]))


def master_from_mass(mass: NDArray[np.integer[Any]]) -> MasterTable:
    """Return the master table of symmetric rows from the mass (rows, K + 1) of the symbols 0 … K: all positive."""
    both = np.concatenate([mass[:, :0:-1], mass], axis=1)
    return MasterTable(1 - mass.shape[1], np.cumsum(np.pad(both, ((0, 0), (1, 0))), axis=1, dtype=np.int64))


@lru_cache(maxsize=1)
def gaussian_master() -> MasterTable:
    """Return the master rows of the 64 scales on −1023 … 1023 (FORMAT.md section 5)."""
    k_all = np.arange(-SYMBOL_MAX, SYMBOL_MAX + 2)
    rows = np.tile(k_all + SYMBOL_MAX + (k_all > 0) * 2**MASTER_BITS, (SCALES, 1))
    ratio = SCALE_MAX / SCALE_MIN
    for i in range(SCALES):
        inverse = 1 / (SCALE_MIN * ratio ** (i / (SCALES - 1)) * math.sqrt(2))
        reach = min(math.ceil(5 / inverse), SYMBOL_MAX)  # beyond, Φ is 0 or 1 to less than half of 2^-30: erfc(5) is 2e-12
        for k in range(-reach, reach + 2):
            phi = 0.5 * math.erfc((0.5 - k) * inverse)
            rows[i, k + SYMBOL_MAX] = round(phi * 2.0**MASTER_BITS) + k + SYMBOL_MAX
    return MasterTable(-SYMBOL_MAX, rows)


@lru_cache(maxsize=1)
def pow2_table() -> IntArray:
    """Return T: 2^(i/256) · 2^20 for i in 0 … 255 (FORMAT.md section 7)."""
    return np.array([round(2.0 ** (i / LOG2_UNITS + POW2_BITS)) for i in range(LOG2_UNITS)], dtype=np.int64)


def pow2_fixed(log2: IntArray) -> IntArray:
    """Return 2^(log2/256) · 2^20 as integers, P(L) of FORMAT.md section 7, for logarithms in ±5120."""
    clamped = np.clip(log2, -20 * LOG2_UNITS, 20 * LOG2_UNITS)
    octave, fraction = clamped >> 8, clamped & (LOG2_UNITS - 1)
    value = pow2_table()[fraction]
    down = np.maximum(-octave, 0)
    half = np.where(down > 0, 1 << np.maximum(down - 1, 0), 0)
    return (value << np.maximum(octave, 0)) + half >> down


@lru_cache(maxsize=1)
def _octaves() -> IntArray:
    return pow2_fixed(np.arange(20 * LOG2_UNITS + 1))


def log2_fixed(value: NDArray[np.integer[Any]]) -> IntArray:
    """Return the largest L with 2^(L/256) · 2^20 ≤ value · 2^20, in ±5120, for integers; what is below 1 gives −5120."""
    found = np.searchsorted(_octaves(), value.astype(np.int64) << POW2_BITS, side="right") - 1
    return np.where(value < 1, -20 * LOG2_UNITS, found)


def scale_index(log2_scale: IntArray) -> NDArray[np.uint8]:
    """Return the row of ``gaussian_master`` for log2 scales in 1/256 octave (FORMAT.md section 7, step 4)."""
    return np.clip(((log2_scale + 815) * 1442 + (1 << 15)) >> 16, 0, SCALES - 1).astype(np.uint8)


@lru_cache(maxsize=1)
def constants_crc() -> int:
    """Return the CRC-32 of all constant tables: equal on every machine that can decode."""
    return zlib.crc32(pow2_table().astype("<i8").tobytes(), zlib.crc32(gaussian_master().cumulative.astype("<i8").tobytes()))
