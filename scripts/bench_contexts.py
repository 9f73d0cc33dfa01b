"""Time the context models against CompressAI's pixel-by-pixel loop, and count the bytes that wavefronts cost.

    python scripts/bench_contexts.py PICTURE -o results/contexts.json

One picture of 768×512, two threads, N = M = 192 as CompressAI's ``mbt2018`` has at its lower qualities. Networks have the
weights of a Karhunen–Loève start (ours) or random ones (CompressAI's): a time does not need trained ones. Our ``joint`` and
CompressAI's ``mbt2018`` alternate in one run, as do ``checkerboard`` and ``hyperprior``; medians. Streams: bytes of the
installed ``joint`` checkpoint at about 0.3 bpp against those with one segment, that is one stream for each band.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import compressai
import numpy as np
import torch
from compressai.zoo import mbt2018
from PIL import Image
from torch import Tensor

from bitstream.engines import default_engine
from codec.machine import cpu_name
from models import program, schedule
from models.checkpoint import save_checkpoint
from models.klt import klt_start
from models.layers import weight_and_bias
from models.quantise import calibrate, quantise
from models.registry import build
from models.runtime import LoadedModel, tables_crc, transforms
from models.tracing import trace

LEVEL = 256
CPU = torch.device("cpu")


def started(model: str, x: Tensor) -> LoadedModel:
    """Return a model of N = M = 192 that starts from the picture's own statistics, with predictions that matter."""
    torch.manual_seed(0)
    crops = [x[..., i : i + 128, j : j + 128] for i in range(0, x.shape[2] - 127, 96) for j in range(0, x.shape[3] - 127, 96)]
    network = build(model, {"N": 192, "M": 192}).eval()
    klt_start(network, crops)
    with torch.no_grad():
        weight_and_bias(list(network.entropy_layers().values())[-1])[0].normal_(0, 0.02)
    tensors = quantise(network, calibrate(network, crops[:6])) | transforms(network, torch.float16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{model}.safetensors"
        config, crc = dataclasses.asdict(network.cfg), tables_crc(network.layout())
        programs = program.pack(trace(network))
        save_checkpoint(path, model=model, config=config, tensors=tensors, constants_crc=crc, transforms=programs)
        return LoadedModel.load(path, CPU)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds and result of one call."""
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def alternate(first: dict[str, Callable[..., Any]], second: dict[str, Callable[..., Any]], runs: int) -> list[dict[str, float]]:
    """Return the median seconds of "encode" and "decode" of two codecs that take turns."""
    seconds: list[dict[str, list[float]]] = [{"encode": [], "decode": []}, {"encode": [], "decode": []}]
    for run in range(runs + 1):
        for codec, kept in zip((first, second), seconds, strict=True):
            t_encode, data = timed(codec["encode"])
            t_decode, _ = timed(lambda codec=codec, data=data: codec["decode"](data))
            if run:  # one to warm up
                kept["encode"].append(t_encode)
                kept["decode"].append(t_decode)
    return [{key: round(statistics.median(values), 4) for key, values in kept.items()} for kept in seconds]


def ours(model: LoadedModel, x: Tensor) -> dict[str, Callable[..., Any]]:
    """Return encode and decode of one of our models."""
    engine, (h, w) = default_engine(), x.shape[-2:]
    return {
        "encode": lambda: model.compress(x, LEVEL, engine),
        "decode": lambda coded: model.decompress(coded[0], LEVEL, h, w, engine, coded[1]),
    }


def stream_cost(name: str, x: Tensor) -> dict[str, float]:
    """Return bpp of a checkpoint near 0.3 bpp, and percent of the bytes that segments cost against one for all wavefronts."""
    model, engine = LoadedModel.load(name, CPU), default_engine()
    pixels = x.shape[-2] * x.shape[-1]
    rates = {
        level: 8 * sum(map(len, model.compress(x, level, engine)[0])) / pixels
        for level in range(0, model.entropy.max_level + 1, 64)
    }
    level = min(rates, key=lambda key: abs(rates[key] - 0.3))
    whole = schedule.POSITIONS
    try:
        schedule.POSITIONS = 2**30
        single = 8 * sum(map(len, model.compress(x, level, engine)[0])) / pixels
    finally:
        schedule.POSITIONS = whole
    return {"bpp": round(rates[level], 4), "segments_cost_percent": round(100 * (rates[level] / single - 1), 2)}


@click.command()
@click.argument("picture", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("results/contexts.json"), show_default=True)
@click.option("--runs", type=int, default=5, show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
def main(picture: Path, out: Path, runs: int, threads: int) -> None:
    """Write medians and ratios as JSON."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    x = torch.from_numpy(np.array(Image.open(picture).convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    peer = mbt2018(quality=1, pretrained=False).eval()
    peer.update(force=True)
    theirs = {"encode": lambda: peer.compress(x), "decode": lambda packed: peer.decompress(packed["strings"], packed["shape"])}
    with torch.inference_mode():
        joint, compressai_joint = alternate(ours(started("joint", x), x), theirs, runs)
        checkerboard, hyperprior = alternate(ours(started("checkerboard", x), x), ours(started("hyperprior", x), x), runs)
        streams = stream_cost("joint", x)
    result = {
        "picture": {"name": picture.stem, "width": x.shape[3], "height": x.shape[2]},
        "threads": threads,
        "runs": runs,
        "machine": {"cpu": cpu_name(), "system": platform.system()},
        "versions": {"torch": torch.__version__, "compressai": compressai.__version__},
        "median_s": {
            "joint": joint, "compressai mbt2018": compressai_joint, "checkerboard": checkerboard, "hyperprior": hyperprior
        },
        "times_faster": {key: round(compressai_joint[key] / joint[key], 2) for key in joint},
        "checkerboard_to_hyperprior": {key: round(checkerboard[key] / hyperprior[key], 3) for key in hyperprior},
        "joint_streams": streams,
    }  # fmt: skip
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
