"""The command inspect. ``codec.cli.main`` registers it and turns its errors into exit codes.

Heavy imports stay inside the command, as in ``codec.cli.main``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitstream.errors import UsageError
from codec.cli.options import PATH, limit_options, limits_of, printable, set_threads

if TYPE_CHECKING:
    from rich.table import Table

    from bitstream.recording import StreamCost
    from codec.inspection import Inspection

TABLE_WIDTH = 112  # narrower, names would be cut


@click.argument("source", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--channels", type=click.IntRange(0), default=10, show_default=True, help="Latent channels to list.")
@click.option("--heatmap", type=PATH, help="Write a picture of bits per pixel (.png, …), a legend below it.")
@click.option("--overlay", is_flag=True, help="Lay the heat-map over the decoded picture.")
@click.option("--legend/--no-legend", default=True, show_default=True, help="Without, it has exactly the picture's size.")
@click.option("-f", "--force", is_flag=True, help="Overwrite the heat-map.")
@click.option("--model", help="A checkpoint (.safetensors path) when the one the file names is not installed.")
@limit_options
@click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores).")
def inspect(
    source: Path, as_json: bool, channels: int, heatmap: Path | None, overlay: bool, legend: bool, force: bool,
    model: str | None, max_pixels: int, max_memory: str, threads: int | None,
) -> None:  # fmt: skip
    """Say where the bits of a compressed file went: its parts, places in the picture, latent channels.

    \b
    codec inspect photo.lic --heatmap bits.png
    """
    from codec.files import check_not_source, check_target, read_bytes

    if overlay and heatmap is None:
        raise UsageError("--overlay needs --heatmap FILE")
    if heatmap is not None:
        from codec.images import format_of

        check_target(heatmap, overwrite=force)
        check_not_source(heatmap, [source])
        format_of(heatmap)
    limits = limits_of(max_pixels, max_memory)
    data = read_bytes(source, limits=limits)
    from bitstream.container import Container

    Container.unpack(data, limits=limits)  # complain about damage before torch is loaded
    from codec import heatmap as drawing
    from codec import images, inspection
    from codec.api import decode

    set_threads(threads)
    found = inspection.inspect(data, model=model, limits=limits)
    if heatmap is not None:
        under = decode(data, model=model, device="cpu", limits=limits) if overlay else None
        images.save(drawing.heatmap(found, under=under, legend=legend), heatmap, overwrite=force)
    if as_json:
        click.echo(json.dumps({"file": str(source), **found.facts(channels)}, indent=2))
    else:
        _print(source, found, channels)


def _print(source: Path, found: Inspection, channels: int) -> None:
    from rich.console import Console

    header, facts, cost = found.header, found.facts(channels), found.cost
    console = Console(width=max(Console().width, TABLE_WIDTH))
    click.echo(
        f"{printable(str(source))}: {header.width}×{header.height} pixels, {found.model}, quality {facts['quality']:g}, "
        f"{facts['bytes']} bytes, {facts['bpp']:.4f} bpp"
    )
    console.print(_parts_table(found))
    excess = 8 * cost.payload_bytes / cost.ideal_bits - 1 if cost.ideal_bits else 0.0
    click.echo(f"ideal: by the probabilities of the symbols; the payloads of the coder are {100 * excess:.2f} % longer")
    low, mean, high = (facts["bpp_map"][name] for name in ("min", "mean", "max"))
    click.echo(f"bits per pixel of 16×16 pixels each: {low:.3f} … {high:.3f}, mean {mean:.3f}")
    if channels:
        console.print(_channels_table(found, channels))


def _parts_table(found: Inspection) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("part", no_wrap=True)
    for name in ("bytes", "%", "payload", "ideal", "symbols", "zeros %", "bits/symbol"):
        table.add_column(name, justify="right")

    def add(name: str, n_bytes: int, cost: StreamCost) -> None:
        cells = [str(n_bytes), f"{100 * n_bytes / found.n_bytes:.2f}"]
        if cost.symbols:
            cells += [str(cost.payload_bytes), f"{cost.ideal_bits / 8:.1f}", str(cost.symbols)]
            cells += [f"{100 * cost.zeros / cost.symbols:.1f}", f"{8 * n_bytes / cost.symbols:.4f}"]
        table.add_row(name, *cells)

    for part in found.parts:
        if part.n_bytes or part.cost.symbols:
            add(part.name, part.n_bytes, part.cost)
    table.add_section()
    add("total", found.n_bytes, found.cost)
    return table


def _channels_table(found: Inspection, count: int) -> Table:
    from rich.table import Table

    table = Table()
    names = ("grid, by its cells", "bits", "% of grids") if found.header.fitted else ("channel of y", "bits", "% of y")
    for name in (*names, "zeros %"):
        table.add_column(name, justify="right")
    for row in found.channels(count):
        index = f"{2**row.index}×{2**row.index} pixels" if found.header.fitted else str(row.index)
        table.add_row(index, f"{row.bits:.0f}", f"{100 * row.share:.2f}", f"{100 * row.zeros:.1f}")
    return table
