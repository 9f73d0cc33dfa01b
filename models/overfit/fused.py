"""Two operations with gradients written by hand: the bits of a grid under its entropy network, and upsampling.

The same arithmetic as a chain of small layers, but without what autograd keeps and copies between them: of the time of a
descent on a CPU they would otherwise take twice as much. Tests compare values and gradients with the chain.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.overfit.configs import BLOCK, PHASES, TAPS

FLOOR, KEEP = 2.0**-16, 1 - 2.0**-13  # what CDF rows do: no symbol has a probability below one count of 65536
LOG2_SCALE = (-4.25, 9.5)  # of the scales that CDF rows are stored for


class EntropyWeights(NamedTuple):
    """The entropy network of one grid: inputs are symbols, ``context`` and ``coarse`` hold the gains of the rate level.

    context (H, 12), coarse (4H, 9) or None, hidden (H, H), out (2, H); biases (H,), (H,), (2,).
    """

    context: Tensor
    coarse: Tensor | None
    bias_1: Tensor
    hidden: Tensor
    bias_2: Tensor
    out: Tensor
    bias_3: Tensor


def _blocked(x: Tensor) -> Tensor:
    """Cut planes (B, h, w) into blocks (n, ≤ 64, ≤ 64), with zeros where a plane ends inside of one."""
    b, h, w = x.shape
    bh, bw = min(BLOCK, h), min(BLOCK, w)
    below, right = -h % bh, -w % bw
    if below or right:
        x = F.pad(x, (0, right, 0, below))
    if (h + below, w + right) == (bh, bw):
        return x
    return x.reshape(b, (h + below) // bh, bh, (w + right) // bw, bw).transpose(2, 3).reshape(-1, bh, bw)


def _unblocked(x: Tensor, b: int, h: int, w: int) -> Tensor:
    """Put blocks together again: the reverse of ``_blocked``."""
    bh, bw = x.shape[1:]
    down, across = -(-h // bh), -(-w // bw)
    if down * across > 1:
        x = x.reshape(b, down, across, bh, bw).transpose(2, 3).reshape(b, down * bh, across * bw)
    return x[:, :h, :w]


def _relu_gradient(gradient: Tensor, output: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(gradient, output, 0)


class _Layout:
    """How positions of blocks (n, h, w) lie in activations (channels, P): the four of each 2×2 cell apart, if it has any."""

    def __init__(self, n: int, h: int, w: int, *, cells: bool) -> None:
        self.side = 2 if cells else 1
        self.shape = (self.side, self.side, n, h // self.side, w // self.side)

    def apart(self, x: Tensor) -> Tensor:
        """Return blocks (n, h, w) as a view of the shape of ``shape``."""
        return x.unflatten(1, (-1, self.side)).unflatten(3, (-1, self.side)).permute(2, 4, 0, 1, 3)

    def together(self, x: Tensor) -> Tensor:
        """Return the blocks of values (P,)."""
        _, _, n, h, w = self.shape
        return x.reshape(self.shape).permute(2, 3, 0, 4, 1).reshape(n, h * self.side, w * self.side)


class _Cells:
    """The coarser grid (B, hc + 2, wc + 2) around the cells of blocks: ``down`` × ``across`` for each plane, of h × w cells."""

    def __init__(self, coarse: Tensor, down: int, across: int, h: int, w: int) -> None:
        self.shape, self._size = (coarse.shape[0], down, across, h, w), coarse.shape[1:]
        self._filled = down * h + 2, across * w + 2

    def around(self, coarse: Tensor) -> Tensor:
        """Return the 3×3 around each cell (9, P / 4)."""
        below, right = (full - side for full, side in zip(self._filled, self._size, strict=True))
        filled = F.pad(coarse, (0, right, 0, below)) if below or right else coarse.contiguous()
        _, _, _, h, w = self.shape
        plane, row, _ = filled.stride()
        return filled.as_strided((3, 3, *self.shape), (row, 1, plane, row * h, w, row, 1)).reshape(9, -1)

    def gradient(self, d_around: Tensor) -> Tensor:
        """Return the gradient of the coarser grid from that of ``around``."""
        b, down, across, h, w = self.shape
        out = d_around.new_zeros(b, *self._filled)
        for number, part in enumerate(d_around.reshape(9, *self.shape)):
            i, j = divmod(number, 3)
            view = out[:, i : i + down * h, j : j + across * w].unflatten(1, (down, h)).unflatten(3, (across, w))
            view += part.transpose(2, 3)
        return out[:, : self._size[0], : self._size[1]]


class _LaplaceBits:
    """Bits (P,) of symbols under Laplace distributions of ``out`` (2, P), location and log2 of scale before the gain."""

    def __init__(self, symbols: Tensor, out: Tensor, log2_gain: float, weight: Tensor | None) -> None:
        self._out, self._log2_gain, self._weight = out, log2_gain, weight
        self._distance = symbols - out[0] * 2.0**log2_gain
        self._log2_scale = out[1] + log2_gain
        self._inverse = torch.exp2(-self._log2_scale.clamp(*LOG2_SCALE))
        self._half = self._inverse * 0.5
        self._far = self._distance.abs().mul_(self._inverse)
        # Between the edges of a symbol: (A − S) / 2 outside of the location's cell, 1 − (A + S) / 2 inside
        s = (self._far + self._half).neg_().exp_()
        a = self._far - self._half
        inside = a < 0
        a = a.abs_().neg_().exp_()
        self._difference, self._mean = (a - s).mul_(0.5), s.add_(a).mul_(0.5)
        self._p = torch.where(inside, 1 - self._mean, self._difference).mul_(KEEP).add_(FLOOR)

    def bits(self) -> Tensor:
        """Return the bits, weighted."""
        bits = self._p.log2().neg_()
        return bits if self._weight is None else bits.mul_(self._weight)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Return those of the symbols (P,) and of ``out`` (2, P); what they were computed from is spent then."""
        slope = self._p.reciprocal_().mul_(-KEEP / math.log(2))
        if self._weight is not None:
            slope.mul_(self._weight)
        d_out = torch.empty_like(self._out)
        d_symbols = (slope * self._difference).neg_().mul_(self._inverse).mul_(self._distance.sign_())
        torch.mul(d_symbols, -(2.0**self._log2_gain), out=d_out[0])
        curve = self._difference.mul_(self._far).sub_(self._mean.mul_(self._half)).mul_(math.log(2))
        torch.mul(slope, curve, out=d_out[1])
        low, high = LOG2_SCALE
        d_out[1].masked_fill_((self._log2_scale <= low).logical_or_(self._log2_scale >= high), 0)
        return d_symbols, d_out


