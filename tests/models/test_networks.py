"""The training networks of the report's models and Cheng's: shapes, likelihoods, gradients, the KLT start, causality."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pytorch_msssim import ms_ssim

from bitstream.tables import SYMBOL_MAX, gaussian_master
from models.klt import klt_start
from models.network import rate_distortion
from models.rounding import scale_indexes
from models.row_bits import bits_of_rows
from models.schedule import anchor_mask
from models.symbol_tables import has_rows

CONTEXTS = ["joint", "joint, imported", "attention", "attention, imported", "anchor"]


@pytest.fixture
def out(small_network, crops):
    """The result of ``forward`` on two crops at two levels."""
    return small_network(crops(1, 2, 128)[..., :64], torch.tensor([0.0, 2.5]))


def bits_of(out):
    """Return the estimate of all bits."""
    return -sum(out[key].log2().sum() for key in out if key.endswith("likelihoods"))


def test_forward_shapes(small_network, out):
    cfg = small_network.cfg
    assert out["x_hat"].shape == (2, 3, 128, 64)
    assert out["x_hat"].dtype == torch.float32
    assert out["y_likelihoods"].shape == (2, cfg.M, 8, 4)
    if small_network.layout().hyper:
        assert out["z_likelihoods"].shape == (2, cfg.N, 2, 1)
    else:
        assert set(out) == {"x_hat", "y_likelihoods"}


@pytest.mark.parametrize("training", [True, False])
def test_likelihoods_are_probabilities(small_network, crops, training):
    torch.manual_seed(0)
    with torch.inference_mode():
        out = copy.deepcopy(small_network).train(training)(crops(1, 2), torch.tensor([0.0, 2.5]))
    for key, value in out.items():
        if key != "x_hat":
            assert (value > 0).all()
            assert (value <= 1).all()
    assert bits_of(out) > 100


def test_training_sees_noise_and_evaluation_does_not(small_network, crops):
    x, level = crops(1, 1), torch.tensor([1.0])
    noisy = copy.deepcopy(small_network).train()
    with torch.inference_mode():
        assert torch.equal(small_network(x, level)["y_likelihoods"], small_network(x, level)["y_likelihoods"])
        assert not torch.equal(noisy(x, level)["y_likelihoods"], noisy(x, level)["y_likelihoods"])
        assert torch.equal(noisy(x, level)["x_hat"], noisy(x, level)["x_hat"])  # synthesis sees rounded y


def test_gradient_reaches_every_parameter_except_quantiles(small_network, crops):
    net = copy.deepcopy(small_network).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if not name.endswith("quantiles"):
                parameter.add_(0.02 * torch.randn_like(parameter))  # the start has zeros that stop gradients
    x = crops(1, 2, 128)
    out = net(x, torch.tensor([0.7, 2.2]))
    (bits_of(out) + 1000 * (out["x_hat"] - x).square().sum()).backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == ["entropy_bottleneck.quantiles"]
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_gradients_are_finite_at_the_start(klt_network, crops):
    net, x = copy.deepcopy(klt_network).train(), crops(1, 1)
    torch.manual_seed(0)
    out = net(x, torch.tensor([0.5]))
    (bits_of(out) + 1000 * (out["x_hat"] - x).square().sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


# --- the KLT start


def test_klt_start_is_better_than_a_random_one(variant, klt_network, fresh, crops):
    x, level = crops(5, 2), torch.full((2,), 3.0)
    with torch.inference_mode():
        klt, random = (net.eval()(x, level)["x_hat"] for net in (klt_network, fresh(variant)))
    error, other = ((x_hat - x).square().mean() for x_hat in (klt, random))
    assert error < 0.6 * x.var()
    assert error < 0.5 * other


def test_klt_start_gives_rates_that_rise_and_errors_that_fall(klt_network, crops):
    x = crops(5, 2)
    with torch.inference_mode():
        outs = [klt_network(x, torch.full((2,), float(level))) for level in range(4)]
    bits, errors = [float(bits_of(out)) for out in outs], [float((out["x_hat"] - x).square().mean()) for out in outs]
    assert bits == sorted(bits)
    assert errors[0] > errors[-1]


def test_klt_start_measures_the_deviation_of_y(klt_network, crops):
    with torch.inference_mode():
        y = klt_network.g_a(torch.cat([crops(100), crops(200)]))
    ratio = y.transpose(0, 1).flatten(1).std(dim=1) / klt_network.log2_std.exp2()
    assert (ratio - 1).abs().max() < 0.05
    assert torch.equal((klt_network.log2_std * 256).round() / 256, klt_network.log2_std)


def test_more_channels_start_better(variant, fresh, crops):
    errors, x = [], crops(5, 2)
    for n in (4, 16):
        net = fresh(variant, N=n, M=n).eval()
        klt_start(net, [crops(100), crops(200)])
        with torch.inference_mode():
            errors.append(float((net(x, torch.full((2,), 3.0))["x_hat"] - x).square().mean()))
    assert errors[0] > errors[1]


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_flat_pictures_give_finite_weights(variant, fresh, value):
    net = fresh(variant)
    klt_start(net, [torch.full((2, 3, 64, 64), value)])
    assert all(torch.isfinite(t).all() for t in net.state_dict().values() if t.is_floating_point())


# --- levels


def test_one_level_is_enough(variant, fresh, crops):
    net = fresh(variant, levels=1, lmbda_min=0.013, lmbda_max=0.013)
    klt_start(net, [crops(100)])
    out = net(crops(1, 1), torch.zeros(1))
    assert torch.isfinite(out["x_hat"]).all()
    assert torch.isfinite(bits_of(out))


def test_gains_hit_the_levels(small_network):
    levels = torch.arange(4.0)
    gain = small_network.interpolate(small_network.log2_gain, levels)
    torch.testing.assert_close(gain[:, :, 0, 0], small_network.log2_gain.exp2())
    between = small_network.interpolate(small_network.log2_gain, torch.tensor([1.5]))[0, :, 0, 0]
    torch.testing.assert_close(between, small_network.log2_gain[1:3].mean(0).exp2())


# --- contexts


def walk(network, v, features):
    """Return y_hat and all arguments of the likelihood for v at gain and std 1."""
    with torch.inference_mode():
        y_hat, arguments = network.predict(v, features, torch.ones(1, network.cfg.M, 1, 1), torch.zeros(1))
    return [y_hat, *arguments.values()]


@pytest.fixture
def latent(small_network):
    """Random (v, features) of an 8 × 8 position walk."""
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(1, small_network.cfg.N, 2, 2, generator=generator)
    with torch.inference_mode():
        return 8 * torch.randn(1, small_network.cfg.M, 8, 8, generator=generator), small_network.h_s(z)


@pytest.mark.parametrize("variant", CONTEXTS, indirect=True)
def test_a_serial_context_sees_only_what_is_before_in_raster_order(small_network, latent):
    v, features = latent
    before = walk(small_network, v, features)
    changed = v.clone()
    changed[..., 4, 3] += 30.3
    after = walk(small_network, changed, features)
    flat = [((a - b).abs().amax(dim=1)[0] > 1e-5).flatten() for a, b in zip(before, after, strict=True)]
    position = 4 * 8 + 3
    for different in flat:
        assert not different[:position].any()
    assert flat[0][position]  # y_hat itself
    assert not any(different[position] for different in flat[1:])  # its own prediction
    assert any(different[position + 1 :].any() for different in flat[1:])


@pytest.mark.parametrize("variant", ["checkerboard"], indirect=True)
def test_anchors_see_no_context_and_the_others_only_anchors(small_network, latent):
    v, features = latent
    anchors = anchor_mask(8, 8)
    before = walk(small_network, v, features)
    others_changed = walk(small_network, torch.where(anchors, v, v + 100.3), features)
    for one, two in zip(before, others_changed, strict=True):
        assert torch.equal(one[..., anchors], two[..., anchors])
    for one, two in zip(before[1:], others_changed[1:], strict=True):  # scales and means
        assert torch.equal(one, two)
    anchors_changed = walk(small_network, torch.where(anchors, v + 100.3, v), features)
    assert not torch.equal(before[1][..., ~anchors], anchors_changed[1][..., ~anchors])


@pytest.mark.parametrize("variant", ["joint", "checkerboard", "hyperprior with means"], indirect=True)
def test_every_residual_is_rounded(small_network, latent):
    y_hat, _, means = walk(small_network, *latent)
    torch.testing.assert_close(y_hat - means, (y_hat - means).round(), atol=1e-4, rtol=0)
    assert means.abs().max() > 0.1


@pytest.mark.parametrize("variant", ["attention", "anchor", "joint, imported"], indirect=True)
def test_y_itself_is_rounded(small_network, latent):
    y_hat = walk(small_network, *latent)[0]
    assert torch.equal(y_hat, latent[0].round())


@pytest.mark.parametrize("variant", ["attention", "anchor"], indirect=True)
def test_weights_of_a_mixture_add_up_to_one(small_network, latent):
    y_hat, scales, means, weights = walk(small_network, *latent)
    k, m = small_network.cfg.mixtures, small_network.cfg.M
    assert scales.shape == means.shape == weights.shape == (1, k * m, 8, 8)
    torch.testing.assert_close(weights.unflatten(1, (k, m)).sum(1), torch.ones(1, m, 8, 8))
    assert (scales > 0).all()


@pytest.fixture
def measured(crops):
    """Two pictures x of 192 × 192, and a ``forward`` result by hand: one error small, one large."""
    x = crops(5, 2, 192)
    strength = torch.tensor([0.01, 0.1])[:, None, None, None]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    masses = {"y_likelihoods": torch.full((2, 192, 12, 12), 0.5), "z_likelihoods": torch.full((2, 256, 12, 12), 0.5)}
    masses["y_likelihoods"][1] = 1.0
    return x, {"x_hat": (x + strength * noise).requires_grad_(True)} | masses


def test_the_rate_and_the_error_of_each_picture(measured):
    x, out = measured
    bpp, mse = rate_distortion(out, x)
    assert bpp.tolist() == [448 * 144 / 192**2, 256 * 144 / 192**2]
    assert mse.tolist() == pytest.approx([1e-4, 1e-2], rel=0.02)


def test_the_distortion_of_ms_ssim_is_weighted_as_compressais(measured):
    x, out = measured
    bpp, distortion = rate_distortion(out, x, tune="ms-ssim")
    assert torch.equal(bpp, rate_distortion(out, x)[0])
    for i in (0, 1):
        one = ms_ssim(out["x_hat"][i : i + 1].detach(), x[i : i + 1], data_range=1.0)
        assert float(distortion[i].detach() * 255**2) == pytest.approx(1250 * (1 - float(one)), rel=1e-3)
    assert 0 < distortion[0] < distortion[1]
    distortion.sum().backward()
    assert torch.isfinite(out["x_hat"].grad).all()
    assert (out["x_hat"].grad != 0).any()


def test_pictures_without_error_have_no_distortion(measured):
    x, out = measured
    for tune in ("psnr", "ms-ssim"):
        _, distortion = rate_distortion(out | {"x_hat": x}, x, tune)
        assert distortion.tolist() == pytest.approx([0, 0], abs=1e-7)


@torch.no_grad()
def test_without_reconstruction_the_rates_are_the_same(small_network, crops):
    x, level = crops(5), torch.zeros(4)
    whole, rates = small_network(x, level), small_network(x, level, reconstruct=False)
    assert rates["x_hat"] is x
    for name in set(whole) - {"x_hat"}:
        assert torch.equal(whole[name], rates[name])


@torch.no_grad()
def test_with_rows_the_likelihoods_are_those_of_the_symbols(small_network, crops):
    if not has_rows(small_network.layout()):
        pytest.skip("y is coded in another way")
    network = copy.deepcopy(small_network)
    x, level = crops(5), torch.zeros(4)
    y_hat, arguments = network.coded(x, level)
    mass = np.diff(gaussian_master().cumulative, axis=1)
    symbols = (y_hat - arguments.get("means", 0.0)).round().long().numpy()
    rows = scale_indexes(arguments["scales"]).numpy()
    expected = -np.log2(mass[rows, symbols + SYMBOL_MAX] / mass[rows].sum(-1)).sum()
    plain = -float(network(x, level)["y_likelihoods"].log2().sum())
    network.rows = bits_of_rows(gaussian_master())
    got = -float(network(x, level)["y_likelihoods"].log2().sum())
    assert got == pytest.approx(expected, rel=5e-3)  # between two scale indexes, not at the nearer one
    assert got == pytest.approx(plain, rel=2e-2)
    torch.manual_seed(0)
    assert torch.isfinite(network.train()(x, level)["y_likelihoods"]).all()


def test_with_rows_y_learns_what_a_symbol_more_would_cost(small_network):
    if not has_rows(small_network.layout()):
        pytest.skip("y is coded in another way")
    network = copy.deepcopy(small_network).train()
    network.rows = bits_of_rows(gaussian_master())
    v, scale = torch.tensor([0.2, -3.6, 1.7]).reshape(1, 3, 1, 1), torch.full((1, 3, 1, 1), 1.5)
    v.requires_grad_()
    torch.manual_seed(0)
    gradients = []
    for _ in range(400):
        y_hat = v.detach().round()
        likelihoods = network._y_likelihoods(v, y_hat, {"scales": scale})
        (gradient,) = torch.autograd.grad(-likelihoods.log2().sum(), v)
        gradients.append(gradient.flatten())
    cost = bits_of_rows(gaussian_master())[scale_indexes(scale).flatten()[0]]
    step = cost[1:] - cost[:-1]  # of the magnitudes: 0 → 1, 1 → 2, …
    # With noise in ±0.5, 0.2 is in −0.3 … 0.7, −3.6 in −4.1 … −3.1, 1.7 in 1.2 … 2.2: shares of the steps that they are on.
    expected = torch.stack([0.7 * step[0] - 0.3 * step[0], -0.9 * step[3] - 0.1 * step[4], 0.8 * step[1] + 0.2 * step[2]])
    assert torch.stack(gradients).mean(0).tolist() == pytest.approx(expected.tolist(), rel=0.15)
