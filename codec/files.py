"""Files appear whole or not at all; what is read has a limit."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import BinaryIO, TypeAlias

from bitstream.errors import UsageError, WriteError
from bitstream.limits import Limits

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

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
        temporary = _temporary_beside(real)
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
    """Raise UsageError or WriteError if ``write_atomic`` could not write here; called before the work is done."""
    if not isinstance(path, str | PathLike):
        raise UsageError(f"the target is of type {type(path).__name__}, expected a path")
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
        check_folder(os.path.dirname(os.path.realpath(target)), target)
    except OSError as error:
        raise UsageError(f"{target}: not a usable file name ({error.strerror})") from error


def check_folder(folder: str, target: Path | None = None) -> None:
    """Raise WriteError unless a file, the ``target``, can be created in a folder; one is, if the system says it cannot."""
    if os.access(folder, os.W_OK | os.X_OK):
        return
    temporary = _temporary_beside(Path(folder, "x"))
    try:
        _create(temporary, None).close()
        os.unlink(temporary)
    except OSError as error:
        raise WriteError(f"{target or folder}: cannot be written ({error.strerror})") from error


def _temporary_beside(target: Path) -> Path:
    return target.with_name(f".codec-{secrets.token_hex(8)}.partial")  # short: the target's may have all 255 bytes


def check_not_source(target: str | PathLike[str], sources: Iterable[str | PathLike[str]]) -> None:
    """Raise UsageError if a target is one of the sources: it would be lost."""
    if any(isinstance(source, str | PathLike) and _is_same(source, target) for source in sources):
        raise UsageError(f"{target} is the source too and would be lost: give another name")


def _is_same(a: str | PathLike[str], b: str | PathLike[str]) -> bool:
    """Return whether two names are of one file, also where the system does not tell small letters from large ones."""
    try:
        return os.path.samefile(a, b) and (
            os.path.realpath(a) == os.path.realpath(b) or os.name == "nt" or sys.platform == "darwin"
        )
    except (OSError, ValueError):  # one is not there
        return False


def open_bytes(path: str | PathLike[str], *, limits: Limits | None = None) -> BinaryIO:
    """Open a file for reading, seekable: a pipe or device is read at once, up to the limit of bytes.

    Raises UsageError if it cannot be, LimitError if it is larger than ``limits`` allow.
    """
    limits = limits or Limits()
    if not isinstance(path, str | PathLike):
        raise UsageError(f"the source is of type {type(path).__name__}, expected a path")
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


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Do something in a folder while no other process does it there. Raises UsageError if it cannot be read."""
    descriptor = lock_folder(folder, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def lock_folder(folder: Path, *, wait: bool = False) -> int | None:
    """Lock a folder until the descriptor is closed or the process dies; None where that does not exist.

    Raises UsageError if another has it, unless it shall ``wait``.
    """
    with _unreadable(folder):
        descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    return _lock(descriptor, wait, f"{folder}: another run is writing there: wait for it, or choose another folder")


@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Be the only process that writes a file for hours, by a lock beside it. Raises UsageError if there is one, WriteError."""
    check_target(path, overwrite=True)
    beside = path.with_name(f".{path.name}.lock")
    try:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666) if fcntl else None
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror}): choose another place") from error
    refusal = f"{path}: another process is writing it: wait for it, or choose another name"
    descriptor = _lock(descriptor, False, refusal)
    try:
        if descriptor is not None and not _is_open(descriptor, beside):  # who had it has removed it meanwhile
            raise UsageError(refusal)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(beside)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _is_open(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _lock(descriptor: int | None, wait: bool, refusal: str) -> int | None:
    """Lock an open file or folder; return its descriptor, None where there are no locks. Raises UsageError if it is taken."""
    if descriptor is None or fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # some network drives have no locks
            return None
        raise UsageError(refusal) from error
    return descriptor
