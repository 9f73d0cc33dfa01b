"""The results in docs/models.md."""

from __future__ import annotations

from typing import Any

import numpy as np
from measured import RESULTS, load

from codec.evaluation.curves import Curve, bd_rate_percent, quoted
from codec.evaluation.report import bd_table, table
from models.manifest import MANIFEST, read_manifest

ORDER = ("factorized", "hyperprior", "checkerboard", "joint", "attention", "swift")
QUOTED_OF = {
    "factorized": ("course report 2022, factorized", "bmshj2018-factorized"),
    "hyperprior": ("course report 2022, hyperprior", "bmshj2018-hyperprior"),
    "joint": ("mbt2018",),
    "checkerboard": ("paper: minnen2018-checkerboard_mse",),
    "attention": ("cheng2020-attn",),
}


def section() -> str:
    """Return all of it."""
    kodak, published = load("kodak/summary.json"), quoted(RESULTS / "quoted_curves.json")
    rows = read_manifest(MANIFEST)
    codecs = kodak["codecs"]
    facts = codecs[ORDER[-1]]
    head = ["model", "N/M", "parameters (M)", "kMAC/pixel enc", "kMAC/pixel dec", "training steps", "cost of integers"]
    head += ["encode (s)", "decode (s)"]
    matrix = {f"`{name}`": kodak["bd_rate_percent"]["psnr_db"][name] for name in ORDER}
    out = (
        f"Means over the Kodak pictures, real files, {facts['threads']} threads, torch {facts['versions']['torch']}, "
        f"{facts['machine']}. kMAC per pixel by torch's flop counter. "
        "Training steps: of the weights that it began with, and its own.\n\n"
        + table(head, [overview(name, rows[name], codecs[name]["points"]) for name in ORDER])
        + "\nBits at equal PSNR, BD-rate in percent of the row against the column (negative: fewer bits):\n\n"
        + bd_table(matrix, ORDER)
    )
    for name in ORDER:
        out += f"\n### `{name}`, measured\n\n" + report_table(codecs[name]["points"])
        for quoted_name in QUOTED_OF.get(name, ()):
            out += quotation(quoted_name, published[quoted_name], codecs[name]["points"])
    return out + contexts(load("contexts.json")) + overfit(load("overfit.json"))


def overview(name: str, row: dict[str, Any], points: Curve) -> list[str]:
    """Return the cells of a model, of its manifest row and its measured curve."""
    config, macs = row["recipe"].get("config", {}), row["kmac_per_pixel"]
    before = f"{row['start']['step']} + " if "step" in row.get("start", {}) else ""  # steps of the weights that it began with
    width = f"{config['N']}/{config['M']}" if "N" in config else "192/320"
    seconds = [f"{np.mean([point[key] for point in points]):.3f}" for key in ("encode_s", "decode_s")]
    return [f"`{name}`", width, f"{row['parameters'] / 1e6:.1f}", f"{macs['encode']:.1f}", f"{macs['decode']:.1f}",
            f"{before}{row['steps']}", f"{row['quantisation_cost_percent']:+.2f} %", *seconds]  # fmt: skip


def report_table(points: Curve) -> str:
    """Return the course report's table of a model."""
    cells = [
        [f"{p['lmbda']:g}", f"{p['pixels']:.0f}", f"{8 * p['bytes']:.0f}", f"{p['bpp']:.4f}", f"{p['psnr_db']:.2f}",
         f"{p['encode_s']:.3f}", f"{p['decode_s']:.3f}"]
        for p in points
    ]  # fmt: skip
    return table(["λ", "pixels", "bits", "bpp", "PSNR (dB)", "encode (s)", "decode (s)"], cells)


def quotation(name: str, curve: Curve, points: Curve) -> str:
    """Return the sentence on a published curve."""
    source = load("quoted_curves.json")[name]["source"]
    pairs = ", ".join(f"{point['bpp']:.3f}/{point['psnr_db']:.2f}" for point in curve)
    value = bd_rate_percent(curve, points)
    against = "" if value is None else f" Ours against it: {value:+.1f} %."
    return f"\nQuoted, {name} ({source}), bpp/dB: {pairs}.{against}\n"


