"""An eighth of a picture straight from y_hat, without g_s: a linear 3×3 readout, fitted at export by least squares.

Each position of y gives 2×2 pixels, the means of 8×8 of the picture. What synthesis adds is mostly finer than that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bitstream.errors import CheckpointError

if TYPE_CHECKING:
    from models.network import Network

SCALE = 8  # pixels that one of the thumbnail stands for
CELL = 2  # pixels a side of the thumbnail for one position of y
TAPS = 3
RIDGE = 1e-4  # of the mean variance of an input
PREFIX = "thumbnail."


@torch.inference_mode()
def fit_thumbnail(network: Network, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint from crops (B, 3, H, W) in [0, 1], sides multiples of 64, at all levels in turn."""
    inputs = network.cfg.M * TAPS**2 + 1
    square = torch.zeros(inputs, inputs, dtype=torch.float64)
    mixed = torch.zeros(inputs, 3 * CELL**2, dtype=torch.float64)
    for i, x in enumerate(batches):
        level = torch.full((len(x),), float(i % network.cfg.levels))
        y_hat, _ = network.coded(x, level)
        seen = F.unfold(network.synthesis_input(y_hat, level), TAPS)  # of inner positions, so that no border is among the taps
        seen = seen.transpose(1, 2).flatten(0, 1)  # (P, inputs − 1)
        wanted = F.pixel_unshuffle(F.avg_pool2d(x, SCALE), CELL)[..., 1:-1, 1:-1].flatten(2).transpose(1, 2).flatten(0, 1)
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
        square += (seen.T @ seen).double()
        mixed += (seen.T @ wanted).double()
    square.diagonal()[:-1] += RIDGE * square.diagonal()[:-1].mean() + 1e-9
    solution = torch.linalg.solve(square, mixed).T.float()  # (outputs, inputs)
    weight = solution[:, :-1].reshape(-1, network.cfg.M, TAPS, TAPS)
    return {f"{PREFIX}weight": weight.half(), f"{PREFIX}bias": solution[:, -1].contiguous()}


class Thumbnail:
    """The readout of one checkpoint, on the CPU."""

    def __init__(self, tensors: dict[str, Tensor], channels: int) -> None:
        self._weight, self._bias = (tensors[PREFIX + name].float() for name in ("weight", "bias"))
        expected = (3 * CELL**2, channels, TAPS, TAPS)
        if tuple(self._weight.shape) != expected or tuple(self._bias.shape) != expected[:1]:
            raise CheckpointError(
                f"checkpoint: thumbnail.weight is {tuple(self._weight.shape)}, expected {expected}: damaged, export it again"
            )

    @classmethod
    def of(cls, tensors: dict[str, Tensor], channels: int) -> Thumbnail | None:
        """Return the readout in a checkpoint; None if it has none."""
        return cls(tensors, channels) if {PREFIX + "weight", PREFIX + "bias"} <= tensors.keys() else None

    @torch.inference_mode()
    def __call__(self, latents: Tensor) -> Tensor:
        """Return an eighth (1, 3, 2h, 2w), not clamped, of latents (1, M, h, w) as g_s takes them."""
        with torch.autocast("cpu", enabled=False):  # a caller's must not change the pixels
            return F.pixel_shuffle(F.conv2d(F.pad(latents, (1, 1, 1, 1), mode="replicate"), self._weight, self._bias), CELL)
