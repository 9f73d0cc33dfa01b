"""Where the bits went: the parts are the file, ideal bits are what coding took, and they lie where the symbols lie."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitstream.chunks import Y_TILE, Metadata, Z
from bitstream.coder import StreamReader, StreamWriter
from bitstream.container import Container
from bitstream.engines.reference import ReferenceEngine
from bitstream.errors import CheckpointError, DesyncError, FormatError, LimitError
from bitstream.grid import Rect, cut, tile_side
from bitstream.header import Header
from bitstream.limits import Limits
from bitstream.recording import RecordingReader, StreamCost, ideal_bits
from bitstream.segments import TableRows
from bitstream.tables import MasterTable, gaussian_master
from codec.api import cached_codec
from codec.heatmap import heatmap
from codec.inspection import PASSES, inspect
from models.latents import Latents
from models.registry import MODELS
from models.runtime import LoadedModel

GOLDEN = Path(__file__).parent.parent / "golden"
FILES = sorted(path for path in GOLDEN.glob("*.lic") if "overfit" not in path.stem)  # those: tests/codec/overfit
KINDS = (*MODELS, "crossed", "inverse-gain")
FLUSH_BITS = 16  # what ends a payload, and what the integers of the coder lose on such small files


def checkpoint_of(path: Path) -> Path:
    """Return the checkpoint of a golden file."""
    name = next((name for name in KINDS if path.stem.startswith(f"v1-{name}-")), "swift")
    return GOLDEN / f"tiny-{name}.safetensors"


def read(path: Path):
    """Return the inspection of a golden file."""
    return inspect(path, model=checkpoint_of(path))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def file(request) -> Path:
    """A golden file, of each model and of gray pictures."""
    return request.param


@pytest.fixture
def small() -> Path:
    """A golden file of 65×129 pixels of a swift."""
    return GOLDEN / "v1-65x129-q33.lic"


def test_parts_add_up_to_the_file(file):
    found = read(file)
    assert found.n_bytes == sum(part.n_bytes for part in found.parts) == file.stat().st_size
    container = Container.unpack(file.read_bytes())
    of_z, of_y = (sum(len(payload) for kind, payload in container.chunks if kind == wanted) for wanted in (Z, Y_TILE))
    assert sum(part.n_bytes for part in found.parts if part.name == "z") == of_z
    assert sum(part.n_bytes for part in found.parts if part.name.startswith("y")) == of_y
    assert found.parts[0].n_bytes == len(container.header.pack())


def test_streams_are_ranges_lengths_and_payloads_of_all_symbols(file):
    found = read(file)
    streams = [part for part in found.parts if part.cost != StreamCost()]
    assert all(part.n_bytes == part.cost.n_bytes for part in streams)
    model = cached_codec(str(checkpoint_of(file)), "cpu").model
    positions = found.position_bits.size
    z_symbols = positions // 16 * model.entropy.log2_gain_z.shape[1] if model.entropy.layout.hyper else 0
    assert found.cost.symbols == positions * len(found.channel_bits) + z_symbols
    of_y = sum(part.cost.zeros for part in streams if part.name.startswith("y"))
    assert found.channel_zeros.sum() * positions == pytest.approx(of_y)


def test_bits_of_positions_and_channels_are_those_of_the_streams(file):
    found = read(file)
    of_z = sum(part.cost.ideal_bits for part in found.parts if part.name == "z")
    assert found.position_bits.sum() == pytest.approx(found.cost.ideal_bits)
    assert found.channel_bits.sum() + of_z == pytest.approx(found.cost.ideal_bits)
    assert found.position_bits.min() >= 0


def test_payloads_are_a_little_longer_than_ideal(file):
    for group in groups_of(file):
        costs, bits = group.measure()
        assert sum(part.sum() for part in bits) == pytest.approx(sum(cost.ideal_bits for cost in costs))
        for cost in costs:
            assert cost.ideal_bits <= 8 * cost.payload_bytes <= cost.ideal_bits + FLUSH_BITS


def groups_of(path: Path):
    """Return what recording readers of a golden file's tiles read, the symbols checked against those of plain ones."""
    container = Container.unpack(path.read_bytes())
    header, groups = container.header, []
    codec = cached_codec(str(checkpoint_of(path)), "cpu")
    tiles = cut(Rect(0, 0, header.width, header.height), tile_side(header.tile, header.width, header.height))
    for number, rect in enumerate(tiles):
        payloads, crc, _ = container.tile(number)
        h, w = (-(-side // 64) * 4 for side in (rect.height, rect.width))
        plain, recording = (reader(codec.engine, payloads) for reader in (StreamReader, RecordingReader))
        y_hats = [codec.model.entropy.code_latents(reader, header.level, h, w, None) for reader in (plain, recording)]
        assert torch.equal(*y_hats)
        assert plain.crc == recording.crc == crc
        groups += recording.groups
    return groups


def test_ideal_bits_are_those_of_the_row_cut_to_the_range():
    table = MasterTable(-2, np.array([[0, 10, 30, 60, 70], [0, 1, 2, 3, 100]]))
    symbols, rows = np.array([-1, 0, 1, 0], dtype=np.int16), np.array([0, 0, 1, 1], dtype=np.uint8)
    counts = [20 * 65533 // 60 + 1, 50 * 65533 // 60 - 20 * 65533 // 60 + 1]
    counts += [65536 - (2 * 65533 // 99 + 2), 2 * 65533 // 99 - 65533 // 99 + 1]
    assert ideal_bits(TableRows(table, rows), symbols, -1, 1) == pytest.approx(16 - np.log2(counts))
    assert (ideal_bits(TableRows(table, rows), np.zeros(4, np.int16), 0, 0) == 0).all()


def test_a_stream_of_one_value_has_a_range_and_no_bits():
    source = TableRows(gaussian_master(), np.zeros(5, np.uint8))
    writer = StreamWriter(ReferenceEngine())
    writer.code_source(np.full(5, 3, np.int16), source)
    writer.end_chunk()
    reader = RecordingReader(ReferenceEngine(), writer.payloads)
    reader.code_source(None, source)
    (cost,), (bits,) = reader.groups[0].measure()
    assert cost == StreamCost(range_bytes=2, symbols=5)
    assert (bits == 0).all()


def test_each_piece_of_a_stream_has_a_length_and_a_payload(monkeypatch):
    monkeypatch.setattr("bitstream.segments.PIECE_CELLS", 200)
    source = TableRows(gaussian_master(), np.full(100, 30, np.uint8))
    writer = StreamWriter(ReferenceEngine())
    writer.code_source((np.arange(100) % 9 - 4).astype(np.int16), source)
    writer.end_chunk()
    reader = RecordingReader(ReferenceEngine(), writer.payloads)
    reader.code_source(None, source)
    (cost,), (bits,) = reader.groups[0].measure()
    assert (cost.range_bytes, cost.length_bytes, cost.n_bytes) == (2, 5, len(writer.payloads[0]))  # 20 symbols of Lp 10 each
    assert (cost.symbols, cost.zeros) == (100, 11)
    assert cost.ideal_bits == pytest.approx(bits.sum())


def file_of(name: str, y: torch.Tensor) -> bytes:
    """Return a file of 128×192 pixels of the tiny checkpoint of a model with this y (96, M) in 1/256, and z = 0."""
    codec = cached_codec(str(GOLDEN / f"tiny-{name}.safetensors"), "cpu")
    entropy, writer = codec.model.entropy, StreamWriter(codec.engine)
    z = torch.zeros(6, entropy.log2_gain_z.shape[1], dtype=torch.long) if entropy.layout.hyper else None
    entropy.code_latents(writer, codec.max_level, 8, 12, Latents(y, z))
    header = Header(192, 128, False, codec.model.checkpoint.model_id, codec.max_level, writer.crc)
    return Container(header, list(zip((Z, Y_TILE), writer.payloads, strict=True))).pack()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("position", "channel"), [(0, 0), (17, 3), (42, 4), (95, 7)])
def test_bits_lie_where_the_symbols_are(name, position, channel):
    model = GOLDEN / f"tiny-{name}.safetensors"
    m = cached_codec(str(model), "cpu").model.entropy.log2_gain.shape[1]
    signs = torch.arange(96) % 2 * 2 - 1
    y = torch.zeros(96, m, dtype=torch.long)
    y[position] = 256 * 1000 * signs[:m]
    assert inspect(file_of(name, y), model=model).position_bits.argmax() == position
    y = torch.zeros(96, m, dtype=torch.long)
    y[:, channel] = 256 * 1000 * signs
    assert inspect(file_of(name, y), model=model).channels(1)[0].index == channel


@pytest.mark.parametrize("name", KINDS)
def test_passes_and_bands_have_names(name):
    path = GOLDEN / ("v1-65x129-q33.lic" if name == "swift" else f"v1-{name}-65x129-q33.lic")
    found = read(path)
    layout = cached_codec(str(checkpoint_of(path)), "cpu").model.entropy.layout
    names = [part.name for part in found.parts]
    assert len(set(part.split(",")[0] for part in names if part.startswith("y"))) == len(PASSES[layout.order])
    assert len(names) == len(set(names))  # bands of factorized may have as many channels
    assert ("z" in names) == (name != "factorized")
    assert ("y, lengths of streams" in names) == (layout.order == "wavefronts")


def test_the_map_is_that_of_the_picture(small):
    found = read(small)
    assert found.position_bits.shape == (12, 8)
    assert found.bpp_map.shape == (9, 5)
    assert found.bpp_map == pytest.approx(found.position_bits[:9, :5] / 256)


def test_chunks_that_are_skipped_are_parts(small):
    container = Container.unpack(small.read_bytes())
    chunks = [*container.chunks, (0xEE, b"")]
    data = Container(container.header, chunks, metadata=Metadata(exif=b"x" * 300)).pack()
    found = inspect(data, model=checkpoint_of(small))
    assert found.n_bytes == len(data)
    sizes = {part.name: part.n_bytes for part in found.parts}
    assert (sizes["chunk EXIF"], sizes["chunk 0xee"]) == (300, 0)


def test_nothing_is_synthesised(small, monkeypatch):
    expected = read(small).facts(3)
    monkeypatch.setattr(LoadedModel, "synthesise", lambda *_: pytest.fail("g_s ran"))
    assert read(small).facts(3) == expected


def test_damage_is_an_error(small):
    data = bytearray(small.read_bytes())
    data[-20] ^= 1
    with pytest.raises(FormatError, match="checksum"):
        inspect(bytes(data), model=checkpoint_of(small))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"symbol_crc": 1}, DesyncError, "decoded symbols have CRC .*, the file says 00000001"),
        ({"model_id": b"abcd"}, CheckpointError, "made with checkpoint 61626364, loaded is"),
        ({"level": 60000}, FormatError, "level is 60000, this model's highest is"),
    ],
)
def test_a_file_that_does_not_decode_is_the_error_of_decode(small, change, error, message):
    container = Container.unpack(small.read_bytes())
    data = Container(dataclasses.replace(container.header, **change), container.chunks).pack()
    with pytest.raises(error, match=message) as ours:
        inspect(data, model=checkpoint_of(small))
    with pytest.raises(error) as theirs:
        cached_codec(str(checkpoint_of(small)), "cpu").decode(data)
    assert str(ours.value) == str(theirs.value)


