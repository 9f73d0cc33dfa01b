"""The list of installed checkpoints: the package's, ``checkpoints/manifest.toml``, and the user's own. Imports no torch.

The user's are in a folder of their own, which outlives the package's updates and can be written where the package cannot.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, TypeAlias

import checkpoints
from bitstream.errors import CheckpointError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MANIFEST = checkpoints.FOLDER / "manifest.toml"
Stamp: TypeAlias = tuple[tuple[str, tuple[int, int] | None], ...]


def manifest() -> dict[str, dict[str, Any]]:
    """Return the rows of all installed checkpoints by name, the package's first. Raises CheckpointError if a list is damaged.

    A checkpoint of the user's whose name the package has for other weights, since an update perhaps, is called NAME-ID, by the
    eight digits that files name it by.
    """
    return {name: row for name, (row, _) in installed().items()}


def installed() -> dict[str, tuple[dict[str, Any], Path | None]]:
    """Return what ``manifest`` does, each row with the path of its file: None where that is not there.

    The wheel carries only some of the files that the package lists.
    """
    entries: dict[str, tuple[dict[str, Any], list[Path]]] = {
        name: (row, [checkpoints.FOLDER / row["file"]]) for name, row in read_manifest(MANIFEST).items()
    }
    folder = _own_folder()
    beside = None if folder is None else folder / "manifest.toml"
    own = read_manifest(beside) if beside is not None and os.path.exists(beside) else {}
    packaged = list(entries.values())
    for name, row in own.items():
        assert folder is not None
        path = folder / row["file"]
        same = [paths for known, paths in packaged if known["sha256"] == row["sha256"]]
        for paths in same:
            paths.insert(0, path)
        if name not in entries:
            entries[name] = (row, [path])
        elif not same:
            entries[f"{name}-{row['sha256'][:8]}"] = (row, [path])
    return {name: (row, next((path for path in paths if path.exists()), None)) for name, (row, paths) in entries.items()}


def stamp(model: str) -> Stamp:
    """Return what is another one when the weights of a name or a path are: cheaply, by the files that say which they are."""
    folder = _own_folder()
    own = [] if folder is None else [folder / "manifest.toml"]
    paths = [Path(os.path.abspath(model))] if model.endswith(".safetensors") else [MANIFEST, *own]
    return tuple((str(path), _changed(path)) for path in paths)


def _changed(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # what it is, who loads it says
        return None
    return status.st_mtime_ns, status.st_size


def own_folder() -> Path:
    """Return the folder of the user's own checkpoints, LIC_CHECKPOINTS or one of the user's data. Raises UsageError."""
    folder = _own_folder()
    if folder is None:
        raise UsageError("this user has no home folder: set LIC_CHECKPOINTS to a folder for checkpoints")
    return folder


def _own_folder() -> Path | None:
    if own := os.environ.get("LIC_CHECKPOINTS"):
        return Path(own)
    try:
        home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    except RuntimeError:  # a container's user without a home
        return None
    return Path(home) / "learned-image-codec" / "checkpoints"


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a manifest by checkpoint name. Raises CheckpointError if it cannot be read."""
    cure = "reinstall learned-image-codec" if path == MANIFEST else "mend it, or remove it"
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {cure}") from error
    for name, row in rows.items():
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("file", "sha256")):
            raise CheckpointError(f"{path}: row {name} has no file and sha256: {cure}")
    return rows


def check_name(
    folder: Path, name: str, *, sha256: str | None = None, overwrite: bool = False,
    cure: str = "choose another, or give -f to replace it: files that it made will not decode without it",
    packaged_cure: str = "choose another",
) -> None:  # fmt: skip
    """Raise UsageError unless a checkpoint can get this name in a folder: a plain one, and not that of other weights.

    In the user's own folder the package's names are taken too, even if ``overwrite`` is true.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"{name!r} is no name for a checkpoint: use letters, digits, '.', '_' and '-'")
    beside = folder / "manifest.toml"
    rows = read_manifest(beside) if beside.exists() else {}
    if name in rows and rows[name]["sha256"] != sha256 and not overwrite:
        raise UsageError(f"{name} is already the name of a checkpoint in {folder}: {cure}")
    packaged = read_manifest(MANIFEST) if folder == _own_folder() else {}
    if name in packaged and packaged[name]["sha256"] != sha256:
        raise UsageError(f"{name} is already the name of a checkpoint that the package has: {packaged_cure}")


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
