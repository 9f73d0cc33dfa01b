"""Which pictures a batch has, and what their files are called.

Names mirror the source: what lies at SRC/a/b.png goes to DST/a/b.lic. Of a list, a relative path keeps its name, an absolute
one loses its root, a URL its scheme: /data/a.png goes to DST/data/a.lic, s3://bucket/a.png to DST/bucket/a.lic. Where two
sources would get one name (a.png and a.jpg), both keep their whole name: a.png.lic and a.jpg.lic.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bitstream.errors import UsageError
from codec.batch import storage
from codec.batch.manifest import NAME as MANIFEST
from codec.images import SUFFIXES
from codec.pairs import SUFFIX as LIC


@dataclass(frozen=True)
class Item:
    """A picture: the places of its source and target, the target's name below DST, and the source's bytes if known.

    ``overwrite`` allows to replace a target that is there.
    """

    source: str
    target: str
    name: str
    size: int | None = None
    overwrite: bool = False


def find_items(
    source: str, target: str, *, suffixes: Iterable[str] = SUFFIXES, suffix: str = LIC, others: Counter[str] | None = None
) -> list[Item]:
    """Return the files of some suffixes below a place, those below ``target`` left out; targets get another suffix.

    ``others`` counts the files that are not taken, by their suffix in small letters ("" for none). Raises UsageError if there
    are none to take, or names cannot be told apart.
    """
    root, goal = storage.place_of(source), storage.place_of(target)
    wanted = set(suffixes)
    below = storage.join(goal, "") if goal.startswith(storage.join(root, "")) else None
    sources = []
    for name, size in storage.find(root).items():
        place, kind = storage.join(root, name), posixpath.splitext(name)[1].lower()
        if below is not None and place.startswith(below):
            continue
        if any(part.startswith(".") for part in name.split("/")):  # of a URL: a folder's are left out before
            continue
        if kind in wanted:
            sources.append((place, name, size))
        elif others is not None and posixpath.basename(name) != MANIFEST:
            others[kind] += 1
    if not sources:
        raise UsageError(f"{source}: no files ({', '.join(sorted(wanted))}) are below it")
    return _named(sources, goal, suffix)


def listed_items(path: str, target: str, *, suffix: str = LIC) -> list[Item]:
    """Return the files that a list names, one path or URL a line, each once. Relative paths begin at the current folder.

    Raises UsageError if the list cannot be read or is empty, or names cannot be told apart.
    """
    data = storage.read(storage.place_of(path))
    if data is None:
        raise UsageError(f"{path}: no such file")
    if b"\0" in data:
        raise UsageError(f"{path}: the list is not UTF-8 text: save it as UTF-8, one path or URL a line")
    lines = (os.fsdecode(line).strip("\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
    places = {storage.place_of(line): _listed_name(line) for line in lines if line.strip()}
    if not places:
        raise UsageError(f"{path}: the list is empty: give one path or URL a line")
    sources = [(place, name, _size(place)) for place, name in places.items()]
    return _named(sources, storage.place_of(target), suffix)


def _listed_name(line: str) -> str:
    if storage.is_url(line) and not line.startswith("file://"):
        if storage.scheme(line) in ("http", "https"):
            parts = urlsplit(line)  # the query is no part of the name
            line = f"{parts.netloc}{unquote(parts.path)}"
        return posixpath.normpath("/" + line.split("://", 1)[-1]).lstrip("/")
    path = os.path.normpath(line.removeprefix("file://"))
    if path.split(os.sep, 1)[0] == os.pardir:
        path = os.path.abspath(path)
    return Path(path).relative_to(Path(path).anchor).as_posix()


def _size(place: str) -> int | None:
    try:
        return None if storage.is_url(place) else os.stat(place).st_size
    except OSError:
        return None  # said when its turn comes


def _named(sources: list[tuple[str, str, int | None]], target: str, suffix: str) -> list[Item]:
    short = Counter(posixpath.splitext(name)[0] for _, name, _ in sources)
    items, taken = [], dict[str, str]()
    for place, name, size in sources:
        stem = posixpath.splitext(name)[0]
        goal = (stem if short[stem] == 1 else name) + suffix
        item = Item(place, storage.join(target, goal), goal, size)
        if goal in taken:
            raise UsageError(f"{taken[goal]} and {place} would both be {item.target}: rename one of them")
        if item.target == place:
            raise UsageError(f"{place} would replace itself: choose another folder or suffix")
        taken[goal] = place
        items.append(item)
    return items
