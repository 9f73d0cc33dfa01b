"""Files appear whole or not at all, and never over another one unless told."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import pytest

from bitstream.errors import LimitError, UsageError, WriteError
from bitstream.limits import Limits
from codec import files
from codec.files import check_target, open_bytes, read_bytes, read_stream, write_atomic


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


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o444])
def test_overwriting_keeps_the_permissions(tmp_path, mode):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(mode)
    write_atomic(tmp_path / "a", b"new", overwrite=True)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_what_replaces_a_private_file_is_never_open_to_others(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o600)
    modes, chmod = [], os.chmod

    def look(path, mode):
        modes.append(stat.S_IMODE(os.stat(path).st_mode))
        chmod(path, mode)

    monkeypatch.setattr(files.os, "chmod", look)
    write_atomic(tmp_path / "a", b"new", overwrite=True)
    assert modes == [0o600]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_overwriting_keeps_the_owner(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    os.chown(tmp_path / "a", 1234, 4321)
    write_atomic(tmp_path / "a", b"new", overwrite=True)
    assert ((tmp_path / "a").stat().st_uid, (tmp_path / "a").stat().st_gid) == (1234, 4321)


@pytest.fixture
def link(tmp_path):
    """A link, through another link, to a file in another folder."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "there" / "file").write_bytes(b"old")
    (tmp_path / "there" / "second").symlink_to("file")
    (tmp_path / "here" / "first").symlink_to("../there/second")
    return tmp_path / "here" / "first"


def test_a_link_is_written_through(tmp_path, link):
    with pytest.raises(UsageError, match="first exists: give -f"):
        write_atomic(link, b"new")
    write_atomic(link, b"new", overwrite=True)
    assert link.is_symlink()
    assert (tmp_path / "there" / "second").is_symlink()
    assert not (tmp_path / "there" / "file").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["file", "first", "second"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_an_error_leaves_the_link_and_its_file(tmp_path, link, monkeypatch, function):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, function, fail)
    with pytest.raises(WriteError, match="first: cannot be written"):
        write_atomic(link, b"new", overwrite=True)
    assert link.is_symlink()
    assert link.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["file", "first", "second"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("names", ["nowhere", "a"], ids=["missing", "a loop"])
def test_a_link_to_nowhere_is_an_error_and_stays(tmp_path, names, overwrite):
    (tmp_path / "a").symlink_to(tmp_path / names)
    for function in (lambda: check_target(tmp_path / "a", overwrite=overwrite),
                     lambda: write_atomic(tmp_path / "a", b"data", overwrite=overwrite)):  # fmt: skip
        with pytest.raises(UsageError, match="a is a link to a file that is not there: remove the link first"):
            function()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("name", ["a" * 255, "ü" * 127 + "a"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_name_may_have_255_bytes(tmp_path, name, overwrite):
    if overwrite:
        (tmp_path / name).write_bytes(b"old")
    write_atomic(tmp_path / name, b"data", overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: b"data"}


def test_a_name_that_is_too_long_is_an_error(tmp_path):
    for function in (lambda p: write_atomic(p, b""), lambda p: check_target(p, overwrite=True)):
        with pytest.raises(UsageError, match="not a usable file name"):
            function(tmp_path / ("a" * 256))
    assert not list(tmp_path.iterdir())


def test_read_of_a_missing_file_or_folder_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"none: cannot be read \(No such file"):
        read_bytes(tmp_path / "none")
    with pytest.raises(UsageError, match="cannot be read"):
        read_bytes(tmp_path)


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_file_that_is_too_large_is_closed(tmp_path, monkeypatch, kind):
    opened = []
    monkeypatch.setattr(files, "open", lambda *a, **o: opened.append(open(*a, **o)) or opened[-1], raising=False)
    path = tmp_path / "a"
    if kind == "file":
        path.write_bytes(bytes(11))
    else:
        os.mkfifo(path)
        descriptor = os.open(path, os.O_RDWR)
        os.write(descriptor, bytes(11))
    with pytest.raises(LimitError, match="the file has 11 bytes, the limit is 10"):
        open_bytes(path, limits=Limits(max_memory=10))
    if kind == "pipe":
        os.close(descriptor)
    assert [file.closed for file in opened] == [True]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc")
def test_an_error_while_reading_is_named():
    with pytest.raises(UsageError, match=r"/proc/self/mem: cannot be read \(Input/output error\)"):
        read_bytes("/proc/self/mem")


def test_a_pipe_is_read_in_pieces():
    """Asked for all at once, Python would allocate the limit."""
    asked = []

    class Pipe(io.BytesIO):
        def read(self, size=-1):
            asked.append(size)
            return super().read(size)

    assert read_stream(Pipe(bytes(3 * 2**20)), Limits()) == bytes(3 * 2**20)
    assert max(asked) <= 2**20
    with pytest.raises(LimitError, match="the limit is 100"):
        read_stream(Pipe(bytes(2**21)), Limits(max_memory=100))
    assert asked[4:] == [101]


def test_a_name_with_a_nul_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="not a usable file name"):
        write_atomic(tmp_path / "a\0b", b"data")


def test_a_folder_that_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    check_target(tmp_path / "a", overwrite=False)  # it can be, whatever the system says
    assert list(tmp_path.iterdir()) == []

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "_create", refuse)
    with pytest.raises(WriteError, match=r"a: cannot be written \(Permission denied\)"):
        check_target(tmp_path / "a", overwrite=False)


def test_there_is_one_writer(tmp_path):
    path = tmp_path / "a.pt"
    with files.only_writer(path), pytest.raises(UsageError, match=r"a\.pt: another process is writing it"):
        files.only_writer(path).__enter__()
    with files.only_writer(path):
        pass
    assert list(tmp_path.iterdir()) == []
