"""Bits per pixel as a picture: what ``codec inspect --heatmap`` writes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from codec.inspection import FloatArray, Inspection
from models.runtime import STRIDE_Y

# Nine colours of "inferno" (van der Walt and Smith, matplotlib), perceptually uniform and dark where there are few bits.
_INFERNO = ("000004", "210c4a", "56106e", "89226a", "bb3754", "e35932", "f98c0a", "f9c932", "fcffa4")


def heatmap(inspection: Inspection, *, under: Image.Image | None = None, legend: bool = True) -> Image.Image:
    """Draw bits per pixel, black for none to light yellow for most, at the size of the picture.

    ``under`` is the decoded picture, to shine through in gray. The legend is a strip below.
    """
    header, bpp_map = inspection.header, inspection.bpp_map
    top = float(bpp_map.max()) or 1.0
    blocks = _colours(bpp_map / top).repeat(STRIDE_Y, axis=0).repeat(STRIDE_Y, axis=1)
    image = Image.fromarray(np.ascontiguousarray(blocks[: header.height, : header.width]))
    if under is not None:
        image = Image.blend(under.convert("L").convert("RGB"), image, 0.6)
    return _with_legend(image, top) if legend else image


def _colours(share: FloatArray) -> NDArray[np.uint8]:
    """Return the colours (…, 3) of shares in 0 … 1."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in _INFERNO])
    places = np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(share, places, channel) for channel in anchors.T], axis=-1).round().astype(np.uint8)


def _with_legend(image: Image.Image, top: float) -> Image.Image:
    """Return the picture with a strip below it that says which colour is how many bits per pixel, up to ``top``."""
    size = max(12, min(image.size) // 32)
    width = max(image.width, 20 * size)
    canvas = Image.new("RGB", (width, image.height + 3 * size), "white")
    canvas.paste(image)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    left, right, above = size, width - size, image.height + size // 2
    bar = _colours(np.linspace(0, 1, right - left))[None].repeat(size, axis=0)
    canvas.paste(Image.fromarray(bar), (left, above))
    for share, anchor, unit in ((0.0, "la", ""), (0.5, "ma", ""), (1.0, "ra", " bits per pixel")):
        at = left + share * (right - left), above + size * 1.15
        draw.text(at, f"{share * top:.2f}{unit}", fill="black", font=font, anchor=anchor)
    return canvas
