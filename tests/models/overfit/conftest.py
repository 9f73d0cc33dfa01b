"""The frozen tiny checkpoint of ``overfit``, on the CPU."""

from __future__ import annotations

import pytest
import torch

from models.checkpoint import load_checkpoint
from models.overfit.runtime import OverfitModel


@pytest.fixture(scope="session")
def tiny(golden) -> OverfitModel:
    """The model of the frozen tiny checkpoint. Do not change it."""
    return OverfitModel(load_checkpoint(golden / "tiny-overfit.safetensors"), torch.device("cpu"))


@pytest.fixture(autouse=True)
def seeded():
    """Draw the noise of descents alike in each test."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        yield


@pytest.fixture
def pixels(picture):
    """Return pixels(h, w): the synthetic picture as (3, h, w) uint8."""
    return lambda h, w, seed=0: torch.from_numpy(picture(h, w, seed)).permute(2, 0, 1)
