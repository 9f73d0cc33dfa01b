"""Which rows are missing, and the processes that measure them."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from bitstream.errors import CodecError, is_out_of_memory
from codec import images
from codec.evaluation.contenders import Contender, check_names
from codec.evaluation.peers import limit_decoders
from codec.evaluation.rows import Row, RowStore, Source, machine_facts, measure
from codec.processes import end_with_parent, no_interrupts, release_interrupts

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


def measured(points: Sequence[Point], metrics: Sequence[str], jobs: int, threads: int) -> Iterator[Row | CodecError]:
    """Measure points in so many processes of so many threads each; give each row when it is there.

    A point that cannot be measured gives its error. Raises CodecError if a process dies.
    """
    if jobs == 1:
        before = torch.get_num_threads()
        _use(threads)
        try:
            for point in points:
                yield _row(point, metrics, threads, jobs)
        finally:
            _use(before)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_process, initargs=(threads,))
    try:
        yield from _in_order_of_arrival(pool, points, metrics, jobs, threads)
    except BrokenProcessPool as error:
        raise CodecError("a process died (killed, or out of memory): run again to go on, with fewer --jobs") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order_of_arrival(
    pool: ProcessPoolExecutor, points: Sequence[Point], metrics: Sequence[str], jobs: int, threads: int
) -> Iterator[Row | CodecError]:
    rest = iter(points)
    waiting: set[Future[Row | CodecError]] = set()
    while True:
        for point in rest:
            with no_interrupts():  # a process may start here
                waiting.add(pool.submit(_row, point, metrics, threads, jobs))
            if len(waiting) >= jobs * WAITING:
                break
        if not waiting:
            return
        done = next(as_completed(waiting))
        waiting.remove(done)
        yield done.result()


def _use(threads: int) -> None:
    torch.set_num_threads(threads)
    limit_decoders(threads)


def _begin_process(threads: int) -> None:
    """Prepare a process of the pool; it ends when the one that made it dies, in whatever way, and by Ctrl-C at once."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback: the parent says it
    release_interrupts()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch's own modules
    end_with_parent()
    _use(threads)


@lru_cache(maxsize=1)
def _picture(source: Source) -> images.Picture:
    return images.load(source.path).bare


_warm: set[tuple[str, int, int]] = set()  # codecs and the sides of pictures that this process has seen


def _warm_up(contender: Contender, height: int, width: int, quality: float) -> None:
    """Run a codec once on a picture of these sides: the first call loads weights, builds, allocates."""
    if (contender.name, height, width) in _warm:
        return
    blank = np.full((height, width, 3), 128, np.uint8)
    contender.decode(contender.encode(images.Picture(blank, gray=False), quality))
    _warm.add((contender.name, height, width))


def _row(point: Point, metrics: Sequence[str], threads: int, jobs: int) -> Row | CodecError:
    contender, source, quality = point
    try:
        picture = _picture(source)
        height, width, _ = picture.pixels.shape
        _warm_up(contender, height, width, quality)
        return measure(contender, source, picture, quality, metrics) | machine_facts(contender.device, threads, jobs)
    except CodecError as error:
        return type(error)(f"{source.path}: {error}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return CodecError(f"{source.path}: out of memory with {contender.name}: leave one of them away")


def run(
    points: Sequence[Point], store: RowStore, metrics: Sequence[str], jobs: int, threads: int, tell: Callable[[], None]
) -> list[str]:
    """Measure points into a store; ``tell`` is called after each. Return why points could not be measured, each reason once."""
    failures: dict[str, None] = {}
    store.begin()
    try:
        for row in measured(points, metrics, jobs, threads):
            if isinstance(row, CodecError):
                failures[str(row)] = None
            else:
                store.add(row)
            tell()
    finally:
        store.close()
    return list(failures)
