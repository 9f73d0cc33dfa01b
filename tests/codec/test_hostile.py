"""Hostile files, for every model: any bytes are decoded, or refused with a helpful CodecError, in little time and memory.

The container's own checks are tested in tests/bitstream/test_container.py; here whole files are damaged and their CRCs forged,
so that the decoders of all models see them. Longer runs of the same mutations: tests/fuzz/run, scripts/fuzz_decode.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import resource
import struct
import time
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path
from random import Random

import numpy as np
import pytest
from decoding import (
    GOLDEN,
    TINY_PIXELS,
    Outcome,
    golden_seeds,
    judge,
    merely_large,
    tiny_codecs,
    with_right_symbol_crc,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import MANGLINGS, MUTATIONS, Pieces, cut, frame, mutate, pack, seal, stream_fields, unpack, with_crc

from bitstream.errors import CheckpointError, CodecError, DesyncError, FormatError
from codec import Codec

HOSTILE = sorted((Path(__file__).parent.parent / "hostile").glob("*.lic"))
CHECKPOINTS = sorted(path.stem for path in GOLDEN.glob("tiny-*.safetensors") if "overfit" not in path.stem)
SLOW = ("tiny-attention", "tiny-joint")  # wavefronts: a file takes 15 ms, not 3
FEW_PIXELS = 2**14  # padded, of a file whose size is forged
LITTLE = 2**28  # bytes of address space: less than what the claims of the files here would take
GIGABYTES = (2**31 - 1, 2**32 - 1)


@pytest.fixture(scope="module")
def codecs() -> dict[str, Codec]:
    """A Codec for each tiny checkpoint."""
    return tiny_codecs()


@pytest.fixture(scope="module")
def seeds(codecs) -> dict[str, list[bytes]]:
    """The golden files of each tiny checkpoint, the smallest first."""
    return golden_seeds(codecs)


@pytest.fixture(params=CHECKPOINTS)
def name(request) -> str:
    """A tiny checkpoint."""
    return request.param


@pytest.fixture
def codec(codecs, name) -> Codec:
    """Its Codec."""
    return codecs[name]


@pytest.fixture
def small(seeds, name) -> bytes:
    """Its smallest golden file."""
    return seeds[name][0]


@pytest.fixture
def large(seeds, name) -> bytes:
    """Its largest golden file, in several segments if it has such."""
    return seeds[name][-1]


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Let allocations fail that are not small."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LITTLE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refused(codec: Codec, data: bytes, error: type[CodecError] = CodecError, match: str | None = None) -> str:
    """Check that a file is refused, with a sentence; return it."""
    with pytest.raises(error, match=match) as caught:
        codec.decode(data)
    message = str(caught.value)
    assert len(message) > 30
    assert "\n" not in message
    return message


def flip(data: bytes, bit: int) -> bytes:
    """Return a file with one bit flipped."""
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def with_payload(pieces: Pieces, at: int, payload: bytes) -> bytes:
    """Return a sealed file with another payload of a chunk."""
    chunks = list(pieces.chunks)
    chunks[at] = chunks[at][0], payload
    return dataclasses.replace(pieces, chunks=tuple(chunks)).join()


def decoded_or_refused(codec: Codec, data: bytes) -> Outcome | None:
    """Judge a file, and if its symbols are not those of its CRC, one where they are; None for a file that is merely large."""
    if merely_large(data, TINY_PIXELS):
        return None
    outcome = judge(codec, data)
    again = with_right_symbol_crc(data, outcome)
    if again is not None and outcome.name == "DesyncError":
        judge(codec, again)
    return outcome


def test_cutting_and_joining_a_golden_file_changes_nothing(seeds, name):
    """Else the forged files here would be refused for another reason than the one they were made for."""
    for data in seeds[name]:
        assert cut(data).join() == seal(data) == data


# --- damage that no one forged


def test_truncation_at_every_byte_is_a_format_error(codec, small):
    for length in range(len(small)):
        refused(codec, small[:length], FormatError, "cut off|not a .lic file")


def test_every_flipped_bit_is_a_format_error(codec, small):
    for bit in range(8 * len(small)):
        refused(codec, flip(small, bit), FormatError)


@pytest.mark.parametrize("mangling", MANGLINGS)
def test_a_file_mangled_by_a_mail_program_or_an_editor_is_a_format_error(codecs, seeds, mangling):
    changed = 0
    for name, codec in codecs.items():
        for data in seeds[name]:
            mangled = MANGLINGS[mangling](data)
            if mangled != data:
                changed += 1
                refused(codec, mangled, FormatError, "checksum|not a .lic file|version")
    assert changed or mangling == "CRLF to LF"  # rare in small files


def test_crlf_in_a_payload_is_kept_or_refused(codec, large):
    data = with_payload(cut(large), 1, cut(large).chunks[1][1] + b"\r\n")
    refused(codec, MANGLINGS["CRLF to LF"](data), FormatError, "checksum")


@pytest.mark.parametrize("rest", [b"\0", b"\r\n", b"\x89LIC", bytes(1000)])
def test_bytes_behind_the_end_are_a_format_error_sealed_or_not(codec, small, rest):
    refused(codec, small + rest, FormatError, "checksum")
    refused(codec, small + small, FormatError, "checksum")
    refused(codec, with_crc(small + rest), FormatError)  # the old CRC is a chunk now
    refused(codec, with_crc(small[:-4] + rest), FormatError)


# --- forged: the file CRC is right


def test_forged_truncation_at_every_byte_is_a_format_error(codec, small):
    for length in range(len(small) - 4):
        refused(codec, with_crc(small[:length]), FormatError)


def test_forged_truncation_of_every_payload_is_an_error(codec, name, small):
    pieces = cut(small)
    for at, (_, payload) in enumerate(pieces.chunks):
        for length in range(0, len(payload), 3 if name in SLOW else 1):
            refused(codec, with_payload(pieces, at, payload[:length]), FormatError)


def test_forged_bytes_behind_every_payload_are_a_format_error(codec, small):
    pieces = cut(small)
    for at, (_, payload) in enumerate(pieces.chunks):
        for rest in (b"\0", b"\x80", payload + b"\0"):
            refused(codec, with_payload(pieces, at, payload + rest), FormatError, "left")


def test_a_forged_bit_flip_of_the_header_is_an_error_or_another_picture_of_the_size_it_says(codec, small):
    pieces = cut(small)
    head = len(pieces.prefix) + sum(map(len, pieces.sides)) + len(pieces.fixed)
    for bit in range(8 * head):
        data = seal(flip(small, bit))
        if merely_large(data, FEW_PIXELS):
            continue
        with contextlib.suppress(CodecError):
            width, height = (unpack(side, 0)[0] for side in cut(data).sides)
            assert codec.decode(data).size == (width, height)


def test_a_forged_bit_flip_of_the_chunks_is_an_error_or_the_same_picture(codec, name, small):
    """The last bits of a stream may tell nothing."""
    expected = np.asarray(codec.decode(small))
    pieces = cut(small)
    head = len(pieces.prefix) + sum(map(len, pieces.sides)) + len(pieces.fixed)
    bits = range(8 * head, 8 * (len(small) - 4))
    for bit in bits[:: len(bits) // (100 if name in SLOW else 500) + 1]:
        with contextlib.suppress(CodecError):
            assert np.array_equal(np.asarray(codec.decode(seal(flip(small, bit)))), expected)


def test_chunks_swapped_repeated_dropped_or_renamed_are_a_format_error(codec, small):
    pieces = cut(small)
    orders = [order for count in range(4) for order in product(range(len(pieces.chunks)), repeat=count)]
    for order in orders:
        chunks = tuple(pieces.chunks[at] for at in order)
        if chunks != pieces.chunks:
            refused(codec, dataclasses.replace(pieces, chunks=chunks).join(), FormatError, "chunk")
    for order in permutations(range(len(pieces.chunks))):  # the types in order, the payloads not
        chunks = tuple((kind, pieces.chunks[at][1]) for (kind, _), at in zip(pieces.chunks, order, strict=True))
        if chunks != pieces.chunks:
            refused(codec, dataclasses.replace(pieces, chunks=chunks).join())


@pytest.mark.parametrize("other", CHECKPOINTS)
def test_a_file_of_another_model_is_refused_and_forged_is_judged(codec, name, seeds, other):
    """With the model's id over another model's streams the decoder goes as deep as their layouts agree."""
    if other == name:
        return
    own = codec.model.checkpoint.model_id
    for data in seeds[other][:2]:
        pieces = cut(data)
        refused(codec, data, CheckpointError, f"{pieces.fixed[:4].hex()}, loaded is {own.hex()}.*choose the right model")
        refused(codec, dataclasses.replace(pieces, fixed=own + pieces.fixed[4:]).join())


@pytest.mark.parametrize("level", [769, 2**15, 2**16 - 1])
def test_a_level_that_the_model_does_not_have_is_a_format_error(codec, small, level):
    pieces = cut(small)
    fixed = pieces.fixed[:4] + struct.pack("<H", level) + pieces.fixed[6:]
    refused(codec, dataclasses.replace(pieces, fixed=fixed).join(), FormatError, f"level is {level}.*768")


@pytest.mark.parametrize("tile", [1, 7, 8, 15, 16, 255])
def test_a_tile_field_that_the_chunks_do_not_bear_out_is_a_format_error(codec, small, tile):
    pieces = cut(small)
    fixed = pieces.fixed[:6] + bytes([tile]) + pieces.fixed[7:]
    refused(codec, dataclasses.replace(pieces, fixed=fixed).join(), FormatError)


# --- absurd claims: refused in little memory and at once


def test_little_memory_is_less_than_a_claim():
    with little_memory(), pytest.raises(MemoryError):
        np.empty(GIGABYTES[0], np.uint8)


def test_varints_of_gigabytes_are_refused_in_little_memory_and_at_once(codec, small, large):
    """Each range, length of a stream and of a segment, or what may be one, claims up to 4 GB."""
    tried, begin = 0, time.process_time()
    with little_memory():
        for data in (small, large):
            pieces = cut(data)
            for at, (_, payload) in enumerate(pieces.chunks):
                for (start, stop), claim in product(stream_fields(payload)[:16], GIGABYTES):
                    forged = with_payload(pieces, at, payload[:start] + pack(claim) + payload[stop:])
                    with contextlib.suppress(CodecError):
                        codec.decode(forged)  # it may still decode: what looked like a varint was noise that no one reads
                    tried += 1
    assert tried >= 20
    assert (time.process_time() - begin) / tried < 1


def test_chunks_of_gigabytes_are_refused_in_little_memory(codec, small):
    pieces = cut(small)
    head = dataclasses.replace(pieces, chunks=(), rest=b"").join()[:-4]
    frames = [frame(kind, payload) for kind, payload in pieces.chunks]
    with little_memory():
        for at, claim in product(range(len(frames)), GIGABYTES):
            kind, payload = pieces.chunks[at]
            forged = [*frames[:at], bytes([kind]) + pack(claim) + payload, *frames[at + 1 :]]
            refused(codec, with_crc(head + b"".join(forged)), FormatError, f"claims {claim} bytes")


@pytest.mark.parametrize("sides", [(2**24, 2**24), (2**14 + 1, 2**14), (1, 2**24), (2**24, 1), (2**32 - 1, 1), (0, 5)])
def test_pictures_above_the_limits_are_refused_in_little_memory(codec, small, sides):
    forged = dataclasses.replace(cut(small), sides=tuple(map(pack, sides))).join()
    with little_memory():
        refused(codec, forged, FormatError, f"{sides[0]}×{sides[1]}.*(limit|expected)")


def test_a_small_file_of_a_larger_picture_takes_memory_for_the_picture_alone(codec, small):
    """Streams behind whose end a decoder reads zeros: 100 bytes are a picture of 360×360, or are refused; no more."""
    begin = time.process_time()
    with little_memory():
        outcome = judge(codec, dataclasses.replace(cut(small), sides=(pack(360), pack(360))).join())
    assert outcome.name in ("FormatError", "DesyncError")
    assert time.process_time() - begin < 5


# --- what the messages say


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (FormatError, r"begins with 88 4c 49 43, expected 89 4c 49 43", lambda p: dict(prefix=b"\x88" + p.prefix[1:])),
        (FormatError, r"version 9 .*\(this program reads 1\).*update", lambda p: dict(prefix=p.prefix[:4] + b"\x09\0")),
        (FormatError, r"flags are 0x40, known are 0x07", lambda p: dict(prefix=p.prefix[:5] + b"\x40")),
        (FormatError, r"0×37, expected 1 … 16777216", lambda p: dict(sides=(b"\0", pack(37)))),
        (CheckpointError, r"checkpoint 00000000, loaded is [0-9a-f]{8}", lambda p: dict(fixed=bytes(4) + p.fixed[4:])),
        (FormatError, r"chunk type 119 is not known.*update", lambda p: dict(chunks=((0x77, b""), *p.chunks))),
        (DesyncError, r"have CRC [0-9a-f]{8}, the file says 00000000.*damaged", lambda p: dict(fixed=p.fixed[:7] + bytes(4))),
        (FormatError, r"1 bytes are left .*damaged", lambda p: dict(chunks=(*p.chunks[:-1], (2, p.chunks[-1][1] + b"\0")))),
    ],
)
def test_a_message_says_what_was_found_expected_and_what_to_do(codec, small, error, match, change):
    pieces = cut(small)
    message = refused(codec, dataclasses.replace(pieces, **change(pieces)).join(), error, match)
    assert re.search(r"damaged|update|expected|choose", message)


# --- fuzz: hypothesis shrinks what it finds

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,  # the same files every time: the long runs look for new ones
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
INTEGERS = st.one_of(st.integers(0, 300), st.integers(0, 2**35))
VARINTS = st.builds(pack, INTEGERS, st.sampled_from([0, 0, 0, 0, 1]))
RANGES = st.tuples(st.integers(0, 2050), st.integers(0, 2050)).map(lambda r: pack(min(r)) + pack(max(r)))
STREAMS = st.builds(lambda limits, payload: limits + pack(len(payload)) + payload, RANGES, st.binary(max_size=40))
CONSTANTS = st.integers(0, 60).map(lambda symbol: 2 * pack(symbol))  # a stream of one symbol again and again
PAYLOADS = st.lists(st.one_of(STREAMS, CONSTANTS, VARINTS, st.binary(max_size=8)), max_size=14).map(b"".join)
SEGMENTS = st.lists(st.one_of(STREAMS, CONSTANTS), min_size=3, max_size=3).map(
    lambda streams: b"".join([pack(len(stream)) for stream in streams] + streams)
)
CHUNKS = st.one_of(
    st.tuples(st.tuples(st.just(1), st.one_of(CONSTANTS, STREAMS, PAYLOADS)), st.tuples(st.just(2), PAYLOADS | SEGMENTS)),
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 0x81, 0xFF]), PAYLOADS), max_size=4).map(tuple),
)


@st.composite
def files(draw, model_id: bytes) -> bytes:
    """Draw a file from nothing: a header that is often sound, chunks of streams of any ranges, a right CRC."""
    prefix = b"\x89LIC\x01" + bytes([draw(st.sampled_from([0, 0, 0, 1, 2]))])
    sides = draw(st.tuples(st.integers(1, 200).map(pack), st.one_of(st.integers(1, 200).map(pack), VARINTS)))
    level, tile = draw(st.sampled_from([0, 100, 256, 768, 769])), draw(st.sampled_from([0, 0, 0, 0, 0, 8, 9]))
    fixed = model_id + struct.pack("<HBI", level, tile, draw(st.integers(0, 2**32 - 1)))
    return Pieces(prefix, sides, fixed, draw(CHUNKS), draw(st.sampled_from([b"", b"", b"", b"\x01"]))).join()


@given(data=st.data())
@FUZZ
def test_files_from_nothing_are_decoded_or_refused(codec, data):
    decoded_or_refused(codec, data.draw(files(codec.model.checkpoint.model_id)))


@given(number=st.integers(0, 2**32))
@FUZZ
def test_mutated_golden_files_are_decoded_or_refused(codec, name, seeds, number):
    rng = Random(number)
    decoded_or_refused(codec, mutate(rng, [data for files in seeds.values() for data in files], rng.choice(seeds[name])))


def test_mutations_reach_the_entropy_decoder_and_the_synthesis(codecs, seeds):
    """Else fuzzing would test the CRC."""
    name, rng = "tiny-swift", Random(1)
    outcomes = [decoded_or_refused(codecs[name], mutate(rng, seeds[name], rng.choice(seeds[name]))) for _ in range(200)]
    seen = [outcome for outcome in outcomes if outcome is not None]
    assert sum(outcome.deep for outcome in seen) > len(seen) / 2
    assert {"decoded", "DesyncError", "FormatError"} <= {outcome.name for outcome in seen}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_every_mutation_takes_any_bytes_and_can_be_repeated(seeds, mutation):
    every_seed = [data for files in seeds.values() for data in files]
    for data in (b"", b"\x89LIC", every_seed[0], bytes(40), bytes([255] * 40)):
        for seed in range(5):
            assert mutation(data, Random(seed), every_seed) == mutation(data, Random(seed), every_seed)


# --- what fuzzing found once


def test_what_was_found_once_is_of_todays_checkpoints(codecs):
    """Else each of them would be refused for that alone."""
    ids = {codec.model.checkpoint.model_id for codec in codecs.values()}
    heads = [path.read_bytes()[:64] for path in HOSTILE]
    assert all(any(model_id in head for model_id in ids) for head in heads)


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.stem)
def test_what_was_found_once_is_refused(codecs, path):
    data = path.read_bytes()
    for codec in codecs.values():
        refused(codec, data)
