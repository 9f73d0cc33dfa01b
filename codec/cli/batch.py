"""The command ``codec batch``. ``codec.cli.main`` registers it and turns its errors into exit codes.

Heavy imports stay inside, as in ``codec.cli.main``.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from bitstream.errors import UsageError
from codec.cli.files import is_terminal, left_out
from codec.cli.options import DEVICES, limit_options, limits_of, printable

if TYPE_CHECKING:
    from codec.batch import Summary

SHOWN_FAILURES = 50  # lines; the manifest has all
UNITS = ("bytes", "kB", "MB", "GB", "TB")

_OPTIONS = (
    click.option("--list", "listed", metavar="FILE", help="Pictures: one path or URL a line, instead of SRC."),
    click.option("--decode", is_flag=True, help="The other way: .lic files to pictures."),
    click.option("--suffix", default=".png", show_default=True, help="Of the pictures, with --decode: their format."),
    click.option("-q", "--quality", type=click.FloatRange(0, 100), help="0 small … 100 fine.  [default: 50]"),
    click.option("--bpp", type=float, help="Instead: at most so many bits per pixel."),
    click.option("--size", metavar="BYTES|KB", help="Instead: at most so many bytes each, for example 40KB."),
    click.option("--psnr", type=float, help="Instead: the smallest files with this PSNR in dB, or a little more."),
    click.option("--max-size", metavar="BYTES|KB", help="Lower the quality where a file would be larger than this."),
    click.option("--effort", type=click.IntRange(0, 10), default=0, show_default=True, help="As for `codec encode`."),
    click.option("--strip", is_flag=True, help="As for `codec encode`."),
    click.option("--strict", is_flag=True, help="As for `codec encode`."),
    click.option("--model", help="A name from `codec models`, or a .safetensors path.  [default: swift; files name theirs]"),
    click.option("--psnr-report", is_flag=True, help="Decode each file again; the manifest gets its PSNR."),
    click.option("--manifest", metavar="FILE", help="What is done, JSON lines.  [default: DST/manifest.jsonl]"),
    click.option("--workers", type=click.IntRange(0),
                 help="Processes (default: one a core, fewer where memory is short; 0: none but this one)."),
    click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                 help="Processes of this machine, or Ray Data."),
    click.option("--ray-address", help="Of a cluster (default: RAY_ADDRESS, or one started here)."),
    click.option("--recursive", is_flag=True, hidden=True, help="It always is."),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON."),
    click.option("-f", "--force", is_flag=True, help="Overwrite targets that the manifest does not know."),
    click.option("--device", type=DEVICES, default="auto", show_default=True, help="Where the transforms run."),
    limit_options,
)  # fmt: skip


def _batch_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.argument("places", metavar="[SRC] DST", nargs=-1, required=True)
@_batch_options
def batch(
    places: tuple[str, ...], listed: str | None, manifest: str | None, workers: int | None, engine: str,
    ray_address: str | None, recursive: bool, as_json: bool, force: bool, size: str | None, max_size: str | None,
    max_pixels: int, max_memory: str, **options: Any,
) -> None:  # fmt: skip
    """Encode all pictures below SRC into DST, several at once; a run that was cut short goes on where it was.

    SRC is a folder, a list of paths and URLs (.txt, or --list), or a URL like s3://bucket/prefix; DST is a folder or a URL.
    Names mirror SRC. DST/manifest.jsonl says what is done: that is skipped if the options are the same. Exit 1 if a picture
    failed; the others are done all the same.

    \b
    codec batch photos/ coded/ -q 40
    codec batch s3://bucket/photos s3://bucket/coded --max-size 200KB
    codec batch --decode coded/ decoded/ --suffix .webp
    """
    if len(places) != (2 if listed is None else 1):
        expected = "SRC and DST" if listed is None else "DST alone, with --list"
        raise UsageError(f"{len(places)} places are given, expected {expected}")
    from codec.batch import run
    from codec.targets import parse_size

    for name, text in (("size", size), ("max_size", max_size)):
        options[name] = None if text is None else parse_size(text)
    with _bar() as progress:
        summary = run(
            places[0] if listed is None else None, places[-1], listed=listed, manifest=manifest, workers=workers,
            engine=engine, ray_address=ray_address, overwrite=force, progress=progress,
            limits=limits_of(max_pixels, max_memory), **options,
        )  # fmt: skip
    for row in summary.failures[:SHOWN_FAILURES]:
        click.echo(f"codec: {printable(row['error'])}", err=True)
    if summary.failed > SHOWN_FAILURES:
        click.echo(f"codec: {summary.failed - SHOWN_FAILURES} more failures: {printable(summary.manifest)} has them", err=True)
    click.echo(json.dumps(_facts(summary)) if as_json else printable(_sentence(summary)))
    if summary.failed:
        sys.exit(1)


def _facts(summary: Summary) -> dict[str, Any]:
    names = ("pictures", "done", "skipped", "failed", "warned", "source_bytes", "target_bytes")
    facts = {name: getattr(summary, name) for name in names}
    return facts | {"others": dict(summary.others), "seconds": round(summary.seconds, 3), "manifest": summary.manifest}


def _sentence(summary: Summary) -> str:
    before, after = summary.source_bytes, summary.target_bytes
    share = f" ({100 * after / before:.1f} %)" if before else ""
    parts = [f"{summary.done} of {summary.pictures} pictures: {_bytes(before)} to {_bytes(after)}{share}"]
    parts += [f"{summary.seconds:.1f} s"]
    parts += [f"{summary.skipped} were done before"] if summary.skipped else []
    parts += [f"{summary.warned} with warnings (in {summary.manifest})"] if summary.warned else []
    parts += [f"{summary.failed} failed"]
    return ", ".join(parts) + (f"; {left_out(summary.others)}" if summary.others else "")


def _bytes(number: float) -> str:
    """Return 1234567 as "1.2 MB"."""
    unit = UNITS[0]
    for unit in UNITS:
        if abs(number) < 1000 or unit == UNITS[-1]:
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == UNITS[0] else f"{number:.1f} {unit}"


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int, dict[str, Any] | None], None]]:
    """Show a bar on a terminal, with the pictures that are through and the bytes saved; its value is called by ``run``."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("saved {task.fields[saved]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_terminal(sys.stderr)) as bar:
        task = bar.add_task("pictures", total=None, saved=_bytes(0))
        saved = 0

        def progress(done: int, total: int, row: dict[str, Any] | None) -> None:
            nonlocal saved
            if row is not None and row["status"] == "done":
                saved += row["source_bytes"] - row["target_bytes"]
            bar.update(task, total=total, completed=done, saved=_bytes(saved))

        yield progress
