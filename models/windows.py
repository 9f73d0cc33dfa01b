"""Transforms of a part of a picture, equal to that part of the transform of the whole.

An output position depends on a bounded window of the input. So a part is computed from its window, and after each layer what
the next ones do not need is cut off: the zeros that convolutions pad with never reach what is wanted, except at the borders of
the picture, where they belong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from compressai.layers import AttentionBlock, ResidualBlock, ResidualBlockUpsample, ResidualBlockWithStride
from compressai.models.sensetime import ResidualBottleneckBlock
from torch import Tensor, nn

from models.layers import BLOCK, Float32, LappedFilter, SubpixelDeconv

_LONGEST_PATHS: dict[type[nn.Module], tuple[str, ...]] = {  # the layers that decide what a block of CompressAI's sees
    ResidualBottleneckBlock: ("conv1", "conv2", "conv3"),
    ResidualBlock: ("conv1", "conv2"),
    ResidualBlockWithStride: ("conv1", "conv2"),
    ResidualBlockUpsample: ("subpel_conv", "conv"),
    AttentionBlock: ("conv_b",),
}


class Footprint(NamedTuple):
    """What a layer sees: ``reach`` input positions on either side, of which ``down`` make one output position, or one ``up``.

    Windows must begin at multiples of ``grid`` input positions.
    """

    reach: int = 0
    up: int = 1
    down: int = 1
    grid: int = 1

    def margin(self, needed: int) -> int:
        """Return the margin of input positions that a margin of output positions takes."""
        return -(-needed // self.up) * self.down + self.reach


def footprints(layer: nn.Module) -> list[Footprint]:
    """Return what a layer sees, as the footprints of its parts in order."""
    if isinstance(layer, Float32):
        return footprints(layer.module)
    if isinstance(layer, nn.Sequential):
        return [part for inner in layer for part in footprints(inner)]
    for kind, names in _LONGEST_PATHS.items():
        if isinstance(layer, kind):
            return [part for name in names for part in footprints(getattr(layer, name))]
    if isinstance(layer, nn.Conv2d):
        return [Footprint(reach=layer.kernel_size[0] // 2, down=layer.stride[0])]
    if isinstance(layer, nn.ConvTranspose2d):  # 5×5 of stride 2
        beyond = layer.kernel_size[0] - 1 - int(layer.padding[0])  # outputs that an input reaches on either side
        return [Footprint(reach=-(-beyond // layer.stride[0]), up=layer.stride[0])]
    if isinstance(layer, SubpixelDeconv):
        return [Footprint(reach=1, up=2)]
    if isinstance(layer, nn.PixelShuffle):
        return [Footprint(up=layer.upscale_factor)]
    if isinstance(layer, nn.PixelUnshuffle):
        return [Footprint(down=layer.downscale_factor)]
    if isinstance(layer, LappedFilter):
        return [Footprint(reach=BLOCK // 2, grid=BLOCK)]
    if hasattr(layer, "conv") and isinstance(layer.conv, nn.Sequential):  # the residual unit inside an AttentionBlock
        return footprints(layer.conv)
    return []  # position by position


def margins(layers: list[nn.Module]) -> list[int]:
    """Return the margin to keep at the input of each layer so that the last output is right up to its edge; at the end 0.

    It is what later layers see, rounded up to what the strides and grids of later layers divide.
    """
    seen, kept, stride, out = 0, 0, 1, [0]
    for layer in reversed(layers):
        for part in reversed(footprints(layer)):
            seen = part.margin(seen)
            stride = max(stride // part.up, 1) * part.down
            step = math.lcm(stride, part.grid)
            kept = -(-max(seen, -(-kept // part.up) * part.down) // step) * step
        out.append(kept)
    return out[::-1]


@dataclass(frozen=True)
class Span:
    """What is wanted of one axis, start … stop of ``size``, and what is computed, low … high. Of the input of a transform."""

    start: int
    stop: int
    low: int
    high: int
    size: int

    @classmethod
    def around(cls, start: int, stop: int, size: int, margin: int) -> Span:
        """Return the span with a margin on either side, as far as the axis goes."""
        return cls(start, stop, max(start - margin, 0), min(stop + margin, size), size)

    @classmethod
    def whole(cls, size: int) -> Span:
        """Return the span of a whole axis."""
        return cls(0, size, 0, size, size)


class _Edges:
    """The margins of one axis while layers run over it."""

    def __init__(self, span: Span) -> None:
        self._margins = [span.start - span.low, span.high - span.stop]
        self._inside = [span.low > 0, span.high < span.size]  # not at the border of the picture

    def after(self, layer: nn.Module, needed: int) -> tuple[int, int]:
        """Return how much is to be cut off at both ends behind a layer, if ``needed`` is all that later ones need."""
        cuts = []
        for end in (0, 1):
            for part in footprints(layer):
                self._margins[end] = self._margins[end] * part.up // part.down
            cut = self._margins[end] - needed if self._inside[end] or not needed else 0
            cuts.append(cut)
            self._margins[end] -= cut
        return cuts[0], cuts[1]


def run(layers: list[nn.Module], x: Tensor, rows: Span, columns: Span, needed: list[int], dtype: torch.dtype) -> Tensor:
    """Return the output (B, C, h, w) for the wanted spans from x, which holds the computed ones.

    ``needed`` is ``margins(layers)``.
    """
    edges = _Edges(rows), _Edges(columns)
    for i, layer in enumerate(layers):
        x = layer(x if isinstance(layer, Float32) else x.to(dtype))
        (top, bottom), (left, right) = (edge.after(layer, needed[i + 1] if i + 1 < len(layers) else 0) for edge in edges)
        if top or bottom or left or right:
            x = x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]
            x = x.contiguous(memory_format=torch.channels_last)
    return x
