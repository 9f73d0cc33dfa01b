"""Segments: steps that share streams are read back step by step, from prefixes; whatever is damaged is refused or differs."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from bitstream import segments
from bitstream.coder import StreamReader, StreamWriter
from bitstream.engines.reference import ReferenceEngine
from bitstream.errors import CodecError, FormatError, SymbolError
from bitstream.mixture import Mixtures
from bitstream.segments import SegmentReader, SegmentWriter, TableRows, check_payload, pack_stream, piece_size
from bitstream.tables import MasterTable, gaussian_master
from bitstream.varint import pack_varint, unpack_varint, zigzag

EDGES = (16, 40)
SMALL = MasterTable(-2, np.array([[0, 10, 30, 60, 70], [0, 1, 2, 3, 100]]))  # rows 0, 1 on symbols −2 … 1
SIZES = {
    "one": [1],
    "one step": [50],
    "growing": [1, 2, 3, 5, 8, 13, 21],
    "waves": [1, 1, 2, 4, 7, 4, 2, 1, 1],
    "big": [200, 300],
}
REFERENCE = ReferenceEngine()


def tables(n: int, rng) -> tuple[np.ndarray, TableRows]:
    """Return n symbols and their Gaussian rows, of all bands."""
    rows = rng.integers(0, 64, n).astype(np.uint8)
    symbols = rng.normal(0, 0.11 * (256 / 0.11) ** (rows / 63)).round().clip(-1023, 1023)
    return symbols.astype(np.int16), TableRows(gaussian_master(), rows, EDGES)


def mixtures(n: int, rng) -> tuple[np.ndarray, Mixtures]:
    """Return n symbols and their mixtures of two components, of all bands."""
    scales = rng.integers(0, 56, (n, 2))
    means = rng.integers(-1000, 1000, (n, 2))
    symbols = (means[:, 0] / 256 + rng.normal(0, 0.11 * (256 / 0.11) ** (scales[:, 0] / 63))).round().clip(-1023, 1023)
    return symbols.astype(np.int16), Mixtures(rng.integers(1, 2**20, (n, 2)), means, scales, EDGES)


KINDS = {"tables": tables, "mixtures": mixtures}


def steps_of(kind: str, sizes: list[int], seed: int = 0) -> list:
    """Return (symbols, distributions) of steps of these sizes."""
    rng = np.random.default_rng(seed)
    return [KINDS[kind](n, rng) for n in sizes]


def write(engine, steps, bands: int = 3) -> tuple[bytes, int]:
    """Return (payload of one chunk with one segment, CRC)."""
    writer = StreamWriter(engine)
    with writer.segment(bands) as code:
        for symbols, source in steps:
            assert code(symbols, source) is symbols
    writer.end_chunk()
    return writer.payloads[0], writer.crc


def read(engine, payload: bytes, sources, bands: int = 3) -> tuple[list[np.ndarray], int]:
    """Return (symbols of each step, CRC); the chunk must be used up."""
    reader = StreamReader(engine, [payload])
    with reader.segment(bands) as code:
        out = [code(None, source) for source in sources]
    reader.end_chunk()
    return out, reader.crc


def of(steps) -> list:
    """Return the distributions of steps."""
    return [source for _, source in steps]


def bands_of(payload: bytes, bands: int = 3) -> list[bytes]:
    """Return the streams of a payload with one segment."""
    lengths, offset, out = [], 0, []
    for _ in range(bands):
        length, offset = unpack_varint(memoryview(payload), offset)
        lengths.append(length)
    for length in lengths:
        out.append(payload[offset : offset + length])
        offset += length
    assert offset == len(payload)
    return out


# --- round trips


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_round_trips_step_by_step(engine, kind, sizes):
    steps = steps_of(kind, sizes)
    payload, crc = write(engine, steps)
    got, got_crc = read(engine, payload, of(steps))
    assert [g.tolist() for g in got] == [s.tolist() for s, _ in steps]
    assert {g.dtype for g in got} == {np.dtype(np.int16)}
    assert got_crc == crc == zlib.crc32(np.concatenate([s for s, _ in steps]).astype("<i2").tobytes())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cells", [1, 2000, 30_000])
def test_pieces_cut_anywhere_round_trip(engine, monkeypatch, kind, cells):
    """Pieces of one symbol, of a few and of many: they end inside of steps and at their ends."""
    monkeypatch.setattr(segments, "PIECE_CELLS", cells)
    steps = steps_of(kind, [5, 1, 17, 40, 2, 60], seed=3)
    payload, crc = write(engine, steps)
    got, got_crc = read(engine, payload, of(steps))
    assert [g.tolist() for g in got] == [s.tolist() for s, _ in steps]
    assert got_crc == crc


def test_pieces_that_end_with_a_step_round_trip(engine, monkeypatch):
    """Lp 5 and 30 cells: six symbols a piece, and steps of six, three and twelve."""
    monkeypatch.setattr(segments, "PIECE_CELLS", 30)
    rng = np.random.default_rng(0)
    steps = [(np.resize(np.array([-2, 1, 0], np.int16), n), TableRows(SMALL, rng.integers(0, 2, n))) for n in (6, 3, 3, 12, 1)]
    payload, _ = write(engine, steps, 1)
    got, _ = read(engine, payload, of(steps), 1)
    assert [g.tolist() for g in got] == [s.tolist() for s, _ in steps]
    stream, lengths, offset = bands_of(payload, 1)[0], [], 2
    while offset < len(stream):
        length, offset = unpack_varint(memoryview(stream), offset)
        lengths.append(length)
        offset += length
    assert len(lengths) == 5  # 25 symbols


@pytest.mark.parametrize("kind", KINDS)
def test_engines_write_and_read_the_same_bytes(engine, kind):
    steps = steps_of(kind, [7, 30, 80])
    assert write(engine, steps) == write(REFERENCE, steps)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cut_into_steps_does_not_change_a_byte(engine, kind):
    symbols, source = KINDS[kind](120, np.random.default_rng(1))
    cuts = [np.arange(0, 1), np.arange(1, 40), np.arange(40, 41), np.arange(41, 120)]
    steps = [(symbols[cut], source.take(cut)) for cut in cuts]
    whole, crc = write(engine, [(symbols, source)])
    assert write(engine, steps) == (whole, crc)
    got, _ = read(engine, whole, of(steps))
    assert np.concatenate(got).tolist() == symbols.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_of_the_steps_equals_the_whole(engine, kind):
    """A step's symbols do not depend on what comes later: there the reader only knows a part of a piece."""
    steps = steps_of(kind, [9, 20, 4, 30], seed=5)
    payload, _ = write(engine, steps)
    for count in range(1, 5):
        with StreamReader(engine, [payload]).segment(3) as code:
            got = [code(None, source).tolist() for source in of(steps[:count])]
            assert got == [s.tolist() for s, _ in steps[:count]]
            if count < 4:  # leave as a decoder that knows no more would
                for source in of(steps[count:]):
                    code(None, source)


