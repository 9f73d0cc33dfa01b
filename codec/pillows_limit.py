"""Pillow's own limit of pixels, lifted while ours is asked instead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from PIL import Image


class _PillowsLimit:
    """Pillow's limit of pixels, which is one for the whole process: while any thread is inside, the largest that one asks for.

    So it is also another for a caller's own ``Image.open`` in another thread.
    """

    def __init__(self) -> None:
        self._lock, self._asked, self._before = threading.Lock(), list[int | None](), Image.MAX_IMAGE_PIXELS

    @contextmanager
    def at(self, pixels: int | None) -> Iterator[None]:
        """Set it, to None for none at all."""
        with self._lock:
            if not self._asked:
                self._before = Image.MAX_IMAGE_PIXELS
            self._asked.append(pixels)
            self._set()
        try:
            yield
        finally:
            with self._lock:
                self._asked.remove(pixels)
                self._set()

    def _set(self) -> None:
        numbers = [pixels for pixels in self._asked if pixels is not None]
        Image.MAX_IMAGE_PIXELS = self._before if not self._asked else max(numbers) if len(numbers) == len(self._asked) else None


pillows_limit = _PillowsLimit()


def open_picture(file: BinaryIO) -> Image.Image:
    """Open a picture of any size: whether it is too large is said by our limit."""
    with pillows_limit.at(None):
        return Image.open(file)
