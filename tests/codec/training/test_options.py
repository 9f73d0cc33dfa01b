"""The options of ``codec train``: the report's spelling, and one sentence with exit code 2 for what cannot be."""

from __future__ import annotations

import shutil

import pytest
import torch

pytest.importorskip("lightning", reason="training needs the train extra")

TINY = ("--config", "N=8", "--config", "M=12", "--crop", "64", "--batch-size", "2")


@pytest.fixture
def _here(tmp_path, monkeypatch):
    """Run in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.usefixtures("_here")
def test_the_options_of_the_report(data, tmp_path, train, write_pictures):
    pytest.importorskip("tensorboard")
    valid = write_pictures(tmp_path / "valid", 2)
    options = ("--dataset", data, "--test-dataset", valid, "--lmbda", "0.0067", "--lr", "1e-4", "--test-batch-size", "2")
    more = ("--epochs", "1", "--schedule", "multistep", "--model", "hyperprior", "--experiment", "one", "--devices", "1")
    result = train(*options, *more, *TINY)
    here = tmp_path / "here"
    assert sorted(path.name for path in here.iterdir()) == ["one.pt", "runs"]
    assert list((here / "runs" / "one").glob("events*"))
    state = torch.load(here / "one.pt", weights_only=True)
    recipe = state["recipe"]
    assert (state["step"], state["pictures"]) == (3, 6)  # an epoch of six pictures in batches of two
    assert recipe["config"] == {"N": 8, "M": 12, "levels": 1, "lmbda_min": 0.0067, "lmbda_max": 0.0067}
    assert (recipe["model"], recipe["schedule"], recipe["epochs"], recipe["test_batch_size"]) == (
        "hyperprior",
        "multistep",
        1,
        2,
    )
    assert recipe["lr_trunk"] == recipe["lr_blocks"] == recipe["lr_entropy"] == recipe["lr_gains"] == 1e-4
    assert "saved one.pt" in result.stderr
    train(data, "--experiment", "one", "--valid", valid, "--epochs", "2", "--resume")  # the recipe of the state
    assert torch.load(here / "one.pt", weights_only=True)["step"] == 6


@pytest.mark.usefixtures("_here")
def test_start_says_what_was_taken(data, tmp_path, train):
    here = tmp_path / "here"
    train(data, "--model", "hyperprior", "--epochs", "1", "--state", "h.pt", *TINY)
    result = train(data, "--model", "joint", "--epochs", "1", "--state", here / "j.pt", "--start", "h.pt", *TINY)
    state = torch.load(here / "j.pt", weights_only=True)
    assert (state["start"]["model"], state["start"]["step"]) == ("hyperprior", 3)
    assert f"start: {state['start']['tensors']} tensors of hyperprior at step 3" in result.stderr
    result = train(data, "--state", "j.pt", "--resume", "--start", "h.pt", code=2)
    assert result.stderr == "codec: --start begins a run and --resume goes on with one: give one of them\n"


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "the training pictures are given once: as DATASET or by --dataset"),
        (("DATA", "--dataset", "DATA"), "the training pictures are given once: as DATASET or by --dataset"),
        (("DATA", "--model", "vgg"), "unknown model 'vgg'; models with a recipe: attention, "),
        (("DATA", "--model", "joint", "--recipe", "swift"), "--model is joint, but recipe swift is of swift: give one"),
        (("DATA", "--code-rate", "low"), "swift has no --code-rate: "),
        (("DATA", "--lmbda", "-1"), "--lmbda is -1.0, expected more than 0"),
        (("DATA", "--lr", "-1"), "recipe: lr_trunk is -1.0, expected 0 or more"),
        (("DATA", "--batch-size", "0"), "recipe: batch_size is 0, expected at least 1"),
        (("DATA", "--test-batch-size", "0"), "recipe: test_batch_size is 0, expected at least 1"),
        (("DATA", "--epochs", "-1"), "recipe: epochs is -1, expected at least 0"),
        (("DATA", "--epochs", "1", "--minutes", "1"), "--epochs and --minutes are both lengths of the schedule"),
        (("DATA", "--config", "N"), "--config N: expected KEY=VALUE"),
        (("DATA", "--config", "K=1"), "model swift: unknown config key 'K'"),
        (("DATA", "--model", "joint", "--config", "N=0"), "model joint: N is 0, expected"),
        (("DATA", "--lmbda", "0.1", "--config", "levels=2"), "--config levels=2 contradicts another option"),
        (("DATA", "--tune", "ms-ssim", "--crop", "128"), "recipe: crop is 128, MS-SSIM needs 192 or more"),
        (("DATA", "--tune", "ms-ssim", "--config", 'tune="psnr"'), '--config tune="psnr" contradicts another option'),
        (("DATA", "--experiment", "a/b"), "--experiment is 'a/b', expected a plain name"),
        (("DATA", "--experiment", ".."), "--experiment is '..', expected a plain name"),
        (("DATA", "--tune", "ssim"), "tune is 'ssim', expected one of psnr, ms-ssim"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(data, tmp_path, train, options, message):
    result = train(*(str(data) if option == "DATA" else option for option in options), code=2)
    assert result.stderr.startswith(f"codec: {message}")
    assert result.stderr.count("\n") == 1
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(
    "options", [("--schedule", "linear"), ("--code-rate", "mid"), ("--start", "none.pt"), ("--lr", "x"), ("--only", "gains")]
)
def test_values_that_click_refuses_are_usage_errors(data, train, options):
    assert "Usage: " in train(data, *options, code=2).stderr


def test_resuming_a_state_of_another_model_is_a_usage_error(data, state, tmp_path, train):
    shutil.copy(state, tmp_path / "a.pt")
    result = train(data, "--state", tmp_path / "a.pt", "--resume", "--model", "joint", code=2)
    assert "--model is joint, but" in result.stderr
    assert "a.pt is of swift: give one of them" in result.stderr


@pytest.mark.usefixtures("_here")
def test_tune_is_kept_in_the_config_of_the_state(tmp_path, train, write_pictures):
    pictures = write_pictures(tmp_path / "large", 2, side=192)
    tiny = (*TINY[:4], "--crop", "192", "--batch-size", "1", "--epochs", "1", "--model", "hyperprior", "--lmbda", "0.01")
    train(pictures, "--state", "a.pt", "--tune", "ms-ssim", *tiny)
    state = torch.load(tmp_path / "here" / "a.pt", weights_only=True)
    assert state["recipe"]["config"]["tune"] == "ms-ssim"
    assert "tune" not in state["recipe"]
    assert state["step"] == 1
    train(pictures, "--state", "a.pt", "--resume", "--epochs", "2")
    state = torch.load(tmp_path / "here" / "a.pt", weights_only=True)
    assert (state["step"], state["recipe"]["config"]["tune"]) == (2, "ms-ssim")
