"""The constant per channel that the entropy networks see y divided by, chosen from pictures and folded into the weights.

A start sets it to the standard deviation of y (``models.klt``). Training moves y away from that, and CompressAI's weights have
no such constant; but the context sees at most ``CONTEXT_REACH`` times it in integers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from models.entropy import CONTEXT_BITS
from models.integer import SIGNED_MAX
from models.layers import level_table, weight_and_bias
from models.network import Network

CONTEXT_REACH = SIGNED_MAX / 2**CONTEXT_BITS  # constants that a context sees
USUAL = 0.9  # of the batches: what only a rare one reaches is clamped, or all others would be coarse (docs/training.md, 27)
UNITS = 256  # of an octave: what a checkpoint stores


@torch.no_grad()
def choose_constants(network: Network, batches: Iterable[Tensor]) -> None:
    """Choose the constants of a network with z so that the context sees nearly all of y, from crops (B, 3, H, W).

    The networks change with them and compute what they did.
    """
    layout = network.layout()
    if not layout.hyper:
        return
    peaks = usual_peaks([peaks_of(network.g_a(x)) for x in batches])
    if network.log2_gain_context is not None:
        peaks *= network.log2_gain_context.amax(0).exp2()
    log2_std = ((peaks / CONTEXT_REACH).clamp(min=2.0**-6, max=2.0**8).log2() * UNITS).ceil() / UNITS
    growth = log2_std - network.log2_std
    network.log2_std.copy_(log2_std)
    if network.level_bias_s is not None:
        network.level_bias_s.mul_((-growth).exp2())
    layers = network.entropy_layers()
    _scale_inputs(network.h_a[0], growth.exp2())
    if "context" in layers:
        _scale_inputs(layers["context"], growth.exp2())
    last = list(layers.values())[-1]
    weight, bias = weight_and_bias(last)
    scales, means = (["scale"] * max(layout.mixtures, 1), ["mean"] * max(layout.mixtures, 1) * layout.means)
    kinds = scales + means if layout.scales_first else means + scales  # what is left are weights of mixtures
    for number, kind in enumerate(kinds):
        part = slice(number * len(growth), (number + 1) * len(growth))
        if kind == "scale" and not layout.linear:
            bias[part].sub_(growth)
            continue
        weight[part].mul_((-growth).exp2()[:, None, None, None])
        bias[part].mul_((-growth).exp2())
        if (table := level_table(last)) is not None:
            table[:, part].mul_((-growth).exp2())


def peaks_of(x: Tensor) -> Tensor:
    """Return the largest magnitudes of a batch (B, C, H, W) by channel (C,), but for one in 10 000."""
    return x.abs().transpose(0, 1).flatten(1).quantile(0.9999, dim=1)


def usual_peaks(peaks: list[Tensor]) -> Tensor:
    """Return what ``USUAL`` of the batches stay within, by channel, of the peaks of each batch: of ten or fewer, all."""
    return torch.stack(peaks).quantile(USUAL, dim=0, interpolation="higher")


def _scale_inputs(layer: nn.Module, factor: Tensor) -> None:
    weight, _ = weight_and_bias(layer)
    weight.mul_(factor[:, None, None])
