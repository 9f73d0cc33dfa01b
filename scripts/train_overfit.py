#!/usr/bin/env python3
"""Train what a fit of `overfit` starts from: base networks and analysis, over photographs; export them as a checkpoint.

    scripts/train_overfit.py train PHOTOS -o run.pt --minutes 60 [--start run.pt]
    scripts/train_overfit.py refine PHOTOS --start run.pt -o refined.pt --minutes 30
    scripts/train_overfit.py train PHOTOS --start refined.pt -o final.pt --minutes 10 --only analysis
    scripts/train_overfit.py export final.pt -o checkpoints --name overfit

The decoder of `overfit` and a small analysis in front of it, trained as one autoencoder of all rate levels: λ·255²·MSE +
bits, the level drawn anew for each batch. The finest grid is left out at low rates, kept at high ones, and drawn in between.

Latents that a descent found are others than those of an analysis. So the networks are trained once more with the latents of
crops, each with its own, which descend as in a fit: what all pictures want is in the start, and need not be in their files.
The analysis learns what these networks want.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitstream.tables import constants_crc
from codec.release import add_to_manifest
from codec.training.data import CropStore, find_images
from models.bf16 import fast_bf16
from models.checkpoint import save_checkpoint
from models.overfit.adam import Adam
from models.overfit.configs import GRIDS, MODEL, OverfitConfig, levelled
from models.overfit.fit import LEARNING_RATE
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
from models.overfit.runtime import ANALYSIS
from models.overfit.soft import annealed
from models.overfit.weights import BaseNetworks
from models.overfit.windows import WINDOW
from models.rounding import ste_round

BATCH, CROP = 8, 128
RATES = {"analysis": 8e-4, "networks": 1.6e-3, "gains": 5e-3}
WARM_UP, FLAT = 200, 0.3  # steps; share of the time before the cosine
CLIP = 1.0
EMA = 0.998
SAVE_MINUTES = 4.0
REFINING = {"networks": 1e-3, "gains": 1e-3}  # learning rates with latents of crops' own
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

    def trained(self) -> list[Tensor]:
        """Return all that has a learning rate above 0."""
        return [value for group in self.optimizer.param_groups if group["lr"] for value in group["params"]]

    def latents(self, x: Tensor, level: float, finest: int) -> list[Tensor]:
        """Return the grids that the analysis finds, multiplied by the gains; those finer than ``finest`` are zero."""
        found = zip(self.analysis(x), at(self.gains, level), strict=True)
        return [value * gain.exp2() * (grid >= finest) for grid, (value, gain) in enumerate(found)]

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


def finest_at(level: float, rng: np.random.Generator) -> int:
    """Draw whether there is a finest grid: 0 or 1."""
    low, high = FINEST_LEVELS
    return int(rng.random() > (level - low) / (high - low))


def costs(run: Run, x: Tensor, level: float, finest: int, hat: list[Tensor], rated: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return bits per pixel and mean squared error of a batch (B, 3, H, W): bits are of ``rated``, all else sees ``hat``."""
    parameters: Parameters = {name: at(value, level) if levelled(name) else value for name, value in run.parameters.items()}
    gains = at(run.gains, level)
    bits = torch.zeros(())
    for grid in range(finest, GRIDS):
        coarse = with_ring(hat[grid + 1]) if grid < GRIDS - 1 else None
        bits = bits + grid_bits(parameters, gains, grid, hat[grid], rated[grid], coarse)
    return bits / (x.shape[0] * x.shape[2] * x.shape[3]), F.mse_loss(picture(parameters, gains, hat, fast=fast_bf16()), x)


def costs_of_analysis(run: Run, x: Tensor, level: float, finest: int) -> tuple[Tensor, Tensor]:
    """Return what ``costs`` does of the latents that the analysis finds: rates see noise, all else rounding."""
    values = run.latents(x, level, finest)
    noisy = [value + torch.rand_like(value) - 0.5 for value in values]
    return costs(run, x, level, finest, [ste_round(value) for value in values], noisy)


