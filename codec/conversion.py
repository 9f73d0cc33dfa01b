"""Pictures that are not 8-bit RGB or gray: what each becomes, and what is lost by that."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, TiffTags

HEAD_BYTES = 2**16  # of a file, in which its depth and colour space stand
SRGB_GAMMA = 0.45455
SRGB_CHROMATICITY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
# Codes of ITU-T H.273: primaries of BT.709, which are sRGB's; transfers of BT.709, 601, 2020 and sRGB. 2 is unspecified.
SRGB_PRIMARIES, SRGB_TRANSFERS = {1, 2}, {1, 2, 6, 13, 14, 15}
WHITE_16 = 2**16 - 1
_DEEP_RAW_MODE = re.compile(r"(L|LA|RGB|RGBA|RGBX|RGBa|CMYK|I);(12|16|32)")
_GRAY = {"L", "LA", "La", "1"}
_DIRECT = {"RGB", "L", "1", "P", "YCbCr", "RGBA", "LA", "PA", "RGBX", "RGBa", "La"}
_PHOTOMETRIC, _EXTRA_SAMPLES, _BITS = (next(tag for tag, info in TiffTags.TAGS_V2.items() if info.name == name) for name in (
    "PhotometricInterpretation", "ExtraSamples", "BitsPerSample"))  # fmt: skip
_KEY_SCALES = {"L;2": 85, "L;4": 17}  # of gray, which Pillow brings to 8 bits, but not the value that is transparent


class Converted(NamedTuple):
    """A picture in a mode that Pillow converts to RGB or RGBA by rule, what got lost, and whether its profile holds no more."""

    image: Image.Image
    losses: list[str]
    drops_profile: bool = False


@dataclass(frozen=True)
class Stored:
    """How a picture lies in its file, which Pillow hides once it is loaded; ``white`` is the largest value of 16-bit gray."""

    deep: bool = False
    white: int = WHITE_16
    inverted: bool = False
    gray_alpha: bool = False  # gray with alpha of 16 bits, which Pillow makes a colour picture of
    key_scale: int = 1  # of the value that is transparent
    fourth: int | None = None  # TIFF's ExtraSamples: 0 unspecified, 1 premultiplied alpha, 2 alpha
    head: bytes = b""

    @classmethod
    def of(cls, image: Image.Image, head: bytes) -> Stored:
        """Look at a picture that is opened and not yet loaded; ``head`` is the beginning of its file, if it has one."""
        raw_modes = [mode for tile in getattr(image, "tile", []) for mode in _strings(tile[3])]
        numbers = [n for tile in getattr(image, "tile", []) if tile[0].startswith("ppm") for n in tile[3] if isinstance(n, int)]
        deep = any(map(_DEEP_RAW_MODE.match, raw_modes)) or max(numbers, default=0) > 255
        tags: dict[int, Any] = getattr(image, "tag_v2", {})
        return cls(
            deep or (image.format in ("JPEG2000", "AVIF") and is_deep_header(head)),
            2**12 - 1 if "I;12" in raw_modes or tags.get(_BITS) == (12,) else WHITE_16,
            tags.get(_PHOTOMETRIC) == 0 and image.mode.startswith("I;16"),  # min is white: Pillow turns 8 bits round, not 16
            any(mode.startswith("LA;16") for mode in raw_modes) and image.mode == "RGBA",
            next((_KEY_SCALES[mode] for mode in raw_modes if mode in _KEY_SCALES), 1),
            next(iter(tags.get(_EXTRA_SAMPLES, ())), None),
            head,
        )


def _strings(arguments: Any) -> list[str]:
    return [a for a in (arguments if isinstance(arguments, tuple) else (arguments,)) if isinstance(a, str)]


def refusal(image: Image.Image) -> str | None:
    """Return why a picture cannot be stored, with the cure; None if it can."""
    if image.mode.startswith("F"):
        return "floating-point pixels have no known white: scale them to 8 or 16 bits first"
    if image.mode == "I" and image.format != "PPM":  # of which Pillow makes 0 … 65535
        return "signed pixels, or those of 32 bits, have no known white: scale them to 8 or 16 bits, unsigned, first"
    if image.mode not in _DIRECT | {"CMYK", "LAB", "HSV", "I"} and not image.mode.startswith("I;16"):
        return f"colour mode {image.mode} is not supported: convert to RGB first"
    return None


def is_gray(image: Image.Image) -> bool:
    """Return whether a converted picture has one channel besides alpha."""
    return image.mode in _GRAY


def convert(image: Image.Image, stored: Stored) -> Converted:
    """Convert a loaded picture that ``refusal`` lets pass."""
    losses = colour_losses(image, stored.head)
    if image.mode == "CMYK":
        rgb, how = _cmyk_to_rgb(image)
        return Converted(rgb, [*losses, f"CMYK is converted to sRGB ({how})"], True)
    if image.mode == "LAB":
        return Converted(_transform(image, ImageCms.createProfile("LAB")), [*losses, "CIELAB is converted to sRGB"], True)
    if image.mode == "HSV":
        return Converted(image.convert("RGB"), [*losses, "HSV is converted to RGB"])
    if image.mode.startswith("I"):
        return Converted(_from_16_bits(image, stored), [*losses, "more than 8 bits a channel are rounded to 8"])
    if stored.deep:
        losses.append("more than 8 bits a channel are cut to 8")
        if isinstance(key := image.info.get("transparency"), tuple):  # Pillow has cut the pixels, not the transparent colour
            image.info["transparency"] = tuple(value >> 8 for value in key)
            losses.append("colours are transparent that have the upper 8 bits of the transparent one")
    if stored.key_scale > 1 and isinstance(key := image.info.get("transparency"), int):
        image.info["transparency"] = key * stored.key_scale
    if stored.gray_alpha:
        image = image.convert("LA")
    if image.mode in ("RGBa", "La") or stored.fourth == 1:
        losses.append("colours that are multiplied by alpha are divided by it")
    elif stored.fourth == 0 and "A" not in image.mode:
        losses.append("a channel of unknown meaning beside the colours is left away")
    return Converted(image, losses)


def colour_losses(image: Image.Image, head: bytes) -> list[str]:
    """Return what a file says of its colours in a way that is not stored: other than by an ICC profile."""
    info = image.info
    if "icc_profile" in info and info["icc_profile"] is None:
        return ["the ICC profile is damaged: not stored"]
    if _has_jpeg_2000_colours(head):
        return [
            "the colours are told by an ICC profile or a code of the JPEG 2000 file, which Pillow does not read: not stored"
        ]
    is_png = head[:4] == b"\x89PNG"
    primaries, transfer = _png_codes(head) if is_png else _avif_codes(head)
    if info.get("icc_profile") and not is_png:  # in a PNG the code counts for more
        return []
    if primaries not in SRGB_PRIMARIES or transfer not in SRGB_TRANSFERS:
        code = f"primaries {primaries}, transfer {transfer} of ITU-T H.273"
        return [f"the colours are told by a code ({code}), which is not stored: give an ICC profile"]
    if info.get("icc_profile") or "srgb" in info:
        return []
    told = []
    if abs(info.get("gamma", SRGB_GAMMA) - SRGB_GAMMA) > 0.01:
        told.append(f"gamma {info['gamma']}")
    there = info.get("chromaticity", SRGB_CHROMATICITY)
    if max(abs(a - b) for a, b in zip(there, SRGB_CHROMATICITY, strict=True)) > 0.01:
        told.append("primaries")
    return [f"{' and '.join(told)} of the PNG file, other than those of sRGB: not stored, an ICC profile is"] if told else []


def _has_jpeg_2000_colours(head: bytes) -> bool:
    """Return whether a JPEG 2000's box colr (ISO 15444-1, I.5.3.3) tells other colours than sRGB, gray, sYCC or CMYK."""
    at = head.find(b"colr") if head[4:8] == b"jP  " else -1
    if not 0 <= at <= len(head) - 11:
        return False
    method, code = head[at + 4], int.from_bytes(head[at + 7 : at + 11], "big")
    return method != 1 or code not in (0, 12, 15, 16, 17, 18)


