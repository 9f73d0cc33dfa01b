"""``codec export``: a checkpoint that codes, a measured manifest row, and nothing left behind by a failure."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("lightning", reason="training needs the train extra")

from bitstream.errors import UsageError  # noqa: E402
from codec import Codec, release  # noqa: E402
from codec.cli.main import main  # noqa: E402
from codec.training import export  # noqa: E402
from codec.training.data import load_rgb  # noqa: E402
from codec.training.export import export_state  # noqa: E402
from models import program  # noqa: E402
from models.checkpoint import load_checkpoint  # noqa: E402
from models.manifest import tomllib  # noqa: E402
from models.registry import build  # noqa: E402
from models.runtime import LoadedModel  # noqa: E402
from models.tracing import trace  # noqa: E402


@pytest.fixture
def _quick(monkeypatch):
    """Calibrate on fewer crops."""
    monkeypatch.setattr(export, "CALIBRATION_BATCHES", 2)


@pytest.fixture(scope="module")
def exported(state, data, tmp_path_factory):
    """The folder of an exported checkpoint, and what the command printed."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "CALIBRATION_BATCHES", 2)
        arguments = ["export", state, "--data", data, "--out", out, "--name", "tiny"]
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return out, result.stdout


def test_export_writes_a_checkpoint_that_codes(exported, picture):
    out, _ = exported
    coder = Codec(out / "tiny.safetensors", "cpu")
    for size in ((1, 1), (65, 129)):
        pixels = picture(*size)
        small, large = (coder.encode(pixels, quality=quality) for quality in (0, 100))
        decoded = np.asarray(coder.decode(large)).astype(float)
        assert decoded.shape == pixels.shape
        assert np.abs(decoded - pixels).mean() < 40
        assert len(small) < len(large)


def test_export_stores_what_the_transforms_compute(exported):
    checkpoint = load_checkpoint(exported[0] / "tiny.safetensors")
    assert checkpoint.transforms == program.pack(trace(build(checkpoint.model, checkpoint.config)))


def test_export_writes_the_manifest_row_that_it_prints(exported):
    out, printed = exported
    assert sorted(path.name for path in out.iterdir()) == ["manifest.toml", "tiny.safetensors"]
    row = tomllib.loads((out / "manifest.toml").read_text())["tiny"]
    assert row == json.loads(printed)
    assert row["sha256"] == Codec(out / "tiny.safetensors", "cpu").model.checkpoint.sha256
    assert (row["file"], row["model"], row["steps"], row["max_level"]) == ("tiny.safetensors", "swift", 2, 256)
    assert row["recipe"]["config"]["levels"] == 2


def test_the_manifest_row_is_measured(exported):
    row = json.loads(exported[1])
    assert len(row["rd"]) == 2
    assert row["rd"][0]["bpp"] < row["rd"][1]["bpp"]
    assert row["rd"][0]["lmbda"] < row["rd"][1]["lmbda"]
    assert row["parameters"] == sum(p.numel() for p in build("swift", row["recipe"]["config"]).parameters())
    macs = row["kmac_per_pixel"]
    assert macs["encode"] == pytest.approx(sum(macs[k] for k in ("g_a", "h_a", "h_s", "context", "parameters")), abs=0.05)
    assert macs["decode"] == pytest.approx(sum(macs[k] for k in ("g_s", "h_s", "context", "parameters")), abs=0.05)
    assert all(0 < layer["bound"] < 1 for layer in row["exact_products"].values())
    assert abs(row["quantisation_cost_percent"]) < 30


def test_macs_are_those_of_the_layers():
    config = {"C": 16, "D": 32, "M": 64, "N": 8, "blocks_8": 0, "blocks_16": 0, "hyper": 8, "features": 64, "hidden": 8}
    macs = release.kmac_per_pixel(build("swift", config), side=128)
    lap, stem, down, head = 2 * 3 * 8 * 120 / 128, 192 * 16 / 64, 9 * 16 * 32 / 256, 32 * 64 / 256
    assert macs["g_a"] == pytest.approx((lap + stem + down + head) / 1000, abs=0.006)
    assert macs["parameters"] == pytest.approx((128 * 8 + 8 * 128) / 256 / 1000, abs=0.006)
    assert macs["context"] == pytest.approx(12 * 64 * 64 / 2 / 256 / 1000, abs=0.006)  # twelve taps, half of the positions


@pytest.mark.usefixtures("_quick")
def test_two_exports_give_the_same_bytes(state, data, exported, tmp_path):
    row = export_state(state, data, "tiny", tmp_path)
    assert row["sha256"] == json.loads(exported[1])["sha256"]


NO_STATES = {
    "text": b"no state",
    "empty": b"",
    "a list": [1, 2],
    "other keys": {"model": {}},
    "no recipe": {"recipe": {"krop": 1}},
}


