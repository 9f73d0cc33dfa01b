"""The symbol coder: what is written is read, in both directions with the same CRC, whatever the engine."""

import zlib

import numpy as np
import pytest

from bitstream import segments
from bitstream.coder import StreamReader, StreamWriter
from bitstream.engines.reference import ReferenceEngine
from bitstream.errors import FormatError, SymbolError
from bitstream.tables import MasterTable, gaussian_master, master_from_pmf
from bitstream.varint import pack_varint, unpack_varint, zigzag

BANDS = (16, 28, 40)
SMALL = MasterTable(-2, np.array([[0, 10, 30, 60, 70], [0, 1, 2, 3, 100]]))  # rows 0, 1 on symbols −2 … 1


def latents(n: int, seed: int = 0, rows: tuple[int, int] = (0, 64)) -> tuple[np.ndarray, np.ndarray]:
    """Return n symbols (n,) int16 drawn from the Gaussian rows (n,) uint8."""
    rng = np.random.default_rng(seed)
    index = rng.integers(*rows, n).astype(np.uint8)
    sigma = 0.11 * (256 / 0.11) ** (index / 63)
    return rng.normal(0, sigma).round().clip(-1023, 1023).astype(np.int16), index


def write(engine, symbols, rows, table, band_edges=()) -> tuple[bytes, int]:
    """Return (payload of one chunk, CRC)."""
    writer = StreamWriter(engine)
    writer.code(symbols, rows, table, band_edges)
    writer.end_chunk()
    return writer.payloads[0], writer.crc


def read(engine, payload, rows, table, band_edges=()) -> tuple[np.ndarray, int]:
    """Return (symbols, CRC); the chunk must be used up."""
    reader = StreamReader(engine, [payload])
    symbols = reader.code(None, rows, table, band_edges)
    reader.end_chunk()
    return symbols, reader.crc


# --- round trips


@pytest.mark.parametrize("band_edges", [(), (16,), BANDS])
@pytest.mark.parametrize("n", [1, 2, 63, 3000])
def test_round_trips(engine, n, band_edges):
    symbols, rows = latents(n)
    payload, crc = write(engine, symbols, rows, gaussian_master(), band_edges)
    got, got_crc = read(engine, payload, rows, gaussian_master(), band_edges)
    assert got.tolist() == symbols.tolist()
    assert got.dtype == np.int16
    assert got_crc == crc


def test_round_trips_the_full_range_of_every_row(engine):
    symbols = np.tile(np.array([-1023, 1023, 0, -1, 1], dtype=np.int16), 64)
    rows = np.repeat(np.arange(64, dtype=np.uint8), 5)
    payload, _ = write(engine, symbols, rows, gaussian_master(), BANDS)
    assert read(engine, payload, rows, gaussian_master(), BANDS)[0].tolist() == symbols.tolist()


def test_a_writer_returns_the_symbols_it_was_given(engine):
    symbols, rows = latents(100)
    for band_edges in ((), BANDS):
        assert StreamWriter(engine).code(symbols, rows, gaussian_master(), band_edges).tolist() == symbols.tolist()


def test_several_groups_and_chunks_are_read_in_the_order_of_writing(engine):
    y, y_rows = latents(500, 1)
    z = np.random.default_rng(2).integers(-2, 2, 90).astype(np.int16)
    z_rows = np.resize(np.array([0, 1], dtype=np.uint8), 90)
    groups = [
        [(z, z_rows, SMALL, ())],
        [(y[:200], y_rows[:200], gaussian_master(), BANDS), (y[200:], y_rows[200:], gaussian_master(), ())],
    ]

    writer = StreamWriter(engine)
    for chunk in groups:
        for group in chunk:
            writer.code(*group)
        writer.end_chunk()
    assert len(writer.payloads) == 2

    reader = StreamReader(engine, writer.payloads)
    for chunk in groups:
        for symbols, *rest in chunk:
            assert reader.code(None, *rest).tolist() == symbols.tolist()
        reader.end_chunk()
    assert reader.crc == writer.crc


def test_a_stream_is_these_bytes(engine):
    """min −2 → 3, max 1 → 2, one piece: frozen since format version 1."""
    symbols = np.resize(np.array([-2, 1, 0, -1, 1, 1, 0], dtype=np.int16), 40)
    rows = np.resize(np.array([0, 1, 0, 0, 1], dtype=np.uint8), 40)
    assert write(engine, symbols, rows, SMALL)[0].hex(" ") == "03 02 0e 16 3a 02 a6 77 ac 27 4b 01 b0 7d aa 6e 60"


