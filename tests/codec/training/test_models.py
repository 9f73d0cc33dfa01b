"""Every model trains: all levels or one λ, from scratch or from the weights of another model's state."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="training needs the train extra")

from bitstream.engines import default_engine  # noqa: E402
from bitstream.errors import UsageError  # noqa: E402
from codec.training.loop import Trainer, parameter_groups  # noqa: E402
from codec.training.recipe import Recipe  # noqa: E402
from codec.training.start import starting_weights, transferable  # noqa: E402
from models.checkpoint import load_checkpoint  # noqa: E402
from models.quantise import z_master  # noqa: E402
from models.registry import MODELS, build  # noqa: E402
from models.runtime import LoadedModel  # noqa: E402

TINY = {"N": 8, "M": 12, "levels": 2}
CONFIG = dict.fromkeys(MODELS, TINY) | {
    "swift": TINY | {"C": 8, "D": 16, "blocks_8": 1, "blocks_16": 1, "hyper": 8, "features": 8, "hidden": 8},
    "attention": TINY | {"M": 8},
}


def tiny(model, **changes):
    """Return a recipe of a tiny model."""
    own = {"crop": 64, "batch_size": 2, "steps": 50, "warmup_steps": 2, "klt_start": False, "config": CONFIG[model]}
    return Recipe(**({"model": model} | own | changes))


@pytest.fixture(scope="module")
def hyperprior(data, tmp_path_factory):
    """The state of a hyperprior after three steps. Do not change it."""
    trainer = Trainer(tiny("hyperprior", klt_start=True), data, device="cpu")
    for _ in range(3):
        trainer.train_step()
    path = tmp_path_factory.mktemp("start") / "hyperprior.pt"
    trainer.save(path)
    return path


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_and_validates(model, data):
    trainer = Trainer(tiny(model, klt_start=True), data, device="cpu")
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    rows = [trainer.train_step() for _ in range(3)] + trainer.validate()
    assert all(math.isfinite(value) for row in rows for value in row.values())
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert {"log2_gain"} <= moved
    assert any(name.startswith("g_s.") for name in moved)
    assert rows[-1]["bpp"] > rows[-2]["bpp"] > 0


@pytest.mark.parametrize("model", MODELS)
def test_one_lmbda_trains_and_validates(model, data, tmp_path):
    recipe = tiny(model, klt_start=True).with_options(lmbda=0.013)
    trainer = Trainer(recipe, data, device="cpu")
    losses = [trainer.train_step()["loss"] for _ in range(3)]
    (row,) = trainer.validate()
    mse = 10 ** (-row["psnr_db"] / 10)
    assert all(map(math.isfinite, losses))
    assert row["loss"] == pytest.approx(row["bpp"] + 0.013 * 255**2 * mse, rel=1e-3)  # one picture is held out
    trainer.save(tmp_path / "a.pt")
    Trainer(recipe, data, device="cpu").load(tmp_path / "a.pt")


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_of_every_model_has_a_learning_rate(model):
    network = build(model, CONFIG[model])
    groups = parameter_groups(network, Recipe())
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters())) - 1


def test_pictures_validated_together_give_the_same_means(data, write_pictures, tmp_path):
    valid = write_pictures(tmp_path / "valid", 3)
    rows = []
    for size in (1, 2):
        trainer = Trainer(tiny("hyperprior", test_batch_size=size), data, valid=valid, device="cpu")
        assert [len(batch) for batch in trainer.valid_batches] == ([1, 1, 1] if size == 1 else [2, 1])
        rows.append(trainer.validate())
    for one, two in zip(*rows, strict=True):
        assert one == pytest.approx(two, rel=1e-2)


@pytest.mark.parametrize("model", ["joint", "checkerboard"])
def test_start_takes_the_transforms_of_another_model(model, hyperprior, data, tmp_path):
    trainer = Trainer(tiny(model), data, start=hyperprior, device="cpu")
    ema = torch.load(hyperprior, weights_only=True)["ema"]
    own = trainer.model.state_dict()
    shared = [name for name in own if name.startswith(("g_a.", "g_s.", "h_a.")) or name in ("log2_gain", "log2_std")]
    assert len(shared) > 20
    for name in shared:
        assert torch.equal(own[name], ema[name]), name
        assert torch.equal(trainer.ema[name], ema[name]), name
    assert trainer.start["model"] == "hyperprior"
    assert trainer.start["step"] == 3
    trainer.train_step()
    trainer.save(tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True)["start"] == trainer.start
    other = Trainer(tiny(model), data, device="cpu")
    other.load(tmp_path / "a.pt")
    assert other.start == trainer.start


def test_start_goes_on_where_the_same_model_ended(hyperprior, data):
    started = Trainer(tiny("hyperprior"), data, start=hyperprior, device="cpu")
    ended = Trainer(tiny("hyperprior"), data, device="cpu")
    ended.load(hyperprior)
    ended.model.load_state_dict(ended.ema)
    assert started.validate() == ended.validate()
    assert started.step == 0


def test_start_keeps_the_mask_of_the_context():
    joint, checkerboard = (build(name, TINY) for name in ("joint", "checkerboard"))
    taken = transferable(checkerboard, joint.state_dict())
    assert "context_prediction.weight" in taken
    assert "context_prediction.mask" not in taken


def test_start_takes_layers_whole_or_not_at_all():
    source = build("hyperprior", TINY).state_dict()
    taken = transferable(build("hyperprior", TINY | {"N": 16}), source)
    assert not any(name.startswith(("g_a.", "log2_")) for name in taken)  # the bias of the last layer has M entries in both
    taken = transferable(build("hyperprior", TINY | {"levels": 1}), source)
    assert {"log2_std", "g_a.0.weight"} <= taken.keys()
    assert "log2_gain" not in taken


def test_start_from_what_does_not_fit_is_a_usage_error(hyperprior, data, tmp_path):
    with pytest.raises(UsageError, match="hyperprior.pt: no layer of it fits swift: start from a model of the same widths"):
        Trainer(tiny("swift", config=CONFIG["swift"] | {"N": 4, "hyper": 4}), data, start=hyperprior, device="cpu")
    (tmp_path / "none.pt").write_text("no state")
    with pytest.raises(UsageError, match="none.pt: not a training state"):
        Trainer(tiny("swift"), data, start=tmp_path / "none.pt", device="cpu")


def test_a_bad_config_is_said_before_the_pictures_are_read(tmp_path):
    recipe = dataclasses.replace(tiny("hyperprior"), config={"K": 1})
    with pytest.raises(UsageError, match="unknown config key 'K'"):
        Trainer(recipe, tmp_path / "none", device="cpu")


def test_start_takes_transforms_and_gains_of_a_checkpoint(data, golden):
    """The tiny released hyperprior gives a joint of the same widths its transforms, in float32."""
    path = golden / "tiny-hyperprior.safetensors"
    released = load_checkpoint(path)
    config = {key: released.config[key] for key in ("M", "N", "levels", "lmbda_min", "lmbda_max")}
    trainer = Trainer(tiny("joint", config=config), data, start=path, device="cpu")
    own = trainer.model.state_dict()
    transforms = [name for name in own if name.startswith(("g_a.", "g_s.")) and "_reparam" not in name]
    assert transforms
    assert all(torch.equal(own[name], released.tensors[name].float()) for name in transforms)
    assert torch.equal(own["log2_gain"], released.tensors["entropy.log2_gain"].float() / 256)
    assert trainer.start["checkpoint"] == released.sha256[:8]
    trainer.train_step()


def test_start_goes_on_where_a_release_ended(data, golden):
    """Each part of the network is taken, and estimates the bits that the release's integers code."""
    path = golden / "tiny-swift.safetensors"
    released = LoadedModel.load(path, torch.device("cpu"))
    trainer = Trainer(tiny("swift", config=released.checkpoint.config), data, start=path, device="cpu")
    assert trainer.start["model"] == "swift"
    assert trainer.start["tensors"] == len(list(trainer.model.parameters())) + 1  # and log2_std
    x, top = trainer.valid_batches[0][:1].float() / 255, trainer.model.cfg.levels - 1
    with torch.no_grad():
        out = trainer.model.eval()(x, torch.tensor([float(top)]))
    estimate = -sum(float(out[key].log2().sum()) for key in out if key.endswith("likelihoods"))
    real = 8 * sum(map(len, released.compress(x, 256 * top, default_engine())[0]))
    assert real == pytest.approx(estimate, rel=0.05)
    rows = [z_master(trainer.model).cumulative, released.checkpoint.tensors["entropy.z_cumulative"].numpy()]
    assert np.abs(rows[0] / 2**30 - rows[1] / 2**30).max() < 0.005


@pytest.mark.parametrize("config", [{"M": 384}, {"C": 256}, {"C": 16}])
def test_channels_that_the_klt_start_cannot_fill_are_said_before_the_pictures_are_read(tmp_path, config):
    with pytest.raises(UsageError, match="the KLT start takes C up to 192, D up to 4·C and M up to D"):
        Trainer(Recipe(config=config), tmp_path / "none", device="cpu")


def test_pictures_of_the_validation_folder_are_not_trained_on(data, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "0.png").symlink_to(data / "0.png")
    trainer = Trainer(Recipe.load(recipe), data, valid=Path("valid"), device="cpu")
    assert sorted(path.name for path in trainer.train_paths) == [f"{i}.png" for i in range(1, 6)]
    assert not trainer.held_out


def test_a_start_with_other_scales_is_refused(data, tmp_path):
    config = {"N": 8, "M": 16}
    trainer = Trainer(Recipe("hyperprior", config=config | {"linear_scale": True}, crop=64, batch_size=1), data, device="cpu")
    trainer.save(tmp_path / "a.pt")
    with pytest.raises(UsageError, match="set linear_scale = true"):
        starting_weights(tmp_path / "a.pt", build("hyperprior", config))
