"""Muon: orthogonal steps along the momentum for convolutions, Adam for the rest, one state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("lightning", reason="training needs the train extra")

from bitstream.errors import UsageError  # noqa: E402
from codec.training.loop import Trainer  # noqa: E402
from codec.training.muon import MuonAdam, orthogonalised  # noqa: E402
from codec.training.recipe import Recipe  # noqa: E402

ADAM = {"lr": 1e-2, "betas": (0.9, 0.99), "fused": True}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> list[float]:
    torch.manual_seed(seed)
    losses = []
    for _ in range(steps):
        x = torch.rand(4, 4, 6, 6)
        loss = (net(x) - x.mean(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(net: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in net.state_dict().values()]


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 40), (2, 40, 6), (1, 1, 5)])
def test_singular_values_become_about_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, None, None]
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    turned = u.mT @ orthogonalised(matrices).float() @ vh.mT
    kept = s > 0.05 * s.amax(dim=1, keepdim=True)
    assert kept.sum() >= 0.8 * s.numel()
    diagonal = turned.diagonal(dim1=1, dim2=2)[kept]
    assert 0.6 < diagonal.min() <= diagonal.max() < 1.3
    assert (turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))).abs().max() < 0.1


def test_a_gradient_of_zeros_moves_nothing():
    assert torch.equal(orthogonalised(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4, dtype=torch.bfloat16))


def test_without_muon_it_is_adam():
    one, two = network(), network()
    train(one, MuonAdam(one.parameters(), **ADAM), 5)
    train(two, torch.optim.Adam(two.parameters(), **ADAM), 5)
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(two), strict=True))


def test_convolutions_learn_by_muon_and_biases_by_adam():
    one, two = network(), network()
    before = weights(one)
    train(one, MuonAdam([{"params": list(one.parameters()), "muon": True}], **ADAM), 1)
    train(two, torch.optim.Adam(two.parameters(), **ADAM), 1)
    for old, muon, adam in zip(before, weights(one), weights(two), strict=True):
        if old.dim() == 4:
            move = (muon - old).flatten(1)
            values = torch.linalg.svdvals(move) / (0.2 * 1e-2 * max(move.shape) ** 0.5)
            assert 0.6 < values.max() < 1.3
            assert not torch.equal(muon, adam)
        else:
            assert torch.equal(muon, adam)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
@pytest.mark.parametrize("steps", [1, 4])
def test_matrices_move_as_torch_moves_them(steps):
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(12, 20, 1, 1)), nn.Parameter(torch.zeros(12, 20))
    theirs.data = ours.data.flatten(1).clone()
    start = ours.detach().flatten(1).clone()
    one = MuonAdam([{"params": [ours], "muon": True}], lr=0.01)
    two = torch.optim.Muon([theirs], lr=0.01, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(steps):
        gradient = torch.randn(12, 20)
        ours.grad, theirs.grad = gradient.view(12, 20, 1, 1).clone(), gradient.clone()
        one.step()
        two.step()
    moved, expected = ours.detach().flatten(1) - start, theirs.detach() - start
    assert (moved - expected).norm() < 0.02 * expected.norm()


def test_it_learns():
    net = network()
    losses = train(net, MuonAdam([{"params": list(net.parameters()), "muon": True}], **ADAM), 60)
    assert losses[-1] < 0.2 * losses[0]


def test_a_closure_is_refused():
    net = network()
    with pytest.raises(ValueError, match="takes no closure"):
        MuonAdam(net.parameters(), **ADAM).step(lambda: 0.0)


def test_memory_format_does_not_matter():
    one, two = network(), network().to(memory_format=torch.channels_last)
    for net in (one, two):
        train(net, MuonAdam([{"params": list(net.parameters()), "muon": True}], **ADAM), 1)
    for a, b in zip(weights(one), weights(two), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_a_run_with_muon_resumes_as_it_was(recipe, data, tmp_path):
    """Momenta are part of the state."""
    own = Recipe.load(recipe, muon=True)
    one = Trainer(own, data, device="cpu")
    for _ in range(2):
        one.train_step()
    one.save(tmp_path / "a.pt")
    two = Trainer(own, data, device="cpu")
    two.load(tmp_path / "a.pt")
    for trainer in (one, two):
        torch.manual_seed(5)
        trainer.train_step()
    assert all(torch.equal(a, b) for a, b in zip(weights(one.model), weights(two.model), strict=True))


def test_blocks_alone_learn_by_muon(recipe, data):
    states = []
    for muon in (False, True):
        trainer = Trainer(Recipe.load(recipe, muon=muon), data, device="cpu")
        trainer.train_step()
        states.append(trainer.model.state_dict())
    block, other = "g_a.blocks_8.0.conv3.weight", "g_a.stem.weight"
    assert not torch.equal(states[0][block], states[1][block])
    assert torch.equal(states[0][other], states[1][other])


@pytest.mark.parametrize("muon", [False, True])
def test_a_state_of_the_other_optimiser_is_refused(recipe, data, tmp_path, muon):
    """Its momenta would be missing."""
    Trainer(Recipe.load(recipe, muon=muon), data, device="cpu").save(tmp_path / "a.pt")
    with pytest.raises(UsageError, match=f"set muon = {str(muon).lower()}, or begin anew"):
        Trainer(Recipe.load(recipe, muon=not muon), data, device="cpu").load(tmp_path / "a.pt")


def test_without_residual_blocks_all_convolutions_but_those_of_pixels_learn_by_muon(recipe, data):
    states = []
    for muon in (False, True):
        rates = {"lr_blocks": 2e-4, "lr_trunk": 2e-4, "grad_clip": 1e9}
        own = Recipe.load(recipe, model="hyperprior", config={"N": 8, "M": 16}, muon=muon, klt_start=True, **rates)
        trainer = Trainer(own, data, device="cpu")
        trainer.train_step()
        states.append(trainer.model.state_dict())
    differ = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    inner = {f"g_a.{i}.weight" for i in (2, 4)} | {"g_a.6.module.weight", "g_s.0.module.weight"}
    assert differ == inner | {f"g_s.{i}.weight" for i in (2, 4)}


@pytest.mark.parametrize("only", ["entropy", "biases"])
def test_muon_for_nothing_is_refused(recipe, data, only):
    with pytest.raises(UsageError, match=f"muon is on, but only is '{only}'"):
        Trainer(Recipe.load(recipe, muon=True, only=only), data, device="cpu")
