"""The plugin for Pillow: open and save give what codec.decode and codec.encode give, and errors are those of Pillow."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms, UnidentifiedImageError

import codec
import codec.pillow
from bitstream.container import Container
from bitstream.limits import Limits
from codec import CodecError, ImageError, images
from codec.pillow import LicImageFile

SIZE = (70, 100)  # (height, width)


@pytest.fixture
def source(picture):
    """A picture that is not in a file."""
    return Image.fromarray(picture(*SIZE))


@pytest.fixture
def data(installed, source):
    """The file of it."""
    return codec.encode(source, quality=60)


@pytest.fixture
def opened(data):
    """The file, opened and not decoded."""
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("name", ["a.lic", "a.bin", "a.png", "a"])
def test_a_file_is_known_by_its_signature(data, tmp_path, name):
    (tmp_path / name).write_bytes(data)
    with Image.open(tmp_path / name) as image:
        assert isinstance(image, LicImageFile)
        assert (image.format, image.mode, image.size) == ("LIC", "RGB", SIZE[::-1])
        assert image.get_format_mimetype() == "image/x-lic"
        assert image.tobytes() == codec.decode(data).tobytes()


def test_another_format_by_our_name_is_still_that_format(source, tmp_path):
    source.save(tmp_path / "a.lic", format="PNG")
    with Image.open(tmp_path / "a.lic") as image:
        assert image.format == "PNG"


def test_gray_is_mode_l_and_can_be_changed(installed, source):
    data = codec.encode(source.convert("L"))
    image = Image.open(io.BytesIO(data))
    assert image.mode == "L"
    assert image.tobytes() == codec.decode(data).tobytes()
    image.putpixel((3, 2), 7)
    assert image.getpixel((3, 2)) == 7


def test_open_reads_only_the_first_bytes(data):
    class Watched(io.BytesIO):
        count = 0

        def read(self, size=-1):
            found = super().read(size)
            self.count += len(found)
            return found

    file = Watched(data)
    image = Image.open(file)
    assert file.count <= 80 < len(data)
    image.load()
    assert file.count >= len(data)
    assert not file.closed  # it is the caller's


@pytest.mark.parametrize("options", [{}, {"quality": 30}, {"size": 1500}, {"psnr": 30.0}, {"quality": 30, "optimize": True}])
def test_save_is_encode(installed, source, tmp_path, options):
    source.save(tmp_path / "a.lic", **options)
    options.pop("optimize", None)  # like Pillow's other writers, ours leaves alone what it does not know
    assert (tmp_path / "a.lic").read_bytes() == codec.encode(source, **options)


def test_save_takes_file_objects_and_models(installed, source):
    file = io.BytesIO()
    source.save(file, format="LIC", model=installed / "swift.safetensors", quality=10)
    assert file.getvalue() == codec.encode(source, quality=10)


def test_a_file_of_ours_can_be_coded_again(data, opened):
    assert codec.encode(opened, quality=0) == codec.encode(codec.decode(data), quality=0)


def test_a_picture_can_be_saved_over_its_own_file(data, tmp_path):
    (tmp_path / "a.lic").write_bytes(data)
    with Image.open(tmp_path / "a.lic") as image:
        image.save(tmp_path / "a.lic", quality=0)
    assert (tmp_path / "a.lic").read_bytes() == codec.encode(codec.decode(data), quality=0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"quality": 200}, "quality is 200, expected 0 … 100"),
        ({"quality": 1, "bpp": 1}, "expected one of them"),
        ({"size": 3}, "at most 3 are asked for"),
    ],
)
def test_an_option_that_cannot_be_is_a_value_error(installed, source, tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        source.save(tmp_path / "a.lic", **options)
    assert not (tmp_path / "a.lic").exists()


def test_a_picture_that_cannot_be_stored_is_an_os_error(installed):
    with pytest.raises(OSError, match="no known white") as caught:
        Image.new("F", (8, 8)).save(io.BytesIO(), format="LIC")
    assert isinstance(caught.value.__cause__, ImageError)


@pytest.mark.parametrize("wanted", [(100, 70), (51, 20), (50, 35), (50, 36), (26, 17), (25, 17), (12, 8), (12, 9), (1, 1)])
def test_draft_decodes_small_at_the_size_that_jpeg_would_have(data, source, wanted):
    file = io.BytesIO()
    source.save(file, format="JPEG")
    jpeg, image = Image.open(file), Image.open(io.BytesIO(data))
    expected, found = jpeg.draft(None, wanted), image.draft(None, wanted)
    assert image.size == jpeg.size
    scale = round(100 / expected[1][2])
    assert found == (None if scale == 1 else expected)
    assert image.tobytes() == codec.decode(data, scale=scale).tobytes()
    assert image.draft(None, (1, 1)) is None
    assert image.size == jpeg.size


def test_a_second_draft_and_one_for_nothing_change_nothing(opened):
    assert opened.draft("L", None) is None
    assert opened.draft(None, (0, 0)) == ("RGB", (0, 0, 12.5, 8.75))
    assert opened.draft(None, (50, 35)) is None
    assert opened.size == opened.copy().size == (13, 9)


@pytest.mark.parametrize("wanted", [(90, 90), (40, 40), (20, 20), (6, 200)])
def test_a_thumbnail_looks_like_that_of_the_whole_picture(data, opened, wanted):
    whole = codec.decode(data)
    opened.thumbnail(wanted)
    whole.thumbnail(wanted)
    assert opened.size == whole.size
    assert np.abs(np.asarray(opened).astype(int) - np.asarray(whole)).mean() < 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data[:4] + b"\7" + data[5:], "format version 7 is not supported .*: update codec"),
        (lambda data: data[:5] + b"\x80" + data[6:], "flags are 0x80"),
        (lambda data: data[:9], "it is cut off"),
        (lambda data: data[:6] + b"\0" + data[7:], "picture size is 0×70"),
    ],
    ids=["version", "flags", "cut", "width"],
)
def test_a_damaged_header_is_not_identified_and_says_why(data, change, sentence):
    with pytest.raises(UnidentifiedImageError, match=sentence) as caught:
        Image.open(io.BytesIO(change(data)))
    assert isinstance(caught.value.__cause__, CodecError)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data[:-1], "file checksum is .*fetch it again"),
        (lambda data: data[:40], "file checksum"),
        (lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:], "file checksum"),
    ],
    ids=["cut", "cut short", "flipped"],
)
def test_damage_behind_the_header_is_an_os_error_at_every_load(data, change, sentence):
    image = Image.open(io.BytesIO(change(data)))
    for _ in range(2):
        with pytest.raises(OSError, match=sentence) as caught:
            image.load()
        assert isinstance(caught.value.__cause__, CodecError)
    with pytest.raises(OSError, match=sentence):
        Image.open(io.BytesIO(change(data))).verify()


def test_a_file_of_a_model_that_is_not_here_is_an_os_error(data):
    container = Container.unpack(data)
    header = dataclasses.replace(container.header, model_id=b"\1\2\3\4")
    image = Image.open(io.BytesIO(dataclasses.replace(container, header=header).pack()))
    assert image.size == SIZE[::-1]
    with pytest.raises(OSError, match="01020304"):
        image.load()


def test_verify_of_a_sound_file_closes_it(opened):
    opened.verify()
    with pytest.raises(ValueError, match="closed image"):
        opened.load()


def test_pillows_limit_of_pixels_holds_as_for_other_formats(data, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3499)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6999)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))


def test_our_limits_hold_at_load(opened, monkeypatch):
    monkeypatch.setattr(codec.pillow, "LIMITS", Limits(max_pixels=6999))
    with pytest.raises(OSError, match="the limit is 6999"):
        opened.load()


@pytest.mark.parametrize(
    "copied", [lambda image: pickle.loads(pickle.dumps(image)), copy.copy, copy.deepcopy, Image.Image.copy]
)
def test_copies_hold_the_pixels(data, opened, copied):
    assert copied(opened).tobytes() == codec.decode(data).tobytes()


def test_a_closed_picture_keeps_its_pixels_and_cannot_be_decoded_any_more(data, tmp_path):
    (tmp_path / "a.bin").write_bytes(data)
    with Image.open(tmp_path / "a.bin") as image:
        file = image.fp
    assert file.closed
    with pytest.raises(ValueError, match="closed image"):
        image.load()
    with Image.open(tmp_path / "a.bin") as image:
        image.load()
    assert image.tobytes() == codec.decode(data).tobytes()


def test_decoding_to_a_file_of_ours_stays_an_error(source):
    with pytest.raises(ImageError, match=r"writes no \.lic files"):
        images.format_of("a.lic")


def test_alpha_and_metadata_are_there_before_loading(installed, tmp_path):
    image = Image.new("RGBA", (40, 30), (1, 2, 3, 4))
    image.info |= {"icc_profile": b"a profile" * 20, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0", "xmp": b"<x/>"}
    image.save(tmp_path / "a.lic", quality=20)
    with Image.open(tmp_path / "a.lic") as found:
        assert (found.mode, found.info) == ("RGBA", image.info)
        found.load()
        assert (found.mode, found.info) == ("RGBA", image.info)
        assert np.array_equal(np.asarray(found)[:, :, 3], np.full((30, 40), 4))
    image.save(tmp_path / "a.lic", xmp=b"<other/>")
    with Image.open(tmp_path / "a.lic") as found:
        assert found.info["xmp"] == b"<other/>"
        assert found.info["icc_profile"] == image.info["icc_profile"]


def test_what_was_removed_from_info_stays_away(tmp_path, picture, installed):
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    Image.fromarray(picture(20, 20)).save(tmp_path / "a.lic", exif=exif)
    with Image.open(tmp_path / "a.lic") as image:
        del image.info["exif"]
        image.save(tmp_path / "b.lic")
    with Image.open(tmp_path / "b.lic") as image:
        assert "exif" not in image.info


def test_metadata_beside_an_image_do_not_change_how_it_is_read(tmp_path, installed):
    """The EXIF data of a TIFF are tags of the file, which a copy of the image has not."""
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((20, 20), 4095, np.uint16)).save(path, tiffinfo={271: "a maker"})
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with Image.open(path) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of bits
        image.save(tmp_path / "plain.lic")
        image.save(tmp_path / "with.lic", icc_profile=profile)
        assert "icc_profile" not in image.info
    plain, given = (Image.open(tmp_path / f"{name}.lic") for name in ("plain", "with"))
    assert plain.info["exif"] == given.info["exif"]
    assert np.abs(np.asarray(plain).astype(int) - np.asarray(given)).max() <= 1
    assert "icc_profile" in given.info


def test_save_hands_on_the_other_options_of_encode(data, source, tmp_path):
    source.save(tmp_path / "a.lic", quality=100, max_size=len(data))
    assert (tmp_path / "a.lic").stat().st_size <= len(data) < len(codec.encode(source, quality=100))
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    source.save(tmp_path / "b.lic", exif=exif, strip=True)
    with Image.open(tmp_path / "b.lic") as image:
        assert "exif" not in image.info
    with pytest.raises(ValueError, match="effort is 11"):
        source.save(tmp_path / "c.lic", effort=11)
    with pytest.raises(OSError, match="allows no loss"):
        Image.new("CMYK", (8, 8)).save(tmp_path / "c.lic", strict=True)
