"""A plugin for Pillow: ``import codec.pillow``, and ``Image.open`` and ``Image.save`` know our files.

>>> import codec.pillow
>>> Image.open("photo.lic").save("photo.png")
>>> image.save("photo.lic", quality=60)

Pillow looks for plugins in its own package only and reads no entry points, so somebody has to import this module. A file is
known by its first bytes, whatever its name. ``open`` reads header and metadata and loads no torch; ``load`` decodes, refusing
damaged files; ``verify`` checks all bytes, but decodes nothing. ``thumbnail`` and ``draft`` decode at 1/2, 1/4 or 1/8.

``save`` takes the options of ``codec.encode``: quality, bpp, size, psnr, max_size, effort, model, strip, strict; and
icc_profile, exif and xmp in the place of those of the image. What is off with a file is
an UnidentifiedImageError or another OSError, an option that is off a ValueError, both with our sentence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from PIL import Image, ImageFile, UnidentifiedImageError

import codec
from bitstream.container import Container, read_head
from bitstream.errors import CodecError, TargetError, UsageError
from bitstream.header import SIGNATURE, Header
from bitstream.limits import NO_LIMITS, Limits
from codec.metadata import info_of

LIMITS = Limits()  # of load, beside Pillow's own of open: Image.open hands no options on

_METADATA = ("icc_profile", "exif", "xmp")
_SCALES = (8, 4, 2)
_OPTIONS = ("quality", "bpp", "size", "psnr", "max_size", "effort", "model", "strip", "strict")


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(SIGNATURE)


def _mode(header: Header) -> str:
    """Return the mode of the picture that a file with this header decodes to."""
    return ("LA" if header.alpha else "L") if header.gray else ("RGBA" if header.alpha else "RGB")


@contextmanager
def _raised_as(kind: type[Exception]) -> Iterator[None]:
    """Turn our errors into one that users of Pillow catch."""
    try:
        yield
    except CodecError as error:
        raise kind(str(error)) from error


class LicImageFile(ImageFile.ImageFile):
    """A file of ours, decoded when its pixels are asked for."""

    format = "LIC"
    format_description = "Learned image codec"
    _scale = 1

    def _open(self) -> None:
        assert self.fp is not None
        with _raised_as(UnidentifiedImageError):
            header, stored = read_head(self.fp)
        self.info.update(info_of(stored))
        self._size = header.width, header.height
        self._mode = _mode(header)
        self.tile = [ImageFile._Tile("lic", (0, 0, *self._size), 0, None)]  # until the pixels are there

    def load(self) -> Image.core.PixelAccess | None:
        """Decode the file, if that is not done. Raises OSError if it is damaged or too large for ``LIMITS``."""
        if self.tile:
            data = self._read()
            with _raised_as(OSError):
                image = codec.decode(data, scale=self._scale, limits=LIMITS)
            self.im, self._mode, self._size, self.readonly = image.im, image.mode, image.size, image.readonly
            if self._scale != 1:  # its EXIF data tell other sides
                self.info.update({key: value for key, value in image.info.items() if key in self.info})
            self.tile = []
            if self._exclusive_fp and self.fp is not None:
                self.fp.close()
            self.fp = None
        return Image.Image.load(self)

    def verify(self) -> None:
        """Check the checksum and all parts of the file without decoding it; then close it. Raises OSError."""
        data = self._read()
        with _raised_as(OSError):
            Container.unpack(data, limits=NO_LIMITS)
        super().verify()

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> tuple[str, tuple[int, int, float, float]] | None:
        """Let ``load`` decode at 1/2, 1/4 or 1/8, the least that is not below ``size`` (width, height); the mode stays.

        Returns the mode and the box (left, top, right, bottom) of the picture in what ``load`` will give, where the last column
        and row may stand for fewer pixels. None if nothing changes, as after ``load`` or a first call.
        """
        if not self.tile or self._scale != 1 or size is None:
            return None
        most = min(self.width // max(size[0], 1), self.height // max(size[1], 1))
        scale = next((scale for scale in _SCALES if scale <= most), 1)
        if scale == 1:
            return None
        box = (0, 0, self.width / scale, self.height / scale)
        self._scale, self._size = scale, (-(-self.width // scale), -(-self.height // scale))
        return self.mode, box

    def _read(self) -> bytes:
        if self.fp is None or self.fp.closed:
            raise ValueError("Operation on closed image")  # Pillow's own words
        self.fp.seek(0)
        return self.fp.read()


def _save(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    options = {name: im.encoderinfo[name] for name in _OPTIONS if name in im.encoderinfo}
    given = {key: im.encoderinfo[key] for key in _METADATA if key in im.encoderinfo}
    before = im.info, im._exif
    im.info = im.info | {
        key: (value.tobytes() if isinstance(value, Image.Exif) else value) or b"" for key, value in given.items()
    }
    if "exif" in given:
        im._exif = None  # what was read of the other
    try:
        data = codec.encode(im, **options)  # the image itself: a copy would not know what file it is from
    except (UsageError, TargetError) as error:
        raise ValueError(str(error)) from error
    except CodecError as error:
        raise OSError(str(error)) from error
    finally:
        im.info, im._exif = before
    fp.write(data)


Image.register_open(LicImageFile.format, LicImageFile, _accept)
Image.register_save(LicImageFile.format, _save)
Image.register_extension(LicImageFile.format, ".lic")
Image.register_mime(LicImageFile.format, "image/x-lic")
