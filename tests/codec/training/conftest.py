"""A tiny recipe, synthetic pictures, a fresh trainer, and the state of one after two steps."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command import call
from PIL import Image

RECIPE = """crop = 64
batch_size = 2
steps = 3
minutes = 5.0
warmup_steps = 2
klt_start = false

[config]
C = 12
D = 16
M = 16
N = 8
blocks_8 = 1
blocks_16 = 1
hyper = 8
features = 8
hidden = 8
levels = 2
"""


@pytest.fixture(scope="session")
def write_pictures():
    """Return write_pictures(folder, count, side=96): a new folder of synthetic square pictures 0.png, 1.png, …"""

    def write(folder: Path, count: int, side: int = 96) -> Path:
        folder.mkdir()
        y, x = np.mgrid[0:side, 0:side]
        for i in range(count):
            rng = np.random.default_rng(i)
            wave = 128 + 60 * np.sin(x * rng.uniform(0.05, 0.3) + y * rng.uniform(0.05, 0.3))
            pixels = wave[:, :, None] + rng.normal(0, 8, (side, side, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        return folder

    return write


@pytest.fixture(scope="session")
def data(tmp_path_factory, write_pictures) -> Path:
    """A folder of six pictures of 96 × 96. Do not change it."""
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures", 6)


@pytest.fixture(scope="session")
def recipe_text() -> str:
    """A tiny recipe."""
    return RECIPE


@pytest.fixture
def recipe(tmp_path, recipe_text) -> Path:
    """The TOML file of a tiny recipe."""
    path = tmp_path / "tiny.toml"
    path.write_text(recipe_text)
    return path


@pytest.fixture
def trainer(recipe, data):
    """A fresh trainer of the tiny recipe."""
    from codec.training.loop import Trainer
    from codec.training.recipe import Recipe

    return Trainer(Recipe.load(recipe), data, device="cpu")


@pytest.fixture(scope="session")
def state(tmp_path_factory, data) -> Path:
    """The state of a trainer after two steps, with the KLT start. Do not change it."""
    from codec.training.loop import Trainer
    from codec.training.recipe import Recipe

    folder = tmp_path_factory.mktemp("state")
    (folder / "tiny.toml").write_text(RECIPE)
    trainer = Trainer(Recipe.load(folder / "tiny.toml", klt_start=True), data, device="cpu")
    for _ in range(2):
        trainer.train_step()
    trainer.save(folder / "a.pt")
    return folder / "a.pt"


@pytest.fixture(scope="session")
def train():
    """Return train(*arguments, code=0): the result of ``codec train`` on the CPU, its exit code checked."""
    pytest.importorskip("lightning", reason="training needs the train extra")
    return partial(call, "train", "--device", "cpu")
