"""A checkpoint made ready to code: float transforms on any device, integer entropy model on the CPU.

analyse         x (1, 3, H, W) uint8, or in [0, 1] → y, z of a tile
code            y, z → chunk payloads, symbol CRC, y_hat
decode_latents  chunk payloads → y_hat, symbol CRC
synthesise      y_hat → x_hat of a part of the picture

compress    x (1, 3, H, W) in [0, 1] → chunk payloads, symbol CRC: the first two, of a picture in one tile
decompress  chunk payloads, symbol CRC → x_hat (1, 3, H, W), about 0 … 1: the others

Of a picture in tiles, each tile is coded for itself, but g_a and g_s see what is around it: no seams.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bitstream.coder import StreamReader, StreamWriter
from bitstream.engines import Engine
from bitstream.errors import CheckpointError, DesyncError
from bitstream.grid import Rect, padded
from bitstream.mixture import mixture_crc
from bitstream.tables import constants_crc
from models.bf16 import fast_bf16
from models.checkpoint import Checkpoint, load_checkpoint
from models.entropy import IntegerEntropy
from models.entropy_tensors import load_entropy
from models.inference import MixedPrecision
from models.latents import INVERSE_GAIN, InverseGain, count_beyond
from models.layout import EntropyLayout
from models.loading import FLOAT_PARTS, config_of, load_network, programs_of
from models.refine import Refiner
from models.rounding import FIXED_BITS
from models.thumbnail import Thumbnail
from models.windows import Span

if TYPE_CHECKING:
    from models.network import Network

CLAMPED = 2 << FIXED_BITS  # rounding, and the dead zone, are never further away: the symbol must have been clamped
STRIDE_Y, STRIDE_Z = 16, 64  # pixels that one position of y and of z stands for


def transforms(network: Network, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the float tensors of a checkpoint in a type; GDN's constants (float16 has no 2^-36) and gains stay float32."""
    parts = {name: t for name, t in network.state_dict().items() if name.startswith((*FLOAT_PARTS, *INVERSE_GAIN))}
    return {name: t.float() if "_reparam." in name or name in INVERSE_GAIN else t.to(dtype) for name, t in parts.items()}


def tables_crc(layout: EntropyLayout) -> int:
    """Return the CRC-32 of the constant tables that a model codes with."""
    return mixture_crc() if layout.mixtures else constants_crc()


def check_symbols(found: int, stored: int) -> None:
    """Raise DesyncError if the CRC of decoded symbols is not the one in the file."""
    if found != stored:
        raise DesyncError(
            f"decoded symbols have CRC {found:08x}, the file says {stored:08x}: the file is damaged, or this machine "
            "computes differently: run `codec doctor` and report it"
        )


@dataclass(frozen=True)
class Coded:
    """The payloads of Z and Y_TILE, the CRC of all symbols, and the integer y_hat (h', w', M) in 1/256 that decoding gives."""

    payloads: list[bytes]
    crc: int
    y_hat: Tensor
    clamped: int = 0  # symbols that were too large for the format: the picture is less true there


