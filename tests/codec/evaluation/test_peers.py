"""The codecs of Pillow's: settings are those of a fair reviewer, and they do what they say."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from bitstream.errors import ImageError, UsageError
from codec.evaluation.contenders import PeerContender, check_names
from codec.evaluation.peers import PEERS, peers
from codec.images import Picture
from codec.metrics import psnr_db


@pytest.fixture(params=PEERS)
def peer(request):
    """Each peer; skipped where its library is missing."""
    try:
        PEERS[request.param].version()
    except UsageError as error:
        pytest.skip(str(error))
    return PEERS[request.param]


def test_bytes_and_psnr_rise_over_the_grid(peer, picture):
    pixels = picture(128, 192)
    files = [peer.encode(pixels, False, peer.settings(quality)) for quality in peer.grid]
    measures = [psnr_db(pixels, peer.decode(data)) for data in files]
    assert [len(data) for data in files] == sorted(len(data) for data in files)
    assert measures[0] + 5 < measures[-1]


def test_the_same_settings_give_the_same_bytes(peer, picture):
    settings = peer.settings(50)
    assert peer.encode(picture(64, 96), False, settings) == peer.encode(picture(64, 96), False, settings)


@pytest.mark.parametrize("name", ["jpeg", "avif"])
def test_chroma_is_not_subsampled(name):
    columns = np.zeros((64, 64, 3), np.uint8)
    columns[:, ::2] = (230, 40, 40)
    columns[:, 1::2] = (40, 40, 230)
    settings = PEERS[name].settings(90)
    sharp = psnr_db(columns, PEERS[name].decode(PEERS[name].encode(columns, False, settings)))
    halved = settings | {"subsampling": "4:2:0"}
    assert sharp > psnr_db(columns, PEERS[name].decode(PEERS[name].encode(columns, False, halved))) + 6


def test_jpeg_2000_decorrelates_colours(picture):
    pixels = np.repeat(picture(128, 128)[..., :1], 3, axis=2)
    settings = PEERS["jpeg2000"].settings(60)
    with_mct, without = (len(PEERS["jpeg2000"].encode(pixels, False, settings | {"mct": mct})) for mct in (1, 0))
    assert with_mct < without / 2


def test_gray_pictures_are_stored_gray(peer, picture):
    gray = np.repeat(picture(64, 96)[..., :1], 3, axis=2)
    data = peer.encode(gray, True, peer.settings(80))
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == ("RGB" if peer.kind in ("WEBP", "AVIF") else "L")  # those two have no gray
    decoded = peer.decode(data)
    assert decoded.shape == gray.shape
    assert psnr_db(gray, decoded) > 28


def test_qualities_outside_of_the_scale_are_refused(peer):
    for quality in (peer.lowest - 1, peer.highest + 1):
        with pytest.raises(UsageError, match=f"{peer.name}: quality is"):
            peer.settings(quality)


def test_whole_scales_take_whole_numbers():
    with pytest.raises(UsageError, match="expected a whole number in 1 … 100"):
        PEERS["jpeg"].settings(50.5)
    assert PEERS["webp"].settings(50.5)["quality"] == 50.5


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_the_search_finds_the_best_file_below_a_size(peer, picture, share):
    contender = PeerContender.of(peer)
    source = Picture(picture(96, 128), gray=False)
    low, high = (len(contender.encode(source, quality)) for quality in (peer.grid[0], peer.grid[-1]))
    limit = round(low + share * (high - low))
    quality, data, seconds = contender.best_within(source, limit)
    found, above = (len(contender.encode(source, q)) for q in (quality, min(round(quality + peer.step, 1), peer.highest)))
    assert found == len(data) <= limit
    assert seconds > 0
    assert found >= limit * 0.99 or above > limit  # coarse steps: the next file is too large


def test_a_size_that_no_quality_has_gives_the_lowest(peer, picture):
    assert PeerContender.of(peer).best_within(Picture(picture(64, 64), gray=False), 10).quality == peer.lowest


def test_pictures_that_a_format_cannot_hold_are_said():
    with pytest.raises(ImageError, match="webp cannot store a picture of 1×16384 pixels"):
        PEERS["webp"].encode(np.zeros((16384, 1, 3), np.uint8), False, PEERS["webp"].settings(50))


def test_lists_of_peers():
    assert [peer.name for peer in peers("JPEG, webp,jpeg,")] == ["jpeg", "webp"]
    with pytest.raises(UsageError, match="peer 'heic' is not known: choose from jpeg, webp"):
        peers("jpeg,heic")


def test_contenders_have_names_of_their_own():
    with pytest.raises(UsageError, match="two contenders are called jpeg"):
        check_names([PeerContender.of(PEERS["jpeg"])] * 2)
    with pytest.raises(UsageError, match="no model and no peer"):
        check_names([])
