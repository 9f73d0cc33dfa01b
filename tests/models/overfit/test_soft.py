"""What a descent is made of: Adam for parts of tensors, soft rounding, noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.overfit.adam import Adam
from models.overfit.soft import kumaraswamy_noise, soft_round


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
