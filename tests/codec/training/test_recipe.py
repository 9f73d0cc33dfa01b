"""Recipes: TOML with known keys and sane values; everything else is a usage error."""

from __future__ import annotations

import pytest

from bitstream.errors import UsageError
from codec.training.recipe import RECIPES, Recipe


def test_shipped_recipes_load():
    names = [path.stem for path in RECIPES.glob("*.toml")]
    assert "swift" in names
    for name in names:
        assert Recipe.load(name).crop % 64 == 0


def test_changes_win_over_the_file_and_none_does_not(recipe):
    loaded = Recipe.load(recipe, crop=128, batch_size=None)
    assert (loaded.crop, loaded.batch_size, loaded.config["levels"]) == (128, 2, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("krop = 64", "unknown key 'krop'; known keys: batch_size, config, crop"),
        ("crop = ", "not valid TOML"),
        ("crop = 100", "crop is 100, expected a multiple of 64"),
        ("crop = 0", "crop is 0, expected a multiple of 64"),
        ("batch_size = 0", "batch_size is 0, expected at least 1"),
        ('crop = "64"', "crop is '64', expected a value like 192"),
        ("seed = true", "seed is True, expected a value like 0"),
        ("config = 3", "config is 3, expected"),
        ("minutes = 0", "minutes is 0, expected more than 0"),
        ("steps = 0", "steps is 0, expected more than 0"),
    ],
)
def test_bad_recipes_are_usage_errors(tmp_path, data, text, message, train):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        Recipe.load(tmp_path / "bad.toml")
    result = train(data, "--recipe", tmp_path / "bad.toml", "--state", tmp_path / "a.pt", code=2)
    assert result.stderr.startswith("codec: recipe")
    assert not (tmp_path / "a.pt").exists()


def test_a_missing_recipe_lists_the_shipped_ones():
    with pytest.raises(UsageError, match="cannot be read .*; shipped recipes: .*swift"):
        Recipe.load("nonsense")


def test_whole_numbers_do_for_minutes(tmp_path):
    (tmp_path / "a.toml").write_text("minutes = 5")
    assert Recipe.load(tmp_path / "a.toml").minutes == 5
