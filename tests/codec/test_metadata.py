"""What is stored beside the pixels comes back byte for byte, in every format that can hold it."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, PngImagePlugin
from profiles import SPACES, profile

from bitstream.chunks import Metadata
from bitstream.container import Container
from codec import decode_file, encode_file, images, metadata

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:title="\xc3\xa4"/></x:xmpmeta>'


def exif_bytes(orientation=6, order="<"):
    """Return EXIF data with an orientation, a maker and a directory of camera settings."""
    exif = Image.Exif()
    exif.endian = order
    exif[ExifTags.Base.Make] = "maker"
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] = 0.004
    return exif.tobytes()


@pytest.fixture
def full(tmp_path, picture):
    """A PNG with all three kinds of metadata, lying on its side."""
    path = tmp_path / "full.png"
    options, lost = metadata.save_options({"icc_profile": profile("Display P3"), "exif": exif_bytes(), "xmp": XMP}, "PNG")
    assert not lost
    Image.fromarray(picture(40, 24)).save(path, **options)
    return path


def read(image):
    image.load()
    return metadata.read(image)[0]


def test_what_a_picture_has_is_read(full):
    with Image.open(full) as image:
        assert read(image) == Metadata(profile("Display P3"), exif_bytes().removeprefix(b"Exif\0\0"), XMP)


def test_all_of_it_is_kept_and_the_orientation_reset(full, tmp_path, tiny_codec):
    data = tiny_codec.encode(full)
    stored = Container.unpack(data).metadata
    assert stored.icc == profile("Display P3")
    before, after = exif_bytes().removeprefix(b"Exif\0\0"), stored.exif
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert len(changed) == 1  # one byte: the 6 of the orientation
    assert after[changed[0]] == 1
    assert stored.xmp == XMP.replace(b'Orientation="6"', b'Orientation="1"')
    image = tiny_codec.decode(data)
    assert image.size == (40, 24)  # upright
    assert (image.info["icc_profile"], image.info["xmp"]) == (stored.icc, stored.xmp)
    assert image.getexif()[ExifTags.Base.Orientation] == 1


def test_strip_leaves_the_profile(full, tiny_codec):
    stored = Container.unpack(tiny_codec.encode(full, strip=True)).metadata
    assert stored == Metadata(icc=profile("Display P3"))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif", "mpo"])
def test_a_written_picture_has_it(full, tmp_path, tiny_codec, suffix):
    image = tiny_codec.decode(tiny_codec.encode(full))
    data = images.pack(image, images.format_of(f"a.{suffix}"), "a") if suffix != "jpg" else lossy(image)
    with Image.open(io.BytesIO(data)) as written:
        found = read(written)
        assert written.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] == pytest.approx(0.004)
        assert written.getexif()[ExifTags.Base.Make] == "maker"
    assert found.icc == profile("Display P3")
    assert found.xmp == image.info["xmp"]
    if suffix not in ("tif", "avif"):  # a part of the file's own directory; written anew by Pillow
        assert metadata.info_of(found)["exif"] == image.info["exif"]


def lossy(image):
    with pytest.warns(UserWarning, match="JPEG does not keep the decoded pixels exactly"):
        return images.pack(image, "JPEG", "a")


def test_what_a_format_cannot_hold_is_named(full, tiny_codec):
    image = tiny_codec.decode(tiny_codec.encode(full))
    with pytest.warns(UserWarning, match=r"BMP does not hold ICC profile and EXIF data and XMP data: name it \.png"):
        images.pack(image, "BMP", "a.bmp")


def test_files_keep_it(full, tmp_path, installed):
    encode_file(full, tmp_path / "a.lic")
    decode_file(tmp_path / "a.lic", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert read(image).icc == profile("Display P3")


@pytest.mark.parametrize("name", SPACES)
def test_wide_colours_stay_wide(tmp_path, picture, name, tiny_codec):
    """The numbers are coded, the profile goes with them: shown on the same screen, both pictures are alike."""
    path = tmp_path / "wide.png"
    Image.fromarray(picture(64, 64)).save(path, icc_profile=profile(name))
    image = tiny_codec.decode(tiny_codec.encode(path, quality=100))
    assert image.info["icc_profile"] == profile(name)
    with Image.open(path) as source:
        plain = [shown(source), shown(image)]
    taken_for_srgb = np.asarray(image.convert("RGB"), float)
    assert np.abs(plain[0] - plain[1]).mean() < np.abs(plain[0] - taken_for_srgb).mean() - 2


def shown(image):
    """Return the sRGB values of a picture by its profile."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    return np.asarray(ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB")), float)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_only_the_orientation_changes(order, orientation):
    exif = exif_bytes(orientation, order).removeprefix(b"Exif\0\0")
    stored = metadata.upright(Metadata(exif=exif), 1, 1).exif
    assert sum(a != b for a, b in zip(exif, stored, strict=True)) == 1
    found = Image.Exif()
    found.load(stored)
    assert found[ExifTags.Base.Orientation] == 1


