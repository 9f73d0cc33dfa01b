"""A checkpoint of ``overfit`` made ready to code.

fit         x → latents and networks of this picture, by descent (``models.overfit.fit``)
code        those → chunk payloads, symbol CRC
decode      chunk payloads → grids and networks, symbol CRC
synthesise  grids and networks → x_hat
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from bitstream.coder import StreamReader, StreamWriter, SymbolCoder
from bitstream.engines import Engine
from bitstream.errors import CheckpointError, FormatError, LimitError, UsageError
from bitstream.grid import padded
from bitstream.tables import constants_crc
from models.checkpoint import Checkpoint
from models.overfit.configs import GRIDS, MODEL, OverfitConfig
from models.overfit.entropy import Grid, code_grids
from models.overfit.fit import Fit
from models.overfit.networks import Analysis, Parameters, inputs_of, joined, synthesis
from models.overfit.weights import UNITS, BaseNetworks, Differences, code_differences

MAX_PIXELS = 2**24  # with sides rounded up to 64: networks and grids are those of a whole picture
ANALYSIS = "analysis."
STRIP = 256  # rows at half the size of the picture that are synthesised at once
REACH = 2  # rows that its two 3×3 convolutions see


@dataclass(frozen=True)
class DecodedFit:
    """A picture's grids of symbols, the finest first, the finest that is coded, and the parameters in 2^-16."""

    grids: list[Grid]
    finest: int
    parameters: Parameters


@dataclass(frozen=True)
class CodedFit:
    """The payloads of NETWORKS and GRIDS, the CRC of all symbols, and what a decoder makes of them."""

    payloads: list[bytes]
    crc: int
    decoded: DecodedFit


def fits(height: int, width: int) -> bool:
    """Return whether a picture is small enough for this model."""
    return padded(height) * padded(width) <= MAX_PIXELS


def check_size(height: int, width: int) -> None:
    """Raise LimitError for a picture that is too large for this model."""
    if not fits(height, width):
        raise LimitError(
            f"the picture has {width}×{height} pixels, {MODEL} codes at most {MAX_PIXELS} (sides rounded up to 64): "
            "choose another model, or make it smaller"
        )


def check_claim(height: int, width: int) -> None:
    """Raise FormatError for a file of a picture that is too large for this model."""
    if not fits(height, width):
        raise FormatError(f"a fitted picture has {width}×{height} pixels, the format allows {MAX_PIXELS}: the file is damaged")


