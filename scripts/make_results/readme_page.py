"""The results in README.md, and its figures."""

from __future__ import annotations

import json
from typing import Any

from measured import RESULTS, ROOT, load

from codec.evaluation.curves import quoted, values
from codec.evaluation.report import NAMES, bd_table, table
from codec.evaluation.rows import MEASURES
from models.manifest import MANIFEST, read_manifest

TUNED = ("swift", "swift-ms-ssim")
PICTURE = "the synthetic examples/{name}.png ({width}×{height} pixels)"
QUOTED = (
    "bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean", "mbt2018", "cheng2020-attn", "ELIC (official csv)",
    "BPG 4:4:4", "AV1", "VTM", "course report 2022, factorized", "course report 2022, hyperprior",
)  # fmt: skip
QUOTED_MS_SSIM = ("bmshj2018-hyperprior (ms-ssim opt)", "mbt2018 (ms-ssim opt)")  # beside those in the MS-SSIM figure


def section() -> str:
    """Return all of it."""
    parts = {"kodak/summary": rate_distortion, "drawn": drawn, "targets": targets, "effort": effort}
    parts |= {"speed": speed, "scale": scale}
    text = "\n".join(write(load(f"{name}.json")) for name, write in parts.items())
    return text + start(load("start.json")) + batch(load("batch.json")) + "\n" + trust(load("fuzz.json"), load("kill.json"))


def aged(result: dict[str, Any]) -> str:
    """Return a remark if a result was measured with another checkpoint than the one that is shipped now."""
    now, then = read_manifest(MANIFEST)[result.get("model", TUNED[0])]["sha256"], result.get("checkpoint")
    return "" if then == now else f", an older checkpoint ({then[:8]})" if then else ", an older checkpoint"


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


def drawn(result: dict[str, Any]) -> str:
    """Return the section on pictures that are no photographs."""
    kinds = result["kinds"]
    peers = list(kinds["all"]["bd_rate_percent"])
    rates = {f"{kind} ({facts['pictures']})": facts["bd_rate_percent"] for kind, facts in kinds.items()}
    return (
        "Pictures that are no photographs: `swift` by PSNR on drawn ones and on Kodak in loud colours "
        f"(`scripts/make_drawn.py`, seed {result['seed']}; training saw others of these kinds), BD-rate against the codecs "
        "above:\n\n" + bd_table(rates, peers)
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
        f"In-process times for {PICTURE.format(**picture)}, {result['threads']} threads, "
        f"{result['machine']['cpu']}{aged(result)}, medians of {result['runs']} runs, beside {result['peer']} in the same run. "
        "On CPUs with AMX or AVX512-BF16 most convolutions of the encoder run in bf16.\n\n" + table(head, rows)
    )


def start(result: dict[str, Any]) -> str:
    """Return the section on cold starts."""
    picture, times = result["picture"], result["median_s"]
    names = {name: f"`codec {name}`" for name in times} | {"import torch": '`python -c "import torch"`'}
    return (
        f"\nCold starts, whole processes, `{result['model']}`, {PICTURE.format(**picture)}, "
        f"{result['threads']} threads, {result['machine']['cpu']}{aged(result)}, medians of {result['runs']}:\n\n"
        + table(list(names.values()), [[f"{times[name]:.2f} s" for name in names]])
    )


def batch(result: dict[str, Any]) -> str:
    """Return the sentence on many pictures."""
    one, two = (result["local"][key]["median"]["seconds"] for key in ("1", "2"))
    ray, killed = result["ray"]["seconds"], result["killed"]
    return (
        f"\n`codec batch`, {result['pictures']} pictures of {result['megapixels']:.0f} megapixels in all, "
        f"{result['cpu']}{aged(result)}, whole runs: {one:.1f} s by one worker, {two:.1f} s by two "
        f"({result['speedup']:.2f} times as fast); the engine ray: "
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
        f"Large pictures (mirrored copies of examples/lake.png), `{result['model']}` at quality {result['quality']:g}, "
        f"{result['threads']} threads, {result['cpu']}{aged(result)}; "
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
