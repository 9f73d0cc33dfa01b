"""The descent for one picture: latents and networks against λ·255²·MSE + bits (Kim 2023, section 3.2).

First with soft rounding that grows harder and noise that gets less; then, for a short time and in small steps, with plain
rounding whose gradient passes straight through. The networks are quantised on the way, one parameter after another.

Each iteration sees a window of 256×256 pixels of the picture; windows take turns. Only the values of the window's own latents
move, but what is around them is seen: there are no seams.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bitstream.errors import UsageError
from models.bf16 import fast_bf16
from models.overfit.adam import Adam
from models.overfit.configs import GRIDS, OverfitConfig
from models.overfit.moving import MovingNetworks
from models.overfit.networks import Parameters, grid_bits, inputs_of, synthesis, upsampled
from models.overfit.soft import soft_rounding, ste
from models.overfit.state import State, read_state, write_state
from models.overfit.weights import Differences
from models.overfit.windows import Area, windows_of

HALO = 2  # positions around a window that synthesis sees: of grid 1, and so of the coarser ones; twice as many of the finest
LEARNING_RATE = 8e-2  # of latents
FREEZING = 0.75, 0.98  # of the iterations: between these, one parameter of the networks after another is frozen
NETWORKS_END = 0.1  # of their learning rate: where it has fallen to
TEMPERATURES = 0.3, 0.1  # of soft rounding, from the first iteration to the last
NOISES = 2.0, 3.0  # exponents of Kumaraswamy noise: 1 is uniform
HARD_SHARE = 0.05  # of the iterations: with plain rounding
# Gradients that pass straight through carry values to where rounding flips: a tenth of a step of that cost 2 % more
DRIFT = 0.03  # how far a latent may go there
HARD_RATE = 0.1  # of the learning rate: the most that it has there
EXTENSION = 0.25  # of a descent: its last part, done again where λ was changed a little

Report = Callable[[int, float, float], None]


def _nothing(*_: float) -> None: ...


class Fit:
    """Latents and networks of one picture x (3, H, W) in [0, 1], sides multiples of 64; only h × w of it count.

    ``base`` and ``gains`` (7,) are those of a level, in floating point; ``latents`` the grids (H/2^i, W/2^i) to start from,
    multiplied by the gains. Grids finer than ``finest`` stay zero.
    """

    def __init__(
        self, config: OverfitConfig, x: Tensor, size: tuple[int, int], base: Parameters, gains: Tensor, latents: list[Tensor],
        lmbda: float, finest: int,
    ) -> None:  # fmt: skip
        self.config, self.lmbda, self.finest, self.gains = config, lmbda, finest, gains
        h, w = x.shape[1:]
        self.pixels = size[0] * size[1]
        self._cells = F.pixel_unshuffle(x[None], 2).contiguous()
        inside = torch.zeros(1, h, w, device=x.device)
        inside[:, : size[0], : size[1]] = 1
        self._inside = None if size == (h, w) else F.pixel_unshuffle(inside[None].expand(-1, 3, -1, -1), 2).contiguous()
        for grid in range(finest):
            latents[grid].zero_()
        self._latents = [Adam(value) for value in latents]
        self._networks = MovingNetworks(config, base, finest)
        self.windows = windows_of(h, w)
        self._fast = x.device.type != "cpu" or fast_bf16()  # elsewhere bf16 is slower than float32
        self.iteration = 0
        self._order: list[int] = []

    @property
    def latents(self) -> list[Tensor]:
        """Return the grids, not rounded."""
        return [adam.value for adam in self._latents]

    @property
    def networks(self) -> Parameters:
        """Return the parameters as they are now: views, which move."""
        return self._networks.named()

    def offsets(self) -> Parameters:
        """Return what was added to the base."""
        return self._networks.offsets()

    def run(self, iterations: int, report: Report = _nothing) -> None:
        """Descend to this number of iterations, from where it stands; ``report`` is called with each, its bpp and its PSNR.

        In the last part of them the networks become what a file holds: steps are chosen, and parameters frozen at a whole
        number of them, the nearest ones first; the rest makes up for it (Zhou 2017, arXiv 1702.03044).
        """
        while self.iteration < iterations:
            self._freeze(self.iteration / iterations)
            self._turn(self.iteration, iterations, report)
        self._freeze(1.0)

    def descend(self, iterations: int, report: Report = _nothing) -> None:
        """Descend to this number of iterations as ``run`` does, without quantised networks: to see how far it comes."""
        while self.iteration < iterations:
            self._turn(self.iteration, iterations, report)

    def extend(self, iterations: int, report: Report = _nothing) -> None:
        """Descend with the latents alone, as in the last part of a descent: for a λ that was changed a little."""
        self.quantise()
        whole = round(iterations / EXTENSION)
        for done in range(whole - iterations, whole):
            self._turn(done, whole, report)

    def quantise(self) -> Differences:
        """Quantise what is not yet quantised of the networks; return their differences from the base."""
        self._freeze(1.0)
        assert self._networks.steps is not None
        return self._networks.differences(self._networks.steps)

    def _freeze(self, share: float) -> None:
        """Quantise as many parameters as are to be when this share of a descent is over."""
        first, last = FREEZING
        if share >= first and not self._networks.still:
            self._networks.freeze(
                (share - first) / (last - first), lambda flat, bits: self._measure(flat, bits).cost(self.lmbda)
            )

    def move(self, base: Parameters, gains: Tensor, latents: list[Tensor], lmbda: float) -> None:
        """Take base, gains, latents and λ of another level; the differences of the networks, now quantised, stay."""
        self.quantise()
        self.gains, self.lmbda = gains, lmbda
        self._networks.rebase(base)
        for adam, value in zip(self._latents, latents, strict=True):
            adam.value.copy_(value)

    def _turn(self, done: int, of: int, report: Report) -> None:
        """Descend once, in the window whose turn it is, as it is done after so many iterations of a descent."""
        if not self._order:
            self._order = torch.randperm(len(self.windows)).tolist()
        window = self.windows[self._order.pop()]
        hard = of * HARD_SHARE
        share = min(done / (of - hard), 1)  # of soft rounding
        fall = 0.5 * (1 + math.cos(math.pi * share))
        temperature, noise = (first + (last - first) * share for first, last in (TEMPERATURES, NOISES))
        quantise, rate = soft_rounding(temperature, noise), LEARNING_RATE * fall
        if share == 1:
            quantise, rate = ste, min(HARD_RATE * LEARNING_RATE, 2 * DRIFT * len(self.windows) / hard) * (of - done) / hard
        bits, error = self._step(window, quantise, rate, NETWORKS_END + (1 - NETWORKS_END) * fall)
        self.iteration += 1
        report(self.iteration, bits / window.size, -10 * math.log10(max(error, 1e-12)))

    def _step(
        self, window: Area, quantise: Callable[[Tensor], Tensor], latents_rate: float, networks_rate: float
    ) -> tuple[float, float]:
        """Descend once in a window, at a rate of latents and a share of that of networks; return bits and mean square error."""
        flat = self._networks.value.clone().requires_grad_(not self._networks.still)
        leaves = self._cut(window)
        for grid in range(self.finest, GRIDS):
            leaves[grid].requires_grad_()
        hat = [quantise(leaf) if grid >= self.finest else leaf for grid, leaf in enumerate(leaves)]
        bits, squares = self._evaluate(self._networks.named(flat), window, hat)
        share = self.pixels / len(self.windows)  # of the picture: all windows together weigh as the networks' bits do
        loss = bits / share + self.lmbda * 255**2 * squares / (3 * share)
        if flat.requires_grad:
            loss = loss + self._networks.rate(flat) / self.pixels
        (loss / math.sqrt(self.lmbda)).backward()
        if flat.grad is not None:
            self._networks.move(flat.grad, networks_rate, self.iteration + 1)
        visits = self.iteration // len(self.windows) + 1
        for grid in range(self.finest, GRIDS):
            gradient = leaves[grid].grad
            assert gradient is not None
            own = window.coarser(grid)
            self._latents[grid].step(gradient[0][own.inside(self._seen(window, grid))], latents_rate, visits, own.whole)
        return float(bits.detach()), float(squares.detach()) / (3 * window.size)

    def _seen(self, window: Area, grid: int) -> Area:
        """Return what of a grid a window sees: the blocks it touches, for their bits, and what synthesis sees around it."""
        size = self.latents[grid].shape
        return window.coarser(grid).whole_blocks(*size).widened(HALO if grid > 0 else 2 * HALO, *size)

    def _cut(self, window: Area) -> list[Tensor]:
        """Return what of the grids a window sees."""
        return [value[self._seen(window, grid).whole].detach().clone()[None] for grid, value in enumerate(self.latents)]

    def _evaluate(self, parameters: Parameters, window: Area, hat: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return bits and squared error of a window, of what it sees of the grids."""
        bits = torch.zeros(())
        for grid in range(self.finest, GRIDS):
            own = window.coarser(grid)
            blocks = own.whole_blocks(*self.latents[grid].shape)
            symbols = hat[grid][blocks.inside(self._seen(window, grid))]
            weight = None
            if blocks != own:
                weight = torch.zeros_like(symbols)
                weight[own.inside(blocks)] = 1
            coarse = self._ringed(window, hat, grid + 1, blocks.coarser(1)) if grid < GRIDS - 1 else None
            bits = bits + grid_bits(parameters, self.gains, grid, symbols, symbols, coarse, weight)
        planes, area = self._planes(parameters, window, hat)
        finest = hat[0][area.finer().inside(self._seen(window, 0))]
        fast = self._fast and torch.is_grad_enabled()
        cells = synthesis(parameters, inputs_of(planes, finest, self.gains), fast=fast)
        own = window.coarser(1)
        difference = cells[0][own.inside(area)] - self._cells[0][own.whole]
        if self._inside is not None:
            difference = difference * self._inside[0][own.whole]
        return bits, difference.square().sum()

    def _planes(self, parameters: Parameters, window: Area, hat: list[Tensor]) -> tuple[Tensor, Area]:
        """Return the grids from the coarsest to grid 1 as planes (1, 6, h, w) of its size, and what of it they hold."""
        planes, held = hat[0].new_zeros(1, 0, 0, 0), Area(0, 0, 0, 0)
        for grid in range(GRIDS - 1, 0, -1):
            area = window.coarser(grid).widened(HALO, *self.latents[grid].shape)
            own = hat[grid][area.inside(self._seen(window, grid))][:, None] * (-self.gains[grid]).exp2()
            if grid < GRIDS - 1:
                up = upsampled(parameters, planes, grid + 1)[area.inside(held.finer())]
                own = torch.cat([own, up], dim=1)
            planes, held = own, area
        return planes, held

    def _ringed(self, window: Area, hat: list[Tensor], grid: int, area: Area) -> Tensor:
        """Return an area of a grid with a ring of one position, of zeros outside of the picture."""
        wide = area.widened(1, *self.latents[grid].shape)
        missing = (area.left == wide.left, area.right == wide.right, area.top == wide.top, area.bottom == wide.bottom)
        return F.pad(hat[grid][wide.inside(self._seen(window, grid))], [int(side) for side in missing])

    def measure(self) -> State:
        """Return what the rounded latents and the networks cost and give; the PSNR is that of pixels before rounding."""
        return self._measure(self._networks.value, self._networks.bits())

    @torch.no_grad()
    def _measure(self, flat: Tensor, bits_of_networks: float) -> State:
        bits, squares, parameters = 0.0, 0.0, self._networks.named(flat)
        for window in self.windows:
            found = self._evaluate(parameters, window, [leaf.round_() for leaf in self._cut(window)])
            bits, squares = bits + float(found[0]), squares + float(found[1])
        psnr_db = -10 * math.log10(max(squares / (3 * self.pixels), 1e-12))
        return State(bits / self.pixels, bits_of_networks / self.pixels, psnr_db)

    def _state(self) -> dict[str, Adam | MovingNetworks]:
        return {"networks": self._networks, **{f"latents.{grid}": adam for grid, adam in enumerate(self._latents)}}

    def save(self, path: Path, facts: dict[str, str]) -> None:
        """Write all that ``resume`` needs, so that a kill at any moment leaves the file from before or the new one."""
        tensors = {f"{name}/{key}": value for name, part in self._state().items() for key, value in part.state().items()}
        tensors["order"] = torch.tensor(self._order, dtype=torch.int32)
        write_state(path, tensors, {**facts, "iteration": self.iteration})

    def resume(self, path: Path, facts: dict[str, str]) -> None:
        """Go on from what ``save`` wrote. Raises UsageError if that is another picture's, or of other options."""
        header, tensors = read_state(path, facts)
        try:
            for name, part in self._state().items():
                prefix = f"{name}/"
                part.restore({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})
            self.iteration, self._order = int(header["iteration"]), tensors["order"].tolist()
            if self.iteration < 0 or not set(self._order) <= set(range(len(self.windows))):
                raise ValueError(f"iteration {self.iteration}, windows {self._order}")
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"{path} is not the state of this fit ({error}): leave --resume away") from error
