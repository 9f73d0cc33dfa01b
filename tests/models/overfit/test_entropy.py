"""Grids as symbols: a round trip for every size, in exact integers, at the bits that the float networks promise."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from switches import switched
from tiny_overfit import CONFIG, tiny_networks

from bitstream.coder import StreamReader, StreamWriter
from bitstream.engines import default_engine
from bitstream.errors import FormatError
from bitstream.recording import RecordingReader
from bitstream.segments import TableRows
from bitstream.tables import SYMBOL_MAX, pow2_fixed
from models.overfit import entropy
from models.overfit.configs import GRIDS, SIZE_MAX
from models.overfit.entropy import VALUE_MAX, IntegerNetwork, code_grids, grid_shape, steps_of
from models.overfit.networks import grid_bits, with_ring
from models.overfit.weights import GAIN_LIMIT, LIMIT

BASE = tiny_networks()


def random_grids(h: int, w: int, seed: int = 0, spread: float = 3.0) -> list[np.ndarray]:
    """Return grids of a picture of h × w pixels: whole numbers that grow towards the coarse ones."""
    rng = np.random.default_rng(seed)
    return [rng.laplace(0, spread * 1.4**grid, grid_shape(h, w, grid)).round().astype(np.int16) for grid in range(GRIDS)]


def coded(engine, grids, h: int, w: int, finest: int = 0, level: int = 300) -> tuple[bytes, int, list[np.ndarray]]:
    """Return the payload of GRIDS, the CRC, the grids as a decoder has them."""
    writer = StreamWriter(engine)
    out = code_grids(writer, BASE.at(level), BASE.gains(level), h, w, finest, grids)
    return writer.payloads[0], writer.crc, out


def decoded(engine, payload: bytes, h: int, w: int, finest: int = 0, level: int = 300) -> tuple[list[np.ndarray], int]:
    """Return the grids and the CRC."""
    reader = StreamReader(engine, [payload])
    return code_grids(reader, BASE.at(level), BASE.gains(level), h, w, finest, None), reader.crc


def same(a, b) -> bool:
    """Return whether all grids are equal."""
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# --- round trips


@pytest.mark.parametrize(("h", "w", "finest"), [(1, 1, 0), (33, 70, 0), (37, 1, 1), (65, 129, 2), (65, 129, GRIDS)])
def test_grids_round_trip(h, w, finest):
    engine, grids = default_engine(), random_grids(h, w)
    payload, crc, out = coded(engine, grids, h, w, finest)
    found, found_crc = decoded(engine, payload, h, w, finest)
    assert same(found, out)
    assert found_crc == crc
    assert same(out[finest:], grids[finest:])
    assert not any(grid.any() for grid in out[:finest])
    assert all(grid.dtype == np.int16 for grid in found)
    assert (payload == b"") == (finest == GRIDS)


def test_each_engine_reads_what_the_other_wrote(engine):
    grids = random_grids(20, 20)
    payload, _, out = coded(engine, grids, 20, 20, 4)
    assert coded(default_engine(), grids, 20, 20, 4)[0] == payload
    assert same(decoded(engine, payload, 20, 20, 4)[0], out)


@pytest.mark.parametrize("count", [1, 4])
def test_symbols_are_the_same_with_any_number_of_threads(count):
    engine, grids = default_engine(), random_grids(64, 64)
    payload, crc, _ = coded(engine, grids, 64, 64, 2)
    with switched(torch.set_num_threads, count, torch.get_num_threads()):
        assert coded(engine, grids, 64, 64, 2)[:2] == (payload, crc)
        assert same(decoded(engine, payload, 64, 64, 2)[0][2:], grids[2:])


@pytest.mark.parametrize("segment", [1, 50, 200])
def test_several_segments_round_trip(monkeypatch, segment):
    engine, grids = default_engine(), random_grids(64, 70)
    whole = coded(engine, grids, 64, 70, 2)[0]
    monkeypatch.setattr(entropy, "SEGMENT", segment)
    payload, _, out = coded(engine, grids, 64, 70, 2)
    assert payload != whole
    assert same(decoded(engine, payload, 64, 70, 2)[0], out)


class Recorder:
    """Stands for a coder of streams: keeps rows and symbols of each step, by segment; draws the symbols if it gets none."""

    def __init__(self, seed: int = 0) -> None:
        self.segments: list[list[tuple[TableRows, np.ndarray]]] = []
        self._rng = np.random.default_rng(seed)

    @contextmanager
    def segment(self, bands):
        self.segments.append([])
        yield self._code

    def end_chunk(self) -> None:
        pass

    def _code(self, symbols, source):
        if symbols is None:
            cumulative = source.table.cumulative[source.rows]
            below = self._rng.integers(0, cumulative[:, -1:])
            symbols = ((cumulative <= below).sum(1) - 1 + source.lo).astype(np.int16)
        self.segments[-1].append((source, symbols))
        return symbols

    @property
    def steps(self) -> list[tuple[TableRows, np.ndarray]]:
        return [step for steps in self.segments for step in steps]


def test_a_segment_ends_behind_the_step_that_fills_it():
    """2^15 positions and what is left of a step: of 192×256 pixels, 65520 positions, the first is in several grids."""
    recorder = Recorder()
    code_grids(recorder, BASE.at(300), BASE.gains(300), 192, 256, 0, random_grids(192, 256))
    sizes = [[len(symbols) for _, symbols in steps] for steps in recorder.segments]
    assert [size for steps in sizes for size in steps] == [len(positions) for _, positions in steps_of(192, 256, 0)]
    assert len(sizes) == 2
    assert sum(sizes[0]) >= 2**15 > sum(sizes[0][:-1])


def test_steps_are_wavefronts_of_all_blocks_at_once():
    seen = {grid: np.zeros(np.prod(grid_shape(130, 70, grid)), int) for grid in range(GRIDS)}
    steps = list(steps_of(130, 70, 0))
    for grid, positions in steps:
        seen[grid][positions] += 1
        y, x = np.divmod(positions, grid_shape(130, 70, grid)[1])
        assert len(set((x % 64 + 3 * (y % 64)).tolist())) == 1
        assert (np.diff(positions) > 0).all()
    assert all((count == 1).all() for count in seen.values())
    assert [grid for grid, _ in steps] == sorted((grid for grid, _ in steps), reverse=True)
    assert sum(grid == 0 for grid, _ in steps) == 253


def test_blocks_are_coded_without_each_other():
    """A grid's symbols in one block do not change the rows of another one."""
    h, w = 64, 128
    grids = random_grids(h, w)
    other = [grid.copy() for grid in grids]
    other[0][:, 64:] = random_grids(h, w, seed=1)[0][:, 64:]
    rows = []
    for each in (grids, other):
        recorder, plane = Recorder(), np.zeros(h * w, int)
        code_grids(recorder, BASE.at(300), BASE.gains(300), h, w, 0, each)
        for (grid, positions), (source, _) in zip(steps_of(h, w, 0), recorder.steps, strict=True):
            if grid == 0:
                plane[positions] = source.rows
        rows.append(plane.reshape(h, w))
    assert (rows[0][:, :64] == rows[1][:, :64]).all()
    assert (rows[0][:, 64:] != rows[1][:, 64:]).any()


