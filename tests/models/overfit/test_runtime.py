"""A checkpoint of ``overfit`` ready to code: what is coded is decoded, strips are one picture, what cannot be is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bitstream.engines import default_engine
from bitstream.errors import CheckpointError, FormatError, LimitError
from models.checkpoint import load_checkpoint
from models.load import load_model
from models.overfit import moving, runtime
from models.overfit.configs import GRIDS
from models.overfit.networks import picture
from models.overfit.runtime import MAX_PIXELS, OverfitModel, check_size, empty_grids
from models.overfit.weights import Differences

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(golden):
    """The frozen tiny checkpoint."""
    return load_checkpoint(golden / "tiny-overfit.safetensors")


@pytest.fixture(scope="module")
def fitted(tiny):
    """Latents, not rounded, and differences of a picture of 65 × 70 pixels."""
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving, "STEPS", (moving.FIRST_STEP,))
        torch.manual_seed(3)
        fit = tiny.fit(torch.randint(0, 256, (3, 65, 70), dtype=torch.uint8), 256, 2)
        fit.run(6)
        offsets = {name: 0.02 * torch.randn_like(value) for name, value in fit.networks.items()}
    return fit.latents, Differences.quantised(tiny.config, 2, offsets, (9,) * 13)


@pytest.fixture(scope="module")
def coded(tiny, fitted):
    """What the tiny model makes of them."""
    return tiny.code(*fitted, 256, 65, 70, default_engine())


def test_what_is_coded_is_decoded(tiny, fitted, coded):
    decoded, crc = tiny.decode(coded.payloads, 256, 65, 70, default_engine())
    assert crc == coded.crc
    assert len(coded.payloads) == 2
    assert decoded.finest == coded.decoded.finest == 2
    assert all(np.array_equal(a, b) for a, b in zip(decoded.grids, coded.decoded.grids, strict=True))
    assert decoded.parameters.keys() == tiny.config.shapes().keys()
    assert all(torch.equal(value, coded.decoded.parameters[name]) for name, value in decoded.parameters.items())
    latents, differences = fitted
    assert all((grid == value.round().numpy()).all() for grid, value in zip(decoded.grids, latents, strict=True))
    added = differences.added(tiny.config, tiny.base.at(256))
    assert all(torch.equal(value, added[name]) for name, value in decoded.parameters.items())


def test_what_is_decoded_is_synthesised_as_the_fit_saw_it(tiny, coded):
    parameters = {name: (value.double() / 2**16).float() for name, value in coded.decoded.parameters.items()}
    grids = [torch.from_numpy(grid).float()[None] for grid in coded.decoded.grids]
    want = picture(parameters, (tiny.base.gains(256).double() / 256).float(), grids)
    got = tiny.synthesise(coded.decoded, 256)
    assert got.shape == (1, 3, 128, 128)
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("strip", [1, 2, 3, 7, 40, 63, 64, 65])
def test_strips_are_one_picture(tiny, coded, monkeypatch, strip):
    whole = tiny.synthesise(coded.decoded, 256)
    monkeypatch.setattr(runtime, "STRIP", strip)
    assert torch.allclose(tiny.synthesise(coded.decoded, 256), whole, atol=1e-5)


def test_payloads_that_are_missing_or_of_another_file_are_refused(tiny, coded):
    networks, grids = coded.payloads
    for payloads in ([networks], [b"", grids], [grids, networks], [networks, grids + b"\0"]):
        with pytest.raises(FormatError):
            tiny.decode(payloads, 256, 65, 70, default_engine())


def test_another_level_or_size_gives_other_symbols_if_it_is_not_refused(tiny, coded):
    """The CRC of the symbols tells."""
    for level, width in ((300, 70), (256, 200)):
        try:
            crc = tiny.decode(coded.payloads, level, 65, width, default_engine())[1]
        except FormatError:
            continue
        assert crc != coded.crc


def test_a_fit_starts_with_the_analysis_times_the_gains(tiny, pixels):
    x = pixels(65, 70)
    fit = tiny.fit(x, 256, 1)
    padded = torch.nn.functional.pad(x[None].float() / 255, (0, 58, 0, 63), mode="replicate")[0]
    assert not fit.latents[0].any()
    for grid, value in enumerate(tiny.analyse(padded)[1:], start=1):
        assert torch.allclose(fit.latents[grid], value * 2 ** (tiny.base.gains(256)[grid] / 256), rtol=1e-4)
    assert [tuple(value.shape) for value in fit.latents] == [(128 >> grid, 128 >> grid) for grid in range(GRIDS)]
    again = tiny.fit(x.float() / 255, 256, 1)
    assert all(torch.equal(a, b) for a, b in zip(fit.latents, again.latents, strict=True))


def test_a_fit_does_not_change_the_checkpoint(tiny, pixels):
    before = {name: value.clone() for name, value in tiny.base.parameters.items()}
    fit = tiny.fit(pixels(64, 64), 256, 1)
    fit.run(3)
    assert all(torch.equal(value, tiny.base.parameters[name]) for name, value in before.items())


def test_levels_and_their_lambda(tiny):
    assert tiny.max_level == 512
    assert [tiny.config.lmbda_of(level) for level in (0, 512)] == pytest.approx([tiny.config.lmbda_min, tiny.config.lmbda_max])
    assert tiny.config.lmbda_of(100) < tiny.config.lmbda_of(101)


def test_timings_add_up(checkpoint, fitted):
    model = OverfitModel(checkpoint, CPU)
    decoded = model.code(*fitted, 256, 65, 70, default_engine()).decoded
    first = model.timings["entropy"]
    model.synthesise(decoded, 256)
    model.code(*fitted, 256, 65, 70, default_engine())
    assert model.timings["entropy"] > first > 0
    assert set(model.timings) == {"entropy", "synthesis"}


@pytest.mark.parametrize(("grids", "empty"), [([0.4, -0.5, 0.6], 2), ([1.0, 0.0, 0.0], 0), ([0.0] * GRIDS, GRIDS)])
def test_empty_grids_are_those_that_round_to_zero(grids, empty):
    assert empty_grids([torch.full((2, 2), value) for value in grids]) == empty


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_fits_a_picture_that_a_cpu_decodes(checkpoint, tiny, pixels):
    model = OverfitModel(checkpoint, torch.device("cuda"))
    fit = model.fit(pixels(65, 70), 256, 1)
    fit.run(10)
    differences, state = fit.quantise(), fit.measure()
    coded = model.code(fit.latents, differences, 256, 65, 70, default_engine())
    decoded, crc = tiny.decode(coded.payloads, 256, 65, 70, default_engine())
    assert crc == coded.crc
    x_hat = tiny.synthesise(decoded, 256)
    assert torch.allclose(model.synthesise(decoded, 256).cpu(), x_hat, atol=1e-3)
    error = (x_hat[0, :, :65, :70] - pixels(65, 70) / 255).square().mean()
    assert -10 * torch.log10(error).item() == pytest.approx(state.psnr_db, abs=0.05)


# --- what is refused


@pytest.mark.parametrize(("h", "w"), [(4096, 4097), (2**18 + 1, 64), (1, 2**18 + 1), (2**30, 2**30)])
def test_refuses_more_pixels_than_a_fit_takes(tiny, h, w):
    with pytest.raises(LimitError, match=rf"{w}×{h} pixels, overfit codes at most {MAX_PIXELS} .*: choose another model"):
        check_size(h, w)
    with pytest.raises(FormatError, match=f"the format allows {MAX_PIXELS}: the file is damaged"):
        tiny.decode([b"", b""], 256, h, w, default_engine())


def test_refuses_to_fit_a_picture_that_is_too_large(tiny):
    with pytest.raises(LimitError):
        tiny.fit(torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, 4096, 4097), 256, 1)


def test_takes_as_many_pixels_as_are_allowed():
    for h, w in ((4096, 4096), (2**18, 1), (1, 1)):
        check_size(h, w)


@pytest.mark.parametrize("config", [{"width": 0}, {"depth": 1}, {"levels": "3"}])
def test_refuses_a_checkpoint_whose_config_cannot_be(checkpoint, config):
    with pytest.raises(CheckpointError, match="checkpoint tiny-overfit: model overfit: .*: export it again, or update"):
        OverfitModel(replace(checkpoint, config=checkpoint.config | config), CPU)


def test_refuses_a_checkpoint_of_other_constants(checkpoint):
    with pytest.raises(CheckpointError, match="constant tables have CRC .* the checkpoint expects 00000001: .*report it"):
        OverfitModel(replace(checkpoint, constants_crc=1), CPU)


def test_refuses_networks_that_are_missing(checkpoint):
    tensors = {name: value for name, value in checkpoint.tensors.items() if name != "networks.skip"}
    with pytest.raises(CheckpointError, match=r"tensor networks.skip is missing, expected int32 \(12, 10\)"):
        OverfitModel(replace(checkpoint, tensors=tensors), CPU)


def test_an_analysis_that_is_damaged_is_refused_when_it_is_needed(checkpoint, coded, pixels):
    """Decoding does not need it."""
    for change in ({"analysis.mix": torch.zeros(2, 2)}, {"analysis.more": torch.zeros(1)}):
        model = OverfitModel(replace(checkpoint, tensors=checkpoint.tensors | change), CPU)
        assert model.decode(coded.payloads, 256, 65, 70, default_engine())[1] == coded.crc
        with pytest.raises(CheckpointError, match="checkpoint tiny-overfit: Error.*(mix|more).*: fetch it again$"):
            model.fit(pixels(64, 64), 256, 1)


def test_a_checkpoint_is_loaded_by_its_model(golden):
    assert isinstance(load_model(golden / "tiny-overfit.safetensors", CPU), OverfitModel)
    assert not isinstance(load_model(golden / "tiny-factorized.safetensors", CPU), OverfitModel)
