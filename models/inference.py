"""A transform made ready for inference: mixed precision, fast operations, whole pictures or parts of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.operations import ReadyBlock, Weights
from models.program import Program
from models.windows import Span, margins, run


class MixedPrecision:
    """A program with its tensors: convolutions and GDN in ``dtype``, sums and the ``float32`` blocks in float32.

    Takes and returns float32; runs in channels_last on ``device``.
    """

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> None:
        self.program = program
        exact, fast = Weights(tensors, device, torch.float32), Weights(tensors, device, dtype)
        self._blocks: list[ReadyBlock] = []
        for block in program:
            owned = bool(self._blocks) and self._blocks[-1].owned  # the first input is the caller's
            self._blocks.append(ReadyBlock(block, exact if block.float32 else fast, owned=owned))
        self._needed = margins(program)

    @property
    def margin(self) -> int:
        """Return how many input positions around a part decide its output."""
        return self._needed[0]

    def __call__(self, x: Tensor, rows: Span | None = None, columns: Span | None = None) -> Tensor:
        """Return the output of x (B, C, H, W): all of it, or the part that the spans want of an input that x is a window of."""
        h, w = x.shape[-2:]
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, enabled=False):  # a caller's autocast must not change the pixels
            out = run(self._blocks, x, rows or Span.whole(h), columns or Span.whole(w), self._needed)
        return out.float()
