"""Measure rate-distortion on a folder of pictures (Kodak's 24) with real files, against JPEG and other peers.

    python scripts/bench_kodak.py KODAK_FOLDER -o results/kodak.json

Every point: bytes of the file, bpp, PSNR and MS-SSIM of the decoded 8-bit picture. Averages over pictures at equal settings;
BD-rates over the averages with the ``bjontegaard`` package (Akima), by both measures, MS-SSIM in dB. Needs the ``bench`` extra.
"""

from __future__ import annotations

import io
import json
import platform
from pathlib import Path
from typing import Any

import bjontegaard
import click
import numpy as np
import PIL
import pillow_jxl  # noqa: F401  (registers JPEG XL with Pillow)
import torch
from PIL import Image
from rich.progress import track

from codec.api import Codec
from codec.images import Pixels
from codec.metrics import bpp, ms_ssim_db, psnr_db

QUALITIES = [0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]
PEERS: dict[str, tuple[list[int], dict[str, Any]]] = {
    "JPEG": ([5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98], {"optimize": True, "subsampling": 0}),
    "WEBP": ([0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99], {"method": 6}),
    "AVIF": ([5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95], {"speed": 4, "subsampling": "4:4:4"}),
    "JXL": ([5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95], {"effort": 7}),
}

MEASURES = {"psnr_db": psnr_db, "ms_ssim_db": ms_ssim_db}

Row = dict[str, Any]


def point(name: str, path: Path, quality: int, source: Pixels, data: bytes, decoded: Pixels) -> Row:
    """Return one row: a picture at one setting of one codec."""
    h, w, _ = source.shape
    row = {"codec": name, "image": path.stem, "quality": quality, "bytes": len(data)}
    return row | {"bpp": bpp(len(data), w, h), **{key: measure(source, decoded) for key, measure in MEASURES.items()}}


def run_peer(name: str, path: Path) -> list[Row]:
    """Return the rows of a codec of Pillow's on one picture."""
    image = Image.open(path).convert("RGB")
    qualities, options = PEERS[name]
    rows = []
    for quality in qualities:
        buffer = io.BytesIO()
        image.save(buffer, format=name, quality=quality, **options)
        decoded = np.asarray(Image.open(buffer).convert("RGB"))
        rows.append(point(name, path, quality, np.asarray(image), buffer.getvalue(), decoded))
    return rows


def run_ours(coder: Codec, name: str, path: Path) -> list[Row]:
    """Return the rows of a model of ours on one picture."""
    source = np.asarray(Image.open(path).convert("RGB"))
    rows = []
    for quality in QUALITIES:
        data = coder.encode(source, quality=quality)
        rows.append(point(name, path, quality, source, data, np.asarray(coder.decode(data))))
    return rows


def known_rows(out: Path, settings: dict[str, Any]) -> list[Row]:
    """Return the peers' rows of an earlier run with the same Pillow and settings: they do not change with our weights."""
    if not out.exists():
        return []
    old = json.loads(out.read_text(encoding="utf-8"))
    if old["versions"]["pillow"] != PIL.__version__:
        return []
    same = {name for name in settings if old["settings"].get(name) == settings[name]}
    return [row for row in old["rows"] if row["codec"] in same and row.keys() >= MEASURES.keys()]


def average(rows: list[Row], name: str) -> list[Row]:
    """Return the means over pictures for each quality of a codec, in order of quality."""
    own = [row for row in rows if row["codec"] == name]
    means = []
    for quality in sorted({row["quality"] for row in own}):
        part = [row for row in own if row["quality"] == quality]
        mean = {key: float(np.mean([row[key] for row in part])) for key in ("bpp", *MEASURES)}
        means.append({"quality": quality, **mean})
    return means


def bd_rate_percent(anchor: list[Row], test: list[Row], measure: str) -> float:
    """Return the BD-rate of a curve against an anchor by a measure, in percent of the bits; negative is better."""
    curves = [[row[key] for row in curve] for curve in (anchor, test) for key in ("bpp", measure)]
    return float(bjontegaard.bd_rate(*curves, method="akima", require_matching_points=False))


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("results/kodak.json"), show_default=True)
@click.option("--models", default="swift,swift-ms-ssim", show_default=True, help="Comma-separated; the first gets BD-rates.")
@click.option("--peers", default="JPEG,WEBP,AVIF,JXL", show_default=True, help="Comma-separated; empty for none.")
@click.option("--limit", type=int, help="Only the first pictures.")
def main(folder: Path, out: Path, models: str, peers: str, limit: int | None) -> None:
    """Write rows, averages and BD-rates as JSON. Rows of peers that the file has already are kept."""
    coders = {name: Codec(name) for name in models.split(",") if name}
    peer_names = [name for name in peers.split(",") if name]
    settings = {name: PEERS[name][1] for name in peer_names}
    known = known_rows(out, settings)
    rows: list[Row] = []
    for path in track(sorted(folder.glob("*.png"))[:limit], description="pictures"):
        for name, coder in coders.items():
            rows += run_ours(coder, name, path)
        for name in peer_names:
            old = [row for row in known if row["codec"] == name and row["image"] == path.stem]
            rows += old if [row["quality"] for row in old] == PEERS[name][0] else run_peer(name, path)
    averages = {name: average(rows, name) for name in [*coders, *peer_names]}
    bd = {
        model: {
            measure: {name: round(bd_rate_percent(averages[name], averages[model], measure), 2) for name in peer_names}
            for measure in MEASURES
        }
        for model in coders
    }
    result = {
        "pictures": len({row["image"] for row in rows}),
        "checkpoints": {name: coder.model.checkpoint.sha256 for name, coder in coders.items()},
        "versions": {"torch": torch.__version__, "pillow": PIL.__version__, "python": platform.python_version()},
        "settings": settings,
        "bd_rate_percent": bd,
        "averages": averages,
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for model in coders:
        for row in averages[model]:
            click.echo(f"{model}, quality {row['quality']:3d}  {row['bpp']:.4f} bpp  {row['psnr_db']:.3f} dB")
        click.echo(f"BD-rate of {model} in percent: {bd[model]}")


if __name__ == "__main__":
    main()
