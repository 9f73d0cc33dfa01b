#!/usr/bin/env python3
"""Train what a fit of `overfit` starts from: base networks and analysis, over photographs; export them as a checkpoint.

    scripts/train_overfit.py train PHOTOS -o run.pt --minutes 60 [--start run.pt]
    scripts/train_overfit.py adapt PHOTOS --start run.pt -o adapted.pt --minutes 30
    scripts/train_overfit.py export adapted.pt -o checkpoints --name overfit

The decoder of `overfit` and a small analysis in front of it, trained as one autoencoder of all rate levels: λ·255²·MSE +
bits, the level drawn anew for each batch. The finest grid is left out at low rates, kept at high ones, and drawn in between.

Then networks move towards what descents for single crops make of them (Reptile: Nichol 2018, arXiv 1803.02999): what all
pictures want is in the start, and need not be in their files.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitstream.tables import constants_crc
from codec.release import add_to_manifest
from codec.training.data import CropStore, find_images
from models.bf16 import fast_bf16
from models.checkpoint import Checkpoint, save_checkpoint
from models.overfit.configs import GRIDS, MODEL, OverfitConfig, levelled
from models.overfit.networks import (
    Analysis,
    Parameters,
    fresh_gains,
    fresh_parameters,
    grid_bits,
    kmac_per_pixel,
    picture,
    with_ring,
)
from models.overfit.runtime import ANALYSIS, OverfitModel
from models.overfit.soft import ste
from models.overfit.weights import BaseNetworks
from models.overfit.windows import WINDOW

BATCH, CROP = 8, 128
RATES = {"analysis": 8e-4, "networks": 1.6e-3, "gains": 5e-3}
WARM_UP, FLAT = 200, 0.3  # steps; share of the time before the cosine
CLIP = 1.0
EMA = 0.998
SAVE_MINUTES = 4.0
ADAPTION = 0.1  # share of what a descent moved the networks by, falling to 0 in the second half
FINEST_LEVELS = 1.5, 5.0  # between these, the finest grid is there the more often the higher the level


class Run:
    """Parameters of all levels, gains, analysis; their averages; the optimiser."""

    def __init__(self, config: OverfitConfig, seed: int) -> None:
        torch.manual_seed(seed)
        self.config = config
        self.parameters = {name: value.requires_grad_() for name, value in fresh_parameters(config).items()}
        self.gains = fresh_gains(config).requires_grad_()
        self.analysis = Analysis(config.analysis)
        groups = {
            "analysis": list(self.analysis.parameters()),
            "networks": list(self.parameters.values()),
            "gains": [self.gains],
        }
        self.optimizer = torch.optim.Adam([{"params": group, "lr": RATES[name]} for name, group in groups.items()], fused=True)
        self.averages = {name: value.detach().clone() for name, value in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is trained, by name."""
        networks = {f"networks.{name}": value for name, value in self.parameters.items()}
        return networks | {"gains": self.gains} | {ANALYSIS + name: value for name, value in self.analysis.named_parameters()}

    def all_tensors(self) -> list[Tensor]:
        """Return all that is trained."""
        return list(self.tensors().values())

    @torch.no_grad()
    def load(self, averages: dict[str, Tensor]) -> None:
        """Start from averaged values."""
        for name, value in self.tensors().items():
            value.copy_(averages[name])
            self.averages[name].copy_(averages[name])

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Move the averages towards the values."""
        keep = min(EMA, step / (step + 10))
        for name, value in self.tensors().items():
            self.averages[name].lerp_(value, 1 - keep)

    def save(self, path: Path, facts: dict[str, float]) -> None:
        """Write the averages; a kill at any moment leaves the file from before."""
        partial = path.with_suffix(path.suffix + ".partial")
        torch.save({"averages": self.averages, "config": dataclasses.asdict(self.config), "facts": facts}, partial)
        os.replace(partial, path)


def at(table: Tensor, level: float) -> Tensor:
    """Return the row of a table (levels, …) at a fractional level."""
    low = min(int(level), len(table) - 2)
    return table[low] + (table[low + 1] - table[low]) * (level - low)


def costs(run: Run, x: Tensor, level: float, finest: int) -> tuple[Tensor, Tensor]:
    """Return bits per pixel and mean squared error of a batch (B, 3, H, W): rates see noise, all else rounding."""
    parameters: Parameters = {name: at(value, level) if levelled(name) else value for name, value in run.parameters.items()}
    gains = at(run.gains, level)
    values = [grid * gain.exp2() for grid, gain in zip(run.analysis(x), gains, strict=True)]
    values = [torch.zeros_like(value) if grid < finest else value for grid, value in enumerate(values)]
    hat = [ste(value) for value in values]
    bits = torch.zeros(())
    for grid in range(finest, GRIDS):
        noisy = values[grid] + torch.rand_like(values[grid]) - 0.5
        coarse = with_ring(hat[grid + 1]) if grid < GRIDS - 1 else None
        bits = bits + grid_bits(parameters, gains, grid, hat[grid], noisy, coarse)
    return bits / (x.shape[0] * x.shape[2] * x.shape[3]), F.mse_loss(picture(parameters, gains, hat, fast=fast_bf16()), x)


def train(args: argparse.Namespace) -> None:
    """Train for so many minutes from a start or anew."""
    state = torch.load(args.start, weights_only=True) if args.start else {"config": {}, "facts": {}}
    config, rng = OverfitConfig.of(state["config"]), np.random.default_rng(args.seed)
    run = Run(config, args.seed)
    if args.start:
        run.load(state["averages"])
    steps_before, minutes_before = (state["facts"].get(key, 0.0) for key in ("steps", "minutes"))
    paths = find_images(args.photos, CROP)
    paths = paths[:: max(1, -(-len(paths) // args.pictures))]
    store = CropStore(paths, torch.device("cpu"))
    begin, saved, losses, step = time.monotonic(), time.monotonic(), list[float](), 0
    while (share := (time.monotonic() - begin) / 60 / args.minutes) < 1:
        fall = 1.0 if share < FLAT else 0.5 * (1 + math.cos(math.pi * (share - FLAT) / (1 - FLAT)))
        for group, rate in zip(run.optimizer.param_groups, RATES.values(), strict=True):
            group["lr"] = rate * args.rate * fall * min(1.0, (step + 1) / WARM_UP)
        level = float(rng.uniform(0, config.levels - 1))
        low, high = FINEST_LEVELS
        finest = int(rng.random() > (level - low) / (high - low))
        lmbda = float(config.lmbda(torch.tensor(level)))
        bpp, mse = costs(run, store.batch(BATCH, CROP, rng), level, finest)
        loss = (lmbda * 255**2 * mse + bpp) / math.sqrt(lmbda) * 0.03
        run.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.all_tensors(), CLIP)
        run.optimizer.step()
        step += 1
        run.average(step)
        losses.append(float(loss.detach()))
        if time.monotonic() - saved > 60 * SAVE_MINUTES:
            saved = time.monotonic()
            run.save(args.output, _facts(begin, step, steps_before, minutes_before, len(paths)))
            print(f"{share * args.minutes:.0f} min, step {step}, loss {np.mean(losses[-1000:]):.4f}", flush=True)
    run.save(args.output, _facts(begin, step, steps_before, minutes_before, len(paths)))


def _facts(begin: float, step: int, steps: float, minutes: float, pictures: int) -> dict[str, float]:
    return {"steps": steps + step, "minutes": round(minutes + (time.monotonic() - begin) / 60, 1), "pictures": pictures}


def adapt(args: argparse.Namespace) -> None:
    """Move the networks of a state towards those that descents for crops end with."""
    state = torch.load(args.start, weights_only=True)
    config, averages = OverfitConfig.of(state["config"]), state["averages"]
    rng, begin, saved, count = np.random.default_rng(args.seed), time.monotonic(), time.monotonic(), 0
    paths = find_images(args.photos, WINDOW)
    store = CropStore(paths[:: max(1, -(-len(paths) // args.pictures))], torch.device("cpu"))
    gains = [float("nan")]
    while (share := (time.monotonic() - begin) / 60 / args.minutes) < 1:
        level = int(rng.integers(256 * (config.levels - 1) + 1))
        low, high = FINEST_LEVELS
        finest = int(rng.random() > (level / 256 - low) / (high - low))
        model = OverfitModel(_checkpoint(config, averages), torch.device("cpu"))
        fit = model.fit(store.batch(1, WINDOW, rng)[0], level, finest)
        before = fit.measure().cost(fit.lmbda)
        fit.descend(args.iterations)
        gains.append(1 - fit.measure().cost(fit.lmbda) / before)
        move = ADAPTION * min(1.0, 2 * (1 - share))
        for name, offset in fit.offsets().items():
            value = averages[f"networks.{name}"]
            if levelled(name):
                row = min(level >> 8, config.levels - 2)
                part = level / 256 - row
                value[row] += move * (1 - part) * offset
                value[row + 1] += move * part * offset
            else:
                value += move * offset
        count += 1
        if time.monotonic() - saved > 60 * SAVE_MINUTES or count == 1:
            saved = time.monotonic()
            _write_adapted(args.output, state, count, begin)
            print(
                f"{share * args.minutes:.0f} min, {count} crops, a descent saves {100 * np.nanmean(gains[-50:]):.1f} %",
                flush=True,
            )
    _write_adapted(args.output, state, count, begin)


def _write_adapted(path: Path, state: dict[str, Any], count: int, begin: float) -> None:
    facts = state["facts"] | {"adapted": count, "adapted_minutes": round((time.monotonic() - begin) / 60, 1)}
    partial = path.with_suffix(path.suffix + ".partial")
    torch.save(state | {"facts": facts}, partial)
    os.replace(partial, path)


def _tensors(config: OverfitConfig, averages: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint."""
    parameters = {name.removeprefix("networks."): value for name, value in averages.items() if name.startswith("networks.")}
    tensors = BaseNetworks.rounded(config, parameters, averages["gains"]).tensors()
    return tensors | {name: value.half() for name, value in averages.items() if name.startswith(ANALYSIS)}


