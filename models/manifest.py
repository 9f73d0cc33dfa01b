"""The list of installed checkpoints, ``checkpoints/manifest.toml``. Imports no torch."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import checkpoints
from bitstream.errors import CheckpointError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MANIFEST = checkpoints.FOLDER / "manifest.toml"


def manifest() -> dict[str, dict[str, Any]]:
    """Return the rows of the installed manifest by checkpoint name. Raises CheckpointError if it cannot be read."""
    return read_manifest(MANIFEST)


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a manifest by checkpoint name. Raises CheckpointError if it cannot be read."""
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): reinstall learned-image-codec") from error
    for name, row in rows.items():
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("file", "sha256")):
            raise CheckpointError(f"{path}: row {name} has no file and sha256: reinstall learned-image-codec")
    return rows


def check_name(
    folder: Path, name: str, *, sha256: str | None = None, overwrite: bool = False,
    cure: str = "choose another, or give -f to replace it: files that it made will not decode without it",
) -> None:  # fmt: skip
    """Raise UsageError unless a checkpoint can get this name in a folder: a plain one, and not that of other weights."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"{name!r} is no name for a checkpoint: use letters, digits, '.', '_' and '-'")
    beside = folder / "manifest.toml"
    rows = read_manifest(beside) if beside.exists() else {}
    if name in rows and rows[name]["sha256"] != sha256 and not overwrite:
        raise UsageError(f"{name} is already the name of a checkpoint in {folder}: {cure}")


def is_installed(row: dict[str, Any]) -> bool:
    """Return whether the file of a manifest row is there: the wheel carries only some of them."""
    return (checkpoints.FOLDER / row["file"]).exists()


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
