"""How a descent is steered to its target: the level that is wanted, files that are allowed, symbols chosen for other λ."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bitstream.errors import TargetError
from codec import images, info
from codec.metrics import psnr_db
from codec.overfit.fitting import RETOUCHES, PictureFit
from codec.overfit.steering import (
    BYTES_PER_OCTAVE,
    DB_PER_OCTAVE,
    MOST_OCTAVES,
    NEAR_ENOUGH,
    SAFETY,
    STEERED,
    WORTH,
    Outlook,
    Retouching,
    Steering,
)
from codec.targets import SIZE_TOLERANCE, Attempt, Target
from models.overfit.fit import FREEZING
from models.overfit.state import State, stored_facts

PIXELS, OTHER = 8000, 100
OCTAVES = 1.25  # of λ, a level


def steering(**target) -> Steering:
    return Steering(Target(**target), PIXELS, OTHER, 512, OCTAVES)


@pytest.mark.parametrize(
    ("target", "n_bytes", "psnr_db", "gap"),
    [
        ({"size": 1000}, 550, math.nan, 1 / BYTES_PER_OCTAVE),  # 900 and 450 bytes of networks and grids
        ({"bpp": 1.0}, 1900, math.nan, -1 / BYTES_PER_OCTAVE),
        ({"size": 1000}, 10, math.nan, 2 * OCTAVES),  # all there are
        ({"psnr": 30.0}, 500, 30 - DB_PER_OCTAVE, 1.0),
        ({"psnr": 30.0}, 500, math.inf, -2 * OCTAVES),
        ({"psnr": 30.0, "max_size": 1000}, 550, 20.0, 1 / BYTES_PER_OCTAVE),  # what asks for less
        ({"psnr": 30.0, "max_size": 1000}, 500, 30 + DB_PER_OCTAVE, -1.0),
        ({"quality": 50, "max_size": 1000}, 10, math.nan, 0.0),
        ({"quality": 75, "max_size": 1000}, 550, math.nan, OCTAVES / 2),  # no more than the quality
        ({"quality": 75, "max_size": 1000}, 1900, math.nan, -1 / BYTES_PER_OCTAVE),
    ],
)
def test_the_gap_is_that_between_a_file_and_its_target(target, n_bytes, psnr_db, gap):
    assert steering(**target).gap(256, n_bytes, psnr_db) == pytest.approx(gap, abs=0.01)


def test_the_level_that_is_wanted_counts_what_lies_ahead_and_all_other_bytes():
    now = State(1.5, 0.5, 30.0)  # 2000 bytes, a thousand at the end
    assert steering(size=1100).wanted(200, now, Outlook(0.5, 1.0)) == pytest.approx(200, abs=2)
    assert steering(size=2105).wanted(200, now, Outlook(0.5, 1.0)) == pytest.approx(
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
        ({"psnr": 30.0, "max_size": 1000}, 985, 20.0, True),  # the limit is in the way
        ({"psnr": 30.0, "max_size": 1000}, 400, 29.5, False),
        ({"psnr": 30.0, "max_size": 1000}, 1001, 31.0, False),
        ({"quality": 10, "max_size": 1000}, 10, math.nan, True),
    ],
)
def test_files_that_a_target_allows(target, n_bytes, psnr_db, allowed):
    assert steering(**target).allows(Attempt(bytes(n_bytes), psnr_db)) == allowed


def file_at(gap: float) -> Attempt:
    """Return a file that is so many octaves of λ too small for 100 000 bytes."""
    return Attempt(bytes(OTHER + round((99750 - OTHER) * 2 ** (-gap * BYTES_PER_OCTAVE))))


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
    found.add(file_at(-0.006))  # the second time by twice the margin
    assert found.octaves == pytest.approx(-0.026 / WORTH - (0.006 + 2 * SAFETY) / (0.008 / (0.026 / WORTH)), abs=0.02)


def test_retouching_ends_where_no_other_lambda_is_left():
    found = Retouching(steering(size=100_000), 256)
    found.add(file_at(2.0))
    assert found.octaves == MOST_OCTAVES
    assert not found.over
    found.add(file_at(1.9))
    assert found.over
    assert found.best == file_at(1.9)
    assert found.better_level == 512  # there is no higher one


@pytest.mark.parametrize(
    ("gaps", "better"), [([], 256), ([0.04], 256), ([0.3], 317), ([-0.3], 193), ([0.3, 0.03], 256), ([-0.02, -0.01], 256)]
)
def test_a_descent_that_ended_far_off_should_have_been_at_another_level(gaps, better):
    found = Retouching(steering(size=100_000), 256)
    for gap in gaps:
        found.add(file_at(gap))
    assert found.better_level == pytest.approx(better, abs=2)


def test_no_other_level_is_better_where_the_end_of_all_is_near():
    found = Retouching(steering(size=100_000), 508)
    found.add(file_at(0.5))
    assert found.better_level == 508


def test_all_moves_come_before_networks_are_frozen():
    """What they differ by from the base would be kept in the steps of another level."""
    assert max(STEERED) < FREEZING[0]


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

    def restore_latents(self, latents):
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
    assert found.better_level == 512
    assert fit.chosen == []


@pytest.fixture
def watched(monkeypatch):
    """The long descents that are begun, and the levels that they are moved to."""
    begun, levels, descend, steer = [], [], PictureFit._descend, PictureFit._steer

    def descended(self, fit):
        begun.append((fit.level, self._is_second))
        descend(self, fit)

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
    moves = len({round(fitted_codec.fit.iterations * share) for share in STEERED})
    assert len(watched.levels) == moves  # a second one stays at its level
    assert watched.levels[-1] < 450
    assert fitted_codec.decode(data).size == (60, 50)


def test_a_descent_that_ends_far_off_is_followed_by_one_at_another_level(fitted_codec, small, monkeypatch, watched, tmp_path):
    """The state that is kept is then that of the nearer one: it goes on, and no other is begun."""
    monkeypatch.setattr(PictureFit, "_try_levels", lambda self, level: 512)
    monkeypatch.setattr("codec.overfit.fitting.STEERED", {})
    data = fitted_codec.encode(small, psnr=24.0, resume=tmp_path / "state")
    assert psnr_db(small, fitted_codec.decode(data, output="numpy")) >= 24
    assert [second for _, second in watched.begun] == [False, True]
    assert watched.begun[1][0] < 400
    again = fitted_codec.encode(small, psnr=24.0, resume=tmp_path / "state")
    assert psnr_db(small, fitted_codec.decode(again, output="numpy")) >= 24
    assert watched.begun[2:] == [(info(data).level, True)]
    assert again == data


@pytest.mark.parametrize("at", [5, None])
def test_the_first_descent_is_kept_where_the_second_is_no_better(fitted_codec, small, monkeypatch, tmp_path, interrupt_at, at):
    """Where it is interrupted; where it ends further off."""
    monkeypatch.setattr(PictureFit, "_start", lambda self: (400, 1))
    monkeypatch.setattr(PictureFit, "_finest", lambda self, level: 1)
    monkeypatch.setattr("codec.overfit.fitting.STEERED", {})
    found, retouched = [], PictureFit._retouched

    def watched(self, fit):
        found.append(retouched(self, fit))
        if len(found) == 2:
            found[-1].gap = found[-1].nearest + 9
        return found[-1]

    monkeypatch.setattr(PictureFit, "_retouched", watched)
    if at is not None:
        interrupt_at(12 + at)
    picture, state = images.load(small), tmp_path / "state"
    data = fitted_codec.encode_picture(picture, Target(psnr=20.0), keep_interrupted=True, resume=state)
    assert fitted_codec.fit.interrupted == (at is not None)
    assert data == found[0].best.data
    assert len(found) == (2 if at is None else 1)
    assert found[0].better_level != 400
    monkeypatch.setattr(PictureFit, "_retouched", retouched)
    again = fitted_codec.encode_picture(picture, Target(psnr=20.0), resume=state)
    assert (again == data) == (at is None)  # a second descent that was interrupted goes on
    assert stored_facts(state)["second"] == "1"


def test_a_file_that_is_allowed_is_not_scaled(fitted_codec, small, monkeypatch):
    monkeypatch.setattr(PictureFit, "_searched", None)
    data = fitted_codec.encode(small, psnr=25.0)
    assert psnr_db(small, fitted_codec.decode(data, output="numpy")) >= 25


def test_where_no_file_is_allowed_the_symbols_of_the_descent_are_scaled(fitted_codec, small, monkeypatch, watched):
    """Not those that were chosen last; of the descent that ended nearer."""
    monkeypatch.setattr(Steering, "allows", lambda self, file: False)
    monkeypatch.setattr("codec.overfit.fitting.RETOUCHES", 2)
    ended, descend, searched = [], PictureFit._descend, PictureFit._searched

    def descended(self, fit):
        descend(self, fit)
        ended.append((fit, [value.clone() for value in fit.latents]))

    def scaled(self, fit):
        ((_, latents),) = [pair for pair in ended if pair[0] is fit]
        assert all((value == before).all() for value, before in zip(fit.latents, latents, strict=True))
        return searched(self, fit)

    monkeypatch.setattr(PictureFit, "_descend", descended)
    monkeypatch.setattr(PictureFit, "_searched", scaled)
    assert len(fitted_codec.encode(small, size=500)) <= 500
    assert len(ended) == 2


def test_metadata_and_alpha_count(fitted_codec, small):
    """They have no smaller part at a lower level."""
    alpha = np.random.default_rng(0).integers(0, 256, small.shape[:2], dtype=np.uint8)
    data = fitted_codec.encode(np.dstack([small, alpha]), size=4500)
    assert len(data) <= 4500
    with pytest.raises(TargetError, match="at most 1000 are asked for"):
        fitted_codec.encode(np.dstack([small, alpha]), size=1000)


def test_a_psnr_gives_way_to_a_limit(fitted_codec, small):
    assert len(fitted_codec.encode(small, psnr=30, max_size=1500)) <= 1500
    with pytest.raises(TargetError, match="the smallest file of this picture has"):
        fitted_codec.encode(small[:20, :20], psnr=45, max_size=9)


def test_a_quality_is_a_level_and_stays(fitted_codec, fitted, small, monkeypatch):
    monkeypatch.setattr(PictureFit, "_steer", None)
    monkeypatch.setattr(PictureFit, "_met", None)
    assert fitted_codec.encode(small, quality=50) == fitted
