"""Training pictures in memory: decoded once to uint8, cropped where they lie (CPU or GPU)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bitstream.errors import UsageError
from codec.images import SUFFIXES


def find_images(folder: str | Path, min_side: int = 1) -> list[Path]:
    """Return all pictures below a folder in sorted order, those with a side below ``min_side`` left out.

    Raises UsageError if there are none, or for a file that is no picture.
    """
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    kept = []
    for path in paths:
        try:
            with Image.open(path) as image:
                side = min(image.size)
        except OSError as error:
            raise UsageError(f"{path}: not a picture that Pillow can read: remove it") from error
        if side >= min_side:
            kept.append(path)
    if not kept:
        raise UsageError(f"{folder}: found {len(paths)} pictures, none with both sides of {min_side} pixels or more")
    return kept


def load_rgb(path: Path) -> Tensor:
    """Decode one picture to a (3, H, W) uint8 tensor. Raises UsageError if it is damaged."""
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"{path}: cannot be decoded ({error}): remove it") from error


class CropStore:
    """All pictures of a list as uint8 on one device; draws batches of random crops, mirrored half of the time."""

    def __init__(self, paths: list[Path], device: torch.device) -> None:
        self.images = [load_rgb(path).to(device) for path in paths]
        self.device = device

    def batch(self, size: int, crop: int, rng: np.random.Generator, part: slice = slice(None)) -> Tensor:
        """Return (size, 3, crop, crop) float32 in [0, 1]; every picture is as likely as the others.

        ``part`` of them, if it is given: what is drawn from ``rng`` is the same.
        """
        draws = []
        for index in rng.integers(len(self.images), size=size):
            _, h, w = self.images[index].shape
            draws.append((index, int(rng.integers(h - crop + 1)), int(rng.integers(w - crop + 1)), rng.random() < 0.5))
        crops = []
        for index, top, left, flip in draws[part]:
            piece = self.images[index][:, top : top + crop, left : left + crop]
            crops.append(piece.flip(2) if flip else piece)
        return torch.stack(crops).float() / 255


def validation_batches(paths: list[Path], size: int, side: int = 512) -> list[Tensor]:
    """Return (B, 3, H, W) uint8 batches of pictures cut to multiples of 64, at most ``side``; up to ``size`` of equal cut."""
    batches: list[list[Tensor]] = []
    filling: dict[tuple[int, ...], list[Tensor]] = {}  # the last batch of each shape
    for path in paths:
        image = load_rgb(path)[:, :side, :side]
        image = image[:, : image.shape[1] // 64 * 64, : image.shape[2] // 64 * 64]
        batch = filling.get(tuple(image.shape))
        if batch is None or len(batch) == size:
            batch = filling[tuple(image.shape)] = []
            batches.append(batch)
        batch.append(image)
    return [torch.stack(batch) for batch in batches]
