"""Where float latents become integers and integer latents float, and the gains between them (FORMAT.md section 7, step 1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bitstream.errors import CheckpointError
from bitstream.tables import LOG2_UNITS
from models.integer import rshift
from models.rounding import FIXED_BITS

Z_MAX = 127
LEVEL_UNITS = 256


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
        """Return y_hat / gain as float32 (1, M, h, w) for g_s from integer (h, w, M)."""
        inverse = (-(self.gains(level).double() / LOG2_UNITS) - FIXED_BITS).exp2().float()
        return (y_hat.float() * inverse).permute(2, 0, 1)[None]
