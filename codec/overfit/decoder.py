"""Pictures of files that hold networks of their own (``overfit``): the same interface as ``codec.tiles`` has for the others."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F

from bitstream.grid import Rect
from codec.images import Pixels
from codec.tiles import to_pixels
from models.overfit.runtime import DecodedFit, OverfitModel


class FittedDecoder:
    """Synthesises areas of a picture of w × h pixels from its grids and networks: one tile, whatever its size."""

    def __init__(self, model: OverfitModel, w: int, h: int, level: int) -> None:
        self._model, self._level = model, level
        self.tiles = [Rect(0, 0, w, h)]

    def decode(self, latents_of: Callable[[int], DecodedFit], area: Rect, scale: int = 1, most: int | None = None) -> Pixels:
        """Return the pixels (H, W, 3) of an area, each the mean of scale × scale, fewer at its right and lower edge."""
        x_hat = self._model.synthesise(latents_of(0), self._level)[..., area.top : area.bottom, area.left : area.right]
        return to_pixels(F.avg_pool2d(x_hat.clamp(0, 1), scale, ceil_mode=True) if scale > 1 else x_hat)
