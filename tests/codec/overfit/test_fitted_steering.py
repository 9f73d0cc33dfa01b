"""How a descent is steered to its target: the level that is wanted, files that are allowed, symbols chosen for other λ."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from codec import images
from codec.fitted_steering import (
    BYTES_PER_OCTAVE,
    DB_PER_OCTAVE,
    MOST_OCTAVES,
    NEAR_ENOUGH,
    SAFETY,
    WORTH,
    Outlook,
    Retouching,
    Steering,
)
from codec.fitting import RETOUCHES, PictureFit
from codec.metrics import psnr_db
from codec.targets import SIZE_TOLERANCE, Attempt, Target
from models.overfit.state import State

PIXELS, OTHER = 8000, 100
OCTAVES = 1.25  # of λ, a level


def steering(**target) -> Steering:
    return Steering(Target(**target), PIXELS, OTHER, 512, OCTAVES)


@pytest.mark.parametrize(
    ("target", "n_bytes", "psnr_db", "gap"),
    [
        ({"size": 1000}, 500, math.nan, 1 / BYTES_PER_OCTAVE),
        ({"bpp": 1.0}, 2000, math.nan, -1 / BYTES_PER_OCTAVE),
        ({"size": 1000}, 10, math.nan, 2 * OCTAVES),  # all there are
        ({"psnr": 30.0}, 500, 30 - DB_PER_OCTAVE, 1.0),
        ({"psnr": 30.0}, 500, math.inf, -2 * OCTAVES),
        ({"psnr": 30.0, "max_size": 1000}, 500, 20.0, 1 / BYTES_PER_OCTAVE),  # what asks for less
        ({"psnr": 30.0, "max_size": 1000}, 500, 30 + DB_PER_OCTAVE, -1.0),
        ({"quality": 50, "max_size": 1000}, 10, math.nan, 0.0),
        ({"quality": 75, "max_size": 1000}, 500, math.nan, 1 / BYTES_PER_OCTAVE),
        ({"quality": 75, "max_size": 1000}, 2000, math.nan, -1 / BYTES_PER_OCTAVE),
    ],
)
def test_the_gap_is_that_between_a_file_and_its_target(target, n_bytes, psnr_db, gap):
    assert steering(**target).gap(256, n_bytes, psnr_db) == pytest.approx(gap, abs=0.01)


def test_the_level_that_is_wanted_counts_what_lies_ahead_and_all_other_bytes():
    now = State(1.5, 0.5, 30.0)  # 2000 bytes, a thousand at the end
    assert steering(size=1100).wanted(200, now, Outlook(0.5, 1.0)) == pytest.approx(200, abs=2)
    assert steering(size=2200).wanted(200, now, Outlook(0.5, 1.0)) == pytest.approx(
        200 + 256 / BYTES_PER_OCTAVE / OCTAVES, abs=2
    )
    assert steering(psnr=31.0).wanted(200, now, Outlook(0.5, 1.0)) == pytest.approx(200, abs=2)
    assert steering(size=50).wanted(200, now, Outlook(0.5, 1.0)) == 200 - 512
    assert steering(quality=50, max_size=2200).wanted(200, now, Outlook(0.5, 1.0)) == 256  # that of the quality


@pytest.mark.parametrize(
    ("target", "n_bytes", "psnr_db", "allowed"),
    [
        ({"size": 1000}, 1000, math.nan, True),
        ({"size": 1000}, 1001, math.nan, False),
        ({"psnr": 30.0}, 1000, 30.0, True),
        ({"psnr": 30.0}, 1000, 29.99, False),
        ({"psnr": 30.0, "max_size": 1000}, 985, 20.0, True),  # it has nearly all bytes that it may
        ({"psnr": 30.0, "max_size": 1000}, 900, 20.0, False),
        ({"psnr": 30.0, "max_size": 1000}, 1001, 31.0, False),
        ({"quality": 10, "max_size": 1000}, 10, math.nan, True),
    ],
)
def test_files_that_a_target_allows(target, n_bytes, psnr_db, allowed):
    assert steering(**target).allows(Attempt(bytes(n_bytes), psnr_db)) == allowed


def file_at(gap: float) -> Attempt:
    """Return a file that is so many octaves of λ too small for 100 000 bytes."""
    return Attempt(bytes(round(99750 * 2 ** (-gap * BYTES_PER_OCTAVE))))


def test_retouching_follows_the_secant():
    found = Retouching(steering(size=100_000), 256)
    found.add(file_at(0.06))
    assert found.octaves == pytest.approx(0.06 / WORTH, abs=0.01)
    found.octaves = 0.5
    found.add(file_at(0.03))
    assert found.octaves == pytest.approx(1.0, abs=0.01)
    found.add(file_at(0.04))  # nothing gained: a quarter of the usual slope
    assert found.octaves == pytest.approx(1.0 + 0.04 / (WORTH / 4), abs=0.02)
    assert found.best == file_at(0.03)
    assert not found.over
    found.add(file_at(NEAR_ENOUGH / 2))
    assert found.over


def test_retouching_aims_lower_where_a_file_is_too_large():
    found = Retouching(steering(size=100_000), 256)
    found.add(file_at(-0.02))
    assert found.best is None
    assert found.octaves == pytest.approx(-(0.02 + SAFETY) / WORTH, abs=0.01)


def test_retouching_ends_where_no_other_lambda_is_left():
    found = Retouching(steering(size=100_000), 256)
    found.add(file_at(2.0))
    assert found.octaves == MOST_OCTAVES
    assert not found.over
    found.add(file_at(1.9))
    assert found.over
    assert found.best == file_at(1.9)
    assert found.level == 512  # where the descent should have been: there is no higher one


@pytest.mark.parametrize(
    ("gaps", "level"), [([], 256), ([0.04], 256), ([0.3], 256 + 61), ([-0.3], 256 - 62), ([0.3, 0.03], 256)]
)
def test_a_descent_that_ended_far_off_should_have_been_at_another_level(gaps, level):
    found = Retouching(steering(size=100_000), 256)
    for gap in gaps:
        found.add(file_at(gap))
    assert found.level == pytest.approx(level, abs=2)


class Descent:
    """A descent whose symbols, chosen for λ, take ``octaves`` of bytes for each octave of it, nearly."""

    level, lmbda = 256, 1.0

    def __init__(self, octaves: float) -> None:
        self.octaves, self.chosen, self.now = octaves, [], 1.0
        self.latents = [torch.zeros(1)]

    def retouch(self, lmbda, choosing):
        assert self.now == 1  # from the symbols of the descent
        self.now = lmbda
        self.chosen.append(lmbda)

    def take(self, latents):
        assert [value.tolist() for value in latents] == [[0.0]]
        self.now = 1.0

    @property
    def size(self) -> int:
        return round(1000 * self.now**self.octaves + (len(self.chosen) * 7) % 3 - 1)  # a byte more or less


@pytest.fixture
def fitting(fitted_codec, small):
    """Return fitting(target): the fit of a picture whose files have a thousand bytes times a power of λ."""

    def make(target):
        made = PictureFit(fitted_codec.model, fitted_codec.engine, images.load(small), target, 0)
        made._encoder = SimpleNamespace(code=lambda fit, at: Attempt(bytes(fit.size)))
        return made

    return make


@pytest.mark.parametrize("octaves", [0.04, 0.1, 0.25])
@pytest.mark.parametrize("size", [960, 1003, 1015, 1040])
def test_the_last_percents_are_met_by_choices_of_symbols(fitting, octaves, size):
    fit = Descent(octaves)
    found = fitting(Target(size=size))._retouched(fit)
    assert size * (1 - 2 * SIZE_TOLERANCE) <= len(found.best.data) <= size
    assert found.over
    assert len(fit.chosen) <= RETOUCHES
    assert fit.now == 1


def test_what_is_near_enough_is_not_chosen_again(fitting):
    for target in (Target(size=1003), Target(quality=50, max_size=5000)):
        fit = Descent(0.1)
        assert abs(len(fitting(target)._retouched(fit).best.data) - 1000) <= 1
        assert fit.chosen == []


def test_sizes_beyond_the_highest_level_are_not_chosen_for(fitting):
    fit = Descent(0.1)
    fit.level = 512
    found = fitting(Target(size=5000))._retouched(fit)
    assert abs(len(found.best.data) - 1000) <= 1
    assert found.level == 512
    assert fit.chosen == []


@pytest.fixture
def watched(monkeypatch):
    """The long descents that are begun, and the levels that they are moved to."""
    begun, levels, descend, steer = [], [], PictureFit._descend, PictureFit._steer

    def descended(self, fit, *, go_on):
        begun.append((fit.level, go_on))
        descend(self, fit, go_on=go_on)

    def steered(self, fit, ahead):
        steer(self, fit, ahead)
        levels.append(fit.level)

    monkeypatch.setattr(PictureFit, "_descend", descended)
    monkeypatch.setattr(PictureFit, "_steer", steered)
    return SimpleNamespace(begun=begun, levels=levels)


@pytest.mark.parametrize("options", [{"size": 450}, {"psnr": 25.0}])
def test_the_long_descent_moves_towards_its_target(fitted_codec, small, monkeypatch, watched, options):
    """From where short descents would have it: from the highest level down."""
    monkeypatch.setattr(PictureFit, "_try_levels", lambda self, level: 512)
    data = fitted_codec.encode(small, **options)
    assert len(watched.levels) > 3
    assert watched.levels[4] < 450
    assert fitted_codec.decode(data).size == (60, 50)


def test_a_descent_that_ends_far_off_is_followed_by_one_at_another_level(fitted_codec, small, monkeypatch, watched):
    """The state that is kept is then its own, and goes on without the first."""
    monkeypatch.setattr(PictureFit, "_try_levels", lambda self, level: 512)
    monkeypatch.setattr("codec.fitting.STEERED", {})
    data = fitted_codec.encode(small, size=800)
    assert len(data) <= 800
    assert [go_on for _, go_on in watched.begun] == [True, False]
    assert watched.begun[1][0] < 512


def test_a_file_that_is_allowed_is_not_scaled(fitted_codec, small, monkeypatch):
    monkeypatch.setattr(PictureFit, "_searched", None)
    data = fitted_codec.encode(small, psnr=25.0)
    assert psnr_db(small, fitted_codec.decode(data, output="numpy")) >= 25


def test_where_no_file_is_allowed_the_symbols_of_the_descent_are_scaled(fitted_codec, small, monkeypatch):
    """Not those that were chosen last."""
    monkeypatch.setattr(Steering, "allows", lambda self, file: False)
    monkeypatch.setattr("codec.fitting.RETOUCHES", 2)
    kept, descend, searched = [], PictureFit._descend, PictureFit._searched

    def descended(self, fit, *, go_on):
        descend(self, fit, go_on=go_on)
        kept.append((fit, [value.clone() for value in fit.latents]))

    def watched(self, fit):
        assert fit is kept[0][0]
        assert all((value == before).all() for value, before in zip(fit.latents, kept[0][1], strict=True))
        return searched(self, fit)

    monkeypatch.setattr(PictureFit, "_descend", descended)
    monkeypatch.setattr(PictureFit, "_searched", watched)
    assert len(fitted_codec.encode(small, size=500)) <= 500
    assert len(kept) == 2


def test_a_quality_is_a_level_and_stays(fitted_codec, fitted, small, monkeypatch):
    monkeypatch.setattr(PictureFit, "_steer", None)
    monkeypatch.setattr(PictureFit, "_met", None)
    assert fitted_codec.encode(small, quality=50) == fitted
