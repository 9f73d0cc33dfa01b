"""The networks of ``overfit`` in floating point, as functions of named parameters: of one level, for one picture or many.

Parameters are a dict by the names of ``OverfitConfig.shapes``. Grids are planes (B, h, w) of symbols, the finest first;
``gains`` (7,) are log2 of what a grid's values were multiplied by before rounding: networks see symbols · 2^−gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.overfit.configs import GRIDS, INPUTS, OUTPUTS, PHASES, OverfitConfig, levelled
from models.overfit.fused import EntropyWeights, GridBits, Upsample, bits_by_position

Parameters = dict[str, Tensor]


def fresh_parameters(config: OverfitConfig, seed: int = 0) -> Parameters:
    """Return parameters to begin training with, those of all levels: synthesis starts as the sum of the upsampled grids."""
    generator = torch.Generator().manual_seed(seed)
    out: Parameters = {}
    for name, shape in config.shapes().items():
        if levelled(name):
            out[name] = torch.zeros(config.levels, *shape)
        elif name.endswith((".context", ".coarse", ".conv_1")):
            out[name] = 0.1 * torch.randn(shape, generator=generator)
        elif name.endswith((".hidden", ".conv_2")):
            out[name] = torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        else:
            out[name] = torch.zeros(shape)
    bilinear = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]])
    out["upsample"][:] = torch.stack([torch.outer(i, j).reshape(9) for i in bilinear for j in bilinear])
    out["skip"][:, : GRIDS - 1] = 0.33
    out["skip"][:, GRIDS - 1 :] = 0.33 * torch.eye(PHASES).repeat(3, 1)
    out["synthesis.bias_3"][:] = 0.5
    return out


def fresh_gains(config: OverfitConfig) -> Tensor:
    """Return log2 of gains (levels, 7): steps fall with √λ, and coarse grids stand for many pixels."""
    rise = math.log2(config.lmbda_max / config.lmbda_min) / (config.levels - 1) / 2
    grids = torch.arange(GRIDS) - 0.5
    grids[0] -= 2
    return torch.arange(config.levels)[:, None] * rise + grids


def entropy_weights(parameters: Parameters, gains: Tensor, grid: int) -> EntropyWeights:
    """Return the entropy network of a grid for symbols as its inputs."""
    own = {name.split(".")[1]: value for name, value in parameters.items() if name.startswith(f"grid_{grid}.")}
    coarse = own["coarse"] * (-gains[grid + 1]).exp2() if "coarse" in own else None
    context = own["context"] * (-gains[grid]).exp2()
    return EntropyWeights(context, coarse, own["bias_1"], own["hidden"], own["bias_2"], own["out"], own["bias_3"])


def grid_bits(
    parameters: Parameters,
    gains: Tensor,
    grid: int,
    seen: Tensor,
    rated: Tensor,
    coarse: Tensor | None,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the bits of a grid, added up: see ``GridBits``. ``coarse`` has a ring of one position around it."""
    total: Tensor = GridBits.apply(seen, rated, coarse, weight, gains[grid], *entropy_weights(parameters, gains, grid))
    return total


def position_bits(parameters: Parameters, gains: Tensor, grid: int, symbols: Tensor, coarse: Tensor | None) -> Tensor:
    """Return the bits of each position (B, h, w) of a grid, without gradients; ``coarse`` as for ``grid_bits``."""
    return bits_by_position(symbols, coarse, gains[grid], entropy_weights(parameters, gains, grid))


def with_ring(grid: Tensor) -> Tensor:
    """Return a plane (B, h, w) with a ring of zeros."""
    return F.pad(grid, (1, 1, 1, 1))


def upsampled(parameters: Parameters, planes: Tensor, grid: int) -> Tensor:
    """Return planes (B, C, h, w) of the size of ``grid`` at the size of the next finer one."""
    b, c, h, w = planes.shape
    up: Tensor = Upsample.apply(planes.reshape(b * c, h, w), parameters["upsample"][grid - 2])
    return up.reshape(b, c, 2 * h, 2 * w)


def joined(parameters: Parameters, gains: Tensor, grids: Sequence[Tensor], finest: int) -> Tensor:
    """Return all grids from the coarsest to ``finest`` (1 or more) as planes (B, 7 − finest, h, w) of its size."""
    inverse = (-gains).exp2()
    planes = grids[-1][:, None] * inverse[-1]
    for grid in range(GRIDS - 2, finest - 1, -1):
        planes = torch.cat([grids[grid][:, None] * inverse[grid], upsampled(parameters, planes, grid + 1)], dim=1)
    return planes


