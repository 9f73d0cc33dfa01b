"""Mutations of a file for the fuzzers, from single bits to whole chunks; most are sealed again, so that they go deep.

Works on bytes, varints and chunk frames alone (FORMAT.md sections 1 to 3), not with the reader under test: what a mutation
made of a file is cut up as far as that makes sense, and chunks of any type take part. ``MUTATIONS`` has them all; each takes
the file, a seeded ``random.Random`` and the seeds, and returns another file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

FLAG_ALPHA = 2  # of the header: tiles have three chunks
INDEX = 4  # the chunk with lengths and CRCs of the tiles
FIXED_BYTES = 11  # model id, level, tile, symbol CRC
MAX_BYTES = 2**16  # of a mutated file
SEALED = 0.9  # share of mutated files whose CRC is right
EXTREMES = (0, 1, 2, 63, 64, 127, 128, 255, 256, 2**14, 2**16 - 1, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63)
BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFF)
KINDS = (0, 1, 2, 3, INDEX, 5, 0x7F, 0x80, 0x81, 0x82, 0x83, 0xFF)  # of chunks: known, reserved, unknown, ancillary

Mutation = Callable[[bytes, Random, Sequence[bytes]], bytes]


# --- a file in pieces


@dataclass(frozen=True)
class Pieces:
    """A file as bytes between its frames: any of them may be empty, damaged or absurd."""

    prefix: bytes  # signature, version, flags
    sides: tuple[bytes, ...]  # width and height
    fixed: bytes  # model id, level, tile, symbol CRC
    chunks: tuple[tuple[int, bytes], ...]  # (type, payload)
    rest: bytes  # what is no chunk

    def join(self) -> bytes:
        """Return the file; lengths of chunks, index and file CRC are right."""
        head = self.prefix + b"".join(self.sides) + self.fixed
        frames = [frame(kind, payload) for kind, payload in self.chunks]
        at = self.index_at
        if at is not None:
            each = 3 if self.prefix[5:6] and self.prefix[5] & FLAG_ALPHA else 2  # frames of a tile
            frames[at] = _index(head + b"".join(frames[:at]), self.chunks[at][1], frames[at + 1 :], each)
        return with_crc(head + b"".join(frames) + self.rest)

    @property
    def index_at(self) -> int | None:
        """Return which chunk is the index: behind metadata the first."""
        kinds = [kind for kind, _ in self.chunks]
        first = next((at for at, kind in enumerate(kinds) if not kind & 0x80), None)
        return first if first is not None and kinds[first] == INDEX else None


def with_crc(body: bytes) -> bytes:
    """Return a file whose last four bytes are the CRC-32 of the others."""
    return body + struct.pack("<I", zlib.crc32(body))


def seal(data: bytes) -> bytes:
    """Return a file with right CRCs in the place of those it has, its index included."""
    pieces = cut(data)
    return with_crc(data[:-4]) if pieces.index_at is None else pieces.join()


def pack(value: int, zeros: int = 0) -> bytes:
    """Return a varint of any size; with ``zeros`` bytes too many it is not canonical."""
    groups = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)] + [0] * zeros
    return bytes(group | 128 for group in groups[:-1]) + bytes(groups[-1:])


def unpack(data: bytes, offset: int) -> tuple[int, int]:
    """Return a varint, canonical or not, and the offset behind it; what is cut off ends with the data."""
    value = shift = 0
    while offset < len(data):
        byte, offset = data[offset], offset + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    return value, offset


def frame(kind: int, payload: bytes) -> bytes:
    """Return a chunk."""
    return bytes([kind]) + pack(len(payload)) + payload


def cut(data: bytes) -> Pieces:
    """Return the pieces of a file, damaged or not; ``join`` gives a sound one back."""
    body, offset, sides = data[:-4], 6, []
    for _ in range(2):
        _, end = unpack(body, offset)
        sides.append(body[offset:end])
        offset = end
    fixed, offset = body[offset : offset + FIXED_BYTES], offset + FIXED_BYTES
    chunks = []
    while offset < len(body):
        length, start = unpack(body, offset + 1)
        if length > len(body) - start:
            break
        chunks.append((body[offset], body[start : start + length]))
        offset = start + length
    return Pieces(body[:6], tuple(sides), fixed, tuple(chunks), body[offset:])


def with_symbol_crc(data: bytes, crc: int, old: int) -> bytes:
    """Return a file with another symbol CRC in the place of an old one: its own, or that of a tile."""
    pieces, new = cut(data), struct.pack("<I", crc)
    at = pieces.index_at
    if at is not None:
        index = pieces.chunks[at][1]
        offset, crcs = 0, []
        while offset < len(index) - 4:
            _, start = unpack(index, offset)
            offset = start + 8
            if index[start + 4 : offset] == struct.pack("<I", old):
                index = index[: start + 4] + new + index[offset:]
            crcs.append(index[start + 4 : offset])
        pieces = replace(pieces, chunks=(*pieces.chunks[:at], (INDEX, index), *pieces.chunks[at + 1 :]))
        new = struct.pack("<I", zlib.crc32(b"".join(crcs)))
    return replace(pieces, fixed=pieces.fixed[:7] + new).join()


def _index(head: bytes, old: bytes, frames: list[bytes], each: int) -> bytes:
    """Return the INDEX chunk of tiles of so many frames each, their symbol CRCs as in an old one."""
    offset, payload = 0, b""
    for number in range(0, len(frames) - each + 1, each):
        _, start = unpack(old, offset)
        offset = start + 8
        tile = b"".join(frames[number : number + each])
        payload += pack(len(tile)) + struct.pack("<I", zlib.crc32(tile)) + old[start + 4 : offset].ljust(4, b"\0")
    before = bytes([INDEX]) + pack(len(payload) + 4) + payload
    return before + struct.pack("<I", zlib.crc32(head + before))


# --- bytes


def flip_bits(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Flip one bit, seldom up to eight."""
    out = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def set_bytes(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Set a byte, or a run of up to 16, to a value with a meaning or to any."""
    at, count = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 16))
    return data[:at] + _run(rng, min(count, len(data) - at)) + data[at + count :]


def cut_out(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Leave out some bytes."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 1, 2, 4, 32)) :]


def insert(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Insert some bytes, strange ones or a copy of those before."""
    at, count = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 32))
    return data[:at] + (data[max(at - count, 0) : at] if rng.random() < 0.3 else _run(rng, count)) + data[at:]


