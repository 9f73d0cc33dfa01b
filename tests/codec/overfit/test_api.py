"""codec.Codec with overfit: pictures come back, the same bytes for the same input, other files are refused."""

from __future__ import annotations

import io
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from switches import default_dtype

import codec
from bitstream.errors import CheckpointError, FormatError, LimitError, UsageError
from bitstream.header import FLAG_FITTED
from codec import Codec
from codec.metrics import psnr_db
from models.overfit.state import State


def resealed(data, at, value):
    """Return a file with a byte changed and its CRC made right."""
    body = data[:at] + bytes([value]) + data[at + 1 : -4]
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_a_picture_comes_back(fitted_codec, fitted, small):
    pixels = fitted_codec.decode(fitted, output="numpy")
    assert pixels.shape == small.shape
    gray = np.full_like(small, round(small.mean()))
    assert psnr_db(small, pixels) > psnr_db(small, gray) + 2


def test_the_whole_search_makes_a_file_that_decodes(whole_search, fitted_codec, fitted, small):
    data = fitted_codec.encode(small, quality=50)
    assert len(data) < len(fitted)  # the first steps are not the best
    assert fitted_codec.decode(data).size == (60, 50)


def test_the_same_input_gives_the_same_bytes(fitted_codec, overfit_checkpoint, fitted, small):
    fresh = Codec(overfit_checkpoint, "cpu")
    assert [fresh.encode(small, quality=50) for _ in range(2)] == [fitted] * 2  # the first loads the analysis


def test_a_fresh_codec_decodes_the_same_pixels(fitted_codec, overfit_checkpoint, wide_fitted):
    fresh = Codec(overfit_checkpoint, "cpu").decode(wide_fitted, output="numpy")
    np.testing.assert_array_equal(fitted_codec.decode(wide_fitted, output="numpy"), fresh)


def test_random_numbers_of_the_caller_stay_as_they_are(fitted_codec, small):
    import torch

    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    fitted_codec.encode(small[:9, :9])
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (65, 63), (1, 70)])
def test_sizes(fitted_codec, picture, h, w):
    data = fitted_codec.encode(picture(h, w), quality=30)
    header = codec.info(data)
    assert (header.width, header.height, header.fitted, header.tile) == (w, h, True, 0)
    assert fitted_codec.decode(data).size == (w, h)


def test_gray_and_its_alpha_come_back(fitted_codec, small):
    pixels = np.stack([small[:, :, 0], small[:, :, 1]], axis=2)
    image = fitted_codec.decode(fitted_codec.encode(pixels))
    assert image.mode == "LA"
    np.testing.assert_array_equal(np.asarray(image)[:, :, 1], pixels[:, :, 1])


def test_alpha_and_metadata_are_kept(fitted_codec, small, wide_fitted):
    alpha = fitted_codec.decode(wide_fitted, output="numpy")[:, :, 3]
    assert (alpha[:40] == 200).all()
    assert (alpha[40:] == 7).all()
    exif, stored = Image.Exif(), io.BytesIO()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif[0x013B] = "somebody"
    Image.fromarray(small[:9, :9]).save(stored, "PNG", exif=exif, icc_profile=profile)
    image = fitted_codec.decode(fitted_codec.encode(stored.getvalue()))
    assert image.getexif()[0x013B] == "somebody"
    assert image.info["icc_profile"] == profile


def test_a_crop_is_the_part_of_the_whole(fitted_codec, wide_fitted):
    whole = fitted_codec.decode(wide_fitted, output="numpy")
    for crop in ((99, 69, 1, 1), (3, 5, 93, 61)):
        left, top, w, h = crop
        part = fitted_codec.decode(wide_fitted, output="numpy", crop=crop)
        np.testing.assert_array_equal(part, whole[top : top + h, left : left + w])


