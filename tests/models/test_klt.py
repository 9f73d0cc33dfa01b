"""The lapped KLT start: perfect reconstruction when nothing is left out, good energy compaction, gains for each λ."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.klt import klt_start
from models.swift import Swift, SwiftConfig

SMALL = SwiftConfig(C=24, D=32, M=32, N=8, blocks_8=1, blocks_16=1, hyper=8, features=8, hidden=8, levels=4)


def started(cfg, batches):
    torch.manual_seed(0)
    net = Swift(cfg).eval()
    klt_start(net, batches)
    return net


@torch.inference_mode()
def reconstruct(net, x):
    return net.g_s(net.g_a(x))


def test_complete_transform_reconstructs_perfectly(crops):
    full = dataclasses.replace(SMALL, C=192, D=768, M=768, blocks_8=0, blocks_16=0)
    net = started(full, [crops(1, 2)])
    x = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(0))  # not the pictures it was made from
    torch.testing.assert_close(reconstruct(net, x), x, atol=1e-4, rtol=0)


def test_truncated_transform_keeps_most_of_the_energy(crops):
    net = started(SMALL, [crops(1), crops(2)])
    x = crops(3)
    error = (reconstruct(net, x) - x).square().mean()
    assert error < 0.05 * x.var()


def test_more_channels_reconstruct_better(crops):
    x = crops(3)
    errors = []
    for m in (4, 16, 32):
        net = started(dataclasses.replace(SMALL, M=m), [crops(1), crops(2)])
        errors.append(float((reconstruct(net, x) - x).square().mean()))
    assert errors[0] > errors[1] > errors[2]


def test_log2_std_is_the_deviation_of_y(crops):
    batches = [crops(1), crops(2)]
    net = started(SMALL, batches)
    with torch.inference_mode():
        y = torch.cat([net.g_a(batch) for batch in batches])
    ratio = y.transpose(0, 1).flatten(1).std(dim=1) / net.log2_std.exp2()
    assert (ratio[:8] - 1).abs().max() < 0.05  # one step is 1/256 octave; padding changes the border positions
    assert (net.log2_std[:-1] >= net.log2_std[1:]).all()
    assert torch.equal((net.log2_std * 256).round() / 256, net.log2_std)


def test_gains_rise_with_the_level(crops):
    net = started(SMALL, [crops(1)])
    assert (net.log2_gain.diff(dim=0) > 0).all()
    lmbda = SMALL.lmbda(torch.arange(4.0))
    expected = 0.5 * torch.log2(lmbda * 255**2 / 26)  # the step of a uniform quantiser that minimises D·λ + R
    torch.testing.assert_close(net.log2_gain[:, 0], expected.float(), atol=1e-4, rtol=0)


def test_batches_may_be_a_generator(crops):
    one, two = started(SMALL, [crops(1), crops(2)]), started(SMALL, (crops(i) for i in (1, 2)))
    assert torch.equal(one.g_a.stem.weight, two.g_a.stem.weight)
    assert torch.equal(one.log2_std, two.log2_std)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_flat_pictures_give_finite_weights(value):
    net = started(SMALL, [torch.full((2, 3, 64, 64), value)])
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert torch.isfinite(net.log2_std).all()
