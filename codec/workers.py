"""Threads that work on the tiles of a picture, each with one thread of torch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
Submit = Callable[[Callable[[], T]], "Future[T]"]


def _at_once(job: Callable[[], T]) -> Future[T]:
    done: Future[T] = Future()
    done.set_result(job())
    return done


@contextmanager
def workers(jobs: int) -> Iterator[tuple[Submit, int]]:
    """Give what runs jobs without arguments in as many threads as torch has, first come, first served; and that number.

    A single job runs in the caller's thread, with all of torch's threads: they would only wait for each other otherwise.
    """
    threads = torch.get_num_threads()
    count = min(threads, jobs)
    if count == 1 and jobs == 1:
        yield _at_once, 1
        return
    pool = ThreadPoolExecutor(count, thread_name_prefix="codec", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool.submit, count
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
