"""Canonical LEB128 varints and zig-zag signs (FORMAT.md section 1)."""

from __future__ import annotations

from bitstream.errors import FormatError

MAX_BYTES = 5
MAX_VALUE = 2**32 - 1


def pack_varint(value: int) -> bytes:
    """Return the canonical bytes of 0 ≤ value < 2^32."""
    if not 0 <= value <= MAX_VALUE:
        raise FormatError(f"varint: {value} is outside of 0 … {MAX_VALUE}")
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def unpack_varint(data: memoryview, offset: int) -> tuple[int, int]:
    """Return (value, offset behind it). Raises FormatError if it is cut off, too long or not canonical."""
    value = 0
    for i in range(MAX_BYTES):
        if offset + i >= len(data):
            raise FormatError(f"varint at byte {offset}: the data ends inside of it: the file is cut off or damaged")
        byte = data[offset + i]
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            if byte == 0 and i > 0:
                raise FormatError(f"varint at byte {offset}: not canonical (a trailing zero byte): the file is damaged")
            if value > MAX_VALUE:
                break
            return value, offset + i + 1
    raise FormatError(f"varint at byte {offset}: larger than 32 bits: the file is damaged")


def zigzag(value: int) -> int:
    """Map 0, −1, 1, −2, … to 0, 1, 2, 3, …"""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(value: int) -> int:
    """Invert ``zigzag``."""
    return value // 2 if value % 2 == 0 else -(value + 1) // 2
