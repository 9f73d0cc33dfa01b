"""Streams whose symbols become known step by step (FORMAT.md section 4.3).

A wavefront's CDF rows depend on the symbols of earlier wavefronts, but one stream for each would cost its length and range. So
several steps share the streams of a segment, one stream for each band. torchac cannot go on where it stopped, but it decodes
any prefix of a payload: at each step the reader decodes what it knows of the current piece once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bitstream.engines import Engine
from bitstream.errors import FormatError, SymbolError
from bitstream.tables import PRECISION, MasterTable
from bitstream.varint import pack_varint, unpack_varint, unzigzag, zigzag

PIECE_CELLS = 2**25  # CDF cells (symbols × Lp) of one torchac payload
LEAST_BITS = 1442695  # of −log2(1 − x) for small x, in 10^-6 of x: rounded down
LEAST_SLACK = 64  # bits: the coder's registers

Symbols = NDArray[np.int16]
Rows = NDArray[np.integer[Any]]


class Distributions(Protocol):
    """The distributions of n symbols, in some form that CDF rows can be computed from."""

    @property
    def lo(self) -> int:
        """Return the smallest symbol."""
        ...

    @property
    def hi(self) -> int:
        """Return the largest symbol."""
        ...

    def __len__(self) -> int:
        """Return n."""
        ...

    def bands(self) -> NDArray[np.uint8]:
        """Return the band (n,) of each symbol."""
        ...

    def take(self, where: NDArray[np.intp]) -> Distributions:
        """Return the distributions of some of the symbols."""
        ...

    def cdf(self, first: int, last: int) -> tuple[NDArray[np.uint16], Rows]:
        """Return a table (R, last − first + 2) for symbols first … last and the row (n,) of each symbol in it."""
        ...


@dataclass(frozen=True)
class TableRows:
    """Symbols with rows (n,) of one master table; ``edges`` split the rows into bands."""

    table: MasterTable
    rows: Rows
    edges: tuple[int, ...] = ()

    @property
    def lo(self) -> int:
        """Return the smallest symbol of the table."""
        return self.table.lo

    @property
    def hi(self) -> int:
        """Return the largest symbol of the table."""
        return self.table.hi

    def __len__(self) -> int:
        return len(self.rows)

    def bands(self) -> NDArray[np.uint8]:
        """Return the band (n,) of each symbol: rows < e0, < e1, …, the rest."""
        return np.searchsorted(self.edges, np.arange(len(self.table.cumulative)), side="right").astype(np.uint8)[self.rows]

    def take(self, where: NDArray[np.intp]) -> TableRows:
        """Return the rows of some of the symbols."""
        return TableRows(self.table, self.rows[where], self.edges)

    def cdf(self, first: int, last: int) -> tuple[NDArray[np.uint16], Rows]:
        """Return the table restricted to a range, between the first and last row that is used, and the rows in it."""
        low, high = int(self.rows.min()), int(self.rows.max())
        part = MasterTable(self.table.lo, self.table.cumulative[low : high + 1])
        return part.rows(first, last), self.rows - self.rows.dtype.type(low)


def piece_size(row_length: int) -> int:
    """Return how many symbols have one payload at this length of a CDF row."""
    return max(PIECE_CELLS // row_length, 1)


def pieces(count: int, row_length: int) -> list[slice]:
    """Cut a stream of so many symbols into the pieces that have a payload each."""
    size = piece_size(row_length)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def pack_stream(engine: Engine, symbols: Symbols, source: Distributions) -> bytes:
    """Return range and pieces of one stream (FORMAT.md section 4); nothing for no symbols."""
    if not len(symbols):
        return b""
    first, last = int(symbols.min()), int(symbols.max())
    if first < source.lo or last > source.hi:
        raise SymbolError(f"symbols span [{first}, {last}], the table holds [{source.lo}, {source.hi}]: clamp")
    out = bytearray(pack_varint(zigzag(first)) + pack_varint(zigzag(last)))
    if first != last:
        shifted = (symbols - first).astype(np.int16)
        for piece in pieces(len(symbols), last - first + 2):
            cdf, rows = source.take(np.arange(piece.start, piece.stop)).cdf(first, last)
            payload = engine.encode(cdf, rows, shifted[piece])
            out += pack_varint(len(payload)) + payload
    return bytes(out)


def read_range(data: memoryview, offset: int, lo: int, hi: int) -> tuple[int, int, int]:
    """Return min, max and the offset behind them. Raises FormatError if they are outside of lo … hi."""
    first, offset = unpack_varint(data, offset)
    last, offset = unpack_varint(data, offset)
    first, last = unzigzag(first), unzigzag(last)
    if not lo <= first <= last <= hi:
        raise FormatError(f"a stream's range is [{first}, {last}], the table holds [{lo}, {hi}]: the file is damaged")
    return first, last, offset


def read_payload(data: memoryview, offset: int) -> tuple[bytes, int]:
    """Return the payload of a piece and the offset behind it. Raises FormatError if it is cut off."""
    length, offset = unpack_varint(data, offset)
    if length > len(data) - offset:
        raise FormatError(f"a stream claims {length} bytes, {len(data) - offset} are left: the file is damaged")
    return bytes(data[offset : offset + length]), offset + length


def check_payload(payload: bytes, symbols: int, first: int, last: int) -> None:
    """Raise FormatError if a payload is too short for so many symbols of a range (FORMAT.md section 4.2).

    Each value has at least one of 65536 counts, so a symbol is never quite free: a few bytes must not keep a decoder busy long.
    """
    least = symbols * (last - first) * LEAST_BITS // 10**6 >> PRECISION
    if 8 * len(payload) + LEAST_SLACK < least:
        raise FormatError(
            f"a stream has {len(payload)} bytes for {symbols} symbols of {last - first + 1} values, which take {least // 8} or "
            "more: the file is damaged"
        )


def _bands(source: Distributions, count: int) -> NDArray[np.uint8]:
    bands = source.bands()
    if len(bands) and bands.max() >= count:
        raise SymbolError(f"a symbol is in band {bands.max()}, the segment has {count}: open it with as many as there are")
    return bands


class SegmentWriter:
    """Collects the symbols of all steps; ``pack`` returns the bytes of the segment."""

    def __init__(self, bands: int) -> None:
        self._steps: list[list[tuple[Symbols, Distributions]]] = [[] for _ in range(bands)]

    def code(self, symbols: Symbols | None, source: Distributions) -> Symbols:
        """Keep the symbols (n,) of one step; return them."""
        if symbols is None:
            raise SymbolError("a SegmentWriter was given no symbols")
        if symbols.shape != (len(source),):
            raise SymbolError(f"{symbols.shape} symbols with {len(source)} distributions: one for each is expected")
        bands = _bands(source, len(self._steps))
        for band, steps in enumerate(self._steps):
            where = np.flatnonzero(bands == band)
            if len(where):
                steps.append((symbols[where], source.take(where)))
        return symbols

    def pack(self, engine: Engine) -> bytes:
        """Return the lengths of the streams, then the streams."""
        streams = []
        for steps in self._steps:
            symbols = np.concatenate([s for s, _ in steps]) if steps else np.empty(0, np.int16)
            streams.append(pack_stream(engine, symbols, _Steps([source for _, source in steps])))
        return b"".join(pack_varint(len(stream)) for stream in streams) + b"".join(streams)


@dataclass(frozen=True)
class _Steps:
    """The distributions of several steps, one behind the other."""

    parts: list[Distributions]

    @property
    def lo(self) -> int:
        return self.parts[0].lo

    @property
    def hi(self) -> int:
        return self.parts[0].hi

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def bands(self) -> NDArray[np.uint8]:
        return np.concatenate([part.bands() for part in self.parts])

    def take(self, where: NDArray[np.intp]) -> _Steps:
        """Return a contiguous range of the symbols."""
        kept, start = [], 0
        for part in self.parts:
            inside = where[(where >= start) & (where < start + len(part))] - start
            if len(inside):
                kept.append(part if len(inside) == len(part) else part.take(inside))
            start += len(part)
        return _Steps(kept)

    def cdf(self, first: int, last: int) -> tuple[NDArray[np.uint16], Rows]:
        """Return the tables of all steps below each other, once for steps that share a master table."""
        tables = [part for part in self.parts if isinstance(part, TableRows)]
        if len(tables) == len(self.parts):
            return TableRows(tables[0].table, np.concatenate([part.rows for part in tables])).cdf(first, last)
        return _stack([part.cdf(first, last) for part in self.parts])


def _stack(cdfs: list[tuple[NDArray[np.uint16], Rows]]) -> tuple[NDArray[np.uint16], Rows]:
    starts = np.cumsum([0] + [len(table) for table, _ in cdfs[:-1]])
    rows = [rows.astype(np.int64) + start for (_, rows), start in zip(cdfs, starts, strict=True)]
    return np.concatenate([table for table, _ in cdfs]), np.concatenate(rows)


def split_segment(data: memoryview, offset: int, bands: int) -> tuple[list[memoryview], int]:
    """Return the stream of each band and the offset behind the segment. Raises FormatError if it is cut off."""
    lengths = []
    for _ in range(bands):
        length, offset = unpack_varint(data, offset)
        lengths.append(length)
    if sum(lengths) > len(data) - offset:
        raise FormatError(f"a segment's streams claim {sum(lengths)} bytes, {len(data) - offset} are left: the file is damaged")
    starts = [offset + sum(lengths[:band]) for band in range(bands + 1)]
    return [data[start:stop] for start, stop in pairwise(starts)], starts[-1]


class SegmentReader:
    """Gives the symbols of each step as its distributions become known; ``end`` checks that nothing is left."""

    def __init__(self, engine: Engine, data: memoryview, offset: int, bands: int) -> None:
        streams, self.offset = split_segment(data, offset, bands)  # the offset behind the segment
        self._streams = [_GrowingStream(engine, stream) for stream in streams]

    def code(self, symbols: Symbols | None, source: Distributions) -> Symbols:
        """Return the symbols (n,) of the next step."""
        if symbols is not None:
            raise SymbolError("a SegmentReader was given symbols")
        bands = _bands(source, len(self._streams))
        out = np.empty(len(source), dtype=np.int16)
        for band, stream in enumerate(self._streams):
            where = np.flatnonzero(bands == band)
            if len(where):
                out[where] = stream.extend(source.take(where))
        return out

    def end(self) -> None:
        """Raise FormatError if a stream has bytes that no symbol asked for."""
        for stream in self._streams:
            stream.end()


class _GrowingStream:
    """One stream that is decoded from the start of its current piece whenever more of its distributions are known."""

    def __init__(self, engine: Engine, data: memoryview) -> None:
        self._engine, self._data, self._offset = engine, data, 0
        self._range: tuple[int, int] | None = None
        self._known = _Known(0, 0)  # of the current piece
        self._payload: bytes | None = None

    def extend(self, source: Distributions) -> Symbols:
        """Return the next len(source) symbols."""
        if self._range is None:
            first, last, self._offset = read_range(self._data, 0, source.lo, source.hi)
            self._range, self._known = (first, last), _Known(first, last)
        first, last = self._range
        if first == last:
            return np.full(len(source), first, dtype=np.int16)
        size, out, start = piece_size(last - first + 2), [], 0
        while start < len(source):
            if self._payload is None:
                self._payload, self._offset = read_payload(self._data, self._offset)
            known = len(self._known)
            stop = min(len(source), start + size - known)
            check_payload(self._payload, known + stop - start, first, last)
            self._known.append(source if stop - start == len(source) else source.take(np.arange(start, stop)))
            out.append(self._engine.decode(*self._known.cdf(), self._payload)[known:] + np.int16(first))
            if known + stop - start == size:
                self._known, self._payload = _Known(first, last), None
            start = stop
        return np.concatenate(out)

    def end(self) -> None:
        """Raise FormatError if bytes are left."""
        if self._offset < len(self._data):
            raise FormatError(f"{len(self._data) - self._offset} bytes are left in a stream of a segment: the file is damaged")


class _Known:
    """The CDF rows of the symbols of a piece so far, computed once; of a table that steps share, the rows that are used.

    Engines check each row of a table at every call, so that those which no symbol uses would cost time.
    """

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last = first, last
        self._table: NDArray[np.uint16] | None = None
        self._rows: Rows = np.empty(0, np.int64)
        self._shared: NDArray[np.uint16] | None = None
        self._places: NDArray[np.int64] = np.empty(0, np.int64)  # of the rows of the shared table in ours, −1: not there

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, source: Distributions) -> None:
        """Add the symbols of a step."""
        start = 0 if self._table is None else len(self._table)
        if isinstance(source, TableRows):
            if self._shared is None:
                self._shared = source.table.rows(self._first, self._last)
                self._places = np.full(len(self._shared), -1)
            used = np.unique(source.rows)
            new = used[self._places[used] < 0]
            self._places[new] = start + np.arange(len(new))
            table, rows = self._shared[new], self._places[source.rows]
        else:
            table, within = source.cdf(self._first, self._last)
            rows = within.astype(np.int64) + start
        if len(table):
            self._table = table if self._table is None else np.concatenate([self._table, table])
        self._rows = np.concatenate([self._rows, rows])

    def cdf(self) -> tuple[NDArray[np.uint16], Rows]:
        """Return table and rows of all symbols."""
        assert self._table is not None
        return self._table, self._rows
