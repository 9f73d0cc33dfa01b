"""Ray as the engine of a batch: the same files and rows; a picture that kills its actors is found."""

from __future__ import annotations

import json
import os
from pathlib import Path

import light_worker
import pytest
from PIL import Image

from codec.batch import run
from codec.batch.items import Item
from codec.batch.options import Options

pytest.importorskip("ray", reason="needs the extra ray")
pytest.importorskip("pyarrow", reason="needs the extra ray")
pytestmark = pytest.mark.slow


def rows(out):
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in lines]


def test_files_and_rows_are_those_of_this_process(tmp_path, picture, tiny_checkpoint):
    source = tmp_path / "src"
    source.mkdir()
    for i in range(5):
        Image.fromarray(picture(20 + i, 30, seed=i)).save(source / f"{i}.png")
    (source / "bad.png").write_bytes(b"bad")
    outs = [tmp_path / "here", tmp_path / "ray"]
    for out, engine in zip(outs, ({"workers": 0}, {"workers": 1, "engine": "ray"}), strict=True):
        summary = run(source, out, model=tiny_checkpoint, device="cpu", quality=30, psnr_report=True, **engine)
        assert (summary.done, summary.failed) == (5, 1)
    here, there = ({path.name: path.read_bytes() for path in out.glob("*.lic")} for out in outs)
    assert here == there
    assert len(here) == 5
    assert rows(outs[0]) == rows(outs[1])


def test_a_picture_that_kills_its_actors_has_failed_and_its_neighbours_have_not(tmp_path, monkeypatch):
    from codec.batch import on_ray

    monkeypatch.setenv("PYTHONPATH", str(Path(light_worker.__file__).parent), prepend=os.pathsep)
    names = ["a", "kill", "kill-once", "b"]
    items = [Item(f"/src/{name}.png", str(tmp_path / f"{name}.lic"), f"{name}.lic") for name in names]
    found = on_ray.rows(items, Options(), 1, prepare=light_worker.prepare, process=light_worker.process)
    by_name = {row["target"]: row for row in found}
    assert {name: row["status"] for name, row in by_name.items()} == {
        "a.lic": "done", "kill.lic": "failed", "kill-once.lic": "done", "b.lic": "done",
    }  # fmt: skip
    assert by_name["kill.lic"]["error"].startswith("/src/kill.png: the process that worked on it died twice (an actor of Ray)")
