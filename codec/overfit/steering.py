"""Steering a descent of ``overfit`` to its target: what it has half-way says what it ends with, and so which level it needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from codec.targets import PSNR_TOLERANCE, SIZE_TOLERANCE, Attempt, Target
from models.overfit.state import State

# Of descents at their own levels, six Kodak pictures, for an octave of λ
BYTES_PER_OCTAVE = 0.69  # octaves
DB_PER_OCTAVE = 1.95
# Gaps, in octaves of λ, from the middle of what codec.targets tolerates
NEAR_ENOUGH = 0.012  # to 0.8 % of networks and grids below a size, 0.033 dB above a PSNR: symbols are not chosen again
FAR_OFF = 0.05  # 2.6 %, 0.1 dB: beyond it a second descent follows
SAFETY = 0.006  # added for each file that is not allowed, so that the next one aims further inside
# Of a choice of symbols with another λ
WORTH = 0.2  # of a descent's: a first guess, between 0.11 (kodim23) and 0.26 (kodim08)
MOST_OCTAVES = 3.0


@dataclass(frozen=True)
class Outlook:
    """``bits``: what a descent ends with, as a share of the bits that its rounded latents and its networks have now.
    ``db``: the PSNR that it still gains.
    """

    bits: float
    db: float


# About the medians of 21 descents, six Kodak pictures at levels 1.6 to 4, of 1000 iterations (docs/training.md)
OF_SHORT = Outlook(0.6, 0.6)  # a descent of few iterations, annealed to its end; with the finest grid less, without it more
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
    """Levels 0 … ``top`` (1/256), each worth ``octaves`` of λ, for a target of a picture of so many pixels.

    Its file has ``other_bytes`` beside networks and grids.
    """

    target: Target
    pixels: int
    other_bytes: int
    top: int
    octaves: float

    @property
    def first(self) -> int:
        """Return the level to begin with: that of the quality, where one is given."""
        return self.target.level(self.top)

    def gap(self, level: int, n_bytes: float, psnr_db: float) -> float:
        """Return by how many octaves λ of a descent was too low for the target, if a level gave this; below 0, too high."""
        gaps = [self._size_gap(n_bytes)]
        if self.target.psnr is not None:
            gaps.append(self._psnr_gap(psnr_db))
        elif self.target.bpp is None and self.target.size is None:  # a quality, and a limit
            gaps.append(max(self.first - level, 0) / 256 * self.octaves)
        most = self.top / 256 * self.octaves
        return min(max(min(gaps), -most), most)

    def level(self, level: int, gap: float) -> int:
        """Return the level that is higher by a gap, even beyond the ends."""
        return level + round(256 * gap / self.octaves)

    def wanted(self, level: int, state: State, ahead: Outlook) -> int:
        """Return the level at which a descent that stands so at a level would end at the target; beyond the ends if none."""
        n_bytes = self.other_bytes + state.bpp * ahead.bits * self.pixels / 8
        return self.level(level, self.gap(level, n_bytes, state.psnr_db + ahead.db))

    def allows(self, file: Attempt) -> bool:
        """Return whether a file is one that the target allows, however far from it.

        It may have less than the PSNR that is asked for where a limit is in the way.
        """
        limit, psnr = self.target.limit(self.pixels), self.target.psnr
        if limit is not None and len(file.data) > limit:
            return False
        return psnr is None or file.psnr_db >= psnr or self._size_gap(len(file.data)) < self._psnr_gap(file.psnr_db)

    def _size_gap(self, n_bytes: float) -> float:
        limit = self.target.limit(self.pixels)
        if limit is None:
            return math.inf
        wanted = max(limit * (1 - SIZE_TOLERANCE / 2) - self.other_bytes, 1)
        return math.log2(wanted / max(n_bytes - self.other_bytes, 1)) / BYTES_PER_OCTAVE

    def _psnr_gap(self, psnr_db: float) -> float:
        assert self.target.psnr is not None
        return (self.target.psnr + PSNR_TOLERANCE / 2 - psnr_db) / DB_PER_OCTAVE


class Retouching:
    """The search for the λ of a choice of symbols whose file is at the target: files that were made, and what to try next."""

    def __init__(self, steering: Steering, level: int) -> None:
        self._steering, self._level = steering, level
        self._points: list[tuple[float, float]] = []  # octaves of λ and gaps
        self.octaves = 0.0
        self.best: Attempt | None = None  # of the files that are allowed
        self.gap = math.inf  # of the best, in octaves of λ of a descent

    def add(self, file: Attempt) -> None:
        """Take the file that was made with λ times 2 to the ``octaves``, and set these to what to try next.

        That follows the secant through the last two files, if it is not far from what is usual.
        """
        gap, top = self._steering.gap(self._level, len(file.data), file.psnr_db), self._steering.top
        if not self._steering.allows(file):
            gap += math.copysign(SAFETY * (len(self._points) + 1), gap)
        else:
            gap = 0.0 if (self._level == 0 and gap < 0) or (self._level == top and gap > 0) else gap  # no level is nearer
            if abs(gap) < abs(self.gap):
                self.best, self.gap = file, gap
        slope = WORTH
        if self._points and self._points[-1][0] != self.octaves:
            octaves, before = self._points[-1]
            slope = min(max((before - gap) / (self.octaves - octaves), slope / 4), slope * 4)
        self._points.append((self.octaves, gap))
        self.octaves = min(max(self.octaves + gap / slope, -MOST_OCTAVES), MOST_OCTAVES)

    @property
    def over(self) -> bool:
        """Return whether another choice is not worth its time: the best file is near, or no other λ is left."""
        return abs(self.gap) <= NEAR_ENOUGH or self.octaves == self._points[-1][0]

    @property
    def nearest(self) -> float:
        """Return the least gap of all files, allowed or not."""
        return min((abs(gap) for _, gap in self._points), default=math.inf)

    @property
    def better_level(self) -> int:
        """Return the level at which the descent should have been; its own, if its files are not far from the target."""
        if self.nearest <= FAR_OFF or not self._points:
            return self._level
        level = min(max(self._steering.level(self._level, self._points[0][1]), 0), self._steering.top)
        return level if abs(level - self._level) / 256 * self._steering.octaves > FAR_OFF else self._level
