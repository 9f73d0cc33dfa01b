"""The networks of a descent: what is frozen is what a decoder makes of a file, and stays."""

from __future__ import annotations

import pytest
import torch

from models.overfit import moving
from models.overfit.configs import GRIDS
from models.overfit.moving import FIRST_STEP, MovingNetworks
from models.overfit.networks import Parameters
from models.overfit.weights import ABSENT, LIMIT, STEPS, best_shape


@pytest.fixture
def base(tiny) -> Parameters:
    """The parameters of the tiny checkpoint at a level."""
    return {name: (value.double() / 2**16).float() for name, value in tiny.base.at(300).items()}


@pytest.fixture
def networks(tiny, base) -> MovingNetworks:
    """Networks that have moved a little, without the finest grid."""
    made = MovingNetworks(tiny.config, base, 1)
    made.value.add_(0.03 * torch.randn_like(made.value))
    return made


def near(networks: MovingNetworks):
    """Return a cost: the squared distance from what the networks are now, and bits."""
    target = networks.value.clone()
    return lambda flat, bits: 1e4 * float((flat - target).square().sum()) + bits


def exact(networks: MovingNetworks, tiny) -> bool:
    """Return whether the parameters are, to the last bit, what a decoder makes of their differences."""
    added = networks.differences(networks.steps).added(tiny.config, tiny.base.at(300))
    return all(torch.equal(value.double() / 2**16, networks.named()[name].double()) for name, value in added.items())


def test_parameters_of_unused_grids_do_not_move(tiny, base):
    networks = MovingNetworks(tiny.config, base, GRIDS - 1)
    networks.value.add_(1.0)
    moved = {name for name, offset in networks.offsets().items() if offset.any()}
    assert moved == {name for name in base if not name.startswith("grid") or name.startswith(f"grid_{GRIDS - 1}")}


@pytest.mark.parametrize("deviation", [0.03, 3.0, 20.0])
@pytest.mark.parametrize("step", [STEPS[0], FIRST_STEP, STEPS[-1]])
def test_what_is_frozen_is_what_a_decoder_makes_of_the_file(tiny, base, monkeypatch, deviation, step):
    """Clamped too: differences to 1023 steps."""
    monkeypatch.setattr(moving, "STEPS", (step,))
    monkeypatch.setattr(moving, "FIRST_STEP", step)
    networks = MovingNetworks(tiny.config, base, 1)
    networks.value.add_(deviation * torch.randn_like(networks.value))
    networks.freeze(1.0, lambda flat, bits: -float(flat.abs().sum()))
    assert networks.still
    assert exact(networks, tiny)
    assert networks.value.abs().max() <= LIMIT / 2**16
    assert networks.bits() == pytest.approx(sum(best_shape(part)[1] for part in networks.differences(networks.steps).symbols))


def test_more_and_more_are_frozen_and_stay(networks, tiny):
    cost, last = near(networks), torch.zeros_like(networks.frozen)
    for share in (0.2, 0.5, 1.0, 1.5):
        before = networks.value.clone()
        networks.freeze(share, cost)
        frozen = networks.frozen
        assert frozen.float().mean().item() == pytest.approx(min(share, 1), abs=1e-3)
        assert frozen[last].all()
        assert torch.equal(networks.value[last], before[last])
        assert torch.equal(networks.value[~frozen], before[~frozen])
        last = frozen.clone()
        networks.move(torch.randn_like(networks.value), 1.0, 1)
    assert networks.still
    assert exact(networks, tiny)


def test_the_nearest_to_whole_steps_are_frozen_first(networks, monkeypatch):
    monkeypatch.setattr(MovingNetworks, "choose_steps", lambda self, cost: (ABSENT, *[FIRST_STEP] * 12))
    steps = (networks.value - networks._start) / 2.0 ** (FIRST_STEP - 16)
    distance = (steps - steps.round()).abs()
    networks.freeze(0.3, near(networks))
    assert distance[networks.frozen].max() <= distance[~networks.frozen].min() + 1e-4


def test_an_interrupt_of_a_step_leaves_what_is_frozen(networks, tiny, monkeypatch):
    networks.freeze(0.7, near(networks))
    before = networks.value.clone()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "where", interrupted)
        with pytest.raises(KeyboardInterrupt):
            networks.move(torch.randn_like(networks.value), 1.0, 1)
    assert torch.equal(networks.value, before)
    networks.freeze(1.0, near(networks))
    assert exact(networks, tiny)


def test_chosen_steps_cost_no_more_than_the_first_ones_or_none(networks):
    cost = near(networks)

    def cost_of(steps) -> float:
        differences = networks.differences(steps)
        return cost(networks._whole(differences), sum(best_shape(part)[1] for part in differences.symbols))

    best = cost_of(networks.choose_steps(cost))
    for step in (ABSENT, FIRST_STEP):
        assert best <= cost_of(tuple(ABSENT if number == 0 else step for number in range(13))) + 1e-9


def floats(parameters):
    return {name: (value.double() / 2**16).float() for name, value in parameters.items()}


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_networks_go_on_from_the_base_of_another_level(networks, tiny, share):
    """They differ from it as much as before; what they were is not touched."""
    if share:
        networks.freeze(share, near(networks))
    before, offsets = networks.value.clone(), networks.offsets()
    moved = networks.rebased(floats(tiny.base.at(40)))
    assert torch.equal(networks.value, before)
    assert not torch.equal(moved.value, before)
    for name, offset in moved.offsets().items():
        assert torch.allclose(offset, offsets[name], atol=1e-6)
    assert torch.equal(moved.frozen, networks.frozen)
    moved.move(torch.randn_like(before), 1.0, 1)
    assert not torch.equal(moved.value, networks.rebased(floats(tiny.base.at(40))).value)
    moved.freeze(1.0, near(moved))
    decoded = floats(moved.differences(moved.steps).added(tiny.config, tiny.base.at(40)))
    assert all(torch.allclose(value, decoded[name], atol=1e-6) for name, value in moved.named().items())


def test_differences_of_another_level_make_nearly_the_same_networks(networks, tiny):
    """To half a step, where a group has any."""
    networks.freeze(1.0, near(networks))
    steps = networks.steps
    found = networks.differences(steps).rebased(tiny.config, tiny.base.at(300), tiny.base.at(40))
    after = floats(found.added(tiny.config, tiny.base.at(40)))
    for names, step, symbols in zip(tiny.config.groups(), found.steps, found.symbols, strict=True):
        for name in names if step != ABSENT and symbols.any() else ():
            assert (after[name] - networks.named()[name]).abs().max() <= 2.0 ** (step - 16) / 2 + 1e-6
