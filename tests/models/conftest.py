"""Every registered model with its frozen tiny checkpoint, each engine, and a tiny float network with weights that matter."""

from __future__ import annotations

import copy
import functools
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
from models.latents import INVERSE_GAIN
from models.layers import weight_and_bias
from models.network import Network
from models.registry import MODELS, build
from models.runtime import LoadedModel
from models.swift import Swift, SwiftConfig

TINY = SwiftConfig(C=24, D=32, M=32, N=16, blocks_8=1, blocks_16=1, hyper=16, features=16, hidden=24, levels=4)


@pytest.fixture(scope="session", params=[*sorted(MODELS), "crossed", "inverse-gain"])
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
            weight, bias = weight_and_bias(net.parameters_net.out)
            weight.normal_(0, 0.3)
            bias.normal_(0, 0.1)
            net.log2_gain.add_(torch.randn_like(net.log2_gain) * 0.2)
    return net


SMALL = {"N": 8, "M": 8, "levels": 4}
SMALL_SWIFT = {
    "C": 16,
    "D": 24,
    "M": 10,
    "N": 8,
    "blocks_8": 1,
    "blocks_16": 1,
    "hyper": 8,
    "features": 8,
    "hidden": 12,
    "levels": 4,
}
VARIANTS = {
    "factorized": ("factorized", SMALL),
    "hyperprior": ("hyperprior", SMALL),
    "hyperprior with means": ("hyperprior", SMALL | {"means": True}),
    "hyperprior, imported": ("hyperprior", SMALL | {"linear_scale": True}),
    "joint": ("joint", SMALL),
    "joint, imported": ("joint", SMALL | {"linear_scale": True, "plain_rounding": True}),
    "checkerboard": ("checkerboard", SMALL),
    "attention": ("attention", SMALL),
    "attention, imported": ("attention", SMALL | {"mixtures": 1, "linear_scale": True}),
    "anchor": ("attention", SMALL | {"mixtures": 2, "attention_blocks": False}),
    "factorized, inverse gain": ("factorized", SMALL | {"inverse_gain": True}),
    "hyperprior, inverse gain": ("hyperprior", SMALL | {"inverse_gain": True}),
    "swift, crossed": ("swift", SMALL_SWIFT | {"order": "crossed"}),
    "swift, inverse gain": ("swift", SMALL_SWIFT | {"order": "crossed", "inverse_gain": True}),
}


@functools.cache
def started(variant: str) -> Network:
    """Return the variant with a KLT start and all else fresh; copy it to change it."""
    name, config = VARIANTS[variant]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = build(name, config).eval()
        klt_start(net, [crops(100), crops(200)])
    return net


@functools.cache
def stirred(variant: str) -> Network:
    """Return the variant with a KLT start and an entropy model with weights that matter; copy it to change it."""
    net = copy.deepcopy(started(variant))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        bottleneck = net.entropy_bottleneck
        bottleneck.quantiles[:, 0, 1] = torch.randn(len(bottleneck.quantiles)) * 0.3
        if not net.layout().hyper:
            for parameter in (*bottleneck.matrices, *bottleneck.biases, *bottleneck.factors):
                parameter.add_(0.2 * torch.randn_like(parameter))
            bottleneck.matrices[0].add_(1.5)  # a fresh density is some ten standard deviations wide
        else:
            weight, bias = weight_and_bias(list(net.entropy_layers().values())[-1])
            weight.normal_(0, 0.2)
            bias.add_(0.1 * torch.randn_like(bias))
            if getattr(net.cfg, "linear_scale", False):
                m = net.cfg.M
                bias[:m] = 1.0  # the scales come first
        for name, table in net.named_parameters():
            if name.endswith(".table") or name in ("log2_gain_context", *INVERSE_GAIN):
                table.add_(0.2 * torch.randn_like(table))
        net.log2_gain.add_(0.2 * torch.randn_like(net.log2_gain))
    return net


@pytest.fixture(scope="session", params=VARIANTS)
def variant(request) -> str:
    """A name of VARIANTS."""
    return request.param


@pytest.fixture(scope="session")
def klt_network(variant) -> Network:
    """A small float network of one of the report's models or Cheng's, with a KLT start. Do not change it."""
    return started(variant)


@pytest.fixture(scope="session")
def small_network(variant) -> Network:
    """The same with entropy networks that have random weights large enough to matter. Do not change it."""
    return stirred(variant)


@pytest.fixture(scope="session", name="stirred")
def stirred_fixture():
    """Return the function ``stirred``."""
    return stirred


@pytest.fixture(scope="session")
def fresh():
    """Return fresh(variant, **config): an untrained network of a variant, with fields of its config changed."""

    def make(variant: str, **config) -> Network:
        name, base = VARIANTS[variant]
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return build(name, base | config)

    return make


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
