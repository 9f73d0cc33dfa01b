"""A tiny checkpoint of ``overfit``: fresh networks with noise on outputs and biases, so that nothing in it is zero.

``tests/golden/tiny-overfit.safetensors`` is one, frozen: tests read that. What they change they make here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from bitstream.tables import constants_crc
from models.checkpoint import save_checkpoint
from models.overfit.configs import MODEL, OverfitConfig
from models.overfit.networks import Analysis, Parameters, fresh_gains, fresh_parameters
from models.overfit.weights import BaseNetworks

CONFIG = OverfitConfig(width_fine=3, width=4, hidden=6, analysis=8, levels=3)
NOISE = {".out": 0.15, ".bias_1": 0.3, ".bias_2": 0.3, ".bias_3": 0.1, ".conv_3": 0.05, "upsample": 0.02, "skip": 0.02}


def stirred_parameters(config: OverfitConfig = CONFIG, seed: int = 1) -> Parameters:
    """Return parameters of all levels with noise where fresh ones are zero or regular."""
    parameters, generator = fresh_parameters(config, seed), torch.Generator().manual_seed(seed)
    for name, value in parameters.items():
        deviation = next((number for end, number in NOISE.items() if name.endswith(end)), 0.0)
        value += deviation * torch.randn(value.shape, generator=generator)
        if name.endswith((".bias_1", ".bias_2")) and name.startswith("grid"):
            value += 0.8  # with so few hidden channels, else all of one are dead
    return parameters


def stirred_gains(config: OverfitConfig = CONFIG, seed: int = 2) -> Tensor:
    """Return log2 of gains (levels, 7) with noise."""
    gains = fresh_gains(config)
    return gains + 0.1 * torch.randn(gains.shape, generator=torch.Generator().manual_seed(seed))


def tiny_networks() -> BaseNetworks:
    """Return the networks of the tiny checkpoint."""
    return BaseNetworks.rounded(CONFIG, stirred_parameters(), stirred_gains())


def write_tiny_overfit(path: Path, networks: BaseNetworks | None = None) -> None:
    """Write the tiny checkpoint, or one of other networks: with an analysis in float16."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        analysis = Analysis(CONFIG.analysis)
        for layer in (analysis.head, *analysis.heads):
            layer.weight.normal_(0, 0.02)
            layer.bias.normal_(0, 0.02)
    tensors = (networks or tiny_networks()).tensors()
    tensors |= {f"analysis.{name}": value.half() for name, value in analysis.state_dict().items()}
    save_checkpoint(path, model=MODEL, config=dataclasses.asdict(CONFIG), tensors=tensors, constants_crc=constants_crc())
