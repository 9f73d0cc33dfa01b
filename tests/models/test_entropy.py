"""The integer entropy model: gains, latents, causality of the walk, extreme and broken input."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest
import torch

from bitstream.coder import StreamReader, StreamWriter
from bitstream.engines.reference import ReferenceEngine
from bitstream.errors import CodecError, FormatError
from bitstream.tables import SYMBOL_MAX
from models.factorized_entropy import MEDIAN_BITS
from models.latents import Z_MAX, Latents
from models.rounding import RDO_MAX
from models.runtime import LoadedModel
from models.schedule import anchor_mask, segments

ENGINE = ReferenceEngine()
LEVEL = 300
DEAD_ZONE = ["hyperprior", "joint", "checkerboard", "swift"]  # models that code y − mean with one Gaussian


class Recorder(StreamWriter):
    """A writer that remembers the symbols of each step."""

    def __init__(self):
        super().__init__(ENGINE)
        self.groups = []

    def code_source(self, symbols, source):
        self.groups.append(symbols.copy())
        return super().code_source(symbols, source)

    @contextlib.contextmanager
    def segment(self, bands):
        with super().segment(bands) as code:
            yield lambda symbols, source: self.groups.append(symbols.copy()) or code(symbols, source)


@pytest.fixture
def entropy(model):
    """The integer entropy model of a tiny checkpoint."""
    return model.entropy


@pytest.fixture
def channels_z(model):
    """The number of channels of z, 0 for a model without."""
    return model.entropy.log2_gain_z.shape[1] if model.entropy.layout.hyper else 0


def random_z(channels, positions, generator):
    """Return z symbols (positions, channels), None for a model without."""
    return torch.randint(-5, 6, (positions, channels), generator=generator) if channels else None


@pytest.fixture
def latents(entropy, channels_z):
    """Random latents of an 8 × 8 y, about as large as its scales."""
    generator = torch.Generator().manual_seed(5)
    std = ((entropy.gains(LEVEL) + entropy.log2_std).double() / 256).exp2()
    y = (torch.randn(64, len(std), generator=generator) * std * 256).round().long()
    return Latents(y, random_z(channels_z, 4, generator))


def round_trip(entropy, latents, level=LEVEL, h=8, w=8):
    """Encode and decode; return y_hat and the recorder, after asserting that both directions agree."""
    writer = Recorder()
    y_hat = entropy.code_latents(writer, level, h, w, latents)
    reader = StreamReader(ENGINE, writer.payloads)
    assert torch.equal(entropy.code_latents(reader, level, h, w, None), y_hat)
    assert reader.crc == writer.crc
    return y_hat, writer


def float_z(channels, h, w, value=0.0):
    """Return a constant float z (1, channels, h, w), None for a model without."""
    return torch.full((1, channels, h, w), value) if channels else None


def test_gains_hit_the_levels(entropy, channels_z):
    for i in range(entropy.max_level // 256 + 1):
        assert torch.equal(entropy.gains(256 * i), entropy.log2_gain[i])
        if channels_z:
            assert torch.equal(entropy.gains_z(256 * i), entropy.log2_gain_z[i])


def test_gains_are_monotone_between_levels(entropy):
    for i in range(entropy.max_level // 256):
        between = torch.stack([entropy.gains(level) for level in range(256 * i, 256 * i + 257)])
        direction = torch.sign(between[-1] - between[0])
        assert (between.diff(dim=0) * direction >= 0).all()


@pytest.mark.parametrize("fraction", [1, 100, 255])
def test_gains_between_levels_follow_the_format(entropy, fraction):
    low, high = entropy.log2_gain[1].tolist(), entropy.log2_gain[2].tolist()
    expected = [a + ((b - a) * fraction + 128 >> 8) for a, b in zip(low, high, strict=True)]
    assert entropy.gains(256 + fraction).tolist() == expected


def test_fix_latents_rounds_y_down_in_1_256_and_z_to_the_nearest(entropy, channels_z):
    gain = entropy.gains(LEVEL)
    fixed = entropy.fix_latents(torch.full((1, len(gain), 1, 1), 1.0), float_z(channels_z, 1, 1, -3.0), LEVEL)
    exact = 256 * (gain.double() / 256).exp2() - rest_of_medians(entropy)
    assert (exact - fixed.y[0] > -0.001).all()
    assert (exact - fixed.y[0] < 1.001).all()
    if channels_z:
        wanted = zip(entropy.gains_z(LEVEL).tolist(), entropy.z_offset.tolist(), strict=True)
        assert fixed.z[0].tolist() == [max(round(-3 * 2 ** (g / 256) - offset / 256), -Z_MAX) for g, offset in wanted]


def rest_of_medians(entropy):
    """Return what ``factorized`` takes off of y, in 1/256: the part of its medians below that."""
    if entropy.layout.hyper:
        return 0.0
    exact = entropy.offset * ((entropy.gains(LEVEL) + entropy.log2_std).double() / 256).exp2() / 2 ** (MEDIAN_BITS - 8)
    return exact - entropy.means(LEVEL)


def test_the_format_of_latents_depends_on_the_model(entropy, channels_z):
    fixed = entropy.fix_latents(torch.zeros(1, len(entropy.log2_std), 4, 4), float_z(channels_z, 1, 1), LEVEL)
    assert (fixed.z is None) == (channels_z == 0)


def test_fix_latents_keeps_position_order(entropy, channels_z):
    y = torch.zeros(1, len(entropy.log2_std), 4, 8)
    y[0, 2, 1, 3] = 10.0  # row 1, column 3: position 11
    zero, fixed = (entropy.fix_latents(of, float_z(channels_z, 1, 2), LEVEL) for of in (torch.zeros_like(y), y))
    assert torch.nonzero(fixed.y - zero.y).tolist() == [[11, 2]]


def test_fix_latents_survives_nan_and_infinity(entropy, channels_z):
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf])
    y, z = torch.zeros(1, len(entropy.log2_std), 4, 4), float_z(channels_z, 1, 1)
    y[0, :3, 0, 0] = odd
    if channels_z:
        z[0, :3, 0, 0] = odd
    fixed = entropy.fix_latents(y, z, LEVEL)
    assert fixed.y[0, :3].tolist() == [0, 2**30, -(2**30)]
    if channels_z:
        assert fixed.z[0, :3].tolist() == [0, Z_MAX, -Z_MAX]
    round_trip(entropy, fixed, h=4, w=4)


def test_float_latents_inverts_the_gain(entropy, channels_z):
    gain = entropy.gains(LEVEL)
    y = torch.linspace(-20, 20, 6 * len(gain)).reshape(1, len(gain), 2, 3)
    fixed = entropy.fix_latents(y, float_z(channels_z, 1, 1), LEVEL)
    back = entropy.float_latents(fixed.y.reshape(2, 3, -1), LEVEL)
    assert back.shape == y.shape
    assert back.dtype == torch.float32
    step = (-(gain.double() / 256)).exp2()[:, None, None] / 256
    assert ((back - y).abs() <= (1.01 if channels_z else 1.51) * step + 1e-5).all()


def test_outliers_are_clamped_and_still_round_trip(entropy, channels_z, latents):
    latents.y[::3] = 2**30
    latents.y[1::3] = -(2**30)
    if channels_z:
        latents.z[0, :2] = torch.tensor([Z_MAX, -Z_MAX])
    _, writer = round_trip(entropy, latents)
    if channels_z:
        z = writer.groups.pop(0)
        assert (z.min(), z.max()) == (-Z_MAX, Z_MAX)
    groups = [np.concatenate(writer.groups)] if entropy.layout.order == "wavefronts" else writer.groups
    for group in groups:
        assert (group.min(), group.max()) == (-SYMBOL_MAX, SYMBOL_MAX)


@pytest.mark.parametrize("level", [0, 255, 768])
def test_all_zero_latents_round_trip(entropy, channels_z, level):
    zero = torch.zeros(16, len(entropy.log2_std), dtype=torch.long)
    y_hat, _ = round_trip(entropy, Latents(zero, torch.zeros(1, channels_z).long() if channels_z else None), level, 4, 4)
    assert y_hat.abs().max() < 2**20


def test_y_hat_is_near_the_latents(entropy, latents):
    y_hat, _ = round_trip(entropy, latents)
    error = (y_hat.reshape(64, -1) - latents.y).abs()
    dead_zone = entropy.layout.hyper and not entropy.layout.mixtures
    assert error.max() <= (RDO_MAX if dead_zone else 128)
    assert error.double().mean() < 128


@pytest.mark.parametrize(("h", "w"), [(8, 8), (12, 24)])
def test_the_crc_covers_z_and_every_step(entropy, channels_z, h, w):
    generator = torch.Generator().manual_seed(6)
    channels = len(entropy.log2_std)
    y = torch.randint(-2000, 2000, (h * w, channels), generator=generator)
    _, writer = round_trip(entropy, Latents(y, random_z(channels_z, h * w // 16, generator)), h=h, w=w)
    sizes = [
        sum(len(cell.where) * len(range(channels)[cell.channels]) for cell in step)
        for segment in segments(entropy.layout.order, h, w)
        for step in segment
    ]
    assert sum(sizes) == h * w * channels
    z = [h * w // 16 * channels_z] if channels_z else []
    assert [len(group) for group in writer.groups] == z + sizes


def changed_by(entropy, latents, position):
    """Return the (8, 8) mask of the positions of y_hat that change when y does at one position."""
    first, _ = round_trip(entropy, latents)
    latents.y[position] += 50 * 256
    second, _ = round_trip(entropy, latents)
    return (first != second).any(dim=2)


@pytest.mark.parametrize("model", ["checkerboard", "swift"], indirect=True)
def test_anchors_do_not_see_the_others(entropy, latents):
    anchors = anchor_mask(8, 8).reshape(-1)
    first, _ = round_trip(entropy, latents)
    latents.y[~anchors] += 5000
    second, _ = round_trip(entropy, latents)
    assert torch.equal(first.reshape(64, -1)[anchors], second.reshape(64, -1)[anchors])


@pytest.mark.parametrize("model", ["checkerboard", "swift"], indirect=True)
def test_the_others_see_anchors_within_two_positions_only(entropy, latents):
    changed = changed_by(entropy, latents, 0)  # the anchor at row 0, column 0
    changed[0, 0] = False
    assert changed.any()
    reach = torch.nonzero(changed).max(dim=0).values
    assert (reach <= 2).all()
    assert not changed[anchor_mask(8, 8)].any()


@pytest.mark.parametrize("model", ["joint"], indirect=True)
def test_a_serial_context_sees_what_is_before_it_in_raster_order(entropy, latents):
    """Row 2, column 3: positions behind it may change, and those that its 5×5 neighbours reach."""
    changed = changed_by(entropy, latents, 2 * 8 + 3)
    rows, columns = torch.nonzero(changed).T
    assert changed[2, 3]
    assert (columns[rows == 2] >= 3).all()
    assert (rows >= 2).all()
    assert (columns >= 3 - 2 * (rows - 2)).all()  # two columns to the left with each row down
    assert changed[2, 4:].any()
    assert changed[3:].any()


@pytest.mark.parametrize("model", ["hyperprior", "factorized", "attention"], indirect=True)
def test_without_a_context_nothing_sees_another_position(entropy, latents):
    assert torch.nonzero(changed_by(entropy, latents, 19)).tolist() == [[2, 3]]


@pytest.mark.parametrize("model", ["attention"], indirect=True)
def test_plainly_rounded_y_does_not_depend_on_its_context_but_its_bits_do(model, latents):
    before, writer = round_trip(model.entropy, latents)
    bias = "entropy.context.bias"
    tensors = model.checkpoint.tensors | {bias: model.checkpoint.tensors[bias] + (1 << 14)}
    other = LoadedModel(dataclasses.replace(model.checkpoint, tensors=tensors), torch.device("cpu"))
    after, other_writer = round_trip(other.entropy, latents)
    assert torch.equal(before, after)
    assert other_writer.payloads[0] == writer.payloads[0]
    assert other_writer.payloads[1] != writer.payloads[1]


@pytest.mark.parametrize("model", DEAD_ZONE, indirect=True)
def test_the_dead_zone_is_the_encoders_business(model, tensor):
    own = LoadedModel(model.checkpoint, torch.device("cpu"))
    sizes = []
    for strength in (0.0, 0.5, 1.5):
        own.entropy.rdo_strength = strength
        payloads, crc = own.compress(tensor(128, 96), LEVEL, ENGINE)
        assert model.decode_latents(payloads, LEVEL, 128, 96, ENGINE)[1] == crc
        sizes.append(sum(map(len, payloads)))
    assert sizes[0] > sizes[1] > sizes[2]


def test_rejects_a_payload_with_bytes_left(entropy, latents):
    _, writer = round_trip(entropy, latents)
    for payloads in ([writer.payloads[0] + b"\0", writer.payloads[1]], [writer.payloads[0], writer.payloads[1] + b"\0"]):
        with pytest.raises(FormatError, match="left behind the last stream"):
            entropy.code_latents(StreamReader(ENGINE, payloads), LEVEL, 8, 8, None)


def test_rejects_a_payload_that_is_cut_off(entropy, channels_z, latents):
    z, y = round_trip(entropy, latents)[1].payloads
    cut = [[z, b""], [z, y[: len(y) // 2]], [z], []]
    if channels_z:
        cut += [[b"", y], [z[: len(z) // 2], y]]
    for payloads in cut:
        with pytest.raises(FormatError):
            entropy.code_latents(StreamReader(ENGINE, payloads), LEVEL, 8, 8, None)


def test_random_payloads_raise_our_errors_or_other_symbols(entropy, channels_z):
    rng = np.random.default_rng(0)
    failures = 0
    for _ in range(200):
        payloads = [rng.bytes(rng.integers(1, 40)) if channels_z else b"", rng.bytes(rng.integers(1, 200))]
        try:
            entropy.code_latents(StreamReader(ENGINE, payloads), LEVEL, 4, 4, None)
        except CodecError:
            failures += 1
    assert failures > 150  # the rest decodes to noise, which the symbol CRC of the container catches


def test_random_streams_behind_a_sound_z_raise_our_errors_or_other_symbols(entropy, latents):
    z, y = round_trip(entropy, latents)[1].payloads
    rng = np.random.default_rng(1)
    failures = 0
    for _ in range(25):
        damaged = bytearray(y)
        for at in rng.integers(0, min(len(y), 40), 3):
            damaged[at] = rng.integers(0, 256)
        try:
            entropy.code_latents(StreamReader(ENGINE, [z, bytes(damaged)]), LEVEL, 8, 8, None)
        except CodecError:
            failures += 1
    assert failures > 2
