"""The readable twin of torchac's coder: same bytes, plain Python. Oracle of the tests, fallback without a compiler.

A 32-bit arithmetic coder with 16-bit counts. [low, high] is the interval; equal leading bits are shifted out; an
interval that straddles the middle closely is widened and the bit decided later ("pending").

Source: torchac 0.9.3, backend/torchac_backend.cpp, after Mark Nelson, "Data compression with arithmetic coding", 2014.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitstream.engines import check_arguments

HALF, QUARTER, THREE_QUARTERS, TOP = 1 << 31, 1 << 30, 3 << 30, (1 << 32) - 1


class ReferenceEngine:
    """Pure-Python engine; about a second for 10^6 symbols that are mostly predictable."""

    name = "reference"

    def encode(self, cdf: NDArray[np.uint16], rows: NDArray[np.integer[Any]], symbols: NDArray[np.int16]) -> bytes:
        """Return the payload of N ≥ 1 symbols. Raises SymbolError if one is outside of its row."""
        check_arguments(cdf, rows, symbols)
        table = _closed(cdf)
        low, high, pending = 0, TOP, 0
        bits = bytearray()  # one byte a bit

        for row, symbol in zip(rows.tolist(), symbols.tolist(), strict=True):
            span = high - low + 1
            high = low - 1 + (span * table[row][symbol + 1] >> 16)
            low = low + (span * table[row][symbol] >> 16)
            while True:
                if high < HALF or low >= HALF:
                    bit = low >> 31
                    bits.append(bit)
                    bits.extend((1 - bit,) * pending)
                    pending = 0
                elif low >= QUARTER and high < THREE_QUARTERS:
                    pending += 1
                    low -= QUARTER
                    high -= QUARTER
                else:
                    break
                low = low << 1 & TOP
                high = high << 1 & TOP | 1
        bit = int(low >= QUARTER)
        bits.append(bit)
        bits.extend((1 - bit,) * (pending + 1))
        return np.packbits(np.frombuffer(bits, dtype=np.uint8)).tobytes()

    def decode(self, cdf: NDArray[np.uint16], rows: NDArray[np.integer[Any]], payload: bytes) -> NDArray[np.int16]:
        """Return the len(rows) symbols of a payload; zero bits are read behind its end, as torchac does."""
        check_arguments(cdf, rows)
        table = _closed(cdf)
        bits = iter(np.unpackbits(np.frombuffer(payload, dtype=np.uint8)).tolist())
        low, high, value = 0, TOP, 0
        for _ in range(32):
            value = value << 1 | next(bits, 0)
        out = []
        for row in rows.tolist():
            span = high - low + 1
            count = (((value - low + 1) << 16) - 1) // span & 0xFFFF
            symbol = bisect_right(table[row], count) - 1
            out.append(symbol)
            high = low - 1 + (span * table[row][symbol + 1] >> 16)
            low = low + (span * table[row][symbol] >> 16)
            while True:
                if high < HALF or low >= HALF:
                    pass
                elif low >= QUARTER and high < THREE_QUARTERS:
                    low -= QUARTER
                    high -= QUARTER
                    value -= QUARTER
                else:
                    break
                low = low << 1 & TOP
                high = high << 1 & TOP | 1
                value = value << 1 & TOP | next(bits, 0)
        return np.array(out, dtype=np.int16)


def _closed(cdf: NDArray[np.uint16]) -> list[list[int]]:
    """Return the rows as lists with the closing 65536 in place."""
    table = cdf.astype(np.int64)
    table[:, -1] = 1 << 16
    return [row.tolist() for row in table]