@pytest.mark.parametrize(
    "exif",
    [b"", b"II*\0", b"garbage, long enough", b"II*\0\xff\xff\xff\xff" + bytes(8), b"II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0"],
)
def test_exif_that_cannot_be_read_stays_as_it_is(exif):
    assert metadata.upright(Metadata(exif=exif), 1, 1).exif == exif


@pytest.mark.parametrize("form", [b'tiff:Orientation="8"', b"<tiff:Orientation>8</tiff:Orientation>"])
def test_the_orientation_in_xmp_is_reset_in_both_forms(form):
    assert metadata.upright(Metadata(xmp=b"a " + form), 1, 1).xmp == b"a " + form.replace(b"8", b"1")


def test_an_orientation_that_only_xmp_tells_is_applied(tmp_path, picture):
    options, _ = metadata.save_options({"xmp": XMP}, "PNG")
    Image.fromarray(picture(4, 7)).save(tmp_path / "a.png", **options)
    loaded = images.load(tmp_path / "a.png")
    assert np.array_equal(loaded.pixels, np.rot90(picture(4, 7), -1))
    assert b'tiff:Orientation="1"' in loaded.metadata.xmp


def test_the_tags_of_a_tiff_that_are_about_the_picture_are_kept(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "me"
    Image.new("RGB", (4, 4)).save(tmp_path / "a.tif", exif=exif)
    kept = Image.Exif()
    kept.load(images.load(tmp_path / "a.tif").metadata.exif)
    assert dict(kept) == {ExifTags.Base.Artist: "me"}  # no strips, no sizes


def test_a_profile_of_any_bytes_is_kept(tmp_path, tiny_codec):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", icc_profile=b"not a profile", lossless=True)
    assert tiny_codec.decode(tiny_codec.encode(tmp_path / "a.webp")).info["icc_profile"] == b"not a profile"


def test_exif_of_two_byte_orders_has_its_head():
    assert struct.unpack("<H", exif_bytes().removeprefix(b"Exif\0\0")[:2]) == (0x4949,)
    assert metadata.info_of(Metadata(exif=b"MM")) == {"exif": b"Exif\0\0MM"}


@pytest.mark.parametrize("kind", [3, 4, 8])
def test_an_orientation_of_any_type_is_reset(tmp_path, picture, kind):
    entry = struct.pack("<HHI", 0x112, kind, 1) + (6).to_bytes(4, "little")
    exif = b"II*\0\x08\0\0\0\x02\0" + entry + entry + bytes(4)
    Image.fromarray(picture(12, 20)).save(tmp_path / "a.png", exif=exif)
    loaded = images.load(tmp_path / "a.png")
    assert loaded.pixels.shape == (20, 12, 3)
    found = Image.Exif()
    found.load(loaded.metadata.exif)
    assert found[ExifTags.Base.Orientation] == 1


def test_exif_that_older_programs_keep_in_a_text_is_stored(tmp_path, picture):
    raw = exif_bytes().hex()
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(raw) // 2:8d}\n{raw}\n")
    Image.fromarray(picture(12, 20)).save(tmp_path / "a.png", pnginfo=info)
    loaded = images.load(tmp_path / "a.png")
    assert loaded.pixels.shape == (20, 12, 3)
    found = Image.Exif()
    found.load(loaded.metadata.exif)
    assert (found[ExifTags.Base.Make], found[ExifTags.Base.Orientation]) == ("maker", 1)


def test_tags_of_any_number_go_into_a_tiff():
    exif = Image.Exif()
    exif[0x9C9B] = b"t\0i\0"  # XPTitle
    image = Image.new("RGB", (4, 4))
    image.info["exif"] = exif.tobytes()
    with Image.open(io.BytesIO(images.pack(image, "TIFF", "a"))) as written:
        assert written.getexif()[0x9C9B] == b"t\0i\0"
        assert read(written).exif


@pytest.mark.parametrize("exif", [b"garbage", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0"])
def test_damaged_exif_is_no_end(tiny_codec, exif):
    image = Image.new("RGB", (8, 8))
    image.info["exif"] = b"Exif\0\0" + exif
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoded = tiny_codec.decode(tiny_codec.encode(image))
        assert decoded.info["exif"] == b"Exif\0\0" + exif
        for kind in ("PNG", "WEBP", "TIFF"):
            assert images.load(images.pack(decoded, kind, "a")).pixels.shape == (8, 8, 3)


def test_a_damaged_tag_of_a_tiff_is_no_end(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "text"
    Image.new("RGB", (4, 4)).save(tmp_path / "a.tif", exif=exif)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = data.index(struct.pack("<HH", ExifTags.Base.ImageDescription, 2))
    data[at + 2 : at + 8] = struct.pack("<HI", 11, 1)  # a float
    with pytest.warns(UserWarning, match="the EXIF data cannot be read: not stored"):
        assert images.load(bytes(data)).metadata.exif == b""


def test_a_format_that_drops_the_profile_says_so(tmp_path):
    image = Image.new("RGB", (8, 8))
    image.info["icc_profile"] = b"a profile"
    with pytest.warns(UserWarning, match=r"JPEG2000 does not hold ICC profile"):
        images.pack(image, "JPEG2000", "a.jp2")


def with_thumbnail(order):
    """Return EXIF data of a camera: sides of a picture, and a thumbnail that everything else lies before."""
    exif = Image.Exif()
    exif.endian = order
    exif[ExifTags.Base.Make] = "maker"
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base.ExifImageWidth: 40, ExifTags.Base.ExifImageHeight: 24})
    first = bytearray(exif.tobytes().removeprefix(b"Exif\0\0"))
    (count,) = struct.unpack_from(order + "H", first, 8)
    thumbnail = b"\xff\xd8 the whole picture \xff\xd9"
    struct.pack_into(order + "I", first, 10 + 12 * count, len(first))
    second = struct.pack(order + "H", 2)
    second += struct.pack(order + "HHII", ExifTags.Base.JpegIFOffset, 4, 1, len(first) + 30)
    second += struct.pack(order + "HHII", ExifTags.Base.JpegIFByteCount, 4, 1, len(thumbnail))
    return bytes(first) + second + bytes(4) + thumbnail


@pytest.mark.parametrize("more", [b"", b"maker's notes"])  # behind the thumbnail, too
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_thumbnail_goes_where_it_shows_something_else(order, more):
    exif = with_thumbnail(order) + more
    before = Image.Exif()
    before.load(exif)
    assert before.get_ifd(ExifTags.IFD.IFD1)
    stored = metadata.of_other_pixels(Metadata(exif=exif, xmp=b"a<xmp:Thumbnails>\nit</xmp:Thumbnails>b"), 12, 10)
    assert b"whole picture" not in stored.exif
    assert stored.exif.endswith(more)
    assert stored.xmp == b"ab"
    after = Image.Exif()
    after.load(stored.exif)
    assert not after.get_ifd(ExifTags.IFD.IFD1)
    assert after[ExifTags.Base.Make] == "maker"
    sides = after.get_ifd(ExifTags.IFD.Exif)
    assert (sides[ExifTags.Base.ExifImageWidth], sides[ExifTags.Base.ExifImageHeight]) == (12, 10)


def test_a_part_of_a_picture_has_no_thumbnail_of_the_whole(picture, tiny_codec):
    image = Image.fromarray(picture(24, 40))
    image.info["exif"] = b"Exif\0\0" + with_thumbnail("<").replace(
        b"\x12\x01\x03\0\x01\0\0\0\x06", b"\x12\x01\x03\0\x01\0\0\0\x01"
    )
    data = tiny_codec.encode(image)
    assert b"whole picture" in tiny_codec.decode(data).info["exif"]
    for options in ({"crop": (0, 0, 12, 10)}, {"scale": 2}):
        part = tiny_codec.decode(data, **options)
        assert b"whole picture" not in part.info["exif"]
        assert part.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] == part.width


def test_a_picture_that_is_turned_has_no_thumbnail_that_lies(picture, tiny_codec):
    image = Image.fromarray(picture(24, 40))
    image.info["exif"] = b"Exif\0\0" + with_thumbnail("<")
    stored = Container.unpack(tiny_codec.encode(image)).metadata.exif
    assert b"whole picture" not in stored
    found = Image.Exif()
    found.load(stored)
    assert found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] == 24


