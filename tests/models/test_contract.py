"""What every model owes: encoder and decoder see the same integers, whatever the process has switched on or off."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import numpy as np
import pytest
import torch
from switches import default_dtype, precision, switched

from bitstream.coder import StreamReader, StreamWriter
from bitstream.engines import default_engine
from bitstream.engines.reference import ReferenceEngine
from bitstream.errors import CodecError, DesyncError
from bitstream.mixture import Mixtures
from bitstream.tables import SCALE_MAX, SCALE_MIN, SCALES
from models import integer
from models.integer import exact_arithmetic, int8_is_exact
from models.runtime import LoadedModel

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's, when oneDNN is switched off
CPU = torch.device("cpu")


@contextlib.contextmanager
def block_rows(count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integer, "BLOCK_ROWS", count)
        yield


SWITCHES = {
    "1 thread": lambda: switched(torch.set_num_threads, 1, torch.get_num_threads()),
    "2 threads": lambda: switched(torch.set_num_threads, 2, torch.get_num_threads()),
    "matmul precision medium": lambda: precision("medium"),
    "matmul precision high": lambda: precision("high"),
    "flush denormal": lambda: switched(torch.set_flush_denormal, True, False),
    "autocast bf16": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bf16": lambda: default_dtype(torch.bfloat16),
    "default device meta": lambda: torch.device("meta"),
    "deterministic algorithms": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "grad mode": torch.enable_grad,
    "blocks of 1 row": lambda: block_rows(1),
    "blocks of 7 rows": lambda: block_rows(7),
}


def latents_of(model, x, level):
    """Return the latents of a picture, and the sides of y."""
    with torch.inference_mode():
        h, w = x.shape[-2:]
        y = model.g_a(torch.nn.functional.pad(x, (0, -w % 64, 0, -h % 64), mode="replicate")).float()
        z = None
        if model.h_a is not None:
            z = model.h_a(model.config.hyper_input(y / model.log2_std.exp2()[:, None, None])).float()
    return model.entropy.fix_latents(y, z, level), *y.shape[-2:]


@pytest.mark.parametrize("level", [0, 300, 768])
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (65, 129), (128, 96)])
def test_decoder_finds_the_encoders_y_hat(model, engine, tensor, size, level):
    latents, h, w = latents_of(model, tensor(*size), level)
    writer = StreamWriter(engine)
    y_hat = model.entropy.code_latents(writer, level, h, w, latents)
    reader = StreamReader(engine, writer.payloads)
    assert torch.equal(model.entropy.code_latents(reader, level, h, w, None), y_hat)
    assert reader.crc == writer.crc
    assert y_hat.shape == (h, w, latents.y.shape[1])
    assert y_hat.dtype == torch.int64


def test_engines_write_the_same_bytes(model, engine, tensor):
    assert model.compress(tensor(65, 129), 300, engine) == model.compress(tensor(65, 129), 300, ReferenceEngine())


@pytest.fixture(scope="module")
def fast():
    """The faster engine, for what concerns the integer layers: the Python engine calls nothing that has a switch."""
    return default_engine()


@pytest.fixture(scope="module")
def coded(model, fast):
    """A picture coded without any switch: (payloads, CRC, y_hat, level, h, w)."""
    generator = torch.Generator().manual_seed(0)
    h, w, level = 128, 256, 400
    x = torch.rand(1, 3, h // 8, w // 8, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    payloads, crc = model.compress(x, level, fast)
    y_hat, decoded_crc = model.decode_latents(payloads, level, h, w, fast)
    assert decoded_crc == crc
    return payloads, crc, y_hat, level, h, w


@pytest.fixture(scope="module")
def given(model, fast, crops):
    """Latents and what they are coded to without any switch: (latents, h, w, payloads)."""
    latents, h, w = latents_of(model, crops(1, 1, 128)[..., :96], 500)
    writer = StreamWriter(fast)
    model.entropy.code_latents(writer, 500, h, w, latents)
    return latents, h, w, writer.payloads


@pytest.fixture(params=["int8", "float"])
def arithmetic(request, monkeypatch):
    """The integer layers computed by int8 products, and by float ones as on a CPU without."""
    if request.param == "int8" and not int8_is_exact():
        pytest.skip("this CPU saturates int8 products")
    monkeypatch.setattr(integer, "int8_is_exact", lambda: request.param == "int8")


@pytest.mark.parametrize("switch", SWITCHES)
def test_symbols_do_not_depend_on_a_global_switch(model, fast, coded, switch, arithmetic):
    payloads, crc, y_hat, level, h, w = coded
    with SWITCHES[switch]():
        decoded, decoded_crc = model.decode_latents(payloads, level, h, w, fast)
    assert decoded_crc == crc
    assert torch.equal(decoded, y_hat)


@pytest.mark.parametrize("switch", SWITCHES)
def test_bytes_of_given_latents_do_not_depend_on_a_global_switch(model, fast, given, switch, arithmetic):
    latents, h, w, payloads = given
    writer = StreamWriter(fast)
    with SWITCHES[switch]():
        model.entropy.code_latents(writer, 500, h, w, latents)
    assert writer.payloads == payloads


def test_matmul_precision_medium_is_noticed(monkeypatch):
    monkeypatch.setattr(integer, "int8_is_exact", lambda: False)
    with precision("medium"):
        probe = torch.full((64, 64), 4097.0)
        exact = torch.equal(probe @ torch.eye(64), probe)
        assert exact_arithmetic() == ("float32" if exact else "float64")
    assert exact_arithmetic() == "float32"


def test_picture_decodes_inside_autocast(model, engine, tensor):
    x = tensor(65, 129)
    with torch.autocast("cpu", torch.bfloat16):
        payloads, crc = model.compress(x, 768, engine)
    x_hat = model.decompress(payloads, 768, 65, 129, engine, crc)
    assert x_hat.shape == x.shape


def test_symbols_do_not_depend_on_the_transforms_dtype(model, fast, coded):
    payloads, crc, y_hat, level, h, w = coded
    tensors = dict(model.checkpoint.tensors)
    for name in tensors:  # blocks of a tiny swift are the identity: no type would change them
        if name.startswith("g_s.blocks_") and name.endswith("conv3.weight"):
            tensors[name] = torch.full_like(tensors[name], 0.01)
    checkpoint = dataclasses.replace(model.checkpoint, tensors=tensors)
    half = LoadedModel(checkpoint, CPU, dtype=torch.bfloat16)
    decoded, decoded_crc = half.decode_latents(payloads, level, h, w, fast)
    assert decoded_crc == crc
    assert torch.equal(decoded, y_hat)
    x_hat = half.decompress(payloads, level, h, w, fast, crc)
    exact = LoadedModel(checkpoint, CPU).decompress(payloads, level, h, w, fast, crc)
    assert x_hat.dtype == torch.float32
    assert 0 < (x_hat - exact).abs().mean() < 0.02


def test_a_file_of_bf16_transforms_decodes_with_float32_ones(model, engine, tensor):
    half = LoadedModel(model.checkpoint, CPU, dtype=torch.bfloat16)
    payloads, crc = half.compress(tensor(65, 129), 400, engine)
    assert model.decode_latents(payloads, 400, 65, 129, engine)[1] == crc


def test_symbols_do_not_depend_on_the_synthesis_weights(model, fast, coded):
    payloads, crc, y_hat, level, h, w = coded
    generator = torch.Generator().manual_seed(3)
    tensors = dict(model.checkpoint.tensors)
    for name, value in tensors.items():
        if name.startswith("g_s."):
            noise = torch.rand(value.shape, generator=generator) * 2 - 1
            tensors[name] = value.float() * (1 + 1e-3 * noise) + 1e-3 * noise.flip(0)
    other = LoadedModel(dataclasses.replace(model.checkpoint, tensors=tensors), CPU)
    x_hat = other.decompress(payloads, level, h, w, fast, crc)
    assert torch.equal(other.decode_latents(payloads, level, h, w, fast)[0], y_hat)
    assert not torch.equal(x_hat, model.decompress(payloads, level, h, w, fast, crc))  # the change was a real one


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (63, 64), (65, 129)])
def test_decompress_gives_the_size_back(model, engine, tensor, size):
    x = tensor(*size)
    payloads, crc = model.compress(x, 768, engine)
    x_hat = model.decompress(payloads, 768, *size, engine, crc)
    assert x_hat.shape == x.shape
    assert (x_hat - x).abs().mean() < 0.2


def test_other_symbols_are_refused_before_synthesis(model, engine, tensor, monkeypatch):
    payloads, crc = model.compress(tensor(64, 64), 0, engine)
    monkeypatch.setattr(model, "g_s", lambda _: pytest.fail("synthesis ran on symbols of another checksum"))
    with pytest.raises(DesyncError, match="codec doctor"):
        model.decompress(payloads, 0, 64, 64, engine, crc ^ 1)


def test_padding_repeats_the_border(model, engine):
    white = torch.full((1, 3, 64, 64), 0.9)
    assert model.compress(white[..., :1, :37], 300, engine) == model.compress(white, 300, engine)


def test_timings_name_the_stages(model, engine, tensor):
    fresh = LoadedModel(model.checkpoint, CPU)
    payloads, crc = fresh.compress(tensor(64, 64), 0, engine)
    assert set(fresh.timings) == ({"g_a", "h_a", "entropy"} if model.entropy.layout.hyper else {"g_a", "entropy"})
    fresh.timings.clear()
    fresh.decompress(payloads, 0, 64, 64, engine, crc)
    assert set(fresh.timings) == {"entropy", "g_s"}
    assert all(seconds >= 0 for seconds in fresh.timings.values())


class Estimator(StreamWriter):
    """A writer that adds up, in floating point, the bits of each symbol given its prediction and its stream's range."""

    def __init__(self, engine):
        super().__init__(engine)
        self.bits, self.streams = 0.0, 0

    def code_source(self, symbols, source):
        self._note([(symbols, source)])
        return super().code_source(symbols, source)

    @contextlib.contextmanager
    def segment(self, bands):
        steps = []
        with super().segment(bands) as code:
            yield lambda symbols, source: steps.append((symbols, source)) or code(symbols, source)
        self._note(steps)

    def _note(self, steps):
        bands = [source.bands() for _, source in steps]
        for band in np.unique(np.concatenate(bands)):
            where = [np.flatnonzero(of == band) for of in bands]
            parts = [(s[at].astype(np.int64), source.take(at)) for at, (s, source) in zip(where, steps, strict=True) if len(at)]
            symbols = np.concatenate([s for s, _ in parts])
            first, last = symbols.min(), symbols.max()
            shared = 65536 - (last - first + 1)  # each symbol of the range has one count for certain
            for s, source in parts:
                share = mass(source, s, s) / mass(source, first, last)
                self.bits -= np.log2((share * shared + 1) / 65536).sum()
            self.streams += 1


