"""The commands ``train`` and ``export``: their options. ``codec.cli.main`` registers them and turns errors into exit codes.

Heavy imports stay inside the commands, as in ``codec.cli.main``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bitstream.errors import CodecError, UsageError, is_out_of_memory
from codec.cli.options import FILE, FOLDER, PATH, set_threads
from codec.training.recipe import PARTS, SCHEDULES

RECIPE_OPTIONS = (  # of ``Recipe.with_options``
    click.option("--lmbda", type=float, help="Train for one λ instead of all levels: 0.0067, 0.013, 0.025, 0.0483, …"),
    click.option("--only", type=click.Choice(PARTS), help="What learns: the entropy networks (by the rate), or biases."),
    click.option("--lr", type=float, help="Every learning rate."),
    click.option("--batch-size", type=int, help="Crops per step and device."),
    click.option("--test-batch-size", type=int, help="Validation pictures at once: those of equal size go together."),
    click.option("--crop", type=int, help="Side of the crops in pixels."),
    click.option("--epochs", type=int, help="Length of the schedule in epochs (pictures / batch size steps each)."),
    click.option("--minutes", type=float, help="Length of the schedule in minutes."),
    click.option("--schedule", type=click.Choice(SCHEDULES), help="Of the learning rates, after the warm-up."),
    click.option("--code-rate", type=click.Choice(["low", "high"]), help="Channels as the report states them."),
    click.option("--tune", metavar="psnr|ms-ssim", help="The measure whose distortion is made small."),
    click.option("--config", multiple=True, metavar="KEY=VALUE", help="A field of the model's config; repeatable."),
    click.option("--seed", type=int, help="Of weights, crops and levels."),
)


def _recipe_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(RECIPE_OPTIONS):
        function = option(function)
    return function


@contextmanager
def _train_extra(threads: int | None) -> Iterator[None]:
    """Set the CPU threads, of other processes of a training too; say how to install what an import inside the block lacks."""
    try:
        set_threads(threads)
        if threads:
            os.environ["OMP_NUM_THREADS"] = str(threads)
        yield
    except ImportError as error:
        cure = "pip install 'learned-image-codec[train]', or in its repository -e '.[train]'"
        raise UsageError(f"{error.name} is not installed: {cure}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise CodecError(
            "out of memory: train with a lower --batch-size or --crop, or give fewer or smaller pictures"
        ) from error


@click.argument("folder", metavar="[DATASET]", type=FOLDER, required=False)
@click.option("--dataset", type=FOLDER, help="Training pictures: the same as DATASET.")
@click.option("--test-dataset", "--valid", "valid", type=FOLDER, help="Validation pictures (default: every 64th).")
@click.option("--model", help="A model, trained by its shipped recipe.")
@click.option("--recipe", help="A shipped recipe's name or a TOML path (default: swift; with --resume, that of the state).")
@click.option("--experiment", metavar="NAME", help="State in NAME.pt, TensorBoard logs in runs/NAME.")
@click.option("--state", type=PATH, help="The state file, saved as it goes (default: train.pt).")
@click.option("--logdir", type=PATH, help="Write TensorBoard logs here.")
@click.option("--start", type=FILE, help="Begin with what fits of another state's weights, or a checkpoint's.")
@click.option("--resume", is_flag=True, help="Go on from the state file.")
@click.option("--max-minutes", type=float, help="End this call after so long; go on with --resume.")
@_recipe_options
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--devices", type=click.IntRange(1), default=1, show_default=True,
              help="How many GPUs, or CPU processes; each takes a batch of its own. torchrun sets this itself.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1))
def train(
    folder: Path | None, dataset: Path | None, valid: Path | None, model: str | None, recipe: str | None,
    experiment: str | None, state: Path | None, logdir: Path | None, start: Path | None, resume: bool,
    max_minutes: float | None, device: str, devices: int, threads: int | None, **options: Any,
) -> None:  # fmt: skip
    """Train a model on the pictures below DATASET. Ctrl-C saves the state and ends.

    Options win over the recipe. All levels of a recipe are trained in one state; --lmbda trains for one λ:

    \b
    codec train --model hyperprior --lmbda 0.0067 --epochs 200 --schedule multistep \\
        --dataset PICTURES --experiment hyperprior-1
    """
    pictures = folder or dataset
    if pictures is None or (folder and dataset):
        raise UsageError("the training pictures are given once: as DATASET or by --dataset")
    if experiment is not None:
        if not experiment or Path(experiment).name != experiment or experiment == "..":
            raise UsageError(f"--experiment is {experiment!r}, expected a plain name: give a path by --state and --logdir")
        state, logdir = state or Path(f"{experiment}.pt"), logdir or Path("runs", experiment)
    with _train_extra(threads):
        from codec.training.session import train_with_progress

        train_with_progress(pictures, state or Path("train.pt"), recipe=recipe, model=model, start=start, resume=resume,
                            valid=valid, max_minutes=max_minutes, logdir=logdir, device=device, devices=devices,
                            options=options)  # fmt: skip


@click.argument("state", type=FILE)
@click.option("--data", type=FOLDER, required=True,
              help="Training pictures: they calibrate the integer layers and give the RD points.")  # fmt: skip
@click.option("--name", help="Name in the manifest (default: the model's, with the number of steps).")
@click.option("-f", "--force", is_flag=True, help="Replace a checkpoint of this name.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder (default: that of your own checkpoints).")
@click.option("--threads", type=click.IntRange(1))
def export(state: Path, data: Path, name: str | None, force: bool, out: Path | None, threads: int | None) -> None:
    """Turn a training STATE into a release checkpoint: integer entropy path, proofs, measured cost, manifest row."""
    with _train_extra(threads):
        from codec.training.export import export_state

        row = export_state(state, data, name, out, overwrite=force)
    click.echo(json.dumps(row, indent=2))
