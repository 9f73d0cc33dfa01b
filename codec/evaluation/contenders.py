"""What runs side by side: models of ours and peers, as one kind of thing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import PIL
import torch

from bitstream.errors import TargetError, UsageError
from bitstream.header import unpack_header
from bitstream.limits import NO_LIMITS
from codec import images
from codec.api import Codec, cached_codec
from codec.evaluation.peers import Peer
from codec.images import Picture, Pixels
from codec.targets import Attempt, LevelSearch, Target
from models.configs import RateConfig
from models.overfit.configs import OverfitConfig

PROBES = 3  # further qualities that a search tries above the one it found: bytes do not always rise with them


class Made(NamedTuple):
    """A file of a contender's, its quality, and the seconds that it took."""

    quality: float
    data: bytes
    encode_s: float


class Contender(Protocol):
    """A codec with a scale of qualities."""

    @property
    def name(self) -> str:
        """Return what rows and plots call it."""
        ...

    @property
    def identity(self) -> str:
        """Return what its files depend on beside the settings: weights, or versions of libraries."""
        ...

    @property
    def device(self) -> str:
        """Return where it runs: cpu or cuda."""
        ...

    def grid(self) -> Sequence[float]:
        """Return the qualities that make a curve."""
        ...

    def facts(self, quality: float) -> dict[str, Any]:
        """Return what a row says of a quality: ``settings``, and for a model ``lmbda``. Raises UsageError if it has no such."""
        ...

    def best_within(self, picture: Picture, limit: int) -> Made:
        """Return the best file of at most ``limit`` bytes; that of the lowest quality if all are larger."""
        ...

    def encode(self, picture: Picture, quality: float) -> bytes:
        """Return the file of a picture."""
        ...

    def decode(self, data: bytes) -> Pixels:
        """Return the pixels (H, W, 3) of a file of its own."""
        ...


@dataclass(frozen=True)
class ModelContender:
    """A model of ours, by name or the path of a checkpoint."""

    model: str
    device: str
    name: str
    identity: str
    config: RateConfig | OverfitConfig

    @classmethod
    def of(cls, model: str, device: str = "auto") -> ModelContender:
        """Load a model. Raises CheckpointError or UsageError."""
        loaded = cached_codec(model, device).model
        row = loaded.checkpoint
        return cls(model, str(loaded.device), row.name, f"checkpoint {row.sha256[:16]}", loaded.config)

    @property
    def coder(self) -> Codec:
        """Return the loaded model."""
        return cached_codec(self.model, self.device)

    def grid(self) -> list[float]:
        """Return the qualities of the model's rate levels: the λ that it was trained with."""
        return [100 * level / max(self.config.levels - 1, 1) for level in range(self.config.levels)]

    def facts(self, quality: float) -> dict[str, Any]:
        """Return the λ that a quality stands for."""
        Target(quality=quality)
        level = torch.tensor(quality / 100 * (self.config.levels - 1), dtype=torch.float64)
        return {"lmbda": round(float(self.config.lmbda(level)), 6), "settings": {"quality": quality}}

    def best_within(self, picture: Picture, limit: int) -> Made:
        """Return a file; the search runs over rate levels, and its seconds count where it is one with the encoder."""
        begin = time.perf_counter()
        try:
            data = self.coder.encode_picture(picture, Target(size=limit))
        except TargetError:
            return make(self, picture, 0.0)
        seconds = time.perf_counter() - begin
        quality = 100 * unpack_header(data)[0].level / (self.coder.max_level or 1)
        if self.coder.fits_pictures:  # another descent would end in another file
            return Made(quality, data, seconds)
        return make(self, picture, quality)

    def encode(self, picture: Picture, quality: float) -> bytes:
        """Return the file of a picture."""
        return self.coder.encode_picture(picture, Target(quality=quality))

    def decode(self, data: bytes) -> Pixels:
        """Return the pixels of a file."""
        return images.load(self.coder.decode(data, limits=NO_LIMITS), limits=NO_LIMITS).pixels


@dataclass(frozen=True)
class PeerContender:
    """A codec of Pillow's, with so many threads."""

    peer: Peer
    threads: int
    identity: str

    @classmethod
    def of(cls, peer: Peer, threads: int = 1) -> PeerContender:
        """Load a codec. Raises UsageError if its library is missing."""
        return cls(peer, threads, f"Pillow {PIL.__version__}, {peer.version()}")

    @property
    def name(self) -> str:
        """Return the peer's name."""
        return self.peer.name

    @property
    def device(self) -> str:
        """Return "cpu"."""
        return "cpu"

    def grid(self) -> Sequence[float]:
        """Return the peer's qualities."""
        return self.peer.grid

    def facts(self, quality: float) -> dict[str, Any]:
        """Return the options of ``Image.save``."""
        return {"settings": self.peer.settings(quality)}

    def best_within(self, picture: Picture, limit: int) -> Made:
        """Return a file; the search runs over the peer's scale, in steps of ``Peer.step``."""
        peer = self.peer
        search = LevelSearch(lambda i: Attempt(self.encode(picture, peer.at(i))), peer.steps)
        h, w, _ = picture.pixels.shape
        with contextlib.suppress(TargetError):  # the lowest is tried below
            search.run(Target(size=limit), h * w)
        sizes = {i: len(search.at(i).data) for i in (0, *search.attempts)}
        best = _largest(sizes, limit)
        sizes |= {i: len(search.at(i).data) for i in range(best + 1, min(best + PROBES, peer.steps) + 1)}
        return make(self, picture, peer.at(_largest(sizes, limit)))

    def encode(self, picture: Picture, quality: float) -> bytes:
        """Return the file of a picture; a gray one is stored as such."""
        return self.peer.encode(picture.pixels, picture.gray, self.peer.settings(quality), self.threads)

    def decode(self, data: bytes) -> Pixels:
        """Return the pixels of a file."""
        return self.peer.decode(data)


def make(contender: Contender, picture: Picture, quality: float) -> Made:
    """Return the file of a picture at a quality."""
    begin = time.perf_counter()
    data = contender.encode(picture, quality)
    return Made(quality, data, time.perf_counter() - begin)


def _largest(sizes: Mapping[int, int], limit: int) -> int:
    """Return the step of the largest size within a limit, the highest of equal ones; 0 if none is within."""
    return max(((size, i) for i, size in sizes.items() if size <= limit), default=(0, 0))[1]


def check_names(contenders: Sequence[Contender]) -> None:
    """Raise UsageError if there is none, or if two have the same name."""
    names = [contender.name for contender in contenders]
    if not names:
        raise UsageError("no model and no peer is given: name one, for example --peers jpeg,webp")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two contenders are called {name}: give each once, or rename one of the files")
