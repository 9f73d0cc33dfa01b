"""The densities of ``factorized`` in integers: near the float ones at every rate, in bands by width, refused when broken."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from bitstream.coder import StreamReader, StreamWriter
from bitstream.engines.reference import ReferenceEngine
from bitstream.errors import CheckpointError
from bitstream.tables import SYMBOL_MAX
from models.entropy_tensors import load_entropy
from models.factorized_entropy import GRID_REACH, MEDIAN_BITS, SPREADS, FactorizedEntropy, _bands
from models.latents import Latents
from models.layout import EntropyLayout
from models.quantise import quantise

ENGINE = ReferenceEngine()
LEVELS = [0, 100, 256, 500, 768]


@pytest.fixture
def small(stirred):
    """A small float network with densities that have been stirred, medians included."""
    return stirred("factorized")


@pytest.fixture
def entropy(small):
    """The integer densities of the small network."""
    return load_entropy(quantise(small, {}), small.layout())


def logistic(widths, log2_gain=0, median=0) -> FactorizedEntropy:
    """Return one level of channels with logistic densities of these widths, in steps; the grid has a gain of 1."""
    points = np.arange(-GRID_REACH, GRID_REACH + 1) / 2
    with np.errstate(over="ignore"):
        grid = np.rint(2**30 / (1 + np.exp(-points / np.array(widths, float)[:, None]))).astype(np.int64)
    count = len(widths)
    return FactorizedEntropy(
        torch.full((1, count), log2_gain),
        torch.zeros(count, dtype=torch.long),
        EntropyLayout((), means=False),
        grid=grid,
        log2_grid=torch.zeros(count, dtype=torch.long),
        offset=torch.full((count,), median),
    )


def round_trip(entropy, y, level=0, h=1):
    """Code y (positions, M) in 1/256; return y_hat (positions, M), the same from both directions, and the bytes."""
    writer = StreamWriter(ENGINE)
    y_hat = entropy.code_latents(writer, level, h, len(y) // h, Latents(y))
    reader = StreamReader(ENGINE, writer.payloads)
    assert torch.equal(entropy.code_latents(reader, level, h, len(y) // h, None), y_hat)
    assert reader.crc == writer.crc
    return y_hat.reshape(y.shape), writer.payloads


@pytest.mark.parametrize("level", LEVELS)
def test_rows_rise_strictly(entropy, level):
    table = entropy.master(level)
    assert (table.lo, table.hi) == (-SYMBOL_MAX, SYMBOL_MAX)
    assert table.cumulative.shape == (8, 2 * SYMBOL_MAX + 2)
    assert (np.diff(table.cumulative, axis=1) > 0).all()


@pytest.mark.parametrize("log2_gain", [-20 * 256, -3000, 0, 3000, 20 * 256])
def test_rows_rise_strictly_at_any_gain(log2_gain):
    entropy = logistic([0.01, 1.0, 300.0], log2_gain)
    assert (np.diff(entropy.master(0).cumulative, axis=1) > 0).all()
    y = torch.tensor([[0, 300, -(2**30)], [2**30, -1, 700]])
    round_trip(entropy, y)


def test_at_the_gain_of_the_grid_edges_are_its_points():
    entropy = logistic([0.5, 4.0])
    rising = np.arange(2 * SYMBOL_MAX + 2)
    assert np.array_equal(entropy.master(0).cumulative - rising, entropy.grid[:, 1::2])


def test_between_the_points_edges_are_interpolated():
    """Twice the gain: half of the steps, so that the edges lie midway between two points."""
    entropy = logistic([2.0], log2_gain=256)
    f, grid = entropy.master(0).cumulative[0], entropy.grid[0]
    for k in (-5, 0, 1, 8):  # the lower edge of k is (2k − 1) / 2 half steps
        below = (2 * k - 1) // 2 + GRID_REACH
        assert f[k + SYMBOL_MAX] - (k + SYMBOL_MAX) == (grid[below] + grid[below + 1]) // 2


@pytest.mark.parametrize("level", LEVELS)
def test_masses_are_those_of_the_float_density(small, entropy, level):
    step = (-(entropy.gains(level) + entropy.log2_std).double() / 256).exp2() * small.std[:, 0, 0]
    edges = (torch.arange(-60, 62) - 0.5) * (step / small.std[:, 0, 0])[:, None] + small.medians[:, :, 0]
    with torch.inference_mode():
        cumulative = torch.sigmoid(small.cumulative(edges[:, None].float()).double())[:, 0]
    want = cumulative.diff(dim=1).numpy()  # of the symbols −60 … 60
    table = entropy.master(level).cumulative
    got = np.diff(table[:, SYMBOL_MAX - 60 : SYMBOL_MAX + 62], axis=1) / 2**30
    assert np.abs(got - want).max() < 0.006
    lost = (want * np.log2(np.maximum(want, 1e-9) / got)).sum(1)  # bits a symbol
    assert np.abs(lost).max() < 0.01


def test_a_symbol_of_zero_stands_for_the_median(small, entropy):
    assert small.medians.abs().min() > 0.001
    unit = ((entropy.gains(300) + entropy.log2_std).double() / 256).exp2()
    medians = (small.medians[:, 0, 0] * unit * 256).round().long()
    y_hat, payloads = round_trip(entropy, medians.repeat(6, 1), 300)
    assert (y_hat - medians).abs().max() <= unit.max() * 256 / 2048 + 2
    assert sum(map(len, payloads)) <= 2 * (len(SPREADS) + 1)  # ranges and nothing else


@pytest.mark.parametrize("median", [0, 3000, -777_777])
def test_y_hat_is_a_whole_number_of_steps_from_the_median(median):
    entropy = logistic([3.0, 3.0], median=median)
    y = torch.randint(-3000, 3000, (20, 2), generator=torch.Generator().manual_seed(0))
    y_hat, _ = round_trip(entropy, y)
    mean = round(median / 2 ** (MEDIAN_BITS - 8))  # in 1/256
    assert entropy.means(0).tolist() == [mean, mean]
    assert ((y_hat - mean) % 256 == 0).all()
    assert (y_hat - y).abs().max() <= 128


def test_bands_are_the_widths():
    """A channel is in the first band whose ± symbols hold all but a thousandth: (1, 7, 31)."""
    widths = [200.0, 0.05, 0.9, 0.3, 4.0, 2.0, 0.05]
    entropy = logistic(widths)
    bands = _bands(entropy.master(0))
    f = 1 / (1 + np.exp(-(np.array(SPREADS) + 0.5) / np.array(widths)[:, None]))
    outside = 2 * (1 - f)
    assert bands.tolist() == (outside >= 1 / 1024).sum(1).tolist() == [3, 0, 1, 1, 2, 2, 0]


def test_each_symbol_has_the_row_of_its_channel():
    entropy = logistic([200.0, 0.05, 0.9, 0.3, 4.0, 2.0, 0.05], 37)
    sources = []

    class Spy(StreamWriter):
        def code_source(self, symbols, source):
            sources.append(source)
            return super().code_source(symbols, source)

    entropy.code_latents(Spy(ENGINE), 0, 1, 3, Latents(torch.zeros(3, 7, dtype=torch.long)))
    (source,) = sources
    table = entropy.master(0)
    assert np.array_equal(source.table.cumulative[source.rows], np.tile(table.cumulative, (3, 1)))
    assert source.bands().tolist() == 3 * _bands(table).tolist()


@pytest.mark.parametrize("level", LEVELS)
def test_symbols_are_those_of_the_float_model(small, entropy, crops, level):
    """round(y·gain − median): what is less than 1/256 of a step must not decide them otherwise."""
    with torch.inference_mode():
        y = small.g_a(crops(5, 1)).double()
    gain = (entropy.gains(level).double() / 256).exp2()[:, None, None]
    residual = (y * gain - entropy.offset[:, None, None] / 2**MEDIAN_BITS * small.std.double() * gain)[0]
    latents = entropy.fix_latents(y.float(), None, level)
    y_hat = entropy.code_latents(StreamWriter(ENGINE), level, *y.shape[-2:], latents)
    symbols = (y_hat - entropy.means(level)) / 256
    far = ((residual - residual.floor() - 0.5).abs() > 0.002).permute(1, 2, 0)  # from where floating point decides
    assert torch.equal(symbols[far], residual.round().permute(1, 2, 0)[far].float())
    assert far.double().mean() > 0.98


def test_there_is_no_z(entropy):
    _, payloads = round_trip(entropy, torch.zeros(4, 8, dtype=torch.long))
    assert payloads[0] == b""
    assert len(payloads) == 2


def broken(entropy, **fields):
    values = {field.name: getattr(entropy, field.name) for field in dataclasses.fields(entropy)} | fields
    return FactorizedEntropy(**values)


def test_tables_of_another_shape_are_refused(entropy):
    for fields in (
        {"grid": entropy.grid[:, :-1]},
        {"grid": entropy.grid[:-1]},
        {"offset": entropy.offset[:-1]},
        {"log2_grid": entropy.log2_grid[:-1]},
    ):
        with pytest.raises(CheckpointError, match="density tables are .* export it again"):
            broken(entropy, **fields)


@pytest.mark.parametrize(("at", "value"), [(100, 2**30), (-1, 0), (0, -1), (-1, 2**30 + 1)])
def test_a_density_that_falls_or_leaves_its_range_is_refused(entropy, at, value):
    grid = entropy.grid.copy()
    grid[3, at] = value
    with pytest.raises(CheckpointError, match="falls or leaves"):
        broken(entropy, grid=grid)
