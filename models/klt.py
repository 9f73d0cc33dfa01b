"""Start ``swift`` as a lapped Karhunen–Loève transform of the training pictures, with RD-optimal gains.

A network that starts as a good linear codec spends its training on what a linear codec cannot do. The analysis becomes
lapped filter → KLT of 8×8×3 blocks → KLT of 2×2 neighbouring coefficient vectors; the synthesis its transpose; every
residual block starts as the identity (see ``swift._blocks``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import weight_and_bias
from models.swift import Swift


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


@torch.no_grad()
def klt_start(model: Swift, batches: Iterable[Tensor]) -> None:
    """Set the linear layers and gains of a fresh model from (B, 3, H, W) batches of training crops in [0, 1]."""
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

    variance = variance[: cfg.M].clamp(min=1e-12)
    model.log2_std.copy_((variance.sqrt().log2() * 256).round() / 256)
    lmbda = cfg.lmbda(torch.arange(cfg.levels, dtype=torch.float64))
    step = (26 / (lmbda * 255**2)).sqrt()  # minimises λ·255²·Δ²/12 − 3·log2 Δ
    model.log2_gain.copy_(-step.log2()[:, None].expand_as(model.log2_gain))
    model.log2_gain_z.fill_(math.log2(4.0))
