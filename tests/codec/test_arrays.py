"""Tensors and batches in, arrays and tensors out: the same files and pixels as one picture at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import codec
from codec import FormatError, ImageError, UsageError
from codec.arrays import as_image

DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def as_tensor(pixels, dtype=torch.uint8):
    """Return pixels (H, W, 3) or (H, W) uint8 as a tensor (C, H, W), in 0 … 1 if not uint8."""
    x = torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)
    return x if dtype == torch.uint8 else (x.double() / 255).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_give_the_file_of_the_array(tiny_codec, dtype):
    pixels = np.arange(768, dtype=np.uint8).reshape(16, 16, 3)  # all values that there are
    expected = tiny_codec.encode(pixels)
    x = as_tensor(pixels, dtype)
    assert tiny_codec.encode(x) == expected
    assert tiny_codec.encode(x.contiguous()) == expected
    assert tiny_codec.encode(as_tensor(pixels[:, :, 0], dtype)) == tiny_codec.encode(pixels[:, :, 0])


@pytest.mark.filterwarnings("error")
def test_floating_point_is_rounded_and_may_carry_a_gradient(tiny_codec, picture):
    pixels = picture(20, 30).clip(1, 254)
    x = ((as_tensor(pixels).float() + 0.45 * torch.sign(torch.randn(3, 20, 30))) / 255).requires_grad_()
    assert tiny_codec.encode(x) == tiny_codec.encode(pixels)


@pytest.mark.parametrize(("dtype", "one"), [(torch.float16, 0x3C00), (torch.bfloat16, 0x3F80)])
def test_halves_are_rounded_once(dtype, one):
    x = torch.arange(one + 1, dtype=torch.int16).view(dtype)  # all that there are in 0 … 1
    assert np.array_equal(as_image(x[None, None])[0], np.rint(x.double().numpy() * 255))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_tensors_of_another_device_are_read(tiny_codec, picture):
    assert tiny_codec.encode(as_tensor(picture(20, 30), torch.float32).cuda()) == tiny_codec.encode(picture(20, 30))


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.full((3, 4, 4), float("nan")), r"tensor is \(3, 4, 4\) float32 with NaN, expected 0 … 1"),
        (torch.full((3, 4, 4), -0.01), "from -0.01 to -0.01, expected 0 … 1: .*x.clamp"),
        (torch.linspace(0, 255, 48).reshape(3, 4, 4), "from 0 to 255, expected 0 … 1: divide by 255"),
        (torch.full((1, 4, 4), float("inf"), dtype=torch.float16), "float16 from inf to inf"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64, expected uint8, or floating point"),
        (torch.zeros(3, 4, 4, dtype=torch.bool), "bool, expected uint8"),
        (torch.zeros(5, 4, 3), r"expected \(3, H, W\) or \(1, H, W\).* x.permute\(2, 0, 1\)"),
        (torch.zeros(4, 4), r"tensor is \(4, 4\) float32, expected \(3, H, W\)"),
        (torch.zeros(2, 3, 4, 4), "encode_batch"),
        (torch.zeros(3, 0, 4), "sides at least 1"),
        (np.zeros((4, 4, 3), np.float32), "array is .* float32, expected uint8: round it"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_cure(tiny_codec, x, sentence):
    with pytest.raises(ImageError, match=sentence):
        tiny_codec.encode(x)


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("options", [{}, {"crop": (3, 4, 20, 10)}, {"scale": 4}])
def test_outputs_hold_the_pixels_of_the_image(tiny_codec, picture, gray, options):
    pixels = picture(30, 50)
    data = tiny_codec.encode(pixels[:, :, 0] if gray else pixels)
    expected = np.asarray(tiny_codec.decode(data, output="pil", **options))
    array = tiny_codec.decode(data, output="numpy", **options)
    x = tiny_codec.decode(data, output="torch", **options)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.uint8
    assert np.array_equal(array, expected)
    array[0] = 0  # it may be written to
    assert x.dtype == torch.uint8
    assert torch.equal(x, as_tensor(expected.copy()))
    assert x.is_contiguous()


@pytest.mark.parametrize("call", ["decode", "decode_batch"])
def test_an_unknown_output_is_refused_before_decoding(tiny_codec, call):
    with pytest.raises(UsageError, match="output is 'tensor', expected pil, numpy, torch"):
        getattr(tiny_codec, call)(b"", output="tensor")


def test_batches_are_coded_picture_by_picture(tiny_codec, picture):
    array = np.stack([picture(20, 30, seed) for seed in range(3)])
    x = torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255
    files = [tiny_codec.encode(pixels, quality=30) for pixels in array]
    for batch in (
        array,
        x,
        list(array),
        (Image.fromarray(pixels) for pixels in array),
        [array[0], x[1], Image.fromarray(array[2])],
    ):
        assert tiny_codec.encode_batch(batch, quality=30) == files
    pictures = tiny_codec.decode_batch(files)
    assert [image.tobytes() for image in pictures] == [tiny_codec.decode(data).tobytes() for data in files]
    stacked = tiny_codec.decode_batch(files, output="numpy")
    assert np.array_equal(stacked, np.stack([np.asarray(image) for image in pictures]))
    assert torch.equal(tiny_codec.decode_batch(iter(files), output="torch"), torch.from_numpy(stacked).permute(0, 3, 1, 2))


def test_batches_of_gray_pictures(tiny_codec, picture):
    x = torch.from_numpy(picture(20, 30)).permute(2, 0, 1)[:, None]  # (3, 1, H, W)
    files = tiny_codec.encode_batch(x)
    assert tiny_codec.decode_batch(files, output="torch").shape == x.shape
    assert tiny_codec.decode_batch(files, output="numpy").shape == (3, 20, 30)


def test_pictures_that_do_not_stack_are_named(tiny_codec, picture):
    files = tiny_codec.encode_batch([picture(20, 30), picture(20, 31), picture(20, 30), picture(20, 30)[:, :, 0]])
    sentence = (
        r"^batch\[1\] is \(20, 31, 3\), batch\[3\] is \(20, 30\), batch\[0\] is \(20, 30, 3\), expected one shape: .*'pil'"
    )
    with pytest.raises(UsageError, match=sentence):
        tiny_codec.decode_batch(files, output="numpy")
    assert [image.width for image in tiny_codec.decode_batch(files)] == [30, 31, 30, 30]
    assert tiny_codec.decode_batch(files[:3], output="torch", crop=(0, 0, 8, 8)).shape == (3, 3, 8, 8)
    with pytest.raises(UsageError, match=r"batch\[8\] is \(4, 4\) and 2 more"):
        tiny_codec.decode_batch([files[0]] + 10 * [tiny_codec.encode(np.zeros((4, 4), np.uint8))], output="numpy")


def test_an_error_of_a_batch_says_of_which_picture(tiny_codec, picture):
    with pytest.raises(ImageError, match=r"^batch\[1\]: array is "):
        tiny_codec.encode_batch([picture(4, 4), np.zeros((4, 4, 5), np.uint8)])
    with pytest.raises(FormatError, match=r"^batch\[0\]: "):
        tiny_codec.decode_batch([b"nothing"])


@pytest.mark.parametrize(
    ("batch", "kind", "sentence"),
    [
        (torch.zeros(3, 4, 4), ImageError, r"the batch is \(3, 4, 4\), expected \(B, C, H, W\)"),
        (np.zeros((4, 4, 3), np.uint8), ImageError, r"expected \(B, H, W, 3\)"),
        ("photo.png", UsageError, "the batch is a str, expected a list"),
        (Image.new("L", (2, 2)), UsageError, "the batch is a Image, expected a list"),
        (5, UsageError, "the batch is a int, expected a list"),
    ],
)
def test_what_is_no_batch_is_refused(tiny_codec, batch, kind, sentence):
    with pytest.raises(kind, match=sentence):
        tiny_codec.encode_batch(batch)


def test_an_empty_batch_is_an_empty_list_and_nothing_to_stack(tiny_codec):
    assert tiny_codec.encode_batch([]) == tiny_codec.decode_batch([]) == []
    with pytest.raises(UsageError, match="no files"):
        tiny_codec.decode_batch([], output="torch")


def test_the_functions_of_the_module_do_the_same(installed, tiny_codec, picture):
    array = np.stack([picture(20, 30, seed) for seed in range(2)])
    files = codec.encode_batch(array, quality=30, device="cpu")
    assert files == tiny_codec.encode_batch(array, quality=30)
    stacked = codec.decode_batch(files, output="torch", device="cpu")
    assert torch.equal(stacked, tiny_codec.decode_batch(files, output="torch"))
    assert torch.equal(codec.decode(files[0], output="torch", device="cpu"), stacked[0])
    with pytest.raises(UsageError, match="the batch is a bytes, expected a list"):
        codec.decode_batch(files[0])


@pytest.mark.parametrize("channels", [2, 4])
def test_tensors_and_arrays_have_alpha(tiny_codec, picture, channels):
    array = np.dstack([picture(20, 30)[:, :, : channels - 1], picture(20, 30, 1)[:, :, 0]])
    data = tiny_codec.encode(torch.from_numpy(array).permute(2, 0, 1))
    assert data == tiny_codec.encode(array)
    x = tiny_codec.decode(data, output="torch")
    assert x.shape == (channels, 20, 30)
    assert np.array_equal(x[-1].numpy(), array[:, :, -1])
    assert np.array_equal(tiny_codec.decode(data, output="numpy"), x.permute(1, 2, 0).numpy())
