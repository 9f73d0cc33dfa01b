"""Start a network as a Karhunen–Loève transform of the training pictures, with RD-optimal gains.

A network that starts as a good linear codec spends its training on what a linear codec cannot do.

``swift``: the analysis becomes lapped filter → KLT of 8×8×3 blocks → KLT of 2×2 neighbouring coefficient vectors; the
synthesis its transpose; every residual block starts as the identity (see ``swift._blocks``).
The strided convolutions of Ballé's transforms: each becomes the KLT of 2×2 neighbouring vectors of what it sees, the synthesis
its transpose; signals are kept so small that GDN starts near the identity.
The residual blocks of Cheng's transforms: the same with half of the channels, since a linear signal passes a leaky ReLU as
the difference of itself and its negative; blocks without stride and attention start near the identity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from compressai.layers import GDN, AttentionBlock, ResidualBlockUpsample, ResidualBlockWithStride
from torch import Tensor, nn

from bitstream.errors import UsageError
from models.layers import BLOCK, Float32, weight_and_bias
from models.network import Network, zero_start
from models.swift import Swift

SMALL = 0.5  # the first layer's factor: with γ = 0.1, GDN then bends its largest inputs by a few percent


def _eigenvectors(samples: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean (K,), the leading eigenvectors (keep, K) and their variances (keep,) of samples (n, K)."""
    mean = samples.mean(0)
    centred = samples - mean
    covariance = centred.T @ centred / len(samples)
    variance, vectors = torch.linalg.eigh(covariance)
    return mean, vectors.flip(1).T[:keep], variance.flip(0)[:keep]


