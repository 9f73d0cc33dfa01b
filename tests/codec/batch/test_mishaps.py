"""What goes wrong in a batch: broken pictures that are mended, strange files and lists, arguments that cannot be."""

from __future__ import annotations

import os

import numpy as np
import pytest
from manifests import rows
from PIL import Image

from bitstream.errors import UsageError
from codec.batch.options import MAX_EFFORT
from codec.files import lock_folder
from models.refine import STEPS


def test_a_picture_that_failed_once_is_replaced_when_it_is_whole_again(batch, source, tmp_path):
    out, path = tmp_path / "out", source / "a.png"
    batch(source, out)
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    assert batch(source, out).failed == 1
    Image.new("RGB", (30, 20), "red").save(path)
    assert batch(source, out).failed == 0
    assert rows(out)["a.lic"]["status"] == "done"
    assert "outdated" not in rows(out)["a.lic"]


def test_every_error_says_which_picture(batch, source, tmp_path):
    found = batch(source, tmp_path / "out", size=20)
    assert found.failed == found.pictures
    assert all(row["error"].startswith(row["source"]) for row in found.failures)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_pipes_and_hidden_files_are_left_out(batch, source, tmp_path):
    expected = batch(source, tmp_path / "1").pictures
    os.mkfifo(source / "pipe.png")
    (source / "._a.png").write_bytes(b"of another system")
    assert batch(source, tmp_path / "2").pictures == expected
    (tmp_path / "list.txt").write_text(f"{source / 'pipe.png'}\n")
    (failure,) = batch(tmp_path / "list.txt", tmp_path / "3").failures
    assert "pipe.png: a folder, pipe or device, expected a file" in failure["error"]


def test_a_folder_that_cannot_be_read_is_told(batch, source, tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match="cannot be read"):
        batch(source, tmp_path / "out")


def test_a_list_of_another_encoding_is_told(batch, tmp_path):
    (tmp_path / "list.txt").write_bytes("a.png\n".encode("utf-16"))
    with pytest.raises(UsageError, match="not UTF-8 text: save it as UTF-8"):
        batch(tmp_path / "list.txt", tmp_path / "out")


def test_numbers_of_numpy_are_numbers(batch, source, tmp_path):
    batch(source, tmp_path / "out", size=np.int64(5000), effort=np.int64(0))
    assert rows(tmp_path / "out")["a.lic"]["settings"] == {"size": 5000}


@pytest.mark.parametrize("effort", [11, -1, "1", True])
def test_an_effort_that_cannot_be_is_told_at_once(batch, source, tmp_path, effort):
    with pytest.raises(UsageError, match="effort is .*, expected 0 … 10"):
        batch(source, tmp_path / "out", effort=effort)
    assert not (tmp_path / "out").exists()


def test_the_highest_effort_is_that_of_the_encoder():
    assert len(STEPS) == MAX_EFFORT + 1


def test_ray_has_workers(batch, source, tmp_path):
    with pytest.raises(UsageError, match="workers is 0, expected 1 or more"):
        batch(source, tmp_path / "out", engine="ray", workers=0)


def test_two_runs_do_not_share_targets(batch, source, tmp_path):
    lock = lock_folder(tmp_path / "out") if (tmp_path / "out").mkdir() is None else None
    try:
        with pytest.raises(UsageError, match="another run is writing there"):
            batch(source, tmp_path / "out", manifest=tmp_path / "elsewhere" / "m.jsonl")
    finally:
        os.close(lock)
