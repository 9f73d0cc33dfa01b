"""Decode mutated files, and record what became of them.

    python scripts/fuzz_decode.py --files 100000 --jobs 2 --seed 1 -o results/fuzz.json

Golden files of all tiny models, and in a smaller share files of the shipped checkpoints, are mutated by
``tests/fuzz/mutations.py``. Each file, and a part of it read on its own, must be decoded or refused with a helpful
CodecError, in less than 5 s and with at most 512 MiB of memory above what the worker had before it. A worker that crashes or
hangs is replaced. What is found is saved as a file; exit 1 then.

Workers have a limit of address space too, but a wide one: torch keeps compiled kernels of each new shape, and crashes where it
finds no room for one.

File number i is made by ``Random(f"{seed}/{i}")`` alone: a run gives the same files with any number of jobs (those of shipped
checkpoints, which are encoded first, as far as this machine encodes alike). A file whose symbols are not those of its CRC is
decoded once more with the CRC mended, so that g_s sees them too.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from ctypes import Structure, addressof, c_char, c_double, c_long, memmove
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from random import Random
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "fuzz"))

import decoding  # noqa: E402
import mutations  # noqa: E402

MOST = 2**29  # bytes of memory that a decode may take
ADDRESSES = 2**33  # bytes of address space that a worker may take, above what it has with its models loaded
SHIPPED_SHARE = 0.05  # of the files
SHIPPED_SIZES = ((40, 56), (100, 128))  # (height, width) of their pictures
POLL_SECONDS = 0.25
SPAWN = multiprocessing.get_context("spawn")

Seeds = dict[str, list[bytes]]


# --- a worker


class Slot(Structure):
    """What a worker is at, in memory that outlives it: which file, since when (0: none), its bytes."""

    _fields_ = (("number", c_long), ("since", c_double), ("length", c_long), ("data", c_char * (2 * mutations.MAX_BYTES)))

    def keep(self, number: int, data: bytes) -> None:
        """Keep a file. (An assignment to ``data`` would end at its first zero.)"""
        self.number, self.length = number, len(data)
        memmove(addressof(self) + Slot.data.offset, data, len(data))

    def current(self) -> bytes:
        """Return the file."""
        return bytes(bytearray(self)[Slot.data.offset : Slot.data.offset + self.length])


@dataclass(frozen=True)
class Job:
    """The files of one worker: number first, first + step, … below stop."""

    seed: int
    first: int
    step: int
    stop: int
    shipped: Seeds


def address_space() -> int:
    """Return the bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def forget_peak() -> None:
    """Let ``peak_rss`` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> int:
    """Return the most memory that this process has had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def cases(codecs: dict[str, Any], seeds: Seeds, job: Job) -> Iterator[tuple[int, str, bytes]]:
    """Give number, model and bytes of each file."""
    tiny = [name for name in seeds if name not in job.shipped]
    everything = [data for name in tiny for data in seeds[name]]
    for number in range(job.first, job.stop, job.step):
        rng = Random(f"{job.seed}/{number}")
        shipped = bool(job.shipped) and rng.random() < SHIPPED_SHARE
        name = rng.choice(list(job.shipped) if shipped else tiny)
        limit = decoding.SHIPPED_PIXELS if shipped else decoding.TINY_PIXELS
        while True:
            data = mutations.mutate(rng, seeds[name] if shipped else everything, rng.choice(seeds[name]))
            if not decoding.merely_large(data, limit):
                break
        yield number, name, data


def work(job: Job, slot: Slot, pipe: Connection) -> None:
    """Decode files and tell what became of each; the last message is the most memory that one took."""
    import torch

    from codec.api import Codec

    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # where does it hang?
    torch.set_num_threads(1)
    codecs = decoding.tiny_codecs()
    seeds = decoding.golden_seeds(codecs) | job.shipped
    codecs |= {name: Codec(name, "cpu") for name in job.shipped}
    for name, codec in codecs.items():
        for data in seeds[name]:
            codec.decode(data)  # tables, thread pools and caches are there before the limit
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + ADDRESSES,) * 2)
    most = 0
    for number, name, made in cases(codecs, seeds, job):
        data = made
        for _ in range(decoding.ROUNDS):
            slot.keep(number, data)
            forget_peak()
            before = peak_rss()
            slot.since = begin = time.time()
            try:
                decoding.judge_part(codecs[name], data)
                outcome = decoding.judge(codecs[name], data)
                row = outcome.name, outcome.deep, ""
                again = decoding.with_right_symbol_crc(data, outcome)
            except Exception as error:  # what we look for
                row, again = (type(error).__name__, False, f"{type(error).__name__}: {error}"), None
            slot.since = 0.0
            grown = peak_rss() - before
            most = max(most, grown)
            if grown > MOST and not row[2]:
                row = row[0], row[1], f"took {grown >> 20} MiB of memory"
            pipe.send(("file", number, name, time.time() - begin, row, data if row[2] else b""))
            if again is None:
                break
            data = again
    pipe.send(("end", most))


# --- the run


