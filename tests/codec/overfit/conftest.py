"""A tiny checkpoint of overfit, descents of a few dozen iterations, and files that they made."""

from __future__ import annotations

import hashlib
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_overfit import CONFIG, write_tiny_overfit

import checkpoints
from models.overfit.fit import Fit
from models.overfit.moving import FIRST_STEP, MovingNetworks
from models.overfit.networks import fresh_gains, fresh_parameters
from models.overfit.weights import ABSENT, BaseNetworks

ITERATIONS = 12
ROW = """[overfit]
file = "overfit.safetensors"
sha256 = "{sha256}"
model = "overfit"
max_level = {max_level}
"""


@pytest.fixture(scope="session")
def overfit_checkpoint(tmp_path_factory):
    """The path of a checkpoint of overfit with few channels: the networks that training begins with, and a little noise."""
    parameters, generator = fresh_parameters(CONFIG, seed=1), torch.Generator().manual_seed(3)
    for name, value in parameters.items():
        if name.endswith((".out", ".conv_3")) or ".bias" in name:
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
        if name.endswith(".bias_3") and name.startswith("grid"):
            value[:, 1] -= 3  # log2 of scales: zeros are cheap, as with trained networks
    path = tmp_path_factory.mktemp("overfit") / "tiny-overfit.safetensors"
    write_tiny_overfit(path, BaseNetworks.rounded(CONFIG, parameters, fresh_gains(CONFIG)))
    return path


@pytest.fixture(scope="session")
def fitted_codec(overfit_checkpoint):
    """A Codec on the CPU with the tiny checkpoint of overfit."""
    from codec import Codec

    return Codec(overfit_checkpoint, "cpu")


def _make_quick(monkeypatch, iterations=ITERATIONS):
    """Let descents have few iterations, twice as many with effort 1, and take the first steps for their networks."""
    monkeypatch.setattr("codec.overfit.fitting.ITERATIONS", tuple(iterations * (effort + 1) for effort in range(11)))

    def first_steps(self, cost):
        return tuple(FIRST_STEP if size else ABSENT for size in self._sizes)

    monkeypatch.setattr(MovingNetworks, "choose_steps", first_steps)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    _make_quick(monkeypatch)


@pytest.fixture
def whole_search(monkeypatch):
    """The search for the steps of the networks as it is: it takes most of the time of so short a descent."""
    monkeypatch.setattr(MovingNetworks, "choose_steps", CHOOSE_STEPS)


CHOOSE_STEPS = MovingNetworks.choose_steps


def draw(h, w, seed=0):
    """Return an (h, w, 3) uint8 array with waves, an edge and little noise, almost gray: colours take longer to learn."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:h, 0:w]
    plane = 110 + 50 * np.sin(x * 0.11) + 40 * np.cos(y * 0.17) + 30 * (x + 2 * y > w)
    return (plane[:, :, None] + [0, 4, 8] + rng.normal(0, 3, (h, w, 3))).round().clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def small():
    """A picture of 60 × 50 pixels."""
    return draw(50, 60)


@pytest.fixture(scope="session")
def fitted(fitted_codec, small):
    """The file of ``small`` at quality 50."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _make_quick(monkeypatch)
        return fitted_codec.encode(small, quality=50)


@pytest.fixture(scope="session")
def wide_fitted(fitted_codec):
    """The file of a picture of 100 × 70 pixels at quality 25, with alpha."""
    pixels = np.concatenate([draw(70, 100), np.full((70, 100, 1), 200, np.uint8)], axis=2)
    pixels[40:, :, 3] = 7
    with pytest.MonkeyPatch.context() as monkeypatch:
        _make_quick(monkeypatch)
        return fitted_codec.encode(pixels, quality=25)


@pytest.fixture
def installed_overfit(tmp_path, monkeypatch, overfit_checkpoint):
    """A folder of checkpoints in place of the installed one: the tiny one, named "overfit"."""
    from codec.api import _cached_codec

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    shutil.copy(overfit_checkpoint, folder / "overfit.safetensors")
    sha256 = hashlib.sha256(overfit_checkpoint.read_bytes()).hexdigest()
    (folder / "manifest.toml").write_text(ROW.format(sha256=sha256, max_level=CONFIG.max_level))
    monkeypatch.setattr(checkpoints, "FOLDER", folder)
    monkeypatch.setattr("models.manifest.MANIFEST", folder / "manifest.toml")
    _cached_codec.cache_clear()
    yield folder
    _cached_codec.cache_clear()


@pytest.fixture
def run(installed_overfit, call_codec):
    """Return run(*arguments, code=0): the result of a command in this process, with the tiny overfit installed."""
    return call_codec


@pytest.fixture
def png(tmp_path, small):
    """The path of ``small``, saved without loss."""
    Image.fromarray(small).save(tmp_path / "in.png")
    return tmp_path / "in.png"


@pytest.fixture
def interrupt_at(monkeypatch):
    """Return interrupt_at(number): the descents that follow are interrupted in so many iterations, counted from now, once."""

    def install(number):
        turn, left = Fit._turn, [number]

        def interrupted(self, *arguments):
            turn(self, *arguments)
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        monkeypatch.setattr(Fit, "_turn", interrupted)

    return install
