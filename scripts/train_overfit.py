#!/usr/bin/env python3
"""Train what a fit of `overfit` starts from: base networks and analysis, over photographs; export them as a checkpoint.

    scripts/train_overfit.py train PHOTOS -o run.pt --minutes 60 [--start run.pt]
    scripts/train_overfit.py export run.pt -o checkpoints --name overfit

The decoder of `overfit` and a small analysis in front of it, trained as one autoencoder of all rate levels: λ·255²·MSE +
bits, the level drawn anew for each batch. The finest grid is left out at low rates, kept at high ones, and drawn in between.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitstream.tables import constants_crc
from codec.release import add_to_manifest
from codec.training.data import CropStore, find_images
from models.checkpoint import save_checkpoint
from models.overfit.configs import GRIDS, MODEL, OverfitConfig, levelled
from models.overfit.networks import (
    Analysis,
    Parameters,
    fresh_gains,
    fresh_parameters,
    grid_bits,
    kmac_per_pixel,
    picture,
    ste,
    with_ring,
)
from models.overfit.runtime import ANALYSIS
from models.overfit.weights import BaseNetworks

BATCH, CROP = 8, 128
RATES = {"analysis": 8e-4, "networks": 1.6e-3, "gains": 5e-3}
WARM_UP, FLAT = 200, 0.3  # steps; share of the time before the cosine
CLIP = 1.0
EMA = 0.998
SAVE_MINUTES = 4.0
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
    return bits / (x.shape[0] * x.shape[2] * x.shape[3]), F.mse_loss(picture(parameters, gains, hat, fast=True), x)


def train(args: argparse.Namespace) -> None:
    """Train for so many minutes from a start or anew."""
    config, rng = OverfitConfig(), np.random.default_rng(args.seed)
    run, steps_before, minutes_before = Run(config, args.seed), 0.0, 0.0
    if args.start:
        state = torch.load(args.start, weights_only=True)
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


def export(args: argparse.Namespace) -> None:
    """Write a state as a checkpoint and its manifest row."""
    state = torch.load(args.state, weights_only=True)
    config, averages = OverfitConfig.of(state["config"]), state["averages"]
    parameters = {name.removeprefix("networks."): value for name, value in averages.items() if name.startswith("networks.")}
    tensors = BaseNetworks.rounded(config, parameters, averages["gains"]).tensors()
    tensors |= {name: value.half() for name, value in averages.items() if name.startswith(ANALYSIS)}
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
    sub = commands.add_parser("export")
    sub.add_argument("state", type=Path)
    sub.add_argument("-o", "--output", type=Path, required=True)
    sub.add_argument("--name", default=MODEL)
    sub.set_defaults(run=export)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
