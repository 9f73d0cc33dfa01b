"""Adam for tensors of which a part moves: as torch's where all of it does."""

from __future__ import annotations

import torch

from models.overfit.adam import Adam


def test_adam_is_that_of_torch():
    value = torch.randn(4, 5)
    own, other = Adam(value.clone()), value.clone().requires_grad_()
    optimizer = torch.optim.Adam([other], lr=0.01)
    for count in range(1, 8):
        gradient = torch.randn(4, 5)
        own.step(gradient, 0.01, count)
        other.grad = gradient.clone()
        optimizer.step()
    assert torch.allclose(own.value, other, atol=1e-6)


def test_adam_leaves_what_is_not_its_part():
    adam, part = Adam(torch.zeros(4, 4)), (slice(1, 3), slice(0, 2))
    adam.step(torch.ones(2, 2), 0.1, 1, part)
    moved = torch.zeros(4, 4, dtype=torch.bool)
    moved[part] = True
    for tensor in (adam.value, adam.mean, adam.square):
        assert torch.equal(tensor != 0, moved)
