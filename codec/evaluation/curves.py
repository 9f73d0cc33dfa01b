"""Rate-distortion curves: means over pictures, published ones, and the BD-rate between two.

A curve is a list of points {"bpp", "psnr_db", "ms_ssim_db", …} in order of bpp. As in the literature a mean is taken at equal
settings, and the BD-rate between the curves of means.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitstream.errors import UsageError
from codec.evaluation.rows import MEASURES, Row
from codec.files import read_bytes

MEANS = ("bytes", "bpp", *MEASURES.values(), "encode_s", "decode_s")
LEAST_POINTS = 4  # of a curve that a BD-rate is taken of (Bjøntegaard, VCEG-M33)
LEAST_OVERLAP_DB = 1.0

Point = dict[str, Any]
Curve = list[Point]


def averages(rows: Iterable[Row], pictures: set[tuple[str, str]], identities: Mapping[str, str]) -> dict[str, Curve]:
    """Return the curve of each codec over ``pictures``, (image, crc): points that have a row for every one of them.

    Rows of one identity make a curve: of a codec in ``identities`` that one, else the one with the most points.
    """
    groups: dict[tuple[str, str, float, str], dict[tuple[str, str], Row]] = defaultdict(dict)
    for row in rows:
        if (row["image"], row["crc"]) in pictures:
            settings = json.dumps(row["settings"], sort_keys=True)
            groups[row["codec"], row["identity"], row["quality"], settings][row["image"], row["crc"]] = row
    curves: dict[str, dict[str, Curve]] = defaultdict(lambda: defaultdict(list))
    for (codec, identity, _, _), members in groups.items():
        if members.keys() == pictures:
            curves[codec][identity].append(_mean(list(members.values())))
    out = {}
    for codec, of in curves.items():
        curve = of.get(identities[codec], []) if codec in identities else max(of.values(), key=len)
        if curve:
            out[codec] = sorted(curve, key=lambda point: (point["bpp"], point["quality"]))
    return out


def _mean(rows: Sequence[Row]) -> Point:
    """Return the means of rows with equal settings; a measure that one of them lacks is left out."""
    point: Point = {name: rows[0][name] for name in ("quality", "lmbda", "settings", "identity") if name in rows[0]}
    point["pixels"] = float(np.mean([row["width"] * row["height"] for row in rows]))
    for name in MEANS:
        if all(row.get(name) is not None for row in rows):
            point[name] = float(np.mean([row[name] for row in rows]))
    return point


def quoted(path: Path) -> dict[str, Curve]:
    """Return published curves from a JSON file {name: {"bpp": […], "psnr": […], "ms_ssim": […], "source": …}}.

    psnr in dB, ms_ssim in 0 … 1; one of both may miss. Raises UsageError for anything else.
    """
    try:
        curves = json.loads(read_bytes(path))
        return {str(name): _quoted_curve(curve) for name, curve in curves.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f'{path}: not published curves ({error!r}): expected {{"name": {{"bpp": […], "psnr": […], "source": "…"}}, …}}'
        ) from error


def _quoted_curve(curve: Mapping[str, Any]) -> Curve:
    measures = {"psnr_db": [float(v) for v in curve.get("psnr") or []]}
    measures["ms_ssim_db"] = [-10 * math.log10(1 - v) for v in curve.get("ms_ssim") or []]
    points: Curve = [{"bpp": float(bpp)} for bpp in curve["bpp"]]
    if not all(0 < point["bpp"] < math.inf for point in points) or not all(map(math.isfinite, sum(measures.values(), []))):
        raise ValueError("rates above 0 and finite measures are expected")
    for name, heights in measures.items():
        if heights and len(heights) != len(points):
            raise ValueError(f"{len(heights)} values for {len(points)} rates")
        for point, height in zip(points, heights, strict=bool(heights)):
            point[name] = height
    return sorted(points, key=lambda point: point["bpp"])


def values(curve: Curve, measure: str) -> tuple[list[float], list[float]]:
    """Return bpp and measure of the points that have it and lie above all points of fewer bits."""
    rates: list[float] = []
    heights: list[float] = []
    for point in curve:
        if measure in point and (not heights or (point["bpp"] > rates[-1] and point[measure] > heights[-1])):
            rates.append(point["bpp"])
            heights.append(point[measure])
    return rates, heights


def bd_rate_percent(
    anchor: Curve, test: Curve, measure: str = "psnr_db", *, method: str = "akima", least_points: int = LEAST_POINTS
) -> float | None:
    """Return the BD-rate of a curve against an anchor in percent of the bits; negative is better.

    By the ``bjontegaard`` package, with Akima interpolation unless another method of it is named. None with fewer than four
    points, or an overlap below 1 dB.
    """
    import bjontegaard

    (rate_a, height_a), (rate_t, height_t) = values(anchor, measure), values(test, measure)
    if min(len(rate_a), len(rate_t)) < least_points:
        return None
    if min(height_a[-1], height_t[-1]) - max(height_a[0], height_t[0]) < LEAST_OVERLAP_DB:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a small overlap: checked above
        return float(
            bjontegaard.bd_rate(rate_a, height_a, rate_t, height_t, method=method, require_matching_points=False, min_overlap=0)
        )


def bd_matrix(curves: Mapping[str, Curve], anchors: Mapping[str, Curve], measure: str) -> dict[str, dict[str, float | None]]:
    """Return the BD-rate of each curve against each anchor, in percent to two decimals."""
    matrix: dict[str, dict[str, float | None]] = {}
    for name, curve in curves.items():
        cells = {other: None if other == name else bd_rate_percent(anchor, curve, measure) for other, anchor in anchors.items()}
        matrix[name] = {other: None if value is None else round(value, 2) for other, value in cells.items()}
    return matrix
