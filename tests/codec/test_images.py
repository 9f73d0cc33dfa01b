"""Pictures in and out: what is stored is stored whole, what is lost is named, nothing goes in silence."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features
from profiles import of_black_alone

from bitstream.chunks import Metadata
from bitstream.errors import ImageError, LimitError, UsageError
from bitstream.limits import Limits
from codec import conversion, images


def save(image, path, **options):
    image.save(path, **options)
    return path


def png_of(path, bits, kind, rows, transparent=b"", width=2):
    """Write a PNG of so many bits and a colour type, of rows of bytes: Pillow cannot write all of them."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0))]
    parts += [chunk(b"tRNS", transparent)] if transparent else []
    parts += [chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def png_16_bit_rgb(path):
    return png_of(path, 16, 2, [bytes(range(12))] * 2)


def frames(mode="RGB"):
    return [Image.new(mode, (8, 8), colour) for colour in ("red", "green", "blue")]


def animation(path, **options):
    first, *rest = frames()
    return save(first, path, save_all=True, append_images=rest, **options)


CONVERTED = {  # what warns, and of what
    "16-bit gray": (
        lambda p: save(Image.fromarray(np.full((4, 4), 999, np.uint16)), p / "a.png"),
        "more than 8 bits a channel are rounded",
    ),
    "16-bit RGB PNG": (lambda p: png_16_bit_rgb(p / "a.png"), "more than 8 bits a channel are cut"),
    "CMYK": (
        lambda p: save(Image.new("CMYK", (4, 4)), p / "a.jpg"),
        r"CMYK is converted to sRGB \(without a profile that fits",
    ),
    "LAB": (lambda p: save(Image.new("LAB", (4, 4)), p / "a.tif"), "CIELAB is converted to sRGB"),
    "animated GIF": (lambda p: animation(p / "a.gif"), "of an animation .* of 3 frames number 1 is stored"),
    "animated PNG": (lambda p: animation(p / "a.png"), "of 3 frames number 1"),
    "animated WebP": (lambda p: animation(p / "a.webp", lossless=True), "of 3 frames number 1"),
    "TIFF of many pages": (lambda p: animation(p / "a.tif"), r"of an animation \(or pages\) of 3 frames number 1"),
    "MPO": (lambda p: animation(p / "a.mpo"), "further pictures of a multi-picture file"),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_what_is_lost_is_a_warning_and_strictly_an_error(tmp_path, kind):
    make, message = CONVERTED[kind]
    path = make(tmp_path)
    with pytest.warns(UserWarning, match=message) as caught:
        assert images.load(path).pixels.dtype == np.uint8
    assert str(caught[0].message).startswith(str(path))
    with pytest.raises(ImageError, match=rf"{message}.*--strict.*allows no loss: leave it away"):
        images.load(path, strict=True)


@pytest.mark.parametrize("kind", ["animated GIF", "animated PNG", "animated WebP", "TIFF of many pages", "MPO"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_of_several_pictures_the_first_is_read(tmp_path, kind):
    assert np.abs(images.load(CONVERTED[kind][0](tmp_path)).pixels[0, 0].astype(int) - (255, 0, 0)).max() < 30


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_16_bits_are_rounded_to_8(tmp_path):
    deep = np.array([[0, 128, 129, 257, 32767, 32896, 65406, 65407, 65535]], np.uint16)
    loaded = images.load(save(Image.fromarray(deep), tmp_path / "a.png"))
    assert loaded.gray
    assert loaded.pixels[0, :, 0].tolist() == [0, 0, 1, 1, 127, 128, 254, 255, 255]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_transparent_value_of_16_bits_is_found(tmp_path):
    deep = np.array([[0, 300, 301, 65535]], np.uint16)
    loaded = images.load(save(Image.fromarray(deep), tmp_path / "a.png", transparency=300))
    assert loaded.gray
    assert loaded.alpha.tolist() == [[255, 0, 255, 255]]


@pytest.mark.parametrize(("mode", "name"), [("I", "a.tif"), ("F", "a.tif")])
def test_32_bits_a_channel_are_refused(tmp_path, mode, name):
    path = save(Image.new(mode, (4, 4)), tmp_path / name)
    with pytest.raises(ImageError, match="have no known white: scale them to 8 or 16 bits"):
        images.load(path)


def test_cmyk_with_a_broken_profile_is_as_without(tmp_path):
    """And none is stored."""
    path = save(Image.new("CMYK", (4, 4), (255, 0, 0, 0)), tmp_path / "a.jpg", icc_profile=b"no profile")
    with pytest.warns(UserWarning, match=r"CMYK is converted to sRGB \(without a profile that fits"):
        loaded = images.load(path)
    assert loaded.metadata == Metadata()
    assert loaded.pixels[0, 0, 0] < 30 < loaded.pixels[0, 0, 1]


def test_lab_is_converted_by_its_definition(tmp_path):
    path = save(Image.new("LAB", (1, 1), (128, 128, 128)), tmp_path / "a.tif")
    with pytest.warns(UserWarning, match="CIELAB"):
        pixel = images.load(path).pixels[0, 0]
    assert pixel.tolist() == pytest.approx([119, 119, 119], abs=2)  # L* = 50


def test_primaries_that_no_profile_tells_are_named(tmp_path):
    wide = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)  # DCI-P3
    info = PngImagePlugin.PngInfo()
    info.add(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in wide)))
    path = save(Image.new("RGB", (4, 4)), tmp_path / "a.png", pnginfo=info)
    with pytest.warns(UserWarning, match="primaries of the PNG file, other than those of sRGB"):
        images.load(path)
    with pytest.raises(ImageError, match="primaries"):
        images.load(path, strict=True)


def test_the_colours_of_an_hdr_avif_are_named(tmp_path):
    path = save(Image.new("RGB", (16, 16), "gray"), tmp_path / "a.avif")
    data = bytearray(path.read_bytes())
    at = data.index(b"colrnclx") + 8
    data[at : at + 4] = struct.pack(">HH", 9, 16)  # BT.2020, PQ
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="primaries 9, transfer 16 of ITU-T H.273"):
        images.load(path)
    with pytest.raises(ImageError, match="primaries 9, transfer 16"):
        images.load(path, strict=True)


