"""The symbol coder: one ``code()`` for both directions (FORMAT.md sections 4 to 6).

A ``StreamWriter`` stores the symbols it is given and returns them; a ``StreamReader`` is given None and returns what it
reads. A model's walk over its latents is therefore written once, and encoder and decoder cannot drift apart.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitstream.engines import Engine, check_rows
from bitstream.errors import FormatError, SymbolError
from bitstream.tables import MasterTable
from bitstream.varint import pack_varint, unpack_varint, unzigzag, zigzag

PIECE_CELLS = 2**25  # CDF cells (symbols × Lp) of one torchac payload

Symbols = NDArray[np.int16]
Rows = NDArray[np.integer[Any]]


class SymbolCoder(ABC):
    """Codes groups of symbols in order, and keeps the CRC-32 of all of them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.crc = 0

    def code(self, symbols: Symbols | None, rows: Rows, table: MasterTable, band_edges: tuple[int, ...] = ()) -> Symbols:
        """Code N symbols, each with its row (N,) of the table; return them (N,) int16.

        ``band_edges`` splits the symbols by row into len + 1 streams: rows < e0, < e1, …, the rest.
        Raises SymbolError (encoding) if a symbol is outside of the table, FormatError (decoding) if the data is off.
        """
        if len(rows):
            check_rows(rows, len(table.cumulative))
        if symbols is not None:
            _check_symbols(symbols, rows, table)
            symbols = symbols.astype(np.int16, copy=False)
        if not band_edges:
            out = self._stream(symbols, rows, table)
        else:
            band_of_row = np.searchsorted(band_edges, np.arange(len(table.cumulative)), side="right").astype(np.uint8)
            band = band_of_row[rows]
            out = np.empty(len(rows), dtype=np.int16)
            for b in range(len(band_edges) + 1):
                where = np.flatnonzero(band == b)
                out[where] = self._stream(None if symbols is None else symbols[where], rows[where], table)
        self.crc = zlib.crc32(out.astype("<i2").tobytes(), self.crc)
        return out

    @abstractmethod
    def end_chunk(self) -> None:
        """Close the current chunk and go on with the next."""

    @abstractmethod
    def _stream(self, symbols: Symbols | None, rows: Rows, table: MasterTable) -> Symbols:
        """Code one stream."""


def _check_symbols(symbols: NDArray[np.integer[Any]], rows: Rows, table: MasterTable) -> None:
    if symbols.shape != rows.shape or symbols.ndim != 1:
        raise SymbolError(f"{symbols.shape} symbols with {rows.shape} rows: one row for each symbol is expected")
    if len(symbols) and (symbols.min() < table.lo or symbols.max() > table.hi):
        raise SymbolError(f"symbols span [{symbols.min()}, {symbols.max()}], the table holds [{table.lo}, {table.hi}]: clamp")


def _restrict(table: MasterTable, rows: Rows, first: int, last: int) -> tuple[NDArray[np.uint16], Rows]:
    """Return the CDF rows of a stream's range, only those between the first and last row it uses, and the rows in them."""
    low, high = int(rows.min()), int(rows.max())
    return MasterTable(table.lo, table.cumulative[low : high + 1]).rows(first, last), rows - rows.dtype.type(low)


def _pieces(count: int, row_length: int) -> list[slice]:
    size = max(PIECE_CELLS // row_length, 1)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


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

    def _stream(self, symbols: Symbols | None, rows: Rows, table: MasterTable) -> Symbols:
        if symbols is None:
            raise SymbolError("a StreamWriter was given no symbols")
        if not len(symbols):
            return symbols
        first, last = int(symbols.min()), int(symbols.max())
        self._out += pack_varint(zigzag(first)) + pack_varint(zigzag(last))
        if first == last:
            return symbols
        cdf, rows = _restrict(table, rows, first, last)
        shifted = (symbols - first).astype(np.int16)
        for piece in _pieces(len(symbols), cdf.shape[1]):
            payload = self.engine.encode(cdf, rows[piece], shifted[piece])
            self._out += pack_varint(len(payload)) + payload
        return symbols


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

    def _stream(self, symbols: Symbols | None, rows: Rows, table: MasterTable) -> Symbols:
        if symbols is not None:
            raise SymbolError("a StreamReader was given symbols")
        if not len(rows):
            return np.empty(0, dtype=np.int16)
        first, last = self._signed(), self._signed()
        if not table.lo <= first <= last <= table.hi:
            raise FormatError(f"a stream's range is [{first}, {last}], the table holds [{table.lo}, {table.hi}]")
        if first == last:
            return np.full(len(rows), first, dtype=np.int16)
        cdf, rows = _restrict(table, rows, first, last)
        out = np.empty(len(rows), dtype=np.int16)
        for piece in _pieces(len(rows), cdf.shape[1]):
            length, self._offset = unpack_varint(self._data, self._offset)
            if length > len(self._data) - self._offset:
                raise FormatError(f"a stream claims {length} bytes, {len(self._data) - self._offset} are left")
            payload = bytes(self._data[self._offset : self._offset + length])
            self._offset += length
            out[piece] = self.engine.decode(cdf, rows[piece], payload) + first
        return out

    def _signed(self) -> int:
        value, self._offset = unpack_varint(self._data, self._offset)
        return unzigzag(value)
