"""Pictures of formats with losses: written finely, and without what cannot be seen or held."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, features

from bitstream.errors import ImageError
from codec import images


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_jpeg_is_written_finely_and_with_all_of_the_colours(picture, kind):
    image, expected = Image.fromarray(picture(40, 60)), io.BytesIO()
    image.save(expected, kind, quality=95, subsampling=0)
    with pytest.warns(UserWarning, match="does not keep the decoded pixels exactly"):
        assert images.pack(image, kind, "a.jpg") == expected.getvalue()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")
def test_avif_is_written_with_all_of_the_colours():
    columns = np.zeros((64, 64, 3), np.uint8)
    columns[:, ::2], columns[:, 1::2] = (230, 40, 40), (40, 40, 230)
    with pytest.warns(UserWarning, match="does not keep the decoded pixels exactly"):
        data = images.pack(Image.fromarray(columns), "AVIF", "a.avif")
    assert np.abs(images.load(data).pixels.astype(int) - columns).mean() < 10  # halved, some 70


@pytest.mark.parametrize(("colours", "mode"), [(3, "RGB"), (1, "L")])
def test_alpha_through_which_nothing_is_seen_is_no_reason_to_refuse(picture, colours, mode):
    image = Image.fromarray(picture(8, 8)).convert(mode)
    image.putalpha(255)
    with pytest.warns(UserWarning, match="exactly"):
        data = images.pack(image, "JPEG", "a.jpg")
    with Image.open(io.BytesIO(data)) as back:
        assert back.mode == mode
    image.putpixel((3, 3), (*[9] * colours, 254))
    with pytest.raises(ImageError, match="keeps no alpha channel"):
        images.pack(image, "JPEG", "a.jpg")