def mass(source, first, last):
    """Return the probability (n,) of first … last, arrays or numbers, under each of n distributions."""
    if isinstance(source, Mixtures):
        root2 = SCALE_MIN * (SCALE_MAX / SCALE_MIN) ** (source.scales.astype(float) / (SCALES - 1)) * math.sqrt(2)
        lower, upper = (
            np.vectorize(math.erf)((np.atleast_1d(edge)[:, None] - source.means / 256) / root2)
            for edge in (first - 0.5, last + 0.5)
        )
        return np.maximum(((upper - lower) / 2 * source.weights).sum(1) / source.weights.sum(1), 2.0**-16)
    f = source.table.cumulative
    return (f[source.rows, last - source.lo + 1] - f[source.rows, first - source.lo]) / 2**30


@pytest.mark.parametrize("level", [0, 400, 768])
def test_real_bytes_are_the_estimate_within_one_percent_and_the_stream_overhead(model, fast, tensor, level):
    """A stream costs its range, its lengths and the end of the arithmetic coder: some six bytes."""
    latents, h, w = latents_of(model, tensor(256, 384), level)
    writer = Estimator(fast)
    y_hat = model.entropy.code_latents(writer, level, h, w, latents)
    size, estimate = sum(map(len, writer.payloads)), writer.bits / 8
    assert -0.01 * estimate <= size - estimate <= 0.01 * estimate + 8 * writer.streams
    assert estimate > 40 * writer.streams  # so that the overhead does not hide a difference
    assert torch.equal(model.entropy.code_latents(StreamReader(fast, writer.payloads), level, h, w, None), y_hat)


