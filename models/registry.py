"""The models by name: one row each, (constructor, config class)."""

from __future__ import annotations

import dataclasses
from typing import Any

from bitstream.errors import UsageError
from models.swift import Swift, SwiftConfig

MODELS = {"swift": (Swift, SwiftConfig)}


def build(name: str, config: dict[str, Any] | None = None) -> Swift:
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
        kinds = (int, float) if isinstance(defaults[key], float) else (int,)
        if type(value) not in kinds or value < 0 or (value == 0 and not key.startswith("blocks")):
            raise UsageError(f"model {name}: {key} is {value!r}, expected a positive number like {defaults[key]!r}")
    return network(config_class(**(config or {})))
