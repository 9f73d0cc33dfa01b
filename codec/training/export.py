"""From a training state to a release checkpoint: the averaged weights and the pictures that ``codec.release`` needs.

What is measured is measured on every 64th picture of the data (those that ``codec train`` holds out when no validation folder
is given).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitstream.errors import CodecError, UsageError
from codec.release import release
from codec.training.data import CropStore, load_rgb, split_images
from codec.training.recipe import Recipe
from codec.training.state import read_state
from models.manifest import check_name, own_folder
from models.network import Network
from models.registry import build

CALIBRATION_BATCHES, CALIBRATION_BATCH = 32, 4
CALIBRATION_PICTURES = 400
CALIBRATION_CROP = 256
SIDE = 512  # pixels that are measured of a picture


def export_state(
    state_path: Path, data: Path, name: str | None = None, out: Path | None = None, *, overwrite: bool = False
) -> dict[str, Any]:
    """Write ``name``.safetensors and its manifest row into ``out``; return the row.

    They default to the model's name with the number of steps, and to the folder of the user's own checkpoints.

    Raises UsageError if the state or the pictures cannot be read, or the name is taken.
    """
    state = read_state(state_path, torch.device("cpu"))
    recipe, model = trained_model(state_path, state)
    name, folder = name or f"{recipe.model}-{state['step']}", out or own_folder()
    check_name(folder, name, overwrite=overwrite)
    training, held_out = split_images(data, recipe.crop)
    calibration = training[:CALIBRATION_PICTURES]
    facts = {
        "steps": state["step"],
        "minutes": round(state["minutes"], 1),
        "data": f"{state['pictures']} pictures, crops of {recipe.crop}",
        **({"start": state["start"]} if state.get("start") else {}),
        **({} if state.get("held_out", True) else {"measured_on": "pictures of the training data, held out or not"}),
        "tune": model.cfg.tune,
        "recipe": state["recipe"],
    }
    return release(
        model, recipe.model, name, folder, calibration=_crops(calibration, recipe.crop),
        held_out=[_corner(path) for path in held_out], facts=facts, overwrite=overwrite,
    )  # fmt: skip


def _corner(path: Path) -> Tensor:
    """Return the top left corner of a picture, at most 512×512, sides multiples of 64: (1, 3, H, W) in [0, 1]."""
    image = load_rgb(path)[:, :SIDE, :SIDE]
    return image[None, :, : image.shape[1] // 64 * 64, : image.shape[2] // 64 * 64].float() / 255


def trained_model(path: Path, state: dict[str, Any]) -> tuple[Recipe, Network]:
    """Return the recipe and the network with averaged weights of a state. Raises UsageError if they do not fit."""
    try:
        recipe = Recipe(**state["recipe"])
        model = build(recipe.model, recipe.config).eval()
        model.load_state_dict(state["ema"])
    except (RuntimeError, TypeError, CodecError) as error:
        raise UsageError(f"{path}: not a training state of this codec ({error})") from error
    return recipe, model


def _crops(paths: list[Path], crop: int) -> Iterator[Tensor]:
    rng = np.random.default_rng(0)
    for _ in range(CALIBRATION_BATCHES):  # of all pictures at once there may be gigabytes
        chosen = [paths[i] for i in rng.integers(len(paths), size=CALIBRATION_BATCH)]
        yield CropStore(chosen, torch.device("cpu")).batch(CALIBRATION_BATCH, min(CALIBRATION_CROP, crop), rng)
