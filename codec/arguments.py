"""The options of ``Codec.encode`` and ``Codec.decode`` as types: what the functions that hand them on may be given."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Literal, TypedDict

from bitstream.limits import Limits


class EncodeOptions(TypedDict, total=False):
    """Those of ``Codec.encode``."""

    quality: float | None
    bpp: float | None
    size: int | None
    psnr: float | None
    max_size: int | None
    effort: int
    progress: Callable[[float], None]
    limits: Limits | None
    strip: bool
    strict: bool
    resume: str | PathLike[str] | None


class AreaOptions(TypedDict, total=False):
    """Those of ``Codec.decode`` that say which part, and how large."""

    crop: tuple[int, int, int, int] | None
    scale: int


class DecodeOptions(AreaOptions, total=False):
    """Those of ``Codec.decode`` but ``limits``."""

    output: Literal["pil", "numpy", "torch"]
