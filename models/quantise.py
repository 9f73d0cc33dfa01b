"""Turn trained float entropy networks into the integer layers of ``models.entropy``.

Activations get 8 bits with a scale per channel, calibrated on training pictures and folded into the weights of the next
layer; weights get ``WEIGHT_BITS`` bits with a scale per output channel. All of it is data in the checkpoint: coding does
not depend on how it was chosen.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from bitstream.errors import CheckpointError
from bitstream.tables import LOG2_UNITS, MasterTable, master_from_pmf
from models.entropy import CONTEXT_BITS, MEAN_BITS, MEAN_LIMIT, TAPS_3X3, TAPS_CONTEXT, Z_MAX, IntegerEntropy
from models.integer import ACT_MAX, REQUANT_BITS, SIGNED_MAX, IntegerLayer
from models.layers import weight_and_bias
from models.swift import Swift, anchor_mask

WEIGHT_BITS = 8
LOG2_SCALE_LIMIT = 4096
LAYERS = ("hyper_1", "hyper_2", "context", "parameters_1", "parameters_2")
PREFIX = "entropy."


@torch.inference_mode()
def calibrate(model: Swift, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the largest activation per channel of each integer layer over (B, 3, H, W) crops at all levels."""
    peaks: dict[str, Tensor] = {}

    def note(name: str, x: Tensor) -> None:
        peak = x.abs().transpose(0, 1).flatten(1).quantile(0.9999, dim=1)
        peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

    for i, x in enumerate(batches):
        level = torch.full((len(x),), float(i % model.cfg.levels))
        gain, gain_z = model.gains(level)
        std = model.log2_std.exp2()[:, None, None]
        y = model.g_a(x)
        z = (model.h_a(y / std) * gain_z).round() / gain_z
        hidden = torch.relu(model.h_s.up_1(z))
        features = model.h_s(z)
        zero = torch.zeros_like(features)
        anchors = anchor_mask(y.shape[-2], y.shape[-1])
        means, _ = model.means_scales(features, zero, gain * std)
        y_hat = (y * gain - means).round() + means
        context = torch.relu(model.context(y_hat * anchors / (gain * std))) * ~anchors
        note("z", z)
        note("hyper_1", hidden)
        note("hyper_2", features)
        note("context", context)
        for c in (zero, context):
            note("parameters_1", torch.relu(model.parameters_net.hidden(torch.cat([features, c], 1))))
    return peaks


def _layer(
    layer: nn.Module, taps: list[tuple[int, int]], in_step: Tensor, out_step: Tensor, lo: Tensor, hi: Tensor, act_max: int
) -> IntegerLayer:
    """Quantise a float convolution to a matrix over its taps, tap-major.

    ``in_step`` (C,) and ``out_step`` (O,) are the real values of one integer step of its inputs and outputs.
    """
    weight, bias = weight_and_bias(layer)  # (O, C, k, k)
    centre = weight.shape[-1] // 2
    matrix = torch.cat([weight[:, :, dy + centre, dx + centre].T for dy, dx in taps])  # (len(taps)·C, O)
    folded = matrix.double() * in_step.double().repeat(len(taps))[:, None]
    step = folded.abs().amax(0) / (2 ** (WEIGHT_BITS - 1) - 1)
    step = torch.maximum(step, bias.double().abs() / 2**24).clamp(min=1e-12)  # a channel without weights keeps its bias
    count = folded.shape[1]
    return IntegerLayer(
        weight=(folded / step).round().to(torch.int8),
        bias=(bias.double() / step).round().long(),
        multiplier=(step / out_step.double() * 2.0**REQUANT_BITS).round().clamp(max=2.0**35).long(),
        lo=lo.expand(count).clone(),
        hi=hi.expand(count).clone(),
        act_max=act_max,
    )


def z_master(model: Swift) -> MasterTable:
    """Return the integer CDF rows of z from CompressAI's EntropyBottleneck at the integers −127 … 127."""
    bottleneck = model.entropy_bottleneck
    symbols = torch.arange(-Z_MAX, Z_MAX + 1).float().expand(model.cfg.N, 1, -1)
    pmf = bottleneck._likelihood(symbols)[0][:, 0].detach().double().numpy()
    return master_from_pmf(pmf / np.maximum(pmf.sum(1, keepdims=True), 1.0), -Z_MAX)


