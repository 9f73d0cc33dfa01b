"""The structure of a model's integer entropy path: what is in a checkpoint and how the walk goes. Holds no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.rounding import RDO_STRENGTH

Taps = list[tuple[int, int]]
Order = Literal["one pass", "checkerboard", "crossed", "wavefronts"]

POINT: Taps = [(0, 0)]
TAPS_3X3: Taps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
TAPS_CHECKERBOARD: Taps = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy + dx) % 2]  # the other colour
TAPS_CAUSAL: Taps = [(dy, dx) for dy in range(-2, 1) for dx in range(-2, 3) if (dy, dx) < (0, 0)]  # raster order


@dataclass(frozen=True)
class EntropyLayout:
    """What ``models.entropy`` builds a walk from.

    hyper       factor of the PixelShuffle behind each layer of h_s (1: none); empty: there is no z
    order       in which the positions of y are coded
    context     whether a layer over coded neighbours is part of the prediction: 3×3 if crossed, else 5×5
    parameters  number of 1×1 layers behind features and context; 0: h_s predicts
    leaky       LeakyReLU (0.01) between layers, and none behind h_s and the context, instead of ReLU behind all of them
    means       whether a mean is predicted; else it is 0
    scales_first  whether the float network gives (scales, means, weights), as CompressAI's do, not (means, scales)
    linear      whether scales are predicted as they are, in imported weights, not as log2
    rdo_strength  of the encoder's dead zone (``models.rounding``); no decoder needs it
    levelled    whether what the context sees has a gain for each level, and the context and parameter layers have a bias
    mixtures    components of the mixture that y is coded with, rounded by itself; 0: y − mean is coded with one Gaussian
    """

    hyper: tuple[int, ...]
    order: Order = "one pass"
    context: bool = False
    parameters: int = 0
    leaky: bool = False
    means: bool = True
    scales_first: bool = True
    linear: bool = False
    levelled: bool = False
    mixtures: int = 0
    rdo_strength: float = RDO_STRENGTH

    @property
    def dead_zone_strength(self) -> float:
        """Return the strength of the encoder's dead zone: imported weights have learned to be rounded plainly."""
        return 0.0 if self.linear else self.rdo_strength

    @property
    def act_max(self) -> int:
        """Return the largest magnitude of activations between layers: signed ones have 7 bits, those after ReLU 8."""
        return 127 if self.leaky else 255

    @property
    def taps(self) -> Taps:
        """Return the taps of the context layer."""
        if self.order == "crossed":
            return TAPS_3X3
        return TAPS_CAUSAL if self.order == "wavefronts" else TAPS_CHECKERBOARD

    def has_level_bias(self, name: str) -> bool:
        """Return whether the layer of a name has a bias for each level."""
        return self.levelled and not name.startswith("hyper")

    @property
    def two_passes(self) -> bool:
        """Return whether y has two steps, the first of them without context."""
        return self.order in ("checkerboard", "crossed")

    @property
    def outputs(self) -> int:
        """Return the number of predictions for each element of y: weights (if more than one), means, scales."""
        if self.mixtures:
            return 2 * self.mixtures + (self.mixtures if self.mixtures > 1 else 0)
        return 1 + self.means
