"""What a window of a picture costs: bits of its latents, and the squared error of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.bf16 import fast_bf16
from models.overfit.configs import GRIDS, PHASES
from models.overfit.networks import Parameters, grid_bits, inputs_of, position_bits, synthesis, upsampled
from models.overfit.windows import Area

HALO = 2  # positions around a window that synthesis sees: of grid 1, and so of the coarser ones; twice as many of the finest


class WindowCosts:
    """Bits and errors of windows of one picture x (3, H, W) in [0, 1], sides multiples of 64; only ``size`` of it counts.

    Windows lie on multiples of 64 pixels. What is given of the grids are planes (1, h, w) of what a window sees of each
    (``seen``): ``cut`` cuts them. Grids finer than ``finest`` are zero, and cost nothing.
    """

    def __init__(self, x: Tensor, size: tuple[int, int], finest: int) -> None:
        h, w = x.shape[1:]
        self.finest, self._sizes = finest, [(h >> grid, w >> grid) for grid in range(GRIDS)]
        self._cells = F.pixel_unshuffle(x[None], 2).contiguous()
        inside = torch.zeros(1, 1, h, w, device=x.device)
        inside[..., : size[0], : size[1]] = 1
        self._inside = None if size == (h, w) else F.pixel_unshuffle(inside, 2)
        self._fast = x.device.type != "cpu" or fast_bf16()  # elsewhere bf16 is slower than float32

    def seen(self, window: Area, grid: int) -> Area:
        """Return what of a grid a window sees: the blocks it touches, for their bits, and what synthesis sees around it."""
        size = self._sizes[grid]
        return window.coarser(grid).whole_blocks(*size).widened(HALO if grid > 0 else 2 * HALO, *size)

    def cut(self, window: Area, grids: Sequence[Tensor]) -> list[Tensor]:
        """Return copies of what a window sees of the grids (H/2^i, W/2^i)."""
        return [value[self.seen(window, grid).whole].detach().clone()[None] for grid, value in enumerate(grids)]

    def total(
        self, parameters: Parameters, gains: Tensor, window: Area, hat: Sequence[Tensor], *, fast: bool = False,
        grids: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return bits and squared error of a window, added up; ``fast`` as in ``synthesis``, where that is fast.

        Bits are those of all grids from ``finest`` on, or of some.
        """
        bits = torch.zeros((), device=gains.device)
        for grid in range(self.finest, GRIDS) if grids is None else grids:
            own, blocks, symbols, coarse = self._coded(window, hat, grid)
            weight = None
            if blocks != own:
                weight = torch.zeros_like(symbols)
                weight[own.inside(blocks)] = 1
            bits = bits + grid_bits(parameters, gains, grid, symbols, symbols, coarse, weight)
        return bits, self._errors(parameters, gains, window, hat, fast=fast and self._fast).sum()

    @torch.no_grad()
    def bits_of(self, parameters: Parameters, gains: Tensor, window: Area, hat: Sequence[Tensor], grid: int) -> Tensor:
        """Return the bits of each position (h, w) of a grid in a window."""
        own, blocks, symbols, coarse = self._coded(window, hat, grid)
        return position_bits(parameters, gains, grid, symbols, coarse)[0][own.inside(blocks)]

    @torch.no_grad()
    def errors_of(self, parameters: Parameters, gains: Tensor, window: Area, hat: Sequence[Tensor]) -> Tensor:
        """Return the squared error of each cell of 2×2 pixels (h/2, w/2) of a window."""
        return self._errors(parameters, gains, window, hat, fast=False).sum(0)

    def _coded(self, window: Area, hat: Sequence[Tensor], grid: int) -> tuple[Area, Area, Tensor, Tensor | None]:
        """Return what of a grid is the window's own, the blocks it touches, their symbols, and the coarser grid around them."""
        own = window.coarser(grid)
        blocks = own.whole_blocks(*self._sizes[grid])
        symbols = hat[grid][blocks.inside(self.seen(window, grid))]
        return own, blocks, symbols, self._ringed(window, hat, grid + 1, blocks.coarser(1)) if grid < GRIDS - 1 else None

    def _ringed(self, window: Area, hat: Sequence[Tensor], grid: int, area: Area) -> Tensor:
        """Return an area of a grid with a ring of one position, of zeros outside of the picture."""
        wide = area.widened(1, *self._sizes[grid])
        missing = (area.left == wide.left, area.right == wide.right, area.top == wide.top, area.bottom == wide.bottom)
        return F.pad(hat[grid][wide.inside(self.seen(window, grid))], [int(side) for side in missing])

    def _errors(self, parameters: Parameters, gains: Tensor, window: Area, hat: Sequence[Tensor], *, fast: bool) -> Tensor:
        """Return the squared errors of a window's cells (12, h/2, w/2)."""
        planes, area = self._planes(parameters, gains, window, hat)
        finest = hat[0][area.finer().inside(self.seen(window, 0))]
        cells = synthesis(parameters, inputs_of(planes, finest, gains), fast=fast)
        own = window.coarser(1)
        difference = cells[0][own.inside(area)] - self._cells[0][own.whole]
        if self._inside is not None:
            difference = (difference.unflatten(0, (3, PHASES)) * self._inside[0][own.whole]).flatten(0, 1)
        return difference.square()

    def _planes(self, parameters: Parameters, gains: Tensor, window: Area, hat: Sequence[Tensor]) -> tuple[Tensor, Area]:
        """Return the grids from the coarsest to grid 1 as planes (1, 6, h, w) of its size, and what of it they hold."""
        planes, held = hat[0].new_zeros(1, 0, 0, 0), Area(0, 0, 0, 0)
        for grid in range(GRIDS - 1, 0, -1):
            area = window.coarser(grid).widened(HALO, *self._sizes[grid])
            own = hat[grid][area.inside(self.seen(window, grid))][:, None] * (-gains[grid]).exp2()
            if grid < GRIDS - 1:
                up = upsampled(parameters, planes, grid + 1)[area.inside(held.finer())]
                own = torch.cat([own, up], dim=1)
            planes, held = own, area
        return planes, held
