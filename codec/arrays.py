"""Tensors and batches in; arrays, tensors and batches out. All other kinds of pictures are read by ``codec.images``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bitstream.errors import CodecError, ImageError, UsageError
from codec.images import ImageLike

OUTPUTS = ("pil", "numpy", "torch")
LISTED = 8  # of the pictures that differ, in a message

Decoded: TypeAlias = Any  # a PIL image, an array or a tensor: which one, ``output`` says
T = TypeVar("T")


def as_image(image: ImageLike | Tensor) -> ImageLike:
    """Return a tensor as an array (H, W, C) or (H, W) uint8, all else as it is.

    A tensor is (3, H, W) or (1, H, W), with alpha (4, H, W) or (2, H, W), uint8 or floating point in 0 … 1, on any device.
    Raises ImageError for another one, and for arrays of floating point: with them it is not known whether white is 1 or 255.
    """
    if isinstance(image, np.ndarray) and image.dtype.kind == "f":
        raise ImageError(
            f"array is {image.shape} {image.dtype}, expected uint8: round it, (255 * x).round().astype('uint8') if white is 1"
        )
    return _from_tensor(image.detach()) if isinstance(image, Tensor) else image


def _from_tensor(x: Tensor) -> NDArray[np.uint8]:
    name = f"tensor is {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
    if x.dim() != 3 or len(x) not in range(1, 5) or 0 in x.shape:
        cure = "take it apart, or use encode_batch" if x.dim() == 4 else "of (H, W, 3) it is x.permute(2, 0, 1)"
        raise ImageError(
            f"{name}, expected (3, H, W) or (1, H, W), with alpha (4, H, W) or (2, H, W), sides at least 1: {cure}"
        )
    if x.is_floating_point():
        x = x.float()  # 255 times a half would be rounded twice
        low, high = (float(end) for end in x.aminmax())
        if not (0 <= low and high <= 1):  # NaN too
            found = "with NaN" if low != low else f"from {low:g} to {high:g}"
            raise ImageError(f"{name} {found}, expected 0 … 1: divide by 255 if white is 255, else clamp it, x.clamp(0, 1)")
        x = (x * 255).round()
    elif x.dtype != torch.uint8:
        raise ImageError(f"{name}, expected uint8, or floating point in 0 … 1: convert it")
    x = x.to(torch.uint8)
    return (x[0] if len(x) == 1 else x.permute(1, 2, 0)).contiguous().cpu().numpy()


def check_output(output: str) -> None:
    """Raise UsageError for what is no kind of output."""
    if output not in OUTPUTS:
        raise UsageError(f"output is {output!r}, expected {', '.join(OUTPUTS)}")


def as_output(image: Image.Image, output: str) -> Decoded:
    """Return an image as it is, as an array (H, W, C) or (H, W) uint8, or as a tensor (C, H, W) uint8 on the CPU."""
    if output == "pil":
        return image
    array = np.array(image)
    if output == "numpy":
        return array
    x = torch.from_numpy(array)
    return x[None] if x.dim() == 2 else x.permute(2, 0, 1).contiguous()


def map_batch(job: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """Return the results of a job for each item of a batch; its errors say which: batch[0] is the first.

    Tensors are (B, C, H, W), arrays (B, H, W, C). Raises ImageError for others, UsageError for what is no batch.
    """
    if isinstance(items, Tensor | np.ndarray):
        if items.ndim != 4:
            expected = "(B, C, H, W)" if isinstance(items, Tensor) else "(B, H, W, 3)"
            raise ImageError(f"the batch is {tuple(items.shape)}, expected {expected}: of other pictures give a list")
    elif isinstance(items, str | bytes | PathLike | Image.Image) or not isinstance(items, Iterable):
        raise UsageError(f"the batch is a {type(items).__name__}, expected a list: put it in one, [x]")
    return [_numbered(job, number, item) for number, item in enumerate(items)]


def _numbered(job: Callable[[Any], T], number: int, item: Any) -> T:
    try:
        return job(item)
    except CodecError as error:
        raise type(error)(f"batch[{number}]: {error}") from error


def stack(pictures: list[Decoded], output: str) -> Decoded:
    """Return decoded pictures as one array or tensor, (B, …), or as a list for "pil".

    Raises UsageError if their shapes differ, or if there is none.
    """
    if output == "pil":
        return pictures
    if not pictures:
        raise UsageError(f"the batch has no files, expected at least one for output={output!r}: give output='pil' for a list")
    shapes = [tuple(picture.shape) for picture in pictures]
    others = [f"batch[{number}] is {shape}" for number, shape in enumerate(shapes) if shape != shapes[0]]
    if others:
        rest = f" and {len(others) - LISTED} more" if len(others) > LISTED else ""
        raise UsageError(
            f"{', '.join(others[:LISTED])}{rest}, batch[0] is {shapes[0]}, expected one shape: give output='pil' "
            "for a list, or the same crop"
        )
    return np.stack(pictures) if output == "numpy" else torch.stack(pictures)
