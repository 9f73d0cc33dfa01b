"""Pictures that no training set has: never an error, and never a visible break.

The floors of ``swift`` were measured (bf16 encoder, x86) and have room of about 2 dB, or half, for other arithmetic and for
weights that are trained on. They are no praise: noise and one-pixel patterns are beyond a transform of 16 × 16 pixels to fewer
coefficients, at any rate, but their local means must stay.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from codec import Codec
from codec.metrics import psnr_db

H, W = 128, 192
BLOCK = 16
COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "gray": (128, 128, 128),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
    "skin": (224, 172, 105),
}


def flat(colour, h=H, w=W) -> np.ndarray:
    return np.full((h, w, 3), colour, dtype=np.uint8)


def random(h=H, w=W, levels=256) -> np.ndarray:
    return (np.random.default_rng(0).integers(0, levels, (h, w, 3)) * (255 // (levels - 1))).astype(np.uint8)


def checkerboard(side: int) -> np.ndarray:
    y, x = np.mgrid[:H, :W]
    return np.repeat((((y // side + x // side) % 2) * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def text(*inks) -> np.ndarray:
    image = Image.new("RGB", (W, H), "white")
    draw = ImageDraw.Draw(image)
    for i in range(9):
        draw.text((4, 4 + 13 * i), "The quick brown fox 0123456789", fill=inks[i % len(inks)])
    return np.asarray(image)


def lines() -> np.ndarray:
    pixels = flat(255)
    pixels[::7] = 0
    pixels[:, ::11] = (255, 0, 0)
    return pixels


def gradient() -> np.ndarray:
    across, down = np.linspace(0, 255, W), np.linspace(0, 255, H)[:, None]
    return np.stack([np.broadcast_to(p, (H, W)) for p in (across, across[::-1], down)], axis=2).astype(np.uint8)


def sawtooth() -> np.ndarray:
    return np.repeat(np.tile((np.arange(W) * 16 % 256).astype(np.uint8), (H, 1))[:, :, None], 3, axis=2)


def one_white_pixel() -> np.ndarray:
    pixels = flat(0)
    pixels[64, 96] = 255
    return pixels


def halves() -> np.ndarray:
    return np.concatenate([flat(0, w=W // 2), flat(255, w=W // 2)], axis=1)


# name: (picture, least PSNR in dB, largest error of the mean of a 16 × 16 block), at quality 90
PATTERNS = {
    "noise": (random, 11.0, 7.0),
    "binary noise": (functools.partial(random, levels=2), 7.0, 9.0),
    "checkerboard of 1": (functools.partial(checkerboard, 1), 5.5, 5.0),
    "checkerboard of 2": (functools.partial(checkerboard, 2), 20.0, 6.0),
    "checkerboard of 8": (functools.partial(checkerboard, 8), 29.0, 3.0),
    "text": (functools.partial(text, "black", "darkred", "navy"), 22.0, 16.0),
    "lines": (lines, 18.0, 17.0),
    "gradient": (gradient, 42.0, 4.0),
    "sawtooth": (sawtooth, 36.0, 3.0),
    "one white pixel": (one_white_pixel, 50.0, 2.0),
    "halves": (halves, 45.0, 3.0),
}
SIZES = {"pixel": (1, 1), "icon": (16, 16), "wide": (3, 20000), "tall": (20000, 3)}  # (height, width)


@pytest.fixture(scope="module")
def swift():
    """The shipped model, on the CPU, in one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Codec("swift", "cpu")
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(golden) -> dict[str, Codec]:
    """A codec for each golden checkpoint."""
    return {path.stem: Codec(path, "cpu") for path in sorted(golden.glob("tiny-*.safetensors")) if path.stem != "tiny-overfit"}


def decoded(codec, pixels, quality) -> np.ndarray:
    """Return what a picture comes back as; raises one of our errors if something is wrong."""
    out = np.asarray(codec.decode(codec.encode(pixels, quality=quality)))
    assert out.shape == pixels.shape
    return out


def errors_of_means(pixels, out) -> np.ndarray:
    """Return the errors of the means of blocks, of whole blocks only."""
    difference = out.astype(int) - pixels.astype(int)
    return np.abs(difference.reshape(H // BLOCK, BLOCK, W // BLOCK, BLOCK, 3).mean(axis=(1, 3)))


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_has_no_visible_break(swift, name):
    make, least_db, mean_off = PATTERNS[name]
    pixels = make()
    out = decoded(swift, pixels, 90)
    assert psnr_db(pixels, out) >= least_db
    assert errors_of_means(pixels, out).max() <= mean_off
    for quality in (0, 100):
        decoded(swift, pixels, quality)


@pytest.mark.parametrize("name", PATTERNS)
def test_more_quality_is_not_worse(swift, name):
    """A latent that leaves the range of its symbols would be cut off, first of all at high rates."""
    pixels = PATTERNS[name][0]()
    by_quality = [psnr_db(pixels, decoded(swift, pixels, quality)) for quality in (0, 50, 100)]
    assert by_quality[0] - 0.5 <= by_quality[1]
    assert by_quality[1] - 2.0 <= by_quality[2]  # measured: 1.65 dB at a checkerboard of 2, no symbol clamped


# quality: (least PSNR in dB, largest error of a pixel, largest error of the mean of a block)
FLAT = {0: (35.0, 25, 12.0), 50: (47.0, 14, 3.5), 90: (51.5, 10, 1.5), 100: (52.0, 9, 1.2)}


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("quality", FLAT)
def test_a_pure_colour_comes_back_everywhere(swift, colour, quality):
    pixels = flat(COLOURS[colour])
    out = decoded(swift, pixels, quality)
    least_db, pixel_off, mean_off = FLAT[quality]
    assert psnr_db(pixels, out) >= least_db
    assert np.abs(out.astype(int) - pixels).max() <= pixel_off
    assert errors_of_means(pixels, out).max() <= mean_off


@pytest.mark.parametrize("size", SIZES)
def test_odd_sizes_of_swift(swift, size, picture):
    pixels = picture(*SIZES[size])
    assert psnr_db(pixels, decoded(swift, pixels, 90)) >= 30


@pytest.mark.parametrize("quality", [0, 100])
def test_no_model_fails_on_what_it_was_not_made_for(tiny, quality):
    """The weights of these are random, so nothing is asked of the pixels but that they come, again and the same."""
    for name, codec in tiny.items():
        for pattern in ("noise", "binary noise", "checkerboard of 1", "text"):
            pixels = PATTERNS[pattern][0]()
            data = codec.encode(pixels, quality=quality)
            assert codec.decode(data).tobytes() == codec.decode(data).tobytes(), (name, pattern)
        for colour in ((0, 0, 0), (255, 255, 255), (255, 0, 0)):
            decoded(codec, flat(colour, 64, 64), quality)
        for size in ((1, 1), (16, 16), (3, 1000), (1000, 3)):
            decoded(codec, random(*size), quality)
        assert codec.decode(codec.encode(random(16, 16)[:, :, 0], quality=quality)).mode == "L"
