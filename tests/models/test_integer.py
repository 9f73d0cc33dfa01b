"""Integer layers: exact against int64 arithmetic, with proven parts; taps and shuffles against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bitstream.errors import CheckpointError
from models import integer
from models.integer import (
    ACT_MAX,
    EXACT,
    REQUANT_BITS,
    SIGNED_MAX,
    SLOPE_ONE,
    IntegerLayer,
    Plane,
    exact_arithmetic,
    exact_parts,
    int8_is_exact,
    pixel_shuffle,
    rshift,
)
from models.layout import POINT, TAPS_3X3, TAPS_CAUSAL, TAPS_CHECKERBOARD
from models.quantise import LEAKY_SLOPE

ARITHMETICS = [
    pytest.param("int8", marks=pytest.mark.skipif(not int8_is_exact(), reason="this CPU saturates int8 products")),
    "float32",
    "float64",
]


def layer_of(weight, bias=None, multiplier=None, act_max=ACT_MAX, reach=2**40):
    """Return a layer whose outputs are requantised by 1 and all but not clamped, unless told."""
    count = weight.shape[1]
    bias = torch.zeros(count, dtype=torch.long) if bias is None else bias
    multiplier = torch.full((count,), 2**REQUANT_BITS) if multiplier is None else multiplier
    lo, hi = torch.full((count,), -reach), torch.full((count,), reach)
    return IntegerLayer(weight, bias, multiplier, lo, hi, act_max)


def by_definition(layer, a):
    """Return the layer's outputs by FORMAT.md section 7, step 3, in int64 arithmetic."""
    acc = a.long() @ layer.weight.long() + layer.bias
    below = rshift(layer.multiplier * layer.slope, 16)
    return rshift(acc * torch.where(acc < 0, below, layer.multiplier), REQUANT_BITS).clamp(layer.lo, layer.hi)


def random_weight(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, (rows, columns), generator=generator).to(torch.int8)


@pytest.mark.parametrize(("value", "bits", "expected"), [(5, 1, 3), (-5, 1, -2), (4, 3, 1), (3, 3, 0), (-4, 3, 0), (-5, 3, -1)])
def test_rshift_rounds_half_up(value, bits, expected):
    assert int(rshift(torch.tensor(value), bits)) == expected


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("act_max", [ACT_MAX, SIGNED_MAX])
@pytest.mark.parametrize("slope", [SLOPE_ONE, LEAKY_SLOPE, 0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (200, 4000, 33)])
def test_layer_equals_int64_arithmetic(shape, slope, act_max, arithmetic):
    rows, inner, outer = shape
    generator = torch.Generator().manual_seed(1)
    bias = torch.randint(-(2**31), 2**31, (outer,), generator=generator)
    multiplier = torch.randint(0, 2**25, (outer,), generator=generator)
    lo, hi = torch.full((outer,), -900), torch.full((outer,), 2**21)
    layer = IntegerLayer(random_weight(inner, outer), bias, multiplier, lo, hi, act_max, slope)
    lowest = 0 if act_max == ACT_MAX else -act_max
    a = torch.randint(lowest, act_max + 1, (rows, inner), generator=generator).to(torch.int16)
    assert torch.equal(layer(a, arithmetic), by_definition(layer, a))