def contexts(result: dict[str, Any]) -> str:
    """Return the section on the speed of contexts."""
    seconds = [[name, f"{s['encode']:.3f}", f"{s['decode']:.3f}"] for name, s in result["median_s"].items()]
    faster, ratio, streams = result["times_faster"], result["checkerboard_to_hyperprior"], result["joint_streams"]
    return (
        f"\n### Contexts\n\n{result['picture']['width']}×{result['picture']['height']} pixels, N = M = 192, "
        f"{result['threads']} threads, "
        f"{result['machine']['cpu']}, medians of {result['runs']} runs that alternate:\n\n"
        + table(["", "encode (s)", "decode (s)"], seconds)
        + f"\n`joint` encodes {faster['encode']:.1f} and decodes {faster['decode']:.1f} times faster than CompressAI's "
        "mbt2018; "
        f"`checkerboard` decodes in {ratio['decode']:.2f} of `hyperprior`'s time. The segments of wavefronts cost "
        f"{streams['segments_cost_percent']:.2f} % of the bytes at {streams['bpp']:.2f} bpp.\n"
    )


def overfit(result: dict[str, Any]) -> str:
    """Return iterations against BD-rates and seconds, and the points at each of them."""
    row = result["rows"][0]
    numbers = ", ".join(name.removeprefix("kodim").removesuffix(".png") for name in result["pictures"])
    out = (
        f"\n### `overfit`, measured\n\nMeans over the Kodak pictures {numbers}, real files decoded in another process, "
        f"{row['threads']} thread, two fits side by side, {row['machine']}. BD-rate (of the points "
        "below, monotone interpolation) against AVIF (Pillow, speed 4, 4:4:4) and `swift` on the same pictures.\n\n"
    )
    lines, points = [], []
    for entry in result["efforts"]:
        rates = entry["bd_rate_percent"].items()
        against = {name: "–" if value is None else f"{value:+.1f} %" for name, value in rates}
        seconds = sum(point["encode_s"] for point in entry["points"]) / len(entry["points"])
        decode = sum(point["decode_s"] for point in entry["points"]) / len(entry["points"])
        lines.append(
            [
                str(entry["effort"]),
                str(entry["iterations"]),
                against["avif"],
                against["swift"],
                f"{seconds:.0f}",
                f"{entry['iterations'] / seconds:.1f}",
                f"{decode:.2f}",
            ]
        )
        for point in entry["points"]:
            share = f"{100 * point['networks_share']:.1f} %"
            points.append(
                [str(entry["effort"]), f"{point['quality']:g}", f"{point['bpp']:.4f}", f"{point['psnr_db']:.2f}", share]
            )
    out += table(
        [
            "effort",
            "iterations",
            "against AVIF",
            "against `swift`",
            "encode (s)",
            "iterations a second, all included",
            "decode (s)",
        ],
        lines,
    )
    out += "\n" + table(["effort", "quality", "bpp", "PSNR (dB)", "share of the networks"], points)
    if result.get("asked"):
        out += "\nTargets; bits against files of qualities at the same PSNR, where these lie on both sides of it:\n\n"
        lines = []
        for entry in result["asked"]:
            unit = "dB" if entry["asked"] == "psnr" else "%"
            more = "–" if entry["more_bits_percent"] is None else f"{entry['more_bits_percent']:+.1f} % ({entry['compared']})"
            misses = f"{entry['least_miss']:+.2f} … {entry['most_miss']:+.2f} {unit}"
            asked = f"`--{entry['asked']} {entry['value']:g}`"
            lines.append([str(entry["effort"]), asked, str(entry["pictures"]), misses, more, f"{entry['encode_s']:.0f}"])
        out += table(["effort", "asked", "pictures", "missed by", "bits (pictures)", "encode (s)"], lines)
    start = load("overfit_start.json")
    lines = [
        [row["start"], str(row["iterations"]), f"{row['lagrangian']:.4f}", f"{row['bpp']:.4f}", f"{row['psnr_db']:.2f}"]
        for row in start["rows"]
    ]
    of = f"{start['picture']} at quality {start['quality']:g}"
    out += f"\nWhat the trained start saves: λ·255²·MSE + bpp of {of}, by estimate:\n\n"
    return out + table(["networks and analysis", "iterations", "Lagrangian", "bpp", "PSNR (dB)"], lines)
