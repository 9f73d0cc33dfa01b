"""The programs of a checkpoint: what the networks compute, bit for bit; read strictly; run without CompressAI."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compressai.layers import GDN, AttentionBlock
from compressai.models.sensetime import ResidualBottleneckBlock
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bitstream.errors import CheckpointError
from models import program
from models.checkpoint import load_checkpoint, save_checkpoint
from models.configs import SwiftConfig
from models.inference import MixedPrecision
from models.layers import Float32
from models.loading import MARGIN_MAX, config_of, load_network, programs_of
from models.operations import ReadyBlock, Weights, _blocked_gdn
from models.program import Block, Operation
from models.registry import MODELS, build, skeleton
from models.runtime import LoadedModel
from models.tracing import PARTS, trace, trace_layers
from models.windows import margins

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
KINDS = [*MODELS, "crossed"]


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, golden):
    """Each tiny checkpoint; they are older than programs."""
    return load_checkpoint(golden / f"tiny-{request.param}.safetensors")


@pytest.fixture(scope="module")
def programs(checkpoint):
    """Its programs, packed as a newer checkpoint has them."""
    assert checkpoint.transforms is None
    return program.pack(programs_of(checkpoint, config_of(checkpoint)))


@pytest.fixture
def swift(tiny_checkpoint):
    """The tiny checkpoint, with its programs as plain JSON that may be changed."""
    checkpoint = load_checkpoint(tiny_checkpoint)
    packed = program.pack(programs_of(checkpoint, config_of(checkpoint)))
    return dataclasses.replace(checkpoint, transforms=json.loads(json.dumps(packed)))


def module_path(layers, x, dtype, exact=()):
    """Run the layers of a network one by one: ``exact`` ones as they are, the others in a type; GDN with float32 constants."""
    x = x.contiguous(memory_format=torch.channels_last)
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Sequential):
            x = module_path(layer, x, dtype)
        elif isinstance(layer, Float32) or name in exact:
            x = copy.deepcopy(layer)(x.float())
        elif isinstance(layer, ResidualBottleneckBlock):
            x = x.float() + module_path(nn.Sequential(*list(layer.children())[:-1]), x, dtype)
        elif isinstance(layer, GDN):
            beta, gamma = layer.beta_reparam(layer.beta), layer.gamma_reparam(layer.gamma).T.contiguous()
            x = _blocked_gdn(x.to(dtype), gamma=gamma.to(dtype), beta=beta.to(dtype), inverse=layer.inverse, overwrite=False)
        else:
            takes = dtype if list(layer.parameters()) else x.dtype  # what has no weights moves or bends values as they are
            x = copy.deepcopy(layer).to(memory_format=torch.channels_last).to(dtype)(x.to(takes))
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_programs_compute_what_the_networks_do(checkpoint, dtype):
    """Bit for bit, but for forms that sum in another order: transposed convolutions to few channels, GDN inside of blocks."""
    network = load_network(checkpoint).eval().requires_grad_(False)
    loaded = LoadedModel(checkpoint, CPU, dtype=dtype, encode_dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    shapes = {"g_a": (3, 128, 192), "g_s": (loaded.config.M, 8, 12), "h_a": (loaded.config.M, 8, 12)}
    for part in PARTS if loaded.h_a is not None else PARTS[:2]:
        x = torch.rand(1, *shapes[part], generator=generator)
        before = x.clone()
        with torch.inference_mode():
            found = getattr(loaded, part)(x)
            names = {step.name for block in getattr(loaded, part).program if block.float32 for step in block.operations}
            exact = {name.split(".")[1] for name in names if name}
            expected = module_path(getattr(network, part), x, dtype, exact).float()
        assert torch.equal(x, before)  # the input is the caller's
        last = list(getattr(network, part))[-1]
        if isinstance(last, nn.ConvTranspose2d) or (checkpoint.model == "attention" and part != "h_a"):
            assert (found - expected).abs().max() < (0.04 if dtype is torch.bfloat16 else 1e-5) * expected.abs().max()
        else:
            assert torch.equal(found, expected)


def test_a_checkpoint_with_programs_codes_as_one_without(checkpoint, programs, tmp_path, tensor):
    path = tmp_path / "new.safetensors"
    facts = {key: getattr(checkpoint, key) for key in ("model", "config", "tensors", "constants_crc")}
    save_checkpoint(path, **facts, transforms=programs)
    new, old = LoadedModel(load_checkpoint(path), CPU), LoadedModel(checkpoint, CPU)
    assert (new.g_a.program, new.g_s.program) == (old.g_a.program, old.g_s.program)
    with torch.inference_mode():
        assert torch.equal(new.analyse(tensor(70, 90))[0], old.analyse(tensor(70, 90))[0])


def test_what_is_packed_is_read_again(checkpoint, programs):
    hyper = bool(config_of(checkpoint).layout().hyper)
    read = program.unpack(json.loads(json.dumps(programs)), hyper=hyper)
    assert program.pack(read) == programs
    assert read == programs_of(checkpoint, config_of(checkpoint))


@pytest.mark.parametrize("name", MODELS)
def test_networks_of_full_depth_have_programs_that_fit(name):
    network = build(name)
    program.check(trace(network), network.state_dict(), network.cfg.M, network.cfg.N)


def test_imported_variants_have_programs_that_fit(small_network):
    program.check(trace(small_network), small_network.state_dict(), small_network.cfg.M, small_network.cfg.N)


# --- values are overwritten only where nobody reads them any more


def run(block, x, owned=False):
    """Run operations without weights on x."""
    return ReadyBlock(block, Weights({}, CPU, torch.float32), owned=owned)(x)


@pytest.mark.parametrize("kind", ["relu", "sigmoid", "leaky_relu"])
@pytest.mark.parametrize("owned", [False, True])
def test_an_input_that_is_used_again_is_kept(kind, owned):
    x = torch.linspace(-2, 2, 16).reshape(1, 4, 2, 2)
    function = {"relu": torch.relu, "sigmoid": torch.sigmoid, "leaky_relu": lambda t: nn.functional.leaky_relu(t, 0.5)}[kind]
    block = Block(
        (Operation(kind, (0,), slope=0.5), Operation("mul", (1, 0)), Operation("add", (1, 2)), Operation("add", (3, 3)))
    )
    assert torch.equal(run(block, x.clone(), owned), 2 * (function(x) + function(x) * x))


def test_a_view_of_the_callers_input_is_not_overwritten():
    x = torch.full((1, 4, 1, 1), -1.0)
    before = x.clone()
    out = run(Block((Operation("pixel_shuffle", (0,), factor=2), Operation("relu", (1,)))), x)
    assert torch.equal(x, before)
    assert not out.any()


# --- the forms of a GPU, computed here


class OnGpu(Weights):
    """Weights that say they are on a GPU, and are not."""

    def exact(self, name):
        """Return a tensor of the CPU."""
        return self._tensors[name].float()


@pytest.mark.parametrize(
    "layer", [GDN(6), GDN(6, inverse=True), nn.ConvTranspose2d(6, 3, 5, stride=2, padding=2, output_padding=1)]
)
def test_both_forms_compute_the_layer(layer):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    (block,) = trace_layers(nn.Sequential(layer), "g_s")
    tensors = {f"g_s.0.{name}": tensor for name, tensor in layer.state_dict().items()}
    x = torch.randn(1, 6, 9, 7).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = layer(x)
        for weights in (OnGpu(tensors, torch.device("cuda"), torch.float32), Weights(tensors, CPU, torch.float32)):
            torch.testing.assert_close(ReadyBlock(block, weights, owned=False)(x), expected)


# --- what tracing has no word for


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 3, padding=1, groups=2),
        nn.Conv2d(2, 2, 3, padding=1, bias=False),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 2, (3, 1), padding=(1, 0)),
        nn.BatchNorm2d(2),
        nn.GELU(),
    ],
)
def test_a_layer_without_an_operation_is_an_error(layer):
    with pytest.raises(ValueError, match=r"^g_a\.0: no operation of a program stands for"):
        trace_layers(nn.Sequential(layer), "g_a")


def test_a_block_is_traced_with_the_names_of_its_tensors():
    (block,) = trace_layers(nn.Sequential(Float32(AttentionBlock(4))), "g_s")
    assert block.float32
    names = {operation.name for operation in block.operations if operation.name}
    assert "g_s.0.module.conv_b.2.conv.4" in names
    assert [operation.kind for operation in block.operations[-3:]] == ["sigmoid", "mul", "add"]
    assert block.operations[-1].inputs[1] == 0  # the shortcut


# --- hostile programs


def first(packed, kind, part="g_a"):
    """Return the first operation of a kind."""
    return next(op for block in packed[part] for op in block["ops"] if op["op"] == kind)


HOSTILE = {
    "no g_s": (lambda p: p.pop("g_s"), "transforms are .* expected"),
    "another part": (lambda p: p.update(h_s=p["g_s"]), "transforms are .* expected"),
    "blocks are none": (lambda p: p.update(g_a={}), "g_a is no list of 1"),
    "no blocks": (lambda p: p.update(g_a=[]), "g_a is no list of 1"),
    "very many blocks": (lambda p: p.update(g_a=p["g_a"] * 100), "g_a is no list of 1"),
    "a block is a list": (lambda p: p["g_a"].insert(0, []), "g_a, block 0 is not a block"),
    "float32 is 1": (lambda p: p["g_a"][1].update(float32=1), "g_a, block 1 is not a block"),
    "no operations": (lambda p: p["g_a"][1].update(ops=[]), "g_a, block 1 has no list of 1"),
    "very many operations": (lambda p: p["g_a"][3].update(ops=p["g_a"][3]["ops"] * 20), "block 3 has no list of 1"),
    "an unknown operation": (lambda p: p["g_a"][1]["ops"][0].update(op="eval"), "operation 1 is 'eval', not in conv2d"),
    "an operation without a name": (lambda p: p["g_a"][1]["ops"][0].update(op=None), "operation 1 is 'None', not in"),
    "an operation is a number": (lambda p: p["g_a"][1].update(ops=[3]), "operation 1 is 'None', not in"),
    "a key is missing": (lambda p: first(p, "conv2d").pop("stride"), "conv2d. has the keys"),
    "a key too many": (lambda p: first(p, "conv2d").update(groups=2), "conv2d. has the keys"),
    "it takes its own value": (lambda p: first(p, "relu").update({"in": [2]}), "relu. takes .* expected 1 of the values"),
    "it takes a later value": (lambda p: first(p, "conv2d").update({"in": [9]}), "takes .* expected 1 of the values"),
    "it takes a negative value": (lambda p: first(p, "relu").update({"in": [-1]}), "takes .* expected 1 of the values"),
    "it takes true": (lambda p: first(p, "relu").update({"in": [True]}), "takes .* expected 1 of the values"),
    "a sum of one": (lambda p: first(p, "add").update({"in": [5]}), "add. takes .* expected 2 of the values"),
    "a value is not used": (lambda p: first(p, "relu").update({"in": [0]}), "does not use its value 1"),
    "a name is a number": (lambda p: first(p, "conv2d").update(name=3), "has name '3'"),
    "a name is empty": (lambda p: first(p, "conv2d").update(name=""), "has name ''"),
    "a stride of 0": (lambda p: first(p, "conv2d").update(stride=0), "has stride '0'"),
    "a huge factor": (lambda p: first(p, "pixel_unshuffle").update(factor=2**40), "has factor"),
    "a factor of 1": (lambda p: first(p, "pixel_unshuffle").update(factor=1), "has factor '1'"),
    "padding is 1.0": (lambda p: first(p, "conv2d").update(padding=1.0), "has padding '1.0'"),
    "tensors of another part": (lambda p: first(p, "conv2d").update(name="g_s.tail"), "has tensors of another part"),
    "a tensor of two operations": (
        lambda p: p["g_a"][3]["ops"][2].update(name=first(p, "conv2d")["name"]),
        "block 3, operation 3 .conv2d. has the name of another operation",
    ),
    "integers as weights": (lambda p: first(p, "conv2d").update(name="g_a.integers"), "is torch.int8, expected floats"),
    "a tensor is missing": (lambda p: first(p, "conv2d").update(name="g_a.none"), "tensor g_a.none.weight is missing"),
    "another kernel": (lambda p: first(p, "conv2d").update(kernel=3, padding=1), "does not fit 192 channels"),
    "no padding": (lambda p: p["g_a"][3]["ops"][2].update(padding=0), "does not fit"),
    "a stride that sides cannot have": (lambda p: first(p, "conv2d").update(stride=4), "does not fit"),
    "another factor": (lambda p: first(p, "pixel_unshuffle").update(factor=4), "does not fit"),
    "a factor that sides cannot have": (lambda p: first(p, "pixel_unshuffle").update(factor=3), "does not fit"),
    "a sum of other sizes": (lambda p: p["g_a"][3]["ops"][-1].update({"in": [5, 1]}), "add. does not fit"),
    "another output": (lambda p: p["h_a"].pop(), "h_a makes 16 channels, sides multiples of 2; expected 16, 1"),
    "lap among others": (lambda p: p["g_a"][0]["ops"].append({"op": "relu", "in": [1]}), "lap. is not alone in its block"),
    "lap where sides are odd": (lambda p: p["g_s"].insert(0, p["g_s"][-1]), "does not fit"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_program_that_is_damaged_is_refused(swift, case):
    damage, message = HOSTILE[case]
    damage(swift.transforms)
    integers = {"g_a.integers.weight": torch.zeros(24, 192, 1, 1, dtype=torch.int8)}
    swift = dataclasses.replace(swift, tensors=swift.tensors | integers)
    with pytest.raises(CheckpointError, match=message):
        LoadedModel(swift, CPU)


@pytest.mark.parametrize("slope", [float("nan"), float("inf"), -0.5, 2.0, 0, True, "0.01"])
def test_a_slope_that_cannot_be_is_refused(slope):
    block = {"float32": False, "ops": [{"op": "leaky_relu", "in": [0], "slope": slope}]}
    with pytest.raises(CheckpointError, match="leaky_relu. has slope"):
        program.unpack({"g_a": [block], "g_s": [block]}, hyper=False)


@pytest.mark.parametrize("transforms", ["[]", "3", '"g_a"'])
def test_transforms_that_are_no_object_are_refused(tiny_checkpoint, tmp_path, transforms):
    old = load_checkpoint(tiny_checkpoint)
    facts = {key: getattr(old, key) for key in ("model", "config", "tensors", "constants_crc")}
    save_checkpoint(tmp_path / "a.safetensors", **facts, transforms=json.loads(transforms))
    with pytest.raises(CheckpointError, match="its transforms are"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_a_transposed_convolution_doubles_sides_exactly():
    weight = {"g_s.0.weight": torch.zeros(4, 3, 5, 5), "g_s.0.bias": torch.zeros(3)}
    deconv = Operation("conv_transpose2d", (0,), "g_s.0", kernel=5, stride=2, padding=2, output_padding=1)
    up = Block((Operation("pixel_shuffle", (0,), factor=8),))
    program.check({"g_s": (up, Block((deconv,)))}, weight, 256, 8)
    with pytest.raises(CheckpointError, match="does not fit"):
        program.check({"g_s": (up, Block((dataclasses.replace(deconv, output_padding=0),)))}, weight, 256, 8)


def test_no_channels_are_refused():
    weights = {"g_a.0.weight": torch.zeros(0, 3, 1, 1), "g_a.0.bias": torch.zeros(0)}
    weights |= {"g_a.1.weight": torch.zeros(8, 0, 1, 1), "g_a.1.bias": torch.zeros(8)}
    blocks = tuple(Block((Operation("conv2d", (0,), f"g_a.{i}", kernel=1, stride=1, padding=0),)) for i in (0, 1))
    with pytest.raises(CheckpointError, match="does not fit"):
        program.check({"g_a": blocks}, weights, 8, 8)


def test_growing_beyond_the_picture_is_refused():
    up = Block((Operation("pixel_shuffle", (0,), factor=16),))
    program.check({"g_s": (up,)}, {}, 3 * 16**2, 8)
    with pytest.raises(CheckpointError, match="block 1, operation 1 .* does not fit 12 channels, sides multiples of 16"):
        program.check({"g_s": (up, Block((Operation("pixel_shuffle", (0,), factor=2),)))}, {}, 12 * 16**2, 8)


# --- coding imports neither CompressAI nor what it brings along

UNUSED = ("compressai", "torch_geometric", "torchvision", "torch._dynamo", "scipy", "pytorch_msssim", "rich")


def test_coding_in_a_fresh_process_imports_no_compressai(swift, tmp_path, picture):
    """Encoding first, then decoding in a process of its own, by the command line."""
    path = tmp_path / "swift.safetensors"
    facts = {key: getattr(swift, key) for key in ("model", "config", "tensors", "constants_crc", "transforms")}
    save_checkpoint(path, **facts)
    Image.fromarray(picture(20, 37)).save(tmp_path / "in.png")
    code = (
        "import sys; from codec.cli.main import main; main(sys.argv[1:], standalone_mode=False); "
        f"print(*[name for name in {UNUSED!r} if name in sys.modules], end='')"
    )
    for command in (["encode", "in.png", "a.lic"], ["decode", "a.lic", "out.png"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *command, "--model", str(path), "--device", "cpu"],
            capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=100,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert Image.open(tmp_path / "out.png").size == (37, 20)


def test_an_unused_config_does_not_matter_to_a_program(swift):
    """The widths of the layers are those of the tensors: config has what the entropy path needs."""
    wide = dataclasses.replace(swift, config=swift.config | {"C": SwiftConfig.C})
    assert isinstance(LoadedModel(wide, CPU).g_a, MixedPrecision)


# --- what a program may cost

UP = Block((Operation("pixel_shuffle", (0,), factor=16),))


def convolution(name, old, new):
    """Return the weight and bias of a 1×1 convolution of g_s."""
    return {f"{name}.weight": torch.zeros(new, old, 1, 1), f"{name}.bias": torch.zeros(new)}


@pytest.mark.parametrize("channels", [250, 251, 4096])
def test_numbers_at_once_are_bounded(channels):
    """Between two values of 3 channels, at full resolution, a wide one: in the second step all three are there."""
    pair = Block((Operation("conv2d", (0,), "g_s.wide"), Operation("conv2d", (1,), "g_s.back")))
    tensors = convolution("g_s.wide", 3, channels) | convolution("g_s.back", channels, 3)
    if channels == 250:
        program.check({"g_s": (UP, pair)}, tensors, 768, 8)
        return
    with pytest.raises(CheckpointError, match=f"g_s, block 1 holds {256 * (channels + 6)} numbers at once for 16×16 pixels"):
        program.check({"g_s": (UP, pair)}, tensors, 768, 8)


def test_products_are_bounded_where_there_are_no_weights():
    """Each number that a step makes counts as 16 products: 64 · 80 · 16 for a pixel and block."""
    block = Block(tuple(Operation("sigmoid", (i,)) for i in range(64)))
    last = Block((Operation("conv2d", (0,), "g_s.last"),))
    tensors = convolution("g_s.last", 80, 3)
    program.check({"g_s": (UP, *[block] * 51, last)}, tensors, 80 * 256, 8)
    with pytest.raises(
        CheckpointError, match="g_s, block 52 .* a pixel takes 4261120 products; expected at most 65536 and 4194304"
    ):
        program.check({"g_s": (UP, *[block] * 52, last)}, tensors, 80 * 256, 8)


def test_products_are_those_of_the_network(monkeypatch):
    network = build("factorized", {"N": 16, "M": 24})
    with FlopCounterMode(display=False) as counter:
        network.g_s(torch.zeros(1, 24, 4, 4))
    found = []
    monkeypatch.setattr(program, "costs", lambda *args, costs=program.costs: found.append(costs(*args)[1]) or (0, 0))
    program.check({"g_s": trace(network)["g_s"]}, network.state_dict(), network.cfg.M, network.cfg.N)
    assert sum(found) == counter.get_total_flops() / 2 / 64**2


@pytest.mark.parametrize(
    ("name", "config"), [("joint", {"N": 192, "M": 320}), ("attention", {"N": 192, "M": 192}), ("swift", {"N": 320, "M": 640})]
)
def test_the_widest_networks_fit(name, config):
    network = skeleton(name, config)
    programs = trace(network)
    program.check(programs, network.state_dict(), network.cfg.M, network.cfg.N)
    assert max(margins(programs["g_a"])[0], 16 * margins(programs["g_s"])[0]) <= MARGIN_MAX


def test_what_a_part_sees_is_bounded(swift, monkeypatch):
    seen = margins(program.unpack(swift.transforms, hyper=True)["g_s"])[0] * 16
    monkeypatch.setattr("models.loading.MARGIN_MAX", seen - 1)
    monkeypatch.setitem(swift.transforms, "g_a", swift.transforms["g_a"][:1])
    monkeypatch.setattr("models.program.check", lambda *args: None)  # g_a alone sees more
    with pytest.raises(CheckpointError, match=f"transform g_s sees {seen} pixels around a part, expected at most {seen - 1}"):
        programs_of(swift, config_of(swift))


# --- checkpoints without programs, whose config asks for more than their tensors hold


@pytest.mark.parametrize("name", MODELS)
def test_a_skeleton_is_the_network_without_memory(name):
    state = torch.get_rng_state()
    bare, network = skeleton(name), build(name)
    facts = [{key: (value.shape, value.dtype) for key, value in each.state_dict().items()} for each in (bare, network)]
    assert facts[0] == facts[1]
    there = [key for key, value in bare.state_dict().items() if not value.is_meta and value.numel() > 1]
    assert all(key.startswith("entropy_bottleneck.") for key in there)  # some numbers for each channel
    assert trace(bare) == trace(network)
    torch.set_rng_state(state)
    skeleton(name)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("load", [lambda c: LoadedModel(c, CPU), load_network], ids=["coding", "refining"])
@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("swift", {"C": 1024, "D": 1024}, r"tensor g_a\.stem\.weight is \(24, 192, 1, 1\), expected \(1024, 192, 1, 1\)"),
        ("swift", {"blocks_8": 100, "blocks_16": 100}, r"tensor g_a\.\S+ is missing"),
        ("swift", {"blocks_16": 1024}, "blocks_16 is 1024, expected at most 100"),
        ("attention", {"M": 1024, "N": 1024}, r"tensor g_a\.\S+ is .* expected \(1024, 3, "),
    ],
)
def test_a_config_larger_than_its_tensors_is_refused_before_it_is_built(golden, monkeypatch, load, name, config, message):
    old = load_checkpoint(golden / f"tiny-{name}.safetensors")
    monkeypatch.setattr("models.loading.build", lambda *_: pytest.fail("it was built"))
    with pytest.raises(CheckpointError, match=message):
        load(dataclasses.replace(old, config=old.config | config))


def test_entropy_networks_of_a_config_are_bounded(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr("models.loading.build", lambda *_: pytest.fail("it was built"))
    monkeypatch.setattr("models.loading.OTHERS_MAX", 1000)
    with pytest.raises(CheckpointError, match="entropy networks of .* elements, expected at most 1000"):
        load_network(load_checkpoint(tiny_checkpoint))
