"""Transforms of a part of a picture, equal to that part of the transform of the whole.

An output position depends on a bounded window of the input. So a part is computed from its window, and after each block what
the next ones do not need is cut off: the zeros that convolutions pad with never reach what is wanted, except at the borders of
the picture, where they belong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from models.layers import BLOCK
from models.operations import ReadyBlock
from models.program import Block, Operation, Program


class Footprint(NamedTuple):
    """What an operation sees: ``reach`` input positions on either side, of which ``down`` make one output, or one ``up``.

    Windows must begin at multiples of ``grid`` input positions.
    """

    reach: int = 0
    up: int = 1
    down: int = 1
    grid: int = 1

    def margin(self, needed: int) -> int:
        """Return the margin of input positions that a margin of output positions takes."""
        return -(-needed // self.up) * self.down + self.reach


def footprint(operation: Operation) -> Footprint:
    """Return what an operation sees; most see one position."""
    reach, kind = 0, operation.kind
    if kind == "conv2d":
        reach = operation.kernel // 2
    elif kind == "conv_transpose2d":
        beyond = operation.kernel - 1 - operation.padding  # outputs that an input reaches on either side
        reach = -(-beyond // operation.stride)
    elif kind == "lap":
        return Footprint(reach=BLOCK // 2, grid=BLOCK)
    return Footprint(reach, operation.up, operation.down)


class Need(NamedTuple):
    """What all that comes later needs of a value: what it sees, the margin to keep, a multiple of what ``stride`` divides."""

    seen: int = 0
    kept: int = 0
    stride: int = 1

    def before(self, part: Footprint) -> Need:
        """Return the need of what goes into an operation, from that of what comes out."""
        seen = part.margin(self.seen)
        stride = max(self.stride // part.up, 1) * part.down
        step = math.lcm(stride, part.grid)
        return Need(seen, -(-max(seen, -(-self.kept // part.up) * part.down) // step) * step, stride)

    def joined(self, other: Need) -> Need:
        """Return the need of a value that two operations take."""
        stride = math.lcm(self.stride, other.stride)
        return Need(max(self.seen, other.seen), -(-max(self.kept, other.kept) // stride) * stride, stride)


def _need_of_input(block: Block, need: Need) -> Need:
    """Return the need of a block's input: that of the longest path through its operations."""
    needs = [Need()] * len(block.operations) + [need]  # of values that nothing is known of yet: none
    for number, operation in reversed(list(enumerate(block.operations, 1))):
        before = needs[number].before(footprint(operation))
        for i in operation.inputs:
            needs[i] = before.joined(needs[i])
    return needs[0]


def margins(program: Program) -> list[int]:
    """Return the margin to keep at the input of each block so that the last output is right up to its edge; at the end 0.

    It is what later blocks see, rounded up to what the strides and grids of later ones divide.
    """
    needs = [Need()]
    for block in reversed(program):
        needs.append(_need_of_input(block, needs[-1]))
    return [need.kept for need in reversed(needs)]


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
    """The margins of one axis while blocks run over it."""

    def __init__(self, span: Span) -> None:
        self._margins = [span.start - span.low, span.high - span.stop]
        self._inside = [span.low > 0, span.high < span.size]  # not at the border of the picture

    def after(self, up: int, down: int, needed: int) -> tuple[int, int]:
        """Return how much is to be cut off at both ends behind a block of a scale; ``needed`` is what later ones need."""
        cuts = []
        for end in (0, 1):
            self._margins[end] = self._margins[end] * up // down
            cut = self._margins[end] - needed if self._inside[end] or not needed else 0
            cuts.append(cut)
            self._margins[end] -= cut
        return cuts[0], cuts[1]


def run(blocks: list[ReadyBlock], x: Tensor, rows: Span, columns: Span, needed: list[int]) -> Tensor:
    """Return the output (B, C, h, w) for the wanted spans from x, which holds the computed ones.

    ``needed`` is ``margins`` of the program.
    """
    edges = _Edges(rows), _Edges(columns)
    for block, later in zip(blocks, needed[1:], strict=True):
        x = block(x.float() if block.float32 else x)
        (top, bottom), (left, right) = (edge.after(*block.scale, later) for edge in edges)
        if top or bottom or left or right:
            x = x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]
            x = x.contiguous(memory_format=torch.channels_last)
    return x
