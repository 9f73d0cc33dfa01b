"""``codec train``: ends, resumes, logs, and refuses what it cannot train on before it begins."""

from __future__ import annotations

import shutil

import pytest
import torch

pytest.importorskip("lightning", reason="training needs the train extra")

from codec.training.loop import Trainer  # noqa: E402
from codec.training.recipe import Recipe  # noqa: E402


def saved_step(state):
    return torch.load(state, weights_only=True)["step"]


def test_train_ends_with_the_schedule_and_resumes(data, recipe, tmp_path, train):
    state = tmp_path / "a.pt"
    result = train(data, "--recipe", recipe, "--state", state, "--batch-size", "1", "--seed", "3")
    assert saved_step(state) == 3
    assert "step 3" in result.stderr
    assert torch.load(state, weights_only=True)["recipe"]["seed"] == 3
    recipe.write_text(recipe.read_text().replace("steps = 3", "steps = 5"))
    train(data, "--recipe", recipe, "--state", state, "--resume")
    assert saved_step(state) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "tiny.toml"]  # no partial is left


def test_resuming_without_a_recipe_goes_on_with_the_states(data, recipe, tmp_path, train):
    state = tmp_path / "a.pt"
    train(data, "--recipe", recipe, "--state", state, "--seed", "3")
    before = torch.load(state, weights_only=True)["recipe"]
    train(data, "--state", state, "--resume")
    assert torch.load(state, weights_only=True)["recipe"] == before


def test_max_minutes_ends_the_run(data, recipe, tmp_path, train):
    recipe.write_text(recipe.read_text().replace("steps = 3", "steps = 1000000"))
    train(data, "--recipe", recipe, "--state", tmp_path / "a.pt", "--max-minutes", "0.003")
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert 0 < state["step"] < 1000
    assert 0.003 <= state["minutes"] < 0.1


def test_train_writes_tensorboard_logs(data, recipe, tmp_path, train):
    pytest.importorskip("tensorboard")
    train(data, "--recipe", recipe, "--state", tmp_path / "a.pt", "--logdir", tmp_path / "logs")
    assert list((tmp_path / "logs").glob("events*"))


def test_train_starts_with_the_klt(data, recipe, tmp_path, train):
    recipe.write_text(recipe.read_text().replace("klt_start = false", "klt_start = true").replace("steps = 3", "steps = 1"))
    train(data, "--recipe", recipe, "--state", tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True)["model"]["log2_std"].abs().max() > 0


def test_resume_without_a_state_is_a_usage_error(data, recipe, tmp_path, train):
    result = train(data, "--recipe", recipe, "--state", tmp_path / "a.pt", "--resume", code=2)
    assert "a.pt does not exist: leave --resume away to start" in result.stderr


def test_an_existing_state_is_not_overwritten(data, recipe, tmp_path, train):
    (tmp_path / "a.pt").write_bytes(b"mine")
    result = train(data, "--recipe", recipe, "--state", tmp_path / "a.pt", code=2)
    assert "a.pt exists: give --resume" in result.stderr
    assert (tmp_path / "a.pt").read_bytes() == b"mine"


def test_an_empty_folder_is_a_usage_error(recipe, tmp_path, train):
    (tmp_path / "none").mkdir()
    result = train(tmp_path / "none", "--recipe", recipe, "--state", tmp_path / "a.pt", code=2)
    assert "found 0 pictures" in result.stderr


def test_one_picture_cannot_be_split(recipe, tmp_path, train, write_pictures):
    folder = write_pictures(tmp_path / "one", 1)
    result = train(folder, "--recipe", recipe, "--state", tmp_path / "a.pt", code=2)
    assert "1 pictures, all held out for validation: add more or give --valid" in result.stderr


def test_validation_pictures_may_be_given(data, recipe, tmp_path, write_pictures):
    valid = write_pictures(tmp_path / "valid", 1)
    own = Trainer(Recipe.load(recipe), data, valid=valid, device="cpu")
    assert (len(own.train_paths), own.valid_paths) == (6, [valid / "0.png"])


def test_a_validation_folder_that_is_all_of_the_data_is_a_usage_error(data, recipe, tmp_path, train):
    result = train(data, "--valid", data, "--recipe", recipe, "--state", tmp_path / "a.pt", code=2)
    assert "all of its pictures are those of" in result.stderr


def test_a_run_that_was_begun_with_a_validation_folder_remembers_it(data, recipe, tmp_path, write_pictures):
    valid = write_pictures(tmp_path / "valid", 1)
    one = Trainer(Recipe.load(recipe), data, valid=valid, device="cpu")
    one.save(tmp_path / "a.pt")
    two = Trainer(Recipe.load(recipe), data, device="cpu")
    assert two.held_out
    two.load(tmp_path / "a.pt")
    assert not two.held_out


def test_small_validation_pictures_are_a_usage_error(data, recipe, tmp_path, train, write_pictures):
    valid = write_pictures(tmp_path / "valid", 1, side=63)
    train(data, "--valid", valid, "--recipe", recipe, "--state", tmp_path / "a.pt", code=2)


def test_a_file_that_is_no_picture_is_a_usage_error(recipe, tmp_path, train, write_pictures):
    folder = write_pictures(tmp_path / "pictures", 2)
    (folder / "bad.png").write_text("no picture")
    result = train(folder, "--recipe", recipe, "--state", tmp_path / "a.pt", code=2)
    assert "bad.png" in result.stderr


def test_resuming_what_is_no_state_is_a_usage_error(data, recipe, tmp_path, train):
    (tmp_path / "a.pt").write_text("no state")
    result = train(data, "--recipe", recipe, "--state", tmp_path / "a.pt", "--resume", code=2)
    assert "a.pt: not a training state of this codec" in result.stderr


def test_resuming_with_another_recipe_is_a_usage_error(data, recipe, state, tmp_path, train):
    shutil.copy(state, tmp_path / "a.pt")
    recipe.write_text(recipe.read_text().replace("C = 12", "C = 16"))
    result = train(data, "--recipe", recipe, "--state", tmp_path / "a.pt", "--resume", code=2)
    assert "a.pt: the state of another model or recipe" in result.stderr
    assert (tmp_path / "a.pt").read_bytes() == state.read_bytes()


def test_a_state_in_a_missing_folder_is_a_usage_error(data, recipe, tmp_path, train):
    result = train(data, "--recipe", recipe, "--state", tmp_path / "none" / "a.pt", code=2)
    assert "none is not a folder: create it first" in result.stderr


def test_resuming_a_recipe_of_another_version_is_a_usage_error(data, state, tmp_path, train):
    content = torch.load(state, weights_only=True)
    content["recipe"]["krop"] = 64
    torch.save(content, tmp_path / "a.pt")
    result = train(data, "--state", tmp_path / "a.pt", "--resume", code=2)
    assert "a.pt: its recipe is of another version" in result.stderr
    assert "krop" in result.stderr
