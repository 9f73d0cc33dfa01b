"""Mixtures as CDF rows: sound for every parameter, and near the Gaussian mixtures of floating-point arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bitstream import mixture
from bitstream.mixture import PHI_BITS, Mixtures, inverse_scales, mixture_crc, phi_table
from bitstream.tables import SCALE_MAX, SCALE_MIN, SCALES, gaussian_master

SIGMAS = SCALE_MIN * (SCALE_MAX / SCALE_MIN) ** (np.arange(SCALES) / (SCALES - 1))
RANGES = [(-1023, 1023), (-1023, -1023), (1023, 1023), (0, 1), (-20, 20), (5, 300), (-1023, -1000), (900, 1023)]


def closed(rows: np.ndarray) -> np.ndarray:
    """Return rows as int64 with the closing 65536, stored as 0, in place."""
    assert (rows[:, -1] == 0).all()
    rows = rows.astype(np.int64)
    rows[:, -1] = 65536
    return rows


def random_mixtures(n: int, k: int, seed: int = 0, reach: int = 20) -> Mixtures:
    """Return n mixtures: means within ±reach, one component of the heaviest weight, others down to 1."""
    rng = np.random.default_rng(seed)
    weights = np.exp2(rng.uniform(0, 20, (n, k))).astype(np.int64)
    weights[np.arange(n), rng.integers(0, k, n)] = 2**20
    return Mixtures(weights, rng.integers(-reach * 256, reach * 256, (n, k)), rng.integers(0, SCALES, (n, k)))


def float_mass(source: Mixtures, first: int, last: int) -> np.ndarray:
    """Return the probabilities (n, last − first + 1) of the symbols, by erfc."""
    edges = np.arange(first, last + 2) - 0.5
    root2 = (SIGMAS[source.scales] * math.sqrt(2))[:, :, None]
    phi = 0.5 * np.vectorize(math.erfc)(-(edges - source.means[:, :, None] / 256) / root2)
    return (np.diff(phi, axis=2) * source.weights[:, :, None]).sum(1) / source.weights.sum(1)[:, None]


# --- rows


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(("first", "last"), RANGES)
def test_rows_rise_from_0_to_65536_with_a_count_for_every_symbol(first, last, k):
    table, rows = random_mixtures(200, k).cdf(first, last)
    assert table.dtype == np.uint16
    assert rows.tolist() == list(range(200))
    table = closed(table)
    assert table.shape == (200, last - first + 2)
    assert (table[:, 0] == 0).all()
    assert (np.diff(table, axis=1) >= 1).all()


@pytest.mark.parametrize("mean", [-(2**28), -(2**20), 2**20, 2**28])
@pytest.mark.parametrize("scale", [0, 63])
def test_rows_rise_where_no_component_has_any_mass(mean, scale):
    source = Mixtures(np.array([[2**20, 1]]), np.array([[mean, mean]]), np.array([[scale, scale]]))
    for first, last in RANGES:
        assert (np.diff(closed(source.cdf(first, last)[0]), axis=1) >= 1).all()


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(("first", "last", "reach"), [(-60, 60, 50), (-3, 2, 2), (-1023, 1023, 700)])
def test_counts_are_the_float_mixtures_mass(first, last, reach, k):
    """One count for each symbol, the rest by mass, but for floors and one entry of Φ: up to 0.4 / 4096 of all counts."""
    source, n = random_mixtures(150, k, 2, reach), last - first + 1
    counts = np.diff(closed(source.cdf(first, last)[0]), axis=1)
    mass = float_mass(source, first, last)
    inside = mass.sum(1, keepdims=True)
    want = mass / inside * (65536 - n) + 1
    assert (np.abs(counts - want) <= 6.5 / inside + 2).all()
    lost = (want * np.log2(want / counts)).sum(1) / 65536  # bits a symbol, by Kullback and Leibler
    assert lost.max() < 0.002
    assert lost.mean() < 0.0003


@pytest.mark.parametrize("scale", range(0, SCALES, 7))
def test_one_centred_component_is_near_the_gaussian_table(scale):
    first, last = -300, 300
    source = Mixtures(np.array([[2**20]]), np.array([[0]]), np.array([[scale]]))
    counts = np.diff(closed(source.cdf(first, last)[0]))[0]
    want = np.diff(closed(gaussian_master().rows(first, last)))[scale]
    assert np.abs(counts - want).max() <= 12
    assert abs((np.log2(counts / 65536) * want / 65536).sum() - (np.log2(want / 65536) * want / 65536).sum()) < 1e-3  # bits


def test_a_mean_of_whole_symbols_shifts_the_row():
    scales = np.array([[10], [40]])
    here = Mixtures(np.full((2, 1), 2**20), np.zeros((2, 1), np.int64), scales).cdf(-30, 30)[0]
    there = Mixtures(np.full((2, 1), 2**20), np.full((2, 1), 7 * 256), scales).cdf(-23, 37)[0]
    assert np.array_equal(here, there)


def test_equal_components_are_one():
    weights, means, scales = np.full((5, 3), 2**20), np.arange(5)[:, None] * 100, np.arange(5)[:, None] * 12
    three = Mixtures(weights, means.repeat(3, 1), scales.repeat(3, 1)).cdf(-50, 50)[0].astype(int)
    one = Mixtures(weights[:, :1], means, scales).cdf(-50, 50)[0].astype(int)
    assert np.abs(three - one).max() <= 1


def test_a_component_of_next_to_no_weight_does_not_matter():
    weights = np.array([[2**20, 1], [2**20, 0]])
    table = Mixtures(weights, np.array([[0, 5000]] * 2), np.array([[20, 20]] * 2)).cdf(-40, 40)[0].astype(int)
    assert np.abs(table[0] - table[1]).max() <= 1


@pytest.mark.parametrize("cells", [1, 100, 1000])
def test_the_block_size_does_not_change_rows(monkeypatch, cells):
    source = random_mixtures(50, 3)
    whole = source.cdf(-40, 25)[0]
    monkeypatch.setattr(mixture, "BLOCK_CELLS", cells)
    assert np.array_equal(source.cdf(-40, 25)[0], whole)


def test_some_of_the_symbols_have_the_same_rows():
    source = random_mixtures(30, 3)
    where = np.array([4, 29, 4, 0])
    assert np.array_equal(source.take(where).cdf(-9, 9)[0], source.cdf(-9, 9)[0][where])
    assert (len(source), len(source.take(where))) == (30, 4)


def test_bands_are_those_of_the_widest_component():
    scales = np.array([[0, 15], [16, 2], [39, 39], [0, 40], [63, 0]])
    source = Mixtures(np.ones((5, 2), np.int64), np.zeros((5, 2), np.int64), scales, (16, 40))
    assert source.bands().tolist() == [0, 1, 1, 2, 2]
    assert source.take(np.array([3, 0])).bands().tolist() == [2, 0]


def test_a_row_is_these_numbers():
    """Frozen since format version 1: weights 2^20 and 2^19, means 0.5 and −1.25, σ of rows 20 and 30."""
    source = Mixtures(np.array([[2**20, 2**19]]), np.array([[128, -320]]), np.array([[20, 30]]))
    assert source.cdf(-4, 4)[0].tolist() == [[0, 1870, 4359, 9014, 19005, 34924, 50657, 60130, 63999, 0]]


# --- tables


def test_phi_table_is_the_normal_distribution():
    table = phi_table()
    assert (len(table), table[0], table[-1]) == (65537, 0, 2**PHI_BITS)
    assert table[32768] == 2**23
    assert (np.diff(table) >= 0).all()
    assert np.abs(table + table[::-1] - 2**PHI_BITS).max() <= 1
    at = np.array([-3, -1, 1, 2])
    exact = [0.5 * math.erfc(-x / math.sqrt(2)) * 2**24 for x in at.tolist()]
    assert np.abs(table[32768 + 4096 * at] - exact).max() <= 0.5


def test_inverse_scales_are_entries_per_1_256():
    """At a deviation's distance, 256·σ, the entry is 4096."""
    assert np.abs(256 * SIGMAS * inverse_scales() / 2**16 - 4096).max() < 0.5 * 256 * SCALE_MAX / 2**16 + 1e-6


def test_constants_are_those_of_format_version_1():
    """Each checkpoint of a model with mixtures stores this value: if it changes, its files decode no more."""
    assert mixture_crc() == 0xB993E1D1
