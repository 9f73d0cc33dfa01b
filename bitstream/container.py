"""The container: signature, header, chunks, CRC (FORMAT.md sections 2 and 3).

Reads every field as hostile: each check stands before anything is allocated from what it checks. Knows no network and
imports no torch, so ``codec info`` is quick.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from bitstream.errors import FormatError, LimitError, VersionError
from bitstream.varint import pack_varint, unpack_varint

SIGNATURE = b"\x89LIC"
VERSION = 1
MAX_SIDE = 2**24
MAX_PIXELS = 2**28  # default limit of a reader
PADDING = 64  # sides are coded in multiples of this
SMALL_PIXELS = 2**20  # what padding may always grow to

FLAG_GRAY = 1
KNOWN_FLAGS = FLAG_GRAY

# Chunk types: written constants, append-only. High bit: ancillary.
Z = 1
Y_TILE = 2
ALPHA = 3
ICC = 0x81
EXIF = 0x82
XMP = 0x83
ANCILLARY = 0x80

_FIXED = struct.Struct("<4sHBI")  # model id, level, tile, symbol CRC


@dataclass(frozen=True)
class Header:
    """All that a file says before its chunks. Sizes in pixels; level in 1/256 of a rate level."""

    width: int
    height: int
    gray: bool
    model_id: bytes  # (4,)
    level: int
    symbol_crc: int
    tile: int = 0
    version: int = VERSION

    def pack(self) -> bytes:
        """Return signature, version and header fields."""
        self.validate()
        flags = FLAG_GRAY if self.gray else 0
        size = pack_varint(self.width) + pack_varint(self.height)
        fixed = _FIXED.pack(self.model_id, self.level, self.tile, self.symbol_crc)
        return SIGNATURE + bytes([self.version, flags]) + size + fixed

    @classmethod
    def unpack(cls, data: memoryview) -> tuple[Header, int]:
        """Return (header, offset of the first chunk). Raises FormatError or VersionError."""
        if len(data) < len(SIGNATURE) + 1 or bytes(data[: len(SIGNATURE)]) != SIGNATURE:
            found = bytes(data[:4]).hex(" ") or "nothing"
            raise FormatError(f"not a .lic file: it begins with {found}, expected {SIGNATURE.hex(' ')}")
        version = data[4]
        if version != VERSION:
            raise VersionError(f"format version {version} is not supported (this program reads {VERSION}): update codec")
        if len(data) < 6:
            raise FormatError("the file ends inside its header: it is cut off")
        flags = data[5]
        if flags & ~KNOWN_FLAGS:
            raise FormatError(f"flags are {flags:#04x}, known are {KNOWN_FLAGS:#04x}: damaged, or made by a newer codec")
        width, offset = unpack_varint(data, 6)
        height, offset = unpack_varint(data, offset)
        if offset + _FIXED.size > len(data):
            raise FormatError("the file ends inside its header: it is cut off")
        model_id, level, tile, symbol_crc = _FIXED.unpack_from(data, offset)
        header = cls(width, height, bool(flags & FLAG_GRAY), model_id, level, symbol_crc, tile, version)
        header.validate()
        return header, offset + _FIXED.size

    def validate(self) -> None:
        """Raise FormatError if a field is outside of what FORMAT.md allows."""
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            raise FormatError(f"picture size is {self.width}×{self.height}, expected 1 … {MAX_SIDE} a side")
        if len(self.model_id) != 4:
            raise FormatError(f"model id has {len(self.model_id)} bytes, expected 4")
        if not (0 <= self.level < 2**16 and 0 <= self.symbol_crc < 2**32):
            raise FormatError(f"level {self.level} or symbol CRC {self.symbol_crc} does not fit its field (16, 32 bits)")
        if self.tile != 0:
            raise FormatError(f"tile field is {self.tile}; this program reads untiled files (0): update codec")


@dataclass(frozen=True)
class Container:
    """A whole file, taken apart: header and chunks (type, payload) in order."""

    header: Header
    chunks: list[tuple[int, bytes]] = field(default_factory=list)

    def pack(self) -> bytes:
        """Return the bytes of the file."""
        parts = [self.header.pack()]
        for kind, payload in self.chunks:
            parts += [bytes([kind]), pack_varint(len(payload)), payload]
        body = b"".join(parts)
        return body + struct.pack("<I", zlib.crc32(body))

    @classmethod
    def unpack(cls, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Container:
        """Take a file apart, every check included.

        Raises FormatError (VersionError, LimitError) with what was found and expected.
        """
        view = memoryview(data)
        header, offset = unpack_header(view, max_pixels=max_pixels)
        chunks: list[tuple[int, bytes]] = []
        end = len(view) - 4
        while offset < end:
            kind = view[offset]
            length, offset = unpack_varint(view[:end], offset + 1)
            if length > end - offset:
                raise FormatError(f"chunk {kind} claims {length} bytes, {end - offset} are left: the file is damaged")
            if kind in (Z, Y_TILE):
                chunks.append((kind, bytes(view[offset : offset + length])))
            elif not kind & ANCILLARY:
                raise FormatError(f"chunk type {kind} is not known and not skippable: made by a newer codec, update")
            offset += length
        if [kind for kind, _ in chunks] != [Z, Y_TILE]:
            raise FormatError(f"chunks are {[kind for kind, _ in chunks]}, expected one Z and one Y_TILE, {[Z, Y_TILE]}")
        return cls(header, chunks)


def unpack_header(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> tuple[Header, int]:
    """Check signature, version, file CRC and limits; return (header, offset of the first chunk)."""
    view = memoryview(data)
    if len(view) >= 5 and bytes(view[:4]) == SIGNATURE and view[4] == VERSION:
        if len(view) < 9:
            raise FormatError(f"the file has {len(view)} bytes and ends inside its header: it is cut off")
        stored, computed = struct.unpack("<I", view[-4:])[0], zlib.crc32(view[:-4])
        if stored != computed:
            raise FormatError(
                f"file checksum is {computed:08x}, expected {stored:08x}: the file is cut off or damaged, fetch it again"
            )
    header, offset = Header.unpack(view[:-4] if len(view) >= 9 else view)
    check_size(header.width, header.height, max_pixels)
    return header, offset


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise LimitError if a picture, or a large one with its sides rounded up to 64 as it is coded, exceeds ``max_pixels``."""
    coded_width, coded_height = (-(-side // PADDING) * PADDING for side in (width, height))
    if width * height > max_pixels:
        found = f"{width}×{height} pixels"
    elif coded_width * coded_height > max(max_pixels, SMALL_PIXELS):
        found = f"{width}×{height} pixels, coded in steps of {PADDING} as {coded_width}×{coded_height}"
    else:
        return
    raise LimitError(f"the picture has {found}, the limit is {max_pixels}: raise it with --max-pixels, or cut the picture")
