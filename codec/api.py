"""The product in one page: a picture goes in, bytes come out; bytes go in, the picture comes back.

encode: images.load → x (1, 3, H, W) → model.analyse → y, z → [model.refine] → model.code → Container.pack → bytes
        (the level is given by the quality, or searched: codec.targets)
decode: Container.unpack → model.decompress → symbol CRC → images.to_pil
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache
from numbers import Integral
from os import PathLike
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bitstream.container import MAX_PIXELS, Y_TILE, Container, Header, Z, check_size, unpack_header
from bitstream.engines import default_engine
from bitstream.errors import CheckpointError, FormatError, TargetError, UsageError
from codec import images
from codec.files import check_target, read_bytes, write_atomic
from codec.images import ImageLike, Picture, Pixels
from codec.metrics import psnr_db
from codec.targets import Attempt, LevelSearch, Target
from models.manifest import find_by_id
from models.refine import STEPS
from models.runtime import LoadedModel

DEFAULT_MODEL = "swift"


class Codec:
    """A loaded model, for many calls.

    ``model`` is a name from ``codec models`` or the path of a .safetensors checkpoint; ``device`` is "cpu", "cuda" or None
    (CUDA if there is one). Encodes with this model; decodes only files that this model made. ``timings`` holds the
    seconds of each stage of the last call. Raises CheckpointError or UsageError.
    """

    def __init__(self, model: str | PathLike[str] = DEFAULT_MODEL, device: str | None = None) -> None:
        self.model = LoadedModel.load(str(model), _device(device))
        self.engine = default_engine()
        self.timings: dict[str, float] = {}

    @property
    def max_level(self) -> int:
        """Return the rate level, in 1/256, that quality 100 stands for."""
        return self.model.entropy.max_level

    def encode(
        self, image: ImageLike, *, quality: float | None = None, bpp: float | None = None, size: int | None = None,
        psnr: float | None = None, max_size: int | None = None, effort: int = 0,
        progress: Callable[[float], None] = lambda _: None,
    ) -> bytes:  # fmt: skip
        """Return the file of a picture (path, PIL image, (H, W, 3) or (H, W) uint8 array).

        ``quality`` is 0 … 100 (50 if nothing is given). Instead of it: ``bpp`` or ``size`` (bytes) for the best file that is
        not larger, ``psnr`` (dB) for the smallest that reaches it. ``max_size`` limits the bytes in any case. ``effort`` 1 … 10
        is experimental: it spends seconds to minutes per megapixel, for each attempt at a target, on a better choice of symbols
        (README has what that saves); ``progress`` is then called with the share done of each.
        Raises ImageError for what cannot be read or stored, UsageError for values that cannot be or contradict each other,
        TargetError if no file of the picture meets them.
        """
        target = Target(quality=quality, bpp=bpp, size=size, psnr=psnr, max_size=max_size)
        begin = time.perf_counter()
        picture = images.load(image)
        read = time.perf_counter() - begin
        data = self.encode_picture(picture, target, effort=effort, progress=progress)
        self.timings = {"read": read, **self.timings}
        return data

    def encode_picture(
        self, picture: Picture, target: Target, *, effort: int = 0, progress: Callable[[float], None] = lambda _: None
    ) -> bytes:
        """Return the file of a picture that ``images.load`` gave. Raises UsageError, TargetError or LimitError."""
        if not isinstance(effort, Integral) or isinstance(effort, bool) or effort not in range(len(STEPS)):
            raise UsageError(f"effort is {effort!r}, expected 0 … {len(STEPS) - 1}")
        if effort and not self.model.refinable:
            raise UsageError(f"{self.model.checkpoint.model} has no effort above 0: leave it away, or choose swift")
        h, w, _ = picture.pixels.shape
        check_size(w, h, MAX_PIXELS)
        x = torch.tensor(picture.pixels).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
        y, z = self.model.analyse(x)

        def attempt(level: int, effort: int) -> Attempt:
            chosen = self.model.refine(x, y, z, level, STEPS[effort], progress) if effort else y
            coded = self.model.code(chosen, z, level, self.engine)
            header = Header(w, h, picture.gray, self.model.checkpoint.model_id, level, coded.crc)
            data = Container(header, list(zip((Z, Y_TILE), coded.payloads, strict=True))).pack()
            return Attempt(data, math.nan if target.psnr is None else self._psnr_db(picture, coded.y_hat, level))

        top, first = self.max_level, None
        if effort and not target.is_quality:  # the plain search is where the refined one begins
            try:
                first, _ = LevelSearch(lambda level: attempt(level, 0), top).run(target, w * h)
            except TargetError:
                first = 0 if target.psnr is None else top  # refined, the last level may do
        _, found = LevelSearch(lambda level: attempt(level, effort), top).run(target, w * h, first)
        self.timings = dict(self.model.timings)
        return found.data

    def decode(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Return the picture of a file, mode RGB or L.

        Raises FormatError for damage, LimitError above ``max_pixels``, CheckpointError if other weights made the file,
        DesyncError if the decoded symbols do not have the checksum in the file.
        """
        container = self.unpack(data, max_pixels=max_pixels)
        header = container.header
        payloads = [payload for _, payload in container.chunks]
        x_hat = self.model.decompress(payloads, header.level, header.height, header.width, self.engine, header.symbol_crc)
        begin = time.perf_counter()
        image = images.to_pil(to_pixels(x_hat), gray=header.gray)
        self.timings = {**self.model.timings, "pixels": time.perf_counter() - begin}
        return image

    def unpack(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Container:
        """Return a file of this model, taken apart. Raises what ``decode`` raises before it decodes a symbol."""
        container = Container.unpack(data, max_pixels=max_pixels)
        header = container.header
        if header.model_id != self.model.checkpoint.model_id:
            raise CheckpointError(
                f"the file was made with checkpoint {header.model_id.hex()}, loaded is "
                f"{self.model.checkpoint.model_id.hex()} ({self.model.checkpoint.name}): choose the right model"
            )
        if header.level > self.max_level:
            raise FormatError(f"level is {header.level}, this model's highest is {self.max_level}: the file is damaged")
        return container

    def _psnr_db(self, picture: Picture, y_hat: Tensor, level: int) -> float:
        h, w, _ = picture.pixels.shape
        image = images.to_pil(to_pixels(self.model.synthesise(y_hat, level, h, w)), gray=picture.gray)
        return psnr_db(picture.pixels, images.load(image).pixels)


def to_pixels(x_hat: Tensor) -> Pixels:
    """Return x_hat (1, 3, H, W) as (H, W, 3) uint8."""
    return (x_hat[0] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()


def cached_codec(model: str, device: str | None = None) -> Codec:
    """Return a ``Codec`` that later calls share, also those that name its device in another way."""
    return _cached_codec(model, _device(device).type)


@lru_cache(maxsize=4)
def _cached_codec(model: str, device: str) -> Codec:
    return Codec(model, device)


def _device(name: str | None) -> torch.device:
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda, but torch finds no CUDA GPU here: use --device cpu")
    if name not in ("cpu", "cuda"):
        raise UsageError(f"device is {name!r}, expected auto, cpu or cuda")
    return torch.device(str(name))


def encode(image: ImageLike, *, model: str = DEFAULT_MODEL, device: str | None = None, **options: Any) -> bytes:
    """Return the file of a picture; ``options`` are those of ``Codec.encode``."""
    return cached_codec(str(model), device).encode(image, **options)


def decode(data: bytes, *, device: str | None = None, model: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the picture of a file, decoded with the installed checkpoint that the file names, or with ``model``.

    See ``Codec.decode`` for errors.
    """
    header, _ = unpack_header(data, max_pixels=max_pixels)
    name = str(model) if model is not None else find_by_id(header.model_id)
    return cached_codec(name, device).decode(data, max_pixels=max_pixels)


def encode_file(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    model: str = DEFAULT_MODEL,
    device: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> int:
    """Encode a picture file to a file; return its bytes. ``options`` are those of ``Codec.encode``.

    Raises UsageError if the target exists and ``overwrite`` is false.
    """
    check_target(target, overwrite=overwrite)
    data = encode(source, model=model, device=device, **options)
    write_atomic(target, data, overwrite=overwrite)
    return len(data)


def decode_file(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    device: str | None = None,
    model: str | None = None,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Header:
    """Decode a file to a picture in the format of the target's extension; return the header."""
    check_target(target, overwrite=overwrite)
    data = read_bytes(source)
    images.save(decode(data, device=device, model=model, max_pixels=max_pixels), target, overwrite=overwrite)
    return unpack_header(data, max_pixels=max_pixels)[0]
