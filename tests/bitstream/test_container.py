"""The container: literal bytes, and an error of its own for each way in which a file can be off."""

import dataclasses
import io
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from bitstream.chunks import ALPHA, EXIF, GRIDS, ICC, NETWORKS, XMP, Y_TILE, Metadata, Z, tile_kinds
from bitstream.container import Container, Tile, open_container
from bitstream.errors import CodecError, FormatError, LimitError, VersionError
from bitstream.header import SIGNATURE, Header, unpack_header
from bitstream.limits import MAX_SIDE, Limits
from bitstream.varint import pack_varint

HEADER = Header(width=768, height=512, gray=False, model_id=b"\xde\xad\xbe\xef", level=0x0155, symbol_crc=0x12345678)
HEADER_BYTES = bytes.fromhex(
    "89 4c 49 43"  # signature
    "01 00"  # version, flags
    "80 06 80 04"  # width, height
    "de ad be ef"  # model id
    "55 01 00"  # level, tile
    "78 56 34 12"  # symbol CRC
)
CHUNK_BYTES = bytes.fromhex("01 01 aa02 02 bb cc")
CRC_BYTES = bytes.fromhex("62 d9 5d cd")
FILE = HEADER_BYTES + CHUNK_BYTES + CRC_BYTES


def sealed(body: bytes) -> bytes:
    """Return a file whose CRC is right, so that the checks behind the CRC are reached."""
    return body + struct.pack("<I", zlib.crc32(body))


def changed(offset: int, *values: int) -> bytes:
    """Return FILE with other bytes from an offset on, sealed again."""
    body = bytearray(FILE[:-4])
    body[offset : offset + len(values)] = bytes(values)
    return sealed(bytes(body))


# --- what is written


def test_header_packs_to_literal_bytes():
    assert HEADER.pack() == HEADER_BYTES


def test_container_packs_to_literal_bytes():
    assert Container(HEADER, [(Z, b"\xaa"), (Y_TILE, b"\xbb\xcc")]).pack() == FILE


def test_literal_bytes_unpack_to_header_and_chunks():
    assert Container.unpack(FILE) == Container(HEADER, [(Z, b"\xaa"), (Y_TILE, b"\xbb\xcc")])


def test_unpack_header_returns_the_offset_of_the_first_chunk():
    assert unpack_header(FILE) == (HEADER, len(HEADER_BYTES))


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 37), (127, 128), (16383, 16384), (MAX_SIDE, 1), (1, MAX_SIDE)])
@pytest.mark.parametrize("sizes", [(0, 0), (1, 127), (128, 0), (16384, 70000)])
def test_round_trips(width, height, gray, sizes):
    header = Header(width, height, gray, b"\0\xff\0\xff", 0xFFFF, 0xFFFFFFFF)
    container = Container(header, [(Z, b"\x80" * sizes[0]), (Y_TILE, b"\x01" * sizes[1])])
    assert Container.unpack(container.pack(), limits=Limits(max_pixels=2**30)) == container


@pytest.mark.parametrize(("width", "height"), [(MAX_SIDE, 1), (1, MAX_SIDE), (2**23, 17)])
def test_rejects_thin_pictures_that_padding_makes_too_large(width, height):
    file = Container(Header(width, height, False, b"abcd", 0, 0), [(Z, b""), (Y_TILE, b"")]).pack()
    with pytest.raises(LimitError, match="steps of 64"):
        Container.unpack(file)


def test_grayscale_is_bit_0_of_the_flags():
    assert Header(1, 1, True, b"abcd", 0, 0).pack()[5] == 1
    assert Header(1, 1, False, b"abcd", 0, 0).pack()[5] == 0


@pytest.mark.parametrize("sizes", [(600, 30_000), (16_383, 2**21 - 1)])
def test_header_and_frames_take_at_most_32_bytes(sizes):
    data = Container(HEADER, [(Z, bytes(sizes[0])), (Y_TILE, bytes(sizes[1]))]).pack()
    assert len(data) - sum(sizes) <= 32


def test_a_container_is_read_without_torch():
    code = "import sys, bitstream.container; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# --- what a writer refuses


