"""Adam for tensors of which a part moves at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Adam:
    """Adam (Kingma 2014) of tensors of which a part moves at a time; moments of what does not move stay as they are."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.mean, self.square = value, torch.zeros_like(value), torch.zeros_like(value)

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: float, count: int, part: Any = ...) -> None:
        """Move a part of the value for the count-th time."""
        value, mean, square = self.value[part], self.mean[part], self.square[part]
        mean.mul_(0.9).add_(gradient, alpha=0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        value.addcdiv_(mean, (square / (1 - 0.999**count)).sqrt_().add_(1e-8), value=-rate / (1 - 0.9**count))