def test_an_unknown_checkpoint_and_a_large_picture_are_errors(small):
    with pytest.raises(CheckpointError, match="not installed"):
        inspect(small)
    with pytest.raises(LimitError, match="the limit is 100"):
        inspect(small, model=checkpoint_of(small), limits=Limits(max_pixels=100))


def test_the_heat_map_is_as_large_as_the_picture_and_brightest_where_most_bits_are(small):
    found = read(small)
    image = heatmap(found, legend=False)
    assert image.size == (65, 129)
    luma = np.asarray(image.convert("L")).astype(int)[::16, ::16]
    assert (np.argsort(luma, axis=None, kind="stable")[-1] == found.bpp_map.argmax()).all()
    assert (np.asarray(image)[:16, :16] == np.asarray(image)[0, 0]).all()


def test_the_legend_is_below_and_the_overlay_lets_the_picture_through(small):
    found = read(small)
    plain = heatmap(found, legend=False)
    with_legend = heatmap(found)
    assert with_legend.size > plain.size
    assert with_legend.crop((0, 0, *plain.size)).tobytes() == plain.tobytes()
    with Image.open(small.with_suffix(".png")) as picture:
        over = heatmap(found, under=picture, legend=False)
    assert over.size == plain.size
    assert over.tobytes() != plain.tobytes()


