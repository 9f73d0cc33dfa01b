"""Layers in exact integer arithmetic, on the CPU (FORMAT.md section 7, step 3).

A layer is a matrix product of 8-bit integers. There are three ways to compute it, all exact, so all equal:

- ``int8``: torch's int8 product with 32-bit sums. Older CPUs saturate 16-bit sums on the way; a probe with the worst values
  notices, and then it is not used.
- ``float32``: every integer below 2^24 is a float32, so a float product is exact in whatever order a library sums, as long as
  Σ|w|·max|a| < 2^24 for every output. ``exact_parts`` proves that bound from the weights and cuts the inner dimension where
  one product would exceed it.
- ``float64``: if the process has switched float32 products to a faster, inexact mode (bf16, TF32); a probe notices that too.

Convolutions are matrix products over gathered taps: convolution kernels may be Winograd or FFT ones, which are not exact.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from bitstream.errors import CheckpointError

EXACT = 2**24  # float32 holds all integers up to here
REQUANT_BITS = 32
ACT_MAX = 255  # activations after ReLU
SIGNED_MAX = 127  # activations with a sign
SLOPE_ONE = 2**16
BLOCK_ROWS = 4096  # rows of one product: bounds the memory of gathered taps

Arithmetic = Literal["int8", "float32", "float64"]
_FLOATS: dict[Arithmetic, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}


def rshift(value: Tensor, bits: int) -> Tensor:
    """Divide an integer tensor by 2^bits, rounding half up."""
    return (value + (1 << (bits - 1))) >> bits


@lru_cache(maxsize=1)
def int8_is_exact() -> bool:
    """Return whether torch multiplies int8 matrices on this CPU without saturating inside."""
    a = torch.full((64, 256), -128, dtype=torch.int8, device="cpu")
    a[::2] = 127
    w = torch.full((256, 64), 127, dtype=torch.int8, device="cpu")
    w[:, ::3] = -127
    try:
        return torch.equal(torch._int_mm(a, w).long(), a.long() @ w.long())
    except (AttributeError, RuntimeError):
        return False


def exact_arithmetic() -> Arithmetic:
    """Return the fastest way of ``IntegerLayer`` that is exact in this process right now."""
    onednn = torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()
    if onednn and int8_is_exact():  # without oneDNN torch's int8 product is a plain loop
        return "int8"
    probe = torch.full((64, 64), 4097.0, dtype=torch.float32, device="cpu")  # 13 bits: bf16 and TF32 would round it
    return "float32" if torch.equal(probe @ torch.eye(64, dtype=torch.float32, device="cpu"), probe) else "float64"


def exact_parts(weight: Tensor, act_max: int) -> list[slice]:
    """Cut the inner dimension of an integer weight (K, O) so that each part's product is proven exact in float32."""
    rows = weight.int().abs() * act_max  # int8 · 255 < 2^15: one row always fits; sums are int64
    bound = EXACT - 1
    if int(rows.sum(0).max()) <= bound:
        return [slice(0, weight.shape[0])]
    parts, start = [], 0
    total = torch.zeros(weight.shape[1], dtype=torch.long, device=weight.device)
    for k in range(weight.shape[0]):
        total += rows[k]
        if int(total.max()) > bound:
            parts.append(slice(start, k))
            start, total = k, rows[k].clone()
    return [*parts, slice(start, weight.shape[0])]


def _magnitude(values: Tensor) -> int:
    return max(-int(values.min()), int(values.max()))  # abs() of the least int64 is negative