def test_streams_that_are_cut_off_or_too_long_are_refused():
    payload, _, _ = coded(default_engine(), random_grids(64, 64), 64, 64, 2)
    for data in (payload[:-1], payload[:50], b"", payload + b"\0"):
        with pytest.raises(FormatError):
            decoded(default_engine(), data, 64, 64, 2)


# --- bits


@pytest.mark.parametrize("level", [300])
def test_bits_are_those_of_the_float_networks(level):
    """Of symbols drawn from the rows: locations in 1/16, scales in 56/256 octave and integer activations cost little."""
    h, w, engine = 64, 64, default_engine()
    grids = code_grids(Recorder(), BASE.at(level), BASE.gains(level), h, w, 0, None)
    reader = RecordingReader(engine, [coded(engine, grids, h, w, level=level)[0]])
    assert same(code_grids(reader, BASE.at(level), BASE.gains(level), h, w, 0, None), grids)
    ideal = np.zeros(GRIDS)
    bits = [part for group in reader.groups for part in group.measure()[1]]
    for (grid, _), part in zip(steps_of(h, w, 0), bits, strict=True):
        ideal[grid] += part.sum()
    parameters = {name: (value.double() / 2**16).float() for name, value in BASE.at(level).items()}
    planes = [torch.from_numpy(grid).float()[None] for grid in grids]
    coarser = [*(with_ring(plane) for plane in planes[1:]), None]
    gains = BASE.gains(level) / 256
    promised = [grid_bits(parameters, gains, grid, planes[grid], planes[grid], coarser[grid]).item() for grid in range(GRIDS)]
    assert ideal == pytest.approx(np.array(promised), rel=0.01, abs=12)
    assert ideal.sum() == pytest.approx(sum(promised), rel=0.01)
    assert 8 * len(coded(engine, grids, h, w, level=level)[0]) == pytest.approx(ideal.sum(), rel=0.01, abs=300)


