"""What info, inspect, verify, doctor and evaluate say of overfit and its files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from bitstream.container import Container
from bitstream.header import Header
from codec import images
from codec.comparison.match import compare
from codec.doctor import _checkpoints
from codec.evaluation.contenders import ModelContender
from codec.heatmap import heatmap
from codec.inspection import inspect
from codec.targets import Target
from codec.verification import stages
from models.overfit.configs import GRIDS


@pytest.fixture
def path(tmp_path, wide_fitted):
    """The path of a file of 100 × 70 pixels, with alpha."""
    (tmp_path / "a.lic").write_bytes(wide_fitted)
    return tmp_path / "a.lic"


def test_info_lists_the_bytes_of_networks_and_grids(run, path, wide_fitted):
    facts = json.loads(run("info", path, "--json").stdout)
    chunks = [len(payload) for _, payload in Container.unpack(wide_fitted).chunks]
    assert [facts[f"{name}_bytes"] for name in ("networks", "grids", "alpha")] == chunks
    assert sum(value for name, value in facts.items() if name.endswith("_bytes")) == facts["bytes"] == len(wide_fitted)
    assert (facts["model"], facts["quality"], facts["tiles"]) == ("overfit", 25, 1)
    assert "z_bytes" not in facts
    assert "networks_bytes" in run("info", path).stdout


def test_parts_add_up_to_the_file(wide_fitted, overfit_checkpoint):
    found = inspect(wide_fitted, model=str(overfit_checkpoint))
    assert found.n_bytes == len(wide_fitted)
    parts = {part.name: part for part in found.parts}
    chunks = [len(payload) for _, payload in Container.unpack(wide_fitted).chunks]
    assert parts["networks"].n_bytes == chunks[0]
    assert sum(part.n_bytes for name, part in parts.items() if name.startswith("grids")) == chunks[1]
    assert parts["chunk ALPHA"].n_bytes == chunks[2]
    for part in found.parts:
        assert part.cost.payload_bytes <= part.n_bytes
        assert part.cost.payload_bytes == 0 or 8 * part.cost.payload_bytes >= part.cost.ideal_bits * 0.98 - 8


def test_bits_of_places_and_grids_are_those_of_the_grids(wide_fitted, overfit_checkpoint, fitted_codec):
    found = inspect(wide_fitted, model=str(overfit_checkpoint))
    of_grids = sum(part.cost.ideal_bits for part in found.parts if part.name.startswith("grids"))
    assert found.position_bits.sum() == pytest.approx(of_grids)
    assert found.channel_bits.sum() == pytest.approx(of_grids)
    assert found.channel_bits.shape == (GRIDS,)
    container = Container.unpack(wide_fitted)
    decoded, _ = fitted_codec.model.decode(container.tile(0).payloads, container.header.level, 70, 100, fitted_codec.engine)
    assert [float((grid == 0).mean()) for grid in decoded.grids] == found.channel_zeros.tolist()
    assert found.channel_zeros[0] == 1  # the finest does not pay here
    assert found.channel_bits[0] == 0


def test_inspect_prints_grids(run, path, tmp_path):
    printed = run("inspect", path, "--heatmap", tmp_path / "bits.png", "--overlay", "--no-legend").stdout
    for text in ("networks", "grids, scales 11-23", "grids, lengths of streams", "grid, by its cells", "64×64 pixels"):
        assert text in printed
    assert "channel of y" not in printed
    with Image.open(tmp_path / "bits.png") as image:
        assert image.size == (100, 70)
    facts = json.loads(run("inspect", path, "--json", "--channels", 7).stdout)
    assert sum(part["bytes"] for part in facts["parts"]) == facts["bytes"]
    assert sorted(channel["index"] for channel in facts["channels"]) == list(range(GRIDS))


def test_the_heatmap_is_light_where_the_bits_are(wide_fitted, overfit_checkpoint):
    found = inspect(wide_fitted, model=str(overfit_checkpoint))
    drawn = np.asarray(heatmap(found, legend=False).convert("L")).astype(float)
    most, least = (np.unravel_index(pick(), found.bpp_map.shape) for pick in (found.bpp_map.argmax, found.bpp_map.argmin))
    light, dark = (drawn[16 * y : 16 * y + 2, 16 * x : 16 * x + 2].mean() for y, x in (most, least))
    assert light > dark


def test_verify_passes_a_good_file(run, path):
    printed = run("verify", path).stdout
    assert "FAIL" not in printed
    names = [line.split()[1].rstrip(":") for line in printed.splitlines()]
    assert names == ["read", "header", "checksum", "limits", "chunks", "checkpoint", "symbols", "alpha", "pixels"]


def test_verify_says_which_stage_fails(fitted, overfit_checkpoint):
    container = Container.unpack(fitted)
    header, ((_, networks), (_, grids)) = container.header, container.chunks
    kinds = [kind for kind, _ in container.chunks]
    flipped = grids[: len(grids) // 2] + bytes([grids[len(grids) // 2] ^ 255]) + grids[len(grids) // 2 + 1 :]
    level = Header(header.width, header.height, False, header.model_id, 600, header.symbol_crc, fitted=True)
    damaged = {
        "checksum": fitted[:-1] + bytes([fitted[-1] ^ 1]),
        "chunks": Container(header, container.chunks[:1]).pack(),
        "checkpoint": Container(level, container.chunks).pack(),
        "symbols": Container(header, list(zip(kinds, (networks, flipped), strict=True))).pack(),
    }
    for name, data in damaged.items():
        found = list(stages("x", data, model=str(overfit_checkpoint)))
        assert [stage.passed for stage in found] == [True] * (len(found) - 1) + [False]
        assert found[-1].name == name


def test_verify_names_networks_that_cannot_be(fitted, overfit_checkpoint):
    container = Container.unpack(fitted)
    (_, networks), rest = container.chunks[0], container.chunks[1]
    forged = Container(container.header, [(container.chunks[0][0], bytes(len(networks))), rest]).pack()
    found = list(stages("x", forged, model=str(overfit_checkpoint)))
    assert (found[-1].name, found[-1].passed) == ("symbols", False)


def test_doctor_loads_the_checkpoint(installed_overfit):
    ((passed, line),) = _checkpoints()
    assert passed
    assert line.startswith("checkpoint overfit (")
    weights = installed_overfit / "overfit.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    ((passed, line),) = _checkpoints()
    assert not passed
    assert "SHA-256" in line


def test_the_evaluation_runs_it(installed_overfit, small):
    contender = ModelContender.of("overfit", "cpu")
    assert (contender.name, contender.device) == ("overfit", "cpu")
    assert contender.grid() == [0, 50, 100]
    model, picture = contender.coder.model, images.load(small)
    for number, quality in enumerate(contender.grid()):
        assert contender.facts(quality)["lmbda"] == pytest.approx(model.config.lmbda_of(256 * number), abs=1e-6)
    data = contender.encode(picture, 50)
    assert contender.decode(data).shape == small.shape
    made = contender.best_within(picture, len(data))
    assert 0 < made.quality < 100
    assert len(made.data) <= len(data)
    assert contender.best_within(picture, 10).quality == 0


def test_the_file_that_is_compared_is_the_one_that_met_the_size(installed_overfit, small, monkeypatch):
    """Another descent at the same quality ends in another file, which may be too large."""
    contender, picture = ModelContender.of("overfit", "cpu"), images.load(small)
    limit = len(contender.encode(picture, 50))
    found = []
    real = ModelContender.best_within
    monkeypatch.setattr(ModelContender, "best_within", lambda *args: found.append(real(*args)) or found[-1])
    (shown,) = compare("x", picture, Target(size=limit), [contender], lambda _: None).codecs
    assert shown.n_bytes == len(found[0].data) <= limit
    assert np.array_equal(shown.pixels, contender.decode(found[0].data))
