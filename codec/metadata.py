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
_XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"  # of a segment of a JPEG that Pillow does not read
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))[2-8]')
_SHORT = 3  # TIFF's type of 16 bits
_BUILT = frozenset(  # TIFF tags that say how a file is built, and what is stored elsewhere
    (*range(254, 260), *range(262, 269), *range(273, 285), *range(288, 293), 296, 297, 301, *range(317, 348), *range(512, 533),
     700, 32997, 33723, 34377, 34675, 37724, *range(50706, 51200))
)  # fmt: skip
_STORES = {"PNG", "JPEG", "WEBP", "AVIF", "MPO", "TIFF"}  # formats in which Pillow writes all three
_TIFF_XMP = 700  # the tag


def read(image: Image.Image) -> tuple[Metadata, list[str]]:
    """Return what a loaded picture has, bytes as they are in the file, and what of it could not be read.

    EXIF data of a TIFF, and what older programs keep in a text of a PNG, becomes a structure of its own.
    """
    losses = []
    exif = image.info.get("exif") or b""
    try:
        if not exif and _has_other_exif(image):
            found = image.getexif()
            kept = _about_the_picture(found) if image.format == "TIFF" else found
            exif = kept.tobytes() if len(kept) else b""
    except Exception:  # whatever Pillow's reading and writing of damaged tags raises
        losses.append("the EXIF data cannot be read: not stored")
    if any(kind == "APP1" and data.startswith(_XMP_EXTENSION) for kind, data in getattr(image, "applist", ())):
        losses.append("extended XMP data, of more than 64 KB: not stored")
    xmp = image.info.get("xmp") or b""
    parts = (image.info.get("icc_profile") or b"", exif, xmp.encode() if isinstance(xmp, str) else xmp)
    icc, exif, xmp = (bytes(part) for part in parts)
    return Metadata(icc, exif.removeprefix(_EXIF_HEAD), xmp), losses


def _has_other_exif(image: Image.Image) -> bool:
    """Return whether EXIF data may be elsewhere than in ``info``; an orientation in XMP alone is none."""
    made = image.format is None and not image.info.get("xmp")
    return image.format == "TIFF" or "Raw profile type exif" in image.info or made


def _about_the_picture(found: Image.Exif) -> Image.Exif:
    """Return the tags that are about the picture, not about how a TIFF file is built."""
    kept = Image.Exif()
    parts = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
    for tag, value in found.items():
        if tag not in _BUILT and tag not in parts:
            kept[tag] = value
    for part in parts:
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
    upright = struct.pack(order + "HHIHH", ExifTags.Base.Orientation, _SHORT, 1, 1, 0)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        if struct.unpack_from(order + "H", exif, entry)[0] == ExifTags.Base.Orientation:  # of any type: readers take them all
            exif = exif[:entry] + upright + exif[entry + 12 :]
    return exif


def info_of(metadata: Metadata) -> dict[str, Any]:
    """Return the metadata as Pillow has it in ``Image.info``."""
    pairs = zip(("icc_profile", "exif", "xmp"), metadata, strict=True)
    return {key: _EXIF_HEAD + value if key == "exif" else value for key, value in pairs if value}


def save_options(info: Mapping[Any, Any], kind: str) -> tuple[dict[str, Any], list[str]]:
    """Return the options of ``Image.save`` that write what ``info`` holds, and the names of what the format cannot hold."""
    options: dict[str, Any] = {}
    lost = []
    for key, name in (("icc_profile", "ICC profile"), ("exif", "EXIF data")):
        if info.get(key) and kind in _STORES:
            options[key] = info[key]
        elif info.get(key):
            lost.append(name)
    if kind == "PNG" and len(options.get("icc_profile", b"")) > PngImagePlugin.MAX_TEXT_CHUNK:  # Pillow would not read it
        options["icc_profile"] = None
        lost.append("an ICC profile of more than a megabyte")
    xmp = info.get("xmp")
    if kind == "TIFF" and (xmp or "exif" in options):
        options["exif"] = _exif_for_tiff(options.get("exif", b""), xmp, lost)
    elif xmp and kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    elif xmp and kind in _STORES:
        options["xmp"] = xmp
    elif xmp:
        lost.append("XMP data")
    return options, lost


def _exif_for_tiff(data: bytes, xmp: bytes | None, lost: list[str]) -> Image.Exif:
    """Return the tags of a TIFF file; those of damaged EXIF data are ``lost``."""
    kept = Image.Exif()
    try:
        found = Image.Exif()
        found.load(data)
        kept = _about_the_picture(found)
        kept.tobytes()
    except Exception:  # whatever Pillow's reading and writing of damaged tags raises
        kept = Image.Exif()
        lost.append("damaged EXIF data")
    if xmp:
        kept[_TIFF_XMP] = xmp
    return kept
