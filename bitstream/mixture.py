"""Discretised Gaussian mixtures as integer CDF rows, one for each symbol (FORMAT.md section 5.2).

As in ``bitstream.tables`` the only floating-point arithmetic is one evaluation of the normal distribution and of the scales'
inverses through libm; ``mixture_crc`` catches a platform that rounds otherwise.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitstream.tables import PRECISION, SCALE_MAX, SCALE_MIN, SCALES, SYMBOL_MAX, constants_crc

PHI_UNITS = 4096  # table entries per standard deviation
PHI_REACH = 8 * PHI_UNITS
PHI_BITS = 24
INVERSE_BITS = 16
WEIGHT_BITS = 20  # the heaviest component has weight 2^20
FRACTION_BITS = WEIGHT_BITS + PHI_BITS - 30  # what is cut from a weighted sum
BLOCK_CELLS = 2**18  # cells computed at once: what fits a cache

IntArray = NDArray[np.int64]


@lru_cache(maxsize=1)
def phi_table() -> NDArray[np.int32]:
    """Return Φ(i / 4096) · 2^24 for i in −32768 … 32768."""
    scale = 1 / (PHI_UNITS * math.sqrt(2))
    return np.array(
        [round(0.5 * math.erfc(-i * scale) * 2.0**PHI_BITS) for i in range(-PHI_REACH, PHI_REACH + 1)], dtype=np.int32
    )


@lru_cache(maxsize=1)
def inverse_scales() -> IntArray:
    """Return 4096 / (256 · σ) · 2^16 for the 64 scales: from 1/256 to entries of ``phi_table``."""
    ratio = SCALE_MAX / SCALE_MIN
    sigmas = [SCALE_MIN * ratio ** (i / (SCALES - 1)) for i in range(SCALES)]
    return np.array([round(PHI_UNITS / 256 * 2.0**INVERSE_BITS / sigma) for sigma in sigmas], dtype=np.int64)


@lru_cache(maxsize=1)
def mixture_crc() -> int:
    """Return the CRC-32 of all constant tables, those of mixtures included."""
    crc = zlib.crc32(phi_table().astype("<i4").tobytes(), constants_crc())
    return zlib.crc32(inverse_scales().astype("<i8").tobytes(), crc)


@dataclass(frozen=True)
class Mixtures:
    """n symbols with K components each: weights (n, K) up to 2^20, means (n, K) in 1/256, rows of scales (n, K)."""

    weights: IntArray
    means: IntArray
    scales: NDArray[Any]
    edges: tuple[int, ...] = ()
    lo: int = -SYMBOL_MAX
    hi: int = SYMBOL_MAX

    def __len__(self) -> int:
        return len(self.weights)

    def bands(self) -> NDArray[np.uint8]:
        """Return the band (n,) of each symbol by its widest component: scale < e0, < e1, …, the rest."""
        return np.searchsorted(self.edges, np.arange(SCALES), side="right").astype(np.uint8)[self.scales.max(axis=1)]

    def take(self, where: NDArray[np.intp]) -> Mixtures:
        """Return some of the symbols."""
        return Mixtures(self.weights[where], self.means[where], self.scales[where], self.edges, self.lo, self.hi)

    def cdf(self, first: int, last: int) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """Return one CDF row (n, last − first + 2) for each symbol, the closing 65536 stored as 0, and 0 … n − 1."""
        out = np.empty((len(self), last - first + 2), dtype=np.uint16)
        step = max(1, BLOCK_CELLS // out.shape[1])
        for start in range(0, len(self), step):
            block = slice(start, start + step)
            out[block] = self._rows(block, first, last)
        return out, np.arange(len(self))

    def _rows(self, block: slice, first: int, last: int) -> IntArray:
        edges = 256 * np.arange(first, last + 2, dtype=np.int64) - 128  # lower edges of the symbols, in 1/256
        total = np.zeros((len(self.weights[block]), len(edges)), dtype=np.int64)
        for k in range(self.weights.shape[1]):
            distance = edges - self.means[block, k, None]
            entry = distance * inverse_scales()[self.scales[block, k]][:, None] >> INVERSE_BITS
            np.clip(entry, -PHI_REACH, PHI_REACH, out=entry)
            total += self.weights[block, k, None] * phi_table()[entry + PHI_REACH]
        n = last - first + 1
        total >>= FRACTION_BITS
        total += np.arange(n + 1)
        total -= total[:, :1].copy()
        return total * ((1 << PRECISION) - n) // total[:, -1:] + np.arange(n + 1) & 0xFFFF
