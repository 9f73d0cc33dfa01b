"""Runs of a batch in this process: what is made, what is skipped, what is said of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import torch
from manifests import rows
from PIL import Image

from bitstream.errors import CheckpointError, UsageError
from codec import images
from codec.api import Codec
from codec.batch import run, session, storage
from codec.batch.options import Options
from codec.machine import physical_cores
from codec.metrics import psnr_db
from codec.targets import Target

GOLDEN = Path(__file__).parent.parent.parent / "golden"


def made(target):
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*.*") if path.suffix != ".jsonl"}


def test_files_are_what_the_api_gives_and_rows_say_so(batch, source, tmp_path, tiny_codec):
    out = tmp_path / "new" / "out"
    summary = batch(source, out, quality=70, psnr_report=True)
    files = made(out)
    assert files == {
        name: tiny_codec.encode(source / path, quality=70) for name, path in (("a.lic", "a.png"), ("sub/b.lic", "sub/b.png"))
    }
    row = rows(out)["a.lic"]
    n_bytes = len(files["a.lic"])
    seconds, psnr = row.pop("seconds"), row.pop("psnr_db")
    assert 0 < seconds < 60
    decoded = images.load(tiny_codec.decode(files["a.lic"]))
    assert psnr == pytest.approx(psnr_db(images.load(source / "a.png").pixels, decoded.pixels), abs=0.0006)
    assert len(row.pop("fingerprint")) == 16
    assert row == {
        "source": str(source / "a.png"), "target": "a.lic", "source_bytes": (source / "a.png").stat().st_size,
        "target_bytes": n_bytes, "width": 33, "height": 20, "bpp": round(8 * n_bytes / 660, 5), "status": "done", "error": None,
        "model": "swift", "model_id": tiny_codec.model.checkpoint.model_id.hex(), "settings": {"quality": 70.0},
    }  # fmt: skip
    assert (summary.pictures, summary.done, summary.skipped, summary.failed) == (2, 2, 0, 0)
    assert summary.target_bytes == sum(map(len, files.values()))
    assert summary.source_bytes == sum(path.stat().st_size for path in source.rglob("*.png"))


def test_a_worker_has_one_thread_and_the_caller_keeps_his(batch, source, tmp_path, monkeypatch):
    whole, before, seen = Codec.encode, torch.get_num_threads(), []

    def encode(self, path, **options):
        seen.append(torch.get_num_threads())
        return whole(self, path, **options)

    monkeypatch.setattr(Codec, "encode", encode)
    torch.set_num_threads(3)
    try:
        batch(source, tmp_path / "out")
        assert (seen, torch.get_num_threads()) == ([1, 1], 3)
    finally:
        torch.set_num_threads(before)


def test_the_way_back(batch, source, tmp_path, tiny_codec):
    batch(source, tmp_path / "coded")
    summary = batch(tmp_path / "coded", tmp_path / "decoded", decode=True, suffix=".webp")
    assert summary.done == 2
    row = rows(tmp_path / "decoded")["sub/b.webp"]
    with Image.open(tmp_path / "decoded" / "sub" / "b.webp") as image:
        coded = (tmp_path / "coded" / "sub" / "b.lic").read_bytes()
        assert image.tobytes() == tiny_codec.decode(coded).tobytes()
    assert (row["width"], row["height"], row["bpp"]) == (24, 16, round(8 * len(coded) / 384, 5))
    assert (row["settings"], row["model"]) == ({"decode": ".webp"}, "swift")


def test_what_is_done_is_skipped(batch, source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    batch(source, out)
    before, files = rows(out), made(out)
    (out / "sub" / "b.lic").unlink()
    (out / "a.lic").touch()
    told = []
    summary = batch(source, out, quality=50, progress=lambda *facts: told.append(facts))  # 50 is what was meant before
    assert (summary.pictures, summary.done, summary.skipped) == (2, 1, 1)
    assert [(done, total, row and row["target"]) for done, total, row in told] == [(0, 1, None), (1, 1, "sub/b.lic")]
    assert (made(out), rows(out)["a.lic"]) == (files, before["a.lic"])
    monkeypatch.setattr(Codec, "encode", None)
    assert batch(source, out).skipped == 2


@pytest.mark.parametrize("change", ["quality", "effort", "source", "target", "psnr_report"])
def test_what_changed_is_done_again(batch, source, tmp_path, change, picture):
    out, options = tmp_path / "out", {}
    batch(source, out)
    if change == "quality":
        options = {"quality": 20}
    elif change == "effort":
        options = {"effort": 1}
    elif change == "source":
        for path in source.rglob("*.png"):
            Image.fromarray(picture(9, 9)).save(path)
    elif change == "target":
        for path in out.rglob("*.lic"):
            path.write_bytes(b"cut")
    else:
        options = {"psnr_report": True}
    assert batch(source, out, **options).done == 2
    assert all(row["status"] == "done" for row in rows(out).values())
    expected = {path.relative_to(source).with_suffix(".lic").as_posix() for path in source.rglob("*.png")}
    assert set(rows(out)) == expected
    assert batch(source, out, **options).skipped == 2


def test_one_that_fails_stops_no_other_and_is_tried_again(batch, source, tmp_path, picture):
    out = tmp_path / "out"
    (source / "a.png").write_bytes(b"no picture")
    summary = batch(source, out)
    assert (summary.done, summary.failed) == (1, 1)
    row = rows(out)["a.lic"]
    assert row == summary.failures[0]
    assert (row["status"], row["target_bytes"], row["width"]) == ("failed", None, None)
    assert row["error"].startswith(f"{source / 'a.png'}: not a picture that Pillow can read")
    assert made(out).keys() == {"sub/b.lic"}
    Image.fromarray(picture(8, 8)).save(source / "a.png")
    summary = batch(source, out)
    assert (summary.done, summary.skipped, summary.failed, rows(out)["a.lic"]["status"]) == (1, 1, 0, "done")


def test_faults_of_ours_are_failures_of_one_picture(batch, source, tmp_path, monkeypatch):
    whole = Codec.encode

    def encode(self, path, **options):
        if path.name == "a.png":
            raise KeyError("first\nsecond")
        return whole(self, path, **options)

    monkeypatch.setattr(Codec, "encode", encode)
    (failure,) = batch(source, tmp_path / "out").failures
    assert failure["error"] == f"{source / 'a.png'}: an error of the program (KeyError: 'first\\nsecond'): please report it"
    monkeypatch.setattr(Codec, "encode", lambda *_, **__: bytearray(2**62))
    assert "a.png: out of memory" in batch(source, tmp_path / "out").failures[0]["error"]


def test_a_file_that_is_there_is_kept(batch, source, tmp_path):
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "sub" / "b.lic").write_bytes(b"precious")
    (failure,) = batch(source, out).failures
    assert failure["error"].startswith(f"{out / 'sub' / 'b.lic'} exists and is not what these options make: give -f")
    assert (out / "sub" / "b.lic").read_bytes() == b"precious"
    assert batch(source, out).failed == 1
    assert batch(source, out, overwrite=True).done == 1
    assert (out / "sub" / "b.lic").read_bytes() != b"precious"


def test_what_a_killed_run_wrote_but_did_not_note_counts(batch, source, tmp_path):
    out = tmp_path / "out"
    batch(source, out)
    files = made(out)
    (out / "manifest.jsonl").write_bytes((out / "manifest.jsonl").read_bytes()[:-30])
    summary = batch(source, out)
    assert (summary.done, summary.skipped, summary.failed) == (1, 1, 0)
    assert made(out) == files
    assert len(rows(out)) == 2


def test_files_of_other_sources_stay_and_are_not_replaced(batch, source, tmp_path, picture):
    out, other = tmp_path / "out", tmp_path / "other"
    batch(source, out)
    files = made(out)
    other.mkdir()
    for name in ("a", "c"):
        Image.fromarray(picture(12, 12, seed=5)).save(other / f"{name}.png")
    summary = batch(other, out)
    assert (summary.done, [row["target"] for row in summary.failures]) == (1, ["a.lic"])
    assert set(rows(out)) == {"a.lic", "sub/b.lic", "c.lic"}
    assert {name: data for name, data in made(out).items() if name != "c.lic"} == files
    assert batch(source, out).failed == 0


def test_an_interrupted_run_keeps_what_is_true(batch, source, tmp_path):
    """The manifest is whole, and the next run may replace what an older one made with other options."""
    out = tmp_path / "out"
    batch(source, out, quality=20)

    def stop(done, total, row):
        if row is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch(source, out, quality=90, progress=stop)
    found = rows(out)
    assert sorted((row["status"], row["settings"]["quality"]) for row in found.values()) == [("done", 90), ("outdated", 20)]
    summary = batch(source, out, quality=90)
    assert (summary.done, summary.skipped, summary.failed) == (1, 1, 0)
    assert {(row["status"], row["settings"]["quality"]) for row in rows(out).values()} == {("done", 90)}


def test_object_stores(batch, source, tmp_path):
    filesystem = fsspec.filesystem("memory")  # one for all of the process
    for name in ("/batch-src", "/batch-out"):
        if filesystem.exists(name):
            filesystem.rm(name, recursive=True)
    for name in ("a.png", "sub/b.png"):
        filesystem.pipe_file(f"/batch-src/{name}", (source / name).read_bytes())
    filesystem.pipe_file("/batch-src/bad.png", b"bad")
    batch(source, tmp_path / "out")
    summary = run("memory://batch-src", "memory://batch-out", device="cpu")  # in this process by itself
    assert summary.manifest == "memory://batch-out/manifest.jsonl"
    assert (summary.done, summary.failed) == (2, 1)
    assert summary.failures[0]["error"].startswith("memory://batch-src/bad.png: not a picture")
    expected = made(tmp_path / "out")
    assert {name: filesystem.cat(f"/batch-out/{name}") for name in expected} == expected
    summary = run("memory://batch-src", "memory://batch-out", device="cpu")
    assert (summary.done, summary.skipped, summary.failed) == (0, 2, 1)
    for options in ({"workers": 2}, {"engine": "ray"}):
        with pytest.raises(UsageError, match="is seen by this process only"):
            run("memory://batch-src", str(tmp_path), **options)


def test_a_list_with_what_is_missing(batch, source, tmp_path, monkeypatch):
    monkeypatch.chdir(source)
    (tmp_path / "l.txt").write_text("a.png\nmemory://nowhere/x.png\nc.png\n")
    summary = batch(tmp_path / "l.txt", tmp_path / "out")
    assert (summary.pictures, summary.done) == (3, 1)
    errors = sorted(row["error"] for row in summary.failures)
    assert errors[0].startswith(f"{source / 'c.png'}: cannot be read (No such file")
    assert errors[1].startswith("memory://nowhere/x.png: cannot be read")


def test_warnings_are_in_the_rows(batch, source, tmp_path, recwarn):
    with Image.open(source / "a.png") as image:
        image.save(source / "a.png", save_all=True, append_images=[Image.new("RGB", image.size)])
    assert batch(source, tmp_path / "out").warned == 1
    assert "a.png: of an animation (or pages) of 2 frames number 1 is stored" in rows(tmp_path / "out")["a.lic"]["warnings"][0]
    assert not [w for w in recwarn if "animation" in str(w.message)]


def test_options_reach_the_encoder(batch, source, tmp_path, monkeypatch, tiny_codec):
    given = []
    monkeypatch.setattr(Codec, "encode", lambda self, path, **options: given.append(options) or tiny_codec_bytes)
    tiny_codec_bytes = tiny_codec.encode_picture(images.load(source / "a.png"), Target())
    batch(source, tmp_path / "1", psnr=30.0, max_size=5000, effort=2, strip=True, strict=True)
    batch(source, tmp_path / "2", quality=0)
    assert [sorted(options) for options in given[::2]] == [
        ["effort", "limits", "max_size", "psnr", "strict", "strip"],
        ["limits", "quality"],
    ]
    assert rows(tmp_path / "1")["a.lic"]["settings"] == {
        "psnr": 30.0, "max_size": 5000, "effort": 2, "strip": True, "strict": True,
    }  # fmt: skip


def test_other_weights_have_another_fingerprint(tmp_path, tiny_checkpoint, installed):
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other weights")
    prints = [Options(model=model).resolved().fingerprint() for model in (None, "swift", str(tiny_checkpoint), str(other))]
    assert prints[0] == prints[1] == prints[2] != prints[3]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"quality": 101}, UsageError, "quality is 101"),
        ({"quality": 1, "bpp": 1}, UsageError, "quality and bpp are given"),
        ({"decode": True, "quality": 0}, UsageError, "quality is for encoding"),
        ({"decode": True, "psnr_report": True}, UsageError, "psnr_report is for encoding"),
        ({"decode": True, "suffix": "png"}, UsageError, "suffix is 'png', expected one like .png"),
        ({"suffix": ".webp"}, UsageError, "suffix is for decoding"),
        ({"workers": -1}, UsageError, "workers is -1"),
        ({"engine": "dask"}, UsageError, "engine is 'dask', expected local or ray"),
        ({"colour": 1}, UsageError, "option 'colour' is not known: choose from bpp, "),
        ({"listed": "a"}, UsageError, "either a source or a list"),
        ({"model": "none"}, CheckpointError, "no checkpoint is named 'none'"),
        ({"model": str(GOLDEN / "tiny-joint.safetensors"), "effort": 1}, UsageError, "joint has no effort above 0"),
        ({"model": "none.safetensors"}, CheckpointError, "none.safetensors cannot be read"),
    ],
)
def test_what_is_wrong_with_all_is_raised(batch, source, tmp_path, options, kind, message):
    with pytest.raises(kind, match=message):
        batch(source, tmp_path / "out", **options)
    assert made(tmp_path / "out") == {} if (tmp_path / "out").exists() else True


def test_missing_ray_names_the_extra(batch, source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"the engine ray needs a package.*pip install 'learned-image-codec\[ray\]'"):
        batch(source, tmp_path / "out", engine="ray", workers=1)


def test_cores_are_counted_once(monkeypatch):
    assert 1 <= physical_cores() <= os.cpu_count()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    siblings = {0: "0,2\n", 1: "1,3\n", 2: "0,2\n", 3: "1,3\n"}
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: siblings[int(path.parts[5].removeprefix("cpu"))])
    assert physical_cores() == 2


def test_the_parent_imports_no_torch():
    code = "import sys, codec.batch, codec.batch.local; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("says_so", [True, False])
def test_a_store_that_does_not_replace_gets_the_new_file_all_the_same(says_so):
    """smb raises, webhdfs does nothing."""

    class Store:
        def __init__(self):
            self.files = {"t": b"new", "a": b"old"}

        def mv(self, source, target):
            if target in self.files:
                if says_so:
                    raise OSError("exists")
                return
            self.files[target] = self.files.pop(source)

        def exists(self, path):
            return path in self.files

        def rm_file(self, path):
            del self.files[path]

        def invalidate_cache(self):
            pass

    store = Store()
    storage._rename(store, "t", "a")
    assert store.files == {"a": b"new"}


def test_a_file_that_cannot_be_replaced_stays():
    """Where nothing can be moved, and where it can be moved aside alone."""
    for allowed in (0, 1):
        files, moves = {"t": b"new", "a": b"old"}, []

        def mv(source, target, files=files, moves=moves, allowed=allowed):
            moves.append(source)
            if source == "t" or not allowed:
                raise OSError("no right")
            files[target] = files.pop(source)

        store = SimpleNamespace(mv=mv, exists=files.__contains__, rm_file=files.pop, invalidate_cache=lambda: None)
        with pytest.raises(OSError, match="no right"):
            storage._rename(store, "t", "a")
        assert files == {"t": b"new", "a": b"old"}


def test_a_device_that_is_not_here_stops_decoding_at_once(batch, source, tmp_path):
    batch(source, tmp_path / "coded")
    with pytest.raises(UsageError, match="device is 'gpu'"):
        batch(tmp_path / "coded", tmp_path / "out", decode=True, device="gpu")


def test_files_of_a_checkpoint_that_is_not_installed_are_decoded_with_the_one_given(
    batch, source, tmp_path, installed, tiny_checkpoint
):
    coded = tmp_path / "coded"
    batch(source, coded)
    (installed / "manifest.toml").write_text("")
    assert batch(coded, tmp_path / "none", decode=True).failed == 2
    assert batch(coded, tmp_path / "back", decode=True, model=str(tiny_checkpoint)).done == 2


SCRIPT = """
from codec import batch
print(batch.run({source!r}, {target!r}, workers=1, device="cpu"))
"""


@pytest.mark.slow
def test_a_script_that_forgets_its_main_is_told_so(source, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(source=str(source), target=str(tmp_path / "out")))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "a batch began while its own process started: call it below if __name__ == '__main__':" in done.stderr
    assert "a script calls batch.run below if __name__ == '__main__':" in done.stderr.splitlines()[-1]


def test_as_many_workers_as_there_are_cores_and_memory(monkeypatch):
    monkeypatch.setattr(session, "usable_cores", lambda: 6)
    for free, expected in ((None, 6), (2**40, 6), (5 * 2**30 - 1, 4), (0, 1)):
        monkeypatch.setattr(session, "available_memory", lambda free=free: free)
        assert session._default_workers() == expected