def _checkpoint(config: OverfitConfig, averages: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(MODEL, MODEL, dataclasses.asdict(config), _tensors(config, averages), "0" * 64, constants_crc())


def export(args: argparse.Namespace) -> None:
    """Write a state as a checkpoint and its manifest row."""
    state = torch.load(args.state, weights_only=True)
    config, averages = OverfitConfig.of(state["config"]), state["averages"]
    tensors = _tensors(config, averages)
    path = args.output / f"{args.name}.safetensors"
    sha256 = save_checkpoint(
        path, model=MODEL, config=dataclasses.asdict(config), tensors=tensors, constants_crc=constants_crc()
    )
    facts = state["facts"]
    row = {
        "file": path.name,
        "sha256": sha256,
        "model": MODEL,
        "max_level": config.max_level,
        "steps": int(facts["steps"]),
        "minutes": facts["minutes"],
        "adapted": f"{int(facts.get('adapted', 0))} crops of {WINDOW}, {facts.get('adapted_minutes', 0.0)} minutes",
        "data": f"{int(facts['pictures'])} photographs, crops of {CROP}",
        "tune": "psnr",
        "parameters": sum(math.prod(shape) for shape in config.shapes().values()),
        "kmac_per_pixel": kmac_per_pixel(config),
    }
    add_to_manifest(args.output / "manifest.toml", args.name, row)
    print(f"{path}: {path.stat().st_size} bytes, SHA-256 {sha256[:8]}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("train")
    sub.add_argument("photos", type=Path)
    sub.add_argument("-o", "--output", type=Path, required=True)
    sub.add_argument("--minutes", type=float, default=60)
    sub.add_argument("--start", type=Path)
    sub.add_argument("--rate", type=float, default=1.0, help="of the learning rates")
    sub.add_argument("--pictures", type=int, default=500, help="held in memory at most")
    sub.add_argument("--seed", type=int, default=0)
    sub.set_defaults(run=train)
    sub = commands.add_parser("adapt")
    sub.add_argument("photos", type=Path)
    sub.add_argument("-o", "--output", type=Path, required=True)
    sub.add_argument("--minutes", type=float, default=30)
    sub.add_argument("--start", type=Path, required=True)
    sub.add_argument("--iterations", type=int, default=200, help="of each descent")
    sub.add_argument("--pictures", type=int, default=500, help="held in memory at most")
    sub.add_argument("--seed", type=int, default=0)
    sub.set_defaults(run=adapt)
    sub = commands.add_parser("export")
    sub.add_argument("state", type=Path)
    sub.add_argument("-o", "--output", type=Path, required=True)
    sub.add_argument("--name", default=MODEL)
    sub.set_defaults(run=export)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
