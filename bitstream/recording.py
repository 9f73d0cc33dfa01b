"""What reading a file's symbols tells about its bytes: the cost of each stream, and of each symbol.

For those who ask where the bits are (``codec.inspection``); decoding does not need it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from bitstream.coder import StepCoder, StreamReader
from bitstream.engines import Engine
from bitstream.segments import Distributions, SegmentReader, Symbols, TableRows, read_payload, read_range, split_segment
from bitstream.tables import PRECISION
from bitstream.varint import unpack_varint


@dataclass(frozen=True)
class StreamCost:
    """The bytes of streams (FORMAT.md section 4): ranges, lengths, payloads; and their symbols.

    ``ideal_bits`` are −log2 of the probabilities that the CDF rows give to the symbols: what no coder can beat.
    """

    range_bytes: int = 0
    length_bytes: int = 0
    payload_bytes: int = 0
    symbols: int = 0
    zeros: int = 0
    ideal_bits: float = 0.0

    @property
    def n_bytes(self) -> int:
        """Return all bytes."""
        return self.range_bytes + self.length_bytes + self.payload_bytes

    def __add__(self, other: StreamCost) -> StreamCost:
        return StreamCost(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass
class StreamGroup:
    """What one call of ``code_source`` or one segment read: the stream of each band, and the symbols of each step.

    ``length_bytes`` is what the lengths of the streams take, in a segment.
    """

    streams: list[memoryview] = field(default_factory=list)
    length_bytes: int = 0
    steps: list[tuple[Distributions, Symbols]] = field(default_factory=list)

    def measure(self) -> tuple[list[StreamCost], list[NDArray[np.float64]]]:
        """Return the cost of each stream, and the ideal bits (n,) of the symbols of each step."""
        costs, bits = [], [np.zeros(len(symbols)) for _, symbols in self.steps]
        bands = [source.bands() for source, _ in self.steps]
        for band, stream in enumerate(self.streams):
            cost = StreamCost()
            places = [np.flatnonzero(part == band) for part in bands]
            for where, (source, symbols), out in zip(places, self.steps, bits, strict=True):
                if len(where):
                    values = symbols[where]
                    first, last, _ = read_range(stream, 0, source.lo, source.hi)
                    out[where] = ideal_bits(source.take(where), values, first, last)
                    zeros = len(values) - np.count_nonzero(values)
                    cost += StreamCost(symbols=len(values), zeros=zeros, ideal_bits=float(out[where].sum()))
            costs.append(cost + _bytes_of(stream))
        return costs, bits


def ideal_bits(source: Distributions, symbols: Symbols, first: int, last: int) -> NDArray[np.float64]:
    """Return −log2 of the probabilities (n,) of the symbols of a stream with the range first … last."""
    if first == last:
        return np.zeros(len(symbols))
    cdf, rows = source.cdf(first, last)
    place = rows.astype(np.int64) * cdf.shape[1] + symbols - first
    flat = cdf.reshape(-1)
    return PRECISION - np.log2(flat[place + 1] - flat[place], dtype=np.float64)  # modulo 2^16: the closing 65536 is 0


def _bytes_of(stream: memoryview) -> StreamCost:
    if not len(stream):
        return StreamCost()
    _, offset = unpack_varint(stream, 0)
    _, offset = unpack_varint(stream, offset)
    ranges, payloads = offset, 0
    while offset < len(stream):
        payload, offset = read_payload(stream, offset)
        payloads += len(payload)
    return StreamCost(ranges, len(stream) - ranges - payloads, payloads)


class RecordingReader(StreamReader):
    """A StreamReader that keeps what it read in ``groups``, in the order of the walk: for those who ask where the bits are."""

    def __init__(self, engine: Engine, payloads: list[bytes]) -> None:
        super().__init__(engine, payloads)
        self.groups: list[StreamGroup] = []

    def code_source(self, symbols: Symbols | None, source: TableRows) -> Symbols:
        """See ``SymbolCoder.code_source``."""
        self.groups.append(StreamGroup())
        out = super().code_source(symbols, source)
        self.groups[-1].steps.append((source, out))
        return out

    @contextmanager
    def segment(self, bands: int) -> Iterator[StepCoder]:
        """See ``SymbolCoder.segment``."""
        with super().segment(bands) as code:

            def record(symbols: Symbols | None, source: Distributions) -> Symbols:
                out = code(symbols, source)
                self.groups[-1].steps.append((source, out))
                return out

            yield record

    def _stream(self, symbols: Symbols | None, source: TableRows) -> Symbols:
        start = self._offset
        out = super()._stream(symbols, source)
        self.groups[-1].streams.append(self._data[start : self._offset])
        return out

    def _open(self, bands: int) -> SegmentReader:
        streams, end = split_segment(self._data, self._offset, bands)
        self.groups.append(StreamGroup(streams, end - self._offset - sum(map(len, streams))))
        return super()._open(bands)
