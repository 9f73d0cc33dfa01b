"""Choosing the constants of y anew changes nothing of what a network computes."""

from __future__ import annotations

import copy

import pytest
import torch

from models.normalise import CONTEXT_REACH, choose_constants


@pytest.fixture
def folded(small_network, crops):
    """The small network as it is, and a copy with constants chosen from crops."""
    off = copy.deepcopy(small_network)
    copied = copy.deepcopy(off)
    choose_constants(copied, [crops(1), crops(2)])
    return off, copied


@torch.no_grad()
def test_the_network_computes_what_it_did(folded, crops):
    before, after = folded
    x = crops(3)
    for level in (0.0, 1.5, 3.0):
        a, b = (net(x, torch.full((len(x),), level)) for net in (before, after))
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=2e-3, atol=2e-4, msg=name)


@torch.no_grad()
def test_the_context_sees_nearly_all_of_y(folded, crops):
    _, net = folded
    if not net.layout().hyper:
        pytest.skip("has no constants that a context sees")
    for level in range(net.cfg.levels):
        gain = 1.0 if net.log2_gain_context is None else net.log2_gain_context[level].exp2()[:, None, None]
        unseen = (net.g_a(crops(1)) / net.std * gain).abs() > CONTEXT_REACH * 1.001
        assert unseen.float().mean() < 1e-3
    assert torch.equal((net.log2_std * 256).round(), net.log2_std * 256)


@torch.no_grad()
def test_what_is_folded_twice_stays_as_it_is(folded, crops):
    _, net = folded
    again = copy.deepcopy(net)
    choose_constants(again, [crops(1), crops(2)])
    torch.testing.assert_close(again.log2_std, net.log2_std)


@torch.no_grad()
def test_constants_that_are_off_are_mended(small_network, crops):
    if not small_network.layout().hyper:
        pytest.skip("has no constants that a context sees")
    net = copy.deepcopy(small_network)
    choose_constants(net, [crops(1), crops(2)])
    chosen = net.log2_std.clone()
    net.log2_std.sub_(3.0)
    choose_constants(net, [crops(1), crops(2)])
    torch.testing.assert_close(net.log2_std, chosen)
