"""The loop: finite steps, the schedule, a state that is saved whole and resumes as it was."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="training needs the train extra")

from bitstream.errors import UsageError  # noqa: E402
from codec.training import loop  # noqa: E402
from codec.training.loop import Trainer  # noqa: E402
from codec.training.parameters import parameter_groups  # noqa: E402
from codec.training.recipe import Recipe  # noqa: E402
from models.network import rate_distortion  # noqa: E402
from models.registry import build  # noqa: E402


def same(one, two):
    """Assert that two states hold the same keys and identical tensors."""
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(value, two[key]), key


def test_steps_have_finite_losses_and_change_the_weights(trainer):
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    rows = [trainer.train_step() for _ in range(3)]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(row["bpp"] > 0 for row in rows)
    after = trainer.model.state_dict()
    for part in ("g_a.", "g_s.", "h_a.", "h_s.", "context.", "parameters_net.", "log2_gain", "entropy_bottleneck."):
        assert any(not torch.equal(before[n], after[n]) for n in before if n.startswith(part)), part
    assert any(not torch.equal(trainer.ema[n], before[n]) for n in before)
    assert trainer.step == 3


def test_training_lowers_the_loss(data, recipe):
    own = Trainer(Recipe.load(recipe, steps=60, lr_trunk=5e-3, lr_blocks=5e-3, lr_entropy=5e-3), data, device="cpu")
    x = own.store.batch(2, 64, np.random.default_rng(1))
    level = torch.tensor([0.0, 1.0])

    def loss():
        torch.manual_seed(0)
        with torch.no_grad():
            bpp, mse = loop.rate_distortion(own.model(x, level), x)
        return float((bpp + own.model.cfg.lmbda(level) * 255**2 * mse).mean())

    before = loss()
    for _ in range(30):
        own.train_step()
    assert loss() < 0.8 * before


def test_a_step_with_a_gradient_that_is_not_finite_is_left_out(trainer, monkeypatch):
    trainer.train_step()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    plain = loop.rate_distortion
    monkeypatch.setattr(loop, "rate_distortion", lambda *args: [value * torch.inf for value in plain(*args)])
    trainer.train_step()
    same(trainer.model.state_dict(), before)
    assert trainer.step == 2


def test_a_step_with_activations_that_are_not_finite_is_left_out(trainer, monkeypatch):
    trainer.train_step()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    monkeypatch.setattr(trainer.store, "batch", lambda *_: torch.full((2, 3, 64, 64), torch.nan))
    trainer.train_step()
    same(trainer.model.state_dict(), before)


def test_the_learning_rate_warms_up_and_ends_at_zero(trainer):
    factors = []
    for trainer.step in range(4):  # noqa: B020
        factors.append(trainer.learning_rate_factor())
    assert factors[0] == pytest.approx(0.5)
    assert factors[1] > factors[2] > factors[3]
    assert factors[3] == pytest.approx(0.0, abs=1e-12)


def test_state_resumes_with_identical_parameters(trainer, recipe, data, tmp_path):
    for _ in range(2):
        trainer.train_step()
    trainer.minutes = 1.5
    trainer.save(tmp_path / "a.pt")
    other = Trainer(Recipe.load(recipe, seed=9), data, device="cpu")
    other.load(tmp_path / "a.pt")
    assert (other.step, other.minutes) == (2, 1.5)
    same(other.model.state_dict(), trainer.model.state_dict())
    same(other.ema, trainer.ema)
    one, two = (t.optimizer.state_dict()["state"] for t in (trainer, other))
    assert one.keys() == two.keys()
    for i in one:
        same(one[i], two[i])
    torch.manual_seed(5)
    rows = [trainer.train_step()]
    torch.manual_seed(5)
    rows.append(other.train_step())
    assert rows[0] == rows[1]  # the same crops, levels and weights
    same(other.model.state_dict(), trainer.model.state_dict())


def test_validation_does_not_change_the_live_weights(trainer):
    trainer.train_step()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    rows = trainer.validate()
    assert [row["level"] for row in rows] == [0, 1]
    assert all(row["bpp"] > 0 and math.isfinite(row["psnr_db"]) for row in rows)
    same(trainer.model.state_dict(), before)
    assert trainer.model.training


def test_every_parameter_but_quantiles_has_a_learning_rate():
    model = build("swift", {"C": 8, "D": 8, "M": 8, "N": 8, "blocks_8": 1, "blocks_16": 1, "levels": 2})
    groups = parameter_groups(model, Recipe())
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters())) - 1
    assert len(groups) == 4


def test_the_seed_decides_the_start(recipe, data):
    one, two, other = (Trainer(Recipe.load(recipe, seed=seed), data, device="cpu") for seed in (1, 1, 2))
    same(one.model.state_dict(), two.model.state_dict())
    assert not torch.equal(one.model.g_a.stem.weight, other.model.g_a.stem.weight)


@pytest.mark.parametrize("tune", ["psnr", "ms-ssim"])
def test_steps_and_validation_are_by_the_distortion_that_the_config_says(recipe, tmp_path, write_pictures, tune, monkeypatch):
    pictures = write_pictures(tmp_path / "large", 2, side=192)
    trainer = Trainer(Recipe.load(recipe, crop=192, batch_size=1).with_options(tune=tune), pictures, device="cpu")
    tunes = []

    def watched(out, x, tune="psnr"):
        tunes.append(tune)
        return rate_distortion(out, x, tune)

    monkeypatch.setattr(loop, "rate_distortion", watched)
    trainer.train_step()
    assert tunes == [tune]
    trainer.validate()
    assert set(tunes) == {tune}


def test_gradients_are_clipped_as_the_recipe_says(recipe, data, monkeypatch):
    trainer = Trainer(Recipe.load(recipe, grad_clip=0.125), data, device="cpu")
    clip, norms = trainer.fabric.clip_gradients, []

    def watched(*arguments, max_norm, **options):
        norms.append(max_norm)
        return clip(*arguments, max_norm=max_norm, **options)

    monkeypatch.setattr(trainer.fabric, "clip_gradients", watched)
    trainer.train_step()
    assert norms == [0.125]


def test_ms_ssim_is_the_distortion_where_the_config_says_so(recipe, data, tmp_path, write_pictures):
    pictures = write_pictures(tmp_path / "large", 3, side=200)
    own = Trainer(Recipe.load(recipe, crop=192, batch_size=1).with_options(tune="ms-ssim"), pictures, device="cpu")
    rows = [own.train_step() for _ in range(2)] + own.validate()
    assert all(math.isfinite(value) for row in rows for value in row.values())
    (level, *_), cfg = own.validate(), own.model.cfg
    loss = level["bpp"] + cfg.lmbda_min * 255**2 * 10 ** (-level["psnr_db"] / 10)  # what it is not
    assert level["loss"] != pytest.approx(loss * (cfg.lmbda_mid / cfg.lmbda_min) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("side", [161, 191])
def test_small_validation_pictures_are_refused_for_ms_ssim(recipe, tmp_path, write_pictures, side):
    """They would be cut to 128 or less: MS-SSIM needs more."""
    pictures, valid = write_pictures(tmp_path / "large", 2, side=192), write_pictures(tmp_path / "valid", 1, side=side)
    own = Recipe.load(recipe, crop=192, batch_size=1)
    with pytest.raises(UsageError, match="found 1 pictures, none with both sides of 192 pixels or more"):
        Trainer(own.with_options(tune="ms-ssim"), pictures, valid=valid, device="cpu")
    assert Trainer(own, pictures, valid=valid, device="cpu").valid_paths


def test_the_smallest_validation_pictures_do_for_ms_ssim(recipe, tmp_path, write_pictures):
    pictures = write_pictures(tmp_path / "pictures", 2, side=192)
    own = Trainer(Recipe.load(recipe, crop=192, batch_size=1).with_options(tune="ms-ssim"), pictures, device="cpu")
    assert all(math.isfinite(value) for row in own.validate() for value in row.values())


def test_the_group_of_processes_is_left_when_training_is_done(trainer, monkeypatch):
    group = torch.distributed
    group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
    try:
        trainer.close()
        assert group.is_initialized()  # a process alone made none: this one is not its own
        monkeypatch.setattr(trainer, "fabric", SimpleNamespace(world_size=2, barrier=group.barrier))
        trainer.close()
        assert not group.is_initialized()
    finally:
        if group.is_initialized():
            group.destroy_process_group()


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (1000, 0.5)])  # a short average at first, then that of the recipe
def test_averaged_weights_follow_by_the_decay(recipe, data, step, decay):
    own, name = Trainer(Recipe.load(recipe, ema_decay=0.5), data, device="cpu"), "g_a.stem.weight"
    own.step = step
    own.ema[name].zero_()
    own.train_step()
    torch.testing.assert_close(own.ema[name], (1 - decay) * own.model.state_dict()[name])


def test_validation_is_of_the_averaged_weights(trainer):
    before = trainer.validate()
    with torch.no_grad():
        trainer.model.g_s.tail.bias.add_(0.5)
    assert trainer.validate() == before
    trainer.ema["g_s.tail.bias"].add_(0.5)
    assert trainer.validate() != before


def test_the_loss_weighs_all_levels_alike(trainer):
    cfg = trainer.model.cfg
    for row in trainer.validate():  # of one picture
        lmbda = float(cfg.lmbda(torch.tensor(float(row["level"]))))
        plain = row["bpp"] + lmbda * 255**2 * 10 ** (-row["psnr_db"] / 10)
        assert row["loss"] == pytest.approx(plain * (cfg.lmbda_mid / lmbda) ** 0.5, rel=1e-3)


def test_levels_are_drawn_from_the_first_to_the_last_and_between(recipe, data):
    own, seen = Trainer(Recipe.load(recipe, batch_size=16), data, device="cpu"), []
    own.model.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    for _ in range(4):
        own.train_step()
    levels = torch.cat(seen)
    assert (levels.min(), levels.max()) == (0, own.model.cfg.levels - 1)
    assert 0.4 < float((levels % 1 > 0).float().mean()) <= 0.95


def test_every_other_step_of_the_last_share_is_in_float32(recipe, data):
    own, types = Trainer(Recipe.load(recipe, steps=8, float32_share=0.5), data, device="cpu"), []
    own.model.g_a.down.register_forward_hook(lambda *given: types.append(given[-1].dtype))
    for _ in range(8):
        own.train_step()
    assert types == [torch.bfloat16] * 4 + [torch.float32, torch.bfloat16] * 2


def test_a_run_validates_and_saves_as_often_as_the_recipe_says(recipe, data, tmp_path, monkeypatch):
    for minutes, expected in (((1e-9, 1e9), ([1, 2, 3, 3], [3])), ((1e9, 1e-9), ([3], [1, 2, 3, 3]))):
        fields = dict(zip(("validate_minutes", "save_minutes"), minutes, strict=True))
        own, rows, saved = Trainer(Recipe.load(recipe, **fields), data, device="cpu"), [], []
        monkeypatch.setattr(own, "save", lambda _, own=own, saved=saved: saved.append(own.step))
        own.run(tmp_path / "a.pt", max_minutes=1, report=rows.append)
        assert ([row["step"] for row in rows if "levels" in row], saved) == expected


def test_a_run_that_is_stopped_saves_and_leaves_the_validation_away(recipe, data, tmp_path, monkeypatch):
    own, rows, saved = Trainer(Recipe.load(recipe), data, device="cpu"), [], []
    monkeypatch.setattr(own, "save", lambda _: saved.append(own.step))
    own.run(tmp_path / "a.pt", max_minutes=1, report=rows.append, stop=lambda: own.step == 2)
    assert (rows, saved) == ([], [2])