def train(args: argparse.Namespace) -> None:
    """Train for so many minutes from a start or anew."""
    state = torch.load(args.start, weights_only=True) if args.start else {"config": {}, "facts": {}}
    config, rng = OverfitConfig.of(state["config"]), np.random.default_rng(args.seed)
    run = Run(config, args.seed)
    if args.start:
        run.load(state["averages"])
    paths = find_images(args.photos, CROP)
    paths = paths[:: max(1, -(-len(paths) // args.pictures))]
    store = CropStore(paths, torch.device("cpu"))
    begin, saved, losses, step = time.monotonic(), time.monotonic(), list[float](), 0
    while (share := (time.monotonic() - begin) / 60 / args.minutes) < 1:
        fall = 1.0 if share < FLAT else 0.5 * (1 + math.cos(math.pi * (share - FLAT) / (1 - FLAT)))
        for group, (name, rate) in zip(run.optimizer.param_groups, RATES.items(), strict=True):
            group["lr"] = rate * args.rate * fall * min(1.0, (step + 1) / WARM_UP) * (args.only in (None, name))
        level = float(rng.uniform(0, config.levels - 1))
        finest = finest_at(level, rng)
        lmbda = float(config.lmbda(torch.tensor(level)))
        bpp, mse = costs_of_analysis(run, store.batch(BATCH, CROP, rng), level, finest)
        loss = (lmbda * 255**2 * mse + bpp) / math.sqrt(lmbda) * 0.03
        run.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.trained(), CLIP)
        run.optimizer.step()
        step += 1
        run.average(step)
        losses.append(float(loss.detach()))
        if time.monotonic() - saved > 60 * SAVE_MINUTES:
            saved = time.monotonic()
            run.save(args.output, _facts(state["facts"], begin, step, len(paths)))
            print(f"{share * args.minutes:.0f} min, step {step}, loss {np.mean(losses[-1000:]):.4f}", flush=True)
    run.save(args.output, _facts(state["facts"], begin, step, len(paths)))


def _facts(before: dict[str, float], begin: float, steps: int, pictures: int) -> dict[str, float]:
    minutes = round(before.get("minutes", 0.0) + (time.monotonic() - begin) / 60, 1)
    return before | {"steps": before.get("steps", 0.0) + steps, "minutes": minutes, "pictures": pictures}


@dataclass
class Crop:
    """A crop x (1, 3, H, W) with latents of its own, as a fit has them, at a fractional level."""

    x: Tensor
    level: float
    finest: int
    latents: list[Adam]
    visits: int = 0

    @classmethod
    @torch.no_grad()
    def begun(cls, run: Run, x: Tensor, level: float, finest: int) -> Crop:
        """Take the latents that the analysis finds."""
        return cls(x, level, finest, [Adam(value) for value in run.latents(x, level, finest)])

    def descend(self, run: Run, share: float) -> float:
        """Take a step of the latents and of the networks, as in this share of a descent; return the Lagrangian in bpp."""
        quantise, fall = annealed(share)
        leaves = [adam.value.clone().requires_grad_(grid >= self.finest) for grid, adam in enumerate(self.latents)]
        hat = [quantise(leaf) if leaf.requires_grad else leaf for leaf in leaves]
        lmbda = float(run.config.lmbda(torch.tensor(self.level)))
        bpp, mse = costs(run, self.x, self.level, self.finest, hat, hat)
        cost = lmbda * 255**2 * mse + bpp
        run.optimizer.zero_grad()
        (cost / math.sqrt(lmbda)).backward()
        for group, name in zip(run.optimizer.param_groups, RATES, strict=True):
            group["lr"] = REFINING.get(name, 0.0) * fall
        run.optimizer.step()
        self.visits += 1
        for adam, leaf in zip(self.latents, leaves, strict=True):
            if leaf.grad is not None:
                adam.step(leaf.grad, LEARNING_RATE * fall, self.visits)
        return float(cost.detach())


def _crops(run: Run, args: argparse.Namespace, rng: np.random.Generator) -> list[Crop]:
    """Return crops of photographs, their levels evenly over all."""
    paths = find_images(args.photos, WINDOW)
    store = CropStore([paths[number] for number in rng.permutation(len(paths))[: args.crops]], torch.device("cpu"))
    levels = [(number + 0.5) / args.crops * (run.config.levels - 1) for number in range(args.crops)]
    return [Crop.begun(run, store.batch(1, WINDOW, rng), level, finest_at(level, rng)) for level in levels]


def refine(args: argparse.Namespace) -> None:
    """Train the networks of a state once more, all crops with latents of their own as a fit has them."""
    state = torch.load(args.start, weights_only=True)
    run, rng = Run(OverfitConfig.of(state["config"]), args.seed), np.random.default_rng(args.seed)
    run.load(state["averages"])
    crops = _crops(run, args, rng)
    found, order, begin, saved = list[float](), list[int](), time.monotonic(), time.monotonic()

    def save() -> None:
        run.averages = {name: value.detach().clone() for name, value in run.tensors().items()}
        minutes = round((time.monotonic() - begin) / 60, 1)
        run.save(args.output, state["facts"] | {"refined": len(found), "refined_minutes": minutes, "crops": args.crops})

    while (share := (time.monotonic() - begin) / 60 / args.minutes) < 1:
        order = order or rng.permutation(args.crops).tolist()
        found.append(crops[order.pop()].descend(run, share))
        if time.monotonic() - saved > 60 * SAVE_MINUTES:
            saved = time.monotonic()
            save()
            mean = np.mean(found[-args.crops :])
            print(f"{share * args.minutes:.0f} min, step {len(found)}, Lagrangian {mean:.4f}", flush=True)
    save()


def _tensors(config: OverfitConfig, averages: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint."""
    parameters = {name.removeprefix("networks."): value for name, value in averages.items() if name.startswith("networks.")}
    tensors = BaseNetworks.rounded(config, parameters, averages["gains"]).tensors()
    return tensors | {name: value.half() for name, value in averages.items() if name.startswith(ANALYSIS)}


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
        "refined": f"{int(facts.get('refined', 0))} steps of {int(facts.get('crops', 0))} crops of {WINDOW}, "
        f"{facts.get('refined_minutes', 0.0)} minutes",
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
    sub.add_argument("--only", choices=list(RATES), help="of what is trained: all the rest stays")
    sub.add_argument("--pictures", type=int, default=500, help="held in memory at most")
    sub.add_argument("--seed", type=int, default=0)
    sub.set_defaults(run=train)
    sub = commands.add_parser("refine")
    sub.add_argument("photos", type=Path)
    sub.add_argument("-o", "--output", type=Path, required=True)
    sub.add_argument("--minutes", type=float, default=30)
    sub.add_argument("--start", type=Path, required=True)
    sub.add_argument("--crops", type=int, default=240)
    sub.add_argument("--seed", type=int, default=0)
    sub.set_defaults(run=refine)
    sub = commands.add_parser("export")
    sub.add_argument("state", type=Path)
    sub.add_argument("-o", "--output", type=Path, required=True)
    sub.add_argument("--name", default=MODEL)
    sub.set_defaults(run=export)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
