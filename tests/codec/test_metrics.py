"""Bits per pixel and PSNR, against values worked out by hand; MS-SSIM, against the package that computes it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_msssim import ms_ssim

from codec import images
from codec.metrics import bpp, decoded_psnr_db, ms_ssim_db, psnr_db


@pytest.mark.parametrize(("n_bytes", "size", "expected"), [(1, (1, 1), 8.0), (100, (40, 20), 1.0), (0, (3, 3), 0.0)])
def test_bpp_counts_all_bytes(n_bytes, size, expected):
    assert bpp(n_bytes, *size) == expected


def test_psnr_of_equal_pictures_is_infinite(picture):
    assert psnr_db(picture(4, 4), picture(4, 4)) == math.inf


@pytest.mark.parametrize(("difference", "expected"), [(1, 48.1308), (5, 34.1514), (255, 0.0)])
def test_psnr_of_a_constant_difference(difference, expected):
    a = np.zeros((4, 5, 3), np.uint8)
    b = np.full((4, 5, 3), difference, np.uint8)
    assert psnr_db(a, b) == pytest.approx(expected, abs=1e-4)
    assert psnr_db(b, a) == psnr_db(a, b)  # no wrap-around of uint8


def test_psnr_is_over_all_channels():
    a = np.zeros((2, 2, 3), np.uint8)
    b = a.copy()
    b[:, :, 1] = 3
    assert psnr_db(a, b) == pytest.approx(10 * math.log10(255**2 / 3))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_psnr_of_a_decoded_picture_is_that_of_its_colours(picture, mode):
    source = images.load(Image.fromarray(picture(9, 7)).convert(mode[0] if mode[0] == "L" else "RGB"))
    decoded = Image.fromarray(picture(9, 7, seed=1)).convert(mode)
    if mode[-1] == "A":
        decoded.putalpha(Image.fromarray(picture(9, 7, seed=2)[:, :, 0]))
    decoded.info["exif"] = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"  # says: turn it
    colours = np.asarray(decoded.convert("RGB"))
    assert decoded_psnr_db(source.pixels, decoded) == pytest.approx(psnr_db(source.pixels, colours), abs=1e-9)


def test_ms_ssim_of_equal_pictures_is_infinite(picture):
    assert ms_ssim_db(picture(161, 170), picture(161, 170)) == math.inf


@pytest.mark.parametrize("strength", [2, 40])
def test_ms_ssim_is_that_of_the_package_in_db(picture, strength):
    a = picture(170, 200)
    noise = np.random.default_rng(1).normal(0, strength, a.shape)
    b = (a + noise).round().clip(0, 255).astype(np.uint8)
    tensors = [torch.from_numpy(x.transpose(2, 0, 1).copy())[None].float() for x in (a, b)]
    similarity = float(ms_ssim(*tensors, data_range=255))
    assert ms_ssim_db(a, b) == pytest.approx(-10 * math.log10(1 - similarity), abs=0.02)
    assert ms_ssim_db(b, a) == pytest.approx(ms_ssim_db(a, b))


def test_ms_ssim_falls_with_noise_and_takes_turned_arrays(picture):
    a = picture(170, 200)
    noise = np.random.default_rng(1).normal(0, 1, a.shape)
    noisy = [(a + strength * noise).round().clip(0, 255).astype(np.uint8) for strength in (2, 10, 50)]
    values = [ms_ssim_db(a, b) for b in noisy]
    assert values == sorted(values, reverse=True)
    assert 3 < values[2] < values[0] < 40
    turned = (x.transpose(1, 0, 2)[:, ::-1] for x in (a, noisy[0]))
    assert ms_ssim_db(*turned) == pytest.approx(values[0], abs=0.5)


def test_ms_ssim_of_a_small_difference_is_finite(picture):
    a = picture(170, 200)
    b = a.copy()
    b[80, 80, 1] += 1
    assert 40 < ms_ssim_db(a, b) < math.inf