class _Pass:
    """The pass of an entropy network over a grid (B, h, w), in blocks: ``out`` (2, P), and the way back from its gradient."""

    def __init__(self, net: EntropyWeights, seen: Tensor, coarse: Tensor | None) -> None:
        self._net, self._size = net, seen.shape
        blocks = _blocked(seen)
        n, h, w = blocks.shape
        self.layout = _Layout(n, h, w, cells=coarse is not None)
        width, count = len(net.context), n * h * w
        self._ring = F.pad(blocks, (2, 2, 2, 0))
        taps = blocks.new_empty((len(TAPS), *self.layout.shape))
        for tap, view in zip(taps, self._shifted(self._ring), strict=True):
            tap.copy_(view)
        self._taps, self._around = taps.reshape(len(TAPS), count), None
        self._a1 = torch.mm(net.context, self._taps)
        if coarse is not None:
            assert net.coarse is not None
            self._cells = _Cells(coarse, -(-seen.shape[1] // h), -(-seen.shape[2] // w), h // 2, w // 2)
            self._around = self._cells.around(coarse)
            self._a1.view(PHASES * width, -1).addmm_(net.coarse, self._around)
        self._a1.add_(net.bias_1[:, None]).relu_()
        self._a2 = torch.addmm(net.bias_2[:, None], net.hidden, self._a1).relu_()
        self.out = torch.addmm(net.bias_3[:, None], net.out, self._a2)

    def _shifted(self, ring: Tensor) -> list[Tensor]:
        """Return, for each of the causal neighbours, views of where it lies in blocks with a ring around them."""
        h, w = ring.shape[1] - 2, ring.shape[2] - 4
        return [self.layout.apart(ring[:, 2 + dy : 2 + dy + h, 2 + dx : 2 + dx + w]) for dy, dx in TAPS]

    def bits(self, rated: Tensor, gain: Tensor, weight: Tensor | None) -> _LaplaceBits:
        """Return the bits of a grid's symbols (B, h, w), weighted; positions that only fill blocks weigh nothing."""
        if weight is None and self.out.shape[1] != rated.numel():
            weight = torch.ones_like(rated)
        apart = None if weight is None else self.apart(weight)
        return _LaplaceBits(self.apart(rated), self.out, float(gain), apart)

    def apart(self, grid: Tensor) -> Tensor:
        """Return values (B, h, w) as they lie in activations (P,)."""
        return self.layout.apart(_blocked(grid)).reshape(-1)

    def together(self, values: Tensor) -> Tensor:
        """Return the values (P,) as a grid (B, h, w)."""
        return _unblocked(self.layout.together(values), *self._size)

    def gradients(self, d_out: Tensor) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...]]:
        """Return those of the grid, of the coarser one and of the weights."""
        net = self._net
        da2 = _relu_gradient(torch.mm(net.out.T, d_out), self._a2)
        da1 = _relu_gradient(torch.mm(net.hidden.T, da2), self._a1)
        d_ring = torch.zeros_like(self._ring)
        d_taps = torch.mm(net.context.T, da1).reshape(len(TAPS), *self.layout.shape)
        for view, tap in zip(self._shifted(d_ring), d_taps, strict=True):
            view += tap
        d_coarse = d_coarse_weight = None
        if self._around is not None and net.coarse is not None:
            apart = da1.view(PHASES * len(net.context), -1)
            d_coarse = self._cells.gradient(torch.mm(net.coarse.T, apart))
            d_coarse_weight = apart @ self._around.T
        d_weights = (
            da1 @ self._taps.T, d_coarse_weight, da1.sum(1), da2 @ self._a1.T, da2.sum(1), d_out @ self._a2.T, d_out.sum(1)
        )  # fmt: skip
        return _unblocked(d_ring[:, 2:, 2:-2], *self._size), d_coarse, d_weights


