"""Where the files of a batch lie: local paths, and URLs of fsspec (s3://, gs://, memory://, …). Nothing is half written.

A place is a text: an absolute local path, or a URL without the last slash. Local files go through ``codec.files``. Object
stores show a file when it is closed; elsewhere it is written under a temporary name first.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec

from bitstream.errors import CodecError, ImageError, UsageError, WriteError
from codec.files import walk_files, write_atomic

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # of this package, for schemes
# Whose files appear when they are closed, or are put there by one call.
_ATOMIC = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "memory"}
_ONE_PROCESS = {"memory"}  # no other process sees what these hold


def is_url(text: str) -> bool:
    """Return whether a text is a URL, not a path."""
    return _URL.match(text) is not None


def place_of(text: str | os.PathLike[str]) -> str:
    """Return the place that a path or URL names. Raises UsageError for chained URLs."""
    text = os.fspath(text)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if not is_url(text):
        return os.path.abspath(text)
    if "::" in text:
        raise UsageError(f"{text}: chained URLs are not supported: unpack the archive first")
    return text.rstrip("/")


def join(place: str, name: str) -> str:
    """Return the place of a name with slashes below another place."""
    return f"{place}/{name}" if is_url(place) else os.path.join(place, *name.split("/"))


def scheme(place: str) -> str:
    """Return the scheme of a URL in small letters, "" of a local path."""
    return place.split("://", 1)[0].lower() if is_url(place) else ""


def is_of_one_process(place: str) -> bool:
    """Return whether only the process that wrote a place can read it."""
    return scheme(place) in _ONE_PROCESS


def find(root: str) -> dict[str, int | None]:
    """Return the names of the files below a place, sorted, with slashes, and their bytes; local ones that are not hidden.

    Raises UsageError if it is none, or cannot be searched.
    """
    if is_url(root):
        filesystem, path = _filesystem(root)
        with _said(root, "listed", UsageError):
            filesystem.invalidate_cache()  # other processes have written since
            found = filesystem.find(path, detail=True)
        sizes = {name[len(path) :].lstrip("/"): info.get("size") for name, info in found.items()}
        return dict(sorted((name, size) for name, size in sizes.items() if name))
    if not os.path.isdir(root):
        raise UsageError(f"{root}: no such folder")
    return dict(sorted(_walk(root)))


def _walk(root: str) -> Iterator[tuple[str, int]]:
    for path in walk_files(root):
        with contextlib.suppress(OSError):  # it has gone
            yield Path(path).relative_to(root).as_posix(), os.stat(path).st_size


def sizes(root: str, names: Iterable[str]) -> dict[str, int | None]:
    """Return the bytes of those files of these names that exist below a place, which may not exist itself."""
    if is_url(root):
        try:
            found = find(root)
        except UsageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return {}
            raise
        return {name: found[name] for name in names if name in found}
    there: dict[str, int | None] = {}
    for name in names:
        with contextlib.suppress(OSError):
            there[name] = os.stat(join(root, name)).st_size
    return there


@contextlib.contextmanager
def fetched(place: str) -> Iterator[Path]:
    """Give a local path of a file for the time of a block: its own, or that of a copy with the same suffix.

    Raises ImageError if it cannot be fetched, UsageError if what its scheme needs is not installed.
    """
    if not is_url(place):
        if os.path.exists(place) and not os.path.isfile(place):
            raise ImageError(f"{place}: a folder, pipe or device, expected a file")
        yield Path(place)
        return
    filesystem, path = _filesystem(place)
    with tempfile.TemporaryDirectory(prefix="codec-") as folder:
        local = Path(folder, "file" + posixpath.splitext(place.split("?", 1)[0])[1])
        with _said(place, "read", ImageError):
            filesystem.get_file(path, str(local))
        yield local


def read(place: str) -> bytes | None:
    """Return the bytes of a file, None if there is none. Raises ImageError if it cannot be read."""
    try:
        with fetched(place) as path:
            return path.read_bytes()
    except FileNotFoundError:
        return None
    except ImageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    except OSError as error:
        raise ImageError(f"{place}: cannot be read ({error.strerror})") from error


def write(place: str, data: bytes, *, overwrite: bool) -> None:
    """Write a file, whole or not at all; folders are made. A file of the same bytes counts as written.

    Such a file is there if a run was killed before it could note it. Raises UsageError if there is another file and
    ``overwrite`` is false, WriteError if it cannot be written.
    """
    if not overwrite and (old := read(place)) is not None:
        if old != data:
            raise UsageError(f"{place} exists and is not what these options make: give -f (overwrite=True) to replace it")
        return
    if is_url(place):
        _write_remote(place, data)
        return
    try:
        os.makedirs(os.path.dirname(place), exist_ok=True)
    except OSError as error:
        raise WriteError(f"{place}: its folder cannot be made ({error.strerror})") from error
    write_atomic(place, data, overwrite=overwrite)


def _write_remote(place: str, data: bytes) -> None:
    filesystem, path = _filesystem(place)
    with _said(place, "written", WriteError):
        if scheme(place) in _ATOMIC:
            filesystem.pipe_file(path, data)
            return
        folder = posixpath.dirname(path)
        temporary = f"{folder}/.codec-{secrets.token_hex(8)}.partial"
        filesystem.makedirs(folder, exist_ok=True)
        try:
            filesystem.pipe_file(temporary, data)
            _rename(filesystem, temporary, path)
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong first is what counts
                filesystem.rm_file(temporary)
            raise


def _rename(filesystem: Any, temporary: str, path: str) -> None:
    """Give a file its name, in place of another one, which is moved aside where a store cannot replace."""
    if set("*?[") & set(path):
        filesystem.cp_file(temporary, path)  # unlike ``mv`` it takes names as they are
        filesystem.rm_file(temporary)
        return
    try:
        filesystem.mv(temporary, path)
    except Exception:
        if not filesystem.exists(path):
            raise
    filesystem.invalidate_cache()
    if not filesystem.exists(temporary):
        return
    aside = f"{temporary}.old"  # smb says that it does not replace, webhdfs does not: the old file makes room
    filesystem.mv(path, aside)
    try:
        filesystem.mv(temporary, path)
    except BaseException:
        filesystem.mv(aside, path)
        raise
    filesystem.rm_file(aside)


def _filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL and the path in it. Raises UsageError."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = _EXTRAS.get(scheme(url))
        cure = f"pip install 'learned-image-codec[{extra}]'" if extra else str(error)
        raise UsageError(f"{url}: {scheme(url)}:// needs a package that is not installed: {cure}") from error
    except ValueError as error:
        raise UsageError(f"{url}: {error}: expected a path, or a URL that fsspec knows") from error
    return filesystem, path


@contextlib.contextmanager
def _said(url: str, done: str, kind: type[CodecError]) -> Iterator[None]:
    """Turn whatever a file system raises into an error of ours: those of all clouds have no common root."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n", 1)[0] or type(error).__name__
        raise kind(f"{url}: cannot be {done} ({reason})") from error
