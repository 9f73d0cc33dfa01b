"""From the integers of a checkpoint back to floating point: the same predictions, in both directions, for every model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from bitstream.coder import StreamWriter
from bitstream.engines.reference import ReferenceEngine
from bitstream.errors import CheckpointError
from models import dequantise as dequantise_module
from models import quantise as quantise_module
from models.dequantise import dequantise, fit_density
from models.entropy_tensors import load_entropy
from models.layers import weight_and_bias
from models.layout import TAPS_3X3, TAPS_CAUSAL, TAPS_CHECKERBOARD
from models.quantise import calibrate, quantise
from models.swift import Swift

ENGINE = ReferenceEngine()
TRANSFORMS = ("g_a.", "g_s.", "h_a.")
VARIANTS = ("factorized", "hyperprior", "hyperprior with means", "hyperprior, imported", "joint", "joint, imported")
VARIANTS += ("checkerboard", "attention", "attention, imported", "anchor", "swift")


class Case:
    """A float network, its integers, and another network of the same transforms with all else as it begins."""

    def __init__(self, source, target, x):
        self.source, self.target = copy.deepcopy(source), target.eval()
        self.tensors = quantise(self.source, calibrate(self.source, [x] * self.source.cfg.levels))
        kept = (*TRANSFORMS, "entropy_bottleneck.")  # a density is no part of dequantise
        own = {name: value for name, value in self.source.state_dict().items() if name.startswith(kept)}
        self.target.load_state_dict(own, strict=False)


@pytest.fixture(scope="module")
def x(crops):
    """The crop that the integer layers are calibrated on."""
    return crops(900, 1, 128)


@pytest.fixture(scope="module", params=VARIANTS)
def case(request, stirred, fresh, network, x):
    """A Case of one of VARIANTS; ``target`` is already dequantised."""
    if request.param == "swift":
        with torch.random.fork_rng():
            torch.manual_seed(9)
            case = Case(network, Swift(network.cfg), x)
    else:
        case = Case(stirred(request.param), fresh(request.param), x)
    dequantise(case.target, case.tensors)
    return case


def bits(network, x, level):
    """Return the bits of y by the float networks."""
    with torch.no_grad():
        return -float(network(x, torch.tensor([float(level)]))["y_likelihoods"].log2().sum())


@pytest.mark.parametrize("level", [0, 1.5, 3])
def test_float_bits_are_those_before(case, crops, level):
    x = crops(901, 1, 128)
    assert bits(case.target, x, level) == pytest.approx(bits(case.source, x, level), rel=0.005)


def test_reconstructions_are_those_before(case, crops):
    x, level = crops(901, 1, 128), torch.tensor([3.0])
    with torch.no_grad():
        one, two = (net(x, level)["x_hat"] for net in (case.source, case.target))
    assert (one - two).square().mean() < 0.03 * (one - x).square().mean()


def test_gains_medians_and_deviations_are_the_integers(case):
    net, tensors = case.target, case.tensors
    assert torch.equal(net.log2_gain, tensors["entropy.log2_gain"] / 256)
    assert torch.equal(net.log2_std, tensors["entropy.log2_std"] / 256)
    if net.layout().hyper:
        assert torch.equal(net.log2_gain_z, tensors["entropy.log2_gain_z"] / 256)
        offsets = tensors.get("entropy.z_offset", torch.zeros(net.cfg.N))
        assert torch.equal(net.entropy_bottleneck.quantiles[:, 0, 1], offsets / 256)


def test_quantised_again_it_codes_the_same_latents_in_as_many_bytes(case, x):
    again = quantise(case.target, calibrate(case.target, [x] * case.target.cfg.levels))
    sizes = []
    for tensors in (case.tensors, again):
        entropy = load_entropy(tensors, case.source.layout())
        with torch.no_grad():
            y = case.source.g_a(x)
            z = case.source.h_a(case.source.hyper_input(y / case.source.std)) if case.source.layout().hyper else None
        writer = StreamWriter(ENGINE)
        entropy.code_latents(writer, 700, 8, 8, entropy.fix_latents(y, z, 700))
        sizes.append(sum(map(len, writer.payloads)))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01, abs=2)


@pytest.mark.parametrize("level", [0, 700])
@pytest.mark.parametrize("variant", ["hyperprior", "hyperprior with means", "hyperprior, imported"])
def test_the_float_network_chooses_the_symbols_of_coding(stirred, crops, variant, level):
    """With a dead zone, and without: but where integers round a mean or a scale otherwise."""
    x, net = crops(902, 1, 128), stirred(variant)
    entropy = load_entropy(quantise(net, calibrate(net, [x] * net.cfg.levels)), net.layout())
    with torch.no_grad():
        y = net.g_a(x)
        z = net.h_a(net.hyper_input(y / net.std))
        y_hat, _ = net.coded(x, torch.tensor([level / 256]))
    coded = entropy.code_latents(StreamWriter(ENGINE), level, 8, 8, entropy.fix_latents(y, z, level)) / 256
    assert y_hat.round().count_nonzero() > 10
    other = (coded.reshape(64, -1).T.reshape(y_hat.shape) - y_hat).abs() > 0.25
    assert other.double().mean() < 0.01


def test_transforms_stay_as_they_are(case):
    before, after = case.source.state_dict(), case.target.state_dict()
    for name in before:
        if name.startswith(TRANSFORMS):
            assert torch.equal(after[name], before[name]), name


def test_hidden_weights_have_the_size_of_an_untrained_layer(case):
    """The integers leave the scale of hidden activations open: gradients would be tiny or huge without one."""
    for name, layer in list(case.target.entropy_layers().items())[:-1]:
        weight = weight_and_bias(layer)[0].detach()
        assert 0.2 < float(weight.square().mean().sqrt()) * (3 * weight[0].numel()) ** 0.5 < 5, name


def test_it_can_be_trained_on(case, crops):
    net = copy.deepcopy(case.target).train()
    out = net(crops(902, 1, 64), torch.tensor([1.0]))
    (-out["y_likelihoods"].log2().sum() + 1e4 * out["x_hat"].square().sum()).backward()
    gradients = [
        p.grad for name, p in net.named_parameters() if not name.startswith("entropy_bottleneck.") and p.grad is not None
    ]
    assert len(gradients) > 10
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_a_layer_survives_both_directions():
    for taps, conv in (
        (TAPS_3X3, torch.nn.Conv2d(3, 4, 3)),
        (TAPS_CAUSAL, torch.nn.Conv2d(3, 4, 5)),
        (TAPS_CHECKERBOARD, torch.nn.Conv2d(3, 4, 5)),
        (TAPS_3X3, torch.nn.ConvTranspose2d(3, 4, 5, stride=2)),
    ):
        matrix, bias = quantise_module.matrix_of(conv, taps)
        other = copy.deepcopy(conv)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
            dequantise_module._set_matrix(other, taps, matrix, bias)
        again = quantise_module.matrix_of(other, taps)
        assert torch.equal(again[0], matrix)
        assert torch.allclose(again[1], bias)
        assert other.weight.count_nonzero() == (conv.weight.numel() if len(taps) == 9 else 4 * 3 * len(taps))


@pytest.mark.parametrize(
    "reshape", [lambda t: None, lambda t: t[..., :-1], lambda t: t.float()], ids=["missing", "cut", "float"]
)
def test_damaged_tensors_are_an_error(case, reshape):
    target = copy.deepcopy(case.target)
    optional = ("entropy.z_offset", ".slope")
    damaged = {name: reshape(tensor) for name, tensor in case.tensors.items() if tensor.numel() > 1}
    for name, tensor in damaged.items():
        if tensor is None and name.endswith(optional):
            continue
        tensors = {key: value for key, value in (case.tensors | {name: tensor}).items() if value is not None}
        with pytest.raises(CheckpointError, match="export it again"):
            dequantise(target, tensors)


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("factorized", {"M": 16}),
        ("hyperprior", {"N": 16}),
        ("hyperprior", {"M": 16}),
        ("hyperprior", {"levels": 2}),
        ("hyperprior", {"means": True}),
        ("joint", {"N": 16}),
        ("checkerboard", {"levels": 2}),
        ("attention", {"M": 16, "N": 16}),
        ("attention", {"mixtures": 2}),
    ],
)
def test_tensors_of_other_widths_are_an_error(stirred, fresh, x, variant, changes):
    net = stirred(variant)
    tensors = quantise(net, calibrate(net, [x]))
    with pytest.raises(CheckpointError):
        dequantise(fresh(variant, **changes), tensors)


@pytest.mark.parametrize("key", ["hyper", "features", "hidden"])
def test_hidden_widths_of_another_swift_are_an_error(network, x, key):
    tensors = quantise(network, calibrate(network, [x]))
    config = {name: getattr(network.cfg, name) for name in ("C", "D", "M", "N", "blocks_8", "blocks_16", "levels")}
    widths = {name: getattr(network.cfg, name) for name in ("hyper", "features", "hidden")} | {key: 8}
    with pytest.raises(CheckpointError):
        dequantise(Swift(type(network.cfg)(**config, **widths)), tensors)


# --- the density of z


def masses(tensors):
    """Return the probabilities (N, 255) in the CDF rows of z."""
    mass = np.diff(tensors["entropy.z_cumulative"].numpy().astype(np.float64), axis=1)
    return mass / mass.sum(axis=1, keepdims=True)


def test_fit_density_finds_the_density_of_z(stirred, fresh, x):
    source = copy.deepcopy(stirred("hyperprior"))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        bottleneck = source.entropy_bottleneck
        for parameter in (*bottleneck.matrices, *bottleneck.biases, *bottleneck.factors):
            parameter.add_(0.2 * torch.randn_like(parameter))
        bottleneck.matrices[0].add_(1.5)  # a fresh density is some ten standard deviations wide
    tensors = quantise(source, calibrate(source, [x]))
    target = fresh("hyperprior")
    before = {name: value.clone() for name, value in target.state_dict().items()}
    dequantise(target, tensors)
    p = masses(tensors)

    def divergence():
        q = masses(quantise(target, calibrate(target, [x])))
        return (p * np.log2(p / q)).sum(axis=1)

    far = divergence()
    fit_density(target, tensors)
    assert far.mean() > 0.5
    assert divergence().max() < 0.02  # bits a symbol
    assert all(parameter.grad is None for parameter in target.parameters())
    for name, value in target.state_dict().items():
        if name.startswith(TRANSFORMS):
            assert torch.equal(value, before[name]), name


def test_factorized_models_have_no_density_of_z(stirred, fresh, x):
    net, target = stirred("factorized"), fresh("factorized")
    before = copy.deepcopy(target.state_dict())
    fit_density(target, quantise(net, calibrate(net, [x])))
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_fit_density_refuses_damage(stirred, fresh, x):
    net = stirred("hyperprior")
    tensors = quantise(net, calibrate(net, [x]))
    for damaged in (None, tensors["entropy.z_cumulative"][:, :-1], tensors["entropy.z_cumulative"].flip(1)):
        changed = {k: v for k, v in (tensors | {"entropy.z_cumulative": damaged}).items() if v is not None}
        with pytest.raises(CheckpointError):
            fit_density(fresh("hyperprior"), changed, steps=1)
