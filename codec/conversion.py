"""Pictures that are not 8-bit RGB or gray: what each becomes, and what is lost by that."""

from __future__ import annotations

import io
import re
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

HEAD_BYTES = 2**16  # of a file, in which its depth and colour space stand
SRGB_GAMMA = 0.45455
SRGB_CHROMATICITY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
SRGB_CODES = {1, 2}  # colour primaries (ITU-T H.273): BT.709, which sRGB has, and "unspecified"
_DEEP_RAW_MODE = re.compile(r"(L|LA|RGB|RGBA|RGBX|CMYK|I);(16|32)")
_GRAY = {"L", "LA", "La", "1"}
_DIRECT = {"RGB", "L", "1", "P", "YCbCr", "RGBA", "LA", "PA", "RGBX", "RGBa", "La"}


class Converted(NamedTuple):
    """A picture in a mode that Pillow converts to RGB or RGBA by rule, what got lost, and whether its profile holds no more."""

    image: Image.Image
    losses: list[str]
    drops_profile: bool = False


def refusal(image: Image.Image) -> str | None:
    """Return why a picture cannot be stored, with the cure; None if it can."""
    if image.mode.startswith("F") or image.mode == "I":
        return f"{image.mode} pixels of 32 bits have no known range: scale them to 8 or 16 bits first"
    if image.mode not in _DIRECT | {"CMYK", "LAB", "HSV"} and not image.mode.startswith("I;16"):
        return f"colour mode {image.mode} is not supported: convert to RGB first"
    return None


def is_gray(image: Image.Image) -> bool:
    """Return whether a converted picture has one channel besides alpha."""
    return image.mode in _GRAY


def convert(image: Image.Image, head: bytes, *, deep: bool) -> Converted:
    """Convert a loaded picture that ``refusal`` lets pass; ``head`` is the beginning of its file, ``deep`` what it was."""
    losses = colour_losses(image, head)
    if image.mode == "CMYK":
        how = "by its ICC profile" if image.info.get("icc_profile") else "without a profile: colours are approximate"
        return Converted(_cmyk_to_rgb(image), [*losses, f"CMYK is converted to sRGB ({how})"], True)
    if image.mode == "LAB":
        return Converted(_transform(image, ImageCms.createProfile("LAB")), [*losses, "CIELAB is converted to sRGB"], True)
    if image.mode == "HSV":
        return Converted(image.convert("RGB"), [*losses, "HSV is converted to RGB"])
    if image.mode.startswith("I;16"):
        return Converted(_from_16_bits(image), [*losses, "of 16 bits a channel the upper 8 are stored"])
    if deep:
        losses.append("of more than 8 bits a channel the upper 8 are stored")
        if isinstance(key := image.info.get("transparency"), tuple):  # Pillow has cut the pixels, not the transparent colour
            image.info["transparency"] = tuple(value >> 8 for value in key)
    return Converted(image, losses)


def colour_losses(image: Image.Image, head: bytes) -> list[str]:
    """Return what a file says of its colours in a way that is not stored: other than by an ICC profile."""
    info = image.info
    if info.get("icc_profile") or "srgb" in info:
        return []
    if (code := _primaries(head)) not in SRGB_CODES:
        return [f"the colours are told by a code (primaries {code} of ITU-T H.273), which is not stored: give an ICC profile"]
    told = []
    if abs(info.get("gamma", SRGB_GAMMA) - SRGB_GAMMA) > 0.01:
        told.append(f"gamma {info['gamma']}")
    there = info.get("chromaticity", SRGB_CHROMATICITY)
    if max(abs(a - b) for a, b in zip(there, SRGB_CHROMATICITY, strict=True)) > 0.01:
        told.append("primaries")
    return [f"{' and '.join(told)} of the PNG file, other than those of sRGB: not stored, an ICC profile is"] if told else []


def _primaries(head: bytes) -> int:
    """Return the code of the primaries in a PNG's cICP or an AVIF's colr box (ISO 23091-2), 2 if there is none."""
    if head[:4] == b"\x89PNG":
        at = head.find(b"cICP", 0, head.find(b"IDAT"))
        return head[at + 4] if at >= 0 else 2
    at = head.find(b"colrnclx") if head[4:8] == b"ftyp" else -1
    return int.from_bytes(head[at + 8 : at + 10], "big") if at >= 0 else 2


def is_deep_header(head: bytes) -> bool:
    """Return whether a JPEG 2000 or AVIF file that begins so has more than 8 bits a channel: Pillow cuts them to 8 in silence.

    Looks at Ssiz in JPEG 2000's SIZ marker (ISO 15444-1 A.5.1) and at high_bitdepth in AVIF's av1C box (AV1-ISOBMFF 2.3.3).
    """
    siz = head.find(b"\xff\x4f\xff\x51")
    if siz >= 0 and siz + 42 < len(head):
        return head[siz + 42] & 0x7F > 7
    av1c = head.find(b"av1C")
    return av1c >= 0 and av1c + 6 < len(head) and bool(head[av1c + 6] & 0x40)


def is_deep(image: Image.Image, head: bytes) -> bool:
    """Return whether a file, opened and not yet loaded, has more than 8 bits a channel; Pillow hides that of RGB."""
    for tile in getattr(image, "tile", []):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(a, str) and _DEEP_RAW_MODE.match(a) for a in arguments):
            return True
        if tile[0].startswith("ppm") and any(isinstance(a, int) and a > 255 for a in arguments):
            return True
    return image.format in ("JPEG2000", "AVIF") and is_deep_header(head)


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Return 16-bit gray as L, rounded, or LA if a value is transparent."""
    values = np.asarray(image).astype(np.uint32)
    gray = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return gray
    gray.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return gray


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        return _transform(image, profile)
    except (KeyError, ImageCms.PyCMSError, OSError):
        return image.convert("RGB")


def _transform(image: Image.Image, source: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile) -> Image.Image:
    result = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert result is not None
    return result
