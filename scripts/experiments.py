"""Run those experiments of the lab book (docs/training.md) again that need no training: ways to code with shipped weights.

    python scripts/experiments.py dead-zone PICTURES
    python scripts/experiments.py annealing PICTURES --effort 5

Real files of the middles of pictures, spread evenly over the folder (the lab book's were held out: every 64th of the training
pictures), at the levels of the model; BD-rate by PSNR, of the means, against what is shipped, whose encoder runs in bf16 or in
float32, as the CPU has it. Those that need training are recipes: ``codec train --recipe NAME``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import torch

from bitstream.tables import gaussian_master
from codec import images
from codec.api import Codec
from codec.evaluation.curves import Curve, bd_rate_percent
from codec.metrics import bpp, decoded_psnr_db
from codec.targets import Target
from codec.training.data import find_images
from models import operations, refine, rounding
from models.inference import MixedPrecision

Variant = Callable[[Any, ExitStack], None]  # changes a model; what is not the model's own until the stack is closed


def dead_zone(strength: float, model: Any, _: ExitStack) -> None:
    """Choose symbols with a dead zone of another strength; 0 is plain rounding (experiment 7)."""
    model.entropy = dataclasses.replace(model.entropy, rdo_strength=strength)


def own_zone(strength: float, model: Any, stack: ExitStack) -> None:
    """Choose symbols with a dead zone by the bits of the rows that were counted, not by a Gaussian's (25)."""
    zones = rounding.zones_of(model.entropy.y_table.cumulative, strength)
    stack.enter_context(patch.object(rounding, "dead_zone", lambda _: zones))


def gaussian_rows(model: Any, _: ExitStack) -> None:
    """Code symbols with the rows of Gaussians instead of those that were counted (12)."""
    model.entropy = dataclasses.replace(model.entropy, y_table=gaussian_master())


def encoder_in(dtype: torch.dtype, model: Any, _: ExitStack) -> None:
    """Run g_a in another type (9, 23)."""
    model.g_a = MixedPrecision(model.g_a.program, model.checkpoint.tensors, model.device, dtype)


def stem_in(float32: bool, model: Any, _: ExitStack) -> None:
    """Run g_a in bf16, its first convolution in float32 or in bf16 as well (23)."""
    blocks = (
        dataclasses.replace(block, float32=float32) if any(op.name == "g_a.stem" for op in block.operations) else block
        for block in model.g_a.program
    )
    model.g_a = MixedPrecision(tuple(blocks), model.checkpoint.tensors, model.device, torch.bfloat16)


def fast_sums(model: Any, stack: ExitStack) -> None:
    """Run g_a in bf16, sums as well (23)."""
    stack.enter_context(patch.object(operations, "_float32_sum", lambda a, b, owned: torch.add(a.bfloat16(), b.bfloat16())))
    encoder_in(torch.bfloat16, model, stack)


def annealing(model: Any, stack: ExitStack, **constants: Any) -> None:
    """Anneal with other rates, noise or temperatures (16, 20)."""
    stack.enter_context(patch.multiple(refine, **constants))


EXPERIMENTS: dict[str, dict[str, Variant]] = {
    "dead-zone": {f"strength {s}": partial(dead_zone, s) for s in (0.0, 0.5, 0.9, 1.0, 1.1, 1.2)}
    | {f"by the rows' bits, strength {s}": partial(own_zone, s) for s in (0.6, 0.8, 1.0)},
    "rows": {"Gaussian": gaussian_rows},
    "precision": {
        "float32": partial(encoder_in, torch.float32),
        "bf16": partial(encoder_in, torch.bfloat16),
        "bf16, stem in float32": partial(stem_in, True),
        "bf16, stem too": partial(stem_in, False),
        "bf16, sums too": fast_sums,
    },
    "annealing": {
        "as shipped": lambda model, _: None,
        "half the rate": partial(annealing, RATE=0.5 * refine.RATE),
        "twice the rate": partial(annealing, RATE=2 * refine.RATE),
        "no noise": partial(annealing, NOISE=(1e-6, 1e-6)),
        "less noise at the end": partial(annealing, NOISE=(0.3, 0.05)),
        "colder": partial(annealing, TEMPERATURE=(0.3, 0.1)),
    },
}


def curve(coder: Codec, pictures: list[images.Picture], effort: int) -> Curve:
    """Return the means of bpp and PSNR over pictures, at each level."""
    points = []
    for quality in np.linspace(0, 100, coder.max_level // 256 + 1):
        rows = []
        for picture in pictures:
            data = coder.encode_picture(picture, Target(quality=float(quality)), effort=effort)
            h, w, _ = picture.pixels.shape
            rows.append((bpp(len(data), w, h), decoded_psnr_db(picture.pixels, coder.decode(data))))
        rate, psnr = np.mean(rows, axis=0)
        points.append({"bpp": round(float(rate), 5), "psnr_db": round(float(psnr), 4)})
    return points


def middle(picture: images.Picture, side: int) -> images.Picture:
    """Return the middle of a picture, at most ``side`` pixels square."""
    h, w, _ = picture.pixels.shape
    top, left = max(0, h - side) // 2, max(0, w - side) // 2
    return dataclasses.replace(picture, pixels=np.ascontiguousarray(picture.pixels[top : top + side, left : left + side, :3]))


@click.command()
@click.argument("experiment", type=click.Choice(list(EXPERIMENTS)))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", default="swift", show_default=True)
@click.option("--pictures", default=6, show_default=True)
@click.option("--side", default=384, show_default=True, help="Of the crops, in pixels.")
@click.option("--effort", default=0, show_default=True, help="Of the variants; what is shipped is effort 0.")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write JSON.")
def main(
    experiment: str, folder: Path, model: str, pictures: int, side: int, effort: int, threads: int, out: Path | None
) -> None:
    """Print points and BD-rate of each variant of an experiment, against what is shipped."""
    if (experiment == "annealing") != (effort > 0):
        raise click.UsageError(f"{experiment} is measured {'with' if effort == 0 else 'without'} --effort: it is {effort}")
    torch.set_num_threads(threads)
    paths = find_images(folder)
    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, min(pictures, len(paths))).round().astype(int)]
    crops = [middle(images.load(path), side) for path in paths]
    anchor = curve(Codec(model), crops, 0)
    result: dict[str, Any] = {"experiment": experiment, "pictures": [path.name for path in paths], "shipped": anchor}
    click.echo("shipped: " + " ".join(f"{p['bpp']:.3f}/{p['psnr_db']:.2f}" for p in anchor))
    for name, change in EXPERIMENTS[experiment].items():
        coder = Codec(model)
        with ExitStack() as stack:
            change(coder.model, stack)
            points = curve(coder, crops, effort)
        saving = bd_rate_percent(anchor, points)
        result[name] = {"points": points, "bd_rate_percent": None if saving is None else round(saving, 3)}
        text = "no overlap" if saving is None else f"{saving:+.2f} %"
        click.echo(f"{name}: {text}  " + " ".join(f"{p['bpp']:.3f}/{p['psnr_db']:.2f}" for p in points))
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
