"""The readout of thumbnails: it learns what is linear, a checkpoint carries it, and decoding at 1/8 uses it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bitstream.errors import CheckpointError
from codec import Codec
from models.checkpoint import load_checkpoint, save_checkpoint
from models.registry import build
from models.thumbnail import Thumbnail, fit_thumbnail


@pytest.fixture(scope="module")
def linear():
    """A network whose y_hat / gain is a known linear map of the picture: 2×2 means of 8×8, in 12 of its channels."""
    network = build("hyperprior", {"N": 16, "M": 16, "levels": 2})

    def coded(x, level):
        means = F.pixel_unshuffle(F.avg_pool2d(x, 8), 2)
        noise = torch.randn(len(x), 4, *means.shape[-2:], generator=torch.Generator().manual_seed(0))
        return torch.cat([means.roll(1, dims=1) * 3 - 1, noise], dim=1) * network.gains(level)[0], {}

    network.coded = coded
    return network


def test_what_is_linear_is_found(linear):
    batches = [torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    readout = Thumbnail(fit_thumbnail(linear, batches), 16)
    x = torch.rand(1, 3, 64, 128)
    y_hat, _ = linear.coded(x, torch.zeros(1))
    assert (readout(y_hat / linear.gains(torch.zeros(1))[0]) - F.avg_pool2d(x, 8)).abs().max() < 0.01


@pytest.fixture
def with_thumbnail(tiny_checkpoint, tmp_path):
    """A tiny checkpoint with a readout of random weights, and the readout."""
    checkpoint = load_checkpoint(tiny_checkpoint)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "thumbnail.weight": torch.randn(12, 32, 3, 3, generator=generator).half() * 0.05,
        "thumbnail.bias": torch.full((12,), 0.5),
    }
    path = tmp_path / "with.safetensors"
    save_checkpoint(
        path, model=checkpoint.model, config=checkpoint.config, tensors=checkpoint.tensors | tensors,
        constants_crc=checkpoint.constants_crc,
    )  # fmt: skip
    return Codec(path, "cpu"), Thumbnail(tensors, 32)


def expected(coder, readout, data):
    """Return the thumbnail (h, w, 3) of a file of one tile, from its latents at once."""
    from bitstream.container import Container

    container = Container.unpack(data)
    header = container.header
    y_hat, _ = coder.model.decode_latents(container.tile(0).payloads, header.level, header.height, header.width, coder.engine)
    x_hat = readout(coder.model.latents(y_hat, header.level))
    return (x_hat[0] * 255).round().clamp(0, 255).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", [(1, 1), (20, 37), (128, 200)])
def test_an_eighth_is_read_from_the_latents(with_thumbnail, picture, size, monkeypatch):
    coder, readout = with_thumbnail
    data = coder.encode(picture(*size), quality=70)
    monkeypatch.setattr(coder.model, "synthesise", lambda *_: pytest.fail("g_s ran"))
    image = np.asarray(coder.decode(data, scale=8)).astype(int)
    h, w = (-(-side // 8) for side in size)
    assert image.shape == (h, w, 3)
    assert np.abs(image - expected(coder, readout, data)[:h, :w]).max() <= 1


def test_parts_of_it_are_read_too(with_thumbnail, picture):
    coder, readout = with_thumbnail
    data = coder.encode(picture(128, 200), quality=70)
    image = np.asarray(coder.decode(data, scale=8, crop=(24, 40, 100, 80))).astype(int)
    assert np.abs(image - expected(coder, readout, data)[5:15, 3:16]).max() <= 1


def test_tiles_have_no_seams_in_it(with_thumbnail, picture, monkeypatch):
    coder, readout = with_thumbnail
    monkeypatch.setattr("codec.api.tile_bits", lambda width, height: 8)
    data = coder.encode(picture(300, 520), quality=70)
    whole = np.asarray(coder.decode(data, scale=8)).astype(int)
    left = np.asarray(coder.decode(data, scale=8, crop=(0, 0, 264, 300))).astype(int)
    assert whole.shape == (38, 65, 3)
    assert np.array_equal(left, whole[:, :33])


@pytest.mark.parametrize(("scale", "crop"), [(4, None), (8, (4, 0, 64, 64)), (1, None)])
def test_other_parts_are_synthesised(with_thumbnail, picture, scale, crop, monkeypatch):
    coder, _ = with_thumbnail
    data = coder.encode(picture(100, 100), quality=70)
    calls = []
    synthesise = coder.model.synthesise
    monkeypatch.setattr(coder.model, "synthesise", lambda *a: calls.append(1) or synthesise(*a))
    coder.decode(data, scale=scale, crop=crop)
    assert calls


def test_tensors_of_another_shape_are_refused():
    tensors = {"thumbnail.weight": torch.zeros(12, 31, 3, 3), "thumbnail.bias": torch.zeros(12)}
    with pytest.raises(CheckpointError, match=r"thumbnail.weight is \(12, 31, 3, 3\), expected \(12, 32, 3, 3\)"):
        Thumbnail(tensors, 32)
    assert Thumbnail.of({}, 32) is None


def test_a_callers_autocast_does_not_change_it(with_thumbnail, picture):
    coder, _ = with_thumbnail
    data = coder.encode(picture(128, 200), quality=70)
    expected = np.asarray(coder.decode(data, scale=8))
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(np.asarray(coder.decode(data, scale=8)), expected)
