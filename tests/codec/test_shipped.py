"""The released checkpoints: each loads, by the SHA-256 of the manifest, within our own limits, and codes."""

from __future__ import annotations

import pytest
import torch

from codec import Codec
from codec.metrics import psnr_db
from models.load import load_model
from models.manifest import installed, manifest


@pytest.mark.parametrize("name", sorted(manifest()))
def test_a_released_checkpoint_codes(name, picture):
    if installed()[name][1] is None:
        pytest.skip("this installation does not carry it")
    if name == "overfit":  # its descents are minutes
        load_model(name, torch.device("cpu"))
        return
    coder, pixels = Codec(name, "cpu"), picture(70, 90)
    files = [coder.encode(pixels, quality=quality) for quality in (0, 100)]
    assert len(files[0]) < len(files[1])
    low, high = (psnr_db(pixels, coder.decode(data, output="numpy")) for data in files)
    assert 15 < low < high
