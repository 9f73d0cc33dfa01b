"""The order in which the positions of y are coded (FORMAT.md section 5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.layout import Order

ALL, EVEN, ODD = slice(None), slice(0, None, 2), slice(1, None, 2)  # of the channels
WAVES = 6  # wavefronts of a segment, about
POSITIONS = 64  # positions of a segment, about or more


class Cell(NamedTuple):
    """Flat positions (P,), and which of their channels: all or every second."""

    where: Tensor
    channels: slice = ALL


Step = list[Cell]  # what is coded at once: no element of it may depend on another


def anchor_mask(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """Return the (h, w) bool mask of the positions that are coded first: (row + column) even."""
    rows = torch.arange(h, device=device)[:, None]
    return (rows + torch.arange(w, device=device)) % 2 == 0


def crossed_mask(channels: int, h: int, w: int, device: torch.device | None = None) -> Tensor:
    """Return the (channels, h, w) bool mask of what is coded first: (channel + row + column) even."""
    odd = torch.arange(channels, device=device)[:, None, None] % 2 == 1
    return anchor_mask(h, w, device) ^ odd


def wavefronts(h: int, w: int) -> list[Tensor]:
    """Return the flat positions (P,) of each wavefront: equal column + 3·row, in raster order inside.

    A causal 5×5 context reaches two columns right of its centre in the rows above, so none of a wavefront sees another.
    """
    rows, columns = torch.arange(h, device="cpu")[:, None], torch.arange(w, device="cpu")
    wave = (columns + 3 * rows).reshape(-1)
    order = torch.argsort(wave, stable=True)
    return list(order.split(torch.bincount(wave, minlength=w + 3 * (h - 1)).tolist()))


def segments(order: Order, h: int, w: int) -> list[list[Step]]:
    """Return the steps of each segment: what shares its streams.

    A segment of wavefronts ends where it has its share of all positions, of ⌊waves / 6⌋ segments, of 64 or more on average.
    """
    if order == "one pass":
        return [[[Cell(torch.arange(h * w, device="cpu"))]]]
    if order == "wavefronts":
        return _wave_segments(h, w)
    is_anchor = anchor_mask(h, w, torch.device("cpu")).reshape(-1)
    anchors, others = torch.nonzero(is_anchor)[:, 0], torch.nonzero(~is_anchor)[:, 0]
    if order == "checkerboard":
        return [[[Cell(anchors)]], [[Cell(others)]]]
    return [[[Cell(anchors, EVEN), Cell(others, ODD)]], [[Cell(anchors, ODD), Cell(others, EVEN)]]]


def _wave_segments(h: int, w: int) -> list[list[Step]]:
    waves = [wave for wave in wavefronts(h, w) if len(wave)]
    count = max(1, min(len(waves) // WAVES, h * w // POSITIONS))
    out: list[list[Step]] = [[]]
    coded = 0
    for wave in waves:
        if coded * count >= len(out) * h * w:
            out.append([])
        out[-1].append([Cell(wave)])
        coded += len(wave)
    return out
