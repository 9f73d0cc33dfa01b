"""ICC profile, EXIF and XMP: read from a picture, kept byte for byte, given to the picture that is written.

The one thing that changes is the orientation: the pixels are stored upright, so its tag becomes 1. The profile is neither
applied nor replaced: the numbers of the pixels are coded as they are, and it goes on saying what colours they mean.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

from bitstream.chunks import Metadata

_EXIF_HEAD = b"Exif\0\0"  # of EXIF data in a JPEG; what follows is a TIFF structure
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))[2-8]')
_SHORT = 3  # TIFF's type of 16 bits
_TIFF_TAGS = (  # of a TIFF file that are about the picture, not about how the file is built
    "ImageDescription", "Make", "Model", "Software", "DateTime", "Artist", "HostComputer", "Copyright", "Rating",
)  # fmt: skip
_STORE_EXIF = {"PNG", "JPEG", "WEBP", "AVIF", "MPO", "TIFF"}
_STORE_XMP = {"PNG", "JPEG", "WEBP", "AVIF", "MPO", "TIFF"}  # PNG and TIFF by other options of Pillow's
_STORE_ICC = {"PNG", "JPEG", "WEBP", "AVIF", "MPO", "TIFF", "JPEG2000"}
_TIFF_XMP = 700  # the tag


def read(image: Image.Image) -> Metadata:
    """Return what a loaded picture has; bytes as they are in the file, EXIF data of a TIFF as a structure of its own."""
    exif = image.info.get("exif") or b""
    if not exif and image.format == "TIFF" and len(kept := _about_the_picture(image.getexif())):
        exif = kept.tobytes()
    xmp = image.info.get("xmp") or b""
    parts = (image.info.get("icc_profile") or b"", exif, xmp.encode() if isinstance(xmp, str) else xmp)
    icc, exif, xmp = (bytes(part) for part in parts)
    return Metadata(icc, exif.removeprefix(_EXIF_HEAD), xmp)


def _about_the_picture(found: Image.Exif) -> Image.Exif:
    """Return the tags that are about the picture, not about how a TIFF file is built."""
    kept = Image.Exif()
    for name in _TIFF_TAGS:
        tag = ExifTags.Base[name]
        if tag in found:
            kept[tag] = found[tag]
    for part in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if tags := dict(found.get_ifd(part)):
            kept.get_ifd(part).update(tags)
            kept[part] = tags
    return kept


def upright(metadata: Metadata) -> Metadata:
    """Return the metadata of a picture that was turned upright: where it says an orientation, 1."""
    return metadata._replace(exif=_reset(metadata.exif), xmp=_XMP_ORIENTATION.sub(rb"\g<1>1", metadata.xmp))


def _reset(exif: bytes) -> bytes:
    """Return EXIF data whose first directory says orientation 1, if it says one; all else stays where it is."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return exif
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return exif
    (count,) = struct.unpack_from(order + "H", exif, start)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", exif, entry)
        if tag == ExifTags.Base.Orientation and kind == _SHORT:
            return exif[: entry + 8] + struct.pack(order + "H", 1) + exif[entry + 10 :]
    return exif


def info_of(metadata: Metadata) -> dict[str, Any]:
    """Return the metadata as Pillow has it in ``Image.info``."""
    pairs = zip(("icc_profile", "exif", "xmp"), metadata, strict=True)
    return {key: _EXIF_HEAD + value if key == "exif" else value for key, value in pairs if value}


def save_options(info: Mapping[Any, Any], kind: str) -> tuple[dict[str, Any], list[str]]:
    """Return the options of ``Image.save`` that write what ``info`` holds, and the names of what the format cannot hold."""
    options: dict[str, Any] = {}
    lost = []
    for key, name, stores in (("icc_profile", "ICC profile", _STORE_ICC), ("exif", "EXIF data", _STORE_EXIF)):
        if info.get(key) and kind in stores:
            options[key] = info[key]
        elif info.get(key):
            lost.append(name)
    xmp = info.get("xmp")
    if kind == "TIFF" and (xmp or "exif" in options):
        exif = Image.Exif()
        exif.load(options.get("exif", b""))
        options["exif"] = _about_the_picture(exif)
        if xmp:
            options["exif"][_TIFF_XMP] = xmp
    elif xmp and kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    elif xmp and kind in _STORE_XMP:
        options["xmp"] = xmp
    elif xmp:
        lost.append("XMP data")
    return options, lost
