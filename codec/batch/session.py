"""A run of a batch: what is to do, who does it, what the manifest says of it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import PurePath
from typing import Any

from bitstream.errors import UsageError
from codec.batch import storage
from codec.batch.items import LIC, Item, find_items, listed_items
from codec.batch.manifest import DONE, NAME, OUTDATED, Manifest, Row
from codec.batch.options import Options
from codec.images import SUFFIXES
from codec.machine import available_memory, usable_cores

ENGINES = ("local", "ray")
WORKER_BYTES = 2**30  # of memory, that a process of the default number has for itself

Progress = Callable[[int, int, "Row | None"], None]


@dataclass
class Summary:
    """What a run did. ``done``, bytes and ``warned`` are of its own work, ``skipped`` had been done before.

    ``failures`` are the manifest rows of pictures that failed; ``warned`` counts those done with a warning, which their rows
    have; ``others`` counts the files of the source folder that were not taken, by their suffix.
    """

    manifest: str
    pictures: int = 0
    skipped: int = 0
    done: int = 0
    warned: int = 0
    source_bytes: int = 0
    target_bytes: int = 0
    seconds: float = 0.0
    failures: list[Row] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """Return the number of pictures that failed."""
        return len(self.failures)

    def count(self, row: Row) -> None:
        """Count a picture that is through."""
        if row["status"] != DONE:
            self.failures.append(row)
            return
        self.done += 1
        self.warned += "warnings" in row
        self.source_bytes += row["source_bytes"]
        self.target_bytes += row["target_bytes"]


def run(
    source: str | PathLike[str] | None, target: str | PathLike[str], *, listed: str | PathLike[str] | None = None,
    manifest: str | PathLike[str] | None = None, workers: int | None = None, engine: str = "local",
    ray_address: str | None = None, overwrite: bool = False, progress: Progress = lambda *_: None, **options: Any,
) -> Summary:  # fmt: skip
    """Encode all pictures of ``source`` into ``target``, or decode all .lic files; return what was done.

    ``source`` is a folder, a URL that fsspec knows or a list (.txt), ``target`` a folder or URL, whose names mirror the
    source's (``codec.batch.items``); ``listed`` is a list of any name, instead of ``source``. ``options`` are those of
    ``Codec.encode`` but ``progress`` and ``resume``, and ``psnr_report=True`` adds PSNR to the rows; or ``decode=True`` and
    ``suffix=".png"``; besides ``model``, ``device`` and ``limits``.

    ``manifest`` (target/manifest.jsonl, see ``codec.batch.manifest``) says what is done: pictures that are, with the same
    options and weights, are skipped if their target is there and neither file has changed its size. Others are done again, and
    their targets replaced. A target that the manifest does not know as made of this source is kept, and the picture fails,
    unless ``overwrite`` is true or it has the very bytes.

    ``workers`` processes (one a core, fewer where memory is short; 0: none but this one) of the ``engine`` "local", or actors
    of "ray" at ``ray_address``; spawned processes import the caller's script, which needs its ``if __name__ == "__main__":``.
    ``progress`` is called with the number of pictures that are through, of all that are to do, and the last one's row, or None
    at the start.

    What is wrong with one picture stops no other: it is in ``failures``. Raises UsageError and CheckpointError for what is
    wrong with all of them, WriteError if the manifest cannot be written.
    """
    begin = time.perf_counter()
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a spawned process imports the caller's script
        raise UsageError("a batch began while its own process started: call it below if __name__ == '__main__':")
    if engine not in ENGINES:
        raise UsageError(f"engine is {engine!r}, expected {' or '.join(ENGINES)}")
    least = 1 if engine == "ray" else 0
    if workers is not None and workers < least:
        raise UsageError(f"workers is {workers}, expected {least} or more")
    chosen = Options(**_checked(options)).resolved()
    others: Counter[str] = Counter()
    items = _items(source, target, listed, chosen, others)
    goal = storage.place_of(target)
    workers = _workers(items, workers, engine)
    book = Manifest(storage.join(goal, NAME) if manifest is None else storage.place_of(manifest), goal)
    summary = Summary(book.place, len(items), others=others)
    with book:
        todo, kept = _plan(items, book.rows, chosen, goal, overwrite)
        summary.skipped = len(items) - len(todo)
        book.begin(kept)
        progress(0, len(todo), None)
        with contextlib.closing(_rows(todo, chosen, workers, engine, ray_address)) as rows:
            for number, row in enumerate(rows, 1):
                book.add(_inherit(row, book.rows.get(row["target"])))
                summary.count(row)
                progress(number, len(todo), row)
    summary.seconds = time.perf_counter() - begin
    return summary


def _inherit(row: Row, before: Row | None) -> Row:
    """Let the row of a picture that failed know that an older file of it is there: a later run may replace it."""
    return row | {"outdated": True} if row["status"] != DONE and before is not None and _is_outdated(before) else row


def _is_outdated(row: Row) -> bool:
    return row["status"] == OUTDATED or row.get("outdated") is True


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    known = set(Options.__dataclass_fields__) - {"weights"}
    for name in options:
        if name not in known:
            raise UsageError(f"option {name!r} is not known: choose from {', '.join(sorted(known))}")
    return options


def _items(
    source: str | PathLike[str] | None, target: str | PathLike[str], listed: str | PathLike[str] | None, options: Options,
    others: Counter[str],
) -> list[Item]:  # fmt: skip
    if (source is None) == (listed is None):
        raise UsageError("give either a source or a list")
    suffix = options.suffix if options.decode else LIC
    if listed is not None or (PurePath(str(source)).suffix.lower() == ".txt" and not os.path.isdir(str(source))):
        return listed_items(str(source if listed is None else listed), str(target), suffix=suffix)
    suffixes = (LIC,) if options.decode else SUFFIXES
    return find_items(str(source), str(target), suffixes=suffixes, suffix=suffix, others=others)


def _workers(items: Sequence[Item], workers: int | None, engine: str) -> int | None:
    """Return the number of processes; 0 for places that no other process sees. Raises UsageError if more are asked for."""
    alone = next((p for i in items for p in (i.source, i.target) if storage.is_of_one_process(p)), None)
    if alone is None:
        return _default_workers() if workers is None and engine == "local" else workers
    if workers or engine != "local":
        raise UsageError(f"{alone} is seen by this process only: leave workers and engine away")
    return 0


def _default_workers() -> int:
    """Return one for each core, fewer where memory is short, as in a container."""
    free = available_memory()
    return usable_cores() if free is None else max(min(usable_cores(), free // WORKER_BYTES), 1)


def _plan(
    items: Sequence[Item], rows: dict[str, Row], options: Options, target: str, overwrite: bool
) -> tuple[list[Item], list[Row]]:
    """Return the pictures that are to do, and the rows that the manifest begins with."""
    fingerprint, there = options.fingerprint(), storage.sizes(target, [item.name for item in items])
    todo, kept = [], dict(rows)
    sources = {item.source for item in items}
    for name, row in rows.items():
        if row["source"] in sources:
            del kept[name]  # it has another target now, or is put back here
    for item in items:
        old = rows.get(item.name)
        if old is not None and _is_done(old, item, options, fingerprint, there):
            kept[item.name] = old
            continue
        kept.pop(item.name, None)
        ours = False  # not what another source has become
        known = old is not None and old["source"] == item.source and (old["status"] == DONE or _is_outdated(old))
        if old is not None and known and item.name in there:
            kept[item.name], ours = old | {"status": OUTDATED}, True
        absent = storage.is_url(item.target) and item.name not in there  # each look would be a request
        todo.append(replace(item, overwrite=overwrite or ours or absent))
    return todo, list(kept.values())


def _is_done(row: Row, item: Item, options: Options, fingerprint: str, there: dict[str, int | None]) -> bool:
    same = row["status"] == DONE and row["source"] == item.source and row["fingerprint"] == fingerprint
    if not same or item.name not in there or (options.psnr_report and "psnr_db" not in row):
        return False
    sizes = ((there[item.name], row.get("target_bytes")), (item.size, row.get("source_bytes")))
    return all(now is None or now == before for now, before in sizes)


def _rows(
    items: Sequence[Item], options: Options, workers: int | None, engine: str, ray_address: str | None
) -> Generator[Row, None, None]:
    if not items:
        return
    if engine == "ray":
        from codec.batch import on_ray

        yield from on_ray.rows(items, options, workers, ray_address)
    elif workers == 0:
        from codec.batch import local

        yield from local.rows_here(items, options)
    else:
        from codec.batch import local

        yield from local.rows(items, options, workers or 1)
