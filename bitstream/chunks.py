"""The chunks of a file: types, frames, their order (FORMAT.md section 3). Reads every field as hostile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bitstream.errors import FormatError
from bitstream.header import Header
from bitstream.varint import pack_varint, unpack_varint

# Chunk types: written constants, append-only. High bit: ancillary.
Z = 1
Y_TILE = 2
ALPHA = 3
INDEX = 4
NETWORKS = 5
GRIDS = 6
ICC = 0x81
EXIF = 0x82
XMP = 0x83
ANCILLARY = 0x80
MAX_ANCILLARY = 1000  # chunks of a file
_NAMES = {Z: "Z", Y_TILE: "Y_TILE", ALPHA: "ALPHA", NETWORKS: "NETWORKS", GRIDS: "GRIDS"}
METADATA = {ICC: "ICC", EXIF: "EXIF", XMP: "XMP"}  # at most one of each, directly behind the header


class Metadata(NamedTuple):
    """What is stored beside the pixels: an ICC profile, EXIF data (a TIFF structure), an XMP packet; empty if absent."""

    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""


def tile_kinds(header: Header) -> tuple[int, ...]:
    """Return the types of the chunks of each tile, in order."""
    latents = (NETWORKS, GRIDS) if header.fitted else (Z, Y_TILE)
    return (*latents, ALPHA) if header.alpha else latents


def pack_frame(kind: int, payload: bytes) -> bytes:
    """Return a chunk: type, length, payload."""
    return bytes([kind]) + pack_varint(len(payload)) + payload


class Frame(NamedTuple):
    """A chunk where it lies: its type, its first byte, its payload from ``inside`` to ``end``."""

    kind: int
    start: int
    inside: int
    end: int


class Crowd:
    """Counts the ancillary chunks of a file: one for all that walk along its chunks."""

    def __init__(self) -> None:
        self._number = 0

    def add(self, kind: int) -> None:
        """Count a chunk, if it is ancillary. Raises FormatError for one too many."""
        self._number += bool(kind & ANCILLARY)
        if self._number > MAX_ANCILLARY:
            raise FormatError(f"the file has more than {MAX_ANCILLARY} ancillary chunks: it keeps readers busy")


def check_length(kind: int, length: int, left: int) -> None:
    """Raise FormatError if a chunk claims more bytes than are left of its file."""
    if length > left:
        raise FormatError(f"chunk {kind} claims {length} bytes, {max(left, 0)} are left: the file is cut off or damaged")


def frames(view: memoryview, offset: int, crowd: Crowd) -> Iterator[Frame]:
    """Yield the chunks from an offset to the end.

    Raises FormatError for one that is cut off, that no reader may skip, or that makes too large a crowd.
    """
    while offset < len(view):
        kind, start = view[offset], offset
        length, inside = unpack_varint(view, offset + 1)
        check_length(kind, length, len(view) - inside)
        if kind != INDEX and kind not in _NAMES and not kind & ANCILLARY:
            raise FormatError(f"chunk type {kind} is not known and not skippable: made by a newer codec, update")
        crowd.add(kind)
        offset = inside + length
        yield Frame(kind, start, inside, offset)


def unpack_metadata(view: memoryview, offset: int, crowd: Crowd) -> tuple[Metadata, int]:
    """Return the metadata directly behind the header, and the offset of the first chunk that is not ancillary."""
    found: dict[int, bytes] = {}
    while offset < len(view) and view[offset] & ANCILLARY:
        frame = next(frames(view, offset, crowd))
        if frame.kind in METADATA:
            if frame.kind in found:
                raise FormatError(f"there are two chunks {METADATA[frame.kind]}, expected at most one: the file is damaged")
            found[frame.kind] = bytes(view[frame.inside : frame.end])
        offset = frame.end
    return Metadata(*(found.get(kind, b"") for kind in METADATA)), offset


def unpack_chunks(
    view: memoryview, offset: int, n_tiles: int, kinds: tuple[int, ...], crowd: Crowd, *, tiled: bool
) -> tuple[list[tuple[int, bytes]], list[int]]:
    """Return the chunks of all tiles, and where each tile ends. Raises FormatError at the first chunk out of order."""
    chunks: list[tuple[int, bytes]] = []
    ends: list[int] = []
    for frame in frames(view, offset, crowd):
        if frame.kind & ANCILLARY:
            if tiled and len(ends) < n_tiles:
                raise FormatError(f"chunk {frame.kind} is between tiles, expected {[*kinds]} of each: the file is damaged")
            if frame.kind in METADATA:
                raise FormatError(f"a chunk {METADATA[frame.kind]} is not directly behind the header: the file is damaged")
            continue
        expected = kinds[len(chunks) % len(kinds)] if len(chunks) < len(kinds) * n_tiles else None
        if frame.kind != expected:
            raise FormatError(_order([*(kind for kind, _ in chunks[-len(kinds) :]), frame.kind], kinds, n_tiles))
        chunks.append((frame.kind, bytes(view[frame.inside : frame.end])))
        if frame.kind == kinds[-1]:
            ends.append(frame.end)
    if len(ends) < n_tiles:
        raise FormatError(_order([kind for kind, _ in chunks[-len(kinds) :]], kinds, n_tiles))
    return chunks, ends


def _order(found: list[int], kinds: tuple[int, ...], n_tiles: int) -> str:
    names = " and ".join(f"one {_NAMES[kind]}" for kind in kinds)
    return f"chunks are {found}, expected {names}, {[*kinds]}, for each of {n_tiles} tiles: the file is damaged"
