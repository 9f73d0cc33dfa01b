"""Time and memory of encoding and decoding from one megapixel to a hundred, and of a crop and a thumbnail.

    python scripts/bench_scale.py -o results/scale.json --plot docs/scale.svg

Pictures are mirrored copies of examples/lake.png. Each command runs in a process of its own that reads and writes PNG files:
its peak of memory is all that the process ever had resident. Seconds are those of coding, without start-up and PNG; the crop is
512×512 pixels, its time and bytes those of opening the file and decoding the part.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SIZES = {1: (1000, 1000), 4: (2300, 1740), 12: (4000, 3000), 25: (6000, 4170), 50: (8600, 5820), 100: (12000, 8400)}
CROP_SIDE = 512


def mirrored(width: int, height: int) -> Image.Image:
    """Return copies of the example picture, each the mirror image of its neighbours."""
    with Image.open(ROOT / "examples" / "lake.png") as image:
        lake = np.asarray(image.convert("RGB"))
    both = np.concatenate([lake, lake[:, ::-1]], axis=1)
    four = np.concatenate([both, both[::-1]], axis=0)
    rows, columns = -(-height // four.shape[0]), -(-width // four.shape[1])
    return Image.fromarray(np.ascontiguousarray(np.tile(four, (rows, columns, 1))[:height, :width]))


class Counting:
    """A file that counts the bytes read from it."""

    def __init__(self, path: Path) -> None:
        self._file, self.count = path.open("rb"), 0

    def seek(self, *place: int) -> int:
        """Seek as files do."""
        return self._file.seek(*place)

    def read(self, size: int = -1) -> bytes:
        """Read and count."""
        data = self._file.read(size)
        self.count += len(data)
        return data


def work(command: str, folder: Path, model: str, threads: int, quality: float) -> dict[str, Any]:
    """Run one command in this process; return its seconds, and its peak of memory in MB."""
    import torch

    from bitstream.container import open_container
    from codec import images
    from codec.api import Codec
    from codec.targets import Target

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    coder, row = Codec(model, "cpu"), {}
    coder.decode(coder.encode(np.zeros((64, 64, 3), np.uint8)))  # first calls of all layers
    if command == "encode":
        picture = images.load(folder / "a.png")
        begin = time.perf_counter()
        data = coder.encode_picture(picture, Target(quality=quality))
        row["seconds"] = time.perf_counter() - begin
        (folder / "a.lic").write_bytes(data)
    else:
        file = Counting(folder / "a.lic")
        begin = time.perf_counter()
        container = open_container(file, whole=command == "decode")
        w, h = container.header.width, container.header.height
        crop = (w // 2 - CROP_SIDE // 2, h // 2 - CROP_SIDE // 2, CROP_SIDE, CROP_SIDE) if command == "crop" else None
        image = coder.decode_tiles(container, crop=crop, scale=8 if command == "thumbnail" else 1)
        row["seconds"] = time.perf_counter() - begin
        row["bytes_read"] = file.count
        images.save(image, folder / f"{command}.png", overwrite=True)
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row


@click.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("results/scale.json"), show_default=True)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw seconds and memory per megapixel.")
@click.option("--model", default="swift", show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--quality", type=float, default=50.0, show_default=True)
@click.option("--megapixels", default="1,4,12,25,50,100", show_default=True)
@click.option("--work", "job", hidden=True, help="Of a child: command and folder.")
def main(out: Path, plot: Path | None, model: str, threads: int, quality: float, megapixels: str, job: str | None) -> None:
    """Write a row for each size as JSON."""
    if job is not None:
        command, folder = job.split(":", 1)
        click.echo(json.dumps(work(command, Path(folder), model, threads, quality)))
        return
    from codec.machine import cpu_name
    from models.manifest import manifest

    rows = []
    for size in map(int, megapixels.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            width, height = SIZES[size]
            mirrored(width, height).save(Path(folder) / "a.png", compress_level=1)
            row: dict[str, Any] = {"width": width, "height": height}
            for command in ("encode", "decode", "crop", "thumbnail"):
                options = ["--model", model, "--threads", str(threads), "--quality", str(quality)]
                line = [sys.executable, "-W", "ignore", __file__, "--work", f"{command}:{folder}", *options]
                done = subprocess.run(line, capture_output=True, text=True, check=True)
                row[command] = {key: round(value, 3) for key, value in json.loads(done.stdout).items()}
            row["bytes"] = (Path(folder) / "a.lic").stat().st_size
        rows.append(row)
        click.echo(json.dumps(row))
    checkpoint = manifest().get(model, {}).get("sha256")
    facts = {"model": model, "checkpoint": checkpoint, "quality": quality, "threads": threads, "cpu": cpu_name()}
    result = facts | {"rows": rows}
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        draw(result, plot)


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw seconds and peak memory over megapixels."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "learned-image-codec"  # the same bytes each time
    from matplotlib import pyplot as plt

    rows = result["rows"]
    megapixels = np.array([row["width"] * row["height"] / 1e6 for row in rows])
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for command in ("encode", "decode", "thumbnail"):
        seconds = np.array([row[command]["seconds"] for row in rows])
        axes[0].plot(megapixels, seconds / megapixels, "o-", label=command)
        axes[1].plot(megapixels, [row[command]["peak_mb"] / 1000 for row in rows], "o-", label=command)
    axes[0].set(xlabel="megapixels", ylabel="seconds per megapixel", xscale="log", ylim=(0, None))
    axes[1].set(xlabel="megapixels", ylabel="peak memory of the process (GB)", ylim=(0, None))
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
