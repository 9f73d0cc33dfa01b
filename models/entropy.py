"""The entropy model of ``swift`` at coding time: integers from the z symbols to the choice of every CDF row.

``code_latents`` is the one walk for both directions (FORMAT.md sections 5 and 7). Given latents it encodes, given None it
decodes; the result is the same y_hat, bit for bit, on every machine. This is also the one file where float becomes
integer (``fix_latents``) and integer becomes float (``float_latents``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitstream.coder import SymbolCoder
from bitstream.tables import LOG2_UNITS, POW2_BITS, MasterTable, gaussian_master, pow2_fixed, scale_index
from models.integer import SIGNED_MAX, IntegerLayer, apply_taps, exact_dtype, pixel_shuffle, rshift
from models.rounding import FIXED_BITS, RDO_STRENGTH, choose_symbols
from models.swift import anchor_mask

MEAN_BITS = 10  # the mean output of the parameter network is in 1/1024 of a standard deviation
CONTEXT_BITS = 4  # the context sees y_hat in 1/16 of a standard deviation
MEAN_LIMIT = 2**20
Z_MAX = 127
BAND_EDGES = (16, 28, 40)
LEVEL_UNITS = 256

TAPS_3X3 = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
TAPS_CONTEXT = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy + dx) % 2]  # the other colour


@dataclass(frozen=True)
class Latents:
    """What the encoder's float networks give: y·gain in 1/256 (h·w, M) int64, z symbols (h/4·w/4, N) int64."""

    y: Tensor
    z: Tensor