# --- streams without a payload


@pytest.mark.parametrize("symbol", [-1023, -1, 0, 7, 1023])
def test_equal_symbols_take_only_their_range(engine, symbol):
    symbols, rows = np.full(1000, symbol, dtype=np.int16), np.zeros(1000, dtype=np.uint8)
    payload, _ = write(engine, symbols, rows, gaussian_master())
    assert payload == 2 * pack_varint(zigzag(symbol))
    assert read(engine, payload, rows, gaussian_master())[0].tolist() == symbols.tolist()


def test_no_symbols_take_no_bytes(engine):
    none, rows = np.empty(0, dtype=np.int16), np.empty(0, dtype=np.uint8)
    for band_edges in ((), BANDS):
        assert write(engine, none, rows, gaussian_master(), band_edges) == (b"", 0)
        got, crc = read(engine, b"", rows, gaussian_master(), band_edges)
        assert (got.shape, got.dtype, crc) == ((0,), np.int16, 0)


@pytest.mark.parametrize("rows", [[0, 15], [16, 27], [28, 39], [40, 63]])
def test_empty_bands_write_nothing(engine, rows):
    """All symbols in one band: the file is that of no bands at all. The edges belong to the band above."""
    index = np.resize(np.array(rows, dtype=np.uint8), 50)
    symbols = np.resize(np.array([0, 1, -1, 0], dtype=np.int16), 50)
    banded, _ = write(engine, symbols, index, gaussian_master(), BANDS)
    assert banded == write(engine, symbols, index, gaussian_master())[0]
    assert read(engine, banded, index, gaussian_master(), BANDS)[0].tolist() == symbols.tolist()


def test_bands_are_streams_by_rising_row(engine):
    symbols = np.array([5, 3, 5, 3, 4], dtype=np.int16)
    rows = np.array([63, 0, 40, 15, 16], dtype=np.uint8)
    payload, _ = write(engine, symbols, rows, gaussian_master(), BANDS)
    assert payload == bytes([6, 6, 8, 8, 10, 10])  # rows < 16: all 3; < 28: all 4; < 40: empty; the rest: all 5


# --- pieces


