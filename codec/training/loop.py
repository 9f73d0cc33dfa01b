"""The training loop: Lightning Fabric, bf16 autocast, Adam or Muon with warm-up and a schedule, EMA, atomic state.

It is not a framework: one model at a time, one loss (rate + λ·distortion), the schedule in ``Recipe``. With several devices
each has a process and a copy of the pictures; all draw the same random numbers, and each computes its part of the batch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitstream.errors import UsageError
from bitstream.tables import master_from_mass
from codec.training.data import CropStore, find_images, split_images, validation_batches
from codec.training.devices import launch
from codec.training.muon import MuonAdam, muon_weights
from codec.training.parameters import learns, parameter_groups
from codec.training.recipe import MS_SSIM_CROP, Recipe
from codec.training.schedule import Schedule
from codec.training.start import starting_weights
from codec.training.state import read_state, write_state
from models.klt import check_klt_start, klt_start
from models.network import rate_distortion
from models.registry import build
from models.row_bits import bits_of_rows
from models.symbol_tables import count_symbols, fit_rows, has_rows

COUNTED_BATCHES = 32  # of pictures whose symbols the rows are counted on
VALIDATION_PICTURES = 16  # at most, where no validation folder is given
KLT_CROP = 128  # at most, of the 384 crops of the KLT start: gigabytes otherwise
NOISE_STRIDE = 1_000_003  # between the seeds of the noise of a run that is resumed at one step or the next


def _silent(_: dict[str, Any]) -> None:
    """Report nothing."""


def _psnr_db(x_hat: Tensor, x: Tensor) -> Tensor:
    """Return the PSNR (B,) of (B, 3, H, W) batches in [0, 1]."""
    return -10 * (x_hat.detach() - x).square().flatten(1).mean(1).log10()


class Trainer:
    """One run: model, optimiser, EMA and clock, saved and resumed as one state.

    ``start`` is the state of another run, of this model or another, whose averaged weights are taken where they fit; or a
    release checkpoint (.safetensors), whose integer entropy networks become floating point again.
    """

    def __init__(
        self, recipe: Recipe, dataset: Path, *, valid: Path | None = None, start: Path | None = None, device: str = "auto",
        devices: int = 1,
    ) -> None:  # fmt: skip
        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError("device is cuda, but torch finds no CUDA GPU here: use --device cpu")
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.model = build(recipe.model, recipe.config)  # first: what is bad is said before the pictures are read
        if recipe.counted_rows and not has_rows(self.model.layout()):
            raise UsageError(f"recipe: counted_rows is on, but y of {recipe.model} is not coded with Gaussians: leave it out")
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(learns(name, recipe.only))
        if recipe.muon and not muon_weights(parameter_groups(self.model, recipe)):
            raise UsageError(
                f"recipe: muon is on, but only is {recipe.only!r}, so no convolutions of g_a and g_s learn: leave it out"
            )
        self.start: dict[str, Any] | None = None
        taken: dict[str, Tensor] = {}
        if start is not None:
            taken, self.start = starting_weights(start, self.model)
        needs_start = recipe.klt_start and "log2_gain" not in taken
        if needs_start:
            check_klt_start(self.model)
        if valid is None:
            self.train_paths, held_out = split_images(dataset, recipe.crop, "add more or give --valid")
            self.valid_paths = held_out[:VALIDATION_PICTURES]
        else:
            self.valid_paths = find_images(valid, MS_SSIM_CROP if self.model.cfg.tune == "ms-ssim" else 64)
            held = {path.resolve() for path in self.valid_paths}
            self.train_paths = [path for path in find_images(dataset, recipe.crop) if path.resolve() not in held]
            if not self.train_paths:
                raise UsageError(f"{dataset}: all of its pictures are those of {valid}: add more")
        self.held_out = valid is None  # whether every 64th picture is not trained on
        self.fabric = launch(device, devices)  # what is bad was said before, by one process
        self.rng = np.random.default_rng(recipe.seed)
        self.valid_batches = validation_batches(self.valid_paths, recipe.test_batch_size)
        self.store = CropStore(self.train_paths, self.fabric.device)
        self.batch_size = recipe.batch_size * self.fabric.world_size
        self.part = slice(self.fabric.global_rank * recipe.batch_size, (self.fabric.global_rank + 1) * recipe.batch_size)
        self.epoch_steps = math.ceil(len(self.train_paths) / self.batch_size)
        if needs_start:
            crop = min(recipe.crop, KLT_CROP)
            klt_start(self.model, [self.store.batch(16, crop, self.rng).cpu() for _ in range(24)])
        self.model.load_state_dict(taken, strict=False)
        self.memory_format = torch.channels_last if self.model.cfg.bf16_channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        optimizer = MuonAdam(parameter_groups(self.model, recipe), betas=(0.9, 0.99), fused=True)
        self.net, self.optimizer = self.fabric.setup(self.model, optimizer)
        self.ema = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.schedule = Schedule(recipe.schedule)
        self.step, self.minutes = 0, 0.0
        torch.manual_seed(recipe.seed + self.fabric.global_rank)  # of the noise: each process has its own

    # -- state ---------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the whole state, atomically; of several processes the first does."""
        if not self.fabric.is_global_zero:
            return
        state = {
            "recipe": dataclasses.asdict(self.recipe),
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "minutes": self.minutes,
            "rng": json.dumps(self.rng.bit_generator.state),
            "pictures": len(self.train_paths),
            "schedule": self.schedule.state_dict(),
            "start": self.start,
            "rows": self.model.rows,
            "held_out": self.held_out,
        }
        write_state(path, state)

    def load(self, path: Path) -> None:
        """Resume from a state that ``save`` wrote. Raises UsageError if it is none, one of another model or optimiser.

        Learning rates and schedule are those of the recipe; a schedule that is not the state's begins anew.
        """
        state = read_state(path, self.fabric.device)
        if (muon := state["recipe"].get("muon", False)) != self.recipe.muon:
            raise UsageError(
                f"{path}: its blocks learn {'by' if muon else 'without'} Muon, the recipe says otherwise: "
                f"set muon = {str(muon).lower()}, or begin anew with --start"
            )
        rates = [group["base_lr"] for group in self.optimizer.param_groups]
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UsageError(f"{path}: the state of another model or recipe: give the recipe that it was made with") from error
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["base_lr"] = rate
        if "schedule" in state and state["recipe"]["schedule"] == self.recipe.schedule:
            self.schedule.load_state_dict(state["schedule"])
        self.start = state.get("start")
        self.model.rows = state.get("rows") if self.recipe.counted_rows else None
        self.held_out &= state.get("held_out", True)
        self.ema = state["ema"]
        self.step, self.minutes = state["step"], state["minutes"]
        self.rng.bit_generator.state = json.loads(state["rng"])
        seed = self.recipe.seed + self.fabric.global_rank + NOISE_STRIDE * self.step  # not the noise of the start again
        torch.manual_seed(seed)

    # -- the loop ------------------------------------------------------------------------------------------------

    def progress(self) -> float:
        """Return how much of the schedule is done, 0 to 1, by steps or by epochs or else minutes, whichever is further."""
        recipe = self.recipe
        length = self.step / (recipe.epochs * self.epoch_steps) if recipe.epochs else self.minutes / recipe.minutes
        return min(1.0, max(self.step / recipe.steps, length))

    def learning_rate_factor(self) -> float:
        """Linear warm-up, then half a cosine to zero at the end of the schedule, or the factor of the epoch."""
        warmup = min(1.0, (self.step + 1) / max(self.recipe.warmup_steps, 1))
        if self.recipe.schedule == "cosine":
            return warmup * 0.5 * (1 + math.cos(math.pi * self.progress()))
        return warmup * self.schedule.factor

    def train_step(self) -> dict[str, float]:
        """Draw a batch, take one optimiser step, update the EMA; return loss, bpp and PSNR (dB) of the batch."""
        recipe, cfg = self.recipe, self.model.cfg
        if recipe.counted_rows and (
            self.model.rows is None or (recipe.recount_steps and self.step % recipe.recount_steps == 0)
        ):
            self._count_rows()
        x = self.store.batch(self.batch_size, recipe.crop, self.rng, self.part).to(memory_format=self.memory_format)
        top = cfg.levels - 1
        draw = self.rng.uniform(-0.25, top + 0.25, size=self.batch_size).clip(0, top)[self.part]
        level = torch.tensor(draw, dtype=torch.float32, device=x.device)
        with self._precision(float32=self.progress() >= 1 - recipe.float32_share and self.step % 2 == 0):
            out = self.net(x, level, reconstruct=recipe.only != "entropy")
        bpp, distortion = rate_distortion(out, x, cfg.tune)
        loss = self._loss(bpp, distortion, level).mean()
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.learning_rate_factor()
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(self.net, self.optimizer, max_norm=recipe.grad_clip, error_if_nonfinite=False)
        if torch.isfinite(norm):
            self.optimizer.step()
            self._update_ema()
        self.step += 1
        return {"loss": loss.item(), "bpp": bpp.mean().item(), "psnr_db": _psnr_db(out["x_hat"], x).mean().item()}

    def _count_rows(self) -> None:
        """Give the model the CDF rows of its own symbols, as an export would."""
        rng = np.random.default_rng(self.recipe.seed)
        batches = (self.store.batch(self.recipe.batch_size, self.recipe.crop, rng) for _ in range(COUNTED_BATCHES))
        self.model.eval()
        mass = fit_rows(count_symbols(self.model, batches))
        self.model.rows = bits_of_rows(master_from_mass(mass)).to(self.fabric.device)
        self.model.train()

    def _precision(self, *, float32: bool) -> torch.autocast:
        """Return the context of a forward pass: float32, or bf16 but for what ``models.layers`` keeps in float32."""
        return torch.autocast(self.fabric.device.type, torch.bfloat16, enabled=not float32)

    def _loss(self, bpp: Tensor, distortion: Tensor, level: Tensor) -> Tensor:
        """Return rate + λ·distortion (B,), weighted so that all levels have gradients of about the same size."""
        lmbda = self.model.cfg.lmbda(level)
        return (bpp + lmbda * 255**2 * distortion) * (self.model.cfg.lmbda_mid / lmbda).sqrt()

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        names = [n for n, v in state.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.ema[n] for n in names], [state[n] for n in names], 1 - decay)

    def end_epoch(self) -> list[dict[str, float]] | None:
        """Step the schedule; return the rows of the validation if it needs one."""
        rows = self.validate() if self.schedule.needs_loss else None
        self.schedule.end_epoch(float(np.mean([row["loss"] for row in rows])) if rows else math.nan)
        return rows

    def validate(self) -> list[dict[str, float]]:
        """Return estimated bpp, PSNR and loss per level over the held-out pictures, with the EMA weights.

        Of several processes the first computes, and tells the others.
        """
        rows = self._validate() if self.fabric.is_global_zero else []
        return self.fabric.broadcast(rows)

    @torch.no_grad()
    def _validate(self) -> list[dict[str, float]]:
        live = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema)
        self.model.eval()
        cfg, rows = self.model.cfg, []
        for level in range(cfg.levels):
            points = []
            for pictures in self.valid_batches:
                x = pictures.to(self.fabric.device).float() / 255
                levels = torch.full((len(x),), float(level), device=x.device)
                out = self.model(x, levels)  # float32 as in decoders; not ``self.net``, which would wait for other processes
                out["x_hat"] = out["x_hat"].clamp(0, 1)
                bpp, distortion = rate_distortion(out, x, self.model.cfg.tune)
                points.append(torch.stack([bpp, _psnr_db(out["x_hat"], x), self._loss(bpp, distortion, levels)]))
            bpp_mean, psnr_mean, loss = torch.cat(points, dim=1).double().mean(dim=1).tolist()
            rows.append({"level": level, "bpp": round(bpp_mean, 4), "psnr_db": round(psnr_mean, 3), "loss": round(loss, 6)})
        self.model.load_state_dict(live)
        self.model.train()
        return rows

    def run(
        self, state: Path, *, max_minutes: float, report: Callable[[dict[str, Any]], None],
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:  # fmt: skip
        """Train until the schedule or ``max_minutes`` ends, or ``stop``: then return true. Save in between and at the end.

        ``report`` gets a dict of step and minutes: every 200 steps with progress and the means of loss, bpp and psnr_db; at
        each validation, and at the end unless it was stopped, with levels. Of several processes it is the first's, whose means
        are of its part of the batches.
        """
        if not self.fabric.is_global_zero:
            report = _silent
        self.model.train()
        began, start_minutes = time.monotonic(), self.minutes
        saved = validated = self.minutes
        recent: list[dict[str, float]] = []
        stopped = False
        while self.progress() < 1 and self.minutes - start_minutes < max_minutes and not stopped:
            recent.append(self.train_step())
            minutes = start_minutes + (time.monotonic() - began) / 60
            self.minutes, stopped = self.fabric.broadcast((minutes, stop()))  # one clock for all
            if self.step % 200 == 0:
                means = {key: float(np.mean([row[key] for row in recent])) for key in recent[0]}
                report({"step": self.step, "minutes": self.minutes, "progress": self.progress(), **means})
                recent.clear()
            if self.step % self.epoch_steps == 0 and (rows := self.end_epoch()):
                report({"step": self.step, "minutes": self.minutes, "levels": rows})
                validated = self.minutes
            if self.minutes - validated >= self.recipe.validate_minutes and not stopped:
                report({"step": self.step, "minutes": self.minutes, "levels": self.validate()})
                validated = self.minutes
            if self.minutes - saved >= self.recipe.save_minutes:
                self.save(state)
                saved = self.minutes
        self.save(state)
        if not stopped:
            report({"step": self.step, "minutes": self.minutes, "levels": self.validate()})
        return stopped

    def close(self) -> None:
        """Leave the group of processes when all are done: one that ends while its threads still wait on others may abort."""
        if self.fabric.world_size > 1:
            self.fabric.barrier()
            torch.distributed.destroy_process_group()