class GridBits(torch.autograd.Function):
    """Bits of the symbols of a grid (B, h, w), added up, each position weighted by ``weight`` (B, h, w) or None: all the same.

    ``seen`` is what the network sees of the grid, ``rated`` what is coded (they may be one tensor), ``coarse`` the next coarser
    grid with a ring around it (B, h/2 + 2, w/2 + 2), or None. ``gain`` is log2 of the grid's gain: a scalar tensor.
    The sum's gradient is computed with it, and scaled in ``backward``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        seen: Tensor,
        rated: Tensor,
        coarse: Tensor | None,
        weight: Tensor | None,
        gain: Tensor,
        *weights: Tensor | None,
    ) -> Tensor:
        network = _Pass(EntropyWeights(*weights), seen, coarse)  # type: ignore[arg-type]
        laplace, out = network.bits(rated, gain, weight), network.out
        total = laplace.bits().sum()
        if not any(ctx.needs_input_grad):
            return total
        d_symbols, d_out = laplace.gradients()
        d_gain = math.log(2) * (d_out[0] * out[0]).sum() + d_out[1].sum() if ctx.needs_input_grad[4] else None
        d_rated = network.together(d_symbols)
        d_seen, d_coarse, d_weights = network.gradients(d_out)
        both = (d_seen + d_rated, None) if rated is seen else (d_seen, d_rated)
        ctx.gradients = (*both, d_coarse, None, d_gain, *d_weights)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        return tuple(None if gradient is None else gradient * scale for gradient in ctx.gradients)


def bits_by_position(symbols: Tensor, coarse: Tensor | None, gain: Tensor, weights: EntropyWeights) -> Tensor:
    """Return the bits of each position (B, h, w) of a grid, of arguments as ``GridBits`` takes them; without gradients."""
    network = _Pass(weights, symbols, coarse)
    return network.together(network.bits(symbols, gain, None).bits())


class Upsample(torch.autograd.Function):
    """Planes (C, h, w) at twice their size (C, 2h, 2w) by kernels (4, 9), one for each place in a cell; edges are repeated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Tensor) -> Tensor:
        c, h, w = x.shape
        ring = F.pad(x[None], (1, 1, 1, 1), mode="replicate")[0]
        plane, row, _ = ring.stride()
        taps = ring.as_strided((3, 3, c, h, w), (row, 1, plane, row, 1)).reshape(9, -1)
        ctx.save_for_backward(taps, kernels)
        ctx.size = c, h, w
        return (kernels @ taps).reshape(2, 2, c, h, w).permute(2, 3, 0, 4, 1).reshape(c, 2 * h, 2 * w)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        taps, kernels = ctx.saved_tensors
        c, h, w = ctx.size
        cells = gradient.reshape(c, h, 2, w, 2).permute(2, 4, 0, 1, 3).reshape(4, -1)
        ring = gradient.new_zeros(c, h + 2, w + 2)
        for number, tap in enumerate((kernels.T @ cells).reshape(9, c, h, w)):
            i, j = divmod(number, 3)
            ring[:, i : i + h, j : j + w] += tap
        ring[:, 1] += ring[:, 0]
        ring[:, h] += ring[:, h + 1]
        ring[:, :, 1] += ring[:, :, 0]
        ring[:, :, w] += ring[:, :, w + 1]
        return ring[:, 1:-1, 1:-1], cells @ taps.T
