"""The operations with gradients written by hand: the same values and gradients as chains of plain ones under autograd."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models.overfit.configs import BLOCK, PHASES, TAPS
from models.overfit.fused import FLOOR, KEEP, LOG2_SCALE, EntropyWeights, GridBits, Upsample, bits_by_position

WIDTH = 3
SIZES = [(1, 1), (2, 6), (5, 9), (64, 64), (66, 130), (128, 64), (70, 34), (63, 65)]
EVEN = [(h, w) for h, w in SIZES if h % 2 == w % 2 == 0]


def laplace_cdf(x: torch.Tensor) -> torch.Tensor:
    """Return the probability below x of a Laplace distribution of location 0 and scale 1."""
    tail = 0.5 * torch.exp(-x.abs())
    return torch.where(x < 0, tail, 1 - tail)


def chain(seen, rated, coarse, weight, gain, net: EntropyWeights) -> torch.Tensor:
    """Return what GridBits returns, block by block, by convolutions."""
    _, h, w = seen.shape
    kernel = torch.zeros(len(net.context), 1, 3, 5, dtype=seen.dtype)
    for tap, (dy, dx) in enumerate(TAPS):
        place = torch.zeros_like(kernel)
        place[:, :, dy + 2, dx + 2] = 1
        kernel = kernel + place * net.context[:, tap, None, None, None]
    from_coarse = torch.zeros(())
    if coarse is not None:
        from_coarse = F.pixel_shuffle(F.conv2d(coarse[:, None], net.coarse.reshape(-1, 1, 3, 3)), 2)
    total = torch.zeros((), dtype=seen.dtype)
    for top in range(0, h, BLOCK):
        for left in range(0, w, BLOCK):
            at = ..., slice(top, top + BLOCK), slice(left, left + BLOCK)
            a = F.conv2d(F.pad(seen[at][:, None], (2, 2, 2, 0)), kernel, net.bias_1)
            a = (a + (from_coarse[at] if coarse is not None else 0)).relu()
            a = F.conv2d(a, net.hidden[:, :, None, None], net.bias_2).relu()
            out = F.conv2d(a, net.out[:, :, None, None], net.bias_3)
            location, scale = out[:, 0] * 2**gain, 2 ** (out[:, 1] + gain).clamp(*LOG2_SCALE)
            distance = rated[at] - location
            p = laplace_cdf((distance + 0.5) / scale) - laplace_cdf((distance - 0.5) / scale)
            bits = -torch.log2(p * KEEP + FLOOR)
            total = total + (bits if weight is None else bits * weight[at]).sum()
    return total


def case(h: int, w: int, *, b: int = 1, coarse: bool = True, weight: bool = False, apart: bool = False, spread: float = 1.5):
    """Return the arguments of GridBits for random planes, those that can leaves with gradients."""
    rng = torch.Generator().manual_seed(h * 1000 + w)

    def leaf(*shape: int, deviation: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=rng, dtype=torch.float64) * deviation).requires_grad_()

    seen = leaf(b, h, w, deviation=2.0)
    rated = leaf(b, h, w, deviation=2.0) if apart else seen
    around = leaf(b, -(-h // 2) + 2, -(-w // 2) + 2) if coarse else None
    weights = torch.rand((b, h, w), generator=rng, dtype=torch.float64).round() * 0.7 if weight else None
    net = EntropyWeights(
        leaf(WIDTH, len(TAPS), deviation=0.3), leaf(PHASES * WIDTH, 9, deviation=0.3) if coarse else None,
        leaf(WIDTH), leaf(WIDTH, WIDTH), leaf(WIDTH), leaf(2, WIDTH, deviation=spread), leaf(2),
    )  # fmt: skip
    return seen, rated, around, weights, torch.tensor(0.8, dtype=torch.float64, requires_grad=True), net


def check(arguments, scale: float = 1.7) -> None:
    """Check value and all gradients of GridBits against those of the chain."""
    *planes, net = arguments
    leaves = [value for value in (*planes, *net) if value is not None and value.requires_grad]
    leaves = list({id(leaf): leaf for leaf in leaves}.values())
    want, got = chain(*arguments), GridBits.apply(*planes, *net)
    assert got.item() == pytest.approx(want.item(), rel=1e-9)
    wanted = torch.autograd.grad(want * scale, leaves)
    found = torch.autograd.grad(got * scale, leaves)
    for a, b in zip(wanted, found, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-8)
    if planes[0].numel() > 1:  # which has neighbours
        assert all(gradient.abs().max() > 0 for gradient in wanted)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_bits_without_a_coarser_grid_are_those_of_the_chain(h, w):
    check(case(h, w, coarse=False))


@pytest.mark.parametrize(("h", "w"), EVEN)
@pytest.mark.parametrize("apart", [False, True])
def test_bits_with_a_coarser_grid_are_those_of_the_chain(h, w, apart):
    check(case(h, w, apart=apart))


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("h", "w"), [(64, 64), (70, 130)])
def test_weighted_bits_of_two_pictures_are_those_of_the_chain(h, w, coarse, apart):
    check(case(h, w, b=2, coarse=coarse, weight=True, apart=apart))


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize(("h", "w"), EVEN)
def test_bits_by_position_are_those_of_symbols_that_weigh_alone(h, w, b, coarse):
    seen, rated, around, _, gain, net = case(h, w, b=b, coarse=coarse)
    with torch.no_grad():
        found = bits_by_position(seen, around, gain, net)
        assert found.shape == (b, h, w)
        for place in ((0, 0, 0), (b - 1, h - 1, w - 1), (b - 1, h // 2, w // 3)):
            alone = torch.zeros_like(seen)
            alone[place] = 1
            assert found[place].item() == pytest.approx(chain(seen, rated, around, alone, gain, net).item(), rel=1e-9)
        assert found.sum().item() == pytest.approx(GridBits.apply(seen, rated, around, None, gain, *net).item(), rel=1e-9)


def test_scales_out_of_range_are_clamped_and_get_no_gradient():
    arguments = case(20, 20, spread=12)
    scales = chain_scales(arguments)
    assert (scales < LOG2_SCALE[0]).any()
    assert (scales > LOG2_SCALE[1]).any()
    check(arguments)


def chain_scales(arguments) -> torch.Tensor:
    """Return log2 of the scales of the positions of planes of one block, not clamped."""
    seen, _, coarse, _, gain, net = arguments
    inputs = F.unfold(F.pad(seen[:, None], (2, 2, 2, 0)), (3, 5))[:, [5 * (dy + 2) + dx + 2 for dy, dx in TAPS]]
    cells = F.pixel_shuffle(F.conv2d(coarse[:, None], net.coarse.reshape(-1, 1, 3, 3)), 2).flatten(2)
    a = (net.context @ inputs + cells + net.bias_1[:, None]).relu()
    a = (net.hidden @ a + net.bias_2[:, None]).relu()
    return (net.out @ a + net.bias_3[:, None])[:, 1] + gain


def test_float32_is_near_float64():
    *planes, net = case(70, 66, weight=True)
    want = GridBits.apply(*planes, *net).item()
    narrow = [None if value is None else value.detach().float() for value in (planes[0], planes[0], *planes[2:], *net)]
    assert GridBits.apply(*narrow).item() == pytest.approx(want, rel=1e-5)


def test_without_gradients_the_value_is_the_same():
    *planes, net = case(34, 66)
    with torch.no_grad():
        quiet = GridBits.apply(*planes, *net)
    assert quiet.item() == GridBits.apply(*planes, *net).item()
    assert not quiet.requires_grad


@pytest.mark.parametrize("position", [(63, 63), (63, 64), (64, 63), (64, 64), (63, 10), (10, 63)])
def test_a_block_does_not_see_its_neighbours(position):
    """Bits of a block have no gradient for symbols of another one, though those are next to it."""
    seen, _, coarse, _, gain, net = case(128, 128)
    rated = seen.detach().clone()
    y, x = position
    weight = torch.zeros_like(rated)
    weight[:, y // BLOCK * BLOCK :, x // BLOCK * BLOCK :][:, :BLOCK, :BLOCK] = 1
    (gradient,) = torch.autograd.grad(GridBits.apply(seen, rated, coarse, weight, gain, *net), seen)
    assert gradient[weight == 1].abs().max() > 0
    assert gradient[weight == 0].abs().max() == 0


def test_a_position_sees_what_was_coded_before_it_and_nothing_else():
    seen, _, _, _, gain, net = case(20, 20, coarse=False)
    net = net._replace(bias_1=torch.full_like(net.bias_1, 5.0), bias_2=torch.full_like(net.bias_2, 9.0))
    weight = torch.zeros_like(seen)
    weight[0, 10, 10] = 1
    (gradient,) = torch.autograd.grad(GridBits.apply(seen, seen.detach().clone(), None, weight, gain, *net), seen)
    assert {(y - 10, x - 10) for _, y, x in gradient.nonzero().tolist()} == set(TAPS)


@pytest.mark.parametrize(("c", "h", "w"), [(1, 1, 1), (2, 1, 4), (3, 5, 2)])
def test_upsampling_has_the_gradients_of_finite_differences(c, h, w):
    generator = torch.Generator().manual_seed(h)
    x, kernels = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in ((c, h, w), (4, 9))
    )
    assert torch.autograd.gradcheck(Upsample.apply, (x, kernels))


def test_upsampling_is_four_convolutions_of_a_picture_with_repeated_edges():
    x, kernels = torch.randn(3, 6, 9), torch.randn(4, 9)
    want = F.conv2d(F.pad(x[:, None], (1, 1, 1, 1), mode="replicate"), kernels.reshape(4, 1, 3, 3))
    assert torch.allclose(Upsample.apply(x, kernels), F.pixel_shuffle(want, 2)[:, 0], atol=1e-5)


def test_a_flat_symbol_of_a_narrow_scale_costs_what_a_count_says():
    """All weights zero: location 0, the narrowest scale; a far symbol has the one count of 65536 that each has."""
    zero = [torch.zeros(shape) for shape in ((2, 12), (2,), (2, 2), (2,), (2, 2))]
    net = EntropyWeights(zero[0], None, *zero[1:], torch.tensor([0.0, -20.0]))
    plane = torch.zeros(1, 2, 2)
    none = GridBits.apply(plane, plane, None, None, torch.tensor(0.0), *net)
    assert none.item() == pytest.approx(-4 * math.log2((1 - math.exp(-(2**3.25))) * KEEP + FLOOR), rel=1e-3)
    far = GridBits.apply(plane, plane + 900, None, None, torch.tensor(0.0), *net)
    assert far.item() == pytest.approx(4 * 16)
