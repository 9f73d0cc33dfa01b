"""The descent for one picture: latents and networks against λ·255²·MSE + bits (Kim 2023, section 3.2).

With soft rounding that grows harder and noise that gets less; the networks are quantised on the way, one parameter after
another. Then symbols are chosen one by one (``models.overfit.choice``), where C3 descends with plain rounding.

Each iteration sees a window of 256×256 pixels of the picture; windows take turns. Only the values of the window's own latents
move, but what is around them is seen: there are no seams.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bitstream.errors import UsageError
from models.overfit.adam import Adam
from models.overfit.choice import Choice
from models.overfit.configs import GRIDS, OverfitConfig
from models.overfit.costs import WindowCosts
from models.overfit.moving import MovingNetworks
from models.overfit.networks import Parameters
from models.overfit.soft import annealed
from models.overfit.state import State, read_state, write_state
from models.overfit.weights import Differences
from models.overfit.windows import Area, windows_of

LEARNING_RATE = 8e-2  # of latents
FREEZING = 0.75, 0.98  # of the iterations: between these, one parameter of the networks after another is frozen
# Of the rate of networks in the loss, up to level 3, and from level 4: above 1, so that parameters which only the noise of
# windows moves stay at the base. Less is better by Lagrangian, but networks shall stay below 6 % of a file of 0.3 bpp.
NETWORKS_WEIGHT = 4.5, 3.0
NETWORKS_END = 0.1  # of their learning rate: where it has fallen to
SETS = 24  # of symbols of a grid that are tried behind a descent, at most
VISITS_PER_SET = 16  # iterations of each window that a set is worth
RETOUCHING_SETS = 12  # of a choice with another λ

Report = Callable[[int, float, float], None]


def _nothing(*_: float) -> None: ...


def sets_of(iterations: int, windows: int) -> int:
    """Return how many sets of symbols of a grid are tried behind a descent."""
    return min(SETS, iterations // (VISITS_PER_SET * windows))


class Fit:
    """Latents and networks of one picture x (3, H, W) in [0, 1], sides multiples of 64; only h × w of it count.

    ``base`` and ``gains`` (7,) are those of ``level``, in 1/256, in floating point; ``latents`` the grids (H/2^i, W/2^i) to
    start from, multiplied by the gains. Grids finer than ``finest`` stay zero.
    """

    def __init__(
        self, config: OverfitConfig, x: Tensor, size: tuple[int, int], level: int, base: Parameters, gains: Tensor,
        latents: list[Tensor], finest: int,
    ) -> None:  # fmt: skip
        self.config, self.level, self.finest, self.gains = config, level, finest, gains
        h, w = x.shape[1:]
        self.size, self.pixels = size, size[0] * size[1]
        self._costs = WindowCosts(x, size, finest)
        for grid in range(finest):
            latents[grid].zero_()
        self._latents = [Adam(value) for value in latents]
        self._networks = MovingNetworks(config, base, finest)
        self.windows = windows_of(h, w)
        self.iteration = 0
        self._jobs_done = 0  # of the choice of symbols
        self._order: list[int] = []

    @property
    def lmbda(self) -> float:
        """Return λ of the level."""
        return self.config.lmbda_of(self.level)

    @property
    def _networks_weight(self) -> float:
        low, high = NETWORKS_WEIGHT
        return low + (high - low) * min(max(self.level / 256 - 3, 0.0), 1.0)

    @property
    def latents(self) -> list[Tensor]:
        """Return the grids, not rounded."""
        return [adam.value for adam in self._latents]

    @property
    def networks(self) -> Parameters:
        """Return the parameters as they are now: views, which move."""
        return self._networks.named()

    def run(self, iterations: int, report: Report = _nothing, choosing: Callable[[float], None] = _nothing) -> None:
        """Descend to this number of iterations, from where it stands; ``report`` is called with each, its bpp and its PSNR.

        In the last part of them the networks become what a file holds: steps are chosen, and parameters frozen at a whole
        number of them, the nearest ones first; the rest makes up for it (Zhou 2017, arXiv 1702.03044). At their end symbols are
        chosen: ``choosing`` is called with the share of that which is done.
        """
        while self.iteration < iterations:
            self._jobs_done = 0
            self._freeze(self.iteration / iterations)
            self._turn(self.iteration, iterations, report)
        self._freeze(1.0)
        self._choose(iterations, choosing)

    def descend(self, iterations: int, report: Report = _nothing) -> None:
        """Descend to this number of iterations as ``run`` does, but quantise and choose nothing: to see how far it comes."""
        while self.iteration < iterations:
            self._turn(self.iteration, iterations, report)

    def restore_latents(self, latents: list[Tensor]) -> None:
        """Take copies of latents that it had before."""
        for adam, value in zip(self._latents, latents, strict=True):
            adam.value.copy_(value)

    def retouch(self, lmbda: float, choosing: Callable[[float], None] = _nothing) -> None:
        """Choose symbols once more, for another λ than that of the level: a few percent of the bits more, or fewer."""
        self.quantise()
        self._choice(lmbda).run(RETOUCHING_SETS, lambda _, share: choosing(share))

    def _choose(self, iterations: int, report: Callable[[float], None]) -> None:
        """Choose symbols behind a descent of so many iterations, or go on with that."""

        def done(jobs: int, share: float) -> None:
            self._jobs_done = jobs
            report(share)

        self._choice(self.lmbda).run(sets_of(iterations, len(self.windows)), done, self._jobs_done)

    def _choice(self, lmbda: float) -> Choice:
        return Choice(self._costs, self._networks.named(), self.gains, lmbda, self.latents)

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

    def move(self, level: int, base: Parameters, gains: Tensor, latents: list[Tensor]) -> None:
        """Take another level, with its base, gains and latents; what the networks differ by from the base stays."""
        networks = self._networks.rebased(base)
        adams = [adam.moved_to(value) for adam, value in zip(self._latents, latents, strict=True)]
        self.level, self.gains, self._networks, self._latents = level, gains, networks, adams  # an interrupt takes all or none

    def _turn(self, done: int, of: int, report: Report) -> None:
        """Descend once, in the window whose turn it is, as it is done after so many iterations of a descent."""
        if not self._order:
            self._order = torch.randperm(len(self.windows)).tolist()
        window = self.windows[self._order.pop()]
        rounding, fall = annealed(done / of)
        bits, error = self._step(window, rounding, LEARNING_RATE * fall, NETWORKS_END + (1 - NETWORKS_END) * fall)
        self.iteration += 1
        report(self.iteration, bits / self._inside(window), -10 * math.log10(max(error, 1e-12)))

    def _step(
        self, window: Area, quantise: Callable[[Tensor], Tensor], latents_rate: float, networks_rate: float
    ) -> tuple[float, float]:
        """Descend once in a window, at a rate of latents and a share of that of networks; return bits and mean square error."""
        flat = self._networks.value.clone().requires_grad_(not self._networks.still)
        leaves = self._costs.cut(window, self.latents)
        for grid in range(self.finest, GRIDS):
            leaves[grid].requires_grad_()
        hat = [quantise(leaf) if grid >= self.finest else leaf for grid, leaf in enumerate(leaves)]
        bits, squares = self._costs.total(self._networks.named(flat), self.gains, window, hat, fast=True)
        share = self.pixels / len(self.windows)  # of the picture: all windows together weigh as the networks' bits do
        loss = bits / share + self.lmbda * 255**2 * squares / (3 * share)
        if flat.requires_grad:
            loss = loss + self._networks_weight * self._networks.rate(flat) / self.pixels
        (loss / math.sqrt(self.lmbda)).backward()
        if flat.grad is not None:
            self._networks.move(flat.grad, networks_rate, self.iteration + 1)
        visits = self.iteration // len(self.windows) + 1
        for grid in range(self.finest, GRIDS):
            gradient = leaves[grid].grad
            assert gradient is not None
            own = window.coarser(grid)
            self._latents[grid].step(gradient[0][own.inside(self._costs.seen(window, grid))], latents_rate, visits, own.whole)
        return float(bits.detach()), float(squares.detach()) / (3 * self._inside(window))

    def _inside(self, window: Area) -> int:
        """Return how many pixels of a window are the picture's."""
        h, w = self.size
        return (min(window.bottom, h) - window.top) * (min(window.right, w) - window.left)

    def measure(self) -> State:
        """Return what the rounded latents and the networks cost and give; the PSNR is that of pixels before rounding."""
        return self._measure(self._networks.value, self._networks.bits())

    @torch.no_grad()
    def _measure(self, flat: Tensor, bits_of_networks: float) -> State:
        bits, squares, parameters = 0.0, 0.0, self._networks.named(flat)
        for window in self.windows:
            hat = [leaf.round_() for leaf in self._costs.cut(window, self.latents)]
            found = self._costs.total(parameters, self.gains, window, hat)
            bits, squares = bits + float(found[0]), squares + float(found[1])
        psnr_db = -10 * math.log10(max(squares / (3 * self.pixels), 1e-12))
        return State(bits / self.pixels, bits_of_networks / self.pixels, psnr_db)

    def _state(self) -> dict[str, Adam | MovingNetworks]:
        return {"networks": self._networks, **{f"latents.{grid}": adam for grid, adam in enumerate(self._latents)}}

    def save(self, path: Path, facts: dict[str, str]) -> None:
        """Write all that ``resume`` needs, so that a kill at any moment leaves the file from before or the new one."""
        tensors = {f"{name}/{key}": value for name, part in self._state().items() for key, value in part.state().items()}
        tensors["order"] = torch.tensor(self._order, dtype=torch.int32)
        write_state(path, tensors, {**facts, "iteration": self.iteration, "jobs_done": self._jobs_done})

    def resume(self, path: Path, facts: dict[str, str]) -> None:
        """Go on from what ``save`` wrote. Raises UsageError if that is another picture's, or of other options."""
        header, tensors = read_state(path, facts)
        try:
            for name, part in self._state().items():
                prefix = f"{name}/"
                part.restore({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})
            self.iteration, self._order = int(header["iteration"]), tensors["order"].tolist()
            self._jobs_done = int(header["jobs_done"])
            if min(self.iteration, self._jobs_done) < 0 or not set(self._order) <= set(range(len(self.windows))):
                raise ValueError(f"iteration {self.iteration}, {self._jobs_done} jobs done, windows {self._order}")
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"{path} is not the state of this fit ({error}): leave --resume away") from error