@pytest.mark.parametrize("kind", NO_STATES)
def test_export_of_what_is_no_state_is_a_usage_error(tmp_path, data, kind):
    content, path = NO_STATES[kind], tmp_path / "a.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    arguments = ["export", str(path), "--data", str(data), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert "a.pt: not a training state of this codec" in result.stderr
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    "change", [lambda s: s.pop("ema"), lambda s: s["ema"].popitem(), lambda s: s["recipe"]["config"].clear()]
)
def test_export_of_half_a_state_is_a_usage_error(state, data, tmp_path, change):
    content = torch.load(state, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UsageError, match="not a training state"):
        export_state(tmp_path / "a.pt", data, "tiny", tmp_path / "out")


def fail(*_, **__):
    raise UsageError("on purpose")


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("stage", ["calibrate", "quantise"])
def test_a_failed_export_leaves_no_file(state, data, tmp_path, monkeypatch, stage):
    monkeypatch.setattr(release, stage, fail)
    with pytest.raises(UsageError, match="on purpose"):
        export_state(state, data, "tiny", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("stage", ["measure", "kmac_per_pixel", "exactness"])
def test_an_export_that_fails_late_leaves_no_partial(state, data, tmp_path, monkeypatch, stage):
    monkeypatch.setattr(release, stage, fail)
    with pytest.raises(UsageError, match="on purpose"):
        export_state(state, data, "tiny", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_quick")
def test_export_with_one_picture_is_a_usage_error(state, tmp_path, write_pictures):
    with pytest.raises(UsageError):
        export_state(state, write_pictures(tmp_path / "one", 1), "tiny", tmp_path / "out")


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("held_out", [True, False])
def test_a_run_that_held_nothing_out_says_so_in_the_manifest(state, data, tmp_path, held_out):
    content = torch.load(state, weights_only=True)
    torch.save(content | {"held_out": held_out}, tmp_path / "a.pt")
    row = export_state(tmp_path / "a.pt", data, "tiny", tmp_path / "out")
    assert ("measured_on" in row) == (not held_out)


@pytest.mark.usefixtures("_quick")
def test_export_keeps_the_other_rows_of_the_folder(state, data, tmp_path):
    for name in ("one", "two"):
        export_state(state, data, name, tmp_path)
    assert set(tomllib.loads((tmp_path / "manifest.toml").read_text())) == {"one", "two"}


def test_the_exported_weights_are_the_averaged_ones(state, exported):
    ema = torch.load(state, weights_only=True)["ema"]
    loaded = LoadedModel.load(exported[0] / "tiny.safetensors", torch.device("cpu"))
    tensors = loaded.checkpoint.tensors
    for name in ("g_a.stem.weight", "g_s.tail.bias", "h_a.2.weight"):
        assert torch.equal(tensors[name], ema[name].half())
    growth = (tensors["entropy.log2_std"] / 256 - ema["log2_std"]).exp2()[:, None, None]  # the constants of y are chosen anew
    torch.testing.assert_close(tensors["h_a.0.weight"].float(), ema["h_a.0.weight"] * growth, rtol=2e-3, atol=1e-6)
    assert torch.equal(tensors["entropy.log2_gain"], (ema["log2_gain"] * 256).round().int())


@pytest.mark.usefixtures("_quick")
def test_a_checkpoint_is_replaced_only_when_asked(state, data, tmp_path, call_codec):
    (tmp_path / "manifest.toml").write_text('[tiny]\nfile = "tiny.safetensors"\nsha256 = "00"\n')
    (tmp_path / "tiny.safetensors").write_bytes(b"mine")
    arguments = ("export", state, "--data", data, "--out", tmp_path, "--name", "tiny")
    assert "tiny is already the name of a checkpoint" in call_codec(*arguments, code=2).stderr
    assert (tmp_path / "tiny.safetensors").read_bytes() == b"mine"
    call_codec(*arguments, "-f")
    assert (tmp_path / "tiny.safetensors").read_bytes() != b"mine"


def test_figures_are_of_the_pictures_that_were_held_out(state, data, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(export, "release", lambda *_, **options: given.update(options) or {})
    export_state(state, data, "tiny", tmp_path)
    (picture,) = given["held_out"]
    assert torch.equal(picture[0], load_rgb(sorted(data.iterdir())[0])[:, :64, :64].float() / 255)
    assert len(list(given["calibration"])) == export.CALIBRATION_BATCHES


def test_a_name_and_a_place_are_found_without_being_given(state, data, tmp_path, monkeypatch):
    """The models' own names are the package's: the state's steps make another one."""
    monkeypatch.setenv("LIC_CHECKPOINTS", str(tmp_path / "own"))
    given = []
    monkeypatch.setattr(export, "release", lambda *arguments, **_: given.extend(arguments) or {})
    export_state(state, data)
    assert given[1:] == ["swift", "swift-2", tmp_path / "own"]
