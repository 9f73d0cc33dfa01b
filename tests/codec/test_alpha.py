"""Alpha comes back exactly: of any kind of picture, of tiles, crops and thumbnails; damage to it is found."""

from __future__ import annotations

import dataclasses
import io
import weakref

import numpy as np
import pytest
from PIL import Image

from bitstream.container import Container, Tile, open_container
from bitstream.errors import FormatError, ImageError, LimitError
from bitstream.grid import Rect, cut
from bitstream.header import Header
from codec import images
from codec.alpha import decode_alpha, pack_alpha, unpack_alpha


def mask(h, w):
    """Return a disc with a soft edge (h, w)."""
    y, x = np.mgrid[:h, :w]
    return np.clip(128 - 20 * (np.hypot(y - h / 2, x - w / 2) - min(h, w) / 3), 0, 255).astype(np.uint8)


def noise(h, w):
    return np.random.default_rng(0).integers(0, 256, (h, w), np.uint8)


@pytest.mark.parametrize("draw", [mask, noise, lambda h, w: np.full((h, w), 255, np.uint8)], ids=["mask", "noise", "opaque"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (33, 50)])
def test_a_tile_comes_back_exactly(draw, shape):
    values = draw(*shape)
    payload = pack_alpha(values)
    assert np.array_equal(unpack_alpha(payload, shape[1], shape[0]), values)
    assert (len(payload) == 1) == bool((values == values[0, 0]).all())


def test_a_tile_that_no_webp_holds_is_refused():
    assert len(pack_alpha(np.zeros((1, 20000), np.uint8))) == 1
    assert np.array_equal(unpack_alpha(pack_alpha(noise(1, 16383)), 16383, 1), noise(1, 16383))
    with pytest.raises(LimitError, match="the alpha channel is 16384×1 in one piece, at most 16383 a side"):
        pack_alpha(noise(1, 16384))


