"""What a training begins with: gains at the λ of other levels, linear in log λ."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("lightning", reason="training needs the train extra")

from codec.training.loop import Trainer  # noqa: E402
from codec.training.recipe import Recipe  # noqa: E402
from codec.training.start import regraded, released_weights, starting_weights, transferable  # noqa: E402
from models.latents import INVERSE_GAIN  # noqa: E402
from models.network import RateConfig  # noqa: E402
from models.registry import build  # noqa: E402

OLD = RateConfig(M=3, N=2, levels=4, lmbda_min=0.001, lmbda_max=0.008)  # an octave of λ from level to level

GAINS = ("log2_gain", "log2_gain_z")


def gains(cfg, seed=0):
    """Return random gains of a config."""
    generator = torch.Generator().manual_seed(seed)
    widths = {"log2_gain": cfg.M, "log2_gain_z": cfg.N, "log2_gain_s": cfg.M, "level_bias_s": cfg.M}
    return {name: torch.randn(cfg.levels, n, generator=generator) for name, n in widths.items()}


def levels(count, lowest, highest):
    """Return OLD with other levels."""
    return dataclasses.replace(OLD, levels=count, lmbda_min=lowest, lmbda_max=highest)


def test_the_same_levels_need_no_other_gains():
    assert regraded(gains(OLD), OLD, dataclasses.replace(OLD, M=5, tune="ms-ssim")) == {}


@pytest.mark.parametrize(
    ("new", "shared"),
    [
        (levels(5, 0.0005, 0.008), [(1, 0), (2, 1), (3, 2), (4, 3)]),
        (levels(5, 0.001, 0.016), [(0, 0), (1, 1), (2, 2), (3, 3)]),
        (levels(7, 0.001, 0.008), [(0, 0), (2, 1), (4, 2), (6, 3)]),
        (levels(2, 0.002, 0.004), [(0, 1), (1, 2)]),
        (levels(1, 0.004, 0.004), [(0, 2)]),
        (levels(4, 0.002, 0.016), [(0, 1), (1, 2), (2, 3)]),
    ],
    ids=["one more below", "one more above", "twice as dense", "fewer", "one", "moved"],
)
def test_levels_of_both_keep_their_gains(new, shared):
    old = gains(OLD)
    own = regraded(old, OLD, new)
    assert own.keys() == old.keys()
    for name, value in own.items():
        assert value.dtype == torch.float32
        assert value.shape == (new.levels, old[name].shape[1])
        for i, j in shared:
            torch.testing.assert_close(value[i], old[name][j], rtol=1e-5, atol=1e-5)


def test_gains_are_linear_between_and_beyond_levels():
    old = gains(OLD)
    own = regraded(old, OLD, levels(13, 0.00025, 0.016))  # half an octave: places -2, -1.5, … 4
    for name, value in own.items():
        below, inner, above = old[name][1] - old[name][0], old[name][2] - old[name][1], old[name][3] - old[name][2]
        torch.testing.assert_close(value[0], old[name][0] - 2 * below, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(value[3], old[name][0] - below / 2, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(value[7], old[name][1] + inner / 2, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(value[12], old[name][3] + above, rtol=1e-4, atol=1e-4)


def test_one_level_tells_no_slope():
    one = levels(1, 0.004, 0.004)
    assert regraded(gains(one), one, OLD) == {}


def test_models_without_a_hyperprior_have_no_gains_of_z():
    assert regraded({"log2_gain": gains(OLD)["log2_gain"]}, OLD, levels(2, 0.002, 0.004)).keys() == {"log2_gain"}


def one_level_more(cfg):
    """Return a config with one more level below, as a recipe has it."""
    step = (cfg.lmbda_max / cfg.lmbda_min) ** (1 / (cfg.levels - 1))
    new = dataclasses.replace(cfg, levels=cfg.levels + 1, lmbda_min=cfg.lmbda_min / step)
    return {key: value for key, value in dataclasses.asdict(new).items() if key != "tune"}


@pytest.mark.parametrize("model", ["swift", "hyperprior", "factorized"])
def test_a_release_starts_a_model_of_more_levels(model, data, golden):
    path = golden / f"tiny-{model}.safetensors"
    source, cfg, origin = released_weights(path)
    recipe = Recipe(model, config=one_level_more(cfg), crop=64, batch_size=1, klt_start=True)
    trainer = Trainer(recipe, data, start=path, device="cpu")
    own = trainer.model.state_dict()
    names = [name for name in GAINS if name in source]
    assert len(names) == (1 if model == "factorized" else 2)
    for name in names:
        assert own[name].shape == (cfg.levels + 1, source[name].shape[1])
        torch.testing.assert_close(own[name][1:], source[name], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(own[name][0], 2 * source[name][0] - source[name][1], rtol=1e-4, atol=1e-4)
    for name in (name for name in own if name.startswith(("g_a.", "g_s.")) or name == "log2_std"):
        assert torch.equal(own[name], source[name]), name  # no KLT start over what was taken
    fresh = [name for name in own if name.startswith("entropy_bottleneck.") and name not in source]
    parameters = [name for name, _ in trainer.model.named_parameters() if name not in fresh]
    assert bool(fresh) == (model == "factorized")  # a release does not give back the density of its y
    assert trainer.start == origin | {"tensors": len(parameters) + 1}  # and log2_std
    x = trainer.valid_batches[0][:1].float() / 255
    old = build(model, dataclasses.asdict(cfg) | {"tune": "psnr"}).eval()
    old.load_state_dict(source, strict=False)
    with torch.no_grad():
        one, two = old(x, torch.tensor([1.5])), trainer.model.eval()(x, torch.tensor([2.5]))
    assert (one["x_hat"] - two["x_hat"]).square().mean() < 1e-4
    if model != "factorized":
        assert float(two["y_likelihoods"].log2().sum()) == pytest.approx(float(one["y_likelihoods"].log2().sum()), rel=1e-2)
    trainer.model.train()
    trainer.train_step()


def test_a_state_starts_a_model_of_other_levels(state):
    source = torch.load(state, weights_only=True)
    config = source["recipe"]["config"]
    cfg = build("swift", config).cfg
    middle = (cfg.lmbda_min * cfg.lmbda_max) ** 0.5
    model = build("swift", config | {"levels": 1, "lmbda_min": middle, "lmbda_max": middle})
    taken, origin = starting_weights(state, model)
    assert origin == {"model": "swift", "step": 2, "tensors": len(taken)}
    for name in GAINS:
        torch.testing.assert_close(taken[name], source["ema"][name].mean(dim=0, keepdim=True))
    assert torch.equal(source["ema"]["g_a.stem.weight"], taken["g_a.stem.weight"])


def test_biases_of_levels_are_taken_with_their_layer_or_not_at_all(data):
    config = {"C": 12, "D": 32, "M": 16, "N": 8, "blocks_8": 1, "blocks_16": 1, "hyper": 8, "features": 8, "hidden": 8}
    narrow, wide = (build("swift", config | {"levels": 2, "order": "crossed", "M": m, "inverse_gain": True}) for m in (16, 32))
    taken = transferable(wide, narrow.state_dict())
    assert {"parameters_net.hidden.table", "parameters_net.hidden.layer.weight"} <= taken.keys()
    tables = {"context.table", "parameters_net.out.table", "log2_gain_context", "log2_gain", *INVERSE_GAIN}
    assert not taken.keys() & (tables | {"context.layer.weight"})
    whole = transferable(build("swift", config | {"levels": 2, "order": "crossed", "inverse_gain": True}), narrow.state_dict())
    assert tables <= whole.keys()
