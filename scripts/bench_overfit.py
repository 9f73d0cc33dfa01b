#!/usr/bin/env python3
"""Measure `overfit`: real files at several efforts, decoded in another process, beside AVIF and `swift` on the same pictures.

    scripts/bench_overfit.py fit KODAK_FOLDER --efforts 0,5 [--pictures 1,5,8]     rows into results/overfit/
    scripts/bench_overfit.py fit KODAK_FOLDER --asked bpp=0.4,psnr=29 --efforts 0  the same for targets
    scripts/bench_overfit.py summary KODAK_FOLDER                                  results/overfit.json

A row is a picture at a quality (or another target) and an effort; those that are there for this checkpoint are not made again
(remove them where the code has changed), and processes share the work. BD-rates are of averages over all pictures.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from scipy.interpolate import PchipInterpolator

from codec import images
from codec.api import Codec
from codec.describe import describe
from codec.evaluation.contenders import ModelContender, PeerContender
from codec.evaluation.curves import Curve, bd_rate_percent
from codec.evaluation.peers import peers
from codec.machine import cpu_name
from codec.metrics import bpp, psnr_db
from codec.overfit.fitting import ITERATIONS
from codec.targets import Target
from models.overfit.networks import Analysis, fresh_gains, fresh_parameters
from models.overfit.runtime import ANALYSIS, OverfitModel
from models.overfit.weights import BaseNetworks

PICTURES = (1, 5, 8, 13, 19, 23)
QUALITIES = (20.0, 35.0, 50.0)
ASKED = ",".join(f"quality={quality:g}" for quality in QUALITIES)
OTHERS = ("avif", "swift")
MEANS = ("bpp", "psnr_db", "encode_s", "decode_s")
ROWS = Path("results/overfit")
DECODE = "import sys; from codec import decode; decode(open(sys.argv[1], 'rb').read(), model=sys.argv[3]).save(sys.argv[2])"


def row_of(coder: Codec, model: str, path: Path, asked: str, effort: int) -> dict[str, Any]:
    """Encode, decode in another process, compare with the decoder of this one; return what was measured."""
    picture = images.load(path)
    h, w, _ = picture.pixels.shape
    begin = time.perf_counter()
    kind, value = asked.split("=")
    data = coder.encode_picture(picture, Target(**{kind: float(value)}), effort=effort)  # type: ignore[arg-type]
    seconds = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        source, target = (Path(folder, name) for name in ("a.lic", "a.png"))
        source.write_bytes(data)
        subprocess.run([sys.executable, "-c", DECODE, str(source), str(target), model], check=True)
        facts, decoded = describe(source), images.load(target).pixels
    begin = time.perf_counter()
    here = np.asarray(coder.decode(data))
    decode_seconds = time.perf_counter() - begin
    if not np.array_equal(here, decoded):
        raise SystemExit(f"{path}: another process decodes other pixels")
    assert coder.fit is not None
    return {
        "picture": path.name,
        **({"quality": float(value)} if kind == "quality" else {"asked": [kind, float(value)]}),
        "effort": effort,
        "iterations": coder.fit.iterations,
        "checkpoint": coder.model.checkpoint.sha256,
        "bytes": len(data),
        "networks_bytes": facts["networks_bytes"],
        "grids_bytes": facts["grids_bytes"],
        "other_bytes": facts["other_bytes"],
        "bpp": round(bpp(len(data), w, h), 5),
        "psnr_db": round(psnr_db(picture.pixels, decoded), 3),
        "encode_s": round(seconds, 1),
        "decode_s": round(decode_seconds, 2),
        "threads": torch.get_num_threads(),
        "machine": cpu_name(),
        "file_sha256": hashlib.sha256(data).hexdigest()[:8],
    }


def numbers(text: str) -> list[float]:
    """Return the numbers of a list with commas."""
    return [float(part) for part in text.split(",")]


@click.group()
def main() -> None:
    """Measure `overfit`."""


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", default="overfit", show_default=True)
@click.option("--pictures", default=",".join(map(str, PICTURES)), show_default=True)
@click.option("--asked", default=ASKED, show_default=True, help="Of quality, bpp and psnr, with commas.")
@click.option("--efforts", default="0,5", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--reverse", is_flag=True, help="The last picture first: for a second process.")
def fit(folder: Path, model: str, pictures: str, asked: str, efforts: str, threads: int, reverse: bool) -> None:
    """Write a row for each picture, target and effort that has none of this checkpoint."""
    torch.set_num_threads(threads)
    coder = Codec(model, "cpu")
    ROWS.mkdir(parents=True, exist_ok=True)
    jobs = [(int(n), target, int(e)) for e in numbers(efforts) for target in asked.split(",") for n in numbers(pictures)]
    for number, target, effort in reversed(jobs) if reverse else jobs:
        name = target.replace("quality=", "q").replace("=", "")
        path = ROWS / f"{coder.model.checkpoint.sha256[:8]}-{number:02d}-{name}-e{effort}.json"
        claim = path.with_suffix(".claim")
        try:
            claim.touch(exist_ok=False)  # another process has it, or was killed: remove the claim then
        except FileExistsError:
            continue
        if path.exists():
            claim.unlink()
            continue
        try:
            row = row_of(coder, model, folder / f"kodim{number:02d}.png", target, effort)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
            os.replace(partial, path)
        finally:
            claim.unlink(missing_ok=True)
        click.echo(f"{path.name}: {row['bpp']:.4f} bpp, {row['psnr_db']:.2f} dB, {row['encode_s']:.0f} s")


def other_curve(name: str, paths: list[Path]) -> list[dict[str, float]]:
    """Return the averages over the pictures of another codec at its settings."""
    contender = ModelContender.of("swift", "cpu") if name == "swift" else PeerContender.of(peers(name)[0])
    points = []
    for quality in contender.grid():
        pairs = []
        for path in paths:
            picture = images.load(path)
            data = contender.encode(picture, quality)
            h, w, _ = picture.pixels.shape
            pairs.append((bpp(len(data), w, h), psnr_db(picture.pixels, contender.decode(data))))
        means = np.mean(pairs, axis=0)
        points.append({"quality": quality, "bpp": round(float(means[0]), 5), "psnr_db": round(float(means[1]), 3)})
    return points


def _bd_rate(points: Curve, curve: Curve) -> float | None:
    """Return the BD-rate of points against another codec's; three points are few, so by monotone interpolation."""
    rate = bd_rate_percent(curve, points, method="pchip", least_points=3)
    return None if rate is None else round(rate, 2)


