"""Write the results in README.md and docs/models.md, and README's two figures, from the JSON under results/ and the manifest.

    codec evaluate KODAK --model swift --model swift-ms-ssim … --peers jpeg,webp,avif,avif-psnr,jxl,jpeg2000 \\
        --quoted results/quoted_curves.json -o results/kodak     # measures what they show
    python scripts/make_results.py            # rewrite them
    python scripts/make_results.py --check    # exit 1 if a text does not match the JSON

Nothing in them is typed by hand. Figures need the ``evaluate`` extra.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

from codec.evaluation.curves import Curve, bd_rate_percent, quoted, values
from codec.evaluation.report import NAMES, bd_table, table
from codec.evaluation.rows import MEASURES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
BEGIN = "<!-- results: written by scripts/make_results.py from results/ -->\n"
END = "<!-- end of results -->\n"
TUNED = ("swift", "swift-ms-ssim")  # README's models
ORDER = ("factorized", "hyperprior", "checkerboard", "joint", "attention", "swift")  # those of docs/models.md
QUOTED = (
    "bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean", "mbt2018", "cheng2020-attn", "ELIC (official csv)",
    "BPG 4:4:4", "AV1", "VTM", "course report 2022, factorized", "course report 2022, hyperprior",
)  # fmt: skip
QUOTED_MS_SSIM = ("bmshj2018-hyperprior (ms-ssim opt)", "mbt2018 (ms-ssim opt)")  # beside those in the MS-SSIM figure
QUOTED_OF = {
    "factorized": ("course report 2022, factorized", "bmshj2018-factorized"),
    "hyperprior": ("course report 2022, hyperprior", "bmshj2018-hyperprior"),
    "joint": ("mbt2018",),
    "checkerboard": ("paper: minnen2018-checkerboard_mse",),
    "attention": ("cheng2020-attn",),
}


def load(name: str) -> Any:
    """Return the JSON of a file below results/."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def peers_of(kodak: dict[str, Any]) -> list[str]:
    """Return the codecs that are no models of ours."""
    return [name for name, facts in kodak["codecs"].items() if "lmbda" not in facts["points"][0]]


def rate_distortion(kodak: dict[str, Any]) -> str:
    """Return the Kodak section."""
    codecs, matrices, rows = kodak["codecs"], kodak["bd_rate_percent"], []
    versions = codecs[TUNED[0]]["versions"]
    for points in zip(*(codecs[model]["points"] for model in TUNED), strict=True):
        cells = [[f"{p['bpp']:.3f}", f"{p['psnr_db']:.2f}", f"{p['ms_ssim_db']:.2f}"] for p in points]
        rows.append([f"{points[0]['quality']:g}", *(cell for part in cells for cell in part)])
    heads = ("bpp", "PSNR (dB)", "MS-SSIM (dB)")
    head = ["quality", *(f"`{model}` {what}" if what == "bpp" else what for model in TUNED for what in heads)]
    peers = peers_of(kodak)
    settings = "; ".join(f"{name} {options_text(codecs[name]['points'][0]['settings'])}" for name in peers)
    against = {f"`{model}`, {label}": matrices[measure][model] for model in TUNED for measure, label in NAMES.items()}
    published = {name: {"BD-rate": kodak["bd_rate_to_quoted_percent"]["psnr_db"][TUNED[0]][name]} for name in QUOTED}
    return (
        f"Means over the {len(kodak['pictures'])} Kodak pictures, real files, on decoded RGB; MS-SSIM as "
        f"−10·log10(1 − MS-SSIM) (torch {versions['torch']}, Pillow {versions['pillow']}). `swift` is trained for PSNR, "
        "`swift-ms-ssim` for MS-SSIM:\n\n"
        + table(head, rows)
        + "\nBD-rate against codecs that were run here (negative: fewer bits), through Pillow and its JPEG XL plugin, with "
        f"{settings}:\n\n"
        + bd_table(against, peers)
        + "\nBD-rate of `swift` by PSNR against published curves, quoted, not run here (sources in "
        "`results/quoted_curves.json`):\n\n"
        + bd_table(published, ["BD-rate"])
        + "\n![PSNR on Kodak](docs/kodak-psnr.svg)\n![MS-SSIM on Kodak](docs/kodak-ms-ssim.svg)\n"
    )


def options_text(settings: dict[str, Any]) -> str:
    """Return the options of a peer that are the same at all qualities."""
    return json.dumps({key: value for key, value in settings.items() if key not in ("quality", "quality_layers")})


def draw_figures() -> None:
    """Write docs/kodak-psnr.svg and docs/kodak-ms-ssim.svg."""
    from codec.evaluation.plots import draw

    kodak, published = load("kodak/summary.json"), quoted(RESULTS / "quoted_curves.json")
    shown = {name: kodak["codecs"][name]["points"] for name in (*TUNED, *peers_of(kodak))}
    for name, measure in MEASURES.items():
        names = QUOTED if measure == "psnr_db" else (*QUOTED, *QUOTED_MS_SSIM)
        dashed = {curve: published[curve] for curve in names if values(published[curve], measure)[0]}
        title = f"Kodak, {len(kodak['pictures'])} pictures"
        draw(shown, dashed, measure, [ROOT / "docs" / f"kodak-{name}.svg"], title, frozenset(TUNED))


