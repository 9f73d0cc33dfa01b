"""Which pictures a batch has and what their files are called: folders, lists, URLs, collisions."""

from __future__ import annotations

import os

import fsspec
import pytest

from bitstream.errors import UsageError
from codec.batch import storage
from codec.batch.items import find_items, listed_items


@pytest.fixture
def tree(tmp_path):
    """Return tree(*names): a folder with files of these names, each of three bytes."""

    def make(*names):
        for name in names:
            path = tmp_path / "src" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"abc")
        return tmp_path / "src"

    return make


def names(items):
    return {item.name for item in items}


def test_names_mirror_the_source_with_another_suffix(tree, tmp_path):
    root = tree("a.png", "sub/deep/b.JPG", "note.txt", "c.lic")
    items = find_items(str(root), str(tmp_path / "out"))
    assert [(item.source, item.target, item.name, item.size) for item in items] == [
        (str(root / "a.png"), str(tmp_path / "out" / "a.lic"), "a.lic", 3),
        (str(root / "sub/deep/b.JPG"), str(tmp_path / "out/sub/deep/b.lic"), "sub/deep/b.lic", 3),
    ]


def test_the_other_way(tree):
    root = tree("a.lic", "sub/b.lic", "c.png")
    assert names(find_items(str(root), "out", suffixes=(".lic",), suffix=".webp")) == {"a.webp", "sub/b.webp"}


def test_names_that_would_collide_are_kept_whole(tree):
    assert names(find_items(str(tree("a.png", "a.jpg", "b.png")), "out")) == {"a.png.lic", "a.jpg.lic", "b.lic"}


def test_names_that_collide_still_are_an_error(tree):
    with pytest.raises(UsageError, match=r"a\.png and .*a\.png\.bmp would both be .*a\.png\.lic: rename one"):
        find_items(str(tree("a.png", "a.jpg", "a.png.bmp")), "out")


def test_a_target_below_the_source_is_left_out(tree):
    root = tree("a.png", "out/b.png", "outer/c.png")
    assert names(find_items(str(root), str(root / "out"))) == {"a.lic", "outer/c.lic"}
    for target in (root, root.parent):
        assert names(find_items(str(root), str(target))) == {"a.lic", "out/b.lic", "outer/c.lic"}


@pytest.mark.parametrize(("make", "message"), [(True, "no files"), (False, "no such folder")])
def test_nothing_there_is_a_usage_error(tmp_path, make, message):
    if make:
        (tmp_path / "src").mkdir()
    with pytest.raises(UsageError, match=message):
        find_items(str(tmp_path / "src"), "out")


def test_a_list_keeps_relative_paths_and_roots_absolute_ones(tree, tmp_path, monkeypatch):
    root = tree("a.png", "sub/b.png")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(root)
    lines = ["a.png", "", "./a.png", "sub/b.png", f"{root}/c.png", "s3://bucket/d/e.tif", "https://host/f%20g.jpg?sig=1/2"]
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "file:///h/i.png", "../j.png"]).encode())
    items = {item.name: item for item in listed_items(str(path), "out")}
    above = str(tmp_path).lstrip("/")
    roots = {f"{above}/src/c.lic", f"{above}/j.lic", "h/i.lic"}
    assert set(items) == {"a.lic", "sub/b.lic", "bucket/d/e.lic", "host/f g.lic"} | roots
    assert (items["a.lic"].source, items["a.lic"].size) == (str(root / "a.png"), 3)
    assert items["a.lic"].target == str(root / "out" / "a.lic")
    assert items["bucket/d/e.lic"].source == "s3://bucket/d/e.tif"
    assert items["h/i.lic"].source == "/h/i.png"


@pytest.mark.parametrize(("data", "message"), [(b"\n \n", "the list is empty"), (None, "no such file")])
def test_a_bad_list_is_a_usage_error(tmp_path, data, message):
    if data is not None:
        (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(UsageError, match=message):
        listed_items(str(tmp_path / "list.txt"), "out")


def test_a_picture_cannot_replace_itself(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tree("a.png"))
    (tmp_path / "list.txt").write_text("a.png\n")
    with pytest.raises(UsageError, match=r"a\.png would replace itself"):
        listed_items(str(tmp_path / "list.txt"), ".", suffix=".png")


def test_urls_are_listed_with_their_sizes():
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe({"/items/a.png": b"abcd", "/items/x/b.png": b"", "/other.png": b""})
    items = find_items("memory://items/", "memory://out")
    assert [(item.source, item.target, item.size) for item in items] == [
        ("memory://items/a.png", "memory://out/a.lic", 4),
        ("memory://items/x/b.png", "memory://out/x/b.lic", 0),
    ]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nowhere://bucket/a", "Protocol not known: nowhere"),
        ("zip://a::memory://b.zip", "chained URLs are not supported"),
        ("memory://missing", "no files"),
    ],
)
def test_a_bad_url_is_a_usage_error(url, message):
    with pytest.raises(UsageError, match=message):
        find_items(url, "out")


def test_a_missing_package_names_the_extra(monkeypatch):
    def fail(_):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(UsageError, match=r"s3:// needs a package.*pip install 'learned-image-codec\[s3\]'"):
        find_items("s3://bucket/a", "out")


def test_a_name_that_is_not_unicode(tree, tmp_path):
    root = tree("a.png")
    os.rename(os.fsencode(root / "a.png"), os.fsencode(root) + b"/\xff.png")
    (item,) = find_items(str(root), str(tmp_path))
    assert os.fsencode(item.target) == os.fsencode(tmp_path) + b"/\xff.lic"


def test_where_files_do_not_appear_at_once_they_get_a_temporary_name_first(monkeypatch):
    """A scheme of its own that notes what is done to it."""
    from fsspec.implementations.memory import MemoryFileSystem

    calls = []

    class Slow(MemoryFileSystem):
        protocol = "slow"

        def pipe_file(self, path, value, **options):
            calls.append(("pipe", path))
            super().pipe_file(path, value, **options)

        def mv(self, path1, path2, **options):
            calls.append(("mv", path1, path2))
            if path2.endswith("full"):
                raise OSError(28, "No space left on device")
            super().mv(path1, path2, **options)

    filesystem = Slow()
    monkeypatch.setattr(storage, "_filesystem", lambda url: (filesystem, url.removeprefix("slow:/")))
    storage.write("slow://there/a.lic", b"abc", overwrite=False)
    (_, temporary), moved = calls
    assert temporary.startswith("/there/.codec-")
    assert moved == ("mv", temporary, "/there/a.lic")
    assert filesystem.cat("/there/a.lic") == b"abc"
    with pytest.raises(storage.WriteError, match=r"slow://there/full: cannot be written \(No space left"):
        storage.write("slow://there/full", b"abc", overwrite=True)
    assert filesystem.ls("/there", detail=False) == ["/there/a.lic"]


def test_hidden_files_of_a_url_are_left_out_too(tmp_path):
    filesystem = fsspec.filesystem("memory")
    root = f"/{tmp_path.name}-hidden"
    for name in ("a.png", "._a.png", ".thumbnails/a.png", "sub/.b.png"):
        filesystem.pipe_file(f"{root}/{name}", b"x")
    assert names(find_items(f"memory:/{root}", str(tmp_path / "out"))) == {"a.lic"}