@pytest.mark.parametrize("inner", [518, 519, 4000])  # 518 · 127 · 255 is the last product below 2^24
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_layer_is_exact_when_all_is_at_its_maximum(inner, sign, arithmetic):
    weight = torch.full((inner, 8), 127 * sign, dtype=torch.int8)
    layer = layer_of(weight)
    a = torch.full((16, inner), ACT_MAX, dtype=torch.int16)
    assert torch.equal(layer(a, arithmetic), by_definition(layer, a))
    assert int(layer(a, arithmetic)[0, 0]) == sign * inner * 127 * ACT_MAX
    assert len(layer.parts) == -(-inner // 518)  # as long as any product stays below 2^24


def test_one_float32_product_would_not_be_exact():
    a = torch.full((1, 4001), ACT_MAX)  # 4001 · 127 · 255 is odd and above 2^24: no float32
    weight = torch.full((4001, 1), 127, dtype=torch.int8)
    assert int((a.float() @ weight.float()).item()) != 4001 * 127 * ACT_MAX
    assert int(layer_of(weight)(a.to(torch.int16), "float32")) == 4001 * 127 * ACT_MAX


@pytest.mark.parametrize("act_max", [127, 255])
@pytest.mark.parametrize("shape", [(1, 1), (100, 3), (5000, 17)])
def test_parts_cover_the_rows_and_keep_the_bound(shape, act_max):
    weight = random_weight(*shape)
    parts = exact_parts(weight, act_max)
    assert torch.equal(torch.cat([torch.arange(shape[0])[part] for part in parts]), torch.arange(shape[0]))
    bounds = [int(weight[part].long().abs().sum(0).max()) * act_max for part in parts]
    assert max(bounds) < EXACT
    for part in parts[:-1]:  # and no part is cut early
        assert int(weight[part.start : part.stop + 1].long().abs().sum(0).max()) * act_max >= EXACT


def test_parts_hold_for_the_most_negative_weight():
    weight = torch.full((4001, 1), -128, dtype=torch.int8)
    bounds = [int(weight[part].long().abs().sum(0).max()) * ACT_MAX for part in exact_parts(weight, ACT_MAX)]
    assert max(bounds) < EXACT


def test_layer_clamps_to_its_range():
    layer = IntegerLayer(
        torch.tensor([[1, -1]], dtype=torch.int8),
        torch.zeros(2, dtype=torch.long),
        torch.full((2,), 2**REQUANT_BITS),
        torch.tensor([-3, -4]),
        torch.tensor([5, 6]),
        ACT_MAX,
    )
    a = torch.tensor([[100], [0], [2]], dtype=torch.int16)
    assert layer(a, "float32").tolist() == [[5, -4], [0, 0], [2, -2]]


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_leaky_layer_divides_what_is_below_zero_by_a_hundred(arithmetic):
    weight = torch.tensor([[1, -1]], dtype=torch.int8)
    zero, one = torch.zeros(2, dtype=torch.long), torch.full((2,), 100 * 2**REQUANT_BITS)
    layer = IntegerLayer(weight, zero, one, torch.full((2,), -(2**20)), torch.full((2,), 2**20), SIGNED_MAX, LEAKY_SLOPE)
    a = torch.tensor([[100], [0], [-7]], dtype=torch.int16)
    assert layer(a, arithmetic).tolist() == [[10000, -100], [0, 0], [-7, 700]]


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_layer_does_not_change_its_input_or_bias(arithmetic):
    layer, a = layer_of(random_weight(9, 4), bias=torch.arange(4)), torch.ones(5, 9, dtype=torch.int16)
    first = layer(a, arithmetic)
    assert a.eq(1).all()
    assert torch.equal(layer.bias, torch.arange(4))
    assert torch.equal(layer(a, arithmetic), first)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_part_of_a_layer_gives_those_outputs_of_inputs_that_are_zero_elsewhere(arithmetic):
    layer = layer_of(random_weight(30, 12), bias=torch.arange(12) * 1000 - 5000)
    inputs, outputs = torch.tensor([0, 3, 4, 17, 29]), torch.tensor([1, 5, 11])
    a = torch.randint(0, 256, (9, 30), generator=torch.Generator().manual_seed(1)).to(torch.int16)
    seen = torch.zeros_like(a)
    seen[:, inputs] = a[:, inputs]
    part = layer.part(inputs=inputs, outputs=outputs)
    assert torch.equal(part(a[:, inputs].contiguous(), arithmetic), by_definition(layer, seen)[:, outputs])
    assert torch.equal(layer.part(outputs=outputs)(a, arithmetic), by_definition(layer, a)[:, outputs])


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_layer_at_a_level_adds_its_row_to_the_bias(arithmetic):
    rows = torch.tensor([[100, -200, 300], [7, 8, 9]])
    plain = layer_of(random_weight(20, 3))
    layer = IntegerLayer(plain.weight, plain.bias, plain.multiplier, plain.lo, plain.hi, ACT_MAX, level_bias=rows)
    a = torch.randint(0, 256, (5, 20), generator=torch.Generator().manual_seed(1)).to(torch.int16)
    for row in rows:
        assert torch.equal(layer.at(row)(a, arithmetic), plain(a, arithmetic) + row)
    assert torch.equal(layer(a, arithmetic), plain(a, arithmetic))


def test_layer_that_could_leave_64_bits_is_refused():
    with pytest.raises(CheckpointError, match="exceed 64 bits"):
        layer_of(random_weight(4, 4), multiplier=torch.full((4,), 2**50))


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(2, 2, dtype=torch.int16), torch.zeros(2**16, 1, dtype=torch.int8), torch.zeros(2, 2, 1, dtype=torch.int8)],
)
def test_layer_with_other_weights_is_refused(bad):
    with pytest.raises(CheckpointError, match="export it again"):
        layer_of(bad)


