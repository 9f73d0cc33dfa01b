"""Models by name: unknown names and config keys are errors that list the known ones."""

from __future__ import annotations

import dataclasses

import pytest

from bitstream.errors import UsageError
from models.registry import MODELS, build


@pytest.mark.parametrize("name", MODELS)
def test_builds_with_changed_config(name):
    levels = {"levels": 2}
    assert build(name, levels | {"C": 8, "D": 8, "M": 8, "N": 8, "blocks_8": 0, "blocks_16": 0}).cfg.levels == 2


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(UsageError, match="unknown model 'slow'; known models: swift"):
        build("slow")


def test_unknown_config_key_lists_the_known_ones():
    with pytest.raises(UsageError, match="model swift: unknown config key 'channels'; known keys: C, D, M, N"):
        build("swift", {"channels": 8})


def test_config_classes_are_frozen():
    for _, config_class in MODELS.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            config_class().levels = 3