def test_segments_follow_each_other_and_other_streams(engine):
    first, second = steps_of("tables", [3, 9], 1), steps_of("mixtures", [8, 2], 2)
    symbols, source = tables(40, np.random.default_rng(3))
    writer = StreamWriter(engine)
    with writer.segment(3) as code:
        for step in first:
            code(*step)
    writer.code_source(symbols, source)
    with writer.segment(3) as code:
        for step in second:
            code(*step)
    writer.end_chunk()
    reader = StreamReader(engine, writer.payloads)
    with reader.segment(3) as code:
        assert [code(None, s).tolist() for s in of(first)] == [s.tolist() for s, _ in first]
    assert reader.code_source(None, source).tolist() == symbols.tolist()
    with reader.segment(3) as code:
        assert [code(None, s).tolist() for s in of(second)] == [s.tolist() for s, _ in second]
    reader.end_chunk()
    assert reader.crc == writer.crc


# --- bands


def test_a_segment_is_lengths_then_streams_by_band(engine):
    steps = steps_of("tables", [40, 60])
    payload, _ = write(engine, steps)
    symbols, rows = np.concatenate([s for s, _ in steps]), np.concatenate([source.rows for _, source in steps])
    bands = np.searchsorted(EDGES, rows, side="right")
    streams = [pack_stream(engine, symbols[bands == b], TableRows(gaussian_master(), rows[bands == b])) for b in range(3)]
    assert payload == b"".join(pack_varint(len(s)) for s in streams) + b"".join(streams)


@pytest.mark.parametrize("row", [0, 15, 16, 39, 40, 63])
def test_empty_bands_take_one_byte(engine, row):
    symbols, band = np.array([0, 1, 0, -1], np.int16), int(np.searchsorted(EDGES, row, side="right"))
    steps = [(symbols, TableRows(gaussian_master(), np.full(4, row, np.uint8), EDGES))] * 2
    payload, _ = write(engine, steps)
    assert [len(stream) > 0 for stream in bands_of(payload)] == [b == band for b in range(3)]
    assert [g.tolist() for g in read(engine, payload, of(steps))[0]] == [symbols.tolist()] * 2


