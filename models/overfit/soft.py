"""Soft rounding that a gradient passes through, and how it hardens in a descent (Kim 2023, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

TEMPERATURES = 0.3, 0.1  # of soft rounding, from the first iteration to the last
NOISES = 2.0, 3.0  # exponents of Kumaraswamy noise: 1 is uniform


def soft_round(y: Tensor, temperature: float) -> Tensor:
    """Return a smooth step between whole numbers; hard for a low temperature (Agustsson, Theis 2020, arXiv 2006.09952)."""
    floor = y.floor()
    return floor + 0.5 + torch.tanh((y - floor - 0.5) / temperature) * (0.5 / math.tanh(0.5 / temperature))


def kumaraswamy_noise(like: Tensor, a: float) -> Tensor:
    """Return noise in ±1/2 with its mode at 0, uniform for a = 1 (Kim 2023)."""
    b = (2**a * (a - 1) + 1) / a
    u = torch.rand_like(like).clamp_(1e-6, 1 - 1e-6)
    return (1 - (1 - u) ** (1 / b)) ** (1 / a) - 0.5


def soft_rounding(temperature: float, noise: float) -> Callable[[Tensor], Tensor]:
    """Return the rounding of an iteration, of its temperature and its exponent of the noise."""
    return lambda y: soft_round(soft_round(y, temperature) + kumaraswamy_noise(y, noise), temperature)


def annealed(share: float) -> tuple[Callable[[Tensor], Tensor], float]:
    """Return the rounding in this share of a descent, and the share of the learning rate: it falls to 0 with a cosine."""
    temperature, noise = (first + (last - first) * share for first, last in (TEMPERATURES, NOISES))
    return soft_rounding(temperature, noise), 0.5 * (1 + math.cos(math.pi * share))