class LoadedModel:
    """One checkpoint on one device. ``timings`` adds up the seconds of each stage; they are the caller's to clear.

    ``dtype`` is that of g_s. g_a and h_a run in bf16 on CPUs that are fast at it, sums in float32, as in training (imported
    float32 weights excepted): the choice of arithmetic at the encoder changes a file by a little, and
    nothing of what a file decodes to.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        *,
        dtype: torch.dtype = torch.float32,
        encode_dtype: torch.dtype | None = None,
    ) -> None:
        self.config = config_of(checkpoint)
        layout, programs = self.config.layout(), programs_of(checkpoint, self.config)
        crc = tables_crc(layout)
        if checkpoint.constants_crc != crc:
            raise CheckpointError(
                f"constant tables have CRC {crc:08x} on this machine, the checkpoint expects "
                f"{checkpoint.constants_crc:08x}: this platform's math library rounds otherwise; report it"
            )
        self.checkpoint, self.device = checkpoint, device
        self.entropy = load_entropy(checkpoint.tensors, layout)
        gains = {"y": (self.entropy.log2_gain, self.config.M)}
        if isinstance(self.entropy, IntegerEntropy):
            gains["z"] = (self.entropy.log2_gain_z, self.config.N)
        for of, (gain, channels) in gains.items():
            if gain.shape != (self.config.levels, channels):
                raise CheckpointError(
                    f"checkpoint {checkpoint.name}: gains of {of} are {tuple(gain.shape)}, expected "
                    f"{(self.config.levels, channels)}: damaged, export it again"
                )
        exact = not any(t.dtype == torch.float16 for name, t in checkpoint.tensors.items() if name.startswith(FLOAT_PARTS))
        self._fast = self.config.bf16_channels_last and not exact and device.type == "cpu" and fast_bf16()
        if encode_dtype is None:
            encode_dtype = torch.bfloat16 if self._fast else dtype
        ready = partial(MixedPrecision, tensors=checkpoint.tensors, device=device)
        self.g_a = ready(programs["g_a"], dtype=encode_dtype)
        self.h_a = ready(programs["h_a"], dtype=encode_dtype) if layout.hyper else None
        self.g_s = ready(programs["g_s"], dtype=dtype)
        self.inverse_gain = (
            InverseGain(checkpoint.tensors, self.config.levels, self.entropy.log2_std) if self.config.inverse_gain else None
        )
        self.log2_std = (self.entropy.log2_std.double() / 256).float().to(device)
        self.thumbnail = Thumbnail.of(checkpoint.tensors, self.config.M)  # of pictures at 1/8, if the checkpoint has it
        self.refinable = self.config.refinable
        self._refiner: Refiner | None = None
        self._lock = threading.Lock()  # several tiles are coded at once
        self.timings: dict[str, float] = {}

    @property
    def max_level(self) -> int:
        """Return the highest rate level in 1/256."""
        return self.entropy.max_level

    @classmethod
    def load(cls, name_or_path: str | Path, device: torch.device) -> LoadedModel:
        """Load and verify a checkpoint by name or path. Raises CheckpointError."""
        return cls(load_checkpoint(name_or_path), device)

    @torch.inference_mode()
    def analyse(self, x: Tensor, tile: Rect | None = None) -> tuple[Tensor, Tensor | None]:
        """Return y (1, M, h', w') and z, if the model has one, of a tile (default: all) of x: the same for every level.

        x is (1, 3, H, W) in [0, 1], or uint8.
        """
        y = self.analyse_around(x, tile or Rect(0, 0, x.shape[-1], x.shape[-2]), 0)
        if self.h_a is None:
            return y, None
        begin = time.perf_counter()
        z = self.h_a(self.config.hyper_input(y / self.log2_std.exp2()[:, None, None]))
        self._time("h_a", begin)
        return y, z

    @torch.inference_mode()
    def analyse_around(self, x: Tensor, tile: Rect, positions: int) -> Tensor:
        """Return y of a tile of x and of so many positions around it, as far as the picture goes, its sides padded."""
        begin = time.perf_counter()
        spans = []
        for start, stop, size in ((tile.top, tile.bottom, x.shape[-2]), (tile.left, tile.right, x.shape[-1])):
            whole = padded(size)
            wanted = Span.around(start, min(padded(stop), whole), whole, STRIDE_Y * positions)
            spans.append(Span.around(wanted.low, wanted.high, whole, self.g_a.margin))
        rows, columns = spans
        window = x[..., rows.low : rows.high, columns.low : columns.high].to(self.device)
        if window.dtype == torch.uint8:
            window = window.float() / 255
        padding = (0, columns.high - columns.low - window.shape[-1], 0, rows.high - rows.low - window.shape[-2])
        y = self.g_a(F.pad(window, padding, mode="replicate"), rows, columns)
        self._time("g_a", begin)
        return y

    @torch.inference_mode(False)
    def refine(
        self, x: Tensor, y: Tensor, z: Tensor | None, level: int, steps: int, progress: Callable[[float], None],
        tile: Rect | None = None,
    ) -> Tensor:  # fmt: skip
        """Return y of a tile (default: all) of x refined at a level in 1/256 (``models.refine``), for ``refinable`` models.

        What is around the tile is seen as plain coding would leave it.
        """
        begin = time.perf_counter()
        with self._lock:
            if self._refiner is None:
                assert isinstance(self.entropy, IntegerEntropy)
                network = load_network(self.checkpoint)
                self._refiner = Refiner(self.checkpoint, network, self.entropy.y_table, self.device, autocast=self._fast)
        assert z is not None
        tile, margin = tile or Rect(0, 0, x.shape[-1], x.shape[-2]), self.g_s.margin
        around = self.analyse_around(x, tile, margin)
        left, top = (min(start // STRIDE_Y, margin) for start in (tile.left, tile.top))
        window = x[
            ...,
            tile.top - STRIDE_Y * top : tile.top + STRIDE_Y * (around.shape[-2] - top),
            tile.left - STRIDE_Y * left : tile.left + STRIDE_Y * (around.shape[-1] - left),
        ]
        refined = self._refiner.refine(window, y, z, level, steps, progress, around=around, place=(top, left))
        self._time("refine", begin)
        return refined

    def code(self, y: Tensor, z: Tensor | None, level: int, engine: Engine) -> Coded:
        """Code what ``analyse`` gave at a level in 1/256."""
        begin = time.perf_counter()
        writer = StreamWriter(engine)
        h, w = y.shape[-2:]
        latents = self.entropy.fix_latents(y, z, level)
        y_hat = self.entropy.code_latents(writer, level, h, w, latents)
        clamped = latents.clamped + count_beyond((latents.y - y_hat.reshape(latents.y.shape)), CLAMPED)
        self._time("entropy", begin)
        return Coded(writer.payloads, writer.crc, y_hat, clamped)

    def compress(self, x: Tensor, level: int, engine: Engine) -> tuple[list[bytes], int]:
        """Code x (1, 3, H, W) in [0, 1] at a level in 1/256; return the payloads of Z and Y_TILE and the symbol CRC."""
        coded = self.code(*self.analyse(x), level, engine)
        return coded.payloads, coded.crc

    def latents(self, y_hat: Tensor, level: int) -> Tensor:
        """Return what g_s takes (1, M, h', w'), about y_hat / gain, of integer y_hat (h', w', M) in 1/256."""
        latents = self.entropy.float_latents(y_hat, level)
        return latents if self.inverse_gain is None else self.inverse_gain(latents, level)

    @torch.inference_mode()
    def synthesise(self, latents: Tensor, rows: Span | None = None, columns: Span | None = None) -> Tensor:
        """Return x_hat (1, 3, H, W), not clamped, of the wanted part of latents, or of all; sides are 16 times those of y."""
        begin = time.perf_counter()
        x_hat = self.g_s(latents.to(self.device), rows, columns)
        self._time("g_s", begin)
        return x_hat

    def decompress(self, payloads: list[bytes], level: int, h: int, w: int, engine: Engine, symbol_crc: int) -> Tensor:
        """Decode a picture of h × w pixels in one tile; return x_hat (1, 3, h, w), not clamped.

        Raises DesyncError, before any synthesis, if the decoded symbols do not have this CRC.
        """
        y_hat, crc = self.decode_latents(payloads, level, h, w, engine)
        check_symbols(crc, symbol_crc)
        return self.synthesise(self.latents(y_hat, level))[..., :h, :w]

    @torch.inference_mode()
    def decode_latents(self, payloads: list[bytes], level: int, h: int, w: int, engine: Engine) -> tuple[Tensor, int]:
        """Decode only the symbols of a tile of h × w pixels; return integer y_hat (h', w', M) in 1/256 and the symbol CRC."""
        begin = time.perf_counter()
        reader = StreamReader(engine, payloads)
        rows, columns = (padded(side) // STRIDE_Y for side in (h, w))
        y_hat = self.entropy.code_latents(reader, level, rows, columns, None)
        self._time("entropy", begin)
        return y_hat, reader.crc

    def _time(self, stage: str, begin: float) -> None:
        with self._lock:
            self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - begin
