"""Measure ``codec batch``: one worker against several, Ray against local processes, and runs that are killed and gone on with.

    python scripts/bench_batch.py PICTURES -o results/batch.json

The pictures are crops of 256 … 512 pixels from the PNGs of a folder, in a temporary folder. Times are those of whole runs, and
of what comes behind the start: from the moment each worker has had two pictures. Exits with 1 if files of engines differ, or a
manifest is not complete or lists a picture twice.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from codec.batch import run
from codec.machine import cpu_name
from models.manifest import manifest

ROOT = Path(__file__).resolve().parent.parent
SIDES = (256, 512)


def cut(pictures: Path, folder: Path, count: int) -> int:
    """Save crops of pictures in two folders; return their pixels."""
    paths, rng, pixels = sorted(pictures.rglob("*.png")), np.random.default_rng(0), 0
    if not paths:
        raise click.ClickException(f"{pictures}: no PNGs are below it")
    for i in range(count):
        with Image.open(paths[i % len(paths)]) as image:
            w, h = (min(int(rng.integers(SIDES[0], SIDES[1] + 1)), side) for side in image.size)
            x, y = int(rng.integers(0, image.width - w + 1)), int(rng.integers(0, image.height - h + 1))
            path = folder / str(i % 2) / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.convert("RGB").crop((x, y, x + w, y + h)).save(path, compress_level=1)
            pixels += w * h
    return pixels


def timed(source: Path, out: Path, workers: int, **options: Any) -> dict[str, float]:
    """Return the seconds of a run, the CPU's of its workers, and its pictures a second behind the start."""
    times: list[float] = []
    begin, cpu_before = time.perf_counter(), cpu_seconds()
    summary = run(source, out, workers=workers, progress=lambda *_: times.append(time.perf_counter()), **options)
    seconds = time.perf_counter() - begin
    if summary.failed:
        raise click.ClickException(summary.failures[0]["error"])
    first = 2 * workers  # times[0] is the start
    rate = (len(times) - 1 - first) / (times[-1] - times[first])
    spent = cpu_seconds() - cpu_before
    return {"seconds": round(seconds, 2), "cpu_seconds": round(spent, 2), "pictures_per_second_after_start": round(rate, 2)}


def cpu_seconds() -> float:
    """Return the CPU time of children that have ended: unlike the clock it tells little of what else the machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def files(out: Path) -> dict[str, bytes]:
    """Return all files that a run made."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*.lic"))}


def rows(out: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a manifest, which may be being written."""
    path = out / "manifest.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def workers_of(pid: int) -> list[int]:
    """Return the processes of a run that work on pictures."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(p) for p in pids if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until something is so; it is an error if a process ends before."""
    while not condition():
        if process.poll() is not None:
            raise click.ClickException("the run ended before it was killed: take more pictures")
        time.sleep(0.005)


def killed(source: Path, out: Path, count: int, command: list[str], whole: dict[str, bytes]) -> dict[str, Any]:
    """Kill a worker at a third, the parent at two thirds, start again; return what was found."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    until(lambda: len(rows(out)) >= count // 3, process)
    victims = workers_of(process.pid)
    os.kill(victims[0], signal.SIGKILL)
    until(lambda: len(rows(out)) >= 2 * count // 3 and victims[0] not in workers_of(process.pid), process)
    process.kill()
    process.wait()
    before = rows(out)
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, cwd=ROOT, check=True)
    facts, after = json.loads(done.stdout), rows(out)
    return {
        "rows_when_killed": len(before),
        "listed_twice_when_killed": len(before) - len({row["source"] for row in before}),
        "skipped": facts["skipped"],
        "done_again": facts["done"],
        "failed": facts["failed"],
        "rows": len(after),
        "listed_twice": len(after) - len({row["source"] for row in after}),
        "complete": {row["target"] for row in after if row["status"] == "done"} == set(whole),
        "equal_bytes": files(out) == whole,
    }


@click.command()
@click.argument("pictures", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("results/batch.json"), show_default=True)
@click.option("--count", default=200, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--runs", default=3, show_default=True, help="Of each number of workers, in turn.")
@click.option("--model", default="swift", show_default=True)
def main(pictures: Path, out: Path, count: int, workers: int, runs: int, model: str) -> None:
    """Write the times and findings as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "src")
        pixels = cut(pictures, source, count)
        options = {"model": model, "device": "cpu"}
        times: dict[int, list[dict[str, float]]] = {1: [], workers: []}
        for i in range(runs):
            for number, measured in times.items():
                measured.append(timed(source, Path(folder, f"{number}-{i}"), number, **options))
                click.echo(f"{number} workers: {measured[-1]}, load {os.getloadavg()[0]:.1f}")
        whole = files(Path(folder, "1-0"))
        equal = all(files(Path(folder, f"{number}-{i}")) == whole for number in times for i in range(runs))
        medians = {n: {key: statistics.median(row[key] for row in found) for key in found[0]} for n, found in times.items()}
        result: dict[str, Any] = {
            "model": model, "checkpoint": manifest().get(model, {}).get("sha256"),
            "cpu": cpu_name(), "cores": os.cpu_count(), "pictures": count,
            "megapixels": round(pixels / 1e6, 2), "load_average": round(os.getloadavg()[1], 1),
            "local": {str(n): {"runs": times[n], "median": medians[n]} for n in times},
            "speedup": round(medians[1]["seconds"] / medians[workers]["seconds"], 3),
            "speedup_after_start": round(
                medians[workers]["pictures_per_second_after_start"] / medians[1]["pictures_per_second_after_start"], 3
            ),
            "equal_bytes": equal,
        }  # fmt: skip
        if find_spec("ray") is not None:
            target = Path(folder, "ray")
            summary = run(source, target, engine="ray", workers=workers, **options)
            result["ray"] = {"seconds": round(summary.seconds, 2), "failed": summary.failed}
            result["ray"]["equal_bytes"] = files(target) == whole
        target = Path(folder, "killed")
        command = [sys.executable, "-m", "codec", "batch", str(source), str(target), "--workers", str(workers)]
        result["killed"] = killed(source, target, count, [*command, "--model", model, "--device", "cpu"], whole)
    click.echo(json.dumps(result, indent=1))
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    found = result["killed"]
    right = [equal, found["complete"], found["equal_bytes"], result.get("ray", {"equal_bytes": True})["equal_bytes"]]
    if not all(right) or found["listed_twice"] or found["listed_twice_when_killed"] or found["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
