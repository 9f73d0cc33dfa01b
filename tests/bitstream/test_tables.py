"""CDF tables and integer powers of two, against their definitions in exact arithmetic."""

import math

import numpy as np
import pytest

from bitstream.errors import SymbolError
from bitstream.tables import (
    SCALE_MAX,
    SCALE_MIN,
    SCALES,
    SYMBOL_MAX,
    MasterTable,
    constants_crc,
    gaussian_master,
    log2_fixed,
    master_from_pmf,
    pow2_fixed,
    pow2_table,
    scale_index,
)

SIGMAS = [SCALE_MIN * (SCALE_MAX / SCALE_MIN) ** (i / (SCALES - 1)) for i in range(SCALES)]
RANGES = [
    (-1023, 1023),
    (-1023, -1023),
    (1023, 1023),
    (0, 0),
    (0, 1),
    (-1, 1),
    (-20, 20),
    (5, 300),
    (-1023, -1000),
    (900, 1023),
]


def closed(rows: np.ndarray) -> np.ndarray:
    """Return rows as int64 with the closing 65536, stored as 0, in place."""
    assert (rows[:, -1] == 0).all()
    rows = rows.astype(np.int64)
    rows[:, -1] = 65536
    return rows


def counts(first: int, last: int) -> np.ndarray:
    """Return the counts (64, last − first + 1) of the Gaussian rows."""
    return np.diff(closed(gaussian_master().rows(first, last)), axis=1)


# --- rows


@pytest.mark.parametrize(("first", "last"), RANGES)
def test_rows_rise_from_0_to_65536_with_a_count_for_every_symbol(first, last):
    rows = closed(gaussian_master().rows(first, last))
    assert rows.shape == (SCALES, last - first + 2)
    assert (rows[:, 0] == 0).all()
    assert (np.diff(rows, axis=1) >= 1).all()


