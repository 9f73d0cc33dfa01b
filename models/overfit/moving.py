"""The networks of a descent: parameters that move, and become whole numbers of steps as in a file (FORMAT.md section 10.1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.overfit.adam import Adam
from models.overfit.configs import OverfitConfig
from models.overfit.networks import Parameters
from models.overfit.weights import ABSENT, LIMIT, STEPS, UNITS, Differences, best_shape

LEARNING_RATE = 2e-3
CURVE = 2.0  # of the logarithm, at a step: the higher, the more of the differences are zero
TYPICAL_STEP = 2.0**-6  # of differences, for their rate in the loss as long as steps are not chosen
FIRST_STEP = 9  # where the search for steps begins: 2^-7


class MovingNetworks:
    """The parameters of one picture's networks: a flat vector ``value`` (n,) of those that move, which grids finer than
    ``finest`` have none of.

    They move from ``base``. Once they have ``steps``, one for each group, more and more of them are ``frozen`` at a whole
    number of steps from it.
    """

    def __init__(self, config: OverfitConfig, base: Parameters, finest: int) -> None:
        self._config, self._base, self._finest = config, base, finest
        unused = tuple(f"grid_{grid}." for grid in range(finest))
        moving = [[name for name in names if not name.startswith(unused)] for names in config.groups()]
        self._names = [name for names in moving for name in names]
        self._sizes = [sum(base[name].numel() for name in names) for names in moving]
        self._start = torch.cat([base[name].reshape(-1) for name in self._names])
        self._adam = Adam(self._start.clone())
        self.steps: tuple[int, ...] | None = None
        self.frozen = torch.zeros_like(self._start, dtype=torch.bool)
        self.still = False

    @property
    def value(self) -> Tensor:
        """Return the parameters as they are now."""
        return self._adam.value

    def named(self, flat: Tensor | None = None) -> Parameters:
        """Return all parameters by name, of what is or of another vector (n,): views of it."""
        flat = self.value if flat is None else flat
        parts = zip(self._names, flat.split([self._base[name].numel() for name in self._names]), strict=True)
        return {**self._base, **{name: part.view(self._base[name].shape) for name, part in parts}}

    def offsets(self) -> Parameters:
        """Return what was added to the base."""
        return {name: value - self._base[name] for name, value in self.named().items()}

    def rate(self, flat: Tensor) -> Tensor:
        """Return about the bits of the differences: a logarithm of each, so that few are large and most are zero."""
        bits = torch.zeros((), device=flat.device)
        steps = [TYPICAL_STEP] * len(self._sizes) if self.steps is None else _sizes_of(self.steps)
        for step, offset in zip(steps, (flat - self._start).abs().split(self._sizes), strict=True):
            bits = bits + torch.log2(1 + offset * (CURVE / step)).sum()
        return bits

    def bits(self) -> float:
        """Return what the differences cost, by estimate; before they have steps, roughly."""
        if self.steps is None:
            return float(self.rate(self.value))
        return sum(best_shape(part)[1] for part in self.differences(self.steps).symbols)

    def move(self, gradient: Tensor, rate: float, count: int) -> None:
        """Take the count-th step of what is not frozen, at this share of the learning rate."""
        moved = self._adam.moved(gradient, LEARNING_RATE * rate, count)
        self.value.copy_(torch.where(self.frozen, self.value, moved))  # at once: an interrupt leaves what is frozen alone

    def differences(self, steps: tuple[int, ...]) -> Differences:
        """Return the differences from the base in these steps."""
        return Differences.quantised(self._config, self._finest, self.offsets(), steps)

    def freeze(self, share: float, cost: Callable[[Tensor, float], float]) -> None:
        """Freeze this share of all parameters, the nearest to whole steps first.

        Steps are chosen by ``cost``: of values (n,) and the bits of their differences.
        """
        self.steps = self.steps or self.choose_steps(cost)
        new = math.ceil(len(self.frozen) * min(share, 1)) - int(self.frozen.sum())
        if new > 0:
            whole = self._whole(self.differences(self.steps))
            parts = zip((whole - self.value).abs().split(self._sizes), _sizes_of(self.steps), strict=True)
            distance = torch.cat([part / step for part, step in parts])
            nearest = distance.masked_fill_(self.frozen, math.inf).topk(new, largest=False).indices
            self.value[nearest] = whole[nearest]
            self.frozen[nearest] = True
        self.still = bool(self.frozen.all())

    def _whole(self, differences: Differences) -> Tensor:
        """Return the parameters (n,) that a decoder makes of differences."""
        parts = []
        for size, step, symbols in zip(self._sizes, differences.steps, differences.symbols, strict=True):
            parts.append(torch.from_numpy(symbols[:size].astype("float64")) * 2.0 ** (step - UNITS))
        limit = LIMIT / 2**UNITS
        return (self._start.double() + torch.cat(parts).to(self._start.device)).clamp(-limit, limit).float()

    def choose_steps(self, cost: Callable[[Tensor, float], float]) -> tuple[int, ...]:
        """Return the step of each group that is best by rate and distortion: groups one by one, twice."""
        chosen = [FIRST_STEP if size else ABSENT for size in self._sizes]
        costs: dict[tuple[int, ...], float] = {}
        bits: dict[tuple[int, int], float] = {}

        def cost_of(steps: list[int]) -> float:
            differences = self.differences(tuple(steps))
            if differences.steps not in costs:
                for group, (step, part) in enumerate(zip(differences.steps, differences.symbols, strict=True)):
                    if (group, step) not in bits:
                        bits[group, step] = best_shape(part)[1]
                rate = sum(bits[group, step] for group, step in enumerate(differences.steps))
                costs[differences.steps] = cost(self._whole(differences), rate)
            return costs[differences.steps]

        best = cost_of(chosen)
        for _ in range(2):
            for group in sorted(range(len(chosen)), key=lambda group: -self._sizes[group]):
                for direction in (1, -1) if chosen[group] != ABSENT else ():
                    while (step := chosen[group] + direction) in (*STEPS, STEPS[-1] + 1):
                        steps = chosen.copy()
                        steps[group] = step if step in STEPS else ABSENT
                        if (found := cost_of(steps)) >= best:
                            break
                        best, chosen = found, steps
        return tuple(chosen)

    def rebased(self, base: Parameters) -> MovingNetworks:
        """Return networks that differ as much from the base of another level, and go on; these are not to be used then."""
        other = copy.copy(self)
        other._base, other._start = base, torch.cat([base[name].reshape(-1) for name in self._names])
        other._adam = self._adam.moved_to(self.value + (other._start - self._start))
        return other

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that ``restore`` takes."""
        return {**self._adam.state(), "frozen": self.frozen, "steps": torch.tensor(self.steps or (), dtype=torch.int32)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take stored tensors. Raises KeyError, RuntimeError or ValueError for some that cannot be."""
        steps, frozen = tuple(tensors["steps"].tolist()), tensors["frozen"].view(self.frozen.shape)
        if len(steps) not in (0, len(self._sizes)) or not set(steps) <= {ABSENT, *STEPS} or (bool(frozen.any()) and not steps):
            raise ValueError(f"steps {steps}, {int(frozen.sum())} frozen")
        self._adam.restore(tensors)
        self.frozen.copy_(frozen)
        self.steps, self.still = steps or None, bool(frozen.all())


def _sizes_of(steps: tuple[int, ...]) -> list[float]:
    """Return steps as numbers, infinite of groups without differences."""
    return [2.0 ** (step - UNITS) if step != ABSENT else math.inf for step in steps]
