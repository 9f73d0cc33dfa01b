"""Files appear whole or not at all, and never over another one unless told."""

from __future__ import annotations

import os
import stat

import pytest

from bitstream.errors import UsageError, WriteError
from codec import files
from codec.files import check_target, read_bytes, write_atomic


def test_writes_the_bytes_and_nothing_else(tmp_path):
    write_atomic(tmp_path / "a", b"data")
    assert (tmp_path / "a").read_bytes() == b"data"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_takes_strings_and_relative_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomic("a", b"data")
    assert read_bytes("a") == b"data"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_respects_the_umask_and_leaves_it(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "a", b"data")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_an_existing_file_is_kept_unless_told(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(UsageError, match=r"a exists: give -f \(overwrite=True\) to replace it"):
        write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    write_atomic(tmp_path / "a", b"new", overwrite=True)
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_an_error_leaves_the_old_file_and_no_partial(tmp_path, monkeypatch, function, error):
    (tmp_path / "a").write_bytes(b"old")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(files.os, function, fail)
    expected = WriteError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_atomic(tmp_path / "a", b"new", overwrite=True)
    monkeypatch.undo()
    if expected is WriteError:
        assert "a: cannot be written (No space left on device)" in str(caught.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old"}


def test_a_missing_folder_is_an_error(tmp_path):
    for function in (lambda p: write_atomic(p, b""), lambda p: check_target(p, overwrite=True)):
        with pytest.raises(UsageError, match="none is not a folder: create it first"):
            function(tmp_path / "none" / "a")


def test_a_folder_as_target_is_an_error(tmp_path):
    for function in (lambda p: write_atomic(p, b""), lambda p: check_target(p, overwrite=True)):
        with pytest.raises(UsageError, match="is a folder, expected a file name"):
            function(tmp_path)


def test_a_name_that_is_too_long_is_an_error(tmp_path):
    with pytest.raises(WriteError, match="cannot be written"):
        write_atomic(tmp_path / ("a" * 250), b"")  # the temporary name is longer than 255
    assert not list(tmp_path.iterdir())


def test_read_of_a_missing_file_or_folder_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"none: cannot be read \(No such file"):
        read_bytes(tmp_path / "none")
    with pytest.raises(UsageError, match="cannot be read"):
        read_bytes(tmp_path)
