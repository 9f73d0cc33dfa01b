"""Refined y: a real file costs less by bits and error together, the same each time, and decodes as every other file."""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from bitstream.engines import default_engine
from bitstream.errors import CodecError, UsageError
from codec import Codec, info
from models.checkpoint import load_checkpoint
from models.loading import load_network
from models.network import distortion
from models.refine import NOISE, STEPS, TEMPERATURE, Refiner, falling, soft_symbols
from models.registry import MODELS
from models.runtime import LoadedModel

REFINABLE = ("swift", "hyperprior", "checkerboard")
CPU = torch.device("cpu")


def silent(_):
    """Ignore the share done."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- symbols


ENDS = list(zip(NOISE, TEMPERATURE, strict=True))  # noise and temperature at the start and at the end


@pytest.mark.parametrize(("noise", "temperature"), [*ENDS, (0.2, 1e-3)])
def test_symbols_lie_between_their_neighbours(noise, temperature):
    residual = torch.linspace(-4, 4, 4001)
    symbols = soft_symbols(residual, noise, temperature, seeded())
    assert (symbols >= residual.floor() - 1e-5).all()
    assert (symbols <= residual.floor() + 1 + 1e-5).all()


def test_cold_symbols_without_noise_are_rounded_residuals():
    residual = torch.linspace(-4, 4, 4001)
    clear = ((residual - residual.floor()) - 0.5).abs() > 0.05
    symbols = soft_symbols(residual, 0.0, 0.01, seeded())
    assert (symbols - residual.round())[clear].abs().max() < 1e-3


@pytest.mark.parametrize("part", [0.1, 0.3, 0.45, 0.5])
def test_symbols_choose_a_neighbour_as_often_as_the_noise_says(part):
    """The noise is logistic: the share of choices is the logistic function of the distance in noises."""
    for noise in NOISE:
        lower = soft_symbols(torch.full((40_000,), part - 3), noise, 0.3, seeded()) < -2.5
        expected = 1 / (1 + (part / (1 - part)) ** (1 / noise))
        assert lower.double().mean() == pytest.approx(expected, abs=0.01)


def test_whole_residuals_stay_as_they_are_when_cold():
    residual = torch.arange(-3.0, 4.0).repeat(100)
    assert (soft_symbols(residual, *ENDS[1], seeded()) - residual).abs().max() < 1e-3


@pytest.mark.parametrize(("noise", "temperature"), ENDS)
def test_symbols_have_a_gradient(noise, temperature):
    residual = (torch.rand(1000, generator=seeded(1)) * 8 - 4).requires_grad_(True)
    soft_symbols(residual, noise, temperature, seeded()).sum().backward()
    assert torch.isfinite(residual.grad).all()
    assert (residual.grad >= 0).all()
    assert residual.grad.mean() > 0.1


def test_the_seed_decides_the_symbols():
    residual = torch.linspace(-4, 4, 400)
    one, two, other = (soft_symbols(residual, *ENDS[0], seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_values_fall_from_the_start_to_the_end():
    values = [falling((0.5, 0.2), share) for share in (0.0, 0.3, 0.9, 1.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 0.5
    assert values[-1] == pytest.approx(0.2)


# --- refinement of real latents


@pytest.fixture(scope="module", params=[*REFINABLE, "crossed", "inverse-gain"])
def refinable(request, golden):
    """A model of those that refine, with its frozen tiny checkpoint: three of swift. Do not change it."""
    return LoadedModel.load(golden / f"tiny-{request.param}.safetensors", CPU)


def cost(model, x, y, z, level):
    """Return bits + λ·255²·pixels·distortion of what a decoder makes of the latents, by the measure of the model."""
    coded = model.code(y, z, level, default_engine())
    x_hat = model.synthesise(model.latents(coded.y_hat, level))[..., : x.shape[-2], : x.shape[-1]]
    weight = float(model.config.lmbda(torch.tensor(level / 256))) * 255**2 * x.shape[-2] * x.shape[-1]
    return 8 * sum(map(len, coded.payloads)) + weight * float(distortion(x_hat, x, model.config.tune))


@pytest.mark.parametrize("size", [(64, 64), (70, 90), (1, 37)])
@pytest.mark.parametrize("level", [0, 300, 768])
def test_real_files_do_not_cost_more(refinable, tensor, size, level):
    x = tensor(*size)
    y, z = refinable.analyse(x)
    refined = refinable.refine(x, y, z, level, 10, silent)
    assert cost(refinable, x, refined, z, level) <= 1.01 * cost(refinable, x, y, z, level)


def test_real_files_of_many_steps_cost_less(refinable, tensor):
    x = tensor(64, 96)
    y, z = refinable.analyse(x)
    for level in (0, 600):
        refined = refinable.refine(x, y, z, level, 100, silent)
        assert cost(refinable, x, refined, z, level) < 0.998 * cost(refinable, x, y, z, level)


def refiner_of(model):
    """Return a refiner in float32."""
    return Refiner(model.checkpoint, load_network(model.checkpoint), model.entropy.y_table, CPU, autocast=False)


@pytest.mark.parametrize("level", [0, 700])
def test_a_descent_begins_with_the_symbols_of_plain_coding(refinable, tensor, monkeypatch, level):
    x, coded = tensor(64, 96), []
    y, z = refinable.analyse(x)
    refiner = refiner_of(refinable)
    predict = type(refiner.network).predict

    def watched(net, *args):
        y_hat, arguments = predict(net, *args)
        coded.append(y_hat.detach())
        return y_hat, arguments

    monkeypatch.setattr(type(refiner.network), "predict", watched)
    monkeypatch.setattr("models.refine.soft_symbols", lambda residual, *_: residual + (residual.round() - residual).detach())
    refiner.refine(x, y, z, level, 1)
    plain, begun, _ = coded
    assert (begun - plain).abs().max() < 0.1
    assert plain.round().any()


@pytest.mark.parametrize("level", [0, 700])
def test_files_hold_the_symbols_that_were_found(refinable, tensor, level):
    x = tensor(64, 96)
    y, z = refinable.analyse(x)
    refiner = refiner_of(refinable)
    refined = refiner.refine(x, y, z, level, 100)
    gain, _ = refiner.network.gains(torch.tensor([level / 256]))
    coded = refinable.code(refined, z, level, default_engine()).y_hat.permute(2, 0, 1)[None] / 256
    plain = refinable.code(y, z, level, default_engine()).y_hat.permute(2, 0, 1)[None] / 256
    assert ((coded - plain).abs() > 0.5).any()
    assert (coded - refined * gain).abs().max() < 0.5  # another symbol would be one away


def test_the_same_picture_gives_the_same_latents(refinable, tensor):
    x = tensor(64, 64)
    y, z = refinable.analyse(x)
    before = y.clone(), z.clone()
    one = refinable.refine(x, y, z, 400, 5, silent)
    refinable.refine(tensor(64, 64, seed=1), y, z, 100, 3, silent)  # another picture in between
    assert torch.equal(refinable.refine(x, y, z, 400, 5, silent), one)
    assert torch.equal(y, before[0])
    assert torch.equal(z, before[1])
    assert not one.is_inference()
    assert one.shape == y.shape


def test_progress_tells_the_share_done(refinable, tensor):
    x, shares = tensor(64, 64), []
    refinable.refine(x, *refinable.analyse(x), 0, 4, shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_no_weight_changes_and_a_stop_leaves_no_trace(refinable, tensor):
    x = tensor(64, 64)
    y, z = refinable.analyse(x)
    refiner = refiner_of(refinable)
    refiner.refine(x, y, z, 100, 1)  # a masked convolution sets what its mask hides to 0
    before = {name: value.clone() for name, value in refiner.network.state_dict().items()}
    expected = refiner.refine(x, y, z, 100, 3)
    for name, value in refiner.network.state_dict().items():
        assert torch.equal(value, before[name]), name

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refiner.refine(x, y, z, 100, 3, stop)
    assert torch.equal(refiner.refine(x, y, z, 100, 3), expected)


# --- weights tuned for MS-SSIM


@pytest.fixture(scope="module")
def tuned(tiny_checkpoint):
    """Return tuned(measure): the tiny swift, said to be tuned for a measure. The weights are the same."""

    def load(measure):
        checkpoint = load_checkpoint(tiny_checkpoint)
        return LoadedModel(dataclasses.replace(checkpoint, config=checkpoint.config | {"tune": measure}), CPU)

    return load


@pytest.mark.parametrize("level", [0, 600])
def test_weights_tuned_for_ms_ssim_descend_on_it(tuned, tensor, level):
    model, plain, x = tuned("ms-ssim"), tuned("psnr"), tensor(170, 192)
    y, z = model.analyse(x)
    refined, other = (each.refine(x, y, z, level, 20, silent) for each in (model, plain))
    assert not torch.equal(refined, other)
    assert cost(model, x, refined, z, level) < min(cost(model, x, y, z, level), cost(model, x, other, z, level))


@pytest.mark.parametrize("size", [(64, 64), (1, 37), (160, 300)])
def test_pictures_too_small_for_ms_ssim_are_no_crash(tiny_codec, tuned, picture, monkeypatch, size):
    """They are refined by another measure, or refused by an error of ours."""
    monkeypatch.setattr(tiny_codec, "model", tuned("ms-ssim"))
    try:
        image = tiny_codec.decode(tiny_codec.encode(picture(*size), effort=1))
    except CodecError:
        return
    assert image.size == size[::-1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_may_be_in_any_mode(tiny_checkpoint, tiny_codec, picture, mode):
    own, expected = Codec(tiny_checkpoint, "cpu"), tiny_codec.encode(picture(20, 20), effort=1)
    with mode():
        assert own.encode(picture(20, 20), effort=1) == expected
    assert own.encode(picture(20, 20), effort=1) == expected


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(REFINABLE)))
def test_other_models_have_no_effort(name, golden, picture):
    coder = Codec(golden / f"tiny-{name}.safetensors", "cpu")
    with pytest.raises(UsageError, match=f"{name} has no effort above 0: leave it away, or choose swift"):
        coder.encode(picture(20, 20), effort=1)
    assert coder.encode(picture(20, 20), effort=0)


@pytest.mark.parametrize("options", [{}, {"psnr": 20}, {"quality": 80, "max_size": 500}])
def test_an_effort_that_cannot_be_is_refused_before_any_coding(golden, picture, monkeypatch, options):
    coder = Codec(golden / "tiny-joint.safetensors", "cpu")
    monkeypatch.setattr(coder, "model", Untouched(coder.model))
    with pytest.raises(UsageError, match="joint has no effort above 0"):
        coder.encode(picture(20, 20), effort=1, **options)


class Untouched:
    """A model that says what it is, and does nothing."""

    def __init__(self, model):
        self.checkpoint, self.refinable = model.checkpoint, model.refinable


def test_models_say_whether_they_refine(model):
    assert model.checkpoint.model in MODELS
    assert model.refinable == MODELS[model.checkpoint.model][0].refinable == (model.checkpoint.model in REFINABLE)


# --- effort


def test_efforts_take_more_and_more_steps():
    assert len(STEPS) == 11
    assert STEPS[0] == 0
    assert all(one < two for one, two in zip(STEPS, STEPS[1:], strict=False))


@pytest.mark.parametrize("gray", [False, True])
def test_a_file_of_effort_decodes_with_a_fresh_decoder(tiny_codec, tiny_checkpoint, picture, gray):
    pixels = picture(50, 70)[:, :, 0] if gray else picture(50, 70)
    plain, data = (tiny_codec.encode(pixels, quality=30, effort=effort) for effort in (0, 1))
    assert data != plain
    assert info(data).level == info(plain).level
    image = Codec(tiny_checkpoint, "cpu").decode(data)
    assert (image.size, image.mode) == ((70, 50), "L" if gray else "RGB")
    assert tiny_codec.encode(pixels, quality=30, effort=1) == data
    assert tiny_codec.encode(pixels, quality=30) == plain


@pytest.mark.parametrize("effort", [-1, 11, 1.5, None, "1", True, np.int64(11)])
def test_an_effort_outside_of_0_to_10_is_refused(tiny_codec, picture, effort):
    with pytest.raises(UsageError, match=re.escape(f"effort is {effort!r}, expected 0 … 10")):
        tiny_codec.encode(picture(8, 8), effort=effort)


def test_an_effort_may_be_a_number_of_numpy(tiny_codec, picture):
    assert tiny_codec.encode(picture(20, 20), effort=np.int64(1)) == tiny_codec.encode(picture(20, 20), effort=1)


def test_effort_keeps_a_size_and_finds_a_finer_level(tiny_codec, picture):
    pixels = picture(64, 64)
    limit = len(tiny_codec.encode(pixels, quality=20))
    plain, refined = (tiny_codec.encode(pixels, size=limit, effort=effort) for effort in (0, 3))
    assert len(refined) <= limit
    assert info(refined).level >= info(plain).level


@pytest.fixture
def refinements(tiny_codec, monkeypatch):
    """The list of the levels that are refined."""
    levels, plain = [], tiny_codec.model.refine
    monkeypatch.setattr(tiny_codec.model, "refine", lambda *args: levels.append(args[3]) or plain(*args))
    return levels


@pytest.mark.parametrize("quality", [10, 50, 100])
def test_effort_with_a_limit_begins_where_the_plain_search_ends(tiny_codec, picture, refinements, quality):
    pixels = picture(64, 64)
    limit = len(tiny_codec.encode(pixels, quality=quality)) + 1
    for options in ({"size": limit}, {"quality": 100, "max_size": limit}):
        refinements.clear()
        plain = info(tiny_codec.encode(pixels, **options)).level
        assert len(tiny_codec.encode(pixels, effort=1, **options)) <= limit
        assert refinements[0] == plain
        assert len(refinements) == len(set(refinements)) <= 6


def test_effort_reaches_sizes_below_the_plain_smallest_file(tiny_codec, picture):
    pixels = picture(64, 64)
    plain, refined = (len(tiny_codec.encode(pixels, quality=0, effort=effort)) for effort in (0, 3))
    assert refined < plain
    assert len(tiny_codec.encode(pixels, size=refined, effort=3)) <= refined


@pytest.fixture
def encode(tmp_path, picture, tiny_checkpoint, call_codec):
    """Return encode(*options, code=0): the result of the command line, which writes a.lic."""
    Image.fromarray(picture(40, 40)).save(tmp_path / "a.png")
    paths = [tmp_path / name for name in ("a.png", "a.lic")]
    return partial(call_codec, "encode", *paths, "--model", tiny_checkpoint, "--device", "cpu")


def test_the_command_line_takes_an_effort(encode, tmp_path, tiny_codec, picture):
    assert encode("--effort", "1", "-q", "20").output == ""
    data = (tmp_path / "a.lic").read_bytes()
    assert data == tiny_codec.encode(picture(40, 40), quality=20, effort=1)
    assert np.asarray(tiny_codec.decode(data)).shape == (40, 40, 3)


@pytest.mark.parametrize("effort", ["11", "-1", "much"])
def test_the_command_line_refuses_other_efforts(encode, tmp_path, effort):
    assert "--effort" in encode("--effort", effort, code=2).stderr
    assert not (tmp_path / "a.lic").exists()
