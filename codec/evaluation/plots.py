"""Rate-distortion plots: solid what was run, dashed what is quoted."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from codec.evaluation.curves import Curve, values
from codec.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {"psnr_db": "PSNR (dB)", "ms_ssim_db": "MS-SSIM, −10·log10(1 − MS-SSIM) (dB)"}
SUFFIXES = (".svg", ".png")
FEW = 24  # labels that a legend has in large letters
COLOURS = 10  # of matplotlib's cycle: after so many curves the marker changes
MARKERS = "osD"
MARGIN = 0.02  # of the heights, around the curves that were run


def draw(
    curves: Mapping[str, Curve],
    quoted: Mapping[str, Curve],
    measure: str,
    paths: list[Path],
    title: str,
    bold: frozenset[str] = frozenset(),
) -> None:
    """Write a plot to files of the formats of their suffixes. Curves in ``bold`` are thick and give the span, all if none is.

    The same curves give the same SVG. Raises UsageError if a file cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="tight")
    axes = figure.add_subplot()
    spans = []
    for number, (name, curve) in enumerate(curves.items()):
        rates, heights = values(curve, measure)
        if rates:
            marker = MARKERS[number // COLOURS % len(MARKERS)]
            axes.plot(rates, heights, marker=marker, markersize=4, linewidth=2.5 if name in bold else 1.5, label=_label(name))
        if rates and (name in bold or bold.isdisjoint(curves)):
            spans.append((rates[0], rates[-1], heights[0], heights[-1]))
    if spans and max(span[3] for span in spans) > min(span[2] for span in spans):
        right = max(span[1] for span in spans)
        low, high = min(span[2] for span in spans), max(span[3] for span in spans)
        axes.set(xlim=(0, right), ylim=(low - MARGIN * (high - low), high + MARGIN * (high - low)))
    faint = itertools.cycle(colormaps["tab20b"](range(20)))
    for name, curve in quoted.items():
        rates, heights = values(curve, measure)
        if rates:
            axes.plot(rates, heights, "--", color=next(faint), linewidth=0.9, label=_label(f"{name} (quoted)"))
    axes.set(xlabel="bits per pixel", ylabel=LABELS[measure], title=title)
    axes.grid(alpha=0.3)
    if axes.lines:
        labels = len(axes.get_legend_handles_labels()[0])
        axes.legend(fontsize=8 if labels <= FEW else 4, loc="lower right", ncols=1 if labels <= FEW else 3)
    _save(figure, paths)


def _save(figure: Figure, paths: list[Path]) -> None:
    from matplotlib import rc_context

    for path in paths:
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "codec"}):
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(buffer, format=path.suffix[1:], metadata=metadata, dpi=150)
        write_atomic(path, buffer.getvalue(), overwrite=True)


def _label(name: str) -> str:
    """Return a name that matplotlib takes as it is: no formula, no hidden label."""
    return name.replace("$", r"\$").lstrip("_")
