"""Models by name: unknown names and config keys are errors that list the known ones."""

from __future__ import annotations

import dataclasses

import pytest

from bitstream.errors import UsageError
from models.registry import MODELS, build, configure

TINY = {"C": 8, "D": 8, "M": 8, "N": 8, "blocks_8": 0, "blocks_16": 0}


@pytest.mark.parametrize("name", MODELS)
def test_builds_with_changed_config(name):
    known = {field.name for field in dataclasses.fields(MODELS[name][0])}
    network = build(name, {"levels": 2} | {key: value for key, value in TINY.items() if key in known})
    assert (network.cfg.levels, network.cfg.M, network.cfg.N) == (2, 8, 8)
    assert len(network.log2_gain) == 2


def test_the_six_models_have_these_names():
    """Checkpoints name their model: an old name must stay."""
    assert list(MODELS) == ["swift", "factorized", "hyperprior", "joint", "checkerboard", "attention"]


@pytest.mark.parametrize("name", MODELS)
def test_a_network_has_what_configure_returns(name):
    network = build(name, {"levels": 2})
    assert network.cfg == configure(name, {"levels": 2})
    assert type(network.cfg) is MODELS[name][0]
    assert network.layout() == network.cfg.layout()


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(UsageError, match="unknown model 'slow'; known models: swift, factorized, hyperprior, joint"):
        build("slow")


@pytest.mark.parametrize(
    ("key", "value"), [("levels", 0), ("M", -8), ("M", 8.0), ("M", True), ("linear_scale", 1), ("means", "yes")]
)
def test_config_values_of_another_kind_are_refused(key, value):
    with pytest.raises(UsageError, match=f"model hyperprior: {key} is {value!r}, expected a value like"):
        build("hyperprior", {key: value})


@pytest.mark.parametrize("value", [True, False])
def test_switches_of_a_config_may_be_on_or_off(value):
    assert build("hyperprior", {"N": 8, "M": 8, "means": value}).cfg.means is value


def test_only_joint_rounds_plainly():
    assert build("joint", {"N": 8, "M": 8, "plain_rounding": True}).cfg.layout().mixtures == 1
    with pytest.raises(UsageError, match="model checkerboard: plain_rounding is true, which only joint has"):
        build("checkerboard", {"N": 8, "M": 8, "plain_rounding": True})


def test_unknown_config_key_lists_the_known_ones():
    with pytest.raises(UsageError, match="model swift: unknown config key 'channels'; known keys: C, D, M, N"):
        build("swift", {"channels": 8})


def test_config_classes_are_frozen():
    for config_class, _ in MODELS.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            config_class().levels = 3