@pytest.mark.parametrize("cells", [1, 5, 6, 40, 64, 65])
def test_a_long_stream_is_cut_into_pieces_and_round_trips(engine, monkeypatch, cells):
    """13 symbols of Lp 5 in pieces of cells // 5, at least one symbol each."""
    monkeypatch.setattr(segments, "PIECE_CELLS", cells)
    symbols = np.array([-2, 1, 0, -1, 1, 1, 0, 0, -2, -2, 1, 0, 1], dtype=np.int16)
    rows = np.resize(np.array([0, 1, 1], dtype=np.uint8), 13)
    payload, crc = write(engine, symbols, rows, SMALL)
    got, got_crc = read(engine, payload, rows, SMALL)
    assert got.tolist() == symbols.tolist()
    assert got_crc == crc

    pieces, offset = [], 2
    while offset < len(payload):
        length, offset = unpack_varint(memoryview(payload), offset)
        pieces.append(payload[offset : offset + length])
        offset += length
    size = max(cells // 5, 1)
    cdf = SMALL.rows(-2, 1)
    cuts = [slice(start, start + size) for start in range(0, 13, size)]
    assert pieces == [engine.encode(cdf, rows[cut], symbols[cut] + np.int16(2)) for cut in cuts]


def test_pieces_hold_2_to_the_25_cells():
    """Part of the format: another value writes files that others cannot read."""
    assert segments.PIECE_CELLS == 2**25
    assert segments.pieces(40_000, 1024) == [slice(0, 32768), slice(32768, 40_000)]
    assert segments.pieces(32_768, 1024) == [slice(0, 32768)]


# --- the symbol CRC


def test_crc_is_that_of_all_symbols_as_int16_in_order_not_by_band(engine):
    (a, a_rows), (b, b_rows) = latents(300, 1), latents(40, 2)
    writer = StreamWriter(engine)
    writer.code(a, a_rows, gaussian_master(), BANDS)
    writer.end_chunk()
    writer.code(b, b_rows, gaussian_master())
    assert writer.crc == zlib.crc32(np.concatenate([a, b]).astype("<i2").tobytes())


def test_crc_depends_on_the_order(engine):
    symbols, rows = np.array([0, 1], dtype=np.int16), np.zeros(2, dtype=np.uint8)
    assert write(engine, symbols, rows, SMALL)[1] != write(engine, symbols[::-1].copy(), rows, SMALL)[1]


def test_crc_of_nothing_is_zero(engine):
    assert StreamWriter(engine).crc == 0
    assert StreamReader(engine, []).crc == 0


# --- bands keep outliers apart


def test_one_outlier_does_not_widen_other_bands(engine):
    """20 000 nearly certain symbols and 50 wide ones; one of the wide ones is then 1023."""
    quiet, quiet_rows = latents(20_000, 1, rows=(5, 15))
    loud, loud_rows = latents(50, 2, rows=(50, 51))
    rows = np.concatenate([quiet_rows, loud_rows])
    outlier = loud.copy()
    outlier[25] = 1023
    sizes = {}
    for name, tail in (("plain", loud), ("outlier", outlier)):
        symbols = np.concatenate([quiet, tail])
        for band_edges in ((), BANDS):
            sizes[name, bool(band_edges)] = len(write(engine, symbols, rows, gaussian_master(), band_edges)[0])
    assert sizes["outlier", True] - sizes["plain", True] <= 6
    assert sizes["outlier", False] - sizes["plain", False] > 15

    alone, _ = write(engine, quiet, quiet_rows, gaussian_master(), BANDS)
    both, _ = write(engine, np.concatenate([quiet, outlier]), rows, gaussian_master(), BANDS)
    assert both.startswith(alone)


def test_the_size_is_near_the_entropy(engine):
    symbols, rows = latents(5000, 3)
    first, last = int(symbols.min()), int(symbols.max())
    cdf = gaussian_master().rows(first, last).astype(np.int64)
    cdf[:, -1] = 65536
    at = symbols.astype(np.int64) - first
    bits = -np.log2((cdf[rows, at + 1] - cdf[rows, at]) / 65536).sum()
    payload, _ = write(engine, symbols, rows, gaussian_master())
    assert bits / 8 <= len(payload) <= 1.001 * bits / 8 + 12


# --- what a writer refuses


@pytest.mark.parametrize("symbol", [-3, 2, 32767, -32768])
@pytest.mark.parametrize("band_edges", [(), (1,)])
def test_writer_rejects_symbols_outside_of_the_table(engine, symbol, band_edges):
    symbols = np.array([0, symbol], dtype=np.int16)
    with pytest.raises(SymbolError, match=rf"\[{min(symbol, 0)}, {max(symbol, 0)}\], the table holds \[-2, 1\]: clamp"):
        StreamWriter(engine).code(symbols, np.zeros(2, dtype=np.uint8), SMALL, band_edges)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_writer_rejects_symbols_without_a_row_each(engine, count):
    with pytest.raises(SymbolError, match="one row for each symbol"):
        StreamWriter(engine).code(np.array([0, 1, 0], dtype=np.int16), np.zeros(count, dtype=np.uint8), SMALL)


@pytest.mark.parametrize("band_edges", [(), (1,)])
def test_writer_rejects_rows_without_any_symbols(engine, band_edges):
    """Else nothing is written for rows of which the reader asks five symbols."""
    with pytest.raises(SymbolError, match="one row for each symbol"):
        StreamWriter(engine).code(np.empty(0, dtype=np.int16), np.zeros(5, dtype=np.uint8), SMALL, band_edges)


@pytest.mark.parametrize("n", [0, 3])
def test_writer_rejects_none(engine, n):
    with pytest.raises(SymbolError, match="StreamWriter was given no symbols"):
        StreamWriter(engine).code(None, np.zeros(n, dtype=np.uint8), SMALL)


def test_writer_rejects_a_row_that_the_table_does_not_have(engine):
    with pytest.raises(SymbolError, match="row 2 asked for, the CDF table has 2"):
        StreamWriter(engine).code(np.array([0, 1], dtype=np.int16), np.array([0, 2], dtype=np.uint8), SMALL)


def test_both_directions_reject_a_row_that_the_table_does_not_have_in_bands(engine):
    rows = np.array([0, 2], dtype=np.uint8)
    with pytest.raises(SymbolError, match="row 2 asked for, the CDF table has 2"):
        StreamWriter(engine).code(np.array([0, 1], dtype=np.int16), rows, SMALL, (1,))
    with pytest.raises(SymbolError, match="row 2 asked for, the CDF table has 2"):
        StreamReader(engine, [b"\0\0\0\0"]).code(None, rows, SMALL, (1,))


# --- what a reader refuses


def test_reader_rejects_symbols(engine):
    with pytest.raises(SymbolError, match="StreamReader was given symbols"):
        StreamReader(engine, [b"\0\0"]).code(np.zeros(1, dtype=np.int16), np.zeros(1, dtype=np.uint8), SMALL)


@pytest.mark.parametrize(("first", "last"), [(-3, 0), (0, 2), (1, 0), (2, 2), (-3, -3), (-(2**31), 2**31 - 1)])
def test_reader_rejects_a_range_outside_of_the_table(engine, first, last):
    payload = pack_varint(zigzag(first)) + pack_varint(zigzag(last)) + b"\x01\x40"
    with pytest.raises(FormatError, match=rf"range is \[{first}, {last}\], the table holds \[-2, 1\]"):
        read(engine, payload, np.zeros(3, dtype=np.uint8), SMALL)


@pytest.mark.parametrize("length", [2, 127, 2**32 - 1])
def test_reader_rejects_a_length_beyond_the_payload(engine, length):
    payload = bytes([3, 2]) + pack_varint(length) + b"\x40"
    with pytest.raises(FormatError, match=f"claims {length} bytes, 1 are left"):
        read(engine, payload, np.zeros(3, dtype=np.uint8), SMALL)


@pytest.mark.parametrize("hexed", ["", "03", "03 02", "80", "03 02 80", "03 80 00"])
def test_reader_rejects_a_stream_whose_fields_are_cut_off_or_not_canonical(engine, hexed):
    with pytest.raises(FormatError, match="cut off|not canonical"):
        read(engine, bytes.fromhex(hexed), np.zeros(3, dtype=np.uint8), SMALL)


@pytest.mark.parametrize("band_edges", [(), BANDS])
def test_reader_rejects_a_chunk_that_is_cut_off_anywhere(engine, band_edges):
    symbols, rows = latents(60)
    payload, _ = write(engine, symbols, rows, gaussian_master(), band_edges)
    for length in range(len(payload)):
        with pytest.raises(FormatError, match="cut off|are left"):
            read(engine, payload[:length], rows, gaussian_master(), band_edges)


def test_reader_rejects_bytes_behind_the_last_stream(engine):
    symbols, rows = latents(60)
    payload, _ = write(engine, symbols, rows, gaussian_master(), BANDS)
    reader = StreamReader(engine, [payload + b"\0\0"])
    reader.code(None, rows, gaussian_master(), BANDS)
    with pytest.raises(FormatError, match="2 bytes are left behind the last stream"):
        reader.end_chunk()


def test_reader_rejects_a_chunk_that_no_stream_asked_for(engine):
    with pytest.raises(FormatError, match="1 bytes are left"):
        StreamReader(engine, [b"\0"]).end_chunk()


def test_reader_rejects_more_streams_than_chunks(engine):
    reader = StreamReader(engine, [])
    with pytest.raises(FormatError, match="cut off"):
        reader.code(None, np.zeros(1, dtype=np.uint8), SMALL)


# --- damage inside of a payload: the arithmetic coder reads on, the CRC tells


def test_a_shortened_payload_is_caught_by_the_crc(engine):
    """The length is adjusted, so the frames are sound; zero bits are read behind the end, and other symbols come out."""
    symbols, rows = latents(2000, rows=(20, 50))
    payload, crc = write(engine, symbols, rows, gaussian_master())
    view = memoryview(payload)
    _, offset = unpack_varint(view, unpack_varint(view, 0)[1])
    head = payload[:offset]
    length, offset = unpack_varint(view, offset)
    body = payload[offset:]
    assert len(body) == length > 1000
    for keep in (0, 1, 4, length // 2, length - 8):
        got, got_crc = read(engine, head + pack_varint(keep) + body[:keep], rows, gaussian_master())
        assert len(got) == len(symbols)
        assert got_crc != crc


def test_garbage_in_a_payload_gives_symbols_of_the_range_and_the_same_from_both_engines(engine):
    rng = np.random.default_rng(5)
    table = master_from_pmf(rng.dirichlet(np.ones(255), 8), -127)
    rows = rng.integers(0, 8, 500).astype(np.uint8)
    for _ in range(20):
        body = rng.bytes(rng.integers(0, 300))
        payload = pack_varint(zigzag(-100)) + pack_varint(zigzag(90)) + pack_varint(len(body)) + body
        got, crc = read(engine, payload, rows, table)
        assert -100 <= got.min() <= got.max() <= 90
        assert crc == read(ReferenceEngine(), payload, rows, table)[1]
