"""The header of a file: what it says before its chunks (FORMAT.md section 2).

Reads every field as hostile. Imports no torch.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from bitstream.errors import FormatError, UsageError, VersionError
from bitstream.grid import count_tiles
from bitstream.limits import MAX_SIDE, Limits
from bitstream.varint import pack_varint, unpack_varint

SIGNATURE = b"\x89LIC"
VERSION = 1
TILE_BITS_RANGE = range(8, 16)  # of tiled files

FLAG_GRAY = 1
FLAG_ALPHA = 2
FLAG_FITTED = 4
KNOWN_FLAGS = FLAG_GRAY | FLAG_ALPHA | FLAG_FITTED

_FIXED = struct.Struct("<4sHBI")  # model id, level, tile, symbol CRC
_CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Header:
    """All that a file says before its chunks. Sizes in pixels; level in 1/256 of a rate level.

    ``fitted`` files hold networks of their own beside the latents (``models.overfit``); they have one tile.
    """

    width: int
    height: int
    gray: bool
    model_id: bytes  # (4,)
    level: int
    symbol_crc: int
    tile: int = 0
    version: int = VERSION
    alpha: bool = False
    fitted: bool = False

    def pack(self) -> bytes:
        """Return signature, version and header fields."""
        self.validate()
        flags = FLAG_GRAY * self.gray | FLAG_ALPHA * self.alpha | FLAG_FITTED * self.fitted
        size = pack_varint(self.width) + pack_varint(self.height)
        fixed = _FIXED.pack(self.model_id, self.level, self.tile, self.symbol_crc)
        return SIGNATURE + bytes([self.version, flags]) + size + fixed

    @classmethod
    def unpack(cls, data: memoryview) -> tuple[Header, int]:
        """Return (header, offset of the first chunk). Raises FormatError or VersionError."""
        if bytes(data[: len(SIGNATURE)]) != SIGNATURE:
            found = bytes(data[:4]).hex(" ") or "nothing"
            raise FormatError(f"not a .lic file: it begins with {found}, expected {SIGNATURE.hex(' ')}")
        if len(data) == len(SIGNATURE):
            raise FormatError("the file ends behind its signature, inside its header: it is cut off")
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
        gray, alpha, fitted = (bool(flags & flag) for flag in (FLAG_GRAY, FLAG_ALPHA, FLAG_FITTED))
        header = cls(width, height, gray, model_id, level, symbol_crc, tile, version, alpha, fitted)
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
        if self.tile and self.tile not in TILE_BITS_RANGE:
            low, high = TILE_BITS_RANGE[0], TILE_BITS_RANGE[-1]
            raise FormatError(f"tile field is {self.tile}, expected 0 or {low} … {high}: damaged, or made by a newer codec")
        if self.tile and self.fitted:
            raise FormatError(f"tile field is {self.tile}, expected 0 of a file with networks of its own: the file is damaged")

    @property
    def n_tiles(self) -> int:
        """Return the number of tiles."""
        return count_tiles(self.tile, self.width, self.height)


def unpack_header(data: bytes | memoryview, *, limits: Limits | None = None) -> tuple[Header, int]:
    """Check signature, version, file CRC and limits; return (header, offset of the first chunk)."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise UsageError(f"the file is of type {type(data).__name__}, expected its bytes: of a path take decode_file")
    limits = limits or Limits()
    limits.check_bytes(len(data))
    view = memoryview(data)
    if len(view) >= 5 and bytes(view[:4]) == SIGNATURE and view[4] == VERSION:
        if len(view) < 9:
            raise FormatError(f"the file has {len(view)} bytes and ends inside its header: it is cut off")
        stored, computed = _CRC.unpack(view[-4:])[0], zlib.crc32(view[:-4])
        if stored != computed:
            raise FormatError(
                f"file checksum is {computed:08x}, expected {stored:08x}: the file is cut off or damaged, fetch it again"
            )
    header, offset = Header.unpack(view[:-4] if len(view) >= 9 else view)
    limits.check_size(header.width, header.height)
    return header, offset
