"""Bits of symbols by their rows: those of the coder at whole symbols, a mixture between them, with a gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitstream.tables import SYMBOL_MAX, gaussian_master
from models.row_bits import bits_of_rows, row_bits


def test_bits_are_logarithms_of_the_share_of_the_mass():
    mass = np.diff(gaussian_master().cumulative, axis=1).astype(np.float64)
    expected = -np.log2(mass / mass.sum(1, keepdims=True))[:, SYMBOL_MAX:]
    np.testing.assert_allclose(bits_of_rows(gaussian_master()).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_whole_symbols_cost_what_their_row_says():
    bits = bits_of_rows(gaussian_master())
    sigma = 0.11 * (256 / 0.11) ** (torch.arange(64) / 63)
    for symbol in (-1023, -2, 0, 1, 40):
        got = row_bits(bits, torch.full((64,), float(symbol)), sigma)
        torch.testing.assert_close(got, bits[:, abs(symbol)], rtol=2e-2, atol=2e-3)  # the index is a little off in integers


def test_bits_between_symbols_are_a_mixture():
    bits = bits_of_rows(gaussian_master())
    scales = torch.full((3,), 2.0)
    low, middle, high = row_bits(bits, torch.tensor([-3.0, -3.25, -4.0]), scales)
    assert float(middle) == pytest.approx(0.75 * float(low) + 0.25 * float(high), rel=1e-5)


def test_bits_have_a_gradient_in_symbols_and_scales():
    bits = bits_of_rows(gaussian_master())
    symbols = torch.tensor([0.3, -2.6, 5.5, 2000.0], requires_grad=True)
    scales = torch.tensor([0.5, 0.5, 3.0, 1e-6], requires_grad=True)
    row_bits(bits, symbols, scales).sum().backward()
    assert symbols.grad[0] > 0
    assert symbols.grad[1] < 0
    assert scales.grad[1] < 0  # a wider row is better for what is far out
    assert torch.isfinite(symbols.grad).all()
    assert torch.isfinite(scales.grad).all()


@pytest.mark.parametrize("scale", [-1.0, 0.0, float("nan"), 1e-30])
def test_scales_that_are_none_are_the_least(scale):
    """Imported networks predict scales below zero, which the integers take as the first row."""
    bits = bits_of_rows(gaussian_master())
    symbols = torch.tensor([0.0, 1.0, 0.5], requires_grad=True)
    scales = torch.full((3,), scale, requires_grad=True)
    got = row_bits(bits, symbols, scales)
    torch.testing.assert_close(got[:2].detach(), bits[0, :2], rtol=1e-3, atol=1e-3)
    got.sum().backward()
    assert torch.isfinite(symbols.grad).all()
    assert torch.isfinite(scales.grad).all()
