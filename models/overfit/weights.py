"""The networks as integers: those of the checkpoint at a level, and a picture's differences from them (FORMAT.md section 10).

A parameter is a whole number of 2^-16. Differences are whole numbers of steps, one step for each group of parameters; so
what a decoder computes with, in floating point for synthesis and in integers for the entropy networks, is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitstream.coder import SymbolCoder
from bitstream.errors import CheckpointError, FormatError
from bitstream.laplace import FRACTIONS, SCALES, SPIKES, laplace_master, spiked_master
from bitstream.segments import TableRows
from bitstream.tables import MASTER_BITS, PRECISION, SYMBOL_MAX, MasterTable
from models.overfit.configs import GRIDS, OverfitConfig, levelled
from models.overfit.networks import Parameters

UNITS = 16  # a parameter is in 2^-16
LIMIT = 2**23  # of a parameter: ±128
GAIN_LIMIT = 16 * 256  # of gains in 1/256 octave
STEPS = tuple(range(4, 16))  # logarithms of steps, in 2^-16: 2^-12 … 2^-1
STREAM_BITS = 55.0  # of a stream beside its symbols: range, length, the coder's end; and of its fields
ABSENT = 0  # a group's step field if all its differences are zero
ABSENT_BITS = 14.0  # of its fields
SPIKED = SCALES  # is added to the scale of a group whose zeros are more than those of a Laplace distribution
_FIELDS = MasterTable(0, np.arange(128 + 1, dtype=np.int64)[None] << 20)  # of the first stream: all values are as likely

IntArray = NDArray[np.int64]


def interpolate(table: Tensor, level: int) -> Tensor:
    """Return the row (C,) of a table (levels, C) at a level in 1/256, rounded as FORMAT.md section 7 says."""
    low, f = min(level >> 8, len(table) - 2), level - (min(level >> 8, len(table) - 2) << 8)
    return table[low] + ((table[low + 1] - table[low]) * f + 128 >> 8)


@dataclass(frozen=True)
class BaseNetworks:
    """What a checkpoint says: parameters in 2^-16 by name, of ``levelled`` ones a row for each level; gains (levels, 7)."""

    config: OverfitConfig
    parameters: Parameters
    log2_gain: Tensor

    @classmethod
    def of(cls, config: OverfitConfig, tensors: dict[str, Tensor]) -> BaseNetworks:
        """Take the tensors of a checkpoint. Raises CheckpointError for one that is missing or cannot be."""
        parameters = {
            name: _integers(tensors, f"networks.{name}", (config.levels,) * levelled(name) + shape, LIMIT)
            for name, shape in config.shapes().items()
        }
        return cls(config, parameters, _integers(tensors, "networks.log2_gain", (config.levels, GRIDS), GAIN_LIMIT))

    @classmethod
    def rounded(cls, config: OverfitConfig, parameters: Parameters, log2_gain: Tensor) -> BaseNetworks:
        """Round trained parameters, those of all levels, and log2 of gains."""
        whole = {name: _round(value.detach(), UNITS, LIMIT) for name, value in parameters.items()}
        return cls(config, whole, _round(log2_gain.detach(), 8, GAIN_LIMIT))

    def tensors(self) -> dict[str, Tensor]:
        """Return what ``of`` takes."""
        named = {**self.parameters, "log2_gain": self.log2_gain}
        return {f"networks.{name}": value.to(torch.int32) for name, value in named.items()}

    def at(self, level: int) -> Parameters:
        """Return the parameters of a level in 1/256, in 2^-16."""
        return {name: interpolate(value, level) if levelled(name) else value for name, value in self.parameters.items()}

    def gains(self, level: int) -> Tensor:
        """Return the gains (7,) of a level in 1/256, in 1/256 octave."""
        return interpolate(self.log2_gain, level)


def _round(value: Tensor, bits: int, limit: int) -> Tensor:
    return (value.double() * (1 << bits)).round().clamp(-limit, limit).long()


def _integers(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], limit: int) -> Tensor:
    tensor = tensors.get(name)
    fits = tensor is not None and tensor.dtype == torch.int32 and tuple(tensor.shape) == shape
    if tensor is None or not fits or int(tensor.long().abs().max()) > limit:
        found = "missing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
        found += f", {int(tensor.long().abs().max())} at most" if tensor is not None and fits else ""
        raise CheckpointError(
            f"checkpoint: tensor {name} is {found}, expected int32 {shape} within ±{limit}: damaged, fetch it again"
        )
    return tensor.long()


@dataclass(frozen=True)
class Differences:
    """A picture's differences from the base networks: for each of ``OverfitConfig.groups`` a step and whole numbers of it.

    ``steps`` are logarithms in 2^-16, ``ABSENT`` for a group without differences; ``symbols`` (n,) of a group in the order of
    its names. ``finest`` is the finest grid that is not all zero.
    """

    finest: int
    steps: tuple[int, ...]
    symbols: tuple[NDArray[np.int16], ...] = field(default=())

    @classmethod
    def quantised(cls, config: OverfitConfig, finest: int, offsets: Parameters, steps: tuple[int, ...]) -> Differences:
        """Round offsets of parameters to the step of their group."""
        symbols = [_group(names, offsets, step) for names, step in zip(config.groups(), steps, strict=True)]
        kept = tuple(step if part.any() else ABSENT for step, part in zip(steps, symbols, strict=True))
        return cls(finest, kept, tuple(symbols))

    def rebased(self, config: OverfitConfig, base: Parameters, other: Parameters) -> Differences:
        """Return differences from another level's base, in 2^-16, that add up to nearly the same networks: biases stay.

        Groups without differences stay without.
        """
        parts = []
        for names, step, symbols in zip(config.groups(), self.steps, self.symbols, strict=True):
            change = torch.cat([(base[name] - other[name]).reshape(-1) for name in names]).cpu().numpy()
            moved = symbols + (np.round(change / 2.0**step) if step != ABSENT else 0)
            parts.append(moved.clip(-SYMBOL_MAX, SYMBOL_MAX).astype(np.int16))
        steps = tuple(step if part.any() else ABSENT for step, part in zip(self.steps, parts, strict=True))
        return Differences(self.finest, steps, tuple(parts))

    def added(self, config: OverfitConfig, base: Parameters) -> Parameters:
        """Return base parameters of a level with the differences, in 2^-16."""
        out = dict(base)
        for names, step, symbols in zip(config.groups(), self.steps, self.symbols, strict=True):
            start = 0
            for name in names:
                part = torch.from_numpy(symbols[start : start + base[name].numel()].astype(np.int64)).reshape(base[name].shape)
                out[name] = (base[name] + (part << step if step else 0)).clamp(-LIMIT, LIMIT)
                start += part.numel()
        return out


def _group(names: list[str], offsets: Parameters, step: int) -> NDArray[np.int16]:
    flat = torch.cat([offsets[name].detach().cpu().reshape(-1) for name in names])
    if step == ABSENT:
        return np.zeros(len(flat), np.int16)
    return (flat.double() * 2.0 ** (UNITS - step)).round().clamp(-SYMBOL_MAX, SYMBOL_MAX).numpy().astype(np.int16)


class Shape(NamedTuple):
    """The distribution of a group's symbols: index of a Laplace scale, and the share of zeros that it has more, in 1/32."""

    scale: int
    spike: int