@dataclass
class IntegerLayer:
    """out = clamp(rshift((a @ weight + bias) · multiplier, 32), lo, hi) on rows of integer activations.

    Below zero the multiplier is rshift(multiplier · slope, 16). Activations are 0 … 255 if ``act_max`` is 255, else ±127.
    """

    weight: Tensor  # (K, O) int8
    bias: Tensor  # (O,) int64
    multiplier: Tensor  # (O,) int64, the requantisation by 2^-32
    lo: Tensor  # (O,) int64
    hi: Tensor  # (O,) int64
    act_max: int
    slope: int = SLOPE_ONE  # of the outputs below zero, in 1/65536: less than one is a leaky ReLU
    level_bias: Tensor | None = None  # (levels, O) int64: what ``at`` adds to the bias
    parts: list[slice] = field(init=False)

    def __post_init__(self) -> None:
        fits = self.weight.dtype == torch.int8 and self.weight.dim() == 2 and len(self.weight) < 2**16
        if not fits or self.act_max not in (ACT_MAX, SIGNED_MAX):
            raise CheckpointError(
                f"integer layer: {self.weight.dtype} weights {tuple(self.weight.shape)}, activations up to {self.act_max}; "
                f"expected an int8 matrix, below 2^16 inputs, {ACT_MAX} or {SIGNED_MAX}: damaged, export it again"
            )
        if any(v.shape != self.weight.shape[1:] for v in (self.bias, self.multiplier, self.lo, self.hi)):
            raise CheckpointError("integer layer: vectors do not have one entry for each output: export it again")
        if self.level_bias is not None and self.level_bias.shape[1:] != self.bias.shape:
            raise CheckpointError("integer layer: level_bias does not have one entry for each output: export it again")
        if (self.lo > self.hi).any():
            raise CheckpointError("integer layer: an output range is empty: the checkpoint is damaged, export it again")
        if not 0 <= self.slope <= SLOPE_ONE:
            raise CheckpointError(f"integer layer: slope is {self.slope}, expected 0 … {SLOPE_ONE}: export it again")
        biases = _magnitude(self.bias) + (0 if self.level_bias is None else _magnitude(self.level_bias))
        reach = int(self.weight.long().abs().sum(0).max()) * self.act_max + biases
        if reach * _magnitude(self.multiplier) >= 2**62:
            raise CheckpointError("integer layer: products exceed 64 bits: the checkpoint is damaged, export it again")
        self.parts = exact_parts(self.weight, self.act_max)
        self._negative = rshift(self.multiplier * self.slope, 16)
        low, high = int(self.lo[0]), int(self.hi[0])
        self._range = (low, high) if (self.lo == low).all() and (self.hi == high).all() else None  # what most layers have
        self._shift = 128 if self.act_max == ACT_MAX else 0  # brings 0 … 255 into int8
        self._shifted = self._shift * self.weight.long().sum(0)
        self._floats: dict[torch.dtype, list[Tensor]] = {}

    def __call__(self, a: Tensor, arithmetic: Arithmetic) -> Tensor:
        """Map activations (P, K) int16 to outputs (P, O) int64."""
        out = self._product(a, arithmetic)
        out *= self.multiplier if self.slope == SLOPE_ONE else torch.where(out < 0, self._negative, self.multiplier)
        out += 1 << (REQUANT_BITS - 1)
        out >>= REQUANT_BITS
        if self._range is not None:
            return out.clamp_(*self._range)
        return torch.minimum(torch.maximum(out, self.lo, out=out), self.hi, out=out)

    def part(self, *, inputs: Tensor | None = None, outputs: Tensor | None = None) -> IntegerLayer:
        """Return the layer of some of the outputs, for some of the inputs: those left out are zero."""
        columns = torch.arange(self.weight.shape[1], device="cpu") if outputs is None else outputs
        weight = (self.weight if inputs is None else self.weight[inputs])[:, columns].contiguous()
        bias, multiplier, lo, hi = (v[columns] for v in (self.bias, self.multiplier, self.lo, self.hi))
        level_bias = None if self.level_bias is None else self.level_bias[:, columns]
        return IntegerLayer(weight, bias, multiplier, lo, hi, self.act_max, self.slope, level_bias)

    def at(self, level_bias: Tensor) -> IntegerLayer:
        """Return the layer with a row (O,) of ``level_bias``, or one between two rows, added to its bias."""
        layer = copy.copy(self)
        layer.bias = self.bias + level_bias
        return layer

    def _product(self, a: Tensor, arithmetic: Arithmetic) -> Tensor:
        if arithmetic == "int8":
            shifted = (a - self._shift).to(torch.int8) if self._shift else a.to(torch.int8)
            return torch._int_mm(shifted, self.weight).long().add_(self.bias + self._shifted)
        dtype = _FLOATS[arithmetic]
        if dtype not in self._floats:
            self._floats[dtype] = [self.weight[part].to(dtype) for part in self.parts]
        a = a.to(dtype)
        out = self.bias.repeat(len(a), 1)
        for part, weight in zip(self.parts, self._floats[dtype], strict=True):
            out += (a[:, part] @ weight).long()
        return out


class Plane:
    """Activations of (h, w) positions with a border of zeros: what convolutions gather their taps from."""

    def __init__(self, h: int, w: int, channels: int, reach: int) -> None:
        self.h, self.w, self.reach = h, w, reach
        self._wide = w + 2 * reach
        self._flat = torch.zeros((h + 2 * reach) * self._wide, channels, dtype=torch.int16, device="cpu")

    @classmethod
    def of(cls, x: Tensor, reach: int) -> Plane:
        """Return the plane of x (h, w, C)."""
        plane = cls(x.shape[0], x.shape[1], x.shape[2], reach)
        padded = plane._flat.reshape(x.shape[0] + 2 * reach, plane._wide, x.shape[2])
        padded[reach : reach + x.shape[0], reach : reach + x.shape[1]] = x
        return plane

    def _places(self, rows: Tensor) -> Tensor:
        return (rows // self.w + self.reach) * self._wide + rows % self.w + self.reach

    def set(self, rows: Tensor, values: Tensor) -> None:
        """Set the activations (P, C) at flat positions (P,)."""
        self._flat[self._places(rows)] = values

    def gather(self, offsets: list[tuple[int, int]], rows: Tensor) -> Tensor:
        """Return the neighbours of flat positions (P,) as (P, len(offsets)·C): tap-major, channels innermost.

        ``offsets`` are (dy, dx) pairs within the border.
        """
        taps = torch.tensor([dy * self._wide + dx for dy, dx in offsets], device="cpu")
        return self._flat.index_select(0, (self._places(rows)[:, None] + taps).reshape(-1)).reshape(len(rows), -1)

    def apply(
        self, layer: IntegerLayer, offsets: list[tuple[int, int]], rows: Tensor, arithmetic: Arithmetic,
        dtype: torch.dtype = torch.int16,
    ) -> Tensor:  # fmt: skip
        """Run a layer over the gathered taps at flat positions (P,), in blocks; return (P, O)."""
        blocks = [layer(self.gather(offsets, block), arithmetic).to(dtype) for block in rows.split(BLOCK_ROWS)]
        return torch.cat(blocks)


def pixel_shuffle(x: Tensor, h: int, w: int, factor: int) -> Tensor:
    """Rearrange rows (h·w, C·f²) to (h·f, w·f, C), channel order as in torch's PixelShuffle."""
    c = x.shape[1] // factor**2
    return x.reshape(h, w, c, factor, factor).permute(0, 3, 1, 4, 2).reshape(h * factor, w * factor, c)
