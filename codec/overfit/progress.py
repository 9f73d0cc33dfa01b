"""How far encoding with ``overfit`` is: what it does, counted in iterations, and an estimate of where the descent stands."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from models.overfit.fit import RETOUCHING_SETS, sets_of
from models.overfit.state import State

SET_ITERATIONS = 2.5  # of each window take about as long as a set of the choice of symbols
REPORT_SECONDS = 0.2
FIRST_SHARE = 0.9  # of the progress, where a second long descent may follow


class FitProgress:
    """Calls ``progress`` with the share done, of short descents, a long one, and what is behind it: so many retouches.

    ``state`` is where the descent stands, by a mean of its last iterations.
    """

    def __init__(self, progress: Callable[[float], None], short: int, iterations: int, windows: int, retouches: int) -> None:
        self.state: State | None = None
        self._progress, self._iterations = progress, iterations
        self._choice = sets_of(iterations, windows) * windows * SET_ITERATIONS
        self._retouch = RETOUCHING_SETS * windows * SET_ITERATIONS
        self._behind = self._choice + retouches * self._retouch
        self._total = short + iterations + self._behind
        self._done = self._shown = self._reported = 0.0
        self._from, self._to, self._base = 0.0, FIRST_SHARE if retouches else 1.0, 0.0

    def begin(self, done: int, *, last: bool) -> None:
        """Say that a long descent begins, or goes on where so many iterations are done; whether no other may follow."""
        self._to = 1.0 if last else self._to
        self._done = max(self._done, self._total - self._behind - self._iterations + done)

    def begin_again(self) -> None:
        """Say that another long descent begins: it has what is left of the progress."""
        self._from, self._base = self._shown, self._done
        self._total = self._done + self._iterations + self._behind

    def iteration(self, _: int, bpp: float, psnr: float) -> None:
        """Report an iteration of any descent."""
        if self.state is None:
            self.state = State(bpp, 0.0, psnr)
        else:  # of one window after another: a mean of the last ones
            old = self.state
            self.state = State(old.latents_bpp * 0.95 + bpp * 0.05, 0.0, old.psnr_db * 0.95 + psnr * 0.05)
        self._show(self._done + 1)

    def choice(self) -> Callable[[float], None]:
        """Return what reports the share of the choice of symbols behind the long descent."""
        return self._sharing(self._choice)

    def retouch(self) -> Callable[[float], None]:
        """Return what reports the share of another choice of symbols."""
        return self._sharing(self._retouch)

    def end(self) -> None:
        """Report that all is done."""
        self._progress(1.0)

    def _sharing(self, iterations: float) -> Callable[[float], None]:
        begun: float | None = None

        def report(share: float) -> None:
            nonlocal begun
            begun = self._done if begun is None else begun
            self._show(begun + share * iterations)

        return report

    def _show(self, done: float) -> None:
        self._done, now = done, monotonic()
        if now - self._reported > REPORT_SECONDS:
            self._reported = now
            share = min((done - self._base) / (self._total - self._base), 1.0)
            self._shown = max(self._shown, self._from + (self._to - self._from) * share)
            self._progress(self._shown)