@pytest.mark.parametrize(("gamma", "told"), [(1.0, True), (0.35, True), (0.45, False), (0.45455, False)])
def test_a_gamma_that_no_profile_tells_is_named(tmp_path, gamma, told):
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", round(gamma * 100_000)))
    path = save(Image.new("RGB", (4, 4)), tmp_path / "a.png", pnginfo=info)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images.load(path)
    assert [f"gamma {gamma} of the PNG file, other than" in str(warning.message) for warning in caught] == [True] * told


@pytest.mark.parametrize(("code", "told"), [(1, False), (12, True), (9, True)])
def test_a_colour_space_by_code_is_named(tmp_path, code, told):
    info = PngImagePlugin.PngInfo()
    info.add(b"cICP", bytes([code, 13, 0, 1]))
    path = save(Image.new("RGB", (4, 4)), tmp_path / "a.png", pnginfo=info)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images.load(path)
    assert [f"primaries {code}, transfer 13 of ITU-T H.273" in str(warning.message) for warning in caught] == [True] * told


def test_16_bit_ppm_is_named(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6\n2 2\n65535\n" + bytes(range(24)))
    with pytest.warns(UserWarning, match="more than 8 bits a channel are cut to 8"):
        images.load(tmp_path / "a.ppm")


def test_16_bits_a_pixel_are_no_16_bits_a_channel(tmp_path):
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    info = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3, 8, 0, 0, 0, 0)
    (tmp_path / "565.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 74, 0, 0, 66) + info + masks + b"\xff" * 8)
    assert (images.load(tmp_path / "565.bmp").pixels == 255).all()


@pytest.mark.parametrize("mode", ["I", "F", "BGR;15"])
def test_unsupported_modes_of_pil_images_are_refused(mode):
    try:
        image = Image.new(mode, (3, 3))
    except ValueError:
        pytest.skip("this Pillow has no such mode")
    with pytest.raises(ImageError, match="image: .*(not supported|no known white)"):
        images.load(image)


MODES = {"RGB": 3, "L": 1, "1": 1, "P": 3, "YCbCr": 3, "RGBA": 4, "LA": 2, "PA": 4, "RGBa": 4, "La": 2}  # colours and alpha


@pytest.mark.parametrize("mode", MODES)
def test_supported_modes_are_accepted(mode):
    picture = images.load(Image.new(mode, (5, 3)))
    assert picture.pixels.shape == (3, 5, 3)
    assert picture.pixels.dtype == np.uint8
    assert picture.gray is (MODES[mode] < 3)
    assert (picture.alpha is not None) is (MODES[mode] in (2, 4))


def test_palette_colours_are_looked_up(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([1, 0])
    assert images.load(save(image, tmp_path / "p.png")).pixels.tolist() == [[[200, 100, 50], [10, 20, 30]]]


def test_bilevel_becomes_black_and_white(tmp_path):
    image = Image.new("1", (2, 1))
    image.putdata([1, 0])
    picture = images.load(save(image, tmp_path / "b.png"))
    assert picture.pixels.tolist() == [[[255] * 3, [0] * 3]]
    assert picture.gray


def test_gray_becomes_three_equal_channels(tmp_path, picture):
    gray = picture(6, 7)[:, :, 0]
    loaded = images.load(save(Image.fromarray(gray), tmp_path / "g.png"))
    assert loaded.gray
    assert all(np.array_equal(loaded.pixels[:, :, c], gray) for c in range(3))


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.bmp", "a.ppm", "a.tga"])
def test_lossless_files_are_read_exactly(tmp_path, picture, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    path = save(Image.fromarray(picture(9, 14)), tmp_path / name, **options)
    assert np.array_equal(images.load(path).pixels, picture(9, 14))


TURNS = {  # EXIF orientation → what makes the picture upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied_and_its_tag_reset(tmp_path, picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "maker"
    path = save(Image.fromarray(picture(4, 7)), tmp_path / "a.png", exif=exif)
    loaded = images.load(path)
    assert np.array_equal(loaded.pixels, TURNS[orientation](picture(4, 7)))
    kept = Image.Exif()
    kept.load(loaded.metadata.exif)
    assert dict(kept) == {0x0112: 1, 0x010F: "maker"}


@pytest.mark.parametrize("name", ["a.tif", "a.jpg", "a.webp"])
def test_a_picture_is_turned_once(tmp_path, name):
    """Pillow turns a TIFF by itself."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (0, 0, 16, 16))  # top left, which belongs to the top right
    pixels = images.load(save(image, tmp_path / name, exif=exif)).pixels
    assert pixels.shape == (64, 32, 3)
    assert pixels[4, 28].min() > 200
    assert pixels[60, 28].max() < 50


BROKEN_EXIF = {
    "no offset": b"II*\0",
    "half an offset": b"II*\0\x08",
    "no TIFF": b"garbage",
    "no directory": b"II*\0\x08\0\0\0",
    "a directory that ends early": b"II*\0\x08\0\0\0\x05\0\x12\x01",
    "an orientation of no bytes": b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x112, 3, 0, 0) + bytes(4),
    "an orientation in words": b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI", 0x112, 2, 4) + b"six\0" + bytes(4),
    "an orientation of 9": b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x112, 3, 1, 9) + bytes(4),
}


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg"])
@pytest.mark.parametrize("kind", BROKEN_EXIF)
@pytest.mark.filterwarnings("ignore:.*Corrupt EXIF")
def test_a_picture_with_broken_exif_is_read_with_a_warning(tmp_path, kind, name):
    exif = BROKEN_EXIF[kind] if name != "a.jpg" else b"Exif\0\0" + BROKEN_EXIF[kind]
    path = save(Image.new("RGB", (7, 4), "gray"), tmp_path / name, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = images.load(path)
    assert loaded.pixels.shape == (4, 7, 3)
    assert loaded.metadata.exif == BROKEN_EXIF[kind]


def test_an_orientation_that_cannot_be_read_is_not_called_applied(tmp_path):
    path = save(Image.new("RGB", (7, 4)), tmp_path / "a.png", exif=b"II*\0")
    with pytest.warns(UserWarning, match="the EXIF data cannot be read: it is stored as it is, an orientation is not applied"):
        images.load(path)


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_means_nothing_turns_nothing(tmp_path, picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(picture(4, 7)), tmp_path / "a.png", exif=exif)
    assert np.array_equal(images.load(path).pixels, picture(4, 7))


def test_metadata_after_the_pixels_of_a_png_is_read(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 3
    data = save(Image.fromarray(picture(4, 7)), tmp_path / "a.png", exif=exif).read_bytes()
    begin = data.index(b"eXIf") - 4
    end = begin + 12 + int.from_bytes(data[begin : begin + 4], "big")
    iend = data.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(data[:begin] + data[end:iend] + data[begin:end] + data[iend:])
    loaded = images.load(tmp_path / "a.png")
    assert np.array_equal(loaded.pixels, picture(4, 7)[::-1, ::-1])


def test_plain_pictures_give_no_warning(tmp_path, picture):
    path = save(Image.fromarray(picture(4, 7)), tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.load(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "gif", "jp2"])
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_truncated_file_is_an_error(tmp_path, picture, suffix, share):
    path = save(Image.fromarray(picture(64, 64)), tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ImageError, match=f"a.{suffix}: (cannot be read|not a picture)"):
        images.load(path)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_damaged_avif_is_an_error(tmp_path, picture):
    path = save(Image.fromarray(picture(64, 64)), tmp_path / "a.avif")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"av01Color", b"av00Color"))
    with pytest.raises(ImageError):
        images.load(path)


def test_a_broken_pil_image_is_an_error(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture(64, 64)).save(buffer, format="JPEG")
    with Image.open(io.BytesIO(buffer.getvalue()[:-200])) as image, pytest.raises(ImageError):
        images.load(image)


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), IndexError(), struct.error("x"), ZeroDivisionError("x")])
def test_whatever_pillow_raises_for_damage_is_an_error(tmp_path, monkeypatch, error):
    path = save(Image.new("RGB", (4, 4)), tmp_path / "a.png")

    def load(_):
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(ImageError, match=r"a\.png: cannot be read \((.*x.*|IndexError)\)"):
        images.load(path)


def test_what_is_no_picture_is_an_error(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("a.png", "empty.png"):
        with pytest.raises(ImageError, match="not a picture that Pillow can read: give a PNG"):
            images.load(tmp_path / name)


def test_missing_files_and_folders_are_errors(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png: cannot be read \(No such file"):
        images.load(tmp_path / "none.png")
    with pytest.raises(ImageError, match="cannot be read"):
        images.load(tmp_path)


def test_decompression_bombs_are_refused_before_they_are_read(tmp_path, monkeypatch):
    path = save(Image.new("RGB", (8, 8)), tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:45])  # its pixels cannot be read
    with pytest.raises(LimitError, match="8×8 pixels, the limit is 10"):
        images.load(path, limits=Limits(max_pixels=10))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_the_limit_of_pillow_does_not_count(tmp_path, monkeypatch, name):
    """TIFF asks for it again when pixels are read, ``crop`` when they are converted."""
    path = save(Image.new("RGB", (8, 8)), tmp_path / name)
    with Image.open(path) as image:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        for source in (path, image):
            assert images.load(source).pixels.shape == (8, 8, 3)
            assert Image.MAX_IMAGE_PIXELS == 10


def test_the_limit_of_pillow_comes_back_after_the_last_of_several_threads(tmp_path, monkeypatch):
    path = save(Image.effect_noise((300, 300), 90), tmp_path / "a.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with ThreadPoolExecutor(4) as pool:
        assert all(picture.pixels.shape == (300, 300, 3) for picture in pool.map(images.load, [path] * 40))
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("source", [Image.new("RGB", (8, 8)), np.zeros((8, 8, 3), np.uint8)], ids=["image", "array"])
def test_pictures_in_memory_have_the_limit_too(source):
    with pytest.raises(LimitError, match="8×8 pixels, the limit is 63"):
        images.load(source, limits=Limits(max_pixels=63))


def test_tall_pictures_are_converted_whole(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2500, 3, 3), np.uint8)
    assert np.array_equal(images.load(save(Image.fromarray(pixels), tmp_path / "a.png")).pixels, pixels)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.float32, np.bool_, np.int64])
def test_arrays_of_another_dtype_are_refused(dtype):
    with pytest.raises(ImageError, match=rf"array is \(4, 4, 3\) {np.dtype(dtype)}, expected"):
        images.load(np.zeros((4, 4, 3), dtype))


@pytest.mark.parametrize("shape", [(), (4,), (4, 4, 1), (4, 4, 5), (1, 4, 4, 3), (0, 4, 3), (4, 0), (4, 4, 0)])
def test_arrays_of_another_shape_are_refused(shape):
    with pytest.raises(ImageError, match=r"expected \(H, W, 3\) or \(H, W\) uint8"):
        images.load(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_empty_pil_images_are_refused(size):
    with pytest.raises(ImageError, match="expected at least 1×1"):
        images.load(Image.new("RGB", size))


def test_gray_of_a_decoded_picture_is_the_rounded_mean():
    sums = np.arange(766)
    pixels = np.stack([np.minimum(sums, 255), np.clip(sums - 255, 0, 255), np.clip(sums - 510, 0, 255)], axis=1)
    image = images.to_pil(pixels[:, None, :].astype(np.uint8), gray=True)
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image)[:, 0], np.rint(sums / 3))


def test_rgb_pixels_pass_unchanged(picture):
    image = images.to_pil(picture(3, 5), gray=False)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), picture(3, 5))


@pytest.mark.parametrize("name", ["a.png", "A.PNG", "a.bmp", "a.tif", "a.ppm"])
def test_saved_pictures_are_read_back(tmp_path, picture, name):
    images.save(Image.fromarray(picture(3, 5)), tmp_path / name)
    assert np.array_equal(images.load(tmp_path / name).pixels, picture(3, 5))


@pytest.mark.parametrize(("name", "kind"), [("a.xyz", ".xyz"), ("a", "extensionless"), ("a.mpg", ".mpg"), ("a.lic", ".lic")])
def test_an_unknown_extension_is_refused(tmp_path, name, kind):
    with pytest.raises(ImageError, match=f"Pillow writes no {kind} files: name it .png"):
        images.save(Image.new("L", (2, 2)), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_the_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ImageError, match="cannot be written as WEBP .*: name it .png"):
        images.save(Image.new("RGB", (20000, 1)), tmp_path / "a.webp")
    assert not list(tmp_path.iterdir())


def test_save_overwrites_only_when_told(tmp_path):
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists"):
        images.save(Image.new("L", (2, 2)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"mine"
    images.save(Image.new("L", (2, 2)), tmp_path / "a.png", overwrite=True)
    assert images.load(tmp_path / "a.png").gray


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow reads no JPEG 2000")
def test_jpeg2000_depth_is_read_from_its_header(tmp_path, picture):
    save(Image.fromarray(picture(32, 32)), tmp_path / "8.jp2")
    save(Image.fromarray(picture(32, 32)[:, :, 0].astype(np.uint16) * 256), tmp_path / "16.jp2")
    assert not conversion.is_deep_header((tmp_path / "8.jp2").read_bytes())
    assert conversion.is_deep_header((tmp_path / "16.jp2").read_bytes())
    with pytest.warns(UserWarning, match="more than 8 bits a channel"):
        images.load(tmp_path / "16.jp2")
    assert images.load(tmp_path / "8.jp2").pixels.shape == (32, 32, 3)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_depth_is_read_from_its_header(tmp_path, picture):
    path = save(Image.fromarray(picture(64, 64)), tmp_path / "a.avif")
    data = bytearray(path.read_bytes())
    assert not conversion.is_deep_header(bytes(data))
    assert images.load(path).pixels.shape == (64, 64, 3)
    data[data.find(b"av1C") + 6] |= 0x40  # high_bitdepth
    assert conversion.is_deep_header(bytes(data))


@pytest.mark.parametrize("head", [b"", b"av1C", b"av1C\x81", b"\xff\x4f\xff\x51" + b"\0" * 38])
def test_a_header_that_ends_early_is_not_called_deep(head):
    assert not conversion.is_deep_header(head)


def tiff(path, values, *, bits, photometric=1, extra=None):
    """Write rows (h, w) or (h, w, c) of whole numbers as a TIFF of so many bits, 8, 12 or 16, as Pillow does not."""
    values = np.asarray(values, np.uint16)
    h, w, *rest = values.shape
    if bits == 12:
        a, b = values.reshape(h, -1, 2)[..., 0], values.reshape(h, -1, 2)[..., 1]
        data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=-1).astype(np.uint8).tobytes()
    else:
        data = values.astype("<u2" if bits == 16 else np.uint8).tobytes()
    tags = [(256, 4, w), (257, 4, h), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 0), (277, 3, *(rest or [1])),
            (278, 4, h), (279, 4, len(data))]  # fmt: skip
    if extra is not None:
        tags.append((338, 3, extra))
    where = 8 + 2 + 12 * len(tags) + 4
    body = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    for tag, kind, *value in tags:
        number = where + 8 if tag == 273 else value[0]
        count = rest[0] if tag == 258 and rest else 1
        body += struct.pack("<HHII", tag, kind, count, where if count == 4 else number)
    path.write_bytes(body + bytes(4) + struct.pack("<4H", *[bits] * 4) + data)
    return path


def test_12_bits_are_scaled_by_their_own_white(tmp_path):
    with pytest.warns(UserWarning, match="more than 8 bits a channel are rounded to 8"):
        loaded = images.load(tiff(tmp_path / "a.tif", [[4095, 2048, 0, 16]], bits=12))
    assert loaded.pixels[0, :, 0].tolist() == [255, 128, 0, 1]


@pytest.mark.filterwarnings("ignore:.*rounded to 8")
def test_12_bits_are_so_for_a_caller_who_has_loaded_them(tmp_path):
    with Image.open(tiff(tmp_path / "a.tif", [[4095, 2048, 0, 16]], bits=12)) as image:
        image.load()
        assert images.load(image).pixels[0, :, 0].tolist() == [255, 128, 0, 1]


@pytest.mark.parametrize(
    ("bits", "row", "width", "key", "gray"),
    [(4, b"\x0f", 2, 15, [0, 255]), (4, b"\x5f", 2, 5, [85, 255]), (2, b"\x1b", 4, 2, [0, 85, 170, 255])],
)
def test_the_transparent_value_of_few_bits_is_found(tmp_path, bits, row, width, key, gray):
    path = png_of(tmp_path / "a.png", bits, 0, [row], struct.pack(">H", key), width)
    values = [key * 255 // (2**bits - 1) != value for value in gray]
    for source in (path, Image.open(path)):
        for _ in range(2):  # a picture of a caller may be coded again
            loaded = images.load(source)
            assert loaded.gray
            assert loaded.pixels[0, :, 0].tolist() == gray
            assert (loaded.alpha[0] > 0).tolist() == values
    assert not all(values)


def test_16_bit_gray_with_alpha_stays_gray(tmp_path):
    path = png_of(tmp_path / "a.png", 16, 4, [struct.pack(">4H", 0x1234, 0xFFFF, 0xFFFF, 0x8000)])
    with pytest.warns(UserWarning, match="more than 8 bits a channel are cut to 8"):
        loaded = images.load(path)
    assert loaded.gray
    assert loaded.pixels.tolist() == [[[0x12] * 3, [0xFF] * 3]]
    assert loaded.alpha.tolist() == [[0xFF, 0x80]]


def test_an_array_that_cannot_be_written_is_taken_as_a_copy():
    array = np.asarray(Image.effect_noise((8, 8), 90).convert("RGB"))
    assert not array.flags.writeable
    assert images.load(array).pixels.flags.writeable
    assert np.array_equal(images.load(array).pixels, array)
    own = array.copy()
    assert np.shares_memory(images.load(own).pixels, own)


@pytest.mark.parametrize("name", ["a.gif", "a.tif"])
def test_what_a_caller_drew_on_a_frame_is_stored_and_stays(tmp_path, name):
    with Image.open(animation(tmp_path / name)) as image:
        image.load()
        image.putpixel((3, 3), 1 if image.mode == "P" else (1, 2, 3))
        drawn = image.convert("RGB").getpixel((3, 3))
        assert drawn != image.convert("RGB").getpixel((4, 4))
        with pytest.warns(UserWarning, match="of 3 frames number 1"):
            assert tuple(images.load(image).pixels[3, 3]) == drawn
        assert image.convert("RGB").getpixel((3, 3)) == drawn
        image.seek(2)
        with pytest.warns(UserWarning, match="of 3 frames number 3"):
            assert images.load(image).pixels[0, 0].argmax() == 2


@pytest.mark.parametrize("name", ["a.gif", "a.tif"])
def test_a_picture_of_a_file_that_is_closed_is_stored(tmp_path, name):
    with Image.open(save(Image.new("RGB", (8, 8), "blue"), tmp_path / name)) as image:
        image.load()
    assert images.load(image).pixels[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.filterwarnings("ignore:.*rounded to 8")
def test_min_is_white_is_turned_round(tmp_path, bits):
    loaded = images.load(tiff(tmp_path / "a.tif", [[0, 2**bits - 1]], bits=bits, photometric=0))
    assert loaded.pixels[0, :, 0].tolist() == [255, 0]


def test_colours_multiplied_by_alpha_are_divided_with_a_word(tmp_path):
    path = tiff(tmp_path / "a.tif", [[[10, 20, 5, 40]]], bits=8, photometric=2, extra=1)
    with pytest.warns(UserWarning, match="colours that are multiplied by alpha are divided by it"):
        loaded = images.load(path)
    assert (loaded.pixels.tolist(), loaded.alpha.tolist()) == ([[[63, 127, 31]]], [[40]])


def test_a_fourth_channel_of_unknown_meaning_is_left_away_with_a_word(tmp_path):
    with pytest.warns(UserWarning, match="a channel of unknown meaning"):
        loaded = images.load(tiff(tmp_path / "a.tif", [[[10, 20, 5, 40]]], bits=8, photometric=2, extra=0))
    assert (loaded.pixels.tolist(), loaded.alpha) == ([[[10, 20, 5]]], None)


@pytest.mark.parametrize(("white", "values"), [(65535, [255, 128, 0]), (1023, [255, 128, 0])])
def test_pgm_of_more_than_8_bits(tmp_path, white, values):
    samples = np.array([white, round(white * 128 / 255), 0], ">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(b"P5\n3 1\n%d\n" % white + samples)
    with pytest.warns(UserWarning, match="more than 8 bits a channel are rounded"):
        assert images.load(tmp_path / "a.pgm").pixels[0, :, 0].tolist() == values


def test_what_a_file_hides_is_seen_in_an_opened_picture_too(tmp_path):
    with Image.open(png_16_bit_rgb(tmp_path / "a.png")) as image, pytest.warns(UserWarning, match="cut to 8"):
        images.load(image)
    info = PngImagePlugin.PngInfo()
    info.add(b"cICP", bytes([1, 16, 0, 1]))  # primaries of sRGB, transfer PQ
    path = save(Image.new("RGB", (4, 4)), tmp_path / "b.png", pnginfo=info, icc_profile=b"a profile")
    with Image.open(path) as image, pytest.warns(UserWarning, match="primaries 1, transfer 16 of ITU-T H.273"):
        images.load(image)


def test_a_frame_that_was_chosen_is_stored(tmp_path):
    with Image.open(animation(tmp_path / "a.png")) as image:
        image.seek(2)
        with pytest.warns(UserWarning, match="of 3 frames number 3 is stored"):
            assert images.load(image).pixels[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_bytes_and_files_are_read(tmp_path, picture, kind):
    data = save(Image.fromarray(picture(9, 14)), tmp_path / "a.png").read_bytes()
    assert np.array_equal(images.load(kind(data)).pixels, picture(9, 14))


def test_a_pipe_is_read(tmp_path, picture):
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

        def seek(self, *_):
            raise io.UnsupportedOperation("seek")

    data = save(Image.fromarray(picture(9, 14)), tmp_path / "a.png").read_bytes()
    assert np.array_equal(images.load(Pipe(data)).pixels, picture(9, 14))


@pytest.mark.parametrize("source", [None, 5, [1, 2]])
def test_what_is_no_source_is_an_error(source):
    with pytest.raises(ImageError, match=f"of type {type(source).__name__}, expected a path, bytes"):
        images.load(source)


def test_a_profile_that_pillow_does_not_read_in_a_png_is_told(tmp_path):
    image = Image.new("RGB", (4, 4))
    image.info["icc_profile"] = bytes(2 * 2**20)
    with pytest.warns(UserWarning, match="PNG does not hold an ICC profile of more than a megabyte"):
        data = images.pack(image, "PNG", "a.png")
    assert images.load(data).metadata.icc == b""
    image.save(tmp_path / "a.png", icc_profile=bytes(2 * 2**20))
    with pytest.raises(ImageError, match="a profile or text of more than a megabyte.*remove it first"):
        images.load(tmp_path / "a.png")


def test_the_profile_of_a_jpeg_2000_is_named_as_lost(tmp_path):
    path = save(Image.new("RGB", (16, 16), "gray"), tmp_path / "a.jp2")
    data = bytearray(path.read_bytes())
    images.load(path, strict=True)
    data[data.index(b"colr") + 4] = 2  # METH: an ICC profile
    path.write_bytes(data)
    with pytest.raises(ImageError, match="by an ICC profile or a code of the JPEG 2000 file"):
        images.load(path, strict=True)


def test_extended_xmp_is_named_as_lost(tmp_path):
    path = save(Image.new("RGB", (16, 16), "gray"), tmp_path / "a.jpg")
    data = path.read_bytes()
    extension = b"http://ns.adobe.com/xmp/extension/\0" + bytes(40)
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(extension) + 2) + extension + data[2:])
    with pytest.warns(UserWarning, match="extended XMP data, of more than 64 KB: not stored"):
        images.load(path)


def test_a_damaged_profile_is_named_as_lost():
    image = Image.new("RGB", (4, 4))
    image.info["icc_profile"] = None
    with pytest.warns(UserWarning, match="the ICC profile is damaged: not stored"):
        images.load(image)


def test_the_transparent_colour_of_16_bits_is_found(tmp_path):
    row = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x1234, 0x5678, 0x9BBC)
    path = png_of(tmp_path / "a.png", 16, 2, [row], struct.pack(">3H", 0x1234, 0x5678, 0x9ABC))
    with pytest.warns(UserWarning, match="the upper 8 bits of the transparent one"):
        assert images.load(path).alpha.tolist() == [[0, 255]]


def test_cmyk_is_converted_by_its_profile_which_is_then_gone():
    image = Image.new("CMYK", (2, 1))
    image.putdata([(255, 0, 0, 0), (0, 0, 0, 255)])
    image.info["icc_profile"] = of_black_alone()
    with pytest.warns(UserWarning, match=r"CMYK is converted to sRGB \(by its ICC profile\)"):
        loaded = images.load(image)
    assert loaded.pixels[0, 0].min() > 250  # cyan is not seen
    assert loaded.pixels[0, 1].max() < 5
    assert loaded.metadata == Metadata()


class Upload:
    """What a web framework gives: it reads, but knows nothing of seeking."""

    def __init__(self, data):
        self.read = io.BytesIO(data).read


def test_what_reads_but_does_not_seek_is_read_up_to_the_limit(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture(9, 7)).save(buffer, "PNG")
    assert np.array_equal(images.load(Upload(buffer.getvalue())).pixels, picture(9, 7))
    with pytest.raises(LimitError, match="the limit is 50"):
        images.load(Upload(buffer.getvalue()), limits=Limits(max_memory=50))


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_what_gives_no_bytes_is_said():
    class Asynchronous:
        async def read(self, _):
            return b""

    with pytest.raises(ImageError, match=r"the read\(\) of Asynchronous gives no bytes: give its bytes"):
        images.load(Asynchronous())


@pytest.mark.parametrize(
    ("array", "cure"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"of \(C, H, W\) it is array.transpose\(1, 2, 0\)"),
        (np.zeros((1, 8, 8), np.uint8), r"it is array\[0\]"),
        (np.zeros((8, 8, 1), np.uint8), r"it is array\[:, :, 0\]"),
        (np.zeros((8, 8), np.uint16), r"of 16 bits it is \(array >> 8\)"),
        (np.zeros((8, 8), bool), "of truth values"),
        (np.zeros((8, 8), np.int32), "convert it"),
    ],
)
def test_arrays_that_are_refused_have_a_cure(array, cure):
    with pytest.raises(ImageError, match=cure):
        images.load(array)
