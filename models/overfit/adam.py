"""Adam for tensors of which a part moves at a time."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


class Adam:
    """Adam (Kingma 2014) of tensors of which a part moves at a time; moments of what does not move stay as they are."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.mean, self.square = value, torch.zeros_like(value), torch.zeros_like(value)

    @torch.no_grad()
    def moved(self, gradient: Tensor, rate: float, count: int, part: Any = ...) -> Tensor:
        """Return a part of the value moved for the count-th time; its moments are kept, the value stays."""
        mean, square = self.mean[part], self.square[part]
        mean.mul_(0.9).add_(gradient, alpha=0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scale = (square / (1 - 0.999**count)).sqrt_().add_(1e-8)
        return torch.addcdiv(self.value[part], mean, scale, value=-rate / (1 - 0.9**count))

    def step(self, gradient: Tensor, rate: float, count: int, part: Any = ...) -> None:
        """Move a part of the value for the count-th time."""
        self.value[part] = self.moved(gradient, rate, count, part)

    def moved_to(self, value: Tensor) -> Adam:
        """Return one that goes on from another value, with these very moments: this one is not to be used then."""
        other = copy.copy(self)
        other.value = value
        return other

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that ``restore`` takes."""
        return {"value": self.value, "mean": self.mean, "square": self.square}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take stored tensors. Raises KeyError or RuntimeError for those of another size."""
        for name, own in self.state().items():
            own.copy_(tensors[name].view(own.shape))
