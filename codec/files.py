"""Files appear whole or not at all; what is read has a limit."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import BinaryIO, TypeAlias

from bitstream.errors import UsageError, WriteError
from bitstream.limits import Limits

Bytes: TypeAlias = bytes | bytearray | memoryview

_PIECE = 2**20  # bytes; asked for all at once, Python would allocate the limit
_EXISTS = "{} exists: give -f (overwrite=True) to replace it"


def write_atomic(path: str | PathLike[str], data: bytes, *, overwrite: bool = False) -> None:
    """Write to a temporary name in the same folder, then give it the name; on any error nothing is left.

    A file that is overwritten keeps its permission bits, and its owner where we may set it; a link is written through. Who is
    killed outright may leave ``.codec-*.partial``. Raises UsageError if the file exists, or has appeared meanwhile, and
    ``overwrite`` is false; WriteError if the disk is full or the folder cannot be written.
    """
    target = Path(path)
    check_target(target, overwrite=overwrite)
    temporary: Path | None = None
    try:
        real = Path(os.path.realpath(target, strict=True)) if overwrite and target.is_symlink() else target
        temporary = real.with_name(f".codec-{secrets.token_hex(8)}.partial")  # short: the target's may have all 255 bytes
        old = os.stat(real) if overwrite and real.exists() else None
        with _create(temporary, old) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a crash of the machine can keep the new name and lose the bytes; some 5 ms
        if overwrite:
            os.replace(temporary, real)
        else:
            _give_name(temporary, target)
    except OSError as error:
        raise WriteError(f"{target}: cannot be written ({error.strerror})") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # on success it is gone, or a second name of the target
                os.unlink(temporary)


def _create(path: Path, old: os.stat_result | None) -> BinaryIO:
    """Create an empty file, with the permissions of the one it will replace; never with wider ones, not for a moment."""
    file = open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o666 if old is None else 0o600))
    if old is not None:
        with contextlib.suppress(OSError, AttributeError):  # only root gives files away; Windows has no owners
            os.chown(path, old.st_uid, old.st_gid)
        with contextlib.suppress(OSError):  # FAT, some network drives: one mode for all files
            os.chmod(path, stat.S_IMODE(old.st_mode) & 0o777)
    return file


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
    if "\0" in str(target):
        raise UsageError(f"{str(target)!r}: not a usable file name (it has a NUL)")
    try:
        if target.is_dir():
            raise UsageError(f"{target} is a folder, expected a file name")
        if not target.parent.is_dir():
            raise UsageError(f"{target.parent} is not a folder: create it first")
        if target.is_symlink() and not target.exists():
            raise UsageError(f"{target} is a link to a file that is not there: remove the link first")
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
    with _unreadable(path), contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode):
            limits.check_bytes(status.st_size)
            stack.pop_all()  # stays open
            return file
        return io.BytesIO(read_stream(file, limits))


def read_stream(file: BinaryIO, limits: Limits) -> bytes:
    """Return all of what has no size before it is read: a pipe, stdin. Raises LimitError as soon as it is too large."""
    data = bytearray()
    while piece := file.read(min(_PIECE, limits.max_memory + 1 - len(data))):  # a pipe gives all that is asked for, or waits
        data += piece
        limits.check_bytes(len(data))
    return bytes(data)


def read_bytes(path: str | PathLike[str], *, limits: Limits | None = None) -> bytes:
    """Return the bytes of a file. Raises what ``open_bytes`` raises."""
    with open_bytes(path, limits=limits) as file, _unreadable(path):
        return file.read()


def bytes_of(data_or_path: Bytes | str | PathLike[str], *, limits: Limits | None = None) -> bytes:
    """Return bytes as they are, or those of the file at a path. Raises what ``open_bytes`` raises, UsageError for neither."""
    if isinstance(data_or_path, bytes | bytearray | memoryview):
        return bytes(data_or_path)
    if not isinstance(data_or_path, str | PathLike):
        raise UsageError(f"this is of type {type(data_or_path).__name__}, expected the bytes of a file or its path")
    return read_bytes(data_or_path, limits=limits)


@contextlib.contextmanager
def _unreadable(path: str | PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong in reading a file into a UsageError."""
    try:
        yield
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def walk_files(folder: str | PathLike[str]) -> Iterator[str]:
    """Yield the regular files below a folder, in order of their names, hidden ones left out. Raises UsageError."""

    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename}: cannot be read ({error.strerror})") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and os.path.isfile(os.path.join(place, name)):
                yield os.path.join(place, name)


def lock_folder(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed or the process dies; None where that does not exist. Raises UsageError."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    with _unreadable(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # some network drives have no locks
            return None
        raise UsageError(f"{folder}: another run is writing there: wait for it, or choose another folder") from error
    return descriptor
