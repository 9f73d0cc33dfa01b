"""The descent for one picture: without seams between its windows, quantised at its end, resumed as if it had gone on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch

from bitstream.errors import UsageError, WriteError
from models.overfit import fit as fit_module
from models.overfit import moving
from models.overfit.adam import Adam
from models.overfit.configs import GRIDS
from models.overfit.networks import grid_bits, picture, with_ring
from models.overfit.soft import kumaraswamy_noise, soft_round
from models.overfit.state import _crc, stored_facts
from models.overfit.weights import ABSENT

FACTS = {"picture": "0badcafe", "level": "300"}


def stir(fit) -> None:
    """Add noise to latents and networks: else what is smooth hides a shift."""
    for grid in range(fit.finest, GRIDS):
        fit.latents[grid] += 2 * torch.randn_like(fit.latents[grid])
    fit._networks.value.add_(0.02 * torch.randn_like(fit._networks.value))


def whole(fit, x: torch.Tensor) -> tuple[float, float]:
    """Return bits per pixel of the latents and the PSNR of x (3, h, w) uint8, from whole grids."""
    h, w = x.shape[1:]
    grids = [value.round()[None] for value in fit.latents]
    bits = 0.0
    for grid in range(fit.finest, GRIDS):
        coarse = with_ring(grids[grid + 1]) if grid < GRIDS - 1 else None
        bits += grid_bits(fit.networks, fit.gains, grid, grids[grid], grids[grid], coarse).item()
    x_hat = picture(fit.networks, fit.gains, grids)[0, :, :h, :w]
    return bits / (h * w), -10 * math.log10((x_hat - x.float() / 255).square().mean().item())


def interrupted(fit, iterations: int, at: int):
    """Run a descent that ends at an iteration."""

    def stop(iteration, bpp, psnr):
        if iteration == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit.run(iterations, stop)
    return fit


@pytest.fixture
def few_steps(monkeypatch):
    """Choose for each group of parameters only between one step and none: the search takes most of a short descent."""
    monkeypatch.setattr(moving, "STEPS", (moving.FIRST_STEP,))


# --- windows


@pytest.mark.parametrize(("h", "w"), [(576, 320), (530, 270), (64, 100)])
@pytest.mark.parametrize("finest", [0, 1])
def test_windows_put_together_are_the_whole_picture(tiny, pixels, h, w, finest):
    """No seams, all halos right; what pads the picture to multiples of 64 does not count in its distortion."""
    x = pixels(h, w)
    fit = tiny.fit(x, 300, finest)
    stir(fit)
    assert len(fit.windows) == -(-h // 256) * -(-w // 256)
    state = fit.measure()
    bpp, psnr_db = whole(fit, x)
    assert state.latents_bpp == pytest.approx(bpp, rel=1e-5)
    assert state.psnr_db == pytest.approx(psnr_db, abs=1e-4)


def test_windows_may_be_small_where_a_picture_ends(tiny, pixels):
    x = pixels(300, 64)
    fit = tiny.fit(x, 200, 0)
    stir(fit)
    sizes = [(window.bottom - window.top, window.right - window.left) for window in fit.windows]
    assert sizes == [(256, 64), (64, 64)]
    assert fit.measure().latents_bpp == pytest.approx(whole(fit, x)[0], rel=1e-5)


def test_padding_does_not_count(tiny, pixels):
    """A picture of 65 columns has 63 that are repeated: another picture in them costs no distortion."""
    x = pixels(64, 65)
    fit, other = tiny.fit(x, 300, 1), tiny.fit(x, 300, 1)
    right = other._cells[..., 33:]
    right += 0.5
    assert other.measure() == fit.measure()


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


# --- the descent


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


def test_plain_rounding_moves_latents_by_little(tiny, pixels, few_steps, monkeypatch):
    """Gradients that pass straight through would carry values to where rounding flips."""
    monkeypatch.setattr(fit_module, "HARD_SHARE", 0.5)
    fit, before = tiny.fit(pixels(64, 64), 300, 1), []
    fit.run(80, lambda iteration, *_: before.extend(value.clone() for value in fit.latents) if iteration == 40 else None)
    moved = [(old - new).abs().max().item() for old, new in zip(before, fit.latents, strict=True)]
    assert all(fit_module.DRIFT / 4 < distance < 4 * fit_module.DRIFT for distance in moved[1:])


def test_extending_moves_latents_towards_another_lambda(tiny, pixels, few_steps):
    fit = tiny.fit(pixels(64, 64), 300, 1)
    fit.run(10)
    before, networks = fit.measure(), {name: value.clone() for name, value in fit.networks.items()}
    fit.lmbda *= 16
    fit.extend(25)
    assert all(torch.equal(networks[name], value) for name, value in fit.networks.items())
    assert fit.iteration == 35
    assert fit.measure().psnr_db > before.psnr_db


def test_a_lambda_of_ones_own_takes_the_place_of_the_levels(tiny, pixels):
    assert tiny.fit(pixels(1, 1), 300, 1, lmbda=0.125).lmbda == 0.125
    assert tiny.fit(pixels(1, 1), 256, 1).lmbda == pytest.approx(math.sqrt(tiny.config.lmbda_min * tiny.config.lmbda_max))


# --- parts


def test_adam_is_that_of_torch():
    value = torch.randn(4, 5)
    own, other = Adam(value.clone()), value.clone().requires_grad_()
    optimizer = torch.optim.Adam([other], lr=0.01)
    for count in range(1, 8):
        gradient = torch.randn(4, 5)
        own.step(gradient, 0.01, count)
        other.grad = gradient.clone()
        optimizer.step()
    assert torch.allclose(own.value, other, atol=1e-6)


def test_adam_leaves_what_is_not_its_part():
    adam, part = Adam(torch.zeros(4, 4)), (slice(1, 3), slice(0, 2))
    adam.step(torch.ones(2, 2), 0.1, 1, part)
    moved = torch.zeros(4, 4, dtype=torch.bool)
    moved[part] = True
    for tensor in (adam.value, adam.mean, adam.square):
        assert torch.equal(tensor != 0, moved)


def test_soft_rounding_keeps_whole_numbers_and_halves_and_hardens():
    y = torch.linspace(-3, 3, 1201, dtype=torch.float64)
    for temperature in (1.0, 0.3, 0.1):
        soft = soft_round(y, temperature)
        assert (soft.diff() > -1e-12).all()
        assert torch.allclose(soft[::200], y[::200])
        assert torch.allclose(soft[100::200], y[100::200])
    inside = (y - y.floor() - 0.5).abs() > 0.2
    assert (soft_round(y, 0.05) - y.round())[inside].abs().max() < 0.01
    assert torch.allclose(soft_round(y, 50.0), y, atol=1e-3)


@pytest.mark.parametrize("a", [1.0, 1.5, 2.0, 3.0])
def test_noise_is_within_a_half_with_its_mode_at_zero(a):
    noise = kumaraswamy_noise(torch.empty(40_000), a)
    assert noise.abs().max() <= 0.5
    counts = np.histogram(noise.numpy(), 5, (-0.5, 0.5))[0] / 8000
    if a == 1:
        assert counts == pytest.approx(np.ones(5), abs=0.06)
    else:
        assert counts.argmax() == 2
        assert counts[2] > 1.2 * max(counts[0], counts[4])


# --- saved and resumed


def test_a_resumed_descent_ends_as_one_that_was_not_interrupted(tiny, pixels, tmp_path, few_steps):
    """Interrupted before networks are quantised, while they are, and in plain rounding, given the random numbers' state."""
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


