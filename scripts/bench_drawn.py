"""BD-rates on pictures that are no photographs, by kind: from the rows of an evaluation to results/drawn.json.

python scripts/make_drawn.py KODAK DRAWN --count 4 --side 512 --seed 1
codec evaluate DRAWN --model swift --peers jpeg,webp,avif,jxl -o OUT
python scripts/bench_drawn.py OUT/rows.jsonl -o results/drawn.json
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import click

from codec.evaluation.curves import averages, bd_rate_percent

MODEL = "swift"


@click.command()
@click.argument("rows", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--seed", default=1, show_default=True, help="That the pictures were made with.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
def main(rows: Path, seed: int, out: Path) -> None:
    """Write the BD-rate of swift against each other codec, by PSNR, for each kind of picture and for all."""
    found = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    kinds: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in found:
        for kind in (Path(row["image"]).stem.partition("-")[0], "all"):
            kinds[kind].add((row["image"], row["crc"]))
    result = {}
    for kind, pictures in sorted(kinds.items()):
        curves = averages(found, pictures, {})
        rates = {name: bd_rate_percent(curve, curves[MODEL]) for name, curve in curves.items() if name != MODEL}
        rounded = {name: None if rate is None else round(rate, 2) for name, rate in rates.items()}
        result[kind] = {"pictures": len(pictures), "bd_rate_percent": rounded}
        identity = curves[MODEL][0]["identity"]
        click.echo(f"{kind}: {rounded}")
    facts = {"model": MODEL, "identity": identity, "seed": seed, "kinds": result}
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
