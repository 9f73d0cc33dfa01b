"""The container: header, chunks, index, CRC (FORMAT.md sections 2 and 3).

Reads every field as hostile: each check stands before anything is allocated from what it checks. Knows no network and
imports no torch, so ``codec info`` is quick. A ``Container`` is a whole file in memory; ``open_container`` reads of a tiled
file only the header, the index, and the tiles that are asked for.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import IO, BinaryIO, NamedTuple, Protocol

from bitstream.chunks import (
    ANCILLARY,
    INDEX,
    METADATA,
    Crowd,
    Metadata,
    check_length,
    pack_frame,
    tile_kinds,
    unpack_chunks,
    unpack_metadata,
)
from bitstream.errors import FormatError
from bitstream.header import SIGNATURE, VERSION, Header, unpack_header
from bitstream.limits import Limits
from bitstream.varint import MAX_BYTES as MAX_VARINT_BYTES
from bitstream.varint import pack_varint, unpack_varint

_CRC = struct.Struct("<I")
_CRCS = struct.Struct("<II")  # of an entry of the index: bytes, symbols
_HEAD_BYTES = 64  # a header, type and length of a chunk are shorter
_FRAME_BYTES = 1 + MAX_VARINT_BYTES  # type and length of a chunk


class Tile(NamedTuple):
    """The payloads of Z and Y_TILE of one tile, the CRC-32 of its symbols, the payload of ALPHA if there is one.

    Of a fitted file, those of NETWORKS and GRIDS.
    """

    payloads: list[bytes]
    symbol_crc: int
    alpha: bytes = b""


class TileSource(Protocol):
    """What gives the tiles of a file, checked."""

    @property
    def header(self) -> Header:
        """Return the header."""
        ...

    @property
    def metadata(self) -> Metadata:
        """Return what is stored beside the pixels."""
        ...

    def tile(self, number: int) -> Tile:
        """Return a tile by its number in raster order. Raises FormatError if it is damaged."""
        ...


@dataclass(frozen=True)
class Container:
    """A whole file, taken apart: header, metadata, and the chunks of tiles (type, payload) in order, without the index.

    A tiled file has a Z and a Y_TILE, with alpha an ALPHA too, for each tile, and ``tile_crcs``, the CRC-32 of the symbols of
    each.
    """

    header: Header
    chunks: list[tuple[int, bytes]] = field(default_factory=list)
    tile_crcs: tuple[int, ...] = ()
    metadata: Metadata = Metadata()

    @classmethod
    def of_tiles(cls, header: Header, tiles: Sequence[Tile], metadata: Metadata | None = None) -> Container:
        """Return the container of a picture's tiles, whatever the header's symbol CRC is."""
        kinds = tile_kinds(header)
        chunks = [pair for tile in tiles for pair in zip(kinds, (*tile.payloads, tile.alpha), strict=False)]
        crcs = tuple(tile.symbol_crc for tile in tiles)
        crc = symbol_crc(crcs) if header.tile else crcs[0]
        return cls(replace(header, symbol_crc=crc), chunks, crcs if header.tile else (), metadata or Metadata())

    def tile(self, number: int) -> Tile:
        """See ``TileSource``."""
        each = len(tile_kinds(self.header))
        payloads = [payload for _, payload in self.chunks[each * number : each * (number + 1)]]
        return Tile(
            payloads[:2], self.tile_crcs[number] if self.header.tile else self.header.symbol_crc, b"".join(payloads[2:])
        )

    def pack(self) -> bytes:
        """Return the bytes of the file."""
        stored = [(kind, payload) for kind, payload in zip(METADATA, self.metadata, strict=True) if payload]
        head = b"".join([self.header.pack(), *(pack_frame(*chunk) for chunk in stored)])
        frames = [pack_frame(*chunk) for chunk in self.chunks]
        body = b"".join([head, self._index(head, frames), *frames])
        return body + _CRC.pack(zlib.crc32(body))

    def _index(self, head: bytes, frames: list[bytes]) -> bytes:
        """Return the chunk INDEX; nothing for a file of one tile."""
        if not self.header.tile:
            return b""
        entries, each = bytearray(), len(tile_kinds(self.header))
        for number, crc in enumerate(self.tile_crcs):
            data = b"".join(frames[each * number : each * (number + 1)])
            entries += pack_varint(len(data)) + _CRCS.pack(zlib.crc32(data), crc)
        start = bytes([INDEX]) + pack_varint(len(entries) + _CRC.size) + entries
        return start + _CRC.pack(zlib.crc32(head + start))

    @classmethod
    def unpack(cls, data: bytes, *, limits: Limits | None = None) -> Container:
        """Take a file apart, every check included.

        Raises FormatError (VersionError, LimitError) with what was found and expected.
        """
        header, offset = unpack_header(data, limits=limits)
        view = memoryview(data)
        end = len(view) - _CRC.size
        crowd = Crowd()
        metadata, offset = unpack_metadata(view[:end], offset, crowd)
        entries: list[_Entry] = []
        if header.tile:
            entries, offset = _unpack_index(view[:end], offset, header)
        kinds, tiled = tile_kinds(header), bool(header.tile)
        chunks, ends = unpack_chunks(view[:end], offset, header.n_tiles, kinds, crowd, tiled=tiled)
        for number, entry in enumerate(entries):
            start = offset if number == 0 else ends[number - 1]
            if (entry.start, entry.start + entry.length) != (start, ends[number]):
                raise FormatError(
                    f"a tile has the bytes {start} … {ends[number] - 1}, the index says {entry.start} … "
                    f"{entry.start + entry.length - 1}: the file is damaged"
                )
            entry.check(view[start : ends[number]])
        return cls(header, chunks, tuple(entry.symbol_crc for entry in entries), metadata)


class _Entry(NamedTuple):
    """Where a tile lies in a file, and its CRCs."""

    start: int
    length: int
    crc: int
    symbol_crc: int

    def check(self, data: bytes | memoryview) -> None:
        """Raise FormatError if these are not the bytes of the tile."""
        if len(data) != self.length or zlib.crc32(data) != self.crc:
            raise FormatError(
                f"the tile at byte {self.start} has checksum {zlib.crc32(data):08x}, expected {self.crc:08x}: the file is "
                "damaged, fetch it again"
            )


def _unpack_index(view: memoryview, offset: int, header: Header) -> tuple[list[_Entry], int]:
    """Return the entry of each tile, and the offset behind the index. ``view`` may end behind it."""
    start = offset
    if start >= len(view) or view[start] != INDEX:
        found = view[start] if start < len(view) else "none"
        raise FormatError(f"chunk {found} follows the header of a tiled file, expected the index, {INDEX}: the file is damaged")
    length, offset = unpack_varint(view, start + 1)
    end = offset + length
    low, high = least_index(header), most_index(header)
    if not low <= length <= high:
        raise FormatError(
            f"the index claims {length} bytes for {header.n_tiles} tiles, expected {low} … {high}: the file is damaged"
        )
    check_length(INDEX, length, len(view) - offset)
    stored, computed = _CRC.unpack_from(view, end - _CRC.size)[0], zlib.crc32(view[: end - _CRC.size])
    if stored != computed:
        raise FormatError(f"header and index have checksum {computed:08x}, expected {stored:08x}: the file is damaged")
    entries, place, inside = [], end, view[: end - _CRC.size]
    for _ in range(header.n_tiles):
        n_bytes, offset = unpack_varint(inside, offset)
        if offset + _CRCS.size > len(inside):
            raise FormatError(f"the index at byte {start} ends inside an entry: the file is damaged")
        entries.append(_Entry(place, n_bytes, *_CRCS.unpack_from(inside, offset)))
        offset += _CRCS.size
        place += n_bytes
    if offset != len(inside):
        raise FormatError(f"{len(inside) - offset} bytes are left in the index: the file is damaged")
    crc = symbol_crc([entry.symbol_crc for entry in entries])
    if crc != header.symbol_crc:
        raise FormatError(f"symbol CRC is {header.symbol_crc:08x}, those of the tiles give {crc:08x}: the file is damaged")
    return entries, end


def least_index(header: Header) -> int:
    """Return the least number of bytes in the payload of the index."""
    return header.n_tiles * (1 + _CRCS.size) + _CRC.size


def most_index(header: Header) -> int:
    """Return the largest number of bytes in the payload of the index."""
    return header.n_tiles * (MAX_VARINT_BYTES + _CRCS.size) + _CRC.size


def symbol_crc(tile_crcs: Sequence[int]) -> int:
    """Return the symbol CRC in the header of a tiled file: the CRC-32 of those of its tiles."""
    return zlib.crc32(b"".join(map(_CRC.pack, tile_crcs)))


class _TiledFile:
    """A tiled file on disk: a tile is read when it is asked for."""

    def __init__(self, file: BinaryIO, header: Header, metadata: Metadata, entries: list[_Entry]) -> None:
        self.header, self.metadata = header, metadata
        self._file, self._entries, self._lock = file, entries, threading.Lock()

    def tile(self, number: int) -> Tile:
        """See ``TileSource``."""
        entry = self._entries[number]
        try:
            with self._lock:
                self._file.seek(entry.start)
                data = self._file.read(entry.length)
        except OSError as error:
            raise FormatError(
                f"the tile at byte {entry.start} cannot be read ({error.strerror}): copy the file anew"
            ) from error
        entry.check(data)
        kinds = tile_kinds(self.header)
        chunks, ends = unpack_chunks(memoryview(data), 0, 1, kinds, Crowd(), tiled=True)
        if ends != [len(data)] or len(chunks) != len(kinds):
            raise FormatError(f"the tile at byte {entry.start} has other chunks too: the file is damaged")
        payloads = [payload for _, payload in chunks]
        return Tile(payloads[:2], entry.symbol_crc, b"".join(payloads[2:]))


def open_container(file: BinaryIO, *, limits: Limits | None = None, whole: bool = False) -> TileSource:
    """Return what reads the tiles of a seekable file one by one; a file of one tile, and any with ``whole``, is read at once.

    Else the checksum of the whole file is not checked: those of header, index and each tile are. ``file`` must stay open.
    Raises what ``Container.unpack`` raises.
    """
    try:
        return _open_container(file, limits or Limits(), whole=whole)
    except OSError as error:
        raise FormatError(f"the file cannot be read ({error.strerror or error}): copy it anew") from error


def _open_container(file: BinaryIO, limits: Limits, *, whole: bool) -> TileSource:
    size = file.seek(0, 2)
    limits.check_bytes(size)
    file.seek(0)
    head = memoryview(file.read(_HEAD_BYTES))
    if whole or len(head) < 6 or bytes(head[:4]) != SIGNATURE or head[4] != VERSION:
        return Container.unpack(_read_all(file), limits=limits)  # which says what is wrong
    header, offset = Header.unpack(head)
    if not header.tile:
        return Container.unpack(_read_all(file), limits=limits)
    limits.check_size(header.width, header.height)
    head = _read_to_index(file, head, offset, size, header)
    metadata, offset = unpack_metadata(head, offset, Crowd())
    entries, _ = _unpack_index(head, offset, header)
    if entries[-1].start + entries[-1].length > size - _CRC.size:
        raise FormatError(f"the tiles end at byte {entries[-1].start + entries[-1].length} of {size}: the file is cut off")
    return _TiledFile(file, header, metadata, entries)


def _read_all(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def read_head(file: IO[bytes]) -> tuple[Header, Metadata]:
    """Return header and metadata of a seekable file, and read no more; checksums are not checked.

    Raises FormatError.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = memoryview(file.read(_HEAD_BYTES))
    header, offset = Header.unpack(head)
    return header, unpack_metadata(_read_to_index(file, head, offset, size, header), offset, Crowd())[0]


def _read_to_index(file: IO[bytes], begin: memoryview, offset: int, size: int, header: Header) -> memoryview:
    """Read on, chunk by chunk behind the header up to the index, which has their checksum; return all but the file's CRC.

    Raises FormatError for a chunk that is cut off and for a crowd of them; what else is wrong is found later.
    """
    head, end, crowd = bytearray(begin), size - _CRC.size, Crowd()
    while offset < min(len(head), end):
        kind, (length, inside) = head[offset], unpack_varint(memoryview(head), offset + 1)
        if not kind & ANCILLARY and not (kind == INDEX and header.tile and length <= most_index(header)):
            break
        check_length(kind, length, end - inside)
        crowd.add(kind)
        head += file.read(max(inside + length + _FRAME_BYTES - len(head), 0))
        offset = inside + length
        if not kind & ANCILLARY:
            break
    return memoryview(bytes(head))[: max(end, 0)]
