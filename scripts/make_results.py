"""Write README's results section from results/*.json. Nothing in it is typed by hand.

python scripts/make_results.py            # rewrite README.md
python scripts/make_results.py --check    # exit 1 if README.md does not match the JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- results: written by scripts/make_results.py from results/*.json -->\n"
END = "<!-- end of results -->\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def rate_distortion(kodak: dict[str, Any]) -> str:
    """Return the Kodak section."""
    points = kodak["averages"]["swift"]
    rows = [[str(p["quality"]), f"{p['bpp']:.3f}", f"{p['psnr_db']:.2f}"] for p in points]
    bd = kodak["bd_rate_percent"]
    against = [[name, f"{value:+.1f} %"] for name, value in bd.items()]
    return (
        f"Mean of the {kodak['pictures']} Kodak pictures, real files, PSNR on decoded RGB "
        f"(torch {kodak['versions']['torch']}, Pillow {kodak['versions']['pillow']}):\n\n"
        + table(["quality", "bpp", "PSNR (dB)"], rows)
        + "\nBD-rate of `swift` against what Pillow writes (4:4:4 where the format can; negative: fewer bits):\n\n"
        + table(["against", "BD-rate"], against)
    )


def speed(result: dict[str, Any]) -> str:
    """Return the speed section."""
    picture = result["picture"]
    rows = [
        [f"{r['quality']:g}", f"{r['bpp']:.2f}"]
        + [f"{r['median_s'][key] * 1000:.0f}" for key in ("encode", "decode", "peer_encode", "peer_decode")]
        + [f"{r['ratio'][key]:.2f}" for key in ("encode", "decode")]
        for r in result["rows"]
    ]
    head = ["quality", "bpp", "encode (ms)", "decode (ms)", "peer encode", "peer decode", "encode ratio", "decode ratio"]
    return (
        f"In-process times for {picture['width']}×{picture['height']} pixels, {result['threads']} threads, "
        f"{result['machine']['cpu']}, medians of {result['runs']} runs, beside {result['peer']} in the same run. "
        "On CPUs with AMX the encoder's networks run in bf16.\n\n" + table(head, rows)
    )


@click.command()
@click.option("--check", is_flag=True)
def main(check: bool) -> None:
    """Rewrite the section between the markers."""
    kodak, times = (json.loads((ROOT / "results" / f"{name}.json").read_text()) for name in ("kodak", "speed"))
    section = f"\n{rate_distortion(kodak)}\n{speed(times)}\n"
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    new = head + BEGIN + section + END + tail
    if check and new != text:
        sys.exit("README.md does not match results/*.json: run scripts/make_results.py")
    if not check:
        path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
