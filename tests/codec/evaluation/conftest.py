"""A folder of pictures that codecs are measured on."""

from __future__ import annotations

import pytest
from PIL import Image


@pytest.fixture
def pictures(tmp_path, picture):
    """A folder of four small pictures, one in a folder below, one of them gray, and a text."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    Image.fromarray(picture(64, 96)).save(folder / "a.png")
    Image.fromarray(picture(50, 33, 1)[..., 0]).save(folder / "b.png")
    Image.fromarray(picture(170, 161, 2)).save(folder / "c.png")
    Image.fromarray(picture(48, 80, 3)).save(folder / "more" / "d.png")
    (folder / "notes.txt").write_text("no picture")
    return folder
