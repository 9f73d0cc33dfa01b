"""Kill encoders and decoders with SIGKILL at random moments: a target is absent or whole, whatever the moment.

    python scripts/kill_encode.py --runs 200 -o results/kill.json

Three jobs in turn: ``encode`` and ``decode`` to a new name, and ``replace``, an encode with -f over an older file, which must
be found old or new. Three kinds of moment in turn: anywhere in a process's life, in its last 100 ms, and in the write itself
(the script watches the folder for the temporary name and kills within the time that it lives). Most processes are forked from
one that has imported everything, which makes the moments dense; ``--fresh`` of them are whole ``python -m codec`` commands.
Exits with 1 if a target was ever half written.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import codec.api  # noqa: F401  what the forked processes need not import again
import models.tracing  # noqa: F401  the golden checkpoint is older than programs, so every process traces it
from codec.__main__ import run

ROOT = Path(__file__).resolve().parent.parent
JOBS, MOMENTS = ("encode", "decode", "replace"), ("anywhere", "last 100 ms", "in the write")
LAST_S = 0.1
WHOLE_RUNS = 5  # that are measured, for each job


class Bench:
    """A folder, the commands that write into it, and what they write when nobody kills them."""

    def __init__(self, folder: Path, picture: Path, model: str) -> None:
        self.folder, self.picture, self.model = folder / "out", picture, model
        self.folder.mkdir()
        self.coded = folder / "whole.lic"
        self.whole: dict[str, bytes] = {}
        self.old = b"an older file"

    def target(self, job: str) -> Path:
        """Return the file that a job writes."""
        return self.folder / ("target.png" if job == "decode" else "target.lic")

    def prepare(self, job: str) -> None:
        """Empty the folder; put the older file there if the job replaces one."""
        for path in self.folder.iterdir():
            path.unlink()
        if job == "replace":
            self.target(job).write_bytes(self.old)

    def arguments(self, job: str) -> list[str]:
        """Return the command line of a job."""
        source = self.coded if job == "decode" else self.picture
        force = ["-f"] if job == "replace" else []
        verb = "decode" if job == "decode" else "encode"
        return [verb, str(source), str(self.target(job)), "--model", self.model, "--device", "cpu", "--threads", "1", *force]

    def start(self, job: str, fresh: bool) -> int:
        """Start a job; return its process id."""
        if fresh:
            return subprocess.Popen([sys.executable, "-m", "codec", *self.arguments(job)], cwd=ROOT).pid
        pid = os.fork()
        if pid == 0:
            sys.argv = ["codec", *self.arguments(job)]
            try:
                run()
            finally:  # not up this script's stack
                os._exit(0)
        return pid

    def partials(self) -> list[Path]:
        """Return the temporary files in the folder."""
        return list(self.folder.glob(".codec-*.partial"))

    def found(self, job: str) -> str:
        """Return what stands under the target's name: "nothing", "old", "whole" or "HALF"."""
        if not self.target(job).exists():
            return "HALF" if job == "replace" else "nothing"  # a file that is replaced is never missing
        data = self.target(job).read_bytes()
        if data == self.whole[job]:
            return "whole"
        return "old" if job == "replace" and data == self.old else "HALF"


def ended(pid: int) -> bool:
    """Return whether a process has ended, and reap it."""
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def watch(condition: Callable[[], bool], pid: int) -> float | None:
    """Return the time at which a condition came true; None if the process ended before."""
    while not condition():
        if ended(pid):
            return None
    return time.perf_counter()


def measure(bench: Bench, job: str, fresh: bool) -> tuple[float, float]:
    """Return the seconds of a whole run, and how long its temporary file lived; the first run tells what is whole."""
    bench.prepare(job)
    begin = time.perf_counter()
    pid = bench.start(job, fresh)
    appeared = watch(lambda: bool(bench.partials()), pid)
    gone = None if appeared is None else watch(lambda: not bench.partials(), pid)
    if gone is not None:
        os.waitpid(pid, 0)
    life = time.perf_counter() - begin
    data = bench.target(job).read_bytes()
    if bench.whole.setdefault(job, data) != data:
        sys.exit(f"{job}: two runs wrote different files")
    if job == "encode" and not bench.coded.exists():
        bench.coded.write_bytes(data)
    return life, 0.0 if gone is None or appeared is None else gone - appeared


