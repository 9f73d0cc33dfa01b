"""What g_s sees of a level: its own gains and bias, the same in training, in a checkpoint, and in coding."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import codec
from bitstream.engines import default_engine
from bitstream.errors import CheckpointError, UsageError
from codec.metrics import psnr_db
from codec.release import release
from codec.training.start import released_weights, starting_weights
from models.checkpoint import load_checkpoint, save_checkpoint
from models.latents import INVERSE_GAIN, InverseGain
from models.loading import load_network
from models.refine import Refiner
from models.registry import build
from models.runtime import LoadedModel
from models.thumbnail import Thumbnail, fit_thumbnail

VARIANT = "swift, inverse gain"
CHANNELS, LEVELS = 3, 4


@pytest.fixture(scope="module")
def released(stirred, crops, tmp_path_factory):
    """A network whose tables matter, and the path of its release checkpoint."""
    folder = tmp_path_factory.mktemp("released")
    net = stirred(VARIANT)
    picture = [crops(900, 1, 128)]
    release(net, "swift", "own", folder, calibration=picture * net.cfg.levels, held_out=picture, facts={})
    return net, folder / "own.safetensors"


@pytest.mark.parametrize("level", [0, 100, 256, 700, 768])
def test_a_checkpoint_gives_g_s_what_training_gave_it(released, level):
    net, path = released
    loaded = LoadedModel.load(path, torch.device("cpu"))
    fixed = torch.randint(-2000, 2000, (2, 3, net.cfg.M), generator=torch.Generator().manual_seed(level))
    wanted = net.synthesis_input(fixed.permute(2, 0, 1)[None] / 256, torch.tensor([level / 256])).detach()
    torch.testing.assert_close(loaded.latents(fixed, level), wanted, rtol=5e-3, atol=1e-3)  # gains are in 1/256 octave
    plain = loaded.entropy.float_latents(fixed, level)
    assert (plain - wanted).abs().max() > 0.05 * wanted.abs().max()


def test_a_release_gives_the_tables_back(released):
    net, path = released
    source, *_ = released_weights(path)
    assert torch.equal(source["log2_gain_s"], net.log2_gain_s)
    std = (source["log2_std"].exp2(), net.log2_std.exp2())
    torch.testing.assert_close(source["level_bias_s"] * std[0], net.level_bias_s * std[1])


def test_a_file_decodes_to_what_the_network_makes_of_it(released, picture):
    net, path = released
    array = picture(64, 128)
    data = codec.encode(array, quality=60, model=str(path))
    x = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        x_hat = net(x, torch.tensor([0.6 * (net.cfg.levels - 1)]))["x_hat"]
    wanted = (x_hat[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    decoded = np.asarray(codec.decode(data, model=str(path)))
    assert psnr_db(decoded, wanted) > psnr_db(array, wanted) + 6  # another rounding of g_a, integers in the entropy networks
    assert np.abs(decoded.astype(int) - wanted).mean() < 4


def test_tables_of_zeros_change_nothing(fresh):
    with_tables, without = fresh(VARIANT), fresh(VARIANT, inverse_gain=False)
    without.load_state_dict(with_tables.state_dict(), strict=False)
    level = torch.tensor([0.7, 1.0, 2.9, 3.0])
    y_hat = torch.randn(4, with_tables.cfg.M, 4, 4)
    assert torch.equal(with_tables.synthesis_input(y_hat, level), without.synthesis_input(y_hat, level))
    assert without.log2_gain_s is None


def test_a_level_between_two_is_linear_between_them():
    log2_gain = torch.arange(LEVELS * CHANNELS).reshape(LEVELS, CHANNELS) / 4
    tables = dict(zip(INVERSE_GAIN, (log2_gain, torch.ones(LEVELS, CHANNELS) * torch.arange(LEVELS)[:, None]), strict=True))
    inverse = InverseGain(tables, LEVELS, torch.tensor([0, 256, 512]))
    for level, low, share in ((0, 0, 0.0), (64, 0, 0.25), (256, 1, 0.0), (767, 2, 255 / 256), (768, 3, 0.0)):
        gain = torch.exp2(log2_gain[low] + 0.75 * share)
        bias = (low + share) * torch.tensor([1.0, 2.0, 4.0])
        out = inverse(torch.full((1, CHANNELS, 2, 2), 3.0), level)
        torch.testing.assert_close(out[0, :, 1, 0], 3 * gain + bias)


def test_one_level_is_enough():
    tables = {name: torch.ones(1, CHANNELS) for name in INVERSE_GAIN}
    out = InverseGain(tables, 1, torch.zeros(CHANNELS, dtype=torch.long))(torch.ones(1, CHANNELS, 1, 1), 0)
    assert torch.equal(out, torch.full_like(out, 3.0))


@pytest.mark.parametrize("name", INVERSE_GAIN)
@pytest.mark.parametrize("damage", ["missing", "shape", "type", "nan", "large"])
def test_a_damaged_table_is_said_as_such(released, tmp_path, name, damage):
    _, path = released
    checkpoint = load_checkpoint(path)
    tensors = copy.deepcopy(dict(checkpoint.tensors))
    if damage == "missing":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = tensors[name][1:].contiguous()
    elif damage == "type":
        tensors[name] = tensors[name].int()
    else:
        tensors[name][1, 2] = math.nan if damage == "nan" else 1e9
    save_checkpoint(
        tmp_path / "damaged.safetensors", model=checkpoint.model, config=checkpoint.config, tensors=tensors,
        constants_crc=checkpoint.constants_crc, transforms=checkpoint.transforms,
    )  # fmt: skip
    for load in (lambda path: LoadedModel.load(path, torch.device("cpu")), released_weights):
        with pytest.raises(CheckpointError, match=rf"(?s){name}.*export it again"):
            load(tmp_path / "damaged.safetensors")


def test_a_refined_picture_is_judged_by_what_g_s_sees(released, crops):
    _, path = released
    loaded = LoadedModel.load(path, torch.device("cpu"))
    network = load_network(loaded.checkpoint)
    refiner = Refiner(loaded.checkpoint, network, loaded.entropy.y_table, torch.device("cpu"), autocast=False)
    x = crops(900, 1, 128)
    seen = []
    network.g_s.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    y, z = loaded.analyse(x)
    refiner.refine(x, y, z, 512, 1, lambda _: None)
    coded = loaded.code(y, z, 512, default_engine())
    torch.testing.assert_close(seen[0], loaded.latents(coded.y_hat, 512), rtol=2e-2, atol=2e-2 * float(seen[0].abs().max()))


def test_a_start_that_knows_inverse_gains_wants_a_recipe_that_does(released):
    net, path = released
    config = dataclasses.asdict(net.cfg)
    taken, _ = starting_weights(path, build("swift", config))
    assert {"g_s.tail.weight", *INVERSE_GAIN} <= taken.keys()
    with pytest.raises(UsageError, match="set inverse_gain = true"):
        starting_weights(path, build("swift", config | {"inverse_gain": False}))


def test_the_thumbnail_is_fitted_to_what_decoding_reads_it_from(stirred, crops):
    net = copy.deepcopy(stirred(VARIANT))
    with torch.no_grad():
        net.level_bias_s.add_(2.0)  # as far from y_hat / gain as it must not be
    batches = [crops(seed, 4, 128) for seed in range(8)]
    readout = Thumbnail(fit_thumbnail(net, batches), net.cfg.M)
    x, level = batches[0][:1], torch.zeros(1)
    with torch.no_grad():
        y_hat, _ = net.coded(x, level)
        error = (readout(net.synthesis_input(y_hat, level)) - F.avg_pool2d(x, 8)).square().mean()
    assert error < F.avg_pool2d(x, 8).var() / 2
