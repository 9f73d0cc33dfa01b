"""Rows: what they say, and the file that keeps them."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from PIL import Image

from bitstream.errors import UsageError
from bitstream.limits import Limits
from codec import images
from codec.evaluation.contenders import ModelContender, PeerContender
from codec.evaluation.peers import PEERS
from codec.evaluation.rows import RowStore, find_sources, machine_facts, measure
from codec.metrics import ms_ssim_db, psnr_db

BOTH = ("psnr", "ms-ssim")


@pytest.fixture
def row(pictures):
    """A row of JPEG."""
    source = find_sources(pictures, pytest.fail)[2]
    contender = PeerContender.of(PEERS["jpeg"])
    return measure(contender, source, images.load(source.path), 50.0, BOTH) | machine_facts("cpu", 1, 1)


def test_a_row_of_a_model_is_that_of_its_real_file(pictures, tiny_codec, tiny_checkpoint):
    contender = ModelContender.of(str(tiny_checkpoint), "cpu")
    source = find_sources(pictures, pytest.fail)[2]
    picture = images.load(source.path)
    row = measure(contender, source, picture, 40.0, BOTH)
    data = tiny_codec.encode(source.path, quality=40)
    decoded = np.asarray(tiny_codec.decode(data))
    assert (row["bytes"], row["bpp"]) == (len(data), 8 * len(data) / (170 * 161))
    assert row["psnr_db"] == pytest.approx(psnr_db(picture.pixels, decoded))
    assert row["ms_ssim_db"] == pytest.approx(ms_ssim_db(picture.pixels, decoded))
    assert (row["codec"], row["image"], row["width"], row["height"]) == (contender.name, "c.png", 161, 170)
    assert row["encode_s"] > 0
    assert row["decode_s"] > 0


def test_a_row_says_how_and_where_it_was_measured(row):
    assert row["settings"] == {"quality": 50, "optimize": True, "subsampling": 0}
    assert row["identity"].startswith("Pillow ")
    assert {"codec", "torch", "pillow", "python"} <= row["versions"].keys()
    assert row["machine"]
    assert (row["threads"], row["jobs"], row["device"]) == (1, 1, "cpu")


def test_what_a_picture_does_not_have_is_null(tmp_path):
    Image.new("RGB", (64, 64), (128, 128, 128)).save(tmp_path / "flat.png")
    (source,) = find_sources(tmp_path, pytest.fail)
    row = measure(PeerContender.of(PEERS["jpeg"]), source, images.load(source.path), 100, BOTH)
    assert row["psnr_db"] is None  # equal pictures
    assert row["ms_ssim_db"] is None  # too small for five scales


def test_pictures_that_cannot_be_used_are_told_and_left_out(pictures):
    Image.new("F", (8, 8)).save(pictures / "float.tif")
    (pictures / "broken.png").write_bytes(b"no")
    (pictures / "._a.png").write_bytes(b"what macOS leaves")
    told: list[str] = []
    assert [source.name for source in find_sources(pictures, told.append)] == ["a.png", "b.png", "c.png", "more/d.png"]
    assert [("broken" in line, "float" in line) for line in told] == [(True, False), (False, True)]


def test_a_picture_above_the_limit_is_told_and_left_out(pictures, monkeypatch):
    monkeypatch.setattr("codec.images.Limits", functools.partial(Limits, max_pixels=2**16))
    Image.new("RGB", (257, 256)).save(pictures / "large.png")
    told: list[str] = []
    assert [source.name for source in find_sources(pictures, told.append)] == ["a.png", "b.png", "c.png", "more/d.png"]
    assert len(told) == 1
    assert "large.png: the picture has 257×256 pixels, the limit is 65536: cut it" in told[0]


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no usable pictures"):
        find_sources(tmp_path, pytest.fail)


def test_rows_are_on_the_disk_as_they_come(tmp_path, row):
    store = RowStore(tmp_path / "rows.jsonl")
    store.begin()
    store.add(row)
    assert [json.loads(line) for line in store.path.read_text().splitlines()] == [row]


def test_a_line_that_was_cut_off_is_run_again(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    second = row | {"quality": 60.0, "image": "é.png"}
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in (row, second)).encode()
    for cut in range(len(text) - len(json.dumps(second).encode()) + 8, len(text) - 1, 7):
        path.write_bytes(text[:cut])
        assert list(RowStore(path).rows.values()) == [row]


@pytest.mark.parametrize("line", ["{", "[1]", '{"codec": "jpeg"}', "3", "no crc", "a list", "NaN"])
def test_files_of_something_else_are_refused(tmp_path, row, line):
    bad = {"no crc": {"crc": None}, "a list": {"codec": ["jpeg"]}, "NaN": {"quality": float("nan")}}
    line = json.dumps(row | bad[line]) if line in bad else line
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{line}\n{json.dumps(row)}\n")
    with pytest.raises(UsageError, match=r"rows\.jsonl, line 1: not"):
        RowStore(path)


def test_a_row_counts_only_with_the_same_weights_settings_and_metrics(tmp_path, row):
    store = RowStore()
    store.begin()
    store.add(row)
    assert store.has(row, BOTH)
    assert not store.has(row | {"identity": "other"}, BOTH)
    assert not store.has(row | {"settings": {"quality": 50}}, BOTH)
    assert not store.has(row | {"crc": "0"}, BOTH)
    assert not RowStore().has(row, BOTH)


def test_a_measure_stays_when_another_one_is_asked_for(row):
    without = {name: {key: value for key, value in row.items() if key != name} for name in ("psnr_db", "ms_ssim_db")}
    store = RowStore()
    store.add(without["ms_ssim_db"])
    assert store.has(row, ["psnr"])
    assert not store.has(row, BOTH)
    store.add(without["psnr_db"])
    assert store.has(row, BOTH)
    store.add(without["psnr_db"] | {"identity": "other"})
    assert not store.has(row | {"identity": "other"}, BOTH)  # of another file


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, row):
    pytest.importorskip("fcntl")
    first, second = RowStore(tmp_path / "rows.jsonl"), RowStore(tmp_path / "rows.jsonl")
    first.begin()
    with pytest.raises(UsageError, match="another run is writing there"):
        second.begin()
    first.add(row)
    first.close()
    second.begin()  # sees what the first one wrote
    assert list(second.rows.values()) == [row]
    second.close()


def test_pictures_below_the_output_are_none_of_the_set(pictures):
    names = {source.name for source in find_sources(pictures, pytest.fail, pictures / "more")}
    assert names == {"a.png", "b.png", "c.png"}


def test_replaced_rows_leave_the_file(tmp_path, row):
    store = RowStore(tmp_path / "rows.jsonl")
    store.begin()
    store.add(row | {"identity": "old"})
    store.add(row)
    store.close()
    assert [json.loads(line)["identity"] for line in store.path.read_text().splitlines()] == [row["identity"]]