# --- extremes


def python_network(parameters, gains, grid, context, coarse, phase) -> tuple[list[int], list[int]]:
    """Return what IntegerNetwork returns, in Python's integers."""
    names = ("context", "bias_1", "hidden", "bias_2", "out", "bias_3")
    own = {name: np.array(parameters[f"grid_{grid}.{name}"].tolist(), object) for name in names}

    def rshift(value, bits):
        return value + (1 << bits - 1) >> bits

    def power(gain):
        return int(pow2_fixed(np.array([int(gain)]))[0])

    def clamp(value, low, high):
        return np.minimum(np.maximum(value, low), high)

    def inputs(weights, gain):
        return clamp(rshift(weights * power(-gain), 20), -(2**28), 2**28)

    scales, locations = [], []
    for number in range(len(context)):
        v = inputs(own["context"], gains[grid]) @ np.array(context[number].tolist(), object)
        if coarse is not None:
            weights = np.array(parameters[f"grid_{grid}.coarse"].tolist(), object)[int(phase[number]) :: 4]
            v = v + inputs(weights, gains[grid + 1]) @ np.array(coarse[number].tolist(), object)
        a = clamp(rshift(v + own["bias_1"], 8), 0, 2**17 - 1)
        a = clamp(rshift(own["hidden"] @ a + own["bias_2"] * 256, 16), 0, 2**17 - 1)
        location, scale = clamp(rshift(own["out"] @ a + own["bias_3"] * 256, 8), -(2**26), 2**26)
        locations.append(int(clamp(rshift(location * power(gains[grid]), 32), -1024 * 16, 1024 * 16)))
        scales.append(int(rshift(scale, 8)) + int(gains[grid]))
    return scales, locations


WIDE = replace(CONFIG, width_fine=SIZE_MAX, width=SIZE_MAX)


