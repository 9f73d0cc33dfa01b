"""Files of a descent of ``overfit``, at its own level or at another one, and the search for the level that meets a target."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bitstream.container import Container, Tile
from bitstream.engines import Engine
from bitstream.grid import Rect
from bitstream.header import Header
from codec import images
from codec.alpha import pack_tiles
from codec.fitted import FittedDecoder
from codec.images import Picture
from codec.metrics import psnr_db
from codec.targets import Attempt, LevelSearch, Target
from models.overfit.fit import Fit
from models.overfit.runtime import OverfitModel, empty_grids

TOO_LARGE, TOO_COARSE_DB = 2.0, 6.0  # of a short descent, for a long one to meet the target


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

    def code(self, fit: Fit, level: int, at: int) -> Attempt:
        """Return the file of a descent at a level as it stands, its latents scaled to the gains of another one."""
        h, w = self.size
        latents = self.model.scaled(fit.latents, level, at)
        differences = self.model.rebased(fit.quantise(), level, at)
        differences = replace(differences, finest=max(fit.finest, empty_grids(latents)))
        coded = self.model.code(latents, differences, at, h, w, self.engine)
        picture = self.picture
        (alpha,) = pack_tiles(picture.alpha, [Rect(0, 0, w, h)])
        header = Header(w, h, picture.gray, self.model.checkpoint.model_id, at, 0, alpha=picture.alpha is not None, fitted=True)
        data = Container.of_tiles(header, [Tile(coded.payloads, coded.crc, alpha)], picture.metadata).pack()
        if self.target.psnr is None:
            return Attempt(data)
        pixels = FittedDecoder(self.model, w, h, at).decode(lambda _: coded.decoded, Rect(0, 0, w, h))
        return Attempt(data, psnr_db(picture.pixels, images.shown(pixels, gray=picture.gray)))

    def search(self, fit: Fit, level: int) -> tuple[int, Attempt]:
        """Return the level that meets the target, and its file, of a descent at a level as it stands. Raises TargetError."""
        h, w = self.size
        return LevelSearch(lambda at: self.code(fit, level, at), self.model.max_level).run(self.target, h * w, level)

    def nearest_end(self, fit: Fit, level: int) -> int:
        """Return the end of the range of levels that is nearest to a target which no level meets, of a descent at a level.

        Raises TargetError if the descent stands there and is so far off that a long one will not help.
        """
        h, w = self.size
        limit, file = self.target.limit(h * w), self.code(fit, level, level)
        end = 0 if limit is not None and len(file.data) > limit else self.model.max_level
        if end == level:
            far = limit is not None and len(file.data) > TOO_LARGE * limit
            if far or (self.target.psnr is not None and file.psnr_db < self.target.psnr - TOO_COARSE_DB):
                LevelSearch(lambda _: file, 0).run(self.target, h * w)
        return end
