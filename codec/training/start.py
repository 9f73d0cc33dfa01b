"""What a training begins with: the weights of another one, from its state or from a release checkpoint, where they fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitstream.errors import UsageError
from codec.training.state import read_state
from models.checkpoint import load_checkpoint
from models.configs import RateConfig
from models.dequantise import dequantise, fit_density
from models.latents import INVERSE_GAIN
from models.loading import load_network
from models.network import Network
from models.registry import configure

log = logging.getLogger(__name__)
ENTROPY = ("h_s.", "entropy_parameters.", "context_prediction.")  # where the scales of imported weights are linear
LEVEL_TABLES = ("log2_gain", *INVERSE_GAIN)  # prefixes of what a network knows of its levels, besides the tables of its layers


def starting_weights(path: Path, model: Network) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a state or checkpoint that fit a model, and what it is.

    Raises UsageError or CheckpointError if it is neither, or nothing fits.
    """
    if path.suffix == ".safetensors":
        source, cfg, origin = released_weights(path)
    else:
        state = read_state(path, torch.device("cpu"))
        recipe = state["recipe"]
        try:
            cfg = configure(recipe["model"], recipe["config"])
        except (KeyError, TypeError) as error:
            raise UsageError(f"{path}: its recipe is of another version ({error!r}): start from a checkpoint") from error
        source, origin = state["ema"], {"model": recipe["model"], "step": state["step"]}
    taken = transferable(model, source | regraded(source, cfg, model.cfg))
    linear = getattr(model.cfg, "linear_scale", False)
    if getattr(cfg, "linear_scale", False) != linear and any(name.startswith(ENTROPY) for name in taken):
        raise UsageError(
            f"{path}: its scales are {'logarithms' if linear else 'linear'}, as the recipe's are not: "
            f"set linear_scale = {str(not linear).lower()} in [config]"
        )
    if cfg.inverse_gain and not model.cfg.inverse_gain and any(name.startswith("g_s.") for name in taken):
        raise UsageError(
            f"{path}: its g_s knows inverse gains, the recipe leaves them out: set inverse_gain = true in [config]"
        )
    if not taken:
        raise UsageError(f"{path}: no layer of it fits {type(model).__name__.lower()}: start from a model of the same widths")
    log.info("%s: %d tensors taken from %s", path, len(taken), origin["model"])
    return taken, origin | {"tensors": len(taken)}


def released_weights(path: Path) -> tuple[dict[str, Tensor], RateConfig, dict[str, Any]]:
    """Return the float tensors that a release checkpoint stands for, its config, and what it is. Raises CheckpointError.

    Transforms and gains are those of the checkpoint; the entropy networks compute what its integer layers do.
    """
    checkpoint = load_checkpoint(path)
    network = load_network(checkpoint)
    dequantise(network, checkpoint.tensors)
    fit_density(network, checkpoint.tensors)
    state = {name: value.detach() for name, value in network.state_dict().items()}
    if not network.layout().hyper:  # the density of y is in the checkpoint as a table alone
        state = {name: value for name, value in state.items() if not name.startswith("entropy_bottleneck.")}
    return state, network.cfg, {"model": checkpoint.model, "checkpoint": checkpoint.sha256[:8]}


def regraded(source: dict[str, Tensor], old: RateConfig, new: RateConfig) -> dict[str, Tensor]:
    """Return the tables (levels, C) of a model at the λ of other levels: linear in log λ, also beyond the outermost levels."""
    if (old.levels, old.lmbda_min, old.lmbda_max) == (new.levels, new.lmbda_min, new.lmbda_max) or old.levels < 2:
        return {}
    at_old, at_new = (cfg.lmbda(torch.arange(cfg.levels, dtype=torch.float64)).log() for cfg in (old, new))
    place = (at_new - at_old[0]) / (at_old[1] - at_old[0])
    low = place.floor().clamp(0, old.levels - 2).long()
    part = (place - low).float()[:, None]
    tables = [name for name in source if name.startswith(LEVEL_TABLES) or name.endswith(".table")]
    return {name: source[name][low] * (1 - part) + source[name][low + 1] * part for name in tables}


def transferable(model: Network, source: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of another model's state that are weights of this one, by name and shape, layer by layer.

    A layer is taken whole or not at all. What is known of levels (equally many of them) and the standard deviations of y are
    taken if all of g_a is.
    """
    own = dict(model.named_parameters())  # no buffers: the mask of a context is not that of another model
    unfit = {name for name, value in own.items() if name not in source or source[name].shape != value.shape}
    layers = {name.rpartition(".")[0] for name in unfit if "." in name}
    unfit |= {name for name in own if name.endswith(".table") and any(f"{layer}.".startswith(name[:-5]) for layer in layers)}
    taken = {name: source[name] for name in own if name not in unfit and name.rpartition(".")[0] not in layers}
    if any(name.startswith("g_a.") and name not in taken for name in own):
        return {name: value for name, value in taken.items() if not name.startswith(LEVEL_TABLES)}
    return taken | {"log2_std": source["log2_std"]}
