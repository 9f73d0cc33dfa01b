"""The order in which the positions of y are coded (FORMAT.md section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from models.layout import Order

WAVES = 6  # wavefronts of a segment, about
POSITIONS = 64  # positions of a segment, about or more


def anchor_mask(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """Return the (h, w) bool mask of the positions that are coded first: (row + column) even."""
    rows = torch.arange(h, device=device)[:, None]
    return (rows + torch.arange(w, device=device)) % 2 == 0


def wavefronts(h: int, w: int) -> list[Tensor]:
    """Return the flat positions (P,) of each wavefront: equal column + 3·row, in raster order inside.

    A causal 5×5 context reaches two columns right of its centre in the rows above, so none of a wavefront sees another.
    """
    rows, columns = torch.arange(h, device="cpu")[:, None], torch.arange(w, device="cpu")
    wave = (columns + 3 * rows).reshape(-1)
    order = torch.argsort(wave, stable=True)
    return list(order.split(torch.bincount(wave, minlength=w + 3 * (h - 1)).tolist()))


def segments(order: Order, h: int, w: int) -> list[list[Tensor]]:
    """Return the steps (flat positions) of each segment: what is coded at once, grouped by what shares its streams.

    A segment of wavefronts ends where it has its share of all positions, of ⌊waves / 6⌋ segments, of 64 or more on average.
    """
    if order == "one pass":
        return [[torch.arange(h * w, device="cpu")]]
    if order == "checkerboard":
        anchors = anchor_mask(h, w, torch.device("cpu")).reshape(-1)
        return [[torch.nonzero(anchors)[:, 0]], [torch.nonzero(~anchors)[:, 0]]]
    waves = [wave for wave in wavefronts(h, w) if len(wave)]
    count = max(1, min(len(waves) // WAVES, h * w // POSITIONS))
    out: list[list[Tensor]] = [[]]
    coded = 0
    for wave in waves:
        if coded * count >= len(out) * h * w:
            out.append([])
        out[-1].append(wave)
        coded += len(wave)
    return out
