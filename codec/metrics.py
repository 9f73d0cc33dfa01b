"""The measures, defined once: bits per pixel of a whole file; PSNR and MS-SSIM of decoded 8-bit pictures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from codec.images import Pixels


def bpp(n_bytes: int, width: int, height: int) -> float:
    """Return bits per pixel; everything in the file counts."""
    return 8 * n_bytes / (width * height)


def ms_ssim_db(a: Pixels, b: Pixels) -> float:
    """Return −10·log10(1 − MS-SSIM) of two uint8 pictures (H, W, 3), sides above 160, over RGB; inf if equal.

    Wang 2003, by ``pytorch_msssim``; in dB as the field's plots show it. In float32, as others compute it (0.002 dB from
    float64 at 34 dB, less below), and in float64 above 40 dB.
    """
    for dtype in (np.float32, np.float64):
        difference = 1 - _ms_ssim(a.astype(dtype), b.astype(dtype))
        if difference > 1e-4:
            break
    return math.inf if difference <= 0 else -10 * math.log10(difference)


def _ms_ssim(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    import torch
    from pytorch_msssim import ms_ssim

    return float(ms_ssim(*(torch.from_numpy(x).permute(2, 0, 1)[None] for x in (a, b)), data_range=255))


def psnr_db(a: Pixels, b: Pixels) -> float:
    """Return the peak signal-to-noise ratio of two uint8 pictures (H, W, C) in dB, over all channels; inf if equal."""
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def decoded_psnr_db(pixels: Pixels, decoded: Image.Image) -> float:
    """Return the PSNR in dB of a decoded picture, mode RGB or L, with alpha or without, which does not count.

    ``pixels`` (H, W, 3) are those that were encoded, of a gray picture three equal channels.
    """
    channels = 1 if decoded.mode in ("L", "LA") else 3
    colours = np.asarray(decoded).reshape(decoded.height, decoded.width, -1)[:, :, :channels]
    return psnr_db(pixels[:, :, :channels], colours)
