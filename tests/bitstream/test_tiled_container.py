"""Tiled files: literal bytes, tiles read one by one, and every damage to the index refused (FORMAT.md, section 3.1)."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib

import pytest

from bitstream.chunks import EXIF, INDEX, MAX_ANCILLARY, Y_TILE, Metadata, Z
from bitstream.container import Container, Tile, open_container, read_head
from bitstream.errors import CodecError, FormatError, LimitError
from bitstream.header import Header
from bitstream.limits import Limits

HEADER = Header(width=300, height=200, gray=False, model_id=b"\xde\xad\xbe\xef", level=0, symbol_crc=0, tile=8)
TILES = [Tile([b"\xaa", b"\xbb\xcc"], 0x11223344), Tile([b"", b"\xdd" * 200], 0xFFFFFFFF)]
CONTAINER = Container.of_tiles(HEADER, TILES)
FILE = CONTAINER.pack()
HEAD_BYTES = 21
INDEX_BYTES = 2 + 9 + 10 + 4  # frame, an entry of 7 bytes and one of 205, CRC


def sealed(body: bytes) -> bytes:
    """Return a file with the right checksum."""
    return body + struct.pack("<I", zlib.crc32(body))


def sealed_index(head_and_entries: bytes, rest: bytes) -> bytes:
    """Return a file with the right checksums of index and file."""
    return sealed(sealed(head_and_entries) + rest)


def _read_all(data: bytes) -> list[Tile]:
    """Return the tiles, read one by one."""
    source = open_container(io.BytesIO(data))
    return [source.tile(number) for number in range(source.header.n_tiles)]


class Counting(io.BytesIO):
    """Counts the bytes that are read."""

    count = 0

    def read(self, size=-1):
        """Read and count."""
        data = super().read(size)
        self.count += len(data)
        return data


def test_the_literal_bytes():
    first, second = bytes.fromhex("01 01 aa 02 02 bb cc"), b"\x01\x00\x02\xc8\x01" + b"\xdd" * 200
    symbols = struct.pack("<II", 0x11223344, 0xFFFFFFFF)
    head = bytes.fromhex("89 4c 49 43 01 00 ac 02 c8 01 de ad be ef 00 00 08") + struct.pack("<I", zlib.crc32(symbols))
    head += bytes([INDEX, INDEX_BYTES - 2])
    head += b"\x07" + struct.pack("<I", zlib.crc32(first)) + symbols[:4]
    head += b"\xcd\x01" + struct.pack("<I", zlib.crc32(second)) + symbols[4:]
    assert sealed_index(head, first + second) == FILE


def test_tiles_come_back():
    assert Container.unpack(FILE) == CONTAINER
    assert [CONTAINER.tile(number) for number in range(2)] == TILES
    assert CONTAINER.header.n_tiles == 2


def test_one_tile_is_read_alone():
    file = Counting(FILE)
    source = open_container(file)
    assert source.header == CONTAINER.header
    before = file.count
    assert source.tile(0) == TILES[0]
    assert file.count - before == 7
    assert source.tile(1) == TILES[1]


def test_a_long_index_is_read_whole():
    header = dataclasses.replace(HEADER, width=256 * 40, height=1)
    tiles = [Tile([b"", bytes([number])], number) for number in range(40)]
    source = open_container(io.BytesIO(Container.of_tiles(header, tiles).pack()))
    assert [source.tile(number) for number in range(40)] == tiles


def test_ancillary_chunks_behind_the_tiles_are_skipped():
    data = dataclasses.replace(CONTAINER, chunks=[*CONTAINER.chunks, (0xEE, b"x" * 30)]).pack()
    assert Container.unpack(data) == CONTAINER
    assert open_container(io.BytesIO(data)).tile(1) == TILES[1]


@pytest.mark.parametrize("size", [1, 40, 100_000])
def test_metadata_of_a_tiled_file_is_read_with_its_head(size):
    metadata = Metadata(b"", b"e" * size, b"x" * 3)
    data = dataclasses.replace(CONTAINER, metadata=metadata).pack()
    assert Container.unpack(data) == dataclasses.replace(CONTAINER, metadata=metadata)
    file = Counting(data)
    source = open_container(file)
    assert source.metadata == metadata
    assert file.count <= HEAD_BYTES + size + INDEX_BYTES + 64
    assert [source.tile(number) for number in range(2)] == TILES
    damaged = bytearray(data)
    damaged[HEAD_BYTES + len(data) - len(FILE) - 2] ^= 1  # in the metadata, which the checksum of the index covers
    with pytest.raises(FormatError, match="header and index have checksum"):
        open_container(io.BytesIO(bytes(damaged)))


def test_tiles_with_alpha():
    header = dataclasses.replace(HEADER, alpha=True)
    tiles = [tile._replace(alpha=bytes([number]) * 9) for number, tile in enumerate(TILES)]
    data = Container.of_tiles(header, tiles).pack()
    assert Container.unpack(data).tile(1) == tiles[1]
    assert _read_all(data) == tiles


def test_ancillary_chunks_between_the_tiles_are_refused():
    chunks = [*CONTAINER.chunks[:2], (EXIF, b""), *CONTAINER.chunks[2:]]
    body = dataclasses.replace(CONTAINER, chunks=CONTAINER.chunks).pack()[: HEAD_BYTES + INDEX_BYTES]
    frames = b"".join(bytes([kind, *([len(p)] if len(p) < 128 else [0xC8, 0x01])]) + p for kind, p in chunks)
    with pytest.raises(FormatError, match="chunk 130 is between tiles"):
        Container.unpack(sealed(body + frames))


def test_a_file_of_one_tile_is_read_whole():
    header = dataclasses.replace(HEADER, tile=0)
    data = Container.of_tiles(header, TILES[:1]).pack()
    assert open_container(io.BytesIO(data)) == Container.unpack(data)
    assert open_container(io.BytesIO(data)).tile(0) == TILES[0]


@pytest.mark.parametrize("place", range(len(FILE) - 4))
def test_every_damaged_byte_is_noticed_when_a_tile_is_read(place):
    data = bytearray(FILE)
    data[place] ^= 0x41

    with pytest.raises(CodecError):
        _read_all(bytes(data))


@pytest.mark.parametrize("length", range(len(FILE)))
def test_every_cut_is_noticed(length):
    for unpack in (Container.unpack, lambda data: open_container(io.BytesIO(data)).tile(1)):
        with pytest.raises(FormatError):
            unpack(FILE[:length])


def forged(change) -> bytes:
    """Return FILE with its head and entries changed, sealed again."""
    index_end = HEAD_BYTES + INDEX_BYTES - 4
    head = bytearray(FILE[:index_end])
    change(head)
    return sealed_index(bytes(head), FILE[index_end + 4 : -4])


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, Z, "expected the index, 4"),
        (1, 22, "header and index have checksum"),
        (1, 0x7F, "the index claims 127 bytes for 2 tiles"),
        (1, 0xFF, "the index claims"),
        (1, 3, "the index claims 3 bytes for 2 tiles"),
        (2, 8, "a tile has the bytes 46 … 52, the index says 46 … 53"),
        (9 + 2, 0xCC, "a tile has the bytes 53 … 257, the index says 53 … 256"),
        (9 + 2, 0xCE, "a tile has the bytes 53 … 257, the index says 53 … 258"),
        (3, 0x56, "the tile at byte 46 has checksum"),
        (7, 0x45, "symbol CRC is"),
    ],
)
def test_a_forged_index_is_refused(offset, value, message):
    def change(head):
        head[HEAD_BYTES + offset] = value

    data = forged(change)
    with pytest.raises(FormatError, match=message):
        Container.unpack(data)
    with pytest.raises(FormatError):
        _read_all(data)


def test_an_index_that_is_too_long_is_refused():
    start = HEAD_BYTES
    head = bytearray(FILE[: start + INDEX_BYTES - 4])
    head[start + 1] += 1
    data = sealed_index(bytes(head) + b"\0", FILE[start + INDEX_BYTES :])
    with pytest.raises(FormatError, match="1 bytes are left in the index"):
        Container.unpack(data)


def test_tiles_behind_the_end_are_refused():
    def change(head):
        head[HEAD_BYTES + 2 + 9 : HEAD_BYTES + 2 + 9 + 2] = b"\xff\x7f"

    with pytest.raises(FormatError, match="the tiles end at byte"):
        open_container(io.BytesIO(forged(change)))


def test_missing_tiles_are_refused():
    data = dataclasses.replace(CONTAINER, chunks=CONTAINER.chunks[:2], tile_crcs=CONTAINER.tile_crcs[:1])
    with pytest.raises(FormatError, match="the index claims|expected one Z and one Y_TILE"):
        Container.unpack(data.pack())


def test_limits_are_checked_when_a_file_is_opened():
    with pytest.raises(LimitError, match="300×200"):
        open_container(io.BytesIO(FILE), limits=Limits(max_pixels=100))
    with pytest.raises(LimitError, match=f"the file has {len(FILE)} bytes, the limit is 10"):
        open_container(io.BytesIO(FILE), limits=Limits(max_memory=10))


def test_the_index_of_a_picture_of_very_many_tiles_is_refused_by_its_length():
    header = dataclasses.replace(HEADER, width=2**24, height=16)
    head = header.pack() + bytes([INDEX, 20]) + bytes(16)
    with pytest.raises(FormatError, match="for 65536 tiles"):
        Container.unpack(sealed(sealed(head)), limits=Limits(max_pixels=2**40))


@pytest.mark.parametrize("inside", [b"", b"x"])
def test_other_chunks_inside_a_tile_are_refused(inside):
    """The index may cover them: a reader of the whole and one of the tile say the same."""
    header = dataclasses.replace(HEADER, width=10, height=10)
    container = Container.of_tiles(header, [Tile([b"\xaa" + bytes([EXIF, len(inside)]) + inside, b"\xbb"], 7)])
    data = bytearray(container.pack())
    data[data.index(b"\x01" + bytes([3 + len(inside)]) + b"\xaa") + 1] = 1  # the first payload ends: EXIF is a chunk
    start = data.index(b"\x01\x01\xaa")
    tile = bytes(data[start:-4])
    entries = bytes([len(tile)]) + struct.pack("<II", zlib.crc32(tile), 7)
    forged = sealed_index(header_bytes(container) + bytes([INDEX, len(entries) + 4]) + entries, tile)
    for read in (Container.unpack, _read_all):
        with pytest.raises(FormatError, match="is between tiles"):
            read(forged)


def header_bytes(container: Container) -> bytes:
    """Return the header."""
    return container.header.pack()


@pytest.mark.parametrize("kind", [Z, Y_TILE, 0xEE, 0xFF])
def test_very_many_chunks_are_refused_at_once(kind):
    one_tile = dataclasses.replace(HEADER, tile=0)
    spam = one_tile.pack() + bytes([Z, 0, Y_TILE, 0]) + bytes([kind, 0]) * 100_000
    with pytest.raises(FormatError, match="chunks are|ancillary chunks"):
        Container.unpack(sealed(spam))


READERS = {
    "whole": Container.unpack,
    "tile by tile": lambda data: open_container(io.BytesIO(data)),
    "head": lambda data: read_head(io.BytesIO(data)),
}


def crowded(before: int, behind: int, tile: int = 8) -> bytes:
    """Return a file, sound but for so many empty ancillary chunks before its tiles and behind them."""
    plain = dataclasses.replace(HEADER, tile=tile)
    container = Container.of_tiles(plain, TILES if tile else TILES[:1])
    start = len(header_bytes(container))
    body = bytearray(container.pack()[:-4])
    body[start:start] = b"\xf0\0" * before
    if tile:
        start += 2 * before + INDEX_BYTES
        body[start - 4 : start] = struct.pack("<I", zlib.crc32(body[: start - 4]))
    return sealed(bytes(body) + b"\xf0\0" * behind)


@pytest.mark.parametrize("tile", [0, 8])
@pytest.mark.parametrize("reader", READERS)
def test_a_crowd_before_the_tiles_is_refused_without_reading_it(reader, tile):
    READERS[reader](crowded(MAX_ANCILLARY, 0, tile))
    with pytest.raises(FormatError, match="more than 1000 ancillary chunks"):
        READERS[reader](crowded(MAX_ANCILLARY + 1, 0, tile))
    file = Counting(crowded(200_000, 0, tile))
    with pytest.raises(FormatError, match="more than 1000 ancillary chunks"):
        read_head(file)
    assert file.count < 10_000


@pytest.mark.parametrize("tile", [0, 8])
def test_ancillary_chunks_before_and_behind_the_tiles_are_one_crowd(tile):
    Container.unpack(crowded(MAX_ANCILLARY - 1, 1, tile))
    with pytest.raises(FormatError, match="more than 1000 ancillary chunks"):
        Container.unpack(crowded(MAX_ANCILLARY, 1, tile))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("tile", [0, 8])
def test_a_chunk_that_is_cut_off_says_what_is_left_of_the_file(reader, tile):
    header = dataclasses.replace(HEADER, tile=tile).pack()
    data = sealed(header + bytes([EXIF]) + b"\xac\x02" + bytes(120))  # claims 300 bytes
    with pytest.raises(FormatError, match="chunk 130 claims 300 bytes, 120 are left"):
        READERS[reader](data)


@pytest.mark.parametrize("reader", READERS)
def test_a_file_without_chunks_does_not_take_its_checksum_for_one(reader):
    body = next(b for b in (bytes([n]) for n in range(256)) if zlib.crc32(HEADER.pack()[:-1] + b) & 0x80)
    data = sealed(HEADER.pack()[:-1] + body)
    assert data[-4] & 0x80  # as of an ancillary chunk
    if reader == "head":
        assert READERS[reader](data)[1] == Metadata()
    else:
        with pytest.raises(FormatError, match="chunk none follows the header"):
            READERS[reader](data)
