"""Every golden file decodes alike whatever a process has switched on or off, and encoding gives the same bytes every time.

``tests/models/test_contract.py`` proves the first for fresh symbols of each model; here whole files and pixels are compared, by
what a caller calls.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from switches import precision, switched

from bitstream.container import Container
from bitstream.engines.reference import ReferenceEngine
from codec import Codec
from models.runtime import LoadedModel

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"
KINDS = sorted(
    {path.stem.removeprefix("tiny-") for path in GOLDEN.glob("tiny-*.safetensors")} - {"overfit"}
)  # which draws noise
pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's, when oneDNN is switched off


def threads(count):
    return switched(torch.set_num_threads, count, torch.get_num_threads())


SWITCHES = {
    "1 thread": lambda: threads(1),
    "2 threads": lambda: threads(2),
    "3 threads": lambda: threads(3),
    "flush denormal": lambda: switched(torch.set_flush_denormal, True, False),
    "matmul precision high": lambda: precision("high"),
    "default dtype float64": lambda: switched(torch.set_default_dtype, torch.float64, torch.get_default_dtype()),
    "deterministic algorithms": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "autocast bf16": lambda: torch.autocast("cpu", torch.bfloat16),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "no NNPACK": lambda: torch.backends.nnpack.flags(enabled=False),
    "grad mode": torch.enable_grad,
    "inference mode": torch.inference_mode,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
}


@pytest.fixture(scope="module")
def codecs() -> dict[bytes, Codec]:
    """A Codec for each golden checkpoint, by its id."""
    loaded = [Codec(GOLDEN / f"tiny-{kind}.safetensors", "cpu") for kind in KINDS]
    return {codec.model.checkpoint.model_id: codec for codec in loaded}


@pytest.fixture(scope="module")
def few(codecs) -> list[Path]:
    """The largest golden file of each model, and the largest gray one."""
    largest = {}
    for path in sorted(set(GOLDEN.glob("*.lic")) - set(GOLDEN.glob("*overfit*"))):
        header = Container.unpack(path.read_bytes()).header
        for key in (header.model_id, header.gray):
            if key not in largest or path.stat().st_size > largest[key].stat().st_size:
                largest[key] = path
    assert set(largest) == {*codecs, True, False}
    return sorted(set(largest.values()))


MEDIUM_OFF, BF16_OFF = 3, 8  # grey levels


def codec_of(codecs, path):
    return codecs[Container.unpack(path.read_bytes()).header.model_id]


def off_by(image: Image.Image, path: Path) -> int:
    """Return the largest difference of a picture to the golden one of a file, in grey levels."""
    with Image.open(path.with_suffix(".png")) as expected:
        assert (image.mode, image.size) == (expected.mode, expected.size)
        return int(np.abs(np.asarray(image).astype(int) - np.asarray(expected).astype(int)).max())


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_models_file_decodes_alike_under_a_global_switch(codecs, few, switch):
    for path in few:
        with SWITCHES[switch]():
            image = codec_of(codecs, path).decode(path.read_bytes())  # raises DesyncError if a symbol differs
        assert off_by(image, path) <= 1, path.name


def test_every_models_file_decodes_alike_under_matmul_precision_medium(codecs, few):
    """The one switch that reaches into the synthesis: bf16 products, where the CPU has them. The symbols stay, pixels move."""
    for path in few:
        with precision("medium"):
            image = codec_of(codecs, path).decode(path.read_bytes())
        assert off_by(image, path) <= MEDIUM_OFF, path.name


def test_every_models_file_decodes_with_bf16_transforms(codecs, few):
    """Nobody decodes so by default. The symbols stay; pixels move by what 8 bits of mantissa are worth."""
    for path in few:
        codec, half = codec_of(codecs, path), copy.copy(codec_of(codecs, path))
        half.model = LoadedModel(codec.model.checkpoint, torch.device("cpu"), dtype=torch.bfloat16)
        assert off_by(half.decode(path.read_bytes()), path) <= BF16_OFF, path.name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_models_file_decodes_alike_on_a_gpu(codecs, few):
    for path in few:
        codec, gpu = codec_of(codecs, path), copy.copy(codec_of(codecs, path))
        gpu.model = LoadedModel(codec.model.checkpoint, torch.device("cuda"))
        assert off_by(gpu.decode(path.read_bytes()), path) <= 1, path.name


def test_every_models_file_decodes_alike_with_the_reference_engine(codecs, few):
    for path in few:
        codec = codec_of(codecs, path)
        engine, codec.engine = codec.engine, ReferenceEngine()
        try:
            assert off_by(codec.decode(path.read_bytes()), path) <= 1, path.name
        finally:
            codec.engine = engine


def test_threads_of_a_program_that_decode_at_once_with_one_codec_do_not_meet(codecs, few):
    for path in few:
        codec, images = codec_of(codecs, path), []
        workers = [
            threading.Thread(target=lambda c=codec, p=path, i=images: i.append(c.decode(p.read_bytes()))) for _ in range(3)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [off_by(image, path) <= 1 for image in images] == [True] * 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_decodes_alike(codecs, few):
    """OpenMP's threads do not survive a fork, and a parent that has used several is what could go wrong."""
    with threads(2):
        for path in few:
            codec_of(codecs, path).decode(path.read_bytes())
        context = multiprocessing.get_context("fork")
        answer = context.SimpleQueue()

        def work():
            answer.put([off_by(codec_of(codecs, path).decode(path.read_bytes()), path) for path in few])

        process = context.Process(target=work)
        process.start()
        process.join(60)
        alive = process.is_alive()
        if alive:
            process.kill()
    assert (alive, process.exitcode) == (False, 0)
    assert max(answer.get()) <= 1


