"""Time in-process encode and decode against CompressAI's hyperprior model, side by side in one run.

    python scripts/bench_speed.py PICTURE -o results/speed.json

One picture of 768×512, two threads, medians over runs that alternate between the two codecs. Ours is timed from the pixel
array to the bytes of the whole file and back to a PIL image; CompressAI's ``bmshj2018-hyperprior`` (quality 1, random
weights: the published ones are not needed for a time) from tensor to strings and back to a tensor.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import compressai
import numpy as np
import torch
from compressai.zoo import bmshj2018_hyperprior
from PIL import Image

from codec.api import Codec
from codec.machine import cpu_name
from codec.metrics import bpp


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds and result of one call."""
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


@click.command()
@click.argument("picture", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("results/speed.json"), show_default=True)
@click.option("--runs", type=int, default=15, show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--qualities", default="0,25,50,75,100", show_default=True)
def main(picture: Path, out: Path, runs: int, threads: int, qualities: str) -> None:
    """Write medians and ratios as JSON."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    h, w, _ = pixels.shape
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    ours = Codec()
    peer = bmshj2018_hyperprior(quality=1, pretrained=False).eval()
    peer.update(force=True)
    rows = []
    with torch.inference_mode():
        for quality in [float(q) for q in qualities.split(",")]:
            seconds: dict[str, list[float]] = {key: [] for key in ("encode", "decode", "peer_encode", "peer_decode")}
            for run in range(runs + 2):
                t_encode, data = timed(lambda quality=quality: ours.encode(pixels, quality=quality))
                t_decode, _ = timed(lambda data=data: ours.decode(data))
                t_compress, packed = timed(lambda: peer.compress(x))
                t_decompress, _ = timed(lambda packed=packed: peer.decompress(packed["strings"], packed["shape"]))
                if run >= 2:  # two to warm up
                    for key, value in zip(seconds, (t_encode, t_decode, t_compress, t_decompress), strict=True):
                        seconds[key].append(value)
            median = {key: round(statistics.median(values), 4) for key, values in seconds.items()}
            ratio = {key: round(median[key] / median[f"peer_{key}"], 3) for key in ("encode", "decode")}
            rows.append({"quality": quality, "bpp": round(bpp(len(data), w, h), 4), "median_s": median, "ratio": ratio})
            click.echo(json.dumps(rows[-1]))
    result = {
        "picture": {"name": picture.stem, "width": w, "height": h},
        "threads": threads,
        "runs": runs,
        "peer": "CompressAI bmshj2018-hyperprior, quality 1",
        "engine": ours.engine.name,
        "checkpoint": ours.model.checkpoint.sha256,
        "machine": {"cpu": cpu_name(), "system": platform.system()},
        "versions": {"torch": torch.__version__, "compressai": compressai.__version__},
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
