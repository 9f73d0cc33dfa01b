"""The choice of symbols behind a descent: each is moved by one where that saves more bits than it costs in distortion.

A descent follows gradients, and what it ends with is rounded: where another whole number is better it does not see. Here
single symbols are moved and what changes is counted: bits of their own grid and of the next finer one, errors of the
picture. The gradient says which to try. Those tried at once, a set, lie too far apart to change each other's costs by more
than a little; a set that costs more than it saves nevertheless is taken back.
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

REGION = 512  # pixels squared at a time
MARGIN = 64  # pixels around a region that are counted too: its symbols reach less than 48, windows are cut at multiples of 64
REACH = 3, 2, 2, 2, 2  # positions around a symbol that it reaches, of the grids whose symbols are chosen; of grid 0 up to 5
PROMISING = 2.0  # bits for a step of one, by the slope: less is not tried
PAYING = 0.02  # bits that a move must save
REFRESH = 4  # sets for which a slope serves


class Choice:
    """The choice of symbols of grids (H/2^i, W/2^i), of values not yet rounded: those that move, in place, become whole."""

    def __init__(self, costs: WindowCosts, parameters: Parameters, gains: Tensor, lmbda: float, grids: list[Tensor]) -> None:
        self._costs, self._parameters, self._gains, self._grids = costs, parameters, gains, grids
        self._weight = lmbda * 255**2 / 3  # bits that a squared error of 1 is worth
        height, width = grids[0].shape
        self._jobs = list(product(windows_of(height, width, REGION), range(costs.finest, len(REACH))))

    def run(self, sets: int, report: Callable[[int, float], None] = lambda *_: None, done: int = 0) -> None:
        """Try up to so many sets of symbols for each grid in each region, but for the first ``done`` of these jobs.

        ``report`` is called behind each, with the number of those done and their share.
        """
        for number, (region, grid) in enumerate(self._jobs, 1):
            if number > done and sets > 0:
                self._choose(region, grid, sets)
            if number > done:
                report(number, number / len(self._jobs))

    def _choose(self, region: Area, grid: int, sets: int) -> None:
        """Choose the symbols of a grid in a region, by a window around it that holds all they reach."""
        window = region.widened(MARGIN, *self._grids[0].shape)
        hat = [value.round_() for value in self._costs.cut(window, self._grids)]
        own = window.coarser(grid)
        values, symbols = self._grids[grid][own.whole], hat[grid][own.inside(self._costs.seen(window, grid))][0]  # views
        untried = torch.zeros_like(symbols, dtype=torch.bool)
        untried[region.coarser(grid).inside(own)] = True
        before = self._parts(window, hat, grid)
        for number in range(sets):
            if number % REFRESH == 0:
                slope = self._slope(window, hat, grid)
            tried = _peaks(slope.abs() * (untried & (slope.abs() > PROMISING)), 2 * REACH[grid])
            if not tried.any():
                return
            untried &= ~tried
            step = -slope.sign() * tried
            symbols += step
            after = self._parts(window, hat, grid)
            changes = torch.stack([_resampled(new - old, own) for new, old in zip(after, before, strict=True)]).sum(0)
            paying = tried & (_sum_within(changes, REACH[grid]) < -PAYING)
            symbols -= step * ~paying
            after = self._parts(window, hat, grid)
            if sum(float((new - old).sum()) for new, old in zip(after, before, strict=True)) > 0:
                symbols -= step * paying
            else:
                values[paying], before = symbols[paying], after

    def _parts(self, window: Area, hat: list[Tensor], grid: int) -> list[Tensor]:
        """Return all that symbols of a grid change, in bits: planes of a window, of different sizes."""
        bits = [self._costs.bits_of(self._parameters, self._gains, window, hat, other) for other in self._coded(grid)]
        return [*bits, self._costs.errors_of(self._parameters, self._gains, window, hat) * self._weight]

    def _coded(self, grid: int) -> list[int]:
        """Return the grids whose bits depend on symbols of a grid."""
        return [other for other in (grid - 1, grid) if other >= self._costs.finest]

    def _slope(self, window: Area, hat: list[Tensor], grid: int) -> Tensor:
        """Return the gradient of a window's bits and errors by its symbols of a grid (h, w)."""
        leaf = hat[grid].clone().requires_grad_()
        given = [leaf if other == grid else value for other, value in enumerate(hat)]
        costs, grids = self._costs, self._coded(grid)
        bits, squares = costs.total(self._parameters, self._gains, window, given, fast=True, grids=grids)
        (gradient,) = torch.autograd.grad(bits + self._weight * squares, leaf)
        return gradient[window.coarser(grid).inside(costs.seen(window, grid))][0]


def _peaks(score: Tensor, reach: int) -> Tensor:
    """Return where a score (h, w) above 0 is the highest within so many positions; of equal ones the first."""
    _, indices = F.max_pool2d(score[None], 2 * reach + 1, 1, reach, return_indices=True)
    places = torch.arange(score.numel(), device=score.device).view(score.shape)
    return (score > 0) & (indices[0] == places)


def _sum_within(changes: Tensor, reach: int) -> Tensor:
    """Return the sum of changes (h, w) within so many positions."""
    return F.avg_pool2d(changes[None], 2 * reach + 1, 1, reach, divisor_override=1)[0]


def _resampled(plane: Tensor, own: Area) -> Tensor:
    """Return a plane at the size of an area: what a position stands for added up, or spread evenly."""
    rows = own.bottom - own.top
    if (factor := plane.shape[0] // rows) > 1:
        return F.avg_pool2d(plane[None], factor, divisor_override=1)[0]
    if plane.shape[0] < rows:
        return plane.repeat_interleave(2, 0).repeat_interleave(2, 1) / 4
    return plane
