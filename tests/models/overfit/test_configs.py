"""Configs of ``overfit``: what a checkpoint may say, λ of levels, the shapes and groups of parameters."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_overfit import CONFIG

from bitstream.errors import UsageError
from models.overfit.configs import GRIDS, OverfitConfig, levelled


def test_a_config_is_read_as_it_was_written():
    assert OverfitConfig.of(dataclasses.asdict(CONFIG)) == CONFIG
    assert OverfitConfig.of({}) == OverfitConfig()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depth": 3}, "unknown config key 'depth'; known keys: analysis, hidden"),
        ({"width": 4.0}, r"width is 4\.0, expected a int above 0, at most 256"),
        ({"width": True}, "width is True"),
        ({"hidden": 0}, "hidden is 0"),
        ({"hidden": 10**400}, "hidden is 1000"),
        ({"analysis": 257}, "analysis is 257"),
        ({"lmbda_max": float("nan")}, "lmbda_max is nan"),
        ({"levels": 1}, "1 levels from .* expected two or more, rising"),
        ({"lmbda_min": 0.5, "lmbda_max": 0.5}, r"levels from 0\.5 to 0\.5"),
    ],
)
def test_refuses_a_config_that_cannot_be(config, message):
    with pytest.raises(UsageError, match=message):
        OverfitConfig.of(config)


def test_lambda_rises_by_a_factor_from_its_lowest_to_its_highest():
    found = CONFIG.lmbda(torch.arange(3, dtype=torch.float64))
    assert found[[0, 2]].tolist() == pytest.approx([CONFIG.lmbda_min, CONFIG.lmbda_max])
    assert float(found[1] ** 2) == pytest.approx(float(found[0] * found[2]))
    assert CONFIG.max_level == 512


def test_groups_hold_each_parameter_once_in_order():
    groups = CONFIG.groups()
    assert sorted(name for names in groups for name in names) == sorted(CONFIG.shapes())
    assert len(groups) == 13
    for grid, names in enumerate(groups[:GRIDS]):
        assert all(name.startswith(f"grid_{grid}.") for name in names)
    assert groups[GRIDS:-1] == [["upsample"], ["skip"], *([f"synthesis.conv_{i}"] for i in (1, 2, 3))]
    assert groups[-1] == [f"synthesis.bias_{i}" for i in (1, 2, 3)]


def test_biases_alone_differ_between_levels():
    assert {name for name in CONFIG.shapes() if levelled(name)} == {name for name in CONFIG.shapes() if "bias" in name}
