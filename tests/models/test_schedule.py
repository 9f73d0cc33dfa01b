"""The order of coding: every position once, and none before what its context sees."""

from __future__ import annotations

import pytest
import torch

from models.layout import TAPS_3X3, TAPS_CAUSAL, TAPS_CHECKERBOARD, EntropyLayout
from models.schedule import POSITIONS, WAVES, anchor_mask, crossed_mask, segments, wavefronts

SIZES = [(1, 1), (1, 9), (9, 1), (4, 4), (4, 12), (12, 4), (8, 8), (16, 20), (20, 16), (32, 48), (4, 256), (256, 4), (5, 7)]
ORDERS = ["one pass", "checkerboard", "crossed", "wavefronts"]
CHANNELS = 6


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4)])
def test_anchor_mask_is_a_checkerboard(size):
    mask = anchor_mask(*size)
    assert [[bool(mask[r, c]) for c in range(size[1])] for r in range(size[0])] == [
        [(r + c) % 2 == 0 for c in range(size[1])] for r in range(size[0])
    ]


def coded_at(order, h, w):
    """Return the (h, w, CHANNELS) number of the step that codes each element."""
    at = torch.full((h * w, CHANNELS), -1)
    for number, step in enumerate(step for segment in segments(order, h, w) for step in segment):
        for cell in step:
            assert torch.equal(cell.where, cell.where.sort().values)
            assert (at[cell.where][:, cell.channels] == -1).all()
            at[cell.where, cell.channels] = number
    return at.reshape(h, w, CHANNELS)


def positions(order, h, w):
    """Return the positions of each step of each segment, of orders that code all channels at once."""
    for segment in segments(order, h, w):
        assert all(len(step) == 1 and step[0].channels == slice(None) for step in segment)
    return [[step[0].where for step in segment] for segment in segments(order, h, w)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", ORDERS)
def test_every_element_is_coded_once(order, size):
    assert (coded_at(order, *size) >= 0).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_wavefront_is_what_has_equal_column_plus_three_rows(size):
    h, w = size
    waves = wavefronts(h, w)
    assert len(waves) == w + 3 * (h - 1)
    for number, wave in enumerate(waves):
        assert (wave % w + 3 * (wave // w) == number).all()
        assert torch.equal(wave, wave.sort().values)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("order", "taps"), [("wavefronts", TAPS_CAUSAL), ("checkerboard", TAPS_CHECKERBOARD)])
def test_all_taps_of_a_position_are_coded_before_it(order, taps, size):
    """Of the second pass, in a checkerboard: the first has no context."""
    h, w = size
    at = coded_at(order, h, w)[..., 0]
    checked = 0
    for row in range(h):
        for column in range(w):
            if order == "checkerboard" and at[row, column] == 0:
                continue
            for dy, dx in taps:
                if 0 <= row + dy < h and 0 <= column + dx < w:
                    assert at[row + dy, column + dx] < at[row, column]
                    checked += 1
    assert checked > 0 or h * w == 1


@pytest.mark.parametrize("size", SIZES)
def test_a_crossed_order_codes_half_of_the_channels_of_every_position_first(size):
    h, w = size
    at = coded_at("crossed", h, w)
    assert torch.equal(at == 0, crossed_mask(CHANNELS, h, w).permute(1, 2, 0))
    for row in range(h):
        for column in range(w):
            for channel in range(CHANNELS):
                assert at[row, column, channel] == (row + column + channel) % 2


@pytest.mark.parametrize("size", SIZES)
def test_the_steps_of_a_crossed_order_have_two_cells_of_anchors_and_others(size):
    """Their order is part of the format."""
    anchors = anchor_mask(*size).reshape(-1)
    for number, segment in enumerate(segments("crossed", *size)):
        ((first, second),) = segment
        assert torch.equal(first.where, torch.nonzero(anchors)[:, 0])
        assert torch.equal(second.where, torch.nonzero(~anchors)[:, 0])
        assert (first.channels.start, second.channels.start) == (number, 1 - number)


def test_a_crossed_order_has_3x3_taps():
    assert EntropyLayout((2, 2), order="crossed").taps == TAPS_3X3


@pytest.mark.parametrize("size", SIZES)
def test_a_checkerboard_codes_the_anchors_first(size):
    first, *rest = positions("checkerboard", *size)
    assert torch.equal(first[0], torch.nonzero(anchor_mask(*size).reshape(-1))[:, 0])
    assert [len(segment) for segment in [first, *rest]] == [1, 1]


@pytest.mark.parametrize("size", SIZES)
def test_one_pass_is_raster_order(size):
    ((only,),) = positions("one pass", *size)
    assert torch.equal(only, torch.arange(size[0] * size[1]))


@pytest.mark.parametrize("size", SIZES)
def test_segments_of_wavefronts_are_wavefronts_in_order(size):
    flat = [step for segment in positions("wavefronts", *size) for step in segment]
    waves = [wave for wave in wavefronts(*size) if len(wave)]
    assert len(flat) == len(waves)
    assert all(torch.equal(a, b) for a, b in zip(flat, waves, strict=True))
    assert all(segments("wavefronts", *size))


def test_segments_of_wavefronts_are_part_of_the_format():
    """A picture of 768 × 512: other segments are other files."""
    found = [sum(map(len, segment)) for segment in positions("wavefronts", 32, 48)]
    assert (WAVES, POSITIONS) == (6, 64)
    assert found == [70, 65, 75, 63, 72, 63, 64, 64, 80, 64, 64, 64, 64, 64, 80, 64, 64, 62, 70, 62, 72, 63, 63]


@pytest.mark.parametrize("size", SIZES)
def test_segments_have_a_share_of_the_positions_but_for_one_wavefront(size):
    """Of count segments each ends with the wavefront that reaches its share: it has more than a share less one wavefront."""
    h, w = size
    found = [sum(map(len, segment)) for segment in positions("wavefronts", h, w)]
    waves = [len(wave) for wave in wavefronts(h, w) if len(wave)]
    assert len(found) == max(1, min(len(waves) // WAVES, h * w // POSITIONS))
    if len(found) > 1:
        assert min(found) > POSITIONS - max(waves)
        assert max(found) < h * w / len(found) + max(waves)
