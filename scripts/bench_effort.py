"""Measure what ``--effort`` saves and costs: BD-rate against effort 0 on a few pictures, and seconds per megapixel.

    python scripts/bench_effort.py KODAK_FOLDER -o results/effort.json

Real files; the pictures are spread evenly over the folder.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import numpy as np
import torch
from rich.progress import track

from codec import images
from codec.api import Codec
from codec.evaluation.curves import Curve, bd_rate_percent
from codec.machine import cpu_name
from codec.metrics import bpp, decoded_psnr_db
from codec.targets import Target

QUALITIES = (15, 35, 55, 75)


def curve(coder: Codec, picture: images.Picture, effort: int) -> tuple[Curve, float]:
    """Return bpp and PSNR of a picture at all qualities, and the mean seconds of encoding."""
    points, seconds = [], []
    h, w, _ = picture.pixels.shape
    for quality in QUALITIES:
        begin = time.perf_counter()
        data = coder.encode_picture(picture, Target(quality=quality), effort=effort)
        seconds.append(time.perf_counter() - begin)
        psnr = decoded_psnr_db(picture.pixels, coder.decode(data))
        points.append({"bpp": bpp(len(data), w, h), "psnr_db": psnr})
    return points, float(np.mean(seconds))


def megapixels(picture: images.Picture) -> float:
    """Return the size of a picture."""
    return picture.pixels.shape[0] * picture.pixels.shape[1] / 1e6


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("results/effort.json"), show_default=True)
@click.option("--model", default="swift", show_default=True)
@click.option("--efforts", default="1,2,5,7,10", show_default=True)
@click.option("--pictures", default=6, show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--beside", default="", help="What else the machine did meanwhile: the seconds are then too many.")
def main(folder: Path, out: Path, model: str, efforts: str, pictures: int, threads: int, beside: str) -> None:
    """Write the BD-rates and seconds as JSON."""
    torch.set_num_threads(threads)
    coder = Codec(model)
    paths = sorted(folder.glob("*.png"))
    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, pictures).round().astype(int)]
    chosen = [images.load(path) for path in paths]
    coder.encode_picture(chosen[0], Target(quality=0), effort=1)  # builds the float twin
    plain = [curve(coder, picture, 0) for picture in chosen]
    rows = []
    for effort in [int(e) for e in efforts.split(",")]:
        savings, seconds = [], []
        for picture, (anchor, _) in track(list(zip(chosen, plain, strict=True)), description=f"effort {effort}"):
            points, second = curve(coder, picture, effort)
            saving = bd_rate_percent(anchor, points)
            if saving is None:
                raise click.ClickException("curves of a picture hardly overlap: choose other qualities")
            savings.append(saving)
            seconds.append(second / megapixels(picture))
        row = {"effort": effort, "bd_rate_percent": round(float(np.mean(savings)), 2), "least": round(max(savings), 2)}
        row |= {"most": round(min(savings), 2), "seconds_per_megapixel": round(float(np.mean(seconds)), 1)}
        click.echo(row)
        rows.append(row)
    plain_seconds = [second / megapixels(picture) for picture, (_, second) in zip(chosen, plain, strict=True)]
    result = {
        "checkpoint": coder.model.checkpoint.sha256,
        "pictures": [path.stem for path in paths],
        "qualities": QUALITIES,
        "cpu": cpu_name(),
        "threads": threads,
        "beside": beside,
        "seconds_per_megapixel_plain": round(float(np.mean(plain_seconds)), 2),
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
