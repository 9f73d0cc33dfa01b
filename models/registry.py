"""The models by name: one row each, its config class and where its network is. A network is imported when it is built."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

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

SIZE_MAX = 1024  # of every number in a config: a damaged one must not take all memory
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
        if not value <= SIZE_MAX:
            raise UsageError(f"model {name}: {key} is {value!r}, expected at most {SIZE_MAX}")
    return config_class(**(config or {}))


def build(name: str, config: dict[str, Any] | None = None) -> Network:
    """Return a fresh network of what ``configure`` returns; imports CompressAI. Raises UsageError as it does."""
    cfg = configure(name, config)
    module, class_name = MODELS[name][1].split(":")
    network: Network = getattr(importlib.import_module(module), class_name)(cfg)
    return network
