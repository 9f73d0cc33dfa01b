"""What the fuzzers share: seeds by model, what to leave out because it is merely large, and the judgement on one decode."""

from __future__ import annotations

import re
import traceback
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from mutations import with_symbol_crc

from bitstream.container import open_container, read_head
from bitstream.errors import CodecError, DesyncError
from bitstream.header import Header
from codec.api import Codec

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
PADDING = 64  # sides are coded in multiples of this
READER_PIXELS = 2**28  # what a reader takes by default, padded: more is refused at once
SECONDS = 5.0  # that no file may take
TINY_PIXELS, SHIPPED_PIXELS = 2**17, 2**14  # padded, of a fuzzed file: a mixture may take 0.1 ms for each symbol
SHORTEST_MESSAGE = 30
ROUNDS = 4  # of a file: as it is, then with a symbol CRC mended in each

_DESYNC = re.compile(r"have CRC ([0-9a-f]{8}), the file says ([0-9a-f]{8})")


class UnhelpfulError(Exception):
    """A CodecError whose message is not a sentence that helps."""


@dataclass(frozen=True)
class Outcome:
    """What became of a file: "decoded" or the class of its error; whether the entropy decoder had begun with it."""

    name: str
    message: str
    deep: bool


def checkpoint_of(data: bytes, codecs: dict[str, Codec]) -> str | None:
    """Return the name of the codec that made a file, as far as its header says so."""
    try:
        model_id = Header.unpack(memoryview(data))[0].model_id
    except CodecError:
        return None
    return next((name for name, codec in codecs.items() if codec.model.checkpoint.model_id == model_id), None)


def tiny_codecs() -> dict[str, Codec]:
    """Return a Codec for each frozen checkpoint that golden files were made with: "tiny-attention" …"""
    return {path.stem: Codec(path, "cpu") for path in sorted(GOLDEN.glob("tiny-*.safetensors"))}


def golden_seeds(codecs: dict[str, Codec]) -> dict[str, list[bytes]]:
    """Return the golden files of each codec, the smallest first."""
    seeds: dict[str, list[bytes]] = {name: [] for name in codecs}
    for data in sorted((path.read_bytes() for path in sorted(GOLDEN.glob("*.lic"))), key=len):
        name = checkpoint_of(data, codecs)
        if name is not None:
            seeds[name].append(data)
    return seeds


def merely_large(data: bytes, pixels: int) -> bool:
    """Return whether a file claims more padded pixels than these, yet no more than a reader takes: legal, and slow."""
    try:
        header, _ = Header.unpack(memoryview(data))
    except CodecError:
        return False
    width, height = (-(-side // PADDING) * PADDING for side in (header.width, header.height))
    return pixels < width * height <= READER_PIXELS


def judge(codec: Codec, data: bytes) -> Outcome:
    """Decode a file. Raises whatever is no CodecError, and UnhelpfulError for one that does not help."""
    try:
        codec.decode(data)
    except CodecError as error:
        message = str(error)
        if len(message) <= SHORTEST_MESSAGE or "\n" in message:
            raise UnhelpfulError(f"{type(error).__name__}: {message!r}") from error
        names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
        return Outcome(type(error).__name__, message, isinstance(error, DesyncError) or "code_latents" in names)
    return Outcome("decoded", "", True)


def judge_part(codec: Codec, data: bytes) -> None:
    """Read the head of a file, then decode its last pixel, reading only what that takes. Raises whatever is no CodecError."""
    with suppress(CodecError):
        read_head(BytesIO(data))
    with suppress(CodecError):
        source = open_container(BytesIO(data))
        codec.decode_tiles(source, crop=(source.header.width - 1, source.header.height - 1, 1, 1))


def with_right_symbol_crc(data: bytes, outcome: Outcome) -> bytes | None:
    """Return a file that decoded to other symbols than it says as one that says so, which then reaches g_s; else None."""
    found = _DESYNC.search(outcome.message) if outcome.name == "DesyncError" else None
    again = None if found is None else with_symbol_crc(data, *(int(crc, 16) for crc in found.groups()))
    return None if again == data else again
