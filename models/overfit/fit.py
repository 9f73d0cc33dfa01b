"""The descent for one picture: latents and networks against λ·255²·MSE + bits (Kim 2023, section 3.2).

First with soft rounding and noise that both grow harder, then with plain rounding whose gradient passes straight through. Each
iteration sees a window of 256×256 pixels of the picture, and all of the coarse grids; windows take turns.
Only the values of the window's own latents move, but what is around them is seen: there are no seams.
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
from models.overfit.networks import Parameters, grid_bits, inputs_of, joined, ste, synthesis, upsampled
from models.overfit.soft import soft_rounding
from models.overfit.state import State, read_state, write_state
from models.overfit.weights import ABSENT, STEPS, Differences, best_scale
from models.overfit.windows import HALO, Halo, Window, windows_of

FINE_GRIDS = 3  # that are cut to the window: its blocks of 64 positions are whole. Coarser grids are small enough
LR_LATENTS, LR_NETWORKS = 4e-2, 2e-3
SHRINK = 0.2  # of a step of the networks: towards the base, so that what only the noise of windows moves stays there
HARD_SHARE = 0.15  # of the iterations: with plain rounding
HARD_RATE = 0.1  # of the learning rates, falling to 0
TEMPERATURES = 0.3, 0.1  # of soft rounding, from the first iteration to the last
NOISES = 2.0, 1.0  # exponents of Kumaraswamy noise: 1 is uniform
TYPICAL_STEP = 2.0**-6  # of differences of parameters, for their rate in the loss
FIRST_STEP = 9  # where the search for their steps begins: 2^-7


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
        self._base = base
        self._cells = F.pixel_unshuffle(x[None], 2).contiguous()
        inside = torch.zeros(1, h, w, device=x.device)
        inside[:, : size[0], : size[1]] = 1
        self._inside = None if size == (h, w) else F.pixel_unshuffle(inside[None].expand(-1, 3, -1, -1), 2).contiguous()
        for grid in range(finest):
            latents[grid].zero_()
        self._latents = [Adam(value) for value in latents]
        self._names = [name for names in config.groups() for name in names if not name.startswith(_unused(finest))]
        self._networks = Adam(torch.cat([base[name].reshape(-1) for name in self._names]))
        self._start = self._networks.value.clone()
        self.windows = windows_of(h, w)
        self._fast = x.device.type != "cpu" or fast_bf16()  # elsewhere bf16 is slower than float32
        self.iteration = 0
        self._order: list[int] = []
        self.differences = None

    @property
    def latents(self) -> list[Tensor]:
        """Return the grids, not rounded."""
        return [adam.value for adam in self._latents]

    @property
    def networks(self) -> Parameters:
        """Return the parameters as they are now, quantised once they are."""
        if self.differences is not None:
            return self._quantised
        return self._named(self._networks.value)

    @property
    def differences(self) -> Differences | None:
        """Return the quantised differences of the networks from the base, None as long as they move."""
        return self._differences

    @differences.setter
    def differences(self, chosen: Differences | None) -> None:
        if chosen is not None:
            self._quantised = self._with(chosen)
        self._differences = chosen

    def _named(self, flat: Tensor) -> Parameters:
        """Return all parameters, views of a flat vector of those that move."""
        sizes = [self._base[name].numel() for name in self._names]
        parts = zip(self._names, flat.split(sizes), strict=True)
        return {**self._base, **{name: part.view(self._base[name].shape) for name, part in parts}}

    def offsets(self) -> Parameters:
        """Return what was added to the base."""
        return {name: value - self._base[name] for name, value in self.networks.items()}

    def run(self, iterations: int, report: Callable[[int, float, float], None] = lambda *_: None) -> None:
        """Descend to this number of iterations, from where it stands; ``report`` is called with each, its bpp and its PSNR.

        The networks are quantised where plain rounding begins: from there on the latents alone move, and make the best of them.
        """
        soft = max(1, round(iterations * (1 - HARD_SHARE)))
        self.descend(soft, report)
        while self.iteration < iterations:
            if self.differences is None:
                self.differences = self._choose_steps()
            self._turn(ste, HARD_RATE * (iterations - self.iteration) / (iterations - soft), report)

    def descend(self, iterations: int, report: Callable[[int, float, float], None] = lambda *_: None) -> None:
        """Descend to this number of iterations with soft rounding that grows harder, noise and rates that fall."""
        while self.iteration < iterations:
            share = self.iteration / iterations
            temperature, noise = (first + (last - first) * share for first, last in (TEMPERATURES, NOISES))
            rate = 0.5 * (1 + math.cos(math.pi * share)) * (1 - HARD_RATE) + HARD_RATE
            self._turn(soft_rounding(temperature, noise), rate, report)

    def move(self, base: Parameters, gains: Tensor, latents: list[Tensor], lmbda: float) -> None:
        """Take base, gains, latents and λ of another level; the differences of the networks, now quantised, stay."""
        differences, _ = self.finish()
        self._base, self.gains, self.lmbda, self.differences = base, gains, lmbda, differences
        for adam, value in zip(self._latents, latents, strict=True):
            adam.value.copy_(value)

    def extend(self, iterations: int, report: Callable[[int, float, float], None] = lambda *_: None) -> None:
        """Descend on with plain rounding: for a λ that was changed a little."""
        self.finish()
        for _ in range(iterations):
            self._turn(ste, HARD_RATE, report)

    def _turn(self, quantise: Callable[[Tensor], Tensor], rate: float, report: Callable[[int, float, float], None]) -> None:
        """Descend once, in the window whose turn it is."""
        if not self._order:
            self._order = torch.randperm(len(self.windows)).tolist()
        window = self.windows[self._order.pop()]
        bits, error = self._step(window, quantise, rate)
        self.iteration += 1
        report(self.iteration, bits / window.area, -10 * math.log10(max(error, 1e-12)))

    def finish(self) -> tuple[Differences, State]:
        """Return the differences of the networks from the base, quantised, and what they and the latents give."""
        if self.differences is None:
            self.differences = self._choose_steps()
        return self.differences, self.measure()

    def _step(self, window: Window, quantise: Callable[[Tensor], Tensor], rate: float) -> tuple[float, float]:
        """Descend once in a window; return its bits and mean squared error."""
        moving = self.differences is None
        flat = self._networks.value.clone().requires_grad_() if moving else None
        parameters = self.networks if flat is None else self._named(flat)
        halo, leaves = self._cut(window)
        for grid in range(self.finest, GRIDS):
            leaves[grid].requires_grad_()
        hat = [quantise(leaf) if grid >= self.finest else leaf for grid, leaf in enumerate(leaves)]
        bits, squares = self._evaluate(parameters, window, halo, hat)
        share = self.pixels / len(self.windows)  # of the picture: all windows together weigh as the networks' bits do
        loss = bits / share + self.lmbda * 255**2 * squares / (3 * share)
        if flat is not None:
            loss = loss + self._network_rate(flat) / self.pixels
        (loss / math.sqrt(self.lmbda)).backward()
        if flat is not None:
            assert flat.grad is not None
            self._networks.step(flat.grad, LR_NETWORKS * rate, self.iteration + 1)
            self._networks.value.copy_(
                self._start + F.softshrink(self._networks.value - self._start, SHRINK * LR_NETWORKS * rate)
            )
        visits = self.iteration // len(self.windows) + 1
        for grid in range(self.finest, GRIDS):
            gradient = leaves[grid].grad
            assert gradient is not None
            own = window.at(grid)
            gradient = halo.inner(gradient[0]) if grid < FINE_GRIDS else gradient[0][own]
            self._latents[grid].step(gradient, LR_LATENTS * rate, visits, own)
        return float(bits.detach()), float(squares.detach()) / (3 * window.area)

    def _network_rate(self, flat: Tensor) -> Tensor:
        """Return about the bits of the differences: of each group those of a Laplace distribution of its mean magnitude."""
        sizes = [sum(self._base[name].numel() for name in names if name in self._names) for names in self.config.groups()]
        sizes = [size for size in sizes if size]
        means = torch.stack([part.mean() for part in (flat - self._start).abs().split(sizes)])
        return (means.new_tensor(sizes) * torch.log2(1 + means * (math.e / TYPICAL_STEP))).sum()

    def _cut(self, window: Window) -> tuple[Halo, list[Tensor]]:
        h, w = (2 * side for side in self._cells.shape[-2:])
        halo = Halo(window.top > 0, window.bottom < h, window.left > 0, window.right < w)
        leaves = []
        for grid, value in enumerate(self.latents):
            part = value[halo.around(*window.at(grid))] if grid < FINE_GRIDS else value
            leaves.append(part.detach().clone()[None])
        return halo, leaves

    def _evaluate(self, parameters: Parameters, window: Window, halo: Halo, hat: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return bits and squared error of a window, of its latents with their halo."""
        bits = torch.zeros(())
        for grid in range(self.finest, GRIDS):
            coarse, weight = None, None
            if grid < FINE_GRIDS:
                seen = halo.inner(hat[grid][0])[None]
                coarse = self._ringed(window, halo, hat, grid + 1)
            else:
                seen, weight = hat[grid], self._weight(window, grid)
                coarse = F.pad(hat[grid + 1], (1, 1, 1, 1)) if grid < GRIDS - 1 else None
            bits = bits + grid_bits(parameters, self.gains, grid, seen, seen, coarse, weight)
        planes = joined(parameters, self.gains, hat, FINE_GRIDS)
        planes = planes[..., slice(*halo.span(window.at(FINE_GRIDS)[0], 0)), slice(*halo.span(window.at(FINE_GRIDS)[1], 2))]
        inverse = (-self.gains).exp2()
        for grid in range(FINE_GRIDS - 1, 0, -1):
            planes = halo.inner(upsampled(parameters, planes, grid + 1)[0])[None]
            planes = torch.cat([hat[grid][:, None] * inverse[grid], planes], dim=1)
        cells = halo.inner(
            synthesis(
                parameters,
                inputs_of(planes, self._finest(window, halo, hat), self.gains),
                fast=self._fast and torch.is_grad_enabled(),
            )[0]
        )
        rows, columns = window.at(1)
        difference = cells - self._cells[0, :, rows, columns]
        if self._inside is not None:
            difference = difference * self._inside[0, :, rows, columns]
        return bits, difference.square().sum()

    def _finest(self, window: Window, halo: Halo, hat: list[Tensor]) -> Tensor:
        """Return the finest grid with twice the halo, as its cells of 2×2 need; outside of its own it does not move."""
        rows, columns = window.at(0)
        around = self.latents[0][slice(*halo.span(rows, 0, 2 * HALO)), slice(*halo.span(columns, 2, 2 * HALO))][None]
        if self.finest > 0:
            return around
        around = around.round()
        top, left = (HALO * int(flag) for flag in (halo.top, halo.left))
        h, w = hat[0].shape[1:]
        around[:, top : top + h, left : left + w] = hat[0]
        return around

    def _ringed(self, window: Window, halo: Halo, hat: list[Tensor], grid: int) -> Tensor:
        """Return a grid's window with a ring of one position, of zeros outside of the picture."""
        rows, columns = window.at(grid)
        plane = hat[grid]
        starts = (0, 0) if grid >= FINE_GRIDS else (rows.start - HALO * halo.top, columns.start - HALO * halo.left)
        plane = F.pad(plane, (1, 1, 1, 1))
        top, left = rows.start - starts[0], columns.start - starts[1]
        return plane[:, top : top + rows.stop - rows.start + 2, left : left + columns.stop - columns.start + 2]

    def _weight(self, window: Window, grid: int) -> Tensor:
        """Return a plane (1, h, w) of the positions of a coarse grid that count in a window."""
        weight = torch.zeros_like(self.latents[grid])[None]
        weight[0][window.at(grid)] = 1
        return weight

    @torch.no_grad()
    def measure(self) -> State:
        """Return what the rounded latents and the networks cost and give; the PSNR is that of pixels before rounding."""
        return self._measure(self.networks, self._bits_of_networks())

    def _bits_of_networks(self) -> float:
        if self.differences is None:
            return float(self._network_rate(self._networks.value))
        return sum(best_scale(part)[1] for part in self.differences.symbols)

    def _measure(self, parameters: Parameters, bits_of_networks: float) -> State:
        bits = squares = 0.0
        for window in self.windows:
            halo, leaves = self._cut(window)
            found = self._evaluate(parameters, window, halo, [leaf.round_() for leaf in leaves])
            bits, squares = bits + float(found[0]), squares + float(found[1])
        psnr_db = -10 * math.log10(max(squares / (3 * self.pixels), 1e-12))
        return State(bits / self.pixels, bits_of_networks / self.pixels, psnr_db)

    @torch.no_grad()
    def _choose_steps(self) -> Differences:
        """Return the differences with the step of each group that is best by rate and distortion: groups one by one, twice."""
        groups, offsets = self.config.groups(), self.offsets()
        sizes = [sum(offsets[name].numel() for name in names) for names in groups]
        chosen = [ABSENT if names[0].startswith(_unused(self.finest)) else FIRST_STEP for names in groups]
        costs: dict[tuple[int, ...], float] = {}

        def cost(steps: list[int]) -> float:
            differences = Differences.quantised(self.config, self.finest, offsets, tuple(steps))
            if differences.steps not in costs:
                rate = sum(best_scale(part)[1] for part in differences.symbols)
                costs[differences.steps] = self._measure(self._with(differences), rate).cost(self.lmbda)
            return costs[differences.steps]

        best = cost(chosen)
        for _ in range(2):
            for group in sorted(range(len(groups)), key=lambda group: -sizes[group]):
                for direction in (1, -1) if chosen[group] != ABSENT else ():
                    while (step := chosen[group] + direction) in (*STEPS, STEPS[-1] + 1):
                        steps = chosen.copy()
                        steps[group] = step if step in STEPS else ABSENT
                        if (found := cost(steps)) >= best:
                            break
                        best, chosen = found, steps
        return Differences.quantised(self.config, self.finest, offsets, tuple(chosen))

    def _with(self, differences: Differences) -> Parameters:
        base = {name: (value.cpu().double() * 2**16).round().long() for name, value in self._base.items()}
        added = differences.added(self.config, base)
        return {name: (value.double() / 2**16).float().to(self._start.device) for name, value in added.items()}

    def _state(self) -> dict[str, Adam]:
        return {"networks": self._networks, **{f"latents.{grid}": adam for grid, adam in enumerate(self._latents)}}

    def save(self, path: Path, facts: dict[str, str]) -> None:
        """Write all that ``resume`` needs, so that a kill at any moment leaves the file from before or the new one."""
        tensors = {"order": torch.tensor(self._order, dtype=torch.int32)}
        named = self._state()
        for name, adam in named.items():
            tensors |= {f"{name}/value": adam.value, f"{name}/mean": adam.mean, f"{name}/square": adam.square}
        if self.differences is not None:
            tensors |= {f"symbols.{i}": torch.from_numpy(part) for i, part in enumerate(self.differences.symbols)}
        steps = None if self.differences is None else self.differences.steps
        write_state(path, tensors, {**facts, "iteration": self.iteration, "steps": steps})

    def resume(self, path: Path, facts: dict[str, str]) -> None:
        """Go on from what ``save`` wrote. Raises UsageError if that is another picture's, or of other options."""
        header, tensors = read_state(path, facts)
        named = self._state()
        try:
            for name, adam in named.items():
                for key in ("value", "mean", "square"):
                    own = getattr(adam, key)
                    own.copy_(tensors[f"{name}/{key}"].view(own.shape))
            self.iteration, self._order = int(header["iteration"]), tensors["order"].tolist()
            if self.iteration < 0 or not set(self._order) <= set(range(len(self.windows))):
                raise ValueError(f"iteration {self.iteration}, windows {self._order}")
            if header["steps"] is not None:
                steps = tuple(header["steps"])
                symbols = tuple(tensors[f"symbols.{i}"].numpy() for i in range(len(self.config.groups())))
                if not set(steps) <= {ABSENT, *STEPS}:
                    raise ValueError(f"steps {steps}")
                self.differences = Differences(self.finest, steps, symbols)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"{path} is not the state of this fit ({error}): leave --resume away") from error


def _unused(finest: int) -> tuple[str, ...]:
    return tuple(f"grid_{grid}." for grid in range(finest))
