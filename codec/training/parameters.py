"""Which parameters of a model learn, and at which rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from codec.training.recipe import Recipe
from models.latents import INVERSE_GAIN

RGB = 3  # channels of a picture


def learns(name: str, only: str) -> bool:
    """Return whether a parameter learns where ``only`` a part of the model does (``Recipe``)."""
    transform = name.startswith(("g_a.", "g_s."))
    if only == "entropy":
        return not transform and name not in ("log2_gain", *INVERSE_GAIN)
    return only == "all" or name in INVERSE_GAIN or (transform and name.endswith("bias"))


def inner_convolutions(model: nn.Module) -> set[str]:
    """Return the names of the weights of g_a and g_s that Muon is for.

    Those of residual blocks; where a model has none, of all convolutions but the two that see pixels.
    """
    weights = {n: p for n, p in model.named_parameters() if n.startswith(("g_a.", "g_s.")) and p.dim() == 4}
    blocks = {name for name in weights if ".blocks_" in name}
    return blocks or {name for name, weight in weights.items() if RGB not in weight.shape[:2]}


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Sort the parameters that learn into trunk, blocks, entropy networks and gains, each with its learning rate.

    Blocks are residual ones, and with ``muon`` all that learns by it (``inner_convolutions``): "muon" says so of a group.
    """
    by_muon = inner_convolutions(model) if recipe.muon else set()
    groups: dict[str, list[nn.Parameter]] = {"trunk": [], "blocks": [], "entropy": [], "gains": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or name.endswith("quantiles"):
            continue  # symbols are round(z): medians and tails are never asked for
        if name.startswith("log2_gain") or name in INVERSE_GAIN:
            groups["gains"].append(parameter)
        elif name.startswith(("g_a.", "g_s.")):
            groups["blocks" if ".blocks_" in name or name in by_muon else "trunk"].append(parameter)
        else:
            groups["entropy"].append(parameter)
    rates = {"trunk": recipe.lr_trunk, "blocks": recipe.lr_blocks, "entropy": recipe.lr_entropy, "gains": recipe.lr_gains}
    return [
        {"params": groups[name], "lr": rates[name], "base_lr": rates[name], "muon": recipe.muon and name == "blocks"}
        for name in groups
        if groups[name]
    ]