@pytest.fixture
def run(installed, call_codec):
    """Return run(*arguments): the result of ``codec inspect``, with the tiny checkpoint as the installed one."""
    return partial(call_codec, "inspect")


def test_the_command_prints_parts_that_end_with_the_size_of_the_file(run, small):
    lines = run(small, "--channels", "3").stdout.splitlines()
    cells = [line.replace("│", " ").split() for line in lines if line.startswith("│")]
    total = next(row for row in cells if row[0] == "total")
    assert total[1:3] == [str(small.stat().st_size), "100.00"]
    assert len(cells) - cells.index(total) - 1 == 3
    assert lines[0].startswith(f"{small}: 65×129 pixels, swift, quality 32.94, {small.stat().st_size} bytes, ")


def test_the_command_prints_json(run, small):
    facts = json.loads(run(small, "--json", "--channels", "2").stdout)
    assert facts["file"] == str(small)
    assert facts["bytes"] == small.stat().st_size == sum(part["bytes"] for part in facts["parts"])
    assert sum(part["share"] for part in facts["parts"]) == pytest.approx(1, abs=1e-3)
    assert len(facts["channels"]) == 2
    assert facts["bpp_map"]["min"] <= facts["bpp_map"]["mean"] <= facts["bpp_map"]["max"]