def kill(bench: Bench, job: str, moment: str, fresh: bool, life: float, write: float) -> dict[str, Any]:
    """Start a job and kill it; return what it left."""
    bench.prepare(job)
    pid, ended_after = bench.start(job, fresh), None
    if moment == "in the write":
        alive = watch(lambda: bool(bench.partials()), pid) is not None
        if alive and random.random() < 0.5:  # seeing it took a while too
            time.sleep(random.uniform(0, write))
    else:
        first = max(life - LAST_S, 0) if moment == "last 100 ms" else 0
        begin, end = time.perf_counter(), time.perf_counter() + random.uniform(first, life)
        alive = watch(lambda: time.perf_counter() >= end or time.sleep(0.0005) is not None, pid) is not None
        ended_after = None if alive else time.perf_counter() - begin
    killed = alive and not ended(pid)
    if killed:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    found, partials = bench.found(job), len(bench.partials())
    return {"job": job, "moment": moment, "killed": killed, "found": found, "partials": partials, "life": ended_after}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts of some runs."""
    return {
        "runs": len(rows),
        "killed": sum(row["killed"] for row in rows),
        "killed, nothing or the old file there": sum(row["killed"] and row["found"] in ("nothing", "old") for row in rows),
        "killed, the whole file there": sum(row["killed"] and row["found"] == "whole" for row in rows),
        "half a file there": sum(row["found"] == "HALF" for row in rows),
        "temporary files left": sum(row["partials"] for row in rows),
    }


@click.command()
@click.option("--runs", default=200, show_default=True, help="So many that were killed: some end before.")
@click.option("--fresh", default=0, show_default=True, help="The first so many as whole commands, of some seconds each.")
@click.option("--picture", type=click.Path(exists=True, path_type=Path), default=ROOT / "examples" / "lake.png")
@click.option("--model", default=str(ROOT / "tests" / "golden" / "tiny-swift.safetensors"))
@click.option("--seed", default=0, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the counts as JSON.")
def main(runs: int, fresh: int, picture: Path, model: str, seed: int, out: Path | None) -> None:
    """Kill --runs processes and count what they leave."""
    warnings.simplefilter("ignore")  # torch's, of what it will leave out some day
    random.seed(seed)
    with tempfile.TemporaryDirectory(dir=ROOT / "results") as folder:
        bench = Bench(Path(folder), picture, model)
        times = {}
        for job in JOBS:
            measured = [measure(bench, job, False) for _ in range(WHOLE_RUNS)]
            times[job] = [statistics.median(column) for column in zip(*measured, strict=True)]
        fresh_life = measure(bench, "encode", True)[0] if fresh else 0.0
        rows: list[dict[str, Any]] = []
        while sum(row["killed"] for row in rows) < runs:
            job, moment = JOBS[len(rows) % 3], MOMENTS[len(rows) // 3 % 3]
            whole_command = len(rows) < fresh
            life, write = times[job]
            row = kill(bench, job, moment, whole_command, fresh_life if whole_command else life, write)
            rows.append(row)
            if row["life"] is not None and not whole_command:  # it ended before: the machine has become faster
                times[job][0] = row["life"]
            elif not whole_command and row["found"] in ("nothing", "old"):
                times[job][0] *= 1.02  # or slower
    halves = Counter(row["found"] for row in rows)["HALF"]
    result = {
        "seconds": {job: {"life": round(life, 4), "temporary file": round(write, 5)} for job, (life, write) in times.items()},
        "fresh processes": fresh,
        "all": summary(rows),
        **{moment: summary([row for row in rows if row["moment"] == moment]) for moment in MOMENTS},
        **{job: summary([row for row in rows if row["job"] == job]) for job in JOBS},
    }
    text = json.dumps(result, indent=1) + "\n"
    if out:
        out.write_text(text, encoding="utf-8")
    click.echo(text, nl=False)
    if halves:
        sys.exit(1)


if __name__ == "__main__":
    main()
