"""What a file shall be: of a quality, of a size, or of a PSNR; and the search for the rate level that makes it so.

Bytes and PSNR rise with the level. Sizes ask for the highest level that is not above them, PSNR for the lowest that reaches it;
the search ends at one that is near enough. A size above that of the highest level gives the highest, a PSNR below that of the
lowest the lowest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

from bitstream.errors import TargetError, UsageError

DEFAULT_QUALITY = 50.0
SIZE_TOLERANCE = 0.005  # below a size by so much is near enough: the search ends
PSNR_TOLERANCE = 0.02  # dB
OCTAVES_PER_LEVEL = 0.6  # of bytes: a first guess of the slope, measured on swift
DB_PER_LEVEL = 1.9
SECANTS = 6  # attempts after which the search bisects
LARGEST = 1e15  # of any target: what is more is a mistake
FAR = 100.0  # octaves or dB from the target: more is as far (a PSNR may be infinite)
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "KIB": 2**10, "MIB": 2**20, "GB": 10**9, "GIB": 2**30}


@dataclass(frozen=True)
class Target:
    """What a caller asked for: one of ``quality`` 0 … 100, ``bpp``, ``size`` (bytes), ``psnr`` (dB), and a limit of bytes."""

    quality: float | None = None
    bpp: float | None = None
    size: int | None = None
    psnr: float | None = None
    max_size: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("quality", "bpp", "size", "psnr") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} are given, expected one of them: leave the others away")
        if self.max_size is not None and given in (["bpp"], ["size"]):
            raise UsageError(f"max_size and {given[0]} are both limits of bytes: give one of them")
        if self.quality is not None and not (_is_number(self.quality) and 0 <= self.quality <= 100):
            raise UsageError(f"quality is {self.quality!r}, expected 0 … 100")
        for name in ("bpp", "size", "psnr", "max_size"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < LARGEST):
                raise UsageError(f"{name} is {value!r}, expected a number above 0 and below {LARGEST:.0e}")

    def limit(self, pixels: int) -> int | None:
        """Return the most bytes that the file of a picture of so many pixels may have, or None."""
        if self.bpp is not None:
            return math.floor(self.bpp * pixels / 8)
        return self.size if self.size is not None else self.max_size

    def level(self, top: int) -> int:
        """Return the rate level of the quality, which is the default one if none is given, of 0 … ``top``."""
        return round((DEFAULT_QUALITY if self.quality is None else self.quality) / 100 * top)

    @property
    def is_quality(self) -> bool:
        """Return whether no search is needed."""
        return self.bpp is None and self.size is None and self.psnr is None and self.max_size is None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def parse_size(text: str) -> int:
    """Return the bytes of "40000", "40KB" (1000), "40KiB" (1024) or "1.5MB". Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise UsageError(f"size is {text!r}, expected bytes, or a number with KB, MB, GB, KiB, MiB or GiB: for example 40KB")
    size = float(match[1]) * UNITS[match[2].upper()]
    if size >= LARGEST:
        raise UsageError(f"size is {text!r}, expected less than {LARGEST:.0e} bytes")
    return math.floor(size)


@dataclass(frozen=True)
class Attempt:
    """A file of a picture, the PSNR of what it decodes to if one is asked for, and how many of its symbols were too large."""

    data: bytes
    psnr_db: float = math.nan
    clamped: int = 0


class LevelSearch:
    """Attempts at one picture at rate levels 0 … ``top`` (1/256), each made once."""

    def __init__(self, make: Callable[[int], Attempt], top: int) -> None:
        self.make, self.top = make, top
        self.attempts: dict[int, Attempt] = {}

    def at(self, level: int) -> Attempt:
        """Return the attempt at a level."""
        if level not in self.attempts:
            self.attempts[level] = self.make(level)
        return self.attempts[level]

    def run(self, target: Target, pixels: int, first: int | None = None) -> tuple[int, Attempt]:
        """Return the level that meets the target, and its file; ``first`` is a level to begin with.

        Raises TargetError if no level does: a size below the smallest file, a PSNR above that of the largest.
        """
        limit, top = target.limit(pixels), self.top
        start = self.top // 2
        if target.psnr is not None:
            start = top = self._reaching(target.psnr, start if first is None else first)
        elif target.bpp is None and target.size is None:
            start = top = target.level(self.top)
        if limit is not None:
            top = self._within(limit, top, start if first is None else min(first, top))
        return top, self.at(top)

    def _within(self, limit: int, top: int, start: int) -> int:
        def octaves(level: int) -> float:
            return math.log2(len(self.at(level).data) / limit) if limit else FAR

        level = _highest(octaves, top, start, OCTAVES_PER_LEVEL / 256, -math.log2(1 - SIZE_TOLERANCE))
        if level is None:
            raise TargetError(
                f"the smallest file of this picture has {len(self.at(0).data)} bytes, at most {limit} are asked for: allow "
                "more, or make the picture smaller"
            )
        return level

    def _reaching(self, psnr: float, start: int) -> int:
        below = _highest(  # levels counted from the top: the gap then rises with them
            lambda i: psnr - self.at(self.top - i).psnr_db, self.top, self.top - start, DB_PER_LEVEL / 256, PSNR_TOLERANCE
        )
        if below is None:
            raise TargetError(
                f"the best file of this picture has a PSNR of {self.at(self.top).psnr_db:.2f} dB, {psnr} dB are asked for: "
                "ask for less, or keep a lossless format"
            )
        return self.top - below


def _highest(gap: Callable[[int], float], top: int, start: int, slope: float, tolerance: float) -> int | None:
    """Return the highest level of 0 … top whose gap is not above 0, or one where it is within ``tolerance`` below.

    None if all are above. The gap rises with the level, by about ``slope`` each. Growing steps until there are levels on both
    sides, then regula falsi, then bisection.
    """
    low, high = -1, top + 1
    gaps: dict[int, float] = {}
    level, step = min(max(start, 0), top), 0
    while True:
        gaps[level] = value = min(max(gap(level), -FAR), FAR)
        if -tolerance <= value <= 0:
            return level
        low, high = (level, high) if value <= 0 else (low, level)
        if high - low <= 1:
            return low if low >= 0 else None
        if low not in gaps or high not in gaps:
            step = max(round(abs(value) / slope), 2 * step, 1)
            level += step if value <= 0 else -step
        elif len(gaps) > SECANTS:
            level = (low + high) // 2
        else:
            level = low + round((high - low) * -gaps[low] / (gaps[high] - gaps[low]))
        level = min(max(level, low + 1), high - 1)
