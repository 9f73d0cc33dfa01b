"""Where networks run, by the names that users give."""

from __future__ import annotations

import re

import torch

from bitstream.errors import UsageError


def device_of(name: str | None) -> torch.device:
    """Return the device of a name, None for the best there is. Raises UsageError if it is none, or not here."""
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = str(name)
    found = re.fullmatch(r"cpu|cuda(?::(0|[1-9][0-9]?))?", name)
    if found is None:
        raise UsageError(f"device is {name!r}, expected auto, cpu or cuda, or cuda:1 for a second GPU")
    if name != "cpu" and not torch.cuda.is_available():
        raise UsageError(f"device is {name}, but torch finds no CUDA GPU here: use --device cpu")
    if found[1] is not None and int(found[1]) >= torch.cuda.device_count():
        raise UsageError(f"device is {name}, but torch finds {torch.cuda.device_count()} CUDA GPUs here: choose one of these")
    return torch.device(name)
