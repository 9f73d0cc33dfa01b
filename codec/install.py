"""``codec models --install``: add a checkpoint file to those of the package, so that files which name it decode."""

from __future__ import annotations

from pathlib import Path

import checkpoints
from bitstream.errors import UsageError
from codec.files import write_atomic
from codec.release import add_to_manifest
from models.checkpoint import load_checkpoint
from models.manifest import check_name, manifest, read_manifest

ROW_KEYS = ("file", "sha256", "model", "max_level", "steps", "parameters", "kmac_per_pixel", "rd")


def install_checkpoint(path: Path) -> str:
    """Copy a checkpoint into the package and give it a manifest row; return its name.

    The row is the installed manifest's own for this SHA-256, or that of a manifest beside the file. Raises UsageError if there
    is none or its name is taken, CheckpointError if the file is damaged.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: not a .safetensors checkpoint")
    checkpoint = load_checkpoint(path)
    beside = path.with_name("manifest.toml")
    rows = [*manifest().items(), *(read_manifest(beside).items() if beside.exists() else ())]
    name, found = next(((name, row) for name, row in rows if row["sha256"] == checkpoint.sha256), (None, {}))
    if name is None:
        raise UsageError(f"{path}: no manifest has checkpoint {checkpoint.model_id.hex()}: keep manifest.toml beside it")
    row = found | {"file": f"{name}.safetensors"}
    missing = [key for key in ROW_KEYS if key not in row]
    if missing:
        raise UsageError(f"{path}: its manifest row {name} has no {missing[0]}: take the row that `codec export` wrote")
    check_name(checkpoints.FOLDER, name, sha256=checkpoint.sha256)
    write_atomic(checkpoints.FOLDER / row["file"], path.read_bytes(), overwrite=True)
    if name not in manifest():
        add_to_manifest(checkpoints.FOLDER / "manifest.toml", name, row)
    return name
