"""Measure rate-distortion on a folder of pictures (Kodak's 24) with real files, against JPEG and other peers.

    python scripts/bench_kodak.py KODAK_FOLDER -o results/kodak.json

Every point: bytes of the file, bpp, PSNR of the decoded 8-bit picture. Averages over pictures at equal settings; BD-rate
over the averages with the ``bjontegaard`` package (Akima). Needs the ``bench`` extra.
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
import torch
from PIL import Image
from rich.progress import track

from codec.api import Codec
from codec.images import Pixels
from codec.metrics import bpp, psnr_db

QUALITIES = [0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]
PEERS: dict[str, tuple[list[int], dict[str, Any]]] = {
    "JPEG": ([5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98], {"optimize": True, "subsampling": 0}),
    "WEBP": ([0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99], {"method": 6}),
    "AVIF": ([5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95], {"speed": 4, "subsampling": "4:4:4"}),
}

Row = dict[str, Any]


def measure(name: str, path: Path, quality: int, source: Pixels, data: bytes, decoded: Pixels) -> Row:
    """Return one row: a picture at one setting of one codec."""
    h, w, _ = source.shape
    row = {"codec": name, "image": path.stem, "quality": quality, "bytes": len(data)}
    return row | {"bpp": bpp(len(data), w, h), "psnr_db": psnr_db(source, decoded)}


def run_peer(name: str, path: Path) -> list[Row]:
    """Return the rows of a codec of Pillow's on one picture."""
    image = Image.open(path).convert("RGB")
    qualities, options = PEERS[name]
    rows = []
    for quality in qualities:
        buffer = io.BytesIO()
        image.save(buffer, format=name, quality=quality, **options)
        decoded = np.asarray(Image.open(buffer).convert("RGB"))
        rows.append(measure(name, path, quality, np.asarray(image), buffer.getvalue(), decoded))
    return rows


def run_ours(coder: Codec, name: str, path: Path) -> list[Row]:
    """Return the rows of our model on one picture."""
    source = np.asarray(Image.open(path).convert("RGB"))
    rows = []
    for quality in QUALITIES:
        data = coder.encode(source, quality=quality)
        rows.append(measure(name, path, quality, source, data, np.asarray(coder.decode(data))))
    return rows


def known_rows(out: Path, settings: dict[str, Any]) -> list[Row]:
    """Return the peers' rows of an earlier run with the same Pillow and settings: they do not change with our weights."""
    if not out.exists():
        return []
    old = json.loads(out.read_text(encoding="utf-8"))
    if old["versions"]["pillow"] != PIL.__version__:
        return []
    same = {name for name in settings if old["settings"].get(name) == settings[name]}
    return [row for row in old["rows"] if row["codec"] in same]


def average(rows: list[Row], name: str) -> list[Row]:
    """Return the mean bpp and PSNR over pictures for each quality of a codec, in order of quality."""
    own = [row for row in rows if row["codec"] == name]
    means = []
    for quality in sorted({row["quality"] for row in own}):
        part = [row for row in own if row["quality"] == quality]
        mean = {key: float(np.mean([row[key] for row in part])) for key in ("bpp", "psnr_db")}
        means.append({"quality": quality, **mean})
    return means


def bd_rate_percent(anchor: list[Row], test: list[Row]) -> float:
    """Return the BD-rate of a curve against an anchor, in percent of the bits; negative is better."""
    curves = [[row[key] for row in curve] for curve in (anchor, test) for key in ("bpp", "psnr_db")]
    return float(bjontegaard.bd_rate(*curves, method="akima", require_matching_points=False))


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("results/kodak.json"), show_default=True)
@click.option("--model", default="swift", show_default=True)
@click.option("--peers", default="JPEG,WEBP,AVIF", show_default=True, help="Comma-separated; empty for none.")
@click.option("--limit", type=int, help="Only the first pictures.")
def main(folder: Path, out: Path, model: str, peers: str, limit: int | None) -> None:
    """Write rows, averages and BD-rates as JSON."""
    coder = Codec(model)
    peer_names = [name for name in peers.split(",") if name]
    settings = {name: PEERS[name][1] for name in peer_names}
    known = known_rows(out, settings)
    rows: list[Row] = []
    for path in track(sorted(folder.glob("*.png"))[:limit], description="pictures"):
        rows += run_ours(coder, model, path)
        for name in peer_names:
            old = [row for row in known if row["codec"] == name and row["image"] == path.stem]
            rows += old if [row["quality"] for row in old] == PEERS[name][0] else run_peer(name, path)
    averages = {name: average(rows, name) for name in [model, *peer_names]}
    result = {
        "pictures": len({row["image"] for row in rows}),
        "checkpoint": coder.model.checkpoint.sha256,
        "versions": {"torch": torch.__version__, "pillow": PIL.__version__, "python": platform.python_version()},
        "settings": settings,
        "bd_rate_percent": {name: round(bd_rate_percent(averages[name], averages[model]), 2) for name in peer_names},
        "averages": averages,
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for point in averages[model]:
        click.echo(f"quality {point['quality']:3d}  {point['bpp']:.4f} bpp  {point['psnr_db']:.3f} dB")
    click.echo(f"BD-rate of {model} in percent: {result['bd_rate_percent']}")


if __name__ == "__main__":
    main()
