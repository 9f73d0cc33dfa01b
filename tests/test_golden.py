"""Files of every format version and model decode for ever: the same symbols, and pixels within one grey level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitstream.container import Container
from bitstream.engines.reference import ReferenceEngine
from codec import Codec, info
from codec.decoders import decoder_of
from models.registry import MODELS

FILES = sorted((Path(__file__).parent / "golden").glob("*.lic"))


KINDS = (*MODELS, "overfit", "crossed", "inverse-gain")  # the last two are swifts too; files without a name are of an older one


def model_of(path: Path) -> str:
    """Return the model in a file's name; the oldest files, all of swift, name none."""
    return next((name for name in KINDS if path.stem.startswith(f"v1-{name}-")), "swift")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def file(request) -> Path:
    """A golden file."""
    return request.param


@pytest.fixture(scope="module")
def codecs(golden) -> dict[str, Codec]:
    """A Codec for each model, with the checkpoint that its golden files were coded with."""
    return {name: Codec(golden / f"tiny-{name}.safetensors", "cpu") for name in KINDS}


@pytest.fixture
def codec(codecs, file) -> Codec:
    """The Codec of the golden file."""
    return codecs[model_of(file)]


@pytest.mark.parametrize("name", KINDS)
def test_every_model_has_golden_files(name):
    assert sum(model_of(path) == name for path in FILES) >= (20 if name == "swift" else 4)


def test_decodes_to_the_picture_beside_it(codec, file):
    image = codec.decode(file.read_bytes())  # raises DesyncError if a symbol differs
    with Image.open(file.with_suffix(".png")) as expected:
        assert (image.mode, image.size) == (expected.mode, expected.size)
        difference = np.asarray(image).astype(int) - np.asarray(expected).astype(int)
    assert np.abs(difference).max() <= 1  # the synthesis is floating point: another CPU may round another way


def test_python_engine_finds_the_same_symbols(codec, file):
    container = Container.unpack(file.read_bytes())
    decoder, decode = decoder_of(codec.model, ReferenceEngine(), container)
    for number, _ in enumerate(decoder.tiles):
        decode(number)  # raises DesyncError if the CRC is another


def test_info_reads_it(codec, file):
    header = info(file)
    with Image.open(file.with_suffix(".png")) as expected:
        assert (header.width, header.height) == expected.size
        assert header.gray == (expected.mode in ("L", "LA"))
        assert header.alpha == (expected.mode in ("RGBA", "LA"))
    assert header.model_id == codec.model.checkpoint.model_id
