"""The list of installed checkpoints: ids to names, and a cure in each message."""

from __future__ import annotations

import hashlib

import pytest

from bitstream.errors import CheckpointError
from models.manifest import find_by_id, manifest, name_of


def test_finds_a_checkpoint_by_its_id(installed):
    model_id = hashlib.sha256(installed.read_bytes()).digest()[:4]
    assert name_of(model_id) == find_by_id(model_id) == "tiny"
    assert name_of(model_id[:3] + bytes([model_id[3] ^ 1])) is None
    assert list(manifest()) == ["tiny"]


@pytest.mark.usefixtures("installed")
def test_an_unknown_id_says_the_cure():
    assert name_of(b"\0\1\2\3") is None
    with pytest.raises(CheckpointError, match=r"checkpoint 00010203, which is not installed: .*--model PATH\.safetensors"):
        find_by_id(b"\0\1\2\3")


@pytest.mark.parametrize("content", [None, b"[tiny\n", b"\xff\xfe", b"a=" + b"[" * 50_000])
def test_a_manifest_that_cannot_be_read_is_an_error(installed, content):
    path = installed.with_name("manifest.toml")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="manifest.toml cannot be read .*: reinstall"):
        manifest()
