"""The two measures, defined once: bits per pixel of a whole file, PSNR of decoded 8-bit pictures."""

from __future__ import annotations

import math

import numpy as np

from codec.images import Pixels


def bpp(n_bytes: int, width: int, height: int) -> float:
    """Return bits per pixel; everything in the file counts."""
    return 8 * n_bytes / (width * height)


def psnr_db(a: Pixels, b: Pixels) -> float:
    """Return the peak signal-to-noise ratio of two uint8 pictures (H, W, C) in dB, over all channels; inf if equal."""
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)
