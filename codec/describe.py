"""What a file says about itself, read without torch and without decoding."""

from __future__ import annotations

import os
from os import PathLike
from typing import Any

from bitstream.chunks import ALPHA, GRIDS, NETWORKS, Y_TILE, Z, tile_kinds
from bitstream.container import Container
from bitstream.header import Header
from bitstream.limits import NO_LIMITS, Limits
from codec.files import Bytes, bytes_of, read_bytes
from codec.metrics import bpp
from models.manifest import manifest, name_of

_CHUNK_NAMES = {Z: "z_bytes", Y_TILE: "y_bytes", NETWORKS: "networks_bytes", GRIDS: "grids_bytes", ALPHA: "alpha_bytes"}


def info(data_or_path: Bytes | str | PathLike[str]) -> Header:
    """Return the checked header of a file, from its bytes or path, of any size: nothing is decoded.

    Raises FormatError for damage, UsageError for a path that cannot be read or what is neither.
    """
    return Container.unpack(bytes_of(data_or_path, limits=_limits_of(data_or_path)), limits=NO_LIMITS).header


def _limits_of(path: object) -> Limits:
    """Return no limits for a file, those of a reader for a pipe or device, which may have no end."""
    return NO_LIMITS if isinstance(path, str | PathLike) and os.path.isfile(path) else Limits()


def describe(path: str | PathLike[str], data: bytes | None = None) -> dict[str, Any]:
    """Return the facts that ``codec info`` prints; sizes in bytes and pixels. Raises FormatError for damage.

    ``data`` is what was read of the file, if it was.
    """
    data = read_bytes(path, limits=_limits_of(path)) if data is None else data
    container = Container.unpack(data, limits=NO_LIMITS)
    header = container.header
    name = name_of(header.model_id)
    kinds = [*tile_kinds(header), *((ALPHA,) if not header.alpha else ())]
    chunks = dict.fromkeys((_CHUNK_NAMES[kind] for kind in kinds), 0)
    for kind, payload in container.chunks:
        chunks[_CHUNK_NAMES[kind]] += len(payload)
    return {
        "file": str(path),
        "format_version": header.version,
        "width": header.width,
        "height": header.height,
        "gray": header.gray,
        "alpha": header.alpha,
        "tiles": header.n_tiles,
        "model": name,
        "model_id": header.model_id.hex(),
        "quality": None if name is None else round(100 * header.level / (manifest()[name]["max_level"] or 1), 2),
        "level": header.level / 256,
        "bytes": len(data),
        **chunks,
        **{f"{name}_bytes": len(value) for name, value in container.metadata._asdict().items()},
        "other_bytes": len(data) - sum(chunks.values()) - sum(map(len, container.metadata)),
        "bpp": round(bpp(len(data), header.width, header.height), 5),
        "symbol_crc": f"{header.symbol_crc:08x}",
    }
