"""What of a machine, or of a container on it, work may take."""

from __future__ import annotations

from pathlib import Path

import pytest

from codec import machine


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Return group(**files): the control group that a container sees."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "physical_cores", lambda: 8)

    def write(**files):
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)

    return write


def test_without_a_container_all_cores_are_usable(group):
    assert machine.usable_cores() == 8


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("10000000 100000", 8)]
)
def test_a_container_has_a_share_of_the_cores(group, quota, cores):
    group(cpu_max=f"{quota}\n")
    assert machine.usable_cores() == cores


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="no /proc here")
def test_a_container_has_a_share_of_the_memory(group):
    free = machine.available_memory()
    assert 2**20 < free < 2**50
    group(memory_max="max\n", memory_current="5\n")
    assert machine.available_memory() > 2**20
    group(memory_max="1000000\n", memory_current="900000\n", memory_stat="anon 5\ninactive_file 300000\n")
    assert machine.available_memory() == 400_000
    group(memory_current="2000000\n")
    assert machine.available_memory() == 0


def test_where_nothing_is_told_the_memory_is_unknown(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert machine.available_memory() is None