def test_a_jpeg_is_written_without_what_it_cannot_hold(picture, tmp_path):
    image = Image.fromarray(picture(8, 8))
    image.info |= {"xmp": b"<x>" + bytes(70_000), "exif": b"Exif\0\0" + with_thumbnail("<") + bytes(70_000)}
    with pytest.warns(UserWarning, match="JPEG does not hold EXIF data and XMP data"):
        data = images.pack(image, "JPEG", "a.jpg")
    assert images.load(data).metadata == Metadata()


def test_strip_turns_the_picture_all_the_same(full, picture):
    loaded = images.load(full, strip=True)
    assert np.array_equal(loaded.pixels, np.rot90(picture(40, 24), -1))
    assert loaded.metadata == Metadata(icc=profile("Display P3"))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("function", [metadata.upright, metadata.of_other_pixels])
def test_metadata_made_to_take_long_does_not(function):
    """Directories that all point to one another; openings that nothing closes."""
    entry = struct.pack("<HHII", ExifTags.IFD.Exif, 4, 1, 8)
    exif = b"II*\0\x08\0\0\0\xff\xff" + entry * 65535 + b"\x08\0\0\0"
    stored = function(Metadata(exif=exif, xmp=b"<xmp:Thumbnails>" * 2**16), 1, 1)
    assert len(stored.exif) == len(exif)
    assert len(stored.xmp) == 2**20


@given(st.binary(max_size=200), st.integers(0, 2**32 - 1), st.sampled_from([b"II*\0", b"MM\0*"]))
def test_no_exif_data_is_an_error(data, start, head):
    order = "<" if head[:1] == b"I" else ">"
    for place in (start, 8, start % 64):
        exif = head + struct.pack(order + "I", place) + data
        assert len(metadata.upright(Metadata(exif=exif), 3, 4).exif) <= len(exif)
