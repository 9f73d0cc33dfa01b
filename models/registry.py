"""The models by name: one row each, its config class and where its network is. A network is imported when it is built."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bitstream.errors import UsageError
from models.configs import (
    AttentionConfig,
    CheckerboardConfig,
    ContextConfig,
    FactorizedConfig,
    HyperpriorConfig,
    RateConfig,
    SwiftConfig,
)

if TYPE_CHECKING:
    from models.network import Network

SIZE_MAX = 1024  # of every number in a config; what they make together is bounded where checkpoints are read (models.loading)
DEPTH_MAX = 100  # of those that count blocks: two of them stay below what a program may have
MODELS: dict[str, tuple[type[RateConfig], str]] = {
    "swift": (SwiftConfig, "models.swift:Swift"),
    "factorized": (FactorizedConfig, "models.factorized:Factorized"),
    "hyperprior": (HyperpriorConfig, "models.hyperprior:Hyperprior"),
    "joint": (ContextConfig, "models.joint:Joint"),
    "checkerboard": (CheckerboardConfig, "models.checkerboard:Checkerboard"),
    "attention": (AttentionConfig, "models.attention:Attention"),
}


def configure(name: str, config: dict[str, Any] | None = None) -> RateConfig:
    """Return the config of a model; ``config`` changes fields of its config class.

    Raises UsageError for an unknown model or config key, and for a value that cannot be.
    """
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}; known models: {', '.join(MODELS)}")
    config_class, _ = MODELS[name]
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(config_class)}
    for key, value in (config or {}).items():
        if key not in defaults:
            raise UsageError(f"model {name}: unknown config key {key!r}; known keys: {', '.join(sorted(defaults))}")
        kinds: tuple[type, ...] = (int, float) if isinstance(defaults[key], float) else (type(defaults[key]),)
        if kinds in ((bool,), (str,)) and type(value) in kinds:
            continue
        if type(value) not in kinds or value < 0 or (value == 0 and not key.startswith("blocks")):
            raise UsageError(f"model {name}: {key} is {value!r}, expected a value like {defaults[key]!r}, above 0 if a number")
        largest = DEPTH_MAX if key.startswith("blocks") else SIZE_MAX
        if not value <= largest:
            raise UsageError(f"model {name}: {key} is {value!r}, expected at most {largest}")
    return config_class(**(config or {}))


def build(name: str, config: dict[str, Any] | None = None) -> Network:
    """Return a fresh network of what ``configure`` returns; imports CompressAI. Raises UsageError as it does."""
    cfg = configure(name, config)
    network: Network = _class_of(name)(cfg)
    return network


def skeleton(name: str, config: dict[str, Any] | None = None) -> Network:
    """Return ``build``'s network without memory for its weights, which have shapes alone. Raises UsageError as it does."""
    cfg = configure(name, config)
    network_class = _class_of(name)  # imported before: tensors of modules are not to be without memory
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _OfShapes():
        network: Network = network_class(cfg)
    return network


class _OfShapes(TorchFunctionMode):
    """Let tensors with memory, CompressAI's constants of GDN, meet those without."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(isinstance(value, Tensor) and value.is_meta for value in args):
            args = tuple(value.to("meta") if isinstance(value, Tensor) else value for value in args)
        return func(*args, **(kwargs or {}))


def _class_of(name: str) -> Callable[[RateConfig], Network]:
    module, class_name = MODELS[name][1].split(":")
    network_class: Callable[[RateConfig], Network] = getattr(importlib.import_module(module), class_name)
    return network_class
