"""Files of a descent of ``overfit``, at its own level or at another one, and the search for the level that meets a target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from bitstream.container import Container, Tile
from bitstream.engines import Engine
from bitstream.grid import Rect
from bitstream.header import Header
from codec import images
from codec.alpha import pack_tiles
from codec.images import Picture
from codec.metrics import psnr_db
from codec.overfit.decoder import FittedDecoder
from codec.targets import Attempt, LevelSearch, Target
from models.overfit.fit import Fit
from models.overfit.runtime import OverfitModel, empty_grids

TOO_LARGE = 4.0  # times the limit, of a short descent: a long one ends with 0.4 of its bits or more
TOO_COARSE_DB = 6.0  # below the PSNR asked for: a long one gains about 1 dB


@dataclass(frozen=True)
class FittedEncoder:
    """Makes files of descents for one picture, which are to meet a target."""

    model: OverfitModel
    engine: Engine
    picture: Picture
    target: Target

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the picture."""
        h, w, _ = self.picture.pixels.shape
        return h, w

    @cached_property
    def _alpha(self) -> bytes:
        h, w = self.size
        return pack_tiles(self.picture.alpha, [Rect(0, 0, w, h)])[0]

    @cached_property
    def other_bytes(self) -> int:
        """Return the bytes of a file that are neither networks nor grids."""
        return len(self._packed(0, [b"", b""], 0))

    def _packed(self, level: int, payloads: list[bytes], crc: int) -> bytes:
        h, w = self.size
        picture, model_id = self.picture, self.model.checkpoint.model_id
        header = Header(w, h, picture.gray, model_id, level, 0, alpha=picture.alpha is not None, fitted=True)
        return Container.of_tiles(header, [Tile(payloads, crc, self._alpha)], picture.metadata).pack()

    def code(self, fit: Fit, at: int) -> Attempt:
        """Return the file of a descent as it stands, at its level or with its latents scaled to the gains of another one."""
        h, w = self.size
        latents = self.model.scaled(fit.latents, fit.level, at)
        differences = self.model.rebased(fit.quantise(), fit.level, at)
        differences = replace(differences, finest=max(fit.finest, empty_grids(latents)))
        coded = self.model.code(latents, differences, at, h, w, self.engine)
        data = self._packed(at, coded.payloads, coded.crc)
        if self.target.psnr is None:
            return Attempt(data)
        pixels = FittedDecoder(self.model, w, h, at).decode(lambda _: coded.decoded, Rect(0, 0, w, h))
        return Attempt(data, psnr_db(self.picture.pixels, images.shown(pixels, gray=self.picture.gray)))

    def search(self, fit: Fit) -> Attempt:
        """Return the file at the level that meets the target, of a descent as it stands. Raises TargetError."""
        h, w = self.size
        return LevelSearch(lambda at: self.code(fit, at), self.model.max_level).run(self.target, h * w, fit.level)[1]

    def check_end(self, fit: Fit) -> None:
        """Raise TargetError if a short descent at an end of the range of levels is so far off that a long one will not help."""
        h, w = self.size
        limit, psnr, file = self.target.limit(h * w), self.target.psnr, self.code(fit, fit.level)
        search = LevelSearch(lambda _: file, 0)
        if limit is not None and fit.level == 0 and (len(file.data) > TOO_LARGE * limit or limit <= self.other_bytes):
            search.run(replace(self.target, psnr=None), h * w)
        if psnr is not None and fit.level == self.model.max_level and file.psnr_db < psnr - TOO_COARSE_DB:
            search.run(Target(psnr=psnr), h * w)
