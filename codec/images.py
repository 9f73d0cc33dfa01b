"""Pictures in and out: files, PIL images and arrays to (H, W, 3) uint8 and back.

What the codec does not store yet (alpha, more than 8 bits, CMYK, animation) is an error that names it; metadata that is left
behind is a warning. Nothing is dropped in silence.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from bitstream.errors import ImageError
from bitstream.limits import Limits
from codec.files import write_atomic

Pixels: TypeAlias = NDArray[np.uint8]
ImageLike: TypeAlias = "Image.Image | Pixels | str | PathLike[str]"

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}  # of the pictures in a folder

_METADATA = {"icc_profile": "ICC profile", "exif": "EXIF data", "xmp": "XMP data"}
_TOO_DEEP = "more than 8 bits a channel are not supported yet: convert to 8 bits first"
_DEEP_RAW_MODE = re.compile(r"(L|LA|RGB|RGBA|RGBX|CMYK|I);(16|32)")
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
_LOSSLESS = {"PNG", "WEBP", "TIFF", "BMP", "DIB", "PPM", "TGA", "PCX", "SGI", "JPEG2000", "QOI"}
_RESIZING = {"ICO", "ICNS"}  # icons: Pillow shrinks the picture
_ROWS = 1024  # of a picture, converted at once
_PILLOW = threading.Lock()  # its limit is one for all threads
# What Pillow and its plugins raise for damage. SyntaxError: their own word for a bad header.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, RuntimeError, struct.error, zlib.error,
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
_DIRECT = {"RGB": "RGB", "L": "L", "1": "L", "P": "RGB", "YCbCr": "RGB"}


@dataclass(frozen=True)
class Picture:
    """Pixels (H, W, 3) uint8; ``gray`` if the source has one channel (then the three are equal)."""

    pixels: Pixels
    gray: bool


def load(source: ImageLike, *, limits: Limits | None = None) -> Picture:
    """Read a path, a PIL image, or an (H, W, 3) or (H, W) uint8 array. Raises ImageError, or LimitError above ``limits``."""
    limits = limits or Limits()
    if isinstance(source, np.ndarray):
        picture = _from_array(source)
        limits.check_size(picture.pixels.shape[1], picture.pixels.shape[0])
        return picture
    name = "image" if isinstance(source, Image.Image) else str(Path(source))
    try:
        if isinstance(source, Image.Image):
            limits.check_size(*source.size)
            return _from_pil(source, name)
        with _open(Path(source)) as image:
            limits.check_size(*image.size)  # before the pixels are read
            if image.format in ("JPEG2000", "AVIF") and is_deep_header(_head(Path(source))):
                raise ImageError(f"{name}: {_TOO_DEEP}")
            return _from_pil(image, name)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a picture that Pillow can read: give a PNG, JPEG, WebP, TIFF or BMP file") from error
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{name}: cannot be read ({reason})") from error


def _open(path: Path) -> Image.Image:
    """Open a picture of any size: ours is the limit that counts, and Pillow's has no option.

    Pillow's limit is off for the whole process during the call, so also for a caller's own ``Image.open`` in another thread.
    """
    with _PILLOW:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _from_array(array: NDArray[np.generic]) -> Picture:
    gray = array.ndim == 2
    if array.dtype != np.uint8 or not (gray or (array.ndim == 3 and array.shape[2] == 3)) or 0 in array.shape:
        raise ImageError(f"array is {array.shape} {array.dtype}, expected (H, W, 3) or (H, W) uint8, H and W at least 1")
    pixels = np.repeat(array[:, :, None], 3, axis=2) if gray else array
    return Picture(np.ascontiguousarray(pixels, dtype=np.uint8), gray)


def _from_pil(image: Image.Image, name: str) -> Picture:
    if problem := _unsupported(image):
        raise ImageError(f"{name}: {problem}")
    orientation = _orientation(image)  # reads to the end of a PNG, where more metadata may be
    left = [label for key, label in _METADATA.items() if image.info.get(key)]
    if image.format == "MPO" and getattr(image, "n_frames", 1) > 1:
        left.append("further pictures of a multi-picture file")
    if left:
        unread = "the EXIF data cannot be read: an orientation is not applied"
        turned = unread if orientation is None else "orientation is applied"
        warnings.warn(f"{name}: {', '.join(left)} not stored ({turned})", UserWarning, stacklevel=4)
    upright = image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
    mode = _DIRECT[upright.mode]
    pixels = np.empty((upright.height, upright.width, 3), np.uint8)
    if 0 in pixels.shape:
        raise ImageError(f"{name}: the picture is {image.width}×{image.height}, expected at least 1×1")
    for top in range(0, upright.height, _ROWS):  # Pillow needs several copies of what it converts
        part = upright.crop((0, top, upright.width, min(top + _ROWS, upright.height)))
        pixels[top : top + _ROWS] = np.asarray(part.convert(mode).convert("RGB"))
    return Picture(pixels, mode == "L")


def _orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation, 1 if there is none, None if the EXIF data cannot be read; damage to the pixels is raised."""
    image.load()
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        return None


