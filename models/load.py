"""A checkpoint by name or path, made ready to code, whatever its model is."""

from __future__ import annotations

from pathlib import Path

import torch

from models.checkpoint import load_checkpoint
from models.overfit.configs import MODEL
from models.overfit.runtime import OverfitModel
from models.runtime import LoadedModel

Model = LoadedModel | OverfitModel


def load_model(name_or_path: str | Path, device: torch.device) -> Model:
    """Load and verify a checkpoint by name or path. Raises CheckpointError."""
    checkpoint = load_checkpoint(name_or_path)
    return OverfitModel(checkpoint, device) if checkpoint.model == MODEL else LoadedModel(checkpoint, device)
