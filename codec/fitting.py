"""Encoding with ``overfit``: a descent for each picture, of so many iterations; targets are met by the rate level.

Short descents find the level for the long one. Its latents, scaled to the gains of other levels, make the files of these
without a descent: so the level that meets the target is searched as with the other models, at first with the short descents, in
the end with the long one.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic

import numpy as np
import torch

from bitstream.engines import Engine
from bitstream.errors import TargetError, UsageError, WriteError
from bitstream.grid import padded
from codec.files import check_target
from codec.fitted_encoder import FittedEncoder
from codec.images import Picture
from codec.targets import DEFAULT_QUALITY, Attempt, Target
from models.overfit.fit import Fit, extended, sets_of
from models.overfit.runtime import OverfitModel
from models.overfit.state import State, check_facts, stored_facts
from models.overfit.windows import windows_of

ITERATIONS = (1000, 1600, 2500, 4000, 6300, 10_000, 16_000, 25_000, 40_000, 63_000, 100_000)  # by effort, of up to six windows
WINDOWS = 6
TRIAL_SHARE = 0.05  # of the iterations: descents that search
TRIALS = 3  # short descents for a target at most
NEAR = 128  # levels in 1/256 from a descent's own to which its latents serve well
SET_ITERATIONS = 2.5  # of each window take about as long as a set of the choice of symbols
POLISH_SHARE = 0.1  # of the iterations: behind the long descent, at the level that was found then
POLISHED = 8  # levels in 1/256 from which that pays
FULL_RESOLUTION = 2.5  # level from which the finest grid may pay: it is tried
SAVE_SECONDS = 60.0
REPORT_SECONDS = 0.2


@dataclass
class PictureFit:
    """The descent for one picture: as many as it takes to meet a target.

    ``progress`` is called with the share done; ``state`` is then an estimate of where the descent stands. ``resume`` names a
    file that keeps the long descent, and from which it goes on. With ``keep_interrupted`` a KeyboardInterrupt ends the descents
    instead of all, and ``interrupted`` says so.
    """

    model: OverfitModel
    engine: Engine
    picture: Picture
    target: Target
    effort: int
    progress: Callable[[float], None] = lambda _: None
    resume: Path | None = None
    keep_interrupted: bool = False
    state: State | None = None
    iterations: int = field(init=False)
    interrupted: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._encoder = FittedEncoder(self.model, self.engine, self.picture, self.target)
        h, w = self._size = self._encoder.size
        self._x = torch.from_numpy(self.picture.pixels).permute(2, 0, 1)
        self._windows = len(windows_of(padded(h), padded(w)))
        self.iterations = math.ceil(ITERATIONS[self.effort] * max(1, self._windows / WINDOWS))
        self._found: tuple[Fit, int] | None = None  # the descent that an interrupt leaves, and its level
        self._done, self._total = 0.0, 1.0
        self._reported = 0.0

    def run(self) -> bytes:
        """Return the file. Raises TargetError if no level meets the target, UsageError for a state of another descent."""
        asked, trial, polish = not self.target.is_quality, self._share(TRIAL_SHARE), self._share(POLISH_SHARE)
        behind = (polish + self._choice(extended(polish))) * asked
        short = 2 * trial + TRIALS * (trial + self._choice(trial)) * asked
        self._total = short + self.iterations + self._choice(self.iterations) + behind
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(0)
            fit, level = self._begin(trial)
            if not self.interrupted:
                self._descend(fit, level, behind)
            found, file = self._searched(fit, level)
            if abs(found - level) >= POLISHED and not self.interrupted:
                with self._interruptible():
                    file = self._polish(fit, level, found, polish) or file
        self.progress(1.0)
        return file.data

    def _share(self, share: float) -> int:
        return max(1, round(self.iterations * share))

    def _choice(self, iterations: int) -> float:
        """Return how many iterations take about as long as the choice of symbols behind so many."""
        return sets_of(iterations, self._windows) * self._windows * SET_ITERATIONS

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let an interrupt end what is done in here, if it is to be kept and there is something."""
        try:
            yield
        except KeyboardInterrupt:
            if not self.keep_interrupted or self._found is None:
                raise
            self.interrupted = True

    def _begin(self, trial: int) -> tuple[Fit, int]:
        """Return the long descent at its start, and its level; interrupted before that, the last of the short ones."""
        with self._interruptible():
            level, finest = self._stored() or self._start(trial)
            self._found = self.model.fit(self._x, level, finest), level
        assert self._found is not None
        return self._found

    def _descend(self, fit: Fit, level: int, rest: float) -> None:
        """Run the long descent, with what takes so many iterations behind it; an interrupt ends it, and what it has is kept."""
        facts = self._facts() | {"level": str(level), "finest": str(fit.finest)}
        if self.resume is not None and self.resume.exists():
            fit.resume(self.resume, facts)
        before = self._total - rest - self._choice(self.iterations) - self.iterations
        self._done = max(self._done, before + fit.iteration)
        saved, shown = monotonic(), self._choosing(self.iterations)

        def save_in_time() -> None:
            nonlocal saved
            if monotonic() - saved > SAVE_SECONDS:
                self._save(fit, facts)
                saved = monotonic()

        def report(iteration: int, bpp: float, psnr: float) -> None:
            self._report(iteration, bpp, psnr)
            save_in_time()

        def choosing(share: float) -> None:
            shown(share)
            save_in_time()

        try:
            with self._interruptible():
                fit.run(self.iterations, report, choosing)
        except KeyboardInterrupt:
            self._save(fit, facts)
            raise
        self._save(fit, facts)

    def _save(self, fit: Fit, facts: dict[str, str]) -> None:
        """Keep the descent, if it is to be; a disk that has become full is no reason to lose it."""
        if self.resume is not None:
            try:
                fit.save(self.resume, facts)
            except WriteError as error:
                warnings.warn(str(error), stacklevel=2)

    def _facts(self) -> dict[str, str]:
        """Return what must be the same where a descent goes on."""
        given = [f"{name} {float(value):g}" for name, value in asdict(self.target).items() if value is not None]
        picture = zlib.crc32(np.ascontiguousarray(self.picture.pixels).data, zlib.crc32(str(self._size).encode()))
        return {
            "checkpoint": self.model.checkpoint.sha256[:8],
            "picture": f"{picture:08x}",
            "target": " and ".join(given) or f"quality {DEFAULT_QUALITY:g}",
            "effort": str(self.effort),
        }

    def _stored(self) -> tuple[int, int] | None:
        """Return level and finest grid of a stored descent: what was searched is not searched again."""
        if self.resume is None:
            return None
        check_target(self.resume, overwrite=True)
        if not self.resume.exists():
            return None
        facts = stored_facts(self.resume)
        check_facts(self.resume, facts, self._facts())
        try:
            level, finest = int(facts["level"]), int(facts["finest"])
        except (KeyError, ValueError, TypeError):
            level, finest = -1, 0
        if not (0 <= level <= self.model.max_level and 0 <= finest <= 1):
            raise UsageError(f"{self.resume} is not the state of a fit: leave --resume away, or give the right file")
        return level, finest

    def _start(self, trial: int) -> tuple[int, int]:
        """Return the rate level in 1/256 and the finest grid of the long descent."""
        quality = DEFAULT_QUALITY if self.target.quality is None else self.target.quality
        level = round(quality / 100 * self.model.max_level)
        if not self.target.is_quality:
            level = self._try_levels(level, trial)
        return level, self._finest(level, trial)

    def _short(self, level: int, finest: int, descend: Callable[[Fit], None]) -> Fit:
        """Return a short descent, done; an interrupt leaves the last one that was, or what there is of the first."""
        fit = self.model.fit(self._x, level, finest)
        self._found = self._found or (fit, level)
        descend(fit)
        self._found = fit, level
        return fit

    def _finest(self, level: int, iterations: int) -> int:
        """Return whether the finest grid pays, by short descents with and without: 0 or 1."""
        if level < FULL_RESOLUTION * 256:
            return 1
        costs = []
        for finest in (0, 1):
            fit = self._short(level, finest, lambda fit: fit.descend(iterations, self._report))
            costs.append(fit.measure().cost(fit.lmbda))
        return costs.index(min(costs))

    def _try_levels(self, level: int, iterations: int) -> int:
        """Return the level that a short descent meets the target at, or an end of the range. Raises TargetError if far off."""
        for _ in range(TRIALS):
            finest = 0 if level >= FULL_RESOLUTION * 256 else 1
            fit = self._short(level, finest, lambda fit: fit.run(iterations, self._report, self._choosing(iterations)))
            before = level
            try:
                level, _ = self._encoder.search(fit, before)
            except TargetError:  # the long descent may do it
                level = self._encoder.nearest_end(fit, before)
            if abs(level - before) < NEAR:
                break
        return level

    def _searched(self, fit: Fit, level: int) -> tuple[int, Attempt]:
        """Return level and file of the search; a target that is missed since the descent was interrupted is said to be."""
        try:
            return self._encoder.search(fit, level)
        except TargetError as error:
            if self.interrupted:
                raise TargetError(f"interrupted before the target was met: so far, {error}") from error
            raise

    def _polish(self, fit: Fit, level: int, found: int, iterations: int) -> Attempt | None:
        """Descend a little more at the level that was found; return the file, None if it misses the target now.

        An interrupt ends that, and what it has is kept.
        """
        self.model.move(fit, level, found)
        with self._interruptible():
            fit.extend(iterations, self._report, self._choosing(extended(iterations)))
        try:
            return self._encoder.search(fit, found)[1]
        except TargetError:
            return None

    def _report(self, _: int, bpp: float, psnr: float) -> None:
        if self.state is None:
            self.state = State(bpp, 0.0, psnr)
        else:  # of one window after another: a mean of the last ones
            old = self.state
            self.state = State(old.latents_bpp * 0.95 + bpp * 0.05, 0.0, old.psnr_db * 0.95 + psnr * 0.05)
        self._show(self._done + 1)

    def _choosing(self, iterations: int) -> Callable[[float], None]:
        """Return what reports the share of the choice behind so many iterations, from where the progress is then."""
        begun: float | None = None

        def report(share: float) -> None:
            nonlocal begun
            begun = self._done if begun is None else begun
            self._show(begun + share * self._choice(iterations))

        return report

    def _show(self, done: float) -> None:
        """Report the progress, if it is time: what is worth so many iterations is done."""
        self._done, now = done, monotonic()
        if now - self._reported > REPORT_SECONDS:
            self._reported = now
            self.progress(min(done / self._total, 1.0))
