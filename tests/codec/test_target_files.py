"""What real files reach where a size, bits per pixel or a PSNR was asked for, in Python and on the command line."""

from __future__ import annotations

import itertools
import re
from functools import partial

import numpy as np
import pytest

from codec import TargetError, UsageError, encode_file, info
from codec.metrics import bpp, psnr_db
from codec.targets import PSNR_TOLERANCE, SIZE_TOLERANCE

TOP = 768
MOST_ATTEMPTS = 16  # two at the ends, six by secants, and the bisection of what may be left


@pytest.fixture
def pixels(picture):
    """A picture of 80 × 64."""
    return picture(64, 80)


@pytest.fixture
def analyses(tiny_codec, monkeypatch):
    """The list that grows by one with each run of g_a."""
    calls, plain = [], tiny_codec.model.analyse
    monkeypatch.setattr(tiny_codec.model, "analyse", lambda x, *tile: calls.append(x.shape) or plain(x, *tile))
    return calls


def at(tiny_codec, pixels, level):
    """Return the file of a level in 1/256."""
    data = tiny_codec.encode(pixels, quality=100 * level / tiny_codec.max_level)
    assert info(data).level == level
    return data


@pytest.mark.parametrize("option", ["size", "bpp", "max_size"])
@pytest.mark.parametrize("level", [150, 640])
def test_a_file_is_the_best_that_is_not_larger(tiny_codec, pixels, analyses, option, level):
    limit = len(at(tiny_codec, pixels, level)) + 1
    analyses.clear()
    aim = {"bpp": 8 * limit / (64 * 80)} if option == "bpp" else {option: limit}
    data = tiny_codec.encode(pixels, **aim, **({"quality": 100} if option == "max_size" else {}))
    assert len(analyses) == 1
    assert data == at(tiny_codec, pixels, info(data).level)  # as if the quality had been known
    better = [at(tiny_codec, pixels, info(data).level + step) for step in (1, 4, 16)]
    assert len(data) <= limit
    assert len(data) >= (1 - SIZE_TOLERANCE) * limit or all(len(other) > limit for other in better)


@pytest.mark.parametrize("gray", [False, True])
def test_a_file_is_the_smallest_that_reaches_the_psnr(tiny_codec, pixels, analyses, gray):
    source = pixels[:, :, 0] if gray else pixels

    def decoded_psnr(data):
        decoded = np.asarray(tiny_codec.decode(data))
        return psnr_db(*(x[:, :, None] if gray else x for x in (source, decoded)))

    wanted = decoded_psnr(at(tiny_codec, source, 500)) - 0.001
    analyses.clear()
    data = tiny_codec.encode(source, psnr=wanted)
    assert len(analyses) == 1
    reached = decoded_psnr(data)
    assert reached >= wanted
    lower = [at(tiny_codec, source, info(data).level - step) for step in (4, 16)]
    assert reached <= wanted + PSNR_TOLERANCE or all(decoded_psnr(other) < wanted for other in lower)


def test_numbers_of_numpy_ask_for_the_same_files(tiny_codec, pixels):
    for options in ({"quality": 30}, {"size": 900}, {"psnr": 28}, {"max_size": 700}):
        scalars = {name: np.int64(value) for name, value in options.items()}
        assert tiny_codec.encode(pixels, **scalars) == tiny_codec.encode(pixels, **options)
    assert tiny_codec.encode(pixels, bpp=np.float32(1.5)) == tiny_codec.encode(pixels, bpp=1.5)


def test_timings_add_up_over_a_search(tiny_codec, pixels, monkeypatch):
    """One tick per look at the clock: each stage takes one, each time it runs."""
    ticks, runs = itertools.count(), []
    plain = tiny_codec.model.code
    monkeypatch.setattr(tiny_codec.model, "code", lambda *args: runs.append(args[2]) or plain(*args))
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    tiny_codec.encode(pixels, psnr=28)
    assert len(runs) > 1
    assert tiny_codec.timings == {"read": 1, "g_a": 1, "h_a": 1, "entropy": len(runs), "g_s": len(runs)}
    tiny_codec.encode(pixels, quality=50)
    assert tiny_codec.timings == {"read": 1, "g_a": 1, "h_a": 1, "entropy": 1}


def test_max_size_leaves_a_smaller_file_alone(tiny_codec, pixels):
    data = tiny_codec.encode(pixels, quality=30)
    assert tiny_codec.encode(pixels, quality=30, max_size=len(data)) == data


def test_what_no_file_can_be_is_a_target_error(tiny_codec, pixels):
    with pytest.raises(TargetError, match="smallest file"):
        tiny_codec.encode(pixels, size=30)
    with pytest.raises(TargetError, match="smallest file"):
        tiny_codec.encode(pixels, bpp=0.001)
    with pytest.raises(TargetError, match="best file"):
        tiny_codec.encode(pixels, psnr=80)


