"""The training loop: Lightning Fabric, bf16 autocast, Adam with warm-up and cosine to zero, EMA, atomic state.

It is not a framework: one process, one device, one model at a time, one loss (rate + λ·distortion), the schedule in ``Recipe``.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from bitstream.errors import UsageError
from codec.training.data import CropStore, find_images, load_rgb
from codec.training.recipe import Recipe
from codec.training.state import read_state, write_state
from models.klt import klt_start
from models.registry import build

log = logging.getLogger(__name__)

VALIDATION_SHARE = 64  # one picture in so many is held out when no validation folder is given


def rate_distortion(out: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return bits per pixel (B,) and mean squared error in [0, 1] units (B,) of a ``forward`` result."""
    pixels = x.shape[-2] * x.shape[-1]
    bits = sum(-value.log2().flatten(1).sum(1) for key, value in out.items() if key.endswith("_likelihoods"))
    return bits / pixels, (out["x_hat"] - x).square().flatten(1).mean(1)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Sort parameters into trunk, residual blocks, entropy networks and gains, each with its learning rate."""
    groups: dict[str, list[nn.Parameter]] = {"trunk": [], "blocks": [], "entropy": [], "gains": []}
    for name, parameter in model.named_parameters():
        if name.endswith("quantiles"):
            continue  # symbols are round(z): medians and tails are never asked for
        if name.startswith("log2_gain"):
            groups["gains"].append(parameter)
        elif name.startswith(("g_a.", "g_s.")):
            groups["blocks" if ".blocks_" in name else "trunk"].append(parameter)
        else:
            groups["entropy"].append(parameter)
    rates = {"trunk": recipe.lr_trunk, "blocks": recipe.lr_blocks, "entropy": recipe.lr_entropy, "gains": recipe.lr_gains}
    return [{"params": groups[name], "lr": rates[name], "base_lr": rates[name]} for name in groups if groups[name]]


class Trainer:
    """One run: model, optimiser, EMA and clock, saved and resumed as one state."""

    def __init__(self, recipe: Recipe, dataset: Path, *, valid: Path | None = None, device: str = "auto") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError("device is cuda, but torch finds no CUDA GPU here: use --device cpu")
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.fabric = Fabric(accelerator=device, devices=1, precision="bf16-mixed")
        paths = find_images(dataset, recipe.crop)
        held_out = find_images(valid, 64) if valid else paths[::VALIDATION_SHARE]
        held = set(held_out)
        self.train_paths = [p for p in paths if p not in held]
        self.valid_paths = held_out[:16]
        if not self.train_paths:
            raise UsageError(f"{dataset}: {len(paths)} pictures, all held out for validation: add more or give --valid")
        self.rng = np.random.default_rng(recipe.seed)
        self.store = CropStore(self.train_paths, self.fabric.device)
        self.model = build(recipe.model, recipe.config)
        if recipe.klt_start:
            klt_start(self.model, [self.store.batch(16, recipe.crop, self.rng).cpu() for _ in range(24)])
        self.model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(parameter_groups(self.model, recipe), betas=(0.9, 0.99), fused=True)
        self.net, self.optimizer = self.fabric.setup(self.model, optimizer)
        self.ema = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.step, self.minutes = 0, 0.0

    # -- state ---------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the whole state, atomically."""
        state = {
            "recipe": dataclasses.asdict(self.recipe),
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "minutes": self.minutes,
            "rng": json.dumps(self.rng.bit_generator.state),
            "pictures": len(self.train_paths),
        }
        write_state(path, state)

    def load(self, path: Path) -> None:
        """Resume from a state that ``save`` wrote. Raises UsageError if it is none, or one of another model."""
        state = read_state(path, self.fabric.device)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UsageError(f"{path}: the state of another model or recipe: give the recipe that it was made with") from error
        self.ema = state["ema"]
        self.step, self.minutes = state["step"], state["minutes"]
        self.rng.bit_generator.state = json.loads(state["rng"])

    # -- the loop ------------------------------------------------------------------------------------------------

    def progress(self) -> float:
        """Return how much of the schedule is done, 0 to 1, by steps or by minutes, whichever is further."""
        return min(1.0, max(self.step / self.recipe.steps, self.minutes / self.recipe.minutes))

    def learning_rate_factor(self) -> float:
        """Linear warm-up, then half a cosine to zero at the end of the schedule."""
        warmup = min(1.0, (self.step + 1) / max(self.recipe.warmup_steps, 1))
        return warmup * 0.5 * (1 + math.cos(math.pi * self.progress()))

    def train_step(self) -> dict[str, float]:
        """Draw a batch, take one optimiser step, update the EMA; return loss, bpp and PSNR (dB) of the batch."""
        recipe, cfg = self.recipe, self.model.cfg
        x = self.store.batch(recipe.batch_size, recipe.crop, self.rng).to(memory_format=torch.channels_last)
        top = cfg.levels - 1
        draw = self.rng.uniform(-0.25, top + 0.25, size=recipe.batch_size).clip(0, top)
        level = torch.tensor(draw, dtype=torch.float32, device=x.device)
        lmbda = cfg.lmbda(level)
        bpp, mse = rate_distortion(self.net(x, level), x)
        loss = ((bpp + lmbda * 255**2 * mse) * (cfg.lmbda_mid / lmbda).sqrt()).mean()
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.learning_rate_factor()
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(self.net, self.optimizer, max_norm=recipe.grad_clip, error_if_nonfinite=False)
        if torch.isfinite(norm):
            self.optimizer.step()
            self._update_ema()
        self.step += 1
        return {"loss": loss.item(), "bpp": bpp.mean().item(), "psnr_db": -10 * mse.log10().mean().item()}

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        names = [n for n, v in state.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.ema[n] for n in names], [state[n] for n in names], 1 - decay)

    @torch.no_grad()
    def validate(self) -> list[dict[str, float]]:
        """Return estimated bpp and PSNR per level over the held-out pictures, with the EMA weights."""
        live = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema)
        self.model.eval()
        rows = []
        images = [load_rgb(path).to(self.fabric.device)[:, :512, :512] for path in self.valid_paths]
        for level in range(self.model.cfg.levels):
            points = []
            for image in images:
                x = image[None, :, : image.shape[1] // 64 * 64, : image.shape[2] // 64 * 64].float() / 255
                out = self.net(x, torch.tensor([float(level)], device=x.device))
                out["x_hat"] = out["x_hat"].clamp(0, 1)
                bpp, mse = rate_distortion(out, x)
                points.append((bpp.item(), -10 * math.log10(mse.item())))
            bpp_mean, psnr_mean = np.mean(points, axis=0)
            rows.append({"level": level, "bpp": round(float(bpp_mean), 4), "psnr_db": round(float(psnr_mean), 3)})
        self.model.load_state_dict(live)
        self.model.train()
        return rows

    def run(self, state: Path, *, max_minutes: float, report: Callable[[dict[str, Any]], None]) -> None:
        """Train until the schedule or ``max_minutes`` ends; save every ``save_minutes`` and at the end.

        ``report`` gets one dict per validation, save interval and end: step, minutes, loss, bpp, psnr_db, levels.
        """
        self.model.train()
        began, start_minutes = time.monotonic(), self.minutes
        saved = validated = self.minutes
        recent: list[dict[str, float]] = []
        while self.progress() < 1 and self.minutes - start_minutes < max_minutes:
            recent.append(self.train_step())
            self.minutes = start_minutes + (time.monotonic() - began) / 60
            if self.step % 200 == 0:
                means = {key: float(np.mean([row[key] for row in recent])) for key in recent[0]}
                report({"step": self.step, "minutes": self.minutes, "progress": self.progress(), **means})
                recent.clear()
            if self.minutes - validated >= self.recipe.validate_minutes:
                report({"step": self.step, "minutes": self.minutes, "levels": self.validate()})
                validated = self.minutes
            if self.minutes - saved >= self.recipe.save_minutes:
                self.save(state)
                saved = self.minutes
        self.save(state)
        report({"step": self.step, "minutes": self.minutes, "levels": self.validate()})
