"""Pictures as files, and the tiny checkpoint installed in place of the released ones."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from PIL import Image

import checkpoints

ROW = """# The tiny checkpoint under the name of the default model.

[swift]
file = "swift.safetensors"
sha256 = "{sha256}"
model = "swift"
max_level = 768
steps = 12
parameters = 43210
rd = [{{ lmbda = 0.01, bpp = 0.25, psnr_db = 30.5 }}, {{ lmbda = 0.1, bpp = 1.75, psnr_db = 40.0 }}]

[swift.kmac_per_pixel]
encode = 3.5
decode = 2.5
"""


@pytest.fixture
def installed(tmp_path, monkeypatch, tiny_checkpoint) -> Path:
    """A folder of checkpoints in place of the installed one: the tiny one, named "swift" as the default is; the folder."""
    from codec.api import _cached_codec

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    shutil.copy(tiny_checkpoint, folder / "swift.safetensors")
    sha256 = hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    (folder / "manifest.toml").write_text(ROW.format(sha256=sha256))
    monkeypatch.setattr(checkpoints, "FOLDER", folder)
    monkeypatch.setattr("models.manifest.MANIFEST", folder / "manifest.toml")
    _cached_codec.cache_clear()
    yield folder
    _cached_codec.cache_clear()


@pytest.fixture
def png(tmp_path, picture):
    """Return png(h, w, name="in.png", gray=False): the path of a synthetic picture, saved without loss."""

    def save(h: int, w: int, name: str = "in.png", gray: bool = False) -> Path:
        pixels = picture(h, w)
        Image.fromarray(pixels[:, :, 0] if gray else pixels).save(tmp_path / name)
        return tmp_path / name

    return save
