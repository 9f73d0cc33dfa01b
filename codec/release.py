"""From a float network to a release checkpoint: integer entropy path, proofs, measured cost, manifest row.

What is measured is measured on real streams.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bitstream.engines import default_engine
from bitstream.errors import UsageError
from bitstream.tables import gaussian_master
from codec.files import locked, write_atomic
from codec.metrics import bpp, ms_ssim_db, psnr_db
from codec.tiles import to_pixels
from models import program
from models.checkpoint import load_checkpoint, save_checkpoint
from models.entropy import IntegerEntropy
from models.integer import EXACT
from models.layers import LevelBias, weight_and_bias
from models.layout import EntropyLayout
from models.manifest import check_name, read_manifest
from models.network import MS_SSIM_SIDE, Network, rate_distortion
from models.normalise import choose_constants
from models.quantise import calibrate, quantise
from models.runtime import LoadedModel, tables_crc, transforms
from models.symbol_tables import symbol_rows
from models.thumbnail import fit_thumbnail
from models.tracing import trace

HEAD = """# Checkpoints, written by `codec export`, `codec import` and `codec models --install`.
# rd: bits of real streams, on the pictures that measured_on says (every 64th of the training data, if it does not).

"""


def release(
    network: Network, model: str, name: str, folder: Path, *, calibration: Iterable[Tensor], held_out: list[Tensor],
    facts: dict[str, Any], dtype: torch.dtype = torch.float16, counted_rows: bool = True, overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write ``name``.safetensors and its manifest row into a folder; return the row.

    ``calibration`` are batches (B, 3, H, W), ``held_out`` pictures (1, 3, H, W) with sides of multiples of 64, in [0, 1];
    ``facts`` go into the row; ``dtype`` is that of the transforms' weights; with ``counted_rows`` CDF rows are counted, and the
    readout of thumbnails fitted, on the calibration batches; else rows stay Gaussian. Raises UsageError if the name is taken
    and ``overwrite`` is false, or the folder cannot be written.
    """
    check_name(folder, name, overwrite=overwrite)
    partial = folder / f".codec-{secrets.token_hex(8)}.partial.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}): choose another") from error
    try:
        network, batches = copy.deepcopy(network), list(calibration)
        choose_constants(network, batches)
        rows = symbol_rows(network, batches) if counted_rows else {}
        tensors = quantise(network, calibrate(network, batches)) | rows | transforms(network, dtype)
        if counted_rows and network.layout().hyper:
            tensors |= fit_thumbnail(network, batches)
        config, crc = dataclasses.asdict(network.cfg), tables_crc(network.layout())
        sha256 = save_checkpoint(
            partial, model=model, config=config, tensors=tensors, constants_crc=crc, transforms=program.pack(trace(network))
        )
        loaded = LoadedModel(load_checkpoint(partial), torch.device("cpu"), encode_dtype=torch.float32)
        rd = measure(loaded, held_out)
        row = {
            "file": f"{name}.safetensors",
            "sha256": sha256,
            "model": model,
            "max_level": loaded.entropy.max_level,
            **facts,
            "parameters": sum(p.numel() for p in network.parameters()),
            "kmac_per_pixel": kmac_per_pixel(network),
            "quantisation_cost_percent": round(quantisation_cost(network, loaded, held_out), 3),
            "exact_products": exactness(loaded),
            "rd": rd,
        }
        with locked(folder):
            check_name(folder, name, overwrite=overwrite)  # another process may have taken it meanwhile
            os.replace(partial, folder / row["file"])
            add_to_manifest(folder / "manifest.toml", name, row)
    finally:
        partial.unlink(missing_ok=True)
    return row


def add_to_manifest(path: Path, name: str, row: dict[str, Any]) -> None:
    """Write a row into a manifest, in place of one of the same name; the other rows stay. Its folder is the caller's alone."""
    rows = read_manifest(path) if path.exists() else {}
    rows[name] = row
    write_atomic(path, (HEAD + tomli_w.dumps(rows)).encode(), overwrite=True)


