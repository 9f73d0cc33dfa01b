"""Bits per pixel and PSNR, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from codec.metrics import bpp, psnr_db


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
