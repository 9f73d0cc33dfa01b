"""What is made from rows: the summary (JSON), the tables (Markdown), the plots."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from codec.evaluation.curves import Curve, averages, bd_matrix
from codec.evaluation.plots import SUFFIXES, draw
from codec.evaluation.rows import MEASURES, Row, json_text
from codec.files import write_atomic

CONDITIONS = ("threads", "jobs", "device", "machine", "versions")  # "mixed" in a summary of rows that differ in one
NAMES = {"psnr_db": "PSNR", "ms_ssim_db": "MS-SSIM"}
COLUMNS = {
    "quality": ("quality", "{:g}"),
    "lmbda": ("λ", "{:g}"),
    "pixels": ("pixels", "{:.0f}"),
    "bits": ("bits", "{:.0f}"),
    "bpp": ("bpp", "{:.4f}"),
    "psnr_db": ("PSNR (dB)", "{:.2f}"),
    "ms_ssim_db": ("MS-SSIM (dB)", "{:.2f}"),
    "encode_s": ("encode (s)", "{:.3f}"),
    "decode_s": ("decode (s)", "{:.3f}"),
}


def summarise(
    rows: Iterable[Row], pictures: set[tuple[str, str]], identities: Mapping[str, str], quoted: Mapping[str, Curve]
) -> dict[str, Any]:
    """Return means and BD-rates over ``pictures``, (image, crc), as ``summary.json`` has them.

    ``identities`` are those of codecs whose rows of another identity do not count.
    """
    rows = list(rows)
    curves = averages(rows, pictures, identities)
    measures = [measure for measure in MEASURES.values() if any(measure in p for curve in curves.values() for p in curve)]
    return {
        "pictures": sorted(image for image, _ in pictures),
        "codecs": {name: _codec_facts(rows, name, curve) for name, curve in curves.items()},
        "bd_rate_percent": {measure: bd_matrix(curves, curves, measure) for measure in measures},
        "bd_rate_to_quoted_percent": {measure: bd_matrix(curves, quoted, measure) for measure in measures if quoted},
    }


def _codec_facts(rows: Sequence[Row], name: str, curve: Curve) -> dict[str, Any]:
    own = [row for row in rows if (row["codec"], row["identity"]) == (name, curve[0]["identity"])]
    shared = {key: own[0][key] for key in CONDITIONS if all(row[key] == own[0][key] for row in own)}
    shared = {"identity": own[0]["identity"]} | {key: shared.get(key, "mixed") for key in CONDITIONS}
    return shared | {"points": [{key: value for key, value in point.items() if key != "identity"} for point in curve]}


def cells(point: Mapping[str, Any], columns: Iterable[str]) -> list[str]:
    """Return the cells of a point's row, empty where it has no such value."""
    known = {**point, "bits": 8 * point["bytes"]}
    return [COLUMNS[key][1].format(known[key]) if known.get(key) is not None else "" for key in columns]


def columns_of(curve: Curve) -> list[str]:
    """Return the columns that a curve has."""
    return [key for key in COLUMNS if key == "bits" or any(point.get(key) is not None for point in curve)]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in [head, ["---"] * len(head), *rows]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def bd_table(matrix: Mapping[str, Mapping[str, float | None]], anchors: Sequence[str]) -> str:
    """Return the Markdown table of BD-rates of each row's codec against each column's."""
    lines = [[name, *("" if row[a] is None else f"{row[a]:+.1f} %" for a in anchors)] for name, row in matrix.items()]
    return table(["", *anchors], lines)


def markdown(summary: Mapping[str, Any]) -> str:
    """Return the text of ``report.md``."""
    out = f"# Rate-distortion over {len(summary['pictures'])} pictures\n\n"
    out += "Real files; means over the pictures at equal settings.\n"
    for measure, matrix in summary["bd_rate_percent"].items():
        own = list(matrix)
        out += (
            f"\n## BD-rate by {NAMES[measure]}\n\nOf the row against the column; negative: fewer bits for the same quality.\n\n"
        )
        out += bd_table(matrix, own)
        if to_quoted := summary["bd_rate_to_quoted_percent"].get(measure):
            out += "\nOf the column against published curves (quoted, not run here):\n\n"
            turned = {name: {own_name: to_quoted[own_name][name] for own_name in own} for name in to_quoted[own[0]]}
            out += bd_table(turned, own)
    for name, facts in summary["codecs"].items():
        columns = columns_of(facts["points"])
        settings = json.dumps(facts["points"][0]["settings"], ensure_ascii=False)
        where = "; ".join(f"{key} {json.dumps(facts[key])}" for key in CONDITIONS)
        out += f"\n## {name}\n\n{facts['identity']}; for example {settings}; {where}.\n\n"
        out += table([COLUMNS[key][0] for key in columns], [cells(point, columns) for point in facts["points"]])
    return out


def write(out: Path, summary: Mapping[str, Any], quoted: Mapping[str, Curve], models: Iterable[str]) -> list[Path]:
    """Write summary.json, report.md and the plots into a folder; return their paths."""
    written = [out / "summary.json", out / "report.md"]
    write_atomic(written[0], (json_text(summary, indent=1) + "\n").encode(), overwrite=True)
    write_atomic(written[1], markdown(summary).encode(), overwrite=True)
    curves = {name: facts["points"] for name, facts in summary["codecs"].items()}
    for name, measure in MEASURES.items():
        if measure in summary["bd_rate_percent"]:
            paths = [out / f"{name}{suffix}" for suffix in SUFFIXES]
            draw(curves, quoted, measure, paths, f"{len(summary['pictures'])} pictures", frozenset(models))
            written += paths
        else:  # those of an earlier run would tell of other rows
            for suffix in SUFFIXES:
                (out / f"{name}{suffix}").unlink(missing_ok=True)
    return written
