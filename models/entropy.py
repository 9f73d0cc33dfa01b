"""The entropy path at coding time: integers from the z symbols to the choice of every CDF row.

``code_latents`` is the one walk for both directions (FORMAT.md sections 5 and 7), for every model with a hyperprior; its
structure is the model's ``EntropyLayout``. Given latents it encodes, given None it decodes; the result is the same y_hat, bit
for bit, on every machine. ``models.latents`` is where float becomes integer and back.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitstream.coder import StepCoder, SymbolCoder
from bitstream.errors import CheckpointError
from bitstream.mixture import Mixtures
from bitstream.segments import TableRows
from bitstream.tables import (
    LOG2_UNITS,
    POW2_BITS,
    SCALES,
    SYMBOL_MAX,
    MasterTable,
    gaussian_master,
    log2_fixed,
    pow2_fixed,
    scale_index,
)
from models.integer import SIGNED_MAX, Arithmetic, IntegerLayer, Plane, exact_arithmetic, pixel_shuffle, rshift
from models.latents import Z_MAX, GainTable, Latents, count_beyond
from models.layout import TAPS_3X3, EntropyLayout
from models.rounding import FIXED_BITS, RDO_STRENGTH, choose_symbols
from models.schedule import ALL, EVEN, ODD, Cell, Step, segments

MEAN_BITS = 10  # the mean output of the parameter network is in 1/1024 of the channel's constant
CONTEXT_BITS = 4  # the context sees y_hat in 1/16 of the channel's constant
MEAN_LIMIT = 2**20
PREDICTION_LIMIT = 2**22  # of any output of the last layer: later products have room for it
WIDTH_MAX = 2**14  # outputs of a layer: bounds the memory of a block of positions
BAND_EDGES = (6, 16, 28, 40)  # of what is coded in one step
WAVE_EDGES = (16, 40)  # of segments of wavefronts: fewer, since each costs bytes

CellLayers = dict[int | None, dict[str, IntegerLayer]]  # of the cells whose channels begin there; None: all channels


@dataclass(frozen=True)
class Scale:
    """gain·std of each channel of y: log2 in 1/256 octave (M,), and the factors P(L) and P(Gc − L) of FORMAT.md section 7."""

    log2: Tensor
    up: Tensor
    seen: Tensor

    @classmethod
    def of(cls, log2: Tensor, log2_gain_context: Tensor) -> Scale:
        """Return the factors of the logarithms of gain·std and of the gain of what the context sees."""
        return cls(log2, *(torch.from_numpy(pow2_fixed(power.numpy())) for power in (log2, log2_gain_context - log2)))

    def at(self, channels: slice) -> Scale:
        """Return that of some of the channels."""
        return Scale(self.log2[channels], self.up[channels], self.seen[channels])


@dataclass
class IntegerEntropy(GainTable):
    """Tables and integer layers of one checkpoint."""

    layout: EntropyLayout
    log2_gain_z: Tensor  # (levels, N) int64
    log2_act_z: int
    z_offset: Tensor  # (N,) int64, in 1/256: what the symbol 0 of z stands for
    z_table: MasterTable
    layers: dict[str, IntegerLayer]
    rdo_strength: float = RDO_STRENGTH  # of the encoder's dead zone; 0 is plain rounding
    log2_gain_context: Tensor | None = None  # (levels, M) int64, of what the context sees; none is 0
    y_table: MasterTable = field(default_factory=gaussian_master)
    _of_cells: CellLayers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.log2_gain_z.dim() != 2 or len(self.log2_gain_z) != len(self.log2_gain):
            raise CheckpointError("checkpoint: gains of z are not one row for each level: export it again")
        for name, table in {"log2_gain_context": self.log2_gain_context, **self._level_biases()}.items():
            if table is not None and len(table) != len(self.log2_gain):
                raise CheckpointError(f"checkpoint: {name} has not one row for each level: damaged, export it again")
        if self.layout.order == "crossed" and self.log2_gain.shape[1] % 2:
            raise CheckpointError(f"checkpoint: {self.log2_gain.shape[1]} channels, expected an even number: export it again")
        if self.log2_gain_context is not None and self.log2_gain_context.shape != self.log2_gain.shape:
            raise CheckpointError(
                f"checkpoint: log2_gain_context is {tuple(self.log2_gain_context.shape)}, expected "
                f"{tuple(self.log2_gain.shape)}: damaged, export it again"
            )
        if self.y_table.cumulative.shape != (SCALES, 2 * SYMBOL_MAX + 2) or not (np.diff(self.y_table.cumulative) > 0).all():
            raise CheckpointError("checkpoint: y_mass is not 64 rows of positive numbers: damaged, export it again")
        if not (np.diff(self.z_table.cumulative, axis=1) > 0).all():
            raise CheckpointError("checkpoint: a CDF row of z does not rise: damaged, export it again")
        n = self.log2_gain_z.shape[1]
        shapes = {"z_cumulative": (self.z_table.cumulative.shape, (n, 2 * Z_MAX + 2)), "z_offset": (self.z_offset.shape, (n,))}
        for name, (found, wanted) in shapes.items():
            if tuple(found) != wanted:
                raise CheckpointError(f"checkpoint: {name} is {tuple(found)}, expected {wanted}: damaged, export it again")
        self._check_layers(self.log2_gain.shape[1], n)
        crossed = self.layout.order == "crossed"
        self._of_cells = {half.start: self._half(half) for half in (EVEN, ODD)} if crossed else {ALL.start: self.layers}

    def _level_biases(self) -> dict[str, Tensor | None]:
        return {f"{name}.level_bias": layer.level_bias for name, layer in self.layers.items()}

    def _check_layers(self, m: int, n: int) -> None:
        """Raise CheckpointError unless each layer takes what the one before it gives, in number and in range."""
        layout, width, reach = self.layout, n, SIGNED_MAX
        expected: list[tuple[str, int, int]] = []  # name, inputs, magnitude of the inputs
        for i, factor in enumerate(layout.hyper, 1):
            expected.append((f"hyper_{i}", len(TAPS_3X3) * width, reach))
            outputs = self.layers[f"hyper_{i}"].weight.shape[1]
            if outputs % factor**2:
                raise CheckpointError(
                    f"checkpoint: hyper_{i} gives {outputs} numbers, expected a multiple of {factor**2}: damaged"
                )
            width, reach = outputs // factor**2, layout.act_max
        if layout.context:
            expected.append(("context", len(layout.taps) * m, SIGNED_MAX))
            width += self.layers["context"].weight.shape[1]
        for i in range(1, layout.parameters + 1):
            expected.append((f"parameters_{i}", width, reach))
            width = self.layers[f"parameters_{i}"].weight.shape[1]
        for name, inputs, magnitude in expected:
            layer, last = self.layers[name], name == expected[-1][0]
            if len(layer.weight) != inputs or layer.act_max != magnitude:
                raise CheckpointError(
                    f"checkpoint: {name} takes {len(layer.weight)} inputs within ±{layer.act_max}, expected {inputs} "
                    f"within ±{magnitude}: damaged, export it again"
                )
            if layer.weight.shape[1] > WIDTH_MAX:
                raise CheckpointError(
                    f"checkpoint: {name} gives {layer.weight.shape[1]} numbers, at most {WIDTH_MAX}: too wide"
                )
            low = -SIGNED_MAX if layout.act_max == SIGNED_MAX else 0
            if not last and (int(layer.lo.min()) < low or int(layer.hi.max()) > layout.act_max):
                raise CheckpointError(f"checkpoint: outputs of {name} leave {low} … {layout.act_max}: damaged, export it again")
        if int(layer.lo.min()) < -PREDICTION_LIMIT or int(layer.hi.max()) > PREDICTION_LIMIT:
            raise CheckpointError(f"checkpoint: predictions of {name} leave ±{PREDICTION_LIMIT}: damaged, export it again")
        means = slice(-2 * m * max(layout.mixtures, 1), -m * max(layout.mixtures, 1))
        if layout.means and (int(layer.lo[means].min()) < -MEAN_LIMIT or int(layer.hi[means].max()) > MEAN_LIMIT):
            raise CheckpointError(f"checkpoint: means of {name} leave ±{MEAN_LIMIT}: damaged, export it again")
        if width != m * layout.outputs:
            raise CheckpointError(f"checkpoint: {width} predictions, expected {m * layout.outputs}: damaged, export it again")

    def gains_z(self, level: int) -> Tensor:
        """Return log2 of the gains of z (N,) at a level in 1/256, interpolated in integers."""
        return self.interpolate(self.log2_gain_z, level)

    def fix_latents(self, y: Tensor, z: Tensor | None, level: int) -> Latents:
        """Round float y (1, M, h, w) and z (1, N, h/4, w/4) to what the coder takes."""
        assert z is not None
        log2 = (self.gains_z(level).double() / LOG2_UNITS).exp2().float()
        symbols = z[0].cpu().float().permute(1, 2, 0).reshape(-1, z.shape[1]) * log2 - self.z_offset / 256
        symbols = symbols.nan_to_num_(0.0).round_()
        return Latents(self.fix_y(y, level), symbols.clamp(-Z_MAX, Z_MAX).long(), count_beyond(symbols, Z_MAX))

    @torch.inference_mode()
    def code_latents(self, coder: SymbolCoder, level: int, h: int, w: int, latents: Latents | None) -> Tensor:
        """Encode the latents, or decode them if None; return y_hat (h, w, M) int64 in 1/256.

        h and w are the sides of y, multiples of 4. Raises FormatError or SymbolError from the coder.
        """
        with torch.autocast("cpu", enabled=False):
            arithmetic = exact_arithmetic()
            z = self._code_z(coder, h // 4, w // 4, None if latents is None else latents.z)
            features = self._features(z, self.gains_z(level), arithmetic)
            coder.end_chunk()
            y = None if latents is None else latents.y
            y_hat = self._code_y(coder, level, features, y, arithmetic)
            coder.end_chunk()
        return y_hat

    def _code_z(self, coder: SymbolCoder, h: int, w: int, z: Tensor | None) -> Tensor:
        channels = self.log2_gain_z.shape[1]
        rows = np.tile(np.arange(channels, dtype=np.uint16), h * w)
        symbols = None if z is None else z.reshape(-1).numpy().astype(np.int16)
        return torch.from_numpy(coder.code(symbols, rows, self.z_table).astype(np.int64)).reshape(h, w, channels)

    def _features(self, z: Tensor, log2_gain_z: Tensor, arithmetic: Arithmetic) -> Tensor:
        """Return h_s of the z symbols (h/4, w/4, N): (h, w, F), activations or, without parameter layers, predictions."""
        multiplier = torch.from_numpy(pow2_fixed((self.log2_act_z - log2_gain_z).numpy()))
        act = rshift(((z << 8) + self.z_offset) * multiplier, POW2_BITS + 8).clamp(-SIGNED_MAX, SIGNED_MAX).to(torch.int16)
        for i, factor in enumerate(self.layout.hyper, 1):
            h, w, _ = act.shape
            dtype = torch.int32 if i == len(self.layout.hyper) and not self.layout.parameters else torch.int16
            rows = Plane.of(act, 1).apply(
                self.layers[f"hyper_{i}"], TAPS_3X3, torch.arange(h * w, device="cpu"), arithmetic, dtype
            )
            act = pixel_shuffle(rows, h, w, factor)
        return act

    def _code_y(self, coder: SymbolCoder, level: int, features: Tensor, y: Tensor | None, arithmetic: Arithmetic) -> Tensor:
        """Code all positions in the order of the layout; return y_hat (h, w, M)."""
        h, w, _ = features.shape
        channels = len(self.log2_std)
        features = features.reshape(h * w, -1)
        seen_gain = torch.zeros_like(self.log2_gain[:1]) if self.log2_gain_context is None else self.log2_gain_context
        scale = Scale.of(self.gains(level) + self.log2_std, self.interpolate(seen_gain, level))
        layers = self._layers_at(level)
        y_hat = torch.zeros(h * w, channels, dtype=torch.long, device="cpu")
        seen = Plane(h, w, channels // 2 if self.layout.order == "crossed" else channels, 2)
        parts = segments(self.layout.order, h, w)
        for number, steps in enumerate(parts):
            blind, last = (self.layout.two_passes and number == n for n in (0, len(parts) - 1))
            with self._steps(coder) as code:
                for step in steps:
                    inputs = [self._inputs(features, None if blind else seen, cell, layers, arithmetic) for cell in step]
                    self._code_step(code, step, inputs, scale, y, y_hat)
                    if self.layout.context and not last:
                        for cell in step:
                            coded = y_hat[cell.where][:, cell.channels]
                            seen.set(cell.where, self._context_activations(coded, scale.at(cell.channels)))
        return y_hat.reshape(h, w, channels)

    def _steps(self, coder: SymbolCoder) -> contextlib.AbstractContextManager[StepCoder]:
        """Return what codes the steps of one segment: streams of their own if it is a single one by construction."""
        if self.layout.order == "wavefronts":
            return coder.segment(len(WAVE_EDGES) + 1)
        return contextlib.nullcontext(coder.code_source)

    def _inputs(
        self, features: Tensor, seen: Plane | None, cell: Cell, all_layers: CellLayers, arithmetic: Arithmetic
    ) -> Tensor:
        """Return the predictions (P, outputs·m) for a cell of P positions and m channels from features (h·w, F)."""
        layers = all_layers[cell.channels.start]
        out = features[cell.where]
        if self.layout.context:
            layer = layers["context"]
            if seen is None:
                context = out.new_zeros(len(out), layer.weight.shape[1])
            else:
                context = seen.apply(layer, self.layout.taps, cell.where, arithmetic)
            out = torch.cat([out, context], dim=1)
        for i in range(1, self.layout.parameters + 1):
            out = layers[f"parameters_{i}"](out.to(torch.int16), arithmetic)
        return out

    def _layers_at(self, level: int) -> CellLayers:
        """Return the layers with their biases of a level, for all cells."""
        return {
            start: {
                name: layer if layer.level_bias is None else layer.at(self.interpolate(layer.level_bias, level))
                for name, layer in layers.items()
            }
            for start, layers in self._of_cells.items()
        }

    def _half(self, own: slice) -> dict[str, IntegerLayer]:
        """Return the layers for the cell of one half of the channels in a crossed order: with what they take and give alone.

        At the cell's own colour (dy + dx even) the other half was coded before, at the other colour its own half.
        """
        index = torch.arange(self.log2_gain.shape[1], device="cpu")
        other = ODD if own == EVEN else EVEN
        seen = [index[own if (dy + dx) % 2 else other] + tap * len(index) for tap, (dy, dx) in enumerate(self.layout.taps)]
        given = torch.cat(
            [part[own] for part in torch.arange(len(index) * self.layout.outputs, device="cpu").split(len(index))]
        )
        last = f"parameters_{self.layout.parameters}"
        return self.layers | {
            "context": self.layers["context"].part(inputs=torch.cat(seen)), last: self.layers[last].part(outputs=given)
        }  # fmt: skip

    def _context_activations(self, y_hat: Tensor, scale: Scale) -> Tensor:
        """Return what the context layer sees of y_hat (P, M): int16, ±127."""
        seen = rshift(y_hat * scale.seen, POW2_BITS + FIXED_BITS - CONTEXT_BITS)
        return seen.clamp(-SIGNED_MAX, SIGNED_MAX).to(torch.int16)

    def _code_step(
        self, code: StepCoder, step: Step, predictions: list[Tensor], scale: Scale, y: Tensor | None, y_hat: Tensor
    ) -> None:
        """Code the symbols of a step, and set y_hat (h·w, M), from the predictions (P, outputs·m) for each of its cells."""
        if self.layout.mixtures:
            (cell,), (prediction,) = step, predictions
            y_hat[cell.where] = self._code_mixtures(code, prediction, scale, None if y is None else y[cell.where])
            return
        means, rows = zip(
            *(self._means_rows(p, scale.at(cell.channels)) for cell, p in zip(step, predictions, strict=True)), strict=True
        )
        all_rows = np.concatenate(rows)
        symbols = None
        if y is not None:
            values = (y[cell.where][:, cell.channels] for cell in step)
            residual = torch.cat([(v - mean).reshape(-1) for v, mean in zip(values, means, strict=True)])
            symbols = choose_symbols(residual.numpy(), all_rows, self.rdo_strength)
        edges = WAVE_EDGES if self.layout.order == "wavefronts" else BAND_EDGES
        coded = torch.from_numpy(code(symbols, TableRows(self.y_table, all_rows, edges)).astype(np.int64))
        for cell, mean, part in zip(step, means, coded.split([mean.numel() for mean in means]), strict=True):
            y_hat[cell.where, cell.channels] = (part.reshape(mean.shape) << FIXED_BITS) + mean

    def _code_mixtures(self, code: StepCoder, predictions: Tensor, scale: Scale, y: Tensor | None) -> Tensor:
        """Code the symbols of positions (P, M) with mixtures; return y_hat (P, M)."""
        source, centre = self._mixtures(predictions, scale)
        symbols = None
        if y is not None:
            symbols = (rshift(y, FIXED_BITS) - centre).clamp(-SYMBOL_MAX, SYMBOL_MAX).reshape(-1).numpy().astype(np.int16)
        coded = torch.from_numpy(code(symbols, source).astype(np.int64)).reshape(centre.shape)
        return (coded + centre) << FIXED_BITS

    def _means_rows(self, predictions: Tensor, scale: Scale) -> tuple[Tensor, NDArray[np.uint8]]:
        """Return the means (P, M) in 1/256 and the table rows (P·M,) of predictions (P, M or 2·M)."""
        if self.layout.means:
            mean, spread = predictions.chunk(2, dim=1)
            means = self._scaled_means(mean, scale)
        else:
            spread, means = predictions, torch.zeros(1, 1, dtype=torch.long, device="cpu").expand(predictions.shape)
        return means, self._scale_rows(spread, scale).reshape(-1)

    def _scaled_means(self, mean: Tensor, scale: Scale) -> Tensor:
        return rshift(mean * scale.up, POW2_BITS + MEAN_BITS - FIXED_BITS).clamp_(-MEAN_LIMIT, MEAN_LIMIT)

    def _scale_rows(self, spread: Tensor, scale: Scale) -> NDArray[np.uint8]:
        if self.layout.linear:
            return scale_index(log2_fixed(spread.numpy()) - MEAN_BITS * LOG2_UNITS + scale.log2.numpy())
        return scale_index((spread + scale.log2).numpy())

    def _mixtures(self, predictions: Tensor, scale: Scale) -> tuple[Mixtures, Tensor]:
        """Return the mixtures of (P, outputs·M) predictions around a whole number (P, M), and that number."""
        k, p, m = self.layout.mixtures, len(predictions), len(scale.log2)
        parts = predictions.reshape(p, self.layout.outputs, m)
        means = self._scaled_means(parts[:, -2 * k : -k], scale)  # (P, K, M)
        scales = self._scale_rows(parts[:, -k:], scale)
        weights = torch.full((p, k, m), 1 << POW2_BITS, device="cpu")
        if k > 1:
            logits = parts[:, :k]
            weights = torch.from_numpy(pow2_fixed((logits - logits.amax(1, keepdim=True)).numpy()))
        centre = ((means * weights).sum(1) + 128 * weights.sum(1)) // (256 * weights.sum(1))  # the mean, rounded half up
        means = means - (centre[:, None] << FIXED_BITS)

        def flat(x: Tensor) -> NDArray[np.int64]:
            return x.transpose(1, 2).reshape(-1, k).numpy()

        source = Mixtures(flat(weights), flat(means), flat(torch.from_numpy(scales)), WAVE_EDGES)
        return source, centre
