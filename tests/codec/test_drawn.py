"""``scripts/make_drawn.py``: pictures of every kind, the same ones again, none of a photograph that is held out."""

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "make_drawn.py"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(3):  # the first is held out
        pixels = rng.integers(1, 256, (256, 300, 3)) if number else np.zeros((256, 300, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def make(photographs, out, *options) -> dict[str, np.ndarray]:
    result = CliRunner().invoke(SCRIPT["main"], [str(photographs), str(out), "--count", "3", "--side", "200", *options])
    assert result.exit_code == 0, result.output
    return {path.name: np.asarray(Image.open(path)) for path in sorted(out.iterdir())}


@pytest.fixture(scope="module")
def drawn(photographs, tmp_path_factory):
    return make(photographs, tmp_path_factory.mktemp("drawn"))


def test_there_are_some_of_each_kind(drawn):
    kinds = ("chart", "gradients", "interface", "loud", "shapes")
    assert list(drawn) == [f"{kind}-{number:03}.png" for kind in kinds for number in range(3)]
    assert {pixels.shape for pixels in drawn.values()} == {(200, 200, 3)}


def test_they_are_loud(drawn):
    """Photographs seldom are: the median over the pictures of the largest distance of two channels."""
    spread = [np.ptp(pixels.astype(int), axis=2).max() for pixels in drawn.values()]
    assert np.median(spread) > 200


def test_the_same_seed_makes_the_same_pictures(photographs, drawn, tmp_path):
    again, others = make(photographs, tmp_path / "again"), make(photographs, tmp_path / "others", "--seed", "5")
    assert all(np.array_equal(again[name], drawn[name]) for name in drawn)
    assert not all(np.array_equal(others[name], drawn[name]) for name in drawn if others[name].shape == drawn[name].shape)


def test_what_is_held_out_stays_so(drawn):
    assert all(drawn[name].any() for name in drawn if name.startswith("loud"))


def test_small_pictures_can_be_drawn(photographs, tmp_path):
    assert len(make(photographs, tmp_path / "out", "--side", "160", "--count", "12")) == 60


def test_what_was_drawn_before_is_no_photograph(photographs, drawn, tmp_path):
    folder = tmp_path / "all"
    shutil.copytree(photographs, folder)
    for _ in range(2):
        again = make(folder, folder / "drawn")
    assert all(np.array_equal(again[name], drawn[name]) for name in drawn)
