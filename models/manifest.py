"""The list of installed checkpoints, ``checkpoints/manifest.toml``. Imports no torch."""

from __future__ import annotations

import sys
from typing import Any

import checkpoints
from bitstream.errors import CheckpointError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MANIFEST = checkpoints.FOLDER / "manifest.toml"


def manifest() -> dict[str, dict[str, Any]]:
    """Return the rows of the manifest by checkpoint name. Raises CheckpointError if it cannot be read."""
    try:
        return tomllib.loads(MANIFEST.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise CheckpointError(f"{MANIFEST} cannot be read ({error}): reinstall learned-image-codec") from error


def name_of(model_id: bytes) -> str | None:
    """Return the name of the installed checkpoint whose SHA-256 begins with these four bytes, or None."""
    return next((name for name, row in manifest().items() if row["sha256"].startswith(model_id.hex())), None)


def find_by_id(model_id: bytes) -> str:
    """Return ``name_of`` a file's checkpoint. Raises CheckpointError if it is not installed."""
    name = name_of(model_id)
    if name is None:
        raise CheckpointError(
            f"the file was made with checkpoint {model_id.hex()}, which is not installed: install the version of "
            "learned-image-codec that made it, or give the checkpoint with --model PATH.safetensors"
        )
    return name