@dataclass
class IntegerEntropy:
    """Tables and integer layers of one checkpoint. Gains are log2 in 1/256 octave, one row for each level."""

    log2_gain: Tensor  # (levels, M) int64
    log2_gain_z: Tensor  # (levels, N) int64
    log2_std: Tensor  # (M,) int64
    log2_act_z: int
    z_table: MasterTable
    hyper_1: IntegerLayer
    hyper_2: IntegerLayer
    context: IntegerLayer
    parameters_1: IntegerLayer
    parameters_2: IntegerLayer
    rdo_strength: float = RDO_STRENGTH  # of the encoder's dead zone; 0 is plain rounding

    @property
    def max_level(self) -> int:
        """Return the highest level, in 1/256."""
        return (len(self.log2_gain) - 1) * LEVEL_UNITS

    def gains(self, level: int) -> tuple[Tensor, Tensor]:
        """Return log2 of the gains of y (M,) and z (N,) at a level in 1/256, interpolated in integers."""
        low = min(level // LEVEL_UNITS, max(len(self.log2_gain) - 2, 0))
        high = min(low + 1, len(self.log2_gain) - 1)
        fraction = level - low * LEVEL_UNITS
        gain, gain_z = (g[low] + rshift((g[high] - g[low]) * fraction, 8) for g in (self.log2_gain, self.log2_gain_z))
        return gain, gain_z

    def fix_latents(self, y: Tensor, z: Tensor, level: int) -> Latents:
        """Round float y (1, M, h, w) and z (1, N, h/4, w/4) to what the coder takes."""
        gain, gain_z = self.gains(level)
        y_rows = y[0].cpu().double().permute(1, 2, 0).reshape(-1, y.shape[1])
        z_rows = z[0].cpu().double().permute(1, 2, 0).reshape(-1, z.shape[1])
        y_fixed = (y_rows * (gain.double() / LOG2_UNITS + FIXED_BITS).exp2()).round()
        z_symbols = (z_rows * (gain_z.double() / LOG2_UNITS).exp2()).round()
        limit = float(2**30)
        return Latents(
            y_fixed.nan_to_num(0.0).clamp(-limit, limit).long(), z_symbols.nan_to_num(0.0).clamp(-Z_MAX, Z_MAX).long()
        )

    def float_latents(self, y_hat: Tensor, level: int) -> Tensor:
        """Return y_hat / gain as float32 (1, M, h, w) for g_s from integer (h, w, M)."""
        gain, _ = self.gains(level)
        inverse = (-(gain.double() / LOG2_UNITS) - FIXED_BITS).exp2().float()
        return (y_hat.float() * inverse).permute(2, 0, 1)[None]

    @torch.inference_mode()
    def code_latents(self, coder: SymbolCoder, level: int, h: int, w: int, latents: Latents | None) -> Tensor:
        """Encode the latents, or decode them if None; return y_hat (h, w, M) int64 in 1/256.

        h and w are the sides of y, multiples of 4. Raises FormatError or SymbolError from the coder.
        """
        with torch.autocast("cpu", enabled=False):
            dtype = exact_dtype()
            log2_gain, log2_gain_z = self.gains(level)
            z = self._code_z(coder, h // 4, w // 4, latents)
            features = self._features(z, log2_gain_z, h, w, dtype)
            coder.end_chunk()
            y_hat = self._code_y(coder, log2_gain + self.log2_std, features, h, w, latents)
            coder.end_chunk()
        return y_hat

    def _code_z(self, coder: SymbolCoder, h: int, w: int, latents: Latents | None) -> Tensor:
        channels = self.log2_gain_z.shape[1]
        rows = np.tile(np.arange(channels, dtype=np.uint16), h * w)
        symbols = None if latents is None else latents.z.reshape(-1).numpy().astype(np.int16)
        return torch.from_numpy(coder.code(symbols, rows, self.z_table).astype(np.int64)).reshape(h, w, channels)

    def _features(self, z: Tensor, log2_gain_z: Tensor, h: int, w: int, dtype: torch.dtype) -> Tensor:
        multiplier = torch.from_numpy(pow2_fixed((self.log2_act_z - log2_gain_z).numpy()))
        act = rshift(z * multiplier, POW2_BITS).clamp(-SIGNED_MAX, SIGNED_MAX)
        for scale, layer in ((4, self.hyper_1), (2, self.hyper_2)):
            rows = apply_taps(layer, act.to(dtype), TAPS_3X3, torch.arange(h // scale * (w // scale)))
            act = pixel_shuffle(rows, h // scale, w // scale, 2)
        return act.reshape(h * w, -1).to(dtype)

    def _code_y(
        self, coder: SymbolCoder, log2_scale: Tensor, features: Tensor, h: int, w: int, latents: Latents | None
    ) -> Tensor:
        channels = len(log2_scale)
        y_hat = torch.zeros(h * w, channels, dtype=torch.long)
        context_act = torch.zeros(h * w, channels, dtype=features.dtype)
        to_context = torch.from_numpy(pow2_fixed(-log2_scale.numpy()))
        anchors = anchor_mask(h, w).reshape(-1)
        for first_pass in (True, False):
            where = torch.nonzero(anchors if first_pass else ~anchors)[:, 0]
            if first_pass:
                context = features.new_zeros(len(where), features.shape[1])
            else:
                act = rshift(y_hat * to_context, POW2_BITS + FIXED_BITS - CONTEXT_BITS)
                context_act = act.clamp(-SIGNED_MAX, SIGNED_MAX).to(features.dtype).reshape(h, w, channels)
                context = apply_taps(self.context, context_act, TAPS_CONTEXT, where).to(features.dtype)
            means, rows = self._means_rows(torch.cat([features[where], context], dim=1), log2_scale)
            symbols = None
            if latents is not None:
                symbols = choose_symbols((latents.y[where] - means).reshape(-1).numpy(), rows, self.rdo_strength)
            coded = coder.code(symbols, rows, gaussian_master(), BAND_EDGES)
            y_hat[where] = (torch.from_numpy(coded.astype(np.int64)).reshape(-1, channels) << FIXED_BITS) + means
        return y_hat.reshape(h, w, channels)

    def _means_rows(self, inputs: Tensor, log2_scale: Tensor) -> tuple[Tensor, NDArray[np.uint8]]:
        """Return the means (P, M) in 1/256 and the table rows (P·M,) of one pass."""
        out = self.parameters_2(self.parameters_1(inputs).to(inputs.dtype))
        mean, log2_sigma = out.chunk(2, dim=1)
        multiplier = torch.from_numpy(pow2_fixed(log2_scale.numpy()))
        means = rshift(mean * multiplier, POW2_BITS + MEAN_BITS - FIXED_BITS).clamp(-MEAN_LIMIT, MEAN_LIMIT)
        return means, scale_index((log2_sigma + log2_scale).numpy()).reshape(-1)
