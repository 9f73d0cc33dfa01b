"""Time the command line from a cold start, whole processes side by side.

    python scripts/bench_start.py PICTURE -o results/start.json

``codec encode``, ``codec decode``, ``codec info`` and ``codec --help`` beside ``python -c "import torch"``: a process each,
medians over runs that alternate. Cold is the process, not the disk: a first run does not count.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch
from PIL import Image

from codec.machine import cpu_name
from models.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent


def seconds(arguments: list[str], threads: int) -> float:
    """Return the seconds of one process of this Python, from its start to its end."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


@click.command()
@click.argument("picture", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("results/start.json"), show_default=True)
@click.option("--runs", type=int, default=7, show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--model", default="swift", show_default=True)
def main(picture: Path, out: Path, runs: int, threads: int, model: str) -> None:
    """Write the medians as JSON."""
    with Image.open(picture) as image:
        width, height = image.size
    checkpoint = load_checkpoint(model)
    with tempfile.TemporaryDirectory() as folder:
        file, decoded = str(Path(folder) / "picture.lic"), str(Path(folder) / "decoded.png")
        commands = {
            "import torch": ["-c", "import torch"],
            "encode": ["-m", "codec", "encode", "-f", "--model", model, str(picture), file],
            "decode": ["-m", "codec", "decode", "-f", "--model", model, file, decoded],
            "info": ["-m", "codec", "info", file],
            "--help": ["-m", "codec", "--help"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for run in range(runs + 1):
            for name, arguments in commands.items():
                elapsed = seconds(arguments, threads)
                if run:
                    times[name].append(elapsed)
    result = {
        "picture": {"name": picture.stem, "width": width, "height": height},
        "threads": threads,
        "runs": runs,
        "model": checkpoint.name,
        "checkpoint": checkpoint.sha256,
        "traced": checkpoint.transforms is None,  # then every start imports CompressAI
        "machine": {"cpu": cpu_name(), "system": platform.system()},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "median_s": {name: round(statistics.median(values), 3) for name, values in times.items()},
        "fastest_s": {name: round(min(values), 3) for name, values in times.items()},
    }
    click.echo(json.dumps(result["median_s"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
