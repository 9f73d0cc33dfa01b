"""``codec doctor``: what is fine is said, what is not is said with its cure."""

from __future__ import annotations

import importlib.metadata
import re

import pytest

from bitstream.engines import torchac
from bitstream.errors import EngineError
from codec import doctor


@pytest.fixture(autouse=True)
def _installed(installed):
    """The tiny checkpoint stands for the released ones."""


def lines(passed):
    return [line for ok, line in doctor.report() if ok is passed]


def test_all_is_well_here():
    good = lines(True)
    for package in ("torch", "numpy", "pillow", "compressai"):
        assert f"{package} {importlib.metadata.version(package)}" in good
    assert any(line.startswith("checkpoint swift (") and "SHA-256 is right" in line for line in good)
    assert any(line.startswith("integer layers run in ") for line in good)


def test_a_missing_engine_is_told_with_its_cure(monkeypatch):
    def fail():
        raise EngineError("torchac's coder could not be compiled (no g++).")

    monkeypatch.setattr(torchac, "_backend", fail)
    (line,) = lines(False)
    assert "could not be compiled" in line
    assert "apt-get install g++" in line


def test_a_damaged_checkpoint_is_told(installed):
    path = installed / "swift.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert any("SHA-256" in line and "reinstall" in line for line in lines(False))


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package-here",))
    assert "no-such-package-here is not installed: pip install no-such-package-here" in lines(False)


def test_all_dependencies_are_looked_at():
    needed = [line for line in importlib.metadata.requires("learned-image-codec") if "extra ==" not in line]
    names = {re.match(r"[\w-]+", line)[0] for line in needed} - {"tomli"}  # of Python 3.10 alone
    assert set(doctor.PACKAGES) == names


def test_headers_that_are_missing_have_a_cure_of_their_own(monkeypatch):
    def fail():
        raise EngineError("torchac's coder could not be compiled (fatal error: Python.h: No such file or directory).")

    monkeypatch.setattr(torchac, "_backend", fail)
    (line,) = lines(False)
    assert "apt-get install python3-dev" in line
    assert "g++" not in line
