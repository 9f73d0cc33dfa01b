"""A file checked fully, stage by stage: what ``codec verify`` prints."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import PathLike
from typing import TypeVar

from bitstream.container import Container
from bitstream.errors import CodecError
from bitstream.grid import Rect
from bitstream.header import Header, unpack_header
from bitstream.limits import NO_LIMITS, Limits
from codec.files import read_bytes
from models.manifest import find_by_id

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """One check: its name, whether the file passed, and what was found."""

    name: str
    passed: bool
    found: str


class _Failed(Exception):
    """Carries the stage that ends the checks."""


def stages(
    path: str | PathLike[str], data: bytes | None = None, *, model: str | None = None, limits: Limits | None = None
) -> Iterator[Stage]:
    """Yield the checks of a file in order; the first that fails is the last. Each tile's symbols are all tried.

    ``data`` is what was read of the file, if it was.
    """
    limits = limits or Limits()
    try:
        yield from _checks(lambda: read_bytes(path, limits=limits) if data is None else data, model, limits)
    except _Failed as failed:
        yield failed.args[0]


def _checks(read: Callable[[], bytes], model: str | None, limits: Limits) -> Iterator[Stage]:
    data = _try("read", read)
    yield Stage("read", True, f"{len(data)} bytes")
    header = _try("header", lambda: Header.unpack(memoryview(data)))[0]
    yield Stage("header", True, f"version {header.version}, {header.width}×{header.height} pixels, {header.n_tiles} tiles")
    _try("checksum", lambda: unpack_header(data, limits=NO_LIMITS))
    yield Stage("checksum", True, f"{zlib.crc32(data[:-4]):08x}")
    _try("limits", lambda: limits.check_size(header.width, header.height))
    _try("limits", lambda: _count_workers(header, limits, 1))
    yield Stage("limits", True, f"{header.width * header.height} of {limits.max_pixels} pixels")
    container = _try("chunks", lambda: Container.unpack(data, limits=limits))
    payloads = sum(len(payload) for _, payload in container.chunks)
    yield Stage("chunks", True, f"{len(container.chunks)} with {payloads} bytes")
    name = _try("checkpoint", lambda: model or find_by_id(header.model_id))
    from codec.alpha import decode_alpha
    from codec.api import cached_codec  # torch is loaded here, for sound files only
    from codec.decoders import decoder_of
    from codec.workers import torch_threads

    codec = _try("checkpoint", lambda: cached_codec(name, "cpu"))
    _try("checkpoint", lambda: codec.check(header))
    yield Stage("checkpoint", True, f"{codec.model.checkpoint.name}, {header.model_id.hex()}, level {header.level / 256:g}")
    most = _count_workers(header, limits, torch_threads())
    decoder, decode = decoder_of(codec.model, codec.engine, container)
    wrong = [f"tile {number}: {error}" for number in range(header.n_tiles) if (error := _error_of(decode, number))]
    yield Stage("symbols", not wrong, "; ".join(wrong) or f"CRC {header.symbol_crc:08x}")
    if wrong:
        return
    if header.alpha:
        alpha = _try("alpha", lambda: decode_alpha(container, decoder.tiles, _whole(header), 1, most))
        yield Stage("alpha", True, f"CRC {zlib.crc32(alpha.tobytes() if alpha is not None else b''):08x}")
    pixels = _try("pixels", lambda: decoder.decode(decode, _whole(header), 1, most))
    yield Stage("pixels", True, f"CRC {zlib.crc32(pixels.tobytes()):08x} on this machine")


def _whole(header: Header) -> Rect:
    return Rect(0, 0, header.width, header.height)


def _count_workers(header: Header, limits: Limits, threads: int) -> int:
    return limits.count_workers(_whole(header), 1, header.tile, header.width, header.height, threads)


def _error_of(decode: Callable[[int], object], number: int) -> str | None:
    try:
        decode(number)
    except CodecError as error:
        return str(error)
    return None


def _try(name: str, check: Callable[[], T]) -> T:
    """Return what a check returns. Raises _Failed with its stage."""
    try:
        return check()
    except CodecError as error:
        raise _Failed(Stage(name, False, str(error))) from error
