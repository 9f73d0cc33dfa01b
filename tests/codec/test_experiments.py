"""``scripts/experiments.py``: the experiments without training run, change what they say, and leave nothing changed."""

from __future__ import annotations

import dataclasses
import json
import runpy
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bitstream.tables import MasterTable, gaussian_master
from codec import Codec
from models import operations, refine
from models.operations import Weights, function_of
from models.program import Operation

pytest.importorskip("lightning", reason="training needs the train extra")

SCRIPT = Path(__file__).parents[2] / "scripts" / "experiments.py"


DIFFERENT = {  # of a tiny checkpoint, whose rows are Gaussian
    "dead-zone": [("strength 0.0", "shipped"), ("strength 0.5", "strength 1.2")],
    "rows": [],
    "precision": [("float32", "bf16, stem too")],
    "annealing": [("as shipped", "no noise"), ("as shipped", "twice the rate"), ("as shipped", "colder")],
}


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
    plain = operations._float32_sum, refine.RATE, refine.NOISE
    arguments = [name, str(pictures), "--model", str(tiny_checkpoint), "--side", "96", "-o", str(tmp_path / "out.json")]
    result = CliRunner().invoke(script["main"], [*arguments, *options])
    assert result.exit_code == 0, result.output
    measured = json.loads((tmp_path / "out.json").read_text())
    assert set(script["EXPERIMENTS"][name]) < set(measured)
    points = {key: measured[key]["points"] for key in script["EXPERIMENTS"][name]} | {"shipped": measured["shipped"]}
    assert all(points[one] != points[other] for one, other in DIFFERENT[name])
    assert (operations._float32_sum, refine.RATE, refine.NOISE) == plain


def test_counted_rows_are_replaced_by_gaussian_ones(script, tiny_checkpoint):
    model, gaussian = Codec(tiny_checkpoint, "cpu").model, gaussian_master()
    rolled = MasterTable(gaussian.lo, np.roll(gaussian.cumulative, 1, axis=0))
    model.entropy = dataclasses.replace(model.entropy, y_table=rolled)
    script["gaussian_rows"](model, None)
    assert np.array_equal(model.entropy.y_table.cumulative, gaussian.cumulative)


def test_sums_are_of_the_faster_type_in_one_variant_alone(script, tiny_checkpoint):
    model, fast = Codec(tiny_checkpoint, "cpu").model, Weights({}, torch.device("cpu"), torch.bfloat16)
    x = torch.full((1, 1, 1, 1), 257.0)
    with ExitStack() as stack:
        script["fast_sums"](model, stack)
        assert function_of(Operation("add", (0, 0)), fast, [False, False])(x, x).item() == 512
    assert function_of(Operation("add", (0, 0)), fast, [False, False])(x, x).item() == 514


def test_the_descent_is_measured_with_effort_alone(script, pictures, tiny_checkpoint):
    for arguments in (["annealing"], ["rows", "--effort", "2"]):
        result = CliRunner().invoke(script["main"], [*arguments, str(pictures), "--model", str(tiny_checkpoint)])
        assert result.exit_code == 2
        assert "is measured with" in result.output
