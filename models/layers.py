"""Small layers that CompressAI does not have: the lapped filter, float32 islands and sums, biases by level.

Everything else that the models are made of comes from ``compressai.layers`` and ``compressai.models``.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

BLOCK = 8  # pixels; side of the block that one position at 1/8 resolution stands for


def dct_matrix(n: int) -> Tensor:
    """Return the orthonormal DCT-II as an (n, n) float64 matrix, rows are basis functions."""
    k = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi / n * (k[None, :] + 0.5) * k[:, None]) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis


def lapped_filter(n: int = BLOCK) -> Tensor:
    """Return the orthogonal (n, n) time-domain pre-filter that turns a block DCT into a lapped transform.

    It is applied across each block boundary, n/2 samples on either side: F = 1/2 B diag(I, V) B with the butterfly
    B = [[I, J], [J, -I]] and V = J C_II^T C_IV J (type-II fast LOT). Symmetric signals pass unchanged.

    Source: Tran, Liang, Tu, "Lapped transform via time-domain pre- and post-filtering", IEEE TSP 51(6), 2003.
    """
    half = n // 2
    k = torch.arange(half, dtype=torch.float64)
    dct2 = dct_matrix(half)
    dct4 = torch.cos(math.pi / half * (k[None, :] + 0.5) * (k[:, None] + 0.5)) * math.sqrt(2 / half)
    eye = torch.eye(half, dtype=torch.float64)
    flip = eye.flip(0)
    v = flip @ dct2.T @ dct4 @ flip
    butterfly = torch.cat([torch.cat([eye, flip], 1), torch.cat([flip, -eye], 1)], 0)
    middle = torch.block_diag(eye, v)
    return butterfly @ middle @ butterfly / 2


def lap(x: Tensor, weight: Tensor) -> Tensor:
    """Filter (B, C, H, W), H and W multiples of 8, by an (8, 8) matrix across the boundaries of its 8×8 blocks, both ways."""
    return _lap_rows(_lap_rows(x, weight).transpose(2, 3), weight).transpose(2, 3)


def _lap_rows(x: Tensor, weight: Tensor) -> Tensor:
    b, c, h, w = x.shape
    if w <= BLOCK:
        return x
    half = BLOCK // 2
    inner = x[..., half : w - half].reshape(b, c, h, -1, BLOCK)
    inner = (inner @ weight.T.to(x.dtype)).reshape(b, c, h, w - BLOCK)
    return torch.cat([x[..., :half], inner, x[..., w - half :]], dim=-1)


class LappedFilter(nn.Module):
    """Filter an image across the boundaries of its 8×8 blocks, separably in both directions.

    Before the block transform of the encoder it makes neighbouring blocks overlap; its inverse after the block
    transform of the decoder spreads each block over its neighbours, so that quantisation leaves no block edges. The
    border of the image is left as it is. The (8, 8) filter is a parameter: training may bend it.
    """

    def __init__(self, inverse: bool = False) -> None:
        super().__init__()
        matrix = lapped_filter()
        self.weight = nn.Parameter((matrix.T if inverse else matrix).float().clone())

    def forward(self, x: Tensor) -> Tensor:
        return lap(x, self.weight)


class Float32(nn.Module):
    """Run a module in float32 even under autocast: bf16 latents of magnitude 100 lose whole quantisation steps."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.module(x.float())


class Transform(nn.Sequential):
    """Layers between which values are float32 even under autocast, and with them the sums of residual blocks.

    All in bf16, whose mantissa has 8 bits, y of ``swift`` is 0.15 quantisation steps off (root mean square) at the highest rate
    (docs/training.md, 23). ``float32_layers`` run in float32 as if they were ``Float32``, but keep their names in checkpoints.
    """

    float32_layers: ClassVar[tuple[str, ...]] = ()

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.named_children():
            if name in self.float32_layers:
                with torch.autocast(x.device.type, enabled=False):
                    x = layer(x)
            else:
                x = layer(x).float()
        return x


def at_levels(table: Tensor, level: Tensor) -> Tensor:
    """Return the rows (B, C) of a table (levels, C) at fractional levels (B,), linearly interpolated."""
    low = level.floor().clamp(0, max(len(table) - 2, 0)).long()
    high = (low + 1).clamp(max=len(table) - 1)
    t = (level - low).float()[:, None]
    return table[low] * (1 - t) + table[high] * t


class LevelBias(nn.Module):
    """A convolution, and a bias (levels, O) on its output that depends on the level; without levels the convolution alone."""

    table: nn.Parameter | None

    def __init__(self, layer: nn.Module, levels: int) -> None:
        super().__init__()
        self.layer = layer
        self.table = nn.Parameter(torch.zeros(levels, len(weight_and_bias(layer)[1]))) if levels else None

    def forward(self, x: Tensor, level: Tensor) -> Tensor:  # (B, C, h, w), (B,) in [0, levels - 1]
        out: Tensor = self.layer(x)
        return out if self.table is None else out + at_levels(self.table, level)[:, :, None, None]


def level_table(layer: nn.Module) -> Tensor | None:
    """Return the biases (levels, O) of a layer, if it has any."""
    return layer.table if isinstance(layer, LevelBias) else None


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution, also of one inside a wrapper of ours or CompressAI's ``subpel_conv3x3``."""
    if isinstance(layer, LevelBias):
        layer = layer.layer
    if isinstance(layer, Float32):
        layer = layer.module
    if isinstance(layer, nn.Sequential):
        layer = layer[0]
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    assert layer.bias is not None
    return layer.weight, layer.bias
