"""Which file becomes which: names, trees, and what is refused before any work."""

from __future__ import annotations

import os
import re

import pytest

from bitstream.errors import UsageError
from bitstream.header import SIGNATURE
from codec.pairs import Pair, check_pairs, is_coded, is_picture, many_pairs, single_pair


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with some files."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.PNG", "note.txt", "tree/a.png", "tree/deep/c.jpg", "tree/.d.png", "tree/.e/f.png", "tree/x.lic"):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def pairs(*paths, suffix=".lic", recursive=False, wanted=is_picture, out="out"):
    return many_pairs(paths, out, suffix=suffix, recursive=recursive, wanted=wanted)


def test_names_keep_all_but_the_last_suffix(folder):
    for name in ("a.b.png", "no suffix", "[1]*.png", "-x.png"):
        (folder / name).touch()
    found = pairs("tree/a.png", "b.PNG", "a.b.png", "no suffix", "[1]*.png", "-x.png")
    targets = ["a.lic", "b.lic", "a.b.lic", "no suffix.lic", "[1]*.lic", "-x.lic"]
    assert [pair.target for pair in found] == [os.path.join("out", name) for name in targets]


def test_a_folder_gives_its_tree_in_order_without_hidden_files(folder):
    (folder / "tree" / "z.webp").touch()
    os.symlink("..", folder / "tree" / "loop")
    os.symlink("a.png", folder / "tree" / "link.png")
    os.mkdir(folder / "tree" / "folder.png")
    assert pairs("tree", "b.PNG", recursive=True) == [
        Pair("tree/a.png", "out/a.lic"),
        Pair("tree/link.png", "out/link.lic"),
        Pair("tree/z.webp", "out/z.lic"),
        Pair("tree/deep/c.jpg", "out/deep/c.lic"),
        Pair("b.PNG", "out/b.lic"),
    ]


def test_files_of_ours_are_known_by_suffix_or_first_bytes(folder):
    (folder / "tree" / "coded").write_bytes(SIGNATURE + b"\1")
    found = pairs("tree", recursive=True, suffix=".webp", wanted=is_coded)
    assert found == [Pair("tree/coded", "out/coded.webp"), Pair("tree/x.lic", "out/x.webp")]


def test_a_name_that_is_no_utf_8_is_kept(folder):
    name = os.fsdecode(b"\xff\n.png")
    try:
        (folder / name).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert [os.fsencode(pair.target) for pair in pairs(name)] == [b"out/\xff\n.lic"]


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        (["a.png", "tree/a.png"], {}, "a.png and tree/a.png would both become out/a.lic"),
        (["a.png", "a.png"], {}, "a.png and a.png would both become"),
        (["tree", "tree/x.png"], {"recursive": True}, "tree/x.png: no such file"),
        (["tree"], {}, "tree is a folder: give --recursive"),
        (["*.png"], {}, "*.png: no such file"),
        (["-"], {}, "stdin has no name"),
        (["a.png"], {"out": "-"}, "-o is '-', expected a folder"),
        (["a.png"], {"suffix": "lic"}, "suffix is 'lic', expected the end of a file name, with a dot"),
        (["a.png"], {"suffix": "/../.lic"}, "suffix is '/../.lic'"),
        (["tree/deep"], {"recursive": True, "wanted": is_coded}, "no files of the expected kind are below it"),
    ],
)
def test_what_cannot_be_paired_is_a_usage_error(folder, paths, options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        pairs(*paths, **options)


def test_a_folder_that_cannot_be_read_is_a_usage_error(folder, monkeypatch):
    def deny(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(UsageError, match=r"tree: cannot be read \(Permission denied\)"):
        pairs("tree", recursive=True)


def test_targets_that_exist_are_refused_kept_or_replaced(folder):
    (folder / "out").mkdir()
    for name in ("a.lic", "b.lic"):
        (folder / "out" / name).touch()
    found = pairs("a.png", "b.PNG", "note.txt")
    with pytest.raises(UsageError, match=re.escape("out/a.lic (and 1 more) exists: give -f to replace it, or --skip-existing")):
        check_pairs(found, overwrite=False, skip_existing=False)
    check_pairs(found, overwrite=False, skip_existing=True)
    check_pairs(found, overwrite=True, skip_existing=False)


def test_a_source_is_not_overwritten_by_another(folder):
    os.symlink("a.png", folder / "note.png")
    found = pairs("a.png", "note.txt", out=".", suffix=".png")
    with pytest.raises(UsageError, match="a.png is a source too and would be lost"):
        check_pairs(found, overwrite=True, skip_existing=False)
    with pytest.raises(UsageError, match="note.png is a source too"):  # a link is written through
        check_pairs(found[1:] + [Pair("a.png", "new.png")], overwrite=True, skip_existing=False)


@pytest.mark.parametrize(
    ("out", "message"), [("a.png/x", "a.png is not a folder"), ("taken", "taken/a.lic is a folder, expected a file name")]
)
def test_a_target_that_cannot_be_is_refused(folder, out, message):
    (folder / "taken" / "a.lic").mkdir(parents=True)
    with pytest.raises(UsageError, match=message):
        check_pairs(pairs("a.png", out=out), overwrite=True, skip_existing=True)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a.png"], "1 path is given, expected SOURCE TARGET: for several sources give -o DIR"),
        (["a.png", "b.PNG", "c.lic"], "3 paths are given"),
        (["a.png", "tree"], "tree is a folder, expected a file name: to write into it give -o tree"),
        (["a.png", "new/"], "new/ is a folder"),
        (["tree", "a.lic"], "tree is a folder: give --recursive and -o DIR"),
    ],
)
def test_a_single_pair_needs_two_names_of_files(folder, paths, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        single_pair(paths)


def test_a_single_pair_may_be_the_standard_streams(folder):
    (folder / "-").mkdir()
    assert single_pair(["-", "-"]) == Pair("-", "-")
