"""The measures, defined once: bits per pixel of a whole file; PSNR and MS-SSIM of decoded 8-bit pictures."""

from __future__ import annotations

import math

import numpy as np

from codec.images import Pixels


def bpp(n_bytes: int, width: int, height: int) -> float:
    """Return bits per pixel; everything in the file counts."""
    return 8 * n_bytes / (width * height)


def ms_ssim_db(a: Pixels, b: Pixels) -> float:
    """Return −10·log10(1 − MS-SSIM) of two uint8 pictures (H, W, 3), sides above 160, over RGB; inf if equal.

    Wang 2003, by ``pytorch_msssim``; in dB as the field's plots show it.
    """
    import torch
    from pytorch_msssim import ms_ssim

    tensors = [torch.from_numpy(x.astype(np.float64)).permute(2, 0, 1)[None] for x in (a, b)]
    difference = 1 - float(ms_ssim(*tensors, data_range=255))
    return math.inf if difference <= 0 else -10 * math.log10(difference)


def psnr_db(a: Pixels, b: Pixels) -> float:
    """Return the peak signal-to-noise ratio of two uint8 pictures (H, W, C) in dB, over all channels; inf if equal."""
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)
