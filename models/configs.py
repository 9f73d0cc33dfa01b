"""The models by their numbers: what a checkpoint's config says, and what coding needs to know of a model. Holds no networks.

Nothing here imports CompressAI: coding runs from these facts, the integer layers and the programs of a checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bitstream.errors import UsageError
from models.layout import EntropyLayout

TUNES = ("psnr", "ms-ssim")


@dataclass(frozen=True)
class RateConfig:
    """The rate levels of a model; ``lmbda_*`` span them. M is the number of channels of y, N that of z.

    ``tune`` is the measure whose distortion λ weighs: "psnr" or "ms-ssim". ``inverse_gain``: g_s sees latents by gains and
    biases of its own for each level (``models.latents.InverseGain``), instead of by 1/gain alone.
    """

    refinable: ClassVar[bool] = False  # whether ``predict`` takes all symbols from its argument: ``models.refine`` needs it
    bf16_channels_last: ClassVar[bool] = True  # whether bf16 may run so: training does, and g_a and h_a on CPUs fast at it

    M: int = 192
    N: int = 128
    levels: int = 6
    lmbda_min: float = 0.0018
    lmbda_max: float = 0.0483
    tune: str = "psnr"
    inverse_gain: bool = False

    def __post_init__(self) -> None:
        if self.tune not in TUNES:
            raise UsageError(f"tune is {self.tune!r}, expected one of {', '.join(TUNES)}")

    @property
    def lmbda_mid(self) -> float:
        """Return the geometric mean of the span of λ."""
        return math.sqrt(self.lmbda_min * self.lmbda_max)

    def lmbda(self, level: Tensor) -> Tensor:
        """Return λ of (fractional) levels: log-spaced between lmbda_min at level 0 and lmbda_max at the last."""
        span = math.log(self.lmbda_max / self.lmbda_min)
        return self.lmbda_min * torch.exp(level * (span / max(self.levels - 1, 1)))

    def layout(self) -> EntropyLayout:
        """Return the structure of the integer entropy path."""
        raise NotImplementedError

    def hyper_input(self, y: Tensor) -> Tensor:
        """Return what h_a sees of y / std."""
        return y


@dataclass(frozen=True)
class SwiftConfig(RateConfig):
    """Sizes of ``swift``. Channels are at 1/8 (C), 1/16 (D), of y (M), of z (N); ``lmbda_*`` span the rate levels.

    ``order`` is that of the two passes: "crossed", whose context also knows the level, or "checkerboard": the
    default, of checkpoints older than the choice.
    """

    refinable: ClassVar[bool] = True

    C: int = 192
    D: int = 320
    M: int = 320
    N: int = 128
    blocks_8: int = 5
    blocks_16: int = 5
    hyper: int = 192
    features: int = 256
    hidden: int = 384
    levels: int = 9
    lmbda_min: float = 0.000343
    lmbda_max: float = 0.3
    order: Literal["checkerboard", "crossed"] = "checkerboard"

    @property
    def context_levels(self) -> int:
        """Return the number of levels that the context and the parameter network tell apart: all or none."""
        return self.levels if self.order == "crossed" else 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ("checkerboard", "crossed") or self.M % 2:
            raise UsageError(f"order is {self.order!r} of {self.M} channels, expected checkerboard or crossed, and an even M")

    def layout(self) -> EntropyLayout:
        """See ``RateConfig.layout``."""
        return EntropyLayout(
            (2, 2),
            order=self.order,
            context=True,
            parameters=2,
            scales_first=False,
            levelled=self.order == "crossed",
            rdo_strength=0.8,
        )


@dataclass(frozen=True)
class FactorizedConfig(RateConfig):
    """Channels: N of the transforms, M of y."""

    def layout(self) -> EntropyLayout:
        """See ``RateConfig.layout``."""
        return EntropyLayout((), means=False)


@dataclass(frozen=True)
class HyperpriorConfig(RateConfig):
    """Channels: N of the transforms and of z, M of y. ``linear_scale`` is for imported weights."""

    refinable: ClassVar[bool] = True

    means: bool = False
    linear_scale: bool = False

    def layout(self) -> EntropyLayout:
        """See ``RateConfig.layout``."""
        return EntropyLayout((2, 2, 1), leaky=self.means, means=self.means, linear=self.linear_scale)

    def hyper_input(self, y: Tensor) -> Tensor:
        """Return what h_a sees of y / std."""
        return y if self.means else y.abs()


@dataclass(frozen=True)
class ContextConfig(RateConfig):
    """Channels: N of the transforms and of z, M of y.

    ``linear_scale`` and ``plain_rounding`` are for imported weights: the scale is predicted as it is, and y_hat = round(y),
    as CompressAI trains these models, instead of round(y − mean) + mean.
    """

    linear_scale: bool = False
    plain_rounding: bool = False

    def layout(self) -> EntropyLayout:
        """See ``RateConfig.layout``."""
        return EntropyLayout(
            (2, 2, 1),
            order="wavefronts",
            context=True,
            parameters=3,
            leaky=True,
            linear=self.linear_scale,
            mixtures=1 if self.plain_rounding else 0,
        )


@dataclass(frozen=True)
class CheckerboardConfig(ContextConfig):
    """Those of ``ContextConfig``, for ``checkerboard``, whose steps are too long for rows of their own at each position."""

    refinable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plain_rounding:
            raise UsageError("model checkerboard: plain_rounding is true, which only joint has: leave it away")

    def layout(self) -> EntropyLayout:
        """See ``RateConfig.layout``."""
        return dataclasses.replace(super().layout(), order="checkerboard")


@dataclass(frozen=True)
class AttentionConfig(RateConfig):
    """Channels: N of everything (M = N). ``linear_scale`` is for imported weights."""

    bf16_channels_last: ClassVar[bool] = False  # training so corrupts memory on AVX512-BF16 CPUs (torch 2.15, seen three times)

    M: int = 128
    N: int = 128
    mixtures: int = 3
    attention_blocks: bool = True
    linear_scale: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.M != self.N:
            raise UsageError(f"model attention: M is {self.M} and N is {self.N}, expected equal: set both")

    def layout(self) -> EntropyLayout:
        """See ``RateConfig.layout``."""
        return EntropyLayout(
            (1, 2, 1, 2, 1),
            order="wavefronts",
            context=True,
            parameters=3,
            leaky=True,
            linear=self.linear_scale,
            mixtures=self.mixtures,
        )
