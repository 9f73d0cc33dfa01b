"""What ``codec doctor`` finds: versions, the engine, the exactness of this machine, the checkpoints."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import warnings
from collections.abc import Iterator

from bitstream.errors import CodecError

PACKAGES = (
    "torch", "compressai", "pytorch-msssim", "torchac", "ninja", "numpy", "pillow", "safetensors", "click", "rich", "fsspec",
    "tomli-w",
)  # fmt: skip


def report() -> Iterator[tuple[bool, str]]:
    """Yield (passed, line) for each thing looked at; slow things last. Builds the engine if it is not built."""
    yield sys.version_info >= (3, 10), f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    complete = True
    for name in PACKAGES:
        try:
            yield True, f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            complete = False
            yield False, f"{name} is not installed: pip install {name}"
    if not complete:
        return
    yield from _engine()
    yield from _arithmetic()
    yield from _checkpoints()


def _engine() -> Iterator[tuple[bool, str]]:
    from bitstream.engines.torchac import TorchacEngine, build_cure, built_path

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TorchacEngine()
        yield True, f"torchac's engine is built: {built_path()}"
    except CodecError as error:
        yield False, f"torchac's engine: {error} The slower Python engine is used; for the fast one {build_cure(str(error))}"


def _arithmetic() -> Iterator[tuple[bool, str]]:
    import torch

    from bitstream.tables import constants_crc
    from models.integer import exact_arithmetic

    yield True, f"constant tables have CRC {constants_crc():08x}"
    yield True, f"integer layers run in {exact_arithmetic()}, exactly"
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA GPU, the CPU is used"
    yield True, f"{torch.get_num_threads()} threads, {where}"


def _checkpoints() -> Iterator[tuple[bool, str]]:
    import torch

    from models.load import load_model
    from models.manifest import installed

    try:
        for name, (row, path) in installed().items():
            if path is None:
                yield True, f"checkpoint {name} ({row['sha256'][:8]}) is not installed: codec models --install FILE"
                continue
            load_model(name, torch.device("cpu"))
            yield True, f"checkpoint {name} ({row['sha256'][:8]}) loads and its SHA-256 is right"
    except CodecError as error:
        yield False, str(error)
