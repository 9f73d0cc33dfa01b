"""Processes of this machine that work on pictures. One that dies is replaced, and the picture it had is done again, alone.

The parent knows what each worker has, so nobody else is blamed. Workers are spawned (torch does not survive a fork), end with
their parent in whatever way it ends, and leave signals of the terminal to it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import FrameType

from bitstream.errors import CodecError, is_out_of_memory
from codec.batch import worker
from codec.batch.items import Item
from codec.batch.manifest import Row
from codec.batch.options import Options
from codec.batch.worker import Prepare, Process
from codec.processes import end_with_parent, no_interrupts, release_interrupts

MAX_FALSE_STARTS = 3  # workers in a row that die before they are ready
STOP_S = 10.0  # that workers have to end by themselves


def rows(
    items: Sequence[Item], options: Options, workers: int,
    *, prepare: Prepare = worker.prepare, process: Process = worker.process,
) -> Iterator[Row]:  # fmt: skip
    """Give the row of each picture when it is there, from so many processes.

    A picture whose worker died twice has failed. Raises what ``prepare`` raises, CodecError if workers cannot start.
    """
    crew = _Crew(items, options, prepare, process)
    try:
        yield from crew.run(min(workers, len(items)))
        crew.stop()
    finally:
        crew.kill()


def rows_here(items: Sequence[Item], options: Options) -> Iterator[Row]:
    """Give the rows of pictures that this process works on itself, with one thread of torch's."""
    import torch

    before = torch.get_num_threads()
    try:
        with warnings.catch_warnings():  # the filters are the caller's
            worker.prepare(options)
        for item in items:
            yield worker.process(item, options)
    finally:
        torch.set_num_threads(before)


class _Worker:
    """A process, our end of the pipe to it, and what it works on."""

    def __init__(self, options: Options, prepare: Prepare, process: Process) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.item: Item | None = None
        self.ready = False
        self.process = context.Process(target=_work, args=(theirs, options, prepare, process), daemon=True)
        with no_interrupts():
            self.process.start()
        theirs.close()  # now it closes when the worker dies

    def give(self, item: Item) -> bool:
        """Let an idle worker begin with a picture; return false if it has just died, as ``Crew`` will see."""
        try:
            self.pipe.send(item)
        except OSError:
            return False
        self.item = item
        return True


class _Crew:
    """The workers, the pictures that wait, and those that wait because their worker died."""

    def __init__(self, items: Sequence[Item], options: Options, prepare: Prepare, process: Process) -> None:
        self.options = options
        self._job = (options, prepare, process)
        self.waiting, self.suspects = deque(items), deque[Item]()
        self.deaths: Counter[str] = Counter()
        self.workers: list[_Worker] = []
        self.false_starts = 0

    def run(self, count: int) -> Iterator[Row]:
        """Give all rows."""
        self.workers += [_Worker(*self._job) for _ in range(count)]
        while self.waiting or self.suspects or any(w.item for w in self.workers):
            ready = wait([w.pipe for w in self.workers])
            heard = [self._hear(each) for each in list(self.workers) if each.pipe in ready]
            self._hand_out()  # before the rows: whoever takes them may take his time
            yield from (row for row in heard if row is not None)

    def _hear(self, each: _Worker) -> Row | None:
        """Take what a worker says, its death too; return the row of a picture that is through."""
        try:
            said = each.pipe.recv()
        except (EOFError, OSError):
            return self._bury(each)
        if isinstance(said, CodecError):
            raise said
        each.item, each.ready, self.false_starts = None, True, 0
        return said

    def _bury(self, dead: _Worker) -> Row | None:
        self.workers.remove(dead)
        dead.pipe.close()
        dead.process.join()
        how, item, row = _how(dead.process.exitcode), dead.item, None
        others = any(w.ready for w in self.workers)  # where these live, one that could not start is not tried again
        if not dead.ready and not others:
            self.false_starts += 1
            if self.false_starts >= MAX_FALSE_STARTS:
                cure = "give fewer --workers if memory is short; a script calls batch.run below if __name__ == '__main__':"
                raise CodecError(f"worker processes die while they start ({how}): {cure}")
        if item is not None:
            self.deaths[item.name] += 1
            if self.deaths[item.name] == worker.MAX_DEATHS:
                row = worker.dead_row(item, self.options, f"{how}, the second time alone")
            else:
                self.suspects.append(item)
        if (self.waiting or self.suspects) and (dead.ready or not others):
            self.workers.append(_Worker(*self._job))
        return row

    def _hand_out(self) -> None:
        """Give pictures to the idle; suspects come last, one at a time, with the machine for themselves."""
        for each in self.workers:
            if not each.ready or each.item is not None:
                continue
            alone = not any(w.item for w in self.workers)
            queue = self.waiting if self.waiting else self.suspects if alone else None
            if queue and each.give(queue[0]):
                queue.popleft()

    def stop(self) -> None:
        """Let idle workers end."""
        for each in self.workers:
            each.pipe.close()
        for each in self.workers:
            each.process.join(STOP_S)

    def kill(self) -> None:
        """End the workers that are left; targets they were writing do not appear."""
        alive = [w.process for w in self.workers if w.process.is_alive()]
        for process in alive:
            process.terminate()
        for process in alive:
            process.join(STOP_S)
            process.kill()
            process.join()


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _work(pipe: Connection, options: Options, prepare: Prepare, process: Process) -> None:
    """Be a worker until the parent wants no more; leave at once: taking torch down would cost a second."""
    code = 0
    try:
        _obey_parent()
        _serve(pipe, options, prepare, process)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _serve(pipe: Connection, options: Options, prepare: Prepare, process: Process) -> None:
    """Say that we are ready, or why not; then work on what comes until the pipe closes."""
    said: CodecError | Row | None = None
    try:
        prepare(options)
    except CodecError as error:
        said = error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(1)  # the parent counts those that die so, and says it
    with contextlib.suppress(EOFError, OSError):  # the parent has ended, or wants no more
        pipe.send(said)
        while not isinstance(said, CodecError):
            said = process(pipe.recv(), options)
            pipe.send(said)


def _obey_parent() -> None:
    for name in ("SIGINT", "SIGHUP"):  # the terminal sends them to all of its processes: the parent decides
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    release_interrupts()
    signal.signal(signal.SIGTERM, _leave)
    end_with_parent(worker.WRITING)  # no target is left half written


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)  # through every ``finally``: temporary files go
