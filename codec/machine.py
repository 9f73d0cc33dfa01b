"""What this machine is: a label of measurements, and what of it work may take: cores and memory, a container's if it is one."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cpu_name() -> str:
    """Return the processor's name where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def physical_cores() -> int:
    """Return the number of cores that this process may use, where Linux tells it those whose threads share one counted once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(path.read_text() if path.exists() else str(cpu))
    return len(cores)


def usable_cores() -> int:
    """Return ``physical_cores``, or fewer where a container may use only a share of their time."""
    quota = _cgroup("cpu.max")  # "200000 100000": microseconds in so many; "max" for all
    if len(quota) != 2 or not quota[0].isdigit():
        return physical_cores()
    return max(min(physical_cores(), int(quota[0]) // int(quota[1])), 1)


def available_memory() -> int | None:
    """Return the bytes that can be taken now, None where Linux does not tell it; a container's limit counts."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    facts = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    if "MemAvailable" not in facts:
        return None
    free = int(facts["MemAvailable"].split()[0]) * 1024
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit and used and limit[0].isdigit():
        cached = dict(zip(_cgroup("memory.stat")[::2], _cgroup("memory.stat")[1::2], strict=False)).get("inactive_file", "0")
        free = min(free, int(limit[0]) - int(used[0]) + int(cached))  # of files that were read: given back when asked for
    return max(free, 0)


def _cgroup(name: str) -> list[str]:
    """Return the words of a file of the control group (version 2) that a container sees as its own; none without."""
    try:
        return (CGROUP / name).read_text().split()
    except OSError:
        return []
