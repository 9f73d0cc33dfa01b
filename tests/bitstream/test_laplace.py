"""Laplace distributions as CDF rows: near those of floating-point arithmetic, and mirrored around their locations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bitstream.coder import StreamReader, StreamWriter
from bitstream.laplace import FRACTIONS, SCALE_LOWEST, SCALE_STEP, SCALES, laplace_master, laplace_rows, spiked_master
from bitstream.segments import TableRows
from bitstream.tables import SYMBOL_MAX, MasterTable

BANDS = (11 * FRACTIONS, 24 * FRACTIONS)
LOG2_SCALES = np.arange(SCALES) * SCALE_STEP + SCALE_LOWEST  # in 1/256 octave
K = np.arange(-SYMBOL_MAX, SYMBOL_MAX + 1)


def float_cdf(scale: int, fraction: int) -> np.ndarray:
    """Return the probability (2048,) of all below the lower edge of each symbol −1023 … 1023, and of 1024."""
    edges = np.arange(-SYMBOL_MAX, SYMBOL_MAX + 2) - 0.5 - fraction / FRACTIONS
    tail = 0.5 * np.exp(-np.abs(edges) / 2.0 ** (LOG2_SCALES[scale] / 256))
    return np.where(edges < 0, tail, 1 - tail)


def mass(scale: int, fraction: int) -> np.ndarray:
    """Return what a master row gives to each symbol, in 2^-30."""
    return np.diff(laplace_master().cumulative[scale * FRACTIONS + fraction])


# --- master rows


def test_there_is_a_row_for_each_scale_and_fraction():
    assert laplace_master().cumulative.shape == (SCALES * FRACTIONS, 2 * SYMBOL_MAX + 2)
    assert (laplace_master().lo, laplace_master().hi) == (-SYMBOL_MAX, SYMBOL_MAX)


def test_master_rows_rise_strictly_within_31_bits():
    cumulative = laplace_master().cumulative
    assert (np.diff(cumulative, axis=1) >= 1).all()
    assert cumulative.min() >= 0
    assert cumulative.max() < 2**31  # times 2^16 in int64


@pytest.mark.parametrize("fraction", range(FRACTIONS))
def test_master_rows_are_the_float_distribution(fraction):
    """Powers of two are in steps of 2^-20, and interpolated between 1/256 octaves; products are cut to 2^-16 octave."""
    for scale in range(SCALES):
        got = (laplace_master().cumulative[scale * FRACTIONS + fraction] - np.arange(2 * SYMBOL_MAX + 2)) / 2.0**30
        want = float_cdf(scale, fraction)
        allowed = np.minimum(want, 1 - want) * 0.0005 + 2.0**-21
        assert (np.abs(got - want) <= allowed).all(), scale


@pytest.mark.parametrize("fraction", [0, 3, 8, 15])
def test_coding_by_the_rows_loses_no_more_than_the_count_of_each_symbol(fraction):
    for scale in range(SCALES):
        reach = min(SYMBOL_MAX, int(10 * 2 ** (LOG2_SCALES[scale] / 256)) + 3)
        n, first = 2 * reach + 1, SYMBOL_MAX - reach
        own = laplace_master().cumulative[scale * FRACTIONS + fraction][None]
        row = MasterTable(-SYMBOL_MAX, own).rows(-reach, reach)[0].astype(np.int64)
        row[-1] = 65536
        want, counts = np.diff(float_cdf(scale, fraction)[first : first + n + 1]), np.diff(row)
        want, counts = want[want > 0] / want.sum(), counts[want > 0]
        lost = (want * np.log2(want * 65536 / counts)).sum()  # bits a symbol, by Kullback and Leibler
        assert lost < math.log2(65536 / (65536 - n)), scale


@pytest.mark.parametrize("scale", [50, 56, 60, 63])
def test_no_symbol_of_a_wide_scale_has_twice_the_mass_of_its_neighbour(scale):
    """A symbol is less than 1/256 octave of the wide ones: without interpolation every other one would have none."""
    inner = mass(scale, 5)[SYMBOL_MAX - 300 : SYMBOL_MAX + 300]
    assert inner.min() > 0
    assert 0.9 < (inner[1:] / inner[:-1]).min() <= (inner[1:] / inner[:-1]).max() < 1.1


def test_a_mass_is_mirrored_around_its_location():
    for scale in range(SCALES):
        assert (mass(scale, 0) == mass(scale, 0)[::-1]).all()
        for fraction in range(1, FRACTIONS):
            assert (mass(scale, fraction)[1:] == mass(scale, FRACTIONS - fraction)[:0:-1]).all()


@pytest.mark.parametrize("fraction", range(FRACTIONS))
def test_the_mean_is_the_fraction(fraction):
    for scale in range(24, 40):  # 2 … 20: narrower ones are mostly in one symbol, of wider ones a part is outside of the table
        p = mass(scale, fraction) - 1
        assert (p * K).sum() / p.sum() == pytest.approx(fraction / FRACTIONS, abs=0.005 * 2 ** (LOG2_SCALES[scale] / 256))


def test_a_wider_scale_gives_less_to_the_middle():
    middle = [mass(scale, 0)[SYMBOL_MAX] for scale in range(SCALES)]
    assert middle == sorted(middle, reverse=True)
    assert 1 - middle[0] / 2**30 < 2**-10


def test_some_rows_are_these_numbers():
    """Frozen with the format: scales 2^-4.25, 0.94 and 740, locations 0 and 9/16, on −2 … 2."""
    rows = laplace_master().rows(-2, 2).astype(int)
    picked = [rows[scale * FRACTIONS + fraction].tolist() for scale in (0, 19, 63) for fraction in (0, 9)]
    assert picked == [
        [0, 1, 4, 65531, 65534, 0],
        [0, 1, 2, 9978, 65534, 0],
        [0, 4661, 18208, 47327, 60874, 0],
        [0, 2593, 10131, 32043, 56922, 0],
        [0, 13138, 26293, 39242, 52397, 0],
        [0, 13122, 26276, 39431, 52380, 0],
    ]


# --- rows of scales and locations


def test_scales_are_rounded_to_the_nearest_row():
    every = np.arange(LOG2_SCALES[0] - 500, LOG2_SCALES[-1] + 500)
    rows, _ = laplace_rows(every, np.zeros_like(every))
    index = rows // FRACTIONS
    gap = np.abs(every[:, None] - LOG2_SCALES)
    found = np.take_along_axis(gap, index[:, None].astype(int), 1)[:, 0]
    assert (found <= gap.min(1) + 1).all()  # 1170 / 65536 is not quite 1/56
    assert laplace_rows(LOG2_SCALES, np.zeros_like(LOG2_SCALES))[0].tolist() == list(range(0, SCALES * FRACTIONS, FRACTIONS))
    assert (np.diff(index.astype(int)) >= 0).all()


@pytest.mark.parametrize(("log2_scale", "row"), [(-(2**18), 0), (2**18, (SCALES - 1) * FRACTIONS)])
def test_scales_out_of_range_take_the_last_row(log2_scale, row):
    assert laplace_rows(np.array([log2_scale]), np.array([0]))[0].tolist() == [row]


def test_locations_are_whole_parts_below_and_fractions():
    locations = np.arange(-1024 * FRACTIONS, 1024 * FRACTIONS + 1)
    rows, whole = laplace_rows(np.full_like(locations, 100), locations)
    fractions = rows.astype(int) % FRACTIONS
    assert (whole * FRACTIONS + fractions == locations).all()
    assert (whole == np.floor(locations / FRACTIONS)).all()
    assert len(set((rows // FRACTIONS).tolist())) == 1
    assert rows.dtype == np.uint16


# --- coding


@pytest.mark.parametrize("edges", [(), BANDS])
def test_random_symbols_round_trip(engine, edges):
    rng = np.random.default_rng(5)
    log2_scale, location = rng.integers(-1400, 2700, 600), rng.integers(-300, 300, 600)
    values = rng.laplace(location / FRACTIONS, 2.0 ** (log2_scale.clip(-1088, 2440) / 256)).round().astype(np.int64)
    rows, whole = laplace_rows(log2_scale, location)
    symbols = (values - whole).clip(-SYMBOL_MAX, SYMBOL_MAX).astype(np.int16)
    symbols[:4] = -SYMBOL_MAX, SYMBOL_MAX, 0, 1
    source = TableRows(laplace_master(), rows, edges)
    writer = StreamWriter(engine)
    writer.code_source(symbols, source)
    writer.end_chunk()
    reader = StreamReader(engine, writer.payloads)
    assert (reader.code_source(None, source) == symbols).all()
    reader.end_chunk()
    assert reader.crc == writer.crc


# --- with more zeros


@pytest.mark.parametrize("scale", [0, 5, 20, 40, 63])
@pytest.mark.parametrize("spike", [0, 1, 9, 31])
def test_a_spiked_row_is_what_the_format_says(scale, spike):
    """In plain Python: E'(k) is E(k) · (32 − z) >> 5 below, mirrored above."""
    plain, spiked = laplace_master().cumulative[scale * FRACTIONS].tolist(), spiked_master(scale, spike)
    want = []
    for k, f in enumerate(plain, start=-SYMBOL_MAX):
        e = f - (k + SYMBOL_MAX)
        want.append((e * (32 - spike) >> 5 if k <= 0 else 2**30 - ((2**30 - e) * (32 - spike) >> 5)) + k + SYMBOL_MAX)
    assert spiked.cumulative.tolist() == [want]
    assert spiked.lo == -SYMBOL_MAX


@pytest.mark.parametrize("scale", [0, 5, 20, 40, 63])
@pytest.mark.parametrize("spike", [1, 9, 31])
def test_a_spiked_row_has_more_zeros_and_less_of_all_else(scale, spike):
    plain, spiked = np.diff(laplace_master().cumulative[scale * FRACTIONS]), np.diff(spiked_master(scale, spike).cumulative[0])
    assert (spiked > 0).all()
    assert (spiked == spiked[::-1]).all()
    want = plain * (1 - spike / 32) + (K == 0) * spike / 32 * 2**30
    assert np.abs(spiked - want).max() < 3
