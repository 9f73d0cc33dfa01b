"""The estimate of memory: what is padded counts, tiles at once are as many as fit, less is asked for where less is decoded."""

from __future__ import annotations

import pytest

from bitstream.errors import LimitError
from bitstream.grid import Rect
from bitstream.limits import NO_LIMITS, Limits


def workers(width, height, tile=0, *, area=None, scale=1, threads=16, limits=None):
    """Return how many tiles may be decoded at once."""
    area = area or Rect(0, 0, width, height)
    return (limits or Limits()).count_workers(area, scale, tile, width, height, threads)


@pytest.mark.parametrize(("width", "height"), [(1, 2**22), (2**22, 1), (2**14, 2**14), (8000, 8000)])
def test_a_single_tile_that_is_too_large_is_refused(width, height):
    with pytest.raises(LimitError, match=f"decoding {width}×{height} pixels may take .* GiB of memory, the limit is 4.0"):
        workers(width, height)


def test_large_tiles_are_refused_too():
    assert workers(12000, 8400, 10) >= 1
    with pytest.raises(LimitError):
        workers(12000, 8400, 14)


@pytest.mark.parametrize("threads", [1, 2, 16, 256])
def test_fewer_tiles_at_once_where_memory_is_short(threads):
    many = workers(12000, 8400, 10, threads=threads)
    few = workers(12000, 8400, 10, threads=threads, limits=Limits(max_memory=3 * 2**30))
    assert 1 <= few <= many <= threads
    assert few < 16
    assert workers(12000, 8400, 10, threads=threads, limits=NO_LIMITS) == min(threads, 108)


def test_no_more_than_there_are_tiles():
    assert workers(1500, 1000, 10) == 2
    assert workers(100, 100) == 1


def test_a_part_or_a_thumbnail_takes_less():
    small = Limits(max_memory=2**31)
    with pytest.raises(LimitError, match="decode less"):
        workers(12000, 8400, 10, limits=small)
    assert workers(12000, 8400, 10, area=Rect(0, 0, 512, 512), limits=small) >= 1
    assert workers(12000, 8400, 10, scale=8, limits=small) >= 1


def test_the_largest_picture_in_tiles_fits_into_the_default():
    assert workers(2**14, 2**14, 10) >= 1


@pytest.mark.parametrize("limit", [10, 2**20, 2**30])
def test_files_are_limited_by_memory(limit):
    Limits(max_memory=limit).check_bytes(limit)
    with pytest.raises(LimitError, match=f"{limit + 1} bytes, the limit is {limit}: raise it with --max-memory"):
        Limits(max_memory=limit).check_bytes(limit + 1)
