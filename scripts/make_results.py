"""Write the results in README.md and docs/models.md from results/*.json and the manifest. Nothing in them is typed by hand.

python scripts/make_results.py            # rewrite them
python scripts/make_results.py --check    # exit 1 if one does not match the JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bjontegaard
import click
import numpy as np

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- results: written by scripts/make_results.py from results/*.json -->\n"
END = "<!-- end of results -->\n"
HEADS = ("bpp", "PSNR (dB)", "MS-SSIM (dB)")
ORDER = ("factorized", "hyperprior", "checkerboard", "joint", "attention", "swift")


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def rate_distortion(kodak: dict[str, Any]) -> str:
    """Return the Kodak section."""
    versions, rows = kodak["versions"], []
    models = list(kodak["bd_rate_percent"])
    for points in zip(*(kodak["averages"][model] for model in models), strict=True):
        cells = [[f"{p['bpp']:.3f}", f"{p['psnr_db']:.2f}", f"{p['ms_ssim_db']:.2f}"] for p in points]
        rows.append([str(points[0]["quality"]), *(cell for part in cells for cell in part)])
    head = ["quality", *(f"`{model}` {what}" if what == "bpp" else what for model in models for what in HEADS)]
    out = (
        f"Means over the {kodak['pictures']} Kodak pictures, real files, on decoded RGB; MS-SSIM as −10·log10(1 − MS-SSIM) "
        f"(torch {versions['torch']}, Pillow {versions['pillow']}). `swift` is trained for PSNR, `swift-ms-ssim` for MS-SSIM:"
        "\n\n" + table(head, rows)
    )
    peers = list(next(iter(kodak["bd_rate_percent"].values()))["psnr_db"])
    against = [
        [f"`{model}`, {label}", *(f"{kodak['bd_rate_percent'][model][measure][peer]:+.1f} %" for peer in peers)]
        for model in models
        for measure, label in (("psnr_db", "PSNR"), ("ms_ssim_db", "MS-SSIM"))
    ]
    settings = "; ".join(f"{name} {json.dumps(value)}" for name, value in kodak["settings"].items())
    out += (
        "\nBD-rate against codecs that were run here (negative: fewer bits), through Pillow and its JPEG XL plugin, with "
        f"{settings}:\n\n" + table(["", *peers], against)
    )
    quoted = [curve for curve in quoted_curves() if "ms-ssim opt" not in curve["name"]]
    swift = kodak["averages"]["swift"]
    values = [[f"{curve['name']}", f"{bd_rate(points_of(curve), swift):+.1f} %"] for curve in quoted]
    out += (
        "\nBD-rate of `swift` by PSNR against published curves, quoted, not run here (sources in "
        "`results/quoted_curves.json`):\n\n" + table(["quoted", "BD-rate"], values)
    )
    return out + "\n![PSNR on Kodak](docs/kodak-psnr.svg)\n![MS-SSIM on Kodak](docs/kodak-ms-ssim.svg)\n"


def quoted_curves() -> list[dict[str, Any]]:
    """Return the published curves."""
    return json.loads((ROOT / "results" / "quoted_curves.json").read_text())


def points_of(curve: dict[str, Any]) -> list[dict[str, float]]:
    """Return a published curve as rows."""
    return [{"bpp": b, "psnr_db": p} for b, p in zip(curve["bpp"], curve["psnr_db"], strict=True)]


def effort(result: dict[str, Any]) -> str:
    """Return the section on time spent at the encoder."""
    rows = [
        [str(r["effort"]), f"{r['bd_rate_percent']:+.1f} %", f"{r['most']:+.1f} … {r['least']:+.1f} %",
         f"{r['seconds_per_megapixel']:.0f}"]
        for r in result["rows"]
    ]  # fmt: skip
    return (
        f"`--effort`, BD-rate against effort 0 on {len(result['pictures'])} Kodak pictures "
        f"({', '.join(result['pictures'])}) at qualities {', '.join(map(str, result['qualities']))}; "
        f"{result['threads']} threads, "
        f"{result['cpu']}; effort 0 takes {result['seconds_per_megapixel_plain']:.1f} s per megapixel:\n\n"
        + table(["effort", "BD-rate", "of the pictures", "s per megapixel"], rows)
    )


def targets(result: dict[str, Any]) -> str:
    """Return the section on targets."""
    parts = []
    for kind, t in result["targets"].items():
        values = " / ".join(f"{value:g}" for value in t["values"])
        apart = [f"{t[state]} {state}" for state in ("end of range", "unreachable") if t[state]]
        parts.append(f"`--{kind}` {values}: {t['hit']} of {t['found']}" + (f" ({', '.join(apart)})" if apart else ""))
    curve = result["curve"]
    return (
        f"Targets on the {result['pictures']} Kodak pictures hit, within 1 % below, PSNR within 0.1 dB above: "
        f"{'; '.join(parts)}; in {result['median_seconds']:.2f} s (median). "
        f"Over quality 0 … 100 the means go from {curve[0]['bpp']:.3f} to "
        f"{curve[-1]['bpp']:.2f} bpp, bytes and PSNR rise with every {result['quality'][1]} steps of quality on "
        f"{result['pictures_monotone']} of the pictures, by {min(result['db_per_octave']):.2f} to "
        f"{max(result['db_per_octave']):.2f} dB for each doubling of the rate.\n"
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
        "On CPUs with AMX or AVX512-BF16 the encoder's networks run in bf16.\n\n" + table(head, rows)
    )


def bd_rate(anchor: list[dict[str, float]], rows: list[dict[str, float]]) -> float | None:
    """Return the BD-rate in percent of rows against an anchor, None if their qualities overlap by less than 1 dB."""
    spans = [(min(r["psnr_db"] for r in curve), max(r["psnr_db"] for r in curve)) for curve in (anchor, rows)]
    if min(high for _, high in spans) - max(low for low, _ in spans) < 1:
        return None
    curves = [(np.array([r["bpp"] for r in curve]), np.array([r["psnr_db"] for r in curve])) for curve in (anchor, rows)]
    return float(bjontegaard.bd_rate(*curves[0], *curves[1], method="akima", require_matching_points=False, min_overlap=0))


def models() -> str:
    """Return the tables of docs/models.md."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "results" / "models").glob("*.json"))}
    quoted = json.loads((ROOT / "results" / "quoted.json").read_text())
    rows = tomllib.loads((ROOT / "checkpoints" / "manifest.toml").read_text(encoding="utf-8"))
    names = [name for name in ORDER if name in results]
    overview = []
    for name in names:
        row, times = rows[name], results[name]["rows"]
        config = row["recipe"].get("config", {})
        before = (
            f"{row['start']['step']} + " if "step" in row.get("start", {}) else ""
        )  # steps of the weights that it began with
        width = f"{config['N']}/{config['M']}" if "N" in config else "192/320"
        macs = row["kmac_per_pixel"]
        seconds = [f"{np.mean([r[key] for r in times]):.3f}" for key in ("encode_s", "decode_s")]
        overview.append([f"`{name}`", width, f"{row['parameters'] / 1e6:.1f}", f"{macs['encode']:.1f}", f"{macs['decode']:.1f}",
                         f"{before}{row['steps']}", f"{row['quantisation_cost_percent']:+.2f} %", *seconds])  # fmt: skip
    first = next(iter(results.values()))
    out = (
        f"Means over the Kodak pictures, real files, {first['threads']} threads, torch {first['versions']['torch']}, "
        f"{first['cpu']}. kMAC per pixel by torch's flop counter. "
        "Training steps: of the weights that it began with, and its own.\n\n"
    )
    head = ["model", "N/M", "parameters (M)", "kMAC/pixel enc", "kMAC/pixel dec", "training steps", "cost of integers"]
    head += ["encode (s)", "decode (s)"]
    out += table(head, overview)
    out += "\nBits at equal PSNR, BD-rate in percent of the row against the column (negative: fewer bits):\n\n"
    grid = []
    for name in names:
        values = [bd_rate(results[other]["rows"], results[name]["rows"]) for other in names]
        grid.append([f"`{name}`"] + ["" if v is None else f"{v:+.1f}" for v in values])
    out += table(["", *(f"`{name}`" for name in names)], grid)
    for name in names:
        out += f"\n### `{name}`, measured\n\n"
        cells = [
            [f"{r['lmbda']:g}", f"{r['pixels']:.0f}", f"{r['bits']:.0f}", f"{r['bpp']:.4f}", f"{r['psnr_db']:.2f}",
             f"{r['encode_s']:.3f}", f"{r['decode_s']:.3f}"]
            for r in results[name]["rows"]
        ]  # fmt: skip
        out += table(["λ", "pixels", "bits", "bpp", "PSNR (dB)", "encode (s)", "decode (s)"], cells)
        for source in quoted.get(name, []):
            points = ", ".join(f"{b:.3f}/{p:.2f}" for b, p in zip(source["bpp"], source["psnr_db"], strict=True))
            value = bd_rate([{"bpp": b, "psnr_db": p} for b, p in zip(source["bpp"], source["psnr_db"], strict=True)],
                            results[name]["rows"])  # fmt: skip
            against = "" if value is None else f" Ours against it: {value:+.1f} %."
            out += f"\nQuoted, {source['name']} ({source['source']}), bpp/dB: {points}.{against}\n"
    return out + contexts(json.loads((ROOT / "results" / "contexts.json").read_text()))


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


@click.command()
@click.option("--check", is_flag=True)
def main(check: bool) -> None:
    """Rewrite the sections between the markers."""
    parts = {"kodak": rate_distortion, "targets": targets, "effort": effort, "speed": speed}
    readme = "\n".join(write(json.loads((ROOT / "results" / f"{name}.json").read_text())) for name, write in parts.items())
    sections = {"README.md": f"\n{readme}\n", "docs/models.md": f"\n{models()}\n"}
    for name, section in sections.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        head, rest = text.split(BEGIN)
        _, tail = rest.split(END)
        new = head + BEGIN + section + END + tail
        if check and new != text:
            sys.exit(f"{name} does not match results/*.json: run scripts/make_results.py")
        if not check:
            path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
