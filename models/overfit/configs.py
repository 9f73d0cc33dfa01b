"""The sizes of ``overfit``, and what follows from them. Holds no networks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitstream.errors import UsageError

MODEL = "overfit"
GRIDS = 7  # of latents: 1, 1/2 … 1/64 of the picture's size
BLOCK = 64  # positions: blocks of so many squared of a grid do not see each other's symbols, and decode together
TAPS = tuple((dy, dx) for dy in (-2, -1, 0) for dx in range(-2, 3) if (dy, dx) < (0, 0))  # causal neighbours
TAPS_COARSE = 9  # 3×3 of the next coarser grid
PHASES = 4  # positions of a grid for one of the next coarser
INPUTS = GRIDS - 1 + PHASES  # of synthesis: the coarser grids at 1/2, the cells of the finest
OUTPUTS = 3 * PHASES
SIZE_MAX = 256  # of every number in a config


@dataclass(frozen=True)
class OverfitConfig:
    """Hidden channels of entropy networks (of the finest grid, of the others), of synthesis, of the analysis; rate levels."""

    width_fine: int = 8
    width: int = 16
    hidden: int = 32
    analysis: int = 96
    levels: int = 9
    lmbda_min: float = 0.0003430609093470797
    lmbda_max: float = 0.32

    @classmethod
    def of(cls, config: dict[str, Any]) -> OverfitConfig:
        """Return the config of a checkpoint. Raises UsageError for one that cannot be."""
        known: dict[str, Any] = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        for key, value in config.items():
            if key not in known:
                raise UsageError(f"model overfit: unknown config key {key!r}; known keys: {', '.join(sorted(known))}")
            if type(value) is not known[key] or not 0 < value <= SIZE_MAX:
                raise UsageError(
                    f"model overfit: {key} is {value!r}, expected a {known[key].__name__} above 0, at most {SIZE_MAX}"
                )
        made = cls(**config)
        if made.levels < 2 or made.lmbda_min >= made.lmbda_max:
            raise UsageError(
                f"model overfit: {made.levels} levels from {made.lmbda_min} to {made.lmbda_max}, expected two or more, rising"
            )
        return made

    @property
    def max_level(self) -> int:
        """Return the highest rate level in 1/256."""
        return 256 * (self.levels - 1)

    @property
    def octaves(self) -> float:
        """Return how many octaves of λ a level is worth."""
        return math.log2(self.lmbda_max / self.lmbda_min) / (self.levels - 1)

    def lmbda_of(self, level: int) -> float:
        """Return λ of a level in 1/256."""
        return float(self.lmbda(torch.tensor(level / 256, dtype=torch.float64)))

    def lmbda(self, level: Tensor) -> Tensor:
        """Return λ of (fractional) levels, log-spaced from lmbda_min at level 0 to lmbda_max at the last."""
        return self.lmbda_min * torch.exp(level * (math.log(self.lmbda_max / self.lmbda_min) / (self.levels - 1)))

    def width_of(self, grid: int) -> int:
        """Return the hidden channels of the entropy network of a grid, 0 the finest."""
        return self.width_fine if grid == 0 else self.width

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all parameters at one level by name; those that are ``levelled`` differ between levels."""
        out: dict[str, tuple[int, ...]] = {}
        for grid in range(GRIDS):
            w, name = self.width_of(grid), f"grid_{grid}"
            out[f"{name}.context"] = (w, len(TAPS))
            if grid < GRIDS - 1:
                out[f"{name}.coarse"] = (PHASES * w, TAPS_COARSE)
            out |= {f"{name}.bias_1": (w,), f"{name}.hidden": (w, w), f"{name}.bias_2": (w,)}
            out |= {f"{name}.out": (2, w), f"{name}.bias_3": (2,)}
        out["upsample"] = (GRIDS - 2, PHASES, 9)
        out["skip"] = (OUTPUTS, INPUTS)
        out |= {"synthesis.conv_1": (self.hidden, INPUTS, 3, 3), "synthesis.bias_1": (self.hidden,)}
        out |= {"synthesis.conv_2": (self.hidden, self.hidden), "synthesis.bias_2": (self.hidden,)}
        out |= {"synthesis.conv_3": (OUTPUTS, self.hidden, 3, 3), "synthesis.bias_3": (OUTPUTS,)}
        return out

    def groups(self) -> list[list[str]]:
        """Return the names of the parameters that share a step and a stream in a file."""
        names = list(self.shapes())
        grids = [[name for name in names if name.startswith(f"grid_{grid}.")] for grid in range(GRIDS)]
        biases = [name for name in names if name.startswith("synthesis.bias")]
        convs = [[name] for name in names if name.startswith("synthesis.conv")]
        return [*grids, ["upsample"], ["skip"], *convs, biases]


def levelled(name: str) -> bool:
    """Return whether a parameter differs between rate levels."""
    return ".bias" in name
