"""One HTML file that shows codecs side by side: pictures, figures, style and script inlined; it loads nothing.

Measures nothing: it is given what was measured. The script (``page.js`` and its parts) reads one JSON block; names in it are
strangers' text and never become markup. A Content-Security-Policy names the script and the style by their hashes: nothing else
runs or loads.
"""

from __future__ import annotations

import html
import json
import math
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from io import BytesIO
from typing import Any

from PIL import Image

from codec.images import Pixels
from codec.metrics import bpp

WEBP_MAX_SIDE = 16383  # libwebp: 14 bits for each side
SCRIPTS = ("page.js", "page-difference.js", "page-figures.js", "page-input.js")  # one script, in this order
THUMBNAIL = (144, 96)


@dataclass(frozen=True)
class RatePoint:
    """One point of a codec's rate-distortion curve on one picture; None or inf where there is no such figure."""

    bpp: float
    psnr_db: float | None
    ms_ssim_db: float | None


@dataclass(frozen=True)
class Shown:
    """One codec's version of a picture: what it made of the asked bytes, and its curve over all rates."""

    name: str
    setting: str  # what reached the bytes, for people: "quality 37, subsampling 4:4:4"
    n_bytes: int
    psnr_db: float  # inf: lossless
    ms_ssim_db: float | None  # None: a side of at most 160 pixels
    encode_s: float
    decode_s: float
    pixels: Pixels  # decoded, as large as the original
    curve: Sequence[RatePoint] = ()
    is_ours: bool = False


@dataclass(frozen=True)
class Compared:
    """One picture and what each codec made of it at the asked number of bytes, in the order of the table."""

    name: str
    original: Pixels
    asked_bytes: int
    codecs: Sequence[Shown]


def page(pictures: Sequence[Compared], *, title: str, made_by: str) -> str:
    """Return the HTML document, to be written as UTF-8; ``made_by`` is the line at its foot: versions, machine."""
    facts = {"title": title, "made_by": made_by, "pictures": [_picture_facts(picture) for picture in pictures]}
    css, js = _asset("page.css"), "\n".join(map(_asset, SCRIPTS))
    policy = f"default-src 'none'; img-src data: blob:; style-src {_hash(css)}; script-src {_hash(js)}; base-uri 'none'"
    parts = {"policy": policy, "title": html.escape(title), "css": css, "js": js, "facts": _json(facts)}
    # One pass, so that no picture's name is taken for a place to fill.
    return re.sub(r"<!--(policy|title|css|js|facts)-->", lambda place: parts[place[1]], _asset("page.html"))


def data_uri(pixels: Pixels) -> str:
    """Return pixels (H, W, 3) as a data: URI without loss: WebP, or PNG where a side is too long for WebP."""
    if max(pixels.shape[:2]) > WEBP_MAX_SIDE:
        return _encoded(Image.fromarray(pixels), "PNG")
    # Four times as fast as the default effort, for 5 % more bytes.
    return _encoded(Image.fromarray(pixels), "WEBP", lossless=True, exact=True, method=1, quality=50)


def _picture_facts(picture: Compared) -> dict[str, Any]:
    height, width = picture.original.shape[:2]
    thumbnail = Image.fromarray(picture.original)
    thumbnail.thumbnail(THUMBNAIL)
    return {
        "name": picture.name,
        "width": width,
        "height": height,
        "asked_bytes": picture.asked_bytes,
        "asked_bpp": bpp(picture.asked_bytes, width, height),
        "original": data_uri(picture.original),
        "thumbnail": _encoded(thumbnail, "WEBP", quality=80),
        "codecs": [_codec_facts(shown, picture.original) for shown in picture.codecs],
    }


def _codec_facts(shown: Shown, original: Pixels) -> dict[str, Any]:
    assert shown.pixels.shape == original.shape, f"{shown.name}: decoded {shown.pixels.shape}, original {original.shape}"
    height, width = original.shape[:2]
    return {
        "name": shown.name,
        "is_ours": shown.is_ours,
        "setting": shown.setting,
        "bytes": shown.n_bytes,
        "bpp": bpp(shown.n_bytes, width, height),
        "lossless": math.isinf(shown.psnr_db),
        "psnr_db": _finite(shown.psnr_db),
        "ms_ssim_db": _finite(shown.ms_ssim_db),
        "encode_s": _finite(shown.encode_s),
        "decode_s": _finite(shown.decode_s),
        "pixels": data_uri(shown.pixels),
        "curve": [
            {"bpp": point.bpp, "psnr_db": _finite(point.psnr_db), "ms_ssim_db": _finite(point.ms_ssim_db)}
            for point in shown.curve
        ],
    }


def _finite(value: float | None) -> float | None:
    """Return value, or None where JSON has no word for it."""
    return None if value is None or not math.isfinite(value) else float(value)


def _json(facts: dict[str, Any]) -> str:
    """Return JSON that cannot end the <script> it stands in."""
    return json.dumps(facts, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _encoded(image: Image.Image, pillow_format: str, **options: Any) -> str:
    file = BytesIO()
    image.save(file, pillow_format, **options)
    return f"data:image/{pillow_format.lower()};base64,{b64encode(file.getvalue()).decode()}"


def _asset(name: str) -> str:
    return (resources.files("codec.comparison") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
