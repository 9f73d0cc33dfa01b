"""From a training state to a release checkpoint: EMA weights, integer entropy path, proofs, measured cost, manifest.

What is measured is measured on real streams of every 64th picture of the data (those that ``codec train`` holds out when no
validation folder is given), and written into the manifest.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import checkpoints
from bitstream.engines import default_engine
from bitstream.errors import CodecError, UsageError
from codec.metrics import bpp, psnr_db
from codec.training.data import CropStore, find_images, load_rgb
from codec.training.loop import VALIDATION_SHARE, rate_distortion
from codec.training.recipe import Recipe
from codec.training.state import read_state
from models.checkpoint import load_checkpoint, save_checkpoint
from models.integer import EXACT
from models.layers import weight_and_bias
from models.manifest import read_manifest
from models.network import Network
from models.quantise import calibrate, quantise
from models.registry import build
from models.runtime import LoadedModel, tables_crc, transforms

CALIBRATION_BATCHES = 32
CALIBRATION_PICTURES = 400
CALIBRATION_CROP = 256


def export_state(state_path: Path, data: Path, name: str, out: Path | None = None) -> dict[str, Any]:
    """Write ``name``.safetensors and its manifest row into ``out`` (default: the installed checkpoints); return the row.

    Raises UsageError if the state or the pictures cannot be read.
    """
    folder = out or checkpoints.FOLDER
    state = read_state(state_path, torch.device("cpu"))
    recipe, model = trained_model(state_path, state)
    paths = find_images(data, recipe.crop)
    held_out = paths[::VALIDATION_SHARE]
    held = set(held_out)
    calibration = [p for p in paths if p not in held][:CALIBRATION_PICTURES]
    if not calibration:
        raise UsageError(f"{data}: {len(paths)} pictures, all held out for measuring: add more")
    tensors = quantise(model, calibrate(model, _crops(calibration, recipe.crop)))
    tensors |= transforms(model, torch.float16)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}.partial.safetensors"
    try:
        config = dataclasses.asdict(model.cfg)
        sha256 = save_checkpoint(partial, model=recipe.model, config=config, tensors=tensors, constants_crc=tables_crc(model.layout()))
        loaded = LoadedModel(load_checkpoint(partial), torch.device("cpu"), encode_dtype=torch.float32)
        rd, cost = measure(model, loaded, held_out)
        row = {
            "file": f"{name}.safetensors",
            "sha256": sha256,
            "model": recipe.model,
            "max_level": loaded.entropy.max_level,
            "steps": state["step"],
            "minutes": round(state["minutes"], 1),
            "data": f"{state['pictures']} photographs, crops of {recipe.crop}",
            "parameters": sum(p.numel() for p in model.parameters()),
            "kmac_per_pixel": kmac_per_pixel(model),
            "quantisation_cost_percent": round(cost, 3),
            "exact_products": exactness(loaded),
            "rd": rd,
            "recipe": state["recipe"],
        }
        os.replace(partial, folder / row["file"])
    finally:
        partial.unlink(missing_ok=True)
    add_to_manifest(folder / "manifest.toml", name, row)
    return row


def trained_model(path: Path, state: dict[str, Any]) -> tuple[Recipe, Network]:
    """Return the recipe and the network with averaged weights of a state. Raises UsageError if they do not fit."""
    try:
        recipe = Recipe(**state["recipe"])
        model = build(recipe.model, recipe.config).eval()
        model.load_state_dict(state["ema"])
    except (RuntimeError, TypeError, CodecError) as error:
        raise UsageError(f"{path}: not a training state of this codec ({error})") from error
    return recipe, model


def _crops(paths: list[Path], crop: int) -> Iterator[Tensor]:
    store, rng = CropStore(paths, torch.device("cpu")), np.random.default_rng(0)
    return (store.batch(4, min(CALIBRATION_CROP, crop), rng) for _ in range(CALIBRATION_BATCHES))


def add_to_manifest(path: Path, name: str, row: dict[str, Any]) -> None:
    """Write a row into a manifest, in place of one of the same name; the other rows stay."""
    rows = read_manifest(path) if path.exists() else {}
    rows[name] = row
    head = "# Released checkpoints, written by `codec export`. rd: bits of real streams, every 64th picture of the data.\n\n"
    partial = path.with_suffix(".partial")
    partial.write_text(head + tomli_w.dumps(rows), encoding="utf-8")
    os.replace(partial, path)


@torch.inference_mode()
def measure(model: Network, loaded: LoadedModel, paths: list[Path], side: int = 512) -> tuple[list[dict[str, float]], float]:
    """Return RD points per level over real streams, and the bits that the integer path costs over the float one in percent."""
    engine = default_engine()
    rows = []
    float_bits = real_bits = 0.0
    for level in range(model.cfg.levels):
        points = []
        for path in paths:
            image = load_rgb(path)[:, :side, :side]
            image = image[:, : image.shape[1] // 64 * 64, : image.shape[2] // 64 * 64]
            x = image[None].float() / 255
            h, w = x.shape[-2:]
            payloads, crc = loaded.compress(x, level * 256, engine)
            x_hat = loaded.decompress(payloads, level * 256, h, w, engine, crc)
            decoded = (x_hat[0] * 255).round().clamp(0, 255).to(torch.uint8)
            n_bytes = sum(map(len, payloads))
            estimate, _ = rate_distortion(model(x, torch.tensor([float(level)])), x)
            float_bits += float(estimate) * h * w
            real_bits += 8 * n_bytes
            points.append((bpp(n_bytes, w, h), psnr_db(image.numpy(), decoded.numpy())))
        bpp_mean, psnr_mean = np.mean(points, axis=0)
        lmbda = float(model.cfg.lmbda(torch.tensor(float(level))))
        rows.append({"lmbda": round(lmbda, 6), "bpp": round(float(bpp_mean), 4), "psnr_db": round(float(psnr_mean), 3)})
    return rows, 100 * (real_bits / float_bits - 1)


def exactness(loaded: LoadedModel) -> dict[str, Any]:
    """Return, per integer layer, the number of products it is cut into and the largest proven share of 2^24."""
    out = {}
    for name, layer in getattr(loaded.entropy, "layers", {}).items():  # ``factorized`` has none
        bounds = [int(layer.weight[p].abs().long().sum(0).max()) * layer.act_max for p in layer.parts]
        out[name] = {"parts": len(layer.parts), "bound": round(max(bounds) / EXACT, 4)}
    return out


@torch.inference_mode()
def kmac_per_pixel(model: Network, side: int = 256) -> dict[str, float]:
    """Return thousands of multiply-accumulates per pixel of encoding and decoding, and of each network, by torch's counter."""
    layout, m = model.layout(), model.cfg.M
    layers = model.entropy_layers()
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
        if layout.context:  # twelve of its taps count, for checkerboards at half of the positions
            parts["context"] = count(layers["context"], y) * 12 / 25 / (2 if layout.order == "checkerboard" else 1)
            chosen = [layer for name, layer in layers.items() if name.startswith("parameters")]
            widths = [weight_and_bias(layer)[0].shape[1] for layer in chosen]
            parts["parameters"] = sum(
                count(layer, torch.rand(1, width, side // 16, side // 16)) for layer, width in zip(chosen, widths, strict=True)
            )
        shared = sum(parts.get(name, 0.0) for name in ("h_s", "context", "parameters"))
    totals = {"encode": parts["g_a"] + parts.get("h_a", 0.0) + shared, "decode": parts["g_s"] + shared}
    return {key: round(value, 2) for key, value in (totals | parts).items()}
