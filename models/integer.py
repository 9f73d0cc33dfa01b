"""Layers in exact integer arithmetic, on the CPU (FORMAT.md section 7, step 3).

A layer is a matrix product of integer-valued floats. Below 2^24 every integer is a float32, so a float32 product is exact
in whatever order a library sums, as long as Σ|w|·max|a| < 2^24 for every output. ``exact_parts`` proves that bound from
the weights and cuts the inner dimension where one product would exceed it. Convolutions are matrix products over gathered
taps: convolution kernels may be Winograd or FFT ones, which are not exact.

If the process has switched float32 products to a faster, inexact mode (bf16, TF32), a probe notices and float64 is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitstream.errors import CheckpointError

EXACT = 2**24  # float32 holds all integers up to here
REQUANT_BITS = 32
ACT_MAX = 255  # activations after ReLU
SIGNED_MAX = 127  # activations with a sign
BLOCK_ROWS = 4096  # rows of one product: bounds the memory of gathered taps


def rshift(value: Tensor, bits: int) -> Tensor:
    """Divide an integer tensor by 2^bits, rounding half up."""
    return (value + (1 << (bits - 1))) >> bits


def exact_dtype() -> torch.dtype:
    """Return float32 if float32 matrix products are exact in this process right now, else float64."""
    probe = torch.full((64, 64), 4097.0)  # 13 bits: bf16 and TF32 would round it
    return torch.float32 if torch.equal(probe @ torch.eye(64), probe) else torch.float64


def exact_parts(weight: Tensor, act_max: int) -> list[slice]:
    """Cut the inner dimension of an integer weight (K, O) so that each part's product is proven exact in float32."""
    rows = weight.abs().long() * act_max  # int8 · 255 < 2^15: one row always fits
    bound = EXACT - 1
    parts, start = [], 0
    total = torch.zeros(weight.shape[1], dtype=torch.long)
    for k in range(weight.shape[0]):
        total += rows[k]
        if int(total.max()) > bound:
            parts.append(slice(start, k))
            start, total = k, rows[k].clone()
    return [*parts, slice(start, weight.shape[0])]


@dataclass
class IntegerLayer:
    """out = clamp(rshift((a @ weight + bias) · multiplier, 32), lo, hi) on rows of integer activations."""

    weight: Tensor  # (K, O) int8
    bias: Tensor  # (O,) int64
    multiplier: Tensor  # (O,) int64, the requantisation by 2^-32
    lo: Tensor  # (O,) int64
    hi: Tensor  # (O,) int64
    act_max: int

    def __post_init__(self) -> None:
        reach = int(self.weight.abs().long().sum(0).max()) * self.act_max + int(self.bias.abs().max())
        if reach * int(self.multiplier.abs().max()) >= 2**62:
            raise CheckpointError("integer layer: products exceed 64 bits: the checkpoint is damaged, export it again")
        self.parts = exact_parts(self.weight, self.act_max)
        self._cast: dict[torch.dtype, list[Tensor]] = {}

    def _weights(self, dtype: torch.dtype) -> list[Tensor]:
        if dtype not in self._cast:
            self._cast[dtype] = [self.weight[part].to(dtype).contiguous() for part in self.parts]
        return self._cast[dtype]

    def __call__(self, a: Tensor) -> Tensor:
        """Map integer-valued float activations (P, K) to int64 outputs (P, O)."""
        acc = self.bias.repeat(len(a), 1)
        for part, weight in zip(self.parts, self._weights(a.dtype), strict=True):
            acc += (a[:, part] @ weight).long()
        acc *= self.multiplier
        acc += 1 << (REQUANT_BITS - 1)
        acc >>= REQUANT_BITS
        return torch.minimum(torch.maximum(acc, self.lo, out=acc), self.hi, out=acc)


def gather_taps(x: Tensor, offsets: list[tuple[int, int]], rows: Tensor) -> Tensor:
    """Return the neighbours of positions as (P, len(offsets)·C) from x (h, w, C), zero outside.

    ``rows`` (P,) are flat positions, ``offsets`` (dy, dx) pairs; tap-major, channels innermost.
    """
    h, w, c = x.shape
    reach = max(max(abs(dy), abs(dx)) for dy, dx in offsets)
    padded = torch.zeros(h + 2 * reach, w + 2 * reach, c, dtype=x.dtype)
    padded[reach : reach + h, reach : reach + w] = x
    flat = padded.reshape(-1, c)
    wide = w + 2 * reach
    base = (rows // w + reach) * wide + rows % w + reach
    taps = torch.tensor([dy * wide + dx for dy, dx in offsets])
    return flat.index_select(0, (base[:, None] + taps).reshape(-1)).reshape(len(rows), -1)


def apply_taps(layer: IntegerLayer, x: Tensor, offsets: list[tuple[int, int]], rows: Tensor) -> Tensor:
    """Run a layer over gathered taps of x (h, w, C) at flat positions (P,), in blocks; return int64 (P, O)."""
    return torch.cat([layer(gather_taps(x, offsets, block)) for block in rows.split(BLOCK_ROWS)])


def pixel_shuffle(x: Tensor, h: int, w: int, factor: int) -> Tensor:
    """Rearrange rows (h·w, C·f²) to (h·f, w·f, C), channel order as in torch's PixelShuffle."""
    c = x.shape[1] // factor**2
    return x.reshape(h, w, c, factor, factor).permute(0, 3, 1, 4, 2).reshape(h * factor, w * factor, c)
