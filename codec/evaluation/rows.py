"""One row for each picture, codec and quality; and the file that keeps them, so that a run that was cut short goes on.

A row is JSON: codec, identity (weights or versions), settings, quality, image, crc (of its pixels), width, height, bytes, bpp,
psnr_db, ms_ssim_db, encode_s (pixels to bytes), decode_s (bytes to pixels), lmbda (models), threads, jobs, device, versions,
machine. A measure that a picture does not have (MS-SSIM below 161 pixels a side, PSNR of equal pictures) is null.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import PIL
import torch

from bitstream.errors import ImageError, LimitError, UsageError, WriteError
from codec import __version__, images
from codec.evaluation.contenders import Contender, Made, make
from codec.files import lock_folder, read_bytes, walk_files, write_atomic
from codec.images import SUFFIXES, Picture, Pixels
from codec.machine import cpu_name
from codec.metrics import bpp, ms_ssim_db, psnr_db
from models.network import MS_SSIM_SIDE

MEASURES = {"psnr": "psnr_db", "ms-ssim": "ms_ssim_db"}
KEY = ("codec", "image", "crc", "quality")  # of a row; with the same identity and settings it is not run again
FIELDS: dict[str, type | tuple[type, ...]] = {  # what every row has
    "codec": str, "image": str, "crc": str, "quality": (int, float), "identity": str, "settings": dict, "width": int,
    "height": int, "bytes": int, "bpp": (int, float), "encode_s": (int, float), "decode_s": (int, float), "threads": int,
    "jobs": int, "device": str, "versions": dict, "machine": str,
}  # fmt: skip

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A picture of the folder: its path, its name in rows, and the CRC-32 of its pixels."""

    path: Path
    name: str
    crc: str


def find_sources(folder: Path, skipped: Callable[[str], None], out: Path | None = None) -> list[Source]:
    """Return the pictures below a folder, hidden ones and those below ``out`` left out.

    ``skipped`` is told why one cannot be used. Raises UsageError if none can.
    """
    paths = sorted(path for path in map(Path, walk_files(folder)) if path.suffix.lower() in SUFFIXES)
    if out is not None:
        paths = [path for path in paths if not path.resolve().is_relative_to(out.resolve())]
    sources = []
    for path in paths:
        try:
            pixels = images.load(path).pixels
        except ImageError as error:
            skipped(str(error))
        except LimitError as error:
            found = str(error).rpartition(":")[0]  # without the cure, which is another command's
            skipped(f"{path}: {found}: cut it, or leave it away")
        else:
            sources.append(Source(path, path.relative_to(folder).as_posix(), f"{zlib.crc32(pixels.tobytes()):08x}"))
    if not sources:
        raise UsageError(f"{folder}: no usable pictures ({', '.join(sorted(SUFFIXES))}) are below it")
    return sources


def measure(contender: Contender, source: Source, picture: Picture, quality: float, metrics: Sequence[str]) -> Row:
    """Return the row of a picture at one quality of a codec; ``metrics`` are names of ``MEASURES``."""
    point, _ = run_once(contender, picture, quality, metrics)
    row: Row = {"codec": contender.name, "identity": contender.identity, "image": source.name, "crc": source.crc}
    return row | {"quality": quality, **contender.facts(quality), **point}


def run_once(contender: Contender, picture: Picture, quality: float, metrics: Sequence[str]) -> tuple[Row, Pixels]:
    """Encode and decode a picture; return what of a row is measured, and the decoded pixels (H, W, 3)."""
    return measure_file(contender, picture, make(contender, picture, quality), metrics)


def measure_file(contender: Contender, picture: Picture, made: Made, metrics: Sequence[str]) -> tuple[Row, Pixels]:
    """Decode a file; return what ``run_once`` does."""
    begin = time.perf_counter()
    decoded = contender.decode(made.data)
    decode_s = time.perf_counter() - begin
    h, w, _ = picture.pixels.shape
    row: Row = {"width": w, "height": h, "bytes": len(made.data), "bpp": bpp(len(made.data), w, h)}
    if "psnr" in metrics:
        row["psnr_db"] = finite(psnr_db(picture.pixels, decoded))
    if "ms-ssim" in metrics:
        row["ms_ssim_db"] = finite(ms_ssim_db(picture.pixels, decoded)) if min(h, w) > MS_SSIM_SIDE else None
    return row | {"encode_s": round(made.encode_s, 5), "decode_s": round(decode_s, 5)}, decoded


