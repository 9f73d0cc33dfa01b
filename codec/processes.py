"""Processes that end with the one that made them, and how they come to their signals."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing.process import BaseProcess
from typing import Any


def end_with_parent(last: AbstractContextManager[Any] | None = None) -> None:
    """Watch the parent, if there is one: when it has ended, this process does too, once it could enter ``last``."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent, last or nullcontext()), daemon=True).start()


def _end_with(parent: BaseProcess, last: AbstractContextManager[Any]) -> None:
    parent.join()
    with last:
        os._exit(1)


@contextmanager
def no_interrupts() -> Iterator[None]:
    """Hold SIGINT and SIGHUP back: a process that starts inherits that, until it has said what it does with them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release_interrupts() -> None:
    """Let in what ``no_interrupts`` held back when this process started."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
