"""Two pictures, and runs in this process."""

from __future__ import annotations

import pytest
from PIL import Image

from codec.batch import run


@pytest.fixture
def source(tmp_path, picture):
    """A folder with two pictures, one in a folder of its own."""
    folder = tmp_path / "src"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(picture(20, 33)).save(folder / "a.png")
    Image.fromarray(picture(16, 24, seed=1)).save(folder / "sub" / "b.png")
    return folder


@pytest.fixture
def batch(installed):
    """Return batch(source, target, **options): a run in this process, with the tiny checkpoint as the installed one."""
    return lambda source, target, **options: run(source, target, **{"workers": 0, "device": "cpu"} | options)
