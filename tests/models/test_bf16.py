"""Transforms in bf16: sums and some layers stay float32, in programs as in training, in parts as in the whole."""

from __future__ import annotations

import pytest
import torch
from compressai.models.sensetime import ResidualBottleneckBlock
from torch import nn

from models.inference import MixedPrecision
from models.operations import ReadyBlock, Weights, function_of
from models.program import Block, Operation
from models.registry import build
from models.tracing import trace, trace_layers
from models.windows import Span

CPU = torch.device("cpu")


@pytest.mark.parametrize("kinds", [("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("bfloat16", "float32")])
def test_sums_are_float32_where_convolutions_are_not(kinds):
    """256 + 1.5 is 258 in bf16; the terms stay as they are."""
    first, second = (getattr(torch, kind) for kind in kinds)
    x, y = torch.full((1, 4, 2, 2), 256.0, dtype=first), torch.full((1, 4, 2, 2), 1.5, dtype=second)
    fast = Weights({}, CPU, torch.bfloat16)
    total = function_of(Operation("add", (0, 1)), fast, [False, False])(x, y)
    assert total.dtype == torch.float32
    assert set(total.flatten().tolist()) == {257.5}
    assert set(x.flatten().tolist()) == {256.0}
    assert set(y.flatten().tolist()) == {1.5}
    for owned in ([True, False], [False, True], [True, True]):
        first, second = x.clone(), y.clone()
        assert torch.equal(function_of(Operation("add", (0, 1)), fast, owned)(first, second), total)
        assert owned[0] or torch.equal(first, x)
        assert owned[1] or torch.equal(second, y)
    block = ReadyBlock(Block((Operation("relu", (0,)), Operation("add", (1, 0)))), fast, owned=True)
    assert block(y).dtype == torch.float32


@pytest.fixture(scope="module")
def analysis():
    """The g_a of a small swift whose residual blocks matter."""
    torch.manual_seed(0)
    layers = build("swift", {"C": 32, "D": 48, "M": 16, "N": 8, "blocks_8": 3, "blocks_16": 3, "levels": 2}).g_a.eval()
    for module in layers.modules():
        if isinstance(module, ResidualBottleneckBlock):
            nn.init.normal_(module.conv3.weight, std=0.2)
    return layers.requires_grad_(False).to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def analysis_in_bf16(analysis):
    """The same, as an encoder runs it in bf16."""
    tensors = {f"g_a.{name}": tensor for name, tensor in analysis.state_dict().items()}
    return MixedPrecision(trace_layers(analysis, "g_a"), tensors, CPU, torch.bfloat16)


def test_an_encoder_in_bf16_computes_what_training_does(analysis, analysis_in_bf16):
    x = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last)
    exact, found = analysis(x), analysis_in_bf16(x)
    with torch.autocast("cpu", torch.bfloat16):
        trained = analysis(x)
    assert 0 < (found - exact).norm() < 0.01 * exact.norm()
    assert (found - trained).norm() < 0.3 * (found - exact).norm()


def test_parts_in_bf16_equal_the_whole(analysis, analysis_in_bf16):
    x = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(1))
    whole = analysis_in_bf16(x)
    span = Span.around(192, 320, 512, analysis_in_bf16.margin)
    assert 0 < span.low < span.high < 512
    part = analysis_in_bf16(x[..., span.low : span.high, span.low : span.high], span, span)
    whole = whole[..., 12:20, 12:20]
    assert part.shape == whole.shape
    assert (part - whole).norm() < 0.3 * (analysis(x)[..., 12:20, 12:20] - whole).norm()


def test_float32_layers_of_a_transform_are_float32_in_its_program():
    network = build("swift", {"C": 8, "D": 8, "M": 8, "N": 8, "blocks_8": 1, "blocks_16": 1, "levels": 2})
    exact = {
        part: [step.name for block in blocks if block.float32 for step in block.operations]
        for part, blocks in trace(network).items()
    }
    assert exact["g_a"] == ["g_a.lap.module", "g_a.stem", "g_a.head.module"]
    assert exact["g_s"] == ["g_s.head.module", "g_s.up", "g_s.tail", "g_s.lap.module"]
