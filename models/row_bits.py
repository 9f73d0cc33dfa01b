"""What symbols cost by the CDF rows that they are coded with, as a function with a gradient."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bitstream.tables import SCALE_MIN, SYMBOL_MAX, MasterTable
from models.rounding import scale_index_of


def bits_of_rows(table: MasterTable) -> Tensor:
    """Return the bits (64, 1024) of each magnitude in symmetric rows on −1023 … 1023."""
    mass = torch.from_numpy(np.diff(table.cumulative, axis=1)[:, SYMBOL_MAX:]).double()
    whole = 2 * mass.sum(dim=1, keepdim=True) - mass[:, :1]
    return (whole.log2() - mass.log2()).float()


def row_bits(bits: Tensor, symbols: Tensor, scales: Tensor) -> Tensor:
    """Return what symbols cost at their scales by the table ``bits`` (64, 1024) of scale index and magnitude.

    Linear between whole symbols, as a mixture of two costs, and between scale indexes, so that a context has a gradient.
    """
    index = scale_index_of(scales.nan_to_num(SCALE_MIN).clamp(min=SCALE_MIN)).clamp(0, len(bits) - 1)
    row = index.detach().floor().clamp(max=len(bits) - 2).long()
    magnitude = symbols.nan_to_num(0.0).abs().clamp(max=bits.shape[1] - 1)
    column = magnitude.detach().floor().clamp(max=bits.shape[1] - 2).long()
    place = row * bits.shape[1] + column
    flat, next_row = bits.flatten(), bits.shape[1]
    low, high = (torch.lerp(flat[p], flat[p + 1], magnitude - column) for p in (place, place + next_row))
    return torch.lerp(low, high, index - row)
