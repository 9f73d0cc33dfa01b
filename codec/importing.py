"""``codec import``: weights saved by CompressAI become a release checkpoint of ours, with our container and exact decoding.

Activations of the integer layers are calibrated on pictures: a folder of the user's, or noise drawn here.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitstream.errors import UsageError
from codec.release import release
from codec.training.data import find_images, load_rgb
from models.importing import LMBDAS, adopt
from models.manifest import own_folder
from models.network import MS_SSIM_WEIGHT

CROPS, SIDE = 32, 256


def import_weights(
    path: Path, name: str, data: Path | None, lmbda: float | None, out: Path | None, *, tune: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write ``name``.safetensors and its manifest row into ``out``, or the folder of the user's own; return the row.

    ``path`` is a state dict that CompressAI saved (also below "state_dict" or "network"). ``lmbda``, as CompressAI counts it,
    and ``tune``, "psnr" or "ms-ssim", are by the file's name where they are None. Raises UsageError.
    """
    tune = tune or ("ms-ssim" if "-ms-ssim-" in path.name else "psnr")
    if tune not in LMBDAS:
        raise UsageError(f"tune is {tune!r}, expected one of {', '.join(LMBDAS)}")
    lmbda = lmbda if lmbda is not None else _lmbda_of(path, tune)
    if not 0 < lmbda < math.inf:
        raise UsageError(f"lmbda is {lmbda}, expected a number above 0, such as 0.0130")
    model, network = adopt(read_weights(path), lmbda / MS_SSIM_WEIGHT if tune == "ms-ssim" else lmbda, tune)
    pictures = _pictures(data)
    kind = "synthetic pictures" if data is None else f"{len(pictures)} crops"
    facts = {
        "steps": 0,
        "minutes": 0.0,
        "data": f"imported from {path.name}, calibrated on {kind}",
        "measured_on": kind,
        "tune": tune,
    }
    return release(
        network, model, name, out or own_folder(), calibration=pictures, held_out=pictures[::8], facts=facts,
        dtype=torch.float32, counted_rows=False, overwrite=overwrite,
    )  # fmt: skip


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file; no code in it is run. Raises UsageError if there is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything for what is not its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path}: not weights that torch can read safely ({reason})") from error
    for key in ("state_dict", "network"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    kinds = {(type(key), isinstance(value, Tensor)) for key, value in state.items()} if isinstance(state, dict) else set()
    if kinds != {(str, True)}:
        raise UsageError(f"{path}: not a state dict: save one with torch.save(model.state_dict(), FILE)")
    strange = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if strange:
        raise UsageError(f"{path}: tensor {strange[0]} has values that are not finite: the weights are damaged")
    return state


def _lmbda_of(path: Path, tune: str) -> float:
    """Return λ by the quality in a name such as bmshj2018-hyperprior-3-6d87be32.pth.tar."""
    kinds = "factorized|factorized-prior|hyperprior|mean|mbt2018|anchor|attn"
    found = re.match(rf".*(?:{kinds})(?:-mse|-ms-ssim)?-([1-8])[-.]", path.name)
    if not found:
        raise UsageError(f"{path.name}: the name does not say which λ the weights were trained with: give it with --lmbda")
    return LMBDAS[tune][int(found.group(1)) - 1]


def _pictures(data: Path | None) -> list[Tensor]:
    """Return (1, 3, 256, 256) crops in [0, 1]: from a folder's pictures, or noise with a photograph's spectrum."""
    rng = np.random.default_rng(0)
    if data is not None:
        crops = []
        for path in find_images(data, SIDE)[:CROPS]:
            image = load_rgb(path)
            top, left = (int(rng.integers(side - SIDE + 1)) for side in image.shape[1:])
            crops.append(image[None, :, top : top + SIDE, left : left + SIDE].float() / 255)
        return crops
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)
    falling = 1 / np.maximum(np.hypot(fy, fx), 1 / SIDE)
    out = []
    for contrast in np.geomspace(0.05, 0.35, CROPS):
        gray = rng.normal(size=(1, SIDE, SIDE)) + 0.3 * rng.normal(size=(3, SIDE, SIDE))
        waves = np.fft.irfft2(np.fft.rfft2(gray) * falling, s=(SIDE, SIDE))
        waves = np.sign(waves) * np.abs(waves / waves.std()) ** 1.5  # heavy tails, as edges have
        out.append(torch.from_numpy((rng.uniform(0.3, 0.7) + contrast * waves).clip(0, 1)).float()[None])
    return out
