"""Pictures in and out: files, PIL images and arrays to (H, W, 3) uint8, alpha and metadata, and back.

What the picture loses on the way in is a warning that names it (``strict``: an error). Texts, resolution and IPTC data are
not a part of it, and are left behind.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from contextlib import nullcontext
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from bitstream.chunks import Metadata
from bitstream.errors import ImageError
from bitstream.limits import Limits
from codec import conversion, metadata
from codec.files import read_stream, write_atomic
from codec.pillows_limit import open_picture, pillows_limit

Pixels: TypeAlias = NDArray[np.uint8]
ImageLike: TypeAlias = "Image.Image | Pixels | str | PathLike[str] | bytes | BinaryIO"

SUFFIXES = {  # of the pictures in a folder
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".pnm", ".jp2", ".j2k", ".qoi", ".tga",
}  # fmt: skip

_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True, "exact": True},  # exact: colours that cannot be seen too
    "JPEG": {"quality": 95, "subsampling": 0},
    "MPO": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
_LOSSLESS = {"PNG", "WEBP", "TIFF", "BMP", "DIB", "PPM", "TGA", "PCX", "SGI", "JPEG2000", "QOI"}
_ALPHA = {"PNG", "WEBP", "TIFF", "AVIF", "JPEG2000", "TGA"}  # formats that give it back
_RESIZING = {"ICO", "ICNS"}  # icons: Pillow shrinks the picture
_ROWS = 1024  # of a picture, converted at once
# What Pillow and its plugins raise for damage. SyntaxError: their own word for a bad header.
DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, RuntimeError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
_TURNS = {  # EXIF orientation → what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """Pixels (H, W, 3) uint8; ``gray`` if the source has one colour channel (then the three are equal).

    ``alpha`` is (H, W) uint8, None if there is none.
    """

    pixels: Pixels
    gray: bool
    alpha: Pixels | None = None
    metadata: Metadata = Metadata()

    @property
    def bare(self) -> Picture:
        """Return the colours alone: what codecs are compared by."""
        return replace(self, alpha=None, metadata=Metadata())


def load(
    source: ImageLike, *, limits: Limits | None = None, strip: bool = False, strict: bool = False, name: str = "image"
) -> Picture:
    """Read a path, the bytes of a file or an open one, a PIL image, or an array.

    Arrays are uint8 of (H, W), (H, W, 2) with alpha, (H, W, 3) or (H, W, 4) with alpha. ``strip`` leaves EXIF and XMP data
    away, not the ICC profile: without it the colours are others. Warns of what is lost; with ``strict`` that is an error.
    ``name`` is that of a source without a path, for messages.
    Raises ImageError, or LimitError above ``limits``.
    """
    limits = limits or Limits()
    if isinstance(source, np.ndarray):
        picture = _from_array(source)
        limits.check_size(picture.pixels.shape[1], picture.pixels.shape[0])
        return picture
    named = isinstance(source, str | PathLike)
    name = str(Path(source)) if isinstance(source, str | PathLike) else name
    try:
        if isinstance(source, Image.Image):
            limits.check_size(*source.size)
            with pillows_limit.at(limits.max_pixels):
                picture, losses = _from_pil(source, _head_of(source), strip, _further_pictures_of_callers(source))
        else:
            file = open(source, "rb") if isinstance(source, str | PathLike) else _as_file(source, limits)
            with file if named else nullcontext(file), open_picture(file) as image:
                limits.check_size(*image.size)  # before the pixels are read
                with pillows_limit.at(limits.max_pixels):  # a part of an icon may be larger than it says
                    picture, losses = _from_pil(image, _head(file), strip, _further_pictures(image))
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a picture that Pillow can read: give a PNG, JPEG, WebP, TIFF or BMP file") from error
    except _Refused as error:
        raise ImageError(f"{name}: {error}") from error
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if "MAX_TEXT_CHUNK" in reason or "MAX_TEXT_MEMORY" in reason:
            reason = "a profile or text of more than a megabyte, which Pillow does not read in a PNG: remove it first"
        raise ImageError(f"{name}: cannot be read ({reason})") from error
    if losses and strict:
        cure = "leave it away, or convert the picture first"
        raise ImageError(f"{name}: {losses[0]}; --strict (strict=True) allows no loss: {cure}")
    for loss in losses:
        warnings.warn(f"{name}: {loss}", UserWarning, stacklevel=3)
    return picture


class _Refused(Exception):
    """Why a picture cannot be stored, not yet its name."""


def _as_file(source: Any, limits: Limits) -> BinaryIO:
    """Return bytes, or what cannot seek, as a file in memory. Raises _Refused for what is no source, LimitError."""
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if not hasattr(source, "read"):
        kind = type(source).__name__
        raise _Refused(f"this is of type {kind}, expected a path, bytes, an open file, a PIL image or an array")
    seekable = getattr(source, "seekable", None)  # not all that reads has it
    if seekable is not None and seekable():
        return cast(BinaryIO, source)
    try:
        return io.BytesIO(read_stream(source, limits))
    except TypeError as error:  # text, or a coroutine
        raise _Refused(
            f"the read() of {type(source).__name__} gives no bytes: give its bytes, or a file opened for them"
        ) from error


def _from_array(array: NDArray[np.generic]) -> Picture:
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if array.dtype != np.uint8 or (channels, array.ndim) not in ((1, 2), (2, 3), (3, 3), (4, 3)) or 0 in array.shape:
        raise ImageError(
            f"array is {array.shape} {array.dtype}, expected (H, W, 3) or (H, W) uint8, with alpha (H, W, 4) or (H, W, 2), H "
            f"and W at least 1: {_cure_for(array)}"
        )
    gray = channels < 3
    colours = array.reshape(*array.shape[:2], channels)[:, :, : 1 if gray else 3]
    pixels = np.repeat(colours, 3, axis=2) if gray else colours
    alpha = np.ascontiguousarray(array[:, :, -1], dtype=np.uint8) if channels in (2, 4) else None
    return Picture(np.require(pixels, np.uint8, ["C", "W"]), gray, alpha)  # torch warns of arrays that cannot be written


def _cure_for(array: NDArray[np.generic]) -> str:
    if array.ndim == 3 and array.dtype == np.uint8 and 1 in (array.shape[0], array.shape[2]):
        return "of one channel it is array[0]" if array.shape[0] == 1 else "of one channel it is array[:, :, 0]"
    if array.ndim == 3 and array.dtype == np.uint8 and array.shape[0] in (3, 4):
        return "of (C, H, W) it is array.transpose(1, 2, 0)"
    if array.dtype == np.uint16:
        return "of 16 bits it is (array >> 8).astype('uint8')"
    return "255 * array.astype('uint8') if it is of truth values" if array.dtype == np.bool_ else "convert it"


def _from_pil(image: Image.Image, head: bytes, strip: bool, further: list[str]) -> tuple[Picture, list[str]]:
    """Return the picture, and what is lost, after the ``further`` pictures. Raises _Refused, or what Pillow raises."""
    if problem := conversion.refusal(image):
        raise _Refused(problem)
    lies = conversion.Stored.of(image, head)
    losses = list(further)
    orientation = _orientation(image)  # reads to the end of a PNG, where more metadata may be
    stored, unread = metadata.read(image)
    if orientation is None:
        losses.append(
            f"the EXIF data cannot be read: {'' if strip else 'it is stored as it is, '}an orientation is not applied"
        )
    if strip:
        stored = Metadata(icc=stored.icc)
    elif orientation is not None:
        losses += unread
    converted, lost, drops_profile = conversion.convert(image, lies)
    if orientation in _TURNS:
        converted = converted.transpose(_TURNS[orientation])
        stored = metadata.upright(stored, *converted.size)
    if drops_profile:
        stored = stored._replace(icc=b"")
    if 0 in image.size:
        raise _Refused(f"the picture is {image.width}×{image.height}, expected at least 1×1")
    pixels, alpha = _arrays(converted)
    return Picture(pixels, conversion.is_gray(converted), alpha, stored), losses + lost


def _arrays(image: Image.Image) -> tuple[Pixels, Pixels | None]:
    """Return pixels (H, W, 3) and alpha (H, W) or None."""
    transparent = image.has_transparency_data or image.mode in ("RGBa", "La", "PA")
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    alpha = np.empty((image.height, image.width), np.uint8) if transparent else None
    for top in range(0, image.height, _ROWS):  # Pillow needs several copies of what it converts
        part = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        part = part.convert("LA") if part.mode == "La" else part
        if alpha is None:
            pixels[top : top + _ROWS] = np.asarray(part.convert("RGB"))
        else:
            values = np.asarray(part.convert("RGBA"))
            pixels[top : top + _ROWS], alpha[top : top + _ROWS] = values[:, :, :3], values[:, :, 3]
    return pixels, alpha


def _further_pictures(image: Image.Image, number: int | None = None) -> list[str]:
    """Return what is lost of a file of several pictures, of which that of a number is stored (default: where it stands)."""
    count = getattr(image, "n_frames", 1)
    if image.format == "MPO" and count > 1:
        return ["further pictures of a multi-picture file are not stored"]
    if getattr(image, "is_animated", False):
        number = image.tell() if number is None else number
        return [f"of an animation (or pages) of {count} frames number {number + 1} is stored"]
    return []


def _further_pictures_of_callers(image: Image.Image) -> list[str]:
    """Return what ``_further_pictures`` does, of a picture that may be loaded and drawn on. Nothing if its file is closed.

    To count the frames of some formats reads the picture anew, so another one is opened for that.
    """
    if image.format not in ("GIF", "TIFF"):
        return _further_pictures(image)
    file: Any = getattr(image, "fp", None) or getattr(image, "_fp", None)  # the latter once it is loaded
    try:
        place = file.tell() if file is not None and file.seekable() else None
    except (ValueError, OSError):  # it is closed
        return []
    if place is None:
        return []
    try:
        file.seek(0)
        with Image.open(file) as other:
            return _further_pictures(other, image.tell())
    finally:
        file.seek(place)


def _orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation, 1 if there is none, None if the EXIF data cannot be read; damage to the pixels is raised."""
    image.load()
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return None


