"""Recipes: TOML with known keys and sane values; everything else is a usage error."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bitstream.errors import UsageError
from codec.training.recipe import CODE_RATES, LEARNING_RATES, Recipe, shipped
from models.registry import MODELS, build

CONTEXTS = ("joint", "checkerboard")


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_recipe_that_builds_it(name):
    recipe = Recipe.of_model(name)
    assert (recipe.model, recipe.crop % 64) == (name, 0)
    model = build(recipe.model, recipe.config)
    assert type(model.cfg) is MODELS[name][0]


def test_shipped_recipes_are_those_of_the_models_and_their_variants():
    assert set(MODELS) <= set(shipped())
    for name in shipped():
        model = Recipe.load(name).model
        assert model in MODELS
        assert name == model or name.startswith(f"{model}-")


@pytest.mark.parametrize("name", ["swift-longer", "swift-muon", "swift-ms-ssim"])
def test_recipes_that_go_on_keep_the_model_of_the_release(name):
    recipe, start = Recipe.load(name), Recipe.of_model("swift")
    assert recipe.model == "swift"
    tune = {"tune": "ms-ssim"} if "ms-ssim" in name else {}
    assert recipe.config == start.config | tune
    assert build(recipe.model, recipe.config).cfg == dataclasses.replace(build(start.model, start.config).cfg, **tune)


@pytest.mark.parametrize("crop", [64, 128])
def test_ms_ssim_needs_room_for_five_scales(crop):
    with pytest.raises(UsageError, match=f"crop is {crop}, MS-SSIM needs 192 or more"):
        Recipe(config={"tune": "ms-ssim"}, crop=crop)
    with pytest.raises(UsageError, match=f"crop is {crop}, MS-SSIM needs 192 or more"):
        Recipe(crop=crop).with_options(tune="ms-ssim")
    assert Recipe(config={"tune": "ms-ssim"}, crop=192).with_options(tune="psnr", crop=crop).config == {"tune": "psnr"}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tune", ["psnr", "ms-ssim"])
def test_tune_is_an_option_of_every_models_config(model, tune):
    recipe = Recipe(model).with_options(tune=tune, config=("N=8", "M=8"))
    assert recipe.config == {"tune": tune, "N": 8, "M": 8}
    assert build(model, recipe.config).cfg.tune == tune


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("tune", "shown"), [("ssim", "'ssim', expected one of psnr, ms-ssim"), ("", "''"), (1, "1"), (True, "True")]
)
def test_a_tune_that_is_none_is_a_usage_error(model, tune, shown):
    with pytest.raises(UsageError, match=f"tune is {shown}"):
        build(model, {"tune": tune})


def test_a_recipe_with_a_bad_tune_is_a_usage_error(recipe, data, tmp_path, train):
    recipe.write_text(recipe.read_text() + 'tune = "ssim"\n')
    result = train(data, "--recipe", recipe, "--state", tmp_path / "a.pt", code=2)
    assert "tune is 'ssim', expected one of psnr, ms-ssim" in result.stderr
    assert not (tmp_path / "a.pt").exists()


def test_contexts_have_the_widths_of_the_hyperprior_that_they_start_with():
    widths = {(Recipe.of_model(name).config["N"], Recipe.of_model(name).config["M"]) for name in ("hyperprior", *CONTEXTS)}
    assert len(widths) == 1


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"swift"}))
@pytest.mark.parametrize("code_rate", ["low", "high"])
def test_code_rates_are_channels_of_the_models(name, code_rate):
    recipe = Recipe.of_model(name).with_options(code_rate=code_rate)
    n, m = CODE_RATES[name][code_rate]
    model = build(name, recipe.config)
    assert (model.cfg.N, model.cfg.M) == (n, m)
    with torch.no_grad():
        assert model.g_a(torch.zeros(1, 3, 64, 64)).shape == (1, m, 4, 4)


def test_changes_win_over_the_file_and_none_does_not(recipe):
    loaded = Recipe.load(recipe, crop=128, batch_size=None)
    assert (loaded.crop, loaded.batch_size, loaded.config["levels"]) == (128, 2, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("krop = 64", "unknown key 'krop'; known keys: batch_size, config, counted_rows, crop"),
        ("crop = ", "not valid TOML"),
        ("crop = 100", "crop is 100, expected a multiple of 64"),
        ("crop = 0", "crop is 0, expected a multiple of 64"),
        ("batch_size = 0", "batch_size is 0, expected at least 1"),
        ('crop = "64"', "crop is '64', expected a value like 192"),
        ("seed = true", "seed is True, expected a value like 0"),
        ("config = 3", "config is 3, expected"),
        ("test_batch_size = 0", "test_batch_size is 0, expected at least 1"),
        ("epochs = -1", "epochs is -1, expected at least 0"),
        ("lr_trunk = -1e-4", "lr_trunk is -0.0001, expected 0 or more"),
        ("lr_gains = nan", "lr_gains is nan, expected 0 or more"),
        ('schedule = "linear"', "schedule is 'linear', expected one of cosine, multistep, plateau"),
        ('tune = "ms-ssim"', "unknown key 'tune'"),
        ("minutes = 0", "minutes is 0, expected more than 0"),
        ("steps = 0", "steps is 0, expected more than 0"),
        ("grad_clip = 0", "grad_clip is 0, expected more than 0"),
        ("seed = -1", "seed is -1, expected at least 0"),
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


def test_one_lmbda_is_a_config_of_one_level(recipe):
    config = Recipe.load(recipe).with_options(lmbda=0.013).config
    assert (config["levels"], config["lmbda_min"], config["lmbda_max"], config["C"]) == (1, 0.013, 0.013, 12)


def test_lr_sets_every_learning_rate(recipe):
    changed = Recipe.load(recipe).with_options(lr=2e-4, seed=None, batch_size=5)
    assert {getattr(changed, name) for name in LEARNING_RATES} == {2e-4}
    assert (changed.seed, changed.batch_size) == (0, 5)


def test_config_options_are_written_as_in_toml(recipe):
    config = Recipe.load(recipe).with_options(config=("N=64", "lmbda_max = 2e-2", "means=true")).config
    assert (config["N"], config["lmbda_max"], config["means"], config["C"]) == (64, 0.02, True, 12)


def test_minutes_end_a_schedule_of_epochs():
    assert Recipe(epochs=5).with_options(minutes=2.0).epochs == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lmbda": 0.0}, "--lmbda is 0.0, expected more than 0"),
        ({"lmbda": float("nan")}, "--lmbda is nan"),
        ({"lr": float("inf")}, "lr_trunk is inf"),
        ({"code_rate": "low"}, "swift has no --code-rate: set its channels by --config"),
        ({"minutes": 1.0, "epochs": 2}, "--epochs and --minutes are both lengths"),
        ({"lmbda": 0.01, "config": ("levels=2",)}, "--config levels=2 contradicts another option, by which levels is 1"),
        ({"config": ("N=1", "N=2")}, "--config N=2 contradicts"),
        ({"tune": "ms-ssim", "config": ('tune="psnr"',)}, "contradicts another option, by which tune is ms-ssim"),
        ({"config": ("N",)}, "--config N: expected KEY=VALUE, for example N=64"),
        ({"config": ("N=",)}, "--config N=: expected KEY=VALUE"),
        ({"config": ("N=x",)}, "--config N=x: expected KEY=VALUE"),
        ({"config": ("a b=1",)}, "--config a b=1: expected KEY=VALUE"),
        ({"config": ("N=1\nM=2",)}, "expected KEY=VALUE"),
    ],
)
def test_options_that_cannot_be_are_usage_errors(options, message):
    with pytest.raises(UsageError, match=message):
        Recipe().with_options(**options)


def test_an_unknown_model_lists_the_known_ones():
    for name in ("nonsense", "../recipes/swift"):
        with pytest.raises(UsageError, match="unknown model .*; models with a recipe: attention, checkerboard, .*swift"):
            Recipe.of_model(name)


def test_a_recipe_that_is_no_utf_8_is_a_usage_error(tmp_path):
    (tmp_path / "a.toml").write_bytes(b'model = "\xff"')
    with pytest.raises(UsageError, match="not valid TOML"):
        Recipe.load(tmp_path / "a.toml")
