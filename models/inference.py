"""A transform made ready for inference: mixed precision, fast layers, whole pictures or parts of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from models.layers import Float32, for_inference
from models.windows import Span, margins, run


class MixedPrecision:
    """A sequence of layers: ``dtype`` inside, the ``Float32`` islands left as they are.

    Takes and returns float32; runs in channels_last on ``device``.
    """

    def __init__(self, layers: nn.Sequential, device: torch.device, dtype: torch.dtype) -> None:
        fast = for_inference if device.type == "cpu" else lambda layer: layer
        self.layers = [_ready(fast(layer), device) for layer in _flat(layers)]
        for layer in self.layers:
            if not isinstance(layer, Float32):
                layer.to(dtype)
        self.dtype = dtype
        self._needed = margins(self.layers)

    @property
    def margin(self) -> int:
        """Return how many input positions around a part decide its output."""
        return self._needed[0]

    def __call__(self, x: Tensor, rows: Span | None = None, columns: Span | None = None) -> Tensor:
        """Return the output of x (B, C, H, W): all of it, or the part that the spans want of an input that x is a window of."""
        h, w = x.shape[-2:]
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, enabled=False):  # a caller's autocast must not change the pixels
            out = run(self.layers, x, rows or Span.whole(h), columns or Span.whole(w), self._needed, self.dtype)
        return out.float()


def _flat(layers: nn.Sequential) -> Iterator[nn.Module]:
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            yield from _flat(layer)
        else:
            yield layer


def _ready(layer: nn.Module, device: torch.device) -> nn.Module:
    return layer.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
