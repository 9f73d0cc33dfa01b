"""The symbol coder: one ``code()`` for both directions (FORMAT.md sections 4 to 6).

A ``StreamWriter`` stores the symbols it is given and returns them; a ``StreamReader`` is given None and returns what it
reads. A model's walk over its latents is therefore written once, and encoder and decoder cannot drift apart.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitstream.engines import Engine, check_rows
from bitstream.errors import FormatError, SymbolError
from bitstream.segments import (
    Distributions,
    Rows,
    SegmentReader,
    SegmentWriter,
    Symbols,
    TableRows,
    check_payload,
    pack_stream,
    pieces,
    read_payload,
    read_range,
)
from bitstream.tables import MasterTable

StepCoder = Callable[[Any, Any], Symbols]  # (symbols or None, distributions)


class SymbolCoder(ABC):
    """Codes groups of symbols in order, and keeps the CRC-32 of all of them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.crc = 0

    def code(self, symbols: Symbols | None, rows: Rows, table: MasterTable, band_edges: tuple[int, ...] = ()) -> Symbols:
        """Code N symbols, each with its row (N,) of the table; see ``code_source``."""
        if len(rows):
            check_rows(rows, len(table.cumulative))
        return self.code_source(symbols, TableRows(table, rows, band_edges))

    def code_source(self, symbols: Symbols | None, source: TableRows) -> Symbols:
        """Code N symbols, those of each band in a stream of their own; return them (N,) int16.

        Raises SymbolError (encoding) if a symbol is outside of the table, FormatError (decoding) if the data is off.
        """
        if symbols is not None:
            _check_symbols(symbols, source.rows, source.table)
            symbols = symbols.astype(np.int16, copy=False)
        if not source.edges:
            out = self._stream(symbols, source)
        else:
            bands = source.bands()
            out = np.empty(len(source), dtype=np.int16)
            for band in range(len(source.edges) + 1):
                where = np.flatnonzero(bands == band)
                out[where] = self._stream(None if symbols is None else symbols[where], source.take(where))
        self.crc = zlib.crc32(out.astype("<i2").tobytes(), self.crc)
        return out

    @contextmanager
    def segment(self, bands: int) -> Iterator[StepCoder]:
        """Open the streams of a segment, one for each band; the block calls its value with symbols or None, and distributions.

        Raises SymbolError (encoding) if a symbol is outside of its table, FormatError (decoding) if the data is off.
        """
        segment = self._open(bands)

        def code(symbols: Symbols | None, source: Distributions) -> Symbols:
            out = segment.code(symbols, source)
            self.crc = zlib.crc32(out.astype("<i2").tobytes(), self.crc)
            return out

        yield code
        self._close(segment)

    @abstractmethod
    def _open(self, bands: int) -> Any:
        """Open a segment."""

    @abstractmethod
    def _close(self, segment: Any) -> None:
        """Close a segment."""

    @abstractmethod
    def end_chunk(self) -> None:
        """Close the current chunk and go on with the next."""

    @abstractmethod
    def _stream(self, symbols: Symbols | None, source: TableRows) -> Symbols:
        """Code one stream."""


def _check_symbols(symbols: NDArray[np.integer[Any]], rows: Rows, table: MasterTable) -> None:
    if symbols.shape != rows.shape or symbols.ndim != 1:
        raise SymbolError(f"{symbols.shape} symbols with {rows.shape} rows: one row for each symbol is expected")
    if len(symbols) and (symbols.min() < table.lo or symbols.max() > table.hi):
        raise SymbolError(f"symbols span [{symbols.min()}, {symbols.max()}], the table holds [{table.lo}, {table.hi}]: clamp")


class StreamWriter(SymbolCoder):
    """The encoding direction; ``payloads`` holds one entry for each chunk that was ended."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.payloads: list[bytes] = []
        self._out = bytearray()

    def end_chunk(self) -> None:
        """Close the payload of one chunk."""
        self.payloads.append(bytes(self._out))
        self._out = bytearray()

    def _stream(self, symbols: Symbols | None, source: TableRows) -> Symbols:
        if symbols is None:
            raise SymbolError("a StreamWriter was given no symbols")
        if not len(symbols):
            return symbols
        self._out += pack_stream(self.engine, symbols, source)
        return symbols

    def _open(self, bands: int) -> SegmentWriter:
        return SegmentWriter(bands)

    def _close(self, segment: SegmentWriter) -> None:
        self._out += segment.pack(self.engine)


class StreamReader(SymbolCoder):
    """The decoding direction, over the payloads of the chunks, in order."""

    def __init__(self, engine: Engine, payloads: list[bytes]) -> None:
        super().__init__(engine)
        self._payloads = list(payloads)
        self._data, self._offset = self._next(), 0

    def _next(self) -> memoryview:
        return memoryview(self._payloads.pop(0) if self._payloads else b"")

    def end_chunk(self) -> None:
        """Go on with the next chunk. Raises FormatError if this one has bytes that no stream asked for."""
        left = len(self._data) - self._offset
        if left:
            raise FormatError(f"{left} bytes are left behind the last stream of a chunk: the file is damaged")
        self._data, self._offset = self._next(), 0

    def _stream(self, symbols: Symbols | None, source: TableRows) -> Symbols:
        if symbols is not None:
            raise SymbolError("a StreamReader was given symbols")
        if not len(source):
            return np.empty(0, dtype=np.int16)
        first, last, self._offset = read_range(self._data, self._offset, source.lo, source.hi)
        if first == last:
            return np.full(len(source), first, dtype=np.int16)
        cdf, rows = source.cdf(first, last)
        out = np.empty(len(rows), dtype=np.int16)
        for piece in pieces(len(rows), cdf.shape[1]):
            payload, self._offset = read_payload(self._data, self._offset)
            check_payload(payload, piece.stop - piece.start, first, last)
            out[piece] = self.engine.decode(cdf, rows[piece], payload) + first
        return out

    def _open(self, bands: int) -> SegmentReader:
        segment = SegmentReader(self.engine, self._data, self._offset, bands)
        self._offset = segment.offset
        return segment

    def _close(self, segment: SegmentReader) -> None:
        segment.end()
