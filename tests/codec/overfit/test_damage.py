"""Damaged and forged files of overfit: a CodecError with a sentence that helps, or a picture; never another exception."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from decoding import judge, with_right_symbol_crc
from mutations import with_crc

from bitstream.chunks import GRIDS, NETWORKS, Z
from bitstream.container import Container, Tile
from bitstream.errors import CodecError, DesyncError, FormatError
from bitstream.header import Header
from codec.inspection import inspect
from models.overfit.runtime import MAX_PIXELS

MUTATIONS = 150


@pytest.fixture(scope="module")
def tiny(fitted_codec):
    """A file of a picture of 20 × 20 pixels without many symbols: its header is a large part of it."""
    import torch

    latents = [torch.zeros(64 >> grid, 64 >> grid) for grid in range(7)]
    latents[4][0, :2], latents[6][:] = 3, -40
    return coded(fitted_codec, latents, finest=3)


def coded(fitted_codec, latents, finest):
    """Return the file of latents, 20 × 20 pixels at level 1, with the networks of the checkpoint but for one group."""
    from models.overfit.weights import Differences

    model = fitted_codec.model
    sizes = [sum(int(np.prod(model.config.shapes()[name])) for name in names) for names in model.config.groups()]
    symbols = [np.zeros(size, np.int16) for size in sizes]
    symbols[8][:] = 2  # skip
    steps = tuple(7 if part.any() else 0 for part in symbols)
    found = model.code(latents, Differences(finest, steps, tuple(symbols)), 256, 20, 20, fitted_codec.engine)
    header = Header(20, 20, False, model.checkpoint.model_id, 256, 0, fitted=True)
    return Container.of_tiles(header, [Tile(found.payloads, found.crc)]).pack()


def test_mutated_bytes_are_refused_or_decoded(fitted_codec, tiny):
    """Each byte in turn of the header and the chunks, their CRCs made right again."""
    random, seen = Random(8), set()
    for number in range(MUTATIONS):
        at = number * (len(tiny) - 4) // MUTATIONS
        data = with_crc(tiny[:at] + bytes([tiny[at] ^ random.randrange(1, 256)]) + tiny[at + 1 : -4])
        try:
            header, _ = Header.unpack(memoryview(data))
            if header.width * header.height > 2**18:
                continue  # legal, and slow
        except CodecError:
            pass
        outcome = judge(fitted_codec, data)
        seen.add(outcome.name)
        mended = with_right_symbol_crc(data, outcome) if number % 4 == 0 else None
        if mended is not None:
            seen.add(judge(fitted_codec, mended).name)
    assert seen >= {"FormatError", "DesyncError", "CheckpointError", "VersionError", "decoded"}


def test_each_byte_cut_off_is_noticed(fitted_codec, tiny):
    for end in range(0, len(tiny), 5):
        with pytest.raises(FormatError):
            fitted_codec.decode(tiny[:end])
    for end in range(30, len(tiny) - 4, 5):
        with pytest.raises(FormatError):
            fitted_codec.decode(with_crc(tiny[:end]))
    with pytest.raises(FormatError):
        fitted_codec.decode(with_crc(tiny[:-4] + b"\0"))


@pytest.mark.parametrize(
    "order", [(1, 0), (0,), (1,), (), (0, 0, 1), (0, 1, 1), (0, 1, 0, 1)], ids=lambda order: "".join("NG"[i] for i in order)
)
def test_chunks_missing_twice_or_in_another_order_are_refused(fitted_codec, tiny, order):
    container = Container.unpack(tiny)
    assert [kind for kind, _ in container.chunks] == [NETWORKS, GRIDS]
    forged = Container(container.header, [container.chunks[i] for i in order]).pack()
    with pytest.raises(FormatError):
        fitted_codec.decode(forged)


def test_chunks_of_other_models_are_refused(fitted_codec, tiny):
    container = Container.unpack(tiny)
    networks, grids = (payload for _, payload in container.chunks)
    for chunks in ([(Z, networks), (GRIDS, grids)], [(NETWORKS, networks), (GRIDS, grids), (Z, b"")]):
        with pytest.raises(FormatError):
            fitted_codec.decode(Container(container.header, chunks).pack())


@pytest.mark.parametrize("number", [0, 1])
def test_payloads_too_short_or_too_long_are_refused(fitted_codec, tiny, number):
    container = Container.unpack(tiny)
    for change in (lambda payload: payload[:-1], lambda payload: payload + b"\0", lambda payload: b""):
        chunks = list(container.chunks)
        chunks[number] = chunks[number][0], change(chunks[number][1])
        with pytest.raises((FormatError, DesyncError)):
            fitted_codec.decode(Container(container.header, chunks).pack())


def test_a_picture_of_zeros_alone_decodes_and_adds_up(fitted_codec, overfit_checkpoint):
    import torch

    data = coded(fitted_codec, [torch.zeros(64 >> grid, 64 >> grid) for grid in range(7)], finest=7)
    assert fitted_codec.decode(data).size == (20, 20)
    found = inspect(data, model=str(overfit_checkpoint))
    assert found.n_bytes == len(data)
    assert found.position_bits.sum() == 0


def test_a_claim_of_more_pixels_than_the_model_takes_is_refused_at_once(fitted_codec, overfit_checkpoint, tiny):
    container = Container.unpack(tiny)
    side = int(MAX_PIXELS**0.5) + 1
    header = Header(side, side, False, container.header.model_id, 256, 0, fitted=True)
    data = Container(header, container.chunks).pack()
    with pytest.raises(FormatError, match="the format allows 16777216: the file is damaged"):
        fitted_codec.decode(data)
    with pytest.raises(FormatError, match="the format allows 16777216: the file is damaged"):
        inspect(data, model=str(overfit_checkpoint))


def test_a_level_that_the_model_lacks_is_refused(fitted_codec, tiny):
    container = Container.unpack(tiny)
    header = Header(20, 20, False, container.header.model_id, 513, 0, fitted=True)
    with pytest.raises(FormatError, match="level is 513, this model's highest is 512"):
        fitted_codec.decode(Container(header, container.chunks).pack())
