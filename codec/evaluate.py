"""``codec evaluate``: the report's table of a model over a folder of pictures, by real files.

One row for each rate level of the checkpoint: λ, and means over the pictures of pixels, bits of the file, bpp, PSNR of the
decoded 8-bit picture, seconds of encoding (pixels to bytes) and of decoding (bytes to pixels).
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitstream.errors import UsageError
from codec import images
from codec.api import Codec
from codec.machine import cpu_name
from codec.metrics import bpp, psnr_db
from codec.targets import Target
from codec.training.data import SUFFIXES

COLUMNS = ("lmbda", "pixels", "bits", "bpp", "psnr_db", "encode_s", "decode_s")


def evaluate(coder: Codec, folder: Path, *, progress: Callable[[str], None] = lambda _: None) -> list[dict[str, float]]:
    """Return one row of ``COLUMNS`` for each rate level. Raises UsageError if the folder has no pictures."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise UsageError(f"{folder}: no pictures ({', '.join(sorted(SUFFIXES))}) are below it")
    pictures = [images.load(path) for path in paths]
    coder.decode(coder.encode_picture(pictures[0], Target()))  # the first call builds and allocates
    config = coder.model.config
    values = [round(float(lmbda), 6) for lmbda in config.lmbda(torch.arange(config.levels, dtype=torch.float64))]
    rows = []
    for level, lmbda in enumerate(values):
        quality = 100 * level / max(len(values) - 1, 1)
        points = [_point(coder, picture, quality) for picture in pictures]
        means = dict(zip(COLUMNS[1:], np.mean(points, axis=0).tolist(), strict=True))
        rows.append({"lmbda": lmbda, **means})
        progress(f"λ {lmbda:.4f}: {means['bpp']:.3f} bpp, {means['psnr_db']:.2f} dB")
    return rows


def _point(coder: Codec, picture: images.Picture, quality: float) -> tuple[float, ...]:
    begin = time.perf_counter()
    data = coder.encode_picture(picture, Target(quality=quality))
    middle = time.perf_counter()
    decoded = coder.decode(data)
    end = time.perf_counter()
    h, w, _ = picture.pixels.shape
    psnr = psnr_db(picture.pixels, images.load(decoded).pixels)
    return h * w, 8 * len(data), bpp(len(data), w, h), psnr, middle - begin, end - middle


def summary(coder: Codec, folder: Path, rows: list[dict[str, float]], threads: int) -> dict[str, Any]:
    """Return the rows with what they were measured on, for a JSON file."""
    row = coder.model.checkpoint
    return {
        "model": row.model,
        "name": row.name,
        "checkpoint": row.sha256,
        "pictures": folder.name,
        "threads": threads,
        "cpu": cpu_name(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "rows": rows,
    }
