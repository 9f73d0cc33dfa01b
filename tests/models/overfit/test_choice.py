"""The choice of symbols: it saves what it counts, moves by whole numbers, and finds a symbol that is wrong."""

from __future__ import annotations

import pytest
import torch

from models.overfit import choice as choice_module
from models.overfit.choice import COARSEST, Choice
from models.overfit.configs import GRIDS


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


@pytest.mark.parametrize("finest", [0, 1])
def test_each_grid_costs_less_behind_its_choice(begun, finest):
    fit = begun(130, 100, finest)
    costs = [cost(fit)]
    choice_of(fit).run(8, lambda _: costs.append(cost(fit)))
    assert len(costs) == 1 + COARSEST + 1 - finest
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.98 * costs[0]


def test_values_that_move_become_whole_numbers_in_the_grids_that_are_chosen(begun):
    fit = begun(100, 130, 1)
    before, shares = [value.clone() for value in fit.latents], []
    choice_of(fit).run(6, shares.append)
    moved = [new != old for new, old in zip(fit.latents, before, strict=True)]
    assert [bool(places.any()) for places in moved] == [False] + [True] * COARSEST + [False] * (GRIDS - 1 - COARSEST)
    for value, old, places in zip(fit.latents, before, moved, strict=True):
        assert torch.equal(value[places], value[places].round())
        assert (value - old.round())[places].abs().min() >= 1 if places.any() else True
    assert shares == [number / COARSEST for number in range(1, COARSEST + 1)]


@pytest.mark.parametrize(("grid", "place"), [(1, (30, 31)), (2, (0, 0)), (3, (15, 15))])
def test_a_symbol_that_is_wrong_is_found(descended, grid, place):
    fit = descended(128, 128)
    choice_of(fit).run(40)
    right = cost(fit)
    fit.latents[grid][place] += 4
    wrong = cost(fit)
    choice_of(fit).run(8)
    assert cost(fit) - right < 0.5 * (wrong - right)


def test_regions_choose_what_the_whole_picture_does(descended, monkeypatch):
    """A region sees all that its symbols reach: what they cost is counted rightly at its borders."""
    whole, parts = descended(192, 192), descended(192, 192)
    start = cost(whole)
    choice_of(whole).run(60)
    monkeypatch.setattr(choice_module, "REGION", 64)
    costs = [start]
    choice_of(parts).run(60, lambda _: costs.append(cost(parts)))
    assert len(costs) == 1 + 9 * COARSEST
    assert costs == sorted(costs, reverse=True)
    assert start - costs[-1] == pytest.approx(start - cost(whole), rel=0.2)


def test_what_pads_a_picture_is_not_worth_bits(begun, tiny, pixels):
    """Behind 65 columns symbols only cost: none becomes larger."""
    fit = tiny.fit(pixels(64, 65), 300, 1)
    before = fit.latents[1][:, 40:].round().abs()
    choice_of(fit).run(40)
    assert (fit.latents[1][:, 40:].round().abs() <= before).float().mean() > 0.99
