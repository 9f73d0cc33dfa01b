"""``scripts/conformance``: content with the golden files, and with no broken copy of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    command = [sys.executable, "-W", "ignore", str(ROOT / "scripts" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, env=environment)


def test_the_set_conforms_and_a_broken_copy_does_not(golden, tmp_path):
    """One run over a folder that has all golden files and, under other names, broken ones: a start takes seconds."""
    folder = tmp_path / "set"
    shutil.copytree(golden, folder)
    rows = json.loads((folder / "conformance.json").read_text())
    good = {row["file"] for row in rows}
    assert good == {path.name for path in golden.glob("*.lic")}
    template = next(row for row in rows if row["file"] == "v1-65x129-q33.lic")
    picture = np.asarray(Image.open(folder / "v1-65x129-q33.png"))
    data = (folder / template["file"]).read_bytes()

    def broken(name, data=data, png=picture, listed=True, **changes):
        (folder / f"{name}.lic").write_bytes(data)
        if png is not None:
            Image.fromarray(png).save(folder / f"{name}.png")
        if listed:
            rows.append({**template, "file": f"{name}.lic", **changes})

    broken("damaged", data=data[:-1] + bytes([data[-1] ^ 1]))
    broken("unlisted", listed=False)
    broken("crc", symbol_crc="00000000")
    broken("off", png=picture + np.uint8(2) * (picture < 200))
    broken("smaller", png=picture[1:])
    broken("alone", png=None)
    broken("stranger", checkpoint="none.safetensors")
    rows.append({**template, "file": "gone.lic"})
    (folder / "conformance.json").write_text(json.dumps(rows))
    done = script("conformance", folder, "--json", tmp_path / "out.json")
    assert (done.returncode, done.stderr) == (1, "")
    result = json.loads((tmp_path / "out.json").read_text())
    failed = {row["file"]: row["error"] for row in result["results"] if not row["ok"]}
    expected = {
        "damaged": "SHA-256",
        "unlisted": "is not in conformance.json",
        "crc": "header says",
        "off": "pixels are off by",
        "smaller": "decodes to RGB",
        "alone": "no picture beside it",
        "stranger": "needs none.safetensors",
        "gone": "not in the folder",
    }
    assert set(failed) == {f"{name}.lic" for name in expected}
    for name, message in expected.items():
        assert message in failed[f"{name}.lic"]
    assert {row["file"] for row in result["results"] if row["ok"]} == good
    assert result["machine"]["torch"]
    lines = done.stdout.splitlines()
    assert len(lines) == len(result["results"]) + 2
    assert lines[-2].startswith(f"{len(good)} of {len(good) + len(expected)} files conform")


def test_the_script_can_be_run_as_it_is():
    path = ROOT / "scripts" / "conformance"
    assert os.access(path, os.X_OK)
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env python3\n")


@pytest.mark.slow
def test_making_it_again_gives_the_same_symbols(golden, tmp_path):
    for path in [*golden.glob("v1-*1x37-q33.lic"), *golden.glob("tiny-*")]:
        shutil.copy(path, tmp_path)
    assert script("make_conformance.py", tmp_path).returncode == 0
    kept = {row["file"]: row for row in json.loads((golden / "conformance.json").read_text())}
    for row in json.loads((tmp_path / "conformance.json").read_text()):
        assert {**row, "pixels_crc": None} == {**kept[row["file"]], "pixels_crc": None}