def effort(result: dict[str, Any]) -> str:
    """Return the section on time spent at the encoder."""
    rows = [
        [f"{r['effort']}" + (f" ({r['measured_on']})" if "measured_on" in r else ""),
         f"{r['bd_rate_percent']:+.1f} %", f"{r['most']:+.1f} … {r['least']:+.1f} %", f"{r['seconds_per_megapixel']:.0f}"]
        for r in result["rows"]
    ]  # fmt: skip
    beside = f", beside {result['beside']}" if result["beside"] else ""
    return (
        f"`--effort`, BD-rate against effort 0 on {len(result['pictures'])} Kodak pictures "
        f"({', '.join(result['pictures'])}) at qualities {', '.join(map(str, result['qualities']))}; "
        f"{result['threads']} thread{'s' * (result['threads'] > 1)}, "
        f"{result['cpu']}{beside}; effort 0 takes {result['seconds_per_megapixel_plain']:.1f} s per megapixel:\n\n"
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
        "On CPUs with AMX or AVX512-BF16 most convolutions of the encoder run in bf16.\n\n" + table(head, rows)
    )


def start(result: dict[str, Any]) -> str:
    """Return the section on cold starts."""
    picture, times = result["picture"], result["median_s"]
    names = {name: f"`codec {name}`" for name in times} | {"import torch": '`python -c "import torch"`'}
    return (
        f"\nCold starts, whole processes, `{result['model']}`, a picture of {picture['width']}×{picture['height']} pixels, "
        f"{result['threads']} threads, {result['machine']['cpu']}, medians of {result['runs']}:\n\n"
        + table(list(names.values()), [[f"{times[name]:.2f} s" for name in names]])
    )


def batch(result: dict[str, Any]) -> str:
    """Return the sentence on many pictures."""
    one, two = (result["local"][key]["median"]["seconds"] for key in ("1", "2"))
    ray, killed = result["ray"]["seconds"], result["killed"]
    return (
        f"\n`codec batch`, {result['pictures']} pictures of {result['megapixels']:.0f} megapixels in all, {result['cpu']}, "
        f"whole runs: {one:.1f} s by one worker, {two:.1f} s by two ({result['speedup']:.2f} times as fast); the engine ray: "
        f"{ray:.1f} s, with equal bytes. A worker killed, then the whole run, and gone on with: {killed['rows']} rows, "
        f"{killed['listed_twice']} twice.\n"
    )


def scale(result: dict[str, Any]) -> str:
    """Return the section on large pictures."""
    rows = []
    for r in result["rows"]:
        megapixels = r["width"] * r["height"] / 1e6
        commands = [r[command] for command in ("encode", "decode", "thumbnail")]
        cells = [f"{command['seconds'] / megapixels:.2f}" for command in commands]
        cells += [f"{command['peak_mb'] / 1000:.2f}" for command in commands[:2]]
        crop = r["crop"]
        cells.append(f"{crop['seconds']:.2f} s, {100 * crop['seconds'] / r['decode']['seconds']:.1f} %")
        rows.append([f"{megapixels:.1f}", *cells, f"{100 * crop['bytes_read'] / r['bytes']:.1f} %"])
    head = ["megapixels", "encode (s per MP)", "decode (s per MP)", "1/8 (s per MP)", "peak memory, encode (GB)", "decode (GB)"]
    return (
        f"Large pictures, `{result['model']}` at quality {result['quality']:g}, {result['threads']} threads, {result['cpu']}; "
        "memory is all that the process had resident, PNG files read and written included; the crop is 512×512 pixels from the "
        "middle, in seconds and parts of the whole picture's time and bytes:\n\n"
        + table([*head, "crop", "bytes read"], rows)
        + "\n![Time and memory over megapixels](docs/scale.svg)\n"
    )


def trust(result: dict[str, Any], kills: dict[str, Any]) -> str:
    """Return the section on hostile files and kills."""
    outcomes = sorted({name for counts in result["outcomes"].values() for name in counts})
    killed, deep, count = kills["all"], 100 * result["reached_the_symbols"], len(result["outcomes"])
    return (
        f"Hostile files: {result['files']} decodes of mutated ones, {count} checkpoints ({deep:.0f} % reached the entropy "
        f"decoder), each decoded or refused ({', '.join(outcomes)}) within {result['slowest']['seconds']:.2f} s and "
        f"{result['most_memory_mb']:.0f} MB; {len(result['findings'])} findings. "
        f"Killed at random moments: {killed['killed']} runs, {killed['half a file there']} half files.\n"
    )


def models() -> str:
    """Return the tables of docs/models.md."""
    kodak, published = load("kodak/summary.json"), quoted(RESULTS / "quoted_curves.json")
    rows = tomllib.loads((ROOT / "checkpoints" / "manifest.toml").read_text(encoding="utf-8"))
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


@click.command()
@click.option("--check", is_flag=True)
def main(check: bool) -> None:
    """Rewrite the sections between the markers."""
    parts = {"kodak/summary": rate_distortion, "targets": targets, "effort": effort, "speed": speed, "scale": scale}
    readme = "\n".join(write(load(f"{name}.json")) for name, write in parts.items())
    readme += start(load("start.json")) + batch(load("batch.json")) + "\n" + trust(load("fuzz.json"), load("kill.json"))
    sections = {"README.md": f"\n{readme}\n", "docs/models.md": f"\n{models()}\n"}
    for name, section in sections.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        head, rest = text.split(BEGIN)
        _, tail = rest.split(END)
        new = head + BEGIN + section + END + tail
        if check and new != text:
            sys.exit(f"{name} does not match results/: run scripts/make_results.py")
        if not check:
            path.write_text(new, encoding="utf-8")
    if not check:
        draw_figures()


if __name__ == "__main__":
    main()
