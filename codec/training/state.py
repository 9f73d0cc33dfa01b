"""The state file of a training run: read with every check, written whole or not at all."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from bitstream.errors import UsageError

KEYS = {"recipe", "model", "ema", "optimizer", "step", "minutes", "rng", "pictures"}


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write to a temporary name and rename it: a kill at any moment leaves the old state."""
    partial = path.with_suffix(path.suffix + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def read_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Return a state that ``write_state`` wrote. Raises UsageError for anything else; no code in it is run."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UsageError(f"{path}: not a training state of this codec ({error})") from error
    if not isinstance(state, dict) or not set(state) >= KEYS:
        raise UsageError(f"{path}: not a training state of this codec, or one of another version: train again")
    return state
