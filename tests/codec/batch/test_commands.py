"""``codec batch`` as a command: what it prints, its exit codes, and a run that is killed and gone on with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from codec.batch import run

COUNT = 80


@pytest.fixture
def call(installed, call_codec):
    """Return call(*arguments, code=0): the result of ``codec batch`` in this process."""
    return partial(call_codec, "batch", "--workers", "0", "--device", "cpu")


@pytest.fixture
def source(tmp_path, picture):
    folder = tmp_path / "src"
    folder.mkdir()
    Image.fromarray(picture(20, 33)).save(folder / "a.png")
    return folder


def test_a_summary_in_a_line_and_for_machines(call, source, tmp_path):
    done = call(source, tmp_path / "out", "-q", 40)
    before, after = (source / "a.png").stat().st_size, (tmp_path / "out" / "a.lic").stat().st_size
    sizes = rf"{before / 1000:.1f} kB to {after} bytes \({100 * after / before:.1f} %\)"
    assert re.fullmatch(rf"1 of 1 pictures: {sizes}, [\d.]+ s, 0 failed\n", done.stdout)
    assert done.stderr == ""
    facts = json.loads(call(source, tmp_path / "out", "-q", 40, "--json").stdout)
    assert facts.pop("seconds") > 0
    assert facts == {
        "pictures": 1, "done": 0, "skipped": 1, "failed": 0, "warned": 0, "source_bytes": 0, "target_bytes": 0,
        "others": {}, "manifest": str(tmp_path / "out" / "manifest.jsonl"),
    }  # fmt: skip


def test_files_that_are_not_taken_are_counted(call, source, tmp_path):
    for name in ("a.HEIC", "b.heic", "notes", "c.txt", "d.xmp", "e.jxl", ".hidden.heic"):
        (source / name).write_bytes(b"x")
    line = call(source, source / "out").stdout
    assert re.search(r"0 failed; 6 other files left out \(2 \.heic, (1 [a-z. ]+, ){3}…\)\n$", line)
    facts = json.loads(call(source, source / "out", "--json").stdout)  # what lies below the target is none of them
    assert facts["others"] == {".heic": 2, "": 1, ".txt": 1, ".xmp": 1, ".jxl": 1}


def test_failures_are_listed_and_exit_with_1(call, source, tmp_path):
    for i in range(52):
        (source / f"bad{i:02}.png").write_bytes(b"")
    done = call(source, tmp_path / "out", code=1)
    lines = done.stderr.splitlines()
    assert len(lines) == 51
    assert lines[0].startswith(f"codec: {source / 'bad00.png'}: not a picture")
    assert lines[50] == f"codec: 2 more failures: {tmp_path / 'out' / 'manifest.jsonl'} has them"
    assert done.stdout.endswith(", 52 failed\n")


def test_a_list_limits_and_a_manifest_elsewhere(call, source, tmp_path):
    (tmp_path / "some").write_text(f"{source / 'a.png'}\n")
    out, book = tmp_path / "out", tmp_path / "book.jsonl"
    call("--list", tmp_path / "some", out, "--max-size", "1KB", "--manifest", book)
    (row,) = map(json.loads, book.read_text().splitlines())
    assert row["settings"] == {"max_size": 1000, "quality": 50.0}
    assert (out / row["target"]).stat().st_size <= 1000
    assert "the limit is 600" in call(source, tmp_path / "small", "--max-pixels", 600, code=1).stderr
    call("--decode", out, tmp_path / "back", "--suffix", ".ppm")
    assert len(list((tmp_path / "back").rglob("a.ppm"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["only"], "1 places are given, expected SRC and DST"),
        (["--list", "l", "a", "b"], "2 places are given, expected DST alone"),
        (["none", "out"], "none: no such folder"),
        ([".", "out", "--bpp", "1", "-q", "1"], "quality and bpp are given"),
        ([".", "out", "--decode", "--strip"], "strip is for encoding"),
        ([".", "out", "--decode", "--suffix", ".xyz"], r"Pillow writes no \.xyz files"),
    ],
)
def test_wrong_usage_exits_with_2(call, arguments, message):
    result = call(*arguments, code=2)
    assert re.fullmatch(f"codec: [^\n]*{message}[^\n]*\n", result.stderr)


def rows(out):
    """Return the rows of a manifest that is perhaps being written."""
    path = out / "manifest.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def children(pid):
    """Return the workers of a process: those that Python spawned for work."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(p) for p in pids if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]


def wait_for(condition, seconds=100):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers as Linux shows them")
def test_a_run_that_is_killed_is_completed_by_the_next(tmp_path, source, picture, tiny_checkpoint):
    Image.fromarray(picture(200, 200)).save(source / "a.png")
    for i in range(COUNT - 1):
        os.link(source / "a.png", source / f"{i}.png")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "codec", "batch", source, out, "--workers", "1", "--model", tiny_checkpoint]
    root = str(Path(__file__).resolve().parents[3])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    parent = subprocess.Popen([*command, "--device", "cpu"], cwd=root, **pipes)
    wait_for(lambda: len(rows(out)) > 2)
    (worker,) = children(parent.pid)
    parent.kill()
    assert parent.communicate(timeout=60) == ("", "")
    wait_for(lambda: not is_alive(worker))
    assert not list(out.glob(".codec-*"))
    before = rows(out)
    assert {row["status"] for row in before} == {"done"}
    assert 2 < len(before) < COUNT
    summary = run(source, out, workers=0, model=tiny_checkpoint, device="cpu")
    assert (summary.pictures, summary.skipped, summary.failed) == (COUNT, len(before), 0)
    after = rows(out)
    assert len(after) == len({row["source"] for row in after}) == len({row["target"] for row in after}) == COUNT
    assert len({path.read_bytes() for path in out.glob("*.lic")}) == 1  # of both kinds of process
    assert len(list(out.glob("*.lic"))) == COUNT


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except FileNotFoundError:
        return False


def test_a_file_that_is_there_is_replaced_by_force_alone(call, source, tmp_path):
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "a.lic"
    target.write_bytes(b"precious")
    assert "give -f" in call(source, tmp_path / "out", code=1).stderr
    assert target.read_bytes() == b"precious"
    call(source, tmp_path / "out", "-f")
    assert target.read_bytes().startswith(b"\x89LIC")


def test_limits_hold_on_the_way_back(call, source, tmp_path):
    call(source, tmp_path / "out")
    for option, value, message in (("--max-pixels", 600, "the limit is 600"), ("--max-memory", "1MB", "--max-memory")):
        assert message in call("--decode", tmp_path / "out", tmp_path / "back", option, value, code=1).stderr
