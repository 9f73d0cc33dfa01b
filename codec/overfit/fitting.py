"""Encoding with ``overfit``: a descent for each picture, of so many iterations; targets are met by the rate level.

Short descents guess the level. The long one is moved to others on its way, as it is seen where it will end. Its symbols are
then chosen again with other λ, until the file is at the target. If it ends far off, a second long descent follows. If no file
is allowed even then, latents are scaled to other levels, which is bad for them, and the level is searched as with other models.
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
from codec.images import Picture
from codec.overfit.encoder import FittedEncoder
from codec.overfit.progress import FitProgress
from codec.overfit.steering import OF_SHORT, STEERED, Outlook, Retouching, Steering
from codec.targets import DEFAULT_QUALITY, Attempt, Target
from models.overfit.fit import Fit
from models.overfit.runtime import OverfitModel, check_size
from models.overfit.state import State, check_facts, stored_facts
from models.overfit.windows import windows_of

ITERATIONS = (1000, 1600, 2500, 4000, 6300, 10_000, 16_000, 25_000, 40_000, 63_000, 100_000)  # by effort, of up to six windows
WINDOWS = 6
TRIAL_VISITS = 8  # of each window: short descents, that search
TRIALS = 3  # of them for a target at most
NEAR = 64  # levels in 1/256: a short descent that asks for a level so near is the last, they err by more
RETOUCHES = 4  # choices behind the long descent for a target at most
FINEST_MAY, FINEST_LIKELY, FINEST_DOES = 1.5, 2.5, 4.0  # levels from which the finest grid may pay, is likely to, does
FINEST_PAYS = 0.2  # bits per pixel of a short descent without the finest grid, from which it pays where it may
SAVE_SECONDS = 60.0


@dataclass
class PictureFit:
    """Encodes one picture: short descents that find a level, a long one, a second one if the target is far.

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
    iterations: int = field(init=False)
    interrupted: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._encoder = FittedEncoder(self.model, self.engine, self.picture, self.target)
        h, w = self._size = self._encoder.size
        check_size(h, w)
        self._x = torch.from_numpy(self.picture.pixels).permute(2, 0, 1)
        self._windows = len(windows_of(padded(h), padded(w)))
        self.iterations = math.ceil(ITERATIONS[self.effort] * max(1, self._windows / WINDOWS))
        other_bytes = self._encoder.other_bytes  # here, so that alpha which cannot be stored is told before the descents
        self._steering = Steering(
            self.target, h * w, 0 if self.target.is_quality else other_bytes, self.model.max_level, self.model.config.octaves
        )
        self._short_iterations = TRIAL_VISITS * self._windows
        short, retouches = (1, 0) if self.target.is_quality else (1 + TRIALS, RETOUCHES)
        self._progress = FitProgress(self.progress, short * self._short_iterations, self.iterations, self._windows, retouches)
        self._found: Fit | None = None  # the descent that an interrupt leaves
        self._is_second = False  # the long descent is the second one, at a level that the first asked for: it stays there

    @property
    def state(self) -> State | None:
        """Return where the descent stands, by estimate, once it has begun."""
        return self._progress.state

    def run(self) -> bytes:
        """Return the file. Raises TargetError if no level meets the target, UsageError for a state of another descent."""
        device = self.model.device
        try:
            with (
                torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False),  # of a caller
                torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            ):  # fmt: skip
                torch.default_generator.manual_seed(0)
                if device.type == "cuda":
                    with torch.cuda.device(device):
                        torch.cuda.manual_seed(0)
                fit = self._begin()
                if not self.interrupted:
                    self._descend(fit)
                file = self._finished(fit)
        finally:
            self._found = None  # hundreds of megabytes, of a Codec that lives as long as the process
        self._progress.end()
        return file.data

    def _finished(self, fit: Fit) -> Attempt:
        """Return the file of a descent that is done; a first interrupt now shortens the search for it."""
        try:
            return self._searched(fit) if self.target.is_quality else self._met(fit)
        except KeyboardInterrupt:
            if not self.keep_interrupted or self.interrupted:
                raise
            self.interrupted = True
            return self._searched(fit)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let an interrupt end what is done in here, if it is to be kept and there is something."""
        try:
            yield
        except KeyboardInterrupt:
            if not self.keep_interrupted or self._found is None:
                raise
            self.interrupted = True

    def _begin(self) -> Fit:
        """Return the long descent, at its start or where it was left; interrupted before that, the last of the short ones."""
        with self._interruptible():
            stored = self._stored()
            fit = self.model.fit(self._x, *(stored or self._start()))
            if stored is not None and self.resume is not None:
                fit.resume(self.resume, self._facts(fit))
            self._found = fit
        assert self._found is not None
        return self._found

    def _descend(self, fit: Fit) -> None:
        """Run a long descent, the first one steered to its target; an interrupt ends it, and what it has is kept."""
        self._progress.begin(fit.iteration, last=self._is_second)
        saved, shown = monotonic(), self._progress.choice()
        is_steered = not self.target.is_quality and not self._is_second
        steered = {round(self.iterations * share): ahead for share, ahead in STEERED.items()} if is_steered else {}

        def save_in_time() -> None:
            nonlocal saved
            if monotonic() - saved > SAVE_SECONDS:
                self._save(fit)
                saved = monotonic()

        def report(iteration: int, bpp: float, psnr: float) -> None:
            self._progress.iteration(iteration, bpp, psnr)
            if iteration in steered:
                self._steer(fit, steered[iteration])
            save_in_time()

        def choosing(share: float) -> None:
            shown(share)
            save_in_time()

        try:
            with self._interruptible():
                if fit.iteration in steered:  # an interrupt may have come before that was done
                    self._steer(fit, steered[fit.iteration])
                fit.run(self.iterations, report, choosing)
        except KeyboardInterrupt:
            self._save(fit)
            raise
        self._save(fit)

    def _steer(self, fit: Fit, ahead: Outlook) -> None:
        """Move a descent to the level at which it would end at the target."""
        level = self._steering.wanted(fit.level, fit.measure(), ahead)
        self.model.move(fit, min(max(level, 0), self.model.max_level))

    def _met(self, fit: Fit) -> Attempt:
        """Return the file nearest to the target, of those of a descent, and of a second one where it ended far off.

        Raises TargetError if none can be made.
        """
        found = self._retouched(fit)
        level = found.better_level
        if level != fit.level and not self._is_second and not self.interrupted:
            with self._interruptible():
                second = self.model.fit(self._x, level, self._finest(level))
                self._is_second = True
                self._progress.begin_again()
                self._descend(second)
                if not self.interrupted or found.best is None:  # else what is finished is the better picture
                    other = self._retouched(second)
                    if (abs(other.gap), other.nearest) < (abs(found.gap), found.nearest):
                        fit, found = second, other
                if fit is not second and not self.interrupted:
                    self._save(fit)  # in its place: no other one follows
        return found.best or self._searched(fit)

    def _retouched(self, fit: Fit) -> Retouching:
        """Choose symbols for other λ, until a file is at the target or it is in vain; an interrupt ends it.

        Each choice begins with the symbols that the descent ended with, and they are left as they were.
        """
        found, latents = Retouching(self._steering, fit.level), [value.clone() for value in fit.latents]
        with self._interruptible():
            found.add(self._encoder.code(fit, fit.level))
            for _ in range(RETOUCHES):
                if found.over:
                    break
                fit.retouch(fit.lmbda * 2**found.octaves, self._progress.retouch())
                found.add(self._encoder.code(fit, fit.level))
                fit.restore_latents(latents)
        fit.restore_latents(latents)
        return found

    def _save(self, fit: Fit) -> None:
        """Keep the descent, if it is to be; a disk that has become full is no reason to lose it."""
        if self.resume is not None:
            try:
                fit.save(self.resume, self._facts(fit))
            except WriteError as error:
                warnings.warn(str(error), stacklevel=2)

    def _facts(self, fit: Fit | None = None) -> dict[str, str]:
        """Return what must be the same where a descent goes on; of a given one, also what it is set up with again."""
        begun = {} if fit is None else {"level": fit.level, "finest": fit.finest, "second": int(self._is_second)}
        given = [f"{name} {float(value):g}" for name, value in asdict(self.target).items() if value is not None]
        picture = zlib.crc32(np.ascontiguousarray(self.picture.pixels).data, zlib.crc32(str(self._size).encode()))
        return {
            "checkpoint": self.model.checkpoint.sha256[:8],
            "picture": f"{picture:08x}",
            "target": " and ".join(given) or f"quality {DEFAULT_QUALITY:g}",
            "effort": str(self.effort),
            **{name: str(value) for name, value in begun.items()},
        }

    def _stored(self) -> tuple[int, int] | None:
        """Return level and finest grid of a stored descent, for which nothing is searched again; notes if it is the second."""
        if self.resume is None:
            return None
        check_target(self.resume, overwrite=True)
        if not self.resume.exists():
            return None
        facts = stored_facts(self.resume)
        check_facts(self.resume, facts, self._facts())
        try:
            level, finest, second = int(facts["level"]), int(facts["finest"]), int(facts["second"])
        except (KeyError, ValueError, TypeError):
            level, finest, second = -1, 0, 0
        if not (0 <= level <= self.model.max_level and 0 <= finest <= 1 and 0 <= second <= 1):
            raise UsageError(f"{self.resume} is not the state of a fit: leave --resume away, or give the right file")
        self._is_second = bool(second)
        return level, finest

    def _start(self) -> tuple[int, int]:
        """Return the rate level in 1/256 and the finest grid of the long descent."""
        level = self._steering.first
        if not self.target.is_quality:
            level = self._try_levels(level)
        return level, self._finest(level)

    def _short(self, level: int, finest: int) -> Fit:
        """Return a short descent, done; an interrupt leaves the last one that was, or what there is of the first."""
        fit = self.model.fit(self._x, level, finest)
        self._found = self._found or fit
        fit.descend(self._short_iterations, self._progress.iteration)
        self._found = fit
        return fit

    def _finest(self, level: int) -> int:
        """Return the finest grid that is not left away, 0 or 1: it pays where there are bits enough."""
        if level >= FINEST_DOES * 256:
            return 0
        return 0 if level >= FINEST_MAY * 256 and self._short(level, 1).measure().latents_bpp > FINEST_PAYS else 1

    def _try_levels(self, level: int) -> int:
        """Return about the level that meets the target, by short descents. Raises TargetError for one that is far off."""
        for _ in range(TRIALS):
            fit = self._short(level, 0 if level >= FINEST_LIKELY * 256 else 1)
            wanted = self._steering.wanted(level, fit.measure(), OF_SHORT)
            level = min(max(wanted, 0), self.model.max_level)
            if level == fit.level and level != wanted:  # it is an end, and the target lies beyond
                self._encoder.check_end(fit)
            if abs(level - fit.level) < NEAR:
                break
        return level

    def _searched(self, fit: Fit) -> Attempt:
        """Return the file of the search; a target that is missed since the descent was interrupted is said to be."""
        try:
            return self._encoder.search(fit)
        except TargetError as error:
            if self.interrupted:
                raise TargetError(f"interrupted before the target was met: so far, {error}") from error
            raise
