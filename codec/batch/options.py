"""What shall be done with each picture of a batch: the same for all, plain data that other processes and machines take."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bitstream.errors import CheckpointError, ImageError, UsageError
from bitstream.limits import Limits
from codec.targets import DEFAULT_QUALITY, Target
from models.manifest import manifest

DEFAULT_MODEL = "swift"
MAX_EFFORT = 10  # of models.refine, which needs torch


@dataclass(frozen=True)
class Options:
    """Options of ``Codec.encode``, or, with ``decode``, the suffix of the pictures; raises UsageError where they contradict.

    ``model`` is the default one if None; a decoder's files name theirs. ``psnr_report`` decodes each file again.
    """

    decode: bool = False
    suffix: str = ".png"
    quality: float | None = None
    bpp: float | None = None
    size: int | None = None
    psnr: float | None = None
    max_size: int | None = None
    effort: int = 0
    strip: bool = False
    strict: bool = False
    psnr_report: bool = False
    model: str | None = None
    device: str | None = None
    limits: Limits = Limits()
    weights: str = ""  # SHA-256, by ``resolved``

    def __post_init__(self) -> None:
        for name in (*Target.__dataclass_fields__, "effort"):
            if isinstance(value := getattr(self, name), np.generic):  # JSON takes Python's numbers only
                object.__setattr__(self, name, value.item())
        if type(self.effort) is not int or self.effort not in range(MAX_EFFORT + 1):
            raise UsageError(f"effort is {self.effort!r}, expected 0 … {MAX_EFFORT}")
        if self.model is None and not self.decode:
            object.__setattr__(self, "model", DEFAULT_MODEL)
        if self.model is not None and str(self.model).endswith(".safetensors"):
            object.__setattr__(self, "model", os.path.abspath(self.model))  # workers may run elsewhere
        given = [*self.encode_options(), *(["psnr_report"] if self.psnr_report else [])]
        if self.decode and given:
            raise UsageError(f"{given[0]} is for encoding: leave it away, or leave decode away")
        if not self.decode and self.suffix != ".png":
            raise UsageError("suffix is for decoding: leave it away, or add decode")
        if self.decode:
            self._check_suffix()
        self.target()

    def _check_suffix(self) -> None:
        from codec.images import format_of

        if not self.suffix.startswith(".") or "/" in self.suffix:
            raise UsageError(f"suffix is {self.suffix!r}, expected one like .png")
        try:
            format_of("picture" + self.suffix)
        except ImageError as error:
            raise UsageError(str(error)) from error

    def target(self) -> Target:
        """Return what the files shall be. Raises UsageError."""
        return Target(**{name: getattr(self, name) for name in Target.__dataclass_fields__})

    def encode_options(self) -> dict[str, Any]:
        """Return the arguments of ``Codec.encode``; those that are not set are left to it."""
        goal = {name: getattr(self, name) for name in Target.__dataclass_fields__}
        given = {name: value for name, value in goal.items() if value is not None}
        return given | ({"effort": self.effort} if self.effort else {}) | self.load_options()

    def load_options(self) -> dict[str, Any]:
        """Return those of ``images.load``."""
        return {name: True for name in ("strip", "strict") if getattr(self, name)}

    def settings(self) -> dict[str, Any]:
        """Return what of the options decides the bytes of a target, with the quality that is meant if none is given."""
        if self.decode:
            return {"decode": self.suffix}
        settings = self.encode_options()
        if self.bpp is None and self.size is None and self.psnr is None:
            settings["quality"] = float(DEFAULT_QUALITY if self.quality is None else self.quality)
        return settings

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that are others for other settings or weights."""
        text = json.dumps([self.settings(), self.weights], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def resolved(self) -> Options:
        """Return these options with the SHA-256 of the weights, which is "" where each file names its own.

        Raises CheckpointError for a file that cannot be read; unknown names are left to ``worker.prepare``.
        """
        if self.model is None:
            return self
        if not self.model.endswith(".safetensors"):
            return replace(self, weights=str(manifest().get(self.model, {}).get("sha256", "")))
        try:
            with open(self.model, "rb") as file:
                return replace(self, weights=hashlib.sha256(file.read()).hexdigest())
        except OSError as error:
            raise CheckpointError(f"checkpoint {self.model} cannot be read ({error.strerror})") from error
