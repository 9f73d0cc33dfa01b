"""Shared by all tests: the frozen tiny checkpoint and pictures drawn from arithmetic. No network, no data set."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["LIC_CHECKPOINTS"] = os.path.join(
    os.devnull, "none"
)  # what lies there on the developer's machine is no part of a test
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch and numpy count the cores: two workers with two threads each are slow
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import numpy as np
import pytest

MAX_WORKERS = 4  # each holds torch and the checkpoints of its tests: about a gigabyte
GOLDEN = Path(__file__).parent / "golden"
TINY_CHECKPOINT = GOLDEN / "tiny-swift.safetensors"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the workers of ``-n auto``: one for each core that this process may use, a few at most; none for files by name."""
    if config.args and all(".py" in argument for argument in config.args):
        return 0  # few tests: another process would only take longer to start
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_WORKERS)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden files."""
    return GOLDEN


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """A checkpoint of a swift with few channels and random entropy networks, frozen since format version 1."""
    return TINY_CHECKPOINT


@pytest.fixture(scope="session")
def tiny_codec(tiny_checkpoint):
    """A Codec on the CPU with the tiny checkpoint. Do not change its weights: load your own for that."""
    from codec import Codec

    return Codec(tiny_checkpoint, "cpu")


@pytest.fixture
def call_codec():
    """Return call_codec(*arguments, code=0, stdin=b""): the result of ``codec`` in this process. Threads are set back."""
    import torch
    from command import call

    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def picture():
    """Return picture(h, w, seed=0): an (h, w, 3) uint8 array with gradients, waves, an edge and noise."""

    def draw(h: int, w: int, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[0:h, 0:w]
        planes = [
            128 + 50 * np.sin(x * rng.uniform(0.02, 0.3)) + 40 * np.cos(y * rng.uniform(0.02, 0.3)) + 30 * (x + 2 * y > w)
            for _ in range(3)
        ]
        return (np.stack(planes, axis=2) + rng.normal(0, 5, (h, w, 3))).round().clip(0, 255).astype(np.uint8)

    return draw
