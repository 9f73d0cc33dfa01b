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

    def total(self) -> Tensor:
        """Return the bits of all, weighted."""
        bits = self._p.log2().neg_()
        if self._weight is not None:
            bits.mul_(self._weight)
        return bits.sum()

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
        net = EntropyWeights(*weights)  # type: ignore[arg-type]
        b, h0, w0 = seen.shape
        x = _blocked(seen)
        n, h, w = x.shape
        layout = _Layout(n, h, w, cells=coarse is not None)
        width, count, own = len(net.context), n * h * w, rated is seen

        ring = F.pad(x, (2, 2, 2, 0))
        taps = x.new_empty((len(TAPS), *layout.shape))
        for tap, view in zip(taps, _shifted(layout, ring, h, w), strict=True):
            tap.copy_(view)
        inputs = taps.reshape(len(TAPS), count)
        a1 = torch.mm(net.context, inputs)
        if coarse is not None:
            assert net.coarse is not None
            cells = _Cells(coarse, -(-h0 // h), -(-w0 // w), h // 2, w // 2)
            around = cells.around(coarse)
            a1.view(PHASES * width, -1).addmm_(net.coarse, around)
        a1.add_(net.bias_1[:, None]).relu_()
        a2 = torch.addmm(net.bias_2[:, None], net.hidden, a1).relu_()
        out = torch.addmm(net.bias_3[:, None], net.out, a2)
        if weight is None and count != seen.numel():
            weight = torch.ones_like(seen)
        weights_apart = None if weight is None else layout.apart(_blocked(weight)).reshape(count)
        symbols = layout.apart(x if own else _blocked(rated)).reshape(count)
        laplace = _LaplaceBits(symbols, out, float(gain), weights_apart)
        total = laplace.total()
        if not any(ctx.needs_input_grad):
            return total

        d_rated, d_out = laplace.gradients()
        d_gain = math.log(2) * (d_out[0] * out[0]).sum() + d_out[1].sum() if ctx.needs_input_grad[4] else None
        da2 = _relu_gradient(torch.mm(net.out.T, d_out), a2)
        da1 = _relu_gradient(torch.mm(net.hidden.T, da2), a1)
        d_ring = torch.zeros_like(ring)
        d_taps = torch.mm(net.context.T, da1).reshape(taps.shape)
        for view, tap in zip(_shifted(layout, d_ring, h, w), d_taps, strict=True):
            view += tap
        d_plane, d_rated = d_ring[:, 2:, 2:-2], layout.together(d_rated)
        d_seen = _unblocked(d_plane + d_rated if own else d_plane, b, h0, w0)
        d_coarse = d_coarse_weight = None
        if coarse is not None and net.coarse is not None:
            apart = da1.view(PHASES * width, -1)
            d_coarse = cells.gradient(torch.mm(net.coarse.T, apart))
            d_coarse_weight = apart @ around.T
        ctx.gradients = (
            d_seen, None if own else _unblocked(d_rated, b, h0, w0), d_coarse, None, d_gain, da1 @ inputs.T, d_coarse_weight,
            da1.sum(1), da2 @ a1.T, da2.sum(1), d_out @ a2.T, d_out.sum(1),
        )  # fmt: skip
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        return tuple(None if gradient is None else gradient * scale for gradient in ctx.gradients)


def _shifted(layout: _Layout, ring: Tensor, h: int, w: int) -> list[Tensor]:
    """Return, for each of the causal neighbours, views of where it lies in blocks (n, h, w) with a ring around them."""
    return [layout.apart(ring[:, 2 + dy : 2 + dy + h, 2 + dx : 2 + dx + w]) for dy, dx in TAPS]


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
