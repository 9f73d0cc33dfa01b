"""Release checkpoints: one safetensors file, a row in a ``manifest.toml``, known by SHA-256. Never pickled.

A file names its checkpoint by the first four bytes of the SHA-256, so a picture is never decoded with other weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from bitstream.errors import CheckpointError
from models.manifest import installed, read_manifest

CHECKPOINT_FORMAT = "1"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory."""

    name: str
    model: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    sha256: str
    constants_crc: int
    transforms: dict[str, Any] | None = None  # of ``models.program``; older checkpoints have none

    @property
    def model_id(self) -> bytes:
        """Return the four bytes that files name this checkpoint by."""
        return bytes.fromhex(self.sha256[:8])


def save_checkpoint(
    path: Path, *, model: str, config: dict[str, Any], tensors: dict[str, Tensor], constants_crc: int,
    transforms: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """Write a checkpoint file; return its SHA-256 in hex. Same content, same bytes.

    ``transforms`` is what ``models.program.pack`` returns; a checkpoint without needs CompressAI to be loaded.
    """
    header = {"format": CHECKPOINT_FORMAT, "model": model, "config": config, "constants_crc": constants_crc}
    if transforms is not None:
        header["transforms"] = transforms
    metadata = {"header": json.dumps(header, sort_keys=True)}
    data = safetensors.torch.save({name: t.contiguous() for name, t in sorted(tensors.items())}, metadata)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def load_checkpoint(name_or_path: str | Path) -> Checkpoint:
    """Load a checkpoint by manifest name, or by path if it ends in .safetensors.

    A path is checked against a manifest beside the file, if there is one.

    Raises CheckpointError if it is unknown, damaged (SHA-256 against the manifest) or of another format.
    """
    text = str(name_or_path)
    if text.endswith(".safetensors"):
        return _read(Path(text), Path(text).stem, expected=_expected_beside(Path(text)))
    known = installed()
    if text not in known:
        raise CheckpointError(f"no checkpoint is named {text!r}; known: {', '.join(known)}; or give a .safetensors path")
    row, path = known[text]
    if path is None:
        raise CheckpointError(
            f"checkpoint {text} is not installed: fetch {row['file']} from the repository's checkpoints/ and run "
            f"`codec models --install {row['file']}`"
        )
    return _read(path, text, expected=row["sha256"])


def _expected_beside(path: Path) -> str | None:
    """Return the SHA-256 that a manifest in the checkpoint's own folder states for it, None if none does."""
    beside = path.with_name("manifest.toml")
    rows = read_manifest(beside) if os.path.exists(beside) else {}  # false where the folder cannot be searched
    return next((row["sha256"] for row in rows.values() if row.get("file") == path.name), None)


def _read(path: Path, name: str, expected: str | None) -> Checkpoint:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({error.strerror})") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if expected is not None and sha256 != expected:
        raise CheckpointError(f"checkpoint {path} has SHA-256 {sha256[:16]}…, expected {expected[:16]}…: reinstall")
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["header"])
        tensors = safetensors.torch.load(data)
        if header["format"] != CHECKPOINT_FORMAT:
            raise CheckpointError(f"checkpoint {path} has format {header['format']}, expected {CHECKPOINT_FORMAT}: update")
        kinds = {"model": str, "config": dict, "constants_crc": int}
        if any(not isinstance(header[key], kind) for key, kind in kinds.items()):
            raise ValueError(f"a header field is not of its type: {header}"[:200])
        transforms = header.get("transforms")
        if transforms is not None and not isinstance(transforms, dict):
            raise ValueError(f"its transforms are {str(transforms)[:40]}")
        return Checkpoint(name, header["model"], header["config"], tensors, sha256, header["constants_crc"], transforms)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, RecursionError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} is not a release checkpoint of this codec ({error})") from error
