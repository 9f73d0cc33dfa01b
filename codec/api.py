"""The product in one page: a picture goes in, bytes come out; bytes go in, the picture comes back.

encode: images.load → x (1, 3, H, W) → tile by tile model.analyse → y, z → [model.refine] → model.code → Container.pack → bytes
        (the level is given by the quality, or searched: codec.targets)
decode: Container.unpack → tile by tile model.decode_latents → symbol CRC → model.synthesise → images.to_pil
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from bitstream.container import Container, TileSource, open_container
from bitstream.engines import default_engine
from bitstream.errors import CheckpointError, FormatError, TargetError, UsageError
from bitstream.grid import Rect, tile_bits
from bitstream.header import Header, unpack_header
from bitstream.limits import Limits
from codec import arrays, images
from codec.alpha import decode_alpha, pack_tiles
from codec.arrays import Decoded
from codec.compressed import DecodedLatents, decode_latents
from codec.decoders import decoder_of
from codec.devices import device_of
from codec.files import check_not_source, check_target, open_bytes, write_atomic
from codec.images import ImageLike, Picture
from codec.metadata import of_other_pixels
from codec.metrics import psnr_db
from codec.overfit.fitting import PictureFit
from codec.targets import Attempt, LevelSearch, Target
from codec.tiles import CodedTile, TileDecoder, TileEncoder, check_area
from codec.workers import loading, mark_coding, torch_threads
from models.load import Model, load_model
from models.manifest import Stamp, find_by_id, stamp
from models.refine import STEPS
from models.runtime import LoadedModel

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from codec.arguments import AreaOptions, DecodeOptions, EncodeOptions

DEFAULT_MODEL = "swift"


class Codec:
    """A loaded model, for many calls.

    ``model`` is a name from ``codec models`` or the path of a .safetensors checkpoint; ``device`` is "cpu", "cuda" or None
    (CUDA if there is one). Encodes with this model; decodes only files that this model made. ``timings`` holds the
    seconds of each stage of the last call, those of tiles added up, and ``clamped`` the number of symbols of the last file that
    were too large for the format. Raises CheckpointError or UsageError.
    """

    def __init__(self, model: str | PathLike[str] = DEFAULT_MODEL, device: str | None = None) -> None:
        self.model: Model = load_model(str(model), device_of(device))
        self._made_of = (os.path.abspath(model) if str(model).endswith(".safetensors") else str(model), device)
        mark_coding()
        self.engine = default_engine()
        self.timings: dict[str, float] = {}
        self.clamped = 0
        self.fit: PictureFit | None = None

    def __getstate__(self) -> tuple[str, str | None]:
        return self._made_of

    def __setstate__(self, made_of: tuple[str, str | None]) -> None:
        """Let a process that gets it by pickle load the model, once for all calls."""
        vars(self).update(vars(cached_codec(*made_of)))

    @property
    def fits_pictures(self) -> bool:
        """Return whether the model learns each picture that it encodes (``overfit``); ``fit`` is then that of the last one."""
        return not isinstance(self.model, LoadedModel)

    @property
    def max_level(self) -> int:
        """Return the rate level, in 1/256, that quality 100 stands for."""
        return self.model.max_level

    def encode(
        self, image: ImageLike | Tensor, *, quality: float | None = None, bpp: float | None = None, size: int | None = None,
        psnr: float | None = None, max_size: int | None = None, effort: int = 0,
        progress: Callable[[float], None] = lambda _: None, limits: Limits | None = None, strip: bool = False,
        strict: bool = False, resume: str | PathLike[str] | None = None,
    ) -> bytes:  # fmt: skip
        """Return the file of a picture: a path, the bytes of a file or an open one, a PIL image, an array, a tensor.

        Arrays are (H, W, 3) or (H, W) uint8, with alpha (H, W, 4) or (H, W, 2); tensors (C, H, W), uint8, or floating point in
        0 … 1, which is rounded.

        ``quality`` is 0 … 100 (50 if nothing is given). Instead of it: ``bpp`` or ``size`` (bytes) for the best file that is
        not larger, ``psnr`` (dB) for the smallest that reaches it. ``max_size`` limits the bytes in any case. ``effort`` 1 … 10
        is experimental: it spends seconds to minutes per megapixel, for each attempt at a target, on a better choice of symbols
        (README has what that saves); ``progress`` is then called with the share done of each. ``effort`` of ``overfit`` is the
        length of its descent, minutes to hours; ``resume`` names a file that keeps it, and from which it goes on. ``strip``
        leaves EXIF and XMP data away; with ``strict`` what would be lost (of 16 bits, CMYK, an animation) is an error, not a
        warning.
        Raises ImageError for what cannot be read or stored, LimitError for more pixels than ``limits`` allow, UsageError for
        values that cannot be or contradict each other, TargetError if no file of the picture meets them.
        """
        target = Target(quality=quality, bpp=bpp, size=size, psnr=psnr, max_size=max_size)
        begin = time.perf_counter()
        picture = images.load(arrays.as_image(image), limits=limits, strip=strip, strict=strict)
        read = time.perf_counter() - begin
        data = self.encode_picture(picture, target, effort=effort, progress=progress, resume=resume)
        self.timings = {"read": read, **self.timings}
        return data

    def encode_picture(
        self, picture: Picture, target: Target, *, effort: int = 0, progress: Callable[[float], None] = lambda _: None,
        resume: str | PathLike[str] | None = None, keep_interrupted: bool = False,
    ) -> bytes:  # fmt: skip
        """Return the file of a picture that ``images.load`` gave; see ``encode``. Raises UsageError or TargetError.

        With ``keep_interrupted`` a KeyboardInterrupt ends the descents of ``overfit`` and a file is returned;
        ``fit.interrupted`` says so.
        """
        self.check_effort(effort)
        self.model.timings.clear()
        if not isinstance(self.model, LoadedModel):
            state = None if resume is None else Path(resume)
            fit = PictureFit(self.model, self.engine, picture, target, effort, progress, state, keep_interrupted)
            self.fit = fit  # another thread may set its own
            begin = time.perf_counter()
            data = fit.run()
            self.model.timings["fit and entropy"] = time.perf_counter() - begin
            self.timings, self.clamped = dict(self.model.timings), 0
            return data
        if resume is not None:
            raise UsageError(f"{self.model.checkpoint.model} has nothing to resume: leave it away, or choose overfit")
        h, w, _ = picture.pixels.shape
        bits = tile_bits(w, h)
        x = torch.from_numpy(picture.pixels).permute(2, 0, 1)[None]  # (1, 3, H, W) uint8
        encoder = TileEncoder(self.model, self.engine, x, bits, keep=not target.is_quality)
        alphas = pack_tiles(picture.alpha, encoder.tiles)
        header = Header(w, h, picture.gray, self.model.checkpoint.model_id, 0, 0, bits, alpha=picture.alpha is not None)

        def attempt(level: int, effort: int) -> Attempt:
            coded = encoder.code(level, effort, progress, latents=target.psnr is not None)
            clamped = sum(tile.clamped for tile in coded)
            tiles = [part.tile._replace(alpha=alpha) for part, alpha in zip(coded, alphas, strict=True)]
            data = Container.of_tiles(replace(header, level=level), tiles, picture.metadata).pack()
            return Attempt(data, math.nan if target.psnr is None else self._psnr_db(picture, coded, bits), clamped)

        top, first = self.max_level, None
        if effort and not target.is_quality:  # the plain search is where the refined one begins
            try:
                first, _ = LevelSearch(lambda level: attempt(level, 0), top).run(target, w * h)
            except TargetError:
                first = 0 if target.psnr is None else top  # refined, the last level may do
        _, found = LevelSearch(lambda level: attempt(level, effort), top).run(target, w * h, first)
        self.timings, self.clamped = dict(self.model.timings), found.clamped
        return found.data

    def decode(
        self, data: bytes, *, crop: tuple[int, int, int, int] | None = None, scale: int = 1, limits: Limits | None = None,
        output: str = "pil",
    ) -> Decoded:  # fmt: skip
        """Return the picture of a file: a PIL image, mode RGB or L, with alpha RGBA or LA; ``info`` has its metadata.

        ``output`` "numpy" makes it an array (H, W, C) or (H, W) uint8, "torch" a tensor (C, H, W) on the CPU.
        ``crop`` (left, top, width, height) is the part that is wanted; ``scale`` 2, 4 or 8 gives half, a quarter, an eighth of
        its size: each pixel the mean of so many squared. Raises FormatError for damage, LimitError above ``limits``,
        CheckpointError if other weights made the file, DesyncError if decoded symbols do not have the checksum in the file.
        """
        arrays.check_output(output)
        image = self.decode_tiles(Container.unpack(data, limits=limits), crop=crop, scale=scale, limits=limits)
        return arrays.as_output(image, output)

    def decode_tiles(
        self,
        source: TileSource,
        *,
        crop: tuple[int, int, int, int] | None = None,
        scale: int = 1,
        limits: Limits | None = None,
    ) -> Image.Image:
        """Return what ``decode`` returns, of a file that is already taken apart or open: only the tiles it takes are read."""
        header = source.header
        self.check(header)
        area = check_area(crop, scale, header.width, header.height)
        most = (limits or Limits()).count_workers(area, scale, header.tile, header.width, header.height, torch_threads())
        self.model.timings.clear()
        decoder, latents_of = decoder_of(self.model, self.engine, source)
        pixels = decoder.decode(latents_of, area, scale, most)
        begin = time.perf_counter()
        alpha = decode_alpha(source, decoder.tiles, area, scale, most)
        stored, (h, w, _) = source.metadata, pixels.shape
        if (w, h) != (header.width, header.height):
            stored = of_other_pixels(stored, w, h)
        image = images.to_pil(pixels, gray=header.gray, alpha=alpha, stored=stored)
        self.timings = {**self.model.timings, "pixels": time.perf_counter() - begin}
        return image

    def encode_batch(self, images: Iterable[ImageLike | Tensor], **options: Unpack[EncodeOptions]) -> list[bytes]:
        """Return the files of a (B, C, H, W) tensor, a (B, H, W, 3) array or a list of pictures; see ``encode``."""
        return arrays.map_batch(lambda image: self.encode(image, **options), images)

    def decode_batch(self, files: Iterable[bytes], *, output: str = "pil", **options: Any) -> Decoded:
        """Return a list of PIL images, or one array or tensor, (B, …), of pictures of one size; see ``decode``."""
        arrays.check_output(output)
        return arrays.stack(arrays.map_batch(lambda data: self.decode(data, output=output, **options), files), output)

    def latents(self, data: bytes, *, limits: Limits | None = None) -> DecodedLatents:
        """Return the latents y_hat and z_hat of a file, checked as ``decode`` does it; nothing is synthesised."""
        container = Container.unpack(data, limits=limits)
        self.check(container.header)
        if not isinstance(self.model, LoadedModel):
            raise UsageError(
                "files of overfit hold grids and networks of one picture, no latents that pictures share: use another model"
            )
        return decode_latents(self.model, self.engine, container, limits)

    def check_effort(self, effort: int) -> None:
        """Raise UsageError for an effort that is none, or that this model has not."""
        if not isinstance(effort, Integral) or isinstance(effort, bool) or effort not in range(len(STEPS)):
            raise UsageError(f"effort is {effort!r}, expected 0 … {len(STEPS) - 1}")
        if effort and not self.model.refinable:
            raise UsageError(f"{self.model.checkpoint.model} has no effort above 0: leave it away, or choose swift")

    def check(self, header: Header) -> None:
        """Raise CheckpointError if another model made the file with this header, FormatError for a level that it has not."""
        if header.model_id != self.model.checkpoint.model_id:
            raise CheckpointError(
                f"the file was made with checkpoint {header.model_id.hex()}, loaded is "
                f"{self.model.checkpoint.model_id.hex()} ({self.model.checkpoint.name}): choose the right model"
            )
        if header.fitted == isinstance(self.model, LoadedModel):
            raise FormatError(
                f"the file says that it {'has' if header.fitted else 'lacks'} networks of its own, its model is "
                f"{self.model.checkpoint.model}: the file is damaged"
            )
        if header.level > self.max_level:
            raise FormatError(f"level is {header.level}, this model's highest is {self.max_level}: the file is damaged")

    def _psnr_db(self, picture: Picture, coded: list[CodedTile], bits: int) -> float:
        h, w, _ = picture.pixels.shape
        assert isinstance(self.model, LoadedModel)
        decoder = TileDecoder(self.model, w, h, bits)
        pixels = decoder.decode([tile.latents for tile in coded].__getitem__, Rect(0, 0, w, h))
        return psnr_db(picture.pixels, images.shown(pixels, gray=picture.gray))


def cached_codec(model: str, device: str | None = None) -> Codec:
    """Return a ``Codec`` that later calls share, also those that name its device in another way.

    One whose checkpoint was replaced on the disk is loaded anew: nobody could decode what the old weights make.
    """
    with loading():  # threads that come first at once do not all load it
        return _cached_codec(model, str(device_of(device)), stamp(model))


@lru_cache(maxsize=4)
def _cached_codec(model: str, device: str, _: Stamp) -> Codec:
    return Codec(model, device)


def encode(
    image: ImageLike | Tensor, *, model: str = DEFAULT_MODEL, device: str | None = None, **options: Unpack[EncodeOptions]
) -> bytes:
    """Return the file of a picture; ``options`` are those of ``Codec.encode``."""
    return cached_codec(str(model), device).encode(image, **options)


def decode(
    data: bytes, *, device: str | None = None, model: str | None = None, limits: Limits | None = None,
    **options: Unpack[DecodeOptions],
) -> Decoded:  # fmt: skip
    """Return the picture of a file, decoded with the installed checkpoint that the file names, or with ``model``.

    ``options`` and errors are those of ``Codec.decode``.
    """
    header, _ = unpack_header(data, limits=limits)
    return _codec_of(header, device, model).decode(data, limits=limits, **options)


def latents(
    data: bytes, *, device: str | None = None, model: str | None = None, limits: Limits | None = None
) -> DecodedLatents:
    """Return the latents of a file, with the installed checkpoint that it names, or with ``model``; see ``Codec.latents``."""
    header, _ = unpack_header(data, limits=limits)
    return _codec_of(header, device, model).latents(data, limits=limits)


def _codec_of(header: Header, device: str | None, model: str | None) -> Codec:
    return cached_codec(str(model) if model is not None else find_by_id(header.model_id), device)


def encode_file(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    model: str = DEFAULT_MODEL,
    device: str | None = None,
    overwrite: bool = False,
    **options: Unpack[EncodeOptions],
) -> int:
    """Encode a picture file to a file; return its bytes. ``options`` are those of ``Codec.encode``.

    Raises UsageError if the target exists and ``overwrite`` is false, or is the source, WriteError if it cannot be written.
    """
    check_target(target, overwrite=overwrite)
    check_not_source(target, [source])
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
    limits: Limits | None = None,
    **options: Unpack[AreaOptions],
) -> Header:
    """Decode a file to a picture in the format of the target's extension; return the header.

    ``options`` are those of ``Codec.decode`` but ``output``; of a file in tiles only those that a crop takes are read.
    """
    check_target(target, overwrite=overwrite)
    check_not_source(target, [source])
    images.format_of(target)
    with open_bytes(source, limits=limits) as file:
        container = open_container(file, limits=limits, whole=options.get("crop") is None)
        image = _codec_of(container.header, device, model).decode_tiles(container, limits=limits, **options)
    images.save(image, target, overwrite=overwrite)
    return container.header
