"""The product in one page: a picture goes in, bytes come out; bytes go in, the picture comes back.

encode: images.load → x (1, 3, H, W) → model.compress → Container.pack → bytes
decode: Container.unpack → model.decompress → symbol CRC → images.to_pil
"""

from __future__ import annotations

import time
from functools import lru_cache
from os import PathLike

import torch
from PIL import Image

from bitstream.container import MAX_PIXELS, Y_TILE, Container, Header, Z, check_size, unpack_header
from bitstream.engines import default_engine
from bitstream.errors import CheckpointError, FormatError, UsageError
from codec import images
from codec.files import check_target, read_bytes, write_atomic
from codec.images import ImageLike, Picture
from models.manifest import find_by_id
from models.runtime import LoadedModel

DEFAULT_MODEL = "swift"
DEFAULT_QUALITY = 50.0


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

    def encode(self, image: ImageLike, *, quality: float = DEFAULT_QUALITY) -> bytes:
        """Return the file of a picture (path, PIL image, (H, W, 3) or (H, W) uint8 array) at quality 0 … 100.

        Raises ImageError for what cannot be read or stored, UsageError for a quality outside of 0 … 100.
        """
        begin = time.perf_counter()
        picture = images.load(image)
        read = time.perf_counter() - begin
        data = self.encode_picture(picture, quality=quality)
        self.timings = {"read": read, **self.timings}
        return data

    def encode_picture(self, picture: Picture, *, quality: float = DEFAULT_QUALITY) -> bytes:
        """Return the file of a picture that ``images.load`` gave. Raises UsageError or LimitError."""
        if not 0 <= quality <= 100:
            raise UsageError(f"quality is {quality}, expected 0 … 100")
        h, w, _ = picture.pixels.shape
        check_size(w, h, MAX_PIXELS)
        level = round(quality / 100 * self.model.entropy.max_level)
        x = torch.from_numpy(picture.pixels).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
        (z, y), crc = self.model.compress(x, level, self.engine)
        self.timings = dict(self.model.timings)
        header = Header(w, h, picture.gray, self.model.checkpoint.model_id, level, crc)
        return Container(header, [(Z, z), (Y_TILE, y)]).pack()

    def decode(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Return the picture of a file, mode RGB or L.

        Raises FormatError for damage, LimitError above ``max_pixels``, CheckpointError if other weights made the file,
        DesyncError if the decoded symbols do not have the checksum in the file.
        """
        container = Container.unpack(data, max_pixels=max_pixels)
        header, entropy = container.header, self.model.entropy
        if header.model_id != self.model.checkpoint.model_id:
            raise CheckpointError(
                f"the file was made with checkpoint {header.model_id.hex()}, loaded is "
                f"{self.model.checkpoint.model_id.hex()} ({self.model.checkpoint.name}): choose the right model"
            )
        if header.level > entropy.max_level:
            raise FormatError(f"level is {header.level}, this model's highest is {entropy.max_level}: the file is damaged")
        payloads = [payload for _, payload in container.chunks]
        x_hat = self.model.decompress(payloads, header.level, header.height, header.width, self.engine, header.symbol_crc)
        begin = time.perf_counter()
        pixels = (x_hat[0] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
        image = images.to_pil(pixels, gray=header.gray)
        self.timings = {**self.model.timings, "pixels": time.perf_counter() - begin}
        return image


@lru_cache(maxsize=4)
def cached_codec(model: str, device: str | None = None) -> Codec:
    """Return a ``Codec`` that later calls share."""
    return Codec(model, device)


def _device(name: str | None) -> torch.device:
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda, but torch finds no CUDA GPU here: use --device cpu")
    if name not in ("cpu", "cuda"):
        raise UsageError(f"device is {name!r}, expected auto, cpu or cuda")
    return torch.device(str(name))


def encode(
    image: ImageLike, *, quality: float = DEFAULT_QUALITY, model: str = DEFAULT_MODEL, device: str | None = None
) -> bytes:
    """Return the file of a picture. See ``Codec.encode``."""
    return cached_codec(str(model), device).encode(image, quality=quality)


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
    quality: float = DEFAULT_QUALITY,
    model: str = DEFAULT_MODEL,
    device: str | None = None,
    overwrite: bool = False,
) -> int:
    """Encode a picture file to a file; return its bytes. Raises UsageError if it exists and ``overwrite`` is false."""
    check_target(target, overwrite=overwrite)
    data = encode(source, quality=quality, model=model, device=device)
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
