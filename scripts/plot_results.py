"""Draw the rate-distortion curves of README.md from results/*.json: docs/kodak-psnr.svg and docs/kodak-ms-ssim.svg.

    python scripts/plot_results.py

Solid lines were run here, dashed ones are quoted. Needs the ``bench`` extra.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
MEASURES = {"psnr": ("psnr_db", "PSNR (dB)", (25, 42)), "ms-ssim": ("ms_ssim_db", "MS-SSIM (dB)", (8, 26))}
BPP_MAX = 2.2


def quoted_values(curve: dict[str, Any], key: str) -> list[float]:
    """Return a measure of a published curve in dB, empty if it was not published."""
    if key == "psnr_db":
        return curve["psnr_db"]
    return [-10 * math.log10(1 - value) for value in curve["ms_ssim"]]


def draw(name: str) -> None:
    """Write one plot."""
    key, label, limits = MEASURES[name]
    kodak = json.loads((ROOT / "results" / "kodak.json").read_text())
    quoted = json.loads((ROOT / "results" / "quoted_curves.json").read_text())
    figure, axes = plt.subplots(figsize=(8, 6))
    for codec, rows in kodak["averages"].items():
        width = 2.5 if codec in kodak["checkpoints"] else 1.5
        axes.plot([r["bpp"] for r in rows], [r[key] for r in rows], linewidth=width, label=codec)
    for curve in quoted:
        values = quoted_values(curve, key)
        if values and (key == "ms_ssim_db" or "ms-ssim opt" not in curve["name"]):
            axes.plot(curve["bpp"], values, "--", linewidth=0.9, label=f"{curve['name']} (quoted)")
    axes.set(
        xlim=(0, BPP_MAX), ylim=limits, xlabel="bits per pixel", ylabel=label, title=f"Kodak, {kodak['pictures']} pictures"
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / f"kodak-{name}.svg", metadata={"Date": None})


def main() -> None:
    """Write both plots."""
    plt.rcParams["svg.hashsalt"] = "kodak"  # the same results give the same file
    for name in MEASURES:
        draw(name)


if __name__ == "__main__":
    main()
