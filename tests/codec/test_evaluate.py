"""``codec evaluate``: the report's table counts real files."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from bitstream.errors import UsageError
from codec.cli import main
from codec.evaluate import COLUMNS, evaluate


@pytest.fixture
def pictures(tmp_path, picture):
    """A folder of two small pictures, one in a folder below."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    Image.fromarray(picture(64, 96)).save(folder / "a.png")
    Image.fromarray(picture(50, 33, 1)).save(folder / "more" / "b.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_rows_are_the_means_of_real_files(tiny_codec, pictures, picture):
    rows = evaluate(tiny_codec, pictures)
    assert [list(row) for row in rows] == [list(COLUMNS)] * 4
    assert [row["lmbda"] for row in rows] == sorted(row["lmbda"] for row in rows)
    files = [tiny_codec.encode(picture(64, 96), quality=100), tiny_codec.encode(picture(50, 33, 1), quality=100)]
    assert rows[-1]["bits"] == 8 * sum(map(len, files)) / 2
    assert rows[-1]["pixels"] == (64 * 96 + 50 * 33) / 2
    assert rows[-1]["bpp"] == pytest.approx((8 * len(files[0]) / (64 * 96) + 8 * len(files[1]) / (50 * 33)) / 2)
    assert rows[0]["psnr_db"] < rows[-1]["psnr_db"]
    assert all(row["encode_s"] > 0 and row["decode_s"] > 0 for row in rows)


def test_the_command_prints_the_table_and_writes_json(pictures, tiny_checkpoint, tmp_path):
    out = tmp_path / "rows.json"
    result = CliRunner().invoke(main, ["evaluate", str(pictures), "--model", str(tiny_checkpoint), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert all(word in result.stdout for word in ("pixels", "bits", "bpp", "PSNR", "encode", "decode"))
    written = json.loads(out.read_text())
    assert (written["model"], len(written["rows"])) == ("swift", 4)


def test_a_folder_without_pictures_is_refused(tiny_codec, tmp_path):
    with pytest.raises(UsageError, match="no pictures"):
        evaluate(tiny_codec, tmp_path)


def test_an_output_folder_that_is_missing_is_refused_before_the_work(pictures, tiny_checkpoint, tmp_path):
    arguments = ["evaluate", str(pictures), "--model", str(tiny_checkpoint), "-o", str(tmp_path / "no" / "rows.json")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "create it first" in result.output