def extreme(seed: int, share: float) -> dict[str, torch.Tensor]:
    """Return parameters of the widest networks, a share of them at a limit, mostly the upper one."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in WIDE.shapes().items():
        value = torch.randint(-LIMIT, LIMIT + 1, shape, generator=generator)
        limit = torch.where(torch.rand(shape, generator=generator) < 0.9, LIMIT, -LIMIT)
        out[name] = torch.where(torch.rand(shape, generator=generator) < share, limit, value)
    return out


@pytest.mark.parametrize("grid", [0, GRIDS - 1])
@pytest.mark.parametrize("gain", [-GAIN_LIMIT, -1000, 0, 1500, GAIN_LIMIT])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_widest_networks_of_the_largest_weights_are_exact(grid, gain, share):
    parameters, gains = extreme(3, share), torch.full((GRIDS,), gain)
    rng = np.random.default_rng(4)
    context, coarse = (rng.integers(-VALUE_MAX, VALUE_MAX + 1, (4, n)) for n in (12, 9))
    context[:2], coarse[:2], context[2], coarse[2] = VALUE_MAX, VALUE_MAX, -VALUE_MAX, -VALUE_MAX
    phase = np.arange(4)
    around = None if grid == GRIDS - 1 else coarse
    network = IntegerNetwork.of(parameters, gains, grid)
    scale, location = network(context.astype(float), None if around is None else around.astype(float), phase)
    assert (scale.tolist(), location.tolist()) == python_network(parameters, gains, grid, context, around, phase)


def test_the_tiny_networks_are_exact_too():
    rng = np.random.default_rng(5)
    context, coarse, phase = rng.integers(-9, 10, (40, 12)), rng.integers(-9, 10, (40, 9)), rng.integers(0, 4, 40)
    for grid in range(GRIDS):
        around = coarse if grid < GRIDS - 1 else None
        network = IntegerNetwork.of(BASE.at(300), BASE.gains(300), grid)
        scale, location = network(context.astype(float), None if around is None else around.astype(float), phase)
        want = python_network(BASE.at(300), BASE.gains(300), grid, context, around, phase)
        assert (scale.tolist(), location.tolist()) == want
        assert len(set(location.tolist())) > 2


def test_products_stay_below_2_to_the_53():
    """The bounds that float64 is exact for, of the widest networks."""
    assert (12 + 9) * VALUE_MAX * entropy.WEIGHT_MAX < 2**53
    assert SIZE_MAX * entropy.ACTIVATION_MAX * LIMIT < 2**53
    assert SIZE_MAX * entropy.ACTIVATION_MAX * LIMIT + (LIMIT << 8) < 2**63
    assert entropy.OUT_MAX * int(pow2_fixed(np.array([GAIN_LIMIT]))[0]) < 2**63 - 2**32
    assert LIMIT * int(pow2_fixed(np.array([GAIN_LIMIT]))[0]) < 2**63 - 2**20


@pytest.mark.parametrize("value", [2**15 - 1, -(2**15), VALUE_MAX, -VALUE_MAX])
def test_latents_are_clamped_to_what_a_symbol_can_say(value):
    """To ±2047, and to ±1023 around the whole part of the location; what the encoder returns is what is decoded."""
    grids = [np.full(grid_shape(64, 64, grid), value, np.int16) for grid in range(GRIDS)]
    payload, crc, out = coded(default_engine(), grids, 64, 64, 3)
    found, found_crc = decoded(default_engine(), payload, 64, 64, 3)
    assert same(found, out)
    assert found_crc == crc
    for grid in found[3:]:
        assert np.abs(grid.astype(int)).max() <= VALUE_MAX
        assert (np.sign(grid) == np.sign(value)).all()
        assert np.abs(grid.astype(int)).max() >= SYMBOL_MAX - 150  # around a location of 100


@pytest.mark.parametrize("seed", [0, 1])
def test_the_widest_networks_round_trip_random_symbols(seed):
    parameters, gains, engine = extreme(seed, 0.3), torch.full((GRIDS,), 700), default_engine()
    rng = np.random.default_rng(seed)
    grids = [rng.integers(-(2**15), 2**15, grid_shape(64, 64, grid)).astype(np.int16) for grid in range(GRIDS)]
    writer = StreamWriter(engine)
    out = code_grids(writer, parameters, gains, 64, 64, 3, grids)
    reader = StreamReader(engine, writer.payloads)
    assert same(code_grids(reader, parameters, gains, 64, 64, 3, None), out)
    assert max(np.abs(grid.astype(int)).max() for grid in out) <= VALUE_MAX
