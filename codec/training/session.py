"""One ``codec train`` call: build or resume the trainer, show a progress bar, write TensorBoard logs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bitstream.errors import UsageError
from codec.training.loop import Trainer
from codec.training.recipe import Recipe
from codec.training.state import read_state

DEFAULT_RECIPE = "swift"


def train_with_progress(
    dataset: Path, recipe: str | None, state: Path, *, resume: bool, valid: Path | None, max_minutes: float | None,
    logdir: Path | None, device: str, changes: dict[str, Any],
) -> None:  # fmt: skip
    """Train until the schedule or ``max_minutes`` ends. Raises UsageError if ``state`` exists and is not resumed."""
    if state.exists() and not resume:
        raise UsageError(f"{state} exists: give --resume to go on with it, or another --state")
    if not state.absolute().parent.is_dir():
        raise UsageError(f"{state.parent} is not a folder: create it first")
    if resume and not state.exists():
        raise UsageError(f"{state} does not exist: leave --resume away to start")
    if resume and recipe is None:  # the recipe of the state; only options that were given change it
        chosen = Recipe(**read_state(state, torch.device("cpu"))["recipe"])
        chosen = dataclasses.replace(chosen, **{key: value for key, value in changes.items() if value is not None})
    else:
        chosen = Recipe.load(recipe or DEFAULT_RECIPE, **changes)
    trainer = Trainer(chosen, dataset, valid=valid, device=device)
    if resume:
        trainer.load(state)
    console = Console(stderr=True)
    writer = None
    if logdir is not None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(logdir))
    columns = (TextColumn("step {task.fields[step]}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("train", total=1.0, step=trainer.step, text="")

        def report(row: dict[str, Any]) -> None:
            if "levels" in row:
                points = "  ".join(f"{p['bpp']:.3f}/{p['psnr_db']:.2f}" for p in row["levels"])
                console.print(f"step {row['step']}, {row['minutes']:.1f} min, bpp/dB by level: {points}")
            else:
                text = f"loss {row['loss']:.4f}  {row['bpp']:.3f} bpp  {row['psnr_db']:.2f} dB"
                progress.update(task, completed=row["progress"], step=row["step"], text=text)
            if writer is not None:
                _log(writer, row)

        trainer.run(state, max_minutes=max_minutes if max_minutes is not None else math.inf, report=report)
    if writer is not None:
        writer.close()
    console.print(f"saved {state}; next: codec export {state} --data {dataset}")


def _log(writer: Any, row: dict[str, Any]) -> None:
    for point in row.get("levels", []):
        for key in ("bpp", "psnr_db"):
            writer.add_scalar(f"validation/{key}/level_{point['level']}", point[key], row["step"])
    for key in ("loss", "bpp", "psnr_db"):
        if key in row:
            writer.add_scalar(f"train/{key}", row[key], row["step"])
