"""From float entropy networks to integer layers: close to the float walk, complete, and refused when a part is missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressai.layers import CheckerboardMaskedConv2d, MaskedConv2d
from torch import nn

from bitstream.coder import StreamReader, StreamWriter
from bitstream.engines.reference import ReferenceEngine
from bitstream.errors import CheckpointError
from bitstream.tables import SCALE_MAX, SCALE_MIN
from models import quantise as quantise_module
from models.entropy import Scale
from models.entropy_tensors import layer_names, load_entropy
from models.integer import ACT_MAX, SIGNED_MAX, IntegerLayer, Plane, exact_arithmetic, pixel_shuffle
from models.latents import InverseGain
from models.layers import LevelBias
from models.layout import POINT, TAPS_3X3, TAPS_CAUSAL, TAPS_CHECKERBOARD
from models.normalise import usual_peaks
from models.quantise import LEAKY_SLOPE, calibrate, quantise, z_master
from models.schedule import Cell
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
def entropy(network, tensors):
    """The integer entropy model of the tiny network."""
    return load_entropy(tensors, network.layout())


def float_walk(network, x, level):
    """Return y, z (float) and the features, means and scales of the anchors (positions, channels) by the float networks."""
    with torch.inference_mode():
        gain, gain_z = network.gains(torch.tensor([float(level)]))
        std = network.log2_std.exp2()[:, None, None]
        y = network.g_a(x)
        z = network.h_a(y / std)
        features = network.h_s((z * gain_z).round() / gain_z)
        means, scales = network.means_scales(features, torch.zeros_like(features), gain * std, torch.tensor([float(level)]))
    rows = [t[0].permute(1, 2, 0).flatten(0, 1) for t in (features, means, scales)]
    return y, z, *rows, (gain * std)[0, :, 0, 0]


@pytest.mark.parametrize("level", [0, 1, 3])
def test_integer_means_and_scales_are_close_to_the_float_ones(network, entropy, x, level):
    y, z, features, means, scales, unit = float_walk(network, x, level)
    log2_gain, log2_gain_z = entropy.gains(256 * level), entropy.gains_z(256 * level)
    latents = entropy.fix_latents(y, z, 256 * level)
    fixed = entropy._features(latents.z.reshape(2, 2, -1), log2_gain_z, exact_arithmetic())
    step = calibrate(network, [x])["hyper_2"] / ACT_MAX
    fixed = fixed.reshape(64, -1)
    assert (fixed * step - features).norm() / features.norm() < 0.01
    predictions = entropy._inputs(fixed, None, Cell(torch.arange(64)), entropy._layers_at(256 * level), exact_arithmetic())
    fixed_means, index = entropy._means_rows(predictions, Scale.of(log2_gain + entropy.log2_std, torch.zeros_like(log2_gain)))
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
    assert list(entropy.layers) == layer_names(entropy.layout)
    for name, layer in entropy.layers.items():
        assert torch.equal(layer.weight, tensors[f"entropy.{name}.weight"])
        assert torch.equal(layer.bias, tensors[f"entropy.{name}.bias"].long())
    assert entropy.max_level == 768


def test_weights_use_their_bits(network, tensors):
    limit = 2 ** (quantise_module.WEIGHT_BITS - 1) - 1
    for name in layer_names(network.layout()):
        weight = tensors[f"entropy.{name}.weight"].long()
        assert (weight.abs().amax(0) == limit).all()  # each output channel has a scale of its own


def test_calibration_keeps_the_largest_peak(network, crops):
    small, large = calibrate(network, [crops(1)]), calibrate(network, [crops(1), crops(1) * 0 + 1])
    assert set(small) == {"z", "hyper_1", "hyper_2", "context", "parameters_1", "parameters_2"}
    assert all((large[name] >= small[name]).all() for name in small)


def test_a_batch_that_is_louder_than_the_others_sets_no_step():
    quiet, loud = torch.rand(8, generator=torch.Generator().manual_seed(0)), torch.full((8,), 100.0)
    assert torch.equal(usual_peaks([quiet] * 19 + [loud]), quiet)
    assert torch.equal(usual_peaks([quiet, loud]), loud)  # of two, which is usual?


@pytest.mark.parametrize("name", ["log2_gain", "log2_std", "log2_act_z", "z_cumulative", "hyper_1.weight", "context.act_max"])
def test_a_missing_tensor_is_an_error(network, tensors, name):
    part = {key: value for key, value in tensors.items() if key != f"entropy.{name}"}
    with pytest.raises(CheckpointError, match=f"{name}.*is missing"):
        load_entropy(part, network.layout())


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
    entropy = load_entropy(quantise(net, calibrate(net, [crops(1)])), net.layout())
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
    layer = quantise_module._layer(conv, POINT, torch.full((4,), 0.01), step, -limit, limit, ACT_MAX)
    assert layer(torch.zeros(1, 4, dtype=torch.int16), "float32").tolist() == [[512, -256]]


# --- every model


@pytest.fixture(scope="module")
def integers(small_network, x):
    """The integer tensors of a small network, calibrated on the crop that is then coded."""
    return quantise(small_network, calibrate(small_network, [x] * small_network.cfg.levels))


@pytest.fixture
def integer_entropy(small_network, integers):
    """The integer entropy model of a small network."""
    return load_entropy(integers, small_network.layout())


def latents_of(network, entropy, x, level):
    """Return the integer latents of a crop at a level in 1/256."""
    with torch.inference_mode():
        y = network.g_a(x)
        z = network.h_a(network.hyper_input(y / network.std)) if network.layout().hyper else None
    return entropy.fix_latents(y, z, level)


@pytest.mark.parametrize("level", [0, 3])
def test_real_bits_of_every_model_are_close_to_the_estimate(small_network, integer_entropy, x, level):
    """The float networks estimate; streams cost some bytes; tiny streams and weights of 8 bits cost the rest."""
    writer = StreamWriter(ENGINE)
    latents = latents_of(small_network, integer_entropy, x, 256 * level)
    y_hat = integer_entropy.code_latents(writer, 256 * level, 8, 8, latents)
    with torch.inference_mode():
        out = small_network(x, torch.tensor([float(level)]))
    estimate = -sum(float(out[key].log2().sum()) for key in out if key.endswith("likelihoods"))
    real = 8 * sum(map(len, writer.payloads))
    assert abs(real / estimate - 1) < 0.05
    reader = StreamReader(ENGINE, writer.payloads)
    assert torch.equal(integer_entropy.code_latents(reader, 256 * level, 8, 8, None), y_hat)


@pytest.mark.parametrize("level", [0, 3])
def test_synthesis_of_every_integer_walk_is_close_to_forward(small_network, integer_entropy, x, level):
    latents = latents_of(small_network, integer_entropy, x, 256 * level)
    y_hat = integer_entropy.code_latents(StreamWriter(ENGINE), 256 * level, 8, 8, latents)
    with torch.inference_mode():
        seen = integer_entropy.float_latents(y_hat, 256 * level)
        if (cfg := small_network.cfg).inverse_gain:
            seen = InverseGain(small_network.state_dict(), cfg.levels, integer_entropy.log2_std)(seen, 256 * level)
        fixed = small_network.g_s(seen)
        out = small_network(x, torch.tensor([float(level)]))["x_hat"]
    assert (fixed - out).square().mean() < 0.25 * (out - x).square().mean()


def test_layers_of_every_model_are_those_of_its_layout(small_network, integers):
    names = layer_names(small_network.layout())
    assert list(small_network.entropy_layers()) == names
    assert {name.split(".")[1] for name in integers if name.endswith(".weight")} == set(names)


def test_every_missing_tensor_is_an_error(small_network, integers):
    optional = {"entropy.z_offset"} | {name for name in integers if name.endswith(".slope")}
    for name in set(integers) - optional:
        with pytest.raises(CheckpointError, match="is missing"):
            load_entropy({key: value for key, value in integers.items() if key != name}, small_network.layout())


def test_every_tensor_of_another_shape_is_an_error(small_network, integers):
    for name, tensor in integers.items():
        if tensor.numel() > 1 and tensor.dim():
            with pytest.raises(CheckpointError, match="export it again"):
                load_entropy(integers | {name: tensor[..., :-1]}, small_network.layout())


# --- convolutions as matrices


@pytest.mark.parametrize(("c", "o", "h", "w"), [(1, 1, 1, 1), (3, 5, 4, 6), (8, 2, 5, 3)])
def test_a_transposed_convolution_equals_torchs_on_integers(c, o, h, w):
    generator = torch.Generator().manual_seed(0)
    conv = nn.ConvTranspose2d(c, o, 5, stride=2, padding=2, output_padding=1).double()
    with torch.no_grad():
        conv.weight.copy_(torch.randint(-127, 128, conv.weight.shape, generator=generator))
        conv.bias.copy_(torch.randint(-1000, 1000, conv.bias.shape, generator=generator))
    matrix, bias = quantise_module.matrix_of(conv, TAPS_3X3)
    big = torch.full((4 * o,), 2**40)
    layer = IntegerLayer(matrix.to(torch.int8), bias.long(), torch.full((4 * o,), 2**32), -big, big, ACT_MAX)
    x = torch.randint(0, 256, (h, w, c), generator=generator)
    rows = Plane.of(x.to(torch.int16), 1).apply(layer, TAPS_3X3, torch.arange(h * w), exact_arithmetic(), torch.int64)
    with torch.inference_mode():
        expected = conv(x.permute(2, 0, 1)[None].double())[0].permute(1, 2, 0).long()
    assert expected.shape == (2 * h, 2 * w, o)
    assert torch.equal(pixel_shuffle(rows, h, w, 2), expected)


@pytest.mark.parametrize("taps", [TAPS_3X3, TAPS_CAUSAL, TAPS_CHECKERBOARD], ids=["3x3", "causal", "checkerboard"])
def test_a_convolution_equals_torchs_on_integers(taps):
    generator = torch.Generator().manual_seed(1)
    kernels = {id(TAPS_3X3): nn.Conv2d, id(TAPS_CAUSAL): MaskedConv2d, id(TAPS_CHECKERBOARD): CheckerboardMaskedConv2d}
    side = 3 if taps is TAPS_3X3 else 5
    conv = kernels[id(taps)](3, 4, side, padding=side // 2).double()
    with torch.no_grad():
        conv.weight.copy_(torch.randint(-127, 128, conv.weight.shape, generator=generator))
        conv.bias.copy_(torch.randint(-1000, 1000, conv.bias.shape, generator=generator))
    x = torch.randint(-127, 128, (5, 6, 3), generator=generator)
    with torch.inference_mode():
        expected = conv(x.permute(2, 0, 1)[None].double())[0].permute(1, 2, 0).reshape(30, 4).long()  # masks the weight too
    matrix, bias = quantise_module.matrix_of(conv, taps)
    gathered = Plane.of(x.to(torch.int16), side // 2).gather(taps, torch.arange(30))
    assert torch.equal(gathered.long() @ matrix.long() + bias.long(), expected)


def test_a_leaky_layer_follows_leaky_relu():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 8, 1)
    step_in, step_out = torch.full((16,), 0.02), torch.full((8,), 0.02)
    limit = torch.tensor([SIGNED_MAX])
    layer = quantise_module._layer(conv, POINT, step_in, step_out, -limit, limit, SIGNED_MAX, slope=LEAKY_SLOPE)
    a = torch.randint(-127, 128, (50, 16))
    with torch.inference_mode():
        raw = conv((a * 0.02).T.reshape(1, 16, 50, 1))[0, :, :, 0].T / 0.02
    expected = torch.nn.functional.leaky_relu(raw).clamp(-SIGNED_MAX, SIGNED_MAX)
    out = layer(a.to(torch.int16), "float32")
    assert (out - expected).abs().max() < 2
    assert (out[raw < -100] >= -2).all()
    assert (raw < -100).any()


def test_predictions_of_compressai_are_put_into_our_order():
    """(scales, means) → (means, scales), and (scales, means, weights) → (weights, means, scales), in blocks of M."""
    conv = nn.Conv2d(1, 6, 1)
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.copy_(torch.arange(6.0))
    limit = torch.full((1,), 2**20)
    for blocks, order in ((1, [0, 1, 2, 3, 4, 5]), (2, [3, 4, 5, 0, 1, 2]), (3, [4, 5, 2, 3, 0, 1])):
        layer = quantise_module._layer(conv, POINT, torch.ones(1), torch.ones(6), -limit, limit, ACT_MAX, blocks=blocks)
        assert layer(torch.zeros(1, 1, dtype=torch.int16), "float32").tolist() == [order]


@pytest.mark.parametrize("blocks", [1, 2])
def test_biases_of_levels_keep_their_size_and_place_without_weights(blocks):
    layer = LevelBias(torch.nn.Conv2d(3, 4, 1), 2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.table[1] = torch.tensor([3.0, 0.0, -2.0, 1.0])
    unit, limit = torch.full((4,), 1 / 256), torch.tensor([2**20])
    integer = quantise_module._layer(layer, POINT, torch.ones(3), unit, -limit, limit, SIGNED_MAX, blocks=blocks)
    out = integer.at(integer.level_bias[1])(torch.zeros(1, 3, dtype=torch.int16), "float32")
    expected = torch.tensor([768, 0, -512, 256])
    assert (out[0] - (expected if blocks == 1 else expected.roll(2))).abs().max() <= 1
