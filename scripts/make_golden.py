"""Make the golden files of a format version: tiny frozen checkpoints, files coded with them, the pictures they decode to.

    python scripts/make_golden.py

Run once per format version and model; it refuses to touch what exists. Old golden files must decode for ever: never make
them again to mend a test. Pictures are drawn from arithmetic here, nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from bitstream.chunks import Metadata
from codec import images
from codec.api import Codec
from codec.images import Pixels
from codec.targets import Target
from models import program
from models.checkpoint import save_checkpoint
from models.configs import AttentionConfig, ContextConfig, FactorizedConfig, HyperpriorConfig, RateConfig, SwiftConfig
from models.klt import klt_start
from models.latents import INVERSE_GAIN
from models.layers import weight_and_bias
from models.network import Network
from models.quantise import calibrate, quantise
from models.registry import build
from models.runtime import tables_crc, transforms
from models.tracing import trace

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden"
sys.path.insert(0, str(FOLDER.parent / "support"))

from tiny_overfit import write_tiny_overfit  # noqa: E402

SMALL_SWIFT = SwiftConfig(C=24, D=32, M=32, N=16, blocks_8=1, blocks_16=1, hyper=16, features=16, hidden=24, levels=4)
TINY: dict[str, RateConfig] = {
    "swift": SMALL_SWIFT,
    "crossed": dataclasses.replace(SMALL_SWIFT, order="crossed"),  # a swift too
    "inverse-gain": dataclasses.replace(SMALL_SWIFT, order="crossed", inverse_gain=True),  # and this
    "factorized": FactorizedConfig(N=8, M=8, levels=4),  # each channel of y has a table of 16 kB
    "hyperprior": HyperpriorConfig(N=16, M=16, levels=4),
    "joint": ContextConfig(N=16, M=16, levels=4),
    "checkerboard": ContextConfig(N=16, M=16, levels=4),
    "attention": AttentionConfig(N=12, M=12, levels=4),
}
SIZES = {"1x1": (1, 1), "1x37": (37, 1), "63x64": (64, 63), "65x129": (129, 65), "128x96": (96, 128)}  # (height, width)
QUALITIES = (0, 33, 100)
TILED_SIZES = {"300x70": (70, 300), "270x260": (260, 270)}  # in tiles of 256 pixels; the second of crossed alone
FEW_SIZES, FEW_QUALITIES = ("1x37", "65x129"), (33, 100)  # of all models but swift


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


def tiny_checkpoint(path: Path, name: str) -> None:
    """Write a small model: KLT transforms, entropy model with random weights large enough to matter."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    config, kind = dataclasses.asdict(TINY[name]), "swift" if isinstance(TINY[name], SwiftConfig) else name
    model = build(kind, config).eval()
    klt_start(model, [crops(100), crops(200)])
    with torch.no_grad():
        stir(model, name)
        model.log2_gain.add_(torch.randn_like(model.log2_gain) * 0.2)
    tensors = quantise(model, calibrate(model, [crops(300 + 10 * i) for i in range(8)]))
    tensors |= transforms(model, torch.float16)
    crc, programs = tables_crc(model.layout()), program.pack(trace(model))
    save_checkpoint(path, model=kind, config=config, tensors=tensors, constants_crc=crc, transforms=programs)


def stir(model: Network, name: str) -> None:
    """Give a fresh entropy model weights that matter."""
    bottleneck = model.entropy_bottleneck
    if name == "factorized":
        for key, parameter in bottleneck.named_parameters():
            if key != "quantiles":
                parameter.add_(torch.randn_like(parameter) * 0.2)
            if key == "matrices.0":
                parameter.add_(1.5)  # a fresh density is some ten standard deviations wide
        bottleneck.quantiles[:, 0, 1] = torch.randn(model.cfg.M) * 0.3
        return
    if name == "hyperprior":
        bottleneck.quantiles[:, 0, 1] = torch.randn(model.cfg.N) * 0.7
    weight, bias = weight_and_bias(list(model.entropy_layers().values())[-1])
    weight.normal_(0, 0.3)
    bias.add_(torch.randn_like(bias) * 0.1)
    for key, table in model.named_parameters():
        if key.endswith(".table") or key in ("log2_gain_context", *INVERSE_GAIN):
            table.add_(torch.randn_like(table) * 0.2)