@pytest.mark.parametrize(("width", "height"), [(0, 1), (1, 0), (-1, 1), (MAX_SIDE + 1, 1), (1, MAX_SIDE + 1)])
def test_refuses_to_pack_a_size_out_of_range(width, height):
    with pytest.raises(FormatError, match=f"{width}×{height}, expected 1 … {MAX_SIDE}"):
        Header(width, height, False, b"abcd", 0, 0).pack()


@pytest.mark.parametrize("tile", [1, 7, 16, 255])
def test_refuses_to_pack_tiles_of_another_size(tile):
    with pytest.raises(FormatError, match=f"tile field is {tile}"):
        Header(1, 1, False, b"abcd", 0, 0, tile=tile).pack()


@pytest.mark.parametrize(
    "header",
    [
        Header(1, 1, False, b"abc", 0, 0),  # struct would pad it
        Header(1, 1, False, b"abcde", 0, 0),  # struct would cut it
        Header(1, 1, False, b"abcd", 2**16, 0),
        Header(1, 1, False, b"abcd", -1, 0),
        Header(1, 1, False, b"abcd", 0, 2**32),
    ],
)
def test_refuses_to_pack_a_field_that_does_not_fit(header):
    with pytest.raises(FormatError):
        header.pack()


# --- signature and version


@pytest.mark.parametrize(
    "data", [b"", b"\x89", SIGNATURE[:3], b"\x89PNG\r\n\x1a\n" + bytes(20), b"\x09LIC" + FILE[4:], bytes(64)]
)
def test_rejects_what_does_not_begin_with_the_signature(data):
    with pytest.raises(FormatError, match="not a .lic file"):
        Container.unpack(data)


def test_names_the_bytes_found_in_place_of_the_signature():
    with pytest.raises(FormatError, match="begins with 89 50 4e 47, expected 89 4c 49 43"):
        Container.unpack(b"\x89PNG\r\n\x1a\n" + bytes(20))
    with pytest.raises(FormatError, match="begins with nothing"):
        Container.unpack(b"")


def test_a_signature_alone_is_a_file_that_is_cut_off():
    with pytest.raises(FormatError, match="ends behind its signature, inside its header: it is cut off"):
        Container.unpack(SIGNATURE)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_rejects_another_version_even_when_sealed(version):
    with pytest.raises(VersionError, match=rf"version {version} is not supported.*update codec"):
        Container.unpack(changed(4, version))


@pytest.mark.parametrize("length", [5, 6, 8, 9, 30])
def test_says_another_version_before_anything_else(length):
    """A newer format may be anything behind its version: no complaint about CRC or length."""
    with pytest.raises(VersionError, match="version 2"):
        Container.unpack((SIGNATURE + b"\x02" + b"\xff" * 40)[:length])


# --- damage


@pytest.mark.parametrize("length", range(len(FILE)))
def test_rejects_truncation_at_every_byte(length):
    with pytest.raises(FormatError, match="cut off|not a .lic file"):
        Container.unpack(FILE[:length])


@pytest.mark.parametrize("length", range(5, len(HEADER_BYTES)))
def test_rejects_a_sealed_file_that_ends_inside_its_header(length):
    with pytest.raises(FormatError, match="cut off"):
        Container.unpack(sealed(FILE[:length]))


@pytest.mark.parametrize("offset", range(len(FILE)))
def test_rejects_every_single_bit_flip(offset):
    for bit in range(8):
        data = bytearray(FILE)
        data[offset] ^= 1 << bit
        with pytest.raises(CodecError):
            Container.unpack(bytes(data))


def test_a_wrong_checksum_names_both_values():
    stored = struct.unpack("<I", CRC_BYTES)[0]
    data = FILE[:-5] + bytes([FILE[-5] ^ 1]) + FILE[-4:]
    with pytest.raises(FormatError, match=f"checksum is {zlib.crc32(data[:-4]):08x}, expected {stored:08x}: .*fetch it again"):
        Container.unpack(data)


def test_rejects_bytes_behind_the_file_crc():
    for trailing in (b"\0", b"\x80", b"junk", FILE):
        with pytest.raises(FormatError, match="checksum"):
            Container.unpack(FILE + trailing)


