"""What is written into the page of ``codec compare``."""

from __future__ import annotations

import dataclasses
import json
import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from codec.comparison.page import data_uri, page

FACTS = re.compile(r'<script type="application/json" id="facts">(.*?)</script>', re.DOTALL)


def facts(pictures, title="Compared"):
    return json.loads(FACTS.search(page(pictures, title=title, made_by="made by a test"))[1])


def decoded(uri):
    assert uri.startswith("data:image/")
    return np.asarray(Image.open(BytesIO(b64decode(uri.split(",")[1]))))


def test_page_names_no_other_file(small):
    text = page([small], title="Compared", made_by="made by a test")
    assert set(re.findall(r"https?://[^\s\"'`)]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, never loaded
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(|innerHTML|<base", text)
    assert all(link.startswith("data:") for link in re.findall(r"(?:src|href|action)=[\"']([^\"']*)", text))


def test_facts_are_those_given(large):
    (picture,) = facts([large])["pictures"]
    assert (picture["name"], picture["width"], picture["height"], picture["asked_bytes"]) == ("large.png", 200, 180, 768)
    assert picture["asked_bpp"] == pytest.approx(8 * 768 / (200 * 180))
    ours = picture["codecs"][0]
    assert (ours["name"], ours["is_ours"], ours["setting"], ours["bytes"]) == ("swift", True, "quality 41.2", 700)
    assert (ours["psnr_db"], ours["ms_ssim_db"], ours["encode_s"], ours["decode_s"]) == (34.5, 15.0, 0.12, 1.5)
    assert ours["bpp"] == pytest.approx(8 * 700 / (200 * 180))
    assert ours["curve"][2] == {"bpp": 1, "psnr_db": 30.0, "ms_ssim_db": 15.0}


def test_infinite_and_missing_figures_are_null(small, large):
    codecs = facts([small])["pictures"][0]["codecs"]
    assert [(c["psnr_db"], c["lossless"], c["ms_ssim_db"]) for c in codecs[2:]] == [(31.0, False, None), (None, True, None)]
    assert facts([large])["pictures"][0]["codecs"][3]["ms_ssim_db"] is None


def test_pixels_are_exact(small):
    (picture,) = facts([small])["pictures"]
    assert np.array_equal(decoded(picture["original"]), small.original)
    for written, given in zip(picture["codecs"], small.codecs, strict=True):
        assert np.array_equal(decoded(written["pixels"]), given.pixels)


@pytest.mark.parametrize(("width", "kind"), [(16383, "webp"), (16384, "png")])
def test_pictures_too_long_for_webp_are_png(width, kind):
    pixels = np.random.default_rng(1).integers(0, 256, (2, width, 3), np.uint8)
    assert data_uri(pixels).startswith(f"data:image/{kind};")
    assert np.array_equal(decoded(data_uri(pixels)), pixels)


def test_names_cannot_end_the_script(small, hostile):
    text = page([dataclasses.replace(small, name=hostile)], title=hostile, made_by=hostile)
    assert text.count("</script>") == 2
    assert facts([dataclasses.replace(small, name=hostile)])["pictures"][0]["name"] == hostile


def test_decoded_picture_of_another_size_is_our_error(small, large):
    with pytest.raises(AssertionError, match="swift"):
        page([dataclasses.replace(small, original=large.original)], title="", made_by="")
