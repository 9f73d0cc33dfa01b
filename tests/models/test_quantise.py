"""From float entropy networks to integer layers: close to the float walk, complete, and refused when a part is missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bitstream.coder import StreamReader, StreamWriter
from bitstream.engines.reference import ReferenceEngine
from bitstream.errors import CheckpointError
from bitstream.tables import SCALE_MAX, SCALE_MIN
from models import quantise as quantise_module
from models.integer import ACT_MAX, exact_arithmetic
from models.quantise import LAYERS, calibrate, load_entropy, quantise, z_master
from models.swift import Swift, SwiftConfig

ENGINE = ReferenceEngine()


@pytest.fixture(scope="module")
def x(crops):
    """One crop, also the one that the integer layers are calibrated on."""
    return crops(900, 1, 128)


@pytest.fixture(scope="module")
def tensors(network, x):
    """The integer tensors of the tiny network."""
    return quantise(network, calibrate(network, [x] * network.cfg.levels))


@pytest.fixture
def entropy(tensors):
    """The integer entropy model of the tiny network."""
    return load_entropy(tensors)


def float_walk(network, x, level):
    """Return y, z (float) and the features, means and scales of the anchors (positions, channels) by the float networks."""
    with torch.inference_mode():
        gain, gain_z = network.gains(torch.tensor([float(level)]))
        std = network.log2_std.exp2()[:, None, None]
        y = network.g_a(x)
        z = network.h_a(y / std)
        features = network.h_s((z * gain_z).round() / gain_z)
        means, scales = network.means_scales(features, torch.zeros_like(features), gain * std)
    rows = [t[0].permute(1, 2, 0).flatten(0, 1) for t in (features, means, scales)]
    return y, z, *rows, (gain * std)[0, :, 0, 0]


@pytest.mark.parametrize("level", [0, 1, 3])
def test_integer_means_and_scales_are_close_to_the_float_ones(network, entropy, x, level):
    y, z, features, means, scales, unit = float_walk(network, x, level)
    log2_gain, log2_gain_z = entropy.gains(256 * level)
    latents = entropy.fix_latents(y, z, 256 * level)
    fixed = entropy._features(latents.z.reshape(2, 2, -1), log2_gain_z, 8, 8, exact_arithmetic())
    step = calibrate(network, [x])["hyper_2"] / ACT_MAX
    fixed = fixed.reshape(64, -1)
    assert (fixed * step - features).norm() / features.norm() < 0.01
    inputs = torch.cat([fixed, torch.zeros_like(fixed)], dim=1)
    fixed_means, index = entropy._means_rows(inputs.reshape(64, -1), log2_gain + entropy.log2_std, exact_arithmetic())
    assert ((fixed_means / 256 - means).abs() / unit).max() < 0.04  # in standard deviations, of means up to 0.35
    assert ((fixed_means / 256 - means).abs() / unit).mean() < 0.02 * (means.abs() / unit).mean() + 1 / 256
    log2_index = np.log2(SCALE_MIN) + index.reshape(64, -1) * np.log2(SCALE_MAX / SCALE_MIN) / 63
    error = torch.from_numpy(log2_index) - scales.clamp(SCALE_MIN, SCALE_MAX).log2()
    assert error.abs().max() < 0.13  # half a step of the 64 scales is 0.089


@pytest.mark.parametrize("level", [0, 2, 3])
def test_real_bits_are_close_to_the_estimate(network, entropy, x, level):
    y, z, *_ = float_walk(network, x, level)
    writer = StreamWriter(ENGINE)
    entropy.code_latents(writer, 256 * level, 8, 8, entropy.fix_latents(y, z, 256 * level))
    with torch.inference_mode():
        out = network(x, torch.tensor([float(level)]))
    estimate = -sum(float(out[key].log2().sum()) for key in ("y_likelihoods", "z_likelihoods"))
    assert abs(8 * sum(map(len, writer.payloads)) / estimate - 1) < 0.08


def test_synthesis_of_the_integer_walk_is_close_to_forward(network, entropy, x):
    y, z, *_ = float_walk(network, x, 3)
    y_hat = entropy.code_latents(StreamWriter(ENGINE), 768, 8, 8, entropy.fix_latents(y, z, 768))
    with torch.inference_mode():
        fixed = network.g_s(entropy.float_latents(y_hat, 768))
        out = network(x, torch.tensor([3.0]))["x_hat"]
    assert (fixed - out).square().mean() < 0.25 * (out - x).square().mean()


def test_tensors_survive_the_round_trip_through_load(entropy, tensors):
    for name in LAYERS:
        layer = getattr(entropy, name)
        assert torch.equal(layer.weight, tensors[f"entropy.{name}.weight"])
        assert torch.equal(layer.bias, tensors[f"entropy.{name}.bias"].long())
    assert entropy.max_level == 768


def test_weights_use_their_bits(tensors):
    limit = 2 ** (quantise_module.WEIGHT_BITS - 1) - 1
    for name in LAYERS:
        weight = tensors[f"entropy.{name}.weight"].long()
        assert (weight.abs().amax(0) == limit).all()  # each output channel has a scale of its own


def test_calibration_keeps_the_largest_peak(network, crops):
    small, large = calibrate(network, [crops(1)]), calibrate(network, [crops(1), crops(1) * 0 + 1])
    assert set(small) == {"z", "hyper_1", "hyper_2", "context", "parameters_1"}
    assert all((large[name] >= small[name]).all() for name in small)


@pytest.mark.parametrize("name", ["log2_gain", "log2_std", "log2_act_z", "z_cumulative", "hyper_1.weight", "context.act_max"])
def test_a_missing_tensor_is_an_error(tensors, name):
    part = {key: value for key, value in tensors.items() if key != f"entropy.{name}"}
    with pytest.raises(CheckpointError, match=f"{name}.*is missing"):
        load_entropy(part)


def test_z_master_rows_rise_and_follow_the_bottleneck(network):
    table = z_master(network)
    assert (table.lo, table.hi) == (-127, 127)
    assert table.cumulative.shape == (network.cfg.N, 256)
    assert (np.diff(table.cumulative, axis=1) > 0).all()
    likelihood = network.entropy_bottleneck._likelihood(torch.zeros(network.cfg.N, 1, 1))[0].detach().reshape(-1)
    mass = (table.cumulative[:, 128] - table.cumulative[:, 127]) / 2**30
    np.testing.assert_allclose(mass, likelihood.numpy(), atol=1e-6)


def test_an_untrained_network_can_be_quantised_and_codes(crops):
    torch.manual_seed(0)
    config = SwiftConfig(C=8, D=8, M=8, N=8, blocks_8=0, blocks_16=0, hyper=8, features=8, hidden=8, levels=1)
    net = Swift(config).eval()
    entropy = load_entropy(quantise(net, calibrate(net, [crops(1)])))
    assert entropy.max_level == 0
    with torch.inference_mode():
        y = net.g_a(crops(1, 1))
        latents = entropy.fix_latents(y, net.h_a(y), 0)
    writer = StreamWriter(ENGINE)
    y_hat = entropy.code_latents(writer, 0, 4, 4, latents)
    assert torch.equal(entropy.code_latents(StreamReader(ENGINE, writer.payloads), 0, 4, 4, None), y_hat)


def test_a_channel_without_weights_keeps_its_bias():
    conv = nn.Conv2d(4, 2, 1)
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.copy_(torch.tensor([0.5, -0.25]))
    limit = torch.full((1,), 2**20)
    step = torch.full((2,), 1 / 1024)
    layer = quantise_module._layer(conv, [(0, 0)], torch.full((4,), 0.01), step, -limit, limit, ACT_MAX)
    assert layer(torch.zeros(1, 4, dtype=torch.int16), "float32").tolist() == [[512, -256]]