@pytest.mark.parametrize("offset", range(4, len(FILE) - 4))
def test_a_sealed_file_with_any_other_byte_is_read_or_refused_with_our_error(offset):
    """No IndexError, struct.error or MemoryError, whatever a field says; what is accepted packs to the same bytes."""
    for value in range(256):
        data = changed(offset, value)
        try:
            container = Container.unpack(data)
        except CodecError:
            continue
        assert container.pack() == data


# --- fields


@pytest.mark.parametrize("flags", [0x08, 0x0F, 0x80, 0xFF])
def test_rejects_unknown_flags(flags):
    with pytest.raises(FormatError, match=f"flags are {flags:#04x}, known are 0x07"):
        Container.unpack(changed(5, flags))


def test_rejects_a_size_that_is_not_canonical():
    with pytest.raises(FormatError, match="varint at byte 6: not canonical"):
        Container.unpack(changed(6, 0x80, 0x00))


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (2**32 - 1, 1)])
def test_rejects_a_side_out_of_range(width, height):
    size = pack_varint(width) + pack_varint(height)
    with pytest.raises(FormatError, match=f"{width}×{height}, expected 1 … {MAX_SIDE} a side"):
        Container.unpack(sealed(FILE[:6] + size + FILE[10:-4]), limits=Limits(max_pixels=2**62))


@pytest.mark.parametrize("tile", [1, 7, 16, 255])
def test_rejects_tiles_of_another_size(tile):
    with pytest.raises(FormatError, match=f"tile field is {tile}, expected 0 or 8 … 15"):
        Container.unpack(changed(16, tile))


# --- limits


def test_rejects_more_pixels_than_the_default_limit():
    """2^14 × 2^14 is the default limit itself; one column more is above it."""
    chunks = [(Z, b""), (Y_TILE, b"")]
    allowed = Header(2**14, 2**14, False, b"abcd", 0, 0)
    assert allowed.width * allowed.height == Limits.max_pixels
    assert Container.unpack(Container(allowed, chunks).pack()).header == allowed
    above = Container(Header(2**14 + 1, 2**14, False, b"abcd", 0, 0), chunks).pack()
    with pytest.raises(LimitError, match=rf"16385×16384 pixels, the limit is {Limits.max_pixels}: raise it with --max-pixels"):
        Container.unpack(above)


def test_the_caller_sets_the_limit():
    assert Container.unpack(FILE, limits=Limits(max_pixels=768 * 512)).header == HEADER
    assert unpack_header(FILE, limits=Limits(max_pixels=768 * 512))[0] == HEADER
    for unpack in (Container.unpack, unpack_header):
        with pytest.raises(LimitError, match="the limit is 393215"):
            unpack(FILE, limits=Limits(max_pixels=768 * 512 - 1))


