"""``codec compare``: every codec at the same number of bytes, in one page."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from codec.cli.main import main
from codec.comparison.match import compare, setting_text
from codec.evaluation.contenders import ModelContender, PeerContender
from codec.evaluation.peers import PEERS
from codec.images import Picture
from codec.metrics import psnr_db
from codec.targets import Target

LIMIT = 1500


@pytest.fixture
def contenders(tiny_checkpoint):
    """The tiny model and three peers."""
    return [
        ModelContender.of(str(tiny_checkpoint), "cpu"),
        *(PeerContender.of(PEERS[name]) for name in ("jpeg", "webp", "jpeg2000")),
    ]


def test_all_codecs_have_the_asked_bytes_or_the_nearest_below(contenders, picture):
    source = Picture(picture(128, 192), gray=False)
    compared = compare("a.png", source, Target(size=LIMIT), contenders, lambda name: None)
    assert (compared.name, compared.asked_bytes) == ("a.png", LIMIT)
    assert [shown.name for shown in compared.codecs] == ["tiny-swift", "jpeg", "webp", "jpeg2000"]
    for shown, contender in zip(compared.codecs, contenders, strict=True):
        assert shown.n_bytes <= LIMIT
        step = {"jpeg": 1, "webp": 0.1}.get(shown.name)
        if step is not None:  # one more is too large: their steps are coarse on so small a picture
            quality = float(re.findall(r"quality ([0-9.]+)", shown.setting)[0])
            assert len(contender.encode(source, quality)) == shown.n_bytes
            assert len(contender.encode(source, round(quality + step, 1))) > LIMIT
        else:
            assert shown.n_bytes >= 0.99 * LIMIT


def test_figures_are_those_of_the_shown_pixels(contenders, picture):
    source = Picture(picture(176, 192), gray=False)
    for shown in compare("a.png", source, Target(size=LIMIT), contenders, lambda name: None).codecs:
        assert shown.psnr_db == pytest.approx(psnr_db(source.pixels, shown.pixels))
        assert shown.ms_ssim_db is not None
        assert shown.encode_s > 0
        assert len(shown.curve) >= 4
        assert shown.is_ours == (shown.name == "tiny-swift")


def test_a_codec_that_cannot_be_so_small_shows_its_smallest(contenders, picture):
    source = Picture(picture(64, 64), gray=False)
    shown = compare("a.png", source, Target(size=50), contenders[1:2], lambda name: None).codecs[0]
    assert shown.n_bytes == len(contenders[1].encode(source, PEERS["jpeg"].lowest))
    assert shown.n_bytes > 50


def test_settings_are_told_in_words():
    assert setting_text({"quality": 41.234}) == "quality 41.2"
    assert setting_text(PEERS["jpeg"].settings(37)) == "quality 37, optimize, subsampling 4:4:4"
    assert setting_text(PEERS["jpeg2000"].settings(40)) == "PSNR 32 dB, irreversible"


def invoke(*arguments):
    """Run ``codec compare`` in this process."""
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


@pytest.fixture
def photo(tmp_path, picture):
    """A picture file."""
    path = tmp_path / "photo.png"
    Image.fromarray(picture(96, 128)).save(path)
    return path


@pytest.mark.parametrize(
    ("options", "asked"), [(["--size", "2KB"], 2000), (["--bpp", "1.5"], 96 * 128 * 1.5 / 8), ([], 96 * 128 * 0.25 / 8)]
)
def test_the_page_is_written_and_says_what_was_reached(photo, tiny_checkpoint, tmp_path, options, asked):
    out = tmp_path / "page.html"
    result = invoke(photo, "--model", tiny_checkpoint, "--peers", "jpeg,webp", "-o", out, *options)
    assert result.exit_code == 0, result.output
    (facts,) = re.findall(r"<script[^>]*application/json[^>]*>(.*?)</script>", out.read_text(encoding="utf-8"), re.DOTALL)
    (picture,) = json.loads(facts)["pictures"]
    assert picture["asked_bytes"] == int(asked)
    for codec in picture["codecs"]:
        assert f"photo.png: {codec['name']} {codec['bytes']} bytes" in result.stdout


def test_a_quality_asks_for_the_bytes_of_the_first_model(photo, tiny_codec, tiny_checkpoint, tmp_path):
    n_bytes = len(tiny_codec.encode(photo, quality=70))
    result = invoke(photo, "--model", tiny_checkpoint, "--peers", "webp", "-q", 70, "-o", tmp_path / "page.html")
    assert f"tiny-swift {n_bytes} bytes (+0.0 %)" in result.stdout


def test_several_pictures_are_on_one_page(photo, tiny_checkpoint, tmp_path):
    gray = tmp_path / "gray.png"
    Image.fromarray(np.asarray(Image.open(photo))[..., 0]).save(gray)
    result = invoke(photo, gray, "--model", tiny_checkpoint, "--peers", "jpeg", "--bpp", 1, "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "gray.png: jpeg" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bpp", "1", "--size", "2KB"], "expected one of them"),
        (["--size", "many"], "size is 'many'"),
        (["--peers", "heic"], "choose from jpeg"),
        (["--bpp", "-1"], "expected a number above 0"),
    ],
)
def test_what_cannot_be_is_said_and_leaves_no_file(photo, tiny_checkpoint, tmp_path, arguments, words):
    out = tmp_path / "page.html"
    result = invoke(photo, "--model", tiny_checkpoint, "-o", out, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not out.exists()


def test_a_page_is_not_overwritten_unasked(photo, tmp_path):
    (tmp_path / "page.html").write_text("mine")
    result = invoke(photo, "--model", "", "--peers", "jpeg", "-o", tmp_path / "page.html")
    assert (result.exit_code, (tmp_path / "page.html").read_text()) == (2, "mine")
    assert invoke(photo, "--model", "", "--peers", "jpeg", "-o", tmp_path / "page.html", "-f").exit_code == 0


def test_a_picture_that_is_missing_is_said(tmp_path):
    result = invoke(tmp_path / "no.png", "-o", tmp_path / "page.html")
    assert result.exit_code == 2
    assert "no such file" in result.stderr


def test_a_limit_of_pixels_can_be_set(photo, tmp_path):
    result = invoke(photo, "--model", "", "--peers", "jpeg", "--max-pixels", "100", "-o", tmp_path / "page.html")
    assert result.exit_code == 1
    assert "the limit is 100: raise it with --max-pixels" in result.output
    assert not (tmp_path / "page.html").exists()