def finite(value: float) -> float | None:
    """Return a number that JSON has, None for infinity."""
    return value if math.isfinite(value) else None


def machine_facts(device: str, threads: int, jobs: int) -> Row:
    """Return what a row says of where it was measured."""
    versions = {"codec": __version__, "torch": torch.__version__, "pillow": PIL.__version__}
    versions["python"] = platform.python_version()
    return {"threads": threads, "jobs": jobs, "device": device, "versions": versions, "machine": cpu_name()}


class RowStore:
    """The rows of a folder's ``rows.jsonl``, one line each, on the disk as they come; in memory alone without a path.

    Between ``begin`` and ``close`` the folder is locked (where the system can): two runs would lose each other's rows.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._file: TextIO | None = None
        self._lock: int | None = None
        self.rows: dict[tuple[Any, ...], Row] = {}
        self._load()

    def _load(self) -> None:
        if self.path is not None and self.path.exists():
            self.rows = {key(row): row for row in _read(self.path)}

    def has(self, wanted: Row, metrics: Sequence[str]) -> bool:
        """Return whether there is a row of the same codec, picture, quality, identity and settings, with all metrics."""
        row = self.rows.get(key(wanted))
        return row is not None and _same_file(row, wanted) and all(MEASURES[name] in row for name in metrics)

    def begin(self) -> None:
        """Lock the folder, write the file anew, without rows that were cut off, and keep it open. Raises UsageError."""
        if self.path is None:
            return
        self._lock = lock_folder(self.path.parent)
        try:
            self._load()
            self._write(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        except BaseException:
            self._unlock()
            raise

    def add(self, row: Row) -> None:
        """Keep a row: it is on the disk when this returns. Measures that an earlier row of the same file had stay."""
        old = self.rows.get(key(row))
        if old is not None and _same_file(old, row) and old["bytes"] == row["bytes"]:
            row = {**{name: old[name] for name in MEASURES.values() if name in old}, **row}
        self.rows[key(row)] = row
        if self._file is None:
            return
        try:
            self._file.write(_line(row))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise WriteError(f"{self.path}: cannot be written ({error.strerror}): make room and run again") from error

    def close(self) -> None:
        """Close the file; replaced rows leave it."""
        if self._file is None or self.path is None:
            return
        with contextlib.suppress(OSError):  # a full disk was said by ``add``
            self._file.close()
        self._file = None
        try:
            self._write(self.path)
        finally:
            self._unlock()

    def _write(self, path: Path) -> None:
        write_atomic(path, "".join(_line(row) for row in self.rows.values()).encode(), overwrite=True)

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _same_file(a: Row, b: Row) -> bool:
    return all(a[name] == b[name] for name in ("identity", "settings"))


def key(row: Row) -> tuple[Any, ...]:
    """Return what a row is known by."""
    return tuple(row[name] for name in KEY)


def _read(path: Path) -> list[Row]:
    """Return the rows of a file; its last line is left out if a run was killed while it wrote it. Raises UsageError."""
    lines = read_bytes(path).split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line, parse_constant=_no_constant) if line else None
        except ValueError as error:
            if number == len(lines):
                break
            raise UsageError(f"{path}, line {number}: not JSON: remove the line, or choose another folder") from error
        if row is not None and not _is_row(row):
            raise UsageError(f"{path}, line {number}: not a row of `codec evaluate`: choose another folder")
        rows += [] if row is None else [row]
    return rows


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in FIELDS.items())


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _line(row: Row) -> str:
    return json_text(row, allow_nan=False) + "\n"


def json_text(value: Any, **options: Any) -> str:
    """Return JSON that UTF-8 can hold: in ASCII where the name of a file has bytes that are no UTF-8."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return json.dumps(value, **options) if any("\ud800" <= c <= "\udfff" for c in text) else text