def _unsupported(image: Image.Image) -> str | None:
    """Say what about a picture cannot be stored yet, with the cure; None if all of it can."""
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return f"an animation of {getattr(image, 'n_frames', 2)} frames, one frame is supported: extract the frame you want"
    if image.mode.startswith(("I", "F")) or _is_deep(image):
        return _TOO_DEEP
    if image.mode != "LAB" and (image.has_transparency_data or image.mode in ("RGBa", "La", "PA")):
        return "an alpha channel is not supported yet: flatten the picture onto a background first"
    if image.mode == "CMYK":
        return "CMYK is not supported yet: convert to RGB first"
    if image.mode not in _DIRECT:
        return f"colour mode {image.mode} is not supported: convert to RGB first"
    return None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2**16)


def is_deep_header(head: bytes) -> bool:
    """Return whether a JPEG 2000 or AVIF file that begins so has more than 8 bits a channel: Pillow cuts them to 8 in silence.

    Looks at Ssiz in JPEG 2000's SIZ marker (ISO 15444-1 A.5.1) and at high_bitdepth in AVIF's av1C box (AV1-ISOBMFF 2.3.3).
    """
    siz = head.find(b"\xff\x4f\xff\x51")
    if siz >= 0 and siz + 42 < len(head):
        return head[siz + 42] & 0x7F > 7
    av1c = head.find(b"av1C")
    return av1c >= 0 and av1c + 6 < len(head) and bool(head[av1c + 6] & 0x40)


def _is_deep(image: Image.Image) -> bool:
    """Return whether the file has more than 8 bits a channel; Pillow hides that of RGB behind mode "RGB"."""
    for tile in getattr(image, "tile", []):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(a, str) and _DEEP_RAW_MODE.match(a) for a in arguments):
            return True
        if tile[0].startswith("ppm") and any(isinstance(a, int) and a > 255 for a in arguments):
            return True
    return False


def to_pil(pixels: Pixels, *, gray: bool) -> Image.Image:
    """Return a PIL image, mode L if gray (rounded mean of the channels), else RGB."""
    if gray:
        mean = (pixels.sum(axis=2, dtype=np.uint16) + 1) // 3
        return Image.fromarray(mean.astype(np.uint8))
    return Image.fromarray(pixels)


def shown(pixels: Pixels, *, gray: bool) -> Pixels:
    """Return the pixels (H, W, 3) of what ``to_pil`` returns."""
    return np.repeat(np.asarray(to_pil(pixels, gray=True))[:, :, None], 3, axis=2) if gray else pixels


def format_of(path: str | PathLike[str]) -> str:
    """Return Pillow's name of the format that a path's extension stands for. Raises ImageError if it cannot be written."""
    suffix = Path(path).suffix.lower()
    kind = Image.registered_extensions().get(suffix)
    if kind is None or kind not in Image.SAVE or kind in _RESIZING:
        raise ImageError(f"{path}: Pillow writes no {suffix or 'extensionless'} files: name it .png, for example")
    return kind


def save(image: Image.Image, path: str | PathLike[str], *, overwrite: bool = False) -> None:
    """Write a picture in the format of the path's extension, whole or not at all.

    Raises ImageError, UsageError or WriteError.
    """
    target = Path(path)
    kind = format_of(target)
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=kind, **_SAVE_OPTIONS.get(kind, {}))
    except (OSError, ValueError, KeyError, OverflowError, struct.error) as error:
        raise ImageError(f"{target}: cannot be written as {kind} ({error}): name it .png") from error
    if kind not in _LOSSLESS:
        warnings.warn(f"{target}: {kind} does not keep the decoded pixels exactly: name it .png for that", stacklevel=2)
    write_atomic(target, buffer.getvalue(), overwrite=overwrite)
