"""The choice of symbols: it saves what it counts, moves by whole numbers, and finds a symbol that is wrong."""

from __future__ import annotations

import pytest
import torch

from models.overfit import choice as choice_module
from models.overfit.choice import REACH, Choice, _peaks
from models.overfit.configs import GRIDS

GRIDS_CHOSEN = len(REACH)


@pytest.fixture
def begun(tiny, pixels):
    """Make a descent that stands at its start: of a picture (h, w), grids from ``finest`` on."""
    return lambda h, w, finest: tiny.fit(pixels(h, w), 300, finest)


@pytest.fixture
def descended(begun):
    """Make a descent that has nearly ended, from the same noise each time."""

    def make(h, w):
        torch.manual_seed(1)
        fit = begun(h, w, 1)
        fit.descend(150)
        return fit

    return make


def choice_of(fit) -> Choice:
    return Choice(fit._costs, fit.networks, fit.gains, fit.lmbda, fit.latents)


def cost(fit) -> float:
    return fit.measure().cost(fit.lmbda)


@pytest.mark.parametrize("finest", [0, 1, 3])
def test_each_grid_costs_less_behind_its_choice(begun, finest):
    fit = begun(130, 100, finest)
    costs = [cost(fit)]
    choice_of(fit).run(8, lambda *_: costs.append(cost(fit)))
    assert len(costs) == 1 + GRIDS_CHOSEN - finest
    assert all(after < before for before, after in zip(costs, costs[1:], strict=False))


def test_of_equal_symbols_near_each_other_one_is_tried():
    assert torch.nonzero(_peaks(torch.ones(5, 5), 2)).tolist() == [[0, 0]]
    assert not _peaks(torch.zeros(5, 5), 2).any()
    places = torch.nonzero(_peaks(torch.randint(0, 3, (40, 50)).float(), 2))
    assert len(places) > 5
    apart = (places[:, None] - places).abs().amax(-1)
    assert (apart + 99 * torch.eye(len(places)) > 2).all()


@pytest.mark.parametrize("period", [2, 3])
def test_a_set_never_costs_more(tiny, period):
    """Of a picture that repeats itself too."""
    x = torch.full((3, 64, 96), 40, dtype=torch.uint8)
    x[:, ::period, ::period] = 220
    fit = tiny.fit(x, 400, 0)
    costs = [cost(fit)]
    for _ in range(4):
        choice_of(fit).run(1, lambda *_: costs.append(cost(fit)))
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0]


def test_a_set_that_costs_more_is_taken_back(begun, monkeypatch):
    """As if symbols reached nothing: each would seem to save."""
    fit = begun(64, 64, 1)
    before = [value.clone() for value in fit.latents]
    monkeypatch.setattr(choice_module, "_sum_within", lambda changes, reach: torch.full_like(changes, -1.0))
    monkeypatch.setattr(Choice, "_slope", lambda self, window, hat, grid: 1e6 * -hat[grid][0].sign() - 3)  # away from zero
    choice_of(fit).run(1)
    assert all(torch.equal(new, old) for new, old in zip(fit.latents, before, strict=True))


def test_values_that_move_become_whole_numbers_one_further(begun):
    """In one set; grids that are coarser than those of the choice, and finer than the finest, stay."""
    fit = begun(100, 130, 1)
    before, reports = [value.clone() for value in fit.latents], []
    choice_of(fit).run(1, lambda *report: reports.append(report))
    moved = [new != old for new, old in zip(fit.latents, before, strict=True)]
    assert [bool(places.any()) for places in moved] == [0 < grid < GRIDS_CHOSEN for grid in range(GRIDS)]
    for value, old, places in zip(fit.latents, before, moved, strict=True):
        assert ((value - old.round())[places].abs() == 1).all()
    assert reports == [(number, number / 4) for number in range(1, 5)]


@pytest.mark.parametrize(("finest", "h", "w"), [(5, 64, 64), (GRIDS, 64, 64), (0, 1, 1)])
def test_there_may_be_next_to_nothing_to_choose(begun, finest, h, w):
    fit = begun(h, w, finest)
    before = [value.clone() for value in fit.latents]
    choice_of(fit).run(3)
    if finest >= GRIDS_CHOSEN:
        assert all(torch.equal(new, old) for new, old in zip(fit.latents, before, strict=True))


def test_no_sets_change_nothing(begun):
    fit, shares = begun(64, 64, 1), []
    before = [value.clone() for value in fit.latents]
    choice_of(fit).run(0, lambda _, share: shares.append(share))
    assert all(torch.equal(new, old) for new, old in zip(fit.latents, before, strict=True))
    assert shares[-1] == 1


def test_jobs_that_are_done_are_not_done_again(begun):
    straight, parts = begun(64, 64, 1), begun(64, 64, 1)
    choice_of(straight).run(2)
    done = []

    def stop(jobs, share):
        done.append(jobs)
        if jobs == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        choice_of(parts).run(2, stop)
    choice_of(parts).run(2, lambda jobs, share: done.append(jobs), 2)
    assert done == [1, 2, 3, 4]
    assert all(torch.equal(a, b) for a, b in zip(straight.latents, parts.latents, strict=True))


@pytest.mark.parametrize(("grid", "place"), [(1, (30, 31)), (2, (0, 0)), (3, (8, 15))])
def test_a_symbol_that_is_wrong_is_found(descended, grid, place, monkeypatch):
    monkeypatch.setattr(choice_module, "PROMISING", 0.1)
    fit = descended(128, 128)
    choice_of(fit).run(40)
    fit.latents[grid][place] += 4
    wrong, value = cost(fit), fit.latents[grid][place].round().item()
    choice_of(fit).run(8)
    assert fit.latents[grid][place].round().item() < value
    assert cost(fit) < wrong


def test_regions_choose_what_the_whole_picture_does(descended, monkeypatch):
    """A region sees all that its symbols reach: what they cost is counted rightly at its borders."""
    whole, parts = descended(192, 192), descended(192, 192)
    start = cost(whole)
    choice_of(whole).run(60)
    monkeypatch.setattr(choice_module, "REGION", 64)
    costs = [start]
    choice_of(parts).run(60, lambda *_: costs.append(cost(parts)))
    assert len(costs) == 1 + 9 * (GRIDS_CHOSEN - 1)
    assert costs == sorted(costs, reverse=True)
    assert start - costs[-1] == pytest.approx(start - cost(whole), rel=0.2)
