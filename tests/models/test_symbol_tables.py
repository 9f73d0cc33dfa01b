"""Rows counted on pictures: positive, near what was counted, sensible where nothing was, and cheaper than Gaussians."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from bitstream.coder import StreamReader, StreamWriter
from bitstream.engines.reference import ReferenceEngine
from bitstream.tables import MASTER_BITS, SCALES, SYMBOL_MAX, gaussian_master, master_from_mass
from models.entropy_tensors import PREFIX, load_entropy
from models.quantise import calibrate, quantise
from models.symbol_tables import count_symbols, fit_rows, symbol_rows

SIGMA = 0.11 * (256 / 0.11) ** (np.arange(SCALES) / (SCALES - 1))


def shares(mass):
    """Return the probability of each magnitude, (64, 1024), of masses of single symbols."""
    both = np.concatenate([mass[:, :1], 2.0 * mass[:, 1:]], axis=1)
    return both / both.sum(axis=1, keepdims=True)


def laplacian(count, seed=0):
    """Return counts of magnitudes (64, 1024) of ``count`` rounded Laplacians of each row's standard deviation."""
    rng = np.random.default_rng(seed)
    draws = np.abs(np.rint(rng.laplace(scale=SIGMA[:, None] / 2**0.5, size=(SCALES, count)))).clip(max=SYMBOL_MAX).astype(int)
    return np.stack([np.bincount(row, minlength=SYMBOL_MAX + 1) for row in draws])


def bits(counts, mass):
    return float(-(counts * np.log2(shares(mass))).sum())


def gaussian_mass():
    return np.diff(gaussian_master().cumulative, axis=1)[:, SYMBOL_MAX:]


def test_masses_are_positive_and_sum_to_one():
    for counts in (np.zeros((SCALES, SYMBOL_MAX + 1), np.int64), laplacian(5000)):
        mass = fit_rows(counts)
        assert (mass.shape, mass.dtype) == ((SCALES, SYMBOL_MAX + 1), np.int32)
        assert mass.min() >= 1
        total = mass[:, 0].astype(np.int64) + 2 * mass[:, 1:].astype(np.int64).sum(axis=1)
        assert np.abs(total / 2.0**MASTER_BITS - 1).max() < 1e-4


def test_what_was_often_counted_is_what_a_row_says():
    counts = laplacian(400_000)
    got, want = shares(fit_rows(counts))[:40], (counts / counts.sum(1, keepdims=True))[:40]
    assert np.abs(got - want)[:, :4].max() < 0.004


def test_counted_rows_are_cheaper_than_gaussians_and_near_the_entropy():
    mass, fresh = fit_rows(laplacian(20_000)), laplacian(20_000, seed=1)
    entropy = -(fresh * np.log2(np.maximum(fresh, 1) / fresh.sum(1, keepdims=True))).sum()
    assert bits(fresh, mass) < 0.985 * bits(fresh, gaussian_mass())
    assert bits(fresh, mass) < 1.005 * entropy


def test_a_row_without_counts_has_the_shape_of_the_others():
    counts = laplacian(20_000)
    full, counts[30] = fit_rows(counts), 0
    mass = fit_rows(counts)
    fresh = laplacian(20_000, seed=2)[30:31]
    assert bits(fresh, mass[30:31]) < 1.02 * bits(fresh, full[30:31])


def test_gaussian_symbols_give_gaussian_rows():
    rng = np.random.default_rng(3)
    draws = np.abs(np.rint(rng.normal(scale=SIGMA[:, None], size=(SCALES, 50_000)))).clip(max=SYMBOL_MAX).astype(int)
    counts = np.stack([np.bincount(row, minlength=SYMBOL_MAX + 1) for row in draws])
    assert bits(counts, fit_rows(counts)) < 1.003 * bits(counts, gaussian_mass())


def test_rows_are_symmetric_and_rise(crops):
    table = master_from_mass(fit_rows(laplacian(1000)).astype(np.int64))
    assert (table.lo, table.hi, table.cumulative.shape) == (-SYMBOL_MAX, SYMBOL_MAX, (SCALES, 2 * SYMBOL_MAX + 2))
    mass = np.diff(table.cumulative, axis=1)
    assert (mass >= 1).all()
    assert np.array_equal(mass, mass[:, ::-1])
    assert (table.cumulative[:, 0] == 0).all()


@pytest.fixture
def tensors(small_network, crops):
    """The integer tensors of the small network with counted rows, if it has any."""
    batches = [crops(300 + i) for i in range(4)]
    return quantise(small_network, calibrate(small_network, batches)) | symbol_rows(small_network, batches)


def test_files_have_the_estimated_bits_of_their_rows(small_network, crops, tensors):
    """Symbols are the same with either rows; the counted ones need fewer bits on the pictures they were counted on."""
    layout = small_network.layout()
    if not layout.hyper or layout.mixtures:
        assert not symbol_rows(small_network, [crops(1)])
        return
    entropy = load_entropy(tensors, layout)
    plain = dataclasses.replace(entropy, y_table=gaussian_master())
    sizes = {"counted": 0, "plain": 0}
    for seed in range(300, 304):
        x = crops(seed)
        with torch.inference_mode():
            y = small_network.g_a(x)
            z = small_network.h_a(small_network.hyper_input(y / small_network.std))
        for i in range(len(x)):
            latents, sides = entropy.fix_latents(y[i : i + 1], z[i : i + 1], 256), y.shape[-2:]
            crcs = set()
            for name, model in (("counted", entropy), ("plain", plain)):
                writer = StreamWriter(ReferenceEngine())
                y_hat = model.code_latents(writer, 256, *sides, latents)
                sizes[name] += sum(map(len, writer.payloads))
                crcs.add(writer.crc)
                if i == 0:
                    reader = StreamReader(ReferenceEngine(), writer.payloads)
                    assert torch.equal(model.code_latents(reader, 256, *sides, None), y_hat)
            assert len(crcs) == 1
    assert sizes["counted"] < sizes["plain"]


def test_counts_are_of_all_symbols_at_all_levels(small_network, crops):
    layout = small_network.layout()
    if not layout.hyper or layout.mixtures:
        pytest.skip("codes y in another way")
    x = crops(7)
    counts = count_symbols(small_network, [x, x, x])
    assert counts.sum() == 3 * len(x) * small_network.cfg.M * (x.shape[-2] // 16) * (x.shape[-1] // 16)
    assert (counts >= 0).all()


def test_damaged_rows_are_refused(small_network, tensors):
    name = f"{PREFIX}y_mass"
    if name not in tensors:
        pytest.skip("has no rows")
    from bitstream.errors import CheckpointError

    for damage in (tensors[name][:63], tensors[name][:, :1000], tensors[name] * 0, tensors[name].float(), -tensors[name]):
        with pytest.raises(CheckpointError, match="export it again"):
            load_entropy(tensors | {name: damage}, small_network.layout())
