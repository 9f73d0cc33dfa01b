"""A run in which only a part of the model learns leaves the rest as it is."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightning", reason="training needs the train extra")

from bitstream.errors import UsageError  # noqa: E402
from codec.training.loop import Trainer  # noqa: E402
from codec.training.recipe import Recipe  # noqa: E402
from models.latents import INVERSE_GAIN  # noqa: E402


def changed(data, recipe, **fields):
    """Return the names of the tensors that three steps change, in the model and in the averaged weights, and the last row."""
    trainer = Trainer(Recipe.load(recipe, **fields), data, device="cpu")
    tables = {name: p.requires_grad for name, p in trainer.model.named_parameters() if name in INVERSE_GAIN}
    assert all(learn == (fields["only"] != "entropy") for learn in tables.values())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for _ in range(3):
        row = trainer.train_step()
    after = trainer.model.state_dict()
    names = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if not torch.equal(before[name], trainer.ema[name])} <= names
    return names, set(before), row


@pytest.mark.parametrize("order", ["checkerboard", "crossed"])
def test_the_entropy_networks_alone(data, recipe, order):
    config = Recipe.load(recipe).config | {"order": order, "inverse_gain": True}
    names, every, row = changed(data, recipe, only="entropy", config=config)
    frozen = {name for name in every if name.startswith(("g_a.", "g_s.")) or name in ("log2_gain", *INVERSE_GAIN)}
    assert not names & frozen
    for part in ("h_a.", "h_s.", "context.", "parameters_net.", "log2_gain_z", "entropy_bottleneck."):
        assert any(name.startswith(part) for name in names), part
    assert row["bpp"] > 0


def test_the_biases_of_the_transforms_alone(data, recipe):
    # crossed: the mask of a checkerboard is put on its weights at each step
    config = Recipe.load(recipe).config | {"order": "crossed", "inverse_gain": True}
    names, every, _ = changed(data, recipe, only="biases", float32_share=1.0, config=config)
    biases = {name for name in every if name.startswith(("g_a.", "g_s.")) and name.endswith("bias")}
    assert names <= biases | set(INVERSE_GAIN)
    assert {"g_a.head.module.bias", "g_s.tail.bias", "level_bias_s"} <= names


def test_a_resumed_run_goes_on_with_its_part(data, recipe, tmp_path):
    path = tmp_path / "state.pt"
    fields = {"only": "entropy"}
    trainer = Trainer(Recipe.load(recipe, **fields), data, device="cpu")
    trainer.train_step()
    trainer.save(path)
    again = Trainer(Recipe.load(recipe, **fields), data, device="cpu")
    again.load(path)
    head = again.model.g_a.head.module.weight.clone()
    again.train_step()
    assert torch.equal(head, again.model.g_a.head.module.weight)
    with pytest.raises(UsageError, match="another model or recipe"):
        Trainer(Recipe.load(recipe), data, device="cpu").load(path)


def test_what_can_learn_is_named(recipe):
    with pytest.raises(UsageError, match="only is 'gains', expected one of all, entropy, biases"):
        Recipe.load(recipe, only="gains")
    assert Recipe.load(recipe).with_options(only="biases").only == "biases"


def test_counted_rows_are_the_rates_of_a_run(data, recipe, tmp_path):
    fields = {"only": "entropy", "counted_rows": True, "lr_entropy": 3e-3, "warmup_steps": 1, "steps": 1000}
    trainer = Trainer(Recipe.load(recipe, **fields), data, device="cpu")
    rng_state = trainer.rng.bit_generator.state
    assert trainer.model.rows is None
    trainer._count_rows()
    assert trainer.rng.bit_generator.state == rng_state  # the crops of the run are those of any other
    assert trainer.model.rows.shape == (64, 1024)
    before = [row["bpp"] for row in trainer.validate()]
    for _ in range(40):
        trainer.train_step()
    trainer.ema = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert sum(row["bpp"] for row in trainer.validate()) < 0.99 * sum(before)
    path = tmp_path / "state.pt"
    trainer.save(path)
    again = Trainer(Recipe.load(recipe, **fields), data, device="cpu")
    again.load(path)
    assert torch.equal(again.model.rows, trainer.model.rows)


@pytest.mark.parametrize(("recount", "counts"), [(0, 1), (3, 3)])
def test_rows_are_counted_again_in_the_course_of_a_run(data, recipe, monkeypatch, recount, counts):
    fields = {"only": "entropy", "counted_rows": True, "recount_steps": recount, "steps": 1000}
    trainer = Trainer(Recipe.load(recipe, **fields), data, device="cpu")
    rows, count = [], trainer._count_rows

    def counted():
        count()
        rows.append(trainer.model.rows.clone())

    monkeypatch.setattr(trainer, "_count_rows", counted)
    for _ in range(7):
        trainer.train_step()
    assert len(rows) == counts  # at steps 0, 3, 6
    assert trainer.step == 7


def test_models_without_rows_say_so(data):
    config = {"N": 8, "M": 8, "levels": 2}
    with pytest.raises(UsageError, match="counted_rows is on, but y of factorized is not coded"):
        Trainer(Recipe("factorized", config=config, crop=64, batch_size=1, counted_rows=True), data, device="cpu")
