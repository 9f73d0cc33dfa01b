"""The integer tensors of a checkpoint, made into an entropy model (FORMAT.md section 8).

``models.quantise`` is where they come from; here is no float network, so that coding needs none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitstream.errors import CheckpointError
from bitstream.tables import MasterTable, gaussian_master, master_from_mass
from models.entropy import IntegerEntropy
from models.factorized_entropy import FactorizedEntropy
from models.integer import SLOPE_ONE, IntegerLayer
from models.latents import Z_MAX
from models.layout import POINT, TAPS_3X3, EntropyLayout, Taps

PREFIX = "entropy."
LOG2_LIMIT = 2**14  # of gains and their like in a checkpoint: 64 octaves
OFFSET_LIMIT = 2**22  # of medians: products with factors of 2^40 stay below 2^63
BIAS_LIMIT = 2**40
MASS_LIMIT = 2**31  # of one symbol: products of the CDF rows have room for it
EntropyModel = IntegerEntropy | FactorizedEntropy


def layer_names(layout: EntropyLayout) -> list[str]:
    """Return the names of a model's integer layers in the order they run."""
    hyper = [f"hyper_{i}" for i in range(1, len(layout.hyper) + 1)]
    return hyper + ["context"] * layout.context + [f"parameters_{i}" for i in range(1, layout.parameters + 1)]


@dataclass(frozen=True)
class LayerPlan:
    """What the layout says of one integer layer: its taps, the factor of the PixelShuffle behind it, its place in the walk.

    ``blocks`` of the outputs of the last layer are in reverse order.
    """

    name: str
    taps: Taps
    factor: int
    blocks: int
    last: bool


def layer_plans(layout: EntropyLayout) -> list[LayerPlan]:
    """Return the plans of a model's integer layers in the order they run."""
    plans, names = [], layer_names(layout)
    for name in names:
        taps, factor, last = POINT, 1, name == names[-1]
        if name.startswith("hyper"):
            taps, factor = TAPS_3X3, layout.hyper[int(name[6:]) - 1]
        elif name == "context":
            taps = layout.taps
        blocks = layout.outputs // max(layout.mixtures, 1) if last and layout.scales_first else 1
        plans.append(LayerPlan(name, taps, factor, blocks, last))
    return plans


def _integers(part: dict[str, Tensor], name: str, limit: int = 2**62) -> Tensor:
    """Return a tensor as int64. Raises ValueError if it is none of integers, or one exceeds a limit."""
    tensor = part[name]
    if tensor.is_floating_point() or tensor.is_complex() or not tensor.numel():
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected integers")
    if max(-int(tensor.min()), int(tensor.max())) > limit:
        raise ValueError(f"{name} exceeds ±{limit}")
    return tensor.long()


def _load_layer(part: dict[str, Tensor], name: str, *, levelled: bool) -> IntegerLayer:
    bias, multiplier, lo, hi = (_integers(part, f"{name}.{key}") for key in ("bias", "multiplier", "lo", "hi"))
    slope = int(_integers(part, f"{name}.slope")[0]) if f"{name}.slope" in part else SLOPE_ONE
    level_bias = _integers(part, f"{name}.level_bias", BIAS_LIMIT) if levelled else None
    act_max = int(_integers(part, f"{name}.act_max")[0])
    return IntegerLayer(part[f"{name}.weight"], bias, multiplier, lo, hi, act_max, slope, level_bias)


def _y_table(part: dict[str, Tensor]) -> MasterTable:
    return master_from_mass(_integers(part, "y_mass", MASS_LIMIT).numpy()) if "y_mass" in part else gaussian_master()


def load_entropy(tensors: dict[str, Tensor], layout: EntropyLayout) -> EntropyModel:
    """Build the integer entropy model from the tensors of a checkpoint. Raises CheckpointError if one is missing."""
    try:
        part = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
        gain, std = (_integers(part, name, LOG2_LIMIT) for name in ("log2_gain", "log2_std"))
        if not layout.hyper:
            grid, offset = _integers(part, "y_cumulative").numpy(), _integers(part, "y_offset", OFFSET_LIMIT)
            return FactorizedEntropy(
                gain, std, layout, grid=grid, log2_grid=_integers(part, "log2_grid", LOG2_LIMIT), offset=offset
            )
        gain_z = _integers(part, "log2_gain_z", LOG2_LIMIT)
        return IntegerEntropy(
            gain,
            std,
            layout,
            log2_gain_z=gain_z,
            log2_act_z=int(_integers(part, "log2_act_z", LOG2_LIMIT)[0]),
            z_offset=_integers(part, "z_offset", OFFSET_LIMIT)
            if "z_offset" in part
            else torch.zeros(gain_z.shape[1:], dtype=torch.long, device="cpu"),
            z_table=MasterTable(-Z_MAX, _integers(part, "z_cumulative").numpy()),
            layers={name: _load_layer(part, name, levelled=layout.has_level_bias(name)) for name in layer_names(layout)},
            rdo_strength=layout.dead_zone_strength,
            log2_gain_context=_integers(part, "log2_gain_context", LOG2_LIMIT) if layout.levelled else None,
            y_table=_y_table(part),
        )
    except KeyError as error:
        raise CheckpointError(f"checkpoint: tensor {error} is missing: export it again") from error
    except (IndexError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint: a tensor has another shape or value than expected ({error}): export it again"
        ) from error
