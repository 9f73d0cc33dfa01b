"""CDF rows of y as symbols really are, one for each scale index, counted at export, and in training with ``counted_rows``.

Training fits Gaussians to y with uniform noise. Symbols are rounded with a dead zone, and their residuals have heavier tails:
where a Gaussian of scale 0.38 expects 82 % zeros there are 92 %. The rows are data of the checkpoint and cost a decoder
nothing. A row of few counts is a mixture of Gaussians, fitted by expectation maximisation.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitstream.tables import MASTER_BITS, SCALE_MAX, SCALE_MIN, SCALES, SYMBOL_MAX
from models.entropy_tensors import PREFIX
from models.layout import EntropyLayout
from models.network import Network
from models.rounding import scale_indexes

SIGMAS = SCALE_MIN * (SCALE_MAX / SCALE_MIN) ** (np.arange(SCALES)[:, None] / (SCALES - 1))  # of the rows
WIDTHS = 2.0 ** np.arange(-2, 3.5, 0.5)  # of the components of a mixture, in scales of the row
ROUNDS = 200  # of expectation maximisation
POOLED = 1000.0  # counts that the weights of all rows together are worth in those of one
TRUST = 50.0  # counts that a mixture is worth for each symbol within six scales

Floats = NDArray[np.float64]


def has_rows(layout: EntropyLayout) -> bool:
    """Return whether a model codes y with one row for each scale index."""
    return bool(layout.hyper) and not layout.mixtures


def symbol_rows(model: Network, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the tensor of a checkpoint with the rows, from crops (B, 3, H, W); none for models that code y in another way."""
    if not has_rows(model.layout()):
        return {}
    return {f"{PREFIX}y_mass": torch.from_numpy(fit_rows(count_symbols(model, batches)))}


@torch.inference_mode()
def count_symbols(model: Network, batches: Iterable[Tensor]) -> NDArray[np.int64]:
    """Return how often each magnitude occurs at each scale index, (64, 1024), over crops (B, 3, H, W) at all levels in turn."""
    counts = torch.zeros(SCALES * (SYMBOL_MAX + 1), dtype=torch.long)
    for i, x in enumerate(batches):
        level = torch.full((len(x),), float(i % model.cfg.levels), device=x.device)
        y_hat, arguments = model.coded(x, level)
        means = arguments.get("means", 0.0)
        magnitude = (y_hat - means).round().abs().clamp(max=SYMBOL_MAX).long()
        place = scale_indexes(arguments["scales"]) * (SYMBOL_MAX + 1) + magnitude
        counts += torch.bincount(place.flatten(), minlength=len(counts)).cpu()
    return counts.reshape(SCALES, -1).numpy()


def _components() -> Floats:
    """Return the mass of each magnitude, (64, components, 1024), of Gaussians ``WIDTHS`` times as wide as the rows' scales."""
    wide = torch.from_numpy(SIGMAS * WIDTHS)[..., None]
    edges = torch.arange(SYMBOL_MAX + 2, dtype=torch.float64) - 0.5
    tail = torch.special.erfc(edges / (wide * 2**0.5))  # P(|x| > edge), for edges above 0
    tail[..., 0] = 1.0
    return (tail[..., :-1] - tail[..., 1:]).clamp(min=1e-30).numpy()


def fit_rows(counts: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the mass of each magnitude in each row, (64, 1024) in 2^-30, at least 1, from ``count_symbols``.

    It is that of one of the two symbols ±k.
    """
    components = _components()
    observed = counts.astype(np.float64)
    weights = np.full((SCALES, len(WIDTHS)), 1 / len(WIDTHS))
    pooled = np.full(len(WIDTHS), 1 / len(WIDTHS))
    for _ in range(ROUNDS):
        mixture = np.einsum("rc,rck->rk", weights, components)
        share = weights * np.einsum("rk,rck->rc", observed / mixture, components)  # counts of each component
        share_pooled = share.sum(0) + 1e-6
        pooled = share_pooled / share_pooled.sum()
        weights = share + POOLED * pooled
        weights /= weights.sum(1, keepdims=True)
    prior = TRUST * (6 * SIGMAS + 3)
    probability = observed + prior * np.einsum("rc,rck->rk", weights, components)
    probability /= probability.sum(1, keepdims=True)
    probability[:, 1:] /= 2
    return np.maximum(np.rint(probability * 2.0**MASTER_BITS), 1).astype(np.int32)
