"""Every registered model with its frozen tiny checkpoint, each engine, and a tiny float network with weights that matter."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import checkpoints
from bitstream.engines.reference import ReferenceEngine
from bitstream.engines.torchac import TorchacEngine
from bitstream.errors import EngineError
from models.klt import klt_start
from models.registry import MODELS
from models.runtime import LoadedModel
from models.swift import Swift, SwiftConfig

TINY = SwiftConfig(C=24, D=32, M=32, N=16, blocks_8=1, blocks_16=1, hyper=16, features=16, hidden=24, levels=4)


@pytest.fixture(scope="session", params=sorted(MODELS))
def model(request, golden) -> LoadedModel:
    """A loaded model with its frozen tiny checkpoint, on the CPU. Do not change it."""
    return LoadedModel.load(golden / f"tiny-{request.param}.safetensors", torch.device("cpu"))


@pytest.fixture(scope="session", params=[TorchacEngine, ReferenceEngine], ids=["torchac", "reference"])
def engine(request):
    """An arithmetic-coding engine; torchac's is skipped where it cannot be built."""
    try:
        return request.param()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture
def tensor(picture):
    """Return tensor(h, w, seed=0): the synthetic picture as (1, 3, h, w) float in [0, 1]."""

    def draw(h: int, w: int, seed: int = 0) -> torch.Tensor:
        return torch.from_numpy(picture(h, w, seed)).permute(2, 0, 1)[None].float() / 255

    return draw


def crops(seed: int, count: int = 4, side: int = 64) -> torch.Tensor:
    """Return (count, 3, side, side) crops with waves, an edge and noise, in [0, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side].astype(np.float64)
    out = np.empty((count, 3, side, side))
    for plane in out.reshape(-1, side, side):
        a, b, c, d = rng.uniform(-1, 1, 4)
        wave = 40 * np.sin(x * a / 3 + y * b / 5) + 30 * np.cos((x * c - y * d) / 11) + 60 * (x * a + y * c > 10 * b)
        plane[:] = 128 + wave + rng.normal(0, 6, (side, side))
    return torch.from_numpy(out.round().clip(0, 255) / 255).float()


@pytest.fixture(scope="session", name="crops")
def crops_fixture():
    """Return the function ``crops``."""
    return crops


@pytest.fixture(scope="session")
def network() -> Swift:
    """A tiny float swift: KLT transforms, gains and entropy networks with random weights large enough to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        net = Swift(TINY).eval()
        klt_start(net, [crops(100), crops(200)])
        with torch.no_grad():
            net.parameters_net.out.module.weight.normal_(0, 0.3)
            net.parameters_net.out.module.bias.normal_(0, 0.1)
            net.log2_gain.add_(torch.randn_like(net.log2_gain) * 0.2)
    return net


@pytest.fixture
def installed(tmp_path, monkeypatch, tiny_checkpoint) -> Path:
    """A folder of checkpoints in place of the installed one: a copy of the tiny one under the name "tiny"; its path."""
    target = tmp_path / "tiny.safetensors"
    shutil.copy(tiny_checkpoint, target)
    sha256 = hashlib.sha256(target.read_bytes()).hexdigest()
    (tmp_path / "manifest.toml").write_text(f'[tiny]\nfile = "tiny.safetensors"\nsha256 = "{sha256}"\n')
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    monkeypatch.setattr("models.manifest.MANIFEST", tmp_path / "manifest.toml")
    return target