def best_shape(symbols: NDArray[np.int16]) -> tuple[Shape, float]:
    """Return the shape that codes a group's symbols in the fewest bits, and the bits of stream and fields."""
    if not symbols.any():
        return Shape(0, 0), ABSENT_BITS
    values, counts = np.unique(symbols, return_counts=True)
    cumulative = laplace_master().cumulative[::FRACTIONS]
    mass = (cumulative[:, values + SYMBOL_MAX + 1] - cumulative[:, values + SYMBOL_MAX]) / 2.0**MASTER_BITS
    spikes = np.arange(SPIKES)[:, None, None] / SPIKES
    bits = -np.log2(mass * (1 - spikes) + (values == 0) * spikes + 2.0**-PRECISION) @ counts
    spike, scale = np.unravel_index(bits.argmin(), bits.shape)
    return Shape(int(scale), int(spike)), float(bits[spike, scale]) + STREAM_BITS


def _field_rows(count: int) -> TableRows:
    return TableRows(_FIELDS, np.zeros(count, np.uint8))


def code_differences(coder: SymbolCoder, config: OverfitConfig, differences: Differences | None) -> Differences:
    """Code the chunk NETWORKS: streams of fields, then one for each group that is not absent. Raises FormatError."""
    groups, shapes = config.groups(), config.shapes()
    sizes = [sum(math.prod(shapes[name]) for name in names) for names in groups]
    fields, spikes = None, None
    if differences is not None:
        best = [best_shape(part)[0] for part in differences.symbols]
        scales = [scale + SPIKED * (spike > 0) for scale, spike in best]
        fields = np.array([differences.finest, *differences.steps, *scales], np.int16)
        spikes = np.array([spike for _, spike in best if spike], np.int16)
    fields = coder.code_source(fields, _field_rows(1 + 2 * len(groups)))
    finest, steps, scales = int(fields[0]), fields[1 : 1 + len(groups)].tolist(), fields[1 + len(groups) :].tolist()
    spiked = sum(step != ABSENT and scale >= SPIKED for step, scale in zip(steps, scales, strict=True))
    spikes = coder.code_source(spikes, _field_rows(spiked)) if spiked else np.zeros(0, np.int16)
    if not (
        0 <= finest <= GRIDS
        and all(step == ABSENT or step in STEPS for step in steps)
        and all(0 < spike < SPIKES for spike in spikes.tolist())
    ):
        found = [*fields.tolist(), *spikes.tolist()]
        raise FormatError(f"fields of the networks are {found}, which cannot be: the file is damaged")
    symbols, spike_of = [], iter(spikes.tolist())
    for number, (step, scale, size) in enumerate(zip(steps, scales, sizes, strict=True)):
        if step == ABSENT:
            symbols.append(np.zeros(size, np.int16))
            continue
        master = spiked_master(scale % SPIKED, next(spike_of) if scale >= SPIKED else 0)
        given = None if differences is None else differences.symbols[number]
        symbols.append(coder.code_source(given, TableRows(master, np.zeros(size, np.uint8))))
    coder.end_chunk()
    return Differences(finest, tuple(steps), tuple(symbols))
