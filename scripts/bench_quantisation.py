"""Measure what the integer entropy path costs: bits of real streams against the float networks' own estimate.

    python scripts/bench_quantisation.py STATE KODAK_FOLDER -o results/quantisation.json

STATE is the training state that the installed checkpoint was exported from. Both sides use the same float32 transforms and
the same rounding; sides are cut to multiples of 64.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch

from codec.release import measure, quantisation_cost
from codec.training.data import load_rgb
from codec.training.export import trained_model
from codec.training.state import read_state
from models.checkpoint import load_checkpoint
from models.runtime import LoadedModel


@click.command()
@click.argument("state", type=click.Path(exists=True, path_type=Path))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("results/quantisation.json"), show_default=True)
@click.option("--model", default="swift", show_default=True)
def main(state: Path, folder: Path, out: Path, model: str) -> None:
    """Write the cost in percent and the RD points per level as JSON."""
    cpu = torch.device("cpu")
    _, network = trained_model(state, read_state(state, cpu))
    loaded = LoadedModel(load_checkpoint(model), cpu, encode_dtype=torch.float32)
    paths = sorted(folder.glob("*.png"))
    pictures = [load_rgb(path)[None].float() / 255 for path in paths]
    pictures = [x[..., : x.shape[2] // 64 * 64, : x.shape[3] // 64 * 64] for x in pictures]
    rd, cost = measure(loaded, pictures), quantisation_cost(network, loaded, pictures)
    result = {
        "checkpoint": loaded.checkpoint.sha256,
        "pictures": len(paths),
        "quantisation_cost_percent": round(cost, 3),
        "levels": rd,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