def webp(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return buffer.getvalue()


DAMAGE = {
    "nothing": (lambda p: b"", "begins with"),
    "no WebP": (lambda p: b"two", "begins with"),
    "a PNG": (lambda p: b"\x89PNG\r\n\x1a\n" + bytes(20), "begins with"),
    "a lossy WebP": (lambda p: webp(Image.new("RGB", (50, 33), "red")), "expected one byte or a lossless WebP"),
    "another size": (lambda p: pack_alpha(mask(33, 51)), "51×33 pixels, expected 50×33"),
    "a huge size": (lambda p: p[:21] + b"\xff\xff\xff\x0f" + p[25:], "16384×16384 pixels, expected 50×33"),
    "cut off": (lambda p: p[: len(p) // 2], "cannot be decoded"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_other_payloads_are_refused(kind):
    forge, message = DAMAGE[kind]
    with pytest.raises(FormatError, match=message):
        unpack_alpha(forge(pack_alpha(mask(33, 50))), 50, 33)


@pytest.mark.parametrize(("mode", "expected"), [("RGBA", "RGBA"), ("LA", "LA"), ("PA", "RGBA")])
def test_a_picture_keeps_its_alpha(tmp_path, picture, tiny_codec, mode, expected):
    image = Image.fromarray(picture(33, 50)).convert("L" if mode == "LA" else "P" if mode == "PA" else "RGB").convert(mode)
    image.putalpha(Image.fromarray(mask(33, 50)))
    decoded = tiny_codec.decode(tiny_codec.encode(image))
    assert decoded.mode == expected
    assert np.array_equal(np.asarray(decoded)[:, :, -1], mask(33, 50))


def test_colours_under_transparency_are_coded_as_they_come(tiny_codec, picture):
    rgba = np.dstack([picture(64, 64), np.zeros((64, 64), np.uint8)])
    assert np.array_equal(
        np.asarray(tiny_codec.decode(tiny_codec.encode(rgba)))[:, :, :3],
        np.asarray(tiny_codec.decode(tiny_codec.encode(picture(64, 64)))),
    )


TRANSPARENT = {  # a transparent colour in a PNG or GIF
    "palette": (lambda p: palette(p / "a.png"), [[0, 255]]),
    "palette GIF": (lambda p: palette(p / "a.gif"), [[0, 255]]),
    "RGB": (lambda p: keyed(Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8)), p, (1, 2, 3)), [[0, 255]]),
    "gray": (lambda p: keyed(Image.fromarray(np.array([[7, 9]], np.uint8)), p, 9), [[255, 0]]),
    "bilevel": (lambda p: keyed(Image.fromarray(np.array([[True, False]])), p, 255), [[0, 255]]),
}


def palette(path):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.putdata([0, 1])
    image.save(path, transparency=0)
    return path


def keyed(image, folder, key):
    image.save(folder / "a.png", transparency=key)
    return folder / "a.png"


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_a_transparent_colour_becomes_alpha(tmp_path, kind):
    make, alpha = TRANSPARENT[kind]
    assert images.load(make(tmp_path)).alpha.tolist() == alpha


@pytest.mark.parametrize("channels", [2, 4])
def test_arrays_with_alpha(tiny_codec, picture, channels):
    array = np.dstack([picture(20, 30)[:, :, : channels - 1], mask(20, 30)])
    decoded = tiny_codec.decode(tiny_codec.encode(array))
    assert decoded.mode == ("LA" if channels == 2 else "RGBA")
    assert np.array_equal(np.asarray(decoded)[:, :, -1], mask(20, 30))


@pytest.fixture(scope="module")
def tiled(tiny_codec):
    """A file of 1100 × 1030 pixels in four tiles with alpha, and its alpha."""
    alpha = mask(1030, 1100)
    alpha[:, 1024:] = 255
    rgba = np.dstack([np.full((1030, 1100, 3), 99, np.uint8), alpha])
    return tiny_codec.encode(rgba), alpha


def test_tiles_have_their_own_alpha(tiled, tiny_codec):
    data, alpha = tiled
    container = Container.unpack(data)
    assert [len(container.tile(number).alpha) for number in range(4)][1::2] == [1, 1]  # opaque ones: a byte
    assert np.array_equal(np.asarray(tiny_codec.decode(data))[:, :, 3], alpha)


def test_a_crop_of_tiles(tiled, tiny_codec):
    data, alpha = tiled
    decoded = tiny_codec.decode_tiles(open_container(io.BytesIO(data)), crop=(1000, 1000, 60, 30))
    assert np.array_equal(np.asarray(decoded)[:, :, 3], alpha[1000:1030, 1000:1060])


@pytest.mark.parametrize("area", [Rect(0, 0, 1100, 1030), Rect(3, 5, 1090, 1021), Rect(1020, 1020, 9, 9)])
@pytest.mark.parametrize("scale", [2, 8])
def test_a_thumbnail_has_the_means(tiled, area, scale):
    data, alpha = tiled
    source = Container.unpack(data)
    found = decode_alpha(source, cut(Rect(0, 0, 1100, 1030), 1024), area, scale)
    part = alpha[area.top : area.bottom, area.left : area.right].astype(float)
    assert found.shape == (-(-area.height // scale), -(-area.width // scale))
    for row, column in [(0, 0), (-1, -1), (found.shape[0] // 2, 0)]:
        top, left = (index % n * scale for index, n in zip((row, column), found.shape, strict=True))
        assert found[row, column] == round(part[top : top + scale, left : left + scale].mean())


class Asking:
    """The tiles of a file; remembers which were asked for."""

    def __init__(self, container):
        self.header, self._container, self.asked = container.header, container, []

    def tile(self, number):
        """Give a tile, and note that it was asked for."""
        self.asked.append(number)
        return self._container.tile(number)


class Counted(list):
    """A list that counts how often somebody looks at a part of it."""

    looks = 0

    def __getitem__(self, index):
        self.looks += 1
        return super().__getitem__(index)

    def __iter__(self):
        for part in super().__iter__():
            self.looks += 1
            yield part


def tiles_of_one_value(width, height):
    """Return a source of tiles of 256 pixels whose alpha is the number of the tile, modulo 251, and where they lie."""
    rects = Counted(cut(Rect(0, 0, width, height), 256))
    header = Header(width, height, False, b"abcd", 0, 0, tile=8, alpha=True)
    return Asking(Container.of_tiles(header, [Tile([b"", b""], 0, bytes([n % 251])) for n in range(len(rects))])), rects


@pytest.mark.parametrize(("width", "height"), [(64, 2**20), (2**20, 64)])
def test_the_time_of_very_many_tiles_grows_with_their_number(width, height):
    source, rects = tiles_of_one_value(width, height)
    alpha = decode_alpha(source, rects, Rect(0, 0, width, height), 1)
    assert sorted(source.asked) == list(range(4096))
    assert rects.looks <= 4 * 4096  # not 4096 for each strip
    assert np.array_equal((alpha if height > width else alpha.T)[::256, 0], np.arange(4096) % 251)


def test_tiles_that_a_strip_does_not_touch_are_not_kept(monkeypatch):
    source, rects = tiles_of_one_value(600, 4096)
    held, alive = [], []

    def unpack(payload, width, height):
        values = unpack_alpha(payload, width, height).copy()
        held.append(weakref.ref(values))
        alive.append(sum(reference() is not None for reference in held))
        return values

    monkeypatch.setattr("codec.alpha.unpack_alpha", unpack)
    area = Rect(100, 50, 450, 4000)
    alpha = decode_alpha(source, rects, area, 2, 2)
    assert len(held) == 3 * 16
    assert max(alive) <= 3 * 5 + 1  # a strip of 1024 rows touches five rows of tiles; the last one is still looked at
    expected = np.repeat(np.repeat((np.arange(48) % 251).reshape(16, 3), 256, axis=0), 256, axis=1)[50:4050, 100:550]
    assert np.array_equal(alpha[:, :70], expected[::2, ::2][:, :70])  # columns 100 … 239 are of the first tiles
    assert np.array_equal(alpha[:, 100:200], expected[::2, ::2][:, 100:200])


def test_damage_to_alpha_is_told_by_decode(tiled, tiny_codec):
    container = Container.unpack(tiled[0])
    chunks = [(kind, b"??" if kind == 3 and len(payload) > 1 else payload) for kind, payload in container.chunks]
    with pytest.raises(FormatError, match="ALPHA begins with 3f3f"):
        tiny_codec.decode(dataclasses.replace(container, chunks=chunks).pack())


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "tga"])
def test_written_pictures_keep_it(tmp_path, tiny_codec, picture, suffix):
    image = tiny_codec.decode(tiny_codec.encode(np.dstack([picture(20, 30), mask(20, 30)])))
    images.save(image, tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as written:
        assert np.array_equal(np.asarray(written.convert("RGBA")), np.asarray(image))


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("bmp", "BMP"), ("ppm", "PPM"), ("gif", "GIF")])
def test_a_format_without_alpha_is_refused(tmp_path, suffix, kind):
    with pytest.raises(ImageError, match=rf"{kind} keeps no alpha channel, the picture has one: name it \.png"):
        images.save(Image.new("RGBA", (4, 4)), tmp_path / f"a.{suffix}")
    assert not list(tmp_path.iterdir())
