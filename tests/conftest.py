"""Shared by all tests: the frozen tiny checkpoint and pictures drawn from arithmetic. No network, no data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"
TINY_CHECKPOINT = GOLDEN / "tiny-swift.safetensors"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden files."""
    return GOLDEN


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """A checkpoint of a swift with few channels and random entropy networks, frozen since format version 1."""
    return TINY_CHECKPOINT


@pytest.fixture(scope="session")
def tiny_codec(tiny_checkpoint):
    """A Codec on the CPU with the tiny checkpoint. Do not change its weights: load your own for that."""
    from codec import Codec

    return Codec(tiny_checkpoint, "cpu")


@pytest.fixture
def picture():
    """Return picture(h, w, seed=0): an (h, w, 3) uint8 array with gradients, waves, an edge and noise."""

    def draw(h: int, w: int, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[0:h, 0:w]
        planes = [
            128 + 50 * np.sin(x * rng.uniform(0.02, 0.3)) + 40 * np.cos(y * rng.uniform(0.02, 0.3)) + 30 * (x + 2 * y > w)
            for _ in range(3)
        ]
        return (np.stack(planes, axis=2) + rng.normal(0, 5, (h, w, 3))).round().clip(0, 255).astype(np.uint8)

    return draw
