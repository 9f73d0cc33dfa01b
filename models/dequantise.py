"""The way back of ``models.quantise``: float networks that compute what a checkpoint's integer layers do.

Training goes on from them (``codec train --start``), and the encoder descends on the real bits by them (``models.refine``).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from bitstream.errors import CheckpointError
from bitstream.tables import LOG2_UNITS
from models.entropy import CONTEXT_BITS, IntegerEntropy
from models.entropy_tensors import layer_plans, load_entropy
from models.integer import REQUANT_BITS
from models.latents import Z_MAX, InverseGain
from models.layers import level_table, weight_and_bias
from models.layout import Taps
from models.network import Network
from models.quantise import is_transposed, predictions, transposed_taps


@torch.no_grad()
def dequantise(model: Network, tensors: dict[str, Tensor]) -> None:
    """Set the gains and float entropy networks of a model from the integer tensors of a checkpoint of the same layout.

    They compute what the integer layers compute, but for rounding and clamping. Densities are left as they are:
    ``fit_density`` is for that of z. Raises CheckpointError if a tensor is missing or has another shape.
    """
    entropy = load_entropy(tensors, model.layout())
    if model.cfg.inverse_gain:
        InverseGain(tensors, model.cfg.levels, entropy.log2_std)  # loaded with the transforms, but not checked
    if entropy.log2_gain.shape != model.log2_gain.shape:
        raise CheckpointError(
            f"checkpoint: gains are {tuple(entropy.log2_gain.shape)}, expected {tuple(model.log2_gain.shape)}: export it again"
        )
    try:
        model.log2_gain.copy_(entropy.log2_gain / LOG2_UNITS)
        model.log2_std.copy_(entropy.log2_std / LOG2_UNITS)
        if isinstance(entropy, IntegerEntropy):
            model.log2_gain_z.copy_(entropy.log2_gain_z / LOG2_UNITS)
            if model.log2_gain_context is not None and entropy.log2_gain_context is not None:
                model.log2_gain_context.copy_(entropy.log2_gain_context / LOG2_UNITS)
            model.entropy_bottleneck.quantiles[:, 0, 1] = entropy.z_offset / 256
            _set_layers(model, entropy)
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint: a tensor has another shape than {type(model).__name__} has ({error})") from error


def _set_layers(model: Network, entropy: IntegerEntropy) -> None:
    """Set the float layers, following the real values of one integer step from layer to layer."""
    layout, modules = model.layout(), model.entropy_layers()
    units, _ = predictions(layout, model.cfg.M)
    step = torch.full((model.cfg.N,), 2.0 ** (-entropy.log2_act_z / LOG2_UNITS))
    for plan in layer_plans(layout):
        layer = entropy.layers[plan.name]
        in_step = torch.full((model.cfg.M,), 2.0**-CONTEXT_BITS) if plan.name == "context" else step
        ratio = layer.multiplier.double() / 2.0**REQUANT_BITS  # output steps of one integer step
        matrix = layer.weight.double() * ratio / in_step.double().repeat(len(plan.taps))[:, None]
        out_step = units.double() if plan.last else _free_step(matrix, plan.factor)
        wide = out_step if plan.last else out_step.repeat_interleave(plan.factor**2)
        module, factor = modules[plan.name], ratio * wide
        both = (_reversed(outputs, plan.blocks) for outputs in (matrix * wide, layer.bias.double() * factor))
        _set_matrix(module, plan.taps, *both)
        table = level_table(module)
        if table is not None and layer.level_bias is not None:
            table.copy_(_reversed(layer.level_bias.double() * factor, plan.blocks))
        if not plan.last:
            step = torch.cat([step, out_step.float()]) if plan.name == "context" else out_step.float()


def _reversed(outputs: Tensor, blocks: int) -> Tensor:
    """Return outputs (…, O) with their blocks in reverse order."""
    return torch.cat(list(reversed(outputs.chunk(blocks, dim=-1))), dim=-1)


def _free_step(matrix: Tensor, factor: int) -> Tensor:
    """Return the real value of one step of each hidden activation (O,), from a layer's matrix (K, O·factor²) in such steps.

    The integers do not tell it, and behind a ReLU it is free: each output gets weights of an untrained layer's size.
    """
    size = matrix.reshape(len(matrix), -1, factor**2).square().mean(dim=(0, 2)).sqrt().clamp(min=1e-12)
    return 1 / (size * math.sqrt(3 * len(matrix)))


def _set_matrix(layer: nn.Module, taps: Taps, matrix: Tensor, bias: Tensor) -> None:
    """Do the reverse of ``models.quantise.matrix_of``: set weight and bias of a convolution."""
    weight, own_bias = weight_and_bias(layer)
    if is_transposed(layer):
        c, o = weight.shape[:2]
        cells = matrix.reshape(len(taps), c, o, 2, 2)
        for tap, a, b, row, column in transposed_taps(taps):
            weight[:, :, row, column] = cells[tap, :, :, a, b]
        own_bias.copy_(bias.reshape(-1, 4).mean(1))
        return
    centre = weight.shape[-1] // 2
    for (dy, dx), rows in zip(taps, matrix.split(weight.shape[1]), strict=True):
        weight[:, :, dy + centre, dx + centre] = rows.T
    own_bias.copy_(bias)


def fit_density(model: Network, tensors: dict[str, Tensor], steps: int = 500) -> None:
    """Fit the density of z of a model to the integer CDF rows of a checkpoint: the reverse of ``z_master``.

    Raises CheckpointError if a tensor is missing or has another shape.
    """
    entropy, bottleneck = load_entropy(tensors, model.layout()), model.entropy_bottleneck
    if not isinstance(entropy, IntegerEntropy):
        return
    mass = torch.from_numpy(np.diff(entropy.z_table.cumulative.astype(np.float64), axis=1)).float()[:, None]
    mass /= mass.sum(dim=2, keepdim=True)
    symbols = torch.arange(-Z_MAX, Z_MAX + 1).float() + bottleneck.quantiles[:, :, 1:2].detach()
    density = [p for name, p in bottleneck.named_parameters() if name != "quantiles"]
    optimizer = torch.optim.Adam(density, lr=0.03)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps)
        optimizer.zero_grad()
        likelihood = bottleneck._likelihood(symbols)[0].clamp(min=1e-9)
        (-(mass * likelihood.log2()).sum(dim=2).mean()).backward()
        optimizer.step()
    optimizer.zero_grad()
