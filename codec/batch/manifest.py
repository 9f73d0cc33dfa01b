"""What has been done: a JSON line for each picture, DST/manifest.jsonl, from which a later run goes on.

A row has source and target (its name below DST), source_bytes, target_bytes, width, height, bpp (of the .lic file), seconds,
status, error (one sentence, else null), model, model_id, settings, fingerprint (of settings and weights), and, where they
exist, psnr_db (null: infinite) and warnings. The status is "done", "failed", or "outdated": a file is there, but shall be made
again, with other options or because the picture was edited. A row that failed has "outdated": true if such a file is there.

Only the parent writes, one line by one call. The file is written anew, whole or not at all, when a run begins and when it ends
in any way but by SIGKILL: then each picture has one line. In between, the line of a picture that was outdated is followed by
its new one, which counts; no picture is ever "done" twice. Object stores cannot append: there the file is written anew now and
then.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from bitstream.errors import UsageError, WriteError
from codec.batch import storage
from codec.files import lock_folder

Row = dict[str, Any]

ROW_HEAD = b'{"source": "'  # what every line begins with
NAME = "manifest.jsonl"
DONE, FAILED, OUTDATED = "done", "failed", "outdated"
REMOTE_S = 10.0  # between writings to an object store, and at least
REMOTE_SHARE = 20  # times as long as one takes


class Manifest:
    """The rows by the target's name. As a context it is read; its folder and ``target`` are locked (where the system can)."""

    def __init__(self, place: str, target: str = "") -> None:
        self.place, self._target = place, target
        self.rows: dict[str, Row] = {}
        self._file: BinaryIO | None = None
        self._locks: list[int] = []
        self._begun, self._written, self._cost = False, 0.0, 0.0

    def __enter__(self) -> Manifest:
        """Lock the folders and read the rows. Raises UsageError if another run writes there, or the file is not a manifest."""
        try:
            for folder in self._folders():
                self._take(folder)
            self.rows = read(self.place)
        except BaseException:
            self._unlock()
            raise
        return self

    def _folders(self) -> list[str]:
        """Return the local folders that a run writes to: that of the targets, and the manifest's."""
        places = [self._target] if self._target else []
        places += [os.path.dirname(self.place)] if not storage.is_url(self.place) else []
        return list(dict.fromkeys(os.path.realpath(place) for place in places if not storage.is_url(place)))

    def _take(self, folder: str) -> None:
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder}: cannot be made a folder ({error.strerror})") from error
        lock = lock_folder(Path(folder))
        if lock is not None:
            self._locks.append(lock)

    def begin(self, rows: Iterable[Row]) -> None:
        """Write the file anew with these rows, and be ready to add to it."""
        self.rows = {row["target"]: row for row in rows}
        self._write_all()
        self._begun = True
        if not storage.is_url(self.place):
            try:
                self._file = open(self.place, "ab", buffering=0)
            except OSError as error:
                raise WriteError(f"{self.place}: cannot be written ({error.strerror})") from error

    def add(self, row: Row) -> None:
        """Keep a row; of a local manifest the system has it when this returns. Raises WriteError."""
        self.rows[row["target"]] = row
        if self._file is None:
            if time.monotonic() - self._written > max(REMOTE_S, REMOTE_SHARE * self._cost):
                self._write_all()
            return
        try:
            line = _line(row)
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise WriteError(f"{self.place}: cannot be written ({error.strerror}): make room and run again") from error

    def __exit__(self, *_: object) -> None:
        """If it was begun, write the file anew, a line for each picture, sorted by target; give the lock back."""
        try:
            if self._begun:
                self._close()
        finally:
            self._unlock()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._write_all()

    def _write_all(self) -> None:
        begin = time.monotonic()
        lines = [_line(self.rows[name]) for name in sorted(self.rows)]
        storage.write(self.place, b"".join(lines), overwrite=True)
        self._written = time.monotonic()
        self._cost = self._written - begin

    def _unlock(self) -> None:
        while self._locks:
            os.close(self._locks.pop())


def read(place: str) -> dict[str, Row]:
    """Return the rows of a manifest by target, the last of each; none if there is no file.

    A last line that was cut off when a run was killed is left out. Raises UsageError for what is not a manifest.
    """
    lines = (storage.read(place) or b"").split(b"\n")
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            if number == len(lines) and ROW_HEAD.startswith(line[: len(ROW_HEAD)]):
                break
            raise UsageError(f"{place}, line {number}: not JSON: remove the line, or name another --manifest") from error
        if row is not None:
            if not _is_row(row):
                raise UsageError(f"{place}, line {number}: not a row of `codec batch`: name another --manifest")
            rows[row["target"]] = row
    return rows


def _is_row(row: Any) -> bool:
    texts = ("source", "target", "status", "fingerprint")
    return isinstance(row, dict) and all(isinstance(row.get(key), str) for key in texts)


def _line(row: Row) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is not Unicode
        return json.dumps(row, allow_nan=False).encode() + b"\n"
