"""Tiles cover a picture once, and small pictures are one tile."""

from __future__ import annotations

import numpy as np
import pytest

from bitstream.grid import Rect, count_tiles, cut, tile_bits, tile_side, touched


@pytest.mark.parametrize("area", [Rect(0, 0, 1, 1), Rect(0, 0, 300, 256), Rect(7, 100, 513, 511), Rect(5, 0, 3, 2000)])
@pytest.mark.parametrize("side", [256, 1024])
def test_an_area_is_covered_once(area, side):
    covered = np.zeros((area.bottom, area.right), int)
    for part in cut(area, side):
        assert part.width <= side
        assert part.height <= side
        covered[part.top : part.bottom, part.left : part.right] += 1
    assert (covered[area.top :, area.left :] == 1).all()
    assert covered.sum() == area.width * area.height


def test_tiles_are_in_raster_order():
    places = [(part.top, part.left) for part in cut(Rect(0, 0, 700, 600), 256)]
    assert places == sorted(places)
    assert len(places) == count_tiles(8, 700, 600) == 9


@pytest.mark.parametrize(("size", "bits"), [((1, 1), 0), ((1024, 1024), 0), ((1025, 1), 10), ((3, 20000), 10)])
def test_pictures_above_1024_have_tiles(size, bits):
    assert tile_bits(*size) == bits
    assert tile_side(bits, *size) == (1024 if bits else max(size))


@pytest.mark.parametrize("area", [Rect(0, 0, 700, 600), Rect(255, 256, 1, 1), Rect(255, 255, 2, 2), Rect(300, 10, 400, 246)])
def test_an_area_touches_the_tiles_that_overlap_it(area):
    tiles = cut(Rect(0, 0, 700, 600), 256)
    assert touched(area, 256, 3) == [
        number
        for number, tile in enumerate(tiles)
        if tile.left < area.right and area.left < tile.right and tile.top < area.bottom and area.top < tile.bottom
    ]
