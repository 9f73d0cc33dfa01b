"""One ``codec train`` call: build or resume the trainer, show a progress bar, write TensorBoard logs."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bitstream.errors import UsageError
from codec.files import check_target, only_writer
from codec.training.loop import Trainer
from codec.training.recipe import DEFAULT_RECIPE, Recipe
from codec.training.state import read_state


def train_with_progress(
    dataset: Path, state: Path, *, recipe: str | None, model: str | None, start: Path | None, resume: bool,
    valid: Path | None, max_minutes: float | None, logdir: Path | None, device: str, devices: int,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Train until the schedule or ``max_minutes`` ends; ``options`` are those of ``Recipe.with_options``.

    Ctrl-C ends it too, and SIGTERM where the program has a handler for it, behind a step: the state is saved, and the exit code
    is 128 and the signal's number.

    Raises UsageError if ``state`` exists and is not resumed, or another process writes it, and for options that contradict each
    other.
    """
    leader = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"  # of the processes of a training
    with only_writer(state) if leader else contextlib.nullcontext():
        check_state(state, resume)
        _train(dataset, state, recipe, model, start, resume, valid, max_minutes, logdir, device, devices, options)


def _train(
    dataset: Path, state: Path, recipe: str | None, model: str | None, start: Path | None, resume: bool, valid: Path | None,
    max_minutes: float | None, logdir: Path | None, device: str, devices: int, options: dict[str, Any],
) -> None:  # fmt: skip
    """Do what ``train_with_progress`` does, where no other process writes the state."""
    if resume and start is not None:
        raise UsageError("--start begins a run and --resume goes on with one: give one of them")
    chosen = choose_recipe(recipe, model, state if resume else None).with_options(**options)
    if logdir is not None:
        from torch.utils.tensorboard import SummaryWriter  # before the pictures are read: it may be missing
    trainer = Trainer(chosen, dataset, valid=valid, start=start, device=device, devices=devices)
    if resume:
        trainer.load(state)
    first = trainer.fabric.is_global_zero
    console = Console(stderr=True, quiet=not first)
    if start is not None and trainer.start is not None:
        where = (
            f"at step {trainer.start['step']}" if "step" in trainer.start else f"of checkpoint {trainer.start['checkpoint']}"
        )
        console.print(f"start: {trainer.start['tensors']} tensors of {trainer.start['model']} {where}")
    writer = SummaryWriter(str(logdir)) if logdir is not None and first else None
    columns = (TextColumn("step {task.fields[step]}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("train", total=1.0, step=trainer.step, text="")

        def report(row: dict[str, Any]) -> None:
            if "levels" in row:
                points = "  ".join(f"{p['bpp']:.3f}/{p['psnr_db']:.2f}" for p in row["levels"])
                console.print(f"step {row['step']}, {row['minutes']:.1f} min, bpp/dB by level: {points}")
            else:
                quality = f"  {row['psnr_db']:.2f} dB" if math.isfinite(row["psnr_db"]) else ""  # entropy networks alone
                text = f"loss {row['loss']:.4f}  {row['bpp']:.3f} bpp{quality}"
                progress.update(task, completed=row["progress"], step=row["step"], text=text)
            if writer is not None:
                _log(writer, row)

        with _signals() as received:
            limit = max_minutes if max_minutes is not None else math.inf
            stopped = trainer.run(state, max_minutes=limit, report=report, stop=lambda: bool(received))
    trainer.close()
    if writer is not None:
        writer.close()
    if stopped:
        console.print(f"stopped at step {trainer.step}, saved {state}; to go on: --resume")
        sys.exit(128 + (received[0] if received else signal.SIGINT))  # of several processes the first may have it alone
    console.print(f"saved {state}; next: codec export {state} --data {dataset} --name NAME --out FOLDER")


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM: by the first a run ends behind its step, with a state, by the second as ever."""
    received: list[int] = []
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    taken = [number for number, handler in before.items() if callable(handler)]  # not where it is ignored, as under nohup
    if threading.current_thread() is not threading.main_thread():
        taken = []

    def collect(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for number in taken:
        signal.signal(number, collect)
    try:
        yield received
    finally:
        for number in taken:
            signal.signal(number, before[number])


def check_state(state: Path, resume: bool) -> None:
    """Raise UsageError or WriteError unless ``state`` can be written, and is there if and only if it is resumed."""
    if state.exists() and not resume:
        raise UsageError(f"{state} exists: give --resume to go on with it, or another --state")
    check_target(state, overwrite=True)
    if resume and not state.exists():
        raise UsageError(f"{state} does not exist: leave --resume away to start")


def choose_recipe(recipe: str | None, model: str | None, resumed: Path | None) -> Recipe:
    """Return the recipe of that name or path, or that of a resumed state, or the shipped one of the model, or the default.

    Raises UsageError if it is a recipe of another model than ``model``.
    """
    if model is not None:
        shipped = Recipe.of_model(model)  # an unknown model is said as such
    if recipe is not None:
        chosen, source = Recipe.load(recipe), f"recipe {recipe}"
    elif resumed is not None:
        chosen, source = _recipe_of(resumed), str(resumed)
    elif model is not None:
        chosen, source = shipped, f"recipe {model}"
    else:
        chosen, source = Recipe.load(DEFAULT_RECIPE), DEFAULT_RECIPE
    if model is not None and chosen.model != model:
        raise UsageError(f"--model is {model}, but {source} is of {chosen.model}: give one of them")
    return chosen


def _recipe_of(state: Path) -> Recipe:
    try:
        return Recipe(**read_state(state, torch.device("cpu"))["recipe"])
    except TypeError as error:
        raise UsageError(f"{state}: its recipe is of another version ({error}): give --recipe") from error


def _log(writer: Any, row: dict[str, Any]) -> None:
    for point in row.get("levels", []):
        for key in ("bpp", "psnr_db", "loss"):
            writer.add_scalar(f"validation/{key}/level_{point['level']}", point[key], row["step"])
    for key in ("loss", "bpp", "psnr_db"):
        if key in row and math.isfinite(row[key]):
            writer.add_scalar(f"train/{key}", row[key], row["step"])
