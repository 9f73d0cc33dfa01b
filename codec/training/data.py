"""Training pictures: found, held out, decoded once to uint8, cropped where they lie (CPU or GPU)."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitstream.errors import ImageError, LimitError, UsageError
from codec import images
from codec.files import walk_files
from codec.machine import available_memory
from codec.pillows_limit import open_picture

VALIDATION_SHARE = 64  # one picture in so many is held out when no validation folder is given


def find_images(folder: str | Path, min_side: int = 1) -> list[Path]:
    """Return all pictures below a folder in sorted order, hidden ones and those with a side below ``min_side`` left out.

    Raises UsageError if there are none, or for a file that is no picture.
    """
    return _large_ones(folder, _sides(folder), min_side)


def _large_ones(folder: str | Path, sides: dict[Path, int], min_side: int) -> list[Path]:
    kept = [path for path, side in sides.items() if side >= min_side]
    if not kept:
        raise UsageError(f"{folder}: found {len(sides)} pictures, none with both sides of {min_side} pixels or more")
    return kept


def _sides(folder: str | Path) -> dict[Path, int]:
    """Return the pictures below a folder, hidden ones left out, in sorted order, and their shorter sides."""
    paths = sorted(path for path in map(Path, walk_files(folder)) if path.suffix.lower() in images.SUFFIXES)
    sides = {}
    for path in paths:
        sides[path] = min(_size_of(path))
    return sides


def _size_of(path: Path) -> tuple[int, int]:
    """Return width and height by a picture's head. Raises UsageError if it is none."""
    try:
        with open(path, "rb") as file, open_picture(file) as image:
            return image.size
    except images.DAMAGE as error:
        raise UsageError(f"{path}: not a picture that Pillow can read: remove it") from error


def split_images(folder: str | Path, min_side: int, cure: str = "add more") -> tuple[list[Path], list[Path]]:
    """Return the pictures below a folder to train on, and those held out: every 64th of all, whatever ``min_side`` is.

    So what one stage of a training holds out, the next one with larger crops does too; only where all of these are too small,
    others are. Raises as ``find_images`` does, and UsageError with a ``cure`` if all are held out.
    """
    sides = _sides(folder)
    held = set(list(sides)[::VALIDATION_SHARE])
    kept = _large_ones(folder, sides, min_side)
    held_out = [path for path in kept if path in held] or kept[::VALIDATION_SHARE]
    others = [path for path in kept if path not in set(held_out)]
    if not others:
        raise UsageError(f"{folder}: {len(kept)} pictures, all held out for validation: {cure}")
    return others, held_out


def load_rgb(path: Path) -> Tensor:
    """Decode one picture to a (3, H, W) uint8 tensor, as the codec reads it. Raises UsageError if it cannot be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of alpha, 16 bits and more that training does not need
            return torch.from_numpy(images.load(path).pixels).permute(2, 0, 1).contiguous()
    except (ImageError, LimitError) as error:
        raise UsageError(f"{error}; or remove it") from error


def _check_memory(paths: list[Path], device: torch.device) -> None:
    """Raise UsageError if the pictures do not fit into the memory of the device."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    needed = 0
    for path in paths:
        width, height = _size_of(path)
        needed += 3 * width * height
    if free is not None and needed > free:
        raise UsageError(
            f"the {len(paths)} training pictures take {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free: "
            "give fewer or smaller ones"
        )


class CropStore:
    """All pictures of a list as uint8 on one device; draws batches of random crops, mirrored half of the time."""

    def __init__(self, paths: list[Path], device: torch.device) -> None:
        _check_memory(paths, device)
        self.pictures = [load_rgb(path).to(device) for path in paths]
        self.device = device

    def batch(self, size: int, crop: int, rng: np.random.Generator, part: slice = slice(None)) -> Tensor:
        """Return (size, 3, crop, crop) float32 in [0, 1]; every picture is as likely as the others.

        ``part`` of them, if it is given: what is drawn from ``rng`` is the same.
        """
        draws = []
        for index in rng.integers(len(self.pictures), size=size):
            _, h, w = self.pictures[index].shape
            draws.append((index, int(rng.integers(h - crop + 1)), int(rng.integers(w - crop + 1)), rng.random() < 0.5))
        crops = []
        for index, top, left, flip in draws[part]:
            piece = self.pictures[index][:, top : top + crop, left : left + crop]
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
