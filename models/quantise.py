"""Turn trained float entropy networks into the integer tensors of a checkpoint (read by ``models.entropy_tensors``).

Activations get 8 bits (7 and a sign behind a leaky ReLU) with a scale per channel, calibrated on training pictures and
folded into the weights of the next layer; weights get ``WEIGHT_BITS`` bits with a scale per output channel. All of it is
data in the checkpoint: coding does not depend on how it was chosen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitstream.tables import LOG2_UNITS, MASTER_BITS, MasterTable, master_from_pmf
from models.entropy import CONTEXT_BITS, MEAN_BITS, MEAN_LIMIT, PREDICTION_LIMIT
from models.entropy_tensors import PREFIX, layer_names, layer_plans
from models.factorized import Factorized
from models.factorized_entropy import GRID_REACH, MEDIAN_BITS
from models.integer import REQUANT_BITS, SIGNED_MAX, SLOPE_ONE, IntegerLayer
from models.latents import Z_MAX
from models.layers import Float32, level_table, weight_and_bias
from models.layout import EntropyLayout, Taps
from models.network import Network
from models.normalise import peaks_of, usual_peaks

WEIGHT_BITS = 8
LOG2_SCALE_LIMIT = 4096
LEAKY_SLOPE = 655  # 0.01 in 1/65536, nn.LeakyReLU's default


def _activation(layout: EntropyLayout, name: str) -> str:
    """Return what follows a layer: "relu", "leaky" or "none"."""
    if not layout.leaky:
        return "relu"
    return "none" if name in (f"hyper_{len(layout.hyper)}", "context", layer_names(layout)[-1]) else "leaky"


@torch.inference_mode()
def calibrate(model: Network, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the usual peaks per channel behind each entropy layer, and the largest z_hat, over crops (B, 3, H, W)."""
    layout, peaks = model.layout(), defaultdict[str, list[Tensor]](list)

    def note(name: str, x: Tensor) -> None:
        shape = {"relu": torch.relu, "leaky": F.leaky_relu, "none": lambda t: t}[_activation(layout, name)]
        peaks[name].append(peaks_of(shape(x)))

    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: note(name, out))
        for name, layer in model.entropy_layers().items()
    ]
    if layout.hyper:
        hooks.append(model.h_s.register_forward_pre_hook(lambda _, inputs: note("z", inputs[0].abs())))
    try:
        for i, x in enumerate(batches):
            model(x, torch.full((len(x),), float(i % model.cfg.levels)), reconstruct=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.stack(each).amax(0) if name == "z" else usual_peaks(each) for name, each in peaks.items()}


def matrix_of(layer: nn.Module, taps: Taps) -> tuple[Tensor, Tensor]:
    """Return a convolution as a matrix over its taps (len(taps)·C, O), tap-major, and its bias (O,).

    A transposed 5×5 convolution of stride 2 becomes a 3×3 one with four outputs for PixelShuffle per channel.
    """
    weight, bias = weight_and_bias(layer)
    if is_transposed(layer):
        c, o = weight.shape[:2]
        cells = weight.new_zeros(len(taps), c, o, 2, 2)
        for tap, a, b, row, column in transposed_taps(taps):
            cells[tap, :, :, a, b] = weight[:, :, row, column]
        return cells.reshape(len(taps) * c, 4 * o), bias.repeat_interleave(4)
    centre = weight.shape[-1] // 2
    return torch.cat([weight[:, :, dy + centre, dx + centre].T for dy, dx in taps]), bias


def is_transposed(layer: nn.Module) -> bool:
    """Return whether a layer, or the one inside ``Float32``, is a transposed convolution."""
    return isinstance(layer.module if isinstance(layer, Float32) else layer, nn.ConvTranspose2d)


def transposed_taps(taps: Taps) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield the places of a transposed 5×5 kernel of stride 2: number of the tap, row and column in its cell, in the kernel."""
    for tap, (dy, dx) in enumerate(taps):
        for a in (0, 1):
            for b in (0, 1):
                row, column = a + 2 - 2 * dy, b + 2 - 2 * dx
                if row < 5 and column < 5:
                    yield tap, a, b, row, column


def _layer(
    layer: nn.Module, taps: Taps, in_step: Tensor, out_step: Tensor, lo: Tensor, hi: Tensor, act_max: int,
    slope: int = SLOPE_ONE, blocks: int = 1,
) -> IntegerLayer:  # fmt: skip
    """Quantise a float convolution.

    ``in_step`` (C,) and ``out_step`` (O,) are the real values of one integer step of its inputs and outputs; ``blocks`` of its
    outputs are put into reverse order.
    """
    matrix, bias = matrix_of(layer, taps)
    table = torch.zeros_like(bias)[None] if (own := level_table(layer)) is None else own
    matrix, bias, table = (torch.cat(list(reversed(t.chunk(blocks, dim=-1))), dim=-1) for t in (matrix, bias, table))
    folded = matrix.double() * in_step.double().repeat(len(taps))[:, None]
    step = folded.abs().amax(0) / (2 ** (WEIGHT_BITS - 1) - 1)
    largest = torch.cat([bias[None], table]).double().abs().amax(0)
    step = torch.maximum(step, largest / 2**24).clamp(min=1e-12)  # a channel without weights keeps its bias
    count = folded.shape[1]
    return IntegerLayer(
        weight=(folded / step).round().to(torch.int8),
        bias=(bias.double() / step).round().long(),
        multiplier=(step / out_step.double() * 2.0**REQUANT_BITS).round().clamp(max=2.0**35).long(),
        lo=lo.expand(count).clone(),
        hi=hi.expand(count).clone(),
        act_max=act_max,
        slope=slope,
        level_bias=None if own is None else (table.double() / step).round().long(),
    )


def z_master(model: Network) -> MasterTable:
    """Return the integer CDF rows of z from CompressAI's EntropyBottleneck at the integers −127 … 127 around its medians."""
    bottleneck = model.entropy_bottleneck
    symbols = torch.arange(-Z_MAX, Z_MAX + 1).float() + bottleneck.quantiles[:, :, 1:2]
    pmf = bottleneck._likelihood(symbols)[0][:, 0].detach().double().numpy()
    return master_from_pmf(pmf / np.maximum(pmf.sum(1, keepdims=True), 1.0), -Z_MAX)


