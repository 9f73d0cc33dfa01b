"""Files appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from bitstream.errors import UsageError
from bitstream.limits import Limits


def write_atomic(path: str | PathLike[str], data: bytes, *, overwrite: bool = False) -> None:
    """Write to a temporary name in the same folder, then rename; on any error nothing is left.

    Raises UsageError if the file exists and ``overwrite`` is false, or if the folder cannot be written.
    """
    target = Path(path)
    check_target(target, overwrite=overwrite)
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({error.strerror})") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def check_target(path: str | PathLike[str], *, overwrite: bool) -> None:
    """Raise UsageError if ``write_atomic`` could not write here; called before the work is done."""
    target = Path(path)
    try:
        if target.is_dir():
            raise UsageError(f"{target} is a folder, expected a file name")
        if not target.parent.is_dir():
            raise UsageError(f"{target.parent} is not a folder: create it first")
        if target.exists() and not target.is_file():
            raise UsageError(f"{target} is a device or pipe, expected a file name")
        if target.exists() and not overwrite:
            raise UsageError(f"{target} exists: give -f (overwrite=True) to replace it")
    except OSError as error:
        raise UsageError(f"{target}: not a usable file name ({error.strerror})") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def open_bytes(path: str | PathLike[str]) -> BinaryIO:
    """Open a file for reading. Raises UsageError if it cannot be, or if it is no regular file."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise UsageError(f"{path}: cannot be read (it is a folder, device or pipe): give the name of a file")
        return Path(path).open("rb")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error


def read_bytes(path: str | PathLike[str], *, limits: Limits | None = None) -> bytes:
    """Return the bytes of a file. Raises UsageError if it cannot be read, LimitError if it is larger than ``limits`` allow."""
    try:
        (limits or Limits()).check_bytes(Path(path).stat().st_size)
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
