"""The integer entropy model: gains, latents, causality of the walk, extreme and broken input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitstream.coder import StreamReader, StreamWriter
from bitstream.engines.reference import ReferenceEngine
from bitstream.errors import CodecError, FormatError
from bitstream.tables import SYMBOL_MAX
from models.entropy import Z_MAX, Latents
from models.rounding import RDO_MAX
from models.runtime import LoadedModel
from models.swift import anchor_mask

ENGINE = ReferenceEngine()
LEVEL = 300


class Recorder(StreamWriter):
    """A writer that remembers the symbols of each call."""

    def __init__(self):
        super().__init__(ENGINE)
        self.groups = []

    def code(self, symbols, rows, table, band_edges=()):
        self.groups.append(symbols.copy())
        return super().code(symbols, rows, table, band_edges)


@pytest.fixture
def entropy(model):
    """The integer entropy model of a tiny checkpoint."""
    return model.entropy


@pytest.fixture
def latents(entropy):
    """Random latents of an 8 × 8 y, about as large as its scales."""
    generator = torch.Generator().manual_seed(5)
    gain, _ = entropy.gains(LEVEL)
    std = ((gain + entropy.log2_std).double() / 256).exp2()
    y = (torch.randn(64, len(std), generator=generator) * std * 256).round().long()
    return Latents(y, torch.randint(-5, 6, (4, entropy.log2_gain_z.shape[1]), generator=generator))


def round_trip(entropy, latents, level=LEVEL, h=8, w=8):
    """Encode and decode; return y_hat and the recorder, after asserting that both directions agree."""
    writer = Recorder()
    y_hat = entropy.code_latents(writer, level, h, w, latents)
    reader = StreamReader(ENGINE, writer.payloads)
    assert torch.equal(entropy.code_latents(reader, level, h, w, None), y_hat)
    assert reader.crc == writer.crc
    return y_hat, writer


def test_gains_hit_the_levels(entropy):
    for i in range(entropy.max_level // 256 + 1):
        gain, gain_z = entropy.gains(256 * i)
        assert torch.equal(gain, entropy.log2_gain[i])
        assert torch.equal(gain_z, entropy.log2_gain_z[i])


def test_gains_are_monotone_between_levels(entropy):
    for i in range(entropy.max_level // 256):
        between = torch.stack([entropy.gains(level)[0] for level in range(256 * i, 256 * i + 257)])
        direction = torch.sign(between[-1] - between[0])
        assert (between.diff(dim=0) * direction >= 0).all()


@pytest.mark.parametrize("fraction", [1, 100, 255])
def test_gains_between_levels_follow_the_format(entropy, fraction):
    low, high = entropy.log2_gain[1].tolist(), entropy.log2_gain[2].tolist()
    expected = [a + ((b - a) * fraction + 128 >> 8) for a, b in zip(low, high, strict=True)]
    assert entropy.gains(256 + fraction)[0].tolist() == expected


def test_fix_latents_rounds_in_1_256(entropy):
    gain, gain_z = entropy.gains(LEVEL)
    y = torch.full((1, len(gain), 1, 1), 1.0)
    z = torch.full((1, len(gain_z), 1, 1), -3.0)
    fixed = entropy.fix_latents(y, z, LEVEL)
    assert fixed.y[0].tolist() == [round(256 * 2 ** (g / 256)) for g in gain.tolist()]
    assert fixed.z[0].tolist() == [max(round(-3 * 2 ** (g / 256)), -Z_MAX) for g in gain_z.tolist()]


def test_fix_latents_keeps_position_order(entropy):
    channels, channels_z = len(entropy.log2_std), entropy.log2_gain_z.shape[1]
    y = torch.zeros(1, channels, 4, 8)
    y[0, 2, 1, 3] = 10.0  # row 1, column 3: position 11
    fixed = entropy.fix_latents(y, torch.zeros(1, channels_z, 1, 2), LEVEL)
    assert torch.nonzero(fixed.y).tolist() == [[11, 2]]


def test_fix_latents_survives_nan_and_infinity(entropy):
    y = torch.zeros(1, len(entropy.log2_std), 4, 4)
    z = torch.zeros(1, entropy.log2_gain_z.shape[1], 1, 1)
    y[0, :3, 0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    z[0, :3, 0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    fixed = entropy.fix_latents(y, z, LEVEL)
    assert fixed.y[0, :3].tolist() == [0, 2**30, -(2**30)]
    assert fixed.z[0, :3].tolist() == [0, Z_MAX, -Z_MAX]
    round_trip(entropy, fixed, h=4, w=4)


def test_float_latents_inverts_the_gain(entropy):
    gain, _ = entropy.gains(LEVEL)
    y = torch.linspace(-20, 20, 6 * len(gain)).reshape(1, len(gain), 2, 3)
    fixed = entropy.fix_latents(y, torch.zeros(1, entropy.log2_gain_z.shape[1], 1, 1), LEVEL)
    back = entropy.float_latents(fixed.y.reshape(2, 3, -1), LEVEL)
    assert back.shape == y.shape
    assert back.dtype == torch.float32
    step = (-(gain.double() / 256)).exp2()[:, None, None] / 256
    assert ((back - y).abs() <= 0.51 * step + 1e-5).all()


def test_outliers_are_clamped_and_still_round_trip(entropy, latents):
    latents.y[::3] = 2**30
    latents.y[1::3] = -(2**30)
    latents.z[0, :2] = torch.tensor([Z_MAX, -Z_MAX])
    _, writer = round_trip(entropy, latents)
    z, *y = writer.groups
    assert (z.min(), z.max()) == (-Z_MAX, Z_MAX)
    for group in y:
        assert (group.min(), group.max()) == (-SYMBOL_MAX, SYMBOL_MAX)


@pytest.mark.parametrize("level", [0, 255, 768])
def test_all_zero_latents_round_trip(entropy, level):
    zero = Latents(
        torch.zeros(16, len(entropy.log2_std), dtype=torch.long), torch.zeros(1, entropy.log2_gain_z.shape[1]).long()
    )
    y_hat, _ = round_trip(entropy, zero, level, 4, 4)
    assert y_hat.abs().max() < 2**20


def test_y_hat_is_near_the_latents(entropy, latents):
    y_hat, _ = round_trip(entropy, latents)
    assert (y_hat.reshape(64, -1) - latents.y).abs().max() <= RDO_MAX
    entropy_error = (y_hat.reshape(64, -1) - latents.y).abs().double().mean()
    assert entropy_error < 128


def test_the_crc_covers_z_and_both_passes(entropy, latents):
    _, writer = round_trip(entropy, latents)
    channels = latents.y.shape[1]
    assert [len(group) for group in writer.groups] == [latents.z.numel(), 32 * channels, 32 * channels]


def test_anchors_do_not_see_the_others(entropy, latents):
    anchors = anchor_mask(8, 8).reshape(-1)
    first, _ = round_trip(entropy, latents)
    latents.y[~anchors] += 5000
    second, _ = round_trip(entropy, latents)
    assert torch.equal(first.reshape(64, -1)[anchors], second.reshape(64, -1)[anchors])


def test_the_others_see_anchors_within_two_positions_only(entropy, latents):
    first, _ = round_trip(entropy, latents)
    latents.y[0] += 50 * 256  # the anchor at row 0, column 0
    second, _ = round_trip(entropy, latents)
    changed = (first != second).any(dim=2)
    changed[0, 0] = False
    assert changed.any()
    reach = torch.nonzero(changed).max(dim=0).values
    assert (reach <= 2).all()
    assert not changed[anchor_mask(8, 8)].any()


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


def test_rejects_a_payload_that_is_cut_off(entropy, latents):
    z, y = round_trip(entropy, latents)[1].payloads
    for payloads in ([b"", y], [z[: len(z) // 2], y], [z, b""], [z, y[: len(y) // 2]], [z], []):
        with pytest.raises(FormatError):
            entropy.code_latents(StreamReader(ENGINE, payloads), LEVEL, 8, 8, None)


def test_random_payloads_raise_our_errors_or_other_symbols(entropy):
    rng = np.random.default_rng(0)
    failures = 0
    for _ in range(200):
        payloads = [rng.bytes(rng.integers(1, 40)), rng.bytes(rng.integers(1, 200))]
        try:
            entropy.code_latents(StreamReader(ENGINE, payloads), LEVEL, 4, 4, None)
        except CodecError:
            failures += 1
    assert failures > 150  # the rest decodes to noise, which the symbol CRC of the container catches
