"""Files of every format version decode for ever: the same symbols, and pixels within one grey level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitstream.container import Container
from bitstream.engines.reference import ReferenceEngine
from codec import info

FILES = sorted((Path(__file__).parent / "golden").glob("*.lic"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def file(request) -> Path:
    """A golden file."""
    return request.param


def test_there_are_enough_golden_files():
    assert len(FILES) >= 20


def test_decodes_to_the_picture_beside_it(tiny_codec, file):
    image = tiny_codec.decode(file.read_bytes())  # raises DesyncError if a symbol differs
    with Image.open(file.with_suffix(".png")) as expected:
        assert (image.mode, image.size) == (expected.mode, expected.size)
        difference = np.asarray(image).astype(int) - np.asarray(expected).astype(int)
    assert np.abs(difference).max() <= 1  # the synthesis is floating point: another CPU may round another way


def test_python_engine_finds_the_same_symbols(tiny_codec, file):
    container = Container.unpack(file.read_bytes())
    header = container.header
    payloads = [payload for _, payload in container.chunks]
    _, crc = tiny_codec.model.decode_latents(payloads, header.level, header.height, header.width, ReferenceEngine())
    assert crc == header.symbol_crc


def test_info_reads_it(tiny_codec, file):
    header = info(file)
    with Image.open(file.with_suffix(".png")) as expected:
        assert (header.width, header.height) == expected.size
        assert header.gray == (expected.mode == "L")
    assert header.model_id == tiny_codec.model.checkpoint.model_id
