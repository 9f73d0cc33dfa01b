"""The state file of a training run: read with every check, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from bitstream.errors import UsageError, WriteError

KEYS = {"recipe", "model", "ema", "optimizer", "step", "minutes", "rng", "pictures"}


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write to a temporary name and rename it: a kill at any moment leaves the old state. Raises WriteError."""
    partial = path.with_suffix(path.suffix + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's own word for a full disk
        raise WriteError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    finally:
        partial.unlink(missing_ok=True)


def read_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Return a state that ``write_state`` wrote. Raises UsageError for anything else; no code in it is run."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises nearly anything for what is not its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path}: not a training state of this codec ({reason})") from error
    if not isinstance(state, dict) or not set(state) >= KEYS:
        raise UsageError(f"{path}: not a training state of this codec, or one of another version: train again")
    return state