def _head_of(image: Image.Image) -> bytes:
    """Return the beginning of the file of a picture that is opened and not yet loaded, else nothing."""
    file = getattr(image, "fp", None)
    try:
        return _head(file) if file is not None and file.seekable() else b""
    except (ValueError, OSError):  # it is closed
        return b""


def _head(file: Any) -> bytes:
    """Return the beginning of a file; its position stays what it is."""
    place = file.tell()
    file.seek(0)
    head = file.read(conversion.HEAD_BYTES)
    file.seek(place)
    return head


def to_pil(pixels: Pixels, *, gray: bool, alpha: Pixels | None = None, stored: Metadata | None = None) -> Image.Image:
    """Return a PIL image, mode L if gray (rounded mean of the channels), else RGB, or LA, RGBA with alpha."""
    if gray:
        mean = (pixels.sum(axis=2, dtype=np.uint16) + 1) // 3
        pixels = mean.astype(np.uint8)
    image = Image.fromarray(pixels)
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    image.info.update(metadata.info_of(stored or Metadata()))
    return image


def shown(pixels: Pixels, *, gray: bool) -> Pixels:
    """Return the pixels (H, W, 3) of what ``to_pil`` returns."""
    return np.repeat(np.asarray(to_pil(pixels, gray=True))[:, :, None], 3, axis=2) if gray else pixels


