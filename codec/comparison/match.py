"""What each codec makes of a picture at the same number of bytes, and its curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from codec.comparison.page import Compared, RatePoint, Shown
from codec.evaluation.contenders import Contender, Made, ModelContender, make
from codec.evaluation.rows import MEASURES, Row, measure_file, run_once
from codec.images import Picture
from codec.targets import Target

UNTOLD = ("quality_mode", "mct", "no_jp2", "max_threads")  # say nothing of the picture
CHROMA = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}  # Pillow's names for JPEG
Progress = Callable[[str], None]


def compare(name: str, picture: Picture, goal: Target, contenders: Sequence[Contender], progress: Progress) -> Compared:
    """Return a picture with the best file of each codec that has the bytes of ``goal``; its smallest where all are larger.

    A quality is that of the first codec, whose bytes the others get. ``progress`` is called with the name of each codec
    before it runs.
    """
    h, w, _ = picture.pixels.shape
    limit, codecs = goal.limit(h * w), []
    limit = limit if limit is None else max(limit, 1)
    for contender in contenders:
        progress(contender.name)
        curve = [run_once(contender, picture, point, tuple(MEASURES))[0] for point in contender.grid()]  # also warms up
        made = make(contender, picture, goal.quality or 0.0) if limit is None else contender.best_within(picture, limit)
        codecs.append(_shown(contender, picture, made, curve))
        limit = codecs[0].n_bytes if limit is None else limit
    assert limit is not None
    return Compared(name, picture.pixels, limit, codecs)


def _shown(contender: Contender, picture: Picture, made: Made, curve: list[Row]) -> Shown:
    row, decoded = measure_file(contender, picture, made, tuple(MEASURES))
    return Shown(
        name=contender.name,
        setting=setting_text(contender.facts(made.quality)["settings"]),
        n_bytes=row["bytes"],
        psnr_db=math.inf if row["psnr_db"] is None else row["psnr_db"],
        ms_ssim_db=row["ms_ssim_db"],
        encode_s=row["encode_s"],
        decode_s=row["decode_s"],
        pixels=decoded,
        curve=[_rate_point(row) for row in curve],
        is_ours=isinstance(contender, ModelContender),
    )


def _rate_point(row: Row) -> RatePoint:
    return RatePoint(row["bpp"], row["psnr_db"], row["ms_ssim_db"])


def setting_text(settings: Mapping[str, Any]) -> str:
    """Return the options of a file for people: "quality 37, optimize, subsampling 4:4:4"."""
    words = []
    for key, value in settings.items():
        if key in UNTOLD or value is False:
            continue
        if value is True:
            words.append(key)
        elif key == "subsampling":
            words.append(f"subsampling {CHROMA.get(value, value)}")
        elif key == "quality_layers":  # JPEG 2000's
            words.append(f"PSNR {', '.join(f'{layer:g}' for layer in value)} dB")
        elif key == "advanced":  # AVIF's
            words += [f"{name} {what}" for name, what in value.items()]
        else:
            number = f"{value:.1f}" if isinstance(value, float) else value
            words.append(f"{key} {number}".replace("_", " "))
    return ", ".join(words)
