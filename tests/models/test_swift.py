"""The training network: shapes, likelihoods, gradients, the checkerboard's order, rate levels."""

from __future__ import annotations

import copy

import pytest
import torch

from models.schedule import anchor_mask
from models.swift import Swift, SwiftConfig


@pytest.fixture
def out(network, crops):
    """The result of ``forward`` on two crops at two levels."""
    torch.manual_seed(0)
    return network(crops(1, 2, 128)[..., :64], torch.tensor([0.0, 2.5]))


def test_forward_shapes(network, out):
    cfg = network.cfg
    assert out["x_hat"].shape == (2, 3, 128, 64)
    assert out["y_likelihoods"].shape == (2, cfg.M, 8, 4)
    assert out["z_likelihoods"].shape == (2, cfg.N, 2, 1)


def test_likelihoods_are_probabilities(out):
    for key in ("y_likelihoods", "z_likelihoods"):
        assert (out[key] > 0).all()
        assert (out[key] <= 1).all()


def test_x_hat_resembles_x(network, crops):
    x = crops(1, 2)
    with torch.inference_mode():
        low, high = (network(x, torch.full((2,), level))["x_hat"] for level in (0.0, 3.0))
    errors = [float((x_hat - x).square().mean()) for x_hat in (low, high)]
    assert errors[1] < errors[0] < 0.5 * float(x.var())


def test_gradient_reaches_every_parameter_except_quantiles(network, crops):
    net = copy.deepcopy(network).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if not name.endswith("quantiles"):
                parameter.add_(0.02 * torch.randn_like(parameter))  # the start has zeros that stop gradients
    x = crops(1, 2, 128)
    out = net(x, torch.tensor([0.7, 2.2]))
    bits = -out["y_likelihoods"].log2().sum() - out["z_likelihoods"].log2().sum()
    (bits + 1000 * (out["x_hat"] - x).square().sum()).backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == ["entropy_bottleneck.quantiles"]


def test_gradients_are_finite_at_the_start(crops):
    torch.manual_seed(0)
    net = Swift(SwiftConfig(C=8, D=8, M=8, N=8, blocks_8=1, blocks_16=1, hyper=8, features=8, hidden=8, levels=2))
    out = net(crops(1, 1), torch.tensor([0.5]))
    (out["x_hat"].square().sum() - out["y_likelihoods"].log2().sum() - out["z_likelihoods"].log2().sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def walk(network, v, features):
    """Return y_hat, means and scales of the network's own prediction of v at gain and std 1."""
    with torch.inference_mode():
        y_hat, arguments = network.predict(v, features, torch.ones(1, network.cfg.M, 1, 1), torch.zeros(1))
    return y_hat, arguments["means"], arguments["scales"]


@pytest.fixture
def latent(network):
    """Random (v, features) of an 8 × 8 position walk."""
    generator = torch.Generator().manual_seed(4)
    cfg = network.cfg
    v = 8 * torch.randn(1, cfg.M, 8, 8, generator=generator)
    return v, torch.rand(1, cfg.features, 8, 8, generator=generator)


def test_anchors_never_see_context(network, latent):
    v, features = latent
    anchors = anchor_mask(8, 8)
    before = walk(network, v, features)
    after = walk(network, torch.where(anchors, v, v + 100.3), features)
    for one, two in zip(before, after, strict=True):  # y_hat, means, scales
        assert torch.equal(one[..., anchors], two[..., anchors])


def test_every_residual_is_rounded(network, latent):
    y_hat, means, _ = walk(network, *latent)
    torch.testing.assert_close(y_hat - means, (y_hat - means).round(), atol=1e-4, rtol=0)
    assert (y_hat - latent[0]).abs().max() > 0.1


def test_others_see_the_anchors_and_not_each_other(network, latent):
    v, features = latent
    anchors = anchor_mask(8, 8)
    _, means, _ = walk(network, v, features)
    _, unlike_means, _ = walk(network, torch.where(anchors, v + 100.3, v), features)
    assert not torch.equal(means[..., ~anchors], unlike_means[..., ~anchors])
    _, same_means, _ = walk(network, torch.where(anchors, v, v + 100.3), features)
    assert torch.equal(means, same_means)


def test_gains_hit_the_levels_and_lie_between(network):
    levels = torch.arange(4.0)
    gain, gain_z = network.gains(levels)
    torch.testing.assert_close(gain[:, :, 0, 0], network.log2_gain.exp2())
    torch.testing.assert_close(gain_z[:, :, 0, 0], network.log2_gain_z.exp2())
    between = torch.cat([network.gains(torch.tensor([1 + i / 16]))[0] for i in range(17)])[:, :, 0, 0]
    direction = torch.sign(between[-1] - between[0])
    assert (between.diff(dim=0) * direction >= 0).all()


def test_lmbda_spans_the_levels():
    cfg = SwiftConfig(levels=8)
    torch.testing.assert_close(cfg.lmbda(torch.tensor([0.0, 7.0])), torch.tensor([cfg.lmbda_min, cfg.lmbda_max]))
    assert cfg.lmbda(torch.tensor(3.5)).item() == pytest.approx(cfg.lmbda_mid, rel=1e-5)


def test_one_level_is_enough(crops):
    torch.manual_seed(0)
    net = Swift(SwiftConfig(C=8, D=8, M=8, N=8, blocks_8=0, blocks_16=0, hyper=8, features=8, hidden=8, levels=1))
    assert torch.isfinite(net(crops(1, 1), torch.zeros(1))["x_hat"]).all()


def test_blocks_start_as_the_identity(crops):
    torch.manual_seed(0)
    net = Swift(SwiftConfig(C=8, D=8, M=8, N=8, blocks_8=2, blocks_16=2, hyper=8, features=8, hidden=8, levels=2))
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(net.g_a.blocks_8(x), x)
    assert torch.equal(net.g_s.blocks_16(x), x)
