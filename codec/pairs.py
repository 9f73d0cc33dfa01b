"""Which file becomes which: sources and targets of a command that takes many, all settled before any work. Opens no picture.

A file keeps its name but for the last suffix; one that was found in a folder keeps its place below it too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from bitstream.errors import UsageError
from bitstream.header import SIGNATURE
from codec.files import check_folder, check_target, walk_files

STREAM = "-"  # stdin as a source, stdout as a target
SUFFIX = ".lic"


class Pair(NamedTuple):
    """A source and the target that is made of it: paths as the caller wrote them, or "-"."""

    source: str
    target: str


def is_coded(path: str) -> bool:
    """Return whether a file of a folder is ours: by its suffix, then a damaged one counts too, or by its first bytes."""
    if path.lower().endswith(SUFFIX):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False


def is_picture(path: str) -> bool:
    """Return whether a file of a folder is a picture, by its suffix."""
    from codec.images import SUFFIXES

    return os.path.splitext(path)[1].lower() in SUFFIXES


def single_pair(paths: Sequence[str]) -> Pair:
    """Return the pair of a command line SOURCE TARGET. Raises UsageError with the way to give several."""
    if len(paths) != 2:
        given = "1 path is" if len(paths) == 1 else f"{len(paths)} paths are"
        raise UsageError(f"{given} given, expected SOURCE TARGET: for several sources give -o DIR")
    source, target = paths
    if source != STREAM and os.path.isdir(source):
        raise UsageError(f"{source} is a folder: give --recursive and -o DIR")
    if target != STREAM and (os.path.isdir(target) or target.endswith(_separators())):
        raise UsageError(f"{target} is a folder, expected a file name: to write into it give -o {target}")
    return Pair(source, target)


def many_pairs(
    paths: Sequence[str], out: str, *, suffix: str, recursive: bool, wanted: Callable[[str], bool] = is_picture,
    others: Counter[str] | None = None,
) -> list[Pair]:  # fmt: skip
    """Return a pair for each path, and with ``recursive`` for each ``wanted`` file below those that are folders.

    Hidden files and folders below a folder are left out, links to folders are not followed; ``others`` counts the files that
    are not wanted, by their suffix in small letters. Raises UsageError for a path that is not there, a folder that is not to be
    searched or has nothing, and for two sources that would get one target.
    """
    _check_out(out, suffix)
    pairs: dict[str, Pair] = {}
    for path in paths:
        for source, name in _sources(path, recursive, wanted, others):
            target = os.path.join(out, os.path.splitext(name)[0] + suffix)
            if target in pairs:
                raise UsageError(
                    f"{pairs[target].source} and {source} would both become {target}: rename one, or give it an -o of its own"
                )
            pairs[target] = Pair(source, target)
    return list(pairs.values())


def check_pairs(pairs: Sequence[Pair], *, overwrite: bool, skip_existing: bool) -> None:
    """Raise UsageError if a target could not be written, is there already, or is a source: called before the work is done."""
    sources = {os.path.realpath(pair.source) for pair in pairs} if overwrite else set()
    for folder in dict.fromkeys(os.path.dirname(pair.target) for pair in pairs):
        while folder and not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        if folder and not os.path.isdir(folder):
            raise UsageError(f"{folder} is not a folder: give another -o DIR")
        check_folder(folder or os.curdir)
    present = [pair for pair in pairs if os.path.lexists(pair.target)]
    for pair in present:
        check_target(pair.target, overwrite=True)
        if os.path.realpath(pair.target) in sources:
            raise UsageError(f"{pair.target} is a source too and would be lost: give another -o DIR or --suffix")
    if present and not overwrite and not skip_existing:
        more = f" (and {len(present) - 1} more)" if len(present) > 1 else ""
        raise UsageError(f"{present[0].target}{more} exists: give -f to replace it, or --skip-existing to keep it")


def _separators() -> tuple[str, ...]:
    return (os.sep, os.altsep) if os.altsep else (os.sep,)


def _check_out(out: str, suffix: str) -> None:
    if out in ("", STREAM):
        raise UsageError(f"-o is {out!r}, expected a folder: for stdout give SOURCE - instead")
    if not suffix.lstrip(".") or "." not in suffix or any(c in suffix for c in (*_separators(), "\0")):
        raise UsageError(f"suffix is {suffix!r}, expected the end of a file name, with a dot: for example {SUFFIX}")


def _sources(
    path: str, recursive: bool, wanted: Callable[[str], bool], others: Counter[str] | None
) -> Iterator[tuple[str, str]]:
    """Yield the files that a path stands for, each with its name below the folder of targets."""
    if path == STREAM:
        raise UsageError("stdin has no name that a file below -o could get: give - TARGET")
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise UsageError(f"{path}: no such file")
        yield path, os.path.basename(path)
        return
    if not recursive:
        raise UsageError(f"{path} is a folder: give --recursive to take what is below it")
    found = False
    for source in walk_files(path):
        if wanted(source):
            found = True
            yield source, os.path.relpath(source, path)
        elif others is not None:
            others[os.path.splitext(source)[1].lower()] += 1
    if not found:
        raise UsageError(f"{path}: no files of the expected kind are below it: name them one by one")