def test_layer_with_another_activation_range_is_refused():
    with pytest.raises(CheckpointError, match="activations up to 200"):
        layer_of(random_weight(2, 2), act_max=200)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_layer_does_not_depend_on_threads(arithmetic):
    layer, a = layer_of(random_weight(3000, 64)), torch.full((700, 3000), ACT_MAX, dtype=torch.int16)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(layer(a, arithmetic), by_definition(layer, a))
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def no_int8(monkeypatch):
    """A CPU whose int8 products saturate."""
    monkeypatch.setattr(integer, "int8_is_exact", lambda: False)


def test_int8_is_used_where_it_is_exact(monkeypatch):
    monkeypatch.setattr(integer, "int8_is_exact", lambda: True)
    assert exact_arithmetic() == "int8"


def test_int8_that_saturates_is_noticed(monkeypatch):
    def saturating(a, w):  # CPUs without VNNI make a unsigned and sum pairs of products in 16 bits
        products = (a.int() + 128)[:, :, None] * w.int()[None]
        pairs = (products[:, ::2] + products[:, 1::2]).clamp(-(2**15), 2**15 - 1)
        return pairs.sum(1).int() - 128 * w.int().sum(0)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    int8_is_exact.cache_clear()
    try:
        assert not int8_is_exact()
    finally:
        int8_is_exact.cache_clear()


def test_int8_that_is_missing_is_noticed(monkeypatch):
    monkeypatch.delattr(torch, "_int_mm")
    int8_is_exact.cache_clear()
    try:
        assert not int8_is_exact()
    finally:
        int8_is_exact.cache_clear()


def test_float32_is_used_without_int8(no_int8):
    assert exact_arithmetic() == "float32"


@pytest.mark.parametrize("coarse", [torch.bfloat16, torch.float16])
def test_float64_is_used_when_float32_products_are_rounded(monkeypatch, no_int8, coarse):
    exact = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: exact(a.to(coarse).float(), b.to(coarse).float()))
    assert exact_arithmetic() == "float64"


def test_float32_is_probed_under_another_default_dtype(monkeypatch, no_int8):
    exact, seen = torch.Tensor.__matmul__, []
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: seen.append(a.dtype) or exact(a, b))
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        exact_arithmetic()
    finally:
        torch.set_default_dtype(before)
    assert seen == [torch.float32]


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 4, 3), (5, 8, 2), (1, 9, 4)])
@pytest.mark.parametrize(
    "offsets", [TAPS_3X3, TAPS_CHECKERBOARD, TAPS_CAUSAL, POINT], ids=["3x3", "checkerboard", "causal", "point"]
)
def test_gathered_taps_equal_unfold(shape, offsets):
    h, w, c = shape
    x = torch.arange(h * w * c).reshape(h, w, c).float() + 1
    reach = max(max(abs(dy), abs(dx)) for dy, dx in offsets)
    side = 2 * reach + 1
    unfolded = F.unfold(x.permute(2, 0, 1)[None], side, padding=reach)[0].reshape(c, side, side, h * w)
    expected = torch.cat([unfolded[:, dy + reach, dx + reach].T for dy, dx in offsets], dim=1)
    some = torch.arange(h * w).flip(0)[::2]
    for border in (reach, reach + 1):
        plane = Plane.of(x.to(torch.int16), border)
        assert torch.equal(plane.gather(offsets, torch.arange(h * w)).float(), expected)
        assert torch.equal(plane.gather(offsets, some).float(), expected[some])


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 7, 3)])
def test_a_plane_set_in_parts_equals_the_plane_of_all(shape):
    h, w, c = shape
    x = torch.arange(h * w * c).reshape(h * w, c).to(torch.int16) + 1
    plane = Plane(h, w, c, 2)
    for rows in torch.randperm(h * w, generator=torch.Generator().manual_seed(0)).split(5):
        plane.set(rows, x[rows])
    everywhere = torch.arange(h * w)
    whole = Plane.of(x.reshape(h, w, c), 2)
    assert torch.equal(plane.gather(TAPS_CAUSAL, everywhere), whole.gather(TAPS_CAUSAL, everywhere))
    assert torch.equal(plane.gather(TAPS_CHECKERBOARD, everywhere), whole.gather(TAPS_CHECKERBOARD, everywhere))


