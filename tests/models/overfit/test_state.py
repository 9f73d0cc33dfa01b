"""The state of a descent in a file: whole or not there, and only for the descent that it is of."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
import safetensors.torch
import torch

from bitstream.errors import UsageError, WriteError
from models.overfit import moving
from models.overfit.state import _crc, stored_facts

FACTS = {"picture": "0badcafe", "level": "300"}


@pytest.fixture(scope="module")
def state(tiny, tmp_path_factory) -> bytes:
    """A state of quantised networks."""
    with torch.random.fork_rng(devices=[]), mock.patch.object(moving, "STEPS", (9,)):
        torch.manual_seed(12)
        fit = tiny.fit(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), 300, 1)
        fit.run(8)
    path = tmp_path_factory.mktemp("state") / "state"
    fit.save(path, FACTS)
    return path.read_bytes()


@pytest.fixture
def saved(state, tmp_path):
    """The path of a state of quantised networks."""
    path = tmp_path / "state"
    path.write_bytes(state)
    return path


@pytest.fixture
def fresh(tiny):
    """A descent of the same picture at its start."""
    torch.manual_seed(12)
    return tiny.fit(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), 300, 1)


def rewritten(path, change) -> None:
    """Change header and tensors of a state."""
    header, tensors = stored_facts(path), safetensors.torch.load_file(path)
    change(header, tensors)
    header["crc"] = _crc(tensors)
    safetensors.torch.save_file(tensors, path, {"fit": json.dumps(header)})


def test_a_state_holds_its_facts(saved):
    facts = stored_facts(saved)
    assert {name: facts[name] for name in FACTS} == FACTS
    assert facts["iteration"] == 8
    assert [path.name for path in saved.parent.iterdir()] == ["state"]


def test_a_state_of_a_finished_descent_is_measured_alike(saved, fresh):
    fresh.resume(saved, FACTS)
    assert fresh.iteration == 8
    before = fresh.measure()
    fresh.run(8)
    assert fresh.measure() == before


@pytest.mark.parametrize("name", FACTS)
def test_refuses_a_state_of_other_facts(saved, fresh, name):
    with pytest.raises(UsageError, match=f"state of a fit with {name} {FACTS[name]}, here it is other: give the same"):
        fresh.resume(saved, FACTS | {name: "other"})
    with pytest.raises(UsageError, match="state of a fit with model None, here it is this"):
        fresh.resume(saved, FACTS | {"model": "this"})
    assert fresh.iteration == 0


DAMAGE = {
    "no latents": lambda header, tensors: tensors.pop("latents.3/value"),
    "no order": lambda header, tensors: tensors.pop("order"),
    "nothing frozen": lambda header, tensors: tensors.pop("networks/frozen"),
    "no iteration": lambda header, tensors: header.pop("iteration"),
    "no steps": lambda header, tensors: tensors.pop("networks/steps"),
    "another size": lambda header, tensors: tensors.update({"latents.2/mean": torch.zeros(4, 4)}),
    "one value for all": lambda header, tensors: tensors.update({"latents.2/mean": torch.zeros(1, 1)}),
    "too many networks": lambda header, tensors: tensors.update({"networks/value": torch.zeros(9999)}),
    "few frozen": lambda header, tensors: tensors.update({"networks/frozen": torch.zeros(3, dtype=torch.bool)}),
    "one frozen for all": lambda header, tensors: tensors.update({"networks/frozen": torch.ones(1, dtype=torch.bool)}),
    "frozen without steps": lambda header, tensors: tensors.update({"networks/steps": torch.zeros(0, dtype=torch.int32)}),
    "a window that is not": lambda header, tensors: tensors.update({"order": torch.tensor([0, 7])}),
    "iteration a word": lambda header, tensors: header.update(iteration="many"),
    "iteration below zero": lambda header, tensors: header.update(iteration=-1),
    "no jobs": lambda header, tensors: header.pop("jobs_done"),
    "jobs a word": lambda header, tensors: header.update(jobs_done="all"),
    "jobs below zero": lambda header, tensors: header.update(jobs_done=-1),
    "iteration a list": lambda header, tensors: header.update(iteration=[1]),
    "few steps": lambda header, tensors: tensors.update({"networks/steps": torch.tensor([9, 9])}),
    "a step that is not": lambda header, tensors: tensors.update({"networks/steps": torch.tensor([77] * 13)}),
    "steps that are broken": lambda header, tensors: tensors.update({"networks/steps": torch.full((13,), 9.5)}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_refuses_a_damaged_state(saved, fresh, damage):
    rewritten(saved, DAMAGE[damage])
    with pytest.raises(UsageError, match="is not the state of this fit .*: leave --resume away"):
        fresh.resume(saved, FACTS)


@pytest.mark.parametrize("data", [b"", b"no state", bytes(100), b"\xff" * 100])
def test_refuses_what_is_no_state(saved, fresh, data):
    saved.write_bytes(data)
    with pytest.raises(UsageError, match="is not the state of a fit .*leave --resume away"):
        fresh.resume(saved, FACTS)


def test_refuses_a_state_that_is_cut_off_or_of_something_else(saved, fresh, tmp_path):
    saved.write_bytes(saved.read_bytes()[:-10])
    with pytest.raises(UsageError, match="is not the state of a fit"):
        fresh.resume(saved, FACTS)
    for metadata in ({"fit": "[1]"}, {"fit": "no json"}, {"other": "{}"}):
        safetensors.torch.save_file({"x": torch.zeros(1)}, saved, metadata)
        with pytest.raises(UsageError, match="is not the state of a fit"):
            fresh.resume(saved, FACTS)
    with pytest.raises(UsageError, match="is not the state of a fit"):
        fresh.resume(tmp_path / "none", FACTS)


def test_a_state_that_cannot_be_written_is_one_error(saved, fresh):
    with pytest.raises(WriteError, match="cannot be written"):
        fresh.save(saved / "state", FACTS)
    folder = saved.parent / "folder"
    folder.mkdir()
    with pytest.raises(WriteError, match="cannot be written"):
        fresh.save(folder, FACTS)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["folder", "state"]


def test_a_state_is_replaced_at_once_or_not_at_all(saved, fresh, monkeypatch):
    before = saved.read_bytes()

    def full(path, data):
        path.open("wb").write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match=r"cannot be written .No space left on device."):
        fresh.save(saved, FACTS)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["state"]
