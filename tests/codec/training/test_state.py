"""State files: written whole or not at all; what is none is refused, and no code in it is run."""

from __future__ import annotations

import pytest
import torch

from bitstream.errors import UsageError, WriteError
from codec.training import state as module
from codec.training.state import KEYS, read_state, write_state

CPU = torch.device("cpu")


@pytest.fixture
def content():
    """A state with all keys and a tensor."""
    return dict.fromkeys(sorted(KEYS), 0) | {"model": {"w": torch.arange(4)}}


def test_reads_what_was_written(tmp_path, content):
    write_state(tmp_path / "a.pt", content)
    loaded = read_state(tmp_path / "a.pt", CPU)
    assert torch.equal(loaded["model"]["w"], torch.arange(4))
    assert loaded.keys() == content.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), WriteError),
        (RuntimeError("PytorchStreamWriter failed writing file"), WriteError),
    ],
)
def test_a_write_that_fails_leaves_the_old_state_alone(tmp_path, content, monkeypatch, error, expected):
    write_state(tmp_path / "a.pt", content)
    before = (tmp_path / "a.pt").read_bytes()

    def fail(state, file):
        file.write(b"half a state")
        raise error

    monkeypatch.setattr(module.torch, "save", fail)
    with pytest.raises(expected):
        write_state(tmp_path / "a.pt", content)
    monkeypatch.undo()
    assert (tmp_path / "a.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


class Trap:
    """Unpickling this would call ``pytest.fail``."""

    def __reduce__(self):
        return pytest.fail, ("code in a state was run",)


def test_no_code_in_a_state_is_run(tmp_path, content):
    torch.save(content | {"model": Trap()}, tmp_path / "a.pt")
    with pytest.raises(UsageError, match="not a training state of this codec"):
        read_state(tmp_path / "a.pt", CPU)


@pytest.mark.parametrize("missing", sorted(KEYS))
def test_a_state_that_lacks_a_key_is_refused(tmp_path, content, missing):
    del content[missing]
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UsageError, match="or one of another version: train again"):
        read_state(tmp_path / "a.pt", CPU)


@pytest.mark.parametrize("data", [b"", b"no state", b"a state", b"empty", b"PK\x03\x04"])
def test_what_is_no_state_is_refused(tmp_path, data):
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(UsageError, match="a.pt: not a training state of this codec"):
        read_state(tmp_path / "a.pt", CPU)


def test_a_truncated_state_is_refused(tmp_path, content):
    write_state(tmp_path / "a.pt", content)
    whole = (tmp_path / "a.pt").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "a.pt").write_bytes(whole[:length])
        with pytest.raises(UsageError):
            read_state(tmp_path / "a.pt", CPU)
