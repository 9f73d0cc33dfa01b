"""Arithmetic-coding engines: torchac's C++ where it can be built, a readable Python twin where it cannot.

Both produce and read the same bytes (FORMAT.md section 4.2).
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bitstream.errors import EngineError, SymbolError


class Engine(Protocol):
    """Codes symbols 0 … Lp − 2, symbol i with row ``rows[i]`` of the CDF table (R, Lp) uint16."""

    name: str

    def encode(self, cdf: NDArray[np.uint16], rows: NDArray[np.integer[Any]], symbols: NDArray[np.int16]) -> bytes:
        """Return the payload of N ≥ 1 symbols. Raises SymbolError if one is outside of its row."""
        ...

    def decode(self, cdf: NDArray[np.uint16], rows: NDArray[np.integer[Any]], payload: bytes) -> NDArray[np.int16]:
        """Return the len(rows) symbols of a payload."""
        ...


def check_rows(rows: NDArray[np.integer[Any]], count: int) -> None:
    """Raise SymbolError if a row (of one or more) is outside of a table of ``count`` rows."""
    row = rows.min() if rows.min() < 0 else rows.max()
    if not 0 <= row < count:
        raise SymbolError(f"row {row} asked for, the CDF table has {count} rows")


def check_arguments(cdf: NDArray[np.uint16], rows: NDArray[np.integer[Any]], symbols: NDArray[np.int16] | None = None) -> None:
    """Raise SymbolError for what torchac would turn into silent damage."""
    if cdf.ndim != 2 or cdf.shape[1] < 2 or not len(rows):
        raise SymbolError(f"CDF table is {cdf.shape} for {len(rows)} symbols: expected (rows, Lp ≥ 2) and a symbol or more")
    inner = cdf[:, :-1].astype(np.int32)
    if (inner[:, 0] != 0).any() or (np.diff(inner, axis=1) <= 0).any() or (cdf[:, -1] != 0).any():
        raise SymbolError("a CDF row does not rise strictly from 0 to 65536")
    check_rows(rows, len(cdf))
    if len(rows) * cdf.shape[1] >= 2**31:
        raise SymbolError(f"{len(rows)} symbols × Lp {cdf.shape[1]} reaches torchac's limit of 2^31 cells: cut the stream")
    if symbols is None:
        return
    if symbols.shape != rows.shape or symbols.ndim != 1 or symbols.dtype != np.int16:
        raise SymbolError(f"symbols are {symbols.shape} {symbols.dtype}, expected one int16 for each of the {rows.shape} rows")
    if symbols.min() < 0 or symbols.max() > cdf.shape[1] - 2:
        raise SymbolError(f"symbols span [{symbols.min()}, {symbols.max()}], the CDF rows hold [0, {cdf.shape[1] - 2}]")


@lru_cache(maxsize=1)
def default_engine() -> Engine:
    """Return torchac's engine, or the reference engine with a warning that tells the cure."""
    from bitstream.engines.reference import ReferenceEngine
    from bitstream.engines.torchac import TorchacEngine, build_cure

    try:
        return TorchacEngine()
    except EngineError as error:
        warnings.warn(
            f"{error} Using the Python engine: the same files, about 12 times slower. For the fast one "
            f"{build_cure(str(error))} and run `codec doctor`.",
            RuntimeWarning,
            stacklevel=2,
        )
        return ReferenceEngine()