@pytest.fixture(scope="module")
def state(tiny, tmp_path_factory) -> bytes:
    """A state of quantised networks."""
    with torch.random.fork_rng(devices=[]), mock.patch.object(moving, "STEPS", (9,)):
        torch.manual_seed(12)
        fit = tiny.fit(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), 300, 1)
        fit.run(8)
    path = tmp_path_factory.mktemp("state") / "state"
    fit.save(path, FACTS)
    return path.read_bytes()


@pytest.fixture
def saved(state, tmp_path):
    """The path of a state of quantised networks."""
    path = tmp_path / "state"
    path.write_bytes(state)
    return path


@pytest.fixture
def fresh(tiny):
    """A descent of the same picture at its start."""
    torch.manual_seed(12)
    return tiny.fit(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), 300, 1)


def rewritten(path, change) -> None:
    """Change header and tensors of a state."""
    header, tensors = stored_facts(path), safetensors.torch.load_file(path)
    change(header, tensors)
    header["crc"] = _crc(tensors)
    safetensors.torch.save_file(tensors, path, {"fit": json.dumps(header)})


def test_a_state_holds_its_facts(saved):
    facts = stored_facts(saved)
    assert {name: facts[name] for name in FACTS} == FACTS
    assert facts["iteration"] == 8
    assert [path.name for path in saved.parent.iterdir()] == ["state"]


