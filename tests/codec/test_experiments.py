"""``scripts/experiments.py``: the experiments without training run, change what they say, and leave nothing changed."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("lightning", reason="training needs the train extra")

SCRIPT = Path(__file__).parents[2] / "scripts" / "experiments.py"


@pytest.fixture(scope="module")
def script():
    """The names of the script."""
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def pictures(tmp_path, picture) -> Path:
    """A folder with one picture."""
    (tmp_path / "pictures").mkdir()
    Image.fromarray(picture(100, 130)).save(tmp_path / "pictures" / "a.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    ("name", "options"), [("dead-zone", ()), ("rows", ()), ("precision", ()), ("annealing", ("--effort", "1"))]
)
def test_variants_are_measured(script, pictures, tiny_checkpoint, tmp_path, name, options):
    arguments = [name, str(pictures), "--model", str(tiny_checkpoint), "--side", "96", "-o", str(tmp_path / "out.json")]
    result = CliRunner().invoke(script["main"], [*arguments, *options])
    assert result.exit_code == 0, result.output
    measured = json.loads((tmp_path / "out.json").read_text())
    assert set(script["EXPERIMENTS"][name]) < set(measured)
    curves = [json.dumps(value["points"]) for key, value in measured.items() if key in script["EXPERIMENTS"][name]]
    differ = len({*curves, json.dumps(measured["shipped"])}) > 1
    assert differ == (name != "rows")  # those of the tiny checkpoint are Gaussian


def test_the_descent_is_measured_with_effort_alone(script, pictures, tiny_checkpoint):
    for arguments in (["annealing"], ["rows", "--effort", "2"]):
        result = CliRunner().invoke(script["main"], [*arguments, str(pictures), "--model", str(tiny_checkpoint)])
        assert result.exit_code == 2
        assert "is measured with" in result.output
