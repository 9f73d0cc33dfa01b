"""What the command modules share: kinds of parameters, limits, the number of CPU threads, and how errors are worded."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bitstream.errors import CodecError, is_out_of_memory
from bitstream.limits import Limits

DEVICES = click.Choice(["auto", "cpu", "cuda"])
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
PATH = click.Path(path_type=Path)
FILE_OR_STREAM = click.Path()  # stays a string: of pathlib's paths, "./-" is "-"
SCALE = click.Choice(["1", "1/2", "1/4", "1/8"])


class _Crop(click.ParamType):
    name = "crop"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the four numbers of "X,Y,W,H"."""
        if re.fullmatch(r"\d{1,9}(,\d{1,9}){3}", str(value)) is None:
            self.fail(f"{value!r} is not X,Y,W,H: column, row, width and height in pixels, for example 0,0,512,512", param, ctx)
        return tuple(map(int, value.split(",")))


CROP = _Crop()


max_pixels_option = click.option(
    "--max-pixels", type=click.IntRange(1), default=Limits.max_pixels, show_default=True, help="Refuse larger pictures."
)
_max_memory_option = click.option(
    "--max-memory", metavar="MB|GB", default="4GiB", show_default=True, help="Refuse what may take more."
)


def limit_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add --max-pixels and --max-memory: what ``limits_of`` takes."""
    return max_pixels_option(_max_memory_option(function))


def limits_of(max_pixels: int, max_memory: str) -> Limits:
    """Return the limits that options give. Raises UsageError."""
    from codec.targets import parse_size

    return Limits(max_pixels=max_pixels, max_memory=parse_size(max_memory))


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads, if one is given; torch is imported only then."""
    if threads:
        import torch

        torch.set_num_threads(threads)


def printable(text: str) -> str:
    """Return a text in one line that any terminal can show: what else may be in a file's name is written as an escape."""
    kinds = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that are no UTF-8, separators of lines
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in kinds else c for c in text)


def sentence_of(error: Exception) -> str | None:
    """Return the line that says what went wrong, None for what is not expected to: a mistake of ours."""
    if isinstance(error, CodecError):
        return printable(str(error))
    if is_out_of_memory(error):
        return "out of memory: the picture is too large for this machine"
    return None
