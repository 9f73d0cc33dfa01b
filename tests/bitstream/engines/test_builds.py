"""Builds of torchac's engine beside each other and after one that was killed: each process ends with a whole engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitstream.engines import torchac
from bitstream.engines.torchac import BUILD_SECONDS, MODULE, TorchacEngine, built_path

ROOT = Path(__file__).resolve().parent.parent.parent.parent
COMPILER = os.environ.get("CXX", "c++")


def leave_build(folder: Path, name: str, age_s: float) -> Path:
    """Make what a killed build leaves: its folder with torch's lock and an object file."""
    build = folder / name
    build.mkdir(parents=True)
    (build / "lock").touch()
    (build / f"{MODULE}.o").write_bytes(b"half")
    os.utime(build, (time.time() - age_s,) * 2)
    return build


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder, and a build that takes no time and leaves no library."""
    monkeypatch.setenv("LIC_CACHE", str(tmp_path))
    monkeypatch.setattr(torchac, "_loaded", None)
    monkeypatch.setattr(torchac, "_BUILD", "raise SystemExit(1)")
    return tmp_path


def test_a_build_removes_what_killed_ones_left_and_no_other(cache):
    here, elsewhere = built_path().parent, cache / f"{MODULE}-of-another-torch"
    stale = [leave_build(folder, "build-killed", 2 * BUILD_SECONDS + 60) for folder in (here, elsewhere)]
    alive = [leave_build(folder, "build-alive", BUILD_SECONDS) for folder in (here, elsewhere)]
    (elsewhere / "engine.so").write_bytes(b"in use")
    os.utime(elsewhere / "engine.so", (0, 0))
    stranger = leave_build(cache / "stranger", "build-old", 10**6)
    with pytest.raises(torchac.EngineError, match="could not be compiled"):
        TorchacEngine()
    assert [path.exists() for path in stale] == [False, False]
    assert all(path.exists() for path in [*alive, stranger, elsewhere / "engine.so"])


def test_a_stale_build_that_cannot_be_removed_is_no_error(cache, monkeypatch):
    stale = leave_build(built_path().parent, "build-killed", 10**6)
    monkeypatch.setattr(torchac.shutil, "rmtree", lambda path, ignore_errors: None)
    with pytest.raises(torchac.EngineError, match="could not be compiled"):
        TorchacEngine()
    assert stale.exists()


START = """
import sys
from pathlib import Path
import numpy as np
from bitstream.engines.torchac import TorchacEngine
Path(sys.argv[1]).touch()
while len(list(Path(sys.argv[1]).parent.glob("*.ready"))) < 2:
    pass
payload = TorchacEngine().encode(np.array([[0, 9, 0]], np.uint16), np.zeros(20, np.uint8), np.array([0, 1] * 10, np.int16))
print(payload.hex())
"""
FAKE = """#!/bin/sh
case "$*" in
  *-shared*) for last; do :; done; sleep 0.5; cp {library} "$last" ;;
  *" -c "*) while [ "$1" != -o ]; do shift; done; touch "$2" ;;
  *) exec {compiler} "$@" ;;
esac
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(COMPILER) or os.name == "nt", reason="no C++ compiler or no sh")
def test_two_processes_that_build_at_once_both_get_a_whole_engine(tmp_path):
    """The compiler is one that copies the library that was built before: only the files' ways are of interest here."""
    TorchacEngine()
    fake = tmp_path / "c++"
    fake.write_text(FAKE.format(library=built_path(), compiler=shutil.which(COMPILER)))
    fake.chmod(0o755)
    cache = tmp_path / "cache"
    environment = dict(os.environ, LIC_CACHE=str(cache), CXX=str(fake), PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    commands = [[sys.executable, "-W", "ignore", "-c", START, str(tmp_path / f"{name}.ready")] for name in "ab"]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
        for command in commands
    ]
    done = [(*process.communicate(timeout=110), process.returncode) for process in running]
    assert [(err, code) for _, err, code in done] == [("", 0)] * 2
    assert done[0][0] == done[1][0]
    [folder] = cache.iterdir()
    assert [path.name for path in folder.iterdir()] == [built_path().name]
    assert (folder / built_path().name).read_bytes() == built_path().read_bytes()
