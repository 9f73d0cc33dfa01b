"""Measure how near ``--bpp``, ``--size`` and ``--psnr`` come to what they are asked for, and that quality is monotone.

    python scripts/bench_targets.py KODAK_FOLDER -o results/targets.json

Three targets of each kind on every picture. Sizes and bpp count as hit within 1 % below, PSNR within 0.1 dB above. Where a
picture has no such file, or its file at quality 100 (PSNR: 0) is already within the target, that is counted apart.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.progress import track

from bitstream.errors import TargetError
from codec import images
from codec.api import Codec
from codec.describe import info
from codec.metrics import bpp, decoded_psnr_db
from codec.targets import Target

TARGETS: dict[str, tuple[float, ...]] = {"bpp": (0.3, 0.6, 1.2), "size": (20_000, 40_000, 60_000), "psnr": (30.0, 33.0, 36.0)}
QUALITY_STEP = 4


def reached(coder: Codec, picture: images.Picture, target: Target) -> dict[str, float]:
    """Return what the file of a picture for a target is, its level, and the seconds of encoding. Raises TargetError."""
    begin = time.perf_counter()
    data = coder.encode_picture(picture, target)
    seconds = time.perf_counter() - begin
    h, w, _ = picture.pixels.shape
    psnr = decoded_psnr_db(picture.pixels, coder.decode(data))
    return {"size": len(data), "bpp": bpp(len(data), w, h), "psnr": psnr, "level": info(data).level, "seconds": seconds}


def at_targets(coder: Codec, picture: images.Picture, kind: str) -> list[tuple[str, float, float]]:
    """Return for each target of a kind: "found", "end of range" or "unreachable"; the miss in percent or dB; seconds."""
    rows = []
    for value in TARGETS[kind]:
        try:
            row = reached(coder, picture, Target(**{kind: value}))  # type: ignore[arg-type]
        except TargetError:
            rows.append(("unreachable", math.nan, math.nan))
            continue
        miss = row["psnr"] - value if kind == "psnr" else 100 * (row[kind] / value - 1)
        end = row["level"] == (0 if kind == "psnr" else coder.max_level)
        rows.append(("end of range" if end and not hit(kind, miss) else "found", miss, row["seconds"]))
    return rows


def hit(kind: str, miss: float) -> bool:
    """Return whether a file is near enough to what was asked for."""
    return 0 <= miss <= 0.1 if kind == "psnr" else -1 <= miss <= 0


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("results/targets.json"), show_default=True)
@click.option("--model", default="swift", show_default=True)
def main(folder: Path, out: Path, model: str) -> None:
    """Write misses, seconds and the curve over quality as JSON."""
    coder = Codec(model)
    rows: dict[str, list[tuple[str, float, float]]] = {kind: [] for kind in TARGETS}
    curves = []
    for path in track(sorted(folder.glob("*.png")), description="pictures"):
        picture = images.load(path)
        for kind in TARGETS:
            rows[kind] += at_targets(coder, picture, kind)
        points = [reached(coder, picture, Target(quality=q)) for q in range(0, 101, QUALITY_STEP)]
        curves.append([(point["bpp"], point["psnr"]) for point in points])
    mean = np.mean(curves, axis=0)
    slopes = np.diff(mean[:, 1]) / np.diff(np.log2(mean[:, 0]))
    targets: dict[str, Any] = {}
    for kind, found in rows.items():
        misses = [miss for state, miss, _ in found if state == "found"]
        targets[kind] = {"values": TARGETS[kind], "files": len(found), "found": len(misses)}
        targets[kind] |= {
            "hit": sum(hit(kind, miss) for miss in misses),
            "least": round(min(misses), 4),
            "most": round(max(misses), 4),
        }
        targets[kind] |= {state: sum(s == state for s, _, _ in found) for state in ("end of range", "unreachable")}
    result = {
        "checkpoint": coder.model.checkpoint.sha256,
        "targets": targets,
        "median_seconds": round(float(np.nanmedian([seconds for found in rows.values() for *_, seconds in found])), 3),
        "quality": list(range(0, 101, QUALITY_STEP)),
        "curve": [{"bpp": round(float(b), 5), "psnr_db": round(float(p), 4)} for b, p in mean],
        "pictures_monotone": int(sum(bool((np.diff(curve, axis=0) > 0).all()) for curve in curves)),
        "pictures": len(curves),
        "db_per_octave": [round(float(s), 3) for s in slopes],
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps({key: result[key] for key in ("targets", "median_seconds", "pictures_monotone", "db_per_octave")}))


if __name__ == "__main__":
    main()
