"""``codec models --install``: add a checkpoint file to the user's own, so that files which name it decode."""

from __future__ import annotations

from pathlib import Path

from bitstream.errors import UsageError, WriteError
from codec.files import locked, write_atomic
from codec.release import add_to_manifest
from models.checkpoint import load_checkpoint
from models.manifest import check_name, manifest, own_folder, read_manifest

ROW_KEYS = {"file": str, "sha256": str, "model": str, "max_level": int, "steps": int, "parameters": int, "kmac_per_pixel": dict}


def install_checkpoint(path: Path, name: str | None = None) -> str:
    """Copy a checkpoint into the folder of the user's own and give it a manifest row; return its name.

    The row is the installed manifest's own for this SHA-256, whose name stays, or that of a manifest beside the file, which
    gets ``name`` if it is given: files find their checkpoint by its SHA-256. Raises UsageError if there is none or its name is
    taken, CheckpointError if the file is damaged, WriteError if the folder cannot be written.
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
    is_known = known.get(found_name) is found
    row, chosen = dict(found), found_name if name is None or is_known else name
    missing = [key for key, kind in ROW_KEYS.items() if not isinstance(row.get(key), kind)]
    if missing or "decode" not in row["kmac_per_pixel"]:
        key = missing[0] if missing else "kmac_per_pixel.decode"
        raise UsageError(f"{path}: its manifest row {found_name} has no {key}: take the row that `codec export` wrote")
    folder, data = own_folder(), path.read_bytes()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{folder}: cannot be made ({error.strerror}): set LIC_CHECKPOINTS to another") from error
    with locked(folder):
        own = read_manifest(folder / "manifest.toml") if (folder / "manifest.toml").exists() else {}
        key = next((key for key, theirs in own.items() if theirs["sha256"] == checkpoint.sha256), chosen)
        if not is_known:
            cure = "give it another with --as NAME"
            check_name(folder, key, sha256=checkpoint.sha256, cure=cure, packaged_cure=cure)
        elif key in own and own[key]["sha256"] != checkpoint.sha256:  # other weights had the name before the package did
            key = f"{key}-{checkpoint.sha256[:8]}"
        write_atomic(folder / f"{key}.safetensors", data, overwrite=True)
        add_to_manifest(folder / "manifest.toml", key, row | {"file": f"{key}.safetensors"})
    return chosen