def test_no_symbols_at_all_take_only_the_lengths(engine):
    empty = (np.empty(0, np.int16), TableRows(gaussian_master(), np.empty(0, np.uint8), EDGES))
    for steps in ([], [empty, empty]):
        payload, crc = write(engine, steps)
        assert (payload, crc) == (b"\0\0\0", 0)
        assert [len(g) for g in read(engine, payload, of(steps))[0]] == [0] * len(steps)


def test_equal_symbols_take_only_their_range(engine):
    steps = [(np.full(n, 7, np.int16), TableRows(gaussian_master(), np.full(n, 30, np.uint8), EDGES)) for n in (1, 50, 9)]
    payload, _ = write(engine, steps)
    assert payload == bytes([0, 2, 0, 14, 14])
    assert [g.tolist() for g in read(engine, payload, of(steps))[0]] == [s.tolist() for s, _ in steps]


def test_the_range_is_that_of_all_steps(engine):
    steps = [(np.array([v], np.int16), TableRows(SMALL, np.zeros(1, np.uint8))) for v in (0, -2, 1)]
    payload, _ = write(engine, steps, 1)
    assert bands_of(payload, 1)[0][:2] == bytes([3, 2])  # zig-zag of −2 and 1


# --- what a writer refuses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symbol", [-1024, 1024])
def test_writer_rejects_symbols_outside_of_the_table(engine, kind, symbol):
    symbols, source = KINDS[kind](5, np.random.default_rng(0))
    symbols[2] = symbol
    with pytest.raises(SymbolError, match=r"the table holds \[-1023, 1023\]: clamp"):
        write(engine, [(symbols, source)])


@pytest.mark.parametrize("count", [0, 4, 6])
def test_writer_rejects_symbols_without_a_distribution_each(count):
    symbols, _ = tables(count, np.random.default_rng(0))
    _, source = tables(5, np.random.default_rng(0))
    with pytest.raises(SymbolError, match="one for each is expected"):
        SegmentWriter(3).code(symbols, source)


def test_directions_are_not_mixed_up(engine):
    symbols, source = tables(5, np.random.default_rng(0))
    with pytest.raises(SymbolError, match="given no symbols"):
        write(engine, [(None, source)])
    payload, _ = write(engine, [(symbols, source)])
    with (
        pytest.raises(SymbolError, match="SegmentReader was given symbols"),
        StreamReader(engine, [payload]).segment(3) as code,
    ):
        code(symbols, source)


# --- what a reader refuses


@pytest.fixture(params=KINDS)
def sound(request):
    """A payload by the Python engine with its steps, and the symbols."""
    steps = steps_of(request.param, [3, 10, 12], seed=8)
    return write(REFERENCE, steps)[0], of(steps), [s.tolist() for s, _ in steps]


def test_every_truncation_is_refused(engine, sound):
    payload, sources, _ = sound
    for length in range(len(payload)):
        with pytest.raises(FormatError):
            read(engine, payload[:length], sources)


def test_bytes_behind_the_segment_are_refused(engine, sound):
    payload, sources, _ = sound
    with pytest.raises(FormatError, match="1 bytes are left behind the last stream"):
        read(engine, payload + b"\0", sources)


@pytest.mark.parametrize("band", [0, 1, 2])
def test_bytes_behind_a_stream_of_the_segment_are_refused(engine, sound, band):
    payload, sources, _ = sound
    streams = bands_of(payload)
    streams[band] += b"\0"
    padded = b"".join(pack_varint(len(s)) for s in streams) + b"".join(streams)
    with pytest.raises(FormatError, match="1 bytes are left in a stream of a segment"):
        read(engine, padded, sources)


def test_a_stream_that_no_symbol_asks_for_is_refused(engine):
    steps = [(np.array([0, 1], np.int16), TableRows(gaussian_master(), np.zeros(2, np.uint8), EDGES))]
    streams = [*bands_of(write(engine, steps)[0])[:2], bytes([0, 0])]
    payload = b"".join(pack_varint(len(s)) for s in streams) + b"".join(streams)
    with pytest.raises(FormatError, match="2 bytes are left in a stream of a segment"):
        read(engine, payload, of(steps))


@pytest.mark.parametrize("claim", [100_000, 2**32 - 1])
def test_lengths_beyond_the_data_are_refused_at_once(engine, sound, claim):
    payload, sources, _ = sound
    with pytest.raises(FormatError, match=f"streams claim {claim} bytes, 7 are left"):
        read(engine, b"\0" + pack_varint(claim) + b"\0" + payload[:7], sources)


