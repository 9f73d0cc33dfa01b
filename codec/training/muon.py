"""Muon for the weights of convolutions, Adam for the rest: one optimiser, so gradients are clipped and states saved as one.

Muon steps along the momentum with all its singular values made one, so that directions with small gradients learn too. Steps
have Adam's size (a root mean square of 0.2 of the rate), so that both share a recipe's rates. ``torch.optim.Muon`` takes
matrices alone, one by one; here all convolutions of one shape are one batch of matrices.

Sources: Jordan 2024 (github.com/KellerJordan/Muon), Liu 2025 (arXiv 2502.16982) for the step's size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ADAM_RMS = 0.2  # of Adam's steps, in units of the learning rate


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return bf16 matrices (n, rows, columns) of the same singular vectors, by Newton and Schulz's iteration.

    Singular values become 0.7 … 1.2; those below about 0.002 of the Frobenius norm stay less.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16().mT if tall else matrices.bfloat16()
    x = x / x.float().flatten(1).norm(dim=1).clamp(min=1e-7).to(x.dtype)[:, None, None]
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def muon_weights(groups: list[dict[str, Any]]) -> list[nn.Parameter]:
    """Return the weights of the parameter groups that learn by Muon: 4-D, in groups with a true "muon"."""
    return [weight for group in groups if group.get("muon") for weight in group["params"] if weight.dim() == 4]


class MuonAdam(torch.optim.Adam):
    """Adam, but convolution weights (O, I, kh, kw) of groups with a true "muon" learn by Muon."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step. Raises ValueError for a ``closure``: gradients have to be there."""
        if closure is not None:
            raise ValueError("MuonAdam takes no closure: compute the gradients before the step")
        alike: dict[tuple[torch.Size, float], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for group in self.param_groups:
            for weight in muon_weights([group]):
                if weight.grad is not None:
                    alike[weight.shape, group["lr"]].append((weight, weight.grad))
                    weight.grad = None  # Adam passes it by
        for (_, rate), pairs in alike.items():
            self._muon_step(*zip(*pairs, strict=True), rate=rate)
        super().step()

    def _muon_step(self, weights: tuple[nn.Parameter, ...], gradients: tuple[Tensor, ...], *, rate: float) -> None:
        """Move weights of one shape."""
        for weight in weights:
            if not self.state[weight]:  # "step" is what Adam expects of every state that it loads
                self.state[weight] = {"step": torch.zeros(()), "momentum": torch.zeros_like(weight)}
        momenta = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov
        moves = orthogonalised(torch.stack([move.flatten(1) for move in ahead])).float()
        size = ADAM_RMS * max(moves.shape[1:]) ** 0.5
        for weight, move in zip(weights, moves, strict=True):
            weight.sub_(move.view(weight.shape), alpha=rate * size)
