"""Small layers: an orthogonal lapped filter that leaves borders alone, float32 islands and sums."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from compressai.layers import subpel_conv3x3
from compressai.models.sensetime import ResidualBottleneckBlock
from torch import nn

from models.layers import Float32, LappedFilter, LevelBias, Transform, at_levels, dct_matrix, lapped_filter, weight_and_bias


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_filter_and_dct_are_orthogonal(n):
    eye = torch.eye(n, dtype=torch.float64)
    for matrix in (lapped_filter(n), dct_matrix(n)):
        torch.testing.assert_close(matrix @ matrix.T, eye, atol=1e-12, rtol=0)


def test_filter_is_not_the_identity_but_passes_symmetric_signals():
    matrix = lapped_filter(8)
    assert (matrix - torch.eye(8)).abs().max() > 0.05
    half = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    symmetric = torch.cat([half, half.flip(0)])
    torch.testing.assert_close(matrix @ symmetric, symmetric)


@pytest.mark.parametrize("size", [(8, 8), (8, 24), (16, 16), (64, 40)])
def test_inverse_restores_exactly(size):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    y = LappedFilter()(x)
    torch.testing.assert_close(LappedFilter(inverse=True)(y), x, atol=1e-6, rtol=0)
    torch.testing.assert_close(y.square().sum(), x.square().sum())  # energy is kept


def test_filter_leaves_the_border_untouched():
    x = torch.rand(1, 1, 32, 40, generator=torch.Generator().manual_seed(1))
    y = LappedFilter()(x).detach()
    for rows in (slice(0, 4), slice(28, 32)):
        for columns in (slice(0, 4), slice(36, 40)):
            assert torch.equal(y[..., rows, columns], x[..., rows, columns])  # corners: neither direction
    flat = x[..., :1, :].expand(-1, -1, 8, -1)  # one block high: only rows are filtered
    filtered = LappedFilter()(flat).detach()
    assert torch.equal(filtered[..., :4], flat[..., :4])
    assert torch.equal(filtered[..., -4:], flat[..., -4:])
    assert not torch.equal(filtered[..., 4:-4], flat[..., 4:-4])


def test_one_block_is_unchanged():
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(LappedFilter()(x), x)


def test_filter_treats_both_directions_alike():
    x = torch.rand(1, 1, 24, 32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(LappedFilter()(x.transpose(2, 3)), LappedFilter()(x).transpose(2, 3))


def test_float32_island_stays_float32_under_autocast():
    linear = nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.ones(1, 4)).dtype == torch.bfloat16
        assert Float32(linear)(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.fixture
def blocks():
    """A transform of one layer and eight residual blocks of random weights."""
    torch.manual_seed(0)
    layers = OrderedDict(first=nn.Conv2d(3, 16, 1)) | {f"block_{i}": ResidualBottleneckBlock(16, 16) for i in range(8)}
    return Transform(OrderedDict(layers)).eval().requires_grad_(False)


def test_sums_of_blocks_stay_float32_under_autocast(blocks, monkeypatch):
    monkeypatch.setattr(Transform, "float32_layers", ("first",))
    seen = []
    for layer in blocks:
        layer.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0].dtype, out.dtype)))
    blocks[1].conv1.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    x = torch.rand(1, 3, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        out = blocks(x)
    assert seen.pop(1) == torch.bfloat16  # what is inside of a block
    assert set(seen) == {(torch.float32, torch.float32)}
    exact, rounded = blocks(x), x
    with torch.autocast("cpu", torch.bfloat16):
        for layer in blocks:
            rounded = layer(rounded)
    assert (out - exact).norm() < 0.5 * (rounded.float() - exact).norm()


def test_only_float32_layers_leave_autocast(blocks, monkeypatch):
    x = torch.rand(1, 3, 12, 12)
    first = nn.Sequential(blocks[0])
    for exact in ((), ("first",)):
        monkeypatch.setattr(Transform, "float32_layers", exact)
        with torch.autocast("cpu", torch.bfloat16):
            found = Transform(OrderedDict(first=blocks[0]))(x)
        assert torch.equal(found, first(x)) == bool(exact)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda conv: conv,
        Float32,
        lambda conv: LevelBias(Float32(conv), 2),
        lambda conv: nn.Sequential(conv, nn.PixelShuffle(1)),
    ],
)
def test_weight_and_bias_looks_inside(wrap):
    conv = nn.Conv2d(2, 3, 1)
    weight, bias = weight_and_bias(wrap(conv))
    assert weight is conv.weight
    assert bias is conv.bias


def test_weight_and_bias_of_subpel_conv():
    layer = subpel_conv3x3(2, 3, 2)
    assert weight_and_bias(layer)[0].shape == (12, 2, 3, 3)


def test_rows_of_a_table_are_interpolated_between_levels():
    table = torch.tensor([[0.0, 10.0], [1.0, 20.0], [4.0, 0.0]])
    got = at_levels(table, torch.tensor([0.0, 0.5, 1.0, 1.75, 2.0]))
    assert torch.equal(got, torch.tensor([[0.0, 10.0], [0.5, 15.0], [1.0, 20.0], [3.25, 5.0], [4.0, 0.0]]))
    assert torch.equal(at_levels(table[:1], torch.tensor([0.0])), table[:1])


def test_level_bias_adds_the_row_of_each_picture():
    conv = nn.Conv2d(2, 3, 1)
    layer = LevelBias(conv, 2)
    x = torch.rand(3, 2, 4, 4)
    level = torch.tensor([0.0, 0.25, 1.0])
    assert torch.equal(layer(x, level), conv(x))  # a fresh table is zero
    with torch.no_grad():
        layer.table.copy_(torch.tensor([[0.0, 0.0, 4.0], [1.0, 0.0, 0.0]]))
    added = torch.tensor([[0.0, 0.0, 4.0], [0.25, 0.0, 3.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(layer(x, level), conv(x) + added[:, :, None, None])


def test_level_bias_without_levels_is_the_layer():
    conv = nn.Conv2d(2, 3, 1)
    layer = LevelBias(conv, 0)
    x = torch.rand(1, 2, 4, 4)
    assert torch.equal(layer(x, torch.zeros(1)), conv(x))
    assert [name for name, _ in layer.named_parameters()] == ["layer.weight", "layer.bias"]
