"""How a descent is steered to its target: the level that is wanted, files that are allowed, symbols chosen for other λ."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from codec import images
from codec.fitted_steering import (
    DB_PER_LEVEL,
    FARTHEST,
    LEVELS_PER_OCTAVE,
    MOST_OCTAVES,
    OCTAVES_PER_LEVEL,
    Outlook,
    Steering,
    octaves_for,
)
from codec.fitting import RETOUCHES, PictureFit
from codec.targets import SIZE_TOLERANCE, Attempt, Target
from models.overfit.state import State

PIXELS, OTHER = 8000, 100


def steering(**target) -> Steering:
    return Steering(Target(**target), PIXELS, OTHER, 512)


@pytest.mark.parametrize(
    ("target", "n_bytes", "psnr_db", "gap"),
    [
        ({"size": 1000}, 500, math.nan, 1 / OCTAVES_PER_LEVEL),
        ({"bpp": 1.0}, 2000, math.nan, -1 / OCTAVES_PER_LEVEL),
        ({"size": 1000}, 10, math.nan, FARTHEST),
        ({"psnr": 30.0}, 500, 30 - DB_PER_LEVEL, 1.0),
        ({"psnr": 30.0}, 500, math.inf, -FARTHEST),
        ({"psnr": 30.0, "max_size": 1000}, 500, 20.0, 1 / OCTAVES_PER_LEVEL),  # what asks for less
        ({"psnr": 30.0, "max_size": 1000}, 500, 30 + DB_PER_LEVEL, -1.0),
        ({"quality": 75, "max_size": 1000}, 10, math.nan, 0.5),  # 384 levels, not 256
        ({"quality": 75, "max_size": 1000}, 4000, math.nan, -2 / OCTAVES_PER_LEVEL),
    ],
)
def test_the_gap_is_that_between_a_file_and_its_target(target, n_bytes, psnr_db, gap):
    assert steering(**target).gap(256, n_bytes, psnr_db) == pytest.approx(max(gap, -FARTHEST), abs=0.01)


def test_the_level_that_is_wanted_counts_what_lies_ahead_and_all_other_bytes():
    now = State(1.5, 0.5, 30.0)  # 2000 bytes, a thousand at the end
    assert steering(size=1100).wanted(200, now, Outlook(0.5, 1.0)) == pytest.approx(200, abs=2)
    assert steering(size=2200).wanted(200, now, Outlook(0.5, 1.0)) == pytest.approx(200 + 256 / OCTAVES_PER_LEVEL, abs=2)
    assert steering(psnr=31.0).wanted(200, now, Outlook(0.5, 1.0)) == pytest.approx(200, abs=2)
    assert steering(size=50).wanted(200, now, Outlook(0.5, 1.0)) == 200 - 256 * FARTHEST


@pytest.mark.parametrize(
    ("target", "n_bytes", "psnr_db", "allowed"),
    [
        ({"size": 1000}, 1000, math.nan, True),
        ({"size": 1000}, 1001, math.nan, False),
        ({"psnr": 30.0}, 1000, 30.0, True),
        ({"psnr": 30.0}, 1000, 29.99, False),
        ({"psnr": 30.0, "max_size": 1000}, 999, 20.0, True),  # it has all bytes that it may
        ({"psnr": 30.0, "max_size": 1000}, 900, 20.0, False),
        ({"psnr": 30.0, "max_size": 1000}, 1001, 31.0, False),
        ({"quality": 10, "max_size": 1000}, 10, math.nan, True),
    ],
)
def test_files_that_a_target_allows(target, n_bytes, psnr_db, allowed):
    assert steering(**target).allows(Attempt(bytes(n_bytes), psnr_db)) == allowed


def test_octaves_follow_the_last_two_points():
    assert octaves_for([(0.0, 0.06)]) == pytest.approx(0.06 / LEVELS_PER_OCTAVE)
    assert octaves_for([(0.0, 0.06), (0.5, 0.03)]) == pytest.approx(1.0)
    assert octaves_for([(0.0, 0.06), (0.5, 0.07)]) == pytest.approx(0.5 + 0.07 / (LEVELS_PER_OCTAVE / 4))  # nothing gained
    assert octaves_for([(0.0, 9.0)]) == MOST_OCTAVES
    assert octaves_for([(MOST_OCTAVES, -9.0), (MOST_OCTAVES, -9.0)]) == -MOST_OCTAVES


class Descent:
    """A descent whose symbols, chosen for λ, take ``octaves`` of bytes for each octave of it."""

    level, lmbda = 256, 1.0

    def __init__(self, octaves: float) -> None:
        self.octaves, self.chosen = octaves, [1.0]

    def retouch(self, lmbda, choosing):
        self.chosen.append(lmbda)


@pytest.fixture
def fitting(fitted_codec, small):
    """Return fitting(target): the fit of a picture whose files have a thousand bytes times a power of λ."""

    def make(target):
        made = PictureFit(fitted_codec.model, fitted_codec.engine, images.load(small), target, 0)
        made._encoder = SimpleNamespace(code=lambda fit, at: Attempt(bytes(round(1000 * fit.chosen[-1] ** fit.octaves))))
        return made

    return make


@pytest.mark.parametrize("octaves", [0.04, 0.1, 0.25])
@pytest.mark.parametrize("size", [960, 1000, 1015, 1040])
def test_the_last_percents_are_met_by_choices_of_symbols(fitting, octaves, size):
    fit = Descent(octaves)
    found = fitting(Target(size=size))._retouched(fit)
    assert size * (1 - 2 * SIZE_TOLERANCE) <= len(found.data) <= size
    assert len(fit.chosen) <= RETOUCHES + 1


def test_what_is_near_enough_is_not_chosen_again(fitting):
    for target in (Target(size=1003), Target(quality=50, max_size=5000)):
        fit = Descent(0.1)
        assert len(fitting(target)._retouched(fit).data) == 1000
        assert fit.chosen == [1.0]


def test_no_file_is_returned_where_choices_do_not_reach_the_target(fitting):
    assert fitting(Target(size=500))._retouched(Descent(0.05)) is None
    assert fitting(Target(size=2000))._retouched(Descent(0.05)) is None


def test_sizes_beyond_the_highest_level_are_not_chosen_for(fitting):
    fit = Descent(0.1)
    fit.level = 512
    assert len(fitting(Target(size=5000))._retouched(fit).data) == 1000
    assert fit.chosen == [1.0]


@pytest.mark.parametrize("options", [{"size": 450}, {"psnr": 25.0}])
def test_the_long_descent_moves_towards_its_target(fitted_codec, small, monkeypatch, options):
    """From where short descents would have it: from the highest level down."""
    monkeypatch.setattr(PictureFit, "_try_levels", lambda self, level: 512)
    levels, steer = [], PictureFit._steer

    def watched(self, fit, ahead):
        steer(self, fit, ahead)
        levels.append(fit.level)

    monkeypatch.setattr(PictureFit, "_steer", watched)
    data = fitted_codec.encode(small, **options)
    assert len(levels) > 3
    assert levels[-1] < 400
    assert fitted_codec.decode(data).size == (60, 50)


def test_a_quality_is_a_level_and_stays(fitted_codec, fitted, small, monkeypatch):
    monkeypatch.setattr(PictureFit, "_steer", None)
    assert fitted_codec.encode(small, quality=50) == fitted