def test_what_is_not_set_is_zero():
    plane = Plane(3, 3, 2, 1)
    plane.set(torch.tensor([4]), torch.tensor([[7, 8]], dtype=torch.int16))
    around = plane.gather(TAPS_3X3, torch.tensor([4])).reshape(9, 2)
    assert around.nonzero()[:, 0].tolist() == [4, 4]
    assert plane.gather(TAPS_3X3, torch.tensor([0])).reshape(9, 2)[8].tolist() == [7, 8]


def test_checkerboard_taps_are_the_twelve_of_the_other_colour():
    assert len(TAPS_CHECKERBOARD) == 12
    assert all((dy + dx) % 2 for dy, dx in TAPS_CHECKERBOARD)


def test_causal_taps_are_the_twelve_before_the_centre_in_raster_order():
    square = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    assert square[:12] == TAPS_CAUSAL


def test_plane_apply_equals_a_convolution():
    generator = torch.Generator().manual_seed(2)
    kernel = torch.randint(-127, 128, (5, 3, 3, 3), generator=generator)  # (O, C, 3, 3)
    x = torch.randint(0, 256, (6, 7, 3), generator=generator)
    matrix = torch.cat([kernel[:, :, dy + 1, dx + 1].T for dy, dx in TAPS_3X3]).to(torch.int8)
    layer = layer_of(matrix, multiplier=torch.full((5,), 2 ** (REQUANT_BITS - 8)))
    expected = F.conv2d(x.permute(2, 0, 1)[None].double(), kernel.double(), padding=1)[0].permute(1, 2, 0).reshape(42, 5)
    for arithmetic in ("float32", exact_arithmetic()):
        out = Plane.of(x.to(torch.int16), 1).apply(layer, TAPS_3X3, torch.arange(42), arithmetic)
        assert torch.equal(out.long(), rshift(expected.long(), 8))


@pytest.mark.parametrize(("h", "w", "factor"), [(1, 1, 2), (3, 5, 2), (2, 4, 3)])
def test_pixel_shuffle_equals_torchs(h, w, factor):
    x = torch.arange(h * w * 4 * factor**2).reshape(h * w, -1)
    expected = torch.nn.PixelShuffle(factor)(x.reshape(h, w, -1).permute(2, 0, 1)[None])[0]
    assert torch.equal(pixel_shuffle(x, h, w, factor), expected.permute(1, 2, 0))


@pytest.mark.parametrize(
    "changes",
    [
        {"slope": 2**40},
        {"slope": -1},
        {"bias": torch.tensor([-(2**63)])},
        {"level_bias": torch.tensor([[0], [-(2**62)]])},
        {"level_bias": torch.zeros(2, 3, dtype=torch.long)},
        {"multiplier": torch.tensor([-(2**63)])},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_layers_whose_products_could_overflow_are_refused(changes):
    one = torch.ones(1, dtype=torch.long)
    fields = {
        "weight": torch.ones(2, 1, dtype=torch.int8),
        "bias": one,
        "multiplier": one,
        "lo": -one,
        "hi": one,
        "act_max": 127,
    }
    with pytest.raises(CheckpointError, match="integer layer"):
        IntegerLayer(**(fields | changes))
