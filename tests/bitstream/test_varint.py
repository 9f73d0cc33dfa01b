"""Varints: canonical bytes out, nothing else in."""

import pytest

from bitstream.errors import FormatError
from bitstream.varint import MAX_VALUE, pack_varint, unpack_varint, unzigzag, zigzag

LITERAL = [
    (0, "00"),
    (1, "01"),
    (127, "7f"),
    (128, "80 01"),
    (300, "ac 02"),
    (16383, "ff 7f"),
    (16384, "80 80 01"),
    (2**21 - 1, "ff ff 7f"),
    (2**28, "80 80 80 80 01"),
    (2**32 - 1, "ff ff ff ff 0f"),
]


@pytest.mark.parametrize(("value", "hexed"), LITERAL)
def test_packs_to_literal_bytes(value, hexed):
    assert pack_varint(value) == bytes.fromhex(hexed)


@pytest.mark.parametrize(("value", "hexed"), LITERAL)
def test_unpacks_literal_bytes_and_returns_the_offset_behind_them(value, hexed):
    data = bytes.fromhex(hexed)
    assert unpack_varint(memoryview(b"\xff\xff" + data + b"\x05"), 2) == (value, 2 + len(data))


@pytest.mark.parametrize("value", [2**bits + step for bits in range(32) for step in (-1, 0, 1) if 2**bits + step >= 0])
def test_round_trips_around_every_power_of_two(value):
    data = pack_varint(value)
    assert unpack_varint(memoryview(data), 0) == (value, len(data))
    assert len(data) == max(1, -(-value.bit_length() // 7))


@pytest.mark.parametrize("value", [-1, MAX_VALUE + 1])
def test_refuses_to_pack_what_is_not_32_bits(value):
    with pytest.raises(FormatError, match=f"{value} is outside"):
        pack_varint(value)


@pytest.mark.parametrize("hexed", ["", "80", "ff ff", "80 80 80 80"])
def test_rejects_a_varint_that_is_cut_off(hexed):
    with pytest.raises(FormatError, match="cut off"):
        unpack_varint(memoryview(bytes.fromhex(hexed)), 0)


def test_rejects_an_offset_behind_the_data():
    with pytest.raises(FormatError, match="byte 7"):
        unpack_varint(memoryview(b"\x01"), 7)


@pytest.mark.parametrize("hexed", ["80 00", "81 00", "ff 80 00", "80 80 80 80 00"])
def test_rejects_trailing_zero_bytes(hexed):
    with pytest.raises(FormatError, match="not canonical"):
        unpack_varint(memoryview(bytes.fromhex(hexed)), 0)


@pytest.mark.parametrize("hexed", ["80 80 80 80 10", "ff ff ff ff 1f", "ff ff ff ff 7f"])
def test_rejects_five_bytes_that_hold_more_than_32_bits(hexed):
    with pytest.raises(FormatError, match="larger than 32 bits"):
        unpack_varint(memoryview(bytes.fromhex(hexed)), 0)


@pytest.mark.parametrize("hexed", ["80 80 80 80 80", "80 80 80 80 80 01", "ff ff ff ff ff ff ff ff ff 01"])
def test_rejects_a_sixth_byte(hexed):
    with pytest.raises(FormatError, match="larger than 32 bits"):
        unpack_varint(memoryview(bytes.fromhex(hexed)), 0)


def test_zigzag_orders_signed_values_by_size():
    assert [zigzag(v) for v in (0, -1, 1, -2, 2, -1023, 1023)] == [0, 1, 2, 3, 4, 2045, 2046]


def test_unzigzag_inverts_zigzag():
    values = [*range(-2000, 2001), -(2**31), 2**31 - 1]
    assert [unzigzag(zigzag(v)) for v in values] == values
    assert [zigzag(unzigzag(v)) for v in (*range(4001), MAX_VALUE)] == [*range(4001), MAX_VALUE]