@pytest.mark.parametrize("scale", [2, 8])
def test_a_scaled_picture_is_the_mean_of_the_whole(fitted_codec, fitted, scale):
    whole = fitted_codec.decode(fitted, output="numpy").astype(float)
    part = fitted_codec.decode(fitted, output="numpy", scale=scale)
    h, w = (-(-side // scale) for side in whole.shape[:2])
    assert part.shape == (h, w, 3)
    for y, x in ((0, 0), (h - 1, w - 1)):
        mean = whole[y * scale : (y + 1) * scale, x * scale : (x + 1) * scale].mean(axis=(0, 1))
        assert np.abs(part[y, x] - mean).max() <= 1


def test_quality_raises_bytes_and_psnr(fitted_codec, fitted, small):
    files = [fitted_codec.encode(small, quality=0), fitted, fitted_codec.encode(small, quality=90)]
    assert [len(data) for data in files] == sorted({len(data) for data in files})
    values = [psnr_db(small, fitted_codec.decode(data, output="numpy")) for data in files]
    assert values == sorted(set(values))


def test_effort_makes_a_better_picture(fitted_codec, fitted, small):
    more = fitted_codec.encode(small, quality=50, effort=3)
    assert fitted_codec.fit.iterations == 48
    found = [psnr_db(small, fitted_codec.decode(data, output="numpy")) for data in (fitted, more)]
    assert found[1] > found[0] + 0.3


@pytest.mark.parametrize(
    ("may", "does", "bpp", "finest"),
    [(1.5, 4.0, None, [1]), (0.5, 1.1, None, [0]), (1.0, 4.0, 0.3, [1, 0]), (1.0, 4.0, 0.1, [1, 1])],
)
def test_the_finest_grid_is_coded_where_it_pays(monkeypatch, fitted_codec, small, may, does, bpp, finest):
    """Of level 1.2: below a level never, from another one always, between them by the bits of a short descent without it."""
    monkeypatch.setattr("codec.overfit.fitting.FINEST_MAY", may)
    monkeypatch.setattr("codec.overfit.fitting.FINEST_DOES", does)
    tried, plain = [], type(fitted_codec.model).fit

    def fit(self, x, level, finest):
        found = plain(self, x, level, finest)
        tried.append(finest)
        if bpp is not None and len(tried) == 1:
            found.measure = lambda: State(bpp, 0.0, 20.0)
        return found

    monkeypatch.setattr(type(fitted_codec.model), "fit", fit)
    data = fitted_codec.encode(small[:20, :20], quality=60)
    assert tried == finest
    assert fitted_codec.decode(data).size == (20, 20)


def test_latents_are_refused_in_one_sentence(fitted_codec, fitted):
    with pytest.raises(UsageError, match="no latents that pictures share: use another model$"):
        fitted_codec.latents(fitted)


def test_files_of_other_models_are_refused(fitted_codec, tiny_codec, fitted, small):
    with pytest.raises(CheckpointError, match="choose the right model$"):
        tiny_codec.decode(fitted)
    with pytest.raises(CheckpointError, match="choose the right model$"):
        fitted_codec.decode(tiny_codec.encode(small))


def test_a_forged_flag_is_refused(fitted_codec, tiny_codec, fitted, small):
    with pytest.raises(FormatError, match="chunk"):
        fitted_codec.decode(resealed(fitted, 5, fitted[5] & ~FLAG_FITTED))
    plain = tiny_codec.encode(small)
    with pytest.raises(FormatError, match="chunk"):
        tiny_codec.decode(resealed(plain, 5, plain[5] | FLAG_FITTED))


def test_a_flag_that_is_not_the_models_is_refused(fitted_codec, tiny_codec, fitted, small):
    foreign = fitted.replace(fitted_codec.model.checkpoint.model_id, tiny_codec.model.checkpoint.model_id)
    with pytest.raises(FormatError, match="says that it has networks of its own, its model is swift: the file is damaged"):
        tiny_codec.decode(resealed(foreign, 5, foreign[5]))
    plain = tiny_codec.encode(small)
    foreign = plain.replace(tiny_codec.model.checkpoint.model_id, fitted_codec.model.checkpoint.model_id)
    with pytest.raises(FormatError, match="says that it lacks networks of its own, its model is overfit"):
        fitted_codec.decode(resealed(foreign, 5, foreign[5]))


def test_a_picture_too_large_for_the_model_is_refused_at_once(monkeypatch, fitted_codec, small):
    monkeypatch.setattr("models.overfit.runtime.MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(LimitError, match="overfit codes at most 4095"):
        fitted_codec.encode(small)


def test_alpha_too_wide_for_one_piece_is_refused_at_once(monkeypatch, fitted_codec):
    monkeypatch.setattr(type(fitted_codec.model), "fit", lambda *_, **__: pytest.fail("a descent began"))
    with pytest.raises(LimitError, match="the alpha channel is 16384×1 in one piece"):
        fitted_codec.encode(np.random.default_rng(0).integers(0, 256, (1, 16384, 4), np.uint8))


def test_resume_is_refused_by_other_models(tiny_codec, small, tmp_path):
    with pytest.raises(UsageError, match="swift has nothing to resume"):
        tiny_codec.encode(small, resume=tmp_path / "state")


def test_a_fit_that_another_thread_begins_is_not_returned(overfit_checkpoint, fitted, small):
    """Codecs are shared by all callers of ``codec.encode``: between the two lines of one, another may set its own."""

    class Shared(Codec):
        @property
        def fit(self):
            return SimpleNamespace(run=lambda: b"the picture of another thread")

        @fit.setter
        def fit(self, fit):
            pass

    assert Shared(overfit_checkpoint, "cpu").encode(small, quality=50) == fitted


@pytest.mark.parametrize("switch", ["no grad", "inference mode", "autocast", "default type"])
def test_what_a_caller_switches_does_not_matter(overfit_checkpoint, fitted, small, switch):
    switches = {
        "no grad": torch.no_grad(),
        "inference mode": torch.inference_mode(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "default type": default_dtype(torch.float64),
    }
    with switches[switch]:
        coder = Codec(overfit_checkpoint, "cpu")
        data = coder.encode(small, quality=50)
    assert data == fitted or switch == "default type"  # noise is drawn in it
    assert coder.encode(small, quality=50) == fitted  # nothing of it stays


def test_a_fit_keeps_no_descent_when_it_is_done(fitted_codec, small):
    fitted_codec.encode(small, quality=50)
    assert fitted_codec.fit._found is None
