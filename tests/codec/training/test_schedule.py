"""Schedules: what the rates are multiplied by, when a run ends, and that a resumed run goes on as if never ended."""

from __future__ import annotations

import pytest

pytest.importorskip("lightning", reason="training needs the train extra")

from codec.training import schedule as schedules  # noqa: E402
from codec.training.loop import Trainer  # noqa: E402
from codec.training.recipe import Recipe  # noqa: E402
from codec.training.schedule import Schedule  # noqa: E402


@pytest.fixture
def make(recipe, data):
    """Return make(**changes): a trainer of the tiny recipe, with 5 pictures in 3 steps per epoch and no warm-up."""

    def trainer(**changes):
        return Trainer(Recipe.load(recipe, **({"warmup_steps": 0, "steps": 10**6} | changes)), data, device="cpu")

    return trainer


def rates(trainer):
    """Return the learning rates of the optimiser, as shares of those of the recipe."""
    return [group["lr"] / group["base_lr"] for group in trainer.optimizer.param_groups]


def test_multistep_halves_after_40_90_and_140_epochs():
    schedule = Schedule("multistep")
    factors = {}
    for epoch in range(1, 201):
        schedule.end_epoch()
        factors[epoch] = schedule.factor
    changes = {epoch: factor for epoch, factor in factors.items() if factor != factors.get(epoch - 1, 1.0)}
    assert changes == {40: 0.5, 90: 0.25, 140: 0.125}


def test_plateau_reduces_after_ten_epochs_without_gain():
    schedule = Schedule("plateau")
    factors = []
    for loss in [1.0, 0.9] + 12 * [0.9]:
        schedule.end_epoch(loss)
        factors.append(schedule.factor)
    assert factors == pytest.approx([1.0] * 12 + [0.1] * 2)


def test_training_steps_the_schedule_once_per_epoch(make, tmp_path, monkeypatch):
    monkeypatch.setattr(schedules, "MILESTONES", (1, 3))
    trainer = make(schedule="multistep", epochs=4)
    assert trainer.epoch_steps == 3
    plain, seen = trainer.train_step, []

    def train_step():
        row = plain()
        seen.append(rates(trainer)[0])
        return row

    monkeypatch.setattr(trainer, "train_step", train_step)
    trainer.run(tmp_path / "a.pt", max_minutes=1, report=lambda row: None)
    assert trainer.step == 12
    assert seen == pytest.approx(3 * [1.0] + 6 * [0.5] + 3 * [0.25])


def test_plateau_validates_once_per_epoch(make, tmp_path, monkeypatch):
    trainer = make(schedule="plateau", epochs=4)
    trainer.schedule.scheduler.patience = 0
    losses = iter([0.5, 0.7, 0.6, 0.4, 0.4])
    monkeypatch.setattr(trainer, "validate", lambda: [{"level": 0, "bpp": 1.0, "psnr_db": 30.0, "loss": next(losses)}])
    factors = []
    trainer.run(tmp_path / "a.pt", max_minutes=1, report=lambda row: factors.append(trainer.schedule.factor))
    assert factors == pytest.approx([1.0, 0.1, 0.01, 0.01, 0.01])  # four epochs and the end


def test_warm_up_is_in_every_schedule(make):
    for schedule in ("multistep", "plateau"):
        trainer = make(schedule=schedule, warmup_steps=4)
        factors = []
        for _ in range(5):
            trainer.train_step()
            factors.append(rates(trainer)[0])
        assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_epochs_end_the_schedule_in_place_of_minutes(make):
    trainer = make(epochs=2, minutes=0.001)
    trainer.minutes = 1.0
    trainer.step = 3
    assert trainer.progress() == 0.5
    trainer.step = 6
    assert trainer.progress() == 1
    assert trainer.learning_rate_factor() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("schedule", ["multistep", "plateau"])
def test_a_resumed_schedule_goes_on(make, tmp_path, monkeypatch, schedule):
    monkeypatch.setattr(schedules, "MILESTONES", (2, 5))
    trainer = make(schedule=schedule)
    losses = [0.5, 0.6, 0.6, 0.6, 0.6, 0.6]
    if schedule == "plateau":
        trainer.schedule.scheduler.patience = 1
    for loss in losses[:3]:
        trainer.schedule.end_epoch(loss)
    trainer.save(tmp_path / "a.pt")
    other = make(schedule=schedule, seed=3)
    other.load(tmp_path / "a.pt")
    assert other.schedule.factor == trainer.schedule.factor < 1
    for loss in losses[3:]:
        for each in (trainer, other):
            each.schedule.end_epoch(loss)
    assert other.schedule.factor == trainer.schedule.factor == pytest.approx(0.25 if schedule == "multistep" else 0.01)


def test_resuming_with_another_schedule_or_rate_takes_the_options(make, tmp_path):
    trainer = make(schedule="multistep")
    for _ in range(40):
        trainer.schedule.end_epoch()
    trainer.save(tmp_path / "a.pt")
    other = make(schedule="plateau", lr_trunk=7e-5)
    other.load(tmp_path / "a.pt")
    assert other.schedule.factor == 1
    other.train_step()
    assert other.optimizer.param_groups[0]["lr"] == pytest.approx(7e-5)


def test_a_state_from_before_the_schedules_resumes(make, tmp_path):
    from codec.training.state import read_state, write_state

    trainer = make()
    trainer.train_step()
    trainer.save(tmp_path / "a.pt")
    state = read_state(tmp_path / "a.pt", "cpu")
    for key in ("schedule", "start"):
        del state[key]
    for key in ("schedule", "epochs", "test_batch_size"):
        del state["recipe"][key]
    write_state(tmp_path / "a.pt", state)
    other = make()
    other.load(tmp_path / "a.pt")
    assert (other.step, other.start, other.schedule.factor) == (1, None, 1)
