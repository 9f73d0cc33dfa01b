"""What changes the learning rate once per epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR, ReduceLROnPlateau

MILESTONES = (40, 90, 140)  # epochs after which "multistep" multiplies the rates by MULTISTEP_FACTOR
MULTISTEP_FACTOR = 0.5


class Schedule:
    """The part of the learning rate that changes once per epoch, as a factor: a scheduler of torch, or always 1 ("cosine").

    The scheduler drives the rate of an optimiser of its own that starts at 1 and has nothing to optimise.
    """

    def __init__(self, name: str) -> None:
        self.unit = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
        self.scheduler: MultiStepLR | ReduceLROnPlateau | None = None
        if name == "multistep":
            self.scheduler = MultiStepLR(self.unit, list(MILESTONES), gamma=MULTISTEP_FACTOR)
        elif name == "plateau":
            self.scheduler = ReduceLROnPlateau(self.unit)

    @property
    def factor(self) -> float:
        """Return what the learning rates of the recipe are multiplied by in this epoch."""
        return float(self.unit.param_groups[0]["lr"])

    @property
    def needs_loss(self) -> bool:
        """Return whether the end of an epoch needs a validation loss."""
        return isinstance(self.scheduler, ReduceLROnPlateau)

    def end_epoch(self, loss: float = math.nan) -> None:
        """Go on to the next epoch; ``loss`` is that of the validation, where one is needed."""
        self.unit.step()  # does nothing, but torch wants the optimiser to be first
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss)
        elif self.scheduler is not None:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return all that ``load_state_dict`` needs, as plain numbers."""
        own = {} if self.scheduler is None else self.scheduler.state_dict()
        own = {key: value for key, value in own.items() if key != "milestones"}  # a Counter, given by the code
        return {"factor": self.factor, "scheduler": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict`` of the same schedule."""
        self.unit.param_groups[0]["lr"] = state["factor"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
