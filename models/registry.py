"""The models by name: one row each, (constructor, config class)."""

from __future__ import annotations

import dataclasses
from typing import Any

from bitstream.errors import UsageError
from models.attention import Attention, AttentionConfig
from models.checkerboard import Checkerboard
from models.factorized import Factorized, FactorizedConfig
from models.hyperprior import Hyperprior, HyperpriorConfig
from models.joint import ContextConfig, Joint
from models.network import Network
from models.swift import Swift, SwiftConfig

SIZE_MAX = 1024  # of every number in a config: a damaged one must not take all memory
MODELS: dict[str, tuple[type[Network], type[Any]]] = {
    "swift": (Swift, SwiftConfig),
    "factorized": (Factorized, FactorizedConfig),
    "hyperprior": (Hyperprior, HyperpriorConfig),
    "joint": (Joint, ContextConfig),
    "checkerboard": (Checkerboard, ContextConfig),
    "attention": (Attention, AttentionConfig),
}


def build(name: str, config: dict[str, Any] | None = None) -> Network:
    """Return a fresh network; ``config`` changes fields of its config class.

    Raises UsageError for an unknown model or config key.
    """
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}; known models: {', '.join(MODELS)}")
    network, config_class = MODELS[name]
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
    return network(config_class(**(config or {})))