class OverfitModel:
    """One checkpoint of ``overfit`` on one device; its entropy networks always run on the CPU, in integers.

    ``timings`` adds up the seconds of each stage; they are the caller's to clear. Raises CheckpointError.
    """

    refinable = True  # it has efforts: the length of the descent

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        try:
            self.config = OverfitConfig.of(checkpoint.config)
        except UsageError as error:
            raise CheckpointError(f"checkpoint {checkpoint.name}: {error}: export it again, or update") from error
        if checkpoint.constants_crc != constants_crc():
            raise CheckpointError(
                f"constant tables have CRC {constants_crc():08x} on this machine, the checkpoint expects "
                f"{checkpoint.constants_crc:08x}: this platform's math library rounds otherwise; report it"
            )
        self.checkpoint, self.device = checkpoint, device
        self.base = BaseNetworks.of(self.config, checkpoint.tensors)
        self._lock = threading.Lock()
        self.timings: dict[str, float] = {}

    @property
    def max_level(self) -> int:
        """Return the highest rate level in 1/256."""
        return self.config.max_level

    @cached_property
    def _analysis(self) -> Analysis:
        with torch.random.fork_rng(devices=[]):  # else the first fit would see other random numbers than the next
            analysis = Analysis(self.config.analysis).to(torch.float32)  # whatever a caller's default type is
        tensors = {n.removeprefix(ANALYSIS): t.float() for n, t in self.checkpoint.tensors.items() if n.startswith(ANALYSIS)}
        try:
            analysis.load_state_dict(tensors)
        except RuntimeError as error:
            found = " ".join(str(error).split())  # one line
            raise CheckpointError(f"checkpoint {self.checkpoint.name}: {found}: fetch it again") from error
        return analysis.to(self.device).eval()

    @torch.no_grad()
    def analyse(self, x: Tensor) -> list[Tensor]:
        """Return grids (H/2^i, W/2^i) to start from, before the gains, of x (3, H, W) in [0, 1] with sides multiples of 64."""
        return [grid[0].contiguous() for grid in self._analysis(x[None])]

    def fit(self, x: Tensor, level: int, finest: int) -> Fit:
        """Return the descent for x (3, H, W) uint8 or in [0, 1] at a level in 1/256, at its start.

        Grids finer than ``finest`` stay empty.
        """
        h, w = x.shape[1:]
        check_size(h, w)
        whole = x.to(self.device)
        whole = whole.float() / 255 if whole.dtype == torch.uint8 else whole
        whole = F.pad(whole[None], (0, padded(w) - w, 0, padded(h) - h), mode="replicate")[0]
        base, gains = self._at(level)
        latents = [grid * gain.exp2() for grid, gain in zip(self.analyse(whole), gains, strict=True)]
        return Fit(self.config, whole, (h, w), level, base, gains, latents, finest)

    def _at(self, level: int) -> tuple[Parameters, Tensor]:
        """Return the base networks of a level in 1/256 and its gains (7,), in floating point."""
        base = {name: value.to(self.device) for name, value in _floats(self.base.at(level)).items()}
        return base, (self.base.gains(level).double() / 256).float().to(self.device)

    def scaled(self, latents: Sequence[Tensor], level: int, to: int) -> list[Tensor]:
        """Return latents of a level in 1/256 as they are at another: multiplied by its gains instead."""
        if to == level:
            return list(latents)
        gains = (self.base.gains(to) - self.base.gains(level)).double() / 256
        return [value * float(gain.exp2()) for value, gain in zip(latents, gains, strict=True)]

    def rebased(self, differences: Differences, level: int, to: int) -> Differences:
        """Return differences at a level in 1/256 as they are at another: nearly the same networks."""
        return differences if to == level else differences.rebased(self.config, self.base.at(level), self.base.at(to))

    def move(self, fit: Fit, to: int) -> None:
        """Let a descent go on at another level in 1/256: latents are scaled, networks differ as much from the base."""
        fit.move(to, *self._at(to), self.scaled(fit.latents, fit.level, to))

    def code(self, latents: Sequence[Tensor], differences: Differences, level: int, h: int, w: int, engine: Engine) -> CodedFit:
        """Code grids (not rounded) and differences of a picture of h × w pixels at a level in 1/256."""
        begin = time.perf_counter()
        writer = StreamWriter(engine)
        grids = [grid.cpu().round().clamp(-(2**15), 2**15 - 1).short().numpy() for grid in latents]
        decoded = self.walk(writer, level, h, w, differences, grids)
        self._time("entropy", begin)
        return CodedFit(writer.payloads, writer.crc, decoded)

    def decode(self, payloads: list[bytes], level: int, h: int, w: int, engine: Engine) -> tuple[DecodedFit, int]:
        """Return what the payloads of a picture of h × w pixels hold, and the CRC of its symbols. Raises FormatError."""
        check_claim(h, w)
        begin = time.perf_counter()
        reader = StreamReader(engine, payloads)
        decoded = self.walk(reader, level, h, w, None, None)
        self._time("entropy", begin)
        return decoded, reader.crc

    def walk(
        self, coder: SymbolCoder, level: int, h: int, w: int, differences: Differences | None, grids: list[Grid] | None
    ) -> DecodedFit:
        """Code networks and grids; decoding, both are None. One walk for both directions."""
        differences = code_differences(coder, self.config, differences)
        parameters = differences.added(self.config, self.base.at(level))
        coded = code_grids(coder, parameters, self.base.gains(level), h, w, differences.finest, grids)
        return DecodedFit(coded, differences.finest, parameters)

    @torch.no_grad()
    def synthesise(self, decoded: DecodedFit, level: int) -> Tensor:
        """Return x_hat (1, 3, H, W), not clamped, with sides multiples of 64."""
        begin = time.perf_counter()
        with torch.autocast(self.device.type, enabled=False):  # whatever a caller has switched on
            parameters = {name: value.to(self.device) for name, value in _floats(decoded.parameters).items()}
            gains = (self.base.gains(level).double() / 256).float().to(self.device)
            grids = [torch.from_numpy(grid).float()[None].to(self.device) for grid in decoded.grids]
            planes = inputs_of(joined(parameters, gains, grids, 1), grids[0], gains)
            x_hat = torch.cat(
                [synthesis(parameters, part)[..., top : top + rows, :] for part, top, rows in _strips(planes)], dim=2
            )
            x_hat = F.pixel_shuffle(x_hat, 2)
        self._time("synthesis", begin)
        return x_hat

    def _time(self, stage: str, begin: float) -> None:
        with self._lock:
            self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - begin


def _floats(parameters: Parameters) -> Parameters:
    return {name: (value.double() / (1 << UNITS)).float() for name, value in parameters.items()}


def _strips(planes: Tensor) -> Iterator[tuple[Tensor, int, int]]:
    """Yield strips of planes (1, C, h, w) with what synthesis sees around them, and the first row and number of rows wanted."""
    for start in range(0, planes.shape[2], STRIP):
        top = min(start, REACH)
        yield planes[:, :, start - top : start + STRIP + REACH], top, min(STRIP, planes.shape[2] - start)


def empty_grids(latents: Sequence[Tensor]) -> int:
    """Return how many of the finest grids round to zero all over."""
    return next((grid for grid, value in enumerate(latents) if bool(value.round().any())), GRIDS)