def test_rows_follow_the_formula_in_unbounded_integers():
    """FORMAT.md 4.1, spelled out with Python's integers: no overflow in int64."""
    first, last = -1023, 1023
    n = last - first + 1
    rows = closed(gaussian_master().rows(first, last))
    for i in (0, 31, 63):
        f = [int(v) for v in gaussian_master().cumulative[i]]
        want = [(f[k] - f[0]) * (65536 - n) // (f[n] - f[0]) + k for k in range(n + 1)]
        assert rows[i].tolist() == want


def test_rows_of_a_small_table_are_these_numbers():
    """F = 0 10 30 40; all of it: n = 3, 65533 · (0, 10, 30, 40) / 40 + (0, 1, 2, 3)."""
    table = MasterTable(-1, np.array([[0, 10, 30, 40]]))
    assert table.hi == 1
    assert table.rows(-1, 1).tolist() == [[0, 16384, 49151, 0]]
    assert table.rows(0, 1).tolist() == [[0, 43690, 0]]
    assert table.rows(1, 1).tolist() == [[0, 0]]
    assert table.rows(-1, 1).dtype == np.uint16


@pytest.mark.parametrize(("first", "last"), [(-1024, 0), (0, 1024), (1, 0), (2000, 2001), (-1024, 1024)])
def test_rejects_a_range_outside_of_the_table(first, last):
    with pytest.raises(SymbolError, match=rf"range is \[{first}, {last}\], the table holds \[-1023, 1023\]"):
        gaussian_master().rows(first, last)


# --- the Gaussian master


def test_gaussian_master_holds_64_scales_on_symbols_of_11_bits():
    table = gaussian_master()
    assert (table.lo, table.hi) == (-SYMBOL_MAX, SYMBOL_MAX) == (-1023, 1023)
    assert table.cumulative.shape == (64, 2048)


def test_gaussian_master_rises_strictly():
    assert (np.diff(gaussian_master().cumulative, axis=1) >= 1).all()


def test_gaussian_master_is_symmetric_to_within_rounding():
    """Φ(−x) = 1 − Φ(x), so F(k) + F(1 − k) is 2^30 plus the two rising terms."""
    f = gaussian_master().cumulative
    assert np.abs(f + f[:, ::-1] - (2**30 + 2 * SYMBOL_MAX + 1)).max() <= 1


def test_gaussian_rows_are_symmetric_to_within_rounding():
    mass = counts(-300, 300)
    assert np.abs(mass - mass[:, ::-1]).max() <= 2


@pytest.mark.parametrize(("first", "last"), [(-1023, 1023), (-20, 20), (-1, 3), (5, 300)])
def test_counts_are_the_exact_gaussian_mass_of_the_range(first, last):
    """Each symbol gets one count, the other 65536 − n are shared by mass: to within the rounding of two floors."""
    n = last - first + 1
    checked = 0
    for i, sigma in enumerate(SIGMAS):
        root2 = sigma * math.sqrt(2)
        mass = np.array([math.erf((k + 0.5) / root2) - math.erf((k - 0.5) / root2) for k in range(first, last + 1)]) / 2
        if mass.sum() < 0.05:
            continue  # the rising term of the master is felt beside so little mass: no more than one count is promised
        want = mass / mass.sum() * (65536 - n) + 1
        slack = 1.01 + n * 65536 / 2**30 / mass.sum()  # floor, and the rising term of the master
        assert np.abs(counts(first, last)[i] - want).max() <= slack
        checked += 1
    assert checked > 30


def test_wider_scales_have_flatter_rows():
    peak = counts(-1023, 1023)[:, SYMBOL_MAX]
    assert (np.diff(peak) <= 0).all()
    assert peak[0] > 0.99 * (65536 - 2047)
    assert peak[-1] < 200


# --- other masters


def test_master_of_a_pmf_has_its_probabilities():
    pmf = np.array([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    table = master_from_pmf(pmf, -1)
    assert (table.lo, table.hi) == (-1, 1)
    assert table.cumulative.tolist() == [
        [0, 2**28 + 1, 3 * 2**28 + 2, 2**30 + 3],
        [0, 2**30 + 1, 2**30 + 2, 2**30 + 3],
        [0, 1, 2, 3],
    ]


def test_master_of_a_pmf_gives_a_count_to_impossible_symbols():
    pmf = np.zeros((1, 255))
    pmf[0, 127] = 1
    rows = closed(master_from_pmf(pmf, -127).rows(-127, 127))
    assert (np.diff(rows, axis=1) >= 1).all()
    assert np.diff(rows, axis=1)[0, 127] >= 65536 - 2 * 255


# --- powers of two


def test_pow2_table_is_one_octave_in_256_steps():
    table = pow2_table()
    assert table.shape == (256,)
    assert table[0] == 2**20
    assert table[128] == 1482910  # √2 · 2^20 = 1482910.4
    assert table[255] == 2091481  # 2^(255/256) · 2^20 = 2091481.4
    assert (np.diff(table) > 0).all()


def test_pow2_is_within_one_unit_below_zero():
    log2 = np.arange(-5120, 1)
    exact = np.array([2.0 ** (v / 256 + 20) for v in log2.tolist()])
    assert np.abs(pow2_fixed(log2) - exact).max() <= 1


def test_pow2_is_within_one_unit_of_the_table_above_zero():
    """Above zero the table's half unit is shifted up with the value: one unit of 2^-20 of the octave."""
    log2 = np.arange(0, 5121)
    exact = np.array([2.0 ** (v / 256 + 20) for v in log2.tolist()])
    assert (np.abs(pow2_fixed(log2) - exact) / 2.0 ** (log2 >> 8)).max() <= 0.5


def test_pow2_is_exact_at_whole_octaves():
    octaves = np.arange(-20, 21)
    assert pow2_fixed(octaves * 256).tolist() == [2 ** (20 + int(o)) for o in octaves]


def test_pow2_rounds_half_up_when_it_shifts_down():
    """T[0] >> 20 is 1 exactly; T[128] = 1482910 is 1.41 after 20 bits and 2.83 after 19."""
    assert pow2_fixed(np.array([-5120, -5120 + 128, -19 * 256 + 128])).tolist() == [1, 1, 3]


def test_pow2_never_falls():
    assert (np.diff(pow2_fixed(np.arange(-5200, 5200))) >= 0).all()


@pytest.mark.parametrize(("log2", "clamped"), [(-5121, -5120), (-(2**31), -5120), (5121, 5120), (2**31, 5120)])
def test_pow2_clamps_to_20_octaves(log2, clamped):
    assert pow2_fixed(np.array([log2])) == pow2_fixed(np.array([clamped])) == 2 ** (20 + clamped // 256)


# --- logarithms


def test_log2_is_exact_at_whole_octaves():
    assert log2_fixed(2 ** np.arange(21)).tolist() == [256 * octave for octave in range(21)]


def test_log2_is_the_largest_whose_power_is_not_above():
    value = np.unique(np.concatenate([np.arange(1, 3000), np.random.default_rng(0).integers(1, 2**20, 2000)]))
    log2 = log2_fixed(value)
    assert (pow2_fixed(log2) <= value << 20).all()
    assert (pow2_fixed(log2 + 1) > value << 20).all()
    assert (np.diff(log2) >= 0).all()


def test_log2_inverts_pow2():
    """Where neighbouring powers are different integers: from 2^9 on."""
    log2 = np.arange(9 * 256, 20 * 256 + 1)
    back = log2_fixed(-(-pow2_fixed(log2) >> 20))  # the power, rounded up to a whole number
    assert ((back == log2) | (back == log2 + 1)).all()
    assert (back[::256] == log2[::256]).all()


@pytest.mark.parametrize(("value", "log2"), [(0, -5120), (-1, -5120), (-(2**31), -5120), (2**20 + 1, 5120), (2**22, 5120)])
def test_log2_clamps_to_20_octaves(value, log2):
    assert log2_fixed(np.array([value])).tolist() == [log2]


def test_log2_keeps_the_shape():
    assert log2_fixed(np.array([[1, 2, 4], [8, 0, 3]], dtype=np.int32)).tolist() == [[0, 256, 512], [768, -5120, 405]]


# --- scale indexes


def test_scale_index_spans_the_scales():
    ends = np.rint(256 * np.log2([SCALE_MIN, SCALE_MAX])).astype(np.int64)
    assert scale_index(ends).tolist() == [0, 63]


def test_scale_index_of_each_scale_is_its_own():
    log2 = np.rint(256 * np.log2(SIGMAS)).astype(np.int64)
    assert scale_index(log2).tolist() == list(range(SCALES))


def test_scale_index_is_that_of_the_nearest_scale():
    """It changes midway between two neighbours, to within one unit of 1/256 octave."""
    units = np.arange(-900, 2100)
    first = np.array([units[scale_index(units) == i].min() for i in range(1, SCALES)])
    log2 = 256 * np.log2(SIGMAS)
    assert np.abs(first - (log2[1:] + log2[:-1]) / 2).max() <= 1.5


def test_scale_index_never_falls_and_clamps():
    index = scale_index(np.arange(-9000, 9000)).astype(int)
    assert set(np.diff(index).tolist()) == {0, 1}
    assert (index[0], index[-1]) == (0, 63)
    assert scale_index(np.array([-(2**31), 2**31])).tolist() == [0, 63]


# --- the seal


def test_constants_are_those_of_format_version_1():
    """Each checkpoint and each file in the world depends on this value: if it changes, nothing decodes any more."""
    assert constants_crc() == 0xCA60B445