def frames_of(payload: bytes) -> tuple[list[int], list[int]]:
    """Return the offsets of the lengths, those of streams and of their pieces, and of the ranges' bytes."""
    streams = bands_of(payload)
    lengths, ranges, start = [0, 1, 2], [], len(payload) - sum(map(len, streams))
    for stream in streams:
        offset = unpack_varint(memoryview(stream), unpack_varint(memoryview(stream), 0)[1])[1]
        ranges += range(start, start + offset)
        lengths.append(start + offset)
        start += len(stream)
    return lengths, ranges


def damaged(engine, sound, at: int) -> list:
    """Return what each other value of a byte decodes to, None where it is refused."""
    payload, sources, symbols = sound
    out = []
    for value in set(range(0, 256, 3)) - {payload[at]}:
        try:
            got, _ = read(engine, payload[:at] + bytes([value]) + payload[at + 1 :], sources)
        except FormatError:
            out.append(None)
            continue
        assert [len(g) for g in got] == [len(s) for s in symbols]
        assert all(-1023 <= v <= 1023 for g in got for v in g.tolist())
        out.append([g.tolist() for g in got])
    return out


def test_every_damaged_length_is_refused(engine, sound):
    lengths, _ = frames_of(sound[0])
    assert len(lengths) == 6
    for at in lengths:
        assert set(map(type, damaged(engine, sound, at))) == {type(None)}


def test_a_damaged_range_is_refused_or_gives_symbols_of_the_table(engine, sound):
    results = [result for at in frames_of(sound[0])[1] for result in damaged(engine, sound, at)]
    assert results.count(None) > len(results) // 2
    assert any(result not in (None, sound[2]) for result in results)


def test_garbage_raises_our_errors_or_gives_symbols_of_the_table_alike_in_both_engines(engine, sound):
    _, sources, symbols = sound
    rng = np.random.default_rng(11)
    decoded = 0
    for _ in range(200):
        streams = []
        for _ in range(3):
            body = rng.bytes(rng.integers(0, 30))
            streams.append(bytes(rng.integers(0, 40, 2).tolist()) + pack_varint(len(body)) + body)
        payload = b"".join(pack_varint(len(s)) for s in streams) + b"".join(streams)
        results = []
        for each in (engine, REFERENCE):
            try:
                results.append([g.tolist() for g in read(each, payload, sources)[0]])
            except CodecError as error:
                results.append(str(error))
        assert results[0] == results[1]
        if not isinstance(results[0], str):
            decoded += 1
            assert [len(g) for g in results[0]] == [len(s) for s in symbols]
            assert all(-1023 <= v <= 1023 for g in results[0] for v in g)
    assert decoded > 5


def test_a_band_that_the_segment_does_not_have_is_refused():
    source = TableRows(gaussian_master(), np.array([3, 60], dtype=np.uint8), edges=(16, 40))
    with pytest.raises(SymbolError, match="in band 2, the segment has 2"):
        SegmentWriter(2).code(np.zeros(2, np.int16), source)


# --- payloads that are too short


@pytest.mark.parametrize(("symbols", "values"), [(10**6, 2), (10**6, 2047), (2**25 // 256, 255)])
def test_the_cheapest_symbols_are_not_refused(engine, symbols, values):
    """All symbols as likely as a row can make them: no payload is shorter."""
    cdf = np.arange(values + 1, dtype=np.int64)
    cdf[1:] += 65536 - values
    symbols = min(symbols, piece_size(values + 1), 10**6 if not isinstance(engine, ReferenceEngine) else 10**4)
    payload = engine.encode(cdf.astype(np.uint16)[None], np.zeros(symbols, np.uint8), np.zeros(symbols, np.int16))
    check_payload(payload, symbols, 0, values - 1)
    if len(payload) > 100:
        with pytest.raises(FormatError, match=f"{len(payload) // 2 - 20} bytes for {symbols} symbols of {values} values"):
            check_payload(payload[: len(payload) // 2 - 20], symbols, 0, values - 1)


def test_a_short_payload_is_refused_by_streams_and_segments():
    table = MasterTable(-1023, np.arange(2048)[None] * 2**19)
    source = TableRows(table, np.zeros(10**4, np.uint8))
    stream = pack_varint(zigzag(-1023)) + pack_varint(zigzag(1023)) + pack_varint(1) + b"\0"
    with pytest.raises(FormatError, match="a stream has 1 bytes for 10000 symbols of 2047 values"):
        StreamReader(ReferenceEngine(), [stream]).code_source(None, source)
    segment = SegmentReader(ReferenceEngine(), memoryview(pack_varint(len(stream)) + stream), 0, 1)
    with pytest.raises(FormatError, match="a stream has 1 bytes for 10000 symbols of 2047 values"):
        segment.code(None, source)
