"""The latents of a file: what synthesis makes the picture of, and what the encoder rounded, for every model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import codec
from bitstream.container import Container
from bitstream.errors import CheckpointError, DesyncError, FormatError, LimitError
from bitstream.grid import Rect
from bitstream.limits import Limits
from codec import Codec
from codec.tiles import TileDecoder, to_pixels
from models.registry import MODELS

SIZE = (65, 129)  # of y 8 × 12, of z 2 × 3
TILED = (300, 530)  # two rows of three tiles of 256


@pytest.fixture(scope="module", params=[*MODELS, "crossed", "inverse-gain"])
def tiny(request, golden):
    """A Codec of a frozen tiny checkpoint."""
    return Codec(golden / f"tiny-{request.param}.safetensors", "cpu")


@pytest.fixture
def tiled(tiny_codec, picture, monkeypatch):
    """A file of six tiles."""
    monkeypatch.setattr("codec.api.tile_bits", lambda width, height: 8)
    return tiny_codec.encode(picture(*TILED), quality=60)


def batch_of(pixels):
    """Return pixels (H, W, 3) as (1, 3, H, W) uint8."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


@pytest.mark.parametrize("quality", [0, 57])
def test_y_hat_synthesises_to_the_decoded_picture(tiny, picture, quality):
    data = tiny.encode(picture(*SIZE), quality=quality)
    found = tiny.latents(data)
    assert found.y_hat.shape == (1, tiny.model.config.M, 8, 12)
    assert found.y_hat.dtype == torch.float32
    assert found.header == codec.info(data)
    assert found.level == found.header.level
    assert found.quality == pytest.approx(quality, abs=0.1)
    x_hat = tiny.model.synthesise(found.y_hat)[..., : SIZE[0], : SIZE[1]]
    assert np.array_equal(to_pixels(x_hat), np.asarray(tiny.decode(data)))


def test_z_hat_is_what_the_encoders_z_rounds_to(tiny, picture):
    pixels = picture(*SIZE)
    found = tiny.latents(tiny.encode(pixels, quality=57))
    entropy = tiny.model.entropy
    _, z = tiny.model.analyse(batch_of(pixels))
    if z is None:
        assert found.z_hat is None
        return
    assert found.z_hat.shape == z.shape == (1, len(entropy.z_offset), 2, 3)
    assert found.z_hat.dtype == torch.float32
    gain = (entropy.gains_z(found.level).double() / 256).exp2()[:, None, None]
    symbols = found.z_hat * gain - entropy.z_offset[:, None, None] / 256
    assert torch.allclose(symbols, symbols.round(), atol=1e-4)
    assert symbols.round().unique().numel() > 1
    assert ((z - found.z_hat) * gain).abs().max() <= 0.5001


def test_latents_of_tiles_are_put_together(tiny_codec, picture, tiled):
    found = tiny_codec.latents(tiled)
    h, w = TILED
    decoder = TileDecoder(tiny_codec.model, w, h, 8)
    x, bound = batch_of(picture(h, w)), 0.5001
    gain = (tiny_codec.model.entropy.gains_z(found.level).double() / 256).exp2()[:, None, None]

    def part(number):
        tile = decoder.tiles[number]
        rows, columns = (
            slice(start // 16, -(-stop // 64) * 4) for start, stop in ((tile.top, tile.bottom), (tile.left, tile.right))
        )
        return found.y_hat[..., rows, columns]

    assert found.y_hat.shape[-2:] == (20, 36)
    pixels = decoder.decode(part, Rect(0, 0, w, h))
    assert np.array_equal(pixels, np.asarray(tiny_codec.decode(tiled)))
    for tile in decoder.tiles:
        _, z = tiny_codec.model.analyse(x, tile)
        top, left = tile.top // 64, tile.left // 64
        z_hat = found.z_hat[..., top : top + z.shape[-2], left : left + z.shape[-1]]
        assert ((z - z_hat) * gain).abs().max() <= bound


def test_latents_can_be_learned_from(tiny_codec, picture):
    found = tiny_codec.latents(tiny_codec.encode(picture(*SIZE)))
    for latents in (found.y_hat, found.z_hat):
        layer = torch.nn.Conv2d(latents.shape[1], 2, 1)
        layer(latents).sum().backward()
        assert layer.weight.grad.abs().sum() > 0


def test_what_decoding_refuses_is_refused(tiny_codec, golden, picture):
    data = tiny_codec.encode(picture(20, 20))
    container = Container.unpack(data)
    forged = dataclasses.replace(container.header, symbol_crc=container.header.symbol_crc ^ 1)
    with pytest.raises(DesyncError):
        tiny_codec.latents(dataclasses.replace(container, header=forged).pack())
    with pytest.raises(FormatError, match="checksum"):
        tiny_codec.latents(data[:-1])
    with pytest.raises(LimitError):
        tiny_codec.latents(data, limits=Limits(max_pixels=100))
    with pytest.raises(LimitError, match="GiB of memory"):
        tiny_codec.latents(data, limits=Limits(max_memory=2**20))
    with pytest.raises(CheckpointError):
        Codec(golden / "tiny-joint.safetensors", "cpu").latents(data)


def test_the_function_finds_the_checkpoint(installed, tiny_codec, picture):
    data = tiny_codec.encode(picture(20, 20))
    assert torch.equal(codec.latents(data, device="cpu").y_hat, tiny_codec.latents(data).y_hat)
