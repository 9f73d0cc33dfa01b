"""Which rows are missing, and the processes that measure them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from bitstream.errors import CodecError, UsageError
from codec import images
from codec.evaluation.contenders import Contender, check_names
from codec.evaluation.rows import Row, RowStore, Source, machine_facts, measure

WAITING = 4  # points that each process has in its queue


class Point(NamedTuple):
    """What one row is made of."""

    contender: Contender
    source: Source
    quality: float


def plan(contenders: Sequence[Contender], sources: Sequence[Source], qualities: Sequence[float] | None) -> list[Point]:
    """Return all points, codec by codec; without qualities each codec has its own grid.

    Raises UsageError for a quality that a codec does not have, before anything is measured.
    """
    check_names(contenders)
    points = []
    for contender in contenders:
        grid = [float(quality) for quality in (contender.grid() if qualities is None else qualities)]
        for quality in grid:
            contender.facts(quality)
        points += [Point(contender, source, quality) for source in sources for quality in grid]
    return points


def missing(points: Sequence[Point], store: RowStore, metrics: Sequence[str]) -> list[Point]:
    """Return the points that have no row yet, or one of other weights, versions or settings."""
    out = []
    for contender, source, quality in points:
        wanted = {"codec": contender.name, "image": source.name, "crc": source.crc, "quality": quality}
        wanted |= {"identity": contender.identity, "settings": contender.facts(quality)["settings"]}
        if not store.has(wanted, metrics):
            out.append(Point(contender, source, quality))
    return out


def measured(points: Sequence[Point], metrics: Sequence[str], jobs: int, threads: int) -> Iterator[Row]:
    """Measure points in so many processes of so many threads each, and give each row when it is there.

    Raises CodecError of the first point that cannot be measured, UsageError if a process dies.
    """
    if jobs == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for contender, source, quality in points:
                yield _row(contender, source, quality, metrics) | machine_facts(threads, jobs)
        finally:
            torch.set_num_threads(before)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,))
    try:
        for row in _in_order_of_arrival(pool, points, metrics, jobs):
            yield row | machine_facts(threads, jobs)
    except BrokenProcessPool as error:
        raise UsageError(
            "a process died (killed, or out of memory): run the command again to go on, with fewer --jobs"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order_of_arrival(
    pool: ProcessPoolExecutor, points: Sequence[Point], metrics: Sequence[str], jobs: int
) -> Iterator[Row]:
    rest = iter(points)
    waiting: set[Future[Row]] = set()
    while True:
        for point in rest:
            waiting.add(pool.submit(_row, *point, metrics))
            if len(waiting) >= jobs * WAITING:
                break
        if not waiting:
            return
        done = next(as_completed(waiting))
        waiting.remove(done)
        yield done.result()


@lru_cache(maxsize=1)
def _picture(source: Source) -> images.Picture:
    return images.load(source.path)


_warm: set[tuple[str, int, int]] = set()  # codecs and the sides of pictures that this process has seen


def _warm_up(contender: Contender, height: int, width: int) -> None:
    """Run a codec once on a picture of these sides: the first call loads weights, builds, allocates."""
    if (contender.name, height, width) in _warm:
        return
    _warm.add((contender.name, height, width))
    blank = np.full((height, width, 3), 128, np.uint8)
    contender.decode(contender.encode(images.Picture(blank, gray=False), contender.grid()[0]))


def _row(contender: Contender, source: Source, quality: float, metrics: Sequence[str]) -> Row:
    picture = _picture(source)
    try:
        _warm_up(contender, *picture.pixels.shape[:2])
        return measure(contender, source, picture, quality, metrics)
    except CodecError as error:
        raise type(error)(f"{source.path}, {contender.name} at quality {quality:g}: {error}") from error


def run(
    points: Sequence[Point], store: RowStore, metrics: Sequence[str], jobs: int, threads: int, tell: Callable[[Row], None]
) -> None:
    """Measure points into a store; ``tell`` is called after each row."""
    store.begin()
    try:
        for row in measured(points, metrics, jobs, threads):
            store.add(row)
            tell(row)
    finally:
        store.close()
