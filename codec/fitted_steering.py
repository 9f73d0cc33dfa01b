"""Steering a descent of ``overfit`` to its target: from where it stands follows where it will end: so the level it needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from codec.targets import DEFAULT_QUALITY, PSNR_TOLERANCE, SIZE_TOLERANCE, Attempt, Target
from models.overfit.state import State

OCTAVES_PER_LEVEL = 0.85  # of bytes
DB_PER_LEVEL = 2.4
FARTHEST = 2.0  # levels to move at once: what lies ahead is known less well there
NEAR_ENOUGH = 0.01  # levels from the middle of what ``codec.targets`` tolerates: 0.6 % of the bytes, 0.024 dB
LEVELS_PER_OCTAVE = 0.12  # that a choice of symbols with another λ is worth, by the octaves of λ: a first guess
MOST_OCTAVES = 3.0


@dataclass(frozen=True)
class Outlook:
    """What a descent ends with, of the bits that its rounded latents and its networks have now; and how many dB more."""

    bits: float
    db: float


# Medians of descents for six Kodak pictures at up to four levels, of 1000 iterations (docs/training.md)
OF_TRIAL = Outlook(0.6, 0.6)  # which is shorter, but ends with noise as low
STEERED = {
    0.05: Outlook(0.62, 0.45),
    0.1: Outlook(0.69, 0.35),
    0.2: Outlook(0.8, 0.25),
    0.3: Outlook(0.86, 0.22),
    0.45: Outlook(0.905, 0.16),
    0.6: Outlook(0.95, 0.12),
}  # by the share of the iterations


@dataclass(frozen=True)
class Steering:
    """Levels 0 … ``top`` (1/256) for a target of a picture of so many pixels, whose file has so many other bytes."""

    target: Target
    pixels: int
    other_bytes: int
    top: int

    @property
    def first(self) -> int:
        """Return the level to begin with."""
        return round((DEFAULT_QUALITY if self.target.quality is None else self.target.quality) / 100 * self.top)

    def gap(self, level: int, n_bytes: float, psnr_db: float) -> float:
        """Return by how many levels what a level gave is too low for the target; below 0, too high."""
        target, limit, gaps = self.target, self.target.limit(self.pixels), []
        if target.psnr is not None:
            gaps.append((target.psnr + PSNR_TOLERANCE / 2 - psnr_db) / DB_PER_LEVEL)
        elif target.bpp is None and target.size is None:
            gaps.append((self.first - level) / 256)
        if limit is not None:
            gaps.append(math.log2(max(limit * (1 - SIZE_TOLERANCE / 2), 1) / n_bytes) / OCTAVES_PER_LEVEL)
        return max(min(*gaps, FARTHEST), -FARTHEST)

    def wanted(self, level: int, state: State, ahead: Outlook) -> int:
        """Return the level at which a descent that stands so at a level would end at the target; beyond the ends if none."""
        n_bytes = self.other_bytes + state.bpp * ahead.bits * self.pixels / 8
        return level + round(256 * self.gap(level, n_bytes, state.psnr_db + ahead.db))

    def allows(self, file: Attempt) -> bool:
        """Return whether a file is one that the target allows, however far from it."""
        limit, psnr = self.target.limit(self.pixels), self.target.psnr
        if limit is not None and len(file.data) > limit:
            return False
        return psnr is None or file.psnr_db >= psnr or (limit is not None and len(file.data) >= limit * (1 - SIZE_TOLERANCE))


def octaves_for(points: list[tuple[float, float]]) -> float:
    """Return the octaves by which λ of a choice of symbols should differ, from those that were tried and the gap they left.

    The secant of the last two, not far from what is usual.
    """
    octaves, gap = points[-1]
    slope = LEVELS_PER_OCTAVE
    if len(points) > 1 and points[-2][0] != octaves:
        before, gap_before = points[-2]
        slope = min(max((gap_before - gap) / (octaves - before), slope / 4), slope * 4)
    return min(max(octaves + gap / slope, -MOST_OCTAVES), MOST_OCTAVES)
