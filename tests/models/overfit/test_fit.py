"""The descent for one picture: its latents and networks, how they are quantised, and that an interrupted one goes on."""

from __future__ import annotations

import math

import pytest
import torch

from models.overfit import fit as fit_module
from models.overfit import moving
from models.overfit.weights import ABSENT

FACTS = {"picture": "0badcafe", "level": "300"}


@pytest.fixture
def few_steps(monkeypatch):
    """Choose for each group of parameters only between one step and none: the search takes most of a short descent."""
    monkeypatch.setattr(moving, "STEPS", (moving.FIRST_STEP,))


def interrupted(fit, iterations: int, at: int):
    """Run a descent that ends at an iteration."""

    def stop(iteration, bpp, psnr):
        if iteration == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit.run(iterations, stop)
    return fit


def test_only_latents_of_the_window_move(tiny, pixels, few_steps):
    fit = tiny.fit(pixels(320, 300), 300, 0)
    before = [[value.clone() for value in fit.latents]]
    fit.run(4, lambda *_: before.append([value.clone() for value in fit.latents]))
    visited = set()
    for old, new in zip(before, before[1:], strict=False):
        moved = [(a != b) for a, b in zip(old, new, strict=True)]
        top, left = (int(index.min()) for index in torch.where(moved[0]))
        (number,) = (i for i, window in enumerate(fit.windows) if window[::2] == (top // 64 * 64, left // 64 * 64))
        visited.add(number)
        for grid, where in enumerate(moved):
            own = torch.zeros_like(where)
            own[fit.windows[number].coarser(grid).whole] = True
            assert not (where & ~own).any()
            assert where[own].float().mean() > 0.9
    assert visited == set(range(4))


@pytest.mark.parametrize(("level", "finest"), [(100, 1), (450, 0)])
def test_the_cost_falls(tiny, pixels, few_steps, level, finest):
    fit = tiny.fit(pixels(64, 100), level, finest)
    start = fit.measure().cost(fit.lmbda)
    seen = []
    fit.run(30, lambda *report: seen.append(report))
    fit.quantise()
    assert fit.measure().cost(fit.lmbda) < 0.97 * start
    assert [iteration for iteration, _, _ in seen] == list(range(1, 31))
    assert fit.iteration == 30


def test_grids_finer_than_the_finest_stay_zero(tiny, pixels, few_steps):
    fit = tiny.fit(pixels(64, 64), 300, 2)
    fit.run(10)
    differences = fit.quantise()
    assert [bool(value.any()) for value in fit.latents] == [False] * 2 + [True] * 5
    assert differences.finest == 2
    assert differences.steps[:2] == (ABSENT, ABSENT)
    assert not any(part.any() for part in differences.symbols[:2])


def test_networks_become_what_a_file_holds_while_the_rest_descends(tiny, pixels, few_steps):
    """One parameter after another: what is frozen stays, what is not moves, and latents do to the end."""
    fit, kept = tiny.fit(pixels(64, 64), 300, 1), []
    fit.run(40, lambda *_: kept.append((fit._networks.frozen.clone(), fit._networks.value.clone(), fit.latents[2].clone())))
    shares = [frozen.float().mean().item() for frozen, _, _ in kept]
    start, end = (math.ceil(40 * share) for share in fit_module.FREEZING)
    assert shares[start - 1] == 0 < shares[start + 1] < shares[-1]
    assert shares == sorted(shares)
    for (frozen, before, _), (_, after, _) in zip(kept, kept[1:end], strict=False):
        assert torch.equal(before[frozen], after[frozen])
        assert not torch.equal(before[~frozen], after[~frozen])
    assert not torch.equal(kept[-2][2], kept[-1][2])


def test_retouching_chooses_symbols_for_another_lambda(tiny, pixels, few_steps):
    fit, shares = tiny.fit(pixels(64, 64), 300, 1), []
    fit.run(30)
    networks = {name: value.clone() for name, value in fit.networks.items()}
    states = [fit.measure()]
    for lmbda in (fit.lmbda / 32, fit.lmbda * 32):
        fit.retouch(lmbda, shares.append)
        states.append(fit.measure())
        assert states[-1].cost(lmbda) < states[-2].cost(lmbda)
    assert states[1].psnr_db < states[2].psnr_db
    assert shares == 2 * [0.25, 0.5, 0.75, 1]
    assert all(torch.equal(networks[name], value) for name, value in fit.networks.items())
    assert fit.iteration == 30


def test_a_descent_weighs_errors_by_its_level(tiny, pixels):
    fit = tiny.fit(pixels(1, 1), 256, 1)
    assert fit.lmbda == pytest.approx(math.sqrt(tiny.config.lmbda_min * tiny.config.lmbda_max))
    tiny.move(fit, 512)
    assert fit.lmbda == pytest.approx(tiny.config.lmbda_max)


def test_a_descent_goes_on_at_another_level(tiny, pixels, few_steps):
    """Its networks then differ as much from the other base; its latents are scaled."""
    fit, seen = tiny.fit(pixels(64, 64), 400, 1), []

    def steered(iteration, bpp, psnr):
        if iteration == 20:
            seen.append((fit._networks.offsets(), [value.clone() for value in fit.latents], fit.measure()))
            tiny.move(fit, 300)
            seen.append((fit._networks.offsets(), [value.clone() for value in fit.latents], fit.measure()))

    fit.run(40, steered)
    (offsets, latents, before), (offsets_after, latents_after, after) = seen
    assert fit.level == 300
    assert all(torch.allclose(offsets[name], value, atol=1e-6) for name, value in offsets_after.items())
    gains = (tiny.base.gains(300) - tiny.base.gains(400)) / 256
    for old, new, gain in zip(latents, latents_after, gains, strict=True):
        assert torch.allclose(new, old * 2**gain)
    assert after.latents_bpp < before.latents_bpp
    end = fit.measure()
    assert end.cost(fit.lmbda) < after.cost(fit.lmbda)
    decoded = fit.quantise().added(tiny.config, tiny.base.at(300))
    for name, value in fit.networks.items():
        assert torch.allclose(value, decoded[name] / 2**16, atol=2**-16)


@pytest.fixture
def many_sets(monkeypatch):
    """Choose symbols behind short descents too: one set for each iteration of all windows."""
    monkeypatch.setattr(fit_module, "VISITS_PER_SET", 1)


def test_symbols_are_chosen_behind_a_descent(tiny, pixels, few_steps, many_sets):
    torch.manual_seed(1)
    fit, shares, last = tiny.fit(pixels(64, 64), 400, 1), [], []
    fit.run(30, lambda *_: last.append([value.clone() for value in fit.latents]), shares.append)
    assert shares == [0.25, 0.5, 0.75, 1]
    moved = [(new - old.round()).abs() for new, old in zip(fit.latents, last[-1], strict=True)]
    assert any((distance >= 1).any() for distance in moved[1:5])
    chosen = [value.clone() for value in fit.latents]
    fit.run(30, choosing=shares.append)
    assert all(torch.equal(a, b) for a, b in zip(fit.latents, chosen, strict=True))
    assert len(shares) == 4


def test_an_interrupted_choice_goes_on(tiny, pixels, few_steps, many_sets, tmp_path):
    x = pixels(64, 64)
    torch.manual_seed(1)
    straight = tiny.fit(x, 400, 1)
    straight.run(20)
    torch.manual_seed(1)
    fit = tiny.fit(x, 400, 1)

    def stop(share):
        if share == 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit.run(20, choosing=stop)
    fit.save(tmp_path / "state", FACTS)
    resumed, shares = tiny.fit(x, 400, 1), []
    resumed.resume(tmp_path / "state", FACTS)
    resumed.run(20, choosing=shares.append)
    assert shares == [0.75, 1]
    assert all(torch.equal(a, b) for a, b in zip(resumed.latents, straight.latents, strict=True))
    assert resumed.measure() == straight.measure()


def test_a_longer_descent_chooses_again(tiny, pixels, few_steps, many_sets):
    fit, shares = tiny.fit(pixels(64, 64), 300, 1), []
    fit.run(5, choosing=shares.append)
    fit.run(8, choosing=shares.append)
    assert shares == 2 * [0.25, 0.5, 0.75, 1]


def test_long_descents_are_worth_more_sets():
    assert [fit_module.sets_of(iterations, 6) for iterations in (50, 1000, 2304, 100_000)] == [0, 10, 24, 24]
    assert fit_module.sets_of(1000, 1) == 24


def test_a_resumed_descent_ends_as_one_that_was_not_interrupted(tiny, pixels, tmp_path, few_steps):
    """Interrupted before networks are quantised, while they are, and just before the end, given the random numbers' state."""
    x, path, iterations = pixels(300, 64), tmp_path / "state", 40
    torch.manual_seed(1)
    straight = tiny.fit(x, 300, 1)
    straight.run(iterations)
    torch.manual_seed(1)
    resumed = tiny.fit(x, 300, 1)
    for at in (5, 34, 39):
        interrupted(resumed, iterations, at).save(path, FACTS)
        random = torch.get_rng_state()
        resumed = tiny.fit(x, 300, 1)
        resumed.resume(path, FACTS)
        assert resumed.iteration == at
        assert bool(resumed._networks.frozen.any()) == (at > 5)
        torch.set_rng_state(random)
    resumed.run(iterations)
    assert resumed.iteration == iterations
    assert all(torch.equal(a, b) for a, b in zip(resumed.latents, straight.latents, strict=True))
    found, wanted = resumed.quantise(), straight.quantise()
    assert found.steps == wanted.steps
    assert all((a == b).all() for a, b in zip(found.symbols, wanted.symbols, strict=True))
    assert resumed.measure() == straight.measure()
