"""Networks as integers: those of a checkpoint and their levels, differences of a picture, both in a file and back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_overfit import CONFIG, stirred_gains, stirred_parameters, tiny_networks

from bitstream.coder import StreamReader, StreamWriter
from bitstream.errors import CheckpointError, FormatError
from bitstream.laplace import SCALES, SPIKES, spiked_master
from bitstream.segments import TableRows
from bitstream.tables import SYMBOL_MAX
from models.overfit.configs import GRIDS, levelled
from models.overfit.weights import (
    _FIELDS,
    ABSENT,
    GAIN_LIMIT,
    LIMIT,
    STEPS,
    BaseNetworks,
    Differences,
    best_shape,
    code_differences,
    interpolate,
)

GROUPS = CONFIG.groups()
SIZES = [sum(int(np.prod(CONFIG.shapes()[name])) for name in names) for names in GROUPS]


@pytest.fixture(scope="module")
def base() -> BaseNetworks:
    """The networks of the tiny checkpoint."""
    return tiny_networks()


def offsets(seed: int = 0, deviation: float = 0.1) -> dict[str, torch.Tensor]:
    """Return random differences of all parameters."""
    generator = torch.Generator().manual_seed(seed)
    return {name: deviation * torch.randn(shape, generator=generator) for name, shape in CONFIG.shapes().items()}


# --- the networks of a checkpoint


def test_rounded_parameters_are_within_half_a_unit():
    base, parameters = tiny_networks(), stirred_parameters()
    assert list(base.parameters) == list(CONFIG.shapes())
    for name, value in parameters.items():
        assert (base.parameters[name] / 2**16 - value.double()).abs().max() <= 2**-17
    assert (base.log2_gain / 256 - stirred_gains().double()).abs().max() <= 1 / 512


def test_rounding_clamps_what_is_too_large():
    parameters = {name: value * 1e6 for name, value in stirred_parameters().items()}
    base = BaseNetworks.rounded(CONFIG, parameters, stirred_gains() * 1e3)
    assert max(int(value.abs().max()) for value in base.parameters.values()) == LIMIT
    assert int(base.log2_gain.abs().max()) == GAIN_LIMIT
    BaseNetworks.of(CONFIG, base.tensors())


def test_tensors_round_trip(base):
    tensors = base.tensors()
    assert all(value.dtype == torch.int32 for value in tensors.values())
    again = BaseNetworks.of(CONFIG, tensors | {"analysis.mix": torch.zeros(7, 3)})
    assert again.parameters.keys() == base.parameters.keys()
    assert all(torch.equal(again.parameters[name], value) for name, value in base.parameters.items())
    assert torch.equal(again.log2_gain, base.log2_gain)


def test_the_golden_checkpoint_is_the_tiny_one(tiny, base):
    """Frozen: if networks are made otherwise one day, this test goes and the file stays."""
    assert tiny.config == CONFIG
    assert all(torch.equal(tiny.base.parameters[name], value) for name, value in base.parameters.items())


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: None,
        lambda tensor: tensor.long(),
        lambda tensor: tensor.float(),
        lambda tensor: tensor[..., :1],
        lambda tensor: tensor[None],
        lambda tensor: tensor.reshape(-1)[:0],
        lambda tensor: tensor.bool(),
        lambda tensor: torch.full_like(tensor, LIMIT + 1),
        lambda tensor: torch.full_like(tensor, -(2**31)),
    ],
    ids=["missing", "int64", "float32", "narrow", "deep", "empty", "bool", "large", "least"],
)
@pytest.mark.parametrize("name", ["grid_0.context", "grid_6.bias_3", "upsample", "synthesis.conv_3", "log2_gain"])
def test_refuses_tensors_that_cannot_be(base, name, change):
    tensors = base.tensors()
    changed = change(tensors.pop(f"networks.{name}"))
    if changed is not None:
        tensors[f"networks.{name}"] = changed
    with pytest.raises(CheckpointError, match=f"tensor networks.{name} is .*, expected int32 .*damaged, fetch it again"):
        BaseNetworks.of(CONFIG, tensors)


def test_refuses_tensors_of_another_config(base):
    with pytest.raises(CheckpointError, match="expected int32"):
        BaseNetworks.of(dataclasses.replace(CONFIG, levels=4), base.tensors())


# --- levels


@pytest.mark.parametrize("level", [0, 1, 100, 255, 256, 257, 400, 511, 512])
def test_levels_are_interpolated_and_rounded_to_the_nearest(base, level):
    low = min(level // 256, 1)
    share = level / 256 - low
    for name, value in base.at(level).items():
        table = base.parameters[name]
        want = table[low] * (1 - share) + table[low + 1] * share if levelled(name) else table
        assert value.shape == CONFIG.shapes()[name]
        assert (value - want).abs().max() <= 0.5
    want = base.log2_gain[low] * (1 - share) + base.log2_gain[low + 1] * share
    assert (base.gains(level) - want).abs().max() <= 0.5


def test_halves_are_rounded_up():
    assert interpolate(torch.tensor([[0, 0, -1], [1, -1, 0]]), 128).tolist() == [1, 0, 0]


# --- differences


def test_differences_are_offsets_in_steps_of_their_group(base):
    wanted, steps = offsets(), tuple(STEPS[number % len(STEPS)] for number in range(len(GROUPS)))
    differences = Differences.quantised(CONFIG, 1, wanted, steps)
    added = differences.added(CONFIG, base.at(300))
    for names, step in zip(GROUPS, steps, strict=True):
        for name in names:
            moved = added[name] - base.at(300)[name]
            assert (moved % (1 << step) == 0).all()
            reached = (wanted[name].double() * 2**16).clamp(-(SYMBOL_MAX << step), SYMBOL_MAX << step)
            assert (moved - reached).abs().max() <= 1 << step - 1
    assert any((added[name] != base.at(300)[name]).any() for name in added)


def test_a_group_that_rounds_to_zero_is_absent(base):
    steps = tuple(10 for _ in GROUPS)
    wanted = {name: value * (name in GROUPS[8]) for name, value in offsets().items()}
    differences = Differences.quantised(CONFIG, 0, wanted, steps)
    assert differences.steps == tuple(10 * (number == 8) for number in range(len(GROUPS)))
    asked = Differences.quantised(CONFIG, 0, offsets(), (ABSENT,) * len(GROUPS))
    assert not any(part.any() for part in asked.symbols)
    assert all(torch.equal(value, base.at(77)[name]) for name, value in asked.added(CONFIG, base.at(77)).items())


def test_differences_and_what_they_give_are_clamped(base):
    differences = Differences.quantised(CONFIG, 0, offsets(deviation=1e4), (15,) * len(GROUPS))
    assert max(int(np.abs(part).max()) for part in differences.symbols) == SYMBOL_MAX
    added = differences.added(CONFIG, base.at(0))
    assert max(int(value.abs().max()) for value in added.values()) == LIMIT


# --- in a file


def thinned() -> dict[str, torch.Tensor]:
    """Return offsets of which nine of ten are zero, but for one group."""
    kept = {name: torch.rand_like(value) < 0.1 for name, value in offsets().items()}
    return {name: value * (kept[name] | (name in GROUPS[8])) for name, value in offsets(deviation=1.0).items()}


def written(engine, differences: Differences) -> tuple[bytes, int]:
    """Return the payload of NETWORKS and the CRC."""
    writer = StreamWriter(engine)
    code_differences(writer, CONFIG, differences)
    return writer.payloads[0], writer.crc


@pytest.mark.parametrize("finest", [0, 1, GRIDS])
@pytest.mark.parametrize("absent", [(), (0, 5, 12), tuple(range(13))])
@pytest.mark.parametrize("sparse", [False, True])
def test_differences_round_trip(engine, finest, absent, sparse):
    steps = tuple(ABSENT if number in absent else STEPS[(number * 5) % len(STEPS)] for number in range(len(GROUPS)))
    given = Differences.quantised(CONFIG, finest, thinned() if sparse else offsets(deviation=1.0), steps)
    spiked = [best_shape(part)[0].spike > 0 for part in given.symbols]
    assert any(spiked) == (sparse and len(absent) < 13)
    assert not all(spiked)
    payload, crc = written(engine, given)
    reader = StreamReader(engine, [payload])
    found = code_differences(reader, CONFIG, None)
    assert (found.finest, found.steps, reader.crc) == (given.finest, given.steps, crc)
    assert all((a == b).all() for a, b in zip(found.symbols, given.symbols, strict=True))
    assert [len(part) for part in found.symbols] == SIZES


def test_nothing_but_fields_takes_few_bytes(engine):
    nothing = Differences.quantised(CONFIG, 1, offsets(deviation=0.0), (9,) * len(GROUPS))
    assert len(written(engine, nothing)[0]) <= 28


FIELDS = [1, *[9] * len(GROUPS), *[20] * len(GROUPS)]


@pytest.mark.parametrize(("place", "value"), [(0, 8), (0, 127), (1, 1), (5, 3), (13, 16), (13, 127)])
def test_refuses_fields_that_cannot_be(engine, place, value):
    fields = np.array(FIELDS, np.int16)
    fields[place] = value
    writer = StreamWriter(engine)
    writer.code_source(fields, TableRows(_FIELDS, np.zeros(len(fields), np.uint8)))
    writer.end_chunk()
    with pytest.raises(FormatError, match="fields of the networks are .* cannot be: the file is damaged"):
        code_differences(StreamReader(engine, writer.payloads), CONFIG, None)


@pytest.mark.parametrize("sparse", [False, True])
def test_refuses_streams_that_are_missing_or_too_many(engine, sparse):
    payload, _ = written(engine, Differences.quantised(CONFIG, 1, thinned() if sparse else offsets(), (9,) * len(GROUPS)))
    for data in (payload[:-1], payload[:40], payload[:30], payload[:3], b"", payload + b"\0"):
        with pytest.raises(FormatError):
            code_differences(StreamReader(engine, [data]), CONFIG, None)


@pytest.mark.parametrize("spike", [0, SPIKES, 127])
@pytest.mark.parametrize("place", [14, 20, 26])
def test_refuses_spikes_that_cannot_be(engine, place, spike):
    fields = np.array(FIELDS, np.int16)
    fields[place] += 64
    writer = StreamWriter(engine)
    writer.code_source(fields, TableRows(_FIELDS, np.zeros(len(fields), np.uint8)))
    writer.code_source(np.array([spike], np.int16), TableRows(_FIELDS, np.zeros(1, np.uint8)))
    writer.end_chunk()
    with pytest.raises(FormatError, match=f"fields of the networks are .*, {spike}., which cannot be: the file is damaged"):
        code_differences(StreamReader(engine, writer.payloads), CONFIG, None)


def test_the_scale_of_an_absent_group_means_nothing(engine):
    """No spike is read for it."""
    fields = np.array([1, *[ABSENT] * len(GROUPS), *[127] * len(GROUPS)], np.int16)
    writer = StreamWriter(engine)
    writer.code_source(fields, TableRows(_FIELDS, np.zeros(len(fields), np.uint8)))
    writer.end_chunk()
    found = code_differences(StreamReader(engine, writer.payloads), CONFIG, None)
    assert not any(part.any() for part in found.symbols)


def costs_of(symbols: np.ndarray, spike: int) -> np.ndarray:
    """Return the bits (64,) of symbols by the rows that they are coded with, of each scale."""
    low, high = int(symbols.min()), int(symbols.max())
    rows = np.concatenate([spiked_master(scale, spike).rows(low, high) for scale in range(SCALES)]).astype(np.int64)
    rows[:, -1] = 65536
    return -np.log2(np.diff(rows)[:, symbols - low] / 65536).sum(1)


@pytest.mark.parametrize("zeros", [0, 200, 4000])
def test_the_best_shape_is_the_one_of_the_fewest_bits(zeros):
    drawn = np.random.default_rng(0).laplace(0, 5, 400).round().astype(np.int16)
    symbols = np.append(drawn, np.zeros(zeros, np.int16))
    best, bits = best_shape(symbols)
    costs = np.array([costs_of(symbols, spike) for spike in range(SPIKES)])
    assert costs[best.spike, best.scale] < 1.005 * costs.min()
    assert bits == pytest.approx(costs.min() + 55, rel=0.02)
    assert 2 ** ((best.scale * 56 - 1088) / 256) == pytest.approx(5, rel=0.2)
    assert best.spike / 32 == pytest.approx(zeros / (zeros + 400), abs=0.06)


@pytest.mark.parametrize("sparse", [False, True])
def test_bits_of_a_stream_are_estimated_to_a_few_percent(engine, sparse):
    wanted = thinned() if sparse else offsets(deviation=1.0)
    differences = Differences.quantised(CONFIG, 0, wanted, (10,) * len(GROUPS))
    estimate = sum(best_shape(part)[1] for part in differences.symbols)
    assert 8 * len(written(engine, differences)[0]) == pytest.approx(estimate, rel=0.05)
