"""The public API: round trips, determinism, and every kind of damage or forgery refused with an error of ours."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import io
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import codec
from bitstream.container import Container
from bitstream.limits import Limits
from codec import (
    CheckpointError,
    Codec,
    CodecError,
    DesyncError,
    FormatError,
    LimitError,
    UsageError,
    decode,
    decode_file,
    encode,
    encode_file,
    info,
)
from codec.api import cached_codec
from codec.arguments import DecodeOptions, EncodeOptions
from codec.devices import device_of
from codec.metrics import psnr_db

SIZES = [(1, 1), (1, 37), (37, 1), (63, 64), (65, 129), (512, 768)]  # (height, width)


@pytest.fixture
def small(tiny_codec, picture):
    """The file of a 20 × 20 picture at the lowest quality."""
    return tiny_codec.encode(picture(20, 20), quality=0)


def forge(data, header=None, payloads=None):
    """Return the file with header fields or payloads (by index) replaced, and a valid file CRC."""
    container = Container.unpack(data)
    chunks = [(kind, (payloads or {}).get(i, payload)) for i, (kind, payload) in enumerate(container.chunks)]
    return Container(dataclasses.replace(container.header, **(header or {})), chunks).pack()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[1]}x{size[0]}")
@pytest.mark.parametrize("quality", [0, 33.3, 100])  # 33.3 % of level 768 is 255.7
def test_round_trip_gives_the_size_back(tiny_codec, picture, size, quality):
    data = tiny_codec.encode(picture(*size), quality=quality)
    image = tiny_codec.decode(data)
    assert (image.mode, image.size) == ("RGB", size[::-1])
    header = info(data)
    assert (header.height, header.width, header.gray) == (*size, False)
    assert header.level == round(768 * quality / 100)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[1]}x{size[0]}")
def test_header_and_frames_take_at_most_32_bytes(tiny_codec, picture, size):
    data = tiny_codec.encode(picture(*size), quality=100)
    assert len(data) - sum(len(payload) for _, payload in Container.unpack(data).chunks) <= 32


def test_two_encodes_give_equal_bytes(tiny_codec, tiny_checkpoint, picture):
    data = tiny_codec.encode(picture(65, 129))
    assert tiny_codec.encode(picture(65, 129)) == data
    assert Codec(tiny_checkpoint, "cpu").encode(picture(65, 129)) == data


def test_two_decodes_give_equal_pixels(tiny_codec, picture):
    data = tiny_codec.encode(picture(65, 129))
    assert tiny_codec.decode(data).tobytes() == tiny_codec.decode(data).tobytes()


def test_array_pil_and_path_give_equal_bytes(tiny_codec, picture, png):
    path = png(33, 50)
    with Image.open(path) as image:
        files = {tiny_codec.encode(source) for source in (picture(33, 50), image, path, str(path))}
    assert len(files) == 1


def test_arrays_that_are_not_contiguous_are_read_right(tiny_codec, picture):
    turned = picture(40, 30).transpose(1, 0, 2)[:, ::-1]
    assert tiny_codec.encode(turned) == tiny_codec.encode(turned.copy())


def test_encoding_does_not_change_the_array(tiny_codec, picture):
    pixels = picture(20, 20)
    tiny_codec.encode(pixels)
    assert np.array_equal(pixels, picture(20, 20))


def test_gray_stays_gray(tiny_codec, picture):
    gray = picture(40, 50)[:, :, 0]
    data = tiny_codec.encode(gray, quality=100)
    assert info(data).gray
    image = tiny_codec.decode(data)
    assert (image.mode, image.size) == ("L", (50, 40))
    assert tiny_codec.encode(Image.fromarray(gray), quality=100) == data


def test_a_colour_picture_with_equal_channels_stays_rgb(tiny_codec, picture):
    data = tiny_codec.encode(np.repeat(picture(20, 20)[:, :, :1], 3, axis=2))
    assert not info(data).gray
    assert tiny_codec.decode(data).mode == "RGB"


def test_size_and_psnr_rise_with_quality(tiny_codec, picture):
    pixels = picture(96, 128)
    files = [tiny_codec.encode(pixels, quality=quality) for quality in range(0, 101, 10)]
    sizes = [len(data) for data in files]
    assert all(one < two for one, two in zip(sizes, sizes[1:], strict=False))
    psnr = [psnr_db(pixels, np.asarray(tiny_codec.decode(files[i]))) for i in (0, 5, 10)]
    assert psnr[0] < psnr[1] < psnr[2]


@pytest.mark.parametrize("quality", [-0.001, -1, 100.5, 1e9, float("nan"), float("inf"), float("-inf")])
def test_quality_outside_of_0_to_100_is_refused(tiny_codec, picture, quality):
    with pytest.raises(UsageError, match=f"quality is {quality}, expected 0 … 100"):
        tiny_codec.encode(picture(8, 8), quality=quality)


def test_every_flipped_bit_is_an_error(tiny_codec, small):
    for bit in range(8 * len(small)):
        damaged = bytearray(small)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            tiny_codec.decode(bytes(damaged))


def test_truncation_at_every_length_is_an_error(tiny_codec, small):
    for length in range(len(small)):
        with pytest.raises(FormatError):
            tiny_codec.decode(small[:length])


@pytest.mark.parametrize("rest", [b"\0", b"\n", b"\x89LIC"])
def test_bytes_behind_the_file_are_an_error(tiny_codec, small, rest):
    with pytest.raises(FormatError):
        tiny_codec.decode(small + rest)


def test_forged_payload_bits_never_give_another_picture(tiny_codec, small):
    expected = tiny_codec.decode(small).tobytes()
    payloads = [payload for _, payload in Container.unpack(small).chunks]
    refused = 0
    flips = [(i, bit) for i in (0, 1) for bit in range(0, 8 * len(payloads[i]), 1 if i == 0 else 3)]
    for i, bit in flips:
        payload = bytearray(payloads[i])
        payload[bit // 8] ^= 1 << bit % 8
        try:
            image = tiny_codec.decode(forge(small, payloads={i: bytes(payload)}))
        except (DesyncError, FormatError):
            refused += 1
        else:
            assert image.tobytes() == expected  # a padding bit behind the last symbol
    assert refused > 0.85 * len(flips)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    "change", [lambda p: b"", lambda p: p[:-1], lambda p: p + b"\0", lambda p: bytes([p[0] ^ 2]) + p[1:], lambda p: p * 2]
)
def test_forged_payloads_are_refused(tiny_codec, picture, index, change):
    data = tiny_codec.encode(picture(64, 64), quality=100)
    payload = Container.unpack(data).chunks[index][1]
    with pytest.raises((DesyncError, FormatError)):
        tiny_codec.decode(forge(data, payloads={index: change(payload)}))


def test_swapped_payloads_are_refused(tiny_codec, small):
    z, y = (payload for _, payload in Container.unpack(small).chunks)
    with pytest.raises((DesyncError, FormatError)):
        tiny_codec.decode(forge(small, payloads={0: y, 1: z}))


def test_forged_symbol_crc_is_a_desync(tiny_codec, small):
    crc = info(small).symbol_crc
    with pytest.raises(DesyncError, match=f"CRC {crc:08x}, the file says {crc ^ 1:08x}: .*codec doctor"):
        tiny_codec.decode(forge(small, {"symbol_crc": crc ^ 1}))


@pytest.mark.parametrize("level", [769, 65535])
def test_level_above_the_models_is_refused(tiny_codec, small, level):
    with pytest.raises(FormatError, match=f"level is {level}, this model's highest is 768"):
        tiny_codec.decode(forge(small, {"level": level}))


def test_another_level_is_a_desync(tiny_codec, picture):
    data = tiny_codec.encode(picture(64, 64), quality=100)
    with pytest.raises((DesyncError, FormatError)):
        tiny_codec.decode(forge(data, {"level": 300}))


@pytest.mark.parametrize("size", [(65, 20), (20, 65), (2**14, 2**14)])
def test_another_size_is_refused(tiny_codec, picture, size):
    data = tiny_codec.encode(picture(20, 20), quality=100)
    if size[0] * size[1] > 2**20:
        with pytest.raises(LimitError):
            tiny_codec.decode(forge(data, {"width": size[0], "height": size[1]}), limits=Limits(max_pixels=2**20))
    else:
        with pytest.raises((DesyncError, FormatError)):
            tiny_codec.decode(forge(data, {"width": size[0], "height": size[1]}))


def test_a_file_of_another_checkpoint_is_refused(tiny_codec, small):
    model_id = tiny_codec.model.checkpoint.model_id
    with pytest.raises(CheckpointError, match=f"made with checkpoint 00010203, loaded is {model_id.hex()} .tiny-swift.*choose"):
        tiny_codec.decode(forge(small, {"model_id": b"\0\1\2\3"}))


@pytest.mark.usefixtures("installed")
def test_a_file_of_a_checkpoint_that_is_not_installed_is_refused(small):
    with pytest.raises(CheckpointError, match="00010203, which is not installed"):
        decode(forge(small, {"model_id": b"\0\1\2\3"}), device="cpu")


def test_max_pixels_is_a_limit(tiny_codec, small):
    assert tiny_codec.decode(small, limits=Limits(max_pixels=400)).size == (20, 20)
    with pytest.raises(LimitError, match="20×20 pixels, the limit is 399: raise it"):
        tiny_codec.decode(small, limits=Limits(max_pixels=399))
    with pytest.raises(LimitError):
        decode(small, limits=Limits(max_pixels=399))


@pytest.mark.parametrize("data", [b"", b"\x89", b"\x89LIC", b"\x89PNG\r\n\x1a\n" + bytes(30), bytes(100)])
def test_what_is_no_file_of_ours_is_refused(tiny_codec, data):
    with pytest.raises(FormatError):
        tiny_codec.decode(data)


@pytest.mark.usefixtures("installed")
def test_module_functions_find_the_model_by_the_file(picture, tiny_codec):
    data = encode(picture(33, 20), quality=70, device="cpu")
    assert data == tiny_codec.encode(picture(33, 20), quality=70)
    assert decode(data, device="cpu").tobytes() == tiny_codec.decode(data).tobytes()


def test_module_functions_take_a_checkpoint_path(picture, tiny_checkpoint, tiny_codec):
    data = encode(picture(33, 20), model=str(tiny_checkpoint), device="cpu")
    assert decode(data, model=str(tiny_checkpoint), device="cpu").tobytes() == tiny_codec.decode(data).tobytes()


@pytest.mark.usefixtures("installed")
def test_encode_file_and_decode_file(tmp_path, png, tiny_codec):
    target, back = tmp_path / "a.lic", tmp_path / "back.png"
    n_bytes = encode_file(png(33, 50), target, quality=80, device="cpu")
    assert n_bytes == target.stat().st_size
    header = decode_file(target, back, device="cpu")
    assert (header.width, header.height) == (50, 33)
    with Image.open(back) as image:
        assert image.tobytes() == tiny_codec.decode(target.read_bytes()).tobytes()


@pytest.mark.usefixtures("installed")
def test_files_are_overwritten_only_when_told(tmp_path, png):
    source, target, back = png(8, 8), tmp_path / "a.lic", tmp_path / "back.png"
    encode_file(source, target, device="cpu")
    decode_file(target, back, device="cpu")
    before = (target.read_bytes(), back.read_bytes())
    with pytest.raises(UsageError, match=r"a\.lic exists: give -f"):
        encode_file(source, target, quality=100, device="cpu")
    with pytest.raises(UsageError, match=r"back\.png exists"):
        decode_file(target, back, device="cpu")
    assert (target.read_bytes(), back.read_bytes()) == before
    encode_file(source, target, quality=100, device="cpu", overwrite=True)
    decode_file(target, back, device="cpu", overwrite=True)
    assert target.read_bytes() != before[0]


@pytest.mark.usefixtures("installed")
def test_no_file_is_left_after_an_error(tmp_path, small):
    (tmp_path / "bad.lic").write_bytes(small[:-1])
    (tmp_path / "bad.png").write_bytes(b"no picture")
    before = set(tmp_path.iterdir())
    with pytest.raises(CodecError):
        decode_file(tmp_path / "bad.lic", tmp_path / "out.png", device="cpu")
    with pytest.raises(CodecError):
        encode_file(tmp_path / "bad.png", tmp_path / "out.lic", device="cpu")
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("device", ["tpu", "cuda:x", ""])
def test_an_unknown_device_is_refused(tiny_checkpoint, device):
    with pytest.raises(UsageError, match="expected auto, cpu or cuda"):
        Codec(tiny_checkpoint, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused(tiny_checkpoint):
    with pytest.raises(UsageError, match="no CUDA GPU here: use --device cpu"):
        Codec(tiny_checkpoint, "cuda")
    assert Codec(tiny_checkpoint, "auto").model.device.type == "cpu"


def test_timings_name_the_stages(tiny_checkpoint, picture):
    own = Codec(tiny_checkpoint, "cpu")
    data = own.encode(picture(8, 8))
    assert list(own.timings) == ["read", "g_a", "h_a", "entropy"]
    own.decode(data)
    assert list(own.timings) == ["entropy", "g_s", "pixels"]


def test_all_public_names_exist():
    for name in codec.__all__:
        assert getattr(codec, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'codec' has no attribute 'compress'"):
        _ = codec.compress


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_model_is_loaded_once_for_all_names_of_its_device(tiny_checkpoint):
    assert cached_codec(str(tiny_checkpoint)) is cached_codec(str(tiny_checkpoint), "auto")
    assert cached_codec(str(tiny_checkpoint)) is cached_codec(str(tiny_checkpoint), "cpu")


@pytest.mark.parametrize(
    "call", [decode, codec.latents, lambda path: Codec("swift").decode(path)], ids=["decode", "latents", "Codec"]
)
@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_where_bytes_are_expected_is_one_sentence(call, kind):
    with pytest.raises(UsageError, match=r"the file is of type \w+, expected its bytes: of a path take decode_file"):
        call(kind("photo.lic"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.usefixtures("installed")
def test_every_function_heeds_the_device(small, picture, png, tmp_path):
    source = png(8, 8)
    (tmp_path / "a.lic").write_bytes(small)
    for call in (
        lambda: encode(picture(8, 8), device="cuda"),
        lambda: decode(small, device="cuda:1"),
        lambda: codec.latents(small, device="cuda"),
        lambda: codec.encode_batch([picture(8, 8)], device="cuda"),
        lambda: codec.decode_batch([small], device="cuda"),
        lambda: encode_file(source, tmp_path / "b.lic", device="cuda"),
        lambda: decode_file(tmp_path / "a.lic", tmp_path / "b.png", device="cuda"),
    ):
        with pytest.raises(UsageError, match="no CUDA GPU here"):
            call()


@pytest.mark.parametrize("name", ["cuda:", "cuda:x", "cuda:-1", "gpu", 0])
def test_a_device_that_is_none_is_refused(name):
    with pytest.raises(UsageError, match="expected auto, cpu or cuda, or cuda:1"):
        device_of(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="torch finds 2 CUDA GPUs here"):
        device_of("cuda:2")


def test_a_checkpoint_that_is_replaced_is_loaded_anew(tiny_checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "mine.safetensors"
    shutil.copy(tiny_checkpoint, path)
    first = cached_codec(str(path))
    monkeypatch.chdir(tmp_path)
    assert cached_codec("mine.safetensors").model.checkpoint.sha256 == first.model.checkpoint.sha256
    assert cached_codec(str(path)) is first
    os.utime(path, ns=(1, 1))
    assert cached_codec(str(path)) is not first


def test_threads_that_come_first_at_once_load_one(tiny_checkpoint, tmp_path):
    path = tmp_path / "mine.safetensors"
    shutil.copy(tiny_checkpoint, path)
    with ThreadPoolExecutor(4) as pool:
        assert len({id(c) for c in pool.map(lambda _: cached_codec(str(path)), range(4))}) == 1


def test_another_process_gets_a_codec_of_its_own(tiny_checkpoint, small):
    back = pickle.loads(pickle.dumps(Codec(tiny_checkpoint, "cpu")))
    assert back.model is cached_codec(str(tiny_checkpoint), "cpu").model
    assert back.decode(small).size


def test_names_complete_and_the_batch_is_there():
    assert {"encode", "decode", "Codec", "batch", "__version__"} <= set(dir(codec))
    assert codec.batch.run is importlib.import_module("codec.batch").run


@pytest.mark.usefixtures("installed")
def test_a_source_is_never_its_own_target(png, tmp_path, small):
    source = png(8, 8)
    with pytest.raises(UsageError, match="is the source too"):
        encode_file(source, source, overwrite=True)
    (tmp_path / "a.lic").write_bytes(small)
    with pytest.raises(UsageError, match="is the source too"):
        decode_file(tmp_path / "a.lic", tmp_path / "a.lic", overwrite=True)
    with pytest.raises(UsageError, match="the target is of type BytesIO, expected a path"):
        decode_file(tmp_path / "a.lic", io.BytesIO())
    with pytest.raises(UsageError, match="the source is of type BytesIO, expected a path"):
        decode_file(io.BytesIO(small), tmp_path / "b.png")


@pytest.mark.parametrize(
    ("kind", "method", "others"), [(EncodeOptions, Codec.encode, set()), (DecodeOptions, Codec.decode, {"limits"})]
)
def test_the_types_of_options_are_those_of_the_methods(kind, method, others):
    keywords = {p.name for p in inspect.signature(method).parameters.values() if p.kind == p.KEYWORD_ONLY}
    assert set(kind.__annotations__) == keywords - others
