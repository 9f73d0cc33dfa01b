"""How the operations of a program are computed, in the form that is fastest on the device.

Each takes channels_last tensors (B, C, H, W). What nobody reads any more is overwritten. Where a block is in a faster type,
convolutions and GDN are, but sums are float32 (``models.layers.Transform`` says why).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers import lap
from models.program import Block, Operation

GDN_BLOCK = 1024  # positions; 192 channels of them fit a core's second-level cache
FEW_CHANNELS = 16  # output channels below which a transposed convolution is slower than a convolution with PixelShuffle
VIEWS = ("lap", "pixel_shuffle", "pixel_unshuffle")  # may return a view of their input, or it itself

Function = Callable[..., Tensor]


class Weights:
    """The tensors of a checkpoint on a device, in the type that a block computes in."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> None:
        self._tensors, self.device, self.dtype = tensors, device, dtype

    def exact(self, name: str) -> Tensor:
        """Return a tensor in float32."""
        return self._tensors[name].to(self.device).float()

    def ready(self, tensor: Tensor) -> Tensor:
        """Return what was computed from tensors in the block's type, kernels in channels_last."""
        kernel = tensor.dim() == 4
        return tensor.to(self.dtype, memory_format=torch.channels_last if kernel else torch.preserve_format)

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Return weight and bias of a convolution in float32."""
        return self.exact(f"{name}.weight"), self.exact(f"{name}.bias")

    def gdn(self, name: str) -> tuple[Tensor, Tensor]:
        """Return beta (C,) and gamma (C, C) of a GDN in float32: max(stored, bound)² − pedestal."""
        beta, gamma = (
            torch.maximum(self.exact(f"{name}.{key}"), self.exact(f"{name}.{key}_reparam.lower_bound.bound")) ** 2
            - self.exact(f"{name}.{key}_reparam.pedestal")
            for key in ("beta", "gamma")
        )
        return beta, gamma


def _conv2d(operation: Operation, weights: Weights) -> Function:
    weight, bias = map(weights.ready, weights.pair(operation.name))
    return partial(F.conv2d, weight=weight, bias=bias, stride=operation.stride, padding=operation.padding)


def _conv_transpose2d(operation: Operation, weights: Weights) -> Function:
    weight, bias = weights.pair(operation.name)
    shape = (operation.kernel, operation.stride, operation.padding)
    if weights.device.type == "cpu" and weight.shape[1] < FEW_CHANNELS and shape == (5, 2, 2):
        return _subpixel(weight, bias, weights)
    return partial(
        F.conv_transpose2d, weight=weights.ready(weight), bias=weights.ready(bias), stride=operation.stride,
        padding=operation.padding, output_padding=operation.output_padding,
    )  # fmt: skip


def _subpixel(weight: Tensor, bias: Tensor, weights: Weights) -> Function:
    """Return a transposed 5×5 convolution of stride 2 to few channels as a 3×3 one with PixelShuffle: faster on a CPU below 16.

    The same sums with zeros added; see ``models.quantise.transposed_taps`` for the taps. The weight is (C, O, 5, 5).
    """
    padded = F.pad(weight, (0, 1, 0, 1))  # tap 5 is absent
    rows = torch.tensor([[a + 2 - 2 * d for d in (-1, 0, 1)] for a in (0, 1)], device="cpu")  # 4, 2, 0; 5, 3, 1
    cells = padded[:, :, rows[:, None, :, None], rows[None, :, None, :]]  # (C, O, 2, 2, 3, 3)
    kernel = weights.ready(cells.permute(1, 2, 3, 0, 4, 5).flatten(0, 2).contiguous())
    wide = weights.ready(bias.repeat_interleave(4))
    return lambda x: F.pixel_shuffle(F.conv2d(x, kernel, wide, padding=1), 2)


def _gdn(operation: Operation, weights: Weights, *, overwrite: bool) -> Function:
    beta, gamma = weights.gdn(operation.name)
    if weights.device.type == "cpu":
        matrix, offset = weights.ready(gamma.T.contiguous()), weights.ready(beta)
        return partial(_blocked_gdn, gamma=matrix, beta=offset, inverse=operation.inverse, overwrite=overwrite)
    kernel, offset = weights.ready(gamma[:, :, None, None]), weights.ready(beta)
    root = torch.sqrt if operation.inverse else torch.rsqrt
    return lambda x: x * root(F.conv2d(x**2, kernel, offset))


def _blocked_gdn(x: Tensor, *, gamma: Tensor, beta: Tensor, inverse: bool, overwrite: bool) -> Tensor:
    """Return GDN of x, computed block by block of positions: half of the time of CompressAI's on a CPU.

    What it computes in between stays in the cache.
    """
    x = x.contiguous(memory_format=torch.channels_last) if overwrite else x.clone(memory_format=torch.channels_last)
    for block in x.permute(0, 2, 3, 1).view(-1, x.shape[1]).split(GDN_BLOCK):
        norm = torch.addmm(beta, block * block, gamma)
        block.mul_(norm.sqrt_() if inverse else norm.rsqrt_())
    return x


def _taking(dtype: torch.dtype, function: Function) -> Function:
    """Return a function of one tensor that turns it into its type first."""
    return lambda x: function(x.to(dtype))


def _float32_sum(a: Tensor, b: Tensor, *, owned: list[bool]) -> Tensor:
    """Return a + b in float32, of tensors that may be of a faster type. Overwrites one that is owned and of float32."""
    for term, other, may in ((a, b, owned[0]), (b, a, owned[1])):
        if may and term.dtype == torch.float32:
            return term.add_(other)
    return torch.add(a.float(), b)


def _binary(plain: Function, in_place: Function, owned: list[bool]) -> Function:
    """Return a sum or product that overwrites the first or the second input, if it may."""
    if owned[0]:
        return in_place
    return (lambda a, b: in_place(b, a)) if owned[1] else plain


def function_of(operation: Operation, weights: Weights, owned: list[bool]) -> Function:
    """Return what computes an operation. It may overwrite the inputs that are ``owned``."""
    kind, overwrite = operation.kind, owned[0]
    if kind == "conv2d":
        return _taking(weights.dtype, _conv2d(operation, weights))
    if kind == "conv_transpose2d":
        return _taking(weights.dtype, _conv_transpose2d(operation, weights))
    if kind == "gdn":
        return _taking(weights.dtype, _gdn(operation, weights, overwrite=overwrite))
    if kind == "lap":
        return partial(lap, weight=weights.exact(f"{operation.name}.weight"))
    if kind == "pixel_shuffle":
        return partial(F.pixel_shuffle, upscale_factor=operation.factor)
    if kind == "pixel_unshuffle":
        return partial(F.pixel_unshuffle, downscale_factor=operation.factor)
    if kind == "relu":
        return partial(F.relu, inplace=overwrite)
    if kind == "leaky_relu":
        return partial(F.leaky_relu, negative_slope=operation.slope, inplace=overwrite)
    if kind == "sigmoid":
        return torch.sigmoid_ if overwrite else torch.sigmoid
    if kind == "add":
        return partial(_float32_sum, owned=owned) if weights.dtype != torch.float32 else _binary(torch.add, Tensor.add_, owned)
    assert kind == "mul"
    return torch.mul if weights.dtype != torch.float32 else _binary(torch.mul, Tensor.mul_, owned)


class ReadyBlock:
    """A block with its weights. ``owned`` says whether its input may be overwritten, then whether its output may."""

    def __init__(self, block: Block, weights: Weights, *, owned: bool) -> None:
        self.float32, self.scale = block.float32, block.scale
        uses = [sum(operation.inputs.count(i) for operation in block.operations) for i in range(len(block.operations))]
        last = {i: number for number, operation in enumerate(block.operations) for i in operation.inputs}
        viewed = {i for operation in block.operations if operation.kind in VIEWS for i in operation.inputs}
        free = [owned]  # whether nobody else has the memory of a value
        self._steps: list[tuple[Function, tuple[int, ...], list[int]]] = []
        for number, operation in enumerate(block.operations):
            spent = [uses[i] == 1 or (last[i] == number and i not in viewed) for i in operation.inputs]
            may = [free[i] and done for i, done in zip(operation.inputs, spent, strict=True)]
            dead = [i for i in set(operation.inputs) if last[i] == number]
            self._steps.append((function_of(operation, weights, may), operation.inputs, dead))
            free.append(may[0] if operation.kind in VIEWS else True)
        self.owned = free[-1]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output of x (B, C, H, W)."""
        values: list[Any] = [x]
        for function, inputs, dead in self._steps:
            out = function(*[values[i] for i in inputs])
            for i in dead:
                values[i] = None  # its memory is free
            values.append(out)
        result: Tensor = values[-1]
        return result
