"""Targets with overfit: what is met and how nearly, what is an error, and how far the work is said to be."""

from __future__ import annotations

import pytest

import codec
from bitstream.errors import TargetError
from codec import images
from codec.metrics import psnr_db
from codec.overfit.encoder import FittedEncoder
from codec.overfit.fitting import PictureFit
from codec.targets import PSNR_TOLERANCE, SIZE_TOLERANCE, Target
from models.overfit.choice import Choice

# So short descents are far from smooth: a symbol more or less in 400 bytes is beyond the tolerance.
COARSE = 0.04
COARSE_DB = 0.7


@pytest.fixture(scope="module")
def attempts(fitted_codec, small):
    """Return attempts(level): what one descent at level 1 gives at other levels."""
    import torch

    encoder = FittedEncoder(fitted_codec.model, fitted_codec.engine, images.load(small), Target(psnr=20))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        descent = fitted_codec.model.fit(torch.from_numpy(small).permute(2, 0, 1), 256, 1)
        descent.run(12)
    return lambda level: encoder.code(descent, level)


def test_files_of_other_levels_rise_in_bytes(attempts):
    sizes = [len(attempts(level).data) for level in range(0, 513, 128)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * sizes[0]


def test_files_of_other_levels_decode_to_the_psnr_that_is_claimed(attempts, fitted_codec, small):
    for level in (100, 256, 400):
        found = attempts(level)
        assert codec.info(found.data).level == level
        assert psnr_db(small, fitted_codec.decode(found.data, output="numpy")) == pytest.approx(found.psnr_db, abs=1e-6)


@pytest.mark.parametrize("options", [{"size": 450}, {"bpp": 1.6}])
def test_sizes_are_met_from_below(fitted_codec, small, options):
    limit = options.get("size", 1.6 * small[:, :, 0].size / 8)
    n_bytes = len(fitted_codec.encode(small, **options))
    assert limit * (1 - SIZE_TOLERANCE - COARSE) <= n_bytes <= limit


def test_a_psnr_is_met_from_above(fitted_codec, fitted, small):
    wanted = psnr_db(small, fitted_codec.decode(fitted, output="numpy")) - 0.8
    data = fitted_codec.encode(small, psnr=wanted)
    assert wanted <= psnr_db(small, fitted_codec.decode(data, output="numpy")) <= wanted + PSNR_TOLERANCE + COARSE_DB


def test_a_limit_lowers_the_quality_only_where_it_must(fitted_codec, fitted, small):
    assert len(fitted_codec.encode(small, quality=100, max_size=len(fitted))) <= len(fitted)
    assert codec.info(fitted_codec.encode(small[:20, :20], quality=50, max_size=5000)).level == 256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 20}, r"smallest file of this picture has \d+ bytes, at most 20 are asked for: allow more"),
        ({"bpp": 0.0001}, "at most 0 are asked for"),
        ({"psnr": 60.0}, r"the best file of this picture has a PSNR of \d\d\.\d\d dB, 60.0 dB are asked for: ask for less"),
    ],
)
def test_what_no_level_meets_is_an_error(fitted_codec, small, options, message):
    with pytest.raises(TargetError, match=message):
        fitted_codec.encode(small[:20, :20], **options)


def test_a_picture_that_comes_back_exactly_meets_any_psnr(monkeypatch, fitted_codec, small):
    monkeypatch.setattr("codec.overfit.encoder.psnr_db", lambda *_: float("inf"))
    data = fitted_codec.encode(small[:1, :1], psnr=90)
    assert codec.info(data).level == 0


def test_what_is_far_off_is_an_error_before_the_long_descent(monkeypatch, fitted_codec, small):
    def descend(*_):
        raise AssertionError("the long descent has begun")

    monkeypatch.setattr(PictureFit, "_descend", descend)
    with pytest.raises(TargetError):
        fitted_codec.encode(small[:20, :20], size=9)
    with pytest.raises(TargetError):
        fitted_codec.encode(small[:20, :20], psnr=60.0)


@pytest.mark.parametrize("options", [{"quality": 30}, {"size": 450}])
def test_progress_rises_to_one(monkeypatch, fitted_codec, small, options):
    monkeypatch.setattr("codec.overfit.progress.REPORT_SECONDS", 0)
    shares = []
    fitted_codec.encode(small[:40, :40], progress=shares.append, **options)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(shares) > 12
    state = fitted_codec.fit.state
    assert state.bpp > 0
    assert 5 < state.psnr_db < 60


@pytest.mark.parametrize("options", [{"quality": 30}, {"size": 450}])
def test_progress_goes_on_in_the_choice_of_symbols(monkeypatch, fitted_codec, small, options):
    monkeypatch.setattr("codec.overfit.progress.REPORT_SECONDS", 0)
    monkeypatch.setattr("models.overfit.fit.VISITS_PER_SET", 1)
    monkeypatch.setattr("codec.overfit.steering.NEAR_ENOUGH", -1)
    shares, inside, run = [], [], Choice.run

    def watched(self, sets, report, done=0):
        begin = len(shares)
        run(self, sets, report, done)
        inside.append(shares[begin:])

    monkeypatch.setattr(Choice, "run", watched)
    fitted_codec.encode(small[:40, :40], progress=shares.append, **options)
    assert shares == sorted(shares)
    assert len(inside) == 1 if "quality" in options else len(inside) > 1
    for part in inside:
        assert len(set(part)) in (4, 5)  # a region, its grids
        assert all(0 < share <= 1 for share in part)
