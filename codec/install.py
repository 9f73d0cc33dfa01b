"""``codec models --install``: add a checkpoint file to those of the package, so that files which name it decode."""

from __future__ import annotations

from pathlib import Path

import checkpoints
from bitstream.errors import UsageError
from codec.files import write_atomic
from codec.release import add_to_manifest
from models.checkpoint import load_checkpoint
from models.manifest import check_name, manifest, read_manifest

ROW_KEYS = {"file": str, "sha256": str, "model": str, "max_level": int, "steps": int, "parameters": int, "kmac_per_pixel": dict}


def install_checkpoint(path: Path, name: str | None = None) -> str:
    """Copy a checkpoint into the package and give it a manifest row; return its name.

    The row is the installed manifest's own for this SHA-256, whose name stays, or that of a manifest beside the file, which
    gets ``name`` if it is given: files find their checkpoint by its SHA-256. Raises UsageError if there is none or its name is
    taken, CheckpointError if the file is damaged.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: not a .safetensors checkpoint")
    checkpoint = load_checkpoint(path)
    beside = path.with_name("manifest.toml")
    known = manifest()
    rows = [*known.items(), *(read_manifest(beside).items() if beside.exists() else ())]
    found_name, found = next(((name, row) for name, row in rows if row["sha256"] == checkpoint.sha256), (None, {}))
    if found_name is None:
        raise UsageError(f"{path}: no manifest has checkpoint {checkpoint.model_id.hex()}: keep manifest.toml beside it")
    name = found_name if name is None or known.get(found_name) is found else name
    row = found | {"file": f"{name}.safetensors"}
    missing = [key for key, kind in ROW_KEYS.items() if not isinstance(row.get(key), kind)]
    if missing or "decode" not in row["kmac_per_pixel"]:
        key = missing[0] if missing else "kmac_per_pixel.decode"
        raise UsageError(f"{path}: its manifest row {found_name} has no {key}: take the row that `codec export` wrote")
    check_name(checkpoints.FOLDER, name, sha256=checkpoint.sha256, cure="give it another with --as NAME")
    write_atomic(checkpoints.FOLDER / row["file"], path.read_bytes(), overwrite=True)
    if name not in known:
        add_to_manifest(checkpoints.FOLDER / "manifest.toml", name, row)
    return name
