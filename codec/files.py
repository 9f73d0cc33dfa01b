"""Files appear whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from bitstream.errors import UsageError, WriteError
from bitstream.limits import Limits

_EXISTS = "{} exists: give -f (overwrite=True) to replace it"


def write_atomic(path: str | PathLike[str], data: bytes, *, overwrite: bool = False) -> None:
    """Write to a temporary name in the same folder, then give it the name; on any error nothing is left.

    Who is killed outright may leave ``.NAME.*.partial``. Raises UsageError if the file exists, or has appeared meanwhile, and
    ``overwrite`` is false; WriteError if the disk is full or the folder cannot be written.
    """
    target = Path(path)
    check_target(target, overwrite=overwrite)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a crash of the machine can keep the new name and lose the bytes; some 5 ms
        if overwrite:
            os.replace(temporary, target)
        else:
            _give_name(temporary, target)
    except OSError as error:
        raise WriteError(f"{target}: cannot be written ({error.strerror})") from error
    finally:
        with contextlib.suppress(OSError):  # on success it is gone, or a second name of the target
            os.unlink(temporary)


def _give_name(temporary: Path, target: Path) -> None:
    """Rename without replacing a file that has appeared since ``check_target``. Raises UsageError if there is one."""
    try:
        os.link(temporary, target)  # unlike a rename it fails if the name is taken
    except FileExistsError as error:
        raise UsageError(_EXISTS.format(target)) from error
    except (OSError, AttributeError):  # FAT, some network drives: no hard links
        check_target(target, overwrite=False)
        os.rename(temporary, target)  # Windows refuses to replace; elsewhere some microseconds stay open to a race


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
            raise UsageError(_EXISTS.format(target))
    except OSError as error:
        raise UsageError(f"{target}: not a usable file name ({error.strerror})") from error


def open_bytes(path: str | PathLike[str], *, limits: Limits | None = None) -> BinaryIO:
    """Open a file for reading, seekable: a pipe or device is read at once, up to the limit of bytes.

    Raises UsageError if it cannot be, LimitError if it is larger than ``limits`` allow.
    """
    limits = limits or Limits()
    try:
        file = open(path, "rb")
        if Path(path).is_file():
            limits.check_bytes(os.fstat(file.fileno()).st_size)
            return file
        with file:
            data = file.read(limits.max_memory + 1)
        limits.check_bytes(len(data))
        return io.BytesIO(data)
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def read_bytes(path: str | PathLike[str], *, limits: Limits | None = None) -> bytes:
    """Return the bytes of a file. Raises what ``open_bytes`` raises."""
    with open_bytes(path, limits=limits) as file:
        return file.read()
