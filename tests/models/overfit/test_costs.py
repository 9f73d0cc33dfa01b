"""What windows cost: without seams between them, by position as in all."""

from __future__ import annotations

import math

import pytest
import torch

from models.overfit.configs import GRIDS
from models.overfit.networks import grid_bits, picture, with_ring
from models.overfit.windows import Area


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
    right = other._costs._cells[..., 33:]
    right += 0.5
    assert other.measure() == fit.measure()


@pytest.mark.parametrize("window", [Area(0, 128, 0, 192), Area(64, 128, 64, 192), Area(256, 320, 0, 64)])
@pytest.mark.parametrize("finest", [0, 1])
def test_costs_by_position_add_up_to_those_of_a_window(tiny, pixels, window, finest):
    """Windows that are whole blocks of no grid too."""
    fit = tiny.fit(pixels(320, 256), 300, finest)
    stir(fit)
    hat = [value.round() for value in fit._costs.cut(window, fit.latents)]
    bits, squares = fit._costs.total(fit.networks, fit.gains, window, hat)
    found = [fit._costs.bits_of(fit.networks, fit.gains, window, hat, grid) for grid in range(finest, GRIDS)]
    errors = fit._costs.errors_of(fit.networks, fit.gains, window, hat)
    h, w = window.bottom - window.top, window.right - window.left
    assert [tuple(plane.shape) for plane in found] == [(h >> grid, w >> grid) for grid in range(finest, GRIDS)]
    assert errors.shape == (h // 2, w // 2)
    assert sum(plane.sum().item() for plane in found) == pytest.approx(bits.item(), rel=1e-5)
    assert errors.sum().item() == pytest.approx(squares.item(), rel=1e-5)


def test_costs_are_those_of_their_position(tiny, pixels):
    """A symbol that changes costs other bits at its place and behind it, and other errors around it: nowhere else."""
    fit, whole_picture = tiny.fit(pixels(128, 128), 300, 0), Area(0, 128, 0, 128)
    stir(fit)
    before = [value.round()[None] for value in fit.latents]
    after = [value.clone() for value in before]
    after[1][0, 20, 33] += 3
    costs, changed = fit._costs, []
    for grid in range(4):
        planes = [costs.bits_of(fit.networks, fit.gains, whole_picture, hat, grid) for hat in (before, after)]
        changed.append(torch.nonzero(planes[0] != planes[1]))
    assert len(changed[2]) == len(changed[3]) == 0
    assert changed[1].min(0).values.tolist() == [20, 31]
    assert changed[1].max(0).values.tolist() == [22, 35]
    assert changed[0].min(0).values.tolist() == [38, 64]
    assert changed[0].max(0).values.tolist() == [43, 69]
    errors = [costs.errors_of(fit.networks, fit.gains, whole_picture, hat) for hat in (before, after)]
    where = torch.nonzero(errors[0] != errors[1])
    assert (where.min(0).values.tolist(), where.max(0).values.tolist()) == ([18, 31], [22, 35])
