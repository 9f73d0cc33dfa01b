"""Where a descent stands: what it costs; and the file that keeps it, written whole or not at all, read with every check."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from bitstream.errors import UsageError, WriteError


@dataclass(frozen=True)
class State:
    """What a picture costs and how good it is, by estimate: bits per pixel of the latents and of the networks, PSNR in dB."""

    latents_bpp: float
    networks_bpp: float
    psnr_db: float

    @property
    def bpp(self) -> float:
        """Return all bits per pixel."""
        return self.latents_bpp + self.networks_bpp

    def cost(self, lmbda: float) -> float:
        """Return the Lagrangian λ·255²·MSE + bpp."""
        return self.bpp + lmbda * 255**2 * 10 ** (-self.psnr_db / 10)


def write_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and facts: a kill at any moment leaves the file from before or the new one. Raises WriteError."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    header = json.dumps({**facts, "crc": _crc(tensors)})
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(safetensors.torch.save(tensors, {"fit": header}))
        os.replace(beside, path)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def read_state(path: Path, facts: dict[str, str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return all facts and the tensors of a state with these facts. Raises UsageError for others, and for damage."""
    header = stored_facts(path)
    check_facts(path, header, facts)
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UsageError(f"{path} is not the state of a fit ({error}): leave --resume away, or give the right file") from error
    if header.get("crc") != _crc(tensors):
        raise UsageError(f"{path} is a damaged state of a fit: leave --resume away, or remove the file")
    return header, tensors


def stored_facts(path: Path) -> dict[str, Any]:
    """Return the facts that ``write_state`` wrote beside the tensors. Raises UsageError if it did not write this file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["fit"])
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UsageError(f"{path} is not the state of a fit ({error}): leave --resume away, or give the right file") from error
    if not isinstance(facts, dict):
        raise UsageError(f"{path} is not the state of a fit: leave --resume away, or give the right file")
    return facts


def check_facts(path: Path, found: dict[str, Any], facts: dict[str, str]) -> None:
    """Raise UsageError for the first of the facts that is another one in a stored state."""
    for name, wanted in facts.items():
        if found.get(name) != wanted:
            raise UsageError(f"{path} is the state of a fit with {name} {found.get(name)}, here it is {wanted}: give the same")


def _crc(tensors: dict[str, Tensor]) -> int:
    """Return the CRC-32 of tensors on the CPU, in order of their names."""
    crc = 0
    for _, tensor in sorted(tensors.items()):
        crc = zlib.crc32(tensor.reshape(-1).numpy().data, crc)
    return crc