FRESH = """
import hashlib, sys
from pathlib import Path
import numpy as np, torch
from codec import Codec
torch.set_num_threads(int(sys.argv[1]))
pixels = np.load(sys.argv[2])
for name in sys.argv[3:]:
    print(hashlib.sha256(Codec(name, "cpu").encode(pixels, quality=80)).hexdigest())
"""


def encoded(codecs, pixels):
    return [hashlib.sha256(codec.encode(pixels, quality=80)).hexdigest() for codec in codecs.values()]


def test_encoding_gives_the_same_bytes_in_each_process_and_with_each_number_of_threads(codecs, picture, tmp_path):
    pixels = picture(65, 129)
    first = encoded(codecs, pixels)
    assert encoded(codecs, pixels) == first
    assert encoded(codecs, np.asfortranarray(pixels)) == first
    for count in (1, 2, 3):
        with threads(count):
            assert encoded(codecs, pixels) == first, f"{count} threads"
    np.save(tmp_path / "pixels.npy", pixels)
    names = [str(GOLDEN / f"tiny-{kind}.safetensors") for kind in KINDS]
    command = [sys.executable, "-W", "ignore", "-c", FRESH, "2", str(tmp_path / "pixels.npy"), *names]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONHASHSEED="1", LC_ALL="C", TZ="Asia/Tokyo")
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, cwd=tmp_path)
    assert done.stdout.split() == first, done.stderr


HARMLESS = ("deterministic algorithms", "grad mode", "inference mode", "autocast bf16", "anomaly detection", "flush denormal")


@pytest.mark.parametrize("switch", HARMLESS)
def test_encoding_does_not_depend_on_what_a_caller_switches(codecs, picture, switch):
    pixels = picture(65, 97)
    first = encoded(codecs, pixels)
    with SWITCHES[switch]():
        assert encoded(codecs, pixels) == first


@pytest.mark.parametrize(
    ("encoder", "decoder"), list(itertools.permutations(["1 thread", "no oneDNN", "matmul precision high"], 2))
)
def test_what_is_encoded_under_one_switch_decodes_under_another(codecs, picture, encoder, decoder):
    for codec in codecs.values():
        with SWITCHES[encoder]():
            data = codec.encode(picture(33, 50))
        with SWITCHES[decoder]():
            codec.decode(data)  # raises DesyncError if a symbol differs


ORDERED = {  # a call, and what its line must say; without, it is the machine's byte order
    r"struct\.(Struct|pack|unpack)": '"<',
    r"(from|to)_bytes\(": '"little"',
    r"frombuffer\(": "dtype=np.uint8",
    r"crc32\(.*tobytes\(": r'astype\("<',
}


@pytest.mark.parametrize("call", ORDERED)
def test_what_is_written_or_read_has_a_byte_order(call):
    found = 0
    for package in ("bitstream", "models"):
        for path in (ROOT / package).rglob("*.py"):
            for line in path.read_text(encoding="utf-8").splitlines():
                if re.search(call, line):
                    found += 1
                    assert re.search(ORDERED[call], line), f"{path}: {line}"
    assert found
