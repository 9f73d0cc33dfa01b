"""Encoding with ``overfit``: a descent for each picture, of so many iterations; targets are met by changing λ on the way.

A short search with short descents finds the rate level; after the long one, λ is changed a little until the file is what was
asked for.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic

import torch

from bitstream.container import Container, Tile
from bitstream.engines import Engine
from bitstream.errors import TargetError, UsageError
from bitstream.grid import Rect
from bitstream.header import Header
from codec import images
from codec.alpha import pack_tiles
from codec.fitted import FittedDecoder
from codec.images import Picture
from codec.metrics import psnr_db
from codec.targets import DEFAULT_QUALITY, PSNR_TOLERANCE, SIZE_TOLERANCE, Target
from models.overfit.fit import Fit, State, stored_facts
from models.overfit.runtime import OverfitModel, empty_grids

ITERATIONS = (1000, 1600, 2500, 4000, 6300, 10_000, 16_000, 25_000, 40_000, 63_000, 100_000)  # by effort, of up to six windows
WINDOWS = 6
TRIAL_SHARE = 0.1  # of the iterations: descents that search
SEARCHES = 5  # short descents for a target at most
CORRECTIONS = 8  # of λ behind the long descent
CORRECTION_SHARE = 0.05  # of the iterations, for each
FULL_RESOLUTION = 2.5  # level from which the finest grid may pay: it is tried
SAVE_SECONDS = 60.0
REPORT_SECONDS = 0.2
DB_PER_LEVEL, OCTAVES_PER_LEVEL = 1.9, 0.6  # about, as of the other models


@dataclass
class FittedFile:
    """A file, its λ, what a decoder makes of it, and its PSNR in dB if that was asked for."""

    data: bytes
    psnr_db: float


@dataclass
class PictureFit:
    """The descent for one picture: as many as it takes to meet a target.

    ``progress`` is called with the share done; ``state`` is then an estimate of where the descent stands. ``resume`` names a
    file that keeps the long descent, and from which it goes on.
    """

    model: OverfitModel
    engine: Engine
    picture: Picture
    target: Target
    effort: int
    progress: Callable[[float], None] = lambda _: None
    resume: Path | None = None
    state: State | None = None
    iterations: int = field(init=False)
    interrupted: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        h, w, _ = self.picture.pixels.shape
        self._x = torch.from_numpy(self.picture.pixels).permute(2, 0, 1)
        self._size = h, w
        windows = -(-h // 256) * -(-w // 256)
        self.iterations = math.ceil(ITERATIONS[self.effort] * max(1, windows / WINDOWS))
        self._done, self._total = 0, 1
        self._reported = 0.0

    def run(self) -> bytes:
        """Return the file. Raises TargetError if no level meets the target, UsageError for a state of another descent."""
        limit = self.target.limit(self._size[0] * self._size[1])
        asked = self.target.psnr is not None or limit is not None
        trial, correction = (max(1, round(self.iterations * share)) for share in (TRIAL_SHARE, CORRECTION_SHARE))
        self._total = self.iterations + trial * (SEARCHES if asked else 0) + correction * (CORRECTIONS if asked else 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            level, finest = self._stored() or self._start(limit, trial)
            fit = self.model.fit(self._x, level, finest)
            self._descend(fit, level)
            file = self._code(fit, level)
            if asked and not self.interrupted:
                file = self._correct(fit, level, file, limit, correction)
        self._check(file, limit)
        return file.data

    def _descend(self, fit: Fit, level: int) -> None:
        """Run the long descent; an interrupt ends it, and what it has is kept."""
        facts = self._facts(level, fit.finest)
        if self.resume is not None and self.resume.exists():
            fit.resume(self.resume, facts)
        saved = monotonic()

        def report(iteration: int, bpp: float, psnr: float) -> None:
            nonlocal saved
            self._report(bpp, psnr)
            if self.resume is not None and monotonic() - saved > SAVE_SECONDS:
                fit.save(self.resume, facts)
                saved = monotonic()

        self._done = self._total - self.iterations + fit.iteration if self.target.is_quality else self._done + fit.iteration
        try:
            fit.run(self.iterations, report)
        except KeyboardInterrupt:
            self.interrupted = True
        if self.resume is not None:
            fit.save(self.resume, facts)

    def _facts(self, level: int, finest: int) -> dict[str, str]:
        picture = zlib.crc32(self.picture.pixels.tobytes())
        return {
            "checkpoint": self.model.checkpoint.sha256[:8],
            "picture": f"{picture:08x}",
            "target": str(self.target),
            "level": str(level),
            "finest": str(finest),
        }

    def _stored(self) -> tuple[int, int] | None:
        """Return level and finest grid of a stored descent: what was searched is not searched again."""
        if self.resume is None or not self.resume.exists():
            return None
        facts = stored_facts(self.resume)
        try:
            level, finest = int(facts["level"]), int(facts["finest"])
        except (KeyError, ValueError):
            level, finest = -1, 0
        if not (0 <= level <= self.model.max_level and 0 <= finest <= 1):
            raise UsageError(f"{self.resume} is not the state of a fit: leave --resume away, or give the right file")
        return level, finest

    def _start(self, limit: int | None, trial: int) -> tuple[int, int]:
        """Return the rate level in 1/256 and the finest grid."""
        if self.target.psnr is not None or self.target.bpp is not None or self.target.size is not None:
            level = self._search(limit, trial)
        else:
            quality = DEFAULT_QUALITY if self.target.quality is None else self.target.quality
            level = round(quality / 100 * self.model.max_level)
            if limit is not None:
                level = min(level, self._search(limit, trial))
        return level, self._finest(level, trial)

    def _finest(self, level: int, iterations: int) -> int:
        """Return whether the finest grid pays, by short descents with and without: 0 or 1."""
        if level < FULL_RESOLUTION * 256:
            return 1
        costs = []
        for finest in (0, 1):
            fit = self.model.fit(self._x, level, finest)
            fit.run(iterations)
            costs.append(fit.measure().cost(fit.lmbda))
        return costs.index(min(costs))

    def _search(self, limit: int | None, iterations: int) -> int:
        """Return the level whose short descents come nearest to the target."""
        top = self.model.max_level
        level, tried = top // 2, dict[int, float]()
        for _ in range(SEARCHES):
            fit = self.model.fit(self._x, level, 0 if level >= FULL_RESOLUTION * 256 else 1)
            fit.run(iterations, lambda _, bpp, psnr: self._report(bpp, psnr))
            tried[level] = self._gap(self._code(fit, level), limit)
            slope = (DB_PER_LEVEL if self.target.psnr is not None else OCTAVES_PER_LEVEL) / 256
            if len(tried) > 1:
                (a, gap_a), (b, gap_b) = sorted(tried.items(), key=lambda item: abs(item[1]))[:2]
                slope = max((gap_a - gap_b) / (a - b), slope / 3)
                level = a
            found = min(max(round(level - tried[level] / slope), 0), top)
            if found in tried or abs(tried[level]) < 4 * slope:
                return found
            level = found
        return min(tried, key=lambda level: abs(tried[level]))

    def _gap(self, file: FittedFile, limit: int | None) -> float:
        """Return how far above the target a file is: dB, or octaves of bytes. Both rise with λ."""
        if self.target.psnr is not None:
            return file.psnr_db - self.target.psnr
        assert limit is not None
        return math.log2(len(file.data) / limit)

    def _meets(self, gap: float) -> bool:
        """Return whether a file is as near to the target as asked, on its right side; below a mere limit all is."""
        if self.target.psnr is not None:
            return 0 <= gap <= PSNR_TOLERANCE
        is_limit = self.target.bpp is None and self.target.size is None
        return gap <= 0 and (is_limit or gap >= math.log2(1 - SIZE_TOLERANCE))

    def _correct(self, fit: Fit, level: int, file: FittedFile, limit: int | None, iterations: int) -> FittedFile:
        """Change λ until the file meets the target; return the best file on its right side, else the nearest."""
        files = [(self._gap(file, limit), file)]
        wanted = PSNR_TOLERANCE / 2 if self.target.psnr is not None else -0.5 * SIZE_TOLERANCE * 1.44
        octaves = (
            1.0 if self.target.psnr is None else 0.7 * DB_PER_LEVEL / OCTAVES_PER_LEVEL
        )  # of λ for what is measured: a guess
        for _ in range(CORRECTIONS):
            gap = files[-1][0]
            if self._meets(gap):
                break
            step = (wanted - gap) / octaves * 1.5
            fit.lmbda *= 2 ** min(max(step, -0.7), 0.7)
            fit.extend(iterations, lambda _, bpp, psnr: self._report(bpp, psnr))
            file = self._code(fit, level)
            files.append((self._gap(file, limit), file))
        over = self.target.psnr is not None
        right = [pair for pair in files if (pair[0] >= 0) == over or pair[0] == 0]
        return min(right or files, key=lambda pair: abs(pair[0]))[1]

    def _check(self, file: FittedFile, limit: int | None) -> None:
        if limit is not None and len(file.data) > limit:
            raise TargetError(
                f"the smallest file found for this picture has {len(file.data)} bytes, at most {limit} are asked for: allow "
                "more, or give more effort"
            )
        if self.target.psnr is not None and file.psnr_db < self.target.psnr:
            raise TargetError(
                f"the best file found for this picture has a PSNR of {file.psnr_db:.2f} dB, {self.target.psnr} are asked "
                "for: ask for less, or choose another model"
            )

    def _code(self, fit: Fit, level: int) -> FittedFile:
        """Return the file of a descent as it stands."""
        h, w = self._size
        differences, _ = fit.finish()
        empty = empty_grids(fit.latents)
        differences = replace(differences, finest=max(differences.finest, empty))
        coded = self.model.code(fit.latents, differences, level, h, w, self.engine)
        picture = self.picture
        (alpha,) = pack_tiles(picture.alpha, [Rect(0, 0, w, h)])
        header = Header(
            w, h, picture.gray, self.model.checkpoint.model_id, level, 0, alpha=picture.alpha is not None, fitted=True
        )
        data = Container.of_tiles(header, [Tile(coded.payloads, coded.crc, alpha)], picture.metadata).pack()
        if self.target.psnr is None:
            return FittedFile(data, math.nan)
        pixels = FittedDecoder(self.model, w, h, level).decode(lambda _: coded.decoded, Rect(0, 0, w, h))
        return FittedFile(data, psnr_db(picture.pixels, images.shown(pixels, gray=picture.gray)))

    def _report(self, bpp: float, psnr: float) -> None:
        self._done += 1
        if self.state is None:
            self.state = State(bpp, 0.0, psnr)
        else:  # of one window after another: a mean of the last ones
            old = self.state
            self.state = State(old.latents_bpp * 0.95 + bpp * 0.05, 0.0, old.psnr_db * 0.95 + psnr * 0.05)
        now = monotonic()
        if now - self._reported > REPORT_SECONDS:
            self._reported = now
            self.progress(min(self._done / self._total, 1.0))