def truncate(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Keep the first bytes only."""
    return data[: rng.randrange(len(data) + 1)]


def append(data: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    """Let something follow: a few bytes, or a whole file."""
    return data + (rng.choice(seeds) if rng.random() < 0.2 else _run(rng, rng.choice((1, 2, 4, 64))))


def mangle(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Do what mail and editors do: change line ends, take away the eighth bit, read as another encoding."""
    return MANGLINGS[rng.choice(list(MANGLINGS))](data)


MANGLINGS: dict[str, Callable[[bytes], bytes]] = {
    "LF to CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "CRLF to LF": lambda data: data.replace(b"\r\n", b"\n"),
    "CR to LF": lambda data: data.replace(b"\r", b"\n"),
    "seven bits": lambda data: bytes(byte & 127 for byte in data),
    "Latin-1 to UTF-8": lambda data: data.decode("latin-1").encode(),
    "UTF-8 with replacements": lambda data: data.decode("utf-8", "replace").encode(),
    "without NUL": lambda data: data.replace(b"\0", b""),
}


def splice(data: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    """Take the beginning of one file and the end of another."""
    other = rng.choice(seeds)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


# --- header


def header_field(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Give one field of the header an absurd value."""
    pieces = cut(data)
    prefix, fixed = bytearray(pieces.prefix.ljust(6, b"\0")), bytearray(pieces.fixed.ljust(FIXED_BYTES, b"\0"))
    field = rng.choice(("version", "flags", "model", "level", "level", "tile", "tile", "crc"))
    if field == "version":
        prefix[4] = rng.choice((0, 2, 3, 255))
    elif field == "flags":
        prefix[5] = rng.choice((1, 1, 2, 3, 128, 255))
    elif field == "model":
        fixed[:4] = rng.randbytes(4)
    elif field == "level":
        fixed[4:6] = struct.pack("<H", rng.choice((0, 1, 255, 256, 767, 768, 769, 2**15, 2**16 - 1)))
    elif field == "tile":
        fixed[6] = rng.choice((0, 1, 7, 8, 9, 12, 15, 16, 255))
    else:
        fixed[7:] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", rng.randbytes(4)))
    return replace(pieces, prefix=bytes(prefix), fixed=bytes(fixed)).join()


def side(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Give the picture another width or height, near or extreme, seldom not canonical."""
    pieces, which = cut(data), rng.randrange(2)
    value = rng.choice(EXTREMES) if rng.random() < 0.4 else rng.randrange(1, 300)
    sides = list(pieces.sides)
    sides[which] = pack(value, zeros=rng.choice((0, 0, 0, 0, 1, 5)))
    return replace(pieces, sides=tuple(sides)).join()


def header_of_another(data: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    """Put the header of another file before the chunks."""
    other = cut(rng.choice(seeds))
    return replace(cut(data), sides=other.sides, fixed=other.fixed).join()


# --- chunks


def move_chunks(data: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    """Swap, repeat, drop, insert or exchange a chunk."""
    pieces = cut(data)
    chunks = list(pieces.chunks) or [(1, b"")]
    at, other = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    action = rng.choice(("swap", "repeat", "drop", "insert", "foreign", "kind"))
    if action == "swap":
        chunks[at], chunks[other] = chunks[other], chunks[at]
    elif action == "repeat":
        chunks.insert(other, chunks[at])
    elif action == "drop":
        del chunks[at]
    elif action == "insert":
        chunks.insert(at, (rng.choice(KINDS), _run(rng, rng.choice((0, 1, 20)))))
    elif action == "foreign":
        strange = cut(rng.choice(seeds)).chunks
        chunks[at] = next((chunk for chunk in strange if chunk[0] == chunks[at][0]), chunks[at])
    else:
        chunks[at] = rng.choice(KINDS), chunks[at][1]
    return replace(pieces, chunks=tuple(chunks)).join()


def chunk_length(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Let a chunk claim another length, seldom not canonical."""
    pieces = cut(data)
    if not pieces.chunks:
        return data
    at = rng.randrange(len(pieces.chunks))
    frames = [frame(kind, payload) for kind, payload in pieces.chunks]
    kind, payload = pieces.chunks[at]
    claim = rng.choice((*EXTREMES, len(payload), len(payload) + 1, max(len(payload) - 1, 0)))
    frames[at] = bytes([kind]) + pack(claim, zeros=rng.choice((0, 0, 1, 4))) + payload
    return with_crc(replace(pieces, chunks=(), rest=b"").join()[:-4] + b"".join(frames) + pieces.rest)


# --- payloads: their chunk's length is right


def payload_bytes(data: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    """Change some bytes of a payload, fewer or more of them too."""
    mutation = rng.choice((flip_bits, flip_bits, set_bytes, set_bytes, cut_out, insert, truncate, append))
    return _in_payload(data, rng, lambda payload: mutation(payload, rng, seeds))


def garbage(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Replace a payload from some byte on by noise, zeros or ones, as long as it was or not."""

    def change(payload: bytes) -> bytes:
        at = rng.randrange(len(payload) + 1)
        count = rng.choice((len(payload) - at, len(payload) - at, rng.randrange(300)))
        return payload[:at] + _run(rng, count)

    return _in_payload(data, rng, change)


def stream_field(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Give a range or a length of a stream another value: an extreme, a near one, one that is not canonical."""

    def change(payload: bytes) -> bytes:
        spans = stream_fields(payload)
        if not spans:
            return pack(rng.choice(EXTREMES))
        start, stop = rng.choice(spans)
        value, _ = unpack(payload, start)
        near = (max(value + rng.randint(-3, 3), 0), rng.choice((252, 253, 254, 2044, 2045, 2046, 2047)))
        new = rng.choice((*near, *near, rng.choice(EXTREMES), value))
        return payload[:start] + pack(new, zeros=rng.choice((0, 0, 0, 0, 1))) + payload[stop:]

    return _in_payload(data, rng, change)


def stream_fields(payload: bytes) -> list[tuple[int, int]]:
    """Return where the varints of a payload may be: the lengths of a segment, and those of streams one behind the other."""
    spans, offset = [], 0
    for _ in range(9):
        _, end = unpack(payload, offset)
        spans.append((offset, end))
        offset = end
    offset = 0
    while offset < len(payload):
        values = []
        for _ in range(2):
            value, end = unpack(payload, offset)
            values.append(value)
            spans.append((offset, end))
            offset = end
        if values[0] != values[1]:
            length, end = unpack(payload, offset)
            spans.append((offset, end))
            offset = end + length
    return sorted({(start, end) for start, end in spans if start < end})


def _in_payload(data: bytes, rng: Random, change: Callable[[bytes], bytes]) -> bytes:
    pieces = cut(data)
    if not pieces.chunks:
        return data
    chunks = list(pieces.chunks)
    at = rng.choices(range(len(chunks)), [len(payload) + 8 for _, payload in chunks])[0]
    chunks[at] = chunks[at][0], change(chunks[at][1])
    return replace(pieces, chunks=tuple(chunks)).join()


def _run(rng: Random, count: int) -> bytes:
    """Return noise, or one byte again and again."""
    return rng.randbytes(count) if rng.random() < 0.5 else bytes([rng.choice(BYTES)]) * count


# --- all of them

MUTATIONS: dict[Mutation, int] = {  # how often they come
    payload_bytes: 24, garbage: 12, stream_field: 24, flip_bits: 6, set_bytes: 4, cut_out: 1, insert: 1, truncate: 1, append: 1,
    mangle: 1, splice: 2, header_field: 4, side: 8, header_of_another: 4, move_chunks: 6, chunk_length: 2,
}  # fmt: skip


def mutate(rng: Random, seeds: Sequence[bytes], data: bytes | None = None) -> bytes:
    """Return a file, or one of the seeds, after one mutation or some; most are sealed."""
    data = rng.choice(seeds) if data is None else data
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        data = rng.choices(list(MUTATIONS), list(MUTATIONS.values()))[0](data, rng, seeds)[:MAX_BYTES]
    return seal(data) if rng.random() < SEALED else data
