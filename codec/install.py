"""``codec models --install``: add a checkpoint file to those of the package, so that files which name it decode."""

from __future__ import annotations

from pathlib import Path

import checkpoints
from bitstream.errors import UsageError
from codec.files import write_atomic
from codec.release import add_to_manifest
from models.checkpoint import load_checkpoint
from models.manifest import manifest, read_manifest


def install_checkpoint(path: Path) -> str:
    """Copy a checkpoint into the package and give it a manifest row; return its name.

    The row is the installed manifest's own for this SHA-256, or that of a manifest beside the file. Raises UsageError if there
    is none, CheckpointError if the file is damaged.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: not a .safetensors checkpoint")
    checkpoint = load_checkpoint(path)
    beside = path.with_name("manifest.toml")
    rows = manifest() | (read_manifest(beside) if beside.exists() else {})
    name = next((name for name, row in rows.items() if row["sha256"] == checkpoint.sha256), None)
    if name is None:
        raise UsageError(f"{path}: no manifest has checkpoint {checkpoint.model_id.hex()}: keep manifest.toml beside it")
    row = rows[name]
    try:
        write_atomic(checkpoints.FOLDER / row["file"], path.read_bytes(), overwrite=True)
        if name not in manifest():
            add_to_manifest(checkpoints.FOLDER / "manifest.toml", name, row)
    except OSError as error:
        raise UsageError(f"{checkpoints.FOLDER} cannot be written ({error.strerror}): install where you may write") from error
    return name
