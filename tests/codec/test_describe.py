"""What a file says about itself: all fields, sums that add up, damage refused, unknown checkpoints allowed."""

from __future__ import annotations

import dataclasses

import pytest

from bitstream.container import Container
from bitstream.errors import FormatError, UsageError
from codec import info, inspect
from codec.describe import describe


@pytest.fixture
def file(tmp_path, tiny_codec, picture):
    """A file of a 50 × 33 picture at quality 25."""
    path = tmp_path / "a.lic"
    path.write_bytes(tiny_codec.encode(picture(33, 50), quality=25))
    return path


def test_info_reads_bytes_and_paths(file):
    header = info(file.read_bytes())
    assert info(file) == info(str(file)) == header
    assert (header.width, header.height, header.level, header.version) == (50, 33, 192, 1)


@pytest.mark.usefixtures("installed")
def test_describe_tells_all(file, tiny_codec):
    facts = describe(file)
    assert facts["file"] == str(file)
    assert (facts["width"], facts["height"], facts["gray"], facts["format_version"]) == (50, 33, False, 1)
    assert (facts["model"], facts["model_id"]) == ("swift", tiny_codec.model.checkpoint.model_id.hex())
    assert (facts["quality"], facts["level"]) == (25.0, 0.75)
    assert facts["bytes"] == file.stat().st_size == facts["z_bytes"] + facts["y_bytes"] + facts["other_bytes"]
    assert facts["bpp"] == pytest.approx(8 * facts["bytes"] / (50 * 33), abs=1e-5)
    assert facts["symbol_crc"] == f"{info(file).symbol_crc:08x}"


@pytest.mark.usefixtures("installed")
def test_an_unknown_checkpoint_is_none(file):
    container = Container.unpack(file.read_bytes())
    header = dataclasses.replace(container.header, model_id=b"\0\1\2\3")
    file.write_bytes(Container(header, container.chunks).pack())
    facts = describe(file)
    assert (facts["model"], facts["quality"], facts["model_id"]) == (None, None, "00010203")


def test_a_model_of_one_level_has_a_quality(installed, file):
    path = installed / "manifest.toml"
    path.write_text(path.read_text().replace("max_level = 768", "max_level = 0"))
    assert describe(file)["model"] == "swift"


@pytest.mark.parametrize("function", [info, describe])
def test_damage_is_an_error(file, function):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(FormatError, match="checksum"):
        function(file)


@pytest.mark.parametrize("function", [info, describe])
def test_a_missing_file_is_an_error(tmp_path, function):
    with pytest.raises(UsageError, match="cannot be read"):
        function(tmp_path / "none.lic")


def test_a_picture_above_the_readers_limit_can_be_described(file):
    container = Container.unpack(file.read_bytes())
    header = dataclasses.replace(container.header, width=2**20, height=2**20)
    file.write_bytes(Container(header, container.chunks).pack())
    assert describe(file)["width"] == 2**20


@pytest.mark.parametrize("kind", [bytearray, memoryview])
@pytest.mark.parametrize("function", [info, inspect])
def test_bytes_of_any_kind_are_taken(file, function, kind, tiny_checkpoint):
    options = {} if function is info else {"model": tiny_checkpoint}
    assert function(kind(file.read_bytes()), **options) is not None


@pytest.mark.parametrize("function", [info, inspect])
@pytest.mark.parametrize("source", [None, 0, [b"a"]])
def test_what_is_no_file_is_a_usage_error(function, source):
    with pytest.raises(UsageError, match="expected the bytes of a file or its path"):
        function(source)