def _png_codes(head: bytes) -> tuple[int, int]:
    """Return primaries and transfer in a PNG's chunk cICP, which stands before the pixels; 2, 2 if there is none."""
    offset = 8
    while offset + 12 <= len(head):
        length, kind = struct.unpack_from(">I4s", head, offset)
        if kind == b"cICP":
            return head[offset + 8], head[offset + 9]
        if kind == b"IDAT":
            break
        offset += 12 + length
    return 2, 2


def _avif_codes(head: bytes) -> tuple[int, int]:
    """Return primaries and transfer in an AVIF's box colr (ISO 14496-12, 12.1.5); 2, 2 if there is none."""
    at = head.find(b"colrnclx") if head[4:8] == b"ftyp" else -1
    return struct.unpack_from(">HH", head, at + 8) if 0 <= at <= len(head) - 12 else (2, 2)


def is_deep_header(head: bytes) -> bool:
    """Return whether a JPEG 2000 or AVIF file that begins so has more than 8 bits a channel: Pillow cuts them to 8 in silence.

    Looks at Ssiz in JPEG 2000's SIZ marker (ISO 15444-1 A.5.1) and at high_bitdepth in AVIF's av1C box (AV1-ISOBMFF 2.3.3).
    """
    siz = head.find(b"\xff\x4f\xff\x51")
    if siz >= 0 and siz + 42 < len(head):
        return head[siz + 42] & 0x7F > 7
    av1c = head.find(b"av1C")
    return av1c >= 0 and av1c + 6 < len(head) and bool(head[av1c + 6] & 0x40)


def _from_16_bits(image: Image.Image, stored: Stored) -> Image.Image:
    """Return 16-bit gray as L, rounded, or LA if a value is transparent."""
    values = np.asarray(image).astype(np.uint32).clip(0, stored.white)
    small = ((values * 255 + stored.white // 2) // stored.white).astype(np.uint8)
    gray = Image.fromarray(255 - small if stored.inverted else small)
    gray.info.update(image.info)
    key = gray.info.pop("transparency", None)
    if isinstance(key, int):
        gray.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return gray


def _cmyk_to_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """Return a picture in sRGB, and how it was converted."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        return _transform(image, profile), "by its ICC profile"
    except (KeyError, ImageCms.PyCMSError, OSError):
        return image.convert("RGB"), "without a profile that fits: colours are approximate"


def _transform(image: Image.Image, source: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile) -> Image.Image:
    result = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert result is not None
    return result
