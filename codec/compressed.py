"""The latents of a file, for learning in the compressed domain: a classifier or a search needs no pixels.

They are decoded as ``codec.decode`` does it; g_s does not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bitstream.container import TileSource
from bitstream.engines import Engine
from bitstream.grid import Rect, cut, padded, tile_side
from bitstream.header import Header
from bitstream.limits import Limits
from bitstream.recording import RecordingReader
from bitstream.tables import LOG2_UNITS
from codec.workers import torch_threads, workers
from models.entropy import IntegerEntropy
from models.rounding import FIXED_BITS
from models.runtime import STRIDE_Y, STRIDE_Z, LoadedModel, check_symbols


@dataclass(frozen=True, eq=False)
class DecodedLatents:
    """The latents that a file holds, those of all tiles put together, as float32 tensors on the CPU.

    ``y_hat`` (1, M, h, w) is y after quantisation as g_s takes it, in units of y (the gain of the rate level is taken off, and
    g_s's own gain and bias, of models that have them, are put on):
    one position for 16×16 pixels, sides rounded up to multiples of 4. ``Codec.model.synthesise(y_hat)[..., :height, :width]``
    is the picture (1, 3, height, width), about 0 … 1, without gradients. ``z_hat`` (1, N, h/4, w/4) is z after quantisation in
    units of z, None of models without a hyperprior. ``quality`` is 0 … 100.
    """

    y_hat: Tensor
    z_hat: Tensor | None
    quality: float
    header: Header

    @property
    def level(self) -> int:
        """Return the rate level in 1/256."""
        return self.header.level


def decode_latents(model: LoadedModel, engine: Engine, source: TileSource, limits: Limits | None = None) -> DecodedLatents:
    """Return the latents of a file that this model made. Raises what decoding raises."""
    header = source.header
    w, h = header.width, header.height
    area = Rect(0, 0, w, h)
    most = (limits or Limits()).count_workers(area, 1, header.tile, w, h, torch_threads())
    tiles = cut(area, tile_side(header.tile, w, h))
    y_hat = _empty(model.config.M, h, w, STRIDE_Y)
    entropy = model.entropy
    z_hat = _empty(entropy.log2_gain_z.shape[1], h, w, STRIDE_Z) if isinstance(entropy, IntegerEntropy) else None
    with workers(len(tiles), most) as pool:
        jobs = [pool.submit(partial(_decode_tile, model, engine, source, *pair, y_hat, z_hat)) for pair in enumerate(tiles)]
        for job in jobs:
            job.result()
    return DecodedLatents(y_hat, z_hat, 100 * header.level / (entropy.max_level or 1), header)


def _empty(channels: int, h: int, w: int, stride: int) -> Tensor:
    return torch.empty(1, channels, padded(h) // stride, padded(w) // stride, dtype=torch.float32, device="cpu")


def _decode_tile(
    model: LoadedModel, engine: Engine, source: TileSource, number: int, rect: Rect, y_hat: Tensor, z_hat: Tensor | None
) -> None:
    """Decode the symbols of a tile and put its latents into their place."""
    tile, level = source.tile(number), source.header.level
    rows, columns = (padded(side) // STRIDE_Y for side in (rect.height, rect.width))
    reader = RecordingReader(engine, tile.payloads)
    fixed = model.entropy.code_latents(reader, level, rows, columns, None)
    check_symbols(reader.crc, tile.symbol_crc)
    _place(y_hat, model.latents(fixed, level), rect, STRIDE_Y)
    if z_hat is not None:
        assert isinstance(model.entropy, IntegerEntropy)
        _, symbols = reader.groups[0].steps[0]  # z is decoded first
        z = torch.from_numpy(symbols).reshape(rows // 4, columns // 4, -1)
        _place(z_hat, _float_z(model.entropy, z, level), rect, STRIDE_Z)


def _float_z(entropy: IntegerEntropy, symbols: Tensor, level: int) -> Tensor:
    """Return z_hat (1, N, h, w) of its symbols (h, w, N): the inverse of ``IntegerEntropy.fix_latents``."""
    inverse = (-entropy.gains_z(level).double() / LOG2_UNITS).exp2()
    z = (symbols + entropy.z_offset.double() / 2**FIXED_BITS) * inverse
    return z.permute(2, 0, 1)[None].float()


def _place(whole: Tensor, part: Tensor, rect: Rect, stride: int) -> None:
    top, left = rect.top // stride, rect.left // stride
    whole[..., top : top + part.shape[-2], left : left + part.shape[-1]] = part