def test_a_state_of_a_finished_descent_is_measured_alike(saved, fresh):
    fresh.resume(saved, FACTS)
    assert fresh.iteration == 8
    before = fresh.measure()
    fresh.run(8)
    assert fresh.measure() == before


@pytest.mark.parametrize("name", FACTS)
def test_refuses_a_state_of_other_facts(saved, fresh, name):
    with pytest.raises(UsageError, match=f"state of a fit with {name} {FACTS[name]}, here it is other: give the same"):
        fresh.resume(saved, FACTS | {name: "other"})
    with pytest.raises(UsageError, match="state of a fit with model None, here it is this"):
        fresh.resume(saved, FACTS | {"model": "this"})
    assert fresh.iteration == 0


DAMAGE = {
    "no latents": lambda header, tensors: tensors.pop("latents.3/value"),
    "no order": lambda header, tensors: tensors.pop("order"),
    "nothing frozen": lambda header, tensors: tensors.pop("networks/frozen"),
    "no iteration": lambda header, tensors: header.pop("iteration"),
    "no steps": lambda header, tensors: tensors.pop("networks/steps"),
    "another size": lambda header, tensors: tensors.update({"latents.2/mean": torch.zeros(4, 4)}),
    "one value for all": lambda header, tensors: tensors.update({"latents.2/mean": torch.zeros(1, 1)}),
    "too many networks": lambda header, tensors: tensors.update({"networks/value": torch.zeros(9999)}),
    "few frozen": lambda header, tensors: tensors.update({"networks/frozen": torch.zeros(3, dtype=torch.bool)}),
    "one frozen for all": lambda header, tensors: tensors.update({"networks/frozen": torch.ones(1, dtype=torch.bool)}),
    "frozen without steps": lambda header, tensors: tensors.update({"networks/steps": torch.zeros(0, dtype=torch.int32)}),
    "a window that is not": lambda header, tensors: tensors.update({"order": torch.tensor([0, 7])}),
    "iteration a word": lambda header, tensors: header.update(iteration="many"),
    "iteration below zero": lambda header, tensors: header.update(iteration=-1),
    "iteration a list": lambda header, tensors: header.update(iteration=[1]),
    "few steps": lambda header, tensors: tensors.update({"networks/steps": torch.tensor([9, 9])}),
    "a step that is not": lambda header, tensors: tensors.update({"networks/steps": torch.tensor([77] * 13)}),
    "steps that are broken": lambda header, tensors: tensors.update({"networks/steps": torch.full((13,), 9.5)}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_refuses_a_damaged_state(saved, fresh, damage):
    rewritten(saved, DAMAGE[damage])
    with pytest.raises(UsageError, match="is not the state of this fit .*: leave --resume away"):
        fresh.resume(saved, FACTS)


@pytest.mark.parametrize("data", [b"", b"no state", bytes(100), b"\xff" * 100])
def test_refuses_what_is_no_state(saved, fresh, data):
    saved.write_bytes(data)
    with pytest.raises(UsageError, match="is not the state of a fit .*leave --resume away"):
        fresh.resume(saved, FACTS)


def test_refuses_a_state_that_is_cut_off_or_of_something_else(saved, fresh, tmp_path):
    saved.write_bytes(saved.read_bytes()[:-10])
    with pytest.raises(UsageError, match="is not the state of a fit"):
        fresh.resume(saved, FACTS)
    for metadata in ({"fit": "[1]"}, {"fit": "no json"}, {"other": "{}"}):
        safetensors.torch.save_file({"x": torch.zeros(1)}, saved, metadata)
        with pytest.raises(UsageError, match="is not the state of a fit"):
            fresh.resume(saved, FACTS)
    with pytest.raises(UsageError, match="is not the state of a fit"):
        fresh.resume(tmp_path / "none", FACTS)


def test_a_state_that_cannot_be_written_is_one_error(saved, fresh):
    with pytest.raises(WriteError, match="cannot be written"):
        fresh.save(saved / "state", FACTS)
    folder = saved.parent / "folder"
    folder.mkdir()
    with pytest.raises(WriteError, match="cannot be written"):
        fresh.save(folder, FACTS)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["folder", "state"]


def test_a_state_is_replaced_at_once_or_not_at_all(saved, fresh, monkeypatch):
    before = saved.read_bytes()

    def full(path, data):
        path.open("wb").write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match=r"cannot be written .No space left on device."):
        fresh.save(saved, FACTS)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["state"]