@torch.inference_mode()
def quantise(model: Swift, peaks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the integer tensors of a checkpoint, names beginning with ``entropy.``"""
    act = {name: (peak / ACT_MAX).clamp(min=1e-6) for name, peak in peaks.items() if name != "z"}
    log2_act_z = int(torch.floor(LOG2_UNITS * torch.log2(SIGNED_MAX / peaks["z"].max().clamp(min=1e-3))))
    z_step = torch.full((model.cfg.N,), 2.0 ** (-log2_act_z / LOG2_UNITS))
    act_1 = act["hyper_1"].repeat_interleave(4)  # PixelShuffle: four outputs make one channel
    act_2 = act["hyper_2"].repeat_interleave(4)
    inputs = torch.cat([act["hyper_2"], act["context"]])
    m = model.cfg.M
    context_step = torch.full((m,), 2.0**-CONTEXT_BITS)
    out_unit = torch.cat([torch.full((m,), 2.0**-MEAN_BITS), torch.full((m,), 1 / LOG2_UNITS)])
    out_hi = torch.cat([torch.full((m,), MEAN_LIMIT), torch.full((m,), LOG2_SCALE_LIMIT)])
    zero, full = torch.zeros(1, dtype=torch.long), torch.full((1,), ACT_MAX)
    h_s, parameters, point = model.h_s, model.parameters_net, [(0, 0)]
    layers = {
        "hyper_1": _layer(h_s.up_1, TAPS_3X3, z_step, act_1, zero, full, SIGNED_MAX),
        "hyper_2": _layer(h_s.up_2, TAPS_3X3, act["hyper_1"], act_2, zero, full, ACT_MAX),
        "context": _layer(model.context, TAPS_CONTEXT, context_step, act["context"], zero, full, SIGNED_MAX),
        "parameters_1": _layer(parameters.hidden, point, inputs, act["parameters_1"], zero, full, ACT_MAX),
        "parameters_2": _layer(parameters.out, point, act["parameters_1"], out_unit, -out_hi, out_hi, ACT_MAX),
    }
    tensors = {
        "log2_gain": (model.log2_gain * LOG2_UNITS).round().int(),
        "log2_gain_z": (model.log2_gain_z * LOG2_UNITS).round().int(),
        "log2_std": (model.log2_std * LOG2_UNITS).round().int(),
        "log2_act_z": torch.tensor([log2_act_z], dtype=torch.int32),
        "z_cumulative": torch.from_numpy(z_master(model).cumulative.astype(np.int32)),
    }
    for name, layer in layers.items():
        tensors |= {
            f"{name}.weight": layer.weight,
            f"{name}.bias": layer.bias,
            f"{name}.multiplier": layer.multiplier,
            f"{name}.lo": layer.lo,
            f"{name}.hi": layer.hi,
            f"{name}.act_max": torch.tensor([layer.act_max], dtype=torch.int32),
        }
    return {PREFIX + name: tensor for name, tensor in tensors.items()}


def _load_layer(part: dict[str, Tensor], name: str) -> IntegerLayer:
    bias, multiplier, lo, hi = (part[f"{name}.{key}"].long() for key in ("bias", "multiplier", "lo", "hi"))
    return IntegerLayer(part[f"{name}.weight"], bias, multiplier, lo, hi, int(part[f"{name}.act_max"][0]))


def load_entropy(tensors: dict[str, Tensor]) -> IntegerEntropy:
    """Build the integer entropy model from the tensors of a checkpoint. Raises CheckpointError if one is missing."""
    try:
        part = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
        layers = {name: _load_layer(part, name) for name in LAYERS}
        return IntegerEntropy(
            log2_gain=part["log2_gain"].long(),
            log2_gain_z=part["log2_gain_z"].long(),
            log2_std=part["log2_std"].long(),
            log2_act_z=int(part["log2_act_z"][0]),
            z_table=MasterTable(-Z_MAX, part["z_cumulative"].long().numpy()),
            hyper_1=layers["hyper_1"],
            hyper_2=layers["hyper_2"],
            context=layers["context"],
            parameters_1=layers["parameters_1"],
            parameters_2=layers["parameters_2"],
        )
    except KeyError as error:
        raise CheckpointError(f"checkpoint: tensor {error} is missing: export it again") from error
    except (IndexError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint: a tensor has another shape or value than expected ({error}): export it again"
        ) from error