def test_the_command_writes_a_heat_map_and_does_not_overwrite_one(run, small, tmp_path):
    out = tmp_path / "bits.png"
    run(small, "--heatmap", out, "--no-legend")
    with Image.open(out) as image:
        assert image.size == (65, 129)
    assert "give -f" in run(small, "--heatmap", out, code=2).stderr
    run(small, "--heatmap", out, "--overlay", "-f")
    with Image.open(out) as image:
        assert image.height > 129


def test_the_command_takes_a_checkpoint(run):
    path = GOLDEN / "v1-joint-1x37-q33.lic"
    assert "not installed" in run(path, code=1).stderr
    assert "lengths of streams" in run(path, "--model", checkpoint_of(path)).stdout


@pytest.mark.parametrize(("arguments", "message"), [(("--overlay",), "--overlay needs"), (("--channels", "-1"), "channels")])
def test_wrong_usage_ends_with_2(run, small, arguments, message):
    result = run(small, *arguments, code=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_a_damaged_or_missing_file_is_one_line(run, small, tmp_path):
    path = tmp_path / "a.lic"
    assert "cannot be read" in run(path, code=2).stderr
    path.write_bytes(small.read_bytes()[:-9])
    result = run(path, "--heatmap", tmp_path / "bits.png", code=1)
    assert "checksum" in result.stderr
    assert (len(result.stderr.splitlines()), result.stdout) == (1, "")
    assert not (tmp_path / "bits.png").exists()
