"""``codec verify`` names the stage that fails."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from click.testing import CliRunner

from bitstream.container import Container
from bitstream.limits import Limits
from codec.cli.main import main
from codec.verification import stages
from codec.workers import workers

ALL = ["read", "header", "checksum", "limits", "chunks", "checkpoint", "symbols", "pixels"]


@pytest.fixture
def data(tiny_codec, picture):
    """A file of one tile."""
    return tiny_codec.encode(picture(40, 50), quality=50)


@pytest.fixture
def verify(tmp_path, tiny_checkpoint):
    """Return verify(data, **options): names of the stages, whether the last passed, and what it found."""

    def check(data, model=tiny_checkpoint, **options):
        path = tmp_path / "a.lic"
        if data is not None:
            path.write_bytes(data)
        found = list(stages(path, model=model and str(model), **options))
        assert all(stage.passed for stage in found[:-1])
        return [stage.name for stage in found], found[-1].passed, found[-1].found

    return check


def repacked(data, **header):
    """Return a file with other header fields, sealed again."""
    container = Container.unpack(data)
    return dataclasses.replace(container, header=dataclasses.replace(container.header, **header)).pack()


def test_a_sound_file_passes_all_stages(verify, data):
    assert verify(data)[:2] == (ALL, True)


def test_a_sound_file_of_tiles_passes(verify, tiny_codec, picture, monkeypatch):
    monkeypatch.setattr("codec.api.tile_bits", lambda width, height: 8)
    assert verify(tiny_codec.encode(picture(300, 270), quality=50))[:2] == (ALL, True)


@pytest.mark.parametrize(
    ("change", "stage", "message"),
    [
        (lambda data: None, "read", "cannot be read"),
        (lambda data: b"", "header", "begins with nothing"),
        (lambda data: b"PNG" + data, "header", "not a .lic file"),
        (lambda data: data[:4] + b"\x07" + data[5:], "header", "format version 7"),
        (lambda data: data[:-1], "checksum", "cut off or damaged"),
        (lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:], "checksum", "cut off or damaged"),
        (lambda data: repacked(data, model_id=b"none"), "checkpoint", "loaded is"),
        (lambda data: repacked(data, level=60000), "checkpoint", "highest is"),
        (lambda data: repacked(data, symbol_crc=1), "symbols", "tile 0: decoded symbols have CRC"),
        (lambda data: dataclasses.replace(Container.unpack(data), chunks=[]).pack(), "chunks", "expected one Z"),
    ],
)
def test_the_stage_that_fails_is_named(verify, data, change, stage, message):
    names, passed, found = verify(change(data))
    assert (names[-1], passed) == (stage, False)
    assert message in found


def test_limits_are_a_stage(verify, data):
    names, passed, found = verify(data, limits=Limits(max_pixels=10))
    assert (names[-1], passed) == ("limits", False)
    assert "the limit is 10" in found


@pytest.mark.parametrize("way", ["verify", "decode", "latents"])
def test_no_more_tiles_at_once_than_memory_allows(verify, tiny_codec, picture, monkeypatch, way):
    given = []

    def watched(jobs, most=None):
        given.append(most)
        return workers(jobs, most)

    monkeypatch.setattr("codec.api.tile_bits", lambda width, height: 8)
    data = tiny_codec.encode(np.dstack([picture(300, 270)] * 2)[:, :, :4])
    for module in ("tiles", "alpha", "compressed"):
        monkeypatch.setattr(f"codec.{module}.workers", watched)
    monkeypatch.setattr(Limits, "count_workers", lambda *_, **__: 1)
    if way == "verify":
        assert verify(data)[1]
    else:
        getattr(tiny_codec, way)(data)
    assert given == ([1] if way == "latents" else [1, 1])  # of latents no alpha


def test_an_unknown_checkpoint_is_a_stage(verify, data):
    names, passed, _ = verify(data, model=None)
    assert (names[-1], passed) == ("checkpoint", False)


def test_all_damaged_tiles_are_named(verify, tiny_codec, picture, monkeypatch):
    monkeypatch.setattr("codec.api.tile_bits", lambda width, height: 8)
    container = Container.unpack(tiny_codec.encode(picture(300, 270), quality=50))
    tiles = [container.tile(number) for number in range(4)]
    for number in (1, 3):
        tiles[number] = tiles[number]._replace(symbol_crc=0)
    _, passed, found = verify(Container.of_tiles(container.header, tiles).pack())
    assert not passed
    assert [name in found for name in ("tile 0:", "tile 1:", "tile 2:", "tile 3:")] == [False, True, False, True]


def test_the_command_line_exits_with_1(tmp_path, data, tiny_checkpoint):
    path = tmp_path / "a.lic"
    path.write_bytes(data)
    sound = CliRunner().invoke(main, ["verify", str(path), "--model", str(tiny_checkpoint)])
    assert sound.exit_code == 0
    assert [line[:4] for line in sound.output.splitlines()] == ["ok  "] * len(ALL)
    path.write_bytes(data[:-1])
    damaged = CliRunner().invoke(main, ["verify", str(path), "--model", str(tiny_checkpoint)])
    assert damaged.exit_code == 1
    assert damaged.output.splitlines()[-1].startswith("FAIL  checksum: file checksum is")