def format_of(path: str | PathLike[str]) -> str:
    """Return Pillow's name of the format that a path's extension stands for. Raises ImageError if it cannot be written."""
    suffix = Path(path).suffix.lower()
    kind = Image.registered_extensions().get(suffix)
    if kind is None or kind not in Image.SAVE or kind in _RESIZING or kind == "LIC":  # ours, where codec.pillow is imported
        raise ImageError(f"{path}: Pillow writes no {suffix or 'extensionless'} files: name it .png, for example")
    return kind


def pack(image: Image.Image, kind: str, name: str) -> bytes:
    """Return the bytes of a file in one of Pillow's formats, with the metadata that ``image.info`` holds.

    Warns of what the format cannot hold. Raises ImageError.
    """
    if image.mode in ("RGBA", "LA") and kind not in _ALPHA:
        if image.getchannel("A").getextrema()[0] == 255:  # nothing is seen through it
            image = image.convert(image.mode.removesuffix("A"))
    if image.mode in ("RGBA", "LA") and kind not in _ALPHA:
        raise ImageError(f"{name}: {kind} keeps no alpha channel, the picture has one: name it .png")
    buffer = io.BytesIO()
    try:
        options, lost = metadata.save_options(image.info, kind)
        image.save(buffer, format=kind, **_SAVE_OPTIONS.get(kind, {}), **options)
    except (*DAMAGE, OverflowError) as error:
        raise ImageError(f"{name}: cannot be written as {kind} ({error}): name it .png") from error
    if kind not in _LOSSLESS:
        warnings.warn(f"{name}: {kind} does not keep the decoded pixels exactly: name it .png for that", stacklevel=2)
    if lost:
        warnings.warn(f"{name}: {kind} does not hold {' and '.join(lost)}: name it .png for that", stacklevel=2)
    return buffer.getvalue()


def save(image: Image.Image, path: str | PathLike[str], *, overwrite: bool = False) -> None:
    """Write a picture in the format of the path's extension, whole or not at all.

    Raises ImageError, UsageError or WriteError.
    """
    target = Path(path)
    write_atomic(target, pack(image, format_of(target), str(target)), overwrite=overwrite)