def asked_for(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return how near the files of each target but quality come to it, and how many more bits they have.

    That is against the files of qualities, of the same picture and effort, by interpolation at the same PSNR; of the pictures
    where these are on both sides.
    """
    groups: dict[tuple[str, float, int], list[dict[str, Any]]] = {}
    for row in rows:
        if "asked" in row:
            groups.setdefault((*row["asked"], row["effort"]), []).append(row)
    found = []
    for (kind, value, effort), chosen in sorted(groups.items()):
        misses = [row["psnr_db"] - value if kind == "psnr" else 100 * (row["bpp"] / value - 1) for row in chosen]
        more = []
        for row in chosen:
            of = (row["picture"], effort)
            curve = sorted((r["psnr_db"], r["bpp"]) for r in rows if "quality" in r and (r["picture"], r["effort"]) == of)
            if len(curve) > 2 and curve[0][0] <= row["psnr_db"] <= curve[-1][0]:
                psnrs, rates = zip(*curve, strict=True)
                more.append(math.log(row["bpp"]) - float(PchipInterpolator(psnrs, np.log(rates))(row["psnr_db"])))
        found.append(
            {
                "asked": kind,
                "value": value,
                "effort": effort,
                "pictures": len(chosen),
                "least_miss": round(min(misses), 3),
                "most_miss": round(max(misses), 3),
                "compared": len(more),
                "more_bits_percent": round(100 * math.expm1(np.mean(more)), 2) if more else None,
                "encode_s": round(float(np.mean([row["encode_s"] for row in chosen])), 1),
            }
        )
    return found


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", default="overfit", show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("results/overfit.json"), show_default=True)
def summary(folder: Path, model: str, out: Path) -> None:
    """Write the averages of the rows of a checkpoint, those of AVIF and `swift`, and the BD-rates."""
    sha256 = Codec(model, "cpu").model.checkpoint.sha256
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(ROWS.glob(f"{sha256[:8]}-*.json"))]
    paths = [folder / f"kodim{number:02d}.png" for number in PICTURES]
    others = {name: other_curve(name, paths) for name in OTHERS}
    efforts = []
    for effort in sorted({row["effort"] for row in rows}):
        points = []
        for quality in QUALITIES:
            chosen = [row for row in rows if (row["effort"], row.get("quality")) == (effort, quality)]
            if {row["picture"] for row in chosen} >= {path.name for path in paths}:
                means = {key: float(np.mean([row[key] for row in chosen])) for key in MEANS}
                share = sum(row["networks_bytes"] for row in chosen) / sum(row["bytes"] for row in chosen)
                points.append(
                    {"quality": quality, **{k: round(v, 4) for k, v in means.items()}, "networks_share": round(share, 4)}
                )
        if points:
            against = {name: _bd_rate(points, curve) for name, curve in others.items()}
            efforts.append({"effort": effort, "iterations": ITERATIONS[effort], "points": points, "bd_rate_percent": against})
    result = {
        "pictures": [path.name for path in paths],
        "checkpoint": sha256,
        "efforts": efforts,
        "others": others,
        "asked": asked_for(rows),
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for entry in efforts:
        click.echo(f"effort {entry['effort']}: {entry['bd_rate_percent']}")


def cold(model: OverfitModel) -> OverfitModel:
    """Return the model with networks and analysis that have seen no picture."""
    torch.manual_seed(0)
    config = model.config
    base = BaseNetworks.rounded(config, fresh_parameters(config), fresh_gains(config))
    analysis = {ANALYSIS + name: value.detach() for name, value in Analysis(config.analysis).state_dict().items()}
    return OverfitModel(replace(model.checkpoint, tensors=base.tensors() | analysis), model.device)


@main.command()
@click.argument("picture", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", default="overfit", show_default=True)
@click.option("--quality", default=35.0, show_default=True)
@click.option("--iterations", default="250,1000,4000", show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("results/overfit_start.json"), show_default=True)
def start(picture: Path, model: str, quality: float, iterations: str, out: Path) -> None:
    """Write what the start from trained networks saves: the Lagrangian after so many iterations, with and without."""
    torch.set_num_threads(1)
    warm = Codec(model, "cpu").model
    assert isinstance(warm, OverfitModel)
    x = torch.from_numpy(images.load(picture).pixels).permute(2, 0, 1)
    level, rows = round(quality / 100 * warm.max_level), []
    for name, loaded in (("trained", warm), ("untrained", cold(warm))):
        for count in map(int, numbers(iterations)):
            torch.manual_seed(0)
            descent = loaded.fit(x, level, finest=1)
            descent.run(count)
            descent.quantise()
            state = descent.measure()
            rows.append({"start": name, "iterations": count, "bpp": state.bpp, "networks_bpp": state.networks_bpp})
            rows[-1] |= {"psnr_db": state.psnr_db, "lagrangian": state.cost(descent.lmbda)}
            click.echo(f"{name}, {count}: {state.cost(descent.lmbda):.4f}")
    result = {"picture": picture.name, "quality": quality, "checkpoint": warm.checkpoint.sha256, "rows": rows}
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
