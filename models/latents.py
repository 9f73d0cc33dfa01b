"""Where float latents become integers and integer latents float, and the gains between them (FORMAT.md section 7, step 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bitstream.errors import CheckpointError
from bitstream.tables import LOG2_UNITS
from models.integer import rshift
from models.layers import at_levels
from models.program import shape_of
from models.rounding import FIXED_BITS

Z_MAX = 127
LEVEL_UNITS = 256
INVERSE_GAIN = ("log2_gain_s", "level_bias_s")  # the tensors of ``InverseGain``, named as the network has them
LOG2_INVERSE_MAX = 16.0
LEVEL_BIAS_MAX = 2.0**20


@dataclass(frozen=True)
class Latents:
    """What the encoder's float networks give: y·gain in 1/256 (h·w, M) int64, z symbols (h/4·w/4, N) int64 if there is a z.

    ``clamped`` is the number of z symbols that were too large.
    """

    y: Tensor
    z: Tensor | None = None
    clamped: int = 0


def count_beyond(values: Tensor, limit: float) -> int:
    """Return how many values are beyond ±limit."""
    low, high = values.aminmax() if values.numel() else (values.new_zeros(()), values.new_zeros(()))
    return int((values.abs() > limit).sum()) if max(-low, high) > limit else 0


@dataclass
class GainTable:
    """Gains of y, log2 in 1/256 octave, one row for each level; std is the constant per channel of the entropy networks."""

    log2_gain: Tensor  # (levels, M) int64
    log2_std: Tensor  # (M,) int64

    def __post_init__(self) -> None:
        if self.log2_gain.dim() != 2 or not len(self.log2_gain):
            raise CheckpointError("checkpoint: gains are not one row for each of one or more levels: export it again")
        if self.log2_std.shape != self.log2_gain.shape[1:]:
            raise CheckpointError(
                f"checkpoint: log2_std is {tuple(self.log2_std.shape)}, expected {tuple(self.log2_gain.shape[1:])}: "
                "damaged, export it again"
            )

    @property
    def max_level(self) -> int:
        """Return the highest level, in 1/256."""
        return (len(self.log2_gain) - 1) * LEVEL_UNITS

    def interpolate(self, log2_gain: Tensor, level: int) -> Tensor:
        """Return a row of a table (levels, C), or (1, C) for all levels, at a level in 1/256, interpolated in integers."""
        low = min(level // LEVEL_UNITS, max(len(log2_gain) - 2, 0))
        high = min(low + 1, len(log2_gain) - 1)
        return log2_gain[low] + rshift((log2_gain[high] - log2_gain[low]) * (level - low * LEVEL_UNITS), 8)

    def gains(self, level: int) -> Tensor:
        """Return log2 of the gains of y (M,) at a level in 1/256."""
        return self.interpolate(self.log2_gain, level)

    def fix_y(self, y: Tensor, level: int) -> Tensor:
        """Return float y (1, M, h, w) times its gain in 1/256, rounded down, (h·w, M) int64.

        Down, so that rounding a residual of it to a symbol is rounding the residual of y itself.
        """
        log2 = self.gains(level) + FIXED_BITS * LOG2_UNITS
        fixed = y[0].cpu().float().permute(1, 2, 0).reshape(-1, y.shape[1]) * (log2.double() / LOG2_UNITS).exp2().float()
        limit = float(2**30)
        return fixed.nan_to_num_(0.0).clamp_(-limit, limit).floor_().long()

    def float_latents(self, y_hat: Tensor, level: int) -> Tensor:
        """Return y_hat / gain as float32 (1, M, h, w) from integer (h, w, M)."""
        inverse = (-(self.gains(level).double() / LOG2_UNITS) - FIXED_BITS).exp2().float()
        return (y_hat.float() * inverse).permute(2, 0, 1)[None]


class InverseGain:
    """The gain and bias of a level that g_s sees its latents with, besides 1/gain: (levels, M), linear between levels.

    ``tensors`` are those of a checkpoint: log2 of the gain, and the bias in units of 2^``log2_std`` (M,), this in 1/256 octave.
    Raises CheckpointError if one is missing or damaged. Source: Cui 2021 (inverse gain units, arXiv 2003.02012).
    """

    def __init__(self, tensors: Mapping[str, Tensor], levels: int, log2_std: Tensor) -> None:
        expected, tables = (levels, len(log2_std)), []
        for name, limit in zip(INVERSE_GAIN, (LOG2_INVERSE_MAX, LEVEL_BIAS_MAX), strict=True):
            if (found := shape_of(tensors, name)) != expected:
                raise CheckpointError(f"checkpoint: {name} is {found}, expected {expected}: damaged, export it again")
            table = tensors[name].double()
            if not bool((table.abs() <= limit).all()):
                raise CheckpointError(f"checkpoint: {name} is not within ±{limit:g} everywhere: damaged, export it again")
            tables.append(table)
        self._log2_gain, self._bias = tables[0], tables[1] * (log2_std.double() / LOG2_UNITS).exp2()

    def __call__(self, latents: Tensor, level: int) -> Tensor:
        """Return what g_s takes (1, M, h, w) of latents, y_hat / gain, at a level in 1/256."""
        place = torch.tensor([level / LEVEL_UNITS], dtype=torch.float64, device="cpu")
        log2_gain, bias = (at_levels(table, place).float()[:, :, None, None] for table in (self._log2_gain, self._bias))
        return torch.addcmul(bias, latents, log2_gain.exp2())
