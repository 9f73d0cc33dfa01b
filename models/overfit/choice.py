"""The choice of symbols behind a descent: each is moved by one where that saves more bits than it costs in distortion.

A descent follows gradients, and what it ends with is rounded: where another whole number is better it does not see. Here
single symbols are moved and what changes is counted, in all that they reach: bits of their own grid and of the next finer
one, errors of the picture. The gradient says which to try; those tried at once lie too far apart to reach each other.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from models.overfit.costs import WindowCosts
from models.overfit.networks import Parameters
from models.overfit.windows import Area, windows_of

COARSEST = 4  # grid: the symbols of coarser ones are few
REGION = 512  # pixels squared at a time
MARGIN = 64  # pixels around a region that its symbols reach
REACH = 3, 2, 2, 2, 2  # positions around one that it reaches, by grid: nearly all of what it changes
PROMISING = 2.0  # bits that the slope promises for a step of one: what is tried
PAYING = 0.02  # bits that a move must save
REFRESH = 4  # rounds for which a gradient serves


class Choice:
    """The choice of symbols of grids (H/2^i, W/2^i), of values not yet rounded: those that move, in place, become whole."""

    def __init__(self, costs: WindowCosts, parameters: Parameters, gains: Tensor, lmbda: float, grids: list[Tensor]) -> None:
        self._costs, self._parameters, self._gains, self._grids = costs, parameters, gains, grids
        self._weight = lmbda * 255**2 / 3  # bits that a squared error of 1 is worth

    def run(self, rounds: int, report: Callable[[float], None] = lambda _: None) -> None:
        """Try so many sets of symbols for each grid in each region; ``report`` is called with the share done."""
        height, width = self._grids[0].shape
        jobs = list(product(windows_of(height, width, REGION), range(self._costs.finest, COARSEST + 1)))
        for number, (region, grid) in enumerate(jobs, 1):
            self._choose(region, region.widened(MARGIN, height, width), grid, rounds)
            report(number / len(jobs))

    def _choose(self, region: Area, window: Area, grid: int, rounds: int) -> None:
        """Choose the symbols of a grid in a region, of a window around it that holds all they reach."""
        hat = [value.round_() for value in self._costs.cut(window, self._grids)]
        own = window.coarser(grid)
        held = own.inside(self._costs.seen(window, grid))
        open_ = torch.zeros_like(hat[grid][held][0], dtype=torch.bool)
        open_[region.coarser(grid).inside(own)] = True
        before = self._parts(window, hat, grid)
        for number in range(rounds):
            if number % REFRESH == 0:
                slope = self._slope(window, hat, grid)[held][0]
            score = slope.abs() * (open_ & (slope.abs() > PROMISING))
            tried = (score > 0) & (score == _most(score, 2 * REACH[grid]))
            if not tried.any():
                return
            open_ &= ~tried
            step = -slope.sign() * tried
            hat[grid][held] += step
            after = self._parts(window, hat, grid)
            change = torch.stack([_resampled(new - old, own) for new, old in zip(after, before, strict=True)]).sum(0)
            refused = tried & (_around(change, REACH[grid]) > -PAYING)
            hat[grid][held] -= step * refused
            moved = tried & ~refused
            self._grids[grid][own.whole][moved] = hat[grid][held][0][moved]
            before = self._parts(window, hat, grid)

    def _parts(self, window: Area, hat: list[Tensor], grid: int) -> list[Tensor]:
        """Return all that symbols of a grid change, in bits: planes of a window, of different sizes."""
        coded = [other for other in (grid - 1, grid) if other >= self._costs.finest]
        bits = [self._costs.bits_of(self._parameters, self._gains, window, hat, other) for other in coded]
        return [*bits, self._costs.errors_of(self._parameters, self._gains, window, hat) * self._weight]

    def _slope(self, window: Area, hat: list[Tensor], grid: int) -> Tensor:
        """Return the gradient of a window's bits and errors by what it sees of a grid (1, h, w)."""
        leaf = hat[grid].clone().requires_grad_()
        given = [leaf if other == grid else value for other, value in enumerate(hat)]
        bits, squares = self._costs.total(self._parameters, self._gains, window, given, fast=True)
        (gradient,) = torch.autograd.grad(bits + self._weight * squares, leaf)
        return gradient


def _most(score: Tensor, reach: int) -> Tensor:
    """Return the highest score (h, w) within so many positions."""
    return F.max_pool2d(score[None], 2 * reach + 1, 1, reach)[0]


def _around(change: Tensor, reach: int) -> Tensor:
    """Return the sum of changes (h, w) within so many positions."""
    side = 2 * reach + 1
    return F.avg_pool2d(change[None], side, 1, reach, divisor_override=1)[0]


def _resampled(plane: Tensor, own: Area) -> Tensor:
    """Return a plane at the size of an area: what a position stands for added up, or spread evenly."""
    rows = own.bottom - own.top
    if (octaves := plane.shape[0] // rows) > 1:
        return F.avg_pool2d(plane[None], octaves, divisor_override=1)[0]
    if plane.shape[0] < rows:
        return plane.repeat_interleave(2, 0).repeat_interleave(2, 1) / 4
    return plane
