"""What g_s sees of a level: its own gains and bias, the same in training, in a checkpoint, and in coding."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import codec
from bitstream.errors import CheckpointError
from codec.metrics import psnr_db
from codec.release import release
from codec.training.start import released_weights
from models.checkpoint import load_checkpoint, save_checkpoint
from models.latents import INVERSE_GAIN, InverseGain
from models.runtime import LoadedModel

VARIANT = "swift, crossed"
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
    wanted = net.latents(fixed.permute(2, 0, 1)[None] / 256, torch.tensor([level / 256])).detach()
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


def test_tables_of_zeros_change_nothing(fresh, crops):
    with_tables, without = fresh(VARIANT), fresh(VARIANT, inverse_gain=False)
    without.load_state_dict(with_tables.state_dict(), strict=False)
    level = torch.tensor([0.7, 1.0, 2.9, 3.0])
    y_hat = torch.randn(4, with_tables.cfg.M, 4, 4)
    assert torch.equal(with_tables.latents(y_hat, level), without.latents(y_hat, level))
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
@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "large"])
def test_a_damaged_table_is_said_as_such(released, tmp_path, name, damage):
    _, path = released
    checkpoint = load_checkpoint(path)
    tensors = copy.deepcopy(dict(checkpoint.tensors))
    if damage == "missing":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = tensors[name][1:].contiguous()
    else:
        tensors[name][1, 2] = math.nan if damage == "nan" else 1e9
    save_checkpoint(
        tmp_path / "damaged.safetensors", model=checkpoint.model, config=checkpoint.config, tensors=tensors,
        constants_crc=checkpoint.constants_crc, transforms=checkpoint.transforms,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=rf"{name} is .*export it again"):
        LoadedModel.load(tmp_path / "damaged.safetensors", torch.device("cpu"))
