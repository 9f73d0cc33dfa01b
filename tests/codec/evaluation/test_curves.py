"""Means and BD-rates: what is averaged, what is refused, and that known numbers come out.

published_bd.json: BD-rates against VTM of the curves in results/quoted_curves.json, computed elsewhere by piecewise cubics.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitstream.errors import UsageError
from codec.evaluation.curves import averages, bd_matrix, bd_rate_percent, quoted, values

ROOT = Path(__file__).resolve().parents[3]
QUOTED = ROOT / "results" / "quoted_curves.json"
PUBLISHED_BD = json.loads(Path(__file__).with_name("published_bd.json").read_text())


def row(codec="swift", image="a.png", quality=50.0, bpp=1.0, psnr=30.0, identity="x", **more):
    """A row with the fields that means are taken of."""
    own = {"codec": codec, "image": image, "crc": image, "quality": quality, "identity": identity, "settings": {}}
    sizes = {"width": 10, "height": 10, "bytes": round(bpp * 100), "bpp": bpp, "psnr_db": psnr, "ms_ssim_db": psnr / 2}
    return own | sizes | {"encode_s": 0.1, "decode_s": 0.2} | more


A, B = ("a.png", "a.png"), ("b.png", "b.png")


def test_means_are_over_all_pictures_at_equal_quality():
    rows = [row(bpp=1.0, psnr=30.0), row(image="b.png", bpp=2.0, psnr=34.0), row(quality=60.0)]
    (point,) = averages(rows, {A, B}, {})["swift"]
    assert (point["bpp"], point["psnr_db"], point["bytes"]) == (1.5, 32.0, 150)


def test_pictures_of_another_folder_are_left_out():
    assert averages([row(), row(image="b.png", bpp=9.0)], {A}, {})["swift"][0]["bpp"] == 1.0


def test_rows_of_two_checkpoints_do_not_mix():
    rows = [row(identity="old", quality=1.0), row(identity="new", quality=1.0, bpp=0.5), row(identity="new", quality=2.0)]
    assert [point["identity"] for point in averages(rows, {A}, {})["swift"]] == ["new", "new"]


def test_the_identity_of_this_run_wins_over_one_with_more_points():
    rows = [row(identity="old", quality=1.0), row(identity="old", quality=2.0), row(identity="new", quality=1.0)]
    assert [point["identity"] for point in averages(rows, {A}, {"swift": "new"})["swift"]] == ["new"]
    assert "swift" not in averages(rows, {A}, {"swift": "newer"})


def test_rows_of_other_settings_do_not_mix():
    rows = [row(settings={"speed": 4}), row(image="b.png", settings={"speed": 6})]
    assert averages(rows, {A, B}, {}) == {}


def test_a_measure_that_one_picture_lacks_has_no_mean():
    (point,) = averages([row(), row(image="b.png", ms_ssim_db=None)], {A, B}, {})["swift"]
    assert "ms_ssim_db" not in point
    assert point["psnr_db"] == 30.0


@pytest.mark.parametrize("name", [name for name in PUBLISHED_BD if "vs_vtm" in PUBLISHED_BD[name]])
def test_bd_rates_of_published_curves_are_the_published_ones(name):
    curves = quoted(QUOTED)
    assert bd_rate_percent(curves["VTM"], curves[name]) == pytest.approx(PUBLISHED_BD[name]["vs_vtm"], abs=0.5)


@pytest.mark.parametrize("name", [name for name in PUBLISHED_BD if "ms_vs_vtm" in PUBLISHED_BD[name]])
def test_bd_rates_by_ms_ssim_too(name):
    curves = quoted(QUOTED)
    value = bd_rate_percent(curves["VTM"], curves[name], "ms_ssim_db")
    assert value == pytest.approx(PUBLISHED_BD[name]["ms_vs_vtm"], abs=0.5)


def curve(factor=1.0, lift=0.0):
    """Five points of a straight line in log bpp."""
    return [{"bpp": factor * 2.0**i / 8, "psnr_db": 28.0 + 3 * i + lift} for i in range(5)]


def test_half_of_the_bits_is_minus_fifty_percent():
    assert bd_rate_percent(curve(), curve(0.5)) == pytest.approx(-50.0)
    assert bd_rate_percent(curve(0.5), curve()) == pytest.approx(100.0)


def test_too_few_points_or_overlap_have_no_bd_rate():
    assert bd_rate_percent(curve()[:3], curve()) is None
    assert bd_rate_percent(curve(), curve(lift=11.5)) is None
    assert bd_rate_percent(curve(), curve(lift=10.5)) is not None


def test_points_below_ones_of_fewer_bits_do_not_bend_a_curve():
    bent = [*curve()[:2], {"bpp": 0.3, "psnr_db": 25.0}, *curve()[2:]]
    assert values(bent, "psnr_db") == values(curve(), "psnr_db")


def test_the_matrix_leaves_the_diagonal_empty():
    matrix = bd_matrix({"a": curve(), "b": curve(0.5)}, {"a": curve(), "b": curve(0.5)}, "psnr_db")
    assert matrix["a"]["a"] is None
    assert matrix["b"]["a"] == -50.0


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"a": {"bpp": [1, 2], "psnr": [3]}}',
        '{"a": {"psnr": [3]}}',
        '{"a": 3}',
        '{"a": {"bpp": [0]}}',
        '{"a": {"bpp": [NaN]}}',
        '{"a": {"bpp": [1], "psnr": [Infinity]}}',
    ],
)
def test_files_that_hold_no_curves_are_refused(tmp_path, text):
    path = tmp_path / "quoted.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="not published curves"):
        quoted(path)
