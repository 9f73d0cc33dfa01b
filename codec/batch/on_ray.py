"""Ray Data as the engine of a batch: actors on a cluster, or on one that lives here for the time of the run.

All machines of a cluster need this package, and must reach the pictures under the same names: a shared folder or an object
store. A picture whose actor died is done again by another; if that dies too, it has failed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import bitstream.errors
from bitstream.errors import CodecError, UsageError
from codec.batch import worker
from codec.batch.items import Item
from codec.batch.manifest import Row
from codec.batch.options import Options
from codec.batch.worker import Prepare, Process
from codec.machine import physical_cores

LONGEST_BLOCK = 16  # pictures that come back, or are lost, together
BLOCKS_PER_WORKER = 8  # at least, so that all end at about the same time


def rows(
    items: Sequence[Item], options: Options, workers: int | None, address: str | None = None,
    *, prepare: Prepare = worker.prepare, process: Process = worker.process,
) -> Iterator[Row]:  # fmt: skip
    """Give the row of each picture, some at a time; from so many actors, by default one for each CPU of the cluster.

    ``address`` is that of a cluster; else RAY_ADDRESS counts; without any, a cluster is started here and ended behind the last
    row. Raises UsageError if ray is not installed or not found, and what ``prepare`` raises.
    """
    with _cluster(workers, address) as cpus:
        import ray.data

        count = min(workers or cpus, len(items))
        length = max(1, min(LONGEST_BLOCK, len(items) // (count * BLOCKS_PER_WORKER)))
        entries = [{"json": json.dumps(asdict(item))} for item in items]
        dataset = ray.data.from_items(entries, override_num_blocks=-(-len(entries) // length))
        ledger = ray.remote(num_cpus=0)(_Ledger).remote()
        dataset = dataset.map(
            _Actor,
            fn_constructor_args=(options, prepare, process, ledger),
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=1,
        )
        for entry in dataset.iter_rows():
            row = json.loads(entry["json"])
            if "fatal" in row:
                raise getattr(bitstream.errors, row["fatal"], CodecError)(row["error"])
            yield row


class _Ledger:
    """How often pictures were begun and not ended: Ray would give one that kills its actors to new ones for ever."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()

    def begin(self, name: str) -> int:
        """Return how often it was begun before."""
        self.begun[name] += 1
        return self.begun[name] - 1

    def end(self, name: str) -> None:
        """Forget a picture that is through."""
        del self.begun[name]


class _Actor:
    """A worker; JSON goes in and out: Ray would make one type of all values of a column."""

    def __init__(self, options: Options, prepare: Prepare, process: Process, ledger: Any) -> None:
        self.options, self.process, self.ledger = options, process, ledger
        self.error: CodecError | None = None
        try:
            prepare(options)
        except CodecError as error:
            self.error = error  # raised here, Ray would try again and wrap it

    def __call__(self, entry: dict[str, Any]) -> dict[str, Any]:
        import ray

        if self.error is not None:
            return {"json": json.dumps({"fatal": type(self.error).__name__, "error": str(self.error)})}
        item = Item(**json.loads(entry["json"]))
        if ray.get(self.ledger.begin.remote(item.name)) < worker.MAX_DEATHS:
            row = self.process(item, self.options)
        else:
            row = worker.dead_row(item, self.options, "an actor of Ray")
        ray.get(self.ledger.end.remote(item.name))
        return {"json": json.dumps(row)}


@contextlib.contextmanager
def _cluster(workers: int | None, address: str | None) -> Iterator[int]:
    """Connect to a cluster, or start one here, unless the caller has; give the number of its CPUs."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own switch for a warning
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(f"the engine ray needs a package ({error}): pip install 'learned-image-codec[ray]'") from error
    if ray.is_initialized():
        yield _cpus()
        return
    with _quiet():
        _connect(address or os.environ.get("RAY_ADDRESS"), workers or physical_cores())
        try:
            yield _cpus()
        finally:
            ray.shutdown()


def _connect(address: str | None, cpus: int) -> None:
    """Connect to the cluster at an address, or start one of so many CPUs. Raises UsageError."""
    import ray

    local: dict[str, Any] = {} if address else {"num_cpus": cpus, "include_dashboard": False}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"ray at {address or 'this machine'} cannot be reached ({reason}): start it first") from error
    finally:
        with contextlib.suppress(ValueError):  # only the main thread may; and only there ray replaces it
            signal.signal(signal.SIGTERM, handler)


def _cpus() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let Ray Data log errors only, and draw no bars, for the time of a block."""
    import ray.data

    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        logger.setLevel(before[1])
