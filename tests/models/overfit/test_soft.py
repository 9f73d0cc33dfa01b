"""Soft rounding and its noise, and how they harden."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.overfit.soft import annealed, kumaraswamy_noise, soft_round


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


def test_a_descent_ends_nearly_with_rounding_and_without_rates():
    y = torch.full((10_000,), 0.3)
    distances, falls = [], []
    for share in (0.0, 0.5, 1.0):
        rounding, fall = annealed(share)
        distances.append((rounding(y) - y.round()).abs().mean().item())
        falls.append(fall)
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.75 * distances[0]
    assert falls == pytest.approx([1, 0.5, 0])
