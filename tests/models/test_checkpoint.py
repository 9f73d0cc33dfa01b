"""Release checkpoints: known by SHA-256, the same bytes for the same content, every kind of damage refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pickle

import pytest
import safetensors.torch
import torch

from bitstream.errors import CheckpointError, CodecError
from bitstream.tables import constants_crc
from models.checkpoint import load_checkpoint, save_checkpoint
from models.registry import MODELS
from models.runtime import LoadedModel

CPU = torch.device("cpu")


def load(checkpoint):
    return LoadedModel(checkpoint, CPU)


def test_loads_by_path(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    assert checkpoint.name == "tiny-swift"
    assert checkpoint.sha256 == hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    assert checkpoint.model_id == bytes.fromhex(checkpoint.sha256)[:4]
    assert checkpoint.constants_crc == constants_crc()


def test_loads_by_name(installed):
    checkpoint = load_checkpoint("tiny")
    assert checkpoint.name == "tiny"
    assert checkpoint.model_id == load_checkpoint(installed).model_id


def test_save_gives_the_same_bytes_whatever_the_order(tmp_path, tiny_checkpoint):
    source = load_checkpoint(tiny_checkpoint)
    orders = (source.tensors, dict(reversed(source.tensors.items())))
    configs = (source.config, dict(reversed(source.config.items())))
    shas = []
    for i, (tensors, config) in enumerate(zip(orders, configs, strict=True)):
        path = tmp_path / f"{i}.safetensors"
        shas.append(
            save_checkpoint(path, model=source.model, config=config, tensors=tensors, constants_crc=source.constants_crc)
        )
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shas[-1]
    assert shas[0] == shas[1] == source.sha256


def test_save_accepts_views(tmp_path):
    wide = torch.arange(12).reshape(3, 4)
    save_checkpoint(tmp_path / "a.safetensors", model="swift", config={}, tensors={"t": wide.T}, constants_crc=1)
    assert torch.equal(load_checkpoint(tmp_path / "a.safetensors").tensors["t"], wide.T)


@pytest.mark.parametrize("position", [0, 100, 50_000, -1])
def test_one_flipped_bit_is_found_by_the_manifests_sha(installed, position):
    data = bytearray(installed.read_bytes())
    data[position] ^= 1
    installed.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256 .* expected .*: reinstall"):
        load_checkpoint("tiny")
    with pytest.raises(CheckpointError, match="SHA-256 .* expected .*"):
        load_checkpoint(installed)  # a path: by the manifest beside it


def test_a_missing_file_is_an_error(installed):
    installed.unlink()
    with pytest.raises(CheckpointError, match=r"tiny is not installed: fetch tiny.safetensors .*codec models --install"):
        load_checkpoint("tiny")
    with pytest.raises(CheckpointError, match=r"cannot be read \(No such file"):
        load_checkpoint(installed)


def test_an_unknown_name_lists_the_known_ones(installed):
    with pytest.raises(CheckpointError, match="no checkpoint is named 'nobody'; known: tiny; or give"):
        load_checkpoint("nobody")


def safetensors_bytes(header):
    return safetensors.torch.save({"t": torch.zeros(1)}, {"header": header})


HOSTILE = {
    "empty": b"",
    "text": b"these are no weights",
    "short": b"\x10\0\0\0\0\0\0\0{}",
    "huge header": b"\xff" * 8 + b"{}",
    "no metadata": safetensors.torch.save({"t": torch.zeros(1)}),
    "other metadata": safetensors.torch.save({"t": torch.zeros(1)}, {"format": "pt"}),
    "metadata is no JSON": safetensors_bytes("{"),
    "metadata is a list": safetensors_bytes("[1]"),
    "metadata lacks keys": safetensors_bytes('{"format": "1"}'),
    "pickle": pickle.dumps({"weights": [1.0]}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_release_checkpoint_is_refused(tmp_path, kind):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(CheckpointError, match="is not a release checkpoint of this codec"):
        load_checkpoint(path)


def test_deeply_nested_json_is_refused(tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000)
    with pytest.raises(CheckpointError, match="is not a release checkpoint of this codec"):
        load_checkpoint(path)


class Trap:
    """Unpickling this would call ``pytest.fail``."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_pickles_are_never_executed(tmp_path, suffix):
    path = tmp_path / f"trap{suffix}"
    torch.save({"state_dict": Trap()}, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_another_format_is_refused(tmp_path):
    header = {"format": "2", "model": "swift", "config": {}, "constants_crc": 0}
    (tmp_path / "new.safetensors").write_bytes(safetensors_bytes(json.dumps(header)))
    with pytest.raises(CheckpointError, match="has format 2, expected 1: update"):
        load_checkpoint(tmp_path / "new.safetensors")


def test_other_constant_tables_are_refused(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    with pytest.raises(CheckpointError, match="constant tables have CRC .* the checkpoint expects"):
        load(dataclasses.replace(checkpoint, constants_crc=checkpoint.constants_crc ^ 1))


@pytest.mark.parametrize(
    "name", ["g_a.stem.weight", "g_s.tail.bias", "g_s.lap.module.weight", "h_a.0.weight", "entropy.log2_std"]
)
def test_a_missing_tensor_is_refused(tiny_checkpoint, name):
    checkpoint = load_checkpoint(tiny_checkpoint)
    tensors = {key: value for key, value in checkpoint.tensors.items() if key != name}
    assert len(tensors) == len(checkpoint.tensors) - 1
    with pytest.raises(CheckpointError, match=f"tensor .*{name.removeprefix('entropy.')}.* is missing"):
        load(dataclasses.replace(checkpoint, tensors=tensors))


@pytest.mark.parametrize("name", ["g_a.stem.weight", "g_s.tail.bias", "entropy.hyper_1.weight", "entropy.log2_gain"])
def test_a_tensor_of_another_shape_is_refused(tiny_checkpoint, name):
    checkpoint = load_checkpoint(tiny_checkpoint)
    tensors = checkpoint.tensors | {name: checkpoint.tensors[name][:-1].clone()}
    with pytest.raises(CheckpointError):
        load(dataclasses.replace(checkpoint, tensors=tensors))


@pytest.mark.parametrize("name", ["log2_gain", "log2_gain_z", "log2_act_z", "hyper_1.act_max"])
def test_a_tensor_without_its_dimensions_is_refused(tiny_checkpoint, name):
    checkpoint = load_checkpoint(tiny_checkpoint)
    tensor = checkpoint.tensors[f"entropy.{name}"].reshape(-1)
    tensors = checkpoint.tensors | {f"entropy.{name}": tensor if len(tensor) > 1 else tensor[:0]}
    with pytest.raises(CheckpointError):
        load(dataclasses.replace(checkpoint, tensors=tensors))


@pytest.mark.parametrize(
    ("name", "value"), [("hyper_1.hi", 256), ("hyper_2.lo", -1), ("context.hi", 2**40), ("parameters_1.hi", 300)]
)
def test_an_inner_layer_beyond_8_bits_is_refused(tiny_checkpoint, name, value):
    checkpoint = load_checkpoint(tiny_checkpoint)
    bound = checkpoint.tensors[f"entropy.{name}"]
    tensors = checkpoint.tensors | {f"entropy.{name}": torch.full_like(bound, value)}
    with pytest.raises(CheckpointError):
        load(dataclasses.replace(checkpoint, tensors=tensors))


def entropy_tensors(checkpoint, layer, change):
    """Return a checkpoint whose entropy layer has other tensors: all that have a row or an entry for each output."""
    changed = {
        name: change(tensor)
        for name, tensor in checkpoint.tensors.items()
        if name.removeprefix(f"entropy.{layer}.") in ("weight", "bias", "multiplier", "lo", "hi", "level_bias")
    }
    assert len(changed) >= 5
    return dataclasses.replace(checkpoint, tensors=checkpoint.tensors | changed)


@pytest.mark.parametrize("name", ["slope", "act_max"])
@pytest.mark.parametrize("value", [math.inf, math.nan, 255.0])
def test_a_number_of_a_layer_that_is_no_integer_is_refused(tiny_checkpoint, name, value):
    checkpoint = load_checkpoint(tiny_checkpoint)
    tensors = checkpoint.tensors | {f"entropy.hyper_1.{name}": torch.tensor([value])}
    with pytest.raises(CheckpointError, match=f"hyper_1.{name} is torch.float32 .*, expected integers"):
        load(dataclasses.replace(checkpoint, tensors=tensors))


def test_outputs_that_no_shuffle_takes_are_refused(tiny_checkpoint):
    """Of hyper_1: one more, which a division would forget."""
    longer = entropy_tensors(load_checkpoint(tiny_checkpoint), "hyper_1", lambda t: torch.cat([t, t[..., -1:]], -1))
    with pytest.raises(CheckpointError, match=r"hyper_1 gives \d+ numbers, expected a multiple of 4: damaged"):
        load(longer)


@pytest.mark.parametrize("layer", ["hyper_1", "context", "parameters_1"])
def test_a_layer_that_is_too_wide_is_refused(tiny_checkpoint, monkeypatch, layer):
    checkpoint = load_checkpoint(tiny_checkpoint)
    outputs = checkpoint.tensors[f"entropy.{layer}.weight"].shape[1]
    monkeypatch.setattr("models.entropy.WIDTH_MAX", 16 * outputs - 1)
    wide = entropy_tensors(checkpoint, layer, lambda t: torch.cat([t] * 16, -1))
    with pytest.raises(CheckpointError, match=f"{layer} gives {16 * outputs} numbers, at most {16 * outputs - 1}: too wide"):
        load(wide)


def test_channels_of_z_that_the_config_does_not_name_are_refused(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    n = checkpoint.config["N"]
    changed = {name: checkpoint.tensors[f"entropy.{name}"] for name in ("log2_gain_z", "z_cumulative", "hyper_1.weight")}
    changed["log2_gain_z"] = changed["log2_gain_z"][:, :-1].clone()
    changed["z_cumulative"] = changed["z_cumulative"][:-1].clone()
    changed["hyper_1.weight"] = changed["hyper_1.weight"][: 9 * (n - 1)].clone()
    tensors = checkpoint.tensors | {f"entropy.{name}": tensor for name, tensor in changed.items()}
    tensors |= {name: tensor[:-1].clone() for name, tensor in tensors.items() if name == "entropy.z_offset"}
    with pytest.raises(CheckpointError, match=rf"gains of z are \(\d+, {n - 1}\), expected \(\d+, {n}\): damaged"):
        load(dataclasses.replace(checkpoint, tensors=tensors))


@pytest.mark.parametrize("kind", MODELS)
def test_the_default_device_of_the_caller_does_not_matter_to_any_model(golden, kind):
    with torch.device("meta"):
        load(load_checkpoint(golden / f"tiny-{kind}.safetensors"))


def test_the_default_device_of_the_caller_does_not_matter(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    with torch.device("meta"):
        model = load(checkpoint)
    assert model.entropy.z_offset.device.type == "cpu"
    assert all(layer.weight.device.type == "cpu" for layers in model.entropy._of_cells.values() for layer in layers.values())


@pytest.mark.parametrize("config", [{"nonsense": 1}, {"C": "24"}, {"C": -1}])
def test_a_config_that_is_none_is_refused(tiny_checkpoint, config):
    checkpoint = load_checkpoint(tiny_checkpoint)
    with pytest.raises(CodecError):
        load(dataclasses.replace(checkpoint, config=checkpoint.config | config))


def test_weights_may_be_stored_in_half_precision(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    assert checkpoint.tensors["g_a.stem.weight"].dtype == torch.float16
    x = torch.rand(1, 3, 64, 64)
    y = load(checkpoint).g_a(x)
    assert y.dtype == torch.float32
    assert torch.isfinite(y).all()
