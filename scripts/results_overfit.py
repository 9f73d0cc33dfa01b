"""The section of docs/models.md on `overfit`, from results/overfit.json."""

from __future__ import annotations

from typing import Any


def overfit(result: dict[str, Any], table: Any) -> str:
    """Return iterations against rate differences and seconds, and the points at each of them."""
    row = result["rows"][0]
    numbers = ", ".join(name.removeprefix("kodim").removesuffix(".png") for name in result["pictures"])
    out = (
        f"\n### `overfit`, measured\n\nMeans over the Kodak pictures {numbers}, real files decoded in another process, "
        f"{row['threads']} thread, {row['machine']}. Bits at equal PSNR against AVIF (Pillow, speed 4, 4:4:4) and `swift` on the "
        "same pictures, a mean over the points; for a BD-rate there are too few.\n\n"
    )
    lines, points = [], []
    for entry in result["efforts"]:
        against = {
            name: "–" if value is None else f"{value:+.1f} %" for name, value in entry["rate_difference_percent"].items()
        }
        seconds = sum(point["encode_s"] for point in entry["points"]) / len(entry["points"])
        decode = sum(point["decode_s"] for point in entry["points"]) / len(entry["points"])
        lines.append(
            [entry["effort"], entry["iterations"], against["avif"], against["swift"], f"{seconds:.0f}", f"{decode:.2f}"]
        )
        for point in entry["points"]:
            share = f"{100 * point['networks_share']:.1f} %"
            points.append([entry["effort"], f"{point['quality']:g}", f"{point['bpp']:.4f}", f"{point['psnr_db']:.2f}", share])
    out += table(["effort", "iterations", "against AVIF", "against `swift`", "encode (s)", "decode (s)"], lines)
    return out + "\n" + table(["effort", "quality", "bpp", "PSNR (dB)", "share of the networks"], points)