@torch.inference_mode()
def measure(loaded: LoadedModel, pictures: list[Tensor]) -> list[dict[str, float]]:
    """Return RD points per level over real streams of pictures (1, 3, H, W) in [0, 1]."""
    engine, cfg = default_engine(), loaded.config
    rows = []
    for level in range(cfg.levels):
        points: list[tuple[float, float]] = []
        similarities: list[float] = []
        for x in pictures:
            h, w = x.shape[-2:]
            payloads, crc = loaded.compress(x, level * 256, engine)
            pair = to_pixels(x), to_pixels(loaded.decompress(payloads, level * 256, h, w, engine, crc))
            points.append((bpp(sum(map(len, payloads)), w, h), psnr_db(*pair)))
            if min(h, w) > MS_SSIM_SIDE:
                similarities.append(ms_ssim_db(*pair))
        bpp_mean, psnr_mean = np.mean(points, axis=0)
        lmbda = float(cfg.lmbda(torch.tensor(float(level))))
        row = {"lmbda": round(lmbda, 6), "bpp": round(float(bpp_mean), 4), "psnr_db": round(float(psnr_mean), 3)}
        rows.append(row | ({"ms_ssim_db": round(float(np.mean(similarities)), 3)} if similarities else {}))
    return rows


@torch.inference_mode()
def quantisation_cost(network: Network, loaded: LoadedModel, pictures: list[Tensor]) -> float:
    """Return the bits that the integer path costs over the float one, in percent of pictures as in ``measure``.

    Both with Gaussians: CDF rows that were counted would hide what the integers cost.
    """
    entropy = loaded.entropy
    if isinstance(entropy, IntegerEntropy):
        loaded.entropy = dataclasses.replace(entropy, y_table=gaussian_master())
    float_bits = real_bits = 0.0
    try:
        for level in range(network.cfg.levels):
            for x in pictures:
                estimate, _ = rate_distortion(network(x, torch.tensor([float(level)]), reconstruct=False), x)
                float_bits += float(estimate) * x.shape[-2] * x.shape[-1]
                real_bits += 8 * sum(map(len, loaded.compress(x, level * 256, default_engine())[0]))
    finally:
        loaded.entropy = entropy
    return 100 * (real_bits / float_bits - 1)


def exactness(loaded: LoadedModel) -> dict[str, Any]:
    """Return, per integer layer, the number of products it is cut into and the largest proven share of 2^24."""
    out = {}
    for name, layer in getattr(loaded.entropy, "layers", {}).items():  # ``factorized`` has none
        bounds = [int(layer.weight[p].abs().long().sum(0).max()) * layer.act_max for p in layer.parts]
        out[name] = {"parts": len(layer.parts), "bound": round(max(bounds) / EXACT, 4)}
    return out


def _share_of_taps(layout: EntropyLayout) -> float:
    """Return how much of the context's convolution is computed: all positions of half the channels, or the taps in use."""
    if layout.order == "crossed":
        return 1 / 2
    taps = len(layout.taps) / 25
    return taps / 2 if layout.order == "checkerboard" else taps  # half of the positions, or all


@torch.inference_mode()
def kmac_per_pixel(model: Network, side: int = 256) -> dict[str, float]:
    """Return thousands of multiply-accumulates per pixel of encoding and decoding, and of each network, by torch's counter."""
    model = copy.deepcopy(model).requires_grad_(False)  # torch's counter stumbles over parameters that are inputs, as GDN's
    layout, m = model.layout(), model.cfg.M
    layers = {name: layer.layer if isinstance(layer, LevelBias) else layer for name, layer in model.entropy_layers().items()}
    y = torch.rand(1, m, side // 16, side // 16)

    def count(function: Any, *inputs: Tensor) -> float:
        with FlopCounterMode(display=False) as counter:
            function(*inputs)
        return counter.get_total_flops() / 2 / side**2 / 1000

    parts = {"g_a": count(model.g_a, torch.rand(1, 3, side, side)), "g_s": count(model.g_s, y)}
    shared = 0.0
    if layout.hyper:
        parts["h_a"] = count(model.h_a, y)
        parts["h_s"] = count(model.h_s, torch.rand(1, model.cfg.N, side // 64, side // 64))
        if layout.context:
            parts["context"] = count(layers["context"], y) * _share_of_taps(layout)
            chosen = [layer for name, layer in layers.items() if name.startswith("parameters")]
            widths = [weight_and_bias(layer)[0].shape[1] for layer in chosen]
            costs = [
                count(layer, torch.rand(1, width, side // 16, side // 16)) for layer, width in zip(chosen, widths, strict=True)
            ]
            parts["parameters"] = (2 if layout.order == "crossed" else 1) * sum(costs[:-1]) + costs[-1]
        shared = sum(parts.get(name, 0.0) for name in ("h_s", "context", "parameters"))
    totals = {"encode": parts["g_a"] + parts.get("h_a", 0.0) + shared, "decode": parts["g_s"] + shared}
    return {key: round(value, 2) for key, value in (totals | parts).items()}
