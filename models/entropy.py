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
from bitstream.errors import CheckpointError
from bitstream.tables import LOG2_UNITS, POW2_BITS, MasterTable, gaussian_master, pow2_fixed, scale_index
from models.integer import ACT_MAX, SIGNED_MAX, Arithmetic, IntegerLayer, apply_taps, exact_arithmetic, pixel_shuffle, rshift
from models.rounding import FIXED_BITS, RDO_STRENGTH, choose_symbols
from models.swift import anchor_mask

MEAN_BITS = 10  # the mean output of the parameter network is in 1/1024 of a standard deviation
CONTEXT_BITS = 4  # the context sees y_hat in 1/16 of a standard deviation
MEAN_LIMIT = 2**20
Z_MAX = 127
BAND_EDGES = (6, 16, 28, 40)
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

    def __post_init__(self) -> None:
        if self.log2_gain.dim() != 2 or self.log2_gain_z.dim() != 2 or not len(self.log2_gain):
            raise CheckpointError("checkpoint: gains are not one row for each of one or more levels: export it again")
        if not (np.diff(self.z_table.cumulative, axis=1) > 0).all():
            raise CheckpointError("checkpoint: a CDF row of z does not rise: damaged, export it again")
        m, n, features = self.log2_gain.shape[1], self.log2_gain_z.shape[1], self.context.weight.shape[1]
        hidden = self.parameters_1.weight.shape[1]
        expected = {
            "log2_gain_z": (self.log2_gain_z.shape, (len(self.log2_gain), n)),
            "log2_std": (self.log2_std.shape, (m,)),
            "z_cumulative": (self.z_table.cumulative.shape, (n, 2 * Z_MAX + 2)),
            "hyper_1": (self.hyper_1.weight.shape, (len(TAPS_3X3) * n, self.hyper_1.weight.shape[1])),
            "hyper_2": (self.hyper_2.weight.shape, (len(TAPS_3X3) * self.hyper_1.weight.shape[1] // 4, 4 * features)),
            "context": (self.context.weight.shape, (len(TAPS_CONTEXT) * m, features)),
            "parameters_1": (self.parameters_1.weight.shape, (2 * features, hidden)),
            "parameters_2": (self.parameters_2.weight.shape, (hidden, 2 * m)),
        }
        for name, (found, wanted) in expected.items():
            if tuple(found) != wanted:
                raise CheckpointError(f"checkpoint: {name} is {tuple(found)}, expected {wanted}: damaged, export it again")

        for name in ("hyper_1", "hyper_2", "context", "parameters_1"):  # their outputs are the next layer's 8-bit inputs
            layer = getattr(self, name)
            if int(layer.lo.min()) < 0 or int(layer.hi.max()) > ACT_MAX:
                raise CheckpointError(f"checkpoint: outputs of {name} leave 0 … {ACT_MAX}: damaged, export it again")
        kinds = {
            "hyper_1": SIGNED_MAX,
            "hyper_2": ACT_MAX,
            "context": SIGNED_MAX,
            "parameters_1": ACT_MAX,
            "parameters_2": ACT_MAX,
        }
        for name, act_max in kinds.items():
            if getattr(self, name).act_max != act_max:
                raise CheckpointError(f"checkpoint: inputs of {name} are not those of ±{act_max}: damaged, export it again")

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
        fixed, symbols = (
            (x[0].cpu().float().permute(1, 2, 0).reshape(-1, x.shape[1]) * (log2.double() / LOG2_UNITS).exp2().float())
            for x, log2 in ((y, gain + FIXED_BITS * LOG2_UNITS), (z, gain_z))
        )
        limit = float(2**30)
        return Latents(
            fixed.nan_to_num_(0.0).clamp_(-limit, limit).round_().long(),
            symbols.nan_to_num_(0.0).clamp_(-Z_MAX, Z_MAX).round_().long(),
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
        with torch.autocast("cpu", enabled=False), torch.device("cpu"):
            arithmetic = exact_arithmetic()
            log2_gain, log2_gain_z = self.gains(level)
            z = self._code_z(coder, h // 4, w // 4, latents)
            features = self._features(z, log2_gain_z, h, w, arithmetic)
            coder.end_chunk()
            y_hat = self._code_y(coder, log2_gain + self.log2_std, features, latents, arithmetic)
            coder.end_chunk()
        return y_hat

    def _code_z(self, coder: SymbolCoder, h: int, w: int, latents: Latents | None) -> Tensor:
        channels = self.log2_gain_z.shape[1]
        rows = np.tile(np.arange(channels, dtype=np.uint16), h * w)
        symbols = None if latents is None else latents.z.reshape(-1).numpy().astype(np.int16)
        return torch.from_numpy(coder.code(symbols, rows, self.z_table).astype(np.int64)).reshape(h, w, channels)

    def _features(self, z: Tensor, log2_gain_z: Tensor, h: int, w: int, arithmetic: Arithmetic) -> Tensor:
        """Return h_s of the z symbols (h/4, w/4, N): (h, w, F) int16, 0 … 255."""
        multiplier = torch.from_numpy(pow2_fixed((self.log2_act_z - log2_gain_z).numpy()))
        act = rshift(z * multiplier, POW2_BITS).clamp(-SIGNED_MAX, SIGNED_MAX).to(torch.int16)
        for scale, layer in ((4, self.hyper_1), (2, self.hyper_2)):
            rows = apply_taps(layer, act, TAPS_3X3, torch.arange(h // scale * (w // scale)), arithmetic)
            act = pixel_shuffle(rows, h // scale, w // scale, 2)
        return act

    def _code_y(
        self, coder: SymbolCoder, log2_scale: Tensor, features: Tensor, latents: Latents | None, arithmetic: Arithmetic
    ) -> Tensor:
        """Code the anchors, then the rest with the anchors as context; return y_hat (h, w, M)."""
        h, w, _ = features.shape
        channels = len(log2_scale)
        features = features.reshape(h * w, -1)
        y_hat = torch.zeros(h * w, channels, dtype=torch.long)
        anchors = anchor_mask(h, w).reshape(-1)
        first, second = torch.nonzero(anchors)[:, 0], torch.nonzero(~anchors)[:, 0]
        for where in (first, second):
            if where is first:
                context = features.new_zeros(len(where), features.shape[1])
            else:
                act = self._context_activations(y_hat, first, log2_scale).reshape(h, w, channels)
                context = apply_taps(self.context, act, TAPS_CONTEXT, where, arithmetic)
            means, rows = self._means_rows(torch.cat([features[where], context], dim=1), log2_scale, arithmetic)
            symbols = None
            if latents is not None:
                symbols = choose_symbols((latents.y[where] - means).reshape(-1).numpy(), rows, self.rdo_strength)
            coded = coder.code(symbols, rows, gaussian_master(), BAND_EDGES)
            y_hat[where] = (torch.from_numpy(coded.astype(np.int64)).reshape(-1, channels) << FIXED_BITS) + means
        return y_hat.reshape(h, w, channels)

    def _context_activations(self, y_hat: Tensor, anchors: Tensor, log2_scale: Tensor) -> Tensor:
        """Return what the context layer sees of y_hat (h·w, M): int16, ±127, zero but at the anchors (P,)."""
        multiplier = torch.from_numpy(pow2_fixed(-log2_scale.numpy()))
        act = torch.zeros(y_hat.shape, dtype=torch.int16)
        seen = rshift(y_hat[anchors] * multiplier, POW2_BITS + FIXED_BITS - CONTEXT_BITS)
        act[anchors] = seen.clamp(-SIGNED_MAX, SIGNED_MAX).to(torch.int16)
        return act

    def _means_rows(self, inputs: Tensor, log2_scale: Tensor, arithmetic: Arithmetic) -> tuple[Tensor, NDArray[np.uint8]]:
        """Return the means (P, M) in 1/256 and the table rows (P·M,) of one pass."""
        hidden = self.parameters_1(inputs, arithmetic).to(torch.int16)
        mean, log2_sigma = self.parameters_2(hidden, arithmetic).chunk(2, dim=1)
        multiplier = torch.from_numpy(pow2_fixed(log2_scale.numpy()))
        means = rshift(mean * multiplier, POW2_BITS + MEAN_BITS - FIXED_BITS).clamp(-MEAN_LIMIT, MEAN_LIMIT)
        return means, scale_index((log2_sigma + log2_scale).numpy()).reshape(-1)