@dataclass
class Record:
    """What became of all files."""

    folder: Path
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    findings: list[dict[str, Any]] = field(default_factory=list)
    slowest: tuple[float, str, int] = (0.0, "", 0)
    deep: int = 0
    grown: int = 0

    @property
    def files(self) -> int:
        """Return how many were decoded or refused."""
        return sum(sum(counts.values()) for counts in self.outcomes.values())

    def add(self, number: int, name: str, seconds: float, row: tuple[str, bool, str], data: bytes) -> None:
        """Count one file."""
        outcome, deep, problem = row
        self.outcomes[name][outcome] += 1
        self.deep += deep
        self.slowest = max(self.slowest, (seconds, name, number))
        if problem or seconds > decoding.SECONDS:
            self.find(number, problem or f"took {seconds:.1f} s", data)

    def find(self, number: int, problem: str, data: bytes) -> None:
        """Keep a file that should not be."""
        path = self.folder / f"{hashlib.sha256(data).hexdigest()[:12]}.lic"
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.findings.append({"number": number, "problem": problem[:300], "file": str(path)})
        click.echo(f"FOUND in file {number}: {problem[:300]} → {path}", err=True)


class Worker:
    """A process, the slot it shares and the pipe it talks through; started anew behind a file that ended it."""

    def __init__(self, job: Job, record: Record) -> None:
        self._job, self._record = job, record
        self._slot: Any = RawValue(Slot)
        self._start(job.first)

    def _start(self, first: int) -> None:
        self._slot.since, self._slot.number = 0.0, -1
        self.pipe, theirs = SPAWN.Pipe(duplex=False)
        job = Job(self._job.seed, first, self._job.step, self._job.stop, self._job.shipped)
        self._process: SpawnProcess = SPAWN.Process(target=work, args=(job, self._slot, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def poll(self) -> bool:
        """Take what the worker says, replace it if it crashed or hangs; return whether it goes on."""
        try:
            while self.pipe.poll():
                kind, *message = self.pipe.recv()
                if kind == "end":
                    self._record.grown = max(self._record.grown, *message)
                    self._process.join()
                    return False
                self._record.add(*message)
        except EOFError:
            self._process.join()
            return self._replace(f"the worker ended with exit code {self._process.exitcode}")
        if 0 < self._slot.since < time.time() - decoding.SECONDS:
            self._process_signal(signal.SIGUSR1)
            self._process_signal(signal.SIGKILL)
            self._process.join()
            return self._replace(f"no end after {decoding.SECONDS} s")
        return True

    def _process_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)
        time.sleep(POLL_SECONDS)  # for the traceback to be written

    def _replace(self, problem: str) -> bool:
        if self._slot.number < 0:
            raise click.ClickException(f"{problem} before its first file")
        self._record.find(self._slot.number, problem, self._slot.current())
        self._start(self._slot.number + self._job.step)
        return True


def shipped_seeds() -> Seeds:
    """Return files of the installed checkpoints, by name."""
    import numpy as np
    from PIL import Image

    from codec.api import Codec
    from models.manifest import installed

    with Image.open(ROOT / "examples" / "lake.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    names = [name for name, (_, path) in installed().items() if path is not None]
    pictures = [pixels[:h, :w] for h, w in SHIPPED_SIZES]
    return {name: [Codec(name, "cpu").encode(p, quality=q) for p in pictures for q in (10, 60)] for name in names}


@click.command()
@click.option("--files", type=click.IntRange(1), default=100_000, show_default=True, help="Mutated files.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Processes.")
@click.option("--seed", default=1, show_default=True)
@click.option("--shipped/--no-shipped", default=True, show_default=True, help="Fuzz the shipped checkpoints too.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("results/fuzz.json"), show_default=True)
@click.option(
    "--crashes", type=click.Path(path_type=Path), default=ROOT / "tests" / "fuzz" / "crashes", help="Folder of finds."
)
def main(files: int, jobs: int, seed: int, shipped: bool, out: Path, crashes: Path) -> None:
    """Write counts by model and outcome, the slowest file and the growth of memory as JSON."""
    record, begin, told = Record(crashes), time.time(), 0.0
    seeds = shipped_seeds() if shipped else {}
    workers = [Worker(Job(seed, first, jobs, files, seeds), record) for first in range(jobs)]
    while workers:
        wait([worker.pipe for worker in workers], POLL_SECONDS)
        workers = [worker for worker in workers if worker.poll()]
        if time.time() - told > 10 or not workers:
            told = time.time()
            rate = record.files / (told - begin)
            click.echo(f"{record.files} files, {rate:.0f}/s, slowest {record.slowest[0]:.2f} s, {len(record.findings)} found")
    seconds = time.time() - begin
    result = {
        "seed": seed,
        "files": record.files,
        "seconds": round(seconds),
        "files_per_second": round(record.files / seconds, 1),
        "limits": {"seconds": decoding.SECONDS, "memory_mb": MOST >> 20},
        "reached_the_symbols": round(record.deep / max(record.files, 1), 3),
        "slowest": dict(zip(("seconds", "model", "number"), (round(record.slowest[0], 3), *record.slowest[1:]), strict=True)),
        "most_memory_mb": round(record.grown / 2**20, 1),
        "outcomes": {name: dict(sorted(counts.items())) for name, counts in sorted(record.outcomes.items())},
        "findings": record.findings,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    click.echo(f"{out}: {record.files} files, {len(record.findings)} found")
    sys.exit(bool(record.findings))


if __name__ == "__main__":
    main()
