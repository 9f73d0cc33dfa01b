"""How residuals become symbols: rounding with a dead zone that depends on the scale, in training and in coding.

It is the encoder's free choice: decoding and the format do not know of it. A symbol of small scale is expected to be zero, so
anything else is expensive; a residual a little above one half is then better coded as zero.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitstream.tables import LOG2_UNITS, SCALES, SYMBOL_MAX, gaussian_master

FIXED_BITS = 8  # y·gain, means and y_hat are in 1/256
RDO_SLOPE = 0.115  # squared steps that a bit is worth: d(Δ²/12) / d(log2 Δ) for one coefficient
RDO_STRENGTH = 0.5  # of the dead zone, where a model has not its own; measured: −5 % bits at equal PSNR
RDO_MAX = 384  # at most 1.5 steps


@lru_cache(maxsize=4)
def dead_zone(strength: float) -> NDArray[np.int32]:
    """Return per scale index the residual, in 1/256, below which a symbol is better 0 than ±1, by a Gaussian's bits."""
    return zones_of(gaussian_master().cumulative, strength)


def zones_of(cumulative: NDArray[np.integer], strength: float) -> NDArray[np.int32]:
    """Return the dead zone, in 1/256, of each of the symmetric CDF rows of a master table.

    Zero saves b = log2(P(0) / P(1)) bits and costs e² − (1 − e)² = 2e − 1 squared steps: worth it below e = (1 + slope·b) / 2.
    ``strength`` scales the slope: 0 is plain rounding.
    """
    mass = np.diff(cumulative[:, SYMBOL_MAX : SYMBOL_MAX + 3].astype(np.float64), axis=1)  # of the symbols 0 and 1
    bits = np.log2(mass[:, 0] / mass[:, 1])
    return np.minimum(128 * (1 + strength * RDO_SLOPE * bits), RDO_MAX).round().astype(np.int32)


def choose_symbols(residual: NDArray[np.int64], rows: NDArray[np.uint8], strength: float) -> NDArray[np.int16]:
    """Round residuals (n,) in 1/256 to symbols within ±1023, with the dead zone of each symbol's scale index (n,)."""
    reach = SYMBOL_MAX << FIXED_BITS
    small = residual.clip(-reach, reach).astype(np.int32)
    symbols = ((small + (1 << (FIXED_BITS - 1))) >> FIXED_BITS).astype(np.int16)
    symbols *= np.abs(small) >= dead_zone(strength)[rows]
    return symbols


def ste_round(x: Tensor) -> Tensor:
    """Round to the nearest integer; the gradient passes straight through."""
    return x + (x.round() - x).detach()


def scale_index_of(scales: Tensor) -> Tensor:
    """Return the scale indexes of float scales, neither rounded nor clamped."""
    return (scales.float().log2() * LOG2_UNITS + 815) * (1442 / 65536)


def scale_indexes(scales: Tensor) -> Tensor:
    """Return the scale indexes of float scales: what ``bitstream.tables.scale_index`` gives for integers."""
    return scale_index_of(scales).nan_to_num(0.0).round().clamp(0, SCALES - 1).long()


def ste_symbols(residual: Tensor, scales: Tensor, strength: float = RDO_STRENGTH) -> Tensor:
    """Do in training what ``choose_symbols`` does in coding; the gradient passes straight through."""
    plain = residual.detach()
    return residual + (plain.round() * (plain.abs() >= _zones(scales, strength)) - plain)


def evened(residual: Tensor, scales: Tensor, strength: float = RDO_STRENGTH) -> Tensor:
    """Return residuals whose plain rounding gives the symbols that ``ste_symbols`` gives of these.

    The dead zone becomes half a step, what lies between it and one the other half; beyond both residuals stay.
    """
    size, zone = residual.abs(), _zones(scales, strength)
    below, above = size / (2 * zone), 1 - (1 - size) / (2 * (1 - zone))
    even = torch.where(size < zone, below.clamp(max=0.499), torch.where(size < 1, above.clamp(min=0.501), size))
    return even * residual.sign()


def _zones(scales: Tensor, strength: float) -> Tensor:
    """Return the dead zone of each scale."""
    zones = torch.from_numpy(dead_zone(strength)).to(scales.device) / (1 << FIXED_BITS)
    return zones[scale_indexes(scales.detach())]
