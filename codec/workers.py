"""Threads that work on the tiles of a picture, each with one thread of torch's own."""

from __future__ import annotations

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


class _TorchThreads:
    """torch's number of threads, which workers set to one, for themselves and for threads to come; put back later."""

    def __init__(self) -> None:
        self._lock, self._pools, self._number = threading.Lock(), 0, 1

    def enter(self) -> int:
        """Return the number that a caller has."""
        with self._lock:
            if self._pools == 0:
                self._number = torch.get_num_threads()
            self._pools += 1
            return self._number

    def leave(self) -> None:
        """Put the number back."""
        with self._lock:
            self._pools -= 1
            torch.set_num_threads(self._number)


_torch_threads = _TorchThreads()


@contextmanager
def workers(jobs: int, most: int | None = None) -> Iterator[Workers]:
    """Give as many workers as torch has threads, not more than ``most`` or than there are jobs.

    A single job runs in the caller's thread, with all of torch's threads.
    """
    if jobs == 1:
        yield Workers(None, 1)
        return
    number = _torch_threads.enter()
    count = max(min(number, jobs, most or number), 1)
    pool = ThreadPoolExecutor(count, thread_name_prefix="codec", initializer=torch.set_num_threads, initargs=(1,))
    running = Workers(pool, count)
    try:
        yield running
    except BaseException:
        running.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        _torch_threads.leave()