def synthesis(parameters: Parameters, planes: Tensor, *, fast: bool = False) -> Tensor:
    """Return the picture's 2×2 cells (B, 12, h, w), channels as PixelUnshuffle orders them, from planes (B, 10, h, w).

    ``fast`` computes the non-linear branch in bf16, which is a correction of the rest.
    """
    with torch.autocast(planes.device.type, dtype=torch.bfloat16, enabled=fast):
        x = planes.contiguous(memory_format=torch.channels_last)
        x = F.conv2d(x, parameters["synthesis.conv_1"], parameters["synthesis.bias_1"], padding=1).relu()
        x = F.conv2d(x, parameters["synthesis.conv_2"][:, :, None, None], parameters["synthesis.bias_2"]).relu()
        x = F.conv2d(x, parameters["synthesis.conv_3"], padding=1)
    return x.float() + F.conv2d(planes, parameters["skip"][:, :, None, None], parameters["synthesis.bias_3"])


def inputs_of(coarser: Tensor, finest: Tensor, gains: Tensor) -> Tensor:
    """Return what synthesis takes: joined grids (B, 6, h/2, w/2), and the cells of the finest (B, h, w)."""
    return torch.cat([coarser, F.pixel_unshuffle(finest[:, None] * (-gains[0]).exp2(), 2)], dim=1)


def picture(parameters: Parameters, gains: Tensor, grids: Sequence[Tensor], *, fast: bool = False) -> Tensor:
    """Return x_hat (B, 3, H, W) of whole grids."""
    planes = inputs_of(joined(parameters, gains, grids, 1), grids[0], gains)
    return F.pixel_shuffle(synthesis(parameters, planes, fast=fast), 2)


def kmac_per_pixel(config: OverfitConfig, finest: int = 0) -> dict[str, float]:
    """Return thousands of multiply-accumulates per pixel of decoding, of its parts: grids from ``finest`` on are there."""
    entropy = 0.0
    for grid in range(finest, GRIDS):
        w = config.width_of(grid)
        inputs = 12 + (9 if grid < GRIDS - 1 else 0)
        entropy += (inputs * w + w * w + 2 * w) / 4**grid
    up = sum(9 * (GRIDS - grid) / 4 ** (grid - 1) for grid in range(2, GRIDS))
    h = config.hidden
    of_synthesis = (9 * INPUTS * h + h * h + 9 * h * OUTPUTS + INPUTS * OUTPUTS) / PHASES
    parts = {"entropy": entropy, "upsampling": up, "synthesis": of_synthesis}
    return {name: round(value / 1000, 3) for name, value in {"decode": sum(parts.values()), **parts}.items()}


class Analysis(nn.Module):
    """Picture (B, 3, H, W) in [0, 1], sides multiples of 64 → seven grids (B, H/2^i, W/2^i) of values before the gain.

    A Laplacian pyramid of a mixture of colours for each grid, and what CompressAI's residual blocks at 1/8 … 1/64 add to it.
    Where the latents of a fit start; a decoder does not need it.
    """

    def __init__(self, channels: int) -> None:
        from compressai.models.sensetime import ResidualBottleneckBlock  # only here: decoding does not import CompressAI

        super().__init__()
        self.mix = nn.Parameter(torch.tensor([0.299, 0.587, 0.114]).repeat(GRIDS, 1) / 0.33)
        self.stem = nn.Conv2d(192, channels, 1)
        self.blocks = nn.Sequential(*[ResidualBottleneckBlock(channels, channels) for _ in range(3)])
        self.head = nn.Conv2d(channels, 64 + 16 + 4 + 1, 1)  # the cells of the four finest grids
        self.down = nn.ModuleList(nn.Sequential(nn.AvgPool2d(2), ResidualBottleneckBlock(channels, channels)) for _ in range(3))
        self.heads = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in range(3))
        for layer in (self.head, *self.heads):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = F.pixel_unshuffle(x - 0.5, 8).contiguous(memory_format=torch.channels_last)
        features = self.blocks(self.stem(features))
        cells = self.head(features)
        found = [
            F.pixel_shuffle(part, side) for part, side in zip(cells.split((64, 16, 4, 1), dim=1), (8, 4, 2, 1), strict=True)
        ]
        for down, head in zip(self.down, self.heads, strict=True):
            features = down(features)
            found.append(head(features))
        mixed, out = F.conv2d(x - 0.5, self.mix[:, :, None, None]), []
        for grid, part in enumerate(found):
            own = mixed[:, grid : grid + 1]
            if grid < GRIDS - 1:
                mixed = F.avg_pool2d(mixed, 2)
                own = own - F.interpolate(mixed[:, grid : grid + 1], scale_factor=2.0, mode="bilinear")
            out.append((part + own)[:, 0])
        return out
