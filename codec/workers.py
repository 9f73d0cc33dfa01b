"""Threads that work on the tiles of a picture, each with one thread of torch's own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class Workers:
    """Runs jobs without arguments, first come, first served."""

    def __init__(self, pool: ThreadPoolExecutor | None, threads: int) -> None:
        self._pool, self.threads = pool, threads
        self._stopped = threading.Event()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Start a job, or run it at once where there is no pool."""
        if self._pool is not None:
            return self._pool.submit(job)
        done: Future[T] = Future()
        done.set_result(job())
        return done

    def stop(self) -> None:
        """Let long jobs end at their next ``check``."""
        self._stopped.set()

    def check(self) -> None:
        """Raise CancelledError in a job whose result nobody waits for any more."""
        if self._stopped.is_set():
            raise CancelledError


_coded = False  # in this process, or in the one that it was forked from
START_S = 60.0  # a thread that has not started by then will not
_starting, _loading = threading.Lock(), threading.RLock()


def _single() -> None:
    """Give this thread one thread of torch's own."""
    torch.set_num_threads(1)
    torch.get_num_threads()  # at its first use a thread takes the process's number, which is 1 for now


def mark_coding() -> None:
    """Remember that torch's threads may be there: they do not survive a fork."""
    global _coded
    _coded = True


def loading() -> threading.RLock:
    """Return the lock of those who load a model."""
    return _loading


def _renew() -> None:
    """Let a forked process go on with one thread of torch's: more would wait for ever for those that the parent has.

    Its locks are new ones: threads that it does not have may have held them.
    """
    global _starting, _loading
    _starting, _loading = threading.Lock(), threading.RLock()
    if _coded:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def torch_threads() -> int:
    """Return the caller's number of torch's threads, not that of workers who start in this moment."""
    with _starting:
        return torch.get_num_threads()


def _start(most: int) -> tuple[ThreadPoolExecutor, int]:
    """Return a pool, all of whose threads are there, of as many as the caller has of torch's, not more than ``most``.

    torch's number is the process's too, for threads that have not used torch yet: it is 1 until all of the pool have.
    """
    number = torch_threads()
    with _starting:
        count = max(min(number, most), 1)
        pool = ThreadPoolExecutor(count, thread_name_prefix="codec", initializer=_single)
        all_there = threading.Barrier(count + 1)
        try:
            for _ in range(count):
                pool.submit(all_there.wait)
            all_there.wait(START_S)
        except BaseException:
            all_there.abort()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(number)
    return pool, count


@contextmanager
def workers(jobs: int, most: int | None = None) -> Iterator[Workers]:
    """Give as many workers as torch has threads, not more than ``most`` or than there are jobs.

    A single job runs in the caller's thread, with all of torch's threads.
    """
    torch_threads()  # a thread that uses torch for the first time takes its number here
    if jobs == 1:
        yield Workers(None, 1)
        return
    pool, count = _start(min(jobs, most or jobs))
    running = Workers(pool, count)
    try:
        yield running
    except BaseException:
        running.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
