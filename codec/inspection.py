"""Where the bits of a file are: its parts in bytes, bits over the picture, bits of each latent channel.

The symbols are decoded as ``codec.decode`` does it, by a reader that keeps what it read; g_s does not run. Ideal bits are −log2
of the probabilities that the CDF rows give to the symbols: the payloads of the coder are a little longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitstream.chunks import ALPHA, EXIF, GRIDS, ICC, INDEX, NETWORKS, XMP, Y_TILE, Crowd, Z, frames
from bitstream.container import Container, Tile
from bitstream.grid import Rect, cut, padded, tile_side
from bitstream.header import Header, unpack_header
from bitstream.limits import NO_LIMITS, Limits
from bitstream.mixture import Mixtures
from bitstream.recording import RecordingReader, StreamCost, StreamGroup
from bitstream.segments import Distributions, TableRows
from bitstream.tables import SCALES
from codec.api import Codec, cached_codec
from codec.files import Bytes, bytes_of
from codec.metrics import bpp
from codec.overfit.bits import Part, PartsOfBits, inspect_fit
from models.factorized_entropy import FactorizedEntropy
from models.layout import Order
from models.manifest import find_by_id
from models.overfit.runtime import OverfitModel
from models.runtime import STRIDE_Y, LoadedModel, check_symbols
from models.schedule import segments

PASSES: dict[Order, tuple[str, ...]] = {  # the segments of wavefronts are one pass here
    "one pass": ("y",),
    "checkerboard": ("y anchors", "y others"),
    "crossed": ("y first half", "y second half"),
    "wavefronts": ("y",),
}
_CHUNK_NAMES = {ALPHA: "ALPHA", INDEX: "INDEX", ICC: "ICC", EXIF: "EXIF", XMP: "XMP"}

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Channel:
    """A channel of y: its ideal bits, their share of those of all channels, and the share of its symbols that are zero."""

    index: int
    bits: float
    share: float
    zeros: float


@dataclass(frozen=True, eq=False)
class Inspection:
    """Where the bits of a file are. The bytes of ``parts`` add up to those of the file.

    ``position_bits`` (h, w) are the ideal bits of each 16×16 pixels, of the padding to multiples of 64 too; the bits of a
    symbol of z are spread over its 64×64 pixels. ``channel_bits`` and ``channel_zeros``, a share, are those of y (M,); of
    ``overfit``, whose files have no y, those of the grids (7,), the finest first.
    """

    header: Header
    model: str
    quality: float
    parts: tuple[Part, ...]
    position_bits: FloatArray
    channel_bits: FloatArray
    channel_zeros: FloatArray

    @property
    def n_bytes(self) -> int:
        """Return the bytes of the file."""
        return sum(part.n_bytes for part in self.parts)

    @property
    def cost(self) -> StreamCost:
        """Return the cost of all streams."""
        return sum((part.cost for part in self.parts), StreamCost())

    @property
    def bpp_map(self) -> FloatArray:
        """Return the ideal bits per pixel (⌈H/16⌉, ⌈W/16⌉) of each 16×16 pixels of the picture."""
        rows, columns = (-(-side // STRIDE_Y) for side in (self.header.height, self.header.width))
        return self.position_bits[:rows, :columns] / STRIDE_Y**2

    def channels(self, count: int) -> list[Channel]:
        """Return the channels of y that carry most bits, most first."""
        order = np.argsort(-self.channel_bits, kind="stable")[:count]
        shares = self.channel_bits / (self.channel_bits.sum() or 1.0)
        return [Channel(int(i), float(self.channel_bits[i]), float(shares[i]), float(self.channel_zeros[i])) for i in order]

    def facts(self, channels: int) -> dict[str, Any]:
        """Return all of it for JSON, of the map the extremes and the mean; sizes in bytes, shares in 0 … 1."""
        header, cost, bpp_map = self.header, self.cost, self.bpp_map
        return {
            "width": header.width,
            "height": header.height,
            "gray": header.gray,
            "model": self.model,
            "model_id": header.model_id.hex(),
            "quality": round(self.quality, 2),
            "bytes": self.n_bytes,
            "bpp": round(bpp(self.n_bytes, header.width, header.height), 5),
            "parts": [_part_facts(part, self.n_bytes) for part in self.parts],
            "streams": _rounded(asdict(cost)),
            "bpp_map": _rounded({name: float(getattr(bpp_map, name)()) for name in ("min", "mean", "max")}),
            "channels": [_rounded(asdict(channel)) for channel in self.channels(channels)],
        }


def _part_facts(part: Part, n_bytes: int) -> dict[str, Any]:
    return _rounded({"name": part.name, "bytes": part.n_bytes, "share": part.n_bytes / n_bytes, **asdict(part.cost)})


def _rounded(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in facts.items()}


def inspect(
    data_or_path: Bytes | str | PathLike[str], *, model: str | PathLike[str] | None = None, limits: Limits | None = None
) -> Inspection:
    """Return where the bits of a file are, decoded with the installed checkpoint that it names, or with ``model``.

    Raises what ``codec.decode`` raises, and UsageError for a path that cannot be read or what is neither.
    """
    data = bytes_of(data_or_path, limits=limits)
    name = str(model) if model is not None else find_by_id(unpack_header(data, limits=limits)[0].model_id)
    codec = cached_codec(name, "cpu")
    container = Container.unpack(data, limits=limits)
    header = container.header
    codec.check(header)
    if isinstance(codec.model, OverfitModel):
        (limits or Limits()).count_workers(
            Rect(0, 0, header.width, header.height), 1, 0, header.width, header.height, threads=1
        )
        found = inspect_fit(codec.model, codec.engine, container)
        return _inspection(codec, data, header, found.parts, found.position_bits, found.channel_bits, found.channel_zeros)
    w, h = header.width, header.height
    whole = Rect(0, 0, w, h)
    (limits or Limits()).count_workers(whole, 1, header.tile, w, h, threads=1)
    tiles = cut(whole, tile_side(header.tile, w, h))
    position_bits = np.zeros(_sides_of_y(h, w))
    parts: dict[str, Part] = {}
    channel_bits, channel_zeros = (np.zeros(codec.model.config.M) for _ in range(2))
    for number, rect in enumerate(tiles):
        found = _inspect_tile(codec, container.tile(number), rect, header.level)
        for part in found.parts:
            before = parts.get(part.name, Part(part.name, 0))
            parts[part.name] = Part(part.name, before.n_bytes + part.n_bytes, before.cost + part.cost)
        rows, columns = found.position_bits.shape
        top, left = rect.top // STRIDE_Y, rect.left // STRIDE_Y
        position_bits[top : top + rows, left : left + columns] = found.position_bits
        channel_bits, channel_zeros = channel_bits + found.channel_bits, channel_zeros + found.channel_zeros
    return _inspection(
        codec, data, header, list(parts.values()), position_bits, channel_bits, channel_zeros / position_bits.size
    )


def _inspection(
    codec: Codec, data: bytes, header: Header, parts: list[Part], position_bits: FloatArray, channel_bits: FloatArray,
    channel_zeros: FloatArray,
) -> Inspection:  # fmt: skip
    head, *frames = _frame_parts(data)
    quality = 100 * header.level / (codec.max_level or 1)
    name = codec.model.checkpoint.name
    return Inspection(header, name, quality, (head, *parts, *frames), position_bits, channel_bits, channel_zeros)


def _sides_of_y(height: int, width: int) -> tuple[int, int]:
    return padded(height) // STRIDE_Y, padded(width) // STRIDE_Y


def _inspect_tile(codec: Codec, tile: Tile, rect: Rect, level: int) -> PartsOfBits:
    """Decode the symbols of a tile and count their bits. Raises FormatError, SymbolError or DesyncError."""
    assert isinstance(codec.model, LoadedModel)
    entropy = codec.model.entropy
    h, w = _sides_of_y(rect.height, rect.width)
    reader = RecordingReader(codec.engine, tile.payloads)
    entropy.code_latents(reader, level, h, w, None)
    check_symbols(reader.crc, tile.symbol_crc)
    groups = reader.groups
    parts, position_bits = [], np.zeros((h, w))
    if entropy.layout.hyper:
        (cost,), (bits,) = groups.pop(0).measure()
        parts.append(Part("z", cost.n_bytes, cost))
        of_z = bits.reshape(h // 4, w // 4, -1).sum(axis=2) / 16
        position_bits += of_z.repeat(4, axis=0).repeat(4, axis=1)
    costs, bits_of_steps = zip(*(group.measure() for group in groups), strict=True)
    parts += _y_parts(groups, costs, entropy.layout.order, by_channel=isinstance(entropy, FactorizedEntropy))
    symbols = [symbols for group in groups for _, symbols in group.steps]
    elements = _Elements(entropy.layout.order, h, w, entropy.log2_gain.shape[1])
    of_y, channel_bits = elements.sums([bits for steps in bits_of_steps for bits in steps])
    _, zeros = elements.sums([part == 0 for part in symbols])
    return PartsOfBits(parts, position_bits + of_y, channel_bits, zeros)


def _y_parts(groups: list[StreamGroup], costs: Sequence[list[StreamCost]], order: Order, *, by_channel: bool) -> list[Part]:
    """Return a part for each pass and band of y, and one for the lengths of the streams of segments."""
    names, parts = PASSES[order], []
    bands = _band_names(groups[0].steps[0][0], by_channel)
    for number, name in enumerate(names):
        of_pass = costs if len(names) == 1 else costs[number : number + 1]
        for band, label in enumerate(bands):
            cost = sum((streams[band] for streams in of_pass), StreamCost())
            parts.append(Part(f"{name}, {label}", cost.n_bytes, cost))
    if order == "wavefronts":
        parts.append(Part("y, lengths of streams", sum(group.length_bytes for group in groups)))
    return parts


def _band_names(source: Distributions, by_channel: bool) -> list[str]:
    """Return what each band holds: so many channels, or a range of scale indexes."""
    assert isinstance(source, TableRows | Mixtures)
    rows = len(source.table.cumulative) if isinstance(source, TableRows) else SCALES
    edges = [0, *source.edges, rows]
    if by_channel:
        return [f"band {number} ({high - low} channels)" for number, (low, high) in enumerate(pairwise(edges))]
    return [f"scales {low}-{high - 1}" for low, high in pairwise(edges)]


class _Elements:
    """Which elements of y (h·w, M) the symbols of each step are."""

    def __init__(self, order: Order, h: int, w: int, channels: int) -> None:
        self._steps = [step for segment in segments(order, h, w) for step in segment]
        self._shape = h, w, channels

    def sums(self, values: Sequence[NDArray[Any]]) -> tuple[FloatArray, FloatArray]:
        """Return the sums, over positions (h, w) and over channels (M,), of values (n,) of the symbols of each step."""
        h, w, channels = self._shape
        positions, of_channels = np.zeros(h * w), np.zeros(channels)
        for step, of_step in zip(self._steps, values, strict=True):
            start = 0
            for cell in step:
                width = len(range(*cell.channels.indices(channels)))
                part = of_step[start : start + len(cell.where) * width].reshape(-1, width)
                positions[cell.where.numpy()] += part.sum(axis=1)
                of_channels[cell.channels] += part.sum(axis=0)
                start += part.size
        return positions.reshape(h, w), of_channels


def _frame_parts(data: bytes) -> list[Part]:
    """Return the parts of a file, already checked, that are not streams: header, chunk frames, other chunks, checksum."""
    view = memoryview(data)
    _, start = unpack_header(view, limits=NO_LIMITS)
    found = list(frames(view[:-4], start, Crowd()))
    others: dict[str, int] = {}  # ALPHA is in each tile
    for frame in found:
        if frame.kind not in (Z, Y_TILE, NETWORKS, GRIDS):
            name = f"chunk {_CHUNK_NAMES.get(frame.kind, hex(frame.kind))}"
            others[name] = others.get(name, 0) + frame.end - frame.inside
    heads = sum(frame.inside - frame.start for frame in found)
    named = [Part(name, n_bytes) for name, n_bytes in others.items()]
    return [Part("header", start), Part("chunk types and lengths", heads), *named, Part("checksum", 4)]
