"""ICC profile, EXIF and XMP: read from a picture, kept byte for byte, given to the picture that is written.

What changes is the orientation: the pixels are stored upright, so its tag becomes 1, and a thumbnail of what they were goes. It
goes from a part of a picture too (``--crop``), or a smaller one. The profile is neither
applied nor replaced: the numbers of the pixels are coded as they are, and it goes on saying what colours they mean.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

from bitstream.chunks import Metadata

_EXIF_HEAD = b"Exif\0\0"  # of EXIF data in a JPEG; what follows is a TIFF structure
_XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"  # of a segment of a JPEG that Pillow does not read
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))[2-8]')
_SHORT, _LONG, _DIRECTORY = 3, 4, 13  # TIFF's types of 16 and 32 bits, and of the place of a directory
_ENTRY = 12  # bytes of a tag in a directory
_SIDES = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)
_THUMBNAILS = (  # tags of where it lies and how long it is: of a JPEG, of bare pixels
    (ExifTags.Base.JpegIFOffset, ExifTags.Base.JpegIFByteCount), (ExifTags.Base.StripOffsets, ExifTags.Base.StripByteCounts)
)  # fmt: skip
_JPEG_MOST = {"exif": 65533, "xmp": 65504}  # bytes that a segment of a JPEG holds, as Pillow fills it
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


def upright(metadata: Metadata, width: int, height: int) -> Metadata:
    """Return the metadata of a picture that was turned upright, to these sides: where it says an orientation, 1."""
    kept = of_other_pixels(metadata, width, height)
    exif = bytearray(kept.exif)
    order, start = _first_directory(exif)
    upright = struct.pack(order + "HHIHH", ExifTags.Base.Orientation, _SHORT, 1, 1, 0)
    for tag, place in _entries(exif, order, start):
        if tag == ExifTags.Base.Orientation:  # of any type: readers take them all
            exif[place : place + _ENTRY] = upright
    return kept._replace(exif=bytes(exif), xmp=_XMP_ORIENTATION.sub(rb"\g<1>1", kept.xmp))


def of_other_pixels(metadata: Metadata, width: int, height: int) -> Metadata:
    """Return the metadata of a picture that was turned, cut or made smaller, to these sides.

    Its thumbnail goes, which shows what it was: the whole of a picture of which a part was cut. All else stays where it is.
    """
    exif = bytearray(metadata.exif)
    order, start = _first_directory(exif)
    places = (place for tag, place in _entries(exif, order, start) if tag == ExifTags.IFD.Exif)
    first = next(places, None)  # one is enough: of damaged data all may be such
    inner = None if first is None else _number(exif, order, first)
    for tag, place in [] if inner is None else list(_entries(exif, order, inner)):
        if tag in _SIDES and _number(exif, order, place) is not None:
            side = height if tag == ExifTags.Base.ExifImageHeight else width
            struct.pack_into(order + "HHII", exif, place, tag, _LONG, 1, side)
    _erase_thumbnail(exif, order, start)
    return metadata._replace(exif=bytes(exif), xmp=_without_thumbnails(metadata.xmp))


def _without_thumbnails(xmp: bytes) -> bytes:
    """Return XMP data without the pictures that programs of Adobe's keep in it; older ones have another prefix."""
    for prefix in (b"xmp", b"xap"):
        begin, end = b"<" + prefix + b":Thumbnails>", b"</" + prefix + b":Thumbnails>"
        while (first := xmp.find(begin)) >= 0 and (last := xmp.find(end, first)) >= 0:
            xmp = xmp[:first] + xmp[last + len(end) :]
    return xmp


def _first_directory(exif: bytearray) -> tuple[str, int]:
    """Return the byte order for ``struct`` and the place of the first directory; a place of none if it is no EXIF data."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(exif[:2]))
    if order is None or len(exif) < 8:
        return "<", len(exif)
    return order, struct.unpack_from(order + "I", exif, 4)[0]


def _entries(exif: bytearray, order: str, start: int) -> Iterator[tuple[int, int]]:
    """Yield the tags of a directory and the places of their entries."""
    if start + 2 > len(exif):
        return
    (count,) = struct.unpack_from(order + "H", exif, start)
    for place in range(start + 2, min(start + 2 + _ENTRY * count, len(exif) - _ENTRY + 1), _ENTRY):
        yield struct.unpack_from(order + "H", exif, place)[0], place


def _number(exif: bytearray, order: str, place: int) -> int | None:
    """Return the value of an entry of one whole number, None for another one."""
    kind, count = struct.unpack_from(order + "HI", exif, place + 2)
    form = {_SHORT: "H", _LONG: "I", _DIRECTORY: "I"}.get(kind)
    return None if form is None or count != 1 else int(struct.unpack_from(order + form, exif, place + 8)[0])


def _erase_thumbnail(exif: bytearray, order: str, start: int) -> None:
    """Overwrite the picture of the second directory with zeros, or cut it off the end, and let the first one be the last."""
    if start + 2 > len(exif):
        return
    (count,) = struct.unpack_from(order + "H", exif, start)
    link = start + 2 + _ENTRY * count
    if link + 4 > len(exif):
        return
    (second,) = struct.unpack_from(order + "I", exif, link)
    if not 8 <= second < len(exif):
        return
    struct.pack_into(order + "I", exif, link, 0)
    values = {tag: _number(exif, order, place) for tag, place in _entries(exif, order, second)}
    for first, length in _THUMBNAILS:
        begin, size = values.get(first), values.get(length)
        if begin is None or size is None or begin <= link or begin >= len(exif):  # before it are the tags
            continue
        end = min(begin + size, len(exif) if begin > second else second)
        exif[begin:end] = b"" if end == len(exif) else bytes(max(end - begin, 0))


def info_of(metadata: Metadata) -> dict[str, Any]:
    """Return the metadata as Pillow has it in ``Image.info``."""
    pairs = zip(("icc_profile", "exif", "xmp"), metadata, strict=True)
    return {key: _EXIF_HEAD + value if key == "exif" else value for key, value in pairs if value}


def save_options(info: Mapping[Any, Any], kind: str) -> tuple[dict[str, Any], list[str]]:
    """Return the options of ``Image.save`` that write what ``info`` holds, and the names of what the format cannot hold."""
    options: dict[str, Any] = {}
    lost = []
    for key, name in (("icc_profile", "ICC profile"), ("exif", "EXIF data")):
        if info.get(key) and kind in _STORES and not _too_long(key, info[key], kind):
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
    elif xmp and kind in _STORES and not _too_long("xmp", xmp, kind):
        options["xmp"] = xmp
    elif xmp:
        lost.append("XMP data")
    return options, lost


def _too_long(key: str, data: bytes, kind: str) -> bool:
    """Return whether a JPEG cannot hold it in one segment, which is all that Pillow writes."""
    return kind in ("JPEG", "MPO") and len(data) > _JPEG_MOST.get(key, len(data))


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