@pytest.mark.parametrize("size", [(1, 1), (8, 8)])
def test_a_black_picture_reaches_the_psnr(tiny_codec, size):
    black = np.zeros((*size, 3), np.uint8)
    best = psnr_db(black, np.asarray(tiny_codec.decode(tiny_codec.encode(black, quality=100))))
    for wanted in (20, 40, min(best, 90)):
        data = tiny_codec.encode(black, psnr=wanted)
        assert psnr_db(black, np.asarray(tiny_codec.decode(data))) >= wanted


@pytest.mark.parametrize("option", ["size", "psnr"])
def test_a_picture_of_one_colour_takes_few_attempts(tiny_codec, monkeypatch, option):
    """Bytes and PSNR hardly change with the level: the search must not creep."""
    grey = np.full((64, 64, 3), 90, np.uint8)
    best = tiny_codec.encode(grey, quality=100)
    calls, plain = [], tiny_codec.model.code
    monkeypatch.setattr(tiny_codec.model, "code", lambda *args: calls.append(args[2]) or plain(*args))
    wanted = len(best) if option == "size" else psnr_db(grey, np.asarray(tiny_codec.decode(best)))
    assert info(tiny_codec.encode(grey, **{option: wanted})).level > 0
    assert len(calls) <= MOST_ATTEMPTS


def test_contradictions_are_refused_before_the_picture_is_read(tiny_codec):
    with pytest.raises(UsageError, match="size and psnr are given"):
        tiny_codec.encode("no such picture", size=100, psnr=30)


def test_encode_file_takes_targets(installed, tmp_path, png):
    n_bytes = encode_file(png(64, 80), tmp_path / "a.lic", bpp=0.9)
    assert n_bytes == (tmp_path / "a.lic").stat().st_size <= 0.9 * 64 * 80 / 8


# --- the command line


@pytest.fixture
def run(installed, tmp_path, png, call_codec):
    """Return run(*options, code=0): the result of encoding an 80 × 64 picture to a.lic by the command line."""
    return partial(call_codec, "encode", png(64, 80), tmp_path / "a.lic")


@pytest.mark.parametrize(
    "options", [("--size", "0.7KB"), ("--size", "700"), ("--bpp", "1.1"), ("-q", "100", "--max-size", "700B")]
)
def test_a_limit_is_kept_and_what_came_out_is_printed(run, tmp_path, tiny_codec, pixels, options):
    line = run(*options).stdout
    path = tmp_path / "a.lic"
    data = path.read_bytes()
    psnr = psnr_db(pixels, np.asarray(tiny_codec.decode(data)))
    quality = 100 * info(data).level / TOP
    assert line == f"{path}: {len(data)} bytes, {bpp(len(data), 80, 64):.4f} bpp, PSNR {psnr:.2f} dB, quality {quality:.1f}\n"
    assert 640 < len(data) <= 704


def test_a_psnr_is_reached_and_printed(run, tmp_path, tiny_codec, pixels):
    line = run("--psnr", "28").stdout
    psnr = psnr_db(pixels, np.asarray(tiny_codec.decode((tmp_path / "a.lic").read_bytes())))
    assert 28 <= psnr < 28.2
    assert f"PSNR {psnr:.2f} dB" in line


def test_a_quality_prints_nothing(run):
    assert run("-q", "20").output == ""


@pytest.mark.parametrize("options", [("--size", "30"), ("--bpp", "0.01"), ("--psnr", "80"), ("--max-size", "30B")])
def test_an_unreachable_target_exits_with_1_and_leaves_nothing(run, tmp_path, options):
    result = run(*options, code=1)
    assert re.fullmatch(r"codec: the (smallest|best) file of this picture has .*\n", result.stderr)
    assert result.stdout == ""
    assert not (tmp_path / "a.lic").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-q", "50", "--size", "40KB"), "quality and size are given"),
        (("--bpp", "1", "--psnr", "30"), "bpp and psnr are given"),
        (("--size", "1KB", "--max-size", "2KB"), "max_size and size are both"),
        (("--size", "40 apples"), "size is '40 apples', expected bytes"),
        (("--max-size", "0"), "max_size is 0, expected a number above 0 and below 1e+15"),
        (("--bpp", "-1"), "bpp is -1"),
        (("--psnr", "nan"), "psnr is nan"),
    ],
)
def test_a_contradiction_exits_with_2_and_leaves_nothing(run, tmp_path, options, message):
    result = run(*options, code=2)
    assert result.stderr.startswith("codec: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "a.lic").exists()
