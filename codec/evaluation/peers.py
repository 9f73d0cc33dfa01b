"""The codecs that people use today, through Pillow: each at the settings that a fair reviewer would pick.

4:4:4 wherever the format has it, since PSNR is measured on RGB; a preset that takes its time without being absurd; nothing but
the picture in the file; all bytes count. JPEG is baseline: progressive files are larger at low rates, smaller at high ones.
AVIF comes twice: as the library tunes it by itself, for the eye, and for PSNR; with one thread, since its bytes change with
several.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
from PIL import Image, features

from bitstream.errors import ImageError, UsageError
from codec.images import Pixels
from codec.pillows_limit import pillows_limit

with contextlib.suppress(ImportError):  # without it there is no jxl, as ``Peer.version`` says
    import pillow_jxl  # noqa: F401  (registers JPEG XL with Pillow)
with contextlib.suppress(ImportError):
    from PIL import _avif

JXL_PLUGIN = "pillow-jxl-plugin"
GRID = (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)


def _plain(quality: float) -> dict[str, Any]:
    return {"quality": quality}


def _decibels(quality: float) -> dict[str, Any]:
    """Return JPEG 2000's quality: it has no scale of its own but a PSNR to reach; 22 … 47 dB."""
    return {"quality_mode": "dB", "quality_layers": [22 + quality / 4]}


@dataclass(frozen=True)
class Peer:
    """A codec of Pillow's: ``options`` are those of ``Image.save``, ``quality`` turns a quality into further ones.

    Qualities lie in ``lowest`` … ``highest``, the codec's own scale; whole numbers only if ``whole``. ``grid`` are those that
    make a curve; ``library`` is the name of the coder's version in ``PIL.features``.
    """

    name: str
    kind: str  # Pillow's name of the format
    library: str
    grid: tuple[float, ...]
    lowest: float = 0.0
    highest: float = 100.0
    whole: bool = True
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    threads: str = ""  # the option for the number of threads, where the file does not depend on it
    quality: Callable[[float], dict[str, Any]] = _plain

    @property
    def step(self) -> float:
        """Return the distance of two qualities that a search tells apart."""
        return 1.0 if self.whole else 0.1

    @property
    def steps(self) -> int:
        """Return how many such steps the scale has."""
        return round((self.highest - self.lowest) / self.step)

    def at(self, i: int) -> float:
        """Return the quality ``i`` steps above the lowest."""
        return round(self.lowest + i * self.step, 1)

    def settings(self, quality: float) -> dict[str, Any]:
        """Return the options of ``Image.save``. Raises UsageError for a quality that the codec does not have."""
        if not self.lowest <= quality <= self.highest or (self.whole and quality != int(quality)):
            kind = "a whole number" if self.whole else "a number"
            raise UsageError(f"{self.name}: quality is {quality:g}, expected {kind} in {self.lowest:g} … {self.highest:g}")
        own = self.quality(int(quality) if self.whole else float(quality))
        return {**own, **self.options}

    def encode(self, pixels: Pixels, gray: bool, settings: dict[str, Any], threads: int = 1) -> bytes:
        """Return the file of (H, W, 3) pixels. Raises ImageError for a picture that the format cannot hold."""
        buffer = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0]) if gray else pixels)
        try:
            image.save(buffer, format=self.kind, **settings, **({self.threads: threads} if self.threads else {}))
        except (OSError, ValueError, RuntimeError) as error:
            h, w, _ = pixels.shape
            raise ImageError(f"{self.name} cannot store a picture of {w}×{h} pixels with {settings}: {error}") from error
        return buffer.getvalue()

    def decode(self, data: bytes) -> Pixels:
        """Return the pixels (H, W, 3) of a file that ``encode`` made. Raises ImageError."""
        try:
            with pillows_limit.at(None), Image.open(io.BytesIO(data)) as image:  # as large as what was encoded
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, RuntimeError) as error:
            raise ImageError(f"{self.name} cannot read a file of its own: {error}") from error

    def version(self) -> str:
        """Return the versions of the libraries that code. Raises UsageError if one is not installed."""
        if self.library == JXL_PLUGIN:
            if self.kind not in Image.SAVE:
                raise UsageError(f"{self.name} needs {JXL_PLUGIN}: pip install 'learned-image-codec[evaluate]'")
            return f"{JXL_PLUGIN} {metadata.version(JXL_PLUGIN)}"
        if not features.check(self.library):
            raise UsageError(f"{self.name}: this Pillow was built without {self.library}: install Pillow's own wheel")
        if self.library == "avif":
            return f"libavif {features.version('avif')} ({_avif.codec_versions()})"
        if self.library == "jpg" and features.check("libjpeg_turbo"):
            return f"libjpeg-turbo {features.version('libjpeg_turbo')}"
        return f"{self.library} {features.version(self.library)}"


AVIF = {"speed": 4, "subsampling": "4:4:4", "autotiling": False, "max_threads": 1}
PEERS = {
    peer.name: peer
    for peer in (
        Peer("jpeg", "JPEG", "jpg", (*GRID[:2], 15, *GRID[2:], 98), 1, options={"optimize": True, "subsampling": 0}),
        Peer("webp", "WEBP", "webp", (0, *GRID, 99), whole=False, options={"method": 6}),
        Peer("avif", "AVIF", "avif", GRID, options=AVIF),
        Peer("avif-psnr", "AVIF", "avif", GRID, options=AVIF | {"advanced": {"tune": "psnr"}}),
        Peer("jxl", "JXL", JXL_PLUGIN, GRID, highest=99.9, whole=False, options={"effort": 7}, threads="num_threads"),
        Peer(
            "jpeg2000", "JPEG2000", "jpg_2000", (0, *GRID, 99), whole=False,
            options={"irreversible": True, "mct": 1, "no_jp2": True}, quality=_decibels,
        ),
    )
}  # fmt: skip


def peers(names: str) -> list[Peer]:
    """Return the peers of a comma-separated list. Raises UsageError for unknown ones, or if a library is missing."""
    chosen = []
    for name in filter(None, (part.strip().lower() for part in names.split(","))):
        if name not in PEERS:
            raise UsageError(f"peer {name!r} is not known: choose from {', '.join(PEERS)}")
        PEERS[name].version()
        if PEERS[name] not in chosen:
            chosen.append(PEERS[name])
    return chosen


def limit_decoders(threads: int) -> None:
    """Let the decoders of Pillow's plugins use so many threads: they have no option for it but a module's constant."""
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = threads
    if "JXL" in Image.SAVE:
        from pillow_jxl import JpegXLImagePlugin

        JpegXLImagePlugin.DECODE_THREADS = threads