def test_a_picture_of_2_to_the_48_pixels_is_refused_before_anything_is_allocated():
    data = Container(Header(MAX_SIDE, MAX_SIDE, False, b"abcd", 0, 0), [(Z, b""), (Y_TILE, b"")]).pack()
    tracemalloc.start()
    try:
        with pytest.raises(LimitError, match="16777216×16777216"):
            Container.unpack(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_chunk_of_4_gigabytes_is_refused_before_anything_is_allocated():
    data = sealed(HEADER_BYTES + bytes([Z]) + pack_varint(2**32 - 1))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="claims 4294967295 bytes, 0 are left"):
            Container.unpack(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


# --- chunks


def chunked(*chunks: tuple[int, bytes]) -> bytes:
    """Return a sealed file of these chunks, valid or not."""
    return Container(HEADER, list(chunks)).pack()


@pytest.mark.parametrize("kind", [Z, ICC])
def test_rejects_a_chunk_that_reaches_into_the_file_crc(kind):
    with pytest.raises(FormatError, match=f"chunk {kind} claims 4 bytes, 3 are left"):
        Container.unpack(sealed(HEADER_BYTES + bytes([kind, 4, 1, 2, 3])))


@pytest.mark.parametrize("tail", [bytes([Z]), bytes([Z, 0x80])])
def test_rejects_a_chunk_without_its_length(tail):
    with pytest.raises(FormatError, match="data ends inside"):
        Container.unpack(sealed(HEADER_BYTES + tail))


@pytest.mark.parametrize("kind", [0x84, 0x80, 0xFF])
def test_skips_ancillary_chunks_wherever_they_stand(kind):
    z, y, other = (Z, b"\xaa"), (Y_TILE, b"\xbb\xcc"), (kind, b"what a newer program wrote")
    plain = Container.unpack(FILE)
    for chunks in ([other, z, y], [z, other, y], [z, y, other], [other, other, z, y], [z, y, (kind, b"")]):
        assert Container.unpack(chunked(*chunks)) == plain


def test_metadata_is_packed_behind_the_header():
    data = dataclasses.replace(Container.unpack(FILE), metadata=Metadata(b"profile", b"II*", b"<x/>")).pack()
    stored = bytes([ICC, 7]) + b"profile" + bytes([EXIF, 3]) + b"II*" + bytes([XMP, 4]) + b"<x/>"
    assert data == sealed(HEADER_BYTES + stored + FILE[len(HEADER_BYTES) : -4])
    assert Container.unpack(data).metadata == Metadata(b"profile", b"II*", b"<x/>")
    assert Container.unpack(FILE).metadata == Metadata()


@pytest.mark.parametrize("kind", [ICC, EXIF, XMP])
def test_metadata_stands_once_and_behind_the_header(kind):
    z, y, stored = (Z, b"\xaa"), (Y_TILE, b"\xbb\xcc"), (kind, b"x")
    assert Container.unpack(chunked((0xEE, b""), stored, z, y)).metadata.count(b"x") == 1
    with pytest.raises(FormatError, match=r"there are two chunks (ICC|EXIF|XMP), expected at most one"):
        Container.unpack(chunked(stored, stored, z, y))
    for chunks in ([z, stored, y], [z, y, stored]):
        with pytest.raises(FormatError, match=r"a chunk (ICC|EXIF|XMP) is not directly behind the header"):
            Container.unpack(chunked(*chunks))


def test_alpha_is_a_third_chunk_of_each_tile():
    container = Container(dataclasses.replace(HEADER, alpha=True), [(Z, b"\xaa"), (Y_TILE, b""), (ALPHA, b"\xff")])
    assert container.pack()[5] == 2
    assert Container.unpack(container.pack()) == container
    assert container.tile(0).alpha == b"\xff"


@pytest.mark.parametrize("kinds", [[Z, Y_TILE], [Z, ALPHA, Y_TILE], [ALPHA, Z, Y_TILE], [Z, Y_TILE, ALPHA, ALPHA]])
def test_rejects_alpha_that_is_missing_repeated_or_misplaced(kinds):
    header = dataclasses.replace(HEADER, alpha=True)
    with pytest.raises(FormatError, match=r"expected one Z and one Y_TILE and one ALPHA, \[1, 2, 3\]"):
        Container.unpack(Container(header, [(kind, b"") for kind in kinds]).pack())


def test_rejects_alpha_that_the_header_does_not_tell_of():
    with pytest.raises(FormatError, match=r"chunks are \[1, 2, 3\], expected one Z and one Y_TILE"):
        Container.unpack(chunked((Z, b""), (Y_TILE, b""), (ALPHA, b"")))


# --- fitted files: networks and grids in the place of Z and Y_TILE


FITTED = dataclasses.replace(HEADER, fitted=True)


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
def test_fitted_is_bit_2_of_the_flags(gray, alpha):
    header = dataclasses.replace(FITTED, gray=gray, alpha=alpha)
    data = header.pack()
    assert data[5] == 4 + gray + 2 * alpha
    assert Header.unpack(memoryview(data)) == (header, len(data))


@pytest.mark.parametrize("tile", [8, 10, 15])
def test_fitted_files_have_no_tiles(tile):
    header = dataclasses.replace(FITTED, tile=tile)
    with pytest.raises(FormatError, match=f"tile field is {tile}, expected 0 of a file with networks"):
        header.pack()
    body = bytearray(FITTED.pack())
    body[body.index(FITTED.model_id) + 6] = tile
    with pytest.raises(FormatError, match=f"tile field is {tile}, expected 0 of a file with networks"):
        Container.unpack(sealed(bytes(body)))


@pytest.mark.parametrize("alpha", [False, True])
def test_fitted_files_hold_networks_grids_and_alpha(alpha):
    header = dataclasses.replace(FITTED, alpha=alpha)
    tile = Tile([b"\xaa", b"\xbb\xcc"], HEADER.symbol_crc, b"\xff" if alpha else b"")
    container = Container.of_tiles(header, [tile])
    assert tile_kinds(header) == (NETWORKS, GRIDS, ALPHA)[: 2 + alpha]
    assert container.chunks == [(NETWORKS, b"\xaa"), (GRIDS, b"\xbb\xcc"), (ALPHA, b"\xff")][: 2 + alpha]
    assert container.pack() == sealed(header.pack() + bytes.fromhex("0501aa 0602bbcc" + " 0301ff" * alpha))
    assert Container.unpack(container.pack()) == container
    assert container.tile(0) == tile


@pytest.mark.parametrize(
    "kinds",
    [[], [NETWORKS], [GRIDS], [GRIDS, NETWORKS], [Z, Y_TILE], [NETWORKS, Y_TILE], [NETWORKS, NETWORKS, GRIDS]]
    + [[NETWORKS, GRIDS, GRIDS], [Z, NETWORKS, GRIDS], [NETWORKS, GRIDS, Y_TILE], [NETWORKS, GRIDS, ALPHA]],
)  # fmt: skip
def test_rejects_other_chunks_of_a_fitted_file(kinds):
    with pytest.raises(FormatError, match=r"expected one NETWORKS and one GRIDS, \[5, 6\]"):
        Container.unpack(Container(FITTED, [(kind, b"") for kind in kinds]).pack())


@pytest.mark.parametrize("kinds", [[NETWORKS, GRIDS], [Z, GRIDS], [Z, Y_TILE, GRIDS], [NETWORKS, Z, Y_TILE]])
def test_rejects_networks_and_grids_that_the_header_does_not_tell_of(kinds):
    with pytest.raises(FormatError, match=r"expected one Z and one Y_TILE, \[1, 2\]"):
        Container.unpack(chunked(*((kind, b"") for kind in kinds)))


@pytest.mark.parametrize("kind", [0, 7, 0x7F])
def test_rejects_other_chunks_that_are_not_ancillary(kind):
    with pytest.raises(FormatError, match=f"chunk type {kind} is not known.*newer codec"):
        Container.unpack(chunked((Z, b""), (Y_TILE, b""), (kind, b"")))


@pytest.mark.parametrize("kinds", [[], [Z], [Y_TILE], [Y_TILE, Z], [Z, Z, Y_TILE], [Z, Y_TILE, Y_TILE], [Z, Y_TILE, Z], [ICC]])
def test_rejects_missing_repeated_and_misplaced_chunks(kinds):
    with pytest.raises(FormatError, match=r"expected one Z and one Y_TILE, \[1, 2\]"):
        Container.unpack(chunked(*[(kind, b"") for kind in kinds]))


@pytest.mark.parametrize("trailing", [b"\0", b"\x05", b"\x02", b"junk", b"\x01\x01", b"\xff"])
def test_rejects_sealed_bytes_behind_the_last_chunk(trailing):
    with pytest.raises(FormatError):
        Container.unpack(sealed(FILE[:-4] + trailing))


def test_rejects_an_index_in_a_file_of_one_tile():
    with pytest.raises(FormatError, match=r"chunks are \[1, 2, 4\], expected one Z and one Y_TILE"):
        Container.unpack(chunked((Z, b"\xaa"), (Y_TILE, b"\xbb\xcc"), (4, b"")))


def test_a_file_that_cannot_be_read_is_named_as_such():
    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    with pytest.raises(FormatError, match="the file cannot be read .Input/output error.: copy it anew"):
        open_container(Failing(FILE))


def test_tiles_are_read_by_one_thread_at_a_time():
    """A file has one place that it is read at."""

    class Slow(io.BytesIO):
        slow = False

        def seek(self, *place):
            where = super().seek(*place)
            if self.slow:
                time.sleep(0.05)
            return where

    tiles = [Tile([bytes([i]) * 50, bytes([i + 1]) * 70], symbol_crc=i) for i in range(2)]
    file = Slow(Container.of_tiles(dataclasses.replace(HEADER, width=400, height=200, tile=8), tiles).pack())
    source = open_container(file)
    expected, file.slow = [source.tile(number) for number in range(2)], True
    both = threading.Barrier(2)

    def read(number):
        both.wait()
        return source.tile(number)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(read, range(2))) == expected
