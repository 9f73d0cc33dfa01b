"""Residuals to symbols: half up, clamped, zero inside the dead zone; training rounds as coding does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitstream.tables import SCALE_MAX, SCALE_MIN, SYMBOL_MAX
from models.rounding import RDO_MAX, RDO_STRENGTH, choose_symbols, dead_zone, evened, ste_round, ste_symbols


def test_no_dead_zone_without_strength():
    assert (dead_zone(0.0) == 128).all()


def test_dead_zone_is_wider_for_smaller_scales_and_bounded():
    zone = dead_zone(0.5)
    assert zone.shape == (64,)
    assert (np.diff(zone) <= 0).all()
    assert zone[0] > 200
    assert 128 <= zone[-1] < 130
    assert dead_zone(50.0)[0] == RDO_MAX


def test_choose_symbols_rounds_half_up_and_clamps():
    residual = np.array([0, 127, 128, -128, -129, 383, 384, 2**31, -(2**40)])
    symbols = choose_symbols(residual, np.full(9, 63, dtype=np.uint8), 0.0)
    assert symbols.tolist() == [0, 0, 1, 0, -1, 1, 2, SYMBOL_MAX, -SYMBOL_MAX]
    assert symbols.dtype == np.int16


@pytest.mark.parametrize("row", [0, 10, 20])
def test_choose_symbols_zeroes_inside_the_dead_zone(row):
    edge = int(dead_zone(0.5)[row])
    symbols = choose_symbols(np.array([edge - 1, edge, 1 - edge, -edge]), np.full(4, row, dtype=np.uint8), 0.5)
    assert (symbols != 0).tolist() == [False, True, False, True]


def test_ste_round_rounds_forward_and_passes_gradients():
    x = torch.tensor([0.4, 0.6, -1.2], requires_grad=True)
    y = ste_round(x)
    assert y.tolist() == [0.0, 1.0, -1.0]
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("row", [0, 5, 20, 40, 63])
def test_training_rounds_as_coding_does(row):
    fixed = np.arange(-1500, 1500, 7)
    fixed = fixed[fixed % 256 != 128]  # ties round half up in coding, half to even in torch
    coded = choose_symbols(fixed, np.full(len(fixed), row, dtype=np.uint8), RDO_STRENGTH)
    scale = SCALE_MIN * (SCALE_MAX / SCALE_MIN) ** (row / 63)
    residual = torch.from_numpy(fixed).float() / 256
    trained = ste_symbols(residual, torch.full_like(residual, scale))
    np.testing.assert_array_equal(trained.numpy(), coded)


def test_ste_symbols_passes_gradients():
    residual = torch.tensor([0.4, 0.6, -5.2], requires_grad=True)
    ste_symbols(residual, torch.ones(3)).sum().backward()
    assert residual.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("strength", [0.0, RDO_STRENGTH, 0.8, 5.0])
@pytest.mark.parametrize("scale", [SCALE_MIN, 0.2, 0.3, 1.0, 20.0, SCALE_MAX])
def test_evened_residuals_are_rounded_to_the_same_symbols(scale, strength):
    edges = torch.from_numpy(dead_zone(strength)[dead_zone(strength) > 128]) / 256
    residual = torch.cat([torch.linspace(-4, 4, 5001), edges, -edges, edges - 1e-6, edges + 1e-6])
    scales = torch.full_like(residual, scale)
    even = evened(residual, scales, strength)
    assert torch.equal(even.round(), ste_symbols(residual, scales, strength).round())
    assert ((even - even.floor() - 0.5).abs() > 5e-4)[residual.abs() < 1].all()  # nor do they lie on the edge


@pytest.mark.parametrize("scale", [SCALE_MIN, 0.3, 1.0, 20.0])
def test_evened_residuals_keep_their_order_and_large_ones_stay(scale):
    residual = torch.linspace(-4, 4, 5001)
    even = evened(residual, torch.full_like(residual, scale), 0.8)
    assert (even.diff() >= 0).all()
    large = residual.abs() > RDO_MAX / 256
    assert torch.equal(even[large], residual[large])
    assert evened(torch.zeros(1), torch.ones(1)).item() == 0


def test_without_a_dead_zone_residuals_are_even_already():
    residual = torch.linspace(-4, 4, 5000)
    assert (evened(residual, torch.ones_like(residual), 0.0) - residual).abs().max() < 2e-3