def main() -> None:
    """Write what is missing."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    overfit_files()
    for model in TINY:
        checkpoint = FOLDER / f"tiny-{model}.safetensors"
        if not checkpoint.exists():
            tiny_checkpoint(checkpoint, model)
        coder = Codec(checkpoint, "cpu")
        of = "" if model == "swift" else f"{model}-"
        for number, (name, (h, w)) in enumerate(SIZES.items()):
            if model != "swift" and name not in FEW_SIZES:
                continue
            for quality in QUALITIES if model == "swift" else FEW_QUALITIES:
                write(coder, f"v1-{of}{name}-q{quality}", scene(h, w, number), quality)
            if model == "swift":
                write(coder, f"v1-gray-{name}", scene(h, w, number)[:, :, 0], 66)
        for name, (h, w) in TILED_SIZES.items():
            if name == "300x70" or model == "crossed":
                write(coder, f"v1-{of}tiled-{name}", scene(h, w, 11), 50, tile_bits=8)
        if model == "swift":
            stored = Metadata(b"a profile", b"II*\0\x08\0\0\0\0\0", b"<x:xmpmeta/>")
            for name, (h, w), bits in (("alpha-65x129", (129, 65), 0), ("alpha-tiled-300x70", (70, 300), 8)):
                write(coder, f"v1-{name}", with_alpha(scene(h, w, 12)), 50, tile_bits=bits, stored=stored)
            write(coder, "v1-gray-alpha-1x37", with_alpha(scene(37, 1, 13)[:, :, :1]), 50)
        if model in ("joint", "attention"):
            write(coder, f"v1-{of}gray-260x200", scene(200, 260, 9)[:, :, 0], 66)  # two segments of wavefronts


def overfit_files() -> None:
    """Write those of ``overfit``, fitted in a few iterations."""
    checkpoint = FOLDER / "tiny-overfit.safetensors"
    if not checkpoint.exists():
        write_tiny_overfit(checkpoint)
    coder = Codec(checkpoint, "cpu")
    with mock.patch("codec.overfit.fitting.ITERATIONS", (40,)):
        for number, name in enumerate(FEW_SIZES):
            for quality in FEW_QUALITIES:
                write(coder, f"v1-overfit-{name}-q{quality}", scene(*SIZES[name], number), quality)
        write(coder, "v1-overfit-spiked-63x64", scene(64, 63, 14), 50)  # networks with more zeros than Laplace distributions
        write(coder, "v1-overfit-alpha-65x129", with_alpha(scene(129, 65, 12)), 50)
        write(coder, "v1-overfit-gray-260x200", scene(200, 260, 9)[:, :, 0], 100)  # several segments


def with_alpha(pixels: Pixels) -> Pixels:
    """Return pixels (h, w, C) with an alpha channel behind them: a soft disc, empty where the picture has not got it."""
    h, w, _ = pixels.shape
    y, x = np.mgrid[0:h, 0:w]
    return np.dstack([pixels, np.clip(200 - 6 * np.hypot(y - 30, x - 30), 0, 255).astype(np.uint8)])


def write(coder: Codec, name: str, pixels: Pixels, quality: float, tile_bits: int = 0, stored: Metadata | None = None) -> None:
    """Write one file and the picture that it decodes to, unless they exist; ``tile_bits`` is the tile field of the header."""
    target = FOLDER / f"{name}.lic"
    if target.exists():
        return
    with mock.patch("codec.api.tile_bits", return_value=tile_bits):
        picture = replace(images.load(pixels), metadata=stored or Metadata())
        data = coder.encode_picture(picture, Target(quality=quality))
    images.save(coder.decode(data), target.with_suffix(".png"))
    target.write_bytes(data)


if __name__ == "__main__":
    main()
