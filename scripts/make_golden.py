"""Make the golden files of a format version: a tiny frozen checkpoint, files coded with it, the pictures they decode to.

    python scripts/make_golden.py

Run once per format version; it refuses to touch what exists. Old golden files must decode for ever: never make them again
to mend a test. Pictures are drawn from arithmetic here, nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitstream.tables import constants_crc
from codec.api import Codec
from codec.images import Pixels
from models.checkpoint import save_checkpoint
from models.klt import klt_start
from models.quantise import calibrate, quantise
from models.swift import Swift, SwiftConfig

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden"
TINY = SwiftConfig(C=24, D=32, M=32, N=16, blocks_8=1, blocks_16=1, hyper=16, features=16, hidden=24, levels=4)
SIZES = {"1x1": (1, 1), "1x37": (37, 1), "63x64": (64, 63), "65x129": (129, 65), "128x96": (96, 128)}  # (height, width)
QUALITIES = (0, 33, 100)


def scene(h: int, w: int, seed: int) -> Pixels:
    """Draw smooth gradients, a hard edge, waves and noise: (h, w, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    channels = []
    for _ in range(3):
        a, b, c, d = rng.uniform(-1, 1, 4)
        wave = 40 * np.sin(x * a / 3 + y * b / 5) + 30 * np.cos((x * c - y * d) / 11)
        edge = 60 * (x * a + y * c > 10 * b)
        channels.append(128 + wave + edge + rng.normal(0, 6, (h, w)))
    return np.stack(channels, axis=2).round().clip(0, 255).astype(np.uint8)


def crops(seed: int, count: int = 4, side: int = 128) -> Tensor:
    """Return (count, 3, side, side) float pictures in [0, 1]."""
    pictures = np.stack([scene(side, side, seed + i) for i in range(count)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def tiny_checkpoint(path: Path) -> None:
    """Write a small model: KLT transforms, entropy networks with random weights large enough to matter."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    model = Swift(TINY).eval()
    klt_start(model, [crops(100), crops(200)])
    with torch.no_grad():
        model.parameters_net.out.module.weight.normal_(0, 0.3)
        model.parameters_net.out.module.bias.normal_(0, 0.1)
        model.log2_gain.add_(torch.randn_like(model.log2_gain) * 0.2)
    tensors = quantise(model, calibrate(model, [crops(300 + 10 * i) for i in range(8)]))
    floats = {key: value.half() for key, value in model.state_dict().items() if key.startswith(("g_a.", "g_s.", "h_a."))}
    config = dataclasses.asdict(TINY)
    save_checkpoint(path, model="swift", config=config, tensors=floats | tensors, constants_crc=constants_crc())


def main() -> None:
    """Write what is missing."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    checkpoint = FOLDER / "tiny-swift.safetensors"
    if not checkpoint.exists():
        tiny_checkpoint(checkpoint)
    coder = Codec(checkpoint, "cpu")
    for number, (name, (h, w)) in enumerate(SIZES.items()):
        for quality in QUALITIES:
            pixels = scene(h, w, number)
            write(coder, f"v1-{name}-q{quality}", pixels, quality)
        write(coder, f"v1-gray-{name}", scene(h, w, number)[:, :, 0], 66)


def write(coder: Codec, name: str, pixels: Pixels, quality: float) -> None:
    """Write one file and the picture that it decodes to, unless they exist."""
    target = FOLDER / f"{name}.lic"
    if target.exists():
        return
    data = coder.encode(pixels, quality=quality)
    coder.decode(data).save(target.with_suffix(".png"))
    target.write_bytes(data)


if __name__ == "__main__":
    main()
