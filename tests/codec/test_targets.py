"""Sizes, bits per pixel and PSNR asked for: what may be asked, and the search on curves drawn by hand."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from codec import TargetError, UsageError
from codec.targets import PSNR_TOLERANCE, SIZE_TOLERANCE, Attempt, LevelSearch, Target, parse_size

TOP = 768
MOST_ATTEMPTS = 16  # two at the ends, six by secants, and the bisection of what may be left

# --- what may be asked for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": 50, "bpp": 1.0}, "quality and bpp are given, expected one of them"),
        ({"quality": 50, "size": 100}, "quality and size are given"),
        ({"quality": 50, "psnr": 30.0}, "quality and psnr are given"),
        ({"bpp": 1.0, "size": 100}, "bpp and size are given"),
        ({"bpp": 1.0, "psnr": 30.0}, "bpp and psnr are given"),
        ({"size": 100, "psnr": 30.0}, "size and psnr are given"),
        ({"quality": 50, "bpp": 1.0, "size": 100, "psnr": 30.0}, "quality and bpp and size and psnr are given"),
        ({"bpp": 1.0, "max_size": 100}, "max_size and bpp are both limits of bytes"),
        ({"size": 100, "max_size": 100}, "max_size and size are both limits of bytes"),
        ({"quality": -0.001}, "quality is -0.001, expected 0 … 100"),
        ({"quality": 100.5}, "quality is 100.5, expected 0 … 100"),
        ({"quality": math.nan}, "quality is nan, expected 0 … 100"),
    ],
)
def test_what_contradicts_itself_or_cannot_be_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Target(**options)


@pytest.mark.parametrize("name", ["bpp", "size", "psnr", "max_size"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_numbers_that_are_not_above_0_are_refused(name, value):
    with pytest.raises(UsageError, match=re.escape(f"{name} is {value}, expected a number above 0 and below 1e+15")):
        Target(**{name: value})


@pytest.mark.parametrize("name", ["quality", "bpp", "size", "psnr", "max_size"])
@pytest.mark.parametrize("value", [True, np.True_, "30", [30], 30 + 0j, np.array([30, 31])])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(UsageError, match=re.escape(f"{name} is {value!r}, expected ")):
        Target(**{name: value})


@pytest.mark.parametrize("name", ["quality", "bpp", "size", "psnr", "max_size"])
@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float32, np.float64])
def test_numbers_of_numpy_are_numbers(name, kind):
    own = Target(**{name: kind(30)})
    assert own == Target(**{name: 30})
    assert own.limit(1000) == Target(**{name: 30}).limit(1000)


@pytest.mark.parametrize(
    ("options", "limit"),
    [({}, None), ({"quality": 3}, None), ({"psnr": 30}, None), ({"size": 77}, 77), ({"quality": 3, "max_size": 77}, 77),
     ({"psnr": 30, "max_size": 77}, 77), ({"bpp": 0.5}, 62)],
)  # fmt: skip
def test_the_limit_is_in_whole_bytes(options, limit):
    target = Target(**options)
    assert target.limit(1000) == limit
    assert target.is_quality == (limit is None and "psnr" not in options)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("40000", 40_000), ("7B", 7), ("40KB", 40_000), ("40kb", 40_000), (" 40 KiB ", 40_960), ("1.5MB", 1_500_000),
     ("0.5MiB", 524_288), ("1.0009KB", 1_000)],
)  # fmt: skip
def test_sizes_have_units(text, n_bytes):
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "KB", "-1KB", "40TB", "40 K B", "1e3", "1,5MB", ".5MB", "40KBs", "nan", "inf"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match=r"size is .*, expected bytes, or a number with KB, MB, GB, KiB, MiB or GiB"):
        parse_size(text)


def test_a_size_beyond_all_numbers_is_refused():
    with pytest.raises(UsageError):
        Target(size=parse_size("9" * 400))


# --- the search, on curves drawn by hand


def exponential(octaves):
    """Return a curve of bytes and PSNR (dB) over 0 … 1, with so many octaves of bytes and twice as many dB."""
    return lambda t: (1000 * 2 ** (octaves * t), 25 + 2 * octaves * t)


CURVES = {
    "swift's": exponential(1.8),
    "steep": exponential(12),
    "flat": exponential(0.02),
    "a straight line": lambda t: (1000 + 9000 * t, 25 + 20 * t),
    "a square": lambda t: (1000 + 90_000 * t**2, 25 + 20 * t**2),
    "a root": lambda t: (1000 + 9000 * t**0.25, 25 + 20 * t**0.25),
    "a late cliff": lambda t: (1000 + 100 * t + 10**6 * max(0, t - 0.97), 25 + t + 500 * max(0, t - 0.97)),
    "an early cliff": lambda t: (1000 + 10**5 * min(t, 0.02) + 100 * t, 25 + 500 * min(t, 0.02) + t),
    "a step": lambda t: (1000, 25) if t < 0.6 else (9000, 45),
    "a constant": lambda t: (1000, 25),
}


class Curve:
    """Bytes and PSNR at each level, and the levels that a search asked for."""

    def __init__(self, shape, top=TOP):
        points = [shape(level / max(top, 1)) for level in range(top + 1)]
        self.sizes, self.psnr = [round(size) for size, _ in points], [psnr for _, psnr in points]
        self.top, self.asked = top, []

    def attempt(self, level):
        self.asked.append(level)
        return Attempt(bytes(self.sizes[level]), self.psnr[level])

    def run(self, first=None, **options):
        level, attempt = LevelSearch(self.attempt, self.top).run(Target(**options), 1000, first)
        assert len(attempt.data) == self.sizes[level]
        return level


@pytest.fixture(params=CURVES)
def curve(request):
    """A curve of CURVES."""
    return Curve(CURVES[request.param])


LEVELS = (0, 1, 17, 383, 384, 470, 701, 767, 768)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("extra", [0, 1])
def test_a_size_gives_the_highest_level_that_is_not_above_it(curve, level, extra):
    limit = curve.sizes[level] + extra
    found = curve.run(size=limit)
    best = max(i for i, size in enumerate(curve.sizes) if size <= limit)
    assert curve.sizes[found] <= limit
    assert found == best or curve.sizes[found] >= (1 - SIZE_TOLERANCE) * limit
    assert len(curve.asked) == len(set(curve.asked)) <= MOST_ATTEMPTS


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("less", [0, 0.003])
def test_psnr_gives_the_lowest_level_that_reaches_it(curve, level, less):
    wanted = curve.psnr[level] - less
    found = curve.run(psnr=wanted)
    best = min(i for i, psnr in enumerate(curve.psnr) if psnr >= wanted)
    assert curve.psnr[found] >= wanted
    assert found == best or curve.psnr[found] <= wanted + PSNR_TOLERANCE
    assert len(curve.asked) == len(set(curve.asked)) <= MOST_ATTEMPTS


def test_bits_per_pixel_are_a_size():
    curve = Curve(CURVES["swift's"])
    assert curve.run(bpp=16) == curve.run(size=2000)


def test_a_quality_is_one_attempt(curve):
    assert curve.run() == TOP // 2
    assert curve.run(quality=10) == 77
    assert curve.asked == [TOP // 2, 77]


def test_the_right_first_level_is_the_only_attempt(curve):
    assert curve.run(300, size=curve.sizes[300]) == 300
    assert curve.asked == [300]


def test_a_first_level_is_where_max_size_begins():
    curve = Curve(CURVES["swift's"])
    assert curve.run(300, quality=80, max_size=curve.sizes[300]) == 300
    assert curve.asked == [300]


def test_a_first_level_above_the_quality_is_left_out():
    curve = Curve(CURVES["swift's"])
    assert curve.run(700, quality=50, max_size=curve.sizes[600]) == TOP // 2
    assert curve.asked == [TOP // 2]


@pytest.mark.parametrize("aim", [{}, {"quality": 80}, {"psnr": 27.0}])
def test_max_size_does_nothing_where_the_file_is_small_enough(aim):
    curve = Curve(CURVES["swift's"])
    free = curve.run(**aim)
    assert curve.run(**aim, max_size=curve.sizes[free]) == free


@pytest.mark.parametrize("aim", [{}, {"quality": 80}, {"psnr": 27.0}])
def test_max_size_lowers_the_level_where_it_is_too_large(aim):
    curve = Curve(CURVES["swift's"])
    limit = curve.sizes[100]
    found = curve.run(**aim, max_size=limit)
    assert found <= 100
    assert (1 - SIZE_TOLERANCE) * limit <= curve.sizes[found] <= limit
    assert found == curve.run(size=limit) or abs(curve.sizes[found] - limit) <= SIZE_TOLERANCE * limit


def test_a_size_below_the_smallest_file_is_a_target_error(curve):
    for options in ({"size": 999}, {"quality": 90, "max_size": 999}, {"psnr": 25.0, "max_size": 999}):
        with pytest.raises(TargetError, match="smallest file of this picture has 1000 bytes, at most 999 are asked for"):
            curve.run(**options)


def test_psnr_above_that_of_the_largest_file_is_a_target_error(curve):
    with pytest.raises(TargetError, match=f"has a PSNR of {curve.psnr[-1]:.2f} dB, 99 dB are asked for"):
        curve.run(psnr=99)
    assert len(curve.asked) <= MOST_ATTEMPTS


def test_a_size_of_less_than_one_byte_is_a_target_error(curve):
    with pytest.raises(TargetError, match="at most 0 are asked for"):
        curve.run(bpp=0.007)  # 1000 pixels


@pytest.mark.parametrize("exact", [0, 10, 500])
def test_levels_without_any_error_are_above_every_psnr(exact):
    """Pictures of one colour come back as they were: PSNR is inf."""
    curve = Curve(lambda t: (1000 + 100 * t, math.inf if t >= exact / TOP else 30 + t))
    assert curve.run(psnr=50) == exact
    assert curve.run(psnr=30) == 0


def test_enormous_numbers_are_asked_for_in_vain_or_reached_at_once():
    curve = Curve(CURVES["swift's"])
    assert curve.run(bpp=1e14) == TOP
    with pytest.raises(TargetError):
        curve.run(psnr=1e14)
    with pytest.raises(UsageError, match=r"bpp is 1e\+308, expected a number above 0 and below 1e\+15"):
        curve.run(bpp=1e308)


def test_one_level_is_all_there_is():
    curve = Curve(lambda t: (1000, 30.0), top=0)
    assert curve.run(size=1000) == curve.run(psnr=30) == curve.run(max_size=1000) == curve.run(quality=100) == 0
    with pytest.raises(TargetError):
        curve.run(size=999)
    with pytest.raises(TargetError):
        curve.run(psnr=30.01)
