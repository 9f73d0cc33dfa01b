"""The manifest: a line for each picture, whatever happened to the run that wrote it."""

from __future__ import annotations

import contextlib
import json

import fsspec
import pytest

from bitstream.errors import UsageError, WriteError
from codec.batch import manifest
from codec.batch.manifest import Manifest, read


def row(name, **facts):
    return {"source": f"/src/{name}", "target": f"{name}.lic", "status": "done", "fingerprint": "f", **facts}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_there_as_they_come_and_sorted_at_the_end(tmp_path):
    path = tmp_path / "new" / "manifest.jsonl"
    with Manifest(str(path)) as book:
        assert book.rows == {}
        book.begin([row("b")])
        book.add(row("c"))
        book.add(row("a"))
        assert lines(path) == [row("b"), row("c"), row("a")]
    assert lines(path) == [row("a"), row("b"), row("c")]


def test_the_last_row_of_a_target_counts_and_is_the_only_one_left(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (row("a", status="outdated"), row("b"), row("a", bpp=1))))
    with Manifest(str(path)) as book:
        assert book.rows == {"a.lic": row("a", bpp=1), "b.lic": row("b")}
        book.begin(book.rows.values())
        assert lines(path) == [row("a", bpp=1), row("b")]


@pytest.mark.parametrize("cut", [1, 2, 20, 50])
def test_a_torn_last_line_is_dropped_and_gone_before_the_next_is_added(tmp_path, cut):
    path = tmp_path / "manifest.jsonl"
    whole = "".join(json.dumps(row(name)) + "\n" for name in "ab")
    path.write_text(whole[:-cut])
    with Manifest(str(path)) as book:
        expected = [row("a")] if cut > 1 else [row("a"), row("b")]  # of the last, only the newline is missing
        assert list(book.rows.values()) == expected
        book.begin(book.rows.values())
        book.add(row("c"))
        assert lines(path) == [*expected, row("c")]


@pytest.mark.parametrize("text", ['{"a": \n{}\n', "[]\n", '{"source": "a"}\n', "\x00\n\n"])
def test_what_is_no_manifest_is_refused_and_kept(tmp_path, text):
    path = tmp_path / "manifest.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"manifest\.jsonl, line 1: not .*another --manifest"), Manifest(str(path)):
        pass
    assert path.read_text() == text
    assert read(str(tmp_path / "none")) == {}


def test_an_error_before_it_begins_changes_nothing_and_after_it_the_rows_are_kept(tmp_path):
    path = tmp_path / "manifest.jsonl"
    with pytest.raises(ZeroDivisionError), Manifest(str(path)):
        raise ZeroDivisionError
    assert not path.exists()
    with contextlib.suppress(KeyboardInterrupt), Manifest(str(path)) as book:  # the lock is free again
        book.begin([])
        book.add(row("b"))
        book.add(row("a"))
        raise KeyboardInterrupt
    assert lines(path) == [row("a"), row("b")]


def test_two_runs_do_not_write_one_manifest(tmp_path):
    path = str(tmp_path / "manifest.jsonl")
    with Manifest(path), pytest.raises(UsageError, match="another run is writing there"), Manifest(path):
        pass


def test_names_of_all_kinds_come_back(tmp_path):
    path = tmp_path / "manifest.jsonl"
    names = ["ä\n", "\udcff", "日本"]
    with Manifest(str(path)) as book:
        book.begin([row(name) for name in names])
    assert set(read(str(path))) == {f"{name}.lic" for name in names}
    assert "日本" in path.read_text()


def test_a_full_disk_is_a_write_error(tmp_path):
    class Full:
        def write(self, data):
            return len(data) - 1

        def close(self):
            pass

    with Manifest(str(tmp_path / "manifest.jsonl")) as book:
        book.begin([])
        book._file.close()
        book._file = Full()
        with pytest.raises(WriteError, match="cannot be written .No space left on device.: make room"):
            book.add(row("a"))


def test_an_object_store_gets_the_whole_file_now_and_then(monkeypatch):
    place, now = "memory://manifest-test/manifest.jsonl", [100.0]
    monkeypatch.setattr(manifest.time, "monotonic", lambda: now[0])
    with Manifest(place) as book:
        book.begin([])
        for name, seconds, written in (("a", 1, 0), ("b", 10, 2), ("c", 1, 2)):
            now[0] += seconds
            book.add(row(name))
            assert len(read(place)) == written
    assert fsspec.filesystem("memory").cat("/manifest-test/manifest.jsonl").count(b"\n") == 3


@pytest.mark.parametrize("text", [b"photos/a.png", b"{}x", b'{"target": "a'])
def test_a_file_of_one_line_that_is_no_cut_row_is_refused(tmp_path, text):
    """A list that was given as the manifest, say: it would be overwritten."""
    (tmp_path / "list.txt").write_bytes(text)
    with pytest.raises(UsageError, match="line 1: not JSON"):
        read(str(tmp_path / "list.txt"))


def test_a_row_that_was_cut_is_left_out(tmp_path):
    for length in range(12):
        (tmp_path / "m.jsonl").write_bytes(b'{"source": "'[:length])
        assert read(str(tmp_path / "m.jsonl")) == {}
