"""The networks in floating point: what they compute of whole grids, and what they start as."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_overfit import CONFIG, stirred_gains, stirred_parameters

from models.overfit.configs import GRIDS, OverfitConfig, levelled
from models.overfit.networks import (
    Analysis,
    entropy_weights,
    fresh_gains,
    fresh_parameters,
    grid_bits,
    joined,
    kmac_per_pixel,
    picture,
    upsampled,
    with_ring,
)


def parameters_at(level: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return random parameters of a whole level."""
    return {name: value[level] if levelled(name) else value for name, value in stirred_parameters(seed=seed).items()}


def random_grids(h: int, w: int, b: int = 1) -> list[torch.Tensor]:
    """Return seven grids (B, h / 2^i, w / 2^i) of whole numbers."""
    return [(torch.randn(b, h >> grid, w >> grid) * (2 + 2 * grid)).round() for grid in range(GRIDS)]


def test_fresh_synthesis_is_the_sum_of_the_upsampled_grids():
    fresh = fresh_parameters(OverfitConfig())
    parameters = {name: value[0] if levelled(name) else value for name, value in fresh.items()}
    gains, grids = fresh_gains(OverfitConfig())[3], random_grids(64, 128)
    want = torch.zeros(1, 1, 64, 128)
    for grid, plane in enumerate(grids):
        plane = plane[:, None] * 2.0 ** -gains[grid]
        for _ in range(grid - 1):
            plane = F.interpolate(plane, scale_factor=2.0, mode="bilinear")
        want = want + (plane if grid == 0 else F.interpolate(plane, scale_factor=2.0, mode="nearest"))
    assert torch.allclose(picture(parameters, gains, grids), 0.5 + 0.33 * want.expand(-1, 3, -1, -1), atol=2e-4)


def test_fresh_parameters_are_those_of_a_seed():
    one, two, other = fresh_parameters(CONFIG, 1), fresh_parameters(CONFIG, 1), fresh_parameters(CONFIG, 2)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["grid_0.hidden"], other["grid_0.hidden"])
    for name, shape in CONFIG.shapes().items():
        assert one[name].shape == ((CONFIG.levels,) * levelled(name) + shape)


def test_pictures_of_a_batch_do_not_see_each_other():
    parameters, gains, grids = parameters_at(1), stirred_gains()[1], random_grids(64, 64, b=2)
    both = picture(parameters, gains, grids)
    for number in range(2):
        alone = picture(parameters, gains, [grid[number : number + 1] for grid in grids])
        assert torch.allclose(both[number], alone[0], atol=1e-4)
    bits = [grid_bits(parameters, gains, 2, grids[2][i], grids[2][i], with_ring(grids[3][i])) for i in (slice(2), [0], [1])]
    assert bits[0].item() == pytest.approx(bits[1].item() + bits[2].item(), rel=1e-5)


def test_every_grid_reaches_the_picture():
    parameters, gains = parameters_at(2), stirred_gains()[2]
    grids = [grid.requires_grad_() for grid in random_grids(64, 64)]
    gradients = torch.autograd.grad(picture(parameters, gains, grids).square().sum(), grids)
    assert all(gradient.abs().min() > 0 for gradient in gradients)


def test_fast_synthesis_is_near_the_exact_one():
    parameters, gains, grids = parameters_at(1), stirred_gains()[1], random_grids(64, 64)
    exact, fast = picture(parameters, gains, grids), picture(parameters, gains, grids, fast=True)
    assert 0 < (exact - fast).abs().max() < 0.03 * exact.std()
    assert fast.dtype == torch.float32


def test_joined_planes_hold_the_finest_grid_first():
    parameters, gains, grids = parameters_at(0), stirred_gains()[0], random_grids(128, 64)
    planes = joined(parameters, gains, grids, 2)
    assert planes.shape == (1, 5, 32, 16)
    assert torch.allclose(planes[:, 0], grids[2] * 2.0 ** -gains[2])
    lowest = grids[6][:, None] * 2.0 ** -gains[6]
    for grid in (6, 5, 4, 3):
        lowest = upsampled(parameters, lowest, grid)
    assert torch.allclose(planes[:, 4:], lowest, atol=1e-5)


def test_gains_scale_what_the_entropy_networks_see():
    """Symbols doubled with their gain one octave up are the same values: location and scale double with them."""
    parameters, gains = parameters_at(1), stirred_gains()[1]
    one, other = (entropy_weights(parameters, gain, 3) for gain in (gains, gains + 1))
    assert torch.allclose(one.context, 2 * other.context)
    assert torch.allclose(one.coarse, 2 * other.coarse)
    assert entropy_weights(parameters, gains, GRIDS - 1).coarse is None


def test_analysis_gives_grids_of_all_sizes():
    torch.manual_seed(0)
    analysis = Analysis(8)
    x = torch.rand(2, 3, 128, 192)
    with torch.no_grad():
        found = analysis(x)
    assert [tuple(grid.shape) for grid in found] == [(2, 128 >> i, 192 >> i) for i in range(GRIDS)]


def test_a_fresh_analysis_is_a_pyramid_that_fresh_synthesis_undoes():
    """Of a smooth gray picture: the differences between the ways to upsample are small there."""
    y, x = torch.meshgrid(torch.arange(128) / 128, torch.arange(128) / 128, indexing="ij")
    gray = (0.5 + 0.3 * torch.sin(3 * x + 2 * y)).expand(1, 3, -1, -1)
    fresh = fresh_parameters(CONFIG)
    parameters = {name: value[0] if levelled(name) else value for name, value in fresh.items()}
    with torch.no_grad():
        found = picture(parameters, torch.zeros(GRIDS), Analysis(8)(gray))
    assert (found - gray).square().mean() < 1e-4


def test_multiply_accumulates_are_counted_by_hand():
    """Of the default: a grid's network has (21·W + W² + 2·W) of them for a position; 4^-i positions a pixel."""
    found = kmac_per_pixel(OverfitConfig(), finest=1)
    entropy = sum((21 * 16 + 256 + 32) / 4**grid for grid in range(1, 6)) + (12 * 16 + 256 + 32) / 4**6
    up = sum(9 * planes / 4 ** (grid - 1) for grid, planes in ((6, 1), (5, 2), (4, 3), (3, 4), (2, 5)))
    synthesis = (9 * 10 * 32 + 32 * 32 + 9 * 32 * 12 + 120) / 4
    assert found["entropy"] == pytest.approx(entropy / 1000, abs=6e-4)
    assert found["upsampling"] == pytest.approx(up / 1000, abs=6e-4)
    assert found["synthesis"] == pytest.approx(synthesis / 1000, abs=6e-4)
    assert found["decode"] == pytest.approx((entropy + up + synthesis) / 1000, abs=6e-4)
    assert kmac_per_pixel(OverfitConfig())["decode"] > found["decode"]