def predictions(layout: EntropyLayout, m: int) -> tuple[Tensor, Tensor]:
    """Return the unit and the limit of each output of the last layer, in the order weights, means, scales."""
    scale = (2.0**-MEAN_BITS, PREDICTION_LIMIT) if layout.linear else (1 / LOG2_UNITS, LOG2_SCALE_LIMIT)
    k = max(layout.mixtures, 1)
    kinds = (
        [(1 / LOG2_UNITS, LOG2_SCALE_LIMIT)] * k * (k > 1) + [(2.0**-MEAN_BITS, MEAN_LIMIT)] * k * layout.means + [scale] * k
    )
    units, limits = zip(*kinds, strict=True)
    return torch.tensor(units).repeat_interleave(m), torch.tensor(limits).repeat_interleave(m)


@torch.inference_mode()
def quantise(model: Network, peaks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the integer tensors of a checkpoint, names beginning with ``entropy.``"""
    tensors = {
        "log2_gain": (model.log2_gain * LOG2_UNITS).round().int(),
        "log2_std": (model.log2_std * LOG2_UNITS).round().int(),
    }
    if isinstance(model, Factorized):
        tensors |= _densities(model, tensors["log2_gain"][-1])
    else:
        log2_act_z = int(torch.floor(LOG2_UNITS * torch.log2(SIGNED_MAX / peaks["z"].max().clamp(min=1e-3))))
        medians = model.entropy_bottleneck.quantiles[:, 0, 1]
        tensors |= {
            "log2_gain_z": (model.log2_gain_z * LOG2_UNITS).round().int(),
            "log2_act_z": torch.tensor([log2_act_z], dtype=torch.int32),
            "z_cumulative": torch.from_numpy(z_master(model).cumulative.astype(np.int32)),
        }
        if medians.any():
            tensors["z_offset"] = (medians * 256).round().int()
        if model.log2_gain_context is not None:
            tensors["log2_gain_context"] = (model.log2_gain_context * LOG2_UNITS).round().int()
        for name, layer in _layers(model, peaks, log2_act_z).items():
            tensors |= {f"{name}.{key}": getattr(layer, key) for key in ("weight", "bias", "multiplier", "lo", "hi")}
            if layer.level_bias is not None:
                tensors[f"{name}.level_bias"] = layer.level_bias
            tensors[f"{name}.act_max"] = torch.tensor([layer.act_max], dtype=torch.int32)
            if layer.slope != SLOPE_ONE:
                tensors[f"{name}.slope"] = torch.tensor([layer.slope], dtype=torch.int32)
    return {PREFIX + name: tensor for name, tensor in tensors.items()}


def _densities(model: Factorized, log2_grid: Tensor) -> dict[str, Tensor]:
    """Return each channel's cumulative density on half steps of the highest rate around its median."""
    half = 0.5 * (-(log2_grid.double() / LOG2_UNITS)).exp2() / model.log2_std.double().exp2()  # in standard deviations
    points = torch.arange(-GRID_REACH, GRID_REACH + 1).double() * half[:, None] + model.medians[:, :, 0].double()
    cumulative = torch.sigmoid(model.cumulative(points[:, None].float()).double())[:, 0]
    return {
        "y_cumulative": (cumulative * 2.0**MASTER_BITS).round().int().cummax(dim=1).values,
        "log2_grid": log2_grid.clone(),
        "y_offset": (model.medians[:, 0, 0] * 2**MEDIAN_BITS).round().int(),
    }


def _layers(model: Network, peaks: dict[str, Tensor], log2_act_z: int) -> dict[str, IntegerLayer]:
    layout, modules = model.layout(), model.entropy_layers()
    units, limits = predictions(layout, model.cfg.M)
    steps = {name: (peak / layout.act_max).clamp(min=1e-6) for name, peak in peaks.items() if name != "z"}
    step = torch.full((model.cfg.N,), 2.0 ** (-log2_act_z / LOG2_UNITS))
    act_max, layers = SIGNED_MAX, {}
    for plan in layer_plans(layout):
        name, in_step, in_max = plan.name, step, act_max
        if name == "context":
            in_step, in_max = torch.full((model.cfg.M,), 2.0**-CONTEXT_BITS), SIGNED_MAX
        activation = _activation(layout, name)
        low = torch.tensor([0 if activation == "relu" else -layout.act_max])
        lo, hi = (-limits, limits) if plan.last else (low, torch.tensor([layout.act_max]))
        layers[name] = _layer(
            modules[name], plan.taps, in_step, units if plan.last else steps[name].repeat_interleave(plan.factor**2), lo, hi,
            in_max, slope=LEAKY_SLOPE if activation == "leaky" else SLOPE_ONE, blocks=plan.blocks,
        )  # fmt: skip
        if not plan.last:
            step, act_max = (torch.cat([step, steps[name]]) if name == "context" else steps[name]), layout.act_max
    return layers