def _set(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    own_weight, own_bias = weight_and_bias(layer)
    own_weight.copy_(weight)
    own_bias.copy_(bias)


def check_klt_start(model: Network) -> None:
    """Raise UsageError if a ``swift`` has more channels than the KLT of what comes before has vectors."""
    cfg = model.cfg
    if isinstance(model, Swift) and not (cfg.C <= 3 * BLOCK**2 and cfg.D <= 4 * cfg.C and cfg.M <= cfg.D):
        raise UsageError(
            f"C, D and M are {cfg.C}, {cfg.D} and {cfg.M}; "
            f"the KLT start takes C up to {3 * BLOCK**2}, D up to 4·C and M up to D: "
            "choose others, or set klt_start = false in the recipe"
        )


@torch.no_grad()
def klt_start(model: Network, batches: Iterable[Tensor]) -> None:
    """Set the linear layers and gains of a fresh model from (B, 3, H, W) batches of training crops in [0, 1]."""
    if isinstance(model, Swift):
        variance = _start_lapped(model, list(batches))
    elif isinstance(model.g_a[1], GDN):
        variance = _start_strided(model, torch.cat([batch.float() for batch in batches]))
    else:
        variance = _start_residual(model, torch.cat([batch.float() for batch in batches]))
    set_gains(model, variance)


def set_gains(model: Network, variance: Tensor) -> None:
    """Set std and gains from the variances (M,) of y: the step that is RD-optimal for each λ."""
    cfg = model.cfg
    model.log2_std.copy_((variance.clamp(min=1e-12).sqrt().log2() * 256).round() / 256)
    lmbda = cfg.lmbda(torch.arange(cfg.levels, dtype=torch.float64))
    step = (26 / (lmbda * 255**2)).sqrt()  # minimises λ·255²·Δ²/12 − 3·log2 Δ
    model.log2_gain.data.copy_(-step.log2()[:, None].expand_as(model.log2_gain))
    if hasattr(model, "log2_gain_z"):
        model.log2_gain_z.data.fill_(math.log2(4.0))


def _start_strided(model: Network, x: Tensor) -> Tensor:
    """Set the 5×5 stride-2 convolutions of g_a and g_s; return the variances of y."""
    down = [layer for layer in model.g_a if not isinstance(layer, GDN)]
    up = [layer for layer in model.g_s if not isinstance(layer, GDN)]
    for i, (analysis, synthesis) in enumerate(zip(down, reversed(up), strict=True)):
        weight, _ = weight_and_bias(analysis)
        channels, c = weight.shape[:2]
        mean, basis = _pairs(x, channels)
        factor = SMALL if i == 0 else 1.0
        kernel = torch.zeros_like(weight)  # taps 2 and 3 of a padded stride-2 kernel are the 2×2 pixels of an output
        kernel[: len(basis), :, 2:4, 2:4] = basis * factor
        bias = torch.zeros(channels)
        bias[: len(basis)] = -(basis * mean).sum(dim=(1, 2, 3)) * factor
        _set(analysis, kernel, bias)
        back = torch.zeros(channels, c, 5, 5)
        back[: len(basis), :, 2:4, 2:4] = basis / factor
        _set(synthesis, back, mean.mean(dim=(1, 2)))
        gdn = model.g_a[2 * i + 1] if i < len(down) - 1 else nn.Identity()
        x = torch.cat([gdn(analysis(chunk)) for chunk in x.split(16)])
    return x.double().var(dim=(0, 2, 3))


def _pairs(x: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return the mean (C, 2, 2) and the leading KLT vectors (keep, C, 2, 2) of the 2×2 neighbourhoods of x (B, C, H, W)."""
    c = x.shape[1]
    mean, basis, _ = _eigenvectors(F.pixel_unshuffle(x, 2).permute(0, 2, 3, 1).reshape(-1, 4 * c).double(), keep)
    return mean.reshape(c, 2, 2), basis.reshape(-1, c, 2, 2)


def _start_residual(model: Network, x: Tensor) -> Tensor:
    """Set the residual blocks of Cheng's g_a and g_s; return the variances of y."""
    stages: list[tuple[Tensor, Tensor]] = []
    for layer in model.g_a:
        block: Any = layer.module if isinstance(layer, Float32) else layer
        if isinstance(block, (ResidualBlockWithStride, nn.Conv2d)):
            first: Any = block if isinstance(block, nn.Conv2d) else block.conv1
            weight, _ = weight_and_bias(first)
            channels = len(weight)
            mean, basis = _pairs(x, channels if first is block else channels // 2)
            factor = SMALL if not stages else 1.0
            kernel, bias = torch.zeros_like(weight), torch.zeros(channels)
            k = len(basis)
            kernel[:k, :, 1:, 1:] = basis * factor
            bias[:k] = -(basis * mean).sum(dim=(1, 2, 3)) * factor
            if first is not block:
                residual: Any = block
                half = channels // 2
                kernel[half : half + k], bias[half : half + k] = -kernel[:k], -bias[:k]
                both = torch.zeros_like(weight_and_bias(residual.conv2)[0])
                index = torch.arange(k)
                both[index, index, 1, 1], both[index, index + half, 1, 1] = 1 / 1.01, -1 / 1.01  # leaky(z) − leaky(−z) = 1.01·z
                _set(residual.conv2, both, torch.zeros(channels))
                zero_start(residual.skip)
            _set(first, kernel, bias)
            stages.append((mean, basis / factor))
        else:
            _near_identity(block)
        x = torch.cat([layer(chunk) for chunk in x.split(16)])
    for layer in model.g_s:
        block = layer.module if isinstance(layer, Float32) else layer
        if isinstance(block, (ResidualBlockUpsample, nn.Sequential)):
            mean, basis = stages.pop()
            up = block if isinstance(block, nn.Sequential) else block.upsample
            if isinstance(block, ResidualBlockUpsample):
                zero_start(block.conv)
            weight, _ = weight_and_bias(up)
            kernel, bias = torch.zeros_like(weight), torch.zeros(len(weight))
            kernel[: basis[0].numel(), : len(basis), 1, 1] = basis.reshape(len(basis), -1).T
            bias[: mean.numel()] = mean.reshape(-1)
            _set(up, kernel, bias)
        else:
            _near_identity(block)
    return x.double().var(dim=(0, 2, 3))


def _near_identity(block: Any) -> None:
    """Let a residual block add nothing and an attention block next to nothing."""
    if isinstance(block, AttentionBlock):
        weight, bias = weight_and_bias(block.conv_b[-1])
        _set(block.conv_b[-1], torch.zeros_like(weight), torch.full_like(bias, -4.0))
    else:
        zero_start(block.conv2)


def _start_lapped(model: Swift, batches: list[Tensor]) -> Tensor:
    """Set the linear layers of ``swift``; return the variances of y."""
    cfg = model.cfg
    unshuffled = [F.pixel_unshuffle(model.g_a.lap(batch.float()), 8) for batch in batches]  # (B, 192, H/8, W/8)
    flat = torch.cat([u.permute(0, 2, 3, 1).reshape(-1, 192) for u in unshuffled]).double()
    mean, basis, _ = _eigenvectors(flat, cfg.C)
    _set(model.g_a.stem, basis[:, :, None, None], -basis @ mean)

    stem = model.g_a.stem
    coarse = torch.cat([F.pixel_unshuffle(stem(u), 2).permute(0, 2, 3, 1).reshape(-1, 4 * cfg.C) for u in unshuffled])
    mean_2, basis_2, variance = _eigenvectors(coarse.double(), cfg.D)
    down = torch.zeros_like(model.g_a.down.weight)
    down[:, :, 1:, 1:] = basis_2.reshape(cfg.D, cfg.C, 2, 2)  # taps (1, 2) of a padded stride-2 kernel
    _set(model.g_a.down, down, -basis_2 @ mean_2)
    _set(model.g_a.head, torch.eye(cfg.M, cfg.D)[:, :, None, None], torch.zeros(cfg.M))

    _set(model.g_s.head, torch.eye(cfg.D, cfg.M)[:, :, None, None], torch.zeros(cfg.D))
    _set(model.g_s.up, basis_2.T[:, :, None, None], mean_2)  # PixelShuffle counts channels as PixelUnshuffle does
    _set(model.g_s.tail, basis.T[:, :, None, None], mean)

    return variance[: cfg.M]
