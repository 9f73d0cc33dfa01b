"""Parts of a transform equal those of the whole, for every model, and see no further than they say."""

from __future__ import annotations

import pytest
import torch

from bitstream.grid import Rect, cut
from models.inference import MixedPrecision
from models.program import Block, Operation
from models.registry import MODELS, build
from models.runtime import STRIDE_Y, LoadedModel
from models.tracing import trace_layers
from models.windows import Span, margins

CPU = torch.device("cpu")
TINY = [*MODELS, "crossed"]
SIZE = (448, 640)  # of pictures: larger than every margin


@pytest.fixture(scope="module", params=TINY)
def model(request, golden):
    """A model with its frozen tiny checkpoint, in float32."""
    path = golden / f"tiny-{request.param}.safetensors"
    if not path.exists():
        pytest.skip("no tiny checkpoint of its own")
    from models.checkpoint import load_checkpoint

    return LoadedModel(load_checkpoint(path), CPU, encode_dtype=torch.float32)


@pytest.fixture(scope="module")
def latents(model):
    """Random latents of a picture."""
    m = model.config.M
    return torch.randn(1, m, SIZE[0] // 16, SIZE[1] // 16, generator=torch.Generator().manual_seed(0))


def transform_of(network, part):
    """Return g_a or g_s of a float network, ready."""
    return MixedPrecision(trace_layers(getattr(network, part), part), network.state_dict(), CPU, torch.float32)


def close(a, b):
    """Return whether two tensors are equal but for the order of float sums."""
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("side", [64, 128, 256])
def test_tiles_of_analysis_equal_the_whole(model, tensor, side):
    x = tensor(SIZE[0] - 7, SIZE[1] - 33)
    whole, _ = model.analyse(x)
    for tile in cut(Rect(0, 0, x.shape[-1], x.shape[-2]), side):
        part, _ = model.analyse(x, tile)
        top, left = tile.top // STRIDE_Y, tile.left // STRIDE_Y
        assert close(part, whole[..., top : top + part.shape[-2], left : left + part.shape[-1]])


@pytest.mark.parametrize("positions", [1, 3, 100])
def test_analysis_around_a_tile_equals_the_whole(model, tensor, positions):
    x = tensor(*SIZE)
    whole, _ = model.analyse(x)
    around = model.analyse_around(x, Rect(128, 256, 64, 64), positions)
    top, left = max(16 - positions, 0), max(8 - positions, 0)
    assert close(around, whole[..., top : top + around.shape[-2], left : left + around.shape[-1]])
    assert around.shape[-1] == min(8 + 4 + positions, SIZE[1] // 16) - left


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (5, 6), (3, 17), (11, 28), (0, 28)])
def test_parts_of_synthesis_equal_the_whole(model, latents, start, stop):
    whole = model.synthesise(latents)
    rows, columns = (Span.around(start, stop, size, model.g_s.margin) for size in latents.shape[-2:])
    part = model.synthesise(latents[..., rows.low : rows.high, columns.low : columns.high], rows, columns)
    assert close(part, whole[..., 16 * start : 16 * stop, 16 * start : 16 * stop])


def test_bytes_are_analysed_as_floats_are(model, tensor):
    x = tensor(70, 90)
    assert torch.equal(model.analyse((x * 255).round().byte())[0], model.analyse((x * 255).round() / 255)[0])


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("part", ["g_a", "g_s"])
def test_networks_of_full_depth_see_no_further_than_their_margin(name, part):
    torch.manual_seed(0)
    network = build(name, {})
    layers = getattr(network, part)
    for parameter in layers.parameters():
        if not parameter.any():  # a layer that starts at zero would see nothing
            torch.nn.init.normal_(parameter, std=0.1)
    transform = transform_of(network, part)
    grid, channels = (1, network.cfg.M) if part == "g_s" else (16, 3)
    size = 2 * transform.margin + 4 * grid
    x = torch.randn(1, channels, size, 2 * grid)
    other = x.clone()
    other[:, :, : 2 * grid] = torch.randn(1, channels, 2 * grid, 2 * grid)
    rows = [Span.around(transform.margin + 2 * grid, size, size, transform.margin), Span.whole(2 * grid)]
    window = slice(rows[0].low, rows[0].high)
    part_of_x = transform(x[:, :, window], *rows)
    assert rows[0].low == 2 * grid
    assert close(part_of_x, transform(x)[:, :, -part_of_x.shape[2] :])
    assert close(transform(other)[:, :, -part_of_x.shape[2] :], part_of_x)


@pytest.mark.parametrize(
    ("name", "expected"), [("swift", (144, 8)), ("factorized", (32, 2)), ("joint", (32, 2)), ("attention", (128, 11))]
)
def test_margins_of_the_models(name, expected):
    """Pixels of g_a and positions of g_s: wider would be slower."""
    network = build(name, {})
    assert tuple(transform_of(network, part).margin for part in ("g_a", "g_s")) == expected


def test_margins_end_with_zero(model):
    for part in (model.g_a, model.g_s):
        assert margins(part.program)[-1] == 0
        assert part.margin > 0


def conv(inputs, kernel, stride=1):
    return Operation("conv2d", inputs, "g_a.0", kernel, stride, kernel // 2)


def test_the_margin_is_that_of_the_longest_path():
    short = Block((conv((0,), 1), conv((0,), 3), Operation("add", (1, 2))))
    long = Block((conv((0,), 1), conv((0,), 5), conv((2,), 3), Operation("add", (3, 1))))
    assert margins((short,)) == [1, 0]
    assert margins((long, short)) == [4, 1, 0]
    assert margins((long, Block((conv((0,), 3, stride=2),)))) == [4, 2, 0]  # windows begin at even positions; 1 is seen


def test_a_block_has_one_scale():
    up = Block(
        (Operation("pixel_shuffle", (0,), factor=2), Operation("pixel_shuffle", (0,), factor=2), Operation("add", (1, 2)))
    )
    assert up.scale == (2, 1)
    assert Block((conv((0,), 3, stride=2), Operation("pixel_shuffle", (1,), factor=4))).scale == (2, 1)
    assert Block((Operation("pixel_unshuffle", (0,), factor=8),)).scale == (1, 8)