def test_bytes_rise_and_error_falls_with_the_level(model, fast, tensor, monkeypatch):
    monkeypatch.setattr(model, "inverse_gain", None)  # random in the tiny one: more error than rounding makes
    x = tensor(128, 192)
    sizes, errors = [], []
    for level in (0, 200, 400, 600, 768):
        payloads, crc = model.compress(x, level, fast)
        sizes.append(sum(map(len, payloads)))
        errors.append(float((model.decompress(payloads, level, 128, 192, fast, crc) - x).square().mean()))
    assert sizes == sorted(set(sizes))
    assert errors[0] > errors[2] > errors[4]


def test_damage_anywhere_is_detected(model, fast, tensor):
    """Each changed byte raises one of our errors before synthesis, or is one of the few bits that no symbol depends on."""
    payloads, crc = model.compress(tensor(65, 129), 500, fast)
    y_hat, _ = model.decode_latents(payloads, 500, 65, 129, fast)
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(24):
        damaged = list(map(bytearray, payloads))
        chunk = rng.choice([i for i, payload in enumerate(payloads) if payload])
        damaged[chunk][rng.integers(len(damaged[chunk]))] ^= 1 << rng.integers(8)
        try:
            found, other = model.decode_latents([bytes(d) for d in damaged], 500, 65, 129, fast)
        except CodecError:
            seen += 1
            continue
        if other != crc:
            seen += 1
            with pytest.raises(DesyncError):
                model.decompress([bytes(d) for d in damaged], 500, 65, 129, fast, crc)
        else:
            assert torch.equal(found, y_hat)
    assert seen >= 21


def test_a_payload_that_is_cut_off_is_detected(model, fast, tensor):
    payloads, crc = model.compress(tensor(65, 129), 500, fast)
    for keep in range(0, len(payloads[1]), max(len(payloads[1]) // 16, 1)):
        with pytest.raises(CodecError):
            model.decompress([payloads[0], payloads[1][:keep]], 500, 65, 129, fast, crc)
